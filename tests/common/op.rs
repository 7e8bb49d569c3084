//! The operations that tests run, as values: one list drives the model and the cask, is printed
//! when they differ, shrunk, and kept as text in tests/regress/.
//!
//! A path names directories from the root on, separated by `/`; names are bytes. In text a byte
//! that is not plain is written `%` and two hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use caskfs::clock::Timestamp;
use caskfs::device::testing::Rng;
use caskfs::fs::RenameFlags;

/// A path from the root on, `a/b`; empty for the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Path(pub Vec<u8>);

impl Path {
    pub fn new(path: impl AsRef<[u8]>) -> Self {
        Self(path.as_ref().to_vec())
    }

    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
    }

    /// The directory and the last name; None for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        let name = self.names().last()?;
        let dir = self.0.len() - name.len();
        Some((Self::new(&self.0[..dir.saturating_sub(1)]), name))
    }

    pub fn join(&self, name: &[u8]) -> Self {
        let slash: &[u8] = if self.0.is_empty() { b"" } else { b"/" };
        Self([&self.0, slash, name].concat())
    }

    /// Whether `other` stands somewhere below this directory.
    pub fn is_above(&self, other: &Self) -> bool {
        self.names().count() < other.names().count()
            && self.names().zip(other.names()).all(|(a, b)| a == b)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "/");
        }
        for byte in &self.0 {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                    write!(f, "{}", char::from(*byte))?
                }
                other => write!(f, "%{other:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Path {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let mut rest = text.trim_start_matches('/').as_bytes();
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            if *byte == b'%' {
                let (hex, after) = rest.split_at_checked(2).ok_or("a lone %")?;
                let hex = std::str::from_utf8(hex).map_err(|e| e.to_string())?;
                bytes.push(u8::from_str_radix(hex, 16).map_err(|e| e.to_string())?);
                rest = after;
            } else {
                bytes.push(*byte);
            }
        }
        Ok(Self(bytes))
    }
}

/// Bytes to write, as few words: a length and what decides them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    pub len: usize,
    /// 0 for zeros.
    pub seed: u64,
}

impl Data {
    /// The text `1` or `0`.
    pub fn digit(one: bool) -> Self {
        Self {
            len: 1,
            seed: if one { 57 } else { 164 },
        }
    }

    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        if self.seed != 0 {
            Rng::new(self.seed).fill(&mut bytes);
        }
        bytes
    }

    /// Lines of letters, the last one most often begun only.
    pub fn text(self) -> Vec<u8> {
        let mut rng = Rng::new(self.seed);
        let one_in = 4 + rng.below(12);
        let mut byte = |_| match rng.chance(1, one_in) {
            true => b'\n',
            false => b'a' + rng.below(26) as u8,
        };
        (0..self.len).map(&mut byte).collect()
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a regular file; fails if the name is taken.
    Create {
        path: Path,
        perm: u32,
    },
    /// Makes a named pipe.
    Fifo {
        path: Path,
        perm: u32,
    },
    Mkdir {
        path: Path,
        perm: u32,
    },
    Symlink {
        path: Path,
        target: Path,
    },
    Link {
        from: Path,
        to: Path,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        flags: RenameFlags,
    },
    Write {
        path: Path,
        offset: u64,
        data: Data,
    },
    Append {
        path: Path,
        data: Data,
    },
    Truncate {
        path: Path,
        len: u64,
    },
    /// `FALLOC_FL_PUNCH_HOLE`.
    Punch {
        path: Path,
        offset: u64,
        len: u64,
    },
    SetXattr {
        path: Path,
        name: Path,
        value: Data,
    },
    RemoveXattr {
        path: Path,
        name: Path,
    },
    Chmod {
        path: Path,
        perm: u32,
    },
    Chown {
        path: Path,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: Path,
        mtime: Timestamp,
    },
    /// Opens a regular file into a slot; whatever the slot held is closed first.
    Open {
        path: Path,
        slot: u8,
    },
    Close {
        slot: u8,
    },
    /// Writes through an open handle, whose file may have no name any more.
    WriteOpen {
        slot: u8,
        offset: u64,
        data: Data,
    },
    /// Everything so far is durable when it returns.
    Fsync {
        path: Path,
    },
    Sync,
    Checkpoint,
    /// The background duties come round.
    Tick,
    /// `caskfs set`.
    Set {
        path: Path,
        name: Path,
        value: Path,
    },
    /// Opens a log as `>>` does, which makes it if it is not there; whatever the slot held is closed.
    LogOpen {
        path: Path,
        slot: u8,
    },
    /// Appends text through a handle of a log.
    Line {
        slot: u8,
        data: Data,
    },
    LogClose {
        slot: u8,
    },
    /// `caskfs rotate`.
    Rotate {
        path: Path,
    },
    /// The clock moves on.
    Clock {
        secs: i64,
    },
    /// Removes what is over, as whoever lacks room does.
    Sweep,
    /// `caskfs resize --blocks` by so many.
    Fix {
        more: u64,
    },
    /// `caskfs snapshot`; the one before is looked at, however late that is.
    Snapshot,
    /// A cut on a cask that has no room for its line in the record of rolls, nor to heed `keep`.
    Bare {
        op: Box<Op>,
    },
}

