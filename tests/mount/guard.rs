//! A cask that is made, mounted and taken away again whatever happens to the test.
//!
//! Invariant: when a [`Cask`] is gone there is no mount, no daemon and no directory of it left, also
//! after a panic; an orderly [`Cask::unmount`] moreover proves that the daemon held no more
//! descriptors than right after the mount (but the pipe to the process that wakes watchers), ended, that
//! process with it, and left a container that `fsck` calls clean.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The program under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_caskfs");
/// Longest that any single command or state change may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A number from the environment, for shorter or longer runs.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Whether the tests run on an ordinary directory instead of a cask, to test the tests.
pub fn plain() -> bool {
    std::env::var_os("CASKFS_TEST_PLAIN").is_some()
}

/// Waits until `met`; fails after `limit`.
pub fn until(what: &str, limit: Duration, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        pace(Duration::from_millis(1));
    }
}

/// Lets `time` pass: for the rhythm of a load or between two looks, never for a verdict.
pub fn pace(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        thread::park_timeout(left);
    }
}

/// Tests share the machine, but those that measure have it alone.
static MACHINE: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());
/// How many tests may share it.
const ALL: u32 = 64;

/// A part of the machine, given back when dropped.
pub struct Share(u32);

impl Share {
    /// The part of a test that has no cask.
    pub fn one() -> Self {
        Self::take(1)
    }

    fn take(parts: u32) -> Self {
        let taken = MACHINE.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = MACHINE
            .1
            .wait_while(taken, |taken| *taken + parts > ALL)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += parts;
        Self(parts)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *MACHINE.0.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        MACHINE.1.notify_all();
    }
}

/// What a finished command said.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Fails unless the command ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code,
            Some(0),
            "the command failed: {}{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a command to its end, at most [`PATIENCE`]. The output goes through files, so a daemon that
/// keeps them open cannot hold the caller up.
pub fn run(command: &mut Command) -> Ran {
    let mut stdout = tempfile::tempfile().unwrap();
    let mut stderr = tempfile::tempfile().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} did not end within {PATIENCE:?}");
        }
        pace(Duration::from_micros(200));
    };
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ran {
        code: status.code(),
        stdout: text(&mut stdout),
        stderr: text(&mut stderr),
    }
}

/// Runs a program with these arguments.
pub fn sh<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
    run(Command::new(program).args(arguments))
}

/// Runs `caskfs` with these arguments.
pub fn caskfs<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    sh(BIN, arguments)
}

/// Whether a program is installed; says SKIPPED when it is not.
pub fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        skipped(&format!("{program} is not installed"));
    }
    found
}

fn skipped(why: &str) {
    assert!(
        std::env::var_os("CASKFS_REQUIRE_MOUNT").is_none(),
        "cannot run: {why}"
    );
    // Past the capture of the test harness: a skipped proof is no proof.
    let line = format!(
        "SKIPPED: {} ({why})\n",
        thread::current().name().unwrap_or("test")
    );
    let _ = File::options()
        .write(true)
        .open("/dev/stderr")
        .and_then(|mut file| file.write_all(line.as_bytes()));
}

fn can_mount() -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped("only root can mount");
        return false;
    }
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        skipped("/dev/fuse cannot be opened");
        return false;
    }
    true
}

/// The type of the mount at `path`, from the kernel's own table.
pub fn mount_type(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().rev().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        (Path::new(mount.split(' ').nth(4)?) == path)
            .then(|| rest.split(' ').next().unwrap_or_default().to_owned())
    })
}

/// The process that has the container open.
fn daemon_of(container: &Path) -> Option<Pid> {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == std::process::id().cast_signed() {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        if descriptors
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == container))
        {
            return Pid::from_raw(pid);
        }
    }
    None
}

/// The processes that wake the watchers of what is mounted here.
fn wakers(mountpoint: &Path) -> Vec<Pid> {
    let is_waker = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"wake-watchers"[..])
            && words.get(2) == Some(&mountpoint.as_os_str().as_encoded_bytes())
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            // A process that has ended has no command line.
            is_waker(&fs::read(entry.path().join("cmdline")).ok()?).then_some(pid)
        })
        .collect()
}

fn alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with(['Z', 'X'])
    })
}

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).map_or(0, Iterator::count)
}

/// What the directory of a test begins with; the process of the test follows.
const PREFIX: &str = "caskfs-test-";
static SWEPT: Once = Once::new();

