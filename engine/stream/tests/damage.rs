//! Damage of every kind is found, and said to be where it is.

mod common;

use common::{Owned, golden, names, read, verify};
use zfs_stream::format::SEAL_OFFSET;
use zfs_stream::{HEADER_LEN, Part, Problem, StreamError};

/// Small ones that together hold every record type and both kinds of package.
const SEALED: [&str; 8] = [
    "zvol-incr",
    "incr-clone-origin",
    "raw-incr",
    "large-dnode",
    "large-dnode-Lec",
    "redacted",
    "full-p",
    "repl-R-incr-i",
];
const END_ONLY: [&str; 3] = ["fuse-incr-empty", "fuse-incr-s1-s2", "fuse-package-I"];

/// Positions over the whole stream, and some in every part of every header.
fn positions(items: &[Owned], len: usize) -> Vec<usize> {
    let headers = items.iter().step_by(1 + items.len() / 40).chain(items.iter().rev().take(2));
    let mut at: Vec<usize> = headers
        .flat_map(|item| {
            let from = item.offset as usize;
            [0, 4, 8, 16, 17, 40, 60, 100, 279, 280, 311].map(|byte| from + byte)
        })
        .chain((0..len).step_by(1 + len / 150))
        .collect();
    at.sort_unstable();
    at.dedup();
    at
}

/// The record in which byte `at` lies, and whether it is in its header.
fn place(items: &[Owned], at: usize) -> (usize, bool) {
    let record = items.partition_point(|item| item.offset as usize <= at) - 1;
    (record, at - (items[record].offset as usize) < HEADER_LEN)
}

fn flipped(stream: &mut [u8], at: usize, bit: u32) -> StreamError {
    stream[at] ^= 1 << bit;
    let end = verify(stream);
    stream[at] ^= 1 << bit;
    end.expect_err(&format!("bit {bit} of byte {at} of {} flipped and not noticed", stream.len()))
}

