//! What two nodes say to each other about a unit. Every message carries the sender's epoch.
//!
//! The transport encodes them (postcard) and delivers them in order while a connection lasts; the
//! machines assume less: a message may be lost, late or repeated.

use std::collections::BTreeSet;

use flocker_store::{DatasetKind, DatasetName, Guid, Inventory, StreamFeature};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{AttemptId, Epoch, Incarnation, QuestionId, TransferId, UnitId, VolumeId};
use crate::record::{Adoption, Answer, Policy, WorkloadKind};
use crate::tree::Tree;

/// A message about one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The unit.
    pub unit: UnitId,
    /// The newest epoch the sender knows of.
    pub epoch: Epoch,
    /// What it says.
    pub body: Body,
}

/// A volume as it is introduced to a standby.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeIntro {
    /// The same on every node.
    pub id: VolumeId,
    /// The last component of the primary's dataset, for people.
    pub leaf: String,
    /// Where it lies below the place of its unit, as [`crate::tree::places`] says.
    pub place: String,
    /// What it is.
    pub kind: DatasetKind,
    /// Its streams are in OpenZFS's dialect, which zfs-fuse cannot receive as a filesystem.
    pub modern_streams: bool,
    /// Its streams are raw, for good: encrypted blocks as they are on disk.
    pub raw: bool,
    /// What its streams have need of in the receiving pool; only said where a person has asked for the protection.
    pub needs: BTreeSet<StreamFeature>,
    /// Snapshots and bookmarks that a step can start from, newest first; only said where a person has asked
    /// for the protection, since a replica may be there already that has one of them.
    pub known: Vec<Guid>,
}

/// A volume that joins a unit which its standby follows already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    /// The volume that it lies below: one of the unit, or one that comes before it among those that join.
    pub below: VolumeId,
    /// Itself; its place is from there on.
    pub volume: VolumeIntro,
}

/// What a primary's store receives, should a unit come back to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakesBack {
    /// The pool, for the person who has to enable something there.
    pub pool: String,
    /// Filesystems in OpenZFS's dialect.
    pub modern_streams: bool,
    /// What its pool has enabled.
    pub features: BTreeSet<StreamFeature>,
}

/// A replica that was there before, and is followed now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Where it lies on the standby.
    pub dataset: DatasetName,
    /// The short name, there, of the newest snapshot that both sides have.
    pub base: String,
}

/// One send, as it is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepOffer {
    /// Names the bulk stream that follows.
    pub transfer: TransferId,
    /// The volume.
    pub volume: VolumeId,
    /// The base's guid; `None`: a full send.
    pub from: Option<Guid>,
    /// The target snapshot's guid.
    pub to: Guid,
    /// The target snapshot's short name.
    pub to_short: String,
    /// Wall clock at the primary when the snapshot was asked for, milliseconds since 1970.
    pub taken_wall_ms: i64,
    /// Estimated stream size in bytes, where the primary's store can say.
    pub estimate_bytes: Option<u64>,
    /// The snapshot is fuzzy: see `flocker_store::Snapshot::fuzzy`.
    pub fuzzy: bool,
    /// The source is stopped and fenced: what comes after this is the change of primary.
    pub last: bool,
    /// It is long enough to be worth going on with, should it break off.
    pub resumable: bool,
    /// The stream goes on with what an earlier receive has left.
    pub resumes: bool,
    /// The base is the snapshot of another dataset that the volume is a clone of, and its replica is to be.
    pub clone: bool,
}

/// What a transfer has carried, as one of its sides counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Bytes of the stream that went as references to what the receiver had.
    pub saved_bytes: u64,
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, more: Self) {
        self.stream_bytes = self.stream_bytes.saturating_add(more.stream_bytes);
        self.wire_bytes = self.wire_bytes.saturating_add(more.wire_bytes);
        self.saved_bytes = self.saved_bytes.saturating_add(more.saved_bytes);
    }
}

/// What a standby reports of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSurvey {
    /// The volume.
    pub volume: VolumeId,
    /// What is there; `None`: the dataset does not exist yet.
    pub inventory: Option<Inventory>,
}

/// How long the parts of an activation took, milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationTimes {
    /// Making the volumes reachable.
    pub mount_ms: u64,
    /// From asking the workload to start until it runs.
    pub start_ms: u64,
    /// What of that is another program's, by name, milliseconds.
    pub theirs: Vec<(String, u64)>,
}

/// A workload that is to be started where a unit arrives, or may have to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What the grant has to name.
    pub kind: WorkloadKind,
    /// What is needed to make it ready there; see [`crate::Outcome::Described`]. Empty: nothing.
    pub description: String,
}

