//! A container in memory that notes every change in order, so that a crash can be tried after each.
//!
//! Invariant: applying the events to the initial image gives the image that readers see now. A call
//! is noted when it is done; a call that failed is not.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::TestDevice;
use crate::device::{Device, MemoryDevice};

/// One change of a container, or a mark of the harness between changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are the arguments of the calls.
pub enum Event {
    /// [`Device::write_at`].
    Write { offset: u64, data: Box<[u8]> },
    /// [`Device::write_durable_at`].
    WriteDurable { offset: u64, data: Box<[u8]> },
    /// [`Device::sync`].
    Sync,
    /// A sync that failed; see [`TestDevice::sync_failed`].
    SyncFailed,
    /// [`Device::set_len`].
    SetLen { len: u64 },
    /// [`Device::allocate`].
    Allocate { offset: u64, len: u64 },
    /// [`Device::punch`].
    Punch { offset: u64, len: u64 },
    /// What the harness had to say at this point: an operation issued, an operation acknowledged.
    Mark(u64),
}

/// What happened to a container.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Its bytes at the start, all durable.
    pub initial: Arc<Vec<u8>>,
    /// All that was done, in order.
    pub events: Vec<Event>,
}

/// A container in memory that notes every change. Clones share bytes and notes.
#[derive(Clone, Debug)]
pub struct RecordingDevice {
    memory: MemoryDevice,
    notes: Arc<Mutex<Recording>>,
}

impl RecordingDevice {
    /// A container that holds these bytes, durably, and grows without bound.
    pub fn new(initial: Vec<u8>) -> Self {
        Self::over(MemoryDevice::from_bytes(initial))
    }

    /// Records what happens to `memory` from now on.
    pub fn over(memory: MemoryDevice) -> Self {
        let initial = Arc::new(memory.to_bytes());
        let notes = Recording {
            initial,
            events: Vec::new(),
        };
        Self {
            memory,
            notes: Arc::new(Mutex::new(notes)),
        }
    }

    /// Goes on after these events, as a process does that was started anew on a host that went on:
    /// what was pending then is pending still.
    pub fn resume(past: Recording) -> io::Result<Self> {
        let device = Self::new(past.initial.to_vec());
        let memory = &device.memory;
        for event in &past.events {
            match event {
                Event::Write { offset, data } | Event::WriteDurable { offset, data } => {
                    memory.write_at(*offset, data)?;
                }
                Event::SetLen { len } => memory.set_len(*len)?,
                Event::Allocate { offset, len } => memory.allocate(*offset, *len)?,
                Event::Punch { offset, len } => memory.punch(*offset, *len)?,
                Event::Sync | Event::SyncFailed | Event::Mark(_) => {}
            }
        }
        *device.notes.lock() = past;
        Ok(device)
    }

    /// How many events were noted so far.
    pub fn events(&self) -> usize {
        self.notes.lock().events.len()
    }

    /// Puts a mark between the changes.
    pub fn mark(&self, tag: u64) {
        self.note(Event::Mark(tag));
    }

    /// Ends this recording and starts another from the bytes as they are now.
    pub fn take(&self) -> Recording {
        let initial = Arc::new(self.memory.to_bytes());
        std::mem::replace(
            &mut self.notes.lock(),
            Recording {
                initial,
                events: Vec::new(),
            },
        )
    }

    /// The container below.
    pub fn memory(&self) -> &MemoryDevice {
        &self.memory
    }

    fn note(&self, event: Event) {
        self.notes.lock().events.push(event);
    }
}

impl Device for RecordingDevice {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write_at(offset, data)?;
        self.note(Event::Write {
            offset,
            data: data.into(),
        });
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write_at(offset, data)?;
        self.note(Event::WriteDurable {
            offset,
            data: data.into(),
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Event::Sync);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)?;
        self.note(Event::SetLen { len });
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.memory.allocate(offset, len)?;
        self.note(Event::Allocate { offset, len });
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.memory.punch(offset, len)?;
        self.note(Event::Punch { offset, len });
        Ok(())
    }

    fn growth_available(&self) -> io::Result<Option<u64>> {
        self.memory.growth_available()
    }
}

impl TestDevice for RecordingDevice {
    fn sync_failed(&self) {
        self.note(Event::SyncFailed);
    }
}
