//! `browse`: a read-only copy of a unit's newest whole moment, to look at beside replication; and taking it away.
//!
//! Owns: which moment, and what the copies are called. Leaves to others: making and removing copies (the store).
//! Copies outlive the daemon: they go when somebody says so, whether their unit is still known or not.

use std::sync::Arc;

use flocker_core::node::UnitAccount;
use flocker_core::plan::newest_whole;
use flocker_core::{Failure, FailureCode, Remedy};
use flocker_store::{
    CLONE, CloneAccess, DatasetName, PropertySource, SnapshotName, Store, StoreError,
};

use super::requests::{Api, blocking};
use super::{End, refused};
use crate::api::{Answer, BrowseView, CopyView};
use crate::ops::drill::clone_names;

/// What a copy's name begins with, directly below the store's root.
pub(super) const PREFIX: &str = "browse-";

/// How often the newest moment is looked for, when the one that was found is gone by the time it is copied.
const TRIES: u32 = 5;

/// Answers the request.
pub(super) async fn browse(api: &Arc<Api>, name: Option<String>, close: bool) -> End {
    let accounts = api.accounts().await?;
    let tools = Arc::clone(&api.tools);
    blocking(move || {
        let store = tools.store.as_ref();
        let view = match (name, close) {
            (None, false) => list(store),
            (name, true) => remove(store, name.as_deref()),
            (Some(name), false) => look_again_if_gone(|| open(store, &accounts, &name)),
        };
        view.map(Answer::Browsed)
    })
    .await
}

fn failure(error: StoreError) -> Failure {
    Failure::from(&error)
}

