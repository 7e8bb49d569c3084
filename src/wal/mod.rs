//! The write-ahead log: a ring of chained frames.
//!
//! Records are appended to memory in operation order, then written: one `pwrite` takes along
//! everything that waits (group commit), one sync confirms it. Positions count bytes since mkfs and
//! are reduced modulo the ring only on the device.
//!
//! Invariants: a unit of the ring that holds a confirmed frame is not written again before the
//! checkpoint that retires it (I4): after a sync the next frame starts in a fresh unit. After the
//! first failed write or sync nothing is acknowledged any more (I10).

mod replay;

pub use replay::{Replay, replay};

use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::device::control::{Control, removed};
use crate::device::{Device, write_zeros};
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::format::checksum::{Digest, Keys};
use crate::format::wal::{FRAME_ALIGN, FRAME_MAGIC, FrameRecord, RECORD_HEADER, frame_len};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Number of an operation in the log, from 1; operations are totally ordered by it.
pub type Lsn = u64;

/// Frames written since the last sync are kept up to this many bytes, so that a sync can make just
/// their range durable; beyond it a sync takes the whole container along.
const UNSYNCED_MAX: usize = 256 << 10;
/// A frame takes along records up to about this many bytes of payload.
const FRAME_MAX: usize = 256 << 10;

/// A point of the log: everything before it is in the overlay that a checkpoint writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Position of the next frame.
    pub position: u64,
    /// Number of the next record.
    pub next: Lsn,
    /// What the next frame is chained to.
    pub chain: Digest,
}

/// What became of a wish to have a record written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is.
    Done,
    /// The ring is full: only a checkpoint can help.
    RingFull,
}

struct Inner {
    /// Records that no frame holds yet, each with its length before it.
    pending: Vec<u8>,
    pending_records: u32,
    /// Number of the first pending record.
    pending_first: Lsn,
    next: Lsn,
    /// Everything up to here is in the container file.
    written: Lsn,
    /// Everything up to here is durable.
    durable: Lsn,
    position: u64,
    /// Frames from here on are needed by the newest durable checkpoint.
    start: u64,
    chain: Digest,
    generation: u64,
    /// What was written since the last sync: device offset and bytes.
    unsynced: Vec<(u64, Vec<u8>)>,
    unsynced_len: usize,
    /// So many pieces of `unsynced` are before the mark of the checkpoint being written: once it is
    /// durable their place in the ring may hold newer frames, and they must not be written again.
    unsynced_frozen: usize,
    /// More was written since the last sync than `unsynced` holds.
    unsynced_lost: bool,
    /// A record refers to blocks that were written since the last full sync.
    bypass: bool,
    /// Records were dropped from `pending` because the checkpoint being written holds them: nothing
    /// after them may be acknowledged before it is durable.
    gap: bool,
    writing: bool,
    syncing: bool,
    /// Flushes that were begun.
    flushes: u64,
    failed: Option<String>,
}

