//! Tables of names: hundreds of processes, thousands of open handles, all cut at once.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::guard::Cask;

/// Processes, each with a log of its own.
const PROCESSES: usize = 200;
/// Handles in one process, two to a log.
const HANDLES: usize = 3000;

/// A shell that appends what it is told and says so.
struct Writer(Child);

impl Writer {
    fn start(log: &str) -> Self {
        let script =
            r#"exec 9>>"$0"; while read -r record; do echo "$record" >&9; echo done; done"#;
        let child = Command::new("sh")
            .args(["-c", script, log])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    fn tell(&mut self, record: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{record}").unwrap();
    }

    fn hear(&mut self) {
        let mut answer = String::new();
        let stdout = self.0.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, stdout)
            .read_line(&mut answer)
            .unwrap();
        assert_eq!(answer, "done\n");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn hundreds_of_processes_are_cut_at_once() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let logs = cask.path("logs");
    let log = |process: usize| logs.join(format!("acc_{process}.log"));
    let segment = |process: usize| logs.join(format!("acc_{process}.log.1"));
    let mut writers: Vec<_> = (0..PROCESSES)
        .map(|process| Writer::start(log(process).to_str().unwrap()))
        .collect();
    let mut all = |record: &str| {
        writers.iter_mut().for_each(|writer| writer.tell(record));
        writers.iter_mut().for_each(Writer::hear);
    };
    all("before");
    (0..PROCESSES).for_each(|process| fs::rename(log(process), segment(process)).unwrap());
    assert!(!(0..PROCESSES).any(|process| log(process).exists()));
    all("after");
    all("after");
    thread::spawn(move || {
        for process in 0..PROCESSES {
            let log = |end| logs.join(format!("acc_{process}.log{end}"));
            assert_eq!(fs::read_to_string(log(".1")).unwrap(), "before\n");
            assert_eq!(fs::read_to_string(log("")).unwrap(), "after\nafter\n");
        }
        let table = fs::read_to_string(logs.join(".cask/cat/acc")).unwrap();
        let (before, after) = table.split_at(7 * PROCESSES);
        assert_eq!(before, "before\n".repeat(PROCESSES));
        assert_eq!(after, "after\n".repeat(2 * PROCESSES));
    })
    .join()
    .unwrap();
    drop(writers);
    cask.unmount();
    cask.fsck();
}

#[test]
fn thousands_of_handles_follow_their_names() {
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(HANDLES as u64 + 1000),
            ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
        },
    )
    .unwrap();
    let logs = cask.path("logs");
    let log = |handle: usize| logs.join(format!("log.{}", handle / 2));
    let mut handles: Vec<_> = (0..HANDLES)
        .map(|handle| {
            let mut options = File::options();
            options.create(true).append(true).open(log(handle)).unwrap()
        })
        .collect();
    let mut all = |round: u32| {
        for (file, handle) in handles.iter_mut().zip(0..) {
            writeln!(file, "{handle} {round}").unwrap();
        }
    };
    all(0);
    for handle in (0..HANDLES).step_by(2) {
        fs::rename(log(handle), logs.join(format!("old.{}", handle / 2))).unwrap();
    }
    all(1);
    let expected = |first: usize, round: u32| format!("{first} {round}\n{} {round}\n", first + 1);
    let at = logs.clone();
    thread::spawn(move || {
        for first in (0..HANDLES).step_by(2) {
            let read =
                |name: &str| fs::read_to_string(at.join(format!("{name}.{}", first / 2))).unwrap();
            assert_eq!(read("old"), expected(first, 0));
            assert_eq!(read("log"), expected(first, 1));
        }
    })
    .join()
    .unwrap();
    drop(handles);
    cask.unmount();
    cask.fsck();
}
