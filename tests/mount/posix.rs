//! Plain mode: does everything that programs expect of a filesystem work as on ext4?
//!
//! With `CASKFS_TEST_PLAIN=1` the same tests run on an ordinary directory, which is the reference.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom as Seeks, Timespec,
    Timestamps, XattrFlags, fallocate, getxattr, linkat, listxattr, lsetxattr, mknodat, open,
    removexattr, renameat_with, seek, setxattr, statvfs, utimensat,
};
use rustix::io::Errno;

use super::guard::{Cask, installed, run};

/// A mounted cask and a plain directory in it.
fn plain_dir() -> Option<(Cask, PathBuf)> {
    let cask = Cask::mounted()?;
    let dir = cask.path("p");
    fs::create_dir(&dir).unwrap();
    Some((cask, dir))
}

#[track_caller]
fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[track_caller]
fn fails<T>(result: std::io::Result<T>, errno: Errno) {
    assert_eq!(
        result.err().and_then(|error| error.raw_os_error()),
        Some(errno.raw_os_error())
    );
}

fn names(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

#[test]
fn rename_with_all_its_flags() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    assert_eq!(
        renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE),
        Err(Errno::EXIST)
    );
    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((text(&a), text(&b)), ("b".into(), "a".into()));
    fs::rename(&a, &b).unwrap();
    assert_eq!((a.exists(), text(&b).as_str()), (false, "b"));
    renameat_with(CWD, &b, CWD, &a, RenameFlags::NOREPLACE).unwrap();
    // A file and a directory, both ways.
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    fails(fs::rename(&a, &one), Errno::ISDIR);
    fails(fs::rename(&one, &a), Errno::NOTDIR);
    fs::write(two.join("x"), "").unwrap();
    fails(fs::rename(&one, &two), Errno::NOTEMPTY);
    fs::rename(&two, &one).unwrap();
    assert!(one.join("x").exists());
    fails(fs::rename(&one, one.join("below")), Errno::INVAL);
    renameat_with(CWD, &a, CWD, &one, RenameFlags::EXCHANGE).unwrap();
    assert!(a.is_dir() && one.is_file());
    // A name onto another name of the same file does nothing.
    fs::hard_link(&one, &b).unwrap();
    fs::rename(&one, &b).unwrap();
    assert!(one.exists() && b.exists());
}

#[test]
fn rename_moves_the_parent_of_a_directory() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::create_dir_all(one.join("moved")).unwrap();
    fs::create_dir(&two).unwrap();
    let links = |path: &Path| fs::metadata(path).unwrap().nlink();
    assert_eq!((links(&one), links(&two)), (3, 2));
    fs::rename(one.join("moved"), two.join("moved")).unwrap();
    assert_eq!((links(&one), links(&two)), (2, 3));
    assert_eq!(
        fs::metadata(two.join("moved/..")).unwrap().ino(),
        fs::metadata(&two).unwrap().ino()
    );
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let Some((cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b", and more").unwrap();
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    let mut read = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "still here, and more");
    fs::write(&path, "another").unwrap();
    assert_ne!(
        fs::metadata(&path).unwrap().ino(),
        file.metadata().unwrap().ino()
    );
    drop(cask.path(""));
}

#[test]
fn links_count_and_share() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "1").unwrap();
    fs::hard_link(&a, &b).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    fs::write(&b, "2").unwrap();
    assert_eq!(text(&a), "2");
    fs::remove_file(&a).unwrap();
    assert_eq!(
        (text(&b).as_str(), fs::metadata(&b).unwrap().nlink()),
        ("2", 1)
    );
    fails(fs::hard_link(&dir, dir.join("d")), Errno::PERM);
    fails(fs::hard_link(&b, &b), Errno::EXIST);
    let link = dir.join("s");
    symlink("b", &link).unwrap();
    linkat(CWD, &link, CWD, dir.join("s2"), AtFlags::empty()).unwrap();
    assert_eq!(fs::read_link(dir.join("s2")).unwrap(), Path::new("b"));
}

