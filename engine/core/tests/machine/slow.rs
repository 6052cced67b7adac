//! A standby on a slow machine: looking at its datasets takes longer than the primary waits before it asks again.

use flocker_core::Action;

use crate::pair::{Item, Pair};

/// Seen on two busy machines: each repeated question began another look, whose answer alone counted. The
/// looks slowed each other down, none was ever the last, and replication stood still for good.
#[test]
fn a_standby_that_is_asked_again_while_it_looks_goes_on_with_that_look() {
    let mut pair = Pair::in_step();
    pair.reboot(0);
    let mut looks = Vec::new();
    let until = pair.clock_ms + 10_000;
    while pair.clock_ms < until {
        pair.pending.retain(|item| {
            let looks_there =
                matches!(item, Item::Op { at: 1, action: Action::Inspect { .. }, .. });
            if looks_there {
                looks.push(item.clone());
            }
            !looks_there
        });
        pair.step();
    }
    assert_eq!(looks.len(), 1, "{looks:#?}");
    pair.pending.extend(looks);
    pair.settle(|_, _| {});
    let status = pair.sides[0].node.status(pair.now());
    assert!(status.units[0].standbys[0].lag_ms.is_some(), "{:?}", status.units[0].standbys);
}
