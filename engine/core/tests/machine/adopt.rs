//! A replica that another tool made, and what `protect --adopt` makes of it.

use crate::pair::{Pair, UNIT, VOLUME, first_word, print_of};
use flocker_core::record::{Adoption, Policy, Role};
use flocker_core::{Action, Command, Failure, FailureCode, Reply};
use flocker_store::{DatasetName, Guid};

fn dataset(text: &str) -> DatasetName {
    DatasetName::new(text).expect("a name")
}

pub(crate) fn protect(adoption: Option<Adoption>) -> Command {
    Command::Protect {
        tree: None,
        unit: UNIT,
        volumes: vec![(VOLUME, dataset("n0/db"))],
        to: "b".into(),
        name: Some("db".into()),
        policy: Policy::Rpo(1_000),
        lease_ms: None,
        adoption,
        one_way: false,
    }
}

fn adopt() -> Option<Adoption> {
    Some(Adoption::default())
}

/// Asks side 0, and goes on until it has answered.
pub(crate) fn answer(pair: &mut Pair, adoption: Option<Adoption>) -> Result<Reply, Failure> {
    pair.command(0, protect(adoption));
    wait(pair)
}

pub(crate) fn wait(pair: &mut Pair) -> Result<Reply, Failure> {
    let until = pair.clock_ms + 60_000;
    while pair.replies.is_empty() {
        assert!(pair.clock_ms < until, "nobody answers");
        pair.step();
    }
    pair.replies.remove(0)
}

fn refused(pair: &mut Pair, adoption: Option<Adoption>) -> Failure {
    let before = pair.sides[1].snapshots.clone();
    let failure = answer(pair, adoption).expect_err("a refusal");
    pair.settle(|_, _| {});
    assert_eq!(pair.sides[1].snapshots, before, "nothing of it went");
    assert!(pair.sides.iter().all(|side| side.node.status(pair.now()).units.is_empty()));
    failure
}

/// What was done on a side, in a word each.
fn done(pair: &Pair, side: usize) -> Vec<String> {
    pair.done.iter().filter(|(at, _)| *at == side).map(|(_, a)| first_word(a)).collect()
}

fn holds(pair: &Pair, side: usize, guid: u64) -> (bool, bool) {
    let named = format!("@tool_{guid}");
    let mut found = (false, false);
    for (_, action) in pair.done.iter().filter(|(at, _)| *at == side) {
        if let Action::Tidy { hold, release, destroy, .. } = action {
            found.0 |= hold.iter().any(|s| s.to_string().ends_with(&named));
            found.1 |= release.iter().any(|s| s.to_string().ends_with(&named));
            assert!(!destroy.iter().any(|s| s.short().starts_with("tool_")), "{destroy:?}");
        }
    }
    found
}

#[test]
fn a_replica_is_gone_on_from_and_put_to_rest_before_it_is_followed() {
    let mut pair = Pair::of_another_tool(&[1, 2, 3], &[1, 2]);
    let Ok(Reply::Protected { adopted, .. }) = answer(&mut pair, adopt()) else {
        panic!("refused")
    };
    assert_eq!(adopted.len(), 1);
    assert_eq!((adopted[0].dataset.as_str(), adopted[0].base.as_str()), ("n1/in/db", "tool_2"));
    let done = done(&pair, 1);
    let order = ["Inspect", "Changed", "Fence", "VerifyUnwritten"];
    assert_eq!(done[..4], order, "{done:?}");
    assert_eq!(pair.sides[1].record.role, Role::Following { source: print_of(0) });
    assert!(
        pair.done.iter().any(|(at, a)| *at == 1 && matches!(a, Action::Mirror { .. })) || {
            pair.pass(5_000);
            pair.done.iter().any(|(at, a)| *at == 1 && matches!(a, Action::Mirror { .. }))
        }
    );
    pair.written = true;
    pair.pass(40_000);
    assert_eq!(pair.rounds_in_full, 0, "nothing is sent anew");
    let newest = pair.sides[1].snapshots.last().expect("a replica").name.clone();
    assert!(newest.short().starts_with("flocker_"), "{newest}");
    // The base of another tool was held on both sides for as long as it was one, and stays.
    for side in 0..2 {
        let guids: Vec<u64> = pair.sides[side].snapshots.iter().map(|s| s.guid.0).collect();
        assert!(guids.starts_with(&[1, 2]), "side {side}: {guids:?}");
        assert!(holds(&pair, side, 2).0, "side {side} holds it");
    }
    assert!(pair.sides[0].record.adopting.is_empty());
}

