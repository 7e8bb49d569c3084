//! Names: the corners of rename, link and look-up, attributes' names, and deep trees.

use super::*;
use crate::limits::LINK_MAX;

fn roomy() -> (MemoryDevice, Fs<MemoryDevice>) {
    fs_with(&FormatOptions {
        blocks: Some(16384),
        ..Default::default()
    })
}

#[test]
fn trees_deeper_than_any_path_are_renamed_in() {
    let (_, fs) = roomy();
    let mut at = ROOT;
    for _ in 0..5000 {
        at = fs.make(at, b"d", &dir()).unwrap().0.number;
    }
    let (x, _) = fs.make(ROOT, b"x", &dir()).unwrap();
    mv(&fs, place(ROOT, "x"), place(at, "x")).unwrap();
    let path = namespace::path_of(&**fs.cask(), x.number).unwrap().unwrap();
    assert_eq!(path.len(), 2 * 5000 + 1);
    assert!(matches!(
        mv(&fs, place(ROOT, "d"), place(x.number, "d")),
        Err(Error::Invalid(_))
    ));
}

#[test]
fn directories_that_contain_each_other_are_found_out() {
    let (_, fs) = new_fs();
    let (a, _) = fs.make(ROOT, b"a", &dir()).unwrap();
    let (b, _) = fs.make(a.number, b"b", &dir()).unwrap();
    let (c, _) = fs.make(ROOT, b"c", &dir()).unwrap();
    let lie = Inode {
        parent: b.number,
        ..fs.inode(a.number).unwrap()
    };
    fs.cask()
        .transact(Class::Grow, |tx| save(tx, &lie))
        .unwrap();
    assert!(matches!(
        mv(&fs, place(ROOT, "c"), place(b.number, "c")),
        Err(Error::Corrupt(_))
    ));
    assert_eq!(fs.inode(c.number).unwrap().parent, ROOT);
}

#[test]
fn a_file_cannot_replace_a_directory_that_it_is_in() {
    let (_, fs) = new_fs();
    let (a, _) = fs.make(ROOT, b"a", &dir()).unwrap();
    fs.make(a.number, b"f", &file(0o644)).unwrap();
    assert!(matches!(
        mv(&fs, place(a.number, "f"), place(ROOT, "a")),
        Err(Error::NotEmpty)
    ));
    let exchange = RenameFlags {
        exchange: true,
        ..Default::default()
    };
    let done = fs.rename(&ME, place(a.number, "f"), place(ROOT, "a"), exchange);
    assert!(matches!(done, Err(Error::Invalid(_))));
    let none = fs.rename(&ME, place(ROOT, "a"), place(ROOT, "b"), exchange);
    assert!(matches!(none, Err(Error::NotFound)));
    let both = RenameFlags {
        no_replace: true,
        ..exchange
    };
    let both = fs.rename(&ME, place(ROOT, "a"), place(ROOT, "b"), both);
    assert!(matches!(both, Err(Error::Invalid(_))));
}

#[test]
fn an_empty_directory_is_replaced_and_a_removed_one_takes_nothing() {
    let (_, fs) = new_fs();
    let (a, _) = fs.make(ROOT, b"a", &dir()).unwrap();
    let (b, _) = fs.make(ROOT, b"b", &dir()).unwrap();
    fs.open(b.number).unwrap();
    mv(&fs, place(ROOT, "a"), place(ROOT, "b")).unwrap();
    assert_eq!(fs.lookup(ROOT, b"b").unwrap().number, a.number);
    assert_eq!(fs.inode(ROOT).unwrap().nlink, 3);
    assert_eq!(fs.inode(b.number).unwrap().nlink, 0);
    assert!(matches!(
        fs.make(b.number, b"x", &file(0o644)),
        Err(Error::NotFound)
    ));
    fs.make(ROOT, b"x", &file(0o644)).unwrap();
    assert!(matches!(
        mv(&fs, place(ROOT, "x"), place(b.number, "x")),
        Err(Error::NotFound)
    ));
    let (c, _) = fs.make(ROOT, b"c", &dir()).unwrap();
    assert!(matches!(
        mv(&fs, place(ROOT, "c"), place(b.number, "c")),
        Err(Error::NotFound)
    ));
    assert_eq!(fs.inode(c.number).unwrap().parent, ROOT);
}

