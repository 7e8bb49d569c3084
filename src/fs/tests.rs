//! The plain filesystem through its own interface.

mod content;
mod full;
mod names;
mod opens;

use super::*;
use crate::cask::{FormatOptions, OpenOptions};
use crate::clock::ManualClock;
use crate::device::MemoryDevice;

const ROOT: Number = 1;
const ME: Caller = Caller {
    uid: 1000,
    gid: 100,
    tid: 1,
};

fn new_fs() -> (MemoryDevice, Fs<MemoryDevice>) {
    fs_with(&FormatOptions {
        blocks: Some(4096),
        files: Some(200),
        ..Default::default()
    })
}

fn fs_with(options: &FormatOptions) -> (MemoryDevice, Fs<MemoryDevice>) {
    let device = MemoryDevice::new();
    Cask::format(&device, options).unwrap();
    (device.clone(), open(device))
}

fn open(device: MemoryDevice) -> Fs<MemoryDevice> {
    let cask = Arc::new(Cask::open(device, OpenOptions::default()).unwrap());
    Fs::new(cask, Arc::new(ManualClock::new(Timestamp::from_secs(1000)))).unwrap()
}

fn file(perm: u32) -> NewFile {
    NewFile {
        kind: FileKind::Regular,
        perm,
        uid: 1000,
        gid: 100,
        rdev: 0,
    }
}

fn dir() -> NewFile {
    NewFile {
        kind: FileKind::Directory,
        perm: 0o755,
        uid: 1000,
        gid: 100,
        rdev: 0,
    }
}

fn names(fs: &Fs<MemoryDevice>, dir: Number) -> Vec<String> {
    let mut names = Vec::new();
    namespace::read_dir(&**fs.cask(), dir, 0, &mut |entry| {
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
        Ok(true)
    })
    .unwrap();
    names.sort();
    names
}