/// Takes away what tests left behind that were themselves killed.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-')?.0.parse().ok());
        let Some(owner) = owner.and_then(Pid::from_raw) else {
            continue;
        };
        if alive(owner) {
            continue;
        }
        let dir = entry.path();
        if let Some(daemon) = daemon_of(&dir.join("a.cask")) {
            let _ = kill_process(daemon, Signal::KILL);
        }
        let mountpoint = dir.join("mnt");
        while mount_type(&mountpoint).is_some() {
            if rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
        let _ = fs::remove_dir_all(dir);
    }
}

/// A mounted cask's daemon.
struct Daemon {
    pid: Pid,
    descriptors: usize,
    /// Dropped first of all, which ends the watch.
    _watch: mpsc::Sender<()>,
}

/// A cask in a directory of its own.
pub struct Cask {
    dir: Option<TempDir>,
    container: PathBuf,
    mountpoint: PathBuf,
    daemon: Option<Daemon>,
    _share: Share,
}

impl Cask {
    /// A cask made with these arguments of `mkfs`, not mounted. `None` where nothing can be mounted.
    pub fn make(arguments: &[&str]) -> Option<Self> {
        Self::make_sharing(arguments, Share::take(1))
    }

    fn make_sharing(arguments: &[&str], share: Share) -> Option<Self> {
        if plain() {
            // An ordinary directory has no bounds, and nobody would stop a test that looks for them.
            if !arguments.is_empty() {
                return None;
            }
        } else if !can_mount() {
            return None;
        }
        let base =
            std::env::var_os("CASKFS_TEST_TMP").map_or_else(std::env::temp_dir, PathBuf::from);
        SWEPT.call_once(|| sweep(&base));
        let dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir_in(base)
            .unwrap();
        let top = dir.path().canonicalize().unwrap();
        let cask = Self {
            container: top.join("a.cask"),
            mountpoint: top.join("mnt"),
            dir: Some(dir),
            daemon: None,
            _share: share,
        };
        fs::create_dir(&cask.mountpoint).unwrap();
        if plain() {
            fs::create_dir(cask.path("logs")).unwrap();
            fs::create_dir(cask.path("sessions")).unwrap();
        } else {
            caskfs(
                [OsStr::new("mkfs"), cask.container.as_os_str()]
                    .into_iter()
                    .chain(arguments.iter().map(OsStr::new)),
            )
            .ok();
        }
        Some(cask)
    }

    /// A cask with the usual `logs` and `sessions`, mounted.
    pub fn mounted() -> Option<Self> {
        Self::mounted_with(&[])
    }

    /// A mounted cask made with these arguments of `mkfs`.
    pub fn mounted_with(arguments: &[&str]) -> Option<Self> {
        let mut cask = Self::make(arguments)?;
        cask.mount();
        Some(cask)
    }

    /// A mounted cask whose test has the machine to itself.
    pub fn mounted_alone(arguments: &[&str]) -> Option<Self> {
        let mut cask = Self::make_sharing(arguments, Share::take(ALL))?;
        cask.mount();
        Some(cask)
    }

    /// Mounts; answers how long `caskfs mount` took.
    pub fn mount(&mut self) -> Duration {
        self.mount_with(&[])
    }

