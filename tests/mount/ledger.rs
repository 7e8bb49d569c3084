//! Numbered, checksummed lines, and the book that says which are lost, doubled, torn or late.
//!
//! A line is `W<writer>.<epoch> <number> <filler> <crc>`: any byte that is missing, added or changed
//! shows in the checksum, any line that is missing, twice or out of place in the number.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead;

/// Which writer, in which life.
pub type Who = (u32, u32);

/// How the lines of one writer are counted.
#[derive(Default)]
struct Account {
    last: u64,
    lines: u64,
    gaps: Vec<(u64, u64)>,
}

/// The book of all lines read so far, in the order in which they are read.
#[derive(Default)]
pub struct Ledger {
    accounts: BTreeMap<Who, Account>,
    lines: u64,
    torn: u64,
    doubled: u64,
    disordered: u64,
    unended: u64,
    notes: Vec<String>,
}

/// What the book says in the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub lines: u64,
    /// Lines whose write returned and that are nowhere.
    pub lost: u64,
    /// Lines with a wrong checksum or shape.
    pub torn: u64,
    /// Lines that are there more than once.
    pub doubled: u64,
    /// Lines that stand after a later line of the same writer.
    pub disordered: u64,
    /// Lines beyond what their writer wrote.
    pub invented: u64,
    /// Segments that end in the middle of a record.
    pub unended: u64,
    pub notes: Vec<String>,
}

