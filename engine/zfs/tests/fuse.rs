//! The whole trait on real ZFS: zfs-fuse, on pools in files.
//!
//! Owns: the cycle of a volume between two pools, and what must not happen on the way. Leaves to others:
//! fencing (`fuse_fence.rs`), the words of errors (`golden.rs`).

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};

use common::{Pair, full, increment, pump, read_all, receive_spec, tag, unique_bytes};
use flocker_store::{
    Change, DatasetKind, PropertySource, SendBase, SendSpec, SnapshotSpec, Store, StoreError,
};

#[test]
fn a_volume_goes_to_another_pool_in_full_and_by_increments() {
    let Some(pair) = Pair::new("cycle", "a_volume_goes_to_another_pool") else {
        return;
    };
    let (source, path) = pair.live("db 1");
    fs::write(path.join("one"), unique_bytes(300_000, 1)).unwrap();
    let s1 = pair.snap(&source, "s:1");
    let there = pair.b.dataset("recv/deep/db 1");
    let first = pair.replicate(None, &s1, &there).unwrap();
    assert_eq!((first.guid, first.name.short()), (s1.guid, "s:1"));
    assert_eq!(first.name.dataset(), &there);

    fs::write(path.join("two"), unique_bytes(300_000, 2)).unwrap();
    fs::remove_file(path.join("one")).unwrap();
    let s2 = pair.snap(&source, "s2");
    let second = pair.replicate(Some(&s1), &s2, &there).unwrap();
    assert_eq!(second.guid, s2.guid);

    let inventory = pair.to.inventory(&there).unwrap();
    let guids: Vec<_> = inventory.snapshots.iter().map(|s| s.guid).collect();
    assert_eq!(guids, [s1.guid, s2.guid]);
    let info = pair.to.dataset(&there).unwrap();
    assert_eq!((info.mounted_at, info.writable), (None, false), "a standby is at rest");

    let shown = pair.to.activate(&there).unwrap().expect("a filesystem has a path");
    assert!(!shown.join("one").exists());
    assert_eq!(fs::read(shown.join("two")).unwrap(), unique_bytes(300_000, 2));
    assert_eq!(pair.to.activate(&there).unwrap(), Some(shown), "idempotent");
    assert!(pair.to.dataset(&there).unwrap().writable);
}

#[test]
fn a_receive_that_is_dropped_leaves_the_last_good_snapshot_even_when_every_byte_came() {
    let Some(pair) = Pair::new("abort", "a_receive_that_is_dropped") else {
        return;
    };
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), unique_bytes(2_000_000, 3)).unwrap();
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("g"), unique_bytes(2_000_000, 4)).unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("r/v");
    let whole = pair.bytes(None, &s1);
    for upto in [0, 100, 312, 1000, 1_000_000, whole.len()] {
        let mut stream = pair.to.receive(&receive_spec(&there, None, &s1)).unwrap();
        stream.write_all(&whole[..upto]).unwrap();
        if upto % 2 == 0 {
            drop(stream);
        } else {
            stream.abort().unwrap();
        }
        assert!(
            matches!(pair.to.dataset(&there), Err(StoreError::NoDataset { .. })),
            "after {upto} of {} bytes",
            whole.len()
        );
    }
    pair.replicate(None, &s1, &there).unwrap();
    let delta = pair.bytes(Some(&s1), &s2);
    for upto in [0, 312, 100_000, delta.len()] {
        let mut stream = pair.to.receive(&receive_spec(&there, Some(&s1), &s2)).unwrap();
        stream.write_all(&delta[..upto]).unwrap();
        stream.abort().unwrap();
        let latest = pair.to.inventory(&there).unwrap().latest().cloned().unwrap();
        assert_eq!(latest.guid, s1.guid, "after {upto} of {} bytes", delta.len());
    }
    pair.to.verify_unwritten(&first_name(&pair, &there)).unwrap();
    pair.replicate(Some(&s1), &s2, &there).unwrap();
}

fn first_name(pair: &Pair, dataset: &flocker_store::DatasetName) -> flocker_store::SnapshotName {
    pair.to.inventory(dataset).unwrap().snapshots[0].name.clone()
}

