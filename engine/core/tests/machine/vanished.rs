//! A standby says that it has nothing, and then it has everything again; a pool that does not come back.

use flocker_core::record::Policy;
use flocker_core::{Command, FailureCode, Reply};

use crate::adopt::wait;
use crate::pair::Pair;

/// Seen with a pool that was exported on the standby, and imported again a minute later: the primary had believed
/// that nothing was there and had let go of what both had. Everything had to be sent once more.
#[test]
fn what_a_standby_had_is_kept_until_it_has_something_newer_whatever_it_says_meanwhile() {
    for restarts in [false, true] {
        let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
        pair.written = true;
        pair.pass(5_000);
        pair.sides[1].vanished = true;
        pair.reboot(1);
        pair.pass(60_000);
        if restarts {
            pair.reboot(0);
            pair.pass(60_000);
        }
        let kept = pair.sides[0].snapshots.len();
        assert!(
            kept <= 20,
            "restarts {restarts}: {kept} snapshots are kept for what is sent in vain"
        );
        let newest = pair.sides[1].snapshots.last().expect("a snapshot").guid;
        let kept = pair.sides[0].snapshots.iter().any(|s| s.guid == newest);
        assert!(kept, "restarts {restarts}: {newest} is gone from the primary");
        pair.sides[1].vanished = false;
        pair.reboot(1);
        pair.pass(30_000);
        let unit = &pair.sides[0].node.status(pair.now()).units[0];
        assert_eq!(unit.alarm, None, "restarts {restarts}");
        assert!(unit.standbys[0].lag_ms.is_some_and(|ms| ms < 2_000), "{:?}", unit.standbys);
        let kept = pair.sides[0].snapshots.len();
        assert!(kept <= 20, "restarts {restarts}: {kept} snapshots stay on the primary");
    }
}

#[test]
fn a_unit_whose_pool_is_gone_for_good_is_let_go_on_a_persons_word_and_only_then() {
    let unprotect = |store_is_gone| Command::Unprotect { name: "db".into(), store_is_gone };
    let standby = |pair: &Pair| pair.sides[1].node.status(pair.now()).units.len();
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.pass(5_000);
    for back in [true, false] {
        pair.replies.clear();
        pair.away = true;
        pair.command(0, unprotect(false));
        let refused = wait(&mut pair).expect_err("nothing could be given back");
        assert_eq!(refused.code, FailureCode::StoreAway);
        assert!(
            refused.message.contains("flocker-repl unprotect db --store-is-gone"),
            "{refused:?}"
        );
        pair.pass(5_000);
        assert_eq!(pair.sides[0].node.status(pair.now()).units.len(), 1, "it lives on");
        assert_eq!(standby(&pair), 1, "and its standby with it");
        if back {
            pair.away = false;
            pair.written = true;
            pair.pass(60_000);
            let unit = &pair.sides[0].node.status(pair.now()).units[0];
            assert!(unit.standbys[0].lag_ms.is_some_and(|ms| ms < 2_000), "{:?}", unit.standbys);
        }
    }
    let before = pair.sides[1].snapshots.clone();
    pair.command(0, unprotect(true));
    assert!(matches!(wait(&mut pair), Ok(Reply::Done)));
    pair.settle(|_, _| {});
    assert!(pair.sides[0].node.status(pair.now()).units.is_empty());
    assert_eq!(pair.sides[1].snapshots, before, "the replica keeps all that it has");
    assert_eq!(standby(&pair), 1, "to fail over to it, or to end it there");
}

#[test]
fn a_standby_is_told_of_the_end_of_protection_when_there_is_one() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.pass(5_000);
    pair.replies.clear();
    pair.command(0, Command::Unprotect { name: "db".into(), store_is_gone: false });
    assert!(matches!(wait(&mut pair), Ok(Reply::Done)));
    pair.settle(|_, _| {});
    assert!(pair.sides.iter().all(|side| side.node.status(pair.now()).units.is_empty()));
}
