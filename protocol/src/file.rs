//! Reference to a part of an open file that is to be sent. This crate neither opens nor reads files.

use std::fs::File;
use std::sync::Arc;

/// Range of an open file that is to be sent without change.
///
/// The range refers to bytes and holds none, so a reply of any length costs a session only the size of this struct. The
/// file is shared, because many sessions send the same file, and it stays open as long as one of them refers to it.
#[derive(Debug, Clone)]
pub struct FileSlice {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl FileSlice {
    /// Refers to `len` bytes of `file`, from `offset` on (in bytes from the start of the file).
    pub fn new(file: Arc<File>, offset: u64, len: u64) -> FileSlice {
        FileSlice { file, offset, len }
    }

    /// Returns the file. The file position is shared and has no meaning: read at [`offset`](Self::offset), with
    /// pread(2) or with the offset of sendfile(2).
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the beginning of the range, in bytes from the start of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the length of the range in bytes. If the file was shortened meanwhile, it has fewer bytes, and the
    /// conversation can't continue.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the range is empty: nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes the first `count` bytes from the range, because they are sent.
    pub fn advance(&mut self, count: u64) {
        debug_assert!(count <= self.len, "more bytes sent than offered");
        let count = count.min(self.len);
        self.offset += count;
        self.len -= count;
    }
}

/// Two slices are equal if they are the same range of the same open file.
impl PartialEq for FileSlice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && (self.offset, self.len) == (other.offset, other.len)
    }
}

impl Eq for FileSlice {}
