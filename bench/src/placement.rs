//! Who runs where: the client must not take the server's CPU, and the other way round.

use std::fs;

use contract::{Capacity, CpuList, Model, pin};

/// The CPUs of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Empty: not pinned.
    pub(crate) client: Vec<usize>,
    pub(crate) server: Vec<usize>,
    /// Whether nobody shares a CPU.
    pub(crate) apart: bool,
    /// Whether a CPU of the client and one of the server are threads of one core.
    pub(crate) share_a_core: Option<bool>,
    /// Why it is not as it should be.
    pub(crate) warning: Option<String>,
}

impl Placement {
    /// Divides the CPUs that this process may use, and binds this process to the client's half.
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

    /// Nobody is pinned; why.
    pub(crate) fn none(warning: String) -> Placement {
        Placement {
            client: Vec::new(),
            server: Vec::new(),
            apart: false,
            share_a_core: None,
            warning: Some(warning),
        }
    }

    /// `core` names the threads of a CPU's core.
    fn of(mut cpus: Vec<usize>, core: impl Fn(usize) -> Option<Vec<usize>>) -> Placement {
        let core_of = |cpu| core(cpu).and_then(|threads| threads.into_iter().min());
        // Threads of one core next to each other, so that the cut runs between cores. The usual numbering (0-3 the
        // first threads, 4-7 the second) would give every core to both sides.
        cpus.sort_by_key(|&cpu| (core_of(cpu).unwrap_or(cpu), cpu));
        if cpus.len() < 2 {
            return Placement {
                client: cpus.clone(),
                server: cpus,
                apart: false,
                share_a_core: None,
                warning: Some(
                    "client and server shared one CPU, and took time from each other: not pinned apart".into(),
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

    /// All CPUs in use; of a shared one once. Without pinning all that this process may use.
    pub(crate) fn all(&self) -> Vec<usize> {
        let mut all = [&self.client[..], &self.server[..]].concat();
        if all.is_empty() {
            all = allowed().unwrap_or_default();
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// CPUs that a server may run on.
    pub(crate) fn server_cpus(&self) -> usize {
        match self.server.len() {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpus => cpus,
        }
    }

    /// What a server of this model is told with `--workers`: one for each CPU; where each is held by one peer, as many
    /// as the model has by default.
    pub(crate) fn workers_of(&self, model: &Model) -> usize {
        match model.capacity {
            Capacity::Workers => model.capacity.workers().get(),
            _ => self.server_cpus(),
        }
    }

    /// Event loops of the client: one keeps up with a server of one or two CPUs.
    pub(crate) fn client_threads(&self) -> usize {
        match self.client.len() {
            0..=2 => 1,
            cpus => cpus,
        }
    }
}

#[cfg(target_os = "linux")]
fn allowed() -> Result<Vec<usize>, String> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None)
        .map_err(|error| format!("cannot tell which CPUs there are: {error}"))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Result<Vec<usize>, String> {
    Err("only known on Linux".to_string())
}

/// The CPUs of this CPU's core, itself among them.
fn siblings(cpu: usize) -> Option<Vec<usize>> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list: CpuList = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    Some(list.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_not_torn_apart() {
        // Eight threads on four cores, numbered as usual.
        let placement = Placement::of((0..8).collect(), |cpu| Some(vec![cpu % 4, cpu % 4 + 4]));
        assert_eq!(placement.client, [0, 4, 1, 5]);
        assert_eq!(placement.server, [2, 6, 3, 7]);
        assert!(placement.apart);
        assert_eq!(placement.share_a_core, Some(false));
        assert_eq!(placement.warning, None);
    }

    #[test]
    fn two_threads_of_one_core_are_told() {
        let placement = Placement::of(vec![0, 1], |_| Some(vec![0, 1]));
        assert_eq!(
            (&placement.client[..], &placement.server[..]),
            (&[0][..], &[1][..])
        );
        assert_eq!(placement.share_a_core, Some(true));
        assert!(placement.warning.is_some());
    }

    #[test]
    fn one_cpu_is_shared_and_told() {
        let placement = Placement::of(vec![3], |_| None);
        assert_eq!(placement.client, placement.server);
        assert!(!placement.apart);
        assert!(placement.warning.is_some());
    }

    #[test]
    fn three_cpus_without_a_map_of_cores() {
        let placement = Placement::of(vec![0, 1, 2], |_| None);
        assert_eq!((placement.client.len(), placement.server.len()), (1, 2));
        assert_eq!(placement.share_a_core, None);
    }
}
