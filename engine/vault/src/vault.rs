//! The vault as a store: opening it, and the trait's operations, each passed on to the module that owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use flocker_store::store::Result;
use flocker_store::{
    BookmarkName, Capabilities, Change, CloneAccess, DatasetInfo, DatasetKind, DatasetName, Guid,
    HoldTag, Inventory, Property, ReceiveSpec, ReceiveStream, SendSpec, SendStream, Snapshot,
    SnapshotName, SnapshotSpec, Space, Store, StoreError, StreamFeatures,
};

use crate::blocks::Blocks;
use crate::db::Db;
use crate::gc::{self, Collected};
use crate::inner::{self, Inner, new_dataset};
use crate::layout;
use crate::lock::{Claims, Turns};
use crate::meta::View;
use crate::worker::{self, Worker};

/// Name of the dataset above all others in a vault.
pub const ROOT: &str = "vault";

/// A store of ZFS streams in plain files. See the [crate] for what it is.
#[derive(Debug)]
pub struct Vault {
    // The thread ends before the rest goes.
    _worker: Worker,
    inner: Arc<Inner>,
}

impl Vault {
    /// Makes a vault in an empty or missing directory, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the directory holds something; [`StoreError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Vault> {
        layout::create(path.as_ref())?;
        Self::open(path)
    }

    /// Opens a vault: what a crash left half done is taken back.
    ///
    /// # Errors
    /// [`StoreError::Busy`] naming the process that has it open; [`StoreError::NotCapable`] naming both
    /// versions for a vault of another format; [`StoreError::Corrupt`] for what is not a vault.
    pub fn open(path: impl AsRef<Path>) -> Result<Vault> {
        let path = path.as_ref();
        layout::check(path)?;
        let path = std::fs::canonicalize(path)
            .map_err(|e| StoreError::io(format!("opening {}", path.display()), e))?;
        let root = DatasetName::new(ROOT)?;
        let lock = layout::lock(&path, &root)?;
        let db = Arc::new(Db::open(&path.join("index.redb"), lock)?);
        let blocks = Blocks::open(&path, db.clone())?;
        let (tasks, todo) = channel();
        let inner = Arc::new(Inner {
            path,
            root,
            db,
            blocks,
            capabilities: inner::capabilities(),
            claims: Claims::default(),
            turns: Turns::default(),
            tasks: tasks.clone(),
            stopping: AtomicBool::new(false),
            checkpoint: AtomicU64::new(inner::CHECKPOINT_BYTES),
        });
        inner.tidy()?;
        let worker = Worker::start(Arc::downgrade(&inner), tasks, todo)?;
        Ok(Vault { _worker: worker, inner })
    }

    /// Where the live directory of a dataset is when it is active. The same for the same name in every vault,
    /// but for the vault's own path.
    pub fn live_path(&self, dataset: &DatasetName) -> PathBuf {
        layout::live(&self.inner.path, dataset)
    }

    /// Checks the newest snapshot of a directory volume at rest out into its hidden tree, so that activating
    /// it is a rename. The vault does so by itself after each receive; this waits for it. Of a zvol it makes
    /// the image, which the vault does by itself only once there is one.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Io`]; activation tries again.
    pub fn prepare(&self, dataset: &DatasetName) -> Result<()> {
        worker::prepare_dataset(&self.inner, dataset, true)
    }

    /// Frees the room of everything that no snapshot refers to, now. Waits until no send or receive is
    /// under way. The vault does so by itself when enough was destroyed.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a snapshot's tree cannot be read: then nothing is freed.
    pub fn gc(&self) -> Result<Collected> {
        let _exclusive = self.inner.blocks.exclusive();
        gc::collect(&self.inner)
    }

    /// Makes what arrives of resumable receives durable after so many bytes of stream. For tests.
    #[doc(hidden)]
    pub fn checkpoint_every(&self, bytes: u64) {
        self.inner.checkpoint.store(bytes, Ordering::Relaxed);
    }

    /// Reads the whole content of an object of a snapshot, for tests and `doctor`: `(bytes, file size)`,
    /// holes as zeroes. The size is that of the file where the object is one.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`]; [`StoreError::Corrupt`] naming the pack.
    #[doc(hidden)]
    pub fn read_object(
        &self,
        snapshot: &SnapshotName,
        object: u64,
    ) -> Result<Option<(Vec<u8>, Option<u64>)>> {
        crate::inspect::read_object(&self.inner, snapshot, object)
    }

    /// The numbers of the objects of a snapshot with their types, and the hash of the whole set.
    ///
    /// # Errors
    /// As [`Vault::read_object`].
    #[doc(hidden)]
    pub fn objects(&self, snapshot: &SnapshotName) -> Result<(String, Vec<(u64, u32)>)> {
        crate::inspect::objects(&self.inner, snapshot)
    }

    /// Reads every block of every snapshot and proves it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] naming the first damaged pack.
    pub fn verify(&self) -> Result<()> {
        crate::inspect::verify(&self.inner)
    }
}

impl Store for Vault {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn root(&self) -> &DatasetName {
        &self.inner.root
    }

    fn stream_features(&self, dataset: &DatasetName) -> Result<StreamFeatures> {
        self.inner.stream_features(dataset)
    }

    fn dataset(&self, dataset: &DatasetName) -> Result<DatasetInfo> {
        let view = View::new(&self.inner.db)?;
        let (id, record) = view.dataset(dataset)?;
        self.inner.info(id, &record, &view)
    }

    fn datasets(&self) -> Result<Vec<DatasetInfo>> {
        self.inner.list()
    }

