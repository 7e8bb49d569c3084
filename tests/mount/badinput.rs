//! Wrong input: one clear sentence, the right exit code, and nothing touched?
//!
//! Exit codes as in mount(8): 1 wrong usage, 32 the mount failed. As in fsck(8): 4 errors left, 8
//! the check could not be done, 16 wrong usage.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::guard::{Cask, Ran, caskfs, mount_type};

/// Everything of a file that a refused command must leave as it is.
#[derive(Debug, PartialEq)]
struct Untouched {
    bytes: Option<Vec<u8>>,
    mtime: (i64, i64),
    ctime: (i64, i64),
    blocks: u64,
}

fn state(path: &Path) -> Option<Untouched> {
    let meta = fs::metadata(path).ok()?;
    Some(Untouched {
        bytes: fs::read(path).ok(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        ctime: (meta.ctime(), meta.ctime_nsec()),
        blocks: meta.blocks(),
    })
}

/// One sentence on stderr, nothing on stdout, this exit code.
#[track_caller]
fn one_sentence(ran: &Ran, code: i32, words: &[&str]) {
    let said = ran.stderr.trim();
    assert_eq!(ran.code, Some(code), "{said}");
    assert_eq!(ran.stdout, "");
    assert_eq!(said.lines().count(), 1, "not one line: {said}");
    assert!(
        !said.contains("panicked") && !said.contains("Os {"),
        "{said}"
    );
    let lower = said.to_lowercase();
    assert!(
        words.is_empty() || words.iter().any(|word| lower.contains(word)),
        "none of {words:?} in: {said}"
    );
}

/// A test's scene: an unmounted cask, a mountpoint, and files beside it.
fn scene() -> Option<(Cask, PathBuf)> {
    let cask = Cask::make(&["--blocks=4096"])?;
    if super::guard::plain() {
        return None;
    }
    let mountpoint = cask.mountpoint().to_owned();
    Some((cask, mountpoint))
}

/// `mount` of this container must be refused so, and leave it and the mountpoint alone.
#[track_caller]
fn refused(container: &Path, mountpoint: &Path, words: &[&str]) {
    let before = state(container);
    let ran = caskfs([
        OsStr::new("mount"),
        container.as_os_str(),
        mountpoint.as_os_str(),
    ]);
    one_sentence(&ran, 32, words);
    assert_eq!(mount_type(mountpoint), None);
    assert!(
        before == state(container),
        "{} was touched",
        container.display()
    );
    let ran = caskfs([OsStr::new("fsck"), container.as_os_str()]);
    assert!(
        matches!(ran.code, Some(4 | 8)),
        "fsck ends with {:?}: {}{}",
        ran.code,
        ran.stdout,
        ran.stderr
    );
    assert!(
        before == state(container),
        "{} was touched by fsck",
        container.display()
    );
}

#[test]
fn a_missing_container() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    refused(
        &cask.outside("nowhere.cask"),
        &mountpoint,
        &["no such file"],
    );
    assert!(!cask.outside("nowhere.cask").exists());
}

#[test]
fn a_foreign_container() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    for (name, bytes) in [
        ("empty", vec![]),
        ("junk", b"junk\n".to_vec()),
        ("zeros", vec![0; 3 << 20]),
        ("text", b"just a text\n".repeat(400_000)),
    ] {
        let path = cask.outside(name);
        fs::write(&path, bytes).unwrap();
        refused(&path, &mountpoint, &["not a cask", "no cask", "is empty"]);
    }
    let dir = cask.outside("directory");
    fs::create_dir(&dir).unwrap();
    refused(&dir, &mountpoint, &["directory", "not a cask"]);
}

#[test]
fn a_truncated_container() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    let whole = fs::read(cask.container()).unwrap();
    for length in [
        512,
        4096,
        100_000,
        1 << 20,
        whole.len() / 2,
        whole.len() - 1,
    ] {
        let path = cask.outside("short.cask");
        fs::write(&path, &whole[..length]).unwrap();
        refused(
            &path,
            &mountpoint,
            &["truncated", "short", "length", "damaged", "ends", "smaller"],
        );
    }
}

#[test]
fn a_container_of_a_newer_version() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    let path = cask.outside("newer.cask");
    fs::copy(cask.container(), &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // docs/FORMAT.md: four superblocks, 64 KiB apart, the version after twelve bytes of magic.
    for copy in 0..4 {
        let mut version = [0; 4];
        file.read_exact_at(&mut version, copy * 65_536 + 12)
            .unwrap();
        let version = u32::from_le_bytes(version);
        file.write_all_at(&(version + 1).to_le_bytes(), copy * 65_536 + 12)
            .unwrap();
    }
    drop(file);
    refused(&path, &mountpoint, &["newer", "version"]);
}

#[test]
fn a_container_with_one_bad_superblock_is_still_mounted() {
    let Some((mut cask, _)) = scene() else { return };
    for copy in 0..4 {
        let file = File::options().write(true).open(cask.container()).unwrap();
        file.write_all_at(&[0xff; 512], copy * 65_536).unwrap();
        drop(file);
        cask.mount();
        fs::write(cask.path(format!("f{copy}")), "x").unwrap();
        cask.unmount();
    }
}

