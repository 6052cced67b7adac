//! Streams that real ZFS made, received, looked into, sent on and received again.

mod common;

use common::*;
use flocker_store::{DatasetKind, Guid, Store, StoreError};
use flocker_vault::Vault;
use zfs_stream::Features;

/// The hash of a snapshot's whole object set.
fn set(vault: &Vault, snapshot: &str) -> String {
    vault.objects(&snap(snapshot)).expect("objects").0
}

/// Receives a chain of streams as `vault/d@s0`, `@s1`, ...
fn receive_chain(vault: &Vault, streams: &[Vec<u8>]) {
    for (at, stream) in streams.iter().enumerate() {
        let to = format!("vault/d@s{at}");
        let got = receive(vault, &to, stream).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(got.guid, Guid(begin(stream).to_guid));
    }
}

/// Sends every step that a chain allows to new vaults, and compares the object sets there.
fn check_resends(vault: &Vault, snapshots: usize) {
    for to in 0..snapshots {
        let (_dir, full) = new_vault();
        let name = format!("vault/d@s{to}");
        receive(&full, &name, &send(vault, None, &name)).expect("a full stream of ours");
        assert_eq!(set(&full, &name), set(vault, &name), "full {name}");
        for later in to + 1..snapshots {
            let (_dir, other) = new_vault();
            receive(&other, &name, &send(vault, None, &name)).expect("full");
            let target = format!("vault/d@s{later}");
            let step = send(vault, Some(&name), &target);
            receive(&other, &target, &step).unwrap_or_else(|e| panic!("{name} to {target}: {e}"));
            assert_eq!(set(&other, &target), set(vault, &target), "{name} to {target}");
        }
    }
    vault.verify().expect("every block is sound");
}

fn check_chain(streams: &[&str], listings: &[Option<&str>]) {
    let streams: Vec<Vec<u8>> = streams
        .iter()
        .flat_map(|name| {
            let stream = golden(name);
            match name.contains("multi") {
                true => substreams(&stream),
                false => vec![stream],
            }
        })
        .collect();
    let (_dir, vault) = new_vault();
    receive_chain(&vault, &streams);
    for (at, listing) in listings.iter().enumerate() {
        if let Some(listing) = listing {
            let (sums, listed) =
                (file_sums(&vault, &format!("vault/d@s{at}")), listed_sums(listing));
            assert!(listed.len() > 1, "{listing}");
            assert!(
                listed.is_subset(&sums),
                "{listing}: missing {:?}",
                listed.difference(&sums).collect::<Vec<_>>()
            );
        }
    }
    check_resends(&vault, streams.len());
}

#[test]
fn a_plain_filesystem_over_four_snapshots_holds_the_files_that_were_sent() {
    check_chain(
        &["full-plain", "incr-multi-I"],
        &[
            Some("plain@s1.tree.txt"),
            Some("plain@s2.tree.txt"),
            Some("plain@s3.tree.txt"),
            Some("plain@s4.tree.txt"),
        ],
    );
}

#[test]
fn a_compressed_chain_holds_the_same_files() {
    check_chain(&["full-c", "incr-c"], &[Some("plain@s1.tree.txt"), Some("plain@s2.tree.txt")]);
}

#[test]
fn plain_and_compressed_steps_may_follow_each_other() {
    check_chain(&["full-c", "incr-plain"], &[None, Some("plain@s2.tree.txt")]);
    check_chain(&["full-plain", "incr-c"], &[None, Some("plain@s2.tree.txt")]);
}

#[test]
fn reused_object_numbers_holes_and_truncations_are_applied() {
    let listings = [Some("holes@s1.tree.txt"), Some("holes@s2.tree.txt")];
    check_chain(&["holes-full", "holes-incr"], &listings);
    check_chain(&["holes-full", "holes-incr-c"], &listings);
}

#[test]
fn wide_dnodes_and_spill_blocks_survive() {
    check_chain(&["large-dnode"], &[None]);
}

