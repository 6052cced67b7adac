//! Operations on snapshots: taking, destroying, holding.
//!
//! Leaves what a directory holds at the moment to [`crate::dir::live`], and collecting what a destroyed
//! snapshot leaves to [`crate::gc`].

use std::collections::BTreeSet;
use std::sync::Arc;

use flocker_store::{
    DatasetKind, HoldTag, Inventory, Snapshot, SnapshotName, SnapshotSpec, StoreError,
    StreamFeature, StreamFeatures,
};
use zfs_stream::Features;
use zfs_stream::format::begin_flag;

use crate::blocks::Session;
use crate::dir::live::Directory;
use crate::dir::seen::SeenBatch;
use crate::dir::{self, holders, scan::Scanned};
use crate::emit::announced;
use crate::inner::{Inner, new_guid, no_space, now_unix_s};
use crate::meta::{Change, DatasetId, Dialect, SnapshotRecord, View};
use crate::objset::SetRoot;

type Result<T> = std::result::Result<T, StoreError>;

/// One snapshot about to be taken.
struct Taken {
    id: DatasetId,
    name: SnapshotName,
    record: SnapshotRecord,
    seen: SeenBatch,
    /// Keeps the live data from being moved until the snapshot is there.
    _directory: Option<Directory>,
}

impl Inner {
    pub(crate) fn inventory(&self, dataset: &flocker_store::DatasetName) -> Result<Inventory> {
        let view = View::new(&self.db)?;
        let (id, record) = view.dataset(dataset)?;
        let snapshots = view.snapshots(id)?;
        let snapshots: Result<Vec<Snapshot>> =
            snapshots.iter().map(|s| s.report(dataset)).collect();
        let partial = record.partial.map(|partial| partial.report());
        Ok(Inventory { snapshots: snapshots?, partial, ..Inventory::default() })
    }

    /// What came goes out as it came, and there is nothing that we send that is not received here.
    pub(crate) fn stream_features(
        &self,
        dataset: &flocker_store::DatasetName,
    ) -> Result<StreamFeatures> {
        let view = View::new(&self.db)?;
        let newest = match view.dataset(dataset) {
            Ok((id, _)) => view.latest(id)?,
            Err(StoreError::NoDataset { .. }) => None,
            Err(error) => return Err(error),
        };
        let lineage = newest.map_or(Features::NONE, |s| Features(s.dialect.features));
        let sends = StreamFeature::of_flags(announced(lineage, true, true).0);
        Ok(StreamFeatures { sends, receives: StreamFeature::ALL.into() })
    }

