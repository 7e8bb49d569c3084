//! Does a mounted cask behave as a filesystem to ordinary programs, and do mount and umount tell the
//! truth?
//!
//! Needs root and /dev/fuse; without them each test says SKIPPED and passes.
#![allow(clippy::unwrap_used)] // As in any test; the lint overlooks helpers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use caskfs::cask::{Cask, FormatOptions};
use caskfs::device::FileDevice;
use caskfs::fuse::mounts::{self, CaskMount};
use parking_lot::{Mutex, MutexGuard};

/// One test at a time: a program that another test starts holds, from its fork to its exec, whatever
/// this one has open, and would keep a mountpoint busy for that moment.
static ALONE: Mutex<()> = Mutex::new(());

/// The container and mountpoint of a test; unmounted and removed with it, however it ends.
struct Bench {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// `None`, said aloud, where nothing can be mounted.
    fn new() -> Option<Self> {
        let openable = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if openable.is_err() || !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let bench = Self {
            dir,
            _alone: ALONE.lock(),
        };
        fs::create_dir(bench.mountpoint()).unwrap();
        let device = FileDevice::create_new(bench.container()).unwrap();
        let options = FormatOptions {
            root_mode: 0o755,
            ..FormatOptions::default()
        };
        Cask::format(&device, &options).unwrap();
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    fn container(&self) -> PathBuf {
        self.path("a b.cask")
    }

    fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A path in the mounted cask.
    fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.mountpoint().join(name.as_ref())
    }

    fn mounted(&self) -> Option<CaskMount> {
        mounts::at(&mounts::all().unwrap(), &self.mountpoint())
    }

    fn mount(&self, args: &[&str]) -> Output {
        let mut mount = caskfs();
        mount.arg("mount").args(args);
        mount.args([self.container(), self.mountpoint()]);
        mount.output().unwrap()
    }

    fn umount(&self, args: &[&str]) -> Output {
        let mut umount = caskfs();
        umount.arg("umount").args(args).arg(self.mountpoint());
        umount.output().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        while self.mounted().is_some() {
            // What a test left open, or a daemon that hangs, must not outlive it.
            let forced = self.umount(&["--force"]);
            if !forced.status.success() {
                let lazy = self.umount(&["--lazy"]);
                assert!(lazy.status.success(), "{lazy:?}");
            }
        }
    }
}

fn caskfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caskfs"));
    command.env_remove("CASKFS_LOG");
    command
}

