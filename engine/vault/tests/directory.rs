//! Directory volumes: live, snapshotted, sent, checked out, fenced.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use flocker_store::{Change, DatasetKind, HoldTag, ReceiveSpec, SnapshotSpec, Store, StoreError};
use flocker_vault::Vault;

/// Everything that a snapshot keeps of a tree, by path.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("metadata");
        let content = if meta.is_file() {
            sha256(&std::fs::read(&path).expect("content"))
        } else if meta.is_symlink() {
            std::fs::read_link(&path).expect("target").display().to_string()
        } else {
            String::new()
        };
        let size = if meta.is_file() { meta.size() } else { 0 };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let line = format!(
            "{:o} {}:{} {size} {links} {}.{:09} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("dir").flatten().map(|e| e.path()));
        }
        found.insert(path.strip_prefix(root).expect("below").to_owned(), line);
    }
    found
}

fn live(vault: &Vault, dataset: &str) -> PathBuf {
    vault.activate(&name(dataset)).expect("activate").expect("a path")
}

fn sh(dir: &Path, script: &str) {
    let out = Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Sends a step from one vault to another.
fn replicate(from: &Vault, to: &Vault, base: Option<&str>, target: &str) {
    receive(to, target, &send(from, base, target)).unwrap_or_else(|e| panic!("{target}: {e}"));
}

const MAKE: &str = "
    mkdir -p dir/sub empty-dir
    printf 'hello\n' > dir/hello; chmod 4755 dir/hello; ln dir/hello dir/sub/hard
    ln -s ../hello dir/sub/link; mkfifo pipe
    head -c 300000 /dev/urandom > noise
    truncate -s 5M sparse; printf x | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
    : > nothing; i=0; while [ $i -lt 120 ]; do echo $i > dir/sub/f$i; i=$((i+1)); done
    touch -d '2001-02-03 04:05:06.789' dir/sub dir/hello
    name=$(printf 'n%.0s' $(seq 1 250)); mkdir -p deep/$name; echo deep > deep/$name/$name";

const CHANGE: &str = "
    rm dir/sub/f3 dir/sub/f4 nothing; mv dir/sub moved; mv moved/f5 f5; mv empty-dir moved/
    printf 'OVER' | dd of=noise bs=1 seek=200000 conv=notrunc status=none
    truncate -s 1M sparse; chmod 600 moved/f7; ln moved/f8 second-name; rm dir/sub 2>/dev/null || true
    ln -sfn elsewhere moved/link; rm pipe; echo 'a file now' > pipe
    mkdir dir/sub; echo new > dir/sub/f3; touch -d '1999-01-01' dir";

#[test]
fn a_new_volume_is_live_and_empty_at_its_path() {
    let (_dir, vault) = new_vault();
    let info = vault.create(&name("vault/app/data"), DatasetKind::Directory).expect("created");
    assert_eq!(info.mounted_at, Some(vault.live_path(&name("vault/app/data"))));
    assert!(info.writable && info.kind == DatasetKind::Directory);
    let path = live(&vault, "vault/app/data");
    assert!(path.ends_with("live/vault/app/data"));
    assert_eq!(std::fs::read_dir(path).expect("live").count(), 0);
    let parent = vault.dataset(&name("vault/app")).expect("the parent was made");
    assert_eq!((parent.kind, parent.mounted_at), (DatasetKind::Filesystem, None));
    let again = vault.create(&name("vault/app/data"), DatasetKind::Directory);
    assert!(matches!(again, Err(StoreError::Exists { .. })));
    let below = vault.create(&name("vault/app/data/x"), DatasetKind::Directory);
    assert!(matches!(below, Err(StoreError::NotCapable { .. })));
    let outside = vault.create(&name("tank/x"), DatasetKind::Directory);
    assert!(matches!(outside, Err(StoreError::NotCapable { .. })));
}

#[test]
fn a_tree_travels_in_full_and_in_steps_with_everything_in_it() {
    let ((_a, source), (_b, target)) = (new_vault(), new_vault());
    source.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&source, "vault/d");
    sh(&path, MAKE);
    let first = listing(&path);
    take(&source, "vault/d@1");
    replicate(&source, &target, None, "vault/d@1");
    target.prepare(&name("vault/d")).expect("prepared");
    sh(&path, CHANGE);
    let second = listing(&path);
    take(&source, "vault/d@2");
    replicate(&source, &target, Some("vault/d@1"), "vault/d@2");
    assert_eq!(target.dataset(&name("vault/d")).expect("there").mounted_at, None);
    assert_eq!(listing(&live(&target, "vault/d")), second, "after a step onto a checkout");

    // And each by itself.
    for (snapshot, expected) in [("vault/d@1", &first), ("vault/d@2", &second)] {
        let (_c, fresh) = new_vault();
        replicate(&source, &fresh, None, snapshot);
        assert_eq!(listing(&live(&fresh, "vault/d")), *expected, "{snapshot}");
    }
    assert_eq!(listing(&path), second, "the source was not touched");
}

