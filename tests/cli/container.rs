//! The verbs on a container that is not mounted.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use crate::support::{SMALL, Scratch};

#[test]
fn what_goes_in_comes_out() {
    let scratch = Scratch::with_cask();
    let large: Vec<u8> = (0..1_200_000u32)
        .map(|at| (at.wrapping_mul(at) >> 5) as u8)
        .collect();
    scratch.write("large", &large);
    scratch.run(["cp", "large", "a.cask:/large"]).ok();
    scratch.run(["cp", "a.cask:/large", "back"]).ok();
    assert!(scratch.read("back") == large);

    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], b"{\"hits\":3}")
        .ok();
    assert_eq!(
        scratch.run(["cat", "a.cask:/sessions/abacab"]).ok(),
        "{\"hits\":3}"
    );
    assert_eq!(
        scratch.run(["cp", "a.cask:/sessions/abacab", "-"]).ok(),
        "{\"hits\":3}"
    );
    // Into a directory it keeps its name, with or without the slash, with or without a leading one.
    for to in ["a.cask:/logs", "a.cask:/logs/", "a.cask:logs", "a.cask:"] {
        scratch.run(["cp", "large", to]).ok();
    }
    assert!(
        scratch
            .run(["stat", "a.cask:/logs/large"])
            .ok()
            .contains("1200000")
    );
    // A second copy replaces the first.
    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], b"{}")
        .ok();
    assert_eq!(scratch.run(["cat", "a.cask:/sessions/abacab"]).ok(), "{}");
    scratch.run(["fsck", "a.cask"]).ok();
}

#[test]
fn fields_go_in_and_come_out_whatever_is_in_them() {
    let scratch = Scratch::with_cask();
    let log = "a.cask:/logs/t.log";
    scratch
        .run(["insert", log, "a|b", "c\nd", "\\N", "-5"])
        .ok();
    scratch.run(["insert", "--null=nil", log, "nil", "e"]).ok();
    assert_eq!(scratch.run(["cat", log]).ok(), "a\\x7cb|c\\x0ad||-5\n|e\n");
    assert_eq!(
        scratch.run(["fields", "--json", log]).ok(),
        "[\"a|b\",\"c\\nd\",\"\",\"-5\"]\n[\"\",\"e\"]\n"
    );
    assert_eq!(scratch.run(["fields", "-r1", "-f1", log]).ok(), "a|b\n");
    assert_eq!(scratch.run(["fields", "-f4", log]).ok(), "-5\n\n");
    for (escape, record) in [
        ("percent", "a%3Bb;%25\n"),
        ("backslash", "a\\;b;%\n"),
        ("hex", "a\\x3bb;%\n"),
    ] {
        let dir = format!("a.cask:/{escape}");
        let settings = ["--set=field=;", &format!("--set=escape={escape}")];
        scratch
            .run(["mkstore", settings[0], settings[1], &dir])
            .ok();
        let log = format!("{dir}/t");
        scratch.run(["insert", &log, "a;b", "%"]).ok();
        assert_eq!(scratch.run(["cat", &log]).ok(), record);
        assert_eq!(scratch.run(["fields", &log]).ok(), "a;b\t%\n");
    }
    scratch.run(["set", "a.cask:/logs", "escape=none"]).ok();
    let why = scratch.run(["insert", log, "a", "b|"]).fails(1);
    assert!(why.contains("field 2"), "{why}");
    let why = scratch.run(["insert", "a.cask:/no/log", "a"]).fails(1);
    assert!(why.contains("/no"), "{why}");
    scratch.run(["set", "a.cask:/logs", "record=none"]).ok();
    let why = scratch.run(["insert", log, "a"]).fails(1);
    assert!(why.contains("record"), "{why}");
}

#[test]
fn an_offline_insert_rolls_like_any_other() {
    let scratch = Scratch::with_cask();
    scratch
        .run(["set", "a.cask:/logs", "roll-lines=2", "roll-name=%n.old"])
        .ok();
    for number in ["1", "2", "3"] {
        scratch.run(["insert", "a.cask:/logs/t", number]).ok();
    }
    assert_eq!(scratch.run(["cat", "a.cask:/logs/t.old"]).ok(), "1\n2\n");
    assert_eq!(scratch.run(["cat", "a.cask:/logs/t"]).ok(), "3\n");
    scratch.run(["fsck", "a.cask"]).ok();
}

