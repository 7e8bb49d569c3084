//! The rename rule and the discipline of a log, point by point (docs/SEMANTICS.md), through the real
//! kernel.
//!
//! For five seconds after a cut the thread that renamed does not see the new live log (point 2), so
//! cuts are made by a thread of their own unless that very thing is tested.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with, statvfs};
use rustix::io::Errno;

use super::guard::{Cask, caskfs, sh};
use super::load::copy_truncate;

/// A handle that appends to `path`.
fn appender(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// One `write(2)` that takes everything.
#[track_caller]
fn put(mut file: &File, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    assert_eq!(file.write(bytes).unwrap(), bytes.len());
}

/// Runs on another thread, as another program would.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Renames on another thread.
#[track_caller]
fn cut(from: &Path, to: &Path) {
    elsewhere(|| fs::rename(from, to)).unwrap();
}

#[track_caller]
fn text(path: &Path) -> String {
    String::from_utf8(fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn refused<T>(result: std::io::Result<T>, errno: Errno) {
    match result {
        Ok(_) => panic!("went through instead of {errno:?}"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno.raw_os_error())),
    }
}

/// A mounted cask, its log `a.log` and the name `a.log.1`.
fn log() -> Option<(Cask, PathBuf, PathBuf)> {
    let cask = Cask::mounted()?;
    let (live, old) = (cask.path("logs/a.log"), cask.path("logs/a.log.1"));
    Some((cask, live, old))
}

// Point 1: the segment is final and whole.

#[test]
fn a_rename_cuts_and_the_old_name_goes_on() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    let before = fs::metadata(&live).unwrap();
    cut(&live, &old);
    put(&writer, "2\n");
    assert_eq!((text(&old), text(&live)), ("1\n".into(), "2\n".into()));
    assert_eq!(
        fs::metadata(&old).unwrap().ino(),
        before.ino(),
        "the segment keeps its inode"
    );
    assert_ne!(
        fs::metadata(&live).unwrap().ino(),
        before.ino(),
        "the new live log is another inode"
    );
    assert_eq!(fs::metadata(&old).unwrap().len(), 2);
    assert_eq!(fs::metadata(&live).unwrap().len(), 2);
}

#[test]
fn a_begun_record_is_carried() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "whole\nbe");
    cut(&live, &old);
    assert_eq!(text(&old), "whole\n");
    put(&writer, "gun\n");
    assert_eq!(
        (text(&old), text(&live)),
        ("whole\n".into(), "begun\n".into())
    );
}

#[test]
fn a_begun_record_is_carried_over_several_cuts() {
    let Some((cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "x\na");
    cut(&live, &old);
    put(&writer, "b");
    let second = cask.path("logs/a.log.2");
    let _ = elsewhere(|| fs::rename(&live, &second));
    put(&writer, "c\n");
    assert_eq!(text(&old), "x\n");
    let rest = fs::read_to_string(&second).unwrap_or_default();
    assert_eq!((rest.as_str(), text(&live)), ("", "abc\n".into()));
}

#[test]
fn a_begun_record_beyond_a_mebibyte_is_cut_at_the_byte() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    let begun = vec![b'x'; 700_000];
    put(&writer, &begun);
    put(&writer, &begun);
    cut(&live, &old);
    put(&writer, "end\n");
    assert_eq!(fs::metadata(&old).unwrap().len(), 1_400_000);
    assert_eq!(text(&live), "end\n");
}

#[test]
fn without_records_the_cut_is_at_the_byte() {
    let Some((cask, live, old)) = log() else {
        return;
    };
    cask.set("logs", "record=none");
    let writer = appender(&live);
    put(&writer, "whole\nbe");
    cut(&live, &old);
    put(&writer, "gun\n");
    assert_eq!(
        (text(&old), text(&live)),
        ("whole\nbe".into(), "gun\n".into())
    );
}

#[test]
fn a_file_nobody_is_in_the_middle_of_is_renamed_as_it_is() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    put(&appender(&live), "no newline");
    cut(&live, &old);
    assert_eq!(text(&old), "no newline");
    assert!(!live.exists());
}

