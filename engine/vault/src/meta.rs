//! Datasets and snapshots: the rows of the database and how they are looked up.
//!
//! Owns: the stored form of datasets, snapshots, bookmarks and holds, and their keys. Leaves the operations
//! to [`crate::datasets`] and [`crate::snapshots`], and trees to [`crate::objset`].

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::{DatasetKind, DatasetName, Guid, Origin, Snapshot, SnapshotName, StoreError};
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use zfs_stream::{Features, Seal};

use crate::db::{self, Db};
use crate::keydata::KeyData;
use crate::objset::SetRoot;
use crate::partial::PartialRecord;

type Result<T> = std::result::Result<T, StoreError>;

/// Counter: the last createtxg given out.
const SEQUENCE: &str = "sequence";
/// Counter: the last dataset id given out.
const DATASET_ID: &str = "dataset-id";

/// A dataset by its number in this vault, which is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct DatasetId(pub(crate) u64);

/// What a dataset's live data is. See [`crate::dir`] for how one becomes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) enum Live {
    /// There is none: it can be checked out.
    #[default]
    Absent,
    /// At its path, for a workload to write.
    Open,
    /// Hidden, with what the workload left.
    Fenced,
    /// Hidden, and exactly this object set.
    Clean(SetRoot),
    /// Hidden, in the middle of becoming an object set: worth nothing after a crash.
    Updating,
}

/// A dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatasetRecord {
    pub(crate) name: DatasetName,
    pub(crate) guid: Guid,
    pub(crate) kind: DatasetKind,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) live: Live,
    /// Of a clone: the guid of the snapshot that its first stream started from.
    pub(crate) origin: Option<Guid>,
    /// What arrived of a receive that was interrupted.
    pub(crate) partial: Option<PartialRecord>,
}

/// How the stream of a snapshot was, which is how it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dialect {
    /// `DMU_OST_*`, or [`crate::dir::OBJSET_DIRECTORY`].
    pub(crate) objset_type: u32,
    /// Feature flags of this step and of all before it, but for those that are about the stream alone.
    pub(crate) features: u64,
    /// `DRR_FLAG_*` of BEGIN.
    pub(crate) begin_flags: u32,
    /// Whether records were sealed one by one.
    pub(crate) sealed: bool,
}

impl Dialect {
    /// Whether its blocks are encrypted, and kept as they are.
    pub(crate) fn is_sealed(&self) -> bool {
        Features(self.features).contains(Features::RAW)
    }

    pub(crate) fn seal(&self) -> Seal {
        if self.sealed { Seal::PerRecord } else { Seal::EndOnly }
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The part of its name behind the `@`.
    pub(crate) short: String,
    pub(crate) guid: Guid,
    pub(crate) createtxg: u64,
    pub(crate) creation_unix_s: i64,
    pub(crate) fuzzy: bool,
    pub(crate) root: SetRoot,
    pub(crate) dialect: Dialect,
    /// Of a sealed dataset.
    pub(crate) key: Option<KeyData>,
    pub(crate) holds: BTreeSet<String>,
    /// Bytes that packs grew by for it.
    pub(crate) new_bytes: u64,
    pub(crate) properties: BTreeMap<String, String>,
}

impl SnapshotRecord {
    /// As the store reports it.
    pub(crate) fn report(&self, dataset: &DatasetName) -> Result<Snapshot> {
        Ok(Snapshot {
            name: SnapshotName::from_parts(dataset.clone(), &self.short)?,
            guid: self.guid,
            createtxg: self.createtxg,
            creation_unix_s: self.creation_unix_s,
            fuzzy: self.fuzzy,
            holds: u32::try_from(self.holds.len()).unwrap_or(u32::MAX),
        })
    }
}

fn decode<'a, T: Deserialize<'a>>(db: &Db, what: &str, bytes: &'a [u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|e| db.damaged(format!("{what} cannot be read: {e}")))
}

fn encode<T: Serialize>(db: &Db, what: &str, value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|e| db.damaged(format!("{what} cannot be encoded: {e}")))
}

/// A view of datasets and snapshots as they are committed.
pub(crate) struct View<'d> {
    db: &'d Db,
    txn: ReadTransaction,
}

impl<'d> View<'d> {
    pub(crate) fn new(db: &'d Db) -> Result<Self> {
        Ok(View { db, txn: db.read()? })
    }

    /// The dataset of this name.
    pub(crate) fn dataset(&self, name: &DatasetName) -> Result<(DatasetId, DatasetRecord)> {
        let names = self.open(db::NAMES)?;
        let id = names.get(name.as_str()).map_err(|e| self.db.error(e))?;
        let Some(id) = id.map(|row| row.value()) else {
            return Err(StoreError::NoDataset { dataset: name.clone() });
        };
        let table = self.open(db::DATASETS)?;
        let row = table.get(id).map_err(|e| self.db.error(e))?;
        let row = row.ok_or_else(|| self.db.damaged(format!("dataset {name} has no row")))?;
        Ok((DatasetId(id), decode(self.db, "a dataset", row.value())?))
    }

