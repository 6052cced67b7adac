//! The vocabulary of the machines: what comes in, what goes out. Closed enums, matched in full.
//!
//! The contract with whoever performs the effects:
//! - effects are performed in the order in which they are polled;
//! - [`Effect::Persist`] is durable before any later effect is begun; if it cannot be made durable
//!   the process ends;
//! - each [`Effect::Run`] is answered by one [`Input::Done`] with its `OpId`; each transfer by one
//!   [`Input::TransferEnded`] per side; each command by one [`Effect::Reply`];
//! - the actions of one unit that touch its workload or its live volumes (probe, start, stop, fence,
//!   activate, snapshot, verify) are performed one after another, in the order in which they were
//!   handed out; all others may run beside them;
//! - `handle` is called with [`Input::Tick`] no later than `poll_timeout` says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flocker_store::{
    Change, DatasetInfo, DatasetKind, DatasetName, HoldTag, Inventory, ReceiveSpec, SendSpec,
    Snapshot, SnapshotName,
};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{AttemptId, Fingerprint, OpId, RequestId, TransferId, UnitId, VolumeId};
use crate::message::Message;
use crate::record::{Grant, JournalChange, Mirror, PeerRecord, Policy, WorkloadRecord};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Time went on.
    Tick,
    /// An authenticated connection to a peer stands.
    PeerUp {
        /// The peer.
        peer: Fingerprint,
    },
    /// It is gone.
    PeerDown {
        /// The peer.
        peer: Fingerprint,
    },
    /// A peer said something.
    Message {
        /// Who.
        peer: Fingerprint,
        /// What.
        message: Message,
    },
    /// A person wants something.
    Command {
        /// To be answered.
        request: RequestId,
        /// What.
        command: Command,
    },
    /// An action ended.
    Done {
        /// Which.
        op: OpId,
        /// How.
        outcome: Result<Outcome, Failure>,
    },
    /// A bulk transfer ended on this side.
    TransferEnded {
        /// Which.
        transfer: TransferId,
        /// The receiving side: the snapshot as the store reports it. The sending side: `None`,
        /// meaning only that every byte was taken; the standby's own word is what counts.
        outcome: Result<Option<Snapshot>, Failure>,
        /// Bytes of the stream, and of those on the wire.
        stream_bytes: u64,
        /// Bytes on the wire.
        wire_bytes: u64,
    },
    /// A workload ended by itself.
    WorkloadExited {
        /// Whose.
        unit: UnitId,
        /// Exit status in words.
        status: String,
        /// It ended with status 0.
        success: bool,
    },
}

/// What a person can ask for. Names are resolved by the core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Pairing was completed by both sides: trust this peer.
    AddPeer(PeerRecord),
    /// Replace what a peer may do here.
    SetGrant {
        /// Name or fingerprint.
        peer: String,
        /// The grant; `None` takes it back.
        grant: Option<Grant>,
    },
    /// Forget a peer; refused while a unit depends on it.
    RemovePeer {
        /// Name or fingerprint.
        peer: String,
    },
    /// Put a dataset under protection, or add a standby to one that is.
    Protect {
        /// Fresh random ids, used if the dataset is new.
        unit: UnitId,
        /// Likewise.
        volume: VolumeId,
        /// The dataset.
        dataset: DatasetName,
        /// Name or fingerprint of the standby.
        to: String,
        /// The unit's name; by default the dataset's last component.
        name: Option<String>,
        /// When to replicate.
        policy: Policy,
    },
    /// Set the workload of a unit; started if the unit is primary here.
    SetWorkload {
        /// The unit's name.
        name: String,
        /// What to run; on a standby it is kept for when the unit arrives.
        workload: WorkloadRecord,
    },
    /// Stop a unit's workload and keep it stopped.
    StopWorkload {
        /// The unit's name.
        name: String,
    },
    /// Move a unit with its workload. Answered when it has ended, either way.
    Migrate {
        /// The unit's name.
        name: String,
        /// Name or fingerprint of the target.
        to: String,
    },
    /// Stop replicating.
    Pause {
        /// The unit's name.
        name: String,
    },
    /// Go on replicating.
    Resume {
        /// The unit's name.
        name: String,
    },
    /// End protection: take back holds, our snapshots, properties, settings. The data stays.
    Unprotect {
        /// The unit's name.
        name: String,
    },
    /// Accept the risk: become writable without having heard from the standbys.
    StartAlone {
        /// The unit's name.
        name: String,
    },
}

