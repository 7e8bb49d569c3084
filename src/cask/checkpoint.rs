//! Writing a checkpoint: freeze, build, make durable, publish.
//!
//! Invariants: a superblock is written only after all it reaches is durable (I2); what a checkpoint
//! gives up is used again only after it is durable and no reader of an older one is left (I3, I4);
//! nothing unverified is ever checksummed anew (I7).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::overlay::{Content, Extent, Overlay};
use super::space::Need;
use super::tx::StopOnPanic;
use super::{Cask, Lingering, Snapshot, wipe};
use crate::alloc::Run;
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::content::ContentRecord;
use crate::format::key::Number;
use crate::format::page::{Page, PagePtr};
use crate::format::superblock::{FLAG_FIXED, SuperblockRecord};
use crate::format::wal::decode_crcs;
use crate::format::{Geometry, Key, Kind};
use crate::sync::atomic::Ordering;
use crate::tree::{Cursor, Edit, FIRST_KEY, PageStore, Root, Value, merge, prune};
use crate::wal::Mark;

/// Neighbouring blocks are gathered into writes of up to this many bytes.
const GATHER: usize = 1 << 20;

/// What a checkpoint is made of.
struct Frozen {
    overlay: Arc<Overlay>,
    snapshot: Arc<Snapshot>,
    superblock: SuperblockRecord,
    mark: Mark,
    /// What it gives up is wiped.
    wipes: bool,
    /// What of the tree is left out, and given up.
    pruned: Option<Pruned>,
}

/// What is wrong with a checkpoint.
pub(super) struct Pruned {
    /// See [`prune()`].
    pub bad: HashSet<(u64, Key)>,
    /// Items that say what of contents is lost.
    pub lost: Vec<Edit>,
    /// Pages in the rest of the tree.
    pub pages: u64,
    /// Blocks that nothing uses.
    pub leaked: Vec<Run>,
}

/// Writes new blocks and keeps the account of blocks taken and given up.
struct Build<'c, D: Device> {
    cask: &'c Cask<D>,
    adds: Vec<Run>,
    frees: Vec<Run>,
    /// Blocks handed out and not used in the end.
    unused: Vec<Run>,
    gathered: Vec<u8>,
    gathered_at: u64,
    /// Blocks allocated ahead for pages.
    ahead: Run,
}

impl<D: Device> Cask<D> {
    /// Writes a checkpoint if anything changed since the last, and frees what it gives up: where that
    /// is to be wiped, after it is.
    ///
    /// # Errors
    /// [`Error::Failed`] when the cask has stopped, or stops now because a write or sync failed.
    pub fn checkpoint(&self) -> Result<()> {
        self.advance()?;
        self.release_lingering(u64::MAX);
        self.alive()
    }

    /// Like [`Cask::checkpoint`], but leaves blocks that are to be wiped to others: who waits for
    /// room in the log need not wait for that.
    pub(super) fn advance(&self) -> Result<()> {
        self.writable()?;
        {
            let _one = self.checkpointing.lock();
            self.alive()?;
            if let Some(frozen) = self.freeze()? {
                self.write_checkpoint(frozen)
                    .inspect_err(|error| self.fail(&format!("writing a checkpoint: {error}")))?;
            }
        }
        self.release_lingering(0);
        Ok(())
    }

