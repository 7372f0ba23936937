//! Input of the server side of `http`: any input gets valid responses or a close, and the same for any cuts.
#![no_main]

mod common;

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use common::{assert_cuts_change_nothing, split_cut_size};
use libfuzzer_sys::fuzz_target;
use protocol::http::{DirectoryEntry, FileStore, Lookup, StoredFile};
use protocol::{Protocol, SessionOptions};

/// File store with two files and a directory.
#[derive(Debug)]
struct FuzzStore {
    small: Arc<StoredFile>,
    large: Arc<StoredFile>,
}

impl FuzzStore {
    fn new() -> io::Result<FuzzStore> {
        let file = tempfile::tempfile()?;
        file.set_len(300)?;
        let file = Arc::new(file);
        let entry = |length: u64, content: Option<Box<[u8]>>| {
            Arc::new(StoredFile {
                file: Arc::clone(&file),
                length,
                modified: SystemTime::UNIX_EPOCH,
                content,
            })
        };
        Ok(FuzzStore {
            small: entry(2, Some(Box::from(&b"ab"[..]))),
            large: entry(300, None),
        })
    }
}

impl FileStore for FuzzStore {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        // Every file store relies on these properties of a path.
        assert!(!path.contains(&0), "the path contains NUL");
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|_| !path.is_empty())
        {
            assert!(
                !matches!(name, b"" | b"." | b".."),
                "the path has an empty name or leaves the root"
            );
        }
        match path {
            b"" | b"d" => Ok(Lookup::Directory {
                entries: vec![DirectoryEntry {
                    name: b"<&\"\xff".to_vec(),
                    directory: true,
                    length: 0,
                }],
                more: true,
            }),
            b"a" => Ok(Lookup::File(Arc::clone(&self.small))),
            b"b" => Ok(Lookup::File(Arc::clone(&self.large))),
            b"c" => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Ok(Lookup::Nothing),
        }
    }
}

static STORE: LazyLock<Arc<FuzzStore>> =
    LazyLock::new(|| Arc::new(FuzzStore::new().expect("a temporary file can be made")));

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = split_cut_size(data) else {
        return;
    };
    let http = Protocol::find("http").expect("the protocol exists");
    let options = SessionOptions {
        max_line: 400,
        file_store: Arc::clone(&*STORE) as Arc<dyn FileStore>,
        ..SessionOptions::default()
    };
    let output = assert_cuts_change_nothing(|| (http.open)(&options), input, size);
    assert!(
        output.is_empty() || output.starts_with(b"HTTP/1.1 "),
        "the output is no response"
    );
});
