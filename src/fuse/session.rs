//! The life of a mount: open the container, attach it, serve, and close it as it should be left.
//!
//! Invariants: what can be refused is refused before the container is opened; the mountpoint answers
//! when `ready` is called; and whatever ends the session, the mount is taken away and the last
//! checkpoint is tried, so that the next mount has nothing to replay.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::FlockOperation;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::dev::Connection;
use super::mounting::{self, Detach};
use super::mounts::{self, CaskMount};
use super::notifier::{Notices, Notifier};
use super::ops::{Durability, Ops};
use super::options::{Audience, Options};
use super::waker::{Helper, WakeUps, Waker};
use super::waking::MountPlace;
use crate::cask::{Cask, OpenOptions};
use crate::clock::SystemClock;
use crate::device::{Access, Device, FileDevice};
use crate::error::{Error, Result};
use crate::store::Store;

/// How often background duties are looked after.
const TICK: Duration = Duration::from_millis(100);
/// How long those who use the files have after a signal to end, before they are cut off.
const GRACE: Duration = Duration::from_secs(5);
/// Most threads taken by default; each further one only makes requests travel between CPUs.
const THREADS_MAX: usize = 8;

/// A container and the directory to mount it on, both by canonical path, found fit for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The container.
    pub container: PathBuf,
    /// The directory.
    pub mountpoint: PathBuf,
}

impl Target {
    /// Checks what was asked for, without touching anything.
    ///
    /// # Errors
    /// [`Error::Io`] for what is not there; [`Error::Invalid`] when one stands in the other's way;
    /// [`Error::Busy`] when this container is mounted there already.
    pub fn check(container: &Path, mountpoint: &Path) -> Result<Self> {
        let typed = container.display();
        let open = || Error::io(format!("cannot open {typed}"));
        let container = fs::canonicalize(container).map_err(open())?;
        let file = fs::metadata(&container).map_err(open())?;
        let mountpoint_typed = mountpoint.display();
        let mountpoint = resolve(mountpoint)
            .map_err(Error::io(format!("cannot mount on {mountpoint_typed}")))?;
        match fs::metadata(&mountpoint) {
            // What is there is a mount whose daemon was killed; it is replaced when the time comes.
            Err(error) if is_dead(&error) => {}
            Err(error) => {
                return Err(Error::io(format!("cannot mount on {mountpoint_typed}"))(
                    error,
                ));
            }
            Ok(place) if is_same(&file, &place) => {
                return Err(Error::invalid(format!(
                    "{typed} cannot be mounted on itself; name a directory as the mountpoint"
                )));
            }
            Ok(place) if !place.is_dir() => {
                return Err(Error::invalid(format!(
                    "the mountpoint {mountpoint_typed} is not a directory"
                )));
            }
            Ok(_) => {
                if mounts_now().is_some_and(|mounts| is_at(&mounts, &container, &mountpoint)) {
                    return Err(Error::Busy(format!(
                        "{typed} is mounted on {mountpoint_typed} already"
                    )));
                }
            }
        }
        if container.starts_with(&mountpoint) {
            return Err(Error::invalid(format!(
                "{typed} lies inside the mountpoint {mountpoint_typed} and would be hidden by it; \
                 mount it elsewhere"
            )));
        }
        Ok(Self {
            container,
            mountpoint,
        })
    }
}

