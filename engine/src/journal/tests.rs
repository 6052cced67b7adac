use std::collections::{BTreeMap, BTreeSet};

use flocker_core::ids::{AttemptId, Epoch, VolumeId};
use flocker_core::record::{Grant, Policy, Role, VolumeRecord, WorkloadKind};
use flocker_store::{DatasetKind, DatasetName};

use super::*;

fn fingerprint(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

fn unit(id: u128, number: u64) -> UnitRecord {
    let attempt = AttemptId { issuer: fingerprint(1), number };
    let volumes = vec![VolumeRecord {
        id: VolumeId(id + 1),
        dataset: DatasetName::new("tank/db").unwrap(),
        kind: DatasetKind::Directory,
        modern_streams: true,
        raw: false,
        joining: false,
    }];
    let epoch = Epoch { number, owner: fingerprint(1), attempt };
    let role = Role::Leaving { attempt, target: fingerprint(2) };
    let mut record =
        UnitRecord::new(UnitId(id), format!("unit{id}"), volumes, Policy::Rpo(1000), epoch, role);
    record.standbys = vec![fingerprint(2)];
    record.last_attempt = number;
    record.refused_up_to = BTreeMap::from([(fingerprint(2), 3)]);
    record.taken = vec![attempt];
    record
}

fn peer(n: u8) -> PeerRecord {
    PeerRecord {
        fingerprint: fingerprint(n),
        name: format!("p{n}"),
        addresses: vec!["h:1".into()],
        grant: Some(Grant {
            receive: DatasetName::new("recv").unwrap(),
            quota_bytes: Some(7),
            workloads: BTreeSet::from([WorkloadKind::Process]),
        }),
    }
}

fn put(unit: &UnitRecord) -> JournalChange {
    JournalChange::PutUnit(Box::new(unit.clone()))
}

#[test]
fn what_was_applied_is_there_after_reopening_and_what_was_deleted_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    let journal = Journal::create(&path, "a", Incarnation(9)).unwrap();
    journal
        .apply(&[
            put(&unit(5, 1)),
            put(&unit(6, 1)),
            JournalChange::PutPeer(peer(2)),
            JournalChange::PutPeer(peer(3)),
        ])
        .unwrap();
    journal
        .apply(&[
            put(&unit(5, 2)),
            JournalChange::DeleteUnit(UnitId(6)),
            JournalChange::DeletePeer(fingerprint(3)),
        ])
        .unwrap();
    drop(journal);
    let contents = Journal::open(&path).unwrap().contents().unwrap();
    assert_eq!(
        contents,
        Contents {
            name: "a".into(),
            incarnation: Incarnation(9),
            units: vec![unit(5, 2)],
            peers: vec![peer(2)],
        }
    );
}

#[test]
fn a_crash_at_any_moment_leaves_all_of_a_transaction_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    let journal = Journal::create(&path, "a", Incarnation(9)).unwrap();
    for number in 1..20 {
        journal.apply(&[put(&unit(5, number)), put(&unit(6, number))]).unwrap();
        // What a power cut would leave: the file as it is, with no orderly close.
        let copy = dir.path().join(format!("copy{number}.redb"));
        std::fs::copy(&path, &copy).unwrap();
        let contents = Journal::open(&copy).unwrap().contents().unwrap();
        assert_eq!(contents.units, [unit(5, number), unit(6, number)]);
    }
}

#[test]
fn a_journal_is_never_made_over_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    drop(Journal::create(&path, "a", Incarnation(9)).unwrap());
    assert!(matches!(
        Journal::create(&path, "b", Incarnation(10)),
        Err(JournalError::Exists { .. })
    ));
    assert_eq!(Journal::open(&path).unwrap().contents().unwrap().name, "a");
}

#[test]
fn another_format_is_refused_naming_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    let journal = Journal::create(&path, "a", Incarnation(9)).unwrap();
    journal
        .write("test", |txn| {
            txn.open_table(NODE)?.insert("format", 77u32.to_le_bytes().as_slice())?;
            Ok(())
        })
        .unwrap();
    drop(journal);
    let error = Journal::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("format 77")
            && error.contains(&format!("format {FORMAT}"))
            && error.contains("journal.redb"),
        "{error}"
    );
}

#[test]
fn a_damaged_journal_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    for bytes in [&b""[..], b"not a journal at all", &[0u8; 65536]] {
        std::fs::write(&path, bytes).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("journal.redb"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_flipped_byte_is_found_when_the_journal_is_opened_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    let journal = Journal::create(&path, "a", Incarnation(9)).unwrap();
    let changes: Vec<_> = (0..40).map(|id| put(&unit(id, 1))).collect();
    journal.apply(&changes).unwrap();
    drop(journal);
    let good = std::fs::read(&path).unwrap();
    let want = Journal::open(&path).unwrap().contents().unwrap();
    let needle = b"unit17";
    let at = good
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("the record is in the file as it is");
    let mut bad = good.clone();
    bad[at] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    match Journal::open(&path).and_then(|j| j.contents()) {
        Err(JournalError::Damaged { .. }) => {}
        Ok(contents) => assert_eq!(contents, want, "a flipped byte was believed"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_naming_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateLock::take(dir.path()).unwrap();
    let error = StateLock::take(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(first);
    StateLock::take(dir.path()).unwrap();
}

#[test]
fn five_tries_end_an_invitation_even_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.redb");
    drop(Journal::create(&path, "a", Incarnation(9)).unwrap());
    let record = InvitationRecord { id: 4, expires_unix_s: 1000, tries: 0 };
    let journal = Journal::open(&path).unwrap();
    journal.open_invitation(&record).unwrap();
    drop(journal);
    for left in (0..MAX_TRIES).rev() {
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.count_try(4, 999).unwrap(), Try::Go { left });
    }
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.count_try(4, 999).unwrap(), Try::Exhausted);
}

#[test]
fn an_invitation_that_ran_out_or_was_replaced_takes_no_try() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(&dir.path().join("journal.redb"), "a", Incarnation(9)).unwrap();
    let record = |id| InvitationRecord { id, expires_unix_s: 1000, tries: 0 };
    journal.open_invitation(&record(1)).unwrap();
    assert_eq!(journal.count_try(1, 1000).unwrap(), Try::Expired);
    journal.open_invitation(&record(2)).unwrap();
    assert_eq!(journal.count_try(1, 5).unwrap(), Try::Closed);
    journal.close_invitation(1).unwrap();
    assert_eq!(journal.count_try(2, 5).unwrap(), Try::Go { left: 4 });
    journal.close_invitation(2).unwrap();
    assert_eq!(journal.count_try(2, 5).unwrap(), Try::Closed);
}
