//! HTTP requests: whatever arrives, an exact answer or a close, and the same however it is cut.
#![no_main]

mod common;

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use common::{cut, cuts_change_nothing};
use libfuzzer_sys::fuzz_target;
use protocol::http::{DirectoryEntry, FileStore, Lookup, StoredFile};
use protocol::{Protocol, SessionOptions};

/// A few files, and a directory.
#[derive(Debug)]
struct Few {
    small: Arc<StoredFile>,
    large: Arc<StoredFile>,
}

impl Few {
    fn new() -> io::Result<Few> {
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
        Ok(Few {
            small: entry(2, Some(Box::from(&b"ab"[..]))),
            large: entry(300, None),
        })
    }
}

impl FileStore for Few {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Lookup> {
        // What every site may rely on.
        assert!(!path.contains(&0), "a NUL");
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|_| !path.is_empty())
        {
            assert!(!matches!(name, b"" | b"." | b".."), "leaves the root");
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

static SITE: LazyLock<Arc<Few>> = LazyLock::new(|| Arc::new(Few::new().expect("a file")));

fuzz_target!(|data: &[u8]| {
    let Some((input, size)) = cut(data) else {
        return;
    };
    let http = Protocol::find("http").expect("it is there");
    let options = SessionOptions {
        max_line: 400,
        file_store: Arc::clone(&*SITE) as Arc<dyn FileStore>,
        ..SessionOptions::default()
    };
    let said = cuts_change_nothing(|| (http.open)(&options), input, size);
    assert!(
        said.is_empty() || said.starts_with(b"HTTP/1.1 "),
        "no response"
    );
});
