//! What a file means: settings, modes, the rename rule. The whole interface of a mounted cask, in
//! the project's own types.
//!
//! Every operation is one transaction of the cask, which serialises them; the tables in memory
//! (bindings of log names, absences) are changed inside transactions only, so they always agree with
//! the names and contents they speak of. Locks: what a log's handle has begun, then
//! [`binding::Binding::gate`], and a draft's lock are taken around a transaction, all others are leaves
//! taken within one.

mod absence;
mod ages;
mod arrivals;
mod assemble;
mod attrs;
mod binding;
mod cat;
mod course;
mod cut;
mod door;
mod due;
mod events;
mod expiry;
mod fate;
mod files;
mod handle;
mod lifetime;
mod log;
mod names;
mod pins;
mod quota;
pub mod record;
mod roll;
pub mod rotate;
pub mod settings;
mod sweep;
mod truncate;
mod value;
pub mod walk;
mod watchers;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::cask::{Cask, Guard, Lsn};
use crate::clock::{Clock, Timestamp};
use crate::device::Device;
use crate::error::Result;
use crate::format::key::Number;
use crate::fs::{Attr, Caller, Fs, Inode, namespace};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicI64};

use absence::Absences;
use ages::{Ages, Both};
use arrivals::Arrivals;
use binding::Bindings;
use cat::Tables;
use door::{Behind, not_behind, not_the_door};
use due::Counts;
use expiry::Expiry;
pub use fate::{Fate, ProcFate};
use handle::Handles;
use pins::Pins;
use quota::Quotas;
use settings::{Effective, Mode};
use sweep::Sweep;
use value::Pending;
use walk::Walk;
pub use watchers::WakeSink;
use watchers::Watchers;

/// A name found, and how long the kernel may believe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Attributes of the inode.
    pub attr: Attr,
    /// Whether name and attributes may be cached; never for files of a log store.
    pub cacheable: bool,
    /// How long the file is there if nobody touches it; `None` for ever.
    pub left: Option<Duration>,
}

/// An open file, and how the kernel shall treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// The page cache is bypassed (`FOPEN_DIRECT_IO`).
    pub direct_io: bool,
    /// Cached pages of an earlier open stay valid (`FOPEN_KEEP_CACHE`).
    pub keep_cache: bool,
    /// Closing owes nothing, so no flush need be sent (`FOPEN_NOFLUSH`).
    pub no_flush: bool,
}

/// Something the kernel must be told; delivered by a thread of its own, never with a lock held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Cached attributes and pages of the inode are out of date.
    InvalidateInode(Number),
    /// A cached name of this directory is out of date.
    InvalidateEntry(Number, Vec<u8>),
}

/// Takes notices; must not block.
pub type NoticeSink = Box<dyn Fn(Notice) + Send + Sync>;

/// A mounted cask.
pub struct Store<D: Device> {
    cask: Arc<Cask<D>>,
    fs: Fs<D>,
    walk: Arc<Walk>,
    quotas: Arc<Quotas>,
    handles: Handles,
    bindings: Bindings,
    absences: Absences,
    pending: Pending,
    pins: Pins,
    fate: Box<dyn Fate>,
    sink: RwLock<Option<NoticeSink>>,
    /// Names whose watchers are to be woken by the next tick.
    watchers: Watchers,
    /// Records in logs that are cut by their number.
    counts: Counts,
    /// Where the orders of arrival end.
    arrivals: Arrivals,
    /// Tables that were looked up behind a door.
    tables: Tables,
    /// It was said that a segment has no name.
    warned: AtomicBool,
    /// The hour in which the clock last cut logs.
    hour: AtomicI64,
    /// When the next segment expires.
    expiry: Expiry,
    /// Files by when their `ttl` is over.
    ages: Arc<Ages>,
    /// Where their removal is.
    sweep: Sweep,
}

impl<D: Device> Store<D> {
    /// A store over an open cask.
    ///
    /// # Errors
    /// Those of reading, and of removing what the last life left without a name.
    pub fn new(cask: Arc<Cask<D>>, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::with_fate(cask, clock, Box::new(ProcFate))
    }

