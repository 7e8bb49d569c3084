//! Opening a cask that is damaged: what cannot be read is taken out, so that the rest is sound.
//!
//! The tree is walked from the newest checkpoint on. Pages that do not verify, or do not belong where they
//! are, go with all below them; the bitmaps are made to say what the walk found. This is written as one
//! more checkpoint, into free blocks, and the log is replayed over it as far as it holds.
//!
//! Invariant: nothing is written in place, and nothing is believed that does not verify. A crash on the way
//! leaves what was there before.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use super::Cask;
use super::checkpoint::Pruned;
use crate::alloc::{Marks, Run};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::item::InodeRecord;
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

/// What a walk through a tree found.
pub(super) struct Survey {
    pub used: Marks,
    /// Pages that can be used.
    pages: u64,
    bad: HashSet<(u64, Key)>,
    /// Where keys are missing: from the first on to before the second, or to the end.
    gaps: Vec<(Key, Option<Key>)>,
    /// What of contents stood there.
    lost: Vec<Edit>,
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
            lost: Vec::new(),
            mended: Vec::new(),
        },
    };
    if let (Some(ptr), Some(level)) = (root.page, root.height.checked_sub(1)) {
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        surveyor.page(ptr, level, FIRST_KEY, None, None)?;
        if !surveyor.found.gaps.is_empty() {
            surveyor.contents(root, ptr, level)?;
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
            Err(error) => return Err(error),
        };
        let outside = |key: Key| {
            lower.is_some_and(|lower| key < lower) || upper.is_some_and(|upper| key >= upper)
        };
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
                // The first child may hold keys below its reference: that is only a bound.
                let lower = Some(key).filter(|_| index > 0).or(lower);
                self.page(child, level - 1, key, lower, next)?;
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

    /// Finds what of the contents of files that are still there stood where keys are missing: it must not
    /// read as zeros.
    fn contents(&mut self, root: &Root, ptr: PagePtr, level: u8) -> Result<()> {
        let mut pages = vec![(ptr, level, FIRST_KEY)];
        let mut lost = BTreeMap::new();
        while let Some((ptr, level, key)) = pages.pop() {
            if self.found.bad.contains(&(ptr.block, key)) {
                continue;
            }
            let page = self.tree.page(ptr, level)?;
            for index in 0..page.len() {
                if level > 0 {
                    pages.extend(page.child(index).map(|(key, ptr)| (ptr, level - 1, key)));
                } else if let Some((key, value)) = page.cell(index)
                    && key.kind == Kind::Inode
                    && let Ok(inode) = InodeRecord::decode(value)
                    && inode.kind() != FileKind::Directory
                {
                    self.content(root, key.number, &inode, &mut lost);
                }
            }
        }
        self.found.lost = lost.into_values().collect();
        Ok(())
    }

    fn content(
        &mut self,
        root: &Root,
        number: Number,
        inode: &InodeRecord,
        lost: &mut BTreeMap<Key, Edit>,
    ) {
        let content = inode.content.get();
        let blocks = inode.size.get().div_ceil(self.geometry.block());
        let most = self.geometry.extent_max();
        for (from, to) in self.found.gaps.clone() {
            // The part of the gap that belongs to this content.
            let first = match from.cmp(&Key::new(content, Kind::Data, 0)) {
                Ordering::Less | Ordering::Equal => 0,
                Ordering::Greater if (from.number, from.kind) == (content, Kind::Data) => {
                    from.offset
                }
                Ordering::Greater => continue,
            };
            let end = match to {
                Some(to) if to <= Key::new(content, Kind::Data, 0) => continue,
                Some(to) if (to.number, to.kind) == (content, Kind::Data) => to.offset.min(blocks),
                _ => blocks,
            };
            // An extent that begins before may reach into it.
            let before = Key::new(content, Kind::Data, first.saturating_sub(most));
            let mut cursor = self
                .tree
                .range(root, before, Key::new(content, Kind::Data, first));
            let mut at = first;
            while let Ok(Some((key, value))) = cursor.next() {
                if key.offset < first
                    && let Ok(record) = ContentRecord::decode(value)
                {
                    at = at.max(key.offset.saturating_add(record.blocks()));
                }
            }
            if at < end {
                let sentence = format!(
                    "inode {number}: what it held in blocks {at} to {} of its content, if anything, is lost: it is marked so",
                    end - 1
                );
                self.found.mended.push(Mended::new("lost", None, sentence));
            }
            while at < end {
                let blocks = (end - at).min(most);
                let key = Key::new(content, Kind::Data, at);
                let record = ContentRecord::Lost(u32::try_from(blocks).unwrap_or(1));
                let value = Some(record.encode().into());
                lost.insert(key, Edit { key, value });
                at += blocks;
            }
        }
    }

    /// Marks the blocks of an extent; whether they are its own is for the check of the items to say.
    fn extent(&mut self, value: &[u8]) {
        if let Ok(ContentRecord::Extent { start, crcs }) = ContentRecord::decode(value) {
            let end = start.saturating_add(decode_crcs(crcs).len() as u64);
            for block in start..end.min(self.blocks) {
                self.found.used.mark(block);
            }
        }
    }
}

impl<D: Device> Cask<D> {
    /// What was mended when this cask was opened as [forgiving](super::OpenOptions::forgiving).
    pub fn mended(&self) -> &[Mended] {
        &self.mended
    }

    /// Brings the newest checkpoint in order, as it was surveyed; answers whether anything was written.
    pub(super) fn settle_damage(&self, found: Survey, rebuilt: bool) -> Result<bool> {
        let lacked = self.alloc.adopt(&found.used);
        let leaked = self.alloc.leaked(&found.used);
        let pages = self.state.read().snapshot.root.pages;
        if found.bad.is_empty()
            && lacked == 0
            && leaked.is_empty()
            && !rebuilt
            && pages == found.pages
        {
            return Ok(false);
        }
        self.write_pruned(Pruned {
            bad: found.bad,
            lost: found.lost,
            pages: found.pages,
            leaked,
        })?;
        Ok(true)
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
        if self.settle_damage(found, false)? {
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
