//! The values that stand in the tree: inode records, directory entries, extended attributes and
//! content.
//!
//! All integers are little-endian.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::key::Number;
use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// The file type bits of a mode (`S_IFMT`).
pub const MODE_KIND: u32 = 0o170_000;
/// The permission bits of a mode, with set-user-ID, set-group-ID and sticky.
pub const MODE_PERM: u32 = 0o7777;

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FileKind {
    /// Named pipe.
    Fifo = 1,
    /// Character device.
    CharDevice = 2,
    /// Directory.
    Directory = 4,
    /// Block device.
    BlockDevice = 6,
    /// Regular file.
    Regular = 8,
    /// Symbolic link.
    Symlink = 10,
    /// Unix domain socket.
    Socket = 12,
}

impl FileKind {
    /// The kind in the file type bits of `mode` (`S_IFMT`).
    pub fn from_mode(mode: u32) -> Option<Self> {
        Self::from_code(((mode & MODE_KIND) >> 12) as u8)
    }

    /// The kind with this code, which is that of `d_type` in `readdir(3)`.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The file type bits of a mode.
    pub const fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
}

/// A time on disk: seconds i64, nanoseconds u32.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TimeRecord {
    secs: I64,
    nanos: U32,
}

impl From<Timestamp> for TimeRecord {
    fn from(time: Timestamp) -> Self {
        Self {
            secs: I64::new(time.secs),
            nanos: U32::new(time.nanos),
        }
    }
}

impl From<TimeRecord> for Timestamp {
    fn from(record: TimeRecord) -> Self {
        Self {
            secs: record.secs.get(),
            nanos: record.nanos.get().min(999_999_999),
        }
    }
}

/// The file has, or may have, a block before its end that was never written.
pub const FLAG_SPARSE: u32 = 1;
/// The file has extended attributes.
pub const FLAG_XATTR: u32 = 2;
/// The file is a log, or was one, whose bytes have their places in its directory's order of arrival.
pub const FLAG_ORDERED: u32 = 4;

/// An inode as it is stored: 112 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct InodeRecord {
    /// File type and permission bits, as `st_mode`.
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Number of names; 0 while the inode is an orphan.
    pub nlink: U32,
    /// Bytes of content; for a directory the number of its entries.
    pub size: U64,
    /// The number under which the content stands.
    pub content: U64,
    /// The directory of the name that was given last; 0 when that name is gone.
    pub parent: U64,
    /// The keyed hash of that name.
    pub name_hash: U64,
    /// Last access.
    pub atime: TimeRecord,
    /// Last change of the content.
    pub mtime: TimeRecord,
    /// Last change of content or attributes.
    pub ctime: TimeRecord,
    /// Creation.
    pub btime: TimeRecord,
    /// Device number of a device node; of a regular file that is the segment of a log, the directory
    /// that it was cut in; else 0.
    pub rdev: U64,
    /// `FLAG_` bits.
    pub flags: U32,
    /// Of a log that was truncated: the place of the part of its directory's order of arrival that was
    /// the last then; what parts before it say of the log is void. Else 0.
    pub since: U32,
}

impl InodeRecord {
    /// Bytes of the record.
    pub const LEN: usize = size_of::<Self>();

    /// Decodes a record.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the length or the file type is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let record = Self::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("an inode record of the wrong length", 0))?;
        match FileKind::from_mode(record.mode.get()) {
            Some(_) => Ok(record),
            None => Err(Error::corrupt("an inode of an unknown file type", 0)),
        }
    }

    /// The kind of file.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode.get()).unwrap_or(FileKind::Regular)
    }
}

/// One name in a directory item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirentRecord {
    /// The inode it names.
    pub number: Number,
    /// The inode's kind.
    pub kind: FileKind,
    /// 1..=255 bytes, neither `/` nor NUL.
    pub name: Vec<u8>,
}

