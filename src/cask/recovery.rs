//! Opening a container after whatever happened to it.
//!
//! Recovery is a type: [`Unrecovered`] has read a superblock and nothing else can be done with it
//! than to recover it. Invariant: recovery writes nothing before its first checkpoint (I6), so a
//! crash during recovery leaves the same container to be recovered.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use super::checkpoint::root_of;
use super::departures::Departures;
use super::mend::{Mended, survey};
use super::overlay::Overlay;
use super::records::Records;
use super::space::Need;
use super::wipe::in_force;
use super::{Abandoned, Bounds, Cask, Lsn, Snapshot, State};
use crate::alloc::{Allocator, Marks, Run};
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::format::checksum::{Keys, crc};
use crate::format::superblock::{
    FLAG_FIXED, FLAG_STALE, NUMBER_MAX, Rejected, SPACING, SUPERBLOCK_COPIES, SUPERBLOCK_LEN,
    SuperblockRecord, VERSION,
};
use crate::format::wal::{Change, Changes, decode_crcs, records};
use crate::sync::atomic::{AtomicBool, AtomicI64};
use crate::sync::{Mutex, RwLock};
use crate::tree::Tree;
use crate::wal::{Mark, Replay, Wal, replay};

/// Memory for tree pages.
const CACHE_BYTES: usize = 84 << 20;

/// How a container is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Nothing is written, not even what recovery would.
    pub read_only: bool,
    /// Bytes between superblock copies, if not 65,536; used where copy 0 cannot tell.
    pub superblock_spacing: Option<u32>,
    /// What does not verify is taken out, for good: see [`Cask::mended`]. Otherwise a cask with damage in
    /// its bitmaps or its log is not opened, or only for reading.
    pub forgiving: bool,
    /// The older of the two superblocks is used, as if the newest checkpoint had not been: only together
    /// with `forgiving`, since what it refers to may be used again.
    pub older: bool,
}

impl<D: Device> Cask<D> {
    /// Opens a container, recovering it if it was not closed in order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no cask or one this program cannot use; [`Error::Corrupt`]; I/O
    /// errors.
    pub fn open(device: D, options: OpenOptions) -> Result<Self> {
        Unrecovered::load(device, &options)?.recover(&options)
    }
}

/// A container whose superblock was read, and of which nothing else is believed yet.
pub struct Unrecovered<D> {
    device: D,
    superblock: SuperblockRecord,
    geometry: Geometry,
    /// Copies that did not verify.
    damaged_copies: u32,
    mended: Vec<Mended>,
}

impl<D: Device> Unrecovered<D> {
    /// Finds the newest superblock.
    ///
    /// # Errors
    /// As [`Cask::open`].
    pub fn load(device: D, options: &OpenOptions) -> Result<Self> {
        let len = device
            .len()
            .map_err(Error::io("asking for the container's length"))?;
        let mut best: Option<SuperblockRecord> = None;
        let mut older: Option<SuperblockRecord> = None;
        let mut mended = Vec::new();
        let mut worst = Rejected::Foreign;
        let mut damaged_copies = 0;
        let read = |offset| match read_copy(&device, offset, len) {
            Err(Error::Io { .. }) if options.forgiving => Ok(Err(Rejected::Damaged)),
            read => read,
        };
        let copy_zero = read(0)?;
        let spacing = match copy_zero {
            Ok(superblock) => superblock.spacing.get(),
            Err(_) => options.superblock_spacing.unwrap_or(SPACING),
        };
        for copy in 0..SUPERBLOCK_COPIES {
            match read(copy * u64::from(spacing))? {
                Ok(found)
                    if best.is_none_or(|best| best.generation.get() < found.generation.get()) =>
                {
                    older = best.replace(found).or(older);
                }
                Ok(found)
                    if best.is_some_and(|best| best.generation.get() > found.generation.get()) =>
                {
                    older = Some(found);
                }
                Ok(_) => {}
                Err(why) => {
                    damaged_copies += 1;
                    if worst == Rejected::Foreign {
                        worst = why;
                    }
                }
            }
        }
        let Some(superblock) = best else {
            return Err(match worst {
                Rejected::Foreign => Error::invalid("not a cask; make one with `caskfs mkfs`"),
                Rejected::Newer(version) => Error::invalid(format!(
                    "a cask of format {version}, but this program knows only up to {VERSION}; use a newer caskfs"
                )),
                Rejected::Features(mask) => Error::invalid(format!(
                    "a cask with features this program does not know ({mask:#x}); use a newer caskfs"
                )),
                Rejected::Damaged => Error::corrupt("no superblock copy that verifies", 0),
            });
        };
        let superblock = match older.filter(|_| options.older) {
            None if options.older => {
                return Err(Error::invalid(
                    "there is no older superblock that verifies; leave out --older",
                ));
            }
            None => superblock,
            Some(older) => {
                let sentence = format!(
                    "checkpoint {} is used instead of {}: what was done since is lost, but for what the log still holds",
                    older.generation.get(),
                    superblock.generation.get()
                );
                mended.push(Mended::new("older", None, sentence));
                older
            }
        };
        let geometry = Geometry::of(&superblock);
        let layout = geometry.offset(superblock.blocks.get());
        geometry
            .check(superblock.blocks.get())
            .map_err(|_| Error::corrupt("an impossible layout", 0))?;
        if len < layout {
            mended.push(lengthen(&device, len, layout, options)?);
        }
        Ok(Self {
            device,
            superblock,
            geometry,
            damaged_copies,
            mended,
        })
    }

