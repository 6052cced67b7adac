//! The binary on real ZFS, natively: zfs-fuse ↔ zfs-fuse in two network namespaces, and zfs-fuse →
//! vault → zfs-fuse. Skipped loudly where zfs-fuse or namespaces cannot be had.

use std::path::{Path, PathBuf};

use flocker_tests::e2e::host::free_tcp_port;
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::netns::Wire;
use flocker_tests::e2e::{Host, Ledger, World, skip, zfs};
use flocker_zfs::fixture::{FusePool, pool_or_skip};

fn mountpoint(dataset: &str) -> PathBuf {
    zfs(&["get", "-H", "-o", "value", "mountpoint", dataset]).trim().into()
}

/// A node that works in a pool, in a namespace.
fn fuse_host(world: &World, name: &str, pool: &FusePool, wire: &Wire, end: usize) -> Host {
    let listen = format!("{}:7001", wire.addresses[end]);
    let store = format!("zfs:{}", pool.name());
    let mut host = Host::init(world, name, &store, &listen, Some(&wire.names[end]));
    host.serve();
    host
}

fn wire_or_skip(label: &str, number: u8, test: &str) -> Option<Wire> {
    match Wire::lay(label, number) {
        Ok(wire) => Some(wire),
        Err(why) => {
            skip(&format!("network namespaces: {why}"), test);
            None
        }
    }
}

/// Files of every common kind below `path`.
fn populate(path: &Path, round: u32) {
    let write = |name: String, bytes: Vec<u8>| {
        std::fs::write(path.join(&name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    };
    std::fs::create_dir_all(path.join("dir/deep")).expect("a directory");
    for i in 0..30u32 {
        if round > 0 && i.is_multiple_of(7) {
            let _ = std::fs::remove_file(path.join(format!("dir/f{i}")));
        } else if (i + round).is_multiple_of(3) || round == 0 {
            let size = ((i * 7919 + round * 104_729) % 300_000) as usize;
            write(format!("dir/f{i}"), (0..size).map(|b| ((b as u32 * i) >> 3) as u8).collect());
        }
    }
    write(format!("dir/deep/round{round}"), vec![round as u8; 1000]);
    if round == 0 {
        let _ = std::os::unix::fs::symlink("f1", path.join("dir/link"));
        let _ = std::fs::hard_link(path.join("dir/f2"), path.join("hard"));
    }
}

/// Every path below `root` with its kind, size and content.
fn tree(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("an entry").path();
            let meta = std::fs::symlink_metadata(&path).expect("its metadata");
            let what = if meta.is_dir() {
                todo.push(path.clone());
                "directory".to_owned()
            } else if meta.is_symlink() {
                format!("link {}", std::fs::read_link(&path).expect("a link").display())
            } else {
                let bytes = std::fs::read(&path).expect("its content");
                format!("{} {}", bytes.len(), blake3::hash(&bytes))
            };
            found.push((path.strip_prefix(root).expect("below").to_path_buf(), what));
        }
    }
    found.sort();
    found
}

#[test]
fn two_pools_in_two_namespaces_a_unit_moves_forth_and_back() {
    let test = "two_pools_in_two_namespaces_a_unit_moves_forth_and_back";
    let Some(wire) = wire_or_skip("m", 1, test) else { return };
    let (Some(pa), Some(pb)) = (pool_or_skip("mova", 256, test), pool_or_skip("movb", 256, test))
    else {
        return;
    };
    let world = World::new();
    let a = fuse_host(&world, "a", &pa, &wire, 0);
    let b = fuse_host(&world, "b", &pb, &wire, 1);
    a.pair(&b, [&format!("{}/recv", pa.name()), &format!("{}/recv", pb.name())]);
    let dataset = format!("{}/db", pa.name());
    zfs(&["create", &dataset]);
    populate(&mountpoint(&dataset), 0);
    a.ok(&["protect", &dataset, "--to", "b", "--rpo", "1s"]);
    let port = free_tcp_port();
    let workload = workload_binary().display().to_string();
    b.wait_unit("db", "known", |u| u["role"] == "standby");
    for (host, address) in [(&b, &wire.addresses[1]), (&a, &wire.addresses[0])] {
        host.ok(&["run", "db", "--", &workload, &format!("{address}:{port}")]);
    }
    a.wait_serving("db");
    let addresses = wire.addresses.clone().map(|ip| format!("{ip}:{port}"));
    let ledger = NamespacedLedger::start(&wire, &addresses);
    ledger.wait_more(30);
    a.wait_in_step("db");
    let there = a.json(&["migrate", "db", "--to", "b"]);
    assert_eq!(there["epoch"], 2, "{there:#}");
    b.wait_serving("db");
    ledger.wait_more(30);
    let back = b.json(&["migrate", "db", "--to", "a"]);
    assert_eq!(back["epoch"], 3, "{back:#}");
    a.wait_serving("db");
    ledger.wait_more(30);
    let verdict = ledger.verdict(&mountpoint(&dataset));
    assert!(verdict.holds(), "{verdict:?}");
    assert!(mountpoint(&dataset).join("dir/deep/round0").exists());
}