#[test]
fn large_blocks_hold_the_files_that_were_sent() {
    check_chain(&["full-large-L"], &[Some("large@s1.tree.txt")]);
}

#[test]
fn every_compression_is_taken_apart() {
    for stream in ["comp-off-c", "comp-gzip-c", "comp-zstd-c", "comp-zle-c"] {
        check_chain(&[stream], &[None]);
    }
    // The same files in each: what comes out has to agree.
    let sums = |stream: &str| {
        let (_dir, vault) = new_vault();
        receive(&vault, "vault/d@s", &golden(stream)).expect("received");
        file_sums(&vault, "vault/d@s")
    };
    let plain = sums("comp-off-c");
    assert!(plain.len() > 1);
    for stream in ["comp-gzip-c", "comp-zstd-c", "comp-zle-c"] {
        assert_eq!(sums(stream), plain, "{stream}");
    }
}

#[test]
fn other_streams_that_can_be_applied_are_sent_on_unchanged_in_meaning() {
    for stream in ["enc-decrypted-full", "embedded-plain"] {
        check_chain(&[stream], &[None]);
    }
}

#[test]
fn streams_of_zfs_fuse_hold_their_files_and_keep_their_dialect() {
    check_chain(
        &["fuse-full-s1", "fuse-incr-s1-s2", "fuse-incr-s2-s3"],
        &[Some("fuse@s1.tree.txt"), Some("fuse@s2.tree.txt"), Some("fuse@s3.tree.txt")],
    );
    // What zfs-fuse sends as one step is what we have after two.
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s0", &golden("fuse-full-s1")).expect("full");
    receive(&vault, "vault/d@s2", &golden("fuse-incr-s1-s3")).expect("s1 to s3");
    let listed = listed_sums("fuse@s3.tree.txt");
    assert!(listed.is_subset(&file_sums(&vault, "vault/d@s2")));
    let sent = send(&vault, None, "vault/d@s2");
    let (mut reader, mut rest) = (zfs_stream::Reader::new(), &sent[..]);
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        assert!(!item.sealed, "zfs-fuse does not seal its records");
    }
}

#[test]
fn a_volume_has_every_byte_after_an_increment() {
    for full in ["zvol-full", "zvol-full-c"] {
        let (_dir, vault) = new_vault();
        receive_chain(&vault, &[golden(full), golden("zvol-incr")]);
        let info = vault.dataset(&name("vault/d")).expect("the dataset");
        assert_eq!(info.kind, DatasetKind::Zvol);
        let (mut bytes, _) =
            vault.read_object(&snap("vault/d@s1"), 1).expect("read").expect("the volume's object");
        bytes.resize(64 << 20, 0);
        let expected = tree("vol@s2.sha256");
        assert_eq!(Some(&sha256(&bytes)[..]), expected.split_whitespace().next());
        check_resends(&vault, 2);
    }
}

#[test]
fn blocks_are_sent_compressed_as_they_came_or_plain() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s", &golden("full-c")).expect("received");
    let mut spec = send_spec(None, "vault/d@s");
    let packed = send_with(&vault, &spec).expect("sent");
    let estimate = vault.estimate(&spec).expect("estimate").expect("a number");
    assert_eq!(estimate, packed.len() as u64);
    spec.compressed = false;
    let plain = send_with(&vault, &spec).expect("sent");
    assert!(packed.len() * 2 < plain.len());
    assert!(begin(&packed).features.contains(Features::COMPRESSED | Features::LZ4));
    assert_eq!(begin(&plain).features, begin(&golden("full-plain")).features);
    let (_dir, other) = new_vault();
    receive(&other, "vault/d@s", &plain).expect("received again");
    let sums = file_sums(&other, "vault/d@s");
    assert!(listed_sums("plain@s1.tree.txt").is_subset(&sums));
}