#[test]
fn a_reader_stays_with_its_segment() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    let mut reader = File::open(&live).unwrap();
    cut(&live, &old);
    put(&writer, "2\n");
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "1\n");
    assert_eq!(
        reader.metadata().unwrap().ino(),
        fs::metadata(&old).unwrap().ino()
    );
}

// Point 2: absent until the next record, and logrotate's `create`.

#[test]
fn the_old_name_is_absent_until_the_next_record() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    fs::set_permissions(&live, Permissions::from_mode(0o640)).unwrap();
    chown(&live, Some(7), Some(8)).unwrap();
    cut(&live, &old);
    assert_eq!(fs::metadata(&live).unwrap_err().kind(), ErrorKind::NotFound);
    let names: Vec<_> = fs::read_dir(live.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a.log.1"]);
    put(&writer, "2\n");
    let fresh = fs::metadata(&live).unwrap();
    assert_eq!(
        (fresh.mode() & 0o7777, fresh.uid(), fresh.gid()),
        (0o640, 7, 8),
        "mode and owner are inherited"
    );
}

#[test]
fn the_thread_that_renamed_adopts_the_live_log() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    fs::rename(&live, &old).unwrap();
    put(&writer, "2\n");
    assert!(
        elsewhere(|| live.exists()),
        "everybody else sees the new live log"
    );
    assert!(!live.exists(), "the thread that renamed does not");
    let create = || {
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&live)
    };
    refused(elsewhere(create), Errno::EXIST);
    let created = create().unwrap();
    assert_eq!(
        created.metadata().unwrap().mode() & 0o7777,
        0o600,
        "the mode asked for is set"
    );
    assert!(live.exists(), "and now it sees it");
    drop(created);
    put(&writer, "3\n");
    assert_eq!((text(&old), text(&live)), ("1\n".into(), "2\n3\n".into()));
    refused(create(), Errno::EXIST);
}

#[test]
fn a_rename_onto_the_name_ends_its_absence_too() {
    let Some((cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    let other = cask.path("logs/other");
    fs::write(&other, "header\n").unwrap();
    fs::rename(&live, &old).unwrap();
    fs::rename(&other, &live).unwrap();
    assert!(live.exists());
    put(&writer, "2\n");
    assert_eq!(text(&live), "header\n2\n");
}

// Point 3: all handles, every cut, other directories.

#[test]
fn all_handles_of_a_name_move_together() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writers = [
        appender(&live),
        appender(&live),
        File::options().write(true).open(&live).unwrap(),
    ];
    put(&writers[0], "1\n");
    put(&writers[1], "2\n");
    cut(&live, &old);
    put(&writers[1], "3\n");
    put(&writers[0], "4\n");
    put(&writers[2], "5\n");
    assert_eq!(
        (text(&old), text(&live)),
        ("1\n2\n".into(), "3\n4\n5\n".into())
    );
}

#[test]
fn a_hundred_cuts_in_a_moment_are_a_hundred_segments() {
    let Some((cask, live, _)) = log() else { return };
    let writer = appender(&live);
    for number in 0..100 {
        put(&writer, format!("{number}\n"));
        cut(&live, &cask.path(format!("logs/a.log.{number}")));
    }
    put(&writer, "100\n");
    for number in 0..100 {
        assert_eq!(
            text(&cask.path(format!("logs/a.log.{number}"))),
            format!("{number}\n")
        );
    }
    assert_eq!(text(&live), "100\n");
}

#[test]
fn a_rename_into_another_directory_is_a_cut() {
    let Some((cask, live, _)) = log() else { return };
    let writer = appender(&live);
    put(&writer, "1\n");
    fs::create_dir(cask.path("logs/old")).unwrap();
    let old = cask.path("logs/old/a.log");
    cut(&live, &old);
    put(&writer, "2\n");
    assert_eq!((text(&old), text(&live)), ("1\n".into(), "2\n".into()));
    // Out of the log store altogether, too.
    let out = cask.path("a.log");
    cut(&live, &out);
    put(&writer, "3\n");
    assert_eq!((text(&out), text(&live)), ("2\n".into(), "3\n".into()));
}

#[test]
fn a_log_follows_its_directory() {
    let Some((cask, ..)) = log() else { return };
    let (here, there) = (cask.path("logs/here"), cask.path("logs/there"));
    fs::create_dir(&here).unwrap();
    let writer = appender(&here.join("a.log"));
    put(&writer, "1\n");
    cut(&here, &there);
    put(&writer, "2\n");
    assert_eq!(text(&there.join("a.log")), "1\n2\n");
}

// Point 4: something renamed over a live log; liveness is nothing but handles.

#[test]
fn writers_go_on_in_a_file_renamed_over_their_log() {
    let Some((cask, live, _)) = log() else { return };
    let writer = appender(&live);
    put(&writer, "gone\n");
    let other = cask.path("logs/other");
    fs::write(&other, "other\n").unwrap();
    cut(&other, &live);
    put(&writer, "more\n");
    assert_eq!(text(&live), "other\nmore\n");
    assert!(!other.exists());
}

#[test]
fn a_file_that_nobody_writes_is_renamed_and_appended_to_as_everywhere() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    fs::write(&live, "1\n").unwrap();
    cut(&live, &old);
    cut(&old, &live);
    put(&appender(&live), "2\n");
    assert_eq!(text(&live), "1\n2\n");
    assert!(!old.exists());
}