    /// The newest superblock.
    pub fn superblock(&self) -> &SuperblockRecord {
        &self.superblock
    }

    /// How many of the four superblock copies do not verify.
    pub fn damaged_copies(&self) -> u32 {
        self.damaged_copies
    }

    /// Replays the log over the newest checkpoint; writes a checkpoint if there was anything to
    /// replay or to reject, unless it is read only.
    ///
    /// # Errors
    /// As [`Cask::open`].
    pub fn recover(self, options: &OpenOptions) -> Result<Cask<D>> {
        let Self {
            device,
            superblock,
            geometry,
            damaged_copies,
            mut mended,
        } = self;
        let read_only = options.read_only;
        let device = Arc::new(device);
        if !read_only {
            // After a kill the newest superblock and frames may be in the host's cache alone. They
            // are built upon from here on, so they must not be lost before what follows is.
            device
                .sync()
                .map_err(Error::io("syncing what the last mount left"))?;
        }
        let keys = Keys::derive(&superblock.secret);
        let generation = superblock.generation.get();
        let tree = Tree::new(Arc::clone(&device), geometry, CACHE_BYTES);
        let found = match options.forgiving {
            true => {
                let (root, blocks) = (root_of(&superblock), superblock.blocks.get());
                let mut found = survey(&tree, geometry, &root, blocks)?;
                mended.append(&mut found.mended);
                Some(found)
            }
            false => None,
        };
        let used = found.as_ref().map(|found| &found.used);
        let (mut alloc, rebuilt) =
            allocator(&*device, geometry, &superblock, &keys, used, &mut mended)?;
        let is_growing = superblock.flags.get() & FLAG_FIXED == 0 && !read_only;
        if is_growing {
            alloc.assume_absent();
        }
        let mark = Mark {
            position: superblock.wal_position.get(),
            next: superblock.wal_lsn.get(),
            chain: superblock.wal_digest,
        };
        let log = replay(
            &*device,
            geometry,
            &keys,
            mark,
            generation,
            options.forgiving,
        )?;
        let stale = superblock.flags.get() & FLAG_STALE != 0;
        let departures = Arc::new(Departures::default());
        let fresh = || {
            let mut active = Overlay::new(geometry, superblock.next_number.get());
            active.wiping = superblock.wipes.get() > 0;
            State {
                active,
                frozen: None,
                frozen_pledge: Need::default(),
                promised: 0,
                snapshot: Arc::new(Snapshot {
                    root: root_of(&superblock),
                    departures: Arc::clone(&departures),
                }),
                next_number: superblock.next_number.get(),
                files: superblock.files.get(),
                wipes: superblock.wipes.get(),
                label: superblock.label().to_vec(),
                bounds: Bounds::of(&superblock),
                superblock,
            }
        };
        let mut state = fresh();
        let mut at = mark.next;
        let applied = match apply_log(&*device, geometry, &alloc, &log, &mut state, None, &mut at) {
            Err(Error::Corrupt(what)) if options.forgiving => {
                let sentence = format!("{what}: the log from operation {at} on is left out");
                mended.push(Mended::new("log", Some(what.offset), sentence));
                // What was applied of that operation is taken back by beginning again.
                (alloc, _) = allocator(
                    &*device,
                    geometry,
                    &superblock,
                    &keys,
                    used,
                    &mut Vec::new(),
                )?;
                if is_growing {
                    alloc.assume_absent();
                }
                state = fresh();
                let end = Some(at);
                apply_log(&*device, geometry, &alloc, &log, &mut state, end, &mut at)?
            }
            applied => applied?,
        };
        let (layout, len) = (
            geometry.offset(alloc.blocks()),
            device
                .len()
                .map_err(Error::io("asking for the container's length"))?,
        );
        if len < layout {
            mended.push(lengthen(&*device, len, layout, options)?);
        }
        let damaged = log.lost.is_some() || applied.end.next <= log.durable;
        if options.forgiving && log.lost.is_some() {
            let sentence = format!(
                "the log ends before operation {}, though later ones were confirmed durable: they are lost",
                applied.end.next
            );
            mended.push(Mended::new("log", None, sentence));
        }
        let why = match (damaged && !options.forgiving, read_only) {
            (true, _) => Some(
                "part of its log that was confirmed durable does not verify; run `caskfs fsck`",
            ),
            (false, true) => Some(""),
            (false, false) => None,
        };
        let replayed = applied.end.next != mark.next || log.rejected || applied.rejected || damaged;
        let mut end = applied.end;
        if replayed && !removed(Control::CheckpointAfterRecovery) {
            // A fresh seed: no frame that was rejected can ever continue the chain.
            end.chain = keys.seed(generation + 1, &end.chain);
        }
        if damaged {
            // What is left in the ring says no more that this or anything after it was durable.
            end.next = end.next.max(log.durable + 1);
        }
        end.position = end.position.next_multiple_of(geometry.wal_unit());
        let wiped = in_force(&state);
        let wal = Wal::new(
            Arc::clone(&device),
            geometry,
            keys.clone(),
            mark.position,
            end,
            generation,
        );
        let mut cask = Cask {
            device,
            geometry,
            keys,
            read_only: why,
            checkpointing: Mutex::new(()),
            growth: Mutex::new(()),
            departures,
            barren: AtomicBool::new(false),
            ops: Mutex::new(()),
            guard: RwLock::new(None),
            state: RwLock::new(state),
            alloc: Arc::new(alloc),
            tree,
            records: Records::new(),
            wal,
            lingering: Mutex::new(VecDeque::new()),
            images: Mutex::new(Vec::new()),
            releasing: Mutex::new(()),
            abandoned: Arc::new(Mutex::new(Abandoned {
                wiped,
                runs: Vec::new(),
            })),
            sweep: Mutex::new(stale.then_some(0)),
            ring_stale: AtomicBool::new(stale),
            failed: OnceLock::new(),
            last_commit: AtomicI64::new(0),
            last_checkpoint: AtomicI64::new(0),
            mended: Vec::new(),
        };
        if cask.read_only.is_none() {
            // What was set aside had room when it was logged; ask for it by name.
            let (free, wanted) = (cask.alloc.free(), cask.set_aside(&cask.state.read()));
            let is_fixed = cask.state.read().bounds.fixed;
            cask.take_back(match is_fixed {
                true => u64::MAX,
                false => wanted.saturating_sub(free),
            })?;
            if let Some(found) = found {
                let leaked: u64 = cask
                    .alloc
                    .leaked(&found.used)
                    .iter()
                    .map(|run| run.len)
                    .sum();
                if leaked > 0 {
                    let sentence = format!("{leaked} blocks that nothing uses are free again");
                    mended.push(Mended::harmless("block-unused", None, sentence));
                }
                mended.extend(cask.settle_damage(found, rebuilt)?.1);
                // A crash may leave some that do not verify; the next checkpoints write them anew.
                if damaged_copies > 0 {
                    cask.renew_superblocks()?;
                }
            }
            if replayed && !removed(Control::CheckpointAfterRecovery) {
                cask.checkpoint()?;
            }
            cask.begin_wiping()?;
        }
        cask.mended = mended;
        Ok(cask)
    }
}

