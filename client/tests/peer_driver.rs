//! Tests of the peer driver, against small servers that do what each test needs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use client::misbehave::{MISBEHAVIOURS, RequestSpec};
use client::{
    Action, Cut, FaultKind, PeerDriver, PeerDriverOptions, PeerGroup, PeerOutcome, PeerScript,
    ScriptFactory,
};
use protocol::{Bulk, PROTOCOLS, Protocol, ReplyStatus, Script, WrongReply};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

/// Longest wait of a test. It is a bound and never a measurement.
const GUARD: Duration = Duration::from_secs(30);

/// Starts a server that calls `serve` for every connection, each on a thread of its own.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// Bytes received on a connection until its end (`Ok`), or until its reset (`Err`).
type Received = Result<Vec<u8>, Vec<u8>>;

/// Starts a server that sends `answer` at once. Returns its address, and a channel with the bytes of each of its
/// connections.
fn listener(answer: &'static [u8]) -> (SocketAddr, Receiver<Received>) {
    let (sender, received) = mpsc::channel();
    let address = server(move |mut stream| {
        stream.write_all(answer).unwrap();
        let mut all = Vec::new();
        let ended = stream.read_to_end(&mut all);
        let _ = sender.send(match ended {
            Ok(_) => Ok(all),
            Err(_) => Err(all),
        });
    });
    (address, received)
}

