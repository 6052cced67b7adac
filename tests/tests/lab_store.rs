//! Everything that a store has to do, on the OpenZFS of each suite and by each engine: `flocker-store-suite` in a
//! guest. Every run has the newest by the library (`lab_pair` has both versions); `tests/run --soak` has them all.

use std::path::Path;

use flocker_tests::lab::{Guest, lab_or_skip, matrix, version_of};

const SUITE: &str = env!("CARGO_BIN_EXE_flocker-store-suite");

/// Runs it, prints what it prints, and fails with what failed.
fn run(suite: &str, engine: &str) {
    let version = version_of(suite);
    let test = format!("the store suite on OpenZFS {version} by the {engine}");
    let Some(lab) = lab_or_skip(suite, None, &test) else { return };
    lab.put(Guest::Alpha, Path::new(SUITE));
    let command =
        format!("zfs create tank/suite && flocker-store-suite tank/suite --engine {engine}");
    let done = lab.output(Guest::Alpha, &command);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(&format!("OpenZFS {version}")), "another version: {said}");
    let failed: Vec<&str> = said.lines().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(done.status.success() && said.contains("\n0 failed"), "{}", done.status);
    let passed = said.lines().filter(|line| line.starts_with("ok")).count();
    matrix(&format!("OpenZFS {version} alone     store  by the {engine:<8} {passed} checks"));
}

#[test]
fn the_store_suite_passes_on_openzfs_2_3_by_the_library() {
    run("trixie", "library");
}

#[test]
#[ignore = "the store suite on OpenZFS 2.1 by the command: tests/run --soak"]
fn the_store_suite_passes_on_openzfs_2_1_by_the_command() {
    run("bookworm", "command");
}

#[test]
#[ignore = "the store suite on OpenZFS 2.3 by the command: tests/run --soak"]
fn the_store_suite_passes_on_openzfs_2_3_by_the_command() {
    run("trixie", "command");
}

#[test]
#[ignore = "the store suite on OpenZFS 2.1 by the library: tests/run --soak"]
fn the_store_suite_passes_on_openzfs_2_1_by_the_library() {
    run("bookworm", "library");
}
