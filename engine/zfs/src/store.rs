//! [`ZfsStore`]: one value that runs the commands for all datasets below one root.
//!
//! Owns: the trait's face and what its parts share: the runner, the dialect, the rule that nothing
//! outside the root is touched. Leaves the work to its parts: [`crate::datasets`],
//! [`crate::snapshots`], [`crate::holds`], [`crate::properties`], [`crate::check`], [`crate::send`],
//! [`crate::receive`], [`crate::streams`], [`crate::fence`], [`crate::activate`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flocker_store::store::Result;
use flocker_store::{
    BookmarkName, Capabilities, Change, CloneAccess, DatasetInfo, DatasetKind, DatasetName,
    HoldTag, Inventory, Property, ReceiveSpec, ReceiveStream, SendSpec, SendStream, Snapshot,
    SnapshotName, SnapshotSpec, Space, Store, StoreError, StreamFeatures,
};

use crate::ZfsOptions;
use flocker_lzc::Lzc;

use crate::errors::{self, About};
use crate::library;
use crate::probe::Dialect;
use crate::rest::Rests;
use crate::run::{Finished, Program, Runner, SystemRunner};
use crate::snapshots::PROBE_PREFIX;

/// How long an operation is tried again on zfs-fuse while it says busy: an unmount is finished there
/// by the daemon some time after the command that asked for it has returned.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);

/// Real ZFS below one dataset. See the [crate] for what it relies on.
#[derive(Debug, Clone)]
pub struct ZfsStore {
    pub(crate) root: DatasetName,
    pub(crate) options: ZfsOptions,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) dialect: Dialect,
    /// libzfs_core, where it is used.
    pub(crate) library: Option<Lzc>,
    capabilities: Capabilities,
    /// Datasets that a receive is running into: ZFS takes one at a time.
    pub(crate) receiving: Arc<Mutex<BTreeSet<DatasetName>>>,
    /// Guards read-change-write of the hold tags that zfs-fuse cannot list.
    pub(crate) tags: Arc<Mutex<()>>,
    /// What is known of datasets at rest.
    pub(crate) rests: Arc<Mutex<Rests>>,
}

impl ZfsStore {
    /// Opens the datasets at and below `root`, which must exist.
    ///
    /// # Errors
    /// [`StoreError::Io`] without a `zfs` command (the message says what to install),
    /// [`StoreError::NotCapable`] when it does not work here, [`StoreError::NoDataset`].
    pub fn open(root: &DatasetName, options: ZfsOptions) -> Result<Self> {
        let runner = Arc::new(SystemRunner::new(&options));
        let mut store = Self::with_runner(root, options, runner)?;
        // It has nothing to say to zfs-fuse.
        if !store.dialect.fuse {
            store.library = library::open(store.options.engine)?;
        }
        Ok(store)
    }

    /// As [`ZfsStore::open`], with commands of one's own.
    ///
    /// # Errors
    /// As [`ZfsStore::open`].
    pub fn with_runner(
        root: &DatasetName,
        options: ZfsOptions,
        runner: Arc<dyn Runner>,
    ) -> Result<Self> {
        // ZFS has no such pool, and the command would take it for an option.
        if root.as_str().starts_with('-') {
            return Err(StoreError::NoDataset { dataset: root.clone() });
        }
        let dialect = Dialect::find(&*runner)?;
        let store = Self {
            root: root.clone(),
            options,
            runner,
            capabilities: dialect.capabilities(),
            dialect,
            library: None,
            receiving: Arc::default(),
            tags: Arc::default(),
            rests: Arc::default(),
        };
        store.dataset(root)?;
        tracing::debug!(store = %store.describe(), version = %store.capabilities.version, "opened");
        Ok(store)
    }

    /// Runs `zfs` and maps its failure.
    pub(crate) fn zfs(&self, args: &[&str], about: About<'_>) -> Result<Finished> {
        let finished = self.runner.run(Program::Zfs, args)?;
        if finished.ending.is_success() {
            Ok(finished)
        } else {
            Err(errors::explain(&finished, about))
        }
    }

