//! 1. Replies are exact, however the bytes are cut or joined on the way.

use std::thread;

use protocol::{PROTOCOLS, Protocol};

use super::oracle::{Oracle, replies, requests};
use super::server::{Server, all_served};
use super::serving::Serving;
use super::{ModelUnderTest, probe};

fn serve(target: &ModelUnderTest, protocol: &'static Protocol) -> Server {
    Server::start(target, Serving::protocol(protocol), target.limits())
}

/// The same requests whole, byte by byte, and in three pieces cut at every pair of places. After each piece, what is
/// owed so far is waited for, so that pieces can't join again where a reply shows it.
pub fn cut_in_every_way(target: &ModelUnderTest) {
    for protocol in PROTOCOLS {
        let server = serve(target, protocol);
        let mut input = requests(protocol, 0, 2, None).concat();
        input.extend_from_slice(b"the last");
        let say = |pieces: &[&[u8]]| {
            let client = server.connect();
            let mut oracle = Oracle::new(protocol);
            for piece in pieces {
                // A server that closes after its reply may reset whoever goes on.
                if oracle.over().is_none() {
                    client.send(piece);
                    client.expect(&oracle.receive(piece));
                }
            }
            if oracle.over().is_none() {
                client.finish_sending();
                client.expect(&oracle.hear_the_end());
            }
            client.expect_end();
        };
        let mut count = 2;
        say(&[&input]);
        say(&input.chunks(1).collect::<Vec<_>>());
        for second in 1..input.len() {
            // Long ones in two pieces, or it would take minutes.
            let firsts = if input.len() < 64 { 1 } else { second };
            for first in firsts..=second {
                say(&[&input[..first], &input[first..second], &input[second..]]);
                count += 1;
            }
        }
        assert_eq!(server.stop(), all_served(count), "{}", protocol.name);
    }
}

/// Hundreds of requests in one write, longer than any buffer; the replies are read meanwhile.
pub fn pipelined(target: &ModelUnderTest) {
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

/// Fifty clients that all say something else, each request cut in two, and everybody's first half before anybody's
/// second.
pub fn many_clients_interleaved(target: &ModelUnderTest) {
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
            // All are connected; they are served in the order in which they came.
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
                // A protocol that answers to half a request and closes must hear it whole.
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

/// Replies that no socket buffer holds, one behind the other.
pub fn big_replies(target: &ModelUnderTest) {
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
