//! Who is measured or checked: a model of ours, or any server that a command starts, or one that runs already.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use contract::{Deviation, Guarantee, Model};
use protocol::{Bulk, Protocol};
use socket2::{Domain, Socket, Type};

use crate::child::{ChildServer, ServerExit};
use crate::placement::Placement;
use crate::resources::ProcessTree;

/// A line that makes a session panic, if its server was [told](TargetSettings::panic) to have such sessions.
pub(crate) const PANIC: &str = "samewire: panic";

/// Somebody else's server: how to start it.
///
/// Where its command has placeholders, they say what it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalServer {
    /// What tables call it.
    pub name: String,
    /// The program and its arguments, with placeholders, as they were given.
    command: String,
    /// The same, taken apart.
    words: Vec<String>,
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    // (A comma means nothing to a shell, and stands in most of these commands.)
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    // No word has a NUL, which is all that can't be quoted: the system gave none of them with one.
    shlex::try_quote(word).map_or_else(|_| word.to_string(), Cow::into_owned)
}

/// Where it is to listen. Every command has this one.
const PORT: &str = "{port}";

/// How `--with` is to be written.
const WITH: &str = "write 'NAME=COMMAND {port}', such as 'python=python3 server.py {port}'";

impl ExternalServer {
    /// Reads `NAME=COMMAND {port}`. The command is split as a shell would, and run without one.
    ///
    /// # Errors
    ///
    /// It is not written like that; the message shows how.
    pub fn parse(text: &str) -> Result<ExternalServer, String> {
        let (name, command) = text.split_once('=').ok_or(WITH)?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!(
                "a name has letters, digits, -, _ and . only; {WITH}"
            ));
        }
        let words =
            shlex::split(command).ok_or_else(|| format!("a quote is not closed; {WITH}"))?;
        if words.is_empty() {
            return Err(format!("there is no command; {WITH}"));
        }
        if !command.contains(PORT) {
            return Err(format!(
                "the command does not say where the server takes its port; {WITH}"
            ));
        }
        for word in &words {
            for (at, _) in word.match_indices('{') {
                let rest = &word[at..];
                let known = PLACEHOLDERS.iter().any(|known| rest.starts_with(known));
                let looks_like_one = rest[1..]
                    .split_once('}')
                    .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(good));
                if looks_like_one && !known {
                    return Err(format!(
                        "there is no such placeholder in \"{word}\"; there are {}",
                        PLACEHOLDERS.join(", ")
                    ));
                }
            }
        }
        Ok(ExternalServer {
            name: name.to_string(),
            command: command.to_string(),
            words,
        })
    }

    /// Each has a name of its own, and none of them one that a model has.
    ///
    /// # Errors
    ///
    /// Two have the same, and tables could not tell them apart.
    pub fn distinct(all: &[ExternalServer]) -> Result<(), String> {
        for (place, external) in all.iter().enumerate() {
            let name = &external.name;
            if crate::registry::models().any(|model| model.name == name) {
                return Err(format!(
                    "--with {name}=…: there is a model of that name; choose another"
                ));
            }
            if all[..place].iter().any(|other| other.name == *name) {
                return Err(format!(
                    "--with {name}=… is there twice; give each a name of its own"
                ));
            }
        }
        Ok(())
    }

    /// All of it, as it was given.
    pub fn text(&self) -> String {
        format!("{}={}", self.name, self.command)
    }

    /// Its command, as it was given.
    pub fn command(&self) -> &str {
        &self.command
    }

    fn takes(&self, placeholder: &str) -> bool {
        self.words.iter().any(|word| word.contains(placeholder))
    }

    /// The command with its placeholders filled in.
    fn filled(&self, settings: &TargetSettings, port: u16) -> Vec<String> {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        let usual = TargetSettings::default();
        let or_usual = |time: Option<Duration>, usual: Duration| seconds(time.unwrap_or(usual));
        let fill = |word: &String| {
            word.replace(PORT, &port.to_string())
                .replace(
                    Need::IdleTimeout.placeholder(),
                    &or_usual(settings.idle_timeout, usual.idle_timeout()),
                )
                .replace(
                    Need::Drain.placeholder(),
                    &or_usual(settings.drain, usual.drain()),
                )
                .replace(
                    Need::MaxConnections.placeholder(),
                    &settings.max_connections().to_string(),
                )
                .replace(Need::Panic.placeholder(), PANIC)
        };
        self.words.iter().map(fill).collect()
    }

    /// Starts it, and waits until it listens. To be called on a thread that lives longer than the server.
    pub(crate) fn start(
        &self,
        settings: &TargetSettings,
        placement: &Placement,
    ) -> anyhow::Result<ChildServer> {
        let port = match settings.port {
            Some(port) => port,
            None => free_port()?,
        };
        let words = self.filled(settings, port);
        let mut command = Command::new(crate::child::this_program()?);
        command
            .arg("exec")
            .args(["--die-with-parent", &std::process::id().to_string()]);
        if !placement.server.is_empty() {
            command.args(["--cpus", &list(&placement.server)]);
        }
        command.arg("--").args(&words);
        ChildServer::start_external(command, port)
            .with_context(|| format!("{}: {}", self.name, words.join(" ")))
    }
}