#[test]
fn a_process_that_is_killed_while_it_receives_leaves_the_last_good_snapshot() {
    let Some(pair) = Pair::new("crash", "a_process_that_is_killed_while_it_receives") else {
        return;
    };
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), unique_bytes(2_000_000, 5)).unwrap();
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("v");
    let bytes = pair.bytes(None, &s1);
    // What a killed engine leaves: a `zfs receive` whose stdin has come to its end in the middle.
    let mut child = std::process::Command::new("zfs")
        .args(["receive", "-u", there.as_str()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&bytes[..1_000_000]).unwrap();
    let busy = pair.to.receive(&receive_spec(&there, None, &s1)).err();
    assert!(matches!(busy, Some(StoreError::Exists { .. })), "{busy:?}");
    drop(stdin);
    child.wait().unwrap();
    pair.replicate(None, &s1, &there).unwrap();
}

#[test]
fn one_receive_at_a_time_goes_into_a_dataset() {
    let Some(pair) = Pair::new("turns", "one_receive_at_a_time") else {
        return;
    };
    let (source, _) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("v");
    let first = pair.to.receive(&receive_spec(&there, None, &s1)).unwrap();
    let second = pair.to.receive(&receive_spec(&there, None, &s1)).err();
    assert!(matches!(second, Some(StoreError::Busy { .. })), "{second:?}");
    first.abort().unwrap();
    pair.replicate(None, &s1, &there).unwrap();
}

#[test]
fn a_stream_that_is_not_the_announced_one_is_refused_before_anything_changes() {
    let Some(pair) = Pair::new("announced", "a_stream_that_is_not_the_announced_one") else {
        return;
    };
    let (source, path) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("f"), "x").unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("v");
    let full_of_s1 = pair.bytes(None, &s1);
    let mut stream = pair.to.receive(&receive_spec(&there, None, &s2)).unwrap();
    let written = stream.write_all(&full_of_s1);
    assert!(written.is_err());
    let error = stream.commit().unwrap_err();
    assert!(matches!(error, StoreError::BadStream { .. }), "{error}");
    assert!(error.to_string().contains(&s2.guid.to_string()), "{error}");
    assert!(pair.to.dataset(&there).is_err());

    let mut stream = pair.to.receive(&receive_spec(&there, None, &s1)).unwrap();
    assert!(stream.write_all(&[7; 5000]).is_err());
    assert!(matches!(stream.commit(), Err(StoreError::BadStream { .. })));
}

#[test]
fn a_damaged_stream_is_refused_and_changes_nothing() {
    let Some(pair) = Pair::new("damage", "a_damaged_stream_is_refused") else {
        return;
    };
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), unique_bytes(500_000, 6)).unwrap();
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("v");
    let whole = pair.bytes(None, &s1);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (what, bytes) in [("flipped", &flipped[..]), ("cut", &whole[..whole.len() - 312])] {
        let mut stream = pair.to.receive(&receive_spec(&there, None, &s1)).unwrap();
        let _ = stream.write_all(bytes);
        let error = stream.commit().unwrap_err();
        assert!(matches!(error, StoreError::BadStream { .. }), "{what}: {error:?}");
        assert!(pair.to.dataset(&there).is_err(), "{what}");
    }
    pair.replicate(None, &s1, &there).unwrap();
}

#[test]
fn a_modified_standby_is_refused_and_rollback_makes_it_good_again() {
    let Some(pair) = Pair::new("modified", "a_modified_standby_is_refused") else {
        return;
    };
    let (source, path) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("f"), "x").unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("v");
    let base = pair.replicate(None, &s1, &there).unwrap();

    let shown = pair.to.activate(&there).unwrap().unwrap();
    let mounted = pair.replicate(Some(&s1), &s2, &there).unwrap_err();
    assert!(matches!(mounted, StoreError::Busy { .. }), "{mounted}");
    fs::write(shown.join("stray"), "written on the standby").unwrap();
    let dirty = pair.replicate(Some(&s1), &s2, &there).unwrap_err();
    assert!(matches!(dirty, StoreError::Modified { .. }), "{dirty}");
    pair.to.fence(&there).unwrap();
    let dirty = pair.replicate(Some(&s1), &s2, &there).unwrap_err();
    assert!(matches!(dirty, StoreError::Modified { .. }), "{dirty}");
    assert!(matches!(pair.to.changed_since(&base.name).unwrap(), Change::Changed { .. }));
    assert_eq!(pair.to.inventory(&there).unwrap().snapshots.len(), 1, "nothing destroyed");

    pair.to.rollback(&base.name).unwrap();
    pair.to.verify_unwritten(&base.name).unwrap();
    assert_eq!(pair.to.changed_since(&base.name).unwrap(), Change::Unchanged);
    pair.replicate(Some(&s1), &s2, &there).unwrap();
    let not_newest = pair.to.rollback(&base.name).unwrap_err();
    assert!(matches!(not_newest, StoreError::Modified { .. }), "{not_newest}");
}

