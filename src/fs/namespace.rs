//! Names: directories, and everything that gives, takes or moves a name.
//!
//! A directory item holds all names of one keyed hash, so a look-up is one leaf, whatever the size
//! of the directory. Invariants: a directory's `size` is the number of its names; `nlink` counts an
//! inode's names (for a directory 2 and one for each directory in it); `parent` and `name_hash` of
//! an inode lead to the name it was given last.

use super::inode::{Inode, SET_GID, load, load_dir, new_inode, save};
use super::types::{Caller, DirEntry, RenameFlags};
use crate::cask::{Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::DirentRecord;
use crate::format::key::{INDEX, Number, ROOT};
use crate::format::{FileKind, Key, Kind};
use crate::limits::{LINK_MAX, NAME_MAX};

/// Cookie after `.`.
const COOKIE_DOT: u64 = 1;
/// Cookie after `..`.
const COOKIE_DOT_DOT: u64 = 2;
/// Names of one hash that a cookie can tell apart.
const COLLISIONS_MAX: usize = 4;
/// Deepest directory that is believed: `PATH_MAX` allows 2048.
const DEPTH_MAX: usize = 4096;

/// Checks a name that is to be looked up.
///
/// # Errors
/// [`Error::NameTooLong`]; [`Error::Invalid`] for what is no name.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { max: NAME_MAX });
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::invalid(
            "a file name has 1 to 255 bytes, neither / nor NUL",
        ));
    }
    Ok(())
}

/// Checks a name that is to be given.
fn check_new_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if name == b"." || name == b".." {
        Err(Error::Exists)
    } else {
        Ok(())
    }
}

fn bucket(r: &impl Read, dir: Number, name: &[u8]) -> Result<(Key, Vec<DirentRecord>)> {
    let key = Key::new(dir, Kind::Dirent, r.name_hash(name));
    let entries = r
        .get(&key)?
        .map_or(Ok(Vec::new()), |value| DirentRecord::decode_all(&value))?;
    Ok((key, entries))
}

/// The number and kind under a name of a directory.
///
/// # Errors
/// [`Error::NotFound`]; as [`check_name`].
pub fn find(r: &impl Read, dir: Number, name: &[u8]) -> Result<(Number, FileKind)> {
    check_name(name)?;
    let (_, entries) = bucket(r, dir, name)?;
    let entry = entries
        .into_iter()
        .find(|entry| entry.name == name)
        .ok_or(Error::NotFound)?;
    Ok((entry.number, entry.kind))
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

/// Adds a name to a directory's items. Neither directory nor inode is changed.
fn insert<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    inode: &mut Inode,
) -> Result<()> {
    let (key, mut entries) = bucket(tx, dir, name)?;
    if entries.len() >= COLLISIONS_MAX {
        return Err(Error::NoSpace);
    }
    entries.push(DirentRecord {
        number: inode.number,
        kind: inode.kind(),
        name: name.to_vec(),
    });
    tx.put(key, DirentRecord::encode_all(&entries))?;
    inode.parent = dir;
    inode.name_hash = key.offset;
    Ok(())
}

/// Takes a name out of a directory's items. Neither directory nor inode is changed.
fn remove<D: Device>(tx: &mut Tx<'_, D>, dir: Number, name: &[u8]) -> Result<()> {
    let (key, mut entries) = bucket(tx, dir, name)?;
    entries.retain(|entry| entry.name != name);
    if entries.is_empty() {
        tx.del(key);
        Ok(())
    } else {
        tx.put(key, DirentRecord::encode_all(&entries))
    }
}

