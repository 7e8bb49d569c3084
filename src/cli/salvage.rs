//! `caskfs salvage`: copies out of a damaged container all that verifies, and changes nothing in it.
//!
//! The container is mended on a scratch in memory, as `fsck` plans it; what is there then is copied. A part
//! of a file that does not verify becomes a hole in the copy, and is told.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::exit::{CliError, shown};
use super::out::Out;
use super::progress::Progress;
use crate::cask::{Cask, OpenOptions as CaskOptions};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::device::ScratchDevice;
use crate::device::file::{Access, FileDevice};
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::{Number, ROOT};
use crate::fs::inode::Inode;
use crate::fs::{Fs, namespace, xattr};
use crate::fsck;

/// Bytes read at a time; where they cannot be, a block at a time.
const CHUNK: u32 = 1 << 20;
/// Deepest directories that are believed.
const DEPTH_MAX: usize = 512;

type Salvaged = Fs<Arc<ScratchDevice<FileDevice>>>;

/// Copy out of a damaged cask all that can be read
///
/// Nothing in the container is changed. Owners are kept for root; what no copy can have, such as the order of
/// arrival of logs, is left out. Ends with 1 if anything was missing.
#[derive(Debug, Args)]
pub struct SalvageArgs {
    /// Take the cask as it was one checkpoint before the newest
    #[arg(long)]
    older: bool,
    /// The container
    container: PathBuf,
    /// A new directory, or an empty one
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the verb.
pub fn run(args: SalvageArgs) -> Result<(), CliError> {
    let name = shown(&args.container);
    let at = |error: Error| CliError::at(&name, &error);
    let device = FileDevice::open(&args.container, Access::ReadOnly).map_err(at)?;
    let scratch =
        ScratchDevice::new(device).map_err(|e| at(Error::io("reading the container")(e)))?;
    let mut line = Progress::new("looking");
    let mut show = |at: fsck::Progress| line.show(at.done, at.total);
    let now = SystemClock.now();
    let options = CaskOptions {
        older: args.older,
        ..CaskOptions::default()
    };
    let repair = fsck::repair(Arc::clone(&scratch), options, false, now, &mut show);
    // What could not be mended on the scratch is left out.
    let loses = match repair {
        Ok(repair) => repair.loses(),
        Err(Error::NoSpace | Error::NoFiles | Error::Failed(_)) => true,
        Err(error) => return Err(at(error)),
    };
    drop(line);
    let options = CaskOptions {
        read_only: true,
        ..CaskOptions::default()
    };
    let cask = Cask::open(scratch, options).map_err(at)?;
    let fs = Fs::new(Arc::new(cask), Arc::new(SystemClock)).map_err(at)?;
    match fs::create_dir(&args.dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let is_empty = fs::read_dir(&args.dir).is_ok_and(|mut dir| dir.next().is_none());
            if !is_empty {
                return Err(CliError::failed(format!(
                    "{}: is not an empty directory; name a new one",
                    shown(&args.dir)
                )));
            }
        }
        made => made.map_err(|error| CliError::io(shown(&args.dir), &error))?,
    }
    let mut salvage = Salvage {
        fs: &fs,
        out: Out::new(),
        seen: HashMap::new(),
        files: 0,
        directories: 0,
        lacking: 0,
        bytes: 0,
    };
    salvage.directory(ROOT, &args.dir, 0)?;
    salvage.finish(&name, &args.dir, loses)
}

struct Salvage<'a> {
    fs: &'a Salvaged,
    out: Out,
    /// Where files with several names were put.
    seen: HashMap<Number, PathBuf>,
    files: u64,
    directories: u64,
    /// Files that are not whole, and what could not be copied at all.
    lacking: u64,
    bytes: u64,
}

