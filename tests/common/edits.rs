//! Changes to the bytes of a container after which its checksums verify again, so that what lies behind
//! them is reached. As text they are what tests/corpus/ keeps.

use std::fmt;
use std::str::FromStr;

use caskfs::device::testing::Rng;
use caskfs::format::Geometry;
use caskfs::format::checksum::{Keys, crc};
use caskfs::format::geometry::{ALLOC_ROOT_ENTRY, ALLOC_ROOT_HEADER};
use caskfs::format::page::{Page, PagePtr};
use caskfs::format::superblock::{SUPERBLOCK_COPIES, SUPERBLOCK_LEN, SuperblockRecord};
use caskfs::format::wal::{FRAME_ALIGN, FrameRecord, frame_len};
use zerocopy::{FromBytes, IntoBytes};

/// Where bytes are put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere; no checksum is made right.
    Raw,
    /// In the newest superblock, all copies of which are written.
    Superblock,
    /// In a page of the tree: the number of the child at each level.
    Page(Vec<u16>),
    /// In the payload of a frame of the log.
    Frame(u16),
    /// In the allocation root.
    Root,
    /// In the bitmap of a group.
    Bitmap(u16),
}

/// Bytes to put at an offset, both reduced to what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub place: Place,
    pub at: u32,
    pub bytes: Vec<u8>,
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Raw => write!(f, "raw")?,
            Place::Superblock => write!(f, "superblock")?,
            Place::Page(path) => {
                let path: Vec<String> = path.iter().map(u16::to_string).collect();
                write!(f, "page.{}", path.join("."))?;
            }
            Place::Frame(number) => write!(f, "frame.{number}")?,
            Place::Root => write!(f, "root")?,
            Place::Bitmap(group) => write!(f, "bitmap.{group}")?,
        }
        write!(f, " {} ", self.at)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Edit {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = || format!("{line}: PLACE OFFSET HEX expected");
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [place, at, hex] = words[..] else {
            return Err(bad());
        };
        let (name, numbers) = place.split_once('.').unwrap_or((place, ""));
        let numbers: Result<Vec<u16>, _> = numbers
            .split('.')
            .filter(|number| !number.is_empty())
            .map(str::parse)
            .collect();
        let numbers = numbers.map_err(|_| bad())?;
        let first = numbers.first().copied().unwrap_or(0);
        let place = match name {
            "raw" => Place::Raw,
            "superblock" => Place::Superblock,
            "page" => Place::Page(numbers),
            "frame" => Place::Frame(first),
            "root" => Place::Root,
            "bitmap" => Place::Bitmap(first),
            _ => return Err(bad()),
        };
        let bytes: Result<Vec<u8>, _> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
            .collect();
        Ok(Self {
            place,
            at: at.parse().map_err(|_| bad())?,
            bytes: bytes.map_err(|_| bad())?,
        })
    }
}

