//! Setting aside what is beyond a snapshot, and writable copies of snapshots.
//!
//! Owns: how both are done with rows alone. Snapshots are trees of shared blocks, so to set aside is to give
//! the rows of what is beyond to a dataset of another name, in one transaction; what was live and in no
//! snapshot gets one before. The live tree stays with the dataset, as the base of its next checkout, which
//! then reads only what differs. Leaves checking out to [`crate::dir::live`].

use std::path::PathBuf;
use std::sync::Arc;

use flocker_store::{CLONE, DatasetName, Guid, Holder, SnapshotName, SnapshotSpec, StoreError};

use crate::dir::live::Directory;
use crate::fault;
use crate::inner::Inner;
use crate::meta::{Change, DatasetId, Live, View};

type Result<T> = std::result::Result<T, StoreError>;

/// Short name of the snapshot that keeps what was live; a number follows where that name is taken.
const DIFFERENCE: &str = "diverged";

/// Prefix of properties of ours.
const OURS: &str = "flocker-repl:";

/// Property of what was set aside: the guid of the snapshot that was kept.
const ASIDE_OF: &str = "flocker-repl:aside-of";

impl Inner {
    pub(crate) fn set_aside(
        self: &Arc<Self>,
        keep: &SnapshotName,
        aside: &DatasetName,
    ) -> Result<bool> {
        let dataset = keep.dataset();
        self.check_within(aside)?;
        if aside.is_within(dataset) || *dataset == self.root {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("setting {dataset} aside as {aside}"),
            });
        }
        let _claims = (self.claims.take(dataset)?, self.claims.take(aside)?);
        let view = View::new(&self.db)?;
        let (id, _, kept) = view.snapshot(keep)?;
        if let Some((_, there)) = view.find(aside)? {
            if there.properties.get(ASIDE_OF) == Some(&kept.guid.to_string()) {
                return Ok(true);
            }
            return Err(StoreError::Exists { name: aside.to_string() });
        }
        let differs = self.differs_from_newest(dataset)?;
        let newest = view.latest(id)?.map_or(kept.createtxg, |newest| newest.createtxg);
        if newest == kept.createtxg && !differs {
            return Ok(false);
        }
        if differs {
            self.snapshot_difference(id, dataset)?;
            fault::point("aside-snapshotted", &self.path)?;
        }
        let _directory = self.bring_to_rest(dataset)?;
        self.split(id, dataset, kept.createtxg, kept.guid, aside)?;
        fault::point("aside-split", &self.path)?;
        self.received(dataset);
        Ok(true)
    }

    /// Whether the live data of a fenced dataset is anything else than its newest snapshot.
    fn differs_from_newest(self: &Arc<Self>, dataset: &DatasetName) -> Result<bool> {
        let Some(directory) = self.directory(dataset)? else {
            return Ok(false);
        };
        match directory.state {
            Live::Open => Err(open(dataset)),
            Live::Fenced => {
                let newest = directory.newest()?.unwrap_or_default();
                Ok(directory.differs_from(newest)?.is_some())
            }
            // Nobody could write those.
            Live::Absent | Live::Clean(_) | Live::Updating => Ok(false),
        }
    }

    fn snapshot_difference(self: &Arc<Self>, id: DatasetId, dataset: &DatasetName) -> Result<()> {
        let there = View::new(&self.db)?.snapshots(id)?;
        let mut short = DIFFERENCE.to_owned();
        let mut number = 1;
        while there.iter().any(|s| s.short == short) {
            number += 1;
            short = format!("{DIFFERENCE}-{number}");
        }
        let spec = SnapshotSpec {
            names: vec![dataset.snapshot(&short)?],
            quiesced: true,
            properties: Default::default(),
        };
        self.take_snapshots(&spec).map(drop)
    }

    /// Takes the turn at the live tree and lets it be the base of the next checkout.
    fn bring_to_rest(self: &Arc<Self>, dataset: &DatasetName) -> Result<Option<Directory>> {
        let Some(mut directory) = self.directory(dataset)? else {
            return Ok(None);
        };
        match directory.state {
            Live::Open => return Err(open(dataset)),
            Live::Fenced => {
                let newest = directory.newest()?.unwrap_or_default();
                if let Some(what) = directory.differs_from(newest)? {
                    return Err(StoreError::Modified {
                        dataset: dataset.clone(),
                        detail: format!("while it was set aside: {what}"),
                    });
                }
                directory.rest(newest)?;
            }
            Live::Absent | Live::Clean(_) | Live::Updating => {}
        }
        Ok(Some(directory))
    }

    /// Gives everything after `txg` to a new dataset.
    fn split(
        &self,
        id: DatasetId,
        dataset: &DatasetName,
        txg: u64,
        kept: Guid,
        aside: &DatasetName,
    ) -> Result<()> {
        let txn = self.db.write()?;
        let change = Change::new(&self.db, &txn);
        let Some(record) = change.dataset(id)? else {
            return Err(StoreError::NoDataset { dataset: dataset.clone() });
        };
        let new = self.add_dataset(&change, aside, record.kind)?;
        let theirs = |name: &String| !name.starts_with(OURS);
        change.edit_dataset(new, |record_of_aside| {
            record_of_aside.properties = record.properties.clone();
            record_of_aside.properties.retain(|name, _| theirs(name));
            record_of_aside.properties.insert(ASIDE_OF.to_owned(), kept.to_string());
        })?;
        change.edit_dataset(id, |record| {
            record.properties.retain(|name, _| theirs(name));
            // Whatever arrived goes on from what is set aside, or from what will be sent anew.
            record.partial = None;
        })?;
        for snapshot in change.snapshots(id)? {
            if snapshot.createtxg > txg {
                change.set_snapshot(new, &snapshot)?;
                change.remove_snapshot(id, snapshot.createtxg)?;
            }
        }
        self.db.commit(txn)
    }

    pub(crate) fn clone_snapshot(
        self: &Arc<Self>,
        snapshot: &SnapshotName,
        clone: &DatasetName,
    ) -> Result<Option<PathBuf>> {
        self.check_within(clone)?;
        let (from, source, found) = View::new(&self.db)?.snapshot(snapshot)?;
        self.refuse_nesting(clone, source.kind)?;
        {
            let _claim = self.claims.take(clone)?;
            let txn = self.db.write()?;
            let change = Change::new(&self.db, &txn);
            if View::new(&self.db)?.find(clone)?.is_some() {
                return Err(StoreError::Exists { name: clone.to_string() });
            }
            // As this transaction has it: what was destroyed since we looked may be collected too.
            let rows = change.snapshots(from)?;
            let Some(mut record) = rows.into_iter().find(|row| row.guid == found.guid) else {
                return Err(StoreError::NoSnapshot { name: snapshot.to_string() });
            };
            let id = self.add_dataset(&change, clone, source.kind)?;
            change.edit_dataset(id, |record| {
                record.properties.insert(CLONE.to_owned(), snapshot.to_string());
            })?;
            // Its own row keeps the blocks, whatever becomes of the dataset it comes from.
            record.holds.clear();
            record.new_bytes = 0;
            change.set_snapshot(id, &record)?;
            self.db.commit(txn)?;
        }
        let opened = self.activate(clone);
        if opened.is_err()
            && let Err(error) = self.destroy_dataset(clone)
        {
            tracing::warn!(%clone, %error, "a copy that could not be opened stays behind");
        }
        opened
    }

    pub(crate) fn remove_clone(self: &Arc<Self>, clone: &DatasetName) -> Result<()> {
        let Some((_, record)) = View::new(&self.db)?.find(clone)? else {
            return Ok(());
        };
        if !record.properties.contains_key(CLONE) {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("removing {clone}, which is no copy of ours,"),
            });
        }
        self.destroy_dataset(clone)
    }
}

fn open(dataset: &DatasetName) -> StoreError {
    let holder = Holder {
        pid: std::process::id(),
        command: "flocker-repl".to_owned(),
        what: "the volume is open at its path: it is not fenced".to_owned(),
    };
    StoreError::Busy { dataset: dataset.clone(), holders: vec![holder] }
}
