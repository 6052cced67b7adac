//! Changes of primary that nobody planned, with PostgreSQL under load on two nodes with zfs-fuse pools:
//! a failover after the primary is gone, and a move whose program does not start on the target.

use std::time::{Duration, Instant};

use flocker_tests::e2e::database::Kind;
use flocker_tests::e2e::rig::{Options, Rig};
use flocker_tests::e2e::zfs;
use serde_json::Value;

/// The promise of the tests here, milliseconds.
const RPO_MS: u64 = 1_000;

/// Beyond the promise a round that was under way may be missing, on a machine that does much else.
const SLACK_MS: u64 = 2_000;

fn rig(test: &str, number: u8) -> Option<Rig> {
    Rig::build(&Options { test, number, kinds: &[Kind::Postgres], rpo: "1s", proxied: false })
}

#[test]
fn a_failover_on_the_operators_word_loses_no_more_than_it_says_and_the_old_primary_follows() {
    let test =
        "a_failover_on_the_operators_word_loses_no_more_than_it_says_and_the_old_primary_follows";
    let Some(mut rig) = rig(test, 50) else { return };
    let load = rig.load(0, 4, 200);
    load.wait_more(400, test);
    // Without a proof nothing happens, whatever it is.
    let (_, words) = {
        rig.hosts[0].kill();
        rig.hosts[1].fails(&["failover", "postgres", "--yes"])
    };
    assert!(words.contains("--primary-is-down"), "{words}");
    // The daemon is away and the database writes on: what it writes now only the old primary has.
    load.wait_more(200, test);
    rig.kill_servers(0, 0);
    let down = Instant::now();
    let plan = rig.hosts[1].json(&["failover", "postgres", "--dry-run"]);
    let done = rig.hosts[1].json(&["failover", "postgres", "--primary-is-down", "--yes"]);
    eprintln!("failover: {done:#}");
    assert_eq!(done["epoch"], 2, "{done:#}");
    rig.hosts[1].wait_serving("postgres");
    load.wait_more(100, test);
    eprintln!("served again {} ms after the primary was down", down.elapsed().as_millis());
    // What is lost is no more than what was said.
    let age = Duration::from_millis(plan["age_ms"].as_u64().expect("an age"));
    let lost = rig.take_lost(0, load, test);
    let kept_until = down.checked_sub(age).expect("a moment of this boot");
    let early: Vec<_> = lost.iter().filter(|(_, answered)| **answered < kept_until).collect();
    assert!(early.is_empty(), "said to be {age:?} behind, and lost of before: {early:?}");
    assert!(!lost.is_empty(), "the database had gone on alone");
    eprintln!("{} transactions were only on the old primary, {age:?} were said", lost.len());
    follows_again(&mut rig, test);
    // And all of that is still there, beside the replica.
    let written = rig.read_aside(0, 0, &aside(&rig));
    for transaction in lost.keys() {
        assert!(written.contains(transaction), "{transaction:?} is nowhere");
    }
    let load = rig.load(0, 4, 200);
    load.wait_more(50, test);
    rig.move_from(0, 1, test);
    load.wait_more(50, test);
    rig.check(0, Some(load), test);
}

/// The old primary comes back and becomes the standby by increments alone.
fn follows_again(rig: &mut Rig, test: &str) {
    rig.hosts[0].serve();
    assert_eq!(rig.settle(0, test), 1, "the old primary makes nothing writable");
    rig.hosts[1].wait_in_step("postgres");
    let rounds = rig.hosts[1].json(&["rounds", "postgres"]);
    let rounds = rounds.as_array().or_else(|| rounds["rounds"].as_array()).cloned();
    let rounds = rounds.expect("rounds");
    assert!(!rounds.is_empty());
    let full = |round: &Value| round["full"] == true || round["round"]["full"] == true;
    assert!(!rounds.iter().any(full), "a full resend: {rounds:#?}");
}

#[test]
fn a_program_that_does_not_start_on_the_target_is_handed_back() {
    let test = "a_program_that_does_not_start_on_the_target_is_handed_back";
    let Some(mut rig) = rig(test, 51) else { return };
    rig.hosts[1].ok(&["run", "postgres", "--", "/nonexistent/postgres"]);
    let load = rig.load(0, 4, 200);
    let watch = rig.watch(0);
    load.wait_more(50, test);
    let begun = Instant::now();
    let (code, words) = rig.hosts[0].fails(&["migrate", "postgres", "--to", "b", "--json"]);
    eprintln!("exit {code}: {words}");
    load.wait_more(50, test);
    let gap = load.ledger().longest_gap(begun, Instant::now());
    eprintln!("handed back, longest gap {} ms", gap.as_millis());
    assert_eq!(rig.settle(0, test), 0);
    let unit = rig.hosts[0].unit("postgres").expect("the unit");
    assert_eq!(unit["epoch"]["number"], 3, "taken, and handed back: {unit:#}");
    watch.end(test);
    rig.check(0, Some(load), test);
    // Once the program is right the same move is done.
    rig.set_workload(0, 1);
    let load = rig.load(0, 4, 200);
    rig.hosts[0].wait_in_step("postgres");
    rig.move_from(0, 0, test);
    load.wait_more(50, test);
    rig.check(0, Some(load), test);
}

#[test]
fn a_failover_whose_primary_answers_leaves_one_writer_and_keeps_the_rest() {
    let test = "a_failover_whose_primary_answers_leaves_one_writer_and_keeps_the_rest";
    let Some(mut rig) = rig(test, 52) else { return };
    let load = rig.load(0, 4, 200);
    let watch = rig.watch(0);
    load.wait_more(100, test);
    let rounds = |unit: &serde_json::Value| unit["standbys"][0]["rounds"].as_u64().expect("rounds");
    let mut unit = rig.hosts[0].wait_in_step("postgres");
    // The clients' table came with the load: an instance of before would not know it.
    let enough = rounds(&unit) + 2;
    let until = Instant::now() + Duration::from_secs(60);
    while rounds(&unit) < enough && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        unit = rig.hosts[0].wait_in_step("postgres");
    }
    let lag = unit["standbys"][0]["lag_ms"].as_u64().expect("a lag");
    assert!(lag < RPO_MS + SLACK_MS, "{lag} ms behind");
    let begun = Instant::now();
    let done = rig.hosts[1].json(&["failover", "postgres", "--yes"]);
    eprintln!("failover: {done:#}");
    assert_eq!(rig.settle(0, test), 1);
    load.wait_more(100, test);
    watch.end(test);
    // It goes on from the newest instance, as it said; what came later is set aside there.
    let age = Duration::from_millis(done["plan"]["age_ms"].as_u64().expect("an age"));
    let kept_until = begun.checked_sub(age).expect("a moment of this boot");
    let lost = rig.take_lost(0, load, test);
    let early: Vec<_> = lost.iter().filter(|(_, answered)| **answered < kept_until).collect();
    assert!(early.is_empty(), "said to be {age:?} behind, and lost of before: {early:?}");
    rig.check(0, None, test);
    let written = rig.read_aside(0, 0, &aside(&rig));
    assert!(lost.keys().all(|t| written.contains(t)), "what was lost is set aside");
}

/// The dataset that the first node has set aside.
fn aside(rig: &Rig) -> String {
    let all = zfs(&["list", "-H", "-o", "name", "-r", rig.pool(0)]);
    let aside = all.lines().find(|name| name.contains("-diverged-"));
    aside.unwrap_or_else(|| panic!("nothing was set aside: {all}")).to_owned()
}
