//! Checking the tree against the bitmaps: every block is used once, by what the bitmap says.

use super::fix::Fix;
use super::report::{Part, Report, Severity};
use super::{Progress, is_given_up};
use crate::alloc::Marks;
use crate::cask::Pinned;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::page::PagePtr;
use crate::format::wal::decode_crcs;
use crate::format::{Key, Kind};

struct Check<'a, 'c, D: Device> {
    pinned: &'a Pinned<'c, D>,
    data: bool,
    used: Marks,
    report: &'a mut Report,
    progress: &'a mut dyn FnMut(Progress),
    /// Blocks the bitmaps hold.
    total: u64,
    /// The content item before, and the first block after it.
    last: Option<(Key, u64)>,
}

/// Walks all pages and extents, then compares with the bitmaps.
pub(super) fn check<D: Device>(
    pinned: &Pinned<'_, D>,
    data: bool,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let used = Marks::new(pinned.geometry());
    let mut check = Check {
        pinned,
        data,
        used,
        report,
        progress,
        total: pinned
            .groups
            .iter()
            .map(|group| group.bits.count(group.limit).saturating_sub(2))
            .sum(),
        last: None,
    };
    if let Some((ptr, level)) = pinned.root() {
        check.page(ptr, level, None, None)?;
    }
    if check.report.pages != pinned.pages && !check.report.has_errors() {
        let text = format!(
            "the superblock counts {} tree pages, but there are {}",
            pinned.pages, check.report.pages
        );
        check.report.add(Severity::Error, "page-count", None, text);
    }
    check.bitmaps();
    Ok(())
}

/// Whether blocks from `start` on lie in the layout, where neither a bitmap nor anything else stands.
pub(super) fn are_inside<D: Device>(pinned: &Pinned<'_, D>, start: u64, count: u64) -> bool {
    let geometry = pinned.geometry();
    let end = start.saturating_add(count);
    start >= geometry.first_block()
        && end <= pinned.groups.last().map_or(0, |g| g.start + g.limit)
        && (start..end).all(|block| geometry.is_for_use(block))
}

/// Reads the blocks of an extent from `start` on and compares their checksums.
pub(super) fn verify<D: Device>(
    pinned: &Pinned<'_, D>,
    key: Key,
    start: u64,
    crcs: &[u8],
    report: &mut Report,
) -> Result<()> {
    let mut sums = decode_crcs(crcs);
    let end = start.saturating_add(sums.len() as u64);
    let wrong = match pinned.verify(start..end, &mut sums) {
        // One of them cannot be read; the others may be right.
        Err(error @ Error::Io { .. }) if !is_given_up(&error) => {
            let mut wrong = Vec::new();
            for (block, sum) in (start..end).zip(decode_crcs(crcs)) {
                match pinned.verify(block..block + 1, &mut std::iter::once(sum)) {
                    Ok(found) => wrong.extend(found),
                    Err(error @ Error::Io { .. }) if !is_given_up(&error) => wrong.push(block),
                    Err(error) => return Err(error),
                }
            }
            wrong
        }
        verified => verified?,
    };
    // Neighbours are one finding.
    for run in wrong.chunk_by(|one, next| one + 1 == *next) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let blocks = key.offset + (first - start)..key.offset + (last - start) + 1;
        let text = match run.len() {
            1 => format!(
                "content {}, block {}: the data does not verify",
                key.number, blocks.start
            ),
            _ => format!(
                "content {}, blocks {} to {}: the data does not verify",
                key.number,
                blocks.start,
                blocks.end - 1
            ),
        };
        let offset = Some(pinned.geometry().offset(*first));
        let content = key.number;
        let part = Part { content, blocks };
        report.add_part(Severity::Error, "data", offset, text, part);
    }
    Ok(())
}

