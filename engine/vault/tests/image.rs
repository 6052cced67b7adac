//! A zvol in a vault that becomes live: a disk image, written, fenced, snapshotted and handed back.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::*;
use flocker_store::{Change, CloneAccess, DatasetKind, SnapshotSpec, Store, StoreError};
use flocker_vault::{Vault, fault};
use zfs_stream::format::objset;
use zfs_stream::record::Record;

fn set(vault: &Vault, snapshot: &str) -> String {
    vault.objects(&snap(snapshot)).expect("objects").0
}

/// A vault with the golden volume at `@s0` and `@s1`, from a stream of blocks as they are or compressed.
fn standby(full: &str) -> (tempfile::TempDir, Vault) {
    let (dir, vault) = new_vault();
    receive(&vault, "vault/d@s0", &golden(full)).expect("full");
    receive(&vault, "vault/d@s1", &golden("zvol-incr")).expect("step");
    (dir, vault)
}

fn activate(vault: &Vault) -> PathBuf {
    vault.activate(&name("vault/d")).expect("activates").expect("a path")
}

fn sum(path: &Path) -> String {
    sha256(&std::fs::read(path).expect("the image"))
}

fn golden_sum() -> String {
    let listed = tree("vol@s2.sha256");
    listed.split_whitespace().next().expect("a sum").to_owned()
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).expect("opens");
    file.write_all_at(bytes, offset).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn the_image_of_a_volume_has_every_byte_and_takes_no_room_for_what_is_empty() {
    for full in ["zvol-full", "zvol-full-c"] {
        let (_dir, vault) = standby(full);
        assert!(vault.capabilities().live_kinds.contains(&DatasetKind::Zvol));
        assert_eq!(vault.dataset(&name("vault/d")).expect("info").mounted_at, None);
        vault.rehearse(&name("vault/d")).expect("rehearsed");
        assert_eq!(vault.dataset(&name("vault/d")).expect("info").mounted_at, None);
        let path = activate(&vault);
        assert_eq!(path, vault.live_path(&name("vault/d")));
        let info = vault.dataset(&name("vault/d")).expect("info");
        assert_eq!((info.mounted_at.as_ref(), info.writable), (Some(&path), true));
        let meta = std::fs::metadata(&path).expect("the image");
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 8 << 20, "{} bytes of disk", meta.blocks() * 512);
        assert_eq!(sum(&path), golden_sum());
        // Again, it is there already.
        write_at(&path, 5 << 20, b"kept");
        assert_eq!(activate(&vault), path);
        let mut kept = [0; 4];
        std::fs::File::open(&path).expect("opens").read_exact_at(&mut kept, 5 << 20).expect("read");
        assert_eq!(&kept, b"kept");
    }
}

#[test]
fn an_image_that_nobody_wrote_is_the_snapshot_it_came_from_however_that_was_packed() {
    for full in ["zvol-full", "zvol-full-c"] {
        let (_dir, vault) = standby(full);
        let path = activate(&vault);
        assert_eq!(vault.changed_since(&snap("vault/d@s1")).expect("known"), Change::Unchanged);
        // Touched, so that it has to be read again.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("opens")
            .set_modified(std::time::UNIX_EPOCH)
            .expect("touched");
        assert_ne!(vault.changed_since(&snap("vault/d@s1")).expect("known"), Change::Unchanged);
        vault.fence(&name("vault/d")).expect("fenced");
        assert!(!path.exists());
        vault.verify_unwritten(&snap("vault/d@s1")).expect("unwritten");
        take(&vault, "vault/d@s2");
        assert_eq!(set(&vault, "vault/d@s2"), set(&vault, "vault/d@s1"));
    }
}

