//! Random operations, weighted to where filesystems go wrong: few names, so that they collide; sizes
//! around block borders; renames over what is there; files that live on without a name.

use caskfs::clock::Timestamp;
use caskfs::device::testing::Rng;
use caskfs::fs::RenameFlags;

use super::model::ModelFs;
use super::op::{Data, Op, Path};
use super::subject::time_of;

/// What kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Bytes in a block: sizes and offsets are taken around its multiples.
    pub block_size: u32,
    /// Largest file in blocks.
    pub max_blocks: u64,
    /// One write in this many is long enough to bypass the log; 0 for none.
    pub bypass_one_in: u64,
    /// So many of eight operations overwrite one of two files from its start in whole blocks, which
    /// uses blocks up and gives them back quickly; these casks are not asked for checkpoints.
    pub overwrite_eighths: u64,
    /// One operation in this many is a point of durability.
    pub sync_one_in: u64,
    /// So many of eight operations have to do with logs.
    pub log_eighths: u64,
    /// So many of eight operations have to do with values.
    pub value_eighths: u64,
}

/// Bytes of a write that is sure to bypass the write-ahead log.
pub const BYPASS_BYTES: usize = 64 << 10;

const DIRS: [&str; 4] = ["", "d", "e", "d/f"];
// Two of them are of one table, whose logs have an order of arrival.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"t_1", b"t_2"];
const XATTRS: [&str; 3] = ["user.a", "user.b", "user.some.longer.name"];

/// The directory of logs.
const LOG_DIR: &str = "l";
// Two of one table; and one so long that its segments have no name but a short one.
const LOGS: [&[u8]; 3] = [b"a", b"t_1", b"t_2"];
const LONG_LOG: [u8; 248] = [b'g'; 248];
const SEGMENTS: [&str; 4] = ["l/a.1", "l/s", "e/s", "d"];
const WRITERS: u64 = 3;
const SETTINGS: [(&str, &[&str]); 6] = [
    ("roll-size", &["0", "1", "30", "120"]),
    ("roll-lines", &["0", "1", "3", "6"]),
    ("roll", &["never", "hour", "day", "day", "month", "year"]),
    ("keep", &["all", "1", "2", "3", "5"]),
    ("header", &["none", "head", "t|who is it"]),
    (
        "roll-name",
        &["%n.%Y%m%d", "%n.old", "%H-%M-%S_%n", "one", "%n", "100%%"],
    ),
];

/// The directory of values, and one in it.
const VALUE_DIR: &str = "v";
const DEEP_DIR: &str = "v/f";
const TTLS: [&str; 6] = ["60", "300", "3600", "86400", "86400", "none"];

/// `len` operations for an empty filesystem; see [`workload_on`].
pub fn workload(seed: u64, mix: Mix, len: usize) -> Vec<Op> {
    let mut model = ModelFs::new(0o755, time_of(0));
    let mut ops = Vec::new();
    if mix.log_eighths > 0 {
        let path = Path::new(LOG_DIR);
        ops.push(Op::Mkdir {
            path: path.clone(),
            perm: 0o755,
        });
        ops.push(Op::Set {
            path,
            name: Path::new("mode"),
            value: Path::new("log"),
        });
        // Not changed later: what is a record then that was begun before, nobody promises.
        if let Some(record) = [None, None, Some("e"), Some("none")][(seed % 4) as usize] {
            ops.push(Op::Set {
                path: Path::new(LOG_DIR),
                name: Path::new("record"),
                value: Path::new(record),
            });
        }
    }
    if mix.value_eighths > 0 {
        let path = Path::new(VALUE_DIR);
        ops.push(Op::Mkdir {
            path: path.clone(),
            perm: 0o755,
        });
        for (name, value) in [("mode", "value"), ("ttl", "3600")] {
            ops.push(Op::Set {
                path: path.clone(),
                name: Path::new(name),
                value: Path::new(value),
            });
        }
    }
    for (index, op) in ops.iter().enumerate() {
        // The outcome is compared when it is done.
        let _ = model.apply(op, time_of(index + 1));
    }
    let done = ops.len();
    ops.extend(workload_on(model, done, seed, mix, len));
    ops
}

