//! Inventories, properties, and user properties set.

use std::collections::BTreeMap;

use flocker_lzc::{Errno, LzcError, ObjsetType, PropertySource, PropertyValue, UserChange};

use crate::lab::{Lab, errno, names, zfs};

/// Snapshots of the large inventory, unless `FLOCKER_LZC_MANY` says otherwise; each takes a transaction group to
/// make.
const MANY: usize = 100;

#[test]
fn an_inventory_says_what_the_command_says() {
    let Some(lab) = Lab::or_skip("an_inventory_says_what_the_command_says") else { return };
    let a = lab.filesystem("a");
    assert_eq!(lab.lzc.inventory(&a).unwrap(), flocker_lzc::Inventory::default());
    for name in ["b", "a", "true", "1", "autosnap_2026-01-01_00:00:00_daily"] {
        lab.snapshot(&format!("{a}@{name}"));
    }
    lab.lzc.hold(&[(format!("{a}@a"), "tag".to_owned())].into()).unwrap();
    lab.lzc.bookmark(&[(format!("{a}#m"), format!("{a}@b"))].into()).unwrap();
    // More than fits into the first answer.
    let large = "x".repeat(8000);
    for property in ["test:1", "test:2", "test:3"] {
        let change = UserChange { dataset: &a, property, value: Some(&large) };
        lab.lzc.change_user_properties(&[change]).unwrap();
    }
    let inventory = lab.lzc.inventory(&a).unwrap();
    let told: Vec<String> = inventory
        .snapshots
        .iter()
        .map(|s| {
            let (guid, txg) = (s.guid, s.createtxg);
            format!("{a}@{}\t{guid}\t{txg}\t{}\t{}", s.name, s.creation_unix_s, s.userrefs)
        })
        .collect();
    let columns = "name,guid,createtxg,creation,userrefs";
    let command = zfs(&["list", "-Hpt", "snapshot", "-s", "createtxg", "-o", columns, &a]);
    assert_eq!(told, command.lines().collect::<Vec<_>>());
    assert_eq!(inventory.bookmarks["m"].guid, inventory.snapshots[0].guid);
    assert_eq!(inventory.resume_token, None);
    assert_eq!(errno(lab.lzc.inventory(&lab.at("missing"))), Errno::ENOENT);
    assert_eq!(errno(lab.lzc.inventory("no-such-pool/a")), Errno::ENOENT);
    let newest = lab.lzc.stats(&a).unwrap().unwrap();
    assert_eq!(
        newest.newest_snapshot(),
        Some(format!("{a}@{}", inventory.snapshots[4].name).as_str())
    );
    assert_eq!(newest.text("test:2"), Some(large.as_str()));
    assert_eq!(
        lab.lzc.find_snapshot(&format!("{a}@a")).unwrap(),
        Some(inventory.snapshots[1].clone())
    );
    assert_eq!(lab.lzc.find_snapshot(&format!("{a}@9")).unwrap(), None);
    assert_eq!(lab.lzc.find_snapshot("no-such-pool/a@9").unwrap(), None);
}

#[test]
fn an_inventory_of_many_snapshots_is_whole() {
    let Some(lab) = Lab::or_skip("an_inventory_of_many_snapshots_is_whole") else { return };
    let many = std::env::var("FLOCKER_LZC_MANY").map_or(MANY, |n| n.parse().unwrap());
    let a = lab.filesystem("a");
    for n in 0..many {
        lab.snapshot(&format!("{a}@flocker_0123456789abcdef_00000001_{n:08}"));
    }
    let start = std::time::Instant::now();
    let inventory = lab.lzc.inventory(&a).unwrap();
    eprintln!("{many} snapshots in {:?}", start.elapsed());
    assert_eq!(inventory.snapshots.len(), many);
    assert!(inventory.snapshots.windows(2).all(|w| w[0].createtxg < w[1].createtxg));
    assert!(inventory.snapshots.windows(2).all(|w| w[0].name < w[1].name));
}