impl Op {
    /// Whether it writes bytes at a place.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteOpen { .. })
    }

    /// Whether lack of space may refuse it.
    pub fn may_lack_space(&self) -> bool {
        match self {
            Self::Unlink { .. }
            | Self::Rmdir { .. }
            | Self::RemoveXattr { .. }
            | Self::Close { .. }
            | Self::Open { .. }
            | Self::Fsync { .. }
            | Self::Sync
            | Self::Checkpoint
            | Self::Tick
            | Self::LogClose { .. }
            | Self::Clock { .. }
            | Self::Sweep
            | Self::Snapshot => false,
            Self::Bare { op } => op.may_lack_space(),
            Self::Truncate { len, .. } => *len > 0,
            _ => true,
        }
    }

    /// Whether everything so far is durable when it has returned.
    pub fn is_durability_point(&self) -> bool {
        matches!(
            self,
            Self::Fsync { .. } | Self::Sync | Self::Checkpoint | Self::Fix { .. } | Self::Snapshot
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { path, perm } => write!(f, "create {path} {perm:o}"),
            Self::Fifo { path, perm } => write!(f, "fifo {path} {perm:o}"),
            Self::Mkdir { path, perm } => write!(f, "mkdir {path} {perm:o}"),
            Self::Symlink { path, target } => write!(f, "symlink {path} {target}"),
            Self::Link { from, to } => write!(f, "link {from} {to}"),
            Self::Unlink { path } => write!(f, "unlink {path}"),
            Self::Rmdir { path } => write!(f, "rmdir {path}"),
            Self::Rename { from, to, flags } => {
                let bits = u8::from(flags.no_replace)
                    | u8::from(flags.exchange) << 1
                    | u8::from(flags.whiteout) << 2;
                write!(f, "rename {from} {to} {bits}")
            }
            Self::Write { path, offset, data } => {
                write!(f, "write {path} {offset} {} {}", data.len, data.seed)
            }
            Self::Append { path, data } => write!(f, "append {path} {} {}", data.len, data.seed),
            Self::Truncate { path, len } => write!(f, "truncate {path} {len}"),
            Self::Punch { path, offset, len } => write!(f, "punch {path} {offset} {len}"),
            Self::SetXattr { path, name, value } => {
                write!(f, "setxattr {path} {name} {} {}", value.len, value.seed)
            }
            Self::RemoveXattr { path, name } => write!(f, "removexattr {path} {name}"),
            Self::Chmod { path, perm } => write!(f, "chmod {path} {perm:o}"),
            Self::Chown { path, uid, gid } => write!(f, "chown {path} {uid} {gid}"),
            Self::Utimens { path, mtime } => {
                write!(f, "utimens {path} {} {}", mtime.secs, mtime.nanos)
            }
            Self::Open { path, slot } => write!(f, "open {path} {slot}"),
            Self::Close { slot } => write!(f, "close {slot}"),
            Self::WriteOpen { slot, offset, data } => {
                write!(f, "writeopen {slot} {offset} {} {}", data.len, data.seed)
            }
            Self::Fsync { path } => write!(f, "fsync {path}"),
            Self::Sync => write!(f, "sync"),
            Self::Checkpoint => write!(f, "checkpoint"),
            Self::Tick => write!(f, "tick"),
            Self::Set { path, name, value } => write!(f, "set {path} {name} {value}"),
            Self::LogOpen { path, slot } => write!(f, "logopen {path} {slot}"),
            Self::Line { slot, data } => write!(f, "line {slot} {} {}", data.len, data.seed),
            Self::LogClose { slot } => write!(f, "logclose {slot}"),
            Self::Rotate { path } => write!(f, "rotate {path}"),
            Self::Clock { secs } => write!(f, "clock {secs}"),
            Self::Sweep => write!(f, "sweep"),
            Self::Fix { more } => write!(f, "fix {more}"),
            Self::Snapshot => write!(f, "snapshot"),
            Self::Bare { op } => write!(f, "bare {op}"),
        }
    }
}