/// Once a directory that was away for a moment was taken for a volume without live data: replication
/// stood still and said it was in step, and a move went by the last snapshot.
#[test]
fn a_live_directory_that_is_gone_is_an_error_everywhere_until_it_is_back() {
    let (dir, vault) = new_vault();
    let dataset = name("vault/db");
    vault.create(&dataset, DatasetKind::Directory).expect("create");
    let live = live(&vault, "vault/db");
    sh(&live, "echo 1 > ledger");
    take(&vault, "vault/db@1");
    sh(&live, "echo 2 >> ledger");
    let away = dir.path().join("away");
    std::fs::rename(&live, &away).expect("moved away");
    let gone = |what: &str, outcome: Result<(), StoreError>| match outcome {
        Err(StoreError::Corrupt { path, detail }) => {
            assert!(path == live && detail.contains("vault/db"), "{what}: {detail}");
        }
        other => panic!("{what}: {other:?}"),
    };
    let first = snap("vault/db@1");
    gone("changed_since", vault.changed_since(&first).map(drop));
    gone("fence", vault.fence(&dataset));
    gone("activate", vault.activate(&dataset).map(drop));
    let spec = SnapshotSpec {
        names: vec![snap("vault/db@2")],
        quiesced: true,
        properties: BTreeMap::new(),
    };
    gone("snapshot", vault.snapshot(&spec).map(drop));
    std::fs::rename(&away, &live).expect("moved back");
    assert!(matches!(vault.changed_since(&first), Ok(Change::Changed { .. })));
    take(&vault, "vault/db@2");
    vault.fence(&dataset).expect("fence");
    assert_eq!(vault.activate(&dataset).expect("activate"), Some(live.clone()));
    assert_eq!(std::fs::read_to_string(live.join("ledger")).expect("the ledger"), "1\n2\n");
}

#[test]
fn a_small_change_is_a_small_step() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/d");
    sh(
        &path,
        "head -c 8000000 /dev/urandom > big; mkdir many; for i in $(seq 500); do echo $i > many/$i; done",
    );
    std::thread::sleep(std::time::Duration::from_millis(40));
    take(&vault, "vault/d@1");
    take(&vault, "vault/d@idle");
    sh(&path, "printf x | dd of=big bs=1 seek=5000000 conv=notrunc status=none; mv many moved");
    take(&vault, "vault/d@2");
    let idle = send(&vault, Some("vault/d@1"), "vault/d@idle").len();
    let step = send(&vault, Some("vault/d@1"), "vault/d@2").len();
    assert!(idle < 1000, "{idle} bytes for nothing");
    // One block of 128 KiB, three inodes: moving a directory moves nothing in it.
    assert!(step < 140_000, "{step} bytes");
}

#[test]
fn a_snapshot_without_a_quiesced_workload_is_fuzzy_here_and_there() {
    let ((_a, source), (_b, target)) = (new_vault(), new_vault());
    source.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let spec = |at: &str, quiesced| SnapshotSpec {
        names: vec![snap(at)],
        quiesced,
        properties: Default::default(),
    };
    assert!(source.snapshot(&spec("vault/d@1", false)).expect("taken")[0].fuzzy);
    assert!(!source.snapshot(&spec("vault/d@2", true)).expect("taken")[0].fuzzy);
    replicate(&source, &target, None, "vault/d@1");
    replicate(&source, &target, Some("vault/d@1"), "vault/d@2");
    let inventory = target.inventory(&name("vault/d")).expect("inventory");
    let fuzzy: Vec<bool> = inventory.snapshots.iter().map(|s| s.fuzzy).collect();
    assert_eq!(fuzzy, [true, false]);
    // Behind a fence nobody writes, whatever the caller knows.
    source.fence(&name("vault/d")).expect("fenced");
    assert!(!source.snapshot(&spec("vault/d@3", false)).expect("taken")[0].fuzzy);
}

