//! Those who follow a log: inotify, `tail`, `mmap`.
//!
//! A cut happens behind the kernel's back as far as the writers are concerned. What is asked here is
//! whether readers notice: woken under the right name, given every record, shown the right bytes; and
//! that the process that wakes them is never in anybody's way.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::mount::UnmountFlags;
use rustix::process::{Signal, kill_process};

use super::guard::{Cask, Dice, installed, pace, setting, sh, until};

fn append(log: &Path) -> File {
    File::options().create(true).append(true).open(log).unwrap()
}

/// Cuts a log as another program does: who cut it does not see for a while that it is back.
fn cut_log(log: &Path, segment: PathBuf) {
    let log = log.to_owned();
    let cut = thread::spawn(move || fs::rename(log, segment));
    cut.join().unwrap().unwrap();
}

/// The names, of a watched directory, and the marks of watched files, for which there was a
/// modification since.
fn modified(watch: &rustix::fd::OwnedFd) -> Vec<(i32, String)> {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut space);
    let mut found = Vec::new();
    while let Ok(event) = reader.next() {
        if event.events().contains(inotify::ReadFlags::MODIFY) {
            let name = event.file_name().map(|name| name.to_string_lossy());
            found.push((event.wd(), name.unwrap_or_default().into_owned()));
        }
    }
    found
}

#[test]
fn watchers_are_woken_under_the_name_that_is_written() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let (logs, log) = (cask.path("logs"), cask.path("logs/a"));
    let mut writer = append(&log);
    writer.write_all(b"1\n").unwrap();
    cut_log(&log, cask.path("logs/a.1"));
    writer.write_all(b"2\n").unwrap();
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags).unwrap();
    let dir = inotify::add_watch(&watch, &logs, inotify::WatchFlags::MODIFY).unwrap();
    let file = inotify::add_watch(&watch, &log, inotify::WatchFlags::MODIFY).unwrap();
    let before = fs::metadata(&log).unwrap();
    // What was written before may still be on its way to the watchers.
    pace(Duration::from_millis(300));
    modified(&watch);
    let start = Instant::now();
    writer.write_all(b"3\n").unwrap();
    let written = fs::metadata(&log).unwrap();
    let mut seen = HashSet::new();
    until("the watchers are woken", Duration::from_secs(10), || {
        seen.extend(modified(&watch));
        seen.contains(&(file, String::new())) && seen.contains(&(dir, "a".to_owned()))
    });
    let took = start.elapsed();
    println!("the watchers were woken after {took:.0?}");
    assert!(took < Duration::from_secs(1), "woken after {took:?}");
    // Being woken changes nothing.
    pace(Duration::from_millis(300));
    let after = fs::metadata(&log).unwrap();
    let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    assert_eq!(times(&written), times(&after));
    assert!(times(&before) < times(&after));
    // Nobody is woken for nothing.
    modified(&watch);
    pace(Duration::from_millis(300));
    assert_eq!(modified(&watch), []);
    drop((writer, watch));
    cask.unmount();
}

/// Logs that were cut under these writers, who have written since.
fn redirected(cask: &Cask, count: usize) -> Vec<File> {
    let mut writers = Vec::new();
    for i in 0..count {
        let log = cask.path(format!("logs/{i}"));
        let mut writer = append(&log);
        writer.write_all(b"1\n").unwrap();
        cut_log(&log, log.with_extension("old"));
        writer.write_all(b"2\n").unwrap();
        fs::remove_file(log.with_extension("old")).unwrap();
        writers.push(writer);
    }
    until(
        "the waking process is there",
        Duration::from_secs(10),
        || cask.wakers().len() == 1,
    );
    writers
}

fn watch_all(cask: &Cask, count: usize) -> rustix::fd::OwnedFd {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags).unwrap();
    let modify = inotify::WatchFlags::MODIFY;
    inotify::add_watch(&watch, cask.path("logs"), modify).unwrap();
    for i in 0..count {
        inotify::add_watch(&watch, cask.path(format!("logs/{i}")), modify).unwrap();
    }
    watch
}

