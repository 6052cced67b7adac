//! A standby says that it has nothing, and then it has everything again.

use flocker_core::record::Policy;

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
