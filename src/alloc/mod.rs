//! Which blocks are free.
//!
//! Each group has its bitmap in two slots, so that a checkpoint writes the inactive one and the
//! allocation root then says which counts: allocating never needs allocating.
//!
//! Invariants: a block is handed out only if it is free in the newest durable checkpoint *and* was
//! not touched since (I3). What a checkpoint gives up is handed out again only after the owner
//! [releases](Allocator::release) it, that is, once the checkpoint is durable and no reader of an
//! older one is left.

mod backing;
mod bitmap;
mod marks;

pub use bitmap::Bitmap;
pub use marks::Marks;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::checksum::{Digest, Keys, crc};
use crate::format::geometry::{ALLOC_ROOT_ENTRY, ALLOC_ROOT_HEADER, Geometry};
use crate::sync::Mutex;

const ALLOC_ROOT_MAGIC: u32 = u32::from_le_bytes(*b"CKAR");
/// The first two blocks of a group are its bitmap slots.
pub const SLOT_BLOCKS: u64 = 2;

/// Neighbouring blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub len: u64,
}

#[derive(Debug)]
struct Group {
    /// Allocated in the newest durable checkpoint.
    committed: Bitmap,
    /// Not to be handed out although not committed: in use since, or given up but not released.
    busy: Bitmap,
    /// Blocks inside the layout.
    limit: u64,
    /// Blocks that can be handed out.
    free: u64,
    /// Chunks for which the host holds no room.
    absent: Bitmap,
    /// The slot that counts.
    slot: u32,
    /// CRC-32C of that slot's bytes; `None` before the group was ever written.
    crc: Option<u32>,
}

impl Group {
    fn new(geometry: &Geometry, limit: u64) -> Self {
        let mut committed = Bitmap::new(geometry.group_blocks());
        (0..SLOT_BLOCKS).for_each(|at| {
            committed.set(at, true);
        });
        let busy = Bitmap::new(geometry.group_blocks());
        Self {
            committed,
            busy,
            limit,
            free: limit - SLOT_BLOCKS,
            absent: Bitmap::new(geometry.group_chunks().next_multiple_of(64)),
            slot: 1,
            crc: None,
        }
    }
}

#[derive(Debug)]
struct Inner {
    blocks: u64,
    groups: Vec<Group>,
    free: u64,
    /// Blocks of absent chunks.
    absent: u64,
    /// Where the last data went.
    cursor: u64,
    /// No free block lies before this one, as far as is known.
    low: u64,
}

/// The free blocks of a container.
#[derive(Debug)]
pub struct Allocator {
    geometry: Geometry,
    inner: Mutex<Inner>,
}

/// The slots that the entries of an allocation root name, group by group.
pub fn slots_of(root: &[u8]) -> impl Iterator<Item = u64> {
    let entries = root.get(ALLOC_ROOT_HEADER..).unwrap_or_default();
    entries
        .chunks_exact(ALLOC_ROOT_ENTRY)
        .map(|entry| u64::from(entry.get(8).copied().unwrap_or_default() & 1))
}

/// The bitmaps and the root of the next checkpoint, ready to be written.
#[derive(Debug)]
pub struct Plan {
    groups: Vec<(usize, Group)>,
    adds: Vec<Run>,
    frees: Vec<Run>,
    /// Blocks in the layout that the root describes.
    pub blocks: u64,
    /// Slot of the root.
    pub root_slot: u32,
    /// Digest of the root.
    pub root_digest: Digest,
    root: Vec<u8>,
}

impl Allocator {
    /// An empty container of `blocks` blocks.
    pub fn empty(geometry: Geometry, blocks: u64) -> Self {
        let allocator = Self {
            geometry,
            inner: Mutex::new(Inner {
                blocks: 0,
                groups: Vec::new(),
                free: 0,
                absent: 0,
                cursor: 0,
                low: 0,
            }),
        };
        allocator.grow(blocks);
        allocator
    }

