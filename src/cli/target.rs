//! What a user may name, and how the casks that are named get opened.
//!
//! Three things can be named: a container (`acc.cask`), a path in one (`acc.cask:/logs/a`), and an
//! ordinary path, which may lie in a mounted cask. A container that is mounted is worked on through
//! its mount. Invariant: one run opens a container at most once.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::access::{Access, Need};
use super::exit::{CliError, reason, shown};
use super::live::Live;
use super::offline::Offline;
use crate::fuse::mounts::{self, CaskMount};

/// What was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path in a container; `/` where only the container was named.
    Container {
        /// The container as it was typed.
        container: PathBuf,
        /// Absolute, without `.` and `..`.
        path: PathBuf,
    },
    /// An ordinary path that lies in a mounted cask.
    Mounted {
        /// The mount.
        mount: CaskMount,
        /// The path below the mountpoint, absolute from there.
        path: PathBuf,
    },
    /// An ordinary path outside of any cask.
    Host(PathBuf),
}

impl Target {
    /// Finds out what is meant by `typed`, where a cask or something in one is wanted.
    pub fn parse(typed: &OsStr) -> Self {
        match Self::parse_any(typed) {
            // What is no file yet or none at all: let opening it say so.
            Self::Host(path) if !path.is_dir() => Self::container(path, Path::new("/")),
            other => other,
        }
    }

    /// Finds out what is meant by `typed`, where an ordinary file is welcome too.
    pub fn parse_any(typed: &OsStr) -> Self {
        let path = Path::new(typed);
        if path.symlink_metadata().is_err()
            && let Some((container, inner)) = split(typed)
        {
            return Self::container(container, Path::new(&inner));
        }
        match mount_above(path) {
            Some((mount, path)) => Self::Mounted { mount, path },
            None => Self::Host(path.to_path_buf()),
        }
    }

    fn container(container: PathBuf, inner: &Path) -> Self {
        let path = plain(inner);
        Self::Container { container, path }
    }

    /// The path within the cask.
    pub fn path(&self) -> &Path {
        match self {
            Self::Container { path, .. } | Self::Mounted { path, .. } | Self::Host(path) => path,
        }
    }
}

/// Splits `CONTAINER:PATH`: at the first colon after an existing file, else at the first `:/`.
fn split(typed: &OsStr) -> Option<(PathBuf, OsString)> {
    let bytes = typed.as_bytes();
    let colons = || (1..bytes.len()).filter(|at| bytes.get(*at) == Some(&b':'));
    let halves = |at: usize| {
        let (head, tail) = bytes.split_at(at);
        let tail = tail.get(1..).unwrap_or_default();
        (
            PathBuf::from(OsString::from_vec(head.to_vec())),
            OsString::from_vec(tail.to_vec()),
        )
    };
    let exists = |at: &usize| is_container_like(&halves(*at).0);
    let slash_follows = |at: &usize| bytes.get(at + 1) == Some(&b'/');
    colons()
        .find(exists)
        .or_else(|| colons().find(slash_follows))
        .map(halves)
}

/// Whether a container could be there: a regular file or a block device.
fn is_container_like(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
}

/// The path from the root on, without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

/// The mounted cask that a path lies in, and where in it. The last component need not exist, and is
/// followed only to a directory.
fn mount_above(path: &Path) -> Option<(CaskMount, PathBuf)> {
    let canonical = match (path.file_name(), path.parent()) {
        _ if path.is_dir() => fs::canonicalize(path).ok()?,
        (Some(name), Some(parent)) => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            fs::canonicalize(parent).ok()?.join(name)
        }
        _ => return None,
    };
    // The device tells a cask from what is mounted in it or over it.
    let found = canonical
        .ancestors()
        .find_map(|p| p.symlink_metadata().ok())?;
    let mount = mounts::all()
        .ok()?
        .into_iter()
        .filter(|mount| canonical.starts_with(&mount.mountpoint))
        .filter(|mount| mount.connection == libc::minor(found.dev()))
        .max_by_key(|mount| mount.mountpoint.components().count())?;
    let inner = canonical.strip_prefix(&mount.mountpoint).ok()?;
    let path = Path::new("/").join(inner);
    Some((mount, path))
}

/// Where the cask in `container`, a canonical path, is mounted.
pub fn mount_of(container: &Path) -> Option<CaskMount> {
    mounts::of(&mounts::all().ok()?, container)
}

/// The casks that a run has opened.
#[derive(Default)]
pub struct Casks {
    open: Vec<(PathBuf, Rc<dyn Access>)>,
}

