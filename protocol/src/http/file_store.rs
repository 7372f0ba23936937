//! Interface to the files that an HTTP server serves.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// Source of the files and of the time, which a session can't get by itself because it does no I/O.
///
/// A look-up may call the file system, and it does so synchronously, as in most web servers: opening a file takes
/// little time compared with sending it, and hardly any operating system can open a file asynchronously.
pub trait FileStore: fmt::Debug + Send + Sync {
    /// Returns the current time, for the `Date` field.
    fn now(&self) -> SystemTime;

    /// Looks up the file or directory at `path`: decoded names with `/` between them, or empty for the root. No name in
    /// it is empty, `.` or `..`, and none contains `/` or NUL.
    ///
    /// # Errors
    ///
    /// The look-up failed, for example because no descriptor was free. This is a failure of the server and not of the
    /// client. A file that does not exist, or is not served, is no error but [`Lookup::Nothing`].
    fn look_up(&self, path: &[u8]) -> io::Result<Lookup>;
}

/// Result of a look-up.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The path names a file.
    File(Arc<StoredFile>),
    /// The path names a directory.
    Directory {
        /// Entries of the directory, in the order of the listing.
        entries: Vec<DirectoryEntry>,
        /// True if further entries were left out: a page of a hundred thousand lines is of no use to readers.
        more: bool,
    },
    /// The path names nothing that is served.
    Nothing,
}

/// Open file that is served.
#[derive(Debug)]
pub struct StoredFile {
    /// Open file.
    pub file: Arc<File>,
    /// Length in bytes at the time when the file was opened.
    pub length: u64,
    /// Time of the last change.
    pub modified: SystemTime,
    /// Complete content of a small file; `None`: the content is sent from the file. A short body is sent in one write
    /// with its head and needs no operation of its own.
    pub content: Option<Box<[u8]>>,
}

/// Entry of a directory's listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectoryEntry {
    /// Name of the entry: any bytes except `/` and NUL.
    pub name: Vec<u8>,
    /// Whether the entry is a directory.
    pub directory: bool,
    /// Length in bytes, if the entry is a file.
    pub length: u64,
}

/// Store without files and without a clock: the time is always the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct EmptyFileStore;

impl FileStore for EmptyFileStore {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        Ok(match path {
            b"" => Lookup::Directory {
                entries: Vec::new(),
                more: false,
            },
            _ => Lookup::Nothing,
        })
    }
}
