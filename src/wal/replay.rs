//! Reading the log after a crash.
//!
//! Frames are followed while number, chain and digest hold. What follows a break is a torn tail, and
//! not damage, unless a later frame says that the break was durable already.

use zerocopy::FromBytes;

use super::{Lsn, Mark, start_of};
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::format::checksum::Keys;
use crate::format::wal::{FRAME_ALIGN, FRAME_MAGIC, FrameRecord, frame_len};

/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// What the log holds after the newest checkpoint.
#[derive(Debug)]
pub struct Replay {
    /// Payloads in order, each with the number of its first record.
    pub frames: Vec<(Lsn, Vec<u8>)>,
    /// Everything up to here was durable: it must be there.
    pub durable: Lsn,
    /// Where the chain ends.
    pub end: Mark,
    /// A record that was durable is not there any more: its number.
    pub lost: Option<Lsn>,
    /// There are frames after the end, whole or torn, that are not believed.
    pub rejected: bool,
}

/// Follows the chain from `mark`, written after checkpoint `generation`; if `forgiving`, also where frames show
/// that there was a newer one.
///
/// # Errors
/// [`Error::Corrupt`] when a frame shows that a newer checkpoint existed; I/O errors.
pub fn replay<D: Device>(
    device: &D,
    geometry: Geometry,
    keys: &Keys,
    mark: Mark,
    generation: u64,
    forgiving: bool,
) -> Result<Replay> {
    let mut ring = Ring {
        device,
        geometry,
        buffer: Vec::new(),
        at: 0,
    };
    let mut out = Replay {
        frames: Vec::new(),
        durable: mark.next - 1,
        end: mark,
        lost: None,
        rejected: false,
    };
    let limit = mark.position / geometry.wal_unit() * geometry.wal_unit() + geometry.wal_len;
    loop {
        // A frame follows at once, in a fresh unit after a sync, or at the ring's start.
        let here = out.end.position;
        let fresh = here.next_multiple_of(geometry.wal_unit());
        let starts = [here, fresh, here.next_multiple_of(geometry.wal_len)];
        let mut found = None;
        for (index, start) in starts.iter().enumerate() {
            if starts.iter().take(index).any(|s| s == start) {
                continue;
            }
            if let Some(frame) = ring.frame(keys, *start, limit)?
                && continues(&frame.0, &out.end)
            {
                found = Some((*start, frame));
                break;
            }
        }
        let Some((start, (header, payload))) = found else {
            break;
        };
        if header.generation.get() > generation && !forgiving {
            return Err(Error::corrupt(
                format!(
                    "a log frame of checkpoint {} where the newest superblock is of {generation}: the newer superblock is lost",
                    header.generation.get()
                ),
                geometry.wal_offset() + start % geometry.wal_len,
            ));
        }
        if header.lsn.get() != out.end.next {
            break;
        }
        out.durable = out.durable.max(header.confirmed().saturating_sub(1));
        out.frames.push((out.end.next, payload));
        out.end = Mark {
            position: start + frame_len(header.len.get() as usize),
            next: out.end.next + u64::from(header.records.get()),
            chain: header.digest,
        };
    }
    ring.look_beyond(keys, &mut out)?;
    Ok(out)
}

/// Whether the frame is chained to `end`.
fn continues(header: &FrameRecord, end: &Mark) -> bool {
    header.previous == end.chain || (removed(Control::DigestChain) && header.lsn.get() == end.next)
}

struct Ring<'a, D> {
    device: &'a D,
    geometry: Geometry,
    buffer: Vec<u8>,
    /// Offset in the ring of the buffer.
    at: u64,
}

impl<D: Device> Ring<'_, D> {
    /// `len` bytes at `offset` of the ring; `None` when they would leave it.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<Option<&[u8]>> {
        let end = offset.saturating_add(len);
        if end > self.geometry.wal_len {
            return Ok(None);
        }
        if offset < self.at || end > self.at + self.buffer.len() as u64 {
            let take = len.max(CHUNK).min(self.geometry.wal_len - offset);
            self.buffer.resize(take as usize, 0);
            self.at = offset;
            self.device
                .read_at(self.geometry.wal_offset() + offset, &mut self.buffer)
                .map_err(Error::io("reading the log"))?;
        }
        let from = (offset - self.at) as usize;
        Ok(self.buffer.get(from..from + len as usize))
    }

    /// The frame at a position, if one stands there whose digest verifies.
    fn frame(
        &mut self,
        keys: &Keys,
        position: u64,
        limit: u64,
    ) -> Result<Option<(FrameRecord, Vec<u8>)>> {
        let ring = self.geometry.wal_len;
        let offset = position % ring;
        let Some(bytes) = self.bytes(offset, FRAME_ALIGN as u64)? else {
            return Ok(None);
        };
        let Ok(header) = FrameRecord::read_from_bytes(bytes) else {
            return Ok(None);
        };
        let len = frame_len(header.len.get() as usize);
        let fits =
            start_of(position, len, ring) == position && position.saturating_add(len) <= limit;
        if header.magic.get() != FRAME_MAGIC || header.len.get() == 0 || !fits {
            return Ok(None);
        }
        let Some(bytes) = self.bytes(offset, FRAME_ALIGN as u64 + u64::from(header.len.get()))?
        else {
            return Ok(None);
        };
        let payload = bytes.get(FRAME_ALIGN..).unwrap_or_default();
        if header.seal(keys, payload) != header.digest {
            return Ok(None);
        }
        Ok(Some((header, payload.to_vec())))
    }

    /// Looks through the whole ring for frames after the end: one that calls the end durable shows
    /// that durable records are lost.
    fn look_beyond(&mut self, keys: &Keys, out: &mut Replay) -> Result<()> {
        let mut offset = 0;
        while offset < self.geometry.wal_len {
            let Some(bytes) = self.bytes(offset, FRAME_ALIGN as u64)? else {
                break;
            };
            let later = FrameRecord::read_from_bytes(bytes)
                .is_ok_and(|h| h.magic.get() == FRAME_MAGIC && h.lsn.get() >= out.end.next);
            if later {
                // Torn or not: what its body lacks could come to stand there yet, zeros for instance.
                out.rejected = true;
                if let Some((header, _)) = self.frame(keys, offset, u64::MAX)?
                    && header.confirmed() > out.end.next
                {
                    out.lost = Some(out.end.next);
                    out.durable = out.durable.max(header.confirmed() - 1);
                }
            }
            offset += FRAME_ALIGN as u64;
        }
        Ok(())
    }
}
