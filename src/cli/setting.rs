//! Settings as the verbs see them: `NAME=VALUE`, the attribute that holds one, and the levels they
//! are looked up in.

use std::path::{Path, PathBuf};

use super::access::Access;
use super::exit::CliError;
use crate::error::Error;
use crate::limits::LABEL_MAX;
use crate::store::settings::{Setting, table};

/// What the names of settings begin with as extended attributes.
const PREFIX: &str = "user.cask.";

/// The attribute of the root that is no setting but the cask's label.
pub const LABEL: &str = "label";

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

/// The names of the settings that a file or directory has itself, and for the root the label, which is
/// kept in the superblock and not inherited.
pub fn own(access: &dyn Access, path: &Path) -> Result<Vec<String>, CliError> {
    let names = access.attributes(path)?;
    let mut own: Vec<String> = names
        .iter()
        .filter_map(|name| name.to_str()?.strip_prefix(PREFIX).map(str::to_owned))
        .collect();
    if path == Path::new("/") && !own.iter().any(|name| name == LABEL) {
        own.push(LABEL.to_owned());
    }
    Ok(own)
}

/// The levels in which a setting of `path` is looked up: itself, its directory, … the root.
pub fn levels(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.ancestors().map(Path::to_path_buf)
}

/// The names of all settings with their built-in values.
pub fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
    table()
        .iter()
        .map(|setting| (setting.name, setting.default))
}

/// Says what is wrong with assignments to `path`, called `shown`, before any of them is made.
pub fn check(shown: &str, path: &Path, settings: &[Assignment]) -> Result<(), CliError> {
    for Assignment { name, value } in settings {
        let accepted = if name == LABEL {
            accept_label(path, value)
        } else {
            Setting::named(name.as_bytes()).and_then(|setting| setting.accept(value.as_bytes()))
        };
        accepted.map_err(|error| CliError::at(shown, &error))?;
    }
    Ok(())
}

/// Sets them all; `mode` first, as others depend on it.
pub fn apply_all(
    access: &dyn Access,
    path: &Path,
    settings: &[Assignment],
) -> Result<(), CliError> {
    let (mode, others): (Vec<_>, Vec<_>) = settings.iter().partition(|s| s.name == "mode");
    mode.into_iter()
        .chain(others)
        .try_for_each(|setting| setting.apply(access, path))
}

fn accept_label(path: &Path, label: &str) -> Result<(), Error> {
    match label.len() {
        _ if path != Path::new("/") => Err(Error::invalid(
            "only the cask as a whole has a label; name the container or the mountpoint",
        )),
        ..=LABEL_MAX => Ok(()),
        len => Err(Error::invalid(format!(
            "the label has {len} bytes; at most {LABEL_MAX} fit"
        ))),
    }
}

/// Says which of the names is none of a setting.
pub fn check_names(shown: &str, names: &[impl AsRef<str>]) -> Result<(), CliError> {
    for name in names.iter().map(|name| short(name.as_ref())) {
        if name != LABEL {
            Setting::named(name.as_bytes()).map_err(|error| CliError::at(shown, &error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_name_and_value() {
        assert_eq!(
            parse_assignment("mode=log"),
            Ok(Assignment::new("mode", "log"))
        );
        assert_eq!(
            parse_assignment("user.cask.field=="),
            Ok(Assignment::new("field", "="))
        );
        assert_eq!(
            parse_assignment("header="),
            Ok(Assignment::new("header", ""))
        );
        assert!(parse_assignment("mode").is_err());
        assert!(parse_assignment("=log").is_err());
    }

    #[test]
    fn a_bad_setting_is_told_with_its_reason() {
        let refused = |name: &str, value: &str| {
            let root = Path::new("/");
            let error = check("a.cask:/", root, &[Assignment::new(name, value)]).unwrap_err();
            error.sentence().unwrap().to_owned()
        };
        assert!(refused("mood", "log").contains("no setting `mood`"));
        assert!(refused("mode", "loud").starts_with("a.cask:/: "));
        assert!(refused("label", &"x".repeat(65)).contains("65 bytes"));
        let good = [
            Assignment::new("mode", "log"),
            Assignment::new("label", "edge-3"),
        ];
        assert!(check("a.cask:/", Path::new("/"), &good).is_ok());
        assert!(check("a.cask:/logs", Path::new("/logs"), &good).is_err());
        assert!(check_names("a", &["mode", "user.cask.record", "label"]).is_ok());
        assert!(check_names("a", &["mood"]).is_err());
    }

    #[test]
    fn levels_go_from_the_file_to_the_root() {
        let all: Vec<PathBuf> = levels(Path::new("/logs/a/b")).collect();
        assert_eq!(
            all,
            ["/logs/a/b", "/logs/a", "/logs", "/"].map(PathBuf::from)
        );
    }
}