fn echo() -> SocketAddr {
    server(|stream| {
        let _ = std::io::copy(&mut &stream, &mut &stream);
    })
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn driver(address: SocketAddr) -> PeerDriver {
    PeerDriver::open(address, PeerDriverOptions::default()).unwrap()
}

fn driver_with_patience(address: SocketAddr, patience: Duration) -> PeerDriver {
    let options = PeerDriverOptions {
        patience,
        ..PeerDriverOptions::default()
    };
    PeerDriver::open(address, options).unwrap()
}

/// Returns the outcome of one peer with these actions.
fn run_actions(driver: &PeerDriver, actions: Vec<Action>) -> PeerOutcome {
    run_script(driver, PeerScript::new(actions))
}

fn run_script(driver: &PeerDriver, peer_script: PeerScript) -> PeerOutcome {
    let mut outcomes = driver.enter(vec![peer_script]).finish(GUARD);
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

fn fault(outcome: &PeerOutcome) -> (FaultKind, &str, &str) {
    assert!(!outcome.done);
    let fault = outcome.fault.as_ref().expect("a fault");
    (fault.kind, &fault.expected, &fault.seen)
}

#[track_caller]
fn assert_done(outcome: &PeerOutcome) {
    assert_eq!(outcome.fault, None, "{}", outcome.transcript);
    assert!(outcome.done, "{}", outcome.transcript);
    assert!(outcome.done_at.iter().all(Option::is_some));
    assert!(outcome.done_at.is_sorted());
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Script that sends `a`, and reports the given status for the given reply.
struct FixedReply(&'static [u8], ReplyStatus);

impl Script for FixedReply {
    fn ask(&mut self, request: &mut Vec<u8>) {
        request.push(b'a');
    }

    fn receive(&mut self, input: &[u8]) -> Result<ReplyStatus, WrongReply> {
        if input == self.0 {
            return Ok(self.1);
        }
        Err(WrongReply {
            offset: 0,
            expected: self.0.to_vec(),
            got: input.to_vec(),
            words: None,
        })
    }
}

fn fixed_reply(expects: &'static [u8], status: ReplyStatus) -> ScriptFactory {
    Arc::new(move |_| Box::new(FixedReply(expects, status)))
}

fn converse(script: ScriptFactory, requests: u64) -> Action {
    Action::Converse {
        script,
        requests,
        cut: Cut::Whole,
    }
}

fn spec(protocol: &'static Protocol) -> RequestSpec {
    RequestSpec {
        protocol,
        seed: 7,
        bulk: Bulk {
            size: 1000,
            count: 2,
        },
        page: Arc::default(),
    }
}

/// Starts a server of the protocol.
fn protocol_server(protocol: &'static Protocol) -> SocketAddr {
    server(move |mut stream| {
        let spec = spec(protocol);
        let options = protocol::SessionOptions {
            bulk: spec.bulk,
            ..Default::default()
        };
        let mut session = (protocol.open)(&options);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match session.step() {
                protocol::Step::Read => match stream.read(&mut buffer) {
                    Ok(0) => session.end_of_input(),
                    Ok(count) => session.receive(&buffer[..count]),
                    Err(_) => return,
                },
                protocol::Step::Write(bytes) => {
                    let count = bytes.len();
                    if stream.write_all(bytes).is_err() {
                        return;
                    }
                    session.sent(count);
                }
                protocol::Step::Close(protocol::CloseReason::Refused) => {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    return;
                }
                protocol::Step::Close(_) => return,
                protocol::Step::SendFile(_) | protocol::Step::Work(_) => unreachable!(),
            }
        }
    })
}

#[test]
fn sent_bytes_arrive_completely_for_every_cut() {
    let (address, received) = listener(b"");
    let driver = driver(address);
    for cut in [
        Cut::Whole,
        Cut::Every(1, ms(1)),
        Cut::Every(3, Duration::ZERO),
        Cut::At(4, ms(2)),
    ] {
        let outcome = run_actions(
            &driver,
            vec![
                Action::Send(b"some bytes"[..].into(), cut),
                Action::HalfClose,
                Action::ExpectFin,
            ],
        );
        assert_done(&outcome);
        assert_eq!((outcome.bytes_sent, outcome.bytes_received), (10, 0));
        assert_eq!(
            received.recv_timeout(GUARD).unwrap().unwrap(),
            b"some bytes"
        );
    }
}

#[test]
fn cut_pieces_are_separate_writes_with_pauses_between() {
    let driver = driver(echo());
    let outcome = run_actions(
        &driver,
        vec![Action::Ask {
            request: b"abc"[..].into(),
            cut: Cut::Every(1, ms(5)),
            reply: b"abc"[..].into(),
        }],
    );
    assert_done(&outcome);
    let transcript = outcome.transcript.to_string();
    for piece in [
        "> \"a\" (1 bytes)",
        "> \"b\" (1 bytes)",
        "> \"c\" (1 bytes)",
    ] {
        assert!(transcript.contains(piece), "{transcript}");
    }
    let took = outcome.done_at[1].unwrap() - outcome.done_at[0].unwrap();
    assert!(took >= ms(10), "{took:?}");
}

#[test]
fn bytes_after_a_reply_are_left_to_the_next_action() {
    let (address, _received) = listener(b"onetwo");
    let outcome = run_actions(
        &driver(address),
        vec![
            Action::expect(*b"one"),
            Action::expect(*b"two"),
            Action::HalfClose,
            Action::ExpectFin,
        ],
    );
    assert_done(&outcome);
}

#[test]
fn wrong_bytes_are_reported_with_their_offset() {
    let (address, _received) = listener(b"right, and wrong");
    let outcome = run_actions(&driver(address), vec![Action::expect(*b"right, and right")]);
    let expected_fault = (FaultKind::WrongBytes, "\"right\" at byte 11", "\"wrong\"");
    assert_eq!(fault(&outcome), expected_fault);

    let outcome = run_actions(
        &driver(echo()),
        vec![converse(fixed_reply(b"b", ReplyStatus::Complete), 1)],
    );
    let expected_fault = (FaultKind::WrongBytes, "\"b\" at byte 0 of reply 1", "\"a\"");
    assert_eq!(fault(&outcome), expected_fault);

    let (address, _received) = listener(b"something");
    let outcome = run_actions(&driver(address), vec![Action::ExpectFin]);
    let expected_fault = (
        FaultKind::WrongBytes,
        "the end of the connection",
        "\"something\"",
    );
    assert_eq!(fault(&outcome), expected_fault);
}

#[test]
fn early_close_by_the_server_is_reported() {
    let address = server(|mut stream| {
        stream.write_all(b"ab").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0]);
    });
    let driver = driver(address);
    let outcome = run_actions(&driver, vec![Action::expect(*b"abc")]);
    let expected_fault = (
        FaultKind::End,
        "\"c\"",
        "the end of the connection after 2 bytes",
    );
    assert_eq!(fault(&outcome), expected_fault);
    let outcome = run_actions(&driver, vec![Action::ReadBytes(3)]);
    assert_eq!(fault(&outcome).0, FaultKind::End);
    let outcome = run_actions(&driver, vec![Action::ExpectReset]);
    let expected_fault = (FaultKind::End, "a reset", "the end of the connection");
    assert_eq!(fault(&outcome), expected_fault);
    let outcome = run_actions(
        &driver,
        vec![converse(fixed_reply(b"ab", ReplyStatus::Partial), 1)],
    );
    let expected_fault = (
        FaultKind::End,
        "the rest of reply 1",
        "the end of the connection",
    );
    assert_eq!(fault(&outcome), expected_fault);
    let outcome = run_actions(
        &driver,
        vec![converse(fixed_reply(b"ab", ReplyStatus::Last), 2)],
    );
    assert_eq!(fault(&outcome).0, FaultKind::End);
    assert_done(&run_actions(
        &driver,
        vec![converse(fixed_reply(b"ab", ReplyStatus::Last), 1)],
    ));
}

#[test]
fn reset_is_a_fault_except_for_actions_that_expect_it() {
    let address = server(|mut stream| {
        let _ = stream.read(&mut [0; 1]);
        reset(stream);
    });
    let driver = driver(address);
    for last in [
        Action::expect(*b"b"),
        Action::ExpectFin,
        Action::ReadBytes(1),
        Action::ReadSlowly(ms(1)),
    ] {
        let outcome = run_actions(&driver, vec![Action::send(*b"a"), last]);
        assert_eq!(fault(&outcome).0, FaultKind::Reset);
    }
    assert_done(&run_actions(
        &driver,
        vec![Action::send(*b"a"), Action::ExpectReset],
    ));
    assert_done(&run_actions(
        &driver,
        vec![Action::send(*b"a"), Action::ReadToEnd],
    ));
    let flood = Action::Flood {
        bytes: vec![b'x'; 1000].into(),
        most: u64::MAX,
        stuck: GUARD,
    };
    assert_eq!(
        fault(&run_actions(&driver, vec![flood])).0,
        FaultKind::Reset
    );
}

#[test]
fn idle_server_is_reported_after_the_patience() {
    let (address, _received) = listener(b"ab");
    // Long enough for the bytes that do arrive.
    let driver = driver_with_patience(address, Duration::from_secs(1));
    let cases = [
        (vec![Action::expect(*b"abc")], "\"c\" (after 2 bytes of it)"),
        (
            vec![Action::ReadBytes(2), Action::ExpectFin],
            "the end of the connection",
        ),
        (
            vec![Action::ReadToEnd],
            "the end of the connection, or a reset",
        ),
        (vec![Action::ExpectReset], "a reset"),
        (vec![Action::ReadBytes(5)], "3 more bytes"),
        (
            vec![converse(fixed_reply(b"ab", ReplyStatus::Partial), 1)],
            "the rest of reply 1 (2 bytes of it came)",
        ),
    ];
    let peer_scripts = cases
        .iter()
        .map(|(actions, _)| PeerScript::new(actions.clone()));
    let outcomes = driver.enter(peer_scripts.collect()).finish(GUARD);
    for (outcome, (_, expected)) in outcomes.iter().zip(cases) {
        let expected_fault = (FaultKind::NoReply, expected, "nothing for 1s");
        assert_eq!(fault(outcome), expected_fault);
    }
}

#[test]
fn server_that_does_not_read_is_reported_after_the_patience() {
    let address = server(|_stream| thread::sleep(GUARD));
    let driver = driver_with_patience(address, ms(20));
    let outcome = run_actions(&driver, vec![Action::send(vec![b'x'; 100 << 20])]);
    let (kind, expected, _) = fault(&outcome);
    assert_eq!(kind, FaultKind::NoReply);
    assert!(
        expected.starts_with("the server to read on ("),
        "{expected}"
    );
}

#[test]
fn port_without_a_listener_is_a_connect_fault() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let outcome = run_actions(&driver(address), vec![Action::ExpectFin]);
    assert_eq!(fault(&outcome).0, FaultKind::Connect);
    assert_eq!(outcome.done_at, [None, None]);
}

