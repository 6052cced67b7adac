//! The trait every store implements. Blocking: callers run it on plain threads.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use crate::error::StoreError;
use crate::features::StreamFeatures;
use crate::name::{BookmarkName, DatasetName, HoldTag, SnapshotName};
use crate::types::{
    Capabilities, Change, CloneAccess, DatasetInfo, DatasetKind, Inventory, Property, ReceiveSpec,
    SendSpec, Snapshot, SnapshotSpec, Space,
};

/// Outcome of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// User property of a dataset that [`Store::set_aside`] is at work on: the name it is set aside under, `@`, the
/// short name of the snapshot that is kept. It goes along with the rename and is taken off last, so whoever
/// finds it knows what to finish. A store that sets aside in one transaction never shows it.
pub const ASIDE: &str = "flocker-repl:aside";

/// User property of a copy made by [`Store::clone_snapshot`]: the snapshot it is a copy of.
pub const CLONE: &str = "flocker-repl:clone";

/// A ZFS send stream being read. Dropping it before the end stops the send.
pub trait SendStream: Read + Send {
    /// Call after the last byte: the sender's own verdict (exit status and stderr of `zfs send`).
    ///
    /// # Errors
    /// What the sender reported; the bytes read are then not a whole stream.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A ZFS send stream being written into a dataset. Dropping it without [`ReceiveStream::commit`]
/// suspends it: the dataset is then at its last good snapshot, as before.
pub trait ReceiveStream: Write + Send {
    /// Ends the stream and makes the snapshot durable.
    ///
    /// Returns the snapshot as the *store* reports it, never as the caller planned it.
    ///
    /// # Errors
    /// Any reason why the snapshot is not there; the dataset is at its last good snapshot.
    fn commit(self: Box<Self>) -> Result<Snapshot>;

    /// Stops and takes back what arrived, resumable or not.
    ///
    /// # Errors
    /// The store could not take it back.
    fn abort(self: Box<Self>) -> Result<()>;

    /// Stops, as dropping does, and says when that fails. What arrived is kept as the dataset's
    /// [`Inventory::partial`] where [`ReceiveSpec::resumable`] asked for it and the store can;
    /// otherwise it is taken back.
    ///
    /// # Errors
    /// The store could neither keep it nor take it back.
    fn suspend(self: Box<Self>) -> Result<()>;
}

/// A place that keeps datasets and their snapshots.
pub trait Store: Send + Sync {
    /// What it can do, found when it was opened.
    fn capabilities(&self) -> &Capabilities;

    /// For people: `vault:/srv/a`, `zfs:tank/flocker`.
    fn describe(&self) -> String;

    /// The dataset below which this store works.
    fn root(&self) -> &DatasetName;

    /// One dataset. [`StoreError::NoDataset`] of this and what follows is a word on which a planner lets go of what
    /// it has kept: a store that is not there itself says [`StoreError::Away`] instead.
    ///
    /// # Errors
    /// [`StoreError::NoDataset`] when it does not exist.
    fn dataset(&self, dataset: &DatasetName) -> Result<DatasetInfo>;

    /// What streams of this dataset have need of and what is received in its place, looked at anew: features of a
    /// pool are enabled while we run. One that does not exist has what it would inherit there.
    ///
    /// # Errors
    /// The store could not be read.
    fn stream_features(&self, dataset: &DatasetName) -> Result<StreamFeatures>;

    /// Every dataset within [`Store::root`], parents first.
    ///
    /// # Errors
    /// The store could not be read.
    fn datasets(&self) -> Result<Vec<DatasetInfo>>;

    /// Snapshots, bookmarks and an interrupted receive of one dataset.
    ///
    /// # Errors
    /// [`StoreError::NoDataset`] when it does not exist.
    fn inventory(&self, dataset: &DatasetName) -> Result<Inventory>;

