//! The machine and build on which a comparison ran, and the warnings that a reader needs before using a figure.

use std::time::SystemTime;
use std::{fs, io};

use procfs::{CpuInfo, Current, LoadAverage};
use sha2::{Digest, Sha256};

use crate::measure::plan::Settings;
use crate::measure::run::server_arguments;
use crate::placement::Placement;
use crate::resources::cpu_quota;
use crate::results::Environment;

/// Number of rounds from which on models have marks.
const LEAST_ROUNDS: u32 = 6;

/// Reads the properties of this machine and this build. Must be called before the first load: afterwards the load
/// average contains the load of this program.
pub(crate) fn read_environment(settings: &Settings, placement: &Placement) -> Environment {
    let read = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_string());
    let info = CpuInfo::current().ok();
    let flags = info.as_ref().and_then(|info| info.flags(0));
    // This flag exists on x86 only; on other architectures the value is unknown.
    let virtual_machine = flags.map(|flags| flags.contains(&"hypervisor"));
    let chosen = |text: String| {
        let choice = text.split_once('[')?.1;
        Some(choice.split_once(']')?.0.to_string())
    };
    let mut environment = Environment {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        samewire_version: env!("CARGO_PKG_VERSION").to_string(),
        commit: option_env!("SAMEWIRE_COMMIT")
            .filter(|commit| !commit.is_empty())
            .map(str::to_string),
        debug_build: cfg!(debug_assertions),
        os: std::env::consts::OS.to_string(),
        architecture: std::env::consts::ARCH.to_string(),
        kernel: read("/proc/sys/kernel/osrelease"),
        cpu_model: info
            .as_ref()
            .and_then(|info| info.model_name(0))
            .map(str::to_string),
        cpus: info.as_ref().map(CpuInfo::num_cores),
        virtual_machine,
        governor: placement.server.first().and_then(|cpu| {
            read(&format!(
                "/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
            ))
        }),
        cpu_quota: cpu_quota(),
        transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
            .and_then(chosen),
        address_randomisation: read("/proc/sys/kernel/randomize_va_space"),
        multithreading: read("/sys/devices/system/cpu/smt/control"),
        clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        binary_sha256: sha256_of_this_program(),
        load_average: LoadAverage::current()
            .ok()
            .map(|load| [load.one, load.five, load.fifteen]),
        client_cpus: placement.client.clone(),
        server_cpus: placement.server.clone(),
        pinned_apart: placement.apart,
        // The hypervisor decides which threads share a core, and tells the guest what it likes.
        share_a_core: placement
            .share_a_core
            .filter(|_| virtual_machine != Some(true)),
        client_threads: placement.client_threads(),
        server_arguments: server_arguments(settings, placement),
        warnings: Vec::new(),
    };
    environment.warnings = warnings(&environment, settings, placement);
    environment
}

/// Returns the SHA-256 of the running program, in hexadecimal; `None` if it can't be read.
fn sha256_of_this_program() -> Option<String> {
    let mut file = fs::File::open(crate::child::this_program().ok()?).ok()?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hash)).ok()?;
    let hash = hash.finalize();
    Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writer that adds all bytes to a hash.
struct HashWriter<'h>(&'h mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn warnings(environment: &Environment, settings: &Settings, placement: &Placement) -> Vec<String> {
    let mut warnings = Vec::new();
    if environment.debug_build {
        warnings.push(
            "this is a debug build, so its figures must not be used; measure with cargo run --release"
                .to_string(),
        );
    }
    warnings.extend(placement.warning.clone());
    if let (Some([one, ..]), Some(cpus)) = (environment.load_average, environment.cpus) {
        // Other programs take CPU time from the client or from the server.
        if f64::from(one) > 0.3 * cpus as f64 {
            warnings.push(format!(
                "the machine was busy at the start (load average {one:.2} on {cpus} CPUs); other programs take CPU \
                 time from client or server, so stop them and measure again"
            ));
        }
    }
    if environment.virtual_machine == Some(true) {
        warnings.push(
            "this is a virtual machine: other virtual machines on the same host may have taken CPU time, \
             and the counters of this machine may not show it"
                .to_string(),
        );
    }
    if let Some(governor) = environment
        .governor
        .as_deref()
        .filter(|governor| *governor != "performance")
    {
        warnings.push(format!(
            "the CPU frequency governor is \"{governor}\": the clock frequency may have changed between runs; \
             for stable figures set it to \"performance\""
        ));
    }
    warnings.push(
        "client and servers ran on one machine, over loopback: no network card, no packet loss, no distance; use \
         the figures to compare servers, not to predict the speed of one server"
            .to_string(),
    );
    if let Some(quota) = environment.cpu_quota {
        warnings.push(format!(
            "a CPU quota of {quota:.2} CPUs applies to this program and its servers; when it is used up, all of them stop \
             for a while"
        ));
    }
    if let Some(rounds) = settings.rounds.filter(|rounds| *rounds < LEAST_ROUNDS) {
        warnings.push(format!(
            "with {rounds} {}, no model can be called better than another; use --rounds {LEAST_ROUNDS} or more",
            if rounds == 1 { "round" } else { "rounds" }
        ));
    }
    warnings
}
