//! Every way an operation can fail, and the one place that decides the errno.
//!
//! A message is one sentence for a person: what, where, what to do. Invariant: [`Error::errno`] is
//! the only code in the crate that maps a failure to an errno.

use std::io;
use std::path::PathBuf;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such file, directory or attribute level. `ENOENT`
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken. `EEXIST`
    #[error("the name exists already")]
    Exists,
    /// A path component is not a directory. `ENOTDIR`
    #[error("not a directory")]
    NotDirectory,
    /// The operation does not apply to a directory. `EISDIR`
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries. `ENOTEMPTY`
    #[error("the directory is not empty")]
    NotEmpty,
    /// A name is longer than 255 bytes, or a link target than 4095. `ENAMETOOLONG`
    #[error("the name is longer than {max} bytes")]
    NameTooLong {
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// An argument has no meaning here. `EINVAL`
    #[error("{0}")]
    Invalid(String),
    /// The cask has no room for the data. `ENOSPC`
    #[error("no space left in the cask")]
    NoSpace,
    /// The cask has no room for another file (`--files`). `ENOSPC`
    #[error("the cask holds as many files as it was made for (--files)")]
    NoFiles,
    /// The file would be larger than a file can be. `EFBIG`
    #[error("the file would be larger than {max} bytes")]
    FileTooLarge {
        /// The largest size in bytes.
        max: u64,
    },
    /// The rules of the file's mode forbid it, whoever asks. `EPERM`
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// The caller lacks the permission. `EACCES`
    #[error("permission denied")]
    AccessDenied,
    /// There is no such extended attribute. `ENODATA`
    #[error("no such attribute")]
    NoAttribute,
    /// The attribute's value does not fit the caller's buffer. `ERANGE`
    #[error("the attribute is larger than the buffer")]
    AttributeRange,
    /// The attribute's value is larger than a value can be. `E2BIG`
    #[error("the attribute is larger than {max} bytes")]
    AttributeTooBig {
        /// The largest value in bytes.
        max: usize,
    },
    /// The file has as many names as it can have. `EMLINK`
    #[error("the file has too many links")]
    TooManyLinks,
    /// The mount or the cask is read-only. `EROFS`
    #[error("the cask is read-only{}", why.map(|w| format!(": {w}")).unwrap_or_default())]
    ReadOnly {
        /// Why, where it is not the user's own choice.
        why: Option<&'static str>,
    },
    /// The handle is unknown or not open for this. `EBADF`
    #[error("the file handle is not open for this")]
    BadHandle,
    /// The inode is gone. `ESTALE`
    #[error("the file is gone")]
    Stale,
    /// The operation is not offered by this filesystem. `EOPNOTSUPP`
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// A position past the last data or hole was asked for. `ENXIO`
    #[error("no data or hole at or after that offset")]
    NoSuchOffset,
    /// A quota is used up. `EDQUOT`
    #[error("the limit of this directory is reached")]
    Quota,
    /// The cask or mountpoint is in use. `EBUSY`
    #[error("{0}")]
    Busy(String),
    /// Bytes of the container do not verify. `EIO`
    #[error("the container is damaged: {0}")]
    Corrupt(Corruption),
    /// The cask stopped after a failure and must be mounted anew. `EIO`
    #[error(
        "the cask stopped after an earlier failure ({0}); unmount it, run `caskfs fsck`, and mount it again"
    )]
    Failed(String),
    /// The container cannot be opened as it is. `EINVAL`
    #[error("{path}: {reason}")]
    Unusable {
        /// The container.
        path: PathBuf,
        /// One sentence: why, and what to do.
        reason: String,
    },
    /// The operating system refused. Its own errno.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The operating system's word.
        source: io::Error,
    },
}

/// What does not verify, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}")]
pub struct Corruption {
    /// What was found, in words.
    pub what: String,
    /// Byte offset in the container.
    pub offset: u64,
}

impl Error {
    /// An [`Error::Invalid`] of this reason.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    /// An [`Error::Corrupt`] of `what` at byte `offset` of the container.
    pub fn corrupt(what: impl Into<String>, offset: u64) -> Self {
        Self::Corrupt(Corruption {
            what: what.into(),
            offset,
        })
    }

    /// Wraps an error of the operating system with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The errno that a system call reports for this failure. The only such table.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NameTooLong { .. } => libc::ENAMETOOLONG,
            Self::Invalid(_) | Self::Unusable { .. } => libc::EINVAL,
            Self::NoSpace | Self::NoFiles => libc::ENOSPC,
            Self::FileTooLarge { .. } => libc::EFBIG,
            Self::NotPermitted(_) => libc::EPERM,
            Self::AccessDenied => libc::EACCES,
            Self::NoAttribute => libc::ENODATA,
            Self::AttributeRange => libc::ERANGE,
            Self::AttributeTooBig { .. } => libc::E2BIG,
            Self::TooManyLinks => libc::EMLINK,
            Self::ReadOnly { .. } => libc::EROFS,
            Self::BadHandle => libc::EBADF,
            Self::Stale => libc::ESTALE,
            Self::NotSupported(_) => libc::EOPNOTSUPP,
            Self::NoSuchOffset => libc::ENXIO,
            Self::Quota => libc::EDQUOT,
            Self::Busy(_) => libc::EBUSY,
            Self::Corrupt(_) | Self::Failed(_) => libc::EIO,
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
