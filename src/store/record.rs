//! Records of fields, as `caskfs insert` writes and `caskfs fields` reads them.
//!
//! What hides a delimiter that stands in data is one of the dialects that the flat stores of
//! SIP servers have. Raw appends are never changed; this is for those who ask for it. Invariant: in
//! every dialect but `none` any bytes come back as they were, and a record holds its delimiter once,
//! at its end. For that a percent sign or backslash in data is escaped too, and a newline is never
//! written as such, where the originals leave them.

use super::settings::{field_delimiter, record_delimiter};
use crate::error::{Error, Result};

/// How a delimiter in data is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// `\xHH`, for unprintable bytes too.
    Hex,
    /// `%HH`.
    Percent,
    /// A backslash before it; `\n` for a newline.
    Backslash,
    /// Not at all: data that holds one is refused.
    None,
}

/// How the records of a log are made of fields: the settings `field`, `record` and `escape`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    field: Vec<u8>,
    record: u8,
    escape: Escape,
}

impl Dialect {
    /// The dialect that these values of the settings mean.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no value, and for `record=none`, with which there are no
    /// records.
    pub fn new(field: &str, record: &str, escape: &str) -> Result<Self> {
        let bad = |name: &str, why: &str| Error::invalid(format!("the setting {name}: {why}"));
        let record = record_delimiter(record).map_err(|why| bad("record", why))?;
        let record = record.ok_or_else(|| bad("record", "with none there are no records"))?;
        let field = field_delimiter(field).map_err(|why| bad("field", why))?;
        let (escape, sign) = match escape {
            "hex" => (Escape::Hex, b'\\'),
            "percent" => (Escape::Percent, b'%'),
            "backslash" => (Escape::Backslash, b'\\'),
            "none" => (Escape::None, record),
            _ => return Err(bad("escape", "it is none of hex, percent, backslash, none")),
        };
        if field.contains(&sign) || field.contains(&record) {
            return Err(bad("field", "it holds what escapes, or ends a record"));
        }
        if escape != Escape::None && (record == sign || record.is_ascii_alphanumeric()) {
            return Err(bad("record", "what ends a record may be part of an escape"));
        }
        Ok(Self {
            field,
            record,
            escape,
        })
    }

    /// The byte that ends a record.
    pub fn delimiter(&self) -> u8 {
        self.record
    }

    /// The whole record of these fields; a field that is NULL is written like an empty one.
    ///
    /// # Errors
    /// [`Error::Invalid`] with `escape=none` for a field that holds a delimiter.
    pub fn encode<'a>(
        &self,
        fields: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (index, field) in fields.into_iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(&self.field);
            }
            self.hide(field.unwrap_or_default(), &mut out)
                .map_err(|why| Error::invalid(format!("field {}: {why}", index + 1)))?;
        }
        out.push(self.record);
        Ok(out)
    }

    fn hide(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        for byte in data {
            // Of a delimiter of several bytes each is hidden, so that no two fields make one up.
            let delimits = self.field.contains(byte) || *byte == self.record;
            match self.escape {
                Escape::None if delimits => {
                    return Err("it holds a delimiter, which escape=none cannot hide");
                }
                Escape::Hex if delimits || *byte == b'\\' || !(b' '..=b'~').contains(byte) => {
                    out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                }
                Escape::Percent if delimits || *byte == b'%' => {
                    out.extend_from_slice(format!("%{byte:02X}").as_bytes());
                }
                Escape::Backslash if *byte == b'\n' => out.extend_from_slice(b"\\n"),
                Escape::Backslash
                    if *byte == self.record || delimits && matches!(byte, b'n' | b'x') =>
                {
                    out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                }
                Escape::Backslash if delimits || *byte == b'\\' => out.extend([b'\\', *byte]),
                _ => out.push(*byte),
            }
        }
        Ok(())
    }

    /// The fields of a record, given with or without its delimiter.
    pub fn decode(&self, record: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = record.strip_suffix(&[self.record]).unwrap_or(record);
        let mut fields = vec![Vec::new()];
        let mut field = Vec::new();
        while let Some((byte, after)) = rest.split_first() {
            if let Some(next) = rest.strip_prefix(self.field.as_slice()) {
                if let Some(last) = fields.last_mut() {
                    *last = std::mem::take(&mut field);
                }
                fields.push(Vec::new());
                rest = next;
            } else if let Some((hidden, next)) = self.shown(rest) {
                field.push(hidden);
                rest = next;
            } else {
                field.push(*byte);
                rest = after;
            }
        }
        if let Some(last) = fields.last_mut() {
            *last = field;
        }
        fields
    }

    /// The byte that an escape at the start stands for, and what follows; what is none stands for
    /// itself.
    fn shown<'a>(&self, at: &'a [u8]) -> Option<(u8, &'a [u8])> {
        match (self.escape, at) {
            (Escape::Hex | Escape::Backslash, [b'\\', b'x', rest @ ..])
            | (Escape::Percent, [b'%', rest @ ..]) => hex(rest),
            (Escape::Backslash, [b'\\', b'n', rest @ ..]) => Some((b'\n', rest)),
            (Escape::Backslash, [b'\\', byte, rest @ ..]) => Some((*byte, rest)),
            _ => None,
        }
    }
}

