//! A container in a file or on a block device of the host.
//!
//! The file is opened once and locked through that one descriptor, by `flock(2)` and by an
//! open-file-description lock, so that neither a second caskfs nor any tool that honours either
//! kind of lock gets in. Invariant: while a [`FileDevice`] for writing lives, no other
//! [`FileDevice`] for the same container does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::sys::Sharing;
use super::{Device, holder, sys};

use crate::error::{Error, Result};

/// What a container is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only, beside other readers.
    ReadOnly,
    /// Reading and writing, alone.
    ReadWrite,
}

/// What the container is, which decides whether it can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// A regular file.
    File,
    /// A block device, whose length is what it is.
    Block,
}

/// A container in a file or on a block device, locked for as long as this lives.
#[derive(Debug)]
pub struct FileDevice {
    /// The same file, for durable writes: Linux tells of a write that failed once per description, and who
    /// syncs must hear of it as well as who writes durably. Closed before the one that holds the locks.
    durable: Option<File>,
    file: File,
    path: PathBuf,
    host: Host,
    /// The errno of the flush that failed: what was written before it may never be durable, whatever a later
    /// one answers.
    has_failed: Mutex<Option<i32>>,
    /// The host refused `RWF_DSYNC` once; it is not asked again.
    without_dsync: AtomicBool,
}

impl FileDevice {
    /// Opens and locks a container that exists.
    ///
    /// # Errors
    /// [`Error::Busy`] naming the holder when somebody else uses it; [`Error::Unusable`] when it is
    /// neither a regular file nor a block device; [`Error::Io`] as `open(2)` says.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let path = path.as_ref();
        let writing = access == Access::ReadWrite;
        let cannot_open = || Error::io(format!("cannot open {}", path.display()));
        let on_block = fs::metadata(path)
            .map_err(cannot_open())?
            .file_type()
            .is_block_device();
        // On a block device O_EXCL keeps off disks that the system itself uses, a mounted one
        // above all. O_NONBLOCK matters only for what is refused below: opening a pipe would wait.
        let exclusive = if on_block && writing { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(writing)
            .custom_flags(exclusive | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| match source.kind() {
                ErrorKind::ResourceBusy => Error::Busy(format!(
                    "{} is in use by the system (mounted?)",
                    path.display()
                )),
                ErrorKind::IsADirectory => unusable(path),
                _ => cannot_open()(source),
            })?;
        Self::locked(
            file,
            path,
            if writing {
                Sharing::Exclusive
            } else {
                Sharing::Shared
            },
        )
    }

    /// Makes a new, empty container that only its owner can read, and locks it.
    ///
    /// # Errors
    /// [`Error::Io`] as `open(2)` says, `EEXIST` above all: what is there is never touched.
    pub fn create_new(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io(format!("cannot create {}", path.display())))?;
        Self::locked(file, path, Sharing::Exclusive)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn locked(file: File, path: &Path, sharing: Sharing) -> Result<Self> {
        let cannot_lock = || Error::io(format!("cannot lock {}", path.display()));
        let metadata = file.metadata().map_err(cannot_lock())?;
        let host = match metadata.file_type() {
            kind if kind.is_file() => Host::File,
            kind if kind.is_block_device() => Host::Block,
            _ => return Err(unusable(path)),
        };
        let busy = || {
            let holder = holder::describe(&metadata);
            let holder = holder.as_deref().unwrap_or("another process");
            Error::Busy(format!("{} is in use by {holder}", path.display()))
        };
        for lock in [sys::flock, sys::lock_description] {
            match lock(&file, sharing) {
                Ok(()) => {}
                // POSIX lets fcntl(2) answer either of these for a lock that is held.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EWOULDBLOCK | libc::EACCES)) =>
                {
                    return Err(busy());
                }
                // Some network filesystems offer one of the two only.
                Err(error) if is_unsupported(&error) => {}
                Err(error) => return Err(cannot_lock()(error)),
            }
        }
        let path = path.to_path_buf();
        let durable = match sharing {
            Sharing::Exclusive => reopened(&file),
            Sharing::Shared => None,
        };
        Ok(Self {
            file,
            path,
            host,
            without_dsync: AtomicBool::new(false),
            durable,
            has_failed: Mutex::new(None),
        })
    }

    /// What durable writes go through, unless the host refused them.
    fn for_durable(&self) -> Option<&File> {
        let refused = self.without_dsync.load(Ordering::Relaxed);
        self.durable.as_ref().filter(|_| !refused)
    }

    /// Notes that a flush failed.
    fn failed(&self, error: io::Error) -> io::Error {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.has_failed.lock().get_or_insert(errno);
        error
    }

    /// On a block device: fails unless `end` lies within it.
    fn check_fits(&self, end: Option<u64>) -> io::Result<()> {
        match end {
            Some(end) if end <= self.len()? => Ok(()),
            _ => Err(ErrorKind::StorageFull.into()),
        }
    }
}

/// The file once more, under a description of its own; `None` where the host does not let that be.
fn reopened(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).open(path).ok()
}

