//! A standby that went its own way, with two real daemons: somebody takes a snapshot of it or writes it by
//! hand, the primary says what to run and where, `resolve` keeps the difference aside, replication goes on.

use std::path::Path;

use flocker_store::{DatasetName, SnapshotSpec, Store};
use flocker_tests::e2e::{Host, World};
use flocker_vault::Vault;
use serde_json::Value;

/// Two paired nodes with vaults, and `data/db` of `a` on `b`.
fn protected() -> (World, Host, Host) {
    let world = World::new();
    let (a, b) = world.vault_pair();
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "300ms", "--create"]);
    // Else it may be in the first round already, and there is no second.
    a.wait_in_step("db");
    write(&world, "one");
    wait_equal(&a);
    (world, a, b)
}

/// Into the primary's volume.
fn write(world: &World, text: &str) {
    std::fs::write(world.path().join("a-vault/live/vault/data/db/f"), text).expect("written");
}

fn wait_equal(a: &Host) {
    a.wait_unit("db", "equal", |u| {
        let standby = &u["standbys"][0];
        standby["rounds"].as_u64() > Some(1) && standby["failure"].is_null()
    });
}

fn replica(b: &Host) -> DatasetName {
    let unit = b.unit("db").expect("the unit");
    let name = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
    DatasetName::new(name).expect("a name")
}

/// What somebody does to the standby's store while its daemon is away.
fn by_hand(world: &World, b: &mut Host, work: impl FnOnce(&Vault, &DatasetName)) {
    let dataset = replica(b);
    b.kill();
    let vault = Vault::open(world.path().join("b-vault")).expect("the vault");
    work(&vault, &dataset);
    drop(vault);
    b.serve();
}

fn snapshot(vault: &Vault, dataset: &DatasetName, short: &str) {
    let names = vec![dataset.snapshot(short).expect("a name")];
    let spec = SnapshotSpec { names, quiesced: true, properties: Default::default() };
    vault.snapshot(&spec).expect("a snapshot");
}

/// The primary's alarm, once it names what to do.
fn refused(a: &Host) -> String {
    let unit = a.wait_unit("db", "refused", |u| {
        u["alarm"]["message"].as_str().is_some_and(|m| m.contains("resolve db"))
    });
    unit["alarm"]["message"].as_str().expect("words").to_owned()
}

fn goes_on(world: &World, a: &Host) {
    write(world, "three");
    a.wait_unit("db", "in step again", |u| {
        u["alarm"].is_null() && u["standbys"][0]["lag_ms"].as_u64() < Some(1_500)
    });
}

fn rounds_in_full(a: &Host) -> usize {
    let rounds = a.json(&["rounds", "db", "--last", "1000"]);
    let rounds = rounds["rounds"].as_array().cloned().expect("rounds");
    rounds.iter().filter(|r| r["round"]["full"] == true).count()
}

/// What was set aside is a dataset with what was written by hand.
fn reads(path: &Path, aside: &Value, text: &str) {
    let aside = DatasetName::new(aside.as_str().expect("a name")).expect("a name");
    let vault = Vault::open(path.join("b-vault")).expect("the vault");
    let live = vault.activate(&aside).expect("it is whole").expect("a path");
    assert_eq!(std::fs::read_to_string(live.join("f")).expect("the file"), text);
}

#[test]
fn a_snapshot_taken_by_hand_goes_aside_and_nothing_is_sent_anew() {
    let (world, a, mut b) = protected();
    by_hand(&world, &mut b, |vault, dataset| snapshot(vault, dataset, "mine"));
    write(&world, "two");
    let words = refused(&a);
    assert!(words.contains("mine") && words.contains("on b"), "{words}");
    let (code, words) = a.fails(&["resolve", "db", "--yes"]);
    assert_eq!(code, 4, "{words}");
    assert!(words.contains("is primary here") && words.contains("on b"), "{words}");
    let plan = b.json(&["resolve", "db", "--dry-run"]);
    assert_eq!(plan["volumes"][0]["only_here"][0]["short"], "mine", "{plan:#}");
    assert!(plan["volumes"][0]["common"]["guid"].is_u64(), "{plan:#}");
    let report = b.json(&["resolve", "db", "--yes"]);
    assert_eq!(report["aside"].as_array().map(Vec::len), Some(1), "{report:#}");
    goes_on(&world, &a);
    assert_eq!(rounds_in_full(&a), 1, "only the first");
    let again = b.json(&["resolve", "db", "--yes"]);
    assert_eq!(again["aside"].as_array().map(Vec::len), Some(0), "{again:#}");
    b.kill();
    reads(world.path(), &report["aside"][0], "one");
}

#[test]
fn what_was_written_by_hand_is_still_readable() {
    let (world, a, mut b) = protected();
    by_hand(&world, &mut b, |vault, dataset| {
        let path = vault.activate(dataset).expect("made writable").expect("a path");
        std::fs::write(path.join("f"), "by hand").expect("written");
        vault.fence(dataset).expect("fenced again");
        snapshot(vault, dataset, "mine");
    });
    write(&world, "two");
    refused(&a);
    let report = b.json(&["resolve", "db", "--yes"]);
    goes_on(&world, &a);
    assert_eq!(rounds_in_full(&a), 1, "only the first");
    b.kill();
    reads(world.path(), &report["aside"][0], "by hand");
}

#[test]
fn with_nothing_in_common_the_whole_replica_is_renamed_and_all_is_sent_anew() {
    let (world, a, mut b) = protected();
    by_hand(&world, &mut b, |vault, dataset| {
        snapshot(vault, dataset, "mine");
        let all = vault.inventory(dataset).expect("an inventory").snapshots;
        let ours: Vec<_> =
            all.into_iter().map(|s| s.name).filter(|n| n.short() != "mine").collect();
        for name in &ours {
            for tag in vault.holds(name).expect("its holds") {
                vault.release(&tag, std::slice::from_ref(name)).expect("released");
            }
        }
        vault.destroy_snapshots(&ours).expect("destroyed by hand");
    });
    write(&world, "two");
    refused(&a);
    let plan = b.ok(&["resolve", "db", "--dry-run"]);
    assert!(plan.contains("sends everything anew"), "{plan}");
    let report = b.json(&["resolve", "db", "--yes"]);
    goes_on(&world, &a);
    assert_eq!(rounds_in_full(&a), 2, "the first, and once more");
    b.kill();
    reads(world.path(), &report["aside"][0], "one");
}

#[test]
fn holds_say_why_and_a_hold_that_nobody_accounts_for_is_released_on_request() {
    let (world, a, mut b) = protected();
    let tag = flocker_store::HoldTag("flocker-repl:01234567".into());
    by_hand(&world, &mut b, |vault, dataset| {
        let newest = vault.inventory(dataset).expect("an inventory").latest().cloned();
        vault.hold(&tag, &[newest.expect("a snapshot").name]).expect("held");
    });
    let view = a.json(&["holds", "db"]);
    let reasons = view["kept"].to_string();
    assert!(reasons.contains("base of b"), "{view:#}");
    let view = b.json(&["holds"]);
    assert!(
        view["kept"].as_array().expect("a list").iter().any(|k| k["stale"] == true),
        "{view:#}"
    );
    let view = b.json(&["holds", "--collect"]);
    assert_eq!(view["released"][0]["tag"], "flocker-repl:01234567", "{view:#}");
    assert_eq!(view["released"].as_array().map(Vec::len), Some(1), "{view:#}");
    goes_on(&world, &a);
}
