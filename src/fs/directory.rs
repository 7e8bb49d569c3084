//! The items of a directory: names by their keyed hash.
//!
//! An item holds all names of one hash, so a look-up is one leaf, whatever the size of the
//! directory. Invariant: a cookie is the hash and the place within the hash, so names that come and
//! go elsewhere never move it. Two names of one directory share a 61-bit keyed hash once in fifty
//! thousand directories of ten million names; only then may the removal of one, between two reads of
//! the directory, hide the other from the reader.

use super::inode::{Inode, load_dir};
use super::types::DirEntry;
use crate::cask::{Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::DirentRecord;
use crate::format::key::Number;
use crate::format::{FileKind, Key, Kind};
use crate::limits::NAME_MAX;

/// Cookie after `.`.
const COOKIE_DOT: u64 = 1;
/// Cookie after `..`; below the cookie of every name, as no hash is 0.
const COOKIE_DOT_DOT: u64 = 2;
/// Bits of a cookie that tell the names of one hash apart.
const COOKIE_BITS: u32 = 2;
/// Names of one hash that a cookie can tell apart.
const COLLISIONS_MAX: usize = 1 << COOKIE_BITS;

/// The cookie of the name at place `index` of its hash. Never 0, and positive as `i64`.
fn cookie_of(hash: u64, index: u64) -> u64 {
    hash << COOKIE_BITS | index
}

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

fn bucket(r: &impl Read, dir: Number, name: &[u8]) -> Result<(Key, Vec<DirentRecord>)> {
    same_hash(r, Key::new(dir, Kind::Dirent, r.name_hash(name)))
}

/// All names of one hash.
fn same_hash(r: &impl Read, key: Key) -> Result<(Key, Vec<DirentRecord>)> {
    let entries = r
        .get(&key)?
        .map_or(Ok(Vec::new()), |value| DirentRecord::decode_all(&value))?;
    Ok((key, entries))
}

/// A name of a directory, with the others of its hash: what is found is not looked for again to be removed.
pub struct Named {
    key: Key,
    /// The name, and to what it leads.
    pub entry: DirentRecord,
    others: Vec<DirentRecord>,
}

impl Named {
    fn new(
        (key, mut entries): (Key, Vec<DirentRecord>),
        is_it: impl FnMut(&DirentRecord) -> bool,
    ) -> Option<Self> {
        let entry = entries.remove(entries.iter().position(is_it)?);
        // A damaged directory may have it twice.
        entries.retain(|other| other.name != entry.name);
        Some(Self {
            key,
            entry,
            others: entries,
        })
    }

    /// The directory.
    pub fn dir(&self) -> Number {
        self.key.number
    }

    /// Hash of the name.
    pub fn hash(&self) -> u64 {
        self.key.offset
    }

    /// Takes the name out of the directory's items. Nothing of it may have changed since it was found.
    ///
    /// # Errors
    /// Those of staging.
    pub fn remove<D: Device>(&self, tx: &mut Tx<'_, D>) -> Result<()> {
        if self.others.is_empty() {
            tx.del(self.key);
            Ok(())
        } else {
            tx.put(self.key, DirentRecord::encode_all(&self.others))
        }
    }
}

/// What stands under a name of a directory.
///
/// # Errors
/// [`Error::NotFound`]; as [`check_name`].
pub fn named(r: &impl Read, dir: Number, name: &[u8]) -> Result<Named> {
    check_name(name)?;
    Named::new(bucket(r, dir, name)?, |entry| entry.name == name).ok_or(Error::NotFound)
}

/// The name of this hash that leads to an inode.
///
/// # Errors
/// Those of reading.
pub fn named_by(r: &impl Read, dir: Number, hash: u64, number: Number) -> Result<Option<Named>> {
    let same = same_hash(r, Key::new(dir, Kind::Dirent, hash))?;
    Ok(Named::new(same, |entry| entry.number == number))
}

/// The number and kind under a name of a directory.
///
/// # Errors
/// As [`named`].
pub fn find(r: &impl Read, dir: Number, name: &[u8]) -> Result<(Number, FileKind)> {
    let named = named(r, dir, name)?;
    Ok((named.entry.number, named.entry.kind))
}

/// Adds a name to a directory's items, and notes in the inode that it was given last. Neither
/// directory nor inode is saved.
///
/// # Errors
/// [`Error::NoSpace`] when too many names have its hash; those of reading.
pub fn insert<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    inode: &mut Inode,
) -> Result<()> {
    let (key, mut entries) = bucket(tx, dir, name)?;
    let entry = DirentRecord {
        number: inode.number,
        kind: inode.kind(),
        name: name.to_vec(),
    };
    add(&mut entries, entry)?;
    tx.put(key, DirentRecord::encode_all(&entries))?;
    inode.parent = dir;
    inode.name_hash = key.offset;
    Ok(())
}

