//! What a server must say, according to the protocol itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use protocol::http::{FileStore, Lookup, StoredFile};
use protocol::{Bulk, CloseReason, Protocol, ScriptOptions, Session, SessionOptions, Step};
use rustix::fs::{MemfdFlags, memfd_create};

/// Messages of `bulk`: small, since there will be hundreds.
const BULK: Bulk = Bulk {
    size: 100,
    count: 3,
};

/// What the sessions of the suite's servers are told.
pub(super) fn session_options() -> SessionOptions {
    SessionOptions {
        bulk: BULK,
        file_store: Arc::new(OneFile),
        ..SessionOptions::default()
    }
}

/// What `http` is asked for, whoever asks: small, but sent as files are that are not. And a clock that stands still, or
/// no two servers would say the same.
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

/// A session that is driven by hand.
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

    /// What is replied to `input`, before more comes.
    pub(super) fn receive(&mut self, input: &[u8]) -> Vec<u8> {
        self.session.receive(input);
        self.speak()
    }

    /// What is replied to the end of input.
    pub(super) fn hear_the_end(&mut self) -> Vec<u8> {
        self.session.end_of_input();
        self.speak()
    }

    /// How the conversation ended, if it has.
    pub(super) fn over(&self) -> Option<CloseReason> {
        self.over
    }

    fn speak(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        loop {
            match self.session.step() {
                Step::Read => return said,
                Step::Write(bytes) => {
                    said.extend_from_slice(bytes);
                    let count = bytes.len();
                    self.session.sent(count);
                }
                Step::SendFile(slice) => {
                    let start = said.len();
                    said.resize(start + slice.len() as usize, 0);
                    let read = slice
                        .file()
                        .read_exact_at(&mut said[start..], slice.offset());
                    read.expect("a file as long as it is said to be");
                    self.session.sent(said.len() - start);
                }
                Step::Work(_) => self.session.worked(),
                Step::Close(farewell) => {
                    self.over = Some(farewell);
                    return said;
                }
            }
        }
    }
}

/// All replies to `input` and its end.
pub(super) fn replies(protocol: &'static Protocol, input: &[u8]) -> Vec<u8> {
    let mut oracle = Oracle::new(protocol);
    let mut said = oracle.receive(input);
    said.extend(oracle.hear_the_end());
    said
}

/// What a well-behaved client asks in one conversation, request by request; of `size` bytes each if the protocol has
/// a choice.
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
            // Scripts are asked only after the last reply.
            let reply = oracle.receive(&request);
            script
                .receive(&reply)
                .expect("a session and its script agree");
            request
        })
        .collect()
}
