//! Receives that are interrupted: what arrived is kept, said by a token as ZFS says it, and gone on with.

mod common;

use common::*;
use flocker_store::{Guid, Inventory, Partial, ReceiveSpec, SendSpec, Store, StoreError};
use flocker_vault::{Vault, fault};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use zfs_stream::token::ResumeToken;
use zfs_stream::{Features, Kind};

fn set(vault: &Vault, snapshot: &str) -> String {
    vault.objects(&snap(snapshot)).expect("objects").0
}

fn resumable(stream: &[u8], to: &str) -> ReceiveSpec {
    ReceiveSpec { resumable: true, ..spec_for(stream, to) }
}

fn inventory(vault: &Vault, dataset: &str) -> Inventory {
    match vault.inventory(&name(dataset)) {
        Ok(found) => found,
        Err(StoreError::NoDataset { .. }) => Inventory::default(),
        Err(e) => panic!("{dataset}: {e}"),
    }
}

fn partial(vault: &Vault, dataset: &str) -> Option<Partial> {
    inventory(vault, dataset).partial
}

/// Receives the beginning of a stream and suspends.
fn interrupt(vault: &Vault, stream: &[u8], to: &str, bytes: usize) {
    let mut incoming = vault.receive(&resumable(stream, to)).expect("begins");
    for piece in stream[..bytes].chunks(70_001) {
        incoming.write_all(piece).expect("taken");
    }
    incoming.suspend().expect("suspended");
}

/// The send that goes on from what a vault has.
fn rest(spec: &SendSpec, partial: &Partial) -> SendSpec {
    SendSpec { resume: Some(partial.token.clone()), ..spec.clone() }
}

#[test]
fn the_first_part_of_the_corpus_leaves_the_token_that_zfs_left_and_its_rest_completes_it() {
    let (_dir, vault) = new_vault();
    let (first, second) = (golden("resume-part1-truncated"), golden("resume-part2"));
    interrupt(&vault, &first, "vault/d@s1", first.len());
    let kept = partial(&vault, "vault/d").expect("kept");
    let theirs = include_str!("../../../tests/golden/resume-token.txt");
    let parse = |text: &str| text.parse::<ResumeToken>().expect("a token");
    assert_eq!(parse(&kept.token), parse(theirs));
    assert_eq!(kept.to, Some(Guid(begin(&first).to_guid)));
    assert_eq!((kept.from, kept.compressed, kept.raw), (None, false, false));
    receive(&vault, "vault/d@s1", &second).expect("the rest");
    assert_eq!(partial(&vault, "vault/d"), None);
    let (_dir, whole) = new_vault();
    receive(&whole, "vault/d@s1", &golden("full-plain")).expect("whole");
    assert_eq!(set(&vault, "vault/d@s1"), set(&whole, "vault/d@s1"));
    let sums = file_sums(&vault, "vault/d@s1");
    assert!(listed_sums("plain@s1.tree.txt").is_subset(&sums));
    // What is sent of it does not know that it came in two parts.
    let sent = send(&vault, None, "vault/d@s1");
    assert!(!begin(&sent).features.contains(Features::RESUMING));
    vault.verify().expect("sound");
}

