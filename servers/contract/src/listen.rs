//! The listening socket, the same for all models.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Needs;

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {0}: the port is in use; choose another with --listen, or port 0 for a free one"
    )]
    InUse(SocketAddr),
    /// The address is not one of this machine.
    #[error("cannot listen on {0}: no interface of this machine has that address")]
    NotHere(SocketAddr),
    /// Ports below 1024 are for root.
    #[error("cannot listen on {0}: not permitted; ports below 1024 need root, choose a higher one")]
    NotPermitted(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// Opens a listening socket with the options that all servers share.
///
/// * SO_REUSEADDR: a server can be started again at once, though connections of the last one are in TIME_WAIT.
/// * TCP_NODELAY: a small reply goes out at once; with Nagle's algorithm it may wait 40 ms for a delayed ACK. Set on
///   the listener, because accepted sockets inherit it: one call instead of one per connection.
/// * Non-blocking: a readiness report for a listener may be stale (the peer has left again), and a server that then
///   blocked in accept(2) would hang. Accepted sockets do not inherit this on Linux.
///
/// `backlog` is how many connections the kernel completes ahead of accept(2); it cuts the number off at
/// `net.core.somaxconn`.
///
/// # Errors
///
/// What the kernel says, with what to do about it.
pub fn listen(address: SocketAddr, backlog: u32, needs: Needs) -> Result<TcpListener, ListenError> {
    // A port that may be shared is shared with strangers too: another server of the same user would take half of the
    // connections without a word. So this looks first whether somebody is there.
    let alone = if needs.shared_port {
        open(address, backlog, false).map(drop)
    } else {
        Ok(())
    };
    let listener = alone.and_then(|()| open(address, backlog, needs.shared_port));
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere(address),
        io::ErrorKind::PermissionDenied => ListenError::NotPermitted(address),
        _ => ListenError::Other(address, error),
    })
}

/// Opens one more listener on the port of one that was made for a model that needs a shared port. The kernel then
/// chooses a listener for every peer, by a hash of both addresses (SO_REUSEPORT in socket(7)).
///
/// # Errors
///
/// The first one does not share its port, or no descriptor was to be had.
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

    /// No server sets options on accepted sockets: they rely on this.
    #[test]
    fn accepted_sockets_inherit_nodelay_and_block() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1, Needs::NOTHING).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // The handshake is complete, so the connection is in the queue.
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        let flags = rustix::fs::fcntl_getfl(&accepted).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn a_port_in_use_says_so() {
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
    fn a_shared_port_is_shared_on_purpose_only() {
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
