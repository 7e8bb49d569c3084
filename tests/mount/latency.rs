//! What a cut costs: it moves a name, so a log's size is nothing to it.
//!
//! A log of `CASKFS_LARGE` MiB (1,024) and one of 10 KiB are cut in turns, each with a writer that has
//! it open; the median cut of the large one may take twice that of the small one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{Cask, setting};

/// Cuts of each log.
const CUTS: usize = 60;

fn appender(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).append(true).open(path).unwrap()
}

/// Renames on a thread of its own, since the one that cut a log does not see it for a while.
fn renamed(from: &Path, to: &Path) -> Duration {
    let rename = || {
        let start = Instant::now();
        fs::rename(from, to).unwrap();
        start.elapsed()
    };
    thread::scope(|scope| scope.spawn(rename).join().unwrap())
}

/// Cuts a log, then gives it its name back, to be cut again.
fn cut(log: &Path) -> Duration {
    let segment = log.with_extension("cut");
    let took = renamed(log, &segment);
    assert!(!log.exists());
    renamed(&segment, log);
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_large_log_is_cut_as_fast_as_a_small_one() {
    let Some(cask) = Cask::mounted_alone(&[]) else {
        return;
    };
    let (small, large) = (cask.path("logs/small.log"), cask.path("logs/large.log"));
    let mut writers = [appender(&small), appender(&large)];
    let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
    writers[0].write_all(&line.repeat(10)).unwrap();
    let mebibytes = setting("CASKFS_LARGE", 1024);
    let mebibyte = line.repeat(1024);
    for _ in 0..mebibytes {
        writers[1].write_all(&mebibyte).unwrap();
    }
    writers[1].sync_all().unwrap();
    assert_eq!(fs::metadata(&large).unwrap().len(), mebibytes << 20);
    let (mut of_small, mut of_large) = (Vec::new(), Vec::new());
    for turn in 0..CUTS {
        if turn % 2 == 0 {
            of_small.push(cut(&small));
            of_large.push(cut(&large));
        } else {
            of_large.push(cut(&large));
            of_small.push(cut(&small));
        }
    }
    // They are live logs still.
    for (writer, log) in writers.iter_mut().zip([&small, &large]) {
        let before = fs::metadata(log).unwrap().len();
        writer.write_all(b"more\n").unwrap();
        assert_eq!(fs::metadata(log).unwrap().len(), before + 5);
    }
    let (small, large) = (median(of_small), median(of_large));
    let ratio = large.as_secs_f64() / small.as_secs_f64();
    println!(
        "a log of {mebibytes} MiB is cut in {large:.1?}, one of 10 KiB in {small:.1?}: ratio {ratio:.2}"
    );
    assert!(
        ratio <= 2.0,
        "cutting a large log takes {ratio:.2} times as long"
    );
}
