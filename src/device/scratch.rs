//! A container that is written to without being changed: what would be done can be looked at first.
//!
//! Reads come from the device below but for what was written here, which is kept in memory.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::RwLock;

use super::Device;

/// Bytes that are kept together.
const PIECE: u64 = 4096;

#[derive(Debug)]
struct State {
    len: u64,
    /// The device below has nothing to say from here on.
    below: u64,
    /// What was written; an empty one is zeros.
    pieces: HashMap<u64, Box<[u8]>>,
}

/// A device over another one that it leaves as it is.
#[derive(Debug)]
pub struct ScratchDevice<D> {
    below: D,
    state: RwLock<State>,
}

impl<D: Device> ScratchDevice<D> {
    /// Over this one.
    ///
    /// # Errors
    /// Those of asking for its length.
    pub fn new(below: D) -> io::Result<Arc<Self>> {
        let len = below.len()?;
        Ok(Arc::new(Self {
            below,
            state: RwLock::new(State {
                len,
                below: len,
                pieces: HashMap::new(),
            }),
        }))
    }

    fn below(&self, state: &State, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = state.below.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (read, rest) = buf.split_at_mut(there);
        rest.fill(0);
        if read.is_empty() {
            return Ok(());
        }
        self.below.read_at(offset, read)
    }
}

/// The pieces of a range: number of the piece, place in it, and how many bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (piece, place) = (at / PIECE, at % PIECE);
        let take = (PIECE - place).min(end.saturating_sub(at));
        at += take;
        (take > 0).then_some((piece, place as usize, take as usize))
    })
}

impl<D: Device> Device for ScratchDevice<D> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.read().len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state.read();
        if offset.saturating_add(buf.len() as u64) > state.len {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.below(&state, offset, buf)?;
        let mut rest = &mut *buf;
        for (piece, place, take) in pieces(offset, rest.len()) {
            let (here, after) = rest.split_at_mut(take);
            match state.pieces.get(&piece) {
                None => {}
                Some(bytes) => match bytes.get(place..place + take) {
                    Some(bytes) => here.copy_from_slice(bytes),
                    None => here.fill(0),
                },
            }
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.write();
        let mut rest = data;
        for (piece, place, take) in pieces(offset, data.len()) {
            let (here, after) = rest.split_at(take);
            rest = after;
            if take as u64 == PIECE && here.iter().all(|byte| *byte == 0) {
                state.pieces.insert(piece, Box::default());
                continue;
            }
            match state.pieces.get(&piece) {
                Some(bytes) if !bytes.is_empty() => {}
                Some(_) => drop(state.pieces.insert(piece, vec![0; PIECE as usize].into())),
                None => {
                    let mut bytes = vec![0; PIECE as usize];
                    // What is overwritten whole need not be readable.
                    if (take as u64) < PIECE {
                        self.below(&state, piece * PIECE, &mut bytes)?;
                    }
                    state.pieces.insert(piece, bytes.into());
                }
            }
            let target = state.pieces.get_mut(&piece);
            if let Some(target) = target.and_then(|bytes| bytes.get_mut(place..place + take)) {
                target.copy_from_slice(here);
            }
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.write();
        state.below = state.below.min(len);
        if len < state.len {
            state.pieces.retain(|piece, _| piece * PIECE < len);
            if let Some(last) = state.pieces.get_mut(&(len / PIECE)) {
                let cut = (len % PIECE) as usize;
                last.iter_mut().skip(cut).for_each(|byte| *byte = 0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state.write();
        state.len = state.len.max(offset + len);
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn growth_available(&self) -> io::Result<Option<u64>> {
        self.below.growth_available()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::MemoryDevice;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        Cut(u64),
        Room(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..20_000_u64, 0..9_000_usize, any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            1 => (0..25_000_u64).prop_map(Step::Cut),
            1 => (0..25_000_u64, 0..5_000_u64).prop_map(|(at, len)| Step::Room(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_as_if_it_had_been_written_and_leaves_what_is_below(
            len in 0..20_000_usize,
            steps in proptest::collection::vec(step(), 0..30),
        ) {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            let below = MemoryDevice::from_bytes(bytes.clone());
            let real = MemoryDevice::from_bytes(bytes.clone());
            let scratch = ScratchDevice::new(below.clone()).unwrap();
            for step in steps {
                let on = |device: &dyn Device| match step {
                    Step::Write(at, len, byte) => device.write_at(at, &vec![byte; len]),
                    Step::Cut(len) => device.set_len(len),
                    Step::Room(at, len) => device.allocate(at, len),
                };
                on(&*scratch).unwrap();
                on(&real).unwrap();
                prop_assert_eq!(scratch.len().unwrap(), real.len().unwrap());
                let mut found = vec![0; real.len().unwrap() as usize];
                scratch.read_at(0, &mut found).unwrap();
                prop_assert!(found == real.to_bytes());
            }
            prop_assert!(below.to_bytes() == bytes);
        }
    }
}
