//! Models and nginx, on one CPU each, serving the same files: `cargo bench --bench nginx -- mio threads`.
//!
//! nginx has to be installed beforehand: the Debian package is `nginx-light`. It gets one worker, sendfile(2), its cache
//! of open files, no access log, and connections that it never closes by itself; tcp_nopush, so that head and file leave
//! together, and multi_accept. The models get `--root` with the same directory. In each round all servers are fresh
//! processes, and the same client on the other CPU requests the same file from one after the other, for some milliseconds
//! each, again and again, in random order; the ratio to nginx is computed within the round.

mod launch;
mod meter;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Load, Plan};
use contract::{CpuList, pin};
use launch::Server;
use meter::{Amount, Loaded, Measured};
use protocol::Protocol;
use protocol::http::Page;
use samewire::statistics::interval::{geometric, ratio};

/// The files: name, number of repetitions of `Hello World!\n`, number of connections that request it at a time, and the
/// slices. The largest has fewer connections and longer slices: with a hundred connections, each reply would take a second.
const FILES: [(&str, usize, usize, Amount); 3] = [
    ("13b", 1, 100, SMALL),
    ("13k", 1024, 100, SMALL),
    (
        "13m",
        1024 * 1024,
        16,
        Amount {
            lead: Duration::from_millis(100),
            slice: Duration::from_millis(500),
            slices: 4,
        },
    ),
];

const SMALL: Amount = Amount {
    lead: Duration::from_millis(2),
    slice: Duration::from_millis(20),
    slices: 40,
};

fn main() -> anyhow::Result<()> {
    let mut models = Vec::new();
    let mut rounds = 9;
    let mut only = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo passes this to every bench; cargo test builds and runs benches too, but this one has nothing to test.
            "--bench" => {}
            "--test" => return Ok(()),
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                rounds = number
                    .filter(|number| *number > 0)
                    .context("--rounds needs a number, such as 9")?;
            }
            "--file" => {
                let name = arguments.next().context("--file needs 13b, 13k or 13m")?;
                if !FILES.iter().any(|(file, ..)| *file == name) {
                    bail!("there is no file {name}; the files are 13b, 13k and 13m");
                }
                only = Some(name);
            }
            name => models.push(name.to_string()),
        }
    }
    if models.is_empty() {
        models.push("mio".to_string());
    }
    if Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        println!(
            "nginx is not installed (on Debian: apt install nginx-light); nothing is compared"
        );
        return Ok(());
    }
    let (client_cpu, server_cpu) = launch::cpus()?;
    if client_cpu == server_cpu {
        println!("client and server share one CPU, so the figures are not reliable");
    }
    let root = tempfile::tempdir()?;
    let files = root.path().join("files");
    fs::create_dir(&files)?;
    for (name, times, ..) in FILES {
        fs::write(files.join(name), "Hello World!\n".repeat(times))?;
    }
    // If the user root starts nginx, its worker runs as another user, which must be able to read this directory.
    make_readable(root.path())?;

    for (name, _, connections, amount) in FILES {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let page = Arc::new(Page {
            path: format!("/files/{name}"),
            ..Page::default()
        });
        let mut servers = vec![("nginx".to_string(), Vec::new())];
        servers.extend(models.iter().map(|model| (model.clone(), Vec::new())));
        for round in 1..=rounds {
            eprintln!("{name}, round {round} of {rounds}");
            let mut running = Vec::new();
            for (server, _) in &servers {
                running.push(match server.as_str() {
                    "nginx" => start_nginx(root.path(), server_cpu, client_cpu)?,
                    model => start_ours(model, &files, server_cpu)?,
                });
            }
            let loaded = running
                .iter()
                .map(|server| load(server, &page, connections, client_cpu))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let measured = meter::round(loaded, amount).with_context(|| format!("file {name}"))?;
            for ((_, seen), measured) in servers.iter_mut().zip(measured) {
                seen.push(measured);
            }
        }
        print(name, connections, rounds, amount, &servers);
    }
    Ok(())
}