/// What a target says of a move to it that could be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightFacts {
    /// Left in its store, bytes.
    pub available_bytes: u64,
    /// How long activating this unit took there the last time since its daemon started, if it did.
    pub last: Option<ActivationTimes>,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Primary → standby: keep replicas of this unit.
    Intro {
        /// For people.
        name: String,
        /// Its volumes.
        volumes: Vec<VolumeIntro>,
        /// See `UnitRecord::tree`.
        tree: Option<Tree>,
        /// See `UnitRecord::volumes_as_of`.
        volumes_as_of: (u64, u64),
        /// When it is replicated.
        policy: Policy,
        /// See `UnitRecord::lease_ms`.
        lease_ms: Option<u64>,
        /// Replicas that another tool made are to be taken over.
        adoption: Option<Adoption>,
        /// To be checked before it is agreed; `None`: a person accepts that nothing comes back, or it was agreed
        /// before.
        takes_back: Option<TakesBack>,
    },
    /// Standby → primary: yes, and what was taken over for it, or why not.
    IntroReply(Result<Vec<Adopted>, Failure>),
    /// Primary → standby: keep replicas of these as well, as volumes of a unit that you follow.
    Join {
        /// To be named in the answer.
        question: QuestionId,
        /// Who joins.
        volumes: Vec<Joiner>,
        /// See [`Body::Intro`].
        takes_back: Option<TakesBack>,
    },
    /// Standby → primary: durably yes, or why not.
    JoinReply {
        /// What was asked.
        question: QuestionId,
        /// The answer.
        answer: Result<(), Failure>,
    },
    /// Primary → standby: what do you hold?
    Survey {
        /// To be named in the answer.
        question: QuestionId,
    },
    /// Standby → primary.
    SurveyReply {
        /// What was asked.
        question: QuestionId,
        /// This node was primary until somebody else became it: it is to be told what to step back to.
        was_primary: bool,
        /// What was found; looked at after the question came.
        answer: Result<Vec<VolumeSurvey>, Failure>,
    },
    /// Primary → standby: a send is about to begin.
    Offer(StepOffer),
    /// Standby → primary: go ahead, or why not.
    OfferReply {
        /// The transfer offered.
        transfer: TransferId,
        /// The answer.
        answer: Result<(), Failure>,
    },
    /// Standby → primary: how a step ended, in the words of what the store committed.
    StepReply {
        /// The transfer.
        transfer: TransferId,
        /// The guid of the snapshot that is there now, as the store reports it.
        outcome: Result<Guid, Failure>,
        /// What came for it: this may be heard before the primary's own side of the transfer has ended.
        carried: Carried,
    },
    /// Primary → standby: you were equal to me at this moment (nothing was written since).
    Equal {
        /// Wall clock at the primary, milliseconds since 1970.
        wall_ms: i64,
    },
    /// Source → target: would you take it?
    Preflight {
        /// To be named in the answer.
        question: QuestionId,
        /// A workload is to be started.
        workload: Option<Wanted>,
    },
    /// Target → source.
    PreflightReply {
        /// What was asked.
        question: QuestionId,
        /// The answer.
        answer: Result<PreflightFacts, Failure>,
    },
    /// Source → target: these are the final snapshots; promise to answer `Settle`.
    Prepare {
        /// The attempt.
        attempt: AttemptId,
        /// The epoch the target would own.
        next: Epoch,
        /// The final snapshot of each volume.
        finals: Vec<(VolumeId, Guid)>,
        /// Whether the workload is to be started.
        workload_wanted: bool,
    },
    /// Target → source: durably ready, or why not.
    PrepareReply {
        /// The attempt.
        attempt: AttemptId,
        /// The incarnation of the journal that holds the promise.
        answer: Result<Incarnation, Failure>,
    },
    /// Source → target: the one question after the commit.
    Settle {
        /// The attempt.
        attempt: AttemptId,
        /// Said once more because the target asked for it.
        question: Option<QuestionId>,
    },
    /// Target → source, after a restart behind its promise: that `Settle` may have been said before the
    /// restart, to a node that was then declared dead. Say it once more, if it still holds.
    Confirm {
        /// The attempt.
        attempt: AttemptId,
        /// To be said with it.
        question: QuestionId,
    },
    /// Target → source: durable before it is said.
    SettleReply {
        /// The attempt.
        attempt: AttemptId,
        /// How it ended.
        answer: Answer,
        /// The incarnation of the journal that says so.
        incarnation: Incarnation,
    },
    /// Source → target: given up before its commit; a courtesy, the tombstone is what counts.
    Abandon {
        /// The attempt.
        attempt: AttemptId,
    },
    /// New primary → old primary: the workload runs here (or there is none).
    Activated {
        /// The attempt.
        attempt: AttemptId,
        /// How long it took.
        times: ActivationTimes,
    },
    /// New primary → old primary: it did not start.
    ActivationFailed {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        failure: Failure,
        /// Nobody can have been answered: it is handed back. Otherwise the new primary stays, and alarms.
        handing_back: bool,
    },
    /// Standby → primary: stop, fence, and hand over to me; what follows is `Settle`, or this:
    Yield {
        /// The standby's own attempt.
        attempt: AttemptId,
        /// The epoch that it would own.
        next: Epoch,
        /// The incarnation of the standby's journal.
        incarnation: Incarnation,
    },
    /// Primary → standby: it cannot be stopped or fenced, or may not be; it goes on.
    YieldRefused {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        failure: Failure,
    },
    /// New primary → a standby that was primary: what you have beyond these is not ours; keep it aside.
    StepBack {
        /// To be named in the answer.
        question: QuestionId,
        /// The newest snapshot of each volume that we have in common.
        bases: Vec<(VolumeId, Guid)>,
    },
    /// Standby → new primary: done (where each difference is kept), or why not.
    StepBackReply {
        /// What was asked.
        question: QuestionId,
        /// Dataset names on the standby.
        answer: Result<Vec<String>, Failure>,
    },
    /// Primary → standby: renew my lease.
    Lease {
        /// To be named in the answer.
        question: QuestionId,
        /// It is held to one already: its supervisor ends the workload when that runs out. Otherwise it goes
        /// on without one by somebody's word, and the standby may not count on it yet.
        bound: bool,
    },
    /// Standby → primary: you have it, from the moment you asked on.
    LeaseReply {
        /// What was asked.
        question: QuestionId,
    },
    /// Starting owner → standby: do you know a newer epoch?
    Claim {
        /// To be named in the answer: one to an earlier start says nothing of what was since.
        question: QuestionId,
        /// A workload of it runs there already, from before the start.
        serves: bool,
    },
    /// Standby → starting owner: the epoch in the envelope is what I know; `false`: I know no such unit.
    ClaimReply {
        /// What was asked.
        question: QuestionId,
        /// Whether the unit is known here.
        known: bool,
    },
    /// Primary → standby: protection ends.
    Drop,
    /// Either way: your message's epoch is older than mine, which is in the envelope.
    Stale,
    /// Standby → primary: I know no such unit (any more); introduce it again.
    Unknown,
    /// Standby → primary: a person here wants to know what the two have in common. What do you hold?
    Compare {
        /// To be named in the answer.
        question: QuestionId,
    },
    /// Primary → standby.
    CompareReply {
        /// What was asked.
        question: QuestionId,
        /// What was found; looked at after the question came.
        answer: Result<Vec<VolumeSurvey>, Failure>,
    },
}

