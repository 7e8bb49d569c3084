//! Mending a cask: what does not verify is taken out when it is opened, then findings that something can be
//! done about are mended, one round after the other, until there are none.
//!
//! The same runs on a [scratch](crate::device::ScratchDevice) of the container, which is how the plan is
//! made, and on the container itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::fix::Fix;
use super::report::{Finding, Report};
use super::{Progress, look};
use crate::cask::{Cask, Mended, OpenOptions};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};

/// Rounds after which it is given up: each makes true what the one before found, so few are needed.
const ROUNDS_MAX: usize = 32;

/// What was mended, and what is left.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Repair {
    /// What was mended when the cask was opened.
    pub opened: Vec<Mended>,
    /// Findings about which something was done.
    pub fixed: Vec<Finding>,
    /// What a check finds in the end.
    pub left: Report,
}

impl Repair {
    /// Whether anything is done at all.
    pub fn is_needed(&self) -> bool {
        !self.opened.is_empty() || !self.fixed.is_empty()
    }

    /// Whether something that was there is gone then.
    pub fn loses(&self) -> bool {
        let fixes = self.fixed.iter().filter_map(|finding| finding.fix.as_ref());
        self.opened.iter().any(|mended| mended.loses) || fixes.into_iter().any(|fix| fix.loses())
    }
}

/// Mends the cask on a device, opened with these options and as forgiving; with `data` all contents are read in
/// the end.
///
/// # Errors
/// As [`Cask::open`], but for damage; those of reading and writing.
pub fn repair<D: Device>(
    device: D,
    options: OpenOptions,
    data: bool,
    now: Timestamp,
    progress: &mut dyn FnMut(Progress),
) -> Result<Repair> {
    let options = OpenOptions {
        forgiving: true,
        ..options
    };
    let cask = Cask::open(device, options)?;
    let mut repair = Repair {
        opened: cask.mended().to_vec(),
        ..Repair::default()
    };
    let mut refused = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let mut found = Report {
            listed: usize::MAX,
            ..Report::default()
        };
        look(&cask, false, &mut found, &mut |_| {})?;
        let can_be_fixed = |finding: &Finding| finding.fix.is_some();
        found.findings.retain(can_be_fixed);
        // While there are items that mean nothing, contents beside them cannot be changed.
        let drops = |finding: &Finding| {
            let fix = finding.fix.as_ref().filter(|fix| !refused.contains(*fix));
            fix.is_some_and(|fix| matches!(fix, Fix::DropItem(_) | Fix::LoseItem(..)))
        };
        if found.findings.iter().any(drops) {
            found.findings.retain(drops);
        }
        let mut fixes = BTreeMap::new();
        for finding in found.findings {
            if let Some(fix) = finding.fix.clone().filter(|fix| !refused.contains(fix)) {
                fixes.entry(fix).or_insert(finding);
            }
        }
        let before = repair.fixed.len();
        for (fix, finding) in fixes {
            match fix.apply(&cask, now) {
                Ok(()) => repair.fixed.push(finding),
                // What cannot be done for want of room is left, and found in the end.
                Err(Error::NoSpace | Error::NoFiles) => drop(refused.insert(fix)),
                Err(error) => return Err(error),
            }
        }
        if repair.fixed.len() == before {
            break;
        }
        // What items of contents that are gone left behind is found by the bitmaps alone.
        cask.reconcile()?;
    }
    cask.close()?;
    look(&cask, data, &mut repair.left, progress)?;
    Ok(repair)
}
