//! Sending and receiving: whole, from a base, broken off and resumed, raw; and what is refused.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;

use flocker_lzc::{BEGIN_LEN, Errno, LzcError, Properties, ResumePoint, SendFlags, Setting};

use crate::lab::{Lab, errno, noauto, noise, zfs};

const PLAIN: SendFlags = SendFlags { embed: false, large_block: true, compress: true, raw: false };
const RAW: SendFlags = SendFlags { embed: false, large_block: false, compress: false, raw: true };

/// A filesystem with a file of 1 MiB in `@1` and a smaller one more in `@2`, and where it is received to.
fn source(lab: &Lab) -> (String, String) {
    let a = lab.filesystem("a");
    lab.write(&a, "file", 1 << 20);
    lab.snapshot(&format!("{a}@1"));
    lab.write(&a, "more", 100_000);
    lab.snapshot(&format!("{a}@2"));
    (a, lab.at("b"))
}

#[test]
fn a_step_is_received_as_it_was_sent_and_stays_unmounted() {
    let test = "a_step_is_received_as_it_was_sent_and_stays_unmounted";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, b) = source(&lab);
    let full = lab.stream(&format!("{a}@1"), None, PLAIN);
    let estimate = lab.lzc.send_space(&format!("{a}@1"), None, PLAIN).unwrap();
    assert!(estimate > 1 << 20 && estimate.abs_diff(full.len() as u64) < 1 << 19, "{estimate}");
    let received = lab.receive(&format!("{b}@1"), &full).unwrap();
    assert_eq!(received.read_bytes, (full.len() - BEGIN_LEN) as u64);
    assert!(received.properties.is_empty() && received.property_flags == 0, "{received:?}");
    assert_eq!(zfs(&["get", "-Ho", "value,source", "canmount", &b]), "noauto\tlocal");
    assert_eq!(zfs(&["get", "-Ho", "value", "mounted", &b]), "no");

    let step = lab.stream(&format!("{a}@2"), Some(&format!("{a}@1")), PLAIN);
    let estimate = lab.lzc.send_space(&format!("{a}@2"), Some(&format!("{a}@1")), PLAIN).unwrap();
    assert!((100_000..400_000).contains(&estimate), "{estimate}");
    lab.receive(&format!("{b}@2"), &step).unwrap();
    for file in ["file", "more"] {
        assert!(lab.read(&a, file) == lab.read(&b, file), "{file}");
    }
    for snapshot in ["1", "2"] {
        let guid = |of: &String| lab.number(&format!("{of}@{snapshot}"), "guid");
        assert_eq!(guid(&a), guid(&b));
    }
}

#[test]
fn a_bookmark_is_a_base_too() {
    let Some(lab) = Lab::or_skip("a_bookmark_is_a_base_too") else { return };
    let (a, b) = source(&lab);
    let (first, mark) = (format!("{a}@1"), format!("{a}#1"));
    let full = lab.stream(&first, None, PLAIN);
    lab.receive(&format!("{b}@1"), &full).unwrap();
    lab.lzc.bookmark(&[(mark.clone(), first.clone())].into()).unwrap();
    lab.lzc.destroy_snapshots(&[&first], false).unwrap();
    let step = lab.stream(&format!("{a}@2"), Some(&mark), PLAIN);
    let estimate = lab.lzc.send_space(&format!("{a}@2"), Some(&mark), PLAIN).unwrap();
    assert!(estimate > 0);
    lab.receive(&format!("{b}@2"), &step).unwrap();
    assert!(lab.read(&a, "more") == lab.read(&b, "more"));
}