    /// Runs `zfs` as [`ZfsStore::zfs`] does, and again while zfs-fuse says busy.
    pub(crate) fn zfs_patiently(&self, args: &[&str], about: About<'_>) -> Result<Finished> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        let mut pause = Duration::from_millis(10);
        loop {
            match self.zfs(args, about) {
                Err(StoreError::Busy { .. }) if self.dialect.fuse && Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                outcome => return outcome,
            }
        }
    }

    /// Refuses what lies outside the root, before any command sees its name.
    pub(crate) fn inside(&self, dataset: &DatasetName) -> Result<()> {
        if dataset.is_within(&self.root) {
            Ok(())
        } else {
            Err(self.not_capable(format!("work on {dataset}, which lies outside its root,")))
        }
    }

    /// "No such dataset" is a word only of a pool that is there. One that is not imported says the same of all that
    /// is in it, and whoever believes it sends everything anew.
    fn in_place<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(StoreError::NoDataset { dataset }) => match self.exists(&self.root) {
                Ok(true) => Err(StoreError::NoDataset { dataset }),
                Ok(false) => {
                    Err(StoreError::Away { store: self.describe(), detail: self.where_is_root() })
                }
                Err(error) => Err(error),
            },
            result => result,
        }
    }

    /// What to do about a root that is not there.
    fn where_is_root(&self) -> String {
        let pool = self.root.pool();
        let there = DatasetName::new(pool).is_ok_and(|it| matches!(self.exists(&it), Ok(true)));
        match there && pool != self.root.as_str() {
            true => format!(
                "{} is not there, its pool is: was it renamed? `zfs list -r {pool}`",
                self.root
            ),
            false => format!("is the pool imported? `zpool status {pool}`, `zpool import {pool}`"),
        }
    }

    pub(crate) fn not_capable(&self, what: impl Into<String>) -> StoreError {
        StoreError::NotCapable {
            store: format!("{} ({})", self.describe(), self.capabilities.version),
            what: what.into(),
        }
    }
}