#[test]
fn symbolic_links_up_to_4095_bytes() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    for length in [1, 59, 60, 255, 1024, 4095] {
        let (link, target) = (dir.join(format!("l{length}")), "t".repeat(length));
        symlink(&target, &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap().as_os_str().len(), length);
        assert_eq!(fs::symlink_metadata(&link).unwrap().len(), length as u64);
    }
    fails(
        symlink("t".repeat(4096), dir.join("long")),
        Errno::NAMETOOLONG,
    );
    fs::write(dir.join("file"), "x").unwrap();
    symlink("file", dir.join("to file")).unwrap();
    assert_eq!(text(&dir.join("to file")), "x");
    symlink("loop", dir.join("loop")).unwrap();
    fails(fs::read(dir.join("loop")), Errno::LOOP);
}

#[test]
fn names_are_bytes() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    let odd: Vec<OsString> = [
        b"\xff\xfe".to_vec(),
        b"new\nline".to_vec(),
        b"<([7])>".to_vec(),
        b" ".to_vec(),
        "žluťoučký".into(),
        (1..=255).filter(|byte| *byte != b'/').collect(),
    ]
    .into_iter()
    .map(OsString::from_vec)
    .collect();
    for name in &odd {
        fs::write(dir.join(name), name.as_bytes()).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(names(&dir), odd.iter().cloned().collect());
        for name in &odd {
            assert_eq!(fs::read(dir.join(name)).unwrap(), name.as_bytes());
        }
        cask.remount();
    }
    fs::write(dir.join("x".repeat(255)), "").unwrap();
    fails(fs::write(dir.join("x".repeat(256)), ""), Errno::NAMETOOLONG);
}

#[test]
fn sparse_files_and_holes() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("sparse");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let far = 1_u64 << 40;
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", far).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), far + 3);
    assert!(
        meta.blocks() < 1000,
        "{} units for eight bytes",
        meta.blocks()
    );
    let mut between = [1; 4096];
    file.read_exact_at(&mut between, far / 2).unwrap();
    assert_eq!(between, [0; 4096]);
    let hole = seek(&file, Seeks::Hole(0)).unwrap();
    assert!((5..=1 << 20).contains(&hole), "hole at {hole}");
    let data = seek(&file, Seeks::Data(1 << 20)).unwrap();
    assert!((far - (1 << 20)..=far).contains(&data), "data at {data}");
    assert_eq!(seek(&file, Seeks::Data(far + 3)), Err(Errno::NXIO));
    file.set_len(3).unwrap();
    file.set_len(10).unwrap();
    assert_eq!(
        fs::read(&path).unwrap(),
        b"sta\0\0\0\0\0\0\0",
        "the cut end never comes back"
    );
}

#[test]
fn fallocate_and_punch() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, vec![b'x'; 100_000]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        5_000,
        50_000,
    )
    .unwrap();
    let content = fs::read(&path).unwrap();
    assert!(
        content.len() == 100_000
            && content[..5_000]
                .iter()
                .chain(&content[55_000..])
                .all(|byte| *byte == b'x')
    );
    assert!(content[5_000..55_000].iter().all(|byte| *byte == 0));
    fallocate(&file, FallocateFlags::empty(), 0, 200_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200_000);
    assert_eq!(fs::read(&path).unwrap()[..100_000], content);
}

#[test]
fn data_of_every_size_and_offset() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    let mut model = Vec::new();
    let mut dice = super::guard::Dice::new(5);
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    for round in 0..400_u64 {
        let offset = dice.below(300_000) as usize;
        let bytes = vec![round as u8 | 1; dice.below(20_000) as usize];
        file.write_all_at(&bytes, offset as u64).unwrap();
        if !bytes.is_empty() {
            model.resize(model.len().max(offset + bytes.len()), 0);
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        if round % 50 == 49 {
            let length = dice.below(400_000) as usize;
            file.set_len(length as u64).unwrap();
            model.resize(length, 0);
        }
        assert!(
            round % 20 != 0 || fs::read(&path).unwrap() == model,
            "differs in round {round}"
        );
    }
    drop(file);
    cask.remount();
    assert!(fs::read(&path).unwrap() == model, "differs after a remount");
}

