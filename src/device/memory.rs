//! A container in memory: for programs that need a filesystem for a moment, examples and tests.
//!
//! Nothing is ever durable here, so every promise of durability holds trivially. Clones share the
//! same bytes, as two descriptors share a file.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::RwLock;

use super::Device;

/// A container in memory. Clones share the same bytes.
#[derive(Clone, Debug)]
pub struct MemoryDevice {
    bytes: Arc<RwLock<Vec<u8>>>,
    max_len: u64,
}

impl Default for MemoryDevice {
    fn default() -> Self {
        Self::from_bytes(Vec::new())
    }
}

impl MemoryDevice {
    /// An empty container that grows without bound.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty container that never grows beyond `max_len` bytes: `StorageFull` then.
    pub fn with_max_len(max_len: u64) -> Self {
        Self {
            max_len,
            ..Self::default()
        }
    }

    /// A container that holds these bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Arc::new(RwLock::new(bytes)),
            max_len: u64::MAX,
        }
    }

    /// A copy of all its bytes as they are now.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }

    /// Its bytes; a copy of them where a clone of the device is alive.
    pub fn into_bytes(self) -> Vec<u8> {
        match Arc::try_unwrap(self.bytes) {
            Ok(bytes) => bytes.into_inner(),
            Err(shared) => shared.read().clone(),
        }
    }

    /// Grows `bytes` to `len` if they are fewer.
    fn grow(&self, bytes: &mut Vec<u8>, len: Option<u64>) -> io::Result<()> {
        let len = len
            .filter(|len| *len <= self.max_len)
            .ok_or(ErrorKind::StorageFull)?;
        let len = usize::try_from(len).map_err(|_| ErrorKind::StorageFull)?;
        if let Some(more) = len.checked_sub(bytes.len()) {
            bytes
                .try_reserve(more)
                .map_err(|_| ErrorKind::StorageFull)?;
            bytes.resize(len, 0);
        }
        Ok(())
    }
}

/// The part of `bytes` at `offset` of `len` bytes, if it is there.
fn range_mut(bytes: &mut [u8], offset: u64, len: usize) -> Option<&mut [u8]> {
    let offset = usize::try_from(offset).ok()?;
    bytes.get_mut(offset..)?.get_mut(..len)
}

impl Device for MemoryDevice {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read();
        let found = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..)?.get(..buf.len()))
            .ok_or(ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        self.grow(&mut bytes, offset.checked_add(data.len() as u64))?;
        let place = range_mut(&mut bytes, offset, data.len()).ok_or(ErrorKind::StorageFull)?;
        place.copy_from_slice(data);
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        self.grow(&mut bytes, Some(len))?;
        // Fits: it is at most the length, which is a usize.
        bytes.truncate(len as usize);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.grow(&mut self.bytes.write(), offset.checked_add(len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let end = (bytes.len() as u64).min(offset.saturating_add(len));
        if let Some(inside) = end.checked_sub(offset)
            && let Some(range) = range_mut(&mut bytes, offset, inside as usize)
        {
            range.fill(0);
        }
        Ok(())
    }

    fn growth_available(&self) -> io::Result<Option<u64>> {
        Ok((self.max_len < u64::MAX)
            .then(|| self.max_len.saturating_sub(self.bytes.read().len() as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_their_bytes_and_holes_read_as_zeros() {
        let device = MemoryDevice::new();
        let twin = device.clone();
        device.write_at(4, b"data").unwrap();
        let mut buf = [1; 8];
        twin.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0\0data");
        assert_eq!(
            twin.read_at(1, &mut buf).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
        twin.punch(5, 1000).unwrap();
        twin.punch(1000, 1).unwrap();
        device.allocate(0, 10).unwrap();
        assert_eq!(device.to_bytes(), b"\0\0\0\0d\0\0\0\0\0");
        device.set_len(5).unwrap();
        drop(twin);
        assert_eq!(device.into_bytes(), b"\0\0\0\0d");
    }

    #[test]
    fn a_bounded_container_refuses_to_grow_beyond_its_bound() {
        let device = MemoryDevice::with_max_len(8);
        device.write_at(0, &[7; 8]).unwrap();
        let full = [
            device.write_at(1, &[1; 8]),
            device.set_len(9),
            device.allocate(8, 1),
            device.allocate(u64::MAX, 1),
        ];
        for refused in full {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::StorageFull);
        }
        assert_eq!(device.growth_available().unwrap(), Some(0));
        assert_eq!(device.to_bytes(), [7; 8]);
        assert_eq!(MemoryDevice::new().growth_available().unwrap(), None);
    }
}