#[test]
fn names_and_directories_are_counted_up_to_the_limit() {
    let (_, fs) = new_fs();
    let full = |number, nlink| {
        let inode = Inode {
            nlink,
            ..fs.inode(number).unwrap()
        };
        fs.cask()
            .transact(Class::Grow, |tx| save(tx, &inode))
            .unwrap();
    };
    let (f, _) = fs.make(ROOT, b"f", &file(0o644)).unwrap();
    let (d, _) = fs.make(ROOT, b"d", &dir()).unwrap();
    let (e, _) = fs.make(d.number, b"e", &dir()).unwrap();
    full(f.number, LINK_MAX);
    assert!(matches!(
        fs.link(f.number, ROOT, b"g"),
        Err(Error::TooManyLinks)
    ));
    full(d.number, LINK_MAX);
    assert!(matches!(
        fs.make(d.number, b"x", &dir()),
        Err(Error::TooManyLinks)
    ));
    fs.make(ROOT, b"y", &dir()).unwrap();
    assert!(matches!(
        mv(&fs, place(ROOT, "y"), place(d.number, "y")),
        Err(Error::TooManyLinks)
    ));
    fs.make(d.number, b"x", &file(0o644)).unwrap();
    mv(&fs, place(d.number, "e"), place(d.number, "z")).unwrap();
    assert_eq!(fs.lookup(d.number, b"z").unwrap().number, e.number);
}

#[test]
fn the_name_given_last_is_remembered() {
    let (_, fs) = new_fs();
    let (f, _) = fs.make(ROOT, b"a", &file(0o644)).unwrap();
    let name = || {
        let inode = fs.inode(f.number).unwrap();
        namespace::name_of(&**fs.cask(), &inode).unwrap()
    };
    assert_eq!(name().unwrap(), b"a");
    fs.link(f.number, ROOT, b"b").unwrap();
    assert_eq!(name().unwrap(), b"b");
    mv(&fs, place(ROOT, "a"), place(ROOT, "c")).unwrap();
    assert_eq!(name().unwrap(), b"c");
    fs.unlink(ROOT, b"b").unwrap();
    assert_eq!(name().unwrap(), b"c");
    fs.link(f.number, ROOT, b"d").unwrap();
    fs.unlink(ROOT, b"d").unwrap();
    assert_eq!(name(), None);
    assert_eq!(fs.inode(f.number).unwrap().nlink, 1);
}

