//! The expected replies of a server, computed by the protocol itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use protocol::http::{FileStore, Lookup, StoredFile};
use protocol::{Bulk, CloseReason, Protocol, ScriptOptions, Session, SessionOptions, Step};
use rustix::fs::{MemfdFlags, memfd_create};

/// Messages of `bulk`. They are small, because a check sends hundreds of them.
const BULK: Bulk = Bulk {
    size: 100,
    count: 3,
};

/// Returns the options for the sessions of the suite's servers.
pub(super) fn session_options() -> SessionOptions {
    SessionOptions {
        bulk: BULK,
        file_store: Arc::new(OneFile),
        ..SessionOptions::default()
    }
}

/// File store of `http` with one file for every path. The file is small, but it is sent in the same way as a large one.
/// The clock stands still, because otherwise two servers would send different dates.
#[derive(Debug)]
struct OneFile;

impl FileStore for OneFile {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn look_up(&self, _: &[u8]) -> io::Result<Lookup> {
        static FILE: OnceLock<Arc<StoredFile>> = OnceLock::new();
        let make = || {
            const CONTENT: &[u8] = b"Hello World!\n";
            let file = memfd_create("one file", MemfdFlags::CLOEXEC).expect("no memory");
            let file = File::from(file);
            file.write_all_at(CONTENT, 0).expect("no memory");
            Arc::new(StoredFile {
                file: Arc::new(file),
                length: CONTENT.len() as u64,
                modified: SystemTime::UNIX_EPOCH,
                content: None,
            })
        };
        Ok(Lookup::File(Arc::clone(FILE.get_or_init(make))))
    }
}

/// A session that a check drives by hand.
pub(super) struct Oracle {
    session: Box<dyn Session>,
    over: Option<CloseReason>,
}

impl Oracle {
    pub(super) fn new(protocol: &'static Protocol) -> Oracle {
        Oracle {
            session: (protocol.open)(&session_options()),
            over: None,
        }
    }

    /// Returns the reply to `input`, before more input comes.
    pub(super) fn receive(&mut self, input: &[u8]) -> Vec<u8> {
        self.session.receive(input);
        self.drive()
    }

    /// Returns the reply to the end of input.
    pub(super) fn end_of_input(&mut self) -> Vec<u8> {
        self.session.end_of_input();
        self.drive()
    }

    /// Returns how the conversation ended, or `None` if it has not ended.
    pub(super) fn over(&self) -> Option<CloseReason> {
        self.over
    }

    /// Steps the session until it reads or closes, and returns the bytes that it sends.
    fn drive(&mut self) -> Vec<u8> {
        let mut replied = Vec::new();
        loop {
            match self.session.step() {
                Step::Read => return replied,
                Step::Write(bytes) => {
                    replied.extend_from_slice(bytes);
                    let count = bytes.len();
                    self.session.sent(count);
                }
                Step::SendFile(slice) => {
                    let start = replied.len();
                    replied.resize(start + slice.len() as usize, 0);
                    let read = slice
                        .file()
                        .read_exact_at(&mut replied[start..], slice.offset());
                    read.expect("the file is shorter than its range");
                    self.session.sent(replied.len() - start);
                }
                Step::Work(_) => self.session.worked(),
                Step::Close(reason) => {
                    self.over = Some(reason);
                    return replied;
                }
            }
        }
    }
}

/// Returns all replies to `input` and to its end.
pub(super) fn replies(protocol: &'static Protocol, input: &[u8]) -> Vec<u8> {
    let mut oracle = Oracle::new(protocol);
    let mut replied = oracle.receive(input);
    replied.extend(oracle.end_of_input());
    replied
}

/// Returns the requests that a well-behaved client sends in one conversation. Each has `size` bytes if the protocol
/// allows a choice.
pub(super) fn requests(
    protocol: &'static Protocol,
    client: u64,
    count: usize,
    size: Option<usize>,
) -> Vec<Vec<u8>> {
    let options = ScriptOptions {
        size,
        seed: 1,
        client,
        bulk: BULK,
        ..ScriptOptions::default()
    };
    let mut script = (protocol.ask)(&options);
    let mut oracle = Oracle::new(protocol);
    let most = protocol.requests_per_connection.unwrap_or(u64::MAX);
    (0..count.min(usize::try_from(most).unwrap_or(usize::MAX)))
        .map(|_| {
            let mut request = Vec::new();
            script.ask(&mut request);
            // A script gives the next request only after it has received the last reply.
            let reply = oracle.receive(&request);
            script
                .receive(&reply)
                .expect("the script refuses the reply of its own session");
            request
        })
        .collect()
}