/// Adds a name to those of its hash.
fn add(entries: &mut Vec<DirentRecord>, entry: DirentRecord) -> Result<()> {
    if entries.len() >= COLLISIONS_MAX {
        return Err(Error::NoSpace);
    }
    entries.push(entry);
    Ok(())
}

/// Takes a name out of a directory's items.
///
/// # Errors
/// As [`named`].
pub fn remove<D: Device>(tx: &mut Tx<'_, D>, dir: Number, name: &[u8]) -> Result<()> {
    named(tx, dir, name)?.remove(tx)
}

/// Visits the entries of a directory after `cookie` (0: all, `.` and `..` first) until `visit`
/// answers false. A cookie stays right while other names come and go.
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
    let from = Key::new(dir, Kind::Dirent, cookie >> COOKIE_BITS);
    r.scan(
        from,
        Key::new(dir, Kind::Dirent, u64::MAX),
        &mut |key, value| {
            for (entry, index) in DirentRecord::decode_all(value)?.into_iter().zip(0u64..) {
                // The cookie names the entry itself; going on means after it.
                let at = cookie_of(key.offset, index);
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

/// Visits the names of a directory whose hash is `from` or more, in the order of their hashes and those
/// of one hash together, until `visit` answers false.
///
/// # Errors
/// Those of reading.
pub fn names_from(
    r: &impl Read,
    dir: Number,
    from: u64,
    visit: &mut dyn FnMut(u64, &[DirentRecord]) -> bool,
) -> Result<()> {
    r.scan(
        Key::new(dir, Kind::Dirent, from),
        Key::new(dir, Kind::Dirent, u64::MAX),
        &mut |key, value| Ok(visit(key.offset, &DirentRecord::decode_all(value)?)),
    )
}

/// Adds the regular files among some `most` names of a directory whose hash is `from` or more, each with
/// that hash; answers the hash to go on from, `None` at the end.
///
/// # Errors
/// Those of reading.
pub fn files_from(
    r: &impl Read,
    dir: Number,
    from: u64,
    most: usize,
    found: &mut Vec<(Number, u64)>,
) -> Result<Option<u64>> {
    let (mut seen, mut next) = (0, None);
    names_from(r, dir, from, &mut |hash, entries| {
        if seen >= most {
            next = Some(hash);
            return false;
        }
        seen += entries.len();
        let files = entries.iter().filter(|e| e.kind == FileKind::Regular);
        found.extend(files.map(|entry| (entry.number, hash)));
        true
    })?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::cask::Value;
    use crate::format::InodeRecord;

    /// Items whose names all have one hash, unless they say another.
    struct Items(BTreeMap<Key, Value>);

    impl Read for Items {
        fn get(&self, key: &Key) -> Result<Option<Value>> {
            Ok(self.0.get(key).cloned())
        }
        fn scan(
            &self,
            from: Key,
            to: Key,
            visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
        ) -> Result<()> {
            for (key, value) in self.0.range(from..=to) {
                if !visit(*key, value)? {
                    break;
                }
            }
            Ok(())
        }
        fn read_content(&self, _: Number, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn next_data(&self, _: Number, _: u64) -> Result<Option<u64>> {
            Ok(None)
        }
        fn next_hole(&self, _: Number, offset: u64) -> Result<u64> {
            Ok(offset)
        }
        fn name_hash(&self, name: &[u8]) -> u64 {
            if name == b"last" { HASH_MAX } else { 1 }
        }
        fn block_size(&self) -> u32 {
            4096
        }
    }

    const HASH_MAX: u64 = u64::MAX >> 3;

    fn entry(number: Number, name: &[u8]) -> DirentRecord {
        DirentRecord {
            number,
            kind: FileKind::Regular,
            name: name.to_vec(),
        }
    }

    fn directory() -> Items {
        let mut inode = InodeRecord::new_zeroed();
        inode.mode = FileKind::Directory.mode_bits().into();
        let mut items = Items(BTreeMap::new());
        items.0.insert(Key::inode(7), inode.as_bytes().into());
        let mut one_hash = Vec::new();
        for (number, name) in [(10, b"a"), (11, b"b"), (12, b"c"), (13, b"d")] {
            add(&mut one_hash, entry(number, name)).unwrap();
        }
        let mut put = |name: &[u8], entries: &[DirentRecord]| {
            let key = Key::new(7, Kind::Dirent, items.name_hash(name));
            items
                .0
                .insert(key, DirentRecord::encode_all(entries).into());
        };
        put(b"a", &one_hash);
        put(b"last", &[entry(14, b"last")]);
        items
    }

    #[test]
    fn four_names_can_have_one_hash_and_a_fifth_cannot() {
        let items = directory();
        for (number, name) in [(10, b"a"), (11, b"b"), (12, b"c"), (13, b"d")] {
            assert_eq!(find(&items, 7, name).unwrap().0, number);
        }
        assert!(matches!(find(&items, 7, b"e"), Err(Error::NotFound)));
        let (_, mut entries) = bucket(&items, 7, b"e").unwrap();
        assert!(matches!(
            add(&mut entries, entry(15, b"e")),
            Err(Error::NoSpace)
        ));
    }

    #[test]
    fn what_is_found_by_its_number_leaves_the_others_of_its_hash() {
        let items = directory();
        let named = named_by(&items, 7, 1, 12).unwrap().unwrap();
        assert_eq!((named.dir(), named.hash()), (7, 1));
        assert_eq!(named.entry, entry(12, b"c"));
        let others: Vec<Number> = named.others.iter().map(|entry| entry.number).collect();
        assert_eq!(others, [10, 11, 13]);
        for (hash, number) in [(1, 14), (2, 12), (HASH_MAX, 12)] {
            assert!(named_by(&items, 7, hash, number).unwrap().is_none());
        }
        // A name that stands there twice goes as a whole.
        let twice = vec![entry(10, b"a"), entry(11, b"a"), entry(12, b"b")];
        let named = Named::new((Key::inode(7), twice), |entry| entry.number == 11).unwrap();
        assert_eq!(named.others, [entry(12, b"b")]);
    }

    #[test]
    fn reading_goes_on_after_any_cookie() {
        let items = directory();
        let mut all = Vec::new();
        read_dir(&items, 7, 0, &mut |entry| {
            all.push((entry.name, entry.cookie));
            Ok(true)
        })
        .unwrap();
        let names: Vec<&[u8]> = all.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(
            names,
            [b".".as_slice(), b"..", b"a", b"b", b"c", b"d", b"last"]
        );
        for (at, (_, cookie)) in all.iter().enumerate() {
            assert!(i64::try_from(*cookie).unwrap() > 0);
            let mut rest = Vec::new();
            read_dir(&items, 7, *cookie, &mut |entry| {
                rest.push((entry.name, entry.cookie));
                Ok(true)
            })
            .unwrap();
            assert_eq!(rest, all[at + 1..]);
        }
    }
}
