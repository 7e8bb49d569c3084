//! Names: finding, making, moving and taking them, and where that touches the rules of logs:
//! adoption, links, removal.

use super::handle::Kind;
use super::log::{pattern, predecessor};
use super::settings::Mode;
use super::value::Draft;
use super::{Behind, Entry, Opened, Store, not_behind, not_the_door};
use crate::cask::{Class, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::inode::{Inode, SET_GID, load, load_dir, save};
use crate::fs::{Caller, DirEntry, NewFile, OpenFlags, Place, RenameFlags, data, namespace};

impl<D: Device> Store<D> {
    /// Finds a name.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for the thread that renamed a log a moment ago and looks for its
    /// old name; [`Error::NotDirectory`]; those of reading.
    pub fn lookup(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<Entry> {
        if let Some(entry) = self.lookup_door(dir, name)? {
            return Ok(entry);
        }
        let inode = self.fs.lookup(dir, name)?;
        if inode.is_file() && self.absences.hides(self.now(), caller.tid, dir, name) {
            return Err(Error::NotFound);
        }
        if self.hides(&inode)? {
            return Err(Error::NotFound);
        }
        self.entry(&inode)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none.
    pub fn readlink(&self, ino: Number) -> Result<Vec<u8>> {
        self.fs.readlink(ino)
    }

    /// Makes a file of any kind but a directory or symbolic link; `perm` holds permission bits only,
    /// umask applied.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotPermitted`] for `.cask`; those of writing.
    pub fn mknod(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        kind: FileKind,
        perm: u32,
        rdev: u64,
    ) -> Result<Entry> {
        not_the_door(dir, name)?;
        let new = NewFile {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev,
        };
        let inode = self.make_node(caller, dir, name, &new)?;
        self.entry(&inode)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Store::mknod`].
    pub fn mkdir(&self, caller: &Caller, dir: Number, name: &[u8], perm: u32) -> Result<Entry> {
        not_the_door(dir, name)?;
        let kind = FileKind::Directory;
        let new = NewFile {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
        };
        let (inode, lsn) = self.in_place(dir, name, || self.fs.make(dir, name, &new))?;
        self.confirm_in(dir, lsn)?;
        self.entry(&inode)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Store::mknod`]; [`Error::NameTooLong`] for the target.
    pub fn symlink(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry> {
        not_the_door(dir, name)?;
        let make = || self.fs.symlink(caller, dir, name, target);
        let (inode, lsn) = self.in_place(dir, name, make)?;
        self.confirm_in(dir, lsn)?;
        self.entry(&inode)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for a live log; [`Error::Exists`]; [`Error::TooManyLinks`].
    pub fn link(&self, _caller: &Caller, ino: Number, dir: Number, name: &[u8]) -> Result<Entry> {
        not_the_door(dir, name)?;
        not_behind(ino)?;
        if self.hides(&self.fs.inode(ino)?)? {
            return Err(Error::Stale);
        }
        let inode = self.in_place(dir, name, || self.link_unless_live(ino, dir, name))?;
        self.entry(&inode)
    }

    /// Takes a name. A live log frees its space at once; its next record makes the name anew.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`]; those of writing.
    pub fn unlink(&self, _caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        not_the_door(dir, name)?;
        self.unlink_name(dir, name)
    }

    /// Removes an empty directory. Handles bound to a name in it get [`Error::NotFound`] from their
    /// next write.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`]; those of writing.
    pub fn rmdir(&self, _caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        not_the_door(dir, name)?;
        let (_, lsn) = self.in_place(dir, name, || self.fs.rmdir(dir, name))?;
        self.confirm_in(dir, lsn)
    }

    /// Moves a name; a live log is cut by it.
    ///
    /// # Errors
    /// Those of `renameat2(2)`; [`Error::Invalid`] to exchange a live log.
    pub fn rename(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        new_dir: Number,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        not_the_door(dir, name)?;
        not_the_door(new_dir, new_name)?;
        let from = Place { dir, name };
        let to = Place {
            dir: new_dir,
            name: new_name,
        };
        self.in_place(new_dir, new_name, || self.roll(caller, from, to, flags))?;
        self.was_moved(new_dir, new_name)
    }

    /// Visits entries after `cookie` (0 = from the start) until `visit` answers false (buffer full;
    /// that entry will be asked for again). With `attrs` each entry carries its attributes; one
    /// that goes away meanwhile is left out.
    ///
    /// # Errors
    /// [`Error::NotDirectory`]; those of reading.
    pub fn readdir(
        &self,
        ino: Number,
        cookie: u64,
        attrs: bool,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        if let Some(behind) = Behind::of(ino) {
            return self.read_behind(behind, cookie, attrs, visit);
        }
        let ends = self.walk.of_dir(&*self.cask, ino)?.ttl.is_some()
            || self.ages.knows(&*self.cask, ino)?;
        namespace::read_dir(&*self.cask, ino, cookie, &mut |entry| {
            if !attrs && !ends {
                return Ok(visit(&entry, None));
            }
            let inode = match self.fs.inode(entry.ino) {
                Ok(inode) => inode,
                Err(Error::Stale) => return Ok(true),
                Err(error) => return Err(error),
            };
            if self.hides(&inode)? {
                return Ok(true);
            }
            match attrs {
                true => Ok(visit(&entry, Some(&self.entry(&inode)?))),
                false => Ok(visit(&entry, None)),
            }
        })
    }

    /// Makes a node of any kind; a thread that renamed a log takes over what is back in its place.
    pub(super) fn make_node(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        new: &NewFile,
    ) -> Result<Inode> {
        let now = self.now();
        let adopts =
            new.kind == FileKind::Regular && self.absences.hides(now, caller.tid, dir, name);
        let (inode, lsn) = self.cask.transact(Class::Grow, |tx| {
            if adopts && let Some(inode) = adopt(tx, dir, name, new, now)? {
                return Ok(inode);
            }
            self.make_in_place(tx, dir, name, new, now)
        })?;
        self.absences.end(caller.tid, dir, name);
        self.confirm_in(dir, lsn)?;
        Ok(inode)
    }

    /// Makes a regular file and opens it in one step.
    pub(super) fn make_and_open(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        perm: u32,
        flags: OpenFlags,
    ) -> Result<(Inode, Opened)> {
        let now = self.now();
        let kind = FileKind::Regular;
        let new = NewFile {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
        };
        let adopts = self.absences.hides(now, caller.tid, dir, name);
        let ((inode, mode, drops, _, tie), lsn) = self.cask.transact_then(
            Class::Grow,
            |tx| {
                let mut drops = false;
                let mut inode = match self.make_in_place(tx, dir, name, &new, now) {
                    Err(Error::Exists) => match adopts {
                        true => adopt(tx, dir, name, &new, now)?.ok_or(Error::Exists)?,
                        false if flags.exclusive => return Err(Error::Exists),
                        false => {
                            drops = flags.truncate;
                            open_existing(tx, caller, dir, name, flags)?
                        }
                    },
                    made => made?,
                };
                let mode = self.walk.of(tx, &inode)?.mode;
                if drops && mode != Mode::Value && inode.size > 0 {
                    data::truncate(tx, caller, &mut inode, 0, now)?;
                }
                Ok((inode, mode, drops, predecessor(tx, &inode)?, None))
            },
            |(inode, mode, _, looks, tie)| {
                if *mode == Mode::Log && flags.write {
                    let bound = self.bindings.bind(dir, name, inode.number, looks.clone());
                    if inode.size == 0 {
                        bound.binding().state().emptied();
                    }
                    *tie = Some(bound);
                } else {
                    self.fs.opens().add(inode.number);
                }
            },
        )?;
        self.absences.end(caller.tid, dir, name);
        let opened = match (tie, mode) {
            // The kernel believes the file to be new and the handle to be at its start.
            (Some(tie), _) => self.opened_log(&inode, 0, flags, tie),
            (None, Mode::Value) => {
                let draft = if drops && flags.write {
                    Draft::empty()
                } else {
                    Draft::of_file()
                };
                self.opened(inode.number, flags, Kind::Value(draft), mode)
            }
            (None, _) => self.opened(inode.number, flags, Kind::Plain, mode),
        };
        if let Err(error) = self.confirm_in(dir, lsn) {
            self.release(inode.number, opened.fh)?;
            return Err(error);
        }
        Ok((inode, opened))
    }

    /// Gives a file one more name, unless writers are bound to the one it has.
    pub(super) fn link_unless_live(&self, ino: Number, dir: Number, name: &[u8]) -> Result<Inode> {
        let now = self.now();
        let (inode, lsn) = self.cask.transact_then(
            Class::Grow,
            |tx| {
                let inode = load(tx, ino)?;
                if let Some(name) = namespace::name_of(tx, &inode)?
                    && self.bindings.find(inode.parent, &name).is_some()
                {
                    return Err(Error::NotPermitted(
                        "a log that is being written has one name only",
                    ));
                }
                namespace::link(tx, ino, dir, name, now)
            },
            |inode| self.has_other_place(inode.number),
        )?;
        self.confirm_in(dir, lsn)?;
        Ok(inode)
    }

    /// Takes a name; its writers make it anew with their next record, or with `roll-on=reopen` stay
    /// with the file.
    pub(super) fn unlink_name(&self, dir: Number, name: &[u8]) -> Result<()> {
        let now = self.now();
        let ((unnamed, ..), lsn) = self.cask.transact_then(
            Class::Release,
            |tx| {
                let inode = namespace::lookup(tx, dir, name)?;
                let looks = pattern(tx, &inode)?;
                let unnamed = self
                    .follows(tx, Place { dir, name }, &inode)?
                    .then_some(inode.number);
                let is_open = |ino| self.fs.is_open(ino) || unnamed == Some(ino);
                namespace::unlink(tx, dir, name, &is_open, now)?;
                Ok((unnamed, looks, other_name_of(&inode)))
            },
            |(unnamed, looks, other)| {
                if let Some(number) = *unnamed {
                    let keep = || self.fs.opens().add(number);
                    self.bindings.unname(dir, name, number, keep);
                } else {
                    self.bindings.lost(dir, name, looks.as_ref());
                }
                if let Some(number) = *other {
                    self.has_other_place(number);
                }
            },
        )?;
        if let Some(number) = unnamed {
            // Its last writer may have gone just before.
            self.fs.reap(number)?;
        }
        self.confirm_in(dir, lsn)
    }

    /// A file of several names was given one, or lost one. Its settings are those of the place of the
    /// name given last, and a log may be bound to it by another.
    pub(super) fn has_other_place(&self, number: Number) {
        self.bindings.void_settings_of(number);
        self.counts.forget(number);
    }
}

/// The number of a file that has more names than the one that is moved or taken.
pub(super) fn other_name_of(inode: &Inode) -> Option<Number> {
    (inode.nlink > 1 && !inode.is_dir()).then_some(inode.number)
}

/// Gives the live log under a name the looks that its maker asked for. It keeps its content: the
/// records in it came after the cut. `None` when the name is free, or stands for no regular file.
fn adopt<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    new: &NewFile,
    now: Timestamp,
) -> Result<Option<Inode>> {
    let mut inode = match namespace::lookup(tx, dir, name) {
        Ok(inode) if inode.is_file() => inode,
        Ok(_) | Err(Error::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let parent = load_dir(tx, dir)?;
    inode.set_perm(new.perm);
    inode.uid = new.uid;
    inode.gid = if parent.mode & SET_GID != 0 {
        parent.gid
    } else {
        new.gid
    };
    inode.ctime = now;
    save(tx, &inode)?;
    Ok(Some(inode))
}

/// Opens what is there after all: somebody made it after the kernel had looked. The kernel has not
/// checked the caller's permission on it, so unless that is plain the kernel is sent to look again.
fn open_existing<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    dir: Number,
    name: &[u8],
    flags: OpenFlags,
) -> Result<Inode> {
    let inode = namespace::lookup(tx, dir, name)?;
    if inode.is_file() && may_open(&inode, caller, flags) {
        Ok(inode)
    } else {
        Err(Error::Stale)
    }
}

/// Whether the permission bits let the caller open the file, by its user and first group alone.
fn may_open(inode: &Inode, caller: &Caller, flags: OpenFlags) -> bool {
    let shift = match caller {
        Caller { uid: 0, .. } => return true,
        Caller { uid, .. } if *uid == inode.uid => 6,
        Caller { gid, .. } if *gid == inode.gid => 3,
        // A further group of the caller might have fewer rights than others have.
        _ => return false,
    };
    let bits = inode.perm() >> shift;
    (!flags.read || bits & 4 != 0) && (!flags.write && !flags.truncate || bits & 2 != 0)
}
