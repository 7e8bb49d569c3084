//! What changed, on its way into a checkpoint: contents become blocks and items, items become edits of the
//! tree, and the pages of the new tree are written.
//!
//! Invariants: no block with live bytes is written over, new ones are taken and it is given up (I1); nothing
//! unverified is ever checksummed anew (I7).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::overlay::{Content, Extent, Overlay};
use super::{Cask, Snapshot};
use crate::alloc::Run;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::content::ContentRecord;
use crate::format::key::Number;
use crate::format::page::{Page, PagePtr};
use crate::format::wal::decode_crcs;
use crate::format::{Key, Kind};
use crate::tree::{Cursor, Edit, FIRST_KEY, PageStore, Value};

/// Neighbouring blocks are gathered into writes of up to this many bytes.
const GATHER: usize = 1 << 20;

/// Writes new blocks and keeps the account of blocks taken and given up.
pub(super) struct Build<'c, D: Device> {
    cask: &'c Cask<D>,
    pub(super) adds: Vec<Run>,
    pub(super) frees: Vec<Run>,
    /// Blocks handed out and not used in the end.
    pub(super) unused: Vec<Run>,
    gathered: Vec<u8>,
    gathered_at: u64,
    /// Blocks allocated ahead for pages.
    pub(super) ahead: Run,
}

impl<'c, D: Device> Build<'c, D> {
    pub(super) fn new(cask: &'c Cask<D>) -> Self {
        Self {
            cask,
            adds: Vec::new(),
            frees: Vec::new(),
            unused: Vec::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            ahead: Run { start: 0, len: 0 },
        }
    }
}

/// What a checkpoint writes for a content: blocks or bytes, by first block.
enum Piece {
    Inline(Vec<u8>),
    Blocks(Extent),
}

/// What stands in the tree for some blocks of a content.
enum Old {
    Inline,
    Extent(Extent),
    Lost(u64),
}

impl Old {
    fn blocks(&self) -> u64 {
        match self {
            Self::Inline => 1,
            Self::Extent(extent) => extent.len(),
            Self::Lost(blocks) => *blocks,
        }
    }
}

/// Puts what is left of an item of the tree.
fn keep(
    number: Number,
    old: &Old,
    first: u64,
    blocks: Range<u64>,
    edits: &mut BTreeMap<Key, Option<Value>>,
) {
    let range = blocks.start.saturating_sub(first)..blocks.end.saturating_sub(first);
    let value = match old {
        Old::Extent(extent) => extent.part(range).map(|part| encode(&part)),
        Old::Lost(_) => u32::try_from(range.end.saturating_sub(range.start))
            .ok()
            .filter(|blocks| *blocks > 0)
            .map(|blocks| ContentRecord::Lost(blocks).encode().into()),
        Old::Inline => None,
    };
    if let Some(value) = value {
        edits.insert(Key::new(number, Kind::Data, blocks.start), Some(value));
    }
}

