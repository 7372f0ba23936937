//! Tests of loads in slices, against servers on plain threads whose every byte is known.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use client::{
    Arrivals, DriveError, Edge, EdgeKind, Errors, Load, Plan, Slice, SlicedLoad, SlicedReport,
    drive_slices,
};
use protocol::Protocol;

/// Time that a test reaches only if it waits for it.
const NEVER: Duration = Duration::from_secs(60);

/// Answer of a server to a line: the reply, or `None` to close the connection.
type Answer = dyn Fn(u64, &[u8]) -> Option<Vec<u8>> + Send + Sync;

/// Starts a server with a thread per connection, which gets the number of each line over all connections, from 0. The
/// threads end with the connections; the listener lives until the process ends.
fn server(answer: impl Fn(u64, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let answer: Arc<Answer> = Arc::new(answer);
    let lines = Arc::new(AtomicU64::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, lines) = (Arc::clone(&answer), Arc::clone(&lines));
            let stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || serve(stream, &lines, &*answer));
        }
    });
    address
}

fn serve(stream: TcpStream, lines: &AtomicU64, answer: &Answer) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|count| count > 0)
    {
        let number = lines.fetch_add(1, Ordering::SeqCst);
        let Some(reply) = answer(number, &line) else {
            return;
        };
        if writer.write_all(&reply).is_err() {
            return;
        }
        line.clear();
    }
}

fn echo() -> SocketAddr {
    server(|_, line| Some(line.to_vec()))
}

fn closed(address: SocketAddr, connections: usize) -> Plan {
    Plan {
        address,
        protocol: Protocol::find("echo").unwrap(),
        connections,
        size: Some(64),
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load: Load::Closed {
            think: Duration::ZERO,
            warmup: Duration::ZERO,
            duration: NEVER,
        },
        connect_first: false,
        ramp: Duration::ZERO,
        timeout: NEVER,
        seed: 1,
        threads: 1,
        cpus: Vec::new(),
    }
}

fn open(address: SocketAddr, connections: usize, rate: f64) -> Plan {
    Plan {
        load: Load::Open {
            rate,
            arrivals: Arrivals::Poisson,
            warmup: Duration::ZERO,
            duration: NEVER,
        },
        ..closed(address, connections)
    }
}

fn slice(server: usize, length_ms: u64, seed: u64) -> Slice {
    Slice {
        server,
        lead: Duration::from_millis(1),
        length: Duration::from_millis(length_ms),
        seed,
    }
}

fn drive(plans: Vec<Plan>, slices: Vec<Slice>) -> (SlicedReport, Vec<Edge>) {
    let mut edges = Vec::new();
    let report = drive_at_edges(plans, slices, |edge| edges.push(edge));
    (report, edges)
}

fn drive_at_edges(
    plans: Vec<Plan>,
    slices: Vec<Slice>,
    mut at_edge: impl FnMut(Edge) + Send,
) -> SlicedReport {
    let load = SlicedLoad { plans, slices };
    drive_slices(&load, &mut at_edge, &AtomicBool::new(false)).unwrap()
}

fn errors(set: impl FnOnce(&mut Errors)) -> Errors {
    let mut errors = Errors::default();
    set(&mut errors);
    errors
}

/// Sums a count over the slices of a server.
fn sum<'r>(
    report: &'r SlicedReport,
    server: usize,
    count: impl Fn(&'r client::SliceReport) -> u64,
) -> u64 {
    let own = report.slices.iter().filter(|slice| slice.server == server);
    own.map(count).sum()
}

/// Index of the slice that is under way, or of none. A server sees each request of the slice in it.
#[derive(Clone)]
struct Current(Arc<AtomicUsize>);

impl Current {
    fn new() -> Current {
        Current(Arc::new(AtomicUsize::new(usize::MAX)))
    }

    fn meet(&self, edge: Edge) {
        match edge.kind {
            EdgeKind::Wake => self.0.store(edge.slice, Ordering::SeqCst),
            EdgeKind::Rest => self.0.store(usize::MAX, Ordering::SeqCst),
            EdgeKind::Begin | EdgeKind::End => {}
        }
    }

