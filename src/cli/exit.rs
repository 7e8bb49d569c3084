//! How a run ends: the one table of exit codes, and the one sentence that is printed.
//!
//! Invariant: every number that caskfs exits with stands in [`Family::code`], and every message for
//! a person goes out through [`CliError::report`], as `caskfs: PATH: what; what to do`.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::Error;

/// Whose exit codes a verb follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 0, 1, 2 as everywhere.
    General,
    /// Those of mount(8).
    Mount,
    /// Those of fsck(8).
    Fsck,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was asked for was done.
    Done,
    /// The command line makes no sense.
    Usage,
    /// Something could not be done.
    Failed,
    /// The check was made, and what it found is still there.
    ErrorsLeft,
    /// What a check found was mended.
    Mended,
}

impl Family {
    /// The family of a verb.
    pub fn of(verb: &str) -> Self {
        match verb {
            "mount" | "umount" => Self::Mount,
            "fsck" | "scrub" => Self::Fsck,
            _ => Self::General,
        }
    }

    /// The only table of exit codes.
    pub fn code(self, outcome: Outcome) -> u8 {
        match (self, outcome) {
            (_, Outcome::Done) => 0,
            (Self::Fsck, Outcome::Mended) => 1,
            (_, Outcome::Mended) => 0,
            (Self::General, Outcome::Usage) => 2,
            (Self::General, Outcome::Failed | Outcome::ErrorsLeft) => 1,
            (Self::Mount, Outcome::Usage) => 1,
            (Self::Mount, Outcome::Failed | Outcome::ErrorsLeft) => 32,
            (Self::Fsck, Outcome::Usage) => 16,
            (Self::Fsck, Outcome::Failed) => 8,
            (Self::Fsck, Outcome::ErrorsLeft) => 4,
        }
    }
}

/// Why a verb did not do what was asked, in one sentence.
#[derive(Debug)]
pub struct CliError {
    outcome: Outcome,
    /// Without the leading `caskfs: `; `None` when everything was said already.
    sentence: Option<String>,
    /// What the system call would have said, where it is known.
    errno: Option<i32>,
}

impl CliError {
    /// The command line makes no sense.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Usage,
            sentence: Some(sentence.into()),
            errno: None,
        }
    }

    /// Something could not be done.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed,
            sentence: Some(without_errno(sentence.into())),
            errno: None,
        }
    }

    /// What failed was reported when it happened.
    pub fn said() -> Self {
        Self {
            outcome: Outcome::Failed,
            sentence: None,
            errno: None,
        }
    }

    /// The reader of our output has gone. That is how `caskfs ls | head` ends, so it is success.
    pub fn reader_gone() -> Self {
        Self {
            outcome: Outcome::Done,
            sentence: None,
            errno: None,
        }
    }

    /// `error` happened to what the user calls `name`.
    pub fn at(name: impl fmt::Display, error: &Error) -> Self {
        let name = name.to_string();
        let what = match error {
            // The path is said already.
            Error::Unusable { reason, .. } => reason.clone(),
            Error::Busy(why) => without_prefix(why, &name).to_owned(),
            Error::Io { source, .. } => reason(source),
            other => other.to_string(),
        };
        Self {
            errno: Some(error.errno()),
            ..Self::failed(format!("{name}: {what}"))
        }
    }

    /// The operating system refused something about `name`.
    pub fn io(name: impl fmt::Display, error: &io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            ..Self::failed(format!("{name}: {}", reason(error)))
        }
    }

    /// Writing to standard output failed.
    pub fn stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::reader_gone(),
            _ => Self::io("standard output", error),
        }
    }

    /// The same failure, told of `name` instead of `instead_of`, which the user has not heard of.
    pub fn told_of(mut self, name: &str, instead_of: &str) -> Self {
        self.sentence = self
            .sentence
            .map(|sentence| match sentence.strip_prefix(instead_of) {
                Some(rest) => format!("{name}{rest}"),
                None => sentence,
            });
        self
    }

    /// How the run ended.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the container, or what else was asked for, is in use by somebody.
    pub fn is_busy(&self) -> bool {
        self.errno == Some(libc::EBUSY)
    }

    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        self.errno == Some(libc::ENOENT)
    }

    /// Whether the caller has not the rights that it takes.
    pub fn is_refused(&self) -> bool {
        matches!(self.errno, Some(libc::EPERM | libc::EACCES))
    }

    /// What is printed, without the leading `caskfs: `.
    pub fn sentence(&self) -> Option<&str> {
        self.sentence.as_deref()
    }

    /// Prints the sentence. That standard error cannot be written to changes nothing.
    pub fn report(&self) {
        if let Some(sentence) = self.sentence() {
            use io::Write;
            let _ = writeln!(io::stderr(), "caskfs: {sentence}");
        }
    }
}

/// The words of the operating system.
pub fn reason(error: &io::Error) -> String {
    let text = without_errno(error.to_string());
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

/// Leaves out Rust's " (os error 2)" after the words of the operating system.
fn without_errno(mut text: String) -> String {
    while let Some((before, number)) = text.split_once(" (os error ")
        && let Some((_, after)) = number.split_once(')')
    {
        text = format!("{before}{after}");
    }
    text
}

/// Messages about a device begin with its path, which is said already.
fn without_prefix<'a>(text: &'a str, path: &str) -> &'a str {
    text.strip_prefix(path)
        .map_or(text, |rest| rest.trim_start_matches([':', ' ']))
}

/// How a path is shown in a message: control characters cannot move the cursor.
pub fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_codes_and_success_is_zero_in_all() {
        for family in [Family::General, Family::Mount, Family::Fsck] {
            assert_eq!(family.code(Outcome::Done), 0);
        }
        assert_eq!(Family::of("ls").code(Outcome::Failed), 1);
        assert_eq!(Family::of("ls").code(Outcome::Usage), 2);
        assert_eq!(Family::of("mount").code(Outcome::Usage), 1);
        assert_eq!(Family::of("umount").code(Outcome::Failed), 32);
        assert_eq!(Family::of("fsck").code(Outcome::ErrorsLeft), 4);
        assert_eq!(Family::of("fsck").code(Outcome::Failed), 8);
        assert_eq!(Family::of("fsck").code(Outcome::Usage), 16);
    }

    #[test]
    fn a_sentence_names_the_path_once_and_no_errno() {
        let busy = Error::Busy("a.cask is in use by caskfs (process 7)".into());
        let error = CliError::at("a.cask", &busy);
        assert_eq!(
            error.sentence(),
            Some("a.cask: is in use by caskfs (process 7)")
        );
        assert!(error.is_busy());
        let io = Error::Io {
            what: "cannot open a.cask".into(),
            source: io::Error::from_raw_os_error(libc::ENOENT),
        };
        let error = CliError::at("a.cask", &io);
        assert_eq!(error.sentence(), Some("a.cask: no such file or directory"));
        assert_eq!(error.outcome(), Outcome::Failed);
    }

    #[test]
    fn a_reader_that_goes_is_no_failure() {
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(CliError::stdout(&gone).outcome(), Outcome::Done);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(CliError::stdout(&full).outcome(), Outcome::Failed);
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[31mb\n"), "a?[31mb?");
    }
}