#[test]
fn what_is_in_the_way_of_a_receive_is_told_and_left_alone() {
    let test = "what_is_in_the_way_of_a_receive_is_told_and_left_alone";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, b) = source(&lab);
    let full = lab.stream(&format!("{a}@1"), None, PLAIN);
    let step = lab.stream(&format!("{a}@2"), Some(&format!("{a}@1")), PLAIN);
    let (b1, b2) = (format!("{b}@1"), format!("{b}@2"));

    assert_eq!(errno(lab.receive(&b2, &step)), Errno::ENOENT, "no dataset");
    assert_eq!(errno(lab.receive(&format!("{}@1", lab.at("x/y")), &full)), Errno::ENOENT);
    lab.receive(&b1, &full).unwrap();
    assert_eq!(errno(lab.receive(&b1, &full)), Errno::EEXIST, "a dataset of that name");
    let other = lab.filesystem("other");
    lab.snapshot(&format!("{other}@1"));
    assert_eq!(errno(lab.receive(&format!("{other}@2"), &step)), Errno::ENODEV, "no base");

    lab.write(&b, "own", 1000);
    assert_eq!(errno(lab.receive(&b2, &step)), Errno::ETXTBSY, "written");
    assert_eq!(lab.read(&b, "own").len(), 1000);
    lab.snapshot(&format!("{b}@own"));
    assert_eq!(errno(lab.receive(&b2, &step)), Errno::ETXTBSY, "a newer snapshot");
    assert!(lab.lzc.exists(&format!("{b}@own")).unwrap());
    lab.lzc.destroy_snapshots(&[format!("{b}@own")], false).unwrap();
    lab.lzc.rollback_to(&b, &b1).unwrap();
    lab.receive(&b2, &step).unwrap();
    assert_eq!(errno(lab.receive(&b2, &step)), Errno::EEXIST, "the snapshot is there");
}

#[test]
fn a_damaged_or_broken_stream_leaves_nothing() {
    let Some(lab) = Lab::or_skip("a_damaged_or_broken_stream_leaves_nothing") else { return };
    let (a, b) = source(&lab);
    let full = lab.stream(&format!("{a}@1"), None, PLAIN);
    let b1 = format!("{b}@1");
    let broken = errno(lab.receive(&b1, &full[..full.len() / 2]));
    assert_eq!(broken, Errno::ZFS_ERR_STREAM_TRUNCATED);
    let mut damaged = full.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    assert_eq!(errno(lab.receive(&b1, &damaged)), Errno::ECKSUM);
    assert!(!lab.lzc.exists(&b).unwrap());
    let nonsense = noise(4096, 1);
    assert_eq!(errno(lab.receive(&b1, &nonsense)), Errno::EINVAL);
    assert!(!lab.lzc.exists(&b).unwrap());
    lab.receive(&b1, &full).unwrap();
}

#[test]
fn a_receive_that_was_broken_off_goes_on_from_its_token() {
    let test = "a_receive_that_was_broken_off_goes_on_from_its_token";
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    lab.write(&a, "file", 8 << 20);
    let (a1, b) = (format!("{a}@1"), lab.at("b"));
    lab.snapshot(&a1);
    let b1 = format!("{b}@1");
    let full = lab.stream(&a1, None, PLAIN);
    let broken = errno(lab.receive_resumable(&b1, &full[..full.len() / 2]));
    assert_eq!(broken, Errno::ZFS_ERR_STREAM_TRUNCATED);

    let token = lab.token(&b).unwrap();
    assert_eq!(token.to_guid, lab.number(&a1, "guid"));
    assert!(token.compress_ok && !token.raw_ok);
    assert!(lab.lzc.stats(&b).unwrap().unwrap().inconsistent);
    // Another stream is not what it waits for.
    let refused = errno(lab.receive(&b1, &full));
    assert!(
        [Errno::EEXIST, Errno::EBUSY, Errno::ZFS_ERR_RESUME_EXISTS].contains(&refused),
        "{refused}"
    );

    let point = ResumePoint { object: token.object, offset: token.offset, bytes: token.bytes };
    let left = lab.lzc.send_space_resume(&a1, None, PLAIN, point).unwrap();
    assert!(left > 1 << 20 && left < 8 << 20, "{left}");
    let rest = lab.rest(&a1, PLAIN, point);
    assert!(rest.len() < full.len() * 3 / 4, "{} of {}", rest.len(), full.len());
    lab.receive_resumable(&b1, &rest).unwrap();
    assert_eq!(lab.token(&b), None);
    assert!(lab.read(&a, "file") == lab.read(&b, "file"));
    assert_eq!(lab.number(&b1, "guid"), token.to_guid);
}

