//! The files that `http` serves: three built-in files, or the files under a directory.
//!
//! Open files are cached (at most `MAX_CACHED`), and each is looked up again after a second (`MAX_AGE`): to open a file
//! for each request would cost more than sending it. Files without a request in the last second are closed at the next
//! look-up. So the server notices a changed file after a second at the latest. Until then:
//!
//! * A file that was replaced (by rename(2), as it should be) is served complete, with the old content.
//! * A file that is overwritten in place may be served half old and half new, as with any web server.
//! * If a file has become shorter, the connection is closed, since the announced length can't be sent.
//!
//! Hidden files, whose names begin with a dot, are neither listed nor served. The same holds for files in hidden
//! directories: they are keys and histories more often than pages. Only the requested name counts: a symbolic link
//! without a dot to a file with a dot means that the file is meant to be seen.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use protocol::http::{DirectoryEntry, FileStore, Lookup, StoredFile};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::READ_BUFFER;

/// Divisor of the descriptor limit. The quotient is the number of descriptors for cached files, if it is less than
/// [`MAX_CACHED`].
const CACHE_SHARE: u64 = 8;

/// Time for which a look-up of a file is used without another look-up.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Maximum number of cached files. Each is an open descriptor, and a process has few descriptors.
const MAX_CACHED: usize = 64;

/// Lowest descriptor number for files, if such a number is available. The numbers below it are left to sockets, because
/// select(2) accepts no higher numbers.
const FIRST_FILE_DESCRIPTOR: i32 = 1024;

/// Maximum number of entries of a listing. The server makes a page for each peer that requests a listing, and its
/// thread does nothing else meanwhile.
const MAX_LISTED: usize = 1_000;

/// Creates a store of three files of 13 bytes, 13 KiB and 13 MiB (13 × 1, 1024, 1024²), which lie in memory of the
/// kernel.
///
/// # Errors
///
/// There is too little memory for the files.
pub fn built_in() -> io::Result<Arc<dyn FileStore>> {
    const LINE: &[u8] = b"Hello World!\n";
    let modified = SystemTime::now();
    let mut files = Vec::new();
    for (name, count) in [("13b", 1), ("13k", 1024), ("13m", 1024 * 1024)] {
        let file = memory_file(name)?;
        let content = LINE.repeat(count);
        file.write_all_at(&content, 0)?;
        let file = StoredFile {
            file: Arc::new(file),
            length: content.len() as u64,
            modified,
            content: (content.len() <= READ_BUFFER).then(|| content.into()),
        };
        files.push((name, Arc::new(file)));
    }
    Ok(Arc::new(BuiltIn { files }))
}

