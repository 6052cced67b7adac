//! What is done in the store or with the workload, and what comes of it.

use std::path::PathBuf;

use flocker_store::{
    BookmarkName, Change, DatasetInfo, DatasetName, Guid, HoldTag, Inventory, Snapshot,
    SnapshotName, StreamFeatures,
};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{Fingerprint, UnitId, VolumeId};
use crate::record::{AddressRecord, Mirror, Program, StopSignal, WorkloadRecord};

/// What is done in the store or with the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Look at datasets. → [`Outcome::Inspected`]
    Inspect {
        /// In this order.
        datasets: Vec<DatasetName>,
        /// Also at what streams they would have need of, and what is received in their places.
        streams: bool,
    },
    /// Look for a snapshot in these datasets and below them. → [`Outcome::Found`]
    Find {
        /// Its guid.
        guid: Guid,
        /// Where.
        within: Vec<DatasetName>,
    },
    /// Space and existence below a grant's root. → [`Outcome::Room`]
    Room {
        /// The grant's root.
        root: DatasetName,
    },
    /// Take snapshots as one. → [`Outcome::Snapshots`]
    Snapshot {
        /// One name a volume.
        names: Vec<SnapshotName>,
        /// Freeze the workload meanwhile if the store needs it; `false` when it is stopped.
        freeze: bool,
        /// Every writer is stopped and fenced.
        quiesced: bool,
    },
    /// Bookkeeping, off the critical path: holds first, then releases, then destroys.
    /// → [`Outcome::Nothing`]
    Tidy {
        /// The tag of our holds for this unit.
        tag: HoldTag,
        /// To be held.
        hold: Vec<SnapshotName>,
        /// To be released.
        release: Vec<SnapshotName>,
        /// To be destroyed.
        destroy: Vec<SnapshotName>,
    },
    /// Bookmarks that stand in for snapshots: made first, then destroyed. One that is there already, or gone, is not an
    /// error. → [`Outcome::Nothing`]
    Mark {
        /// Of which snapshot, and their names.
        make: Vec<(SnapshotName, BookmarkName)>,
        /// Not needed any more.
        destroy: Vec<BookmarkName>,
    },
    /// Were these datasets written since these snapshots? → [`Outcome::Changed`]
    Changed {
        /// The newest snapshot of each volume.
        since: Vec<SnapshotName>,
    },
    /// Is the unit's workload running? Adopts it if it is, and thaws it. → [`Outcome::Probed`]
    ProbeWorkload {
        /// What it is; `None`: none is known, so it can only be a process that was left.
        program: Option<Program>,
    },
    /// What another node needs so that the workload goes on there as it was, and what a move would leave behind.
    /// → [`Outcome::Described`]
    DescribeWorkload {
        /// What it is.
        program: Program,
        /// It is to be moved with its memory, written to this folder: whether that can be done at all.
        state: Option<PathBuf>,
        /// The path of each volume.
        paths: Vec<PathBuf>,
    },
    /// Write the workload's memory while it runs on, so that less is left for when it stops. → [`Outcome::Nothing`]
    PreDump {
        /// What it is.
        program: Program,
        /// Where to.
        state: PathBuf,
    },
    /// Start it; never a second one. → [`Outcome::Nothing`] or [`Outcome::Timed`] once it runs and is healthy. A failure
    /// with [`crate::FailureCode::NotStarted`]: its command never ran; with any other code it may have,
    /// and is stopped again.
    StartWorkload {
        /// What.
        workload: WorkloadRecord,
        /// The volumes: each must still be reachable at its path, or nothing is started.
        datasets: Vec<DatasetName>,
        /// The path of each volume; the first is the working directory.
        paths: Vec<PathBuf>,
        /// See [`Effect::Lease`](super::Effect::Lease).
        lease_until_ms: Option<u64>,
    },
    /// Stop it, and prove that nothing of it is left. → [`Outcome::Nothing`] or [`Outcome::Timed`]
    StopWorkload {
        /// What it is; `None`: none is known, so it can only be a process that was left.
        program: Option<Program>,
        /// Its processes are written to this folder with all they have in memory, in place of being asked to stop.
        state: Option<PathBuf>,
        /// What asks it to stop, if it is a process.
        signal: StopSignal,
        /// A local command to be run first; its failure is the action's, and nothing was stopped then.
        before: Option<Vec<String>>,
        /// How long it may take before it is killed, milliseconds.
        limit_ms: u64,
    },
    /// Put addresses on their interfaces and announce them, or take them off; read back. Those that are
    /// there (or not there) already are no error. → [`Outcome::Nothing`]
    Network {
        /// Which.
        addresses: Vec<AddressRecord>,
        /// On or off.
        up: bool,
    },
    /// Make the volumes impossible to write, read back. → [`Outcome::Nothing`]
    Fence {
        /// The volumes.
        datasets: Vec<DatasetName>,
    },
    /// Prove that fenced volumes hold just what these snapshots do. → [`Outcome::Nothing`]
    VerifyUnwritten {
        /// One a volume.
        snapshots: Vec<SnapshotName>,
    },
    /// What a move to this node would meet: replicas that could not be activated are a failure.
    /// → [`Outcome::Preflight`]
    Preflight {
        /// The volumes.
        datasets: Vec<DatasetName>,
        /// The workload that would run here.
        program: Option<Program>,
        /// Its primary's description of it, by which it is made ready here, stopped.
        description: Option<String>,
    },
    /// Set fenced volumes back to these snapshots, in content and in newest snapshot. Whatever is beyond
    /// them is kept: the dataset is renamed `…-diverged-<time>`, and a clone of the snapshot takes its
    /// name and its snapshots (promoted). Holds with `tag` are moved along; our properties are written
    /// anew. Idempotent; where nothing is beyond them nothing is done. → [`Outcome::SetAside`]
    SetAside {
        /// One a volume.
        keep: Vec<SnapshotName>,
        /// Volumes that have nothing to be set back to: all of each is renamed `…-diverged-<time>`, and
        /// nothing takes its name. One that does not exist is gone already.
        away: Vec<DatasetName>,
        /// The tag of our holds for this unit.
        tag: HoldTag,
        /// For the name, milliseconds since 1970.
        wall_ms: i64,
    },
    /// The local configuration's fencing hook, which makes sure that a peer is off.
    /// → [`Outcome::Nothing`] once it is
    FencingHook {
        /// Whom.
        peer: Fingerprint,
        /// What it calls itself.
        peer_name: String,
    },
    /// Start the workload on writable clones of these snapshots, where nobody can reach it; check its
    /// health; take everything away again. → [`Outcome::Drilled`]
    Drill {
        /// The unit's name, for paths and messages.
        name: String,
        /// One a volume; they are kept while this runs.
        snapshots: Vec<SnapshotName>,
        /// What to start; `None`: only the clones are tried.
        workload: Option<WorkloadRecord>,
    },
    /// Could these replicas be activated now? Everything that can be done ahead is done.
    /// → [`Outcome::Nothing`], or with `look` [`Outcome::Inspected`], as they are afterwards
    Rehearse {
        /// In this order.
        datasets: Vec<DatasetName>,
        /// Nobody knows which snapshots they have.
        look: bool,
    },
    /// Make the volumes reachable and writable. → [`Outcome::Activated`]
    Activate {
        /// The volumes.
        datasets: Vec<DatasetName>,
    },
    /// Write the mirrors. → [`Outcome::Nothing`]
    Mirror {
        /// For each volume: its dataset and what is written there.
        mirrors: Vec<(DatasetName, MirrorState)>,
    },
    /// Protection ends: release our holds, destroy our snapshots (those that begin with `prefix`,
    /// but for the newest where `keep_newest`), remove our properties, give the dataset back.
    /// → [`Outcome::Nothing`]
    GiveBack {
        /// The volumes.
        datasets: Vec<DatasetName>,
        /// The tag of our holds for this unit.
        tag: HoldTag,
        /// What our snapshots' short names begin with.
        prefix: String,
        /// Keep the newest (a replica's data).
        keep_newest: bool,
        /// It stays unmounted all the same: it lies below what is mounted where it belongs by us alone.
        at_rest: bool,
        /// The unit's workload, to which is given back what was taken from it; it runs on as it does.
        program: Option<Program>,
    },
    /// It is this unit's workload no more: what was taken from it is given back. → [`Outcome::Nothing`]
    ReleaseWorkload {
        /// What it is.
        program: Program,
    },
}

