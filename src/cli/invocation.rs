//! By which name and in which of its forms caskfs was called.
//!
//! mkfs(8), fsck(8) and mount(8) run helpers named after the filesystem type, and mount.fuse3 runs the
//! bare `caskfs SOURCE TARGET -o OPTIONS`. All become one spelling: `caskfs VERB …`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::CommandLine;
use super::exit::{CliError, Outcome};

/// The arguments with the verb in its place.
pub fn spelled_out(mut args: Vec<OsString>) -> Vec<OsString> {
    let called = args.first().map(Path::new).and_then(Path::file_name);
    let verb = match called.and_then(OsStr::to_str) {
        Some("mkfs.caskfs") => Some("mkfs"),
        Some("fsck.caskfs") => Some("fsck"),
        Some("mount.caskfs" | "mount.fuse.caskfs") => Some("mount"),
        Some("umount.caskfs" | "umount.fuse.caskfs") => Some("umount"),
        _ if is_bare_mount(&args) => Some("mount"),
        _ => None,
    };
    if let Some(verb) = verb {
        args.insert(1, verb.into());
    }
    args
}

/// Whether this is `caskfs SOURCE TARGET …`.
fn is_bare_mount(args: &[OsString]) -> bool {
    let [_, source, target, ..] = args else {
        return false;
    };
    let is_option = |word: &OsStr| word.as_bytes().starts_with(b"-");
    let is_verb = || CommandLine::command().find_subcommand(source).is_some();
    let is_path = || source.as_bytes().contains(&b'/') || Path::new(source).exists();
    !is_option(source) && !is_option(target) && is_path() && !is_verb()
}

/// What becomes of arguments that the parser does not take: help that was asked for goes to standard
/// output; everything else is one sentence.
pub fn refused(refusal: &clap::Error, verb: Option<&str>) -> Result<Outcome, CliError> {
    match refusal.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match refusal.print() {
            Ok(()) => Ok(Outcome::Done),
            Err(error) => Err(CliError::stdout(&error)),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Goes to standard error; nobody is left to tell if that fails.
            let _ = refusal.print();
            Ok(Outcome::Usage)
        }
        _ => Err(CliError::usage(sentence(&refusal.to_string(), verb))),
    }
}

/// The first paragraph of the parser's message, on one line.
fn sentence(message: &str, verb: Option<&str>) -> String {
    let paragraph: Vec<&str> = message
        .trim_start_matches("error: ")
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let known = verb.filter(|verb| CommandLine::command().find_subcommand(verb).is_some());
    let help = known.map_or_else(
        || "caskfs --help".to_owned(),
        |verb| format!("caskfs {verb} --help"),
    );
    format!("{}; try `{help}`", paragraph.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(args: &[&str]) -> Vec<String> {
        spelled_out(args.iter().map(OsString::from).collect())
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_name_it_was_called_by_is_a_verb() {
        let verb = |name: &str| spelled(&[name, "a.cask"]).get(1).cloned().unwrap();
        assert_eq!(verb("/sbin/mkfs.caskfs"), "mkfs");
        assert_eq!(verb("fsck.caskfs"), "fsck");
        assert_eq!(verb("/sbin/mount.caskfs"), "mount");
        assert_eq!(verb("mount.fuse.caskfs"), "mount");
        assert_eq!(verb("/usr/bin/caskfs"), "a.cask");
    }

    #[test]
    fn mount_fuse3_names_no_verb() {
        let bare = ["caskfs", "/srv/a.cask", "/mnt", "-o", "rw,dev,suid"];
        assert_eq!(spelled(&bare)[1..3], ["mount", "/srv/a.cask"]);
        assert_eq!(spelled(&["caskfs", "ls", "/srv/a.cask"])[1], "ls");
        assert_eq!(spelled(&["caskfs", "lss", "/srv/a.cask"])[1], "lss");
        assert_eq!(
            spelled(&["caskfs", "/srv/a.cask", "--help"])[1],
            "/srv/a.cask"
        );
        assert_eq!(spelled(&["caskfs"]), ["caskfs"]);
        assert_eq!(spelled(&[]), [""; 0]);
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        use clap::Parser;
        let said = |args: &[&str]| {
            let refusal = CommandLine::try_parse_from(args).unwrap_err();
            let error = refused(&refusal, args.get(1).copied()).unwrap_err();
            assert_eq!(error.outcome(), Outcome::Usage);
            error.sentence().unwrap().to_owned()
        };
        for args in [
            &["caskfs", "mkfs", "--no-such-option", "a.cask"][..],
            &["caskfs", "mkfs"],
            &["caskfs", "mkfs", "--files=many", "a.cask"],
            &["caskfs", "frobnicate"],
        ] {
            let sentence = said(args);
            assert!(!sentence.contains('\n'), "{sentence}");
            assert!(sentence.contains("; try `caskfs"), "{sentence}");
        }
        assert!(said(&["caskfs", "mkfs"]).ends_with("; try `caskfs mkfs --help`"));
    }

    #[test]
    fn the_tree_of_verbs_is_sound() {
        CommandLine::command().debug_assert();
    }
}
