//! A tree on real ZFS, natively (zfs-fuse): protected as one unit, placed by path, moved there and back, tried in a
//! drill; children that are made, left out and renamed away meanwhile; a standby that went its own way.

use std::path::{Path, PathBuf};

use flocker_tests::e2e::{Host, World, zfs};
use flocker_zfs::fixture::pool_or_skip;

fn mountpoint(dataset: &str) -> PathBuf {
    zfs(&["get", "-H", "-o", "value", "mountpoint", dataset]).trim().into()
}

/// zfs-fuse says busy for a while after an unmount, and whenever a snapshot is being sent.
fn patiently(args: &[&str]) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !std::process::Command::new("zfs").args(args).output().expect("zfs runs").status.success()
    {
        assert!(std::time::Instant::now() < until, "it stays busy: {args:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Every file below `root`, in whatever filesystem below it, with its content.
fn files(root: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("its content");
                found.push((path.strip_prefix(root).expect("below").to_path_buf(), text));
            }
        }
    }
    found.sort();
    found
}

fn volumes(host: &Host) -> Vec<String> {
    let unit = host.unit("app").expect("the unit");
    let all = unit["volumes"].as_array().expect("volumes");
    let mut names: Vec<String> =
        all.iter().map(|v| v["dataset"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

fn below(pool: &str, top: &str, paths: &[&str]) -> Vec<String> {
    let name = |path: &&str| match *path {
        "" => format!("{pool}/{top}"),
        path => format!("{pool}/{top}/{path}"),
    };
    let mut names: Vec<String> = paths.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn a_tree_is_one_unit_and_what_is_made_below_it_joins() {
    let test = "a_tree_is_one_unit_and_what_is_made_below_it_joins";
    let (Some(pa), Some(pb)) = (pool_or_skip("treea", 256, test), pool_or_skip("treeb", 256, test))
    else {
        return;
    };
    let world = World::new();
    let (a, b) = world.zfs_pair([pa.name(), pb.name()]);
    let (na, nb) = (pa.name(), pb.name());
    let top = format!("{na}/app");
    let kept = ["", "x", "x/deep", "y", "y/deep", "odd name:1"];
    for path in kept.iter().chain(&["cache", "cache/below"]) {
        let name = format!("{top}/{path}");
        zfs(&["create", name.trim_end_matches('/')]);
        let at = mountpoint(name.trim_end_matches('/'));
        std::fs::write(at.join("file"), format!("of {path}, at first")).expect("a file");
    }
    a.ok(&["protect", &top, "--recursive", "--exclude", "cache", "--to", "b", "--rpo", "1s"]);
    a.wait_in_step("app");
    assert_eq!(volumes(&a), below(na, "app", &kept));
    let place = volumes(&b)[0].trim_start_matches(&format!("{nb}/")).to_owned();
    assert_eq!(volumes(&b), below(nb, &place, &kept), "placed by path");

    // What is made later joins by itself; what cannot is named with the reason.
    zfs(&["create", &format!("{top}/y/late")]);
    std::fs::write(mountpoint(&format!("{top}/y/late")).join("file"), "late").expect("a file");
    a.wait_unit("app", "joined by the child", |u| {
        u["volumes"].as_array().is_some_and(|v| v.len() == kept.len() + 1)
    });
    b.wait_unit("app", "joined in full", |u| {
        let volumes = u["volumes"].as_array().expect("volumes");
        volumes.len() == kept.len() + 1 && volumes.iter().all(|v| v["joining"] == false)
    });
    let status = a.ok(&["status", "app"]);
    assert!(status.contains("tree=yes"), "{status}");

    // One is left out on a person's word, one is renamed away: both by name, and the others go on.
    a.ok(&[
        "protect",
        &top,
        "-r",
        "--exclude",
        "cache",
        "--exclude",
        "x/deep",
        "--to",
        "b",
        "--rpo",
        "1s",
    ]);
    let left: Vec<&str> =
        kept.iter().copied().filter(|p| *p != "x/deep").chain(["y/late"]).collect();
    assert_eq!(volumes(&a), below(na, "app", &left));
    zfs(&["unmount", &format!("{top}/y/deep")]);
    patiently(&["rename", &format!("{top}/y/deep"), &format!("{na}/elsewhere")]);
    std::fs::write(mountpoint(&top).join("more"), "written since").expect("a file");
    let left: Vec<&str> = left.into_iter().filter(|p| *p != "y/deep").collect();
    a.wait_unit("app", "without the one that is gone", |u| {
        u["volumes"].as_array().is_some_and(|v| v.len() == left.len())
    });
    a.wait_in_step("app");
    b.wait_unit("app", "without them", |u| {
        u["volumes"].as_array().is_some_and(|v| v.len() == left.len())
    });
    let history = a.ok(&["history", "app"]);
    assert!(history.contains("app/y/deep is gone"), "{history}");
    // Nothing of them was destroyed there.
    zfs(&["list", &format!("{nb}/{place}/x/deep"), &format!("{nb}/{place}/y/deep")]);
    zfs(&["unmount", &format!("{top}/x/deep")]);
    patiently(&["destroy", "-r", &format!("{top}/x/deep")]);

    // There and back, with the contents compared; the excluded ones are in the way of no mount.
    for path in ["cache/below", "cache"] {
        zfs(&["unmount", &format!("{top}/{path}")]);
    }
    patiently(&["destroy", "-r", &format!("{top}/cache")]);
    for host in [&b, &a] {
        host.ok(&["run", "app", "--", "sleep", "100000"]);
    }
    a.wait_serving("app");
    a.wait_in_step("app");
    let want = files(&mountpoint(&top));
    assert_eq!(want.len(), left.len() + 1);
    let drill = b.json(&["failover", "app", "--drill"]);
    assert!(drill["trouble"].is_null(), "{drill:#}");
    let moved = a.json(&["migrate", "app", "--to", "b"]);
    assert_eq!(moved["epoch"], 2, "{moved:#}");
    b.wait_serving("app");
    let there = mountpoint(&format!("{nb}/{place}"));
    assert_eq!(files(&there), want);
    std::fs::write(there.join("odd name:1/file"), "changed over there").expect("a file");
    // Made over there, it joins there, and has its place here.
    zfs(&["create", &format!("{nb}/{place}/x/new")]);
    std::fs::write(there.join("x/new/file"), "new").expect("a file");
    b.wait_unit("app", "joined by the child", |u| {
        u["volumes"].as_array().is_some_and(|v| v.len() == left.len() + 1)
    });
    b.wait_in_step("app");
    let want = files(&there);
    let moved = b.json(&["migrate", "app", "--to", "a"]);
    assert_eq!(moved["epoch"], 3, "{moved:#}");
    a.wait_serving("app");
    assert_eq!(files(&mountpoint(&top)), want);
    assert!(volumes(&a).contains(&format!("{top}/x/new")));

    // A standby that was written by hand: what only it has is set aside, above and below.
    a.wait_in_step("app");
    a.ok(&["pause", "app"]);
    for path in ["", "/y/late"] {
        zfs(&["snapshot", &format!("{nb}/{place}{path}@by-hand")]);
    }
    a.ok(&["resume", "app"]);
    std::fs::write(mountpoint(&top).join("more"), "written again").expect("a file");
    a.wait_unit("app", "alarmed", |u| !u["alarm"].is_null());
    let resolved = b.json(&["resolve", "app"]);
    assert_eq!(resolved["aside"].as_array().map(Vec::len), Some(2), "{resolved:#}");
    a.wait_unit("app", "well", |u| u["alarm"].is_null());
    a.wait_in_step("app");
    let want = files(&mountpoint(&top));
    let moved = a.json(&["migrate", "app", "--to", "b"]);
    assert_eq!(moved["epoch"], 4, "{moved:#}");
    b.wait_serving("app");
    assert_eq!(
        files(&there)
            .into_iter()
            .filter(|(p, _)| !p.starts_with("y/late-diverged"))
            .collect::<Vec<_>>(),
        want
    );
}

#[test]
fn a_vault_keeps_a_tree_of_zfs_and_has_none_of_its_own() {
    let test = "a_vault_keeps_a_tree_of_zfs_and_has_none_of_its_own";
    let Some(pool) = pool_or_skip("treev", 256, test) else { return };
    let world = World::new();
    let (mut a, mut v) = (world.zfs_host("a", pool.name()), world.vault_host("v"));
    a.serve();
    v.serve();
    a.pair(&v, [&format!("{}/recv", pool.name()), "recv/a"]);
    let top = format!("{}/app", pool.name());
    let all = ["", "x", "x/deep", "y", "y/deep"];
    for path in all {
        let name = format!("{top}/{path}");
        zfs(&["create", name.trim_end_matches('/')]);
        let at = mountpoint(name.trim_end_matches('/'));
        std::fs::write(at.join("file"), format!("of {path}")).expect("a file");
    }
    a.ok(&["protect", &top, "-r", "--to", "v", "--rpo", "1s"]);
    a.wait_in_step("app");
    assert_eq!(volumes(&v), below("vault", "recv/a/app", &all));
    let want = files(&mountpoint(&top));
    let moved = a.json(&["migrate", "app", "--to", "v"]);
    assert_eq!(moved["epoch"], 2, "{moved:#}");
    v.wait_unit("app", "at rest", |u| u["role"] == "primary" && u["doing"] == "at rest");
    v.wait_in_step("app");
    let moved = v.json(&["migrate", "app", "--to", "a"]);
    assert_eq!(moved["epoch"], 3, "{moved:#}");
    a.wait_unit("app", "serving", |u| u["role"] == "primary" && u["doing"] == "serving");
    assert_eq!(files(&mountpoint(&top)), want);
    // Live directories would lie in each other.
    v.fails(&["protect", "data/db", "--recursive", "--create", "--to", "a"]);
    v.fails(&["protect", "data/db", "--create", "--to", "a"]);
    let (code, said) = v.fails(&["protect", "data/db/wal", "--create", "--to", "a"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("below vault/data/db, which is a directory volume"), "{said}");
}
