//! Reading: the newest state is the checkpoint's tree under the frozen overlay under the active one.
//!
//! What the active overlay knows is taken under a short lock together with a hold on the layers
//! below; those never change, so the rest is read without any lock and still is one moment's state.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::overlay::{Content, Overlay};
use super::{Cask, Snapshot};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::content::ContentRecord;
use crate::format::key::Number;
use crate::format::wal::decode_crcs;
use crate::format::{Geometry, Key, Kind};
use crate::tree::Value;

/// Items taken from the active overlay at a time while scanning.
const SCAN_BATCH: usize = 256;

/// Reading the cask: its newest committed state, or, in a transaction, that with the transaction's
/// own changes of items. Content always reads as it was before the transaction.
pub trait Read {
    /// The item under `key`.
    fn get(&self, key: &Key) -> Result<Option<Value>>;
    /// Visits the items `from..=to` in order until `visit` answers false.
    fn scan(
        &self,
        from: Key,
        to: Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
    ) -> Result<()>;
    /// Fills `buf` from `offset`; what was never written reads as zeros. The caller clips to the
    /// file's size.
    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// First offset at or after `offset` that holds data, found by block; `None` when there is none.
    fn next_data(&self, content: Number, offset: u64) -> Result<Option<u64>>;
    /// First offset at or after `offset` that holds no data, found by block.
    fn next_hole(&self, content: Number, offset: u64) -> Result<u64>;
    /// 61-bit keyed hash of a name, never 0.
    fn name_hash(&self, name: &[u8]) -> u64;
    /// Bytes in a block.
    fn block_size(&self) -> u32;
}

/// A part of a read that comes from blocks: where it goes, and the blocks with their checksums.
struct Fetch {
    /// Range of the caller's buffer.
    target: Range<usize>,
    /// Offset in the first block.
    skip: usize,
    start: u64,
    crcs: Vec<u32>,
}

/// A read being put together from the layers, topmost first.
struct Plan<'a> {
    geometry: Geometry,
    offset: u64,
    buf: &'a mut [u8],
    /// Ranges of the buffer that no layer has answered yet.
    gaps: Vec<Range<usize>>,
    fetches: Vec<Fetch>,
    /// Some of it was lost to damage.
    lost: bool,
}

