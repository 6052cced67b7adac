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

mod action;
mod report;

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::{DatasetKind, DatasetName, Partial, ReceiveSpec, SendSpec, Snapshot};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{Fingerprint, OpId, RequestId, TransferId, UnitId, VolumeId};
use crate::message::Message;
use crate::record::{Adoption, Grant, JournalChange, Mirror, PeerRecord, Policy, WorkloadRecord};
use crate::tree::Tree;

pub use action::{Action, Inspected, Loss, MirrorState, Outcome};
pub use report::*;

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
    /// A transfer that runs has not moved a byte for so long, milliseconds; `None`: it moves again.
    TransferStands {
        /// Which.
        transfer: TransferId,
        /// Since when.
        for_ms: Option<u64>,
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
        /// Bytes of the stream that went as references to what the receiver had.
        saved_bytes: u64,
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
        /// They are all of a tree, and what is made below them later belongs to it.
        tree: Option<Tree>,
        /// Name or fingerprint of the standby.
        to: String,
        /// The unit's name; by default the first dataset's last component.
        name: Option<String>,
        /// When to replicate.
        policy: Policy,
        /// See `UnitRecord::lease_ms`.
        lease_ms: Option<u64>,
        /// Take over what another tool has sent to that standby.
        adoption: Option<Adoption>,
        /// It is accepted that what is written over there may not be able to come back.
        one_way: bool,
    },
    /// Datasets below its volumes join a unit, here and on every standby, or leave it.
    Extend {
        /// The unit's name.
        name: String,
        /// The datasets, those above before those below, each with a fresh random id.
        volumes: Vec<(VolumeId, DatasetName)>,
        /// Volumes that leave it; none of the uppermost.
        leave: Vec<DatasetName>,
        /// What belongs to it from now on; `None`: as before.
        tree: Option<Tree>,
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
        /// What may be left behind of the workload, by name.
        accept: BTreeSet<String>,
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
    /// A standby that went its own way: keep what only it has aside, and let it follow again.
    Resolve {
        /// The unit's name.
        name: String,
        /// Only say what each side has.
        dry_run: bool,
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
        /// Where the store is not there, it never will be again: nothing is taken back in it.
        store_is_gone: bool,
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
        /// A workload stands still for it: the last step of a move.
        last: bool,
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
    /// Raw streams (`send -w`) can be sent and received here.
    pub raw: bool,
    /// An interrupted receive keeps what arrived.
    pub resumable: bool,
    /// Holds are available here.
    pub holds: bool,
    /// Bookmarks are, and sends from them.
    pub bookmarks: bool,
    /// For how long snapshots are kept for a standby that is away before bookmarks stand in for them, milliseconds.
    pub pin_limit_ms: u64,
    /// A clone is sent and received as one.
    pub clones: bool,
    /// Snapshots of several datasets of one pool are one moment.
    pub atomic_group_snapshot: bool,
    /// The local configuration names a fencing hook.
    pub fencing_hook: bool,
}

impl StoreFacts {
    /// Whether a send with the flags of this interrupted receive can be made here.
    pub(crate) fn resumes(&self, partial: &Partial) -> bool {
        self.resumable
            && (self.compressed_send || !partial.compressed)
            && (self.large_block_send || !partial.large_blocks)
    }
}
