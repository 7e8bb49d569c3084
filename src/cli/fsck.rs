//! `caskfs fsck`: checks everything reachable in a container, says what can be mended and, if it may, mends it.
//!
//! The plan is made by mending a scratch of the container in memory, so what is done is what was said.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::checked::{Checked, unopened};
use super::exit::{CliError, Outcome, shown};
use super::out::Out;
use super::progress::Progress;
use crate::cask::{Cask, OpenOptions};
use crate::clock::{Clock, SystemClock};
use crate::device::ScratchDevice;
use crate::device::file::{Access, FileDevice};
use crate::error::{Error, Result};
use crate::fsck::{self, Repair, Report, Severity};

/// Check a cask, and mend it if it is not mounted
///
/// With -n a mounted cask is checked as it is at that moment, while it goes on.
///
/// Without an option it asks before it changes anything, and changes nothing where it cannot ask. Exit codes are
/// those of fsck(8): 0 no errors, 1 errors mended, 4 errors left, 8 the check could not be made, 16 wrong usage.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Change nothing; say what would be done
    #[arg(short = 'n', conflicts_with_all = ["yes", "preen"])]
    no_change: bool,
    /// Mend all that can be mended
    #[arg(short = 'y', conflicts_with = "preen")]
    yes: bool,
    /// Mend what can be mended without losing anything; contents are not read
    #[arg(short = 'p', short_alias = 'a')]
    preen: bool,
    /// Take the cask as it was one checkpoint before the newest: what was done since is lost, but for what the log
    /// still holds
    #[arg(long)]
    older: bool,
    /// Do not read the contents of files, only what describes them
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ignored, for fsck(8)
    #[arg(short = 'f', hide = true, action = ArgAction::Count)]
    forced: u8,
    /// Ignored, for fsck(8)
    #[arg(short = 'v', hide = true, action = ArgAction::Count)]
    verbose: u8,
    /// Ignored, for fsck(8): the descriptor for its progress bar
    #[arg(short = 'C', hide = true)]
    bar: Option<u32>,
    /// The container to check, or a path below a mountpoint
    container: OsString,
}

#[derive(Serialize)]
struct JsonReport<'a> {
    container: &'a str,
    /// Where it is mounted, if it was checked beside its mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted_on: Option<String>,
    clean: bool,
    #[serde(flatten)]
    report: &'a Report,
    /// What can be done, or was.
    plan: Vec<String>,
    mended: bool,
}

/// How the cask is taken, and how much of it is read.
struct How {
    older: bool,
    data: bool,
}

/// Runs the verb.
pub fn run(args: FsckArgs) -> Result<Outcome, CliError> {
    let may_write = !args.no_change && (args.yes || args.preen || io::stdin().is_terminal());
    let access = match may_write {
        true => Access::ReadWrite,
        false => Access::ReadOnly,
    };
    let (checked, device) = Checked::find(&args.container, access)?;
    let name = shown(&checked.container);
    let at = |error: Error| match fsck::is_given_up(&error) {
        true => CliError::failed(format!(
            "{name}: what was checked was given up, as the mounted cask needed its space; make room, or check it \
             unmounted"
        )),
        false => CliError::at(&name, &error),
    };
    let device = match (device, &checked.mount) {
        (Some(device), _) => Arc::new(device),
        (None, Some(mount)) if !args.no_change || args.older => {
            let mountpoint = shown(&mount.mountpoint);
            return Err(CliError::failed(match args.older {
                true => format!(
                    "{name}: is mounted on {mountpoint}; unmount it to look at an older checkpoint"
                ),
                false => format!(
                    "{name}: is mounted on {mountpoint}; unmount it to mend it, or check it as it is with -n"
                ),
            }));
        }
        (None, _) => Arc::new(checked.open()?),
    };
    let how = How {
        older: args.older,
        data: !args.quick && !args.preen,
    };
    let report = check(&device, &how).map_err(at)?;
    let mut out = Out::new();
    if !args.json {
        findings(&report)
            .iter()
            .try_for_each(|line| out.line(line))?;
        out.finish()?;
    }
    let mut out = Out::new();
    let mut plan = Vec::new();
    let mut repair = None;
    if !report.is_clean() || args.older {
        let scratch = ScratchDevice::new(Arc::clone(&device))
            .map_err(|error| at(Error::io("reading the container")(error)))?;
        let planned = How { data: false, ..how };
        repair = mend(scratch, &planned).map_err(at)?;
        repair = repair.filter(Repair::is_needed);
        plan = repair.as_ref().map_or(Vec::new(), steps);
    }
    if !args.json {
        for step in &plan {
            out.line(format!("can be mended: {step}"))?;
        }
        out.finish()?;
    }
    let agreed = may_write
        && match &repair {
            None => false,
            Some(_) if args.yes => true,
            Some(repair) if args.preen => !repair.loses(),
            Some(_) => asked(&name),
        };
    // A mend of the image would be no mend of the cask.
    if checked.mount.is_some() {
        repair = None;
    }
    let (mut last, mut outcome) = (report.clone(), left(&report));
    if agreed {
        let Some(done) = mend(Arc::clone(&device), &how).map_err(at)? else {
            return Err(CliError::failed(format!(
                "{name}: it could not be mended as planned; run `caskfs fsck -n` again"
            )));
        };
        outcome = match done.left.has_errors() {
            true => Outcome::ErrorsLeft,
            false => Outcome::Mended,
        };
        last = done.left;
    } else if repair.is_some() && !args.no_change && report.has_errors() {
        let what = match args.preen {
            true => "something is lost by it: run `caskfs fsck -y`",
            false => "nothing was changed: run `caskfs fsck -y`",
        };
        let _ = writeln!(io::stderr(), "caskfs: {name}: {what}");
    }
    let mut out = Out::new();
    if args.json {
        let mended = agreed;
        let (container, clean) = (name.as_str(), last.is_clean());
        out.json(&JsonReport {
            container,
            mounted_on: checked.mount.as_ref().map(|mount| shown(&mount.mountpoint)),
            clean,
            report: if agreed { &last } else { &report },
            plan,
            mended,
        })?;
    } else {
        if agreed {
            findings(&last).iter().try_for_each(|line| out.line(line))?;
        }
        out.line(verdict(&name, &last, agreed))?;
    }
    out.finish()?;
    Ok(outcome)
}

