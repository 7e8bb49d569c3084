//! Checking a cask, and mending it: the tree, its blocks, and the filesystem in it.
//!
//! A check writes nothing. The checkpoint is checked page by page and block by block against its
//! bitmaps; names and inodes are checked as they are now, with what the log adds. Every finding says
//! what, where, and what it means for the files.

mod blocks;
mod fix;
mod hits;
mod names;
mod repair;
mod report;
mod scrub;

#[cfg(test)]
mod tests;

pub use fix::{Fix, LOST_AND_FOUND, Name};
pub use repair::{Repair, repair};
pub use report::{Finding, Part, Report, Severity};
pub use scrub::{SCRUB_START, scrub};

use crate::cask::Cask;
use crate::device::Device;
use crate::error::{Error, Result};

/// What is checked, and how much of it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Blocks looked at.
    pub done: u64,
    /// Blocks to look at, as far as known.
    pub total: u64,
}

/// Whether what was checked is an image of a cask in use that was given up: nothing is wrong with it.
pub fn is_given_up(error: &Error) -> bool {
    match error {
        Error::Stale => true,
        Error::Io { source, .. } => source.raw_os_error() == Some(libc::ESTALE),
        _ => false,
    }
}

/// Checks everything reachable. `data` also reads every data block and compares its checksum.
///
/// # Errors
/// Only what keeps the check from going on: I/O errors. Damage is in the report.
pub fn check<D: Device>(
    cask: &Cask<D>,
    data: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let mut report = Report::default();
    look(cask, data, &mut report, progress)?;
    Ok(report)
}

/// What of the log could not be followed.
fn log<D: Device>(cask: &Cask<D>, report: &mut Report) {
    if let Some(why) = cask.read_only().filter(|why| !why.is_empty()) {
        report.add(Severity::Error, "log", None, why.to_owned());
    }
}

fn look<D: Device>(
    cask: &Cask<D>,
    data: bool,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    log(cask, report);
    let pinned = cask.pin();
    blocks::check(&pinned, data, report, progress)?;
    // The names are read through pages that were found whole, or else the finding says which is not.
    names::check(cask, report)?;
    hits::name(cask, report)
}
