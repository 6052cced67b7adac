//! What a pool lacks is found when protection starts, on two machines with real ZFS: there and back, with the command
//! to run, and with nothing left half agreed.

use flocker_tests::lab::nodes::{Nodes, Unit};
use flocker_tests::lab::{Guest, Lab, lab_or_skip, matrix};

/// The guest's pool once more, with these features off: one, and what would enable it.
fn remake_without(lab: &Lab, guest: Guest, features: &[&str]) {
    lab.ssh(guest, "zpool destroy -f tank");
    let off: String = features.iter().map(|f| format!("-o feature@{f}=disabled ")).collect();
    lab.make_pool(guest, &off, "/dev/vdb");
    let state = format!("zpool get -H -o value feature@{} tank", features[0]);
    assert_eq!(lab.ssh(guest, &state), "disabled");
}

#[test]
fn what_a_pool_could_not_receive_there_or_back_is_refused_when_protection_starts() {
    let test = "what_a_pool_could_not_receive_there_or_back_is_refused_when_protection_starts";
    let Some(lab) = lab_or_skip("trixie", Some("trixie"), test) else { return };
    lab.put_repl();
    remake_without(&lab, Guest::Beta, &["large_blocks", "large_microzap"]);
    remake_without(&lab, Guest::Alpha, &["zstd_compress"]);
    let nodes = Nodes::start(&lab);
    let large = Unit { name: "large", zvol: false, raw: false };
    lab.ssh(
        Guest::Alpha,
        "zfs create tank/flocker/data; zfs create -o recordsize=1M tank/flocker/data/large
         head -c 2000000 /dev/urandom >/srv/flocker/data/large/noise; sync
         # What its streams have need of is in the snapshot, whatever its properties say by now.
         zfs snapshot tank/flocker/data/large@by-hand; zfs set recordsize=128K tank/flocker/data/large",
    );
    let protect = |more: &str| {
        let words = format!("flocker-repl protect data/large --to beta --rpo 5s {more} 2>&1");
        let done = lab.output(Guest::Alpha, &words);
        (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let enable = |feature: &str| format!("zpool set feature@{feature}=enabled tank");
    let nothing_is_left = || {
        for guest in [Guest::Alpha, Guest::Beta] {
            let status = lab.ssh(guest, "flocker-repl status");
            assert!(!status.contains("unit name=large"), "{}: {status}", guest.name());
        }
    };

    let (taken, said) = protect("");
    assert!(
        !taken && said.contains("large_blocks") && said.contains(&enable("large_blocks")),
        "{said}"
    );
    nothing_is_left();
    lab.ssh(Guest::Beta, &enable("large_blocks"));

    // What is received below this would be compressed by what alpha's pool has not.
    lab.ssh(Guest::Beta, "zfs set compression=zstd tank/flocker");
    let (taken, said) = protect("");
    assert!(!taken && said.contains("zstd_compress") && said.contains("--one-way"), "{said}");
    nothing_is_left();
    lab.ssh(Guest::Alpha, &enable("zstd_compress"));

    let (taken, said) = protect("");
    assert!(taken, "{said}");
    nodes.wait_in_step(&large, Guest::Alpha);
    let short = nodes.wait_equal(&large, Guest::Alpha, Guest::Beta);
    let hash = nodes.hash(&large, Guest::Alpha);
    assert_eq!(nodes.hash_standby(&large, Guest::Beta, &short), hash);
    nodes.migrate(&large, Guest::Alpha, Guest::Beta).unwrap_or_else(|said| panic!("{said}"));
    lab.ssh(Guest::Beta, "seq 200000 >/srv/flocker/recv/alpha/large/lines; sync");
    let hash = nodes.hash(&large, Guest::Beta);
    nodes.migrate(&large, Guest::Beta, Guest::Alpha).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(nodes.hash(&large, Guest::Alpha), hash, "back, compressed by zstd");

    // What lies below is not protected with it, and that is said.
    lab.ssh(Guest::Alpha, "zfs create -o canmount=off tank/flocker/data/large/below");
    let (taken, said) = protect("");
    assert!(taken && said.contains("tank/flocker/data/large/below"), "{said}");
    matrix(
        "features: large_blocks missing there, zstd_compress missing back: refused; enabled: there and back",
    );
}
