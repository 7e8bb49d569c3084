//! `roll-on=reopen` and the rotation that goes with it; rolls on request; the door they come through.

use super::*;

/// A store of `roll-on=reopen` with one writer that has written this.
fn reopen_with(data: &[u8]) -> (World, Number, File) {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "roll-on", b"reopen");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, data);
    (w, logs, file)
}

impl World {
    fn rotate(&self, dir: Number, name: &[u8]) -> Result<()> {
        self.store.rotate(&ROOT_USER, dir, name)
    }
}

#[test]
fn a_rename_cuts_nothing_and_the_rotation_does() {
    let (w, logs, mut file) = reopen_with(b"1\nbe");
    let old = w.attr(logs, b"a");
    let set = SetAttr {
        perm: Some(0o620),
        uid: Some(7),
        gid: Some(8),
        ..SetAttr::default()
    };
    w.store.setattr(&ROOT_USER, old.ino, None, &set).unwrap();
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"fore\n2\nhal");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nbefore\n2\nhal");
    assert!(!w.exists(logs, b"a"));
    w.heard();
    let before = w.store.cask().lsn();
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.store.cask().lsn(), before + 1, "one record");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nbefore\n2\n");
    assert_eq!(w.cat(logs, b"a"), b"hal");
    w.put(&mut file, b"f\n");
    assert_eq!(w.cat(logs, b"a"), b"half\n");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nbefore\n2\n");
    let fresh = w.attr(logs, b"a");
    assert_eq!((fresh.perm, fresh.uid, fresh.gid), (0o620, 7, 8));
    assert!(w.heard().contains(&Notice::InvalidateInode(old.ino)));
    w.close(file);
    assert!(w.store.bindings.find(logs, b"a").is_none());
    assert!(w.store.bindings.find(logs, b"a.1").is_none());
}

#[test]
fn the_log_is_there_when_the_rotation_returns() {
    let (w, logs, mut file) = reopen_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.attr(logs, b"a").size, 0);
    w.rotate(logs, b"a").unwrap();
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
    let before = w.store.cask().lsn();
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.store.cask().lsn(), before, "nobody had gone away");
}

#[test]
fn all_handles_that_were_opened_by_the_name_come_back_and_no_other() {
    let (w, logs, mut one) = reopen_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    let mut two = w.open(logs, b"a", APPEND);
    w.put(&mut two, b"2\n");
    let mut other = w.open(logs, b"a.1", APPEND);
    w.mv(logs, b"a", b"a.2");
    let mut three = w.open(logs, b"a", APPEND);
    w.put(&mut three, b"3\n");
    w.put(&mut one, b"1\n");
    w.put(&mut two, b"2\nbegun");
    w.rotate(logs, b"a").unwrap();
    w.put(&mut one, b"one\n");
    w.put(&mut two, b" two\n");
    w.put(&mut three, b"three\n");
    w.put(&mut other, b"other\n");
    assert_eq!(w.cat(logs, b"a.1"), b"1\n1\nother\n");
    assert_eq!(w.cat(logs, b"a.2"), b"2\n2\n");
    assert_eq!(w.cat(logs, b"a"), b"3\nbegunone\n two\nthree\n");
    for file in [one, two, three, other] {
        w.close(file);
    }
    assert!(w.store.bindings.find(logs, b"a").is_none());
}

#[test]
fn writers_stay_with_a_file_that_was_removed_or_replaced() {
    let (w, logs, mut file) = reopen_with(b"1\n");
    let used = w.files_used();
    w.store.unlink(&ROOT_USER, logs, b"a").unwrap();
    w.put(&mut file, b"unseen\n");
    assert!(!w.exists(logs, b"a"));
    assert_eq!(w.files_used(), used, "kept for its writer");
    assert_eq!(w.store.getattr(file.ino, None).unwrap().attr.size, 9);
    w.rotate(logs, b"a").unwrap();
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
    assert_eq!(w.files_used(), used, "the rotation let it go");
    let mut other = w.open(logs, b"b", APPEND);
    w.put(&mut other, b"b\n");
    w.mv(logs, b"b", b"a");
    w.put(&mut file, b"unseen\n");
    w.put(&mut other, b"b\n");
    assert_eq!(w.cat(logs, b"a"), b"b\nb\n");
    assert_eq!(w.files_used(), used + 1);
    w.close(file);
    assert_eq!(w.files_used(), used, "the last writer let it go");
    w.close(other);
}

