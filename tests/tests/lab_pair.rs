//! Two nodes on two machines with real ZFS: every kind of data there, back and there again, on each pair of
//! versions, with the contents compared each time. Prints a line of the matrix for each.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix, version_of};

fn versions(lab: &Lab) -> String {
    format!("{} and {}", version_of(lab.suite(Guest::Alpha)), version_of(lab.suite(Guest::Beta)))
}

/// A key that both machines have, for a dataset that leaves one of them only sealed.
const KEY: &str = "/root/flocker.key";

/// Data of each kind below alpha's store.
fn make(lab: &Lab) -> Vec<Unit> {
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, &format!("echo correct horse battery >{KEY}"));
    }
    lab.ssh(
        Guest::Alpha,
        &format!(
            "cd /srv/flocker
             zfs create tank/flocker/data
             zfs create -o recordsize=1M tank/flocker/data/plain
             zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{KEY} tank/flocker/data/raw
             zfs create -V 32M -o volblocksize=16k tank/flocker/data/vol
             zfs create tank/flocker/data/base
             head -c 4000000 /dev/urandom >data/base/noise; seq 1 20000 >data/base/text; mkdir data/base/many
             for n in $(seq 30); do echo $n >data/base/many/$n; done
             zfs snapshot tank/flocker/data/base@golden; zfs clone tank/flocker/data/base@golden tank/flocker/data/clone
             echo since >>data/base/text; echo of the clone >>data/clone/text
             for d in plain raw; do
               head -c 3000000 /dev/urandom >data/$d/noise; seq 1 20000 >data/$d/text
               mkdir data/$d/many; for n in $(seq 30); do echo $n >data/$d/many/$n; done
               ln -s text data/$d/pointer; truncate -s 5M data/$d/hole
             done
             head -c 3000000 /dev/urandom | dd of=/dev/zvol/tank/flocker/data/vol bs=64k seek=3 status=none conv=fsync
             sync"
        ),
    );
    ["plain", "raw", "vol", "base", "clone"]
        .map(|name| Unit { name, zvol: name == "vol", raw: name == "raw" })
        .into()
}

/// Changes data on its primary, and says what is there.
fn change(lab: &Lab, nodes: &Nodes<'_>, unit: &Unit, at: Guest, round: u32) -> String {
    let path = nodes.path(unit, at);
    if unit.zvol {
        lab.ssh(
            at,
            &format!(
                "head -c 300000 /dev/urandom | dd of={path} bs=64k seek={} status=none conv=fsync,notrunc",
                40 * round
            ),
        );
    } else {
        lab.ssh(
            at,
            &format!(
                "cd {path}; rm -f many/{round}; echo {round} >>text; truncate -s {round}K hole
                 head -c 200000 /dev/urandom >noise-{round}; sync"
            ),
        );
    }
    nodes.hash(unit, at)
}

fn there_back_there(alpha: &str, beta: &str, test: &str) {
    let Some(lab) = lab_or_skip(alpha, Some(beta), test) else { return };
    lab.put_repl();
    let nodes = Nodes::start(&lab);
    let units = make(&lab);
    for unit in &units {
        nodes.protect(unit);
    }
    for unit in &units {
        nodes.wait_in_step(unit, Guest::Alpha);
        if unit.raw {
            let replica = nodes.dataset(unit, Guest::Beta);
            let status = lab.ssh(Guest::Beta, &format!("zfs get -H -o value keystatus {replica}"));
            assert_eq!(status, "unavailable", "the standby has the key");
            // Without the key nothing is stopped.
            let refused = nodes.migrate(unit, Guest::Alpha, Guest::Beta).unwrap_err();
            assert!(refused.contains("zfs load-key"), "{refused}");
            lab.ssh(Guest::Beta, &format!("zfs load-key -L file://{KEY} {replica}"));
        }
    }
    let origin = lab.ssh(
        Guest::Beta,
        "zfs get -Hp -o value origin,usedbydataset tank/flocker/recv/alpha/clone | xargs",
    );
    let (name, used) = origin.split_once(' ').unwrap_or_default();
    assert_eq!(name, "tank/flocker/recv/alpha/base@golden", "{}", versions(&lab));
    assert!(used.parse::<u64>().is_ok_and(|used| used < 1_000_000), "the clone takes {used} bytes");
    for (round, (from, to, way)) in [
        (Guest::Alpha, Guest::Beta, "there"),
        (Guest::Beta, Guest::Alpha, "back"),
        (Guest::Alpha, Guest::Beta, "there again"),
    ]
    .into_iter()
    .enumerate()
    {
        for unit in &units {
            let expect = change(&lab, &nodes, unit, from, round as u32 + 1);
            nodes
                .migrate(unit, from, to)
                .unwrap_or_else(|said| panic!("{} {way}: {said}", unit.name));
            let got = nodes.hash(unit, to);
            assert_eq!(got, expect, "{} {way} ({})", unit.name, versions(&lab));
            nodes.wait_in_step(unit, to);
            let direction = [from, to].map(|g| version_of(lab.suite(g))).join(" to ");
            matrix(&format!("OpenZFS {direction:<12} {:<6} {way:<12} same contents", unit.name));
        }
    }
}

#[test]
fn every_kind_goes_there_back_and_there_again_between_2_3_and_2_3() {
    there_back_there("trixie", "trixie", "moves between OpenZFS 2.3 and 2.3");
}

#[test]
fn every_kind_goes_there_back_and_there_again_between_2_3_and_2_1() {
    there_back_there("trixie", "bookworm", "moves between OpenZFS 2.3 and 2.1");
}