    /// The dataset of this name, if there is one.
    pub(crate) fn find(&self, name: &DatasetName) -> Result<Option<(DatasetId, DatasetRecord)>> {
        match self.dataset(name) {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NoDataset { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every dataset, by name: parents first.
    pub(crate) fn datasets(&self) -> Result<Vec<(DatasetId, DatasetRecord)>> {
        let table = self.open(db::DATASETS)?;
        let mut found = Vec::new();
        for row in table.iter().map_err(|e| self.db.error(e))? {
            let (id, row) = row.map_err(|e| self.db.error(e))?;
            let record = decode(self.db, "a dataset", row.value())?;
            found.push((DatasetId(id.value()), record));
        }
        found.sort_by(|(_, a): &(_, DatasetRecord), (_, b)| {
            a.name.as_str().split('/').cmp(b.name.as_str().split('/'))
        });
        Ok(found)
    }

    /// The snapshots of a dataset, oldest first.
    pub(crate) fn snapshots(&self, id: DatasetId) -> Result<Vec<SnapshotRecord>> {
        let table = self.open(db::SNAPSHOTS)?;
        let rows = table.range((id.0, 0)..=(id.0, u64::MAX)).map_err(|e| self.db.error(e))?;
        let mut found = Vec::new();
        for row in rows {
            let (_, row) = row.map_err(|e| self.db.error(e))?;
            found.push(decode(self.db, "a snapshot", row.value())?);
        }
        Ok(found)
    }

    /// The newest snapshot of a dataset.
    pub(crate) fn latest(&self, id: DatasetId) -> Result<Option<SnapshotRecord>> {
        let table = self.open(db::SNAPSHOTS)?;
        let mut rows = table.range((id.0, 0)..=(id.0, u64::MAX)).map_err(|e| self.db.error(e))?;
        match rows.next_back() {
            None => Ok(None),
            Some(row) => {
                let (_, row) = row.map_err(|e| self.db.error(e))?;
                decode(self.db, "a snapshot", row.value()).map(Some)
            }
        }
    }

    /// A snapshot by its full name.
    pub(crate) fn snapshot(
        &self,
        name: &SnapshotName,
    ) -> Result<(DatasetId, DatasetRecord, SnapshotRecord)> {
        let (id, dataset) = self.dataset(name.dataset())?;
        let found = self.snapshots(id)?;
        match found.into_iter().find(|s| s.short == name.short()) {
            Some(snapshot) => Ok((id, dataset, snapshot)),
            None => Err(StoreError::NoSnapshot { name: name.to_string() }),
        }
    }

    /// The snapshot with this guid, in whatever dataset it is.
    /// The snapshot that a clone came from, under its name now.
    pub(crate) fn origin(&self, guid: Guid) -> Result<Option<Origin>> {
        for (id, record) in self.datasets()? {
            if let Some(found) = self.snapshots(id)?.into_iter().find(|s| s.guid == guid) {
                let name = SnapshotName::from_parts(record.name, &found.short)?;
                return Ok(Some(Origin { name, guid }));
            }
        }
        Ok(None)
    }

    pub(crate) fn anywhere(&self, guid: Guid) -> Result<Option<(DatasetId, SnapshotRecord)>> {
        for (id, _) in self.datasets()? {
            if let Some(found) = self.snapshots(id)?.into_iter().find(|s| s.guid == guid) {
                return Ok(Some((id, found)));
            }
        }
        Ok(None)
    }

    fn open<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        table: redb::TableDefinition<'_, K, V>,
    ) -> Result<redb::ReadOnlyTable<K, V>> {
        self.txn.open_table(table).map_err(|e| self.db.error(e))
    }
}

/// Changes to datasets and snapshots, in a transaction that somebody else commits.
pub(crate) struct Change<'t> {
    db: &'t Db,
    txn: &'t WriteTransaction,
}

impl<'t> Change<'t> {
    pub(crate) fn new(db: &'t Db, txn: &'t WriteTransaction) -> Self {
        Change { db, txn }
    }

    fn count(&self, counter: &str) -> Result<u64> {
        let mut table = self.txn.open_table(db::COUNTERS).map_err(|e| self.db.error(e))?;
        let last = table.get(counter).map_err(|e| self.db.error(e))?;
        let next = last.map_or(0, |row| row.value()) + 1;
        table.insert(counter, next).map_err(|e| self.db.error(e))?;
        Ok(next)
    }

    /// The next createtxg.
    pub(crate) fn next_txg(&self) -> Result<u64> {
        self.count(SEQUENCE)
    }

    /// Adds a dataset; its name must be free.
    pub(crate) fn add_dataset(&self, record: &DatasetRecord) -> Result<DatasetId> {
        let id = DatasetId(self.count(DATASET_ID)?);
        let mut names = self.txn.open_table(db::NAMES).map_err(|e| self.db.error(e))?;
        let taken =
            names.insert(record.name.as_str(), id.0).map_err(|e| self.db.error(e))?.is_some();
        if taken {
            return Err(StoreError::Exists { name: record.name.to_string() });
        }
        drop(names);
        self.set_dataset(id, record)?;
        Ok(id)
    }

