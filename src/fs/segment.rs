//! Which files are segments of which log.
//!
//! A segment is marked when it is cut: an item of the directory that the cut was made in names it and
//! the log, and its inode names the directory. So it is known wherever it is moved and whatever it is
//! called, and its mark goes with it. Invariant: an inode has a home if and only if the item is there.
//!
//! Segments of a log are listed by the number of their inodes, which is the order in which they were
//! made and so that in which they were cut. Directories with segments are listed as well, so that all
//! segments of a cask can be found.

use zerocopy::IntoBytes;

use super::inode::{Inode, save};
use crate::cask::{Read, Tx};
use crate::device::Device;
use crate::error::Result;
use crate::format::item::SegmentRecord;
use crate::format::key::{INDEX, Number};
use crate::format::{Key, Kind};

/// Marks a file as a segment of a log of `home`.
///
/// # Errors
/// Those of writing.
pub fn mark<D: Device>(
    tx: &mut Tx<'_, D>,
    inode: &mut Inode,
    home: Number,
    record: &SegmentRecord,
) -> Result<()> {
    forget(tx, inode);
    inode.home = home;
    if tx.get(&listing(home))?.is_none() {
        tx.put(listing(home), [].as_slice())?;
    }
    tx.put(key(home, inode.number), record.as_bytes())?;
    save(tx, inode)
}

/// Takes the mark of a segment, if there is one.
///
/// # Errors
/// Those of writing.
pub fn unmark<D: Device>(tx: &mut Tx<'_, D>, inode: &mut Inode) -> Result<()> {
    if inode.home == 0 {
        return Ok(());
    }
    forget(tx, inode);
    inode.home = 0;
    save(tx, inode)
}

/// Takes the mark of an inode that goes.
pub(super) fn forget<D: Device>(tx: &mut Tx<'_, D>, inode: &Inode) {
    if inode.home != 0 {
        tx.del(key(inode.home, inode.number));
    }
}

/// The segments of a log of this directory, oldest first.
///
/// # Errors
/// Those of reading.
pub fn of_log(r: &impl Read, home: Number, log: &[u8]) -> Result<Vec<(Number, SegmentRecord)>> {
    let (mut found, log) = (Vec::new(), r.name_hash(log));
    r.scan(key(home, 0), key(home, Number::MAX), &mut |key, value| {
        let record = SegmentRecord::decode(value)?;
        if record.log.get() == log {
            found.push((key.offset, record));
        }
        Ok(true)
    })?;
    Ok(found)
}

/// The directories that have segments, and such that had.
///
/// # Errors
/// Those of reading.
pub fn homes(r: &impl Read) -> Result<Vec<Number>> {
    let mut found = Vec::new();
    r.scan(listing(0), listing(Number::MAX), &mut |key, _| {
        found.push(key.offset);
        Ok(true)
    })?;
    Ok(found)
}

/// The segments of all logs of this directory, from number `first` on.
///
/// # Errors
/// Those of reading.
pub fn all(r: &impl Read, home: Number, first: Number) -> Result<Vec<Number>> {
    let mut found = Vec::new();
    r.scan(key(home, first), key(home, Number::MAX), &mut |key, _| {
        found.push(key.offset);
        Ok(true)
    })?;
    Ok(found)
}

/// Takes a directory from the list if it has no segments any more.
///
/// # Errors
/// Those of reading.
pub fn unlist<D: Device>(tx: &mut Tx<'_, D>, home: Number) -> Result<()> {
    if all(tx, home, 0)?.is_empty() {
        tx.del(listing(home));
    }
    Ok(())
}

fn listing(home: Number) -> Key {
    Key::new(INDEX, Kind::Home, home)
}

fn key(home: Number, segment: Number) -> Key {
    Key::new(home, Kind::Segment, segment)
}
