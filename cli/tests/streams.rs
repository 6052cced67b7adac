//! `stream inspect` and `stream verify` on real streams, whole and damaged.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Run, golden, run, run_with_stdin};

/// Length of a record's header, bytes.
const HEADER: usize = 312;

struct Stream {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Stream {
    fn of(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.zstream");
        fs::write(&path, bytes).unwrap();
        Self { _dir: dir, path }
    }

    fn run(&self, command: &str) -> Run {
        run(&["stream", command, self.path.to_str().unwrap()])
    }

    fn run_json(&self, command: &str) -> Run {
        run(&["stream", command, self.path.to_str().unwrap(), "--json"])
    }
}

/// Where each record of a stream begins.
fn offsets(bytes: &[u8]) -> Vec<u64> {
    let mut reader = zfs_stream::Reader::new();
    let mut rest = bytes;
    let mut offsets = Vec::new();
    while let Some(item) = reader.next(&mut rest).unwrap() {
        offsets.push(item.offset);
    }
    offsets
}

#[test]
fn a_whole_stream_is_verified_from_a_file_and_from_standard_input() {
    let bytes = golden("full-c");
    let run = Stream::of(&bytes).run("verify").ok();
    assert!(run.stdout.contains("whole: 1 snapshot, 179 records"), "{}", run.stdout);
    run_with_stdin(&["stream", "verify", "-"], &bytes).ok();
    let json = Stream::of(&bytes).run_json("verify").ok().json();
    assert_eq!(json["whole"], true);
    assert_eq!(json["records"], 179);
    assert_eq!(json["bytes"], bytes.len());
}

#[test]
fn inspect_counts_the_records_by_type_as_zstream_does() {
    // Counts: README of the streams, made with `zstream dump -v`.
    let json = Stream::of(&golden("full-plain")).run_json("inspect").ok().json();
    let counts = |kind: &str| json["totals"][kind]["records"].as_u64();
    assert_eq!(counts("begin"), Some(1));
    assert_eq!(counts("object"), Some(54));
    assert_eq!(counts("write"), Some(60));
    assert_eq!(counts("free"), Some(62));
    assert_eq!(json["substreams"][0]["to_name"], "tank/g/plain@s1");
    let text = Stream::of(&golden("full-plain")).run("inspect").ok().stdout;
    for word in ["tank/g/plain@s1", "full", "WRITE", "whole"] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
}

#[test]
fn a_package_shows_each_of_its_snapshots() {
    let stream = Stream::of(&golden("incr-multi-I"));
    let text = stream.run("inspect").ok().stdout;
    assert!(text.starts_with("package of 3 snapshots"), "{text}");
    for name in ["@s2", "@s3", "@s4"] {
        assert!(text.contains(name), "`{name}` is not in:\n{text}");
    }
}

#[test]
fn a_flipped_bit_is_found_with_record_and_offset() {
    let mut bytes = golden("full-c");
    let at = offsets(&bytes);
    let (victim, flipped) = (20, at[20] as usize + 100);
    bytes[flipped] ^= 0x10;
    let run = Stream::of(&bytes).run("verify").fails_with(5);
    let expected = format!("record {victim} at byte {}", at[victim]);
    assert!(run.stderr.contains(&expected), "`{expected}` is not in: {}", run.stderr);
    assert!(run.stderr.contains("send the snapshot again"), "{}", run.stderr);
    let json = Stream::of(&bytes).run_json("verify").fails_with(5).json();
    assert_eq!(json["whole"], false);
    assert_eq!(json["verdict"]["record"], victim);
    assert_eq!(json["verdict"]["offset"], at[victim]);
}

#[test]
fn a_flipped_bit_in_a_payload_is_found_at_the_record_that_seals_it() {
    let bytes = golden("full-c");
    let at = offsets(&bytes);
    let with_payload = (1..at.len() - 1).find(|&n| at[n + 1] - at[n] > 2 * HEADER as u64).unwrap();
    let mut bytes = bytes;
    bytes[at[with_payload] as usize + HEADER + 50] ^= 1;
    let run = Stream::of(&bytes).run("verify").fails_with(5);
    let expected = format!("record {} at byte {}", with_payload + 1, at[with_payload + 1]);
    assert!(run.stderr.contains(&expected), "`{expected}` is not in: {}", run.stderr);
}

#[test]
fn a_truncated_stream_is_found_with_record_and_offset_wherever_it_ends() {
    let bytes = golden("incr-c");
    let at = offsets(&bytes);
    for (record, offset) in [(0, at[0]), (7, at[7]), (at.len() - 1, at[at.len() - 1])] {
        for cut in [offset as usize + 1, offset as usize + HEADER - 1] {
            let run = Stream::of(&bytes[..cut]).run("verify").fails_with(5);
            let expected = format!("record {record} at byte {offset}");
            assert!(run.stderr.contains(&expected), "cut at {cut}: {}", run.stderr);
            assert!(run.stderr.contains("cut off"), "{}", run.stderr);
        }
    }
}

#[test]
fn a_damaged_stream_without_seals_is_found_at_its_end() {
    let mut bytes = golden("fuse-full-s1");
    let at = offsets(&bytes);
    let last = at.len() - 1;
    let with_payload = (1..last).find(|&n| at[n + 1] - at[n] > 2 * HEADER as u64).unwrap();
    bytes[at[with_payload] as usize + HEADER + 9] ^= 4;
    let run = Stream::of(&bytes).run("verify").fails_with(5);
    let expected = format!("record {last} at byte {}", at[last]);
    assert!(run.stderr.contains(&expected), "`{expected}` is not in: {}", run.stderr);
}

#[test]
fn inspect_shows_what_it_could_read_of_a_damaged_stream() {
    let bytes = golden("full-c");
    let run = Stream::of(&bytes[..bytes.len() / 2]).run("inspect").fails_with(5);
    assert!(run.stdout.contains("tank/g/plain@s1"), "{}", run.stdout);
    assert!(run.stdout.contains("not complete"), "{}", run.stdout);
}

#[test]
fn what_is_no_stream_at_all_is_said_to_be_none() {
    for bytes in [&b""[..], b"hello", &[0; 4096]] {
        let run = Stream::of(bytes).run("verify").fails_with(5);
        assert!(run.stderr.contains("record 0 at byte 0"), "{}", run.stderr);
    }
    let run = run(&["stream", "verify", "/nowhere/at/all"]).fails_with(1);
    assert!(run.stderr.contains("/nowhere/at/all"), "{}", run.stderr);
    run_dir();
}

fn run_dir() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(&["stream", "verify", dir.path().to_str().unwrap()]).fails_with(1);
    assert!(run.stderr.contains("directory"), "{}", run.stderr);
}
