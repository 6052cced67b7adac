//! What is left when the vault dies: at every point where the disk changes its meaning, and at any moment.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::*;
use flocker_store::{DatasetKind, Store, StoreError};
use flocker_vault::{Vault, fault};

/// A copy of a vault's files for each point that was passed, as a crash there would leave them.
#[derive(Clone)]
struct Copies {
    dir: PathBuf,
    points: Arc<Mutex<Vec<String>>>,
}

impl Copies {
    fn start(vault: &Path, dir: &Path) -> Copies {
        let copies = Copies { dir: dir.to_owned(), points: Arc::default() };
        let own = copies.clone();
        let vault = std::fs::canonicalize(vault).expect("the vault");
        fault::arm(&vault, move |point, path| {
            let mut points = own.points.lock().expect("points");
            copy_vault(path, &own.dir.join(points.len().to_string()));
            points.push(point.to_owned());
            false
        });
        copies
    }

    /// Opens each copy and checks it.
    fn check(&self, check: impl Fn(&str, &Vault)) -> Vec<String> {
        let points = self.points.lock().expect("points").clone();
        for (at, point) in points.iter().enumerate() {
            let vault = Vault::open(self.dir.join(at.to_string()))
                .unwrap_or_else(|e| panic!("after {point} ({at}): {e}"));
            vault.verify().unwrap_or_else(|e| panic!("after {point} ({at}): {e}"));
            check(point, &vault);
        }
        points
    }
}

fn set(vault: &Vault, snapshot: &str) -> String {
    vault.objects(&snap(snapshot)).expect("objects").0
}

/// Every snapshot with the hash of its object set.
fn sets(vault: &Vault) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for dataset in vault.datasets().expect("datasets") {
        for snapshot in vault.inventory(&dataset.name).expect("inventory").snapshots {
            let name = snapshot.name.to_string();
            let hash = set(vault, &name);
            found.insert(name, hash);
        }
    }
    found
}

