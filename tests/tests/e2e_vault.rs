//! The binary on vault ↔ vault: pair, protect, write, migrate, migrate back; and bad input.

use std::path::PathBuf;

use flocker_tests::e2e::host::free_tcp_port;
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::{Host, Ledger, World};
use serde_json::Value;

/// Two paired nodes with vaults.
fn pair() -> (World, Host, Host) {
    let world = World::new();
    let (a, b) = world.vault_pair();
    (world, a, b)
}

/// A protected volume `data/db` on `a` with the test workload on both nodes; the workload's address.
fn protect_and_run(a: &Host, b: &Host) -> String {
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "300ms", "--create"]);
    let address = format!("127.0.0.1:{}", free_tcp_port());
    let workload = workload_binary().display().to_string();
    for host in [b, a] {
        if host.name == "b" {
            host.wait_unit("db", "known", |u| u["role"] == "standby");
        }
        host.ok(&["run", "db", "--", &workload, &address]);
    }
    a.wait_serving("db");
    address
}

fn volume(host: &Host, world: &World) -> PathBuf {
    let unit = host.unit("db").expect("the unit");
    let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
    world.path().join(format!("{}-vault", host.name)).join("live").join(dataset)
}

fn epoch(report: &Value) -> u64 {
    report["epoch"].as_u64().unwrap_or_else(|| panic!("no epoch in {report:#}"))
}

#[test]
fn a_unit_moves_forth_and_back_and_forth_with_every_acknowledged_record() {
    let (world, a, b) = pair();
    let address = protect_and_run(&a, &b);
    let ledger = Ledger::start(&[address]);
    ledger.wait_more(50);
    a.wait_in_step("db");
    let there = a.json(&["migrate", "db", "--to", "b"]);
    assert_eq!(epoch(&there), 2, "{there:#}");
    b.wait_serving("db");
    ledger.wait_more(50);
    b.wait_in_step("db");
    let back = b.json(&["migrate", "db", "--to", "a"]);
    assert_eq!(epoch(&back), 3, "{back:#}");
    a.wait_serving("db");
    ledger.wait_more(50);
    a.wait_in_step("db");
    a.json(&["migrate", "db", "--to", "b"]);
    b.wait_serving("db");
    ledger.wait_more(20);
    let verdict = ledger.verdict(&volume(&b, &world));
    assert!(verdict.holds(), "{verdict:?}");
    assert!(verdict.acked >= 170, "{verdict:?}");
    assert_eq!(a.unit("db").expect("the unit")["role"], "standby");
}

/// Clients that know only `a`'s port: the workload listens elsewhere on each node.
#[test]
fn clients_behind_a_forward_see_a_pause_and_no_refusal() {
    let (world, a, b) = pair();
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "300ms", "--create"]);
    b.wait_unit("db", "known", |u| u["role"] == "standby");
    let [port, at_a, at_b] = [(); 3].map(|()| format!("127.0.0.1:{}", free_tcp_port()));
    let workload = workload_binary().display().to_string();
    let forward = format!("{port}={at_a},{at_b}");
    let tcp = format!("tcp:{at_b}");
    b.ok(&["run", "db", "--health", &tcp, "--", &workload, &at_b]);
    a.ok(&["run", "db", "--forward", &forward, "--", &workload, &at_a]);
    a.wait_serving("db");
    let first = std::net::TcpStream::connect(&port).expect("the port is open");
    let ledger = Ledger::start(std::slice::from_ref(&port));
    ledger.wait_more(50);
    a.wait_in_step("db");
    // Comes again at once whenever it is cut, and counts how often nobody takes its connection.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (ends, address) = (stop.clone(), port.clone());
    let knocking = std::thread::spawn(move || {
        let mut refused = 0;
        while !ends.load(std::sync::atomic::Ordering::Relaxed) {
            refused += u32::from(std::net::TcpStream::connect(&address).is_err());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        refused
    });
    let report = a.json(&["migrate", "db", "--to", "b"]);
    b.wait_serving("db");
    ledger.wait_more(50);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(knocking.join().expect("it knocked"), 0, "connections were refused");
    drop(first);
    let clients = &report["clients"];
    assert!(clients["held"].as_u64().is_some_and(|held| held > 0), "{report:#}");
    assert!(clients["lost"].as_u64().is_some_and(|lost| lost > 0), "{report:#}");
    assert_eq!(clients["errors"], 0, "{report:#}");
    eprintln!("as clients felt it: {clients}, downtime {}", report["downtime_total_ms"]);
    let verdict = ledger.verdict(&volume(&b, &world));
    assert!(verdict.holds(), "{verdict:?}");
}