/// Something is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Write these changes in one durable transaction before anything after it is begun.
    Persist(Vec<JournalChange>),
    /// Tell a peer; silently lost if it is not connected.
    Send {
        /// To whom.
        peer: Fingerprint,
        /// What.
        message: Message,
    },
    /// Do this off the loop and answer with [`Input::Done`].
    Run {
        /// To be answered.
        op: OpId,
        /// The unit it is for.
        unit: UnitId,
        /// What.
        action: Action,
    },
    /// Begin to send; the peer has accepted.
    StartSend {
        /// Which.
        transfer: TransferId,
        /// To whom.
        peer: Fingerprint,
        /// The unit it is for.
        unit: UnitId,
        /// What.
        spec: SendSpec,
    },
    /// Expect this transfer from this peer and receive it. Registered before the acceptance,
    /// which is the next effect, can reach the peer.
    StartReceive {
        /// Which.
        transfer: TransferId,
        /// From whom.
        peer: Fingerprint,
        /// The unit it is for.
        unit: UnitId,
        /// What.
        spec: ReceiveSpec,
        /// Most bytes of stream it may bring: what the grant leaves.
        limit_bytes: Option<u64>,
    },
    /// End a transfer on this side if it still runs; it answers as ended.
    CancelTransfer {
        /// Which.
        transfer: TransferId,
    },
    /// Answer a person.
    Reply {
        /// Whom.
        request: RequestId,
        /// The answer.
        reply: Result<Reply, Failure>,
    },
    /// The set of trusted peers changed: connect, disconnect.
    PeersChanged(Vec<PeerRecord>),
    /// For logs, history, metrics and whoever watches.
    Report(Event),
}

/// What is done in the store or with the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Look at datasets. → [`Outcome::Inspected`]
    Inspect {
        /// In this order.
        datasets: Vec<DatasetName>,
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
    /// Were these datasets written since these snapshots? → [`Outcome::Changed`]
    Changed {
        /// The newest snapshot of each volume.
        since: Vec<SnapshotName>,
    },
    /// Is the unit's workload running? Adopts it if it is, and thaws it. → [`Outcome::Probed`]
    ProbeWorkload,
    /// Start it; never a second one. → [`Outcome::Nothing`] once it runs.
    StartWorkload {
        /// What.
        workload: WorkloadRecord,
        /// The volumes: each must still be reachable at its path, or nothing is started.
        datasets: Vec<DatasetName>,
        /// The path of each volume; the first is the working directory.
        paths: Vec<PathBuf>,
    },
    /// Stop it, and prove that nothing of it is left. → [`Outcome::Nothing`]
    StopWorkload {
        /// How long it may take before it is killed, milliseconds.
        limit_ms: u64,
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
    /// Could these replicas be activated now? Everything that can be done ahead is done.
    /// → [`Outcome::Inspected`], as they are afterwards
    Rehearse {
        /// In this order.
        datasets: Vec<DatasetName>,
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

/// One dataset, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// What it is; `None`: it does not exist.
    pub info: Option<DatasetInfo>,
    /// Its snapshots; empty if it does not exist.
    pub inventory: Inventory,
    /// A claim in its local properties that is bound to this dataset's own guid.
    pub mirror: Option<Mirror>,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Nothing,
    /// In the order asked.
    Inspected(Vec<Inspected>),
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
    /// The path of each volume that has one.
    Activated {
        /// In the order asked; `None`: at rest.
        paths: Vec<Option<PathBuf>>,
    },
}

/// Answers to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// `Protect`: the unit.
    Protected {
        /// Its name.
        name: String,
        /// Its id.
        unit: UnitId,
    },
    /// `Migrate`: it moved.
    Migrated(Box<MigrationReport>),
}

/// One replication round, as reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// To whom.
    pub peer: Fingerprint,
    /// Counts the rounds to this peer since the daemon started.
    pub round: u64,
    /// No base: everything was sent.
    pub full: bool,
    /// Bytes of the streams.
    pub stream_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// From the snapshot's begin until the standby's word, milliseconds.
    pub duration_ms: u64,
    /// The lag just before the standby became equal to the snapshot, milliseconds.
    pub lag_before_ms: Option<u64>,
    /// How long the workload was frozen for the snapshot, milliseconds.
    pub frozen_ms: u64,
    /// Snapshots that were never sent because a newer one was there.
    pub skipped: u64,
}

