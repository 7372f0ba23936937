//! Models and nginx, on one CPU each, serving the same files: `cargo bench --bench nginx -- mio threads`.
//!
//! nginx has to be installed beforehand: the Debian package is `nginx-light`. It gets one worker, sendfile(2), its cache
//! of open files, no access log, and connections that it never closes by itself. The models get `--root` with the same
//! directory. Each round requests the same file from all servers, in random order, with the same client on the other CPU;
//! the ratio to nginx is computed within the round.

mod launch;
mod meter;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Load, Plan};
use contract::{CpuList, pin};
use launch::Server;
use meter::{Meter, median};
use protocol::Protocol;
use protocol::http::Page;

/// The files: name, number of repetitions of `Hello World!\n`, and number of connections that request it at a time. The
/// largest has fewer connections: with a hundred, each reply would take a second, and the window would contain too few
/// complete replies to show a difference of one percent.
const FILES: [(&str, usize, usize); 3] = [
    ("13b", 1, 100),
    ("13k", 1024, 100),
    ("13m", 1024 * 1024, 16),
];
const WARMUP: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_millis(2000);

/// Figures of one server in one round.
struct Figures {
    replies_per_s: f64,
    /// CPU time of the server, in seconds.
    cpu_per_reply: f64,
    /// CPU time of the client as a share of the window, from 0 to 1.
    client_busy: f64,
}

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
    for (name, times, _) in FILES {
        fs::write(files.join(name), "Hello World!\n".repeat(times))?;
    }
    // If the user root starts nginx, its worker runs as another user, which must be able to read this directory.
    make_readable(root.path())?;

    for (name, _, connections) in FILES {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let page = Arc::new(Page {
            path: format!("/files/{name}"),
            ..Page::default()
        });
        let mut servers = vec![("nginx".to_string(), Vec::new())];
        servers.extend(models.iter().map(|model| (model.clone(), Vec::new())));
        for _ in 0..rounds {
            let mut order: Vec<usize> = (0..servers.len()).collect();
            fastrand::shuffle(&mut order);
            for index in order {
                let (server, seen) = &mut servers[index];
                let running = match server.as_str() {
                    "nginx" => start_nginx(root.path(), server_cpu, client_cpu)?,
                    model => start_ours(model, &files, server_cpu)?,
                };
                let figures = drive(&running, &page, connections, client_cpu);
                seen.push(figures.with_context(|| format!("{server}, {name}"))?);
            }
        }
        print(name, connections, rounds, &servers);
    }
    Ok(())
}

/// Prints the table of one file.
fn print(file: &str, connections: usize, rounds: usize, servers: &[(String, Vec<Figures>)]) {
    println!(
        "\n/files/{file}, {connections} connections, {rounds} rounds of {WINDOW:?}\n\n\
         | server | replies/s | ratio to nginx: median | lowest..highest | CPU per reply | ratio: median | \
         lowest..highest | client busy |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    let nginx = &servers[0].1;
    for (server, seen) in servers {
        let all = |of: fn(&Figures) -> f64| seen.iter().map(of).collect::<Vec<f64>>();
        let ratios = |of: fn(&Figures) -> f64| {
            let pairs = seen.iter().zip(nginx);
            let mut ratios: Vec<f64> = pairs.map(|(ours, nginx)| of(ours) / of(nginx)).collect();
            let middle = median(&mut ratios);
            let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
            format!("{middle:.3} | {lowest:.3}..{highest:.3}")
        };
        println!(
            "| {server} | {:.0} | {} | {:.2} µs | {} | {:.0} % |",
            median(&mut all(|one| one.replies_per_s)),
            ratios(|one| one.replies_per_s),
            median(&mut all(|one| one.cpu_per_reply)) * 1e6,
            ratios(|one| one.cpu_per_reply),
            median(&mut all(|one| one.client_busy)) * 100.0,
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
            events {{ worker_connections 4096; }}
            http {{
                access_log off; sendfile on; tcp_nodelay on;
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

/// Drives a server with requests for one file, and returns the figures.
fn drive(
    server: &Server,
    page: &Arc<Page>,
    connections: usize,
    cpu: usize,
) -> anyhow::Result<Figures> {
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
            warmup: WARMUP,
            duration: WINDOW,
        },
        connect_first: true,
        ramp: Duration::ZERO,
        timeout: Duration::from_secs(10),
        seed: 1,
        threads: 1,
        cpus: vec![cpu],
    };
    let meter = Meter::new(server.pid());
    let report = client::drive(&plan, &meter, &AtomicBool::new(false))?;
    if report.errors.total() > 0 || report.completed == 0 {
        bail!(
            "not all requests were answered correctly: {:?} {:?}",
            report.errors,
            report.examples
        );
    }
    let replies = report.completed as f64;
    Ok(Figures {
        replies_per_s: report.throughput(),
        cpu_per_reply: meter.used()?.as_secs_f64() / replies,
        client_busy: report.cpu.as_secs_f64() / report.window.as_secs_f64(),
    })
}
