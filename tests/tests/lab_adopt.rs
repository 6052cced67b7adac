//! Taking over from other tools, on real OpenZFS: replicas that syncoid and bzfs made, and one laid out as
//! zrepl leaves it (zrepl itself is not in the guests: the same by `zfs send`, with its names, holds and a base
//! that is left only as a bookmark). Each is gone on from without a resend, moved, and compared.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix, version_of};

const KEY: &str = "/root/flocker.key";

/// Where zrepl's sink job keeps what comes from this client.
const SINK: &str = "recv/alpha/sink/alpha/tank/flocker/data/zr";

/// Which of them are sent a second time, after a change: each call of a tool takes seconds under emulation.
const TWICE: [&str; 3] = ["sy", "bz", "zr"];

/// How each replica comes about, as its tool is called on alpha.
const TOOLS: [(&str, &str); 5] = [
    ("sy", "syncoid --no-privilege-elevation tank/flocker/data/sy root@beta:tank/flocker/recv/alpha/sy"),
    ("vol", "syncoid --no-privilege-elevation tank/flocker/data/vol root@beta:tank/flocker/recv/alpha/vol"),
    (
        "raw",
        "syncoid --no-privilege-elevation --sendoptions=w tank/flocker/data/raw \
         root@beta:tank/flocker/recv/alpha/raw",
    ),
    (
        "bz",
        "zfs snapshot tank/flocker/data/bz@bz_$(date +%N)
         bzfs tank/flocker/data/bz root@beta:tank/flocker/recv/alpha/bz",
    ),
    // The source keeps only a bookmark of what it sent last; the sink holds it.
    (
        "zr",
        "s=tank/flocker/data/zr; t=tank/flocker/recv/alpha/sink/alpha/$s
         b=$(zfs list -H -o name -t bookmark $s 2>/dev/null | tail -n 1); n=zrepl_20261127_0$(date +%N)_000
         zfs snapshot $s@$n
         if [ -n \"$b\" ]; then zfs send -i $b $s@$n; else ssh root@beta zfs create -p ${t%/*}; zfs send $s@$n; fi |
           ssh root@beta zfs receive -u -o readonly=on $t
         ssh root@beta zfs hold zrepl_last_received_J_sink $t@$n
         zfs bookmark $s@$n $s#zrepl_CURSOR_G_1_J_$n; zfs destroy $s@$n",
    ),
];

fn make(lab: &Lab) {
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, &format!("echo correct horse battery >{KEY}"));
    }
    lab.ssh(Guest::Beta, "zfs create -p tank/flocker/recv/alpha");
    let first = format!(
        "cd /srv/flocker; zfs create tank/flocker/data
         zfs create -o recordsize=1M tank/flocker/data/sy
         for d in bz zr; do zfs create tank/flocker/data/$d; done
         for d in raw open; do
           zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{KEY} tank/flocker/data/$d
         done
         zfs create -V 32M -o volblocksize=16k tank/flocker/data/vol
         head -c 4000000 /dev/urandom | dd of=/dev/zvol/tank/flocker/data/vol bs=64k seek=3 status=none conv=fsync
         for d in sy bz zr raw open; do head -c 4000000 /dev/urandom >data/$d/noise; echo one >data/$d/text; done; sync"
    );
    lab.ssh(Guest::Alpha, &first);
    let run = |(_, tool): &(&str, &str)| format!("{tool} || exit 1\n");
    let tools: String = TOOLS.iter().map(run).collect();
    let again: String = TOOLS.iter().filter(|t| TWICE.contains(&t.0)).map(run).collect();
    lab.ssh(
        Guest::Alpha,
        &format!("( {tools} ) >/tmp/f-tools 2>&1 || {{ cat /tmp/f-tools; exit 1; }}"),
    );
    lab.ssh(
        Guest::Alpha,
        &format!(
            "cd /srv/flocker/data
             for d in sy bz zr raw; do echo two >>$d/text; done
             dd if=/dev/urandom of=sy/noise bs=4k seek=300 count=3 status=none conv=notrunc; sync
             head -c 100000 /dev/urandom | dd of=/dev/zvol/tank/flocker/data/vol bs=64k seek=30 status=none conv=fsync
             ( {again} ) >/tmp/f-tools 2>&1 || {{ cat /tmp/f-tools; exit 1; }}
             # An encrypted source that its tool has sent plain.
             zfs snapshot tank/flocker/data/open@p
             zfs send tank/flocker/data/open@p | ssh root@beta zfs receive -u tank/flocker/recv/alpha/open
             # What the takeover has to bring.
             for d in sy bz zr raw; do echo three >>$d/text; done
             dd if=/dev/urandom of=sy/noise bs=4k seek=700 count=3 status=none conv=notrunc; sync"
        ),
    );
}

