//! What a verb needs of a cask, wherever the cask is: in a container that nobody uses
//! ([`offline`](super::offline)) or behind a live mount ([`live`](super::live)).
//!
//! Verbs are written once against [`Access`]. Paths are absolute within the cask and hold neither
//! `.` nor `..`. Invariant: after [`Access::close`] of an offline cask its container is closed in
//! order, whether or not the verb succeeded.

use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::exit::CliError;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::format::FileKind;
use crate::format::superblock::{FLAG_FILLED, FLAG_FIXED, SuperblockRecord};
use crate::fs::{Attr, StatFs};

/// Bytes moved at a time.
pub const CHUNK: usize = 1 << 20;

/// What a verb is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Only read: the container is not changed by a single byte.
    Read,
    /// Change something.
    Write,
}

/// Whether the last component of a path is followed if it is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The link itself is meant.
    Keep,
    /// What it leads to is meant.
    Follow,
}

/// How a container was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Label, at most 64 bytes.
    pub label: Vec<u8>,
    /// Random identity.
    pub uuid: [u8; 16],
    /// Version of the format.
    pub version: u32,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks of the container at the newest durable checkpoint.
    pub blocks: u64,
    /// Blocks, if their number is fixed.
    pub blocks_limit: Option<u64>,
    /// Whether all blocks were written at mkfs.
    pub fill: bool,
    /// Most inodes, if that is bounded.
    pub files_limit: Option<u64>,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// Number of the newest durable checkpoint.
    pub generation: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Features an older program may ignore, may only read beside, must refuse.
    pub features: [u64; 3],
}

impl Facts {
    /// What a superblock says.
    pub fn of(superblock: &SuperblockRecord) -> Self {
        let flags = superblock.flags.get();
        let files = superblock.files_limit.get();
        Self {
            label: superblock.label().to_vec(),
            uuid: superblock.uuid,
            version: superblock.version.get(),
            block_size: superblock.block_size.get(),
            blocks: superblock.blocks.get(),
            blocks_limit: (flags & FLAG_FIXED != 0).then_some(superblock.blocks.get()),
            fill: flags & FLAG_FILLED != 0,
            files_limit: (files != 0).then_some(files),
            wal_bytes: superblock.wal_len.get(),
            generation: superblock.generation.get(),
            created: superblock.created.into(),
            features: [
                superblock.compat.get(),
                superblock.ro_compat.get(),
                superblock.incompat.get(),
            ],
        }
    }
}

