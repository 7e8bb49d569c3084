//! How a cask is read for a check: its container, or, beside a mount, an image that the daemon holds.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::exit::{CliError, shown};
use super::peek;
use super::target::{Target, mount_of};
use crate::device::file::{Access, FileDevice};
use crate::error::{Error, Result as CaskResult};
use crate::fsck::{Report, Severity};
use crate::fuse::mounts::CaskMount;

/// The image of a mounted cask, below its mountpoint.
const IMAGE: &str = ".cask/snapshot";

/// A cask to be checked.
pub struct Checked {
    /// The container, as it was typed.
    pub container: PathBuf,
    /// Where it is mounted, if it is in use.
    pub mount: Option<CaskMount>,
}

impl Checked {
    /// The cask that is meant by `typed`: a container, or a path in a mounted cask.
    ///
    /// # Errors
    /// What is in use by others than a mount, and what cannot be opened, says so.
    pub fn find(typed: &OsStr, access: Access) -> Result<(Self, Option<FileDevice>), CliError> {
        let (container, mount) = match Target::parse(typed) {
            // A container may itself lie in a mounted cask.
            Target::Mounted { .. } if is_container(Path::new(typed)) => (typed.into(), None),
            Target::Mounted { mount, .. } => (mount.source.clone(), Some(mount)),
            Target::Container { container, .. } => (container, None),
            Target::Host(path) => (path, None),
        };
        match FileDevice::open(&container, access) {
            Ok(device) => {
                let mount = None;
                Ok((Self { container, mount }, Some(device)))
            }
            // In use, or for others to open: what is mounted can be read through its mount.
            Err(error) => match mount.or_else(|| mounted(&container)) {
                Some(mount) => {
                    let mount = Some(mount);
                    Ok((Self { container, mount }, None))
                }
                None => Err(CliError::at(shown(&container), &error)),
            },
        }
    }

    /// Opens what is to be read: beside a mount a fresh image, which holds all that was done so far.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(&self) -> Result<FileDevice, CliError> {
        let path = match &self.mount {
            Some(mount) => mount.mountpoint.join(IMAGE),
            None => self.container.clone(),
        };
        FileDevice::open(&path, Access::ReadOnly)
            .map_err(|error| CliError::at(shown(&path), &error))
    }
}

/// A cask that is so badly damaged that it cannot be opened: that is what its check finds.
///
/// # Errors
/// Whatever else kept it from being opened.
pub fn unopened(error: Error, report: &mut Report) -> CaskResult<()> {
    let (what, offset) = match error {
        Error::Corrupt(corruption) => (corruption.what, corruption.offset),
        Error::Invalid(what) if what.contains("cut off") => (what, 0),
        error => return Err(error),
    };
    let sentence = format!("the cask cannot be opened: {what}");
    report.add(Severity::Error, "open", Some(offset), sentence);
    Ok(())
}

fn is_container(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut head));
    path.is_file() && read.is_ok() && peek::is_cask(&head)
}

fn mounted(container: &Path) -> Option<CaskMount> {
    mount_of(&container.canonicalize().ok()?)
}
