//! Sessions with a `ttl`: are they there until their time, gone for every program then, and does nobody
//! wait while they are removed?
//!
//! `CASKFS_EXPIRE` (20,000) sessions end in the same moment under writers that go on.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};

use super::guard::{Cask, setting, sh, until};

/// Longest that a write may take beside the removal: what the issue asks for.
const STALL: Duration = Duration::from_millis(50);

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn free_files(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).unwrap().f_ffree
}

fn mtime(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

/// Makes these sessions in a directory, by four threads.
fn save(dir: &Path, numbers: Range<u64>) {
    thread::scope(|scope| {
        for part in 0..4 {
            let numbers = (numbers.start + part..numbers.end).step_by(4);
            scope.spawn(move || {
                for number in numbers {
                    fs::write(dir.join(format!("sess_{number}")), [b'x'; 200]).unwrap();
                }
            });
        }
    });
}

/// Names that stand in a directory, those of what is over and not removed included.
fn entries(dir: &Path) -> u64 {
    fs::metadata(dir).unwrap().len()
}

#[test]
fn a_session_is_there_until_its_time_and_gone_for_all_programs_then() {
    const TTL: Duration = Duration::from_secs(2);
    let Some(mut cask) = Cask::mounted_with(&["--files=1000"]) else {
        return;
    };
    cask.set("sessions", "ttl=2s");
    let dir = cask.path("sessions");
    let (a, b) = (dir.join("a"), dir.join("b"));
    for round in ["first mount", "after a remount"] {
        let free = free_files(&dir);
        fs::write(&a, "{\"hits\":1}").unwrap();
        fs::write(&b, "{\"hits\":2}").unwrap();
        let written = mtime(&a);
        if round != "first mount" {
            cask.remount();
        }
        // Every look at its own pace; the last that found it must not be later than the end.
        let mut seen = written;
        until("a session to end", Duration::from_secs(20), || {
            let before = SystemTime::now();
            let found = fs::symlink_metadata(&a);
            let listed = names(&dir).contains(&"a".to_owned());
            match found {
                Ok(_) => seen = before,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                    assert!(!listed, "it is listed after it was gone");
                    return true;
                }
            }
            false
        });
        let gone = written.elapsed().unwrap();
        assert!(gone >= TTL, "{round}: gone after {gone:?}");
        let last = seen.duration_since(written).unwrap();
        assert!(
            last <= TTL + Duration::from_millis(20),
            "{round}: seen after {last:?}"
        );
        println!("{round}: seen last after {last:.3?}, gone after {gone:.3?}");
        until("the other to end", Duration::from_secs(1), || !b.exists());
        until("its space to be free", Duration::from_secs(1), || {
            free_files(&dir) == free
        });
        assert_eq!(File::open(&b).unwrap_err().kind(), ErrorKind::NotFound);
        // Its name can be given anew, by who insists that it is new.
        let made = File::options().write(true).create_new(true).open(&a);
        drop(made.unwrap());
        assert_eq!(fs::metadata(&a).unwrap().len(), 0);
        fs::remove_file(&a).unwrap();
        until("the names to go", Duration::from_secs(20), || {
            entries(&dir) == 0
        });
    }
}

#[test]
fn a_save_a_touch_and_an_open_handle_keep_a_session() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("sessions", "ttl=2s");
    let dir = cask.path("sessions");
    let [saved, touched, held, left] = ["saved", "touched", "held", "left"].map(|n| dir.join(n));
    for path in [&saved, &touched, &held, &left] {
        fs::write(path, "first").unwrap();
    }
    // As PHP does: opened, locked, read, and written at the end of the request.
    let mut handle = File::options().read(true).write(true).open(&held).unwrap();
    flock(&handle, FlockOperation::LockExclusive).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    until("five seconds of saves", Duration::from_secs(30), || {
        fs::write(&saved, "again").unwrap();
        let file = File::options().write(true).open(&touched).unwrap();
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW,
            },
        };
        futimens(&file, &times).unwrap();
        assert_eq!(fs::read(&held).unwrap(), b"first");
        Instant::now() > end
    });
    assert!(!left.exists());
    handle.set_len(0).unwrap();
    handle.write_all(b"second").unwrap();
    drop(handle);
    assert_eq!(fs::read(&held).unwrap(), b"second");
    assert_eq!(names(&dir), ["held", "saved", "touched"]);
    until("all to end", Duration::from_secs(20), || {
        names(&dir).is_empty()
    });
    until("all to be removed", Duration::from_secs(20), || {
        entries(&dir) == 0
    });
    cask.unmount();
}

