//! The journal: what must be durable before it is acted on. One redb file a node.
//!
//! Owns: the node's name and incarnation, its units, its peers, and the invitations that are open.
//! Leaves to others: what any of it means (`flocker_core`), what merely happened (`history`).
//!
//! ```text
//! node         "format" | "name" | "incarnation"  → bytes
//! units        unit id (big endian)               → postcard(UnitRecord)
//! peers        fingerprint                        → postcard(PeerRecord)
//! invitations  fixed key                          → postcard(InvitationRecord)
//! ```
//!
//! Every transaction is durable (`fsync`) when it returns. Opening verifies the checksum of every
//! page; what does not hold is an error that names the file, never a guess. A journal that is gone
//! is made anew with a new [`Incarnation`], by which peers notice; what the datasets' mirrors then
//! claim is the core's to judge.

mod invitation;
mod lock;

use std::fmt;
use std::path::{Path, PathBuf};

use flocker_core::ids::{Fingerprint, Incarnation, UnitId};
use flocker_core::record::{JournalChange, PeerRecord, UnitRecord};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use invitation::{InvitationRecord, MAX_TRIES, Try};
pub use lock::{LockError, StateLock};

/// The layout this program writes and reads.
pub const FORMAT: u32 = 3;

const NODE: TableDefinition<&str, &[u8]> = TableDefinition::new("node");
const UNITS: TableDefinition<u128, &[u8]> = TableDefinition::new("units");
const PEERS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("peers");
const INVITATIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("invitations");

/// Memory that redb may use for pages: the journal is small.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is one already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or not a journal.
    #[error(
        "{} is damaged ({detail}): restore it, or move it away; without it nothing becomes writable here until every peer has answered",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        detail: String,
    },
    /// It is of another layout.
    #[error("{} has format {found}, this program reads format {FORMAT}: use the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u32,
    },
    /// It could not be read or written.
    #[error("{}: {detail}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, and what the system said.
        detail: String,
        /// The database's error.
        #[source]
        source: Box<redb::Error>,
    },
}

/// Everything a node starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What the node called itself when the journal was made.
    pub name: String,
    /// This life of the journal.
    pub incarnation: Incarnation,
    /// By id.
    pub units: Vec<UnitRecord>,
    /// By fingerprint.
    pub peers: Vec<PeerRecord>,
}

/// An open journal. One process has it at a time.
pub struct Journal {
    path: PathBuf,
    db: Database,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).finish()
    }
}

impl Journal {
    /// Makes a journal that was not there.
    ///
    /// # Errors
    /// [`JournalError::Exists`], [`JournalError::Io`].
    pub fn create(path: &Path, name: &str, incarnation: Incarnation) -> Result<Self, JournalError> {
        if path.exists() {
            return Err(JournalError::Exists { path: path.to_owned() });
        }
        // Made beside and renamed: a journal without its first transaction never has its name.
        let beside = path.with_extension("redb.new");
        let _ = std::fs::remove_file(&beside);
        let journal = Self {
            path: path.to_owned(),
            db: redb::Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create(&beside)
                .map_err(|e| io(path, "creating", e))?,
        };
        journal.write("creating", |txn| {
            let mut node = txn.open_table(NODE)?;
            node.insert("format", FORMAT.to_le_bytes().as_slice())?;
            node.insert("name", name.as_bytes())?;
            node.insert("incarnation", incarnation.0.to_le_bytes().as_slice())?;
            drop(node);
            txn.open_table(UNITS)?;
            txn.open_table(PEERS)?;
            txn.open_table(INVITATIONS)?;
            Ok(())
        })?;
        std::fs::rename(&beside, path)
            .and_then(|()| sync_parent(path))
            .map_err(|e| io(path, "renaming", redb::StorageError::from(e)))?;
        Ok(journal)
    }

