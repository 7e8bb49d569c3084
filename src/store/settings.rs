//! The settings: one table of names, values and built-in defaults, and their typed form.
//!
//! A setting is an extended attribute `user.cask.NAME` of a file or directory; where it is looked up
//! is the matter of [`walk`](super::walk). Two rules hold for every value that is stored: it parses,
//! and what it asks for is built. So no reader of a stored value ever meets nonsense, and no user is
//! told yes by a filesystem that then does something else.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::format::key::Number;

/// What the names of the settings begin with as extended attributes.
pub const PREFIX: &[u8] = b"user.cask.";

/// The attribute of the root directory that holds the cask's label.
pub const LABEL: &[u8] = b"user.cask.label";
/// The attribute of the root directory that holds the most inodes, or `none`.
pub const FILES: &[u8] = b"user.cask.files";
/// The attribute of the root directory that holds the number of blocks, or `none`.
pub const BLOCKS: &[u8] = b"user.cask.blocks";

/// One setting.
pub struct Setting {
    /// Its name, without `user.cask.`.
    pub name: &'static str,
    /// The built-in default.
    pub default: &'static str,
    /// The values it takes, for people.
    pub values: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// Whether values other than the default have an effect yet.
    built: bool,
    /// Said when a value is refused because it is not built.
    refusal: &'static str,
    /// Why a value is bad.
    check: fn(&str) -> Result<(), &'static str>,
}

macro_rules! setting {
    ($name:literal, $default:literal, $built:expr, $check:expr, $values:literal, $about:literal) => {
        Setting {
            name: $name,
            default: $default,
            values: $values,
            about: $about,
            built: $built,
            refusal: concat!("this version has only ", $name, "=", $default),
            check: $check,
        }
    };
}

