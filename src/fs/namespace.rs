//! Names: everything that gives or takes one.
//!
//! Invariants: a directory's `size` is the number of its names; `nlink` counts an inode's names (for
//! a directory 2 and one for each directory in it); `parent` and `name_hash` of an inode lead to the
//! name it was given last; an inode without a name is listed as an orphan.

use super::arrivals;
use super::directory::{Named, insert, named, remove};
use super::inode::{Inode, SET_GID, load, load_dir, new_inode, save};
use super::segment;
use crate::cask::{Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::{INDEX, Number};
use crate::format::{FileKind, Key, Kind};
use crate::limits::LINK_MAX;

pub use super::directory::{check_name, files_from, find, named_by, names_from, read_dir};
pub use super::path::{name_of, path_of};
pub use super::rename::{Place, Renamed, rename, rename_class};

/// Attribute items that [`reap_some`] removes at a time: with the inode, its content and its place
/// among the orphans that is no more than a cask that is full has room for.
const REAP_STEP: usize = 8;

/// Checks a name that is to be given.
fn check_new_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if name == b"." || name == b".." {
        Err(Error::Exists)
    } else {
        Ok(())
    }
}

/// Checks that a name is free.
fn check_absent(r: &impl Read, dir: Number, name: &[u8]) -> Result<()> {
    match find(r, dir, name) {
        Ok(_) => Err(Error::Exists),
        Err(Error::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The inode under a name of a directory; `.` and `..` included.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotDirectory`]; as [`check_name`].
pub fn lookup(r: &impl Read, dir: Number, name: &[u8]) -> Result<Inode> {
    match name {
        b"." => load_dir(r, dir),
        b".." => load_dir(r, load_dir(r, dir)?.parent),
        _ => match find(r, dir, name) {
            Ok((number, _)) => load(r, number),
            // Only now is it worth asking whether the directory is one.
            Err(Error::NotFound) => load_dir(r, dir).and(Err(Error::NotFound)),
            Err(error) => Err(error),
        },
    }
}

/// Forgets the name that leads to the inode, if it is this one.
fn unname(dir: Number, hash: u64, inode: &mut Inode) {
    if inode.parent == dir && inode.name_hash == hash && !inode.is_dir() {
        inode.parent = 0;
        inode.name_hash = 0;
    }
}

/// What a new file is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewFile {
    /// File type.
    pub kind: FileKind,
    /// Permission bits, umask applied.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group; a set-group-ID directory gives its own instead.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
}

/// Makes a file under a new name.
///
/// # Errors
/// [`Error::Exists`], [`Error::NotFound`] in a directory that is being removed,
/// [`Error::TooManyLinks`], [`Error::NoFiles`]; as [`check_name`].
pub fn make<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    new: &NewFile,
    now: Timestamp,
) -> Result<Inode> {
    check_new_name(name)?;
    let mut parent = load_dir(tx, dir)?;
    if parent.nlink == 0 {
        return Err(Error::NotFound);
    }
    check_absent(tx, dir, name)?;
    let is_dir = new.kind == FileKind::Directory;
    let (mut perm, mut gid) = (new.perm, new.gid);
    if parent.mode & SET_GID != 0 {
        gid = parent.gid;
        if is_dir {
            perm |= SET_GID;
        }
    }
    let mut inode = new_inode(tx, new.kind, perm, new.uid, gid, new.rdev, now)?;
    inode.nlink = if is_dir { 2 } else { 1 };
    insert(tx, dir, name, &mut inode)?;
    entered(&mut parent, is_dir, now)?;
    save(tx, &parent)?;
    save(tx, &inode)?;
    Ok(inode)
}

/// A directory got a name.
pub(super) fn entered(parent: &mut Inode, is_dir: bool, now: Timestamp) -> Result<()> {
    parent.size = parent.size.saturating_add(1);
    if is_dir {
        if parent.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        parent.nlink += 1;
    }
    (parent.mtime, parent.ctime) = (now, now);
    Ok(())
}

/// A directory lost a name.
pub(super) fn left(parent: &mut Inode, is_dir: bool, now: Timestamp) {
    parent.size = parent.size.saturating_sub(1);
    if is_dir {
        parent.nlink = parent.nlink.saturating_sub(1);
    }
    (parent.mtime, parent.ctime) = (now, now);
}

/// Gives an existing inode, which is no directory, one more name.
///
/// # Errors
/// [`Error::NotPermitted`] for a directory, [`Error::Exists`], [`Error::TooManyLinks`].
pub fn link<D: Device>(
    tx: &mut Tx<'_, D>,
    number: Number,
    dir: Number,
    name: &[u8],
    now: Timestamp,
) -> Result<Inode> {
    check_new_name(name)?;
    let mut inode = load(tx, number)?;
    if inode.is_dir() {
        return Err(Error::NotPermitted("a directory has one name only"));
    }
    if inode.nlink >= LINK_MAX {
        return Err(Error::TooManyLinks);
    }
    if inode.nlink == 0 {
        return Err(Error::NotFound);
    }
    let mut parent = load_dir(tx, dir)?;
    if parent.nlink == 0 {
        return Err(Error::NotFound);
    }
    check_absent(tx, dir, name)?;
    insert(tx, dir, name, &mut inode)?;
    inode.nlink += 1;
    inode.ctime = now;
    entered(&mut parent, false, now)?;
    save(tx, &parent)?;
    save(tx, &inode)?;
    Ok(inode)
}

/// Takes the name of a file that is no directory. With its last name the file goes, unless
/// `is_open` says that a handle is left: then it stays as an orphan until [`reap`]. Answers the
/// inode as it was.
///
/// # Errors
/// [`Error::NotFound`], [`Error::IsDirectory`].
pub fn unlink<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    is_open: &dyn Fn(Number) -> bool,
    now: Timestamp,
) -> Result<Inode> {
    match named(tx, dir, name) {
        Ok(named) if !matches!(name, b"." | b"..") => unlink_named(tx, &named, is_open, now),
        // `.` and `..` are names, too; and perhaps there is no such directory.
        Ok(_) | Err(Error::NotFound) => lookup(tx, dir, name).and(Err(Error::IsDirectory)),
        Err(error) => Err(error),
    }
}

/// [`unlink`] of a name that was found.
///
/// # Errors
/// [`Error::IsDirectory`]; [`Error::Stale`] when it leads nowhere.
pub fn unlink_named<D: Device>(
    tx: &mut Tx<'_, D>,
    name: &Named,
    is_open: &dyn Fn(Number) -> bool,
    now: Timestamp,
) -> Result<Inode> {
    let inode = load(tx, name.entry.number)?;
    if inode.is_dir() {
        return Err(Error::IsDirectory);
    }
    let mut parent = load_dir(tx, name.dir())?;
    name.remove(tx)?;
    left(&mut parent, false, now);
    save(tx, &parent)?;
    let mut less = inode;
    unname(name.dir(), name.hash(), &mut less);
    less.nlink = less.nlink.saturating_sub(1);
    less.ctime = now;
    if less.nlink > 0 {
        save(tx, &less)?;
    } else {
        abandon(tx, &less, is_open)?;
    }
    Ok(inode)
}

/// An inode lost its last name.
fn abandon<D: Device>(
    tx: &mut Tx<'_, D>,
    inode: &Inode,
    is_open: &dyn Fn(Number) -> bool,
) -> Result<()> {
    if is_open(inode.number) {
        tx.put(Key::new(INDEX, Kind::Orphan, inode.number), [].as_slice())?;
        save(tx, inode)
    } else {
        erase(tx, inode)
    }
}

/// Removes an inode and all that belongs to it.
fn erase<D: Device>(tx: &mut Tx<'_, D>, inode: &Inode) -> Result<()> {
    tx.del(Key::inode(inode.number));
    segment::forget(tx, inode);
    match inode.is_dir() {
        true => arrivals::forget(tx, inode.number)?,
        false => tx.drop_content(inode.content),
    }
    super::xattr::forget(tx, inode, usize::MAX)?;
    tx.remove_file();
    Ok(())
}

/// Removes an orphan whose last handle was closed; anything else stays.
///
/// # Errors
/// Those of reading.
pub fn reap<D: Device>(tx: &mut Tx<'_, D>, number: Number) -> Result<()> {
    let key = Key::new(INDEX, Kind::Orphan, number);
    if tx.get(&key)?.is_none() {
        return Ok(());
    }
    tx.del(key);
    match load(tx, number) {
        Ok(inode) => erase(tx, &inode),
        Err(Error::Stale) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Like [`reap`], but takes a bounded part of the orphan's attributes only, so that it goes through
/// however full the cask is. Answers whether nothing is left.
///
/// # Errors
/// Those of reading.
pub fn reap_some<D: Device>(tx: &mut Tx<'_, D>, number: Number) -> Result<bool> {
    let orphan = tx.get(&Key::new(INDEX, Kind::Orphan, number))?;
    match load(tx, number) {
        Ok(inode) if orphan.is_some() && super::xattr::keys(tx, &inode)?.len() > REAP_STEP => {
            super::xattr::forget(tx, &inode, REAP_STEP)?;
            Ok(false)
        }
        _ => reap(tx, number).map(|()| true),
    }
}

/// Keeps an inode that has no name yet, or no name any more, as an orphan.
///
/// # Errors
/// Those of writing.
pub fn keep_orphan<D: Device>(tx: &mut Tx<'_, D>, inode: &Inode) -> Result<()> {
    tx.put(Key::new(INDEX, Kind::Orphan, inode.number), [].as_slice())?;
    save(tx, inode)
}

/// The inodes without a name.
///
/// # Errors
/// Those of reading.
pub fn orphans(r: &impl Read) -> Result<Vec<Number>> {
    let mut found = Vec::new();
    let (from, to) = (
        Key::new(INDEX, Kind::Orphan, 0),
        Key::new(INDEX, Kind::Orphan, u64::MAX),
    );
    r.scan(from, to, &mut |key, _| {
        found.push(key.offset);
        Ok(true)
    })?;
    Ok(found)
}

/// Removes an empty directory.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`]; [`Error::Invalid`] for `.`.
pub fn rmdir<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    is_open: &dyn Fn(Number) -> bool,
    now: Timestamp,
) -> Result<Inode> {
    match name {
        b"." => return Err(Error::invalid("a directory is not removed by the name .")),
        b".." => return Err(Error::NotEmpty),
        _ => {}
    }
    let inode = lookup(tx, dir, name)?;
    if !inode.is_dir() {
        return Err(Error::NotDirectory);
    }
    if inode.size > 0 {
        return Err(Error::NotEmpty);
    }
    let mut parent = load_dir(tx, dir)?;
    remove(tx, dir, name)?;
    left(&mut parent, true, now);
    save(tx, &parent)?;
    let gone = Inode {
        nlink: 0,
        ctime: now,
        ..inode
    };
    abandon(tx, &gone, is_open)?;
    Ok(inode)
}