/// Interrupts every send of a chain at many places and lets it go on, also twice.
fn check_every_cut(streams: &[&str], raw: bool) {
    let (_dir, source) = new_vault();
    let mut before: Option<String> = None;
    let mut sets = Vec::new();
    for (at, stream) in streams.iter().enumerate() {
        let to = format!("vault/d@{at}");
        receive(&source, &to, &golden(stream)).expect(stream);
        sets.push(set(&source, &to));
        let spec = SendSpec { raw, ..send_spec(before.as_deref(), &to) };
        let whole = send_with(&source, &spec).expect("sent");
        let mut resumed = 0;
        for part in 1..12 {
            let cut = whole.len() * part / 12;
            let (_dir, vault) = new_vault();
            for (earlier, _) in sets.iter().enumerate().take(at) {
                let base = (earlier > 0).then(|| format!("vault/d@{}", earlier - 1));
                let step = format!("vault/d@{earlier}");
                let spec = SendSpec { raw, ..send_spec(base.as_deref(), &step) };
                receive(&vault, &step, &send_with(&source, &spec).expect("sent")).expect("base");
            }
            interrupt(&vault, &whole, &to, cut);
            let Some(kept) = partial(&vault, "vault/d") else {
                receive(&vault, &to, &whole).expect("from the beginning");
                continue;
            };
            assert_eq!((kept.to, kept.raw), (Some(Guid(begin(&whole).to_guid)), raw));
            let second = send_with(&source, &rest(&spec, &kept)).expect("the rest");
            assert!(second.len() < whole.len() + 600 && second.len() + cut < whole.len() * 2);
            if part % 3 == 0 {
                interrupt(&vault, &second, &to, second.len() / 2);
                let kept = partial(&vault, "vault/d").expect("kept");
                let third = send_with(&source, &rest(&spec, &kept)).expect("the rest");
                receive(&vault, &to, &third).expect("the rest of the rest");
            } else {
                receive(&vault, &to, &second).expect("the rest");
            }
            assert_eq!(set(&vault, &to), sets[at], "{stream} cut at {cut}");
            assert_eq!(inventory(&vault, "vault/d").snapshots.len(), at + 1);
            vault.verify().expect("sound");
            resumed += 1;
        }
        assert!(resumed >= 3, "{stream}: {resumed}");
        before = Some(to);
    }
}

#[test]
fn a_full_stream_and_its_steps_go_on_wherever_they_were_cut() {
    check_every_cut(&["full-c", "incr-c"], false);
    check_every_cut(&["holes-full", "holes-incr"], false);
}

#[test]
fn wide_dnodes_spill_blocks_and_volumes_go_on_wherever_they_were_cut() {
    check_every_cut(&["large-dnode"], false);
    check_every_cut(&["zvol-full"], false);
    check_every_cut(&["full-large-L"], false);
}

#[test]
fn a_sealed_stream_and_its_steps_go_on_wherever_they_were_cut() {
    check_every_cut(&["raw-full", "raw-incr"], true);
}

#[test]
fn a_clone_that_was_interrupted_goes_on_from_its_origin() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s1", &golden("full-plain")).expect("the origin");
    receive(&vault, "vault/c@c1", &golden("incr-clone-origin")).expect("the clone");
    let spec = send_spec(Some("vault/d@s1"), "vault/c@c1");
    let whole = send_with(&vault, &spec).expect("sent");
    let (_dir, other) = new_vault();
    receive(&other, "vault/d@s1", &golden("full-plain")).expect("the origin");
    interrupt(&other, &whole, "vault/c@c1", whole.len() / 2);
    let kept = partial(&other, "vault/c").expect("kept");
    let second = send_with(&vault, &rest(&spec, &kept)).expect("the rest");
    receive(&other, "vault/c@c1", &second).expect("the rest");
    assert_eq!(set(&other, "vault/c@c1"), set(&vault, "vault/c@c1"));
    send(&other, Some("vault/d@s1"), "vault/c@c1");
}

#[test]
fn a_directory_volume_goes_on_from_what_arrived() {
    let ((_a, source), (_b, vault)) = (new_vault(), new_vault());
    source.create(&name("vault/d"), flocker_store::DatasetKind::Directory).expect("created");
    let path = source.live_path(&name("vault/d"));
    for file in 0..40u8 {
        let bytes: Vec<u8> = (0..50_000u32).map(|n| (n / 7) as u8 ^ file).collect();
        std::fs::write(path.join(format!("file-{file}")), bytes).expect("written");
    }
    take(&source, "vault/d@1");
    let spec = send_spec(None, "vault/d@1");
    let whole = send_with(&source, &spec).expect("sent");
    interrupt(&vault, &whole, "vault/d@1", whole.len() / 2);
    // What is there of it is no volume yet: nothing starts on it, and nothing is taken for its content.
    assert!(vault.dataset(&name("vault/d")).expect("there").mounted_at.is_none());
    for refused in [
        vault.activate(&name("vault/d")).map(drop),
        vault.rehearse(&name("vault/d")),
        vault.snapshot(&snapshot_spec("vault/d@early")).map(drop),
    ] {
        assert!(matches!(refused, Err(StoreError::NotCapable { .. })), "{refused:?}");
    }
    let kept = partial(&vault, "vault/d").expect("kept");
    let second = send_with(&source, &rest(&spec, &kept)).expect("the rest");
    assert!(second.len() < whole.len() * 2 / 3);
    receive(&vault, "vault/d@1", &second).expect("the rest");
    assert_eq!(set(&vault, "vault/d@1"), set(&source, "vault/d@1"));
    let live = vault.activate(&name("vault/d")).expect("activated").expect("a path");
    let same = std::fs::read(live.join("file-39")).expect("read");
    assert!(same == std::fs::read(path.join("file-39")).expect("read"));
}