    /// As [`Store::inventory`], with [`Inventory::cloned`], which some stores have to look for elsewhere.
    ///
    /// # Errors
    /// [`StoreError::NoDataset`] when it does not exist.
    fn inventory_with_clones(&self, dataset: &DatasetName) -> Result<Inventory> {
        let origins = self.datasets()?.into_iter().filter_map(|info| info.origin);
        let cloned = origins.filter(|o| o.name.dataset() == dataset).map(|o| o.guid).collect();
        Ok(Inventory { cloned, ..self.inventory(dataset)? })
    }

    /// [`Store::inventory_with_clones`] of each, in one go where that is cheaper.
    fn inventories_with_clones(&self, datasets: &[DatasetName]) -> Vec<Result<Inventory>> {
        datasets.iter().map(|dataset| self.inventory_with_clones(dataset)).collect()
    }

    /// Room at a dataset; for one that does not exist, at its nearest existing parent.
    ///
    /// # Errors
    /// The store could not be read.
    fn space(&self, dataset: &DatasetName) -> Result<Space>;

    /// Properties of a dataset whose name holds a `:` (user properties), whatever their source.
    ///
    /// # Errors
    /// [`StoreError::NoDataset`] when it does not exist.
    fn user_properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, Property>>;

    /// Sets local user properties in one call; `None` removes the local value.
    ///
    /// # Errors
    /// [`StoreError::NoDataset`] when it does not exist.
    fn set_user_properties(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<()>;

    /// Creates an empty dataset, with missing parents.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NotCapable`] for a kind it has not.
    fn create(&self, dataset: &DatasetName, kind: DatasetKind) -> Result<DatasetInfo>;

    /// Destroys one dataset and its snapshots; never its children, never what is held.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Kept`], [`StoreError::NoDataset`].
    fn destroy_dataset(&self, dataset: &DatasetName) -> Result<()>;

    /// Renames a dataset within its pool.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NoDataset`], [`StoreError::Busy`].
    fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()>;

    /// Takes snapshots as one; all or none in one pool.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NoDataset`], [`StoreError::NoSpace`].
    fn snapshot(&self, spec: &SnapshotSpec) -> Result<Vec<Snapshot>>;

    /// Destroys snapshots; one that does not exist is not an error, one that is held is.
    ///
    /// # Errors
    /// [`StoreError::Kept`] naming what keeps one; the others may be gone.
    fn destroy_snapshots(&self, snapshots: &[SnapshotName]) -> Result<()>;

    /// Makes a bookmark of a snapshot.
    ///
    /// # Errors
    /// [`StoreError::NotCapable`] without bookmarks; [`StoreError::Exists`].
    fn bookmark(&self, snapshot: &SnapshotName, bookmark: &BookmarkName) -> Result<()>;

    /// Destroys bookmarks; one that does not exist is not an error.
    ///
    /// # Errors
    /// [`StoreError::NotCapable`] without bookmarks.
    fn destroy_bookmarks(&self, bookmarks: &[BookmarkName]) -> Result<()>;

    /// Puts a hold on snapshots in one call; one that is there already is not an error.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    fn hold(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()>;

    /// Takes a hold off snapshots in one call; one that is not there is not an error.
    ///
    /// # Errors
    /// The store could not be written.
    fn release(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()>;

    /// The tags that hold a snapshot.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    fn holds(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>>;

    /// Sets a dataset back to its *newest* snapshot, which must be the one given; nothing that has
    /// a name is destroyed.
    ///
    /// # Errors
    /// [`StoreError::Modified`] when the snapshot is not the newest; [`StoreError::Busy`].
    fn rollback(&self, snapshot: &SnapshotName) -> Result<()>;

    /// Whether a dataset was written since one of its snapshots. A hint, never a proof.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    fn changed_since(&self, snapshot: &SnapshotName) -> Result<Change>;

    /// The proof that a *fenced* dataset holds exactly what `snapshot` does.
    ///
    /// # Errors
    /// [`StoreError::Modified`] saying what differs; [`StoreError::NoSnapshot`].
    fn verify_unwritten(&self, snapshot: &SnapshotName) -> Result<()>;

    /// Estimated size in bytes of a send, where the store can say.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    fn estimate(&self, spec: &SendSpec) -> Result<Option<u64>>;

    /// Starts a send.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`]; [`StoreError::BadToken`] for one that is not of this send; further
    /// errors come from the stream.
    fn send(&self, spec: &SendSpec) -> Result<Box<dyn SendStream>>;

    /// Starts a receive. One at a time for a dataset. A stream that does not resume discards the
    /// dataset's [`Inventory::partial`], once it has proved to be the one announced.
    ///
    /// # Errors
    /// [`StoreError::NoBase`], [`StoreError::Exists`], [`StoreError::Modified`],
    /// [`StoreError::Busy`]; some come only when the stream is committed.
    fn receive(&self, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>>;

    /// Makes a dataset's live data reachable and writable at its path, idempotently; boot-time
    /// mounting stays off (`canmount=noauto`). `None` for a kind that has no path here (a zvol,
    /// a ZFS filesystem in a vault): it is then at rest.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when the path is taken.
    fn activate(&self, dataset: &DatasetName) -> Result<Option<PathBuf>>;

    /// Where [`Store::activate`] would make a dataset reachable; `None`: nowhere. Changes nothing.
    ///
    /// # Errors
    /// It has no place to go to.
    fn live_path(&self, dataset: &DatasetName) -> Result<Option<PathBuf>>;

    /// Does all that [`Store::activate`] would need and that can be done while nothing is writable
    /// yet: the content is whole and ready, the path is free. Changes nothing that anybody sees.
    ///
    /// # Errors
    /// Why [`Store::activate`] would fail now.
    fn rehearse(&self, dataset: &DatasetName) -> Result<()>;

    /// Makes it impossible to write a dataset's live data, by anybody, and reads that back:
    /// holders in any mount namespace, open files, then unmounted or read-only. Idempotent.
    ///
    /// # Errors
    /// [`StoreError::Busy`] naming every holder; then nothing is changed.
    fn fence(&self, dataset: &DatasetName) -> Result<()>;

    /// Sets a fenced dataset back to `keep`, one of its snapshots, in content and in newest snapshot, and
    /// keeps whatever is beyond it: the difference is snapshotted, the dataset renamed to `aside`, `keep`
    /// cloned under the old name and promoted, so that the snapshots up to `keep` belong to it again.
    /// The new dataset is fenced; its local properties are those of the old one, but for our own, which
    /// stay with neither (what [`Store::give_back`] needs stays with the dataset). On ZFS `keep` cannot be
    /// destroyed for as long as `aside` exists, which is a clone of it then. Idempotent after a crash at any point: called again with the same names it
    /// finishes. `false`: nothing was beyond `keep`, and nothing was done.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`]; [`StoreError::Busy`] naming who holds it; [`StoreError::Exists`] when
    /// `aside` is something else.
    fn set_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool>;

    /// Makes a copy of a snapshot under a name of its own and mounts it there, without touching the dataset it
    /// comes from or what is received into that. Returns where it is reachable; `None` for a kind that has no path
    /// here. A vault cannot keep anybody from writing into a copy that is asked for as [`CloneAccess::ReadOnly`]:
    /// it goes with the copy.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`], [`StoreError::Exists`].
    fn clone_snapshot(
        &self,
        snapshot: &SnapshotName,
        clone: &DatasetName,
        access: CloneAccess,
    ) -> Result<Option<PathBuf>>;

    /// Takes a copy made by [`Store::clone_snapshot`] away again. One that does not exist is not an error.
    ///
    /// # Errors
    /// [`StoreError::Busy`] naming who holds it; [`StoreError::NotCapable`] for what is not such a copy.
    fn remove_clone(&self, clone: &DatasetName) -> Result<()>;

    /// When protection ends: gives a dataset back to the system as it was found
    /// (`canmount`, `readonly`, our properties).
    ///
    /// # Errors
    /// The store could not be written.
    fn give_back(&self, dataset: &DatasetName) -> Result<()>;
}