#[track_caller]
fn ok(output: Output) {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Expects a refusal in one sentence, of which `words` are part.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn files_are_written_read_renamed_and_come_back_after_a_remount() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let mount = bench.mounted().unwrap();
    assert_eq!(mount.source, bench.container());

    fs::create_dir(bench.at("dir")).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(bench.at("dir/large"), &content).unwrap();
    fs::write(bench.at("small"), "hello").unwrap();
    assert_eq!(fs::read(bench.at("dir/large")).unwrap(), content);
    fs::rename(bench.at("small"), bench.at("dir/renamed")).unwrap();
    assert_eq!(errno(fs::read(bench.at("small"))), Some(libc::ENOENT));
    fs::hard_link(bench.at("dir/renamed"), bench.at("linked")).unwrap();
    symlink("dir/renamed", bench.at("symbolic")).unwrap();
    assert_eq!(fs::metadata(bench.at("linked")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read_link(bench.at("symbolic")).unwrap(),
        Path::new("dir/renamed")
    );
    // A name is bytes.
    let odd = OsString::from_vec(b"\xff\xfe odd\n".to_vec());
    fs::write(bench.at(&odd), "odd").unwrap();
    assert_eq!(errno(fs::create_dir(bench.at("dir"))), Some(libc::EEXIST));
    assert_eq!(
        errno(fs::remove_dir(bench.at("dir"))),
        Some(libc::ENOTEMPTY)
    );
    let long = "n".repeat(256);
    assert_eq!(
        errno(fs::write(bench.at(&long), "")),
        Some(libc::ENAMETOOLONG)
    );

    ok(bench.umount(&[]));
    assert!(bench.mounted().is_none());
    assert_eq!(fs::read_dir(bench.mountpoint()).unwrap().count(), 0);
    ok(bench.mount(&[]));
    assert_eq!(fs::read(bench.at("dir/large")).unwrap(), content);
    assert_eq!(fs::read(bench.at("symbolic")).unwrap(), b"hello");
    assert_eq!(fs::read(bench.at(&odd)).unwrap(), b"odd");
    let names: BTreeSet<OsString> = fs::read_dir(bench.mountpoint())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let expected = ["dir", "linked", "symbolic"].map(OsString::from);
    assert_eq!(names, expected.into_iter().chain([odd]).collect());
    ok(bench.umount(&[]));
}

#[test]
fn open_files_keep_to_posix() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(bench.at("file"))
        .unwrap();
    file.write_all(b"0123456789").unwrap();
    file.write_all_at(b"ab", 3).unwrap();
    file.sync_all().unwrap();
    File::open(bench.mountpoint()).unwrap().sync_all().unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "012ab56789");
    let stat = file.metadata().unwrap();
    assert_eq!((stat.len(), stat.mode() & 0o7777), (10, 0o640));

    file.set_len(4).unwrap();
    assert_eq!(fs::read(bench.at("file")).unwrap(), b"012a");
    let truncated = File::create(bench.at("file")).unwrap();
    assert_eq!(truncated.metadata().unwrap().len(), 0);
    let mut append = OpenOptions::new()
        .append(true)
        .open(bench.at("file"))
        .unwrap();
    append.write_all(b"one\n").unwrap();
    append.write_all(b"two\n").unwrap();
    assert_eq!(fs::read(bench.at("file")).unwrap(), b"one\ntwo\n");

    // A file without a name lives as long as it is open.
    fs::remove_file(bench.at("file")).unwrap();
    append.write_all(b"three\n").unwrap();
    assert_eq!(append.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree\n");

    // A hole is no data.
    let sparse = File::create(bench.at("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 30).unwrap();
    let stat = sparse.metadata().unwrap();
    assert_eq!(stat.len(), (1 << 30) + 3);
    assert!(stat.blocks() < 100, "{} blocks", stat.blocks());
    let data = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, 1 << 30);
    let hole = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Hole(0)).unwrap();
    assert_eq!(hole, 0);

    drop((file, truncated, append, sparse));
    ok(bench.umount(&[]));
}

#[test]
fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    fs::write(bench.at("file"), "").unwrap();
    for (tv_sec, tv_nsec) in [
        (1, 5),
        (0, 0),
        (-1, 999_999_999),
        (-2, 800_000_000),
        (1 << 40, 1),
    ] {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, bench.at("file"), &times, AtFlags::empty()).unwrap();
        // Asked anew by another mount, not by the kernel's memory.
        ok(bench.umount(&[]));
        ok(bench.mount(&[]));
        let stat = fs::metadata(bench.at("file")).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (tv_sec, tv_nsec));
        assert_eq!((stat.atime(), stat.atime_nsec()), (tv_sec, tv_nsec));
    }
    ok(bench.umount(&[]));
}