#[test]
fn waking_never_keeps_the_mount_busy() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let mut dice = Dice::new(setting("CASKFS_SEED", 1));
    for round in 0..30 {
        let mut writers = redirected(&cask, 300);
        for writer in &mut writers {
            writer.write_all(b"3\n").unwrap();
        }
        drop(writers);
        // The next tick, at some moment within a tenth of a second, has them all woken.
        pace(Duration::from_micros(dice.below(110_000)));
        cask.unmount_by(|mountpoint| {
            let done = rustix::mount::unmount(mountpoint, UnmountFlags::empty());
            assert_eq!(done, Ok(()), "umount(2) in round {round}");
        });
        cask.mount();
    }
    cask.unmount();
}

#[test]
fn a_daemon_killed_while_watchers_are_woken_leaves_nothing_that_hangs() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let mut dice = Dice::new(setting("CASKFS_SEED", 1));
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let writers = redirected(&cask, 20);
        let watch = watch_all(&cask, 20);
        let patience = Duration::from_micros(dice.below(300_000));
        let took = thread::scope(|scope| {
            for mut writer in writers {
                scope.spawn(move || while writer.write_all(b"x\n").is_ok() {});
            }
            pace(patience);
            let start = Instant::now();
            cask.kill_daemon();
            start
        });
        let taken = modified(&watch);
        drop(watch);
        cask.clear_dead_mount();
        slowest = slowest.max(took.elapsed());
        if patience > Duration::from_millis(200) {
            assert!(!taken.is_empty(), "nobody was woken before");
        }
        cask.fsck();
        cask.mount();
    }
    println!("killed while watchers are woken: gone after {slowest:.1?} at most");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    cask.unmount();
}

#[test]
fn the_waking_process_has_nothing_of_the_daemons_and_may_die_or_stop() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    assert!(cask.wakers().is_empty(), "nobody needs it yet");
    for signal in [Signal::KILL, Signal::STOP] {
        let mut writers = redirected(&cask, 20);
        // It has done what it was asked to: stopped over its work, it would keep the filesystem.
        pace(Duration::from_millis(300));
        let pid = cask.wakers()[0];
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let mut held: Vec<String> = fs::read_dir(proc.join("fd"))
            .unwrap()
            .flatten()
            .map(|fd| fd.file_name().into_string().unwrap())
            .collect();
        held.sort();
        assert_eq!(held, ["0", "1", "2"]);
        assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
        let tasks = fs::read_dir(proc.join("task")).unwrap().count();
        assert_eq!(tasks, 1, "the daemon knows its one thread only");

        kill_process(pid, signal).unwrap();
        if signal == Signal::KILL {
            until("it is reaped", Duration::from_secs(10), || !proc.exists());
        }
        let mut slowest = Duration::ZERO;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            for writer in &mut writers {
                let start = Instant::now();
                writer.write_all(b"3\n").unwrap();
                slowest = slowest.max(start.elapsed());
            }
        }
        println!("after {signal:?} of the waking process the slowest write took {slowest:.1?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        if signal == Signal::KILL {
            assert!(cask.wakers().is_empty(), "it was started again at once");
        }
        drop(writers);
        cask.remount();
    }
    cask.unmount();
}

struct Tail(Child);

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Follows a log with these options of `tail` through cuts so far apart; answers the
/// longest time that a record took.
fn follow(options: &[&str], cuts: u32, apart: Duration) -> Option<Duration> {
    let mut cask = Cask::mounted()?;
    let log = cask.path("logs/a");
    let mut writer = append(&log);
    writer.write_all(b"0\n").unwrap();
    let child = Command::new("tail")
        .args(options)
        .arg(&log)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut tail = Tail(child);
    let out = BufReader::new(tail.0.stdout.take().unwrap());
    let start = Instant::now();
    let reader = thread::spawn(move || {
        let mut late = Duration::ZERO;
        for (line, expected) in out.lines().zip(0u64..) {
            let line = line.unwrap();
            let mut words = line.split(' ');
            let number = words.next().unwrap().parse();
            assert_eq!(number, Ok(expected), "in order, each once");
            match words.next().map(str::parse) {
                Some(Ok(at)) => {
                    let took = start.elapsed().saturating_sub(Duration::from_millis(at));
                    late = late.max(took);
                }
                Some(Err(_)) => return late,
                None => {}
            }
        }
        panic!("tail ended");
    });
    let mut number = 0u64;
    for cut in 0..=cuts {
        let begun = Instant::now();
        while begun.elapsed() < apart {
            number += 1;
            let line = format!("{number} {}\n", start.elapsed().as_millis());
            writer.write_all(line.as_bytes()).unwrap();
            pace(Duration::from_millis(20));
        }
        if cut < cuts {
            cut_log(&log, cask.path(format!("logs/a.{cut}")));
        }
    }
    writeln!(writer, "{} end", number + 1).unwrap();
    until(
        "tail has shown the last record",
        Duration::from_secs(30),
        || reader.is_finished(),
    );
    let late = reader.join().unwrap();
    drop((tail, writer));
    cask.unmount();
    Some(late)
}

