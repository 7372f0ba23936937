//! Tests of the client against servers whose every byte is known. The servers are written out here, on plain threads,
//! so that the same mistake in client and server can't hide.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use client::{
    Arrivals, DriveError, Errors, Load, Plan, Report, Snapshot, TimelineStep, Watch, drive,
};
use protocol::http::{Content, Page};
use protocol::{Bulk, Protocol, WorkKind, WorkPlan};
use socket2::{Domain, SockRef, Socket, Type};

/// Time that a test reaches only if it waits for it.
const NEVER: Duration = Duration::from_secs(60);

/// Server with a thread per connection; all threads are joined at the end.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server. `serve` gets each connection, with its number in the order of arrival.
    fn new(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let accepting = thread::spawn(move || {
            let serve = &serve;
            thread::scope(|scope| {
                for number in 0.. {
                    let (stream, _) = listener.accept().unwrap();
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    stream.set_nodelay(true).unwrap();
                    scope.spawn(move || serve(number, stream));
                }
            });
        });
        Server {
            address,
            stop,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let ended = accepting.join();
            if !thread::panicking() {
                ended.expect("the test's server failed");
            }
        }
    }
}

/// Calls `answer` with each line until the client has gone; `answer` returns whether to go on.
fn lines(stream: TcpStream, mut answer: impl FnMut(&mut TcpStream, Vec<u8>) -> bool) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => {}
            _ => return,
        }
        if !answer(&mut writer, line) {
            return;
        }
    }
}

/// Sends the bytes, and returns whether that succeeded: a client that has gone is no failure of the server.
fn send(writer: &mut TcpStream, bytes: &[u8]) -> bool {
    writer.write_all(bytes).is_ok()
}

fn echo(stream: TcpStream) {
    lines(stream, |writer, line| send(writer, &line));
}

fn plan(address: SocketAddr, load: Load) -> Plan {
    Plan {
        address,
        protocol: Protocol::find("echo").unwrap(),
        connections: 1,
        size: Some(64),
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load,
        connect_first: false,
        ramp: Duration::ZERO,
        timeout: NEVER,
        seed: 1,
        threads: 1,
        cpus: Vec::new(),
    }
}

fn messages(messages: u64) -> Load {
    Load::Messages {
        messages,
        think: Duration::ZERO,
        rounds: 1,
        limit: None,
    }
}

fn constant(rate: f64, warmup: u64, duration: u64) -> Load {
    Load::Open {
        rate,
        arrivals: Arrivals::Constant,
        warmup: Duration::from_millis(warmup),
        duration: Duration::from_millis(duration),
    }
}

fn run(plan: &Plan) -> Report {
    drive(plan, &(), &AtomicBool::new(false)).unwrap()
}

fn errors(set: impl FnOnce(&mut Errors)) -> Errors {
    let mut errors = Errors::default();
    set(&mut errors);
    errors
}

fn total_requests(report: &Report) -> u64 {
    report.replies + report.errors.total() + report.unanswered
}

/// Watcher that stops the drive once the condition holds for a snapshot.
struct StopWhen<'s, F>(&'s AtomicBool, F);

