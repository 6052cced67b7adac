//! A lost base, with two real daemons: the primary has to send everything anew, and what an old copy on the standby
//! still has does not go over the wire again. Between vaults, and between pools of zfs-fuse.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flocker_store::{DatasetName, Store};
use flocker_tests::e2e::{Host, World, zfs};
use flocker_vault::Vault;
use flocker_zfs::fixture::pool_or_skip;
use flocker_zfs::{ZfsOptions, ZfsStore};
use serde_json::Value;

const FILES: u64 = 12;
const BLOCK: usize = 128 << 10;
const BLOCKS: u64 = 32;

fn noise(seed: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut block);
    block
}

fn file(root: &Path, number: u64) -> PathBuf {
    root.join(format!("f{number}"))
}

/// 48 MiB that do not compress.
fn fill(root: &Path) {
    for number in 0..FILES {
        let content: Vec<u8> = (0..BLOCKS).flat_map(|b| noise(number * BLOCKS + b)).collect();
        std::fs::write(file(root, number), content).expect("written");
    }
}

/// Every twentieth block becomes another one.
fn change(root: &Path) {
    for at in (0..FILES * BLOCKS).step_by(20) {
        let file = std::fs::File::options().write(true).open(file(root, at / BLOCKS));
        let offset = at % BLOCKS * BLOCK as u64;
        file.expect("a file").write_all_at(&noise(at + (1 << 32)), offset).expect("written");
    }
}

/// What is in every file.
fn content(root: &Path) -> BTreeMap<u64, blake3::Hash> {
    let read = |n: u64| std::fs::read(file(root, n)).expect("a file");
    (0..FILES).map(|n| (n, blake3::hash(&read(n)))).collect()
}

fn replica(b: &Host) -> DatasetName {
    let unit = b.unit("db").expect("the unit");
    DatasetName::new(unit["volumes"][0]["dataset"].as_str().expect("a dataset")).expect("a name")
}

/// Every snapshot and bookmark of a dataset goes, with whatever holds it.
fn lose_all(store: &dyn Store, dataset: &DatasetName) {
    let inventory = store.inventory(dataset).expect("an inventory");
    let names: Vec<_> = inventory.snapshots.into_iter().map(|s| s.name).collect();
    for name in &names {
        for tag in store.holds(name).expect("its holds") {
            store.release(&tag, std::slice::from_ref(name)).expect("released");
        }
    }
    store.destroy_snapshots(&names).expect("destroyed");
    if store.capabilities().bookmarks {
        let marks: Vec<_> = inventory.bookmarks.into_iter().map(|b| b.name).collect();
        store.destroy_bookmarks(&marks).expect("destroyed");
    }
}

fn wait_resolve(a: &Host) {
    a.wait_unit("db", "refused", |u| {
        u["alarm"]["message"].as_str().is_some_and(|m| m.contains("resolve db"))
    });
}

/// Waits until the standby has all of it again, and gives the round that brought everything.
fn wait_reseeded(a: &Host) -> Value {
    a.wait_unit("db", "in step again", |u| {
        let lag = u["standbys"][0]["lag_ms"].as_u64();
        u["alarm"].is_null() && lag.is_some_and(|lag| lag < 3_000)
    });
    let rounds = a.json(&["rounds", "db", "--last", "1000"]);
    let rounds = rounds["rounds"].as_array().cloned().expect("rounds");
    let full = rounds.iter().rev().find(|r| r["round"]["full"] == true).expect("a full round");
    full["round"].clone()
}

/// At most this share of a round's stream went over the wire, in percent.
fn assert_spared(round: &Value, percent: u64, at_least: u64) {
    let (stream, wire) = (round["stream_bytes"].as_u64(), round["wire_bytes"].as_u64());
    let (Some(stream), Some(wire)) = (stream, wire) else { panic!("{round:#}") };
    assert!(stream >= at_least, "everything was sent: {round:#}");
    assert!(wire * 100 <= stream * percent, "{wire} of {stream} bytes on the wire: {round:#}");
    println!("{wire} of {stream} bytes on the wire, {:.2} %", wire as f64 * 100.0 / stream as f64);
}

fn all() -> u64 {
    FILES * BLOCKS * BLOCK as u64
}

// ---- vaults -----------------------------------------------------------------------------------------

fn live(world: &World) -> PathBuf {
    world.path().join("a-vault/live/vault/data/db")
}

fn protected() -> (World, Host, Host) {
    let world = World::new();
    let (a, b) = world.vault_pair();
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "500ms", "--create"]);
    fill(&live(&world));
    a.wait_in_step("db");
    a.wait_unit("db", "with all of it there", |u| {
        u["standbys"][0]["stream_bytes"].as_u64() >= Some(all())
            && u["standbys"][0]["lag_ms"].as_u64().is_some_and(|lag| lag < 1_500)
    });
    (world, a, b)
}

/// While its daemon is away somebody removes every snapshot of the primary's volume.
fn lose_base(world: &World, a: &mut Host) {
    a.kill();
    let vault = Vault::open(world.path().join("a-vault")).expect("the vault");
    lose_all(&vault, &DatasetName::new("vault/data/db").expect("a name"));
    drop(vault);
    a.serve();
    change(&live(world));
}

