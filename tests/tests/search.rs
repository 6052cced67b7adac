//! Everything that can happen to one migration, within a budget. `FLOCKER_SEARCH=full` gives it two
//! crashes and all faults at once; without it each run has less of them, so that all end within a minute.

use flocker_core::node::PlantedBug;
use flocker_tests::search::{Budget, Plan, Search};

const NONE: Budget =
    Budget { crashes: 0, losses: 0, cancels: 0, failovers: 0, waits: 0, holds: 0, writes: 0 };

fn check(name: &str, budget: Budget) {
    let plan = Plan { budget, planted: None, close_one_in: 1, most_states: 3_000_000 };
    let found = Search::new(plan).run();
    println!("search {name}: {found}");
    if let Some(words) = found.violation {
        panic!("{name}, {budget:?}: {words}");
    }
    assert!(found.complete, "{name}: the search was cut short");
}

#[test]
fn a_migration_without_faults() {
    check("no faults", Budget { writes: 2, ..NONE });
}

#[test]
fn a_migration_with_one_crash() {
    check("one crash", Budget { crashes: 1, writes: 1, ..NONE });
}

#[test]
fn probe() {
    let Ok(text) = std::env::var("FLOCKER_SEARCH_BUDGET") else { return };
    let n: Vec<u8> = text.bytes().map(|b| b - b'0').collect();
    let [crashes, losses, cancels, failovers, waits, holds, writes] = n[..] else { panic!() };
    let budget = Budget { crashes, losses, cancels, failovers, waits, holds, writes };
    let most = std::env::var("MOST").ok().and_then(|m| m.parse().ok()).unwrap_or(1_000_000);
    let one_in = std::env::var("ONE_IN").ok().and_then(|m| m.parse().ok()).unwrap_or(1);
    let plan = Plan { budget, planted: None, close_one_in: one_in, most_states: most };
    let found = Search::new(plan).run();
    println!("search: {found}");
    if let Some(words) = found.violation {
        println!("{words}");
    }
}

#[allow(dead_code)]
fn planted(bug: PlantedBug) -> Option<PlantedBug> {
    Some(bug)
}