    /// A dataset as this transaction has it.
    pub(crate) fn dataset(&self, id: DatasetId) -> Result<Option<DatasetRecord>> {
        let table = self.txn.open_table(db::DATASETS).map_err(|e| self.db.error(e))?;
        let row = table.get(id.0).map_err(|e| self.db.error(e))?;
        row.map(|row| decode(self.db, "a dataset", row.value())).transpose()
    }

    /// Changes a dataset's row; nothing happens to one that is gone.
    pub(crate) fn edit_dataset(
        &self,
        id: DatasetId,
        edit: impl FnOnce(&mut DatasetRecord),
    ) -> Result<()> {
        if let Some(mut record) = self.dataset(id)? {
            edit(&mut record);
            self.set_dataset(id, &record)?;
        }
        Ok(())
    }

    fn set_dataset(&self, id: DatasetId, record: &DatasetRecord) -> Result<()> {
        let row = encode(self.db, "a dataset", record)?;
        let mut table = self.txn.open_table(db::DATASETS).map_err(|e| self.db.error(e))?;
        table.insert(id.0, row.as_slice()).map_err(|e| self.db.error(e))?;
        Ok(())
    }

    /// Moves a dataset to a name, which must be free.
    pub(crate) fn rename_dataset(&self, id: DatasetId, to: &DatasetName) -> Result<()> {
        let Some(mut record) = self.dataset(id)? else {
            return Ok(());
        };
        {
            let mut names = self.txn.open_table(db::NAMES).map_err(|e| self.db.error(e))?;
            names.remove(record.name.as_str()).map_err(|e| self.db.error(e))?;
            let taken = names.insert(to.as_str(), id.0).map_err(|e| self.db.error(e))?;
            if taken.is_some() {
                return Err(StoreError::Exists { name: to.to_string() });
            }
        }
        record.name = to.clone();
        self.set_dataset(id, &record)
    }

    /// Removes a dataset with its snapshots and what was seen of its files.
    pub(crate) fn remove_dataset(&self, id: DatasetId, name: &DatasetName) -> Result<()> {
        let error = |e: redb::StorageError| self.db.error(e);
        let table_error = |e: redb::TableError| self.db.error(e);
        self.txn
            .open_table(db::NAMES)
            .map_err(table_error)?
            .remove(name.as_str())
            .map_err(error)?;
        self.txn.open_table(db::DATASETS).map_err(table_error)?.remove(id.0).map_err(error)?;
        let all = (id.0, 0)..=(id.0, u64::MAX);
        self.txn
            .open_table(db::SNAPSHOTS)
            .map_err(table_error)?
            .retain_in(all, |_, _| false)
            .map_err(error)?;
        self.forget_seen(id)
    }

    /// Forgets what was seen of a dataset's files.
    pub(crate) fn forget_seen(&self, id: DatasetId) -> Result<()> {
        let error = |e: redb::StorageError| self.db.error(e);
        let table_error = |e: redb::TableError| self.db.error(e);
        self.txn
            .open_table(db::SEEN)
            .map_err(table_error)?
            .retain_in((id.0, 0)..=(id.0, u64::MAX), |_, _| false)
            .map_err(error)?;
        self.txn
            .open_table(db::SEEN_OBJECTS)
            .map_err(table_error)?
            .retain_in((id.0, 0)..=(id.0, u64::MAX), |_, _| false)
            .map_err(error)
    }

    /// Adds or replaces a snapshot.
    pub(crate) fn set_snapshot(&self, id: DatasetId, record: &SnapshotRecord) -> Result<()> {
        let row = encode(self.db, "a snapshot", record)?;
        let mut table = self.txn.open_table(db::SNAPSHOTS).map_err(|e| self.db.error(e))?;
        table.insert((id.0, record.createtxg), row.as_slice()).map_err(|e| self.db.error(e))?;
        Ok(())
    }

    /// The snapshots of a dataset as this transaction has them, oldest first.
    pub(crate) fn snapshots(&self, id: DatasetId) -> Result<Vec<SnapshotRecord>> {
        let table = self.txn.open_table(db::SNAPSHOTS).map_err(|e| self.db.error(e))?;
        let rows = table.range((id.0, 0)..=(id.0, u64::MAX)).map_err(|e| self.db.error(e))?;
        let mut found = Vec::new();
        for row in rows {
            let (_, row) = row.map_err(|e| self.db.error(e))?;
            found.push(decode(self.db, "a snapshot", row.value())?);
        }
        Ok(found)
    }

    /// Removes a snapshot.
    pub(crate) fn remove_snapshot(&self, id: DatasetId, createtxg: u64) -> Result<()> {
        let mut table = self.txn.open_table(db::SNAPSHOTS).map_err(|e| self.db.error(e))?;
        table.remove((id.0, createtxg)).map_err(|e| self.db.error(e))?;
        Ok(())
    }
}
