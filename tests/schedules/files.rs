//! Files above the cask: a log that is renamed under its writers, and a value that is saved under its
//! readers.

use std::sync::{Arc, OnceLock};

use caskfs::Error;
use caskfs::clock::{Clock, ManualClock, Timestamp};
use caskfs::device::MemoryDevice;
use caskfs::fs::{Caller, OpenFlags, RenameFlags};
use caskfs::fsck;
use caskfs::store::Store;
use shuttle::thread;

use super::harness::{Switching, explore, formatted, must_fail, once, open, repeats};

type Files = Store<Arc<Switching<MemoryDevice>>>;

const ROOT: u64 = 1;
const READ: OpenFlags = OpenFlags {
    read: true,
    write: false,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
};
const WRITE: OpenFlags = OpenFlags {
    read: false,
    write: true,
    ..READ
};
const APPEND: OpenFlags = OpenFlags {
    append: true,
    ..WRITE
};
const TRUNCATE: OpenFlags = OpenFlags {
    truncate: true,
    ..WRITE
};

fn caller(tid: u32) -> Caller {
    Caller {
        uid: 0,
        gid: 0,
        tid,
    }
}

fn store(memory: MemoryDevice) -> Arc<Files> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_secs(1_000)));
    Arc::new(Store::new(open(Switching::new(memory)), clock).unwrap())
}

/// An open file, with the offset that the kernel would keep.
struct File {
    store: Arc<Files>,
    caller: Caller,
    ino: u64,
    fh: u64,
    at: u64,
}

impl File {
    /// `open(2)` as the kernel does it: LOOKUP, then OPEN or CREATE, and once more on `ESTALE`.
    fn open(
        store: &Arc<Files>,
        tid: u32,
        dir: u64,
        name: &[u8],
        flags: OpenFlags,
    ) -> Result<Self, Error> {
        let caller = caller(tid);
        let once = || match store.lookup(&caller, dir, name) {
            Ok(found) => store
                .open(&caller, found.attr.ino, flags)
                .map(|opened| (found.attr.ino, opened.fh)),
            Err(Error::NotFound) if flags.write => store
                .create(&caller, dir, name, 0o644, flags)
                .map(|(entry, opened)| (entry.attr.ino, opened.fh)),
            Err(error) => Err(error),
        };
        let (ino, fh) = match once() {
            Err(Error::Stale) => once()?,
            done => done?,
        };
        Ok(Self {
            store: Arc::clone(store),
            caller,
            ino,
            fh,
            at: 0,
        })
    }

    fn write(&mut self, data: &[u8]) {
        let written = self
            .store
            .write(&self.caller, self.ino, self.fh, self.at, data);
        assert_eq!(written.unwrap(), data.len());
        self.at += data.len() as u64;
    }

    /// Reads all, in pieces.
    fn read(&self, piece: u32) -> Vec<u8> {
        let (mut all, mut buf) = (Vec::new(), Vec::new());
        loop {
            let at = all.len() as u64;
            self.store
                .read(self.ino, self.fh, at, piece, &mut buf)
                .unwrap();
            if buf.is_empty() {
                return all;
            }
            all.extend_from_slice(&buf);
        }
    }

    fn close(self) {
        self.store.flush(&self.caller, self.ino, self.fh).unwrap();
        self.store.release(self.ino, self.fh).unwrap();
    }
}

