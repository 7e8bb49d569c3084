//! What if the host fails the n-th call, for every n?
//!
//! A workload runs once for each call that it makes; that call fails, alone or with all after it. An
//! operation that meets the fault says so or was not touched by it; what was acknowledged as durable before
//! is there after the next start, and what is found is a moment of the past. `CASKFS_FAULTS` says how many
//! failed calls to see (5,000), `CASKFS_FAULT_SEED` where to begin.
#![cfg(feature = "testing")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use caskfs::cask::Cask;
use caskfs::device::MemoryDevice;
use caskfs::device::testing::{
    Call, Choice, CrashResolver, Effect, Fault, FaultyDevice, RecordingDevice, Rng,
};
use common::case::Case;
use common::explorer::Plan;
use common::life::{LIFE_STRIDE, parts};
use common::model::ModelFs;
use common::op::Op;
use common::plans;
use common::subject::{StoreSubject, Subject, differences, time_of};
use common::values::View;
use libc::{EIO, ENOSPC};

type Device = Arc<FaultyDevice<RecordingDevice>>;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// The kinds of faults: a disk that fails once or for good, a full host, a write that was cut short, a
/// sync of which nobody knows what it did.
fn faults() -> Vec<Fault> {
    let fault = |call, persistent, errno, effect| Fault {
        call,
        nth: 0,
        persistent,
        errno,
        effect,
    };
    vec![
        fault(Call::AnyChange, false, EIO, Effect::Nothing),
        fault(Call::AnyChange, true, EIO, Effect::Nothing),
        fault(Call::AnyChange, false, EIO, Effect::Everything),
        fault(Call::Write, true, ENOSPC, Effect::Prefix(300)),
        fault(Call::Write, false, EIO, Effect::Prefix(512)),
        fault(Call::Sync, false, EIO, Effect::Nothing),
        fault(Call::Sync, true, EIO, Effect::Everything),
        fault(Call::WriteDurable, false, EIO, Effect::Prefix(100)),
        fault(Call::Allocate, true, ENOSPC, Effect::Nothing),
        fault(Call::Read, false, EIO, Effect::Nothing),
        fault(Call::Read, true, EIO, Effect::Nothing),
    ]
}

/// What came of one run.
struct Ran {
    failed: u64,
    /// Operations that said so.
    told: u64,
}

/// The moments that may be found, and what is found on an image.
struct Check<'c> {
    case: &'c Case,
    moments: Vec<ModelFs>,
}

impl Check<'_> {
    fn found(&self, image: Vec<u8>, what: &str) -> Result<(), String> {
        let now = time_of(LIFE_STRIDE);
        let last = self.moments.last().unwrap();
        let memory = MemoryDevice::from_bytes(image);
        let mut subject = StoreSubject::open(memory, self.case.geometry.spacing, now)
            .map_err(|error| format!("{what}: does not open: {error}"))?;
        subject.follow(last);
        let mut later = now;
        later.secs += last.logs.ahead;
        subject.look_at(later);
        let dump = subject
            .dump()
            .map_err(|error| format!("{what}: cannot be read: {error}"))?;
        let view = View {
            now: later,
            closed: true,
            mortal: last.mortal,
        };
        match self.moments.iter().any(|model| model.dump_as(view) == dump) {
            true => Ok(()),
            false => Err(format!(
                "{what}: is as never before:\n{}",
                differences(&dump, &last.dump_as(view))
            )),
        }
    }
}