#[test]
fn large_blocks_are_split_for_a_receiver_without_them() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s", &golden("full-large-L")).expect("received");
    let mut spec = send_spec(None, "vault/d@s");
    spec.large_blocks = false;
    let split = send_with(&vault, &spec).expect("sent");
    assert!(!begin(&split).features.contains(Features::LARGE_BLOCKS));
    let (_dir, other) = new_vault();
    receive(&other, "vault/d@s", &split).expect("received again");
    assert_eq!(file_sums(&other, "vault/d@s"), file_sums(&vault, "vault/d@s"));
}

#[test]
fn what_cannot_be_applied_is_refused_by_its_name_and_nothing_is_left() {
    for (stream, feature) in
        [("redacted", "redacted"), ("full-p", "package"), ("repl-R", "package")]
    {
        let (_dir, vault) = new_vault();
        let stream_bytes = golden(stream);
        let mut spec = spec_for(&stream_bytes, "vault/d@s");
        if begin(&stream_bytes).to_guid == 0 {
            spec.to_guid = Guid(7);
        }
        match receive_spec(&vault, &spec, &stream_bytes) {
            Err(StoreError::Unsupported { feature: named, .. }) => {
                assert!(named.contains(feature), "{stream}: {named}");
            }
            other => panic!("{stream}: {other:?}"),
        }
        assert_eq!(vault.datasets().expect("datasets").len(), 1, "{stream}");
    }
}

#[test]
fn a_stream_other_than_the_announced_one_is_refused() {
    let (_dir, vault) = new_vault();
    let stream = golden("full-plain");
    let mut spec = spec_for(&stream, "vault/d@s");
    spec.to_guid = Guid(4711);
    let refused = receive_spec(&vault, &spec, &stream);
    assert!(matches!(refused, Err(StoreError::BadStream { .. })), "{refused:?}");
    let mut spec = spec_for(&golden("incr-plain"), "vault/d@s");
    spec.from_guid = None;
    let refused = receive_spec(&vault, &spec, &golden("incr-plain"));
    assert!(matches!(refused, Err(StoreError::BadStream { .. })), "{refused:?}");
    assert_eq!(vault.datasets().expect("datasets").len(), 1);
}

#[test]
fn an_increment_needs_its_base_as_the_newest_snapshot() {
    let (_dir, vault) = new_vault();
    let incr = golden("incr-plain");
    let missing = receive(&vault, "vault/d@s1", &incr);
    assert!(matches!(missing, Err(StoreError::NoDataset { .. })), "{missing:?}");
    receive(&vault, "vault/d@s0", &golden("full-large-L")).expect("another full");
    let missing = receive(&vault, "vault/d@s1", &incr);
    assert!(matches!(missing, Err(StoreError::NoBase { .. })), "{missing:?}");
    receive(&vault, "vault/e@s0", &golden("full-plain")).expect("full");
    take(&vault, "vault/e@mine");
    let newer = receive(&vault, "vault/e@s1", &incr);
    assert!(matches!(newer, Err(StoreError::Modified { .. })), "{newer:?}");
    let again = receive(&vault, "vault/e@s0", &golden("full-plain"));
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
}

#[test]
fn damage_anywhere_leaves_the_last_good_snapshot() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s0", &golden("holes-full")).expect("full");
    let before = set(&vault, "vault/d@s0");
    let good = golden("holes-incr");
    let spec = spec_for(&good, "vault/d@s1");
    for step in 0..60 {
        let at = 400 + step * (good.len() - 400) / 60;
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        let refused = receive_spec(&vault, &spec, &bad);
        match refused {
            Err(StoreError::BadStream { detail, .. }) => {
                assert!(detail.contains("record"), "{detail}")
            }
            Err(StoreError::Unsupported { .. }) => {}
            other => panic!("byte {at}: {other:?}"),
        }
        let cut = receive_spec(&vault, &spec, &good[..at]);
        assert!(matches!(cut, Err(StoreError::BadStream { .. })), "{at}: {cut:?}");
        let inventory = vault.inventory(&name("vault/d")).expect("inventory");
        assert_eq!(inventory.snapshots.len(), 1);
    }
    assert_eq!(set(&vault, "vault/d@s0"), before);
    receive(&vault, "vault/d@s1", &good).expect("the good one still goes");
    vault.verify().expect("sound");
}