/// Mounts and serves until the filesystem is unmounted or a signal ends it. `ready` is called once,
/// when the mountpoint answers; if it fails, nobody waits for the mount any more, and it is undone.
/// `helper` is how the process is started that wakes those who watch a log.
///
/// SIGTERM, SIGINT and SIGHUP unmount. Programs that still use files keep them for five seconds, or
/// until the next signal.
///
/// # Errors
/// Why it could not be mounted; or, at the end, why it could not be closed: the container is then as
/// after a crash, and the next mount recovers it. When this returns before the last user of a file has
/// gone, requests are still served until the process ends.
pub fn serve(
    target: &Target,
    options: &Options,
    helper: Helper,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<()> {
    let (events, happens) = channel();
    forward_signals(events.clone()).map_err(Error::io("cannot watch for signals"))?;
    let cask = open_container(&target.container, options.read_only).map_err(|error| {
        match (error, mounts_now()) {
            (Error::Busy(why), Some(mounts)) => Error::Busy(where_mounted(why, &mounts, target)),
            (error, _) => error,
        }
    })?;
    let mut options = options.clone();
    if let Some(why) = cask.read_only() {
        if !options.read_only {
            log::warn!("{}: read-only: {why}", target.container.display());
        }
        options.read_only = true;
    }
    let store = Arc::new(Store::new(Arc::new(cask), Arc::new(SystemClock))?);
    let served = serve_store(&store, target, &options, helper, ready, (events, &happens));
    let closed = store.close();
    served.and(closed)
}

/// Opens the container and recovers it: the one place where a mount does.
///
/// # Errors
/// Those of [`FileDevice::open`] and [`Cask::open`], naming the container.
pub fn open_container(path: &Path, read_only: bool) -> Result<Cask<FileDevice>> {
    let access = if read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    Cask::open(FileDevice::open(path, access)?, options).map_err(|error| match error {
        Error::Invalid(reason) => Error::Unusable {
            path: path.to_path_buf(),
            reason,
        },
        Error::Corrupt(corruption) => Error::Unusable {
            path: path.to_path_buf(),
            reason: format!("the container is damaged: {corruption}"),
        },
        error => error,
    })
}

/// Waits until no process holds the container any more, so that whoever comes next gets it. Ends also
/// when it is mounted, again or elsewhere.
///
/// # Errors
/// When the container cannot be opened, or the table of mounts cannot be read.
pub fn wait_until_released(container: &Path) -> Result<()> {
    let cannot = || Error::io(format!("cannot wait for {}", container.display()));
    let file = match File::open(container) {
        // Removed meanwhile, or a name that `fsname=` gave: nobody can come next.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(cannot())?,
    };
    let (released, wait) = channel::<()>();
    thread::Builder::new()
        .name("lock".into())
        .spawn(move || {
            let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            // Where the host has no locks there is nothing to wait for.
            drop((locked, file));
            let _ = released.send(());
        })
        .map_err(cannot())?;
    while wait.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let mounts = mounts::all().map_err(Error::io("cannot read the table of mounts"))?;
        if mounts.iter().any(|mount| mount.source == container) {
            break;
        }
    }
    Ok(())
}

/// The canonical form of a path whose last component may be a mount that nobody serves.
///
/// # Errors
/// As `realpath(3)`.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if is_dead(&error) => {
            let name = path.file_name().ok_or(error)?;
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => Path::new("/"),
            };
            Ok(fs::canonicalize(parent)?.join(name))
        }
        resolved => resolved,
    }
}

enum Event {
    /// Somebody wants the session to end.
    Signal(i32),
    /// The filesystem was unmounted, or the connection broke.
    Ended(io::Result<()>),
}

