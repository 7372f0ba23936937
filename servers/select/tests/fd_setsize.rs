//! What only a server with select(2) can get wrong: descriptors that its sets have no place for. In C, such a server is
//! not refused anything; it overwrites what lies behind the sets.

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

/// How long what must come may take.
const GUARD: Duration = Duration::from_secs(20);

/// Descriptors are numbered per process: one test at a time.
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

fn has_heard(client: &TcpStream) -> bool {
    client.set_nonblocking(true).expect("not non-blocking");
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false).expect("not blocking");
    !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The server in a process of its own: our clients have descriptors too. Killed when dropped.
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
        kill(pid, Signal::SIGTERM).expect("it is gone");
        let mut line = String::new();
        self.output.read_to_string(&mut line).expect("no line");
        assert!(self.child.wait().expect("no child").success());
        serde_json::from_str(&line).expect("no tally")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Nothing to kill after `stop`; after a failed check, nobody else would.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Those who fit are served, all others wait in the backlog, and are served as places become free.
#[test]
fn more_peers_than_numbers() {
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
    // They were accepted in the order in which they came; so much later, all who can be have been.
    for _ in 0..50 {
        ask(&served[0]);
    }
    let more = served[1000..].iter().take_while(|client| has_heard(client));
    let places = 1000 + more.count();
    assert!(places < FD_SETSIZE, "{places} served at a time");
    let mut waiting = served.split_off(places);
    assert!(!waiting.iter().any(has_heard), "served out of turn");
    for client in &served[1000..] {
        expect_reply(client);
    }

    // Each who leaves makes place for one.
    for client in served.split_off(places - waiting.len()) {
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

/// Opens files until all numbers that the sets have a place for are taken.
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

/// The numbers were free when the server started, and then somebody else took them: peers are refused, and nobody else
/// notices. It says so once.
#[test]
fn numbers_taken_by_others() {
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

/// All numbers were taken before: it can't even wait for its listener, and says why.
#[test]
fn no_number_for_the_listener() {
    let _alone = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let _files = take_all_numbers();
    let listener = listen("127.0.0.1:0".parse().unwrap(), 16, Needs::NOTHING).unwrap();
    let (_stopper, stop) = Stop::channel().unwrap();
    let echo = Protocol::find("echo").unwrap();
    let service = Service::of(echo, SessionOptions::default());
    let error = (server_select::MODELS[0].serve)(listener, service, Limits::default(), stop);
    let error = error.expect_err("it serves").to_string();
    assert!(error.contains("no descriptor from 1024"), "{error}");
}
