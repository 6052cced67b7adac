//! What a person does by hand to either side, on two machines with real ZFS: keys changed, a pool exported, what is
//! pinned destroyed, the daemon not run by root. Either it is survived without a resend, or it is said what to do.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix};

const PLAIN: Unit = Unit { name: "plain", zvol: false, raw: false };
const RAW: Unit = Unit { name: "raw", zvol: false, raw: true };

/// Passphrases in files: before, changed on the primary, changed on the standby.
const KEYS: [&str; 3] = ["/root/key-1", "/root/key-2", "/root/key-3"];

fn lab_with_units(test: &str) -> Option<Lab> {
    let lab = lab_or_skip("trixie", Some("trixie"), test)?;
    lab.put_repl();
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, &KEYS.map(|key| format!("echo a phrase of {key} >{key}")).join("\n"));
    }
    Some(lab)
}

fn protect(nodes: &Nodes<'_>) {
    nodes.lab().ssh(
        Guest::Alpha,
        &format!(
            "zfs create tank/flocker/data; zfs create tank/flocker/data/plain
             zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{} tank/flocker/data/raw
             for d in plain raw; do head -c 1000000 /dev/urandom >/srv/flocker/data/$d/noise; done; sync",
            KEYS[0]
        ),
    );
    for unit in [PLAIN, RAW] {
        nodes.protect_only(&unit);
    }
    for unit in [PLAIN, RAW] {
        nodes.wait_in_step(&unit, Guest::Alpha);
    }
}

fn write(nodes: &Nodes<'_>, unit: &Unit, text: &str) {
    let path = nodes.path(unit, Guest::Alpha);
    nodes.lab().ssh(Guest::Alpha, &format!("echo {text} >>{path}/text; sync"));
}

fn alarm(lab: &Lab, unit: &Unit) -> Option<String> {
    let view = lab.view(Guest::Alpha);
    let units = view["units"].as_array().expect("units");
    let it = units.iter().find(|u| u["name"] == unit.name).expect("the unit");
    it["alarm"]["message"].as_str().map(str::to_owned)
}

/// Whether a passphrase opens a replica.
fn opens(lab: &Lab, replica: &str, key: &str) -> bool {
    lab.output(Guest::Beta, &format!("zfs load-key -n -L file://{key} {replica}")).status.success()
}

