//! What a round has carried is counted once, whichever side's end of a step is heard of first.

use crate::pair::{Item, Pair};
use flocker_core::record::Policy;

/// Rounds of the first side, and the bytes of their streams.
fn counted(pair: &Pair) -> (u64, u64) {
    let standby = &pair.sides[0].node.status(pair.now()).units[0].standbys[0];
    (standby.rounds, standby.stream_bytes)
}

/// Until a send is under way; takes what would tell the first side of its end.
fn withhold_the_local_end(pair: &mut Pair) -> Item {
    let until = pair.clock_ms + 60_000;
    loop {
        let at = pair.pending.iter().position(|i| matches!(i, Item::SendEnded { at: 0, .. }));
        if let Some(item) = at.and_then(|at| pair.pending.remove(at)) {
            return item;
        }
        assert!(pair.clock_ms < until, "no step");
        pair.step();
    }
}

#[test]
fn a_standbys_word_that_overtakes_the_local_end_says_what_it_received() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    let (rounds, before) = counted(&pair);
    pair.written = true;
    let late = withhold_the_local_end(&mut pair);
    pair.written = false;
    pair.settle(|_, _| {});
    assert_eq!(counted(&pair), (rounds + 1, before + 700), "the standby knows what came");
    pair.pending.push_back(late);
    pair.settle(|_, _| {});
    assert_eq!(counted(&pair), (rounds + 1, before + 700), "and it is not counted twice");
}

#[test]
fn what_both_sides_say_of_a_step_counts_once() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    let (rounds, before) = counted(&pair);
    pair.written = true;
    let local = withhold_the_local_end(&mut pair);
    pair.pending.push_front(local);
    pair.written = false;
    pair.settle(|_, _| {});
    assert_eq!(counted(&pair), (rounds + 1, before + 700));
}