impl Casks {
    /// Runs `body` with casks to open and closes them, whatever happened.
    pub fn with<T>(body: impl FnOnce(&mut Self) -> Result<T, CliError>) -> Result<T, CliError> {
        let mut casks = Self::default();
        let done = body(&mut casks);
        let mut closed = Ok(());
        for (_, access) in &casks.open {
            closed = closed.and(access.close());
        }
        done.and_then(|value| closed.map(|()| value))
    }

    /// The cask that a target lies in.
    pub fn open(&mut self, target: &Target, need: Need) -> Result<Rc<dyn Access>, CliError> {
        let container = match target {
            Target::Mounted { mount, .. } => return Ok(Rc::new(Live::of(mount.clone()))),
            Target::Container { container, .. } => container,
            Target::Host(path) => {
                return Err(CliError::failed(format!(
                    "{}: does not lie in a mounted cask; name a container, CONTAINER:/PATH or a path below a mountpoint",
                    shown(path)
                )));
            }
        };
        let canonical = fs::canonicalize(container).map_err(|error| missing(container, &error))?;
        if let Some((_, access)) = self.open.iter().find(|(path, _)| *path == canonical) {
            return Ok(Rc::clone(access));
        }
        let access: Rc<dyn Access> = match Offline::open(container, need) {
            Ok(offline) => Rc::new(offline),
            Err(busy) if busy.is_busy() => match mount_of(&canonical) {
                Some(mount) => Rc::new(Live::of(mount)),
                None => return Err(busy),
            },
            Err(error) => return Err(error),
        };
        self.open.push((canonical, Rc::clone(&access)));
        Ok(access)
    }
}

/// Opening a container that cannot even be found.
fn missing(container: &Path, error: &std::io::Error) -> CliError {
    let name = shown(container);
    match error.kind() {
        std::io::ErrorKind::NotFound => CliError::failed(format!(
            "{name}: no such container; make one with `caskfs mkfs`"
        )),
        _ => CliError::failed(format!("{name}: {}", reason(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(container: impl Into<PathBuf>, path: &str) -> Target {
        Target::Container {
            container: container.into(),
            path: path.into(),
        }
    }

    #[test]
    fn a_container_is_told_from_a_path_in_one() {
        let dir = tempfile::tempdir().unwrap();
        let cask = dir.path().join("a.cask");
        fs::write(&cask, "").unwrap();
        let typed = |tail: &str| {
            let mut text = cask.clone().into_os_string();
            text.push(tail);
            Target::parse(&text)
        };
        assert_eq!(typed(""), container(&cask, "/"));
        assert_eq!(typed(":"), container(&cask, "/"));
        assert_eq!(typed(":/"), container(&cask, "/"));
        assert_eq!(typed(":/logs/a"), container(&cask, "/logs/a"));
        assert_eq!(typed(":logs/a"), container(&cask, "/logs/a"));
        assert_eq!(typed(":/logs/./../../x//y"), container(&cask, "/x/y"));
        assert_eq!(typed(":/a:/b"), container(&cask, "/a:/b"));
    }

    #[test]
    fn colons_in_names_on_the_host_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:/b".replace('/', "_"));
        fs::write(&odd, "").unwrap();
        assert_eq!(Target::parse_any(odd.as_os_str()), Target::Host(odd));
        let missing = dir.path().join("10:30");
        assert_eq!(
            Target::parse_any(missing.as_os_str()),
            Target::Host(missing)
        );
    }

    #[test]
    fn what_does_not_exist_is_taken_for_a_container() {
        assert_eq!(
            Target::parse(OsStr::new("/nonexistent/a.cask:/logs")),
            container("/nonexistent/a.cask", "/logs")
        );
        assert_eq!(
            Target::parse(OsStr::new("/nonexistent/a.cask")),
            container("/nonexistent/a.cask", "/")
        );
        let error = Casks::with(|casks| {
            casks
                .open(&container("/nonexistent/a.cask", "/"), Need::Read)
                .map(drop)
        })
        .unwrap_err();
        assert_eq!(
            error.sentence(),
            Some("/nonexistent/a.cask: no such container; make one with `caskfs mkfs`")
        );
    }

    #[test]
    fn a_directory_outside_is_no_cask() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::parse(dir.path().as_os_str());
        assert_eq!(target, Target::Host(dir.path().to_path_buf()));
        let error = Casks::with(|casks| casks.open(&target, Need::Read).map(drop)).unwrap_err();
        assert!(error.sentence().unwrap().contains("mounted cask"));
    }
}