/// The line of this number, delimiter included.
pub fn line(who: Who, number: u64, filler_max: usize) -> Vec<u8> {
    let (writer, epoch) = who;
    let mut line = format!("W{writer}.{epoch} {number} ").into_bytes();
    let filler =
        (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize % filler_max.max(1) + 1;
    line.extend((0..filler).map(|at| b'a' + ((number as usize).wrapping_add(at * 7) % 26) as u8));
    let crc = crc32c::crc32c(&line);
    line.extend_from_slice(format!(" {crc:08x}\n").as_bytes());
    line
}

/// Who wrote a line and its number; `None` when a byte of it is not as written.
fn parse(line: &[u8]) -> Option<(Who, u64)> {
    let cut = line.len().checked_sub(9)?;
    let (body, tail) = line.split_at(cut);
    let crc = u32::from_str_radix(std::str::from_utf8(tail.strip_prefix(b" ")?).ok()?, 16).ok()?;
    if crc != crc32c::crc32c(body) {
        return None;
    }
    let mut fields = std::str::from_utf8(body).ok()?.split(' ');
    let (writer, epoch) = fields.next()?.strip_prefix('W')?.split_once('.')?;
    Some((
        (writer.parse().ok()?, epoch.parse().ok()?),
        fields.next()?.parse().ok()?,
    ))
}

impl Ledger {
    /// Enters all lines of one segment; answers its length in bytes. The last line of the last
    /// segment of a writer that was killed may be unended (`begun_allowed`).
    pub fn enter(&mut self, name: &str, mut segment: impl BufRead, begun_allowed: bool) -> u64 {
        let mut line = Vec::new();
        let mut length = 0;
        loop {
            line.clear();
            let read = segment
                .read_until(b'\n', &mut line)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            if read == 0 {
                return length;
            }
            length += read as u64;
            if line.pop() != Some(b'\n') {
                if !begun_allowed {
                    self.unended += 1;
                    self.note(format!("{name} ends within a record"));
                }
                return length;
            }
            match parse(&line) {
                None => {
                    self.torn += 1;
                    let text = String::from_utf8_lossy(&line[..line.len().min(160)]).into_owned();
                    self.note(format!("{name}: torn line {text:?}"));
                }
                Some((who, number)) => self.count(name, who, number),
            }
        }
    }

    fn count(&mut self, name: &str, who: Who, number: u64) {
        self.lines += 1;
        let account = self.accounts.entry(who).or_default();
        account.lines += 1;
        let mut remark = None;
        if number == account.last + 1 {
            account.last = number;
        } else if number > account.last {
            remark = Some(format!(
                "{name}: {who:?} jumps from {} to {number}",
                account.last
            ));
            account.gaps.push((account.last + 1, number - 1));
            account.last = number;
        } else if let Some(at) = account
            .gaps
            .iter()
            .position(|(from, to)| (*from..=*to).contains(&number))
        {
            let (from, to) = account.gaps.remove(at);
            account.gaps.extend(
                [(from, number - 1), (number + 1, to)]
                    .into_iter()
                    .filter(|(from, to)| from <= to),
            );
            self.disordered += 1;
        } else {
            self.doubled += 1;
            remark = Some(format!("{name}: {who:?} {number} again"));
        }
        if let Some(remark) = remark {
            self.note(remark);
        }
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < 20 {
            self.notes.push(note);
        }
    }

    /// Closes the book against what each writer knows: `(returned, issued)` lines.
    pub fn close(mut self, written: &BTreeMap<Who, (u64, u64)>) -> Report {
        let mut report = Report {
            lines: self.lines,
            torn: self.torn,
            doubled: self.doubled,
            disordered: self.disordered,
            unended: self.unended,
            ..Report::default()
        };
        for (who, (returned, issued)) in written {
            let account = self.accounts.remove(who).unwrap_or_default();
            let tail = returned.saturating_sub(account.last);
            let holes: u64 = account.gaps.iter().map(|(from, to)| to - from + 1).sum();
            if tail + holes > 0 {
                self.notes.push(format!(
                    "{who:?}: {returned} returned, read up to {}, holes {:?}",
                    account.last, account.gaps
                ));
            }
            report.lost += tail + holes;
            report.invented += account.last.saturating_sub(*issued);
        }
        report.invented += self
            .accounts
            .values()
            .map(|account| account.lines)
            .sum::<u64>();
        report.notes = self.notes;
        report
    }
}

impl Report {
    /// Fails unless every returned line is there once, whole and in order.
    #[track_caller]
    pub fn assert_clean(&self) {
        let faultless = Self {
            lines: self.lines,
            ..Self::default()
        };
        assert!(
            *self == faultless && self.lines > 0,
            "{self}\n{}",
            self.notes.join("\n")
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lines: {} lost, {} torn, {} doubled, {} out of order, {} invented, {} segments unended",
            self.lines,
            self.lost,
            self.torn,
            self.doubled,
            self.disordered,
            self.invented,
            self.unended
        )
    }
}

#[test]
fn the_book_finds_every_fault() {
    let who = (3, 1);
    let book = |numbers: &[u64], returned: u64| {
        let mut ledger = Ledger::default();
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| line(who, *number, 40))
            .collect();
        ledger.enter("test", &bytes[..], false);
        ledger.close(&BTreeMap::from([(who, (returned, returned))]))
    };
    book(&[1, 2, 3], 3).assert_clean();
    assert_eq!(book(&[1, 3], 3).lost, 1);
    assert_eq!(book(&[1, 2], 3).lost, 1);
    assert_eq!(book(&[1, 2, 2, 3], 3).doubled, 1);
    assert_eq!(book(&[1, 3, 2], 3).disordered, 1);
    assert_eq!(
        (book(&[1, 3, 2], 3).lost, book(&[1, 2, 3, 4], 3).invented),
        (0, 1)
    );

    let whole = line(who, 1, 40);
    let mut changed = whole.clone();
    changed[5] ^= 1;
    for torn in [
        &changed[..],
        &whole[1..],
        &[&whole[..8], &whole[..]].concat(),
    ] {
        let mut ledger = Ledger::default();
        ledger.enter("test", torn, false);
        assert_eq!(ledger.close(&BTreeMap::new()).torn, 1);
    }
    let mut ledger = Ledger::default();
    ledger.enter("test", &whole[..whole.len() - 1], false);
    assert_eq!(ledger.close(&BTreeMap::from([(who, (1, 1))])).unended, 1);
}