#[test]
fn extended_attributes() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, "").unwrap();
    let mut buffer = vec![0; 4096];
    setxattr(&path, "user.flags", b"7", XattrFlags::CREATE).unwrap();
    assert_eq!(
        setxattr(&path, "user.flags", b"8", XattrFlags::CREATE),
        Err(Errno::EXIST)
    );
    assert_eq!(
        setxattr(&path, "user.other", b"8", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    setxattr(&path, "user.flags", b"", XattrFlags::REPLACE).unwrap();
    assert_eq!(getxattr(&path, "user.flags", &mut buffer), Ok(0));
    let long = vec![b'v'; 2000];
    setxattr(&path, "user.long", &long, XattrFlags::empty()).unwrap();
    assert_eq!(
        getxattr(&path, "user.long", &mut buffer[..10]),
        Err(Errno::RANGE)
    );
    cask.remount();
    let length = getxattr(&path, "user.long", &mut buffer).unwrap();
    assert_eq!(buffer[..length], long);
    let length = listxattr(&path, &mut buffer).unwrap();
    let listed: BTreeSet<&[u8]> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .collect();
    assert_eq!(
        listed,
        BTreeSet::from([&b"user.flags"[..], &b"user.long"[..]])
    );
    removexattr(&path, "user.long").unwrap();
    assert_eq!(removexattr(&path, "user.long"), Err(Errno::NODATA));
    lsetxattr(&dir, "trusted.mark", b"1", XattrFlags::empty()).unwrap();
}

#[test]
fn times_to_the_nanosecond() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, "").unwrap();
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    for (atime, mtime) in [
        (at(1, 1), at(1_118_000_000, 999_999_999)),
        (at(-1_000, 5), at(4_000_000_000, 123_456_789)),
    ] {
        utimensat(
            CWD,
            &path,
            &Timestamps {
                last_access: atime,
                last_modification: mtime,
            },
            AtFlags::empty(),
        )
        .unwrap();
        cask.remount();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(
            (meta.atime(), meta.atime_nsec()),
            (atime.tv_sec, atime.tv_nsec)
        );
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (mtime.tv_sec, mtime.tv_nsec)
        );
    }
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, "x").unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()));
    assert!(after.mtime() < 4_000_000_000, "a write sets mtime to now");
}

#[test]
fn modes_owners_and_permissions() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let path = dir.join("f");
    fs::write(&path, "secret").unwrap();
    for mode in [0o000, 0o644, 0o4755, 0o2711, 0o1777] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(1234), Some(5678)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1234, 5678, 0o600)
    );
    fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
    chown(&dir, None, Some(42)).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
    fs::write(dir.join("inherits"), "").unwrap();
    assert_eq!(
        fs::metadata(dir.join("inherits")).unwrap().gid(),
        42,
        "a set-group-ID directory hands its group down"
    );
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir.join("d"))
        .unwrap();
    assert_eq!(fs::metadata(dir.join("d")).unwrap().mode() & 0o7777, 0o2700);
}

#[test]
fn other_users_are_held_to_the_modes() {
    let Some((cask, dir)) = plain_dir() else {
        return;
    };
    if !installed("setpriv") || super::guard::plain() {
        return;
    }
    fs::set_permissions(
        cask.mountpoint().parent().unwrap(),
        Permissions::from_mode(0o755),
    )
    .unwrap();
    let path = dir.join("f");
    fs::write(&path, "secret").unwrap();
    let nobody = |script: &str| {
        run(Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(&path))
        .code
    };
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_ne!(nobody("cat \"$1\""), Some(0));
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(nobody("cat \"$1\""), Some(0), "allow_other");
    assert_ne!(nobody("echo x >>\"$1\""), Some(0));
    assert_ne!(nobody("rm -f \"$1\""), Some(0));
    assert_eq!(text(&path), "secret");
}