#[test]
fn a_replaced_file_keeps_its_mode_and_settings() {
    let scratch = Scratch::with_cask();
    let file = scratch.write("in", "one");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    scratch.run(["cp", "in", "a.cask:/f"]).ok();
    scratch.run(["set", "a.cask:/f", "sync=1"]).ok();
    fs::write(&file, "two").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    scratch.run(["cp", "in", "a.cask:/f"]).ok();
    assert_eq!(scratch.run(["cat", "a.cask:/f"]).ok(), "two");
    assert!(
        scratch
            .run(["stat", "a.cask:/f"])
            .ok()
            .contains("(0640/-rw-r-----)")
    );
    assert_eq!(scratch.run(["get", "a.cask:/f"]).ok(), "sync=1\n");
    // Nothing of the copy's own making is left.
    let listing = scratch.run(["ls", "-R", "a.cask:/"]).ok();
    assert!(!listing.contains(".caskfs"), "{listing}");
}

#[test]
fn whole_trees_go_in_and_out() {
    let scratch = Scratch::with_cask();
    fs::create_dir_all(scratch.path("tree/deep/er")).unwrap();
    scratch.write("tree/one", "1");
    scratch.write("tree/deep/er/two", "22");
    symlink("deep/er/two", scratch.path("tree/link")).unwrap();

    let sentence = scratch.run(["cp", "tree", "a.cask:/"]).fails(1);
    assert!(sentence.contains("use -r"), "{sentence}");
    scratch.run(["cp", "-r", "tree", "a.cask:/"]).ok();
    assert_eq!(scratch.run(["cat", "a.cask:/tree/deep/er/two"]).ok(), "22");
    assert_eq!(scratch.run(["cat", "a.cask:/tree/link"]).ok(), "22");
    let sentence = scratch
        .run(["cp", "-r", "a.cask:/tree", "a.cask:/tree/deep"])
        .fails(1);
    assert!(sentence.contains("into itself"), "{sentence}");
    scratch
        .run(["cp", "-r", "a.cask:/tree", "a.cask:/second"])
        .ok();
    scratch.run(["cp", "-r", "a.cask:/second", "out"]).ok();
    assert_eq!(scratch.read("out/deep/er/two"), b"22");
    assert_eq!(scratch.read("out/one"), b"1");
    assert!(
        fs::read_link(scratch.path("out/link"))
            .unwrap()
            .ends_with("two")
    );

    // Between two casks, the whole of one.
    let [wal, blocks] = SMALL;
    scratch
        .run(["mkfs", "-q", "--bare", wal, blocks, "b.cask"])
        .ok();
    scratch.run(["cp", "-r", "a.cask:/", "b.cask:/"]).ok();
    assert_eq!(
        scratch.run(["cat", "b.cask:/second/deep/er/two"]).ok(),
        "22"
    );

    let sentence = scratch.run(["rm", "a.cask:/tree"]).fails(1);
    assert!(sentence.contains("use -r"), "{sentence}");
    scratch
        .run(["rm", "-r", "a.cask:/tree", "a.cask:/second"])
        .ok();
    let listing = scratch.run(["ls", "a.cask"]).ok();
    assert!(
        listing.ends_with("Totals: 3 of 100 inodes take up 0 bytes.\n"),
        "{listing}"
    );
    scratch.run(["fsck", "a.cask"]).ok();
    scratch.run(["fsck", "b.cask"]).ok();
}

#[test]
fn links_lead_within_the_cask_only() {
    let scratch = Scratch::with_cask();
    fs::create_dir(scratch.path("t")).unwrap();
    symlink("/etc/passwd", scratch.path("t/out")).unwrap();
    symlink("../../../../sessions", scratch.path("t/up")).unwrap();
    symlink("loop", scratch.path("t/loop")).unwrap();
    scratch.run(["cp", "-r", "t", "a.cask:/"]).ok();
    let sentence = scratch.run(["cat", "a.cask:/t/out"]).fails(1);
    assert!(sentence.contains("leads out of the cask"), "{sentence}");
    scratch.run_with(&["cp", "-", "a.cask:/t/up/s"], b"x").ok();
    assert_eq!(scratch.run(["cat", "a.cask:/sessions/s"]).ok(), "x");
    let sentence = scratch.run(["cat", "a.cask:/t/loop"]).fails(1);
    assert!(sentence.contains("too many levels"), "{sentence}");
    // A link itself can be looked at and removed.
    assert!(
        scratch
            .run(["stat", "a.cask:/t/out"])
            .ok()
            .contains("-> /etc/passwd")
    );
    scratch.run(["rm", "-r", "a.cask:/t"]).ok();
    assert_eq!(scratch.run(["cat", "a.cask:/sessions/s"]).ok(), "x");
}

