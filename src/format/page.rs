//! A page of the tree: a header, a slot for each cell, and the cells.
//!
//! A leaf (level 0) holds items; a page above holds, for each child, a lower bound of its keys, its
//! block and the CRC-32C of its bytes. A page is checked whole when it comes from the device; after
//! that no accessor can fail on its structure. Invariant: keys ascend strictly.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::OnceLock;

use super::key::{Key, Number};
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
    index: OnceLock<SearchIndex>,
}

/// Where the keys of a page lie between its first and its last, in 32 bits each, beside where their
/// cells are: a search reads these few lines of memory instead of a cell, somewhere in the page, for
/// each step. Invariant: marks ascend as the keys do, but keys close to each other may share one.
#[derive(Debug, Default)]
struct SearchIndex {
    entries: Box<[Entry]>,
    /// The last mark, so that no search reads the end of the entries for it.
    last: u32,
    /// Position of the first key.
    origin: u128,
    /// Bits that a mark leaves out of a position.
    shift: u32,
    /// The number that all keys have.
    number: Option<Number>,
}

/// A mark u32 and the offset of a cell u16, in the byte order of the machine and without a gap.
#[derive(Clone, Copy, Debug)]
struct Entry([u8; 6]);

impl Entry {
    fn new(mark: u32, at: u16) -> Self {
        let [a, b, c, d] = mark.to_ne_bytes();
        let [e, f] = at.to_ne_bytes();
        Self([a, b, c, d, e, f])
    }

    fn mark(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_ne_bytes([a, b, c, d])
    }

    fn at(self) -> u16 {
        let [.., e, f] = self.0;
        u16::from_ne_bytes([e, f])
    }
}

impl SearchIndex {
    fn new(page: &Page) -> Self {
        let (Some(first), Some(last)) = (page.key(0), page.key(page.len.saturating_sub(1))) else {
            return Self::default();
        };
        let mut index = Self {
            number: (first.number == last.number).then_some(first.number),
            ..Self::default()
        };
        index.origin = index.position(&first);
        let span = index.position(&last).saturating_sub(index.origin);
        index.shift = (u128::BITS - span.leading_zeros()).saturating_sub(u32::BITS);
        let entry = |at| {
            let key = Key::read(page.bytes.get(usize::from(at)..)?)?;
            Some(Entry::new(index.mark(&key), at))
        };
        index.entries = page.slots().filter_map(entry).collect();
        index.last = index.entries.last().map_or(0, |entry| entry.mark());
        index
    }

    /// The key as a number that ascends with it: all its bits where the keys differ below their
    /// number, all but the last eight elsewhere.
    fn position(&self, key: &Key) -> u128 {
        let (number, kind, offset) = (
            u128::from(key.number),
            u128::from(key.kind as u8),
            u128::from(key.offset),
        );
        match self.number {
            Some(_) => kind << 64 | offset,
            None => number << 64 | kind << 56 | offset >> 8,
        }
    }