fn hex(digits: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, rest @ ..] = digits else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = digit(*high)? * 16 + digit(*low)?;
    Some((u8::try_from(byte).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dialect(field: &str, escape: &str) -> Dialect {
        Dialect::new(field, "\\n", escape).unwrap()
    }

    fn text(dialect: &Dialect, fields: &[&str]) -> String {
        let fields = fields.iter().map(|field| Some(field.as_bytes()));
        String::from_utf8(dialect.encode(fields).unwrap()).unwrap()
    }

    #[test]
    fn each_dialect_hides_a_delimiter_in_its_way() {
        let fields = ["a|b", "c\nd", "e\\%", "\u{e9}"];
        for (escape, record) in [
            ("hex", "a\\x7cb|c\\x0ad|e\\x5c%|\\xc3\\xa9\n"),
            ("percent", "a%7Cb|c%0Ad|e\\%25|\u{e9}\n"),
            ("backslash", "a\\|b|c\\nd|e\\\\%|\u{e9}\n"),
        ] {
            assert_eq!(text(&dialect("|", escape), &fields), record);
        }
        let none = dialect("|", "none");
        assert_eq!(text(&none, &["a", "b\\"]), "a|b\\\n");
        let refused = none
            .encode([Some(b"a".as_slice()), Some(b"b|")])
            .unwrap_err();
        assert!(refused.to_string().contains("field 2"), "{refused}");
    }

    #[test]
    fn null_is_written_like_an_empty_field() {
        let dialect = dialect(";", "hex");
        let record = dialect
            .encode([Some(b"a".as_slice()), None, Some(b"")])
            .unwrap();
        assert_eq!(record, b"a;;\n");
        assert_eq!(dialect.decode(&record), [b"a".as_slice(), b"", b""]);
    }

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        assert_eq!(
            dialect("|", "hex").decode(b"\\xg1|\\"),
            [b"\\xg1".as_slice(), b"\\"]
        );
        assert_eq!(
            dialect("|", "percent").decode(b"5%|%4"),
            [b"5%".as_slice(), b"%4"]
        );
        assert_eq!(dialect("|", "backslash").decode(b"a\\"), [b"a\\"]);
        assert_eq!(dialect("|", "none").decode(b"\\x7c"), [b"\\x7c"]);
        assert!(Dialect::new("|", "none", "hex").is_err());
        assert!(Dialect::new("|", "\\n", "base64").is_err());
        assert!(Dialect::new("%", "\\n", "percent").is_err());
        assert!(Dialect::new("\\n", "\\n", "none").is_err());
        assert!(Dialect::new("|", "7", "hex").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..6),
            escape in prop_oneof![Just("hex"), Just("percent"), Just("backslash")],
            field in prop_oneof![Just("|"), Just("\\t"), Just("::"), Just("anx"), Just("37")],
            record in prop_oneof![Just("\\n"), Just("\\0"), Just("\\x1e")],
        ) {
            let dialect = Dialect::new(field, record, escape).unwrap();
            let written = dialect.encode(fields.iter().map(|f| Some(f.as_slice()))).unwrap();
            let ends = written.iter().filter(|byte| **byte == dialect.delimiter()).count();
            prop_assert_eq!(ends, 1);
            prop_assert_eq!(dialect.decode(&written), fields);
        }
    }
}