/// `len` operations that go on from `model`, of those that fail only every sixth: failing changes
/// nothing, so it teaches little about crashes. The first is number `done` + 1.
pub fn workload_on(mut model: ModelFs, done: usize, seed: u64, mix: Mix, len: usize) -> Vec<Op> {
    let mut generator = Generator::new(seed, mix);
    let mut ops = Vec::with_capacity(len);
    while ops.len() < len {
        let Some(op) = generator.next() else { break };
        if !model.speaks_of(&op) {
            continue;
        }
        let outcome = model.apply(&op, time_of(done + ops.len() + 1));
        if outcome.is_ok() || generator.rng.chance(1, 6) {
            ops.push(op);
        }
    }
    ops
}

/// Makes operations from a seed.
#[derive(Clone, Debug)]
pub struct Generator {
    rng: Rng,
    mix: Mix,
    made: u64,
}

impl Generator {
    pub fn new(seed: u64, mix: Mix) -> Self {
        Self {
            rng: Rng::new(seed),
            mix,
            made: 0,
        }
    }

    fn path(&mut self) -> Path {
        let dir = Path::new(DIRS[self.rng.index(DIRS.len())]);
        match self.rng.below(40) {
            0 => dir.join(&[b'n'; 255]),
            1 => dir.join(b"\xff\x01 %"),
            2 => dir.join(&[b'n'; 256]),
            _ => dir.join(NAMES[self.rng.index(NAMES.len())]),
        }
    }

    /// A path that is likelier a directory.
    fn dir_path(&mut self) -> Path {
        if self.rng.chance(3, 4) {
            Path::new(DIRS[1 + self.rng.index(DIRS.len() - 1)])
        } else {
            self.path()
        }
    }

    /// A path that is likelier a file.
    fn file_path(&mut self) -> Path {
        let dir = Path::new(DIRS[self.rng.index(DIRS.len())]);
        dir.join(NAMES[self.rng.index(3)])
    }

    /// A number of bytes near a multiple of the block size, most often a small one.
    fn bytes(&mut self) -> u64 {
        let block = u64::from(self.mix.block_size);
        let blocks = self.rng.below(self.mix.max_blocks + 1);
        match self.rng.below(8) {
            0 => blocks * block,
            1 => (blocks * block).saturating_sub(1),
            2 => blocks * block + 1,
            3 => self.rng.below(blocks * block + 1),
            4 | 5 => self.rng.below(block),
            _ => self.rng.below(200),
        }
    }

    /// How much to punch: to the end, or what is one operation.
    fn punched(&mut self) -> u64 {
        let most = match self.mix.block_size {
            ..1024 => u64::from(self.mix.block_size),
            _ => u64::MAX,
        };
        match self.rng.below(3) {
            0 => 1 << 20,
            _ => (1 + self.bytes()).min(most),
        }
    }

    fn data(&mut self) -> Data {
        let len = self.bytes() as usize;
        let seed = if self.rng.chance(1, 12) {
            0
        } else {
            self.made << 8 | 1
        };
        Data {
            len: len.max(1),
            seed,
        }
    }

    fn write(&mut self) -> (u64, Data) {
        if self.mix.bypass_one_in > 0 && self.rng.chance(1, self.mix.bypass_one_in) {
            let offset = self.rng.below(2) * u64::from(self.mix.block_size);
            return (
                offset,
                Data {
                    len: BYPASS_BYTES,
                    seed: self.made << 8 | 1,
                },
            );
        }
        (self.bytes(), self.data())
    }

    fn log(&mut self) -> Path {
        match self.rng.below(24) {
            0 => Path::new(LOG_DIR).join(&LONG_LOG),
            _ => Path::new(LOG_DIR).join(LOGS[self.rng.index(LOGS.len())]),
        }
    }

    /// A path that is likelier a segment's.
    fn segment(&mut self) -> Path {
        match self.rng.below(8) {
            0 => self.log(),
            1 | 2 => self.path(),
            _ => Path::new(SEGMENTS[self.rng.index(SEGMENTS.len())]),
        }
    }

    fn lines(&mut self) -> Data {
        let most = [12, 40, 40, 160][self.rng.index(4)];
        Data {
            len: 1 + self.rng.index(most),
            seed: self.made << 8 | 1,
        }
    }

    /// A directory's or, seldom, a file's own setting.
    fn setting(&mut self) -> Op {
        let path = match self.rng.below(4) {
            0 => self.log(),
            _ => Path::new(LOG_DIR),
        };
        let (name, values) = SETTINGS[self.rng.index(SETTINGS.len())];
        if self.rng.chance(1, 6) {
            let name = Path::new(format!("user.cask.{name}"));
            return Op::RemoveXattr { path, name };
        }
        Op::Set {
            path,
            name: Path::new(name),
            value: Path::new(values[self.rng.index(values.len())]),
        }
    }

