//! The load of the storms: twenty writers at full speed, and a cutter that takes their logs away
//! under them, compresses and deletes each segment at once, and later puts all of it together again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};

use super::guard::{Dice, pace, until};
use super::ledger::{Ledger, Who};
use super::writer::{self, Style, Writer};

/// Writers that share one name.
const SHARED: u32 = 8;
/// Writers with a name each.
const OWN: u32 = 8;
/// Writers with a name each that need two writes for a line.
const HALVES: u32 = 4;

/// Lines that returned and lines that may have been written, by writer.
pub type Written = BTreeMap<Who, (u64, u64)>;

/// Twenty running writers.
pub struct Load {
    writers: Vec<Writer>,
    names: Vec<String>,
    notes: PathBuf,
}

impl Load {
    /// Starts the writers on logs in `logs`; they note in a directory below `work`. Each epoch is
    /// another life of the same writers. A writer in halves that is killed leaves half a line, so
    /// these have new names in each epoch. Each writes until it is stopped, or `lines` lines unless 0.
    pub fn start(logs: &Path, work: &Path, epoch: u32, lines: u64) -> Self {
        let notes = work.join(format!("notes.{epoch}"));
        fs::create_dir_all(&notes).unwrap();
        let mut names = vec!["all.log".to_owned()];
        let mut writers = Vec::new();
        for id in 0..SHARED + OWN + HALVES {
            let (name, style) = if id < SHARED {
                ("all.log".to_owned(), Style::Whole)
            } else if id < SHARED + OWN {
                (format!("own-{id}.log"), Style::Whole)
            } else {
                (format!("half-{id}.e{epoch}.log"), Style::Halves)
            };
            writers.push(writer::start(
                &logs.join(&name),
                (id, epoch),
                style,
                lines,
                &notes,
            ));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let load = Self {
            writers,
            names,
            notes,
        };
        load.wait_for(1);
        load
    }

    /// The names the writers write to.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Waits until each writer has `lines` lines behind it.
    pub fn wait_for(&self, lines: u64) {
        for writer in &self.writers {
            until("a writer to write", Duration::from_secs(60), || {
                let note = writer.note();
                assert_eq!(note.errno, 0, "writer {:?} could not write", writer.who());
                note.returned >= lines
            });
        }
    }

    /// Stops all writers; fails if a write of theirs ever failed.
    pub fn finish(self) -> Written {
        writer::stop(&self.notes);
        self.end(|who, note| {
            assert_eq!(
                (note.errno, note.done),
                (0, true),
                "writer {who:?} had an error"
            );
            (note.returned, note.returned)
        })
    }

    /// Waits for the writers of a dead mount to give up. The line under way may or may not be there.
    pub fn broken_off(self) -> Written {
        writer::stop(&self.notes);
        self.end(|_, note| (note.returned, note.returned + 1))
    }

    fn end(self, book: impl Fn(Who, writer::Note) -> (u64, u64)) -> Written {
        self.writers
            .into_iter()
            .map(|writer| {
                let who = writer.who();
                (who, book(who, writer.join()))
            })
            .collect()
    }
}

/// How a log is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By `rename(2)`.
    Rename,
    /// By `rename(2)` and a write to `.cask/rotate`, in a store of `roll-on=reopen`.
    Reopen,
    /// By copying and truncating, as an ordinary filesystem needs it, and loses by it.
    CopyTruncate,
}

/// One cut.
struct Cut {
    number: u64,
    name: String,
    /// Bytes of the segment when the cut had returned; `None` while it has not.
    size: Option<u64>,
    archived: bool,
}

/// Cuts logs, archives the segments, remembers what returned.
pub struct Cutter {
    logs: PathBuf,
    archive: PathBuf,
    how: How,
    dice: Dice,
    cuts: Vec<Cut>,
    next: u64,
    last: Option<Instant>,
    /// Pairs of cuts of one name within a millisecond.
    pub pairs: u64,
    /// Operations that had returned and were not there after a crash.
    pub undone: u64,
    /// Errors of compressing or deleting.
    pub troubles: Vec<String>,
}

impl Cutter {
    /// A cutter of the logs in `logs`, which archives half of the segments in `archive` and the other
    /// half in place.
    pub fn new(logs: &Path, archive: &Path, how: How, seed: u64) -> Self {
        fs::create_dir_all(archive).unwrap();
        fs::create_dir_all(logs.join("old")).unwrap();
        Self {
            logs: logs.to_owned(),
            archive: archive.to_owned(),
            how,
            dice: Dice::new(seed),
            cuts: Vec::new(),
            next: 0,
            last: None,
            pairs: 0,
            undone: 0,
            troubles: Vec::new(),
        }
    }