#[test]
fn a_fence_names_who_holds_the_directory_and_changes_nothing() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/d");
    for script in ["exec sleep 60", "cd /; exec sleep 60 < /proc/self/fd/9"] {
        sh(&path, "echo x > file");
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(script.replace("/proc/self/fd/9", &path.join("file").display().to_string()))
            .current_dir(&path)
            .spawn()
            .expect("a workload");
        std::thread::sleep(std::time::Duration::from_millis(300));
        match vault.fence(&name("vault/d")) {
            Err(StoreError::Busy { holders, .. }) => {
                assert!(holders.iter().any(|h| h.pid == child.id()), "{holders:?}");
            }
            other => panic!("{other:?}"),
        }
        assert!(vault.dataset(&name("vault/d")).expect("there").writable);
        assert!(path.join("file").exists());
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    vault.fence(&name("vault/d")).expect("now it is free");
    vault.fence(&name("vault/d")).expect("and again");
    assert!(!path.exists() && !vault.dataset(&name("vault/d")).expect("there").writable);
    assert_eq!(live(&vault, "vault/d"), path);
    assert!(path.join("file").exists());
}

#[test]
fn a_mapping_without_a_descriptor_and_a_mount_in_another_namespace_hold_too() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/a b"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/a b");
    let refused = |child: &mut std::process::Child, what: &str| {
        match vault.fence(&name("vault/a b")) {
            Err(StoreError::Busy { holders, .. }) => {
                let names = |h: &flocker_store::Holder| h.what.contains(what);
                assert!(holders.iter().any(|h| h.pid == child.id() && names(h)), "{holders:?}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert!(vault.dataset(&name("vault/a b")).expect("there").writable);
        assert!(path.is_dir());
        child.kill().expect("killed");
        child.wait().expect("gone");
    };
    // The loader maps a library and closes it.
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let library = maps.lines().find_map(|line| {
        let at = line.find('/')?;
        line[at..].contains("libc.so").then(|| line[at..].to_owned())
    });
    // In a directory without a blank, which LD_PRELOAD does not take.
    let link = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(&path, link.path().join("v")).expect("a link");
    if let Some(library) = library {
        std::fs::copy(library, path.join("libmapped.so")).expect("copied");
        let mut child = Command::new("sleep")
            .arg("60")
            .env("LD_PRELOAD", link.path().join("v/libmapped.so"))
            .spawn()
            .expect("sleep");
        std::thread::sleep(std::time::Duration::from_millis(300));
        refused(&mut child, "memory map");
    }
    let probe = Command::new("unshare").args(["-m", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mount namespaces for this user");
        return;
    }
    let target = tempfile::tempdir().expect("a directory");
    let script =
        format!("mount --bind '{}' '{}' && exec sleep 60", path.display(), target.path().display());
    let mut child = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .spawn()
        .expect("unshare");
    std::thread::sleep(std::time::Duration::from_millis(500));
    refused(&mut child, "mount at");
    vault.fence(&name("vault/a b")).expect("now it is free");
}

#[test]
fn the_last_snapshot_is_taken_and_proven_behind_the_fence() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/d");
    sh(&path, MAKE);
    take(&vault, "vault/d@1");
    sh(&path, CHANGE);
    let open = vault.verify_unwritten(&snap("vault/d@1"));
    assert!(matches!(open, Err(StoreError::Modified { .. })), "{open:?}");
    vault.fence(&name("vault/d")).expect("fenced");
    take(&vault, "vault/d@2");
    vault.verify_unwritten(&snap("vault/d@2")).expect("nothing was written");
    let old = vault.verify_unwritten(&snap("vault/d@1"));
    assert!(matches!(old, Err(StoreError::Modified { .. })), "{old:?}");
    // Somebody who knows where it is hidden writes all the same, and even sets the time back.
    let hidden = find_hidden(&path);
    let noise = hidden.join("noise");
    let before = std::fs::metadata(&noise).and_then(|m| m.modified()).expect("time");
    sh(&hidden, "printf Z | dd of=noise bs=1 seek=9 conv=notrunc status=none");
    let file = std::fs::File::options().write(true).open(&noise).expect("open");
    file.set_modified(before).expect("set back");
    match vault.verify_unwritten(&snap("vault/d@2")) {
        Err(StoreError::Modified { detail, .. }) => assert!(detail.contains("noise"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

/// The hidden tree of the only volume of a vault.
fn find_hidden(live: &Path) -> PathBuf {
    let vault = live.ancestors().find(|p| p.join("hidden").exists()).expect("the vault");
    let mut found = std::fs::read_dir(vault.join("hidden")).expect("hidden");
    found.next().expect("one").expect("entry").path().join("tree")
}

#[test]
fn roles_are_swapped_there_and_back_and_there_again() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    sh(&live(&a, "vault/d"), MAKE);
    take(&a, "vault/d@0");
    replicate(&a, &b, None, "vault/d@0");
    let (mut from, mut to) = (&a, &b);
    let mut base = "vault/d@0".to_owned();
    for round in 1..5 {
        let path = live(from, "vault/d");
        sh(
            &path,
            &format!(
                "echo {round} >> log; mkdir r{round}; mv log r{round}/; ln -s r{round}/log log{round}"
            ),
        );
        sh(
            &path,
            &format!(
                "mv r{round}/log log; rm -f noise{}; head -c 200000 /dev/urandom > noise{round}",
                round - 1
            ),
        );
        from.fence(&name("vault/d")).expect("fenced");
        let last = format!("vault/d@{round}");
        take(from, &last);
        from.verify_unwritten(&snap(&last)).expect("unwritten");
        replicate(from, to, Some(&base), &last);
        let expected = listing(&find_hidden(&path));
        assert_eq!(listing(&live(to, "vault/d")), expected, "round {round}");
        base = last;
        std::mem::swap(&mut from, &mut to);
    }
    a.verify().expect("sound");
    b.verify().expect("sound");
}

#[test]
fn a_volume_that_was_written_is_not_received_over() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    sh(&live(&a, "vault/d"), "echo 1 > x");
    take(&a, "vault/d@1");
    replicate(&a, &b, None, "vault/d@1");
    sh(&live(&a, "vault/d"), "echo 2 > x");
    take(&a, "vault/d@2");
    let step = send(&a, Some("vault/d@1"), "vault/d@2");

    let path = live(&b, "vault/d");
    sh(&path, "echo mine > y");
    for fenced in [false, true] {
        if fenced {
            b.fence(&name("vault/d")).expect("fenced");
        }
        match receive(&b, "vault/d@2", &step) {
            Err(StoreError::Modified { detail, .. }) => assert!(detail.contains('y'), "{detail}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(std::fs::read_to_string(live(&b, "vault/d").join("y")).expect("kept"), "mine\n");
    // Rolled back it is as it was, and takes the step.
    b.rollback(&snap("vault/d@1")).expect("rolled back");
    assert!(!path.join("y").exists() && path.join("x").exists());
    b.fence(&name("vault/d")).expect("fenced");
    receive(&b, "vault/d@2", &step).expect("received");
    assert_eq!(std::fs::read_to_string(live(&b, "vault/d").join("x")).expect("x"), "2\n");
    let old = b.rollback(&snap("vault/d@1"));
    assert!(matches!(old, Err(StoreError::Modified { .. })), "{old:?}");
}

#[test]
fn a_dropped_receive_leaves_nothing_and_two_at_once_are_refused() {
    let ((_a, a), (dir, b)) = (new_vault(), new_vault());
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    sh(&live(&a, "vault/d"), "head -c 3000000 /dev/urandom > big");
    take(&a, "vault/d@1");
    let stream = send(&a, None, "vault/d@1");
    let spec: ReceiveSpec = spec_for(&stream, "vault/d@1");
    let mut incoming = b.receive(&spec).expect("begun");
    std::io::Write::write_all(&mut incoming, &stream[..2_000_000]).expect("written");
    let second = b.receive(&spec).map(drop);
    assert!(matches!(second, Err(StoreError::Busy { .. })), "{second:?}");
    assert!(b.dataset(&name("vault/d")).is_err(), "nothing is visible before the commit");
    drop(incoming);
    let packs = std::fs::read_dir(dir.path().join("v/packs")).expect("packs").count();
    assert_eq!(packs, 0, "what arrived was taken back");
    receive(&b, "vault/d@1", &stream).expect("received");
}

#[test]
fn what_changed_is_said_without_reading_content() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/d");
    sh(&path, "mkdir s; head -c 100000 /dev/urandom > s/a; echo b > b");
    std::thread::sleep(std::time::Duration::from_millis(60));
    take(&vault, "vault/d@1");
    let changed = || vault.changed_since(&snap("vault/d@1")).expect("says");
    assert_eq!(changed(), Change::Unchanged);
    sh(&path, "printf x | dd of=s/a bs=1 seek=5 conv=notrunc status=none");
    assert!(matches!(changed(), Change::Changed { bytes } if bytes >= 100_000));
    take(&vault, "vault/d@2");
    sh(&path, "rm b");
    assert!(matches!(vault.changed_since(&snap("vault/d@2")), Ok(Change::Changed { .. })));
}

#[test]
fn a_file_rewritten_in_the_tick_of_its_snapshot_is_not_missed() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&vault, "vault/d").join("f");
    for round in 0..30u32 {
        std::fs::write(&path, round.to_le_bytes()).expect("written");
        take(&vault, &format!("vault/d@a{round}"));
        // The same length, at once: size and often the times are the same.
        std::fs::write(&path, (round + 1000).to_le_bytes()).expect("written");
        take(&vault, &format!("vault/d@b{round}"));
        let (_c, fresh) = new_vault();
        replicate(&vault, &fresh, None, &format!("vault/d@b{round}"));
        let got = std::fs::read(live(&fresh, "vault/d").join("f")).expect("read");
        assert_eq!(got, (round + 1000).to_le_bytes());
    }
}

#[test]
fn snapshots_are_held_and_datasets_are_destroyed_only_when_nothing_keeps_them() {
    let (dir, vault) = new_vault();
    vault.create(&name("vault/p/d"), DatasetKind::Directory).expect("created");
    take(&vault, "vault/p/d@1");
    let tag = HoldTag("flocker-repl:x".into());
    let at = [snap("vault/p/d@1")];
    vault.hold(&tag, &at).expect("held");
    vault.hold(&tag, &at).expect("twice is once");
    assert_eq!(vault.holds(&at[0]).expect("holds"), std::slice::from_ref(&tag));
    assert_eq!(vault.inventory(&name("vault/p/d")).expect("inventory").snapshots[0].holds, 1);
    let kept = vault.destroy_snapshots(&at);
    assert!(matches!(kept, Err(StoreError::Kept { .. })), "{kept:?}");
    let kept = vault.destroy_dataset(&name("vault/p/d"));
    assert!(matches!(kept, Err(StoreError::Kept { .. })), "{kept:?}");
    let kept = vault.destroy_dataset(&name("vault/p"));
    assert!(matches!(kept, Err(StoreError::Kept { .. })), "{kept:?}");
    drop(vault);
    let vault = Vault::open(dir.path().join("v")).expect("opened again");
    assert_eq!(vault.holds(&at[0]).expect("holds survive"), std::slice::from_ref(&tag));
    vault.release(&tag, &at).expect("released");
    vault.release(&tag, &at).expect("twice is once");
    vault.destroy_snapshots(&at).expect("destroyed");
    vault.destroy_snapshots(&at).expect("one that is gone is no error");
    let path = vault.live_path(&name("vault/p/d"));
    assert!(path.exists());
    vault.destroy_dataset(&name("vault/p/d")).expect("destroyed");
    assert!(!path.exists());
    let gone = vault.dataset(&name("vault/p/d"));
    assert!(matches!(gone, Err(StoreError::NoDataset { .. })));
}

#[test]
fn a_renamed_volume_moves_with_its_children_and_its_live_path() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/a/d"), DatasetKind::Directory).expect("created");
    sh(&live(&vault, "vault/a/d"), "echo x > x");
    take(&vault, "vault/a/d@1");
    let guid = vault.dataset(&name("vault/a/d")).expect("there").guid;
    vault.rename(&name("vault/a"), &name("vault/b/c")).expect("renamed");
    let info = vault.dataset(&name("vault/b/c/d")).expect("moved along");
    assert_eq!((info.guid, info.writable), (guid, true));
    assert!(vault.live_path(&name("vault/b/c/d")).join("x").exists());
    assert!(vault.dataset(&name("vault/a")).is_err());
    vault.create(&name("vault/e"), DatasetKind::Directory).expect("created");
    let taken = vault.rename(&name("vault/e"), &name("vault/b/c"));
    assert!(matches!(taken, Err(StoreError::Exists { .. })), "{taken:?}");
}

#[test]
fn properties_are_local_where_they_were_set_and_inherited_below() {
    let (_dir, vault) = new_vault();
    vault.create(&name("vault/p/d"), DatasetKind::Directory).expect("created");
    let set = |at: &str, value: Option<&str>| {
        let changes = [("flocker-repl:id".to_owned(), value.map(str::to_owned))].into();
        vault.set_user_properties(&name(at), &changes).expect("set");
    };
    set("vault/p", Some("one"));
    let below = vault.user_properties(&name("vault/p/d")).expect("read");
    assert_eq!(below["flocker-repl:id"].source, flocker_store::PropertySource::Inherited);
    set("vault/p/d", Some("two"));
    let own = vault.user_properties(&name("vault/p/d")).expect("read");
    assert_eq!(own["flocker-repl:id"].value, "two");
    assert_eq!(own["flocker-repl:id"].source, flocker_store::PropertySource::Local);
    set("vault/p/d", None);
    set("vault/p", None);
    assert!(vault.user_properties(&name("vault/p/d")).expect("read").is_empty());
}

#[test]
fn a_vault_is_open_in_one_place_and_another_format_is_refused_with_both_numbers() {
    let (dir, vault) = new_vault();
    let path = dir.path().join("v");
    match Vault::open(&path) {
        Err(StoreError::Busy { holders, .. }) => assert_eq!(holders[0].pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    drop(vault);
    std::fs::write(path.join("flocker-vault"), "flocker-vault 77\n").expect("written");
    match Vault::open(&path) {
        Err(error @ StoreError::NotCapable { .. }) => {
            let text = error.to_string();
            assert!(text.contains("77") && text.contains("format 2"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let elsewhere = Vault::open(dir.path());
    assert!(matches!(elsewhere, Err(StoreError::Corrupt { .. })));
    let taken = Vault::create(&path);
    assert!(matches!(taken, Err(StoreError::Exists { .. })));
}

#[test]
fn a_directory_whose_owner_may_not_write_it_is_checked_out_all_the_same() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&a, "vault/d");
    sh(&path, "mkdir ro; echo 1 > ro/x; chmod 0444 ro/x; chmod 0555 ro");
    take(&a, "vault/d@1");
    replicate(&a, &b, None, "vault/d@1");
    b.prepare(&name("vault/d")).expect("prepared");
    std::fs::set_permissions(path.join("ro"), std::fs::Permissions::from_mode(0o755))
        .expect("mode");
    sh(&path, "chmod 644 ro/x; echo 2 > ro/x; echo 3 > ro/y; chmod 0444 ro/x; chmod 0555 ro");
    take(&a, "vault/d@2");
    replicate(&a, &b, Some("vault/d@1"), "vault/d@2");
    assert_eq!(listing(&live(&b, "vault/d")), listing(&path));
}

#[test]
fn many_datasets_are_received_sent_destroyed_and_collected_at_once() {
    let (_dir, vault) = new_vault();
    let (source_dir, source) = new_vault();
    source.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(&source, "vault/d");
    let mut steps = Vec::new();
    for round in 0..4 {
        sh(
            &path,
            &format!(
                "mkdir -p r{round}; seq {round}0000 > r{round}/x; head -c 300000 /dev/urandom > big"
            ),
        );
        let now = format!("@{round}");
        take(&source, &format!("vault/d{now}"));
        let base = (round > 0).then(|| format!("vault/d@{}", round - 1));
        steps.push((now.clone(), send(&source, base.as_deref(), &format!("vault/d{now}"))));
    }
    let full = send(&source, None, "vault/d@3");
    let expected = listing(&path);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (vault, steps, expected) = (&vault, &steps, &expected);
            let full_len = full.len();
            scope.spawn(move || {
                for turn in 0..3 {
                    let dataset = format!("vault/w{worker}-{turn}");
                    for (at, step) in steps {
                        receive(vault, &format!("{dataset}{at}"), step).expect("received");
                    }
                    let first = [snap(&format!("{dataset}@0")), snap(&format!("{dataset}@1"))];
                    vault.destroy_snapshots(&first).expect("destroyed");
                    assert_eq!(send(vault, None, &format!("{dataset}@3")).len(), full_len);
                    assert_eq!(listing(&live(vault, &dataset)), *expected);
                    if turn == 1 {
                        vault.destroy_dataset(&name(&dataset)).expect("destroyed");
                    }
                }
            });
        }
        for _ in 0..3 {
            vault.gc().expect("collected");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    vault.gc().expect("collected");
    vault.verify().expect("sound");
    assert_eq!(vault.datasets().expect("datasets").len(), 1 + 4 * 2);
    drop(source_dir);
}
