//! Content: reading, writing, cutting off, reserving, finding holes.
//!
//! A container of copies cannot keep blocks free for a range that is overwritten later, so
//! `fallocate(2)` reserves nothing beyond the size, as on btrfs: it checks that the room is there
//! and extends the file. Punching writes zeros, and a checkpoint keeps no block that is all zeros.

use super::inode::{Inode, load, save};
use super::types::Caller;
use crate::cask::{Cask, Read, Staged, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::FLAG_SPARSE;
use crate::format::key::Number;
use crate::limits::FILE_SIZE_MAX;

/// Zeros written at a time when a range is punched.
const PUNCH_CHUNK: u64 = 1 << 20;

/// Reads up to `size` bytes at `offset` into `buf`, which is cleared first; fewer at the end.
///
/// # Errors
/// Those of reading; [`Error::Corrupt`] where the content does not verify.
pub fn read(r: &impl Read, inode: &Inode, offset: u64, size: u32, buf: &mut Vec<u8>) -> Result<()> {
    buf.clear();
    let left = inode.size.saturating_sub(offset);
    let len = usize::try_from(left.min(u64::from(size))).unwrap_or(usize::MAX);
    buf.resize(len, 0);
    r.read_content(inode.content, offset, buf)
}

/// The end of `len` bytes at `offset`.
///
/// # Errors
/// [`Error::FileTooLarge`].
pub fn end_of(offset: u64, len: u64) -> Result<u64> {
    offset
        .checked_add(len)
        .filter(|end| *end <= FILE_SIZE_MAX)
        .ok_or(Error::FileTooLarge { max: FILE_SIZE_MAX })
}

/// Records that `staged`, which holds `len` bytes at `offset`, is written to the file.
///
/// # Errors
/// [`Error::FileTooLarge`]; those of writing.
pub fn write<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    inode: &mut Inode,
    offset: u64,
    len: u64,
    staged: &Staged<'_>,
    now: Timestamp,
) -> Result<()> {
    grown(tx, caller, inode, offset, len, now)?;
    tx.write_staged(inode.content, staged);
    save(tx, inode)
}

/// Records that `data` is written at `offset`, all of it through the log.
///
/// # Errors
/// As [`write`].
pub fn write_bytes<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    inode: &mut Inode,
    offset: u64,
    data: &[u8],
    now: Timestamp,
) -> Result<()> {
    grown(tx, caller, inode, offset, data.len() as u64, now)?;
    tx.write(inode.content, offset, data);
    save(tx, inode)
}

/// Changes size, times and bits of an inode to which `len` bytes at `offset` are written.
fn grown(
    r: &impl Read,
    caller: &Caller,
    inode: &mut Inode,
    offset: u64,
    len: u64,
    now: Timestamp,
) -> Result<()> {
    let end = end_of(offset, len)?;
    let block = u64::from(r.block_size());
    if offset / block > inode.size.div_ceil(block) {
        inode.flags |= FLAG_SPARSE;
    }
    inode.size = inode.size.max(end);
    (inode.mtime, inode.ctime) = (now, now);
    inode.drop_set_id(caller);
    Ok(())
}

/// Sets the size: less cuts off, more appends zeros.
///
/// # Errors
/// [`Error::FileTooLarge`]; those of writing.
pub fn truncate<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    inode: &mut Inode,
    size: u64,
    now: Timestamp,
) -> Result<()> {
    end_of(size, 0)?;
    if size < inode.size {
        tx.truncate(inode.content, size);
        if size == 0 {
            inode.flags &= !FLAG_SPARSE;
        }
    } else if size > inode.size {
        inode.flags |= FLAG_SPARSE;
    }
    inode.size = size;
    (inode.mtime, inode.ctime) = (now, now);
    inode.drop_set_id(caller);
    save(tx, inode)
}

/// First offset at or after `offset` that holds data, or the first that does not.
///
/// # Errors
/// [`Error::NoSuchOffset`] at or past the end, and where no data follows.
pub fn seek(r: &impl Read, inode: &Inode, offset: u64, data: bool) -> Result<u64> {
    if offset >= inode.size {
        return Err(Error::NoSuchOffset);
    }
    if inode.flags & FLAG_SPARSE == 0 {
        return Ok(if data { offset } else { inode.size });
    }
    if data {
        r.next_data(inode.content, offset)?
            .filter(|at| *at < inode.size)
            .ok_or(Error::NoSuchOffset)
    } else {
        Ok(r.next_hole(inode.content, offset)?.min(inode.size))
    }
}

/// `fallocate(2)`.
///
/// # Errors
/// [`Error::NotSupported`] for collapsing, inserting and unsharing; [`Error::NoSpace`] when the
/// range could not be written; [`Error::Invalid`]; [`Error::FileTooLarge`].
pub fn allocate<D: Device>(
    cask: &Cask<D>,
    caller: &Caller,
    number: Number,
    mode: i32,
    offset: u64,
    len: u64,
    now: Timestamp,
) -> Result<()> {
    use crate::cask::Class;
    let end = end_of(offset, len)?;
    if len == 0 {
        return Err(Error::invalid("a range of no bytes"));
    }
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let clear = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
    let known = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
    if mode & !known != 0 {
        return Err(Error::NotSupported("this kind of fallocate"));
    }
    if clear {
        let zeros = vec![0; PUNCH_CHUNK as usize];
        let mut at = offset;
        let stop = end.min(load(cask, number)?.size);
        while at < stop {
            let take = (stop - at).min(PUNCH_CHUNK);
            let zeros = zeros.get(..take as usize).unwrap_or_default();
            let staged = cask.stage(at, zeros)?;
            cask.transact(Class::Grow, |tx| {
                let mut inode = load(tx, number)?;
                write(tx, caller, &mut inode, at, take, &staged, now)?;
                inode.flags |= FLAG_SPARSE;
                save(tx, &inode)
            })?;
            at += take;
        }
    } else {
        let inode = load(cask, number)?;
        let wanted = end
            .saturating_sub(inode.size.max(offset))
            .div_ceil(u64::from(cask.block_size()));
        if wanted > cask.stats().free_blocks {
            return Err(Error::NoSpace);
        }
    }
    if !keep_size {
        cask.transact(Class::Grow, |tx| {
            let mut inode = load(tx, number)?;
            if end > inode.size {
                truncate(tx, caller, &mut inode, end, now)
            } else {
                Ok(())
            }
        })?;
    }
    Ok(())
}
