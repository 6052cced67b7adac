//! What the journal keeps. Everything here is durable before it is acted on; everything else in
//! this crate is lost at a crash, and made to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flocker_store::{DatasetKind, DatasetName, Guid};
use serde::{Deserialize, Serialize};

use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, UnitId, VolumeId};

/// Kinds of workload a grant can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// A supervised process in the volume's path.
    Process,
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkloadKind::Process => f.write_str("process"),
        }
    }
}

/// What a peer may do here. Nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The dataset below which its replicas are kept.
    pub receive: DatasetName,
    /// Most bytes they may use in all; `None`: no limit but the store's.
    pub quota_bytes: Option<u64>,
    /// Workloads that a migration from this peer may start; the commands are local configuration.
    pub workloads: BTreeSet<WorkloadKind>,
}

/// A node that this one trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// What it calls itself.
    pub name: String,
    /// Where it was last reachable, `host:port`.
    pub addresses: Vec<String>,
    /// What it may do here; `None`: nothing.
    pub grant: Option<Grant>,
}

/// When a unit is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Continuously: the standby is never further behind than this many milliseconds.
    Rpo(u64),
    /// On a schedule: a step every so many milliseconds.
    Every(u64),
}

impl Policy {
    /// The lag promised, in milliseconds.
    pub fn rpo_ms(&self) -> u64 {
        match self {
            Policy::Rpo(ms) | Policy::Every(ms) => *ms,
        }
    }
}

/// One volume of a unit, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The same on every node.
    pub id: VolumeId,
    /// Where it lives here.
    pub dataset: DatasetName,
    /// What it is.
    pub kind: DatasetKind,
    /// It came here in OpenZFS's dialect, which zfs-fuse cannot receive as a filesystem.
    pub modern_streams: bool,
}

/// The local configuration of a unit's workload: only this says what is started here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Program and arguments, not passed through a shell.
    pub command: Vec<String>,
    /// How long it may take to stop after SIGTERM before it is killed, milliseconds.
    pub stop_limit_ms: u64,
    /// When the daemon dies: `true`, the workload dies with it; `false`, it runs on and is adopted.
    pub die_with_daemon: bool,
    /// Whether it should be running wherever the unit is primary.
    pub wanted: bool,
}

/// How an attempt ended at the node that was asked to take over. Never forgotten, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The target owns the epoch.
    Taken,
    /// A tombstone: the target never will.
    Refused,
}

/// What this node may do with a unit.
///
/// ```text
///            protect                     migrate           ready(attempt)
///   (none) ──────────▶ Serving ─────────────────▶ Leaving ───────────────▶ HandedOver
///                        ▲  ▲       abort, restart   │                       │    │
///                        │  └────────────────────────┘                       │    │ taken
///                        │                refused, from that incarnation     │    │
///                        ├───────────────────────────────────────────────────┘    ▼
///                        │ settle(attempt)                                     Following
///                      Ready ◀───────────────────────────────────────────────────┘
///                        │        prepare(attempt)                                ▲
///                        └────────────────────────────────────────────────────────┘
///                               abort, a new step, another attempt: tombstone
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Primary, and writable once the start-up rule has been satisfied.
    Serving,
    /// Primary, in a cutover before its commit: the workload may be stopped and the volumes fenced.
    /// A restart takes it back to [`Role::Serving`].
    Leaving {
        /// This attempt, never used again.
        attempt: AttemptId,
        /// Where the unit is going.
        target: Fingerprint,
    },
    /// Committed. Fenced until `settle(attempt)` is answered; nobody may decide otherwise here.
    HandedOver {
        /// The attempt that was committed.
        attempt: AttemptId,
        /// Where the unit went.
        target: Fingerprint,
        /// Only a refusal from this incarnation of the target's journal lets us resume.
        incarnation: Incarnation,
        /// The epoch that the target owns once it has taken.
        next: Epoch,
    },
    /// Standby of this node.
    Following {
        /// The primary.
        source: Fingerprint,
    },
    /// Standby that holds the final snapshots and has promised to answer `settle(attempt)`.
    Ready {
        /// The primary.
        source: Fingerprint,
        /// The attempt.
        attempt: AttemptId,
        /// The epoch it would own.
        next: Epoch,
        /// The final snapshot of each volume.
        finals: Vec<(VolumeId, Guid)>,
        /// Whether the workload was running when the cutover began.
        workload_wanted: bool,
    },
}

/// A unit as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The same on every node.
    pub id: UnitId,
    /// For people; unique on a node.
    pub name: String,
    /// Its volumes, at least one.
    pub volumes: Vec<VolumeRecord>,
    /// When it is replicated.
    pub policy: Policy,
    /// The newest epoch this node knows of.
    pub epoch: Epoch,
    /// What this node may do with it.
    pub role: Role,
    /// Nodes that hold replicas, while this node is primary.
    pub standbys: Vec<Fingerprint>,
    /// The workload, where local configuration names one.
    pub workload: Option<WorkloadRecord>,
    /// Its volumes are this node's own, and their return needs no grant: it was protected here
    /// first, or moved from here by this node's operator to a peer without a grant for its place.
    pub own: bool,
    /// Replication paused by a person.
    pub paused: bool,
    /// The risk of starting without having heard from the standbys was accepted.
    pub start_alone: bool,
    /// Last attempt number used here.
    pub last_attempt: u64,
    /// For each issuer: every attempt up to this one that is not in `taken` is refused.
    pub refused_up_to: BTreeMap<Fingerprint, u64>,
    /// Attempts this node has taken, newest last; see [`TAKEN_KEPT`].
    pub taken: Vec<AttemptId>,
}

/// How many taken attempts a record remembers. An attempt older than these was settled at its source
/// long ago: the source cannot begin another before it knows.
pub const TAKEN_KEPT: usize = 16;

/// A change of the journal. All changes of one `Effect::Persist` are one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalChange {
    /// Insert or replace a unit.
    PutUnit(Box<UnitRecord>),
    /// Forget a unit.
    DeleteUnit(UnitId),
    /// Insert or replace a peer.
    PutPeer(PeerRecord),
    /// Forget a peer.
    DeletePeer(Fingerprint),
}

/// The copy of a unit's ownership in a dataset's local properties `flocker-repl:*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The unit.
    pub unit: UnitId,
    /// The volume.
    pub volume: VolumeId,
    /// The dataset's own guid when it was written: a clone or a child does not inherit a claim.
    pub dataset_guid: Guid,
    /// The epoch.
    pub epoch: Epoch,
    /// The role in a word: `serving`, `leaving`, `handed-over`, `following`, `ready`.
    pub state: String,
}

impl Role {
    /// In a word, for mirrors and status.
    pub fn word(&self) -> &'static str {
        match self {
            Role::Serving => "serving",
            Role::Leaving { .. } => "leaving",
            Role::HandedOver { .. } => "handed-over",
            Role::Following { .. } => "following",
            Role::Ready { .. } => "ready",
        }
    }

    /// Whether the unit may be written here, given that the start-up rule is satisfied.
    pub fn is_primary(&self) -> bool {
        matches!(self, Role::Serving | Role::Leaving { .. })
    }

    /// Whether this node holds a replica.
    pub fn is_standby(&self) -> bool {
        matches!(self, Role::Following { .. } | Role::Ready { .. })
    }
}
