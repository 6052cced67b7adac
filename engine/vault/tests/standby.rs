//! A vault as a standby of real ZFS: every single stream of the corpus is applied, and what is sent back says
//! the same.

mod common;

use common::*;
use flocker_store::{Guid, SendSpec, Store, StoreError};
use flocker_vault::Vault;
use zfs_stream::format::begin_flag;
use zfs_stream::nvlist::{NvList, Value};
use zfs_stream::record::{Record, Write};
use zfs_stream::{Features, Kind, Reader};

/// The hash of a snapshot's whole object set.
fn set(vault: &Vault, snapshot: &str) -> String {
    vault.objects(&snap(snapshot)).expect("objects").0
}

fn raw_spec(from: Option<&str>, to: &str) -> SendSpec {
    SendSpec { raw: true, ..send_spec(from, to) }
}

fn send_raw(vault: &Vault, from: Option<&str>, to: &str) -> Vec<u8> {
    send_with(vault, &raw_spec(from, to)).unwrap_or_else(|e| panic!("sending {to}: {e}"))
}

/// Records with their payloads.
type Items = Vec<(Record, Vec<u8>)>;

/// The records of a stream with their payloads, but for what only ZFS has: dedup keys, and holes that it names
/// again because they were born since.
fn records(stream: &[u8]) -> Items {
    let (mut reader, mut rest, mut found) = (Reader::new(), stream, Vec::new());
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        let record = match item.record.clone() {
            Record::Write(w) => {
                Record::Write(Write { key: Default::default(), checksum_type: 0, ..w })
            }
            Record::Begin(mut begin) => {
                begin.to_name.clear();
                Record::Begin(begin)
            }
            Record::Free(f) if f.length != u64::MAX => continue,
            Record::End(_) => continue,
            other => other,
        };
        found.push((record, item.payload().to_vec()));
    }
    reader.finish().expect("whole");
    found
}

fn same_records(ours: &[u8], theirs: &[u8], what: &str) {
    let (ours, theirs) = (records(ours), records(theirs));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.0, theirs.0, "{what}");
        assert!(ours.1 == theirs.1, "{what}: the payload of {:?}", ours.0);
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

#[test]
fn embedded_blocks_become_ordinary_ones_and_are_sent_as_such() {
    for (embedded, plain) in [
        ("full-Lec", "full-c"),
        ("embedded-e", "embedded-plain"),
        ("embedded-ec", "embedded-plain"),
        ("large-dnode-Lec", "large-dnode"),
        ("full-large-Lec", "full-large-L"),
    ] {
        let ((_a, vault), (_b, other)) = (new_vault(), new_vault());
        receive(&vault, "vault/d@s", &golden(embedded)).expect(embedded);
        receive(&other, "vault/d@s", &golden(plain)).expect(plain);
        assert_eq!(file_sums(&vault, "vault/d@s"), file_sums(&other, "vault/d@s"), "{embedded}");
        let sent = send(&vault, None, "vault/d@s");
        assert!(!begin(&sent).features.contains(Features::EMBED_DATA), "{embedded}");
        let (_c, third) = new_vault();
        receive(&third, "vault/d@s", &sent).expect("ours");
        assert_eq!(set(&third, "vault/d@s"), set(&vault, "vault/d@s"), "{embedded}");
    }
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s", &golden("full-Lec")).expect("received");
    let sums = file_sums(&vault, "vault/d@s");
    assert!(listed_sums("plain@s1.tree.txt").is_subset(&sums));
}

#[test]
fn streams_of_a_replica_have_need_of_what_those_had_that_brought_it() {
    use flocker_store::StreamFeature as F;
    let (_dir, vault) = new_vault();
    let sends = |vault: &Vault| vault.stream_features(&name("vault/d")).expect("features").sends;
    assert_eq!(sends(&vault), [].into(), "there is none yet");
    for (stream, needs) in [
        ("full-plain", vec![]),
        ("full-large-Lec", vec![F::LargeBlocks, F::Lz4Compress]),
        ("comp-zstd-c", vec![F::Lz4Compress, F::ZstdCompress]),
        ("large-dnode", vec![F::LargeDnode]),
        ("raw-full", vec![F::Encryption]),
        ("fuse-full-s1", vec![]),
    ] {
        let (_dir, vault) = new_vault();
        receive(&vault, "vault/d@s", &golden(stream)).expect(stream);
        let found = sends(&vault);
        assert!(needs.iter().all(|need| found.contains(need)), "{stream}: {found:?}");
        let raw = stream == "raw-full";
        let spec = SendSpec { raw, ..send_spec(None, "vault/d@s") };
        let sent = begin(&send_with(&vault, &spec).expect(stream)).features;
        assert_eq!(found, F::of_flags(sent.0), "{stream}");
    }
    let all = vault.stream_features(&name("vault/d")).expect("features").receives;
    assert_eq!(all, F::ALL.into());
}

