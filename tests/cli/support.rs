//! A scratch directory with casks in it, and the binary run in it.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Options that make a small container.
pub const SMALL: [&str; 2] = ["--wal=256k", "--blocks=2000"];

/// A directory in which commands are run; it goes away with this, after everything in it was unmounted.
pub struct Scratch {
    dir: tempfile::TempDir,
}

/// What a run left.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    /// A scratch directory with a small cask `a.cask`.
    pub fn with_cask() -> Self {
        let scratch = Self::new();
        let [wal, blocks] = SMALL;
        scratch
            .run(["mkfs", wal, blocks, "--files=100", "a.cask"])
            .ok();
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Everything in the directory, by name.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_caskfs"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("CASKFS_LOG")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Run {
        self.finish(self.command(args))
    }

    /// Runs the binary under another name.
    pub fn run_as(&self, name: &str, args: &[&str]) -> Run {
        let mut command = self.command(args);
        command.arg0(name);
        self.finish(command)
    }

    /// Runs the binary with this standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Run::new(&command, child.wait_with_output().unwrap())
    }

    fn finish(&self, mut command: Command) -> Run {
        let output = command.output().unwrap();
        Run::new(&command, output)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A test that failed may have left its mount.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines() {
            if let Some(mountpoint) = line.split(' ').nth(4)
                && Path::new(mountpoint).starts_with(self.dir.path())
            {
                let _ = self.command(["umount", "--lazy", mountpoint]).status();
            }
        }
    }
}

impl Run {
    fn new(command: &Command, output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command: format!("{:?}", command.get_args().collect::<Vec<_>>()),
        }
    }

    /// Success without a word on standard error; answers standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        let Self {
            code,
            stdout,
            stderr,
            command,
        } = self;
        assert_eq!((code, stderr.as_str()), (0, ""), "{command}: {stdout}");
        stdout
    }

    /// Failure with this code and one sentence that begins with `caskfs: `; answers the sentence.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        let Self {
            stderr, command, ..
        } = self;
        assert_eq!(self.code, code, "{command}: {stderr}");
        assert_eq!(self.stdout, "", "{command}");
        assert_eq!(stderr.lines().count(), 1, "{command}: {stderr}");
        assert!(!stderr.contains("os error"), "{command}: {stderr}");
        let sentence = stderr.trim_end().strip_prefix("caskfs: ");
        sentence
            .unwrap_or_else(|| panic!("{command}: {stderr}"))
            .to_owned()
    }
}