#[test]
fn times_move_as_posix_says() {
    let device = MemoryDevice::new();
    Cask::format(&device, &FormatOptions::default()).unwrap();
    let cask = Arc::new(Cask::open(device, OpenOptions::default()).unwrap());
    let clock = Arc::new(ManualClock::new(Timestamp::from_secs(10)));
    let fs = Fs::new(cask, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let (d, _) = fs.make(ROOT, b"d", &dir()).unwrap();
    let (f, _) = fs.make(d.number, b"f", &file(0o644)).unwrap();
    let times = |number| {
        let inode = fs.inode(number).unwrap();
        (inode.mtime.secs, inode.ctime.secs, inode.btime.secs)
    };
    clock.set(Timestamp::from_secs(20));
    fs.link(f.number, ROOT, b"g").unwrap();
    assert_eq!(
        (times(f.number), times(d.number)),
        ((10, 20, 10), (10, 10, 10))
    );
    clock.set(Timestamp::from_secs(30));
    mv(&fs, place(d.number, "f"), place(d.number, "h")).unwrap();
    assert_eq!(
        (times(f.number), times(d.number)),
        ((10, 30, 10), (30, 30, 10))
    );
    clock.set(Timestamp::from_secs(40));
    fs.unlink(d.number, b"h").unwrap();
    assert_eq!(
        (times(f.number), times(d.number)),
        ((10, 40, 10), (40, 40, 10))
    );
    clock.set(Timestamp::from_secs(50));
    fs.write(&ME, f.number, None, b"x").unwrap();
    assert_eq!(times(f.number), (50, 50, 10));
    clock.set(Timestamp::from_secs(60));
    let perm = SetAttr {
        perm: Some(0o600),
        mtime: Some(SetTime::At(Timestamp { secs: -5, nanos: 7 })),
        ..Default::default()
    };
    fs.setattr(&ME, f.number, &perm).unwrap();
    assert_eq!(times(f.number), (-5, 60, 10));
}

#[test]
fn only_devices_have_a_device_number() {
    let (_, fs) = new_fs();
    let rdev = |name: &[u8], kind| {
        let new = NewFile {
            kind,
            rdev: 259,
            ..file(0o600)
        };
        fs.make(ROOT, name, &new).unwrap().0.rdev
    };
    assert_eq!(rdev(b"c", FileKind::CharDevice), 259);
    assert_eq!(rdev(b"b", FileKind::BlockDevice), 259);
    assert_eq!(rdev(b"f", FileKind::Regular), 0);
    assert_eq!(rdev(b"p", FileKind::Fifo), 0);
}

#[test]
fn symbolic_links_keep_any_target() {
    let (_, fs) = new_fs();
    let target = [0xff; 4095];
    let (l, _) = fs.symlink(&ME, ROOT, b"l", &target).unwrap();
    assert_eq!(fs.readlink(l.number).unwrap(), target);
    assert_eq!((l.size, l.perm()), (4095, 0o777));
    let long = fs.symlink(&ME, ROOT, b"m", &[b'x'; 4096]);
    assert!(matches!(long, Err(Error::NameTooLong { max: 4095 })));
    assert!(matches!(
        fs.symlink(&ME, ROOT, b"m", b""),
        Err(Error::NotFound)
    ));
    assert!(matches!(fs.readlink(ROOT), Err(Error::Invalid(_))));
}

#[test]
fn attributes_have_the_names_that_ext4_takes() {
    let (_, fs) = new_fs();
    let (f, _) = fs.make(ROOT, b"f", &file(0o644)).unwrap();
    let (l, _) = fs.symlink(&ME, ROOT, b"l", b"f").unwrap();
    let set = |number, name: &[u8]| {
        fs.cask()
            .transact(Class::Grow, |tx| {
                xattr::set(tx, number, name, b"v", xattr::SetMode::Any, fs.now())
            })
            .map(|_| ())
    };
    let get = |number, name: &[u8]| xattr::get(&**fs.cask(), &fs.inode(number).unwrap(), name);
    for name in [b"user.".as_slice(), b"trusted.", b"security."] {
        assert!(matches!(set(f.number, name), Err(Error::Invalid(_))));
    }
    for name in [b"user".as_slice(), b"other.a", b"system.posix_acl_default"] {
        assert!(matches!(set(f.number, name), Err(Error::NotSupported(_))));
        assert!(matches!(get(f.number, name), Err(Error::NotSupported(_))));
    }
    assert!(matches!(set(f.number, b""), Err(Error::AttributeRange)));
    let long = [b"user.".as_slice(), &[b'x'; 251]].concat();
    assert!(matches!(set(f.number, &long), Err(Error::AttributeRange)));
    assert!(matches!(
        set(l.number, b"user.a"),
        Err(Error::NotPermitted(_))
    ));
    assert!(matches!(get(l.number, b"user.a"), Err(Error::NoAttribute)));
    set(l.number, b"trusted.a").unwrap();
    set(f.number, b"security.capability").unwrap();
    assert_eq!(get(f.number, b"security.capability").unwrap(), b"v");
    fs.unlink(ROOT, b"l").unwrap();
}

#[test]
fn an_inode_has_no_more_attributes_than_can_be_listed_and_removed() {
    let (_, fs) = new_fs();
    let (f, _) = fs.make(ROOT, b"f", &file(0o644)).unwrap();
    let mut count = 0;
    let refused = loop {
        let name = format!("user.{:0>200}", count);
        let done = fs.cask().transact(Class::Grow, |tx| {
            xattr::set(
                tx,
                f.number,
                name.as_bytes(),
                b"",
                xattr::SetMode::Any,
                fs.now(),
            )
        });
        match done {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 1000, "no limit");
    };
    assert!(matches!(refused, Error::NoSpace));
    let names = xattr::list(&**fs.cask(), &fs.inode(f.number).unwrap()).unwrap();
    assert_eq!(names.len(), count);
    assert!(names.iter().map(|name| name.len() + 1).sum::<usize>() <= 65_536);
    let again = fs.cask().transact(Class::Grow, |tx| {
        let name = format!("user.{:0>200}", 3);
        xattr::set(
            tx,
            f.number,
            name.as_bytes(),
            b"new",
            xattr::SetMode::Any,
            fs.now(),
        )
    });
    again.unwrap();
    fs.unlink(ROOT, b"f").unwrap();
    assert!(matches!(fs.inode(f.number), Err(Error::Stale)));
}