    fn of_logs(&mut self) -> Op {
        let slot = self.rng.below(WRITERS) as u8;
        match self.rng.below(40) {
            0..=5 => Op::LogOpen {
                path: self.log(),
                slot,
            },
            6..=18 => Op::Line {
                slot,
                data: self.lines(),
            },
            19 => Op::LogClose { slot },
            20..=23 => Op::Rename {
                from: self.log(),
                to: self.segment(),
                flags: RenameFlags::default(),
            },
            24 => Op::Rename {
                from: self.segment(),
                to: self.log(),
                flags: self.rename_flags(),
            },
            25..=27 => Op::Rotate { path: self.log() },
            28..=32 => self.setting(),
            33 | 34 => Op::Clock {
                secs: [600, 3600, 86_400, 86_400, 40 * 86_400][self.rng.index(5)],
            },
            35 => Op::Tick,
            36 => Op::Unlink {
                path: match self.rng.chance(1, 2) {
                    true => self.log(),
                    false => self.segment(),
                },
            },
            37 => Op::Append {
                path: self.log(),
                data: self.data(),
            },
            38 => Op::Truncate {
                path: self.log(),
                len: 0,
            },
            _ => Op::Chmod {
                path: self.log(),
                perm: self.perm(),
            },
        }
    }

    fn value(&mut self) -> Path {
        let dir = match self.rng.below(4) {
            0 => DEEP_DIR,
            _ => VALUE_DIR,
        };
        Path::new(dir).join(NAMES[self.rng.index(3)])
    }

    /// A time from long ago to soon.
    fn moment(&mut self) -> Timestamp {
        let made = time_of(self.made as usize);
        Timestamp {
            secs: made.secs + self.rng.below(8_000) as i64 - 4_000,
            ..made
        }
    }

    fn of_values(&mut self) -> Op {
        let slot = self.rng.below(3) as u8;
        let path = self.value();
        match self.rng.below(48) {
            0..=7 => Op::Create { path, perm: 0o600 },
            8..=12 => Op::Write {
                path,
                offset: [0, 0, self.bytes()][self.rng.index(3)],
                data: self.data(),
            },
            13 | 14 => Op::Append {
                path,
                data: self.data(),
            },
            15 | 16 => Op::Truncate {
                path,
                len: [0, self.bytes()][self.rng.index(2)],
            },
            17..=19 => Op::Open { path, slot },
            20..=24 => Op::WriteOpen {
                slot,
                offset: [0, 0, self.bytes()][self.rng.index(3)],
                data: self.data(),
            },
            25..=27 => Op::Close { slot },
            28 => Op::Unlink { path },
            29 | 30 => Op::Rename {
                from: path,
                to: match self.rng.below(3) {
                    0 => self.file_path(),
                    _ => self.value(),
                },
                flags: self.rename_flags(),
            },
            31 => Op::Rename {
                from: self.file_path(),
                to: path,
                flags: self.rename_flags(),
            },
            32 => Op::Link {
                from: path,
                to: self.value(),
            },
            33 => match self.rng.below(3) {
                0 => Op::Rmdir {
                    path: Path::new(DEEP_DIR),
                },
                _ => Op::Mkdir {
                    path: Path::new(DEEP_DIR),
                    perm: 0o755,
                },
            },
            34 | 35 => Op::Set {
                path: match self.rng.below(3) {
                    0 => path,
                    1 => Path::new(DEEP_DIR),
                    _ => Path::new(VALUE_DIR),
                },
                name: Path::new("ttl"),
                value: Path::new(TTLS[self.rng.index(TTLS.len())]),
            },
            36 => Op::RemoveXattr {
                path,
                name: Path::new("user.cask.ttl"),
            },
            37 | 38 => Op::Utimens {
                path,
                mtime: self.moment(),
            },
            39 | 40 => Op::Clock {
                secs: [20, 60, 1_000, 3_600, 86_400][self.rng.index(5)],
            },
            41 | 42 => Op::Tick,
            43 => Op::Sweep,
            44 | 45 => Op::Snapshot,
            46 => match self.rng.below(3) {
                0 => Op::Fix {
                    more: 1 + self.rng.below(20),
                },
                _ => Op::Punch {
                    path,
                    offset: 0,
                    len: 1,
                },
            },
            _ => Op::Fsync { path },
        }
    }

    fn perm(&mut self) -> u32 {
        [0o644, 0o600, 0o755, 0o777, 0][self.rng.index(5)]
    }

