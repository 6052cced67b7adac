//! The vault's own database: which datasets and snapshots there are, and where each block lies.
//!
//! Owns: the redb file, its tables, and turning its errors into ours. Leaves what the rows mean to
//! [`crate::meta`] (datasets and snapshots), [`crate::blocks`] (index and packs) and [`crate::dir`]
//! (what was seen of live files).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use flocker_store::StoreError;
use redb::{Database, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

type Result<T> = std::result::Result<T, StoreError>;

/// Counters of the whole vault, by name.
pub(crate) const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
/// Dataset id → [`crate::meta::DatasetRecord`], postcard.
pub(crate) const DATASETS: TableDefinition<u64, &[u8]> = TableDefinition::new("datasets");
/// Dataset name → dataset id.
pub(crate) const NAMES: TableDefinition<&str, u64> = TableDefinition::new("names");
/// (Dataset id, createtxg) → [`crate::meta::SnapshotRecord`], postcard.
pub(crate) const SNAPSHOTS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("snapshots");
/// Hash of a block → pack, offset and length, packed by [`crate::pack::Loc`].
pub(crate) const INDEX: TableDefinition<[u8; 32], [u8; 16]> = TableDefinition::new("index");
/// Pack → (bytes committed, bytes that the index points to).
pub(crate) const PACKS: TableDefinition<u32, (u64, u64)> = TableDefinition::new("packs");
/// (Dataset id, inode) → what was seen of it, see [`crate::dir::seen`].
pub(crate) const SEEN: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("seen");
/// (Dataset id, object) → inode.
pub(crate) const SEEN_OBJECTS: TableDefinition<(u64, u64), u64> =
    TableDefinition::new("seen_objects");

/// Memory for the database's pages, bytes: enough for the upper levels of an index of millions of blocks.
const CACHE_BYTES: usize = 24 << 20;

/// The open database. A commit that failed for want of room leaves redb refusing everything until it is
/// opened again, so it is held behind a lock that lets us do that.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    database: RwLock<Option<Arc<Database>>>,
    /// The vault's lock: whoever still reads the database keeps others out.
    _lock: File,
}

impl Db {
    /// Opens the database, or makes it.
    pub(crate) fn open(path: &Path, lock: File) -> Result<Self> {
        let db = Db { path: path.to_owned(), database: RwLock::new(None), _lock: lock };
        db.reopen()?;
        let txn = db.write()?;
        let tables = || -> std::result::Result<(), redb::TableError> {
            txn.open_table(COUNTERS)?;
            txn.open_table(DATASETS)?;
            txn.open_table(NAMES)?;
            txn.open_table(SNAPSHOTS)?;
            txn.open_table(INDEX)?;
            txn.open_table(PACKS)?;
            txn.open_table(SEEN)?;
            txn.open_table(SEEN_OBJECTS)?;
            Ok(())
        };
        tables().map_err(|e| db.error(e))?;
        db.commit(txn)?;
        Ok(db)
    }

    fn reopen(&self) -> Result<()> {
        let mut slot = self.database.write().unwrap_or_else(|e| e.into_inner());
        *slot = None; // closes it before it is opened again
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&self.path)
            .map_err(|e| self.error(e))?;
        *slot = Some(Arc::new(database));
        Ok(())
    }

    fn get(&self) -> Result<Arc<Database>> {
        let held = |db: &Self| {
            let slot = db.database.read().unwrap_or_else(|e| e.into_inner());
            slot.clone()
        };
        if let Some(database) = held(self) {
            return Ok(database);
        }
        self.reopen()?;
        held(self).ok_or_else(|| self.damaged("it is closed"))
    }

    /// A view of what is committed.
    pub(crate) fn read(&self) -> Result<ReadTransaction> {
        match self.get()?.begin_read() {
            Ok(txn) => Ok(txn),
            Err(_) => {
                self.reopen()?;
                self.get()?.begin_read().map_err(|e| self.error(e))
            }
        }
    }

    /// The one write transaction; waits for the one before. Durable once [`Db::commit`] returns.
    pub(crate) fn write(&self) -> Result<WriteTransaction> {
        match self.get()?.begin_write() {
            Ok(txn) => Ok(txn),
            Err(_) => {
                self.reopen()?;
                self.get()?.begin_write().map_err(|e| self.error(e))
            }
        }
    }

    /// Makes a transaction durable.
    pub(crate) fn commit(&self, txn: WriteTransaction) -> Result<()> {
        txn.commit().map_err(|e| self.error(e))
    }

    /// An error of redb in our terms.
    pub(crate) fn error(&self, error: impl Into<redb::Error>) -> StoreError {
        match error.into() {
            redb::Error::Io(source) => {
                StoreError::io(format!("using {}", self.path.display()), source)
            }
            redb::Error::PreviousIo => StoreError::io(
                format!("using {}", self.path.display()),
                std::io::Error::other("an earlier write failed"),
            ),
            other => StoreError::Corrupt { path: self.path.clone(), detail: other.to_string() },
        }
    }

    /// A row that cannot be read.
    pub(crate) fn damaged(&self, detail: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), detail: detail.into() }
    }
}
