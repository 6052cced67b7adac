//! A volume that is a clone: sent from its origin where the standby has that, whole otherwise, and never an
//! alarm for that alone.

use crate::adopt::answer;
use crate::pair::Pair;
use flocker_core::Reply;
use flocker_store::{DatasetName, Guid, Origin};

fn a_clone(there: bool) -> Pair {
    let mut pair = Pair::of_another_tool(&[], &[]);
    let name = DatasetName::new("n0/golden").and_then(|d| d.snapshot("x")).expect("a name");
    pair.clone_of = Some((Origin { name, guid: Guid(77) }, there));
    pair
}

fn protected(pair: &mut Pair) -> Vec<String> {
    match answer(pair, None) {
        Ok(Reply::Protected { notes, .. }) => notes,
        other => panic!("{other:?}"),
    }
}

fn whole(pair: &Pair) -> Vec<String> {
    pair.sides[0].node.status(pair.now()).units[0].standbys[0].sent_whole.clone()
}

#[test]
fn a_clone_whose_origin_is_there_is_sent_from_it() {
    let mut pair = a_clone(true);
    protected(&mut pair);
    pair.pass(3_000);
    assert_eq!(pair.rounds_in_full, 0);
    assert_eq!(pair.sides[1].snapshots.len(), 1, "it has a replica");
    assert!(whole(&pair).is_empty());
    // From then on it is a volume like any other.
    pair.written = true;
    pair.pass(5_000);
    assert!(pair.sides[1].snapshots.len() > 1);
}

#[test]
fn a_clone_whose_origin_nobody_brings_is_sent_whole_and_that_is_said() {
    let mut pair = a_clone(false);
    let notes = protected(&mut pair);
    assert!(notes[0].contains("n0/golden@x") && notes[0].contains("protected first"), "{notes:?}");
    pair.pass(3_000);
    assert_eq!(pair.rounds_in_full, 1);
    let said = whole(&pair);
    assert!(said[0].contains("n0/db is a clone of n0/golden@x"), "{said:?}");
    let status = pair.sides[0].node.status(pair.now());
    assert_eq!(status.units[0].alarm, None);
}

#[test]
fn what_cannot_be_received_as_a_clone_is_sent_whole_the_next_time() {
    let mut pair = a_clone(true);
    pair.clones_fail = true;
    protected(&mut pair);
    pair.pass(30_000);
    assert_eq!(pair.rounds_in_full, 1);
    assert_eq!(whole(&pair).len(), 1);
    let status = pair.sides[0].node.status(pair.now());
    assert_eq!(status.units[0].alarm, None, "the alarm is over with the next step");
}