impl Device for FileDevice {
    fn len(&self) -> io::Result<u64> {
        match self.host {
            Host::File => Ok(self.file.metadata()?.len()),
            // fstat(2) answers 0 for a block device. Nobody uses the descriptor's own position.
            Host::Block => (&self.file).seek(SeekFrom::End(0)),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_durable_at(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while let Some(file) = self.for_durable().filter(|_| !data.is_empty()) {
            match sys::write_durable(file, offset, data) {
                Ok(0) => return Err(self.failed(ErrorKind::WriteZero.into())),
                Ok(written) => {
                    offset = offset.saturating_add(written as u64);
                    data = data.get(written..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A host whose locks bind each description by itself lets only the first one write.
                Err(error)
                    if is_unsupported(&error)
                        || matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) =>
                {
                    self.without_dsync.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        if data.is_empty() {
            return Ok(());
        }
        self.write_at(offset, data)
            .map_err(|error| self.failed(error))?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        // One at a time: of two, one alone would be told of a failure.
        let mut has_failed = self.has_failed.lock();
        if let Some(errno) = *has_failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file
            .sync_data()
            .inspect_err(|error| *has_failed = error.raw_os_error().or(Some(libc::EIO)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.host {
            Host::File => self.file.set_len(len),
            Host::Block => self.check_fits(Some(len)),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len);
        if self.host == Host::Block {
            return self.check_fits(end);
        }
        if len == 0 {
            return Ok(());
        }
        match sys::allocate(&self.file, offset, len) {
            // The host cannot reserve; glibc's emulation would write zeros over live blocks.
            Err(error) if is_unsupported(&error) => {
                let end = end.ok_or(ErrorKind::FileTooLarge)?;
                if end > self.len()? {
                    self.file.set_len(end)
                } else {
                    Ok(())
                }
            }
            other => other,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match sys::punch(&self.file, offset, len) {
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other,
        }
    }

    fn growth_available(&self) -> io::Result<Option<u64>> {
        match self.host {
            Host::File => sys::available(&self.file).map(Some),
            Host::Block => Ok(Some(0)),
        }
    }
}

/// Whether the kernel or the host filesystem does not offer what was asked.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

fn unusable(path: &Path) -> Error {
    Error::Unusable {
        path: path.to_path_buf(),
        reason: "a cask lives in a regular file or on a block device, and this is neither".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cask");
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read_back_and_the_length_follows() {
        let (_dir, path) = scratch();
        let device = FileDevice::create_new(&path).unwrap();
        device.write_at(10, b"plain").unwrap();
        device.write_durable_at(15, b" durable").unwrap();
        device.sync().unwrap();
        assert_eq!(device.len().unwrap(), 23);
        let mut buf = [0; 13];
        device.read_at(10, &mut buf).unwrap();
        assert_eq!(&buf, b"plain durable");
        assert_eq!(
            device.read_at(11, &mut buf).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );

        // It has a description of its own for what is durable, and without one it goes as well.
        assert!(device.durable.is_some());
        device.without_dsync.store(true, Ordering::Relaxed);
        device.write_durable_at(23, b"!").unwrap();
        device.allocate(0, 8192).unwrap();
        assert_eq!(device.len().unwrap(), 8192);
        device.punch(0, 8192).unwrap();
        device.read_at(10, &mut buf).unwrap();
        assert!(buf == [0; 13] || &buf == b"plain durable");
        device.set_len(12).unwrap();
        assert_eq!(device.len().unwrap(), 12);
        assert!(device.growth_available().unwrap().is_some());
    }

    #[test]
    fn a_second_writer_is_refused_and_told_who_holds_the_container() {
        let (_dir, path) = scratch();
        let first = FileDevice::create_new(&path).unwrap();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let Err(Error::Busy(why)) = FileDevice::open(&path, access) else {
                panic!("a locked container was opened for {access:?}");
            };
            assert!(why.contains("a.cask"), "{why}");
            assert!(
                why.contains(&format!("process {}", std::process::id())),
                "{why}"
            );
        }
        drop(first);
        let readers = [Access::ReadOnly; 2].map(|access| opened(&path, access));
        assert!(matches!(
            FileDevice::open(&path, Access::ReadWrite),
            Err(Error::Busy(_))
        ));
        drop(readers);
        opened(&path, Access::ReadWrite);
    }

    /// A process that another test starts holds the lock, too, until it has become what it is to be.
    fn opened(path: &Path, access: Access) -> FileDevice {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match FileDevice::open(path, access) {
                Err(Error::Busy(_)) if Instant::now() < until => thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    #[test]
    fn a_container_that_is_there_is_not_made_anew() {
        let (_dir, path) = scratch();
        fs::write(&path, "precious").unwrap();
        let error = FileDevice::create_new(&path).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST);
        assert!(error.source().is_some());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn what_is_no_container_is_refused_without_waiting() {
        let (dir, path) = scratch();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let missing = FileDevice::open(&path, access).unwrap_err();
            assert_eq!(missing.errno(), libc::ENOENT);
            assert!(matches!(
                FileDevice::open(dir.path(), access),
                Err(Error::Unusable { .. })
            ));
            assert!(matches!(
                FileDevice::open("/dev/null", access),
                Err(Error::Unusable { .. })
            ));
        }
        let fifo = dir.path().join("pipe");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        assert!(matches!(
            FileDevice::open(&fifo, Access::ReadOnly),
            Err(Error::Unusable { .. })
        ));
    }

    #[test]
    fn a_reader_cannot_write() {
        let (_dir, path) = scratch();
        fs::write(&path, "content").unwrap();
        let device = FileDevice::open(&path, Access::ReadOnly).unwrap();
        assert!(device.write_at(0, b"C").is_err());
        assert!(device.write_durable_at(0, b"C").is_err());
        assert!(device.set_len(0).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }
}
