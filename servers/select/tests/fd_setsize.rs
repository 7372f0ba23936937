//! Tests of a mistake that only a server with select(2) can make: descriptors that do not fit into its sets. In C, such
//! a server gets no error; it overwrites the memory behind the sets.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use contract::{Limits, Needs, Service, Stop, Tally, listen, raise_descriptor_limit};
use nix::sys::select::FD_SETSIZE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::{Protocol, SessionOptions};

/// Longest time that a test waits for an expected event before it fails.
const GUARD: Duration = Duration::from_secs(20);

/// Lets one test run at a time, because descriptors are numbered per process.
static NUMBERS: Mutex<()> = Mutex::new(());

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("no connection");
    client.set_read_timeout(Some(GUARD)).expect("no time-out");
    client
}

fn ask(mut client: &TcpStream) {
    client.write_all(b"x\n").expect("not taken");
    expect_reply(client);
}

fn expect_reply(mut client: &TcpStream) {
    let mut reply = [0; 2];
    client.read_exact(&mut reply).expect("no reply");
    assert_eq!(&reply, b"x\n");
}

fn has_input(client: &TcpStream) -> bool {
    client.set_nonblocking(true).expect("not non-blocking");
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false).expect("not blocking");
    !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Server in a process of its own, because the clients of the test need descriptors, too. Killed when this is dropped.
struct ServerProcess {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl ServerProcess {
    fn start() -> ServerProcess {
        let mut child = Command::new(env!("CARGO_BIN_EXE_server-select"))
            .args(["--listen", "127.0.0.1:0", "--protocol", "echo", "--json"])
            .args(["--max-connections", "10000", "--idle-timeout", "1h"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("no server process");
        let mut output = BufReader::new(child.stdout.take().expect("no output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("no line");
        let address = line.strip_prefix("listening on ").expect("another line");
        let address = address.trim_end().parse().expect("no address");
        ServerProcess {
            child,
            output,
            address,
        }
    }

    fn stop(mut self) -> Tally {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process number"));
        kill(pid, Signal::SIGTERM).expect("the server process is gone");
        let mut line = String::new();
        self.output.read_to_string(&mut line).expect("no line");
        assert!(self.child.wait().expect("no child").success());
        serde_json::from_str(&line).expect("no tally")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // After `stop` there is nothing to kill; after a failed check this ends the process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Peers whose descriptors fit into the sets are served. All others wait in the backlog, and are served as descriptors
/// become free.
#[test]
fn peers_beyond_fd_setsize_wait_in_the_backlog() {
    const CLIENTS: usize = 1100;
    let _alone = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let server = ServerProcess::start();
    let mut served: Vec<_> = (0..CLIENTS).map(|_| connect(server.address)).collect();
    for mut client in &served {
        client.write_all(b"x\n").expect("not taken");
    }
    for client in &served[..1000] {
        expect_reply(client);
    }
    // Peers are accepted in the order in which they connected. After 50 more requests every peer that fits is accepted.
    for _ in 0..50 {
        ask(&served[0]);
    }
    let more = served[1000..].iter().take_while(|client| has_input(client));
    let slots = 1000 + more.count();
    assert!(slots < FD_SETSIZE, "{slots} peers are served at a time");
    let mut waiting = served.split_off(slots);
    assert!(
        !waiting.iter().any(has_input),
        "a peer was served before an earlier one"
    );
    for client in &served[1000..] {
        expect_reply(client);
    }

    // Each peer that leaves makes room for one waiting peer.
    for client in served.split_off(slots - waiting.len()) {
        client.shutdown(Shutdown::Write).expect("not connected");
        assert_eq!((&client).read(&mut [0]).expect("no end"), 0);
        let next = waiting.remove(0);
        expect_reply(&next);
        served.push(next);
    }
    for client in &served {
        ask(client);
    }
    let all = Tally {
        accepted: CLIENTS as u64,
        served: CLIENTS as u64,
        ..Tally::default()
    };
    assert_eq!(server.stop(), all);
}

/// Opens files until all descriptor numbers that fit into the sets are taken.
fn take_all_numbers() -> Vec<File> {
    let mut files = Vec::new();
    loop {
        let file = File::open("/dev/null").expect("no descriptor");
        let number = usize::try_from(file.as_raw_fd()).expect("a number");
        files.push(file);
        if number >= FD_SETSIZE {
            return files;
        }
    }
}

/// The descriptor numbers were free when the server started, and then another part of the process took them. New peers
/// are refused, earlier peers are served, and the server logs one warning.
#[test]
fn peers_are_refused_when_other_files_take_the_numbers() {
    const REFUSED: u64 = 3;
    let _alone = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let listener = listen("127.0.0.1:0".parse().unwrap(), 16, Needs::NOTHING).unwrap();
    let address = listener.local_addr().unwrap();
    let (stopper, stop) = Stop::channel().unwrap();
    let (mut log, writer) = io::pipe().unwrap();
    let server = thread::spawn(move || {
        let logged = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_writer(Mutex::new(writer));
        tracing::subscriber::with_default(logged.finish(), || {
            let echo = Protocol::find("echo").unwrap();
            let service = Service::of(echo, SessionOptions::default());
            (server_select::MODELS[0].serve)(listener, service, Limits::default(), stop)
        })
    });
    let early = connect(address);
    ask(&early);

    let files = take_all_numbers();
    for _ in 0..REFUSED {
        let refused = connect(address);
        assert_eq!((&refused).read(&mut [0]).expect("no end"), 0);
        ask(&early);
    }
    drop(files);
    ask(&connect(address));

    drop(stopper);
    let tally = server.join().unwrap().unwrap();
    let expected = Tally {
        accepted: 2 + REFUSED,
        served: 2,
        refused: REFUSED,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    assert_eq!(lines.matches("refused").count(), 1, "{lines}");
}

/// All descriptor numbers were taken before the start. The server can't wait for its listener, and its error gives the
/// reason.
#[test]
fn listener_beyond_fd_setsize_is_an_error() {
    let _alone = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let _files = take_all_numbers();
    let listener = listen("127.0.0.1:0".parse().unwrap(), 16, Needs::NOTHING).unwrap();
    let (_stopper, stop) = Stop::channel().unwrap();
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let error = (server_select::MODELS[0].serve)(listener, service, Limits::default(), stop);
    let error = error
        .expect_err("the server started without a usable listener")
        .to_string();
    assert!(error.contains("only descriptors below 1024"), "{error}");
}