/// Creates an empty file in memory of the kernel (memfd_create(2)).
#[cfg(target_os = "linux")]
fn memory_file(name: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

/// Creates an empty file without a name. The operating system decides how long it stays in memory.
#[cfg(not(target_os = "linux"))]
fn memory_file(_: &str) -> io::Result<File> {
    tempfile::tempfile()
}

/// The store of the built-in files.
#[derive(Debug)]
struct BuiltIn {
    files: Vec<(&'static str, Arc<StoredFile>)>,
}

impl FileStore for BuiltIn {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        if path.is_empty() {
            let entries = self.files.iter().map(|(name, file)| DirectoryEntry {
                name: name.as_bytes().to_vec(),
                directory: false,
                length: file.length,
            });
            return Ok(Lookup::Directory {
                entries: entries.collect(),
                more: false,
            });
        }
        let entry = self.files.iter().find(|(name, _)| name.as_bytes() == path);
        Ok(match entry {
            Some((_, file)) => Lookup::File(Arc::clone(file)),
            None => Lookup::Nothing,
        })
    }
}

/// Creates a store of the files under a directory, and no others: a symbolic link is followed only if its target is
/// inside. Listings are in the order of names, with directories first, and have at most 1,000 entries.
///
/// # Errors
///
/// The directory does not exist, is not a directory, or may not be read.
pub fn directory(root: &Path) -> io::Result<Arc<dyn FileStore>> {
    Ok(Arc::new(Tree::new(root, true)?))
}

/// The store of the files under a directory.
#[derive(Debug)]
struct Tree {
    root: Root,
    /// Maximum number of cached files.
    max_cached: usize,
    /// Cached files by path.
    cache: Mutex<HashMap<Box<[u8]>, CachedFile>>,
}

/// The root directory, and the way in which paths are kept inside it.
#[derive(Debug)]
enum Root {
    /// The kernel checks every component of a path (openat2(2)).
    #[cfg(target_os = "linux")]
    Beneath(OwnedFd),
    /// The path is resolved first and opened afterwards. A process that may change directories under the root can
    /// redirect the path between the two calls. On systems without openat2(2) there is no better way except to open the
    /// path component by component.
    Resolved(PathBuf),
}

/// An open file in the cache.
#[derive(Debug)]
struct CachedFile {
    file: Arc<StoredFile>,
    /// Device and inode numbers, which identify the file independently of its name.
    identity: (u64, u64),
    looked_up: Instant,
    last_used: Instant,
}

/// An open file or directory.
enum Opened {
    File(CachedFile),
    Directory(File),
}

impl Tree {
    /// Opens the root. With `beneath`, paths are opened by openat2(2), if the system has it.
    fn new(root: &Path, beneath: bool) -> io::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| {
            let kind = io::Error::from(errno).kind();
            match errno {
                Errno::NOENT => io::Error::new(kind, "there is no directory of that name"),
                Errno::NOTDIR => io::Error::new(kind, "it is not a directory"),
                Errno::ACCESS => io::Error::new(kind, "this user has no permission to read it"),
                _ => errno.into(),
            }
        })?;
        let root = match beneath {
            true => Root::of(descriptor, root)?,
            false => Root::Resolved(root.canonicalize()?),
        };
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = limit.map_or(MAX_CACHED as u64, |limit| limit / CACHE_SHARE);
        Ok(Tree {
            root,
            max_cached: usize::try_from(share).map_or(MAX_CACHED, |share| share.min(MAX_CACHED)),
            cache: Mutex::default(),
        })
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, CachedFile>> {
        // A poisoned lock is used too: an entry is either complete or absent.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a path up as if the time were `now`.
    fn look_up_at(&self, path: &[u8], now: Instant) -> io::Result<Lookup> {
        let is_shown =
            |name: &[u8]| !name.is_empty() && !name.starts_with(b".") && !name.contains(&0);
        if !path.is_empty() && !path.split(|byte| *byte == b'/').all(is_shown) {
            return Ok(Lookup::Nothing);
        }
        if let Some(cached) = self.cache().get_mut(path)
            && now < cached.looked_up + MAX_AGE
        {
            cached.last_used = now;
            return Ok(Lookup::File(Arc::clone(&cached.file)));
        }
        // The file is opened without the lock, so that other threads need not wait for the file system; two threads may
        // open the same file at the same time.
        let mut opened = self.open(path, now);
        if opened.is_err() {
            // Most likely descriptors are lacking: close the cached files that are not being sent, and try again.
            let evicted = mem::take(&mut *self.cache());
            drop(evicted);
            opened = self.open(path, now);
        }
        let opened = opened.inspect_err(|error| {
            let path = path.escape_ascii();
            tracing::warn!("cannot look up {path}: {error}");
        })?;
        let mut cache = self.cache();
        // Evicted files are closed after the lock is released: the last close of a deleted file has to wait for the
        // disk.
        let mut evicted: Vec<CachedFile> = Vec::new();
        let unused = cache.extract_if(|_, cached| cached.is_unused(now));
        evicted.extend(unused.map(|(_, cached)| cached));
        let lookup = match opened {
            Some(Opened::File(mut opened)) => {
                // All peers that are being sent the same file share one descriptor.
                if let Some(before) = cache.remove(path)
                    && before.is_same(&opened)
                {
                    opened.file = before.file;
                }
                let file = Arc::clone(&opened.file);
                let longest_unused = || {
                    let unused = cache.iter().min_by_key(|(_, cached)| cached.last_used);
                    unused.map(|(path, _)| path.clone())
                };
                if cache.len() >= self.max_cached
                    && let Some(path) = longest_unused()
                {
                    evicted.extend(cache.remove(&path));
                }
                if self.max_cached > 0 {
                    cache.insert(path.into(), opened);
                }
                Ok(Lookup::File(file))
            }
            Some(Opened::Directory(directory)) => {
                evicted.extend(cache.remove(path));
                drop(cache);
                return self.list(path, &directory);
            }
            None => {
                evicted.extend(cache.remove(path));
                Ok(Lookup::Nothing)
            }
        };
        drop(cache);
        lookup
    }

    /// Opens a path, if it is a file or a directory under the root; `None` if it is not.
    fn open(&self, path: &[u8], now: Instant) -> io::Result<Option<Opened>> {
        let file = match self.root.open(path) {
            Ok(file) => file,
            Err(errno) if is_not_found(errno) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Some(Opened::Directory(file)));
        }
        if !metadata.is_file() {
            return Ok(None);
        }
        // O_NONBLOCK was set only so that open(2) does not wait at a FIFO. With io_uring the flag would mean: fail if
        // the read has to wait for the disk.
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        let file = match rustix::io::fcntl_dupfd_cloexec(&file, FIRST_FILE_DESCRIPTOR) {
            Ok(moved) => File::from(moved),
            // The descriptor limit may be below that number.
            Err(_) => file,
        };
        let mut length = metadata.len();
        let mut content = None;
        if length <= READ_BUFFER as u64 {
            let bytes = read_all(&file, length as usize)?;
            // The file may have become shorter since its length was read.
            length = bytes.len() as u64;
            content = Some(bytes);
        }
        Ok(Some(Opened::File(CachedFile {
            file: Arc::new(StoredFile {
                file: Arc::new(file),
                length,
                modified: metadata.modified()?,
                content,
            }),
            identity: (metadata.dev(), metadata.ino()),
            looked_up: now,
            last_used: now,
        })))
    }

    /// Lists a directory: files and directories that are not hidden, and links to such that stay inside the root.
    fn list(&self, path: &[u8], directory: &File) -> io::Result<Lookup> {
        let mut entries = Vec::new();
        let mut more = false;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                // The entry was removed meanwhile.
                continue;
            };
            let (is_directory, length) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => (true, 0),
                FileType::RegularFile => (false, u64::try_from(stat.st_size).unwrap_or(0)),
                FileType::Symlink => {
                    let mut link = path.to_vec();
                    if !link.is_empty() {
                        link.push(b'/');
                    }
                    link.extend_from_slice(name.to_bytes());
                    let target = self.root.open(&link).ok();
                    match target.and_then(|target| target.metadata().ok()) {
                        Some(target) if target.is_dir() => (true, 0),
                        Some(target) if target.is_file() => (false, target.len()),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            // The order of the file system decides which entries are left out: to sort before the cut, all entries
            // would have to be kept.
            if entries.len() == MAX_LISTED {
                more = true;
                break;
            }
            entries.push(DirectoryEntry {
                name: name.to_bytes().to_vec(),
                directory: is_directory,
                length,
            });
        }
        entries.sort_unstable_by(|a, b| (!a.directory, &a.name).cmp(&(!b.directory, &b.name)));
        Ok(Lookup::Directory { entries, more })
    }
}

