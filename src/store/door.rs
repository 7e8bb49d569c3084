//! The hidden door: every directory answers to the name `.cask`, by look-up only.
//!
//! Behind it stands `rotate`: names written to it, one a line, are logs of that directory to be
//! rotated. A write that holds a NUL has its names ended by NULs instead, for names with newlines.
//! Behind that of the root there is also `events`, the record of rolls. No name behind the door is in
//! the container. Invariant: numbers of inodes in the container have the two highest bits clear, so
//! that those bits tell what stands behind whose door.

use super::events;
use super::handle::Kind;
use super::settings::Mode;
use super::{Entry, Opened, Store};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::{Number, ROOT};
use crate::fs::inode::load_dir;
use crate::fs::{Attr, Caller, DirEntry, OpenFlags};

/// The name every directory answers to but never lists.
pub const DOOR: &[u8] = b".cask";
/// The control file behind it.
const ROTATE: &[u8] = b"rotate";

/// The record of rolls behind the root's.
const EVENTS: &[u8] = b"events";

const DOOR_BIT: Number = 1 << 63;
const ROTATE_BIT: Number = 1 << 62;

const FIXED: Error = Error::NotPermitted("what stands behind .cask is neither made nor changed");

/// What stands behind a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The directory `.cask` of this directory.
    Door(Number),
    /// Its control file `rotate`.
    Rotate(Number),
    /// The record of rolls.
    Events,
}

impl Behind {
    /// What an inode number means, if it is not one of the container.
    pub fn of(ino: Number) -> Option<Self> {
        let dir = ino & !(DOOR_BIT | ROTATE_BIT);
        match (ino & DOOR_BIT != 0, ino & ROTATE_BIT != 0) {
            (true, false) => Some(Self::Door(dir)),
            (true, true) => Some(Self::Rotate(dir)),
            (false, true) => Some(Self::Events),
            (false, false) => None,
        }
    }

    fn number(self) -> Number {
        match self {
            Self::Door(dir) => dir | DOOR_BIT,
            Self::Rotate(dir) => dir | DOOR_BIT | ROTATE_BIT,
            Self::Events => ROOT | ROTATE_BIT,
        }
    }
}

/// Refuses to give anything the name of the door, or to change anything behind it.
pub fn not_the_door(dir: Number, name: &[u8]) -> Result<()> {
    if name == DOOR {
        return Err(Error::NotPermitted(
            "the name .cask is taken in every directory",
        ));
    }
    not_behind(dir)
}

/// Refuses to change anything behind the door.
pub fn not_behind(ino: Number) -> Result<()> {
    match Behind::of(ino) {
        Some(_) => Err(FIXED),
        None => Ok(()),
    }
}

impl<D: Device> Store<D> {
    /// Finds a name that leads to or through a door; `None` when it does not.
    pub(super) fn lookup_door(&self, dir: Number, name: &[u8]) -> Result<Option<Entry>> {
        let found = match (Behind::of(dir), name) {
            (None, DOOR) => Behind::Door(dir),
            (None, _) => return Ok(None),
            (Some(Behind::Door(dir)), ROTATE) => Behind::Rotate(dir),
            (Some(Behind::Door(ROOT)), EVENTS) => Behind::Events,
            (Some(Behind::Door(_)), _) => return Err(Error::NotFound),
            (Some(Behind::Rotate(_) | Behind::Events), _) => return Err(Error::NotDirectory),
        };
        self.entry_behind(found).map(Some)
    }

    /// What is told of what stands behind a door: it belongs to whom its directory belongs to, and
    /// who may write there may write to its control file.
    pub(super) fn entry_behind(&self, what: Behind) -> Result<Entry> {
        let dir = match what {
            Behind::Door(dir) | Behind::Rotate(dir) => dir,
            Behind::Events => ROOT,
        };
        let inode = load_dir(&*self.cask, dir)?;
        let events = match what {
            Behind::Events => events::record(&*self.cask)?,
            _ => None,
        };
        let size = events.map_or(0, |events| events.size.get());
        let mtime = events.map_or(inode.ctime, |events| events.mtime.into());
        let (kind, perm, nlink) = match what {
            Behind::Events => (FileKind::Regular, inode.perm() & 0o444, 1),
            Behind::Door(_) => (FileKind::Directory, inode.perm() & 0o555, 2),
            Behind::Rotate(_) => (FileKind::Regular, inode.perm() & 0o222, 1),
        };
        let attr = Attr {
            ino: what.number(),
            kind,
            perm,
            nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            btime: inode.btime,
        };
        Ok(Entry {
            attr,
            cacheable: false,
        })
    }

    /// Opens what stands behind a door.
    pub(super) fn open_behind(&self, what: Behind, flags: OpenFlags) -> Result<Opened> {
        match what {
            Behind::Door(_) => Err(Error::IsDirectory),
            Behind::Rotate(dir) => {
                Ok(self.opened(what.number(), flags, Kind::Rotate(dir), Mode::Plain))
            }
            Behind::Events if flags.write || flags.truncate => Err(FIXED),
            Behind::Events => Ok(self.opened(what.number(), flags, Kind::Events, Mode::Plain)),
        }
    }

    /// Visits the entries behind a door, as [`Store::readdir`] does.
    pub(super) fn read_behind(
        &self,
        what: Behind,
        cookie: u64,
        attrs: bool,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let Behind::Door(dir) = what else {
            return Err(Error::NotDirectory);
        };
        let entries = [
            (b".".as_slice(), FileKind::Directory, what.number()),
            (b"..", FileKind::Directory, dir),
            (ROTATE, FileKind::Regular, Behind::Rotate(dir).number()),
            (EVENTS, FileKind::Regular, Behind::Events.number()),
        ];
        let count = if dir == ROOT { 4 } else { 3 };
        let entries = entries.into_iter().take(count).zip(1..);
        for ((name, kind, ino), cookie) in entries.skip_while(|e| e.1 <= cookie) {
            let entry = DirEntry {
                ino,
                kind,
                name: name.to_vec(),
                cookie,
            };
            let with = match attrs {
                true => Some(self.getattr(ino, None)?),
                false => None,
            };
            if !visit(&entry, with.as_ref()) {
                break;
            }
        }
        Ok(())
    }

    /// Rotates the logs whose names were written to a control file, up to the first that fails.
    pub(super) fn rotate_all(&self, caller: &Caller, dir: Number, names: &[u8]) -> Result<()> {
        let end = if names.contains(&0) { 0 } else { b'\n' };
        names
            .split(|byte| *byte == end)
            .filter(|name| !name.is_empty())
            .try_for_each(|name| {
                self.rotate(caller, dir, name).inspect_err(|error| {
                    ::log::info!("rotate {}: {error}", String::from_utf8_lossy(name));
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_behind_the_door_lead_back_to_their_directory() {
        assert_eq!(Behind::of(1), None);
        for what in [Behind::Door(77), Behind::Rotate(77), Behind::Events] {
            assert_eq!(Behind::of(what.number()), Some(what));
            assert!(not_behind(what.number()).is_err());
        }
        assert!(not_the_door(77, b"a").is_ok());
        assert!(not_the_door(77, b".cask").is_err());
    }
}
