//! Inode records of the checkpoint in memory, squeezed.
//!
//! A look-up needs of a small file its record only, but the page that the record stands in is filled
//! with content: a million files of 200 bytes have 400 MB of such pages and 112 MB of records. Those of
//! ordinary files are kept here in 56 bytes each. A number may have its place in either of two groups:
//! that of its neighbours, which often are made and asked for together, or, when that is full, one that
//! is spread over all. So whatever gaps the numbers have (a file saved as a value takes one more for
//! each save), nearly all places are used before a record is given up; groups that were never used
//! take no memory.
//!
//! Invariant: a record here is that of the newest checkpoint, or, while a checkpoint is written, of
//! that one where the frozen overlay has the item. Such an item is answered from the overlay, so no
//! reader sees one for the other; what a reader brings is refused unless it is of the newest
//! checkpoint and no checkpoint that changes it is being written ([`Cask::remember`]).

use std::sync::{Arc, OnceLock};

use zerocopy::IntoBytes;

use super::overlay::Overlay;
use super::{Cask, Snapshot};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::Result;
use crate::format::item::InodeRecord;
use crate::format::key::Number;
use crate::format::{Key, Kind};
use crate::sync::Mutex;
use crate::tree::Value;

/// Places in all, a power of two: 56 MiB of memory when all are taken. Where a test schedules, locks are
/// dear and casks tiny.
const PLACES: usize = if cfg!(feature = "schedules") {
    1 << 10
} else {
    1 << 20
};
/// Places that share a lock and are given memory together: the bits of a `u64`.
const GROUP: usize = u64::BITS as usize;
const GROUPS: usize = PLACES / GROUP;
/// Groups that are set up together when the first of them is used: a small cask has but a few.
const SHELF: usize = 64;

/// An integer below 2⁴⁰, little-endian.
type Short = [u8; 5];

/// Of which time another is told by what it differs from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Base {
    #[default]
    Modified,
    Born,
    Changed,
}

/// The record of an ordinary file: one name, no more than 2⁴⁰ − 1 of anything, owner and group below
/// 2¹⁶, times from 1970 to 2514 that hang together.
#[derive(Clone, Copy, Debug, Default)]
struct Squeezed {
    name_hash: u64,
    mtime: u64,
    btime: u64,
    /// Nanoseconds from [`Squeezed::changed`] to the change of attributes.
    since: u32,
    /// The number, without the byte that [`Group::tags`] has.
    number: u32,
    mode: u16,
    uid: u16,
    gid: u16,
    flags: u8,
    /// The change of attributes was not long after this.
    changed: Base,
    /// The last access was exactly then.
    accessed: Base,
    content: Short,
    parent: Short,
    size: Short,
}

/// Some records, in no order.
struct Group {
    /// The places that are taken, a bit each.
    taken: u64,
    /// Where the next record goes when all are.
    next: usize,
    /// The last byte of each number: one line of memory tells where to look.
    tags: [u8; GROUP],
    /// Apart from the rest, which would take an allocation of this size beyond a power of two.
    records: Option<Box<[Squeezed; GROUP]>>,
}

impl Group {
    const fn new() -> Self {
        Self {
            taken: 0,
            next: 0,
            tags: [0; GROUP],
            records: None,
        }
    }

    /// The place of a number.
    fn find(&self, number: Number) -> Option<usize> {
        let (rest, tag) = split(number)?;
        let records = self.records.as_ref()?;
        let mut places = memchr::memchr_iter(tag, &self.tags);
        places.find(|place| {
            let held = records.get(*place).map(|held| held.number);
            self.taken >> place & 1 == 1 && held == Some(rest)
        })
    }

    fn has_room(&self) -> bool {
        self.taken != u64::MAX
    }

    fn set(&mut self, place: usize, number: Number, record: Squeezed) {
        let records = self
            .records
            .get_or_insert_with(|| Box::new([Squeezed::default(); GROUP]));
        if let (Some((_, tag)), Some(held), Some(own)) = (
            split(number),
            records.get_mut(place),
            self.tags.get_mut(place),
        ) {
            (*held, *own) = (record, tag);
            self.taken |= 1 << place;
        }
    }

