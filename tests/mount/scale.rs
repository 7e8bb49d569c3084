//! A million sessions in one directory: disk, memory, time to mount, cost of a lookup.
//!
//! `CASKFS_SCALE` (20,000) sessions of 200 bytes made through the mount. The bounds: 600 bytes on
//! disk a session (plus what an empty cask takes, below a million), 256 MiB of memory at the peak,
//! half a second to mount after kill -9, and a lookup that costs at most 1.5 times that among
//! 10,000, measured in turns in the same run with the kernel's dentries dropped. Client and daemon
//! share a CPU for that: how long an idle CPU takes to wake up is the same for both and hides what a
//! lookup costs (it made 25 and 41 us of 7 and 10 in one hour, of 12 and 13 in the next).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::guard::{Cask, Dice, setting, sh};

/// Sessions in the directory to compare with.
const FEW: u64 = 10_000;
/// Lookups in one turn.
const LOOKUPS: u64 = 1_000;
/// Sessions loaded, saved, made or removed in one turn.
const ACTS: u64 = 300;

fn name(number: u64) -> String {
    format!("sess_{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn session(number: u64) -> String {
    format!(
        "{:<199}}}",
        format!("{{\"id\":\"{}\",\"hits\":{number}", name(number))
    )
}

/// Makes `count` sessions in `dir` from four threads.
fn save(dir: &Path, count: u64) {
    thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || {
                for number in (part..count).step_by(4) {
                    fs::write(dir.join(name(number)), session(number)).unwrap();
                }
            });
        }
    });
}

/// Makes the kernel forget names and inodes, so that each lookup reaches the daemon.
fn drop_dentries() {
    File::options()
        .write(true)
        .open("/proc/sys/vm/drop_caches")
        .and_then(|mut file| file.write_all(b"2"))
        .unwrap();
}

/// Random numbers below `count`, each once: of one that comes again the kernel knows the name, and
/// among a few that happens often.
fn draw(turns: u64, count: u64, dice: &mut Dice) -> Vec<u64> {
    let mut drawn = HashSet::new();
    let mut fresh = |_| loop {
        let number = dice.below(count);
        if drawn.insert(number) {
            return number;
        }
    };
    (0..turns).map(&mut fresh).collect()
}

/// The mean time of a lookup of a random name of `dir`.
fn lookup(dir: &Path, count: u64, dice: &mut Dice) -> Duration {
    let numbers = draw(LOOKUPS, count, dice);
    let paths: Vec<_> = numbers
        .iter()
        .map(|number| dir.join(name(*number)))
        .collect();
    drop_dentries();
    // The way to the directory is paid before.
    fs::metadata(dir).unwrap();
    let start = Instant::now();
    for path in &paths {
        assert_eq!(fs::symlink_metadata(path).unwrap().len(), 200);
    }
    start.elapsed() / LOOKUPS as u32
}

/// Puts this thread and all of the daemon's on `cpus`; answers where this one was.
fn share(cask: &Cask, cpus: &CpuSet) -> CpuSet {
    let before = sched_getaffinity(None).unwrap();
    for task in fs::read_dir(format!("/proc/{}/task", cask.pid())).unwrap() {
        let name = task.unwrap().file_name().into_string().unwrap();
        sched_setaffinity(Pid::from_raw(name.parse().unwrap()), cpus).unwrap();
    }
    sched_setaffinity(None, cpus).unwrap();
    before
}

/// Has the kernel tell the daemon of all inodes that it drops, which for a million takes it a second
/// of the daemon's time: until the daemon reads nothing but the requests of a turn.
fn until_forgotten(cask: &Cask, dir: &Path, dice: &mut Dice) {
    let reads = || -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", cask.pid())).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        line.unwrap().parse().unwrap()
    };
    let start = Instant::now();
    let mut before = reads();
    loop {
        lookup(dir, FEW, dice);
        let now = reads();
        // A turn's own inodes are dropped by the next one.
        if now - before <= 2 * LOOKUPS + LOOKUPS / 4 {
            return;
        }
        before = now;
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the kernel never ends to forget"
        );
    }
}

/// What a web program does with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Load,
    Save,
    Create,
    Remove,
}

/// The mean time of something done to random sessions of `dir`; new ones have numbers from `fresh` on.
fn act(act: Act, dir: &Path, count: u64, fresh: u64, dice: &mut Dice) -> Duration {
    let numbers: Vec<u64> = match act {
        Act::Load | Act::Save => draw(ACTS, count, dice),
        Act::Create | Act::Remove => (fresh..fresh + ACTS).collect(),
    };
    let files: Vec<_> = numbers
        .iter()
        .map(|number| (dir.join(name(*number)), session(*number)))
        .collect();
    drop_dentries();
    fs::metadata(dir).unwrap();
    let start = Instant::now();
    for (path, content) in &files {
        match act {
            Act::Load => assert_eq!(fs::read(path).unwrap().len(), 200),
            Act::Save | Act::Create => fs::write(path, content).unwrap(),
            Act::Remove => fs::remove_file(path).unwrap(),
        }
    }
    start.elapsed() / ACTS as u32
}

