//! The placement on CPUs: the client must not use the server's CPUs, and the server must not use the client's.

use std::fs;

use contract::{Capacity, CpuList, Model, pin};

/// CPUs of the client and the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// CPUs of the client; empty if it is not pinned.
    pub(crate) client: Vec<usize>,
    /// CPUs of the server; empty if it is not pinned.
    pub(crate) server: Vec<usize>,
    /// Whether client and server have no CPU in common.
    pub(crate) apart: bool,
    /// Whether a CPU of the client and a CPU of the server are threads of one core; `None` if that is unknown.
    pub(crate) share_a_core: Option<bool>,
    /// Reason why the placement is not as it should be.
    pub(crate) warning: Option<String>,
}

impl Placement {
    /// Divides the CPUs that this process may use, and pins this process to the client's half.
    pub(crate) fn take() -> Placement {
        let allowed = match allowed() {
            Ok(allowed) => allowed,
            Err(why) => return Placement::none(format!("not pinned: {why}")),
        };
        let placement = Placement::of(allowed, siblings);
        match pin(&CpuList(placement.client.clone())) {
            Ok(()) => placement,
            Err(error) => Placement::none(format!("not pinned: {error}")),
        }
    }

    /// Returns a placement without pinning; `warning` is the reason.
    pub(crate) fn none(warning: String) -> Placement {
        Placement {
            client: Vec::new(),
            server: Vec::new(),
            apart: false,
            share_a_core: None,
            warning: Some(warning),
        }
    }

    /// Divides these CPUs. `core` returns all CPUs of a CPU's core.
    fn of(mut cpus: Vec<usize>, core: impl Fn(usize) -> Option<Vec<usize>>) -> Placement {
        let core_of = |cpu| core(cpu).and_then(|threads| threads.into_iter().min());
        // Threads of one core are put next to each other, so that cores are not divided. The usual numbering (0-3 the
        // first threads, 4-7 the second) would give every core to both sides.
        cpus.sort_by_key(|&cpu| (core_of(cpu).unwrap_or(cpu), cpu));
        if cpus.len() < 2 {
            return Placement {
                client: cpus.clone(),
                server: cpus,
                apart: false,
                share_a_core: None,
                warning: Some(
                    "client and server share one CPU, and take time from each other: they are not pinned apart".into(),
                ),
            };
        }
        let server = cpus.split_off(cpus.len() / 2);
        let cores = |cpus: &[usize]| -> Option<Vec<usize>> {
            cpus.iter().map(|&cpu| core_of(cpu)).collect()
        };
        let share_a_core = cores(&cpus)
            .zip(cores(&server))
            .map(|(client, server)| client.iter().any(|core| server.contains(core)));
        let warning = (share_a_core == Some(true)).then(|| {
            "a CPU of the client and one of the server are threads of one core, and slow each other down".into()
        });
        Placement {
            client: cpus,
            server,
            apart: true,
            share_a_core,
            warning,
        }
    }

    /// Returns all CPUs in use, each once. Without pinning, these are all CPUs that this process may use.
    pub(crate) fn all(&self) -> Vec<usize> {
        let mut all = [&self.client[..], &self.server[..]].concat();
        if all.is_empty() {
            all = allowed().unwrap_or_default();
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the number of CPUs that a server may use.
    pub(crate) fn server_cpus(&self) -> usize {
        match self.server.len() {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpus => cpus,
        }
    }

    /// Returns the number of workers for a server of this model (`--workers`): one for each CPU; or, if each worker is
    /// held by one peer, the model's default.
    pub(crate) fn workers_of(&self, model: &Model) -> usize {
        match model.capacity {
            Capacity::Workers => model.capacity.workers().get(),
            _ => self.server_cpus(),
        }
    }

    /// Returns the number of the client's event loops: one of them keeps up with a server of one or two CPUs.
    pub(crate) fn client_threads(&self) -> usize {
        match self.client.len() {
            0..=2 => 1,
            cpus => cpus,
        }
    }
}

/// Returns the CPUs that this process may use.
#[cfg(target_os = "linux")]
fn allowed() -> Result<Vec<usize>, String> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None)
        .map_err(|error| format!("cannot read the CPUs of this process: {error}"))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Result<Vec<usize>, String> {
    Err("samewire pins processes only on Linux".to_string())
}

/// Returns the CPUs of this CPU's core, itself among them; `None` if they can't be read.
fn siblings(cpu: usize) -> Option<Vec<usize>> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list: CpuList = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    Some(list.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_one_core_stay_on_one_side() {
        // Eight threads on four cores, numbered as usual.
        let placement = Placement::of((0..8).collect(), |cpu| Some(vec![cpu % 4, cpu % 4 + 4]));
        assert_eq!(placement.client, [0, 4, 1, 5]);
        assert_eq!(placement.server, [2, 6, 3, 7]);
        assert!(placement.apart);
        assert_eq!(placement.share_a_core, Some(false));
        assert_eq!(placement.warning, None);
    }

    #[test]
    fn only_two_threads_of_one_core_are_a_warning() {
        let placement = Placement::of(vec![0, 1], |_| Some(vec![0, 1]));
        assert_eq!(
            (&placement.client[..], &placement.server[..]),
            (&[0][..], &[1][..])
        );
        assert_eq!(placement.share_a_core, Some(true));
        assert!(placement.warning.is_some());
    }

    #[test]
    fn single_cpu_is_shared_with_a_warning() {
        let placement = Placement::of(vec![3], |_| None);
        assert_eq!(placement.client, placement.server);
        assert!(!placement.apart);
        assert!(placement.warning.is_some());
    }

    #[test]
    fn three_cpus_with_unknown_cores_are_divided() {
        let placement = Placement::of(vec![0, 1, 2], |_| None);
        assert_eq!((placement.client.len(), placement.server.len()), (1, 2));
        assert_eq!(placement.share_a_core, None);
    }
}