fn sh(dir: &Path, script: &str) {
    let out = Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_crash_while_receiving_leaves_the_snapshot_before_or_the_one_received() {
    let (dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("holes-full")).expect("full");
    let before = sets(&vault);
    let copies = Copies::start(&dir.path().join("v"), dir.path());
    receive(&vault, "vault/d@1", &golden("holes-incr")).expect("received");
    receive(&vault, "vault/e@0", &golden("full-c")).expect("another");
    let after = sets(&vault);
    let points = copies.check(|point, copy| {
        let found = sets(copy);
        for (name, hash) in &before {
            assert_eq!(found.get(name), Some(hash), "after {point}");
        }
        for (name, hash) in &found {
            assert_eq!(after.get(name), Some(hash), "after {point}");
        }
        // And it goes on.
        match receive(copy, "vault/d@1", &golden("holes-incr")) {
            Ok(_) => {}
            Err(StoreError::Exists { .. }) => assert!(found.contains_key("vault/d@1")),
            Err(e) => panic!("after {point}: {e}"),
        }
        assert_eq!(set(copy, "vault/d@1"), after["vault/d@1"]);
        copy.verify().expect("sound");
    });
    for point in ["packs-written", "packs-synced", "before-publish", "after-publish"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

#[test]
fn a_crash_while_destroying_and_collecting_leaves_what_is_still_there_readable() {
    let (dir, vault) = new_vault();
    for (at, stream) in
        [("a", "full-large-L"), ("b", "full-plain"), ("c", "comp-off-c"), ("d", "holes-full")]
    {
        receive(&vault, &format!("vault/{at}@0"), &golden(stream)).expect("received");
    }
    receive(&vault, "vault/d@1", &golden("holes-incr")).expect("received");
    let kept = |sets: &BTreeMap<String, String>| {
        let is_kept = |name: &str| name.starts_with("vault/c") || name == "vault/d@1";
        let kept = sets.iter().filter(|(n, _)| is_kept(n));
        kept.map(|(n, h)| (n.clone(), h.clone())).collect::<BTreeMap<_, _>>()
    };
    let expected = kept(&sets(&vault));
    let copies = Copies::start(&dir.path().join("v"), dir.path());
    let size = |v: &Path| -> u64 {
        let packs = std::fs::read_dir(v.join("packs")).expect("packs").flatten();
        packs.map(|e| e.metadata().expect("pack").len()).sum()
    };
    let held = size(&dir.path().join("v"));
    vault.destroy_dataset(&name("vault/a")).expect("destroyed");
    vault.destroy_snapshots(&[snap("vault/b@0"), snap("vault/d@0")]).expect("destroyed");
    let collected = vault.gc().expect("collected");
    assert!(collected.blocks > 20 && collected.freed_bytes > 2_000_000, "{collected:?}");
    assert!(size(&dir.path().join("v")) + 2_000_000 < held);
    assert_eq!(kept(&sets(&vault)), expected);
    vault.verify().expect("sound");
    assert_eq!(vault.gc().expect("again").blocks, 0, "nothing is left to collect");
    let points = copies.check(|point, copy| {
        assert_eq!(kept(&sets(copy)), expected, "after {point}");
        copy.gc().expect("collected after the crash");
        copy.verify().expect("sound");
        receive(copy, "vault/new@0", &golden("full-plain")).expect("and it goes on");
        copy.verify().expect("sound");
    });
    for point in ["gc-swept", "gc-moved", "gc-packed"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

/// The names and contents of a tree.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("dir").flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            let content =
                if path.is_file() { std::fs::read(&path).expect("file") } else { Vec::new() };
            found.insert(path.strip_prefix(root).expect("below").to_owned(), content);
        }
    }
    found
}

#[test]
fn a_crash_between_fence_snapshot_and_activation_loses_no_file() {
    let (dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = vault.live_path(&name("vault/d"));
    sh(&path, "mkdir s; seq 5000 > s/a; echo b > b; ln b s/c");
    let expected = files(&path);
    let copies = Copies::start(&dir.path().join("v"), dir.path());
    take(&vault, "vault/d@1");
    vault.fence(&name("vault/d")).expect("fenced");
    take(&vault, "vault/d@2");
    vault.activate(&name("vault/d")).expect("activated");
    vault.rollback(&snap("vault/d@2")).expect("rolled back");
    let points = copies.check(|point, copy| {
        let live = copy.activate(&name("vault/d")).expect("activates").expect("a path");
        assert_eq!(files(&live), expected, "after {point}");
        copy.fence(&name("vault/d")).expect("fenced");
        take(copy, "vault/d@after");
        copy.verify_unwritten(&snap("vault/d@after")).expect("unwritten");
    });
    for point in ["fence-renamed", "activate-rename"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

#[test]
fn a_crash_while_a_standby_is_brought_up_leaves_a_standby_that_comes_up() {
    let ((_a, source), (dir, standby)) = (new_vault(), new_vault());
    source.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = source.live_path(&name("vault/d"));
    let mut trees = Vec::new();
    let mut steps = Vec::new();
    for round in 0..3 {
        sh(
            &path,
            &format!(
                "mkdir r{round}; seq {round}000 > r{round}/seq; seq 70000 | tail -n {round}0000 > big; rm -rf r{}",
                round - 1
            ),
        );
        trees.push(files(&path));
        let now = format!("vault/d@{round}");
        take(&source, &now);
        let base = (round > 0).then(|| format!("vault/d@{}", round - 1));
        steps.push((now.clone(), send(&source, base.as_deref(), &now)));
    }
    let copies = Copies::start(&dir.path().join("v"), dir.path());
    for (at, step) in &steps {
        receive(&standby, at, step).expect("received");
        standby.prepare(&name("vault/d")).expect("prepared");
    }
    standby.activate(&name("vault/d")).expect("activated");
    let points = copies.check(|point, copy| {
        let Ok(inventory) = copy.inventory(&name("vault/d")) else {
            return; // before the first commit
        };
        let at: usize = inventory.snapshots.len() - 1;
        let live = copy.activate(&name("vault/d")).expect("activates").expect("a path");
        assert_eq!(files(&live), trees[at], "after {point} at {at}");
    });
    for point in ["checkout", "checkout-synced", "activate-rename"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

#[test]
fn an_error_at_any_point_leaves_a_vault_that_goes_on_without_being_opened_again() {
    for point in ["packs-written", "packs-synced", "before-publish", "receive-commit"] {
        let (dir, vault) = new_vault();
        receive(&vault, "vault/d@0", &golden("full-plain")).expect("full");
        let before = sets(&vault);
        let path = std::fs::canonicalize(dir.path().join("v")).expect("the vault");
        let wanted = point.to_owned();
        fault::arm(&path, move |passed, _| passed == wanted);
        let failed = receive(&vault, "vault/d@1", &golden("incr-plain"));
        assert!(failed.is_err(), "{point}");
        fault::disarm(&path);
        assert_eq!(sets(&vault), before, "{point}");
        receive(&vault, "vault/d@1", &golden("incr-plain")).expect("now it goes");
        vault.verify().expect("sound");
        drop(vault);
        Vault::open(&path).expect("opens").verify().expect("sound");
    }
}

const VICTIM: &str = "FLOCKER_VAULT_CRASH_VICTIM";

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "run by a_killed_process_never_loses_a_snapshot_that_it_reported"]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else {
        return;
    };
    let vault = Vault::open(&path).expect("opens");
    let mut streams = vec![golden("full-plain")];
    streams.extend(substreams(&golden("incr-multi-I")));
    for dataset in 0.. {
        let dataset = format!("vault/k{}-{dataset}", std::process::id());
        for (at, stream) in streams.iter().enumerate() {
            let to = format!("{dataset}@{at}");
            receive(&vault, &to, stream).expect("received");
            println!("got {to}");
        }
        vault.destroy_snapshots(&[snap(&format!("{dataset}@0"))]).expect("destroyed");
        println!("lost {dataset}@0");
        vault.gc().expect("collected");
    }
}

#[test]
fn a_killed_process_never_loses_a_snapshot_that_it_reported() {
    let (dir, vault) = new_vault();
    drop(vault);
    let path = dir.path().join("v");
    let mut reported = std::collections::BTreeSet::new();
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "victim", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("a victim");
        std::thread::sleep(std::time::Duration::from_millis(150 + round * 97));
        child.kill().expect("killed");
        let out = child.wait_with_output().expect("gone");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        // A line that was cut off was not reported.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            if let Some(at) = line.find("got ") {
                reported.insert(line[at + 4..].trim().to_owned());
            }
            if let Some(at) = line.find("lost ") {
                reported.remove(line[at + 5..].trim());
            }
        }
        let vault = Vault::open(&path).unwrap_or_else(|e| panic!("round {round}: {e}"));
        vault.verify().unwrap_or_else(|e| panic!("round {round}: {e}"));
        let found = sets(&vault);
        for name in &reported {
            // What was destroyed in the moment of the kill may be gone although that was not reported.
            assert!(
                found.contains_key(name) || name.ends_with("@0"),
                "round {round}: {name} is lost"
            );
        }
    }
    assert!(reported.len() > 8, "the victims did something: {reported:?}");
}

#[test]
fn a_full_disk_stops_the_receive_and_leaves_the_last_snapshot() {
    const TEST: &str = "a_full_disk_stops_the_receive_and_leaves_the_last_snapshot";
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=12m", "none"])
        .arg(dir.path())
        .output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        return skip(TEST, "a small file system cannot be mounted");
    }
    let outcome = std::panic::catch_unwind(|| {
        let path = dir.path().join("v");
        let vault = Vault::create(&path).expect("a vault");
        receive(&vault, "vault/d@0", &golden("full-plain")).expect("this fits");
        let before = sets(&vault);
        // A file that does not compress, in the way.
        let free = vault.space(&name("vault")).expect("space").available_bytes;
        let filler = dir.path().join("filler");
        let keep = 600_000;
        let mut filled = Vec::new();
        filled.resize(usize::try_from(free.saturating_sub(keep)).expect("small"), 1u8);
        std::fs::write(&filler, &filled).expect("filled");
        for stream in ["full-large-L", "zvol-full"] {
            let refused = receive(&vault, "vault/e@0", &golden(stream));
            assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
            assert_eq!(sets(&vault), before);
        }
        std::fs::remove_file(&filler).expect("room again");
        receive(&vault, "vault/d@1", &golden("incr-plain")).expect("it goes on");
        receive(&vault, "vault/e@0", &golden("full-large-L")).expect("and this one too");
        vault.verify().expect("sound");
        drop(vault);
        Vault::open(&path).expect("opens").verify().expect("sound");
    });
    let _ = Command::new("umount").arg(dir.path()).status();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_crash_while_a_volume_is_set_aside_is_made_good_by_the_same_call() {
    let (dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = vault.activate(&name("vault/d")).expect("activated").expect("a path");
    sh(&path, "echo one > f");
    let first = files(&path);
    take(&vault, "vault/d@1");
    sh(&path, "echo two > f; echo g > g");
    take(&vault, "vault/d@2");
    sh(&path, "echo three > f");
    let third = files(&path);
    vault.fence(&name("vault/d")).expect("fenced");
    let copies = Copies::start(&dir.path().join("v"), dir.path());
    let aside = name("vault/d-diverged-1");
    assert!(vault.set_aside(&snap("vault/d@1"), &aside).expect("set aside"));
    let points = copies.check(|point, copy| {
        let done = copy.set_aside(&snap("vault/d@1"), &aside).expect("goes on");
        assert!(done, "after {point}");
        let live =
            |dataset: &str| copy.activate(&name(dataset)).expect("activates").expect("a path");
        assert_eq!(files(&live("vault/d")), first, "after {point}");
        assert_eq!(files(&live(aside.as_str())), third, "after {point}");
    });
    for point in ["aside-snapshotted", "aside-split"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}
