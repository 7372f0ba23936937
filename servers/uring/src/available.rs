//! Whether there is a ring to be had, and what to do if not.

use std::fs;
use std::io;
use std::thread;

use rustix::io::Errno;

use crate::ring::Ring;

/// Makes a ring, to see.
pub(crate) fn available() -> Result<(), String> {
    // The kernel goes on dismantling a ring when it is closed, and then interrupts the thread that made it once more: a
    // read with a time-out would fail with EINTR. So this is left to a thread that is gone by then.
    let tried = thread::spawn(|| Ring::new().map(drop)).join();
    let tried = tried.unwrap_or_else(|_| Err(io::Error::other("trying it panicked")));
    tried.map_err(|error| {
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        obstacle(&error, sysctl.unwrap_or_default().trim())
    })
}

/// What an error means; `sysctl` is the value of kernel.io_uring_disabled, and empty where there is none.
fn obstacle(error: &io::Error, sysctl: &str) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => {
            "there is no io_uring; it takes Linux 5.11 or later with CONFIG_IO_URING".to_string()
        }
        Some(Errno::PERM | Errno::ACCESS) if matches!(sysctl, "1" | "2") => {
            format!("io_uring is switched off (kernel.io_uring_disabled is {sysctl}); set it to 0")
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "io_uring is forbidden, probably by a container's seccomp profile; run it outside, or with a profile that \
             allows io_uring_setup, io_uring_enter and io_uring_register"
                .to_string()
        }
        Some(Errno::NOMEM) => {
            "no memory for a ring; before Linux 5.12 it counts as locked memory: raise `ulimit -l`"
                .to_string()
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            "no descriptor for a ring; raise `ulimit -n`".to_string()
        }
        _ => format!("a ring can't be made: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_are_told_with_what_to_do() {
        let told = |errno: Errno, sysctl| obstacle(&errno.into(), sysctl);
        assert!(told(Errno::PERM, "2").contains("kernel.io_uring_disabled is 2"));
        assert!(told(Errno::PERM, "0").contains("seccomp"));
        assert!(told(Errno::PERM, "").contains("seccomp"));
        assert!(told(Errno::NOSYS, "").contains("Linux 5.11"));
        assert!(told(Errno::NOMEM, "").contains("ulimit -l"));
        assert!(told(Errno::MFILE, "").contains("ulimit -n"));
        assert!(told(Errno::IO, "").contains("error"));
    }
}
