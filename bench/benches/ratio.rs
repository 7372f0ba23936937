//! Cost of the servers and the client of this project, relative to bare references: `cargo bench --bench ratio`.
//!
//! A reference is the smallest echo loop that a library allows (see `bare/`): no contract, no checks, no time-outs. The
//! ratio is the cost of all of these, in CPU time per request of the server process. `epoll` is the smallest loop without
//! any library; the references are compared with it too, and so is `mio`.
//!
//! In each round all servers and references are fresh processes that are alive at the same time. The client loads one
//! after the other for 10 ms, again and again, in random order: a disturbance that lasts longer affects all of them. A
//! round gives one ratio, and the interval is that of the mean of the rounds.
//!
//! `cargo bench --bench ratio -- --rounds 5 mio client` runs a part of it, in less time.
//!
//! `cargo bench --bench ratio -- --against OLD/target/release/samewire mio threads` uses another build of this project
//! as the reference.

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
use meter::{Amount, Loaded};
use protocol::Protocol;
use samewire::statistics::interval::{geometric, ratio};

const CONNECTIONS: usize = 100;
const SIZE: usize = 64;

/// Each server is loaded for 0.8 s per round.
const AMOUNT: Amount = Amount {
    lead: Duration::from_millis(1),
    slice: Duration::from_millis(10),
    slices: 80,
};

/// Warm-up and window of the client, which is measured as a whole.
const WARMUP: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_millis(400);

/// Name of a reference in the rows of a round, behind the name of its server.
const BARE: &str = "bare ";

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

    let servers: Vec<&str> = bare::SERVERS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| wanted(name))
        .collect();
    if !servers.is_empty() {
        let mut costs = Costs::default();
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds}");
            let mut all = Vec::new();
            for name in &servers {
                let command = launch::serve_command(name, "echo", server_cpu);
                all.push(((*name).to_string(), Server::start(command)?));
                all.push((format!("{BARE}{name}"), serve_bare(name)?));
            }
            if cfg!(target_os = "linux") {
                all.push((format!("{BARE}epoll"), serve_bare("epoll")?));
            }
            costs.measure(all, "echo")?;
        }
        let head = "| server | CPU per request, ours | reference | ratio | 95 % interval |";
        heading(rounds, head);
        for name in &servers {
            costs.print(name, &format!("{BARE}{name}"));
        }
        if cfg!(target_os = "linux") {
            println!("\n| server | CPU per request | bare epoll | ratio | 95 % interval |");
            println!("| --- | --- | --- | --- | --- |");
            for name in &servers {
                costs.print(&format!("{BARE}{name}"), &format!("{BARE}epoll"));
            }
            if servers.contains(&"mio") {
                costs.print("mio", &format!("{BARE}epoll"));
            }
        }
    }
    if wanted("client") {
        let line = [[b'x'; SIZE - 1].as_slice(), b"\n"].concat();
        let mut costs = Costs::default();
        for _ in 0..rounds * 4 {
            let server = serve_bare("mio")?;
            let ours = || drive_whole(&server, client_cpu);
            let reference = || {
                // The client loop runs on this thread. Children that are started later pin themselves to the server's
                // CPU.
                pin(&CpuList(vec![client_cpu]))?;
                let (replies, cpu) =
                    bare::client::drive(server.address, CONNECTIONS, &line, WARMUP, WINDOW)?;
                anyhow::Ok(cpu.as_secs_f64() / replies as f64)
            };
            let (ours, reference) = if fastrand::bool() {
                let ours = ours()?;
                (ours, reference()?)
            } else {
                let reference = reference()?;
                (ours()?, reference)
            };
            costs.add("client", ours);
            costs.add("bare client", reference);
        }
        println!("\n| client | CPU per request, ours | reference | ratio | 95 % interval |");
        println!("| --- | --- | --- | --- | --- |");
        costs.print("client", "bare client");
    }
    Ok(())
}

/// Prints the cost of models of this build relative to those of another build, with the default protocol.
fn compare_builds(program: &str, names: &[String], rounds: usize) -> anyhow::Result<()> {
    const PAIR: &str = "pair";
    let (_, cpu) = launch::cpus()?;
    let other = |name: &str| format!("other {name}");
    let mut costs = Costs::default();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let mut all = Vec::new();
        for name in names {
            let this_build = launch::serve_command(name, PAIR, cpu);
            let mut other_build = Command::new(program);
            other_build.args(this_build.get_args());
            all.push((name.clone(), Server::start(this_build)?));
            all.push((other(name), Server::start(other_build)?));
        }
        costs.measure(all, PAIR)?;
    }
    let head =
        format!("| server | CPU per request, this build | {program} | ratio | 95 % interval |");
    heading(rounds, &head);
    for name in names {
        costs.print(name, &other(name));
    }
    Ok(())
}