/// The allocator as the superblock names it. With what was found in use it is made to hold that, however
/// damaged the bitmaps are; answers whether they must be written anew.
fn allocator<D: Device>(
    device: &D,
    geometry: Geometry,
    superblock: &SuperblockRecord,
    keys: &Keys,
    used: Option<&Marks>,
    mended: &mut Vec<Mended>,
) -> Result<(Allocator, bool)> {
    let loaded = Allocator::load(
        device,
        geometry,
        superblock.blocks.get(),
        superblock.alloc_slot.get(),
        &superblock.alloc_digest,
        keys,
    );
    let Some(used) = used else {
        return Ok((loaded?, false));
    };
    match loaded {
        Err(error @ (Error::Corrupt(_) | Error::Io { .. })) => {
            let (what, at) = match &error {
                Error::Corrupt(what) => (what.to_string(), Some(what.offset)),
                error => (error.to_string(), None),
            };
            let sentence = format!("{what}: the map of free blocks is made anew");
            mended.push(Mended::harmless("bitmap", at, sentence));
            let alloc = Allocator::empty(geometry, superblock.blocks.get());
            alloc.adopt(used);
            Ok((alloc, true))
        }
        loaded => {
            let alloc = loaded?;
            let lacked = alloc.adopt(used);
            if lacked > 0 {
                let sentence = format!("{lacked} blocks in use were marked free: they are marked");
                mended.push(Mended::harmless("block-free", None, sentence));
            }
            Ok((alloc, lacked > 0))
        }
    }
}

