//! Datasets set aside, and copies of snapshots.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::*;
use flocker_store::{CloneAccess, DatasetKind, HoldTag, Store, StoreError};
use flocker_vault::Vault;

const ASIDE: &str = "vault/d-diverged-20261126T120501Z";

fn live(vault: &Vault, dataset: &str) -> PathBuf {
    vault.activate(&name(dataset)).expect("activate").expect("a path")
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).expect("read")
}

fn replicate(from: &Vault, to: &Vault, base: Option<&str>, target: &str) {
    receive(to, target, &send(from, base, target)).unwrap_or_else(|e| panic!("{target}: {e}"));
}

fn snapshots(vault: &Vault, dataset: &str) -> Vec<String> {
    let inventory = vault.inventory(&name(dataset)).expect("inventory");
    inventory.snapshots.iter().map(|s| s.name.short().to_owned()).collect()
}

/// `a` has gone on beyond `@2`, which is the newest that `b` has; it is fenced.
fn diverged(a: &Vault, b: &Vault) {
    a.create(&name("vault/d"), DatasetKind::Directory).expect("created");
    let path = live(a, "vault/d");
    std::fs::write(path.join("big"), vec![7; 300_000]).expect("write");
    std::fs::write(path.join("f"), "one").expect("write");
    take(a, "vault/d@1");
    replicate(a, b, None, "vault/d@1");
    std::fs::write(path.join("f"), "two").expect("write");
    take(a, "vault/d@2");
    replicate(a, b, Some("vault/d@1"), "vault/d@2");
    a.hold(&HoldTag("ours".into()), &[snap("vault/d@2")]).expect("hold");
    let properties = [("site:note", "kept"), ("flocker-repl:id", "1/2/3")]
        .map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    a.set_user_properties(&name("vault/d"), &properties.into()).expect("set");
    std::fs::write(path.join("f"), "three").expect("write");
    take(a, "vault/d@3");
    std::fs::write(path.join("g"), "never replicated").expect("write");
    let open = a.set_aside(&snap("vault/d@2"), &name(ASIDE));
    assert!(matches!(open, Err(StoreError::Busy { .. })), "{open:?}");
    a.fence(&name("vault/d")).expect("fence");
}

#[test]
fn what_is_beyond_the_snapshot_is_kept_aside_and_an_increment_goes_into_the_rest() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    diverged(&a, &b);
    let (keep, aside) = (snap("vault/d@2"), name(ASIDE));
    assert!(a.set_aside(&keep, &aside).expect("set aside"));
    assert!(a.set_aside(&keep, &aside).expect("again"), "a second call finds it done");
    assert_eq!(snapshots(&a, "vault/d"), ["1", "2"]);
    assert_eq!(snapshots(&a, ASIDE), ["3", "diverged"]);
    a.verify_unwritten(&keep).expect("it is what the snapshot says");
    assert_eq!(a.holds(&keep).expect("holds"), [HoldTag("ours".into())]);
    for dataset in [name("vault/d"), aside.clone()] {
        let properties = a.user_properties(&dataset).expect("properties");
        assert!(properties.contains_key("site:note"), "{dataset}: {properties:?}");
        assert!(!properties.contains_key("flocker-repl:id"), "{dataset}: {properties:?}");
        assert!(!a.dataset(&dataset).expect("info").writable);
    }
    // Nothing that either needs is collected, whichever is destroyed.
    a.gc().expect("collected");
    let theirs = live(&a, ASIDE);
    assert_eq!(text(theirs.join("f")), "three");
    assert_eq!(text(theirs.join("g")), "never replicated");
    let ours = live(&a, "vault/d");
    assert_eq!(text(ours.join("f")), "two");
    assert!(!ours.join("g").exists());
    a.destroy_dataset(&aside).expect("a person has looked at it");
    a.gc().expect("collected");
    a.verify().expect("whole");
    assert_eq!(std::fs::read(ours.join("big")).expect("read"), vec![7; 300_000]);
    a.fence(&name("vault/d")).expect("fence");
    a.rollback(&keep).expect("as received");

    std::fs::write(live(&b, "vault/d").join("f"), "the new primary's").expect("write");
    take(&b, "vault/d@n");
    replicate(&b, &a, Some("vault/d@2"), "vault/d@n");
    assert_eq!(text(live(&a, "vault/d").join("f")), "the new primary's");
}

