//! Real containers with real data on two machines with OpenZFS, moved while clients on a third machine use them: what
//! was acknowledged is there once, connections that move along do not break, and one writer after the other.

use flocker_tests::lab::clients::{
    ADDRESS, Client, make_postgres, make_redis, put_client, wall_ms,
};
use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_with_clients_or_skip, matrix};

const PG: Unit = Unit { name: "pg", zvol: false, raw: false };
const CACHE: Unit = Unit { name: "redis", zvol: false, raw: false };

fn lab(test: &str) -> Option<Lab> {
    let lab = lab_with_clients_or_skip(test)?;
    lab.put_repl();
    put_client(&lab);
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, "systemctl start podman.socket");
    }
    Some(lab)
}

/// Says on both nodes what runs in a unit.
fn run_on_both(lab: &Lab, name: &str, words: &str) {
    for guest in [Guest::Beta, Guest::Alpha] {
        lab.ssh(guest, &format!("flocker-repl run {name} {words} --address {ADDRESS}/24@eth1"));
    }
}

/// There and back so many times; returns the client's longest gap of each, once it has ended, and the report's total.
fn move_to_and_fro(nodes: &Nodes<'_>, unit: &Unit, moves: u32) -> Vec<(u64, u64, u64)> {
    let lab = nodes.lab();
    let mut windows = Vec::new();
    for number in 0..moves {
        let (from, to) = match number % 2 {
            0 => (Guest::Alpha, Guest::Beta),
            _ => (Guest::Beta, Guest::Alpha),
        };
        nodes.wait_in_step(unit, from);
        let begun = wall_ms(lab);
        let words = format!("flocker-repl migrate {} --to {} --json", unit.name, to.name());
        let report: serde_json::Value =
            serde_json::from_str(&lab.ssh(from, &words)).expect("a report");
        let total = report["downtime_ms"]["total"].as_u64().expect("a total");
        println!("move {number}: {}; of that {}", report["downtime_ms"], report["theirs_ms"]);
        windows.push((begun, wall_ms(lab), total));
    }
    lab.wait_for(Guest::Gamma, "answers after the last move", "sleep 4");
    windows
}

#[test]
fn postgres_in_podman_moves_under_load_and_keeps_what_it_acknowledged() {
    let Some(lab) = lab("PostgreSQL in a container, moved under load") else { return };
    let nodes = Nodes::start(&lab);
    make_postgres(&lab, PG.name);
    nodes.protect_only(&PG);
    run_on_both(&lab, PG.name, "--podman pg --health tcp:127.0.0.1:5432 --stop-limit 60s");
    let policy = "podman inspect --format '{{.HostConfig.RestartPolicy.Name}}' pg";
    assert_eq!(lab.ssh(Guest::Alpha, policy), "no", "a boot would start it");
    lab.wait_for(Guest::Beta, "the container over there", "podman container exists pg");

    let client = Client::start(&lab, 1, &format!("ledger postgres {ADDRESS}:5432 4"));
    lab.wait_for(Guest::Gamma, "a load", "sleep 3");
    let windows = move_to_and_fro(&nodes, &PG, 2);
    let felt = client.stop();
    felt.ledger_holds();
    let gaps: Vec<u64> =
        windows.iter().map(|(from, until, _)| felt.longest_gap(*from, *until)).collect();
    let totals: Vec<u64> = windows.iter().map(|window| window.2).collect();
    matrix(&format!(
        "podman, stop: PostgreSQL under load, 2 moves: {} transactions, none lost or doubled; clients waited {gaps:?} ms, \
         down for {totals:?} ms by the report",
        felt.number("acknowledged")
    ));
    assert_eq!(lab.ssh(Guest::Beta, "podman ps -q --filter name=pg"), "", "it runs on both");
    lab.ssh(
        Guest::Alpha,
        "podman exec pg sh -c '$(echo /usr/lib/postgresql/*/bin)/pg_amcheck -h 127.0.0.1 -U postgres --install-missing postgres'",
    );

    lab.ssh(Guest::Alpha, "flocker-repl stop pg");
    let short = nodes.wait_equal(&PG, Guest::Alpha, Guest::Beta);
    let here = nodes.hash(&PG, Guest::Alpha);
    assert_eq!(nodes.hash_standby(&PG, Guest::Beta, &short), here);
    lab.ssh(Guest::Alpha, "flocker-repl unprotect pg");
    assert_eq!(lab.ssh(Guest::Alpha, policy), "always", "what was taken is given back");
}

