//! `caskfs scrub`: reads and verifies all that a cask holds, slowly, so that what rots is found in time.

use std::ffi::OsString;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::checked::{Checked, unopened};
use super::exit::{CliError, Outcome, shown};
use super::fsck::findings;
use super::out::Out;
use super::peek;
use super::progress::Progress;
use super::units::parse_size;
use crate::cask::{Cask, OpenOptions};
use crate::device::file::{Access, FileDevice};
use crate::format::Key;
use crate::fsck::{self, Report, SCRUB_START, Severity};

/// A piece takes about so long: a mounted cask holds blocks back meanwhile.
const PIECE: Duration = Duration::from_secs(5);
/// A piece that was given up for want of room is tried again so many times.
const TRIES: u32 = 8;

/// Read and verify everything that a cask holds, beside its mount too
///
/// Nothing is changed. Of a mounted cask it reads what it finds as it goes on, and never holds back space for longer
/// than some seconds. Exit codes are those of fsck(8): 0 no errors, 4 errors found, 8 it could not be done, 16 wrong usage.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Read at most so many bytes a second
    #[arg(long, value_name = "BYTES", default_value = "32M", value_parser = rate)]
    rate: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The cask: a container, or a path below a mountpoint
    container: OsString,
}

fn rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("with nothing a second it would never end".to_owned()),
        rate => Ok(rate),
    }
}

#[derive(Serialize)]
struct JsonReport<'a> {
    container: &'a str,
    clean: bool,
    #[serde(flatten)]
    report: &'a Report,
    bytes_read: u64,
    seconds: f64,
}

/// Keeps reading to a rate.
struct Pace {
    rate: u64,
    start: Instant,
    read: u64,
}

impl Pace {
    /// How long it has to wait until what was read may have been.
    fn rest(&self) -> Duration {
        let due = Duration::from_secs_f64(self.read as f64 / self.rate as f64);
        due.saturating_sub(self.start.elapsed())
    }

    fn wait(&self) {
        while !self.rest().is_zero() {
            thread::park_timeout(self.rest());
        }
    }
}

/// Runs the verb.
pub fn run(args: ScrubArgs) -> Result<Outcome, CliError> {
    let (checked, device) = Checked::find(&args.container, Access::ReadOnly)?;
    let name = shown(&checked.container);
    let mut report = Report::default();
    let copies = peek::damaged_copies(&checked.container);
    let copies = match copies {
        // Who may read a mounted cask may not always read its container.
        Err(_) if checked.mount.is_some() => Vec::new(),
        copies => copies.map_err(|error| CliError::at(&name, &error))?,
    };
    for offset in copies {
        let text = "a copy of the superblock does not verify; another does, and one of the next two checkpoints writes it anew";
        report.add(
            Severity::Warning,
            "superblock",
            Some(offset),
            text.to_owned(),
        );
    }
    let mut pace = Pace {
        rate: args.rate,
        start: Instant::now(),
        read: 0,
    };
    let mut line = Progress::new("scrubbing");
    read_all(&checked, device, &mut pace, &mut report, &mut line)?;
    drop(line);
    let took = pace.start.elapsed();
    let mut out = Out::new();
    if args.json {
        out.json(&JsonReport {
            container: &name,
            clean: report.is_clean(),
            report: &report,
            bytes_read: pace.read,
            seconds: took.as_secs_f64(),
        })?;
    } else {
        findings(&report)
            .iter()
            .try_for_each(|line| out.line(line))?;
        let verdict = match (report.has_errors(), report.is_clean()) {
            (true, _) => "errors found",
            (false, false) => "no errors, but warnings",
            (false, true) => "all verifies",
        };
        out.line(format!(
            "{name}: {verdict}; {} pages and {} data blocks, {} bytes read in {:.1} s",
            report.pages,
            report.data_blocks,
            pace.read,
            took.as_secs_f64()
        ))?;
    }
    out.finish()?;
    Ok(match report.has_errors() {
        true => Outcome::ErrorsLeft,
        false => Outcome::Done,
    })
}

/// Reads all, piece by piece.
fn read_all(
    checked: &Checked,
    device: Option<FileDevice>,
    pace: &mut Pace,
    report: &mut Report,
    line: &mut Progress,
) -> Result<(), CliError> {
    let name = shown(&checked.container);
    let (mut from, mut tries) = (SCRUB_START, 0);
    // A container that is not mounted stays locked, and so as it is.
    let held = device.map(Arc::new);
    loop {
        let piece = match &held {
            Some(device) => Arc::clone(device),
            None => Arc::new(checked.open()?),
        };
        let before = report.clone();
        let read = read_piece(piece, from, PIECE / (1 << tries), pace, report, line);
        pace.wait();
        match read {
            Ok(None) => return Ok(()),
            Ok(Some(next)) => (from, tries) = (next, 0),
            // A shorter one may be done before the room is needed.
            Err(error) if fsck::is_given_up(&error) && tries < TRIES => {
                tries += 1;
                *report = before;
            }
            Err(error) if fsck::is_given_up(&error) => {
                return Err(CliError::failed(format!(
                    "{name}: the cask is so full that nothing can be held still to be read; make room, or scrub it \
                     when less is written"
                )));
            }
            Err(error) => {
                return unopened(error, report).map_err(|error| CliError::at(name, &error));
            }
        }
    }
}

/// Reads a piece that takes about `time`; answers where to go on.
fn read_piece(
    device: Arc<FileDevice>,
    from: Key,
    time: Duration,
    pace: &mut Pace,
    report: &mut Report,
    line: &mut Progress,
) -> crate::error::Result<Option<Key>> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let cask = Cask::open(device, options)?;
    let stats = cask.stats();
    let used = stats.blocks.saturating_sub(stats.free_blocks);
    let total = used.saturating_mul(stats.block_size.into());
    let end = Instant::now() + time;
    fsck::scrub(&cask, from, report, &mut |bytes| {
        pace.read += bytes;
        line.show(pace.read, total);
        // For a longer rest the image is given back first.
        let goes_on = Instant::now() + pace.rest() < end;
        if goes_on {
            pace.wait();
        }
        goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept() {
        let mut pace = Pace {
            rate: 1 << 20,
            start: Instant::now(),
            read: 0,
        };
        for _ in 0..4 {
            pace.read += 1 << 15;
            pace.wait();
        }
        assert!(pace.start.elapsed() >= Duration::from_millis(125));
        assert!(rate("0").is_err() && rate("12k").is_ok());
    }
}