    fn is(&self, slice: usize) -> bool {
        self.0.load(Ordering::SeqCst) == slice
    }
}

/// Flag that threads wait for.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open, or the time is over. Returns whether it is open.
    fn wait(&self, limit: Duration) -> bool {
        let open = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(open, limit, |open| !*open);
        *waited.unwrap().0
    }
}

#[test]
fn slices_are_driven_in_order_and_each_has_its_four_edges() {
    let plans = vec![closed(echo(), 3), closed(echo(), 2)];
    let order = [1, 0, 0, 1];
    let slices = order.map(|server| slice(server, 5, 1)).to_vec();
    let (report, edges) = drive(plans, slices);
    let expected: Vec<Edge> = order
        .into_iter()
        .enumerate()
        .flat_map(|(slice, server)| {
            [
                EdgeKind::Wake,
                EdgeKind::Begin,
                EdgeKind::End,
                EdgeKind::Rest,
            ]
            .map(|kind| Edge {
                slice,
                server,
                kind,
            })
        })
        .collect();
    assert_eq!(edges, expected);
    let servers: Vec<_> = report.slices.iter().map(|slice| slice.server).collect();
    assert_eq!(servers, order);
    for slice in &report.slices {
        assert!(slice.drained && slice.replies_in_all > 0, "{slice:?}");
        // In a closed loop each reply of the counted part leads to a request that is planned in it. Those that are under
        // way at its end are answered in the drain.
        assert_eq!(slice.replies, slice.completed, "{slice:?}");
        assert!(slice.replies_in_all > slice.completed, "{slice:?}");
        assert_eq!((slice.unanswered, slice.errors), (0, Errors::default()));
        assert_eq!(slice.sent, slice.replies_in_all * 64);
        assert_eq!(slice.received, slice.replies_in_all * 64);
    }
    assert!(report.slices.is_sorted_by_key(|slice| slice.begin));
    for (server, connections) in [(0, 3), (1, 2)] {
        let whole = &report.servers[server];
        let own = || report.slices.iter().filter(|slice| slice.server == server);
        assert_eq!(whole.replies, sum(&report, server, |slice| slice.replies));
        // Each connection has had one reply before the slices.
        let in_all = sum(&report, server, |slice| slice.replies_in_all) + connections;
        assert_eq!((whole.sent, whole.received), (in_all * 64, in_all * 64));
        assert_eq!(whole.connected, connections);
        assert_eq!(whole.errors.total(), 0);
        assert_eq!(whole.unanswered, 0);
        assert_eq!(
            whole.completed,
            own().map(|slice| slice.completed).sum::<u64>()
        );
        assert_eq!(whole.window, own().map(|slice| slice.window).sum());
        assert_eq!(whole.per_connection.len() as u64, connections);
        assert_eq!(whole.per_connection.iter().sum::<u64>(), whole.completed);
        assert_eq!(whole.response_time.len(), whole.replies);
        assert_eq!(whole.never_served, 0);
    }
}

#[test]
fn server_gets_nothing_while_another_server_is_asked() {
    let asked = [0, 1].map(|_| Arc::new(AtomicBool::new(false)));
    let wrong = Arc::new(AtomicU64::new(0));
    let server = |number: usize| {
        let (asked, wrong) = (Arc::clone(&asked[number]), Arc::clone(&wrong));
        server(move |line, bytes| {
            // The first line of each connection comes before the first slice.
            if line >= 4 && !asked.load(Ordering::SeqCst) {
                wrong.fetch_add(1, Ordering::SeqCst);
            }
            Some(bytes.to_vec())
        })
    };
    let plans = vec![closed(server(0), 4), open(server(1), 4, 4_000.0)];
    let slices = (0..10).map(|number| slice(number % 2, 5, 3)).collect();
    let load = SlicedLoad { plans, slices };
    let mut at_edge = |edge: Edge| {
        let now = edge.kind != EdgeKind::Rest;
        asked[edge.server].store(now, Ordering::SeqCst);
    };
    let report = drive_slices(&load, &mut at_edge, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.slices.len(), 10);
    assert!(report.slices.iter().all(|slice| slice.replies_in_all > 0));
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
}