#[test]
fn what_is_written_to_an_image_is_snapshotted_and_handed_back_as_a_step() {
    for full in ["zvol-full", "zvol-full-c"] {
        let (_dir, vault) = standby(full);
        let path = activate(&vault);
        write_at(&path, 33 << 20, &[7; 40_000]);
        write_at(&path, 0, &[0; 32 << 10]); // zeroes over what was there
        let running = SnapshotSpec { quiesced: false, ..snapshot_spec("vault/d@torn") };
        let refused = vault.snapshot(&running);
        assert!(matches!(refused, Err(StoreError::Busy { .. })), "{refused:?}");
        take(&vault, "vault/d@s2");
        write_at(&path, 34 << 20, &[8; 100]);
        let now = sum(&path);
        assert!(matches!(
            vault.changed_since(&snap("vault/d@s2")).expect("known"),
            Change::Changed { .. }
        ));
        let held = std::fs::File::open(&path).expect("opens");
        drop(held);
        vault.fence(&name("vault/d")).expect("fenced");
        match vault.verify_unwritten(&snap("vault/d@s2")) {
            Err(StoreError::Modified { detail, .. }) => {
                assert!(detail.contains("1 blocks of the image"), "{detail}")
            }
            other => panic!("{other:?}"),
        }
        take(&vault, "vault/d@s3");
        vault.verify_unwritten(&snap("vault/d@s3")).expect("unwritten");
        vault.verify().expect("sound");
        // The peer that has @s1 gets the steps, and has the same image.
        let (_dir, peer) = standby(full);
        let (first, second) = (
            send(&vault, Some("vault/d@s1"), "vault/d@s2"),
            send(&vault, Some("vault/d@s2"), "vault/d@s3"),
        );
        assert!(first.len() < 200_000 && second.len() < 40_000);
        receive(&peer, "vault/d@s2", &first).expect("step");
        receive(&peer, "vault/d@s3", &second).expect("step");
        assert_eq!(sum(&activate(&peer)), now);
    }
}

#[test]
fn a_fenced_image_takes_steps_again_and_is_brought_up_by_what_differs() {
    let (_dir, vault) = standby("zvol-full-c");
    let (_dir, peer) = standby("zvol-full-c");
    let path = activate(&vault);
    write_at(&path, 1 << 20, &[9; 50_000]);
    vault.fence(&name("vault/d")).expect("fenced");
    take(&vault, "vault/d@s2");
    receive(&peer, "vault/d@s2", &send(&vault, Some("vault/d@s1"), "vault/d@s2")).expect("step");
    let theirs = activate(&peer);
    write_at(&theirs, 2 << 20, &[1; 9]);
    let now = sum(&theirs);
    peer.fence(&name("vault/d")).expect("fenced");
    take(&peer, "vault/d@s3");
    // Back again, into a vault whose image rests at @s2.
    receive(&vault, "vault/d@s3", &send(&peer, Some("vault/d@s2"), "vault/d@s3")).expect("step");
    assert_eq!(sum(&activate(&vault)), now);
    // One that is open and was written takes none.
    write_at(&path, 0, &[3; 3]);
    take(&peer, "vault/d@s4");
    let step = send(&peer, Some("vault/d@s3"), "vault/d@s4");
    let refused = receive(&vault, "vault/d@s4", &step);
    assert!(matches!(refused, Err(StoreError::Modified { .. })), "{refused:?}");
    vault.fence(&name("vault/d")).expect("fenced");
    vault.rollback(&snap("vault/d@s3")).expect("rolled back");
    receive(&vault, "vault/d@s4", &step).expect("now it goes");
    assert_eq!(sum(&activate(&vault)), now);
}

#[test]
fn whoever_holds_an_image_keeps_it_from_being_fenced() {
    let (_dir, vault) = standby("zvol-full");
    let path = activate(&vault);
    let mut holder = std::process::Command::new("sleep")
        .arg("60")
        .stdin(std::fs::File::open(&path).expect("opens"))
        .spawn()
        .expect("a holder");
    let refused = vault.fence(&name("vault/d"));
    holder.kill().expect("killed");
    holder.wait().expect("gone");
    match refused {
        Err(StoreError::Busy { holders, .. }) => assert_eq!(holders[0].pid, holder.id()),
        other => panic!("{other:?}"),
    }
    assert!(path.exists());
    vault.fence(&name("vault/d")).expect("fenced");
}

