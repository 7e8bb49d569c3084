//! `fsck` says what can be mended, and mends it if it may.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use caskfs::cask::{Cask, OpenOptions as CaskOptions};
use caskfs::device::file::{Access, FileDevice};

use crate::support::Scratch;

/// A cask with files, and what `ls -R` says of it.
fn filled() -> (Scratch, String) {
    let scratch = Scratch::with_cask();
    for n in 0..60 {
        let content = format!("session {n}, {}", "x".repeat(n * 7));
        let to = format!("a.cask:/sessions/s{n}");
        scratch.run_with(&["cp", "-", &to], content.as_bytes()).ok();
    }
    scratch.write("large", vec![b'l'; 300_000]);
    scratch.run(["cp", "large", "a.cask:/large"]).ok();
    let listed = scratch.run(["ls", "a.cask:/sessions"]).ok();
    (scratch, listed)
}

/// Where the parts of a cask are.
struct Parts {
    bitmaps: [u64; 2],
    leaf: u64,
    data: u64,
}

fn parts(scratch: &Scratch) -> Parts {
    let device = FileDevice::open(scratch.path("a.cask"), Access::ReadOnly).unwrap();
    let options = CaskOptions {
        read_only: true,
        ..CaskOptions::default()
    };
    let cask = Cask::open(device, options).unwrap();
    let pinned = cask.pin();
    let geometry = pinned.geometry();
    let (mut ptr, level) = pinned.root().unwrap();
    for level in (1..=level).rev() {
        let page = pinned.page(ptr, level).unwrap();
        ptr = page.child(page.len() - 1).unwrap().1;
    }
    let leaf = geometry.offset(ptr.block);
    let first = geometry.first_block();
    // The large file is all one letter.
    let bytes = fs::read(scratch.path("a.cask")).unwrap();
    let data = bytes
        .windows(4096)
        .step_by(4096)
        .position(|b| b.iter().all(|b| *b == b'l'));
    Parts {
        bitmaps: [geometry.offset(first), geometry.offset(first + 1)],
        leaf,
        data: data.unwrap() as u64 * 4096,
    }
}

fn spoil(scratch: &Scratch, at: u64) {
    let file = OpenOptions::new().write(true).open(scratch.path("a.cask"));
    file.unwrap().write_all_at(&[0xA5; 64], at + 100).unwrap();
}

#[test]
fn what_costs_nothing_is_mended_at_boot() {
    let (scratch, listed) = filled();
    let at = parts(&scratch).bitmaps;
    at.iter().for_each(|at| spoil(&scratch, *at));
    let spoilt = scratch.read("a.cask");
    scratch.run(["ls", "a.cask"]).fails(1);
    for args in [&["fsck", "-n", "a.cask"][..], &["fsck", "a.cask"]] {
        let run = scratch.run(args);
        assert_eq!(run.code, 4, "{}", run.stdout);
        let plan = "can be mended: a bitmap whose checksum does not verify";
        assert!(run.stdout.contains(plan), "{}", run.stdout);
        assert!(
            scratch.read("a.cask") == spoilt,
            "{args:?} changed something"
        );
    }
    let run = scratch.run(["fsck", "-p", "a.cask"]);
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("a.cask: mended"), "{}", run.stdout);
    let sentence = scratch.run(["fsck", "-n", "a.cask"]).ok();
    assert!(sentence.contains("a.cask: clean"), "{sentence}");
    assert_eq!(scratch.run(["ls", "a.cask:/sessions"]).ok(), listed);
}

