//! The CPUs that a process may use.

use std::fmt;
use std::io;
use std::str::FromStr;

/// A list of CPU numbers, written as `0`, `0,2` or `0-3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let number = text
                .trim()
                .parse()
                .map_err(|_| format!("\"{text}\" is not a CPU number; write 0, 0,2 or 0-3"))?;
            if number < MOST {
                Ok(number)
            } else {
                Err(format!("the largest CPU number is {}", MOST - 1))
            }
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!(
                            "in {first}-{last} the first CPU is greater than the last"
                        ));
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        Ok(CpuList(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for cpu in &self.0 {
            write!(f, "{separator}{cpu}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// CPU numbers are below this: the number of CPUs in a mask of fixed size, CPU_SETSIZE in CPU_SET(3).
const MOST: usize = 1024;

/// Binds the calling thread to the given CPUs, see sched_setaffinity(2). Threads and processes that it starts later
/// inherit them.
///
/// # Errors
///
/// One of the CPUs does not exist on this machine, or this process may not use it.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &CpuList) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let mut set = CpuSet::new();
    for &cpu in &cpus.0 {
        set.set(cpu);
    }
    // The kernel silently leaves out CPUs that do not exist or that this process may not use, unless none is left. The
    // measurement would then not be the requested one.
    let bound = sched_setaffinity(None, &set).and_then(|()| sched_getaffinity(None));
    let why = match bound {
        Ok(bound) if bound == set => return Ok(()),
        Ok(_) | Err(Errno::INVAL) => "this process may not use all of them".to_string(),
        Err(error) => io::Error::from(error).to_string(),
    };
    Err(io::Error::other(format!(
        "cannot run on CPUs {cpus}: {why}"
    )))
}

/// Binds the calling thread to the given CPUs. Threads and processes that it starts later inherit them.
///
/// # Errors
///
/// Always: this is implemented for Linux only.
#[cfg(not(target_os = "linux"))]
pub fn pin(cpus: &CpuList) -> io::Result<()> {
    Err(io::Error::other(format!(
        "cannot run on CPUs {cpus}: this is implemented for Linux only"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_list_is_parsed_and_displayed() {
        let parsed = |text: &str| text.parse::<CpuList>().map(|list| list.to_string());
        assert_eq!(parsed("0").unwrap(), "0");
        assert_eq!(parsed("3,0-2").unwrap(), "3,0,1,2");
        assert!(parsed("").is_err());
        assert!(parsed("2-1").is_err());
        assert!(parsed("a").is_err());
        assert!(parsed("0-99999999999").is_err());
    }
}
