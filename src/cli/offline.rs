//! A cask in a container that nobody else uses, opened in this process.
//!
//! Invariant: for [`Need::Read`] the container is opened read-only and not changed by a byte; for
//! [`Need::Write`] it is held exclusively until [`Access::close`] has written a checkpoint. Whoever
//! can write the container can do all in it: the permissions in the cask bind those who come
//! through a mount.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::access::{Access, CHUNK, Facts, ImageSink, Links, Need, Sink, Source};
use super::exit::{CliError, shown};
use super::peek;
use crate::cask::{Cask, ImageRead, OpenOptions};
use crate::clock::SystemClock;
use crate::device::file::{Access as Opening, FileDevice};
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::{Number, ROOT};
use crate::fs::{Attr, Caller, OpenFlags, RenameFlags, SetAttr, StatFs};
use crate::store::Store;

/// Most symbolic links on the way to one file, as Linux has it.
const LINKS_MAX: u32 = 40;
/// Names taken from a directory at a time.
const LIST_BATCH: usize = 1024;

/// An open container.
pub struct Offline {
    store: Store<FileDevice>,
    container: PathBuf,
    caller: Caller,
    need: Need,
}

impl Offline {
    /// Opens the container.
    ///
    /// # Errors
    /// One for which [`CliError::is_busy`] holds when somebody else uses it.
    pub fn open(container: &Path, need: Need) -> Result<Self, CliError> {
        let at = |error: Error| CliError::at(shown(container), &error);
        let opening = match need {
            Need::Read => Opening::ReadOnly,
            Need::Write => Opening::ReadWrite,
        };
        let device = FileDevice::open(container, opening).map_err(at)?;
        Self::over(device, container, need).map_err(at)
    }

    /// The cask on a device that is locked already.
    pub fn over(device: FileDevice, container: &Path, need: Need) -> Result<Self> {
        let options = OpenOptions {
            read_only: need == Need::Read,
            ..OpenOptions::default()
        };
        let cask = Arc::new(Cask::open(device, options)?);
        Ok(Self {
            store: Store::new(cask, Arc::new(SystemClock))?,
            container: container.to_path_buf(),
            caller: Caller {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                tid: 0,
            },
            need,
        })
    }

    /// Runs `body` and names `path` in its failure.
    fn on<T>(&self, path: &Path, body: impl FnOnce() -> Result<T>) -> Result<T, CliError> {
        body().map_err(|error| CliError::at(self.shown(path), &error))
    }

    /// The inode of a path.
    fn find(&self, path: &Path, links: Links) -> Result<Number> {
        let mut trail = vec![ROOT];
        let mut pending = names(path);
        let mut followed = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                // The root is its own parent.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let dir = trail.last().copied().unwrap_or(ROOT);
            let attr = self.store.lookup(&self.caller, dir, name.as_bytes())?.attr;
            if attr.kind != FileKind::Symlink || (pending.is_empty() && links == Links::Keep) {
                trail.push(attr.ino);
                continue;
            }
            followed += 1;
            if followed > LINKS_MAX {
                return Err(Error::Io {
                    what: "following symbolic links".into(),
                    source: std::io::Error::from_raw_os_error(libc::ELOOP),
                });
            }
            let target = PathBuf::from(OsString::from_vec(self.store.readlink(attr.ino)?));
            if target.is_absolute() {
                return Err(Error::invalid(format!(
                    "a symbolic link leads out of the cask, to {}; mount the cask to follow it",
                    shown(&target)
                )));
            }
            pending.extend(names(&target));
        }
        Ok(trail.last().copied().unwrap_or(ROOT))
    }

    /// The directory a path stands in, and its name there.
    fn place<'a>(&self, path: &'a Path) -> Result<(Number, &'a [u8])> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::invalid("the root of the cask is always there"))?;
        let dir = self.find(path.parent().unwrap_or(Path::new("/")), Links::Follow)?;
        Ok((dir, name.as_bytes()))
    }

    fn set(&self, path: &Path, set: &SetAttr) -> Result<(), CliError> {
        self.on(path, || {
            let number = self.find(path, Links::Keep)?;
            self.store
                .setattr(&self.caller, number, None, set)
                .map(drop)
        })
    }

    fn list_number(&self, dir: Number) -> Result<Vec<(OsString, Attr)>> {
        let mut all = Vec::new();
        let mut cookie = 0;
        loop {
            let before = cookie;
            let mut batch = Vec::new();
            self.store.readdir(dir, cookie, true, &mut |entry, found| {
                if batch.len() == LIST_BATCH {
                    return false;
                }
                batch.push((entry.name.clone(), entry.ino, found.map(|found| found.attr)));
                cookie = entry.cookie;
                true
            })?;
            for (name, number, attr) in batch {
                if matches!(name.as_slice(), b"." | b"..") {
                    continue;
                }
                let attr = match attr {
                    Some(attr) => attr,
                    None => self.store.getattr(number, None)?.attr,
                };
                all.push((OsString::from_vec(name), attr));
            }
            if cookie == before {
                all.sort_by(|a, b| a.0.cmp(&b.0));
                return Ok(all);
            }
        }
    }
}

