//! Taking over on real ZFS, natively (zfs-fuse): a replica made by plain `zfs send | zfs receive` is gone on
//! from, and what is not what it was sent is refused as it stands.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flocker_tests::e2e::{World, zfs};
use flocker_zfs::fixture::{FusePool, pool_or_skip};

fn mountpoint(dataset: &str) -> PathBuf {
    zfs(&["get", "-H", "-o", "value", "mountpoint", dataset]).trim().into()
}

/// `zfs snapshot`, `zfs send | zfs receive`: what every tool does in the end.
fn tool_sends(source: &str, replica: &str, snapshot: &str, base: Option<&str>) {
    let to = format!("{source}@{snapshot}");
    zfs(&["snapshot", &to]);
    let from = base.map(|b| format!("@{b}"));
    let mut words = vec!["send"];
    words.extend(from.iter().flat_map(|f| ["-i", f.as_str()]));
    words.push(&to);
    let mut send =
        Command::new("zfs").args(&words).stdout(Stdio::piped()).spawn().expect("zfs runs");
    let stream = send.stdout.take().expect("its stream");
    let receive = Command::new("zfs").args(["receive", replica]).stdin(stream).status();
    assert!(receive.expect("zfs runs").success(), "receive into {replica}");
    assert!(send.wait().expect("it ends").success(), "send of {to}");
}

fn write(at: &Path, name: &str, bytes: usize) {
    let noise = (0..bytes).map(|i| ((i * i) >> 3) as u8 ^ (i >> 8) as u8);
    std::fs::write(at.join(name), noise.collect::<Vec<u8>>()).expect("a file");
}

fn snapshots(dataset: &str) -> Vec<String> {
    let text =
        zfs(&["list", "-H", "-r", "-t", "snapshot", "-o", "name", "-s", "creation", dataset]);
    text.lines().filter_map(|l| Some(l.split_once('@')?.1.to_owned())).collect()
}

/// A source below `pa`, sent twice to `replica` by hand.
fn made_by_hand(pa: &FusePool, name: &str, replica: &str) -> String {
    let source = format!("{}/{name}", pa.name());
    zfs(&["create", &source]);
    write(&mountpoint(&source), "first", 3_000_000);
    tool_sends(&source, replica, "tool_1", None);
    write(&mountpoint(&source), "second", 200_000);
    tool_sends(&source, replica, "tool_2", Some("tool_1"));
    source
}

#[test]
fn a_replica_made_by_hand_is_gone_on_from_and_one_that_was_written_is_refused() {
    let test = "a_replica_made_by_hand_is_gone_on_from_and_one_that_was_written_is_refused";
    let (Some(pa), Some(pb)) =
        (pool_or_skip("adopta", 256, test), pool_or_skip("adoptb", 256, test))
    else {
        return;
    };
    let world = World::new();
    let host = |name: &str, pool: &FusePool| {
        let mut host = world.zfs_host(name, pool.name());
        host.serve();
        host
    };
    let (a, b) = (host("a", &pa), host("b", &pb));
    let recv = format!("{}/recv", pb.name());
    a.pair(&b, [&format!("{}/recv", pa.name()), &recv]);
    for parent in [recv.clone(), format!("{}/tool", pb.name())] {
        zfs(&["create", &parent]);
    }

    // Where the peer may not receive: the rename that helps is named, and does.
    let elsewhere = format!("{}/tool/db", pb.name());
    let db = made_by_hand(&pa, "db", &elsewhere);
    let (_, said) = a.fails(&["protect", &db, "--to", "b", "--adopt", &elsewhere]);
    let place = format!("{recv}/db");
    assert!(said.contains(&format!("zfs rename -p {elsewhere} {place}")), "{said}");
    // zfs-fuse says busy of what is mounted.
    zfs(&["unmount", &elsewhere]);
    zfs(&["rename", &elsewhere, &place]);

    // Without the word it stays refused, and the word is named.
    let (_, said) = a.fails(&["protect", &db, "--to", "b"]);
    assert!(said.contains("--adopt") && said.contains("@tool_2"), "{said}");

    write(&mountpoint(&db), "third", 100_000);
    let done = a.json(&["protect", &db, "--to", "b", "--rpo", "1s", "--adopt"]);
    assert_eq!(done["adopted"][0]["base"], "tool_2", "{done:#}");
    let unit = a.wait_in_step("db");
    let sent = unit["standbys"][0]["stream_bytes"].as_u64().expect("a count");
    assert!(sent < 1_500_000, "{sent} bytes were sent; all of it is 3.3 MB");
    // The other tool's snapshots stay, the base is held, the replica is at rest.
    assert_eq!(snapshots(&place)[..2], ["tool_1", "tool_2"]);
    assert_eq!(snapshots(&db)[..2], ["tool_1", "tool_2"]);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "mounted", &place]).trim(), "no");
    assert_eq!(zfs(&["get", "-H", "-o", "value", "canmount", &place]).trim(), "noauto");
    let moved = a.json(&["migrate", "db", "--to", "b"]);
    assert_eq!(moved["epoch"], 2, "{moved:#}");
    b.wait_unit("db", "primary", |u| u["role"] == "primary" && u["doing"] == "serving");
    for (name, bytes) in [("first", 3_000_000), ("second", 200_000), ("third", 100_000)] {
        let there = std::fs::metadata(mountpoint(&place).join(name)).expect("the file").len();
        assert_eq!(there, bytes, "{name}");
    }

    // One that was written there, and one that is something else: refused, and nothing of them is gone.
    let written = format!("{recv}/w");
    let w = made_by_hand(&pa, "w", &written);
    write(&mountpoint(&written), "mine", 50_000);
    let (_, said) = a.fails(&["protect", &w, "--to", "b", "--adopt"]);
    assert!(said.contains("--diverged") && said.contains(&written), "{said}");
    assert_eq!(snapshots(&written), ["tool_1", "tool_2"]);
    zfs(&["mount", &written]);
    assert!(mountpoint(&written).join("mine").exists());
    let other = format!("{recv}/o");
    zfs(&["create", &other]);
    zfs(&["snapshot", &format!("{other}@tool_1")]);
    let o = format!("{}/o", pa.name());
    zfs(&["create", &o]);
    let (_, said) = a.fails(&["protect", &o, "--to", "b", "--adopt"]);
    assert!(said.contains("no snapshot in common"), "{said}");
    assert_eq!(snapshots(&other), ["tool_1"]);

    // With the other word it is followed, and what only it has goes aside.
    zfs(&["unmount", &written]);
    zfs(&["snapshot", &format!("{written}@mine")]);
    a.ok(&["protect", &w, "--to", "b", "--rpo", "1s", "--adopt", "--diverged"]);
    write(&mountpoint(&w), "third", 100_000);
    a.wait_unit("w", "told apart", |u| !u["alarm"].is_null());
    b.ok(&["resolve", "w", "--yes"]);
    a.wait_unit("w", "well again", |u| u["alarm"].is_null());
    let unit = a.wait_in_step("w");
    let sent = unit["standbys"][0]["stream_bytes"].as_u64().expect("a count");
    assert!(sent < 1_500_000, "{sent} bytes were sent; all of it is 3.3 MB");
}
