//! Two nodes on two machines with real ZFS, when the power or the disk fails in the middle of a step. What a boot
//! finds it leaves at rest until the daemon says whose it is; what was acknowledged is still there; it goes on.

use std::path::Path;

use flocker_tests::e2e::skip;
use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix};

const UNIT: Unit = Unit { name: "box", zvol: false, raw: false };

/// Enough of a step to be in the middle of it.
const STEP_BYTES: u64 = 24 << 20;

fn lab(test: &str) -> Option<Lab> {
    let lab = lab_or_skip("trixie", Some("trixie"), test)?;
    // Disks and memory are not as they were afterwards.
    lab.spoil();
    lab.put_repl();
    for guest in [Guest::Alpha, Guest::Beta] {
        // The root filesystem has no journal; what lies on it was there long before.
        lab.ssh(guest, "sync -f /");
    }
    Some(lab)
}

/// A unit in step, with a workload. Returns its newest snapshot.
fn in_step(nodes: &Nodes<'_>) -> String {
    let dataset = nodes.dataset(&UNIT, Guest::Alpha);
    nodes.lab().ssh(
        Guest::Alpha,
        &format!("zfs create -p {dataset}; seq 9999 >/srv/flocker/data/box/text; sync"),
    );
    nodes.protect(&UNIT);
    nodes.wait_equal(&UNIT, Guest::Alpha, Guest::Beta)
}

/// Writes a step's worth, and returns in the middle of its way, with the hash of what is there.
fn in_the_middle(nodes: &Nodes<'_>, file: &str) -> String {
    let lab = nodes.lab();
    lab.ssh(
        Guest::Alpha,
        &format!(
            "tc qdisc replace dev eth1 root netem rate 40mbit limit 200
             flocker-repl pause box
             head -c {STEP_BYTES} /dev/urandom >/srv/flocker/data/box/{file}; sync"
        ),
    );
    let expect = nodes.hash(&UNIT, Guest::Alpha);
    lab.ssh(Guest::Alpha, "flocker-repl resume box");
    lab.until("the middle of the step", || {
        lab.transferred(Guest::Beta).is_some_and(|bytes| bytes > STEP_BYTES / 4)
    });
    expect
}

/// Nothing of the unit is mounted or runs, and no boot would mount it.
fn at_rest(nodes: &Nodes<'_>, at: Guest) {
    let (lab, dataset) = (nodes.lab(), nodes.dataset(&UNIT, at));
    assert_eq!(
        lab.ssh(at, "zpool list -H -o name,health"),
        "tank\tONLINE",
        "the boot's own import"
    );
    let shown = lab.ssh(at, &format!("zfs get -H -o value mounted,canmount {dataset}"));
    assert_eq!(shown, "no\nnoauto", "{dataset} after a boot");
    let mounts =
        lab.ssh(at, &format!("grep -c '^{dataset} ' /proc/mounts; pgrep -x sleep | wc -l"));
    assert_eq!(mounts, "0\n0", "{dataset} is mounted, or its workload runs");
}

/// Has it, by name.
fn has(nodes: &Nodes<'_>, at: Guest, short: &str) {
    let name = format!("{}@{short}", nodes.dataset(&UNIT, at));
    nodes.lab().ssh(at, &format!("zfs list -H -t snapshot -o name {name}"));
}

fn equal_contents(nodes: &Nodes<'_>, expect: &str, what: &str) {
    let short = nodes.wait_equal(&UNIT, Guest::Alpha, Guest::Beta);
    assert_eq!(nodes.hash_standby(&UNIT, Guest::Beta, &short), expect, "{what}");
    matrix(&format!("{what}: the step goes on, same contents"));
}

