//! What can be done about a finding, and doing it: each fix is one operation, logged like any other.
//!
//! A fix makes true what the finding says is not; what follows from it, a count of links for one, is found
//! by the next check. Nothing is taken away that could be kept under `lost+found`.

use zerocopy::IntoBytes;

use crate::cask::{Cask, Class, Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::item::{DirentRecord, FLAG_SPARSE, FLAG_XATTR, InodeRecord};
use crate::format::key::{INDEX, Number, ROOT};
use crate::format::{FileKind, Key, Kind};
use crate::fs::inode::{Inode, load, save};
use crate::fs::{directory, lifetime};

/// Most items that mark what is missing in a content whose file is lost.
const GAPS_MAX: usize = 256;

/// Where files without a name go.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A name in a directory, where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The directory.
    pub dir: Number,
    /// The hash under which it stands.
    pub hash: u64,
    /// The name.
    pub name: Vec<u8>,
}

/// What can be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fix {
    /// The cask counts what is there: files, the next number, and files that are wiped. It comes first, as
    /// others take numbers.
    Recount(u64, Number, u32),
    /// An item that means nothing goes.
    DropItem(Key),
    /// So many blocks of a content, from a key on, are marked as lost.
    LoseItem(Key, u32),
    /// A content that belongs to nothing, of so many bytes, gets a file.
    Rescue(Number, u64),
    /// A content that belongs to nothing goes.
    DropContent(Number),
    /// What stands behind the end of a content, of so many bytes, goes.
    CutContent(Number, u64),
    /// A name goes.
    DropName(Name),
    /// A name says another kind of file.
    SetNameKind(Name, FileKind),
    /// A name stands where it is looked for.
    Rehash(Name),
    /// An inode counts so many links.
    SetLinks(Number, u32),
    /// A directory counts so many entries.
    SetEntries(Number, u64),
    /// A directory leads to the one that holds its name.
    SetParent(Number, Name),
    /// An inode knows of its attributes.
    SetAttributed(Number),
    /// A file is no segment.
    ClearHome(Number),
    /// A file that claims what is another's begins empty.
    Empty(Number),
    /// There is a directory with this number.
    MakeDirectory(Number),
    /// A file without a name gets one in `lost+found`; one that is a directory's loses that first.
    Adopt(Number),
    /// A directory is listed among those with segments.
    ListHome(Number),
    /// A file or directory is listed among those with a `ttl`.
    ListTtl(Number),
}

impl Fix {
    /// What is done, as the end of a sentence.
    pub fn sentence(&self) -> &'static str {
        match self {
            Self::DropItem(_) => "it is taken out",
            Self::LoseItem(..) => "it is marked as lost",
            Self::DropContent(_) => "its space is free again",
            Self::Rescue(..) => "a file is made for it",
            Self::CutContent(..) => "what is behind the end is taken out",
            Self::DropName(_) => "the name is taken away",
            Self::SetNameKind(..) => "the name says what it is",
            Self::Rehash(_) => "it is put where it is looked for",
            Self::SetLinks(..) | Self::SetEntries(..) | Self::Recount(..) => "it is counted anew",
            Self::SetParent(..) => "it is made to",
            Self::SetAttributed(_) => "it is told",
            Self::ClearHome(_) => "it is an ordinary file",
            Self::Empty(_) => "the second begins empty",
            Self::MakeDirectory(_) => "a directory is made for it",
            Self::Adopt(_) => "it gets a name in lost+found",
            Self::ListHome(_) | Self::ListTtl(_) => "it is listed",
        }
    }

    /// Whether something that was there is gone then.
    pub fn loses(&self) -> bool {
        matches!(
            self,
            Self::DropItem(_)
                | Self::LoseItem(..)
                | Self::DropContent(_)
                | Self::Rescue(..)
                | Self::CutContent(..)
                | Self::DropName(_)
                | Self::Empty(_)
                | Self::MakeDirectory(_)
                | Self::Adopt(_)
        )
    }

    /// Does it.
    ///
    /// # Errors
    /// Those of reading and writing; [`Error::NoSpace`].
    pub fn apply<D: Device>(&self, cask: &Cask<D>, now: Timestamp) -> Result<()> {
        cask.transact(Class::Release, |tx| self.change(tx, now))?;
        Ok(())
    }

    fn change<D: Device>(&self, tx: &mut Tx<'_, D>, now: Timestamp) -> Result<()> {
        match self {
            Self::DropItem(key) => tx.del(*key),
            Self::LoseItem(key, blocks) => {
                tx.put(*key, ContentRecord::Lost(*blocks).encode())?;
            }
            Self::Rescue(content, size) => rescue(tx, *content, *size, now)?,
            Self::DropContent(content) => tx.drop_content(*content),
            Self::CutContent(content, size) => tx.truncate(*content, *size),
            Self::DropName(name) => drop_name(tx, name)?,
            Self::SetNameKind(name, kind) => {
                let (key, mut entries) = bucket(tx, name)?;
                let wrong = entries.iter_mut().filter(|entry| entry.name == name.name);
                wrong.for_each(|entry| entry.kind = *kind);
                tx.put(key, DirentRecord::encode_all(&entries))?;
            }
            Self::Rehash(name) => {
                let (_, entries) = bucket(tx, name)?;
                drop_name(tx, name)?;
                if let Some(entry) = entries.into_iter().find(|entry| entry.name == name.name)
                    && let Ok(mut inode) = load(tx, entry.number)
                    && directory::find(tx, name.dir, &name.name).is_err()
                {
                    directory::insert(tx, name.dir, &name.name, &mut inode)?;
                    save(tx, &inode)?;
                }
            }
            Self::SetLinks(number, links) => set(tx, *number, |inode| inode.nlink = *links)?,
            Self::SetEntries(number, count) => set(tx, *number, |inode| inode.size = *count)?,
            Self::SetParent(number, name) => set(tx, *number, |inode| {
                (inode.parent, inode.name_hash) = (name.dir, name.hash);
            })?,
            Self::SetAttributed(number) => set(tx, *number, |inode| inode.flags |= FLAG_XATTR)?,
            Self::ClearHome(number) => set(tx, *number, |inode| inode.home = 0)?,
            Self::Empty(number) => {
                let content = tx.new_number();
                set(tx, *number, |inode| {
                    (inode.content, inode.size) = (content, 0)
                })?;
            }
            Self::MakeDirectory(number) => make_directory(tx, *number, now)?,
            Self::Adopt(number) => adopt(tx, *number, now)?,
            Self::ListHome(number) => {
                tx.put(Key::new(INDEX, Kind::Home, *number), [].as_slice())?;
            }
            Self::ListTtl(number) => lifetime::list(tx, *number, true)?,
            Self::Recount(files, next, wipes) => tx.recount(*files, *next, *wipes),
        }
        Ok(())
    }
}