#[test]
fn open_loops_with_the_same_seed_get_the_same_plan_and_another_seed_another() {
    // The seed of the plan is that of the contents, which may differ.
    let other = Plan {
        seed: 2,
        ..open(echo(), 4, 2_000.0)
    };
    let plans = vec![open(echo(), 4, 2_000.0), other];
    let counts = |seeds: [u64; 2]| {
        let slices = vec![slice(0, 50, seeds[0]), slice(1, 50, seeds[1])];
        let (report, _) = drive(plans.clone(), slices);
        let count = |server: usize| {
            let report = &report.servers[server];
            assert_eq!(report.errors.total() + report.unanswered, 0);
            report.replies
        };
        [count(0), count(1)]
    };
    let [one, other] = counts([7, 7]);
    assert_eq!(one, other);
    assert!((50..200).contains(&one), "{one}");
    let different = (8..16).map(|seed| counts([7, seed])[1]);
    assert!(different.into_iter().any(|count| count != one));
}

#[test]
fn latency_counts_from_the_planned_time_if_the_server_stalls() {
    let stall = Duration::from_millis(40);
    let address = server(move |line, bytes| {
        if line == 10 {
            thread::sleep(stall);
        }
        Some(bytes.to_vec())
    });
    let slices = vec![slice(0, 60, 1), slice(0, 60, 2)];
    let (report, _) = drive(vec![open(address, 1, 1_000.0)], slices);
    let report = &report.servers[0];
    // The requests that were planned during the stall waited for the connection, and were answered after it.
    assert_eq!(report.unanswered, 0);
    let late = Duration::from_millis(10).as_nanos() as u64;
    let waited = report.response_time.iter_recorded();
    let waited: u64 = waited
        .filter(|value| value.value_iterated_to() > late)
        .map(|value| value.count_at_value())
        .sum();
    assert!(waited > 5, "{waited}");
}

#[test]
fn each_connection_has_one_reply_before_the_first_slice() {
    let count = Arc::new(AtomicU64::new(0));
    let address = {
        let count = Arc::clone(&count);
        server(move |_, bytes| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(bytes.to_vec())
        })
    };
    let mut before = None;
    let plans = vec![closed(address, 7)];
    let report = drive_at_edges(plans, vec![slice(0, 2, 1)], |edge| {
        if edge.kind == EdgeKind::Wake {
            before = Some(count.load(Ordering::SeqCst));
        }
    });
    assert_eq!(before, Some(7));
    let in_all = report.slices[0].replies_in_all;
    assert_eq!(count.load(Ordering::SeqCst), 7 + in_all);
}

#[test]
fn open_loop_counts_exactly_the_requests_planned_in_the_counted_part() {
    let constant = Plan {
        load: Load::Open {
            rate: 1_000.0,
            arrivals: Arrivals::Constant,
            warmup: Duration::ZERO,
            duration: NEVER,
        },
        ..closed(echo(), 2)
    };
    let slices = [0, 5].map(|lead| Slice {
        lead: Duration::from_millis(lead),
        ..slice(0, 20, 1)
    });
    let (report, _) = drive(vec![constant], slices.to_vec());
    for (slice, lead) in report.slices.iter().zip([0, 5]) {
        assert_eq!((slice.replies, slice.unanswered), (20, 0));
        assert_eq!(slice.replies_in_all, 20 + lead);
        assert_eq!(slice.window, Duration::from_millis(20));
    }
    let whole = &report.servers[0];
    assert_eq!((whole.replies, whole.response_time.len()), (40, 40));
    assert_eq!(whole.window, Duration::from_millis(40));
}