#[test]
fn a_handle_goes_on_following_its_file_whatever_the_settings_become() {
    let (w, logs, mut file) = reopen_with(b"1\n");
    let out = w.dir(b"out", b"plain");
    let flags = RenameFlags::default();
    let rename = |from, name: &[u8], to, new: &[u8]| {
        w.store
            .rename(&ROOT_USER, from, name, to, new, flags)
            .unwrap();
    };
    rename(logs, b"a", out, b"x");
    rename(out, b"x", out, b"y");
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(out, b"y"), b"1\n2\n");
    w.set(logs, "roll-on", b"rename");
    w.rotate(logs, b"a").unwrap();
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"3\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"4\n");
    assert_eq!(
        (w.cat(logs, b"a.1"), w.cat(logs, b"a")),
        (b"3\n".to_vec(), b"4\n".to_vec())
    );
}

#[test]
fn a_truncation_is_of_the_file_the_handle_is_on() {
    let (w, logs, mut file) = reopen_with(b"1\n");
    let reader = w.open(logs, b"a", READ_WRITE);
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.read(reader, 0, 100), b"1\n");
    w.put(&mut file, b"2\n");
    w.ftruncate(reader, 0).unwrap();
    assert_eq!(w.cat(logs, b"a.1"), b"2\n");
    w.rotate(logs, b"a").unwrap();
    w.put(&mut file, b"3\n");
    w.ftruncate(reader, 0).unwrap();
    assert_eq!(w.cat(logs, b"a.1"), b"2\n", "final");
}

#[test]
fn without_records_and_beyond_a_mebibyte_nothing_is_carried() {
    let (w, logs, mut file) = reopen_with(&vec![b'x'; 700_000]);
    w.put(&mut file, &vec![b'x'; 700_000]);
    w.mv(logs, b"a", b"a.1");
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.attr(logs, b"a.1").size, 1_400_000);
    assert_eq!(w.attr(logs, b"a").size, 0);
    w.put(&mut file, &vec![b'y'; 900_000]);
    w.mv(logs, b"a", b"a.2");
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.attr(logs, b"a.2").size, 0);
    assert_eq!(w.cat(logs, b"a"), vec![b'y'; 900_000]);
    w.set(logs, "record", b"none");
    w.mv(logs, b"a", b"a.3");
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.attr(logs, b"a").size, 0);
}

#[test]
fn where_a_rename_cuts_a_rotation_renames() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\nbe");
    let before = w.store.cask().lsn();
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.store.cask().lsn(), before + 1, "one record");
    w.put(&mut file, b"gun\n");
    w.rotate(logs, b"a").unwrap();
    w.rotate(logs, b"a").unwrap();
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a.19700101"), b"1\n");
    assert_eq!(w.cat(logs, b"a.19700101.1"), b"begun\n");
    assert_eq!(w.names(logs), ["a", "a.19700101", "a.19700101.1"]);
    w.set(logs, "roll-name", b"old-%n");
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.cat(logs, b"old-a"), b"3\n");
    let seen = w.open_by(&ROOT_USER, logs, b"old-a", READ).unwrap();
    w.close(seen);
}

