//! What everything in a vault shares.
//!
//! Owns: the open vault's parts, and small operations that several of its modules need. Leaves the store's
//! operations to [`crate::datasets`], [`crate::snapshots`] and [`crate::transfer`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};

use flocker_store::{Capabilities, DatasetKind, DatasetName, Guid, StoreError};

use crate::blocks::Blocks;
use crate::db::Db;
use crate::layout::FORMAT_VERSION;
use crate::lock::{Claims, Turns};
use crate::meta::{Change, DatasetId, DatasetRecord, Live, View};
use crate::worker::Task;

type Result<T> = std::result::Result<T, StoreError>;

/// An open vault.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) path: PathBuf,
    pub(crate) root: DatasetName,
    pub(crate) db: Arc<Db>,
    pub(crate) blocks: Arc<Blocks>,
    pub(crate) capabilities: Capabilities,
    pub(crate) claims: Claims,
    pub(crate) turns: Turns,
    pub(crate) tasks: Sender<Task>,
    /// The vault closes: what only prepares for later stops.
    pub(crate) stopping: AtomicBool,
    /// See [`Inner::checkpoint_bytes`].
    pub(crate) checkpoint: AtomicU64,
}

/// Bytes of stream after which what arrived of a resumable receive is made durable: few enough to send again,
/// and so many that the syncs cost little.
pub(crate) const CHECKPOINT_BYTES: u64 = 256 << 20;

impl Inner {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!("vault:{}", self.path.display())
    }

    /// Bytes of stream after which what arrived of a resumable receive is made durable.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint.load(Ordering::Relaxed)
    }

    /// Refuses a dataset that does not belong here.
    pub(crate) fn check_within(&self, dataset: &DatasetName) -> Result<()> {
        if dataset.is_within(&self.root) {
            return Ok(());
        }
        Err(StoreError::NotCapable {
            store: self.describe(),
            what: format!("dataset {dataset}: its datasets are named {}/NAME", self.root),
        })
    }

    /// Adds a dataset and the parents it lacks.
    pub(crate) fn add_dataset(
        &self,
        change: &Change<'_>,
        name: &DatasetName,
        kind: DatasetKind,
    ) -> Result<DatasetId> {
        self.refuse_below_directory(name)?;
        let mut missing = Vec::new();
        let mut above = name.parent();
        let view = View::new(&self.db)?;
        while let Some(parent) = above.filter(|p| matches!(view.find(p), Ok(None))) {
            above = parent.parent();
            missing.push(parent);
        }
        for parent in missing.into_iter().rev() {
            change.add_dataset(&new_dataset(&parent, DatasetKind::Filesystem)?)?;
        }
        change.add_dataset(&new_dataset(name, kind)?)
    }

    /// A snapshot has arrived: its directory may be brought up to it.
    pub(crate) fn received(&self, dataset: &DatasetName) {
        // Without a worker (the vault is closing) activation does it.
        let _ = self.tasks.send(Task::Prepare(dataset.clone()));
    }

    /// Something was destroyed: there may be room to win.
    pub(crate) fn destroyed(&self) {
        let _ = self.tasks.send(Task::Collect);
    }
}

/// The row of a dataset that is made now.
pub(crate) fn new_dataset(name: &DatasetName, kind: DatasetKind) -> Result<DatasetRecord> {
    Ok(DatasetRecord {
        name: name.clone(),
        guid: new_guid()?,
        kind,
        properties: Default::default(),
        live: Live::Absent,
        origin: None,
        partial: None,
    })
}

/// A guid that nothing has; never 0, which stands for "no base" in a stream.
pub(crate) fn new_guid() -> Result<Guid> {
    loop {
        let number = getrandom::u64()
            .map_err(|e| StoreError::io("making a guid", std::io::Error::other(e)))?;
        if number != 0 {
            return Ok(Guid(number));
        }
    }
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn now_unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// What a vault of this version can do.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities {
        version: format!("vault format {FORMAT_VERSION}"),
        live_kinds: vec![DatasetKind::Directory, DatasetKind::Zvol],
        replica_kinds: vec![DatasetKind::Directory, DatasetKind::Filesystem, DatasetKind::Zvol],
        bookmarks: false,
        holds: true,
        resumable: true,
        compressed_send: true,
        raw_send: true,
        large_block_send: true,
        estimate: true,
        clones: true,
        atomic_group_snapshot: true,
        live_snapshot: false,
        modern_streams: None,
        receives_modern: true,
    }
}

/// An I/O error for want of room, as what it is to the dataset; any other error as it was.
pub(crate) fn no_space(dataset: &DatasetName, error: StoreError) -> StoreError {
    const ENOSPC: i32 = 28;
    const EDQUOT: i32 = 122;
    match error {
        StoreError::Io { context, source }
            if matches!(source.raw_os_error(), Some(ENOSPC | EDQUOT)) =>
        {
            StoreError::NoSpace { dataset: dataset.clone(), detail: context }
        }
        other => other,
    }
}