impl Body {
    /// A failure that a peer reports speaks of "this node" and "here": say where that is.
    pub(crate) fn say_where(&mut self, peer: &str) {
        let failure = match self {
            Body::IntroReply(Err(f))
            | Body::JoinReply { answer: Err(f), .. }
            | Body::YieldRefused { failure: f, .. }
            | Body::StepBackReply { answer: Err(f), .. }
            | Body::SurveyReply { answer: Err(f), .. }
            | Body::CompareReply { answer: Err(f), .. }
            | Body::OfferReply { answer: Err(f), .. }
            | Body::StepReply { outcome: Err(f), .. }
            | Body::PreflightReply { answer: Err(f), .. }
            | Body::PrepareReply { answer: Err(f), .. }
            | Body::ActivationFailed { failure: f, .. } => f,
            _ => return,
        };
        failure.message = format!("on {peer}: {}", failure.message);
    }

    /// Whether a message wants an answer, so that a stale sender learns of its being stale.
    pub(crate) fn is_question(&self) -> bool {
        match self {
            Body::Intro { .. }
            | Body::Join { .. }
            | Body::Survey { .. }
            | Body::Offer(_)
            | Body::Equal { .. }
            | Body::Preflight { .. }
            | Body::Prepare { .. }
            | Body::Yield { .. }
            | Body::StepBack { .. }
            | Body::Lease { .. }
            | Body::Confirm { .. }
            | Body::Claim { .. }
            | Body::Compare { .. }
            | Body::Drop => true,
            Body::IntroReply(_)
            | Body::JoinReply { .. }
            | Body::SurveyReply { .. }
            | Body::OfferReply { .. }
            | Body::StepReply { .. }
            | Body::PreflightReply { .. }
            | Body::PrepareReply { .. }
            | Body::Settle { .. }
            | Body::SettleReply { .. }
            | Body::Abandon { .. }
            | Body::Activated { .. }
            | Body::ActivationFailed { .. }
            | Body::YieldRefused { .. }
            | Body::StepBackReply { .. }
            | Body::LeaseReply { .. }
            | Body::ClaimReply { .. }
            | Body::CompareReply { .. }
            | Body::Stale
            | Body::Unknown => false,
        }
    }
}