#[test]
fn action_after_the_peers_own_close_is_a_local_fault_and_spares_others() {
    let driver = driver(echo());
    for close in [Action::Close, Action::Reset] {
        for after in [
            Action::send(*b"a"),
            Action::expect(*b"a"),
            Action::HalfClose,
            Action::ExpectFin,
            Action::ReadToEnd,
            Action::ExpectReset,
            Action::ReadBytes(1),
            Action::ReadSlowly(ms(1)),
            Action::Close,
            Action::Reset,
            converse(fixed_reply(b"a", ReplyStatus::Complete), 1),
        ] {
            let outcome = run_actions(&driver, vec![close.clone(), after]);
            assert_eq!(fault(&outcome).0, FaultKind::Local);
        }
        assert_done(&run_actions(&driver, vec![close, Action::Pause(ms(1))]));
    }
    assert_done(&run_actions(&driver, vec![Action::ask(*b"a", *b"a")]));
}

#[test]
fn close_and_reset_reach_the_server_as_fin_and_rst() {
    let (address, received) = listener(b"");
    let driver = driver(address);
    for (last, resets) in [(Action::Close, false), (Action::Reset, true)] {
        let actions = vec![Action::send(*b"a"), Action::Pause(ms(1)), last];
        assert_done(&run_actions(&driver, actions));
        assert_eq!(received.recv_timeout(GUARD).unwrap().is_err(), resets);
    }
    // A peer that completes its actions closes, too.
    assert_done(&run_actions(&driver, vec![Action::send(*b"a")]));
    assert_eq!(received.recv_timeout(GUARD).unwrap().unwrap(), b"a");
}

