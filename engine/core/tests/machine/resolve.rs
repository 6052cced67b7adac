//! A standby that somebody changed by hand, and what `resolve` makes of it.

use crate::pair::{Item, Pair, print_of};
use flocker_core::io::{ResolvePlan, ResolveReport};
use flocker_core::record::{Policy, Role};
use flocker_core::{Action, Command, Failure, FailureCode, Input, Reply};
use flocker_store::{Guid, SnapshotName};

fn resolve(dry_run: bool) -> Command {
    Command::Resolve { name: "db".into(), dry_run }
}

/// In step, under load; then somebody takes a snapshot of the standby.
fn apart() -> Pair {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.written = true;
    by_hand(&mut pair, 4_711);
    pair.pass(8_000);
    pair
}

fn by_hand(pair: &mut Pair, guid: u64) {
    let mut hand = pair.sides[1].snapshots.last().expect("a replica").clone();
    hand.name = hand.name.dataset().snapshot("mine").expect("a name");
    (hand.guid, hand.createtxg) = (Guid(guid), hand.createtxg + 1);
    pair.sides[1].snapshots.push(hand);
}

fn alarm(pair: &Pair, side: usize) -> String {
    let status = pair.sides[side].node.status(pair.now());
    status.units[0].alarm.as_ref().map(|f| f.message.clone()).unwrap_or_default()
}

/// Asks side 1, and goes on until it has answered.
fn answer(pair: &mut Pair, dry_run: bool) -> Result<Reply, Failure> {
    pair.replies.clear();
    pair.command(1, resolve(dry_run));
    let until = pair.clock_ms + 60_000;
    while pair.replies.is_empty() {
        assert!(pair.clock_ms < until, "nobody answers");
        pair.step();
    }
    pair.replies.remove(0)
}

fn plan(pair: &mut Pair) -> ResolvePlan {
    match answer(pair, true) {
        Ok(Reply::ResolvePlan(plan)) => *plan,
        other => panic!("{other:?}"),
    }
}

fn report(pair: &mut Pair) -> ResolveReport {
    match answer(pair, false) {
        Ok(Reply::Resolved(report)) => *report,
        other => panic!("{other:?}"),
    }
}

fn in_step_again(pair: &mut Pair) {
    pair.pass(12_000);
    let status = pair.sides[0].node.status(pair.now());
    let standby = &status.units[0].standbys[0];
    assert!(standby.failure.is_none(), "{standby:?}");
    assert!(standby.lag_ms.is_some_and(|lag| lag < 2_000), "{standby:?}");
    assert_eq!(alarm(pair, 0), "");
}

#[test]
fn the_alarm_says_what_to_run_and_where_and_what_is_in_common_is_kept() {
    let mut pair = apart();
    let words = alarm(&pair, 0);
    assert!(words.contains("mine"), "{words}");
    assert!(words.contains("`flocker-repl resolve db` on b"), "{words}");
    // However long that lasts: without it everything would have to be sent anew.
    pair.pass(60_000);
    let here = pair.sides[1].snapshots.iter().rev().nth(1).map(|s| s.guid);
    assert!(here.is_some() && pair.sides[0].snapshots.iter().any(|s| Some(s.guid) == here));
}

#[test]
fn a_dry_run_shows_both_sides_and_changes_nothing() {
    let mut pair = apart();
    let before = pair.sides[1].record.clone();
    let plan = plan(&mut pair);
    let volume = &plan.volumes[0];
    let common = volume.common.as_ref().expect("something in common");
    assert_eq!(common.guid, pair.sides[1].snapshots[pair.sides[1].snapshots.len() - 2].guid);
    assert_eq!(volume.only_here.iter().map(|s| s.short.as_str()).collect::<Vec<_>>(), ["mine"]);
    assert!(!volume.only_there.is_empty());
    assert_eq!(plan.primary, print_of(0));
    assert!(plan.differs);
    assert_eq!(pair.sides[1].record, before);
    assert_eq!(pair.sides[1].snapshots.last().expect("it").guid, Guid(4_711));
}

