//! What `http` serves: three files of its own, or those under a directory.
//!
//! An open file is remembered (`REMEMBERED` of them), and looked up again after a second (`FRESH`); opened for each
//! request, a file would cost more than sending it does. What nobody has asked for in the last second is let go at the
//! next look-up. So whoever changes a file is seen a second later at the latest. Until then a file
//! that was replaced (by rename(2), as it should be) is served as it was, whole, from the old one; one that is
//! overwritten in place may be served half old and half new, as with any web server; and where one has become shorter
//! the connection is closed, since what was promised can't be sent.
//!
//! Hidden files, whose names begin with a dot, are neither listed nor served, nor is what is in such a directory: they
//! are keys and histories more often than pages. (It is the name asked for that counts: a link without a dot to a file
//! with one says that the file is meant to be seen.)

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

/// Of the descriptors that the process may have, one in so many is for files that are remembered.
const SHARE: u64 = 8;

/// How long what is known of a file is believed.
const FRESH: Duration = Duration::from_secs(1);

/// Files that are remembered. Each is an open descriptor, of which a process has not many.
const REMEMBERED: usize = 64;

/// Descriptors below this are left to sockets, where others are to be had: select(2) takes no others.
const SOCKETS: i32 = 1024;

/// Entries of a listing. Each peer that asks for it is sent a page of its own, and whoever makes it does nothing else.
const LISTED: usize = 1_000;

/// Three files of 13 bytes, 13 KiB and 13 MiB (13 × 1, 1024, 1024²), in memory of the kernel's.
///
/// # Errors
///
/// There was no room for them.
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

#[cfg(target_os = "linux")]
fn memory_file(name: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

/// Without a name, and in memory as long as the system likes.
#[cfg(not(target_os = "linux"))]
fn memory_file(_: &str) -> io::Result<File> {
    tempfile::tempfile()
}

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
        let found = self.files.iter().find(|(name, _)| name.as_bytes() == path);
        Ok(match found {
            Some((_, file)) => Lookup::File(Arc::clone(file)),
            None => Lookup::Nothing,
        })
    }
}

/// The files under a directory, and nothing else: a symbolic link is followed where it stays inside. Listings are in
/// the order of names, directories first, and have at most 1,000 entries.
///
/// # Errors
///
/// It is not there, or no directory, or may not be read.
pub fn directory(root: &Path) -> io::Result<Arc<dyn FileStore>> {
    Ok(Arc::new(Tree::new(root, true)?))
}

#[derive(Debug)]
struct Tree {
    root: Root,
    /// How many files are remembered.
    most: usize,
    cache: Mutex<HashMap<Box<[u8]>, CachedFile>>,
}

/// How a path is kept inside.
#[derive(Debug)]
enum Root {
    /// The kernel sees to it, on every step of the way (openat2(2)).
    #[cfg(target_os = "linux")]
    Beneath(OwnedFd),
    /// The path is resolved first and opened then. Whoever may change directories under the root meanwhile can lead
    /// that astray; elsewhere there is no better way without walking step by step.
    Resolved(PathBuf),
}

/// A file that was opened.
#[derive(Debug)]
struct CachedFile {
    file: Arc<StoredFile>,
    /// Device and inode: which file it is, whatever it is called.
    identity: (u64, u64),
    looked_up: Instant,
    used: Instant,
}

/// What is under a path, open.
enum Opened {
    File(CachedFile),
    Directory(File),
}