impl<D: Device> Check<'_, '_, D> {
    fn page(
        &mut self,
        ptr: PagePtr,
        level: u8,
        lower: Option<Key>,
        upper: Option<Key>,
    ) -> Result<()> {
        let offset = self.pinned.geometry().offset(ptr.block);
        if !self.used.mark(ptr.block) {
            let text = format!("the tree page in block {} is referred to twice", ptr.block);
            self.report
                .add(Severity::Error, "page-twice", Some(offset), text);
            return Ok(());
        }
        self.report.pages += 1;
        let page = match self.pinned.page(ptr, level) {
            Ok(page) => page,
            Err(Error::Corrupt(what)) => {
                self.report.add(
                    Severity::Error,
                    "page",
                    Some(offset),
                    format!("{what}: everything below it is lost"),
                );
                return Ok(());
            }
            Err(error @ Error::Io { .. }) if !is_given_up(&error) => {
                let text = format!("{error}: everything below it is lost");
                self.report.add(Severity::Error, "page", Some(offset), text);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let outside = |key: Key| {
            lower.is_some_and(|lower| key < lower) || upper.is_some_and(|upper| key >= upper)
        };
        if page.is_empty() || page.keys().any(outside) {
            let text = format!(
                "the tree page in block {} holds keys that belong elsewhere",
                ptr.block
            );
            self.report
                .add(Severity::Error, "page-keys", Some(offset), text);
        }
        for index in 0..page.len() {
            if level == 0 {
                let Some((key, value)) = page.cell(index) else {
                    continue;
                };
                if key.kind == Kind::Data {
                    self.content(key, value)?;
                }
            } else {
                let Some((key, child)) = page.child(index) else {
                    continue;
                };
                let next = page.key(index + 1).or(upper);
                self.page(child, level - 1, Some(key), next)?;
            }
        }
        let done = self.report.pages + self.report.data_blocks;
        let total = self.total;
        (self.progress)(Progress { done, total });
        Ok(())
    }

    fn content(&mut self, key: Key, value: &[u8]) -> Result<()> {
        let text = |what: &str| format!("content {}, block {}: {what}", key.number, key.offset);
        let record = match ContentRecord::decode(value) {
            Ok(record) => record,
            Err(error) => {
                let text = text(&error.to_string());
                self.unfit("content", None, Fix::LoseItem(key, 1), text);
                return Ok(());
            }
        };
        if self
            .last
            .is_some_and(|(last, end)| last.number == key.number && end > key.offset)
        {
            self.unfit(
                "content-overlap",
                None,
                Fix::DropItem(key),
                text("overlaps the item before"),
            );
        }
        self.last = Some((key, key.offset.saturating_add(record.blocks())));
        let (start, crcs) = match record {
            ContentRecord::Inline(_) => return Ok(()),
            ContentRecord::Extent { start, crcs } => (start, crcs),
            ContentRecord::Lost(blocks) => {
                let end = key.offset.saturating_add(u64::from(blocks) - 1);
                let text = format!(
                    "content {}, blocks {} to {end}: lost to damage, as an earlier check found",
                    key.number, key.offset
                );
                let part = Part {
                    content: key.number,
                    blocks: key.offset..end.saturating_add(1),
                };
                self.report
                    .add_part(Severity::Warning, "lost", None, text, part);
                return Ok(());
            }
        };
        let geometry = self.pinned.geometry();
        let count = decode_crcs(crcs).len() as u64;
        let end = start.saturating_add(count);
        let lost = Fix::LoseItem(key, u32::try_from(count).unwrap_or(1));
        if !are_inside(self.pinned, start, count) {
            let text = text("stands outside the container");
            self.unfit("extent-outside", None, lost, text);
            return Ok(());
        }
        for block in start..end {
            if !self.used.mark(block) {
                let offset = Some(geometry.offset(block));
                let text = text("shares a block with something else");
                self.unfit("block-twice", offset, lost.clone(), text);
            }
        }
        self.report.data_blocks += count;
        if self.data {
            verify(self.pinned, key, start, crcs, self.report)?;
        }
        Ok(())
    }

    /// A content item cannot be what it says.
    fn unfit(&mut self, code: &'static str, offset: Option<u64>, fix: Fix, text: String) {
        self.report
            .add_fixable(Severity::Error, code, offset, text, Some(fix));
    }

    fn bitmaps(&mut self) {
        // Below a page that cannot be read everything would be called unused.
        let blind = self.report.findings.iter().any(|f| f.code == "page");
        for group in &self.pinned.groups {
            for at in 2..group.limit {
                let block = group.start + at;
                let offset = Some(self.pinned.geometry().offset(block));
                match (group.bits.get(at), self.used.holds(block)) {
                    (true, false) if !blind => {
                        let text = format!("block {block} is marked in use, but nothing uses it");
                        self.report
                            .add(Severity::Warning, "block-unused", offset, text);
                    }
                    (false, true) => {
                        let text = format!("block {block} is in use, but marked free");
                        self.report.add(Severity::Error, "block-free", offset, text);
                    }
                    _ => {}
                }
            }
        }
    }
}
