//! Attaching a connection of /dev/fuse to a directory, and taking it away again.
//!
//! Root asks the kernel itself. Anybody else asks `fusermount3`, the set-user-ID helper of the fuse3
//! package, which hands the connection over through a socket. Invariant: a mount that was made here
//! and is not handed to the caller does not stay.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{getegid, geteuid};

use super::options::{Audience, Options};
use crate::error::{Error, Result};

/// The device, whose each opening is a connection.
const DEVICE: &str = "/dev/fuse";
/// What `findmnt -t` and `df -t` know a cask by is `fuse.` and this.
const SUBTYPE: &str = "caskfs";
/// The helper for users.
const HELPER: &str = "fusermount3";
/// Where the helper looks for the number of its end of the socket.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Whether this process has root's rights.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Mounts on `mountpoint`, showing `source`, and answers the connection, with the kernel's greeting in
/// it.
///
/// # Errors
/// [`Error::Io`] with what the kernel or the helper said.
pub(super) fn attach(
    source: &Path,
    mountpoint: &Path,
    options: &Options,
    audience: Audience,
) -> Result<OwnedFd> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(Error::io(format!(
            "cannot open {DEVICE} (is the kernel module fuse loaded?)"
        )))?;
    let cannot = || Error::io(format!("cannot mount on {}", mountpoint.display()));
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},subtype={SUBTYPE},default_permissions{}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw(),
        if audience == Audience::Owner {
            ""
        } else {
            ",allow_other"
        }
    );
    let data = CString::new(data).map_err(|error| cannot()(error.into()))?;
    match rustix::mount::mount(source, mountpoint, "fuse", flags(options), &*data) {
        Ok(()) => Ok(device.into()),
        Err(Errno::PERM) => ask_helper(source, mountpoint, options, audience).map_err(cannot()),
        Err(errno) => Err(cannot()(errno.into())),
    }
}

fn flags(options: &Options) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NODEV, !options.devices);
    flags.set(MountFlags::NOSUID, !options.set_id);
    flags.set(MountFlags::NOEXEC, options.no_exec);
    flags.set(MountFlags::NOATIME, options.no_atime);
    flags.set(MountFlags::SYNCHRONOUS, options.sync);
    flags.set(MountFlags::DIRSYNC, options.dir_sync);
    flags
}

fn ask_helper(
    source: &Path,
    mountpoint: &Path,
    options: &Options,
    audience: Audience,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(source, options, audience))
        .arg("--")
        .arg(mountpoint)
        // Its end of the socket is its standard input.
        .env(HELPER_SOCKET, "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let connection = receive(&ours);
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    match connection {
        Ok(connection) if status.success() => Ok(connection),
        _ => Err(io::Error::other(helper_said(&said))),
    }
}

fn helper_options(source: &Path, options: &Options, audience: Audience) -> OsString {
    let words = [
        if options.read_only { "ro" } else { "rw" },
        if options.devices { "dev" } else { "nodev" },
        if options.set_id { "suid" } else { "nosuid" },
        if options.no_exec { "noexec" } else { "exec" },
        if options.no_atime { "noatime" } else { "atime" },
        if options.sync { "sync" } else { "async" },
        "default_permissions",
    ];
    let mut list = words.join(",").into_bytes();
    if audience != Audience::Owner {
        list.extend_from_slice(b",allow_other");
    }
    list.extend_from_slice(format!(",subtype={SUBTYPE},fsname=").as_bytes());
    for byte in source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            list.push(b'\\');
        }
        list.push(*byte);
    }
    OsString::from_vec(list)
}

/// Receives the connection.
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    loop {
        match rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn no_helper(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            error.kind(),
            format!("only root can mount without {HELPER} (package fuse3), which is not installed"),
        ),
        _ => error,
    }
}

/// The helper's last line, without its name before it.
fn helper_said(stderr: &str) -> String {
    let line = stderr.trim().lines().next_back().unwrap_or_default();
    match line
        .strip_prefix(HELPER)
        .unwrap_or(line)
        .trim_start_matches([':', ' '])
    {
        "" => format!("{HELPER} failed without a word"),
        sentence => sentence.to_owned(),
    }
}

/// How a mount is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Only when nobody uses it.
    WhenIdle,
    /// At once from the tree; it ends when the last user has gone (`umount -l`).
    Lazy,
    /// The connection is cut first, so that a hung mount goes too (`umount -f`).
    Force,
}

/// Takes the topmost mount at `mountpoint` away.
///
/// # Errors
/// What `umount2(2)` or the helper says; `ResourceBusy` when somebody uses it.
pub fn detach(mountpoint: &Path, how: Detach) -> io::Result<()> {
    let how_flag = match how {
        Detach::WhenIdle => UnmountFlags::empty(),
        Detach::Lazy => UnmountFlags::DETACH,
        Detach::Force => UnmountFlags::FORCE,
    };
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | how_flag) {
        Err(Errno::PERM) if !is_root() => ask_helper_to_detach(mountpoint, how),
        done => Ok(done?),
    }
}

fn ask_helper_to_detach(mountpoint: &Path, how: Detach) -> io::Result<()> {
    let lazy = (how == Detach::Lazy).then_some(OsStr::new("-z"));
    let output = Command::new(HELPER)
        .arg("-u")
        .args(lazy)
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()
        .map_err(no_helper)?;
    if output.status.success() {
        return Ok(());
    }
    let said = helper_said(&String::from_utf8_lossy(&output.stderr));
    let kind = if said.contains("busy") {
        io::ErrorKind::ResourceBusy
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_no_end_of_an_option() {
        let options = Options::default();
        let list = helper_options(Path::new("/srv/a,b\\c.cask"), &options, Audience::All);
        let list = list.to_str().unwrap();
        assert!(list.ends_with(r"fsname=/srv/a\,b\\c.cask"), "{list}");
        assert!(list.contains("nodev,nosuid"), "{list}");
        assert!(list.contains("allow_other"), "{list}");
    }

    #[test]
    fn the_helpers_sentence_stands_alone() {
        let said = "fusermount3: failed to unmount /mnt: Device or resource busy\n";
        assert_eq!(
            helper_said(said),
            "failed to unmount /mnt: Device or resource busy"
        );
        assert!(helper_said("").contains(HELPER));
    }

    #[test]
    fn flags_say_what_the_options_say() {
        let mut options = Options::default();
        assert_eq!(flags(&options), MountFlags::NODEV | MountFlags::NOSUID);
        options.add("dev,suid,ro,noexec,sync").unwrap();
        let all = flags(&options);
        assert!(all.contains(MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::SYNCHRONOUS));
        assert!(!all.intersects(MountFlags::NODEV | MountFlags::NOSUID));
    }
}