    fn rename_flags(&mut self) -> RenameFlags {
        let mut flags = RenameFlags::default();
        match self.rng.below(10) {
            0 => flags.no_replace = true,
            1 | 2 => flags.exchange = true,
            3 => flags.whiteout = true,
            _ => {}
        }
        flags
    }
}

impl Iterator for Generator {
    type Item = Op;

    /// The next operation; there is no end to them.
    fn next(&mut self) -> Option<Op> {
        self.made += 1;
        if self.mix.log_eighths > 0 && self.rng.chance(self.mix.log_eighths, 8) {
            return Some(self.of_logs());
        }
        if self.mix.value_eighths > 0 && self.rng.chance(self.mix.value_eighths, 8) {
            return Some(self.of_values());
        }
        if self.rng.chance(1, self.mix.sync_one_in) {
            return Some(match self.rng.below(8) {
                _ if self.mix.overwrite_eighths > 0 => Op::Sync,
                0 | 1 => Op::Checkpoint,
                2 => Op::Tick,
                3 | 4 => Op::Sync,
                _ => Op::Fsync {
                    path: self.file_path(),
                },
            });
        }
        if self.rng.chance(self.mix.overwrite_eighths, 8) {
            let path = Path::new(NAMES[self.rng.index(2)]);
            let len = self.mix.block_size as usize * (2 + self.rng.index(4));
            let data = Data {
                len,
                seed: self.made << 8 | 1,
            };
            return Some(Op::Write {
                path,
                offset: 0,
                data,
            });
        }
        Some(match self.rng.below(64) {
            0..=7 => Op::Create {
                path: self.file_path(),
                perm: self.perm(),
            },
            8..=10 => Op::Mkdir {
                path: self.dir_path(),
                perm: 0o755,
            },
            11 => Op::Symlink {
                path: self.path(),
                target: self.path(),
            },
            12 => Op::Fifo {
                path: self.path(),
                perm: self.perm(),
            },
            13 | 14 => Op::Link {
                from: self.file_path(),
                to: self.path(),
            },
            15..=19 => Op::Unlink {
                path: self.file_path(),
            },
            20 => Op::Unlink { path: self.path() },
            21 => Op::Rmdir {
                path: self.dir_path(),
            },
            22..=27 => Op::Rename {
                from: self.file_path(),
                to: self.path(),
                flags: self.rename_flags(),
            },
            28 | 29 => Op::Rename {
                from: self.dir_path(),
                to: self.path(),
                flags: self.rename_flags(),
            },
            30..=38 => {
                let (offset, data) = self.write();
                Op::Write {
                    path: self.file_path(),
                    offset,
                    data,
                }
            }
            39..=44 => Op::Append {
                path: self.file_path(),
                data: self.data(),
            },
            45..=48 => Op::Truncate {
                path: self.file_path(),
                len: self.bytes(),
            },
            49 => Op::Truncate {
                path: self.file_path(),
                len: 0,
            },
            50 | 51 => Op::Punch {
                path: self.file_path(),
                offset: self.bytes(),
                len: self.punched(),
            },
            52 | 53 => {
                let name = Path::new(XATTRS[self.rng.index(XATTRS.len())]);
                let value = Data {
                    len: self.rng.index(200),
                    seed: self.made,
                };
                Op::SetXattr {
                    path: self.path(),
                    name,
                    value,
                }
            }
            54 => {
                let name = Path::new(XATTRS[self.rng.index(XATTRS.len())]);
                Op::RemoveXattr {
                    path: self.path(),
                    name,
                }
            }
            55 => Op::Chmod {
                path: self.path(),
                perm: self.perm(),
            },
            56 => {
                let (uid, gid) = (self.rng.below(3) as u32, self.rng.below(3) as u32);
                Op::Chown {
                    path: self.path(),
                    uid,
                    gid,
                }
            }
            57 => {
                let secs = self.rng.below(1 << 33) as i64 - (1 << 32);
                let nanos = self.rng.below(1_000_000_000) as u32;
                Op::Utimens {
                    path: self.path(),
                    mtime: Timestamp { secs, nanos },
                }
            }
            58..=60 => Op::Open {
                path: self.file_path(),
                slot: self.rng.below(2) as u8,
            },
            61 => Op::Close {
                slot: self.rng.below(2) as u8,
            },
            _ => {
                let (offset, data) = self.write();
                Op::WriteOpen {
                    slot: self.rng.below(2) as u8,
                    offset,
                    data,
                }
            }
        })
    }
}
