//! Unmodified logrotate under writers that never reopen: is each line there once, and is it silent?
//!
//! Each configuration runs under 8 processes at full speed, 4 on one name and 4 on names of their
//! own, without a postrotate that tells them anything.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::guard::{self, BIN, Cask, Share, installed, setting, sh, until};
use super::ledger::Ledger;
use super::load::{Written, read_compressed};
use super::writer::{self, Style};

/// Rotates `CASKFS_ROTATIONS` (6) times with these directives; `style` is how the writers write.
fn rotates(directives: &str, style: Style) {
    rotates_in(None, directives, style);
}

/// The same in a store with this setting.
fn rotates_in(store: Option<&str>, directives: &str, style: Style) {
    if !installed("logrotate") {
        return;
    }
    let Some(cask) = Cask::mounted() else { return };
    if let Some(setting) = store {
        cask.set("logs", setting);
    }
    let (report, rotations) = rotate(
        &cask.path("logs"),
        &cask.outside("work"),
        directives,
        style,
        true,
    );
    println!("logrotate [{directives}] {style:?}: {rotations} rotations; {report}");
    report.assert_clean();
}

fn rotate(
    logs: &Path,
    work: &Path,
    directives: &str,
    style: Style,
    silent: bool,
) -> (super::ledger::Report, u64) {
    let notes = work.join("notes");
    fs::create_dir_all(&notes).unwrap();
    let old = logs.join("old");
    if directives.contains("olddir") {
        fs::create_dir(&old).unwrap();
    }
    // Several rotations a day need more than the day in the name.
    let dated = if directives.contains("dateext") {
        "dateformat -%Y%m%d-%s"
    } else {
        ""
    };
    let config = work.join("logrotate.conf");
    let directives = directives.split(", ").collect::<Vec<_>>().join("\n  ");
    fs::write(&config, format!("{}/*.log {{\n  rotate 1000\n  missingok\n  notifempty\n  {directives}\n  {dated}\n}}\n", logs.display())).unwrap();

    let rotations = setting("CASKFS_ROTATIONS", 6);
    let mut names = Vec::new();
    let mut writers = Vec::new();
    for id in 0..8_u32 {
        let name = if id < 4 && style == Style::Whole {
            "all.log".to_owned()
        } else {
            format!("own-{id}.log")
        };
        writers.push(writer::start(&logs.join(&name), (id, 0), style, 0, &notes));
        names.push(name);
    }
    names.dedup();
    // Each by its own count: those who share a name are slower than those who have one.
    let returned = |writers: &[writer::Writer]| -> Vec<u64> {
        writers
            .iter()
            .map(|writer| writer.note().returned)
            .collect()
    };
    let mut lines = vec![0; writers.len()];
    for _ in 0..rotations {
        // A new second for the names by date, and fresh lines in every log.
        let second = now();
        until(
            "fresh lines in a new second",
            Duration::from_secs(60),
            || {
                let now_returned = returned(&writers);
                let fresh = |(now, before): (&u64, &u64)| *now >= before + 200;
                now() > second && now_returned.iter().zip(&lines).all(fresh)
            },
        );
        lines = returned(&writers);
        // By its size a log is due without force.
        let force = (!directives.contains("size")).then_some(Path::new("-f"));
        let state = work.join("state");
        let arguments = [Path::new("-s"), &state, &config];
        let ran = sh("logrotate", force.into_iter().chain(arguments));
        if silent {
            assert_eq!(
                (ran.code, ran.stderr.as_str()),
                (Some(0), ""),
                "logrotate complains"
            );
        }
    }
    for writer in &writers {
        let end = writer.note().returned + 50;
        until(
            "lines after the last rotation",
            Duration::from_secs(60),
            || writer.note().returned >= end,
        );
    }
    writer::stop(&notes);
    let written: Written = writers
        .into_iter()
        .map(|writer| {
            let who = writer.who();
            let note = writer.join();
            assert_eq!(
                (note.errno, note.done),
                (0, true),
                "writer {who:?} had an error"
            );
            (who, (note.returned, note.returned))
        })
        .collect();

    let mut ledger = Ledger::default();
    let mut seen = 0;
    for name in &names {
        let files = segments(&[logs, &old], name);
        seen = seen.max(files.len() as u64 - 1);
        for file in files {
            let label = file.file_name().unwrap().to_string_lossy().into_owned();
            if label.ends_with(".gz") {
                read_compressed(&file, |segment| ledger.enter(&label, segment, false));
            } else {
                ledger.enter(
                    &label,
                    BufReader::with_capacity(1 << 20, File::open(&file).unwrap()),
                    false,
                );
            }
        }
    }
    assert!(
        !silent || seen >= rotations,
        "only {seen} segments after {rotations} rotations"
    );
    (ledger.close(&written), rotations)
}

