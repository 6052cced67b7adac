//! A standby on a slow machine: looking at its datasets takes longer than the primary waits before it asks again.

use flocker_core::Action;
use flocker_core::record::Policy;

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

/// Seen on a slow machine: once a round took most of its RPO, the next one was due as soon as the last look had
/// found nothing, and whether anything was written was asked as fast as it was answered.
#[test]
fn where_a_round_takes_most_of_its_rpo_looks_at_what_was_written_keep_a_distance() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    let looks_in = |pair: &mut Pair, ms: u64| {
        let (until, mut looks) = (pair.clock_ms + ms, 0);
        while pair.clock_ms < until {
            match pair.pending.front() {
                Some(Item::Arrive { .. }) => pair.clock_ms += 900,
                Some(Item::Op { at: 0, action: Action::Changed { .. }, .. }) => looks += 1,
                _ => {}
            }
            pair.step();
        }
        looks
    };
    pair.written = true;
    looks_in(&mut pair, 20_000);
    pair.written = false;
    looks_in(&mut pair, 2_000);
    let looks = looks_in(&mut pair, 10_000);
    assert!((10..=110).contains(&looks), "{looks} looks in 10 s");
}

/// The distance between rounds once held back what had failed, too: of an RPO of a day for more than two hours.
#[test]
fn a_round_that_broke_off_is_tried_again_after_its_own_pause_whatever_the_rpo() {
    let mut pair = Pair::in_step_with(Policy::Rpo(86_400_000));
    pair.sides[1].snapshots.clear();
    pair.reboot(1);
    let arriving = |pair: &mut Pair, within_ms: u64| {
        let until = pair.clock_ms + within_ms;
        while pair.clock_ms < until {
            if let Some(Item::Arrive { .. }) = pair.pending.front() {
                return true;
            }
            pair.step();
        }
        false
    };
    assert!(arriving(&mut pair, 60_000), "everything is sent");
    pair.reboot(1);
    assert!(arriving(&mut pair, 60_000), "and again, after it broke off");
}
