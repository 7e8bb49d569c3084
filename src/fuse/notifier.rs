//! Telling the kernel that something it caches has changed.
//!
//! From a thread of its own: a notification can wait for a lock that a request holds, so it is never
//! sent from inside a request, nor with any lock of ours held.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::store::{Notice, NoticeSink};

/// Notices that wait at most; beyond it they are dropped, since what they announce also expires by
/// itself.
const QUEUE: usize = 4096;

/// The kernel's side of a mount.
pub trait Kernel: Send {
    /// Cached attributes and pages of an inode are out of date.
    ///
    /// # Errors
    /// What the kernel says.
    fn invalidate_inode(&self, ino: u64) -> io::Result<()>;
    /// A cached name is out of date.
    ///
    /// # Errors
    /// What the kernel says.
    fn invalidate_entry(&self, dir: u64, name: &[u8]) -> io::Result<()>;
}

/// A sink for notices, and the thread that delivers them until the sink is dropped.
///
/// # Errors
/// When no thread can be started.
pub fn start(kernel: Box<dyn Kernel>) -> Result<(NoticeSink, JoinHandle<()>)> {
    let (sender, receiver): (SyncSender<Notice>, Receiver<Notice>) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("notifier".to_owned())
        .spawn(move || {
            while let Ok(notice) = receiver.recv() {
                let told = match &notice {
                    Notice::InvalidateInode(ino) => kernel.invalidate_inode(*ino),
                    Notice::InvalidateEntry(dir, name) => kernel.invalidate_entry(*dir, name),
                    Notice::Touched(..) => Ok(()),
                };
                if let Err(error) = told {
                    log::debug!("{notice:?}: {error}");
                }
            }
        })
        .map_err(Error::io("starting the notifier"))?;
    let sink = move |notice| {
        if sender.try_send(notice).is_err() {
            log::debug!("a notice to the kernel was dropped");
        }
    };
    Ok((Box::new(sink), thread))
}
