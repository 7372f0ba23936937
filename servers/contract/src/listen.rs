//! The listening socket, which is the same for all models.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Needs;

/// Reason why a server can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket listens on the port.
    #[error(
        "cannot listen on {0}: the port is in use; choose another with --listen, or port 0 for a free one"
    )]
    InUse(SocketAddr),
    /// The address belongs to no interface of this machine.
    #[error("cannot listen on {0}: no interface of this machine has that address")]
    NotHere(SocketAddr),
    /// The process may not use the port: ports below 1024 need root.
    #[error("cannot listen on {0}: not permitted; ports below 1024 need root, choose a higher one")]
    NotPermitted(SocketAddr),
    /// Any other error.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// Opens a listening socket with the options that all servers share.
///
/// * SO_REUSEADDR: a server can be started again at once, although connections of the last one are in TIME_WAIT.
/// * TCP_NODELAY: a small reply is sent at once. With Nagle's algorithm it may wait 40 ms for a delayed ACK. The option
///   is set on the listener, because accepted sockets inherit it: one call instead of one per connection.
/// * Non-blocking: a readiness report for a listener may be stale, because the peer has left again. A server that then
///   blocked in accept(2) would hang. Accepted sockets do not inherit this option on Linux.
///
/// `backlog` is the number of connections that the kernel completes ahead of accept(2). The kernel reduces a larger
/// number to `net.core.somaxconn`.
///
/// # Errors
///
/// The error of the kernel, with what to do about it.
pub fn listen(address: SocketAddr, backlog: u32, needs: Needs) -> Result<TcpListener, ListenError> {
    // With SO_REUSEPORT any other server of the same user can use the port too, and would take half of the connections
    // unnoticed. So a listener without the option is opened first: it fails if the port is in use.
    let unused = if needs.shared_port {
        open(address, backlog, false).map(drop)
    } else {
        Ok(())
    };
    let listener = unused.and_then(|()| open(address, backlog, needs.shared_port));
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere(address),
        io::ErrorKind::PermissionDenied => ListenError::NotPermitted(address),
        _ => ListenError::Other(address, error),
    })
}

/// Opens one more listener on the port of `first`, which was opened for a model that needs a shared port. The kernel
/// then chooses a listener for every peer, by a hash of both addresses (SO_REUSEPORT in socket(7)).
///
/// # Errors
///
/// The first listener does not share its port, or no descriptor is available.
pub fn listen_beside(first: &TcpListener, backlog: u32) -> io::Result<TcpListener> {
    open(first.local_addr()?, backlog, true)
}

fn open(address: SocketAddr, backlog: u32, shared_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    /// No server sets options on accepted sockets. All servers rely on the inherited options.
    #[test]
    fn accepted_sockets_inherit_nodelay_and_block() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // The TCP handshake is complete, so the connection is in the queue of the listener.
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        let flags = rustix::fs::fcntl_getfl(&accepted).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn listen_on_a_port_in_use_is_refused() {
        let address = "127.0.0.1:0".parse().unwrap();
        let first = listen(address, 1, Needs::NOTHING)
            .unwrap()
            .local_addr()
            .unwrap();
        let held = listen(first, 1, Needs::NOTHING).unwrap();
        assert!(matches!(
            listen(held.local_addr().unwrap(), 1, Needs::NOTHING),
            Err(ListenError::InUse(_))
        ));
    }

    #[test]
    fn shared_port_accepts_more_listeners_only_from_listen_beside() {
        let shared = Needs {
            shared_port: true,
            ..Needs::NOTHING
        };
        let first = listen("127.0.0.1:0".parse().unwrap(), 1, shared).unwrap();
        let address = first.local_addr().unwrap();
        let second = listen_beside(&first, 1).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        for needs in [shared, Needs::NOTHING] {
            let third = listen(address, 1, needs);
            assert!(matches!(third, Err(ListenError::InUse(_))), "{needs:?}");
        }
        let alone = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
        assert!(listen_beside(&alone, 1).is_err());
    }
}
