//! Which CPUs a process may use.

use std::fmt;
use std::io;
use std::str::FromStr;

/// A list of CPUs by number, written as `0`, `0,2` or `0-3`.
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
                Err(format!("CPU numbers end at {}", MOST - 1))
            }
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("{first}-{last} runs backwards"));
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

/// More than any machine has that the kernel's static masks can name.
const MOST: usize = 1024;

/// Binds the calling thread to these CPUs; threads and processes that it starts later inherit that.
///
/// # Errors
///
/// One of the CPUs does not exist here, or is not for this process.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &CpuList) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let mut set = CpuSet::new();
    for &cpu in &cpus.0 {
        set.set(cpu);
    }
    // The kernel silently leaves out CPUs that it does not have or that this process may not use, as long as one is
    // left: another measurement than the one that was asked for.
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

/// Binds the calling thread to these CPUs; threads and processes that it starts later inherit that.
///
/// # Errors
///
/// Always: only Linux is taught this so far.
#[cfg(not(target_os = "linux"))]
pub fn pin(cpus: &CpuList) -> io::Result<()> {
    Err(io::Error::other(format!(
        "cannot run on CPUs {cpus}: only known on Linux"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        let read = |text: &str| text.parse::<CpuList>().map(|list| list.to_string());
        assert_eq!(read("0").unwrap(), "0");
        assert_eq!(read("3,0-2").unwrap(), "3,0,1,2");
        assert!(read("").is_err());
        assert!(read("2-1").is_err());
        assert!(read("a").is_err());
        assert!(read("0-99999999999").is_err());
    }
}
