//! Targets of measurements and checks: a model of ours, a server that a command starts, or a server that runs already.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use contract::{Deviation, Guarantee, Model};
use protocol::{Bulk, Protocol};
use socket2::{Domain, Socket, Type};

use crate::child::{ChildServer, ServerExit};
use crate::placement::Placement;
use crate::resources::ProcessTree;

/// Line that makes a session panic, if the server was started with [this setting](TargetSettings::panic).
pub(crate) const PANIC: &str = "samewire: panic";

/// External server: a name, and the command that starts it.
///
/// The placeholders in the command show which settings the server can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalServer {
    /// Name of the server in tables.
    pub name: String,
    /// Program and arguments, with placeholders, as they were given.
    command: String,
    /// The command, split into words.
    words: Vec<String>,
}

/// Quotes a word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    // A comma has no meaning to a shell, and is in most of these commands.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    // Only a NUL can't be quoted, and the system passes no argument with a NUL.
    shlex::try_quote(word).map_or_else(|_| word.to_string(), Cow::into_owned)
}

/// Placeholder of the port on which the server must listen. Every command needs it.
const PORT: &str = "{port}";

/// Instruction how to write `--with`, for error messages.
const WITH: &str = "write 'NAME=COMMAND {port}', such as 'python=python3 server.py {port}'";