/// The components of a path, last first.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

impl Access for Offline {
    fn shown(&self, path: &Path) -> String {
        format!("{}:{}", shown(&self.container), shown(path))
    }

    fn mountpoint(&self) -> Option<&Path> {
        None
    }

    fn facts(&self) -> Result<Facts, CliError> {
        let superblock = peek::superblock(&self.container)
            .map_err(|error| CliError::at(shown(&self.container), &error))?;
        let stats = self.store.cask().stats();
        Ok(Facts {
            // What the log says of it may be newer than the superblock.
            label: stats.label,
            ..Facts::of(&superblock)
        })
    }

    fn space(&self) -> Result<StatFs, CliError> {
        self.on(Path::new("/"), || self.store.statfs())
    }

    fn stat(&self, path: &Path, links: Links) -> Result<Attr, CliError> {
        self.on(path, || {
            let number = self.find(path, links)?;
            Ok(self.store.getattr(number, None)?.attr)
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<(OsString, Attr)>, CliError> {
        self.on(dir, || self.list_number(self.find(dir, Links::Follow)?))
    }

    fn read(&self, path: &Path, sink: Sink<'_>) -> Result<(), CliError> {
        let flags = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        let (number, fh) = self.on(path, || {
            let number = self.find(path, Links::Follow)?;
            Ok((number, self.store.open(&self.caller, number, flags)?.fh))
        })?;
        let mut buf = Vec::new();
        let mut offset = 0;
        let mut copy = || loop {
            self.on(path, || {
                self.store.read(number, fh, offset, CHUNK as u32, &mut buf)
            })?;
            if buf.is_empty() {
                return Ok(());
            }
            sink(&buf)?;
            offset += buf.len() as u64;
        };
        let copied = copy();
        let released = self.on(path, || self.store.release(number, fh));
        copied.and(released)
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, CliError> {
        self.on(path, || {
            let target = self.store.readlink(self.find(path, Links::Keep)?)?;
            Ok(PathBuf::from(OsString::from_vec(target)))
        })
    }

    fn write_new(&self, path: &Path, perm: u32, source: Source<'_>) -> Result<(), CliError> {
        let flags = OpenFlags {
            write: true,
            exclusive: true,
            ..OpenFlags::default()
        };
        let (number, fh) = self.on(path, || {
            let (dir, name) = self.place(path)?;
            let (entry, opened) = self.store.create(&self.caller, dir, name, perm, flags)?;
            Ok((entry.attr.ino, opened.fh))
        })?;
        let mut offset = 0;
        let filled = source(&mut |data| {
            self.on(path, || {
                self.store.write(&self.caller, number, fh, offset, data)?;
                // The owner of a store lends it the time for checkpoints.
                self.store.tick()
            })?;
            offset += data.len() as u64;
            Ok(())
        });
        let flushed = self.on(path, || self.store.flush(&self.caller, number, fh));
        let released = self.on(path, || self.store.release(number, fh));
        filled.and(flushed).and(released)
    }

    fn append(&self, path: &Path, perm: u32, data: &[u8]) -> Result<(), CliError> {
        let flags = OpenFlags {
            write: true,
            append: true,
            ..OpenFlags::default()
        };
        self.on(path, || {
            let (number, fh) = match self.find(path, Links::Follow) {
                Ok(number) => (number, self.store.open(&self.caller, number, flags)?.fh),
                Err(Error::NotFound) => {
                    let (dir, name) = self.place(path)?;
                    let (entry, opened) =
                        self.store.create(&self.caller, dir, name, perm, flags)?;
                    (entry.attr.ino, opened.fh)
                }
                Err(error) => return Err(error),
            };
            let size = self.store.getattr(number, Some(fh))?.attr.size;
            let written = self.store.write(&self.caller, number, fh, size, data);
            let flushed = self.store.flush(&self.caller, number, fh);
            written
                .map(drop)
                .and(flushed)
                .and(self.store.release(number, fh))
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CliError> {
        self.on(to, || {
            let (dir, name) = self.place(from)?;
            let (new_dir, new_name) = self.place(to)?;
            let flags = RenameFlags::default();
            self.store
                .rename(&self.caller, dir, name, new_dir, new_name, flags)
        })
    }

    fn rotate(&self, path: &Path) -> Result<(), CliError> {
        self.on(path, || {
            let (dir, name) = self.place(path)?;
            self.store.rotate(&self.caller, dir, name)
        })
    }

    fn set_perm(&self, path: &Path, perm: u32) -> Result<(), CliError> {
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        self.set(path, &set)
    }

    fn set_owner(&self, path: &Path, uid: u32, gid: u32) -> Result<(), CliError> {
        let set = SetAttr {
            uid: Some(uid),
            gid: Some(gid),
            ..SetAttr::default()
        };
        self.set(path, &set)
    }

    fn make_directory(&self, path: &Path, perm: u32) -> Result<(), CliError> {
        self.on(path, || {
            let (dir, name) = self.place(path)?;
            self.store.mkdir(&self.caller, dir, name, perm).map(drop)
        })
    }

    fn make_link(&self, path: &Path, target: &Path) -> Result<(), CliError> {
        self.on(path, || {
            let (dir, name) = self.place(path)?;
            let target = target.as_os_str().as_bytes();
            self.store
                .symlink(&self.caller, dir, name, target)
                .map(drop)
        })
    }

    fn remove(&self, path: &Path) -> Result<(), CliError> {
        self.on(path, || {
            let (dir, name) = self.place(path)?;
            self.store.unlink(&self.caller, dir, name)
        })
    }

    fn remove_directory(&self, path: &Path) -> Result<(), CliError> {
        self.on(path, || {
            let (dir, name) = self.place(path)?;
            self.store.rmdir(&self.caller, dir, name)
        })
    }

    fn attributes(&self, path: &Path) -> Result<Vec<OsString>, CliError> {
        self.on(path, || {
            let names = self.store.listxattr(self.find(path, Links::Follow)?)?;
            Ok(names.into_iter().map(OsString::from_vec).collect())
        })
    }

    fn attribute(&self, path: &Path, name: &str) -> Result<Option<Vec<u8>>, CliError> {
        self.on(path, || {
            let number = self.find(path, Links::Follow)?;
            match self.store.getxattr(number, name.as_bytes()) {
                Err(Error::NoAttribute) => Ok(None),
                other => other.map(Some),
            }
        })
    }

    fn set_attribute(&self, path: &Path, name: &str, value: &[u8]) -> Result<(), CliError> {
        self.on(path, || {
            let number = self.find(path, Links::Follow)?;
            let name = OsStr::new(name).as_bytes();
            self.store
                .setxattr(&self.caller, number, name, value, false, false)
        })
    }

    fn remove_attribute(&self, path: &Path, name: &str) -> Result<(), CliError> {
        self.on(path, || {
            let number = self.find(path, Links::Follow)?;
            match self
                .store
                .removexattr(&self.caller, number, name.as_bytes())
            {
                Err(Error::NoAttribute) => Ok(()),
                other => other,
            }
        })
    }

    fn image(&self, sink: ImageSink<'_>) -> Result<u64, CliError> {
        let root = Path::new("/");
        let image = self.on(root, || self.store.cask().image())?;
        let total = image.bytes();
        let mut buf = vec![0; CHUNK];
        let mut at = 0;
        while let Some(start) = image.seek(at, true) {
            let end = image.seek(start, false).unwrap_or(total);
            at = start;
            while at < end {
                let len = (end - at).min(CHUNK as u64) as usize;
                let piece = buf.get_mut(..len).unwrap_or_default();
                self.on(root, || image.read_at(at, piece))?;
                sink(total, at, piece)?;
                at += len as u64;
            }
        }
        Ok(total)
    }

    fn close(&self) -> Result<(), CliError> {
        match self.need {
            Need::Read => Ok(()),
            Need::Write => self
                .store
                .close()
                .map_err(|error| CliError::at(shown(&self.container), &error)),
        }
    }
}
