//! Everything that can happen to one migration, within a budget. Without `FLOCKER_SEARCH=full` each run has
//! one kind of fault, so that all of them end within a minute; with it they are combined, which takes long.
//!
//! `FLOCKER_SEARCH_BUDGET=1000002` runs one budget of your own: crashes, losses of the connection, cancels,
//! failovers, waits, actions that do not end, writes; one digit each.

use flocker_core::node::PlantedBug;
use flocker_tests::search::{Budget, Found, Plan, Search};

/// Where every state was not seen, that is said.
fn most_states() -> usize {
    std::env::var("FLOCKER_SEARCH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000_000)
}

fn budget(digits: &str) -> Budget {
    let digits: Vec<u8> = digits.bytes().map(|b| b - b'0').collect();
    let [crashes, losses, cancels, failovers, waits, holds, writes] = digits[..] else {
        panic!("a budget has seven digits");
    };
    Budget { crashes, losses, cancels, failovers, waits, holds, writes }
}

fn search(name: &str, digits: &str, close_one_in: u64) -> Found {
    let plan =
        Plan { budget: budget(digits), planted: None, close_one_in, most_states: most_states() };
    let found = Search::new(plan).run();
    println!("search {digits} ({name}): {found}");
    if let Some(words) = &found.violation {
        println!("{words}");
    }
    found
}

fn check(name: &str, digits: &str, close_one_in: u64) {
    let found = search(name, digits, close_one_in);
    assert!(found.violation.is_none(), "{name}: something was broken, see above");
    assert!(found.complete, "{name}: the search was cut short");
}

fn full() -> bool {
    std::env::var("FLOCKER_SEARCH").is_ok_and(|v| v == "full")
}

#[test]
fn a_migration_without_faults_has_one_writer_and_ends() {
    check("two writes", "0000002", 1);
}

#[test]
fn a_migration_with_a_crash_behind_any_effect_has_one_writer_and_ends() {
    check("one crash", "1000000", 8);
}

#[test]
fn a_migration_that_loses_its_connection_has_one_writer_and_ends() {
    check("one loss", "0100000", 4);
}

#[test]
fn a_migration_that_is_cancelled_has_one_writer_and_ends() {
    check("one cancel", "0010001", 1);
}

#[test]
fn a_migration_with_many_faults_has_one_writer_and_ends() {
    if !full() {
        println!("skipped: combined faults are searched with FLOCKER_SEARCH=full");
        return;
    }
    check("two crashes", "2000000", 64);
}

#[test]
fn a_budget_of_your_own() {
    if let Ok(digits) = std::env::var("FLOCKER_SEARCH_BUDGET") {
        check("asked for", &digits, 8);
    }
}

/// Searched until it is found: how a bug that was put in shows itself.
fn caught(bug: PlantedBug, digits: &str) -> Option<String> {
    let plan =
        Plan { budget: budget(digits), planted: Some(bug), close_one_in: 0, most_states: 200_000 };
    let found = Search::new(plan).run();
    println!("search {digits} with {bug:?}: {found}");
    if let Some(words) = &found.violation {
        println!("{}", words.lines().next().unwrap_or_default());
    }
    found.violation
}

#[test]
fn each_bug_that_was_put_in_is_found() {
    use PlantedBug::*;
    let bugs = [
        (PersistAfterSend, "0000000", "said before it is durable"),
        (SkipFence, "1000001", "which is live"),
        (NoFinalSnapshotAfterFence, "0000001", "acknowledged"),
        (ForgetTombstone, "0001001", "two nodes can write"),
        (StartWithoutAsking, "1001000", "two nodes can write"),
        (FailoverWithoutProof, "0001000", "two nodes can write"),
    ];
    for (bug, digits, words) in bugs {
        let found = caught(bug, digits);
        assert!(found.as_ref().is_some_and(|f| f.contains(words)), "{bug:?}: {found:?}");
    }
}
