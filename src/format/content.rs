//! The value of a content item: bytes, or where they stand.

use super::wal::decode_crcs;
use crate::error::{Error, Result};

/// What stands at one block, or from one block on, of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentRecord<'a> {
    /// The block begins with these bytes; the rest of it is zeros.
    Inline(&'a [u8]),
    /// Blocks of the container hold blocks of the content, one after another.
    Extent {
        /// First block in the container.
        start: u64,
        /// CRC-32C of each block, 4 bytes a block.
        crcs: &'a [u8],
    },
    /// So many blocks of the content were lost to damage: whoever reads them is told so.
    Lost(u32),
}

impl<'a> ContentRecord<'a> {
    /// Encodes: tag u8 (0 bytes, 1 extent, 2 lost), then the bytes, or start u64 and the checksums, or how
    /// many blocks u32.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inline(bytes) => [&[0], *bytes].concat(),
            Self::Extent { start, crcs } => [&[1], &start.to_le_bytes()[..], crcs].concat(),
            Self::Lost(blocks) => [&[2], &blocks.to_le_bytes()[..]].concat(),
        }
    }

    /// Decodes a content item.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the tag or the length is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let bad = || Error::corrupt("a content item that does not decode", 0);
        match bytes.split_first() {
            Some((0, bytes)) => Ok(Self::Inline(bytes)),
            Some((1, rest)) => {
                let (start, crcs) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
                if crcs.is_empty() || crcs.len() % 4 != 0 {
                    return Err(bad());
                }
                Ok(Self::Extent {
                    start: u64::from_le_bytes(*start),
                    crcs,
                })
            }
            Some((2, blocks)) => {
                let blocks = <[u8; 4]>::try_from(blocks).map_err(|_| bad())?;
                match u32::from_le_bytes(blocks) {
                    0 => Err(bad()),
                    blocks => Ok(Self::Lost(blocks)),
                }
            }
            _ => Err(bad()),
        }
    }

    /// Blocks of the content that the item covers.
    pub fn blocks(&self) -> u64 {
        match self {
            Self::Inline(_) => 1,
            Self::Extent { crcs, .. } => decode_crcs(crcs).len() as u64,
            Self::Lost(blocks) => u64::from(*blocks),
        }
    }
}