impl<F: Fn(Snapshot) -> bool + Sync> Watch for StopWhen<'_, F> {
    fn progress(&self, snapshot: Snapshot) {
        if (self.1)(snapshot) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn correct_replies_are_counted_exactly() {
    for threads in [1, 2, 3] {
        let server = Server::new(|_, stream| echo(stream));
        let report = run(&Plan {
            connections: 5,
            threads,
            ..plan(
                server.address,
                Load::Messages {
                    messages: 7,
                    think: Duration::from_millis(1),
                    rounds: 2,
                    limit: None,
                },
            )
        });
        assert_eq!((report.replies, report.completed), (70, 70));
        assert_eq!((report.errors, report.unanswered), (Errors::default(), 0));
        assert_eq!(report.per_connection, [14; 5]);
        assert_eq!((report.finished_clients, report.never_served), (10, 0));
        assert_eq!(report.connected, 10);
        assert_eq!((report.sent, report.received), (70 * 64, 70 * 64));
        assert_eq!(report.response_time.len(), 70);
        assert_eq!(report.service_time.len(), 70);
        assert_eq!(report.first_reply.len(), 10);
        assert_eq!(report.connect_time.len(), 10);
        assert_eq!(report.availability(), Some(1.0));
        assert_eq!(report.fairness().unwrap().jain, 1.0);
        assert_eq!(report.window, report.elapsed);
        // 7 pauses after 7 replies in each of 2 rounds, one after the other.
        assert!(report.elapsed >= Duration::from_millis(14));
        assert!(report.examples.is_empty());
    }
}

#[test]
fn replies_that_repeat_the_previous_line_are_accepted() {
    let server = Server::new(|_, stream| {
        let mut previous = Vec::new();
        lines(stream, |writer, line| {
            let sent = send(writer, &[&previous[..], &line].concat());
            previous = line;
            sent
        });
    });
    let report = run(&Plan {
        protocol: Protocol::find("pair").unwrap(),
        connections: 3,
        size: None,
        ..plan(server.address, messages(20))
    });
    assert_eq!((report.replies, report.errors.total()), (60, 0));
}

#[test]
fn one_wrong_byte_is_counted_and_its_offset_named() {
    let server = Server::new(|_, stream| {
        let mut count = 0;
        lines(stream, |writer, mut line| {
            count += 1;
            if count == 2 {
                line[33] ^= 1;
            }
            send(writer, &line)
        });
    });
    let report = run(&plan(server.address, messages(2)));
    assert_eq!(report.replies, 1);
    assert_eq!(report.errors, errors(|errors| errors.wrong_reply = 1));
    assert!(
        report.examples[0].contains("wrong reply at byte 33"),
        "{:?}",
        report.examples
    );
    assert_eq!(report.finished_clients, 0);
}

#[test]
fn reply_with_extra_bytes_is_wrong() {
    let server = Server::new(|_, stream| {
        lines(stream, |writer, line| {
            send(writer, &[&line[..], b"more"].concat())
        });
    });
    let report = run(&plan(server.address, messages(1)));
    // The extra bytes can arrive with the reply or after it; in the second case the request was answered.
    assert_eq!(report.replies + report.errors.wrong_reply, 1);
    let report = run(&plan(server.address, messages(4)));
    assert_eq!(total_requests(&report), 4);
    assert!(report.errors.wrong_reply >= 2, "{:?}", report.errors);
}

#[test]
fn unrequested_bytes_fail_the_next_request() {
    let server = Server::new(|_, mut stream| {
        send(&mut stream, b"welcome");
        // Reads until the client has gone.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let report = run(&Plan {
        connect_first: true,
        ..plan(server.address, messages(3))
    });
    assert_eq!(report.errors, errors(|errors| errors.wrong_reply = 3));
}

#[test]
fn incomplete_reply_is_counted_as_closed_early() {
    let server = Server::new(|_, stream| {
        lines(stream, |writer, line| {
            send(writer, &line[..10]);
            false
        });
    });
    let report = run(&plan(server.address, messages(1)));
    assert_eq!(report.errors, errors(|errors| errors.closed_early = 1));
}

#[test]
fn connection_reset_by_the_server_is_counted_as_reset() {
    let server = Server::new(|_, stream| {
        lines(stream, |writer, _| {
            SockRef::from(&*writer)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            false
        });
    });
    let report = run(&plan(server.address, messages(1)));
    assert_eq!(report.errors, errors(|errors| errors.reset = 1));
}

#[test]
fn client_gives_up_after_five_time_outs_in_a_row() {
    let server = Server::new(|_, mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let timeout = Duration::from_millis(20);
    let report = run(&Plan {
        timeout,
        connections: 2,
        ..plan(server.address, messages(100))
    });
    // Five failures in a row are enough; the other messages are not sent.
    assert_eq!(report.errors, errors(|errors| errors.timed_out = 10));
    assert_eq!(total_requests(&report), 10);
    assert_eq!((report.never_served, report.finished_clients), (2, 0));
    assert_eq!(report.first_reply.len(), 2);
    assert_eq!(report.response_time.len(), 10);
    let shortest = Duration::from_nanos(report.response_time.min());
    assert!(shortest >= timeout.mul_f64(0.99), "{shortest:?}");
    assert_eq!(report.service_time.len(), 0);
}

#[test]
fn drive_without_a_listening_server_ends_at_once() {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let timed = Load::Closed {
        think: Duration::ZERO,
        warmup: Duration::ZERO,
        duration: NEVER,
    };
    for (load, connect_first) in [
        (messages(10), false),
        (messages(10), true),
        (timed, false),
        (constant(100.0, 0, 60_000), false),
    ] {
        let report = run(&Plan {
            connections: 3,
            threads: 2,
            connect_first,
            ..plan(address, load)
        });
        assert_eq!(report.errors, errors(|errors| errors.refused = 3));
        assert_eq!((report.replies, report.connected), (0, 0));
        assert!(report.examples[0].contains("is the server running"));
        assert!(report.elapsed < NEVER);
    }
}

#[test]
fn server_that_dies_midway_is_counted_as_closed_then_refused() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        let mut left = 3;
        lines(stream, |writer, line| {
            left -= 1;
            send(writer, &line) && left > 0
        });
    });
    let report = run(&plan(address, messages(100)));
    server.join().unwrap();
    assert_eq!(report.replies, 3);
    assert_eq!(report.errors.closed_early + report.errors.reset, 1);
    assert_eq!(report.errors.refused, 4);
    assert_eq!(report.errors.total(), 5);
    assert_eq!(report.availability(), Some(3.0 / 8.0));
    assert_eq!(report.never_served, 0);
}

#[test]
fn connection_closed_between_requests_fails_the_next_request() {
    let server = Server::new(|_, stream| {
        lines(stream, |writer, line| {
            send(writer, &line);
            false
        });
    });
    let report = run(&plan(
        server.address,
        Load::Messages {
            messages: 4,
            think: Duration::from_millis(10),
            rounds: 1,
            limit: None,
        },
    ));
    assert_eq!((report.replies, report.errors.total()), (2, 2));
    assert_eq!(report.connected, 2);
}

