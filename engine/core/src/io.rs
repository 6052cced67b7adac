//! The vocabulary of the machines: what comes in, what goes out. Closed enums, matched in full.
//!
//! The contract with whoever performs the effects:
//! - effects are performed in the order in which they are polled;
//! - [`Effect::Persist`] is durable before any later effect is begun; if it cannot be made durable
//!   the process ends;
//! - each [`Effect::Run`] is answered by one [`Input::Done`] with its `OpId`; each transfer by one
//!   [`Input::TransferEnded`] per side; each command by one [`Effect::Reply`];
//! - the actions of one unit that touch its workload or its live volumes (probe, start, stop, network,
//!   fence, set aside, rehearse, preflight, activate, snapshot, verify) are performed one after another, in the order in which they were
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
use crate::record::{
    AddressRecord, Grant, JournalChange, Mirror, PeerRecord, Policy, Proof, StopSignal,
    WorkloadRecord,
};

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
    /// Put datasets under protection as one unit, or add a standby to one that is.
    Protect {
        /// A fresh random id, used if the unit is new.
        unit: UnitId,
        /// The datasets, at least one, each with a fresh random id. The workload's working directory
        /// is the first one's path.
        volumes: Vec<(VolumeId, DatasetName)>,
        /// Name or fingerprint of the standby.
        to: String,
        /// The unit's name; by default the first dataset's last component.
        name: Option<String>,
        /// When to replicate.
        policy: Policy,
        /// See `UnitRecord::lease_ms`.
        lease_ms: Option<u64>,
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
    /// Move a unit with its workload. Answered when it has ended, either way. Asked again for the same
    /// target while one is under way, it waits for that one's end.
    Migrate {
        /// The unit's name.
        name: String,
        /// Name or fingerprint of the target.
        to: String,
        /// Longest downtime wanted, milliseconds: refused, before anything stops, if the prediction
        /// does not come below it.
        budget_ms: Option<u64>,
        /// Preflight and prediction only; nothing is changed.
        dry_run: bool,
    },
    /// Take a migration back; refused once it is committed.
    CancelMigration {
        /// The unit's name.
        name: String,
    },
    /// Make this node primary without the primary's commit. On a source whose target is lost for good:
    /// take the hand-over back.
    Failover {
        /// The unit's name.
        name: String,
        /// The operator's word that the primary is down; `false`: one of the other proofs, or a refusal.
        primary_is_down: bool,
        /// Only say what would be lost and which proofs could be had.
        dry_run: bool,
    },
    /// Start the workload on a clone of the newest replica, isolated, check it, and take it away again.
    Drill {
        /// The unit's name.
        name: String,
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
    /// The workload may run until then and no longer, by this node's monotonic clock, milliseconds;
    /// `None`: as long as it likes. Whoever watches over it kills it at that moment, without asking the
    /// daemon. Comes before the start, and again each time the lease was renewed.
    Lease {
        /// The unit.
        unit: UnitId,
        /// Until when.
        until_ms: Option<u64>,
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
    /// Start it; never a second one. → [`Outcome::Nothing`] once it runs and is healthy. A failure
    /// with [`crate::FailureCode::NotStarted`]: its command never ran; with any other code it may have,
    /// and is stopped again.
    StartWorkload {
        /// What.
        workload: WorkloadRecord,
        /// The volumes: each must still be reachable at its path, or nothing is started.
        datasets: Vec<DatasetName>,
        /// The path of each volume; the first is the working directory.
        paths: Vec<PathBuf>,
        /// See [`Effect::Lease`].
        lease_until_ms: Option<u64>,
    },
    /// Stop it, and prove that nothing of it is left. → [`Outcome::Nothing`]
    StopWorkload {
        /// What asks it to stop.
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
    },
    /// Set fenced volumes back to these snapshots, in content and in newest snapshot. Whatever is beyond
    /// them is kept: the dataset is renamed `…-diverged-<time>`, and a clone of the snapshot takes its
    /// name and its snapshots (promoted). Holds with `tag` are moved along; our properties are written
    /// anew. Idempotent; where nothing is beyond them nothing is done. → [`Outcome::SetAside`]
    SetAside {
        /// One a volume.
        keep: Vec<SnapshotName>,
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
    /// What a move would meet.
    Preflight {
        /// Left in the store, bytes.
        available_bytes: u64,
        /// A workload of this unit runs here already, though the unit is not primary here.
        running: bool,
    },
    /// Where what was beyond the snapshots is kept, in the order asked; `None`: there was nothing.
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
    /// `Migrate`: it is there already, since this epoch.
    AlreadyThere {
        /// The unit's name.
        name: String,
        /// The epoch's number.
        epoch: u64,
    },
    /// `Migrate { dry_run: true }`
    MigrationPlan(Box<MigrationPlan>),
    /// `Failover { dry_run: true }`
    FailoverPlan(Box<FailoverPlan>),
    /// `Failover`: this node is primary, and serves.
    FailedOver(Box<FailoverReport>),
    /// `Drill`
    Drilled(Box<DrillReport>),
}

/// How long a move would be down, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// What a move costs apart from its data, milliseconds.
    pub fixed_ms: u64,
    /// Bytes that the last step would have to bring.
    pub delta_bytes: u64,
    /// What the pair carries, stream bytes per second; `None`: nothing was measured yet.
    pub bytes_per_second: Option<u64>,
    /// What the workload writes, stream bytes per second; `None`: not known yet.
    pub written_per_second: Option<u64>,
    /// Together: fixed cost + delta ÷ throughput, milliseconds.
    pub downtime_ms: u64,
    /// Moves of this unit to that peer that the fixed cost comes from; 0: it is a guess.
    pub from_moves: u64,
}

/// What `migrate --dry-run` says: preflight has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationPlan {
    /// The unit's name.
    pub name: String,
    /// From.
    pub source: Fingerprint,
    /// To.
    pub target: Fingerprint,
    /// The downtime.
    pub prediction: Prediction,
    /// The budget given, and whether the prediction meets it.
    pub budget_ms: Option<u64>,
    /// Left in the target's store, bytes.
    pub available_bytes: u64,
    /// Things a person should know.
    pub notes: Vec<String>,
}

/// What a failover would go on from, and by what right it could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverPlan {
    /// The unit's name.
    pub name: String,
    /// Whose place would be taken.
    pub primary: Fingerprint,
    /// It is connected now: a migration there would lose nothing.
    pub primary_connected: bool,
    /// Short name of the newest instance that every volume has whole.
    pub instance: String,
    /// When it was taken, seconds since 1970.
    pub taken_unix_s: i64,
    /// What was acknowledged after this moment would be lost (it stays on the old primary): milliseconds
    /// since the latest moment at which this replica was known to equal the primary.
    pub age_ms: u64,
    /// A receive is under way, and would be ended.
    pub receiving: bool,
    /// Proofs that could be tried now, besides the operator's word.
    pub proofs: Vec<Proof>,
    /// Milliseconds until the lease has run out, where the unit has one and it has not.
    pub lease_left_ms: Option<u64>,
}

