//! The simulator in every test run: many seeds, each a world of its own, none of which may break a
//! rule; and bugs planted in the core, each of which must be caught.
//!
//! `FLOCKER_SIM_SEEDS=N`: that many seeds. `FLOCKER_SIM_SEED=N`: that one, its trace printed.
//! `FLOCKER_SIM_FIRST=N`: where the seeds begin. `FLOCKER_SIM_NODES=N`: how many nodes, 2 by default.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flocker_core::node::PlantedBug;
use flocker_tests::sim::coverage::PHASES;
use flocker_tests::sim::scenario::{Found, ModelBug};
use flocker_tests::sim::{self, Coverage, Outcome, Rule, Scenario, Trace};

/// How many seeds every test run takes.
const SEEDS: u64 = 10_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn nodes() -> usize {
    from_env("FLOCKER_SIM_NODES").map_or(2, |n| n as usize)
}

/// Runs seeds on all processors; returns their counters, the failed ones, and the seeds in which no
/// node took over by a move, but for those that lost a journal; by seed.
fn run_seeds(first: u64, count: u64, nodes: usize) -> (Coverage, Vec<Outcome>, Vec<u64>) {
    let next = AtomicU64::new(first);
    let shared = Mutex::new((Coverage::default(), Vec::new(), Vec::new()));
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
                    } else if outcome.coverage.migrations.taken == 0
                        && outcome.coverage.tainted == 0
                    {
                        shared.2.push(seed);
                    }
                }
            });
        }
    });
    let (coverage, mut failed, mut unmoved) = shared.into_inner().unwrap();
    failed.sort_by_key(|o| o.seed);
    unmoved.sort_unstable();
    (coverage, failed, unmoved)
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
    let (coverage, failed, unmoved) = run_seeds(first, count, nodes());
    println!("{count} seeds: {coverage}");
    for outcome in &failed {
        println!("seed {}: {}", outcome.seed, outcome.violation.as_ref().unwrap());
    }
    assert!(failed.is_empty(), "{} of {count} seeds failed; {}", failed.len(), failed[0].explain());
    if nodes() > 2 {
        return; // A move leaves the others behind: not every seed comes to one.
    }
    assert!(unmoved.is_empty(), "no move in seeds {unmoved:?}");
    if count >= SEEDS {
        check_coverage(&coverage, count);
    }
}

