//! A cask with bounds: is everything kept that was taken, does every delete go through when it is
//! full, and does `df` tell the truth?

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfs, statvfs};

use super::guard::{Cask, Dice, caskfs, sh};

/// 64 MiB in blocks of 4 KiB.
const BLOCKS: &str = "--blocks=16384";
/// By how much `df` may be off: a hundredth of what it says, and a MiB for metadata.
fn margin(available: u64) -> u64 {
    available / 100 + (1 << 20)
}

fn df(cask: &Cask) -> StatVfs {
    statvfs(cask.mountpoint()).unwrap()
}

fn available(cask: &Cask) -> u64 {
    let stat = df(cask);
    stat.f_bavail * stat.f_frsize
}

/// The content of a file: follows from its number.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = number.to_le_bytes().repeat(length / 8 + 1);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte ^= (at >> 9) as u8;
    }
    bytes.truncate(length);
    bytes
}

/// Writes until ENOSPC; answers the bytes that were taken.
fn write_until_full(file: &mut File, bytes: &[u8]) -> (usize, bool) {
    let mut taken = 0;
    while taken < bytes.len() {
        match file.write(&bytes[taken..]) {
            Ok(0) => panic!("write answered 0"),
            Ok(more) => taken += more,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                return (taken, true);
            }
        }
    }
    (taken, false)
}

/// Fills `dir` with files of many sizes until ENOSPC; answers them with the bytes each took.
fn fill(dir: &Path, seed: u64) -> Vec<(PathBuf, u64, usize)> {
    let mut dice = Dice::new(seed);
    let mut files = Vec::new();
    fs::create_dir_all(dir).unwrap();
    for number in 0.. {
        let length = match dice.below(10) {
            0..5 => dice.below(3_000),
            5..8 => dice.below(60_000),
            _ => dice.below(3_000_000),
        } as usize;
        let path = dir.join(format!("f{number}"));
        let mut file = match File::create_new(&path) {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                break;
            }
        };
        let (taken, full) = write_until_full(&mut file, &content(number, length));
        files.push((path, number, taken));
        if full {
            // The big ones no longer fit; go on until not even a byte does.
            if taken == 0 && length < 100 {
                break;
            }
            let (path, number) = (dir.join(format!("t{number}")), number + 1_000_000);
            let Ok(mut file) = File::create_new(&path) else {
                break;
            };
            let mut taken = 0;
            loop {
                let (more, full) =
                    write_until_full(&mut file, &content(number, 1 << 20)[taken..][..1]);
                taken += more;
                if full || taken == 64 {
                    break;
                }
            }
            files.push((path, number, taken));
            if taken < 64 {
                break;
            }
        }
    }
    files
}

#[track_caller]
fn verify(files: &[(PathBuf, u64, usize)]) {
    for (path, number, taken) in files {
        let length = if *number >= 1_000_000 {
            1 << 20
        } else {
            *taken
        };
        assert!(
            fs::read(path).unwrap() == content(*number, length)[..*taken],
            "{} is not as written",
            path.display()
        );
    }
}

#[test]
fn a_full_cask_keeps_everything_and_lets_everything_go() {
    let Some(mut cask) = Cask::mounted_with(&[BLOCKS]) else {
        return;
    };
    let dir = cask.path("data");
    let empty = available(&cask);
    for (round, how) in [
        "at once",
        "after a remount",
        "after kill -9",
        "at once again",
    ]
    .into_iter()
    .enumerate()
    {
        let files = fill(&dir, round as u64 + 1);
        let bytes: u64 = files.iter().map(|(.., taken)| *taken as u64).sum();
        println!(
            "full with {} files, {bytes} bytes of {empty}; deleted {how}",
            files.len()
        );
        assert!(
            bytes > empty / 2,
            "only {bytes} of {empty} bytes could be written"
        );
        verify(&files);
        match how {
            "after a remount" => cask.remount(),
            "after kill -9" => {
                cask.kill9();
                cask.fsck();
                cask.mount();
            }
            _ => {}
        }
        verify(&files);
        for (at, (path, ..)) in files.iter().enumerate() {
            match at % 3 {
                0 => File::create(path)
                    .map(drop)
                    .unwrap_or_else(|error| panic!("truncate {how}: {error}")),
                1 => {
                    let to = path.with_extension("gone");
                    // A rename may need room of its own; the delete may not.
                    let path = if fs::rename(path, &to).is_ok() {
                        &to
                    } else {
                        path
                    };
                    fs::remove_file(path).unwrap_or_else(|error| panic!("delete {how}: {error}"));
                    continue;
                }
                _ => {}
            }
            fs::remove_file(path).unwrap_or_else(|error| panic!("delete {how}: {error}"));
        }
        fs::remove_dir(&dir).unwrap();
        let left = available(&cask);
        assert!(
            left + margin(empty) >= empty,
            "{left} of {empty} bytes are available again"
        );
    }
}