impl<D: Device> Build<'_, D> {
    /// All edits of the overlay, in order. Content goes to its blocks on the way.
    pub(super) fn edits(&mut self, overlay: &Overlay, snapshot: &Snapshot) -> Result<Vec<Edit>> {
        let edit = |(key, value)| Edit { key, value };
        let items = overlay.items.iter();
        let items = items.map(|(key, value)| edit((*key, value.clone())));
        let mut edits: Vec<Edit> = items.collect();
        let mut old = self.cask.tree.range(&snapshot.root, FIRST_KEY, FIRST_KEY);
        for (number, content) in &overlay.contents {
            let mut own = BTreeMap::new();
            self.content(*number, content, snapshot, &mut old, &mut own)?;
            edits.extend(own.into_iter().map(edit));
        }
        // Two runs in order. Content has a kind of its own; if a log says otherwise, what was made last counts.
        edits.sort_by_key(|edit| edit.key);
        edits.dedup_by(|later, edit| {
            let same = later.key == edit.key;
            if same {
                std::mem::swap(later, edit);
            }
            same
        });
        Ok(edits)
    }

    fn content(
        &mut self,
        number: Number,
        content: &Content,
        snapshot: &Snapshot,
        old: &mut Cursor<'_, D>,
        edits: &mut BTreeMap<Key, Option<Value>>,
    ) -> Result<()> {
        let mut pieces: BTreeMap<u64, Piece> = BTreeMap::new();
        // Blocks that do not show what the tree says of them any more.
        let mut gone: Vec<Range<u64>> = Vec::new();
        let mut patched: BTreeSet<u64> = BTreeSet::new();
        let mut full: Vec<(u64, Vec<u8>)> = Vec::new();
        for block in content.chunks.keys() {
            let bytes = match self.whole_block(number, content, snapshot, *block) {
                Ok(bytes) => bytes,
                Err(Error::Corrupt(what)) => {
                    // The block stays as unreadable as it is: a patch over bytes that do not verify
                    // would make them look sound.
                    log::error!(
                        "content {number}, block {block}: {what}; what was written there is lost"
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            gone.push(*block..*block + 1);
            patched.insert(*block);
            let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
            if len > self.cask.geometry.inline_max() {
                full.push((*block, bytes));
            } else if len > 0 {
                pieces.insert(
                    *block,
                    Piece::Inline(bytes.get(..len).unwrap_or_default().to_vec()),
                );
            }
        }
        for (first, extent) in &content.extents {
            self.in_place(*first, extent, &patched, &mut pieces);
            gone.push(*first..*first + extent.len());
        }
        self.write_blocks(full, &mut pieces)?;
        if let Some(floor) = content.floor {
            gone.push(floor..u64::MAX);
        }
        self.replace(number, gone, old, edits)?;
        self.put_pieces(number, pieces, edits);
        Ok(())
    }

    /// The bytes of a block under its patches.
    fn whole_block(
        &self,
        number: Number,
        content: &Content,
        snapshot: &Snapshot,
        block: u64,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cask.geometry.block_len()];
        let offset = block * self.cask.geometry.block();
        self.cask
            .read_base(snapshot, number, Some(content), offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Keeps the blocks of an extent that no chunk replaces; the others were never committed.
    fn in_place(
        &mut self,
        first: u64,
        extent: &Extent,
        patched: &BTreeSet<u64>,
        pieces: &mut BTreeMap<u64, Piece>,
    ) {
        let mut at = 0;
        let end = first + extent.len();
        for block in patched.range(first..end).copied().chain([end]) {
            let to = block - first;
            if let Some(part) = extent.part(at..to) {
                self.adds.push(Run {
                    start: part.start,
                    len: part.len(),
                });
                pieces.insert(first + at, Piece::Blocks(part));
            }
            if block < end {
                self.unused.push(Run {
                    start: extent.start + to,
                    len: 1,
                });
            }
            at = to + 1;
        }
    }

    /// Writes whole blocks, in order, to neighbouring free blocks where there are.
    fn write_blocks(
        &mut self,
        full: Vec<(u64, Vec<u8>)>,
        pieces: &mut BTreeMap<u64, Piece>,
    ) -> Result<()> {
        let mut left = full.len() as u64;
        let mut run = Run { start: 0, len: 0 };
        let mut open: Option<(u64, u64, Vec<u32>)> = None;
        for (block, bytes) in full {
            if run.len == 0 {
                run = self.cask.alloc.allocate(left).ok_or_else(out_of_space)?;
                self.adds.push(run);
            }
            let (place, sum) = (run.start, crc(&bytes));
            self.gather(place, &bytes)?;
            run = Run {
                start: run.start + 1,
                len: run.len - 1,
            };
            left -= 1;
            match &mut open {
                Some((first, start, crcs))
                    if *first + crcs.len() as u64 == block
                        && *start + crcs.len() as u64 == place =>
                {
                    crcs.push(sum);
                }
                _ => {
                    if let Some((first, start, crcs)) = open.replace((block, place, vec![sum])) {
                        pieces.insert(
                            first,
                            Piece::Blocks(Extent {
                                start,
                                crcs: crcs.into(),
                            }),
                        );
                    }
                }
            }
        }
        if let Some((first, start, crcs)) = open {
            pieces.insert(
                first,
                Piece::Blocks(Extent {
                    start,
                    crcs: crcs.into(),
                }),
            );
        }
        Ok(())
    }

    /// Takes what stands in the tree for the blocks in `gone` out of it, freeing its blocks.
    fn replace(
        &mut self,
        number: Number,
        mut gone: Vec<Range<u64>>,
        cursor: &mut Cursor<'_, D>,
        edits: &mut BTreeMap<Key, Option<Value>>,
    ) -> Result<()> {
        gone.sort_by_key(|range| range.start);
        gone.dedup_by(|next, range| {
            let joined = next.start <= range.end;
            if joined {
                range.end = range.end.max(next.end);
            }
            joined
        });
        let mut items: BTreeMap<u64, Old> = BTreeMap::new();
        for range in &gone {
            let before = self.cask.geometry.extent_max() - 1;
            let at = |block| Key::new(number, Kind::Data, block);
            let (from, to) = (range.start.saturating_sub(before), range.end - 1);
            cursor.go_to(at(from), at(to));
            while let Some((key, value)) = cursor.next()? {
                let old = match ContentRecord::decode(value) {
                    Ok(ContentRecord::Inline(_)) => Old::Inline,
                    Ok(ContentRecord::Extent { start, crcs }) => Old::Extent(Extent {
                        start,
                        crcs: decode_crcs(crcs).collect(),
                    }),
                    Ok(ContentRecord::Lost(blocks)) => Old::Lost(u64::from(blocks)),
                    // What means nothing can be replaced.
                    Err(_) if range.contains(&key.offset) => Old::Inline,
                    Err(error) => return Err(error),
                };
                if key.offset.saturating_add(old.blocks()) > range.start {
                    items.insert(key.offset, old);
                }
            }
        }
        for (first, old) in items {
            edits.insert(Key::new(number, Kind::Data, first), None);
            let end = first + old.blocks();
            let mut at = first;
            let touching = gone
                .get(gone.partition_point(|r| r.end <= first)..)
                .unwrap_or_default();
            for range in touching.iter().take_while(|r| r.start < end) {
                keep(number, &old, first, at..range.start.max(at), edits);
                let cut = range.start.max(first)..range.end.min(end);
                if let Old::Extent(extent) = &old {
                    self.frees.push(Run {
                        start: extent.start + (cut.start - first),
                        len: cut.end - cut.start,
                    });
                }
                at = cut.end;
            }
            keep(number, &old, first, at..end, edits);
        }
        Ok(())
    }

    fn put_pieces(
        &self,
        number: Number,
        pieces: BTreeMap<u64, Piece>,
        edits: &mut BTreeMap<Key, Option<Value>>,
    ) {
        let most = self.cask.geometry.extent_max();
        for (first, piece) in pieces {
            match piece {
                Piece::Inline(bytes) => {
                    let value = ContentRecord::Inline(&bytes).encode();
                    edits.insert(Key::new(number, Kind::Data, first), Some(value.into()));
                }
                Piece::Blocks(extent) => {
                    let mut at = 0;
                    while let Some(part) = extent.part(at..(at + most).min(extent.len())) {
                        edits.insert(
                            Key::new(number, Kind::Data, first + at),
                            Some(encode(&part)),
                        );
                        at += part.len();
                    }
                }
            }
        }
    }

    /// Takes bytes to be written at a block, together with those of its neighbours.
    fn gather(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        let geometry = self.cask.geometry;
        let next = self.gathered_at + self.gathered.len() as u64 / geometry.block();
        if block != next || self.gathered.len() >= GATHER {
            self.flush()?;
            self.gathered_at = block;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            let offset = self.cask.geometry.offset(self.gathered_at);
            self.cask
                .device
                .write_at(offset, &self.gathered)
                .map_err(Error::io("writing a checkpoint"))?;
            self.gathered.clear();
        }
        Ok(())
    }
}

fn encode(extent: &Extent) -> Value {
    let crcs: Vec<u8> = extent
        .crcs
        .iter()
        .flat_map(|sum| sum.to_le_bytes())
        .collect();
    ContentRecord::Extent {
        start: extent.start,
        crcs: &crcs,
    }
    .encode()
    .into()
}

fn out_of_space() -> Error {
    Error::Failed("a checkpoint found fewer free blocks than were set aside for it".to_owned())
}

impl<D: Device> PageStore for Build<'_, D> {
    fn allocate(&mut self) -> Result<u64> {
        if self.ahead.len == 0 {
            self.ahead = self.cask.alloc.allocate_low(16).ok_or_else(out_of_space)?;
        }
        let block = self.ahead.start;
        self.ahead = Run {
            start: block + 1,
            len: self.ahead.len - 1,
        };
        match self.adds.last_mut() {
            Some(run) if run.start + run.len == block => run.len += 1,
            _ => self.adds.push(Run {
                start: block,
                len: 1,
            }),
        }
        Ok(block)
    }

    fn write(&mut self, ptr: PagePtr, page: Page) -> Result<()> {
        self.gather(ptr.block, page.bytes())?;
        self.cask.tree.remember(ptr, page);
        Ok(())
    }

    fn free(&mut self, block: u64) {
        match self.frees.last_mut() {
            Some(run) if run.start + run.len == block => run.len += 1,
            _ => self.frees.push(Run {
                start: block,
                len: 1,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cask::{FormatOptions, OpenOptions};
    use crate::device::MemoryDevice;
    use crate::format::wal::Change;

    #[test]
    fn edits_ascend_and_of_two_of_a_key_that_of_the_content_counts() {
        let device = MemoryDevice::new();
        Cask::format(&device, &FormatOptions::default()).unwrap();
        let cask = Cask::open(device, OpenOptions::default()).unwrap();
        let mut overlay = Overlay::new(cask.geometry, 10);
        let (said, other) = (Key::new(3, Kind::Data, 0), Key::inode(5));
        overlay.apply(&Change::Put(other, b"an inode")).unwrap();
        // What no operation writes, but a log may say.
        overlay.apply(&Change::Put(said, b"an item")).unwrap();
        overlay.apply(&Change::Write(3, 0, b"written")).unwrap();
        overlay.apply(&Change::Write(7, 0, b"more")).unwrap();
        let snapshot = cask.snapshot();
        let edits = Build::new(&cask).edits(&overlay, &snapshot).unwrap();
        let found: Vec<_> = edits.iter().map(|edit| edit.key).collect();
        assert_eq!(found, [said, other, Key::new(7, Kind::Data, 0)]);
        let wanted: Value = ContentRecord::Inline(b"written").encode().into();
        assert_eq!(edits[0].value, Some(wanted));
    }
}
