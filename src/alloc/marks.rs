//! Blocks that something was found to use.

use std::collections::HashMap;

use crate::format::Geometry;

/// A set of blocks.
#[derive(Debug)]
pub struct Marks {
    geometry: Geometry,
    /// Bits by group.
    groups: HashMap<u64, Vec<u64>>,
}

impl Marks {
    /// No block.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            groups: HashMap::new(),
        }
    }

    /// Marks a block; false when it was marked before. Blocks outside all groups are nobody's.
    pub fn mark(&mut self, block: u64) -> bool {
        let Some(group) = self.geometry.group_of(block) else {
            return true;
        };
        let at = block - self.geometry.group_start(group);
        let words = (self.geometry.group_blocks() / 64) as usize;
        let bits = self.groups.entry(group).or_insert_with(|| vec![0; words]);
        let Some(word) = bits.get_mut((at / 64) as usize) else {
            return true;
        };
        let mask = 1 << (at % 64);
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    /// Whether a block is marked.
    pub fn holds(&self, block: u64) -> bool {
        let Some(group) = self.geometry.group_of(block) else {
            return false;
        };
        let at = block - self.geometry.group_start(group);
        let word = self
            .groups
            .get(&group)
            .and_then(|bits| bits.get((at / 64) as usize));
        word.is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}
