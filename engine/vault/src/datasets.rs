//! Operations on whole datasets: making, destroying, renaming, their properties and their live data.
//!
//! Leaves snapshots to [`crate::snapshots`], streams to [`crate::transfer`], and what happens on the disk of a
//! directory volume to [`crate::dir::live`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use flocker_store::{
    Change as Written, DatasetInfo, DatasetKind, DatasetName, Property, PropertySource,
    SnapshotName, Space, StoreError,
};

use crate::dir::live::Directory;
use crate::inner::Inner;
use crate::layout;
use crate::meta::{Change, DatasetId, DatasetRecord, Live, SnapshotRecord, View};

type Result<T> = std::result::Result<T, StoreError>;

impl Inner {
    pub(crate) fn info(
        &self,
        id: DatasetId,
        record: &DatasetRecord,
        view: &View<'_>,
    ) -> Result<DatasetInfo> {
        let snapshots = view.snapshots(id)?;
        let open = record.live == Live::Open;
        let origin = match record.origin {
            Some(guid) => view.origin(guid)?,
            None => None,
        };
        Ok(DatasetInfo {
            origin,
            name: record.name.clone(),
            guid: record.guid,
            kind: record.kind,
            used_bytes: used_bytes(&snapshots)
                + record.partial.as_ref().map_or(0, |partial| partial.new_bytes),
            referenced_bytes: snapshots.last().map_or(0, |s| s.root.referenced_bytes),
            mounted_at: open.then(|| layout::live(&self.path, &record.name)),
            writable: open,
            encrypted: snapshots.last().is_some_and(|s| s.dialect.is_sealed())
                || record.partial.as_ref().is_some_and(|partial| partial.is_raw()),
        })
    }

    pub(crate) fn list(&self) -> Result<Vec<DatasetInfo>> {
        let view = View::new(&self.db)?;
        let datasets = view.datasets()?;
        datasets.iter().map(|(id, record)| self.info(*id, record, &view)).collect()
    }

    pub(crate) fn create(
        self: &Arc<Self>,
        name: &DatasetName,
        kind: DatasetKind,
    ) -> Result<DatasetInfo> {
        self.check_within(name)?;
        let txn = self.db.write()?;
        self.refuse_nesting(name, kind)?;
        let id = self.add_dataset(&Change::new(&self.db, &txn), name, kind)?;
        self.db.commit(txn)?;
        if kind == DatasetKind::Directory {
            Directory::enter(self, id, name)?.activate()?;
        }
        let view = View::new(&self.db)?;
        let (id, record) = view.dataset(name)?;
        self.info(id, &record, &view)
    }