impl FileStore for Tree {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        self.look_up_at(path, Instant::now())
    }
}

impl CachedFile {
    /// Returns true if the file was not requested in the last second, and is not being sent to any peer.
    fn is_unused(&self, now: Instant) -> bool {
        let holders = Arc::strong_count(&self.file).max(Arc::strong_count(&self.file.file));
        now >= self.last_used + MAX_AGE && holders == 1
    }

    /// Returns true if the file has not changed. Two writes within one tick of the file system's clock give the same
    /// time of modification, so content that is held in memory is compared too.
    fn is_same(&self, other: &CachedFile) -> bool {
        let (a, b) = (&self.file, &other.file);
        self.identity == other.identity
            && (a.length, a.modified, &a.content) == (b.length, b.modified, &b.content)
    }
}

/// Flags with which files and directories are opened.
const OPEN: OFlags = OFlags::RDONLY
    // Without O_NONBLOCK, open(2) would wait at a FIFO for a writer, and at a terminal for its line.
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl Root {
    /// Returns the root, by openat2(2) if the system has it.
    #[cfg(target_os = "linux")]
    fn of(descriptor: OwnedFd, path: &Path) -> io::Result<Root> {
        match beneath(&descriptor, b".", OPEN) {
            Ok(_) => Ok(Root::Beneath(descriptor)),
            // The kernel is older than 5.6, or a sandbox refuses the call.
            Err(Errno::NOSYS | Errno::PERM) => Ok(Root::Resolved(path.canonicalize()?)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the root, whose paths are resolved before they are opened.
    #[cfg(not(target_os = "linux"))]
    fn of(_: OwnedFd, path: &Path) -> io::Result<Root> {
        Ok(Root::Resolved(path.canonicalize()?))
    }

    /// Opens a path relative to the root. The empty path is the root itself.
    fn open(&self, path: &[u8]) -> Result<File, Errno> {
        match self {
            #[cfg(target_os = "linux")]
            Root::Beneath(root) => {
                let path = if path.is_empty() { b"." } else { path };
                // O_PATH finds the type of the file without opening it: opening a FIFO would end the wait of a process
                // that writes to it, and opening a device may have any effect.
                let unopened = beneath(root, path, OFlags::PATH | OFlags::CLOEXEC)?;
                let mode = rustix::fs::fstat(&unopened)?.st_mode;
                match FileType::from_raw_mode(mode) {
                    FileType::RegularFile | FileType::Directory => {
                        beneath(root, path, OPEN).map(File::from)
                    }
                    _ => Err(Errno::NXIO),
                }
            }
            Root::Resolved(root) => {
                let full_path = root.join(OsStr::from_bytes(path));
                let resolved = full_path
                    .canonicalize()
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
                if !resolved.starts_with(root) {
                    return Err(Errno::XDEV);
                }
                rustix::fs::open(&resolved, OPEN | OFlags::NOFOLLOW, Mode::empty()).map(File::from)
            }
        }
    }
}

/// Opens a path with openat2(2), which fails if any component leads out of the root.
#[cfg(target_os = "linux")]
fn beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 100;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            // A component was renamed during the call, and the kernel can't tell whether the path led outside.
            Err(Errno::AGAIN) if tries > 0 => tries -= 1,
            opened => return opened,
        }
    }
}

/// Returns true if the error means that the path has nothing to serve. All other errors are failures of the server.
fn is_not_found(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::ACCESS
            | Errno::PERM
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::INVAL
            // The path has bytes that the file system does not allow in a name.
            | Errno::ILSEQ
            // The path is a socket, or a device without hardware or driver.
            | Errno::NXIO
            | Errno::NODEV
            | Errno::OPNOTSUPP
    )
}

/// Reads the first `length` bytes of a file, or all of the file if it is shorter.
fn read_all(file: &File, length: usize) -> io::Result<Box<[u8]>> {
    let mut content = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut content[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    content.truncate(filled);
    Ok(content.into())
}

#[cfg(test)]
mod tests;
