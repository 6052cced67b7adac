//! The demo's records: how one looks, the file they are appended to, and the check of what is left of it.
//!
//! Owns: the line format, recovery after a crash, and counting what is missing, doubled or out of place.
//! Leaves to others: serving clients ([`super::workload`]), what was acknowledged ([`super::load`]).
//!
//! One record is one line of [`LINE_BYTES`] bytes:
//!
//! ```text
//! 000000000042 a        d1c2…(32 hex digits) 9f31…(16 hex digits)
//! └ number     └ writer └ payload            └ BLAKE3 of all before it, 8 bytes
//! ```

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The file's name in the volume.
pub(crate) const FILE: &str = "records.log";

/// One record with its line feed.
pub(crate) const LINE_BYTES: usize = NUMBER + 1 + WRITER + 1 + PAYLOAD + 1 + CHECK + 1;

const NUMBER: usize = 12;
const WRITER: usize = 8;
const PAYLOAD: usize = 32;
const CHECK: usize = 16;

/// The largest number that fits a line.
pub(crate) const MAX_NUMBER: u64 = 999_999_999_999;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// The system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A line before the last is no record: more than a crash of the writer can do.
    #[error("{}: line {line} is not a record although others follow it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
}

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Counted from 1 by the client.
    pub(crate) number: u64,
    /// Which node's configuration started the process that wrote it.
    pub(crate) writer: String,
    /// What the client sent.
    pub(crate) payload: String,
}

fn check_of(text: &[u8]) -> String {
    hex(&blake3::hash(text).as_bytes()[..CHECK / 2])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Whether a text can stand in a line as a payload.
pub(crate) fn is_payload(text: &str) -> bool {
    text.len() == PAYLOAD && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a text can stand in a line as a writer.
pub(crate) fn is_writer(text: &str) -> bool {
    (1..=WRITER).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

impl Record {
    /// The line.
    pub(crate) fn line(&self) -> String {
        assert!(
            self.number <= MAX_NUMBER && is_writer(&self.writer) && is_payload(&self.payload),
            "a record that was checked before it got here"
        );
        let mut line =
            format!("{:0NUMBER$} {:<WRITER$} {} ", self.number, self.writer, self.payload);
        let check = check_of(line.as_bytes());
        line.push_str(&check);
        line.push('\n');
        line
    }

    /// Reads a line; `None` if it is not a whole record.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        if text.len() != LINE_BYTES || !text.is_ascii() || !text.ends_with('\n') {
            return None;
        }
        let (body, check) = text[..LINE_BYTES - 1].split_at(LINE_BYTES - 1 - CHECK);
        if check_of(body.as_bytes()) != check {
            return None;
        }
        let number = body[..NUMBER].parse().ok()?;
        let writer = body[NUMBER + 1..NUMBER + 1 + WRITER].trim_end();
        let payload = body[NUMBER + WRITER + 2..].trim_end();
        (is_writer(writer) && is_payload(payload)).then(|| Self {
            number,
            writer: writer.to_owned(),
            payload: payload.to_owned(),
        })
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    last: u64,
}

impl Ledger {
    /// Opens or makes the file in `dir`; what a crash left of a last line is cut off.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub(crate) fn open(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join(FILE);
        let io = |source| LedgerError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let (last, good_bytes) = recover(&path, &file)?;
        file.set_len(good_bytes).map_err(io)?;
        file.seek(SeekFrom::Start(good_bytes)).map_err(io)?;
        file.sync_all().map_err(io)?;
        // The file's name too has to survive.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok(Self { path, file, last })
    }

    /// The number of the last record; 0 for none.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Appends the records that are newer than all that are there, and returns once they are on disk.
    /// What a client sends again after a lost answer is there already and is not written twice.
    ///
    /// # Errors
    /// [`LedgerError::Io`]; how much of it is there is then unknown, so the caller must not go on.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<(), LedgerError> {
        let mut text = String::with_capacity(records.len() * LINE_BYTES);
        for record in records {
            if record.number > self.last {
                text.push_str(&record.line());
                self.last = record.number;
            }
        }
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|source| LedgerError::Io { path: self.path.clone(), source })
    }
}

/// The last number, and how many bytes hold whole records.
fn recover(path: &Path, file: &File) -> Result<(u64, u64), LedgerError> {
    let mut lines = BufReader::new(file);
    let (mut last, mut good_bytes, mut count) = (0, 0, 0);
    let mut line = Vec::with_capacity(LINE_BYTES);
    let mut torn = None;
    loop {
        line.clear();
        let len = lines
            .read_until(b'\n', &mut line)
            .map_err(|source| LedgerError::Io { path: path.to_owned(), source })?;
        if len == 0 {
            return Ok((last, good_bytes));
        }
        count += 1;
        if let Some(line) = torn {
            return Err(LedgerError::Damaged { path: path.to_owned(), line });
        }
        match Record::parse(&line) {
            Some(record) => {
                last = last.max(record.number);
                good_bytes += len as u64;
            }
            None => torn = Some(count),
        }
    }
}

/// A run of records by one writer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Run {
    /// Which node's workload.
    pub(crate) writer: String,
    /// How many records in a row.
    pub(crate) records: u64,
}

/// What is left of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Findings {
    /// Acknowledged by the workload to the client.
    pub(crate) acked: u64,
    /// Of those in the file.
    pub(crate) on_target: u64,
    /// Of those not.
    pub(crate) missing: u64,
    /// In the file although never acknowledged: sent, written, and the answer was lost.
    pub(crate) unanswered: u64,
    /// Times that a record is there again.
    pub(crate) duplicates: u64,
    /// Times that a record stands behind a later one.
    pub(crate) out_of_order: u64,
    /// Lines that are no record, or hold what the client did not send.
    pub(crate) altered: u64,
    /// Who wrote, in the order of the file.
    pub(crate) writers: Vec<Run>,
}