    /// Cuts made so far.
    pub fn count(&self) -> usize {
        self.cuts.len()
    }

    /// Cuts the logs `names` at random moments while `more` says so.
    ///
    /// # Errors
    /// The first cut that failed otherwise than by there being nothing to cut.
    pub fn run(&mut self, names: &[String], mut more: impl FnMut(&Self) -> bool) -> io::Result<()> {
        let (to_archive, jobs) = mpsc::sync_channel::<Job>(4);
        let jobs = Mutex::new(jobs);
        let (done, results) = mpsc::channel();
        let mut outcome = Ok(());
        thread::scope(|scope| {
            for _ in 0..3 {
                let (jobs, done) = (&jobs, done.clone());
                scope.spawn(move || {
                    loop {
                        let job = jobs.lock().unwrap().recv();
                        let Ok(job) = job else { return };
                        done.send((job.number, job.archive())).unwrap();
                    }
                });
            }
            // Two cuts within a millisecond need a processor at once, beside twenty writers. Whoever may not ask for
            // that has to do with what he gets.
            let usual = getpriority_process(None).unwrap();
            let _ = setpriority_process(None, -20);
            while more(self) {
                // Half of the cuts go to the name that all share.
                let pick = if self.dice.below(2) == 0 {
                    0
                } else {
                    self.dice.below(names.len() as u64)
                };
                let name = &names[pick as usize];
                let twice = self.dice.below(4) == 0;
                let start = Instant::now();
                // Handed over after the second cut: that may have to wait for the archivers.
                let mut made = Vec::new();
                while outcome.is_ok()
                    && made.len() <= usize::from(twice)
                    && start.elapsed() < Duration::from_millis(2)
                {
                    match self.cut(name) {
                        Ok(job) => made.extend(job),
                        Err(error) => outcome = Err(error),
                    }
                }
                for job in made {
                    let _ = to_archive.send(job);
                }
                if outcome.is_err() {
                    break;
                }
                let pause = self.dice.below(6_000);
                pace(Duration::from_micros(pause));
            }
            let _ = setpriority_process(None, usual);
            drop(to_archive);
        });
        drop(done);
        for (number, result) in results {
            match result {
                Ok(()) => self
                    .cuts
                    .iter_mut()
                    .filter(|cut| cut.number == number)
                    .for_each(|cut| cut.archived = true),
                Err(trouble) => self.troubles.push(trouble),
            }
        }
        outcome
    }

    fn job(&self, number: u64, name: &str) -> Job {
        let dir = if number.is_multiple_of(3) {
            self.logs.join("old")
        } else {
            self.logs.clone()
        };
        let segment = dir.join(format!("{name}.{number:06}"));
        let outside =
            (number.is_multiple_of(2)).then(|| self.archive.join(format!("{name}.{number:06}.gz")));
        Job {
            number,
            segment,
            outside,
        }
    }

    /// One cut; `None` when the log does not exist at the moment.
    fn cut(&mut self, name: &str) -> io::Result<Option<Job>> {
        let number = self.next;
        let job = self.job(number, name);
        let live = self.logs.join(name);
        let again = self.cuts.last().is_some_and(|cut| cut.name == name);
        self.cuts.push(Cut {
            number,
            name: name.to_owned(),
            size: None,
            archived: false,
        });
        let size = match self.how {
            // By a thread of its own, as each mv is: for five seconds it does not see the name again.
            How::Rename => thread::scope(|scope| {
                let cut = scope.spawn(|| fs::rename(&live, &job.segment));
                cut.join().unwrap()
            })
            .and_then(|()| Ok(fs::metadata(&job.segment)?.size())),
            How::Reopen => fs::rename(&live, &job.segment)
                .and_then(|()| fs::write(self.logs.join(".cask/rotate"), name))
                .and_then(|()| Ok(fs::metadata(&job.segment)?.size())),
            How::CopyTruncate => copy_truncate(&live, &job.segment),
        };
        match size {
            Ok(size) => {
                if let Some(cut) = self.cuts.last_mut() {
                    cut.size = Some(size);
                }
                let now = Instant::now();
                if again
                    && self
                        .last
                        .is_some_and(|last| now - last < Duration::from_millis(1))
                {
                    self.pairs += 1;
                }
                self.last = Some(now);
                self.next += 1;
                Ok(Some(job))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.cuts.pop();
                Ok(None)
            }
            Err(error) => {
                // Whether it happened is seen after the crash.
                self.next += 1;
                Err(error)
            }
        }
    }