/// A simulator that never hits what matters proves nothing.
fn check_coverage(coverage: &Coverage, seeds: u64) {
    // In the others nothing is said between the nodes.
    const TALKING: [&str; 6] =
        ["preflight", "converge", "transfer", "prepare", "commit", "activate"];
    for phase in PHASES {
        for fault in [
            "crash of the source",
            "crash of the target",
            "cut",
            "cut one way",
            "stopped",
            "cancel",
            "failover",
        ] {
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
    for how in ["word", "lease", "hook", "primary fenced"] {
        let how = format!("failed over: {how}");
        assert!(coverage.faults.iter().any(|(k, n)| **k == *how && *n > 0), "never {how}");
    }
    for what in [
        "false word",
        "set aside",
        "drill",
        "killed by its lease's end",
        "host stopped",
        "receive resumed",
        "bookmarked",
        "unbookmarked",
        "sent from a bookmark",
        "standby changed by hand",
        "resolve asked",
        "adopted",
        "clone kept",
    ] {
        assert!(coverage.faults.get(what).is_some_and(|n| *n > 0), "no {what}");
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
    let (coverage, failed, _) = run_seeds(0, 300, 3);
    assert!(failed.is_empty(), "{}", failed[0].explain());
    assert!(coverage.migrations.taken > 300, "{coverage}");
}

/// Seeds within which a planted bug must be caught.
const SEEDS_FOR_A_BUG: u64 = 5_000;

/// Runs seeds on a core with this bug until one of these rules catches it; others may before.
fn check_caught(bug: PlantedBug, by: &[Rule], worse: impl Fn(&mut Scenario)) {
    let found = (0..SEEDS_FOR_A_BUG).find_map(|seed| {
        let mut scenario = Scenario::from_seed(seed, 2).with_planted(bug);
        worse(&mut scenario);
        let violation = sim::run(scenario, Trace::default()).violation?;
        println!("{bug:?}: seed {seed}, {violation}");
        by.contains(&violation.rule).then_some(seed)
    });
    assert!(found.is_some(), "{bug:?} was not caught by {by:?} within {SEEDS_FOR_A_BUG} seeds");
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
    let by = [Rule::StaleEpoch, Rule::ConfirmedSurvives, Rule::JournalGrows, Rule::Heals];
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

/// Runs seeds in a model with this bug until one is caught by one of these rules.
fn check_model_caught(bug: ModelBug, by: &[Rule], worse: impl Fn(&mut Scenario)) {
    let found = (0..SEEDS_FOR_A_BUG).find_map(|seed| {
        let mut scenario = Scenario::from_seed(seed, 2).with_model_bug(bug);
        worse(&mut scenario);
        sim::run(scenario, Trace::default()).violation.map(|v| (seed, v))
    });
    let Some((seed, violation)) = found else {
        panic!("{bug:?} was not caught within {SEEDS_FOR_A_BUG} seeds");
    };
    println!("{bug:?}: seed {seed}, {violation}");
    assert!(by.contains(&violation.rule), "{bug:?} was caught by another rule: {violation}");
}

#[test]
fn what_is_set_aside_and_destroyed_is_caught() {
    check_model_caught(ModelBug::SetAsideDestroys, &[Rule::SetAside], as_it_comes);
}

#[test]
fn a_torn_group_is_caught() {
    check_model_caught(ModelBug::TornGroup, &[Rule::Group], |s| s.volumes = 3);
}

#[test]
fn an_address_on_two_nodes_is_caught() {
    check_model_caught(ModelBug::TwoAddresses, &[Rule::Address], |s| s.address = true);
}

#[test]
fn a_supervisor_that_sleeps_through_the_end_of_a_lease_is_caught() {
    let by = [Rule::Proof, Rule::OneWriter];
    check_model_caught(ModelBug::SupervisorSleeps, &by, |s| s.lease_ms = Some(4_000));
}

#[test]
fn a_primary_that_goes_on_without_its_lease_is_caught() {
    // Its supervisor would stop it all the same: each of the two is enough.
    let by = [Rule::Proof, Rule::OneWriter, Rule::Contract];
    check_caught(PlantedBug::LeaseNotStopped, &by, |s| {
        s.lease_ms = Some(4_000);
        s.model_bug = Some(ModelBug::SupervisorSleeps);
    });
}

#[test]
fn a_lease_taken_for_run_out_too_early_is_caught() {
    let by = [Rule::Proof, Rule::OneWriter];
    check_caught(PlantedBug::LeaseTakenEarly, &by, |s| s.lease_ms = Some(20_000));
}

#[test]
fn a_failover_without_a_proof_is_caught() {
    check_caught(PlantedBug::FailoverWithoutProof, &[Rule::Proof], as_it_comes);
}

#[test]
fn a_claim_answered_in_the_middle_of_a_failover_is_caught() {
    let by = [Rule::Proof, Rule::OneWriter];
    check_caught(PlantedBug::AnswerClaimInFailover, &by, |s| {
        s.faults.down_ms = 300;
        s.faults.every_ms = Some(1_500);
        s.faults.op_slow_ppm = 100_000;
    });
}

#[test]
fn a_unit_handed_back_after_it_answered_is_caught() {
    check_caught(PlantedBug::HandBackAfterAnswer, &[Rule::Acknowledged], |s| {
        s.start_fail_ppm = 300_000;
        s.address = false;
    });
}

#[test]
fn a_migration_taken_back_after_its_commit_is_caught() {
    check_caught(PlantedBug::CancelAfterCommit, &[Rule::RefusalOnly], as_it_comes);
}

#[test]
fn an_attempt_used_twice_is_caught() {
    check_caught(PlantedBug::ReuseAttempt, &[Rule::JournalGrows], as_it_comes);
}

#[test]
fn a_failover_over_a_receive_under_way_is_caught() {
    let by = [Rule::Fenced, Rule::Group];
    // What somebody does to standbys by hand is noise here, and so is what they had before.
    check_caught(PlantedBug::FailoverKeepsReceiving, &by, |s| {
        s.by_hand = false;
        s.found = Found::Nothing;
        s.pin_limit_ms = None;
        s.clone = false;
    });
}

#[test]
fn a_failover_that_foretells_too_little_is_caught() {
    check_caught(PlantedBug::ForetellTooLittle, &[Rule::Foretold], |s| s.volumes = 3);
}

#[test]
fn a_step_confirmed_before_it_is_there_is_caught() {
    check_caught(PlantedBug::ConfirmTooEarly, &[Rule::ConfirmedSurvives], as_it_comes);
}

#[test]
fn a_round_that_is_not_tried_again_is_caught() {
    check_caught(PlantedBug::RoundNotRetried, &[Rule::Heals], as_it_comes);
}

#[test]
fn a_question_that_is_never_answered_is_caught() {
    check_caught(PlantedBug::AnswerFirstOnly, &[Rule::Answers], as_it_comes);
}