#[test]
fn the_first_snapshot_of_ours_comes_at_once_though_nothing_was_written() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
    answer(&mut pair, adopt()).expect("adopted");
    pair.pass(3_000);
    for side in &pair.sides {
        let newest = side.snapshots.last().expect("one").name.clone();
        assert!(newest.short().starts_with("flocker_"), "{newest}");
    }
}

#[test]
fn without_being_asked_for_nothing_is_taken_over_and_the_hint_is_there_where_it_would_help() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
    let failure = refused(&mut pair, None);
    assert_eq!(failure.code, FailureCode::Exists);
    assert!(failure.message.contains("n1/in/db@tool_2 in common"), "{failure}");
    assert!(failure.message.contains("`--adopt`"), "{failure}");
    let mut pair = Pair::of_another_tool(&[1, 2], &[8, 9]);
    let failure = refused(&mut pair, None);
    assert!(!failure.message.contains("--adopt"), "{failure}");
}

#[test]
fn nothing_in_common_is_refused() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[8, 9]);
    let failure = refused(&mut pair, adopt());
    assert_eq!(failure.code, FailureCode::NoBase);
    assert!(failure.message.contains("tool_9"), "{failure}");
    assert_eq!(done(&pair, 1), ["Inspect"]);
}

#[test]
fn a_replica_with_snapshots_of_its_own_is_refused_with_their_names_unless_that_is_asked_for() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 7]);
    let failure = refused(&mut pair, adopt());
    assert_eq!(failure.code, FailureCode::Modified);
    assert!(failure.message.contains("tool_7"), "{failure}");
    assert!(failure.message.contains("--diverged"), "{failure}");
    assert_eq!(done(&pair, 1), ["Inspect"], "nothing was touched");
    let diverged = Some(Adoption { diverged: true, ..Adoption::default() });
    answer(&mut pair, diverged).expect("followed as it is");
    pair.written = true;
    pair.pass(5_000);
    let status = pair.sides[0].node.status(pair.now());
    let alarm = status.units[0].alarm.clone().expect("an alarm");
    assert!(alarm.message.contains("`flocker-repl resolve db` on b"), "{alarm}");
    pair.command(1, Command::Resolve { name: "db".into(), dry_run: false });
    assert!(matches!(wait(&mut pair), Ok(Reply::Resolved(_))));
    assert_eq!(pair.set_aside, [[Guid(7)]]);
    pair.pass(20_000);
    assert_eq!(pair.rounds_in_full, 0);
    let status = pair.sides[0].node.status(pair.now());
    assert_eq!(status.units[0].alarm, None);
}

#[test]
fn one_that_was_written_is_refused_and_given_back_if_only_the_fence_could_tell() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
    pair.written = true;
    let failure = refused(&mut pair, adopt());
    assert_eq!(failure.code, FailureCode::Modified);
    assert_eq!(done(&pair, 1), ["Inspect", "Changed"]);
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
    pair.unproven = true;
    let failure = refused(&mut pair, adopt());
    assert!(failure.message.contains("was written"), "{failure}");
    assert_eq!(done(&pair, 1).last().map(String::as_str), Some("GiveBack"));
}

#[test]
fn a_replica_outside_of_the_grant_is_refused_with_the_rename_that_helps() {
    let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
    let places = vec![dataset("n1/elsewhere/db")];
    let failure = refused(&mut pair, Some(Adoption { places, diverged: false }));
    assert_eq!(failure.code, FailureCode::NotGranted);
    assert!(failure.message.contains("zfs rename -p n1/elsewhere/db n1/in/db"), "{failure}");
    let places = vec![dataset("n1/in/db"), dataset("n1/in/wal")];
    let failure = refused(&mut pair, Some(Adoption { places, diverged: false }));
    assert!(failure.message.contains("name one for each"), "{failure}");
    let places = vec![dataset("in/db")];
    answer(&mut pair, Some(Adoption { places, diverged: false })).expect("below the store's root");
}

#[test]
fn a_restart_of_either_node_does_not_turn_it_into_a_resend() {
    for side in 0..2 {
        let mut pair = Pair::of_another_tool(&[1, 2], &[1, 2]);
        pair.command(0, protect(adopt()));
        for _ in 0..12 {
            pair.step();
        }
        if pair.sides[0].node.status(pair.now()).units.is_empty() {
            continue;
        }
        if side == 0 {
            pair.reboot(0);
        }
        pair.pass(20_000);
        let status = pair.sides[0].node.status(pair.now());
        assert_eq!(status.units[0].alarm, None, "restart of {side}");
        assert_eq!(pair.rounds_in_full, 0);
        assert!(status.units[0].standbys[0].lag_ms.is_some(), "{status:?}");
    }
}
