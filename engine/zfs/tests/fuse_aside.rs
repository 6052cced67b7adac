//! Setting aside and cloning on real ZFS: zfs-fuse, on pools in files.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Pair, tag};
use flocker_store::{ASIDE, CloneAccess, DatasetName, Snapshot, Store, StoreError};
use flocker_zfs::run::{Finished, Program, Runner, SystemRunner};
use flocker_zfs::{ZfsOptions, ZfsStore};

/// A standby `v` that has `s1` and `s2` of a primary, was opened and written, and is at rest again.
fn diverged(pair: &Pair) -> (DatasetName, Snapshot, Snapshot, DatasetName) {
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), "one").unwrap();
    let s1 = pair.snap(&source, "s1");
    fs::write(path.join("f"), "two").unwrap();
    let s2 = pair.snap(&source, "s2");
    let there = pair.b.dataset("v");
    pair.replicate(None, &s1, &there).unwrap();
    pair.replicate(Some(&s1), &s2, &there).unwrap();
    common::zfs(&["set", "compression=on", there.as_str()]);
    common::zfs(&["set", "com.example:x=a b", there.as_str()]);
    common::zfs(&["set", "flocker-repl:id=1/2/3", there.as_str()]);
    let here = pair.to.activate(&there).unwrap().unwrap();
    fs::write(here.join("f"), "theirs").unwrap();
    pair.to.fence(&there).unwrap();
    (there, s1, s2, source)
}

fn shorts(store: &ZfsStore, dataset: &DatasetName) -> Vec<String> {
    let inventory = store.inventory(dataset).unwrap();
    inventory.snapshots.iter().map(|s| s.name.short().to_owned()).collect()
}

fn content(store: &ZfsStore, dataset: &DatasetName) -> String {
    let path = store.activate(dataset).unwrap().unwrap();
    let content = fs::read_to_string(path.join("f")).unwrap();
    store.fence(dataset).unwrap();
    content
}

/// What holds once `v` was set back to `s1`.
fn check_set_aside(store: &ZfsStore, there: &DatasetName, s1: &Snapshot, aside: &DatasetName) {
    assert_eq!(shorts(store, there), ["s1"]);
    assert_eq!(store.inventory(there).unwrap().snapshots[0].guid, s1.guid);
    assert_eq!(shorts(store, aside), ["s2", "diverged"]);
    let info = store.dataset(there).unwrap();
    assert_eq!((info.mounted_at, info.writable), (None, false));
    let get = ["get", "-Hp", "-o", "value", "canmount,compression,com.example:x"];
    let values = common::zfs(&[&get[..], &[there.as_str()]].concat());
    assert_eq!(values, "noauto\non\na b\n");
    for dataset in [there, aside] {
        let ours = store.user_properties(dataset).unwrap();
        assert!(!ours.contains_key("flocker-repl:id"), "{dataset}: {ours:?}");
        assert!(!ours.contains_key(ASIDE), "{dataset}: {ours:?}");
    }
    store.verify_unwritten(&there.snapshot("s1").unwrap()).unwrap();
    assert_eq!(content(store, aside), "theirs");
    assert_eq!(content(store, there), "one");
}

#[test]
fn what_is_beyond_is_kept_aside_and_the_dataset_receives_from_the_kept_snapshot() {
    let Some(pair) = Pair::new("aside", "what_is_beyond_is_kept_aside") else {
        return;
    };
    let (there, s1, s2, source) = diverged(&pair);
    let keep = there.snapshot("s1").unwrap();
    let hold = tag("flocker-repl:t");
    pair.to.hold(&hold, &[keep.clone(), there.snapshot("s2").unwrap()]).unwrap();
    let aside = pair.b.dataset("v-diverged-20261126T120501Z");
    assert!(pair.to.set_aside(&keep, &aside).unwrap());
    // A hold stays on its snapshot, wherever that is now.
    assert_eq!(pair.to.holds(&keep).unwrap(), std::slice::from_ref(&hold));
    assert_eq!(pair.to.holds(&aside.snapshot("s2").unwrap()).unwrap(), [hold]);
    check_set_aside(&pair.to, &there, &s1, &aside);
    assert!(pair.to.set_aside(&keep, &aside).unwrap(), "idempotent");
    let other = pair.b.dataset("v-diverged-2");
    pair.to.rollback(&keep).unwrap();
    assert!(!pair.to.set_aside(&keep, &other).unwrap(), "nothing is beyond any more");
    pair.replicate(Some(&s1), &s2, &there).unwrap();
    assert_eq!(content(&pair.to, &there), "two");
    assert_eq!(pair.from.inventory(&source).unwrap().snapshots.len(), 2);
}