/// A migration, as reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// The unit's name.
    pub name: String,
    /// From.
    pub source: Fingerprint,
    /// To.
    pub target: Fingerprint,
    /// The attempt.
    pub attempt: AttemptId,
    /// The new epoch's number.
    pub epoch: u64,
    /// Rounds while the workload was running, the last one after it was stopped.
    pub rounds: Vec<RoundReport>,
    /// Parts of the downtime by name, milliseconds, in the order in which they passed:
    /// quiesce, fence, snapshot, transfer, prepare, commit, mount, start, notice.
    pub downtime_ms: Vec<(String, u64)>,
    /// From the begin of quiesce to the target's word that it runs, milliseconds.
    pub downtime_total_ms: u64,
    /// From the command to the end, milliseconds.
    pub total_ms: u64,
    /// Things a person should know: standbys left behind, an activation that failed.
    pub notes: Vec<String>,
}

/// For logs, history and whoever watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The unit, unless it is about the node.
    pub unit: Option<UnitId>,
    /// Its name.
    pub name: Option<String>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A round ended well.
    Round(RoundReport),
    /// A cutover entered this phase.
    Phase {
        /// The attempt.
        attempt: AttemptId,
        /// The phase in a word.
        phase: String,
    },
    /// The role changed.
    Role {
        /// In a word.
        role: String,
        /// The epoch's number.
        epoch: u64,
    },
    /// Something a person should look at. Raised once; cleared by [`EventKind::Cleared`].
    Alarm {
        /// What and what to do.
        failure: Failure,
    },
    /// The alarm is over.
    Cleared,
    /// Worth a line in the log.
    Note(String),
}

/// What a node is started with.
#[derive(Debug, Clone, Default)]
pub struct Boot {
    /// The journal's units, each with the mirrors found on its volumes.
    pub units: Vec<(crate::record::UnitRecord, Vec<Option<Mirror>>)>,
    /// The journal's peers.
    pub peers: Vec<PeerRecord>,
    /// Claims found on datasets that the journal knows nothing of.
    pub orphans: BTreeMap<DatasetName, Mirror>,
}

/// What the local store can do, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFacts {
    /// For messages.
    pub describe: String,
    /// The dataset below which it works.
    pub root: DatasetName,
    /// Kinds a workload can use live.
    pub live_kinds: Vec<DatasetKind>,
    /// Kinds it can receive.
    pub replica_kinds: Vec<DatasetKind>,
    /// Its streams are OpenZFS's dialect; `None`: each volume's are as they came (a vault).
    pub modern_streams: Option<bool>,
    /// It can receive OpenZFS's dialect of filesystem streams.
    pub receives_modern: bool,
    /// A live snapshot needs the workload frozen.
    pub freeze_for_snapshot: bool,
    /// `send -c` is available here.
    pub compressed_send: bool,
    /// `send -L` is available here.
    pub large_block_send: bool,
    /// Holds are available here.
    pub holds: bool,
}
