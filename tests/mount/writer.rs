//! Writers as processes of their own: the test binary runs itself again as a writer.
//!
//! A writer opens its file once and never again, knows nothing of rotation, and appends numbered
//! lines with plain `write(2)` until it is told to stop. After each line whose last write returned
//! it notes the number in a file outside the mount, so that the book can be closed even when the
//! daemon is killed under it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};

use super::guard::{pace, until};
use super::ledger::{self, Who};

/// How a writer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One line, one `write`, `O_APPEND`.
    Whole,
    /// One line in two `write`s, `O_APPEND`.
    Halves,
    /// One line, one `write`, without `O_APPEND`, as after the shell's `>`.
    Offset,
}

/// A running writer process; killed when dropped.
pub struct Writer {
    child: Child,
    who: Who,
    note: PathBuf,
}

/// What a writer has noted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    /// Lines whose writes returned.
    pub returned: u64,
    /// The errno that ended it; 0 for none.
    pub errno: u64,
    /// It ended by itself.
    pub done: bool,
}

/// Starts a writer of `path`; it runs until `stop` exists, or for `lines` lines unless 0. Notes go
/// to the directory `notes`.
pub fn start(path: &Path, who: Who, style: Style, lines: u64, notes: &Path) -> Writer {
    let note = notes.join(format!("{}.{}", who.0, who.1));
    File::create(&note).unwrap();
    let job = format!(
        "path={}\nnote={}\nstop={}\nwriter={}\nepoch={}\nstyle={style:?}\nlines={lines}",
        path.display(),
        note.display(),
        notes.join("stop").display(),
        who.0,
        who.1
    );
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "writer::process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("CASKFS_WRITER", job)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Writer { child, who, note }
}

/// Tells all writers that note in `notes` to stop after their line.
pub fn stop(notes: &Path) {
    File::create(notes.join("stop")).unwrap();
}

impl Writer {
    pub fn who(&self) -> Who {
        self.who
    }

    pub fn note(&self) -> Note {
        let bytes = fs::read(&self.note).unwrap_or_default();
        let word = |at: usize| {
            bytes
                .get(at * 8..at * 8 + 8)
                .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
        };
        Note {
            returned: word(0),
            errno: word(1),
            done: word(2) == 1,
        }
    }

    /// Waits until the writer has ended; answers its last note.
    pub fn join(mut self) -> Note {
        until("a writer to end", Duration::from_secs(60), || {
            self.child.try_wait().unwrap().is_some()
        });
        self.note()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a proof: what a writer process runs. Does nothing in an ordinary test run.
#[test]
fn process() {
    let Ok(job) = std::env::var("CASKFS_WRITER") else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let job: HashMap<&str, &str> = job
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let number = |name: &str| job[name].parse::<u64>().unwrap();
    let who = (number("writer") as u32, number("epoch") as u32);
    let lines = number("lines");
    let stop = Path::new(job["stop"]);
    let note = File::options().write(true).open(job["note"]).unwrap();
    let noted = |at: u64, value: u64| note.write_all_at(&value.to_le_bytes(), at * 8).unwrap();

    let mut options = File::options();
    options.create(true);
    match job["style"] {
        "Offset" => options.write(true).truncate(true),
        _ => options.append(true),
    };
    let mut file = match options.open(job["path"]) {
        Ok(file) => file,
        Err(error) => {
            noted(1, error.raw_os_error().unwrap_or(-1).unsigned_abs().into());
            return noted(2, 1);
        }
    };
    let halves = job["style"] == "Halves";
    let mut at = 0;
    while lines == 0 || at < lines {
        at += 1;
        let line = ledger::line(who, at, 160);
        // Anywhere in the line, its last byte included.
        let middle = if halves {
            1 + (at as usize * 13) % (line.len() - 1)
        } else {
            line.len()
        };
        let (head, tail) = line.split_at(middle);
        let mut result = one_write(&mut file, head);
        if result.is_ok() && !tail.is_empty() {
            if at % 64 == 0 {
                pace(Duration::from_micros(300));
            }
            result = one_write(&mut file, tail);
        }
        if let Err(errno) = result {
            noted(1, errno);
            break;
        }
        noted(0, at);
        if at % 16 == 0 && stop.exists() {
            break;
        }
    }
    noted(2, 1);
}

/// One `write(2)` that must take everything.
fn one_write(file: &mut File, bytes: &[u8]) -> Result<(), u64> {
    match file.write(bytes) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(u64::MAX),
        Err(error) => Err(error.raw_os_error().unwrap_or(-1).unsigned_abs().into()),
    }
}
