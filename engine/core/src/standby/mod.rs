//! A standby's side: what it lets in, what it promises, and how it settles.
//!
//! Postconditions. A receive that ends well: the snapshot is there as the store reports it, and the
//! primary is told its guid. One that fails: the replica is at its last good snapshot. `Ready` is
//! durable before it is said; so are `Taken` and `Refused`; neither is ever changed.

mod join;
mod resolve;
mod stepback;
mod steps;
pub(crate) mod streams;
mod takeover;

use std::collections::{BTreeMap, VecDeque};

use flocker_store::{DatasetKind, DatasetName, Guid, SnapshotName};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{AttemptId, Epoch, Fingerprint, OpId, QuestionId, TransferId, VolumeId};
use crate::io::{Action, Inspected, Outcome};
use crate::limits::SURVEY_SNAPSHOTS;
use crate::message::{
    ActivationTimes, Adopted, Body, Carried, StepOffer, VolumeIntro, VolumeSurvey,
};
use crate::record::{Grant, Policy, Role, VolumeRecord};
use crate::tree::Tree;
use crate::unit::{Op, Unit};

/// What a standby knows beyond its record; lost at a restart, and asked for again.
#[derive(Debug, Clone, Default)]
pub(crate) struct StandbyView {
    receiving: Option<Receiving>,
    /// The last transfer that ended here, and how: its offer may come once more.
    ended: Option<Ended>,
    /// The source is stopped and waits for us since it offered its last step: bookkeeping gives way.
    pub(crate) source_waits: bool,
    /// The last one of each earlier boot of the primary, newest last.
    ended_before: VecDeque<TransferId>,
    /// Wall clock of the primary at the latest moment at which this replica equalled it.
    pub(crate) equal_wall_ms: Option<i64>,
    /// When the primary last spoke of this unit since it connected, monotonic milliseconds: then it
    /// counts on this standby.
    pub(crate) heard_at: Option<u64>,
    /// The newest snapshot of a volume is fuzzy: not a moment that ever was.
    fuzzy: BTreeMap<VolumeId, bool>,
    /// Looks for whoever asked; void once a receive has begun.
    surveying: BTreeMap<Fingerprint, (OpId, QuestionId)>,
    preparing: Option<Preparing>,
    /// The promise was made since our start: whoever settles it speaks to us.
    promised: Option<AttemptId>,
    /// Otherwise the primary is asked to say it once more, by this question.
    confirming: Option<QuestionId>,
    preflighting: Option<(OpId, Fingerprint, QuestionId)>,
    joining: Option<join::Joining>,
    pub(crate) stepping_back: stepback::SteppingBack,
    resolving: Option<resolve::Resolving>,
    /// What the attempt that brought this unit here ended with.
    pub(crate) arrived: Option<(AttemptId, Vec<(VolumeId, Guid)>)>,
    /// Since it arrived its workload ran where clients could find it.
    pub(crate) answered: bool,
    /// What was here before, and is followed since our start.
    pub(crate) adopted: Vec<Adopted>,
    /// Steps received since our start.
    pub(crate) received: u64,
    /// The last activation of this unit here, for whoever wants to predict the next.
    pub(crate) last_times: Option<ActivationTimes>,
    /// This unit came here by this attempt, from this node, which wants to know when it runs.
    pub(crate) announce: Option<(AttemptId, Fingerprint)>,
    /// It runs, and this is how long that took.
    pub(crate) announced: Option<(AttemptId, ActivationTimes)>,
}

/// What a primary says of a unit besides its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) policy: Policy,
    pub(crate) lease_ms: Option<u64>,
    pub(crate) tree: Option<Tree>,
    pub(crate) volumes_as_of: (u64, u64),
}

/// A transfer that ended here.
#[derive(Debug, Clone)]
struct Ended {
    transfer: TransferId,
    outcome: Result<Guid, Failure>,
    carried: Carried,
}

#[derive(Debug, Clone)]
struct Receiving {
    peer: Fingerprint,
    offer: StepOffer,
    /// Of a clone: what it is one of, here.
    origin: Option<SnapshotName>,
    /// Looking for that, and whether there is room; afterwards `None`.
    checking: Option<OpId>,
}

#[derive(Debug, Clone)]
struct Preparing {
    op: OpId,
    peer: Fingerprint,
    attempt: AttemptId,
    next: Epoch,
    finals: Vec<(VolumeId, Guid)>,
    workload_wanted: bool,
}

impl StandbyView {
    pub(crate) fn is_receiving(&self, transfer: TransferId) -> bool {
        self.receiving.as_ref().is_some_and(|r| r.offer.transfer == transfer)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.receiving.is_some()
    }

    /// What is being looked at is of other volumes than there are now.
    fn forget_looks(&mut self) {
        self.surveying.clear();
        self.preflighting = None;
        self.preparing = None;
    }

