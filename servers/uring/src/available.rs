//! The test whether a ring can be created, and the remedy if not.

use std::fs;
use std::io;
use std::thread;

use rustix::io::Errno;

use crate::ring::Ring;

/// Returns `Ok` if a ring can be created, and otherwise the unavailable reason.
pub(crate) fn available() -> Result<(), String> {
    // After a ring is closed, the kernel goes on dismantling it, and then interrupts the thread that created it once
    // more: a read with a time-out would fail with EINTR. So the ring is created by a thread that has ended by then.
    let tried = thread::spawn(|| Ring::new().map(drop)).join();
    let tried = tried.unwrap_or_else(|_| Err(io::Error::other("creating a ring panicked")));
    tried.map_err(|error| {
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        unavailable_reason(&error, sysctl.unwrap_or_default().trim())
    })
}

/// Returns the reason for an error, and the remedy. `sysctl` is the value of kernel.io_uring_disabled, or empty if
/// there is none.
fn unavailable_reason(error: &io::Error, sysctl: &str) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => {
            "the kernel has no io_uring, or is too old for it; this model needs Linux 5.11 or later with \
             CONFIG_IO_URING"
                .to_string()
        }
        Some(Errno::PERM | Errno::ACCESS) if matches!(sysctl, "1" | "2") => {
            format!("io_uring is switched off (kernel.io_uring_disabled is {sysctl}); set it to 0")
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "io_uring is forbidden, probably by a container's seccomp profile; run the server outside the container, \
             or with a profile that allows io_uring_setup, io_uring_enter and io_uring_register"
                .to_string()
        }
        Some(Errno::NOMEM) => {
            "not enough memory for a ring; before Linux 5.12 it counts as locked memory: raise `ulimit -l`"
                .to_string()
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            "no free descriptor for a ring; raise `ulimit -n`".to_string()
        }
        _ => format!("a ring cannot be created: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_reason_names_cause_and_remedy() {
        let reason = |errno: Errno, sysctl| unavailable_reason(&errno.into(), sysctl);
        assert!(reason(Errno::PERM, "2").contains("kernel.io_uring_disabled is 2"));
        assert!(reason(Errno::PERM, "0").contains("seccomp"));
        assert!(reason(Errno::PERM, "").contains("seccomp"));
        assert!(reason(Errno::NOSYS, "").contains("Linux 5.11"));
        assert!(reason(Errno::NOMEM, "").contains("ulimit -l"));
        assert!(reason(Errno::MFILE, "").contains("ulimit -n"));
        assert!(reason(Errno::IO, "").contains("error"));
    }
}
