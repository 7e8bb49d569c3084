//! Sessions in a container that nobody has mounted, opened in this process.
//!
//! Invariant: the container is held until the place is closed or dropped, and meanwhile a thread does what
//! the daemon of a mount would: it makes durable what was saved within a second, writes checkpoints, and removes
//! what is over.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};

use super::directory::STAGED;
use super::{Found, Place, io_error};
use crate::cask::{Cask, OpenOptions};
use crate::clock::SystemClock;
use crate::device::file::{Access, FileDevice};
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::{Number, ROOT};
use crate::fs::{Caller, OpenFlags, SetAttr, SetTime};
use crate::limits::WRITE_MAX;
use crate::store::{Fate, Store};

/// Names taken from the directory at a time.
const BATCH: usize = 1024;
/// How often the thread looks what there is to do.
const TICK: Duration = Duration::from_millis(100);
/// Bytes read at a time.
const PIECE: u32 = 1 << 20;

/// Nobody is killed between opening and closing here but this process.
struct Alive;

impl Fate for Alive {
    fn is_killed(&self, _tid: u32) -> bool {
        false
    }
}

/// The sessions of a container.
pub(super) struct Container {
    store: Arc<Store<FileDevice>>,
    dir: Number,
    caller: Caller,
    /// Held by who makes a session until it has its content, and shared by who looks.
    making: RwLock<()>,
    ticker: Mutex<Option<Ticker>>,
}

impl Container {
    /// Opens a container for the sessions in one of its directories.
    pub fn open(path: &Path, dir: &Path) -> Result<Self> {
        let device = FileDevice::open(path, Access::ReadWrite)?;
        let cask = Arc::new(Cask::open(device, OpenOptions::default())?);
        let store = Store::with_fate(cask, Arc::new(SystemClock), Box::new(Alive))?;
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            tid: 0,
        };
        let dir = directory(&store, &caller, dir)?;
        let store = Arc::new(store);
        let ticker = Ticker::start(Arc::clone(&store));
        Ok(Self {
            store,
            dir,
            caller,
            making: RwLock::new(()),
            ticker: Mutex::new(Some(ticker.map_err(Error::io("starting a thread"))?)),
        })
    }

    /// Runs `act` again as long as files change between its steps.
    fn settled<T>(&self, mut act: impl FnMut() -> Result<T>) -> io::Result<T> {
        loop {
            match act() {
                Err(Error::Stale) => {}
                Err(Error::NoSpace | Error::NoFiles | Error::Quota)
                    if self.store.make_room().map_err(io_error)? => {}
                done => return done.map_err(io_error),
            }
        }
    }

    /// Saves a session that is there; answers whether it was.
    fn replace(&self, name: &[u8], content: &[u8]) -> io::Result<bool> {
        let flags = OpenFlags {
            write: true,
            truncate: true,
            ..OpenFlags::default()
        };
        self.settled(|| {
            let ino = match self.store.lookup(&self.caller, self.dir, name) {
                Ok(found) => found.attr.ino,
                Err(Error::NotFound) => return Ok(false),
                Err(error) => return Err(error),
            };
            let fh = self.store.open(&self.caller, ino, flags)?.fh;
            let written = self.write(ino, fh, content);
            self.store.release(ino, fh).and(written).map(|()| true)
        })
    }

    /// Makes a session, which nobody sees before it has its content; answers whether there was none.
    fn make(&self, name: &[u8], content: &[u8]) -> io::Result<bool> {
        let flags = OpenFlags {
            write: true,
            exclusive: true,
            ..OpenFlags::default()
        };
        let _making = self.making.write();
        self.settled(|| {
            let made = self
                .store
                .create(&self.caller, self.dir, name, 0o600, flags);
            let (ino, fh) = match made {
                Ok((found, opened)) => (found.attr.ino, opened.fh),
                Err(Error::Exists) => return Ok(false),
                Err(error) => return Err(error),
            };
            let written = self.write(ino, fh, content);
            let done = self.store.release(ino, fh).and(written);
            if done.is_err() {
                let _ = self.store.unlink(&self.caller, self.dir, name);
            }
            done.map(|()| true)
        })
    }

    fn write(&self, ino: Number, fh: u64, content: &[u8]) -> Result<()> {
        let mut at = 0;
        for piece in content.chunks(WRITE_MAX) {
            self.store.write(&self.caller, ino, fh, at, piece)?;
            at += piece.len() as u64;
        }
        self.store.flush(&self.caller, ino, fh)
    }

    fn read(&self, ino: Number, fh: u64) -> Result<Vec<u8>> {
        let (mut all, mut piece) = (Vec::new(), Vec::new());
        loop {
            self.store
                .read(ino, fh, all.len() as u64, PIECE, &mut piece)?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }
}

