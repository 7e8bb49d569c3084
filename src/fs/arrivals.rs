//! In what order records came to the logs of a directory.
//!
//! Appends are not numbered: a mark is written only when another file is appended to than the time
//! before, and says how long that one was then. So a log that is written alone costs nothing, and what
//! lies between two marks of a file came in one piece. Marks stand in contents of their own, a part of
//! the order in each; a part whose files are all gone, or were truncated since, goes as a whole when a
//! new one is begun.
//! Invariant: the marks of a part stand from its beginning without a gap.

use std::collections::HashSet;

use zerocopy::{FromBytes, IntoBytes};

use super::inode::load;
use crate::cask::{Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::{ArrivalsRecord, MarkRecord};
use crate::format::key::Number;
use crate::format::{Key, Kind};

/// Marks in a part.
const PART_MARKS: u64 = 65_536;
/// Marks that are read at a time.
const STEP: u64 = 4096;
/// Parts, from the oldest on, that are looked at when a new one is begun.
const AGED: usize = 4;

/// A change of writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The file that is appended to from here on.
    pub file: Number,
    /// Where the file before ended then.
    pub before: u64,
}

/// Where an order ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    place: u64,
    content: Number,
    marks: u64,
    /// The file that was appended to last.
    pub file: Number,
}

impl Tail {
    /// What `since` of a log becomes that is truncated now.
    pub fn since(&self) -> u32 {
        u32::try_from(self.place).unwrap_or(0)
    }
}

/// A part of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    place: u64,
    content: Number,
}

impl Part {
    /// Up to [`STEP`] marks from the one at `from` on; none at the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, r: &impl Read, from: u64) -> Result<Vec<Mark>> {
        let count = PART_MARKS.saturating_sub(from).min(STEP) as usize;
        let mut bytes = vec![0; count * MarkRecord::LEN];
        r.read_content(self.content, from * MarkRecord::LEN as u64, &mut bytes)?;
        let mut marks = Vec::new();
        for bytes in bytes.chunks_exact(MarkRecord::LEN) {
            match MarkRecord::read_from_bytes(bytes) {
                Ok(mark) if mark.file.get() != 0 => marks.push(Mark {
                    file: mark.file.get(),
                    before: mark.before.get(),
                }),
                _ => break,
            }
        }
        Ok(marks)
    }

    /// How many marks it has, and the last.
    fn end(&self, r: &impl Read) -> Result<(u64, Option<Mark>)> {
        let written = r.next_hole(self.content, 0)? / MarkRecord::LEN as u64;
        let mut count = written.min(PART_MARKS).saturating_sub(STEP);
        let mut last = None;
        loop {
            let marks = self.read(r, count)?;
            count += marks.len() as u64;
            match marks.last() {
                Some(mark) => last = Some(*mark),
                None => return Ok((count, last)),
            }
        }
    }

    /// Whether what it says of a file is void, as the file was truncated in a later part.
    pub fn is_void_for(&self, since: u32) -> bool {
        self.place < u64::from(since)
    }

    /// Whether nothing is left that it speaks of: its files are gone, or were truncated since.
    fn is_over(&self, r: &impl Read) -> Result<bool> {
        let (mut from, mut seen) = (0, HashSet::new());
        loop {
            let marks = self.read(r, from)?;
            for mark in &marks {
                if !seen.insert(mark.file) {
                    continue;
                }
                match load(r, mark.file) {
                    Ok(inode) if self.is_void_for(inode.since) => {}
                    Ok(_) => return Ok(false),
                    Err(Error::Stale) => {}
                    Err(error) => return Err(error),
                }
            }
            if marks.is_empty() {
                return Ok(true);
            }
            from += marks.len() as u64;
        }
    }
}

/// The parts of a directory's order, oldest first.
///
/// # Errors
/// Those of reading.
pub fn parts(r: &impl Read, dir: Number) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    r.scan(key(dir, 0), key(dir, u64::MAX), &mut |key, value| {
        let content = ArrivalsRecord::decode(value)?.content.get();
        let place = key.offset;
        parts.push(Part { place, content });
        Ok(true)
    })?;
    Ok(parts)
}

/// Where a directory's order ends, if it has one.
///
/// # Errors
/// Those of reading.
pub fn tail(r: &impl Read, dir: Number) -> Result<Option<Tail>> {
    let Some(part) = parts(r, dir)?.pop() else {
        return Ok(None);
    };
    let (marks, last) = part.end(r)?;
    Ok(Some(Tail {
        place: part.place,
        content: part.content,
        marks,
        file: last.map_or(0, |mark| mark.file),
    }))
}

/// Adds marks to an order that ends at `tail`; answers where it ends then. To be called once in a
/// transaction.
///
/// # Errors
/// Those of reading and writing.
pub fn push<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    tail: Option<Tail>,
    marks: &[Mark],
) -> Result<Option<Tail>> {
    let Some(last) = marks.last() else {
        return Ok(tail);
    };
    let count = marks.len() as u64;
    let mut tail = match tail.filter(|tail| tail.marks + count <= PART_MARKS) {
        Some(tail) => tail,
        None => {
            let place = tail.map_or(Some(1), |tail| tail.place.checked_add(1));
            begin(tx, dir, place.ok_or(Error::NoSpace)?)?
        }
    };
    let record = |mark: &Mark| MarkRecord {
        file: mark.file.into(),
        before: mark.before.into(),
    };
    let records: Vec<_> = marks.iter().map(record).collect();
    let at = tail.marks * MarkRecord::LEN as u64;
    tx.write(tail.content, at, records.as_bytes());
    tail.marks += count;
    tail.file = last.file;
    Ok(Some(tail))
}

/// Begins a part, and gives up old ones of which nothing is left.
fn begin<D: Device>(tx: &mut Tx<'_, D>, dir: Number, place: u64) -> Result<Tail> {
    for part in parts(tx, dir)?.into_iter().take(AGED) {
        if part.is_over(tx)? {
            give_up(tx, dir, part);
        }
    }
    let content = tx.new_number();
    let record = ArrivalsRecord {
        content: content.into(),
    };
    tx.put(key(dir, place), record.as_bytes())?;
    Ok(Tail {
        place,
        content,
        marks: 0,
        file: 0,
    })
}

fn give_up<D: Device>(tx: &mut Tx<'_, D>, dir: Number, part: Part) {
    tx.drop_content(part.content);
    tx.del(key(dir, part.place));
}

/// Takes the order of a directory that goes.
pub(super) fn forget<D: Device>(tx: &mut Tx<'_, D>, dir: Number) -> Result<()> {
    for part in parts(tx, dir)? {
        give_up(tx, dir, part);
    }
    Ok(())
}

fn key(dir: Number, place: u64) -> Key {
    Key::new(dir, Kind::Arrivals, place)
}