/// What a mirror says; the engine adds the dataset's guid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorState {
    /// The unit.
    pub unit: UnitId,
    /// The volume.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: crate::ids::Epoch,
    /// The role in a word.
    pub state: String,
}

/// Something of a workload that a move would leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// By which a person accepts it: `pg:layer`, `pg:bind:/etc/ssl`, …
    pub name: String,
    /// What it is, and what to do about it.
    pub what: String,
}

/// One dataset, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// What it is; `None`: it does not exist.
    pub info: Option<DatasetInfo>,
    /// Its snapshots; empty if it does not exist.
    pub inventory: Inventory,
    /// A claim in its local properties that is bound to this dataset's own guid.
    pub mirror: Option<Mirror>,
    /// What its streams have need of and what is received in its place, if that was asked.
    pub streams: Option<StreamFeatures>,
}

impl Inspected {
    /// There is no such dataset.
    pub fn nothing() -> Self {
        Self { info: None, inventory: Inventory::default(), mirror: None, streams: None }
    }
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Nothing,
    /// A workload was started or stopped by another program; what took that how long, by its own word or as it was
    /// seen, milliseconds.
    Timed {
        /// By name: `podman stop`, `criu dump`, …
        parts: Vec<(String, u64)>,
    },
    /// In the order asked.
    Inspected(Vec<Inspected>),
    /// Where a snapshot is; `None`: nowhere.
    Found(Option<SnapshotName>),
    /// What the grant's root uses, and what is left in the store, bytes.
    Room {
        /// By everything below the root.
        used_bytes: u64,
        /// In the store.
        available_bytes: u64,
    },
    /// In the order asked.
    Snapshots {
        /// As the store reports them.
        snapshots: Vec<Snapshot>,
        /// How long the workload was frozen, milliseconds.
        frozen_ms: u64,
    },
    /// The volumes together.
    Changed(Change),
    /// Whether it runs.
    Probed {
        /// It does, and is ours again.
        running: bool,
    },
    /// What another node needs of the workload.
    Described {
        /// For [`Action::Preflight`] there.
        description: String,
        /// What would be left behind.
        losses: Vec<Loss>,
    },
    /// What a move would meet.
    Preflight {
        /// Left in the store, bytes.
        available_bytes: u64,
        /// A workload of this unit runs here already, though the unit is not primary here.
        running: bool,
    },
    /// Where what was beyond the snapshots is kept, in the order asked, then what went away as a whole;
    /// `None`: there was nothing.
    SetAside {
        /// The datasets.
        aside: Vec<Option<DatasetName>>,
    },
    /// A drill's parts, milliseconds, in the order in which they passed: clone, start, health, stop, remove.
    Drilled {
        /// By name.
        parts_ms: Vec<(String, u64)>,
        /// What did not work; `None`: it was healthy.
        trouble: Option<Failure>,
    },
    /// The path of each volume that has one.
    Activated {
        /// In the order asked; `None`: at rest.
        paths: Vec<Option<PathBuf>>,
    },
}