impl Place for Container {
    fn load(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        let flags = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        let _looking = self.making.read();
        self.settled(|| {
            let found = self.store.lookup(&self.caller, self.dir, name.as_bytes())?;
            let ino = found.attr.ino;
            let opened = self.store.open(&self.caller, ino, flags)?;
            let read = self.read(ino, opened.fh);
            self.store.release(ino, opened.fh).and(read)
        })
    }

    fn save(&self, name: &OsStr, content: &[u8]) -> io::Result<()> {
        let name = name.as_bytes();
        while !self.replace(name, content)? && !self.make(name, content)? {}
        Ok(())
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        self.settled(|| self.store.unlink(&self.caller, self.dir, name.as_bytes()))
    }

    fn touch(&self, name: &OsStr) -> io::Result<()> {
        let set = SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        self.settled(|| {
            let found = self.store.lookup(&self.caller, self.dir, name.as_bytes())?;
            self.store
                .setattr(&self.caller, found.attr.ino, None, &set)
                .map(drop)
        })
    }

    fn list(&self, visit: &mut dyn FnMut(Found<'_>) -> io::Result<bool>) -> io::Result<()> {
        let mut cookie = 0;
        loop {
            let mut batch = Vec::new();
            let mut last = None;
            let looking = self.making.read();
            self.store
                .readdir(self.dir, cookie, true, &mut |entry, found| {
                    if let Some(found) = found.filter(|f| f.attr.kind == FileKind::Regular) {
                        batch.push((entry.name.clone(), found.attr.size, found.attr.mtime));
                    }
                    last = Some(entry.cookie);
                    batch.len() < BATCH
                })
                .map_err(io_error)?;
            drop(looking);
            for (name, len, saved) in &batch {
                let saved = SystemTime::from(*saved);
                let (name, len) = (name.as_slice(), *len);
                if !visit(Found { name, len, saved })? {
                    return Ok(());
                }
            }
            match last {
                Some(last) => cookie = last,
                None => return Ok(()),
            }
        }
    }

    fn expire(&self, than: SystemTime, is_session: &dyn Fn(&[u8]) -> bool) -> io::Result<u64> {
        let mut removed = 0;
        let wanted = |name: &[u8]| is_session(name) || name.starts_with(STAGED);
        let mut tell = |name: &[u8]| removed += u64::from(is_session(name));
        self.store
            .expire(self.dir, than.into(), &wanted, &mut tell)
            .map_err(io_error)?;
        Ok(removed)
    }

    fn sync(&self) -> io::Result<()> {
        self.store.sync_all().map_err(io_error)
    }

    fn close(&self) -> io::Result<()> {
        match self.ticker.lock().take() {
            Some(ticker) => {
                drop(ticker);
                self.store.close().map_err(io_error)
            }
            None => Ok(()),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::warn!("a container of sessions was not closed in order: {error}");
        }
    }
}

/// The directory of this path, made if it is not there; it must be a store of values.
fn directory(store: &Store<FileDevice>, caller: &Caller, path: &Path) -> Result<Number> {
    let mut at = ROOT;
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name.as_bytes(),
            Component::RootDir | Component::CurDir => continue,
            _ => return Err(Error::invalid("the directory of sessions holds `..`")),
        };
        at = match store.lookup(caller, at, name) {
            Ok(found) if found.attr.kind == FileKind::Directory => found.attr.ino,
            Ok(_) => return Err(Error::NotDirectory),
            Err(Error::NotFound) => {
                let made = store.mkdir(caller, at, name, 0o700)?.attr.ino;
                store.setxattr(caller, made, b"user.cask.mode", b"value", false, false)?;
                made
            }
            Err(error) => return Err(error),
        };
    }
    let (mode, _) = store.get_setting(at, "mode")?;
    if mode == b"value" {
        Ok(at)
    } else {
        let path = path.display();
        Err(Error::invalid(format!(
            "{path} is no store of sessions; make it one with `caskfs set CONTAINER:/{path} mode=value`"
        )))
    }
}

/// The thread.
struct Ticker {
    ended: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(store: Arc<Store<FileDevice>>) -> io::Result<Self> {
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let end = Arc::clone(&ended);
        let thread = thread::Builder::new()
            .name("sessions".into())
            .spawn(move || {
                let (ended, changed) = &*end;
                let mut ended = ended.lock();
                while !*ended {
                    changed.wait_for(&mut ended, TICK);
                    // Whoever saves next is told that the cask stopped.
                    if !*ended && let Err(error) = store.tick() {
                        log::error!("a container of sessions: {error}");
                    }
                }
            })?;
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *self.ended.0.lock() = true;
        self.ended.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
