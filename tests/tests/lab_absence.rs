//! On two machines with real ZFS: a standby that stays away costs its primary a bookmark and no snapshot, and goes on
//! from there; a replica is looked at; both machines are looked over.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip};

const UNITS: [Unit; 2] =
    [Unit { name: "plain", zvol: false, raw: false }, Unit { name: "raw", zvol: false, raw: true }];

const KEY: &str = "/root/flocker.key";

/// Keeps snapshots for nobody who is away.
fn keep_nothing_for_the_absent(lab: &Lab) {
    lab.kill_daemon(Guest::Alpha);
    lab.ssh(Guest::Alpha, "printf '\\n[limits]\\npin_h = 0\\n' >>/etc/flocker-repl/config.toml");
    lab.start_daemon(Guest::Alpha, "");
}

fn write(lab: &Lab, nodes: &Nodes<'_>, text: &str) {
    for unit in &UNITS {
        let path = nodes.path(unit, Guest::Alpha);
        let noise = "head -c 400000 /dev/urandom";
        lab.ssh(
            Guest::Alpha,
            &format!("cd {path}; echo {text} >text; {noise} >noise-{text}; sync"),
        );
    }
}

fn ours(nodes: &Nodes<'_>, unit: &Unit, kind: &str) -> String {
    let dataset = nodes.dataset(unit, Guest::Alpha);
    format!("zfs list -Ht {kind} -o name -d 1 {dataset} | grep -q flocker_")
}

#[test]
fn a_standby_that_is_away_costs_a_bookmark_and_is_sent_only_what_changed() {
    let test = "a_standby_that_is_away_costs_a_bookmark_and_is_sent_only_what_changed";
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), test) else { return };
    lab.put_repl();
    for guest in [Guest::Alpha, Guest::Beta] {
        lab.ssh(guest, &format!("echo correct horse battery >{KEY}"));
    }
    let nodes = Nodes::start(&lab);
    keep_nothing_for_the_absent(&lab);
    lab.ssh(
        Guest::Alpha,
        &format!(
            "zfs create tank/flocker/data; zfs create tank/flocker/data/plain
             zfs create -o encryption=on -o keyformat=passphrase -o keylocation=file://{KEY} tank/flocker/data/raw"
        ),
    );
    write(&lab, &nodes, "one");
    for unit in &UNITS {
        nodes.protect_only(unit);
    }
    for unit in &UNITS {
        nodes.wait_in_step(unit, Guest::Alpha);
    }
    let before: Vec<usize> = UNITS.iter().map(|unit| nodes.full_rounds(unit)).collect();

    lab.kill_daemon(Guest::Beta);
    write(&lab, &nodes, "two");
    for unit in &UNITS {
        lab.wait_for(
            Guest::Alpha,
            &format!("a bookmark of {} and no snapshot", unit.name),
            &format!("{} && ! {}", ours(&nodes, unit, "bookmark"), ours(&nodes, unit, "snapshot")),
        );
        let status = lab.ssh(Guest::Alpha, &format!("flocker-repl status {} --json", unit.name));
        assert!(status.contains("kept as a bookmark"), "{status}");
    }
    let doctor = lab.output(Guest::Alpha, "flocker-repl doctor");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(5), "{said}");
    for words in
        ["OpenZFS 2.3", "libzfs_core is used", "peer beta is not connected", "as a bookmark"]
    {
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
    // What is known of the place in the numbering survives a restart without any snapshot.
    lab.kill_daemon(Guest::Alpha);
    lab.start_daemon(Guest::Alpha, "");
    write(&lab, &nodes, "three");

    lab.start_daemon(Guest::Beta, "");
    for (unit, before) in UNITS.iter().zip(before) {
        nodes.wait_connected(unit, Guest::Alpha);
        lab.wait_for(
            Guest::Alpha,
            &format!("{} without a bookmark", unit.name),
            &format!("{} && ! {}", ours(&nodes, unit, "snapshot"), ours(&nodes, unit, "bookmark")),
        );
        nodes.wait_in_step(unit, Guest::Alpha);
        assert!(nodes.full_rounds(unit) <= before, "{} was sent anew", unit.name);
    }
    lab.wait_for(Guest::Alpha, "a doctor with nothing to say", "flocker-repl doctor");

    // The replica has it: looked at where it lies; the sealed one once its key is there.
    let look =
        |name: &str| lab.output(Guest::Beta, &format!("flocker-repl browse {name} -- cat text"));
    lab.until("the last words on the standby", || look("plain").stdout == b"three\n");
    let touched = lab.output(Guest::Beta, "flocker-repl browse plain -- touch new");
    let said = String::from_utf8_lossy(&touched.stderr).into_owned();
    assert!(!touched.status.success() && said.contains("Read-only file system"), "{said}");
    let sealed = look("raw");
    let said = String::from_utf8_lossy(&sealed.stderr).into_owned();
    assert!(!sealed.status.success() && said.contains("zfs load-key"), "{said}");
    let replica = nodes.dataset(&UNITS[1], Guest::Beta);
    lab.ssh(Guest::Beta, &format!("zfs load-key -L file://{KEY} {replica}"));
    lab.until("the last words of the sealed one", || look("raw").stdout == b"three\n");
    let left = lab.ssh(Guest::Beta, "zfs list -H -o name -r tank/flocker | grep browse- || true");
    assert_eq!(left, "", "no copy is left behind");
}