/// Makes a container that was cut off as long as its layout, if that is wanted.
fn lengthen<D: Device>(device: &D, len: u64, layout: u64, options: &OpenOptions) -> Result<Mended> {
    let what = format!("the container is cut off: {len} bytes of {layout}");
    if !options.forgiving {
        return Err(Error::invalid(format!("{what}; restore it from a copy")));
    }
    device
        .set_len(layout)
        .map_err(Error::io("making the container as long as it was"))?;
    let sentence = format!("{what}; what is missing reads as zeros");
    Ok(Mended::new("cut-off", Some(len), sentence))
}

fn read_copy<D: Device>(
    device: &D,
    offset: u64,
    len: u64,
) -> Result<Result<SuperblockRecord, Rejected>> {
    if offset + SUPERBLOCK_LEN as u64 > len {
        return Ok(Err(Rejected::Foreign));
    }
    let mut bytes = [0; SUPERBLOCK_LEN];
    device
        .read_at(offset, &mut bytes)
        .map_err(Error::io("reading a superblock"))?;
    Ok(SuperblockRecord::decode(&bytes))
}

/// How far a log could be applied.
struct Applied {
    end: Mark,
    rejected: bool,
}

/// Applies records in order, up to the first whose blocks do not verify, and to before `until`; `at` is
/// the one that was at hand.
fn apply_log<D: Device>(
    device: &D,
    geometry: Geometry,
    alloc: &Allocator,
    log: &Replay,
    state: &mut State,
    until: Option<Lsn>,
    at: &mut Lsn,
) -> Result<Applied> {
    let mut end = log.end;
    for (first, payload) in &log.frames {
        *at = *first;
        if until.is_some_and(|until| *first >= until) {
            end.next = *first;
            return Ok(Applied {
                end,
                rejected: true,
            });
        }
        for (record, lsn) in records(payload)?.into_iter().zip(*first..) {
            *at = lsn;
            if until.is_some_and(|until| lsn >= until) {
                end.next = lsn;
                return Ok(Applied {
                    end,
                    rejected: true,
                });
            }
            let confirmed = lsn <= log.durable;
            let is_torn = !confirmed
                && !removed(Control::BypassChecksums)
                && !blocks_hold(device, geometry, record)?;
            if is_torn {
                end.next = lsn;
                return Ok(Applied {
                    end,
                    rejected: true,
                });
            }
            for change in Changes(record) {
                let change = change?;
                match &change {
                    Change::Extent { start, crcs, .. } => {
                        alloc.reserve(Run {
                            start: *start,
                            len: decode_crcs(crcs).len() as u64,
                        })?;
                    }
                    Change::Counters { next_number, files } => {
                        if *next_number >= NUMBER_MAX {
                            return Err(Error::corrupt(
                                "a log record that counts past all files",
                                0,
                            ));
                        }
                        (state.next_number, state.files) = (*next_number, *files);
                    }
                    Change::Grow(blocks) if *blocks <= geometry.max_blocks() => alloc.grow(*blocks),
                    Change::Grow(_) => {
                        return Err(Error::corrupt(
                            "a log record that grows past the largest cask",
                            0,
                        ));
                    }
                    Change::Label(label) => state.label = label.to_vec(),
                    Change::Wipes(count) => state.wipes = *count,
                    Change::Bounds { files, fixed } => {
                        state.bounds = Bounds {
                            files: Some(*files).filter(|files| *files > 0),
                            fixed: *fixed,
                        };
                    }
                    _ => {}
                }
                state.active.apply(&change)?;
            }
        }
    }
    Ok(Applied {
        end,
        rejected: false,
    })
}

/// Whether the blocks that a record refers to hold what it says.
fn blocks_hold<D: Device>(device: &D, geometry: Geometry, record: &[u8]) -> Result<bool> {
    let len = device
        .len()
        .map_err(Error::io("asking for the container's length"))?;
    let mut bytes = vec![0; geometry.block_len()];
    for change in Changes(record) {
        let (start, crcs) = match change? {
            Change::Extent { start, crcs, .. } => (start, crcs),
            Change::Grow(blocks) if geometry.offset(blocks) > len => return Ok(false),
            _ => continue,
        };
        for (sum, index) in decode_crcs(crcs).zip(0..) {
            let block = start.saturating_add(index);
            let offset = geometry.offset(block);
            if offset.saturating_add(geometry.block()) > len {
                return Ok(false);
            }
            device
                .read_at(offset, &mut bytes)
                .map_err(Error::io("reading data the log refers to"))?;
            if crc(&bytes) != sum {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
