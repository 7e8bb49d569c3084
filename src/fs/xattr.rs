//! Extended attributes.
//!
//! An attribute item holds all attributes of one inode whose names have one keyed hash. An inode
//! without attributes carries no flag for them, so looking for one costs nothing.

use super::inode::{Inode, load, save};
use super::lifetime;
use crate::cask::{Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::{FLAG_XATTR, XattrRecord};
use crate::format::key::Number;
use crate::format::{FileKind, Key, Kind};
use crate::limits::{XATTR_NAME_MAX, XATTR_SIZE_MAX};

/// Namespace of the attributes that the owner of a file may set.
const USER: &[u8] = b"user.";
/// The attribute that asks for wiping where it is 1. The cask counts them, so that it need not look.
const WIPE: &[u8] = b"user.cask.wipe";
/// Most attributes of one inode: what removing them takes stays a small record.
const COUNT_MAX: usize = 1024;
/// Most bytes of all names of one inode, each with its NUL: `XATTR_LIST_MAX`, the most that can be
/// listed.
const LIST_MAX: usize = 65_536;

/// Whether an attribute must or must not exist before it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetMode {
    /// Either way.
    #[default]
    Any,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// Checks that a name is one, and in a namespace that is kept here.
fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Error::AttributeRange);
    }
    let spaces: [&[u8]; 3] = [USER, b"trusted.", b"security."];
    match spaces.iter().find_map(|space| name.strip_prefix(*space)) {
        Some([]) => Err(Error::invalid("an attribute's name ends with a dot")),
        Some(_) => Ok(()),
        None => Err(Error::NotSupported(
            "attributes are in user., trusted. or security.",
        )),
    }
}

/// Checks that an attribute of this name may be changed on this inode.
fn check(inode: &Inode, name: &[u8]) -> Result<()> {
    check_name(name)?;
    let file = matches!(inode.kind(), FileKind::Regular | FileKind::Directory);
    if name.starts_with(USER) && !file {
        return Err(Error::NotPermitted(
            "user attributes belong to files and directories",
        ));
    }
    Ok(())
}

fn bucket(r: &impl Read, number: Number, name: &[u8]) -> Result<(Key, Vec<XattrRecord>)> {
    let key = Key::new(number, Kind::Xattr, r.name_hash(name));
    let entries = r
        .get(&key)?
        .map_or(Ok(Vec::new()), |value| XattrRecord::decode_all(&value))?;
    Ok((key, entries))
}

/// The value of an attribute.
///
/// # Errors
/// [`Error::NoAttribute`]; [`Error::NotSupported`] for an unknown namespace.
pub fn get(r: &impl Read, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    check_name(name)?;
    if inode.flags & FLAG_XATTR == 0 {
        return Err(Error::NoAttribute);
    }
    let (_, entries) = bucket(r, inode.number, name)?;
    entries
        .into_iter()
        .find(|entry| entry.name == name)
        .map(|entry| entry.value)
        .ok_or(Error::NoAttribute)
}

/// Sets an attribute.
///
/// # Errors
/// [`Error::Exists`] and [`Error::NoAttribute`] as `mode` asks; [`Error::AttributeTooBig`] beyond
/// 64 KiB; [`Error::NoSpace`] when it is larger than an item can be, or one more than an inode can
/// have; [`Error::NotSupported`] for an unknown namespace; [`Error::NotPermitted`].
pub fn set<D: Device>(
    tx: &mut Tx<'_, D>,
    number: Number,
    name: &[u8],
    value: &[u8],
    mode: SetMode,
    now: Timestamp,
) -> Result<()> {
    let mut inode = load(tx, number)?;
    check(&inode, name)?;
    if value.len() > XATTR_SIZE_MAX {
        return Err(Error::AttributeTooBig {
            max: XATTR_SIZE_MAX,
        });
    }
    let (key, mut entries) = bucket(tx, number, name)?;
    let said = Said::by(&entries);
    match (mode, entries.iter_mut().find(|entry| entry.name == name)) {
        (SetMode::Create, Some(_)) => return Err(Error::Exists),
        (SetMode::Replace, None) => return Err(Error::NoAttribute),
        (_, Some(entry)) => entry.value = value.to_vec(),
        (_, None) => {
            check_room(tx, &inode, name)?;
            entries.push(XattrRecord {
                name: name.to_vec(),
                value: value.to_vec(),
            });
        }
    }
    said.becomes(tx, number, &entries)?;
    tx.put(key, XattrRecord::encode_all(&entries))?;
    inode.flags |= FLAG_XATTR;
    inode.ctime = now;
    save(tx, &inode)
}

