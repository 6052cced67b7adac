//! OpenZFS and a vault as a pair: a filesystem, an encrypted one and a zvol go into plain files, are lost on the pool
//! that they came from, and come back into OpenZFS whole; then there and back once more by increments.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix, version_of};

const KEY: &str = "/root/flocker.key";

/// Data of each kind below alpha's store.
fn make(lab: &Lab) -> Vec<Unit> {
    lab.ssh(
        Guest::Alpha,
        &format!(
            "echo correct horse battery >{KEY}
             cd /srv/flocker
             zfs create tank/flocker/data
             zfs create -o recordsize=1M tank/flocker/data/plain
             zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{KEY} tank/flocker/data/raw
             zfs create -V 32M -o volblocksize=16k tank/flocker/data/vol
             for d in plain raw; do
               head -c 3000000 /dev/urandom >data/$d/noise; seq 1 20000 >data/$d/text
               mkdir data/$d/many; for n in $(seq 30); do echo $n >data/$d/many/$n; done
               ln -s text data/$d/pointer; ln data/$d/text data/$d/hard; truncate -s 5M data/$d/hole
             done
             head -c 3000000 /dev/urandom | dd of=/dev/zvol/tank/flocker/data/vol bs=64k seek=3 status=none conv=fsync
             sync"
        ),
    );
    ["plain", "raw", "vol"]
        .map(|name| Unit { name, zvol: name == "vol", raw: name == "raw" })
        .into()
}

/// Changes what is on alpha, and says what is there.
fn change(lab: &Lab, nodes: &Nodes<'_>, unit: &Unit) -> String {
    let path = nodes.path(unit, Guest::Alpha);
    lab.ssh(
        Guest::Alpha,
        &if unit.zvol {
            format!("head -c 300000 /dev/urandom | dd of={path} bs=64k seek=40 status=none conv=fsync,notrunc")
        } else {
            format!("cd {path}; rm many/7; echo more >>text; truncate -s 9M hole; head -c 200000 /dev/urandom >new; sync")
        },
    );
    nodes.hash(unit, Guest::Alpha)
}

/// What is left of a unit on alpha goes, holds and all: its pool is lost.
fn lose(lab: &Lab, nodes: &Nodes<'_>, unit: &Unit) {
    let dataset = nodes.dataset(unit, Guest::Alpha);
    lab.ssh(
        Guest::Alpha,
        &format!(
            "for s in $(zfs list -H -t snapshot -o name -r {dataset}); do
               zfs holds -H $s | cut -f2 | while read t; do zfs release $t $s; done
             done
             zfs destroy -r {dataset}"
        ),
    );
}

fn by_a_vault(suite: &str, test: &str) {
    let Some(lab) = lab_or_skip(suite, Some("trixie"), test) else { return };
    lab.put_repl();
    let nodes = Nodes::start_with(&lab, ["zfs:tank/flocker", "vault:/srv/vault"]);
    let version = version_of(suite);
    let units = make(&lab);
    for unit in &units {
        nodes.protect_only(unit);
    }
    for unit in &units {
        nodes.wait_in_step(unit, Guest::Alpha);
    }
    let go = |unit: &Unit, from: Guest, to: Guest| {
        let moved = nodes.migrate(unit, from, to);
        moved.unwrap_or_else(|said| panic!("{} to {}: {said}", unit.name, to.name()));
    };
    for way in ["after a loss", "by increments"] {
        let expected: Vec<String> = units.iter().map(|unit| change(&lab, &nodes, unit)).collect();
        for unit in &units {
            go(unit, Guest::Alpha, Guest::Beta);
        }
        if way == "after a loss" {
            // What is lost below a daemon that runs is found by the next step; here there is none to come.
            lab.kill_daemon(Guest::Alpha);
            for unit in &units {
                lose(&lab, &nodes, unit);
            }
            lab.start_daemon(Guest::Alpha, "");
        }
        for (unit, expect) in units.iter().zip(expected) {
            let dataset = nodes.dataset(unit, Guest::Alpha);
            let sent = format!("zfs list -H -t snapshot -r {dataset} | grep -q .");
            lab.wait_for(Guest::Alpha, "a replica", &sent);
            nodes.wait_in_step(unit, Guest::Beta);
            if unit.raw && way == "after a loss" {
                let refused = nodes.migrate(unit, Guest::Beta, Guest::Alpha).unwrap_err();
                assert!(refused.contains("zfs load-key"), "{refused}");
                lab.ssh(Guest::Alpha, &format!("zfs load-key -L file://{KEY} {dataset}"));
            }
            go(unit, Guest::Beta, Guest::Alpha);
            let got = nodes.hash(unit, Guest::Alpha);
            assert_eq!(got, expect, "{} {way} (OpenZFS {version})", unit.name);
            matrix(&format!(
                "OpenZFS {version} by vault  {:<6} {way:<14} same contents",
                unit.name
            ));
        }
    }
}

#[test]
fn every_kind_comes_back_from_a_vault_into_openzfs_2_3() {
    by_a_vault("trixie", "from a vault back into OpenZFS 2.3");
}

#[test]
#[ignore = "from a vault back into OpenZFS 2.1: tests/run --soak"]
fn every_kind_comes_back_from_a_vault_into_openzfs_2_1() {
    by_a_vault("bookworm", "from a vault back into OpenZFS 2.1");
}
