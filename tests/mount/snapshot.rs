//! A copy of a mounted cask under writers: is it one moment's state, sound, and complete?

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{BIN, Cask, caskfs, run, until};

/// Writers at a time.
const WRITERS: usize = 4;

/// What of a writer's lines stands in a cask, in their order, whatever its logs are called.
fn lines_of(dir: &std::path::Path, writer: usize) -> Vec<u64> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with(&format!("w{writer}.")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'), "{name} is torn");
            all.extend(text.lines().map(|line| line.parse::<u64>().unwrap()));
        }
    }
    all.sort_unstable();
    all
}

#[test]
fn a_snapshot_under_writers_and_cuts_is_one_moment() {
    let Some(mut cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let logs = cask.path("logs");
    let written: Vec<_> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let copy = cask.outside("copy.cask");
    let floors: Vec<u64> = thread::scope(|scope| {
        for (writer, written) in written.iter().enumerate() {
            let (logs, over) = (&logs, &over);
            scope.spawn(move || {
                let path = logs.join(format!("w{writer}.log"));
                let mut file = File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .unwrap();
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    file.write_all(format!("{number:0>40}\n").as_bytes())
                        .unwrap();
                    written.store(number + 1, Ordering::Release);
                }
            });
        }
        scope.spawn(|| {
            for cut in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let writer = cut % WRITERS;
                let log = logs.join(format!("w{writer}.log"));
                let segment = logs.join(format!("w{writer}.{cut}"));
                // Each on a thread that has not cut before, as that would not see the fresh log.
                thread::scope(|scope| drop(scope.spawn(|| fs::rename(&log, &segment))));
                super::guard::pace(Duration::from_millis(3));
            }
        });
        let some = |count: u64| {
            until("lines", Duration::from_secs(60), || {
                written.iter().all(|w| w.load(Ordering::Acquire) > count)
            });
        };
        some(2_000);
        let floors = written.iter().map(|w| w.load(Ordering::Acquire)).collect();
        caskfs([
            "snapshot".as_ref(),
            cask.container().as_os_str(),
            copy.as_os_str(),
        ])
        .ok();
        let now = written
            .iter()
            .map(|w| w.load(Ordering::Acquire))
            .max()
            .unwrap();
        some(now);
        // A check and a scrub find nothing wrong while all goes on.
        for verb in [&["fsck", "-n"][..], &["scrub", "--rate=64m"]] {
            let args = verb.iter().map(std::ffi::OsStr::new);
            caskfs(args.chain([cask.container().as_os_str()])).ok();
        }
        over.store(true, Ordering::Relaxed);
        floors
    });
    // A copy that is there is not overwritten, and it is for its owner only.
    let again = caskfs([
        "snapshot".as_ref(),
        cask.container().as_os_str(),
        copy.as_os_str(),
    ]);
    assert_eq!(again.code, Some(1));
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o600);
    caskfs(["fsck".as_ref(), "-n".as_ref(), copy.as_os_str()]).ok();
    let there = cask.outside("there");
    fs::create_dir(&there).unwrap();
    caskfs(["mount".as_ref(), copy.as_os_str(), there.as_os_str()]).ok();
    let checked = std::panic::catch_unwind(|| {
        for (writer, floor) in floors.iter().enumerate() {
            let lines = lines_of(&there.join("logs"), writer);
            assert!(
                lines.len() as u64 >= *floor,
                "writer {writer}: {} of {floor}",
                lines.len()
            );
            // Each once, none missing up to the last.
            assert!(lines.iter().zip(0..).all(|(line, number)| *line == number));
        }
    });
    caskfs(["umount".as_ref(), there.as_os_str()]).ok();
    checked.unwrap();
    for (writer, written) in written.iter().enumerate() {
        let lines = lines_of(&logs, writer);
        assert_eq!(lines.len() as u64, written.load(Ordering::Acquire));
    }
    cask.unmount();
    cask.fsck();
}

