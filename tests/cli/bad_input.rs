//! Whatever is wrong with what was named: one sentence, the right exit code, nothing touched.

use std::fs;

use crate::support::{SMALL, Scratch};

/// Every verb that takes a container, with the exit code of "cannot".
const VERBS: &[(i32, &[&str])] = &[
    (1, &["ls", "a.cask"]),
    (1, &["ls", "a.cask:/logs"]),
    (1, &["cat", "a.cask:/logs/x"]),
    (1, &["cp", "a.cask:/logs/x", "out"]),
    (1, &["cp", "in", "a.cask:/logs/x"]),
    (1, &["cp", "a.cask", "-x", "2=-"]),
    (1, &["rm", "a.cask:/logs/x"]),
    (1, &["rm", "-rf", "a.cask:/logs/x"]),
    (1, &["stat", "a.cask"]),
    (1, &["df", "a.cask"]),
    (1, &["info", "a.cask"]),
    (1, &["get", "a.cask"]),
    (1, &["set", "a.cask", "mode=log"]),
    (1, &["mkstore", "a.cask:/s"]),
    (1, &["rotate", "a.cask:/logs/x"]),
    (8, &["fsck", "a.cask"]),
    (32, &["mount", "a.cask", "m"]),
];

/// Runs every verb on the `a.cask` that `spoil` makes and checks that each fails with a sentence that
/// says `why` and leaves it as it is.
fn all_verbs_refuse(spoil: impl Fn(&Scratch), why: &str) {
    verbs_refuse(VERBS, spoil, why);
}

fn verbs_refuse(verbs: &[(i32, &[&str])], spoil: impl Fn(&Scratch), why: &str) {
    let scratch = Scratch::new();
    spoil(&scratch);
    scratch.write("in", "content");
    fs::create_dir(scratch.path("m")).unwrap();
    let before = (scratch.names(), fs::read(scratch.path("a.cask")).ok());
    for (code, args) in verbs {
        let sentence = scratch.run(*args).fails(*code);
        let said = sentence.to_lowercase();
        assert!(said.contains(why), "{args:?}: {sentence}");
        assert!(sentence.contains("a.cask: "), "{args:?}: {sentence}");
        let after = (scratch.names(), fs::read(scratch.path("a.cask")).ok());
        assert!(before == after, "{args:?} changed something");
    }
}

#[test]
fn missing_container() {
    all_verbs_refuse(|_| (), "no such");
}

#[test]
fn foreign_container() {
    let junk: Vec<u8> = (0..2_000_000u32).map(|at| (at >> 3) as u8).collect();
    all_verbs_refuse(
        |scratch| {
            scratch.write("a.cask", &junk);
        },
        "not a cask; make one with",
    );
    all_verbs_refuse(
        |scratch| {
            scratch.write("a.cask", "");
        },
        "not a cask; make one with",
    );
}

/// A small cask of which `change` spoils the bytes.
fn spoilt(scratch: &Scratch, change: impl FnOnce(&mut Vec<u8>)) {
    let [wal, blocks] = SMALL;
    scratch.run(["mkfs", wal, blocks, "a.cask"]).ok();
    let mut bytes = scratch.read("a.cask");
    change(&mut bytes);
    scratch.write("a.cask", bytes);
}

#[test]
fn truncated_container() {
    let cut = |scratch: &Scratch| spoilt(scratch, |bytes| bytes.truncate(1_500_000));
    // fsck finds it, and can do something about it.
    let others: Vec<_> = VERBS
        .iter()
        .copied()
        .filter(|(code, _)| *code != 8)
        .collect();
    verbs_refuse(&others, cut, "the container is cut off");
    let scratch = Scratch::new();
    cut(&scratch);
    let run = scratch.run(["fsck", "-n", "a.cask"]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    let plan = "can be mended: the container is cut off";
    assert!(run.stdout.contains(plan), "{}", run.stdout);
}

#[test]
fn container_of_a_newer_version() {
    // The version stands behind the 12 bytes of magic, in each of the four copies.
    let raise = |bytes: &mut Vec<u8>| {
        for copy in 0..4 {
            bytes[copy * 65_536 + 12..][..4].copy_from_slice(&99u32.to_le_bytes());
        }
    };
    all_verbs_refuse(|scratch| spoilt(scratch, raise), "use a newer caskfs");
}

#[test]
fn a_cask_that_cannot_be_opened_is_a_finding_for_fsck_alone() {
    let scratch = Scratch::new();
    spoilt(&scratch, |bytes| {
        for copy in 0..4 {
            bytes[copy * 65_536 + 200] ^= 1;
        }
    });
    let before = scratch.read("a.cask");
    scratch.run(["ls", "a.cask"]).fails(1);
    let run = scratch.run(["fsck", "a.cask"]);
    assert_eq!((run.code, run.stderr.as_str()), (4, ""));
    assert!(
        run.stdout.starts_with("error: the cask cannot be opened"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("a.cask: errors found"),
        "{}",
        run.stdout
    );
    let run = scratch.run(["fsck", "-p", "a.cask"]);
    assert_eq!(run.code, 4);
    assert!(run.stdout.contains("errors found"), "{}", run.stdout);
    assert_eq!(scratch.read("a.cask"), before);
}

#[test]
fn what_is_no_container_at_all() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("dir")).unwrap();
    let sentence = scratch.run(["ls", "dir"]).fails(1);
    assert!(
        sentence.starts_with("dir: does not lie in a mounted cask"),
        "{sentence}"
    );
    let sentence = scratch.run(["fsck", "dir"]).fails(8);
    assert!(
        sentence.starts_with("dir: a cask lives in a regular file"),
        "{sentence}"
    );
    let sentence = scratch.run(["mkfs", "dir"]).fails(1);
    assert!(
        sentence.starts_with("dir: a cask lives in a regular file"),
        "{sentence}"
    );
    scratch.run(["ls", "/dev/null"]).fails(1);
    assert_eq!(scratch.names(), ["dir"]);
}