/// What a server can be told, beside where to listen. `None`: what it does if nobody says anything.
#[derive(Debug, Clone, Default)]
pub(crate) struct TargetSettings {
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) drain: Option<Duration>,
    pub(crate) max_connections: Option<usize>,
    /// Only of our models; as many as the [placement](Placement::workers_of) says otherwise.
    pub(crate) workers: Option<usize>,
    /// Only of our models: this is waited for before each reply.
    pub(crate) wait: Option<Duration>,
    /// Whether a line of [`PANIC`] makes a session panic.
    pub(crate) panic: bool,
    /// Where to listen; a free port otherwise.
    pub(crate) port: Option<u16>,
}

impl TargetSettings {
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(Duration::from_secs(30))
    }

    pub(crate) fn drain(&self) -> Duration {
        self.drain.unwrap_or(Duration::from_secs(2))
    }

    pub(crate) fn max_connections(&self) -> usize {
        self.max_connections.unwrap_or(10_000)
    }
}

/// What a check needs a server to do beside answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To be told when idle peers are closed.
    IdleTimeout,
    /// To be told how long replies under way may take after a stop.
    Drain,
    /// To be told how many to serve at a time.
    MaxConnections,
    /// To have sessions that panic when they are told to.
    Panic,
    /// To wait before replies.
    Wait,
    /// To be a process of ours that can be looked at, limited and stopped.
    Process,
}

/// Those that a command may have.
const PLACEHOLDERS: &[&str] = &[
    PORT,
    Need::IdleTimeout.placeholder(),
    Need::Drain.placeholder(),
    Need::MaxConnections.placeholder(),
    Need::Panic.placeholder(),
];

impl Need {
    /// What stands for it in a command.
    const fn placeholder(self) -> &'static str {
        match self {
            Need::IdleTimeout => "{idle-timeout}",
            Need::Drain => "{drain}",
            Need::MaxConnections => "{max-connections}",
            Need::Panic => "{panic}",
            Need::Wait | Need::Process => PORT,
        }
    }
}

/// Who is checked.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Model(&'static Model),
    ExternalServer(ExternalServer),
    At(SocketAddr),
}

impl Target {
    pub(crate) fn name(&self) -> String {
        match self {
            Target::Model(model) => model.name.to_string(),
            Target::ExternalServer(external) => external.name.clone(),
            Target::At(address) => address.to_string(),
        }
    }