/// Every setting, in the order in which they are listed.
#[rustfmt::skip]
static TABLE: &[Setting] = &[
    setting!("mode", "plain", true, |v| one_of(v, &["plain", "log", "value"]),
        "plain, log, value", "how writes land: as on ext4, append only, replaced at close"),
    setting!("record", "\\n", true, |v| record_delimiter(v).map(drop),
        "one byte, as it is or as \\n, \\t, \\0, \\xHH; none", "what ends a record"),
    setting!("field", "|", true, |v| field_delimiter(v).map(drop),
        "1 to 16 bytes, with \\n, \\t, \\0, \\xHH", "what stands between the fields of a record"),
    setting!("escape", "hex", true, |v| one_of(v, &["hex", "percent", "backslash", "none"]),
        "hex, percent, backslash, none", "how caskfs insert and caskfs fields hide a delimiter in data"),
    setting!("flush", "1", true, |v| one_of(v, BOOL),
        "0, 1", "1: a returned write is in the container file"),
    setting!("sync", "0", true, |v| one_of(v, BOOL),
        "0, 1", "1: a returned write is durable on disk"),
    setting!("roll-on", "rename", true, |v| one_of(v, &["rename", "reopen"]),
        "rename, reopen", "what cuts a log under its writers"),
    setting!("roll", "never", true, |v| Period::parse(v).map(drop).ok_or("it is none of them"),
        "never, hour, day, month, year", "when the clock cuts a log (UTC)"),
    setting!("roll-lines", "0", true, |v| count(v).map(drop),
        "a number; 0 is off", "records after which a log is cut"),
    setting!("roll-size", "0", true, |v| size(v).map(drop),
        "bytes, with k, m, g, t; 0 is off", "bytes after which a log is cut"),
    setting!("roll-name", "%n.%Y%m%d", true, roll_name,
        "a file name with %n %Y %m %d %H %M %S %%", "what a segment is called when caskfs cuts"),
    setting!("keep", "all", true, |v| keep(v).map(drop),
        "all, or a number from 1", "segments that stay, the live one included"),
    setting!("ttl", "none", true, |v| ttl_secs(v).map(drop),
        "none, or e.g. 30m, 7D (Y M D h m s)", "age at which a file, or a segment of a log, is removed"),
    setting!("limit", "none", true, |v| limit(v, size).map(drop),
        "none, or bytes with k, m, g, t", "bytes below the directory"),
    setting!("limit-files", "none", true, |v| limit(v, count).map(drop),
        "none, or a number", "files below the directory"),
    setting!("truncate", "read", true, |v| one_of(v, &["read", "posix"]),
        "read, posix", "what ftruncate to 0 drops from a log: what was read, or everything"),
    setting!("header", "none", true, any_text,
        "none, or a line", "first line of each new segment"),
    setting!("wipe", "0", true, |v| one_of(v, BOOL),
        "0, 1", "1: what is freed is overwritten, in the whole cask"),
    setting!("assemble", "0", true, |v| one_of(v, BOOL),
        "0, 1", "1: a record that comes in pieces is appended whole"),
    setting!("columns", "none", false, columns,
        "none, or name:TYPE,name:TYPE(n),...", "the columns of a table"),
    setting!("key", "none", false, any_text,
        "none, auto, or column names or positions", "the key of a table"),
    setting!("check", "0", false, |v| one_of(v, BOOL),
        "0, 1", "1: a row that does not fit the columns is refused"),
    setting!("names", "posix", false,
        |v| one_of(v, &["posix", "mysql", "cassandra", "index", "portable", "ser"]),
        "posix, mysql, cassandra, index, portable, ser", "which file and column names are allowed"),
    setting!("seal", "off", false, |v| one_of(v, &["off", "on"]),
        "off, on", "a chain of hashes over the records"),
    setting!("id-width", "1", false,
        |v| if (1..=20).contains(&count(v)?) { Ok(()) } else { Err("it is from 1 to 20") },
        "1 to 20", "digits of a record's id"),
    setting!("stamp", "off", false, |v| one_of(v, &["off", "on"]),
        "off, on", "whether a record gets a time stamp"),
    setting!("type", "str", false, |v| one_of(v, &["str", "int"]),
        "str, int", "what a value may be"),
    setting!("disabled", "0", false, |v| one_of(v, BOOL),
        "0, 1", "1: the attribute is passed over"),
];

const BOOL: &[&str] = &["0", "1"];

/// Every setting, in the order in which they are listed.
pub fn table() -> &'static [Setting] {
    TABLE
}

impl Setting {
    /// The setting of this name (without `user.cask.`).
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none.
    pub fn named(name: &[u8]) -> Result<&'static Self> {
        TABLE
            .iter()
            .find(|s| s.name.as_bytes() == name)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "there is no setting `{}`",
                    String::from_utf8_lossy(name)
                ))
            })
    }

    /// Whether values other than the default have an effect in this version.
    pub fn is_built(&self) -> bool {
        self.built
    }

    /// Whether `value` may be stored.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason when it does not parse; [`Error::NotSupported`] when what
    /// it asks for is not built.
    pub fn accept(&self, value: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(value).map_err(|_| self.bad(value, "it is not UTF-8"))?;
        (self.check)(text).map_err(|why| self.bad(value, why))?;
        if self.built || text == self.default {
            Ok(())
        } else {
            Err(Error::NotSupported(self.refusal))
        }
    }

    fn bad(&self, value: &[u8], why: &str) -> Error {
        Error::invalid(format!(
            "{}: `{}` is not a value: {why} (values: {})",
            self.name,
            String::from_utf8_lossy(value).escape_debug(),
            self.values
        ))
    }
}

/// The write discipline of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As on ext4.
    #[default]
    Plain,
    /// Append only; write handles follow the name.
    Log,
    /// The content is replaced in one step when the writer closes.
    Value,
}

/// How often the clock cuts a log, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Each hour.
    Hour,
    /// Each day.
    Day,
    /// Each month.
    Month,
    /// Each year.
    Year,
}