#[test]
fn flood_ends_at_its_limit_or_when_nothing_is_accepted() {
    let (address, received) = listener(b"");
    let flood = |most| Action::Flood {
        bytes: (*b"abc").into(),
        most,
        stuck: ms(20),
    };
    let outcome = run_actions(&driver(address), vec![flood(7)]);
    assert_done(&outcome);
    assert_eq!(outcome.bytes_sent, 7);
    assert_eq!(received.recv_timeout(GUARD).unwrap().unwrap(), b"abcabca");

    let unread = driver(server(|_stream| thread::sleep(GUARD)));
    let flood = Action::Flood {
        bytes: vec![b'x'; 65536].into(),
        most: 1 << 30,
        stuck: ms(20),
    };
    let outcome = run_actions(&unread, vec![flood]);
    assert_done(&outcome);
    assert!(outcome.bytes_sent < 1 << 30);
    let empty = Action::Flood {
        bytes: [].into(),
        most: 1,
        stuck: ms(20),
    };
    assert_done(&run_actions(&unread, vec![empty]));
}

#[test]
fn small_buffers_accept_fewer_bytes_than_the_default() {
    let unread = driver(server(|_stream| thread::sleep(GUARD)));
    let flood = || {
        vec![Action::Flood {
            bytes: vec![b'x'; 65536].into(),
            most: 1 << 30,
            stuck: ms(50),
        }]
    };
    let default = run_actions(&unread, flood()).bytes_sent;
    let small = run_script(
        &unread,
        PeerScript {
            small_buffers: true,
            ..PeerScript::new(flood())
        },
    );
    assert_done(&small);
    assert!(
        small.bytes_sent < default,
        "{} of {default}",
        small.bytes_sent
    );
}

#[test]
fn overfill_with_finish_half_closes_once() {
    for requests in [1, 20_000] {
        let script = spec(Protocol::find("echo").unwrap()).pipeline(1, Some(1000), requests);
        let overfill = Action::Overfill {
            script,
            still: ms(20),
            finish: true,
        };
        let outcome = run_actions(&driver(echo()), vec![overfill, Action::ExpectFin]);
        assert_done(&outcome);
        assert_eq!(outcome.bytes_received, requests * 1000);
    }
}

