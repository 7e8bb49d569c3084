//! Opening a cask that is damaged: what cannot be read is taken out, so that the rest is sound.
//!
//! The tree is walked from the newest checkpoint on. Pages that do not verify, or do not belong where they
//! are, go with all below them; the bitmaps are made to say what the walk found. This is written as one
//! more checkpoint, into free blocks, and the log is replayed over it as far as it holds.
//!
//! Invariant: nothing is written in place, and nothing is believed that does not verify. A crash on the way
//! leaves what was there before.

use std::collections::{BTreeMap, HashSet};

use super::Cask;
use std::ops::Range;

use super::checkpoint::Pruned;
use super::overlay::Content;
use crate::alloc::{Marks, Run};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::item::{EventsRecord, InodeRecord};
use crate::format::key::Number;
use crate::format::page::PagePtr;
use crate::format::wal::decode_crcs;
use crate::format::{FileKind, Geometry, Key, Kind};
use crate::tree::{Edit, FIRST_KEY, Root, Tree};

/// Something that was mended when a cask was opened.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mended {
    /// A short stable word.
    pub code: &'static str,
    /// Byte offset in the container, where there is one.
    pub offset: Option<u64>,
    /// One sentence: what was wrong, and what is done.
    pub sentence: String,
    /// Something that was there is gone.
    pub loses: bool,
}

impl Mended {
    pub(super) fn new(code: &'static str, offset: Option<u64>, sentence: String) -> Self {
        Self {
            code,
            offset,
            sentence,
            loses: true,
        }
    }

    pub(super) fn harmless(code: &'static str, offset: Option<u64>, sentence: String) -> Self {
        Self {
            loses: false,
            ..Self::new(code, offset, sentence)
        }
    }
}

/// Most items that say what is lost: a file of holes may be as large as one likes.
const LOST_MAX: usize = 1 << 16;

/// What a walk through a tree found.
pub(super) struct Survey {
    pub used: Marks,
    /// Pages that can be used.
    pages: u64,
    bad: HashSet<(u64, Key)>,
    /// Where keys are missing: from the first on to before the second, or to the end.
    gaps: Vec<(Key, Option<Key>)>,
    /// Contents of files and the like that may have stood there, by their numbers: whose, and how many bytes.
    contents: BTreeMap<Number, (String, u64)>,
    pub mended: Vec<Mended>,
}

struct Surveyor<'a, D: Device> {
    tree: &'a Tree<D>,
    geometry: Geometry,
    blocks: u64,
    found: Survey,
}

/// Walks the tree under a root, in a container of so many blocks.
///
/// # Errors
/// I/O errors; what does not verify is an answer.
pub(super) fn survey<D: Device>(
    tree: &Tree<D>,
    geometry: Geometry,
    root: &Root,
    blocks: u64,
) -> Result<Survey> {
    let mut surveyor = Surveyor {
        tree,
        geometry,
        blocks,
        found: Survey {
            used: Marks::new(geometry),
            pages: 0,
            bad: HashSet::new(),
            gaps: Vec::new(),
            contents: BTreeMap::new(),
            mended: Vec::new(),
        },
    };
    if let (Some(ptr), Some(level)) = (root.page, root.height.checked_sub(1)) {
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        surveyor.page(ptr, level, FIRST_KEY, None, None)?;
        if !surveyor.found.gaps.is_empty() {
            surveyor.contents(ptr, level)?;
        }
    }
    Ok(surveyor.found)
}