#[test]
fn what_is_lost_is_given_up_only_when_it_is_told_to() {
    let (scratch, _) = filled();
    spoil(&scratch, parts(&scratch).leaf);
    let spoilt = scratch.read("a.cask");
    let run = scratch.run(["fsck", "-p", "a.cask"]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    assert!(
        run.stderr.contains("something is lost by it"),
        "{}",
        run.stderr
    );
    assert!(scratch.read("a.cask") == spoilt);
    let plan = scratch.run(["fsck", "-n", "--json", "a.cask"]);
    let json: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!((plan.code, &json["mended"]), (4, &false.into()));
    let steps = json["plan"].as_array().unwrap().len();
    assert!(steps > 0, "{}", plan.stdout);
    let run = scratch.run(["fsck", "-y", "a.cask"]);
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    assert_eq!(run.stdout.matches("can be mended: ").count(), steps);
    // What is said to be lost is a warning, and the cask is as good as new.
    let run = scratch.run(["fsck", "a.cask"]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    scratch.run_with(&["cp", "-", "a.cask:/new"], b"new").ok();
    assert_eq!(scratch.run(["cat", "a.cask:/new"]).ok(), "new");
}

#[test]
fn contents_that_are_gone_are_told_and_left() {
    let (scratch, listed) = filled();
    spoil(&scratch, parts(&scratch).data);
    for option in ["-n", "-y", "-p"] {
        let run = scratch.run(["fsck", option, "a.cask"]);
        // -p does not read contents.
        let code = if option == "-p" { 0 } else { 4 };
        assert_eq!(run.code, code, "{option}: {}", run.stdout);
        if code == 4 {
            assert!(
                run.stdout.contains("the data does not verify"),
                "{}",
                run.stdout
            );
        }
    }
    let sentence = scratch.run(["cat", "a.cask:/large"]).fails(1);
    assert!(sentence.contains("checksum"), "{sentence}");
    assert_eq!(scratch.run(["ls", "a.cask:/sessions"]).ok(), listed);
    // Written again it is whole.
    scratch.run(["cp", "large", "a.cask:/large"]).ok();
    scratch.run(["fsck", "a.cask"]).ok();
}

#[test]
fn what_can_be_read_is_copied_out() {
    let (scratch, _) = filled();
    let parts = parts(&scratch);
    scratch.run(["salvage", "a.cask", "whole"]).ok();
    assert_eq!(scratch.read("whole/sessions/s9").len(), 12 + 63 - 1);
    assert!(scratch.read("whole/large") == scratch.read("large"));
    spoil(&scratch, parts.data);
    spoil(&scratch, parts.bitmaps[0]);
    spoil(&scratch, parts.bitmaps[1]);
    let spoilt = scratch.read("a.cask");
    let run = scratch.run(["salvage", "a.cask", "out"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(
        run.stdout.contains("large: 4096 of 300000 bytes are lost"),
        "{}",
        run.stdout
    );
    assert!(
        run.stderr.contains("1 files could not be copied whole"),
        "{}",
        run.stderr
    );
    assert!(scratch.read("a.cask") == spoilt);
    let (large, copy) = (scratch.read("large"), scratch.read("out/large"));
    assert_eq!(large.len(), copy.len());
    let differs = large.iter().zip(&copy).filter(|(a, b)| a != b).count();
    assert_eq!(differs, 4096);
    for n in 0..60 {
        let name = format!("sessions/s{n}");
        assert!(scratch.read(&format!("whole/{name}")) == scratch.read(&format!("out/{name}")));
    }
    scratch.run(["salvage", "a.cask", "out"]).fails(1);
    scratch.run(["salvage", "missing", "none"]).fails(1);
}

#[test]
fn the_checkpoint_before_is_a_way_back_for_who_asks() {
    let scratch = Scratch::with_cask();
    scratch.run_with(&["cp", "-", "a.cask:/one"], b"1").ok();
    scratch.run_with(&["cp", "-", "a.cask:/two"], b"2").ok();
    let run = scratch.run(["fsck", "-n", "--older", "a.cask"]);
    assert!(run.stdout.contains("is used instead of"), "{}", run.stdout);
    assert!(scratch.run(["ls", "a.cask:/"]).ok().contains("two"));
    let run = scratch.run(["fsck", "-y", "--older", "a.cask"]);
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    let left = scratch.run(["ls", "a.cask:/"]).ok();
    // The log holds the second still, as nothing was written over it.
    assert!(left.contains("one") && left.contains("two"), "{left}");
    scratch.run(["fsck", "a.cask"]).ok();
}
