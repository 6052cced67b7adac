//! What people are told: answers, plans, reports, events.

use flocker_store::{DatasetName, Guid, Snapshot};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{AttemptId, Fingerprint, UnitId};
use crate::message::Adopted;
use crate::record::Proof;

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
        /// Replicas that the standby had already, and that are gone on from.
        adopted: Vec<Adopted>,
        /// What a person should know of how it is replicated.
        notes: Vec<String>,
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
    /// `Resolve { dry_run: true }`
    ResolvePlan(Box<ResolvePlan>),
    /// `Resolve`: what only this standby had is kept aside.
    Resolved(Box<ResolveReport>),
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

/// What two sides of a unit have in common, and what each has alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvePlan {
    /// The unit's name.
    pub name: String,
    /// Whose data is followed.
    pub primary: Fingerprint,
    /// Each volume.
    pub volumes: Vec<VolumeDifference>,
    /// Written here since the newest snapshots, of all volumes together, bytes; `None`: the store cannot say.
    pub written_bytes: Option<u64>,
    /// Something here would be set aside.
    pub differs: bool,
}

/// One volume of a [`ResolvePlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDifference {
    /// The standby's dataset.
    pub dataset: DatasetName,
    /// It exists.
    pub exists: bool,
    /// The newest snapshot that both have; `None`: all of the dataset is set aside, and everything is sent anew.
    pub common: Option<SnapshotLine>,
    /// Newer ones that only the standby has, oldest first.
    pub only_here: Vec<SnapshotLine>,
    /// Newer ones that only the primary has, oldest first.
    pub only_there: Vec<SnapshotLine>,
}

/// A snapshot, as it is listed for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLine {
    /// The part of its name behind the `@`.
    pub short: String,
    /// The same on every node.
    pub guid: Guid,
    /// When it was taken, seconds since 1970.
    pub taken_unix_s: i64,
}

impl From<&Snapshot> for SnapshotLine {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            short: snapshot.name.short().to_owned(),
            guid: snapshot.guid,
            taken_unix_s: snapshot.creation_unix_s,
        }
    }
}

/// What became of a standby that went its own way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveReport {
    /// The unit's name.
    pub name: String,
    /// What was found before anything was done; `None`: it had been begun before.
    pub plan: Option<ResolvePlan>,
    /// Where what only this node had is kept.
    pub aside: Vec<DatasetName>,
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
    /// Bytes of the streams that went as references to what the receiver had.
    pub saved_bytes: u64,
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
    /// What of these is not ours, but the container runtime's, CRIU's or the workload's own, by name, milliseconds.
    #[serde(default)]
    pub theirs_ms: Vec<(String, u64)>,
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
