//! What changed since a checkpoint, in memory.
//!
//! Items are a sorted map. Content is kept as patches: bytes of a block that are known, over
//! whatever the layer below holds there. So applying a record never reads anything, and replay after
//! a crash costs the same whatever the size of the tree.
//!
//! Invariant: [`Overlay::apply`] is the only way in, for a running operation and for replay alike,
//! so both arrive at the same state.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::alloc::Run;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::format::page::CELL_OVERHEAD;
use crate::format::wal::{Change, decode_crcs};
use crate::format::{Geometry, Key, Kind};
use crate::tree::Value;

/// Bytes of a content item beside its payload.
const CONTENT_OVERHEAD: usize = CELL_OVERHEAD + 9;

/// Bytes of memory of an item, of the value that it may have, of a content, and of each of its chunks and
/// extents, beside what is in them: most of it is what the maps and the allocator leave unused.
const ITEM_MEMORY: u64 = 90;
const VALUE_MEMORY: u64 = 30;
const CONTENT_MEMORY: u64 = 180;
const CHUNK_MEMORY: u64 = 240;
const EXTENT_MEMORY: u64 = 400;

/// What the next checkpoint may need for a set of changes, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Places of the tree that are touched.
    pub keys: u64,
    /// Bytes that are added to the tree.
    pub bytes: u64,
    /// Blocks of content.
    pub blocks: u64,
}

impl Cost {
    /// The sum of two.
    pub fn plus(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
            blocks: self.blocks + other.blocks,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            keys: self.keys.saturating_sub(other.keys),
            bytes: self.bytes.saturating_sub(other.bytes),
            blocks: self.blocks.saturating_sub(other.blocks),
        }
    }
}

/// The known bytes of one block.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    data: Vec<u8>,
    /// Sorted, disjoint, not touching.
    known: Vec<Range<usize>>,
}

impl Chunk {
    /// Makes `bytes` known at `at`.
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        if let Some(place) = self.data.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
        let (mut start, mut stop) = (at, end);
        self.known.retain(|range| {
            let apart = range.end < start || range.start > stop;
            if !apart {
                start = start.min(range.start);
                stop = stop.max(range.end);
            }
            apart
        });
        if self.known.is_empty() {
            // Most blocks are written once, and there may be very many of them.
            self.known.reserve_exact(1);
        }
        let index = self.known.partition_point(|range| range.start < start);
        self.known.insert(index, start..stop);
    }

    /// The known ranges with their bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (Range<usize>, &[u8])> {
        self.known
            .iter()
            .filter_map(|range| Some((range.clone(), self.data.get(range.clone())?)))
    }

    fn end(&self) -> usize {
        self.data.len()
    }
}

/// Blocks of a content that stand in the container already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block in the container.
    pub start: u64,
    /// CRC-32C of each block.
    pub crcs: Arc<[u32]>,
}

impl Extent {
    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.crcs.len() as u64
    }

    /// The blocks `range`, counted from the extent's first; `None` when there is none.
    pub fn part(&self, range: Range<u64>) -> Option<Self> {
        let crcs = self
            .crcs
            .get(range.start as usize..range.end as usize)
            .filter(|c| !c.is_empty())?;
        Some(Self {
            start: self.start + range.start,
            crcs: crcs.into(),
        })
    }
}

/// The changes of one content.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Blocks from this one on hold nothing of the layers below.
    pub floor: Option<u64>,
    /// Known bytes by block.
    pub chunks: BTreeMap<u64, Box<Chunk>>,
    /// Blocks in place, by first block of the content; under the chunks.
    pub extents: BTreeMap<u64, Extent>,
}

impl Content {
    /// The extent that holds `block`, with the block's index in it.
    pub fn extent_at(&self, block: u64) -> Option<(&Extent, u64)> {
        let (first, extent) = self.extents.range(..=block).next_back()?;
        let index = block - first;
        (index < extent.len()).then_some((extent, index))
    }

    /// Whether nothing of the layers below shows at `block`.
    pub fn hides(&self, block: u64) -> bool {
        self.floor.is_some_and(|floor| block >= floor)
    }
}

/// Items from which on a layer has a filter.
const FILTER_FROM: usize = 512;
/// Bits of a filter, as a power of two: 64 KiB, for the 40,000 items that a layer has at most, about.
const FILTER_BITS: u32 = 19;

/// Which keys a layer may have an item for. Most look-ups ask for what it has not, and the sorted map
/// would go through cold memory for each of them.
#[derive(Debug, Default)]
struct Filter(Vec<u64>);