impl Period {
    /// Parses `roll`; the inner `None` is `never`, the outer what is no value.
    fn parse(text: &str) -> Option<Option<Self>> {
        Some(match text {
            "never" => None,
            "hour" => Some(Self::Hour),
            "day" => Some(Self::Day),
            "month" => Some(Self::Month),
            "year" => Some(Self::Year),
            _ => return None,
        })
    }

    /// Which hour, day, month or year a time lies in; ascends with the time.
    pub fn index(self, time: Timestamp) -> i64 {
        const HOUR: i64 = 3600;
        let date = || {
            let time = jiff::Timestamp::from_second(time.secs).unwrap_or(jiff::Timestamp::MAX);
            TimeZone::UTC.to_datetime(time).date()
        };
        match self {
            Self::Hour => time.secs.div_euclid(HOUR),
            Self::Day => time.secs.div_euclid(24 * HOUR),
            Self::Month => i64::from(date().year()) * 12 + i64::from(date().month()),
            Self::Year => i64::from(date().year()),
        }
    }
}

/// What may stand below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The directory.
    pub dir: Number,
    /// Bytes of content; `None` for any number.
    pub bytes: Option<u64>,
    /// Files, directories among them; `None` for any number.
    pub files: Option<u64>,
}

impl Bound {
    /// What the settings that stand on a directory bound there, given by full name and value.
    pub fn of(dir: Number, own: &[(Vec<u8>, Vec<u8>)]) -> Option<Self> {
        let value = |wanted: &[u8]| {
            let (_, value) = own
                .iter()
                .find(|(name, _)| name.strip_prefix(PREFIX) == Some(wanted))?;
            std::str::from_utf8(value).ok()
        };
        let bound = Self {
            dir,
            bytes: value(b"limit").and_then(|v| limit(v, size).ok()?),
            files: value(b"limit-files").and_then(|v| limit(v, count).ok()?),
        };
        (bound.bytes.is_some() || bound.files.is_some()).then_some(bound)
    }
}

/// The settings that decide how a write lands, resolved for one file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The write discipline.
    pub mode: Mode,
    /// The byte that ends a record; `None` when records are not told apart.
    pub record: Option<u8>,
    /// A returned write is in the container file.
    pub flush: bool,
    /// A returned write is durable on disk.
    pub sync: bool,
    /// Truncation of a log to zero spares what the truncating handle has not read.
    pub keep_unread: bool,
    /// A log's writers stay with their file until a rotation is asked for.
    pub reopen: bool,
    /// When the clock cuts a log; `None` for never.
    pub roll: Option<Period>,
    /// Records after which a log is cut; 0 for never.
    pub roll_lines: u64,
    /// Bytes after which a log is cut; 0 for never.
    pub roll_size: u64,
    /// Segments that stay, the live one included; `None` for all.
    pub keep: Option<u64>,
    /// Age in seconds at which a segment is removed; `None` for never.
    pub ttl: Option<u64>,
    /// The first line of each new segment, without what ends it.
    pub header: Option<Arc<[u8]>>,
    /// A record that comes in pieces is appended when it is whole.
    pub assemble: bool,
    /// What the file gives up is overwritten before an fsync of it returns.
    pub wipe: bool,
    /// What bounds the content of the directories that lead here. All of them hold.
    pub bounds: Vec<Bound>,
}

impl Default for Effective {
    fn default() -> Self {
        Self {
            mode: Mode::Plain,
            record: Some(b'\n'),
            flush: true,
            sync: false,
            keep_unread: true,
            reopen: false,
            roll: None,
            roll_lines: 0,
            roll_size: 0,
            keep: None,
            ttl: None,
            header: None,
            assemble: false,
            wipe: false,
            bounds: Vec::new(),
        }
    }
}

