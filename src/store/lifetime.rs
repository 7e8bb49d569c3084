//! `ttl` of files that are no logs: when one is over, nobody sees it any more.
//!
//! A file's age is that of its content, its mtime; so a save or a touch gives it a new life. It lives as
//! long as somebody has it open, and as long as it has several names. Once it is over it is as if it
//! were gone: no look-up and no listing finds it, its name can be given anew, its space counts as free.
//! It is removed later, by the [sweep](super::sweep).
//!
//! Invariant: a file that was over is never seen again, unless its clock or its settings are set back.

use std::time::Duration;

use super::course::{Budget, Course, Due};
use super::settings::{Effective, Mode};
use super::{Notice, Store};
use crate::cask::{Class, Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load_dir};
use crate::fs::{NewFile, SetAttr, SetTime, namespace};

/// When a file with these settings is over, open or not; `None` for what has no end. One whose name given
/// last is gone has none: nobody would find it in its directory.
pub(super) fn end(inode: &Inode, settings: &Effective) -> Option<Timestamp> {
    let ttl = settings.ttl.filter(|_| settings.mode != Mode::Log)?;
    if !inode.is_file() || inode.nlink != 1 || inode.parent == 0 {
        return None;
    }
    let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
    Some(Timestamp {
        secs: inode.mtime.secs.saturating_add(ttl),
        nanos: inode.mtime.nanos,
    })
}

/// From one time to a later one; nothing if it is not later.
fn until(now: Timestamp, end: Timestamp) -> Duration {
    let nanos = (i128::from(end.secs) - i128::from(now.secs)) * 1_000_000_000
        + i128::from(end.nanos)
        - i128::from(now.nanos);
    u64::try_from(nanos).map_or(
        if nanos > 0 {
            Duration::MAX
        } else {
            Duration::ZERO
        },
        Duration::from_nanos,
    )
}

impl<D: Device> Store<D> {
    /// How long a file with these settings lives from now on if nobody touches it; `None` for ever.
    pub(super) fn life_left(&self, inode: &Inode, settings: &Effective) -> Option<Duration> {
        end(inode, settings).map(|end| until(self.now(), end))
    }

    /// Whether a file with these settings is over.
    pub(super) fn is_over(&self, inode: &Inode, settings: &Effective, now: Timestamp) -> bool {
        end(inode, settings).is_some_and(|end| end <= now) && !self.fs.opens().has(inode.number)
    }

