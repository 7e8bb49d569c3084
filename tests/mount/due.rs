//! Logs that cut themselves, through the real kernel: under writers at full speed every record is
//! there once, whole and in order, and the record of rolls names every segment.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use super::guard::{Cask, sh, until};

/// Writers of one log, and records of each.
const WRITERS: u64 = 6;
const RECORDS: u64 = 20_000;

/// A line of `.cask/events`.
#[derive(Debug)]
struct Event {
    cause: String,
    log: String,
    segment: String,
}

fn events(cask: &Cask) -> Vec<Event> {
    let text = fs::read_to_string(cask.path(".cask/events")).unwrap();
    let event = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [time, cause, log, segment] = words.as_slice() else {
            panic!("{line}");
        };
        assert!(time.parse::<u64>().unwrap() > 1_700_000_000, "{line}");
        Event {
            cause: (*cause).to_owned(),
            log: (*log).to_owned(),
            segment: (*segment).to_owned(),
        }
    };
    text.lines().map(event).collect()
}

/// Every writer appends its numbered records to `log`, a few in one `write(2)` now and then.
fn write_all(log: &Path) {
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut file = File::options().create(true).append(true).open(log).unwrap();
                let mut number = 0;
                while number < RECORDS {
                    let some = (1 + number % 7).min(RECORDS - number);
                    let records: Vec<String> = (number..number + some)
                        .map(|number| format!("{writer} {number} {:-<40}\n", ""))
                        .collect();
                    let records = records.concat();
                    assert_eq!(file.write(records.as_bytes()).unwrap(), records.len());
                    number += some;
                }
            });
        }
    });
}

/// Checks that these files, in this order, hold all that was written.
fn hold_all(files: &[PathBuf]) {
    let mut next: HashMap<u64, u64> = HashMap::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        assert!(
            text.ends_with('\n'),
            "{} ends inside a record",
            file.display()
        );
        for line in text.lines() {
            let mut words = line.split(' ').map(str::parse);
            let (writer, number) = (words.next().unwrap(), words.next().unwrap());
            let (writer, number): (u64, u64) = (writer.unwrap(), number.unwrap());
            assert_eq!(
                line.len(),
                format!("{writer} {number} ").len() + 40,
                "{line}"
            );
            let expected = next.entry(writer).or_default();
            assert_eq!(number, *expected, "writer {writer} in {}", file.display());
            *expected += 1;
        }
    }
    assert_eq!(next.len() as u64, WRITERS);
    assert!(next.values().all(|count| *count == RECORDS), "{next:?}");
}

/// Renames on a thread of its own, since the one that cut a log does not see it for a while.
fn cut(from: &Path, to: &Path) {
    thread::scope(|scope| scope.spawn(|| fs::rename(from, to)).join().unwrap()).unwrap();
}

#[test]
fn writers_at_full_speed_lose_nothing_when_their_log_fills_up() {
    for (setting, least) in [("roll-size=256k", 20), ("roll-lines=1000", 120)] {
        let Some(mut cask) = Cask::mounted() else {
            return;
        };
        cask.set("logs", setting);
        let log = cask.path("logs/a.log");
        write_all(&log);
        let rolls = events(&cask);
        assert!(rolls.len() >= least, "{setting}: {} rolls", rolls.len());
        let cause = if setting.starts_with("roll-size") {
            "size"
        } else {
            "lines"
        };
        let other = rolls
            .iter()
            .find(|roll| roll.cause != cause || roll.log != "/logs/a.log");
        assert!(other.is_none(), "{setting}: {other:?}");
        let mut files: Vec<PathBuf> = rolls
            .iter()
            .map(|roll| cask.path(roll.segment.trim_start_matches('/')))
            .collect();
        for segment in &files {
            let text = fs::read_to_string(segment).unwrap();
            match cause {
                "size" => assert!((256 << 10..257 << 10).contains(&text.len())),
                _ => assert_eq!(text.lines().count(), 1000),
            }
        }
        if log.exists() {
            files.push(log);
        }
        assert_eq!(
            fs::read_dir(cask.path("logs")).unwrap().count(),
            files.len()
        );
        hold_all(&files);
        cask.remount();
        assert_eq!(events(&cask).len(), rolls.len());
        hold_all(&files);
        println!("{setting}: {} rolls", rolls.len());
        cask.unmount();
        cask.fsck();
    }
}

