//! Files and names over the cask, as `ext4` would have them. No FUSE type in sight.
//!
//! The modules hold functions over a transaction, so that the layer above can put several of them
//! into one record; [`Fs`] is the plain filesystem: each of its operations is one transaction, and
//! answers with the operation's number for whoever must wait for it.

pub mod arrivals;
pub mod data;
pub mod directory;
pub mod inode;
pub mod lifetime;
pub mod namespace;
pub mod opens;
mod path;
mod rename;
pub mod segment;
pub mod types;
pub mod xattr;

#[cfg(test)]
mod tests;

pub use inode::Inode;
pub use namespace::{NewFile, Place};
pub use types::{Attr, Caller, DirEntry, OpenFlags, RenameFlags, SetAttr, SetTime, StatFs};

use std::cell::Cell;
use std::sync::Arc;

use crate::cask::{Cask, Class, Lsn, Tx};
use crate::clock::{Clock, Timestamp};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::limits::{NAME_MAX, SYMLINK_MAX};
use inode::{attr, load, save};
use opens::{Closed, Opens};

/// A plain filesystem over a cask.
pub struct Fs<D: Device> {
    cask: Arc<Cask<D>>,
    clock: Arc<dyn Clock>,
    opens: Opens,
}

impl<D: Device> Fs<D> {
    /// A filesystem over an open cask; what the last life left open and without a name is removed.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn new(cask: Arc<Cask<D>>, clock: Arc<dyn Clock>) -> Result<Self> {
        let fs = Self {
            cask,
            clock,
            opens: Opens::default(),
        };
        if fs.cask.read_only().is_none() {
            for number in namespace::orphans(&*fs.cask)? {
                fs.reap(number)?;
            }
        }
        Ok(fs)
    }

    /// The cask below.
    pub fn cask(&self) -> &Arc<Cask<D>> {
        &self.cask
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Open counts.
    pub fn opens(&self) -> &Opens {
        &self.opens
    }

    /// Whether a handle of the inode is open.
    pub fn is_open(&self, number: Number) -> bool {
        self.opens.is_open(number)
    }

    /// The inode with this number.
    ///
    /// # Errors
    /// [`Error::Stale`] when there is none.
    pub fn inode(&self, number: Number) -> Result<Inode> {
        load(&*self.cask, number)
    }

    /// What `stat(2)` tells.
    ///
    /// # Errors
    /// As [`Fs::inode`].
    pub fn attr(&self, inode: &Inode) -> Result<Attr> {
        attr(&*self.cask, inode)
    }

    /// The inode under a name.
    ///
    /// # Errors
    /// As [`namespace::lookup`].
    pub fn lookup(&self, dir: Number, name: &[u8]) -> Result<Inode> {
        let mut gone = None;
        loop {
            match namespace::lookup(&*self.cask, dir, name) {
                // The file was replaced between the look-up of its name and of its inode, unless the
                // name goes on leading to nothing.
                Err(Error::Stale) => {
                    let (number, _) = namespace::find(&*self.cask, dir, name)?;
                    if gone.replace(number) == Some(number) {
                        return Err(Error::Stale);
                    }
                }
                found => return found,
            }
        }
    }

    /// `chmod`, `chown`, `truncate`, `utimensat`, in one operation.
    ///
    /// # Errors
    /// [`Error::IsDirectory`] and [`Error::Invalid`] for a size of what has none.
    pub fn setattr(&self, caller: &Caller, number: Number, set: &SetAttr) -> Result<(Inode, Lsn)> {
        let now = self.now();
        let shrinks = set
            .size
            .is_some_and(|size| self.inode(number).is_ok_and(|inode| size <= inode.size));
        let class = if set.size.is_none() || shrinks {
            Class::Release
        } else {
            Class::Grow
        };
        self.cask.transact(class, |tx| {
            let mut inode = load(tx, number)?;
            apply_attr(&mut inode, set, now);
            if let Some(size) = set.size {
                data::check_regular(&inode)?;
                data::truncate(tx, caller, &mut inode, size, now)?;
            }
            if let Some(mtime) = set.mtime {
                inode.mtime = at(mtime, now);
            }
            save(tx, &inode)?;
            Ok(inode)
        })
    }

    /// Makes a file, directory or node.
    ///
    /// # Errors
    /// As [`namespace::make`].
    pub fn make(&self, dir: Number, name: &[u8], new: &NewFile) -> Result<(Inode, Lsn)> {
        let now = self.now();
        self.cask
            .transact(Class::Grow, |tx| namespace::make(tx, dir, name, new, now))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`Error::NameTooLong`] for a target over 4095 bytes; as [`namespace::make`].
    pub fn symlink(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        target: &[u8],
    ) -> Result<(Inode, Lsn)> {
        if target.len() > SYMLINK_MAX {
            return Err(Error::NameTooLong { max: SYMLINK_MAX });
        }
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        let now = self.now();
        let new = NewFile {
            kind: FileKind::Symlink,
            perm: 0o777,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
        };
        self.cask.transact(Class::Grow, |tx| {
            let mut inode = namespace::make(tx, dir, name, &new, now)?;
            tx.write(inode.content, 0, target);
            inode.size = target.len() as u64;
            save(tx, &inode)?;
            Ok(inode)
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none.
    pub fn readlink(&self, number: Number) -> Result<Vec<u8>> {
        let inode = self.inode(number)?;
        if inode.kind() != FileKind::Symlink {
            return Err(Error::invalid("not a symbolic link"));
        }
        let mut target = Vec::new();
        data::read(&*self.cask, &inode, 0, SYMLINK_MAX as u32, &mut target)?;
        Ok(target)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// As [`namespace::link`].
    pub fn link(&self, number: Number, dir: Number, name: &[u8]) -> Result<(Inode, Lsn)> {
        let now = self.now();
        self.cask.transact(Class::Grow, |tx| {
            namespace::link(tx, number, dir, name, now)
        })
    }

    /// Takes a file's name; answers the inode as it was.
    ///
    /// # Errors
    /// As [`namespace::unlink`].
    pub fn unlink(&self, dir: Number, name: &[u8]) -> Result<(Inode, Lsn)> {
        let now = self.now();
        self.abandoning(
            Class::Release,
            |tx, keep| namespace::unlink(tx, dir, name, keep, now),
            |_| (),
        )
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`namespace::rmdir`].
    pub fn rmdir(&self, dir: Number, name: &[u8]) -> Result<(Inode, Lsn)> {
        let now = self.now();
        self.abandoning(
            Class::Release,
            |tx, keep| namespace::rmdir(tx, dir, name, keep, now),
            |_| (),
        )
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As [`namespace::rename`].
    pub fn rename(
        &self,
        caller: &Caller,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
    ) -> Result<(namespace::Renamed, Lsn)> {
        let now = self.now();
        loop {
            let class = namespace::rename_class(&*self.cask, to, flags)?;
            let (renamed, lsn) = self.abandoning(
                class,
                |tx, keep| {
                    // The name that was to be replaced may have gone since.
                    if class != namespace::rename_class(tx, to, flags)? {
                        return Ok(None);
                    }
                    namespace::rename(tx, caller, from, to, flags, keep, now).map(Some)
                },
                |_| (),
            )?;
            if let Some(renamed) = renamed {
                return Ok((renamed, lsn));
            }
        }
    }

    /// Runs an operation that may take a file's last name, as [`Cask::transact_then`] does, and
    /// tells it what to keep: what is open. Where a full cask has no room to remove a file with all
    /// its attributes in one operation, the file is left as an orphan and taken apart after.
    ///
    /// # Errors
    /// Those of `op`; those of writing.
    pub fn abandoning<T>(
        &self,
        class: Class,
        op: impl Fn(&mut Tx<'_, D>, &dyn Fn(Number) -> bool) -> Result<T>,
        after: impl FnOnce(&mut T),
    ) -> Result<(T, Lsn)> {
        let mut after = Some(after);
        let mut once = |done: &mut T| {
            if let Some(after) = after.take() {
                after(done);
            }
        };
        let is_open = |ino| self.is_open(ino);
        let whole = self
            .cask
            .transact_then(class, |tx| op(tx, &is_open), &mut once);
        if !matches!(whole, Err(Error::NoSpace)) {
            return whole;
        }
        let left = Cell::new(None);
        let keep = |ino| {
            left.set(Some(ino));
            true
        };
        let done = self
            .cask
            .transact_then(class, |tx| op(tx, &keep), &mut once)?;
        if let Some(number) = left.get() {
            self.reap(number)?;
        }
        Ok(done)
    }

    /// Removes an orphan that no handle is open of; anything else stays.
    ///
    /// # Errors
    /// Those of writing.
    pub fn reap(&self, number: Number) -> Result<()> {
        let reap = |tx: &mut Tx<'_, D>| match self.is_open(number) {
            true => Ok(true),
            false => namespace::reap_some(tx, number),
        };
        while !self.cask.transact(Class::Release, reap)?.0 {}
        Ok(())
    }

    /// Counts a handle; pairs with [`Fs::release`].
    ///
    /// # Errors
    /// [`Error::Stale`] when the inode is gone.
    pub fn open(&self, number: Number) -> Result<Inode> {
        // Counted first, so that an unlink in between leaves an orphan and not nothing.
        self.opens.add(number);
        // An operation that was told before that it is not open is over when this looks.
        let found = self.cask.still(|cask| load(cask, number));
        if found.is_err() {
            self.release(number)?;
        }
        found
    }

    /// Uncounts a handle; with the last one an inode without a name is removed.
    ///
    /// # Errors
    /// Those of writing.
    pub fn release(&self, number: Number) -> Result<()> {
        let nameless = match self.opens.remove(number) {
            Closed::Others => false,
            _ if self.cask.read_only().is_some() => false,
            Closed::Last { asked: true } => true,
            Closed::Last { asked: false } => match self.inode(number) {
                Ok(inode) => inode.nlink == 0,
                Err(Error::Stale) => false,
                Err(error) => return Err(error),
            },
        };
        if nameless {
            self.reap(number)?;
        }
        Ok(())
    }

    /// Reads into `buf`, cleared first.
    ///
    /// # Errors
    /// As [`data::check_regular`]; those of reading.
    pub fn read(&self, number: Number, offset: u64, size: u32, buf: &mut Vec<u8>) -> Result<()> {
        let inode = self.inode(number)?;
        data::check_regular(&inode)?;
        data::read(&*self.cask, &inode, offset, size, buf)
    }

    /// Writes at an offset, or at the end for `None`.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::FileTooLarge`]; as [`data::check_regular`]; those of writing.
    pub fn write(
        &self,
        caller: &Caller,
        number: Number,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<(Inode, Lsn)> {
        self.write_as(Class::Grow, caller, number, offset, bytes)
    }

    /// Writes like [`Fs::write`]. Where there is no room for more and all that is written has its
    /// place already, the blocks kept for that are used, by parts if need be; answers also how many
    /// bytes were taken. Each part is an operation of its own.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub fn write_or_replace(
        &self,
        caller: &Caller,
        number: Number,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<(Inode, Lsn, usize)> {
        let offset = match self.write_as(Class::Grow, caller, number, offset, bytes) {
            Ok((inode, lsn)) => return Ok((inode, lsn, bytes.len())),
            Err(Error::NoSpace) => offset.ok_or(Error::NoSpace)?,
            Err(error) => return Err(error),
        };
        let end = data::end_of(offset, bytes.len() as u64)?;
        if !data::holds(&*self.cask, &self.inode(number)?, offset..end)? {
            return Err(Error::NoSpace);
        }
        let block = self.cask.geometry().block();
        let mut left = bytes;
        let mut at = offset;
        let mut step = bytes.len() as u64;
        let mut last = None;
        while !left.is_empty() {
            // All of it, or up to the end of a block, so that none is written twice.
            let end = at.saturating_add(step) / block * block;
            let len = match step < left.len() as u64 {
                true => end.max((at / block + 1) * block) - at,
                false => step,
            };
            let (part, rest) = left.split_at(left.len().min(len as usize));
            match self.write_as(Class::Replace, caller, number, Some(at), part) {
                Ok(done) => {
                    last = Some(done);
                    at += part.len() as u64;
                    left = rest;
                }
                Err(Error::NoSpace) if part.len() as u64 > block => step = part.len() as u64 / 2,
                Err(error) if last.is_none() => return Err(error),
                Err(_) => break,
            }
        }
        let (inode, lsn) = last.ok_or(Error::NoSpace)?;
        Ok((inode, lsn, bytes.len() - left.len()))
    }

    fn write_as(
        &self,
        class: Class,
        caller: &Caller,
        number: Number,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<(Inode, Lsn)> {
        let now = self.now();
        data::check_regular(&self.inode(number)?)?;
        loop {
            let place = match offset {
                Some(offset) => offset,
                None => self.inode(number)?.size,
            };
            data::end_of(place, bytes.len() as u64)?;
            let staged = self.cask.stage_for(class, 0, place, bytes)?;
            let (written, lsn) = self.cask.transact(class, |tx| {
                let mut inode = load(tx, number)?;
                let end = place.saturating_add(bytes.len() as u64);
                if class != Class::Grow && !data::holds(tx, &inode, place..end)? {
                    return Err(Error::NoSpace);
                }
                if offset.is_none() && inode.size != place {
                    return Ok(None);
                }
                data::write(
                    tx,
                    caller,
                    &mut inode,
                    place,
                    bytes.len() as u64,
                    &staged,
                    now,
                )?;
                Ok(Some(inode))
            })?;
            // Another append was first: the end is elsewhere now.
            if let Some(inode) = written {
                return Ok((inode, lsn));
            }
        }
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// As [`data::allocate`].
    pub fn allocate(
        &self,
        caller: &Caller,
        number: Number,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        data::allocate(&self.cask, caller, number, mode, offset, len, self.now())
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    ///
    /// # Errors
    /// As [`data::seek`].
    pub fn seek(&self, number: Number, offset: u64, wanted: bool) -> Result<u64> {
        data::seek(&*self.cask, &self.inode(number)?, offset, wanted)
    }

    /// What `statvfs(3)` tells; what was given up is made free first, so that it counts.
    ///
    /// # Errors
    /// Those of writing.
    pub fn statfs(&self) -> Result<StatFs> {
        self.cask.settle()?;
        let stats = self.cask.stats();
        Ok(StatFs {
            block_size: stats.block_size,
            blocks: stats.total_blocks,
            blocks_free: stats.free_blocks,
            files: stats.files_max,
            files_free: stats.files_max.saturating_sub(stats.files_used),
            name_max: NAME_MAX as u32,
        })
    }
}

/// The time that is meant.
pub fn at(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

/// Changes everything but the size.
pub fn apply_attr(inode: &mut Inode, set: &SetAttr, now: Timestamp) {
    if set.uid.is_some() || set.gid.is_some() {
        inode.clear_set_id();
    }
    if let Some(perm) = set.perm {
        inode.set_perm(perm);
    }
    if let Some(uid) = set.uid {
        inode.uid = uid;
    }
    if let Some(gid) = set.gid {
        inode.gid = gid;
    }
    if let Some(atime) = set.atime {
        inode.atime = at(atime, now);
    }
    if let Some(mtime) = set.mtime {
        inode.mtime = at(mtime, now);
    }
    inode.ctime = now;
}