    pub(crate) fn model(&self) -> Option<&'static Model> {
        match self {
            Target::Model(model) => Some(model),
            _ => None,
        }
    }

    /// Whether its peers may be served by processes that it forks. Whoever was written by somebody else may.
    pub(crate) fn may_fork(&self) -> bool {
        self.model().is_none_or(|model| model.needs.own_process)
    }

    /// What it does instead of keeping a guarantee, if it says so itself.
    pub(crate) fn deviation(&self, guarantee: Guarantee) -> Option<&'static Deviation> {
        let mut deviations = self.model()?.deviations.iter();
        deviations.find(|deviation| deviation.guarantee == guarantee)
    }

    /// How many peers it serves at a time under these settings, by design.
    pub(crate) fn places(&self, settings: &TargetSettings, placement: &Placement) -> usize {
        let limit = settings.max_connections();
        let Some(model) = self.model() else {
            return limit;
        };
        let workers = settings.workers;
        let workers = workers.unwrap_or_else(|| placement.workers_of(model));
        match model.capacity {
            contract::Capacity::Workers => limit.min(workers),
            contract::Capacity::One => 1,
            _ => limit,
        }
    }

    /// Why it can't do that, if it can't.
    pub(crate) fn lacks(&self, need: Need) -> Option<String> {
        match (self, need) {
            (Target::Model(_), _) | (Target::ExternalServer(_), Need::Process) => None,
            (Target::ExternalServer(_), Need::Wait) => {
                Some("only our own models can be told to work before a reply".to_string())
            }
            (Target::ExternalServer(external), need) => (!external.takes(need.placeholder()))
                .then(|| format!("its command has no {}", need.placeholder())),
            (Target::At(_), _) => Some(
                "it was started by somebody else, and can be told nothing: use --with".to_string(),
            ),
        }
    }

    /// Starts it with these settings, and waits until it listens. To be called on a thread that lives longer than the
    /// server.
    pub(crate) fn start(
        &self,
        protocol: &'static Protocol,
        settings: &TargetSettings,
        placement: &Placement,
    ) -> anyhow::Result<RunningTarget> {
        let server = match self {
            Target::Model(model) => {
                ChildServer::start(&arguments(model, protocol, settings, placement))?
            }
            Target::ExternalServer(external) => external.start(settings, placement)?,
            Target::At(address) => {
                // Once, before the peers come: they would all say the same.
                TcpStream::connect_timeout(address, Duration::from_secs(5))
                    .with_context(|| format!("nobody answers on {address}"))?;
                return Ok(RunningTarget {
                    address: *address,
                    server: None,
                    forks: false,
                    panics: false,
                });
            }
        };
        Ok(RunningTarget {
            address: server.address,
            server: Some(server),
            panics: settings.panic,
            forks: self.may_fork(),
        })
    }
}

/// What a model of ours is told.
fn arguments(
    model: &Model,
    protocol: &Protocol,
    settings: &TargetSettings,
    placement: &Placement,
) -> Vec<String> {
    let workers = settings.workers;
    let workers = workers.unwrap_or_else(|| placement.workers_of(model));
    let port = settings.port.unwrap_or(0);
    let time = |time: Duration| format!("{}ms", time.as_millis());
    let mut arguments = vec![model.name.to_string(), "--json".to_string()];
    let mut tell = |option: &str, value: String| {
        arguments.push(option.to_string());
        arguments.push(value);
    };
    tell("--listen", format!("127.0.0.1:{port}"));
    tell("--protocol", protocol.name.to_string());
    tell("--idle-timeout", time(settings.idle_timeout()));
    tell("--drain", time(settings.drain()));
    tell("--max-connections", settings.max_connections().to_string());
    tell("--workers", workers.to_string());
    if protocol.name == "bulk" {
        let Bulk { size, count } = crate::check::BULK;
        tell("--bulk-size", size.to_string());
        tell("--bulk-count", count.to_string());
    }
    if let Some(wait) = settings.wait {
        tell("--work", format!("wait:{}", time(wait)));
    }
    if settings.panic {
        tell("--panic-on", PANIC.to_string());
    }
    if !placement.server.is_empty() {
        tell("--cpus", list(&placement.server));
    }
    arguments
}

/// As --cpus takes them.
pub(crate) fn list(cpus: &[usize]) -> String {
    let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
    cpus.join(",")
}

/// A server that was started, or that was there.
pub(crate) struct RunningTarget {
    pub(crate) address: SocketAddr,
    server: Option<ChildServer>,
    forks: bool,
    /// Its sessions panic when they are told to.
    pub(crate) panics: bool,
}

impl RunningTarget {
    /// Its processes; `None` if somebody else started it.
    pub(crate) fn tree(&self) -> Option<ProcessTree> {
        let server = self.server.as_ref()?;
        Some(ProcessTree::new(server.pid(), self.forks))
    }

    /// The process; `None` if somebody else started it.
    pub(crate) fn server(&self) -> Option<&ChildServer> {
        self.server.as_ref()
    }

    /// The process, to be ended by hand.
    pub(crate) fn into_server(self) -> Option<ChildServer> {
        self.server
    }

    /// Stops it, and takes its account; `None` if somebody else started it, who may stop it too.
    pub(crate) fn stop(self) -> Option<ServerExit> {
        self.server.map(ChildServer::stop)
    }
}

