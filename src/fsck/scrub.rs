//! Reading everything that a cask holds, a piece at a time, so that what rots is found while a backup still has it.
//!
//! A piece is verified against the checkpoint that is the newest when it begins; the next one goes on behind
//! its last item. So nothing holds blocks back for long, and what was written meanwhile is read in its turn.
//! Names and counts are not compared: that is [`super::check`].

use super::report::{Report, Severity};
use super::{blocks, hits, is_given_up, log};
use crate::cask::{Cask, Pinned};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::page::PagePtr;
use crate::format::wal::decode_crcs;
use crate::format::{Key, Kind};
use crate::tree::FIRST_KEY;

/// Where a scrub begins.
pub const SCRUB_START: Key = FIRST_KEY;

/// Verifies pages and data from the item `from` on; answers where to go on, or `None` at the end. `read` is
/// told of the bytes of each read, and answers whether to go on with this piece.
///
/// # Errors
/// Only what keeps the scrub from going on: [`Error::Stale`] and I/O errors of anything but a page or a
/// block. Damage is in the report.
pub fn scrub<D: Device>(
    cask: &Cask<D>,
    from: Key,
    report: &mut Report,
    read: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Key>> {
    if from == SCRUB_START {
        log(cask, report);
    }
    let pinned = cask.pin();
    let mut scrub = Scrub {
        pinned: &pinned,
        from,
        report,
        read,
        has_moved: false,
        next: None,
    };
    if let Some((ptr, level)) = pinned.root() {
        scrub.page(ptr, level, None)?;
    }
    let next = scrub.next;
    hits::name(cask, report)?;
    Ok(next)
}

struct Scrub<'a, 'c, D: Device> {
    pinned: &'a Pinned<'c, D>,
    from: Key,
    report: &'a mut Report,
    read: &'a mut dyn FnMut(u64) -> bool,
    /// An item was looked at: however little may be read, a piece has one.
    has_moved: bool,
    /// Where to go on, once it was enough.
    next: Option<Key>,
}

impl<D: Device> Scrub<'_, '_, D> {
    /// A page whose keys are below `upper`.
    fn page(&mut self, ptr: PagePtr, level: u8, upper: Option<Key>) -> Result<()> {
        let geometry = self.pinned.geometry();
        let page = match self.pinned.page(ptr, level) {
            Ok(page) => page,
            Err(error @ (Error::Corrupt(_) | Error::Io { .. })) if !is_given_up(&error) => {
                let text = format!("{error}: everything below it is lost");
                let offset = Some(geometry.offset(ptr.block));
                self.report.add(Severity::Error, "page", offset, text);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.report.pages += 1;
        let mut goes_on = (self.read)(geometry.block());
        for index in 0..page.len() {
            let Some(key) = page.key(index) else { continue };
            let next = page.key(index + 1).or(upper);
            // What ends before the piece begins was read by an earlier one.
            if next.is_some_and(|next| next <= self.from) || (level == 0 && key < self.from) {
                continue;
            }
            if !goes_on && self.has_moved {
                self.next = Some(key.max(self.from));
                return Ok(());
            }
            self.has_moved |= level == 0;
            match (level, page.child(index), page.cell(index)) {
                (0, _, Some((key, value))) if key.kind == Kind::Data => {
                    goes_on = self.content(key, value)?;
                }
                (0, ..) => {}
                (_, Some((_, child)), _) => {
                    self.page(child, level - 1, next)?;
                    if self.next.is_some() {
                        return Ok(());
                    }
                    // The last page below may have been the last of the piece.
                    goes_on = (self.read)(0);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn content(&mut self, key: Key, value: &[u8]) -> Result<bool> {
        let (start, crcs) = match ContentRecord::decode(value) {
            Ok(ContentRecord::Extent { start, crcs }) => (start, crcs),
            Ok(_) => return Ok(true),
            Err(error) => {
                let text = format!("content {}, block {}: {error}", key.number, key.offset);
                self.report.add(Severity::Error, "content", None, text);
                return Ok(true);
            }
        };
        let count = decode_crcs(crcs).len() as u64;
        if !blocks::are_inside(self.pinned, start, count) {
            let text = format!(
                "content {}, block {}: stands outside the container",
                key.number, key.offset
            );
            self.report
                .add(Severity::Error, "extent-outside", None, text);
            return Ok(true);
        }
        self.report.data_blocks += count;
        blocks::verify(self.pinned, key, start, crcs, self.report)?;
        let bytes = count.saturating_mul(self.pinned.geometry().block());
        Ok((self.read)(bytes))
    }
}