impl<D: Device> Surveyor<'_, D> {
    /// Looks at a page that is referred to under `key` and holds keys from `lower` to before `upper`.
    fn page(
        &mut self,
        ptr: PagePtr,
        level: u8,
        key: Key,
        lower: Option<Key>,
        upper: Option<Key>,
    ) -> Result<()> {
        let page = match self.tree.page(ptr, level) {
            Ok(page) => page,
            Err(Error::Corrupt(what)) => {
                self.leave_out(ptr, key, lower, upper, &what.to_string());
                return Ok(());
            }
            // As good as damaged: it may be the disk that is.
            Err(error @ Error::Io { .. }) => {
                self.leave_out(ptr, key, lower, upper, &error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let outside = |key: Key| {
            lower.is_some_and(|lower| key < lower) || upper.is_some_and(|upper| key >= upper)
        };
        if !self.geometry.is_for_use(ptr.block) || ptr.block >= self.blocks {
            let what = "a tree page where a bitmap or nothing stands";
            self.leave_out(ptr, key, lower, upper, what);
            return Ok(());
        }
        if page.is_empty() || page.keys().any(outside) {
            let what = "a tree page that holds keys of elsewhere";
            self.leave_out(ptr, key, lower, upper, what);
            return Ok(());
        }
        if !self.found.used.mark(ptr.block) {
            let what = "a tree page that is referred to twice";
            self.leave_out(ptr, key, lower, upper, what);
            return Ok(());
        }
        self.found.pages += 1;
        for index in 0..page.len() {
            if level == 0 {
                if let Some((key, value)) = page.cell(index)
                    && key.kind == Kind::Data
                {
                    self.extent(value);
                }
            } else if let Some((key, child)) = page.child(index) {
                let next = page.key(index + 1).or(upper);
                self.page(child, level - 1, key, Some(key), next)?;
            }
        }
        Ok(())
    }

    fn leave_out(
        &mut self,
        ptr: PagePtr,
        key: Key,
        lower: Option<Key>,
        upper: Option<Key>,
        what: &str,
    ) {
        self.found.bad.insert((ptr.block, key));
        self.found.gaps.push((lower.unwrap_or(FIRST_KEY), upper));
        let sentence = format!("{what}: what stands below it is taken out");
        let offset = Some(self.geometry.offset(ptr.block));
        self.found
            .mended
            .push(Mended::new("page", offset, sentence));
    }

    /// Finds whose contents may have stood where keys are missing.
    fn contents(&mut self, ptr: PagePtr, level: u8) -> Result<()> {
        let mut pages = vec![(ptr, level, FIRST_KEY)];
        while let Some((ptr, level, key)) = pages.pop() {
            if self.found.bad.contains(&(ptr.block, key)) {
                continue;
            }
            let page = self.tree.page(ptr, level)?;
            for index in 0..page.len() {
                if level > 0 {
                    pages.extend(page.child(index).map(|(key, ptr)| (ptr, level - 1, key)));
                } else if let Some((key, value)) = page.cell(index) {
                    self.found.owner(key, value);
                }
            }
        }
        Ok(())
    }

    /// Marks the blocks of an extent; whether they are its own is for the check of the items to say.
    fn extent(&mut self, value: &[u8]) {
        if let Ok(ContentRecord::Extent { start, crcs }) = ContentRecord::decode(value) {
            let end = start.saturating_add(decode_crcs(crcs).len() as u64);
            let blocks = start..end.min(self.blocks);
            for block in blocks.filter(|block| self.geometry.is_for_use(*block)) {
                self.found.used.mark(block);
            }
        }
    }
}

impl Survey {
    /// Notes the content of an item that has one, if keys are missing where that would stand.
    fn owner(&mut self, key: Key, value: &[u8]) {
        let (content, bytes, who) = match key.kind {
            Kind::Inode => match InodeRecord::decode(value) {
                Ok(inode) if inode.kind() != FileKind::Directory => (
                    inode.content.get(),
                    inode.size.get(),
                    format!("inode {}", key.number),
                ),
                _ => return,
            },
            Kind::Events => match EventsRecord::decode(value) {
                Ok(events) => (
                    events.content.get(),
                    events.size.get(),
                    "the record of rolls".to_owned(),
                ),
                Err(_) => return,
            },
            _ => return,
        };
        if self.gaps_of(content).next().is_some() {
            // What the checkpoint says comes first: only that can have stood in its tree.
            self.contents.entry(content).or_insert((who, bytes));
        }
    }

    /// The gaps that a content may have had a part in.
    fn gaps_of(&self, content: Number) -> impl Iterator<Item = &(Key, Option<Key>)> {
        let key = move |block| Key::new(content, Kind::Data, block);
        // They were found in the order of their keys.
        let next = self
            .gaps
            .partition_point(|(_, to)| to.is_some_and(|to| to <= key(0)));
        let touching = self.gaps.get(next..).unwrap_or_default().iter();
        touching.take_while(move |(from, _)| *from <= key(u64::MAX))
    }
}

/// Whether an overlay knows all of a block of a content that has so many bytes.
fn is_known(layer: &Content, block: u64, size: u64, bytes: u64) -> bool {
    let end = bytes.saturating_sub(block.saturating_mul(size)).min(size);
    let whole = |range: Range<usize>| range.start == 0 && range.end as u64 >= end;
    layer.hides(block)
        || layer.extent_at(block).is_some()
        || (layer.chunks.get(&block))
            .is_some_and(|chunk| chunk.pieces().next().is_some_and(|(range, _)| whole(range)))
}

impl<D: Device> Cask<D> {
    /// What of contents stood where keys are missing, as far as the log does not say it again: it must not
    /// read as zeros. The log is applied over it.
    fn lost(&self, found: &mut Survey) -> (Vec<Edit>, Vec<Mended>) {
        if found.gaps.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let state = self.state.read();
        let owners = state.active.items.iter();
        for (key, value) in owners {
            if let Some(value) = value {
                found.owner(*key, value);
            }
        }
        let (size, most) = (self.geometry.block(), self.geometry.extent_max());
        let (mut lost, mut mended) = (BTreeMap::new(), Vec::new());
        let born = state.superblock.next_number.get();
        for (content, (who, bytes)) in found.contents.range(..born) {
            let key = |block| Key::new(*content, Kind::Data, block);
            let blocks = (*bytes).min(crate::limits::FILE_SIZE_MAX).div_ceil(size);
            let layer = state.active.contents.get(content);
            let mut count = 0;
            for (from, to) in found.gaps_of(*content) {
                // The part of the gap that belongs to this content.
                let first = if *from <= key(0) { 0 } else { from.offset };
                let end = match to {
                    Some(to) if (to.number, to.kind) == (*content, Kind::Data) => {
                        to.offset.min(blocks)
                    }
                    _ => blocks,
                };
                // The log took what is behind this.
                let end = end.min(layer.and_then(|layer| layer.floor).unwrap_or(end));
                // An extent that begins before may reach into it.
                let before = key(first.saturating_sub(most));
                let root = &state.snapshot.root;
                let mut cursor = self.tree.range(root, before, key(first));
                let mut at = first;
                while let Ok(Some((key, value))) = cursor.next() {
                    if key.offset < first
                        && let Ok(record) = ContentRecord::decode(value)
                    {
                        at = at.max(key.offset.saturating_add(record.blocks()));
                    }
                }
                while at < end && lost.len() < LOST_MAX {
                    let known =
                        |block: &u64| layer.is_some_and(|l| is_known(l, *block, size, *bytes));
                    let stop = (at..end.min(at + most))
                        .find(known)
                        .unwrap_or(end.min(at + most));
                    if at < stop {
                        let record = ContentRecord::Lost(u32::try_from(stop - at).unwrap_or(1));
                        let value = Some(record.encode().into());
                        lost.insert(
                            key(at),
                            Edit {
                                key: key(at),
                                value,
                            },
                        );
                        count += stop - at;
                    }
                    at = match stop < end.min(at + most) {
                        true => stop + 1,
                        false => stop,
                    };
                }
                if at < end {
                    let sentence = format!(
                        "{who}: more of its content may be lost than can be marked: it reads as zeros from block {at} on"
                    );
                    mended.push(Mended::new("lost", None, sentence));
                }
            }
            if count > 0 {
                let sentence = format!(
                    "{who}: what it held in {count} of the {blocks} blocks of its content, if anything, is lost: it is marked so"
                );
                mended.push(Mended::new("lost", None, sentence));
            }
        }
        (lost.into_values().collect(), mended)
    }

    /// What was mended when this cask was opened as [forgiving](super::OpenOptions::forgiving).
    pub fn mended(&self) -> &[Mended] {
        &self.mended
    }

    /// Brings the newest checkpoint in order, as it was surveyed; answers whether anything was written, and
    /// what is lost.
    pub(super) fn settle_damage(
        &self,
        mut found: Survey,
        rebuilt: bool,
    ) -> Result<(bool, Vec<Mended>)> {
        let (lost, mended) = self.lost(&mut found);
        let lacked = self.alloc.adopt(&found.used);
        let leaked = self.alloc.leaked(&found.used);
        let pages = self.state.read().snapshot.root.pages;
        if found.bad.is_empty()
            && lacked == 0
            && leaked.is_empty()
            && !rebuilt
            && pages == found.pages
        {
            return Ok((false, mended));
        }
        self.write_pruned(Pruned {
            bad: found.bad,
            lost,
            pages: found.pages,
            leaked,
        })?;
        Ok((true, mended))
    }

    /// Writes a checkpoint, and makes the bitmaps hold what it uses and nothing else; answers how many
    /// blocks nothing used.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub fn reconcile(&self) -> Result<u64> {
        self.checkpoint()?;
        let root = self.state.read().snapshot.root;
        let found = survey(&self.tree, self.geometry, &root, self.alloc.blocks())?;
        let leaked = self.alloc.leaked(&found.used);
        let count = leaked.iter().map(|run: &Run| run.len).sum();
        if self.settle_damage(found, false)?.0 {
            self.release_lingering(u64::MAX);
        }
        Ok(count)
    }

    /// Writes both pairs of superblock copies anew.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub(super) fn renew_superblocks(&self) -> Result<()> {
        for _ in 0..2 {
            let pages = self.state.read().snapshot.root.pages;
            self.write_pruned(Pruned {
                bad: HashSet::new(),
                lost: Vec::new(),
                pages,
                leaked: Vec::new(),
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cask::overlay::Overlay;
    use crate::format::Geometry;
    use crate::format::wal::Change;

    #[test]
    fn a_block_is_known_when_all_of_it_that_is_in_the_file_is() {
        let geometry = Geometry {
            block_size: 512,
            spacing: 512,
            wal_len: 1 << 16,
        };
        let mut layer = Overlay::new(geometry, 10);
        for (at, len) in [(0, 512), (512, 100), (1_025, 511)] {
            layer.apply(&Change::Write(3, at, &vec![1; len])).unwrap();
        }
        let content = layer.contents.get(&3).unwrap();
        let known = |block, bytes| is_known(content, block, 512, bytes);
        assert!(known(0, 3_000) && known(0, 100));
        assert!(known(1, 612) && !known(1, 613));
        assert!(!known(2, 1_536) && !known(3, 2_000));
        layer.apply(&Change::Truncate(3, 1_024)).unwrap();
        let content = layer.contents.get(&3).unwrap();
        assert!(is_known(content, 3, 512, 2_000));
    }
}