/// The client lives outside both namespaces and reaches neither, so it runs in one of them.
struct NamespacedLedger(Ledger);

impl NamespacedLedger {
    fn start(wire: &Wire, addresses: &[String]) -> Self {
        Self(Ledger::start_in(Some(&wire.names[0]), addresses))
    }

    fn wait_more(&self, more: u64) {
        self.0.wait_more(more);
    }

    fn verdict(self, volume: &Path) -> flocker_tests::e2e::Verdict {
        self.0.verdict(volume)
    }
}

#[test]
fn a_filesystem_goes_by_a_vault_to_another_pool_and_back() {
    let test = "a_filesystem_goes_by_a_vault_to_another_pool_and_back";
    let (Some(pa), Some(pb)) = (pool_or_skip("viaa", 256, test), pool_or_skip("viab", 256, test))
    else {
        return;
    };
    let world = World::new();
    let host = |name: &str, pool: &FusePool| {
        let port = flocker_tests::e2e::host::free_udp_port();
        let store = format!("zfs:{}", pool.name());
        Host::init(&world, name, &store, &format!("127.0.0.1:{port}"), None)
    };
    let (mut a, mut b, mut v) = (host("a", &pa), host("b", &pb), world.vault_host("v"));
    for node in [&mut a, &mut b, &mut v] {
        node.serve();
    }
    a.pair(&v, [&format!("{}/recv", pa.name()), "recv/a"]);
    b.pair(&v, [&format!("{}/recv", pb.name()), "recv/b"]);
    let dataset = format!("{}/files", pa.name());
    zfs(&["create", &dataset]);
    populate(&mountpoint(&dataset), 0);
    a.ok(&["protect", &dataset, "--to", "v", "--rpo", "500ms"]);
    a.wait_in_step("files");
    for round in 1..4 {
        populate(&mountpoint(&dataset), round);
        std::thread::sleep(std::time::Duration::from_millis(700));
    }
    let want = tree(&mountpoint(&dataset));
    // A vault has no path for a filesystem: a workload cannot go there, the data can.
    let moved = a.json(&["migrate", "files", "--to", "v"]);
    assert_eq!(moved["epoch"], 2, "{moved:#}");
    v.wait_unit("files", "at rest", |u| u["role"] == "primary" && u["doing"] == "at rest");
    let replica = v.unit("files").expect("the unit")["volumes"][0]["dataset"].clone();
    let replica = replica.as_str().expect("a dataset").to_owned();
    v.ok(&["protect", &replica, "--to", "b", "--rpo", "500ms"]);
    v.wait_in_step("files");
    let moved = v.json(&["migrate", "files", "--to", "b"]);
    assert_eq!(moved["epoch"], 3, "{moved:#}");
    b.wait_unit("files", "primary", |u| u["role"] == "primary" && u["doing"] == "serving");
    let there = format!("{}/recv/files", pb.name());
    assert_eq!(tree(&mountpoint(&there)), want, "what came out is what went in");
    populate(&mountpoint(&there), 4);
    let want = tree(&mountpoint(&there));
    b.wait_in_step("files");
    let moved = b.json(&["migrate", "files", "--to", "v"]);
    assert_eq!(moved["epoch"], 4, "{moved:#}");
    v.wait_unit("files", "at rest", |u| u["role"] == "primary" && u["doing"] == "at rest");
    // Nobody kept what the first pool had in common with the others (what is not needed goes every ten
    // seconds): that is said, and nothing there is touched.
    std::thread::sleep(std::time::Duration::from_secs(15));
    let before = zfs(&["list", "-H", "-r", "-t", "all", "-o", "name", pa.name()]);
    v.ok(&["protect", &replica, "--to", "a", "--rpo", "500ms"]);
    let unit = v.wait_unit("files", "refused", |u| !u["alarm"].is_null());
    let words = unit["alarm"]["message"].as_str().expect("words").to_owned();
    assert!(words.contains("in common"), "{words}");
    assert_eq!(zfs(&["list", "-H", "-r", "-t", "all", "-o", "name", pa.name()]), before);
    // What the vault has is whole: it goes to the second pool once more.
    let moved = v.json(&["migrate", "files", "--to", "b"]);
    assert_eq!(moved["epoch"], 5, "{moved:#}");
    b.wait_unit("files", "primary", |u| u["role"] == "primary" && u["doing"] == "serving");
    assert_eq!(tree(&mountpoint(&there)), want, "forth and back and forth");
}
