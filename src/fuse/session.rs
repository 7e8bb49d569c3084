//! The life of a mount: open, mount, serve, close.
//!
//! Invariant: when [`Mount::serve`] has returned, the last checkpoint is written and the container's
//! lock is free, or the error says why not.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::dev::Mounted;
use super::notifier;
use super::ops::Ops;
use super::options::MountOptions;
use crate::cask::{Cask, OpenOptions};
use crate::clock::SystemClock;
use crate::device::{Access, FileDevice};
use crate::error::{Error, Result};
use crate::store::Store;

/// Time between two rounds of background duty.
const TICK: Duration = Duration::from_millis(100);

/// A mounted cask that is not being served yet.
pub struct Mount {
    store: Arc<Store<FileDevice>>,
    mounted: Mounted<FileDevice>,
}

/// Opens a container file for use in this process.
///
/// # Errors
/// [`Error::Busy`] when another process has it open; [`Error::Unusable`] naming what is wrong.
pub fn open_container(path: &Path, read_only: bool) -> Result<Cask<FileDevice>> {
    let access = if read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let device = FileDevice::open(path, access)?;
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    Cask::open(device, options).map_err(|error| match error {
        Error::Invalid(reason) => Error::Unusable {
            path: path.to_owned(),
            reason,
        },
        Error::Corrupt(what) => Error::Unusable {
            path: path.to_owned(),
            reason: format!("damaged: {what}; run caskfs fsck"),
        },
        other => other,
    })
}

/// Checks a mountpoint before anything is touched.
fn check_target(source: &Path, target: &Path) -> Result<(PathBuf, PathBuf)> {
    let named = |path: &Path, what: &str| Error::io(format!("{what} {}", path.display()));
    let source = source
        .canonicalize()
        .map_err(named(source, "the container"))?;
    let real = target
        .canonicalize()
        .map_err(named(target, "the mountpoint"))?;
    let unusable = |reason: &str| Error::Unusable {
        path: target.to_owned(),
        reason: reason.to_owned(),
    };
    let about = real.metadata().map_err(named(target, "the mountpoint"))?;
    if !about.is_dir() {
        return Err(unusable("the mountpoint is not a directory"));
    }
    if source.starts_with(&real) {
        return Err(unusable(
            "the container is inside this mountpoint and would be hidden; mount it elsewhere",
        ));
    }
    let parent = real.parent().and_then(|parent| parent.metadata().ok());
    if about.ino() == 1 && parent.is_some_and(|parent| parent.dev() != about.dev()) {
        return Err(Error::Busy(format!(
            "{}: something is mounted there already; unmount it first",
            target.display()
        )));
    }
    Ok((source, real))
}

impl Mount {
    /// Opens the container and mounts it. The mount answers from [`Mount::serve`] on.
    ///
    /// # Errors
    /// What keeps it from being opened or mounted.
    pub fn new(source: &Path, target: &Path, options: &MountOptions) -> Result<Self> {
        let (source, target) = check_target(source, target)?;
        let cask = open_container(&source, options.read_only)?;
        let mut options = options.clone();
        if let Some(why) = cask.read_only().filter(|why| !why.is_empty()) {
            log::error!("{}: mounted read-only: {why}", source.display());
            options.read_only = true;
        }
        let store = Arc::new(Store::new(Arc::new(cask), Arc::new(SystemClock))?);
        let mounted = Mounted::new(Ops::new(Arc::clone(&store)), &source, &target, &options)?;
        Ok(Self { store, mounted })
    }

    /// Serves until the filesystem is unmounted, then closes the container.
    ///
    /// # Errors
    /// Those of the device, and of the last checkpoint.
    pub fn serve(mut self) -> Result<()> {
        let (sink, notifier) = notifier::start(self.mounted.kernel())?;
        self.store.set_notice_sink(sink);
        let done = Arc::new(AtomicBool::new(false));
        let ticker = start_ticker(Arc::clone(&self.store), Arc::clone(&done))?;
        let mut signals =
            Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::io("waiting for signals"))?;
        let handle = signals.handle();
        let mut unmount = self.mounted.unmounter();
        let store = Arc::clone(&self.store);
        let watcher = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    // What was returned is made durable first: whoever sent the signal may lose
                    // patience with the rest.
                    if let Err(error) = store.cask().sync(store.cask().lsn()) {
                        log::error!("signal {signal}: {error}");
                    }
                    if let Err(error) = unmount() {
                        log::error!(
                            "signal {signal}: cannot unmount: {error}; close what uses the mount"
                        );
                    }
                }
            })
            .map_err(Error::io("starting the signal thread"))?;

        let served = self.mounted.run();
        handle.close();
        let _joined = watcher.join();
        done.store(true, Ordering::Release);
        ticker.thread().unpark();
        let _joined = ticker.join();
        self.store.set_notice_sink(Box::new(|_| ()));
        let _joined = notifier.join();
        let closed = self.store.close();
        served.and(closed)
    }
}

fn start_ticker(
    store: Arc<Store<FileDevice>>,
    done: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name("ticker".to_owned())
        .spawn(move || {
            let ops = Ops::new(store);
            while !done.load(Ordering::Acquire) {
                // An error is in the log already, and stays: the cask has stopped.
                let _answer = ops.run("background duty", Store::tick);
                std::thread::park_timeout(TICK);
            }
        })
        .map_err(Error::io("starting the background thread"))
}
