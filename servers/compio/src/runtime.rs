//! The runtime: on io_uring, or none.

use std::io;
use std::thread;

use compio::driver::{ProactorBuilder, op::OpCodeFlag};
use compio::runtime::Runtime;

/// Whether the kernel gives us a ring, and knows the operations that we submit.
pub(crate) fn available() -> Result<(), String> {
    // First any ring at all: compio takes one that is refused for one that lacks operations. And on a thread of its own,
    // because closing a ring interrupts its thread once more, a moment later, in whatever that then waits for.
    let tried = thread::Builder::new().spawn(|| Runtime::new().and_then(|_| runtime().map(drop)));
    let tried = tried.and_then(|thread| {
        let panicked = |_| Err(io::Error::other("compio panicked"));
        thread.join().unwrap_or_else(panicked)
    });
    tried.map_err(|error| obstacle(&error))
}

/// A runtime on io_uring. Where an operation is missing compio would use threads instead, and say nothing.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut driver = ProactorBuilder::new();
    driver.detect_opcode_support(
        OpCodeFlag::Accept
            | OpCodeFlag::Recv
            | OpCodeFlag::Send
            | OpCodeFlag::Read
            | OpCodeFlag::PollAdd
            | OpCodeFlag::AsyncCancel,
    );
    let runtime = Runtime::builder().with_proactor(driver).build()?;
    match runtime.driver_type() {
        driver if driver.is_iouring() => Ok(runtime),
        driver => Err(io::Error::other(format!("compio chose {driver:?}"))),
    }
}

fn obstacle(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "io_uring is not permitted here; look at /proc/sys/kernel/io_uring_disabled and, in a container, at its \
             seccomp profile (Docker's default forbids io_uring)"
                .to_string()
        }
        io::ErrorKind::Unsupported => {
            format!("the kernel has no io_uring, or one that is too old: {error}")
        }
        io::ErrorKind::OutOfMemory => {
            "io_uring may not lock enough memory; raise the limit (ulimit -l)".to_string()
        }
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_said_in_one_sentence() {
        let says = |error: io::Error, what: &str| {
            let sentence = obstacle(&error);
            assert!(sentence.contains(what), "{sentence}");
            assert!(!sentence.contains('\n'), "{sentence}");
        };
        says(io::ErrorKind::PermissionDenied.into(), "not permitted");
        says(io::ErrorKind::Unsupported.into(), "too old");
        says(io::ErrorKind::OutOfMemory.into(), "ulimit -l");
        says(io::Error::other("for a reason"), "for a reason");
    }
}
