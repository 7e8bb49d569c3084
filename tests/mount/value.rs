//! Values (sessions) and the settings walk: is a value ever seen half, and which setting wins?
//!
//! Each close of a descriptor is a save, also that of a duplicate which a child inherited. Tests that
//! would notice therefore run alone: no other test starts a process meanwhile.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{FlockOperation, XattrFlags, flock, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::guard::{Cask, caskfs};

#[track_caller]
fn text(path: &Path) -> String {
    String::from_utf8(fs::read(path).unwrap()).unwrap()
}

#[test]
fn readers_see_the_old_value_until_the_writer_closes() {
    let Some(cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let path = cask.path("sessions/abacab");
    fs::write(&path, "old value").unwrap();
    let mut early = File::open(&path).unwrap();
    let mut writer = File::create(&path).unwrap();
    for look in ["after O_TRUNC", "after a write", "after ftruncate"] {
        assert_eq!(
            (text(&path).as_str(), fs::metadata(&path).unwrap().len()),
            ("old value", 9),
            "{look}"
        );
        match look {
            "after O_TRUNC" => writer.write_all(b"new").unwrap(),
            "after a write" => writer.set_len(2).unwrap(),
            _ => {}
        }
    }
    writer.set_len(0).unwrap();
    drop(writer);
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"a longer new value").unwrap();
    drop(writer);
    assert_eq!(
        (text(&path).as_str(), fs::metadata(&path).unwrap().len()),
        ("a longer new value", 18)
    );
    let mut seen = String::new();
    early.read_to_string(&mut seen).unwrap();
    assert!(
        ["old value", "a longer new value"].contains(&seen.as_str()),
        "half a value: {seen:?}"
    );
}

#[test]
fn no_reader_ever_sees_half_a_value() {
    let Some(cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let path = cask.path("sessions/busy");
    let value = |round: usize| vec![b'a' + (round % 26) as u8; 100 + round * 37 % 9000];
    fs::write(&path, value(0)).unwrap();
    let done = AtomicBool::new(false);
    let looks = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        let seen = fs::read(&path).unwrap();
                        assert!(
                            seen.len() >= 100 && seen.iter().all(|byte| *byte == seen[0]),
                            "half a value of {} bytes",
                            seen.len()
                        );
                        looks += 1;
                    }
                    looks
                })
            })
            .collect();
        for round in 1..2000 {
            // In pieces, as stdio writes them.
            let mut writer = File::create(&path).unwrap();
            value(round)
                .chunks(4096)
                .for_each(|piece| writer.write_all(piece).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<u64>()
    });
    println!("2000 saves, {looks} looks");
    assert!(looks > 0);
    assert_eq!(fs::read(&path).unwrap(), value(1999));
}

/// A process that has a value open and half written, and ends as `then` says: `exit` or `wait`.
/// No shell: a shell closes duplicates of its redirections, and each close is a save.
fn half_written(path: &Path, then: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "value::process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("CASKFS_HALF", format!("{then} {}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().ends_with("half written")));
    child
}

/// Not a proof: what that process runs. Does nothing in an ordinary test run.
#[test]
fn process() {
    let Ok(job) = std::env::var("CASKFS_HALF") else {
        return;
    };
    let (then, path) = job.split_once(' ').unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(b"half").unwrap();
    println!("half written");
    if then == "wait" {
        let _ = std::io::stdin().read(&mut [0]);
    }
    std::process::exit(0);
}

#[test]
fn a_killed_writer_leaves_the_old_value() {
    let Some(cask) = Cask::mounted() else { return };
    let path = cask.path("sessions/killed");
    fs::write(&path, "old").unwrap();
    for signal in [Signal::KILL, Signal::TERM, Signal::ABORT] {
        let mut writer = half_written(&path, "wait");
        assert_eq!(text(&path), "old");
        // Waiting would close its input, and it might exit before the signal comes to be heard.
        let input = writer.stdin.take();
        kill_process(Pid::from_child(&writer), signal).unwrap();
        writer.wait().unwrap();
        drop(input);
        assert_eq!(text(&path), "old", "after {signal:?}");
    }
    // The next save is an ordinary one.
    fs::write(&path, "new").unwrap();
    assert_eq!(text(&path), "new");
}

#[test]
fn a_writer_that_exits_with_the_file_open_has_saved() {
    let Some(cask) = Cask::mounted() else { return };
    let path = cask.path("sessions/exited");
    fs::write(&path, "old").unwrap();
    half_written(&path, "exit").wait().unwrap();
    assert_eq!(text(&path), "half");
}

/// An exec closes inherited files while nobody may look at the process, the daemon included: one
/// that asks `/proc/PID/stat` at that moment waits for itself.
#[test]
fn programs_start_while_a_value_is_being_saved() {
    let Some(cask) = Cask::mounted() else { return };
    let path = cask.path("sessions/busy");
    for round in 0..50 {
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"one, ").unwrap();
        assert!(Command::new("true").status().unwrap().success());
        writer.write_all(b"two").unwrap();
        drop(writer);
        assert_eq!(text(&path), "one, two", "round {round}");
    }
}