    /// Opens a journal that is there, and checks all of it.
    ///
    /// # Errors
    /// [`JournalError::Damaged`], [`JournalError::Format`], [`JournalError::Io`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let damaged = |detail: String| JournalError::Damaged { path: path.to_owned(), detail };
        let size = std::fs::metadata(path)
            .map_err(|e| io(path, "opening", redb::StorageError::from(e)))?
            .len();
        if size == 0 {
            return Err(damaged("it is empty".into()));
        }
        // A damaged file may trip one of redb's own assertions; that is the file's fault.
        let opened = std::panic::catch_unwind(|| {
            redb::Builder::new()
                .set_cache_size(CACHE_BYTES)
                .set_check_integrity_on_open(true)
                .open(path)
        })
        .map_err(|_| damaged("its pages contradict each other".into()))?;
        let db = match opened {
            Ok(db) => db,
            Err(error @ redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(io(path, "opening", error));
            }
            Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))
                if !matches!(
                    e.kind(),
                    std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
                ) =>
            {
                return Err(io(path, "opening", redb::StorageError::Io(e)));
            }
            Err(other) => return Err(damaged(other.to_string())),
        };
        let journal = Self { path: path.to_owned(), db };
        let format = journal.number::<4>("format")?.map(u32::from_le_bytes);
        match format {
            Some(FORMAT) => Ok(journal),
            Some(found) => Err(JournalError::Format { path: path.to_owned(), found }),
            None => Err(damaged("it does not say its format".into())),
        }
    }

    /// Reads everything a node starts with.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] naming the record that cannot be read.
    pub fn contents(&self) -> Result<Contents, JournalError> {
        let name = self
            .bytes("name")?
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| self.damaged("it does not say its node's name".into()))?;
        let incarnation = self
            .number::<8>("incarnation")?
            .map(|bytes| Incarnation(u64::from_le_bytes(bytes)))
            .ok_or_else(|| self.damaged("it does not say its incarnation".into()))?;
        let mut units = Vec::new();
        let mut peers = Vec::new();
        self.read("reading", |txn| {
            for entry in txn.open_table(UNITS)?.iter()? {
                let (key, value) = entry?;
                units.push((UnitId(key.value()), value.value().to_vec()));
            }
            for entry in txn.open_table(PEERS)?.iter()? {
                let (key, value) = entry?;
                peers.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(())
        })?;
        let units = units
            .into_iter()
            .map(|(id, bytes)| self.decode::<UnitRecord>(&bytes, || format!("unit {id}")))
            .collect::<Result<_, _>>()?;
        let peers = peers
            .into_iter()
            .map(|(_, bytes)| self.decode::<PeerRecord>(&bytes, || "a peer".into()))
            .collect::<Result<_, _>>()?;
        Ok(Contents { name, incarnation, units, peers })
    }

    /// Makes these changes durable as one; none of them is there when it fails.
    ///
    /// # Errors
    /// [`JournalError::Io`]: it is not known to be durable, so the caller may not go on.
    pub fn apply(&self, changes: &[JournalChange]) -> Result<(), JournalError> {
        self.write("writing", |txn| {
            let mut units = txn.open_table(UNITS)?;
            let mut peers = txn.open_table(PEERS)?;
            for change in changes {
                match change {
                    JournalChange::PutUnit(unit) => {
                        units.insert(unit.id.0, encode(unit.as_ref()).as_slice())?;
                    }
                    JournalChange::DeleteUnit(id) => {
                        units.remove(id.0)?;
                    }
                    JournalChange::PutPeer(peer) => {
                        peers.insert(peer.fingerprint.0.as_slice(), encode(peer).as_slice())?;
                    }
                    JournalChange::DeletePeer(Fingerprint(key)) => {
                        peers.remove(key.as_slice())?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(
        &self,
        doing: &str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), JournalError> {
        let run = || -> Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            change(&txn)?;
            txn.commit()?;
            Ok(())
        };
        run().map_err(|e| io(&self.path, doing, e))
    }

    fn read(
        &self,
        doing: &str,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), JournalError> {
        let run = || look(&self.db.begin_read()?);
        match run() {
            Ok(()) => Ok(()),
            Err(error @ redb::Error::Io(_)) => Err(io(&self.path, doing, error)),
            Err(error) => Err(self.damaged(error.to_string())),
        }
    }

    fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        let mut found = None;
        self.read("reading", |txn| {
            found = txn.open_table(NODE)?.get(key)?.map(|value| value.value().to_vec());
            Ok(())
        })?;
        Ok(found)
    }

    fn number<const N: usize>(&self, key: &str) -> Result<Option<[u8; N]>, JournalError> {
        Ok(self.bytes(key)?.and_then(|bytes| bytes.try_into().ok()))
    }

    fn decode<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        what: impl FnOnce() -> String,
    ) -> Result<T, JournalError> {
        postcard::from_bytes(bytes)
            .map_err(|error| self.damaged(format!("{} cannot be read: {error}", what())))
    }

    fn damaged(&self, detail: String) -> JournalError {
        JournalError::Damaged { path: self.path.clone(), detail }
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    match postcard::to_stdvec(value) {
        Ok(bytes) => bytes,
        // Records hold nothing that postcard cannot write (no unsized sequences, no maps of
        // unknown length): failing here would be our own bug.
        Err(error) => panic!("a journal record cannot be encoded: {error}"),
    }
}

fn io(path: &Path, doing: &str, error: impl Into<redb::Error>) -> JournalError {
    let source = error.into();
    JournalError::Io {
        path: path.to_owned(),
        detail: format!("{doing}: {source}"),
        source: Box::new(source),
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