    /// Reads root and bitmaps of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a checksum or a count does not hold; I/O errors.
    pub fn load<D: Device>(
        device: &D,
        geometry: Geometry,
        blocks: u64,
        slot: u32,
        digest: &Digest,
        keys: &Keys,
    ) -> Result<Self> {
        let groups = geometry.groups(blocks);
        let at = geometry.alloc_root_offset(slot);
        let bad = |what: &str| Error::corrupt(format!("an allocation root with {what}"), at);
        if groups > geometry.max_groups() {
            return Err(bad("more groups than can be"));
        }
        let mut root = vec![0; ALLOC_ROOT_HEADER + ALLOC_ROOT_ENTRY * groups as usize];
        device
            .read_at(at, &mut root)
            .map_err(Error::io("reading the allocation root"))?;
        if keys.root(&root) != *digest {
            return Err(bad("a digest that does not verify"));
        }
        let entries = root.get(ALLOC_ROOT_HEADER..).unwrap_or_default();
        let allocator = Self::empty(geometry, blocks);
        {
            let mut inner = allocator.inner.lock();
            let mut bytes = vec![0; geometry.block_len()];
            for (index, (group, entry)) in inner
                .groups
                .iter_mut()
                .zip(entries.chunks_exact(ALLOC_ROOT_ENTRY))
                .enumerate()
            {
                let (sum, rest) = entry
                    .split_first_chunk::<4>()
                    .ok_or_else(|| bad("a cut entry"))?;
                let slot = rest
                    .get(4)
                    .copied()
                    .filter(|s| *s <= 1)
                    .ok_or_else(|| bad("an unknown slot"))?;
                let block = geometry.group_start(index as u64) + u64::from(slot);
                let offset = geometry.offset(block);
                device
                    .read_at(offset, &mut bytes)
                    .map_err(Error::io("reading a bitmap"))?;
                if crc(&bytes) != u32::from_le_bytes(*sum) {
                    return Err(Error::corrupt(
                        "a bitmap whose checksum does not verify",
                        offset,
                    ));
                }
                group.committed = Bitmap::decode(&bytes);
                if !(0..SLOT_BLOCKS).all(|at| group.committed.get(at)) {
                    return Err(Error::corrupt(
                        "a bitmap that gives away its own slots",
                        offset,
                    ));
                }
                group.free = group.limit - group.committed.count(group.limit);
                group.slot = u32::from(slot);
                group.crc = Some(u32::from_le_bytes(*sum));
            }
            inner.free = inner.groups.iter().map(|g| g.free).sum();
        }
        Ok(allocator)
    }

    /// Blocks in the layout.
    pub fn blocks(&self) -> u64 {
        self.inner.lock().blocks
    }

    /// Blocks that can be handed out now.
    pub fn free(&self) -> u64 {
        self.inner.lock().free
    }

    /// Extends the layout to `blocks` blocks; less is ignored.
    pub fn grow(&self, blocks: u64) {
        let mut inner = self.inner.lock();
        if blocks <= inner.blocks {
            return;
        }
        inner.blocks = blocks;
        let count = self.geometry.groups(blocks);
        for index in 0..count {
            let limit =
                (blocks - self.geometry.group_start(index)).min(self.geometry.group_blocks());
            let added = match inner.groups.get_mut(index as usize) {
                Some(group) => {
                    let added = limit - group.limit;
                    group.limit = limit;
                    group.free += added;
                    added
                }
                None => {
                    let group = Group::new(&self.geometry, limit);
                    let added = group.free;
                    inner.groups.push(group);
                    added
                }
            };
            inner.free += added;
        }
    }

    /// Hands out up to `max` neighbouring blocks, at least one, after those handed out last; `None`
    /// when none is free.
    pub fn allocate(&self, max: u64) -> Option<Run> {
        let mut inner = self.inner.lock();
        let from = inner.cursor;
        let run = self.take(&mut inner, from, max)?;
        inner.cursor = run.start + run.len;
        Some(run)
    }