    /// Sets the active overlay aside; `None` when there is nothing in it.
    fn freeze(&self) -> Result<Option<Frozen>> {
        let _ops = self.ops.lock();
        let wipes = wipe::in_force(&self.state.read());
        let mark = self.wal.freeze(wipes)?;
        let mut state = self.state.write();
        let here = (state.superblock.wal_lsn.get(), state.superblock.wal_digest);
        if state.active.is_empty() && (mark.next, mark.chain) == here {
            return Ok(None);
        }
        state.frozen_pledge = self.freeze_pledge(&state);
        let mut fresh = Overlay::new(self.geometry, state.next_number);
        fresh.wiping = state.wipes > 0;
        let overlay = Arc::new(std::mem::replace(&mut state.active, fresh));
        state.frozen = Some(Arc::clone(&overlay));
        let mut superblock = state.superblock;
        superblock.next_number = state.next_number.into();
        superblock.files = state.files.into();
        superblock.wipes = state.wipes.into();
        superblock.label = padded(&state.label);
        superblock.files_limit = state.bounds.files.unwrap_or(0).into();
        let others = superblock.flags.get() & !FLAG_FIXED;
        superblock.flags = (others | if state.bounds.fixed { FLAG_FIXED } else { 0 }).into();
        Ok(Some(Frozen {
            overlay,
            snapshot: Arc::clone(&state.snapshot),
            superblock,
            mark,
            wipes,
            pruned: None,
        }))
    }

    /// Writes the newest checkpoint anew, without what is wrong with it. What the log adds stays there.
    pub(super) fn write_pruned(&self, pruned: Pruned) -> Result<()> {
        let _one = self.checkpointing.lock();
        let frozen = {
            let state = self.state.read();
            let superblock = state.superblock;
            Frozen {
                overlay: Arc::new(Overlay::new(self.geometry, superblock.next_number.get())),
                snapshot: Arc::clone(&state.snapshot),
                superblock,
                mark: Mark {
                    position: superblock.wal_position.get(),
                    next: superblock.wal_lsn.get(),
                    chain: superblock.wal_digest,
                },
                wipes: false,
                pruned: Some(pruned),
            }
        };
        self.write_checkpoint(frozen)
    }

    fn write_checkpoint(&self, frozen: Frozen) -> Result<()> {
        // Memory and superblock may not agree half-way.
        let _stop = StopOnPanic(self);
        let Frozen {
            overlay,
            snapshot,
            superblock,
            mark,
            wipes,
            pruned,
        } = frozen;
        let mut generation = superblock.generation.get() + 1;
        let mut build = Build {
            cask: self,
            adds: Vec::new(),
            frees: Vec::new(),
            unused: Vec::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            ahead: Run { start: 0, len: 0 },
        };
        let root = match pruned {
            None => {
                let edits = build.edits(&overlay, &snapshot)?;
                let root = merge(&self.tree, &snapshot.root, generation, edits, &mut build)?;
                #[cfg(any(test, feature = "testing"))]
                self.check_pledge(&overlay, &build.adds);
                root
            }
            Some(pruned) => {
                build.frees.extend(pruned.leaked);
                let pages = pruned.pages;
                let old = Root {
                    pages,
                    ..snapshot.root
                };
                prune(
                    &self.tree,
                    &old,
                    generation,
                    pruned.bad,
                    pruned.lost,
                    &mut build,
                )?
            }
        };
        build.flush()?;
        let ahead = build.ahead;
        let Build {
            adds,
            frees,
            mut unused,
            ..
        } = build;
        unused.push(ahead);

        let slot = superblock.alloc_slot.get() ^ 1;
        let plan = self.alloc.plan(adds, frees.clone(), slot, &self.keys)?;
        self.alloc.write(&*self.device, &plan)?;
        let mut next = superblock;
        next.generation = generation.into();
        next.blocks = plan.blocks.into();
        next.wal_position = mark.position.into();
        next.wal_lsn = mark.next.into();
        next.wal_digest = mark.chain;
        next.height = root.height.into();
        next.root_block = root.page.map_or(0, |p| p.block).into();
        next.root_crc = root.page.map_or(0, |p| p.crc).into();
        next.pages = root.pages.into();
        next.alloc_slot = slot.into();
        next.alloc_digest = plan.root_digest;
        if !removed(Control::CheckpointDataBarrier) {
            self.device
                .sync()
                .map_err(Error::io("syncing a checkpoint"))?;
            // What of it did not get there may have been told to the log.
            self.wal.settled()?;
        }
        if wipes {
            self.expect_wiping(&mut next);
        }
        if wipes && removed(Control::WipeAfterCommit) {
            self.overwrite(frees.clone())?;
        }
        write_superblock(&*self.device, &self.geometry, &next)?;
        self.wal.settled()?;
        if wipes {
            // No superblock is left that leads to what will be wiped.
            generation += 1;
            next.generation = generation.into();
            write_superblock(&*self.device, &self.geometry, &next)?;
        }

        // From here on the new checkpoint counts.
        self.alloc.publish(plan);
        self.records.follow(&overlay);
        for run in &frees {
            (run.start..run.start + run.len).for_each(|block| self.tree.forget(block));
        }
        let mut released = unused;
        released.extend(frees);
        released.extend_from_slice(&overlay.dropped);
        if wipes {
            // They are wiped from the end on.
            released.sort_unstable_by(|a, b| b.cmp(a));
        }
        {
            let mut state = self.state.write();
            state.snapshot = Arc::new(Snapshot {
                root,
                departures: Arc::clone(&self.departures),
            });
            state.frozen = None;
            state.frozen_pledge = Need::default();
            state.superblock = next;
            self.lingering.lock().push_back(Lingering {
                needed_by: Arc::downgrade(&snapshot),
                runs: released,
                wiped: wipes,
            });
        }
        drop((snapshot, overlay));
        if wipes {
            let all = self.ring_stale.swap(false, Ordering::AcqRel);
            self.wal.wipe(&mark, all)?;
        }
        self.wal.retire(&mark, generation);
        Ok(())
    }