impl DirentRecord {
    /// Appends the encoding: number u64, kind u8, name length u8, name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.push(self.kind as u8);
        out.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(self.name.get(..255).unwrap_or(&self.name));
    }

    /// The item of all names with one hash.
    pub fn encode_all(entries: &[Self]) -> Vec<u8> {
        let mut out = Vec::with_capacity(entries.iter().map(|e| 10 + e.name.len()).sum());
        entries.iter().for_each(|e| e.encode(&mut out));
        out
    }

    /// Decodes the item of all names with one hash.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are not a whole number of valid entries.
    pub fn decode_all(mut bytes: &[u8]) -> Result<Vec<Self>> {
        let bad = || Error::corrupt("a directory entry that does not decode", 0);
        let mut entries = Vec::new();
        while let Some((number, rest)) = bytes.split_first_chunk::<8>() {
            let ([kind, len], rest) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
            let (name, rest) = rest.split_at_checked(usize::from(*len)).ok_or_else(bad)?;
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(bad());
            }
            entries.push(Self {
                number: u64::from_le_bytes(*number),
                kind: FileKind::from_code(*kind).ok_or_else(bad)?,
                name: name.to_vec(),
            });
            bytes = rest;
        }
        if bytes.is_empty() {
            Ok(entries)
        } else {
            Err(bad())
        }
    }
}

/// One extended attribute in an attribute item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrRecord {
    /// Full name, 1..=255 bytes, e.g. `user.cask.mode`.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

impl XattrRecord {
    /// The item of all attributes with one hash: name length u8, value length u32, name, value.
    pub fn encode_all(entries: &[Self]) -> Vec<u8> {
        let mut out = Vec::new();
        for e in entries {
            out.push(u8::try_from(e.name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(
                &u32::try_from(e.value.len())
                    .unwrap_or(u32::MAX)
                    .to_le_bytes(),
            );
            out.extend_from_slice(e.name.get(..255).unwrap_or(&e.name));
            out.extend_from_slice(&e.value);
        }
        out
    }

    /// Decodes the item of all attributes with one hash.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are not a whole number of valid attributes.
    pub fn decode_all(mut bytes: &[u8]) -> Result<Vec<Self>> {
        let bad = || Error::corrupt("an extended attribute that does not decode", 0);
        let mut entries = Vec::new();
        while let Some((name_len, rest)) = bytes.split_first() {
            let (value_len, rest) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
            let (name, rest) = rest
                .split_at_checked(usize::from(*name_len))
                .ok_or_else(bad)?;
            let value_len = usize::try_from(u32::from_le_bytes(*value_len)).map_err(|_| bad())?;
            let (value, rest) = rest.split_at_checked(value_len).ok_or_else(bad)?;
            if name.is_empty() {
                return Err(bad());
            }
            entries.push(Self {
                name: name.to_vec(),
                value: value.to_vec(),
            });
            bytes = rest;
        }
        Ok(entries)
    }
}

/// What is kept of a segment: of which log it is, and how it was named.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SegmentRecord {
    /// The keyed hash of the log's name.
    pub log: U64,
    /// The keyed hash of the name that was asked for, without a number; 0 when somebody else chose
    /// the name.
    pub base: U64,
    /// The number that the name got; 0 for none.
    pub count: U32,
}

impl SegmentRecord {
    /// Decodes the item.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the length is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("a segment record of the wrong length", 0))
    }
}

/// Where the record of rolls stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EventsRecord {
    /// The number under which its lines stand.
    pub content: U64,
    /// Their bytes.
    pub size: U64,
    /// When the last was added.
    pub mtime: TimeRecord,
}

impl EventsRecord {
    /// Decodes the item.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the length is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("a record of rolls of the wrong length", 0))
    }
}

/// A part of a directory's order of arrival.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ArrivalsRecord {
    /// The number under which its marks stand.
    pub content: U64,
}

impl ArrivalsRecord {
    /// Decodes the item.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the length is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("a part of an order of arrival of the wrong length", 0))
    }
}

/// A change of writers in an order of arrival.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MarkRecord {
    /// The file that is appended to from here on; never 0.
    pub file: U64,
    /// Where the file of the mark before ended then.
    pub before: U64,
}

impl MarkRecord {
    /// Bytes of a mark.
    pub const LEN: usize = size_of::<Self>();
}
