//! What was seen of a live file when its content was last known, so that it need not be read again.
//!
//! Owns: the rows, what makes one trustworthy, and writing them in batches. A row also names the object that
//! it stands for: if the set that a scan starts from has another one there, the row says nothing. So rows may
//! be written before or after the snapshot they belong to, and a crash between costs reading, never truth.
//!
//! Timestamps have a grain: a file written right after it was read can keep its times. A row is trusted only
//! if the file's times lie further back than that grain when the reading began.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flocker_store::StoreError;
use redb::{ReadOnlyTable, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::db::{self, Db};
use crate::hash::Hash;
use crate::meta::DatasetId;

type Result<T> = std::result::Result<T, StoreError>;

/// Grain of timestamps on file systems that keep nanoseconds: the kernel's tick is 10 ms at most.
pub(crate) const GRAIN: Duration = Duration::from_millis(25);
/// Grain where times are whole seconds.
const COARSE_GRAIN: Duration = Duration::from_millis(2500);

/// What `stat` said of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) mode: u32,
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

impl Stamp {
    /// Whether the times lie so far before `read_at` that a later write must change them.
    pub(crate) fn is_settled(&self, read_at: SystemTime) -> bool {
        let grain = if self.mtime.1 == 0 && self.ctime.1 == 0 { COARSE_GRAIN } else { GRAIN };
        let latest = self.mtime.max(self.ctime);
        let Ok(seconds) = u64::try_from(latest.0) else {
            return true;
        };
        let latest = UNIX_EPOCH + Duration::new(seconds, latest.1);
        latest + grain < read_at
    }
}

/// One inode as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) object: u64,
    pub(crate) stamp: Stamp,
    /// The object that says what was seen.
    pub(crate) hash: Hash,
    /// Of its names.
    pub(crate) links: u64,
    /// Whether the same stamp means the same content.
    pub(crate) trusted: bool,
}

/// Reads rows of one dataset.
pub(crate) struct SeenTable<'d> {
    db: &'d Db,
    id: DatasetId,
    table: ReadOnlyTable<(u64, u64), &'static [u8]>,
}

impl<'d> SeenTable<'d> {
    pub(crate) fn open(db: &'d Db, id: DatasetId) -> Result<Self> {
        let txn = db.read()?;
        Ok(SeenTable { db, id, table: txn.open_table(db::SEEN).map_err(|e| db.error(e))? })
    }

    /// What was seen of an inode.
    pub(crate) fn get(&self, inode: u64) -> Result<Option<Seen>> {
        let row = self.table.get((self.id.0, inode)).map_err(|e| self.db.error(e))?;
        // A row that cannot be read says nothing.
        Ok(row.and_then(|row| postcard::from_bytes(row.value()).ok()))
    }
}

/// Rows to be written.
#[derive(Debug, Default)]
pub(crate) struct SeenBatch {
    rows: HashMap<u64, Seen>,
    gone: Vec<u64>,
}

impl SeenBatch {
    /// Rows that may gather before they are written in a transaction of their own, about 200 bytes each.
    const LIMIT: usize = 50_000;

    pub(crate) fn set(&mut self, inode: u64, seen: Seen) {
        self.rows.insert(inode, seen);
    }

    /// The object is gone.
    pub(crate) fn remove(&mut self, object: u64) {
        self.gone.push(object);
    }

    /// Writes the rows now if they have become many.
    pub(crate) fn relieve(&mut self, db: &Db, id: DatasetId) -> Result<()> {
        if self.rows.len() + self.gone.len() < Self::LIMIT {
            return Ok(());
        }
        let txn = db.write()?;
        self.write(db, &txn, id)?;
        db.commit(txn)
    }

    /// Writes the rows in a transaction.
    pub(crate) fn write(&mut self, db: &Db, txn: &WriteTransaction, id: DatasetId) -> Result<()> {
        if self.rows.is_empty() && self.gone.is_empty() {
            return Ok(());
        }
        let mut table = txn.open_table(db::SEEN).map_err(|e| db.error(e))?;
        let mut inodes = txn.open_table(db::SEEN_OBJECTS).map_err(|e| db.error(e))?;
        for object in self.gone.drain(..) {
            let inode =
                inodes.remove((id.0, object)).map_err(|e| db.error(e))?.map(|row| row.value());
            let Some(inode) = inode else {
                continue;
            };
            let same = table
                .get((id.0, inode))
                .map_err(|e| db.error(e))?
                .and_then(|row| postcard::from_bytes::<Seen>(row.value()).ok())
                .is_none_or(|seen| seen.object == object);
            if same {
                table.remove((id.0, inode)).map_err(|e| db.error(e))?;
            }
        }
        for (inode, seen) in self.rows.drain() {
            let row = postcard::to_stdvec(&seen).map_err(|e| db.damaged(e.to_string()))?;
            table.insert((id.0, inode), row.as_slice()).map_err(|e| db.error(e))?;
            inodes.insert((id.0, seen.object), inode).map_err(|e| db.error(e))?;
        }
        Ok(())
    }
}

/// A short name for a list of links.
pub(crate) fn links_sum(links: &[super::inode::Link]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for link in links {
        hasher.update(&link.parent.to_le_bytes());
        hasher.update(&(link.name.len() as u64).to_le_bytes());
        hasher.update(&link.name);
    }
    Hash(*hasher.finalize().as_bytes()).prefix()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_within_the_grain_of_its_reading_is_not_trusted() {
        let stamp = |s, ns| Stamp { mode: 0, nlink: 1, size: 0, mtime: (s, ns), ctime: (s, ns) };
        let read_at = UNIX_EPOCH + Duration::new(1000, 500_000_000);
        assert!(stamp(1000, 400_000_000).is_settled(read_at));
        assert!(!stamp(1000, 490_000_000).is_settled(read_at));
        assert!(!stamp(1000, 600_000_000).is_settled(read_at));
        // Whole seconds: a write two seconds later could look the same.
        assert!(!stamp(999, 0).is_settled(read_at));
        assert!(stamp(990, 0).is_settled(read_at));
    }
}