#[test]
fn a_full_cask_takes_overwrites() {
    let Some(cask) = Cask::mounted_with(&[BLOCKS]) else {
        return;
    };
    let path = cask.path("image");
    fs::write(&path, content(1, 8 << 20)).unwrap();
    let files = fill(&cask.path("data"), 7);
    let fresh = content(2, 8 << 20);
    let mut image = File::options().write(true).open(&path).unwrap();
    for piece in fresh.chunks(128 << 10) {
        image.write_all(piece).unwrap();
    }
    image.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == fresh);
    verify(&files);
}

#[test]
fn a_log_that_fills_the_cask_goes_on_when_segments_go() {
    let Some(cask) = Cask::mounted_with(&[BLOCKS]) else {
        return;
    };
    let live = cask.path("logs/a.log");
    let mut writer = File::options()
        .create(true)
        .append(true)
        .open(&live)
        .unwrap();
    for round in 0..3 {
        let line = vec![b'0' + round; 4095]
            .into_iter()
            .chain([b'\n'])
            .collect::<Vec<_>>();
        let mut lines = 0_u64;
        loop {
            match writer.write(&line) {
                Ok(written) => assert_eq!(written, line.len(), "a torn line"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
            lines += 1;
        }
        let segment = cask.path(format!("logs/a.log.{round}"));
        std::thread::scope(|scope| scope.spawn(|| fs::rename(&live, &segment)).join().unwrap())
            .unwrap();
        assert_eq!(fs::metadata(&segment).unwrap().len(), lines * 4096);
        assert!(
            lines > 8_000,
            "a cask of 64 MiB took {lines} lines of 4 KiB"
        );
        fs::remove_file(&segment).unwrap();
    }
}

#[test]
fn a_filled_cask_never_changes_its_size_on_the_host() {
    let Some(mut cask) = Cask::make(&[BLOCKS, "--fill"]) else {
        return;
    };
    let on_host = |cask: &Cask| {
        let meta = fs::metadata(cask.container()).unwrap();
        (meta.len(), meta.blocks())
    };
    let made = on_host(&cask);
    assert_eq!(made.0, 16384 * 4096);
    assert!(
        made.1 * 512 >= made.0,
        "{} of {} bytes are allocated",
        made.1 * 512,
        made.0
    );
    cask.mount();
    assert_eq!(on_host(&cask), made, "after mount");
    let files = fill(&cask.path("data"), 3);
    assert_eq!(on_host(&cask), made, "when full");
    verify(&files);
    cask.remount();
    assert_eq!(on_host(&cask), made, "after a remount");
    fs::remove_dir_all(cask.path("data")).unwrap();
    assert_eq!(on_host(&cask), made, "after deleting");
    fill(&cask.path("data"), 4);
    cask.unmount();
    assert_eq!(on_host(&cask), made, "in the end");
    println!(
        "{} bytes, {} units of 512 allocated, from mkfs to the end",
        made.0, made.1
    );
}

#[test]
fn fill_without_blocks_is_an_error() {
    let Some(cask) = Cask::make(&[]) else { return };
    let path = cask.outside("filled.cask");
    let ran = caskfs(["mkfs".as_ref(), path.as_os_str(), "--fill".as_ref()]);
    assert_ne!(ran.code, Some(0));
    assert!(
        ran.stderr.contains("--blocks"),
        "no reason given: {}",
        ran.stderr
    );
    assert!(!path.exists());
}

#[test]
fn what_df_says_can_be_written() {
    let Some(mut cask) = Cask::mounted_with(&[BLOCKS]) else {
        return;
    };
    let bulk = vec![0x5a; 1 << 20];
    for round in 0..3 {
        let promised = available(&cask);
        let path = cask.path("bulk");
        let mut file = File::create_new(&path).unwrap();
        let mut taken = 0;
        loop {
            let (more, full) = write_until_full(&mut file, &bulk);
            taken += more as u64;
            if full {
                break;
            }
        }
        drop(file);
        println!("df promised {promised} bytes, {taken} could be written");
        assert!(
            taken + margin(promised) >= promised && taken <= promised + margin(promised),
            "promised {promised}, taken {taken}"
        );
        assert!(
            available(&cask) <= margin(promised),
            "full, but df says {}",
            available(&cask)
        );
        fs::remove_file(&path).unwrap();
        assert!(available(&cask) + margin(promised) >= promised);
        // The next round with something in it, and then after a remount.
        fs::write(
            cask.path(format!("sits.{round}")),
            content(round, 5_000_000),
        )
        .unwrap();
        if round == 1 {
            cask.remount();
        }
    }
    // What df(1) prints is what statvfs says.
    let printed = sh(
        "df",
        [
            "-B1".as_ref(),
            "--output=avail".as_ref(),
            cask.mountpoint().as_os_str(),
        ],
    )
    .ok();
    assert_eq!(
        printed
            .stdout
            .lines()
            .last()
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap(),
        available(&cask)
    );
}

#[test]
fn many_small_files_until_full() {
    let Some(mut cask) = Cask::mounted_with(&["--blocks=4096"]) else {
        return;
    };
    let mut kept = 0;
    'full: for dir in 0.. {
        let dir = cask.path(format!("sessions/{dir}"));
        if fs::create_dir(&dir).is_err() {
            break;
        }
        for file in 0..1000 {
            if let Err(error) = fs::write(dir.join(file.to_string()), content(kept, 200)) {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                break 'full;
            }
            kept += 1;
        }
    }
    println!("{kept} files of 200 bytes in 16 MiB");
    assert!(
        kept > 8_000,
        "only {kept} files of 200 bytes fit into 16 MiB"
    );
    for after in ["at once", "after a remount"] {
        for number in 0..kept {
            let path = cask.path(format!("sessions/{}/{}", number / 1000, number % 1000));
            assert!(
                fs::read(&path).unwrap() == content(number, 200),
                "{} is not as written {after}",
                path.display()
            );
        }
        cask.remount();
    }
    for dir in fs::read_dir(cask.path("sessions")).unwrap() {
        fs::remove_dir_all(dir.unwrap().path()).unwrap();
    }
}

#[test]
fn the_limit_of_files_is_exact() {
    let Some(cask) = Cask::mounted_with(&["--files=100", "--bare"]) else {
        return;
    };
    let stat = df(&cask);
    assert_eq!(
        (stat.f_files, stat.f_ffree),
        (100, 99),
        "the root counts, as df -i shows"
    );
    let make = |number: u64| File::create_new(cask.path(format!("f{number}"))).map(drop);
    for number in 0..99 {
        make(number).unwrap();
    }
    assert_eq!(make(99).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(
        fs::create_dir(cask.path("dir")).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    assert_eq!(df(&cask).f_ffree, 0);
    fs::hard_link(cask.path("f0"), cask.path("another name")).unwrap();
    fs::write(cask.path("f1"), "content needs no file").unwrap();
    fs::remove_file(cask.path("f2")).unwrap();
    assert_eq!(df(&cask).f_ffree, 1);
    make(99).unwrap();
    assert_eq!(make(100).unwrap_err().kind(), ErrorKind::StorageFull);
    let printed = sh(
        "df",
        [
            "--output=itotal,iused".as_ref(),
            cask.mountpoint().as_os_str(),
        ],
    )
    .ok();
    assert_eq!(
        printed
            .stdout
            .lines()
            .last()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["100", "100"]
    );
}

#[test]
fn deleting_gives_space_back_to_new_files() {
    let Some(cask) = Cask::mounted() else { return };
    let path = cask.path("big");
    let save = || {
        let mut file = File::create(&path).unwrap();
        (0..50).for_each(|_| file.write_all(&vec![7; 1 << 20]).unwrap());
        file.sync_all().unwrap();
    };
    save();
    let first = fs::metadata(cask.container()).unwrap().len();
    for _ in 0..4 {
        fs::remove_file(&path).unwrap();
        save();
    }
    let last = fs::metadata(cask.container()).unwrap().len();
    println!("50 MiB written and deleted 5 times: container {first} then {last} bytes");
    assert!(
        last <= first + (60 << 20),
        "the container grows without end: {first} then {last} bytes"
    );
}

#[test]
fn a_directory_at_its_limit_refuses_more_and_goes_on_when_something_goes() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("logs", "limit=64k");
    cask.set("logs", "limit-files=4");
    let log = cask.path("logs/a");
    let mut writer = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .unwrap();
    let record = [b'-'; 1023];
    let record = [&record[..], b"\n"].concat();
    let mut fill = || {
        let mut taken = 0;
        loop {
            match writer.write(&record) {
                Ok(len) => taken += len,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                    return taken;
                }
            }
        }
    };
    assert_eq!(fill(), 64 << 10);
    let segment = cask.path("logs/a.1");
    fs::rename(&log, &segment).unwrap();
    assert_eq!(fill(), 0);
    fs::remove_file(&segment).unwrap();
    assert_eq!(fill(), 64 << 10);
    drop(writer);
    cask.kill9();
    cask.mount();
    let refused = fs::write(cask.path("logs/b"), "more").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    for name in ["c", "d"] {
        File::create(cask.path("logs").join(name)).unwrap();
    }
    let refused = File::create(cask.path("logs/e")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    // Elsewhere there is room.
    fs::write(cask.path("elsewhere"), vec![0; 1 << 20]).unwrap();
    cask.unmount();
    cask.fsck();
}
