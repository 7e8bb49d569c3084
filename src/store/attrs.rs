//! Extended attributes; those named `user.cask.` are the settings.
//!
//! Reading a setting answers the value in force, listing shows only what stands on the file itself:
//! so `cp -a` and `rsync -X` do not copy inherited settings down.

use super::settings::{BLOCKS, FILES, LABEL, PREFIX, Setting, table};
use super::walk::{self, Origin};
use super::{Behind, Notice, Store, not_behind};
use crate::cask::Class;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::{Number, ROOT};
use crate::fs::Caller;
use crate::fs::inode::{Inode, load};
use crate::fs::xattr::{self, SetMode};
use crate::limits::LABEL_MAX;

impl<D: Device> Store<D> {
    /// Sets an attribute; `create_only` is `XATTR_CREATE`, `replace_only` is `XATTR_REPLACE`.
    ///
    /// # Errors
    /// For a setting: [`Error::NotPermitted`] unless the caller owns the file or is root;
    /// [`Error::Invalid`] with the reason; [`Error::NotSupported`] for what is not built. Otherwise
    /// as [`xattr::set`].
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Number,
        name: &[u8],
        value: &[u8],
        create_only: bool,
        replace_only: bool,
    ) -> Result<()> {
        not_behind(ino)?;
        let mode = match (create_only, replace_only) {
            (true, _) => SetMode::Create,
            (_, true) => SetMode::Replace,
            _ => SetMode::Any,
        };
        let Some(setting) = name.strip_prefix(PREFIX) else {
            let now = self.now();
            let ((), lsn) = self.cask.transact(Class::Grow, |tx| {
                xattr::set(tx, ino, name, value, mode, now)
            })?;
            return self.confirm_of(ino, lsn);
        };
        let result = match name {
            LABEL => self.set_label(caller, ino, value),
            FILES | BLOCKS => self.set_bound(caller, ino, name, value),
            _ => self.change_setting(caller, ino, name, setting, Some((value, mode))),
        };
        result.inspect_err(|error| ::log::warn!("inode {ino}: {error}"))
    }

    /// The value of an attribute; of a setting the value in force.
    ///
    /// # Errors
    /// [`Error::NoAttribute`].
    pub fn getxattr(&self, ino: Number, name: &[u8]) -> Result<Vec<u8>> {
        if Behind::of(ino).is_some() {
            return Err(Error::NoAttribute);
        }
        let inode = self.fs.inode(ino)?;
        let Some(setting) = name.strip_prefix(PREFIX) else {
            return xattr::get(&*self.cask, &inode, name);
        };
        if ino == ROOT {
            let bound = |bound: Option<u64>| {
                bound.map_or_else(|| b"none".to_vec(), |bound| bound.to_string().into())
            };
            match name {
                LABEL => return Ok(self.cask.stats().label),
                FILES => return Ok(bound(self.cask.stats().files_limit)),
                BLOCKS => return Ok(bound(self.cask.stats().blocks_limit)),
                _ => {}
            }
        }
        let setting = Setting::named(setting).map_err(|_| Error::NoAttribute)?;
        walk::find(&*self.cask, &inode, setting).map(|(value, _)| value)
    }

    /// The names of the attributes that stand on the file itself.
    ///
    /// # Errors
    /// Those of reading.
    pub fn listxattr(&self, ino: Number) -> Result<Vec<Vec<u8>>> {
        if Behind::of(ino).is_some() {
            return Ok(Vec::new());
        }
        xattr::list(&*self.cask, &self.fs.inode(ino)?)
    }

    /// Removes an attribute; a setting is then inherited again.
    ///
    /// # Errors
    /// [`Error::NoAttribute`] when it does not stand on the file itself; [`Error::NotPermitted`] as
    /// for [`Store::setxattr`].
    pub fn removexattr(&self, caller: &Caller, ino: Number, name: &[u8]) -> Result<()> {
        not_behind(ino)?;
        match name.strip_prefix(PREFIX) {
            Some(_) if name == LABEL => self.set_label(caller, ino, b""),
            Some(_) if name == FILES || name == BLOCKS => {
                self.set_bound(caller, ino, name, b"none")
            }
            Some(setting) => self.change_setting(caller, ino, name, setting, None),
            None => {
                let now = self.now();
                let ((), lsn) = self
                    .cask
                    .transact(Class::Release, |tx| xattr::remove(tx, ino, name, now))?;
                self.confirm_of(ino, lsn)
            }
        }
    }

    /// The value in force of the setting `name` (without `user.cask.`), and where it was found.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such setting; [`Error::Stale`].
    pub fn get_setting(&self, ino: Number, name: &str) -> Result<(Vec<u8>, Origin)> {
        walk::find(
            &*self.cask,
            &self.fs.inode(ino)?,
            Setting::named(name.as_bytes())?,
        )
    }

    /// Every setting there is, in the order in which they are listed.
    pub fn settings_list(&self) -> &'static [Setting] {
        table()
    }

    /// Stores a setting, or removes it for `None`.
    fn change_setting(
        &self,
        caller: &Caller,
        ino: Number,
        name: &[u8],
        setting: &[u8],
        value: Option<(&[u8], SetMode)>,
    ) -> Result<()> {
        if let Some((value, _)) = value {
            Setting::named(setting)?.accept(value)?;
        }
        let now = self.now();
        let class = if value.is_some() {
            Class::Grow
        } else {
            Class::Release
        };
        let (_, lsn) = self.cask.transact_then(
            class,
            |tx| {
                let inode = load(tx, ino)?;
                may_set(caller, &inode)?;
                match value {
                    Some((value, mode)) => xattr::set(tx, ino, name, value, mode, now)?,
                    None => xattr::remove(tx, ino, name, now)?,
                }
                Ok(inode)
            },
            |inode| {
                self.walk.changed();
                if setting == b"ttl" || setting == b"mode" {
                    self.ages.changed(inode, now);
                }
            },
        )?;
        // How long the kernel may believe what it was told depends on the mode.
        self.notify(Notice::InvalidateInode(ino));
        self.confirm_of(ino, lsn)
    }

    /// Bounds the cask anew; durable when it returns.
    fn set_bound(&self, caller: &Caller, ino: Number, name: &[u8], value: &[u8]) -> Result<()> {
        if ino != ROOT {
            return Err(Error::invalid("only the cask as a whole is resized"));
        }
        may_set(caller, &self.fs.inode(ROOT)?)?;
        let bound = match value {
            b"none" => None,
            _ => Some(
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .filter(|bound| *bound > 0)
                    .ok_or_else(|| Error::invalid("a bound is a number from 1, or none"))?,
            ),
        };
        match name {
            FILES => self.cask.resize_files(bound),
            _ => self.cask.resize_blocks(bound),
        }
    }

    fn set_label(&self, caller: &Caller, ino: Number, label: &[u8]) -> Result<()> {
        if ino != ROOT {
            return Err(Error::invalid(
                "only the root directory has the cask's label",
            ));
        }
        if label.len() > LABEL_MAX {
            return Err(Error::invalid(format!(
                "a label has at most {LABEL_MAX} bytes"
            )));
        }
        let ((), lsn) = self.cask.transact(Class::Grow, |tx| {
            may_set(caller, &load(tx, ino)?)?;
            tx.set_label(label)
        })?;
        self.confirm_in(ROOT, lsn)
    }

    fn confirm_of(&self, ino: Number, lsn: crate::cask::Lsn) -> Result<()> {
        let settings = self.walk.of(&*self.cask, &self.fs.inode(ino)?)?;
        self.confirm(&settings, lsn, false)
    }
}

fn may_set(caller: &Caller, inode: &Inode) -> Result<()> {
    if caller.uid == 0 || caller.uid == inode.uid {
        Ok(())
    } else {
        Err(Error::NotPermitted(
            "only the owner of a file or root changes its settings",
        ))
    }
}