#[test]
fn modes_owners_and_nodes_are_what_was_asked_for() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    // The umask of this process is applied once, by the kernel.
    let masked = Command::new("sh")
        .args([
            "-c",
            "umask 027 && mkdir d && : >f && mkfifo p && mknod n c 300 70000",
        ])
        .current_dir(bench.mountpoint())
        .output()
        .unwrap();
    ok(masked);
    let mode = |name: &str| fs::symlink_metadata(bench.at(name)).unwrap().mode();
    assert_eq!(mode("d"), 0o040_750);
    assert_eq!(mode("f"), 0o100_640);
    assert_eq!(mode("p"), 0o010_640);
    assert_eq!(mode("n"), 0o020_640);
    let node = fs::symlink_metadata(bench.at("n")).unwrap().rdev();
    assert_eq!((libc::major(node), libc::minor(node)), (300, 70_000));
    // A node in a container is no way to a device of the host.
    assert_eq!(errno(File::open(bench.at("n"))), Some(libc::EACCES));

    fs::set_permissions(bench.at("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(mode("f"), 0o104_755);
    std::os::unix::fs::chown(bench.at("f"), Some(4711), Some(42)).unwrap();
    let stat = fs::metadata(bench.at("f")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (4711, 42));
    ok(bench.umount(&[]));
}

#[test]
fn ten_thousand_names_are_listed_once_each() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let dir = bench.at("many");
    fs::create_dir(&dir).unwrap();
    let names: BTreeSet<OsString> = (0..10_000).map(|n| format!("name-{n:05}").into()).collect();
    for name in &names {
        fs::write(dir.join(name), "").unwrap();
    }
    let listed: Vec<OsString> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(listed.len(), names.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    // With attributes, by a program that sees `.` and `..` too.
    let output = Command::new("ls").arg("-laU").arg(&dir).output().unwrap();
    assert_eq!(output.stdout.split(|b| *b == b'\n').count(), 10_000 + 2 + 2);

    // Removing while listing leaves nothing behind.
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&dir).unwrap();
    ok(bench.umount(&[]));
}

#[test]
fn extended_attributes_are_kept() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let file = bench.at("file");
    fs::write(&file, "").unwrap();
    setxattr(&file, "user.colour", b"blue", XattrFlags::CREATE).unwrap();
    let again = setxattr(&file, "user.colour", b"red", XattrFlags::CREATE);
    assert_eq!(again, Err(rustix::io::Errno::EXIST));
    let missing = setxattr(&file, "user.shape", b"round", XattrFlags::REPLACE);
    assert_eq!(missing, Err(rustix::io::Errno::NODATA));
    let mut value = [0; 64];
    let len = getxattr(&file, "user.colour", &mut value).unwrap();
    assert_eq!(value.get(..len), Some(&b"blue"[..]));
    let small = getxattr(&file, "user.colour", &mut [0; 3]);
    assert_eq!(small, Err(rustix::io::Errno::RANGE));
    let len = listxattr(&file, &mut value).unwrap();
    assert_eq!(value.get(..len), Some(&b"user.colour\0"[..]));
    removexattr(&file, "user.colour").unwrap();
    let gone = getxattr(&file, "user.colour", &mut value);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
    ok(bench.umount(&[]));
}

#[test]
fn df_knows_the_container_its_type_and_its_space() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let output = Command::new("df")
        .args(["--output=source,fstype,iused", "-t", "fuse.caskfs"])
        .arg(bench.mountpoint())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().nth(1).unwrap();
    assert!(
        line.starts_with(bench.container().to_str().unwrap()),
        "{line}"
    );
    assert!(line.contains("fuse.caskfs"), "{line}");
    assert!(line.ends_with(" 1"), "{line}");
    let space = rustix::fs::statvfs(bench.mountpoint()).unwrap();
    assert!(space.f_bavail > 0 && space.f_bavail <= space.f_blocks);
    assert_eq!(space.f_namemax, 255);
    ok(bench.umount(&[]));
}

