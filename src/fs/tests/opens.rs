//! Handles against names: nothing goes while it is open, nothing stays after.

use std::cell::Cell;
use std::thread;

use super::*;

#[test]
fn the_last_release_beside_an_unlink_leaves_nothing() {
    let (_, fs) = new_fs();
    let number = fs.make(ROOT, b"a", &file(0o644)).unwrap().0.number;
    fs.open(number).unwrap();
    thread::scope(|scope| {
        let closed = Cell::new(false);
        // The handle goes after the unlink was told that there is one, and before it is committed.
        let is_open = |ino| {
            let open = fs.is_open(ino);
            if !closed.replace(true) {
                scope.spawn(|| fs.release(number).unwrap());
                while fs.is_open(number) {
                    thread::yield_now();
                }
            }
            open
        };
        let now = fs.now();
        fs.cask()
            .transact(Class::Release, |tx| {
                namespace::unlink(tx, ROOT, b"a", &is_open, now)
            })
            .unwrap();
    });
    assert!(matches!(fs.inode(number), Err(Error::Stale)));
    assert!(namespace::orphans(&**fs.cask()).unwrap().is_empty());
}

#[test]
fn releasing_what_is_gone_already_is_no_error() {
    let (_, fs) = new_fs();
    let number = fs.make(ROOT, b"a", &file(0o644)).unwrap().0.number;
    fs.open(number).unwrap();
    let now = fs.now();
    fs.cask()
        .transact(Class::Release, |tx| {
            namespace::unlink(tx, ROOT, b"a", &|_| false, now)
        })
        .unwrap();
    fs.release(number).unwrap();
}

#[test]
fn an_orphan_made_beside_the_counts_goes_with_its_handle() {
    let (_, fs) = new_fs();
    let now = fs.now();
    let (inode, _) = fs
        .cask()
        .transact(Class::Grow, |tx| {
            let inode = inode::new_inode(tx, FileKind::Regular, 0o600, 1, 1, 0, now)?;
            namespace::keep_orphan(tx, &inode)?;
            Ok(inode)
        })
        .unwrap();
    fs.open(inode.number).unwrap();
    fs.release(inode.number).unwrap();
    assert!(matches!(fs.inode(inode.number), Err(Error::Stale)));
    assert_eq!(fs.cask().stats().files_used, 1);
}

#[test]
fn an_open_that_fails_counts_nothing() {
    let (_, fs) = new_fs();
    assert!(matches!(fs.open(77), Err(Error::Stale)));
    assert!(!fs.is_open(77));
}
