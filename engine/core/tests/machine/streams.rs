//! Streams that one of the nodes could not receive, there or back: refused when protection starts.

use crate::adopt::{answer, protect, wait};
use crate::pair::Pair;
use flocker_core::{Command, Failure, FailureCode, Reply};
use flocker_store::StreamFeature as F;

/// Two nodes without a unit, and nothing on the second one.
fn fresh() -> Pair {
    Pair::of_another_tool(&[1], &[])
}

/// Refused, and as if it had never been asked on either side.
fn refused(pair: &mut Pair) -> Failure {
    let failure = answer(pair, None).expect_err("a refusal");
    assert_eq!(failure.code, FailureCode::Unsupported, "{}", failure.message);
    pair.settle(|_, _| {});
    assert!(pair.sides.iter().all(|side| side.node.status(pair.now()).units.is_empty()));
    assert!(pair.sides[1].snapshots.is_empty());
    failure
}

#[test]
fn a_feature_that_the_standby_lacks_is_refused_when_protection_starts() {
    let mut pair = fresh();
    pair.streams[0].sends = [F::LargeBlocks].into();
    pair.streams[1].receives.remove(&F::LargeBlocks);
    let words = refused(&mut pair).message;
    assert!(words.starts_with("on b: db cannot be received into n1/in/db: "), "{words}");
    assert!(words.contains("`zpool set feature@large_blocks=enabled n1`"), "{words}");
    // It is looked at anew each time.
    pair.streams[1].receives.insert(F::LargeBlocks);
    assert!(matches!(answer(&mut pair, None), Ok(Reply::Protected { .. })));
}

#[test]
fn what_could_not_come_back_is_refused_when_protection_starts() {
    let mut pair = fresh();
    pair.streams[1].sends = [F::ZstdCompress].into();
    pair.streams[0].receives.remove(&F::ZstdCompress);
    let words = refused(&mut pair).message;
    assert!(words.contains("could not go back to a: "), "{words}");
    assert!(words.contains("`zpool set feature@zstd_compress=enabled n0`"), "{words}");
    assert!(words.contains("--one-way"), "{words}");
}

#[test]
fn one_way_accepts_that_it_does_not_come_back_but_not_that_it_does_not_arrive() {
    let one_way = || {
        let mut command = protect(None);
        if let Command::Protect { one_way, .. } = &mut command {
            *one_way = true;
        }
        command
    };
    let mut pair = fresh();
    pair.streams[1].sends = [F::ZstdCompress].into();
    pair.streams[0].receives.clear();
    pair.command(0, one_way());
    assert!(matches!(wait(&mut pair), Ok(Reply::Protected { .. })));
    let status = pair.sides[0].node.status(pair.now());
    assert!(status.units[0].standbys[0].one_way, "it is not remembered");

    let mut pair = fresh();
    pair.streams[0].sends = [F::LargeBlocks].into();
    pair.streams[1].receives.clear();
    pair.command(0, one_way());
    assert!(wait(&mut pair).is_err());
}

#[test]
fn what_is_sent_plain_needs_no_encryption_over_there_however_it_lies_here() {
    let mut pair = fresh();
    pair.streams[0].sends = [F::Encryption].into();
    pair.streams[1].receives.remove(&F::Encryption);
    assert!(matches!(answer(&mut pair, None), Ok(Reply::Protected { .. })));
}