/// Locks, whatever happened to another thread that held the lock: what it guards is always whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes come and go while somebody looks; no plan may rest on one.
fn without_probes(mut inventory: Inventory) -> Inventory {
    inventory.snapshots.retain(|snapshot| !snapshot.name.short().starts_with(PROBE_PREFIX));
    inventory
}

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

    fn stream_features(&self, dataset: &DatasetName) -> Result<StreamFeatures> {
        self.inside(dataset)?;
        self.in_place(self.find_stream_features(dataset))
    }

    fn dataset(&self, dataset: &DatasetName) -> Result<DatasetInfo> {
        self.inside(dataset)?;
        self.in_place(self.get_dataset(dataset))
    }

    fn datasets(&self) -> Result<Vec<DatasetInfo>> {
        self.in_place(self.list_datasets())
    }

    fn inventory(&self, dataset: &DatasetName) -> Result<Inventory> {
        self.inside(dataset)?;
        self.in_place(self.list_inventory(dataset)).map(without_probes)
    }

    fn inventory_with_clones(&self, dataset: &DatasetName) -> Result<Inventory> {
        self.inside(dataset)?;
        self.in_place(self.list_with_clones(dataset)).map(without_probes)
    }

    fn space(&self, dataset: &DatasetName) -> Result<Space> {
        self.inside(dataset)?;
        self.in_place(self.get_space(dataset))
    }

    fn user_properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, Property>> {
        self.inside(dataset)?;
        self.in_place(self.get_user_properties(dataset))
    }

    fn set_user_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        self.inside(dataset)?;
        self.in_place(self.change_user_properties(dataset, changes))
    }

    fn create(&self, dataset: &DatasetName, kind: DatasetKind) -> Result<DatasetInfo> {
        self.inside(dataset)?;
        self.create_dataset(dataset, kind)
    }

    fn destroy_dataset(&self, dataset: &DatasetName) -> Result<()> {
        self.inside(dataset)?;
        self.forget_rest(dataset);
        self.destroy_one_dataset(dataset)
    }

    fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        self.inside(from)?;
        self.inside(to)?;
        self.forget_rest(from);
        self.forget_rest(to);
        self.rename_dataset(from, to)
    }

    fn snapshot(&self, spec: &SnapshotSpec) -> Result<Vec<Snapshot>> {
        for name in &spec.names {
            self.inside(name.dataset())?;
        }
        self.in_place(self.take_snapshots(spec))
    }

    fn destroy_snapshots(&self, snapshots: &[SnapshotName]) -> Result<()> {
        for name in snapshots {
            self.inside(name.dataset())?;
        }
        self.destroy_some_snapshots(snapshots)
    }

    fn bookmark(&self, snapshot: &SnapshotName, bookmark: &BookmarkName) -> Result<()> {
        self.inside(snapshot.dataset())?;
        self.inside(bookmark.dataset())?;
        self.make_bookmark(snapshot, bookmark)
    }

    fn destroy_bookmarks(&self, bookmarks: &[BookmarkName]) -> Result<()> {
        for name in bookmarks {
            self.inside(name.dataset())?;
        }
        self.destroy_some_bookmarks(bookmarks)
    }

    fn hold(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        for name in snapshots {
            self.inside(name.dataset())?;
        }
        self.hold_snapshots(tag, snapshots)
    }

    fn release(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        for name in snapshots {
            self.inside(name.dataset())?;
        }
        self.release_snapshots(tag, snapshots)
    }

    fn holds(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>> {
        self.inside(snapshot.dataset())?;
        self.list_holds(snapshot)
    }

    fn rollback(&self, snapshot: &SnapshotName) -> Result<()> {
        self.inside(snapshot.dataset())?;
        self.forget_rest(snapshot.dataset());
        self.roll_back(snapshot)
    }

    fn changed_since(&self, snapshot: &SnapshotName) -> Result<Change> {
        self.inside(snapshot.dataset())?;
        self.in_place(self.hint_of_change(snapshot))
    }

    fn verify_unwritten(&self, snapshot: &SnapshotName) -> Result<()> {
        self.inside(snapshot.dataset())?;
        self.in_place(self.prove_unwritten(snapshot))
    }

    fn estimate(&self, spec: &SendSpec) -> Result<Option<u64>> {
        self.inside(spec.to.dataset())?;
        self.estimate_send(spec)
    }

    fn send(&self, spec: &SendSpec) -> Result<Box<dyn SendStream>> {
        self.inside(spec.to.dataset())?;
        self.start_send(spec)
    }

    fn receive(&self, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>> {
        self.inside(&spec.dataset)?;
        self.forget_rest(&spec.dataset);
        self.in_place(self.start_receive(spec))
    }

    fn live_path(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        self.live_path_of(dataset)
    }

    fn rehearse(&self, dataset: &DatasetName) -> Result<()> {
        self.inside(dataset)?;
        self.in_place(self.rehearse_dataset(dataset))
    }

    fn activate(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        self.inside(dataset)?;
        self.activate_dataset(dataset)
    }

    fn fence(&self, dataset: &DatasetName) -> Result<()> {
        self.inside(dataset)?;
        self.in_place(self.fence_dataset(dataset))
    }

    fn set_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        self.inside(keep.dataset())?;
        self.inside(aside)?;
        self.forget_rest(keep.dataset());
        self.forget_rest(aside);
        self.set_dataset_aside(keep, aside)
    }

    fn clone_snapshot(
        &self,
        snapshot: &SnapshotName,
        clone: &DatasetName,
        access: CloneAccess,
    ) -> Result<Option<PathBuf>> {
        self.inside(snapshot.dataset())?;
        self.inside(clone)?;
        self.make_clone(snapshot, clone, access)
    }

    fn remove_clone(&self, clone: &DatasetName) -> Result<()> {
        self.inside(clone)?;
        self.forget_rest(clone);
        self.take_clone_away(clone)
    }

    fn give_back(&self, dataset: &DatasetName) -> Result<()> {
        self.inside(dataset)?;
        self.forget_rest(dataset);
        self.give_dataset_back(dataset)
    }
}
