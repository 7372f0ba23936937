//! Counters of the machine: what other programs, the hypervisor and the kernel did meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use procfs::{CpuTime, CurrentSI, KernelStats};

use super::online;

/// Counters of the machine until a moment. `None`: unknown here.
#[derive(Debug, Clone)]
pub(crate) struct HostCounters {
    at: Instant,
    /// Number of CPUs that the idle and the stolen time are of.
    cpus: usize,
    idle: Duration,
    own: Duration,
    steal: Option<Duration>,
    pressure: Option<Duration>,
    throttled: Option<Duration>,
    listen_overflows: Option<u64>,
    retransmits: Option<u64>,
}

/// Change of the counters of the machine over an interval.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HostChange {
    /// Share of the CPUs' time that the hypervisor gave to other virtual machines.
    pub(crate) steal: Option<f64>,
    /// Share of the interval in which a thread waited for a CPU.
    pub(crate) cpu_pressure: Option<f64>,
    /// Time for which a CPU quota stopped the programs of this cgroup.
    pub(crate) throttled: Option<Duration>,
    /// Number of connections that found the queue of a listening socket full.
    pub(crate) listen_overflows: Option<u64>,
    /// Number of TCP segments that were sent again.
    pub(crate) retransmits: Option<u64>,
}

impl HostCounters {
    /// Reads the counters; those of CPU time for these CPUs, or for all CPUs if the list is empty. `None` if the idle
    /// time can't be read.
    pub(crate) fn take(cpus: &[usize]) -> Option<HostCounters> {
        let at = Instant::now();
        let kernel = KernelStats::current().ok()?;
        let times: Vec<&CpuTime> = if cpus.is_empty() {
            vec![&kernel.total]
        } else {
            // /proc/stat has a line for each CPU that is online, and procfs returns the lines without the CPUs' numbers.
            let online = online()?;
            cpus.iter()
                .map(|cpu| {
                    let line = online.iter().position(|online| online == cpu)?;
                    kernel.cpu_time.get(line)
                })
                .collect::<Option<_>>()?
        };
        let idle = |cpu: &CpuTime| Some(cpu.idle_duration() + cpu.iowait_duration()?);
        Some(HostCounters {
            at,
            cpus: if cpus.is_empty() {
                kernel.cpu_time.len()
            } else {
                cpus.len()
            },
            idle: times.iter().map(|cpu| idle(cpu)).sum::<Option<_>>()?,
            own: ClockId::CLOCK_PROCESS_CPUTIME_ID.now().ok()?.into(),
            steal: times.iter().map(|cpu| cpu.steal_duration()).sum(),
            pressure: read("/proc/pressure/cpu").and_then(|text| pressure(&text)),
            throttled: cgroup_file("cpu.stat").and_then(|text| throttled(&text)),
            listen_overflows: read("/proc/net/netstat")
                .and_then(|text| network(&text, "TcpExt", "ListenOverflows")),
            retransmits: read("/proc/net/snmp")
                .and_then(|text| network(&text, "Tcp", "RetransSegs")),
        })
    }

    /// Returns the change since an earlier reading of the same CPUs.
    pub(crate) fn since(&self, before: &HostCounters) -> HostChange {
        let elapsed = (self.at - before.at).as_secs_f64();
        let share = |now: Option<Duration>, before: Option<Duration>, cpus: usize| {
            let time = now?.saturating_sub(before?).as_secs_f64();
            (elapsed > 0.0).then(|| (time / elapsed / cpus as f64).min(1.0))
        };
        let count = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        HostChange {
            steal: share(self.steal, before.steal, self.cpus),
            cpu_pressure: share(self.pressure, before.pressure, 1),
            throttled: self
                .throttled
                .zip(before.throttled)
                .map(|(now, before)| now.saturating_sub(before)),
            listen_overflows: count(self.listen_overflows, before.listen_overflows),
            retransmits: count(self.retransmits, before.retransmits),
        }
    }

