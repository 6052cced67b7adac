//! PostgreSQL and Redis, real ones, under load on two nodes with zfs-fuse pools: moved, and moved while
//! daemons are killed. The ledger is the clients': see `flocker_tests::e2e::database`.

use std::time::{Duration, Instant};

use flocker_tests::e2e::database::Kind;
use flocker_tests::e2e::kills::{KILLS, Kill};
use flocker_tests::e2e::partitions::Partition;
use flocker_tests::e2e::proxy::Cut;
use flocker_tests::e2e::rig::{Options, Rig};

fn forth_and_back(kind: Kind, number: u8, test: &str) {
    let options = Options { test, number, kinds: &[kind], rpo: "1s", proxied: false };
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

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// One pair of nodes and two databases for all runs: two of three runs move PostgreSQL.
#[test]
fn daemons_killed_in_every_phase_of_a_move_leave_one_writer_and_every_transaction() {
    let test = "daemons_killed_in_every_phase_of_a_move_leave_one_writer_and_every_transaction";
    let kinds = [Kind::Postgres, Kind::Redis];
    let options = Options { test, number: 42, kinds: &kinds, rpo: "500ms", proxied: false };
    let Some(mut rig) = Rig::build(&options) else { return };
    let runs = number("FLOCKER_E2E_RUNS").unwrap_or(KILLS.len() as u64);
    let first = number("FLOCKER_E2E_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let begun = Instant::now();
    let mut moved = 0;
    for seed in first..first + runs {
        let which = usize::from(seed % 3 == 2);
        let kill = Kill::of(seed);
        eprintln!("{} ...", kill.words(rig.name(which)));
        let run = Instant::now();
        let (done, gap) = kill.run(&mut rig, which);
        moved += u64::from(done);
        let how = if done { "moved" } else { "taken back" };
        let (gap, seconds) = (gap.as_millis(), run.elapsed().as_secs_f32());
        eprintln!("  {how}, longest gap {gap} ms, then moved plainly; {seconds:.1} s");
    }
    for which in 0..kinds.len() {
        rig.check(which, None, "in the end");
        let ledger = &rig.databases[which].ledger;
        eprintln!(
            "{}: {} transactions acknowledged, {} unanswered, {} connections lost",
            rig.name(which),
            ledger.acked.len(),
            ledger.unanswered.len(),
            ledger.lost_connections
        );
    }
    let seconds = begun.elapsed().as_secs();
    eprintln!("{runs} runs from seed {first}, {moved} moved at once, {seconds} s: all held");
}

/// Cuts the link of one pair of nodes in each of these ways.
fn cut(partitions: &[Partition], number: u8, test: &str) {
    let options = Options { test, number, kinds: &[Kind::Postgres], rpo: "500ms", proxied: true };
    let Some(mut rig) = Rig::build(&options) else { return };
    for partition in partitions {
        eprintln!("{} ...", partition.words(rig.name(0)));
        let dropped = rig.proxy().dropped();
        let (done, gap) = partition.run(&mut rig, 0);
        let dropped = rig.proxy().dropped() - dropped;
        let how = if done { "moved" } else { "taken back" };
        eprintln!("  {how}, longest gap {} ms, {dropped} datagrams dropped", gap.as_millis());
    }
}

#[test]
fn a_link_that_is_cut_during_a_move_leaves_one_writer_and_every_transaction() {
    let lasts = Duration::from_secs(3);
    let partitions = [
        ("converge", Cut::Both),
        ("quiesce", Cut::FromB),
        ("transfer", Cut::Both),
        ("prepare", Cut::FromB),
        ("commit", Cut::FromA),
        ("activate", Cut::Both),
    ]
    .map(|(phase, cut)| Partition { phase, cut, lasts });
    let test = "a_link_that_is_cut_during_a_move_leaves_one_writer_and_every_transaction";
    cut(&partitions, 43, test);
}

#[test]
#[ignore = "nine phases cut three ways for 10 s each: tests/run --soak"]
fn a_link_that_is_cut_for_ten_seconds_in_every_phase_leaves_one_writer() {
    let test = "a_link_that_is_cut_for_ten_seconds_in_every_phase_leaves_one_writer";
    cut(&Partition::all(Duration::from_secs(10)), 44, test);
}
