//! The same verbs beside a live mount: through it, with the same answers.

use std::fs;

use crate::support::Scratch;

/// A scratch directory with `a.cask` mounted on `m`.
fn mounted() -> Scratch {
    let scratch = Scratch::with_cask();
    fs::create_dir(scratch.path("m")).unwrap();
    scratch.run(["mount", "a.cask", "m"]).ok();
    scratch
}

#[test]
fn fields_are_inserted_through_the_mount() {
    let scratch = mounted();
    scratch.run(["insert", "m/logs/t.log", "a|b", "c"]).ok();
    scratch.run(["insert", "a.cask:/logs/t.log", "d"]).ok();
    assert_eq!(scratch.read("m/logs/t.log"), b"a\\x7cb|c\nd\n");
    assert_eq!(
        scratch.run(["fields", "-f1", "a.cask:/logs/t.log"]).ok(),
        "a|b\nd\n"
    );
    scratch.run(["rotate", "m/logs/t.log"]).ok();
    let events = String::from_utf8(scratch.read("m/.cask/events")).unwrap();
    assert!(
        events.contains(" rotate /logs/t.log /logs/t.log."),
        "{events}"
    );
}

#[test]
fn container_and_mountpoint_are_the_same_cask() {
    let scratch = mounted();
    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], b"{}")
        .ok();
    assert_eq!(scratch.read("m/sessions/abacab"), b"{}");
    scratch
        .run_with(&["cp", "-", "m/sessions/abacab"], b"{1}")
        .ok();
    assert_eq!(scratch.run(["cat", "a.cask:/sessions/abacab"]).ok(), "{1}");
    assert_eq!(scratch.run(["cat", "m/sessions/abacab"]).ok(), "{1}");

    scratch.run(["mkstore", "--like=flat", "m/acc"]).ok();
    scratch.run(["set", "a.cask:/acc", "sync=1"]).ok();
    assert_eq!(scratch.run(["get", "m/acc"]).ok(), "mode=log\nsync=1\n");
    let from = scratch.run(["get", "-v", "a.cask:/acc", "sync"]).ok();
    assert!(from.ends_with("m/acc)\n"), "{from}");
    scratch.run(["set", "a.cask", "label=edge-3"]).ok();
    assert!(scratch.run(["info", "m"]).ok().contains("edge-3"));
    let sentence = scratch.run(["set", "m", "mode=loud"]).fails(1);
    assert!(sentence.contains("`loud` is not a value"), "{sentence}");

    let (by_file, by_path) = (
        scratch.run(["ls", "a.cask"]).ok(),
        scratch.run(["ls", "m"]).ok(),
    );
    assert!(by_file.ends_with(&by_path), "{by_file}{by_path}");
    let df = scratch.run(["df", "--json", "a.cask"]).ok();
    let df: serde_json::Value = serde_json::from_str(&df).unwrap();
    assert_eq!(
        (&df["inodes"], &df["inodes_used"]),
        (&100.into(), &5.into())
    );
    assert!(df["mounted_on"].as_str().unwrap().ends_with("/m"));

    scratch.run(["cp", "-r", "a.cask:/", "out"]).ok();
    assert_eq!(scratch.read("out/sessions/abacab"), b"{1}");
    scratch
        .run(["rm", "-r", "a.cask:/acc", "m/sessions/abacab"])
        .ok();
    let listing = scratch.run(["ls", "m"]).ok();

    scratch.run(["umount", "m"]).ok();
    let offline = scratch.run(["ls", "a.cask"]).ok();
    assert!(offline.ends_with(&listing), "{offline}{listing}");
    assert!(offline.contains("Label: edge-3\n"), "{offline}");
    scratch.run(["fsck", "a.cask"]).ok();
}

#[test]
fn what_would_need_the_container_alone_is_refused() {
    let scratch = mounted();
    scratch.run_with(&["cp", "-", "m/kept"], b"kept").ok();
    let sentence = scratch.run(["fsck", "a.cask"]).fails(8);
    assert!(
        sentence.starts_with("a.cask: is mounted on /"),
        "{sentence}"
    );
    assert!(
        sentence.ends_with("; unmount it to mend it, or check it as it is with -n"),
        "{sentence}"
    );
    let sentence = scratch.run(["mkfs", "--force", "a.cask"]).fails(1);
    assert!(
        sentence.contains("is in use by caskfs (process "),
        "{sentence}"
    );
    fs::create_dir(scratch.path("second")).unwrap();
    scratch.run(["mount", "a.cask", "second"]).fails(32);
    assert_eq!(scratch.read("m/kept"), b"kept");
    scratch.run(["umount", "a.cask"]).ok();
    scratch.run(["fsck", "a.cask"]).ok();
}