    /// Like [`Allocator::allocate`], as near to the start of the container as possible: what is
    /// rewritten often stays together there, and the rest of the container in one piece.
    pub fn allocate_low(&self, max: u64) -> Option<Run> {
        let mut inner = self.inner.lock();
        let from = inner.low;
        let run = self.take(&mut inner, from, max)?;
        inner.low = run.start + run.len;
        Some(run)
    }

    fn take(&self, inner: &mut Inner, wanted: u64, max: u64) -> Option<Run> {
        if inner.free == 0 || max == 0 {
            return None;
        }
        let count = inner.groups.len() as u64;
        let first = self.geometry.group_of(wanted).unwrap_or(0).min(count - 1);
        // The first group is looked at twice: from the wanted block on, and at last from its start.
        for step in 0..=count {
            let index = (first + step) % count;
            let start = self.geometry.group_start(index);
            let from = if step == 0 {
                wanted.saturating_sub(start)
            } else {
                0
            };
            let Some(group) = inner.groups.get_mut(index as usize) else {
                continue;
            };
            if group.free == 0 {
                continue;
            }
            let Some(at) = group.committed.find_clear(&group.busy, from, group.limit) else {
                continue;
            };
            let mut len = 0;
            while len < max
                && at + len < group.limit
                && !group.committed.get(at + len)
                && group.busy.set(at + len, true)
            {
                len += 1;
            }
            group.free -= len;
            inner.free -= len;
            return Some(Run {
                start: start + at,
                len,
            });
        }
        None
    }

    /// Marks blocks as in use that the log says were handed out.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when one of them is in use already or outside the layout.
    pub fn reserve(&self, run: Run) -> Result<()> {
        let mut inner = self.inner.lock();
        let lie = || {
            Error::corrupt(
                "a log record that takes blocks in use",
                self.geometry.offset(run.start),
            )
        };
        let end = run.start.checked_add(run.len).ok_or_else(lie)?;
        for block in run.start..end {
            let index = self.geometry.group_of(block).ok_or_else(lie)?;
            let at = block - self.geometry.group_start(index);
            self.restore_at(&mut inner, index, at);
            let group = inner.groups.get_mut(index as usize).ok_or_else(lie)?;
            if at >= group.limit || group.committed.get(at) || !group.busy.set(at, true) {
                return Err(lie());
            }
            group.free -= 1;
            inner.free -= 1;
        }
        Ok(())
    }

    /// Makes blocks free that no durable checkpoint and no reader needs: given up by a checkpoint
    /// that is durable, or handed out and never written into any record.
    pub fn release(&self, runs: &[Run]) {
        let mut inner = self.inner.lock();
        for run in runs {
            for block in run.start..run.start + run.len {
                let Some(index) = self.geometry.group_of(block) else {
                    continue;
                };
                let at = block - self.geometry.group_start(index);
                let Some(group) = inner.groups.get_mut(index as usize) else {
                    continue;
                };
                if group.busy.set(at, false) && !group.committed.get(at) {
                    group.free += 1;
                    inner.free += 1;
                    inner.low = inner.low.min(block);
                }
            }
        }
    }

    /// The free blocks among `len` from `from` on, also those for which the host holds no room.
    pub fn unused(&self, from: u64, len: u64) -> Vec<Run> {
        let chunk = self.geometry.chunk_blocks();
        let inner = self.inner.lock();
        let mut runs: Vec<Run> = Vec::new();
        for block in from..from + len {
            let index = self.geometry.group_of(block);
            let Some((index, group)) =
                index.and_then(|index| Some((index, inner.groups.get(index as usize)?)))
            else {
                continue;
            };
            let at = block - self.geometry.group_start(index);
            let absent = at / chunk < group.limit / chunk && group.absent.get(at / chunk);
            let taken = group.committed.get(at) || (group.busy.get(at) && !absent);
            if at >= group.limit || taken {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.start + run.len == block => run.len += 1,
                _ => runs.push(Run {
                    start: block,
                    len: 1,
                }),
            }
        }
        runs
    }

