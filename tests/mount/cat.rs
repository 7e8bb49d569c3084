//! Tables through the real kernel: `.cask/cat/TABLE` is every record of every process once, in the
//! order in which their writes returned.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use super::guard::{Cask, Dice, run, setting};

/// Processes, each with a log of its own, and records of all.
const PROCESSES: usize = 8;
const RECORDS: u64 = 30_000;
/// Cuts meanwhile, about.
const CUTS: u64 = 200;

#[test]
fn a_table_is_all_records_in_order_of_arrival() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let acc = cask.path("acc");
    fs::create_dir(&acc).unwrap();
    cask.set("acc", "mode=log");
    let mut dice = Dice::new(setting("CASKFS_SEED", 1));
    thread::scope(|scope| {
        // Each process writes when it is told to, and answers when its write has returned.
        let (done, finished) = mpsc::sync_channel(0);
        let told: Vec<_> = (0..PROCESSES)
            .map(|process| {
                let (tell, told) = mpsc::sync_channel::<u64>(0);
                let (log, done) = (acc.join(format!("acc_{process}.log")), done.clone());
                scope.spawn(move || {
                    let mut log = File::options().create(true).append(true).open(log).unwrap();
                    for number in told {
                        let record = format!("{number:08}|{process}|INVITE|200|OK\n");
                        assert_eq!(log.write(record.as_bytes()).unwrap(), record.len());
                        done.send(()).unwrap();
                    }
                });
                tell
            })
            .collect();
        for number in 0..RECORDS {
            told[dice.below(PROCESSES as u64) as usize]
                .send(number)
                .unwrap();
            finished.recv().unwrap();
            if dice.below(RECORDS) < CUTS {
                let process = dice.below(PROCESSES as u64);
                let log = acc.join(format!("acc_{process}.log"));
                let segment = acc.join(format!("acc_{process}.log.{number:08}"));
                // A thread that cut a log does not see for a while that it is back.
                let cut = thread::spawn(move || fs::rename(log, segment));
                if let Err(error) = cut.join().unwrap() {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                }
            }
        }
    });
    let check = |cask: &Cask| {
        let text = fs::read_to_string(cask.path("acc/.cask/cat/acc")).unwrap();
        assert_eq!(text.lines().count() as u64, RECORDS);
        for (line, number) in text.lines().zip(0u64..) {
            assert_eq!(line.get(..8), Some(format!("{number:08}").as_str()));
        }
    };
    check(&cask);
    let segments = fs::read_dir(&acc).unwrap().count();
    assert!(segments as u64 > CUTS / 2, "only {segments} files");
    // The promise, word for word.
    run(Command::new("bash")
        .arg("-c")
        .arg("cmp <(cat acc_*.log* | sort) <(sort .cask/cat/acc)")
        .current_dir(&acc))
    .ok();
    // Tools that ask for the size, seek and read the end.
    let mut table = File::open(acc.join(".cask/cat/acc")).unwrap();
    let size = table.metadata().unwrap().len();
    let mut end = String::new();
    table.seek(SeekFrom::Start(size - 9)).unwrap();
    table.read_to_string(&mut end).unwrap();
    assert_eq!(end, "E|200|OK\n");
    drop(table);
    let names = |dir: PathBuf| -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(names(acc.join(".cask/cat")), ["acc"]);
    assert!(names(acc.clone()).iter().all(|name| name != ".cask"));
    cask.kill9();
    cask.mount();
    check(&cask);
    cask.unmount();
    cask.fsck();
}