#[test]
fn a_path_in_a_mount_is_found_however_it_is_spelled() {
    let scratch = mounted();
    scratch.run_with(&["cp", "-", "m/logs/x"], b"x").ok();
    std::os::unix::fs::symlink("m/logs", scratch.path("shortcut")).unwrap();
    for path in [
        "m/logs/x",
        "./m/../m/logs/x",
        "shortcut/x",
        "a.cask:/logs/../logs/x",
    ] {
        assert_eq!(scratch.run(["cat", path]).ok(), "x", "{path}");
    }
    assert_eq!(scratch.run(["get", "shortcut", "mode"]).ok(), "log\n");
    scratch.run(["umount", "m"]).ok();
    let sentence = scratch.run(["ls", "m"]).fails(1);
    assert!(
        sentence.contains("does not lie in a mounted cask"),
        "{sentence}"
    );
}

/// Exit code and output of a check.
fn checked(scratch: &Scratch, args: &[&str]) -> (i32, String) {
    let run = scratch.run(args);
    assert_eq!(run.stderr, "", "{args:?}");
    (run.code, run.stdout)
}

#[test]
fn a_mounted_cask_is_checked_beside_its_mount() {
    let scratch = mounted();
    // Each block of it is known by its bytes.
    let large: Vec<u8> = (0..300_000).map(|at| 100 + (at / 4096) as u8).collect();
    fs::write(scratch.path("m/logs/large.log"), &large).unwrap();
    fs::write(scratch.path("m/sessions/abacab"), b"{}").unwrap();
    for cask in ["a.cask", "m", "m/logs"] {
        let (code, said) = checked(&scratch, &["fsck", "-n", cask]);
        assert_eq!(code, 0, "{said}");
        // What was written a moment ago is in it.
        assert!(said.contains(": clean; 2 files and "), "{said}");
        let (code, said) = checked(&scratch, &["scrub", "--rate=1g", cask]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(": all verifies; "), "{said}");
    }
    for args in [
        &["fsck", "a.cask"][..],
        &["fsck", "-y", "m"],
        &["fsck", "-p", "a.cask"],
    ] {
        let sentence = scratch.run(args).fails(8);
        assert!(sentence.contains("unmount it to mend it"), "{sentence}");
    }
    let sentence = scratch.run(["fsck", "-n", "--older", "m"]).fails(8);
    assert!(sentence.contains("older checkpoint"), "{sentence}");

    // Two blocks in the middle of the log rot.
    let container = scratch.read("a.cask");
    let at = |number: u8| {
        let is_block = |block: &[u8]| block.iter().all(|byte| *byte == 100 + number);
        container.chunks(4096).position(is_block).unwrap() as u64 * 4096
    };
    let file = fs::File::options().write(true).open(scratch.path("a.cask"));
    let file = file.unwrap();
    for block in [3, 4] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"rot", at(block) + 7).unwrap();
    }
    for args in [
        &["fsck", "-n", "m"][..],
        &["scrub", "m"],
        &["scrub", "a.cask"],
    ] {
        let (code, said) = checked(&scratch, args);
        assert_eq!(code, 4, "{said}");
        let hit = "error: \"logs/large.log\", bytes 12288 to 20479: ";
        assert!(said.contains(hit), "{said}");
        assert!(said.contains("errors found"), "{said}");
    }
    let json = scratch.run(["scrub", "--json", "m"]);
    let found: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(found["findings"][0]["path"], "logs/large.log");
    assert_eq!(found["clean"], false);
    let json = scratch.run(["fsck", "-n", "--json", "a.cask"]);
    let found: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(found["mounted_on"].as_str().unwrap().ends_with("/m"));
    assert_eq!(found["mended"], false);
    // The mount goes on, and only there it is an error to read.
    let mut read = vec![0; 4096];
    let log = fs::File::open(scratch.path("m/logs/large.log")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&log, &mut read, 65_536).unwrap();
    assert!(std::os::unix::fs::FileExt::read_exact_at(&log, &mut read, 12_288).is_err());
    drop(log);
    scratch.run(["umount", "m"]).ok();

    // Unmounted the same is found, and a spoilt copy of the superblock is told.
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 100).unwrap();
    let (code, said) = checked(&scratch, &["scrub", "a.cask"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("warning: a copy of the superblock"), "{said}");
    assert!(
        said.contains("\"logs/large.log\", bytes 12288 to 20479"),
        "{said}"
    );
    // One that cannot be opened for its damage is what was found, too.
    scratch.write("cut.cask", &container[..container.len() / 2]);
    for verb in [&["fsck", "-n", "cut.cask"][..], &["scrub", "cut.cask"]] {
        let (code, said) = checked(&scratch, verb);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("the cask cannot be opened: "), "{said}");
    }
    scratch.run(["scrub", "--rate=0", "a.cask"]).fails(16);
    let sentence = scratch.run(["scrub", "none.cask"]).fails(8);
    assert!(sentence.contains("none.cask"), "{sentence}");
}