impl Edit {
    /// Any of them.
    pub fn random(rng: &mut Rng) -> Self {
        let place = match rng.below(16) {
            0 | 1 => Place::Raw,
            2..=4 => Place::Superblock,
            5..=9 => Place::Page((0..rng.index(4)).map(|_| rng.below(40) as u16).collect()),
            10..=13 => Place::Frame(rng.below(24) as u16),
            14 => Place::Root,
            _ => Place::Bitmap(rng.below(3) as u16),
        };
        let word = match rng.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << rng.below(64),
            3 => (1 << rng.below(64)) - 1,
            4 => rng.below(300),
            5 => u64::MAX - rng.below(300),
            _ => rng.next_u64(),
        };
        let bytes = word.to_le_bytes()[..[1, 1, 2, 4, 8, 8][rng.index(6)]].to_vec();
        // Headers and the first slots are hit often.
        let at = match rng.below(3) {
            0 => rng.below(64),
            1 => rng.below(512),
            _ => rng.below(1 << 32),
        } as u32;
        Self { place, at, bytes }
    }

    /// Changes the image; `None` when there is no such place in it.
    pub fn apply(&self, image: &mut [u8]) -> Option<()> {
        let superblock = newest(image)?;
        let geometry = Geometry::of(&superblock);
        let keys = Keys::derive(&superblock.secret);
        match &self.place {
            Place::Raw => self.put(image),
            Place::Superblock => {
                let mut superblock = superblock;
                self.put(superblock.as_mut_bytes())?;
                write_superblock(image, &geometry, superblock);
                Some(())
            }
            Place::Page(path) => self.page(image, superblock, &geometry, path),
            Place::Frame(number) => self.frame(image, &superblock, &geometry, &keys, *number),
            Place::Root => {
                let root = alloc_root(image, &superblock, &geometry)?;
                self.put(root)?;
                let digest = keys.root(root);
                seal_root(image, superblock, &geometry, digest);
                Some(())
            }
            Place::Bitmap(group) => {
                let group = u64::from(*group) % geometry.groups(superblock.blocks.get()).max(1);
                let entry = ALLOC_ROOT_HEADER + ALLOC_ROOT_ENTRY * group as usize;
                let root = alloc_root(image, &superblock, &geometry)?;
                let slot = u64::from(*root.get(entry + 8)? & 1);
                let at = geometry.offset(geometry.group_start(group) + slot) as usize;
                let bitmap = image.get_mut(at..at + geometry.block_len())?;
                self.put(bitmap)?;
                let sum = crc(bitmap);
                let root = alloc_root(image, &superblock, &geometry)?;
                root.get_mut(entry..entry + 4)?
                    .copy_from_slice(&sum.to_le_bytes());
                let digest = keys.root(root);
                seal_root(image, superblock, &geometry, digest);
                Some(())
            }
        }
    }

    fn put(&self, place: &mut [u8]) -> Option<()> {
        let len = self.bytes.len().min(place.len());
        let at = self.at as usize % (place.len() - len + 1);
        place[at..at + len].copy_from_slice(&self.bytes[..len]);
        (len > 0).then_some(())
    }

    /// Changes a page and, up to the superblock, what refers to it.
    fn page(
        &self,
        image: &mut [u8],
        mut superblock: SuperblockRecord,
        geometry: &Geometry,
        path: &[u16],
    ) -> Option<()> {
        let mut level = u8::try_from(superblock.height.get().checked_sub(1)?).ok()?;
        let root = superblock.root_block.get();
        // Each page on the way, and where it has the reference to the next.
        let mut way = vec![(root, 0)];
        let mut block = root;
        for child in path {
            let Some(below) = level.checked_sub(1) else {
                break;
            };
            let bytes = bytes_of(image, geometry, block)?.to_vec();
            let page = Page::parse(bytes.into(), block, 0, level).ok()?;
            let (_, ptr) = page.child(usize::from(*child) % page.len().max(1))?;
            let reference = ptr.encode();
            let at = page
                .bytes()
                .windows(reference.len())
                .position(|bytes| bytes == reference)?;
            way.last_mut()?.1 = at;
            way.push((ptr.block, 0));
            (block, level) = (ptr.block, below);
        }
        self.put(bytes_of(image, geometry, block)?)?;
        let mut sum = crc(bytes_of(image, geometry, block)?);
        for pair in way.windows(2).rev() {
            let ((parent, at), (child, _)) = (pair[0], pair[1]);
            let bytes = bytes_of(image, geometry, parent)?;
            let ptr = PagePtr {
                block: child,
                crc: sum,
            };
            let reference = ptr.encode();
            bytes
                .get_mut(at..at + reference.len())?
                .copy_from_slice(&reference);
            sum = crc(bytes);
        }
        superblock.root_crc = sum.into();
        write_superblock(image, geometry, superblock);
        Some(())
    }

    /// Changes a frame and seals it and those that follow.
    fn frame(
        &self,
        image: &mut [u8],
        superblock: &SuperblockRecord,
        geometry: &Geometry,
        keys: &Keys,
        number: u16,
    ) -> Option<()> {
        let frames = frames(image, superblock, geometry, keys);
        let first = usize::from(number) % frames.len().max(1);
        let mut previous = None;
        for at in frames.get(first..)? {
            let (mut header, _) = FrameRecord::read_from_prefix(image.get(*at..)?).ok()?;
            let payload = *at + FRAME_ALIGN..*at + FRAME_ALIGN + header.len.get() as usize;
            match previous {
                None => self.put(image.get_mut(payload.clone())?)?,
                Some(digest) => header.previous = digest,
            }
            header.digest = header.seal(keys, image.get(payload)?);
            image
                .get_mut(*at..*at + FRAME_ALIGN)?
                .copy_from_slice(header.as_bytes());
            previous = Some(header.digest);
        }
        previous.map(drop)
    }
}

