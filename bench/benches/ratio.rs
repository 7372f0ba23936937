//! Cost of the servers and the client of this project, relative to bare references: `cargo bench --bench ratio`.
//!
//! A reference is the smallest echo loop that a library allows (see `bare/`): no contract, no checks, no time-outs. The
//! ratio is the cost of all of these, in CPU time per request of the server process. Each round runs the server and the
//! reference one after the other, in random order, and gives one ratio: a disturbance of the machine that lasts longer
//! than a round affects both. Absolute times of different rounds are not compared.
//!
//! `cargo bench --bench ratio -- --rounds 5 mio client` runs a part of it, in less time.
//!
//! `cargo bench --bench ratio -- --against OLD/target/release/samewire mio threads` uses another build of this project
//! as the reference, and shows round by round whether a change has made a server more expensive.

mod bare;
mod launch;
mod meter;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use client::{Load, Plan};
use contract::{CpuList, Needs, listen, pin};
use launch::Server;
use meter::{Meter, median};
use protocol::Protocol;

const CONNECTIONS: usize = 100;
const SIZE: usize = 64;
const WARMUP: Duration = Duration::from_millis(200);
const WINDOW: Duration = Duration::from_millis(1000);

fn main() -> anyhow::Result<()> {
    let mut names = Vec::new();
    let mut rounds = 15;
    let mut against = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo passes this to every bench.
            "--bench" => {}
            "--bare" => return bare_server(&arguments.next().context("--bare needs a name")?),
            "--rounds" => {
                rounds = arguments
                    .next()
                    .and_then(|number| number.parse().ok())
                    .filter(|number| *number > 0)
                    .context("--rounds needs a number, such as 15")?;
            }
            "--against" => {
                against = Some(arguments.next().context("--against needs a program")?);
            }
            // cargo test builds and runs benches too, but this one has nothing to test.
            "--test" => return Ok(()),
            name => names.push(name.to_string()),
        }
    }
    if let Some(program) = against {
        return compare_builds(&program, &names, rounds);
    }
    let known = bare::SERVERS
        .iter()
        .map(|(name, _)| *name)
        .chain(["client"]);
    let known: Vec<_> = known.collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "there is no reference for {name}; the references are {}",
            known.join(", ")
        );
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);

    let (client_cpu, server_cpu) = launch::cpus()?;
    if client_cpu == server_cpu {
        println!("client and server share one CPU, so the figures are not reliable");
    }

    println!(
        "{CONNECTIONS} connections, lines of {SIZE} bytes, closed loop; {rounds} rounds of {WINDOW:?} each\n\n\
         | server | CPU per request, ours | reference | ratio: median | lowest..highest |\n\
         | --- | --- | --- | --- | --- |"
    );
    for (name, _) in bare::SERVERS.iter().filter(|(name, _)| wanted(name)) {
        let ours = || {
            Ok(drive(
                &Server::start(launch::serve_command(name, "echo", server_cpu))?,
                "echo",
            )?
            .server)
        };
        let reference = || Ok(drive(&serve_bare(name)?, "echo")?.server);
        compare(name, rounds, ours, reference)?;
    }
    if wanted("client") {
        println!(
            "\n| client | CPU per request, ours | reference | ratio: median | lowest..highest |\n\
             | --- | --- | --- | --- | --- |"
        );
        let ours = || Ok(drive(&serve_bare("mio")?, "echo")?.client);
        let reference = || {
            let server = serve_bare("mio")?;
            // The client loop runs on this thread. Children that are started later pin themselves to the server's CPU.
            pin(&CpuList(vec![client_cpu]))?;
            let line = [[b'x'; SIZE - 1].as_slice(), b"\n"].concat();
            let (replies, cpu) =
                bare::client::drive(server.address, CONNECTIONS, &line, WARMUP, WINDOW)?;
            Ok(cpu.as_secs_f64() / replies as f64)
        };
        compare("drive", rounds, ours, reference)?;
    }
    Ok(())
}