#[test]
fn without_being_asked_nothing_is_kept() {
    let (_dir, vault) = new_vault();
    let stream = golden("full-plain");
    let mut incoming = vault.receive(&spec_for(&stream, "vault/d@s")).expect("begins");
    incoming.write_all(&stream[..900_000]).expect("taken");
    incoming.suspend().expect("suspended");
    assert_eq!(vault.datasets().expect("datasets").len(), 1);
    // A stream of zfs-fuse proves nothing before its end.
    let stream = golden("fuse-full-s1");
    interrupt(&vault, &stream, "vault/d@s", stream.len() / 2);
    assert_eq!(vault.datasets().expect("datasets").len(), 1);
    receive(&vault, "vault/d@s", &stream).expect("whole");
}

#[test]
fn abort_takes_back_what_arrived_and_the_dataset_that_was_made_for_it() {
    let (_dir, vault) = new_vault();
    let stream = golden("full-plain");
    interrupt(&vault, &stream, "vault/d@s", 900_000);
    let info = vault.dataset(&name("vault/d")).expect("the dataset is there");
    assert!(info.used_bytes > 0 && info.mounted_at.is_none());
    // One that has not begun takes nothing back.
    vault.receive(&resumable(&stream, "vault/d@s")).expect("begins").abort().expect("aborted");
    assert!(partial(&vault, "vault/d").is_some());
    let mut incoming = vault.receive(&resumable(&stream, "vault/d@s")).expect("begins");
    incoming.write_all(&stream[..900_000]).expect("taken");
    incoming.abort().expect("aborted");
    assert_eq!(vault.datasets().expect("datasets").len(), 1);
    receive(&vault, "vault/d@s", &stream).expect("from the beginning");
    // An increment leaves the dataset.
    let step = golden("incr-plain");
    interrupt(&vault, &step, "vault/d@t", 200_000);
    assert!(partial(&vault, "vault/d").is_some());
    let mut incoming = vault.receive(&resumable(&step, "vault/d@t")).expect("begins");
    incoming.write_all(&step[..200_000]).expect("taken");
    incoming.abort().expect("aborted");
    assert_eq!(partial(&vault, "vault/d"), None);
    assert_eq!(inventory(&vault, "vault/d").snapshots.len(), 1);
    let blocks = vault.gc().expect("collected").blocks;
    assert!(blocks > 0, "what was taken back is collected");
    vault.verify().expect("sound");
}

#[test]
fn a_stream_from_the_beginning_takes_the_place_of_what_arrived_once_it_has_proved_right() {
    let (_dir, vault) = new_vault();
    let stream = golden("full-plain");
    interrupt(&vault, &stream, "vault/d@s", 900_000);
    let kept = partial(&vault, "vault/d");
    // Another stream than the announced one, and the rest of another one, change nothing.
    let mut spec = resumable(&stream, "vault/d@s");
    spec.to_guid = Guid(4711);
    assert!(receive_spec(&vault, &spec, &stream).is_err());
    assert!(receive(&vault, "vault/d@s", &golden("resume-part2")).is_err());
    assert_eq!(partial(&vault, "vault/d"), kept);
    // A volume in place of a filesystem, even.
    receive(&vault, "vault/d@s", &golden("zvol-full")).expect("from the beginning");
    let found = inventory(&vault, "vault/d");
    assert_eq!((found.partial, found.snapshots.len()), (None, 1));
    assert_eq!(
        vault.dataset(&name("vault/d")).expect("dataset").kind,
        flocker_store::DatasetKind::Zvol
    );
    vault.gc().expect("collected");
    vault.verify().expect("sound");
}

