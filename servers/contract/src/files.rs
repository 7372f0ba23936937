//! Files on their way into sockets.
//!
//! No readiness tells when a file can be read: to poll(2) it always can, also when the page is on a disk and whoever reads
//! it will wait; and epoll does not take files. So there are three ways, and each model takes the best that it has: to read there and then
//! and accept the wait ([`send_file`]), to have a thread wait ([`read_file`], in the runtime's pool), or to submit the
//! read and be told when it is done (`uring`, `compio`).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use protocol::FileSlice;

/// The most that goes from a file to a socket in one call, in bytes: others want their turn, and a peer that takes it
/// is not idle.
pub const FILE_TURN: usize = 1024 * 1024;

/// The most that is read from a file at once, in bytes, where it goes through memory of ours. Each connection that is
/// being sent a file has such a buffer.
pub const FILE_BUFFER: usize = 64 * 1024;

/// Sends as much of a range as the socket takes, at most [`FILE_TURN`], without a copy in our memory (sendfile(2)). May
/// wait for the disk.
///
/// # Errors
///
/// As write(2); and `UnexpectedEof` where the file has become shorter, since what was promised can't be sent.
#[cfg(target_os = "linux")]
pub fn send_file(socket: impl AsFd, slice: &FileSlice) -> io::Result<usize> {
    let most = usize::try_from(slice.len()).map_or(FILE_TURN, |len| len.min(FILE_TURN));
    let mut offset = slice.offset();
    match rustix::fs::sendfile(socket, slice.file(), Some(&mut offset), most)? {
        0 => Err(shorter()),
        count => Ok(count),
    }
}

/// As above, through our memory: sendfile(2) is another call on every system. What the socket does not take is read again.
#[cfg(not(target_os = "linux"))]
pub fn send_file(socket: impl AsFd, slice: &FileSlice) -> io::Result<usize> {
    let mut buffer = [0; crate::READ_BUFFER];
    let count = read_file(slice, &mut buffer)?;
    Ok(rustix::io::write(socket, &buffer[..count])?)
}

/// Reads the beginning of a range; gives how many bytes. May wait for the disk.
///
/// # Errors
///
/// As pread(2); and `UnexpectedEof` where the file has become shorter.
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

/// A piece of a file in memory, for models that have another thread read it.
///
/// It moves there and back, so that a file of any length needs one piece of memory. And it knows what it holds: what
/// the socket did not take is not read again.
#[derive(Debug, Default)]
pub struct Piece {
    buffer: Vec<u8>,
    /// What was to be read: the buffer holds the beginning of that.
    slice: Option<FileSlice>,
}

impl Piece {
    /// The beginning of a range, as far as it is here; `None` if it must be read first.
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

    /// Reads the beginning of a range, at most [`FILE_BUFFER`], in place of what was here. May wait for the disk.
    ///
    /// # Errors
    ///
    /// As [`read_file`].
    pub fn read(mut self, slice: FileSlice) -> io::Result<Piece> {
        let most = usize::try_from(slice.len()).map_or(FILE_BUFFER, |len| len.min(FILE_BUFFER));
        self.buffer.resize(most, 0);
        let count = read_file(&slice, &mut self.buffer)?;
        self.buffer.truncate(count);
        self.slice = Some(slice);
        Ok(self)
    }
}

/// What is said of a file that has become shorter than what was promised of it.
pub fn shorter() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file has become shorter while it was sent",
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Any file that is longer than a buffer.
    fn this_program() -> Arc<File> {
        Arc::new(File::open(std::env::current_exe().unwrap()).unwrap())
    }

    #[test]
    fn a_piece_holds_what_was_read_until_all_of_it_is_sent() {
        let mut slice = FileSlice::new(this_program(), 100, FILE_BUFFER as u64 + 10);
        let piece = Piece::default();
        assert_eq!(piece.beginning_of(&slice), None);
        let piece = piece.read(slice.clone()).unwrap();
        let read = piece.beginning_of(&slice).unwrap().to_vec();
        let mut expected = vec![0; FILE_BUFFER];
        slice.file().read_exact_at(&mut expected, 100).unwrap();
        assert!(read == expected, "other bytes");

        slice.advance(1);
        assert_eq!(piece.beginning_of(&slice), Some(&read[1..]));
        slice.advance(FILE_BUFFER as u64 - 1);
        assert_eq!(piece.beginning_of(&slice), None);
        let piece = piece.read(slice.clone()).unwrap();
        assert_eq!(piece.beginning_of(&slice).unwrap().len(), 10);
    }

    #[test]
    fn a_piece_holds_nothing_of_another_file_or_from_before() {
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
