//! Both sides of dedup in any order of steps, with crashes, losses and lies; see
//! `flocker_transport::fuzzing::dedup` for what has to hold.
//!
//! `FLOCKER_BLESS=1 cargo test -p flocker-transport --test dedup_sessions` writes the seeds of the fuzz
//! corpus anew.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

use flocker_transport::fuzzing::dedup::{Stats, fuzz_dedup};
use proptest::prelude::*;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The same without lies, so that everything has to arrive.
fn honest(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.iter_mut().filter(|byte| **byte > 251).for_each(|byte| *byte -= 80);
    bytes
}

fn sum(runs: impl Iterator<Item = Stats>) -> Stats {
    runs.fold(Stats::default(), |all, one| Stats {
        written: all.written + one.written,
        referring: all.referring + one.referring,
        asked: all.asked + one.asked,
        waited: all.waited + one.waited,
        refused: all.refused + one.refused,
        whole: all.whole + one.whole,
    })
}

#[test]
fn honest_peers_always_get_everything_across_whatever_is_lost_on_the_way() {
    let stats = sum((0..100).map(|seed| fuzz_dedup(&honest(noise(seed, 600)))));
    assert_eq!((stats.whole, stats.refused), (100, 0), "{stats:?}");
    assert!(stats.referring > 400 && stats.asked > 40, "{stats:?}");
}

#[test]
fn a_sender_that_runs_ahead_waits_for_credit_and_goes_on() {
    // Sends alone, with the offer heard early on; the rest happens at the end.
    let ahead = (0..6_u64).map(|seed| {
        let steps = noise(seed, 120).into_iter().flat_map(|byte| [10, 4, byte, byte, byte, byte]);
        let steps: Vec<u8> = [10, 0, 200].into_iter().chain(steps).collect();
        fuzz_dedup(&steps)
    });
    let stats = sum(ahead);
    assert_eq!(stats.whole, 6);
    assert!(stats.waited > 100, "{stats:?}");
}

#[test]
fn lies_end_a_transfer_or_change_nothing() {
    let stats = sum((1000..1120).map(|seed| fuzz_dedup(&noise(seed, 600))));
    assert!(stats.refused > 40, "{stats:?}");
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/dedup")
}

#[test]
fn the_fuzz_corpus_is_replayed() {
    if std::env::var_os("FLOCKER_BLESS").is_some() {
        std::fs::create_dir_all(corpus()).unwrap();
        for seed in 0..12 {
            std::fs::write(corpus().join(format!("honest-{seed}")), honest(noise(seed, 200)))
                .unwrap();
            std::fs::write(corpus().join(format!("lying-{seed}")), noise(1000 + seed, 200))
                .unwrap();
        }
    }
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus") {
        fuzz_dedup(&std::fs::read(entry.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} inputs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_steps_keeps_the_promises(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_dedup(&data);
    }
}