/// Reads the file in `dir` and compares it with what was acknowledged.
///
/// # Errors
/// [`LedgerError::Io`]; damage is in the findings.
pub(crate) fn check(
    dir: &Path,
    acked: &BTreeSet<u64>,
    payload_of: impl Fn(u64) -> String,
) -> Result<Findings, LedgerError> {
    let path = dir.join(FILE);
    let io = |source| LedgerError::Io { path: path.clone(), source };
    let mut lines = BufReader::new(File::open(&path).map_err(io)?);
    let mut findings = Findings { acked: acked.len() as u64, ..Findings::default() };
    let mut seen = BTreeSet::new();
    let mut newest = 0;
    let mut line = Vec::with_capacity(LINE_BYTES);
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(io)? == 0 {
            break;
        }
        let Some(record) = Record::parse(&line) else {
            findings.altered += 1;
            continue;
        };
        if record.payload != payload_of(record.number) {
            findings.altered += 1;
        }
        if !seen.insert(record.number) {
            findings.duplicates += 1;
        } else if record.number < newest {
            findings.out_of_order += 1;
        }
        newest = newest.max(record.number);
        match findings.writers.last_mut() {
            Some(run) if run.writer == record.writer => run.records += 1,
            _ => findings.writers.push(Run { writer: record.writer, records: 1 }),
        }
    }
    findings.on_target = acked.intersection(&seen).count() as u64;
    findings.missing = findings.acked - findings.on_target;
    findings.unanswered = seen.difference(acked).count() as u64;
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Every acknowledged record exactly once, in order, unaltered.
    fn is_good(found: &Findings) -> bool {
        found.acked > 0
            && found.missing == 0
            && found.on_target == found.acked
            && found.duplicates == 0
            && found.out_of_order == 0
            && found.altered == 0
    }

    fn payload(number: u64) -> String {
        hex(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16])
    }

    fn record(number: u64) -> Record {
        Record {
            number,
            writer: if number <= 5 { "a" } else { "b" }.into(),
            payload: payload(number),
        }
    }

    fn dir_with(numbers: impl IntoIterator<Item = u64>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let text: String = numbers.into_iter().map(|n| record(n).line()).collect();
        fs::write(dir.path().join(FILE), text).unwrap();
        dir
    }

    fn findings(numbers: impl IntoIterator<Item = u64>, acked: u64) -> Findings {
        check(dir_with(numbers).path(), &(1..=acked).collect(), payload).unwrap()
    }

    #[test]
    fn a_record_reads_back_and_any_changed_byte_is_noticed() {
        let line = record(42).line();
        assert_eq!(line.len(), LINE_BYTES);
        assert_eq!(Record::parse(line.as_bytes()), Some(record(42)));
        for at in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(Record::parse(&bytes), None, "byte {at}");
        }
        assert_eq!(Record::parse(b""), None);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_next_number_is_known() {
        let dir = dir_with(1..=3);
        let path = dir.path().join(FILE);
        for torn in [1, LINE_BYTES - 1] {
            let mut text = fs::read(&path).unwrap();
            text.truncate(3 * LINE_BYTES);
            text.extend_from_slice(&record(4).line().as_bytes()[..torn]);
            fs::write(&path, text).unwrap();
            let mut ledger = Ledger::open(dir.path()).unwrap();
            assert_eq!(ledger.last(), 3);
            ledger.append(&[record(4)]).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len() as usize, 4 * LINE_BYTES);
        }
    }

    #[test]
    fn damage_before_the_last_line_is_an_error_that_names_the_line() {
        let dir = dir_with(1..=3);
        let path = dir.path().join(FILE);
        let mut text = fs::read(&path).unwrap();
        text[LINE_BYTES + 3] ^= 1;
        fs::write(&path, text).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_is_sent_again_is_not_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.append(&[record(1), record(2)]).unwrap();
        ledger.append(&[record(1), record(2), record(3)]).unwrap();
        let found = check(dir.path(), &(1..=3).collect(), payload).unwrap();
        assert!(is_good(&found), "{found:?}");
    }

    #[test]
    fn a_good_file_is_found_good_and_shows_who_wrote() {
        let found = findings(1..=9, 8);
        assert!(is_good(&found), "{found:?}");
        assert_eq!(found.unanswered, 1);
        let runs: Vec<(&str, u64)> =
            found.writers.iter().map(|run| (run.writer.as_str(), run.records)).collect();
        assert_eq!(runs, [("a", 5), ("b", 4)]);
    }

    #[test]
    fn each_kind_of_loss_is_found() {
        let lost = findings([1, 2, 4], 4);
        assert_eq!((lost.missing, is_good(&lost)), (1, false));
        let doubled = findings([1, 2, 2, 3], 3);
        assert_eq!((doubled.duplicates, is_good(&doubled)), (1, false));
        let swapped = findings([1, 3, 2, 4], 4);
        assert_eq!((swapped.out_of_order, is_good(&swapped)), (1, false));
        assert!(!is_good(&findings([], 0)));

        let dir = dir_with(1..=3);
        let found = check(dir.path(), &(1..=3).collect(), |_| payload(9)).unwrap();
        assert_eq!((found.altered, is_good(&found)), (3, false));
    }
}
