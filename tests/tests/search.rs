//! Everything that can happen to one migration, within a budget. A budget is seven digits: crashes, losses
//! of the connection, cancels, failovers, waits, actions that do not end, writes. Late and repeated messages
//! are always there and cost nothing.
//!
//! In the normal run there is one fault of each kind. Crashes, losses, cancels and waits are searched to
//! the end; failovers and actions that do not end have more states than a minute holds, and are searched
//! breadth first up to a number of states, which is said. `FLOCKER_SEARCH=full` has no such bound and
//! combines faults: two crashes, crash and failover, and so on; it takes hours and gigabytes.
//! `FLOCKER_SEARCH_BUDGET=1000002` searches one budget of your own, `FLOCKER_SEARCH_STATES` bounds it.

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

/// Breadth first, up to so many states.
fn search_up_to(states: usize, name: &str, digits: &str, close_one_in: u64) -> Found {
    let most_states = states.min(most_states());
    let plan = Plan { budget: budget(digits), planted: None, close_one_in, most_states };
    let found = Search::new(plan).run();
    println!("search {digits} ({name}): {found}");
    if let Some(words) = &found.violation {
        println!("{words}");
    }
    assert!(found.violation.is_none(), "{name}: something was broken, see above");
    found
}

/// To the end.
fn search(name: &str, digits: &str, close_one_in: u64) {
    let found = search_up_to(usize::MAX, name, digits, close_one_in);
    assert!(found.complete, "{name}: the search was cut short");
}

fn full() -> bool {
    std::env::var("FLOCKER_SEARCH").is_ok_and(|v| v == "full")
}

#[test]
fn a_migration_without_faults_has_one_writer_and_ends() {
    search("two writes", "0000002", 1);
}

#[test]
fn a_migration_with_a_crash_behind_any_effect_has_one_writer_and_ends() {
    search("one crash", "1000000", 8);
}

#[test]
fn a_migration_that_loses_its_connection_has_one_writer_and_ends() {
    search("one loss", "0100000", 4);
}

#[test]
fn a_migration_that_is_cancelled_has_one_writer_and_ends() {
    search("one cancel", "0010001", 1);
}

#[test]
fn a_migration_during_which_time_goes_on_has_one_writer_and_ends() {
    search("one wait", "0000100", 4);
}

#[test]
fn a_failover_in_a_migration_leaves_one_writer_an_epoch_and_loses_nothing() {
    search_up_to(40_000, "one failover", "0001001", 32);
}

/// Each with each is too much for every run; this pair has found what neither does alone.
#[test]
fn a_crash_and_a_failover_in_a_migration_leave_one_writer() {
    search_up_to(150_000, "a crash and a failover", "1001000", 64);
}

#[test]
fn a_migration_with_an_action_that_does_not_end_has_one_writer_and_ends() {
    search_up_to(40_000, "one action held", "0000010", 32);
}

#[test]
fn a_migration_with_many_faults_has_one_writer_and_ends() {
    if !full() {
        println!("skipped: combined faults are searched with FLOCKER_SEARCH=full");
        return;
    }
    for digits in
        ["2000000", "0001000", "0000010", "1010000", "1100000", "1000100", "1001000", "2111002"]
    {
        search_up_to(usize::MAX, "combined", digits, 64);
    }
}

#[test]
fn a_budget_of_your_own() {
    if let Ok(digits) = std::env::var("FLOCKER_SEARCH_BUDGET") {
        search_up_to(usize::MAX, "asked for", &digits, 8);
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
        (ForgetTombstone, "0001001", "serves again, and nobody has refused it"),
        (SettleFromBeforeRestart, "1001000", "two nodes can write"),
        (StartWithoutAsking, "1001000", "two nodes can write"),
        (FailoverWithoutProof, "0001000", "two nodes can write"),
    ];
    for (bug, digits, words) in bugs {
        let found = caught(bug, digits);
        assert!(found.as_ref().is_some_and(|f| f.contains(words)), "{bug:?}: {found:?}");
    }
}