impl Salvage<'_> {
    fn tell(&mut self, path: &Path, what: &str) -> Result<(), CliError> {
        self.lacking += 1;
        self.out.line(format!("{}: {what}", shown(path)))
    }

    fn directory(&mut self, dir: Number, to: &Path, depth: usize) -> Result<(), CliError> {
        self.directories += 1;
        let mut names = Vec::new();
        let listed = namespace::read_dir(&**self.fs.cask(), dir, 2, &mut |entry| {
            names.push(entry);
            Ok(true)
        });
        if let Err(error) = listed {
            self.tell(to, &format!("not all names can be read: {error}"))?;
        }
        for entry in names {
            let path = to.join(OsStr::from_bytes(&entry.name));
            let inode = match self.fs.inode(entry.ino) {
                Ok(inode) if depth < DEPTH_MAX => inode,
                Ok(_) => {
                    self.tell(&path, "is too deep")?;
                    continue;
                }
                Err(error) => {
                    self.tell(&path, &error.to_string())?;
                    continue;
                }
            };
            let done = match inode.kind() {
                FileKind::Directory => match fs::create_dir(&path) {
                    Ok(()) => {
                        self.directory(entry.ino, &path, depth + 1)?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                FileKind::Regular => self.file(&inode, &path)?,
                FileKind::Symlink => self.link(&inode, &path)?,
                // A pipe or a device holds nothing.
                _ => Ok(()),
            };
            match done.and_then(|()| self.looks(&inode, &path)) {
                Ok(()) => self.files += u64::from(!inode.is_dir()),
                Err(error) => self.tell(&path, &error.to_string())?,
            }
        }
        Ok(())
    }

    fn link(&mut self, inode: &Inode, path: &Path) -> Result<io::Result<()>, CliError> {
        Ok(match self.fs.readlink(inode.number) {
            Ok(target) => symlink(OsStr::from_bytes(&target), path),
            Err(error) => Err(io::Error::other(error.to_string())),
        })
    }

    fn file(&mut self, inode: &Inode, path: &Path) -> Result<io::Result<()>, CliError> {
        if inode.nlink > 1
            && let Some(first) = self.seen.get(&inode.number)
        {
            return Ok(fs::hard_link(first, path));
        }
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = file.set_len(inode.size) {
            return Ok(Err(error));
        }
        let lost = match self.content(inode, &file) {
            Ok(lost) => lost,
            Err(error) => return Ok(Err(error)),
        };
        if lost > 0 {
            let what = format!("{lost} of {} bytes are lost", inode.size);
            self.tell(path, &what)?;
        }
        self.seen.insert(inode.number, path.to_owned());
        Ok(Ok(()))
    }

    /// Copies a content; answers how many bytes cannot be read.
    fn content(&mut self, inode: &Inode, file: &File) -> io::Result<u64> {
        let mut lost = 0;
        let mut buf = Vec::new();
        let block = self.fs.cask().geometry().block_size;
        let mut at = 0;
        // What was never written is left out.
        loop {
            let from = match self.fs.seek(inode.number, at, true) {
                Ok(from) => from,
                Err(Error::NoSuchOffset) => break,
                Err(_) => {
                    lost += inode.size.saturating_sub(at);
                    break;
                }
            };
            let end = self.fs.seek(inode.number, from, false);
            let end = end.unwrap_or(inode.size).min(inode.size);
            at = from;
            while at < end {
                let mut take = u32::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let mut read = self.fs.read(inode.number, at, take, &mut buf);
                if read.is_err() {
                    take = take.min(block - (at % u64::from(block)) as u32);
                    read = self.fs.read(inode.number, at, take, &mut buf);
                }
                match read {
                    Ok(()) => file.write_all_at(&buf, at)?,
                    Err(_) => lost += u64::from(take),
                }
                at += u64::from(take);
            }
            if at >= inode.size {
                break;
            }
        }
        self.bytes += inode.size - lost;
        Ok(lost)
    }

    /// Permissions, owner where that can be given, attributes and times.
    fn looks(&self, inode: &Inode, path: &Path) -> io::Result<()> {
        let kind = inode.kind();
        if !matches!(
            kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        ) {
            return Ok(());
        }
        if rustix::process::geteuid().is_root() {
            lchown(path, Some(inode.uid), Some(inode.gid))?;
        }
        if kind == FileKind::Symlink {
            return Ok(());
        }
        for name in xattr::list(&**self.fs.cask(), inode).unwrap_or_default() {
            if let Ok(value) = xattr::get(&**self.fs.cask(), inode, &name) {
                // A host without attributes is no reason to lose the file.
                let flags = rustix::fs::XattrFlags::empty();
                let _ = rustix::fs::setxattr(path, OsStr::from_bytes(&name), &value, flags);
            }
        }
        fs::set_permissions(path, Permissions::from_mode(inode.perm()))?;
        let modified = time(inode.mtime);
        match modified {
            Some(modified) => File::open(path)?.set_modified(modified),
            None => Ok(()),
        }
    }

    fn finish(mut self, name: &str, dir: &Path, mended: bool) -> Result<(), CliError> {
        let (files, directories, bytes) = (self.files, self.directories, self.bytes);
        self.out.line(format!(
            "{name}: {files} files with {bytes} bytes and {directories} directories copied to {}",
            shown(dir)
        ))?;
        self.out.finish()?;
        match (self.lacking, mended) {
            (0, false) => Ok(()),
            (0, true) => Err(CliError::failed(format!(
                "{name}: some of it was beyond reach; `caskfs fsck -n` says what"
            ))),
            (lacking, _) => Err(CliError::failed(format!(
                "{name}: {lacking} files could not be copied whole"
            ))),
        }
    }
}

fn time(time: Timestamp) -> Option<SystemTime> {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = match time.secs < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(secs),
        false => SystemTime::UNIX_EPOCH.checked_add(secs),
    };
    whole?.checked_add(Duration::from_nanos(time.nanos.into()))
}