/// Takes what is read, piece by piece.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), CliError>;
/// Gives what is written, piece by piece, to the sink it is handed.
pub type Source<'a> = &'a mut dyn FnMut(Sink<'_>) -> Result<(), CliError>;

/// Takes a piece of a container: the bytes of it in all, and where this piece stands.
pub type ImageSink<'a> = &'a mut dyn FnMut(u64, u64, &[u8]) -> Result<(), CliError>;

/// A cask.
pub trait Access {
    /// How messages name a path.
    fn shown(&self, path: &Path) -> String;
    /// Where the cask is mounted, if it is.
    fn mountpoint(&self) -> Option<&Path>;
    /// How the container was made.
    fn facts(&self) -> Result<Facts, CliError>;
    /// What is used and free.
    fn space(&self) -> Result<StatFs, CliError>;

    /// Attributes of a file.
    fn stat(&self, path: &Path, links: Links) -> Result<Attr, CliError>;
    /// The names in a directory, in order, each with the attributes of what it names.
    fn list(&self, dir: &Path) -> Result<Vec<(OsString, Attr)>, CliError>;
    /// The whole content of a file.
    fn read(&self, path: &Path, sink: Sink<'_>) -> Result<(), CliError>;
    /// Where a symbolic link leads.
    fn read_link(&self, path: &Path) -> Result<PathBuf, CliError>;

    /// Makes a file that is not there yet and fills it. A failure may leave a part of it.
    fn write_new(&self, path: &Path, perm: u32, source: Source<'_>) -> Result<(), CliError>;
    /// Appends to a file, in one write; makes it, with these permission bits, if it is not there.
    fn append(&self, path: &Path, perm: u32, data: &[u8]) -> Result<(), CliError>;
    /// Gives a file another name, in place of what has that name.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), CliError>;
    /// Rotates a log.
    fn rotate(&self, path: &Path) -> Result<(), CliError>;
    /// Sets the permission bits.
    fn set_perm(&self, path: &Path, perm: u32) -> Result<(), CliError>;
    /// Sets owner and group.
    fn set_owner(&self, path: &Path, uid: u32, gid: u32) -> Result<(), CliError>;
    /// Makes a directory with exactly these permission bits.
    fn make_directory(&self, path: &Path, perm: u32) -> Result<(), CliError>;
    /// Makes a symbolic link at `path`.
    fn make_link(&self, path: &Path, target: &Path) -> Result<(), CliError>;
    /// Removes a name that is not a directory's.
    fn remove(&self, path: &Path) -> Result<(), CliError>;
    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> Result<(), CliError>;

    /// The names of a file's own extended attributes.
    fn attributes(&self, path: &Path) -> Result<Vec<OsString>, CliError>;
    /// The value of an extended attribute, `None` when there is none; for a setting, its effective
    /// value.
    fn attribute(&self, path: &Path, name: &str) -> Result<Option<Vec<u8>>, CliError>;
    /// Sets an extended attribute.
    fn set_attribute(&self, path: &Path, name: &str, value: &[u8]) -> Result<(), CliError>;
    /// Removes an extended attribute; that there was none is no failure.
    fn remove_attribute(&self, path: &Path, name: &str) -> Result<(), CliError>;

    /// Hands the container as it is at this moment to the sink, in order and without its holes; answers
    /// how many bytes it has in all.
    fn image(&self, sink: ImageSink<'_>) -> Result<u64, CliError>;

    /// Ends the use of the cask.
    fn close(&self) -> Result<(), CliError>;
}

/// Puts a file at `path` in one step: whoever looks sees what was there before, or the whole of the
/// new content. What was there leaves its owner, permissions and attributes to the new content.
pub fn replace(
    access: &dyn Access,
    path: &Path,
    perm: u32,
    source: Source<'_>,
) -> Result<(), CliError> {
    let old = match access.stat(path, Links::Keep) {
        Ok(old) if old.kind == FileKind::Directory => {
            return Err(CliError::at(access.shown(path), &Error::IsDirectory));
        }
        Ok(old) => Some(old),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    let staged = path.with_file_name(format!(".caskfs-cp-{}", std::process::id()));
    let mut put = || {
        access.write_new(&staged, old.map_or(perm, |old| old.perm), source)?;
        if let Some(old) = old.filter(|old| old.kind == FileKind::Regular) {
            inherit(access, path, &staged, &old)?;
        }
        access.rename(&staged, path)
    };
    put().map_err(|error| {
        // The failure that is reported is the one that happened first.
        let _ = access.remove(&staged);
        error.told_of(&access.shown(path), &access.shown(&staged))
    })
}

/// Gives `new` the owner, permissions and attributes of `old`, as far as the caller may.
fn inherit(access: &dyn Access, old: &Path, new: &Path, attr: &Attr) -> Result<(), CliError> {
    let own = access.stat(new, Links::Keep)?;
    if (own.uid, own.gid) != (attr.uid, attr.gid) {
        match access.set_owner(new, attr.uid, attr.gid) {
            Err(error) if !error.is_refused() => return Err(error),
            _ => {}
        }
    }
    access.set_perm(new, attr.perm)?;
    let mut names = access.attributes(old)?;
    // Other settings depend on it.
    names.sort_by_key(|name| name != "user.cask.mode");
    for name in names {
        // Other namespaces belong to the system.
        let Some(name) = name.to_str().filter(|name| name.starts_with("user.")) else {
            continue;
        };
        if let Some(value) = access.attribute(old, name)? {
            access.set_attribute(new, name, &value)?;
        }
    }
    Ok(())
}

/// Hands all that `from` (called `name`) still has to the sink.
pub fn pump(from: &mut dyn Read, name: &str, sink: Sink<'_>) -> Result<(), CliError> {
    let mut buf = vec![0; CHUNK];
    loop {
        match from.read(&mut buf) {
            Ok(got) => match buf.get(..got) {
                None | Some([]) => return Ok(()),
                Some(data) => sink(data)?,
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CliError::io(name, &error)),
        }
    }
}

/// Reads a regular file; says what it is if it is none.
pub fn read_file(access: &dyn Access, path: &Path, sink: Sink<'_>) -> Result<(), CliError> {
    match access.stat(path, Links::Follow)?.kind {
        FileKind::Regular => access.read(path, sink),
        FileKind::Directory => Err(CliError::at(access.shown(path), &Error::IsDirectory)),
        other => Err(CliError::failed(format!(
            "{}: is a {}, which has no content to read",
            access.shown(path),
            super::units::kind_word(other)
        ))),
    }
}

/// Visits `dir`'s entries and, below each directory among them, its entries, and so on: a
/// directory before what is in it.
pub fn walk(
    access: &dyn Access,
    dir: &Path,
    visit: &mut dyn FnMut(&Path, &Attr) -> Result<(), CliError>,
) -> Result<(), CliError> {
    // A stack of its own: how deep directories are nested is not ours to bound.
    let mut pending: Vec<std::vec::IntoIter<(OsString, Attr)>> =
        vec![access.list(dir)?.into_iter()];
    let mut path = dir.to_path_buf();
    while let Some(entries) = pending.last_mut() {
        let Some((name, attr)) = entries.next() else {
            pending.pop();
            path.pop();
            continue;
        };
        path.push(name);
        visit(&path, &attr)?;
        if attr.kind == FileKind::Directory {
            pending.push(access.list(&path)?.into_iter());
        } else {
            path.pop();
        }
    }
    Ok(())
}