impl Effective {
    /// The settings with `name` set to `value`. A value that does not parse (it was stored by
    /// another version) changes nothing.
    #[must_use]
    pub fn with(mut self, name: &[u8], value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).unwrap_or_default();
        match (name, text) {
            (b"mode", "plain") => self.mode = Mode::Plain,
            (b"mode", "log") => self.mode = Mode::Log,
            (b"mode", "value") => self.mode = Mode::Value,
            (b"record", text) => self.record = record_delimiter(text).unwrap_or(self.record),
            (b"flush", "0" | "1") => self.flush = text == "1",
            (b"sync", "0" | "1") => self.sync = text == "1",
            (b"roll-on", "rename" | "reopen") => self.reopen = text == "reopen",
            (b"truncate", "read" | "posix") => self.keep_unread = text == "read",
            (b"roll", text) => self.roll = Period::parse(text).unwrap_or(self.roll),
            (b"roll-lines", text) => self.roll_lines = count(text).unwrap_or(self.roll_lines),
            (b"roll-size", text) => self.roll_size = size(text).unwrap_or(self.roll_size),
            (b"keep", text) => self.keep = keep(text).unwrap_or(self.keep),
            (b"ttl", text) => self.ttl = ttl_secs(text).unwrap_or(self.ttl),
            (b"assemble", "0" | "1") => self.assemble = text == "1",
            (b"wipe", "0" | "1") => self.wipe = text == "1",
            (b"header", "none") => self.header = None,
            (b"header", text) => self.header = Some(text.as_bytes().into()),
            _ => {}
        }
        self
    }

    /// Whether a log is cut when it holds so many bytes or records.
    pub fn is_cut_by_amount(&self) -> bool {
        self.roll_lines > 0 || self.roll_size > 0
    }

    /// The line that a log begins with, whole; empty when there is none.
    pub fn first_line(&self) -> Vec<u8> {
        let mut line = self.header.as_deref().unwrap_or_default().to_vec();
        if !line.is_empty() {
            line.extend(self.record);
        }
        line
    }
}

/// Parses `record`: the byte that ends a record, `None` for `none`.
///
/// # Errors
/// Why the text is not a value.
pub fn record_delimiter(text: &str) -> Result<Option<u8>, &'static str> {
    if text == "none" {
        return Ok(None);
    }
    match unescape(text)?.as_slice() {
        [byte] => Ok(Some(*byte)),
        _ => Err("it is exactly one byte"),
    }
}

/// Parses `field`: the bytes between two fields.
///
/// # Errors
/// Why the text is not a value.
pub fn field_delimiter(text: &str) -> Result<Vec<u8>, &'static str> {
    let bytes = unescape(text)?;
    if (1..=16).contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err("it is 1 to 16 bytes")
    }
}

/// Parses `ttl`: seconds, `None` for `none`. A year has 365 days and a month 30.
///
/// # Errors
/// Why the text is not a value.
pub fn ttl_secs(text: &str) -> Result<Option<u64>, &'static str> {
    if text == "none" {
        return Ok(None);
    }
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.chars().next() {
            Some('Y') => 365 * 86_400,
            Some('M') => 30 * 86_400,
            Some('D') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') | None => 1,
            Some(_) => return Err("its units are Y, M, D, h, m and s"),
        };
        let part = count(number)?
            .checked_mul(unit)
            .ok_or("it is too long a time")?;
        total = total.checked_add(part).ok_or("it is too long a time")?;
        rest = tail.get(1..).unwrap_or_default();
    }
    if total == 0 {
        Err("it is longer than 0 s")
    } else {
        Ok(Some(total))
    }
}

fn one_of(value: &str, allowed: &[&str]) -> Result<(), &'static str> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        Err("it is none of them")
    }
}

fn count(value: &str) -> Result<u64, &'static str> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it is not a number");
    }
    value.parse().map_err(|_| "it is too large a number")
}

