//! The store through its own interface, over a cask in memory, with a clock that stands still.

mod cat;
mod due;
mod expiry;
mod lifetime;
mod log;
mod plain;
mod quota;
mod roll;
mod rotate;
mod settings;
mod truncate;
mod value;
mod wipe;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::cask::{FormatOptions, OpenOptions};
use crate::clock::ManualClock;
use crate::device::MemoryDevice;
use crate::error::Error;
use crate::format::FileKind;
use crate::fs::{OpenFlags, RenameFlags, SetAttr, SetTime};

const ROOT: Number = 1;
const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 1,
};
const WRITER: Caller = Caller {
    uid: 1000,
    gid: 100,
    tid: 2,
};

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
const READ_WRITE: OpenFlags = OpenFlags {
    write: true,
    ..READ
};
const TRUNCATE: OpenFlags = OpenFlags {
    truncate: true,
    ..WRITE
};
const EXCLUSIVE: OpenFlags = OpenFlags {
    exclusive: true,
    ..WRITE
};

/// Killed or not, as a test says.
#[derive(Clone, Default)]
struct Told(Arc<AtomicBool>);

impl Fate for Told {
    fn is_killed(&self, _tid: u32) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A file that a program has open: it keeps the offset, as the kernel would.
#[derive(Clone, Copy, Debug)]
struct File {
    ino: Number,
    fh: u64,
    at: u64,
}

struct World {
    store: Store<MemoryDevice>,
    clock: Arc<ManualClock>,
    killed: Told,
    notices: Arc<Mutex<Vec<Notice>>>,
}

impl World {
    fn new() -> Self {
        Self::with(FormatOptions {
            blocks: Some(16_384),
            wal_bytes: Some(4 << 20),
            secret: [3; 32],
            ..FormatOptions::default()
        })
    }

    fn with(options: FormatOptions) -> Self {
        let device = MemoryDevice::new();
        Cask::format(&device, &options).unwrap();
        Self::over(Arc::new(
            Cask::open(device, OpenOptions::default()).unwrap(),
        ))
    }

    fn over(cask: Arc<Cask<MemoryDevice>>) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_000)));
        let killed = Told::default();
        let now: Arc<dyn Clock> = clock.clone();
        let store = Store::with_fate(cask, now, Box::new(killed.clone())).unwrap();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&notices);
        store.set_notice_sink(Box::new(move |notice| sink.lock().push(notice)));
        Self {
            store,
            clock,
            killed,
            notices,
        }
    }

    /// A directory under the root with this mode.
    fn dir(&self, name: &[u8], mode: &[u8]) -> Number {
        let entry = self.store.mkdir(&ROOT_USER, ROOT, name, 0o755).unwrap();
        self.set(entry.attr.ino, "mode", mode);
        entry.attr.ino
    }

    fn set(&self, ino: Number, name: &str, value: &[u8]) {
        let name = format!("user.cask.{name}");
        self.store
            .setxattr(&ROOT_USER, ino, name.as_bytes(), value, false, false)
            .unwrap();
    }

    fn at(&self, secs: i64) {
        self.clock.set(Timestamp::from_secs(secs));
    }

    /// `open(2)` as the kernel does it: LOOKUP, then OPEN or CREATE, and once more on `ESTALE`.
    fn open_by(&self, caller: &Caller, dir: Number, name: &[u8], flags: OpenFlags) -> Result<File> {
        let once = || match self.store.lookup(caller, dir, name) {
            Ok(_) if flags.exclusive => Err(Error::Exists),
            Ok(found) => self
                .store
                .open(caller, found.attr.ino, flags)
                .map(|opened| (found.attr.ino, opened)),
            Err(Error::NotFound) if flags.write => self
                .store
                .create(caller, dir, name, 0o644, flags)
                .map(|(entry, opened)| (entry.attr.ino, opened)),
            Err(error) => Err(error),
        };
        let (ino, opened) = match once() {
            Err(Error::Stale) => once()?,
            done => done?,
        };
        Ok(File {
            ino,
            fh: opened.fh,
            at: 0,
        })
    }

    fn open(&self, dir: Number, name: &[u8], flags: OpenFlags) -> File {
        self.open_by(&WRITER, dir, name, flags).unwrap()
    }

    /// `write(2)` at the handle's own offset.
    fn write(&self, file: &mut File, data: &[u8]) -> Result<()> {
        let written = self
            .store
            .write(&WRITER, file.ino, file.fh, file.at, data)?;
        assert_eq!(written, data.len());
        file.at += written as u64;
        Ok(())
    }

    fn put(&self, file: &mut File, data: &[u8]) {
        self.write(file, data).unwrap();
    }

    fn read(&self, file: File, offset: u64, size: u32) -> Vec<u8> {
        let mut buf = vec![1; 3];
        self.store
            .read(file.ino, file.fh, offset, size, &mut buf)
            .unwrap();
        buf
    }

    fn close_by(&self, caller: &Caller, file: File) {
        self.store.flush(caller, file.ino, file.fh).unwrap();
        self.store.release(file.ino, file.fh).unwrap();
    }

    fn close(&self, file: File) {
        self.close_by(&WRITER, file);
    }

    /// What is under a name, read by another program.
    fn cat(&self, dir: Number, name: &[u8]) -> Vec<u8> {
        let reader = Caller {
            tid: 99,
            ..ROOT_USER
        };
        let file = self.open_by(&reader, dir, name, READ).unwrap();
        let mut all = Vec::new();
        loop {
            let piece = self.read(file, all.len() as u64, 1 << 20);
            if piece.is_empty() {
                break;
            }
            all.extend(piece);
        }
        self.close(file);
        all
    }

    fn exists(&self, dir: Number, name: &[u8]) -> bool {
        let reader = Caller {
            tid: 99,
            ..ROOT_USER
        };
        match self.store.lookup(&reader, dir, name) {
            Ok(_) => true,
            Err(Error::NotFound) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn attr(&self, dir: Number, name: &[u8]) -> Attr {
        let reader = Caller {
            tid: 99,
            ..ROOT_USER
        };
        self.store.lookup(&reader, dir, name).unwrap().attr
    }

    fn mv(&self, dir: Number, name: &[u8], new: &[u8]) {
        self.mv_by(&ROOT_USER, dir, name, new).unwrap();
    }

    fn mv_by(&self, caller: &Caller, dir: Number, name: &[u8], new: &[u8]) -> Result<()> {
        let flags = RenameFlags::default();
        self.store.rename(caller, dir, name, dir, new, flags)
    }

    fn ftruncate(&self, file: File, size: u64) -> Result<Entry> {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.store.setattr(&WRITER, file.ino, Some(file.fh), &set)
    }

    fn truncate(&self, ino: Number, size: u64) -> Result<Entry> {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.store.setattr(&WRITER, ino, None, &set)
    }

    fn names(&self, dir: Number) -> Vec<String> {
        let mut names = Vec::new();
        self.store
            .readdir(dir, 0, false, &mut |entry, _| {
                names.push(String::from_utf8_lossy(&entry.name).into_owned());
                true
            })
            .unwrap();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    fn files_used(&self) -> u64 {
        self.store.cask().stats().files_used
    }

    fn heard(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.notices.lock())
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.unwrap_err().errno()
}