#[test]
fn overfill_reads_late_and_receives_all_replies() {
    // The server sends each byte back, and stops reading when no peer reads the bytes.
    let script = spec(Protocol::find("echo").unwrap()).pipeline(1, Some(1000), 20_000);
    let overfill = Action::Overfill {
        script,
        still: ms(20),
        finish: false,
    };
    let outcome = run_actions(
        &driver(echo()),
        vec![overfill, Action::HalfClose, Action::ExpectFin],
    );
    assert_done(&outcome);
    assert_eq!(
        (outcome.bytes_sent, outcome.bytes_received),
        (20_000_000, 20_000_000)
    );
    // The peer read nothing for 20 ms before it received the first byte.
    let transcript = outcome.transcript.to_string();
    let times: Vec<(f64, bool)> = transcript
        .lines()
        .filter_map(|line| Some((line.get(..9)?.trim().parse().ok()?, line.contains(" < "))))
        .collect();
    let first = times.iter().position(|(_, received)| *received);
    if let Some(first) = first.filter(|line| *line < 24) {
        assert!(times[first].0 - times[1].0 >= 0.0199, "{transcript}");
    }
}

#[test]
fn slow_reads_are_single_bytes_and_end_with_the_connection() {
    let address = server(|mut stream| stream.write_all(b"abc").unwrap());
    let outcome = run_actions(&driver(address), vec![Action::ReadSlowly(ms(2))]);
    assert_done(&outcome);
    assert_eq!(outcome.bytes_received, 3);
    let transcript = outcome.transcript.to_string();
    assert_eq!(transcript.matches("(1 bytes)").count(), 3, "{transcript}");
}

#[test]
fn read_bytes_are_kept_up_to_a_bound() {
    let address = server(|mut stream| {
        let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    });
    let driver = driver(address);
    let outcome = run_actions(&driver, vec![Action::ReadBytes(5)]);
    assert_eq!(outcome.received, b"xxxxx");
    assert_eq!(outcome.bytes_received, 5);
    let outcome = run_actions(&driver, vec![Action::ReadToEnd]);
    assert_eq!(
        (outcome.received.len(), outcome.bytes_received),
        (4096, 1 << 20)
    );
}

#[test]
fn conversation_ends_after_all_its_requests_are_answered() {
    for protocol in PROTOCOLS {
        if protocol.name == "http" {
            // `http` has no page to serve here.
            continue;
        }
        let driver = driver(protocol_server(protocol));
        let spec = spec(protocol);
        let actions = |cut| {
            vec![Action::Converse {
                script: spec.scripts(3),
                requests: spec.requests(20),
                cut,
            }]
        };
        assert_done(&run_actions(&driver, actions(Cut::Whole)));
        if spec.may_cut() {
            assert_done(&run_actions(
                &driver,
                actions(Cut::Every(2, Duration::ZERO)),
            ));
            assert_done(&run_actions(&driver, actions(Cut::At(3, ms(1)))));
        }
        let none = converse(spec.scripts(3), 0);
        let outcome = run_actions(&driver, vec![none]);
        assert_done(&outcome);
        assert_eq!(outcome.bytes_sent, 0);
    }
}

#[test]
fn signals_go_to_waiting_peers_in_order_of_arrival() {
    let driver = driver(echo());
    let peer_scripts =
        (0..3).map(|_| PeerScript::new(vec![Action::WaitForSignal, Action::ask(*b"a", *b"a")]));
    let group = driver.enter(peer_scripts.collect());
    assert!(group.wait(GUARD, |seen| seen.waiting == 3));
    assert_eq!(group.progress().received, 0);
    group.signal(1);
    assert!(group.wait(GUARD, |seen| seen.ended == 1));
    assert_eq!(group.progress().waiting, 2);
    group.signal_all();
    assert!(group.wait(GUARD, |seen| seen.ended == 3));
    let seen = group.progress();
    assert_eq!((seen.waiting, seen.failed, seen.completed_runs), (0, 0, 3));
    assert_eq!((seen.sent, seen.received, seen.connects), (3, 3, 3));
    for outcome in group.finish(GUARD) {
        assert_done(&outcome);
    }
}

