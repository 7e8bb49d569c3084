//! Records that come in pieces: with `assemble=1` they are appended when they are whole.
//!
//! What a handle has begun is kept back in memory until the write that ends the record, or until the
//! handle is closed or synced; so writers with buffers can share a log. Invariant: what is kept back is
//! shorter than what a cut would carry, and never counted as written by anybody else.

use super::Store;
use super::handle::{Handle, LogHandle};
use crate::device::Device;
use crate::error::Result;
use crate::fs::Caller;
use crate::limits::CARRY_MAX;
use crate::sync::atomic::Ordering;

impl<D: Device> Store<D> {
    /// A write to a log: an append, or, with `assemble=1`, an append of the records that it completes.
    pub(super) fn write_log(
        &self,
        caller: &Caller,
        handle: &Handle,
        log: &LogHandle,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let settings = self.settings_of(&log.tie.binding())?;
        let delimiter = settings.record.filter(|_| settings.assemble);
        let mut begun = log.begun.lock();
        let position = log.position.load(Ordering::Acquire);
        let goes_on = handle.flags.append || offset == position;
        let Some(delimiter) = delimiter.filter(|_| goes_on) else {
            self.push_begun(caller, handle, log, &mut begun)?;
            // Those who share a handle wait for the disk together, not for each other.
            drop(begun);
            return self.append(caller, handle, log, offset, data);
        };
        let end = offset.saturating_add(data.len() as u64);
        // One that is too long to be carried over a cut is not kept back either.
        let whole = match data.iter().rposition(|byte| *byte == delimiter) {
            Some(last) => last + 1,
            None if begun.len() + data.len() > CARRY_MAX => data.len(),
            None => 0,
        };
        let (records, rest) = data.split_at_checked(whole).unwrap_or((data, &[]));
        match (records, begun.is_empty()) {
            ([], _) => {}
            (records, true) => self.append(caller, handle, log, offset, records)?,
            (records, false) => {
                // What is kept back was never at its place, so this goes on where that began.
                let records = [begun.as_slice(), records].concat();
                self.append(caller, handle, log, position, &records)?;
                begun.clear();
            }
        }
        begun.extend_from_slice(rest);
        log.position.store(end, Ordering::Release);
        Ok(())
    }

    /// Whether records that come in pieces are kept back, so that closing owes something.
    pub(super) fn assembles(&self, log: &LogHandle) -> bool {
        let settings = self.settings_of(&log.tie.binding());
        settings.is_ok_and(|settings| settings.assemble)
    }

    /// Appends what a handle has begun, as it is: its writer closes or asks for it to be durable.
    pub(super) fn push(&self, caller: &Caller, handle: &Handle, log: &LogHandle) -> Result<()> {
        self.push_begun(caller, handle, log, &mut log.begun.lock())
    }

    fn push_begun(
        &self,
        caller: &Caller,
        handle: &Handle,
        log: &LogHandle,
        begun: &mut Vec<u8>,
    ) -> Result<()> {
        if begun.is_empty() {
            return Ok(());
        }
        let position = log.position.load(Ordering::Acquire);
        self.append(caller, handle, log, position, begun)?;
        log.position.store(position, Ordering::Release);
        begun.clear();
        Ok(())
    }
}
