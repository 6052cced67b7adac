//! The simulator in every test run: many seeds, each a world of its own, none of which may break a
//! rule; and bugs planted in the core, each of which must be caught.
//!
//! `FLOCKER_SIM_SEEDS=N`: that many seeds. `FLOCKER_SIM_SEED=N`: that one, its trace printed.
//! `FLOCKER_SIM_FIRST=N`: where the seeds begin. `FLOCKER_SIM_NODES=N`: how many nodes, 2 by default.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flocker_core::node::PlantedBug;
use flocker_tests::sim::{self, Coverage, Outcome, Rule, Scenario, Trace};

/// How many seeds every test run takes.
const SEEDS: u64 = 300;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn nodes() -> usize {
    from_env("FLOCKER_SIM_NODES").map_or(2, |n| n as usize)
}

/// Runs seeds on all processors; returns their counters and the failed ones, by seed.
fn run_seeds(first: u64, count: u64, nodes: usize) -> (Coverage, Vec<Outcome>) {
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
                    let outcome = sim::run_explained(&Scenario::from_seed(seed, nodes));
                    let mut shared = shared.lock().unwrap();
                    shared.0.add(&outcome.coverage);
                    if outcome.violation.is_some() {
                        shared.1.push(outcome);
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
        let scenario = Scenario::from_seed(seed, nodes());
        println!("{scenario:#?}");
        let outcome = sim::run(scenario, Trace::new(true, true));
        println!("{}", outcome.coverage);
        assert!(outcome.violation.is_none(), "{}", outcome.explain());
        return;
    }
    let first = from_env("FLOCKER_SIM_FIRST").unwrap_or(0);
    let count = from_env("FLOCKER_SIM_SEEDS").unwrap_or(SEEDS);
    let (coverage, failed) = run_seeds(first, count, nodes());
    println!("{count} seeds: {coverage}");
    for outcome in &failed {
        println!("seed {}: {}", outcome.seed, outcome.violation.as_ref().unwrap());
    }
    assert!(failed.is_empty(), "{} of {count} seeds failed; {}", failed.len(), failed[0].explain());
    if count >= SEEDS {
        check_coverage(&coverage, count);
    }
}

/// A simulator that never hits what matters proves nothing.
fn check_coverage(coverage: &Coverage, seeds: u64) {
    const PHASES: [&str; 10] = [
        "preflight",
        "converge",
        "quiesce",
        "fence",
        "snapshot",
        "transfer",
        "prepare",
        "commit",
        "activate",
        "undo",
    ];
    // In the others nothing is said between the nodes.
    const TALKING: [&str; 6] =
        ["preflight", "converge", "transfer", "prepare", "commit", "activate"];
    for phase in PHASES {
        for fault in ["crash of the source", "crash of the target", "cut", "cut one way"] {
            assert!(coverage.of(fault, phase) > 0, "no {fault} in {phase}");
        }
    }
    for phase in TALKING {
        assert!(coverage.of("message lost", phase) > 0, "no message lost in {phase}");
    }
    for phase in ["converge", "transfer"] {
        assert!(coverage.of("stream broken", phase) > 0, "no stream broken in {phase}");
    }
    for fault in ["journal loss", "disk full", "stranger", "workload ended", "host crash"] {
        assert!(coverage.faults.get(fault).is_some_and(|n| *n > 0), "no {fault}");
    }
    let moves = coverage.migrations;
    assert!(moves.taken > seeds, "only {} moves in {seeds} runs: {moves:?}", moves.taken);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..12 {
        let run = || sim::run(Scenario::from_seed(seed, 2), Trace::new(true, false));
        let (first, second) = (run(), run());
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.coverage, second.coverage, "seed {seed}");
        let other = sim::run(Scenario::from_seed(seed + 1000, 2), Trace::new(true, false));
        assert_ne!(first.hash, other.hash, "seeds {seed} and {} are the same run", seed + 1000);
    }
}

#[test]
fn three_nodes_never_have_two_writers() {
    let (coverage, failed) = run_seeds(0, 60, 3);
    assert!(failed.is_empty(), "{}", failed[0].explain());
    assert!(coverage.migrations.taken > 60, "{coverage}");
}

/// Seeds within which a planted bug must be caught.
const SEEDS_FOR_A_BUG: u64 = 1_000;

/// Runs seeds on a core with this bug until one is caught; it must be caught by one of these rules.
fn check_caught(bug: PlantedBug, by: &[Rule], worse: impl Fn(&mut Scenario)) {
    let found = (0..SEEDS_FOR_A_BUG).find_map(|seed| {
        let mut scenario = Scenario::from_seed(seed, 2).with_planted(bug);
        worse(&mut scenario);
        sim::run(scenario, Trace::default()).violation.map(|v| (seed, v))
    });
    let Some((seed, violation)) = found else {
        panic!("{bug:?} was not caught within {SEEDS_FOR_A_BUG} seeds");
    };
    println!("{bug:?}: seed {seed}, {violation}");
    assert!(by.contains(&violation.rule), "{bug:?} was caught by another rule: {violation}");
}

fn as_it_comes(_: &mut Scenario) {}

#[test]
fn a_source_that_resumes_without_a_refusal_is_caught() {
    check_caught(PlantedBug::ResumeWithoutRefusal, &[Rule::RefusalOnly], |s| {
        s.faults.partition_ms = 60_000;
    });
}

#[test]
fn a_refusal_from_another_incarnation_believed_is_caught() {
    check_caught(PlantedBug::IgnoreIncarnation, &[Rule::RefusalOnly], |s| {
        s.faults.journal_loss_ppm = 200_000;
    });
}

#[test]
fn a_target_that_takes_what_it_has_refused_is_caught() {
    let by = [Rule::OneWriterPerEpoch, Rule::SettleStands];
    check_caught(PlantedBug::ForgetTombstone, &by, as_it_comes);
}

#[test]
fn ready_said_before_it_is_durable_is_caught() {
    check_caught(PlantedBug::PersistAfterSend, &[Rule::DurableFirst], as_it_comes);
}

#[test]
fn a_commit_without_a_fence_is_caught() {
    check_caught(PlantedBug::SkipFence, &[Rule::Fenced], as_it_comes);
}

#[test]
fn a_final_snapshot_from_before_the_fence_is_caught() {
    let by = [Rule::Acknowledged, Rule::FinalSnapshot];
    check_caught(PlantedBug::NoFinalSnapshotAfterFence, &by, as_it_comes);
}

#[test]
fn a_destroyed_base_is_caught() {
    let by = [Rule::BaseInFlight, Rule::BaseKept];
    check_caught(PlantedBug::DestroyBase, &by, as_it_comes);
}

#[test]
fn an_owner_that_starts_without_asking_is_caught() {
    check_caught(PlantedBug::StartWithoutAsking, &[Rule::AsksFirst], as_it_comes);
}

#[test]
fn a_workload_started_without_looking_for_one_is_caught() {
    check_caught(PlantedBug::SecondWorkload, &[Rule::OneWorkload], as_it_comes);
}

#[test]
fn a_message_of_an_older_epoch_believed_is_caught() {
    let by = [Rule::StaleEpoch, Rule::ConfirmedSurvives, Rule::JournalGrows];
    check_caught(PlantedBug::AcceptStaleEpoch, &by, |s| {
        s.net.orderly = false;
        s.net.late_ppm = 150_000;
        s.net.late_ms = 30_000;
        s.operator_every_ms = 3_000;
    });
}

#[test]
fn a_leaked_hold_is_caught() {
    check_caught(PlantedBug::LeakHold, &[Rule::NothingLeaks], as_it_comes);
}
