//! A mounted cask, used through its mount by ordinary system calls.
//!
//! The mount holds the container's lock, so this is the only way in. Invariant: nothing here opens
//! the container, but for its superblock, which is read without a lock. The permissions that count
//! are those of any program on that mount.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::access::{Access, CHUNK, Facts, ImageSink, Links, Sink, Source, pump};
use super::exit::{CliError, shown};
use super::peek;
use super::setting;
use crate::clock::Timestamp;
use crate::format::FileKind;
use crate::fs::{Attr, StatFs};
use crate::fuse::mounts::CaskMount;
use crate::limits::XATTR_SIZE_MAX;
use crate::store::rotate::no_log;

/// A cask behind a mount.
pub struct Live {
    mountpoint: PathBuf,
    container: PathBuf,
}

impl Live {
    /// The cask of `container` that is mounted on `mountpoint`.
    pub fn new(mountpoint: PathBuf, container: PathBuf) -> Self {
        Self {
            mountpoint,
            container,
        }
    }

    /// The cask of this mount.
    pub fn of(mount: CaskMount) -> Self {
        Self::new(mount.mountpoint, mount.source)
    }

    /// Where a path in the cask is found from outside.
    fn real(&self, path: &Path) -> PathBuf {
        let inner = path.strip_prefix("/").unwrap_or(path);
        if inner.as_os_str().is_empty() {
            self.mountpoint.clone()
        } else {
            self.mountpoint.join(inner)
        }
    }

    /// Runs `body` on the real path and names it in a failure.
    fn on<T>(&self, path: &Path, body: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, CliError> {
        let real = self.real(path);
        body(&real).map_err(|error| CliError::io(shown(&real), &error))
    }
}

impl Access for Live {
    fn shown(&self, path: &Path) -> String {
        shown(self.real(path))
    }

    fn mountpoint(&self) -> Option<&Path> {
        Some(&self.mountpoint)
    }

    fn facts(&self) -> Result<Facts, CliError> {
        let source = &self.container;
        let superblock =
            peek::superblock(source).map_err(|error| CliError::at(shown(source), &error))?;
        let root = Path::new("/");
        let label = self.attribute(root, &setting::attribute(setting::LABEL))?;
        Ok(Facts {
            // The superblock has the one of the last checkpoint.
            label: label.unwrap_or_default(),
            ..Facts::of(&superblock)
        })
    }

    fn space(&self) -> Result<StatFs, CliError> {
        self.on(Path::new("/"), |real| {
            let found = rustix::fs::statvfs(real)?;
            let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            Ok(StatFs {
                block_size: narrow(found.f_frsize),
                blocks: found.f_blocks,
                blocks_free: found.f_bavail,
                files: found.f_files,
                files_free: found.f_ffree,
                name_max: narrow(found.f_namemax),
            })
        })
    }

