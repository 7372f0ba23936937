use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{CWD, mkfifoat};
use tempfile::TempDir;

use super::*;

/// Creates a directory that contains `root` with files and directories, and beside it files that must not be served.
fn tree() -> TempDir {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(outside.path().join("private")).unwrap();
    fs::write(outside.path().join("private/key"), "secret").unwrap();
    let root = outside.path().join("root");
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::write(root.join("a.txt"), "a").unwrap();
    fs::write(root.join("dir/b.txt"), "bb").unwrap();
    fs::write(root.join("dir/sub/c.txt"), "ccc").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    outside
}

/// Opens the root in both ways of keeping paths inside.
fn trees(outside: &TempDir) -> [Tree; 2] {
    let root = outside.path().join("root");
    [true, false].map(|beneath| Tree::new(&root, beneath).unwrap())
}

fn content(found: io::Result<Lookup>) -> Option<Vec<u8>> {
    let Lookup::File(file) = found.unwrap() else {
        return None;
    };
    let mut content = vec![0; file.length as usize];
    file.file.read_exact_at(&mut content, 0).unwrap();
    if let Some(held) = &file.content {
        assert_eq!(**held, content[..]);
    }
    assert_eq!(file.content.is_some(), content.len() <= READ_BUFFER);
    Some(content)
}

fn is_nothing(found: &io::Result<Lookup>) -> bool {
    matches!(found, Ok(Lookup::Nothing))
}

fn listed(found: io::Result<Lookup>) -> (Vec<(String, u64)>, bool) {
    let Lookup::Directory { entries, more } = found.unwrap() else {
        panic!("no directory")
    };
    let entries = entries.iter().map(|entry| {
        let slash = if entry.directory { "/" } else { "" };
        (
            format!("{}{slash}", entry.name.escape_ascii()),
            entry.length,
        )
    });
    (entries.collect(), more)
}

