//! Where UDP is blocked between two hosts, through the binary: they pair, replicate and move over TLS, say why, and
//! go back to QUIC when UDP passes again.

use std::time::{Duration, Instant};

use flocker_tests::e2e::host::{Host, PATIENCE};
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::netns::Wire;
use flocker_tests::e2e::{Ledger, World, skip};
use serde_json::Value;

/// How control reaches the other node, as `status` has it.
fn control(host: &Host) -> Value {
    host.json(&["status"])["links"][0]["control"].clone()
}

fn wait_over(host: &Host, over: &str) -> Value {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let control = control(host);
        if control["over"] == over {
            return control;
        }
        assert!(Instant::now() < until, "{}: {control}\n{}", host.name, host.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Pairs, protects, replicates, moves with UDP blocked; then lets it through, and moves back.
#[test]
fn two_hosts_without_udp_pair_replicate_and_move_over_tls_and_go_back_to_quic() {
    let test = "two_hosts_without_udp_pair_replicate_and_move_over_tls_and_go_back_to_quic";
    let wire = match Wire::lay("u74", 74) {
        Ok(wire) => wire,
        Err(why) => return skip(&format!("network namespaces: {why}"), test),
    };
    wire.block_udp(true);
    let world = World::new();
    let [a, b] = [0, 1].map(|end: usize| {
        let name = ["a", "b"][end];
        let store = format!("vault:{}", world.path().join(format!("{name}-vault")).display());
        let listen = format!("{}:7001", wire.addresses[end]);
        let mut host = Host::init(&world, name, &store, &listen, Some(&wire.names[end]));
        host.serve();
        host
    });
    a.pair(&b, ["recv/b", "recv/a"]);
    for host in [&a, &b] {
        let control = wait_over(host, "tls");
        assert_eq!(control["udp_blocked"], true, "{control}");
        let doctor = host.run(&["doctor"]);
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(doctor.contains("UDP is blocked on the way"), "{doctor}");
    }
    a.ok(&["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"]);
    b.wait_unit("db", "known", |u| u["role"] == "standby");
    let workload = workload_binary().display().to_string();
    let addresses = [0, 1].map(|end: usize| format!("{}:5000", wire.addresses[end]));
    for (host, address) in [(&b, &addresses[1]), (&a, &addresses[0])] {
        host.ok(&["run", "db", "--", &workload, address]);
    }
    a.wait_serving("db");
    let ledger = Ledger::start_in(Some(&wire.names[0]), &addresses);
    ledger.wait_more(50);
    a.wait_in_step("db");
    a.json(&["migrate", "db", "--to", "b"]);
    ledger.wait_more(50);
    assert_eq!(control(&a)["over"], "tls");
    let marks = [&a, &b].map(Host::log_length);
    wire.block_udp(false);
    for host in [&a, &b] {
        let control = wait_over(host, "quic");
        assert_eq!(control["udp_blocked"], false, "{control}");
    }
    for (host, mark) in [&a, &b].into_iter().zip(marks) {
        assert!(!host.log_since(mark).contains("peer down"), "the session ended on the way");
    }
    b.wait_in_step("db");
    b.json(&["migrate", "db", "--to", "a"]);
    ledger.wait_more(50);
    a.ok(&["stop", "db"]);
    let unit = a.unit("db").expect("the unit");
    let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
    let verdict = ledger.verdict(&world.path().join("a-vault/live").join(dataset));
    assert!(verdict.holds(), "{verdict:?}");
}