#[test]
fn a_container_that_lies_under_its_own_mountpoint() {
    let Some((cask, _)) = scene() else { return };
    let dir = cask.outside("own");
    fs::create_dir(&dir).unwrap();
    let inner = dir.join("inner.cask");
    fs::copy(cask.container(), &inner).unwrap();
    let before = state(&inner);
    let ran = caskfs([OsStr::new("mount"), inner.as_os_str(), dir.as_os_str()]);
    one_sentence(
        &ran,
        32,
        &[
            "mountpoint",
            "mount point",
            "inside",
            "under",
            "below",
            "hide",
        ],
    );
    assert_eq!(mount_type(&dir), None);
    assert!(before == state(&inner));
    let ran = caskfs([OsStr::new("mount"), inner.as_os_str(), inner.as_os_str()]);
    one_sentence(&ran, 32, &[]);
    assert!(before == state(&inner));
}

#[test]
fn a_mountpoint_that_is_none() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    let before = state(cask.container());
    let mount = |target: &Path| {
        caskfs([
            OsStr::new("mount"),
            cask.container().as_os_str(),
            target.as_os_str(),
        ])
    };
    one_sentence(
        &mount(&cask.outside("nowhere")),
        32,
        &["no such file", "does not exist"],
    );
    let file = cask.outside("file");
    fs::write(&file, "x").unwrap();
    one_sentence(&mount(&file), 32, &["not a directory"]);
    assert!(
        before == state(cask.container()),
        "the container was touched"
    );
    assert_eq!(mount_type(&mountpoint), None);
}

#[test]
fn wrong_options() {
    let Some((cask, mountpoint)) = scene() else {
        return;
    };
    let before = state(cask.container());
    let mount = |option: &str| {
        caskfs([
            OsStr::new("mount"),
            cask.container().as_os_str(),
            mountpoint.as_os_str(),
            OsStr::new("-o"),
            OsStr::new(option),
        ])
    };
    for option in ["nonsense", "commit=soon", "nonsense=1"] {
        one_sentence(&mount(option), 1, &[option.split('=').next().unwrap()]);
    }
    assert_eq!(caskfs(["mount"]).code, Some(1));
    assert_eq!(caskfs(["mount", "--nonsense"]).code, Some(1));
    assert_eq!(caskfs(["fsck"]).code, Some(16));
    assert_ne!(caskfs(["nonsense"]).code, Some(0));
    assert_eq!(mount_type(&mountpoint), None);
    assert!(
        before == state(cask.container()),
        "the container was touched"
    );
}

#[test]
fn wrong_options_of_mkfs_make_nothing() {
    let Some((cask, _)) = scene() else { return };
    let path = cask.outside("new.cask");
    let label = format!("--label={}", "x".repeat(65));
    for option in [
        "--block-size=1000",
        "--block-size=512",
        "--block-size=131072",
        "--files=0",
        "--blocks=1",
        "--blocks=many",
        "--namer=array",
        "--fill",
        &label,
    ] {
        let ran = caskfs([OsStr::new("mkfs"), path.as_os_str(), OsStr::new(option)]);
        assert!(ran.code.is_some_and(|code| code != 0), "{option} was taken");
        assert!(
            !ran.stderr.is_empty() && !ran.stderr.contains("panicked"),
            "{option}: {}",
            ran.stderr
        );
        assert!(!path.exists(), "{option} left a file behind");
    }
    let ran = caskfs([
        OsStr::new("mkfs"),
        path.as_os_str(),
        OsStr::new("--namer=ht"),
        OsStr::new(&label[..label.len() - 1]),
    ]);
    ran.ok();
}

#[test]
fn mkfs_overwrites_nothing_unasked() {
    let Some((cask, _)) = scene() else { return };
    for path in [cask.container().to_owned(), cask.outside("letters")] {
        if !path.exists() {
            fs::write(&path, "dear all\n").unwrap();
        }
        let before = state(&path);
        let ran = caskfs([OsStr::new("mkfs"), path.as_os_str()]);
        assert_ne!(ran.code, Some(0));
        assert!(before == state(&path), "{} was touched", path.display());
    }
}

#[test]
fn a_second_mount_is_refused_and_names_the_holder() {
    let Some((mut cask, _)) = scene() else { return };
    cask.mount();
    fs::write(cask.path("f"), "x").unwrap();
    let elsewhere = cask.outside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let pid = cask.pid().to_string();
    let ran = caskfs([
        OsStr::new("mount"),
        cask.container().as_os_str(),
        elsewhere.as_os_str(),
    ]);
    one_sentence(&ran, 32, &[&pid]);
    assert_eq!(mount_type(&elsewhere), None);
    let ran = caskfs([
        OsStr::new("mkfs"),
        cask.container().as_os_str(),
        OsStr::new("--force"),
    ]);
    assert_ne!(ran.code, Some(0), "mkfs went over a mounted cask");
    assert_eq!(fs::read_to_string(cask.path("f")).unwrap(), "x");
    cask.remount();
    assert_eq!(fs::read_to_string(cask.path("f")).unwrap(), "x");
}

#[test]
fn umount_of_what_is_not_mounted() {
    let Some((_cask, mountpoint)) = scene() else {
        return;
    };
    let ran = caskfs([OsStr::new("umount"), mountpoint.as_os_str()]);
    one_sentence(&ran, 32, &["not mounted", "no cask", "nothing is mounted"]);
}