#[test]
fn reply_under_way_at_the_end_is_awaited_and_not_counted_as_completed() {
    let begun = Arc::new(AtomicBool::new(false));
    let ended = Gate::default();
    let seen = AtomicU64::new(0);
    let held = Arc::new(AtomicU64::new(0));
    let address = {
        let (begun, ended, held) = (Arc::clone(&begun), ended.clone(), Arc::clone(&held));
        server(move |_, bytes| {
            // The second line in the counted part is surely planned in it.
            if begun.load(Ordering::SeqCst) && seen.fetch_add(1, Ordering::SeqCst) == 1 {
                assert!(ended.wait(NEVER));
                held.fetch_add(1, Ordering::SeqCst);
            }
            Some(bytes.to_vec())
        })
    };
    let plans = vec![closed(address, 1)];
    let report = drive_at_edges(plans, vec![slice(0, 500, 1)], |edge| match edge.kind {
        EdgeKind::Begin => begun.store(true, Ordering::SeqCst),
        EdgeKind::End => ended.open(),
        EdgeKind::Wake | EdgeKind::Rest => {}
    });
    let slice = &report.slices[0];
    assert_eq!(held.load(Ordering::SeqCst), 1);
    assert!(slice.drained && slice.completed >= 1, "{slice:?}");
    assert_eq!(slice.replies, slice.completed);
    assert_eq!(slice.unanswered, 0);
}

#[test]
fn requests_without_a_reply_after_the_drain_are_unanswered_in_each_slice() {
    // It answers the first request of each connection, before the slices.
    let address = server(|line, bytes| Some(if line < 2 { bytes.to_vec() } else { Vec::new() }));
    let plans = vec![closed(address, 2), closed(echo(), 2)];
    let slices = [0, 1, 0].map(|server| slice(server, 5, 1)).to_vec();
    let (report, _) = drive(plans, slices);
    for number in [0, 2] {
        let slice = &report.slices[number];
        assert!(!slice.drained);
        // Both were planned in the lead, and under way for the whole counted part.
        assert_eq!((slice.completed, slice.replies_in_all), (0, 0));
        assert_eq!((slice.unanswered, slice.errors.total()), (2, 0));
    }
    let silent = &report.servers[0];
    assert_eq!((silent.replies, silent.unanswered), (0, 4));
    assert_eq!(silent.response_time.len(), 4);
    assert_eq!(silent.availability(), Some(0.0));
    // The connections were closed, and opened again in the next slice.
    assert_eq!(silent.connected, 4);
    assert!(report.slices[1].drained && report.slices[1].replies_in_all > 0);
    assert_eq!(report.servers[1].unanswered, 0);
}

#[test]
fn open_loop_requests_that_were_never_sent_are_unanswered() {
    let address = server(|line, bytes| Some(if line < 1 { bytes.to_vec() } else { Vec::new() }));
    let constant = Plan {
        load: Load::Open {
            rate: 1_000.0,
            arrivals: Arrivals::Constant,
            warmup: Duration::ZERO,
            duration: NEVER,
        },
        ..closed(address, 1)
    };
    let (report, _) = drive(
        vec![constant],
        vec![Slice {
            lead: Duration::ZERO,
            ..slice(0, 20, 1)
        }],
    );
    assert!(!report.slices[0].drained);
    assert_eq!(report.slices[0].unanswered, 20);
    assert_eq!(report.servers[0].response_time.len(), 20);
}

#[test]
fn reply_after_the_drain_is_counted_in_no_slice() {
    let rested = Gate::default();
    let late = Gate::default();
    let address = {
        let (rested, late) = (rested.clone(), late.clone());
        server(move |line, bytes| {
            if line == 1 {
                rested.wait(NEVER);
                late.open();
            }
            Some(bytes.to_vec())
        })
    };
    let plans = vec![closed(address, 1)];
    let slices = vec![slice(0, 5, 1), slice(0, 5, 1)];
    let report = drive_at_edges(plans, slices, |edge| {
        if edge.kind == EdgeKind::Rest {
            rested.open();
            assert!(late.wait(NEVER));
        }
    });
    let [first, second] = &report.slices[..] else {
        panic!("{:?}", report.slices);
    };
    assert_eq!((first.completed, first.unanswered), (0, 1));
    assert!(!first.drained);
    assert!(second.drained && second.replies_in_all > 0);
    assert_eq!(
        (second.replies, second.errors.total()),
        (second.completed, 0)
    );
    assert_eq!(report.servers[0].unanswered, 1);
}