/// Prints the cost of models of this build relative to those of another build, with the default protocol.
fn compare_builds(program: &str, names: &[String], rounds: usize) -> anyhow::Result<()> {
    const PAIR: &str = "pair";
    let (_, cpu) = launch::cpus()?;
    println!(
        "{CONNECTIONS} connections, lines of {SIZE} bytes, closed loop; {rounds} rounds of {WINDOW:?} each\n\n\
         | server | CPU per request, this build | {program} | ratio: median | lowest..highest |\n\
         | --- | --- | --- | --- | --- |"
    );
    for name in names {
        let this_build = || {
            let command = launch::serve_command(name, PAIR, cpu);
            Ok(drive(&Server::start(command)?, PAIR)?.server)
        };
        let other_build = || {
            let this_command = launch::serve_command(name, PAIR, cpu);
            let mut command = Command::new(program);
            command.args(this_command.get_args());
            Ok(drive(&Server::start(command)?, PAIR)?.server)
        };
        compare(name, rounds, this_build, other_build)?;
    }
    Ok(())
}

/// Measures both sides in every round, and prints one row of the table. `ours` and `reference` return the cost in seconds
/// of CPU time per request.
fn compare(
    name: &str,
    rounds: usize,
    ours: impl Fn() -> anyhow::Result<f64>,
    reference: impl Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let (mut of_ours, mut of_reference, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (ours, reference) = if fastrand::bool() {
            let ours = ours()?;
            (ours, reference()?)
        } else {
            let reference = reference()?;
            (ours()?, reference)
        };
        of_ours.push(ours);
        of_reference.push(reference);
        ratios.push(ours / reference);
    }
    println!(
        "| {name} | {:.2} µs | {:.2} µs | {:.3} | {:.3}..{:.3} |",
        median(&mut of_ours) * 1e6,
        median(&mut of_reference) * 1e6,
        median(&mut ratios),
        ratios[0],
        ratios[ratios.len() - 1],
    );
    Ok(())
}

/// Starts a reference server, as a child process that runs this same program.
fn serve_bare(name: &str) -> anyhow::Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--bare", name]);
    Server::start(command)
}

/// Runs a reference server in that child process, until the process is ended.
fn bare_server(name: &str) -> anyhow::Result<()> {
    let (_, serve) = bare::SERVERS
        .iter()
        .find(|(known, _)| *known == name)
        .context("no such reference")?;
    let (_, cpu) = launch::cpus()?;
    pin(&CpuList(vec![cpu]))?;
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 4096, Needs::NOTHING)?;
    println!("listening on {}", listener.local_addr()?);
    match serve(listener)? {}
}

/// CPU time per request of both sides, in seconds.
struct Costs {
    server: f64,
    client: f64,
}

/// Drives a server with the client of this project, which checks every reply and records every latency.
fn drive(server: &Server, protocol: &str) -> anyhow::Result<Costs> {
    let plan = Plan {
        address: server.address,
        protocol: Protocol::find(protocol).context("there is no such protocol")?,
        connections: CONNECTIONS,
        size: Some(SIZE),
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load: Load::Closed {
            think: Duration::ZERO,
            warmup: WARMUP,
            duration: WINDOW,
        },
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(5),
        seed: 1,
        threads: 1,
        cpus: vec![launch::cpus()?.0],
    };
    let meter = Meter::new(server.pid());
    let report = client::drive(&plan, &meter, &AtomicBool::new(false))?;
    if report.availability() != Some(1.0) {
        bail!(
            "not all requests were answered correctly: {} unanswered, {:?} {:?}",
            report.unanswered,
            report.errors,
            report.examples
        );
    }
    let used = meter.used()?;
    let requests = report.completed as f64;
    Ok(Costs {
        server: used.as_secs_f64() / requests,
        client: report.cpu.as_secs_f64() / requests,
    })
}
