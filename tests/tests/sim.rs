//! The simulator in every test run: many seeds, each a world of its own, none of which may break a
//! rule; and bugs planted in the core, each of which must be caught.
//!
//! `FLOCKER_SIM_SEEDS=N`: that many seeds. `FLOCKER_SIM_SEED=N`: that one, its trace printed.
//! `FLOCKER_SIM_FIRST=N`: where the seeds begin.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flocker_tests::sim::{self, Coverage, Outcome, Scenario, Trace};

/// How many seeds every test run takes.
const SEEDS: u64 = 300;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all processors; returns their counters and the failed ones, by seed.
fn run_seeds(first: u64, count: u64, most_failures: usize) -> (Coverage, Vec<Outcome>) {
    let next = AtomicU64::new(first);
    let shared = Mutex::new((Coverage::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = sim::run_explained(&Scenario::from_seed(seed, 2));
                    let mut shared = shared.lock().unwrap();
                    shared.0.add(&outcome.coverage);
                    if outcome.violation.is_some() {
                        shared.1.push(outcome);
                        if shared.1.len() >= most_failures {
                            return;
                        }
                    }
                }
            });
        }
    });
    let (coverage, mut failed) = shared.into_inner().unwrap();
    failed.sort_by_key(|o| o.seed);
    (coverage, failed)
}

#[test]
fn sim_seeds() {
    if let Some(seed) = from_env("FLOCKER_SIM_SEED") {
        let scenario = Scenario::from_seed(seed, 2);
        println!("{scenario:#?}");
        let outcome = sim::run(scenario, Trace::new(true, true));
        println!("{}", outcome.coverage);
        assert!(outcome.violation.is_none(), "{}", outcome.explain());
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let first = from_env("FLOCKER_SIM_FIRST").unwrap_or(0);
    let count = from_env("FLOCKER_SIM_SEEDS").unwrap_or(SEEDS);
    let (coverage, failed) = run_seeds(first, count, usize::MAX);
    println!("{count} seeds: {coverage}");
    for outcome in &failed {
        println!("seed {}: {}", outcome.seed, outcome.violation.as_ref().unwrap());
    }
    let _ = std::panic::take_hook();
    assert!(failed.is_empty(), "{} of {count} seeds failed; {}", failed.len(), failed[0].explain());
}