    fn stat(&self, path: &Path, links: Links) -> Result<Attr, CliError> {
        self.on(path, |real| {
            let metadata = match links {
                Links::Keep => fs::symlink_metadata(real),
                Links::Follow => fs::metadata(real),
            };
            Ok(attr_of(&metadata?))
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<(OsString, Attr)>, CliError> {
        self.on(dir, |real| {
            let mut all = Vec::new();
            for entry in fs::read_dir(real)? {
                let entry = entry?;
                match entry.metadata() {
                    Ok(metadata) => all.push((entry.file_name(), attr_of(&metadata))),
                    // Removed or rotated away since its name was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            all.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(all)
        })
    }

    fn read(&self, path: &Path, sink: Sink<'_>) -> Result<(), CliError> {
        let mut file = self.on(path, |real| File::open(real))?;
        pump(&mut file, &self.shown(path), sink)
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, CliError> {
        self.on(path, |real| fs::read_link(real))
    }

    fn write_new(&self, path: &Path, perm: u32, source: Source<'_>) -> Result<(), CliError> {
        let mut file = self.on(path, |real| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(perm)
                .open(real)
        })?;
        source(&mut |data| self.on(path, |_| file.write_all(data)))?;
        // Closing cannot report a failure here; syncing first does.
        self.on(path, |_| file.sync_all())
    }

    fn append(&self, path: &Path, perm: u32, data: &[u8]) -> Result<(), CliError> {
        self.on(path, |real| {
            let mut log = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(perm)
                .open(real)?;
            log.write_all(data)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CliError> {
        self.on(to, |real| fs::rename(self.real(from), real))
    }

    fn rotate(&self, path: &Path) -> Result<(), CliError> {
        let name = path.file_name().unwrap_or_default();
        let real = self.real(path);
        let asked = OpenOptions::new()
            .write(true)
            .open(real.with_file_name(".cask").join("rotate"))
            // A NUL ends the name, so that it may hold anything.
            .and_then(|mut file| file.write_all(&[name.as_bytes(), b"\0"].concat()));
        asked.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => CliError::at(shown(&real), &no_log()),
            _ => CliError::io(shown(&real), &error),
        })
    }

    fn set_perm(&self, path: &Path, perm: u32) -> Result<(), CliError> {
        self.on(path, |real| {
            fs::set_permissions(real, Permissions::from_mode(perm))
        })
    }

    fn set_owner(&self, path: &Path, uid: u32, gid: u32) -> Result<(), CliError> {
        self.on(path, |real| lchown(real, Some(uid), Some(gid)))
    }

    fn make_directory(&self, path: &Path, perm: u32) -> Result<(), CliError> {
        self.on(path, |real| {
            DirBuilder::new().mode(perm).create(real)?;
            // The umask took its bits.
            fs::set_permissions(real, Permissions::from_mode(perm))
        })
    }

    fn make_link(&self, path: &Path, target: &Path) -> Result<(), CliError> {
        self.on(path, |real| symlink(target, real))
    }

    fn remove(&self, path: &Path) -> Result<(), CliError> {
        self.on(path, |real| fs::remove_file(real))
    }

    fn remove_directory(&self, path: &Path) -> Result<(), CliError> {
        self.on(path, |real| fs::remove_dir(real))
    }

    fn attributes(&self, path: &Path) -> Result<Vec<OsString>, CliError> {
        self.on(path, |real| {
            let mut buf = vec![0u8; XATTR_SIZE_MAX];
            let got = rustix::fs::listxattr(real, &mut buf)?;
            buf.truncate(got);
            Ok(buf
                .split(|b| *b == 0)
                .filter(|name| !name.is_empty())
                .map(|name| OsString::from_vec(name.to_vec()))
                .collect())
        })
    }

    fn attribute(&self, path: &Path, name: &str) -> Result<Option<Vec<u8>>, CliError> {
        self.on(path, |real| {
            let mut buf = vec![0u8; XATTR_SIZE_MAX];
            match rustix::fs::getxattr(real, name, &mut buf) {
                Ok(got) => {
                    buf.truncate(got);
                    Ok(Some(buf))
                }
                Err(Errno::NODATA) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn set_attribute(&self, path: &Path, name: &str, value: &[u8]) -> Result<(), CliError> {
        let flags = rustix::fs::XattrFlags::empty();
        self.on(path, |real| {
            Ok(rustix::fs::setxattr(real, OsStr::new(name), value, flags)?)
        })
    }

    fn remove_attribute(&self, path: &Path, name: &str) -> Result<(), CliError> {
        self.on(path, |real| match rustix::fs::removexattr(real, name) {
            Err(Errno::NODATA) => Ok(()),
            other => Ok(other?),
        })
    }

    fn image(&self, sink: ImageSink<'_>) -> Result<u64, CliError> {
        let path = Path::new("/.cask/snapshot");
        let name = self.shown(Path::new("/"));
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ESTALE) => CliError::failed(format!(
                "{name}: ran full while it was copied, so the copy was given up; make room and try again"
            )),
            _ => CliError::io(&name, &error),
        };
        let file = self.on(path, |real| File::open(real))?;
        let total = file.metadata().map_err(failed)?.len();
        let seek = |from: u64, data: bool| {
            let place = match data {
                true => SeekFrom::Data(from),
                false => SeekFrom::Hole(from),
            };
            match rustix::fs::seek(&file, place) {
                Ok(found) => Ok(Some(found)),
                Err(Errno::NXIO) => Ok(None),
                Err(error) => Err(failed(error.into())),
            }
        };
        let mut buf = vec![0; CHUNK];
        let mut at = 0;
        while let Some(start) = seek(at, true)? {
            let end = seek(start, false)?.unwrap_or(total);
            at = start;
            while at < end {
                let len = (end - at).min(CHUNK as u64) as usize;
                let piece = buf.get_mut(..len).unwrap_or_default();
                file.read_exact_at(piece, at).map_err(failed)?;
                sink(total, at, piece)?;
                at += len as u64;
            }
        }
        // It may have grown by some blocks between the two looks: they are free.
        Ok(total.max(at))
    }

    fn close(&self) -> Result<(), CliError> {
        Ok(())
    }
}

fn attr_of(metadata: &fs::Metadata) -> Attr {
    let time = |secs: i64, nanos: i64| Timestamp {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    let modified = time(metadata.mtime(), metadata.mtime_nsec());
    Attr {
        ino: metadata.ino(),
        kind: FileKind::from_mode(metadata.mode()).unwrap_or(FileKind::Regular),
        perm: metadata.mode() & 0o7777,
        nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev(),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: modified,
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        btime: metadata.created().map_or(modified, Timestamp::from),
    }
}
