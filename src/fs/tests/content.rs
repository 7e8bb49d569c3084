//! Content: sizes, holes, blocks, and who may keep its set-user-ID bit.

use super::*;
use crate::limits::FILE_SIZE_MAX;

const BLOCK: u64 = 4096;
const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 1,
};
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn a_file(fs: &Fs<MemoryDevice>) -> Number {
    fs.make(ROOT, b"f", &file(0o644)).unwrap().0.number
}

fn size(fs: &Fs<MemoryDevice>, number: Number, size: u64) {
    let set = SetAttr {
        size: Some(size),
        ..Default::default()
    };
    fs.setattr(&ME, number, &set).unwrap();
}

fn blocks(fs: &Fs<MemoryDevice>, number: Number) -> u64 {
    fs.attr(&fs.inode(number).unwrap()).unwrap().blocks
}

fn bytes(fs: &Fs<MemoryDevice>, number: Number) -> Vec<u8> {
    let mut buf = Vec::new();
    fs.read(number, 0, 64 << 20, &mut buf).unwrap();
    buf
}

#[test]
fn writing_nothing_changes_nothing() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let before = fs.inode(f).unwrap();
    fs.write(&ME, f, Some(1 << 40), b"").unwrap();
    assert_eq!(fs.inode(f).unwrap(), before);
}

#[test]
fn only_regular_files_have_bytes() {
    let (_, fs) = new_fs();
    let mut buf = Vec::new();
    assert!(matches!(
        fs.write(&ME, ROOT, Some(0), b"x"),
        Err(Error::IsDirectory)
    ));
    assert!(matches!(
        fs.read(ROOT, 0, 10, &mut buf),
        Err(Error::IsDirectory)
    ));
    assert!(matches!(
        fs.allocate(&ME, ROOT, 0, 0, 10),
        Err(Error::IsDirectory)
    ));
}

#[test]
fn a_file_ends_where_a_file_can_end() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let too_large = |done: Result<()>| assert!(matches!(done, Err(Error::FileTooLarge { .. })));
    too_large(fs.write(&ME, f, Some(FILE_SIZE_MAX), b"x").map(|_| ()));
    too_large(fs.write(&ME, f, Some(u64::MAX), b"x").map(|_| ()));
    too_large(fs.allocate(&ME, f, 0, u64::MAX, 2).map(|_| ()));
    let set = SetAttr {
        size: Some(FILE_SIZE_MAX + 1),
        ..Default::default()
    };
    too_large(fs.setattr(&ME, f, &set).map(|_| ()));
    size(&fs, f, FILE_SIZE_MAX);
    fs.write(&ME, f, Some(FILE_SIZE_MAX - 1), b"x").unwrap();
    assert_eq!(fs.inode(f).unwrap().size, FILE_SIZE_MAX);
    assert_eq!(blocks(&fs, f), BLOCK / 512);
}

#[test]
fn only_skipped_blocks_make_a_file_sparse() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let sparse = || fs.inode(f).unwrap().flags & crate::format::item::FLAG_SPARSE != 0;
    fs.write(&ME, f, Some(100), b"x").unwrap();
    size(&fs, f, BLOCK);
    fs.write(&ME, f, Some(BLOCK + 10), b"x").unwrap();
    assert!(!sparse(), "no whole block was skipped");
    fs.write(&ME, f, Some(3 * BLOCK), b"x").unwrap();
    assert!(sparse());
    size(&fs, f, 0);
    assert!(!sparse());
    size(&fs, f, 1);
    assert!(sparse(), "its one block was never written");
    assert_eq!(blocks(&fs, f), 0);
}

#[test]
fn a_write_takes_set_id_bits_from_others_than_root() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let perm = |caller: &Caller, perm, act: &dyn Fn(&Caller)| {
        let set = SetAttr {
            perm: Some(perm),
            ..Default::default()
        };
        fs.setattr(&ROOT_USER, f, &set).unwrap();
        act(caller);
        fs.inode(f).unwrap().perm()
    };
    let write = |caller: &Caller| {
        fs.write(caller, f, None, b"x").unwrap();
    };
    assert_eq!(perm(&ROOT_USER, 0o6755, &write), 0o6755);
    assert_eq!(perm(&ME, 0o6755, &write), 0o755);
    assert_eq!(
        perm(&ME, 0o6745, &write),
        0o2745,
        "mandatory locking, not set-group-ID"
    );
    let chown = |caller: &Caller| {
        let set = SetAttr {
            uid: Some(5),
            ..Default::default()
        };
        fs.setattr(caller, f, &set).unwrap();
    };
    assert_eq!(perm(&ROOT_USER, 0o6755, &chown), 0o755);
}