#[test]
fn a_flipped_bit_in_a_sealed_stream_is_found_at_its_record_or_at_the_next_seal() {
    if names().is_empty() {
        return;
    }
    for name in SEALED {
        let mut stream = golden(name);
        let items = read(&stream);
        for (n, at) in positions(&items, stream.len()).into_iter().enumerate() {
            let (record, in_header) = place(&items, at);
            let error = flipped(&mut stream, at, n as u32 % 8);
            // BEGIN carries no seal and a payload is sealed by what follows: both show at the next record.
            let unsealed = matches!(items[record].part, Part::Begin | Part::PackageBegin);
            let latest = if in_header && !unsealed { record } else { record + 1 };
            assert!(
                (record as u64..=latest as u64).contains(&error.record),
                "{name}: byte {at} of record {record} flipped, found as: {error}"
            );
            assert_eq!(
                error.offset, items[error.record as usize].offset,
                "{name}: byte {at}: {error}"
            );
            if let Problem::SealMismatch { suspect_from, suspect_to, .. } = error.problem {
                assert!(
                    (suspect_from..suspect_to).contains(&(at as u64)),
                    "{name}: byte {at}: {error}"
                );
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_stream_with_one_checksum_is_found_before_its_end_is_accepted() {
    if names().is_empty() {
        return;
    }
    for name in END_ONLY {
        let mut stream = golden(name);
        let items = read(&stream);
        for (n, at) in positions(&items, stream.len()).into_iter().enumerate() {
            let (record, _) = place(&items, at);
            let error = flipped(&mut stream, at, n as u32 % 8);
            let closing = items[record..]
                .iter()
                .position(|item| {
                    matches!(item.part, Part::End | Part::PackageHeaderEnd | Part::PackageEnd)
                })
                .expect("an END")
                + record;
            assert!(
                error.record <= closing as u64,
                "{name}: byte {at} of record {record}: {error}"
            );
            if let Problem::EndChecksumMismatch { sealed, begin_offset, .. } = error.problem {
                assert!(!sealed && begin_offset <= at as u64, "{name}: byte {at}: {error}");
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_truncated_at_the_record_that_is_cut() {
    if names().is_empty() {
        return;
    }
    for name in SEALED.into_iter().chain(END_ONLY) {
        let stream = golden(name);
        let items = read(&stream);
        for at in positions(&items, stream.len()) {
            let error = verify(&stream[..at]).expect_err("a cut was not noticed");
            if at == 0 {
                assert_eq!(error.problem, Problem::Empty);
                continue;
            }
            let (record, _) = place(&items, at);
            let Problem::Truncated { have, need } = error.problem else {
                panic!("{name} cut at {at}: {error}")
            };
            assert_eq!(
                (error.record, error.offset),
                (record as u64, items[record].offset),
                "{name} cut at {at}"
            );
            assert_eq!(have, at as u64 - error.offset);
            assert!(
                need > have && (have < HEADER_LEN as u64 || need == record_len(&items[record]))
            );
        }
    }
}

fn record_len(item: &Owned) -> u64 {
    (HEADER_LEN + item.payload.len()) as u64
}

#[test]
fn records_left_out_repeated_or_swapped_are_noticed() {
    if names().is_empty() {
        return;
    }
    for name in ["zvol-incr", "redacted", "fuse-incr-s1-s2"] {
        let stream = golden(name);
        let items = read(&stream);
        let bytes = |n: usize| {
            let from = items[n].offset as usize;
            &stream[from..from + record_len(&items[n]) as usize]
        };
        for n in 1..items.len() - 1 {
            let (before, after) =
                (items[n].offset as usize, (items[n].offset + record_len(&items[n])) as usize);
            let without = [&stream[..before], &stream[after..]].concat();
            assert!(verify(&without).is_err(), "{name} without record {n}");
            let twice = [&stream[..after], &stream[before..]].concat();
            assert!(verify(&twice).is_err(), "{name} with record {n} twice");
            if n + 2 < items.len() && bytes(n) != bytes(n + 1) {
                let behind = after + record_len(&items[n + 1]) as usize;
                let swapped =
                    [&stream[..before], bytes(n + 1), bytes(n), &stream[behind..]].concat();
                assert!(verify(&swapped).is_err(), "{name} with records {n} and the next swapped");
            }
        }
    }
}

/// OpenZFS takes a zero seal for "not sealed" wherever it stands; in a sealed stream that would hide damage.
#[test]
fn a_seal_wiped_out_in_a_sealed_stream_is_noticed() {
    if names().is_empty() {
        return;
    }
    let mut stream = golden("zvol-incr");
    let items = read(&stream);
    let from = items[3].offset as usize;
    stream[from + SEAL_OFFSET..from + HEADER_LEN].fill(0);
    let error = verify(&stream).expect_err("a missing seal");
    assert_eq!((error.record, error.problem), (3, Problem::SealMissing));
}

#[test]
fn bytes_behind_the_end_are_refused() {
    if names().is_empty() {
        return;
    }
    let mut stream = golden("zvol-incr");
    let len = stream.len() as u64;
    stream.push(0);
    let error = verify(&stream).expect_err("one byte too many");
    assert_eq!((error.offset, error.problem), (len, Problem::TrailingBytes));
}

#[test]
fn what_is_no_stream_says_so() {
    let problem = |bytes: &[u8]| verify(bytes).expect_err("not a stream").problem;
    assert_eq!(problem(b""), Problem::Empty);
    assert_eq!(problem(b"hello"), Problem::Truncated { have: 5, need: 312 });
    assert!(matches!(problem(&[0x1F; 400]), Problem::BadMagic { found: 0x1F1F_1F1F_1F1F_1F1F }));
}

#[test]
fn a_reader_stays_at_its_error() {
    let mut reader = zfs_stream::Reader::new();
    let error = reader.next(&mut &[1u8; 400][..]).expect_err("no stream");
    assert_eq!(reader.next(&mut &[][..]).expect_err("still"), error);
    assert_eq!(reader.finish().expect_err("still"), error);
}

#[test]
fn an_error_names_record_byte_and_kind_of_damage() {
    if names().is_empty() {
        return;
    }
    let mut stream = golden("zvol-incr");
    let items = read(&stream);
    let victim = items.iter().position(|item| item.payload.len() > 4096).expect("a WRITE");
    let error = flipped(&mut stream, items[victim].offset as usize + HEADER_LEN + 1000, 3);
    assert_eq!(
        error.to_string(),
        format!(
            "stream record {} at byte {}: damaged: the checksum that seals this record does not match; \
             the damage lies between byte {} and byte {}",
            victim + 1,
            items[victim + 1].offset,
            items[victim].offset + 312,
            items[victim + 1].offset + 312,
        )
    );
}