#[test]
fn a_partial_increment_has_a_token_and_can_be_discarded() {
    let test = "a_partial_increment_has_a_token_and_can_be_discarded";
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    lab.snapshot(&format!("{a}@1"));
    lab.write(&a, "file", 4 << 20);
    lab.snapshot(&format!("{a}@2"));
    let (b, b2) = (lab.at("b"), format!("{}@2", lab.at("b")));
    let full = lab.stream(&format!("{a}@1"), None, PLAIN);
    lab.receive(&format!("{b}@1"), &full).unwrap();
    assert!(!lab.lzc.discard_partial(&b).unwrap(), "there is nothing");
    let step = lab.stream(&format!("{a}@2"), Some(&format!("{a}@1")), PLAIN);
    lab.receive_resumable(&b2, &step[..step.len() / 2]).unwrap_err();
    let token = lab.token(&b).unwrap();
    assert_eq!(token.from_guid, Some(lab.number(&format!("{a}@1"), "guid")));
    assert!(lab.lzc.discard_partial(&b).unwrap());
    assert_eq!(lab.token(&b), None);
    assert!(lab.lzc.exists(&format!("{b}@1")).unwrap());
    lab.receive(&b2, &step).unwrap();
}

#[test]
fn encrypted_data_travel_raw_without_their_key() {
    let Some(lab) = Lab::or_skip("encrypted_data_travel_raw_without_their_key") else { return };
    let (a, b) = (lab.at("a"), lab.at("b"));
    let key = std::env::temp_dir().join(format!("lzc-key-{}", std::process::id()));
    fs::write(&key, [7_u8; 32]).unwrap();
    let location = format!("keylocation=file://{}", key.display());
    let options =
        ["-o", "encryption=on", "-o", "keyformat=raw", "-o", &location, "-o", "canmount=noauto"];
    zfs(&[&["create"], &options[..], &[&a]].concat());
    lab.write(&a, "file", 1 << 20);
    lab.snapshot(&format!("{a}@1"));
    lab.write(&a, "more", 100_000);
    lab.snapshot(&format!("{a}@2"));
    zfs(&["unload-key", &a]);
    let plain = lab.collect(|lzc, to| lzc.send(&format!("{a}@1"), None, to, PLAIN));
    assert_eq!(errno(plain), Errno::EACCES, "not raw, and no key");

    let full = lab.stream(&format!("{a}@1"), None, RAW);
    lab.receive(&format!("{b}@1"), &full).unwrap();
    let step = lab.stream(&format!("{a}@2"), Some(&format!("{a}@1")), RAW);
    // Broken off and resumed, raw as well.
    lab.receive_resumable(&format!("{b}@2"), &step[..step.len() / 2]).unwrap_err();
    let token = lab.token(&b).unwrap();
    assert!(token.raw_ok);
    let point = ResumePoint { object: token.object, offset: token.offset, bytes: token.bytes };
    let (a1, a2) = (format!("{a}@1"), format!("{a}@2"));
    let rest = lab.collect(|lzc, to| lzc.send_resume(&a2, Some(&a1), to, RAW, point)).unwrap();
    lab.receive_resumable(&format!("{b}@2"), &rest).unwrap();
    assert_eq!(lab.number(&b, "keystatus"), 1, "unavailable");
    zfs(&["load-key", "-L", &format!("file://{}", key.display()), &b]);
    zfs(&["load-key", &a]);
    assert!(lab.read(&a, "more") == lab.read(&b, "more"));
    fs::remove_file(&key).unwrap();
}

