//! Moving names: `renameat2(2)` with all its flags.
//!
//! Errors come in the order in which the kernel finds them. Invariant: after a rename every directory
//! still leads up to the root.

use super::directory::{check_name, find, insert, remove};
use super::inode::{Inode, load_dir, save};
use super::namespace::{NewFile, entered, left, lookup, make, rmdir, unlink};
use super::path::is_below;
use super::types::{Caller, RenameFlags};
use crate::cask::{Class, Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;

/// What a rename did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// What was moved, as it was.
    pub moved: Inode,
    /// What stood under the new name, as it was; exchanged or replaced.
    pub replaced: Option<Inode>,
}

/// One end of a rename.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Directory.
    pub dir: Number,
    /// Name in it.
    pub name: &'a [u8],
}

/// What a rename asks of the free space. Where a name goes for it, it adds nothing and goes through
/// however full the cask is. Else the new name may be longer than the old, and many such renames
/// would use up what is kept for deleting. Asked outside of the operation to choose, and inside to
/// make sure.
///
/// # Errors
/// Those of reading.
pub fn rename_class(r: &impl Read, to: Place<'_>, flags: RenameFlags) -> Result<Class> {
    match find(r, to.dir, to.name) {
        Ok(_) if !flags.whiteout => Ok(Class::Release),
        Ok(_) | Err(Error::NotFound) => Ok(Class::Grow),
        Err(error) => Err(error),
    }
}

/// Moves a name; all flags of `renameat2(2)`.
///
/// # Errors
/// Those of `renameat2(2)`.
pub fn rename<D: Device>(
    tx: &mut Tx<'_, D>,
    caller: &Caller,
    from: Place<'_>,
    to: Place<'_>,
    flags: RenameFlags,
    is_open: &dyn Fn(Number) -> bool,
    now: Timestamp,
) -> Result<Renamed> {
    for name in [from.name, to.name] {
        check_name(name)?;
        if name == b"." || name == b".." {
            return Err(Error::Busy("the names . and .. cannot be moved".to_owned()));
        }
    }
    if flags.exchange && (flags.no_replace || flags.whiteout) {
        return Err(Error::invalid("RENAME_EXCHANGE goes with no other flag"));
    }
    if load_dir(tx, to.dir)?.nlink == 0 {
        return Err(Error::NotFound);
    }
    let moved = lookup(tx, from.dir, from.name)?;
    let replaced = match lookup(tx, to.dir, to.name) {
        Ok(inode) => Some(inode),
        Err(Error::NotFound) => None,
        Err(error) => return Err(error),
    };
    if flags.no_replace && replaced.is_some() {
        return Err(Error::Exists);
    }
    if flags.exchange && replaced.is_none() {
        return Err(Error::NotFound);
    }
    check_loop(tx, from.dir, to.dir, &moved, replaced.as_ref(), flags)?;
    if let Some(other) = replaced {
        if other.number == moved.number {
            return Ok(Renamed {
                moved,
                replaced: None,
            });
        }
        if flags.exchange {
            exchange(tx, from, to, moved, other, now)?;
            return Ok(Renamed { moved, replaced });
        }
        match (moved.is_dir(), other.is_dir()) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            (true, true) => rmdir(tx, to.dir, to.name, is_open, now)?,
            (false, false) => unlink(tx, to.dir, to.name, is_open, now)?,
        };
    }
    let mut inode = Inode {
        ctime: now,
        ..moved
    };
    remove(tx, from.dir, from.name)?;
    insert(tx, to.dir, to.name, &mut inode)?;
    let mut source = load_dir(tx, from.dir)?;
    left(&mut source, inode.is_dir(), now);
    save(tx, &source)?;
    let mut target = load_dir(tx, to.dir)?;
    entered(&mut target, inode.is_dir(), now)?;
    save(tx, &target)?;
    save(tx, &inode)?;
    if flags.whiteout {
        let white = NewFile {
            kind: FileKind::CharDevice,
            perm: 0,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
        };
        make(tx, from.dir, from.name, &white, now)?;
    }
    Ok(Renamed { moved, replaced })
}

/// No directory may come to stand below itself.
fn check_loop(
    r: &impl Read,
    from_dir: Number,
    to_dir: Number,
    moved: &Inode,
    replaced: Option<&Inode>,
    flags: RenameFlags,
) -> Result<()> {
    // Within one directory nothing gets a new ancestor.
    if from_dir == to_dir {
        return Ok(());
    }
    if moved.is_dir() && is_below(r, to_dir, moved.number)? {
        return Err(Error::invalid("a directory cannot be moved into itself"));
    }
    match replaced {
        Some(other) if other.is_dir() && is_below(r, from_dir, other.number)? => {
            if flags.exchange {
                Err(Error::invalid("a directory cannot be moved into itself"))
            } else {
                Err(Error::NotEmpty)
            }
        }
        _ => Ok(()),
    }
}

/// Swaps what two names lead to.
fn exchange<D: Device>(
    tx: &mut Tx<'_, D>,
    from: Place<'_>,
    to: Place<'_>,
    moved: Inode,
    other: Inode,
    now: Timestamp,
) -> Result<()> {
    let (mut first, mut second) = (
        Inode {
            ctime: now,
            ..moved
        },
        Inode {
            ctime: now,
            ..other
        },
    );
    remove(tx, from.dir, from.name)?;
    remove(tx, to.dir, to.name)?;
    insert(tx, to.dir, to.name, &mut first)?;
    insert(tx, from.dir, from.name, &mut second)?;
    save(tx, &first)?;
    save(tx, &second)?;
    for (dir, came, went) in [(to.dir, first, second), (from.dir, second, first)] {
        let mut parent = load_dir(tx, dir)?;
        left(&mut parent, went.is_dir(), now);
        entered(&mut parent, came.is_dir(), now)?;
        save(tx, &parent)?;
    }
    Ok(())
}
