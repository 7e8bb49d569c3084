//! A device that fails the call it is told to, as a disk, a full host or a pulled cable would.
//!
//! Calls are counted per kind from 1, so that a loop can fail the first call, the second, and so on
//! until a run meets no fault any more (the way SQLite is tested).

use std::io;

use parking_lot::Mutex;

use super::TestDevice;
use crate::device::Device;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Every call that can change something, [`Device::sync`] among them.
    AnyChange,
    /// Every call that makes something durable.
    AnyFlush,
    /// [`Device::read_at`].
    Read,
    /// [`Device::write_at`].
    Write,
    /// [`Device::write_durable_at`].
    WriteDurable,
    /// [`Device::sync`].
    Sync,
    /// [`Device::set_len`].
    SetLen,
    /// [`Device::allocate`].
    Allocate,
    /// [`Device::punch`].
    Punch,
}

/// What a failing call leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was done. (Of a failed sync: whether the data is durable, nobody knows.)
    Nothing,
    /// Of a write this many bytes were done.
    Prefix(usize),
    /// All of it was done, and yet failure is reported.
    Everything,
}

/// Which call fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The kind of call that is counted.
    pub call: Call,
    /// The first to fail, counted from 1.
    pub nth: u64,
    /// All later ones fail too.
    pub persistent: bool,
    /// The errno: `EIO`, `ENOSPC`…
    pub errno: i32,
    /// What is done all the same.
    pub effect: Effect,
}

/// A device that fails when told to.
#[derive(Debug)]
pub struct FaultyDevice<D> {
    inner: D,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    /// Calls of the fault's kind so far.
    calls: u64,
    /// Calls that failed so far.
    failed: u64,
}

impl<D: TestDevice> FaultyDevice<D> {
    /// Wraps a device; without a fault yet.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            state: Mutex::default(),
        }
    }

    /// From now on this fault, counted from here; or none.
    pub fn set_fault(&self, fault: Option<Fault>) {
        *self.state.lock() = State {
            fault,
            ..State::default()
        };
    }

    /// How many calls failed since the fault was set.
    pub fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The fault that this call meets, if any.
    fn meet(&self, call: Call) -> Option<Fault> {
        let mut state = self.state.lock();
        let fault = state.fault?;
        let counts = match fault.call {
            Call::AnyChange => call != Call::Read,
            Call::AnyFlush => matches!(call, Call::Sync | Call::WriteDurable),
            one => one == call,
        };
        if !counts {
            return None;
        }
        state.calls += 1;
        let meets = state.calls == fault.nth || (fault.persistent && state.calls > fault.nth);
        state.failed += u64::from(meets);
        meets.then_some(fault)
    }

    /// Makes a call that is done whole or not at all.
    fn call(&self, call: Call, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let Some(fault) = self.meet(call) else {
            return run();
        };
        if fault.effect == Effect::Everything {
            run()?;
        }
        Err(io::Error::from_raw_os_error(fault.errno))
    }

    fn write(&self, call: Call, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.meet(call) {
            None if call == Call::WriteDurable => self.inner.write_durable_at(offset, data),
            None => self.inner.write_at(offset, data),
            Some(fault) => {
                let done = match fault.effect {
                    Effect::Nothing => 0,
                    Effect::Prefix(len) => len.min(data.len()),
                    Effect::Everything => data.len(),
                };
                if done > 0 {
                    self.inner.write_at(offset, &data[..done])?;
                }
                if call == Call::WriteDurable {
                    self.inner.sync_failed();
                }
                Err(io::Error::from_raw_os_error(fault.errno))
            }
        }
    }
}

impl<D: TestDevice> Device for FaultyDevice<D> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.call(Call::Read, || self.inner.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(Call::Write, offset, data)
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(Call::WriteDurable, offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        let Some(fault) = self.meet(Call::Sync) else {
            return self.inner.sync();
        };
        if fault.effect == Effect::Everything {
            self.inner.sync()?;
        }
        self.inner.sync_failed();
        Err(io::Error::from_raw_os_error(fault.errno))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(Call::SetLen, || self.inner.set_len(len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Allocate, || self.inner.allocate(offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Punch, || self.inner.punch(offset, len))
    }

    fn growth_available(&self) -> io::Result<Option<u64>> {
        self.inner.growth_available()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use crate::device::testing::{Event, RecordingDevice};

    fn fault(call: Call, nth: u64, persistent: bool, effect: Effect) -> Option<Fault> {
        Some(Fault {
            call,
            nth,
            persistent,
            errno: libc::EIO,
            effect,
        })
    }

    #[test]
    fn the_nth_call_fails_once_or_from_then_on() {
        let device = FaultyDevice::new(MemoryDevice::new());
        for (persistent, failed) in [(false, 1), (true, 3)] {
            device.set_fault(fault(Call::Write, 2, persistent, Effect::Prefix(2)));
            device.write_at(0, b"1111").unwrap();
            let error = device.write_at(0, b"2222").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert_eq!(device.inner().to_bytes(), b"2211");
            device.sync().unwrap();
            device.read_at(0, &mut [0; 4]).unwrap();
            assert_eq!(device.write_at(0, b"3333").is_err(), persistent);
            assert_eq!(device.write_at(0, b"4444").is_err(), persistent);
            assert_eq!(device.failed(), failed);
        }
    }

    #[test]
    fn a_failed_sync_is_noted_and_every_change_counts_as_one() {
        let device = FaultyDevice::new(RecordingDevice::new(vec![0; 8]));
        device.set_fault(fault(Call::AnyChange, 3, false, Effect::Nothing));
        device.write_at(0, b"a").unwrap();
        device.punch(4, 1).unwrap();
        device.sync().unwrap_err();
        device.sync().unwrap();
        let events = device.inner().take().events;
        assert!(matches!(events[2..], [Event::SyncFailed, Event::Sync]));
    }
}