#[test]
fn punching_to_the_end_is_a_cut_that_keeps_the_size() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    fs.write(&ME, f, None, &[7; 10 * 4096]).unwrap();
    fs.allocate(&ME, f, PUNCH, BLOCK + 1, 1 << 40).unwrap();
    let mut want = vec![7; BLOCK as usize + 1];
    want.resize(10 * 4096, 0);
    assert_eq!(bytes(&fs, f), want);
    assert_eq!(blocks(&fs, f), 2 * BLOCK / 512);
}

#[test]
fn a_punched_range_gives_its_blocks_back() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let len = 2u64 << 20;
    fs.write(&ME, f, None, &vec![7; len as usize]).unwrap();
    fs.cask().checkpoint().unwrap();
    let full = fs.statfs().unwrap().blocks_free;
    fs.allocate(&ME, f, PUNCH, 4096, len - 8192).unwrap();
    fs.cask().checkpoint().unwrap();
    let freed = fs.statfs().unwrap().blocks_free - full;
    assert!(
        freed > len / BLOCK - 16,
        "{freed} of {} blocks",
        len / BLOCK
    );
    assert_eq!(blocks(&fs, f), 2 * BLOCK / 512);
    let read = bytes(&fs, f);
    assert!(read.iter().take(4096).all(|b| *b == 7));
    assert!(
        read.iter()
            .skip(4096)
            .take((len - 8192) as usize)
            .all(|b| *b == 0)
    );
    assert!(read.iter().skip((len - 4096) as usize).all(|b| *b == 7));
}

#[test]
fn punching_what_is_a_hole_already_costs_nothing() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    size(&fs, f, 1 << 60);
    fs.write(&ME, f, Some(1 << 59), b"x").unwrap();
    let lsn = fs.cask().lsn();
    fs.allocate(&ME, f, PUNCH, 0, (1 << 60) - 1).unwrap();
    assert!(fs.cask().lsn() <= lsn + 2);
    fs.cask().checkpoint().unwrap();
    assert_eq!(blocks(&fs, f), 0);
    assert_eq!(fs.inode(f).unwrap().size, 1 << 60);
}

#[test]
fn every_punch_leaves_what_it_should() {
    let (_, fs) = fs_with(&FormatOptions {
        block_size: 1024,
        blocks: Some(4096),
        ..Default::default()
    });
    let f = a_file(&fs);
    let len: usize = 200 << 10;
    let content: Vec<u8> = (0..len).map(|i| i as u8 | 1).collect();
    let places = [0, 1, 1023, 1024, 5000, 65_536, 65_537, 130_000, len - 1];
    for (i, from) in places.iter().enumerate() {
        for to in places.get(i + 1..).unwrap_or_default() {
            size(&fs, f, 0);
            fs.write(&ME, f, Some(0), &content).unwrap();
            let (at, bytes_punched) = (*from as u64, (to - from) as u64);
            fs.allocate(&ME, f, PUNCH, at, bytes_punched).unwrap();
            let mut want = content.clone();
            want[*from..*to].fill(0);
            assert!(bytes(&fs, f) == want, "{from}..{to}");
            fs.cask().checkpoint().unwrap();
            assert!(bytes(&fs, f) == want, "{from}..{to} after a checkpoint");
        }
    }
}

#[test]
fn zeroing_a_range_may_extend_the_file() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    fs.write(&ME, f, None, b"0123456789").unwrap();
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    fs.allocate(&ME, f, zero | libc::FALLOC_FL_KEEP_SIZE, 8, 10)
        .unwrap();
    assert_eq!(bytes(&fs, f), b"01234567\0\0");
    fs.allocate(&ME, f, zero, 2, 10).unwrap();
    assert_eq!(bytes(&fs, f), b"01\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn what_fallocate_cannot_do_it_says() {
    let (_, fs) = new_fs();
    let f = a_file(&fs);
    let modes = [
        libc::FALLOC_FL_PUNCH_HOLE,
        PUNCH | libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_INSERT_RANGE,
        libc::FALLOC_FL_UNSHARE_RANGE,
    ];
    for mode in modes {
        let done = fs.allocate(&ME, f, mode, 0, 4096);
        assert!(matches!(done, Err(Error::NotSupported(_))), "mode {mode}");
    }
    assert!(matches!(
        fs.allocate(&ME, f, 0, 0, 0),
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        fs.allocate(&ME, f, 0, 0, 1 << 40),
        Err(Error::NoSpace)
    ));
    size(&fs, f, 1 << 40);
    assert!(
        matches!(fs.allocate(&ME, f, 0, 0, 1 << 40), Err(Error::NoSpace)),
        "a hole inside the file needs room, too"
    );
    size(&fs, f, 0);
    fs.allocate(&ME, f, libc::FALLOC_FL_KEEP_SIZE, 0, 4096)
        .unwrap();
    assert_eq!(fs.inode(f).unwrap().size, 0);
    fs.allocate(&ME, f, 0, 0, 4096).unwrap();
    assert_eq!(fs.inode(f).unwrap().size, 4096);
}
