//! Standard output: data for people and for scripts.
//!
//! Invariant: every failure to write is answered as a [`CliError`], and one whose cause is that the
//! reader has gone ends the run as a success.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::exit::CliError;

/// Buffered standard output.
pub struct Out {
    stdout: BufWriter<StdoutLock<'static>>,
    terminal: bool,
}

impl Out {
    /// Takes standard output for the rest of the run.
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        let terminal = stdout.is_terminal();
        Self {
            stdout: BufWriter::with_capacity(64 << 10, stdout),
            terminal,
        }
    }

    /// Writes one line of text.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// Writes a name: byte for byte, but on a terminal control characters as `?`.
    pub fn name(&mut self, name: &Path) -> Result<(), CliError> {
        let name = name.as_os_str().as_bytes();
        if self.terminal {
            let safe: Vec<u8> = name
                .iter()
                .map(|b| if b.is_ascii_control() { b'?' } else { *b })
                .collect();
            self.bytes(&safe)
        } else {
            self.bytes(name)
        }
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.stdout
            .write_all(bytes)
            .map_err(|e| CliError::stdout(&e))
    }

    /// Writes one JSON document and a newline.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        serde_json::to_writer_pretty(&mut self.stdout, value)
            .map_err(|e| CliError::stdout(&e.into()))?;
        self.bytes(b"\n")
    }

    /// Writes one JSON document on one line, for output that is a stream of them.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        serde_json::to_writer(&mut self.stdout, value).map_err(|e| CliError::stdout(&e.into()))?;
        self.bytes(b"\n")
    }

    /// Writes what is buffered. To be called at the end of a verb: a drop would hide the failure.
    pub fn finish(&mut self) -> Result<(), CliError> {
        self.stdout.flush().map_err(|e| CliError::stdout(&e))
    }
}

/// A name in JSON, which has no bytes: as text where it is UTF-8, else with U+FFFD and beside it the
/// bytes in hexadecimal.
#[derive(Debug, Serialize)]
pub struct JsonName {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
}

impl From<&Path> for JsonName {
    fn from(path: &Path) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        Self {
            name: path.to_string_lossy().into_owned(),
            name_hex: path
                .to_str()
                .is_none()
                .then(|| hex(path.as_os_str().as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_name_that_is_no_utf8_keeps_its_bytes_in_json() {
        let text = |bytes: &[u8]| {
            let name = JsonName::from(Path::new(OsStr::from_bytes(bytes)));
            serde_json::to_string(&name).unwrap()
        };
        assert_eq!(text(b"abacab"), r#"{"name":"abacab"}"#);
        assert_eq!(
            text(b"a\xff"),
            "{\"name\":\"a\u{fffd}\",\"name_hex\":\"61ff\"}"
        );
    }
}