#[test]
fn repeating_peer_reconnects_until_it_leaves() {
    let driver = driver(echo());
    let group = driver.enter(vec![PeerScript {
        again: true,
        ..PeerScript::new(vec![Action::ask(*b"a", *b"a"), Action::Close])
    }]);
    assert!(group.wait(GUARD, |seen| seen.completed_runs >= 5));
    assert!(group.progress().connects >= 5);
    assert_eq!(group.progress().ended, 0);
    let outcomes = group.leave();
    assert_eq!(outcomes[0].fault, None);
    assert!(outcomes[0].done);
    assert_eq!(outcomes[0].done_at.len(), 3);
}

#[test]
fn script_factory_gets_the_number_of_the_connection() {
    let rounds = Arc::new(AtomicUsize::new(0));
    let script: ScriptFactory = {
        let rounds = Arc::clone(&rounds);
        Arc::new(move |round| {
            assert_eq!(rounds.fetch_add(1, Ordering::Relaxed) as u64, round);
            Box::new(FixedReply(b"a", ReplyStatus::Complete))
        })
    };
    let driver = driver(echo());
    let group = driver.enter(vec![PeerScript {
        again: true,
        ..PeerScript::new(vec![converse(script, 1)])
    }]);
    assert!(group.wait(GUARD, |seen| seen.completed_runs >= 3));
    assert_eq!(group.leave()[0].fault, None);
}

#[test]
fn peers_that_leave_close_their_connections_without_a_fault() {
    let (address, received) = listener(b"");
    let driver = driver(address);
    let idle_script = || PeerScript::new(vec![Action::send(*b"a"), Action::StayIdle]);
    let group = driver.enter(vec![idle_script(), idle_script()]);
    assert!(group.wait(GUARD, |seen| seen.sent == 2));
    let outcomes = group.leave();
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!((outcome.number, outcome.done), (number, false));
        assert_eq!(outcome.fault, None);
        assert!(outcome.done_at[1].is_some() && outcome.done_at[2].is_none());
        assert_eq!(received.recv_timeout(GUARD).unwrap().unwrap(), b"a");
    }
    // A peer also closes its connection if its group or its driver is dropped.
    for drop_driver in [false, true] {
        let driver = self::driver(address);
        let group = driver.enter(vec![idle_script()]);
        assert!(group.wait(GUARD, |seen| seen.sent == 1));
        let left: (Option<PeerDriver>, Option<PeerGroup>) = if drop_driver {
            drop(driver);
            (None, Some(group))
        } else {
            drop(group);
            (Some(driver), None)
        };
        assert_eq!(received.recv_timeout(GUARD).unwrap().unwrap(), b"a");
        if let Some(group) = left.1 {
            // The outcome of the peer is there all the same, and at once.
            let since = Instant::now();
            assert_eq!(group.leave().len(), 1);
            assert!(since.elapsed() < GUARD);
        }
    }
}

#[test]
fn server_that_sends_without_end_blocks_neither_peers_nor_driver() {
    let endless_sender = server(|mut stream| {
        let much = vec![b'x'; 1 << 20];
        while stream.write_all(&much).is_ok() {}
    });
    let driver = driver(endless_sender);
    let group = driver.enter(vec![
        PeerScript::new(vec![Action::ReadToEnd]),
        PeerScript::new(vec![Action::ReadToEnd]),
    ]);
    assert!(group.wait(GUARD, |seen| seen.received > 10 << 20));
    let short = run_actions(&driver, vec![Action::ReadBytes(1000)]);
    assert_done(&short);
    let outcomes = group.leave();
    assert!(outcomes.iter().all(|outcome| outcome.fault.is_none()));
    let group = driver.enter(vec![PeerScript::new(vec![Action::ReadToEnd])]);
    assert!(group.wait(GUARD, |seen| seen.received > 10 << 20));
    // The driver ends all the same.
    drop(driver);
    assert_eq!(group.leave().len(), 1);
}