impl ExternalServer {
    /// Parses `NAME=COMMAND {port}`. The command is split as a shell would split it, and run without a shell.
    ///
    /// # Errors
    ///
    /// Fails if the text has another form; the message shows the right form.
    pub fn parse(text: &str) -> Result<ExternalServer, String> {
        let (name, command) = text.split_once('=').ok_or(WITH)?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!(
                "a name may contain only letters, digits, dots, - and _; {WITH}"
            ));
        }
        let words =
            shlex::split(command).ok_or_else(|| format!("a quote is not closed; {WITH}"))?;
        if words.is_empty() {
            return Err(format!("there is no command; {WITH}"));
        }
        if !command.contains(PORT) {
            return Err(format!(
                "the command has no {{port}}, so the server does not learn its port; {WITH}"
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
                        "unknown placeholder in \"{word}\"; the placeholders are {}",
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

    /// Checks that each server has a name of its own, and that no model has this name.
    ///
    /// # Errors
    ///
    /// Fails if a name is used twice, because tables could not distinguish the servers.
    pub fn distinct(all: &[ExternalServer]) -> Result<(), String> {
        for (place, external) in all.iter().enumerate() {
            let name = &external.name;
            if crate::registry::models().any(|model| model.name == name) {
                return Err(format!(
                    "--with {name}=…: there is a model of that name; choose another name"
                ));
            }
            if all[..place].iter().any(|other| other.name == *name) {
                return Err(format!(
                    "--with {name}=… is given twice; give each server a name of its own"
                ));
            }
        }
        Ok(())
    }

    /// Returns `NAME=COMMAND`, as it was given.
    pub fn text(&self) -> String {
        format!("{}={}", self.name, self.command)
    }

    /// Returns the command, as it was given.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Returns whether the command has this placeholder.
    fn takes(&self, placeholder: &str) -> bool {
        self.words.iter().any(|word| word.contains(placeholder))
    }

    /// Returns the words of the command with all placeholders replaced.
    fn filled(&self, settings: &TargetSettings, port: u16) -> Vec<String> {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        let defaults = TargetSettings::default();
        let or_default =
            |time: Option<Duration>, defaults: Duration| seconds(time.unwrap_or(defaults));
        let fill = |word: &String| {
            word.replace(PORT, &port.to_string())
                .replace(
                    Need::IdleTimeout.placeholder(),
                    &or_default(settings.idle_timeout, defaults.idle_timeout()),
                )
                .replace(
                    Need::Drain.placeholder(),
                    &or_default(settings.drain, defaults.drain()),
                )
                .replace(
                    Need::MaxConnections.placeholder(),
                    &settings.max_connections().to_string(),
                )
                .replace(Need::Panic.placeholder(), PANIC)
        };
        self.words.iter().map(fill).collect()
    }

    /// Starts the server, and waits until it listens. Call this on a thread that lives longer than the server.
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

/// Settings of a server. `None` stands for the default.
#[derive(Debug, Clone, Default)]
pub(crate) struct TargetSettings {
    /// Time after which a peer without progress is closed.
    pub(crate) idle_timeout: Option<Duration>,
    /// Time that replies under way may take after a stop.
    pub(crate) drain: Option<Duration>,
    /// Number of peers that are served at a time.
    pub(crate) max_connections: Option<usize>,
    /// Number of workers, only of our models. The default is that of the [placement](Placement::workers_of).
    pub(crate) workers: Option<usize>,
    /// Wait before each reply, only of our models.
    pub(crate) wait: Option<Duration>,
    /// Whether a line of [`PANIC`] makes a session panic.
    pub(crate) panic: bool,
    /// Port on which the server listens. The default is a free port.
    pub(crate) port: Option<u16>,
}

impl TargetSettings {
    /// Returns the idle time-out, by default 30 s.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(Duration::from_secs(30))
    }

    /// Returns the drain time, by default 2 s.
    pub(crate) fn drain(&self) -> Duration {
        self.drain.unwrap_or(Duration::from_secs(2))
    }

    /// Returns the connection limit, by default 10,000.
    pub(crate) fn max_connections(&self) -> usize {
        self.max_connections.unwrap_or(10_000)
    }
}

/// Ability that a check needs of a server, besides answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The server has a setting for the idle time-out.
    IdleTimeout,
    /// The server has a setting for the time that replies under way may take after a stop.
    Drain,
    /// The server has a setting for the number of peers that it serves at a time.
    MaxConnections,
    /// Sessions of the server panic if a request says so.
    Panic,
    /// The server has a setting for a wait before each reply.
    Wait,
    /// The server is a process that samewire started, so that it can be inspected, limited and stopped.
    Process,
}

/// Placeholders that a command may have.
const PLACEHOLDERS: &[&str] = &[
    PORT,
    Need::IdleTimeout.placeholder(),
    Need::Drain.placeholder(),
    Need::MaxConnections.placeholder(),
    Need::Panic.placeholder(),
];

impl Need {
    /// Returns the placeholder of the setting in a command.
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

/// Model of another build of samewire.
#[derive(Debug, Clone)]
pub(crate) struct OtherBuild {
    pub(crate) model: &'static Model,
    /// The other build.
    pub(crate) program: PathBuf,
}

impl OtherBuild {
    /// Returns the name of the model in tables.
    pub(crate) fn name(&self) -> String {
        format!("{}{OTHER_BUILD}", self.model.name)
    }
}

/// End of the name of a model of another build.
pub(crate) const OTHER_BUILD: &str = "@against";

/// Server that is checked or measured.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// One of our models.
    Model(&'static Model),
    /// Server that a command starts.
    ExternalServer(ExternalServer),
    /// A model of another build of samewire.
    OtherBuild(OtherBuild),
    /// The null server, which is the cheapest server that answers.
    Null,
    /// Address of a server that runs already.
    At(SocketAddr),
}

impl Target {
    pub(crate) fn name(&self) -> String {
        match self {
            Target::Model(model) => model.name.to_string(),
            Target::ExternalServer(external) => external.name.clone(),
            Target::OtherBuild(build) => build.name(),
            Target::Null => "null server".to_string(),
            Target::At(address) => address.to_string(),
        }
    }

    pub(crate) fn model(&self) -> Option<&'static Model> {
        match self {
            Target::Model(model) => Some(model),
            Target::OtherBuild(build) => Some(build.model),
            _ => None,
        }
    }

    /// Returns whether processes that the server forks may serve its peers. Any external server may fork.
    pub(crate) fn may_fork(&self) -> bool {
        self.model().is_none_or(|model| model.needs.own_process)
    }

    /// Returns the deviation from a guarantee that a model declares.
    pub(crate) fn deviation(&self, guarantee: Guarantee) -> Option<&'static Deviation> {
        let mut deviations = self.model()?.deviations.iter();
        deviations.find(|deviation| deviation.guarantee == guarantee)
    }

    /// Returns the number of peers that the target serves at a time under these settings, by design.
    pub(crate) fn slots(&self, settings: &TargetSettings, placement: &Placement) -> usize {
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

    /// Returns the reason why the target does not meet a need; `None` if it meets the need.
    pub(crate) fn lacks(&self, need: Need) -> Option<String> {
        match (self, need) {
            (Target::Model(_) | Target::OtherBuild(_), _) | (Target::ExternalServer(_) | Target::Null, Need::Process) => None,
            (Target::Null, _) => Some("the null server has no settings".to_string()),
            (Target::ExternalServer(_), Need::Wait) => {
                Some("only our own models have a setting for work before a reply".to_string())
            }
            (Target::ExternalServer(external), need) => (!external.takes(need.placeholder()))
                .then(|| format!("its command has no {}", need.placeholder())),
            (Target::At(_), _) => Some(
                "samewire did not start this server, so it can't configure, inspect or stop it: use --with".to_string(),
            ),
        }
    }

    /// Starts the target with these settings, and waits until it listens. Call this on a thread that lives longer than
    /// the server.
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
            Target::OtherBuild(build) => {
                let arguments = arguments(build.model, protocol, settings, placement);
                ChildServer::start_build(build.program.clone(), &arguments)?
            }
            Target::ExternalServer(external) => external.start(settings, placement)?,
            Target::Null => crate::null_server::start(protocol, &placement.server)?,
            Target::At(address) => {
                // Once, before the peers connect: each of them would report the same error.
                TcpStream::connect_timeout(address, Duration::from_secs(5))
                    .with_context(|| format!("no server answers on {address}"))?;
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

/// Returns the command-line arguments for one of our models.
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
    let mut option = |option: &str, value: String| {
        arguments.push(option.to_string());
        arguments.push(value);
    };
    option("--listen", format!("127.0.0.1:{port}"));
    option("--protocol", protocol.name.to_string());
    option("--idle-timeout", time(settings.idle_timeout()));
    option("--drain", time(settings.drain()));
    option("--max-connections", settings.max_connections().to_string());
    option("--workers", workers.to_string());
    if protocol.name == "bulk" {
        let Bulk { size, count } = crate::check::BULK;
        option("--bulk-size", size.to_string());
        option("--bulk-count", count.to_string());
    }
    if let Some(wait) = settings.wait {
        option("--work", format!("wait:{}", time(wait)));
    }
    if settings.panic {
        option("--panic-on", PANIC.to_string());
    }
    if !placement.server.is_empty() {
        option("--cpus", list(&placement.server));
    }
    arguments
}

/// Formats CPU numbers for `--cpus`.
pub(crate) fn list(cpus: &[usize]) -> String {
    let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
    cpus.join(",")
}

/// Server that was started, or that ran already.
pub(crate) struct RunningTarget {
    pub(crate) address: SocketAddr,
    server: Option<ChildServer>,
    forks: bool,
    /// Whether its sessions panic if a request says so.
    pub(crate) panics: bool,
}

impl RunningTarget {
    /// Returns its processes; `None` if samewire did not start the server.
    pub(crate) fn tree(&self) -> Option<ProcessTree> {
        let server = self.server.as_ref()?;
        Some(server.tree(self.forks))
    }

    /// Returns its process; `None` if samewire did not start the server.
    pub(crate) fn server(&self) -> Option<&ChildServer> {
        self.server.as_ref()
    }

    /// Returns its process, for a caller that ends it; `None` if samewire did not start the server.
    pub(crate) fn into_server(self) -> Option<ChildServer> {
        self.server
    }

    /// Stops the server. `None` if samewire did not start it.
    pub(crate) fn stop(self) -> Option<ServerExit> {
        self.server.map(ChildServer::stop)
    }
}

/// Returns a port that is free and outside of the range from which the kernel chooses ports itself. So a client that
/// connects meanwhile can't get this port by accident.
///
/// # Errors
///
/// Fails if no free port was found.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    const TRIES: usize = 100;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ports = ports_outside_kernel_range(&range.unwrap_or_default());
    for _ in 0..TRIES {
        let port = fastrand::u16(ports.clone());
        if is_free(port) {
            return Ok(port);
        }
    }
    let Range { start, end } = ports;
    bail!(
        "no free port from {start} to {end} was found in {TRIES} tries; stop programs that use these ports"
    )
}

/// Returns ports outside of the kernel's own range, which is given as /proc reports it: below the range if there are
/// enough ports, or above. If there are too few on either side, or the range is unknown, returns the usual ports below
/// the kernel's range.
fn ports_outside_kernel_range(range: &str) -> Range<u16> {
    const DEFAULT: Range<u16> = 10_000..32_000;
    const ENOUGH: u16 = 1000;
    let mut ends = range
        .split_ascii_whitespace()
        .map_while(|end| end.parse().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else {
        return DEFAULT;
    };
    let below = DEFAULT.start..DEFAULT.end.min(low);
    let above = high..u16::MAX;
    if below.end >= below.start + ENOUGH {
        below
    } else if above.end - above.start > ENOUGH {
        above.start + 1..above.end
    } else {
        DEFAULT
    }
}

/// Returns whether a port is free, also for a server that does not set SO_REUSEADDR, as the standard library does. Such
/// a server can't use a port on which connections ended less than a minute ago (TIME_WAIT).
fn is_free(port: u16) -> bool {
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None)
        .and_then(|socket| socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()));
    bound.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_split_and_placeholders_are_replaced() {
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
    fn malformed_command_is_refused_with_the_right_form() {
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
    fn ports_lie_outside_of_the_kernel_range() {
        for (range, ports) in [
            ("32768\t60999\n", 10_000..32_000),
            ("20000 60999", 10_000..20_000),
            ("1024 60999", 61_000..65_535),
            ("1024 65535", 10_000..32_000),
            ("", 10_000..32_000),
        ] {
            assert_eq!(ports_outside_kernel_range(range), ports, "{range}");
        }
    }

    #[test]
    fn port_in_time_wait_is_not_free() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!is_free(address.port()));
        let mut client = std::net::TcpStream::connect(address).unwrap();
        // The side that closes first keeps the port for a minute.
        drop(listener.accept().unwrap());
        assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        drop((client, listener));
        assert!(!is_free(address.port()));
    }

    #[test]
    fn duplicate_name_of_external_server_is_refused() {
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
    fn quoted_external_server_is_parsed_to_the_same() {
        let external = ExternalServer::parse("py=python3 'my server.py' it\\'s {port}").unwrap();
        let words = shlex::split(&quoted(&external.text())).unwrap();
        assert_eq!(ExternalServer::parse(&words[0]), Ok(external));
    }
}