#[test]
fn a_difference_that_was_snapshotted_before_a_crash_is_set_aside_by_the_next_call() {
    let ((dir, a), (_b, b)) = (new_vault(), new_vault());
    diverged(&a, &b);
    take(&a, "vault/d@diverged");
    drop(a);
    let a = Vault::open(dir.path().join("v")).expect("opened");
    assert!(a.set_aside(&snap("vault/d@2"), &name(ASIDE)).expect("set aside"));
    assert_eq!(snapshots(&a, ASIDE), ["3", "diverged"]);
    assert_eq!(text(live(&a, ASIDE).join("g")), "never replicated");
    replicate(&b, &a, Some("vault/d@2"), {
        take(&b, "vault/d@n");
        "vault/d@n"
    });
}

#[test]
fn a_dataset_with_nothing_beyond_the_snapshot_is_left_alone() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    diverged(&a, &b);
    // A standby whose directory was not brought up to the newest snapshot yet has nothing of its own.
    let guid = b.dataset(&name("vault/d")).expect("info").guid;
    assert!(!b.set_aside(&snap("vault/d@2"), &name(ASIDE)).expect("nothing beyond"));
    assert_eq!(b.dataset(&name("vault/d")).expect("info").guid, guid);
    assert!(matches!(b.dataset(&name(ASIDE)), Err(StoreError::NoDataset { .. })));
    a.create(&name(ASIDE), DatasetKind::Filesystem).expect("created");
    let taken = a.set_aside(&snap("vault/d@2"), &name(ASIDE));
    assert!(matches!(taken, Err(StoreError::Exists { .. })), "{taken:?}");
    let none = a.set_aside(&snap("vault/d@9"), &name(ASIDE));
    assert!(matches!(none, Err(StoreError::NoSnapshot { .. })), "{none:?}");
}

#[test]
fn a_copy_of_a_snapshot_is_written_without_touching_what_it_is_of() {
    let ((_a, a), (_b, b)) = (new_vault(), new_vault());
    diverged(&a, &b);
    let copy = name("vault/drill");
    let path = b
        .clone_snapshot(&snap("vault/d@1"), &copy, CloneAccess::Writable)
        .expect("copied")
        .expect("a path");
    assert_eq!(text(path.join("f")), "one");
    std::fs::write(path.join("f"), "tried").expect("write");
    let again = b.clone_snapshot(&snap("vault/d@1"), &copy, CloneAccess::Writable);
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
    take(&a, "vault/d@4");
    replicate(&a, &b, Some("vault/d@2"), "vault/d@4");
    b.destroy_snapshots(&[snap("vault/d@1")]).expect("destroyed");
    b.gc().expect("collected");
    b.verify().expect("whole");

    let held = std::fs::File::open(path.join("f")).expect("open");
    let mut holder = Command::new("sleep").arg("60").stdin(held).spawn().expect("sleep");
    let busy = b.remove_clone(&copy);
    assert!(matches!(busy, Err(StoreError::Busy { .. })), "{busy:?}");
    holder.kill().expect("killed");
    holder.wait().expect("ended");
    b.remove_clone(&copy).expect("removed");
    b.remove_clone(&copy).expect("one that is gone is not an error");
    assert!(!path.exists());
    let not = b.remove_clone(&name("vault/d"));
    assert!(matches!(not, Err(StoreError::NotCapable { .. })), "{not:?}");
    assert_eq!(text(live(&b, "vault/d").join("g")), "never replicated");
}