#[test]
fn a_quota_stops_a_receive_and_a_property_of_the_wrong_type_is_reported() {
    let test = "a_quota_stops_a_receive_and_a_property_of_the_wrong_type_is_reported";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, _) = source(&lab);
    let full = lab.stream(&format!("{a}@1"), None, PLAIN);
    let quota: Properties = [("quota".to_owned(), Setting::Number(400 << 10))].into();
    let small = lab.at("small");
    lab.lzc.create(&small, flocker_lzc::DatasetType::Filesystem, &quota).unwrap();
    let refused = errno(lab.receive(&format!("{small}/b@1"), &full));
    assert!([Errno::EDQUOT, Errno::ENOSPC].contains(&refused), "{refused}");
    assert!(!lab.lzc.exists(&format!("{small}/b")).unwrap());

    let mut wrong = noauto();
    wrong.insert("readonly".to_owned(), Setting::Text("on".to_owned()));
    wrong.insert("test:p".to_owned(), Setting::Text("v".to_owned()));
    let c = lab.at("c");
    let received = lab.receive_with(&format!("{c}@1"), &full, None, &wrong, false).unwrap();
    assert_eq!(received.properties.by_name.keys().collect::<Vec<_>>(), ["readonly"]);
    assert_eq!(lab.number(&c, "canmount"), 2, "noauto");
    assert_eq!(lab.text(&c, "test:p"), "v");
}

#[test]
fn a_clone_is_received_onto_its_origin() {
    let Some(lab) = Lab::or_skip("a_clone_is_received_onto_its_origin") else { return };
    let (a, b) = source(&lab);
    let (clone, first) = (lab.at("clone"), format!("{a}@1"));
    lab.lzc.clone_snapshot(&clone, &first, &noauto()).unwrap();
    lab.write(&clone, "own", 50_000);
    lab.snapshot(&format!("{clone}@1"));
    lab.receive(&format!("{b}@1"), &lab.stream(&first, None, PLAIN)).unwrap();
    let stream = lab.stream(&format!("{clone}@1"), Some(&first), PLAIN);
    let (target, origin) = (lab.at("copy"), format!("{b}@1"));
    lab.receive_with(&format!("{target}@1"), &stream, Some(&origin), &noauto(), false).unwrap();
    assert_eq!(lab.text(&target, "origin"), origin);
    assert!(lab.read(&clone, "own") == lab.read(&target, "own"));
}

#[test]
fn a_send_refuses_what_it_cannot_send_and_ends_when_nobody_reads() {
    let test = "a_send_refuses_what_it_cannot_send_and_ends_when_nobody_reads";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, _) = source(&lab);
    let (first, second) = (format!("{a}@1"), format!("{a}@2"));
    let gone = lab.collect(|lzc, to| lzc.send(&format!("{a}@9"), None, to, PLAIN));
    assert_eq!(errno(gone), Errno::ENOENT);
    let backwards = lab.collect(|lzc, to| lzc.send(&first, Some(&second), to, PLAIN));
    assert_eq!(errno(backwards), Errno::EXDEV);
    let missing = lab.collect(|lzc, to| lzc.send(&first, Some(&format!("{a}#no")), to, PLAIN));
    assert_eq!(errno(missing), Errno::ESRCH);
    assert_eq!(errno(lab.lzc.send_space(&format!("{a}@9"), None, PLAIN)), Errno::ENOENT);
    let file = fs::File::create(std::env::temp_dir().join("lzc-no-pipe")).unwrap();
    let refused = lab.lzc.send(&first, None, &file, PLAIN);
    assert!(matches!(refused, Err(LzcError::Descriptor { .. })));

    let (from, to) = rustix::pipe::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut some = [0; 10_000];
        fs::File::from(from).read_exact(&mut some).unwrap();
    });
    let ended = errno(lab.lzc.send(&first, None, to.as_fd(), PLAIN));
    assert!([Errno::EINTR, Errno::EPIPE].contains(&ended), "{ended}");
    reader.join().unwrap();
}
