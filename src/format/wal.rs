//! Frames and records of the write-ahead log.
//!
//! A frame is a 64-byte header and a payload of whole records; a record is one operation: a list of
//! changes. Each frame carries the digest of the frame before it, so what an earlier lap of the
//! ring left behind never continues the chain.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{Digest, Keys};
use super::key::{Key, Number};
use crate::error::{Error, Result};

/// Magic of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"CKWL");
/// Bytes of a frame header; frames start at multiples of it.
pub const FRAME_ALIGN: usize = 64;
/// Bytes before each record: its length, u32.
pub const RECORD_HEADER: usize = 4;

/// A frame header as it is stored.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FrameRecord {
    /// `FRAME_MAGIC`.
    pub magic: U32,
    /// Bytes of payload.
    pub len: U32,
    /// Number of the first record.
    pub lsn: U64,
    /// The checkpoint that was newest when the frame was written.
    pub generation: U64,
    /// How many records before this frame were not yet known to be durable.
    pub unconfirmed: U32,
    /// Records in the payload.
    pub records: U32,
    /// Digest of the frame before, or the seed.
    pub previous: Digest,
    /// Keyed digest of all before and of the payload.
    pub digest: Digest,
}

impl FrameRecord {
    const COVERED: usize = size_of::<Self>() - size_of::<Digest>();

    /// The digest that this header and payload must carry.
    pub fn seal(&self, keys: &Keys, payload: &[u8]) -> Digest {
        let bytes = self.as_bytes();
        keys.frame(bytes.get(..Self::COVERED).unwrap_or(bytes), payload)
    }

    /// All records below this number are durable.
    pub fn confirmed(&self) -> u64 {
        self.lsn
            .get()
            .saturating_sub(u64::from(self.unconfirmed.get()))
    }
}

/// Bytes that a frame with this payload takes in the ring.
pub fn frame_len(payload: usize) -> u64 {
    (FRAME_ALIGN + payload).next_multiple_of(FRAME_ALIGN) as u64
}

/// One change of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The item has this value.
    Put(Key, &'a [u8]),
    /// The item is gone.
    Del(Key),
    /// These bytes stand at the offset of the content.
    Write(Number, u64, &'a [u8]),
    /// From this block of the content on, blocks from `start` of the container hold the content;
    /// CRC-32C of each, 4 bytes.
    Extent {
        /// The content.
        content: Number,
        /// First block in the content.
        block: u64,
        /// First block in the container.
        start: u64,
        /// Checksums, 4 bytes a block.
        crcs: &'a [u8],
    },
    /// The content reads as zeros at and after this offset.
    Truncate(Number, u64),
    /// The content is gone.
    Drop(Number),
    /// Next number to give out, and inodes in use.
    Counters {
        /// Next number.
        next_number: u64,
        /// Inodes in use.
        files: u64,
    },
    /// The container has this many blocks.
    Grow(u64),
    /// The cask's label.
    Label(&'a [u8]),
    /// Wiping is set on so many files and directories.
    Wipes(u32),
    /// Most inodes, 0 for no bound; whether the number of blocks is fixed.
    Bounds {
        /// Most inodes; 0 for no bound.
        files: u64,
        /// The container does not grow by itself.
        fixed: bool,
    },
}

impl Change<'_> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fn words(out: &mut Vec<u8>, tag: u8, words: &[u64]) {
            out.push(tag);
            words
                .iter()
                .for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        }
        fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        match self {
            Self::Put(key, value) => {
                out.push(1);
                out.extend_from_slice(&key.encode());
                bytes(out, value);
            }
            Self::Del(key) => {
                out.push(2);
                out.extend_from_slice(&key.encode());
            }
            Self::Write(content, offset, data) => {
                words(out, 3, &[*content, *offset]);
                bytes(out, data);
            }
            Self::Extent {
                content,
                block,
                start,
                crcs,
            } => {
                words(out, 4, &[*content, *block, *start]);
                bytes(out, crcs);
            }
            Self::Truncate(content, len) => words(out, 5, &[*content, *len]),
            Self::Drop(content) => words(out, 6, &[*content]),
            Self::Counters { next_number, files } => words(out, 7, &[*next_number, *files]),
            Self::Grow(blocks) => words(out, 8, &[*blocks]),
            Self::Label(label) => {
                out.push(9);
                bytes(out, label);
            }
            Self::Wipes(count) => words(out, 10, &[u64::from(*count)]),
            Self::Bounds { files, fixed } => words(out, 11, &[*files, u64::from(*fixed)]),
        }
    }
}

/// The changes of one record, decoded one by one.
#[derive(Clone, Debug)]
pub struct Changes<'a>(pub &'a [u8]);

impl<'a> Changes<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn key(&mut self) -> Option<Key> {
        let (key, rest) = self.0.split_at_checked(Key::LEN)?;
        self.0 = rest;
        Key::decode(key).ok()
    }

    fn change(&mut self) -> Option<Change<'a>> {
        let (tag, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(match tag {
            1 => Change::Put(self.key()?, self.bytes()?),
            2 => Change::Del(self.key()?),
            3 => Change::Write(self.word()?, self.word()?, self.bytes()?),
            4 => {
                let (content, block, start) = (self.word()?, self.word()?, self.word()?);
                let crcs = self.bytes().filter(|c| c.len() % 4 == 0 && !c.is_empty())?;
                Change::Extent {
                    content,
                    block,
                    start,
                    crcs,
                }
            }
            5 => Change::Truncate(self.word()?, self.word()?),
            6 => Change::Drop(self.word()?),
            7 => Change::Counters {
                next_number: self.word()?,
                files: self.word()?,
            },
            8 => Change::Grow(self.word()?),
            9 => Change::Label(self.bytes()?),
            10 => Change::Wipes(u32::try_from(self.word()?).ok()?),
            11 => Change::Bounds {
                files: self.word()?,
                fixed: match self.word()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
            },
            _ => return None,
        })
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Result<Change<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let change = self.change();
        if change.is_none() {
            self.0 = &[];
        }
        Some(change.ok_or_else(|| Error::corrupt("a log record that does not decode", 0)))
    }
}

/// Splits a payload into its records.
///
/// # Errors
/// [`Error::Corrupt`] when the lengths do not add up.
pub fn records(payload: &[u8]) -> Result<Vec<&[u8]>> {
    let bad = || Error::corrupt("a log frame whose records do not add up", 0);
    let mut rest = payload;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let (record, after) = after
            .split_at_checked(u32::from_le_bytes(*len) as usize)
            .ok_or_else(bad)?;
        out.push(record);
        rest = after;
    }
    Ok(out)
}

/// Decodes a list of CRC-32C values, 4 bytes each.
pub fn decode_crcs(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|c| c.first_chunk::<4>().map_or(0, |c| u32::from_le_bytes(*c)))
}