/// Checks that an inode may have one more attribute.
fn check_room(r: &impl Read, inode: &Inode, name: &[u8]) -> Result<()> {
    let names = list(r, inode)?;
    let bytes = |name: &[u8]| name.len() + 1;
    let listed: usize = names.iter().map(|name| bytes(name)).sum();
    if names.len() < COUNT_MAX && listed + bytes(name) <= LIST_MAX {
        Ok(())
    } else {
        Err(Error::NoSpace)
    }
}

/// The names of all attributes of an inode, in no order that means anything.
///
/// # Errors
/// Those of reading.
pub fn list(r: &impl Read, inode: &Inode) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    visit(r, inode, &mut |_, value| {
        names.extend(
            XattrRecord::decode_all(value)?
                .into_iter()
                .map(|entry| entry.name),
        );
        Ok(true)
    })?;
    Ok(names)
}

/// Removes an attribute.
///
/// # Errors
/// [`Error::NoAttribute`].
pub fn remove<D: Device>(
    tx: &mut Tx<'_, D>,
    number: Number,
    name: &[u8],
    now: Timestamp,
) -> Result<()> {
    let mut inode = load(tx, number)?;
    check(&inode, name)?;
    let (key, mut entries) = bucket(tx, number, name)?;
    let before = entries.len();
    let said = Said::by(&entries);
    entries.retain(|entry| entry.name != name);
    if entries.len() == before {
        return Err(Error::NoAttribute);
    }
    said.becomes(tx, number, &entries)?;
    if entries.is_empty() {
        tx.del(key);
    } else {
        tx.put(key, XattrRecord::encode_all(&entries))?;
    }
    if keys(tx, &inode)?.is_empty() {
        inode.flags &= !FLAG_XATTR;
    }
    inode.ctime = now;
    save(tx, &inode)
}

/// Removes the first `most` attribute items of an inode that is going away.
///
/// # Errors
/// Those of reading.
pub fn forget<D: Device>(tx: &mut Tx<'_, D>, inode: &Inode, most: usize) -> Result<()> {
    let mut items = Vec::new();
    visit(tx, inode, &mut |key, value| {
        let entries = XattrRecord::decode_all(value).unwrap_or_default();
        items.push((key, Said::by(&entries)));
        Ok(items.len() < most)
    })?;
    for (key, said) in items {
        said.becomes(tx, inode.number, &[])?;
        tx.del(key);
    }
    Ok(())
}

/// What is known of an attribute item beside it.
#[derive(Clone, Copy)]
struct Said {
    wipes: bool,
    mortal: bool,
}

impl Said {
    fn by(entries: &[XattrRecord]) -> Self {
        Self {
            wipes: wipes(entries),
            mortal: entries.iter().any(lifetime::is_mortal),
        }
    }

    /// The item says something else now.
    fn becomes<D: Device>(
        self,
        tx: &mut Tx<'_, D>,
        number: Number,
        entries: &[XattrRecord],
    ) -> Result<()> {
        let now = Self::by(entries);
        tx.count_wipe(self.wipes, now.wipes);
        match self.mortal || now.mortal {
            true => lifetime::list(tx, number, now.mortal),
            false => Ok(()),
        }
    }
}

/// Whether wiping is set among these.
pub fn wipes(entries: &[XattrRecord]) -> bool {
    entries
        .iter()
        .any(|entry| entry.name == WIPE && entry.value == b"1")
}

/// The keys of all attribute items of an inode.
///
/// # Errors
/// Those of reading.
pub fn keys(r: &impl Read, inode: &Inode) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    visit(r, inode, &mut |key, _| {
        keys.push(key);
        Ok(true)
    })?;
    Ok(keys)
}

fn visit(
    r: &impl Read,
    inode: &Inode,
    each: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
) -> Result<()> {
    if inode.flags & FLAG_XATTR == 0 {
        return Ok(());
    }
    let (from, to) = (
        Key::new(inode.number, Kind::Xattr, 0),
        Key::new(inode.number, Kind::Xattr, u64::MAX),
    );
    r.scan(from, to, each)
}