    fn inventory(&self, dataset: &DatasetName) -> Result<Inventory> {
        self.inner.inventory(dataset)
    }

    fn inventories_with_clones(&self, datasets: &[DatasetName]) -> Vec<Result<Inventory>> {
        // Who is a clone of what is asked once, not once a dataset.
        let mut cloned: BTreeMap<DatasetName, BTreeSet<Guid>> = BTreeMap::new();
        match self.datasets() {
            Ok(all) => {
                for origin in all.into_iter().filter_map(|info| info.origin) {
                    cloned.entry(origin.name.dataset().clone()).or_default().insert(origin.guid);
                }
            }
            // Each says it itself.
            Err(_) => return datasets.iter().map(|d| self.inventory_with_clones(d)).collect(),
        }
        let one = |dataset: &DatasetName| {
            let cloned = cloned.get(dataset).cloned().unwrap_or_default();
            Ok(Inventory { cloned, ..self.inventory(dataset)? })
        };
        datasets.iter().map(one).collect()
    }

    fn space(&self, dataset: &DatasetName) -> Result<Space> {
        self.inner.space(dataset)
    }

    fn user_properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, Property>> {
        self.inner.properties(dataset)
    }

    fn set_user_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        self.inner.set_properties(dataset, changes)
    }

    fn create(&self, dataset: &DatasetName, kind: DatasetKind) -> Result<DatasetInfo> {
        if kind == DatasetKind::Zvol {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: "an empty zvol".into(),
            });
        }
        self.inner.create(dataset, kind)
    }

    fn destroy_dataset(&self, dataset: &DatasetName) -> Result<()> {
        self.inner.destroy_dataset(dataset)
    }

    fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn snapshot(&self, spec: &SnapshotSpec) -> Result<Vec<Snapshot>> {
        self.inner.take_snapshots(spec)
    }

    fn destroy_snapshots(&self, snapshots: &[SnapshotName]) -> Result<()> {
        self.inner.destroy_snapshots(snapshots)
    }

    fn bookmark(&self, snapshot: &SnapshotName, _: &BookmarkName) -> Result<()> {
        Err(StoreError::NotCapable {
            store: self.describe(),
            what: format!("a bookmark of {snapshot}"),
        })
    }

    fn destroy_bookmarks(&self, bookmarks: &[BookmarkName]) -> Result<()> {
        if bookmarks.is_empty() {
            return Ok(());
        }
        Err(StoreError::NotCapable { store: self.describe(), what: "destroying bookmarks".into() })
    }

    fn hold(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        self.inner.change_holds(snapshots, true, |holds| holds.insert(tag.0.clone()))
    }

    fn release(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        self.inner.change_holds(snapshots, false, |holds| holds.remove(&tag.0))
    }

    fn holds(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>> {
        self.inner.holds(snapshot)
    }

    fn rollback(&self, snapshot: &SnapshotName) -> Result<()> {
        self.inner.roll_back(snapshot)
    }

    fn changed_since(&self, snapshot: &SnapshotName) -> Result<Change> {
        self.inner.changed_since(snapshot)
    }

    fn verify_unwritten(&self, snapshot: &SnapshotName) -> Result<()> {
        self.inner.verify_unwritten(snapshot)
    }

    fn estimate(&self, spec: &SendSpec) -> Result<Option<u64>> {
        self.inner.estimate(spec)
    }

    fn send(&self, spec: &SendSpec) -> Result<Box<dyn SendStream>> {
        self.inner.send(spec)
    }

    fn receive(&self, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>> {
        self.inner.receive(spec)
    }

    fn activate(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        self.inner.activate(dataset)
    }

    fn live_path(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        self.inner.live_path_of(dataset)
    }

    fn rehearse(&self, dataset: &DatasetName) -> Result<()> {
        self.inner.rehearse(dataset)
    }

    fn fence(&self, dataset: &DatasetName) -> Result<()> {
        self.inner.fence(dataset)
    }

    fn set_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        self.inner.set_aside(keep, aside)
    }

    fn clone_snapshot(
        &self,
        snapshot: &SnapshotName,
        clone: &DatasetName,
        _: CloneAccess,
    ) -> Result<Option<PathBuf>> {
        self.inner.clone_snapshot(snapshot, clone)
    }

    fn remove_clone(&self, clone: &DatasetName) -> Result<()> {
        self.inner.remove_clone(clone)
    }

    /// A directory stays where it is, open to whoever uses it; a fenced one is opened. So does a disk image;
    /// what cannot be used here stays at rest.
    fn give_back(&self, dataset: &DatasetName) -> Result<()> {
        match self.inner.activate(dataset) {
            Ok(_) | Err(StoreError::NotCapable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    /// After opening: the root dataset is there, and no hidden tree without its dataset.
    fn tidy(self: &Arc<Self>) -> Result<()> {
        let view = View::new(&self.db)?;
        if view.find(&self.root)?.is_none() {
            let txn = self.db.write()?;
            crate::meta::Change::new(&self.db, &txn)
                .add_dataset(&new_dataset(&self.root, DatasetKind::Filesystem)?)?;
            self.db.commit(txn)?;
        }
        let ids: Vec<String> =
            view.datasets()?.into_iter().map(|(id, _)| id.0.to_string()).collect();
        let hidden = self.path.join("hidden");
        let context = |e| StoreError::io(format!("tidying {}", hidden.display()), e);
        for entry in std::fs::read_dir(&hidden).map_err(context)? {
            let entry = entry.map_err(context)?;
            let known = entry.file_name().to_str().is_some_and(|n| ids.iter().any(|id| id == n));
            if !known {
                crate::dir::checkout::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}