    /// After the daemon was killed and the cask is mounted again: takes stock of what was under way.
    pub fn take_stock(&mut self) {
        self.troubles.clear();
        let mut kept = Vec::new();
        for mut cut in std::mem::take(&mut self.cuts) {
            let job = self.job(cut.number, &cut.name);
            let there = job.segment.exists();
            if cut.archived {
                self.undone += u64::from(there);
            } else if cut.size.is_none() {
                if !there {
                    continue;
                }
                cut.size = Some(fs::metadata(&job.segment).unwrap().size());
            } else if !there && !job.kept().exists() {
                self.undone += 1;
            }
            if !cut.archived {
                job.archive().unwrap_or_else(|trouble| panic!("{trouble}"));
                cut.archived = true;
            }
            kept.push(cut);
        }
        self.cuts = kept;
    }

    /// Reads all segments and the live logs in order into the book. The live log of a name that
    /// `begun` picks may end within a record. Answers how many segments were not as long as they were
    /// when their `rename` returned.
    pub fn read_back(
        &self,
        names: &[String],
        ledger: &mut Ledger,
        begun: impl Fn(&str) -> bool,
    ) -> u64 {
        let mut changed = 0;
        for name in names {
            for cut in self.cuts.iter().filter(|cut| cut.name == *name) {
                let file = self.job(cut.number, name).kept();
                let length = read_compressed(&file, |segment| {
                    ledger.enter(&format!("{name}.{}", cut.number), segment, false)
                });
                changed += u64::from(Some(length) != cut.size);
            }
            if let Ok(live) = File::open(self.logs.join(name)) {
                ledger.enter(name, BufReader::with_capacity(1 << 20, live), begun(name));
            }
        }
        changed
    }
}

/// Passes the decompressed bytes of a file made by gzip(1) to `read`.
pub fn read_compressed<T>(file: &Path, read: impl FnOnce(BufReader<&mut dyn Read>) -> T) -> T {
    let mut child = Command::new("gzip")
        .arg("-dc")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let result = read(BufReader::with_capacity(1 << 16, &mut stdout));
    assert!(
        child.wait().unwrap().success(),
        "gzip -dc {}",
        file.display()
    );
    result
}

/// A segment to compress and delete.
struct Job {
    number: u64,
    segment: PathBuf,
    /// Where the compressed segment goes; beside itself in the mount when `None`.
    outside: Option<PathBuf>,
}

impl Job {
    /// The compressed segment.
    fn kept(&self) -> PathBuf {
        let beside = || PathBuf::from(format!("{}.gz", self.segment.display()));
        self.outside.clone().unwrap_or_else(beside)
    }

    /// Compresses and deletes; may be repeated after it was broken off.
    fn archive(&self) -> Result<(), String> {
        let named = |error: io::Error| format!("{}: {error}", self.segment.display());
        let gzip = |arguments: &[&str], stdout: Stdio| {
            let ran = Command::new("gzip")
                .args(arguments)
                .arg(&self.segment)
                .stdout(stdout)
                .stderr(Stdio::piped())
                .output();
            let ran = ran.map_err(named)?;
            let words = String::from_utf8_lossy(&ran.stderr).into_owned();
            if ran.status.success() && words.is_empty() {
                Ok(None)
            } else if matches!(ran.status.code(), Some(0 | 2)) {
                // A warning: it has compressed what it saw of a segment that still changes.
                Ok(Some(format!("gzip: {words}")))
            } else {
                Err(format!("gzip: {} {words}", ran.status))
            }
        };
        let kept = self.kept();
        if self.outside.is_none() {
            if self.segment.try_exists().map_err(named)? {
                let _ = fs::remove_file(&kept);
                return gzip(&["-1"], Stdio::null())?.map_or(Ok(()), Err);
            }
            return Ok(());
        }
        let mut warning = None;
        if !kept.exists() {
            let draft = kept.with_extension("draft");
            warning = gzip(&["-1", "-c"], File::create(&draft).map_err(named)?.into())?;
            fs::rename(&draft, &kept).map_err(named)?;
        }
        match fs::remove_file(&self.segment) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(named(error)),
            _ => warning.map_or(Ok(()), Err),
        }
    }
}

/// What logrotate's `copytruncate` does, with one descriptor. Answers the bytes copied.
pub fn copy_truncate(live: &Path, copy: &Path) -> io::Result<u64> {
    let mut from = File::options().read(true).write(true).open(live)?;
    let mut to = File::create_new(copy)?;
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
        copied += read as u64;
    }
    from.set_len(0)?;
    Ok(copied)
}