    /// A store that asks `fate` whether the writer of a value was killed.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn with_fate(
        cask: Arc<Cask<D>>,
        clock: Arc<dyn Clock>,
        fate: Box<dyn Fate>,
    ) -> Result<Self> {
        let walk = Arc::new(Walk::default());
        let quotas = Arc::new(Quotas::new(Arc::clone(&walk)));
        let ages = Arc::new(Ages::new(Arc::clone(&walk)));
        let guards = Both(Arc::clone(&quotas), Arc::clone(&ages));
        cask.set_guard(Arc::new(guards) as Arc<dyn Guard<D>>);
        Ok(Self {
            fs: Fs::new(Arc::clone(&cask), clock)?,
            cask,
            walk,
            quotas,
            handles: Handles::default(),
            bindings: Bindings::default(),
            absences: Absences::default(),
            pending: Pending::default(),
            pins: Pins::default(),
            fate,
            sink: RwLock::new(None),
            watchers: Watchers::default(),
            counts: Counts::default(),
            arrivals: Arrivals::default(),
            tables: Tables::default(),
            warned: AtomicBool::new(false),
            hour: AtomicI64::new(i64::MIN),
            expiry: Expiry::default(),
            ages,
            sweep: Sweep::default(),
        })
    }

    /// Where notices go.
    pub fn set_notice_sink(&self, sink: NoticeSink) {
        *self.sink.write() = Some(sink);
    }

    /// Who wakes the watchers of a log.
    pub fn set_wake_sink(&self, sink: WakeSink) {
        self.watchers.set_sink(sink);
    }

    /// The cask below.
    pub fn cask(&self) -> &Arc<Cask<D>> {
        &self.cask
    }

    /// Commit timer, checkpoints, expiry; called by the owner's thread about ten times a second.
    ///
    /// # Errors
    /// Those of writing.
    pub fn tick(&self) -> Result<()> {
        let now = self.now();
        self.absences.expire(now);
        self.watchers.wake(|binding| {
            let (dir, name) = binding.name()?;
            let mut path = namespace::path_of(&*self.cask, dir).ok()??;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
            Some(path)
        });
        if self.cask.read_only().is_none() {
            self.cut_what_is_over(now);
            self.drop_what_expired(now);
            self.sweep(now);
        }
        self.cask.tick(now)
    }

    /// Ends service: everything committed, last checkpoint written.
    ///
    /// # Errors
    /// Those of writing.
    pub fn close(&self) -> Result<()> {
        self.cask.close()
    }

    fn now(&self) -> Timestamp {
        self.fs.now()
    }

    fn notify(&self, notice: Notice) {
        if let Some(sink) = &*self.sink.read() {
            sink(notice);
        }
    }

    /// What the kernel is told of an inode.
    fn entry(&self, inode: &Inode) -> Result<Entry> {
        let settings = match inode.is_file() {
            true => self.walk.of(&*self.cask, inode)?,
            false => Arc::default(),
        };
        let cacheable = match settings.mode {
            Mode::Plain => true,
            Mode::Log => false,
            Mode::Value => !self.fs.is_open(inode.number),
        };
        Ok(Entry {
            attr: self.fs.attr(inode)?,
            cacheable,
            left: self.life_left(inode, &settings),
        })
    }

    /// Waits until operation `lsn` is as safe as the settings promise.
    fn confirm(&self, settings: &Effective, lsn: Lsn, sync: bool) -> Result<()> {
        if sync || settings.sync {
            self.cask.sync(lsn)
        } else if settings.flush {
            self.cask.persist(lsn)
        } else {
            Ok(())
        }
    }

    /// As [`Store::confirm`], by the settings of a directory.
    fn confirm_in(&self, dir: Number, lsn: Lsn) -> Result<()> {
        self.confirm(&*self.walk.of_dir(&*self.cask, dir)?, lsn, false)
    }
}

/// Somebody without privileges, for changes of which the kernel does not say whose they are.
const NOBODY: Caller = Caller {
    uid: u32::MAX,
    gid: u32::MAX,
    tid: 0,
};