#[test]
fn what_is_no_log_is_not_rotated() {
    let (w, logs, file) = reopen_with(b"1\n");
    w.close(w.open(ROOT, b"plain", WRITE));
    w.store.mkdir(&ROOT_USER, logs, b"dir", 0o755).unwrap();
    w.store.symlink(&ROOT_USER, logs, b"link", b"a").unwrap();
    assert_eq!(errno(w.rotate(ROOT, b"plain")), libc::EINVAL);
    assert_eq!(errno(w.rotate(logs, b"link")), libc::EINVAL);
    assert_eq!(errno(w.rotate(logs, b"dir")), libc::EISDIR);
    assert_eq!(errno(w.rotate(ROOT, b"nothing")), libc::ENOENT);
    assert_eq!(errno(w.rotate(logs, b".cask")), libc::EPERM);
    w.close(file);
    w.rotate(logs, b"a").unwrap();
    assert_eq!(w.cat(logs, b"a"), b"1\n", "nobody had it open");
    w.mv(logs, b"a", b"a.1");
    w.rotate(logs, b"a").unwrap();
    assert!(!w.exists(logs, b"a"), "nor had to come back");
    w.set(logs, "roll-on", b"rename");
    assert_eq!(errno(w.rotate(logs, b"a")), libc::ENOENT);
    w.mv(logs, b"a.1", b"a");
    let set = SetAttr {
        perm: Some(0o1777),
        ..SetAttr::default()
    };
    w.store.setattr(&ROOT_USER, logs, None, &set).unwrap();
    let stranger = Caller { uid: 5, ..WRITER };
    assert_eq!(errno(w.store.rotate(&stranger, logs, b"a")), libc::EPERM);
}

#[test]
fn names_written_behind_the_door_are_rotated() {
    let (w, logs, mut file) = reopen_with(b"1\n");
    let mut other = w.open(logs, b"b", APPEND);
    w.put(&mut other, b"b\n");
    assert_eq!(w.names(logs), ["a", "b"], "the door is not listed");
    let door = w.store.lookup(&WRITER, logs, b".cask").unwrap().attr;
    assert_eq!((door.kind, door.perm), (FileKind::Directory, 0o555));
    assert_eq!(w.names(door.ino), ["cat", "rotate"]);
    let control = w.store.lookup(&WRITER, door.ino, b"rotate").unwrap().attr;
    assert_eq!((control.kind, control.perm), (FileKind::Regular, 0o200));
    assert_eq!(control.uid, w.store.getattr(logs, None).unwrap().attr.uid);
    w.mv(logs, b"a", b"a.1");
    w.mv(logs, b"b", b"b.1");
    let mut ask = w.open(door.ino, b"rotate", TRUNCATE);
    assert_eq!(w.read(w.open(door.ino, b"rotate", READ), 0, 10), b"");
    w.put(&mut ask, b"a\nb");
    w.put(&mut file, b"2\n");
    w.put(&mut other, b"2\n");
    assert_eq!(
        (w.cat(logs, b"a"), w.cat(logs, b"b")),
        (b"2\n".to_vec(), b"2\n".to_vec())
    );
    let mut odd = w.open(logs, b"with\nnewline", APPEND);
    w.mv(logs, b"with\nnewline", b"odd");
    w.put(&mut ask, b"with\nnewline\0");
    w.put(&mut odd, b"1\n");
    assert_eq!(w.cat(logs, b"with\nnewline"), b"1\n");
    w.store.mkdir(&ROOT_USER, logs, b"dir", 0o755).unwrap();
    assert_eq!(errno(w.write(&mut ask, b"a\ndir\n")), libc::EISDIR);
    w.close(ask);
    assert_eq!(
        errno(w.store.lookup(&WRITER, door.ino, b".cask")),
        libc::ENOENT
    );
    assert_eq!(
        errno(w.store.lookup(&WRITER, control.ino, b"x")),
        libc::ENOTDIR
    );
    let name = b"user.x";
    let refused = [
        errno(w.store.mkdir(&ROOT_USER, door.ino, b"x", 0o755)),
        errno(w.store.create(&ROOT_USER, door.ino, b"x", 0o644, WRITE)),
        errno(w.store.unlink(&ROOT_USER, door.ino, b"rotate")),
        errno(w.store.rmdir(&ROOT_USER, logs, b".cask")),
        errno(w.mv_by(&ROOT_USER, logs, b".cask", b"x")),
        errno(w.store.link(&ROOT_USER, control.ino, logs, b"x")),
        errno(w.truncate(control.ino, 0)),
        errno(
            w.store
                .setxattr(&ROOT_USER, door.ino, name, b"x", false, false),
        ),
        errno(w.store.removexattr(&ROOT_USER, door.ino, name)),
    ];
    assert_eq!(refused, [libc::EPERM; 9]);
    assert_eq!(errno(w.store.getxattr(control.ino, name)), libc::ENODATA);
    assert!(w.store.listxattr(control.ino).unwrap().is_empty());
}
