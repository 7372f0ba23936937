//! Sockets of a server, from the kernel's tables.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;

/// State of a socket in the kernel's tables.
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// Returns the number of established connections of which this is the server's address; `None` if the kernel's tables
/// can't be read.
pub(crate) fn established(address: SocketAddr) -> Option<usize> {
    count(address.port(), ESTABLISHED).map(|inodes| inodes.len())
}

/// Returns the inodes of the sockets that listen on a port.
pub(crate) fn listeners(port: u16) -> Option<Vec<u64>> {
    count(port, LISTEN)
}

/// Returns the inodes of the sockets with a local port and a state.
fn count(port: u16, state: &str) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(file) = File::open(table) else {
            // Without IPv6 there is no such table.
            if table.ends_with('6') {
                continue;
            }
            return None;
        };
        for line in BufReader::new(file).lines().skip(1) {
            found.extend(inode(&line.ok()?, port, state));
        }
    }
    Some(found)
}

/// Returns the inode of a line if it has this local port and this state.
fn inode(line: &str, port: u16, wanted: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (_, local) = local.rsplit_once(':')?;
    let matches = state == wanted && u16::from_str_radix(local, 16) == Ok(port);
    // The inode is the tenth field.
    let inode = fields.nth(5)?;
    matches.then(|| inode.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn line_of_the_table_is_matched_by_local_port_and_state() {
        let line = "   1: 0100007F:1F90 0100007F:D2A4 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(inode(line, 8080, ESTABLISHED), Some(4711));
        assert_eq!(inode(line, 8080, LISTEN), None);
        assert_eq!(
            inode(line, 53924, ESTABLISHED),
            None,
            "the remote port does not count"
        );
        assert_eq!(inode("garbage", 1, LISTEN), None);
    }

    #[test]
    fn connections_that_the_server_holds_are_counted_and_closed_ones_are_not() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listeners(address.port()).unwrap().len(), 1);
        let clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
        let served = [0; 3].map(|_| listener.accept().unwrap().0);
        assert_eq!(established(address), Some(3));
        let [one, two, three] = served;
        drop((one, two));
        // FIN-WAIT-2 is no longer established.
        assert_eq!(established(address), Some(1));
        drop((clients, three));
    }
}