#[test]
fn a_spill_block_that_zfs_sends_as_embedded_data_beyond_every_file_is_put_where_it_belongs() {
    let spills = |stream: &str| -> Items {
        let (_dir, vault) = new_vault();
        receive(&vault, "vault/d@s", &golden(stream)).expect(stream);
        let sent = records(&send(&vault, None, "vault/d@s"));
        sent.into_iter().filter(|(record, _)| record.kind() == Kind::Spill).collect()
    };
    let repaired = spills("large-dnode-Lec");
    assert_eq!(repaired.len(), 28);
    assert!(repaired == spills("large-dnode"));
}

#[test]
fn steps_with_and_without_embedded_blocks_follow_each_other() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("full-Lec")).expect("full");
    receive(&vault, "vault/d@1", &golden("incr-c")).expect("step");
    assert!(listed_sums("plain@s2.tree.txt").is_subset(&file_sums(&vault, "vault/d@1")));
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("full-large-Lec")).expect("full");
    receive(&vault, "vault/d@1", &golden("incr-large-Lec")).expect("step");
    assert!(listed_sums("large@s2.tree.txt").is_subset(&file_sums(&vault, "vault/d@1")));
    let (_dir, other) = new_vault();
    receive(&other, "vault/d@0", &send(&vault, None, "vault/d@0")).expect("ours");
    receive(&other, "vault/d@1", &send(&vault, Some("vault/d@0"), "vault/d@1")).expect("ours");
    assert_eq!(set(&other, "vault/d@1"), set(&vault, "vault/d@1"));
}

#[test]
fn a_sealed_dataset_is_sent_back_as_it_came() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("raw-full")).expect("full");
    receive(&vault, "vault/d@1", &golden("raw-incr")).expect("step");
    vault.verify().expect("every block is sound");
    same_records(&send_raw(&vault, None, "vault/d@0"), &golden("raw-full"), "full");
    let step = send_raw(&vault, Some("vault/d@0"), "vault/d@1");
    same_records(&step, &golden("raw-incr"), "step");
    // And on, to another vault.
    let (_dir, other) = new_vault();
    receive(&other, "vault/d@0", &send_raw(&vault, None, "vault/d@0")).expect("ours");
    receive(&other, "vault/d@1", &step).expect("ours");
    let (_dir, third) = new_vault();
    receive(&third, "vault/d@1", &send_raw(&vault, None, "vault/d@1")).expect("ours");
    for vault in [&other, &third] {
        assert_eq!(set(vault, "vault/d@1"), set(&other, "vault/d@1"));
        assert!(vault.dataset(&name("vault/d")).expect("dataset").encrypted);
    }
    assert_eq!(set(&other, "vault/d@1"), set(&vault, "vault/d@1"));
}

fn ivsets(stream: &[u8]) -> (u64, u64) {
    let (mut reader, mut rest) = (Reader::new(), stream);
    let item = reader.next(&mut rest).expect("sound").expect("BEGIN");
    let list = NvList::unpack(item.payload()).expect("a list");
    let Some(Value::List(keys)) = list.get("crypt_keydata") else {
        panic!("no key data");
    };
    (keys.u64("from_ivset_guid").expect("from"), keys.u64("to_ivset_guid").expect("to"))
}

#[test]
fn the_iv_set_of_the_base_is_named_by_every_raw_step_and_by_no_full_one() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("raw-full")).expect("full");
    receive(&vault, "vault/d@1", &golden("raw-incr")).expect("step");
    let (first, second) = (ivsets(&golden("raw-full")).1, ivsets(&golden("raw-incr")).1);
    assert_eq!(ivsets(&send_raw(&vault, None, "vault/d@0")), (0, first));
    assert_eq!(ivsets(&send_raw(&vault, None, "vault/d@1")), (0, second));
    let step = send_raw(&vault, Some("vault/d@0"), "vault/d@1");
    assert_eq!(ivsets(&step), (first, second));
}

