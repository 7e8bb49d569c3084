//! The rules of the repository, as a test: what the compiler and the linter cannot say.
//!
//! The layering, the head of each file, where `unsafe` and fuser may stand, how long a file may be,
//! and that the documents keep up with the code. A rule that is broken names file and line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The layers from the lowest to the highest; those of one row may not name each other.
const LAYERS: &[&[&str]] = &[
    &["format"],
    &["device"],
    &["alloc"],
    &["wal"],
    &["tree"],
    &["cask"],
    &["fs"],
    &["store"],
    &["fsck", "fuse"],
    &["sessions"],
    &["cli"],
];
/// Modules that every layer may name.
const FREE: &[&str] = &["error", "limits", "clock", "sync"];
/// The only files that may hold `unsafe`.
const UNSAFE: &[&str] = &["src/device/sys.rs", "src/fuse/sys.rs"];
/// The only file that may name fuser.
const FUSER: &str = "src/fuse/dev.rs";
/// Longest file in `src`, in lines.
const LINES_MAX: usize = 900;

/// One source file: its path from the root of the repository, and its lines.
struct Source {
    path: String,
    lines: Vec<String>,
    /// First line of the unit tests at its end; the number of lines when there are none.
    tests_from: usize,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(under: &str) -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(under), &mut paths);
    paths.sort();
    let mut sources: Vec<Source> = paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let tests_from = lines
                .windows(2)
                .position(|pair| {
                    pair[0].trim() == "#[cfg(test)]"
                        && pair[1].trim_start().starts_with("mod ")
                        && pair[1].ends_with('{')
                })
                .unwrap_or(lines.len());
            let path = path
                .strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            Source {
                path,
                lines,
                tests_from,
            }
        })
        .collect();
    // Modules that are compiled for tests only, and the files below them.
    let mut test_only: Vec<String> = Vec::new();
    for source in &sources {
        for pair in source.lines.windows(2) {
            let gate = pair[0].trim();
            if !gate.starts_with("#[cfg(") || !gate.contains("test") || gate.contains("not(") {
                continue;
            }
            let Some(name) = pair[1]
                .trim()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ")
                .strip_prefix("mod ")
            else {
                continue;
            };
            if let Some(name) = name.strip_suffix(';') {
                let dir = match source.path.rsplit_once('/') {
                    Some((dir, "mod.rs" | "lib.rs")) => dir.to_owned(),
                    _ => source.path.trim_end_matches(".rs").to_owned(),
                };
                test_only.push(format!("{dir}/{name}.rs"));
                test_only.push(format!("{dir}/{name}/"));
            }
        }
    }
    for source in &mut sources {
        if test_only.iter().any(|gated| {
            source.path == *gated || (gated.ends_with('/') && source.path.starts_with(gated))
        }) {
            source.tests_from = 0;
        }
    }
    sources
}

/// The line without its comment and without the contents of its string literals.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' if quoted => {
                rest.next();
            }
            '\'' if !quoted && rest.peek() == Some(&'"') => {
                rest.next();
            }
            '"' => {
                quoted = !quoted;
                out.push('"');
            }
            '/' if !quoted && rest.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => out.push(c),
        }
    }
    out
}

/// Whether `word` stands in `text` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The modules that follow each `crate::` of a file, with their line numbers.
fn crate_paths(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut starts = Vec::new();
    for line in &source.lines {
        starts.push(text.len());
        text.push_str(&code(line));
        text.push('\n');
    }
    let line_of = |at: usize| starts.partition_point(|start| *start <= at);
    for (at, word) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + word.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut first = true;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => {
                        found.push((line_of(at), std::mem::take(&mut name)));
                        first = true;
                        continue;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                if c.is_alphanumeric() || c == '_' {
                    if first {
                        name.push(c);
                    }
                } else if !name.is_empty() {
                    first = false;
                }
            }
            found.push((line_of(at), name));
        } else {
            let name = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            found.push((line_of(at), name));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// Fails with every broken rule, one a line.
fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn a_module_names_only_lower_layers() {
    let mut broken = Vec::new();
    let mut edges = 0;
    for source in rust_files("src") {
        let module = source
            .path
            .trim_start_matches("src/")
            .trim_end_matches(".rs")
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let own = layer_of(&module);
        if own.is_none() && !FREE.contains(&module.as_str()) {
            broken.push(format!(
                "{}: module `{module}` has no place in the order",
                source.path
            ));
            continue;
        }
        for (line, name) in crate_paths(&source) {
            edges += 1;
            let at_root = name.starts_with(char::is_uppercase);
            if name == module || at_root || FREE.contains(&name.as_str()) {
                continue;
            }
            match (own, layer_of(&name)) {
                (Some(own), Some(other)) if other < own => {}
                (_, None) => broken.push(format!(
                    "{}:{line}: `crate::{name}` has no place in the order",
                    source.path
                )),
                _ => broken.push(format!(
                    "{}:{line}: `{module}` names `{name}`, which does not stand below it",
                    source.path
                )),
            }
        }
    }
    println!("{edges} paths looked at");
    assert!(
        edges > 0,
        "no `crate::` path was found: the reader is blind"
    );
    report("the layers point downwards only", &broken);
}

#[test]
fn every_source_file_says_what_it_is() {
    let broken: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|dir| rust_files(dir))
        .filter(|source| {
            !source
                .lines
                .first()
                .is_some_and(|line| line.starts_with("//!"))
        })
        .map(|source| source.path)
        .collect();
    report("each file opens with `//!`", &broken);
}