#[test]
fn connection_without_a_first_reply_has_failed() {
    let silent = server(|_, _| Some(Vec::new()));
    let plans = vec![closed(silent, 2), closed(echo(), 2)];
    let (report, _) = drive(plans, vec![slice(1, 5, 1)]);
    let expected = errors(|errors| errors.timed_out = 2);
    assert_eq!(report.servers[0].errors, expected);
    assert!(report.servers[0].examples[0].contains("first request"));
    assert_eq!(report.servers[1].errors, Errors::default());
    assert!(report.slices[0].replies_in_all > 0);
}

#[test]
fn wrong_reply_is_an_error_of_its_slice_alone() {
    let current = Current::new();
    let spoiled = AtomicBool::new(false);
    let address = {
        let current = current.clone();
        server(move |_, bytes| {
            let mut reply = bytes.to_vec();
            if current.is(2) && !spoiled.swap(true, Ordering::SeqCst) {
                reply[5] ^= 1;
            }
            Some(reply)
        })
    };
    let slices = (0..5).map(|number| slice(number % 2, 20, 1)).collect();
    let plans = vec![closed(address, 2), closed(echo(), 2)];
    let report = drive_at_edges(plans, slices, |edge| current.meet(edge));
    for slice in &report.slices {
        let wrong = u64::from(slice.slice == 2);
        assert_eq!(slice.errors, errors(|errors| errors.wrong_reply = wrong));
        assert!(slice.replies_in_all > 0, "{slice:?}");
    }
    assert!(report.servers[0].examples[0].contains("wrong reply at byte 5"));
    assert!(report.servers[1].examples.is_empty());
}

#[test]
fn connection_closed_in_a_slice_is_an_error_of_that_slice_and_is_opened_again() {
    let current = Current::new();
    let closed_one = AtomicBool::new(false);
    let address = {
        let current = current.clone();
        server(move |_, bytes| {
            let close = current.is(0) && !closed_one.swap(true, Ordering::SeqCst);
            (!close).then(|| bytes.to_vec())
        })
    };
    let slices = [0, 1, 0].map(|server| slice(server, 20, 1)).to_vec();
    let plans = vec![closed(address, 1), closed(echo(), 2)];
    let report = drive_at_edges(plans, slices, |edge| current.meet(edge));
    let lost = report.slices[0].errors;
    assert_eq!((lost.closed_early + lost.reset, lost.total()), (1, 1));
    for slice in &report.slices[1..] {
        assert_eq!(slice.errors, Errors::default());
        assert!(slice.replies_in_all > 0, "{slice:?}");
    }
    assert_eq!(report.servers[0].connected, 2);
}

#[test]
fn connections_closed_while_the_server_rests_are_errors_of_its_next_slice() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let streams = Arc::clone(&accepted);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            streams.lock().unwrap().push(stream.try_clone().unwrap());
            let answer = |_: u64, bytes: &[u8]| Some(bytes.to_vec());
            thread::spawn(move || serve(stream, &AtomicU64::new(0), &answer));
        }
    });
    let plans = vec![closed(address, 3)];
    // The failures come in the lead, which is longer than the counted part of the slice before.
    let slices = [1, 20].map(|lead| Slice {
        lead: Duration::from_millis(lead),
        ..slice(0, 5, 1)
    });
    let report = drive_at_edges(plans, slices.to_vec(), |edge| {
        if edge.slice == 0 && edge.kind == EdgeKind::Rest {
            for stream in accepted.lock().unwrap().iter() {
                stream.shutdown(Shutdown::Both).unwrap();
            }
        }
    });
    assert_eq!(report.slices[0].errors, Errors::default());
    let lost = report.slices[1].errors;
    assert_eq!((lost.closed_early + lost.reset, lost.total()), (3, 3));
}