#[test]
fn reply_sent_byte_by_byte_is_accepted() {
    let server = Server::new(|_, stream| {
        lines(stream, |writer, line| {
            line.iter().all(|byte| send(writer, &[*byte]))
        });
    });
    let report = run(&Plan {
        connections: 4,
        ..plan(server.address, messages(10))
    });
    assert_eq!((report.replies, report.errors.total()), (40, 0));
}

#[test]
fn request_larger_than_the_kernels_buffers_is_sent_completely() {
    let server = Server::new(|_, stream| echo(stream));
    let size = 8 << 20;
    let report = run(&Plan {
        size: Some(size),
        connections: 2,
        ..plan(server.address, messages(2))
    });
    assert_eq!((report.replies, report.errors.total()), (4, 0));
    assert_eq!(report.sent, 4 * size as u64);
    assert_eq!(report.received, 4 * size as u64);
}

#[test]
fn client_reconnects_after_the_last_reply_of_a_conversation() {
    let server = Server::new(|_, mut stream| {
        let mut byte = [0];
        if stream.read(&mut byte).is_ok_and(|count| count > 0) {
            send(&mut stream, b"Hello from server!");
            // The whole request is read, or the kernel would answer the rest with a reset.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let report = run(&Plan {
        protocol: Protocol::find("hello").unwrap(),
        connections: 2,
        ..plan(server.address, messages(5))
    });
    assert_eq!((report.replies, report.errors.total()), (10, 0));
    assert_eq!(report.connected, 10);
    assert_eq!(report.finished_clients, 2);
}

/// Returns a listener whose backlog has room for one client: the kernel drops the SYN of the second.
#[cfg(target_os = "linux")]
fn listener_with_room_for_one() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
#[cfg(target_os = "linux")]
fn connect_first_sends_nothing_before_all_are_connected() {
    for connect_first in [true, false] {
        let (_listener, address) = listener_with_room_for_one();
        let stop = AtomicBool::new(false);
        let watch = StopWhen(&stop, |snapshot: Snapshot| snapshot.open == 1);
        let plan = Plan {
            connections: 2,
            connect_first,
            ..plan(address, messages(1))
        };
        let report = drive(&plan, &watch, &stop).unwrap();
        assert_eq!(report.connected, 1);
        assert_eq!(report.sent, if connect_first { 0 } else { 64 });
        // No client had planned a request while all were held; otherwise one sent a request, and the other planned to.
        assert_eq!(report.unanswered, if connect_first { 0 } else { 2 });
        assert_eq!(report.never_served, 2);
    }
}

#[test]
fn round_begins_after_all_clients_have_finished_the_previous_one() {
    const CLIENTS: usize = 4;
    const MESSAGES: usize = 3;
    // Numbers of the connections whose lines were received, in this order. The connections of the first round are the
    // first to arrive.
    let log: Arc<(Mutex<Vec<usize>>, Condvar)> = Arc::default();
    let logging = Arc::clone(&log);
    let server = Server::new(move |number, stream| {
        let (log, another_received) = &*logging;
        lines(stream, |writer, line| {
            let mut received = log.lock().unwrap();
            received.push(number);
            another_received.notify_all();
            let count =
                |received: &[usize], one: usize| received.iter().filter(|&&n| n == one).count();
            if number == 0 && count(&received, 0) == 1 {
                // The first client waits until all others have sent all the lines that they may send; and then a little
                // longer, for clients that would send more.
                let received = another_received
                    .wait_while(received, |received| {
                        (1..CLIENTS).any(|one| count(received, one) < MESSAGES)
                    })
                    .unwrap();
                let none_of_the_next =
                    |received: &mut Vec<usize>| received.iter().all(|&n| n < CLIENTS);
                let little = Duration::from_millis(50);
                drop(
                    another_received
                        .wait_timeout_while(received, little, none_of_the_next)
                        .unwrap(),
                );
            } else {
                drop(received);
            }
            send(writer, &line)
        });
    });
    let report = run(&Plan {
        connections: CLIENTS,
        threads: 2,
        ..plan(
            server.address,
            Load::Messages {
                messages: MESSAGES as u64,
                think: Duration::ZERO,
                rounds: 2,
                limit: None,
            },
        )
    });
    assert_eq!(report.replies, 2 * (CLIENTS * MESSAGES) as u64);
    let received = log.0.lock().unwrap();
    let (first, second) = received.split_at(CLIENTS * MESSAGES);
    assert!(first.iter().all(|&number| number < CLIENTS), "{first:?}");
    assert!(second.iter().all(|&number| number >= CLIENTS), "{second:?}");
}

#[test]
fn limit_ends_the_drive_and_open_requests_are_unanswered() {
    let server = Server::new(|number, mut stream| match number {
        0 => echo(stream),
        _ => drop(stream.read_to_end(&mut Vec::new())),
    });
    let limit = Duration::from_millis(50);
    let report = run(&Plan {
        connections: 3,
        ..plan(
            server.address,
            Load::Messages {
                messages: u64::MAX,
                think: Duration::from_millis(1),
                rounds: 1,
                limit: Some(limit),
            },
        )
    });
    assert!(report.elapsed >= limit);
    assert_eq!(report.errors.total(), 0);
    // Two get no reply; the third may have been cut off while it waited.
    assert!([2, 3].contains(&report.unanswered), "{}", report.unanswered);
    assert_eq!(report.never_served, 2);
    assert_eq!(report.response_time.len(), total_requests(&report));
    assert_eq!(report.finished_clients, 0);
}

#[test]
fn same_seed_sends_the_same_bytes() {
    let sent_with = |seed: u64| {
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let recording = Arc::clone(&received);
        let server = Server::new(move |_, stream| {
            let mut all = Vec::new();
            lines(stream, |writer, line| {
                all.extend_from_slice(&line);
                send(writer, &line)
            });
            recording.lock().unwrap().push(all);
        });
        let report = run(&Plan {
            connections: 4,
            seed,
            ..plan(
                server.address,
                Load::Messages {
                    messages: 5,
                    think: Duration::ZERO,
                    rounds: 2,
                    limit: None,
                },
            )
        });
        assert_eq!(report.replies, 40);
        drop(server);
        let mut received = std::mem::take(&mut *received.lock().unwrap());
        received.sort();
        received
    };
    let once = sent_with(1);
    assert_eq!(once, sent_with(1));
    assert_ne!(once, sent_with(2));
    // No two conversations are the same.
    let mut different = once.clone();
    different.dedup();
    assert_eq!(different.len(), 8);
}

#[test]
fn closed_loop_window_excludes_warm_up() {
    let server = Server::new(|_, stream| echo(stream));
    let report = run(&Plan {
        connections: 3,
        threads: 2,
        ramp: Duration::from_millis(20),
        ..plan(
            server.address,
            Load::Closed {
                think: Duration::from_millis(1),
                warmup: Duration::from_millis(30),
                duration: Duration::from_millis(60),
            },
        )
    });
    assert_eq!(report.window, Duration::from_millis(60));
    assert!(report.elapsed >= Duration::from_millis(90));
    assert_eq!(report.errors.total(), 0);
    assert_eq!(report.response_time.len(), total_requests(&report));
    assert_eq!(report.service_time.len(), report.replies);
    assert_eq!(report.per_connection.iter().sum::<u64>(), report.completed);
    // Requests were sent in the warm-up as well (each client's first request is in it).
    assert!(report.received > 64 * report.replies);
    assert!(report.cpu > Duration::ZERO);
}

#[test]
fn open_loop_sends_the_planned_number_of_requests() {
    for threads in [1, 2] {
        let server = Server::new(|_, stream| echo(stream));
        let report = run(&Plan {
            connections: 4,
            threads,
            ..plan(server.address, constant(500.0, 100, 200))
        });
        // 0.2 s of 500 per second, whatever the server and the machine do meanwhile.
        assert_eq!(total_requests(&report), 100);
        assert_eq!(report.errors.total(), 0);
        assert_eq!(report.response_time.len(), 100);
        assert_eq!(report.service_time.len(), report.replies);
        assert!(report.lag.len() <= 100);
        // No request waits less than from its sending.
        assert!(report.response_time.max() >= report.service_time.max());
    }
}

#[test]
fn poisson_arrivals_repeat_for_the_same_seed() {
    let total_with = |seed: u64, threads: usize| {
        let server = Server::new(|_, stream| echo(stream));
        let report = run(&Plan {
            connections: 3,
            seed,
            threads,
            ..plan(
                server.address,
                Load::Open {
                    rate: 2000.0,
                    arrivals: Arrivals::Poisson,
                    warmup: Duration::from_millis(20),
                    duration: Duration::from_millis(200),
                },
            )
        });
        assert_eq!(report.response_time.len(), total_requests(&report));
        total_requests(&report)
    };
    let once = total_with(1, 1);
    assert_eq!(once, total_with(1, 2));
    // About 400; the seeds are fixed, so this can't fail by chance.
    assert_ne!(once, total_with(2, 1));
    assert!((300..500).contains(&once), "{once}");
}

#[test]
fn stall_is_counted_in_all_requests_planned_during_it() {
    const STALL: Duration = Duration::from_millis(200);
    let server = Server::new(|_, stream| {
        let mut count = 0;
        lines(stream, |writer, line| {
            count += 1;
            if count == 10 {
                thread::sleep(STALL);
            }
            send(writer, &line)
        });
    });
    // One every 5 ms.
    let report = run(&plan(server.address, constant(200.0, 0, 500)));
    assert_eq!(total_requests(&report), 100);
    assert_eq!(report.response_time.len(), 100);
    assert_eq!(report.service_time.len(), report.replies);
    let stall = STALL.as_nanos() as u64 * 99 / 100;
    assert!(report.response_time.max() >= stall);
    assert!(report.service_time.max() >= stall);
    // 20 were planned in the first half of the stall (but for the edges), and waited for the second half at least.
    let long = report.response_time.count_between(stall / 2, u64::MAX);
    assert!(long >= 18, "{long}");
}

#[test]
fn request_planned_in_the_window_is_sent_after_its_end_if_its_connection_was_waiting() {
    let server = Server::new(|_, stream| {
        let mut first = true;
        lines(stream, |writer, line| {
            if std::mem::take(&mut first) {
                thread::sleep(Duration::from_millis(120));
            }
            send(writer, &line)
        });
    });
    // One every 10 ms. The first reply comes after the end of the window.
    let report = run(&plan(server.address, constant(100.0, 0, 100)));
    assert_eq!(total_requests(&report), 10);
    assert!(report.replies > 1, "{} replies", report.replies);
}

#[test]
fn planned_requests_of_connections_without_a_reply_are_unanswered() {
    // The server serves one connection until that ends, as a serial server does.
    let slot = Arc::new(Mutex::new(()));
    let server = Server::new(move |_, stream| {
        let _served = slot.lock().unwrap();
        echo(stream);
    });
    let report = run(&Plan {
        connections: 4,
        threads: 2,
        ..plan(server.address, constant(400.0, 50, 300))
    });
    assert_eq!(total_requests(&report), 120);
    assert_eq!(report.response_time.len(), 120);
    assert_eq!(report.errors.total(), 0);
    assert!(report.unanswered >= 90, "{}", report.unanswered);
    assert_eq!(report.never_served, 3);
    let without_reply = report
        .per_connection
        .iter()
        .filter(|&&count| count == 0)
        .count();
    assert!(without_reply >= 3, "{:?}", report.per_connection);
    // The requests planned at the window's beginning are now older than the window is long.
    assert!(report.response_time.max() >= 290_000_000);
}

#[test]
fn open_loop_failure_uses_up_one_planned_request() {
    // Every third request gets no reply, and its connection is closed.
    let count = AtomicUsize::new(0);
    let server = Server::new(move |_, stream| {
        lines(stream, |writer, line| {
            count.fetch_add(1, Ordering::SeqCst) % 3 != 2 && send(writer, &line)
        });
    });
    let report = run(&Plan {
        connections: 2,
        ..plan(server.address, constant(200.0, 0, 300))
    });
    assert_eq!(total_requests(&report), 60);
    assert_eq!(report.response_time.len(), 60);
    assert!(report.errors.closed_early > 0);
    assert!(report.connected > 2);
}

#[test]
fn stop_ends_the_drive_and_keeps_the_measurements() {
    let server = Server::new(|_, stream| echo(stream));
    let hour = Duration::from_secs(3600);
    for load in [
        Load::Closed {
            think: Duration::ZERO,
            warmup: Duration::ZERO,
            duration: hour,
        },
        constant(1000.0, 0, 3_600_000),
        messages(u64::MAX),
    ] {
        let stop = AtomicBool::new(false);
        let watch = StopWhen(&stop, |snapshot: Snapshot| snapshot.replies > 0);
        let plan = Plan {
            connections: 2,
            threads: 2,
            ..plan(server.address, load)
        };
        let report = drive(&plan, &watch, &stop).unwrap();
        assert!(report.replies > 0);
        assert!(report.window > Duration::ZERO && report.window < hour);
        assert_eq!(report.errors.total(), 0);
        assert_eq!(report.response_time.len(), total_requests(&report));
    }
    // A stop before anything has begun also ends the drive.
    let nothing = drive(
        &plan(server.address, messages(5)),
        &(),
        &AtomicBool::new(true),
    );
    assert!(nothing.unwrap().replies <= 5);
}

#[test]
fn timeline_adds_up_to_the_report() {
    let server = Server::new(|_, stream| echo(stream));
    let closed = Load::Closed {
        think: Duration::ZERO,
        warmup: Duration::from_millis(10),
        duration: Duration::from_millis(250),
    };
    for (load, threads) in [(closed, 2), (constant(1_000.0, 10, 250), 2)] {
        let report = run(&Plan {
            connections: 4,
            threads,
            ..plan(server.address, load)
        });
        let milliseconds: Vec<_> = report
            .timeline
            .iter()
            .map(|step| (step.start.as_millis(), step.length.as_millis()))
            .collect();
        assert_eq!(milliseconds, [(0, 100), (100, 100), (200, 50)]);
        let sum =
            |count: fn(&TimelineStep) -> u64| -> u64 { report.timeline.iter().map(count).sum() };
        assert_eq!(sum(|step| step.completed), report.completed);
        assert_eq!(sum(|step| step.planned), total_requests(&report));
        assert_eq!(sum(|step| step.unanswered), report.unanswered);
        let times = sum(|step| step.response_time.len());
        assert_eq!(times, report.response_time.len());
        let cpu: Duration = report.timeline.iter().map(|step| step.client_cpu).sum();
        assert!(cpu > Duration::ZERO && cpu <= report.cpu, "{cpu:?}");
        // A histogram has three digits, so the limit of 100 us lies within a bucket.
        let late = sum(|step| step.late_sends);
        let lag = &report.lag;
        assert!(late >= lag.len() - lag.count_between(0, 100_100));
        assert!(late <= lag.len() - lag.count_between(0, 99_900));
    }
}

#[test]
fn quiet_response_times_are_those_of_steps_without_a_late_send() {
    let server = Server::new(|_, stream| echo(stream));
    let mut report = run(&Plan {
        connections: 2,
        ..plan(server.address, constant(500.0, 0, 300))
    });
    assert_eq!(total_requests(&report), 150);
    for step in &mut report.timeline {
        step.late_sends = 0;
    }
    assert_eq!(report.quiet_response_time().len(), 150);
    report.timeline[1].late_sends = 1;
    assert_eq!(report.quiet_response_time().len(), 100);
}

#[test]
fn stall_is_seen_in_the_step_of_the_timeline_in_which_it_was() {
    let stall = Duration::from_millis(60);
    let server = Server::new(move |_, stream| {
        let mut count = 0;
        lines(stream, |writer, line| {
            count += 1;
            if count == 111 {
                thread::sleep(stall);
            }
            send(writer, &line)
        });
    });
    let report = run(&plan(server.address, constant(1_000.0, 0, 300)));
    let slowest: Vec<_> = report
        .timeline
        .iter()
        .map(|step| Duration::from_nanos(step.response_time.max()))
        .collect();
    // The request that met the stall is the 111th, planned at 110 ms.
    assert!(slowest[1] >= stall, "{slowest:?}");
    assert!(report.timeline.iter().all(|step| step.planned == 100));
}

#[test]
fn timeline_of_a_stopped_drive_ends_with_its_window() {
    let server = Server::new(|_, stream| echo(stream));
    let stop = AtomicBool::new(false);
    let stopper = StopWhen(&stop, |snapshot: Snapshot| {
        snapshot.elapsed > Duration::from_millis(250)
    });
    let load = constant(1_000.0, 0, 60_000);
    let report = drive(&plan(server.address, load), &stopper, &stop).unwrap();
    let length: Duration = report.timeline.iter().map(|step| step.length).sum();
    assert_eq!(length, report.window);
    let planned: u64 = report.timeline.iter().map(|step| step.planned).sum();
    assert_eq!(planned, total_requests(&report));
    let last = report.timeline.last().unwrap();
    assert!(last.planned > 0 || last.length < Duration::from_millis(2));
}

#[test]
fn watcher_is_notified_of_the_window_once() {
    #[derive(Default)]
    struct Notifications(Mutex<Vec<&'static str>>);
    impl Watch for Notifications {
        fn measuring(&self) {
            self.0.lock().unwrap().push("measuring");
        }
        fn measured(&self) {
            self.0.lock().unwrap().push("measured");
        }
    }
    let server = Server::new(|_, stream| echo(stream));
    let timed = Load::Closed {
        think: Duration::ZERO,
        warmup: Duration::from_millis(10),
        duration: Duration::from_millis(20),
    };
    for load in [timed, messages(3)] {
        let notifications = Notifications::default();
        drive(
            &plan(server.address, load),
            &notifications,
            &AtomicBool::new(false),
        )
        .unwrap();
        assert_eq!(*notifications.0.lock().unwrap(), ["measuring", "measured"]);
    }
    // No window, no notification: the drive is stopped before the end of the warm-up.
    let notifications = Notifications::default();
    let warming = Load::Closed {
        think: Duration::ZERO,
        warmup: NEVER,
        duration: NEVER,
    };
    let report = drive(
        &plan(server.address, warming),
        &notifications,
        &AtomicBool::new(true),
    )
    .unwrap();
    assert_eq!(report.window, Duration::ZERO);
    assert!(notifications.0.lock().unwrap().is_empty());
}

#[test]
fn plan_with_a_zero_or_invalid_value_is_refused() {
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
    let refused = |plan: Plan| drive(&plan, &(), &AtomicBool::new(false)).unwrap_err();
    let good = || plan(address, messages(1));
    assert!(matches!(
        refused(Plan {
            connections: 0,
            ..good()
        }),
        DriveError::NoConnections
    ));
    assert!(matches!(
        refused(Plan {
            threads: 0,
            ..good()
        }),
        DriveError::NoThreads
    ));
    assert!(matches!(
        refused(Plan {
            timeout: Duration::ZERO,
            ..good()
        }),
        DriveError::NoTimeout
    ));
    assert!(matches!(
        refused(plan(address, messages(0))),
        DriveError::NothingToAsk
    ));
    for (rounds, limit) in [(0, None), (1, Some(Duration::ZERO))] {
        let load = Load::Messages {
            messages: 1,
            think: Duration::ZERO,
            rounds,
            limit,
        };
        assert!(matches!(
            refused(plan(address, load)),
            DriveError::NothingToAsk | DriveError::NoDuration
        ));
    }
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            refused(plan(address, constant(rate, 0, 100))),
            DriveError::Rate(_)
        ));
    }
    assert!(matches!(
        refused(plan(address, constant(1.0, 0, 0))),
        DriveError::NoDuration
    ));
    let closed = Load::Closed {
        think: Duration::ZERO,
        warmup: Duration::ZERO,
        duration: Duration::ZERO,
    };
    assert!(matches!(
        refused(plan(address, closed)),
        DriveError::NoDuration
    ));
}