    /// Keeps a record that is not here yet, instead of another when there is no room.
    fn add(&mut self, number: Number, record: Squeezed) {
        let place = if self.has_room() {
            self.taken.trailing_ones() as usize
        } else {
            self.next = (self.next + 1) % GROUP;
            self.next
        };
        self.set(place, number, record);
    }

    fn forget(&mut self, number: Number) {
        if let Some(place) = self.find(number) {
            self.taken &= !(1 << place);
        }
    }
}

/// A number below 2⁴⁰ without its last byte, and that byte.
fn split(number: Number) -> Option<(u32, u8)> {
    Some((u32::try_from(number >> 8).ok()?, number as u8))
}

/// The groups in which a number may be: of its neighbours, of anyone.
fn homes(number: Number) -> [usize; 2] {
    let range = number / GROUP as u64;
    let spread = range.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - GROUPS.ilog2());
    let (first, second) = (range as usize % GROUPS, spread as usize);
    // Two groups, whatever the number.
    [first, if second == first { first ^ 1 } else { second }]
}

fn short(value: u64) -> Option<Short> {
    match value.to_le_bytes() {
        [a, b, c, d, e, 0, 0, 0] => Some([a, b, c, d, e]),
        _ => None,
    }
}

fn long([a, b, c, d, e]: Short) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
}

/// Seconds above 30 bits of nanoseconds.
fn pack(time: Timestamp) -> Option<u64> {
    let secs = u64::try_from(time.secs).ok().filter(|s| *s < 1 << 34)?;
    Some(secs << 30 | u64::from(time.nanos))
}

fn unpack(packed: u64) -> Timestamp {
    Timestamp {
        secs: (packed >> 30) as i64,
        nanos: (packed & ((1 << 30) - 1)) as u32,
    }
}

/// Nanoseconds from one time to a later one, if they are less than four seconds.
fn nanos_since(from: Timestamp, to: Timestamp) -> Option<u32> {
    let secs = to.secs.checked_sub(from.secs)?;
    let more = i64::from(to.nanos) - i64::from(from.nanos);
    let nanos = secs.checked_mul(1_000_000_000)?.checked_add(more)?;
    u32::try_from(nanos).ok()
}

fn after(from: Timestamp, nanos: u32) -> Timestamp {
    let sum = u64::from(from.nanos) + u64::from(nanos);
    Timestamp {
        secs: from.secs + (sum / 1_000_000_000) as i64,
        nanos: (sum % 1_000_000_000) as u32,
    }
}

impl Squeezed {
    /// `None` for what is no ordinary file.
    fn new(number: Number, record: &InodeRecord) -> Option<Self> {
        if (record.nlink.get(), record.rdev.get(), record.since.get()) != (1, 0, 0) {
            return None;
        }
        let [mtime, ctime, btime, atime]: [Timestamp; 4] = [
            record.mtime.into(),
            record.ctime.into(),
            record.btime.into(),
            record.atime.into(),
        ];
        let (changed, since) = match nanos_since(mtime, ctime) {
            Some(since) => (Base::Modified, since),
            None => (Base::Born, nanos_since(btime, ctime)?),
        };
        let accessed = match atime {
            time if time == mtime => Base::Modified,
            time if time == btime => Base::Born,
            time if time == ctime => Base::Changed,
            _ => return None,
        };
        Some(Self {
            name_hash: record.name_hash.get(),
            mtime: pack(mtime)?,
            btime: pack(btime)?,
            since,
            number: split(number)?.0,
            mode: record.mode.get().try_into().ok()?,
            uid: record.uid.get().try_into().ok()?,
            gid: record.gid.get().try_into().ok()?,
            flags: record.flags.get().try_into().ok()?,
            changed,
            accessed,
            content: short(record.content.get())?,
            parent: short(record.parent.get())?,
            size: short(record.size.get())?,
        })
    }