    /// A directory volume has no datasets below it: their live trees would lie in its own. Nor has a zvol.
    pub(crate) fn refuse_nesting(&self, name: &DatasetName, kind: DatasetKind) -> Result<()> {
        if kind == DatasetKind::Filesystem {
            return Ok(());
        }
        for (_, other) in View::new(&self.db)?.datasets()? {
            if other.name != *name && other.name.is_within(name) {
                return Err(StoreError::NotCapable {
                    store: self.describe(),
                    what: format!("a {kind} volume {name} above the dataset {}", other.name),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn space(&self, dataset: &DatasetName) -> Result<Space> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|e| StoreError::io(format!("asking {}", self.path.display()), e.into()))?;
        let view = View::new(&self.db)?;
        let mut used = 0;
        for (id, record) in view.datasets()? {
            if record.name.is_within(dataset) {
                used += used_bytes(&view.snapshots(id)?);
                used += record.partial.map_or(0, |partial| partial.new_bytes);
            }
        }
        Ok(Space { available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize), used_bytes: used })
    }

    pub(crate) fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, Property>> {
        let view = View::new(&self.db)?;
        let (_, own) = view.dataset(dataset)?;
        let mut found = BTreeMap::new();
        let mut above = dataset.parent();
        while let Some(parent) = above {
            if let Some((_, record)) = view.find(&parent)? {
                for (name, value) in record.properties {
                    let value = Property { value, source: PropertySource::Inherited };
                    found.entry(name).or_insert(value);
                }
            }
            above = parent.parent();
        }
        for (name, value) in own.properties {
            let value = Property { value, source: PropertySource::Local };
            found.insert(name, value);
        }
        Ok(found)
    }

    pub(crate) fn set_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        let txn = self.db.write()?;
        let (id, _) = View::new(&self.db)?.dataset(dataset)?;
        Change::new(&self.db, &txn).edit_dataset(id, |record| {
            for (name, value) in changes {
                match value {
                    Some(value) => record.properties.insert(name.clone(), value.clone()),
                    None => record.properties.remove(name),
                };
            }
        })?;
        self.db.commit(txn)
    }

    pub(crate) fn destroy_dataset(self: &Arc<Self>, dataset: &DatasetName) -> Result<()> {
        if *dataset == self.root {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("destroying {dataset}, the vault's own dataset"),
            });
        }
        let _claim = self.claims.take(dataset)?;
        let (id, record) = View::new(&self.db)?.dataset(dataset)?;
        let mut directory = match record.kind {
            DatasetKind::Directory | DatasetKind::Zvol => {
                Some(Directory::enter(self, id, dataset)?)
            }
            DatasetKind::Filesystem => None,
        };
        self.refuse_kept(id, dataset)?;
        if let Some(directory) = &mut directory {
            directory.fence()?;
        }
        let txn = self.db.write()?;
        self.refuse_kept(id, dataset)?;
        Change::new(&self.db, &txn).remove_dataset(id, dataset)?;
        self.db.commit(txn)?;
        if let Some(directory) = &mut directory {
            // The dataset is gone; what cannot be removed now is at the next open.
            if let Err(error) = directory.remove() {
                tracing::warn!(%dataset, %error, "its directory could not be removed yet");
            }
        }
        self.destroyed();
        Ok(())
    }

    fn refuse_kept(&self, id: DatasetId, dataset: &DatasetName) -> Result<()> {
        let view = View::new(&self.db)?;
        let below: Vec<String> = view
            .datasets()?
            .into_iter()
            .map(|(_, record)| record.name)
            .filter(|name| name != dataset && name.is_within(dataset))
            .map(|name| name.to_string())
            .collect();
        if !below.is_empty() {
            return Err(StoreError::Kept { name: dataset.to_string(), by: below.join(", ") });
        }
        for snapshot in view.snapshots(id)? {
            if !snapshot.holds.is_empty() {
                let tags: Vec<String> = snapshot.holds.into_iter().collect();
                return Err(StoreError::Kept {
                    name: format!("{dataset}@{}", snapshot.short),
                    by: tags.join(", "),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn rename(self: &Arc<Self>, from: &DatasetName, to: &DatasetName) -> Result<()> {
        self.check_within(to)?;
        if to.is_within(from) || *from == self.root {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("renaming {from} to {to}"),
            });
        }
        let _claims = (self.claims.take(from)?, self.claims.take(to)?);
        let view = View::new(&self.db)?;
        view.dataset(from)?;
        if view.find(to)?.is_some() {
            return Err(StoreError::Exists { name: to.to_string() });
        }
        let mut moves = Vec::new();
        for (id, record) in view.datasets()? {
            if record.name.is_within(from) {
                let rest = record.name.as_str().strip_prefix(from.as_str());
                let name = DatasetName::reported(format!("{to}{}", rest.unwrap_or_default()))?;
                moves.push((id, record, name));
            }
        }
        // The live path follows the name: what is open is fenced first, so nobody may hold it.
        let mut open = Vec::new();
        for (id, record, name) in &moves {
            if record.kind != DatasetKind::Filesystem {
                let mut directory = Directory::enter(self, *id, &record.name)?;
                if directory.state == Live::Open {
                    directory.fence()?;
                    open.push((*id, name.clone()));
                }
            }
        }
        let txn = self.db.write()?;
        let change = Change::new(&self.db, &txn);
        self.need_parent(&change, to)?;
        for (id, _, name) in &moves {
            change.rename_dataset(*id, name)?;
        }
        self.db.commit(txn)?;
        for (id, name) in open {
            Directory::enter(self, id, &name)?.activate()?;
        }
        Ok(())
    }

    fn need_parent(&self, change: &Change<'_>, name: &DatasetName) -> Result<()> {
        self.refuse_below_directory(name)?;
        match name.parent() {
            Some(parent) if View::new(&self.db)?.find(&parent)?.is_none() => {
                self.add_dataset(change, &parent, DatasetKind::Filesystem).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Children of a directory volume would lie inside its live tree, those of a zvol inside its image.
    pub(crate) fn refuse_below_directory(&self, name: &DatasetName) -> Result<()> {
        let view = View::new(&self.db)?;
        let mut above = name.parent();
        while let Some(parent) = above {
            if let Some((_, found)) = view.find(&parent)?
                && found.kind != DatasetKind::Filesystem
            {
                return Err(StoreError::NotCapable {
                    store: self.describe(),
                    what: format!("a dataset below {parent}, which is a {} volume", found.kind),
                });
            }
            above = parent.parent();
        }
        Ok(())
    }

    /// Takes the turn at a directory volume or a zvol; `None` for a dataset that has no live data here.
    pub(crate) fn directory(self: &Arc<Self>, name: &DatasetName) -> Result<Option<Directory>> {
        let (id, record) = View::new(&self.db)?.dataset(name)?;
        match record.kind {
            DatasetKind::Directory | DatasetKind::Zvol => {
                Directory::enter(self, id, name).map(Some)
            }
            DatasetKind::Filesystem => Ok(None),
        }
    }

    pub(crate) fn activate(self: &Arc<Self>, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        match self.directory(dataset)? {
            Some(mut directory) => directory.activate().map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn live_path_of(self: &Arc<Self>, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        Ok(self.directory(dataset)?.map(|directory| directory.live_path()))
    }

    pub(crate) fn rehearse(self: &Arc<Self>, dataset: &DatasetName) -> Result<()> {
        match self.directory(dataset)? {
            Some(mut directory) => directory.rehearse(),
            None => Ok(()),
        }
    }

    pub(crate) fn fence(self: &Arc<Self>, dataset: &DatasetName) -> Result<()> {
        match self.directory(dataset)? {
            Some(mut directory) => directory.fence(),
            None => Ok(()),
        }
    }

    pub(crate) fn roll_back(self: &Arc<Self>, name: &SnapshotName) -> Result<()> {
        let snapshot = self.newest_named(name)?;
        match self.directory(name.dataset())? {
            Some(mut directory) => directory.roll_back(snapshot.root),
            None => Ok(()), // it is never written here but by receive
        }
    }

    pub(crate) fn verify_unwritten(self: &Arc<Self>, name: &SnapshotName) -> Result<()> {
        let snapshot = self.newest_named(name)?;
        let Some(directory) = self.directory(name.dataset())? else {
            return Ok(());
        };
        let modified =
            |detail: String| StoreError::Modified { dataset: name.dataset().clone(), detail };
        if directory.state == Live::Open {
            return Err(modified("it is not fenced".into()));
        }
        // A tree at rest may still be that of another snapshot, until the checkout under way: it is the base
        // of that, and has to be what it was.
        let expected = match directory.state {
            Live::Clean(root) => root,
            Live::Absent | Live::Open | Live::Fenced | Live::Updating => snapshot.root,
        };
        match directory.differs_from(expected)? {
            None => Ok(()),
            Some(what) => Err(modified(format!("since @{}: {what}", name.short()))),
        }
    }

    /// A snapshot that has to be the newest of its dataset.
    fn newest_named(&self, name: &SnapshotName) -> Result<SnapshotRecord> {
        let view = View::new(&self.db)?;
        let (id, _, snapshot) = view.snapshot(name)?;
        match view.latest(id)? {
            Some(newest) if newest.createtxg != snapshot.createtxg => Err(StoreError::Modified {
                dataset: name.dataset().clone(),
                detail: format!("@{} is newer than @{}", newest.short, name.short()),
            }),
            _ => Ok(snapshot),
        }
    }

    pub(crate) fn changed_since(self: &Arc<Self>, name: &SnapshotName) -> Result<Written> {
        let (id, _, snapshot) = View::new(&self.db)?.snapshot(name)?;
        let differs = |bytes: u64| match bytes {
            0 => Written::Unchanged,
            bytes => Written::Changed { bytes },
        };
        let (_, record) = View::new(&self.db)?.dataset(name.dataset())?;
        if let Live::Open | Live::Fenced = record.live
            && let Some(directory) = self.directory(name.dataset())?
            && let Some(bytes) = directory.changed_bytes(snapshot.root)?
        {
            return Ok(differs(bytes));
        }
        let newest = View::new(&self.db)?.latest(id)?;
        Ok(match newest {
            Some(newest) if newest.root != snapshot.root => {
                Written::Changed { bytes: newest.new_bytes.max(1) }
            }
            _ => Written::Unchanged,
        })
    }
}

/// What the snapshots of a dataset take on disk: the newest as a whole, those before as what they added. An
/// estimate: blocks are shared between datasets and compressed.
fn used_bytes(snapshots: &[SnapshotRecord]) -> u64 {
    match snapshots.split_last() {
        None => 0,
        Some((newest, older)) => {
            newest.root.referenced_bytes + older.iter().map(|s| s.new_bytes).sum::<u64>()
        }
    }
}
