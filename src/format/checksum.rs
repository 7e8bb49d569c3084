//! The two checksums of the format.
//!
//! CRC-32C stands in whatever refers to a page or block and finds damage. A keyed BLAKE3 digest
//! stands in superblocks and log frames: its key never leaves the container, so no choice of file
//! contents can forge a frame.

/// Bytes of a log or allocation-root digest.
pub const DIGEST_LEN: usize = 16;

/// A truncated keyed BLAKE3 digest.
pub type Digest = [u8; DIGEST_LEN];

/// CRC-32C of a page or block.
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The keys derived from a cask's secret, one for each use.
#[derive(Clone)]
pub struct Keys {
    frame: [u8; 32],
    root: [u8; 32],
    name: [u8; 32],
    seed: [u8; 32],
}

impl Keys {
    /// Derives the keys from the secret in the superblock.
    pub fn derive(secret: &[u8; 32]) -> Self {
        Self {
            frame: blake3::derive_key("caskfs 1 log frame", secret),
            root: blake3::derive_key("caskfs 1 allocation root", secret),
            name: blake3::derive_key("caskfs 1 name hash", secret),
            seed: blake3::derive_key("caskfs 1 log seed", secret),
        }
    }

    /// Digest of a log frame: over header (its digest field left out) and payload.
    pub fn frame(&self, header: &[u8], payload: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.frame);
        hasher.update(header).update(payload);
        truncate(&hasher.finalize())
    }

    /// Digest of the allocation root.
    pub fn root(&self, bytes: &[u8]) -> Digest {
        truncate(&blake3::keyed_hash(&self.root, bytes))
    }

    /// The digest that the first frame after checkpoint `generation` is chained to.
    pub fn seed(&self, generation: u64, previous: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&generation.to_le_bytes()).update(previous);
        truncate(&hasher.finalize())
    }

    /// 61-bit hash of a name, never 0: three bits stay free for a directory cookie.
    pub fn name(&self, name: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.name, name);
        let word = hash
            .as_bytes()
            .first_chunk::<8>()
            .map_or(0, |b| u64::from_le_bytes(*b));
        (word >> 3).max(1)
    }
}

fn truncate(hash: &blake3::Hash) -> Digest {
    hash.as_bytes()
        .first_chunk::<DIGEST_LEN>()
        .copied()
        .unwrap_or_default()
}
