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
    assert!(sentence.ends_with("; unmount it to check it"), "{sentence}");
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
