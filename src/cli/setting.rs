//! Settings as the verbs see them: `NAME=VALUE`, the attribute that holds one, and the levels they
//! are looked up in.

use std::path::{Path, PathBuf};

use super::access::Access;
use super::exit::CliError;

/// What the names of settings begin with as extended attributes.
const PREFIX: &str = "user.cask.";

/// A setting and the value it shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Name, without `user.cask.`.
    pub name: String,
    /// Value.
    pub value: String,
}

impl Assignment {
    /// An assignment that was put together, not typed.
    pub fn new(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    /// Sets it on `path`.
    pub fn apply(&self, access: &dyn Access, path: &Path) -> Result<(), CliError> {
        access.set_attribute(path, &attribute(&self.name), self.value.as_bytes())
    }
}

/// Parses `NAME=VALUE`.
///
/// # Errors
/// Why the text is no assignment.
pub fn parse_assignment(text: &str) -> Result<Assignment, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Assignment::new(short(name), value)),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// The attribute of a setting.
pub fn attribute(name: &str) -> String {
    format!("{PREFIX}{}", short(name))
}

/// The name of a setting, whether or not it was given as an attribute.
pub fn short(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The names of the settings that a file or directory has itself.
pub fn own(access: &dyn Access, path: &Path) -> Result<Vec<String>, CliError> {
    let names = access.attributes(path)?;
    Ok(names
        .iter()
        .filter_map(|name| name.to_str()?.strip_prefix(PREFIX).map(str::to_owned))
        .collect())
}

/// The levels in which a setting of `path` is looked up: itself, its directory, … the root.
pub fn levels(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.ancestors().map(Path::to_path_buf)
}