#[test]
fn keys_pools_and_snapshots_that_a_person_changes_by_hand_are_survived_or_said() {
    let test = "keys_pools_and_snapshots_that_a_person_changes_by_hand_are_survived_or_said";
    let Some(lab) = lab_with_units(test) else { return };
    let nodes = Nodes::start(&lab);
    protect(&nodes);
    let replica = nodes.dataset(&RAW, Guest::Beta);

    // openzfs #12614: the key changed on the primary; then on the standby as well.
    let dataset = nodes.dataset(&RAW, Guest::Alpha);
    lab.ssh(Guest::Alpha, &format!("zfs change-key -o keylocation=file://{} {dataset}", KEYS[1]));
    write(&nodes, &RAW, "after the first change");
    let short = nodes.wait_equal(&RAW, Guest::Alpha, Guest::Beta);
    assert!(opens(&lab, &replica, KEYS[1]) && !opens(&lab, &replica, KEYS[0]));
    lab.ssh(
        Guest::Beta,
        &format!(
            "zfs load-key -L file://{} {replica}
             zfs change-key -o keylocation=file://{} {replica}; zfs unload-key {replica}",
            KEYS[1], KEYS[2]
        ),
    );
    assert!(opens(&lab, &replica, KEYS[2]), "changed by hand");
    write(&nodes, &RAW, "after the second change");
    let later = nodes.wait_equal(&RAW, Guest::Alpha, Guest::Beta);
    assert_ne!(short, later);
    assert!(opens(&lab, &replica, KEYS[1]), "the primary's key came with its step");
    lab.ssh(Guest::Beta, &format!("zfs load-key -L file://{} {replica}", KEYS[1]));
    let hash = nodes.hash_standby(&RAW, Guest::Beta, &later);
    lab.ssh(Guest::Beta, &format!("zfs unload-key {replica}"));
    assert_eq!(hash, nodes.hash(&RAW, Guest::Alpha), "after keys were changed on both sides");

    // The standby's pool is exported while nothing moves, written to its primary, imported again.
    let full = nodes.full_rounds(&PLAIN);
    nodes.wait_equal(&PLAIN, Guest::Alpha, Guest::Beta);
    lab.wait_for(Guest::Beta, "the export", "zpool export tank");
    write(&nodes, &PLAIN, "while the pool was away");
    lab.until("the pool said to be away", || {
        alarm(&lab, &PLAIN).is_some_and(|said| said.contains("zpool import tank"))
    });
    lab.ssh(Guest::Beta, "zpool import -N tank");
    nodes.wait_equal(&PLAIN, Guest::Alpha, Guest::Beta);
    assert_eq!(nodes.full_rounds(&PLAIN), full, "an exported pool costs a resend");
    lab.until("no alarm", || alarm(&lab, &PLAIN).is_none());

    // All that is pinned on the primary is released and destroyed by hand; the other unit goes on.
    let dataset = nodes.dataset(&PLAIN, Guest::Alpha);
    lab.ssh(
        Guest::Alpha,
        &format!(
            "flocker-repl pause plain >/dev/null
             for s in $(zfs list -Ht snapshot -o name -d 1 {dataset}); do
               zfs holds -H $s | while read n t r; do zfs release $t $n; done; zfs destroy $s
             done"
        ),
    );
    write(&nodes, &PLAIN, "without a base");
    write(&nodes, &RAW, "beside it");
    lab.ssh(Guest::Alpha, "flocker-repl resume plain >/dev/null");
    lab.until("the lost base said", || {
        alarm(&lab, &PLAIN).is_some_and(|said| said.contains("flocker-repl resolve plain"))
    });
    nodes.wait_equal(&RAW, Guest::Alpha, Guest::Beta);
    lab.ssh(Guest::Beta, "flocker-repl resolve plain </dev/null");
    let short = nodes.wait_equal(&PLAIN, Guest::Alpha, Guest::Beta);
    let hash = nodes.hash_standby(&PLAIN, Guest::Beta, &short);
    assert_eq!(hash, nodes.hash(&PLAIN, Guest::Alpha), "after the base was lost");
    let aside = "zfs list -Ho name -r tank/flocker/recv | grep -c 'plain-diverged-'";
    assert_eq!(lab.ssh(Guest::Beta, aside), "1", "what the standby had is kept");
    matrix("by hand: keys changed on both sides, the pool exported and imported: no resend");
}