/// The copies that are there: what belongs to which unit, and of which snapshot it is.
fn copies(store: &dyn Store) -> Result<Vec<CopyView>, StoreError> {
    let beginning = format!("{}/{PREFIX}", store.root());
    let mut found = Vec::new();
    for info in store.datasets()? {
        let Some(rest) = info.name.as_str().strip_prefix(&beginning) else { continue };
        if rest.contains('/') {
            continue;
        }
        let properties = match store.user_properties(&info.name) {
            Ok(properties) => properties,
            // Taken away since it was listed.
            Err(StoreError::NoDataset { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(of) = properties.get(CLONE).filter(|p| p.source == PropertySource::Local) else {
            continue;
        };
        let unit = rest.split(':').next().unwrap_or(rest).to_owned();
        let taken_unix_s = taken(store, &of.value);
        found.push(CopyView {
            unit,
            dataset: info.name.to_string(),
            snapshot: of.value.clone(),
            taken_unix_s,
            path: info.mounted_at,
        });
    }
    Ok(found)
}

fn taken(store: &dyn Store, snapshot: &str) -> Option<i64> {
    let name: SnapshotName = snapshot.parse().ok()?;
    let inventory = store.inventory(name.dataset()).ok()?;
    inventory.snapshots.iter().find(|s| s.name == name).map(|s| s.creation_unix_s)
}

fn list(store: &dyn Store) -> Result<BrowseView, Failure> {
    Ok(BrowseView { open: copies(store).map_err(failure)?, removed: Vec::new() })
}

fn remove(store: &dyn Store, name: Option<&str>) -> Result<BrowseView, Failure> {
    let mut view = BrowseView::default();
    let mut trouble = None;
    for copy in copies(store).map_err(failure)? {
        if name.is_some_and(|name| name != copy.unit) {
            continue;
        }
        let gone = DatasetName::new(copy.dataset.clone())
            .map_err(StoreError::from)
            .and_then(|dataset| store.remove_clone(&dataset));
        match gone {
            Ok(()) => view.removed.push(copy.dataset),
            Err(error) => trouble = Some(failure(error)),
        }
    }
    match (trouble, name) {
        (Some(failure), _) => Err(failure),
        (None, Some(name)) if view.removed.is_empty() => Err(refused(
            FailureCode::NotFound,
            format!("no copy of `{name}` is open here: `flocker-repl browse` lists them"),
        )),
        (None, _) => Ok(view),
    }
}

/// Replication goes on meanwhile: a newer snapshot may come, and the one that was found go, between the look and the
/// copy. Then it is looked again.
fn look_again_if_gone<T>(mut look: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        match look() {
            Err(failure) if failure.remedy == Remedy::Replan && tries < TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

fn open(store: &dyn Store, accounts: &[UnitAccount], name: &str) -> Result<BrowseView, Failure> {
    let Some(account) = accounts.iter().find(|a| a.name == name) else {
        return Err(refused(
            FailureCode::NotFound,
            format!("there is no unit `{name}` on this node: `flocker-repl status` lists them"),
        ));
    };
    let inventories = account.volumes.iter().map(|volume| match store.inventory(&volume.dataset) {
        Ok(inventory) => Ok(inventory.snapshots),
        // A replica of which nothing has arrived yet.
        Err(StoreError::NoDataset { .. }) => Ok(Vec::new()),
        Err(error) => Err(failure(error)),
    });
    let inventories = inventories.collect::<Result<Vec<_>, _>>()?;
    let volumes = inventories.iter().zip(&account.volumes);
    let volumes: Vec<_> = volumes.map(|(all, v)| (all.as_slice(), v.joining)).collect();
    let Some(snapshots) = newest_whole(&volumes) else {
        return Err(refused(
            FailureCode::NoBase,
            format!("{name}: nothing whole is here yet to look at; try again in a moment"),
        ));
    };
    let snapshots: Vec<_> = snapshots.into_iter().flatten().collect();
    let clones = clone_names(store.root(), PREFIX, name, snapshots.len())?;
    let mut view = BrowseView::default();
    for (snapshot, clone) in snapshots.iter().zip(&clones) {
        // One from before makes way, unless somebody is in it.
        let made = store
            .remove_clone(clone)
            .and_then(|()| store.clone_snapshot(&snapshot.name, clone, CloneAccess::ReadOnly));
        match made {
            Ok(path) => view.open.push(CopyView {
                unit: name.to_owned(),
                dataset: clone.to_string(),
                snapshot: snapshot.name.to_string(),
                taken_unix_s: Some(snapshot.creation_unix_s),
                path,
            }),
            Err(error) => {
                // A part is of no use to anybody.
                for clone in &clones[..view.open.len()] {
                    if let Err(error) = store.remove_clone(clone) {
                        tracing::warn!(%clone, %error, "a copy stays behind");
                    }
                }
                return Err(failure(error));
            }
        }
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_core::ids::UnitId;
    use flocker_core::node::VolumeAccount;
    use flocker_store::{DatasetKind, HoldTag, SnapshotSpec};
    use flocker_vault::Vault;

    struct Here {
        _dir: tempfile::TempDir,
        vault: Vault,
        accounts: Vec<UnitAccount>,
    }

    impl Here {
        fn new(volumes: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let vault = Vault::create(dir.path().join("vault")).unwrap();
            let volumes = volumes.iter().map(|name| {
                let dataset = DatasetName::new(*name).unwrap();
                vault.create(&dataset, DatasetKind::Directory).unwrap();
                VolumeAccount { dataset, joining: false, reasons: Vec::new() }
            });
            let accounts = vec![UnitAccount {
                unit: UnitId(7),
                name: "db".to_owned(),
                tag: HoldTag("flocker-repl:7".to_owned()),
                prefix: "flocker_7_".to_owned(),
                volumes: volumes.collect(),
            }];
            Self { _dir: dir, vault, accounts }
        }

        fn take(&self, volumes: &[usize], short: &str) {
            let names = volumes
                .iter()
                .map(|at| self.accounts[0].volumes[*at].dataset.snapshot(short).unwrap());
            let names = names.collect();
            self.vault
                .snapshot(&SnapshotSpec { names, quiesced: true, properties: Default::default() })
                .unwrap();
        }

        fn write(&self, at: usize, text: &str) {
            let live = self.vault.activate(&self.accounts[0].volumes[at].dataset).unwrap().unwrap();
            std::fs::write(live.join("file"), text).unwrap();
        }
    }

    fn read(view: &BrowseView, at: usize) -> String {
        let path = view.open[at].path.as_ref().expect("a vault's directory has a path");
        std::fs::read_to_string(path.join("file")).unwrap()
    }

    #[test]
    fn a_copy_shows_the_newest_moment_is_replaced_by_a_newer_one_and_goes_when_asked() {
        let here = Here::new(&["vault/db"]);
        let store: &dyn Store = &here.vault;
        assert_eq!(open(store, &here.accounts, "db").unwrap_err().code, FailureCode::NoBase);
        here.write(0, "first");
        here.take(&[0], "flocker_7_1");
        here.write(0, "second");
        let view = open(store, &here.accounts, "db").unwrap();
        assert_eq!(read(&view, 0), "first", "not what is live");
        assert_eq!(view.open[0].snapshot, "vault/db@flocker_7_1");
        here.take(&[0], "by-hand");
        assert_eq!(read(&open(store, &here.accounts, "db").unwrap(), 0), "second");
        let listed = list(store).unwrap();
        assert_eq!(listed.open.len(), 1);
        assert_eq!(listed.open[0].unit, "db");
        assert!(listed.open[0].taken_unix_s.is_some());
        assert_eq!(remove(store, Some("other")).unwrap_err().code, FailureCode::NotFound);
        assert_eq!(remove(store, Some("db")).unwrap().removed, ["vault/browse-db"]);
        assert!(list(store).unwrap().open.is_empty());
        assert_eq!(remove(store, Some("db")).unwrap_err().code, FailureCode::NotFound);
        assert!(remove(store, None).unwrap().removed.is_empty());
        assert_eq!(open(store, &here.accounts, "no").unwrap_err().code, FailureCode::NotFound);
    }

    #[test]
    fn a_snapshot_that_goes_between_the_look_and_the_copy_is_looked_for_again_a_few_times() {
        let gone = || failure(StoreError::NoSnapshot { name: "vault/db@1".to_owned() });
        let mut looks = 0;
        let found = look_again_if_gone(|| {
            looks += 1;
            if looks < 3 { Err(gone()) } else { Ok(looks) }
        });
        assert_eq!(found.unwrap(), 3);
        let mut looks = 0;
        let mut refuse = |failure: Failure| {
            looks = 0;
            let outcome = look_again_if_gone(|| {
                looks += 1;
                Err::<(), _>(failure.clone())
            });
            (outcome.unwrap_err().code, looks)
        };
        assert_eq!(refuse(gone()), (FailureCode::NotFound, TRIES));
        let unknown = refused(FailureCode::NotFound, "no such unit");
        assert_eq!(refuse(unknown), (FailureCode::NotFound, 1));
    }

    #[test]
    fn a_group_is_shown_as_of_one_moment() {
        let here = Here::new(&["vault/a", "vault/b"]);
        let store: &dyn Store = &here.vault;
        here.write(0, "a1");
        here.write(1, "b1");
        here.take(&[0, 1], "flocker_7_1");
        here.write(0, "a2");
        here.take(&[0], "flocker_7_2");
        here.take(&[0, 1], "by-hand");
        let view = open(store, &here.accounts, "db").unwrap();
        assert_eq!((read(&view, 0), read(&view, 1)), ("a1".to_owned(), "b1".to_owned()));
        assert_eq!(remove(store, None).unwrap().removed.len(), 2);
    }

    #[test]
    fn a_dataset_that_only_looks_like_a_copy_is_left_alone() {
        let here = Here::new(&["vault/db", "vault/browse-mine"]);
        let store: &dyn Store = &here.vault;
        assert!(list(store).unwrap().open.is_empty());
        assert!(remove(store, None).unwrap().removed.is_empty());
        assert!(store.dataset(&here.accounts[0].volumes[1].dataset).is_ok());
    }
}
