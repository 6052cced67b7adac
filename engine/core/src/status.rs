//! What a node says of itself: a plain picture, made on demand, changing nothing.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{Epoch, Fingerprint, Incarnation, UnitId};
use crate::record::{FailoverRecord, PeerRecord, Policy, VolumeRecord, WorkloadRecord};
use crate::tree::Tree;

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// This life of its journal.
    pub incarnation: Incarnation,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// Its units, by name.
    pub units: Vec<UnitStatus>,
    /// Datasets that claim to belong to a unit that the journal does not know.
    pub orphans: Vec<String>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// As the journal has it.
    pub record: PeerRecord,
    /// Connected now.
    pub connected: bool,
}

/// A unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// For people.
    pub name: String,
    /// Its id.
    pub id: UnitId,
    /// `primary`, `standby`, or `handed-over` while a commit is unanswered.
    pub role: String,
    /// The newest epoch known.
    pub epoch: Epoch,
    /// What it is doing, in a few words.
    pub doing: String,
    /// Its volumes.
    pub volumes: Vec<VolumeRecord>,
    /// It has all that lies below them.
    #[serde(default)]
    pub tree: Option<Tree>,
    /// When it is replicated.
    pub policy: Policy,
    /// By a person.
    pub paused: bool,
    /// The workload configured here.
    pub workload: Option<WorkloadRecord>,
    /// `running`, `stopped`, `exited`, `none`, `elsewhere`.
    pub workload_state: String,
    /// As a standby: milliseconds since it was known to equal the primary.
    pub lag_ms: Option<u64>,
    /// Length of the lease that the primary holds, milliseconds; `None`: it needs none.
    pub lease_ms: Option<u64>,
    /// As a primary: for how long it is still held. As a standby: how long until it has run out.
    pub lease_left_ms: Option<u64>,
    /// The last failover that this node made.
    pub failover: Option<FailoverRecord>,
    /// As a primary: each standby.
    pub standbys: Vec<StandbyStatus>,
    /// What a person should look at.
    pub alarm: Option<Failure>,
}

/// A standby, as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Who.
    pub peer: Fingerprint,
    /// Its name.
    pub name: String,
    /// Connected now.
    pub connected: bool,
    /// What it is doing, in a few words.
    pub doing: String,
    /// Milliseconds since it was known to equal the primary; `None`: never yet.
    pub lag_ms: Option<u64>,
    /// Whether the lag is within what was promised.
    pub within_rpo: bool,
    /// Rounds since the daemon started.
    pub rounds: u64,
    /// Bytes of streams sent since the daemon started.
    pub stream_bytes: u64,
    /// Of those on the wire.
    pub wire_bytes: u64,
    /// Throughput of the last round, stream bytes per second.
    pub bytes_per_second: Option<u64>,
    /// How long the last round took, milliseconds.
    pub last_round_ms: Option<u64>,
    /// Snapshots taken that the standby does not have yet.
    pub backlog: u64,
    /// Why it stands still, if it does.
    pub failure: Option<Failure>,
    /// It was accepted that nothing may be able to come back from it (`protect --one-way`).
    pub one_way: bool,
    /// Clones that are no clones there, and why.
    pub sent_whole: Vec<String>,
}
