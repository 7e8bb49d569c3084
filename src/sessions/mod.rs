//! Sessions for programs in Rust: the same interface on a container that nobody has mounted, on one that
//! is mounted, and on any directory.
//!
//! A session is a file of a value store, its name the id: what the library saves, a mount shows, and the
//! other way round. Invariant: a session is replaced as a whole; whoever loads gets what some save was
//! given, and a save that returned survives the death of this process.
//!
//! ```
//! use caskfs::sessions::{SessionError, SessionStore};
//! # use caskfs::cask::{Cask, FormatOptions};
//! # use caskfs::device::FileDevice;
//! # let place = std::env::temp_dir().join(format!("caskfs-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&place)?;
//! # let container = place.join("sessions.cask");
//! # let _ = std::fs::remove_file(&container);
//! # Cask::format(&FileDevice::create_new(&container)?, &FormatOptions::default())?;
//! let config = format!(r#"{{"file": "{}"}}"#, container.display());
//! let sessions = SessionStore::from_json(&config)?;
//! sessions.save("abacab", br#"{"hits": 1}"#)?;
//! assert_eq!(sessions.load("abacab")?, br#"{"hits": 1}"#);
//! assert!(matches!(sessions.load("nobody"), Err(SessionError::NotFound(_))));
//! sessions.expire(std::time::Duration::from_secs(1800))?;
//! sessions.remove("abacab")?;
//! sessions.close()?;
//! # std::fs::remove_dir_all(&place)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod container;
mod directory;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use thiserror::Error;

use crate::error::Error;
use crate::fuse::mounts;
use crate::limits::NAME_MAX;
use container::Container;
use directory::Directory;

/// The directory of a cask that holds sessions unless another is named.
const DIR: &str = "sessions";

/// Why something could not be done.
#[derive(Debug, Error)]
pub enum SessionError {
    /// There is no session with this id.
    #[error("there is no session {}", .0.display())]
    NotFound(OsString),
    /// No session can have this id.
    #[error("{} is no id of a session: {why}", id.display())]
    InvalidId {
        /// The id.
        id: OsString,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The configuration does not say where sessions are, or says nonsense.
    #[error("the configuration of the sessions: {0}")]
    InvalidConfig(String),
    /// Another process has the container open and it is not mounted.
    #[error("{0}")]
    Busy(String),
    /// Reading or writing failed; the kind of the source tells more.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// What everything here answers.
pub type Result<T, E = SessionError> = std::result::Result<T, E>;

/// Where sessions are, as JSON: `{"file": "/srv/web.cask"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A container, or a directory: a mountpoint or any other.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The directory of sessions in it: `sessions` in a container unless another is named, and a
    /// directory itself. Without `file`, an ordinary directory.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// What the names of the files begin with, before the id.
    #[serde(default)]
    pub prefix: String,
    /// What they end with, after the id.
    #[serde(default)]
    pub suffix: String,
}

/// A session as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: OsString,
    /// Bytes of its content.
    pub len: u64,
    /// When it was last saved or touched.
    pub saved: SystemTime,
}

/// A file of the store, under its whole name.
struct Found<'a> {
    name: &'a [u8],
    len: u64,
    saved: SystemTime,
}

