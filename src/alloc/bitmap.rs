//! A bitmap of one allocation group: bit i is block i of the group.

/// Bits of a group, kept in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap(Box<[u64]>);

impl Bitmap {
    /// All bits clear; `bits` is a multiple of 64.
    pub fn new(bits: u64) -> Self {
        Self(vec![0; (bits / 64) as usize].into())
    }

    /// The bitmap stored in a block.
    pub fn decode(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks_exact(8)
                .map(|c| c.first_chunk::<8>().map_or(0, |c| u64::from_le_bytes(*c)))
                .collect(),
        )
    }

    /// The block that stores the bitmap.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Whether bit `at` is set; bits outside count as set.
    pub fn get(&self, at: u64) -> bool {
        self.0
            .get((at / 64) as usize)
            .is_none_or(|w| w >> (at % 64) & 1 == 1)
    }

    /// Sets bit `at` to `value`; answers whether it had the other value before.
    pub fn set(&mut self, at: u64, value: bool) -> bool {
        let Some(word) = self.0.get_mut((at / 64) as usize) else {
            return false;
        };
        let mask = 1 << (at % 64);
        let changed = (*word & mask != 0) != value;
        if value {
            *word |= mask
        } else {
            *word &= !mask
        }
        changed
    }

    /// Number of set bits below `limit`.
    pub fn count(&self, limit: u64) -> u64 {
        self.0
            .iter()
            .zip(0u64..)
            .map(|(word, index)| match limit.saturating_sub(index * 64) {
                0 => 0,
                n @ 1..64 => u64::from((word & ((1 << n) - 1)).count_ones()),
                _ => u64::from(word.count_ones()),
            })
            .sum()
    }

    /// First bit at or after `from` and below `limit` that is clear in both bitmaps.
    pub fn find_clear(&self, other: &Self, from: u64, limit: u64) -> Option<u64> {
        let first = (from / 64) as usize;
        let words = self.0.iter().zip(other.0.iter()).enumerate().skip(first);
        for (index, (a, b)) in words {
            let mut taken = a | b;
            if index == first {
                taken |= (1u64 << (from % 64)) - 1;
            }
            if taken != u64::MAX {
                let at = index as u64 * 64 + u64::from(taken.trailing_ones());
                return (at < limit).then_some(at);
            }
        }
        None
    }
}
