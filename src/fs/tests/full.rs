//! A full cask: what gives space back goes through, whatever was done before.

use super::*;

/// Files in the tree, enough that the cost of an operation is not bounded by the size of the tree.
const FILES: usize = 3000;

fn attribute(fs: &Fs<MemoryDevice>, number: Number, name: &str, len: usize) -> Result<()> {
    let value = vec![7; len];
    let any = xattr::SetMode::Any;
    fs.cask()
        .transact(Class::Grow, |tx| {
            xattr::set(tx, number, name.as_bytes(), &value, any, fs.now())
        })
        .map(|_| ())
}

/// A cask with many files, one of which has attributes.
fn many(attributes: usize) -> (Fs<MemoryDevice>, Vec<Vec<u8>>) {
    let (_, fs) = fs_with(&FormatOptions {
        block_size: 1024,
        blocks: Some(4096),
        wal_bytes: Some(256 << 10),
        ..Default::default()
    });
    let (rich, _) = fs.make(ROOT, b"rich", &file(0o644)).unwrap();
    for i in 0..attributes {
        attribute(&fs, rich.number, &format!("user.{i}"), 700).unwrap();
    }
    let mut names = Vec::new();
    for i in 0..FILES {
        let name = format!("{i}").into_bytes();
        fs.make(ROOT, &name, &file(0o644)).unwrap();
        names.push(name);
    }
    (fs, names)
}

/// Adds until nothing can be added, not even the smallest thing.
fn fill(fs: &Fs<MemoryDevice>) {
    let (big, _) = fs.make(ROOT, b"big", &file(0o644)).unwrap();
    for len in [1 << 20, 1 << 16, 1024, 1] {
        while fs.write(&ME, big.number, None, &vec![1; len]).is_ok() {}
    }
    for len in [900, 300, 0] {
        let mut i = 0;
        while attribute(fs, big.number, &format!("user.{len}.{i}"), len).is_ok() {
            i += 1;
        }
    }
}

#[test]
fn everything_can_be_deleted() {
    let (fs, names) = many(0);
    fill(&fs);
    for name in &names {
        fs.unlink(ROOT, name).unwrap();
    }
    fs.unlink(ROOT, b"big").unwrap();
    fs.unlink(ROOT, b"rich").unwrap();
    assert_eq!(
        fs.statfs().unwrap().files_free + 1,
        fs.cask().stats().files_max
    );
}

#[test]
fn renaming_does_not_use_up_what_is_kept_for_deleting() {
    let (fs, names) = many(0);
    fill(&fs);
    let mut left = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let long = format!("{i:x>255}").into_bytes();
        let (from, to) = (
            Place { dir: ROOT, name },
            Place {
                dir: ROOT,
                name: &long,
            },
        );
        match fs.rename(&ME, from, to, RenameFlags::default()) {
            Ok(_) => left.push(long),
            Err(Error::NoSpace) => left.push(name.clone()),
            Err(error) => panic!("{error}"),
        }
    }
    for (i, name) in left.iter().enumerate() {
        fs.unlink(ROOT, name)
            .unwrap_or_else(|error| panic!("{i}: {error}"));
    }
}

#[test]
fn a_file_with_many_attributes_can_be_deleted() {
    let (fs, _) = many(60);
    fill(&fs);
    let rich = fs.lookup(ROOT, b"rich").unwrap().number;
    fs.unlink(ROOT, b"rich").unwrap();
    assert!(matches!(fs.inode(rich), Err(Error::Stale)));
    assert!(namespace::orphans(&**fs.cask()).unwrap().is_empty());
}

#[test]
fn a_file_with_many_attributes_is_kept_while_it_is_open() {
    let (fs, _) = many(60);
    fill(&fs);
    let rich = fs.lookup(ROOT, b"rich").unwrap().number;
    fs.open(rich).unwrap();
    fs.unlink(ROOT, b"rich").unwrap();
    let inode = fs.inode(rich).unwrap();
    assert_eq!(xattr::list(&**fs.cask(), &inode).unwrap().len(), 60);
    fs.release(rich).unwrap();
    assert!(matches!(fs.inode(rich), Err(Error::Stale)));
}

#[test]
fn a_log_that_filled_the_cask_can_be_rotated() {
    let (fs, _) = many(0);
    let (log, _) = fs.make(ROOT, b"log", &file(0o644)).unwrap();
    while fs.write(&ME, log.number, None, &[b'x'; 200]).is_ok() {}
    let mut old = b"log".to_vec();
    for i in 0..50 {
        let new = format!("log.2024-01-01-{i:0>8}.rotated").into_bytes();
        let from = Place {
            dir: ROOT,
            name: &old,
        };
        let to = Place {
            dir: ROOT,
            name: &new,
        };
        fs.rename(&ME, from, to, RenameFlags::default()).unwrap();
        old = new;
    }
    fs.unlink(ROOT, &old).unwrap();
    let (log, _) = fs.make(ROOT, b"log", &file(0o644)).unwrap();
    fs.write(&ME, log.number, None, &[b'x'; 200]).unwrap();
}

#[test]
fn renaming_over_a_name_goes_through() {
    let (fs, names) = many(0);
    fill(&fs);
    for pair in names.chunks_exact(2) {
        let (from, to) = (
            Place {
                dir: ROOT,
                name: &pair[0],
            },
            Place {
                dir: ROOT,
                name: &pair[1],
            },
        );
        fs.rename(&ME, from, to, RenameFlags::default()).unwrap();
    }
    assert_eq!(fs.inode(ROOT).unwrap().size as usize, FILES / 2 + 2);
}

