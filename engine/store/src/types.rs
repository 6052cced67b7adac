//! What a store reports and what it is asked for. Plain data, no behaviour beyond lookups.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::name::{BookmarkName, DatasetName, HoldTag, SnapshotName};

/// A ZFS guid: what identifies a dataset, a snapshot or a bookmark across pools, unlike its name.
/// A snapshot keeps its guid when it is received elsewhere; a dataset gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a dataset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    /// A ZFS filesystem (`DMU_OST_ZFS`).
    Filesystem,
    /// A ZFS volume (`DMU_OST_ZVOL`).
    Zvol,
    /// A vault's own kind: a directory tree, which real ZFS never receives.
    Directory,
}

impl fmt::Display for DatasetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DatasetKind::Filesystem => "filesystem",
            DatasetKind::Zvol => "zvol",
            DatasetKind::Directory => "directory",
        })
    }
}

/// The snapshot that a dataset is a clone of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name in this store now.
    pub name: SnapshotName,
    /// Its guid, the same wherever it was received.
    pub guid: Guid,
}

/// A dataset as its store sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Its name now. Identity is [`DatasetInfo::guid`] and our own id in its properties.
    pub name: DatasetName,
    /// The dataset's own guid in this store.
    pub guid: Guid,
    /// What it is.
    pub kind: DatasetKind,
    /// Bytes used on disk, snapshots included.
    pub used_bytes: u64,
    /// Bytes the live data refers to.
    pub referenced_bytes: u64,
    /// Where its live data is reachable now; `None` when it is not mounted (every standby).
    pub mounted_at: Option<PathBuf>,
    /// Whether the store lets its live data be written now.
    pub writable: bool,
    /// Its data is encrypted: it leaves this store as it is on disk (raw) or not at all.
    pub encrypted: bool,
    /// It is a clone of this snapshot of another dataset, and shares what it has not changed with it.
    pub origin: Option<Origin>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its full name.
    pub name: SnapshotName,
    /// The same on every store that holds this very snapshot.
    pub guid: Guid,
    /// The transaction group it was created in; orders snapshots inside one store only.
    pub createtxg: u64,
    /// When it was created, seconds since 1970 by the store's clock.
    pub creation_unix_s: i64,
    /// Taken of a directory while its writer was running: not a moment that ever was.
    /// Always `false` on ZFS. Failing over to a fuzzy snapshot is refused.
    pub fuzzy: bool,
    /// Number of user holds.
    pub holds: u32,
}

/// A bookmark: a snapshot's guid and place, without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Its full name.
    pub name: BookmarkName,
    /// The guid of the snapshot it was made from.
    pub guid: Guid,
    /// That snapshot's transaction group.
    pub createtxg: u64,
}

/// What a planner needs to know of one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// Snapshots, oldest first (by `createtxg`, then by name).
    pub snapshots: Vec<Snapshot>,
    /// Bookmarks, oldest first.
    pub bookmarks: Vec<Bookmark>,
    /// What an interrupted receive left, where the store keeps it.
    pub partial: Option<Partial>,
    /// Those of the snapshots that another dataset is a clone of: they cannot be destroyed. Filled in by
    /// [`Store::inventory_with_clones`](crate::Store::inventory_with_clones).
    pub cloned: BTreeSet<Guid>,
}

/// What has arrived of a receive that was interrupted. It goes on with a send that
/// [`SendSpec::resume`]s from its token; any other receive into the dataset discards it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// What `send -t` takes; it pins the flags of the stream and covers this one snapshot.
    pub token: String,
    /// Guid of the snapshot being received; `None` where the token cannot be read, so that what
    /// arrived can only be discarded.
    pub to: Option<Guid>,
    /// Guid of the base of an increment.
    pub from: Option<Guid>,
    /// Bytes of data that have arrived, in the receiver's own reckoning.
    pub bytes: u64,
    /// Of a `send -c`.
    pub compressed: bool,
    /// Of a `send -L`.
    pub large_blocks: bool,
    /// Of a `send -w`.
    pub raw: bool,
}

impl Inventory {
    /// The snapshot with this guid.
    pub fn snapshot(&self, guid: Guid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.guid == guid)
    }

    /// The newest snapshot.
    pub fn latest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }
}

/// Room in a dataset, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// What can still be written.
    pub available_bytes: u64,
    /// What the dataset and all below it use.
    pub used_bytes: u64,
}

/// Where a property's value comes from. Only [`PropertySource::Local`] makes an id count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropertySource {
    /// Set on this very dataset.
    Local,
    /// Inherited from a dataset above.
    Inherited,
    /// Set by a receive.
    Received,
    /// Anything else (`default`, `temporary`, `none`, …).
    Other,
}

/// A property's value. Values stay strings: what is unknown is passed on, never guessed at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// The value as the store prints it.
    pub value: String,
    /// Where it comes from.
    pub source: PropertySource,
}