    /// Mounts with further arguments; answers how long `caskfs mount` took.
    pub fn mount_with(&mut self, arguments: &[&str]) -> Duration {
        if plain() {
            return Duration::ZERO;
        }
        let start = Instant::now();
        let ran = caskfs(
            [
                OsStr::new("mount"),
                self.container.as_os_str(),
                self.mountpoint.as_os_str(),
            ]
            .into_iter()
            .chain(arguments.iter().map(OsStr::new)),
        );
        let took = start.elapsed();
        ran.ok();
        let kind = mount_type(&self.mountpoint)
            .expect("`caskfs mount` returned before the mount was there");
        assert!(kind.contains("fuse"), "mounted as {kind}");
        let pid = daemon_of(&self.container).expect("no process has the container open");
        // A daemon that hangs would hang the test: it is killed, and the test fails with ENOTCONN.
        let limit = Duration::from_secs(setting("CASKFS_WATCHDOG", 1800));
        let (watch, watched) = mpsc::channel::<()>();
        thread::spawn(move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the mount was not done after {limit:?}: killing its daemon");
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        self.daemon = Some(Daemon {
            pid,
            descriptors: descriptors(pid),
            _watch: watch,
        });
        took
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.mountpoint.join(below)
    }

    /// A path beside the mount, on the host.
    pub fn outside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.container.with_file_name("").join(name)
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The container file.
    pub fn container(&self) -> &Path {
        &self.container
    }

    /// The daemon's process.
    pub fn pid(&self) -> i32 {
        self.daemon
            .as_ref()
            .expect("mounted")
            .pid
            .as_raw_nonzero()
            .get()
    }

    /// Bytes that the container takes on the host's disk.
    pub fn disk_bytes(&self) -> u64 {
        fs::metadata(&self.container).unwrap().blocks() * 512
    }

    /// A value in KiB from the daemon's `/proc/PID/status`.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The time that the daemon's threads have had of the processors.
    pub fn processor_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let spent = tasks.map(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(spent.sum())
    }

    /// Kills the daemon with SIGKILL and takes the dead mount away. Whoever has files open in the
    /// mount must let go of them by himself.
    pub fn kill9(&mut self) {
        self.kill_daemon();
        self.clear_dead_mount();
    }

    /// Kills the daemon with SIGKILL; the mount stays and answers ENOTCONN.
    pub fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            kill_process(daemon.pid, Signal::KILL).unwrap();
            until("the end of the killed daemon", PATIENCE, || {
                !alive(daemon.pid)
            });
            self.no_waker_is_left();
        }
    }

    /// The processes that wake watchers of this mount.
    pub fn wakers(&self) -> Vec<Pid> {
        wakers(&self.mountpoint)
    }

    fn no_waker_is_left(&self) {
        until("the end of the waking process", PATIENCE, || {
            self.wakers().is_empty()
        });
    }

    /// Takes the mount of a killed daemon away.
    pub fn clear_dead_mount(&self) {
        if !plain() {
            caskfs([OsStr::new("umount"), self.mountpoint.as_os_str()]).ok();
            assert_eq!(
                mount_type(&self.mountpoint),
                None,
                "the dead mount is still there"
            );
        }
    }

    /// Unmounts in good order and proves that nothing leaked and `fsck` is content.
    pub fn unmount(&mut self) {
        self.unmount_by(|mountpoint| {
            caskfs([OsStr::new("umount"), mountpoint.as_os_str()]).ok();
        });
    }

    /// As [`Cask::unmount`], by whatever way.
    pub fn unmount_by(&mut self, way: impl FnOnce(&Path)) {
        let Some(daemon) = &self.daemon else { return };
        let (pid, held) = (daemon.pid, daemon.descriptors);
        // The kernel tells of closed files in its own time.
        until("the daemon to let go of its descriptors", PATIENCE, || {
            descriptors(pid) <= held + self.wakers().len()
        });
        way(&self.mountpoint);
        assert_eq!(
            mount_type(&self.mountpoint),
            None,
            "the mount is still there"
        );
        until("the end of the daemon", PATIENCE, || !alive(pid));
        self.daemon = None;
        self.no_waker_is_left();
        assert_eq!(
            daemon_of(&self.container),
            None,
            "somebody still has the container open"
        );
        self.fsck();
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Fails unless `caskfs fsck` calls the unmounted container clean.
    #[track_caller]
    pub fn fsck(&self) {
        if !plain() {
            let ran = caskfs([OsStr::new("fsck"), self.container.as_os_str()]);
            assert_eq!(
                ran.code,
                Some(0),
                "fsck is not content: {}{}",
                ran.stdout,
                ran.stderr
            );
        }
    }

    /// Sets a setting of the cask on a path in the mount, as a user does.
    #[track_caller]
    pub fn set(&self, below: &str, setting: &str) {
        caskfs([
            OsStr::new("set"),
            self.path(below).as_os_str(),
            OsStr::new(setting),
        ])
        .ok();
    }
}

impl Drop for Cask {
    fn drop(&mut self) {
        let verdict = if thread::panicking() {
            Ok(())
        } else {
            catch_unwind(AssertUnwindSafe(|| self.unmount()))
        };
        if let Some(daemon) = self.daemon.take() {
            let _ = kill_process(daemon.pid, Signal::KILL);
            let start = Instant::now();
            while alive(daemon.pid) && start.elapsed() < PATIENCE {
                pace(Duration::from_millis(1));
            }
        }
        let mut keep = std::env::var_os("CASKFS_TEST_KEEP").is_some()
            && (thread::panicking() || verdict.is_err());
        while mount_type(&self.mountpoint).is_some() {
            if rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH).is_err() {
                // Never remove a directory recursively through a mount.
                keep = true;
                break;
            }
        }
        if let Some(dir) = self.dir.take().filter(|_| keep) {
            eprintln!("left as it is: {}", dir.keep().display());
        }
        if let Err(panic) = verdict {
            resume_unwind(panic);
        }
    }
}

/// A small, fast, seeded source of choices: runs differ by their seed only.
pub struct Dice(u64);

impl Dice {
    /// Choices that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }
}