/// Loads, saves, creations and removals in a small and a large directory in turns: the medians.
fn acts(few: &Path, many: &Path, count: u64, dice: &mut Dice) -> Vec<(Act, Duration, Duration)> {
    let all = [Act::Load, Act::Save, Act::Create, Act::Remove];
    let mut times = all.map(|act| (act, Vec::new(), Vec::new()));
    for turn in 0..15 {
        // A creation is followed by its removal, so that the directories stay as large as they are.
        for (what, small, large) in &mut times {
            let fresh = count + FEW + turn * ACTS;
            let in_few = act(*what, few, FEW, fresh, dice);
            let in_many = act(*what, many, count, fresh, dice);
            if turn >= 3 {
                small.push(in_few);
                large.push(in_many);
            }
        }
    }
    let medians = times.map(|(what, small, large)| (what, median(small), median(large)));
    medians.to_vec()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_million_sessions() {
    let Some(mut cask) = Cask::mounted_alone(&["--label=scale"]) else {
        return;
    };
    let count = setting("CASKFS_SCALE", 20_000);
    let empty = cask.disk_bytes();
    let (few, many) = (cask.path("sessions/few"), cask.path("sessions/many"));
    fs::create_dir(&few).unwrap();
    fs::create_dir(&many).unwrap();
    let early = cask.path("sessions/early");
    fs::write(&early, session(0)).unwrap();
    save(&few, FEW);
    let start = Instant::now();
    save(&many, count);
    let took = start.elapsed();
    let peak = cask.memory_kib("VmHWM:");

    // What `df` counts is settled first: the checkpoint of the last saves is over when it answers.
    fs::remove_file(&early).unwrap();
    rustix::fs::statvfs(early.parent().unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    let all = share(&cask, &one);
    let mut dice = Dice::new(setting("CASKFS_SEED", 1));
    until_forgotten(&cask, &few, &mut dice);
    let (mut among_few, mut among_many) = (Vec::new(), Vec::new());
    for turn in 0..24 {
        let (small, large) = if turn % 2 == 0 {
            let small = lookup(&few, FEW, &mut dice);
            (small, lookup(&many, count, &mut dice))
        } else {
            let large = lookup(&many, count, &mut dice);
            (lookup(&few, FEW, &mut dice), large)
        };
        // The first turns warm the daemon's own cache.
        if turn >= 4 {
            among_few.push(small);
            among_many.push(large);
        }
    }
    let (small, large) = (median(among_few), median(among_many));
    let others = acts(&few, &many, count, &mut dice);
    share(&cask, &all);
    let start = Instant::now();
    let listed = sh("sh", ["-c", &format!("ls -f {} | wc -l", many.display())]).ok();
    let listing = start.elapsed();
    assert_eq!(listed.stdout.trim(), (count + 2).to_string());

    // Killed with a log full of fresh work.
    let mut mounts = Vec::new();
    for round in 0..3 {
        let fresh = cask.path(format!("sessions/fresh.{round}"));
        fs::create_dir(&fresh).unwrap();
        save(&fresh, FEW);
        cask.kill9();
        mounts.push(cask.mount());
        assert_eq!(fs::read_dir(&fresh).unwrap().count() as u64, FEW);
        fs::remove_dir_all(&fresh).unwrap();
    }
    let resident = cask.memory_kib("VmHWM:").max(peak);
    for _ in 0..2_000 {
        let number = dice.below(count);
        assert_eq!(
            fs::read_to_string(many.join(name(number))).unwrap(),
            session(number)
        );
    }
    assert_eq!(fs::read_dir(&many).unwrap().count() as u64, count);
    cask.unmount();
    let disk = cask.disk_bytes();
    let bound = if count >= 1_000_000 {
        600 * count
    } else {
        empty + (16 << 20) + 600 * (count + FEW)
    };
    println!(
        "{count} sessions of 200 bytes in {took:.1?} ({:.0}/s): {disk} bytes on disk ({} empty), {resident} KiB resident at the peak, \
         mounts after kill -9 {mounts:.0?}, lookup {large:.2?} against {small:.2?} among {FEW}",
        count as f64 / took.as_secs_f64(),
        empty
    );
    for (what, small, large) in &others {
        let ratio = large.as_secs_f64() / small.as_secs_f64();
        println!("{what:?} {large:.2?} against {small:.2?} among {FEW}: {ratio:.2}");
    }
    println!("ls -f of {count}: {listing:.2?}");
    assert!(
        listing <= Duration::from_secs(3),
        "ls -f of {count} takes {listing:?}"
    );
    assert!(disk <= bound, "{disk} bytes on disk, at most {bound}");
    assert!(
        resident <= 256 << 10,
        "{resident} KiB resident, at most {}",
        256 << 10
    );
    assert!(
        median(mounts) <= Duration::from_millis(500),
        "mounting after kill -9 takes too long"
    );
    assert!(
        large.as_secs_f64() <= 1.5 * small.as_secs_f64(),
        "a lookup among {count} costs {large:?}, among {FEW} {small:?}"
    );
}