#[test]
#[cfg(target_os = "linux")]
fn cpus_that_do_not_exist_are_refused() {
    for cpus in [vec![1_000_000], vec![0, 1023]] {
        let plan = Plan {
            cpus: cpus.clone(),
            ..plan((Ipv4Addr::LOCALHOST, 1).into(), messages(1))
        };
        match drive(&plan, &(), &AtomicBool::new(false)) {
            Err(DriveError::Affinity { cpus: named, .. }) => assert_eq!(named, cpus),
            other => panic!("{other:?}"),
        }
    }
}

const TERMINATOR: &[u8] = b"\r<--EOM-->\r";

/// Reads a message of `bulk`, without its terminator; `None`: the client has gone.
fn message(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    while !message.ends_with(TERMINATOR) {
        if !matches!(reader.read_until(b'\r', &mut message), Ok(count) if count > 0) {
            return None;
        }
    }
    message.truncate(message.len() - TERMINATOR.len());
    Some(message)
}

/// Returns a message of `bulk`.
fn dots(size: usize) -> Vec<u8> {
    [b"head", &vec![b'.'; size - 8][..], b"tail", TERMINATOR].concat()
}

fn bulk_plan(address: SocketAddr, size: u64, count: u64, load: Load) -> Plan {
    Plan {
        protocol: Protocol::find("bulk").unwrap(),
        bulk: Bulk { size, count },
        ..plan(address, load)
    }
}