#[test]
fn the_rest_of_a_stream_needs_its_beginning() {
    let (_dir, vault) = new_vault();
    let refused = receive(&vault, "vault/d@s1", &golden("resume-part2"));
    assert!(matches!(refused, Err(StoreError::BadStream { .. })), "{refused:?}");
    assert_eq!(vault.datasets().expect("datasets").len(), 1);
}

#[test]
fn damage_on_the_way_keeps_only_what_was_proven_before_it() {
    let (_dir, source) = new_vault();
    receive(&source, "vault/d@s", &golden("full-c")).expect("source");
    let spec = send_spec(None, "vault/d@s");
    let whole = send_with(&source, &spec).expect("sent");
    for step in 1..25 {
        let (_dir, vault) = new_vault();
        let at = whole.len() * step / 25;
        let mut bad = whole.clone();
        bad[at] ^= 0x40;
        let outcome = receive_spec(&vault, &resumable(&bad, "vault/d@s"), &bad);
        assert!(matches!(outcome, Err(StoreError::BadStream { .. })), "{at}: {outcome:?}");
        let Some(kept) = partial(&vault, "vault/d") else {
            continue;
        };
        assert!(kept.bytes <= at as u64, "{at}: {}", kept.bytes);
        let second = send_with(&source, &rest(&spec, &kept)).expect("the rest");
        receive(&vault, "vault/d@s", &second).expect("the rest");
        assert_eq!(set(&vault, "vault/d@s"), set(&source, "vault/d@s"), "{at}");
    }
}

#[test]
fn what_arrived_is_not_collected_and_outlives_the_process() {
    let (dir, vault) = new_vault();
    let (_dir, source) = new_vault();
    receive(&source, "vault/d@s", &golden("full-large-L")).expect("source");
    let spec = send_spec(None, "vault/d@s");
    let whole = send_with(&source, &spec).expect("sent");
    interrupt(&vault, &whole, "vault/d@s", whole.len() * 3 / 4);
    let kept = partial(&vault, "vault/d").expect("kept");
    receive(&vault, "vault/e@s", &golden("full-plain")).expect("something else");
    vault.destroy_dataset(&name("vault/e")).expect("destroyed");
    assert!(vault.gc().expect("collected").blocks > 0);
    vault.verify().expect("sound");
    vault.rename(&name("vault/d"), &name("vault/f")).expect("renamed");
    drop(vault);
    let vault = Vault::open(dir.path().join("v")).expect("opens");
    assert_eq!(partial(&vault, "vault/f"), Some(kept.clone()));
    let second = send_with(&source, &rest(&spec, &kept)).expect("the rest");
    assert!(second.len() + 900_000 < whole.len(), "{} of {}", second.len(), whole.len());
    receive(&vault, "vault/f@s", &second).expect("the rest");
    assert_eq!(set(&vault, "vault/f@s"), set(&source, "vault/d@s"));
    vault.verify().expect("sound");
}