#[test]
#[ignore = "Redis with its memory between two nodes: the promise came too late on a slow guest, not seen to the end yet: tests/run --soak"]
fn redis_moves_with_its_memory_and_no_connection_breaks() {
    let Some(lab) = lab("Redis in a container, moved with its memory and its connections") else {
        return;
    };
    let nodes = Nodes::start(&lab);
    make_redis(&lab, CACHE.name);
    lab.ssh(
        Guest::Alpha,
        "zfs create tank/flocker/data/memory
         flocker-repl protect data/redis data/memory --name redis --to beta --rpo 5s",
    );
    run_on_both(&lab, CACHE.name, "--podman redis --checkpoint memory --health tcp:127.0.0.1:6379");
    lab.ssh(Guest::Alpha, "podman exec redis redis-cli debug populate 20000 key 1000");
    lab.wait_for(Guest::Beta, "the container over there", "podman container exists redis");

    let client = Client::start(&lab, 1, &format!("open {ADDRESS}:6379 50"));
    lab.wait_for(Guest::Gamma, "a load", "sleep 3");
    let windows = move_to_and_fro(&nodes, &CACHE, 2);
    let felt = client.stop();
    felt.connections_held();
    let gaps: Vec<u64> =
        windows.iter().map(|(from, until, _)| felt.longest_gap(*from, *until)).collect();
    let totals: Vec<u64> = windows.iter().map(|window| window.2).collect();
    matrix(&format!(
        "podman, checkpoint: Redis with 50 connections, 2 moves: {} replies, none lost or repeated, no connection broken; \
         clients waited {gaps:?} ms, down for {totals:?} ms by the report",
        felt.number("replies")
    ));
    let keys = lab.ssh(Guest::Alpha, "podman exec redis redis-cli dbsize");
    assert!(keys.contains("20050"), "{keys}");
}

/// The node's unit of systemd, as it is shipped.
const SERVICE: &str = include_str!("../../cli/systemd/flocker-repl.service");

fn install_service(lab: &Lab, guest: Guest) {
    lab.kill_daemon(guest);
    lab.ssh(
        guest,
        &format!(
            "cat >/etc/systemd/system/flocker-repl.service <<'EOF'\n{SERVICE}EOF
             systemctl -q enable --now flocker-repl.service podman.socket"
        ),
    );
    lab.wait_for(guest, "the daemon", "flocker-repl status");
}

/// The power of a guest is cut, and it boots by itself.
fn power_cut(lab: &Lab, guest: Guest) {
    // The root filesystem has no journal.
    lab.ssh(guest, "sync -f /");
    lab.crash(guest);
    lab.boot(guest);
    lab.wait_for(guest, "the daemon, by the boot", "flocker-repl status");
}

#[test]
#[ignore = "three power cuts and boots under load: tests/run --soak"]
fn a_power_cut_starts_no_old_copy_and_the_workload_comes_back_by_itself() {
    let Some(lab) = lab("a container on machines whose power is cut") else { return };
    let nodes = Nodes::start(&lab);
    for guest in [Guest::Alpha, Guest::Beta] {
        install_service(&lab, guest);
    }
    make_postgres(&lab, PG.name);
    nodes.protect_only(&PG);
    run_on_both(&lab, PG.name, "--podman pg --health tcp:127.0.0.1:5432 --stop-limit 60s");
    let client = Client::start(&lab, 1, &format!("ledger postgres {ADDRESS}:5432 4"));
    let running = "podman ps -q --filter name=pg | grep -q .";

    power_cut(&lab, Guest::Alpha);
    lab.wait_for(Guest::Alpha, "the container, after its standby was asked", running);
    nodes.wait_in_step(&PG, Guest::Alpha);
    nodes.migrate(&PG, Guest::Alpha, Guest::Beta).unwrap();

    nodes.wait_in_step(&PG, Guest::Beta);
    power_cut(&lab, Guest::Alpha);
    assert_eq!(lab.ssh(Guest::Alpha, "podman ps -q --filter name=pg"), "", "an old copy runs");
    let mounted = format!("zfs get -H -o value mounted {}", nodes.dataset(&PG, Guest::Alpha));
    assert_eq!(lab.ssh(Guest::Alpha, &mounted), "no");
    nodes.wait_in_step(&PG, Guest::Beta);

    power_cut(&lab, Guest::Beta);
    lab.wait_for(Guest::Beta, "the container, after its standby was asked", running);
    lab.wait_for(Guest::Gamma, "answers again", "sleep 5");
    let felt = client.stop();
    felt.ledger_holds();
    matrix(&format!(
        "podman, 3 power cuts under load: {} transactions, none lost or doubled, no help",
        felt.number("acknowledged")
    ));
}