    /// Returns the share of the CPUs' time since `before` that was not idle and that neither this process nor the
    /// servers used (they used `servers`): it went to other programs, to interrupts, or to other virtual machines.
    ///
    /// The time of the servers must come from their CPU clocks. The tick counters of a hundred processes that each ran
    /// for less than a tick say that none of them ran.
    pub(crate) fn others(&self, before: &HostCounters, servers: Duration) -> Option<f64> {
        let all = (self.at - before.at).as_secs_f64() * self.cpus as f64;
        let known =
            self.idle.saturating_sub(before.idle) + self.own.saturating_sub(before.own) + servers;
        // Idle time comes in ticks of 10 ms, so the difference may be slightly negative.
        (all > 0.0).then(|| ((all - known.as_secs_f64()) / all).max(0.0))
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Returns the total time in which some thread waited for a CPU, from /proc/pressure/cpu.
fn pressure(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some
        .split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// Returns the throttled time from cpu.stat of a cgroup, of version 2 (microseconds) or 1 (nanoseconds).
fn throttled(text: &str) -> Option<Duration> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    field("throttled_usec ")
        .map(Duration::from_micros)
        .or_else(|| field("throttled_time ").map(Duration::from_nanos))
}

/// Returns a counter of /proc/net/snmp or /proc/net/netstat, which have a line of names and a line of values.
fn network(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(one, _)| *one == group)
        .map(|(_, rest)| rest.split_ascii_whitespace());
    let (mut names, mut values) = (lines.next()?, lines.next()?);
    let place = names.position(|one| one == name)?;
    values.nth(place)?.parse().ok()
}

/// Reads a file of the cgroup of this process that limits its CPU time.
fn cgroup_file(name: &str) -> Option<String> {
    let groups = read("/proc/self/cgroup")?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let root = match controllers {
                "" => "/sys/fs/cgroup".to_string(),
                with if with.split(',').any(|one| one == "cpu") => {
                    format!("/sys/fs/cgroup/{with}")
                }
                _ => return None,
            };
            read(&format!("{root}{}/{name}", path.trim_end_matches('/')))
        })
        .next()
}

/// Returns the number of CPUs that the quota of the cgroup grants; `None` without a quota.
pub(crate) fn cpu_quota() -> Option<f64> {
    if let Some(text) = cgroup_file("cpu.max") {
        return quota(&text);
    }
    let quota: f64 = cgroup_file("cpu.cfs_quota_us")?.trim().parse().ok()?;
    let period: f64 = cgroup_file("cpu.cfs_period_us")?.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Returns the quota from cpu.max of a cgroup: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let quota: f64 = quota.parse().ok()?;
    let period: f64 = period.trim().parse().ok()?;
    (period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> HostCounters {
        HostCounters {
            at: Instant::now(),
            cpus: 2,
            idle: Duration::from_secs(10),
            own: Duration::from_secs(1),
            steal: Some(Duration::ZERO),
            pressure: None,
            throttled: None,
            listen_overflows: Some(5),
            retransmits: Some(7),
        }
    }

    /// A hundred processes with 8 ms of CPU time each, on two CPUs for a second, have 0.8 s, of which tick counters see
    /// nothing.
    #[test]
    fn share_of_others_comes_from_the_cpu_clocks_of_many_small_processes() {
        let before = counters();
        let after = HostCounters {
            at: before.at + Duration::from_secs(1),
            idle: before.idle + Duration::from_millis(700),
            own: before.own + Duration::from_millis(480),
            ..before.clone()
        };
        let servers = 100 * Duration::from_millis(8);
        let others = after.others(&before, servers).unwrap();
        assert!((0.0..=0.02).contains(&others), "{others}");
        let by_ticks = after.others(&before, Duration::ZERO).unwrap();
        assert!(by_ticks > 0.4, "{by_ticks}");
    }

    #[test]
    fn changes_are_shares_of_the_interval_and_differences_of_counts() {
        let before = counters();
        let after = HostCounters {
            at: before.at + Duration::from_secs(2),
            steal: Some(Duration::from_millis(200)),
            listen_overflows: Some(8),
            ..before.clone()
        };
        let change = after.since(&before);
        // 0.2 s of the 4 s that two CPUs have in two seconds.
        assert!((change.steal.unwrap() - 0.05).abs() < 1e-9);
        assert_eq!(change.listen_overflows, Some(3));
        assert_eq!(change.retransmits, Some(0));
        assert_eq!(change.throttled, None);
    }

    #[test]
    fn kernel_files_are_parsed() {
        let text = "some avg10=1.00 avg60=0.50 avg300=0.10 total=123456\nfull avg10=0.00 total=7\n";
        assert_eq!(pressure(text), Some(Duration::from_micros(123_456)));
        assert_eq!(
            throttled("nr_periods 4\nthrottled_usec 250\n"),
            Some(Duration::from_micros(250))
        );
        assert_eq!(
            throttled("nr_throttled 0\nthrottled_time 900\n"),
            Some(Duration::from_nanos(900))
        );
        assert_eq!(throttled("usage_usec 1\n"), None);
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: A\nIpExt: 4\n";
        assert_eq!(network(text, "TcpExt", "ListenOverflows"), Some(22));
        assert_eq!(network(text, "TcpExt", "ListenDrops"), Some(333));
        assert_eq!(network(text, "TcpExt", "Nothing"), None);
        assert_eq!(quota("150000 100000\n"), Some(1.5));
        assert_eq!(quota("max 100000\n"), None);
    }

    #[test]
    fn counters_of_this_machine_do_not_go_back() {
        let before = HostCounters::take(&[]).unwrap();
        let after = HostCounters::take(&[]).unwrap();
        let change = after.since(&before);
        assert!(change.retransmits.is_some());
        assert!(HostCounters::take(&[usize::MAX]).is_none());
        assert!(
            change
                .steal
                .is_none_or(|steal| (0.0..=1.0).contains(&steal))
        );
    }
}
