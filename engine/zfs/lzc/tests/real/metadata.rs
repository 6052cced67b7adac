//! Snapshots, bookmarks, holds, whole datasets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flocker_lzc::{DatasetType, Errno, Function, LzcError, NameProblem, Properties, Setting};

use crate::lab::{Lab, errno, names, noauto, zfs};

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into()
}

#[test]
fn a_library_of_today_offers_every_function() {
    let Some(lab) = Lab::or_skip("a_library_of_today_offers_every_function") else { return };
    for function in Function::ALL {
        assert!(lab.lzc.offers(*function), "{}", function.name());
    }
}

#[test]
fn snapshots_of_one_call_are_one_moment_or_none() {
    let Some(lab) = Lab::or_skip("snapshots_of_one_call_are_one_moment_or_none") else { return };
    let (a, b) = (lab.filesystem("a"), lab.filesystem("b"));
    let (a1, b1) = (format!("{a}@1"), format!("{b}@1"));
    let properties = pairs([("flocker-repl:epoch", "7")]);
    lab.lzc.snapshot(&[&a1, &b1], &properties).unwrap();
    assert_eq!(lab.number(&a1, "createtxg"), lab.number(&b1, "createtxg"));
    assert_eq!(lab.text(&b1, "flocker-repl:epoch"), "7");
    assert_eq!(zfs(&["get", "-Hpo", "value", "guid", &a1]), lab.number(&a1, "guid").to_string());

    let (a2, missing) = (format!("{a}@2"), format!("{}@2", lab.at("missing")));
    let taken = lab.lzc.snapshot(&[&a2, &b1], &none());
    assert_eq!(names(taken), [(b1.clone(), Errno::EEXIST)]);
    let refused = lab.lzc.snapshot(&[&a2, &missing], &none());
    assert_eq!(errno(refused), Errno::ENOENT);
    assert!(!lab.lzc.exists(&a2).unwrap(), "all or none");
    lab.lzc.snapshot::<&str>(&[], &none()).unwrap();

    let elsewhere = lab.lzc.snapshot(&[a2.as_str(), "another-pool@2"], &none());
    assert!(matches!(elsewhere, Err(LzcError::Pools { .. })));
    let long = format!("{a}@{}", "x".repeat(256));
    let cut = lab.lzc.snapshot(&[&long], &none());
    assert!(matches!(cut, Err(LzcError::Name { problem: NameProblem::TooLong, .. })));

    lab.lzc.destroy_snapshots(&[&a1, &a2], false).unwrap();
    assert!(!lab.lzc.exists(&a1).unwrap() && lab.lzc.exists(&b1).unwrap());
}

#[test]
fn a_hold_keeps_a_snapshot_and_what_is_not_there_is_passed_over() {
    let test = "a_hold_keeps_a_snapshot_and_what_is_not_there_is_passed_over";
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    let (a1, a2, a9) = (format!("{a}@1"), format!("{a}@2"), format!("{a}@9"));
    lab.snapshot(&a1);
    lab.snapshot(&a2);
    let passed = lab.lzc.hold(&pairs([(&a1, "tag"), (&a9, "tag")])).unwrap();
    assert_eq!(passed.by_name.into_iter().collect::<Vec<_>>(), [(a9.clone(), Errno::ENOENT)]);
    lab.lzc.hold(&pairs([(&a1, "other")])).unwrap();
    let holds = lab.lzc.holds(&a1).unwrap();
    assert_eq!(holds.keys().map(String::as_str).collect::<Vec<_>>(), ["other", "tag"]);
    assert!(holds["tag"] > 1_700_000_000);
    assert_eq!(lab.number(&a1, "userrefs"), 2);
    assert_eq!(errno(lab.lzc.holds(&a9)), Errno::ENOENT);

    // One that has the tag keeps the other from getting it.
    let again = lab.lzc.hold(&pairs([(&a1, "tag"), (&a2, "tag")]));
    assert_eq!(names(again), [(a1.clone(), Errno::EEXIST)]);
    assert!(lab.lzc.holds(&a2).unwrap().is_empty());

    let kept = lab.lzc.destroy_snapshots(&[&a1, &a2], false);
    assert_eq!(names(kept), [(a1.clone(), Errno::EBUSY)]);
    assert!(lab.lzc.exists(&a2).unwrap(), "all or none");

    let release = |name: &String, tags: &[&str]| {
        let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        lab.lzc.release(&[(name.clone(), tags)].into()).unwrap().by_name
    };
    let passed = release(&a1, &["tag", "never"]);
    assert_eq!(passed.into_iter().collect::<Vec<_>>(), [(format!("{a1}#never"), Errno::ENOENT)]);
    assert_eq!(release(&a9, &["tag"]).into_values().collect::<Vec<_>>(), [Errno::ENOENT]);

    lab.lzc.destroy_snapshots(&[&a1], true).unwrap();
    assert!(lab.lzc.exists(&a1).unwrap(), "held, so only marked");
    assert!(release(&a1, &["other"]).is_empty());
    assert!(!lab.lzc.exists(&a1).unwrap(), "gone with its last hold");
}