#[test]
fn many_that_end_at_once_stall_no_writer_and_survive_a_kill() {
    let Some(mut cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let count = setting("CASKFS_EXPIRE", 20_000);
    let many = cask.path("sessions/many");
    fs::create_dir(&many).unwrap();
    save(&many, 0..count);
    // What the saves left to do is done.
    rustix::fs::statvfs(&many).unwrap();
    let free = free_files(&many);
    // All are over by this, in one moment.
    cask.set("sessions/many", "ttl=1s");
    let (log, session) = (cask.path("logs/busy.log"), cask.path("sessions/busy"));
    let over = AtomicBool::new(false);
    let (slowest, writes) = thread::scope(|scope| {
        let writers = [(&log, true), (&session, false)].map(|(path, appends)| {
            let over = &over;
            scope.spawn(move || {
                let (mut slowest, mut writes) = (Duration::ZERO, 0u64);
                let mut file = File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .unwrap();
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    match appends {
                        true => file.write_all(b"a line of a busy log\n").unwrap(),
                        false => fs::write(path, "{\"hits\":1}").unwrap(),
                    }
                    slowest = slowest.max(start.elapsed());
                    writes += 1;
                    super::guard::pace(Duration::from_micros(200));
                }
                (slowest, writes)
            })
        });
        until("all to be removed", Duration::from_secs(600), || {
            entries(&many) == 0
        });
        over.store(true, Ordering::Relaxed);
        let all = writers.map(|writer| writer.join().unwrap());
        (all[0].0.max(all[1].0), all[0].1 + all[1].1)
    });
    println!(
        "{count} sessions over at once: slowest of {writes} writes beside their removal {slowest:.1?}"
    );
    assert!(
        slowest <= STALL,
        "a write took {slowest:?}, at most {STALL:?}"
    );
    assert!(free_files(&many) >= free + count - 2);

    // Killed in the middle of another.
    save(&many, 0..4_000);
    until("some to be removed", Duration::from_secs(60), || {
        entries(&many) < 4_000
    });
    cask.kill9();
    cask.mount();
    for name in names(&many) {
        // It may end between the two looks.
        if let Ok(found) = fs::metadata(many.join(name)) {
            let age = found.modified().unwrap().elapsed().unwrap_or_default();
            assert!(
                age <= Duration::from_secs(2),
                "a session of {age:?} is shown"
            );
        }
    }
    until("the rest to be removed", Duration::from_secs(60), || {
        entries(&many) == 0
    });
    sh("rmdir", [&many]).ok();
    cask.unmount();
    cask.fsck();
}

/// Removal costs about the same a file among how many others there are: processor time of the daemon in
/// all, by the file, in directories of 10,000 and of `CASKFS_EXPIRE` (20,000) of the same cask.
#[test]
fn the_cost_of_removal_does_not_grow_with_the_number() {
    const FEW: u64 = 10_000;
    let Some(mut cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let count = setting("CASKFS_EXPIRE", 20_000);
    let made = |name: &str, count: u64| {
        let dir = cask.path("sessions").join(name);
        fs::create_dir(&dir).unwrap();
        save(&dir, 0..count);
    };
    let cost = |name: &str, count: u64| {
        let dir = cask.path("sessions").join(name);
        // What the saves left to do is done.
        rustix::fs::syncfs(File::open(&dir).unwrap()).unwrap();
        let before = cask.processor_time();
        cask.set(&format!("sessions/{name}"), "ttl=1s");
        until("all to be removed", Duration::from_secs(600), || {
            entries(&dir) == 0
        });
        (cask.processor_time() - before) / count as u32
    };
    made("many", count);
    let mut few: Vec<Duration> = (0..5)
        .map(|round| {
            let name = format!("few.{round}");
            made(&name, FEW);
            cost(&name, FEW)
        })
        .collect();
    few.sort();
    let (few, many) = (few[2], cost("many", count));
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    println!(
        "removal of {count} that are over: {many:.2?} each, {few:.2?} of {FEW} ({ratio:.2}); {} KiB at the peak",
        cask.memory_kib("VmHWM:")
    );
    // Of a few it is too short a time to judge by.
    assert!(
        count < 1_000_000 || ratio <= 1.5,
        "removal of {count} costs {many:?} each, of {FEW} {few:?}"
    );
    cask.unmount();
    cask.fsck();
}

#[test]
fn a_ttl_that_is_set_later_holds_for_names_that_the_kernel_knows() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let dir = cask.path("sessions");
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "old").unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let file = File::options().write(true).open(&old).unwrap();
    file.set_modified(hour_ago).unwrap();
    drop(file);
    fs::write(&new, "new").unwrap();
    assert_eq!(mtime(&old), hour_ago);
    cask.set("sessions", "ttl=30m");
    // The kernel believed the name for an hour; it is told when the file is removed.
    let since = Instant::now();
    until("an old session to be over", Duration::from_secs(5), || {
        !old.exists()
    });
    let moved = cask.path("moved");
    fs::write(&moved, "x").unwrap();
    let file = File::options().write(true).open(&moved).unwrap();
    file.set_modified(hour_ago).unwrap();
    drop(file);
    assert_eq!(mtime(&moved), hour_ago);
    fs::rename(&moved, dir.join("moved")).unwrap();
    until("a moved file to be over", Duration::from_secs(5), || {
        !dir.join("moved").exists()
    });
    println!(
        "a known name is over {:.1?} after the setting",
        since.elapsed()
    );
    assert!(new.exists());
    assert_eq!(names(&dir), ["new"]);
    cask.unmount();
}
