//! A tree of some forty datasets as one unit, between two machines with OpenZFS: filesystems on several levels, the
//! same last component twice, a zvol, an encrypted subtree, a clone with a dataset below it, odd names. There, back and
//! there again with everything compared; a child that is made, one that is left out and one that is renamed away; a
//! standby that went its own way; a replica that `zfs send -R` made.

use std::time::Instant;

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix, version_of};

/// A key that both machines have.
const KEY: &str = "/root/flocker.key";

const APP: Unit = Unit { name: "app", zvol: false, raw: false };

/// How many of the plain kind.
const MANY: usize = 24;

fn make(lab: &Lab) {
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, &format!("echo correct horse battery >{KEY}"));
    }
    lab.ssh(
        Guest::Alpha,
        &format!(
            "set -e; t=tank/flocker/data/app; cd /srv/flocker
             zfs create tank/flocker/data; zfs create $t
             for n in $(seq {MANY}); do zfs create $t/d$n; done
             zfs create $t/a; zfs create $t/a/x; zfs create $t/a/x/deep; zfs create $t/b; zfs create $t/b/x
             zfs create \"$t/odd name:1\"; zfs create \"$t/odd name:1/in it\"
             zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{KEY} $t/enc
             zfs create $t/enc/one; zfs create $t/enc/one/two
             zfs create -V 16M -o volblocksize=16k $t/vol
             zfs create $t/base; head -c 3000000 /dev/urandom >data/app/base/noise; zfs snapshot $t/base@golden
             zfs clone $t/base@golden $t/clone; zfs create $t/clone/below
             find data/app -type d -links -4 | while read d; do echo \"of $d\" >\"$d/text\"; done
             head -c 300000 /dev/urandom >data/app/noise
             head -c 1000000 /dev/urandom | dd of=/dev/zvol/$t/vol bs=64k seek=3 status=none conv=fsync
             sync"
        ),
    );
}

fn top(at: Guest) -> &'static str {
    match at {
        Guest::Alpha => "tank/flocker/data/app",
        _ => "tank/flocker/recv/alpha/app",
    }
}

/// Everything: the files of all filesystems, which are mounted in each other, and the zvol.
fn hash(lab: &Lab, nodes: &Nodes<'_>, at: Guest) -> String {
    let zvol = lab.ssh(at, &format!("sha256sum </dev/zvol/{}/vol", top(at)));
    let count = lab.ssh(at, &format!("find {} -type f | wc -l", nodes.path(&APP, at)));
    format!("{count} files, {}, {zvol}", nodes.hash(&APP, at))
}

fn volumes(lab: &Lab, at: Guest) -> Vec<String> {
    let line = lab.ssh(at, "flocker-repl status app --verbose | grep ^unit");
    let from = line.find(" volumes=").expect("volumes") + " volumes=".len();
    let rest = &line[from..];
    let names = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    };
    let below = names.unwrap_or_default().split(',').map(|n| n.replace(top(at), ""));
    let mut all: Vec<String> = below.collect();
    all.sort();
    all
}

fn moves(lab: &Lab, nodes: &Nodes<'_>, from: Guest, to: Guest, way: &str, round: u32) {
    let root = nodes.path(&APP, from);
    lab.ssh(
        from,
        &format!(
            "cd {root}; for f in noise a/x/deep/text 'odd name:1/in it/text' enc/one/two/text clone/text clone/below/text; do
               echo round {round} >>\"$f\"; done
             head -c 200000 /dev/urandom | dd of=/dev/zvol/{}/vol bs=64k seek={} status=none conv=fsync,notrunc; sync",
            top(from),
            20 * round
        ),
    );
    let expect = hash(lab, nodes, from);
    let begun = Instant::now();
    let said = nodes.migrate(&APP, from, to).unwrap_or_else(|said| panic!("{way}: {said}"));
    let took = begun.elapsed().as_secs();
    assert_eq!(hash(lab, nodes, to), expect, "{way}");
    let down = said.lines().find(|line| line.contains("down for")).unwrap_or_default();
    let version = version_of(lab.suite(from));
    matrix(&format!("OpenZFS {version} tree {way:<12} same contents, {took} s; {down}"));
    nodes.wait_in_step(&APP, to);
}