    /// Whether the file under this name, given last, is over and nobody writes to it.
    pub(super) fn name_is_over(
        &self,
        r: &impl Read,
        dir: Number,
        name: &[u8],
        now: Timestamp,
    ) -> Result<bool> {
        match namespace::lookup(r, dir, name) {
            Ok(inode) if inode.is_file() => {
                Ok(self.is_over(&inode, &*self.walk.of(r, &inode)?, now)
                    && self.bindings.find(dir, name).is_none())
            }
            Ok(_) | Err(Error::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a file is not to be shown: it is over. Then its directory is swept some time.
    pub(super) fn hides(&self, inode: &Inode) -> Result<bool> {
        if !inode.is_file() {
            return Ok(false);
        }
        let settings = self.walk.of(&*self.cask, inode)?;
        let hides = settings.ttl.is_some() && self.is_over(inode, &settings, self.now());
        if hides {
            self.ages.visit(inode.parent);
        }
        Ok(hides)
    }

    /// Makes a node, in the place of a file that is over if there is one under the name.
    pub(super) fn make_in_place(
        &self,
        tx: &mut Tx<'_, D>,
        dir: Number,
        name: &[u8],
        new: &NewFile,
        now: Timestamp,
    ) -> Result<Inode> {
        match namespace::make(tx, dir, name, new, now) {
            Err(Error::Exists) if self.name_is_over(tx, dir, name, now)? => {
                namespace::unlink(tx, dir, name, &|_| false, now)?;
                namespace::make(tx, dir, name, new, now)
            }
            made => made,
        }
    }

    /// Does something with a name once more if a file that is over was in the way.
    pub(super) fn in_place<T>(
        &self,
        dir: Number,
        name: &[u8],
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        match act() {
            Err(error @ (Error::Exists | Error::NotDirectory)) => match self.clear(dir, name)? {
                true => act(),
                false => Err(error),
            },
            Err(Error::NotEmpty) => match self.clear_below(dir, name)? {
                true => act(),
                false => Err(Error::NotEmpty),
            },
            done => done,
        }
    }

    /// Removes the files of a directory that nobody has open, whose content is of this time or before and
    /// whose names are `wanted`; `tell` hears of each that is gone.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::Stale`]; those of writing; that something could not be read is said when
    /// all else is gone.
    pub fn expire(
        &self,
        dir: Number,
        than: Timestamp,
        wanted: &dyn Fn(&[u8]) -> bool,
        tell: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        load_dir(&*self.cask, dir)?;
        let due = Due {
            file: &|inode, _| inode.mtime <= than,
            name: wanted,
        };
        let (mut course, mut budget, mut last) = (Course::default(), Budget::all(), None);
        let outcome = self.remove_due(dir, &mut course, &mut budget, &due, &mut |gone| {
            gone.names.iter().for_each(|name| tell(name));
            last = Some(gone.lsn);
        });
        last.map_or(Ok(()), |lsn| self.confirm_in(dir, lsn))?;
        outcome.map(drop)
    }

    /// Removes the file under a name if it is over; answers whether it did.
    fn clear(&self, dir: Number, name: &[u8]) -> Result<bool> {
        let now = self.now();
        if !self.name_is_over(&*self.cask, dir, name, now)? {
            return Ok(false);
        }
        let (cleared, _) = self.cask.transact(Class::Release, |tx| {
            let over = self.name_is_over(tx, dir, name, now)?;
            if over {
                namespace::unlink(tx, dir, name, &|_| false, now)?;
            }
            Ok(over)
        })?;
        Ok(cleared)
    }

    /// Removes what is over in the directory under a name; answers whether there was any.
    fn clear_below(&self, dir: Number, name: &[u8]) -> Result<bool> {
        let (below, _) = namespace::find(&*self.cask, dir, name)?;
        let removed = self.sweep_directory(below)?;
        Ok(removed > 0)
    }

    /// Something got this name: the kernel believes what is there as it did where it was before.
    pub(super) fn was_moved(&self, dir: Number, name: &[u8]) -> Result<()> {
        if self.walk.of_dir(&*self.cask, dir)?.ttl.is_none() {
            return Ok(());
        }
        match namespace::lookup(&*self.cask, dir, name) {
            Ok(inode) if inode.is_dir() => self.ages.tell(self.now()),
            Ok(inode) if end(&inode, &*self.walk.of(&*self.cask, &inode)?).is_none() => {}
            Ok(_) => self.notify(Notice::InvalidateEntry(dir, name.to_vec())),
            // It moved on.
            Err(Error::NotFound | Error::Stale | Error::NotDirectory) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A file was told to be older than it is: the kernel believes its name too long.
    pub(super) fn was_dated(&self, inode: &Inode, set: &SetAttr) -> Result<()> {
        if !matches!(set.mtime, Some(SetTime::At(_))) || !inode.is_file() {
            return Ok(());
        }
        let settings = self.walk.of(&*self.cask, inode)?;
        if end(inode, &settings).is_some()
            && let Some(name) = namespace::name_of(&*self.cask, inode)?
        {
            self.notify(Notice::InvalidateEntry(inode.parent, name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_at_its_time_however_far() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        assert_eq!(until(at(5, 0), at(7, 1)), Duration::new(2, 1));
        assert_eq!(until(at(5, 2), at(7, 1)), Duration::new(1, 999_999_999));
        assert_eq!(until(at(5, 2), at(5, 2)), Duration::ZERO);
        assert_eq!(until(at(5, 3), at(5, 2)), Duration::ZERO);
        assert_eq!(until(at(i64::MAX, 0), at(i64::MIN, 0)), Duration::ZERO);
        assert_eq!(until(at(i64::MIN, 0), at(i64::MAX, 0)), Duration::MAX);
    }
}