/// Forgets the name that leads to the inode, if it is this one.
fn unname<D: Device>(tx: &Tx<'_, D>, dir: Number, name: &[u8], inode: &mut Inode) {
    if inode.parent == dir && inode.name_hash == tx.name_hash(name) && !inode.is_dir() {
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
    match find(tx, dir, name) {
        Ok(_) => return Err(Error::Exists),
        Err(Error::NotFound) => {}
        Err(error) => return Err(error),
    }
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
fn entered(parent: &mut Inode, is_dir: bool, now: Timestamp) -> Result<()> {
    parent.size += 1;
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
fn left(parent: &mut Inode, is_dir: bool, now: Timestamp) {
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
    if find(tx, dir, name).is_ok() {
        return Err(Error::Exists);
    }
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
    let inode = lookup(tx, dir, name)?;
    if inode.is_dir() {
        return Err(Error::IsDirectory);
    }
    let mut parent = load_dir(tx, dir)?;
    remove(tx, dir, name)?;
    left(&mut parent, false, now);
    save(tx, &parent)?;
    let mut less = inode;
    unname(tx, dir, name, &mut less);
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
    if !inode.is_dir() {
        tx.drop_content(inode.content);
    }
    for key in super::xattr::keys(tx, inode)? {
        tx.del(key);
    }
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

/// Whether `dir` is `ancestor` or stands somewhere below it.
fn is_below(r: &impl Read, dir: Number, ancestor: Number) -> Result<bool> {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at == ancestor {
            return Ok(true);
        }
        if at == ROOT {
            return Ok(false);
        }
        at = load_dir(r, at)?.parent;
    }
    Err(Error::corrupt("directories that contain each other", 0))
}

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
    let moved = lookup(tx, from.dir, from.name)?;
    let replaced = match lookup(tx, to.dir, to.name) {
        Ok(inode) => Some(inode),
        Err(Error::NotFound) => None,
        Err(error) => return Err(error),
    };
    if moved.is_dir() && is_below(tx, to.dir, moved.number)? {
        return Err(Error::invalid("a directory cannot be moved into itself"));
    }
    if load_dir(tx, to.dir)?.nlink == 0 {
        return Err(Error::NotFound);
    }
    if flags.exchange {
        let other = replaced.ok_or(Error::NotFound)?;
        if other.is_dir() && is_below(tx, from.dir, other.number)? {
            return Err(Error::invalid("a directory cannot be moved into itself"));
        }
        exchange(tx, from, to, moved, other, now)?;
        return Ok(Renamed { moved, replaced });
    }
    if let Some(other) = &replaced {
        if flags.no_replace {
            return Err(Error::Exists);
        }
        if other.number == moved.number {
            return Ok(Renamed {
                moved,
                replaced: None,
            });
        }
        match (moved.is_dir(), other.is_dir()) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            (true, true) if is_below(tx, from.dir, other.number)? => return Err(Error::NotEmpty),
            (true, true) => {
                rmdir(tx, to.dir, to.name, is_open, now)?;
            }
            (false, false) => {
                unlink(tx, to.dir, to.name, is_open, now)?;
            }
        }
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

fn exchange<D: Device>(
    tx: &mut Tx<'_, D>,
    from: Place<'_>,
    to: Place<'_>,
    moved: Inode,
    other: Inode,
    now: Timestamp,
) -> Result<()> {
    if moved.number == other.number {
        return Ok(());
    }
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

/// The name that an inode was given last, if it still has it.
///
/// # Errors
/// Those of reading.
pub fn name_of(r: &impl Read, inode: &Inode) -> Result<Option<Vec<u8>>> {
    if inode.parent == 0 || inode.number == ROOT {
        return Ok(None);
    }
    let Some(value) = r.get(&Key::new(inode.parent, Kind::Dirent, inode.name_hash))? else {
        return Ok(None);
    };
    let entries = DirentRecord::decode_all(&value)?;
    Ok(entries
        .into_iter()
        .find(|entry| entry.number == inode.number)
        .map(|entry| entry.name))
}

/// The path from the root, without a leading slash, by the names given last; `None` when one of
/// them is gone.
///
/// # Errors
/// Those of reading.
pub fn path_of(r: &impl Read, number: Number) -> Result<Option<Vec<u8>>> {
    let mut parts = Vec::new();
    let mut at = number;
    for _ in 0..DEPTH_MAX {
        if at == ROOT {
            parts.reverse();
            return Ok(Some(parts.join(&b'/')));
        }
        let inode = load(r, at)?;
        let Some(name) = name_of(r, &inode)? else {
            return Ok(None);
        };
        parts.push(name);
        at = inode.parent;
    }
    Err(Error::corrupt("directories that contain each other", 0))
}

/// Visits the entries of a directory after `cookie` (0: all, `.` and `..` first) until `visit`
/// answers false. A cookie stays right while names come and go.
///
/// # Errors
/// [`Error::NotDirectory`], [`Error::Stale`]; those of reading.
pub fn read_dir(
    r: &impl Read,
    dir: Number,
    cookie: u64,
    visit: &mut dyn FnMut(DirEntry) -> Result<bool>,
) -> Result<()> {
    let inode = load_dir(r, dir)?;
    let dots = [
        (b".".as_slice(), dir, COOKIE_DOT),
        (b"..".as_slice(), inode.parent, COOKIE_DOT_DOT),
    ];
    for (name, ino, at) in dots {
        let entry = DirEntry {
            ino,
            kind: FileKind::Directory,
            name: name.to_vec(),
            cookie: at,
        };
        if cookie < at && !visit(entry)? {
            return Ok(());
        }
    }
    let from = Key::new(dir, Kind::Dirent, cookie >> 2);
    r.scan(
        from,
        Key::new(dir, Kind::Dirent, u64::MAX),
        &mut |key, value| {
            for (entry, index) in DirentRecord::decode_all(value)?.into_iter().zip(0u64..) {
                // The cookie names the entry itself; going on means after it.
                let at = key.offset << 2 | index;
                let entry = DirEntry {
                    ino: entry.number,
                    kind: entry.kind,
                    name: entry.name,
                    cookie: at,
                };
                if at > cookie.max(COOKIE_DOT_DOT) && !visit(entry)? {
                    return Ok(false);
                }
            }
            Ok(true)
        },
    )
}