    /// What a checkpoint took must be within what was set aside for it.
    #[cfg(any(test, feature = "testing"))]
    fn check_pledge(&self, overlay: &Overlay, adds: &[Run]) {
        let in_place = overlay.contents.values().flat_map(|c| c.extents.values());
        let placed: u64 = in_place.map(Extent::len).sum();
        let taken: u64 = adds.iter().map(|run| run.len).sum();
        let pledge = self.state.read().frozen_pledge.blocks;
        assert!(
            taken <= pledge + placed,
            "a checkpoint took {taken} blocks of {pledge} set aside and {placed} in place"
        );
    }
}

/// Writes both copies of a superblock and makes them durable.
pub(super) fn write_superblock<D: Device>(
    device: &D,
    geometry: &Geometry,
    next: &SuperblockRecord,
) -> Result<()> {
    let pair = if removed(Control::TwoSuperblockSlots) {
        0
    } else {
        2 * (next.generation.get() & 1)
    };
    let bytes = next.encode();
    // A container that lied about its counters is as it was; one that nobody can open is lost.
    if SuperblockRecord::decode(&bytes).is_err() {
        return Err(Error::corrupt("counters beyond all bounds", 0));
    }
    for copy in [pair, pair + 1] {
        device
            .write_at(geometry.superblock_offset(copy), &bytes)
            .map_err(Error::io("writing a superblock"))?;
    }
    if !removed(Control::CheckpointSuperblockBarrier) {
        device.sync().map_err(Error::io("syncing a superblock"))?;
    }
    Ok(())
}

/// A label as it stands in a superblock.
pub(super) fn padded(label: &[u8]) -> [u8; crate::limits::LABEL_MAX] {
    let mut out = [0; crate::limits::LABEL_MAX];
    out.iter_mut().zip(label).for_each(|(to, from)| *to = *from);
    out
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
    fn edits(&mut self, overlay: &Overlay, snapshot: &Snapshot) -> Result<Vec<Edit>> {
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

    fn flush(&mut self) -> Result<()> {
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

/// The root a superblock names.
pub(super) fn root_of(superblock: &SuperblockRecord) -> Root {
    let height = superblock.height.get();
    let page = (height > 0).then(|| PagePtr {
        block: superblock.root_block.get(),
        crc: superblock.root_crc.get(),
    });
    Root {
        page,
        height,
        pages: superblock.pages.get().min(superblock.blocks.get()),
    }
}
