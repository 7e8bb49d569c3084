//! Content: reading, writing, cutting off, reserving, finding holes.
//!
//! What `fallocate(2)` can promise: a container that never overwrites live blocks cannot keep some
//! free for a range that is written later, so reserving checks that the room is there now and extends
//! the file with a hole, as on btrfs and ZFS. Punching up to the end is a cut that keeps the size, one
//! operation that always goes through. Punching elsewhere writes zeros over what is data, through the
//! log: a checkpoint keeps no block that is all zeros, so the blocks come back with the next one; on
//! a cask without any room it may be refused. What is more than the log takes at a time is several
//! operations.

use std::ops::Range;

use super::inode::{Inode, data_blocks, load, save};
use super::types::Caller;
use crate::cask::{Cask, Class, Read, Staged, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::FLAG_SPARSE;
use crate::format::key::Number;
use crate::limits::FILE_SIZE_MAX;

/// Checks that the inode has bytes to read and write.
///
/// # Errors
/// [`Error::IsDirectory`]; [`Error::Invalid`] for devices, pipes and links.
pub fn check_regular(inode: &Inode) -> Result<()> {
    match inode.kind() {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Error::IsDirectory),
        _ => Err(Error::invalid("only a regular file has bytes and a size")),
    }
}

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

/// Records that `staged`, which holds `len` bytes at `offset`, is written to the file. Writing nothing
/// changes nothing.
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
    if len == 0 {
        return Ok(());
    }
    grown(tx, caller, inode, offset, len, now)?;
    tx.write_staged(inode.content, staged);
    save(tx, inode)
}

/// Records that `data` is written at `offset`, all of it through the log.
///
/// # Errors
/// As `write`.
pub fn write_bytes<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    inode: &mut Inode,
    offset: u64,
    data: &[u8],
    now: Timestamp,
) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    grown(tx, caller, inode, offset, data.len() as u64, now)?;
    tx.write(inode.content, offset, data);
    save(tx, inode)
}

/// Blocks that so many bytes take.
fn blocks(r: &impl Read, bytes: u64) -> u64 {
    bytes.div_ceil(u64::from(r.block_size()))
}

/// Whether every block that the range touches holds data already, so that writing it takes no more.
///
/// # Errors
/// Those of reading.
pub fn holds(r: &impl Read, inode: &Inode, range: Range<u64>) -> Result<bool> {
    let touched = blocks(r, range.end) - range.start / u64::from(r.block_size());
    Ok(range.end <= inode.size && data_blocks(r, inode.content, range)? == touched)
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
    if offset / u64::from(r.block_size()) > blocks(r, inode.size) {
        inode.flags |= FLAG_SPARSE;
    }
    inode.size = inode.size.max(end);
    touched(inode, caller, now);
    Ok(())
}

/// Changes times and bits of an inode whose content changes.
fn touched(inode: &mut Inode, caller: &Caller, now: Timestamp) {
    (inode.mtime, inode.ctime) = (now, now);
    inode.drop_set_id(caller);
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
    } else if blocks(tx, size) > blocks(tx, inode.size) {
        inode.flags |= FLAG_SPARSE;
    }
    inode.size = size;
    touched(inode, caller, now);
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
/// range could not be written; [`Error::Invalid`]; [`Error::FileTooLarge`]; as [`check_regular`].
pub fn allocate<D: Device>(
    cask: &Cask<D>,
    caller: &Caller,
    number: Number,
    mode: i32,
    offset: u64,
    len: u64,
    now: Timestamp,
) -> Result<()> {
    if len == 0 {
        return Err(Error::invalid("a range of no bytes"));
    }
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let clears = match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => false,
        libc::FALLOC_FL_ZERO_RANGE => true,
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
        _ => return Err(Error::NotSupported("this kind of fallocate")),
    };
    let end = end_of(offset, len)?;
    check_regular(&load(cask, number)?)?;
    if clears {
        clear(cask, caller, number, offset..end, now)?;
    } else {
        check_room(cask, &load(cask, number)?, offset..end)?;
    }
    cask.transact(Class::Grow, |tx| {
        let mut inode = load(tx, number)?;
        if end > inode.size && !keep_size {
            truncate(tx, caller, &mut inode, end, now)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Checks that the blocks of a range that hold no data yet could be written now.
fn check_room<D: Device>(cask: &Cask<D>, inode: &Inode, range: Range<u64>) -> Result<()> {
    let held = if inode.flags & FLAG_SPARSE != 0 {
        data_blocks(cask, inode.content, range.clone())?
    } else {
        let inside = range.end.min(inode.size).max(range.start);
        blocks(cask, inside) - range.start / u64::from(cask.block_size())
    };
    let all = blocks(cask, range.end) - range.start / u64::from(cask.block_size());
    let wanted = all.saturating_sub(held);
    if wanted > cask.stats().free_blocks {
        // What was deleted lately counts, too.
        cask.settle()?;
        if wanted > cask.stats().free_blocks {
            return Err(Error::NoSpace);
        }
    }
    Ok(())
}

/// Makes a range read as zeros, and gives back what it takes; the size stays.
fn clear<D: Device>(
    cask: &Cask<D>,
    caller: &Caller,
    number: Number,
    range: Range<u64>,
    now: Timestamp,
) -> Result<()> {
    // Zeros in one operation: they go through the log, where no larger writes go than these.
    let zeros = vec![0; cask.geometry().bypass_min() as usize / 2];
    let block = u64::from(cask.block_size());
    let mut next = Some(range.start);
    while let Some(start) = next {
        let cuts = range.end >= load(cask, number)?.size;
        let class = if cuts { Class::Release } else { Class::Grow };
        (next, _) = cask.transact(class, |tx| {
            let mut inode = load(tx, number)?;
            if cuts != (range.end >= inode.size) {
                // The file has another size by now.
                return Ok(Some(start));
            }
            if start >= inode.size {
                // As ext4: beyond the end there is nothing to do, not even to the time.
                return Ok(None);
            }
            let mut at = start;
            let mut left = zeros.len() as u64;
            if cuts {
                tx.truncate(inode.content, start);
                inode.flags |= FLAG_SPARSE;
            } else {
                while left > 0
                    && let Some(data) = tx
                        .next_data(inode.content, at)?
                        .filter(|data| *data < range.end)
                {
                    // All of the rest, or up to the end of a block, so that none is written twice.
                    let end = match range.end - data <= left {
                        true => range.end,
                        false => ((data + left) / block * block).max(data + 1),
                    };
                    at = tx.next_hole(inode.content, data)?.clamp(data + 1, end);
                    let len = at - data;
                    tx.write(
                        inode.content,
                        data,
                        zeros.get(..len as usize).unwrap_or_default(),
                    );
                    inode.flags |= FLAG_SPARSE;
                    left = if end == at { 0 } else { left - len };
                }
            }
            touched(&mut inode, caller, now);
            save(tx, &inode)?;
            Ok((left == 0 && at < range.end).then_some(at))
        })?;
    }
    Ok(())
}