impl Plan<'_> {
    fn end(&self) -> u64 {
        self.offset + self.buf.len() as u64
    }

    /// Takes `part` (in content bytes) out of the gaps, calling `take` with each piece.
    fn fill(
        &mut self,
        part: Range<u64>,
        mut take: impl FnMut(&mut [u8], &mut Vec<Fetch>, u64, Range<usize>),
    ) {
        let from = part.start.max(self.offset);
        let to = part.end.min(self.end());
        if from >= to {
            return;
        }
        let want = (from - self.offset) as usize..(to - self.offset) as usize;
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for gap in std::mem::take(&mut self.gaps) {
            let cut = gap.start.max(want.start)..gap.end.min(want.end);
            if cut.start >= cut.end {
                left.push(gap);
                continue;
            }
            if let Some(target) = self.buf.get_mut(cut.clone()) {
                take(
                    target,
                    &mut self.fetches,
                    self.offset + cut.start as u64,
                    cut.clone(),
                );
            }
            if gap.start < cut.start {
                left.push(gap.start..cut.start);
            }
            if cut.end < gap.end {
                left.push(cut.end..gap.end);
            }
        }
        self.gaps = left;
    }

    fn fill_bytes(&mut self, at: u64, bytes: &[u8]) {
        self.fill(
            at..at.saturating_add(bytes.len() as u64),
            |target, _, from, _| {
                let skip = (from - at) as usize;
                if let Some(source) = bytes.get(skip..skip + target.len()) {
                    target.copy_from_slice(source);
                }
            },
        );
    }

    fn fill_lost(&mut self, block: u64, blocks: u32) {
        let size = self.geometry.block();
        let from = block.saturating_mul(size);
        let mut lost = false;
        self.fill(
            from..from.saturating_add(u64::from(blocks) * size),
            |_, _, _, _| lost = true,
        );
        self.lost |= lost;
    }

    fn fill_zeros(&mut self, range: Range<u64>) {
        self.fill(range, |target, _, _, _| target.fill(0));
    }

    fn fill_blocks(&mut self, block: u64, start: u64, crcs: &[u32]) {
        let size = self.geometry.block();
        let from = block.saturating_mul(size);
        self.fill(
            from..from.saturating_add(crcs.len() as u64 * size),
            |_, fetches, at, target| {
                let first = (at - from) / size;
                let last = (at + target.len() as u64 - from).div_ceil(size);
                let crcs = crcs
                    .get(first as usize..last as usize)
                    .unwrap_or_default()
                    .to_vec();
                fetches.push(Fetch {
                    skip: ((at - from) % size) as usize,
                    target,
                    start: start + first,
                    crcs,
                });
            },
        );
    }

    /// Answers what an overlay's content knows.
    fn overlay(&mut self, content: &Content) {
        let size = self.geometry.block();
        let (first, last) = (self.offset / size, self.end().div_ceil(size));
        for (block, chunk) in content.chunks.range(first..last) {
            for (range, bytes) in chunk.pieces() {
                self.fill_bytes(
                    block
                        .saturating_mul(size)
                        .saturating_add(range.start as u64),
                    bytes,
                );
            }
        }
        let from = content
            .extents
            .range(..=first)
            .next_back()
            .map_or(first, |(block, _)| *block);
        for (block, extent) in content.extents.range(from..last) {
            self.fill_blocks(*block, extent.start, &extent.crcs);
        }
        if let Some(floor) = content.floor {
            self.fill_zeros(floor.saturating_mul(size)..u64::MAX);
        }
    }

    /// Reads what stands in blocks, verifying each whole block.
    fn run<D: Device>(self, device: &D) -> Result<()> {
        if self.lost {
            return Err(Error::corrupt("content that was lost to damage", 0));
        }
        let size = self.geometry.block_len();
        let mut blocks = Vec::new();
        for fetch in &self.fetches {
            let Some(target) = self.buf.get_mut(fetch.target.clone()) else {
                continue;
            };
            let whole = fetch.skip == 0 && target.len() == fetch.crcs.len() * size;
            let offset = self.geometry.offset(fetch.start);
            let bytes = if whole {
                &mut *target
            } else {
                blocks.resize(fetch.crcs.len() * size, 0);
                &mut blocks[..]
            };
            if fetch.start < self.geometry.first_block() {
                return Err(Error::corrupt(
                    "a data block outside the allocation groups",
                    offset,
                ));
            }
            device
                .read_at(offset, bytes)
                .map_err(Error::io("reading data"))?;
            for ((block, sum), index) in bytes.chunks_exact(size).zip(&fetch.crcs).zip(0..) {
                if crc(block) != *sum {
                    let at = offset + index * size as u64;
                    return Err(Error::corrupt(
                        "a data block whose checksum does not verify",
                        at,
                    ));
                }
            }
            if !whole && let Some(source) = blocks.get(fetch.skip..fetch.skip + target.len()) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// What stands in the tree for one content.
fn tree_items<D: Device>(
    cask: &Cask<D>,
    snapshot: &Snapshot,
    content: Number,
    blocks: Range<u64>,
    visit: &mut dyn FnMut(u64, ContentRecord<'_>) -> Result<bool>,
) -> Result<()> {
    let from = blocks.start.saturating_sub(cask.geometry.extent_max() - 1);
    let to = blocks.end.saturating_sub(1);
    let mut cursor = cask.tree.range(
        &snapshot.root,
        Key::new(content, Kind::Data, from),
        Key::new(content, Kind::Data, to),
    );
    while let Some((key, value)) = cursor.next()? {
        let record = ContentRecord::decode(value)?;
        if key.offset.saturating_add(record.blocks()) > blocks.start && !visit(key.offset, record)?
        {
            break;
        }
    }
    Ok(())
}

impl<D: Device> Cask<D> {
    /// The layers below the active overlay, as they are now.
    fn below(&self) -> (Option<Arc<Overlay>>, Arc<Snapshot>) {
        let state = self.state.read();
        (state.frozen.clone(), Arc::clone(&state.snapshot))
    }

    /// Reads content of the frozen overlay and the checkpoint only: what a checkpoint builds on.
    pub(super) fn read_base(
        &self,
        snapshot: &Snapshot,
        content: Number,
        layer: Option<&Content>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut plan = self.plan(offset, buf);
        if let Some(layer) = layer {
            plan.overlay(layer);
        }
        self.finish(plan, snapshot, content)
    }

    fn plan<'a>(&self, offset: u64, buf: &'a mut [u8]) -> Plan<'a> {
        let whole = 0..buf.len();
        Plan {
            geometry: self.geometry,
            offset,
            buf,
            gaps: vec![whole],
            fetches: Vec::new(),
            lost: false,
        }
    }

    /// Answers the remaining gaps from the tree, then reads the blocks.
    fn finish(&self, mut plan: Plan<'_>, snapshot: &Snapshot, content: Number) -> Result<()> {
        let size = self.geometry.block();
        if let (Some(first), Some(last)) = (
            plan.gaps.iter().map(|gap| gap.start).min(),
            plan.gaps.iter().map(|gap| gap.end).max(),
        ) {
            let from = (plan.offset + first as u64) / size;
            let to = (plan.offset + last as u64).div_ceil(size);
            tree_items(self, snapshot, content, from..to, &mut |block, record| {
                match record {
                    ContentRecord::Inline(bytes) => {
                        plan.fill_bytes(block.saturating_mul(size), bytes)
                    }
                    ContentRecord::Extent { start, crcs } => {
                        let crcs: Vec<u32> = decode_crcs(crcs).collect();
                        plan.fill_blocks(block, start, &crcs);
                    }
                    ContentRecord::Lost(blocks) => plan.fill_lost(block, blocks),
                }
                Ok(true)
            })?;
            plan.fill_zeros(0..u64::MAX);
        }
        plan.run(&*self.device)
    }

    /// First block at or after `block` for which `wanted` data (or, if not, a hole) stands.
    fn seek(&self, content: Number, block: u64, wanted: bool) -> Result<Option<u64>> {
        // Layers, topmost first: the blocks each holds, and from where on it hides what is below.
        let mut held: Vec<Range<u64>> = Vec::new();
        let mut floor = u64::MAX;
        let mut add = |layer: &Content, floor: &mut u64| {
            let chunks = layer.chunks.keys().map(|b| *b..*b + 1);
            let extents = layer.extents.iter().map(|(b, e)| *b..*b + e.len());
            held.extend(
                chunks
                    .chain(extents)
                    .filter(|r| r.end > block && r.start < *floor),
            );
            *floor = (*floor).min(layer.floor.unwrap_or(u64::MAX));
        };
        let (frozen, snapshot) = {
            let state = self.state.read();
            if let Some(layer) = state.active.contents.get(&content) {
                add(layer, &mut floor);
            }
            (state.frozen.clone(), Arc::clone(&state.snapshot))
        };
        if let Some(layer) = frozen.as_ref().and_then(|f| f.contents.get(&content)) {
            add(layer, &mut floor);
        }
        held.sort_by_key(|range| range.start);
        let mut held = held.into_iter().peekable();
        let mut at = block;
        let mut answer = None;
        // Merges the tree's items, in order, with the layers'.
        let mut step = |range: Range<u64>| {
            if wanted {
                answer = Some(range.start.max(block));
                return false;
            }
            if range.start > at {
                return false;
            }
            at = at.max(range.end);
            true
        };
        let mut go_on = true;
        tree_items(
            self,
            &snapshot,
            content,
            block..floor.max(block),
            &mut |first, record| {
                let range = first..(first + record.blocks()).min(floor);
                while let Some(layer) = held.next_if(|h| h.start <= range.start) {
                    go_on = step(layer);
                    if !go_on {
                        return Ok(false);
                    }
                }
                if range.start < range.end {
                    go_on = step(range);
                }
                Ok(go_on)
            },
        )?;
        while go_on && let Some(layer) = held.next() {
            go_on = step(layer);
        }
        Ok(if wanted { answer } else { Some(at) })
    }
}

/// The items of both overlays in order; the active one's count where both have one.
struct Layers<'a> {
    active: std::iter::Peekable<std::vec::IntoIter<(Key, Option<Value>)>>,
    frozen: std::iter::Peekable<std::collections::btree_map::Range<'a, Key, Option<Value>>>,
}

