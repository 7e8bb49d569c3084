//! `caskfs get`: the settings that hold for a file or directory, and which level they come from.

use std::ffi::OsString;

use clap::Args;
use serde::Serialize;

use super::access::{Access, Need};
use super::exit::CliError;
use super::out::Out;
use super::setting;
use super::target::{Casks, Target};

/// Show the settings that hold for a file, a directory or the cask
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Say which level each value comes from; without NAME show built-in values too
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// For what; CONTAINER alone is the whole cask
    #[arg(value_name = "CONTAINER[:PATH]")]
    target: OsString,
    /// Only this setting
    name: Option<String>,
}

/// A setting in effect.
#[derive(Debug, Serialize)]
struct Effective {
    name: String,
    value: String,
    from: String,
    #[serde(skip)]
    built_in: bool,
}

/// Runs the verb.
pub fn run(args: GetArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    let mut out = Out::new();
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Read)?;
        let shown = access.shown(target.path());
        let wanted = args.name.as_deref().map(setting::short);
        if let Some(name) = wanted {
            setting::check_names(&shown, &[name])?;
        }
        let mut found = effective(&*access, &target)?;
        match wanted {
            Some(name) => found.retain(|setting| setting.name == name),
            None => found.retain(|setting| args.verbose || args.json || !setting.built_in),
        }
        if let (Some(name), true) = (wanted, found.is_empty()) {
            return Err(CliError::failed(format!("{shown}: {name} is not set")));
        }
        if args.json {
            out.json(&found)?;
        } else {
            for setting in &found {
                out.line(line(setting, args.verbose, wanted.is_some()))?;
            }
        }
        out.finish()
    })
}

/// Only the value where one was asked for by name; with `verbose` where it comes from too.
fn line(setting: &Effective, verbose: bool, by_name: bool) -> String {
    let Effective {
        name, value, from, ..
    } = setting;
    match (verbose, by_name) {
        (false, true) => value.clone(),
        (false, false) => format!("{name}={value}"),
        (true, _) => format!("{name}={value} (from {from})"),
    }
}

/// The nearest level of each setting, in the order of their names; what no level has, built-in.
fn effective(access: &dyn Access, target: &Target) -> Result<Vec<Effective>, CliError> {
    let mut found: Vec<Effective> = Vec::new();
    for level in setting::levels(target.path()) {
        for name in setting::own(access, &level)? {
            let inherited = level != target.path();
            let hidden = found.iter().any(|nearer| nearer.name == name);
            if hidden || (inherited && name == setting::LABEL) {
                continue;
            }
            let Some(value) = access.attribute(&level, &setting::attribute(&name))? else {
                continue;
            };
            found.push(Effective {
                value: String::from_utf8_lossy(&value).into_owned(),
                from: access.shown(&level),
                built_in: false,
                name,
            });
        }
    }
    for (name, value) in setting::built_in() {
        if !found.iter().any(|nearer| nearer.name == name) {
            found.push(Effective {
                name: name.to_owned(),
                value: value.to_owned(),
                from: "the built-in defaults".into(),
                built_in: true,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_value_can_be_used_in_a_script() {
        let setting = Effective {
            name: "mode".into(),
            value: "log".into(),
            from: "a.cask:/logs".into(),
            built_in: false,
        };
        assert_eq!(line(&setting, false, true), "log");
        assert_eq!(line(&setting, false, false), "mode=log");
        assert_eq!(line(&setting, true, true), "mode=log (from a.cask:/logs)");
    }
}