#[test]
fn what_only_the_standby_has_goes_aside_and_replication_goes_on_without_a_resend() {
    let mut pair = apart();
    let report = report(&mut pair);
    assert_eq!(report.aside.len(), 1, "{report:?}");
    assert_eq!(pair.sides[1].record.step_back, None);
    in_step_again(&mut pair);
    let status = pair.sides[0].node.status(pair.now());
    let full = pair.rounds_in_full;
    assert_eq!(full, 1, "only the first: {:?}", status.units[0].standbys[0]);
    // Asked once more there is nothing to do.
    pair.written = false;
    let again = self::report(&mut pair);
    assert!(again.aside.is_empty() && again.plan.is_some_and(|p| !p.differs));
}

#[test]
fn with_nothing_in_common_all_of_it_goes_aside_and_everything_is_sent() {
    let mut pair = apart();
    pair.sides[1].snapshots.retain(|s| s.guid == Guid(4_711));
    let plan = plan(&mut pair);
    assert_eq!(plan.volumes[0].common, None);
    let report = report(&mut pair);
    assert_eq!(report.aside.len(), 1, "{report:?}");
    in_step_again(&mut pair);
    assert_eq!(pair.rounds_in_full, 2);
}

#[test]
fn wherever_it_is_killed_it_is_finished_after_the_restart() {
    for nothing_in_common in [false, true] {
        let mut at = 0;
        loop {
            let mut pair = apart();
            if nothing_in_common {
                pair.sides[1].snapshots.retain(|s| s.guid == Guid(4_711));
            }
            pair.command(1, resolve(false));
            let mut steps = 0;
            while steps < at && pair.replies.is_empty() {
                pair.step();
                steps += 1;
            }
            let ended = !pair.replies.is_empty();
            let decided = pair.sides[1].record.step_back.is_some();
            pair.reboot(1);
            pair.replies.clear();
            let report = report(&mut pair);
            assert!(decided || ended || report.plan.is_some(), "killed at {at}: {report:?}");
            in_step_again(&mut pair);
            assert!(pair.set_aside.len() <= 2, "killed at {at}: {:?}", pair.set_aside);
            assert!(!pair.set_aside.is_empty(), "killed at {at}");
            if ended {
                break;
            }
            at += 1;
            assert!(at < 100, "it never ends");
        }
        assert!(at > 4, "{at} places to be killed at");
    }
}

#[test]
fn a_primary_and_a_standby_on_its_own_refuse_with_the_reason() {
    let mut pair = apart();
    pair.replies.clear();
    pair.command(0, resolve(false));
    let refused = pair.replies.remove(0).expect_err("it is primary here");
    assert_eq!(refused.code, FailureCode::BadRequest);
    assert!(refused.message.contains("flocker-repl resolve db` on b"), "{refused}");
    pair.input(1, Input::PeerDown { peer: print_of(0) });
    pair.command(1, resolve(false));
    let refused = pair.replies.remove(0).expect_err("nobody to compare with");
    assert_eq!(refused.code, FailureCode::ConnectionLost);
    assert!(matches!(pair.sides[1].record.role, Role::Following { .. }));
}

#[test]
fn whoever_holds_the_standby_is_named_and_nothing_was_decided() {
    let mut pair = apart();
    pair.command(1, resolve(false));
    let mut answered = None;
    while answered.is_none() {
        let fence = pair
            .pending
            .iter()
            .position(|i| matches!(i, Item::Op { at: 1, action: Action::Fence { .. }, .. }));
        if let Some(at) = fence
            && let Some(Item::Op { op, .. }) = pair.pending.remove(at)
        {
            let busy = Failure::new(flocker_core::Remedy::Retry, FailureCode::Busy, "held by vi");
            pair.input(1, Input::Done { op, outcome: Err(busy) });
        } else {
            pair.step();
        }
        answered = pair.replies.pop();
    }
    let refused = answered.expect("an answer").expect_err("somebody holds it");
    assert!(refused.message.contains("vi"), "{refused}");
    assert_eq!(pair.sides[1].record.step_back, None);
    let name: Option<&SnapshotName> = pair.sides[1].snapshots.last().map(|s| &s.name);
    assert_eq!(name.map(|n| n.short()), Some("mine"));
}