/// What a place that holds sessions can do. Names are whole and checked.
trait Place: Send + Sync {
    fn load(&self, name: &OsStr) -> io::Result<Vec<u8>>;
    fn save(&self, name: &OsStr, content: &[u8]) -> io::Result<()>;
    fn remove(&self, name: &OsStr) -> io::Result<()>;
    fn touch(&self, name: &OsStr) -> io::Result<()>;
    /// Visits all regular files until `visit` answers false.
    fn list(&self, visit: &mut dyn FnMut(Found<'_>) -> io::Result<bool>) -> io::Result<()>;
    /// Removes the files that were last saved at that time or before, if they are sessions by their names or
    /// what a save that was cut short left; answers how many sessions that were.
    fn expire(&self, than: SystemTime, is_session: &dyn Fn(&[u8]) -> bool) -> io::Result<u64>;
    fn sync(&self) -> io::Result<()>;
    fn close(&self) -> io::Result<()>;
}

/// Sessions, by id. It may be shared by threads.
pub struct SessionStore {
    place: Box<dyn Place>,
    prefix: String,
    suffix: String,
    shown: String,
}

impl SessionStore {
    /// Opens what a configuration in JSON names.
    ///
    /// # Errors
    /// [`SessionError::InvalidConfig`] for what is no such JSON; as [`SessionStore::open`].
    pub fn from_json(config: &str) -> Result<Self> {
        let config = serde_json::from_str(config)
            .map_err(|error| SessionError::InvalidConfig(error.to_string()))?;
        Self::open(&config)
    }

    /// Opens what a configuration names. A container is held until the store is closed or dropped; one that
    /// is mounted is used through its mount. The directory in a container is made if it is not
    /// there.
    ///
    /// # Errors
    /// [`SessionError::InvalidConfig`]; [`SessionError::Busy`] when another process holds the container and
    /// it is not mounted; [`SessionError::Io`] when it is not there, is no cask or cannot be opened.
    pub fn open(config: &Config) -> Result<Self> {
        if [&config.prefix, &config.suffix]
            .iter()
            .any(|part| part.contains(['/', '\0']))
        {
            return Err(SessionError::InvalidConfig(
                "prefix and suffix hold neither / nor NUL".to_owned(),
            ));
        }
        let (place, shown): (Box<dyn Place>, _) = match (&config.file, &config.dir) {
            (Some(file), dir) if file.is_dir() => in_directory(dir.as_ref().map_or_else(
                || file.clone(),
                |dir| file.join(dir.strip_prefix("/").unwrap_or(dir)),
            ))?,
            (Some(file), dir) => {
                let dir = dir.as_deref().unwrap_or(Path::new(DIR));
                in_container(file, dir)?
            }
            (None, Some(dir)) => in_directory(dir.clone())?,
            (None, None) => {
                return Err(SessionError::InvalidConfig("it names no `file`".to_owned()));
            }
        };
        Ok(Self {
            place,
            prefix: config.prefix.clone(),
            suffix: config.suffix.clone(),
            shown,
        })
    }

    /// The content of a session.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::InvalidId`], [`SessionError::Io`].
    pub fn load(&self, id: impl AsRef<OsStr>) -> Result<Vec<u8>> {
        let id = id.as_ref();
        let loaded = self.place.load(&self.name(id)?);
        self.told(id, "loading", loaded)
    }

    /// Gives a session this content, in one step; makes it if it is not there. When this returns it survives
    /// the death of the process, and within a second, or after [`SessionStore::sync`], that of
    /// the machine.
    ///
    /// # Errors
    /// [`SessionError::InvalidId`]; [`SessionError::Io`], for want of space too, and then the session is as
    /// it was.
    pub fn save(&self, id: impl AsRef<OsStr>, content: &[u8]) -> Result<()> {
        let id = id.as_ref();
        let saved = self.place.save(&self.name(id)?, content);
        self.told(id, "saving", saved)
    }

    /// Removes a session. That there is none is no failure.
    ///
    /// # Errors
    /// [`SessionError::InvalidId`], [`SessionError::Io`].
    pub fn remove(&self, id: impl AsRef<OsStr>) -> Result<()> {
        let id = id.as_ref();
        match self.place.remove(&self.name(id)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => self.told(id, "removing", removed),
        }
    }

    /// Gives a session a new life: it counts as saved now.
    ///
    /// # Errors
    /// As [`SessionStore::load`].
    pub fn touch(&self, id: impl AsRef<OsStr>) -> Result<()> {
        let id = id.as_ref();
        let touched = self.place.touch(&self.name(id)?);
        self.told(id, "touching", touched)
    }

    /// Visits all sessions, in no order, until `visit` answers false. What is saved or removed meanwhile may be
    /// visited or not. However many there are, a few are in memory at a time.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub fn list(&self, mut visit: impl FnMut(&Session) -> bool) -> Result<()> {
        let listed = self.place.list(&mut |found| {
            Ok(match self.id(found.name) {
                Some(id) => visit(&Session {
                    id: OsString::from_vec(id.to_vec()),
                    len: found.len,
                    saved: found.saved,
                }),
                None => true,
            })
        });
        listed.map_err(|source| self.failed("listing".to_owned(), source))
    }

    /// Removes the sessions that were not saved or touched for `age`; answers how many. Where the store has
    /// a `ttl` they go by themselves.
    ///
    /// In a container a session that is saved meanwhile is never removed. In a directory, mounted or not, it
    /// may be if the save falls between the look and the removal.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub fn expire(&self, age: Duration) -> Result<u64> {
        let Some(than) = SystemTime::now().checked_sub(age) else {
            return Ok(0);
        };
        let expired = self.place.expire(than, &|name| self.id(name).is_some());
        expired.map_err(|source| self.failed("expiring sessions".to_owned(), source))
    }

