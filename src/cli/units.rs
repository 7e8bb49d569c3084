//! Sizes, modes, times and identities as people type and read them.

use jiff::Timestamp as JiffTimestamp;
use jiff::tz::TimeZone;

use crate::clock::Timestamp;
use crate::format::FileKind;
use crate::fs::Attr;

/// Parses a size: a number with an optional k, m, g or t (powers of 1024), optionally followed by
/// `iB` or `B`.
///
/// # Errors
/// Why the text is not a size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size such as 4096, 16k or 64M"))?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{text}` has a unit other than k, m, g and t")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is more than fits into 64 bits"))
}

/// Parses permission bits in octal.
///
/// # Errors
/// Why the text is not a mode.
pub fn parse_perm(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|perm| *perm <= 0o7777)
        .ok_or_else(|| format!("`{text}` is not a mode in octal such as 755"))
}

/// File type and permissions as `ls -l` shows them.
pub fn mode_string(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::Fifo => 'p',
        FileKind::CharDevice => 'c',
        FileKind::Directory => 'd',
        FileKind::BlockDevice => 'b',
        FileKind::Regular => '-',
        FileKind::Symlink => 'l',
        FileKind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = attr.perm >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, attr.perm & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// A file kind in one word.
pub fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Fifo => "fifo",
        FileKind::CharDevice => "character device",
        FileKind::Directory => "directory",
        FileKind::BlockDevice => "block device",
        FileKind::Regular => "file",
        FileKind::Symlink => "symbolic link",
        FileKind::Socket => "socket",
    }
}

/// The time in RFC 3339 and UTC; what lies outside the years that it can say, as seconds.
pub fn rfc3339(time: Timestamp) -> String {
    instant(time).map_or_else(|| format!("{}", time.secs), |at| at.to_string())
}

fn instant(time: Timestamp) -> Option<JiffTimestamp> {
    JiffTimestamp::new(time.secs, i32::try_from(time.nanos).ok()?).ok()
}

/// Formats times by a strftime(3) pattern, in local time or GMT.
pub struct TimeFormat {
    pattern: String,
    zone: TimeZone,
}

impl TimeFormat {
    /// A formatter for `pattern`.
    ///
    /// # Errors
    /// Why the pattern is not one.
    pub fn new(pattern: &str, gmt: bool) -> Result<Self, String> {
        let zone = if gmt {
            TimeZone::UTC
        } else {
            TimeZone::system()
        };
        let epoch = JiffTimestamp::UNIX_EPOCH.to_zoned(zone.clone());
        jiff::fmt::strtime::format(pattern, &epoch)
            .map_err(|why| format!("`{pattern}` is not a time format: {why}"))?;
        let pattern = pattern.to_owned();
        Ok(Self { pattern, zone })
    }

    /// The time as text.
    pub fn format(&self, time: Timestamp) -> String {
        instant(time)
            .map(|at| at.to_zoned(self.zone.clone()))
            .and_then(|at| jiff::fmt::strtime::format(&self.pattern, &at).ok())
            .unwrap_or_else(|| time.secs.to_string())
    }
}

/// An identity in the usual 8-4-4-4-12 form.
pub fn uuid_string(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Quotes a word for a shell where it needs it.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("16k", 16 << 10),
            ("16K", 16 << 10),
            ("16KiB", 16 << 10),
            ("64M", 64 << 20),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "k",
            "-1",
            "1.5k",
            "4x",
            "4kk",
            " 4",
            "99999999999999999999",
            "99999999999999t",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_perm("755"), Ok(0o755));
        assert_eq!(parse_perm("01733"), Ok(0o1733));
        assert!(parse_perm("888").is_err());
        assert!(parse_perm("17777").is_err());
    }

    fn attr(kind: FileKind, perm: u32) -> Attr {
        let zero = Timestamp::default();
        Attr {
            ino: 1,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
        }
    }

    #[test]
    fn permissions_look_as_ls_shows_them() {
        assert_eq!(
            mode_string(&attr(FileKind::Directory, 0o1755)),
            "drwxr-xr-t"
        );
        assert_eq!(mode_string(&attr(FileKind::Regular, 0o4640)), "-rwSr-----");
        assert_eq!(mode_string(&attr(FileKind::Symlink, 0o2777)), "lrwxrwsrwx");
    }

    #[test]
    fn times_follow_the_pattern() {
        let gmt = TimeFormat::new("%Y.%m.%d %H:%M:%S", true).unwrap();
        assert_eq!(
            gmt.format(Timestamp::from_secs(1_303_394_644)),
            "2011.04.21 14:04:04"
        );
        assert!(TimeFormat::new("%!", true).is_err());
        assert_eq!(
            rfc3339(Timestamp { secs: 0, nanos: 5 }),
            "1970-01-01T00:00:00.000000005Z"
        );
        assert_eq!(
            rfc3339(Timestamp::from_secs(i64::MAX)),
            i64::MAX.to_string()
        );
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("--files=4096"), "--files=4096");
        assert_eq!(shell_word("edge-3 storage"), "'edge-3 storage'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(
            uuid_string(&[
                0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4e, 0xf0, 0x81, 2, 3, 4, 5, 6, 7, 8
            ]),
            "12345678-9abc-4ef0-8102-030405060708"
        );
    }
}
