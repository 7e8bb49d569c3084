//! Sessions in a directory: of a mounted cask, or any other.
//!
//! Invariant: a session is replaced in one step. In a store of values the filesystem sees to that; elsewhere a
//! file under another name takes the place of the old one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::{Found, Place};
use crate::device;

/// What the name of a file begins with that will take the place of another.
pub(super) const STAGED: &[u8] = b".caskfs-session-";

/// A directory of sessions.
pub(super) struct Directory {
    path: PathBuf,
    /// The filesystem replaces files in one step when they are closed.
    replaces: bool,
    staged: AtomicU64,
}

impl Directory {
    /// A directory that is there.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if !fs::metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mut value = [0; 16];
        let mode = rustix::fs::getxattr(&path, "user.cask.mode", &mut value[..]);
        let replaces = mode.is_ok_and(|len| value.get(..len) == Some(b"value"));
        Ok(Self {
            path,
            replaces,
            staged: AtomicU64::new(0),
        })
    }

    /// Writes a file that is new, or one that is there.
    fn write(&self, path: &Path, new: bool, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(new)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(content)?;
        // It is saved now, or was not.
        device::close(file)
    }

    /// A name that nobody else uses.
    fn other_name(&self) -> OsString {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let mut name = STAGED.to_vec();
        name.extend(format!("{}-{number}", std::process::id()).bytes());
        OsString::from_vec(name)
    }

    /// Removes a file that was last saved at that time or before; answers whether it did.
    fn remove_older(&self, name: &OsStr, than: SystemTime) -> io::Result<bool> {
        let path = self.path.join(name);
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        };
        match fs::symlink_metadata(&path) {
            Ok(found) if found.modified()? <= than => {
                fs::remove_file(&path).map(|()| true).or_else(gone)
            }
            Ok(_) => Ok(false),
            Err(error) => gone(error),
        }
    }
}

impl Place for Directory {
    fn load(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn save(&self, name: &OsStr, content: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        if self.replaces {
            match self.write(&path, false, content) {
                // A new one would be seen without content until it is closed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        let staged = self.path.join(self.other_name());
        let saved = self
            .write(&staged, true, content)
            .and_then(|()| fs::rename(&staged, &path));
        if saved.is_err() {
            let _ = fs::remove_file(&staged);
        }
        saved
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn touch(&self, name: &OsStr) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_modified(SystemTime::now())
    }

    fn list(&self, visit: &mut dyn FnMut(Found<'_>) -> io::Result<bool>) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Removed since its name was read, or no file.
            let Some(found) = entry.metadata().ok().filter(fs::Metadata::is_file) else {
                continue;
            };
            let go_on = visit(Found {
                name: entry.file_name().as_bytes(),
                len: found.len(),
                saved: found.modified()?,
            })?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    fn expire(&self, than: SystemTime, is_session: &dyn Fn(&[u8]) -> bool) -> io::Result<u64> {
        let mut removed = 0;
        self.list(&mut |found| {
            let ours = is_session(found.name);
            if found.saved <= than && (ours || found.name.starts_with(STAGED)) {
                removed +=
                    u64::from(self.remove_older(OsStr::from_bytes(found.name), than)? && ours);
            }
            Ok(true)
        })?;
        Ok(removed)
    }

    fn sync(&self) -> io::Result<()> {
        let dir = File::open(&self.path)?;
        // A cask makes all durable with any directory; another filesystem has a call for it.
        match self.replaces {
            true => dir.sync_all(),
            false => Ok(rustix::fs::syncfs(&dir)?),
        }
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