#[test]
fn reading_never_moves_mtime_and_saving_does() {
    let Some(cask) = Cask::mounted() else { return };
    let path = cask.path("sessions/times");
    fs::write(&path, "1").unwrap();
    let stamp = |path: &Path| {
        fs::metadata(path)
            .map(|meta| (meta.mtime(), meta.mtime_nsec()))
            .unwrap()
    };
    let saved = stamp(&path);
    (0..3).for_each(|_| assert_eq!(text(&path), "1"));
    assert_eq!(stamp(&path), saved);
    fs::write(&path, "2").unwrap();
    assert!(stamp(&path) > saved);
}

#[test]
fn a_value_can_be_replaced_by_rename_and_locked() {
    let Some(cask) = Cask::mounted() else { return };
    let (path, draft) = (cask.path("sessions/s"), cask.path("sessions/.s.new"));
    fs::write(&path, "old").unwrap();
    let first = File::open(&path).unwrap();
    let second = File::open(&path).unwrap();
    flock(&first, FlockOperation::LockExclusive).unwrap();
    assert_eq!(
        flock(&second, FlockOperation::NonBlockingLockExclusive),
        Err(Errno::WOULDBLOCK)
    );
    flock(&first, FlockOperation::Unlock).unwrap();
    flock(&second, FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::write(&draft, "new").unwrap();
    fs::rename(&draft, &path).unwrap();
    assert_eq!(text(&path), "new");
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn many_processes_save_many_values() {
    let Some(cask) = Cask::mounted() else { return };
    thread::scope(|scope| {
        for id in 0..8 {
            let cask = &cask;
            scope.spawn(move || {
                for round in 0..200 {
                    let path = cask.path(format!("sessions/{id}.{}", round % 20));
                    fs::write(&path, format!("{{\"id\":{id},\"round\":{round}}}")).unwrap();
                    assert_eq!(text(&path), format!("{{\"id\":{id},\"round\":{round}}}"));
                }
            });
        }
    });
    assert_eq!(fs::read_dir(cask.path("sessions")).unwrap().count(), 160);
}

// The settings walk.

fn get(path: &Path, name: &str) -> Result<String, Errno> {
    let mut buffer = [0; 256];
    let length = getxattr(path, name, &mut buffer)?;
    Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
}

fn set(path: &Path, name: &str, value: &str) -> Result<(), Errno> {
    setxattr(path, name, value.as_bytes(), XattrFlags::empty())
}

#[test]
fn the_nearest_setting_wins() {
    let Some(cask) = Cask::mounted() else { return };
    let (store, deep) = (cask.path("store"), cask.path("store/deep"));
    fs::create_dir_all(&deep).unwrap();
    let file = deep.join("f");
    fs::write(&file, "x").unwrap();
    assert_eq!(get(&file, "user.cask.mode").as_deref(), Ok("plain"));
    set(&store, "user.cask.mode", "log").unwrap();
    assert_eq!(
        get(&file, "user.cask.mode").as_deref(),
        Ok("log"),
        "found above"
    );
    set(&deep, "user.cask.mode", "value").unwrap();
    assert_eq!(
        get(&file, "user.cask.mode").as_deref(),
        Ok("value"),
        "the nearest wins"
    );
    let mut names = [0; 256];
    assert_eq!(
        listxattr(&file, &mut names).unwrap(),
        0,
        "only a file's own are listed"
    );
    removexattr(&deep, "user.cask.mode").unwrap();
    assert_eq!(get(&file, "user.cask.mode").as_deref(), Ok("log"));
    let told = caskfs(["get".as_ref(), file.as_os_str(), "mode".as_ref()]).ok();
    assert_eq!(told.stdout.trim().rsplit(['=', ' ']).next(), Some("log"));
}

#[test]
fn a_bad_setting_is_refused_and_changes_nothing() {
    let Some(cask) = Cask::mounted() else { return };
    let dir = cask.path("logs");
    for (name, value) in [
        ("user.cask.mode", "sideways"),
        ("user.cask.nonsense", "1"),
        ("user.cask.flush", "perhaps"),
    ] {
        assert_eq!(set(&dir, name, value), Err(Errno::INVAL), "{name}={value}");
    }
    assert_eq!(get(&dir, "user.cask.mode").as_deref(), Ok("log"));
    let told = caskfs(["set".as_ref(), dir.as_os_str(), "mode=sideways".as_ref()]);
    assert_ne!(told.code, Some(0));
    assert!(
        told.stderr.contains("mode"),
        "no reason given: {}",
        told.stderr
    );
}

#[test]
fn mkstore_makes_what_mkdir_and_setfattr_make() {
    let Some(cask) = Cask::mounted() else { return };
    let dir = cask.path("acc");
    caskfs([
        "mkstore".as_ref(),
        "--like".as_ref(),
        "flat".as_ref(),
        dir.as_os_str(),
    ])
    .ok();
    assert_eq!(get(&dir, "user.cask.mode").as_deref(), Ok("log"));
    assert_eq!(
        fs::metadata(&dir).unwrap().mode() & 0o7777,
        0o755,
        "logrotate refuses anything looser"
    );
}