#[test]
fn paths_that_are_not_there() {
    let scratch = Scratch::with_cask();
    for args in [
        &["cat", "a.cask:/logs/none"][..],
        &["rm", "a.cask:/logs/none"],
        &["stat", "a.cask:/none/none"],
        &["ls", "a.cask:/none"],
        &["get", "a.cask:/none"],
        &["set", "a.cask:/none", "mode=log"],
        &["cp", "a.cask:/none", "out"],
        &["mkstore", "a.cask:/none/s"],
        &["rotate", "a.cask:/logs/none"],
    ] {
        let sentence = scratch.run(args).fails(1);
        assert!(sentence.starts_with("a.cask:/"), "{sentence}");
        assert!(
            sentence.ends_with("no such file or directory"),
            "{sentence}"
        );
    }
    let sentence = scratch.run(["cat", "a.cask:/logs"]).fails(1);
    assert_eq!(sentence, "a.cask:/logs: is a directory");
    let sentence = scratch.run(["cp", "a.cask", "-x", "77=-"]).fails(1);
    assert_eq!(sentence, "a.cask:/: there is no inode 77");
    assert_eq!(scratch.names(), ["a.cask"]);
}

#[test]
fn wrong_options() {
    let scratch = Scratch::with_cask();
    let before = scratch.read("a.cask");
    for (code, args) in [
        (2, &["frobnicate"][..]),
        (2, &["ls"]),
        (2, &["ls", "--no-such-option", "a.cask"]),
        (2, &["ls", "--time-format=%!", "a.cask"]),
        (2, &["ls", "-1", "--json", "a.cask"]),
        (2, &["cp", "a.cask:/logs"]),
        (2, &["cp", "a.cask", "-x", "1=-"]),
        (2, &["cp", "a.cask", "-x", "none"]),
        (2, &["cp", "in", "out"]),
        (2, &["set", "a.cask"]),
        (2, &["set", "a.cask", "mode"]),
        (2, &["mkstore", "--like=heap", "a.cask:/h"]),
        (2, &["mkstore", "--mode=rwx", "a.cask:/h"]),
        (2, &["df"]),
        (2, &["rotate"]),
        (16, &["fsck"]),
        (16, &["fsck", "--no-such-option", "a.cask"]),
        (16, &["fsck", "-n", "-y", "a.cask"]),
        (1, &["mount"]),
        (1, &["mount", "--no-such-option", "a.cask", "m"]),
        (1, &["umount"]),
    ] {
        scratch.run(args).fails(code);
    }
    scratch.run_as("fsck.caskfs", &[]).fails(16);
    scratch.run_as("mkfs.caskfs", &[]).fails(2);
    scratch.run_as("mount.caskfs", &[]).fails(1);
    assert_eq!(scratch.read("a.cask"), before);
    assert_eq!(scratch.names(), ["a.cask"]);
}

