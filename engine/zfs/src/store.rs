//! The store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flocker_store::store::Result;
use flocker_store::*;

use crate::ZfsOptions;

/// Whether real ZFS can be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// It can; the version for people.
    Available {
        /// Such as `OpenZFS 2.3.9` or `zfs-fuse (pool version 23)`.
        version: String,
    },
    /// It cannot.
    Missing {
        /// Why, and what to install or start.
        reason: String,
    },
}

/// Looks for a working `zfs` command.
#[derive(Debug)]
pub struct Probe;

impl Probe {
    /// Whether the `zfs` command exists and works here.
    pub fn available(_options: &ZfsOptions) -> Availability {
        Availability::Missing {
            reason: "not built yet".into(),
        }
    }
}

/// Real ZFS below one dataset.
#[derive(Debug)]
pub struct ZfsStore {
    root: DatasetName,
    capabilities: Capabilities,
}

impl ZfsStore {
    /// Opens the datasets below `root`, which must exist.
    ///
    /// # Errors
    /// No working `zfs` command; [`StoreError::NoDataset`].
    pub fn open(root: &DatasetName, _options: ZfsOptions) -> Result<Self> {
        Err(StoreError::NoDataset {
            dataset: root.clone(),
        })
    }
}

#[allow(unused_variables)]
impl Store for ZfsStore {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn describe(&self) -> String {
        format!("zfs:{}", self.root)
    }
    fn root(&self) -> &DatasetName {
        &self.root
    }
    fn dataset(&self, dataset: &DatasetName) -> Result<DatasetInfo> {
        later()
    }
    fn datasets(&self) -> Result<Vec<DatasetInfo>> {
        later()
    }
    fn inventory(&self, dataset: &DatasetName) -> Result<Inventory> {
        later()
    }
    fn space(&self, dataset: &DatasetName) -> Result<Space> {
        later()
    }
    fn user_properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, Property>> {
        later()
    }
    fn set_user_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        later()
    }
    fn create(&self, dataset: &DatasetName, kind: DatasetKind) -> Result<DatasetInfo> {
        later()
    }
    fn destroy_dataset(&self, dataset: &DatasetName) -> Result<()> {
        later()
    }
    fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        later()
    }
    fn snapshot(&self, spec: &SnapshotSpec) -> Result<Vec<Snapshot>> {
        later()
    }
    fn destroy_snapshots(&self, snapshots: &[SnapshotName]) -> Result<()> {
        later()
    }
    fn bookmark(&self, snapshot: &SnapshotName, bookmark: &BookmarkName) -> Result<()> {
        later()
    }
    fn destroy_bookmarks(&self, bookmarks: &[BookmarkName]) -> Result<()> {
        later()
    }
    fn hold(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        later()
    }
    fn release(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        later()
    }
    fn holds(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>> {
        later()
    }
    fn rollback(&self, snapshot: &SnapshotName) -> Result<()> {
        later()
    }
    fn changed_since(&self, snapshot: &SnapshotName) -> Result<Change> {
        later()
    }
    fn verify_unwritten(&self, snapshot: &SnapshotName) -> Result<()> {
        later()
    }
    fn estimate(&self, spec: &SendSpec) -> Result<Option<u64>> {
        later()
    }
    fn send(&self, spec: &SendSpec) -> Result<Box<dyn SendStream>> {
        later()
    }
    fn receive(&self, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>> {
        later()
    }
    fn activate(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        later()
    }
    fn fence(&self, dataset: &DatasetName) -> Result<()> {
        later()
    }
    fn give_back(&self, dataset: &DatasetName) -> Result<()> {
        later()
    }
}

fn later<T>() -> Result<T> {
    Err(StoreError::NotCapable {
        store: "zfs".into(),
        what: "anything yet".into(),
    })
}
