//! Files, as far as a conversation speaks of them: which part of which open file is to be sent. This crate opens none
//! and reads none.

use std::fs::File;
use std::sync::Arc;

/// A range of an open file that is to be sent as it is.
///
/// It names bytes, and holds none: so a reply of any length costs a conversation these few words. The file is shared,
/// because many conversations send the same one, and stays open for as long as anybody does.
#[derive(Debug, Clone)]
pub struct FileSlice {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl FileSlice {
    /// `len` bytes from `offset`.
    pub fn new(file: Arc<File>, offset: u64, len: u64) -> FileSlice {
        FileSlice { file, offset, len }
    }

    /// The file. Its own position means nothing: read at [`offset`](Self::offset) (pread(2), sendfile(2) with an offset).
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the range begins, in bytes from the start of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it has. A file that was shortened meanwhile has fewer, and then the conversation can't go on.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Leaves out the first `count` bytes: they are sent.
    pub fn advance(&mut self, count: u64) {
        debug_assert!(count <= self.len, "more sent than offered");
        let count = count.min(self.len);
        self.offset += count;
        self.len -= count;
    }
}

/// The same range of the same open file.
impl PartialEq for FileSlice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && (self.offset, self.len) == (other.offset, other.len)
    }
}

impl Eq for FileSlice {}
