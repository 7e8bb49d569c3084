//! When what is given up is overwritten, and that it is only then.

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::device::testing::{Event, RecordingDevice};
use crate::format::superblock::{FLAG_STALE, SUPERBLOCK_LEN};

const SECRET: &[u8] = b"a secret of sixty-four bytes, which nobody else has and can find";

/// Whether the secret stands in these bytes.
fn holds(bytes: &[u8]) -> bool {
    bytes.windows(16).any(|part| part == &SECRET[..16])
}

/// A cask on a device that notes what is done to it; wiping is set on one file of it if `wiped`.
fn recorded(wiped: bool) -> (RecordingDevice, Cask<RecordingDevice>) {
    let memory = MemoryDevice::new();
    Cask::format(&memory, &tiny(512, 600, 32)).unwrap();
    let device = RecordingDevice::over(memory);
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    cask.transact(Class::Grow, |tx| {
        tx.put(Key::new(2, Kind::Inode, 0), b"item".as_slice())?;
        tx.count_wipe(false, wiped);
        Ok(())
    })
    .unwrap();
    (device, cask)
}

/// Makes a content that holds the secret so many times over, and answers its number.
fn put<D: Device>(cask: &Cask<D>, times: usize) -> u64 {
    let data = SECRET.repeat(times);
    let staged = cask.stage(0, &data).unwrap();
    let make = |tx: &mut Tx<'_, D>| {
        let number = tx.new_number();
        tx.write_staged(number, &staged);
        Ok(number)
    };
    cask.transact(Class::Grow, make).unwrap().0
}

fn drop_content<D: Device>(cask: &Cask<D>, number: u64) {
    cask.transact(Class::Release, |tx| {
        tx.drop_content(number);
        Ok(())
    })
    .unwrap();
}

/// Whether a content holds the secret all through.
fn is_whole<D: Device>(cask: &Cask<D>, number: u64, times: usize) -> bool {
    let mut found = vec![0; SECRET.len() * times];
    cask.read_content(number, 0, &mut found).unwrap();
    found == SECRET.repeat(times)
}

#[test]
fn without_it_a_checkpoint_writes_nothing_more_than_itself() {
    let (device, cask) = recorded(false);
    for times in [1, 100] {
        let number = put(&cask, times);
        cask.checkpoint().unwrap();
        drop_content(&cask, number);
        device.take();
        cask.checkpoint().unwrap();
        cask.wipe_now().unwrap();
        cask.tick(Timestamp::from_secs(5)).unwrap();
        let events = device.take().events;
        // Log, page, bitmap and root; two copies of a superblock.
        let kinds: String = events
            .iter()
            .map(|event| match event {
                Event::Write { .. } => 'w',
                Event::Sync => 's',
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, "wwwwswws");
    }
    cask.close().unwrap();
    assert!(holds(&device.memory().to_bytes()));
}

#[test]
fn nothing_is_overwritten_before_both_pairs_of_superblocks_lead_elsewhere() {
    for times in [1, 100] {
        let (device, cask) = recorded(true);
        let number = put(&cask, times);
        cask.checkpoint().unwrap();
        drop_content(&cask, number);
        let before = device.memory().to_bytes();
        device.take();
        cask.checkpoint().unwrap();
        let events = device.take().events;
        let mut image = before;
        let superblocks = |bytes: &[u8]| -> Vec<SuperblockRecord> {
            (0..4)
                .map(|copy| {
                    SuperblockRecord::decode(&bytes[copy * 512..][..SUPERBLOCK_LEN]).unwrap()
                })
                .collect()
        };
        let mut zeros = 0;
        for event in events {
            let Event::Write { offset, data } = event else {
                continue;
            };
            if data.iter().all(|byte| *byte == 0) {
                zeros += 1;
                let [a, b, c, d] = superblocks(&image)[..] else {
                    panic!("four copies");
                };
                assert_eq!((a, c), (b, d), "both copies of each pair");
                assert_eq!(a.generation.get().abs_diff(c.generation.get()), 1);
                assert_eq!(a.root_block, c.root_block);
                assert_eq!(a.alloc_digest, c.alloc_digest);
                assert_eq!(a.wal_position, c.wal_position);
                assert!(a.flags.get() & c.flags.get() & FLAG_STALE != 0);
            }
            image[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        assert!(zeros >= 2, "the log and the blocks");
        assert!(!holds(&image));
        // Either pair alone is enough to open what is left.
        for pair in [0, 2] {
            let mut bytes = image.clone();
            bytes[pair * 512..(pair + 2) * 512].fill(0xff);
            let options = OpenOptions {
                superblock_spacing: Some(512),
                ..OpenOptions::default()
            };
            let cask = Cask::open(MemoryDevice::from_bytes(bytes), options).unwrap();
            assert!(cask.get(&Key::new(2, Kind::Inode, 0)).unwrap().is_some());
        }
    }
}

#[test]
fn who_still_reads_an_old_checkpoint_keeps_it() {
    let (device, cask) = recorded(true);
    let number = put(&cask, 100);
    cask.checkpoint().unwrap();
    let pinned = cask.pin();
    drop_content(&cask, number);
    cask.checkpoint().unwrap();
    assert!(holds(&device.memory().to_bytes()));
    let mut items = 0;
    let (from, to) = (
        Key::new(0, Kind::Inode, 0),
        Key::new(u64::MAX, Kind::Arrivals, 0),
    );
    pinned
        .scan(from, to, &mut |_, _| {
            items += 1;
            Ok(true)
        })
        .unwrap();
    assert!(items > 2);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| cask.wipe_now());
        drop(pinned);
        waits.join().unwrap().unwrap();
    });
    assert!(!holds(&device.memory().to_bytes()));
}

