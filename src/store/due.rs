//! Logs that are cut by themselves: by the clock, by their size, by the number of their records.
//!
//! What is written decides: a record that comes in another hour or day than the last one begins a
//! fresh log, and the record that fills a log is its last. So a segment never holds records of two
//! days, whatever the load. A log that is open and silent is cut by the timer when its day is over;
//! one that nobody has open is cut when its next record comes, and named after its last.
//! Invariant: a cut of these kinds falls between two records, like any other.

use quick_cache::sync::Cache;

use super::Store;
use super::cut::Itself;
use super::events::{self, Cause};
use super::settings::{Effective, Mode, Period};
use crate::cask::{Class, Lsn, Read};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::FLAG_SPARSE;
use crate::format::key::Number;
use crate::fs::{Inode, Place, namespace};
use crate::sync::atomic::Ordering;

/// Logs whose records are counted in memory.
const COUNTED: usize = 4096;
/// Bytes that are read at a time to count records.
const COUNT_STEP: u64 = 256 << 10;

/// How many records the first bytes of a log hold. Kept in memory only: what is not known is counted
/// once by reading. Invariant: while the settings are those of the generation under which a number was
/// kept, every append to that log was counted.
pub(super) struct Counts(Cache<Number, Counted>);

#[derive(Clone, Copy)]
struct Counted {
    generation: u64,
    size: u64,
    records: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self(Cache::new(COUNTED))
    }
}

impl Counts {
    /// The records in a log of these settings, its first line left out.
    pub fn of(
        &self,
        r: &impl Read,
        inode: &Inode,
        settings: &Effective,
        generation: u64,
    ) -> Result<u64> {
        let Some(delimiter) = settings.record else {
            return Ok(0);
        };
        let known = self.0.get(&inode.number);
        let known = known.filter(|c| c.generation == generation && c.size <= inode.size);
        let (mut at, mut records) = known.map_or((0, 0), |c| (c.size, c.records));
        let header = settings.first_line();
        let mut bytes = Vec::new();
        while at < inode.size {
            // A hole of any size holds no bytes that have to be looked at.
            if inode.flags & FLAG_SPARSE != 0 || inode.size - at > COUNT_STEP {
                let data = r.next_data(inode.content, at)?.unwrap_or(inode.size);
                let hole = data.min(inode.size) - at;
                if delimiter == 0 {
                    records = records.saturating_add(hole);
                }
                at += hole;
                if hole > 0 {
                    continue;
                }
            }
            let len = (inode.size - at).min(COUNT_STEP);
            bytes.resize(len as usize, 0);
            r.read_content(inode.content, at, &mut bytes)?;
            records += delimiters(&bytes, delimiter);
            if at == 0 && !header.is_empty() && bytes.starts_with(&header) {
                // A header may hold what ends a record.
                records = records.saturating_sub(delimiters(&header, delimiter));
            }
            at += len;
        }
        Ok(records)
    }

    /// A log of this size holds so many records.
    pub fn know(&self, number: Number, generation: u64, size: u64, records: u64) {
        let counted = Counted {
            generation,
            size,
            records,
        };
        self.0.insert(number, counted);
    }

    /// Other settings are in force for a log.
    pub fn forget(&self, number: Number) {
        self.0.remove(&number);
    }
}

/// How many delimiters there are.
pub(super) fn delimiters(bytes: &[u8], delimiter: u8) -> u64 {
    bytes.iter().filter(|byte| **byte == delimiter).count() as u64
}

/// What a log can take before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes; `None` for any number.
    pub bytes: Option<u64>,
    /// Records; `None` for any number.
    pub records: Option<u64>,
}

impl Room {
    /// How many bytes of `data` still go into the log, whole records at a time, and what it is cut
    /// for after them; all of them and nothing when it is not filled.
    pub fn take(self, data: &[u8], delimiter: Option<u8>) -> (usize, Option<Cause>) {
        let Some(delimiter) = delimiter else {
            return match self.bytes.and_then(|bytes| usize::try_from(bytes).ok()) {
                // It was full before; an empty piece would cut it for nothing.
                Some(0) => (data.len(), Some(Cause::Size)),
                Some(bytes) if bytes <= data.len() => (bytes, Some(Cause::Size)),
                _ => (data.len(), None),
            };
        };
        let ends = data.iter().zip(1..).filter(|(byte, _)| **byte == delimiter);
        for ((_, end), records) in ends.zip(1..) {
            if self.records.is_some_and(|most| records >= most) {
                return (end, Some(Cause::Lines));
            }
            if self.bytes.is_some_and(|most| end as u64 >= most) {
                return (end, Some(Cause::Size));
            }
        }
        (data.len(), None)
    }
}

/// Whether the last record of a log lies in a period that is over.
pub(super) fn is_over(inode: &Inode, settings: &Effective, now: Timestamp) -> bool {
    let over = |period: Period| period.index(inode.mtime) < period.index(now);
    inode.size > 0 && settings.roll.is_some_and(over)
}