/// The seconds by the clock of time(2), which logrotate asks: it goes in ticks, and is up to one late.
fn now() -> i64 {
    clock_gettime(ClockId::RealtimeCoarse).tv_sec
}

/// All files of one log, oldest first: by date upwards, by number downwards, the live log last.
fn segments(dirs: &[&Path], name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in dirs {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let file = entry.file_name().into_string().unwrap();
            let Some(suffix) = file.strip_prefix(name) else {
                continue;
            };
            let suffix = suffix.trim_end_matches(".gz");
            let age = if suffix.is_empty() {
                i64::MIN
            } else if let Some(number) = suffix.strip_prefix('.') {
                number
                    .parse()
                    .unwrap_or_else(|_| panic!("logrotate left {file}"))
            } else {
                -suffix
                    .rsplit('-')
                    .next()
                    .unwrap()
                    .parse::<i64>()
                    .unwrap_or_else(|_| panic!("logrotate left {file}"))
            };
            found.push((age, entry.path()));
        }
    }
    found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    found.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn create() {
    rotates("create", Style::Whole);
}

#[test]
fn create_with_a_mode_and_compress() {
    rotates("create 0640 root root, compress", Style::Whole);
}

#[test]
fn nocreate() {
    rotates("nocreate", Style::Whole);
}

#[test]
fn nocreate_and_compress() {
    rotates("nocreate, compress", Style::Whole);
}

#[test]
fn dateext() {
    rotates("create, dateext", Style::Whole);
}

#[test]
fn dateext_nocreate_and_compress() {
    rotates("nocreate, dateext, compress", Style::Whole);
}

#[test]
fn copytruncate() {
    rotates("copytruncate", Style::Whole);
}

#[test]
fn copytruncate_and_compress() {
    rotates("copytruncate, compress", Style::Whole);
}

#[test]
fn olddir_and_create() {
    rotates("olddir old, create", Style::Whole);
}

#[test]
fn olddir_nocreate_and_compress() {
    rotates("olddir old, nocreate, compress", Style::Whole);
}

#[test]
fn delaycompress() {
    rotates("create, compress, delaycompress", Style::Whole);
}

#[test]
fn sharedscripts() {
    let scripts = "prerotate, true, endscript, postrotate, true, endscript";
    let directives = format!("nocreate, sharedscripts, compress, {scripts}");
    rotates(&directives, Style::Whole);
}

#[test]
fn maxsize() {
    rotates("daily, maxsize 1k, create", Style::Whole);
}

#[test]
fn su() {
    rotates("su root root, create, compress", Style::Whole);
}

/// Records that come in two writes: the begun one is carried over the cut.
#[test]
fn create_and_compress_under_writers_in_halves() {
    rotates("create, compress", Style::Halves);
}

/// Writers that were started with `>` instead of `>>`.
#[test]
fn nocreate_and_compress_under_writers_without_append() {
    rotates("nocreate, compress", Style::Offset);
}

/// Such writers leave a hole of NULs at the beginning of a truncated file elsewhere.
#[test]
fn copytruncate_under_writers_without_append() {
    rotates("copytruncate", Style::Offset);
}

/// Where a rename cuts nothing the writers are told to come back; they still need no signal.
#[test]
fn postrotate_in_a_store_of_roll_on_reopen() {
    for (first, style) in [("create", Style::Whole), ("nocreate", Style::Halves)] {
        let directives = format!("{first}, compress, postrotate, {BIN} rotate \"$1\", endscript");
        rotates_in(Some("roll-on=reopen"), &directives, style);
    }
}

/// The checker itself: on an ordinary filesystem `copytruncate` must be seen to lose.
#[test]
fn the_loss_of_an_ordinary_filesystem_is_seen() {
    if !installed("logrotate") || guard::plain() {
        return;
    }
    let _share = Share::one();
    // In memory if there is such a filesystem: on a disk that is slower than the writers the copy
    // never comes to their end.
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    }
    .unwrap();
    let logs = dir.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let (report, _) = rotate(
        &logs,
        &dir.path().join("work"),
        "copytruncate",
        Style::Whole,
        false,
    );
    println!("logrotate [copytruncate] on an ordinary directory: {report}");
    assert!(
        report.lost > 0,
        "an ordinary copytruncate loses lines: {report}"
    );
}
