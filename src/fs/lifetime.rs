//! Which files and directories say for themselves how long files live.
//!
//! They are listed, so that after a mount all files that expire are found without a look at any other.
//! Invariant: whatever has an attribute `user.cask.ttl` other than `none` is listed; what is listed may
//! have lost it, or be gone.

use crate::cask::{Read, Tx};
use crate::device::Device;
use crate::error::Result;
use crate::format::item::XattrRecord;
use crate::format::key::{INDEX, Number};
use crate::format::{Key, Kind};

/// The attribute that says it.
const TTL: &[u8] = b"user.cask.ttl";

/// Whether an attribute gives files an end.
pub fn is_mortal(attribute: &XattrRecord) -> bool {
    attribute.name == TTL && attribute.value != b"none"
}

fn key(number: Number) -> Key {
    Key::new(INDEX, Kind::Ttl, number)
}

/// Lists an inode, or takes it from the list.
///
/// # Errors
/// None that the size of the item can cause.
pub fn list<D: Device>(tx: &mut Tx<'_, D>, number: Number, listed: bool) -> Result<()> {
    if listed {
        tx.put(key(number), [].as_slice())
    } else {
        if tx.get(&key(number))?.is_some() {
            tx.del(key(number));
        }
        Ok(())
    }
}

/// Whether any is listed.
///
/// # Errors
/// Those of reading.
pub fn is_any_listed(r: &impl Read) -> Result<bool> {
    let mut found = false;
    r.scan(key(0), key(Number::MAX), &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// All that are listed.
///
/// # Errors
/// Those of reading.
pub fn listed(r: &impl Read) -> Result<Vec<Number>> {
    let mut found = Vec::new();
    r.scan(key(0), key(Number::MAX), &mut |key, _| {
        found.push(key.offset);
        Ok(true)
    })?;
    Ok(found)
}