#[test]
fn an_increment_fits_only_on_its_base_and_only_when_that_is_the_newest() {
    let Some(pair) = Pair::new("base", "an_increment_fits_only_on_its_base") else {
        return;
    };
    let (source, path) = pair.live("v");
    let mut snaps = Vec::new();
    for n in 0..3 {
        fs::write(path.join(format!("f{n}")), "x").unwrap();
        snaps.push(pair.snap(&source, &format!("s{n}")));
    }
    let there = pair.b.dataset("v");
    let missing = pair.replicate(Some(&snaps[0]), &snaps[1], &there).unwrap_err();
    assert!(matches!(missing, StoreError::NoDataset { .. }), "{missing}");
    pair.replicate(None, &snaps[0], &there).unwrap();
    let error = pair.replicate(Some(&snaps[1]), &snaps[2], &there).unwrap_err();
    let StoreError::NoBase { base, .. } = error else { panic!("{error}") };
    assert_eq!(base, snaps[1].guid);
    // zfs-fuse would take an increment over a local snapshot that changed nothing.
    let local = there.snapshot("local").unwrap();
    pair.to.snapshot(&group(std::slice::from_ref(&local))).unwrap();
    let error = pair.replicate(Some(&snaps[0]), &snaps[1], &there).unwrap_err();
    assert!(matches!(error, StoreError::Modified { .. }), "{error}");
    pair.to.destroy_snapshots(&[local]).unwrap();
    pair.replicate(Some(&snaps[0]), &snaps[2], &there).unwrap();
    let again = pair.replicate(None, &snaps[0], &there).unwrap_err();
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
}

fn group(names: &[flocker_store::SnapshotName]) -> SnapshotSpec {
    SnapshotSpec { names: names.to_vec(), quiesced: false, properties: BTreeMap::new() }
}

#[test]
fn a_full_disk_on_the_target_is_named_and_goes_on_when_there_is_room() {
    let Some(pair) = Pair::sized("space", 200, 70, "a_full_disk_on_the_target_is_named") else {
        return;
    };
    let (source, path) = pair.live("v");
    fs::write(path.join("small"), "x").unwrap();
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("big"), unique_bytes(60 << 20, 7)).unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("v");
    pair.replicate(None, &s1, &there).unwrap();
    let error = pair.replicate(Some(&s1), &s2, &there).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    let inventory = pair.to.inventory(&there).unwrap();
    assert_eq!(inventory.latest().unwrap().guid, s1.guid);
    fs::remove_file(path.join("big")).unwrap();
    let s3 = pair.snap(&source, "s3");
    pair.replicate(Some(&s1), &s3, &there).unwrap();
    let space = pair.to.space(&pair.b.dataset("not/yet/there")).unwrap();
    assert!(space.available_bytes > 1 << 20 && space.available_bytes < 70 << 20, "{space:?}");
}

