//! The machine and build on which a comparison ran, and the warnings that a reader needs before using a figure.

use std::fs;
use std::time::SystemTime;

use procfs::{CpuInfo, Current, LoadAverage};

use crate::measure::plan::Settings;
use crate::measure::run::server_arguments;
use crate::placement::Placement;
use crate::results::Environment;

/// Reads the properties of this machine and this build. Must be called before the first load: afterwards the load
/// average contains the load of this program.
pub(crate) fn read_environment(settings: &Settings, placement: &Placement) -> Environment {
    let read = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_string());
    let info = CpuInfo::current().ok();
    let flags = info.as_ref().and_then(|info| info.flags(0));
    let mut environment = Environment {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        samewire_version: env!("CARGO_PKG_VERSION").to_string(),
        commit: option_env!("SAMEWIRE_COMMIT").map(str::to_string),
        debug_build: cfg!(debug_assertions),
        os: std::env::consts::OS.to_string(),
        architecture: std::env::consts::ARCH.to_string(),
        kernel: read("/proc/sys/kernel/osrelease"),
        cpu_model: info
            .as_ref()
            .and_then(|info| info.model_name(0))
            .map(str::to_string),
        cpus: info.as_ref().map(CpuInfo::num_cores),
        // This flag exists on x86 only; on other architectures the value is unknown.
        virtual_machine: flags.map(|flags| flags.contains(&"hypervisor")),
        governor: placement.server.first().and_then(|cpu| {
            read(&format!(
                "/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"
            ))
        }),
        load_average: LoadAverage::current()
            .ok()
            .map(|load| [load.one, load.five, load.fifteen]),
        client_cpus: placement.client.clone(),
        server_cpus: placement.server.clone(),
        pinned_apart: placement.apart,
        share_a_core: placement.share_a_core,
        client_threads: placement.client_threads(),
        server_arguments: server_arguments(settings, placement),
        warnings: Vec::new(),
    };
    environment.warnings = warnings(&environment, settings, placement);
    environment
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
    if settings.runs < 3 {
        warnings.push(format!(
            "{} per model and workload cannot show how much the figures vary; use --runs 3 or more",
            if settings.runs == 1 {
                "one run"
            } else {
                "two runs"
            }
        ));
    }
    warnings
}