// Point 5: removing a live log.

#[test]
fn removing_a_live_log_frees_its_space_at_once() {
    let Some((cask, live, _)) = log() else { return };
    let writer = appender(&live);
    let in_use = || {
        let stat = statvfs(cask.mountpoint()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let before = in_use();
    let block = vec![b'\n'; 1 << 20];
    for _ in 0..16 {
        put(&writer, &block);
    }
    let full = in_use();
    assert!(
        full >= before + (15 << 20),
        "16 MiB take {before} -> {full} bytes"
    );
    fs::remove_file(&live).unwrap();
    let after = in_use();
    assert!(
        after <= before + (1 << 20),
        "removed, but still {before} -> {after} bytes in use"
    );
    put(&writer, "again\n");
    assert_eq!(elsewhere(|| text(&live)), "again\n");
}

// Point 6: the binding of POSIX on request.

/// `caskfs rotate` of a log that was renamed.
fn rotate(path: &Path) -> super::guard::Ran {
    caskfs([OsStr::new("rotate"), path.as_os_str()])
}

#[test]
fn roll_on_reopen_binds_to_the_inode() {
    let Some((cask, live, old)) = log() else {
        return;
    };
    cask.set("logs", "roll-on=reopen");
    let writers = [appender(&live), appender(&live)];
    put(&writers[0], "1\n");
    fs::set_permissions(&live, Permissions::from_mode(0o640)).unwrap();
    fs::rename(&live, &old).unwrap();
    put(&writers[0], "2\n");
    put(&writers[1], "be");
    assert_eq!(text(&old), "1\n2\nbe");
    assert!(!live.exists());
    let ran = rotate(&live).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    assert_eq!((text(&old), text(&live)), ("1\n2\n".into(), "be".into()));
    assert_eq!(fs::metadata(&live).unwrap().mode() & 0o7777, 0o640);
    put(&writers[1], "gun\n");
    put(&writers[0], "3\n");
    assert_eq!(text(&old), "1\n2\n", "the segment is final");
    assert_eq!(text(&live), "begun\n3\n");
    rotate(&live).ok();
    assert_eq!(text(&live), "begun\n3\n", "nothing was renamed");
}

#[test]
fn a_write_to_the_control_file_rotates() {
    let Some((cask, live, old)) = log() else {
        return;
    };
    cask.set("logs", "roll-on=reopen");
    let writer = appender(&live);
    put(&writer, "1\n");
    fs::rename(&live, &old).unwrap();
    // logrotate's `create`: a file is there already, and its own.
    fs::write(&live, "").unwrap();
    fs::set_permissions(&live, Permissions::from_mode(0o600)).unwrap();
    put(&writer, "2\n");
    let script = format!(
        "cd {} && echo a.log > .cask/rotate && ls -a",
        live.parent().unwrap().display()
    );
    let ran = sh("sh", ["-c", &script]).ok();
    assert_eq!(ran.stdout, ".\n..\na.log\na.log.1\n");
    put(&writer, "3\n");
    assert_eq!((text(&old), text(&live)), ("1\n2\n".into(), "3\n".into()));
    assert_eq!(fs::metadata(&live).unwrap().mode() & 0o7777, 0o600);
    let control = live.with_file_name(".cask").join("rotate");
    refused(fs::write(cask.path(".cask/rotate"), "none\n"), Errno::NOENT);
    refused(fs::write(cask.path(".cask/rotate"), "logs\n"), Errno::ISDIR);
    refused(fs::write(cask.path(".cask/other"), "x"), Errno::PERM);
    refused(fs::remove_file(&control), Errno::PERM);
    assert_eq!(fs::read(&control).unwrap(), b"");
}

#[test]
fn a_writer_stays_with_a_removed_log_until_the_rotation() {
    let Some((cask, live, _)) = log() else { return };
    cask.set("logs", "roll-on=reopen");
    let writer = appender(&live);
    put(&writer, "1\n");
    fs::remove_file(&live).unwrap();
    put(&writer, "2\n");
    assert!(!live.exists());
    assert_eq!(writer.metadata().unwrap().len(), 4);
    rotate(&live).ok();
    put(&writer, "3\n");
    assert_eq!(text(&live), "3\n");
}

#[test]
fn where_a_rename_cuts_a_rotation_renames_by_itself() {
    let Some((cask, live, _)) = log() else { return };
    cask.set("logs", "roll-name=%n.old");
    let writer = appender(&live);
    put(&writer, "1\nbe");
    rotate(&live).ok();
    put(&writer, "gun\n");
    rotate(&live).ok();
    rotate(&live).ok();
    put(&writer, "3\n");
    assert_eq!(text(&cask.path("logs/a.log.old")), "1\n");
    assert_eq!(text(&cask.path("logs/a.log.old.1")), "begun\n");
    assert_eq!(text(&live), "3\n");
    assert!(!cask.path("logs/a.log.old.2").exists());
}

#[test]
fn what_cannot_be_rotated_is_said() {
    let Some((cask, live, _)) = log() else { return };
    fs::write(cask.path("plain"), "x").unwrap();
    for (path, why) in [
        (
            cask.path("plain"),
            "is no log; only a file in mode=log is rotated",
        ),
        (live, "no such file or directory"),
        (cask.path("logs"), "is a directory"),
    ] {
        let ran = rotate(&path);
        assert_eq!(ran.code, Some(1));
        assert_eq!(ran.stderr, format!("caskfs: {}: {why}\n", path.display()));
    }
    assert_eq!(rotate(cask.mountpoint()).code, Some(1));
    assert_eq!(caskfs(["rotate"]).code, Some(2));
}

// Point 8: copytruncate.

#[test]
fn truncation_drops_only_what_its_handle_has_read() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n2\n");
    let mut rotator = File::options().read(true).write(true).open(&live).unwrap();
    let mut read = [0; 64];
    assert_eq!(rotator.read(&mut read).unwrap(), 4);
    put(&writer, "3\n");
    rotator.set_len(0).unwrap();
    assert_eq!(text(&live), "3\n", "what came after the last read stays");
    put(&writer, "4\n");
    assert_eq!(text(&live), "3\n4\n");
    assert_eq!(copy_truncate(&live, &old).unwrap(), 4);
    put(&writer, "5\n");
    assert_eq!((text(&old), text(&live)), ("3\n4\n".into(), "5\n".into()));
}

#[test]
fn truncation_by_a_handle_that_read_nothing_drops_everything() {
    let Some((_cask, live, _)) = log() else {
        return;
    };
    let writer = appender(&live);
    put(&writer, "1\n");
    File::options()
        .write(true)
        .open(&live)
        .unwrap()
        .set_len(0)
        .unwrap();
    assert_eq!(text(&live), "");
    put(&writer, "2\n");
    assert_eq!(text(&live), "2\n");
    File::create(&live).unwrap();
    assert_eq!(text(&live), "");
    put(&writer, "3\n");
    assert_eq!(text(&live), "3\n");
}

#[test]
fn truncate_posix_drops_everything() {
    let Some((cask, live, _)) = log() else { return };
    cask.set("logs", "truncate=posix");
    let writer = appender(&live);
    put(&writer, "1\n");
    let mut rotator = File::options().read(true).write(true).open(&live).unwrap();
    assert_eq!(rotator.read(&mut [0; 64]).unwrap(), 2);
    put(&writer, "2\n");
    rotator.set_len(0).unwrap();
    assert_eq!(text(&live), "");
}

// The discipline of a log.

#[test]
fn what_is_written_stays_as_it_is() {
    let Some((cask, live, _)) = log() else { return };
    put(&appender(&live), "0123456789\n");
    let mut file = File::options().read(true).write(true).open(&live).unwrap();
    refused(file.write_at(b"x", 3), Errno::PERM);
    file.seek(SeekFrom::Start(0)).unwrap();
    refused(file.write(b"x"), Errno::PERM);
    refused(file.set_len(5), Errno::PERM);
    refused(
        fallocate(
            &file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            4,
        )
        .map_err(Into::into),
        Errno::PERM,
    );
    refused(fs::hard_link(&live, cask.path("logs/link")), Errno::PERM);
    let other = cask.path("logs/other");
    fs::write(&other, "other\n").unwrap();
    match renameat_with(CWD, &live, CWD, &other, RenameFlags::EXCHANGE) {
        Err(Errno::PERM | Errno::INVAL) => {}
        other => panic!("an exchange with a live log: {other:?}"),
    }
    drop(file);
    assert_eq!(text(&live), "0123456789\n");
}

#[test]
fn appends_land_at_the_end_whatever_the_offset() {
    let Some((_cask, live, _)) = log() else {
        return;
    };
    let (one, two) = (appender(&live), appender(&live));
    for number in 0..50 {
        put(
            if number % 3 == 0 { &one } else { &two },
            format!("{number}\n"),
        );
    }
    assert_eq!(
        text(&live),
        (0..50)
            .map(|number| format!("{number}\n"))
            .collect::<String>()
    );
}

#[test]
fn a_writer_without_append_goes_on_after_a_cut_and_a_truncation() {
    let Some((_cask, live, old)) = log() else {
        return;
    };
    let writer = File::create(&live).unwrap();
    put(&writer, "one\n");
    cut(&live, &old);
    put(&writer, "two\n");
    assert_eq!((text(&old), text(&live)), ("one\n".into(), "two\n".into()));
    File::options()
        .write(true)
        .open(&live)
        .unwrap()
        .set_len(0)
        .unwrap();
    put(&writer, "three\n");
    assert_eq!(text(&live), "three\n", "no hole of NULs");
}

#[test]
fn a_forward_seek_appends_the_gap_as_zeros() {
    let Some((_cask, live, _)) = log() else {
        return;
    };
    let mut writer = File::create(&live).unwrap();
    put(&writer, "ab");
    writer.seek(SeekFrom::Start(6)).unwrap();
    put(&writer, "c\n");
    assert_eq!(fs::read(&live).unwrap(), b"ab\0\0\0\0c\n");
}

#[test]
fn one_write_of_up_to_a_mebibyte_is_one_append() {
    let Some((_cask, live, _)) = log() else {
        return;
    };
    let sizes = [1 << 20, 300_000, 70_000, 4_097];
    thread::scope(|scope| {
        for (mark, size) in (b'a'..).zip(sizes) {
            let live = &live;
            scope.spawn(move || {
                let writer = appender(live);
                let mut record = vec![mark; size];
                record[size - 1] = b'\n';
                (0..20).for_each(|_| put(&writer, &record));
            });
        }
    });
    let content = fs::read(&live).unwrap();
    let mut counts = [0; 4];
    for record in content.split_inclusive(|byte| *byte == b'\n') {
        let kind = usize::from(record[0] - b'a');
        assert!(
            record.len() == sizes[kind]
                && record[..record.len() - 1]
                    .iter()
                    .all(|byte| *byte == record[0]),
            "interleaved"
        );
        counts[kind] += 1;
    }
    assert_eq!(counts, [20; 4]);
}