#[test]
fn holds_keep_snapshots_and_are_listed_by_tag() {
    let Some(pair) = Pair::new("holds", "holds_keep_snapshots") else { return };
    let (source, _) = pair.live("v");
    let s = [pair.snap(&source, "s1").name, pair.snap(&source, "s2").name];
    let store = &pair.from;
    store.hold(&tag("flocker-repl:p:1"), &s).unwrap();
    store.hold(&tag("flocker-repl:p:1"), &s).unwrap();
    store.hold(&tag("other"), &s[..1]).unwrap();
    assert_eq!(store.holds(&s[0]).unwrap(), [tag("flocker-repl:p:1"), tag("other")]);
    assert_eq!(store.inventory(&source).unwrap().snapshots[0].holds, 2);
    let kept = store.destroy_snapshots(&s).unwrap_err();
    let StoreError::Kept { by, .. } = &kept else { panic!("{kept:?}") };
    assert!(by.contains("flocker-repl:p:1"), "{kept}");
    let kept = store.destroy_dataset(&source).unwrap_err();
    assert!(matches!(kept, StoreError::Kept { .. }), "{kept}");
    assert_eq!(store.inventory(&source).unwrap().snapshots.len(), 2, "nothing went");

    store.release(&tag("flocker-repl:p:1"), &s).unwrap();
    store.release(&tag("flocker-repl:p:1"), &s).unwrap();
    assert_eq!(store.holds(&s[0]).unwrap(), [tag("other")]);
    assert_eq!(store.holds(&s[1]).unwrap(), []);
    // Somebody else's hold has no name here, and still counts.
    common::zfs(&["hold", "foreign", &s[1].to_string()]);
    assert_eq!(store.holds(&s[1]).unwrap().len(), 1);
    assert!(store.destroy_snapshots(&s[1..]).is_err());
    common::zfs(&["release", "foreign", &s[1].to_string()]);
    store.release(&tag("other"), &s).unwrap();
    let mut names = s.to_vec();
    names.push(source.snapshot("never").unwrap());
    store.destroy_snapshots(&names).unwrap();
    let gone = store.hold(&tag("x"), &s).unwrap_err();
    assert!(matches!(gone, StoreError::NoSnapshot { .. }), "{gone}");
    for bad in ["", "-r", "a b"] {
        assert!(store.hold(&tag(bad), &s).is_err(), "{bad:?}");
    }
}

#[test]
fn a_name_that_zfs_takes_for_a_range_is_never_destroyed() {
    let Some(pair) = Pair::new("range", "a_name_that_zfs_takes_for_a_range") else { return };
    let (source, _) = pair.live("v");
    pair.snap(&source, "a");
    pair.snap(&source, "b");
    let error = pair.from.destroy_snapshots(&[source.snapshot("a%b").unwrap()]);
    assert!(matches!(error, Err(StoreError::NotCapable { .. })));
    assert_eq!(pair.from.inventory(&source).unwrap().snapshots.len(), 2);
}

#[test]
fn a_group_of_snapshots_is_all_or_none() {
    let Some(pair) = Pair::new("group", "a_group_of_snapshots_is_all_or_none") else { return };
    let (a, _) = pair.live("a");
    let (b, _) = pair.live("b");
    pair.snap(&b, "taken");
    let spec = group(&[a.snapshot("taken").unwrap(), b.snapshot("taken").unwrap()]);
    let error = pair.from.snapshot(&spec).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(pair.from.inventory(&a).unwrap().snapshots, []);
    let mut spec = group(&[a.snapshot("g").unwrap(), b.snapshot("g").unwrap()]);
    spec.properties.insert("flocker-repl:seq".into(), "7".into());
    let taken = pair.from.snapshot(&spec).unwrap();
    assert_eq!(taken.len(), 2);
    assert_ne!(taken[0].guid, taken[1].guid);
    let missing = group(&[pair.a.dataset("none").snapshot("s").unwrap()]);
    let error = pair.from.snapshot(&missing).unwrap_err();
    assert!(matches!(error, StoreError::NoDataset { .. }), "{error}");
}

#[test]
fn user_properties_are_set_inherited_and_taken_away() {
    let Some(pair) = Pair::new("props", "user_properties_are_set") else { return };
    let (source, _) = pair.live("v");
    let store = &pair.from;
    let child = pair.a.dataset("v/child");
    store.create(&child, DatasetKind::Filesystem).unwrap();
    let set = |pairs: &[(&str, Option<&str>)]| {
        let changes: BTreeMap<String, Option<String>> =
            pairs.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        store.set_user_properties(&source, &changes)
    };
    set(&[("flocker-repl:id", Some("a b:%é")), ("com.example:x", Some("1"))]).unwrap();
    let found = store.user_properties(&source).unwrap();
    assert_eq!(found["flocker-repl:id"].value, "a b:%é");
    assert_eq!(found["flocker-repl:id"].source, PropertySource::Local);
    let below = store.user_properties(&child).unwrap();
    assert_eq!(below["flocker-repl:id"].source, PropertySource::Inherited);
    set(&[("flocker-repl:id", None), ("flocker-repl:none", None)]).unwrap();
    assert!(!store.user_properties(&source).unwrap().contains_key("flocker-repl:id"));
    assert_eq!(store.user_properties(&source).unwrap()["com.example:x"].value, "1");
    for (name, value) in [("compression", "off"), ("a:b", ""), ("a:b", "x\ty"), ("-r:x", "1")] {
        assert!(set(&[(name, Some(value))]).is_err(), "{name}={value:?}");
    }
    let none = store.user_properties(&pair.a.dataset("none")).unwrap_err();
    assert!(matches!(none, StoreError::NoDataset { .. }), "{none}");
}