    pub(crate) fn source_changed(&mut self) {
        self.source_waits = false;
        self.preparing = None;
    }

    pub(crate) fn preparing_ends(&mut self) {
        self.preparing = None;
    }

    /// The base of the receive in flight, if it is of this volume.
    pub(crate) fn base_in_use(&self, volume: VolumeId) -> Option<Guid> {
        self.receiving.as_ref().filter(|r| r.offer.volume == volume).and_then(|r| r.offer.from)
    }
}

/// Whether what is introduced could be kept here at all.
///
/// # Errors
/// The reason, in words for the person who asked for protection.
pub(crate) fn check_intro(
    ctx: &Ctx,
    peer: Fingerprint,
    own: bool,
    volumes: &[VolumeIntro],
) -> Result<(), Failure> {
    let refuse = |code, text: String| Err(Failure::refused(code, text));
    let me = &ctx.config.store;
    if !own && grant_of(ctx, peer).is_none() {
        let text = format!(
            "this node has granted nothing to {0}: run `flocker-repl grant {0} --receive DATASET` here",
            ctx.peer_name(peer)
        );
        return refuse(FailureCode::NotGranted, text);
    }
    for volume in volumes {
        if !me.replica_kinds.contains(&volume.kind) {
            let text = format!("{} cannot keep a {} ({})", me.describe, volume.kind, volume.leaf);
            return refuse(FailureCode::Unsupported, text);
        }
        if volume.raw && !me.raw {
            let text = format!(
                "{} is encrypted, and {} cannot keep it sealed (raw streams)",
                volume.leaf, me.describe
            );
            return refuse(FailureCode::Unsupported, text);
        }
        let modern = volume.modern_streams && volume.kind == DatasetKind::Filesystem;
        if modern && !me.receives_modern {
            let text = format!("{} cannot receive an OpenZFS filesystem", me.describe);
            return refuse(FailureCode::Unsupported, text);
        }
    }
    Ok(())
}

pub(crate) fn grant_of(ctx: &Ctx, peer: Fingerprint) -> Option<Grant> {
    ctx.peers.get(&peer)?.record.grant.clone()
}

/// Where a peer's unit is kept: below what it was granted.
pub(crate) fn replica_dataset(
    grant: &Grant,
    unit: &str,
    place: &str,
) -> Result<DatasetName, Failure> {
    let receive = &grant.receive;
    let named = match place {
        "" => format!("{receive}/{unit}"),
        _ => format!("{receive}/{unit}/{place}"),
    };
    with_room(named)
}

/// The name of a replica, with room for those of our snapshots, which have up to 40 bytes.
pub(crate) fn with_room(name: String) -> Result<DatasetName, Failure> {
    let named = DatasetName::new(name);
    let room = named.and_then(|n| n.snapshot(&"x".repeat(40)).map(|s| s.dataset().clone()));
    room.map_err(|e| Failure::refused(FailureCode::BadRequest, e.to_string()))
}

/// What was found of each volume. Of very many snapshots the oldest are left out: what two nodes have in common is
/// looked for from the newest on.
pub(crate) fn surveys(volumes: &[VolumeRecord], found: Vec<Inspected>) -> Vec<VolumeSurvey> {
    let all: usize = found.iter().map(|f| f.inventory.snapshots.len()).sum();
    let most = match all > SURVEY_SNAPSHOTS {
        true => SURVEY_SNAPSHOTS / volumes.len().max(1),
        false => usize::MAX,
    };
    let survey = |(volume, found): (&VolumeRecord, Inspected)| {
        let mut inventory = found.inventory;
        let excess = inventory.snapshots.len().saturating_sub(most);
        inventory.snapshots.drain(..excess);
        let excess = inventory.bookmarks.len().saturating_sub(most);
        inventory.bookmarks.drain(..excess);
        VolumeSurvey { volume: volume.id, inventory: found.info.is_some().then_some(inventory) }
    };
    volumes.iter().zip(found).map(survey).collect()
}

impl Unit {
    /// The primary this unit follows, if that is `peer`.
    pub(crate) fn follows(&self, peer: Fingerprint) -> bool {
        match &self.record.role {
            Role::Following { source } | Role::Ready { source, .. } => *source == peer,
            Role::Serving | Role::Leaving { .. } | Role::HandedOver { .. } => false,
        }
    }

    pub(crate) fn not_following(&self, ctx: &Ctx, peer: Fingerprint) -> Failure {
        let text = format!(
            "{}: this node is {} and does not follow {}",
            self.record.name,
            self.record.role.word(),
            ctx.peer_name(peer)
        );
        Failure::refused(FailureCode::Conflict, text)
    }

