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
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.command(0, Command::StopWorkload { name: "db".into() });
    pair.pass(5_000);
    pair.replies.clear();
    pair.away = true;
    pair.command(0, unprotect(false));
    let refused = wait(&mut pair).expect_err("nothing could be given back");
    assert_eq!(refused.code, FailureCode::StoreAway);
    assert!(refused.message.contains("flocker-repl unprotect db --store-is-gone"), "{refused:?}");
    assert_eq!(pair.sides[0].node.status(pair.now()).units.len(), 1, "it lives on");
    pair.pass(5_000);
    pair.command(0, unprotect(true));
    assert!(matches!(wait(&mut pair), Ok(Reply::Done)));
    assert!(pair.sides[0].node.status(pair.now()).units.is_empty());
    assert!(!pair.sides[1].snapshots.is_empty(), "the replica's data stays");
}