/// Parses `keep`: how many segments stay, `None` for all.
fn keep(value: &str) -> Result<Option<u64>, &'static str> {
    match value {
        "all" => Ok(None),
        _ => match count(value)? {
            0 => Err("it is 1 or more"),
            segments => Ok(Some(segments)),
        },
    }
}

/// Parses `limit` and `limit-files`: `None` for `none`.
fn limit(
    value: &str,
    parse: fn(&str) -> Result<u64, &'static str>,
) -> Result<Option<u64>, &'static str> {
    match value {
        "none" => Ok(None),
        _ => parse(value).map(Some),
    }
}

/// A number of bytes with an optional binary suffix.
fn size(value: &str) -> Result<u64, &'static str> {
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'k' | b'K') => (value.get(..value.len() - 1), 10),
        Some(b'm' | b'M') => (value.get(..value.len() - 1), 20),
        Some(b'g' | b'G') => (value.get(..value.len() - 1), 30),
        Some(b't' | b'T') => (value.get(..value.len() - 1), 40),
        _ => (Some(value), 0),
    };
    count(digits.unwrap_or_default())?
        .checked_mul(1 << shift)
        .ok_or("it is too large a number")
}

fn roll_name(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > 200 || value.contains(['/', '\0']) {
        return Err("it is 1 to 200 bytes without a slash");
    }
    if [".", "..", ".cask"].contains(&value) {
        return Err("no file can have that name");
    }
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c == '%'
            && !matches!(
                chars.next(),
                Some('n' | 'Y' | 'm' | 'd' | 'H' | 'M' | 'S' | '%')
            )
        {
            return Err("after % comes n, Y, m, d, H, M, S or %");
        }
    }
    Ok(())
}

fn columns(value: &str) -> Result<(), &'static str> {
    let named_and_typed = |column: &str| {
        column
            .split_once(':')
            .is_some_and(|(name, kind)| !name.trim().is_empty() && !kind.trim().is_empty())
    };
    if value == "none" || outside_parentheses(value).all(named_and_typed) {
        Ok(())
    } else {
        Err("each column is name:TYPE")
    }
}

/// The parts between commas that do not stand in parentheses.
fn outside_parentheses(value: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    value.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth <= 0
    })
}

fn any_text(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.contains(['\n', '\0']) {
        Err("it is one line and not empty")
    } else {
        Ok(())
    }
}