#[test]
fn special_files() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    mknodat(
        CWD,
        dir.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    mknodat(
        CWD,
        dir.join("sock"),
        FileType::Socket,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let mode = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap().mode() & 0o170_000;
    assert_eq!((mode("fifo"), mode("sock")), (0o010_000, 0o140_000));
}

#[test]
fn statfs_is_filled() {
    let Some((cask, _)) = plain_dir() else { return };
    let stat = statvfs(cask.mountpoint()).unwrap();
    assert!(
        stat.f_blocks > 0
            && stat.f_bavail > 0
            && stat.f_bavail <= stat.f_bfree
            && stat.f_bfree <= stat.f_blocks
    );
    assert!(stat.f_files > 0 && stat.f_ffree > 0);
    assert_eq!((stat.f_frsize, stat.f_namemax), (4096, 255));
}

#[test]
fn errors_are_those_of_posix() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    fails(fs::read(dir.join("nope")), Errno::NOENT);
    fails(fs::write(dir.join("no/pe"), ""), Errno::NOENT);
    fs::write(dir.join("f"), "").unwrap();
    fails(fs::read(dir.join("f/x")), Errno::NOTDIR);
    fails(fs::create_dir(dir.join("f")), Errno::EXIST);
    fails(fs::remove_dir(dir.join("f")), Errno::NOTDIR);
    fails(fs::remove_file(&dir), Errno::ISDIR);
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/x"), "").unwrap();
    fails(fs::remove_dir(dir.join("d")), Errno::NOTEMPTY);
    fails(
        File::options().write(true).open(dir.join("d")),
        Errno::ISDIR,
    );
    fails(
        File::options()
            .write(true)
            .create_new(true)
            .open(dir.join("f")),
        Errno::EXIST,
    );
}

#[test]
fn an_unnamed_file_is_refused_cleanly_or_works() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    match open(
        &dir,
        OFlags::TMPFILE | OFlags::RDWR,
        Mode::from_raw_mode(0o600),
    ) {
        Err(error) => assert_eq!(
            error,
            Errno::OPNOTSUPP,
            "programs fall back on this one only"
        ),
        Ok(file) => drop(file),
    }
}

#[test]
fn a_large_directory_is_read_whole_and_stable() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    let count = if cfg!(debug_assertions) {
        20_000
    } else {
        100_000
    };
    for number in 0..count {
        File::create(dir.join(format!("name {number}"))).unwrap();
    }
    assert_eq!(names(&dir).len(), count);
    cask.remount();
    // Delete while reading: what stays is seen exactly once, what goes at most once.
    let mut seen = BTreeSet::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert!(
            seen.insert(entry.file_name()),
            "{:?} twice",
            entry.file_name()
        );
        if at % 3 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
        if at % 1000 == 0 {
            File::create(dir.join(format!("new {at}"))).unwrap();
        }
    }
    let old = seen
        .iter()
        .filter(|name| name.as_bytes().starts_with(b"name"))
        .count();
    assert_eq!(old, count);
    let left = names(&dir);
    for name in &left {
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn memory_maps_see_writes() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    // cmp(1) and sort(1) read; dd with conv=notrunc writes in place; both through the page cache.
    let path = dir.join("f");
    fs::write(&path, vec![b'a'; 10_000]).unwrap();
    let reader = File::open(&path).unwrap();
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 5_000).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"b", 5_000)
        .unwrap();
    reader.read_exact_at(&mut byte, 5_000).unwrap();
    assert_eq!(byte, *b"b");
}

