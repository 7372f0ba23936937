//! The runtime, which uses io_uring and nothing else.

use std::io;
use std::thread;

use compio::driver::{ProactorBuilder, op::OpCodeFlag};
use compio::runtime::Runtime;

/// Returns `Ok` if the kernel allows a ring and has the operations that the server submits, and otherwise the
/// unavailable reason.
pub(crate) fn available() -> Result<(), String> {
    // The first runtime only shows whether a ring can be created: compio reports a ring that is refused as one that
    // lacks operations. All this runs on a thread of its own, because closing a ring interrupts its thread once more, a
    // moment later, in whatever wait that thread is then.
    let tried = thread::Builder::new().spawn(|| Runtime::new().and_then(|_| runtime().map(drop)));
    let tried = tried.and_then(|thread| {
        let panicked = |_| Err(io::Error::other("compio panicked"));
        thread.join().unwrap_or_else(panicked)
    });
    tried.map_err(|error| unavailable_reason(&error))
}

/// Creates a runtime on io_uring. Without this check compio would silently use threads for an operation that is
/// missing.
///
/// # Errors
///
/// No ring can be created, or the kernel lacks an operation.
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
        driver => Err(io::Error::other(format!(
            "compio would use {driver:?} instead of io_uring"
        ))),
    }
}

/// Returns the reason for which io_uring can't be used, and the remedy, in one sentence.
fn unavailable_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "io_uring is forbidden; check /proc/sys/kernel/io_uring_disabled and, in a container, its seccomp profile \
             (Docker's default profile forbids io_uring)"
                .to_string()
        }
        io::ErrorKind::Unsupported => {
            format!("the kernel has no io_uring, or is too old for it: {error}")
        }
        io::ErrorKind::OutOfMemory => {
            "not enough memory for a ring; before Linux 5.12 it counts as locked memory: raise `ulimit -l`".to_string()
        }
        _ => format!("a ring cannot be created: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_reason_is_one_line_that_names_the_cause() {
        let assert_names = |error: io::Error, cause: &str| {
            let reason = unavailable_reason(&error);
            assert!(reason.contains(cause), "{reason}");
            assert!(!reason.contains('\n'), "{reason}");
        };
        assert_names(io::ErrorKind::PermissionDenied.into(), "forbidden");
        assert_names(io::ErrorKind::Unsupported.into(), "too old");
        assert_names(io::ErrorKind::OutOfMemory.into(), "ulimit -l");
        assert_names(io::Error::other("for a reason"), "for a reason");
    }
}