fn serve_store<D: Device + 'static>(
    store: &Arc<Store<D>>,
    target: &Target,
    options: &Options,
    helper: Helper,
    ready: impl FnOnce() -> io::Result<()>,
    (events, happens): (Sender<Event>, &Receiver<Event>),
) -> Result<()> {
    let notices = Arc::new(Notices::default());
    let sink = Arc::clone(&notices);
    store.set_notice_sink(Box::new(move |notice| sink.leave(notice)));
    let durability = Durability {
        writes: options.sync,
        names: options.dir_sync,
    };
    let wake_ups = Arc::new(WakeUps::default());
    let asked = Arc::clone(&wake_ups);
    store.set_wake_sink(Box::new(move |path| asked.ask(path)));
    let ops = Ops::new(Arc::clone(store), durability, Arc::clone(&wake_ups));
    let audience = options.audience.unwrap_or(if mounting::is_root() {
        Audience::All
    } else {
        Audience::Owner
    });
    let threads = options.threads.unwrap_or_else(|| {
        thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, THREADS_MAX))
    });

    replace_dead(&target.mountpoint);
    let shown = options
        .source
        .as_ref()
        .map_or(&*target.container, Path::new);
    let connection = mounting::attach(shown, &target.mountpoint, options, audience)?;
    let mut mount = Attached::new(&target.mountpoint);
    let start = || Error::io("cannot start serving");
    let connection = Connection::greet(ops, connection, audience, threads).map_err(start())?;
    let _notifier = Notifier::start(notices, connection.kernel()).map_err(start())?;
    let _ticker = Ticker::start(Arc::clone(store)).map_err(start())?;
    let server = thread::Builder::new()
        .name("server".into())
        .spawn(move || {
            let ended = connection.serve();
            let _ = events.send(Event::Ended(ended));
        })
        .map_err(start())?;

    let silent = || Error::io("the mount does not answer");
    fs::metadata(&target.mountpoint).map_err(silent())?;
    let place = MountPlace::seen_at(&target.mountpoint).map_err(silent())?;
    let mut waker = Waker::start(wake_ups, place, helper).map_err(start())?;
    log::info!(
        "{} is mounted on {}",
        target.container.display(),
        target.mountpoint.display()
    );
    ready().map_err(Error::io("nobody waits for the mount any more"))?;

    if let Some(ended) = wait(&mount, happens, &mut waker) {
        mount.gone = true;
        // Its event was its last word.
        let _ = server.join();
        ended.map_err(Error::io("the connection to the kernel broke"))?;
    }
    log::info!("{} is unmounted", target.container.display());
    store
        .cask()
        .failure()
        .map_or(Ok(()), |why| Err(Error::Failed(why.to_owned())))
}

/// Waits for the end of the session. `None` when programs still use files and are to be cut off.
fn wait(
    mount: &Attached<'_>,
    happens: &Receiver<Event>,
    waker: &mut Waker,
) -> Option<io::Result<()>> {
    match happens.recv() {
        Ok(Event::Ended(ended)) => return Some(ended),
        Ok(Event::Signal(signal)) => log::info!("signal {signal}: unmounting"),
        // Both senders live as long as this thread waits.
        Err(_) => return None,
    }
    // While requests are answered, and so that it is not what keeps the mount busy.
    waker.end();
    match mounting::detach(mount.mountpoint, Detach::WhenIdle) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            log::warn!(
                "{} is in use; programs that have files open there lose them in {} seconds",
                mount.mountpoint.display(),
                GRACE.as_secs()
            );
            mount.take_away();
        }
        Err(error) => log::warn!("cannot unmount {}: {error}", mount.mountpoint.display()),
        Ok(()) => {}
    }
    match happens.recv_timeout(GRACE) {
        Ok(Event::Ended(ended)) => Some(ended),
        Ok(Event::Signal(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            None
        }
    }
}

/// A mount that is taken away when its session ends some other way than by unmounting.
struct Attached<'a> {
    mountpoint: &'a Path,
    /// It was unmounted; what is at the mountpoint now is somebody else's.
    gone: bool,
    id: Option<u64>,
}

impl<'a> Attached<'a> {
    fn new(mountpoint: &'a Path) -> Self {
        let id = mounts_now()
            .and_then(|mounts| mounts::at(&mounts, mountpoint))
            .map(|mount| mount.id);
        Self {
            mountpoint,
            gone: false,
            id,
        }
    }

