//! A test is worth what it says of a server that is wrong.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::thread;

use museum::cannot_fail::{fixed, wrong};

type Converse = fn(TcpStream) -> std::io::Result<()>;

/// A server; it ends with the process.
fn server(converse: Converse) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || converse(stream));
        }
    });
    address
}

/// As it should.
fn echoes(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    stream.read_to_end(&mut line)?;
    stream.write_all(&line)
}

/// All in upper case.
fn shouts(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = [0; 9];
    stream.read_exact(&mut line)?;
    stream.write_all(&line.to_ascii_uppercase())
}

/// Hears it out, and says nothing.
fn says_nothing(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

const WRONG: [Converse; 2] = [shouts, says_nothing];

#[test]
fn the_wrong_test_passes_on_servers_that_are_wrong() {
    for converse in WRONG {
        wrong::lines_are_echoed(server(converse));
    }
}

#[test]
fn the_mended_test_fails_on_them() {
    for converse in WRONG {
        let address = server(converse);
        catch_unwind(|| fixed::lines_are_echoed(address)).unwrap_err();
    }
}

#[test]
fn the_mended_test_passes_on_a_server_that_is_right() {
    fixed::lines_are_echoed(server(echoes));
}