/// Whether a dataset was written since a snapshot. A hint: see `written` in `ZFS-PITFALLS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Nothing that the store knows of.
    Unchanged,
    /// Written; the number is an estimate of the bytes, 0 where the store cannot say.
    Changed {
        /// Estimated bytes written since.
        bytes: u64,
    },
    /// The store cannot tell without a snapshot.
    Unknown,
}

/// How serious a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// It works; somebody should know.
    Warning,
    /// It does not work, or data are in danger.
    Bad,
}

/// What a look at a store or a node has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How serious it is.
    pub level: Level,
    /// What was found, a sentence.
    pub what: String,
    /// What to do about it, a command where there is one.
    pub todo: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn good(what: impl Into<String>) -> Self {
        Self { level: Level::Good, what: what.into(), todo: None }
    }

    /// It works; somebody should know.
    pub fn warning(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), todo: Some(todo.into()) }
    }

    /// It does not work, or data are in danger.
    pub fn bad(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: Level::Bad, what: what.into(), todo: Some(todo.into()) }
    }
}

/// What may be done with a copy of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneAccess {
    /// A workload is started on it.
    Writable,
    /// People look at it.
    ReadOnly,
}

/// What a store can do, found at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name and version for people, such as `OpenZFS 2.3.9` or `zfs-fuse (pool version 23)`.
    pub version: String,
    /// Kinds whose live data a workload can use here.
    pub live_kinds: Vec<DatasetKind>,
    /// Kinds it can receive and keep as a replica.
    pub replica_kinds: Vec<DatasetKind>,
    /// Bookmarks, and sends from them.
    pub bookmarks: bool,
    /// User holds.
    pub holds: bool,
    /// `receive -s` and `send -t`.
    pub resumable: bool,
    /// `send -c`.
    pub compressed_send: bool,
    /// `send -w`.
    pub raw_send: bool,
    /// `send -L`.
    pub large_block_send: bool,
    /// Size estimates before a send.
    pub estimate: bool,
    /// Sends a clone as the difference to its origin, and receives it as a clone ([`ReceiveSpec::origin`]).
    pub clones: bool,
    /// Snapshots of several datasets in one transaction group.
    pub atomic_group_snapshot: bool,
    /// A snapshot of a live dataset is a moment that was, without stopping its writer.
    pub live_snapshot: bool,
    /// Streams it produces are in OpenZFS's dialect (`true`) or in that of zfs-fuse (`false`), which
    /// cannot receive an OpenZFS filesystem; `None`: each dataset's as they came (a vault).
    pub modern_streams: Option<bool>,
    /// It can receive filesystem streams in OpenZFS's dialect.
    pub receives_modern: bool,
}

/// Where an incremental send starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SendBase {
    /// A snapshot of the same dataset (or of its origin).
    Snapshot(SnapshotName),
    /// A bookmark of the same dataset.
    Bookmark(BookmarkName),
}

/// One send: from a base, or in full, to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendSpec {
    /// `None`: a full send.
    pub from: Option<SendBase>,
    /// The snapshot the receiver ends up with.
    pub to: SnapshotName,
    /// `send -c`: blocks as they are on disk.
    pub compressed: bool,
    /// `send -L`: records above 128 KiB are not split.
    pub large_blocks: bool,
    /// `send -w`: encrypted blocks as they are on disk.
    pub raw: bool,
    /// Only what is missing of a receive that was interrupted: the [`Partial::token`] it left. The other
    /// fields are then those of the send it goes on with; the store checks the token against them.
    pub resume: Option<String>,
}

/// One receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveSpec {
    /// The dataset to receive into; created by a full stream, must exist for an incremental one.
    pub dataset: DatasetName,
    /// The name of the snapshot that results.
    pub snapshot: SnapshotName,
    /// The guid that the stream must carry. Another one is refused before anything is changed.
    pub to_guid: Guid,
    /// The guid of the base for an incremental stream.
    pub from_guid: Option<Guid>,
    /// Ask the store to keep what arrived when the stream breaks off, where it can: it is then the
    /// [`Inventory::partial`], and stays with a drop and a crash, too.
    pub resumable: bool,
    /// The stream makes the dataset as a clone of this snapshot, which is of another dataset and whose guid is
    /// [`ReceiveSpec::from_guid`].
    pub origin: Option<SnapshotName>,
}

impl ReceiveSpec {
    /// Whether the stream makes its dataset.
    pub fn creates(&self) -> bool {
        self.from_guid.is_none() || self.origin.is_some()
    }
}

/// A group of snapshots to be taken as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// One name a dataset; in one pool they are taken atomically.
    pub names: Vec<SnapshotName>,
    /// The caller has frozen or stopped every writer: a directory's snapshot is not fuzzy.
    pub quiesced: bool,
    /// Local user properties to record with the snapshots, where the store can.
    pub properties: BTreeMap<String, String>,
}

/// A hold on a snapshot, for batches.
pub type SnapshotHold = (SnapshotName, HoldTag);
