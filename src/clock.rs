//! Where time comes from.
//!
//! The engine never asks the operating system for the time: it is given a [`Clock`], so that tests
//! decide what "now" is and a crash run can be repeated to the nanosecond.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: seconds since 1970-01-01 00:00:00 UTC (negative before) and nanoseconds
/// 0..=999,999,999 after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 10⁹.
    pub nanos: u32,
}

impl Timestamp {
    /// The time of `secs` whole seconds since the Unix epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let secs = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self {
                        secs: -secs,
                        nanos: 0,
                    },
                    nanos => Self {
                        secs: (-secs).saturating_sub(1),
                        nanos: 1_000_000_000 - nanos,
                    },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    /// The same time; 1970 where the system's type cannot hold it.
    fn from(time: Timestamp) -> Self {
        let secs = Duration::from_secs(time.secs.unsigned_abs());
        let nanos = Duration::from_nanos(time.nanos.into());
        let start = match time.secs {
            0.. => UNIX_EPOCH.checked_add(secs),
            _ => UNIX_EPOCH.checked_sub(secs),
        };
        start
            .and_then(|start| start.checked_add(nanos))
            .unwrap_or(UNIX_EPOCH)
    }
}

/// A source of wall-clock time.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock that stands still until a test moves it.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct ManualClock(parking_lot::Mutex<Timestamp>);

#[cfg(any(test, feature = "testing"))]
impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(parking_lot::Mutex::new(now))
    }

    /// Sets the time shown.
    pub fn set(&self, now: Timestamp) {
        *self.0.lock() = now;
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}