    fn record(&self) -> InodeRecord {
        let (mtime, btime) = (unpack(self.mtime), unpack(self.btime));
        let ctime = match self.changed {
            Base::Born => after(btime, self.since),
            _ => after(mtime, self.since),
        };
        let atime = match self.accessed {
            Base::Modified => mtime,
            Base::Born => btime,
            Base::Changed => ctime,
        };
        InodeRecord {
            mode: u32::from(self.mode).into(),
            uid: u32::from(self.uid).into(),
            gid: u32::from(self.gid).into(),
            nlink: 1.into(),
            size: long(self.size).into(),
            content: long(self.content).into(),
            parent: long(self.parent).into(),
            name_hash: self.name_hash.into(),
            atime: atime.into(),
            mtime: mtime.into(),
            ctime: ctime.into(),
            btime: btime.into(),
            rdev: 0.into(),
            flags: u32::from(self.flags).into(),
            since: 0.into(),
        }
    }
}

/// Neighbouring groups.
type Shelf = Box<[Mutex<Group>]>;

/// The records.
pub(super) struct Records {
    shelves: Box<[OnceLock<Shelf>]>,
}

impl Records {
    pub fn new() -> Self {
        Self {
            shelves: (0..GROUPS.div_ceil(SHELF))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// A group, set up if it was not.
    fn group(&self, home: usize) -> Option<&Mutex<Group>> {
        let groups = || (0..SHELF).map(|_| Mutex::new(Group::new())).collect();
        let shelf = self.shelves.get(home / SHELF)?;
        shelf.get_or_init(groups).get(home % SHELF)
    }

    /// The record of the inode, if it is here.
    pub fn get(&self, number: Number) -> Option<InodeRecord> {
        homes(number).into_iter().find_map(|home| {
            let shelf = self.shelves.get(home / SHELF)?.get()?;
            let group = shelf.get(home % SHELF)?.lock();
            let held = *group.records.as_ref()?.get(group.find(number)?)?;
            Some(held.record())
        })
    }

    /// Keeps a record, instead of another when there is no room; one that cannot be squeezed is
    /// forgotten.
    pub fn put(&self, number: Number, value: &[u8]) {
        let record = InodeRecord::decode(value).ok();
        let Some(held) = record.and_then(|record| Squeezed::new(number, &record)) else {
            return self.forget(number);
        };
        self.change(number, |[first, second]| {
            for group in [&mut *first, &mut *second] {
                if let Some(place) = group.find(number) {
                    return group.set(place, number, held);
                }
            }
            if first.has_room() || !second.has_room() {
                first.add(number, held);
            } else {
                second.add(number, held);
            }
        });
    }

    /// Forgets the record of the inode.
    pub fn forget(&self, number: Number) {
        self.change(number, |groups| {
            for group in groups {
                group.forget(number);
            }
        });
    }

    /// Changes the groups of a number, both held: it is in one place at most, whoever brings it.
    fn change(&self, number: Number, change: impl FnOnce([&mut Group; 2])) {
        let [first, second] = homes(number);
        let (Some(one), Some(other)) =
            (self.group(first.min(second)), self.group(first.max(second)))
        else {
            return;
        };
        let (mut one, mut other) = (one.lock(), other.lock());
        if first < second {
            change([&mut one, &mut other]);
        } else {
            change([&mut other, &mut one]);
        }
    }

    /// Takes over what a checkpoint changes, before it counts.
    pub fn follow(&self, overlay: &Overlay) {
        for (key, value) in &overlay.items {
            match value {
                _ if key.kind != Kind::Inode => {}
                Some(value) => self.put(key.number, value),
                None => self.forget(key.number),
            }
        }
    }
}

impl<D: Device> Cask<D> {
    /// An item that stands in the tree of `snapshot` and in no overlay.
    pub(super) fn settled(&self, snapshot: &Arc<Snapshot>, key: &Key) -> Result<Option<Value>> {
        if key.kind != Kind::Inode {
            return self.tree.get(&snapshot.root, key);
        }
        if let Some(record) = self.records.get(key.number) {
            return Ok(Some(record.as_bytes().into()));
        }
        let found = self.tree.get(&snapshot.root, key)?;
        if let Some(value) = &found {
            self.remember(snapshot, key, value);
        }
        Ok(found)
    }

    /// Keeps a record that a reader found, unless a newer one is there or on its way.
    fn remember(&self, snapshot: &Arc<Snapshot>, key: &Key, value: &[u8]) {
        let state = self.state.read();
        let changes = |overlay: &Arc<Overlay>| overlay.items.contains_key(key);
        if Arc::ptr_eq(&state.snapshot, snapshot) && !state.frozen.as_ref().is_some_and(changes) {
            self.records.put(key.number, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::cask::{Class, FormatOptions, OpenOptions, Read};
    use crate::device::MemoryDevice;
    use crate::format::FileKind;

    fn plain(size: u64) -> InodeRecord {
        let time = |nanos| {
            Timestamp {
                secs: 1_800_000_000,
                nanos,
            }
            .into()
        };
        InodeRecord {
            mode: (FileKind::Regular.mode_bits() | 0o640).into(),
            uid: 33.into(),
            gid: 65_534.into(),
            nlink: 1.into(),
            size: size.into(),
            content: 77.into(),
            parent: 1.into(),
            name_hash: (u64::MAX >> 3).into(),
            atime: time(5),
            mtime: time(5),
            ctime: time(999_999_999),
            btime: time(5),
            rdev: 0.into(),
            flags: 1.into(),
            since: 0.into(),
        }
    }

    #[test]
    fn a_number_has_two_groups() {
        let mut both = 0;
        for range in 0..4_000_000_u64 {
            let [first, second] = homes(range * GROUP as u64);
            assert_ne!(first, second, "{range}");
            assert!(first < GROUPS && second < GROUPS);
            both += u64::from(second == first ^ 1);
        }
        // Also where the second would have been the first.
        assert!(both > 0);
    }

    #[test]
    fn times_however_far_apart_are_no_overflow() {
        let ends = [i64::MIN, -9_223_372_036, 0, 9_223_372_036, i64::MAX];
        let all = || {
            ends.into_iter()
                .flat_map(|secs| [(secs, 0), (secs, 999_999_999)])
        };
        for (from, to) in all().flat_map(|from| all().map(move |to| (from, to))) {
            let time = |(secs, nanos)| Timestamp { secs, nanos };
            let apart = i128::from(to.0) - i128::from(from.0);
            let exact = apart * 1_000_000_000 + i128::from(to.1) - i128::from(from.1);
            let since = nanos_since(time(from), time(to));
            assert_eq!(since, u32::try_from(exact).ok());
        }
    }

    fn cask() -> Cask<MemoryDevice> {
        let device = MemoryDevice::new();
        Cask::format(&device, &FormatOptions::default()).unwrap();
        Cask::open(device, OpenOptions::default()).unwrap()
    }

    fn save(cask: &Cask<MemoryDevice>, key: &Key, size: u64) {
        let record = plain(size);
        cask.transact(Class::Grow, |tx| tx.put(*key, record.as_bytes()))
            .unwrap();
    }

    fn size(cask: &Cask<MemoryDevice>, key: &Key) -> Option<u64> {
        let value = cask.get(key).unwrap()?;
        Some(InodeRecord::decode(&value).unwrap().size.get())
    }

    #[test]
    fn a_place_takes_56_bytes() {
        assert_eq!(size_of::<Squeezed>(), 56);
    }

    #[test]
    fn an_ordinary_file_is_kept_until_it_is_forgotten() {
        let (records, number) = (Records::new(), 9);
        assert_eq!(records.get(number), None);
        assert_eq!(records.get(0), None);
        records.put(number, plain(200).as_bytes());
        assert_eq!(records.get(number), Some(plain(200)));
        // Their last bytes are the same.
        records.forget(number + 256);
        assert_eq!(records.get(number), Some(plain(200)));
        assert_eq!(records.get(number + 256), None);
        records.put(number, plain(300).as_bytes());
        assert_eq!(records.get(number), Some(plain(300)));
        records.forget(number);
        assert_eq!(records.get(number), None);
        records.put(u64::MAX, plain(1).as_bytes());
        assert_eq!(records.get(u64::MAX), None);
    }

    #[test]
    fn a_record_is_in_one_place_at_most() {
        // All numbers of the first group's ranges, and others that have their second home there.
        let all: Vec<Number> = (0..4 * PLACES as u64)
            .filter(|number| homes(*number).contains(&0))
            .collect();
        assert!(all.len() > 3 * GROUP, "{}", all.len());
        let records = Records::new();
        let kept = || all.iter().filter(|number| records.get(**number).is_some());
        for number in all.iter().chain(&all) {
            records.put(*number, plain(*number).as_bytes());
            assert_eq!(records.get(*number), Some(plain(*number)));
        }
        for number in kept() {
            assert_eq!(records.get(*number), Some(plain(*number)));
        }
        for number in &all {
            records.forget(*number);
            assert_eq!(records.get(*number), None);
        }
        assert_eq!(kept().count(), 0);
    }

    #[test]
    fn nearly_a_million_files_are_kept_whatever_gaps_their_numbers_have() {
        let mut dice = 7_u64;
        // One after the other; two apart; by several that each take two; with 10 saves between.
        let mut gaps: [&mut dyn FnMut(u64) -> u64; 4] = [
            &mut |n| 2 + n,
            &mut |n| 5_000_001 + 2 * n,
            &mut |n| 4 * (n / 2) + [0, 1, 0, 3][(n % 4) as usize],
            &mut |n| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005) + 1;
                11 * n + dice % 11
            },
        ];
        for gap in &mut gaps {
            let records = Records::new();
            let numbers: Vec<u64> = (0..1_010_000).map(gap).collect();
            for number in &numbers {
                records.put(*number, plain(200).as_bytes());
            }
            let kept = numbers.iter().filter(|n| records.get(**n).is_some());
            let lost = numbers.len() - kept.count();
            assert!(lost <= numbers.len() / 200, "{lost} lost");
        }
    }

    #[test]
    fn what_cannot_be_squeezed_leaves_no_older_record_behind() {
        let records = Records::new();
        records.put(9, plain(200).as_bytes());
        let linked = InodeRecord {
            nlink: 2.into(),
            ..plain(200)
        };
        records.put(9, linked.as_bytes());
        assert_eq!(records.get(9), None);
        records.put(9, plain(200).as_bytes());
        records.put(9, b"no record");
        assert_eq!(records.get(9), None);
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        let secs = prop_oneof![-2..3i64, 1_799_999_998..1_800_000_003i64, any::<i64>()];
        (secs, 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
    }

    proptest! {
        #[test]
        fn a_record_is_squeezed_without_loss_or_not_at_all(
            times in proptest::array::uniform4(time()),
            same in proptest::array::uniform3(0..4usize),
            wide in proptest::array::uniform4(prop_oneof![0..3u64, any::<u64>(), 1_099_511_627_774..1_099_511_627_778u64]),
            narrow in proptest::array::uniform4(prop_oneof![0..3u32, 65_534..65_538u32, any::<u32>()]),
            odd in prop_oneof![4 => Just((1u32, 0u64, 0u32)), 1 => (0..3u32, 0..2u64, 0..2u32)],
            number in prop_oneof![1..1_000_000_000u64, any::<u64>()],
        ) {
            let pick = |at: usize| times[at % 4];
            let record = InodeRecord {
                mode: narrow[0].into(),
                uid: narrow[1].into(),
                gid: narrow[2].into(),
                nlink: odd.0.into(),
                size: wide[0].into(),
                content: wide[1].into(),
                parent: wide[2].into(),
                name_hash: wide[3].into(),
                atime: pick(same[0]).into(),
                mtime: pick(same[1]).into(),
                ctime: pick(same[2]).into(),
                btime: pick(3).into(),
                rdev: odd.1.into(),
                flags: narrow[3].into(),
                since: odd.2.into(),
            };
            if let Some(held) = Squeezed::new(number, &record) {
                prop_assert_eq!(held.record(), record);
                prop_assert_eq!(Some(held.number), split(number).map(|(rest, _)| rest));
            }
        }
    }

    #[test]
    fn files_as_programs_leave_them_are_kept() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        let (born, saved, named) = (at(100, 7), at(5_000, 0), at(5_003, 999_999_999));
        for (atime, mtime, ctime, btime) in [
            (born, born, born, born),
            (born, saved, saved, born),
            (saved, saved, named, saved),
            (born, at(3, 5), at(101, 6), born),
            (named, saved, named, born),
        ] {
            let record = InodeRecord {
                atime: atime.into(),
                mtime: mtime.into(),
                ctime: ctime.into(),
                btime: btime.into(),
                ..plain(1)
            };
            let held = Squeezed::new(3, &record);
            assert_eq!(held.map(|held| held.record()), Some(record));
        }
    }

    #[test]
    fn a_record_is_asked_of_the_tree_once() {
        let (cask, key) = (cask(), Key::inode(7));
        save(&cask, &key, 1);
        assert_eq!(cask.records.get(7), None);
        cask.checkpoint().unwrap();
        assert_eq!(cask.records.get(7), Some(plain(1)));
        cask.records.forget(7);
        assert_eq!(size(&cask, &key), Some(1));
        assert_eq!(cask.records.get(7), Some(plain(1)));
        cask.transact(Class::Release, |tx| {
            tx.del(key);
            Ok(())
        })
        .unwrap();
        assert_eq!(size(&cask, &key), None);
        cask.checkpoint().unwrap();
        assert_eq!(cask.records.get(7), None);
        assert_eq!(size(&cask, &key), None);
    }

    #[test]
    fn a_late_reader_brings_nothing_old_back() {
        let (cask, key) = (cask(), Key::inode(7));
        save(&cask, &key, 1);
        cask.checkpoint().unwrap();
        let old = cask.snapshot();
        // While a checkpoint that changes the item is written ...
        cask.records.forget(7);
        save(&cask, &key, 2);
        {
            let mut state = cask.state.write();
            let fresh = Overlay::new(cask.geometry, state.next_number);
            let overlay = std::mem::replace(&mut state.active, fresh);
            state.frozen = Some(Arc::new(overlay));
        }
        assert!(cask.settled(&old, &key).unwrap().is_some());
        assert_eq!(cask.records.get(7), None);
        {
            let mut state = cask.state.write();
            let frozen = state.frozen.take().and_then(Arc::into_inner).unwrap();
            state.active = frozen;
        }
        // ... and after it counts.
        cask.checkpoint().unwrap();
        cask.records.forget(7);
        assert!(cask.settled(&old, &key).unwrap().is_some());
        assert_eq!(cask.records.get(7), None);
        assert_eq!(size(&cask, &key), Some(2));
    }

    #[test]
    fn readers_never_see_a_file_shrink_that_grows() {
        let (cask, key) = (cask(), Key::inode(7));
        save(&cask, &key, 0);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Relaxed) {
                        let now = size(&cask, &key).unwrap();
                        assert!(now >= last, "{now} after {last}");
                        last = now;
                        // As if another file had taken the place.
                        if now.is_multiple_of(3) {
                            cask.records.forget(7);
                        }
                    }
                });
            }
            for round in 1..=300 {
                save(&cask, &key, 2 * round);
                cask.checkpoint().unwrap();
                save(&cask, &key, 2 * round + 1);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(size(&cask, &key), Some(601));
    }

    #[test]
    fn those_kept_last_are_kept_longest() {
        let mut group = Group::new();
        let numbers = || (0..5 * GROUP as u64 / 2).map(|n| n * 1_000);
        for number in numbers() {
            let record = Squeezed::new(number, &plain(number)).unwrap();
            group.add(number, record);
        }
        let missing: Vec<_> = numbers()
            .rev()
            .take(GROUP)
            .filter(|number| group.find(*number).is_none())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