#[test]
fn what_is_sealed_is_not_sent_open_and_does_not_mix_with_what_is_not() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("raw-full")).expect("full");
    let refused = send_with(&vault, &send_spec(None, "vault/d@0"));
    assert!(matches!(refused, Err(StoreError::NotCapable { .. })), "{refused:?}");
    let refused = vault.estimate(&send_spec(None, "vault/d@0"));
    assert!(matches!(refused, Err(StoreError::NotCapable { .. })), "{refused:?}");
    assert!(vault.estimate(&raw_spec(None, "vault/d@0")).expect("estimate") > Some(600_000));
    // The same snapshots, sent without -w the first time.
    receive(&vault, "vault/e@0", &golden("enc-decrypted-full")).expect("full");
    assert!(!vault.dataset(&name("vault/e")).expect("dataset").encrypted);
    match receive(&vault, "vault/e@1", &golden("raw-incr")) {
        Err(StoreError::Unsupported { feature, .. }) => {
            assert!(feature.contains("pinned per replica for life"), "{feature}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vault.inventory(&name("vault/e")).expect("inventory").snapshots.len(), 1);
}

#[test]
fn a_raw_send_of_what_is_not_encrypted_is_one_of_blocks_as_they_are_stored() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("full-c")).expect("full");
    let sent = send_raw(&vault, None, "vault/d@0");
    assert!(!begin(&sent).features.contains(Features::RAW));
    assert!(begin(&sent).features.contains(Features::COMPRESSED));
}

#[test]
fn a_raw_stream_that_says_what_cannot_be_is_refused() {
    let good = golden("raw-incr");
    let mut items = Vec::new();
    let (mut reader, mut rest) = (Reader::new(), &good[..]);
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        items.push((item.record.clone(), item.payload().to_vec()));
    }
    let refuse = |what: &str, change: &dyn Fn(&mut Items)| {
        let (_dir, vault) = new_vault();
        receive(&vault, "vault/d@0", &golden("raw-full")).expect("full");
        let mut items = items.clone();
        change(&mut items);
        let refused = receive(&vault, "vault/d@1", &written(&items));
        assert!(matches!(refused, Err(StoreError::BadStream { .. })), "{what}: {refused:?}");
        assert_eq!(vault.inventory(&name("vault/d")).expect("inventory").snapshots.len(), 1);
    };
    refuse("without its ranges", &|items| {
        items.retain(|(record, _)| record.kind() != Kind::ObjectRange);
    });
    refuse("half a block", &|items| {
        for (record, payload) in items.iter_mut() {
            if let Record::Write(w) = record {
                w.logical_size = 512.max(w.logical_size / 2);
                w.compressed_size = 512;
                payload.truncate(512);
            }
        }
    });
    refuse("on another base", &|items| {
        let list = NvList::unpack(&items[0].1).expect("a list");
        let Some(Value::List(keys)) = list.get("crypt_keydata") else { panic!() };
        let mut changed = NvList::new();
        for (name, value) in keys.iter() {
            let other = name == "from_ivset_guid";
            changed.push(name, if other { Value::U64(7) } else { value.clone() });
        }
        let mut outer = NvList::new();
        outer.push("crypt_keydata", Value::List(changed));
        items[0].1 = outer.pack();
    });
    refuse("without its key", &|items| {
        let Record::Begin(begin) = &mut items[0].0 else { panic!() };
        begin.payload_len = 0;
        items[0].1.clear();
    });
}

#[test]
fn a_clone_is_a_dataset_of_its_own_and_is_sent_back_from_its_origin() {
    let (_dir, vault) = new_vault();
    let missing = receive(&vault, "vault/clone@c1", &golden("incr-clone-origin"));
    assert!(matches!(missing, Err(StoreError::NoDataset { .. })), "{missing:?}");
    receive(&vault, "vault/d@s1", &golden("full-plain")).expect("the origin");
    receive(&vault, "vault/d@s2", &golden("incr-plain")).expect("a later snapshot");
    receive(&vault, "vault/clone@c1", &golden("incr-clone-origin")).expect("the clone");
    let step = send(&vault, Some("vault/d@s1"), "vault/clone@c1");
    let ours = begin(&step);
    assert_eq!(ours.from_guid, begin(&golden("full-plain")).to_guid);
    assert!(ours.flags & begin_flag::CLONE != 0);
    // An increment from anything that it does not come from is none.
    let refused = send_with(&vault, &send_spec(Some("vault/d@s2"), "vault/clone@c1"));
    assert!(matches!(refused, Err(StoreError::NotCapable { .. })), "{refused:?}");
    let (_dir, other) = new_vault();
    receive(&other, "vault/x@s1", &send(&vault, None, "vault/d@s1")).expect("the origin");
    receive(&other, "vault/y@c1", &step).expect("the clone");
    let (_dir, third) = new_vault();
    receive(&third, "vault/y@c1", &send(&vault, None, "vault/clone@c1")).expect("in full");
    for vault in [&other, &third] {
        assert_eq!(set(vault, "vault/y@c1"), set(&third, "vault/y@c1"));
    }
    assert_eq!(set(&third, "vault/y@c1"), set(&vault, "vault/clone@c1"));
    // Its own row keeps its blocks.
    vault.destroy_dataset(&name("vault/d")).expect("destroyed");
    vault.gc().expect("collected");
    vault.verify().expect("sound");
    assert_eq!(set(&vault, "vault/clone@c1"), set(&third, "vault/y@c1"));
}