#[test]
fn server_that_dies_is_given_up_and_its_later_slices_are_skipped() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let dying = Arc::new(AtomicBool::new(false));
    let dies = Arc::clone(&dying);
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        let answer =
            move |_: u64, bytes: &[u8]| (!dies.load(Ordering::SeqCst)).then(|| bytes.to_vec());
        serve(stream, &AtomicU64::new(0), &answer);
    });
    let slices: Vec<Slice> = (0..40).map(|number| slice(number % 2, 10, 1)).collect();
    let mut edges = Vec::new();
    let plans = vec![closed(address, 1), closed(echo(), 2)];
    let report = drive_at_edges(plans, slices, |edge| {
        if edge.slice == 2 {
            dying.store(true, Ordering::SeqCst);
        }
        edges.push(edge);
    });
    let dead = &report.servers[0];
    assert_eq!(dead.errors.refused, 4);
    assert_eq!(dead.errors.total(), 5);
    assert_eq!((dead.gave_up, dead.connected), (1, 1));
    // If the last failure comes in a lead, that slice has no counted part and no report.
    let reported = sum(&report, 0, |slice| slice.errors.total());
    assert!((4..=5).contains(&reported), "{reported}");
    assert_eq!(sum(&report, 0, |slice| slice.completed), dead.completed);
    // A slice has all four edges and a report, or the outer edges and no report.
    for slice in 0..40 {
        let own = edges.iter().filter(|edge| edge.slice == slice).count();
        let reported = report.slices.iter().any(|one| one.slice == slice);
        assert_eq!(own, if reported { 4 } else { 2 });
    }
    assert!(!report.slices.iter().any(|slice| slice.slice == 38));
    let others = report.slices.iter().filter(|slice| slice.server == 1);
    assert_eq!(others.clone().count(), 20);
    for slice in others {
        assert_eq!(slice.errors, Errors::default());
        assert!(slice.replies_in_all > 0, "{slice:?}");
    }
}

#[test]
fn pause_that_ends_after_the_slice_sends_no_request() {
    let think = Duration::from_millis(200);
    let ended = Arc::new(AtomicBool::new(false));
    let lines = AtomicU64::new(0);
    let another = Gate::default();
    let waited = Gate::default();
    let address = {
        let (ended, another, waited) = (Arc::clone(&ended), another.clone(), waited.clone());
        server(move |_, bytes| {
            match lines.fetch_add(1, Ordering::SeqCst) {
                // The first of the slice is held until the other client's pause is surely over, so that the drain lasts.
                2 => {
                    another.wait(2 * think);
                    waited.open();
                }
                number if number > 3 && ended.load(Ordering::SeqCst) => another.open(),
                _ => {}
            }
            Some(bytes.to_vec())
        })
    };
    let load = Load::Closed {
        think,
        warmup: Duration::ZERO,
        duration: NEVER,
    };
    let plan = Plan {
        load,
        ..closed(address, 2)
    };
    let report = drive_at_edges(vec![plan], vec![slice(0, 5, 1)], |edge| {
        if edge.kind == EdgeKind::End {
            ended.store(true, Ordering::SeqCst);
        }
    });
    assert!(waited.wait(Duration::ZERO));
    assert!(!another.wait(Duration::ZERO));
    assert!(report.slices[0].drained);
    assert_eq!(report.slices[0].replies_in_all, 2);
    assert_eq!(report.slices[0].unanswered, 0);
}

