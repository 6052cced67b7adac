//! `holds`: what is held and kept in the store, beside what the units account for; releasing what nobody does.
//!
//! Owns: which holds are stale. Only tags that begin as ours do, of a unit that this node's journal does not
//! know, on a dataset that does not claim to belong to that unit (a journal may have been lost, and come
//! back). Releasing is all that is done: no snapshot is destroyed, and nobody else's tag is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flocker_core::node::{SNAPSHOT_PREFIX, TAG_PREFIX, UnitAccount};
use flocker_core::{Failure, FailureCode};
use flocker_store::{DatasetInfo, Guid, HoldTag, SnapshotName, Store, StoreError};

use super::requests::{Api, blocking};
use super::{End, refused};
use crate::api::{Answer, HoldsView, KeptView};
use crate::mirror;

/// Answers the request.
pub(super) async fn holds(api: &Arc<Api>, name: Option<String>, collect: bool) -> End {
    let accounts = api.accounts().await?;
    if let Some(name) = &name
        && !accounts.iter().any(|a| a.name == *name)
    {
        let text =
            format!("there is no unit `{name}` on this node: `flocker-repl status` lists them");
        return Err(refused(FailureCode::NotFound, text));
    }
    let tools = Arc::clone(&api.tools);
    blocking(move || {
        let view = look(tools.store.as_ref(), &accounts, name.as_deref(), collect);
        view.map(Answer::Holds).map_err(|e| Failure::from(&e))
    })
    .await
}

/// The short form of the unit's id in one of our tags or names.
fn unit_of_tag(tag: &str) -> Option<&str> {
    tag.strip_prefix(TAG_PREFIX)
}

fn unit_of_name(short: &str) -> Option<&str> {
    short.strip_prefix(SNAPSHOT_PREFIX)?.split_once('_').map(|(unit, _)| unit)
}