#[test]
fn locks_work_between_processes() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let file = File::create(bench.at("lock")).unwrap();
    file.lock().unwrap();
    let flock = || {
        let mut flock = Command::new("flock");
        flock.arg("-n").arg(bench.at("lock")).arg("true");
        flock.status().unwrap().success()
    };
    assert!(!flock());
    file.unlock().unwrap();
    assert!(flock());
    drop(file);
    ok(bench.umount(&[]));
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    fs::write(bench.at("file"), "kept").unwrap();
    ok(bench.umount(&[]));
    let before = fs::read(bench.container()).unwrap();
    for args in [&["-r"][..], &["-o", "ro,noatime"]] {
        ok(bench.mount(args));
        assert_eq!(fs::read(bench.at("file")).unwrap(), b"kept");
        assert_eq!(errno(fs::write(bench.at("file"), "x")), Some(libc::EROFS));
        assert_eq!(errno(fs::create_dir(bench.at("dir"))), Some(libc::EROFS));
        ok(bench.umount(&[]));
    }
    assert!(fs::read(bench.container()).unwrap() == before);
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_sentence() {
    let Some(bench) = Bench::new() else { return };
    let before = fs::read(bench.container()).unwrap();
    refused(&bench.mount(&["-o", "bogus"]), 1, &["bogus"]);
    refused(&bench.mount(&["-o", "ro,threads=0"]), 1, &["threads=0"]);
    let mount = |container: &Path, mountpoint: &Path| {
        caskfs()
            .arg("mount")
            .args([container, mountpoint])
            .output()
            .unwrap()
    };
    let (container, place) = (bench.container(), bench.mountpoint());
    refused(
        &mount(&bench.path("none"), &place),
        32,
        &["none", "No such file"],
    );
    refused(
        &mount(&container, &bench.path("none")),
        32,
        &["none", "No such file"],
    );
    refused(&mount(&container, &container), 32, &["on itself"]);
    refused(
        &mount(&container, &bench.path("")),
        32,
        &["would be hidden"],
    );
    let foreign = bench.path("foreign");
    fs::write(&foreign, "some other file\n".repeat(5000)).unwrap();
    refused(&mount(&foreign, &place), 32, &["foreign"]);
    refused(&mount(&container, &foreign), 32, &["not a directory"]);
    assert_eq!(fs::read(&foreign).unwrap().len(), 80_000);
    let short = bench.path("short");
    fs::write(&short, &before[..100_000.min(before.len() / 2)]).unwrap();
    refused(&mount(&short, &place), 32, &["short"]);
    refused(&bench.umount(&[]), 32, &["no cask is mounted"]);
    assert!(bench.mounted().is_none());
    assert!(fs::read(&container).unwrap() == before);
}

#[test]
fn a_mounted_container_is_not_mounted_twice() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    refused(&bench.mount(&[]), 32, &["already"]);
    let other = bench.path("other");
    fs::create_dir(&other).unwrap();
    let again = caskfs()
        .arg("mount")
        .args([bench.container(), other])
        .output()
        .unwrap();
    refused(&again, 32, &["already", "mnt"]);
    ok(bench.umount(&[]));
}

#[test]
fn umount_says_when_it_is_in_use_and_waits_until_the_container_is_free() {
    let Some(bench) = Bench::new() else { return };
    for round in 0..10 {
        ok(bench.mount(&[]));
        let file = File::create(bench.at(format!("{round}"))).unwrap();
        refused(&bench.umount(&[]), 32, &["is in use", "umount -l"]);
        drop(file);
        // By the name of the container, as `umount DEVICE`.
        ok(caskfs()
            .arg("umount")
            .arg(bench.container())
            .output()
            .unwrap());
        FileDevice::open(bench.container(), caskfs::device::Access::ReadWrite).unwrap();
    }
}

#[test]
fn a_lazy_unmount_ends_with_the_last_open_file() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let mut file = File::create(bench.at("file")).unwrap();
    ok(bench.umount(&["-l"]));
    assert!(bench.mounted().is_none());
    file.write_all(b"still there").unwrap();
    drop(file);
    caskfs::fuse::session::wait_until_released(&bench.container()).unwrap();
    ok(bench.mount(&[]));
    assert_eq!(fs::read(bench.at("file")).unwrap(), b"still there");
    ok(bench.umount(&[]));
}