impl Layers<'_> {
    fn next_if(&mut self, wanted: impl Fn(Key) -> bool) -> Option<(Key, Option<Value>)> {
        let active = self.active.peek().map(|(key, _)| *key);
        let frozen = self.frozen.peek().map(|(key, _)| **key);
        let first = active
            .into_iter()
            .chain(frozen)
            .min()
            .filter(|key| wanted(*key))?;
        let below = self
            .frozen
            .next_if(|(key, _)| **key == first)
            .map(|(key, value)| (*key, value.clone()));
        self.active.next_if(|(key, _)| *key == first).or(below)
    }
}

impl<D: Device> Read for Cask<D> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        let (frozen, snapshot) = {
            let state = self.state.read();
            if let Some(value) = state.active.item(key) {
                return Ok(value.clone());
            }
            (state.frozen.clone(), Arc::clone(&state.snapshot))
        };
        match frozen.as_ref().and_then(|overlay| overlay.item(key)) {
            Some(value) => Ok(value.clone()),
            None => self.settled(&snapshot, key),
        }
    }

    fn scan(
        &self,
        from: Key,
        to: Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut from = from;
        loop {
            // A batch of the active overlay, and the key up to which it is complete.
            let (active, frozen, snapshot) = {
                let state = self.state.read();
                let batch: Vec<(Key, Option<Value>)> = state
                    .active
                    .items
                    .range(from..=to)
                    .take(SCAN_BATCH)
                    .map(|(k, v)| (*k, v.clone()))
                    .collect();
                (batch, state.frozen.clone(), Arc::clone(&state.snapshot))
            };
            let last = match active.last() {
                Some((key, _)) if active.len() == SCAN_BATCH => *key,
                _ => to,
            };
            let none = BTreeMap::new();
            let mut overlay = Layers {
                active: active.into_iter().peekable(),
                frozen: frozen
                    .as_ref()
                    .map_or(&none, |f| &f.items)
                    .range(from..=last)
                    .peekable(),
            };
            let mut cursor = self.tree.range(&snapshot.root, from, last);
            while let Some((key, value)) = cursor.next()? {
                while let Some((first, changed)) = overlay.next_if(|first| first < key) {
                    if let Some(changed) = changed
                        && !visit(first, &changed)?
                    {
                        return Ok(());
                    }
                }
                let go_on = match overlay.next_if(|first| first == key) {
                    Some((_, None)) => true,
                    Some((_, Some(changed))) => visit(key, &changed)?,
                    None => visit(key, value)?,
                };
                if !go_on {
                    return Ok(());
                }
            }
            while let Some((key, changed)) = overlay.next_if(|_| true) {
                if let Some(changed) = changed
                    && !visit(key, &changed)?
                {
                    return Ok(());
                }
            }
            if last >= to {
                return Ok(());
            }
            from = Key::new(last.number, last.kind, last.offset.saturating_add(1));
            if from <= last {
                return Ok(());
            }
        }
    }

    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let mut plan = self.plan(offset, buf);
        let (frozen, snapshot) = {
            let state = self.state.read();
            if let Some(layer) = state.active.contents.get(&content) {
                plan.overlay(layer);
            }
            if plan.gaps.is_empty() && plan.fetches.is_empty() {
                return Ok(());
            }
            (state.frozen.clone(), Arc::clone(&state.snapshot))
        };
        if let Some(layer) = frozen
            .as_ref()
            .and_then(|overlay| overlay.contents.get(&content))
        {
            plan.overlay(layer);
        }
        self.finish(plan, &snapshot, content)
    }

    fn next_data(&self, content: Number, offset: u64) -> Result<Option<u64>> {
        let size = self.geometry.block();
        Ok(self
            .seek(content, offset / size, true)?
            .map(|block| block.saturating_mul(size).max(offset)))
    }

    fn next_hole(&self, content: Number, offset: u64) -> Result<u64> {
        let size = self.geometry.block();
        let block = self
            .seek(content, offset / size, false)?
            .unwrap_or(offset / size);
        Ok(block.saturating_mul(size).max(offset))
    }

    fn name_hash(&self, name: &[u8]) -> u64 {
        self.keys.name(name)
    }

    fn block_size(&self) -> u32 {
        self.geometry.block_size
    }
}

impl<D: Device> Cask<D> {
    /// The newest checkpoint, held: none of its blocks is used again while it is.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.below().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_layers_the_newer_one_counts_and_nothing_is_left_out() {
        let key = |offset| Key::new(1, Kind::Dirent, offset);
        let item = |offset, value: Option<u8>| (key(offset), value.map(|v| Value::from([v])));
        let active = vec![item(1, Some(1)), item(2, None), item(5, Some(5))];
        let frozen = BTreeMap::from([
            item(1, Some(9)),
            item(2, Some(9)),
            item(3, Some(3)),
            item(4, None),
        ]);
        let mut layers = Layers {
            active: active.into_iter().peekable(),
            frozen: frozen.range(key(0)..).peekable(),
        };
        assert_eq!(layers.next_if(|first| first > key(1)), None);
        let mut found = Vec::new();
        while let Some(item) = layers.next_if(|_| true) {
            found.push(item);
        }
        let wanted = [
            item(1, Some(1)),
            item(2, None),
            item(3, Some(3)),
            item(4, None),
            item(5, Some(5)),
        ];
        assert_eq!(found, wanted);
    }
}