fn left(report: &Report) -> Outcome {
    match report.has_errors() {
        true => Outcome::ErrorsLeft,
        false => Outcome::Done,
    }
}

/// What a check of the cask as it is finds.
fn check(device: &Arc<FileDevice>, how: &How) -> Result<Report> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let mut line = Progress::new("checking");
    let checked = Cask::open(Arc::clone(device), options)
        .and_then(|cask| fsck::check(&cask, how.data, &mut |at| line.show(at.done, at.total)));
    checked.or_else(|error| {
        let mut report = Report::default();
        unopened(error, &mut report).map(|()| report)
    })
}

/// Mends what is on a device; `None` when nothing can be done.
fn mend<D: crate::device::Device>(device: D, how: &How) -> Result<Option<Repair>> {
    let mut line = Progress::new("mending");
    let now = SystemClock.now();
    let mut show = |at: fsck::Progress| line.show(at.done, at.total);
    let options = OpenOptions {
        older: how.older,
        ..OpenOptions::default()
    };
    match fsck::repair(device, options, how.data, now, &mut show) {
        Err(Error::Corrupt(_)) => Ok(None),
        repair => repair.map(Some),
    }
}

/// What is done, a sentence each.
fn steps(repair: &Repair) -> Vec<String> {
    let opened = repair.opened.iter().map(|mended| mended.sentence.clone());
    let fixed = repair.fixed.iter().filter_map(|finding| {
        let fix = finding.fix.as_ref()?;
        Some(format!("{}: {}", finding.sentence, fix.sentence()))
    });
    opened.chain(fixed).collect()
}

/// Whether the person at the terminal says yes.
fn asked(name: &str) -> bool {
    let mut answer = String::new();
    let _ = write!(io::stderr(), "{name}: mend it (y/n)? ");
    io::stdin().read_line(&mut answer).is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Each finding on a line.
pub(super) fn findings(report: &Report) -> Vec<String> {
    let word = |severity| match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let mut lines: Vec<String> = report
        .findings
        .iter()
        .map(|finding| {
            let at = finding
                .offset
                .map_or(String::new(), |offset| format!(" (at byte {offset})"));
            format!("{}: {}{at}", word(finding.severity), finding.sentence)
        })
        .collect();
    if report.more > 0 {
        lines.push(format!("and {} more like these", report.more));
    }
    lines
}

/// The sum of it.
fn verdict(name: &str, report: &Report, mended: bool) -> String {
    let verdict = match (report.has_errors(), report.is_clean(), mended) {
        (true, _, false) => "errors found",
        (true, _, true) => "mended, but for errors that are left",
        (false, _, true) => "mended",
        (false, false, false) => "no errors, but warnings",
        (false, true, false) => "clean",
    };
    format!(
        "{name}: {verdict}; {} and {} with {}, {}, {}",
        counted(report.files, "file", "files"),
        counted(report.directories, "directory", "directories"),
        counted(report.bytes, "byte", "bytes"),
        counted(report.data_blocks, "data block", "data blocks"),
        counted(report.pages, "page", "pages"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_verdict() {
        let mut report = Report {
            files: 2,
            directories: 1,
            ..Report::default()
        };
        assert_eq!(
            verdict("a.cask", &report, false),
            "a.cask: clean; 2 files and 1 directory with 0 bytes, 0 data blocks, 0 pages"
        );
        report.add(
            Severity::Warning,
            "orphan",
            None,
            "a file has no name".into(),
        );
        assert!(verdict("a.cask", &report, false).contains("no errors, but warnings"));
        report.add(
            Severity::Error,
            "page",
            Some(4096),
            "a page does not verify".into(),
        );
        let all = findings(&report);
        assert_eq!(all[1], "error: a page does not verify (at byte 4096)");
        assert!(verdict("a.cask", &report, false).contains("errors found"));
        assert!(verdict("a.cask", &report, true).contains("errors that are left"));
    }
}
