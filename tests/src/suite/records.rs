//! Snapshots, holds and bookmarks: in batches, in one transaction, and what keeps them.

use std::collections::BTreeMap;

use flocker_store::{HoldTag, SendBase, SendSpec, SnapshotSpec, StoreError};

use super::{Check, Site, Trouble};
use crate::ensure;

/// The checks.
pub const CHECKS: &[Check] = &[
    ("a group of snapshots is one transaction, or nothing", group),
    ("holds are put on, listed, released, and keep what they hold", holds),
    ("a bookmark stands in for its snapshot as a base", bookmarks),
    ("an inventory of many snapshots is whole and in order, and they go in few commands", many),
    (
        "user properties are local, inherited ones do not count, and one call sets several",
        properties,
    ),
];

fn group(site: &Site) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().atomic_group_snapshot, "group snapshots")?;
    let mut names = Vec::new();
    for leaf in ["a", "b", "c"] {
        names.push(site.filesystem(leaf, &[])?.0.snapshot("g1")?);
    }
    let properties = BTreeMap::from([("flocker-repl:seq".to_owned(), "7".to_owned())]);
    let spec = SnapshotSpec { names: names.clone(), quiesced: false, properties };
    let taken = site.store.snapshot(&spec)?;
    let txgs: Vec<u64> = taken.iter().map(|s| s.createtxg).collect();
    ensure!(txgs.iter().all(|t| *t == txgs[0]), "taken in the transaction groups {txgs:?}");
    let seq = site.get("flocker-repl:seq", &names[0].to_string())?;
    ensure!(seq == "7", "the snapshot's property is {seq}");
    // One name is taken: then none of the others comes to be.
    let mut again: Vec<_> =
        names.iter().map(|n| n.dataset().snapshot("g2")).collect::<Result<_, _>>()?;
    again[2] = names[2].clone();
    let error = site.store.snapshot(&SnapshotSpec { names: again, ..spec }).err();
    ensure!(matches!(error, Some(StoreError::Exists { .. })), "{error:?}");
    for name in &names {
        let found = site.inventory(name.dataset())?.snapshots.len();
        ensure!(found == 1, "{} has {found} snapshots after a group that failed", name.dataset());
    }
    Ok(String::new())
}

fn holds(site: &Site) -> Result<String, Trouble> {
    let (a, _) = site.filesystem("a", &[])?;
    let mut names = Vec::new();
    for short in ["s1", "s2", "s3"] {
        names.push(site.snapshot(&a, short)?.name);
    }
    let (ours, other) = (HoldTag("flocker-repl:p1:e1".into()), HoldTag("keep-me".into()));
    site.store.hold(&ours, &names[..2])?;
    site.store.hold(&ours, &names[..2])?;
    site.store.hold(&other, &names[1..2])?;
    let mut tags = site.store.holds(&names[1])?;
    tags.sort();
    ensure!(tags == [ours.clone(), other.clone()], "{tags:?}");
    ensure!(site.inventory(&a)?.snapshots[1].holds == 2, "{:?}", site.inventory(&a)?);
    let kept = site.store.destroy_snapshots(&names).err();
    let Some(StoreError::Kept { by, .. }) = &kept else { return Err(format!("{kept:?}").into()) };
    ensure!(by.contains("flocker-repl:p1:e1") || by.contains("keep-me"), "kept by {by}");
    let left: Vec<String> =
        site.inventory(&a)?.snapshots.iter().map(|s| s.name.short().to_owned()).collect();
    ensure!(left == ["s1", "s2"], "{left:?} are left");
    site.store.release(&ours, &names)?;
    site.store.release(&ours, &names[..2])?;
    site.store.release(&other, &names[1..2])?;
    site.store.destroy_snapshots(&names)?;
    ensure!(site.inventory(&a)?.snapshots.is_empty(), "some are left");
    Ok(String::new())
}

fn bookmarks(site: &Site) -> Result<String, Trouble> {
    site.needs(site.store.capabilities().bookmarks, "bookmarks")?;
    let (a, path) = site.filesystem("a", &[])?;
    let base = site.snapshot(&a, "s1")?;
    let b = site.at("b");
    site.step(&base, &b, false)?;
    let bookmark: flocker_store::BookmarkName = format!("{a}#b1").parse()?;
    site.store.bookmark(&base.name, &bookmark)?;
    let again = site.store.bookmark(&base.name, &bookmark).err();
    ensure!(
        again.is_none() || matches!(again, Some(StoreError::Exists { .. })),
        "made twice: {again:?}"
    );
    site.store.destroy_snapshots(std::slice::from_ref(&base.name))?;
    std::fs::write(path.join("f"), "x")?;
    let target = site.snapshot(&a, "s2")?;
    let found = site.inventory(&a)?.bookmarks;
    ensure!(found.len() == 1 && found[0].guid == base.guid, "{found:?}");
    let from = Some(SendBase::Bookmark(bookmark.clone()));
    let send = SendSpec { from, ..site.send_spec(None, &target, false) };
    site.pass(&send, &site.receive_spec(Some(base.guid), &target, &b)?)?;
    site.store.destroy_bookmarks(std::slice::from_ref(&bookmark))?;
    site.store.destroy_bookmarks(std::slice::from_ref(&bookmark))?;
    ensure!(site.inventory(&a)?.bookmarks.is_empty(), "the bookmark is still there");
    Ok(String::new())
}

fn many(site: &Site) -> Result<String, Trouble> {
    let (a, _) = site.filesystem("a", &[])?;
    // More than are destroyed in one command. One dataset has one snapshot in a transaction.
    site.shell(&format!("for n in $(seq 1000 1149); do zfs snapshot {a}@s$n; done"))?;
    let found = site.inventory(&a)?.snapshots;
    ensure!(found.len() == 150, "{} snapshots", found.len());
    let ordered =
        found.windows(2).all(|w| (w[0].createtxg, &w[0].name) < (w[1].createtxg, &w[1].name));
    ensure!(ordered, "not in order");
    let names: Vec<_> = found.into_iter().map(|s| s.name).collect();
    site.store.destroy_snapshots(&names)?;
    let left = site.inventory(&a)?.snapshots.len();
    ensure!(left == 0, "{left} are left");
    Ok(String::new())
}

fn properties(site: &Site) -> Result<String, Trouble> {
    let (a, _) = site.filesystem("a", &[])?;
    let changes: BTreeMap<String, Option<String>> = [("id", "1"), ("note", "with space, ü and =")]
        .map(|(name, value)| (format!("flocker-repl:{name}"), Some(value.to_owned())))
        .into();
    site.store.set_user_properties(&a, &changes)?;
    let child = site.filesystem("a/child", &[])?.0;
    let of = site.store.user_properties(&a)?;
    let below = site.store.user_properties(&child)?;
    let note = &of["flocker-repl:note"];
    ensure!(note.value == "with space, ü and =", "{note:?}");
    ensure!(note.source == flocker_store::PropertySource::Local, "{note:?}");
    let inherited = &below["flocker-repl:id"];
    ensure!(inherited.source == flocker_store::PropertySource::Inherited, "{inherited:?}");
    site.store.set_user_properties(&a, &BTreeMap::from([("flocker-repl:id".into(), None)]))?;
    ensure!(!site.store.user_properties(&a)?.contains_key("flocker-repl:id"), "it is still there");
    Ok(String::new())
}
