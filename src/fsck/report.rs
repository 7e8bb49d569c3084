//! What a check found.

use std::ops::Range;

use serde::Serialize;

use super::fix::Fix;
use crate::format::key::Number;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is lost.
    Warning,
    /// Something is lost, or will be.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A short stable word for the kind of finding.
    pub code: &'static str,
    /// Byte offset in the container, where there is one.
    pub offset: Option<u64>,
    /// One sentence.
    pub sentence: String,
    /// The path of the file that it hits, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What `fsck` can do about it.
    #[serde(skip)]
    pub fix: Option<Fix>,
    /// The blocks of a content that it is about.
    #[serde(skip)]
    pub part: Option<Part>,
}

impl Finding {
    fn new(severity: Severity, code: &'static str, offset: Option<u64>, sentence: String) -> Self {
        Self {
            severity,
            code,
            offset,
            sentence,
            path: None,
            fix: None,
            part: None,
        }
    }
}

/// Blocks of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The content.
    pub content: Number,
    /// Its blocks.
    pub blocks: Range<u64>,
}

/// What a check found, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Findings beyond the first thousand of a kind, which are counted only.
    pub more: u64,
    /// Files that are no directories.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Bytes of all regular files, by their sizes.
    pub bytes: u64,
    /// Pages of the tree.
    pub pages: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Findings of one kind that are listed.
    #[serde(skip)]
    pub listed: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            findings: Vec::new(),
            more: 0,
            files: 0,
            directories: 0,
            bytes: 0,
            pages: 0,
            data_blocks: 0,
            listed: LISTED,
        }
    }
}

/// Findings of one kind that are listed, unless all are asked for.
const LISTED: usize = 1000;

impl Report {
    /// Adds a finding.
    pub fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        offset: Option<u64>,
        sentence: String,
    ) {
        self.add_fixable(severity, code, offset, sentence, None);
    }

    /// Adds a finding about which something can be done.
    pub fn add_fixable(
        &mut self,
        severity: Severity,
        code: &'static str,
        offset: Option<u64>,
        sentence: String,
        fix: Option<Fix>,
    ) {
        self.list(Finding {
            fix,
            ..Finding::new(severity, code, offset, sentence)
        });
    }

    /// Adds a finding about a part of a content.
    pub fn add_part(
        &mut self,
        severity: Severity,
        code: &'static str,
        offset: Option<u64>,
        sentence: String,
        part: Part,
    ) {
        self.list(Finding {
            part: Some(part),
            ..Finding::new(severity, code, offset, sentence)
        });
    }

    fn list(&mut self, finding: Finding) {
        let code = finding.code;
        let same = || self.findings.iter().filter(|f| f.code == code).count();
        if self.findings.len() < self.listed || same() < self.listed {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether anything worse than a warning was found.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
    }
}