    /// Prepares the next checkpoint's bitmaps: the committed ones with `adds` and without `frees`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block is freed that is not allocated, or added that is.
    pub fn plan(
        &self,
        adds: Vec<Run>,
        frees: Vec<Run>,
        root_slot: u32,
        keys: &Keys,
    ) -> Result<Plan> {
        let inner = self.inner.lock();
        let mut changed: std::collections::BTreeMap<usize, Bitmap> =
            std::collections::BTreeMap::new();
        let mut mark = |run: &Run, value: bool| -> Result<()> {
            let lie = || {
                Error::corrupt(
                    "a block that is counted twice",
                    self.geometry.offset(run.start),
                )
            };
            for block in run.start..run.start + run.len {
                let index = self.geometry.group_of(block).ok_or_else(lie)?;
                let at = block - self.geometry.group_start(index);
                let group = inner.groups.get(index as usize).ok_or_else(lie)?;
                let bitmap = changed
                    .entry(index as usize)
                    .or_insert_with(|| group.committed.clone());
                if at < SLOT_BLOCKS || at >= group.limit || !bitmap.set(at, value) {
                    return Err(lie());
                }
            }
            Ok(())
        };
        frees.iter().try_for_each(|run| mark(run, false))?;
        adds.iter().try_for_each(|run| mark(run, true))?;
        let mut groups = Vec::new();
        let mut root =
            Vec::with_capacity(ALLOC_ROOT_HEADER + ALLOC_ROOT_ENTRY * inner.groups.len());
        root.extend_from_slice(&ALLOC_ROOT_MAGIC.to_le_bytes());
        root.extend_from_slice(&(inner.groups.len() as u32).to_le_bytes());
        for (index, group) in inner.groups.iter().enumerate() {
            let next = match changed.remove(&index) {
                None if group.crc.is_some() => None,
                bitmap => {
                    let committed = bitmap.unwrap_or_else(|| group.committed.clone());
                    let sum = crc(&committed.encode());
                    let free = group.limit - committed.count(group.limit);
                    let slot = group.slot ^ 1;
                    Some(Group {
                        committed,
                        busy: Bitmap::new(0),
                        absent: Bitmap::new(0),
                        limit: group.limit,
                        free,
                        slot,
                        crc: Some(sum),
                    })
                }
            };
            let entry = next.as_ref().unwrap_or(group);
            let free = entry.limit - entry.committed.count(entry.limit);
            root.extend_from_slice(&entry.crc.unwrap_or_default().to_le_bytes());
            root.extend_from_slice(&u32::try_from(free).unwrap_or(u32::MAX).to_le_bytes());
            root.extend_from_slice(&[entry.slot as u8, 0, 0, 0, 0, 0, 0, 0]);
            if let Some(next) = next {
                groups.push((index, next));
            }
        }
        let root_digest = keys.root(&root);
        Ok(Plan {
            groups,
            adds,
            frees,
            blocks: inner.blocks,
            root_slot,
            root_digest,
            root,
        })
    }