#[test]
fn two_thousand_peers_complete_their_actions() {
    const PEERS: usize = 2000;
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most).unwrap();
    // The kernel accepts all connections and their bytes; no server calls accept(2).
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(4096).unwrap();
    let driver = driver(listener.local_addr().unwrap().as_socket().unwrap());
    let peer_script = |_| {
        PeerScript::new(vec![
            Action::send(*b"a"),
            Action::WaitForSignal,
            Action::Reset,
        ])
    };
    let group = driver.enter((0..PEERS).map(peer_script).collect());
    assert!(group.wait(GUARD, |seen| seen.waiting == PEERS));
    group.signal_all();
    let outcomes = group.finish(GUARD);
    assert_eq!(outcomes.len(), PEERS);
    outcomes.iter().for_each(assert_done);
}

#[test]
fn transcript_lists_sent_and_received_bytes() {
    let address = server(|mut stream| {
        let mut byte = [0; 3];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(b"\x00\n\"\xff").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut byte);
    });
    let actions = vec![
        Action::send(*b"a\r\n"),
        Action::expect(*b"\x00\n\"\xff"),
        Action::ExpectFin,
        Action::HalfClose,
    ];
    let outcome = run_actions(&driver(address), actions);
    assert_done(&outcome);
    let text = outcome.transcript.to_string();
    let lines: Vec<&str> = text.lines().map(|line| &line[10..]).collect();
    assert_eq!(
        lines,
        [
            "- connected",
            "> \"a\\r\\n\" (3 bytes)",
            "< \"\\x00\\n\\\"\\xff\" (4 bytes)",
            "< FIN",
            "> FIN",
        ]
    );
    for line in text.lines() {
        let seconds: f64 = line[..9].trim().parse().unwrap();
        assert!((0.0..60.0).contains(&seconds), "{line}");
    }
}

#[test]
fn long_transcript_omits_its_middle() {
    let driver = driver(echo());
    let outcome = run_actions(
        &driver,
        vec![
            Action::Send(vec![b'x'; 100].into(), Cut::Every(1, Duration::ZERO)),
            Action::Send(vec![b'y'; 100].into(), Cut::Whole),
            Action::Reset,
        ],
    );
    assert_done(&outcome);
    assert!(!outcome.transcript.is_empty());
    let text = outcome.transcript.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 24 + 1 + 24);
    assert_eq!(lines[24], "          … 55 more lines …");
    let long = format!("> \"{}\"… (100 bytes)", "y".repeat(64));
    assert_eq!(&lines[47][10..], long);
    assert_eq!(&lines[48][10..], "> RST");
}

#[test]
fn kinds_have_unique_names_and_unknown_names_are_refused() {
    for (place, kind) in MISBEHAVIOURS.iter().enumerate() {
        let found = client::misbehave::Misbehaviour::find(kind.name).unwrap();
        assert!(std::ptr::eq(found, kind));
        assert!(
            !MISBEHAVIOURS[..place]
                .iter()
                .any(|other| other.name == kind.name)
        );
        assert!(kind.clients > 0 && !kind.summary.is_empty());
    }
    let why = client::misbehave::Misbehaviour::find("unknown").unwrap_err();
    assert!(
        MISBEHAVIOURS.iter().all(|kind| why.contains(kind.name)),
        "{why}"
    );
}

#[test]
fn kind_has_scripts_for_all_of_its_clients_or_for_none() {
    for protocol in PROTOCOLS {
        let spec = spec(protocol);
        for kind in MISBEHAVIOURS {
            let can = (0..3).filter(|client| (kind.peer_script)(&spec, *client).is_some());
            assert!(
                matches!(can.count(), 0 | 3),
                "{} {}",
                kind.name,
                protocol.name
            );
            let peer_scripts = kind.peer_scripts(&spec, 3);
            assert!(peer_scripts.is_none_or(|peer_scripts| peer_scripts.len() == 3));
            // Most checks use the first protocol.
            let first = std::ptr::eq(protocol, &PROTOCOLS[0]);
            assert!(
                !first || kind.peer_scripts(&spec, 1).is_some(),
                "{}",
                kind.name
            );
        }
    }
}

