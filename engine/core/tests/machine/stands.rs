//! A step that does not move: said, not broken off, and unsaid when it moves.

use crate::pair::{Item, Pair};
use flocker_core::record::Policy;
use flocker_core::{FailureCode, Input};

#[test]
fn a_step_that_does_not_move_is_an_alarm_for_as_long_as_it_does_not() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.written = true;
    let under_way = |pair: &Pair| {
        pair.pending.iter().find_map(|item| match item {
            Item::SendEnded { at: 0, transfer } => Some(*transfer),
            _ => None,
        })
    };
    let until = pair.clock_ms + 60_000;
    while under_way(&pair).is_none() {
        assert!(pair.clock_ms < until, "no step");
        pair.step();
    }
    let transfer = under_way(&pair).expect("a step");
    let failure = |pair: &Pair| {
        let unit = &pair.sides[0].node.status(pair.now()).units[0];
        (unit.alarm.clone(), unit.standbys[0].failure.clone())
    };
    pair.input(0, Input::TransferStands { transfer, for_ms: Some(61_000) });
    let (alarm, standing) = failure(&pair);
    let standing = standing.expect("it is said of the standby");
    assert_eq!((alarm, standing.code), (Some(standing.clone()), FailureCode::TimedOut));
    assert!(standing.message.contains("has moved for 61 s"), "{}", standing.message);
    pair.input(0, Input::TransferStands { transfer, for_ms: None });
    assert_eq!(failure(&pair), (None, None));
    // Said once more, and then it ends well.
    pair.input(0, Input::TransferStands { transfer, for_ms: Some(62_000) });
    pair.written = false;
    pair.settle(|_, _| {});
    pair.pass(5_000);
    assert_eq!(failure(&pair), (None, None));
    // What is over is of no interest.
    pair.input(0, Input::TransferStands { transfer, for_ms: Some(63_000) });
    assert_eq!(failure(&pair), (None, None));
}