#[test]
fn no_source_file_is_too_long() {
    let broken: Vec<String> = rust_files("src")
        .iter()
        .filter(|source| source.lines.len() > LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.lines.len()))
        .collect();
    report(
        &format!("no file of src is longer than {LINES_MAX} lines"),
        &broken,
    );
}

/// Every line of code under `dirs` that `wrong` objects to. `wrong` is told whether it is test code.
fn lines_where(dirs: &[&str], wrong: impl Fn(&Source, &str, bool) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for source in dirs.iter().flat_map(|dir| rust_files(dir)) {
        for (at, line) in source.lines.iter().enumerate() {
            if wrong(&source, &code(line), at >= source.tests_from) {
                broken.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    broken
}

#[test]
fn unsafe_stands_in_two_files_only() {
    let broken = lines_where(&["src", "tests"], |source, line, _| {
        has_word(line, "unsafe") && !UNSAFE.contains(&source.path.as_str())
    });
    report(
        "`unsafe` stands only in the two files named for it",
        &broken,
    );
    let unexplained: Vec<String> = rust_files("src")
        .iter()
        .filter(|source| UNSAFE.contains(&source.path.as_str()))
        .filter(|source| {
            let blocks = source
                .lines
                .iter()
                .filter(|line| code(line).contains("unsafe {"))
                .count();
            let reasons = source
                .lines
                .iter()
                .filter(|line| line.trim_start().starts_with("// SAFETY:"))
                .count();
            reasons < blocks
        })
        .map(|source| source.path.clone())
        .collect();
    report("each `unsafe` block has its SAFETY comment", &unexplained);
}

#[test]
fn one_file_names_fuser() {
    let broken = lines_where(&["src"], |source, line, _| {
        has_word(line, "fuser") && source.path != FUSER
    });
    report("only src/fuse/dev.rs names fuser", &broken);
}

#[test]
fn nothing_in_src_panics_on_purpose() {
    let words = [
        ".unwrap()",
        ".expect(",
        "todo!",
        "unimplemented!",
        "dbg!",
        "panic!(",
    ];
    let broken = lines_where(&["src"], |_, line, test| {
        !test && words.iter().any(|word| line.contains(word))
    });
    report("no unwrap, expect, todo or panic in src", &broken);
}

#[test]
fn nobody_sleeps() {
    // Spelled in two halves, so that this file does not find itself.
    let word = ["thread::", "sleep"].concat();
    let broken = lines_where(&["src", "tests"], |_, line, _| line.contains(&word));
    report(
        "code and tests wait on conditions, they do not sleep",
        &broken,
    );
}

/// All documents a user reads, as one text.
fn documents() -> String {
    let mut text = fs::read_to_string(root().join("README.md")).unwrap_or_default();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "md") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    text
}

#[test]
fn the_documents_name_every_verb() {
    let help = Command::new(env!("CARGO_BIN_EXE_caskfs"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|line| line.trim() != "Commands:")
        .skip(1)
        .take_while(|line| !line.trim().is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(
        !verbs.is_empty(),
        "`caskfs --help` lists no commands:\n{help}"
    );
    println!("{} verbs", verbs.len());
    let documents = documents();
    let missing: Vec<String> = verbs
        .iter()
        .filter(|verb| !has_word(&documents, &format!("caskfs {verb}")))
        .map(|verb| format!("caskfs {verb}"))
        .collect();
    report(
        "README.md or docs/ shows each verb as `caskfs VERB`",
        &missing,
    );
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let design = fs::read_to_string(root().join("docs/DESIGN.md")).unwrap_or_default();
    let missing: Vec<String> = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| !name.starts_with('#') && !has_word(&design, name))
        .collect();
    report("docs/DESIGN.md says why each dependency is there", &missing);
}

#[test]
fn every_switch_of_the_tests_is_described() {
    let testing = fs::read_to_string(root().join("docs/TESTING.md")).unwrap();
    let mut missing = Vec::new();
    for source in rust_files("tests") {
        for line in &source.lines {
            for (at, _) in line.match_indices("\"CASKFS_") {
                let name: String = line[at + 1..]
                    .chars()
                    .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                    .collect();
                if name.len() > "CASKFS_".len()
                    && !testing.contains(&name)
                    && !missing.contains(&name)
                {
                    missing.push(name);
                }
            }
        }
    }
    report("docs/TESTING.md describes each CASKFS_ variable", &missing);
}

/// The reader itself: a rule that cannot fail proves nothing.
#[test]
fn the_reader_sees_what_it_must() {
    let source = Source {
        path: "src/wal/x.rs".into(),
        lines: vec![
            "use crate::{tree::{Page, Cursor}, format, Error};".into(),
            "// crate::cli is only named in a comment".into(),
            "let a = crate::cask::open(\"crate::fuse\");".into(),
        ],
        tests_from: 3,
    };
    let names: Vec<String> = crate_paths(&source)
        .into_iter()
        .map(|(line, name)| format!("{line} {name}"))
        .collect();
    assert_eq!(names, ["1 tree", "1 format", "1 Error", "3 cask"]);
    assert!(has_word("an unsafe block", "unsafe") && !has_word("#![allow(unsafe_code)]", "unsafe"));
    assert_eq!(code("a(\"// no\") // yes"), "a(\"\") ");
}