#[test]
fn correct_server_meets_the_obligation_of_each_kind() {
    use client::misbehave::Obligation;
    for protocol in PROTOCOLS {
        if protocol.name == "http" {
            continue;
        }
        let driver = driver(protocol_server(protocol));
        let spec = spec(protocol);
        for kind in MISBEHAVIOURS
            .iter()
            .filter(|kind| kind.obligation != Obligation::Nothing)
        {
            let Some(peer_scripts) = kind.peer_scripts(&spec, kind.clients.min(40)) else {
                continue;
            };
            for outcome in driver.enter(peer_scripts).finish(GUARD) {
                assert_eq!(
                    (&outcome.fault, outcome.done),
                    (&None, true),
                    "{} {}:\n{}",
                    protocol.name,
                    kind.name,
                    outcome.transcript
                );
            }
        }
    }
}

#[test]
fn requests_sent_at_once_differ_where_the_protocol_allows() {
    for protocol in PROTOCOLS {
        let spec = spec(protocol);
        let (bytes, count) = spec.all_at_once(5, None, 50);
        assert_eq!(count, spec.requests(50));
        assert!(bytes.starts_with(&spec.request(5)));
        if protocol.requests_differ {
            let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            lines.sort_unstable();
            lines.dedup();
            // The last piece, after the last line end, is empty.
            assert_eq!(lines.len() as u64, count + 1, "{}", protocol.name);
        }
    }
}

#[test]
fn replies_of_deterministic_protocols_are_predicted() {
    let replies =
        |name, input: &[u8], ended| spec(Protocol::find(name).unwrap()).replies(input, ended);
    assert_eq!(replies("echo", b"a\nb", false).bytes, b"a\n");
    assert_eq!(replies("echo", b"a\nb", true).bytes, b"a\nb");
    assert_eq!(replies("pair", b"a\nb\n", false).bytes, b"a\na\nb\n");
    assert_eq!(replies("upper", b"a\nb", false).bytes, b"A\nB");
    assert_eq!(
        replies("hello", b"a", false).over,
        Some(protocol::CloseReason::Done)
    );
    let refused = replies("echo", &[b'x'; 70_000], false);
    assert_eq!(refused.over, Some(protocol::CloseReason::Refused));
    assert!(refused.bytes.starts_with(b"error: "));
    assert_eq!(replies("echo", b"", false), Default::default());
}

/// The replies of `http` can't be predicted, but can be separated.
#[test]
fn replies_to_pipelined_requests_are_checked_one_by_one() {
    const ONE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\r\nb";
    let spec = spec(Protocol::find("http").unwrap());
    let receive = |input: &[u8], size: usize| {
        let mut script = spec.pipeline(1, None, 3)(0);
        let mut request = Vec::new();
        script.ask(&mut request);
        assert_eq!(request, spec.all_at_once(1, None, 3).0);
        let mut last = Ok(ReplyStatus::Partial);
        for piece in input.chunks(size) {
            last = script.receive(piece);
            last.as_ref().map_err(Clone::clone)?;
        }
        last
    };
    for size in [1, 2, 7, 1000] {
        assert_eq!(
            receive(&ONE.repeat(3), size),
            Ok(ReplyStatus::Complete),
            "{size}"
        );
        assert_eq!(
            receive(&ONE.repeat(2), size),
            Ok(ReplyStatus::Partial),
            "{size}"
        );
        assert!(receive(&ONE.repeat(4), size).is_err(), "{size}");
        assert!(
            receive(&[ONE, b"x", ONE, ONE].concat(), size).is_err(),
            "{size}"
        );
        let other = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\r\nc";
        assert!(
            receive(&[ONE, ONE, other].concat(), size).is_err(),
            "{size}"
        );
        let closes = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\na\r\nb";
        assert_eq!(
            receive(&[ONE, ONE, closes].concat(), size),
            Ok(ReplyStatus::Last)
        );
        assert!(
            receive(&[ONE, closes, ONE].concat(), size).is_err(),
            "{size}"
        );
    }
}