impl Filter {
    fn place(key: &Key) -> (usize, u64) {
        let mixed = key.number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ (key.offset ^ u64::from(key.kind as u8)).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        let bit = mixed.wrapping_mul(0x1656_67B1_9E37_79F9) >> (u64::BITS - FILTER_BITS);
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn add(&mut self, key: &Key) {
        let (word, bit) = Self::place(key);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// False when it certainly has none.
    fn may_have(&self, key: &Key) -> bool {
        let (word, bit) = Self::place(key);
        self.0.get(word).is_none_or(|word| word & bit != 0)
    }
}

/// All changes since a checkpoint.
#[derive(Debug)]
pub struct Overlay {
    geometry: Geometry,
    /// Numbers from this one on were given out in this layer: nothing below knows them, and all
    /// their keys come after all keys below.
    born: Number,
    /// The last place of the tree, where all that is born here goes, is counted in the cost.
    edge: bool,
    /// Items; `None` when gone.
    pub items: BTreeMap<Key, Option<Value>>,
    /// How many of them have a value.
    values: u64,
    filter: Filter,
    /// Contents with changes.
    pub contents: BTreeMap<Number, Content>,
    /// How many chunks and extents they have.
    chunks: u64,
    extents: u64,
    /// Blocks that were in place and given up again.
    pub dropped: Vec<Run>,
    /// What a checkpoint of this layer may need.
    pub cost: Cost,
    /// Content or items of layers below were given up.
    pub releases: bool,
    /// Something was taken away, or an attribute replaced, whether layers below have it or not.
    pub gives_up: bool,
    /// Wiping was in force at some time: what a checkpoint of this layer retires is overwritten.
    pub wiping: bool,
}

impl Overlay {
    /// An empty layer; `born` is the next number to be given out.
    pub fn new(geometry: Geometry, born: Number) -> Self {
        Self {
            geometry,
            born,
            edge: false,
            items: BTreeMap::new(),
            values: 0,
            filter: Filter::default(),
            contents: BTreeMap::new(),
            chunks: 0,
            extents: 0,
            dropped: Vec::new(),
            cost: Cost::default(),
            releases: false,
            gives_up: false,
            wiping: false,
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.contents.is_empty() && self.dropped.is_empty()
    }

    /// About how many bytes of memory the layer takes.
    pub fn memory(&self) -> u64 {
        let items = self.items.len() as u64 * ITEM_MEMORY + self.values * VALUE_MEMORY;
        let contents = self.contents.len() as u64 * CONTENT_MEMORY + self.chunks * CHUNK_MEMORY;
        let extents = self.extents * EXTENT_MEMORY;
        self.cost.bytes + self.cost.blocks * self.geometry.block() + items + contents + extents
    }

    /// Applies one change. Counters, growth and label are the caller's.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a record asks for what no operation writes.
    pub fn apply(&mut self, change: &Change<'_>) -> Result<()> {
        match change {
            Change::Put(key, value) => self.put(*key, Some(Value::from(*value))),
            Change::Del(key) => self.put(*key, None),
            Change::Write(content, offset, bytes) => self.write(*content, *offset, bytes)?,
            Change::Extent {
                content,
                block,
                start,
                crcs,
            } => {
                let crcs: Arc<[u32]> = decode_crcs(crcs).collect();
                self.place(
                    *content,
                    *block,
                    Extent {
                        start: *start,
                        crcs,
                    },
                )?;
            }
            Change::Truncate(content, len) => self.truncate(*content, *len)?,
            Change::Drop(content) => self.truncate(*content, 0)?,
            Change::Wipes(count) => self.wiping |= *count > 0,
            Change::Counters { .. }
            | Change::Grow(_)
            | Change::Label(_)
            | Change::Bounds { .. } => {}
        }
        Ok(())
    }

    /// How many places of the tree `keys` items of `number` touch at most, beside its last one.
    fn places(&self, number: Number, keys: u64) -> u64 {
        if number < self.born { keys } else { 0 }
    }

    /// Counts the last place of the tree when the first number is used that was born here.
    fn touch(&mut self, number: Number) {
        if number >= self.born && !self.edge {
            self.edge = true;
            self.cost.keys += 1;
        }
    }

    fn put(&mut self, key: Key, value: Option<Value>) {
        self.touch(key.number);
        let keys = self.places(key.number, 1);
        let cost = |value: &Option<Value>| Cost {
            keys,
            bytes: value
                .as_ref()
                .map_or(0, |v| (v.len() + CELL_OVERHEAD) as u64),
            blocks: 0,
        };
        self.gives_up |= value.is_none();
        self.releases |= value.is_none() && key.number < self.born;
        self.cost = self.cost.plus(cost(&value));
        // What stands below is not looked up: it may have been an attribute's value.
        let mut replaces = key.number < self.born;
        self.values += u64::from(value.is_some());
        if let Some(old) = self.items.insert(key, value) {
            self.cost = self.cost.minus(cost(&old));
            self.values -= u64::from(old.is_some());
            replaces = true;
        }
        self.gives_up |= replaces && key.kind == Kind::Xattr;
        if self.filter.0.is_empty() && self.items.len() >= FILTER_FROM {
            self.filter.0 = vec![0; 1 << (FILTER_BITS - u64::BITS.ilog2())];
            self.items.keys().for_each(|key| self.filter.add(key));
        }
        self.filter.add(&key);
    }

    /// What the layer says of an item: `None` for nothing, `Some(None)` that it is gone.
    pub fn item(&self, key: &Key) -> Option<&Option<Value>> {
        match self.filter.may_have(key) {
            true => self.items.get(key),
            false => None,
        }
    }

    fn content(&mut self, number: Number) -> &mut Content {
        self.touch(number);
        let floor = (number >= self.born).then_some(0);
        let keys = self.places(number, 2);
        let cost = &mut self.cost;
        self.contents.entry(number).or_insert_with(|| {
            *cost = cost.plus(Cost {
                keys,
                bytes: 0,
                blocks: 0,
            });
            Content {
                floor,
                ..Content::default()
            }
        })
    }

    /// What the chunk at `block` costs; `old` when the content may stand in the layers below.
    fn chunk_cost(geometry: &Geometry, content: &Content, block: u64, old: bool) -> Cost {
        let places = |keys| if old { keys } else { 0 };
        let Some(chunk) = content.chunks.get(&block) else {
            return Cost::default();
        };
        let alone = content.hides(block) && content.extent_at(block).is_none();
        if alone && chunk.end() <= geometry.inline_max() {
            Cost {
                keys: places(1),
                bytes: (chunk.end() + CONTENT_OVERHEAD) as u64,
                blocks: 0,
            }
        } else {
            Cost {
                keys: places(3),
                bytes: 3 * CONTENT_OVERHEAD as u64 + 4,
                blocks: 1,
            }
        }
    }

    /// Changes the chunk at `block` and keeps the account.
    fn patch(&mut self, number: Number, block: u64, at: usize, bytes: &[u8]) {
        let geometry = self.geometry;
        let old = number < self.born;
        let content = self.content(number);
        let before = Self::chunk_cost(&geometry, content, block, old);
        let chunks = content.chunks.len();
        content.chunks.entry(block).or_default().write(at, bytes);
        let more = content.chunks.len() - chunks;
        let after = Self::chunk_cost(&geometry, content, block, old);
        self.cost = self.cost.minus(before).plus(after);
        self.chunks += more as u64;
    }

    fn write(&mut self, number: Number, offset: u64, mut bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > crate::limits::FILE_SIZE_MAX) {
            return Err(Error::corrupt(
                "a log record that writes past the largest file",
                0,
            ));
        }
        let size = self.geometry.block();
        let mut offset = offset;
        while !bytes.is_empty() {
            let at = (offset % size) as usize;
            let take = bytes.len().min(self.geometry.block_len() - at);
            let (piece, rest) = bytes.split_at(take);
            self.patch(number, offset / size, at, piece);
            offset += take as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn place(&mut self, number: Number, block: u64, extent: Extent) -> Result<()> {
        let end = block
            .checked_add(extent.len())
            .filter(|end| *end <= crate::limits::FILE_SIZE_MAX);
        let end = end.ok_or_else(|| {
            Error::corrupt("a log record that places blocks past the largest file", 0)
        })?;
        self.clear(number, block..end);
        self.gives_up |= number < self.born;
        self.releases |= number < self.born;
        self.cost = self.cost.plus(self.extent_cost(number, extent.len()));
        self.content(number).extents.insert(block, extent);
        self.extents += 1;
        Ok(())
    }

    fn extent_cost(&self, number: Number, blocks: u64) -> Cost {
        let items = blocks.div_ceil(self.geometry.extent_max()) + 2;
        Cost {
            keys: self.places(number, items),
            bytes: 4 * blocks + items * CONTENT_OVERHEAD as u64,
            blocks: 0,
        }
    }

    /// Forgets what this layer holds in a range of blocks.
    fn clear(&mut self, number: Number, range: Range<u64>) {
        let geometry = self.geometry;
        let old = number < self.born;
        let content = self.content(number);
        let blocks: Vec<u64> = content
            .chunks
            .range(range.clone())
            .map(|(block, _)| *block)
            .collect();
        let (mut given, fewer) = (Cost::default(), blocks.len() as u64);
        for block in blocks {
            given = given.plus(Self::chunk_cost(&geometry, content, block, old));
            content.chunks.remove(&block);
        }
        let from = content
            .extents
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(first, _)| *first);
        let touched: Vec<u64> = content
            .extents
            .range(from..range.end)
            .filter(|(first, extent)| **first + extent.len() > range.start)
            .map(|(first, _)| *first)
            .collect();
        let (mut dropped, extents) = (Vec::new(), content.extents.len() as u64);
        for first in touched {
            let Some(extent) = content.extents.remove(&first) else {
                continue;
            };
            let from = range.start.saturating_sub(first).min(extent.len());
            let to = (range.end - first).min(extent.len());
            dropped.push(Run {
                start: extent.start + from,
                len: to - from,
            });
            if let Some(head) = extent.part(0..from) {
                content.extents.insert(first, head);
            }
            if let Some(tail) = extent.part(to..extent.len()) {
                content.extents.insert(first + to, tail);
            }
        }
        let left = content.extents.len() as u64;
        self.extents = self.extents + left - extents;
        // The heads and tails are already paid for by the extent they were part of.
        self.gives_up |= !dropped.is_empty();
        self.releases |= !dropped.is_empty();
        self.dropped.extend(dropped);
        self.cost = self.cost.minus(given);
        self.chunks -= fewer;
    }

    fn truncate(&mut self, number: Number, len: u64) -> Result<()> {
        if len > crate::limits::FILE_SIZE_MAX {
            return Err(Error::corrupt(
                "a log record that truncates past the largest file",
                0,
            ));
        }
        let floor = len.div_ceil(self.geometry.block());
        self.clear(number, floor..u64::MAX);
        self.gives_up = true;
        self.releases |= number < self.born;
        let content = self.content(number);
        content.floor = Some(content.floor.map_or(floor, |old| old.min(floor)));
        // The rest of the last block reads as zeros when the file grows again.
        let at = (len % self.geometry.block()) as usize;
        if at != 0 {
            let zeros = vec![0; self.geometry.block_len() - at];
            self.patch(number, len / self.geometry.block(), at, &zeros);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::content::ContentRecord;

    #[test]
    fn the_filter_denies_no_item_and_most_of_what_there_is_not() {
        let geometry = Geometry {
            block_size: 4096,
            spacing: 65_536,
            wal_len: 1 << 20,
        };
        let mut layer = Overlay::new(geometry, 1);
        let key = |n: u64, there: u64| match n % 3 {
            0 => Key::new(n / 3 * 2 + there, Kind::Inode, 0),
            1 => Key::new(9, Kind::Dirent, (n * 2 + there).wrapping_mul(0x9E37_79B9)),
            _ => Key::new(n * 2 + there, Kind::Data, n % 7),
        };
        for n in 0..40_000 {
            layer.put(key(n, 0), (n % 5 > 0).then(|| Value::from([1])));
            if n.is_multiple_of(4_999) || n.abs_diff(FILTER_FROM as u64) < 3 {
                assert!((0..=n).all(|n| layer.item(&key(n, 0)).is_some()), "{n}");
            }
        }
        let absent = |n: &u64| !layer.items.contains_key(&key(*n, 1));
        let passed = (0..40_000)
            .filter(absent)
            .filter(|n| layer.filter.may_have(&key(*n, 1)));
        let passed = passed.count();
        assert!(passed < 6_000, "{passed} of 40,000");
        assert!(
            (0..40_000)
                .filter(absent)
                .all(|n| layer.item(&key(n, 1)).is_none())
        );
    }

    fn layer() -> Overlay {
        let geometry = Geometry {
            block_size: 512,
            spacing: 512,
            wal_len: 1 << 16,
        };
        Overlay::new(geometry, 10)
    }

    fn extent(start: u64, len: u32) -> Extent {
        Extent {
            start,
            crcs: (0..len).collect(),
        }
    }

    #[test]
    fn what_is_replaced_in_the_middle_leaves_a_head_and_a_tail() {
        let mut layer = layer();
        layer.place(12, 5, extent(100, 20)).unwrap();
        assert!(!layer.releases && !layer.gives_up);
        layer.place(12, 9, extent(200, 3)).unwrap();
        assert!(layer.releases && layer.gives_up);
        let content = layer.contents.get(&12).unwrap();
        let found: Vec<_> = content
            .extents
            .iter()
            .map(|(at, e)| (*at, e.start, e.crcs.to_vec()))
            .collect();
        let crcs = |range: Range<u32>| range.collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                (5, 100, crcs(0..4)),
                (9, 200, crcs(0..3)),
                (12, 107, crcs(7..20))
            ]
        );
        assert_eq!(layer.dropped, [Run { start: 104, len: 3 }]);
    }

    #[test]
    fn blocks_in_place_cost_what_their_item_takes() {
        let mut layer = layer();
        for (number, blocks) in [(3, 1), (4, 20), (12, 20)] {
            let (before, extent) = (layer.cost, extent(100, blocks));
            let crcs: Vec<u8> = extent.crcs.iter().flat_map(|c| c.to_le_bytes()).collect();
            let record = ContentRecord::Extent {
                start: extent.start,
                crcs: &crcs,
            };
            let item = (record.encode().len() + CELL_OVERHEAD) as u64;
            layer.place(number, 0, extent).unwrap();
            let more = layer.cost.minus(before);
            assert!(more.bytes >= item && more.blocks == 0, "{more:?}");
            assert!((number < 10) == (more.keys > 1), "{number}: {more:?}");
        }
    }

    #[test]
    fn a_long_extent_costs_each_of_its_checksums() {
        let geometry = Geometry {
            block_size: 4096,
            spacing: 65_536,
            wal_len: 1 << 20,
        };
        let mut layer = Overlay::new(geometry, 10);
        layer.place(3, 0, extent(1_000, 200)).unwrap();
        assert!(layer.cost.bytes >= 4 * 200, "{:?}", layer.cost);
        // One that takes three items.
        let before = layer.cost;
        layer.place(4, 0, extent(1_000, 600)).unwrap();
        let more = layer.cost.minus(before).bytes;
        assert!(more >= 4 * 600 + 3 * CONTENT_OVERHEAD as u64, "{more}");
    }

    #[test]
    fn to_take_away_what_stands_below_releases_it() {
        let mut layer = layer();
        layer.put(Key::new(3, Kind::Inode, 0), Some(Value::from([1])));
        layer.put(Key::new(10, Kind::Inode, 0), None);
        assert!(!layer.releases && layer.gives_up);
        layer.put(Key::new(9, Kind::Inode, 0), None);
        assert!(layer.releases);
    }

    #[test]
    fn nothing_below_is_asked_of_a_content_that_is_new() {
        let mut layer = layer();
        for (number, is_new) in [(9, false), (10, true)] {
            layer.patch(number, 3, 0, &[1]);
            assert_eq!(layer.contents.get(&number).unwrap().hides(0), is_new);
        }
    }

    #[test]
    fn the_memory_of_a_layer_grows_with_all_that_is_in_it() {
        let mut layer = layer();
        let mut last = layer.memory();
        for number in 20..60 {
            layer.put(Key::new(number, Kind::Inode, 0), Some(Value::from([7; 30])));
            let item = layer.memory() - last;
            layer.patch(number, 0, 0, &[1; 512]);
            let content = layer.memory() - last - item;
            let least = 30 + ITEM_MEMORY + VALUE_MEMORY;
            assert!((least..400).contains(&item), "{item}");
            let least = 512 + CONTENT_MEMORY + CHUNK_MEMORY;
            assert!((least..1_200).contains(&content), "{content}");
            last = layer.memory();
        }
        layer.place(20, 4, extent(100, 9)).unwrap();
        layer.place(20, 6, extent(200, 2)).unwrap();
        let placed = layer.memory() - last;
        assert!((3 * EXTENT_MEMORY..2_000).contains(&placed), "{placed}");
        // What is gone takes its place in the maps only.
        for number in 20..60 {
            layer.put(Key::new(number, Kind::Inode, 0), None);
            layer.truncate(number, 0).unwrap();
        }
        let paid = layer.cost.bytes;
        assert_eq!(layer.memory() - paid, 40 * (ITEM_MEMORY + CONTENT_MEMORY));
    }
}
