//! CPU time that an event loop uses, and the CPUs on which it may run.

use std::time::Duration;

use crate::DriveError;

/// Returns the CPU time that the calling thread has used.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// Binds the calling thread to these CPUs; does nothing if the list is empty.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn pin(cpus: &[usize]) -> Result<(), DriveError> {
    use rustix::io::Errno;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    let mut all_valid = true;
    for &cpu in cpus {
        if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
        } else {
            all_valid = false;
        }
    }
    // The kernel ignores CPUs that it does not have, or that this process may not use, as long as one is left. The
    // measurement would then differ from the requested one.
    let bound = sched_setaffinity(None, &set).and_then(|()| sched_getaffinity(None));
    let bound = match bound {
        Ok(actual) if all_valid && actual == set => Ok(()),
        Ok(_) => Err(Errno::INVAL),
        Err(why) => Err(why),
    };
    bound.map_err(|why| DriveError::Affinity {
        cpus: cpus.to_vec(),
        why: why.into(),
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn pin(cpus: &[usize]) -> Result<(), DriveError> {
    if cpus.is_empty() {
        return Ok(());
    }
    Err(DriveError::Affinity {
        cpus: cpus.to_vec(),
        why: std::io::ErrorKind::Unsupported.into(),
    })
}