#[test]
fn files_are_exported_by_number() {
    let scratch = Scratch::with_cask();
    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], b"{}")
        .ok();
    let json = scratch
        .run(["stat", "--json", "a.cask:/sessions/abacab"])
        .ok();
    let attr: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = &attr["inode"];
    assert_eq!(
        scratch
            .run(["cp", "a.cask", "-x", &format!("{number}=-")])
            .ok(),
        "{}"
    );
    scratch
        .run(["cp", "a.cask", "-x", &format!("{number}=as-told")])
        .ok();
    scratch
        .run(["cp", "-x", &number.to_string(), "a.cask"])
        .ok();
    assert_eq!(scratch.read("as-told"), b"{}");
    assert_eq!(scratch.read("abacab"), b"{}");
    let sentence = scratch.run(["cp", "a.cask", "-x", "2=-"]).fails(1);
    assert!(sentence.contains("is a directory"), "{sentence}");
}

#[test]
fn all_is_exported_and_numbers_are_shown() {
    let scratch = Scratch::with_cask();
    scratch.write("one", b"1");
    scratch.write("two", b"22");
    let told = scratch
        .run(["cp", "--show-id", "-i", "one", "two", "a.cask:/sessions"])
        .ok();
    let shown: Vec<(u64, &str)> = told
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(number, path)| (number.parse().unwrap(), path))
        .collect();
    assert_eq!(
        shown.iter().map(|(_, path)| *path).collect::<Vec<_>>(),
        ["sessions/one", "sessions/two"]
    );
    for (number, path) in &shown {
        let json = scratch
            .run(["stat", "--json", &format!("a.cask:/{path}")])
            .ok();
        let attr: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(attr["inode"], *number);
    }
    fs::create_dir(scratch.path("out")).unwrap();
    let all = scratch.run(["cp", "-A", "--show-id", "a.cask", "out"]).ok();
    assert_eq!(all, told);
    assert_eq!(scratch.read("out/sessions/one"), b"1");
    assert_eq!(scratch.read("out/sessions/two"), b"22");
    assert!(scratch.path("out/logs").is_dir());
    scratch.run(["cp", "-A", "a.cask", "a.cask:/x"]).fails(2);
    let blocks = scratch.run(["ls", "-b", "a.cask:/sessions"]).ok();
    assert!(blocks.contains("Blocks"), "{blocks}");
    assert!(
        blocks
            .lines()
            .any(|line| line.split_whitespace().nth(2) == Some("8")),
        "{blocks}"
    );
}

#[test]
fn the_listing_is_that_of_the_original() {
    let scratch = Scratch::new();
    let [wal, blocks] = SMALL;
    let made = scratch.run([
        "mkfs",
        "a.cask",
        "--files=4096",
        "--block-size=16384",
        "--label=edge-3 storage",
        wal,
    ]);
    assert_eq!(
        made.ok(),
        "a.cask: 4096 files (1 for the root), 16384-byte blocks, grows as needed\n"
    );
    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], &[b'x'; 56])
        .ok();
    let listing = scratch.run(["ls", "-g", "--time-format=%Y", "a.cask"]).ok();
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines[..2], ["Container: a.cask", "Label: edge-3 storage"]);
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        ["Inode", "#", "Size", "Mod.", "Time", "(GMT)", "Name"]
    );
    let row = lines
        .iter()
        .find(|line| line.ends_with("sessions/abacab"))
        .unwrap();
    assert_eq!(row.split_whitespace().nth(1), Some("56"));
    assert_eq!(
        lines.last(),
        Some(&"Totals: 4 of 4096 inodes take up 56 bytes.")
    );

    let numbers = scratch.run(["ls", "-1", "a.cask"]).ok();
    assert_eq!(numbers.lines().next(), Some("1"));
    assert_eq!(numbers.lines().count(), 4);
    for line in scratch.run(["ls", "--json", "a.cask"]).ok().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(row["name"].is_string() && row["inode"].is_u64(), "{line}");
    }
    let made = scratch
        .run(["mkfs", "--json", "--fill", "b.cask", wal, blocks])
        .ok();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["blocks"], 2000);
    assert_eq!(made["fill"], true);
}

