//! PostgreSQL and Redis, real ones, under load on two nodes with zfs-fuse pools: moved, and moved while
//! daemons are killed. The ledger is the clients': see `flocker_tests::e2e::database`.

use std::time::Instant;

use flocker_tests::e2e::database::Kind;
use flocker_tests::e2e::rig::{Options, Rig};

fn forth_and_back(kind: Kind, number: u8, test: &str) {
    let options = Options { test, number, kinds: &[kind], rpo: "1s" };
    let Some(mut rig) = Rig::build(&options) else { return };
    let load = rig.load(0, 4, 200);
    let watch = rig.watch(0);
    load.wait_more(100, "before");
    for round in 0..4 {
        let from = rig.settle(0, test);
        assert_eq!(from, round % 2);
        let begun = Instant::now();
        let report = rig.move_from(0, from, test);
        load.wait_more(100, "after a move");
        let gap = load.ledger().longest_gap(begun, Instant::now());
        eprintln!("move {round}: longest gap {} ms, {}", gap.as_millis(), report["downtime_ms"]);
    }
    watch.end(test);
    rig.check(0, Some(load), test);
}

#[test]
fn postgresql_under_load_moves_forth_and_back() {
    forth_and_back(Kind::Postgres, 40, "postgresql_under_load_moves_forth_and_back");
}

#[test]
fn redis_under_load_moves_forth_and_back() {
    forth_and_back(Kind::Redis, 41, "redis_under_load_moves_forth_and_back");
}
