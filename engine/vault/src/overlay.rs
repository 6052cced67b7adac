//! The blocks of one session that are not committed: hash → place, in bounded memory.
//!
//! Owns: a map that goes to a temporary database when it grows. A small increment never touches that; the
//! first full receive of terabytes does, instead of filling the memory.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use flocker_store::StoreError;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use crate::db::{self, Db};
use crate::hash::Hash;
use crate::pack::Loc;

type Result<T> = std::result::Result<T, StoreError>;

/// Entries held in memory, about 64 bytes each.
const MEMORY_ENTRIES: usize = 128 << 10;
/// Memory for the pages of the temporary database, bytes.
const SPILL_CACHE_BYTES: usize = 8 << 20;
const SPILLED: TableDefinition<[u8; 32], [u8; 16]> = TableDefinition::new("spilled");

static SPILL_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The map.
#[derive(Debug)]
pub(crate) struct Overlay {
    tmp: PathBuf,
    memory: HashMap<Hash, Loc>,
    spill: Option<Spill>,
    limit: usize,
}

#[derive(Debug)]
struct Spill {
    path: PathBuf,
    database: Database,
}

impl Drop for Spill {
    fn drop(&mut self) {
        // The vault's next open removes what is left here.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Overlay {
    /// An empty map that may put a file into `tmp`.
    pub(crate) fn new(tmp: PathBuf) -> Self {
        Overlay { tmp, memory: HashMap::new(), spill: None, limit: MEMORY_ENTRIES }
    }

    pub(crate) fn get(&self, hash: &Hash) -> Result<Option<Loc>> {
        if let Some(loc) = self.memory.get(hash) {
            return Ok(Some(*loc));
        }
        let Some(spill) = &self.spill else {
            return Ok(None);
        };
        let found = || -> std::result::Result<Option<Loc>, redb::Error> {
            let table = spill.database.begin_read()?.open_table(SPILLED)?;
            Ok(table.get(hash.0)?.map(|row| Loc::from_bytes(row.value())))
        };
        found().map_err(|e| spill_error(&spill.path, e))
    }

    pub(crate) fn insert(&mut self, hash: Hash, loc: Loc) -> Result<()> {
        self.memory.insert(hash, loc);
        if self.memory.len() >= self.limit {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        if self.spill.is_none() {
            let number = SPILL_NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = self.tmp.join(format!("session-{number}.redb"));
            let database = Database::builder()
                .set_cache_size(SPILL_CACHE_BYTES)
                .create(&path)
                .map_err(|e| spill_error(&path, e))?;
            self.spill = Some(Spill { path, database });
        }
        let Some(spill) = &self.spill else {
            return Ok(());
        };
        let mut sorted: Vec<(Hash, Loc)> = self.memory.drain().collect();
        sorted.sort_unstable_by_key(|(hash, _)| *hash);
        let store = || -> std::result::Result<(), redb::Error> {
            let mut txn = spill.database.begin_write()?;
            // It need not survive a crash: the next open throws it away.
            txn.set_durability(Durability::None)?;
            {
                let mut table = txn.open_table(SPILLED)?;
                for (hash, loc) in &sorted {
                    table.insert(hash.0, loc.to_bytes())?;
                }
            }
            txn.commit()?;
            Ok(())
        };
        store().map_err(|e| spill_error(&spill.path, e))
    }

    /// Adds every block to the index, unless another session has added it meanwhile; says how many bytes of
    /// each pack count now.
    pub(crate) fn publish(
        &mut self,
        db: &Db,
        txn: &WriteTransaction,
    ) -> Result<BTreeMap<u32, u64>> {
        let mut added = BTreeMap::new();
        let mut index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
        let mut publish = |hash: [u8; 32], loc: Loc| -> Result<()> {
            if index.get(hash).map_err(|e| db.error(e))?.is_none() {
                index.insert(hash, loc.to_bytes()).map_err(|e| db.error(e))?;
                *added.entry(loc.pack).or_insert(0) += u64::from(loc.len);
            }
            Ok(())
        };
        if let Some(spill) = &self.spill {
            let error = |e: redb::Error| spill_error(&spill.path, e);
            let view = spill
                .database
                .begin_read()
                .map_err(|e| error(e.into()))?
                .open_table(SPILLED)
                .map_err(|e| error(e.into()))?;
            for row in view.iter().map_err(|e| error(e.into()))? {
                let (hash, loc) = row.map_err(|e| error(e.into()))?;
                publish(hash.value(), Loc::from_bytes(loc.value()))?;
            }
        }
        let mut sorted: Vec<(&Hash, &Loc)> = self.memory.iter().collect();
        sorted.sort_unstable();
        for (hash, loc) in sorted {
            publish(hash.0, *loc)?;
        }
        Ok(added)
    }
}

fn spill_error(path: &std::path::Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(source) => StoreError::io(format!("using {}", path.display()), source),
        other => StoreError::Corrupt { path: path.to_owned(), detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Kind;

    #[test]
    fn a_map_beyond_its_memory_still_knows_every_block() {
        let dir = tempfile::tempdir().expect("dir");
        let mut overlay = Overlay::new(dir.path().to_owned());
        overlay.limit = 10;
        let hash = |i: u32| Kind::Data.hash(&i.to_le_bytes());
        let loc = |i: u32| Loc { pack: i, offset: 1, len: 2 };
        for i in 0..35 {
            overlay.insert(hash(i), loc(i)).expect("insert");
        }
        assert!(overlay.memory.len() < 10);
        for i in 0..35 {
            assert_eq!(overlay.get(&hash(i)).expect("get"), Some(loc(i)));
        }
        assert_eq!(overlay.get(&hash(99)).expect("get"), None);
        drop(overlay);
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0);
    }
}