/// The daemon that holds the container, as its own error message names it.
fn daemon(bench: &Bench) -> rustix::process::Pid {
    let error = FileDevice::open(bench.container(), caskfs::device::Access::ReadWrite)
        .err()
        .unwrap()
        .to_string();
    let pid = error.split("process ").nth(1).unwrap();
    let digits: String = pid.chars().take_while(char::is_ascii_digit).collect();
    rustix::process::Pid::from_raw(digits.parse().unwrap()).unwrap()
}

#[test]
fn a_daemon_that_is_killed_loses_nothing_and_is_replaced() {
    let Some(bench) = Bench::new() else { return };
    for round in 0..5 {
        let mount = bench.mount(&[]);
        assert!(mount.status.success(), "{mount:?}");
        let replaced = String::from_utf8_lossy(&mount.stderr).contains("was killed");
        assert_eq!(replaced, round > 0, "{mount:?}");
        fs::write(bench.at(format!("{round}")), format!("written in {round}")).unwrap();
        rustix::process::kill_process(daemon(&bench), rustix::process::Signal::KILL).unwrap();
        let is_dead = |error: io::Error| error.kind() == ErrorKind::NotConnected;
        while !fs::metadata(bench.mountpoint()).is_err_and(is_dead) {
            std::thread::yield_now();
        }
    }
    // A dead mount goes like any other.
    ok(bench.umount(&[]));
    ok(bench.mount(&[]));
    for round in 0..5 {
        let content = fs::read_to_string(bench.at(format!("{round}"))).unwrap();
        assert_eq!(content, format!("written in {round}"));
    }
    ok(bench.umount(&[]));
}

#[test]
fn a_signal_ends_the_daemon_cleanly() {
    use rustix::process::Signal;
    let Some(bench) = Bench::new() else { return };
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        ok(bench.mount(&[]));
        fs::write(bench.at("file"), format!("{signal:?}")).unwrap();
        rustix::process::kill_process(daemon(&bench), signal).unwrap();
        while bench.mounted().is_some() {
            std::thread::yield_now();
        }
        caskfs::fuse::session::wait_until_released(&bench.container()).unwrap();
        ok(bench.mount(&[]));
        let content = fs::read_to_string(bench.at("file")).unwrap();
        assert_eq!(content, format!("{signal:?}"));
        ok(bench.umount(&[]));
    }
}

#[test]
fn a_signal_takes_the_mount_from_under_those_who_use_it_and_a_second_one_cuts_them_off() {
    use rustix::process::Signal;
    let Some(bench) = Bench::new() else { return };
    ok(bench.mount(&[]));
    let mut file = File::create(bench.at("file")).unwrap();
    let daemon = daemon(&bench);
    rustix::process::kill_process(daemon, Signal::TERM).unwrap();
    while bench.mounted().is_some() {
        std::thread::yield_now();
    }
    file.write_all(b"in the time of grace").unwrap();
    rustix::process::kill_process(daemon, Signal::TERM).unwrap();
    caskfs::fuse::session::wait_until_released(&bench.container()).unwrap();
    assert!(file.write_all(b"too late").is_err());
    ok(bench.mount(&[]));
    let content = fs::read_to_string(bench.at("file")).unwrap();
    assert_eq!(content, "in the time of grace");
    ok(bench.umount(&[]));
}

#[test]
fn a_daemon_keeps_nothing_open_that_its_caller_had_open() {
    let Some(bench) = Bench::new() else { return };
    let mount = Command::new("sh")
        .arg("-c")
        .arg("exec 7>leaked; exec \"$0\" mount -- \"$1\" \"$2\"")
        .arg(env!("CARGO_BIN_EXE_caskfs"))
        .args([bench.container(), bench.mountpoint()])
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    ok(mount);
    let pid = daemon(&bench).as_raw_nonzero();
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().as_bytes().to_vec();
    assert!(open.iter().all(|path| name(path) != b"leaked"), "{open:?}");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    ok(bench.umount(&[]));
}
