//! A failover rehearsed on zfs-fuse with PostgreSQL: on a clone, while replication goes on.

use std::process::Command;

use flocker_tests::e2e::database::Kind;
use flocker_tests::e2e::rig::{Options, Rig};

/// The clones and other datasets of a pool, with their snapshots.
fn datasets(pool: &str) -> Vec<String> {
    let args = ["list", "-H", "-o", "name", "-r", "-t", "filesystem", pool];
    let output = Command::new("zfs").args(args).output().expect("zfs runs");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Every PostgreSQL on this machine that calls itself so.
fn servers(node: &str) -> Vec<u32> {
    let wanted = format!("cluster_name={node}");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|word| word.ends_with(b"bin/postgres"))
            && words.contains(&wanted.as_bytes())
    })
    .collect()
}

#[test]
fn a_drill_of_postgresql_on_zfs_fuse_comes_up_leaves_nothing_and_never_stops_replication() {
    let test =
        "a_drill_of_postgresql_on_zfs_fuse_comes_up_leaves_nothing_and_never_stops_replication";
    let options =
        Options { test, number: 80, kinds: &[Kind::Postgres], rpo: "500ms", proxied: false };
    let Some(mut rig) = Rig::build(&options) else { return };
    let b = &rig.hosts[1];
    // What is drilled has a network of its own: it listens there too, and is asked there.
    let address = rig.databases[0].addresses[1];
    let command = Kind::Postgres.command("drilled", address);
    let any: Vec<String> = command
        .iter()
        .map(|word| match word.starts_with("listen_addresses=") {
            true => "listen_addresses=*".to_owned(),
            false => word.clone(),
        })
        .collect();
    // Both hosts are this machine, so the process that the replica's lock file names does live. Between
    // hosts PostgreSQL finds nobody there and goes on.
    let script = format!("rm -f postmaster.pid; exec {}", any.join(" "));
    let health = format!("tcp:127.0.0.1:{}", address.port());
    let run = ["run", "postgres", "--stop-limit", "60s", "--stop-signal", "INT"];
    b.ok(&[&run[..], &["--health", &health, "--", "sh", "-c", &script]].concat());
    let before = datasets(rig.pool(1));
    let load = rig.load(0, 4, 200);
    load.wait_more(200, test);
    let (a, b) = (&rig.hosts[0], &rig.hosts[1]);
    a.wait_in_step("postgres");
    let rounds = |unit: &serde_json::Value| unit["standbys"][0]["rounds"].as_u64().unwrap_or(0);
    let first = rounds(&a.unit("postgres").expect("the unit"));
    for time in 1..=3 {
        let drill = b.json(&["failover", "postgres", "--drill"]);
        eprintln!("{drill:#}");
        assert_eq!(drill["healthy"], true, "{drill:#}");
        assert_eq!(datasets(rig.pool(1)), before, "drill {time}: something is left in the pool");
        assert_eq!(servers("drilled"), Vec::<u32>::new(), "drill {time}: it runs on");
        let unit = b.unit("postgres").expect("the unit");
        assert_eq!(unit["role"], "standby", "{unit:#}");
        assert_eq!(unit["epoch"]["number"], 1, "{unit:#}");
    }
    let unit = a.unit("postgres").expect("the unit");
    assert!(rounds(&unit) > first && unit["alarm"].is_null(), "{first} rounds before: {unit:#}");
    assert!(unit["standbys"][0]["failure"].is_null(), "{unit:#}");
    let last = rounds(&unit);
    a.wait_unit("postgres", "replicated after the drills", |u| rounds(u) > last + 2);
    // One that does not come up says so by its exit code, and leaves as little.
    b.ok(&["run", "postgres", "--", "/bin/false"]);
    let output = b.run(&["failover", "postgres", "--drill"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(datasets(rig.pool(1)), before);
    // The replica is as good as before: what was drilled can be moved to.
    rig.set_workload(0, 1);
    rig.move_from(0, 0, test);
    load.wait_more(50, test);
    rig.check(0, Some(load), test);
}