#[test]
fn a_copy_of_a_volume_has_an_image_of_its_own_and_an_image_of_another_size_is_refused() {
    let (_dir, vault) = standby("zvol-full");
    let copy = vault
        .clone_snapshot(&snap("vault/d@s1"), &name("vault/c"), CloneAccess::Writable)
        .expect("cloned");
    let copy = copy.expect("a path");
    assert_eq!(sum(&copy), golden_sum());
    write_at(&copy, 0, b"mine");
    assert_eq!(sum(&activate(&vault)), golden_sum());
    vault.remove_clone(&name("vault/c")).expect("removed");
    assert!(!copy.exists());
    let path = activate(&vault);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(65 << 20))
        .expect("grown");
    let refused = vault.snapshot(&snapshot_spec("vault/d@s2"));
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
}

#[test]
fn a_crash_while_an_image_is_made_written_and_fenced_loses_nothing() {
    let (dir, vault) = standby("zvol-full-c");
    let path = std::fs::canonicalize(dir.path().join("v")).expect("the vault");
    let copies: Arc<Mutex<Vec<String>>> = Arc::default();
    let (points, to) = (copies.clone(), dir.path().to_owned());
    fault::arm(&path, move |point, path| {
        let mut points = points.lock().expect("points");
        copy_vault(path, &to.join(points.len().to_string()));
        points.push(point.to_owned());
        false
    });
    let image = activate(&vault);
    write_at(&image, 9 << 20, b"written");
    let written = sum(&image);
    vault.fence(&name("vault/d")).expect("fenced");
    take(&vault, "vault/d@s2");
    vault.activate(&name("vault/d")).expect("activated");
    fault::disarm(&path);
    let points = copies.lock().expect("points").clone();
    let fenced = points.iter().position(|p| p == "fence-renamed").expect("fenced");
    for (at, point) in points.iter().enumerate() {
        let copy = Vault::open(dir.path().join(at.to_string())).expect("opens");
        let expected = if at < fenced { golden_sum() } else { written.clone() };
        assert_eq!(sum(&activate(&copy)), expected, "after {point} ({at})");
        copy.fence(&name("vault/d")).expect("fenced");
        take(&copy, "vault/d@after");
        copy.verify_unwritten(&snap("vault/d@after")).expect("unwritten");
        copy.verify().expect("sound");
    }
    for point in ["checkout", "checkout-synced", "activate-rename", "fence-renamed"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

#[test]
fn nothing_is_received_below_a_volume() {
    let (_dir, vault) = standby("zvol-full");
    activate(&vault);
    let refused = receive(&vault, "vault/d/below@s", &golden("full-c"));
    assert!(matches!(refused, Err(StoreError::NotCapable { .. })), "{refused:?}");
}

#[test]
fn a_sealed_volume_does_not_become_live_and_says_why() {
    // The corpus has none: a sealed filesystem that says that it is a volume.
    let mut items = Vec::new();
    let (stream, mut reader) = (golden("raw-full"), zfs_stream::Reader::new());
    let mut rest = &stream[..];
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        items.push((item.record.clone(), item.payload().to_vec()));
    }
    if let Record::Begin(begin) = &mut items[0].0 {
        begin.objset_type = objset::ZVOL;
    }
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s", &written(&items)).expect("received");
    for outcome in [
        vault.activate(&name("vault/d")).map(drop),
        vault.rehearse(&name("vault/d")),
        vault.prepare(&name("vault/d")),
    ] {
        match outcome {
            Err(error @ StoreError::NotCapable { .. }) => {
                assert!(error.to_string().contains("sealed"), "{error}")
            }
            other => panic!("{other:?}"),
        }
    }
    // A filesystem of ZFS has no path here in any case.
    receive(&vault, "vault/e@s", &stream).expect("received");
    assert_eq!(vault.activate(&name("vault/e")).expect("at rest"), None);
}
