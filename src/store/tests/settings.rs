//! Settings: levels, owners, what is refused.

use super::*;
use crate::store::walk::Origin;

fn get(w: &World, ino: Number, name: &str) -> (String, Origin) {
    let (value, origin) = w.store.get_setting(ino, name).unwrap();
    (String::from_utf8(value).unwrap(), origin)
}

#[test]
fn the_nearest_level_wins() {
    let w = World::new();
    let a = w
        .store
        .mkdir(&ROOT_USER, ROOT, b"a", 0o755)
        .unwrap()
        .attr
        .ino;
    let b = w.store.mkdir(&ROOT_USER, a, b"b", 0o755).unwrap().attr.ino;
    let file = w.open(b, b"f", WRITE);
    assert_eq!(get(&w, file.ino, "mode"), ("plain".into(), Origin::BuiltIn));
    w.set(ROOT, "mode", b"value");
    assert_eq!(
        get(&w, file.ino, "mode"),
        ("value".into(), Origin::Level(ROOT))
    );
    w.set(a, "mode", b"log");
    assert_eq!(get(&w, file.ino, "mode"), ("log".into(), Origin::Level(a)));
    w.set(file.ino, "mode", b"plain");
    assert_eq!(
        get(&w, file.ino, "mode"),
        ("plain".into(), Origin::Level(file.ino))
    );
    assert_eq!(get(&w, b, "mode"), ("log".into(), Origin::Level(a)));
    w.store
        .removexattr(&ROOT_USER, a, b"user.cask.mode")
        .unwrap();
    assert_eq!(get(&w, b, "mode"), ("value".into(), Origin::Level(ROOT)));
}

#[test]
fn what_is_kept_follows_every_change() {
    let w = World::new();
    let a = w.dir(b"a", b"log");
    let sub = w
        .store
        .mkdir(&ROOT_USER, a, b"sub", 0o755)
        .unwrap()
        .attr
        .ino;
    let b = w.dir(b"b", b"value");
    w.close(w.open(sub, b"f", WRITE));
    let file = w.open(sub, b"f", READ);
    let cacheable = || w.store.getattr(file.ino, None).unwrap().cacheable;
    assert!(!cacheable());
    w.set(a, "mode", b"plain");
    assert!(cacheable());
    w.set(a, "mode", b"log");
    assert!(!cacheable());
    let flags = RenameFlags::default();
    w.store
        .rename(&ROOT_USER, a, b"sub", b, b"sub", flags)
        .unwrap();
    assert_eq!(
        get(&w, file.ino, "mode"),
        ("value".into(), Origin::Level(b))
    );
    assert!(!cacheable(), "open");
    w.set(b, "mode", b"plain");
    assert!(cacheable());
}

#[test]
fn getxattr_answers_what_is_in_force_and_listxattr_what_is_own() {
    let w = World::new();
    let a = w.dir(b"a", b"log");
    let file = w.open(a, b"f", WRITE);
    assert_eq!(
        w.store.getxattr(file.ino, b"user.cask.mode").unwrap(),
        b"log"
    );
    assert_eq!(
        w.store.getxattr(file.ino, b"user.cask.record").unwrap(),
        b"\\n"
    );
    assert_eq!(w.store.listxattr(file.ino).unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(w.store.listxattr(a).unwrap(), [b"user.cask.mode"]);
    let set = |name: &[u8], value: &[u8]| {
        w.store
            .setxattr(&WRITER, file.ino, name, value, false, false)
    };
    set(b"user.colour", b"blue").unwrap();
    assert_eq!(w.store.getxattr(file.ino, b"user.colour").unwrap(), b"blue");
    assert_eq!(
        errno(w.store.getxattr(file.ino, b"user.cask.colour")),
        libc::ENODATA
    );
    assert_eq!(
        errno(w.store.getxattr(file.ino, b"user.other")),
        libc::ENODATA
    );
}

#[test]
fn bad_settings_change_nothing() {
    let w = World::new();
    let a = w.dir(b"a", b"log");
    let set = |caller: &Caller, name: &[u8], value: &[u8]| {
        w.store.setxattr(caller, a, name, value, false, false)
    };
    assert_eq!(
        errno(set(&ROOT_USER, b"user.cask.mode", b"fast")),
        libc::EINVAL
    );
    assert_eq!(
        errno(set(&ROOT_USER, b"user.cask.speed", b"fast")),
        libc::EINVAL
    );
    assert_eq!(
        errno(set(&ROOT_USER, b"user.cask.seal", b"on")),
        libc::EOPNOTSUPP
    );
    assert_eq!(
        errno(set(&WRITER, b"user.cask.mode", b"plain")),
        libc::EPERM
    );
    assert_eq!(
        errno(w.store.removexattr(&WRITER, a, b"user.cask.mode")),
        libc::EPERM
    );
    assert_eq!(w.store.listxattr(a).unwrap(), [b"user.cask.mode"]);
    assert_eq!(get(&w, a, "mode").0, "log");
    assert!(matches!(
        w.store.get_setting(a, "speed"),
        Err(Error::Invalid(_))
    ));
    set(&ROOT_USER, b"user.cask.field", b";").unwrap();
    set(&ROOT_USER, b"user.cask.escape", b"percent").unwrap();
    set(&ROOT_USER, b"user.cask.seal", b"off").unwrap();
}

#[test]
fn the_owner_may_set_and_create_and_replace_are_told_apart() {
    let w = World::new();
    let file = w.open(ROOT, b"f", WRITE);
    let set = |create, replace| {
        w.store.setxattr(
            &WRITER,
            file.ino,
            b"user.cask.mode",
            b"log",
            create,
            replace,
        )
    };
    assert_eq!(errno(set(false, true)), libc::ENODATA);
    set(true, false).unwrap();
    assert_eq!(errno(set(true, false)), libc::EEXIST);
    set(false, true).unwrap();
}

#[test]
fn the_label_stands_on_the_root() {
    let w = World::new();
    let a = w.dir(b"a", b"log");
    let label = b"user.cask.label";
    let set = |caller: &Caller, ino, value: &[u8]| {
        w.store.setxattr(caller, ino, label, value, false, false)
    };
    assert_eq!(errno(set(&WRITER, ROOT, b"mine")), libc::EPERM);
    assert_eq!(errno(set(&ROOT_USER, a, b"mine")), libc::EINVAL);
    assert_eq!(errno(set(&ROOT_USER, ROOT, &[b'x'; 65])), libc::EINVAL);
    set(&ROOT_USER, ROOT, b"edge-3 storage").unwrap();
    assert_eq!(w.store.getxattr(ROOT, label).unwrap(), b"edge-3 storage");
    assert_eq!(w.store.cask().stats().label, b"edge-3 storage");
    assert_eq!(errno(w.store.getxattr(a, label)), libc::ENODATA);
    w.store.removexattr(&ROOT_USER, ROOT, label).unwrap();
    assert_eq!(w.store.getxattr(ROOT, label).unwrap(), b"");
}

#[test]
fn a_file_on_its_own_can_be_a_log() {
    let w = World::new();
    w.close(w.open(ROOT, b"f", WRITE));
    let ino = w.attr(ROOT, b"f").ino;
    w.set(ino, "mode", b"log");
    let mut file = w.open(ROOT, b"f", APPEND);
    w.put(&mut file, b"1\n");
    w.mv(ROOT, b"f", b"f.1");
    w.put(&mut file, b"2\n");
    let fresh = w.attr(ROOT, b"f").ino;
    assert_ne!(fresh, ino);
    assert_eq!(get(&w, fresh, "mode"), ("log".into(), Origin::Level(fresh)));
}