fn heading(rounds: usize, head: &str) {
    println!(
        "{CONNECTIONS} connections, lines of {SIZE} bytes, closed loop; {rounds} rounds, {} slices of {:?} each\n\n\
         {head}\n| --- | --- | --- | --- | --- |",
        AMOUNT.slices, AMOUNT.slice
    );
}

/// CPU time per request by server and round, in seconds.
#[derive(Default)]
struct Costs(Vec<(String, Vec<f64>)>);

impl Costs {
    fn add(&mut self, name: &str, cost: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, costs)) => costs.push(cost),
            None => self.0.push((name.to_string(), vec![cost])),
        }
    }

    fn of(&self, name: &str) -> &[f64] {
        let costs = self.0.iter().find(|(known, _)| known == name);
        costs.map_or(&[], |(_, costs)| costs)
    }

    /// Measures a round.
    fn measure(&mut self, servers: Vec<(String, Server)>, protocol: &str) -> anyhow::Result<()> {
        let client_cpu = launch::cpus()?.0;
        let loaded = servers
            .iter()
            .map(|(name, server)| {
                let idle = Duration::from_secs(1);
                Ok(Loaded {
                    process: server.pid(),
                    plan: plan(server, protocol, client_cpu, idle, idle)?,
                    spins: name.ends_with("spin"),
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        for ((name, _), measured) in servers.iter().zip(meter::round(loaded, AMOUNT)?) {
            self.add(name, measured.cpu_per_reply);
        }
        Ok(())
    }

    /// Prints the row of one server.
    fn print(&self, name: &str, reference: &str) {
        let (own, other) = (self.of(name), self.of(reference));
        let mean = |costs: &[f64]| match geometric(costs, 0.95) {
            Some(mean) => format!("{:.2} µs", mean.value * 1e6),
            None => costs
                .first()
                .map_or("n/a".to_string(), |cost| format!("{:.2} µs", cost * 1e6)),
        };
        let ratio = match ratio(own, other, 0.95) {
            Some(ratio) => format!("{:.3} | {:.3}–{:.3}", ratio.value, ratio.low, ratio.high),
            None => "n/a | n/a".to_string(),
        };
        println!("| {name} | {} | {} | {ratio} |", mean(own), mean(other));
    }
}

/// Starts a reference server, as a child process that runs this same program.
fn serve_bare(name: &str) -> anyhow::Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--bare", name]);
    Server::start(command)
}

/// Runs a reference server in that child process, until the process is ended.
fn bare_server(name: &str) -> anyhow::Result<()> {
    let mut all = bare::SERVERS.iter().copied();
    #[cfg(target_os = "linux")]
    let mut all = all.by_ref().chain([bare::EPOLL]);
    let (_, serve) = all
        .find(|(known, _)| *known == name)
        .context("no such reference")?;
    let (_, cpu) = launch::cpus()?;
    pin(&CpuList(vec![cpu]))?;
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 4096, Needs::NOTHING)?;
    println!("listening on {}", listener.local_addr()?);
    match serve(listener)? {}
}

/// Returns the load of a server: a closed loop with the client of this project, which checks every reply and records
/// every latency.
fn plan(
    server: &Server,
    protocol: &str,
    cpu: usize,
    warmup: Duration,
    duration: Duration,
) -> anyhow::Result<Plan> {
    Ok(Plan {
        address: server.address,
        protocol: Protocol::find(protocol).context("there is no such protocol")?,
        connections: CONNECTIONS,
        size: Some(SIZE),
        bulk: Default::default(),
        page: Default::default(),
        work: None,
        load: Load::Closed {
            think: Duration::ZERO,
            warmup,
            duration,
        },
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(5),
        seed: 1,
        threads: 1,
        cpus: vec![cpu],
    })
}

/// Drives a server without slices, and returns the client's CPU time per request, in seconds.
fn drive_whole(server: &Server, cpu: usize) -> anyhow::Result<f64> {
    let plan = plan(server, "echo", cpu, WARMUP, WINDOW)?;
    let report = client::drive(&plan, &(), &AtomicBool::new(false))?;
    if report.availability() != Some(1.0) {
        bail!(
            "not all requests were answered correctly: {} unanswered, {:?} {:?}",
            report.unanswered,
            report.errors,
            report.examples
        );
    }
    Ok(report.cpu.as_secs_f64() / report.completed as f64)
}