#[test]
fn tail_follows_through_cuts_and_misses_nothing() {
    // As it is: it looks for a new file after five looks without a change, a second apart.
    let plain = follow(&["-F", "-n", "+1"], 1, Duration::from_secs(8));
    let quick = follow(
        &["-F", "-n", "+1", "-s", "0.2", "--max-unchanged-stats=1"],
        3,
        Duration::from_secs(2),
    );
    let (Some(plain), Some(quick)) = (plain, quick) else {
        return;
    };
    println!(
        "tail -F is {plain:.1?} late at most; with -s 0.2 --max-unchanged-stats=1 {quick:.1?}"
    );
    assert!(quick < Duration::from_secs(1), "{quick:?}");
    assert!(plain < Duration::from_secs(9), "{plain:?}");
}

/// Maps what it is told to, keeps it mapped, and shows the SHA-256 of all it has mapped when asked.
const MAPPER: &str = r#"
import hashlib, mmap, sys
maps = []
for line in sys.stdin:
    word, _, path = line.rstrip("\n").partition(" ")
    if word == "map":
        with open(path, "rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    print(*[hashlib.sha256(m[:]).hexdigest() for m in maps], flush=True)
"#;

#[test]
fn maps_of_live_and_cut_logs_show_the_right_bytes() {
    if !installed("python3") || !installed("sha256sum") {
        return;
    }
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let (log, segment) = (cask.path("logs/a"), cask.path("logs/a.1"));
    let child = Command::new("python3")
        .args(["-c", MAPPER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut mapper = Tail(child);
    let mut orders = mapper.0.stdin.take().unwrap();
    let mut answers = BufReader::new(mapper.0.stdout.take().unwrap()).lines();
    let mut ask = |order: String| -> Vec<String> {
        writeln!(orders, "{order}").unwrap();
        let answer = answers.next().unwrap().unwrap();
        answer.split(' ').map(str::to_owned).collect()
    };
    let sum = |bytes: &[u8]| -> String {
        let file = cask.outside("bytes");
        fs::write(&file, bytes).unwrap();
        let ran = sh("sha256sum", [&file]).ok();
        ran.stdout.split(' ').next().unwrap().to_owned()
    };
    let mut writer = append(&log);
    let mut held = Vec::new();
    let mut put = |held: &mut Vec<u8>, records: std::ops::Range<u32>| {
        for number in records {
            let record = format!("{number:-<99}\n");
            writer.write_all(record.as_bytes()).unwrap();
            held.extend_from_slice(record.as_bytes());
        }
    };
    put(&mut held, 0..1000);
    let mut expected = vec![sum(&held)];
    assert_eq!(ask(format!("map {}", log.display())), expected);
    // What is appended is not within the map, but in the same page as its end.
    put(&mut held, 1000..1100);
    assert_eq!(ask("again".into()), expected);
    expected.push(sum(&held));
    assert_eq!(ask(format!("map {}", log.display())), expected);
    cut_log(&log, segment.clone());
    let mut fresh = Vec::new();
    put(&mut fresh, 0..777);
    // The maps go on showing what is the segment now.
    assert_eq!(ask("again".into()), expected);
    expected.push(sum(&fresh));
    assert_eq!(ask(format!("map {}", log.display())), expected);
    expected.push(sum(&held));
    assert_eq!(ask(format!("map {}", segment.display())), expected);
    drop((mapper, writer));
    cask.unmount();
}