#[test]
fn a_crash_at_any_point_leaves_the_snapshots_and_a_part_that_goes_on_or_none() {
    let (dir, vault) = new_vault();
    let (_dir, source) = new_vault();
    receive(&source, "vault/d@0", &golden("holes-full")).expect("source");
    receive(&source, "vault/d@1", &golden("holes-incr")).expect("source");
    let specs = [send_spec(None, "vault/d@0"), send_spec(Some("vault/d@0"), "vault/d@1")];
    let path = std::fs::canonicalize(dir.path().join("v")).expect("the vault");
    vault.checkpoint_every(150_000);
    let copies: Arc<Mutex<Vec<String>>> = Arc::default();
    let (points, to) = (copies.clone(), dir.path().to_owned());
    fault::arm(&path, move |point, path| {
        let mut points = points.lock().expect("points");
        copy_vault(path, &to.join(points.len().to_string()));
        points.push(point.to_owned());
        false
    });
    for (at, spec) in specs.iter().enumerate() {
        let whole = send_with(&source, spec).expect("sent");
        let to = format!("vault/d@{at}");
        interrupt(&vault, &whole, &to, whole.len() * 2 / 3);
        let outcome = receive_spec(&vault, &resumable(&whole, &to), &whole[..whole.len() / 2]);
        assert!(outcome.is_err());
        let kept = partial(&vault, "vault/d").expect("kept");
        let second = send_with(&source, &rest(spec, &kept)).expect("the rest");
        receive_spec(&vault, &resumable(&second, &to), &second).expect("the rest");
    }
    fault::disarm(&path);
    let points = copies.lock().expect("points").clone();
    for (at, point) in points.iter().enumerate() {
        let copy = Vault::open(dir.path().join(at.to_string())).expect("opens");
        copy.verify().unwrap_or_else(|e| panic!("after {point} ({at}): {e}"));
        copy.gc().expect("collects");
        copy.verify().expect("sound after collecting");
        for (step, spec) in specs.iter().enumerate() {
            let found = inventory(&copy, "vault/d");
            let to = format!("vault/d@{step}");
            if found.snapshots.len() <= step {
                let spec = found.partial.as_ref().map_or(spec.clone(), |kept| rest(spec, kept));
                let stream = send_with(&source, &spec).expect("sent");
                receive(&copy, &to, &stream).unwrap_or_else(|e| panic!("{point} ({at}): {e}"));
            }
            assert_eq!(set(&copy, &to), set(&source, &to), "after {point} ({at})");
        }
        // Nothing is left of it: a vault that never was interrupted holds the same.
        copy.gc().expect("collects");
        assert_eq!(copy.gc().expect("collects").blocks, 0);
    }
    for point in ["partial-keep", "partial-discarded", "before-publish", "after-publish"] {
        assert!(points.iter().any(|p| p == point), "{point} was not passed: {points:?}");
    }
}

#[test]
fn a_token_of_another_send_is_refused_by_its_name() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@0", &golden("full-c")).expect("full");
    receive(&vault, "vault/d@1", &golden("incr-c")).expect("step");
    let token = ResumeToken {
        object: 2,
        offset: 0x40000,
        bytes: 9,
        to_guid: begin(&golden("full-c")).to_guid,
        to_name: "tank/g/plain@s1".into(),
        compress_ok: true,
        ..ResumeToken::default()
    };
    let ask = |token: &ResumeToken| {
        let resume = Some(token.to_string());
        send_with(&vault, &SendSpec { resume, ..send_spec(None, "vault/d@0") })
    };
    let sent = ask(&token).expect("the rest");
    let announced = begin(&sent).features;
    assert!(announced.contains(Features::RESUMING | Features::COMPRESSED));
    for (what, token) in [
        ("guid", ResumeToken { to_guid: 7, ..token.clone() }),
        ("from", ResumeToken { from_guid: Some(7), ..token.clone() }),
        ("object", ResumeToken { object: 1 << 40, ..token.clone() }),
        ("raw", ResumeToken { raw_ok: true, ..token.clone() }),
        ("-c", ResumeToken { compress_ok: false, ..token.clone() }),
        ("-e", ResumeToken { embed_ok: true, ..token.clone() }),
    ] {
        let refused = ask(&token);
        assert!(matches!(refused, Err(StoreError::BadToken { .. })), "{what}: {refused:?}");
    }
    let spec = SendSpec { resume: Some("1-0-0-00".into()), ..send_spec(None, "vault/d@0") };
    assert!(matches!(send_with(&vault, &spec), Err(StoreError::BadToken { .. })));
    assert!(matches!(vault.estimate(&spec), Err(StoreError::BadToken { .. })));
}

