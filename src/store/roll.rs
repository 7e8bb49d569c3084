//! The cut: what `rename(2)` of a live log does.
//!
//! The old part goes away under the new name, final and ending with a whole record; the next record
//! on any handle bound to the old name makes a fresh live log of that name. Nobody is signalled and
//! nobody reopens. A cut is one transaction: the name moves, and the begun record, that is the bytes
//! after the last delimiter that a still open handle has put there, becomes the beginning of the
//! fresh log. A file that nobody is in the middle of is renamed as it is.
//!
//! Invariant: when the transaction is over no handle that was bound to the old name leads to the
//! segment, since handles find the live file only through their binding, which the same transaction
//! makes forget it.

use super::log::{STAGE_MIN, make_like, predecessor};
use super::settings::Mode;
use super::{Notice, Store};
use crate::cask::{Class, Lsn, Read, Staged};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::{Caller, Place, RenameFlags, namespace};
use crate::limits::CARRY_MAX;

/// A begun record that a cut carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Carry {
    /// The live log it stands in.
    number: Number,
    /// Its first byte there, which is where the segment will end.
    start: u64,
    /// Its bytes.
    len: usize,
}

/// What a rename did to the tables.
struct Moved {
    inode: Inode,
    /// The fresh live log, and where the segment ends.
    fresh: Option<(Number, u64)>,
    /// It was a log, live or not.
    is_log: bool,
    looks: super::binding::Predecessor,
}

enum Outcome {
    /// Both names are of one file: nothing is to be done.
    Same,
    Moved(Box<Moved>),
    /// A begun record must be carried, which takes room that was not asked for.
    NeedsRoom,
}

impl<D: Device> Store<D> {
    /// Moves a name, with everything that follows for the logs at both ends.
    pub(super) fn roll(
        &self,
        caller: &Caller,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.exchange {
            return self.exchange(caller, from, to, flags);
        }
        let source = self.bindings.find(from.dir, from.name);
        let seen = self.begun_record(&*self.cask, from)?;
        // A long begun record is put in its place before the cut; meanwhile nothing is appended.
        let _alone = match (&source, seen) {
            (Some(binding), Some(carry)) if carry.len >= STAGE_MIN => Some(binding.gate.write()),
            _ => None,
        };
        let seen = self.begun_record(&*self.cask, from)?;
        let bytes = seen
            .map(|carry| self.bytes_of(&*self.cask, carry))
            .transpose()?;
        let staged = match &bytes {
            Some(bytes) if bytes.len() >= STAGE_MIN => Some(self.cask.stage(0, bytes)?),
            _ => None,
        };
        let staged = staged.as_ref().zip(seen);
        let mut class = if seen.is_some() {
            Class::Grow
        } else {
            Class::Replace
        };
        let lsn = loop {
            match self.try_roll(caller, from, to, flags, class, staged)? {
                (Outcome::NeedsRoom, _) => class = Class::Grow,
                (Outcome::Same, lsn) => break lsn,
                (Outcome::Moved(moved), lsn) => {
                    if moved.fresh.is_some() {
                        self.notify(Notice::InvalidateInode(moved.inode.number));
                    }
                    break lsn;
                }
            }
        };
        self.confirm_in(from.dir, lsn)
    }

    fn try_roll(
        &self,
        caller: &Caller,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
        class: Class,
        staged: Option<(&Staged<'_>, Carry)>,
    ) -> Result<(Outcome, Lsn)> {
        let now = self.now();
        self.cask.transact_then(
            class,
            |tx| {
                let inode = namespace::lookup(tx, from.dir, from.name)?;
                if namespace::find(tx, to.dir, to.name).is_ok_and(|(n, _)| n == inode.number) {
                    namespace::rename(tx, caller, from, to, flags, &|_| true, now)?;
                    return Ok(Outcome::Same);
                }
                let bound = self.bindings.find(from.dir, from.name).is_some();
                let is_log =
                    bound || inode.is_file() && self.walk.of(tx, &inode)?.mode == Mode::Log;
                if bound && flags.whiteout {
                    return Err(Error::invalid(
                        "the old name of a live log stays free for it",
                    ));
                }
                let carry = self.begun_record(tx, from)?;
                if carry.is_some() && class == Class::Replace {
                    return Ok(Outcome::NeedsRoom);
                }
                let looks = predecessor(tx, &inode)?;
                let is_open = |ino| self.fs.is_open(ino);
                namespace::rename(tx, caller, from, to, flags, &is_open, now)?;
                let mut fresh = None;
                if let Some(carry) = carry {
                    let mut live = make_like(tx, from.dir, from.name, &looks, now)?;
                    match staged {
                        Some((staged, planned)) if planned == carry => {
                            tx.write_staged(live.content, staged);
                        }
                        _ => {
                            let bytes = self.bytes_of(tx, carry)?;
                            tx.write(live.content, 0, &bytes);
                        }
                    }
                    live.size = carry.len as u64;
                    save(tx, &live)?;
                    let mut segment = load(tx, carry.number)?;
                    tx.truncate(segment.content, carry.start);
                    segment.size = carry.start;
                    save(tx, &segment)?;
                    fresh = Some((live.number, carry.start));
                }
                Ok(Outcome::Moved(Box::new(Moved {
                    inode,
                    fresh,
                    is_log,
                    looks,
                })))
            },
            |outcome| {
                let Outcome::Moved(moved) = outcome else {
                    return;
                };
                if let Some(source) = self.bindings.find(from.dir, from.name) {
                    source.state().cut(moved.fresh, moved.looks.clone());
                }
                self.bindings.forget(to.dir, to.name);
                if moved.is_log {
                    let ino = moved.inode.number;
                    self.absences
                        .begin(now, caller.tid, from.dir, from.name, ino);
                }
                self.absences.end(caller.tid, to.dir, to.name);
                if moved.inode.is_dir() && from.dir != to.dir {
                    self.walk.changed();
                }
            },
        )
    }

    /// The begun record at the end of the live log of a name, if it is to be carried: nobody is
    /// inside a record when there is none, and one longer than 1 MiB is cut at the byte.
    fn begun_record(&self, r: &impl Read, place: Place<'_>) -> Result<Option<Carry>> {
        let Some(binding) = self.bindings.find(place.dir, place.name) else {
            return Ok(None);
        };
        let Some(start) = binding.state().boundary() else {
            return Ok(None);
        };
        let inode = match namespace::lookup(r, place.dir, place.name) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.walk.of(r, &inode)?.record.is_none() {
            return Ok(None);
        }
        let len = inode
            .size
            .checked_sub(start)
            .and_then(|len| usize::try_from(len).ok());
        Ok(len
            .filter(|len| (1..=CARRY_MAX).contains(len))
            .map(|len| Carry {
                number: inode.number,
                start,
                len,
            }))
    }

    fn bytes_of(&self, r: &impl Read, carry: Carry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; carry.len];
        let inode = load(r, carry.number)?;
        r.read_content(inode.content, carry.start, &mut bytes)?;
        Ok(bytes)
    }

    fn exchange(
        &self,
        caller: &Caller,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        let now = self.now();
        let (_, lsn) = self.cask.transact_then(
            Class::Grow,
            |tx| {
                if [from, to]
                    .iter()
                    .any(|p| self.bindings.find(p.dir, p.name).is_some())
                {
                    return Err(Error::invalid(
                        "a log that is being written is not exchanged",
                    ));
                }
                namespace::rename(tx, caller, from, to, flags, &|_| true, now)
            },
            |_| self.walk.changed(),
        )?;
        self.confirm_in(from.dir, lsn)
    }
}
