//! The hidden door: every directory answers to the name `.cask`, by look-up only.
//!
//! Behind it stands `rotate`: names written to it, one a line, are logs of that directory to be
//! rotated. A write that holds a NUL has its names ended by NULs instead, for names with newlines.
//! Where logs are kept there is also `cat`, a directory of tables, and behind the door of the root
//! `events`, the record of rolls, and `snapshot`, the container itself. No name behind the door is in the container. Invariant: numbers of
//! inodes in the container have the two highest bits clear, so that those bits and the third tell what
//! stands behind whose door.

use super::events;
use super::handle::Kind;
use super::settings::Mode;
use super::{Entry, Opened, Store};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::{Number, ROOT};
use crate::fs::inode::load_dir;
use crate::fs::{Attr, Caller, DirEntry, Inode, OpenFlags};

/// The name every directory answers to but never lists.
pub const DOOR: &[u8] = b".cask";
/// The control file behind it.
const ROTATE: &[u8] = b"rotate";

/// The record of rolls behind the root's.
const EVENTS: &[u8] = b"events";
/// The container as it is, behind the root's.
const SNAPSHOT: &[u8] = b"snapshot";
/// The directory of tables behind that of a directory of logs.
const CAT: &[u8] = b"cat";

const DOOR_BIT: Number = 1 << 63;
const ROTATE_BIT: Number = 1 << 62;
/// Numbers never get so high that this bit is theirs; a container that claims so has no tables.
const TABLE_BIT: Number = 1 << 61;

/// Of what stands behind the root's door beside the record of rolls.
const SNAPSHOT_NUMBER: Number = ROOT + 1;

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
    /// The container.
    Snapshot,
    /// The directory of the tables of this directory.
    Cat(Number),
    /// The table with this number.
    Table(Number),
}

impl Behind {
    /// What an inode number means, if it is not one of the container.
    pub fn of(ino: Number) -> Option<Self> {
        let dir = ino & !(DOOR_BIT | ROTATE_BIT);
        let of_table = ino & !(DOOR_BIT | ROTATE_BIT | TABLE_BIT);
        let bits = [DOOR_BIT, ROTATE_BIT, TABLE_BIT].map(|bit| ino & bit != 0);
        match bits {
            [true, false, _] => Some(Self::Door(dir)),
            [true, true, false] => Some(Self::Rotate(dir)),
            [true, true, true] => Some(Self::Table(of_table)),
            [false, true, false] if dir == SNAPSHOT_NUMBER => Some(Self::Snapshot),
            [false, true, false] => Some(Self::Events),
            [false, true, true] => Some(Self::Cat(of_table)),
            [false, false, _] => None,
        }
    }

    fn number(self) -> Number {
        match self {
            Self::Door(dir) => dir | DOOR_BIT,
            Self::Rotate(dir) => dir | DOOR_BIT | ROTATE_BIT,
            Self::Events => ROOT | ROTATE_BIT,
            Self::Snapshot => SNAPSHOT_NUMBER | ROTATE_BIT,
            Self::Cat(dir) => dir | ROTATE_BIT | TABLE_BIT,
            Self::Table(table) => table | DOOR_BIT | ROTATE_BIT | TABLE_BIT,
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
            (Some(Behind::Door(ROOT)), SNAPSHOT) => Behind::Snapshot,
            (Some(Behind::Door(dir)), CAT) if self.has_cat(dir)? => Behind::Cat(dir),
            (Some(Behind::Door(_)), _) => return Err(Error::NotFound),
            (Some(Behind::Cat(dir)), table) => {
                self.files_of(dir, table)?;
                Behind::Table(self.tables.number(dir, table))
            }
            (Some(_), _) => return Err(Error::NotDirectory),
        };
        self.entry_behind(found).map(Some)
    }

