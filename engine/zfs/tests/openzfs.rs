//! OpenZFS 2.1 to 2.4, where it cannot be run: the words that are used, and what is made of the answers.
//!
//! Owns: a fake of the commands that answers by the words it is asked with and keeps a record of them. What
//! it says was printed by OpenZFS 2.3.9 (`tests/golden/cli`) or follows its manual pages. Leaves to others:
//! real ZFS (`fuse.rs` here, the lab's virtual machines for OpenZFS).

#[path = "openzfs/streams.rs"]
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flocker_store::{
    Change, DatasetName, Guid, HoldTag, ReceiveSpec, SendBase, SendSpec, SnapshotName,
    SnapshotSpec, Store, StoreError,
};
use flocker_zfs::run::{Ending, Finished, Program, Runner};
use flocker_zfs::{ZfsOptions, ZfsStore};
use zfs_stream::record::Begin;
use zfs_stream::{Endian, Features, Record};

/// Exit status, stdout, stderr.
type Answer = (i32, String, String);

/// Answers by the words of the command; several answers come in turn, the last one stays.
#[derive(Debug, Default)]
struct Fake {
    answers: Mutex<BTreeMap<String, VecDeque<Answer>>>,
    asked: Mutex<Vec<String>>,
    script: PathBuf,
}

