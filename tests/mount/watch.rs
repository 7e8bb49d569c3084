//! Those who follow a log: `tail`, `mmap`.
//!
//! A cut happens behind the kernel's back as far as the writers are concerned. What is asked here is
//! whether readers notice: given every record, shown the right bytes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{Cask, installed, pace, sh, until};

fn append(log: &Path) -> File {
    File::options().create(true).append(true).open(log).unwrap()
}

/// Cuts a log as another program does: who cut it does not see for a while that it is back.
fn cut_log(log: &Path, segment: PathBuf) {
    let log = log.to_owned();
    let cut = thread::spawn(move || fs::rename(log, segment));
    cut.join().unwrap().unwrap();
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