#[test]
fn a_snapshot_into_a_pipe_is_the_same_and_only_for_the_owner() {
    let Some(mut cask) = Cask::mounted_alone(&["--blocks=65536"]) else {
        return;
    };
    let data: Vec<u8> = (0..64 << 20)
        .map(|at: u32| (at / 4096) as u8 ^ at as u8)
        .collect();
    fs::write(cask.path("a"), &data).unwrap();
    let start = Instant::now();
    let copy = cask.outside("copy.cask");
    let copied = Command::new(BIN)
        .arg("snapshot")
        .args([cask.mountpoint().as_os_str(), "-".as_ref()])
        .stdout(File::create(&copy).unwrap())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert!(copied.success());
    let took = start.elapsed();
    println!(
        "a snapshot of {} MiB took {took:.2?}",
        fs::metadata(&copy).unwrap().len() >> 20
    );
    assert_eq!(fs::metadata(&copy).unwrap().len(), 65_536 * 4096);
    let read = Command::new(BIN)
        .args(["cat", &format!("{}:/a", copy.display())])
        .output()
        .unwrap();
    assert!(read.stdout == data);
    // Into a file holes are left out.
    let sparse = cask.outside("sparse.cask");
    caskfs([
        "snapshot".as_ref(),
        cask.container().as_os_str(),
        sparse.as_os_str(),
    ])
    .ok();
    let held = fs::metadata(&sparse).unwrap().blocks() * 512;
    assert!(held < 80 << 20, "{held} bytes are held");
    let refused = run(Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "cat"])
        .arg(cask.path(".cask/snapshot")));
    assert_ne!(refused.code, Some(0));
    assert!(refused.stdout.is_empty());
    cask.unmount();
    // A closed one, too.
    let closed = cask.outside("closed.cask");
    caskfs([
        "snapshot".as_ref(),
        cask.container().as_os_str(),
        closed.as_os_str(),
    ])
    .ok();
    caskfs(["fsck".as_ref(), "-n".as_ref(), closed.as_os_str()]).ok();
    let missing = caskfs([
        "snapshot".as_ref(),
        cask.container().as_os_str(),
        "/nonexistent/x".as_ref(),
    ]);
    assert_eq!(missing.code, Some(1));
}

#[test]
fn a_full_cask_is_copied_too() {
    let Some(mut cask) = Cask::mounted_with(&["--blocks=8192"]) else {
        return;
    };
    let mut file = File::create(cask.path("a")).unwrap();
    let piece = vec![1; 1 << 16];
    let full = std::iter::repeat_with(|| file.write_all(&piece)).find_map(Result::err);
    assert!(full.is_some());
    let copy = cask.outside("copy.cask");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Whoever finds no room does not end it, as it holds nothing back.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let refused = file.write_all(&piece);
                assert!(refused.is_err());
                super::guard::pace(Duration::from_millis(1));
            }
        });
        let copied = caskfs([
            "snapshot".as_ref(),
            cask.container().as_os_str(),
            copy.as_os_str(),
        ]);
        over.store(true, Ordering::Relaxed);
        copied.ok();
    });
    drop(file);
    caskfs(["fsck".as_ref(), "-n".as_ref(), copy.as_os_str()]).ok();
    cask.unmount();
    cask.fsck();
}

#[test]
fn writers_never_suffer_from_a_snapshot() {
    let Some(cask) = Cask::mounted_with(&["--blocks=16384"]) else {
        return;
    };
    let (path, other) = (cask.path("a"), cask.path("b"));
    fs::write(&path, vec![1; 30 << 20]).unwrap();
    let held = File::open(cask.path(".cask/snapshot")).unwrap();
    // There is room for it, but for the snapshot.
    fs::remove_file(&path).unwrap();
    fs::write(&other, vec![2; 40 << 20]).unwrap();
    assert_eq!(fs::read(&other).unwrap(), vec![2; 40 << 20]);
    let mut piece = [0; 4096];
    let given_up = std::os::unix::fs::FileExt::read_at(&held, &mut piece, 0).unwrap_err();
    assert_eq!(given_up.raw_os_error(), Some(libc::ESTALE));
    drop(held);
    fs::remove_file(&other).unwrap();
    fs::write(&path, vec![3; 40 << 20]).unwrap();
}