/// A stream as if its snapshot had another guid.
fn with_guid(stream: &[u8], guid: u64) -> Vec<u8> {
    let (mut reader, mut rest, mut items) = (Reader::new(), stream, Items::new());
    while let Some(item) = reader.next(&mut rest).expect("sound") {
        let mut record = item.record.clone();
        match &mut record {
            Record::Begin(r) => r.to_guid = guid,
            Record::Object(r) => r.to_guid = guid,
            Record::FreeObjects(r) => r.to_guid = guid,
            Record::Write(r) => r.to_guid = guid,
            Record::Free(r) => r.to_guid = guid,
            Record::End(r) => r.to_guid = guid,
            Record::Spill(r) => r.to_guid = guid,
            Record::WriteEmbedded(r) => r.to_guid = guid,
            other => panic!("{other:?}"),
        }
        items.push((record, item.payload().to_vec()));
    }
    written(&items)
}

#[test]
fn a_step_that_changes_nothing_and_one_from_a_bookmark_are_steps_like_others() {
    let (_dir, vault) = new_vault();
    // The base of the empty step is not in the corpus; nothing is said about its content.
    let empty = golden("incr-empty");
    let base = with_guid(&golden("full-plain"), begin(&empty).from_guid);
    receive(&vault, "vault/d@5", &base).expect("a base");
    receive(&vault, "vault/d@6", &empty).expect("the empty step");
    assert_eq!(set(&vault, "vault/d@5"), set(&vault, "vault/d@6"));
    same_records(&send(&vault, Some("vault/d@5"), "vault/d@6"), &empty, "empty");
    receive(&vault, "vault/e@1", &golden("full-plain")).expect("full");
    receive(&vault, "vault/e@2", &golden("incr-from-bookmark")).expect("from the bookmark");
    let sums = file_sums(&vault, "vault/e@2");
    assert!(listed_sums("plain@s2.tree.txt").is_subset(&sums));
}

#[test]
fn a_stream_for_a_clone_does_not_go_into_a_dataset_that_is_there_nor_an_increment_into_none() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s1", &golden("full-plain")).expect("the origin");
    let refused = receive(&vault, "vault/d@c1", &golden("incr-clone-origin"));
    assert!(matches!(refused, Err(StoreError::Exists { .. })), "{refused:?}");
    let refused = receive(&vault, "vault/e@s2", &golden("incr-plain"));
    assert!(matches!(refused, Err(StoreError::NoDataset { .. })), "{refused:?}");
    assert_eq!(vault.datasets().expect("datasets").len(), 2);
}

#[test]
fn every_single_stream_of_the_corpus_is_applied_or_refused_by_name() {
    let single = |stream: &str| {
        !(stream.starts_with("repl-")
            || stream.contains("-package-")
            || stream == "full-p"
            || stream == "incr-multi-I")
    };
    let mut applied = 0;
    for stream in golden_names().iter().filter(|stream| single(stream)) {
        let bytes = golden(stream);
        if stream.as_str() == "resume-part1-truncated" || begin(&bytes).from_guid != 0 {
            continue; // in tests of their own
        }
        if begin(&bytes).features.contains(Features::RESUMING) {
            continue;
        }
        let (_dir, vault) = new_vault();
        match receive(&vault, "vault/d@s", &bytes) {
            Ok(got) => {
                assert_eq!(got.guid, Guid(begin(&bytes).to_guid));
                vault.verify().expect("sound");
                applied += 1;
            }
            Err(StoreError::Unsupported { feature, .. }) => {
                assert!(stream.starts_with("redacted"), "{stream}: {feature}");
                assert!(feature.contains("could not take over"), "{feature}");
            }
            Err(other) => panic!("{stream}: {other}"),
        }
    }
    assert!(applied >= 20, "{applied}");
    let (_dir, vault) = new_vault();
    let spec = spec_for(&golden("redacted-incr-from-bookmark"), "vault/d@s");
    assert!(receive_spec(&vault, &spec, &golden("redacted-incr-from-bookmark")).is_err());
}