#[test]
fn a_damaged_pack_is_named_and_nothing_is_guessed() {
    let (dir, vault) = new_vault();
    receive(&vault, "vault/d@s0", &golden("full-plain")).expect("full");
    drop(vault);
    let pack = std::fs::read_dir(dir.path().join("v/packs"))
        .expect("packs")
        .flatten()
        .map(|e| e.path())
        .next()
        .expect("a pack");
    let mut bytes = std::fs::read(&pack).expect("the pack");
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 64] {
        *byte ^= 0xFF;
    }
    std::fs::write(&pack, bytes).expect("written");
    let vault = Vault::open(dir.path().join("v")).expect("opens");
    match vault.verify() {
        Err(StoreError::Corrupt { path, .. }) => {
            assert_eq!(path.file_name(), pack.file_name(), "{} is not named", pack.display())
        }
        other => panic!("{other:?}"),
    }
}

/// The records of a stream that say what is in it, in their order: without what differs by birth (which holes
/// are named again) and without checksums that only ZFS has.
fn said(stream: &[u8]) -> Vec<String> {
    use zfs_stream::record::{Record, Write};
    let (mut reader, mut rest, mut said) = (zfs_stream::Reader::new(), stream, Vec::new());
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        let payload = sha256(item.payload());
        match item.record {
            Record::Write(w) => {
                let bare = Write { key: Default::default(), checksum_type: 0, flags: 0, ..w };
                said.push(format!("{bare:?} {payload}"));
            }
            Record::Begin(b) => {
                said.push(format!("{:?} {:#x} {:#x}", b.features, b.flags, b.objset_type))
            }
            Record::Object(_) | Record::Spill(_) => {
                said.push(format!("{:?} {payload}", item.record))
            }
            Record::Free(f) if f.length == u64::MAX => said.push(format!("{f:?}")),
            _ => {}
        }
    }
    said
}

#[test]
fn a_full_stream_of_ours_says_what_the_one_of_zfs_said() {
    for stream in [
        "full-plain",
        "full-c",
        "full-large-L",
        "holes-full",
        "large-dnode",
        "zvol-full",
        "zvol-full-c",
        "comp-gzip-c",
        "comp-zstd-c",
        "embedded-plain",
        "enc-decrypted-full",
        "fuse-full-s1",
        "fuse-full-s3",
    ] {
        let (_dir, vault) = new_vault();
        let theirs = golden(stream);
        receive(&vault, "vault/d@s", &theirs).expect("received");
        let (mut ours, mut theirs) = (said(&send(&vault, None, "vault/d@s")), said(&theirs));
        if stream.starts_with("fuse") {
            // zfs-fuse sends the dnodes of a block before the blocks of the first of them.
            ours.sort();
            theirs.sort();
        }
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{stream}");
        }
        assert_eq!(ours.len(), theirs.len(), "{stream}");
    }
}

#[test]
fn a_step_of_ours_changes_no_object_that_the_one_of_zfs_did_not() {
    let chains = [
        ("full-plain", "incr-plain"),
        ("full-c", "incr-c"),
        ("holes-full", "holes-incr"),
        ("holes-full", "holes-incr-c"),
        ("zvol-full", "zvol-incr"),
        ("fuse-full-s1", "fuse-incr-s1-s3"),
    ];
    for (full, step) in chains {
        let (_dir, vault) = new_vault();
        receive(&vault, "vault/d@0", &golden(full)).expect("full");
        receive(&vault, "vault/d@1", &golden(step)).expect("step");
        let theirs = said(&golden(step));
        let ours = said(&send(&vault, Some("vault/d@0"), "vault/d@1"));
        // ZFS sends every dnode of a block that changed; we only what differs, so ours are among theirs.
        for line in ours {
            assert!(theirs.contains(&line), "{step}: {line}");
        }
    }
}