#[test]
fn the_rest_that_is_sent_is_the_rest_that_zfs_sends() {
    let (_dir, vault) = new_vault();
    receive(&vault, "vault/d@s1", &golden("full-plain")).expect("full");
    let token = include_str!("../../../tests/golden/resume-token.txt").trim().to_owned();
    let mut spec = send_spec(None, "vault/d@s1");
    (spec.compressed, spec.large_blocks, spec.resume) = (false, false, Some(token));
    let (ours, theirs) = (send_with(&vault, &spec).expect("sent"), golden("resume-part2"));
    assert_eq!(begin(&ours).features, begin(&theirs).features);
    let said = |stream: &[u8]| -> Vec<(Kind, u64, u64, Vec<u8>)> {
        use zfs_stream::record::Record;
        let (mut reader, mut rest) = (zfs_stream::Reader::new(), stream);
        let mut found = Vec::new();
        while let Some(item) = reader.next(&mut rest).expect("sound") {
            let (object, offset) = match &item.record {
                Record::Write(w) => (w.object, w.offset),
                Record::Object(o) => (o.object, 0),
                // Holes inside a file that ZFS knows by their birth.
                Record::Free(f) if f.length != u64::MAX => continue,
                Record::Free(f) => (f.object, f.offset),
                Record::FreeObjects(f) => (f.first, f.count),
                _ => (0, 0),
            };
            found.push((item.record.kind(), object, offset, item.payload().to_vec()));
        }
        found
    };
    let (ours, theirs) = (said(&ours), said(&theirs));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{:?}, not {:?}", &ours.0, &theirs.0);
    }
    assert_eq!(ours.len(), theirs.len());
}

const VICTIM: &str = "FLOCKER_VAULT_RESUME_VICTIM";

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "run by a_killed_process_leaves_what_arrived_before_its_last_checkpoint"]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else {
        return;
    };
    let vault = Vault::open(&path).expect("opens");
    vault.checkpoint_every(50_000);
    let stream = std::fs::read(Path::new(&path).with_extension("stream")).expect("a stream");
    let to = "vault/d@0";
    let mut incoming = vault.receive(&resumable(&stream, to)).expect("begins");
    for piece in stream.chunks(10_000) {
        incoming.write_all(piece).expect("taken");
        std::thread::sleep(std::time::Duration::from_millis(4));
    }
    incoming.commit().expect("committed");
    println!("done");
}

#[test]
fn a_killed_process_leaves_what_arrived_before_its_last_checkpoint() {
    let (dir, vault) = new_vault();
    drop(vault);
    let path = dir.path().join("v");
    let (_dir, source) = new_vault();
    receive(&source, "vault/d@0", &golden("holes-full")).expect("source");
    let spec = send_spec(None, "vault/d@0");
    let mut stream = send_with(&source, &spec).expect("sent");
    let (mut kept_bytes, mut resumed) = (0, 0);
    for round in 0..40u64 {
        std::fs::write(path.with_extension("stream"), &stream).expect("written");
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "victim", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("a victim");
        std::thread::sleep(std::time::Duration::from_millis(350 + round * 37 % 200));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let vault = Vault::open(&path).unwrap_or_else(|e| panic!("round {round}: {e}"));
        vault.verify().unwrap_or_else(|e| panic!("round {round}: {e}"));
        let found = inventory(&vault, "vault/d");
        if !found.snapshots.is_empty() {
            break;
        }
        if let Some(kept) = found.partial {
            assert!(kept.bytes >= kept_bytes, "what was durable is there: {}", kept.bytes);
            resumed += u64::from(kept.bytes > kept_bytes);
            kept_bytes = kept.bytes;
            stream = send_with(&source, &rest(&spec, &kept)).expect("the rest");
        }
    }
    let vault = Vault::open(&path).expect("opens");
    if inventory(&vault, "vault/d").snapshots.is_empty() {
        receive(&vault, "vault/d@0", &stream).expect("the rest");
    }
    assert!(resumed > 0, "the victims got somewhere");
    assert_eq!(set(&vault, "vault/d@0"), set(&source, "vault/d@0"));
    vault.gc().expect("collected");
    vault.verify().expect("sound");
}