/// A poll that is logged dirties an idle pool, and pushes what people look for out of the history's ring.
#[test]
fn nothing_that_reads_is_in_the_history() {
    let Some(lab) = Lab::or_skip("nothing_that_reads_is_in_the_history") else { return };
    let a = lab.filesystem("a");
    let first = format!("{a}@1");
    lab.snapshot(&first);
    let logged = || {
        let words = ["history", "-il", lab.pool()];
        let done = std::process::Command::new("zpool").args(words).output().unwrap();
        String::from_utf8_lossy(&done.stdout).lines().filter(|line| line.contains(&a)).count()
    };
    lab.lzc.sync(lab.pool()).unwrap();
    let before = logged();
    assert!(before > 0, "making them is");
    for _ in 0..3 {
        lab.lzc.bookmarks(&a).unwrap();
        lab.lzc.holds(&first).unwrap();
        lab.lzc.exists(&a).unwrap();
        lab.lzc.inventory(&a).unwrap();
        lab.lzc.stats(&a).unwrap();
        lab.lzc.written_since(&a, &first).unwrap();
        lab.lzc.send_space(&first, None, flocker_lzc::SendFlags::default()).unwrap();
    }
    lab.lzc.sync(lab.pool()).unwrap();
    assert_eq!(logged(), before);
}

#[test]
fn a_property_comes_with_its_source() {
    let Some(lab) = Lab::or_skip("a_property_comes_with_its_source") else { return };
    let (a, child) = (lab.filesystem("a"), lab.filesystem("a/child"));
    let snapshot = format!("{child}@1");
    lab.snapshot(&snapshot);
    let set = |dataset, property, value| UserChange { dataset, property, value };
    lab.lzc.change_user_properties(&[set(&a, "test:inherited", Some("yes"))]).unwrap();
    assert_eq!(lab.lzc.stats(&lab.at("missing")).unwrap(), None);
    assert_eq!(lab.number(&snapshot, "userrefs"), 0);
    let of = lab.lzc.stats(&child).unwrap().unwrap();
    let has = |name: &str| {
        let property = &of.properties[name];
        (property.value.clone(), property.source.clone())
    };
    assert_eq!(has("canmount"), (PropertyValue::Number(2), PropertySource::Local), "noauto");
    let yes = PropertyValue::Text("yes".to_owned());
    assert_eq!(has("test:inherited"), (yes, PropertySource::Inherited(a.clone())));
    assert_eq!(has("guid").1, PropertySource::None);
    let guid = zfs(&["get", "-Hpo", "value", "guid", &child]);
    assert_eq!(has("guid").0.number().unwrap().to_string(), guid);
    assert_eq!(of.guid.to_string(), guid);
    for absent in ["test:none", "volsize", "recordsize"] {
        assert!(!of.properties.contains_key(absent), "it has not, or has its default");
    }

    let clones = lab.at("clone");
    lab.lzc.clone_snapshot(&clones, &snapshot, &crate::lab::noauto()).unwrap();
    let clone = lab.lzc.stats(&clones).unwrap().unwrap();
    assert_eq!(clone.text("origin"), Some(snapshot.as_str()));
    assert_eq!((clone.objset_type, of.text("origin")), (ObjsetType::Filesystem, None));
    zfs(&["create", "-V", "1M", &lab.at("volume")]);
    let volume = lab.lzc.stats(&lab.at("volume")).unwrap().unwrap();
    assert_eq!(volume.objset_type, ObjsetType::Zvol);
    let value = lab.property(&snapshot, "clones").unwrap().value;
    assert_eq!(value, PropertyValue::Names(vec![clones]));
    assert_eq!(lab.lzc.stats(&snapshot).unwrap().unwrap().clones, 1);
}

