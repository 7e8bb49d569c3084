//! A page of the tree: a header, a slot for each cell, and the cells.
//!
//! A leaf (level 0) holds items; a page above holds, for each child, a lower bound of its keys, its
//! block and the CRC-32C of its bytes. A page is checked whole when it comes from the device; after
//! that no accessor can fail on its structure. Invariant: keys ascend strictly.

use super::key::Key;
use crate::error::{Error, Result};

/// Magic of a page.
pub const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"CKPG");
/// Bytes of the header: magic u32, level u8, zero u8, cells u16, block u64, generation u64, end of
/// the cells u32, zero u32.
pub const PAGE_HEADER_LEN: usize = 32;
/// Bytes a cell takes beside its value: slot u16, key, value length u16.
pub const CELL_OVERHEAD: usize = 2 + Key::LEN + 2;
/// Bytes of a child reference: block u64, CRC-32C u32.
pub const CHILD_LEN: usize = 12;

/// Where a page stands and what its bytes sum to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePtr {
    /// Block.
    pub block: u64,
    /// CRC-32C of the page.
    pub crc: u32,
}

impl PagePtr {
    /// Encodes as a child reference.
    pub fn encode(&self) -> [u8; CHILD_LEN] {
        let mut out = [0; CHILD_LEN];
        let (block, crc) = out.split_at_mut(8);
        block.copy_from_slice(&self.block.to_le_bytes());
        crc.copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Decodes a child reference.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (block, crc) = bytes.split_first_chunk::<8>()?;
        let crc: [u8; 4] = crc.try_into().ok()?;
        Some(Self {
            block: u64::from_le_bytes(*block),
            crc: u32::from_le_bytes(crc),
        })
    }
}

/// A checked page.
#[derive(Debug)]
pub struct Page {
    bytes: Box<[u8]>,
    len: usize,
}

impl Page {
    /// Builds the page of these cells, given in ascending order.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the cells do not fit; the caller packs them so that they do.
    pub fn build<'a>(
        block_len: usize,
        level: u8,
        block: u64,
        generation: u64,
        cells: impl ExactSizeIterator<Item = (Key, &'a [u8])>,
    ) -> Result<Self> {
        let overfull = || Error::corrupt("cells that overfill a page", block);
        let count = cells.len();
        let mut bytes = Vec::with_capacity(block_len);
        bytes.resize(PAGE_HEADER_LEN + 2 * count, 0);
        for (index, (key, value)) in cells.enumerate() {
            let at = u16::try_from(bytes.len()).map_err(|_| overfull())?;
            let slot = PAGE_HEADER_LEN + 2 * index;
            bytes
                .get_mut(slot..slot + 2)
                .ok_or_else(overfull)?
                .copy_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&key.encode());
            bytes.extend_from_slice(
                &u16::try_from(value.len())
                    .map_err(|_| overfull())?
                    .to_le_bytes(),
            );
            bytes.extend_from_slice(value);
        }
        let end = u32::try_from(bytes.len()).map_err(|_| overfull())?;
        if bytes.len() > block_len {
            return Err(overfull());
        }
        bytes.resize(block_len, 0);
        let mut head = Vec::with_capacity(PAGE_HEADER_LEN);
        head.extend_from_slice(&PAGE_MAGIC.to_le_bytes());
        head.extend_from_slice(&[level, 0]);
        head.extend_from_slice(&u16::try_from(count).map_err(|_| overfull())?.to_le_bytes());
        head.extend_from_slice(&block.to_le_bytes());
        head.extend_from_slice(&generation.to_le_bytes());
        head.extend_from_slice(&end.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        bytes
            .get_mut(..PAGE_HEADER_LEN)
            .ok_or_else(overfull)?
            .copy_from_slice(&head);
        Ok(Self {
            bytes: bytes.into(),
            len: count,
        })
    }

    /// Checks bytes read from `block`, where a page of `level` is expected.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming what is wrong.
    pub fn parse(bytes: Box<[u8]>, block: u64, offset: u64, level: u8) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("a tree page with {what}"), offset);
        let short = || bad("a cut header");
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let ([found_level, _, count @ ..], rest) =
            rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (found_block, _) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        if u32::from_le_bytes(*magic) != PAGE_MAGIC {
            return Err(bad("no magic"));
        }
        if u64::from_le_bytes(*found_block) != block {
            return Err(bad("another page's number"));
        }
        if *found_level != level {
            return Err(bad("the wrong level"));
        }
        let count = usize::from(u16::from_le_bytes(*count));
        if PAGE_HEADER_LEN + count * CELL_OVERHEAD > bytes.len() {
            return Err(bad("more cells than fit"));
        }
        let page = Self { bytes, len: count };
        let mut last = None;
        for index in 0..count {
            let (key, value) = page.read_cell(index).ok_or_else(|| bad("a cell outside"))?;
            if last.is_some_and(|last| last >= key) {
                return Err(bad("keys out of order"));
            }
            if level > 0 && PagePtr::decode(value).is_none() {
                return Err(bad("a child reference of the wrong length"));
            }
            last = Some(key);
        }
        Ok(page)
    }

    /// The key of the cell at `index`.
    pub fn key(&self, index: usize) -> Option<Key> {
        if index >= self.len {
            return None;
        }
        let slot = PAGE_HEADER_LEN + 2 * index;
        let at: [u8; 2] = self.bytes.get(slot..slot + 2)?.try_into().ok()?;
        let at = usize::from(u16::from_le_bytes(at));
        Key::decode(self.bytes.get(at..at + Key::LEN)?).ok()
    }

    fn read_cell(&self, index: usize) -> Option<(Key, &[u8])> {
        let slot = PAGE_HEADER_LEN + 2 * index;
        let at: [u8; 2] = self.bytes.get(slot..slot + 2)?.try_into().ok()?;
        let cell = self.bytes.get(usize::from(u16::from_le_bytes(at))..)?;
        let (key, rest) = cell.split_at_checked(Key::LEN)?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        Some((
            Key::decode(key).ok()?,
            rest.get(..usize::from(u16::from_le_bytes(*len)))?,
        ))
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        (0..self.len).filter_map(|index| self.key(index))
    }

    /// The cell at `index`.
    pub fn cell(&self, index: usize) -> Option<(Key, &[u8])> {
        (index < self.len).then(|| self.read_cell(index))?
    }

    /// The child at `index` of a page above the leaves, with the lower bound of its keys.
    pub fn child(&self, index: usize) -> Option<(Key, PagePtr)> {
        let (key, value) = self.cell(index)?;
        Some((key, PagePtr::decode(value)?))
    }

    /// Index of the first cell whose key is not below `key`.
    pub fn lower_bound(&self, key: &Key) -> usize {
        self.partition_point(|k| k < *key)
    }

    /// Index of the child whose keys may include `key`.
    pub fn child_for(&self, key: &Key) -> usize {
        self.partition_point(|k| k <= *key).saturating_sub(1)
    }

    /// Index of the first cell for whose key `before` does not hold. Keys are decoded as they are
    /// looked at, a handful a page: kept decoded, they would take a third more memory.
    fn partition_point(&self, before: impl Fn(Key) -> bool) -> usize {
        let (mut from, mut to) = (0, self.len);
        while from < to {
            let middle = from.midpoint(to);
            if self.key(middle).is_some_and(&before) {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }
}