    pub(crate) fn on_intro(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        name: &str,
        volumes: &[VolumeIntro],
        promise: Promise,
    ) {
        let answer = if !self.follows(peer) {
            Err(self.not_following(ctx, peer))
        } else if promise.volumes_as_of < self.record.volumes_as_of
            || !self.has_just_these(ctx, peer, volumes)
        {
            return; // It came late, or is asked again when they are.
        } else {
            // The first answer may have been lost.
            check_intro(ctx, peer, self.record.own, volumes).map(|()| self.standby.adopted.clone())
        };
        let before = Promise {
            policy: self.record.policy,
            lease_ms: self.record.lease_ms,
            tree: self.record.tree.clone(),
            volumes_as_of: self.record.volumes_as_of,
        };
        if answer.is_ok() && (promise != before || self.record.name != name) {
            // The name stays: it is this node's. The promise is the primary's.
            self.record.policy = promise.policy;
            self.record.lease_ms = promise.lease_ms;
            self.record.tree = promise.tree;
            self.record.volumes_as_of = promise.volumes_as_of;
            self.persist(ctx);
        }
        self.say(ctx, peer, Body::IntroReply(answer));
    }

    // ---- surveys ------------------------------------------------------------------------------

    pub(crate) fn on_survey(&mut self, ctx: &mut Ctx, peer: Fingerprint, question: QuestionId) {
        if !self.follows(peer) {
            let (was_primary, answer) = (false, Err(self.not_following(ctx, peer)));
            return self.say(ctx, peer, Body::SurveyReply { question, was_primary, answer });
        }
        self.standby.source_waits = false;
        if self.failing_over() || self.standby.is_resolving() || self.goes_away() {
            return; // Asked again; by then it is known who goes on, or from what.
        }
        // A receive in flight would change what is found; its sender is not there any more. Once it
        // has ended the primary asks again: a look begun before that may miss what it committed.
        self.cancel_receiving(ctx);
        if self.standby.is_busy() {
            return;
        }
        if self.standby.surveying.get(&peer).is_some_and(|(_, asked)| *asked == question) {
            return; // Asked again while it is being looked at, which may take longer than that.
        }
        let action = Action::Inspect { datasets: self.datasets(), streams: false };
        let op = ctx.run(self.id(), Op::Survey { peer }, action);
        self.standby.surveying.insert(peer, (op, question));
    }

    pub(crate) fn survey_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        peer: Fingerprint,
        outcome: Result<Outcome, Failure>,
    ) {
        let question = match self.standby.surveying.get(&peer) {
            Some((mine, question)) if *mine == op => *question,
            _ => return,
        };
        self.standby.surveying.remove(&peer);
        let answer = match outcome {
            Ok(Outcome::Inspected(found)) => {
                self.local.exists = found.iter().map(|f| f.info.is_some()).collect();
                self.local.inventories = Some(found.iter().map(|f| f.inventory.clone()).collect());
                self.upkeep.tidy_due = true;
                Ok(surveys(&self.record.volumes, found))
            }
            Ok(_) => unreachable!("asked for an inspection"),
            Err(failure) => Err(failure),
        };
        let was_primary = self.record.was_primary || self.record.step_back.is_some();
        self.say(ctx, peer, Body::SurveyReply { question, was_primary, answer });
    }

    // ---- tombstones ---------------------------------------------------------------------------

    /// Attempts grow at their issuer and are begun one after the other, so one number says it all.
    pub(crate) fn is_refused(&self, attempt: AttemptId) -> bool {
        let upto = self.record.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
        attempt.number <= upto && !self.record.taken.contains(&attempt)
    }

    /// Refused, or taken once already: an issuer that lost its journal may count from the start.
    fn is_over(&self, attempt: AttemptId) -> bool {
        self.is_refused(attempt) || self.record.taken.contains(&attempt)
    }

    /// Not durable before the record is persisted, which every caller does next.
    pub(crate) fn refuse(&mut self, attempt: AttemptId) {
        let upto = self.record.refused_up_to.entry(attempt.issuer).or_insert(0);
        *upto = (*upto).max(attempt.number);
    }

    /// Refuses an attempt durably, and with it any earlier one of the same issuer that is ready: an
    /// issuer begins an attempt only when the one before is over.
    pub(crate) fn bury(&mut self, ctx: &mut Ctx, attempt: AttemptId) {
        self.refuse(attempt);
        match self.record.role {
            Role::Ready { source, attempt: ready, .. } if self.is_refused(ready) => {
                self.set_role(ctx, Role::Following { source });
            }
            _ => self.persist(ctx),
        }
    }

    /// Leaves `Ready` for good. The caller sets and persists the new role.
    pub(crate) fn tombstone_if_ready(&mut self) {
        if let Role::Ready { source, attempt, .. } = self.record.role {
            self.refuse(attempt);
            self.record.role = Role::Following { source };
        }
    }
}