/// The standby has just what the primary has.
fn assert_same(world: &World, b: &mut Host) {
    let (dataset, wanted) = (replica(b), content(&live(world)));
    b.kill();
    let vault = Vault::open(world.path().join("b-vault")).expect("the vault");
    let path = vault.activate(&dataset).expect("made reachable").expect("a path");
    assert!(content(&path) == wanted, "the replica differs");
}

#[test]
fn of_a_lost_base_with_five_percent_changed_since_only_that_goes_over_the_wire() {
    let (world, mut a, mut b) = protected();
    lose_base(&world, &mut a);
    wait_resolve(&a);
    let report = b.json(&["resolve", "db", "--yes"]);
    let aside = report["aside"][0].as_str().expect("a name").to_owned();
    let round = wait_reseeded(&a);
    assert_spared(&round, 8, all());
    let metrics = b.ok(&["metrics"]);
    assert!(metrics.contains("flocker_reseed_referenced_bytes_total"), "{metrics}");
    assert_same(&world, &mut b);
    // The old copy is as it was.
    let vault = Vault::open(world.path().join("b-vault")).expect("the vault");
    let aside = DatasetName::new(aside).expect("a name");
    let path = vault.activate(&aside).expect("whole").expect("a path");
    let before = (0..BLOCKS).flat_map(noise).collect::<Vec<u8>>();
    assert!(std::fs::read(file(&path, 0)).expect("a file") == before, "the old copy changed");
}

#[test]
fn a_reseed_that_breaks_off_goes_on_and_still_spares_the_wire() {
    let (world, mut a, mut b) = protected();
    lose_base(&world, &mut a);
    wait_resolve(&a);
    a.kill();
    a.serve_with(Some("mid-full-send@20000000"));
    a.wait_up();
    b.wait_connected("a");
    b.ok(&["resolve", "db", "--yes"]);
    a.wait_killed();
    a.serve();
    let round = wait_reseeded(&a);
    // What had arrived is not sent again, not even as references.
    assert_spared(&round, 8, all() / 4);
    assert!(round["stream_bytes"].as_u64() < Some(all()), "it went on: {round:#}");
    assert_same(&world, &mut b);
}

#[test]
fn a_replica_that_was_renamed_when_protection_ended_spares_the_wire_when_it_begins_again() {
    let (world, a, mut b) = protected();
    let dataset = replica(&b);
    a.ok(&["unprotect", "db"]);
    b.kill();
    let vault = Vault::open(world.path().join("b-vault")).expect("the vault");
    vault
        .rename(&dataset, &dataset.parent().expect("a parent").child("old").expect("a name"))
        .expect("renamed");
    drop(vault);
    b.serve();
    change(&live(&world));
    a.wait_connected("b");
    a.ok(&["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "500ms"]);
    assert_spared(&wait_reseeded(&a), 8, all());
    assert_same(&world, &mut b);
}

#[test]
fn where_it_is_turned_off_everything_goes_over_the_wire() {
    let (world, mut a, mut b) = protected();
    b.kill();
    let config = world.path().join("b/config.toml");
    let text = std::fs::read_to_string(&config).expect("its configuration");
    std::fs::write(&config, format!("{text}\n[dedup]\nreseed = false\ncache_bytes = 0\n"))
        .expect("written");
    b.serve();
    lose_base(&world, &mut a);
    wait_resolve(&a);
    b.ok(&["resolve", "db", "--yes"]);
    let round = wait_reseeded(&a);
    assert!(round["wire_bytes"].as_u64() >= Some(all()), "{round:#}");
}

// ---- pools ------------------------------------------------------------------------------------------

#[test]
fn fuse_pools_spare_the_wire_too() {
    let test = "fuse_pools_spare_the_wire_too";
    let (Some(pa), Some(pb)) =
        (pool_or_skip("reseeda", 256, test), pool_or_skip("reseedb", 256, test))
    else {
        return;
    };
    let world = World::new();
    let (mut a, mut b) = world.zfs_pair([pa.name(), pb.name()]);
    let dataset = format!("{}/db", pa.name());
    zfs(&["create", &dataset]);
    let root = PathBuf::from(zfs(&["get", "-H", "-o", "value", "mountpoint", &dataset]).trim());
    fill(&root);
    a.ok(&["protect", &dataset, "--to", "b", "--name", "db", "--rpo", "2s"]);
    a.wait_in_step("db");
    a.kill();
    let store = ZfsStore::open(&pa.root(), ZfsOptions::default()).expect("the pool");
    lose_all(&store, &DatasetName::new(&dataset).expect("a name"));
    a.serve();
    a.wait_unit("db", "up", |u| u["role"] == "primary");
    wait_resolve(&a);
    change(&root);
    let wanted = content(&root);
    b.ok(&["resolve", "db", "--yes"]);
    assert_spared(&wait_reseeded(&a), 8, all());
    let replica = replica(&b);
    b.kill();
    let there = ZfsStore::open(&pb.root(), ZfsOptions::default()).expect("the pool");
    let path = there.activate(&replica).expect("made reachable").expect("a path");
    assert!(content(&path) == wanted, "the replica differs");
    there.fence(&replica).expect("fenced again");
}