#[test]
fn nothing_beyond_leaves_everything_untouched() {
    let Some(pair) = Pair::new("none", "nothing_beyond_leaves_everything_untouched") else {
        return;
    };
    let (source, _) = pair.live("v");
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("v");
    pair.replicate(None, &s1, &there).unwrap();
    let state = || common::zfs(&["get", "-Hp", "-s", "local", "all", there.as_str()]);
    let (before, guid) = (state(), pair.to.dataset(&there).unwrap().guid);
    let aside = pair.b.dataset("v-diverged-1");
    assert!(!pair.to.set_aside(&there.snapshot("s1").unwrap(), &aside).unwrap());
    assert_eq!((state(), pair.to.dataset(&there).unwrap().guid), (before, guid));
    assert!(pair.to.dataset(&aside).is_err());
    let missing = pair.to.set_aside(&there.snapshot("no").unwrap(), &aside).unwrap_err();
    assert!(matches!(missing, StoreError::NoSnapshot { .. }), "{missing}");
}

#[test]
fn a_dataset_in_use_is_not_set_aside_and_a_name_in_use_is_not_taken() {
    let Some(pair) = Pair::new("busy", "a_dataset_in_use_is_not_set_aside") else {
        return;
    };
    let (there, ..) = diverged(&pair);
    let keep = there.snapshot("s1").unwrap();
    let aside = pair.b.dataset("v-diverged-1");
    let path = pair.to.activate(&there).unwrap().unwrap();
    let file = fs::File::open(path.join("f")).unwrap();
    let state = || (shorts(&pair.to, &there), pair.to.user_properties(&there).unwrap());
    let before = state();
    let error = pair.to.set_aside(&keep, &aside).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    drop(file);
    let mounted = pair.to.set_aside(&keep, &aside).unwrap_err();
    assert!(matches!(mounted, StoreError::Busy { .. }), "not fenced: {mounted}");
    assert_eq!(state(), before);
    pair.to.fence(&there).unwrap();
    pair.to.create(&aside, flocker_store::DatasetKind::Filesystem).unwrap();
    let taken = pair.to.set_aside(&keep, &aside).unwrap_err();
    assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");
    assert_eq!(state(), before);
}

/// Runs real commands until a given change; that one and all after it fail, as after a crash.
#[derive(Debug)]
struct Crash {
    real: SystemRunner,
    left: AtomicU32,
}

impl Runner for Crash {
    fn run(&self, program: Program, args: &[&str]) -> Result<Finished, StoreError> {
        let changes = !matches!(args[0], "get" | "list" | "version" | "upgrade" | "sync");
        let dead = match changes {
            true => self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_err(),
            false => self.left.load(Ordering::Relaxed) == 0,
        };
        if dead {
            return Err(StoreError::io("crashed", std::io::ErrorKind::BrokenPipe.into()));
        }
        self.real.run(program, args)
    }

    fn path(&self, program: Program) -> &Path {
        self.real.path(program)
    }
}

#[test]
fn a_crash_before_any_of_its_steps_is_made_good_by_the_same_call() {
    let Some(pair) = Pair::sized("steps", 128, 256, "a_crash_before_any_of_its_steps") else {
        return;
    };
    let (there, s1, ..) = diverged(&pair);
    // The pattern for each turn: the same dataset under another name.
    let bytes1 = pair.bytes(None, &s1);
    let _ = bytes1;
    let mut turn = 1;
    loop {
        let dataset = pair.b.dataset(&format!("t{turn}"));
        let keep = dataset.snapshot("s1").unwrap();
        let aside = pair.b.dataset(&format!("t{turn}-diverged-1"));
        prepare(&pair, &s1, &dataset);
        let crash =
            Crash { real: SystemRunner::new(&ZfsOptions::default()), left: AtomicU32::new(turn) };
        let store =
            ZfsStore::with_runner(&pair.b.root(), ZfsOptions::default(), Arc::new(crash)).unwrap();
        let outcome = store.set_aside(&keep, &aside);
        assert!(pair.to.set_aside(&keep, &aside).unwrap(), "after {turn} steps: {outcome:?}");
        check_set_aside(&pair.to, &dataset, &s1, &aside);
        if outcome.is_ok() {
            break;
        }
        turn += 1;
        assert!(turn < 60, "it never ends");
    }
    assert!(turn > 8, "only {turn} steps were tried");
    drop(there);
}