#[test]
fn an_orderly_end_says_that_nothing_is_left_and_a_life_begins_with_the_contrary() {
    let (device, cask) = recorded(true);
    let number = put(&cask, 1);
    cask.close().unwrap();
    drop(cask);
    let newest = |device: &RecordingDevice| {
        let bytes = device.memory().to_bytes();
        let copies = (0..4).map(|copy| &bytes[copy * 512..][..SUPERBLOCK_LEN]);
        copies
            .map(|copy| SuperblockRecord::decode(copy).unwrap())
            .max_by_key(|superblock| superblock.generation.get())
            .unwrap()
    };
    assert_eq!(
        (
            newest(&device).flags.get() & FLAG_STALE,
            newest(&device).wipes.get()
        ),
        (0, 1)
    );
    let read_only = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    device.take();
    drop(Cask::open(device.clone(), read_only).unwrap());
    assert_eq!(device.take().events, []);
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    assert_ne!(newest(&device).flags.get() & FLAG_STALE, 0);
    // Nothing is looked for after an orderly end.
    device.take();
    cask.tick(Timestamp::from_secs(1)).unwrap();
    assert_eq!(device.take().events, []);
    assert!(is_whole(&cask, number, 1));
    drop_content(&cask, number);
    cask.close().unwrap();
    assert!(!holds(&device.memory().to_bytes()));
    assert_eq!(newest(&device).flags.get() & FLAG_STALE, 0);
}

#[test]
fn syncs_and_wiping_at_the_same_time_leave_nothing_in_the_log() {
    let device = MemoryDevice::new();
    Cask::format(&device, &tiny(512, 4000, 64)).unwrap();
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    cask.transact(Class::Grow, |tx| {
        tx.put(Key::new(2, Kind::Inode, 0), b"item".as_slice())?;
        tx.count_wipe(false, true);
        Ok(())
    })
    .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let number = put(&cask, 2);
                    cask.sync(cask.lsn()).unwrap();
                    assert!(is_whole(&cask, number, 2));
                    drop_content(&cask, number);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..100 {
                cask.checkpoint().unwrap();
            }
        });
    });
    cask.wipe_now().unwrap();
    assert!(!holds(&device.to_bytes()));
}

/// Counts wiping in or out on an item that stays.
fn set_wiping<D: Device>(cask: &Cask<D>, before: bool, after: bool) {
    cask.transact(Class::Grow, |tx| {
        tx.put(Key::new(2, Kind::Inode, 0), b"item".as_slice())?;
        tx.count_wipe(before, after);
        Ok(())
    })
    .unwrap();
}

