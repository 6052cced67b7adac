//! Looking at a replica while replication goes on, and the machine looked over: `browse` and `doctor` as people run
//! them, on vaults and on zfs-fuse.

use std::path::Path;

use flocker_tests::e2e::{Host, World, wait_for};
use flocker_zfs::fixture::{FusePool, pool_or_skip};
use serde_json::Value;

fn write(path: &Path, text: &str) {
    std::fs::write(path.join("f"), text).expect("written");
}

/// A copy of the replica that has this in it, sooner or later: opened anew until then.
fn shows(host: &Host, text: &str) -> Value {
    let last = std::cell::RefCell::new(Value::Null);
    wait_for(&format!("a copy shows {text}"), || {
        let view = host.json(&["browse", "db"]);
        let path = view["open"][0]["path"].as_str().expect("a path").to_owned();
        *last.borrow_mut() = view;
        std::fs::read_to_string(Path::new(&path).join("f")).is_ok_and(|found| found == text)
    });
    last.into_inner()
}

fn goes_on(a: &Host) {
    a.wait_unit("db", "in step", |u| {
        u["alarm"].is_null() && u["standbys"][0]["lag_ms"].as_u64() < Some(1_500)
    });
}

/// What is the same on every store.
fn a_replica_is_looked_at(a: &Host, b: &Host, live: &Path) {
    write(live, "one");
    a.wait_in_step("db");
    let view = shows(b, "one");
    let path = view["open"][0]["path"].as_str().expect("a path").to_owned();
    write(live, "two");
    goes_on(a);
    let listed = b.json(&["browse"]);
    assert_eq!(listed["open"][0]["path"], view["open"][0]["path"], "it stays what it is");
    shows(b, "two");
    let out = b.ok(&["browse", "db", "--close"]);
    assert!(out.contains("is taken away"), "{out}");
    assert!(!Path::new(&path).join("f").exists());
    let (code, words) = b.fails(&["browse", "db", "--close"]);
    assert!(code == 4 && words.contains("no copy of `db` is open"), "{code}: {words}");
    // With a command: its working directory, and gone behind it, whatever it says.
    assert_eq!(b.ok(&["browse", "db", "--", "cat", "f"]), "two");
    let (code, words) = b.fails(&[
        "browse",
        "db",
        "--",
        "sh",
        "-c",
        "test \"$PWD\" = \"$FLOCKER_VOLUME_PATH\" && exit 7",
    ]);
    assert!(code == 5 && words.contains('7'), "{code}: {words}");
    assert!(b.ok(&["browse"]).contains("no copy is open"));
    let (code, _) = b.fails(&["browse", "other"]);
    assert_eq!(code, 4);
    write(live, "three");
    goes_on(a);
    // The primary's own newest moment can be looked at as well.
    assert!(!a.json(&["browse", "db"])["open"][0]["path"].is_null());
    a.ok(&["browse", "--close"]);
}

#[test]
fn a_replica_on_a_vault_is_looked_at_while_replication_goes_on() {
    let world = World::new();
    let (a, mut b) = world.vault_pair();
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "300ms", "--create"]);
    a_replica_is_looked_at(&a, &b, &world.path().join("a-vault/live/vault/data/db"));
    let text = b.ok(&["doctor"]);
    for words in
        ["this user's alone", "is open by the daemon", "peer a is connected", "db is standby here"]
    {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    b.kill();
    let report = b.json(&["doctor"]);
    assert_eq!(report["bad"], 0, "{report:#}");
    let text = b.ok(&["doctor"]);
    assert!(
        text.contains("no flocker-repl daemon answers") && text.contains("live directory"),
        "{text}"
    );
    wait_for("a has noticed", || {
        let output = a.run(&["doctor"]);
        output.status.code() == Some(5)
            && String::from_utf8_lossy(&output.stdout).contains("peer b is not connected")
    });
}

/// Two nodes on pools of zfs-fuse.
fn on_fuse(world: &World, pa: &FusePool, pb: &FusePool) -> (Host, Host) {
    let (mut a, mut b) = (world.zfs_host("a", pa.name()), world.zfs_host("b", pb.name()));
    a.serve();
    b.serve();
    a.pair(&b, ["recv", "recv"]);
    a.ok(&["protect", "db", "--to", "b", "--name", "db", "--rpo", "300ms", "--create"]);
    (a, b)
}

#[test]
fn a_replica_on_zfs_fuse_is_looked_at_read_only_while_replication_goes_on() {
    let test = "a_replica_on_zfs_fuse_is_looked_at_read_only_while_replication_goes_on";
    let (Some(pa), Some(pb)) = (pool_or_skip("bra", 128, test), pool_or_skip("brb", 128, test))
    else {
        return;
    };
    let world = World::new();
    let (a, b) = on_fuse(&world, &pa, &pb);
    let live = pa.mountpoint().join("db");
    write(&live, "zero");
    a.wait_in_step("db");
    let (_, words) = b.fails(&["browse", "db", "--", "touch", "new"]);
    assert!(words.contains("touch"), "read-only: {words}");
    a_replica_is_looked_at(&a, &b, &live);
    let text = b.ok(&["doctor"]);
    for words in ["zfs-fuse", "is ONLINE", "replicas of filesystem"] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
}