#[test]
fn a_migration_back_sends_only_what_changed() {
    let (world, a, b) = pair();
    let address = protect_and_run(&a, &b);
    let ballast: Vec<u8> =
        (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(volume(&a, &world).join("ballast"), ballast).expect("room for ballast");
    let ledger = Ledger::start(&[address]);
    ledger.wait_more(10);
    a.wait_in_step("db");
    a.json(&["migrate", "db", "--to", "b"]);
    b.wait_serving("db");
    ledger.wait_more(10);
    let back = b.json(&["migrate", "db", "--to", "a"]);
    let sent: u64 = back["rounds"]
        .as_array()
        .expect("rounds")
        .iter()
        .map(|r| r["stream_bytes"].as_u64().expect("bytes"))
        .sum();
    assert!(sent < 2_000_000, "the way back resent the ballast: {back:#}");
    assert!(back["rounds"].as_array().expect("rounds").iter().all(|r| r["full"] == false));
    let verdict = ledger.verdict(&volume(&a, &world));
    assert!(verdict.holds(), "{verdict:?}");
}

#[test]
fn a_wrong_code_is_counted_and_five_end_the_invitation() {
    let world = World::new();
    let (mut a, mut b) = (world.vault_host("a"), world.vault_host("b"));
    a.serve();
    b.serve();
    let (address, code, mut invite) = a.invite();
    let wrong =
        if code.starts_with('0') { code.replacen('0', "1", 1) } else { format!("0{}", &code[1..]) };
    for _ in 0..5 {
        let (exit, words) = b.fails(&["pair", &address, &wrong]);
        assert!(exit != 0 && words.to_lowercase().contains("code"), "{words}");
    }
    let (_, words) = b.fails(&["pair", &address, &code]);
    assert!(!words.is_empty());
    assert!(b.json(&["status"])["peers"].as_array().expect("peers").is_empty());
    assert!(a.json(&["status"])["peers"].as_array().expect("peers").is_empty());
    let _ = invite.kill();
    let _ = invite.wait();
}

#[test]
fn what_was_not_granted_is_refused_by_name_and_changes_nothing() {
    let world = World::new();
    let (mut a, mut b) = (world.vault_host("a"), world.vault_host("b"));
    a.serve();
    b.serve();
    let (address, code, mut invite) = a.invite();
    b.ok(&["pair", &address, &code]);
    let _ = invite.wait();
    a.wait_connected("b");
    b.wait_connected("a");
    let (_, words) = a.fails(&["protect", "data/db", "--to", "b", "--create"]);
    assert!(words.contains("grant"), "{words}");
    assert!(a.unit("db").is_none() && b.unit("db").is_none());
    let (_, words) = a.fails(&["protect", "data/none", "--to", "b"]);
    assert!(words.contains("data/none") && words.contains("does not exist"), "{words}");
    let (_, words) = a.fails(&["protect", "data/db", "--to", "zork"]);
    assert!(words.contains("zork") && words.contains("no peer"), "{words}");
}

#[test]
fn a_target_that_may_not_start_the_workload_refuses_before_anything_stops() {
    let (world, a, b) = pair();
    let address = protect_and_run(&a, &b);
    b.ok(&["grant", "a", "--receive", "recv/a"]);
    let ledger = Ledger::start(&[address]);
    ledger.wait_more(5);
    a.wait_in_step("db");
    let (_, words) = a.fails(&["migrate", "db", "--to", "b"]);
    assert!(words.contains("workload"), "{words}");
    a.wait_serving("db");
    ledger.wait_more(20);
    let verdict = ledger.verdict(&volume(&a, &world));
    assert!(verdict.holds(), "{verdict:?}");
    assert_eq!(a.unit("db").expect("the unit")["epoch"]["number"], 1);
}

#[test]
fn unprotect_and_unpair_take_back_what_they_gave() {
    let (world, a, b) = pair();
    let address = protect_and_run(&a, &b);
    let ledger = Ledger::start(&[address]);
    ledger.wait_more(5);
    a.wait_in_step("db");
    let (_, words) = a.fails(&["unpair", "b"]);
    assert!(words.contains("db"), "{words}");
    let (_, words) = a.fails(&["unprotect", "db"]);
    assert!(words.contains("stop"), "{words}");
    a.ok(&["stop", "db"]);
    let live = volume(&a, &world);
    a.ok(&["unprotect", "db"]);
    assert!(a.unit("db").is_none());
    let verdict = ledger.verdict(&live);
    assert!(verdict.holds(), "the data stays: {verdict:?}");
    a.ok(&["unpair", "b"]);
    assert!(a.json(&["status"])["peers"].as_array().expect("peers").is_empty());
}

#[test]
fn pause_stands_still_and_resume_catches_up() {
    let (_world, a, b) = pair();
    let address = protect_and_run(&a, &b);
    let ledger = Ledger::start(&[address]);
    ledger.wait_more(5);
    a.wait_in_step("db");
    a.ok(&["pause", "db"]);
    a.wait_unit("db", "far behind", |u| u["standbys"][0]["lag_ms"].as_u64() > Some(1500));
    let (_, words) = a.fails(&["migrate", "db", "--to", "b"]);
    assert!(words.contains("paused"), "{words}");
    a.ok(&["resume", "db"]);
    a.wait_unit("db", "caught up", |u| u["standbys"][0]["lag_ms"].as_u64() < Some(1000));
    drop(ledger);
}