#[test]
fn datasets_are_made_renamed_listed_and_destroyed_one_by_one() {
    let Some(pair) = Pair::new("tree", "datasets_are_made_renamed_listed") else { return };
    let store = &pair.from;
    let deep = pair.a.dataset("x/y z/w:1");
    let made = store.create(&deep, DatasetKind::Filesystem).unwrap();
    assert_eq!((made.mounted_at, made.writable), (None, false));
    let again = store.create(&deep, DatasetKind::Filesystem).unwrap_err();
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
    for kind in [DatasetKind::Zvol, DatasetKind::Directory] {
        let error = store.create(&pair.a.dataset("k"), kind).unwrap_err();
        assert!(matches!(error, StoreError::NotCapable { .. }), "{error}");
    }
    let names: Vec<String> = store.datasets().unwrap().iter().map(|d| d.name.to_string()).collect();
    let pool = pair.a.name();
    let expect = ["", "/x", "/x/y z", "/x/y z/w:1"].map(|path| format!("{pool}{path}"));
    assert_eq!(names, expect, "parents first");

    let with_children = store.destroy_dataset(&pair.a.dataset("x")).unwrap_err();
    assert!(matches!(with_children, StoreError::Kept { .. }), "{with_children}");
    // Renamed while it is mounted, which zfs-fuse by itself refuses.
    store.activate(&deep).unwrap();
    let to = pair.a.dataset("q/w-diverged");
    store.rename(&deep, &to).unwrap();
    assert_eq!(store.dataset(&to).unwrap().guid, made.guid);
    assert!(store.dataset(&to).unwrap().mounted_at.is_some());
    let taken = store.rename(&to, &pair.a.dataset("x")).unwrap_err();
    assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");
    let none = store.rename(&deep, &pair.a.dataset("nn")).unwrap_err();
    assert!(matches!(none, StoreError::NoDataset { .. }), "{none}");
    pair.snap(&to, "s");
    store.destroy_dataset(&to).unwrap();
    assert!(matches!(store.dataset(&to), Err(StoreError::NoDataset { .. })));
    assert!(store.destroy_dataset(&pair.a.root()).is_err(), "never its own root");
}

#[test]
fn a_clone_keeps_its_origin_from_being_destroyed() {
    let Some(pair) = Pair::new("clone", "a_clone_keeps_its_origin") else { return };
    let (source, _) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    let clone = pair.a.dataset("c");
    common::zfs(&["clone", &s1.name.to_string(), clone.as_str()]);
    for error in [
        pair.from.destroy_snapshots(std::slice::from_ref(&s1.name)).unwrap_err(),
        pair.from.destroy_dataset(&source).unwrap_err(),
    ] {
        let StoreError::Kept { by, .. } = &error else { panic!("{error:?}") };
        assert!(by.contains(clone.as_str()), "{error}");
    }
    assert_eq!(pair.from.inventory(&source).unwrap().snapshots.len(), 1);
}

#[test]
fn what_lies_outside_the_root_is_refused_before_a_command_sees_it() {
    let Some(pair) = Pair::new("outside", "what_lies_outside_the_root") else { return };
    let foreign = pair.b.root();
    let store = &pair.from;
    for error in [
        store.dataset(&foreign).unwrap_err(),
        store.destroy_dataset(&foreign).unwrap_err(),
        store.fence(&foreign).unwrap_err(),
        store.rename(&pair.a.root(), &foreign).unwrap_err(),
        store.destroy_snapshots(&[foreign.snapshot("x").unwrap()]).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NotCapable { .. }), "{error}");
        assert!(error.to_string().contains("outside"), "{error}");
    }
}

