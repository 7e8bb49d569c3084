//! The key of an item in the tree: (number, kind, offset), ordered in this way.
//!
//! All items of one inode stand side by side, so removing a file is removing a range.

use crate::error::{Error, Result};

/// The number of an inode, or of a file content. Both come from one counter and are never used
/// again. 0 holds the cask's own indexes, 1 is the root directory.
pub type Number = u64;

/// The number under which the cask keeps its own indexes (orphans, expiry).
pub const INDEX: Number = 0;
/// The root directory.
pub const ROOT: Number = 1;

/// What an item holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An [`InodeRecord`](super::InodeRecord); offset 0.
    Inode = 1,
    /// Content: bytes or an extent; offset is the first block's index in the content.
    Data = 2,
    /// Names in a directory whose keyed hash is the offset.
    Dirent = 3,
    /// Extended attributes whose name's keyed hash is the offset.
    Xattr = 4,
    /// Number 0 only: an inode without a name that is still open; offset is its number.
    Orphan = 5,
    /// Number 0 only: an inode on which a `ttl` stands; offset is its number.
    Ttl = 6,
    /// A segment of a log of this directory; offset is its inode's number.
    Segment = 7,
    /// Number 0 only, offset 0: the record of rolls.
    Events = 8,
    /// A part of a directory's order of arrival; offset is its place in the order, from 1.
    Arrivals = 9,
    /// Number 0 only: a directory with segments; offset is its number.
    Home = 10,
}

impl Kind {
    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Inode,
            2 => Self::Data,
            3 => Self::Dirent,
            4 => Self::Xattr,
            5 => Self::Orphan,
            6 => Self::Ttl,
            7 => Self::Segment,
            8 => Self::Events,
            9 => Self::Arrivals,
            10 => Self::Home,
            _ => return None,
        })
    }
}

/// The key of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Inode or content number.
    pub number: Number,
    /// What the item holds.
    pub kind: Kind,
    /// Position within the number and kind.
    pub offset: u64,
}

impl Key {
    /// Bytes of an encoded key.
    pub const LEN: usize = 17;

    /// A key of these parts.
    pub const fn new(number: Number, kind: Kind, offset: u64) -> Self {
        Self {
            number,
            kind,
            offset,
        }
    }

    /// The key of an inode record.
    pub const fn inode(number: Number) -> Self {
        Self::new(number, Kind::Inode, 0)
    }

    /// Encodes: number u64, kind u8, offset u64, little-endian.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (number, rest) = bytes.split_at_mut(8);
        let (kind, offset) = rest.split_at_mut(1);
        number.copy_from_slice(&self.number.to_le_bytes());
        kind.copy_from_slice(&[self.kind as u8]);
        offset.copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Decodes what [`Key::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are too few or the kind is unknown.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).ok_or_else(|| Error::corrupt("an item key that does not decode", 0))
    }

    /// As [`Key::decode`], for the many keys of a page.
    #[inline]
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<{ Self::LEN }>()?;
        let (number, [kind, offset @ ..]) = bytes.split_first_chunk::<8>()? else {
            return None;
        };
        Some(Self {
            number: u64::from_le_bytes(*number),
            kind: Kind::from_code(*kind)?,
            offset: u64::from_le_bytes(*offset.first_chunk()?),
        })
    }
}
