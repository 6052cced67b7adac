//! What a move does ahead of the moment in which it is needed.

use crate::pair::{Item, Pair};
use flocker_core::{Action, Command};

#[test]
fn the_target_rehearses_while_the_last_step_arrives_and_again_before_it_promises() {
    let mut pair = Pair::in_step();
    pair.written = true;
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
    let (mut ahead, mut while_receiving) = (Vec::new(), false);
    pair.settle(|pair, _| {
        let rehearsals = pair.pending.iter().filter_map(|item| match item {
            Item::Op { at: 1, op, action: Action::Rehearse { look: false, .. }, .. } => Some(*op),
            _ => None,
        });
        let rehearsals: Vec<_> = rehearsals.collect();
        let receiving = !pair.sides[1].expected.is_empty();
        while_receiving |= receiving && !rehearsals.is_empty();
        ahead.extend(rehearsals);
    });
    ahead.sort_unstable();
    ahead.dedup();
    assert_eq!(ahead.len(), 2, "ahead, and before the promise");
    assert!(while_receiving);
}