#[test]
fn user_properties_of_many_are_changed_at_once() {
    let test = "user_properties_of_many_are_changed_at_once";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, b) = (lab.filesystem("a"), lab.filesystem("b"));
    let set = |dataset, property, value| UserChange { dataset, property, value };
    let strange = "ü \"quoted\" \\ \n% ]]";
    lab.lzc
        .change_user_properties(&[
            set(&lab.root, "flocker-repl:root", Some("r")),
            set(&a, "flocker-repl:id", Some(strange)),
            set(&b, "flocker-repl:id", Some("")),
            set(&b, "flocker-repl:gone", Some("x")),
        ])
        .unwrap();
    assert_eq!(zfs(&["get", "-Ho", "source", "flocker-repl:id", &a]), "local");
    lab.lzc
        .change_user_properties(&[
            set(&b, "flocker-repl:gone", None),
            set(&b, "flocker-repl:never", None),
            set(&a, "flocker-repl:root", Some("own")),
        ])
        .unwrap();
    let told = |dataset: &String| -> BTreeMap<String, (String, PropertySource)> {
        let all = lab.lzc.stats(dataset).unwrap().unwrap().properties.into_iter();
        all.filter(|(name, _)| name.contains(':'))
            .map(|(n, p)| (n, (p.value.text().unwrap().to_owned(), p.source)))
            .collect()
    };
    let (of_a, of_b) = (told(&a), told(&b));
    assert_eq!(of_a["flocker-repl:id"], (strange.to_owned(), PropertySource::Local));
    assert_eq!(of_a["flocker-repl:root"], ("own".to_owned(), PropertySource::Local));
    assert_eq!(of_b["flocker-repl:id"], (String::new(), PropertySource::Local));
    let inherited = PropertySource::Inherited(lab.root.clone());
    assert_eq!(of_b["flocker-repl:root"], ("r".to_owned(), inherited));
    assert!(!of_b.contains_key("flocker-repl:gone"));
    lab.lzc.change_user_properties(&[]).unwrap();
}

/// The kernel panics when a channel program lets a user property of a dataset that is not there be inherited.
#[test]
fn a_change_of_what_is_not_there_changes_nothing_and_panics_nobody() {
    let test = "a_change_of_what_is_not_there_changes_nothing_and_panics_nobody";
    let Some(lab) = Lab::or_skip(test) else { return };
    let a = lab.filesystem("a");
    let missing = lab.at("missing");
    for value in [None, Some("v")] {
        let refused = lab.lzc.change_user_properties(&[
            UserChange { dataset: &a, property: "test:p", value: Some("v") },
            UserChange { dataset: &missing, property: "test:p", value },
        ]);
        assert_eq!(names(refused), [(format!("{missing} test:p"), Errno::ENOENT)]);
    }
    assert_eq!(lab.property(&a, "test:p"), None, "all or none");
    let change = UserChange { dataset: &a, property: "mountpoint", value: None };
    assert!(matches!(lab.lzc.change_user_properties(&[change]), Err(LzcError::Name { .. })));
}

#[test]
fn written_is_of_one_dataset_since_one_of_its_snapshots() {
    let test = "written_is_of_one_dataset_since_one_of_its_snapshots";
    let Some(lab) = Lab::or_skip(test) else { return };
    let (a, b) = (lab.filesystem("a"), lab.filesystem("b"));
    let (snapshot, other) = (format!("{a}@1"), format!("{b}@1"));
    lab.snapshot(&snapshot);
    lab.snapshot(&other);
    assert_eq!(lab.lzc.written_since(&a, &snapshot).unwrap(), 0);
    lab.write(&a, "file", 1 << 20);
    lab.lzc.sync(lab.pool()).unwrap();
    let written = lab.lzc.written_since(&a, &snapshot).unwrap();
    assert!(written > 1 << 20, "{written}");
    assert_eq!(zfs(&["get", "-Hpo", "value", "written@1", &a]), written.to_string());
    assert_eq!(errno(lab.lzc.written_since(&a, &format!("{a}@9"))), Errno::ENOENT);
    assert_eq!(errno(lab.lzc.written_since(&lab.at("missing"), &snapshot)), Errno::ENOENT);
    assert!(lab.lzc.written_since(&a, &other).is_err(), "a snapshot of another dataset");
}