#[test]
fn protocol_with_a_connection_per_request_leaves_nothing_unanswered() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                if stream.read(&mut byte).is_ok_and(|count| count > 0) {
                    let _ = stream.write_all(b"Hello from server!");
                    // The whole request is read, or the kernel would answer the rest with a reset.
                    let _ = stream.read_to_end(&mut Vec::new());
                }
            });
        }
    });
    let hello = |plan: Plan| Plan {
        protocol: Protocol::find("hello").unwrap(),
        size: None,
        ..plan
    };
    let plans = vec![hello(closed(address, 4)), hello(open(address, 4, 2_000.0))];
    let slices = (0..20).map(|number| slice(number % 2, 10, 1)).collect();
    let (report, _) = drive(plans, slices);
    for slice in &report.slices {
        assert!(slice.drained && slice.replies_in_all > 0, "{slice:?}");
        assert_eq!((slice.unanswered, slice.errors.total()), (0, 0));
    }
}

#[test]
fn server_that_does_not_listen_is_in_its_report() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let plans = vec![closed(address, 2), closed(echo(), 2)];
    let (report, _) = drive(plans, vec![slice(0, 5, 1), slice(1, 5, 1)]);
    assert_eq!(report.servers[0].errors.refused, 2);
    assert_eq!(report.servers[0].replies, 0);
    assert!(report.slices[0].replies_in_all > 0);
}

#[test]
fn stop_in_a_slice_ends_it_and_keeps_what_was_measured() {
    let load = SlicedLoad {
        plans: vec![closed(echo(), 2), closed(echo(), 2)],
        slices: vec![slice(0, 5, 1), slice(1, 60_000, 1), slice(0, 5, 1)],
    };
    let stop = AtomicBool::new(false);
    let mut edges = Vec::new();
    let mut at_edge = |edge: Edge| {
        if edge.slice == 1 && edge.kind == EdgeKind::Begin {
            stop.store(true, Ordering::SeqCst);
        }
        edges.push(edge.kind);
    };
    let began = Instant::now();
    let report = drive_slices(&load, &mut at_edge, &stop).unwrap();
    assert!(began.elapsed() < NEVER);
    let four = [
        EdgeKind::Wake,
        EdgeKind::Begin,
        EdgeKind::End,
        EdgeKind::Rest,
    ];
    assert_eq!(edges, [four, four].concat());
    assert_eq!(report.slices.len(), 2);
    let cut = &report.slices[1];
    assert!(cut.window < NEVER);
    let whole = &report.servers[1];
    assert_eq!(whole.window, cut.window);
    assert_eq!(whole.completed, cut.completed);
    assert_eq!(whole.replies, cut.replies);
    assert_eq!(whole.response_time.len(), cut.replies + cut.unanswered);
    assert_eq!(whole.timeline.len(), 1);
    assert_eq!(whole.timeline[0].length, cut.window);
}

#[test]
fn stop_before_the_counted_part_leaves_no_report_of_the_slice() {
    let load = SlicedLoad {
        plans: vec![closed(echo(), 2)],
        slices: vec![Slice {
            lead: NEVER,
            ..slice(0, 5, 1)
        }],
    };
    let stop = AtomicBool::new(false);
    let mut edges = Vec::new();
    let mut at_edge = |edge: Edge| {
        stop.store(true, Ordering::SeqCst);
        edges.push(edge.kind);
    };
    let report = drive_slices(&load, &mut at_edge, &stop).unwrap();
    assert_eq!(edges, [EdgeKind::Wake, EdgeKind::Rest]);
    assert!(report.slices.is_empty());
    assert_eq!(report.servers[0].window, Duration::ZERO);
    assert_eq!(
        (report.servers[0].replies, report.servers[0].completed),
        (0, 0)
    );
    assert!(report.servers[0].timeline.is_empty());
}