/// Runs a shell script in the plain directory; it must end with 0 and say nothing wrong.
#[track_caller]
/// Every fact that docs/POSIX.md speaks of, measured here and, on ext4, beside it.
#[test]
fn every_fact_of_posix_md() {
    let Some((cask, dir)) = plain_dir() else {
        return;
    };
    if !installed("python3") {
        return;
    }
    let facts = |dir: &Path| {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount/facts.py");
        let ran = run(Command::new("python3").arg(program).arg(dir)).ok();
        let line = |line: &str| {
            let (name, answer) = line.split_once(' ').unwrap();
            (name.to_owned(), answer.to_owned())
        };
        ran.stdout.lines().map(line).collect::<Vec<_>>()
    };
    // Processes of other users work in it.
    let above = cask.mountpoint().parent().unwrap();
    fs::set_permissions(above, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let (mut in_a_cask, mut on_ext4) = (Vec::new(), Vec::new());
    for line in include_str!("facts.txt").lines().skip(1) {
        let mut words = line.split(" | ").map(str::to_owned);
        let (name, answer) = (words.next().unwrap(), words.next().unwrap());
        on_ext4.push((name.clone(), words.next().unwrap_or(answer.clone())));
        in_a_cask.push((name, answer));
    }
    let text = include_str!("../../docs/POSIX.md");
    for (name, _) in &in_a_cask {
        assert!(
            text.contains(&format!("`{name}`")),
            "docs/POSIX.md does not speak of {name}"
        );
    }
    if !super::guard::plain() {
        assert_eq!(facts(&dir), in_a_cask);
    }
    // Other filesystems differ from ext4 in their own ways.
    let beside = cask.outside("beside");
    fs::create_dir(&beside).unwrap();
    let kind = run(Command::new("stat").args(["-f", "-c", "%T"]).arg(&beside)).ok();
    if kind.stdout.trim() == "ext2/ext3" {
        assert_eq!(facts(&beside), on_ext4);
    }
}

/// What docs/POSIX.md says of shared maps of logs and values, and of the name `.cask`.
#[test]
fn shared_maps_of_logs_and_the_name_of_the_door_are_refused() {
    let Some((cask, dir)) = plain_dir() else {
        return;
    };
    if super::guard::plain() || !installed("python3") {
        return;
    }
    for below in ["logs/a", "sessions/a"] {
        let path = cask.path(below);
        fs::write(&path, "12345\n").unwrap();
        let program = "
import errno, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
assert mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE)[0:1] == b'1'
try:
    mmap.mmap(file, 0)
except OSError as error:
    print(errno.errorcode[error.errno])
";
        let ran = run(Command::new("python3").args(["-c", program]).arg(&path)).ok();
        assert_eq!(ran.stdout.trim(), "ENODEV", "{below}");
    }
    let door = dir.join(".cask");
    fails(fs::write(&door, ""), Errno::ISDIR);
    fails(fs::create_dir(&door), Errno::EXIST);
    fails(fs::remove_dir(&door), Errno::PERM);
    fails(fs::rename(&door, dir.join("x")), Errno::PERM);
    fails(symlink("x", &door), Errno::EXIST);
    fs::write(dir.join("f"), "").unwrap();
    fails(fs::hard_link(dir.join("f"), door.join("f")), Errno::PERM);
    assert_eq!(
        names(&dir),
        BTreeSet::from(["f".into()]),
        "it is not listed"
    );
}

fn script(dir: &Path, text: &str) -> String {
    run(Command::new("sh")
        .args(["-euc", text])
        .current_dir(dir)
        .env("HOME", dir))
    .ok()
    .stdout
}

#[test]
fn git_works_in_it() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    if !installed("git") {
        return;
    }
    script(
        &dir,
        "git -c init.defaultBranch=main init -q r; cd r; git config user.email a@b; git config user.name n
         for i in $(seq 40); do mkdir -p d$((i % 5)); echo $i >d$((i % 5))/f$i; git add .; git commit -qm $i; done
         git checkout -q -b other HEAD~10; echo x >y; git add y; git commit -qm y; git merge -q --no-edit main; git gc -q",
    );
    cask.remount();
    let out = script(
        &dir,
        "cd r; git fsck --full --strict 2>&1; git status --porcelain; git log --oneline | wc -l",
    );
    assert_eq!(out.lines().last().map(str::trim), Some("42"));
}