    /// Everything saved so far is durable when this returns.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub fn sync(&self) -> Result<()> {
        let synced = self.place.sync();
        synced.map_err(|source| self.failed("syncing".to_owned(), source))
    }

    /// Ends the use: a container is closed in order and free for others. Dropping the store does the same, but
    /// tells of no failure.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub fn close(self) -> Result<()> {
        let closed = self.place.close();
        closed.map_err(|source| self.failed("closing".to_owned(), source))
    }

    /// The name of the file of a session.
    fn name(&self, id: &OsStr) -> Result<OsString> {
        let invalid = |why| {
            Err(SessionError::InvalidId {
                id: id.to_owned(),
                why,
            })
        };
        if id.is_empty() {
            return invalid("it is empty");
        }
        if id.as_bytes().contains(&b'/') || id.as_bytes().contains(&0) {
            return invalid("it holds / or NUL");
        }
        let name = [
            self.prefix.as_bytes(),
            id.as_bytes(),
            self.suffix.as_bytes(),
        ]
        .concat();
        if name.len() > NAME_MAX {
            return invalid("it is too long; with prefix and suffix a name has at most 255 bytes");
        }
        if [b".".as_slice(), b"..", b".cask"].contains(&name.as_slice()) {
            return invalid("the name is taken");
        }
        Ok(OsString::from_vec(name))
    }

    /// The id of the session in the file of this name, if it is one of ours.
    fn id<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?;
        let id = rest.strip_suffix(self.suffix.as_bytes())?;
        (!id.is_empty() && !name.starts_with(directory::STAGED)).then_some(id)
    }

    fn told<T>(&self, id: &OsStr, doing: &str, done: io::Result<T>) -> Result<T> {
        done.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SessionError::NotFound(id.to_owned()),
            _ => self.failed(format!("{doing} session {}", id.display()), source),
        })
    }

    fn failed(&self, doing: String, source: io::Error) -> SessionError {
        let doing = format!("{}: {doing}", self.shown);
        SessionError::Io { doing, source }
    }
}

/// A failure of the engine as one of the operating system, with its sentence.
fn io_error(error: Error) -> io::Error {
    let kind = io::Error::from_raw_os_error(error.errno()).kind();
    io::Error::new(kind, error)
}

type Opened = (Box<dyn Place>, String);

fn in_directory(dir: PathBuf) -> Result<Opened> {
    let shown = dir.display().to_string();
    let opened = Directory::open(dir).map_err(|source| SessionError::Io {
        doing: format!("{shown}: opening the directory of sessions"),
        source,
    })?;
    Ok((Box::new(opened), shown))
}

fn in_container(file: &Path, dir: &Path) -> Result<Opened> {
    let shown = file.display().to_string();
    match Container::open(file, dir) {
        Ok(container) => Ok((Box::new(container), shown)),
        Err(Error::Busy(why)) => match mounted(file) {
            Some(mountpoint) => in_directory(mountpoint.join(dir.strip_prefix("/").unwrap_or(dir))),
            None => Err(SessionError::Busy(format!("{shown}: {why}"))),
        },
        Err(Error::Invalid(why)) => Err(SessionError::InvalidConfig(format!("{shown}: {why}"))),
        Err(error) => Err(SessionError::Io {
            doing: format!("{shown}: opening the container"),
            source: io_error(error),
        }),
    }
}

/// Where a container is mounted.
fn mounted(container: &Path) -> Option<PathBuf> {
    let all = mounts::all().ok()?;
    mounts::of(&all, container).map(|mount| mount.mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_names_a_place() {
        let full = config(r#"{"file":"/a.cask","dir":"web","prefix":"sess_","suffix":".json"}"#);
        let full = full.unwrap();
        assert_eq!(full.file.as_deref(), Some(Path::new("/a.cask")));
        assert_eq!(
            (full.prefix.as_str(), full.suffix.as_str()),
            ("sess_", ".json")
        );
        assert!(
            config(r#"{"fiel":"/a.cask"}"#)
                .unwrap_err()
                .contains("fiel")
        );
        for (text, why) in [
            ("{}", "names no `file`"),
            ("7", "expected"),
            (r#"{"dir":"/tmp","prefix":"a/b"}"#, "neither / nor NUL"),
        ] {
            let error = SessionStore::from_json(text).map(drop).unwrap_err();
            assert!(matches!(error, SessionError::InvalidConfig(_)), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