#[test]
fn keep_bounds_what_a_log_takes() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("logs", "roll-size=64k");
    cask.set("logs", "keep=4");
    let log = cask.path("logs/a.log");
    thread::scope(|scope| {
        let writing = scope.spawn(|| write_all(&log));
        while !writing.is_finished() {
            let files = fs::read_dir(cask.path("logs")).unwrap().count();
            // A listing may meet names before and after a cut.
            assert!(files <= 8, "{files} files");
        }
    });
    let files = fs::read_dir(cask.path("logs")).unwrap().count();
    assert!((3..=4).contains(&files), "{files} files");
    assert!(events(&cask).len() > 60);
    cask.unmount();
    cask.fsck();
}

#[test]
fn the_record_of_rolls_can_be_followed() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    let (log, door) = (cask.path("logs/a.log"), cask.path(".cask/events"));
    assert_eq!(fs::read(&door).unwrap(), b"");
    let mut follower = File::open(&door).unwrap();
    let mut writer = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .unwrap();
    let mut seen = String::new();
    for count in 1..4 {
        writer.write_all(b"x\n").unwrap();
        cut(&log, &cask.path(format!("logs/a.{count}")));
        until("the roll is told", Duration::from_secs(5), || {
            follower.read_to_string(&mut seen).unwrap();
            seen.lines().count() == count
        });
        assert!(seen.ends_with(&format!("rename /logs/a.log /logs/a.{count}\n")));
    }
    assert_eq!(fs::metadata(&door).unwrap().len(), seen.len() as u64);
    assert!(File::options().append(true).open(&door).is_err());
    assert!(fs::remove_file(&door).is_err());
    let shown = sh("ls", [cask.path(".cask")]).ok();
    assert_eq!(
        shown.stdout.split_whitespace().collect::<Vec<_>>(),
        ["events", "rotate", "snapshot"]
    );
}

#[test]
fn a_header_is_the_first_line_of_every_segment() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    cask.set("logs", "header=time|who");
    let log = cask.path("logs/a.log");
    let mut writer = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .unwrap();
    for count in 0..3 {
        writer.write_all(b"1|me\n").unwrap();
        cut(&log, &cask.path(format!("logs/a.{count}")));
    }
    for count in 0..3 {
        let text = fs::read_to_string(cask.path(format!("logs/a.{count}"))).unwrap();
        assert_eq!(text, "time|who\n1|me\n");
    }
}

/// Block-buffered writers of one log, as with stdio: their writes end inside records.
#[test]
fn with_assemble_buffered_writers_share_a_log_that_is_cut() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("logs", "assemble=1");
    let log = cask.path("logs/a.log");
    let mut files = Vec::new();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let log = &log;
                scope.spawn(move || {
                    let file = File::options().create(true).append(true).open(log).unwrap();
                    let mut file = BufWriter::with_capacity(4096, file);
                    for number in 0..RECORDS {
                        writeln!(file, "{writer} {number} {:-<40}", "").unwrap();
                    }
                    file.flush().unwrap();
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let to = cask.path(format!("logs/a.{:04}", files.len()));
            // Nothing may have been written since the last cut.
            if thread::scope(|scope| scope.spawn(|| fs::rename(&log, &to)).join().unwrap()).is_ok()
            {
                files.push(to);
            }
        }
    });
    if log.exists() {
        files.push(log);
    }
    assert!(files.len() > 10, "{} files", files.len());
    hold_all(&files);
    cask.unmount();
    cask.fsck();
}

#[test]
fn a_segment_goes_when_it_is_as_old_as_its_ttl_also_after_a_remount() {
    const TTL: Duration = Duration::from_secs(3);
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("logs", "ttl=3s");
    let (log, segment) = (cask.path("logs/a.log"), cask.path("logs/a.log.1"));
    let make = || {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        writeln!(file, "a record").unwrap();
        cut(&log, &segment);
        writeln!(file, "another").unwrap();
        fs::metadata(&segment).unwrap().modified().unwrap()
    };
    let gone = |written: SystemTime| {
        until("an old segment to go", Duration::from_secs(20), || {
            !segment.exists()
        });
        let age = written.elapsed().unwrap();
        assert!(age >= TTL, "it went after {age:?}");
        println!("gone after {:.2} s", age.as_secs_f64());
    };
    gone(make());
    let written = make();
    cask.remount();
    gone(written);
    assert!(fs::read_to_string(&log).unwrap().ends_with("another\n"));
    assert_eq!(events(&cask).len(), 2);
}