#[test]
fn a_bookmark_keeps_the_place_of_its_snapshot() {
    let Some(lab) = Lab::or_skip("a_bookmark_keeps_the_place_of_its_snapshot") else { return };
    let a = lab.filesystem("a");
    let (snapshot, mark, copy) = (format!("{a}@1"), format!("{a}#m"), format!("{a}#copy"));
    lab.snapshot(&snapshot);
    assert!(lab.lzc.bookmarks(&a).unwrap().is_empty());
    lab.lzc.bookmark(&pairs([(&mark, &snapshot)])).unwrap();
    lab.lzc.bookmark(&pairs([(&copy, &mark)])).unwrap();
    let found = lab.lzc.bookmarks(&a).unwrap();
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["copy", "m"]);
    assert_eq!(found["m"], found["copy"]);
    assert_eq!(found["m"].guid, lab.number(&snapshot, "guid"));
    assert_eq!(found["m"].createtxg, lab.number(&snapshot, "createtxg"));
    assert_eq!(found["m"].creation_unix_s, lab.number(&snapshot, "creation"));

    let taken = lab.lzc.bookmark(&pairs([(&mark, &copy), (&format!("{a}#new"), &snapshot)]));
    assert_eq!(errno(taken), Errno::EEXIST);
    let gone = lab.lzc.bookmark(&pairs([(&format!("{a}#new"), &format!("{a}@9"))]));
    assert_eq!(errno(gone), Errno::ENOENT);
    assert_eq!(lab.lzc.bookmarks(&a).unwrap().len(), 2, "all or none");

    lab.lzc.destroy_bookmarks(&[&mark, &format!("{a}#never")]).unwrap();
    assert_eq!(lab.lzc.bookmarks(&a).unwrap().len(), 1);
    assert_eq!(errno(lab.lzc.bookmarks(&lab.at("missing"))), Errno::ENOENT);
}

#[test]
fn datasets_are_made_unmounted_cloned_promoted_renamed_and_destroyed() {
    let test = "datasets_are_made_unmounted_cloned_promoted_renamed_and_destroyed";
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    assert_eq!(zfs(&["get", "-Ho", "value", "mounted", &a]), "no");
    assert_eq!(zfs(&["get", "-Ho", "value,source", "canmount", &a]), "noauto\tlocal");
    let again = lab.lzc.create(&a, DatasetType::Filesystem, &noauto());
    assert_eq!(errno(again), Errno::EEXIST);
    let orphan = lab.lzc.create(&lab.at("x/y"), DatasetType::Filesystem, &noauto());
    assert_eq!(errno(orphan), Errno::ENOENT);
    let wrong: Properties = [("canmount".to_owned(), Setting::Text("noauto".to_owned()))].into();
    let refused = lab.lzc.create(&lab.at("x"), DatasetType::Filesystem, &wrong);
    assert_eq!(errno(refused), Errno::EINVAL, "an index is no text");

    let volume = lab.at("v");
    let bytes = |n| Setting::Number(n);
    let size: Properties =
        [("volsize".to_owned(), bytes(8 << 20)), ("volblocksize".to_owned(), bytes(16 << 10))]
            .into();
    lab.lzc.create(&volume, DatasetType::Volume, &size).unwrap();
    assert_eq!(lab.number(&volume, "volsize"), 8 << 20);
    // udev looks at it for a moment.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = lab.lzc.destroy(&volume) {
        assert_eq!(error.errno(), Some(Errno::EBUSY));
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }

    let (snapshot, clone) = (format!("{a}@1"), lab.at("clone"));
    lab.snapshot(&snapshot);
    lab.lzc.clone_snapshot(&clone, &snapshot, &noauto()).unwrap();
    assert_eq!(lab.text(&clone, "origin"), snapshot);
    let kept = lab.lzc.destroy_snapshots(&[&snapshot], false);
    assert_eq!(names(kept), [(snapshot.clone(), Errno::EEXIST)]);
    assert_eq!(errno(lab.lzc.destroy(&a)), Errno::EBUSY, "it has a snapshot");

    assert_eq!(errno(lab.lzc.destroy(&lab.root)), Errno::EEXIST, "it has children");

    // A name on both sides is in the way of a promotion, and is told.
    lab.snapshot(&format!("{a}@0"));
    lab.lzc.rename(&format!("{a}@0"), &format!("{a}@both")).unwrap();
    lab.snapshot(&format!("{clone}@both"));
    lab.lzc.promote(&clone).unwrap();
    assert!(lab.lzc.exists(&format!("{clone}@1")).unwrap(), "the origin's snapshot came along");
    lab.snapshot(&format!("{a}@x"));
    lab.snapshot(&format!("{clone}@x"));
    assert_eq!(errno(lab.lzc.promote(&clone)), Errno::EINVAL, "no clone any more");

    let moved = lab.at("moved");
    lab.lzc.rename(&clone, &moved).unwrap();
    assert_eq!(errno(lab.lzc.rename(&clone, &moved)), Errno::ENOENT);
    assert_eq!(errno(lab.lzc.rename(&a, &moved)), Errno::EEXIST);
    lab.mounted(&a, |_| {
        let names: Vec<_> = ["both", "x"].map(|s| format!("{a}@{s}")).into();
        lab.lzc.destroy_snapshots(&names, false).unwrap();
        assert_eq!(errno(lab.lzc.destroy(&a)), Errno::EBUSY, "mounted");
    });
    lab.lzc.destroy(&a).unwrap();
    assert_eq!(errno(lab.lzc.destroy(&a)), Errno::ENOENT);
    assert!(matches!(lab.lzc.destroy(lab.pool()), Err(LzcError::Name { .. })));
}

