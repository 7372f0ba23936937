//! Checks of `exact`: replies are exact, however the network cuts or joins the bytes.

use std::thread;

use protocol::{PROTOCOLS, Protocol};

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{ModelUnderTest, probe};

fn serve(target: &ModelUnderTest, protocol: &'static Protocol) -> Server {
    Server::start(target, Serving::protocol(protocol), target.limits())
}

/// Sends the same requests in one piece, byte by byte, and in three pieces cut at every pair of positions. After each
/// piece the client waits for the replies owed so far, so that two pieces can't join where a reply separates them.
pub fn requests_cut_anywhere_get_exact_replies(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let mut input = requests(protocol, 0, 2, None).concat();
        input.extend_from_slice(b"the last");
        let converse = |pieces: &[&[u8]]| {
            let client = server.connect();
            let mut oracle = Oracle::new(protocol);
            for piece in pieces {
                // A server that closes after its reply may reset a peer that continues to send.
                if oracle.over().is_none() {
                    client.send(piece);
                    client.expect(&oracle.receive(piece));
                }
            }
            if oracle.over().is_none() {
                client.finish_sending();
                client.expect(&oracle.end_of_input());
            }
            client.expect_end();
        };
        let mut count = 2;
        converse(&[&input]);
        converse(&input.chunks(1).collect::<Vec<_>>());
        for second in 1..input.len() {
            // Long inputs are cut into two pieces only, because three would take minutes.
            let firsts = if input.len() < 64 { 1 } else { second };
            for first in firsts..=second {
                converse(&[&input[..first], &input[first..second], &input[second..]]);
                count += 1;
            }
        }
        assert_eq!(server.stop(), all_served(count), "{}", protocol.name);
    }
}

/// A client sends hundreds of requests in one write, longer than any buffer, and reads the replies meanwhile.
pub fn pipelined_requests_get_exact_replies(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let input = requests(protocol, 1, 800, Some(1000)).concat();
        let client = server.connect();
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&input);
                client.finish_sending();
            });
            client.expect(&replies(protocol, &input));
            client.expect_end();
        });
        assert_eq!(server.stop(), all_served(1), "{}", protocol.name);
    }
}

/// Fifty clients send different requests, each request cut in two. The first halves of all clients are sent before the
/// second half of any.
pub fn interleaved_clients_get_their_own_replies(target: &ModelUnderTest) {
    const CLIENTS: u64 = 50;
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let requests = requests(protocol, number, 20, Some(100));
                (server.connect(), Oracle::new(protocol), requests)
            })
            .collect();
        if target.one_at_a_time() {
            // All clients are connected. They are served in the order in which they connected.
            for (client, mut oracle, requests) in clients {
                for request in requests {
                    client.ask(&request, &oracle.receive(&request));
                }
                if oracle.over().is_none() {
                    client.finish_sending();
                }
                client.expect_end();
            }
        } else {
            for round in 0..clients[0].2.len() {
                // A protocol that would answer half a request and close must receive the request in one piece.
                let cut = if protocol.requests_per_connection.is_some() {
                    |_: &Vec<u8>| 0
                } else {
                    |request: &Vec<u8>| request.len() * 2 / 5
                };
                for (client, _, requests) in &clients {
                    client.send(&requests[round][..cut(&requests[round])]);
                }
                for (client, _, requests) in &clients {
                    client.send(&requests[round][cut(&requests[round])..]);
                }
                for (client, oracle, requests) in &mut clients {
                    client.expect(&oracle.receive(&requests[round]));
                }
            }
            for (client, oracle, _) in clients {
                if oracle.over().is_none() {
                    client.finish_sending();
                }
                client.expect_end();
            }
        }
        assert_eq!(server.stop(), all_served(CLIENTS), "{}", protocol.name);
    }
}

/// A client receives several replies in sequence that are larger than the socket buffers.
pub fn replies_beyond_socket_buffers_are_complete(target: &ModelUnderTest) {
    let server = Server::start(target, Serving::Probes, target.limits());
    let client = server.connect();
    client.send(&[b"a", probe::BODY, b"b", probe::BODY].concat());
    client.finish_sending();
    client.expect(b"a");
    client.expect(probe::body());
    client.expect(b"b");
    client.expect(probe::body());
    client.expect_end();
    assert_eq!(server.stop(), all_served(1));
}