    fn mark(&self, key: &Key) -> u32 {
        let steps = self.position(key).saturating_sub(self.origin) >> self.shift;
        u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// Index of the first mark that is not below `mark`, looked for from where it stands if marks
    /// are spread evenly, as those of hashes and of numbers given in turn are.
    fn first_not_below(&self, mark: u32) -> usize {
        if mark > self.last || self.entries.is_empty() {
            return self.entries.len();
        }
        let (mut from, mut to) = (0, self.entries.len() - 1);
        let mut at = (u64::from(mark) * to as u64 / u64::from(self.last).max(1)) as usize;
        let mut step = 1;
        while from < to {
            if self.entries.get(at).is_some_and(|e| e.mark() < mark) {
                from = at + 1;
                at += step;
            } else {
                to = at;
                at = at.saturating_sub(step);
            }
            step *= 2;
            if !(from..to).contains(&at) {
                at = from.midpoint(to);
            }
        }
        from
    }

    /// The cells among which `key` has its place: the keys before them are smaller, those after
    /// them larger.
    fn narrow(&self, key: &Key) -> Range<usize> {
        match self.number.map(|number| key.number.cmp(&number)) {
            Some(Ordering::Less) => 0..0,
            Some(Ordering::Greater) => self.entries.len()..self.entries.len(),
            _ => {
                let mark = self.mark(key);
                let from = self.first_not_below(mark);
                let rest = self.entries.iter().skip(from);
                from..from + rest.take_while(|e| e.mark() == mark).count()
            }
        }
    }
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
            index: OnceLock::new(),
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
        let page = Self {
            bytes,
            len: count,
            index: OnceLock::new(),
        };
        let mut last = None;
        for at in page.slots() {
            let cell = page.read_cell(usize::from(at));
            let (key, value) = cell.ok_or_else(|| bad("a cell outside"))?;
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

    /// Where the cells are, in the order of their keys.
    fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        let slots = self.bytes.get(PAGE_HEADER_LEN..).unwrap_or_default();
        let (slots, _) = slots.as_chunks::<2>();
        slots
            .iter()
            .take(self.len)
            .map(|at| u16::from_le_bytes(*at))
    }

    /// Where the cell at `index` is; without the index one line of memory more is read for it.
    fn at(&self, index: usize) -> Option<usize> {
        if index >= self.len {
            return None;
        }
        let at = match self.index.get() {
            Some(searched) => searched.entries.get(index)?.at(),
            None => {
                let slot = PAGE_HEADER_LEN + 2 * index;
                u16::from_le_bytes(*self.bytes.get(slot..)?.first_chunk()?)
            }
        };
        Some(usize::from(at))
    }

    /// The key of the cell at `index`.
    pub fn key(&self, index: usize) -> Option<Key> {
        Key::read(self.bytes.get(self.at(index)?..)?)
    }

    fn read_cell(&self, at: usize) -> Option<(Key, &[u8])> {
        let cell = self.bytes.get(at..)?;
        let (key, rest) = cell.split_at_checked(Key::LEN)?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        Some((
            Key::read(key)?,
            rest.get(..usize::from(u16::from_le_bytes(*len)))?,
        ))
    }

    /// How far above the leaves it stands.
    pub fn level(&self) -> u8 {
        self.bytes.get(4).copied().unwrap_or_default()
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
        self.read_cell(self.at(index)?)
    }

    /// The value under `key`.
    pub fn find(&self, key: &Key) -> Option<&[u8]> {
        let (found, value) = self.cell(self.lower_bound(key))?;
        (found == *key).then_some(value)
    }

    /// The child at `index` of a page above the leaves, with the lower bound of its keys.
    pub fn child(&self, index: usize) -> Option<(Key, PagePtr)> {
        let (key, value) = self.cell(index)?;
        Some((key, PagePtr::decode(value)?))
    }

    /// Makes the searches to come quicker. Worth it for a page that is searched more than once: most
    /// leaves of a large tree are read, searched and given up.
    pub fn hasten(&self) {
        self.index.get_or_init(|| SearchIndex::new(self));
    }

    /// Index of the first cell whose key is not below `key`.
    pub fn lower_bound(&self, key: &Key) -> usize {
        self.partition_point(key, |k| k < *key)
    }

    /// Index of the child whose keys may include `key`.
    pub fn child_for(&self, key: &Key) -> usize {
        self.partition_point(key, |k| k <= *key).saturating_sub(1)
    }

    /// Index of the first cell for whose key `before`, which turns false around `key`, does not
    /// hold.
    fn partition_point(&self, key: &Key, before: impl Fn(Key) -> bool) -> usize {
        let narrow = self.index.get().map(|index| index.narrow(key));
        let Range {
            start: mut from,
            end: mut to,
        } = narrow.unwrap_or(0..self.len);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Kind;

    /// Numbers and offsets that lie close together, far apart, and at the ends of their range.
    fn part() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..4, 1_000u64..1_400, Just(u64::MAX), any::<u64>()]
    }

    fn keys(numbers: impl Strategy<Value = u64> + 'static) -> BoxedStrategy<Vec<Key>> {
        let kind = prop_oneof![Just(Kind::Inode), Just(Kind::Data), Just(Kind::Dirent)];
        let key = (numbers, kind, part()).prop_map(|(n, kind, offset)| Key::new(n, kind, offset));
        prop::collection::btree_set(key, 0..100)
            .prop_map(|keys| keys.into_iter().collect())
            .boxed()
    }

    fn page(keys: &[Key]) -> Page {
        let cells = keys.iter().map(|key| (*key, [].as_slice()));
        Page::build(4096, 0, 1, 1, cells).unwrap()
    }

    proptest! {
        #[test]
        fn a_search_finds_the_same_place_with_an_index(
            keys in prop_oneof![keys(part()), keys(Just(7u64)), keys(7u64..9)],
            others in keys(part()),
        ) {
            let page = page(&keys);
            for pass in 0..2 {
                for key in keys.iter().chain(&others) {
                    let below = keys.iter().filter(|k| *k < key).count();
                    let up_to = keys.iter().filter(|k| *k <= key).count();
                    prop_assert_eq!(page.lower_bound(key), below, "pass {}", pass);
                    prop_assert_eq!(page.child_for(key), up_to.saturating_sub(1), "pass {}", pass);
                }
                page.hasten();
            }
        }
    }

    #[test]
    fn more_cells_than_a_page_has_room_for_are_told() {
        let sound = page(&[Key::new(3, Kind::Inode, 0)]);
        let most = (4096 - PAGE_HEADER_LEN) / CELL_OVERHEAD;
        for count in [most + 1, most + CELL_OVERHEAD, usize::from(u16::MAX)] {
            let mut bytes: Box<[u8]> = sound.bytes().into();
            let count = u16::try_from(count).unwrap();
            bytes[6..8].copy_from_slice(&count.to_le_bytes());
            let error = Page::parse(bytes, 1, 0, 0).unwrap_err().to_string();
            assert!(error.contains("more cells than fit"), "{count}: {error}");
        }
    }
}