/// The server sends a message only after the receipt for the one before it, so the client may not hold receipts back.
#[test]
fn receipts_are_sent_while_the_reply_is_under_way() {
    let server = Server::new(|_, mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut receipts = 0;
        while let Some(start) = message(&mut reader) {
            assert_eq!(start, b"start");
            for _ in 0..3 {
                let all = dots(100);
                let (first, end) = all.split_at(100);
                send(&mut stream, first);
                for byte in end {
                    send(&mut stream, &[*byte]);
                }
                receipts += 1;
                let receipt = message(&mut reader).expect("a receipt before the client goes");
                assert_eq!(receipt, format!("received {receipts}").into_bytes());
            }
        }
        assert_eq!(receipts, 6);
    });
    let report = run(&Plan {
        connections: 2,
        ..bulk_plan(server.address, 100, 3, messages(2))
    });
    assert_eq!((report.replies, report.errors.total()), (4, 0));
    assert_eq!(report.response_time.len(), 4);
    assert_eq!(report.received, 2 * 2 * 3 * 111);
    assert_eq!(report.sent, 2 * 2 * (16 + 3 * 21));
    assert_eq!(report.finished_clients, 2);
}

/// The server reads no receipt before all is sent, and there are far more receipts than the sockets hold: they wait,
/// and no request waits for them. The last receipts are sent before the client leaves.
#[test]
fn receipts_that_the_socket_does_not_accept_are_sent_later() {
    const COUNT: u64 = 100_000;
    let received = Arc::new(Mutex::new(Vec::new()));
    let recording = Arc::clone(&received);
    let server = Server::new(move |_, mut stream| {
        SockRef::from(&stream)
            .set_recv_buffer_size(32 * 1024)
            .unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut receipts = 0;
        while let Some(start) = message(&mut reader) {
            assert_eq!(start, b"start");
            send(&mut stream, &dots(8).repeat(COUNT as usize));
            for _ in 0..COUNT {
                receipts += 1;
                let receipt = message(&mut reader).expect("a receipt before the client goes");
                assert_eq!(receipt, format!("received {receipts}").into_bytes());
            }
        }
        recording.lock().unwrap().push(receipts);
    });
    let report = run(&bulk_plan(server.address, 8, COUNT, messages(2)));
    assert_eq!((report.replies, report.errors.total()), (2, 0));
    drop(server);
    assert_eq!(*received.lock().unwrap(), [2 * COUNT]);
    let digits: usize = (1..=2 * COUNT).map(|number| number.to_string().len()).sum();
    let receipts = 2 * COUNT as usize * ("received ".len() + TERMINATOR.len()) + digits;
    assert_eq!(report.sent, (2 * 16 + receipts) as u64);
}

