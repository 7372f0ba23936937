//! What an HTTP server has to offer, seen from a conversation.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// Where files come from, and what time it is: what a conversation can't know by itself.
///
/// A look-up may have to ask the file system, and it does so then and there, as most web servers do: opening a file is
/// short beside sending it, and hardly any system can be asked to open a file and to tell later.
pub trait FileStore: fmt::Debug + Send + Sync {
    /// The time, for `Date`.
    fn now(&self) -> SystemTime;

    /// What is there under that path: names of files and directories with `/` between them, decoded; nothing for the
    /// root. No name in it is empty, `.` or `..`, and none has a `/` or a NUL.
    ///
    /// # Errors
    ///
    /// It could not be looked up, for want of descriptors perhaps: that is the server's trouble, and not the client's.
    /// (What is not there, or may not be seen, is [`Lookup::Nothing`].)
    fn look_up(&self, path: &[u8]) -> io::Result<Lookup>;
}

/// What a look-up finds.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// A file.
    File(Arc<StoredFile>),
    /// A directory, and what is in it.
    Directory {
        /// In the order in which they are to be listed.
        entries: Vec<DirectoryEntry>,
        /// There are more, which were left out: nobody reads a hundred thousand lines.
        more: bool,
    },
    /// Nothing that is served.
    Nothing,
}

/// A file, open.
#[derive(Debug)]
pub struct StoredFile {
    /// The file.
    pub file: Arc<File>,
    /// Its length in bytes, when it was opened.
    pub length: u64,
    /// When it was last changed.
    pub modified: SystemTime,
    /// All of it, if it is small: a short body then goes out together with its head, and needs no way of its own.
    pub content: Option<Box<[u8]>>,
}

/// A line of a directory's listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectoryEntry {
    /// Any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// It can be listed itself.
    pub directory: bool,
    /// Bytes; of a file.
    pub length: u64,
}

/// Nothing to offer, and no clock.
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