fn set<D: Device>(
    tx: &mut Tx<'_, D>,
    number: Number,
    change: impl FnOnce(&mut Inode),
) -> Result<()> {
    match load(tx, number) {
        Ok(mut inode) => {
            change(&mut inode);
            save(tx, &inode)
        }
        Err(Error::Stale) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The names that stand where this one does.
fn bucket(r: &impl Read, name: &Name) -> Result<(Key, Vec<DirentRecord>)> {
    let key = Key::new(name.dir, Kind::Dirent, name.hash);
    let entries = r
        .get(&key)?
        .map_or(Ok(Vec::new()), |value| DirentRecord::decode_all(&value))?;
    Ok((key, entries))
}

fn drop_name<D: Device>(tx: &mut Tx<'_, D>, name: &Name) -> Result<()> {
    let (key, mut entries) = bucket(tx, name)?;
    let gone: Vec<Number> = entries
        .iter()
        .filter(|entry| entry.name == name.name)
        .map(|entry| entry.number)
        .collect();
    entries.retain(|entry| entry.name != name.name);
    match entries.as_slice() {
        [] => tx.del(key),
        left => tx.put(key, DirentRecord::encode_all(left))?,
    }
    // Who was named by it last is named by nothing now.
    for number in gone {
        set(tx, number, |inode| {
            if (inode.parent, inode.name_hash) == (name.dir, name.hash) && !inode.is_dir() {
                inode.parent = 0;
            }
        })?;
    }
    Ok(())
}

fn make_directory<D: Device>(tx: &mut Tx<'_, D>, number: Number, now: Timestamp) -> Result<()> {
    let perm = if number == ROOT { 0o755 } else { 0o700 };
    make(tx, number, FileKind::Directory.mode_bits() | perm, now)
}

/// An inode of this number and mode, instead of what was there.
fn make<D: Device>(tx: &mut Tx<'_, D>, number: Number, mode: u32, now: Timestamp) -> Result<()> {
    let is_there = tx.get(&Key::inode(number))?.is_some();
    let record = InodeRecord {
        mode: mode.into(),
        uid: 0.into(),
        gid: 0.into(),
        nlink: 2.into(),
        size: 0.into(),
        content: number.into(),
        parent: if number == ROOT { ROOT } else { 0 }.into(),
        name_hash: 0.into(),
        atime: now.into(),
        mtime: now.into(),
        ctime: now.into(),
        btime: now.into(),
        rdev: 0.into(),
        flags: 0.into(),
        since: 0.into(),
    };
    if !is_there {
        tx.count_file();
    }
    tx.put(Key::inode(number), record.as_bytes())
}

/// A file for a content whose own is lost; it is adopted then.
fn rescue<D: Device>(tx: &mut Tx<'_, D>, content: Number, size: u64, now: Timestamp) -> Result<()> {
    // Between what is there, something may have been: nobody knows any more.
    let (block, most) = (
        u64::from(tx.block_size()),
        tx.before().geometry().extent_max(),
    );
    let (mut at, mut gaps) = (0, Vec::new());
    let key = |block| Key::new(content, Kind::Data, block);
    tx.scan(key(0), key(u64::MAX), &mut |key, value| {
        while at < key.offset && gaps.len() < GAPS_MAX {
            let blocks = (key.offset - at).min(most);
            gaps.push((at, u32::try_from(blocks).unwrap_or(1)));
            at += blocks;
        }
        let blocks = ContentRecord::decode(value).map_or(1, |record| record.blocks());
        at = key.offset.saturating_add(blocks);
        Ok(at <= size.div_ceil(block))
    })?;
    for (at, blocks) in gaps {
        tx.put(key(at), ContentRecord::Lost(blocks).encode())?;
    }
    let number = tx.new_number();
    make(tx, number, FileKind::Regular.mode_bits() | 0o600, now)?;
    set(tx, number, |inode| {
        (inode.content, inode.size, inode.nlink) = (content, size, 0);
        inode.flags |= FLAG_SPARSE;
    })
}

/// The directory for what has no name; the root is there.
fn lost_and_found<D: Device>(tx: &mut Tx<'_, D>, now: Timestamp) -> Result<Number> {
    match directory::find(tx, ROOT, LOST_AND_FOUND) {
        Ok((number, FileKind::Directory)) => return Ok(number),
        // Somebody's file has the name: it is moved to the side.
        Ok((number, _)) => {
            let mut inode = load(tx, number)?;
            directory::remove(tx, ROOT, LOST_AND_FOUND)?;
            let aside = [LOST_AND_FOUND, b".", number.to_string().as_bytes()].concat();
            directory::insert(tx, ROOT, &aside, &mut inode)?;
            save(tx, &inode)?;
        }
        Err(Error::NotFound) => {}
        Err(error) => return Err(error),
    }
    let number = tx.new_number();
    make_directory(tx, number, now)?;
    let mut inode = load(tx, number)?;
    directory::insert(tx, ROOT, LOST_AND_FOUND, &mut inode)?;
    save(tx, &inode)?;
    set(tx, ROOT, |root| {
        root.size += 1;
        root.nlink += 1;
    })?;
    Ok(number)
}

fn adopt<D: Device>(tx: &mut Tx<'_, D>, number: Number, now: Timestamp) -> Result<()> {
    let Ok(mut inode) = load(tx, number) else {
        return Ok(());
    };
    let home = lost_and_found(tx, now)?;
    if inode.is_dir() && inode.parent != 0 {
        // In a ring of directories that the root does not lead to, one loses its name.
        let mut names = Vec::new();
        let (from, to) = (
            Key::new(inode.parent, Kind::Dirent, 0),
            Key::new(inode.parent, Kind::Dirent, u64::MAX),
        );
        tx.scan(from, to, &mut |key, value| {
            let entries = DirentRecord::decode_all(value).unwrap_or_default();
            let found = entries.into_iter().filter(|entry| entry.number == number);
            names.extend(found.map(|entry| Name {
                dir: key.number,
                hash: key.offset,
                name: entry.name,
            }));
            Ok(true)
        })?;
        names.iter().try_for_each(|name| drop_name(tx, name))?;
    }
    tx.del(Key::new(INDEX, Kind::Orphan, number));
    let name = format!("#{number}").into_bytes();
    if directory::find(tx, home, &name).is_ok() {
        return Ok(());
    }
    directory::insert(tx, home, &name, &mut inode)?;
    inode.nlink = inode.nlink.max(1);
    save(tx, &inode)?;
    let is_dir = inode.is_dir();
    set(tx, home, |home| {
        home.size += 1;
        home.nlink += u32::from(is_dir);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cask::{FormatOptions, OpenOptions};
    use crate::device::MemoryDevice;
    use crate::fs::namespace::{self, NewFile};

    #[test]
    fn a_name_that_goes_is_no_more_the_last_that_its_file_was_given() {
        let device = MemoryDevice::new();
        let options = FormatOptions {
            blocks: Some(6000),
            secret: [5; 32],
            ..FormatOptions::default()
        };
        Cask::format(&device, &options).unwrap();
        let cask = Cask::open(device, OpenOptions::default()).unwrap();
        let now = Timestamp::from_secs(5);
        for (kind, is_forgotten) in [(FileKind::Regular, true), (FileKind::Directory, false)] {
            let new = NewFile {
                kind,
                perm: 0o755,
                uid: 0,
                gid: 0,
                rdev: 0,
            };
            let (inode, _) = cask
                .transact(Class::Grow, |tx| {
                    namespace::make(tx, ROOT, b"name", &new, now)
                })
                .unwrap();
            let name = Name {
                dir: ROOT,
                hash: cask.name_hash(b"name"),
                name: b"name".to_vec(),
            };
            Fix::DropName(name).apply(&cask, now).unwrap();
            assert!(namespace::find(&cask, ROOT, b"name").is_err());
            let parent = load(&cask, inode.number).unwrap().parent;
            assert_eq!(parent == 0, is_forgotten, "{kind:?}: {parent}");
        }
    }
}