/// Names of a dataset's snapshots that are not ours.
fn foreign(lab: &Lab, at: Guest, dataset: &str) -> String {
    lab.ssh(
        at,
        &format!("zfs list -H -t snapshot -o name -s createtxg {dataset} | sed 's/.*@//' | grep -v ^flocker_ || true"),
    )
}

fn sent_bytes(lab: &Lab, name: &str) -> u64 {
    let status = lab.ssh(Guest::Alpha, &format!("flocker-repl status {name} --json"));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let sent = &status["units"][0]["standbys"][0]["stream_bytes"];
    sent.as_u64().unwrap_or_else(|| panic!("{status:#}"))
}

/// What the first step may bring at most: the one or two records that were written since, of what [`make`] says of
/// their size, and what goes with them.
fn most(name: &str) -> u64 {
    match name {
        "sy" => 2_200_000,
        _ => 600_000,
    }
}

#[test]
fn replicas_of_syncoid_bzfs_and_zrepl_are_gone_on_from_without_a_resend() {
    let test = "adoption of what syncoid, bzfs and zrepl leave";
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), test) else { return };
    lab.put_repl();
    let nodes = Nodes::start(&lab);
    make(&lab);

    // What was sent plain cannot become raw.
    let refused = lab.output(Guest::Alpha, "flocker-repl protect data/open --to beta --adopt 2>&1");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && said.contains("received plain"), "{said}");
    assert_eq!(foreign(&lab, Guest::Beta, "tank/flocker/recv/alpha/open"), "p");

    for (name, _) in TOOLS {
        let unit = Unit { name, zvol: name == "vol", raw: name == "raw" };
        let replica = match name {
            "zr" => format!("tank/flocker/{SINK}"),
            _ => nodes.dataset(&unit, Guest::Beta),
        };
        let before = foreign(&lab, Guest::Beta, &replica);
        assert!(!before.is_empty(), "{name}: its tool has sent nothing");
        let place = if name == "zr" { SINK } else { "" };
        let said = lab.ssh(
            Guest::Alpha,
            &format!("flocker-repl protect data/{name} --to beta --rpo 5s --adopt {place}"),
        );
        assert!(said.contains("not sent again"), "{name}: {said}");
        nodes.wait_in_step(&unit, Guest::Alpha);
        lab.until("a first step", || sent_bytes(&lab, name) > 0);
        let sent = sent_bytes(&lab, name);
        assert!(sent < most(name), "{name}: {sent} bytes were sent; all of it is 4 MB");
        let rest = lab
            .ssh(Guest::Beta, &format!("zfs get -H -o value mounted,canmount {replica} | xargs"));
        let at_rest = if unit.zvol { "- -" } else { "no noauto" };
        assert_eq!(rest, at_rest, "{name}");
        if unit.raw {
            lab.ssh(Guest::Beta, &format!("zfs load-key -L file://{KEY} {replica}"));
        }
        let expect = nodes.hash(&unit, Guest::Alpha);
        nodes
            .migrate(&unit, Guest::Alpha, Guest::Beta)
            .unwrap_or_else(|said| panic!("{name}: {said}"));
        let path = match name {
            "zr" => format!("/srv/flocker/{SINK}"),
            _ => nodes.path(&unit, Guest::Beta),
        };
        assert_eq!(nodes.hash_path(&unit, Guest::Beta, &path), expect, "{name} after its move");
        assert_eq!(foreign(&lab, Guest::Beta, &replica), before, "{name}: snapshots of its tool");
        let version = version_of(lab.suite(Guest::Alpha));
        matrix(&format!(
            "OpenZFS {version:<12} {name:<6} adopted, {sent} bytes sent, moved: same contents"
        ));
    }
}