#[test]
#[ignore = "a tree of forty datasets on OpenZFS, not seen to the end yet: tests/run --soak"]
fn a_tree_goes_there_back_and_there_again() {
    let test = "a tree of forty datasets as one unit";
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), test) else { return };
    lab.put_repl();
    let nodes = Nodes::start(&lab);
    make(&lab);
    let begun = Instant::now();
    let protect = "flocker-repl protect data/app --recursive --to beta --rpo 30s";
    lab.ssh(Guest::Alpha, protect);
    nodes.wait_in_step(&APP, Guest::Alpha);
    let made = volumes(&lab, Guest::Alpha);
    assert_eq!(made.len(), MANY + 15, "{made:?}");
    assert_eq!(volumes(&lab, Guest::Beta), made, "placed by path");
    matrix(&format!("tree of {} in step after {} s", made.len(), begun.elapsed().as_secs()));
    let origin = "zfs get -H -o value origin tank/flocker/recv/alpha/app/clone";
    assert_eq!(lab.ssh(Guest::Beta, origin), "tank/flocker/recv/alpha/app/base@golden");

    // Without the keys nothing is stopped.
    let refused = nodes.migrate(&APP, Guest::Alpha, Guest::Beta).unwrap_err();
    assert!(refused.contains("zfs load-key"), "{refused}");
    let roots = "zfs get -H -o value encryptionroot tank/flocker/recv/alpha/app/enc/one/two";
    matrix(&format!(
        "tree: encryption root of a raw child on the standby: {}",
        lab.ssh(Guest::Beta, roots)
    ));
    lab.ssh(
        Guest::Beta,
        &format!(
            "for d in enc enc/one enc/one/two; do zfs load-key -L file://{KEY} {}/$d; done; true",
            top(Guest::Beta)
        ),
    );
    for guest in [Guest::Beta, Guest::Alpha] {
        lab.ssh(guest, "flocker-repl run app --die-with-daemon -- sleep 1000000");
    }
    moves(&lab, &nodes, Guest::Alpha, Guest::Beta, "there", 1);

    // Made over there; it has its place here.
    lab.ssh(
        Guest::Beta,
        &format!(
            "zfs create {0}/a/x/late && echo late >/srv/flocker/recv/alpha/app/a/x/late/text",
            top(Guest::Beta)
        ),
    );
    lab.wait_for(
        Guest::Alpha,
        "the child that was made",
        "flocker-repl status app --verbose | grep -q app/a/x/late && zfs list tank/flocker/data/app/a/x/late",
    );
    nodes.wait_in_step(&APP, Guest::Beta);
    moves(&lab, &nodes, Guest::Beta, Guest::Alpha, "back", 2);

    // One is left out, and may be destroyed then; one is renamed away. The others go on.
    lab.ssh(
        Guest::Alpha,
        &format!(
            "set -e; t={}; flocker-repl protect data/app -r --exclude d3 --to beta --rpo 30s; zfs destroy -r $t/d3
             zfs rename $t/d4 tank/flocker/d4; echo more >>/srv/flocker/data/app/noise; sync",
            top(Guest::Alpha)
        ),
    );
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.wait_for(
            guest,
            "without them",
            "flocker-repl status app --verbose | grep ^unit >/tmp/f-u; ! grep -qE 'app/d3[ ,\"]|app/d4[ ,\"]' /tmp/f-u",
        );
    }
    lab.ssh(Guest::Alpha, "flocker-repl history app | grep 'app/d4 is gone'");
    lab.ssh(Guest::Beta, "zfs list tank/flocker/recv/alpha/app/d3 tank/flocker/recv/alpha/app/d4");
    nodes.wait_in_step(&APP, Guest::Alpha);

    // A standby that went its own way, above and below.
    lab.ssh(
        Guest::Beta,
        &format!(
            "for d in '' /enc /enc/one/two /d7; do zfs snapshot {}$d@by-hand; done",
            top(Guest::Beta)
        ),
    );
    lab.ssh(Guest::Alpha, "echo again >>/srv/flocker/data/app/noise; sync");
    lab.wait_for(Guest::Alpha, "an alarm", "flocker-repl status app | grep -q resolve");
    lab.ssh(Guest::Beta, "flocker-repl resolve app");
    lab.wait_for(Guest::Alpha, "no alarm", "! flocker-repl status app | grep -q alarm=");
    nodes.wait_in_step(&APP, Guest::Alpha);
    let aside = lab
        .ssh(Guest::Beta, "zfs list -H -o name -r tank/flocker/recv/alpha | grep -c -- -diverged-");
    assert_eq!(aside, "4");
    moves(&lab, &nodes, Guest::Alpha, Guest::Beta, "there again", 3);
}