/// Ticks so often that a sweep of a small cask is over.
fn tick_often<D: Device>(cask: &Cask<D>) {
    (0..10).for_each(|_| cask.tick(Timestamp::default()).unwrap());
}

/// Who is told when zeros are about to be written, and must answer before they are.
type Gate = (Sender<()>, Receiver<()>);

/// A device that keeps somebody waiting who overwrites something with zeros.
#[derive(Clone, Default)]
struct GatedDevice {
    memory: MemoryDevice,
    gate: Arc<Mutex<Option<Gate>>>,
    zeroed: Arc<AtomicBool>,
    syncs: Arc<AtomicUsize>,
    panics: Arc<AtomicBool>,
}

impl Device for GatedDevice {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.iter().all(|byte| *byte == 0) {
            assert!(!self.panics.load(Ordering::Acquire), "told to panic");
            let gate = self.gate.lock().take();
            if let Some((tell, answer)) = gate {
                tell.send(()).unwrap();
                // Who rightly waits for the zeros does not answer.
                let _ = answer.recv_timeout(Duration::from_millis(200));
                self.zeroed.store(true, Ordering::Release);
            }
        }
        self.memory.write_at(offset, data)
    }
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write_durable_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.memory.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.memory.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.memory.punch(offset, len)
    }
    fn growth_available(&self) -> io::Result<Option<u64>> {
        self.memory.growth_available()
    }
}

/// A cask with wiping in force and a secret in a checkpoint, with nothing left to be swept.
fn gated() -> (GatedDevice, Cask<GatedDevice>, u64) {
    let device = GatedDevice::default();
    Cask::format(&device.memory, &tiny(512, 4000, 64)).unwrap();
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    set_wiping(&cask, false, true);
    let number = put(&cask, 100);
    cask.checkpoint().unwrap();
    tick_often(&cask);
    assert!(cask.sweep.lock().is_none());
    (device, cask, number)
}

/// Whether `waits` ends no earlier than the first zeros that `wipes` writes.
fn waits_for_zeros(
    device: &GatedDevice,
    cask: &Cask<GatedDevice>,
    wipes: impl FnOnce(&Cask<GatedDevice>) + Send,
    waits: impl FnOnce(&Cask<GatedDevice>),
) -> bool {
    let (tell, told) = channel();
    let (answer, answered) = channel();
    *device.gate.lock() = Some((tell, answered));
    device.zeroed.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        scope.spawn(|| wipes(cask));
        told.recv().unwrap();
        waits(cask);
        let waited = device.zeroed.load(Ordering::Acquire);
        let _ = answer.send(());
        waited
    })
}

fn release(cask: &Cask<GatedDevice>) {
    cask.release_lingering(u64::MAX);
}

#[test]
fn the_container_is_not_clean_while_something_is_being_zeroed() {
    let (device, cask, number) = gated();
    drop_content(&cask, number);
    set_wiping(&cask, true, false);
    cask.advance().unwrap();
    let clean = |cask: &Cask<GatedDevice>| cask.go_on_wiping().unwrap();
    assert!(waits_for_zeros(&device, &cask, release, clean));
    assert!(!cask.is_wiping());
    assert!(!holds(&device.memory.to_bytes()));
}

#[test]
fn who_asks_for_wiping_waits_for_what_is_under_way() {
    let (device, cask, number) = gated();
    drop_content(&cask, number);
    cask.advance().unwrap();
    let wipe_now = |cask: &Cask<GatedDevice>| cask.wipe_now().unwrap();
    assert!(waits_for_zeros(&device, &cask, release, wipe_now));
    assert!(!holds(&device.memory.to_bytes()));
    // The first zeros of a checkpoint are those of the log.
    let checkpoint = |cask: &Cask<GatedDevice>| cask.checkpoint().unwrap();
    let number = put(&cask, 1);
    drop_content(&cask, number);
    let mut seen = false;
    let wipe_now = |cask: &Cask<GatedDevice>| {
        cask.wipe_now().unwrap();
        seen = holds(&device.memory.to_bytes());
    };
    assert!(waits_for_zeros(&device, &cask, checkpoint, wipe_now));
    assert!(!seen);
}

