//! When bookkeeping is done: what has to be held at once, all else seldom, and nothing while clients wait.

use std::collections::BTreeMap;

use crate::pair::{Item, Pair, first_word};
use flocker_core::record::Policy;
use flocker_core::{Action, Command};

#[test]
fn after_a_move_clients_are_served_before_anything_is_looked_at_or_taken_away() {
    let mut pair = Pair::in_step();
    let to = "b".into();
    pair.command(
        0,
        Command::Migrate {
            name: "db".into(),
            to,
            budget_ms: None,
            dry_run: false,
            accept: Default::default(),
        },
    );
    let mut served_at = None;
    let mut first = BTreeMap::<(usize, String), u64>::new();
    pair.settle(|pair, _| {
        if served_at.is_none() && pair.sides[1].label(pair.now()).ends_with("workload running") {
            served_at = Some(pair.clock_ms);
        }
        if served_at.is_some() {
            for item in &pair.pending {
                if let Item::Op { at, action, .. } = item {
                    first.entry((*at, first_word(action))).or_insert(pair.clock_ms);
                }
            }
        }
    });
    let served_at = served_at.expect("it runs over there");
    for (what, at) in &first {
        let calm_ms = if what.1 == "Tidy" || what.1 == "Mirror" { 1_500 } else { 500 };
        assert!(*at >= served_at + calm_ms, "{what:?} {} ms after", at - served_at);
    }
    for what in [(1, "Inspect"), (0, "Inspect"), (0, "Tidy"), (0, "Mirror")] {
        assert!(first.contains_key(&(what.0, what.1.to_owned())), "{what:?} in {first:?}");
    }
}

#[test]
fn every_base_is_held_at_once_and_what_is_not_needed_goes_every_ten_seconds() {
    let mut pair = Pair::in_step_with(Policy::Rpo(1_000));
    pair.written = true;
    // Tidied: on which side, when, held, released or destroyed.
    let mut tidied: Vec<(usize, u64, usize, usize)> = Vec::new();
    let begun = pair.clock_ms;
    while pair.clock_ms < begun + 35_000 {
        pair.settle(|pair, side| {
            for item in &pair.pending {
                if let Item::Op {
                    at, action: Action::Tidy { hold, release, destroy, .. }, ..
                } = item
                {
                    let one = (*at, pair.clock_ms, hold.len(), release.len() + destroy.len());
                    if *at == side && tidied.last() != Some(&one) {
                        tidied.push(one);
                    }
                }
            }
        });
    }
    for side in 0..2 {
        let mine = || tidied.iter().filter(|t| t.0 == side);
        let swept: Vec<u64> = mine().filter(|t| t.3 > 0).map(|t| t.1).collect();
        assert!(swept.len() >= 3, "side {side}: swept at {swept:?}");
        assert!(swept.windows(2).all(|w| w[1] - w[0] >= 10_000), "side {side}: swept at {swept:?}");
        let held = mine().filter(|t| t.2 > 0).count();
        assert!(held >= 30, "side {side}: {held} holds in 35 rounds");
        let kept = pair.sides[side].snapshots.len();
        assert!(kept <= 20, "side {side} keeps {kept} snapshots");
    }
}
