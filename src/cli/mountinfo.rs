//! What is mounted where, as /proc/self/mountinfo tells.
//!
//! A live cask is found by this and by nothing else: its filesystem type is `fuse.caskfs` and its
//! source is the canonical path of its container.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem type of a mounted cask.
pub const FSTYPE: &str = "fuse.caskfs";

/// A mounted cask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaskMount {
    /// What is mounted: the container, unless the mount was given another name.
    pub source: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// What of the cask is seen there: `/` but for bind mounts.
    pub root: PathBuf,
}

/// A line of mountinfo that matters: every mountpoint, and whether a cask is there.
struct Line {
    mountpoint: PathBuf,
    cask: Option<CaskMount>,
}

/// The place where the cask in `container` (a canonical path) is mounted whole.
pub fn mount_of(container: &Path) -> Option<CaskMount> {
    find_mount_of(&table(), container)
}

/// The mounted cask that `path` (canonical) lies in, if it lies in one.
pub fn mount_above(path: &Path) -> Option<CaskMount> {
    find_mount_above(&table(), path)
}

fn table() -> Vec<Line> {
    parse(&fs::read("/proc/self/mountinfo").unwrap_or_default())
}

fn find_mount_of(table: &[Line], container: &Path) -> Option<CaskMount> {
    // The last line of a mountpoint is the one on top.
    table
        .iter()
        .rev()
        .filter_map(|line| line.cask.as_ref())
        .find(|cask| cask.source == container && cask.root == Path::new("/"))
        .cloned()
}

fn find_mount_above(table: &[Line], path: &Path) -> Option<CaskMount> {
    let mut best: Option<&Line> = None;
    for line in table.iter().filter(|l| path.starts_with(&l.mountpoint)) {
        let depth = |l: &Line| l.mountpoint.components().count();
        if best.is_none_or(|best| depth(best) <= depth(line)) {
            best = Some(line);
        }
    }
    best?.cask.clone()
}

fn parse(text: &[u8]) -> Vec<Line> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// One line: `36 35 98:0 /root /mountpoint options optional… - type source options`.
fn parse_line(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|b| *b == b' ');
    let root = unescape(fields.nth(3)?);
    let mountpoint = unescape(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let cask = (fields.next()? == FSTYPE.as_bytes()).then(|| CaskMount {
        source: unescape(fields.next().unwrap_or_default()),
        mountpoint: mountpoint.clone(),
        root,
    });
    Some(Line { mountpoint, cask })
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 28 0:21 / / rw - ext4 /dev/vda1 rw\n\
40 22 0:50 / /mnt/cask rw,nosuid shared:9 - fuse.caskfs /var/lib/acc.cask rw,user_id=0\n\
41 22 0:51 / /mnt/two\\040words rw - fuse.caskfs /srv/my\\134cask rw\n\
42 22 0:50 /acc /var/log/acc rw - fuse.caskfs /var/lib/acc.cask rw\n\
43 40 0:60 / /mnt/cask/sub rw master:1 shared:2 - tmpfs none rw\n\
garbage\n";

    #[test]
    fn a_cask_is_found_by_its_container() {
        let table = parse(TABLE);
        let found = |path: &str| {
            find_mount_of(&table, Path::new(path)).map(|m| m.mountpoint.display().to_string())
        };
        assert_eq!(found("/var/lib/acc.cask").as_deref(), Some("/mnt/cask"));
        assert_eq!(found("/srv/my\\cask").as_deref(), Some("/mnt/two words"));
        assert_eq!(found("/dev/vda1"), None);
    }

    #[test]
    fn the_deepest_mount_decides_what_a_path_lies_in() {
        let table = parse(TABLE);
        let found = |path: &str| {
            find_mount_above(&table, Path::new(path)).map(|m| m.mountpoint.display().to_string())
        };
        assert_eq!(found("/mnt/cask/acc/x").as_deref(), Some("/mnt/cask"));
        assert_eq!(found("/var/log/acc/x").as_deref(), Some("/var/log/acc"));
        assert_eq!(found("/mnt/cask/sub/x"), None);
        assert_eq!(found("/mnt/caskade"), None);
        assert_eq!(found("/etc"), None);
    }
}