/// The bytes meant by text with `\n`, `\r`, `\t`, `\0`, `\\` and `\xHH`.
fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "after a backslash comes n, r, t, 0, a backslash or xHH";
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next().ok_or(BAD)? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'0' => 0,
                b'\\' => b'\\',
                b'x' => {
                    let mut digit = || {
                        bytes
                            .next()
                            .and_then(|b| char::from(b).to_digit(16))
                            .ok_or(BAD)
                    };
                    u8::try_from(digit()? * 16 + digit()?).map_err(|_| BAD)?
                }
                _ => return Err(BAD),
            },
            other => other,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_and_accepted() {
        for setting in table() {
            setting.accept(setting.default.as_bytes()).unwrap();
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for setting in table() {
            assert_eq!(
                Setting::named(setting.name.as_bytes()).unwrap().name,
                setting.name
            );
        }
        let mut names: Vec<_> = table().iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table().len());
        assert!(matches!(Setting::named(b"colour"), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_bad_value_is_invalid_and_says_why() {
        for (name, value) in [
            ("mode", "Log"),
            ("mode", ""),
            ("record", "ab"),
            ("record", "\\q"),
            ("field", ""),
            ("flush", "2"),
            ("sync", "yes"),
            ("roll", "week"),
            ("roll-size", "1x"),
            ("roll-size", "99999999t"),
            ("roll-name", "a/b"),
            ("roll-name", "%q"),
            ("roll-name", ".."),
            ("roll-name", ".cask"),
            ("keep", "0"),
            ("keep", "-1"),
            ("ttl", "30q"),
            ("ttl", "0s"),
            ("ttl", "m"),
            ("limit", "lots"),
            ("id-width", "21"),
            ("truncate", "never"),
            ("columns", "id"),
            ("header", "a\nb"),
        ] {
            let error = Setting::named(name.as_bytes())
                .unwrap()
                .accept(value.as_bytes())
                .unwrap_err();
            assert!(
                matches!(error, Error::Invalid(_)),
                "{name}={value}: {error}"
            );
            assert!(error.to_string().starts_with(name), "{error}");
        }
        assert!(matches!(
            Setting::named(b"mode").unwrap().accept(b"\xff"),
            Err(Error::Invalid(_))
        ));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (name, value) in [
            ("stamp", "on"),
            ("seal", "on"),
            ("columns", "id:BIGINT,sip:DECIMAL(10,2)"),
        ] {
            let error = Setting::named(name.as_bytes())
                .unwrap()
                .accept(value.as_bytes())
                .unwrap_err();
            assert!(
                matches!(error, Error::NotSupported(_)),
                "{name}={value}: {error}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_period_changes_at_its_boundary_and_not_a_second_before() {
        let at = Timestamp::from_secs;
        for (period, boundary) in [
            (Period::Hour, 1_764_072_000),
            (Period::Day, 1_764_028_800),
            (Period::Month, 1_764_547_200),
            (Period::Year, 1_767_225_600),
            (Period::Day, -86_400),
        ] {
            assert_eq!(
                period.index(at(boundary)),
                period.index(at(boundary - 1)) + 1
            );
            assert_eq!(
                period.index(at(boundary)),
                period.index(at(boundary + 3599))
            );
        }
    }

    #[test]
    fn delimiters_and_times_parse() {
        assert_eq!(record_delimiter("\\n"), Ok(Some(b'\n')));
        assert_eq!(record_delimiter("\n"), Ok(Some(b'\n')));
        assert_eq!(record_delimiter("\\x1e"), Ok(Some(0x1e)));
        assert_eq!(record_delimiter("none"), Ok(None));
        assert_eq!(field_delimiter("\\t|"), Ok(b"\t|".to_vec()));
        assert_eq!(ttl_secs("1h30m"), Ok(Some(5400)));
        assert_eq!(ttl_secs("1800"), Ok(Some(1800)));
        assert_eq!(ttl_secs("7D"), Ok(Some(7 * 86_400)));
        assert_eq!(ttl_secs("none"), Ok(None));
    }

    #[test]
    fn the_typed_form_takes_good_values_and_ignores_bad_ones() {
        let log = Effective::default()
            .with(b"mode", b"log")
            .with(b"record", b"none")
            .with(b"flush", b"0");
        assert_eq!(log.mode, Mode::Log);
        assert_eq!(log.record, None);
        assert!(!log.flush);
        assert_eq!(
            log.clone().with(b"mode", b"nonsense").with(b"ttl", b"3x"),
            log
        );
        let rolls = log
            .clone()
            .with(b"roll", b"day")
            .with(b"roll-lines", b"3")
            .with(b"roll-size", b"2k")
            .with(b"keep", b"7")
            .with(b"header", b"a|b")
            .with(b"record", b"\\n");
        assert_eq!(rolls.roll, Some(Period::Day));
        assert_eq!((rolls.roll_lines, rolls.roll_size), (3, 2048));
        assert_eq!(rolls.keep, Some(7));
        assert_eq!(log.clone().with(b"ttl", b"1h30").ttl, Some(3630));
        assert_eq!(rolls.first_line(), b"a|b\n");
        assert_eq!(rolls.clone().with(b"keep", b"0"), rolls);
        assert_eq!(rolls.with(b"keep", b"all").keep, None);
        assert!(log.clone().with(b"roll-on", b"reopen").reopen);
        assert!(!log.with(b"truncate", b"posix").keep_unread);
    }
}
