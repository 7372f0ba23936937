//! Latency of every model with the same client, and cost of the protocols alone: `cargo bench --bench models`.
//!
//! These are latencies of single conversations on an otherwise idle machine. They show the effect of a change to one
//! model (`--save-baseline`, `--baseline`). To compare models under load, in slices and with their costs, use
//! `samewire compare`.
//!
//! The intervals that criterion prints are those of one process in one minute. They do not contain the difference between
//! two processes of the same server, which is about 3 %, nor between two hours of a machine, which is 10 to 20 %.

mod launch;

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use client::{Load, Plan};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use launch::Server;
use protocol::{PROTOCOLS, Protocol, ReplyStatus, ScriptOptions, SessionOptions, Step};
use samewire::registry;

const SIZE: usize = 64;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    protocols(&mut criterion);
    models(&mut criterion);
    criterion.final_summary();
    println!(
        "The intervals are those of one process in one minute: another process of the same server differs by about 3 %, and \
         another hour of the machine by 10 to 20 %. To compare models, use samewire compare."
    );
}

/// Measures conversations without any I/O: the cost of a request if the model costs nothing.
fn protocols(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("protocol alone");
    group.throughput(Throughput::Elements(1));
    for protocol in PROTOCOLS {
        let requests = protocol.requests_per_connection.unwrap_or(1_000);
        group.bench_function(protocol.name, |bencher| {
            bencher.iter_custom(|iterations| {
                let begin = Instant::now();
                for client in 0..iterations.div_ceil(requests) {
                    converse(
                        protocol,
                        client,
                        requests.min(iterations - client * requests),
                    );
                }
                begin.elapsed()
            });
        });
    }
    group.finish();
}

/// Runs a whole conversation, and checks every reply.
fn converse(protocol: &Protocol, client: u64, requests: u64) {
    let mut session = (protocol.open)(&SessionOptions::default());
    let mut script = (protocol.ask)(&ScriptOptions {
        size: Some(SIZE),
        seed: 1,
        client,
        ..ScriptOptions::default()
    });
    let mut request = Vec::with_capacity(SIZE);
    for _ in 0..requests {
        request.clear();
        script.ask(&mut request);
        session.receive(black_box(&request));
        let mut status = ReplyStatus::Partial;
        while let Step::Write(reply) = session.step() {
            status = script
                .receive(black_box(reply))
                .expect("the session sends what the script expects");
            let count = reply.len();
            session.sent(count);
        }
        assert_ne!(status, ReplyStatus::Partial);
    }
}

/// Measures every model that is available on this machine.
fn models(criterion: &mut Criterion) {
    // An iteration is a request on the only connection, or a round of new connections.
    let one = |messages, rounds| Case {
        connections: 1,
        messages,
        rounds,
    };
    let round_trip = |iterations| one(iterations, 1);
    let connect_ask_close = |iterations| one(1, iterations);
    let hundred = |iterations| Case {
        connections: 100,
        ..connect_ask_close(iterations)
    };
    let cases: [(&str, &dyn Fn(u64) -> Case); 3] = [
        ("round trip on one connection", &round_trip),
        ("100 connections, one message each", &hundred),
        ("connect, ask, close", &connect_ask_close),
    ];
    for (name, case) in cases {
        let mut group = criterion.benchmark_group(name);
        group.measurement_time(Duration::from_secs(3));
        group.warm_up_time(Duration::from_secs(1));
        for model in registry::models().filter(|model| (model.available)().is_ok()) {
            bench(&mut group, model.name, case);
        }
        group.finish();
    }
}

/// Load of one measurement.
struct Case {
    connections: usize,
    messages: u64,
    rounds: u64,
}

/// Measures one model with one load.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, model: &str, case: &dyn Fn(u64) -> Case) {
    // Started only if the filter on the command line lets this bench run.
    let mut server = None;
    group.bench_function(BenchmarkId::from_parameter(model), |bencher| {
        let (client_cpu, server_cpu) = launch::cpus().expect("CPUs can be counted");
        let server = server.get_or_insert_with(|| {
            Server::start(launch::serve_command(model, "pair", server_cpu))
                .expect("the server starts")
        });
        bencher.iter_custom(|iterations| {
            let Case {
                connections,
                messages,
                rounds,
            } = case(iterations);
            let plan = Plan {
                address: server.address,
                protocol: Protocol::find("pair").expect("pair is a protocol"),
                connections,
                size: Some(SIZE),
                bulk: Default::default(),
                page: Default::default(),
                work: None,
                load: Load::Messages {
                    messages,
                    think: Duration::ZERO,
                    rounds,
                    limit: None,
                },
                connect_first: false,
                ramp: Duration::ZERO,
                timeout: Duration::from_secs(10),
                seed: 1,
                threads: 1,
                cpus: vec![client_cpu],
            };
            let report =
                client::drive(&plan, &(), &AtomicBool::new(false)).expect("the plan is valid");
            assert_eq!(
                report.availability(),
                Some(1.0),
                "{:?} {:?}",
                report.errors,
                report.examples
            );
            report.window
        });
    });
}
