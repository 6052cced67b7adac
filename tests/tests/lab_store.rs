//! Everything that a store has to do, on the OpenZFS of each suite: `flocker-store-suite` in a guest.

use std::path::Path;

use flocker_tests::lab::{Guest, lab_or_skip, version_of};

const SUITE: &str = env!("CARGO_BIN_EXE_flocker-store-suite");

/// Runs it, prints what it prints, and fails with what failed.
fn run(suite: &str, test: &str) {
    let Some(lab) = lab_or_skip(suite, None, test) else { return };
    lab.put(Guest::Alpha, Path::new(SUITE));
    let done = lab.output(Guest::Alpha, "zfs create tank/suite && flocker-store-suite tank/suite");
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(&format!("OpenZFS {}", version_of(suite))), "another version: {said}");
    let failed: Vec<&str> = said.lines().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(done.status.success() && said.contains("\n0 failed"), "{}", done.status);
}

#[test]
fn the_store_suite_passes_on_openzfs_2_3() {
    run("trixie", "the store suite on OpenZFS 2.3");
}

#[test]
fn the_store_suite_passes_on_openzfs_2_1() {
    run("bookworm", "the store suite on OpenZFS 2.1");
}