    pub(crate) fn take_snapshots(self: &Arc<Self>, spec: &SnapshotSpec) -> Result<Vec<Snapshot>> {
        let session = self.blocks.session();
        let mut names: Vec<&SnapshotName> = spec.names.iter().collect();
        // In one order for everybody, so that two groups never wait for each other's turns.
        names.sort();
        if let Some([one, _]) = names.windows(2).find_map(|pair| match pair {
            [a, b] if a.dataset() == b.dataset() => Some([*a, *b]),
            _ => None,
        }) {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("two snapshots of {} in one group", one.dataset()),
            });
        }
        let mut taken = Vec::new();
        for name in names {
            let one = self.freeze(&session, name, spec).map_err(|e| no_space(name.dataset(), e))?;
            taken.push(one);
        }
        let snapshots = session.commit(|txn| {
            let change = Change::new(&self.db, txn);
            let mut snapshots = Vec::new();
            for one in &mut taken {
                let names = change.snapshots(one.id)?;
                if names.iter().any(|s| s.short == one.record.short) {
                    return Err(StoreError::Exists { name: one.name.to_string() });
                }
                one.record.createtxg = change.next_txg()?;
                change.set_snapshot(one.id, &one.record)?;
                one.seen.write(&self.db, txn, one.id)?;
                snapshots.push(one.record.report(one.name.dataset())?);
            }
            Ok(snapshots)
        });
        let mut snapshots = match (snapshots, spec.names.first()) {
            (Err(e), Some(first)) => return Err(no_space(first.dataset(), e)),
            (outcome, _) => outcome?,
        };
        snapshots.sort_by_key(|s| spec.names.iter().position(|n| *n == s.name));
        Ok(snapshots)
    }

    fn freeze(
        self: &Arc<Self>,
        session: &Session,
        name: &SnapshotName,
        spec: &SnapshotSpec,
    ) -> Result<Taken> {
        let view = View::new(&self.db)?;
        let (id, dataset) = view.dataset(name.dataset())?;
        let before = view.snapshots(id)?;
        if before.iter().any(|s| s.short == name.short()) {
            return Err(StoreError::Exists { name: name.to_string() });
        }
        let not_capable = |why: &str| StoreError::NotCapable {
            store: self.describe(),
            what: format!("a snapshot of {}, {why}", name.dataset()),
        };
        let newest = before.last();
        let dialect = match (dataset.kind, newest) {
            (_, None) if dataset.partial.is_some() => {
                return Err(not_capable("of which only a part has arrived"));
            }
            (DatasetKind::Directory, _) => directory_dialect(),
            (DatasetKind::Filesystem | DatasetKind::Zvol, Some(newest)) => newest.dialect,
            (DatasetKind::Filesystem | DatasetKind::Zvol, None) => {
                return Err(not_capable("which holds no data"));
            }
        };
        let already = session.new_bytes();
        let key = newest.and_then(|newest| newest.key.clone());
        let (directory, scanned, running) = match (dataset.kind, newest) {
            (DatasetKind::Filesystem, newest) => {
                let root = newest.map_or(SetRoot::default(), |newest| newest.root);
                (None, Scanned { root, seen: SeenBatch::default() }, false)
            }
            (DatasetKind::Directory | DatasetKind::Zvol, _) => {
                let directory = Directory::enter(self, id, name.dataset())?;
                let (scanned, running) = directory.freeze(session)?;
                (Some(directory), scanned, running)
            }
        };
        if running && !spec.quiesced && dataset.kind == DatasetKind::Zvol {
            // Real ZFS has no word for a snapshot that is no moment, and would take it for one.
            let what = "its image is open, and whoever writes it was not stopped";
            return Err(StoreError::Busy {
                dataset: name.dataset().clone(),
                holders: vec![holders::ourselves(what)],
            });
        }
        Ok(Taken {
            id,
            record: SnapshotRecord {
                short: name.short().to_owned(),
                guid: new_guid()?,
                createtxg: 0,
                creation_unix_s: now_unix_s(),
                fuzzy: running && !spec.quiesced,
                root: scanned.root,
                dialect,
                key,
                holds: BTreeSet::new(),
                new_bytes: session.new_bytes() - already,
                properties: spec.properties.clone(),
            },
            name: name.clone(),
            seen: scanned.seen,
            _directory: directory,
        })
    }

    pub(crate) fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<()> {
        let mut kept = None;
        let txn = self.db.write()?;
        let change = Change::new(&self.db, &txn);
        for name in names {
            let view = View::new(&self.db)?;
            let (id, _, snapshot) = match view.snapshot(name) {
                Ok(found) => found,
                Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) => continue,
                Err(e) => return Err(e),
            };
            if snapshot.holds.is_empty() {
                change.remove_snapshot(id, snapshot.createtxg)?;
            } else {
                let tags: Vec<String> = snapshot.holds.into_iter().collect();
                kept.get_or_insert(StoreError::Kept {
                    name: name.to_string(),
                    by: tags.join(", "),
                });
            }
        }
        self.db.commit(txn)?;
        self.destroyed();
        kept.map_or(Ok(()), Err)
    }

    pub(crate) fn change_holds(
        &self,
        names: &[SnapshotName],
        missing_is_error: bool,
        edit: impl Fn(&mut BTreeSet<String>) -> bool,
    ) -> Result<()> {
        let txn = self.db.write()?;
        let change = Change::new(&self.db, &txn);
        let mut changed = false;
        for name in names {
            match View::new(&self.db)?.snapshot(name) {
                Ok((id, _, mut snapshot)) => {
                    if edit(&mut snapshot.holds) {
                        change.set_snapshot(id, &snapshot)?;
                        changed = true;
                    }
                }
                Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. })
                    if !missing_is_error => {}
                Err(StoreError::NoDataset { .. }) => {
                    return Err(StoreError::NoSnapshot { name: name.to_string() });
                }
                Err(e) => return Err(e),
            }
        }
        if changed {
            self.db.commit(txn)?;
        }
        Ok(())
    }

    pub(crate) fn holds(&self, name: &SnapshotName) -> Result<Vec<HoldTag>> {
        let (_, _, snapshot) = View::new(&self.db)?.snapshot(name)?;
        Ok(snapshot.holds.into_iter().map(HoldTag).collect())
    }
}

/// How a directory's own snapshots are sent.
fn directory_dialect() -> Dialect {
    Dialect {
        objset_type: dir::OBJSET_DIRECTORY,
        features: 0,
        begin_flags: begin_flag::SPILL_BLOCK | begin_flag::FREERECORDS,
        sealed: true,
    }
}
