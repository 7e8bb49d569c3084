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
//!
//! With `roll-on=reopen` a rename is what it is in POSIX: the binding goes along with the file, and
//! handles come back to the old name when a [rotation](super::rotate) is asked for.

use super::Store;
use super::binding::Predecessor;
use super::cut::{Cut, Naming};
use super::events::{self, Cause, Event};
use super::log::{STAGE_MIN, pattern, predecessor};
use super::names::other_name_of;
use super::settings::Mode;
use crate::cask::{Class, Lsn, Read, Staged, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::{Caller, Place, RenameFlags, namespace};
use crate::limits::CARRY_MAX;

/// A begun record that a cut carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carry {
    /// The live log it stands in.
    pub number: Number,
    /// Its first byte there, which is where the segment will end.
    pub start: u64,
    /// Its bytes.
    pub len: usize,
}

impl Carry {
    /// The record begun at `start`, unless it is too long to be carried.
    pub fn of(inode: &Inode, start: u64) -> Option<Self> {
        let len = usize::try_from(inode.size.checked_sub(start)?).ok()?;
        (1..=CARRY_MAX).contains(&len).then_some(Self {
            number: inode.number,
            start,
            len,
        })
    }
}

/// What a rename did to the tables.
struct Moved {
    inode: Inode,
    /// What was done to a log that was cut.
    cut: Option<Box<Cut>>,
    /// It was a log, live or not.
    is_log: bool,
    /// Its writers go along with it.
    follows: bool,
    /// What was replaced while its writers stay with it.
    unnamed: Option<Number>,
    /// What a log looked like that was replaced under its writers.
    replaced: Option<Predecessor>,
    /// Of what was moved and what was replaced, what has other names.
    others: [Option<Number>; 2],
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
        // A line in the record of rolls takes room, but a log is cut without it, too.
        let mut class = match &source {
            Some(_) => Class::Grow,
            None => Class::Replace,
        };
        let mut refused = None;
        let lsn = loop {
            match self.try_roll(caller, from, to, flags, class, staged) {
                Err(error @ Error::NoSpace) if class == Class::Grow && refused.is_none() => {
                    (class, refused) = (Class::Replace, Some(error));
                }
                Err(error) => return Err(error),
                Ok((Outcome::NeedsRoom, _)) => match refused {
                    Some(error) => return Err(error),
                    None => class = Class::Grow,
                },
                Ok((Outcome::Same, lsn)) => break lsn,
                Ok((Outcome::Moved(moved), lsn)) => {
                    if let Some(cut) = &moved.cut {
                        self.tell_of(cut);
                    }
                    if let Some(number) = moved.unnamed {
                        // Its last writer may have gone just before.
                        self.fs.reap(number)?;
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
                let follows = self.follows(tx, from, &inode)?;
                let is_log =
                    !follows && (bound || inode.is_file() && self.is_cut_by_rename(tx, &inode)?);
                if bound && !follows && flags.whiteout {
                    return Err(Error::invalid(
                        "the old name of a live log stays free for it",
                    ));
                }
                let carry = self.begun_record(tx, from)?;
                if carry.is_some() && class == Class::Replace {
                    return Ok(Outcome::NeedsRoom);
                }
                let looks = predecessor(tx, &inode)?;
                let settings = self.walk.of(tx, &inode)?;
                let target = namespace::lookup(tx, to.dir, to.name).ok();
                let unnamed = match &target {
                    Some(target) if self.follows(tx, to, target)? => Some(target.number),
                    _ => None,
                };
                let others = [Some(&inode), target.as_ref()].map(|i| i.and_then(other_name_of));
                let replaced = match &target {
                    Some(target) => pattern(tx, target)?,
                    None => None,
                };
                let is_open = |ino| self.fs.is_open(ino) || unnamed == Some(ino);
                namespace::rename(tx, caller, from, to, flags, &is_open, now)?;
                // Without a writer a rename is a rename.
                let cut = match bound && !follows && inode.is_file() {
                    false => None,
                    true => {
                        let carry = carry.map(|carry| {
                            let planned = staged.filter(|(_, planned)| *planned == carry);
                            (carry, planned.map(|(staged, _)| staged))
                        });
                        let event = Event {
                            cause: Cause::Rename,
                            log: (from.dir, from.name.to_vec()),
                            segment: (to.dir, to.name.to_vec()),
                        };
                        let naming = Naming::default();
                        let cut = self.cut(
                            tx,
                            inode.number,
                            &settings,
                            looks,
                            carry,
                            naming,
                            event,
                            class == Class::Grow,
                            now,
                        )?;
                        if class == Class::Grow {
                            events::note(tx, std::slice::from_ref(&cut.event), now)?;
                        }
                        Some(Box::new(cut))
                    }
                };
                Ok(Outcome::Moved(Box::new(Moved {
                    inode,
                    cut,
                    is_log,
                    follows,
                    unnamed,
                    replaced,
                    others,
                })))
            },
            |outcome| {
                let Outcome::Moved(moved) = outcome else {
                    return;
                };
                if let Some(number) = moved.unnamed {
                    let keep = || self.fs.opens().add(number);
                    self.bindings.unname(to.dir, to.name, number, keep);
                }
                self.bindings.lost(to.dir, to.name, moved.replaced.as_ref());
                if moved.follows {
                    let (from, to) = ((from.dir, from.name), (to.dir, to.name));
                    self.bindings.follow(from, to, moved.inode.number);
                }
                match &moved.cut {
                    Some(cut) => self.was_cut(cut),
                    None if moved.follows => {}
                    None => self.bindings.forget(from.dir, from.name),
                }
                if moved.is_log {
                    let ino = moved.inode.number;
                    self.absences
                        .begin(now, caller.tid, from.dir, from.name, ino);
                }
                self.absences.end(caller.tid, to.dir, to.name);
                for number in moved.others.into_iter().flatten() {
                    self.has_other_place(number);
                }
                if moved.inode.is_dir() && from.dir != to.dir {
                    self.walk.changed();
                }
            },
        )
    }

    /// The begun record at the end of the live log of a name, if it is to be carried: nobody is
    /// inside a record when there is none, and one longer than 1 MiB is cut at the byte.
    pub(super) fn begun_record(&self, r: &impl Read, place: Place<'_>) -> Result<Option<Carry>> {
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
        if self.walk.of(r, &inode)?.record.is_none() || self.follows(r, place, &inode)? {
            return Ok(None);
        }
        Ok(Carry::of(&inode, start))
    }

    /// Whether the writers of the file under a name stay with it whatever becomes of the name.
    pub(super) fn follows(&self, r: &impl Read, place: Place<'_>, inode: &Inode) -> Result<bool> {
        match self.bindings.find(place.dir, place.name) {
            Some(binding) if inode.is_file() => {
                Ok(binding.state().follows() || self.walk.of(r, inode)?.reopen)
            }
            _ => Ok(false),
        }
    }

    fn is_cut_by_rename(&self, r: &impl Read, inode: &Inode) -> Result<bool> {
        let settings = self.walk.of(r, inode)?;
        Ok(settings.mode == Mode::Log && !settings.reopen)
    }

    pub(super) fn bytes_of(&self, r: &impl Read, carry: Carry) -> Result<Vec<u8>> {
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

/// Ends the segment where the begun record was.
pub(super) fn end_at<D: Device>(tx: &mut Tx<'_, D>, carry: Carry) -> Result<()> {
    let mut segment = load(tx, carry.number)?;
    tx.truncate(segment.content, carry.start);
    segment.size = carry.start;
    save(tx, &segment)
}
