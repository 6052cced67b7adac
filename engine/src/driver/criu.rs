//! What CRIU leaves beside its images: its statistics, and its words when it fails.
//!
//! Owns: reading `stats-dump`, `stats-restore` and logs. Leaves to others: running it, which a runtime does.
//! The form of the statistics: criu/images `stats.proto` and `criu/include/magic.h`.

use std::fs;
use std::path::Path;

use super::Part;

/// First word of an image that is about a whole service and not one process.
const SERVICE_MAGIC: u32 = 0x5510_5940;

/// What statistics begin with.
const STATS_MAGIC: u32 = 0x5709_3306;

/// Most bytes of a log that are looked through.
const LOG_BYTES: usize = 1 << 20;

/// Most lines of a log that are quoted.
const QUOTED: usize = 3;

/// Fields of `DumpStatsEntry`, microseconds.
const DUMP: [(u64, &str); 4] =
    [(1, "criu freeze"), (2, "criu frozen"), (3, "criu read memory"), (4, "criu write memory")];

/// Fields of `RestoreStatsEntry`, microseconds.
const RESTORE: [(u64, &str); 2] = [(3, "criu fork"), (4, "criu restore")];

/// The parts that a file of statistics tells of; none where it cannot be read: nothing hangs on them.
pub(super) fn parts(file: &Path) -> Vec<Part> {
    let Ok(bytes) = fs::read(file) else { return Vec::new() };
    parse(&bytes).unwrap_or_default()
}

fn parse(bytes: &[u8]) -> Option<Vec<Part>> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    let mut at = 0;
    if word(at)? == SERVICE_MAGIC {
        at += 4;
    }
    if word(at)? != STATS_MAGIC {
        return None;
    }
    let length = usize::try_from(word(at + 4)?).ok()?;
    let from = at + 8;
    let entry = bytes.get(from..from.checked_add(length)?)?;
    let mut parts = Vec::new();
    for (number, value) in fields(entry) {
        let (Field::Bytes(inner), names) =
            (value, if number == 1 { &DUMP[..] } else { &RESTORE[..] })
        else {
            continue;
        };
        for (number, value) in fields(inner) {
            let known = names.iter().find(|(known, _)| *known == number);
            if let (Some((_, name)), Field::Number(micros)) = (known, value) {
                parts.push(Part { name, ms: micros.div_ceil(1000) });
            }
        }
    }
    Some(parts)
}

#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message of protobuf, as far as they can be read; those of fixed length are left out.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = number(bytes) {
        let value = match key & 7 {
            0 => number(rest).map(|(value, rest)| (Some(Field::Number(value)), rest)),
            2 => number(rest).and_then(|(length, rest)| {
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                Some((Some(Field::Bytes(value)), rest))
            }),
            1 => rest.get(8..).map(|rest| (None, rest)),
            5 => rest.get(4..).map(|rest| (None, rest)),
            _ => None,
        };
        let Some((value, rest)) = value else { break };
        found.extend(value.map(|value| (key >> 3, value)));
        bytes = rest;
    }
    found
}

/// A number of seven bits a byte, the low ones first.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value: u64 = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index * 7).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

/// The errors at the end of a log, for a person.
pub(super) fn errors(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(LOG_BYTES);
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    let mut lines: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
    lines.drain(..lines.len().saturating_sub(QUOTED));
    let words: Vec<&str> =
        lines.iter().map(|line| line.split_once("Error").map_or(*line, |(_, rest)| rest)).collect();
    words.join("; ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_and_anything_else_is_none() {
        // One dump of CRIU 3.17: freezing 1049 µs, frozen 39012, memory 5431 and 4019, then pages.
        let dump = [
            0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57, 0x11, 0, 0, 0, 0x0a, 0x0f, 0x08, 0x99,
            0x08, 0x10, 0xe4, 0xb0, 0x02, 0x18, 0xb7, 0x2a, 0x20, 0xb3, 0x1f, 0x28, 0x05,
        ];
        let parts: Vec<(&str, u64)> =
            parse(&dump).unwrap().iter().map(|part| (part.name, part.ms)).collect();
        assert_eq!(
            parts,
            [
                ("criu freeze", 2),
                ("criu frozen", 40),
                ("criu read memory", 6),
                ("criu write memory", 5)
            ]
        );
        for length in 0..dump.len() {
            let _ = parse(&dump[..length]);
        }
        assert_eq!(parse(b"something else"), None);
        assert!(fields(&[0xff; 40]).is_empty());
    }
}