/// A client that has all its replies leaves in the end, also if the server reads no receipts.
#[test]
fn client_leaves_a_server_that_reads_no_receipts() {
    const COUNT: u64 = 400_000;
    let (over, over_changed) = (Arc::new(Mutex::new(false)), Arc::new(Condvar::new()));
    let (server_over, server_over_changed) = (Arc::clone(&over), Arc::clone(&over_changed));
    let server = Server::new(move |_, mut stream| {
        let mut start = [0; 16];
        stream.read_exact(&mut start).unwrap();
        send(&mut stream, &dots(8).repeat(COUNT as usize));
        let over = server_over.lock().unwrap();
        drop(server_over_changed.wait_while(over, |over| !*over).unwrap());
    });
    let report = run(&Plan {
        // Long enough for the reply, wherever this is run.
        timeout: Duration::from_secs(3),
        ..bulk_plan(server.address, 8, COUNT, messages(1))
    });
    *over.lock().unwrap() = true;
    over_changed.notify_all();
    assert_eq!((report.replies, report.errors.total()), (1, 0));
    assert_eq!(report.finished_clients, 1);
}

#[test]
fn incomplete_message_is_closed_early_or_timed_out() {
    for closes in [false, true] {
        let server = Server::new(move |_, mut stream| {
            let mut start = [0; 16];
            stream.read_exact(&mut start).unwrap();
            send(&mut stream, &dots(100)[..50]);
            if !closes {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let timeout = if closes {
            NEVER
        } else {
            Duration::from_millis(50)
        };
        let report = run(&Plan {
            timeout,
            ..bulk_plan(server.address, 100, 3, messages(1))
        });
        let expected = errors(|errors| match closes {
            true => errors.closed_early = 1,
            false => errors.timed_out = 1,
        });
        assert_eq!(report.errors, expected);
    }
}

/// Calls `answer` for each request for the page.
fn pages(stream: TcpStream, mut answer: impl FnMut(&mut TcpStream) -> bool) {
    let mut head = Vec::new();
    lines(stream, |writer, line| {
        head.extend_from_slice(&line);
        if line != b"\r\n" {
            return true;
        }
        let head = std::mem::take(&mut head);
        assert!(head.starts_with(b"GET /files/x HTTP/1.1\r\nHost: here\r\n"));
        answer(writer)
    });
}

fn http_plan(address: SocketAddr, content: Option<Content>, load: Load) -> Plan {
    let page = Page {
        path: "/files/x".to_string(),
        host: "here".to_string(),
        ..Page::default()
    };
    if let Some(content) = content {
        page.content.set(content).unwrap();
    }
    Plan {
        protocol: Protocol::find("http").unwrap(),
        page: Arc::new(page),
        ..plan(address, load)
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn pages_are_requested_on_one_connection_while_it_is_open() {
    let server = Server::new(|_, stream| pages(stream, |writer| send(writer, OK)));
    let report = run(&Plan {
        connections: 2,
        ..http_plan(server.address, Some(Content::of(b"ok")), messages(10))
    });
    assert_eq!((report.replies, report.errors.total()), (20, 0));
    assert_eq!(report.connected, 2);
    assert_eq!(report.received, 20 * OK.len() as u64);
}

#[test]
fn client_reconnects_if_the_server_closes_after_each_page() {
    let server = Server::new(|_, stream| {
        pages(stream, |writer| {
            let head = &b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"[..];
            send(writer, head);
            false
        });
    });
    let report = run(&http_plan(server.address, None, messages(10)));
    assert_eq!((report.replies, report.errors.total()), (10, 0));
    assert_eq!(report.connected, 10);
}

#[test]
fn wrong_page_is_a_wrong_reply() {
    for (reply, text) in [
        (OK.repeat(2), "nothing more"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_vec(),
            "expected a body of 2 bytes with XXH3",
        ),
        (
            b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "expected status 200, got 503 Full",
        ),
    ] {
        let server = Server::new(move |_, stream| pages(stream, |writer| send(writer, &reply)));
        let content = Some(Content::of(b"ok"));
        let report = run(&http_plan(server.address, content, messages(1)));
        assert_eq!(report.errors, errors(|errors| errors.wrong_reply = 1));
        let example = &report.examples[0];
        assert!(example.contains(text), "{example}");
    }
}

/// All clients of a drive compare their replies with the same page, though the plan gives no content.
#[test]
fn page_that_changes_during_the_drive_is_a_wrong_reply() {
    let server = Server::new(|_, stream| {
        let mut count = 0;
        pages(stream, |writer| {
            count += 1;
            let body = if count < 3 { "ok" } else { "no" };
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
            send(writer, format!("{head}{body}").as_bytes())
        });
    });
    let report = run(&http_plan(server.address, None, messages(3)));
    assert_eq!(report.replies, 2);
    assert_eq!(report.errors, errors(|errors| errors.wrong_reply = 1));
}

/// The client recognises these requests by their bytes, whether they are answered or not.
#[test]
fn requests_without_server_work_are_reported_as_bystanders() {
    let time = Duration::from_millis(1);
    for (percent, correct) in [(50, true), (50, false), (100, true)] {
        let received = Arc::new(Mutex::new(Vec::new()));
        let recording = Arc::clone(&received);
        let server = Server::new(move |_, stream| {
            lines(stream, |writer, mut line| {
                recording.lock().unwrap().push(line.clone());
                line[0] ^= u8::from(!correct);
                send(writer, &line)
            });
        });
        let work = WorkPlan::new(WorkKind::Wait, time..=time, percent, 1);
        let report = run(&Plan {
            work: Some(work.clone()),
            connections: 4,
            ..plan(server.address, messages(50))
        });
        let received = received.lock().unwrap();
        let bystanders = received.iter().filter(|line| !work.chooses(line)).count();
        assert_eq!(
            report.bystanders.len(),
            bystanders as u64,
            "{percent} {correct}"
        );
        assert_eq!(report.response_time.len(), received.len() as u64);
        assert_eq!(bystanders > 0, percent < 100, "of {}", received.len());
    }
}