/// The newest superblock; casks of tests have their copies 512 or 1,024 bytes apart.
fn newest(image: &[u8]) -> Option<SuperblockRecord> {
    (0..8)
        .filter_map(|at| SuperblockRecord::decode(image.get(at * 512..)?).ok())
        .max_by_key(|superblock| superblock.generation.get())
}

fn write_superblock(image: &mut [u8], geometry: &Geometry, superblock: SuperblockRecord) {
    let bytes = superblock.encode();
    for copy in 0..SUPERBLOCK_COPIES {
        let at = geometry.superblock_offset(copy) as usize;
        if let Some(place) = image.get_mut(at..at + SUPERBLOCK_LEN) {
            place.copy_from_slice(&bytes);
        }
    }
}

fn bytes_of<'i>(image: &'i mut [u8], geometry: &Geometry, block: u64) -> Option<&'i mut [u8]> {
    let at = usize::try_from(geometry.offset(block)).ok()?;
    image.get_mut(at..at.checked_add(geometry.block_len())?)
}

/// The bytes of the allocation root that its digest covers.
fn alloc_root<'i>(
    image: &'i mut [u8],
    superblock: &SuperblockRecord,
    geometry: &Geometry,
) -> Option<&'i mut [u8]> {
    let at = geometry.alloc_root_offset(superblock.alloc_slot.get()) as usize;
    let groups = geometry.groups(superblock.blocks.get()) as usize;
    image.get_mut(at..at + ALLOC_ROOT_HEADER + ALLOC_ROOT_ENTRY * groups)
}

fn seal_root(
    image: &mut [u8],
    mut superblock: SuperblockRecord,
    geometry: &Geometry,
    digest: caskfs::format::checksum::Digest,
) {
    superblock.alloc_digest = digest;
    write_superblock(image, geometry, superblock);
}

/// Where the frames after the newest checkpoint are, in order.
fn frames(
    image: &[u8],
    superblock: &SuperblockRecord,
    geometry: &Geometry,
    keys: &Keys,
) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut here, mut chain) = (superblock.wal_position.get(), superblock.chain());
    loop {
        let starts = [
            here,
            here.next_multiple_of(geometry.wal_unit()),
            here.next_multiple_of(geometry.wal_len),
        ];
        let next = starts.into_iter().find_map(|start| {
            let at = (geometry.wal_offset() + start % geometry.wal_len) as usize;
            let (header, rest) = FrameRecord::read_from_prefix(image.get(at..)?).ok()?;
            let payload = rest.get(..header.len.get() as usize)?;
            let follows = header.previous == chain && header.seal(keys, payload) == header.digest;
            follows.then_some((start, at, header))
        });
        let Some((start, at, header)) = next.filter(|_| found.len() < 1_000) else {
            return found;
        };
        found.push(at);
        here = start + frame_len(header.len.get() as usize);
        chain = header.digest;
    }
}
