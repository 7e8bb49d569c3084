//! The cask by itself: group commit, checkpoints beside writers and readers, a ring that wraps, and a
//! device that fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use caskfs::Error;
use caskfs::cask::{Cask, Class, ImageRead, Lsn, Read};
use caskfs::device::testing::{Call, Control, Effect, Fault, FaultyDevice, RecordingDevice};
use caskfs::device::{Device, MemoryDevice};
use caskfs::format::{Key, Kind};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::harness::{
    Failing, Recorded, Switching, after_power_loss, explore, formatted, must_fail, open, reopened,
    repeats,
};

/// Bytes that are put in their place before their operation is logged.
const LARGE: usize = 1536;

/// Where the `n`-th thing that a thread writes is named.
fn key(thread: u64, n: u64) -> Key {
    Key::new(100 + thread, Kind::Xattr, n)
}

/// The number by which a mark names it.
fn tag(thread: u64, n: u64) -> u64 {
    thread * 100 + n
}

/// What marks say was confirmed is there, `len` bytes each, and the one that is `large`.
fn all_there<D: Device>(cask: &Cask<D>, marks: &[u64], len: usize, large: u64) {
    for mark in marks {
        let (writer, n) = (mark / 100, mark % 100);
        assert!(
            has(cask, (writer, n), len, *mark == large),
            "write {n} of {writer} was confirmed and is lost"
        );
    }
}

/// Writes the `n`-th thing of a thread: an item of `len` bytes, and with `large` a content beside it.
fn put<D: Device>(
    cask: &Cask<D>,
    (thread, n): (u64, u64),
    len: usize,
    large: bool,
) -> Result<Lsn, Error> {
    let byte = tag(thread, n) as u8;
    let data = [byte; LARGE];
    let staged = match large {
        true => Some(cask.stage(0, &data)?),
        false => None,
    };
    let (_, lsn) = cask.transact(Class::Grow, |tx| {
        let mut value = vec![byte; len];
        let content = tx.new_number();
        value[..8].copy_from_slice(&content.to_le_bytes());
        if let Some(staged) = &staged {
            tx.write_staged(content, staged);
        }
        tx.put(key(thread, n), value)
    })?;
    Ok(lsn)
}

/// Whether it is there, and right.
fn has<D: Device>(cask: &Cask<D>, (thread, n): (u64, u64), len: usize, large: bool) -> bool {
    let byte = tag(thread, n) as u8;
    let Some(value) = cask.get(&key(thread, n)).unwrap() else {
        return false;
    };
    assert_eq!(value.len(), len);
    assert!(value[8..].iter().all(|found| *found == byte));
    if large {
        let content = u64::from_le_bytes(value[..8].try_into().unwrap());
        let mut data = [0; LARGE];
        cask.read_content(content, 0, &mut data).unwrap();
        assert_eq!(data, [byte; LARGE], "content of {thread}.{n}");
    }
    true
}

/// Starts threads of a body and waits for all of them.
fn together(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let started: Vec<_> = threads.into_iter().map(|run| thread::spawn(run)).collect();
    for thread in started {
        thread.join().unwrap();
    }
}

/// Three threads write and sync, and one only writes on what there is; whenever a sync was answered, what
/// it was asked for survives a loss of power.
fn group_commit() {
    let device: Recorded = Switching::new(RecordingDevice::over(formatted(300, 24)));
    let cask = open(Arc::clone(&device));
    let writer = |writer: u64| -> Box<dyn FnOnce() + Send> {
        let (cask, device) = (Arc::clone(&cask), Arc::clone(&device));
        Box::new(move || {
            for n in 0..2 {
                let lsn = put(&cask, (writer, n), 40, writer == 2 && n == 0).unwrap();
                cask.sync(lsn).unwrap();
                device.inner().mark(tag(writer, n));
            }
        })
    };
    let mut threads: Vec<_> = (0..3).map(writer).collect();
    let by_persist = Arc::clone(&cask);
    threads.push(Box::new(move || {
        (0..3).for_each(|_| by_persist.persist(by_persist.lsn()).unwrap());
    }));
    together(threads);
    after_power_loss(&device.inner().take(), 4, |cask, marks| {
        all_there(cask, marks, 40, 200);
    });
}

#[test]
fn what_a_sync_confirms_is_durable_whoever_did_it() {
    explore(
        "engine::what_a_sync_confirms_is_durable_whoever_did_it",
        group_commit,
    );
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let _away = Control::FlushOnFsync.remove();
    must_fail("no flush before an fsync is answered", 500, group_commit);
}

#[test]
fn a_sync_that_leaves_blocks_out_is_noticed() {
    let _away = Control::FullFlushWithBypass.remove();
    must_fail("no full flush for staged blocks", 2_000, group_commit);
}

const LEFT: Key = Key::new(50, Kind::Xattr, 1);
const RIGHT: Key = Key::new(50, Kind::Xattr, 2);
const CONTENT: u64 = 60;
const SPAN: usize = 1024;

