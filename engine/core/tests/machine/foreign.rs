//! Workloads that another program runs: the target is asked with their description, standbys are ready before they
//! are needed, nothing is left behind unasked, and memory goes ahead where it moves.

use std::collections::BTreeSet;

use crate::pair::Pair;
use flocker_core::io::Loss;
use flocker_core::record::{
    ContainerRuntime, Grant, MoveMode, Program, WorkloadKind, WorkloadRecord,
};
use flocker_core::{Action, Command, FailureCode, Reply};
use flocker_store::DatasetName;

fn podman(mode: MoveMode) -> WorkloadRecord {
    let program =
        Program::Containers { runtime: ContainerRuntime::Podman, names: vec!["pg".into()] };
    WorkloadRecord { program, mode, ..WorkloadRecord::process(Vec::new()) }
}

fn set(workload: WorkloadRecord) -> Command {
    Command::SetWorkload { name: "db".into(), workload }
}

fn migrate(accept: &[&str], dry_run: bool) -> Command {
    let accept: BTreeSet<String> = accept.iter().map(|name| (*name).to_owned()).collect();
    Command::Migrate { name: "db".into(), to: "b".into(), budget_ms: None, dry_run, accept }
}

/// In step, and a container runs.
fn pair(mode: MoveMode) -> Pair {
    let mut pair = Pair::in_step();
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.settle(|_, _| {});
    let grant = Grant {
        receive: DatasetName::new("n1/in").unwrap(),
        quota_bytes: None,
        workloads: [WorkloadKind::Podman].into(),
    };
    pair.command(1, Command::SetGrant { peer: "a".into(), grant: Some(grant) });
    for side in [1, 0] {
        pair.command(side, set(podman(mode.clone())));
        pair.settle(|_, _| {});
    }
    assert!(pair.sides[0].runs);
    pair
}

fn made_ready(pair: &Pair) -> Vec<String> {
    let ready = pair.done.iter().filter_map(|(side, action)| match action {
        Action::Preflight { description: Some(text), .. } if *side == 1 => Some(text.clone()),
        _ => None,
    });
    ready.collect()
}

#[test]
fn a_standby_is_told_of_what_runs_and_made_ready_again_for_a_move() {
    let mut pair = pair(MoveMode::Stop);
    assert_eq!(made_ready(&pair), ["podman pg"], "a failover would find it");
    pair.command(0, migrate(&[], false));
    pair.settle(|_, _| {});
    assert_eq!(made_ready(&pair).len(), 2);
    assert!(matches!(pair.replies.last(), Some(Ok(Reply::Migrated(_)))), "{:?}", pair.replies);
    assert!(pair.sides[1].runs && !pair.sides[0].runs);
    // The old primary is the new one's standby, and told in its turn.
    let back = pair.done.iter().filter(|(side, action)| {
        *side == 0 && matches!(action, Action::Preflight { description: Some(_), .. })
    });
    assert_eq!(back.count(), 1);
}

#[test]
fn what_would_stay_behind_is_named_and_refused_unless_it_is_accepted() {
    let mut pair = pair(MoveMode::Stop);
    let loss = |name: &str| Loss { name: name.into(), what: format!("{name} stays") };
    pair.sides[0].losses = vec![loss("pg:layer"), loss("pg:bind:/etc/ssl")];
    for dry_run in [true, false] {
        pair.command(0, migrate(&["pg:layer"], dry_run));
        pair.settle(|_, _| {});
        let Some(Err(failure)) = pair.replies.last() else { panic!("{:?}", pair.replies) };
        assert_eq!(failure.code, FailureCode::LeftBehind);
        assert!(failure.message.contains("pg:bind:/etc/ssl stays"), "{failure}");
        assert!(!failure.message.contains("pg:layer stays"), "{failure}");
        assert!(failure.message.contains("--accept-loss"), "{failure}");
        assert!(pair.sides[0].runs, "nothing was stopped");
    }
    pair.command(0, migrate(&["pg:layer", "pg:bind:/etc/ssl"], false));
    pair.settle(|_, _| {});
    let Some(Ok(Reply::Migrated(report))) = pair.replies.last() else {
        panic!("{:?}", pair.replies)
    };
    assert_eq!(report.notes.iter().filter(|note| note.contains("as was accepted")).count(), 2);
}

#[test]
fn memory_goes_ahead_and_is_written_in_place_of_a_stop() {
    let mut pair = pair(MoveMode::Checkpoint { state: "db".into() });
    pair.done.clear();
    pair.command(0, migrate(&[], false));
    pair.settle(|_, _| {});
    assert!(matches!(pair.replies.last(), Some(Ok(Reply::Migrated(_)))), "{:?}", pair.replies);
    let source = pair.done.iter().filter(|(side, _)| *side == 0).map(|(_, action)| action);
    let words: Vec<&str> = source
        .filter_map(|action| match action {
            Action::DescribeWorkload { state: Some(_), .. } => Some("describe"),
            Action::PreDump { .. } => Some("pre-dump"),
            Action::StopWorkload { state: Some(_), .. } => Some("checkpoint"),
            Action::Fence { .. } => Some("fence"),
            _ => None,
        })
        .collect();
    assert_eq!(words, ["describe", "pre-dump", "checkpoint", "fence"]);
}

#[test]
fn a_stop_that_is_no_move_writes_no_memory() {
    let mut pair = pair(MoveMode::Checkpoint { state: "db".into() });
    pair.done.clear();
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.settle(|_, _| {});
    let written = |(_, action): &(usize, Action)| {
        matches!(action, Action::StopWorkload { state: Some(_), .. })
    };
    assert!(!pair.done.iter().any(written));
}

#[test]
fn what_leaves_for_a_failover_writes_no_memory_since_the_standby_goes_on_from_older_data() {
    let mut pair = pair(MoveMode::Checkpoint { state: "db".into() });
    pair.done.clear();
    let failover = Command::Failover { name: "db".into(), primary_is_down: false, dry_run: false };
    pair.command(1, failover);
    pair.settle(|_, _| {});
    assert!(pair.sides[1].runs && !pair.sides[0].runs);
    let written = |(_, action): &(usize, Action)| {
        matches!(action, Action::StopWorkload { state: Some(_), .. })
    };
    assert!(!pair.done.iter().any(written));
}

#[test]
fn a_memory_without_a_volume_for_it_is_refused_and_nothing_is_changed() {
    let mut pair = pair(MoveMode::Stop);
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.settle(|_, _| {});
    let before = pair.sides[0].record.clone();
    pair.command(0, set(podman(MoveMode::Checkpoint { state: "memory".into() })));
    pair.settle(|_, _| {});
    let Some(Err(failure)) = pair.replies.last() else { panic!("{:?}", pair.replies) };
    assert_eq!(failure.code, FailureCode::BadRequest);
    assert!(failure.message.contains("no volume `memory`"), "{failure}");
    assert_eq!(before.workload, pair.sides[0].record.workload);
}

#[test]
fn another_workload_gives_back_what_was_taken_from_the_one_before() {
    let mut pair = pair(MoveMode::Stop);
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.settle(|_, _| {});
    pair.done.clear();
    pair.command(0, set(WorkloadRecord::process(vec!["db".into()])));
    pair.settle(|_, _| {});
    let released = |(_, action): &(usize, Action)| matches!(action, Action::ReleaseWorkload { program } if program.kind() == WorkloadKind::Podman);
    assert_eq!(pair.done.iter().filter(|done| released(done)).count(), 1);
}