/// Runs a case with a fault; the first thing that is wrong is the error.
fn run(case: &Case, fault: Fault, rng: &mut Rng) -> Result<Ran, String> {
    let made = MemoryDevice::new();
    Cask::format(&made, &case.geometry.format_options()).unwrap();
    let recording = RecordingDevice::new(made.into_bytes());
    let device: Device = Arc::new(FaultyDevice::new(recording));
    device.set_fault(Some(fault));
    let mut model = ModelFs::new(0o755, time_of(0));
    model.fixed = case.geometry.blocks > 0;
    let mut check = Check {
        case,
        moments: vec![model.clone()],
    };
    let mut told = 0;
    match StoreSubject::open(Arc::clone(&device), case.geometry.spacing, time_of(0)) {
        Err(error) if device.failed() > 0 => {
            assert!(error.to_string().len() > 10, "{error:?}");
            told += 1;
        }
        Err(error) => return Err(format!("does not open: {error}")),
        Ok(mut subject) => {
            for (index, op) in case.ops.iter().enumerate() {
                let now = time_of(index + 1);
                if !model.speaks_of(op) || (*op == Op::Tick && subject.is_short()) {
                    continue;
                }
                let found = subject.apply(op, now);
                if found == Err(ENOSPC) && op.may_lack_space() && device.failed() == 0 {
                    model.look_at(now);
                    continue;
                }
                let op = match found {
                    Ok(()) => subject.done(op),
                    Err(_) => op.clone(),
                };
                // What it would have done, whole or by parts.
                let before = model.clone();
                let wanted = model.apply(&op, now);
                let moments = std::mem::take(&mut model.moments);
                if found == wanted && device.failed() == 0 {
                    if op.is_durability_point() && found.is_ok() {
                        check.moments.clear();
                    }
                    check.moments.extend(moments);
                    check.moments.push(model.clone());
                    continue;
                }
                if device.failed() == 0 {
                    return Err(format!("{op}: found {found:?}, wanted {wanted:?}"));
                }
                // From here on anything may be refused; but nothing is acknowledged that is not so.
                check.moments.extend(moments);
                let block = case.geometry.block_size as usize;
                check.moments.extend(parts(&before, &op, block, now));
                check.moments.push(model.clone());
                told += u64::from(found.is_err());
                // What a tick could not do it puts off, and tells the log only.
                if op == Op::Tick {
                    break;
                }
                if found == wanted {
                    if op.is_durability_point() && found.is_ok() {
                        check.moments = vec![model.clone()];
                    }
                    continue;
                }
                if found.is_ok() {
                    return Err(format!("{op}: went well, wanted {wanted:?}"));
                }
                break;
            }
        }
    }
    let failed = device.failed();
    if failed == 0 {
        return Ok(Ran { failed, told });
    }
    device.set_fault(None);
    // The process ends, or power fails.
    check.found(device.inner().memory().to_bytes(), "the process ended")?;
    let recording = device.inner().take();
    let mut resolver = CrashResolver::new(&recording);
    resolver.advance_to(resolver.end());
    let choice: Choice = resolver.choose(rng);
    let image = resolver.resolve(&choice, Vec::new());
    check.found(image, &format!("power failed, {choice:?}"))?;
    Ok(Ran { failed, told })
}

/// Every call of a case fails in turn, in one way; answers how many calls failed.
fn every_call(case: &Case, fault: Fault) -> Result<Ran, String> {
    let mut rng = Rng::new(case.seed);
    let mut all = Ran { failed: 0, told: 0 };
    for nth in 1.. {
        let fault = Fault { nth, ..fault };
        let ran = catch_unwind(AssertUnwindSafe(|| run(case, fault, &mut rng)))
            .unwrap_or_else(|_| Err("a panic".to_owned()))
            .map_err(|what| format!("{what}\n{fault:?}\n{case}"))?;
        if ran.failed == 0 {
            break;
        }
        all.failed += ran.failed;
        all.told += ran.told;
    }
    Ok(all)
}

#[test]
fn every_call_may_fail() {
    let (enough, first) = (
        number("CASKFS_FAULTS", 5_000),
        number("CASKFS_FAULT_SEED", 1),
    );
    let (failed, next) = (AtomicU64::new(0), AtomicU64::new(0));
    let wrong = Mutex::new(None);
    let told: Mutex<BTreeMap<String, (u64, u64)>> = Mutex::default();
    let faults = faults();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < enough && wrong.lock().unwrap().is_none() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let plan = Plan {
                        ops: 24,
                        ..plans::ALL[(number / faults.len() as u64) as usize % plans::ALL.len()]
                    };
                    let fault = faults[number as usize % faults.len()];
                    // Without room a log is cut without its line in the record of rolls.
                    if fault.errno == ENOSPC && plan.mix.log_eighths > 0 {
                        continue;
                    }
                    let case = plan.case(first + number / faults.len() as u64);
                    match every_call(&case, fault) {
                        Ok(ran) => {
                            failed.fetch_add(ran.failed, Ordering::Relaxed);
                            let name =
                                format!("{:?} {:?} {}", fault.call, fault.effect, fault.persistent);
                            let mut told = told.lock().unwrap();
                            let sum = told.entry(name).or_default();
                            *sum = (sum.0 + ran.failed, sum.1 + ran.told);
                        }
                        Err(what) => *wrong.lock().unwrap() = Some(what),
                    }
                }
            });
        }
    });
    if let Some(what) = wrong.into_inner().unwrap() {
        panic!("{what}");
    }
    println!(
        "{} calls failed, by kind, and operations that said so:",
        failed.into_inner()
    );
    for (name, (failed, told)) in told.into_inner().unwrap() {
        println!("  {name}: {failed}, {told}");
        assert!(failed == 0 || told > 0, "{name} was never told");
    }
}