#[test]
fn a_large_file_is_wiped_piece_by_piece() {
    let device = GatedDevice::default();
    Cask::format(&device.memory, &tiny(4096, 40_000, 64)).unwrap();
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    set_wiping(&cask, false, true);
    let number = put(&cask, (100 << 20) / SECRET.len());
    cask.checkpoint().unwrap();
    (0..20).for_each(|_| cask.tick(Timestamp::default()).unwrap());
    assert!(cask.sweep.lock().is_none());
    drop_content(&cask, number);
    let (full, syncs) = (cask.alloc.free(), device.syncs.load(Ordering::Relaxed));
    cask.tick(Timestamp::from_secs(5)).unwrap();
    // Nobody has waited for more than that, and that much is free now.
    let freed = cask.alloc.free() - full;
    assert!((60 << 8..=64 << 8).contains(&freed), "{freed} blocks");
    assert!(!cask.lingering.lock().is_empty());
    assert!(device.syncs.load(Ordering::Relaxed) - syncs >= 4);
    cask.tick(Timestamp::from_secs(5)).unwrap();
    assert!(cask.lingering.lock().is_empty());
    assert!(!holds(&device.memory.to_bytes()));
}

#[test]
fn what_was_given_up_before_and_is_read_still_is_wiped_as_well() {
    let (device, cask) = recorded(false);
    let number = put(&cask, 100);
    cask.checkpoint().unwrap();
    let pinned = cask.pin();
    drop_content(&cask, number);
    cask.checkpoint().unwrap();
    set_wiping(&cask, false, true);
    cask.checkpoint().unwrap();
    tick_often(&cask);
    assert!(cask.sweep.lock().is_none());
    assert!(holds(&device.memory().to_bytes()));
    drop(pinned);
    cask.wipe_now().unwrap();
    assert!(!holds(&device.memory().to_bytes()));
}

#[test]
fn what_was_staged_before_and_never_taken_is_wiped_as_well() {
    let (device, cask) = recorded(false);
    let data = SECRET.repeat(1000);
    let staged = cask.stage(0, &data).unwrap();
    set_wiping(&cask, false, true);
    cask.checkpoint().unwrap();
    tick_often(&cask);
    assert!(cask.sweep.lock().is_none());
    assert!(holds(&device.memory().to_bytes()));
    drop(staged);
    cask.wipe_now().unwrap();
    assert!(!holds(&device.memory().to_bytes()));
}

#[test]
fn a_sweep_joins_its_writes_and_is_done_when_they_are_durable() {
    let (device, cask) = recorded(false);
    let number = put(&cask, 1000);
    cask.checkpoint().unwrap();
    drop_content(&cask, number);
    cask.checkpoint().unwrap();
    set_wiping(&cask, false, true);
    cask.checkpoint().unwrap();
    device.take();
    cask.tick(Timestamp::default()).unwrap();
    assert!(cask.sweep.lock().is_none());
    let events = device.take().events;
    assert_eq!(events.last(), Some(&Event::Sync));
    let writes = events
        .iter()
        .filter(|event| matches!(event, Event::Write { .. }))
        .count();
    // 125 blocks of 512 bytes, and some that were pages.
    assert!((1..10).contains(&writes), "{writes} writes");
    assert!(!holds(&device.memory().to_bytes()));
}

#[test]
fn an_attribute_that_was_replaced_is_wiped_when_asked_for() {
    for checkpointed in [false, true] {
        let (device, cask) = recorded(true);
        let attribute = |value: &[u8]| {
            let key = Key::new(1, Kind::Xattr, 7);
            cask.transact(Class::Grow, |tx| tx.put(key, value)).unwrap();
        };
        attribute(SECRET);
        if checkpointed {
            cask.checkpoint().unwrap();
        }
        attribute(b"harmless");
        cask.sync(cask.lsn()).unwrap();
        cask.wipe_now().unwrap();
        assert!(!holds(&device.memory().to_bytes()), "{checkpointed}");
    }
}

#[test]
fn a_panic_in_a_checkpoint_stops_the_cask() {
    let (device, cask, number) = gated();
    drop_content(&cask, number);
    device.panics.store(true, Ordering::Release);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cask.checkpoint()));
    device.panics.store(false, Ordering::Release);
    assert!(ran.is_err());
    assert!(cask.failure().is_some());
}
