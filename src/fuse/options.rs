//! The options of `mount -o`, as mount(8), mount.fuse3 and /etc/fstab give them.
//!
//! What mount(8) means for itself is taken without a word; what would have an effect that this
//! filesystem does not have is refused, so that nobody relies on it. Of two that contradict each other
//! the later holds.

use crate::error::{Error, Result};

/// Who sees the mounted files, before the permissions of each file are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Only the user who mounted.
    Owner,
    /// That user and root (`allow_root`).
    OwnerAndRoot,
    /// Everybody (`allow_other`); the default when root mounts.
    All,
}

/// How to mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Nothing can be changed (`ro`).
    pub read_only: bool,
    /// Device nodes work (`dev`).
    pub devices: bool,
    /// Set-user-ID and set-group-ID bits work (`suid`).
    pub set_id: bool,
    /// Programs cannot be run (`noexec`).
    pub no_exec: bool,
    /// `noatime`.
    pub no_atime: bool,
    /// Every write is durable before it returns (`sync`).
    pub sync: bool,
    /// Every change of a directory is durable before it returns (`dirsync`, `sync`).
    pub dir_sync: bool,
    /// Who sees the files; `None` where nothing was said.
    pub audience: Option<Audience>,
    /// What df(1) and findmnt(8) show as the source, instead of the container's path (`fsname=`).
    pub source: Option<String>,
    /// Threads that take requests, 1..=64 (`threads=`); `None` for one per CPU, at least 2.
    pub threads: Option<usize>,
}

/// Most threads that make sense.
const THREADS_MAX: usize = 64;

impl Options {
    /// Adds the options of one `-o`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a sentence that names the option.
    pub fn add(&mut self, list: &str) -> Result<()> {
        list.split(',')
            .map(str::trim)
            .filter(|option| !option.is_empty())
            .try_for_each(|option| self.add_one(option))
    }

    fn add_one(&mut self, option: &str) -> Result<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("dev", None) => self.devices = true,
            ("nodev", None) => self.devices = false,
            ("suid", None) => self.set_id = true,
            ("nosuid", None) => self.set_id = false,
            ("exec", None) => self.no_exec = false,
            ("noexec", None) => self.no_exec = true,
            ("noatime", None) => self.no_atime = true,
            ("atime" | "relatime" | "strictatime", None) => self.no_atime = false,
            ("sync", None) => (self.sync, self.dir_sync) = (true, true),
            ("async", None) => (self.sync, self.dir_sync) = (false, false),
            ("dirsync", None) => self.dir_sync = true,
            ("allow_other", None) => self.audience = Some(Audience::All),
            ("allow_root", None) => self.audience = Some(Audience::OwnerAndRoot),
            ("fsname", Some(source)) if !source.is_empty() => {
                self.source = Some(source.to_owned());
            }
            ("threads", Some(count)) => self.threads = Some(threads(count)?),
            // As mount(8) says: who lets users mount does not let them bring their own root shell.
            ("user" | "users", _) => {
                (self.devices, self.set_id, self.no_exec) = (false, false, true)
            }
            ("owner" | "group", None) => (self.devices, self.set_id) = (false, false),
            // How it is always.
            ("default_permissions", None) | ("subtype", Some("caskfs")) => {}
            // For mount(8) and systemd, or with nothing to do here.
            (
                "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "nouser" | "nousers"
                | "noowner" | "nogroup" | "norelatime" | "nostrictatime" | "diratime"
                | "nodiratime" | "lazytime" | "nolazytime" | "iversion" | "noiversion" | "silent"
                | "loud" | "nomand",
                None,
            )
            | ("comment" | "uhelper" | "helper", Some(_)) => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            ("remount", _) => {
                return Err(Error::invalid(
                    "a cask cannot be remounted in place; unmount it and mount it again",
                ));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "the mount option \"{option}\" is not known"
                )));
            }
        }
        Ok(())
    }
}

fn threads(count: &str) -> Result<usize> {
    count
        .parse()
        .ok()
        .filter(|count| (1..=THREADS_MAX).contains(count))
        .ok_or_else(|| {
            Error::invalid(format!(
                "threads={count} is not a number from 1 to {THREADS_MAX}"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Options> {
        let mut options = Options::default();
        options.add(list)?;
        Ok(options)
    }

    #[test]
    fn without_options_devices_and_set_id_bits_of_a_container_do_nothing() {
        let options = parse("").unwrap();
        assert_eq!(options, Options::default());
        assert!(!options.devices && !options.set_id && !options.read_only);
    }

    #[test]
    fn what_mount_passes_is_taken() {
        let list = "rw,relatime,defaults,noauto,nofail,_netdev,x-systemd.automount,X-mount.mkdir,\
                    comment=hello,default_permissions,subtype=caskfs,dev,suid,";
        let options = parse(list).unwrap();
        assert!(options.devices && options.set_id && !options.read_only);
    }

    #[test]
    fn the_later_of_two_holds() {
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(parse("rw,ro").unwrap().read_only);
        let user = parse("dev,suid,user").unwrap();
        assert!(!user.devices && !user.set_id && user.no_exec);
        assert!(!parse("user,exec").unwrap().no_exec);
        let mut both = parse("allow_root").unwrap();
        both.add("allow_other").unwrap();
        assert_eq!(both.audience, Some(Audience::All));
    }

    #[test]
    fn values_are_read() {
        let options = parse("fsname=logs of the shop,threads=4,noexec,noatime,sync").unwrap();
        assert_eq!(options.source.as_deref(), Some("logs of the shop"));
        assert_eq!(options.threads, Some(4));
        assert!(options.no_exec && options.no_atime && options.sync && options.dir_sync);
        assert!(!parse("dirsync").unwrap().sync);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for wrong in [
            "bogus",
            "uring=on",
            "ro=1",
            "threads=0",
            "threads=65",
            "threads=x",
            "threads",
            "subtype=ext4",
            "fsname=",
            "remount",
            "uid=0",
        ] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            let sentence = error.to_string();
            assert!(
                sentence.contains(wrong.split('=').next().unwrap()),
                "{sentence}"
            );
        }
    }
}
