//! The library's sessions: the same on a container, on a directory and beside a live mount.
//!
//! `CASKFS_SESSIONS` (2,000) sessions are saved and loaded for the figures that are printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use caskfs::cask::{Cask, FormatOptions};
use caskfs::device::FileDevice;
use caskfs::sessions::{Config, SessionError, SessionStore};
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_caskfs");

fn container(scratch: &TempDir) -> PathBuf {
    let path = scratch.path().join("web.cask");
    let device = FileDevice::create_new(&path).unwrap();
    Cask::format(&device, &FormatOptions::default()).unwrap();
    path
}

fn open(file: &Path) -> SessionStore {
    let config = serde_json::json!({ "file": file }).to_string();
    SessionStore::from_json(&config).unwrap()
}

fn all(store: &SessionStore) -> BTreeMap<OsString, u64> {
    let mut found = BTreeMap::new();
    store
        .list(|session| found.insert(session.id.clone(), session.len).is_none())
        .unwrap();
    found
}

/// What holds wherever the sessions are.
fn hold(store: &SessionStore) {
    assert!(all(store).is_empty());
    store.save("abacab", b"{\"hits\":1}").unwrap();
    assert_eq!(store.load("abacab").unwrap(), b"{\"hits\":1}");
    store.save("abacab", b"{}").unwrap();
    assert_eq!(store.load("abacab").unwrap(), b"{}");
    store.save("empty", b"").unwrap();
    assert_eq!(store.load("empty").unwrap(), b"");
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    store.save("large", &large).unwrap();
    assert_eq!(store.load("large").unwrap(), large);
    let found: Vec<_> = all(store).into_iter().collect();
    let expected = [("abacab", 2), ("empty", 0), ("large", 3_000_000)];
    assert_eq!(found, expected.map(|(id, len)| (OsString::from(id), len)));
    // Errors have their types.
    for id in ["nobody", "ABACAB"] {
        let missing = [store.load(id).map(drop), store.touch(id)];
        for error in missing {
            match error.unwrap_err() {
                SessionError::NotFound(found) => assert_eq!(found, OsString::from(id)),
                error => panic!("{error}"),
            }
        }
        store.remove(id).unwrap();
    }
    let long = "x".repeat(256);
    for id in ["", "a/b", "a\0b", ".", "..", ".cask", long.as_str()] {
        for error in [
            store.load(id).map(drop),
            store.save(id, b"x"),
            store.remove(id),
        ] {
            let error = error.unwrap_err();
            assert!(matches!(error, SessionError::InvalidId { .. }), "{error}");
        }
    }
    store.save(&long[1..], b"x").unwrap();
    store.remove(&long[1..]).unwrap();
    // What was touched lives on.
    let soon = Instant::now() + Duration::from_millis(300);
    while Instant::now() < soon {
        thread::park_timeout(soon - Instant::now());
    }
    store.touch("empty").unwrap();
    assert_eq!(store.expire(Duration::from_secs(3600)).unwrap(), 0);
    assert_eq!(store.expire(Duration::from_millis(250)).unwrap(), 2);
    assert_eq!(all(store).into_keys().collect::<Vec<_>>(), ["empty"]);
    store.sync().unwrap();
    // Several threads, one session: each load is what some save was given.
    thread::scope(|scope| {
        for writer in 0..3_u8 {
            scope.spawn(move || {
                for round in 0..50_usize {
                    store.save("shared", &vec![writer; 100 + round]).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..100 {
                match store.load("shared") {
                    Ok(content) => assert!(content.iter().all(|byte| *byte == content[0])),
                    Err(SessionError::NotFound(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    store.remove("shared").unwrap();
    // One that is new is not seen before it has its content.
    let latest = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                latest.store(round, std::sync::atomic::Ordering::SeqCst);
                store.save(format!("new{round}"), b"content").unwrap();
            }
        });
        scope.spawn(|| {
            loop {
                let round = latest.load(std::sync::atomic::Ordering::SeqCst);
                match store.load(format!("new{round}")) {
                    Ok(content) => assert_eq!(content, b"content"),
                    Err(SessionError::NotFound(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                if round == 199 {
                    break;
                }
            }
        });
    });
    for round in 0..200 {
        store.remove(format!("new{round}")).unwrap();
    }
    store.remove("empty").unwrap();
}

#[test]
fn a_container_holds_sessions_without_a_mount() {
    let scratch = TempDir::new().unwrap();
    let file = container(&scratch);
    let store = open(&file);
    hold(&store);
    store.save("kept", b"kept").unwrap();
    // Nobody else may have it meanwhile.
    let other = SessionStore::from_json(&serde_json::json!({ "file": &file }).to_string());
    match other.map(drop).unwrap_err() {
        SessionError::Busy(why) => assert!(why.contains("web.cask"), "{why}"),
        error => panic!("{error}"),
    }
    store.close().unwrap();
    // One process after another; a drop closes, too.
    let store = open(&file);
    assert_eq!(store.load("kept").unwrap(), b"kept");
    drop(store);
    let listed = Command::new(BIN)
        .args(["cat", &format!("{}:/sessions/kept", file.display())])
        .output()
        .unwrap();
    assert_eq!(listed.stdout, b"kept");
    let checked = Command::new(BIN)
        .args(["fsck", "-n"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(checked.status.success());
}

#[test]
fn any_directory_holds_sessions() {
    let scratch = TempDir::new().unwrap();
    hold(&open(scratch.path()));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    // As the file manager of cson had it.
    let config = serde_json::json!({ "dir": scratch.path(), "prefix": "sess_", "suffix": ".json" });
    let store = SessionStore::from_json(&config.to_string()).unwrap();
    fs::write(scratch.path().join("another"), b"file").unwrap();
    // An id that is no name by itself.
    store.save(".", b"dot").unwrap();
    assert_eq!(store.load(".").unwrap(), b"dot");
    store.remove(".").unwrap();
    let long = store.save("x".repeat(246), b"").unwrap_err();
    assert!(matches!(long, SessionError::InvalidId { .. }), "{long}");
    store.save("a", b"{}").unwrap();
    assert_eq!(fs::read(scratch.path().join("sess_a.json")).unwrap(), b"{}");
    assert_eq!(all(&store).into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(store.expire(Duration::ZERO).unwrap(), 1);
    assert!(scratch.path().join("another").exists());
}

#[test]
fn what_cannot_be_opened_is_said() {
    let scratch = TempDir::new().unwrap();
    let open = |file: &Path, dir: Option<&str>| {
        let config = Config {
            file: Some(file.to_path_buf()),
            dir: dir.map(PathBuf::from),
            ..Config::default()
        };
        SessionStore::open(&config).map(drop)
    };
    let missing = scratch.path().join("missing.cask");
    match open(&missing, None).unwrap_err() {
        SessionError::Io { source, .. } => assert_eq!(source.kind(), ErrorKind::NotFound),
        error => panic!("{error}"),
    }
    let junk = scratch.path().join("junk");
    fs::write(&junk, b"no cask").unwrap();
    let error = open(&junk, None).unwrap_err().to_string();
    assert!(error.contains("junk"), "{error}");
    let file = container(&scratch);
    open(&file, Some("/web/sessions")).unwrap();
    // A directory that is no store of values would show half a save.
    let path = format!("{}:/web", file.display());
    let set = Command::new(BIN)
        .args(["set", &path, "mode=plain"])
        .status()
        .unwrap();
    assert!(set.success());
    let error = open(&file, Some("web")).unwrap_err();
    assert!(matches!(error, SessionError::InvalidConfig(_)), "{error}");
    assert!(error.to_string().contains("mode=value"), "{error}");
}

#[test]
fn a_ttl_of_the_store_holds_without_a_mount() {
    let scratch = TempDir::new().unwrap();
    let file = container(&scratch);
    drop(open(&file));
    let path = format!("{}:/sessions", file.display());
    let set = Command::new(BIN)
        .args(["set", &path, "ttl=1s"])
        .status()
        .unwrap();
    assert!(set.success());
    let store = open(&file);
    let saved = SystemTime::now();
    store.save("a", b"x").unwrap();
    loop {
        let before = saved.elapsed().unwrap();
        match store.load("a") {
            Ok(_) => assert!(before <= Duration::from_millis(1_100), "{before:?}"),
            Err(SessionError::NotFound(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(saved.elapsed().unwrap() >= Duration::from_secs(1));
    assert!(all(&store).is_empty());
}

/// The part that is killed: saves sessions and says so, until the end of the world.
#[test]
#[ignore = "run by another test, which kills it"]
fn saver() {
    let file = std::env::var_os("CASKFS_SESSIONS_FILE").unwrap();
    let store = open(Path::new(&file));
    for number in 0_u64.. {
        store
            .save(format!("s{}", number % 50), number.to_string().as_bytes())
            .unwrap();
        println!("saved {number}");
    }
}

#[test]
fn a_save_that_returned_survives_the_death_of_the_process() {
    let scratch = TempDir::new().unwrap();
    let file = container(&scratch);
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "saver",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("CASKFS_SESSIONS_FILE", &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        while last.is_none_or(|last| last < 300 + round * 37) {
            let line = lines.next().unwrap().unwrap();
            last = line
                .rsplit_once("saved ")
                .and_then(|(_, n)| n.parse::<u64>().ok())
                .or(last);
        }
        child.kill().unwrap();
        // What it said before it died.
        for line in lines.map_while(Result::ok) {
            last = line
                .rsplit_once("saved ")
                .and_then(|(_, n)| n.parse().ok())
                .or(last);
        }
        child.wait().unwrap();
        let last = last.unwrap();
        let store = open(&file);
        for id in 0..50 {
            let content = String::from_utf8(store.load(format!("s{id}")).unwrap()).unwrap();
            let number: u64 = content.parse().unwrap();
            assert_eq!(number % 50, id);
            // One more may have been saved than was said.
            assert!(
                number + 50 > last,
                "s{id} is {number}, but {last} was saved"
            );
        }
    }
}

#[test]
fn beside_a_mount_they_go_through_it() {
    let scratch = TempDir::new().unwrap();
    let file = container(&scratch);
    let mountpoint = scratch.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    drop(open(&file));
    let mounted = Command::new(BIN)
        .arg("mount")
        .args([&file, &mountpoint])
        .output()
        .unwrap();
    if !mounted.status.success() {
        assert!(
            std::env::var_os("CASKFS_REQUIRE_MOUNT").is_none(),
            "{mounted:?}"
        );
        println!("SKIPPED: nothing can be mounted here");
        return;
    }
    let done = std::panic::catch_unwind(|| {
        let store = open(&file);
        hold(&store);
        store.save("a", b"{}").unwrap();
        let path = mountpoint.join("sessions/a");
        assert_eq!(fs::read(&path).unwrap(), b"{}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // The mountpoint and the directory name the same.
        let config = Config {
            file: Some(mountpoint.clone()),
            dir: Some("sessions".into()),
            ..Config::default()
        };
        assert_eq!(
            SessionStore::open(&config).unwrap().load("a").unwrap(),
            b"{}"
        );
        assert_eq!(open(&mountpoint.join("sessions")).load("a").unwrap(), b"{}");
    });
    let ended = Command::new(BIN)
        .arg("umount")
        .arg(&mountpoint)
        .status()
        .unwrap();
    assert!(ended.success());
    done.unwrap();
    assert_eq!(open(&file).load("a").unwrap(), b"{}");
}

/// A number of `/proc/self/status`, in KiB.
fn memory_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn figures() {
    let count = std::env::var("CASKFS_SESSIONS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2_000_u64);
    let scratch = TempDir::new().unwrap();
    let file = container(&scratch);
    let store = open(&file);
    let content = [b'x'; 200];
    let id = |n: u64| format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let rate = |what: &str, times: u64, act: &dyn Fn(u64)| {
        let start = Instant::now();
        (0..times).for_each(act);
        let took = start.elapsed();
        println!(
            "{what}: {:.0} a second, {:.2?} each",
            times as f64 / took.as_secs_f64(),
            took / times as u32
        );
    };
    // In a large store those that are at hand by chance.
    let some = count.min(20_000);
    let any = |n: u64| id(n.wrapping_mul(7_919) % count);
    let early = std::cell::Cell::new(SystemTime::now());
    rate("saves of new sessions", count, &|n| {
        store.save(id(n), &content).unwrap();
        if n == 2 * some {
            early.set(SystemTime::now());
        }
    });
    let early = early.get();
    rate("saves", some, &|n| store.save(any(n), &content).unwrap());
    rate("loads", some, &|n| {
        assert_eq!(store.load(any(n)).unwrap(), content);
    });
    rate("touches", some, &|n| store.touch(any(n)).unwrap());
    store.sync().unwrap();
    let held = fs::metadata(&file).unwrap().blocks() * 512;
    println!(
        "{count} sessions of 200 bytes: {held} bytes on disk, {} KiB of memory at the peak",
        memory_kib("VmHWM:")
    );
    let start = Instant::now();
    let mut listed = 0;
    store
        .list(|_| {
            listed += 1;
            true
        })
        .unwrap();
    assert_eq!(listed, count);
    println!("all listed in {:.2?}", start.elapsed());
    let removed = some / 4;
    rate("removals", removed, &|n| store.remove(id(n)).unwrap());
    store.close().unwrap();
    let start = Instant::now();
    let checked = Command::new(BIN).args(["fsck", "-n"]).arg(&file).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{checked:?}");
    println!("checked in {:.2?}", start.elapsed());
    let start = Instant::now();
    let store = open(&file);
    println!("opened again in {:.2?}", start.elapsed());
    // Of very many only the oldest, which takes a look at all.
    let (idle, over) = match count > 1_000_000 {
        true => (early.elapsed().unwrap(), None),
        false => (Duration::ZERO, Some(count - removed)),
    };
    let start = Instant::now();
    let expired = store.expire(idle).unwrap();
    println!(
        "{expired} expired in {:.2?}, {:.2?} each",
        start.elapsed(),
        start.elapsed() / expired.max(1) as u32
    );
    assert!(over.is_none_or(|over| over == expired));
    println!("{} KiB of memory at the peak", memory_kib("VmHWM:"));
    store.close().unwrap();
    println!(
        "with the last checkpoint {:.2?} each",
        start.elapsed() / expired.max(1) as u32
    );
}