/// As [`diverged`], from streams of the primary that is there already.
fn prepare(pair: &Pair, s1: &Snapshot, dataset: &DatasetName) {
    let source = s1.name.dataset();
    let s2 = pair.from.inventory(source).unwrap().snapshots[1].clone();
    pair.replicate(None, s1, dataset).unwrap();
    pair.replicate(Some(s1), &s2, dataset).unwrap();
    common::zfs(&["set", "compression=on", dataset.as_str()]);
    common::zfs(&["set", "com.example:x=a b", dataset.as_str()]);
    common::zfs(&["set", "flocker-repl:id=1/2/3", dataset.as_str()]);
    let here = pair.to.activate(dataset).unwrap().unwrap();
    fs::write(here.join("f"), "theirs").unwrap();
    pair.to.fence(dataset).unwrap();
}

#[test]
fn a_copy_of_a_snapshot_is_written_while_the_dataset_receives_and_only_a_copy_is_removed() {
    let Some(pair) = Pair::new("clone", "a_copy_of_a_snapshot_is_written") else {
        return;
    };
    let (source, path) = pair.live("v");
    fs::write(path.join("f"), "one").unwrap();
    let s1 = pair.snap(&source, "s1");
    let there = pair.b.dataset("v");
    pair.replicate(None, &s1, &there).unwrap();
    let clone = pair.b.dataset("drills/v-drill");
    let snapshot = there.snapshot("s1").unwrap();
    let at = pair.to.clone_snapshot(&snapshot, &clone, CloneAccess::Writable).unwrap().unwrap();
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "one");
    fs::write(at.join("f"), "drilled").unwrap();
    let again = pair.to.clone_snapshot(&snapshot, &clone, CloneAccess::Writable).unwrap_err();
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
    fs::write(path.join("f"), "two").unwrap();
    let s2 = pair.snap(&source, "s2");
    pair.replicate(Some(&s1), &s2, &there).unwrap();
    let open = fs::File::open(at.join("f")).unwrap();
    let busy = pair.to.remove_clone(&clone).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "drilled");
    drop(open);
    pair.to.remove_clone(&clone).unwrap();
    pair.to.remove_clone(&clone).unwrap();
    let no_copy = pair.to.remove_clone(&there).unwrap_err();
    assert!(matches!(no_copy, StoreError::NotCapable { .. }), "{no_copy}");
    pair.to.destroy_snapshots(&[snapshot]).unwrap();
    assert_eq!(content(&pair.to, &there), "two");
}

#[test]
fn datasets_below_stay_where_they_are_unless_one_is_mounted() {
    let Some(pair) = Pair::new("below", "datasets_below_stay_where_they_are") else {
        return;
    };
    let (there, s1, ..) = diverged(&pair);
    let keep = there.snapshot("s1").unwrap();
    let aside = pair.b.dataset("v-diverged-1");
    let child = there.child("wal").unwrap();
    let guid = pair.to.create(&child, flocker_store::DatasetKind::Filesystem).unwrap().guid;
    pair.to.activate(&child).unwrap();
    let mounted = pair.to.set_aside(&keep, &aside).unwrap_err();
    assert!(mounted.to_string().contains("v/wal is mounted"), "{mounted}");
    pair.to.fence(&child).unwrap();
    assert!(pair.to.set_aside(&keep, &aside).unwrap());
    assert_eq!(pair.to.dataset(&child).unwrap().guid, guid);
    check_set_aside(&pair.to, &there, &s1, &aside);
}