impl Tree {
    /// `beneath`: by openat2(2), if the system has it.
    fn new(root: &Path, beneath: bool) -> io::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| {
            let kind = io::Error::from(errno).kind();
            match errno {
                Errno::NOENT => io::Error::new(kind, "there is nothing of that name"),
                Errno::NOTDIR => io::Error::new(kind, "it is not a directory"),
                Errno::ACCESS => io::Error::new(kind, "this user may not read it"),
                _ => errno.into(),
            }
        })?;
        let root = match beneath {
            true => Root::of(descriptor, root)?,
            false => Root::Resolved(root.canonicalize()?),
        };
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = limit.map_or(REMEMBERED as u64, |limit| limit / SHARE);
        Ok(Tree {
            root,
            most: usize::try_from(share).map_or(REMEMBERED, |share| share.min(REMEMBERED)),
            cache: Mutex::default(),
        })
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, CachedFile>> {
        // Poisoned or not: an entry is whole or not there.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_up_at(&self, path: &[u8], now: Instant) -> io::Result<Lookup> {
        let is_shown =
            |name: &[u8]| !name.is_empty() && !name.starts_with(b".") && !name.contains(&0);
        if !path.is_empty() && !path.split(|byte| *byte == b'/').all(is_shown) {
            return Ok(Lookup::Nothing);
        }
        if let Some(known) = self.cache().get_mut(path)
            && now < known.looked_up + FRESH
        {
            known.used = now;
            return Ok(Lookup::File(Arc::clone(&known.file)));
        }
        // Others need not wait for the file system: it is asked without the lock, twice if need be.
        let mut opened = self.open(path, now);
        if opened.is_err() {
            // For want of descriptors, most likely: those of files that are only remembered are given up for it.
            let let_go = mem::take(&mut *self.cache());
            drop(let_go);
            opened = self.open(path, now);
        }
        let opened = opened.inspect_err(|error| {
            let path = path.escape_ascii();
            tracing::warn!("cannot look up {path}: {error}");
        })?;
        let mut cache = self.cache();
        // Closed when the lock is open again: the last to close a file that was deleted has to wait for the disk.
        let mut let_go: Vec<CachedFile> = Vec::new();
        let unused = cache.extract_if(|_, known| known.is_unused(now));
        let_go.extend(unused.map(|(_, known)| known));
        let found = match opened {
            Some(Opened::File(mut known)) => {
                // One descriptor for all who are being sent the same file.
                if let Some(before) = cache.remove(path)
                    && before.is_same(&known)
                {
                    known.file = before.file;
                }
                let file = Arc::clone(&known.file);
                let longest_unused = || {
                    let unused = cache.iter().min_by_key(|(_, known)| known.used);
                    unused.map(|(path, _)| path.clone())
                };
                if cache.len() >= self.most
                    && let Some(path) = longest_unused()
                {
                    let_go.extend(cache.remove(&path));
                }
                if self.most > 0 {
                    cache.insert(path.into(), known);
                }
                Ok(Lookup::File(file))
            }
            Some(Opened::Directory(directory)) => {
                let_go.extend(cache.remove(path));
                drop(cache);
                return self.list(path, &directory);
            }
            None => {
                let_go.extend(cache.remove(path));
                Ok(Lookup::Nothing)
            }
        };
        drop(cache);
        found
    }

    /// Opens what is there, if it is a file or a directory, and under the root.
    fn open(&self, path: &[u8], now: Instant) -> io::Result<Option<Opened>> {
        let file = match self.root.open(path) {
            Ok(file) => file,
            Err(errno) if is_nothing(errno) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Some(Opened::Directory(file)));
        }
        if !metadata.is_file() {
            return Ok(None);
        }
        // It was to keep a FIFO from blocking. To io_uring it would mean: not if the disk is to be waited for.
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        let file = match rustix::io::fcntl_dupfd_cloexec(&file, SOCKETS) {
            Ok(elsewhere) => File::from(elsewhere),
            // There may be no number as high.
            Err(_) => file,
        };
        let mut length = metadata.len();
        let mut content = None;
        if length <= READ_BUFFER as u64 {
            let all = read_all(&file, length as usize)?;
            // It may have become shorter just now.
            length = all.len() as u64;
            content = Some(all);
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
            used: now,
        })))
    }

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
                // It has gone meanwhile.
                continue;
            };
            let (is_directory, length) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => (true, 0),
                FileType::RegularFile => (false, u64::try_from(stat.st_size).unwrap_or(0)),
                FileType::Symlink => {
                    let mut whole = path.to_vec();
                    if !whole.is_empty() {
                        whole.push(b'/');
                    }
                    whole.extend_from_slice(name.to_bytes());
                    let target = self.root.open(&whole).ok();
                    match target.and_then(|target| target.metadata().ok()) {
                        Some(target) if target.is_dir() => (true, 0),
                        Some(target) if target.is_file() => (false, target.len()),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            // Which are left out of very many, the file system says: to sort them first, all had to be kept.
            if entries.len() == LISTED {
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
    /// Whether nobody has asked for it in the last second, and nobody is being sent it.
    fn is_unused(&self, now: Instant) -> bool {
        let holders = Arc::strong_count(&self.file).max(Arc::strong_count(&self.file.file));
        now >= self.used + FRESH && holders == 1
    }

    /// Whether nothing has changed. Two writes within one tick of the file system's clock give the same time, so a
    /// content that is held is compared itself.
    fn is_same(&self, other: &CachedFile) -> bool {
        let (a, b) = (&self.file, &other.file);
        self.identity == other.identity
            && (a.length, a.modified, &a.content) == (b.length, b.modified, &b.content)
    }
}

const OPEN: OFlags = OFlags::RDONLY
    // A FIFO would wait for somebody who writes, and a terminal for its line.
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl Root {
    #[cfg(target_os = "linux")]
    fn of(descriptor: OwnedFd, path: &Path) -> io::Result<Root> {
        match beneath(&descriptor, b".", OPEN) {
            Ok(_) => Ok(Root::Beneath(descriptor)),
            // The kernel is older than 5.6, or a sandbox does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => Ok(Root::Resolved(path.canonicalize()?)),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_: OwnedFd, path: &Path) -> io::Result<Root> {
        Ok(Root::Resolved(path.canonicalize()?))
    }

    /// Opens a path, which is relative; an empty one is the root.
    fn open(&self, path: &[u8]) -> Result<File, Errno> {
        match self {
            #[cfg(target_os = "linux")]
            Root::Beneath(root) => {
                let path = if path.is_empty() { b"." } else { path };
                // Only to open a FIFO ends the wait of whoever writes there, and a device may do anything.
                let look = beneath(root, path, OFlags::PATH | OFlags::CLOEXEC)?;
                let mode = rustix::fs::fstat(&look)?.st_mode;
                match FileType::from_raw_mode(mode) {
                    FileType::RegularFile | FileType::Directory => {
                        beneath(root, path, OPEN).map(File::from)
                    }
                    _ => Err(Errno::NXIO),
                }
            }
            Root::Resolved(root) => {
                let whole = root.join(OsStr::from_bytes(path));
                let resolved = whole
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

#[cfg(target_os = "linux")]
fn beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 100;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            // Something was renamed on the way, and the kernel can't tell whether that led outside.
            Err(Errno::AGAIN) if tries > 0 => tries -= 1,
            opened => return opened,
        }
    }
}

/// Whether that means that nothing is there to be served. Everything else is trouble of the server's.
fn is_nothing(errno: Errno) -> bool {
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
            // Of bytes that the file system can't have in a name.
            | Errno::ILSEQ
            // A socket, or a device that nothing is behind.
            | Errno::NXIO
            | Errno::NODEV
            | Errno::OPNOTSUPP
    )
}

/// All of a file, or as much as there is.
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
