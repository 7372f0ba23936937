//! Runs both versions of the test in `cannot-fail` against servers that are wrong.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::thread;

use museum::cannot_fail::{fixed, wrong};

type Converse = fn(TcpStream) -> std::io::Result<()>;

/// Starts a server that runs until the process ends, and returns its address.
fn start_server(converse: Converse) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || converse(stream));
        }
    });
    address
}

/// Sends back all input.
fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    stream.read_to_end(&mut line)?;
    stream.write_all(&line)
}

/// Sends back the input in upper case.
fn reply_in_upper_case(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = [0; 9];
    stream.read_exact(&mut line)?;
    stream.write_all(&line.to_ascii_uppercase())
}

/// Reads all input and sends nothing.
fn reply_nothing(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

const WRONG_SERVERS: [Converse; 2] = [reply_in_upper_case, reply_nothing];

#[test]
fn wrong_test_passes_on_wrong_servers() {
    for converse in WRONG_SERVERS {
        wrong::lines_are_echoed(start_server(converse));
    }
}

#[test]
fn fixed_test_fails_on_wrong_servers() {
    for converse in WRONG_SERVERS {
        let address = start_server(converse);
        catch_unwind(|| fixed::lines_are_echoed(address)).unwrap_err();
    }
}

#[test]
fn fixed_test_passes_on_a_correct_server() {
    fixed::lines_are_echoed(start_server(echo));
}