/// What is kept; with `collect` without what nobody accounts for, which is released.
pub(super) fn look(
    store: &dyn Store,
    accounts: &[UnitAccount],
    only: Option<&str>,
    collect: bool,
) -> Result<HoldsView, StoreError> {
    let mut view = HoldsView::default();
    let mut stale: BTreeMap<String, Vec<SnapshotName>> = BTreeMap::new();
    for info in store.datasets()? {
        let account = accounts.iter().find(|a| a.volumes.iter().any(|v| v.dataset == info.name));
        if only.is_some() && account.map(|a| a.name.as_str()) != only {
            continue;
        }
        match look_at(store, &info, account, accounts, &mut stale) {
            Ok(kept) => view.kept.extend(kept),
            // Gone since it was listed.
            Err(StoreError::NoDataset { .. } | StoreError::NoSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if collect {
        for (tag, names) in stale {
            store.release(&HoldTag(tag.clone()), &names)?;
            for name in names {
                let full = name.to_string();
                tracing::info!(snapshot = %full, tag, "a hold that no unit accounts for is released");
                for kept in view.kept.iter_mut().filter(|k| k.name == full) {
                    kept.tags.retain(|t| *t != tag);
                }
                view.released.push((full, tag.clone()));
            }
        }
    }
    Ok(view)
}

fn look_at(
    store: &dyn Store,
    info: &DatasetInfo,
    account: Option<&UnitAccount>,
    accounts: &[UnitAccount],
    stale: &mut BTreeMap<String, Vec<SnapshotName>>,
) -> Result<Vec<KeptView>, StoreError> {
    let claimed = mirror::read(store, info)?.map(|m| m.unit.short());
    let mut known: BTreeSet<String> = accounts.iter().map(|a| a.unit.short()).collect();
    known.extend(claimed);
    let unknown = |unit: Option<&str>| unit.is_some_and(|unit| !known.contains(unit));
    let reasons = account.and_then(|a| a.volumes.iter().find(|v| v.dataset == info.name));
    let why = |guid: Guid| -> Vec<String> {
        let all = reasons.iter().flat_map(|v| &v.reasons);
        let mut why: Vec<_> = all.filter(|(g, _)| *g == guid).map(|(_, w)| w.clone()).collect();
        why.dedup();
        why
    };
    let unit = account.map(|a| a.name.clone());
    let inventory = store.inventory(&info.name)?;
    let mut kept = Vec::new();
    for snapshot in inventory.snapshots {
        let short = snapshot.name.short().to_owned();
        let ours = short.starts_with(SNAPSHOT_PREFIX);
        if !ours && snapshot.holds == 0 {
            continue;
        }
        let tags = if snapshot.holds > 0 { store.holds(&snapshot.name)? } else { Vec::new() };
        let (tags, foreign_tags): (Vec<String>, Vec<String>) =
            tags.into_iter().map(|t| t.0).partition(|t| t.starts_with(TAG_PREFIX));
        for tag in tags.iter().filter(|t| unknown(unit_of_tag(t))) {
            stale.entry(tag.clone()).or_default().push(snapshot.name.clone());
        }
        let held_for_nobody = tags.iter().any(|t| unknown(unit_of_tag(t)));
        kept.push(KeptView {
            unit: unit.clone(),
            name: snapshot.name.to_string(),
            taken_unix_s: Some(snapshot.creation_unix_s),
            why: why(snapshot.guid),
            stale: held_for_nobody || unknown(unit_of_name(&short)),
            tags,
            foreign_tags,
        });
    }
    let bookmarks = inventory.bookmarks.into_iter().filter_map(|bookmark| {
        let name = bookmark.name.to_string();
        let short = name.rsplit_once('#').map(|(_, short)| short.to_owned())?;
        short.starts_with(SNAPSHOT_PREFIX).then(|| KeptView {
            unit: unit.clone(),
            stale: unknown(unit_of_name(&short)),
            name,
            taken_unix_s: None,
            tags: Vec::new(),
            foreign_tags: Vec::new(),
            why: why(bookmark.guid),
        })
    });
    kept.extend(bookmarks);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_core::ids::UnitId;
    use flocker_core::node::VolumeAccount;
    use flocker_store::{DatasetKind, DatasetName, SnapshotSpec};
    use flocker_vault::Vault;

    #[test]
    fn what_nobody_accounts_for_is_marked_and_only_that_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(dir.path().join("vault")).unwrap();
        let dataset = DatasetName::new("vault/db").unwrap();
        vault.create(&dataset, DatasetKind::Directory).unwrap();
        let unit = UnitId(0xabcd_ef01 << 96);
        let (known, gone) = (unit.short(), "01234567");
        let name = |unit: &str| dataset.snapshot(&format!("flocker_{unit}_e1_000001")).unwrap();
        for name in [name(&known), name(gone), dataset.snapshot("mine").unwrap()] {
            let spec =
                SnapshotSpec { names: vec![name], quiesced: true, properties: Default::default() };
            vault.snapshot(&spec).unwrap();
        }
        let tag = |text: &str| HoldTag(text.to_owned());
        let ours = tag(&format!("flocker-repl:{known}"));
        let stale = tag(&format!("flocker-repl:{gone}"));
        let foreign = tag("backup");
        for tag in [&ours, &stale, &foreign] {
            vault.hold(tag, &[name(&known)]).unwrap();
        }
        vault.hold(&foreign, &[dataset.snapshot("mine").unwrap()]).unwrap();
        let guid = vault.inventory(&dataset).unwrap().snapshots[0].guid;
        let volumes = vec![VolumeAccount {
            joining: false,
            dataset: dataset.clone(),
            reasons: vec![(guid, "base of b".into())],
        }];
        let (account, prefix) = ("db".to_owned(), format!("flocker_{known}_"));
        let accounts = [UnitAccount { unit, name: account, tag: ours.clone(), prefix, volumes }];
        let view = look(&vault, &accounts, None, false).unwrap();
        assert_eq!(view.kept.len(), 3);
        assert_eq!(view.kept[0].why, ["base of b"]);
        assert_eq!(
            (view.kept[0].stale, view.kept[1].stale, view.kept[2].stale),
            (true, true, false)
        );
        assert_eq!(view.kept[2].foreign_tags, ["backup"]);
        assert_eq!(vault.holds(&name(&known)).unwrap().len(), 3, "it was only looked at");
        let view = look(&vault, &accounts, None, true).unwrap();
        assert_eq!(view.released, [(name(&known).to_string(), stale.0.clone())]);
        let left = vault.holds(&name(&known)).unwrap();
        assert!(left.contains(&ours) && left.contains(&foreign) && !left.contains(&stale));
        assert_eq!(vault.inventory(&dataset).unwrap().snapshots.len(), 3, "nothing is destroyed");
        assert!(look(&vault, &accounts, None, true).unwrap().released.is_empty());
    }
}