    /// Writes the plan's bitmaps and root into the inactive slots. Nothing is synced.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write<D: Device>(&self, device: &D, plan: &Plan) -> Result<()> {
        for (index, group) in &plan.groups {
            let block = self.geometry.group_start(*index as u64) + u64::from(group.slot);
            let offset = self.geometry.offset(block);
            device
                .write_at(offset, &group.committed.encode())
                .map_err(Error::io("writing a bitmap"))?;
        }
        device
            .write_at(self.geometry.alloc_root_offset(plan.root_slot), &plan.root)
            .map_err(Error::io("writing the allocation root"))
    }

    /// The plan is durable: it counts from now on. Freed blocks stay busy until released.
    pub fn publish(&self, plan: Plan) {
        let mut inner = self.inner.lock();
        for (index, next) in plan.groups {
            if let Some(group) = inner.groups.get_mut(index) {
                group.committed = next.committed;
                group.slot = next.slot;
                group.crc = next.crc;
            }
        }
        let mut mark = |run: &Run, busy: bool| {
            for block in run.start..run.start + run.len {
                let Some(index) = self.geometry.group_of(block) else {
                    continue;
                };
                let at = block - self.geometry.group_start(index);
                if let Some(group) = inner.groups.get_mut(index as usize) {
                    group.busy.set(at, busy);
                }
            }
        };
        plan.adds.iter().for_each(|run| mark(run, false));
        plan.frees.iter().for_each(|run| mark(run, true));
    }

    /// Makes the committed bitmaps hold what is in use, which they do not where they are damaged; answers
    /// how many blocks they lacked. All are written with the next checkpoint then.
    pub fn adopt(&self, used: &Marks) -> u64 {
        let mut inner = self.inner.lock();
        let mut added = 0;
        for (index, group) in inner.groups.iter_mut().enumerate() {
            let start = self.geometry.group_start(index as u64);
            for at in (SLOT_BLOCKS..group.limit).filter(|at| used.holds(start + at)) {
                if group.committed.set(at, true) {
                    added += 1;
                    group.free -= u64::from(!group.busy.set(at, false));
                }
            }
            if added > 0 {
                group.crc = None;
            }
        }
        inner.free = inner.groups.iter().map(|group| group.free).sum();
        added
    }

    /// The blocks that the committed bitmaps hold and nothing uses.
    pub fn leaked(&self, used: &Marks) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        self.for_each_group(|start, limit, bits| {
            for at in (SLOT_BLOCKS..limit).filter(|at| bits.get(*at)) {
                let block = start + at;
                match runs.last_mut() {
                    _ if used.holds(block) => {}
                    Some(run) if run.start + run.len == block => run.len += 1,
                    _ => runs.push(Run {
                        start: block,
                        len: 1,
                    }),
                }
            }
        });
        runs
    }

    /// Visits the committed bitmap of each group: its first block, its limit and its bits.
    pub fn for_each_group(&self, mut visit: impl FnMut(u64, u64, &Bitmap)) {
        let inner = self.inner.lock();
        for (index, group) in inner.groups.iter().enumerate() {
            visit(
                self.geometry.group_start(index as u64),
                group.limit,
                &group.committed,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn what_is_free_is_unused_whether_the_host_holds_room_or_not() {
        let geometry = Geometry {
            block_size: 512,
            spacing: 512,
            wal_len: 1 << 16,
        };
        let first = geometry.first_block();
        let allocator = Allocator::empty(geometry, first + 400);
        let taken = allocator.allocate(10).unwrap();
        let count = |runs: &[Run]| runs.iter().map(|run| run.len).sum::<u64>();
        let free = allocator.free();
        let unused = allocator.unused(first, 400);
        assert_eq!(count(&unused), free);
        let apart = |run: &Run| run.start + run.len <= taken.start || run.start >= taken.start + 10;
        assert!(unused.iter().all(apart), "{unused:?}, {taken:?}");
        allocator.assume_absent();
        assert!(allocator.free() < free);
        assert_eq!(count(&allocator.unused(first, 400)), free);
    }

    #[test]
    fn more_groups_than_a_root_can_list_are_told() {
        let geometry = Geometry {
            block_size: 512,
            spacing: 512,
            wal_len: 1 << 16,
        };
        let load = |groups| {
            let blocks = geometry.first_block() + groups * geometry.group_blocks();
            let (device, keys) = (MemoryDevice::new(), Keys::derive(&[7; 32]));
            device
                .allocate(0, geometry.offset(geometry.first_block()))
                .unwrap();
            let loaded = Allocator::load(&device, geometry, blocks, 0, &Digest::default(), &keys);
            loaded.map(drop).unwrap_err().to_string()
        };
        let most = geometry.max_groups();
        assert!(load(most + 1).contains("more groups than can be"));
        assert!(load(most).contains("does not verify"), "{}", load(most));
    }
}