impl Fake {
    fn on(&self, words: &str, code: i32, stdout: &str, stderr: &str) {
        let mut answers = self.answers.lock().unwrap();
        let answer = (code, stdout.to_owned(), stderr.to_owned());
        answers.entry(words.to_owned()).or_default().push_back(answer);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Runner for Fake {
    fn run(&self, program: Program, args: &[&str]) -> Result<Finished, StoreError> {
        let words = format!("{} {}", program.word(), args.join(" "));
        self.asked.lock().unwrap().push(words.clone());
        let mut answers = self.answers.lock().unwrap();
        let queue = answers.get_mut(&words);
        let (code, stdout, stderr) = match queue {
            Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
            Some(queue) => queue[0].clone(),
            None => panic!("the store asks `{words}`, for which there is no answer"),
        };
        let ending = Ending::Code(code);
        Ok(Finished { command: words, ending, stdout: stdout.into_bytes(), stderr })
    }

    fn path(&self, _: Program) -> &Path {
        &self.script
    }
}

struct Case {
    fake: Arc<Fake>,
    store: ZfsStore,
    dir: tempfile::TempDir,
}

/// How a received snapshot is looked for, and what is found.
const FIND: &str = "zfs get -Hp -o name,property,value guid,createtxg,creation,userrefs tank/a@s2";
const FOUND: &str = "tank/a@s2\tguid\t12\ntank/a@s2\tcreatetxg\t20\ntank/a@s2\tcreation\t1\n\
                     tank/a@s2\tuserrefs\t0\n";

/// Left by a `zfs receive -s` of a full stream without flags that was cut off.
const TOKEN: &str = include_str!("../../../tests/golden/resume-token.txt");
const TOKEN_GUID: u64 = 0x7e9929bacfc5c02c;

const DATASET: &str =
    "get -Hp -o name,property,value type,guid,used,referenced,readonly,origin,encryption tank";
const LIST: &str =
    "zfs list -Hp -d 1 -t all -o name,guid,createtxg,creation,userrefs,receive_resume_token tank/a";
const SNAPSHOTS: &str = "zfs get -Hp -o name,property,value guid,createtxg,creation,userrefs";

/// A store on a fake whose `send` and `receive` are this shell script.
fn case(script: &str) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zfs");
    fs::write(&path, format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.path().display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let fake = Arc::new(Fake { script: path, ..Fake::default() });
    fake.on("zfs version", 0, "zfs-2.3.9-0+deb13u1\nzfs-kmod-2.3.9-0+deb13u1\n", "");
    fake.on("zpool list -H -o name", 0, "tank\n", "");
    let info = [
        "type\tfilesystem",
        "guid\t1",
        "used\t2",
        "referenced\t3",
        "readonly\toff",
        "encryption\toff",
    ];
    let lines: String = info.iter().map(|line| format!("tank\t{line}\n")).collect();
    fake.on(&format!("zfs {DATASET}"), 0, &lines, "");
    let root = DatasetName::new("tank").unwrap();
    let store = ZfsStore::with_runner(&root, ZfsOptions::default(), fake.clone()).unwrap();
    fake.asked();
    Case { fake, store, dir }
}

fn dataset() -> DatasetName {
    DatasetName::new("tank/a").unwrap()
}

fn snap(short: &str) -> SnapshotName {
    dataset().snapshot(short).unwrap()
}

fn missing(name: &str) -> String {
    format!("cannot open '{name}': dataset does not exist")
}

#[test]
fn an_inventory_is_one_command_and_has_bookmarks_and_the_resume_token() {
    let case = case("exit 1");
    let token = TOKEN.trim();
    let lines = format!(
        "tank/a\t9\t2\t100\t-\t{token}\ntank/a@s2\t12\t20\t200\t0\t-\ntank/a@s1\t11\t10\t100\t2\t-\n\
         tank/a#b1\t11\t10\t100\t-\t-\ntank/a/child\t8\t3\t100\t-\t-\n"
    );
    case.fake.on(LIST, 0, &lines, "");
    let found = case.store.inventory(&dataset()).unwrap();
    let guids: Vec<u64> = found.snapshots.iter().map(|s| s.guid.0).collect();
    assert_eq!(guids, [11, 12], "oldest first");
    assert_eq!(found.snapshots[0].holds, 2);
    assert_eq!((found.bookmarks[0].guid, found.bookmarks[0].createtxg), (Guid(11), 10));
    let partial = found.partial.unwrap();
    assert_eq!((partial.token.as_str(), partial.to), (token, Some(Guid(TOKEN_GUID))));
    assert_eq!((partial.from, partial.compressed, partial.raw), (None, false, false));
    assert!(partial.bytes > 0);
    assert_eq!(case.fake.asked().len(), 1);
    let can = case.store.capabilities();
    assert!(can.bookmarks && can.resumable && can.atomic_group_snapshot && can.receives_modern);
    assert_eq!(can.version, "OpenZFS 2.3.9");
}

#[test]
fn a_group_is_snapshotted_destroyed_and_described_in_one_command_each() {
    let case = case("exit 1");
    case.fake.on("zfs snapshot -o flocker-repl:seq=7 tank/a@g tank/b@g", 0, "", "");
    let mut lines = String::new();
    for (name, guid) in [("tank/a@g", 1), ("tank/b@g", 2)] {
        for (property, value) in
            [("guid", guid), ("createtxg", 5), ("creation", 9), ("userrefs", 0)]
        {
            lines.push_str(&format!("{name}\t{property}\t{value}\n"));
        }
    }
    case.fake.on(&format!("{SNAPSHOTS} tank/a@g tank/b@g"), 0, &lines, "");
    let spec = SnapshotSpec {
        names: vec![snap("g"), "tank/b@g".parse().unwrap()],
        quiesced: false,
        properties: [("flocker-repl:seq".to_owned(), "7".to_owned())].into(),
    };
    let taken = case.store.snapshot(&spec).unwrap();
    assert_eq!((taken[0].createtxg, taken[1].createtxg), (5, 5), "one transaction group");

    let list = "tank/a\t9\t2\t100\t-\t-\ntank/a@s1\t11\t10\t1\t0\t-\ntank/a@s2\t12\t20\t2\t1\t-\n\
                tank/a@s3\t13\t30\t3\t0\t-\n";
    case.fake.on(LIST, 0, list, "");
    case.fake.on("zfs destroy tank/a@s1,s3", 0, "", "");
    case.fake.on("zfs holds -H tank/a@s2", 0, "tank/a@s2\tkeep me\tMon Nov 23\n", "");
    case.fake.asked();
    let names = [snap("s1"), snap("s2"), snap("s3"), snap("s4")];
    let kept = case.store.destroy_snapshots(&names).unwrap_err();
    assert_eq!(kept.to_string(), "tank/a@s2 is kept by hold keep me");
    assert!(case.fake.asked().iter().all(|words| !words.contains(" -r")));
}

#[test]
fn properties_are_set_in_one_command_and_taken_away_by_inherit() {
    let case = case("exit 1");
    case.fake.on("zfs set flocker-repl:a=1 flocker-repl:c=x y tank/a", 0, "", "");
    case.fake.on("zfs inherit flocker-repl:b tank/a", 0, "", "");
    let changes = [
        ("flocker-repl:a".to_owned(), Some("1".to_owned())),
        ("flocker-repl:b".to_owned(), None),
        ("flocker-repl:c".to_owned(), Some("x y".to_owned())),
    ];
    case.store.set_user_properties(&dataset(), &changes.into()).unwrap();
    assert_eq!(case.fake.asked().len(), 2);
}

/// What a fence reads, then what it reads back.
fn fence_answers(fake: &Fake, readonly_after: &str) {
    let was = "zfs get -Hp -o property,value,source";
    let before = "type\tfilesystem\t-\ncanmount\ton\tdefault\nreadonly\toff\tdefault\nquota\t0\tdefault\n\
                  refquota\t1048576\tlocal\nrefreservation\t0\tdefault\nreservation\t0\tdefault\n\
                  flocker-repl:was-limits\t-\t-\n";
    let limits = "flocker-repl:was-limits,quota,refquota,refreservation,reservation";
    fake.on(&format!("{was} type,canmount,readonly,{limits} tank/a"), 0, before, "");
    let lifted = "zfs set flocker-repl:was-limits=refquota=1048576 refquota=none tank/a";
    fake.on(lifted, 0, "", "");
    for name in ["canmount", "readonly"] {
        let none = format!("flocker-repl:was-{name}\t-\t-\n");
        fake.on(&format!("{was} flocker-repl:was-{name} tank/a"), 0, &none, "");
    }
    fake.on("zfs set flocker-repl:was-canmount=on tank/a", 0, "", "");
    fake.on("zfs set flocker-repl:was-readonly=(inherit) tank/a", 0, "", "");
    fake.on("zfs set canmount=noauto tank/a", 0, "", "");
    // Seen with a writer open: it takes effect and says 255.
    fake.on("zfs set readonly=on tank/a", 255, "", "cannot mount 'tank/a': Invalid argument");
    let after = format!("canmount\tnoauto\tlocal\nreadonly\t{readonly_after}\tlocal\n");
    fake.on(&format!("{was} canmount,readonly tank/a"), 0, &after, "");
}

#[test]
fn a_fence_reads_back_what_it_set_and_does_not_trust_the_exit_status() {
    let holds = case("exit 1");
    fence_answers(&holds.fake, "on");
    holds.store.fence(&dataset()).unwrap();
    let leaks = case("exit 1");
    fence_answers(&leaks.fake, "off");
    let error = leaks.store.fence(&dataset()).unwrap_err();
    assert!(error.to_string().contains("readonly is still off"), "{error}");
}

#[test]
fn nothing_was_written_is_proved_by_written_after_a_sync() {
    let case = case("exit 1");
    let lines =
        "tank/a@s\tguid\t1\ntank/a@s\tcreatetxg\t1\ntank/a@s\tcreation\t1\ntank/a@s\tuserrefs\t0\n";
    case.fake.on(&format!("{SNAPSHOTS} tank/a@s"), 0, lines, "");
    case.fake.on("zpool sync tank", 0, "", "");
    let written = "zfs get -Hp -o value written@s tank/a";
    for answer in ["0\n", "4096\n", "4096\n", "-\n"] {
        case.fake.on(written, 0, answer, "");
    }
    case.store.verify_unwritten(&snap("s")).unwrap();
    let asked = case.fake.asked();
    let at = |words: &str| asked.iter().position(|a| a == words).unwrap();
    assert!(at("zpool sync tank") < at(written), "what is not synced does not count yet");
    let error = case.store.verify_unwritten(&snap("s")).unwrap_err();
    assert!(matches!(&error, StoreError::Modified { .. }), "{error}");
    assert_eq!(case.store.changed_since(&snap("s")).unwrap(), Change::Changed { bytes: 4096 });
    let gone = case.store.changed_since(&snap("s")).unwrap_err();
    assert!(matches!(gone, StoreError::NoSnapshot { .. }), "{gone}");
}

#[test]
fn a_hold_that_one_of_many_has_already_is_put_on_the_others() {
    let case = case("exit 1");
    let exists = "cannot hold snapshot 'tank/a@s1': tag already exists on this dataset";
    case.fake.on("zfs hold t tank/a@s1 tank/a@s2", 1, "", exists);
    case.fake.on("zfs hold t tank/a@s1", 1, "", exists);
    case.fake.on("zfs hold t tank/a@s2", 0, "", "");
    let names = [snap("s1"), snap("s2")];
    case.store.hold(&HoldTag("t".into()), &names).unwrap();
    assert_eq!(case.fake.asked().len(), 3);
    let none = "cannot release hold from snapshot 'tank/a@s1': no such tag on this dataset";
    case.fake.on("zfs release t tank/a@s1 tank/a@s2", 1, "", none);
    case.fake.on("zfs release t tank/a@s1", 1, "", none);
    case.fake.on("zfs release t tank/a@s2", 0, "", "");
    case.fake.asked();
    case.store.release(&HoldTag("t".into()), &names).unwrap();
    assert_eq!(case.fake.asked().len(), 3, "the others are not forgotten");
}

fn known(case: &Case, names: &str) {
    let lines: String = names
        .split(' ')
        .flat_map(|name| {
            ["guid", "createtxg", "creation", "userrefs"].map(|p| format!("{name}\t{p}\t7\n"))
        })
        .collect();
    case.fake.on(&format!("{SNAPSHOTS} {names}"), 0, &lines, "");
}

fn send_spec(from: Option<SendBase>) -> SendSpec {
    SendSpec {
        from,
        to: snap("s2"),
        compressed: true,
        large_blocks: true,
        raw: false,
        resume: None,
    }
}

#[test]
fn a_send_has_the_flags_it_was_asked_for_and_its_estimate_too() {
    let case = case("echo \"$@\" > words; printf stream");
    known(&case, "tank/a@s2");
    known(&case, "tank/a@s2 tank/a@s1");
    case.fake.on("zfs send -nP -L -c -i tank/a@s1 tank/a@s2", 0, "full\tx\t5\nsize\t4242\n", "");
    let from = Some(SendBase::Snapshot(snap("s1")));
    assert_eq!(case.store.estimate(&send_spec(from)).unwrap(), Some(4242));
    let bookmark = SendBase::Bookmark("tank/a#b".parse().unwrap());
    let mut stream = case.store.send(&send_spec(Some(bookmark))).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    stream.finish().unwrap();
    assert_eq!(bytes, b"stream");
    let words = fs::read_to_string(case.dir.path().join("words")).unwrap();
    assert_eq!(words.trim(), "send -L -c -i tank/a#b tank/a@s2");
}

#[test]
fn a_send_resumes_from_a_token_of_that_very_send_and_from_no_other() {
    let case = case("echo \"$@\" > words; printf rest");
    let token = TOKEN.trim();
    let lines = |guid: u64| {
        format!(
            "tank/a@s2\tguid\t{guid}\ntank/a@s2\tcreatetxg\t1\n\
             tank/a@s2\tcreation\t1\ntank/a@s2\tuserrefs\t0\n"
        )
    };
    case.fake.on(&format!("{SNAPSHOTS} tank/a@s2"), 0, &lines(7), "");
    case.fake.on(&format!("{SNAPSHOTS} tank/a@s2"), 0, &lines(TOKEN_GUID), "");
    // The token is of a dataset without large blocks: it says nothing of `-L`, though that was asked for.
    let resuming = SendSpec { resume: Some(token.to_owned()), ..send_spec(None) };
    let bookmark = "tank/a#b".parse().unwrap();
    let another = case.store.send(&resuming).err().unwrap();
    assert!(matches!(&another, StoreError::BadToken { .. }), "{another}");
    assert!(another.to_string().contains(&TOKEN_GUID.to_string()), "{another}");
    for (spec, what) in [
        (SendSpec { raw: true, ..resuming.clone() }, "-w"),
        (SendSpec { from: Some(SendBase::Bookmark(bookmark)), ..resuming.clone() }, "-i"),
        (SendSpec { resume: Some("1-abc-de".to_owned()), ..resuming.clone() }, "malformed"),
    ] {
        let error = case.store.send(&spec).err().unwrap();
        assert!(matches!(&error, StoreError::BadToken { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let mut stream = case.store.send(&resuming).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    stream.finish().unwrap();
    assert_eq!(bytes, b"rest");
    let words = fs::read_to_string(case.dir.path().join("words")).unwrap();
    assert_eq!(words.trim(), format!("send -t {token}"));
}

#[test]
fn a_send_that_fails_at_its_end_fails_although_bytes_came() {
    let case =
        case("printf half; echo \"warning: cannot send 'tank/a@s2': out of luck\" >&2; exit 1");
    known(&case, "tank/a@s2");
    let mut stream = case.store.send(&send_spec(None)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let error = stream.finish().unwrap_err();
    let StoreError::Command { command, stderr, .. } = &error else { panic!("{error}") };
    assert_eq!(command, "zfs send -L -c tank/a@s2");
    assert!(stderr.contains("out of luck"));
}

#[test]
fn a_send_that_ignores_every_request_to_end_is_killed_in_bounded_time() {
    let case = case("trap '' TERM PIPE; printf x; while :; do sleep 1; done");
    known(&case, "tank/a@s2");
    let mut stream = case.store.send(&send_spec(None)).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    drop(stream);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

fn begin(to_guid: u64, from_guid: u64, features: Features) -> Vec<u8> {
    let mut header = [0; 312];
    let begin = Begin {
        features,
        objset_type: 2, // DMU_OST_ZFS
        to_guid,
        from_guid,
        to_name: b"src/x@s2".to_vec(),
        ..Begin::default()
    };
    Record::Begin(begin).encode_over(&mut header, Endian::Little).unwrap();
    header.to_vec()
}

fn receive_spec(from_guid: Option<u64>) -> ReceiveSpec {
    ReceiveSpec {
        dataset: dataset(),
        snapshot: snap("s2"),
        to_guid: Guid(12),
        from_guid: from_guid.map(Guid),
        resumable: true,
        origin: None,
    }
}

#[test]
fn a_full_receive_never_mounts_and_takes_a_leftover_away_first() {
    let case = case("echo \"$@\" > words; cat > got");
    let partial = "tank/a\t9\t2\t1\t-\t1-abc-de\n";
    case.fake.on(LIST, 0, partial, "");
    case.fake.on(FIND, 0, FOUND, "");
    case.fake.on("zfs receive -A tank/a", 0, "", "");
    let mut stream = case.store.receive(&receive_spec(None)).unwrap();
    let mut bytes = begin(12, 0, Features::NONE);
    bytes.extend((0..5000_u32).flat_map(u32::to_le_bytes));
    for chunk in bytes.chunks(77) {
        stream.write_all(chunk).unwrap();
    }
    let received = stream.commit().unwrap();
    assert_eq!((received.guid, received.createtxg), (Guid(12), 20), "as the store reports it");
    assert_eq!(fs::read(case.dir.path().join("got")).unwrap(), bytes, "every byte, in order");
    let words = fs::read_to_string(case.dir.path().join("words")).unwrap();
    let expect = "receive -u -s -o canmount=noauto -o flocker-repl:was-canmount=on tank/a@s2";
    assert_eq!(words.trim(), expect);
    assert!(case.fake.asked().contains(&"zfs receive -A tank/a".to_owned()));
}

#[test]
fn a_stream_that_resumes_keeps_what_has_arrived() {
    let case = case("cat > got");
    case.fake.on(LIST, 0, "tank/a\t9\t2\t1\t-\t1-abc-de\n", "");
    case.fake.on(FIND, 0, FOUND, "");
    let mut stream = case.store.receive(&receive_spec(None)).unwrap();
    stream.write_all(&begin(12, 0, Features::RESUMING)).unwrap();
    stream.commit().unwrap();
    assert!(case.fake.asked().iter().all(|words| !words.contains("-A")));
}

#[test]
fn without_commit_the_last_record_never_reaches_zfs() {
    let case = case("cat > got; exit 1");
    let base = "tank/a\t9\t2\t1\t-\t-\ntank/a@s1\t11\t10\t1\t0\t-\n";
    case.fake.on(LIST, 0, base, "");
    let mut stream = case.store.receive(&receive_spec(Some(11))).unwrap();
    let mut bytes = begin(12, 11, Features::NONE);
    bytes.extend([5; 1000]);
    stream.write_all(&bytes).unwrap();
    stream.abort().unwrap();
    let got = fs::read(case.dir.path().join("got")).unwrap();
    assert_eq!(got, bytes[..bytes.len() - 312]);
}

#[test]
fn a_suspended_receive_keeps_its_part_and_an_aborted_one_does_not() {
    for keep in [true, false] {
        let case = case("cat > got; exit 1");
        let base = "tank/a\t9\t2\t1\t-\t-\ntank/a@s1\t11\t10\t1\t0\t-\n";
        let partial = base.replacen("\t-\t-\n", &format!("\t-\t{TOKEN}"), 1);
        case.fake.on(LIST, 0, base, "");
        case.fake.on(LIST, 0, &partial, "");
        case.fake.on("zfs receive -A tank/a", 0, "", "");
        let mut stream = case.store.receive(&receive_spec(Some(11))).unwrap();
        stream.write_all(&begin(12, 11, Features::NONE)).unwrap();
        if keep {
            stream.suspend().unwrap();
        } else {
            stream.abort().unwrap();
        }
        let discarded = case.fake.asked().contains(&"zfs receive -A tank/a".to_owned());
        assert_eq!(discarded, !keep);
    }
}

#[test]
fn the_words_of_a_receive_that_fails_come_back_typed() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/cli/");
    let base = "tank/a\t9\t2\t1\t-\t-\ntank/a@s1\t11\t10\t1\t0\t-\n";
    for (file, check) in [
        (
            "err-recv-modified",
            (|e| matches!(e, StoreError::Modified { .. })) as fn(&StoreError) -> bool,
        ),
        ("err-recv-corrupt", |e| matches!(e, StoreError::BadStream { .. })),
        ("err-recv-wrong-base", |e| matches!(e, StoreError::Unsupported { .. })),
    ] {
        let script = format!("sed '1,/^--- stderr/d;/^--- exit/d' {golden}{file}.txt >&2; exit 1");
        let case = case(&script);
        case.fake.on(LIST, 0, base, "");
        let mut stream = case.store.receive(&receive_spec(Some(11))).unwrap();
        stream.write_all(&begin(12, 11, Features::NONE)).unwrap();
        // It ends without reading: the pipe breaks sooner or later, and the reason is not lost.
        let mut broke = None;
        for _ in 0..100 {
            if let Err(error) = stream.write_all(&[0; 65536]) {
                broke = Some(error);
                break;
            }
        }
        assert!(broke.is_some(), "{file}");
        let error = stream.commit().unwrap_err();
        assert!(check(&error), "{file}: {error:?}");
    }
}

#[test]
fn success_without_the_snapshot_is_not_success() {
    let case = case("cat > got");
    let base = "tank/a\t9\t2\t1\t-\t-\ntank/a@s1\t11\t10\t1\t0\t-\n";
    case.fake.on(LIST, 0, base, "");
    case.fake.on(FIND, 1, "", &missing("tank/a@s2"));
    case.fake.on(FIND, 0, &FOUND.replace("guid\t12", "guid\t13"), "");
    for _ in 0..2 {
        let mut stream = case.store.receive(&receive_spec(Some(11))).unwrap();
        stream.write_all(&begin(12, 11, Features::NONE)).unwrap();
        let error = stream.commit().unwrap_err().to_string();
        assert!(error.contains("is not there with guid 12; the newest is tank/a@s1"), "{error}");
    }
}

#[test]
fn parents_of_a_received_dataset_are_made_and_never_mounted() {
    let case = case("cat > got");
    let deep = DatasetName::new("tank/p/q/a").unwrap();
    let list = LIST.replace("tank/a", "tank/p/q/a");
    case.fake.on(&list, 1, "", &missing("tank/p/q/a"));
    let kind = "zfs get -Hp -o property,value,source type";
    case.fake.on(&format!("{kind} tank/p/q"), 1, "", &missing("tank/p/q"));
    case.fake.on(&format!("{kind} tank/p"), 1, "", &missing("tank/p"));
    case.fake.on(&format!("{kind} tank"), 0, "type\tfilesystem\t-\n", "");
    case.fake.on("zfs create -o canmount=off tank/p", 0, "", "");
    case.fake.on("zfs create -o canmount=off tank/p/q", 0, "", "");
    let spec = ReceiveSpec {
        dataset: deep.clone(),
        snapshot: deep.snapshot("s2").unwrap(),
        ..receive_spec(None)
    };
    let mut stream = case.store.receive(&spec).unwrap();
    assert!(case.fake.asked().iter().all(|words| !words.starts_with("zfs create")));
    stream.write_all(&begin(12, 0, Features::NONE)).unwrap();
    drop(stream);
    let made: Vec<String> =
        case.fake.asked().into_iter().filter(|words| words.starts_with("zfs create")).collect();
    assert_eq!(made.len(), 2);
    assert!(made[0].ends_with("tank/p"), "{made:?}");
}

#[test]
fn a_machine_without_working_zfs_says_what_to_do() {
    let root = DatasetName::new("tank").unwrap();
    let open = |fake: Fake| {
        ZfsStore::with_runner(&root, ZfsOptions::default(), Arc::new(fake)).unwrap_err()
    };
    let fake = Fake::default();
    fake.on("zfs version", 0, "zfs-2.3.9\n", "");
    let module = "The ZFS modules cannot be auto-loaded.\nTry running 'modprobe zfs' as root.";
    fake.on("zpool list -H -o name", 1, "", module);
    assert!(open(fake).to_string().contains("modprobe zfs"));
    let fake = Fake::default();
    let daemon =
        "connect: No such file or directory\nPlease make sure that the zfs-fuse daemon is running.";
    fake.on("zfs version", 1, "", daemon);
    assert!(open(fake).to_string().contains("start the daemon: zfs-fuse"));
    let fake = Fake::default();
    let denied = "connect: Permission denied\ninternal error: failed to initialize ZFS library";
    fake.on("zfs version", 1, "", denied);
    assert!(matches!(open(fake), StoreError::Permission { .. }));
}
