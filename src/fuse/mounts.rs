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
    /// The kernel's number of this mount.
    pub id: u64,
    /// What is mounted: the container's path, unless `fsname=` said otherwise.
    pub source: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// What of the cask is seen there: `/` but for bind mounts.
    pub root: PathBuf,
    /// The minor number of its device, which is the number of its connection in /sys/fs/fuse.
    pub connection: u32,
}

/// The mounted casks, oldest first; of several at one place the last is the one that is seen.
///
/// # Errors
/// When /proc is not there.
pub fn all() -> std::io::Result<Vec<CaskMount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The cask that is seen at `mountpoint`, a canonical path.
pub fn at(mounts: &[CaskMount], mountpoint: &Path) -> Option<CaskMount> {
    let here = |mount: &&CaskMount| mount.mountpoint == mountpoint;
    mounts.iter().rfind(here).cloned()
}

/// Where the cask in `container`, a canonical path, is mounted whole.
pub fn of(mounts: &[CaskMount], container: &Path) -> Option<CaskMount> {
    let whole = |mount: &&CaskMount| mount.source == container && mount.root == Path::new("/");
    mounts.iter().rfind(whole).cloned()
}

fn parse(table: &[u8]) -> Vec<CaskMount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 0:42 / /mnt rw,noatime shared:1 - fuse.caskfs /a.cask rw`: there may be any number of fields
/// before the dash.
fn parse_line(line: &[u8]) -> Option<CaskMount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let device = fields.nth(1)?;
    let minor = device.split(|byte| *byte == b':').nth(1)?;
    let root = path(fields.next()?);
    let mountpoint = path(fields.next()?);
    let fstype = fields.by_ref().skip_while(|field| *field != b"-").nth(1)?;
    let source = path(fields.next()?);
    (fstype == FSTYPE.as_bytes()).then_some(CaskMount {
        id,
        source,
        mountpoint,
        root,
        connection: u32::try_from(number(minor)?).ok()?,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and hash.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .first_chunk::<3>()
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n\
        36 22 0:42 / /mnt rw,nosuid shared:1 master:2 - fuse.caskfs /srv/my\\040logs.cask rw,user_id=0\n\
        37 22 0:43 / /mnt rw - fuse.caskfs /srv/on\\134top.cask rw\n\
        38 22 0:42 /logs /var/log/shop rw - fuse.caskfs /srv/my\\040logs.cask rw\n\
        39 22 0:44 / /other rw - fuse.sshfs host: rw\n\
        garbage\n";

    #[test]
    fn finds_casks_by_place_and_by_container() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 3);
        let below = of(&mounts, Path::new("/srv/my logs.cask")).unwrap();
        assert_eq!(
            (below.id, below.connection, below.mountpoint.as_path()),
            (36, 42, Path::new("/mnt"))
        );
        let seen = at(&mounts, Path::new("/mnt")).unwrap();
        assert_eq!(seen.source, Path::new("/srv/on\\top.cask"));
        let bound = at(&mounts, Path::new("/var/log/shop")).unwrap();
        assert_eq!(bound.root, Path::new("/logs"));
        assert_eq!(at(&mounts, Path::new("/other")), None);
        assert_eq!(of(&mounts, Path::new("/dev/vda1")), None);
    }
}
