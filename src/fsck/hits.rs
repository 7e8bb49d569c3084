//! Whose damage it is: findings about parts of contents get the paths of the files that they hit.

use std::collections::HashMap;

use super::is_given_up;
use super::report::Report;
use crate::cask::{Cask, Read};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::InodeRecord;
use crate::format::key::Number;
use crate::format::{FileKind, Key, Kind};
use crate::fs::namespace::path_of;
use crate::tree::FIRST_KEY;

/// Names the files, if there is anything to name. What cannot be found for other damage stays without.
pub(super) fn name<D: Device>(cask: &Cask<D>, report: &mut Report) -> Result<()> {
    let parts = report.findings.iter().filter_map(|f| f.part.as_ref());
    let mut files: HashMap<Number, Option<(Number, u64)>> =
        parts.map(|part| (part.content, None)).collect();
    if files.is_empty() {
        return Ok(());
    }
    let last = Key::new(u64::MAX, Kind::Inode, 0);
    let read = cask.scan(FIRST_KEY, last, &mut |key, value| {
        if key.kind == Kind::Inode
            && let Ok(record) = InodeRecord::decode(value)
            && record.kind() != FileKind::Directory
            && let Some(file) = files.get_mut(&record.content.get())
        {
            *file = Some((key.number, record.size.get()));
        }
        Ok(true)
    });
    match read {
        Err(error) if is_given_up(&error) => return Err(error),
        Ok(()) | Err(Error::Corrupt(_) | Error::Io { .. }) => {}
        Err(error) => return Err(error),
    }
    let block = u64::from(cask.block_size());
    for finding in &mut report.findings {
        // Each is named once, however often it is asked for.
        let Some(part) = finding.part.take() else {
            continue;
        };
        let Some((inode, size)) = files.get(&part.content).copied().flatten() else {
            continue;
        };
        if let Ok(Some(path)) = path_of(cask, inode) {
            let path = String::from_utf8_lossy(&path).into_owned();
            let from = part.blocks.start.saturating_mul(block);
            let to = part.blocks.end.saturating_mul(block).min(size);
            finding.sentence = format!(
                "{path:?}, bytes {from} to {}: {}",
                to.saturating_sub(1),
                finding.sentence
            );
            finding.path = Some(path);
        }
    }
    Ok(())
}
