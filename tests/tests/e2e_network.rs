//! Where clients find a workload that moves, through the binary: an address that goes with it, seen from
//! a third host; and PostgreSQL behind a forwarder, whose clients know nothing but the source's port.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flocker_tests::e2e::database::{Kind, Load, Plan};
use flocker_tests::e2e::host::Host;
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::netns::{self, DEVICE, Lan};
use flocker_tests::e2e::rig::{Options, Rig};
use flocker_tests::e2e::watch::{Watch, processes};
use flocker_tests::e2e::{Ledger, World, skip, wait_for};

/// Where the nodes listen.
const PORT: u16 = 7001;

/// Where the workload does, on every address of its host.
const WORKLOAD: &str = "0.0.0.0:5000";

#[test]
fn an_address_moves_with_its_workload_and_a_client_on_another_host_goes_on_with_it() {
    let test = "an_address_moves_with_its_workload_and_a_client_on_another_host_goes_on_with_it";
    let lan = match Lan::lay("n70", 70) {
        Ok(lan) => lan,
        Err(why) => return skip(&format!("network namespaces: {why}"), test),
    };
    let world = World::new();
    let [a, b] = [0, 1].map(|end: usize| {
        let name = ["a", "b"][end];
        let store = format!("vault:{}", world.path().join(format!("{name}-vault")).display());
        let listen = format!("{}:{PORT}", lan.wire.addresses[end]);
        let netns = Some(lan.wire.names[end].as_str());
        let mut host = Host::init(&world, name, &store, &listen, netns);
        host.serve();
        host
    });
    a.pair(&b, ["recv/b", "recv/a"]);
    a.ok(&["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"]);
    b.wait_unit("db", "known", |u| u["role"] == "standby");
    let moving = "10.213.70.50";
    let (address, workload) =
        (format!("{moving}/24@{DEVICE}"), workload_binary().display().to_string());
    for host in [&b, &a] {
        host.ok(&["run", "db", "--address", &address, "--", &workload, WORKLOAD]);
    }
    a.wait_serving("db");
    // Both listen on every address, so who runs where is told by the namespace.
    let names = lan.wire.names.clone();
    let watch = Watch::start("the workload", move |end| {
        let all = processes(&[&workload, WORKLOAD]);
        all.into_iter().filter(|pid| is_in(*pid, &names[end])).collect()
    });
    let ledger = Ledger::start_in(Some(&lan.client), &[format!("{moving}:5000")]);
    ledger.wait_more(50);
    assert!(lan.client_knows(moving, 0), "the client has it from a");
    for (from, to, end) in [(&a, &b, 1), (&b, &a, 0), (&a, &b, 1)] {
        from.wait_in_step("db");
        from.json(&["migrate", "db", "--to", &to.name]);
        assert!(lan.has(end, moving), "{} has it when the move is reported", to.name);
        assert!(!lan.has(1 - end, moving), "{} has it still", from.name);
        ledger.wait_more(50);
        assert!(lan.client_knows(moving, end), "the client has it from {}", to.name);
    }
    b.ok(&["stop", "db"]);
    // Taken off once nothing runs there any more; the command does not wait for that.
    wait_for("the address is where the workload runs: nowhere", || {
        !lan.has(0, moving) && !lan.has(1, moving)
    });
    watch.end(test);
    let unit = b.unit("db").expect("the unit");
    let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
    let verdict = ledger.verdict(&world.path().join("b-vault/live").join(dataset));
    assert!(verdict.holds(), "{verdict:?}");
}

/// Whether a process is in a network namespace.
fn is_in(pid: u32, name: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: String| std::fs::metadata(path).map(|meta| meta.ino());
    match (inode(format!("/proc/{pid}/ns/net")), inode(format!("/run/netns/{name}"))) {
        (Ok(its), Ok(there)) => its == there,
        _ => false,
    }
}

/// Connects all the time and counts how often nobody takes its connection.
struct Knocking {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u32, u32)>,
}

impl Knocking {
    fn start(netns: &str, address: SocketAddr) -> Self {
        let (stop, netns) = (Arc::new(AtomicBool::new(false)), netns.to_owned());
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            netns::enter(&netns);
            let (mut taken, mut refused) = (0, 0);
            while !ends.load(Ordering::Relaxed) {
                match TcpStream::connect(address) {
                    Ok(_) => taken += 1,
                    Err(_) => refused += 1,
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (taken, refused)
        });
        Self { stop, thread }
    }

    /// How many connections were taken, how many refused.
    fn end(self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it knocked")
    }
}

#[test]
fn postgresql_behind_a_forwarder_is_a_pause_to_its_clients_and_no_refusal_forth_and_back() {
    let test =
        "postgresql_behind_a_forwarder_is_a_pause_to_its_clients_and_no_refusal_forth_and_back";
    let options =
        Options { test, number: 71, kinds: &[Kind::Postgres], rpo: "500ms", proxied: false };
    let Some(mut rig) = Rig::build(&options) else { return };
    let [at_a, at_b] = rig.databases[0].addresses;
    let port = SocketAddr::new(at_a.ip(), 6432);
    // A running workload keeps its ports: they are said before it is started again.
    rig.hosts[0].ok(&["stop", "postgres"]);
    let forward = format!("{port}={at_a},{at_b}");
    rig.set_workload_with(0, 0, &["--forward", &forward]);
    rig.hosts[0].wait_serving("postgres");
    let netns = rig.wire.names[0].clone();
    let load = Load::start(&Plan {
        kind: Kind::Postgres,
        netns: Some(netns.clone()),
        addresses: vec![port],
        load: 100,
        clients: 4,
        per_second: 200,
    });
    load.wait_more(100, "before");
    let watch = rig.watch(0);
    let knocking = Knocking::start(&netns, port);
    for from in [0, 1] {
        rig.hosts[from].wait_in_step("postgres");
        let begun = Instant::now();
        let report = rig.move_from(0, from, test);
        load.wait_more(100, "after a move");
        let gap = load.ledger().longest_gap(begun, Instant::now());
        let clients = &report["clients"];
        let (gap_ms, total) = (gap.as_millis(), &report["downtime_ms"]["total"]);
        eprintln!("longest gap {gap_ms} ms, down for {total} ms, as the report has it: {clients}");
        if from == 1 {
            // The forwarder is a's, so b, which reports this move, knows of no clients.
            assert!(clients.is_null(), "{report:#}");
            continue;
        }
        assert!(clients["lost"].as_u64().is_some_and(|lost| lost > 0), "{report:#}");
        assert!(clients["held"].as_u64().is_some_and(|held| held > 0), "{report:#}");
        assert_eq!(clients["errors"], 0, "{report:#}");
        let felt = clients["longest_gap_ms"].as_u64().expect("a gap");
        assert!(felt > 0 && u128::from(felt) <= gap_ms, "{report:#}");
        let history = rig.hosts[0].json(&["history", "postgres"]);
        let events = history["events"].as_array().expect("events");
        let migrated = events.iter().find(|event| event["kind"] == "migrated");
        assert_eq!(&migrated.expect("the move")["report"]["clients"], clients);
    }
    let (taken, refused) = knocking.end();
    assert!(taken > 0 && refused == 0, "{taken} connections taken, {refused} refused");
    watch.end(test);
    rig.check(0, Some(load), test);
}
