//! Leases, through the binary: nobody takes over before the primary's workload has been stopped by its
//! supervisor, whatever became of the primary's daemon and of the link.

use flocker_tests::e2e::host::Host;
use flocker_tests::e2e::pair::{Pair, records};
use flocker_tests::e2e::proxy::Cut;
use rustix::process::{Pid, Signal, kill_process};

/// How the primary is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// `kill -9` of its daemon.
    Killed,
    /// Its daemon is stopped by SIGSTOP, and goes on later.
    Stopped,
    /// Neither node hears the other.
    Cut,
}

fn signal(host: &Host, signal: Signal) {
    let pid = host.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("it runs"), signal).expect("it is ours");
}

/// The records that only the first node had, in what it has set aside: that is named in its history,
/// and becomes a directory by protecting it.
fn aside(pair: &Pair) -> Vec<u64> {
    let history = pair.hosts[0].json(&["history", "db"]);
    let events = history["events"].as_array().expect("events");
    let kept = "what only this node had is kept: ";
    let text = events.iter().find_map(|event| event["text"].as_str()?.strip_prefix(kept));
    let dataset = text.unwrap_or_else(|| panic!("nothing was kept: {history:#}"));
    pair.hosts[0].ok(&["protect", dataset, "--to", "b", "--name", "aside"]);
    pair.hosts[0].wait_in_step("aside");
    records(&pair.vault(0).join("live").join(dataset))
}

fn check(how: Lost, number: u8, test: &str) {
    let Some(mut pair) = Pair::build(test, number) else { return };
    pair.protect(&["--lease", "5s"]);
    let mut ledger = pair.ledger();
    ledger.wait_more(50);
    let leased = pair.hosts[0].wait_unit("db", "leased", |u| u["lease_left_ms"].is_u64());
    assert_eq!(leased["lease_ms"], 5_000, "{leased:#}");
    let watch = pair.watch();
    match how {
        Lost::Killed => pair.hosts[0].kill(),
        Lost::Stopped => signal(&pair.hosts[0], Signal::STOP),
        Lost::Cut => {}
    }
    pair.proxy.cut(Cut::Both);
    // Asked too early it says for how long the lease may still be held, waits for that, and only then
    // takes over.
    let early = pair.hosts[1].json(&["failover", "db", "--dry-run"]);
    let left = early["lease_left_ms"].as_u64();
    assert!(left.is_some_and(|left| left <= 5_250), "{early:#}");
    let done = pair.hosts[1].json(&["failover", "db", "--yes"]);
    assert_eq!(pair.writers(0), Vec::<u32>::new(), "{how:?}: the old primary's workload writes on");
    assert_eq!((&done["proof"], &done["epoch"]), (&"lease_ran_out".into(), &2.into()), "{done:#}");
    pair.hosts[1].wait_serving("db");
    ledger.wait_more(50);
    ledger.stop();
    // It comes back as the standby, and makes nothing writable.
    match how {
        Lost::Killed => pair.hosts[0].serve(),
        Lost::Stopped => signal(&pair.hosts[0], Signal::CONT),
        Lost::Cut => {}
    }
    pair.proxy.heal();
    pair.hosts[0]
        .wait_unit("db", "the standby", |u| u["role"] == "standby" && u["epoch"]["number"] == 2);
    pair.hosts[1].wait_unit("db", "in step again", |u| {
        u["standbys"][0]["lag_ms"].is_u64() && u["lease_left_ms"].is_u64()
    });
    assert_eq!(pair.writers(0), Vec::<u32>::new(), "{how:?}: the standby writes");
    watch.end(test);
    // Each record that was acknowledged is on the new primary, or was only on the old one and is kept.
    let there = records(&pair.volume(1));
    let aside = aside(&pair);
    let lost: Vec<u64> = (1..=ledger.acked()).filter(|n| !there.contains(n)).collect();
    assert!(lost.iter().all(|n| aside.contains(n)), "{lost:?} are nowhere");
    eprintln!("{how:?}: {} records were only on the old primary, and are kept", lost.len());
}

#[test]
fn a_lease_stops_the_workload_of_a_killed_daemon_before_the_standby_takes_over() {
    let test = "a_lease_stops_the_workload_of_a_killed_daemon_before_the_standby_takes_over";
    check(Lost::Killed, 60, test);
}

#[test]
fn a_lease_stops_the_workload_of_a_stopped_daemon_before_the_standby_takes_over() {
    let test = "a_lease_stops_the_workload_of_a_stopped_daemon_before_the_standby_takes_over";
    check(Lost::Stopped, 61, test);
}

#[test]
fn a_lease_stops_the_workload_behind_a_cut_link_before_the_standby_takes_over() {
    let test = "a_lease_stops_the_workload_behind_a_cut_link_before_the_standby_takes_over";
    check(Lost::Cut, 62, test);
}