impl<D: Device> Store<D> {
    /// Cuts the logs that are open and whose period is over. Done once an hour.
    pub(super) fn cut_what_is_over(&self, now: Timestamp) {
        let hour = Period::Hour.index(now);
        if self.hour.swap(hour, Ordering::AcqRel) == hour {
            return;
        }
        for (dir, name) in self.bindings.all() {
            let cut = match self.is_over_by_name(dir, &name, now) {
                Ok(true) => self
                    .cut_when(dir, &name, Cause::Clock, &|inode, settings| {
                        is_over(inode, settings, now)
                    })
                    .map(drop),
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            };
            match cut {
                Ok(()) | Err(Error::NotFound) => {}
                Err(error) => ::log::warn!(
                    "the log {} is not cut by the clock: {error}",
                    String::from_utf8_lossy(&name)
                ),
            }
        }
    }

    fn is_over_by_name(&self, dir: Number, name: &[u8], now: Timestamp) -> Result<bool> {
        let inode = self.fs.lookup(dir, name)?;
        Ok(is_over(&inode, &*self.walk.of(&*self.cask, &inode)?, now))
    }

    /// Cuts a log and gives the segment its automatic name, if it is one that a rename would cut and
    /// `due` says so.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing has the name; those of writing.
    pub(super) fn cut_when(
        &self,
        dir: Number,
        name: &[u8],
        cause: Cause,
        due: &dyn Fn(&Inode, &Effective) -> bool,
    ) -> Result<Lsn> {
        // Without room for its line in the record of rolls, a log is cut all the same.
        match self.try_cut_when(dir, name, cause, due, Class::Grow) {
            Err(Error::NoSpace) => self.try_cut_when(dir, name, cause, due, Class::Replace),
            done => done,
        }
    }

    fn try_cut_when(
        &self,
        dir: Number,
        name: &[u8],
        cause: Cause,
        due: &dyn Fn(&Inode, &Effective) -> bool,
        class: Class,
    ) -> Result<Lsn> {
        let now = self.now();
        let place = Place { dir, name };
        let (cut, lsn) = self.cask.transact_then(
            class,
            |tx| {
                let inode = namespace::lookup(tx, dir, name)?;
                let settings = self.walk.of(tx, &inode)?;
                if !inode.is_file()
                    || settings.mode != Mode::Log
                    || self.follows(tx, place, &inode)?
                    || settings.reopen
                    || !due(&inode, &settings)
                {
                    return Ok(None);
                }
                let carry = self.begun_record(tx, place)?;
                if carry.is_some() && class == Class::Replace {
                    return Err(Error::NoSpace);
                }
                let how = Itself {
                    cause,
                    carry,
                    drops: class == Class::Grow,
                };
                let cut = self.cut_by_itself(tx, place, &inode, how, now)?;
                if class == Class::Grow {
                    events::note(tx, std::slice::from_ref(&cut.event), now)?;
                }
                Ok(Some(cut))
            },
            |cut| {
                if let Some(cut) = cut {
                    self.was_cut(cut);
                }
            },
        )?;
        if let Some(cut) = cut {
            self.tell_of(&cut);
        }
        Ok(lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: u64, records: u64) -> Room {
        let some = |n: u64| (n > 0).then_some(n);
        Room {
            bytes: some(bytes),
            records: some(records),
        }
    }

    #[test]
    fn a_log_is_full_after_the_record_that_fills_it() {
        let line = Some(b'\n');
        assert_eq!(room(0, 0).take(b"a\nb\n", line), (4, None));
        assert_eq!(room(0, 1).take(b"a\nb\n", line), (2, Some(Cause::Lines)));
        assert_eq!(room(0, 2).take(b"a\nb\nc", line), (4, Some(Cause::Lines)));
        assert_eq!(room(0, 3).take(b"a\nb\nc", line), (5, None));
        assert_eq!(room(1, 0).take(b"aa\nb\n", line), (3, Some(Cause::Size)));
        assert_eq!(room(3, 0).take(b"aa\nb\n", line), (3, Some(Cause::Size)));
        assert_eq!(room(4, 0).take(b"aa\nb\n", line), (5, Some(Cause::Size)));
        assert_eq!(room(4, 0).take(b"aa\nbbb", line), (6, None));
        assert_eq!(room(3, 2).take(b"a\nb\nc\n", line), (4, Some(Cause::Lines)));
    }

    #[test]
    fn without_records_a_log_is_cut_at_the_byte() {
        assert_eq!(room(3, 9).take(b"abcd", None), (3, Some(Cause::Size)));
        assert_eq!(room(4, 0).take(b"abcd", None), (4, Some(Cause::Size)));
        let full = Room {
            bytes: Some(0),
            records: None,
        };
        assert_eq!(full.take(b"abcd", None), (4, Some(Cause::Size)));
        assert_eq!(room(5, 0).take(b"abcd", None), (4, None));
        assert_eq!(room(0, 1).take(b"abcd", None), (4, None));
    }
}
