//! Sending ranges of files to sockets.
//!
//! Readiness does not report whether a file can be read: poll(2) reports a file as always readable, even when the page
//! is on a disk and the read will wait; and epoll does not accept files. So there are three ways, and each model uses
//! the best one that it has: read at once and accept the wait ([`send_file`]), let another thread wait ([`read_file`],
//! in the runtime's pool), or submit the read and receive its completion (`uring`, `compio`).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use protocol::FileSlice;

/// Maximum number of bytes that go from a file to a socket in one call. After that other connections have their turn,
/// and the peer that has taken the bytes is recorded as not idle.
pub const FILE_TURN: usize = 1024 * 1024;

/// Maximum number of bytes that are read from a file at once, where the file goes through memory of the server. Each
/// connection that is being sent a file has a buffer of this size.
pub const FILE_BUFFER: usize = 64 * 1024;

/// Sends as much of a range as the socket takes, at most [`FILE_TURN`] bytes, without a copy in the server's memory
/// (sendfile(2)), and returns the number of bytes. May wait for the disk.
///
/// # Errors
///
/// The errors of write(2); and `UnexpectedEof` if the file has become shorter, since the announced length can't be
/// sent.
#[cfg(target_os = "linux")]
pub fn send_file(socket: impl AsFd, slice: &FileSlice) -> io::Result<usize> {
    let most = usize::try_from(slice.len()).map_or(FILE_TURN, |len| len.min(FILE_TURN));
    let mut offset = slice.offset();
    match rustix::fs::sendfile(socket, slice.file(), Some(&mut offset), most)? {
        0 => Err(shorter()),
        count => Ok(count),
    }
}

/// Sends as much of a range as the socket takes, at most [`READ_BUFFER`](crate::READ_BUFFER) bytes, through the
/// server's memory, and returns the number of bytes: sendfile(2) is a different call on every system. Bytes that the
/// socket does not take are read again. May wait for the disk.
///
/// # Errors
///
/// The errors of write(2) and of [`read_file`].
#[cfg(not(target_os = "linux"))]
pub fn send_file(socket: impl AsFd, slice: &FileSlice) -> io::Result<usize> {
    let mut buffer = [0; crate::READ_BUFFER];
    let count = read_file(slice, &mut buffer)?;
    Ok(rustix::io::write(socket, &buffer[..count])?)
}

/// Reads the beginning of a range into the buffer, and returns the number of bytes. May wait for the disk.
///
/// # Errors
///
/// The errors of pread(2); and `UnexpectedEof` if the file has become shorter.
pub fn read_file(slice: &FileSlice, buffer: &mut [u8]) -> io::Result<usize> {
    let most = usize::try_from(slice.len()).map_or(buffer.len(), |len| len.min(buffer.len()));
    loop {
        match slice.file().read_at(&mut buffer[..most], slice.offset()) {
            Ok(0) => return Err(shorter()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// A piece of a file in memory, for models that read files on another thread.
///
/// The piece moves to that thread and back, so a file of any length needs only one piece of memory. The piece records
/// which range it holds, so bytes that the socket did not take are not read again.
#[derive(Debug, Default)]
pub struct Piece {
    buffer: Vec<u8>,
    /// Range that was to be read: the buffer holds its beginning.
    slice: Option<FileSlice>,
}

impl Piece {
    /// Returns the beginning of a range, as far as the piece holds it, or `None` if the range must be read first.
    pub fn beginning_of(&self, slice: &FileSlice) -> Option<&[u8]> {
        let held = self.slice.as_ref()?;
        if !Arc::ptr_eq(held.file(), slice.file()) {
            return None;
        }
        let sent = usize::try_from(slice.offset().checked_sub(held.offset())?).ok()?;
        let bytes = self.buffer.get(sent..)?;
        let most = usize::try_from(slice.len()).map_or(bytes.len(), |len| len.min(bytes.len()));
        (most > 0).then(|| &bytes[..most])
    }

    /// Reads the beginning of a range, at most [`FILE_BUFFER`] bytes, and replaces the previous content. May wait for
    /// the disk.
    ///
    /// # Errors
    ///
    /// The errors of [`read_file`].
    pub fn read(mut self, slice: FileSlice) -> io::Result<Piece> {
        let most = usize::try_from(slice.len()).map_or(FILE_BUFFER, |len| len.min(FILE_BUFFER));
        self.buffer.resize(most, 0);
        let count = read_file(&slice, &mut self.buffer)?;
        self.buffer.truncate(count);
        self.slice = Some(slice);
        Ok(self)
    }
}

/// Returns the error for a file that has become shorter than the announced length.
pub fn shorter() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file became shorter while it was being sent",
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Opens a file that is longer than a buffer: the test program.
    fn this_program() -> Arc<File> {
        Arc::new(File::open(std::env::current_exe().unwrap()).unwrap())
    }

    #[test]
    fn piece_returns_unsent_bytes_until_all_are_sent() {
        let mut slice = FileSlice::new(this_program(), 100, FILE_BUFFER as u64 + 10);
        let piece = Piece::default();
        assert_eq!(piece.beginning_of(&slice), None);
        let piece = piece.read(slice.clone()).unwrap();
        let read = piece.beginning_of(&slice).unwrap().to_vec();
        let mut expected = vec![0; FILE_BUFFER];
        slice.file().read_exact_at(&mut expected, 100).unwrap();
        assert!(read == expected, "the piece differs from the file");

        slice.advance(1);
        assert_eq!(piece.beginning_of(&slice), Some(&read[1..]));
        slice.advance(FILE_BUFFER as u64 - 1);
        assert_eq!(piece.beginning_of(&slice), None);
        let piece = piece.read(slice.clone()).unwrap();
        assert_eq!(piece.beginning_of(&slice).unwrap().len(), 10);
    }

    #[test]
    fn piece_returns_nothing_of_another_file_or_range() {
        let (file, other) = (this_program(), this_program());
        let slice = |file, offset, len| FileSlice::new(Arc::clone(file), offset, len);
        let piece = Piece::default().read(slice(&file, 100, 50)).unwrap();
        assert_eq!(piece.beginning_of(&slice(&other, 100, 50)), None);
        assert_eq!(piece.beginning_of(&slice(&file, 99, 50)), None);
        assert_eq!(piece.beginning_of(&slice(&file, 150, 50)), None);
        let shorter = slice(&file, 140, 4);
        assert_eq!(piece.beginning_of(&shorter).unwrap().len(), 4);
    }
}