fn number_of(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

/// Both items in one look; they are always written together.
fn pair(r: &impl Read) -> u64 {
    let mut found = [0, 0];
    r.scan(LEFT, RIGHT, &mut |key, value| {
        found[usize::from(key == RIGHT)] = number_of(Some(value));
        Ok(true)
    })
    .unwrap();
    assert_eq!(found[0], found[1], "two moments in one look");
    found[0]
}

/// The content, whose bytes are always written together.
fn span(r: &impl Read) -> u64 {
    let mut data = [0; SPAN];
    r.read_content(CONTENT, 0, &mut data).unwrap();
    assert!(data.iter().all(|byte| *byte == data[0]), "a torn content");
    u64::from(data[0])
}

/// Adds one to everything, in one operation. Every second time the content is written in its place.
fn add_one<D: Device>(cask: &Cask<D>) {
    loop {
        let next = pair(cask) + 1;
        let data = [next as u8; SPAN];
        let staged = next
            .is_multiple_of(2)
            .then(|| cask.stage(0, &data).unwrap());
        let (done, _) = cask
            .transact(Class::Grow, |tx| {
                if number_of(tx.get(&LEFT)?.as_deref()) + 1 != next {
                    return Ok(false);
                }
                tx.put(LEFT, next.to_le_bytes().as_slice())?;
                match &staged {
                    Some(staged) => tx.write_staged(CONTENT, staged),
                    None => tx.write(CONTENT, 0, &data),
                }
                tx.put(RIGHT, next.to_le_bytes().as_slice())?;
                Ok(true)
            })
            .unwrap();
        if done {
            return;
        }
    }
}

/// Writers and threads that make checkpoints; a reader and an image see one moment each.
fn checkpoints() {
    let memory = formatted(300, 24);
    let device = Switching::new(memory.clone());
    let cask = open(device);
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    let by_writer = Arc::clone(&cask);
    threads.push(Box::new(move || (0..3).for_each(|_| add_one(&*by_writer))));
    let by_checkpoints = Arc::clone(&cask);
    threads.push(Box::new(move || {
        for _ in 0..3 {
            add_one(&*by_checkpoints);
            by_checkpoints.checkpoint().unwrap();
        }
    }));
    let by_idle = Arc::clone(&cask);
    threads.push(Box::new(move || {
        (0..2).for_each(|_| by_idle.checkpoint().unwrap());
    }));
    let by_readers = Arc::clone(&cask);
    threads.push(Box::new(move || {
        let mut before = 0;
        for _ in 0..3 {
            let items = pair(&*by_readers);
            let content = span(&*by_readers);
            assert!(items >= before, "a look into the past");
            assert!(content >= items, "the content is older than its items");
            before = content;
        }
    }));
    let by_image = Arc::clone(&cask);
    threads.push(Box::new(move || {
        let before = pair(&*by_image);
        let image = by_image.image().unwrap();
        let mut bytes = vec![0; image.bytes() as usize];
        let piece = bytes.len() / 8;
        // It is given up rather than that somebody waits for it.
        let read = bytes
            .chunks_mut(piece)
            .zip(0..)
            .try_for_each(|(part, n)| image.read_at(n * piece as u64, part));
        if !matches!(read, Err(Error::Stale)) {
            read.unwrap();
            let copy = reopened(bytes);
            assert_eq!(pair(&*copy), span(&*copy), "an image of two moments");
            assert!(pair(&*copy) >= before);
        }
    }));
    together(threads);
    assert_eq!((pair(&*cask), span(&*cask)), (6, 6));
    // As a kill leaves it, and after an orderly end.
    let killed = reopened(after_persist(&cask, &memory));
    assert_eq!((pair(&*killed), span(&*killed)), (6, 6));
    cask.close().unwrap();
    drop(cask);
    let closed = reopened(memory.to_bytes());
    assert_eq!((pair(&*closed), span(&*closed)), (6, 6));
}

fn after_persist<D: Device>(cask: &Cask<D>, memory: &MemoryDevice) -> Vec<u8> {
    cask.persist(cask.lsn()).unwrap();
    memory.to_bytes()
}

#[test]
fn a_checkpoint_disturbs_neither_writers_nor_readers() {
    explore(
        "engine::a_checkpoint_disturbs_neither_writers_nor_readers",
        checkpoints,
    );
}

/// A log of eight blocks: it goes round while three threads write, and checkpoints empty it.
fn small_ring() {
    const LEN: usize = 300;
    const EACH: u64 = 7;
    let device: Recorded = Switching::new(RecordingDevice::over(formatted(300, 8)));
    let cask = open(Arc::clone(&device));
    let before = cask.stats().generation;
    let writer = |writer: u64| -> Box<dyn FnOnce() + Send> {
        let (cask, device) = (Arc::clone(&cask), Arc::clone(&device));
        Box::new(move || {
            for n in 0..EACH {
                let lsn = put(&cask, (writer, n), LEN, false).unwrap();
                if n % 3 == 2 {
                    cask.sync(lsn).unwrap();
                    device.inner().mark(tag(writer, n));
                }
            }
        })
    };
    together((0..3).map(writer).collect());
    assert!(cask.stats().generation > before, "the log was never full");
    cask.persist(cask.lsn()).unwrap();
    let killed = reopened(device.inner().memory().to_bytes());
    for writer in 0..3 {
        for n in 0..EACH {
            assert!(
                has(&killed, (writer, n), LEN, false),
                "write {n} of {writer} is lost"
            );
        }
    }
    after_power_loss(&device.inner().take(), 2, |cask, marks| {
        for mark in marks {
            // What was before a confirmed one in the order of operations is confirmed, too.
            for n in 0..=mark % 100 {
                assert!(
                    has(cask, (mark / 100, n), LEN, false),
                    "write {n} of {} was confirmed and is lost",
                    mark / 100
                );
            }
        }
    });
}

#[test]
fn a_log_that_goes_round_loses_nothing() {
    explore("engine::a_log_that_goes_round_loses_nothing", small_ring);
}

#[test]
fn a_log_that_goes_round_too_early_is_noticed() {
    let _away = Control::WalRetirement.remove();
    must_fail("the log is written over too early", 500, small_ring);
}

/// What became of the writes, by thread and number.
type Answers = BTreeMap<(u64, u64), bool>;

/// A device whose writes fail, or whose flushes do from some time on.
fn failing_device() {
    let persistent = thread_rng().gen_range(0..2) == 1;
    match thread_rng().gen_range(0..2) {
        0 => failing(Call::AnyFlush, true),
        _ => failing(Call::Write, persistent),
    }
}

/// A device that tells of what it could not write only once, and to the log. A sync that failed goes on to
/// fail: that is what a device promises.
fn failing_once() {
    failing(Call::WriteDurable, false);
}

/// Three threads on a device that fails: who was answered has it, and all others are told.
fn failing(call: Call, persistent: bool) {
    let mut rng = thread_rng();
    let effect = [Effect::Nothing, Effect::Everything, Effect::Prefix(200)][rng.gen_range(0..3)];
    let fault = Fault {
        call,
        nth: rng.gen_range(1..8),
        persistent,
        errno: libc::EIO,
        effect,
    };
    let recording = RecordingDevice::over(formatted(300, 8));
    let device: Failing = Switching::new(FaultyDevice::new(recording));
    let cask = open(Arc::clone(&device));
    device.inner().set_fault(Some(fault));
    let answers = Arc::new(shuttle::sync::Mutex::new(Answers::new()));
    let writer = |writer: u64| -> Box<dyn FnOnce() + Send> {
        let (cask, device) = (Arc::clone(&cask), Arc::clone(&device));
        let answers = Arc::clone(&answers);
        Box::new(move || {
            for n in 0..3 {
                let large = writer == 1 && n == 1;
                let done = put(&cask, (writer, n), 300, large).and_then(|lsn| cask.sync(lsn));
                if done.is_ok() {
                    device.inner().inner().mark(tag(writer, n));
                }
                answers.lock().unwrap().insert((writer, n), done.is_ok());
            }
        })
    };
    let mut threads: Vec<_> = (0..2).map(writer).collect();
    let (by_checkpoints, after) = (Arc::clone(&cask), Arc::clone(&device));
    threads.push(Box::new(move || {
        for _ in 0..2 {
            if by_checkpoints.checkpoint().is_err() {
                assert!(after.inner().failed() > 0, "an error out of nothing");
            }
        }
    }));
    together(threads);

    let failed = device.inner().failed() > 0;
    assert_eq!(cask.failure().is_some(), failed);
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    assert!(failed || answers.values().all(|done| *done));
    // From then on nothing is taken and nothing confirmed, even if the device is well again.
    device.inner().set_fault(None);
    let later = put(&cask, (9, 0), 40, false).and_then(|lsn| cask.sync(lsn));
    assert_eq!(later.is_err(), failed, "{later:?}");
    assert_eq!(cask.sync(cask.lsn()).is_err(), failed);
    assert_eq!(cask.checkpoint().is_err(), failed);
    drop(cask);
    after_power_loss(&device.inner().inner().take(), 2, |cask, marks| {
        all_there(cask, marks, 300, 101);
    });
}

#[test]
fn a_device_that_fails_is_told_of_to_everybody() {
    explore(
        "engine::a_device_that_fails_is_told_of_to_everybody",
        failing_device,
    );
}

/// What the host tells one thread, it does not tell the other; nor does the cask, in time.
#[test]
fn a_failed_flush_that_only_one_thread_is_told_of_stops_all() {
    explore(
        "engine::a_failed_flush_that_only_one_thread_is_told_of_stops_all",
        failing_once,
    );
}

#[test]
fn a_checkpoint_that_does_not_wait_for_the_logs_flush_is_noticed() {
    let _away = Control::FlushOfTheLog.remove();
    must_fail(
        "a checkpoint is not told of a failed flush",
        20_000,
        failing_once,
    );
}

#[test]
fn the_same_choices_lead_to_the_same_points() {
    for body in [group_commit, checkpoints, small_ring, failing_device] {
        repeats(3, body);
    }
}