#[test]
#[ignore = "the power of either machine cut, and two boots: tests/run --soak"]
fn a_power_cut_of_either_machine_loses_nothing_acknowledged_and_starts_nothing() {
    let Some(lab) = lab("power cuts in the middle of a step") else { return };
    let nodes = Nodes::start(&lab);
    let acknowledged = in_step(&nodes);

    let expect = in_the_middle(&nodes, "first");
    lab.crash(Guest::Beta);
    lab.boot(Guest::Beta);
    at_rest(&nodes, Guest::Beta);
    has(&nodes, Guest::Beta, &acknowledged);
    lab.ssh(Guest::Alpha, "tc qdisc del dev eth1 root");
    lab.start_daemon(Guest::Beta, "");
    equal_contents(&nodes, &expect, "power cut of the standby");

    let acknowledged = nodes.wait_equal(&UNIT, Guest::Alpha, Guest::Beta);
    let expect = in_the_middle(&nodes, "second");
    lab.crash(Guest::Alpha);
    lab.boot(Guest::Alpha);
    at_rest(&nodes, Guest::Alpha);
    has(&nodes, Guest::Beta, &acknowledged);
    lab.start_daemon(Guest::Alpha, "");
    lab.wait_for(Guest::Alpha, "the workload", "pgrep -x sleep");
    equal_contents(&nodes, &expect, "power cut of the primary");
    assert_eq!(nodes.hash(&UNIT, Guest::Alpha), expect, "the primary itself");
}

/// Where a host keeps what the guests lack: device-mapper's tool.
const DMSETUP: [&str; 2] = ["/usr/sbin/dmsetup", "/lib/x86_64-linux-gnu/libdevmapper.so.1.02.1"];

/// Puts beta's pool on a disk that can be made to fail.
fn frail_pool(lab: &Lab) {
    for file in DMSETUP {
        lab.put(Guest::Beta, Path::new(file));
    }
    lab.ssh(
        Guest::Beta,
        "modprobe dm_mod; export LD_LIBRARY_PATH=/usr/local/bin DM_DISABLE_UDEV=1
         echo 0 $(blockdev --getsz /dev/vdc) linear /dev/vdc 0 >/root/f-good
         echo 0 $(blockdev --getsz /dev/vdc) error >/root/f-bad
         dmsetup create frail /root/f-good
         zpool destroy -f tank; rm -rf /tank",
    );
    lab.make_pool(Guest::Beta, "-o failmode=wait", "/dev/mapper/frail");
}

fn disk(lab: &Lab, table: &str) {
    lab.ssh(
        Guest::Beta,
        &format!(
            "export LD_LIBRARY_PATH=/usr/local/bin DM_DISABLE_UDEV=1
             dmsetup suspend --noflush --nolockfs frail; dmsetup load frail /root/{table}; dmsetup resume frail"
        ),
    );
}

#[test]
fn a_suspended_pool_hangs_no_command_and_is_gone_on_with() {
    let test = "a pool that is suspended in the middle of a step";
    if let Some(missing) = DMSETUP.iter().find(|file| !Path::new(file).exists()) {
        return skip(&format!("no {missing} on this machine (package dmsetup)"), test);
    }
    let Some(lab) = lab(test) else { return };
    frail_pool(&lab);
    let nodes = Nodes::start(&lab);
    in_step(&nodes);
    let expect = in_the_middle(&nodes, "first");
    disk(&lab, "f-bad");
    lab.wait_for(
        Guest::Beta,
        "a suspended pool",
        "grep -q SUSPENDED /proc/spl/kstat/zfs/tank/state",
    );
    // What a person sees meanwhile, on either side, within a bounded time.
    lab.wait_for(
        Guest::Alpha,
        "that the step stands is said",
        "timeout 60 flocker-repl status | grep '^standby unit=box ' | grep within_rpo=no | grep -q 'has moved for'",
    );
    for guest in [Guest::Alpha, Guest::Beta] {
        for command in ["status", "rounds box", "history", "peers", "metrics"] {
            let done = lab.output(guest, &format!("timeout 60 flocker-repl {command}"));
            assert!(done.status.success(), "{command} on {}: {}", guest.name(), done.status);
        }
    }
    let holds = lab.output(Guest::Beta, "timeout 60 flocker-repl holds");
    let said = String::from_utf8_lossy(&holds.stderr);
    assert!(said.contains("tank/flocker") && said.contains("suspended"), "{said}");
    disk(&lab, "f-good");
    lab.ssh(Guest::Beta, "timeout 120 zpool clear tank");
    lab.ssh(Guest::Alpha, "tc qdisc del dev eth1 root");
    equal_contents(&nodes, &expect, "suspended pool of the standby");
    lab.wait_for(
        Guest::Alpha,
        "the alarm's end",
        "! timeout 60 flocker-repl status | grep '^unit name=box ' | grep -q alarm=",
    );
}