#[test]
fn a_send_that_cannot_start_says_which_snapshot_is_missing() {
    let Some(pair) = Pair::new("sends", "a_send_that_cannot_start") else { return };
    let (source, path) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("f"), unique_bytes(8 << 20, 8)).unwrap();
    let s2 = pair.snap(&source, "s2");
    let none = source.snapshot("none").unwrap();
    let spec = SendSpec { to: none.clone(), ..full(&s1) };
    let error = pair.from.send(&spec).err().unwrap();
    assert!(matches!(&error, StoreError::NoSnapshot { name } if *name == none.to_string()));
    let spec = SendSpec { from: Some(SendBase::Snapshot(none)), ..full(&s2) };
    assert!(matches!(pair.from.send(&spec).err().unwrap(), StoreError::NoSnapshot { .. }));
    let backwards = increment(&s2, &s1);
    let mut stream = pair.from.send(&backwards).unwrap();
    assert_eq!(read_all(&mut *stream).len(), 0);
    assert!(matches!(stream.finish(), Err(StoreError::NoSnapshot { .. })));
    for flags in [(true, false, false), (false, true, false), (false, false, true)] {
        let (compressed, large_blocks, raw) = flags;
        let spec = SendSpec { compressed, large_blocks, raw, ..full(&s1) };
        assert!(matches!(pair.from.send(&spec).err().unwrap(), StoreError::NotCapable { .. }));
    }
    // Given up in the middle: an error, at once, and nothing hangs.
    let begun = std::time::Instant::now();
    let mut stream = pair.from.send(&full(&s2)).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    assert!(stream.finish().is_err());
    let mut stream = pair.from.send(&full(&s2)).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop(stream);
    assert!(begun.elapsed().as_secs() < 8, "{:?}", begun.elapsed());
    pair.from.destroy_dataset(&source).unwrap();
}

#[test]
fn a_few_hundred_snapshots_are_listed_in_order_and_destroyed_in_a_batch() {
    let Some(pair) = Pair::new("many", "a_few_hundred_snapshots") else { return };
    let (source, _) = pair.live("v");
    let names: Vec<_> = (0..300)
        .map(|n| source.snapshot(&format!("autosnap_2026-01-01_{:03}", 299 - n)).unwrap())
        .collect();
    for name in &names {
        common::zfs(&["snapshot", &name.to_string()]);
    }
    let begun = std::time::Instant::now();
    let inventory = pair.from.inventory(&source).unwrap();
    println!("inventory of 300: {:?}", begun.elapsed());
    let listed: Vec<_> = inventory.snapshots.iter().map(|s| s.name.clone()).collect();
    assert_eq!(listed, names, "by createtxg, not by name");
    pair.from.destroy_snapshots(&names).unwrap();
    assert_eq!(pair.from.inventory(&source).unwrap().snapshots, []);
}

#[test]
fn the_proof_of_unwritten_fails_for_the_smallest_change() {
    let Some(pair) = Pair::new("proof", "the_proof_of_unwritten") else { return };
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), "hello").unwrap();
    let s1 = pair.snap(&source, "s1");
    let writable = pair.from.verify_unwritten(&s1.name).unwrap_err();
    assert!(matches!(writable, StoreError::Busy { .. }), "{writable}");
    let begun = std::time::Instant::now();
    pair.from.fence(&source).unwrap();
    let fenced = begun.elapsed();
    pair.from.verify_unwritten(&s1.name).unwrap();
    let verified = begun.elapsed() - fenced;
    pair.from.activate(&source).unwrap();
    let activated = begun.elapsed() - fenced - verified;
    println!("fence {fenced:?}, proof {verified:?}, activate {activated:?}");
    fs::write(path.join("f"), "hellp").unwrap();
    pair.from.fence(&source).unwrap();
    let error = pair.from.verify_unwritten(&s1.name).unwrap_err();
    assert!(matches!(error, StoreError::Modified { .. }), "{error}");
    assert_eq!(pair.from.inventory(&source).unwrap().snapshots.len(), 1, "no probe is left");
    let none = source.snapshot("none").unwrap();
    assert!(matches!(pair.from.verify_unwritten(&none), Err(StoreError::NoSnapshot { .. })));
}

#[test]
fn a_probe_left_by_a_crash_is_invisible_and_goes_away() {
    let Some(pair) = Pair::new("probe", "a_probe_left_by_a_crash") else { return };
    let (source, path) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("f"), "x").unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("v");
    pair.replicate(None, &s1, &there).unwrap();
    common::zfs(&["snapshot", &format!("{there}@flocker-repl-probe-1-2-3")]);
    assert_eq!(pair.to.inventory(&there).unwrap().snapshots.len(), 1);
    pair.replicate(Some(&s1), &s2, &there).unwrap();
    let mut stream = pair.from.send(&full(&s2)).unwrap();
    pump(&mut *stream, &mut std::io::sink());
    stream.finish().unwrap();
}
