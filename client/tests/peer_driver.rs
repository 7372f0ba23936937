//! The driver, in front of small servers that do what each test needs.

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

/// Never a measure of anything.
const GUARD: Duration = Duration::from_secs(30);

/// Calls this for every connection, each on a thread of its own.
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

/// What a connection was heard to say until its end, or until its reset.
type Said = Result<Vec<u8>, Vec<u8>>;

/// A server that says this at once, and what each of its connections says.
fn listener(answer: &'static [u8]) -> (SocketAddr, Receiver<Said>) {
    let (tell, heard) = mpsc::channel();
    let address = server(move |mut stream| {
        stream.write_all(answer).unwrap();
        let mut all = Vec::new();
        let ended = stream.read_to_end(&mut all);
        let _ = tell.send(match ended {
            Ok(_) => Ok(all),
            Err(_) => Err(all),
        });
    });
    (address, heard)
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

fn impatient(address: SocketAddr, patience: Duration) -> PeerDriver {
    let options = PeerDriverOptions {
        patience,
        ..PeerDriverOptions::default()
    };
    PeerDriver::open(address, options).unwrap()
}

/// What comes of one who does that.
fn act(driver: &PeerDriver, actions: Vec<Action>) -> PeerOutcome {
    act_as(driver, PeerScript::new(actions))
}

fn act_as(driver: &PeerDriver, peer_script: PeerScript) -> PeerOutcome {
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

/// Says `a`, and believes what it is told to.
struct Believer(&'static [u8], ReplyStatus);

impl Script for Believer {
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

fn believer(expects: &'static [u8], heard: ReplyStatus) -> ScriptFactory {
    Arc::new(move |_| Box::new(Believer(expects, heard)))
}

fn converse(script: ScriptFactory, requests: u64) -> Action {
    Action::Converse {
        script,
        requests,
        cut: Cut::Whole,
    }
}

fn asked(protocol: &'static Protocol) -> RequestSpec {
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

/// A server of that protocol.
fn of_protocol(protocol: &'static Protocol) -> SocketAddr {
    server(move |mut stream| {
        let asked = asked(protocol);
        let options = protocol::SessionOptions {
            bulk: asked.bulk,
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
fn what_is_sent_arrives_whole_however_it_is_cut() {
    let (address, heard) = listener(b"");
    let driver = driver(address);
    for cut in [
        Cut::Whole,
        Cut::Every(1, ms(1)),
        Cut::Every(3, Duration::ZERO),
        Cut::At(4, ms(2)),
    ] {
        let outcome = act(
            &driver,
            vec![
                Action::Send(b"some bytes"[..].into(), cut),
                Action::HalfClose,
                Action::ExpectFin,
            ],
        );
        assert_done(&outcome);
        assert_eq!((outcome.bytes_sent, outcome.bytes_heard), (10, 0));
        assert_eq!(heard.recv_timeout(GUARD).unwrap().unwrap(), b"some bytes");
    }
}

#[test]
fn pieces_are_writes_of_their_own_with_pauses_between() {
    let driver = driver(echo());
    let outcome = act(
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
fn a_reply_may_come_in_pieces_and_what_follows_it_is_the_next_acts() {
    let (address, _heard) = listener(b"onetwo");
    let outcome = act(
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
fn wrong_bytes_are_told_with_their_place() {
    let (address, _heard) = listener(b"right, and wrong");
    let outcome = act(&driver(address), vec![Action::expect(*b"right, and right")]);
    let told = (FaultKind::WrongBytes, "\"right\" at byte 11", "\"wrong\"");
    assert_eq!(fault(&outcome), told);

    let outcome = act(
        &driver(echo()),
        vec![converse(believer(b"b", ReplyStatus::Complete), 1)],
    );
    let told = (FaultKind::WrongBytes, "\"b\" at byte 0 of reply 1", "\"a\"");
    assert_eq!(fault(&outcome), told);

    let (address, _heard) = listener(b"something");
    let outcome = act(&driver(address), vec![Action::ExpectFin]);
    let told = (
        FaultKind::WrongBytes,
        "the end of the connection",
        "\"something\"",
    );
    assert_eq!(fault(&outcome), told);
}

#[test]
fn an_end_that_comes_too_early_is_told() {
    let address = server(|mut stream| {
        stream.write_all(b"ab").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0]);
    });
    let driver = driver(address);
    let outcome = act(&driver, vec![Action::expect(*b"abc")]);
    let told = (
        FaultKind::End,
        "\"c\"",
        "the end of the connection after 2 bytes",
    );
    assert_eq!(fault(&outcome), told);
    let outcome = act(&driver, vec![Action::ReadBytes(3)]);
    assert_eq!(fault(&outcome).0, FaultKind::End);
    let outcome = act(&driver, vec![Action::ExpectReset]);
    let told = (FaultKind::End, "a reset", "the end of the connection");
    assert_eq!(fault(&outcome), told);
    let outcome = act(
        &driver,
        vec![converse(believer(b"ab", ReplyStatus::Partial), 1)],
    );
    let told = (
        FaultKind::End,
        "the rest of reply 1",
        "the end of the connection",
    );
    assert_eq!(fault(&outcome), told);
    let outcome = act(
        &driver,
        vec![converse(believer(b"ab", ReplyStatus::Last), 2)],
    );
    assert_eq!(fault(&outcome).0, FaultKind::End);
    assert_done(&act(
        &driver,
        vec![converse(believer(b"ab", ReplyStatus::Last), 1)],
    ));
}

#[test]
fn a_reset_is_told_to_all_but_those_who_expect_one() {
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
        let outcome = act(&driver, vec![Action::send(*b"a"), last]);
        assert_eq!(fault(&outcome).0, FaultKind::Reset);
    }
    assert_done(&act(
        &driver,
        vec![Action::send(*b"a"), Action::ExpectReset],
    ));
    assert_done(&act(&driver, vec![Action::send(*b"a"), Action::ReadToEnd]));
    let flood = Action::Flood {
        bytes: vec![b'x'; 1000].into(),
        most: u64::MAX,
        stuck: GUARD,
    };
    assert_eq!(fault(&act(&driver, vec![flood])).0, FaultKind::Reset);
}

#[test]
fn silence_is_told_when_patience_is_over() {
    let (address, _heard) = listener(b"ab");
    // Long enough for what does come.
    let driver = impatient(address, Duration::from_secs(1));
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
        (vec![Action::ReadBytes(5)], "3 bytes more"),
        (
            vec![converse(believer(b"ab", ReplyStatus::Partial), 1)],
            "the rest of reply 1 (2 bytes of it came)",
        ),
    ];
    let peer_scripts = cases
        .iter()
        .map(|(actions, _)| PeerScript::new(actions.clone()));
    let outcomes = driver.enter(peer_scripts.collect()).finish(GUARD);
    for (outcome, (_, expected)) in outcomes.iter().zip(cases) {
        let told = (FaultKind::Silence, expected, "nothing for 1s");
        assert_eq!(fault(outcome), told);
    }
}

#[test]
fn a_server_that_does_not_read_is_silent_too() {
    let address = server(|_stream| thread::sleep(GUARD));
    let driver = impatient(address, ms(20));
    let outcome = act(&driver, vec![Action::send(vec![b'x'; 100 << 20])]);
    let (kind, expected, _) = fault(&outcome);
    assert_eq!(kind, FaultKind::Silence);
    assert!(
        expected.starts_with("that the server reads on ("),
        "{expected}"
    );
}

#[test]
fn a_port_where_nobody_listens_is_a_fault_of_the_connect() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let outcome = act(&driver(address), vec![Action::ExpectFin]);
    assert_eq!(fault(&outcome).0, FaultKind::Connect);
    assert_eq!(outcome.done_at, [None, None]);
}

#[test]
fn who_acts_after_its_own_close_is_told_so_and_nobody_else_notices() {
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
            converse(believer(b"a", ReplyStatus::Complete), 1),
        ] {
            let outcome = act(&driver, vec![close.clone(), after]);
            assert_eq!(fault(&outcome).0, FaultKind::Local);
        }
        assert_done(&act(&driver, vec![close, Action::Pause(ms(1))]));
    }
    assert_done(&act(&driver, vec![Action::ask(*b"a", *b"a")]));
}

#[test]
fn close_and_reset_are_seen_by_the_server_as_what_they_are() {
    let (address, heard) = listener(b"");
    let driver = driver(address);
    for (last, resets) in [(Action::Close, false), (Action::Reset, true)] {
        let actions = vec![Action::send(*b"a"), Action::Pause(ms(1)), last];
        assert_done(&act(&driver, actions));
        assert_eq!(heard.recv_timeout(GUARD).unwrap().is_err(), resets);
    }
    // Whoever comes to the end of the actions closes, too.
    assert_done(&act(&driver, vec![Action::send(*b"a")]));
    assert_eq!(heard.recv_timeout(GUARD).unwrap().unwrap(), b"a");
}

#[test]
fn a_flood_ends_at_its_most_or_when_nothing_is_taken() {
    let (address, heard) = listener(b"");
    let flood = |most| Action::Flood {
        bytes: (*b"abc").into(),
        most,
        stuck: ms(20),
    };
    let outcome = act(&driver(address), vec![flood(7)]);
    assert_done(&outcome);
    assert_eq!(outcome.bytes_sent, 7);
    assert_eq!(heard.recv_timeout(GUARD).unwrap().unwrap(), b"abcabca");

    let deaf = driver(server(|_stream| thread::sleep(GUARD)));
    let flood = Action::Flood {
        bytes: vec![b'x'; 65536].into(),
        most: 1 << 30,
        stuck: ms(20),
    };
    let outcome = act(&deaf, vec![flood]);
    assert_done(&outcome);
    assert!(outcome.bytes_sent < 1 << 30);
    let empty = Action::Flood {
        bytes: [].into(),
        most: 1,
        stuck: ms(20),
    };
    assert_done(&act(&deaf, vec![empty]));
}

#[test]
fn small_buffers_are_small() {
    let deaf = driver(server(|_stream| thread::sleep(GUARD)));
    let flood = || {
        vec![Action::Flood {
            bytes: vec![b'x'; 65536].into(),
            most: 1 << 30,
            stuck: ms(50),
        }]
    };
    let usual = act(&deaf, flood()).bytes_sent;
    let small = act_as(
        &deaf,
        PeerScript {
            small_buffers: true,
            ..PeerScript::new(flood())
        },
    );
    assert_done(&small);
    assert!(small.bytes_sent < usual, "{} of {usual}", small.bytes_sent);
}

#[test]
fn who_overfills_ends_its_side_once_if_it_is_to() {
    for requests in [1, 20_000] {
        let script = asked(Protocol::find("echo").unwrap()).pipeline(1, Some(1000), requests);
        let overfill = Action::Overfill {
            script,
            still: ms(20),
            finish: true,
        };
        let outcome = act(&driver(echo()), vec![overfill, Action::ExpectFin]);
        assert_done(&outcome);
        assert_eq!(outcome.bytes_heard, requests * 1000);
    }
}

#[test]
fn who_overfills_reads_late_and_hears_all() {
    // Each byte comes back, and the server stops reading when nobody takes them.
    let script = asked(Protocol::find("echo").unwrap()).pipeline(1, Some(1000), 20_000);
    let overfill = Action::Overfill {
        script,
        still: ms(20),
        finish: false,
    };
    let outcome = act(
        &driver(echo()),
        vec![overfill, Action::HalfClose, Action::ExpectFin],
    );
    assert_done(&outcome);
    assert_eq!(
        (outcome.bytes_sent, outcome.bytes_heard),
        (20_000_000, 20_000_000)
    );
    // It kept still before it heard the first.
    let transcript = outcome.transcript.to_string();
    let times: Vec<(f64, bool)> = transcript
        .lines()
        .filter_map(|line| Some((line.get(..9)?.trim().parse().ok()?, line.contains(" < "))))
        .collect();
    let heard = times.iter().position(|(_, heard)| *heard);
    if let Some(heard) = heard.filter(|place| *place < 24) {
        assert!(times[heard].0 - times[1].0 >= 0.0199, "{transcript}");
    }
}

#[test]
fn sips_are_single_bytes_and_end_with_the_connection() {
    let address = server(|mut stream| stream.write_all(b"abc").unwrap());
    let outcome = act(&driver(address), vec![Action::ReadSlowly(ms(2))]);
    assert_done(&outcome);
    assert_eq!(outcome.bytes_heard, 3);
    let transcript = outcome.transcript.to_string();
    assert_eq!(transcript.matches("(1 bytes)").count(), 3, "{transcript}");
}

#[test]
fn what_is_taken_is_kept_up_to_a_bound() {
    let address = server(|mut stream| {
        let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    });
    let driver = driver(address);
    let outcome = act(&driver, vec![Action::ReadBytes(5)]);
    assert_eq!(outcome.heard, b"xxxxx");
    assert_eq!(outcome.bytes_heard, 5);
    let outcome = act(&driver, vec![Action::ReadToEnd]);
    assert_eq!((outcome.heard.len(), outcome.bytes_heard), (4096, 1 << 20));
}

#[test]
fn a_conversation_asks_and_hears_until_its_requests_are_answered() {
    for protocol in PROTOCOLS {
        if protocol.name == "http" {
            // It has nothing to serve here.
            continue;
        }
        let driver = driver(of_protocol(protocol));
        let asked = asked(protocol);
        let actions = |cut| {
            vec![Action::Converse {
                script: asked.scripts(3),
                requests: asked.requests(20),
                cut,
            }]
        };
        assert_done(&act(&driver, actions(Cut::Whole)));
        if asked.may_cut() {
            assert_done(&act(&driver, actions(Cut::Every(2, Duration::ZERO))));
            assert_done(&act(&driver, actions(Cut::At(3, ms(1)))));
        }
        let none = converse(asked.scripts(3), 0);
        let outcome = act(&driver, vec![none]);
        assert_done(&outcome);
        assert_eq!(outcome.bytes_sent, 0);
    }
}

#[test]
fn cues_are_given_to_those_who_wait_the_first_that_came_first() {
    let driver = driver(echo());
    let peer_scripts =
        (0..3).map(|_| PeerScript::new(vec![Action::WaitForSignal, Action::ask(*b"a", *b"a")]));
    let group = driver.enter(peer_scripts.collect());
    assert!(group.wait(GUARD, |seen| seen.waiting == 3));
    assert_eq!(group.seen().heard, 0);
    group.signal(1);
    assert!(group.wait(GUARD, |seen| seen.ended == 1));
    assert_eq!(group.seen().waiting, 2);
    group.signal_all();
    assert!(group.wait(GUARD, |seen| seen.ended == 3));
    let seen = group.seen();
    assert_eq!((seen.waiting, seen.failed, seen.completed_runs), (0, 0, 3));
    assert_eq!((seen.sent, seen.heard, seen.connects), (3, 3, 3));
    for outcome in group.finish(GUARD) {
        assert_done(&outcome);
    }
}

#[test]
fn who_plays_again_connects_again_until_it_leaves() {
    let driver = driver(echo());
    let group = driver.enter(vec![PeerScript {
        again: true,
        ..PeerScript::new(vec![Action::ask(*b"a", *b"a"), Action::Close])
    }]);
    assert!(group.wait(GUARD, |seen| seen.completed_runs >= 5));
    assert!(group.seen().connects >= 5);
    assert_eq!(group.seen().ended, 0);
    let outcomes = group.leave();
    assert_eq!(outcomes[0].fault, None);
    assert!(outcomes[0].done);
    assert_eq!(outcomes[0].done_at.len(), 3);
}

#[test]
fn each_round_of_a_conversation_has_a_number() {
    let rounds = Arc::new(AtomicUsize::new(0));
    let script: ScriptFactory = {
        let rounds = Arc::clone(&rounds);
        Arc::new(move |round| {
            assert_eq!(rounds.fetch_add(1, Ordering::Relaxed) as u64, round);
            Box::new(Believer(b"a", ReplyStatus::Complete))
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
fn those_who_leave_close_their_connections_and_did_nothing_wrong() {
    let (address, heard) = listener(b"");
    let driver = driver(address);
    let hold = || PeerScript::new(vec![Action::send(*b"a"), Action::StayIdle]);
    let group = driver.enter(vec![hold(), hold()]);
    assert!(group.wait(GUARD, |seen| seen.sent == 2));
    let outcomes = group.leave();
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!((outcome.number, outcome.done), (number, false));
        assert_eq!(outcome.fault, None);
        assert!(outcome.done_at[1].is_some() && outcome.done_at[2].is_none());
        assert_eq!(heard.recv_timeout(GUARD).unwrap().unwrap(), b"a");
    }
    // So do those whose group is dropped, and those whose driver is.
    for drop_stage in [false, true] {
        let driver = self::driver(address);
        let group = driver.enter(vec![hold()]);
        assert!(group.wait(GUARD, |seen| seen.sent == 1));
        let left: (Option<PeerDriver>, Option<PeerGroup>) = if drop_stage {
            drop(driver);
            (None, Some(group))
        } else {
            drop(group);
            (Some(driver), None)
        };
        assert_eq!(heard.recv_timeout(GUARD).unwrap().unwrap(), b"a");
        if let Some(group) = left.1 {
            // What came of them is there all the same, and at once.
            let since = Instant::now();
            assert_eq!(group.leave().len(), 1);
            assert!(since.elapsed() < GUARD);
        }
    }
}

#[test]
fn a_server_that_never_stops_talking_keeps_nobody_from_anything() {
    let talker = server(|mut stream| {
        let much = vec![b'x'; 1 << 20];
        while stream.write_all(&much).is_ok() {}
    });
    let driver = driver(talker);
    let group = driver.enter(vec![
        PeerScript::new(vec![Action::ReadToEnd]),
        PeerScript::new(vec![Action::ReadToEnd]),
    ]);
    assert!(group.wait(GUARD, |seen| seen.heard > 10 << 20));
    let short = act(&driver, vec![Action::ReadBytes(1000)]);
    assert_done(&short);
    let outcomes = group.leave();
    assert!(outcomes.iter().all(|outcome| outcome.fault.is_none()));
    let group = driver.enter(vec![PeerScript::new(vec![Action::ReadToEnd])]);
    assert!(group.wait(GUARD, |seen| seen.heard > 10 << 20));
    // It ends all the same.
    drop(driver);
    assert_eq!(group.leave().len(), 1);
}

#[test]
fn two_thousand_peers_are_no_trouble() {
    const PEERS: usize = 2000;
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most).unwrap();
    // The kernel takes them all, and what they say; nobody accepts them.
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
fn a_transcript_says_what_was_sent_and_heard() {
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
    let outcome = act(&driver(address), actions);
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
fn of_a_long_transcript_the_middle_is_left_out() {
    let driver = driver(echo());
    let outcome = act(
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
    assert_eq!(lines[24], "          … 55 more …");
    let long = format!("> \"{}\"… (100 bytes)", "y".repeat(64));
    assert_eq!(&lines[47][10..], long);
    assert_eq!(&lines[48][10..], "> RST");
}

#[test]
fn kinds_have_names_of_their_own_and_can_be_found() {
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
    let why = client::misbehave::Misbehaviour::find("nobody").unwrap_err();
    assert!(
        MISBEHAVIOURS.iter().all(|kind| why.contains(kind.name)),
        "{why}"
    );
}

#[test]
fn a_kind_can_be_done_by_all_of_its_clients_or_by_none() {
    for protocol in PROTOCOLS {
        let asked = asked(protocol);
        for kind in MISBEHAVIOURS {
            let can = (0..3).filter(|client| (kind.peer_script)(&asked, *client).is_some());
            assert!(
                matches!(can.count(), 0 | 3),
                "{} {}",
                kind.name,
                protocol.name
            );
            let peer_scripts = kind.peer_scripts(&asked, 3);
            assert!(peer_scripts.is_none_or(|peer_scripts| peer_scripts.len() == 3));
            // The first protocol is what most are checked with.
            let first = std::ptr::eq(protocol, &PROTOCOLS[0]);
            assert!(
                !first || kind.peer_scripts(&asked, 1).is_some(),
                "{}",
                kind.name
            );
        }
    }
}

#[test]
fn a_right_server_gives_each_kind_what_it_is_owed() {
    use client::misbehave::Obligation;
    for protocol in PROTOCOLS {
        if protocol.name == "http" {
            continue;
        }
        let driver = driver(of_protocol(protocol));
        let asked = asked(protocol);
        for kind in MISBEHAVIOURS
            .iter()
            .filter(|kind| kind.obligation != Obligation::Nothing)
        {
            let Some(peer_scripts) = kind.peer_scripts(&asked, kind.clients.min(40)) else {
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
fn what_is_asked_at_once_is_told_apart_where_it_can_be() {
    for protocol in PROTOCOLS {
        let asked = asked(protocol);
        let (bytes, count) = asked.all_at_once(5, None, 50);
        assert_eq!(count, asked.requests(50));
        assert!(bytes.starts_with(&asked.request(5)));
        if protocol.requests_differ {
            let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            lines.sort_unstable();
            lines.dedup();
            // And nothing behind the last.
            assert_eq!(lines.len() as u64, count + 1, "{}", protocol.name);
        }
    }
}

#[test]
fn replies_are_foretold() {
    let say =
        |name, input: &[u8], ended| asked(Protocol::find(name).unwrap()).replies(input, ended);
    assert_eq!(say("echo", b"a\nb", false).bytes, b"a\n");
    assert_eq!(say("echo", b"a\nb", true).bytes, b"a\nb");
    assert_eq!(say("pair", b"a\nb\n", false).bytes, b"a\na\nb\n");
    assert_eq!(say("upper", b"a\nb", false).bytes, b"A\nB");
    assert_eq!(
        say("hello", b"a", false).over,
        Some(protocol::CloseReason::Done)
    );
    let refused = say("echo", &[b'x'; 70_000], false);
    assert_eq!(refused.over, Some(protocol::CloseReason::Refused));
    assert!(refused.bytes.starts_with(b"error: "));
    assert_eq!(say("echo", b"", false), Default::default());
}

/// Replies of `http` can't be deterministic, but can be told apart.
#[test]
fn replies_to_pipelined_requests_are_heard_one_by_one() {
    const ONE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\r\nb";
    let asked = asked(Protocol::find("http").unwrap());
    let receive = |input: &[u8], size: usize| {
        let mut script = asked.pipeline(1, None, 3)(0);
        let mut request = Vec::new();
        script.ask(&mut request);
        assert_eq!(request, asked.all_at_once(1, None, 3).0);
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