#[test]
fn settings_that_make_no_sense() {
    let scratch = Scratch::with_cask();
    let before = scratch.read("a.cask");
    for (args, why) in [
        (
            &["set", "a.cask", "mood=log"][..],
            "there is no setting `mood`",
        ),
        (&["set", "a.cask", "mode=loud"], "`loud` is not a value"),
        // The good one before the bad one is not made either.
        (
            &["set", "a.cask", "sync=1", "mode=loud"],
            "`loud` is not a value",
        ),
        (
            &["set", "a.cask:/logs", "label=x"],
            "only the cask as a whole has a label",
        ),
        (&["get", "a.cask", "mood"], "there is no setting `mood`"),
        (
            &["set", "a.cask:/sessions", "sync=1", "ttl=30q"],
            "`30q` is not a value",
        ),
        (
            &["mkstore", "--like=session", "--ttl=0s", "a.cask:/a"],
            "`0s` is not a value",
        ),
        (
            &["mkstore", "--like=audit", "a.cask:/a"],
            "cannot make audit stores",
        ),
        (
            &["mkstore", "--like=table", "a.cask:/a"],
            "cannot make table stores",
        ),
        (
            &["mkstore", "--like=attrs", "a.cask:/a"],
            "cannot make attrs stores",
        ),
        (
            &["mkstore", "--set=mode=loud", "a.cask:/a"],
            "`loud` is not a value",
        ),
    ] {
        let sentence = scratch.run(args).fails(1);
        assert!(sentence.contains(why), "{args:?}: {sentence}");
    }
    assert_eq!(scratch.run(["get", "a.cask", "sync"]).ok(), "0\n");
    let sync = scratch.run(["get", "a.cask:/sessions", "sync"]);
    assert_eq!(sync.ok(), "0\n");
    assert!(!scratch.run(["ls", "a.cask"]).ok().contains(" a/"));
    // Opening it for writing may checkpoint, but the files in it are the same.
    assert_eq!(scratch.read("a.cask").len(), before.len());
}

#[test]
fn mkfs_overwrites_nothing_and_leaves_nothing_behind() {
    let scratch = Scratch::with_cask();
    let before = scratch.read("a.cask");
    let sentence = scratch.run(["mkfs", "a.cask"]).fails(1);
    assert_eq!(
        sentence,
        "a.cask: is a cask already; use --force to overwrite it"
    );
    assert!(scratch.read("a.cask") == before);

    scratch.write("notes", "precious");
    let sentence = scratch.run(["mkfs", "notes"]).fails(1);
    assert_eq!(sentence, "notes: is not empty; use --force to overwrite it");
    assert_eq!(scratch.read("notes"), b"precious");

    // Found wrong before anything is opened, and after.
    let long = "x".repeat(65);
    for args in [
        &["--fill"][..],
        &["--namer=array"],
        &["--namer="],
        &["--block-size=3000"],
        &["--block-size=512"],
        &["--block-size=128k"],
        &["--block-size=many"],
        &["--files=0"],
        &["--files=-1"],
        &["--blocks=0"],
        &["--blocks=10"],
        &["--wal=1k"],
        &["--wal=2g"],
        &["--label", &long],
    ] {
        let args = [&["mkfs", "new.cask"], args].concat();
        scratch.run(args).fails(2);
    }
    assert_eq!(scratch.names(), ["a.cask", "notes"]);

    // A file that was there and empty is there and empty again.
    scratch.write("empty", "");
    scratch.run(["mkfs", "--blocks=10", "empty"]).fails(2);
    assert_eq!(scratch.read("empty"), b"");
    let [wal, blocks] = SMALL;
    scratch.run(["mkfs", "-q", wal, blocks, "empty"]).ok();
    scratch.run(["fsck", "empty"]).ok();

    scratch.run(["mkfs", "nowhere/a.cask"]).fails(1);
}

#[test]
fn mkfs_fill_says_what_it_needs() {
    let sentence = Scratch::new().run(["mkfs", "--fill", "a.cask"]).fails(2);
    assert!(
        sentence.starts_with("a.cask: --fill needs --blocks"),
        "{sentence}"
    );
    let sentence = Scratch::new()
        .run(["mkfs", "--namer=array", "a.cask"])
        .fails(2);
    assert!(sentence.contains("only `ht` fits"), "{sentence}");
}

#[test]
fn a_container_that_somebody_locks() {
    let scratch = Scratch::with_cask();
    let before = scratch.read("a.cask");
    let held = fs::File::open(scratch.path("a.cask")).unwrap();
    held.lock().unwrap();
    let me = format!("(process {})", std::process::id());
    for (code, args) in [
        (1, &["ls", "a.cask"][..]),
        (1, &["set", "a.cask", "mode=log"]),
        (1, &["mkfs", "--force", "a.cask"]),
        (8, &["fsck", "a.cask"]),
    ] {
        let sentence = scratch.run(args).fails(code);
        assert!(sentence.contains("is in use by"), "{sentence}");
        assert!(sentence.contains(&me), "{sentence}");
    }
    held.unlock().unwrap();
    // Readers do not keep readers out.
    held.lock_shared().unwrap();
    scratch.run(["ls", "a.cask"]).ok();
    scratch.run(["set", "a.cask", "sync=1"]).fails(1);
    held.unlock().unwrap();
    assert!(scratch.read("a.cask") == before);
}
