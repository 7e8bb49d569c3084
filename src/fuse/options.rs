//! The options after `-o`, as `mount(8)` knows them.

use crate::error::{Error, Result};

/// Who may use a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Who mounted it.
    #[default]
    Owner,
    /// That user and root.
    Root,
    /// Everybody, by the files' permissions.
    Everyone,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Set-user-ID bits work.
    pub suid: bool,
    /// Programs cannot be run.
    pub noexec: bool,
    /// As the kernel's flag; access times are not kept in any case.
    pub noatime: bool,
    /// Changes of directories are durable when they return.
    pub dirsync: bool,
    /// All changes are durable when they return.
    pub sync: bool,
    /// Who may use the mount.
    pub audience: Audience,
    /// What `df` and `findmnt` show as the source; the container's path if not given.
    pub fsname: Option<String>,
    /// Threads that serve requests, 1 to 64.
    pub threads: usize,
}

impl MountOptions {
    /// What holds if nothing is asked for. As root, everybody may use the mount: logrotate and
    /// daemons of other users must get in.
    pub fn new(as_root: bool) -> Self {
        let audience = if as_root {
            Audience::Everyone
        } else {
            Audience::Owner
        };
        Self {
            read_only: false,
            dev: false,
            suid: false,
            noexec: false,
            noatime: false,
            dirsync: false,
            sync: false,
            audience,
            fsname: None,
            threads: 2,
        }
    }

    /// Adds the options of one comma-separated list.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the option that is not known.
    pub fn parse(&mut self, list: &str) -> Result<()> {
        list.split(',')
            .map(str::trim)
            .filter(|option| !option.is_empty())
            .try_for_each(|option| self.option(option))
    }

    fn option(&mut self, option: &str) -> Result<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("dev", None) => self.dev = true,
            ("nodev", None) => self.dev = false,
            ("suid", None) => self.suid = true,
            ("nosuid", None) => self.suid = false,
            ("exec", None) => self.noexec = false,
            ("noexec", None) => self.noexec = true,
            ("noatime", None) => self.noatime = true,
            (
                "atime" | "relatime" | "strictatime" | "norelatime" | "nodiratime" | "diratime",
                None,
            ) => {}
            ("sync", None) => self.sync = true,
            ("dirsync", None) => self.dirsync = true,
            ("async", None) => (self.sync, self.dirsync) = (false, false),
            ("allow_other", None) => self.audience = Audience::Everyone,
            ("allow_root", None) => self.audience = Audience::Root,
            ("default_permissions", None) => {}
            ("fsname", Some(name)) if !name.is_empty() => self.fsname = Some(name.to_owned()),
            ("subtype", Some("caskfs")) => {}
            ("threads", Some(count)) => {
                self.threads = count
                    .parse()
                    .ok()
                    .filter(|count| (1..=64).contains(count))
                    .ok_or_else(|| {
                        Error::invalid(format!("threads={count} is not a number from 1 to 64"))
                    })?;
            }
            // What mount(8) and fstab pass along and mean for themselves.
            (
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group",
                None,
            ) => {}
            ("_netdev" | "nofail" | "silent" | "loud" | "remount", None) => {}
            _ if name.starts_with("x-")
                || name.starts_with("X-")
                || name == "comment"
                || name == "uhelper" => {}
            _ => {
                return Err(Error::invalid(format!(
                    "the mount option {option:?} is not known; see caskfs mount --help"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mount_passes_is_taken() {
        let mut options = MountOptions::new(true);
        options
            .parse("rw,relatime,dev,suid,x-systemd.automount,_netdev,threads=4,fsname=my cask")
            .unwrap();
        assert!(options.dev && options.suid && !options.read_only);
        assert_eq!(
            (options.threads, options.fsname.as_deref()),
            (4, Some("my cask"))
        );
        assert_eq!(options.audience, Audience::Everyone);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for bad in [
            "uring=on",
            "threads=0",
            "threads=x",
            "ro=1",
            "subtype=other",
            "nonsense",
        ] {
            let error = MountOptions::new(false).parse(bad).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(bad), "{text}");
        }
    }
}