    /// What is told of what stands behind a door: it belongs to whom its directory belongs to, and
    /// who may write there may write to its control file.
    pub(super) fn entry_behind(&self, what: Behind) -> Result<Entry> {
        let dir = match what {
            Behind::Door(dir) | Behind::Rotate(dir) | Behind::Cat(dir) => dir,
            Behind::Events | Behind::Snapshot => ROOT,
            Behind::Table(table) => return self.entry_of_table(table),
        };
        let inode = load_dir(&*self.cask, dir)?;
        let events = match what {
            Behind::Events => events::record(&*self.cask)?,
            _ => None,
        };
        let size = match what {
            Behind::Snapshot => {
                let stats = self.cask.stats();
                stats.blocks.saturating_mul(stats.block_size.into())
            }
            _ => events.map_or(0, |events| events.size.get()),
        };
        let mtime = events.map_or(inode.ctime, |events| events.mtime.into());
        let (kind, perm, nlink) = match what {
            Behind::Events => (FileKind::Regular, inode.perm() & 0o444, 1),
            // All files are in it: it is for the owner of the cask.
            Behind::Snapshot => (FileKind::Regular, 0o400, 1),
            Behind::Door(_) | Behind::Cat(_) => (FileKind::Directory, inode.perm() & 0o555, 2),
            Behind::Rotate(_) | Behind::Table(_) => (FileKind::Regular, inode.perm() & 0o222, 1),
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
            left: None,
        })
    }

    /// What is told of a table: as large as all its files, and to be read by who may read all of them.
    fn entry_of_table(&self, number: Number) -> Result<Entry> {
        let (dir, table) = self.tables.named(number)?;
        let files = self.files_of(dir, &table)?;
        let last = files.last().ok_or(Error::NotFound)?;
        let sizes = files.iter().map(|inode| inode.size);
        let size = sizes.fold(0, u64::saturating_add);
        let common = |of: fn(&Inode) -> u32| {
            let first = of(last);
            files
                .iter()
                .all(|inode| of(inode) == first)
                .then_some(first)
        };
        let perm = files.iter().fold(0o444, |perm, inode| perm & inode.perm());
        // Where the files have not all one owner and one group, somebody may be the owner of one and
        // one of the others for the next: he may read if neither bit denies it.
        let (uid, gid) = (common(|inode| inode.uid), common(|inode| inode.gid));
        let all = |bits: u32| if perm & bits == bits { bits } else { 0 };
        let perm = match (uid, gid) {
            (Some(_), Some(_)) => perm,
            (Some(_), None) => perm & 0o400 | all(0o044),
            (None, Some(_)) => all(0o440) & 0o040 | all(0o444),
            (None, None) => all(0o444),
        };
        let attr = Attr {
            ino: Behind::Table(number).number(),
            kind: FileKind::Regular,
            perm,
            nlink: 1,
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: last.mtime,
            mtime: last.mtime,
            ctime: last.mtime,
            btime: last.btime,
        };
        Ok(Entry {
            attr,
            cacheable: false,
            left: None,
        })
    }

    fn has_cat(&self, dir: Number) -> Result<bool> {
        Ok(dir & TABLE_BIT == 0 && self.has_tables(dir)?)
    }

    /// Opens what stands behind a door.
    pub(super) fn open_behind(&self, what: Behind, flags: OpenFlags) -> Result<Opened> {
        match what {
            Behind::Door(_) | Behind::Cat(_) => Err(Error::IsDirectory),
            Behind::Rotate(dir) => {
                Ok(self.opened(what.number(), flags, Kind::Rotate(dir), Mode::Plain))
            }
            _ if flags.write || flags.truncate => Err(FIXED),
            Behind::Events => Ok(self.opened(what.number(), flags, Kind::Events, Mode::Plain)),
            Behind::Snapshot => {
                let image = Kind::Snapshot(Box::new(self.cask.image()?));
                Ok(self.opened(what.number(), flags, image, Mode::Plain))
            }
            Behind::Table(table) => {
                let (dir, table) = self.tables.named(table)?;
                let cat = self.open_cat(dir, &table)?;
                Ok(self.opened(what.number(), flags, Kind::Cat(cat), Mode::Plain))
            }
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
        let file = |name: &[u8], what: Behind| (name.to_vec(), FileKind::Regular, what.number());
        let mut entries = vec![(b".".to_vec(), FileKind::Directory, what.number())];
        match what {
            Behind::Door(dir) => {
                entries.push((b"..".to_vec(), FileKind::Directory, dir));
                entries.push(file(ROTATE, Behind::Rotate(dir)));
                if dir == ROOT {
                    entries.push(file(EVENTS, Behind::Events));
                    entries.push(file(SNAPSHOT, Behind::Snapshot));
                }
                if self.has_cat(dir)? {
                    let cat = Behind::Cat(dir).number();
                    entries.push((CAT.to_vec(), FileKind::Directory, cat));
                }
            }
            Behind::Cat(dir) => {
                let door = Behind::Door(dir).number();
                entries.push((b"..".to_vec(), FileKind::Directory, door));
                for table in self.tables(dir)? {
                    let number = self.tables.number(dir, &table);
                    entries.push(file(&table, Behind::Table(number)));
                }
            }
            _ => return Err(Error::NotDirectory),
        }
        let entries = entries.into_iter().zip(1..);
        for ((name, kind, ino), cookie) in entries.skip_while(|e| e.1 <= cookie) {
            let entry = DirEntry {
                ino,
                kind,
                name,
                cookie,
            };
            let with = match attrs {
                true => match self.getattr(ino, None) {
                    // The last file of a table went.
                    Err(Error::NotFound | Error::Stale) => continue,
                    found => Some(found?),
                },
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
        for what in [
            Behind::Door(77),
            Behind::Rotate(77),
            Behind::Events,
            Behind::Snapshot,
            Behind::Cat(77),
            Behind::Table(0),
        ] {
            assert_eq!(Behind::of(what.number()), Some(what));
            assert!(not_behind(what.number()).is_err());
        }
        assert!(not_the_door(77, b"a").is_ok());
        assert!(not_the_door(77, b".cask").is_err());
    }
}