    /// Takes it from the tree, if it is what is seen there.
    fn take_away(&self) {
        let there = mounts_now().and_then(|mounts| mounts::at(&mounts, self.mountpoint));
        if there.is_some_and(|mount| Some(mount.id) == self.id)
            && let Err(error) = mounting::detach(self.mountpoint, Detach::Lazy)
        {
            log::warn!("cannot unmount {}: {error}", self.mountpoint.display());
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if !self.gone {
            self.take_away();
        }
    }
}

/// The thread that looks after background duties.
struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start<D: Device + 'static>(store: Arc<Store<D>>) -> io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let thread = thread::Builder::new()
            .name("ticker".into())
            .spawn(move || {
                let mut said = None;
                while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    match catch_unwind(AssertUnwindSafe(|| store.tick())) {
                        Ok(Ok(())) => said = None,
                        Ok(Err(error)) => {
                            let error = error.to_string();
                            if said.as_ref() != Some(&error) {
                                log::error!("background duties: {error}");
                                said = Some(error);
                            }
                        }
                        Err(_) => store.cask().fail("a panic in the background duties"),
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Signals become events, from before the container is opened until the process ends.
fn forward_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map(drop)
}

/// Takes a cask away whose daemon was killed, so that a mount after a crash needs no hand.
fn replace_dead(mountpoint: &Path) {
    while fs::metadata(mountpoint).is_err_and(|error| is_dead(&error))
        && mounts_now().is_some_and(|mounts| mounts::at(&mounts, mountpoint).is_some())
    {
        log::warn!(
            "{}: the daemon of an earlier mount was killed; it is replaced",
            mountpoint.display()
        );
        if let Err(error) = mounting::detach(mountpoint, Detach::Lazy) {
            log::warn!("cannot unmount {}: {error}", mountpoint.display());
            return;
        }
    }
}

/// What the kernel says of a mount that nobody serves any more.
fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The table of mounts; `None`, which only makes sentences less exact, where /proc is not there.
fn mounts_now() -> Option<Vec<CaskMount>> {
    mounts::all().ok()
}

fn is_at(mounts: &[CaskMount], container: &Path, mountpoint: &Path) -> bool {
    mounts::at(mounts, mountpoint).is_some_and(|mount| mount.source == container)
}

/// Says where a busy container is mounted.
fn where_mounted(why: String, mounts: &[CaskMount], target: &Target) -> String {
    match mounts::of(mounts, &target.container) {
        Some(mount) => format!(
            "{} is mounted on {} already ({why})",
            target.container.display(),
            mount.mountpoint.display()
        ),
        None => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(container: &Path, mountpoint: &Path) -> String {
        Target::check(container, mountpoint)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_container_and_its_mountpoint_do_not_stand_in_each_others_way() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        let place = dir.path().join("place");
        fs::create_dir(&inner).unwrap();
        fs::create_dir(&place).unwrap();
        let container = inner.join("a.cask");
        fs::write(&container, "").unwrap();

        let target = Target::check(&container, &place).unwrap();
        assert_eq!(target.mountpoint, fs::canonicalize(&place).unwrap());
        for hiding in [&inner, &dir.path().to_path_buf()] {
            let sentence = sentence(&container, hiding);
            assert!(sentence.contains("would be hidden"), "{sentence}");
        }
        assert!(sentence(&container, &container).contains("on itself"));
        let missing = sentence(&container, &dir.path().join("nowhere"));
        assert!(missing.contains("nowhere"), "{missing}");
        let missing = sentence(&dir.path().join("none.cask"), &place);
        assert!(missing.contains("none.cask"), "{missing}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(sentence(&container, &file).contains("not a directory"));
    }

    #[test]
    fn what_is_no_cask_is_not_opened_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("foreign");
        fs::write(&path, "precious".repeat(10_000)).unwrap();
        for read_only in [true, false] {
            let error = open_container(&path, read_only).err().unwrap();
            assert!(error.to_string().contains("foreign"), "{error}");
        }
        assert_eq!(
            fs::read(&path).unwrap(),
            "precious".repeat(10_000).as_bytes()
        );
    }
}
