//! What was removed where `wipe=1` is set cannot be found in the container any more: looked for with
//! grep, as a suspicious user would.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::guard::{Cask, pace, sh, until};

/// Within this time what was removed is gone without anybody asking.
const SOON: Duration = Duration::from_secs(10);

/// Lines of the container in which the word stands.
fn found(cask: &Cask, word: &str) -> u64 {
    let container = cask.container().to_str().unwrap();
    let ran = sh("grep", ["-a", "-c", "-F", word, container]);
    assert!(ran.code <= Some(1), "{}", ran.stderr);
    ran.stdout.trim().parse().unwrap()
}

/// So many bytes of text made of lines with the word.
fn text(word: &str, len: usize) -> Vec<u8> {
    let line = format!("{word} is known to nobody\n");
    line.bytes().cycle().take(len).collect()
}

/// `sync DIR`, which calls fsync(2) on the directory.
fn sync(cask: &Cask, dir: &str) {
    sh("sync", [cask.path(dir)]).ok();
}

#[test]
fn grep_finds_no_removed_secret_in_the_container() {
    let Some(mut cask) = Cask::mounted_with(&["--blocks=32768", "--wal=8m"]) else {
        return;
    };
    cask.set("", "wipe=1");
    fs::create_dir(cask.path("plain")).unwrap();
    let dirs = ["plain", "logs", "sessions"];
    for (round, len) in [200, 5_000, 1 << 20].into_iter().enumerate() {
        for (number, dir) in dirs.iter().enumerate() {
            let word = |what: &str| format!("{what}-{round}-{number}");
            let (early, late) = (word("early"), word("late"));
            let path = cask.path(dir).join("secret");
            fs::write(cask.path(dir).join("stays"), "stays").unwrap();
            fs::write(&path, text(&early, len)).unwrap();
            sync(&cask, dir);
            assert!(found(&cask, &early) > 0, "{dir}, {len} bytes");
            if *dir == "logs" {
                let mut log = File::options().append(true).open(&path).unwrap();
                log.write_all(&text(&late, len)).unwrap();
            } else {
                // Replaces, truncates and writes again.
                fs::write(&path, text(&late, len)).unwrap();
            }
            fs::remove_file(&path).unwrap();
            // The kernel tells of closed files in its own time.
            until("a removed file to be wiped by fsync", SOON, || {
                sync(&cask, dir);
                found(&cask, &early) + found(&cask, &late) == 0
            });
        }
    }
    cask.remount();
    for dir in dirs {
        let kept = fs::read(cask.path(dir).join("stays")).unwrap();
        assert!(kept.ends_with(b"stays"), "{dir}");
    }
}

#[test]
fn without_a_sync_it_takes_some_seconds_and_a_crash_is_made_good() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    cask.set("sessions", "wipe=1");
    let path = cask.path("sessions/abacab");
    fs::write(&path, text("by-itself", 300)).unwrap();
    fs::write(cask.path("sessions/other"), text("replaced", 9_000)).unwrap();
    assert!(found(&cask, "by-itself") > 0);
    let start = Instant::now();
    fs::remove_file(&path).unwrap();
    fs::write(cask.path("sessions/other"), "new").unwrap();
    until("a removed session to be wiped", SOON, || {
        found(&cask, "by-itself") + found(&cask, "replaced") == 0
    });
    println!("wiped after {:.1} s", start.elapsed().as_secs_f64());

    // Overwritten in place.
    let plain = cask.path("f");
    fs::write(&plain, text("overwritten", 40_960)).unwrap();
    sync(&cask, "");
    let file = File::options().write(true).open(&plain).unwrap();
    file.write_all_at(&[b'x'; 40_960], 0).unwrap();
    drop(file);
    until("what was overwritten to be wiped", SOON, || {
        found(&cask, "overwritten") == 0
    });

    // Killed at any moment after the removal.
    for after in [0, 1, 2, 5, 20, 100, 1_000, 3_000] {
        let (word, large) = (format!("small-{after}"), format!("large-{after}"));
        fs::write(&path, text(&word, 300)).unwrap();
        fs::write(&plain, text(&large, 2 << 20)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::remove_file(&plain).unwrap();
        pace(Duration::from_millis(after));
        cask.kill9();
        cask.mount();
        until("what a crash left to be wiped", SOON, || {
            found(&cask, &word) + found(&cask, &large) == 0
        });
    }
    cask.unmount();
    for word in ["small", "large", "replaced", "by-itself"] {
        assert_eq!(found(&cask, word), 0, "{word}");
    }
}

#[test]
fn setting_it_wipes_what_was_removed_before() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    for len in [300, 300_000] {
        fs::write(cask.path("f"), text("long-ago", len)).unwrap();
        sync(&cask, "");
        fs::remove_file(cask.path("f")).unwrap();
    }
    assert!(found(&cask, "long-ago") > 0);
    cask.set("", "wipe=1");
    until("the past to be wiped", SOON, || {
        found(&cask, "long-ago") == 0
    });
}