#[test]
fn a_pool_is_not_exported_below_a_step_and_a_snapshot_not_destroyed_that_is_sent() {
    let test = "a_pool_is_not_exported_below_a_step_and_a_snapshot_not_destroyed_that_is_sent";
    let Some(lab) = lab_with_units(test) else { return };
    let nodes = Nodes::start(&lab);
    protect(&nodes);
    lab.ssh(Guest::Alpha, "tc qdisc replace dev eth1 root netem rate 20mbit limit 200");
    let path = nodes.path(&PLAIN, Guest::Alpha);
    // More than queues and windows hold: ZFS itself is still sending.
    lab.ssh(Guest::Alpha, &format!("head -c 100000000 /dev/urandom >{path}/bulk; sync"));
    lab.until("a step under way", || {
        lab.transferred(Guest::Beta).is_some_and(|bytes| bytes > 1 << 20)
    });
    let exported = lab.output(Guest::Beta, "zpool export tank");
    let words = String::from_utf8_lossy(&exported.stderr).into_owned();
    assert!(!exported.status.success() && words.contains("busy"), "{words}");
    let dataset = nodes.dataset(&PLAIN, Guest::Alpha);
    let newest = format!("zfs list -Ht snapshot -o name -s createtxg -d 1 {dataset} | tail -n 1");
    let destroyed = lab.output(Guest::Alpha, &format!("zfs destroy $({newest})"));
    let words = String::from_utf8_lossy(&destroyed.stderr).into_owned();
    assert!(!destroyed.status.success() && words.contains("cannot destroy"), "{words}");
    lab.ssh(Guest::Alpha, "tc qdisc del dev eth1 root");
    let short = nodes.wait_equal(&PLAIN, Guest::Alpha, Guest::Beta);
    assert_eq!(nodes.hash_standby(&PLAIN, Guest::Beta, &short), nodes.hash(&PLAIN, Guest::Alpha));
    assert_eq!(nodes.full_rounds(&PLAIN), 1, "the step went on");
    matrix(
        "by hand: pool exported, snapshot destroyed in mid-step: refused by ZFS, the step goes on",
    );

    // The primary's pool is lost for good.
    nodes.wait_equal(&RAW, Guest::Alpha, Guest::Beta);
    lab.ssh(Guest::Alpha, "flocker-repl pause plain; flocker-repl pause raw");
    lab.wait_for(Guest::Alpha, "the pool destroyed", "zpool destroy -f tank");
    for unit in ["plain", "raw"] {
        let refused = lab.output(Guest::Alpha, &format!("flocker-repl unprotect {unit}"));
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        let asks = words.contains("zpool import tank") && words.contains("--store-is-gone");
        assert!(!refused.status.success() && asks, "{words}");
        lab.ssh(Guest::Alpha, &format!("flocker-repl unprotect {unit} --store-is-gone"));
    }
    let units = lab.ssh(Guest::Alpha, "flocker-repl status | grep -c '^unit ' || true");
    assert_eq!(units, "0", "they are forgotten");
    let name = format!("{}@{short}", nodes.dataset(&PLAIN, Guest::Beta));
    lab.ssh(Guest::Beta, &format!("zfs list -t snapshot {name}"));
    // The standby can take over: it knows the unit, and what it needs is still there.
    lab.ssh(Guest::Beta, "flocker-repl failover plain --primary-is-down </dev/null");
    let path = nodes.path(&PLAIN, Guest::Beta);
    lab.wait_for(Guest::Beta, "the data", &format!("test -e {path}/bulk"));
    matrix(
        "by hand: the primary's pool destroyed: forgotten on a person's word, the replica stays",
    );
}

/// As docs/zfs.md lists them.
const PERMISSIONS: &str = "snapshot,hold,release,bookmark,send,receive,create,mount,destroy,rename,clone,promote,\
                           rollback,canmount,readonly,mountpoint,userprop";

#[test]
fn a_standby_is_kept_by_a_user_who_is_not_root() {
    let test = "a_standby_is_kept_by_a_user_who_is_not_root";
    let Some(lab) = lab_with_units(test) else { return };
    let nodes = Nodes::start(&lab);
    lab.kill_daemon(Guest::Beta);
    lab.ssh(
        Guest::Beta,
        &format!(
            "id -u flocker >/dev/null 2>&1 || useradd -r flocker
             chown -R flocker /etc/flocker-repl /var/lib/flocker-repl; touch /var/log/flocker.log; chown flocker /var/log/flocker.log
             zfs allow -u flocker {PERMISSIONS} tank/flocker
             setsid setpriv --reuid flocker --regid nogroup --clear-groups flocker-repl serve \
               >>/var/log/flocker.log 2>&1 </dev/null &"
        ),
    );
    lab.wait_for(Guest::Beta, "the daemon", "flocker-repl status");
    protect(&nodes);
    for unit in [PLAIN, RAW] {
        write(&nodes, &unit, "for a user");
        let short = nodes.wait_equal(&unit, Guest::Alpha, Guest::Beta);
        if unit.raw {
            let replica = nodes.dataset(&unit, Guest::Beta);
            lab.ssh(Guest::Beta, &format!("zfs load-key -L file://{} {replica}", KEYS[0]));
        }
        let hash = nodes.hash_standby(&unit, Guest::Beta, &short);
        assert_eq!(hash, nodes.hash(&unit, Guest::Alpha), "{}", unit.name);
    }
    let owner = lab.ssh(Guest::Beta, "stat -c %U /proc/$(pgrep -o -x flocker-repl)");
    assert_eq!(owner, "flocker");
    matrix("a standby kept without root: filesystem and raw follow");
}