#[test]
fn timeline_has_steps_of_several_slices() {
    let plans = vec![closed(echo(), 2), open(echo(), 2, 1_000.0)];
    let mut slices: Vec<Slice> = (0..12).map(|_| slice(0, 10, 1)).collect();
    slices.extend((0..3).map(|seed| slice(1, 50, seed)));
    let (report, _) = drive(plans, slices);
    let of = |server: usize| {
        let slices = report.slices.iter().filter(|slice| slice.server == server);
        slices.map(|slice| slice.step).collect::<Vec<_>>()
    };
    let steps = of(0);
    assert!(steps.is_sorted() && steps[0] == 0);
    assert!((1..12).contains(&steps[11]), "{steps:?}");
    assert_eq!(of(1), [0, 1, 2]);
    for (server, whole) in report.servers.iter().enumerate() {
        assert_eq!(whole.timeline.len(), of(server)[of(server).len() - 1] + 1);
        let sum = |part: fn(&client::TimelineStep) -> u64| -> u64 {
            whole.timeline.iter().map(part).sum()
        };
        assert_eq!(sum(|step| step.completed), whole.completed);
        assert_eq!(sum(|step| step.planned), whole.replies);
        assert_eq!(sum(|step| step.unanswered), 0);
        assert_eq!(sum(|step| step.response_time.len()), whole.replies);
        let length: Duration = whole.timeline.iter().map(|step| step.length).sum();
        assert_eq!(length, whole.window);
        assert!(whole.timeline.is_sorted_by_key(|step| step.start));
    }
}

#[test]
fn load_that_makes_no_sense_is_refused() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let plan = || closed(address, 1);
    let refused = |plans: Vec<Plan>, slices: Vec<Slice>| {
        let load = SlicedLoad { plans, slices };
        drive_slices(&load, &mut |_| {}, &AtomicBool::new(false)).unwrap_err()
    };
    let one = || vec![slice(0, 5, 1)];
    assert!(matches!(refused(Vec::new(), one()), DriveError::NoSlices));
    assert!(matches!(
        refused(vec![plan()], Vec::new()),
        DriveError::NoSlices
    ));
    let other = refused(vec![plan()], vec![slice(1, 5, 1)]);
    assert!(matches!(other, DriveError::NoSuchServer(1, 1)), "{other}");
    let empty = refused(vec![plan()], vec![slice(0, 0, 1)]);
    assert!(matches!(empty, DriveError::NoDuration), "{empty}");
    let threads = refused(
        vec![Plan {
            threads: 2,
            ..plan()
        }],
        one(),
    );
    assert!(matches!(threads, DriveError::OneThread(2)), "{threads}");
    let load = Load::Messages {
        messages: 1,
        think: Duration::ZERO,
        rounds: 1,
        limit: None,
    };
    let messages = refused(vec![Plan { load, ..plan() }], one());
    assert!(matches!(messages, DriveError::NotSliceable), "{messages}");
    let rate = refused(vec![open(address, 1, 0.0)], one());
    assert!(matches!(rate, DriveError::Rate(_)), "{rate}");
    let connections = refused(vec![closed(address, 0)], one());
    assert!(
        matches!(connections, DriveError::NoConnections),
        "{connections}"
    );
}

#[test]
fn duration_of_the_plan_is_not_used() {
    let plan = Plan {
        load: Load::Closed {
            think: Duration::ZERO,
            warmup: Duration::ZERO,
            duration: Duration::ZERO,
        },
        ..closed(echo(), 1)
    };
    let (report, _) = drive(vec![plan], vec![slice(0, 2, 1)]);
    assert!(report.slices[0].replies_in_all > 0);
}

#[test]
fn edges_are_called_on_the_thread_of_the_loop_alone() {
    let threads = Mutex::new(Vec::new());
    let load = SlicedLoad {
        plans: vec![closed(echo(), 1)],
        slices: vec![slice(0, 2, 1), slice(0, 2, 1)],
    };
    let mut at_edge = |_: Edge| threads.lock().unwrap().push(thread::current().id());
    drive_slices(&load, &mut at_edge, &AtomicBool::new(false)).unwrap();
    let threads = threads.into_inner().unwrap();
    assert_eq!(threads.len(), 8);
    assert!(threads.iter().all(|one| *one == threads[0]));
    assert_ne!(threads[0], thread::current().id());
}