/// The log of an open container.
pub struct Wal<D> {
    device: Arc<D>,
    geometry: Geometry,
    keys: Keys,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl<D: Device> Wal<D> {
    /// A log that goes on at `mark`; the newest durable checkpoint needs it from `start` on.
    pub fn new(
        device: Arc<D>,
        geometry: Geometry,
        keys: Keys,
        start: u64,
        mark: Mark,
        generation: u64,
    ) -> Self {
        let inner = Inner {
            pending: Vec::new(),
            pending_records: 0,
            pending_first: mark.next,
            next: mark.next,
            written: mark.next - 1,
            durable: mark.next - 1,
            position: mark.position,
            start,
            chain: mark.chain,
            generation,
            unsynced: Vec::new(),
            unsynced_len: 0,
            unsynced_frozen: 0,
            unsynced_lost: false,
            bypass: false,
            gap: false,
            writing: false,
            syncing: false,
            flushes: 0,
            failed: None,
        };
        Self {
            device,
            geometry,
            keys,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    /// The newest record.
    pub fn last(&self) -> Lsn {
        self.inner.lock().next - 1
    }

    /// The newest durable record.
    pub fn durable(&self) -> Lsn {
        self.inner.lock().durable
    }

    /// Bytes of the ring that the newest durable checkpoint still needs.
    pub fn live(&self) -> u64 {
        let inner = self.inner.lock();
        inner.position - inner.start + inner.pending.len() as u64
    }

    /// Whether a record of `len` bytes can be written without a checkpoint.
    pub fn fits(&self, len: usize) -> bool {
        let inner = self.inner.lock();
        let payload = inner.pending.len() + RECORD_HEADER + len;
        let unit = self.geometry.wal_unit();
        // Every frame may have to start in a fresh unit.
        let frames = (payload / FRAME_MAX) as u64 + 1;
        let position = inner.position.next_multiple_of(unit);
        let end = self.place(
            position,
            frame_len(payload) + frames * (unit + FRAME_ALIGN as u64),
        );
        end <= self.end_of_room(&inner)
    }

    /// Adds a record; `bypass` when it refers to blocks written since the last full sync.
    ///
    /// Called with operations serialised: the order of calls is the order of operations.
    pub fn append(&self, record: &[u8], bypass: bool) -> Lsn {
        let mut inner = self.inner.lock();
        inner.pending.extend_from_slice(
            &u32::try_from(record.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        inner.pending.extend_from_slice(record);
        inner.pending_records += 1;
        inner.bypass |= bypass;
        let lsn = inner.next;
        inner.next += 1;
        lsn
    }

    /// Returns when record `lsn` is in the container file.
    ///
    /// # Errors
    /// [`Error::Failed`] when the log has stopped, or stops now.
    pub fn persist(&self, lsn: Lsn) -> Result<Outcome> {
        let mut inner = self.inner.lock();
        loop {
            alive(&inner)?;
            if inner.written >= lsn {
                return Ok(Outcome::Done);
            }
            if inner.writing || inner.gap {
                self.changed.wait(&mut inner);
            } else if self.write_pending(&mut inner)? == Outcome::RingFull {
                return Ok(Outcome::RingFull);
            }
        }
    }

    /// Returns when all records up to `lsn` are durable.
    ///
    /// # Errors
    /// As [`Wal::persist`].
    pub fn sync(&self, lsn: Lsn) -> Result<Outcome> {
        let mut inner = self.inner.lock();
        loop {
            alive(&inner)?;
            if inner.durable >= lsn {
                return Ok(Outcome::Done);
            }
            if inner.syncing || inner.writing || inner.gap {
                self.changed.wait(&mut inner);
                continue;
            }
            if inner.written + 1 < inner.next
                && self.write_pending(&mut inner)? == Outcome::RingFull
            {
                return Ok(Outcome::RingFull);
            }
            if inner.syncing || inner.writing || inner.gap {
                continue;
            }
            self.sync_written(&mut inner)?;
        }
    }

    /// Returns when no flush is under way that was when it was called.
    ///
    /// The host may tell of what it could not write in the flush of another than who wrote it. Who has
    /// flushed may believe it only when those who flushed meanwhile were told of no failure.
    ///
    /// # Errors
    /// [`Error::Failed`] when the log has stopped.
    pub fn settled(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        let last = inner.flushes;
        while inner.syncing && inner.flushes == last && !removed(Control::FlushOfTheLog) {
            self.changed.wait(&mut inner);
        }
        alive(&inner)
    }

    /// Makes everything written durable: one sync for all who wait.
    fn sync_written(&self, inner: &mut MutexGuard<'_, Inner>) -> Result<()> {
        let target = inner.written;
        let mut whole = inner.bypass || inner.unsynced_lost;
        if removed(Control::FullFlushWithBypass) {
            whole = inner.unsynced_lost;
        }
        let pieces = std::mem::take(&mut inner.unsynced);
        inner.unsynced_len = 0;
        inner.unsynced_frozen = 0;
        inner.unsynced_lost = false;
        inner.bypass = false;
        // What comes now is not part of this sync, and must not share a unit with what is.
        if !removed(Control::FreshBlockAfterAck) {
            inner.position = inner.position.next_multiple_of(self.geometry.wal_unit());
        }
        inner.syncing = true;
        inner.flushes += 1;
        let result: std::io::Result<_> = MutexGuard::unlocked(inner, || {
            if removed(Control::FlushOnFsync) {
                Ok(())
            } else if whole {
                self.device.sync()
            } else {
                pieces
                    .iter()
                    .try_for_each(|(offset, bytes)| self.device.write_durable_at(*offset, bytes))
            }
        });
        inner.syncing = false;
        match result {
            Ok(()) => inner.durable = inner.durable.max(target),
            Err(error) => self.stop(inner, format!("syncing the log: {error}")),
        }
        self.changed.notify_all();
        alive(inner)
    }

    /// Frames and writes everything pending. The caller has seen that nobody else is writing.
    fn write_pending(&self, inner: &mut MutexGuard<'_, Inner>) -> Result<Outcome> {
        if inner.pending.is_empty() {
            return Ok(Outcome::Done);
        }
        let limit = self.end_of_room(inner);
        let mut writer = Framer {
            geometry: self.geometry,
            keys: &self.keys,
            generation: inner.generation,
            durable: inner.durable,
            position: inner.position,
            chain: inner.chain,
            next: inner.pending_first,
            pieces: Vec::new(),
        };
        let pending = std::mem::take(&mut inner.pending);
        let (records, last) = (std::mem::take(&mut inner.pending_records), inner.next - 1);
        let first = inner.pending_first;
        inner.pending_first = inner.next;
        inner.writing = true;
        let result: std::io::Result<_> = MutexGuard::unlocked(inner, || {
            if !writer.frame_all(&pending, limit) {
                return Ok(Outcome::RingFull);
            }
            let base = self.geometry.wal_offset();
            for (at, bytes) in &writer.pieces {
                self.device.write_at(base + at, bytes)?;
            }
            Ok(Outcome::Done)
        });
        inner.writing = false;
        let outcome = match result {
            Ok(Outcome::Done) => {
                inner.position = writer.position;
                inner.chain = writer.chain;
                inner.written = last;
                for (at, bytes) in writer.pieces {
                    inner.keep_unsynced(self.geometry.wal_offset() + at, bytes);
                }
                Outcome::Done
            }
            Ok(Outcome::RingFull) => {
                // Back in front of what was appended meanwhile.
                let later = std::mem::replace(&mut inner.pending, pending);
                inner.pending.extend_from_slice(&later);
                inner.pending_records += records;
                inner.pending_first = first;
                Outcome::RingFull
            }
            Err(error) => {
                self.stop(inner, format!("writing the log: {error}"));
                Outcome::Done
            }
        };
        self.changed.notify_all();
        alive(inner)?;
        Ok(outcome)
    }

    /// The point up to which a checkpoint takes everything along. Called with operations stopped.
    ///
    /// What is pending is written, so that it survives a kill while the checkpoint is being built; if
    /// the ring is full it is left to the checkpoint alone, and nothing is acknowledged until then.
    ///
    /// What is before it can be wiped if it is to be `apart`: no unit holds frames of before and after.
    ///
    /// # Errors
    /// As [`Wal::persist`].
    pub fn freeze(&self, apart: bool) -> Result<Mark> {
        let mut inner = self.inner.lock();
        while inner.writing {
            self.changed.wait(&mut inner);
        }
        alive(&inner)?;
        if self.write_pending(&mut inner)? == Outcome::RingFull {
            inner.pending.clear();
            inner.pending_records = 0;
            inner.pending_first = inner.next;
            inner.gap = true;
        }
        if apart {
            inner.position = inner.position.next_multiple_of(self.geometry.wal_unit());
        }
        inner.unsynced_frozen = inner.unsynced.len();
        Ok(Mark {
            position: inner.position,
            next: inner.next,
            chain: inner.chain,
        })
    }

    /// The checkpoint of `mark` is durable as `generation`: what was before it is retired.
    pub fn retire(&self, mark: &Mark, generation: u64) {
        let mut inner = self.inner.lock();
        inner.start = mark.position;
        inner.generation = generation;
        inner.forget_frozen();
        inner.written = inner.written.max(mark.next - 1);
        inner.durable = inner.durable.max(mark.next - 1);
        inner.gap = false;
        self.changed.notify_all();
    }

    /// The newest superblock is of `generation` and names the same checkpoint as the one before.
    pub fn renew(&self, generation: u64) {
        self.inner.lock().generation = generation;
    }

    /// Overwrites what frames before `mark`, whose checkpoint is durable and not yet retired, left in
    /// the ring; `all` that earlier lives left there, too.
    ///
    /// # Errors
    /// [`Error::Failed`] when the log has stopped, or stops now.
    pub fn wipe(&self, mark: &Mark, all: bool) -> Result<()> {
        let (ring, unit) = (self.geometry.wal_len, self.geometry.wal_unit());
        let mut inner = self.inner.lock();
        inner.forget_frozen();
        // A sync under way may write once more what stands before the mark.
        while inner.syncing || (all && inner.writing) {
            self.changed.wait(&mut inner);
        }
        alive(&inner)?;
        let range = match all {
            true => inner.position.next_multiple_of(unit)..mark.position + ring,
            false => inner.start / unit * unit..mark.position,
        };
        // What is not in use must not come into use meanwhile.
        inner.writing |= all;
        let result = MutexGuard::unlocked(&mut inner, || {
            let wrap = range.end / ring * ring;
            let parts = match range.start < wrap {
                true => [range.start..wrap, wrap..range.end],
                false => [range.clone(), 0..0],
            };
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                let at = self.geometry.wal_offset() + part.start % ring;
                write_zeros(&*self.device, at..at + (part.end - part.start))?;
            }
            self.device.sync()
        });
        if all {
            inner.writing = false;
        }
        if let Err(error) = result {
            self.stop(&mut inner, format!("wiping the log: {error}"));
        }
        self.changed.notify_all();
        alive(&inner)
    }

    /// Stops acknowledging for good.
    pub fn fail(&self, why: &str) {
        let mut inner = self.inner.lock();
        self.stop(&mut inner, why.to_owned());
    }

    /// Why the log stopped.
    pub fn failure(&self) -> Option<String> {
        self.inner.lock().failed.clone()
    }

    fn stop(&self, inner: &mut Inner, why: String) {
        inner.failed.get_or_insert(why);
        self.changed.notify_all();
    }

    /// First position that must not be written: the unit where the live frames begin, a ring later.
    fn end_of_room(&self, inner: &Inner) -> u64 {
        if removed(Control::WalRetirement) {
            return u64::MAX;
        }
        let unit = self.geometry.wal_unit();
        inner.start / unit * unit + self.geometry.wal_len
    }

    /// End of `len` bytes placed at `position`, or at the ring's start when they would wrap.
    fn place(&self, position: u64, len: u64) -> u64 {
        start_of(position, len, self.geometry.wal_len) + len
    }
}

impl Inner {
    /// What is before the mark of a checkpoint that is durable need not be written again.
    fn forget_frozen(&mut self) {
        let frozen = std::mem::take(&mut self.unsynced_frozen);
        self.unsynced.drain(..frozen);
        self.unsynced_len = self.unsynced.iter().map(|(_, bytes)| bytes.len()).sum();
    }

    fn keep_unsynced(&mut self, offset: u64, bytes: Vec<u8>) {
        self.unsynced_len += bytes.len();
        if self.unsynced_lost || self.unsynced_len > UNSYNCED_MAX {
            self.unsynced_lost = true;
            self.unsynced.clear();
            self.unsynced_frozen = 0;
            return;
        }
        match self
            .unsynced
            .get_mut(self.unsynced_frozen..)
            .and_then(<[_]>::last_mut)
        {
            Some((at, last)) if *at + last.len() as u64 == offset => last.extend_from_slice(&bytes),
            _ => self.unsynced.push((offset, bytes)),
        }
    }
}

fn alive(inner: &Inner) -> Result<()> {
    inner
        .failed
        .as_ref()
        .map_or(Ok(()), |why| Err(Error::Failed(why.clone())))
}

/// Where `len` bytes start that shall stand at `position` but not wrap in a ring of `ring` bytes.
fn start_of(position: u64, len: u64, ring: u64) -> u64 {
    if position % ring + len > ring {
        position.next_multiple_of(ring)
    } else {
        position
    }
}

/// Builds frames one after another.
struct Framer<'a> {
    geometry: Geometry,
    keys: &'a Keys,
    generation: u64,
    durable: Lsn,
    position: u64,
    chain: Digest,
    next: Lsn,
    /// Offset in the ring, and bytes.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Framer<'_> {
    /// Frames all records of `pending`; false when they do not fit below `limit`.
    fn frame_all(&mut self, mut pending: &[u8], limit: u64) -> bool {
        while !pending.is_empty() {
            let (mut len, mut records) = (0, 0);
            while let Some((header, _)) =
                pending.get(len..).and_then(|p| p.split_first_chunk::<4>())
            {
                let record = RECORD_HEADER + u32::from_le_bytes(*header) as usize;
                if records > 0 && len + record > FRAME_MAX {
                    break;
                }
                len += record;
                records += 1;
            }
            let Some((payload, rest)) = pending.split_at_checked(len).filter(|_| len > 0) else {
                return false;
            };
            if !self.frame(payload, records, limit) {
                return false;
            }
            pending = rest;
        }
        true
    }

    fn frame(&mut self, payload: &[u8], records: u32, limit: u64) -> bool {
        let len = frame_len(payload.len());
        let ring = self.geometry.wal_len;
        let start = start_of(self.position, len, ring);
        if len > ring || start + len > limit {
            return false;
        }
        let mut header = FrameRecord {
            magic: FRAME_MAGIC.into(),
            len: (payload.len() as u32).into(),
            lsn: self.next.into(),
            generation: self.generation.into(),
            unconfirmed: u32::try_from((self.next - 1).saturating_sub(self.durable))
                .unwrap_or(u32::MAX)
                .into(),
            records: records.into(),
            previous: self.chain,
            digest: Digest::default(),
        };
        header.digest = header.seal(self.keys, payload);
        let at = start % ring;
        let piece = match self.pieces.last_mut() {
            Some((offset, piece)) if *offset + piece.len() as u64 == at => piece,
            _ => {
                self.pieces.push((at, Vec::with_capacity(len as usize)));
                match self.pieces.last_mut() {
                    Some((_, piece)) => piece,
                    None => return false,
                }
            }
        };
        piece.extend_from_slice(header.as_bytes());
        piece.extend_from_slice(payload);
        piece.resize(piece.len().next_multiple_of(FRAME_ALIGN), 0);
        self.position = start + len;
        self.chain = header.digest;
        self.next += u64::from(records);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    fn log(wal_len: u64) -> Wal<MemoryDevice> {
        let geometry = Geometry {
            block_size: 4096,
            spacing: 4096,
            wal_len,
        };
        let mark = Mark {
            position: 0,
            next: 1,
            chain: Digest::default(),
        };
        let device = Arc::new(MemoryDevice::new());
        Wal::new(device, geometry, Keys::derive(&[7; 32]), 0, mark, 1)
    }

    /// So much as is written between two syncs is kept to be written once more, and no more than that.
    #[test]
    fn what_is_kept_until_a_sync_is_bounded() {
        let log = log(4 << 20);
        let kept = |log: &Wal<MemoryDevice>| {
            let inner = log.inner.lock();
            let held: usize = inner.unsynced.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(held <= UNSYNCED_MAX, "{held}");
            (held > 0, inner.unsynced_lost)
        };
        let mut lsn = 0;
        for written in (0..2 * UNSYNCED_MAX).step_by(10_000) {
            lsn = log.append(&[1; 10_000], false);
            assert_eq!(log.persist(lsn).unwrap(), Outcome::Done);
            let all = written + 20_000 < UNSYNCED_MAX;
            if all || written > UNSYNCED_MAX {
                assert_eq!(kept(&log), (all, !all), "{written}");
            }
        }
        assert_eq!(log.sync(lsn).unwrap(), Outcome::Done);
        assert_eq!((kept(&log), log.durable()), ((false, false), lsn));
    }

    #[test]
    fn what_fits_can_be_written_and_little_is_left_when_nothing_does() {
        for len in [100, 1_000, 20_000] {
            let log = log(256 << 10);
            let mut records = 0;
            while log.fits(len) {
                let lsn = log.append(&vec![1; len], false);
                assert_eq!(
                    log.persist(lsn).unwrap(),
                    Outcome::Done,
                    "{records} of {len}"
                );
                records += 1;
            }
            assert!(records * len > 128 << 10, "{records} of {len}");
        }
    }

    #[test]
    fn a_log_that_stopped_acknowledges_nothing() {
        let log = log(1 << 20);
        let first = log.append(&[1; 100], false);
        log.sync(first).unwrap();
        log.fail("a test");
        log.fail("another");
        assert_eq!(log.failure().as_deref(), Some("a test"));
        let lsn = log.append(&[1; 100], false);
        assert!(matches!(log.persist(lsn), Err(Error::Failed(_))));
        assert!(matches!(log.sync(lsn), Err(Error::Failed(_))));
        assert!(matches!(log.settled(), Err(Error::Failed(_))));
    }

    #[test]
    fn what_is_live_grows_with_records_and_goes_with_a_checkpoint() {
        let log = log(1 << 20);
        assert_eq!(log.live(), 0);
        let mut before = 0;
        for _ in 0..3 {
            let lsn = log.append(&[1; 1_000], false);
            assert!(log.live() >= before + 1_000, "{}", log.live());
            log.persist(lsn).unwrap();
            assert!(log.live() >= before + 1_000, "{}", log.live());
            before = log.live();
        }
        let mark = log.freeze(false).unwrap();
        log.retire(&mark, 2);
        assert!(log.live() < 4_096, "{}", log.live());
    }
}