/// Prints the table of one file.
fn print(
    file: &str,
    connections: usize,
    rounds: usize,
    amount: Amount,
    servers: &[(String, Vec<Measured>)],
) {
    println!(
        "\n/files/{file}, {connections} connections, {rounds} rounds, {} slices of {:?} each\n\n\
         | server | replies/s | ratio to nginx | 95 % interval | CPU per reply | ratio to nginx | 95 % interval | client \
         busy |\n| --- | --- | --- | --- | --- | --- | --- | --- |",
        amount.slices, amount.slice
    );
    let values =
        |seen: &[Measured], of: fn(&Measured) -> f64| seen.iter().map(of).collect::<Vec<f64>>();
    let nginx = &servers[0].1;
    for (server, seen) in servers {
        let mean = |of: fn(&Measured) -> f64| {
            geometric(&values(seen, of), 0.95).map_or(f64::NAN, |mean| mean.value)
        };
        let ratio =
            |of: fn(&Measured) -> f64| match ratio(&values(seen, of), &values(nginx, of), 0.95) {
                Some(ratio) => format!("{:.3} | {:.3}–{:.3}", ratio.value, ratio.low, ratio.high),
                None => "n/a | n/a".to_string(),
            };
        let rate = |one: &Measured| one.report.throughput();
        let busy = |one: &Measured| one.report.cpu.as_secs_f64() / one.report.window.as_secs_f64();
        println!(
            "| {server} | {:.0} | {} | {:.2} µs | {} | {:.0} % |",
            mean(rate),
            ratio(rate),
            mean(|one| one.cpu_per_reply) * 1e6,
            ratio(|one| one.cpu_per_reply),
            mean(busy) * 100.0,
        );
    }
}

/// Starts a model that serves the directory `files`.
fn start_ours(model: &str, files: &Path, cpu: usize) -> anyhow::Result<Server> {
    let mut command = launch::serve_command(model, "http", cpu);
    command.arg("--root").arg(files);
    Server::start(command)
}

/// Starts nginx with one worker on `cpu`, and waits until it listens. This process runs on the CPU `back_to` afterwards.
fn start_nginx(root: &Path, cpu: usize, back_to: usize) -> anyhow::Result<Server> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let path = root.display();
    let configuration = root.join("nginx.conf");
    fs::write(
        &configuration,
        format!(
            "daemon off; worker_processes 1; pid {path}/nginx.pid; error_log {path}/error.log;
            events {{ worker_connections 4096; multi_accept on; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
                open_file_cache max=1000 inactive=1h; open_file_cache_valid 1h;
                keepalive_timeout 1h; keepalive_requests 1000000000;
                client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};
                uwsgi_temp_path {path}; scgi_temp_path {path};
                server {{ listen {address} backlog=4096; root {path}; }}
            }}\n"
        ),
    )?;
    // A child process inherits the CPUs of its parent.
    pin(&CpuList(vec![cpu]))?;
    let mut command = Command::new("nginx");
    command
        .arg("-c")
        .arg(&configuration)
        .arg("-e")
        .arg("stderr");
    let started = Server::start_at(command, address);
    pin(&CpuList(vec![back_to]))?;
    let server = started?;
    let until = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            bail!("nginx does not listen on {address}; its messages are above");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(server)
}

/// Lets every user read the directory.
fn make_readable(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(
        directory,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Returns the load of a server: requests for one file.
fn load(
    server: &Server,
    page: &Arc<Page>,
    connections: usize,
    cpu: usize,
) -> anyhow::Result<Loaded> {
    let time = Duration::from_secs(1);
    let plan = Plan {
        address: server.address,
        protocol: Protocol::find("http").context("there is no such protocol")?,
        connections,
        size: None,
        bulk: Default::default(),
        page: Arc::clone(page),
        work: None,
        load: Load::Closed {
            think: Duration::ZERO,
            warmup: time,
            duration: time,
        },
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(10),
        seed: 1,
        threads: 1,
        cpus: vec![cpu],
    };
    Ok(Loaded {
        process: server.pid(),
        plan,
        spins: false,
    })
}