#[test]
fn a_promotion_names_the_snapshot_in_its_way() {
    let Some(lab) = Lab::or_skip("a_promotion_names_the_snapshot_in_its_way") else { return };
    let (a, clone) = (lab.filesystem("a"), lab.at("clone"));
    lab.snapshot(&format!("{a}@both"));
    lab.snapshot(&format!("{a}@origin"));
    lab.lzc.clone_snapshot(&clone, &format!("{a}@origin"), &noauto()).unwrap();
    lab.snapshot(&format!("{clone}@both"));
    let refused = lab.lzc.promote(&clone);
    assert_eq!(names(refused), [("both".to_owned(), Errno::EEXIST)]);
    lab.lzc.destroy_snapshots(&[format!("{clone}@both")], false).unwrap();
    lab.lzc.promote(&clone).unwrap();
    assert_eq!(lab.text(&a, "origin"), format!("{clone}@origin"));
}

#[test]
fn a_rollback_goes_to_the_newest_snapshot_only() {
    let Some(lab) = Lab::or_skip("a_rollback_goes_to_the_newest_snapshot_only") else { return };
    let a = lab.filesystem("a");
    let (first, second) = (format!("{a}@1"), format!("{a}@2"));
    lab.write(&a, "file", 1000);
    lab.snapshot(&first);
    lab.write(&a, "later", 1000);
    lab.lzc.sync(lab.pool()).unwrap();
    assert!(lab.lzc.written_since(&a, &first).unwrap() > 0);
    lab.lzc.rollback_to(&a, &first).unwrap();
    let names = lab.mounted(&a, |path| std::fs::read_dir(path).unwrap().count());
    assert_eq!(names, 1);

    lab.snapshot(&second);
    assert_eq!(errno(lab.lzc.rollback_to(&a, &first)), Errno::EEXIST);
    assert!(lab.lzc.exists(&second).unwrap());
    assert_eq!(errno(lab.lzc.rollback_to(&a, &format!("{a}@9"))), Errno::ESRCH);
    lab.lzc.destroy_snapshots(&[&second], false).unwrap();
    // A bookmark is in the way, too.
    lab.snapshot(&second);
    lab.lzc.bookmark(&pairs([(&format!("{a}#m"), &second)])).unwrap();
    lab.lzc.destroy_snapshots(&[&second], false).unwrap();
    assert_eq!(errno(lab.lzc.rollback_to(&a, &first)), Errno::EEXIST);
    assert_eq!(errno(lab.lzc.sync("no-such-pool")), Errno::ENOENT);
}