fn names(found: io::Result<Lookup>) -> Vec<String> {
    listed(found).0.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn built_in_files_consist_of_lines_of_thirteen_bytes() {
    let file_store = built_in().unwrap();
    let (entries, more) = listed(file_store.look_up(b""));
    let expected = [("13b", 13), ("13k", 13 << 10), ("13m", 13 << 20)];
    assert_eq!(
        entries,
        expected.map(|(name, length)| (name.to_string(), length))
    );
    assert!(!more);
    for (name, length) in expected {
        let content = content(file_store.look_up(name.as_bytes())).unwrap();
        assert_eq!(content.len() as u64, length);
        assert!(content.chunks(13).all(|line| line == b"Hello World!\n"));
    }
    for other in [&b"13"[..], b"13b/", b"13b/x", b"/13b", b"etc/passwd"] {
        assert!(is_nothing(&file_store.look_up(other)));
    }
}

#[test]
fn files_and_directories_under_the_root_are_served() {
    let outside = tree();
    for file_store in trees(&outside) {
        assert_eq!(content(file_store.look_up(b"a.txt")).unwrap(), b"a");
        assert_eq!(content(file_store.look_up(b"dir/b.txt")).unwrap(), b"bb");
        assert_eq!(
            content(file_store.look_up(b"dir/sub/c.txt")).unwrap(),
            b"ccc"
        );
        assert_eq!(content(file_store.look_up(b"empty")).unwrap(), b"");
        let (entries, more) = listed(file_store.look_up(b""));
        let expected = [("dir/", 0), ("a.txt", 1), ("empty", 0)];
        assert_eq!(
            entries,
            expected.map(|(name, length)| (name.to_string(), length))
        );
        assert!(!more);
        assert_eq!(names(file_store.look_up(b"dir")), ["sub/", "b.txt"]);
        assert_eq!(names(file_store.look_up(b"dir/sub")), ["c.txt"]);
        for nothing in [
            &b"b.txt"[..],
            b"a.txt/x",
            b"dir/none",
            b"none/a.txt",
            b"A.TXT",
        ] {
            assert!(
                is_nothing(&file_store.look_up(nothing)),
                "{}",
                nothing.escape_ascii()
            );
        }
        let modified = fs::metadata(outside.path().join("root/a.txt"))
            .unwrap()
            .modified()
            .unwrap();
        let Lookup::File(file) = file_store.look_up(b"a.txt").unwrap() else {
            panic!()
        };
        assert_eq!(file.modified, modified);
    }
}

#[test]
fn path_out_of_the_root_is_not_found() {
    let outside = tree();
    let absolute = outside.path().join("secret").into_os_string();
    let root = outside.path().join("root/a.txt").into_os_string();
    for file_store in trees(&outside) {
        for path in [
            &b".."[..],
            b"../secret",
            b"dir/../../secret",
            b"dir/../a.txt",
            b"./a.txt",
            b"dir/./b.txt",
            b"/a.txt",
            b"/",
            b"//",
            b"dir/",
            b"dir//b.txt",
            b"a.txt/",
            b"%2e%2e/secret",
            b"..%2fsecret",
            b"/etc/passwd",
            b"\0",
            b"a.txt\0",
            b"a.txt\0.html",
            absolute.as_bytes(),
            root.as_bytes(),
        ] {
            assert!(
                is_nothing(&file_store.look_up(path)),
                "{}",
                path.escape_ascii()
            );
        }
    }
}

#[test]
fn symbolic_link_is_followed_only_inside_the_root() {
    let outside = tree();
    let root = outside.path().join("root");
    for (link, target) in [
        ("in", "a.txt"),
        ("dir/up", "../a.txt"),
        ("in-dir", "dir/sub"),
        ("twice", "in"),
        ("out", "../secret"),
        ("out-dir", "../private"),
        ("far", "/etc/passwd"),
        ("far-dir", "/etc"),
        ("magic", "/proc/self/exe"),
        ("dangling", "none"),
        ("loop", "loop"),
        ("round", "dir/.."),
        ("parent", ".."),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    for file_store in trees(&outside) {
        assert_eq!(content(file_store.look_up(b"in")).unwrap(), b"a");
        assert_eq!(content(file_store.look_up(b"twice")).unwrap(), b"a");
        assert_eq!(content(file_store.look_up(b"dir/up")).unwrap(), b"a");
        assert_eq!(
            content(file_store.look_up(b"in-dir/c.txt")).unwrap(),
            b"ccc"
        );
        assert_eq!(names(file_store.look_up(b"in-dir")), ["c.txt"]);
        for path in [
            &b"out"[..],
            b"out-dir",
            b"out-dir/key",
            b"far",
            b"far-dir",
            b"far-dir/passwd",
            b"magic",
            b"dangling",
            b"loop",
            b"loop/x",
            b"parent",
            b"parent/secret",
        ] {
            assert!(
                is_nothing(&file_store.look_up(path)),
                "{}",
                path.escape_ascii()
            );
        }
        let expected = ["dir/", "in-dir/", "round/", "a.txt", "empty", "in", "twice"];
        assert_eq!(names(file_store.look_up(b"")), expected);
        let lengths = listed(file_store.look_up(b"")).0;
        assert!(lengths.contains(&("twice".to_string(), 1)));
        assert_eq!(names(file_store.look_up(b"dir")), ["sub/", "b.txt", "up"]);
    }
}

/// The server must not wait at a FIFO that has no writer.
#[test]
fn special_file_is_neither_listed_nor_served() {
    let outside = tree();
    let root = outside.path().join("root");
    mkfifoat(CWD, root.join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    symlink("fifo", root.join("to-fifo")).unwrap();
    for file_store in trees(&outside) {
        for path in [&b"fifo"[..], b"socket", b"to-fifo", b"fifo/x"] {
            assert!(
                is_nothing(&file_store.look_up(path)),
                "{}",
                path.escape_ascii()
            );
        }
        assert_eq!(names(file_store.look_up(b"")), ["dir/", "a.txt", "empty"]);
    }
    // Devices, where `/dev` has them.
    for file_store in [true, false].map(|beneath| Tree::new(Path::new("/dev"), beneath).unwrap()) {
        assert!(is_nothing(&file_store.look_up(b"null")));
        assert!(is_nothing(&file_store.look_up(b"tty")));
        assert!(!names(file_store.look_up(b"")).contains(&"null".to_string()));
    }
}

#[test]
fn hidden_files_are_neither_listed_nor_served() {
    let outside = tree();
    let root = outside.path().join("root");
    fs::write(root.join(".htpasswd"), "x").unwrap();
    fs::write(root.join("..odd"), "x").unwrap();
    fs::create_dir(root.join(".git")).unwrap();
    fs::write(root.join(".git/config"), "x").unwrap();
    for file_store in trees(&outside) {
        for path in [
            &b".htpasswd"[..],
            b"..odd",
            b".git",
            b".git/config",
            b"dir/.x",
            b"...",
        ] {
            assert!(
                is_nothing(&file_store.look_up(path)),
                "{}",
                path.escape_ascii()
            );
        }
        assert_eq!(names(file_store.look_up(b"")), ["dir/", "a.txt", "empty"]);
    }
}

#[test]
fn file_name_of_any_bytes_is_served() {
    let outside = tree();
    let root = outside.path().join("root");
    let odd: [&[u8]; 5] = [
        "\u{e9}\u{4e16}".as_bytes(),
        b"a b\n",
        b"\\",
        b"%2e",
        b"\xff\xfe",
    ];
    let made: Vec<_> = odd
        .into_iter()
        // Not every file system accepts every name.
        .filter(|name| fs::write(root.join(OsStr::from_bytes(name)), name).is_ok())
        .collect();
    assert!(made.len() >= 4);
    for file_store in trees(&outside) {
        let Lookup::Directory { entries, .. } = file_store.look_up(b"").unwrap() else {
            panic!()
        };
        for name in &made {
            assert_eq!(content(file_store.look_up(name)).as_deref(), Some(*name));
            assert!(entries.iter().any(|entry| entry.name == *name));
        }
        for long in [vec![b'x'; 256], vec![b'x'; 100_000], b"x/".repeat(5_000)] {
            assert!(is_nothing(&file_store.look_up(&long)));
            assert!(is_nothing(&file_store.look_up(&long[..long.len() - 1])));
        }
        let deep = [&b"dir/sub/".repeat(1_000)[..], b"x"].concat();
        assert!(is_nothing(&file_store.look_up(&deep)));
    }
}

#[test]
fn file_without_read_permission_is_not_found() {
    if rustix::process::geteuid().is_root() {
        // Root may read every file.
        return;
    }
    let outside = tree();
    let root = outside.path().join("root");
    for name in ["a.txt", "dir"] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o0)).unwrap();
    }
    for file_store in trees(&outside) {
        for path in [&b"a.txt"[..], b"dir", b"dir/b.txt"] {
            assert!(
                is_nothing(&file_store.look_up(path)),
                "{}",
                path.escape_ascii()
            );
        }
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o0)).unwrap();
    let error = directory(&root).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    for path in ["root", "root/dir"] {
        fs::set_permissions(outside.path().join(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn changed_file_is_noticed_after_a_second_and_served_complete_until_then() {
    let outside = tree();
    let path = outside.path().join("root/a.txt");
    let large = outside.path().join("root/large");
    fs::write(&large, vec![b'1'; 40_000]).unwrap();
    for file_store in trees(&outside) {
        fs::write(&path, "a").unwrap();
        let start = Instant::now();
        let at =
            |millis: u64| file_store.look_up_at(b"a.txt", start + Duration::from_millis(millis));
        let file = |found: io::Result<Lookup>| match found {
            Ok(Lookup::File(file)) => file,
            other => panic!("{other:?}"),
        };
        let first = file(at(0));

        // Replaced by rename(2), as it should be.
        fs::write(path.with_extension("new"), "longer").unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        assert!(Arc::ptr_eq(&file(at(999)), &first));
        assert_eq!(content(at(999)).unwrap(), b"a");
        assert_eq!(content(at(1_000)).unwrap(), b"longer");
        let mut old = String::new();
        (&*first.file).read_to_string(&mut old).unwrap();
        assert_eq!(old, "a", "the old file stays readable");

        // Overwritten with content of the same length, and perhaps within one tick of the file system's clock.
        let second = file(at(1_001));
        fs::write(&path, "LONGER").unwrap();
        assert!(Arc::ptr_eq(&file(at(1_999)), &second));
        assert_eq!(content(at(2_000)).unwrap(), b"LONGER");

        // The file is removed.
        fs::remove_file(&path).unwrap();
        assert_eq!(content(at(2_999)).unwrap(), b"LONGER");
        assert!(is_nothing(&at(3_000)));
        // An absent file is not cached.
        fs::write(&path, "new").unwrap();
        assert_eq!(content(at(3_001)).unwrap(), b"new");

        // The file is replaced by a directory.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(names(at(4_001)), [""; 0]);
        fs::remove_dir(&path).unwrap();

        // A file that has not changed stays open, with one descriptor for all peers.
        let at =
            |millis: u64| file_store.look_up_at(b"large", start + Duration::from_millis(millis));
        let first = file(at(0));
        assert!(first.content.is_none());
        assert!(Arc::ptr_eq(&file(at(5_000)), &first));
        let mut changed = fs::OpenOptions::new().append(true).open(&large).unwrap();
        changed.write_all(b"2").unwrap();
        assert_eq!(file(at(5_999)).length, first.length);
        assert_eq!(file(at(6_000)).length, first.length + 1);
    }
}

#[test]
fn cache_keeps_a_limited_number_of_files_open() {
    let outside = tree();
    let root = outside.path().join("root/many");
    fs::create_dir(&root).unwrap();
    for n in 0..300 {
        fs::write(root.join(n.to_string()), n.to_string()).unwrap();
    }
    for file_store in trees(&outside) {
        let start = Instant::now();
        let look = |n: usize, millis: u64| {
            let path = format!("many/{n}");
            let found =
                file_store.look_up_at(path.as_bytes(), start + Duration::from_millis(millis));
            assert_eq!(content(found).unwrap(), n.to_string().as_bytes());
            assert!(file_store.cache().len() <= MAX_CACHED);
        };
        let is_kept = |n: usize| {
            file_store
                .cache()
                .contains_key(format!("many/{n}").as_bytes())
        };
        // All files within a second: the last ones stay in the cache.
        (0..300).for_each(|n| look(n, n as u64));
        assert_eq!(file_store.cache().len(), MAX_CACHED);
        assert!(!is_kept(299 - MAX_CACHED) && is_kept(300 - MAX_CACHED) && is_kept(299));
        // Files at longer intervals: those that were requested in the last second or are being sent stay.
        look(290, 1_200);
        let path = b"many/280";
        let Ok(Lookup::File(sent)) =
            file_store.look_up_at(path, start + Duration::from_millis(299))
        else {
            panic!("many/280 must be in the cache");
        };
        look(7, 1_300);
        assert!(is_kept(290) && is_kept(280) && is_kept(7));
        assert_eq!(file_store.cache().len(), 3);
        drop(sent);
        look(7, 2_000);
        look(8, 2_200);
        assert!(is_kept(7) && is_kept(8));
        assert_eq!(file_store.cache().len(), 2);
        assert_eq!(listed(file_store.look_up(b"many")).0.len(), 300);
    }
}

#[test]
fn listing_of_a_large_directory_is_cut_and_says_so() {
    let outside = tree();
    let root = outside.path().join("root/many");
    fs::create_dir(&root).unwrap();
    fs::write(root.join(".hidden"), "").unwrap();
    let [file_store, _] = trees(&outside);
    for n in 0..MAX_LISTED {
        File::create(root.join(format!("{n:05}"))).unwrap();
    }
    let (entries, more) = listed(file_store.look_up(b"many"));
    assert_eq!((entries.len(), more), (MAX_LISTED, false));
    assert!(entries.is_sorted());
    fs::create_dir(root.join("z")).unwrap();
    let (entries, more) = listed(file_store.look_up(b"many"));
    assert_eq!((entries.len(), more), (MAX_LISTED, true));
}

/// Reading a regular file must be allowed to wait for the disk, also through io_uring.
#[test]
fn opened_file_is_blocking_and_close_on_exec() {
    let outside = tree();
    for file_store in trees(&outside) {
        let Lookup::File(file) = file_store.look_up(b"a.txt").unwrap() else {
            panic!()
        };
        let flags = rustix::fs::fcntl_getfl(&file.file).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        let flags = rustix::io::fcntl_getfd(&file.file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn unusable_root_is_refused_with_the_reason() {
    let outside = tree();
    let error = |path: &str| {
        directory(&outside.path().join(path))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(error("none"), "there is no directory of that name");
    assert_eq!(error("secret"), "it is not a directory");
    assert_eq!(error("secret/x"), "it is not a directory");
    assert!(directory(&outside.path().join("root/dir/..")).is_ok());
}

#[test]
fn server_error_is_not_taken_for_not_found() {
    for lacking in [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::IO,
        Errno::AGAIN,
    ] {
        assert!(!is_not_found(lacking), "{lacking:?}");
    }
    for nothing in [
        Errno::NOENT,
        Errno::ACCESS,
        Errno::LOOP,
        Errno::XDEV,
        Errno::NAMETOOLONG,
    ] {
        assert!(is_not_found(nothing), "{nothing:?}");
    }
}
