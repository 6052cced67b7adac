//! The corpus of the fuzz target, replayed on the stable toolchain; and what seeded it.

mod common;

use std::path::PathBuf;

use common::{Owned, golden, read};
use zfs_stream::fuzzing::fuzz_one;
use zfs_stream::{Part, Record, Seal, Writer};

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/stream")
}

#[test]
fn every_input_of_the_fuzz_corpus_holds() {
    let Ok(dir) = std::fs::read_dir(corpus()) else {
        eprintln!("SKIPPED: no fuzz corpus beside this crate");
        return;
    };
    let mut replayed = 0;
    for entry in dir {
        fuzz_one(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
        replayed += 1;
    }
    assert!(replayed >= 20, "only {replayed} inputs: the corpus is missing");
}

#[test]
fn short_inputs_hold() {
    fuzz_one(&[]);
    for len in 0..3 {
        (0..=u8::MAX).for_each(|byte| fuzz_one(&vec![byte; len]));
    }
}

/// Few records of each type, with short payloads: what a fuzzer can grow from.
fn excerpt(name: &str) -> Vec<Owned> {
    let mut kept = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    for item in read(&golden(name)) {
        let count: &mut u32 = seen.entry(item.record.kind()).or_default();
        let body = item.part == Part::Body;
        if !body || (*count < 2 && item.payload.len() <= 1024) {
            kept.push(item);
            *count += u32::from(body);
        }
    }
    kept
}

fn write(items: &[Owned], seal: Seal) -> Vec<u8> {
    let mut writer = Writer::new(seal);
    let mut out = vec![20]; // the first byte sets the size of the pieces
    for item in items {
        writer.record(&item.record, &item.payload, &mut out).expect("what was read");
    }
    out
}

#[test]
#[ignore = "writes fuzz/corpus/stream anew"]
fn seed_the_fuzz_corpus() {
    let put =
        |name: String, bytes: &[u8]| std::fs::write(corpus().join(name), bytes).expect("written");
    let names = [
        "zvol-incr",
        "raw-incr",
        "large-dnode",
        "large-dnode-Lec",
        "redacted",
        "full-p",
        "incr-multi-I",
        "incr-empty",
        "comp-zle-c",
        "resume-part2",
        "fuse-incr-empty",
    ];
    for name in names {
        let items = excerpt(name);
        let sealed = write(&items, Seal::PerRecord);
        let open = write(&items, Seal::EndOnly);
        put(format!("{name}-sealed"), &sealed);
        put(format!("{name}-end-only"), &open);
        put(format!("{name}-cut"), &open[..open.len() * 2 / 3]);
        let mut flipped = open.clone();
        let at = flipped.len() / 2;
        flipped[at] ^= 0x10;
        put(format!("{name}-flipped"), &flipped);
        if let Some(Record::Begin(_)) = items.first().map(|item| &item.record)
            && !items[0].payload.is_empty()
        {
            put(format!("{name}-nvlist"), &[&[0], &items[0].payload[..]].concat());
        }
    }
    let token = std::fs::read(common::golden_dir().join("resume-token.txt")).expect("the token");
    put("resume-token".into(), token.trim_ascii());
}
