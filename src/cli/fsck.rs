//! `caskfs fsck`: checks everything reachable in a container, and changes nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use serde::Serialize;

use super::exit::{CliError, Outcome, shown};
use super::out::Out;
use super::progress::Progress;
use super::target::mount_of;
use crate::cask::{Cask, OpenOptions};
use crate::device::file::{Access, FileDevice};
use crate::error::{Error, Result};
use crate::fsck::{self, Report, Severity};

/// Check a cask that is not mounted
///
/// Nothing is changed. Exit codes are those of fsck(8): 0 no errors, 4 errors found and left, 8 the check could
/// not be made, 16 wrong usage.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Change nothing; always so in this version
    #[arg(short = 'n', conflicts_with_all = ["repair", "preen"])]
    no_change: bool,
    /// Accepted for fsck(8); this version repairs nothing
    #[arg(short = 'y')]
    repair: bool,
    /// Accepted for fsck(8); this version repairs nothing
    #[arg(short = 'p', short_alias = 'a')]
    preen: bool,
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
    /// The container to check
    container: PathBuf,
}

#[derive(Serialize)]
struct JsonReport<'a> {
    container: &'a str,
    clean: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the verb.
pub fn run(args: FsckArgs) -> Result<Outcome, CliError> {
    let name = shown(&args.container);
    let report = match check(&args.container, !args.quick) {
        Ok(report) => report,
        // So badly damaged that it cannot be opened: that is what the check found.
        Err(Error::Corrupt(corruption)) => {
            let mut report = Report::default();
            let sentence = format!("the cask cannot be opened: {}", corruption.what);
            report.add(Severity::Error, "open", Some(corruption.offset), sentence);
            report
        }
        Err(busy @ Error::Busy(_)) => return Err(in_use(&args.container, &busy)),
        Err(error) => return Err(CliError::at(&name, &error)),
    };
    let mut out = Out::new();
    if args.json {
        let clean = report.is_clean();
        let (container, report) = (name.as_str(), &report);
        out.json(&JsonReport {
            container,
            clean,
            report,
        })?;
    } else {
        lines(&name, &report)
            .iter()
            .try_for_each(|line| out.line(line))?;
    }
    out.finish()?;
    if !report.has_errors() {
        return Ok(Outcome::Done);
    }
    if args.repair || args.preen {
        let _ = writeln!(
            io::stderr(),
            "caskfs: {name}: this version repairs nothing; copy out what can be read with `caskfs cp -r`"
        );
    }
    Ok(Outcome::ErrorsLeft)
}

fn check(container: &Path, data: bool) -> Result<Report> {
    let device = FileDevice::open(container, Access::ReadOnly)?;
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let cask = Cask::open(device, options)?;
    let mut line = Progress::new("checking");
    fsck::check(&cask, data, &mut |at| line.show(at.done, at.total))
}

/// The container is locked: by a mount that can be named, or by somebody else.
fn in_use(container: &Path, busy: &Error) -> CliError {
    let mount = container.canonicalize().ok();
    match mount.and_then(|path| mount_of(&path)) {
        Some(mount) => CliError::failed(format!(
            "{}: is mounted on {}; unmount it to check it",
            shown(container),
            shown(mount.mountpoint)
        )),
        None => CliError::at(shown(container), busy),
    }
}

fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// What a person reads: each finding on a line, then the sum of it.
fn lines(name: &str, report: &Report) -> Vec<String> {
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
    let verdict = match (report.has_errors(), report.is_clean()) {
        (true, _) => "errors found",
        (false, false) => "no errors, but warnings",
        (false, true) => "clean",
    };
    lines.push(format!(
        "{name}: {verdict}; {} and {} with {}, {}, {}",
        counted(report.files, "file", "files"),
        counted(report.directories, "directory", "directories"),
        counted(report.bytes, "byte", "bytes"),
        counted(report.data_blocks, "data block", "data blocks"),
        counted(report.pages, "page", "pages"),
    ));
    lines
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
            lines("a.cask", &report),
            ["a.cask: clean; 2 files and 1 directory with 0 bytes, 0 data blocks, 0 pages"]
        );
        report.add(
            Severity::Warning,
            "orphan",
            None,
            "a file has no name".into(),
        );
        assert!(lines("a.cask", &report)[1].contains("no errors, but warnings"));
        report.add(
            Severity::Error,
            "page",
            Some(4096),
            "a page does not verify".into(),
        );
        let all = lines("a.cask", &report);
        assert_eq!(all[1], "error: a page does not verify (at byte 4096)");
        assert!(all[2].contains("errors found"));
    }
}
