//! Capacity: is it what was asked for, and does it change under programs that go on?

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::guard::{Cask, caskfs, until};

fn resize(cask: &Cask, option: &str) -> super::guard::Ran {
    caskfs([
        "resize".as_ref(),
        option.as_ref(),
        cask.container().as_os_str(),
    ])
}

fn files(cask: &Cask) -> (u64, u64) {
    let found = rustix::fs::statvfs(cask.mountpoint()).unwrap();
    (found.f_files, found.f_ffree)
}

#[test]
fn a_writer_that_found_no_room_goes_on_when_blocks_are_given() {
    let blocks = 4_096;
    let Some(mut cask) = Cask::mounted_with(&["--blocks=4096"]) else {
        return;
    };
    let log = cask.path("logs/a.log");
    let (refused, written, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap();
            let mut number = 0_u64;
            while !over.load(Ordering::Relaxed) {
                match file.write(format!("{number:0>1023}\n").as_bytes()) {
                    Ok(len) => {
                        assert_eq!(len, 1024);
                        number += 1;
                        written.store(number, Ordering::Release);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::StorageFull);
                        refused.fetch_add(1, Ordering::Release);
                        super::guard::pace(Duration::from_millis(1));
                    }
                }
            }
        });
        let patience = Duration::from_secs(60);
        for round in 1..=3_u64 {
            until("the cask to be full", patience, || {
                let before = refused.load(Ordering::Acquire);
                super::guard::pace(Duration::from_millis(5));
                refused.load(Ordering::Acquire) > before
            });
            let full = written.load(Ordering::Acquire);
            resize(&cask, &format!("--blocks={}", blocks + round * 2_000)).ok();
            until("the writer to go on", patience, || {
                written.load(Ordering::Acquire) > full + 5_000
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    // It is on disk when the command returns.
    resize(&cask, "--blocks=12000").ok();
    cask.kill9();
    cask.mount();
    let told = resize(&cask, "--blocks=11999");
    assert_eq!(told.code, Some(1));
    assert!(told.stderr.contains("has 12000 blocks"), "{}", told.stderr);
    let text = fs::read_to_string(&log).unwrap();
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line.parse(), Ok(number));
    }
    assert_eq!(text.lines().count() as u64, written.load(Ordering::Acquire));
    cask.unmount();
    cask.fsck();
}

#[test]
fn the_bound_of_files_changes_online_and_df_follows() {
    let Some(mut cask) = Cask::mounted_with(&["--files=50", "--bare"]) else {
        return;
    };
    let make =
        |cask: &Cask, number: u64| File::create_new(cask.path(format!("f{number}"))).map(drop);
    for number in 0..49 {
        make(&cask, number).unwrap();
    }
    assert_eq!(make(&cask, 49).unwrap_err().kind(), ErrorKind::StorageFull);
    // A file that is open counts, though it has no name any more.
    let held = File::open(cask.path("f0")).unwrap();
    fs::remove_file(cask.path("f0")).unwrap();
    assert_eq!(make(&cask, 49).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(files(&cask), (50, 0));
    resize(&cask, "--files=60").ok();
    assert_eq!(files(&cask), (60, 10));
    for number in 49..59 {
        make(&cask, number).unwrap();
    }
    assert_eq!(make(&cask, 59).unwrap_err().kind(), ErrorKind::StorageFull);
    drop(held);
    until("the file to go", Duration::from_secs(10), || {
        files(&cask).1 == 1
    });
    let told = resize(&cask, "--files=58");
    assert!(told.stderr.contains("holds 59 files"), "{}", told.stderr);
    assert_eq!(told.code, Some(1));
    resize(&cask, "--files=59").ok();
    assert_eq!(files(&cask), (59, 0));
    // A name that takes the place of another needs no file.
    fs::rename(cask.path("f1"), cask.path("f2")).unwrap();
    assert_eq!(files(&cask), (59, 1));
    cask.kill9();
    cask.mount();
    assert_eq!(files(&cask), (59, 1));
    resize(&cask, "--files=none").ok();
    assert!(files(&cask).0 > 1_000);
    cask.unmount();
    // The same on the closed container.
    let told = resize(&cask, "--files=100").ok();
    assert!(
        told.stdout.contains("100 files (1 for the root)"),
        "{}",
        told.stdout
    );
    cask.mount();
    assert_eq!(files(&cask), (100, 42));
}

#[test]
fn a_filled_cask_stays_filled_and_an_unbounded_one_can_be_bounded() {
    let Some(mut cask) = Cask::mounted_with(&["--blocks=4000", "--fill"]) else {
        return;
    };
    let refused = resize(&cask, "--blocks=none");
    assert_eq!(refused.code, Some(1));
    resize(&cask, "--blocks=6000").ok();
    let size = || {
        let found = fs::metadata(cask.container()).unwrap();
        (found.len(), found.blocks() * 512)
    };
    let (len, held) = size();
    assert_eq!(len, 6000 * 4096);
    assert!(held >= len, "{held} of {len} bytes are held");
    fs::write(cask.path("a"), vec![7; 14 << 20]).unwrap();
    fs::remove_file(cask.path("a")).unwrap();
    assert_eq!(size(), (len, held));
    cask.unmount();
    cask.fsck();

    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    fs::write(cask.path("a"), vec![7; 30 << 20]).unwrap();
    let refused = resize(&cask, "--blocks=1000");
    assert!(refused.stderr.contains("not fewer"), "{}", refused.stderr);
    resize(&cask, "--blocks=50000").ok();
    assert_eq!(fs::metadata(cask.container()).unwrap().len(), 50_000 * 4096);
    let mut file = File::create(cask.path("b")).unwrap();
    let piece = vec![1; 1 << 20];
    let full = std::iter::repeat_with(|| file.write_all(&piece)).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), ErrorKind::StorageFull);
    drop(file);
    // Nobody but its owner changes it.
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "setfattr", "-n"])
        .args(["user.cask.blocks", "-v", "60000"])
        .arg(cask.mountpoint())
        .output()
        .unwrap();
    assert!(!nobody.status.success());
    fs::remove_file(cask.path("b")).unwrap();
    resize(&cask, "--blocks=none").ok();
    fs::write(cask.path("c"), vec![1; 220 << 20]).unwrap();
    cask.unmount();
    cask.fsck();
}