/// A cask of 64 MiB.
fn of_64_mib() -> Fs<MemoryDevice> {
    let (_, fs) = fs_with(&FormatOptions {
        blocks: Some(16_384),
        ..Default::default()
    });
    fs
}

/// Appends to a file until it is refused; answers the bytes taken.
fn append_until_full(fs: &Fs<MemoryDevice>, number: Number, piece: usize) -> u64 {
    let bytes = vec![0x5a; piece];
    (0..)
        .map(|at| fs.write(&ME, number, Some(at * piece as u64), &bytes))
        .take_while(Result::is_ok)
        .count() as u64
        * piece as u64
}

#[test]
fn what_is_free_after_a_delete_can_be_written() {
    let fs = of_64_mib();
    for round in 0..4 {
        let promised = fs.statfs().unwrap().blocks_free * 4096;
        let (bulk, _) = fs.make(ROOT, b"bulk", &file(0o644)).unwrap();
        let taken = append_until_full(&fs, bulk.number, 1 << 20);
        assert!(taken + (2 << 20) >= promised, "{taken} of {promised}");
        fs.unlink(ROOT, b"bulk").unwrap();
        let free = fs.statfs().unwrap().blocks_free * 4096;
        assert!(free + (2 << 20) >= promised, "{free} of {promised}");
        let name = format!("sits.{round}").into_bytes();
        let (sits, _) = fs.make(ROOT, &name, &file(0o644)).unwrap();
        for at in 0..5 {
            fs.write(&ME, sits.number, Some(at << 20), &vec![1; 1 << 20])
                .unwrap();
        }
    }
}

/// Bytes without a zero, so that every block of them takes a block.
fn image(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at >> 8) as u8 ^ seed | 1).collect()
}

fn overwrite(fs: &Fs<MemoryDevice>, number: Number, at: usize, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let offset = Some((at + done) as u64);
        done += fs.write_or_replace(&ME, number, offset, &bytes[done..])?.2;
    }
    Ok(())
}

fn content(fs: &Fs<MemoryDevice>, number: Number) -> Vec<u8> {
    let size = fs.inode(number).unwrap().size as u32;
    let mut bytes = Vec::new();
    fs.read(number, 0, size, &mut bytes).unwrap();
    bytes
}

fn delete_all(fs: &Fs<MemoryDevice>, names: &[Vec<u8>]) {
    for name in names {
        fs.unlink(ROOT, name).unwrap();
    }
    fs.unlink(ROOT, b"big").unwrap();
}

#[test]
fn overwriting_goes_through_again_and_again() {
    const LEN: usize = 1 << 20;
    let (fs, names) = many(0);
    let (target, _) = fs.make(ROOT, b"target", &file(0o644)).unwrap();
    overwrite(&fs, target.number, 0, &image(0, LEN)).unwrap();
    fill(&fs);
    for (seed, piece) in [(2, 128 << 10), (4, LEN), (6, 1 << 16), (8, 10_000)] {
        let fresh = image(seed, LEN);
        for (at, bytes) in fresh.chunks(piece).enumerate() {
            overwrite(&fs, target.number, at * piece, bytes).unwrap();
        }
        assert!(content(&fs, target.number) == fresh, "pieces of {piece}");
    }
    assert!(matches!(
        fs.write_or_replace(&ME, target.number, Some(LEN as u64), &[1; 4096]),
        Err(Error::NoSpace)
    ));
    delete_all(&fs, &names);
}

#[test]
fn overwriting_in_bits_does_not_use_up_what_is_kept_for_deleting() {
    const LEN: usize = 1 << 20;
    let (fs, names) = many(0);
    let (target, _) = fs.make(ROOT, b"target", &file(0o644)).unwrap();
    let mut expected = image(0, LEN);
    overwrite(&fs, target.number, 0, &expected).unwrap();
    fill(&fs);
    // Every other block, far from the last: the most that extents can fall apart.
    let mut at = 0;
    let mut refused = 0;
    for _ in 0..LEN / 2048 {
        at = (at + 2048 * 37) % LEN;
        match fs.write_or_replace(&ME, target.number, Some(at as u64), &[5; 1024]) {
            Ok(_) => expected[at..at + 1024].fill(5),
            Err(Error::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{refused} of {} overwrites were refused", LEN / 2048);
    assert!(content(&fs, target.number) == expected);
    delete_all(&fs, &names);
}

#[test]
fn a_tree_that_grew_at_once_can_be_deleted_from() {
    // A log that takes all, so that what is set aside is reckoned in the tree of an empty cask.
    let (_, fs) = fs_with(&FormatOptions {
        block_size: 1024,
        blocks: Some(6000),
        wal_bytes: Some(700 << 10),
        ..Default::default()
    });
    let mut names = Vec::new();
    loop {
        let name = format!("{:x>40}", names.len()).into_bytes();
        match fs.make(ROOT, &name, &file(0o644)) {
            Ok(_) => names.push(name),
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let number = fs.lookup(ROOT, &names[0]).unwrap().number;
    while fs.write(&ME, number, None, &[1; 100]).is_ok() {}
    fs.cask().checkpoint().unwrap();
    for name in names {
        fs.unlink(ROOT, &name).unwrap();
    }
}