fn place(dir: Number, name: &'static str) -> Place<'static> {
    Place {
        dir,
        name: name.as_bytes(),
    }
}

fn mv(fs: &Fs<MemoryDevice>, from: Place<'_>, to: Place<'_>) -> Result<()> {
    fs.rename(&ME, from, to, RenameFlags::default()).map(|_| ())
}

fn text(fs: &Fs<MemoryDevice>, number: Number) -> String {
    let mut buf = Vec::new();
    fs.read(number, 0, 1 << 20, &mut buf).unwrap();
    String::from_utf8(buf).unwrap()
}

#[test]
fn files_live_through_unlink_while_open_and_not_through_a_crash() {
    let (device, fs) = new_fs();
    let (inode, _) = fs.make(ROOT, b"a", &file(0o644)).unwrap();
    fs.open(inode.number).unwrap();
    fs.write(&ME, inode.number, None, b"kept").unwrap();
    fs.unlink(ROOT, b"a").unwrap();
    assert_eq!(text(&fs, inode.number), "kept");
    assert!(matches!(fs.lookup(ROOT, b"a"), Err(Error::NotFound)));
    let lsn = fs.cask().lsn();
    fs.cask().persist(lsn).unwrap();
    drop(fs);
    let fs = open(device);
    assert!(matches!(fs.inode(inode.number), Err(Error::Stale)));
    assert_eq!(fs.cask().stats().files_used, 1);
}

#[test]
fn the_last_handle_takes_the_orphan_along() {
    let (_, fs) = new_fs();
    let (inode, _) = fs.make(ROOT, b"a", &file(0o644)).unwrap();
    fs.open(inode.number).unwrap();
    fs.open(inode.number).unwrap();
    fs.unlink(ROOT, b"a").unwrap();
    fs.release(inode.number).unwrap();
    assert_eq!(fs.inode(inode.number).unwrap().nlink, 0);
    fs.release(inode.number).unwrap();
    assert!(matches!(fs.inode(inode.number), Err(Error::Stale)));
}

#[test]
fn rename_keeps_every_posix_rule() {
    let (_, fs) = new_fs();
    let (a, _) = fs.make(ROOT, b"a", &dir()).unwrap();
    let (b, _) = fs.make(a.number, b"b", &dir()).unwrap();
    let (f, _) = fs.make(ROOT, b"f", &file(0o600)).unwrap();
    assert!(matches!(
        mv(&fs, place(ROOT, "a"), place(b.number, "x")),
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        mv(&fs, place(ROOT, "a"), place(ROOT, "f")),
        Err(Error::NotDirectory)
    ));
    assert!(matches!(
        mv(&fs, place(ROOT, "f"), place(ROOT, "a")),
        Err(Error::IsDirectory)
    ));
    assert!(matches!(
        mv(&fs, place(a.number, "b"), place(ROOT, "a")),
        Err(Error::NotEmpty)
    ));
    assert!(matches!(
        mv(&fs, place(ROOT, "none"), place(ROOT, "x")),
        Err(Error::NotFound)
    ));
    fs.link(f.number, a.number, b"g").unwrap();
    mv(&fs, place(ROOT, "f"), place(a.number, "g")).unwrap();
    assert_eq!(
        fs.inode(f.number).unwrap().nlink,
        2,
        "two names of one file: nothing happens"
    );
    mv(&fs, place(a.number, "b"), place(ROOT, "b")).unwrap();
    assert_eq!(fs.inode(ROOT).unwrap().nlink, 4);
    assert_eq!(fs.inode(a.number).unwrap().nlink, 2);
    assert_eq!(fs.inode(b.number).unwrap().parent, ROOT);
    let exchange = RenameFlags {
        exchange: true,
        ..Default::default()
    };
    fs.rename(&ME, place(ROOT, "b"), place(a.number, "g"), exchange)
        .unwrap();
    assert_eq!(fs.lookup(a.number, b"g").unwrap().number, b.number);
    assert_eq!(fs.lookup(ROOT, b"b").unwrap().number, f.number);
    assert_eq!(fs.inode(a.number).unwrap().nlink, 3);
    let whiteout = RenameFlags {
        whiteout: true,
        ..Default::default()
    };
    fs.rename(&ME, place(ROOT, "f"), place(ROOT, "h"), whiteout)
        .unwrap();
    assert_eq!(fs.lookup(ROOT, b"f").unwrap().kind(), FileKind::CharDevice);
    let keep = RenameFlags {
        no_replace: true,
        ..Default::default()
    };
    assert!(matches!(
        fs.rename(&ME, place(ROOT, "h"), place(ROOT, "b"), keep),
        Err(Error::Exists)
    ));
    assert_eq!(names(&fs, ROOT), [".", "..", "a", "b", "f", "h"]);
    assert_eq!(fs.inode(ROOT).unwrap().size, 4);
    assert_eq!(
        namespace::path_of(&**fs.cask(), b.number).unwrap().unwrap(),
        b"a/g"
    );
}

#[test]
fn directories_count_and_refuse() {
    let (_, fs) = new_fs();
    let (a, _) = fs.make(ROOT, b"a", &dir()).unwrap();
    fs.make(a.number, b"f", &file(0o644)).unwrap();
    assert!(matches!(fs.rmdir(ROOT, b"a"), Err(Error::NotEmpty)));
    assert!(matches!(fs.unlink(ROOT, b"a"), Err(Error::IsDirectory)));
    assert!(matches!(fs.rmdir(a.number, b"f"), Err(Error::NotDirectory)));
    assert!(matches!(fs.make(ROOT, b"a", &dir()), Err(Error::Exists)));
    assert!(matches!(
        fs.make(ROOT, &[b'x'; 256], &dir()),
        Err(Error::NameTooLong { max: 255 })
    ));
    assert!(matches!(
        fs.link(a.number, ROOT, b"l"),
        Err(Error::NotPermitted(_))
    ));
    fs.unlink(a.number, b"f").unwrap();
    fs.rmdir(ROOT, b"a").unwrap();
    assert_eq!(fs.inode(ROOT).unwrap().nlink, 2);
}

#[test]
fn a_set_group_directory_hands_its_group_down() {
    let (_, fs) = new_fs();
    let shared = NewFile {
        perm: 0o2775,
        gid: 7,
        ..dir()
    };
    let (a, _) = fs.make(ROOT, b"a", &shared).unwrap();
    let (d, _) = fs.make(a.number, b"d", &dir()).unwrap();
    let (f, _) = fs.make(a.number, b"f", &file(0o644)).unwrap();
    assert_eq!(
        (d.gid, d.perm() & 0o2000, f.gid, f.perm()),
        (7, 0o2000, 7, 0o644)
    );
}

#[test]
fn holes_read_as_zeros_and_count_no_blocks() {
    let (_, fs) = new_fs();
    let (f, _) = fs.make(ROOT, b"f", &file(0o644)).unwrap();
    fs.write(&ME, f.number, Some(10 * 4096), b"x").unwrap();
    assert_eq!(fs.seek(f.number, 0, true).unwrap(), 10 * 4096);
    assert_eq!(fs.seek(f.number, 0, false).unwrap(), 0);
    assert_eq!(fs.attr(&fs.inode(f.number).unwrap()).unwrap().blocks, 8);
    fs.cask().checkpoint().unwrap();
    assert_eq!(fs.seek(f.number, 0, true).unwrap(), 10 * 4096);
    assert_eq!(fs.seek(f.number, 10 * 4096, false).unwrap(), 10 * 4096 + 1);
    let cut = SetAttr {
        size: Some(5),
        ..Default::default()
    };
    fs.setattr(&ME, f.number, &cut).unwrap();
    fs.setattr(
        &ME,
        f.number,
        &SetAttr {
            size: Some(100),
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!(text(&fs, f.number), "\0".repeat(100));
    assert!(matches!(
        fs.seek(f.number, 100, true),
        Err(Error::NoSuchOffset)
    ));
}

#[test]
fn attributes_come_go_and_are_listed() {
    let (_, fs) = new_fs();
    let (f, _) = fs.make(ROOT, b"f", &file(0o644)).unwrap();
    let set = |name: &[u8], value: &[u8], mode| {
        fs.cask()
            .transact(Class::Grow, |tx| {
                xattr::set(tx, f.number, name, value, mode, fs.now())
            })
            .map(|_| ())
    };
    let get = |name: &[u8]| xattr::get(&**fs.cask(), &fs.inode(f.number).unwrap(), name);
    assert!(matches!(get(b"user.a"), Err(Error::NoAttribute)));
    assert!(matches!(
        set(b"user.a", b"1", xattr::SetMode::Replace),
        Err(Error::NoAttribute)
    ));
    set(b"user.a", b"1", xattr::SetMode::Create).unwrap();
    assert!(matches!(
        set(b"user.a", b"1", xattr::SetMode::Create),
        Err(Error::Exists)
    ));
    set(b"user.b", &[7; 3000], xattr::SetMode::Any).unwrap();
    assert!(matches!(
        set(b"user.c", &[7; 5000], xattr::SetMode::Any),
        Err(Error::NoSpace)
    ));
    assert!(matches!(
        set(b"system.posix_acl_access", b"", xattr::SetMode::Any),
        Err(Error::NotSupported(_))
    ));
    assert_eq!(get(b"user.b").unwrap(), [7; 3000]);
    let mut listed = xattr::list(&**fs.cask(), &fs.inode(f.number).unwrap()).unwrap();
    listed.sort();
    assert_eq!(listed, [b"user.a".to_vec(), b"user.b".to_vec()]);
    fs.cask()
        .transact(Class::Release, |tx| {
            xattr::remove(tx, f.number, b"user.a", fs.now())
        })
        .unwrap();
    assert!(matches!(get(b"user.a"), Err(Error::NoAttribute)));
    fs.unlink(ROOT, b"f").unwrap();
}

#[test]
fn the_number_of_files_is_bounded_and_the_root_counts() {
    let (_, fs) = new_fs();
    for i in 0..199 {
        fs.make(ROOT, format!("f{i}").as_bytes(), &file(0o644))
            .unwrap();
    }
    assert!(matches!(
        fs.make(ROOT, b"one more", &file(0o644)),
        Err(Error::NoFiles)
    ));
    assert_eq!(fs.statfs().unwrap().files_free, 0);
    fs.unlink(ROOT, b"f7").unwrap();
    fs.make(ROOT, b"one more", &file(0o644)).unwrap();
}

#[test]
fn a_directory_is_read_through_while_it_changes() {
    let (_, fs) = new_fs();
    for i in 0..150 {
        fs.make(ROOT, format!("f{i}").as_bytes(), &file(0o644))
            .unwrap();
    }
    let (mut seen, mut cookie) = (Vec::new(), 0);
    loop {
        let mut some = Vec::new();
        namespace::read_dir(&**fs.cask(), ROOT, cookie, &mut |entry| {
            cookie = entry.cookie;
            some.push(String::from_utf8_lossy(&entry.name).into_owned());
            Ok(some.len() < 7)
        })
        .unwrap();
        if some.is_empty() {
            break;
        }
        if let Some(name) = some.first().filter(|name| name.starts_with('f')) {
            fs.unlink(ROOT, name.as_bytes()).unwrap();
        }
        seen.extend(some);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 152);
}