/// The words of a line, taken one after the other.
struct Words<'t>(std::str::SplitAsciiWhitespace<'t>);

impl Words<'_> {
    fn word<T: FromStr>(&mut self) -> Result<T, String>
    where
        T::Err: fmt::Display,
    {
        let word = self.0.next().ok_or("a word is missing")?;
        word.parse().map_err(|e| format!("{word}: {e}"))
    }

    fn octal(&mut self) -> Result<u32, String> {
        u32::from_str_radix(&self.word::<String>()?, 8).map_err(|e| e.to_string())
    }

    fn data(&mut self) -> Result<Data, String> {
        Ok(Data {
            len: self.word()?,
            seed: self.word()?,
        })
    }
}

impl FromStr for Op {
    type Err = String;
    fn from_str(line: &str) -> Result<Self, String> {
        let mut w = Words(line.split_ascii_whitespace());
        let op = match w.word::<String>()?.as_str() {
            "create" => Self::Create {
                path: w.word()?,
                perm: w.octal()?,
            },
            "fifo" => Self::Fifo {
                path: w.word()?,
                perm: w.octal()?,
            },
            "mkdir" => Self::Mkdir {
                path: w.word()?,
                perm: w.octal()?,
            },
            "symlink" => Self::Symlink {
                path: w.word()?,
                target: w.word()?,
            },
            "link" => Self::Link {
                from: w.word()?,
                to: w.word()?,
            },
            "unlink" => Self::Unlink { path: w.word()? },
            "rmdir" => Self::Rmdir { path: w.word()? },
            "rename" => {
                let (from, to, bits) = (w.word()?, w.word()?, w.word::<u8>()?);
                let flags = RenameFlags {
                    no_replace: bits & 1 != 0,
                    exchange: bits & 2 != 0,
                    whiteout: bits & 4 != 0,
                };
                Self::Rename { from, to, flags }
            }
            "write" => Self::Write {
                path: w.word()?,
                offset: w.word()?,
                data: w.data()?,
            },
            "append" => Self::Append {
                path: w.word()?,
                data: w.data()?,
            },
            "truncate" => Self::Truncate {
                path: w.word()?,
                len: w.word()?,
            },
            "punch" => Self::Punch {
                path: w.word()?,
                offset: w.word()?,
                len: w.word()?,
            },
            "setxattr" => Self::SetXattr {
                path: w.word()?,
                name: w.word()?,
                value: w.data()?,
            },
            "removexattr" => Self::RemoveXattr {
                path: w.word()?,
                name: w.word()?,
            },
            "chmod" => Self::Chmod {
                path: w.word()?,
                perm: w.octal()?,
            },
            "chown" => Self::Chown {
                path: w.word()?,
                uid: w.word()?,
                gid: w.word()?,
            },
            "utimens" => {
                let path = w.word()?;
                Self::Utimens {
                    path,
                    mtime: Timestamp {
                        secs: w.word()?,
                        nanos: w.word()?,
                    },
                }
            }
            "open" => Self::Open {
                path: w.word()?,
                slot: w.word()?,
            },
            "close" => Self::Close { slot: w.word()? },
            "writeopen" => Self::WriteOpen {
                slot: w.word()?,
                offset: w.word()?,
                data: w.data()?,
            },
            "fsync" => Self::Fsync { path: w.word()? },
            "sync" => Self::Sync,
            "checkpoint" => Self::Checkpoint,
            "tick" => Self::Tick,
            "set" => Self::Set {
                path: w.word()?,
                name: w.word()?,
                value: w.word()?,
            },
            "logopen" => Self::LogOpen {
                path: w.word()?,
                slot: w.word()?,
            },
            "line" => Self::Line {
                slot: w.word()?,
                data: w.data()?,
            },
            "logclose" => Self::LogClose { slot: w.word()? },
            "rotate" => Self::Rotate { path: w.word()? },
            "clock" => Self::Clock { secs: w.word()? },
            "sweep" => Self::Sweep,
            "fix" => Self::Fix { more: w.word()? },
            "snapshot" => Self::Snapshot,
            "bare" => {
                let rest: Vec<&str> = w.0.by_ref().collect();
                let op = Box::new(rest.join(" ").parse()?);
                Self::Bare { op }
            }
            other => return Err(format!("no such operation: {other}")),
        };
        match w.0.next() {
            None => Ok(op),
            Some(word) => Err(format!("a word too many: {word}")),
        }
    }
}