/// A failover, as reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverReport {
    /// What was known before it acted.
    pub plan: FailoverPlan,
    /// By what right.
    pub proof: Proof,
    /// The new epoch's number.
    pub epoch: u64,
    /// Parts by name, milliseconds, in the order in which they passed: drain, look, prove, set back,
    /// mount, start.
    pub parts_ms: Vec<(String, u64)>,
    /// From the command to the end, milliseconds.
    pub total_ms: u64,
    /// Where this node's own differences from the instance are kept, if there were any.
    pub aside: Vec<DatasetName>,
    /// Things a person should know.
    pub notes: Vec<String>,
}

/// A drill, as reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillReport {
    /// The unit's name.
    pub name: String,
    /// Short name of the snapshots it was tried on.
    pub instance: String,
    /// How old they were, milliseconds.
    pub age_ms: u64,
    /// Parts by name, milliseconds.
    pub parts_ms: Vec<(String, u64)>,
    /// What did not work; `None`: a failover would have come up.
    pub trouble: Option<Failure>,
    /// The replica went on being replicated to meanwhile: rounds that ended well.
    pub rounds_meanwhile: u64,
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
    /// What was predicted just before the workload was stopped.
    pub predicted: Option<Prediction>,
    /// The budget given.
    pub budget_ms: Option<u64>,
    /// As clients felt it, where they come through this node's forwarder. Never known to the core:
    /// filled in by whoever performs the effects.
    #[serde(default)]
    pub clients: Option<ClientsView>,
    /// Things a person should know: standbys left behind, an activation that failed.
    pub notes: Vec<String>,
}

/// A move as the clients felt it whose connections pass through the source's forwarder: from the begin
/// of quiesce until the first answer after the move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsView {
    /// Longest time without an answer to anybody while somebody was waiting for one, milliseconds;
    /// `None`: somebody still waited when the move was reported.
    pub longest_gap_ms: Option<u64>,
    /// New connections that were held until they could be passed on.
    pub held: u64,
    /// The longest of these waits, milliseconds.
    pub longest_hold_ms: u64,
    /// Connections that the workload's end cut while they were open.
    pub lost: u64,
    /// New connections that could not be passed on at all.
    pub errors: u64,
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
    /// What a cutover expects, just before it stops the workload.
    Predicted {
        /// The attempt.
        attempt: AttemptId,
        /// The downtime.
        prediction: Prediction,
        /// The budget given.
        budget_ms: Option<u64>,
    },
    /// A migration ended well.
    Migrated(Box<MigrationReport>),
    /// A migration ended otherwise.
    MigrationFailed {
        /// The attempt.
        attempt: AttemptId,
        /// The phase that it had come to.
        phase: String,
        /// Why, and what holds now.
        failure: Failure,
    },
    /// A failover of this node's ended well.
    FailedOver(Box<FailoverReport>),
    /// A drill ended.
    Drilled(Box<DrillReport>),
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
    /// Snapshots of several datasets of one pool are one moment.
    pub atomic_group_snapshot: bool,
    /// The local configuration names a fencing hook.
    pub fencing_hook: bool,
}
