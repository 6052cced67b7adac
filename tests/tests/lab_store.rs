//! Everything that a store has to do, on the OpenZFS of each suite and by each engine: `flocker-store-suite` in a
//! guest. Every run has the newest by the library (`lab_pair` has both versions); `tests/run --soak` has them all.
//! Before that the library by itself: the tests of `flocker-lzc`, which need a pool.

use std::path::Path;

use flocker_tests::e2e::skip;
use flocker_tests::lab::{Guest, Lab, built_tests, lab_or_skip, matrix, version_of};

const SUITE: &str = env!("CARGO_BIN_EXE_flocker-store-suite");

/// Runs it, half in each guest, prints what they print, and fails with what failed.
fn run(suite: &str, engine: &str) {
    let version = version_of(suite);
    let test = format!("the store suite on OpenZFS {version} by the {engine}");
    let Some(lab) = lab_or_skip(suite, Some(suite), &test) else { return };
    let passed: usize = std::thread::scope(|scope| {
        let halves = [(Guest::Alpha, "0/2"), (Guest::Beta, "1/2")];
        let halves = halves.map(|(guest, share)| {
            let lab = &lab;
            scope.spawn(move || half(lab, guest, share, engine))
        });
        halves.map(|half| half.join().unwrap_or_else(|said| std::panic::resume_unwind(said)))
    })
    .into_iter()
    .sum();
    matrix(&format!("OpenZFS {version} alone     store  by the {engine:<8} {passed} checks"));
}

/// Checks of a share that may not apply to a version.
const MOST_ABSENT: usize = 2;

/// A share of it in one guest. Returns how many checks passed.
fn half(lab: &Lab, guest: Guest, share: &str, engine: &str) -> usize {
    let version = version_of(lab.suite(guest));
    lab.put(guest, Path::new(SUITE));
    let command = format!(
        "zfs create tank/suite && flocker-store-suite tank/suite --share {share} --engine {engine}"
    );
    let done = lab.output(guest, &command);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(&format!("OpenZFS {version}")), "another version: {said}");
    let failed: Vec<&str> = said.lines().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(done.status.success() && said.contains("\n0 failed"), "{}", done.status);
    // What a capability that was not found leaves out is not passed.
    let absent: Vec<&str> = said.lines().filter(|line| line.starts_with("n/a")).collect();
    assert!(absent.len() <= MOST_ABSENT, "{}", absent.join("\n"));
    said.lines().filter(|line| line.starts_with("ok")).count()
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

/// Runs them in a guest, prints what they print, and fails with what failed.
fn lzc(suite: &str) {
    let version = version_of(suite);
    let test = format!("libzfs_core's own tests on OpenZFS {version}");
    let Some(binary) = built_tests("real") else {
        return skip("flocker-lzc's tests are not built: run the whole workspace", &test);
    };
    let Some(lab) = lab_or_skip(suite, None, &test) else { return };
    lab.put(Guest::Alpha, &binary);
    let name = binary.file_name().expect("a name").to_string_lossy();
    let command = format!("FLOCKER_LZC_POOL=tank {name} --test-threads 1 --nocapture 2>&1");
    let done = lab.output(Guest::Alpha, &command);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "{}", done.status);
    let skipped: Vec<&str> = said.lines().filter(|line| line.contains("SKIPPED")).collect();
    assert!(skipped.is_empty(), "{skipped:#?}");
    let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    let passed = passed.and_then(|rest| rest.split(' ').next()).expect("a result");
    matrix(&format!("OpenZFS {version} alone     libzfs_core         {passed} tests"));
}

#[test]
fn libzfs_core_does_what_its_tests_say_on_openzfs_2_3() {
    lzc("trixie");
}

#[test]
#[ignore = "libzfs_core's own tests on OpenZFS 2.1: tests/run --soak"]
fn libzfs_core_does_what_its_tests_say_on_openzfs_2_1() {
    lzc("bookworm");
}
