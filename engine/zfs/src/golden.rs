//! What real commands printed (`tests/golden/cli`), each read by our parser or mapped to its error.
//!
//! A file holds `$ command`, `--- stdout`, `--- stderr` and `--- exit N`. `fuse-*` come from zfs-fuse 0.7.0
//! by `make-fuse-cli.sh`, the others from OpenZFS 2.3.9.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use flocker_store::{DatasetName, Guid, StoreError};

use crate::errors::{About, explain};
use crate::parse;
use crate::run::{Ending, Finished};
use crate::send;

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/cli")
}

fn golden(name: &str) -> Finished {
    let path = dir().join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (command, rest) = text.split_once("\n--- stdout\n").unwrap();
    let (stdout, rest) = rest.split_once("--- stderr\n").unwrap();
    let (stderr, exit) = rest.split_once("--- exit ").unwrap();
    Finished {
        command: command.trim_start_matches("$ ").to_owned(),
        ending: Ending::Code(exit.trim().parse().unwrap()),
        stdout: stdout.as_bytes().to_vec(),
        stderr: stderr.trim_end().to_owned(),
    }
}

/// The variant, and the name in it where that is what a planner acts on.
fn summary(error: &StoreError) -> String {
    match error {
        StoreError::NoDataset { dataset } => format!("NoDataset {dataset}"),
        StoreError::NoSnapshot { name } => format!("NoSnapshot {name}"),
        StoreError::Exists { name } => format!("Exists {name}"),
        StoreError::NoBase { base, .. } => format!("NoBase {base}"),
        StoreError::Modified { .. } => "Modified".to_owned(),
        StoreError::BadStream { .. } => "BadStream".to_owned(),
        StoreError::Unsupported { .. } => "Unsupported".to_owned(),
        StoreError::NoSpace { .. } => "NoSpace".to_owned(),
        StoreError::Busy { .. } => "Busy".to_owned(),
        StoreError::Kept { name, by } => format!("Kept {name} by {by}"),
        StoreError::Permission { .. } => "Permission".to_owned(),
        StoreError::Command { .. } => "Command".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Every error there is, with what it has to become.
const ERRORS: &[(&str, &str)] = &[
    ("destroy-held", "Kept tank/g/plain@s1 by tank/g/clone@c1, tank/g/clone"),
    (
        "err-incr-wrong-order",
        "NoSnapshot the given base as an earlier snapshot of the filesystem of tank/g/plain@s1",
    ),
    ("err-no-dataset", "NoDataset tank/nope"),
    ("err-no-snap", "NoSnapshot tank/g/plain@nope"),
    ("err-not-a-stream", "BadStream"),
    ("err-recv-bad-token", "BadStream"),
    ("err-recv-corrupt", "BadStream"),
    ("err-recv-exists", "Exists tank/g/plain"),
    ("err-recv-modified", "Modified"),
    ("err-recv-no-base", "Exists tank/g/rx"),
    ("err-recv-no-parent", "NoDataset tank/none"),
    ("err-recv-over-partial", "Exists tank/g/rt"),
    ("err-recv-truncated", "BadStream"),
    ("err-recv-truncated-s", "BadStream"),
    ("err-recv-wrong-base", "Unsupported"),
    (
        "fuse-err-destroy-children",
        "Kept zfspoolgolda/d 1 by zfspoolgolda/d 1@s:1, zfspoolgolda/d 1@s2, zfspoolgolda/d 1@s3",
    ),
    ("fuse-err-destroy-cloned", "Kept zfspoolgolda/d 1@s2 by zfspoolgolda/clone"),
    // zfs-fuse does not say that it is a hold; the store looks before and after.
    ("fuse-err-destroy-held", "Busy"),
    ("fuse-err-exists-create", "Exists zfspoolgolda/d 1"),
    ("fuse-err-exists-snapshot", "Exists zfspoolgolda/d 1@s2"),
    // The store reads these words before it asks for an error.
    ("fuse-err-hold-twice", "Exists zfspoolgolda/d 1@s2"),
    ("fuse-err-release-none", "Command"),
    ("fuse-err-holds", "Command"),
    (
        "fuse-err-incr-wrong-order",
        "NoSnapshot the given base as an earlier snapshot of the filesystem of zfspoolgolda/d 1@s:1",
    ),
    ("fuse-err-list-p", "Command"),
    ("fuse-err-mount-twice", "Command"),
    ("fuse-err-no-dataset", "NoDataset zfspoolgolda/nope"),
    ("fuse-err-no-pool", "NoDataset nopool/x"),
    ("fuse-err-no-snap", "NoSnapshot zfspoolgolda/d 1@nope"),
    ("fuse-err-no-snap-get", "NoSnapshot zfspoolgolda/d 1@nope"),
    ("fuse-err-no-source", "NoSnapshot @nope"),
    ("fuse-err-no-space-create", "NoSpace"),
    ("fuse-err-no-space-recv", "NoSpace"),
    ("fuse-err-no-space-snapshot", "NoSpace"),
    ("fuse-err-not-a-stream", "BadStream"),
    ("fuse-err-recv-corrupt", "BadStream"),
    ("fuse-err-recv-empty", "BadStream"),
    ("fuse-err-recv-exists", "Exists zfspoolgoldb/x"),
    ("fuse-err-recv-modified", "Modified"),
    ("fuse-err-recv-name-taken", "Exists zfspoolgoldb/x@taken"),
    ("fuse-err-recv-no-base", "NoBase 77"),
    ("fuse-err-recv-no-dataset", "NoDataset zfspoolgoldb/x"),
    ("fuse-err-recv-no-parent", "NoDataset zfspoolgoldb/none/x"),
    ("fuse-err-recv-truncated", "BadStream"),
    ("fuse-err-rollback-newer", "Modified"),
    ("fuse-err-snapshot-no-dataset", "NoDataset zfspoolgolda/nope"),
    ("fuse-err-unmount-busy", "Busy"),
    ("fuse-err-unmount-not-mounted", "Command"),
    ("fuse-err-written", "Command"),
];

#[test]
fn every_error_of_the_commands_becomes_the_typed_error_it_is() {
    for (name, expect) in ERRORS {
        let finished = golden(name);
        assert!(!finished.ending.is_success(), "{name}");
        // The dataset worked on: what stands behind the command, without its snapshot.
        let words = finished.command.split(" <").next().unwrap_or_default();
        let last = words.rsplit([' ', '\'']).find(|word| word.contains('/'));
        let last = last.unwrap_or("tank").split('@').next().unwrap_or("tank");
        let dataset =
            DatasetName::reported(last).unwrap_or_else(|_| DatasetName::new("tank").unwrap());
        let about = About { dataset: &dataset, base: Some(Guid(77)) };
        assert_eq!(summary(&explain(&finished, about)), *expect, "{name}");
    }
}

#[test]
fn no_golden_error_is_left_out() {
    let known: BTreeSet<&str> = ERRORS.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(dir()).unwrap() {
        let file = entry.unwrap().file_name();
        let file = file.to_str().unwrap();
        if let Some(name) = file.strip_suffix(".txt")
            && (name.starts_with("err-") || name.starts_with("fuse-err-"))
        {
            assert!(known.contains(name), "{name} has no expectation");
        }
    }
}

#[test]
fn a_list_of_openzfs_is_read_in_full() {
    let finished = golden("list-Hp");
    let rows = parse::rows(&finished, 8).unwrap();
    assert_eq!(rows.len(), 55);
    let snapshots = rows.iter().filter(|row| row.str(1) == "snapshot");
    let mut count = 0;
    for row in snapshots {
        row.snapshot(0).unwrap();
        assert_ne!(row.number::<u64>(5).unwrap(), 0);
        row.number::<i64>(7).unwrap();
        count += 1;
    }
    assert_eq!(count, 34);
    let s1 = rows.iter().find(|row| row.str(0) == "tank/g/plain@s1").unwrap();
    assert_eq!(s1.number::<u64>(5).unwrap(), 9_122_368_402_542_149_676);
    assert_eq!(s1.value(3), None);
}

#[test]
fn properties_of_openzfs_are_read_with_their_sources() {
    let finished = golden("get-all");
    let rows = parse::rows(&finished, 4).unwrap();
    let of = |name: &str| rows.iter().find(|row| row.str(1) == name).unwrap();
    assert_eq!(of("compression").str(2), "lz4");
    assert_eq!(parse::source(of("compression").str(3)), flocker_store::PropertySource::Local);
    assert_eq!(parse::source(of("atime").str(3)), flocker_store::PropertySource::Inherited);
    assert_eq!(parse::source(of("guid").str(3)), flocker_store::PropertySource::Other);
    // Everything is there, whatever it means: nothing is dropped for being unknown.
    assert_eq!(rows.len(), golden("get-all").stdout.split(|b| *b == b'\n').count() - 1);
    assert_eq!(parse::rows(&golden("get-recv"), 5).unwrap().len(), rows.len());
}

#[test]
fn bookmarks_and_holds_of_openzfs_are_read() {
    let finished = golden("bookmarks");
    let rows = parse::rows(&finished, 3).unwrap();
    assert_eq!(rows[0].str(0), "tank/g/plain#b1");
    let finished = golden("holds");
    let rows = parse::rows(&finished, 3).unwrap();
    assert_eq!(rows[0].str(1), "keep");
}

#[test]
fn the_estimate_is_the_size_line() {
    for (name, expect) in [
        ("send-nvP-full", 1_393_056),
        ("send-nvP-incr", 664_624),
        ("send-nP-R", 1_206_104),
        ("send-nvP-token", 996_280),
    ] {
        assert_eq!(send::size(&golden(name)), Some(expect), "{name}");
    }
    assert_eq!(send::size(&golden("recv-A")), None);
}