#[test]
fn reading_changes_not_a_byte() {
    let scratch = Scratch::with_cask();
    scratch
        .run_with(&["cp", "-", "a.cask:/sessions/abacab"], b"{}")
        .ok();
    let before = scratch.read("a.cask");
    for args in [
        &["ls", "-lg", "a.cask"][..],
        &["cat", "a.cask:/sessions/abacab"],
        &["cp", "-r", "a.cask:/", "out"],
        &["stat", "a.cask:/sessions"],
        &["df", "-i", "a.cask"],
        &["info", "a.cask"],
        &["info", "--json", "a.cask"],
        &["get", "-v", "a.cask:/sessions/abacab"],
        &["fsck", "-n", "a.cask"],
    ] {
        scratch.run(args).ok();
        assert!(scratch.read("a.cask") == before, "{args:?}");
    }
    // Not even where the file itself could not be written to.
    let read_only = fs::Permissions::from_mode(0o400);
    fs::set_permissions(scratch.path("a.cask"), read_only).unwrap();
    scratch.run(["ls", "a.cask"]).ok();
}

#[test]
fn a_closed_cask_is_resized() {
    let scratch = Scratch::new();
    scratch
        .run(["mkfs", "a.cask", "--files=20", "--blocks=2000"])
        .ok();
    let told = |args: &[&str]| scratch.run(args).ok();
    assert_eq!(
        told(&["resize", "a.cask"]),
        "a.cask:/: 20 files (1 for the root), 2000 blocks\n"
    );
    assert_eq!(
        told(&["resize", "a.cask", "--files=30", "--blocks=2500"]),
        "a.cask:/: 30 files (1 for the root), 2500 blocks\n"
    );
    let command = told(&["info", "--mkfs-command", "a.cask"]);
    assert!(
        command.contains("--files=30 --block-size=4096 --blocks=2500"),
        "{command}"
    );
    assert_eq!(
        told(&["resize", "a.cask", "--files=none", "--blocks=none"]),
        "a.cask:/: files without bound, grows as needed\n"
    );
    let before = scratch.read("a.cask");
    for (option, why) in [
        ("--files=2", "holds 3 files"),
        ("--blocks=2499", "has 2500 blocks"),
    ] {
        let said = scratch.run(["resize", "a.cask", option]).fails(1);
        assert!(said.contains(why), "{said}");
    }
    scratch
        .run(["resize", "a.cask:/logs", "--files=9"])
        .fails(1);
    scratch.run(["resize", "a.cask", "--files=0"]).fails(2);
    assert!(scratch.read("a.cask") == before);
    scratch.run(["fsck", "-n", "a.cask"]).ok();
}

#[test]
fn settings_come_from_the_nearest_level() {
    let scratch = Scratch::with_cask();
    scratch
        .run(["set", "a.cask", "sync=1", "label=edge-3"])
        .ok();
    scratch
        .run([
            "mkstore",
            "--ttl=7D",
            "--set",
            "record=none",
            "a.cask:/logs/raw",
        ])
        .ok();
    scratch
        .run_with(&["cp", "-", "a.cask:/logs/raw/x"], b"x")
        .ok();
    assert_eq!(
        scratch.run(["get", "a.cask"]).ok(),
        "label=edge-3\nsync=1\n"
    );
    assert_eq!(
        scratch
            .run(["get", "-v", "a.cask:/logs/raw/x", "sync"])
            .ok(),
        "sync=1 (from a.cask:/)\n"
    );
    for (setting, value) in [("record", "none\n"), ("ttl", "7D\n")] {
        let got = scratch.run(["get", "a.cask:/logs/raw/x", setting]);
        assert_eq!(got.ok(), value);
    }
    let both = ["set", "a.cask:/sessions", "ttl=30D", "mode=log"];
    scratch.run(both).ok();
    assert_eq!(
        scratch
            .run(["get", "a.cask:/logs/raw/x", "user.cask.mode"])
            .ok(),
        "log\n"
    );
    assert_eq!(scratch.run(["get", "a.cask:/logs", "field"]).ok(), "|\n");
    let all = scratch.run(["get", "-v", "a.cask:/logs/raw/x"]).ok();
    assert!(all.contains("mode=log (from a.cask:/logs/raw)\n"), "{all}");
    assert!(
        all.contains("field=| (from the built-in defaults)\n"),
        "{all}"
    );
    scratch
        .run([
            "set",
            "a.cask:/logs/raw",
            "--unset",
            "record",
            "--unset",
            "field",
        ])
        .ok();
    assert_eq!(
        scratch.run(["get", "a.cask:/logs/raw/x", "record"]).ok(),
        "\\n\n"
    );
    assert!(scratch.run(["info", "a.cask"]).ok().contains("edge-3"));
}