/// What stands under a name; nothing where there is none.
fn content(store: &Arc<Files>, tid: u32, dir: u64, name: &[u8]) -> Vec<u8> {
    match File::open(store, tid, dir, name, READ) {
        Ok(file) => {
            let all = file.read(4096);
            file.close();
            all
        }
        Err(Error::NotFound) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

/// A cask with a directory of this mode, and a file in it.
fn made(mode: &'static [u8], name: &'static [u8], first: &'static [u8]) -> Vec<u8> {
    once(move || {
        let memory = formatted(500, 64);
        let store = store(memory.clone());
        let root = caller(1);
        let dir = store.mkdir(&root, ROOT, b"dir", 0o755).unwrap().attr.ino;
        store
            .setxattr(&root, dir, b"user.cask.mode", mode, false, false)
            .unwrap();
        let mut file = File::open(&store, 1, dir, name, WRITE).unwrap();
        file.write(first);
        file.close();
        store.close().unwrap();
        memory.to_bytes()
    })
}

/// The cask after the threads are through: in order, as a kill leaves it, and opened once more.
fn checked(store: Arc<Files>, memory: &MemoryDevice, look: impl Fn(&Arc<Files>)) {
    look(&store);
    store.cask().persist(store.cask().lsn()).unwrap();
    let killed = self::store(MemoryDevice::from_bytes(memory.to_bytes()));
    look(&killed);
    let report = fsck::check(killed.cask(), true, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

const LINES: u32 = 4;

/// Two writers append lines to a log that a third thread renames twice.
fn cuts(image: &[u8]) {
    let memory = MemoryDevice::from_bytes(image.to_vec());
    let store = store(memory.clone());
    let dir = store.lookup(&caller(1), ROOT, b"dir").unwrap().attr.ino;
    let mut threads = Vec::new();
    for writer in 0..2 {
        let mut file = File::open(&store, 10 + writer, dir, b"a.log", APPEND).unwrap();
        threads.push(thread::spawn(move || {
            for line in 0..LINES {
                file.write(format!("{writer} {line}\n").as_bytes());
            }
            file.close();
        }));
    }
    let by_renames = Arc::clone(&store);
    let renames = thread::spawn(move || {
        let mut segments: Vec<(&[u8], Vec<u8>)> = Vec::new();
        for name in [b"a.log.1".as_slice(), b"a.log.2"] {
            let flags = RenameFlags::default();
            match by_renames.rename(&caller(20), dir, b"a.log", dir, name, flags) {
                // Nothing was written since the last.
                Err(Error::NotFound) => continue,
                renamed => renamed.unwrap(),
            }
            segments.push((name, content(&by_renames, 21, dir, name)));
        }
        segments
    });
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let segments = renames.join().unwrap();
    checked(store, &memory, |store| {
        let mut all = Vec::new();
        for (name, then) in &segments {
            let now = content(store, 22, dir, name);
            assert_eq!(
                String::from_utf8_lossy(&now),
                String::from_utf8_lossy(then),
                "a segment changed after its rename"
            );
            all.extend(now);
        }
        all.extend(content(store, 22, dir, b"a.log"));
        let text = String::from_utf8(all).unwrap();
        for writer in 0..2 {
            let head = format!("{writer} ");
            let found: Vec<&str> = text.lines().filter(|l| l.starts_with(&head)).collect();
            let wanted: Vec<String> = (0..LINES).map(|line| format!("{writer} {line}")).collect();
            assert_eq!(found, wanted, "lines of {writer} in\n{text}");
        }
        assert_eq!(text.lines().count(), 2 * LINES as usize + 1, "{text}");
    });
}

fn cut_of(mode: &'static [u8], made_once: &'static OnceLock<Vec<u8>>) -> &'static [u8] {
    made_once.get_or_init(|| made(mode, b"a.log", b"first\n"))
}

static LOG: OnceLock<Vec<u8>> = OnceLock::new();
static NO_LOG: OnceLock<Vec<u8>> = OnceLock::new();

fn cuts_of_a_log() {
    cuts(LOG.get().unwrap());
}

fn cuts_of_no_log() {
    cuts(NO_LOG.get().unwrap());
}

#[test]
fn a_cut_falls_between_lines_and_loses_none() {
    cut_of(b"log", &LOG);
    explore(
        "files::a_cut_falls_between_lines_and_loses_none",
        cuts_of_a_log,
    );
}

/// In a plain directory a writer goes on in the file that was renamed.
#[test]
fn a_rename_that_cuts_nothing_is_noticed() {
    cut_of(b"plain", &NO_LOG);
    must_fail("a log in a plain directory", 500, cuts_of_no_log);
}

/// Two saves of a value, of several writes each, under two readers that read it piece by piece.
fn saves(image: &[u8]) {
    let memory = MemoryDevice::from_bytes(image.to_vec());
    let store = store(memory.clone());
    let dir = store.lookup(&caller(1), ROOT, b"dir").unwrap().attr.ino;
    let wanted = |version: u8| vec![b'a' + version; 40 + 30 * version as usize];
    let by_saver = Arc::clone(&store);
    let saver = thread::spawn(move || {
        for version in 1..3 {
            let mut file = File::open(&by_saver, 10, dir, b"s", TRUNCATE).unwrap();
            for piece in wanted(version).chunks(35) {
                file.write(piece);
            }
            file.close();
        }
    });
    let loaders: Vec<_> = (0..2)
        .map(|loader| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let mut newest = 0;
                for _ in 0..2 {
                    let file = File::open(&store, 30 + loader, dir, b"s", READ).unwrap();
                    let found = file.read(25);
                    file.close();
                    let version = (0..3).find(|version| wanted(*version) == found);
                    let version = version.unwrap_or_else(|| {
                        panic!("a load of {:?}", String::from_utf8_lossy(&found))
                    });
                    assert!(version >= newest, "an older one after a newer");
                    newest = version;
                }
            })
        })
        .collect();
    saver.join().unwrap();
    loaders
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    checked(store, &memory, |store| {
        assert_eq!(content(store, 22, dir, b"s"), wanted(2));
    });
}

static VALUE: OnceLock<Vec<u8>> = OnceLock::new();
static NO_VALUE: OnceLock<Vec<u8>> = OnceLock::new();
const FIRST: &[u8] = &[b'a'; 40];

fn saves_of_a_value() {
    saves(VALUE.get().unwrap());
}

fn saves_of_no_value() {
    saves(NO_VALUE.get().unwrap());
}

#[test]
fn a_load_is_wholly_old_or_wholly_new() {
    VALUE.get_or_init(|| made(b"value", b"s", FIRST));
    explore(
        "files::a_load_is_wholly_old_or_wholly_new",
        saves_of_a_value,
    );
}

/// In a plain directory a reader sees a file that is being written.
#[test]
fn a_load_of_half_a_save_is_noticed() {
    NO_VALUE.get_or_init(|| made(b"plain", b"s", FIRST));
    must_fail("a session in a plain directory", 500, saves_of_no_value);
}

#[test]
fn the_same_choices_lead_to_the_same_points() {
    cut_of(b"log", &LOG);
    VALUE.get_or_init(|| made(b"value", b"s", FIRST));
    for body in [cuts_of_a_log, saves_of_a_value] {
        repeats(3, body);
    }
}