/// A port that nobody has now, and that the kernel gives to nobody who does not ask for it: one external of the range of the
/// ports that it chooses itself. So a client that connects meanwhile cannot have it by accident.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    const TRIES: usize = 100;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ports = external(&range.unwrap_or_default());
    for _ in 0..TRIES {
        let port = fastrand::u16(ports.clone());
        if is_free(port) {
            return Ok(port);
        }
    }
    let Range { start, end } = ports;
    bail!("no free port from {start} to {end} was found in {TRIES} tries")
}

/// Ports external of the range that the kernel chooses from, as it says it: below if there are enough of them, or above.
/// If there are too few on either side, where they usually are.
fn external(range: &str) -> Range<u16> {
    const USUAL: Range<u16> = 10_000..32_000;
    const ENOUGH: u16 = 1000;
    let mut ends = range
        .split_ascii_whitespace()
        .map_while(|end| end.parse().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else {
        return USUAL;
    };
    let below = USUAL.start..USUAL.end.min(low);
    let above = high..u16::MAX;
    if below.end >= below.start + ENOUGH {
        below
    } else if above.end - above.start > ENOUGH {
        above.start + 1..above.end
    } else {
        USUAL
    }
}

/// Also for a server that does not set SO_REUSEADDR, as the standard library does: it can't have a port on which
/// connections have ended a minute ago (TIME_WAIT).
fn is_free(port: u16) -> bool {
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None)
        .and_then(|socket| socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()));
    bound.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_filled_in() {
        let external = ExternalServer::parse(
            "py=python3 'my server.py' --port={port} --idle {idle-timeout} {}",
        )
        .unwrap();
        assert_eq!(external.name, "py");
        let settings = TargetSettings {
            idle_timeout: Some(Duration::from_millis(500)),
            ..TargetSettings::default()
        };
        let words = external.filled(&settings, 7000);
        assert_eq!(
            words,
            [
                "python3",
                "my server.py",
                "--port=7000",
                "--idle",
                "0.5",
                "{}"
            ]
        );
        let target = Target::ExternalServer(external);
        assert_eq!(target.lacks(Need::IdleTimeout), None);
        assert!(target.lacks(Need::Drain).unwrap().contains("{drain}"));
        assert!(target.lacks(Need::Wait).is_some());
    }

    #[test]
    fn bad_commands_are_refused_and_say_how_to_write_them() {
        for bad in [
            "",
            "name",
            "=x {port}",
            "a b=x {port}",
            "a=",
            "a=x",
            "a=x 'y {port}",
            "a=x {port} {idle_timeout}",
        ] {
            let why = ExternalServer::parse(bad).unwrap_err();
            assert!(why.contains("{port}"), "{bad}: {why}");
        }
    }

    #[test]
    fn ports_are_not_those_that_the_kernel_chooses() {
        for (range, ports) in [
            ("32768\t60999\n", 10_000..32_000),
            ("20000 60999", 10_000..20_000),
            ("1024 60999", 61_000..65_535),
            ("1024 65535", 10_000..32_000),
            ("", 10_000..32_000),
        ] {
            assert_eq!(external(range), ports, "{range}");
        }
    }

    #[test]
    fn a_port_in_time_wait_is_not_free() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!is_free(address.port()));
        let mut client = std::net::TcpStream::connect(address).unwrap();
        // Who ends first keeps the port for a minute.
        drop(listener.accept().unwrap());
        assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        drop((client, listener));
        assert!(!is_free(address.port()));
    }

    #[test]
    fn each_has_a_name_of_its_own() {
        let all = |names: &[&str]| -> Vec<ExternalServer> {
            let named = |name: &&str| ExternalServer::parse(&format!("{name}=x {{port}}")).unwrap();
            names.iter().map(named).collect()
        };
        assert_eq!(ExternalServer::distinct(&all(&["one", "two"])), Ok(()));
        for (names, part) in [(&["one", "mio"], "model"), (&["one", "one"], "twice")] {
            let why = ExternalServer::distinct(&all(names)).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn what_is_to_be_typed_again_is_read_again() {
        let external = ExternalServer::parse("py=python3 'my server.py' it\\'s {port}").unwrap();
        let words = shlex::split(&quoted(&external.text())).unwrap();
        assert_eq!(ExternalServer::parse(&words[0]), Ok(external));
    }
}