#[test]
fn sqlite3_works_in_it() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    if !installed("sqlite3") {
        return;
    }
    for mode in ["delete", "wal"] {
        script(
            &dir,
            &format!(
                "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(a integer primary key, b text);
                 with recursive n(i) as (select 1 union all select i+1 from n where i<20000) insert into t select i, hex(randomblob(30)) from n;
                 delete from t where a%3=0; vacuum;'
                 for i in $(seq 30); do sqlite3 {mode}.db \"insert into t(b) values('x')\"; done"
            ),
        );
    }
    cask.remount();
    for mode in ["delete", "wal"] {
        let out = script(
            &dir,
            &format!("sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t'"),
        );
        assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["ok", "13364"]);
    }
}

#[test]
fn tar_rsync_and_cp_keep_everything() {
    let Some((mut cask, dir)) = plain_dir() else {
        return;
    };
    // All of it is old: rsync leaves alone what differs by less than a second.
    script(
        &dir,
        "mkdir -p src/a/b; seq 100000 >src/a/numbers; : >src/empty; ln -s a/numbers src/link; ln src/empty src/a/hard; mkfifo src/pipe
         chmod 4711 src/a/numbers; chown 12:34 src/a/b; truncate -s 1M src/sparse
         find src -depth -exec touch -h -d 2005-06-05T01:02:03.123456789 {} +
         tar --format=posix -cf t.tar src; mkdir x; tar -xpf t.tar -C x; cp -a src y",
    );
    if installed("rsync") {
        script(
            &dir,
            "rsync -aHX src/ z/; rsync -aHX --checksum --itemize-changes src/ z/ | grep . && exit 1; true",
        );
    }
    cask.remount();
    let list = "find . -printf '%P %y %m %U %G %s %n %T@ %l\\n' | sed 's/^\\(a\\|a\\/b\\|\\) d \\([0-9]* [0-9]* [0-9]*\\) [0-9]*/\\1 d \\2/' | sort";
    let listing = |sub: &str| script(&dir.join(sub), list);
    let source = listing("src");
    assert_eq!(listing("y"), source, "cp -a");
    assert_eq!(listing("x/src"), source, "tar");
    script(
        &dir,
        "diff -r --no-dereference src/a y/a; diff -r --no-dereference src/a x/src/a",
    );
    if dir.join("z").exists() {
        assert_eq!(listing("z"), source, "rsync");
    }
}

#[test]
fn everyday_tools_work() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    let out = script(
        &dir,
        "seq 3 >f; sed -i s/2/two/ f; cat f; sort -o f f; gzip f; zcat f.gz | wc -l; dd if=/dev/zero of=z bs=4k count=10 2>/dev/null; stat -c %s z
         install -m 700 z w; mv w v; test -x v; mktemp ./XXXXXX >/dev/null; split -b 10000 z part.; cat part.* | cmp - z; find . -name 'part.*' -delete; ls | wc -l; du -s . >/dev/null; flock z true",
    );
    assert_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["1", "two", "3", "3", "40960", "4"]
    );
}

#[test]
fn a_path_that_is_gone_is_gone_everywhere() {
    let Some((_cask, dir)) = plain_dir() else {
        return;
    };
    // Twenty threads make and remove the same names; each call ends as POSIX allows.
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let dir = &dir;
            scope.spawn(move || {
                for round in 0..300_u32 {
                    let path = dir.join(format!("n{}", (round * 7 + thread) % 5));
                    let result = match (round + thread) % 4 {
                        0 => fs::write(&path, "x"),
                        1 => fs::remove_file(&path),
                        2 => fs::rename(&path, dir.join(format!("n{}", round % 5))),
                        _ => fs::hard_link(&path, dir.join(format!("n{}", (round + 1) % 5))),
                    };
                    if let Err(error) = result {
                        assert!(
                            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists),
                            "{error}"
                        );
                    }
                }
            });
        }
    });
    let left = names(&dir);
    for name in &left {
        assert!(
            fs::metadata(dir.join(name)).unwrap().nlink() >= 1,
            "{:?}",
            OsStr::new(name)
        );
        fs::remove_file(dir.join(name)).unwrap();
    }
    assert!(names(&dir).is_empty());
}