#[test]
fn info_tells_how_to_make_another() {
    let scratch = Scratch::new();
    let [wal, blocks] = SMALL;
    let args = [
        "mkfs",
        "-q",
        "a.cask",
        wal,
        blocks,
        "--files=77",
        "--label=it's \"one\"",
        "--fill",
    ];
    scratch.run(args).ok();
    let command = scratch.run(["info", "--mkfs-command", "a.cask"]).ok();
    let script = format!(
        "caskfs() {{ \"{}\" \"$@\"; }}; eval \"{} -q b.cask\"",
        env!("CARGO_BIN_EXE_caskfs"),
        command
            .trim_end()
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
    );
    let made = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(scratch.path(""))
        .status()
        .unwrap();
    assert!(made.success(), "{script}");
    let facts = |container: &str| {
        let info = scratch.run(["info", "--json", container]).ok();
        let mut info: serde_json::Value = serde_json::from_str(&info).unwrap();
        for own in ["container", "uuid", "created"] {
            assert!(info.as_object_mut().unwrap().remove(own).is_some());
        }
        info
    };
    assert_eq!(facts("a.cask"), facts("b.cask"));
    assert_eq!(facts("a.cask")["blocks"], 2000);
}

#[test]
fn a_bare_cask_has_the_root_alone() {
    let scratch = Scratch::new();
    let [wal, blocks] = SMALL;
    scratch
        .run([
            "mkfs",
            "-q",
            "--bare",
            "--files=4096",
            "--namer=ht",
            wal,
            blocks,
            "a.cask",
        ])
        .ok();
    let df = scratch.run(["df", "-i", "a.cask"]).ok();
    let row: Vec<&str> = df.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row, ["a.cask", "4096", "1", "4095", "1%", "-"]);
    // Forced, another takes its place.
    scratch
        .run(["mkfs", "-q", "--force", "--files=10", wal, blocks, "a.cask"])
        .ok();
    let df = scratch.run(["df", "--json", "a.cask"]).ok();
    let df: serde_json::Value = serde_json::from_str(&df).unwrap();
    assert_eq!((&df["inodes"], &df["inodes_used"]), (&10.into(), &3.into()));
}

#[test]
fn a_full_cask_says_so_and_stays_whole() {
    let scratch = Scratch::with_cask();
    scratch.run_with(&["cp", "-", "a.cask:/kept"], b"kept").ok();
    scratch.write("large", vec![7; 9_000_000]);
    let sentence = scratch.run(["cp", "large", "a.cask:/large"]).fails(1);
    assert_eq!(sentence, "a.cask:/large: no space left in the cask");
    // Neither a part of it nor its space is gone.
    let listing = scratch.run(["ls", "a.cask"]).ok();
    assert!(!listing.contains("large"), "{listing}");
    assert_eq!(scratch.run(["cat", "a.cask:/kept"]).ok(), "kept");
    scratch.run(["fsck", "a.cask"]).ok();
    scratch.write("fits", vec![7; 4_000_000]);
    scratch.run(["cp", "fits", "a.cask:/fits"]).ok();
    // As many files as it was made for, and not one more.
    let mut made = 0;
    let refused = loop {
        let run = scratch.run_with(&["cp", "-", &format!("a.cask:/f{made}")], b"");
        if run.code != 0 {
            break run.fails(1);
        }
        made += 1;
    };
    assert!(refused.contains("--files"), "{refused}");
    assert!((90..=97).contains(&made), "{made}");
    scratch.run(["rm", "a.cask:/f0"]).ok();
    scratch.run_with(&["cp", "-", "a.cask:/f0"], b"").ok();
}

#[test]
fn a_reader_that_goes_is_success() {
    let scratch = Scratch::with_cask();
    scratch.write("large", vec![b'\n'; 3_000_000]);
    scratch.run(["cp", "large", "a.cask:/large"]).ok();
    let mut command = scratch.command(["cat", "a.cask:/large"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
}

#[test]
fn it_answers_to_the_names_of_its_helpers() {
    let scratch = Scratch::new();
    let [wal, blocks] = SMALL;
    scratch
        .run_as("mkfs.caskfs", &["-q", wal, blocks, "a.cask"])
        .ok();
    scratch
        .run_as("/sbin/fsck.caskfs", &["-a", "-f", "-C0", "a.cask"])
        .ok();
    let help = scratch.run(["--help"]).ok();
    for verb in ["mkfs", "mount", "umount", "fsck", "mkstore"] {
        assert!(help.contains(verb), "{help}");
        assert!(scratch.run([verb, "--help"]).ok().contains("Usage"));
    }
    assert!(scratch.run(["--version"]).ok().starts_with("caskfs "));
    // Without a verb: the help, where it does no harm to a pipe, and a usage error.
    let run = scratch.run(&[] as &[&str]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("Usage"));
}
