//! A primary's side of replication: one machine per standby, one snapshot for all of them.
//!
//! ```text
//!             PeerUp             yes              answer, plan          due: snapshot
//!   Offline ─────────▶ Introducing ──▶ Surveying ─────────────▶ Idle ───────────────▶ Round
//!      ▲                   ▲ unknown        ▲                     ▲   every volume done  │
//!      │ PeerDown          └────────────────┼─────────────────────┴──────────────────────┤
//!      └── from anywhere                    └──────── Waiting ◀──────────────────────────┘
//!                                               backoff              failure
//! ```
//!
//! Postconditions. A round that ends well: the standby's own word for each volume that the target
//! snapshot is there, by guid. One that fails: nothing was destroyed on either side, and the next
//! thing that happens is a look at both inventories.

pub(crate) mod absence;
mod clones;
mod compare;
mod introduce;
mod join;
mod rounds;
mod snapshots;
mod stepback;

use std::collections::BTreeSet;

use flocker_store::{Guid, Inventory, Partial, SendSpec, Snapshot};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Now, QuestionId, RequestId, UnitId, VolumeId};
use crate::io::{Action, Effect, RoundReport};
use crate::limits::{
    BACKOFF_FIRST_MS, BACKOFF_LAST_MS, PROTECT_LIMIT_MS, RESEND_MS, RESUMABLE_BYTES, ROUND_GAP_MS,
};
use crate::message::{Adopted, Body, Carried, StepOffer, VolumeSurvey};
use crate::node::PlantedBug;
use crate::plan;
use crate::record::{Policy, Role};
use crate::service::Service;
use crate::unit::{Op, Unit};

pub(crate) use introduce::Asked;
pub(crate) use join::Extending;
use snapshots::Running;
pub(crate) use snapshots::Snapshotting;

/// One standby.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) peer: Fingerprint,
    pub(crate) state: State,
    /// The newest snapshot each volume has there, by its own word. `None`: to be asked.
    pub(crate) bases: Option<Vec<Option<Guid>>>,
    /// What an interrupted receive left there, of each volume. Empty with `bases`: not heard of.
    partials: Vec<Option<Partial>>,
    /// Volumes that are clones, and are sent whole all the same: their origin is not there, or it did not work.
    whole: BTreeSet<usize>,
    /// A clone waits for its origin to arrive.
    awaits_origin: bool,
    /// The target of an interrupted receive that could not be gone on with, though the link held.
    spoilt: Option<Guid>,
    /// Every snapshot that may be its newest by now: its last word, and what was sent since, whose
    /// word may have been lost. `None`: nothing was heard since our start, so it may be any.
    pub(crate) candidates: Option<BTreeSet<Guid>>,
    /// Of each volume that it said it has nothing of: what it may have been at before. It may be there again, in a
    /// pool that was not imported, renamed by a person; kept until it has something newer.
    missing: Vec<Option<BTreeSet<Guid>>>,
    /// The latest moment at which it was known to equal the primary.
    pub(crate) equal: Option<Now>,
    /// `protect` waits for its answer.
    pub(crate) protect_request: Option<RequestId>,
    pub(crate) protect_since: u64,
    /// What it had already, and goes on from.
    adopted: Vec<Adopted>,
    /// What was asked for, until it is answered.
    pub(crate) asked: Option<Asked>,
    /// It agreed to keep replicas, at least once since this machine began.
    pub(crate) introduced: bool,
    pub(crate) failure: Option<Failure>,
    failures: u32,
    pub(crate) rounds: u64,
    pub(crate) stream_bytes: u64,
    pub(crate) wire_bytes: u64,
    pub(crate) last: Option<RoundReport>,
    /// What the pair carries, stream bytes per second, smoothed over rounds that were large enough.
    pub(crate) bytes_per_second: Option<u64>,
    /// What the workload writes, stream bytes per second, smoothed.
    pub(crate) written_per_second: Option<u64>,
    /// Smoothed duration of a round, milliseconds.
    predicted_ms: u64,
    last_begun: u64,
    pub(crate) absence: absence::Absence,
}

/// What it is doing.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Offline,
    Introducing {
        ask_at: u64,
    },
    Surveying {
        ask_at: u64,
        question: QuestionId,
        theirs: Option<Vec<VolumeSurvey>>,
        was_primary: bool,
    },
    /// It was primary: it sets back what only it has, to what we have in common.
    SteppingBack {
        ask_at: u64,
        question: QuestionId,
        bases: Vec<(VolumeId, Guid)>,
    },
    Idle,
    Round(Box<Round>),
    Waiting {
        until: u64,
    },
}

/// All volumes on their way to one snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// When the snapshot was asked for.
    taken: Now,
    /// The target of each volume.
    targets: Vec<Snapshot>,
    /// The volume being sent.
    volume: usize,
    step: Step,
    full: bool,
    carried: Carried,
    frozen_ms: u64,
    skipped: u64,
    pub(crate) is_final: bool,
}

/// One volume's send.
#[derive(Debug, Clone)]
struct Step {
    offer: StepOffer,
    spec: SendSpec,
    ask_at: u64,
    accepted: bool,
    /// What the local side counted, once it has ended; until then the standby's word is all there is.
    carried: Option<Carried>,
    /// The local side ended; the standby's word must come by then.
    word_by: Option<u64>,
    /// What the local side said when it failed.
    local_failure: Option<Failure>,
}

impl Replica {
    pub(crate) fn new(peer: Fingerprint) -> Self {
        Self {
            peer,
            state: State::Offline,
            bases: None,
            partials: Vec::new(),
            whole: BTreeSet::new(),
            awaits_origin: false,
            spoilt: None,
            candidates: None,
            missing: Vec::new(),
            equal: None,
            protect_request: None,
            introduced: false,
            protect_since: 0,
            adopted: Vec::new(),
            asked: None,
            failure: None,
            failures: 0,
            rounds: 0,
            stream_bytes: 0,
            wire_bytes: 0,
            last: None,
            bytes_per_second: None,
            written_per_second: None,
            predicted_ms: 20,
            last_begun: 0,
            absence: absence::Absence::default(),
        }
    }

    pub(crate) fn up(&mut self) {
        self.bases = None;
        self.state = State::Introducing { ask_at: 0 };
    }

    pub(crate) fn down(&mut self, ctx: &mut Ctx, unit: UnitId) {
        self.cancel_round(ctx, unit);
        self.bases = None;
        self.state = State::Offline;
    }

    fn cancel_round(&mut self, ctx: &mut Ctx, _unit: UnitId) {
        if let State::Round(round) = &self.state
            && round.step.accepted
        {
            ctx.push(Effect::CancelTransfer { transfer: round.step.offer.transfer });
        }
    }

    pub(crate) fn survey_failed(&mut self, now: Now, failure: Failure) {
        if matches!(self.state, State::Surveying { .. }) {
            self.wait(now, failure);
        }
    }

    /// After a failure: a pause, then a look at both inventories.
    fn wait(&mut self, now: Now, failure: Failure) {
        self.failures += 1;
        let pause = match failure.remedy {
            Remedy::Replan if self.failures < 4 => 0,
            Remedy::Retry | Remedy::Replan => {
                BACKOFF_FIRST_MS.saturating_mul(1 << (self.failures - 1).min(10))
            }
            Remedy::Abort | Remedy::Operator => BACKOFF_LAST_MS / 3,
        };
        self.bases = None;
        self.failure = Some(failure);
        self.state = State::Waiting { until: now.mono_ms + pause.min(BACKOFF_LAST_MS) };
    }

    /// When the next round should begin, monotonic milliseconds: as late as the promise allows.
    fn due_at(&self, policy: Policy) -> u64 {
        let gap = match policy {
            // Where a round takes as long as its RPO the next one is due at once; what a shorter distance would
            // win is small against that, and costs a look at the store each time. A round that failed is not
            // kept waiting by it for longer than by its own pause.
            Policy::Rpo(ms) => (ms / 10).clamp(ROUND_GAP_MS, BACKOFF_FIRST_MS),
            Policy::Every(_) => ROUND_GAP_MS,
        };
        let not_before = self.last_begun + gap;
        let Some(equal) = self.equal else {
            return not_before;
        };
        let due = match policy {
            Policy::Rpo(ms) => {
                let margin = (ms / 10).max(5);
                (equal.mono_ms + ms).saturating_sub(self.predicted_ms * 3 / 2 + margin)
            }
            Policy::Every(ms) => equal.mono_ms + ms,
        };
        due.max(not_before)
    }

    /// The lag now, milliseconds.
    pub(crate) fn lag_ms(&self, now: Now) -> Option<u64> {
        self.equal.map(|e| now.mono_ms.saturating_sub(e.mono_ms))
    }

    pub(crate) fn in_final_round(&self) -> bool {
        matches!(&self.state, State::Round(r) if r.is_final)
    }

    /// Looking again did not help.
    pub(crate) fn keeps_failing(&self) -> bool {
        self.failures > 3
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(crate) fn doing(&self) -> String {
        match &self.state {
            State::Offline => "not connected".into(),
            State::Introducing { .. } => "introducing".into(),
            State::Surveying { .. } => "comparing inventories".into(),
            State::SteppingBack { .. } => "setting aside what only it has".into(),
            State::Waiting { .. } if self.awaits_origin => {
                "waiting for what it is a clone of".into()
            }
            State::Idle => "in step".into(),
            State::Round(r) if r.full => "sending everything".into(),
            State::Round(_) => "sending an increment".into(),
            State::Waiting { .. } => "waiting to try again".into(),
        }
    }

    /// Why snapshots are kept for this standby, in words before its name.
    pub(crate) fn reasons(&self, volume: usize) -> Vec<(Guid, &'static str)> {
        let base = self.bases.as_ref().and_then(|b| b.get(volume).copied().flatten());
        let mut all: Vec<_> = base.into_iter().map(|g| (g, "base of")).collect();
        let maybe = self.candidates.iter().flatten().filter(|g| Some(**g) != base);
        all.extend(maybe.map(|g| (*g, "may be the base of")));
        let missing = self.was_at(volume).filter(|g| !all.iter().any(|(known, _)| known == g));
        let missing: Vec<_> = missing.map(|g| (g, "was at it, and has nothing now:")).collect();
        all.extend(missing);
        let left = self.partials.get(volume).and_then(|p| p.as_ref()?.to);
        all.extend(left.map(|g| (g, "a receive of it was interrupted on")));
        if let State::Round(round) = &self.state {
            let target = round.targets.get(volume).map(|t| t.guid);
            let why = if round.is_final { "final snapshot, to" } else { "on its way to" };
            all.extend(target.filter(|g| Some(*g) != base).map(|g| (g, why)));
        }
        all
    }

    /// What it was at, of a volume that it says it has nothing of.
    pub(crate) fn was_at(&self, volume: usize) -> impl Iterator<Item = Guid> {
        self.missing.get(volume).into_iter().flatten().flatten().copied()
    }

    /// Guids that must not be destroyed here because of this standby, of a volume of which there is this here.
    pub(crate) fn needed(&self, volume: usize, here: &Inventory) -> Vec<Guid> {
        let base = self.bases.as_ref().and_then(|b| b.get(volume).copied().flatten());
        let mut needed: Vec<Guid> = base.into_iter().collect();
        if let Some(candidates) = &self.candidates {
            // They are of all volumes together, which may be thousands.
            let snapshots = here.snapshots.iter().map(|s| s.guid);
            let all = snapshots.chain(here.bookmarks.iter().map(|b| b.guid));
            needed.extend(all.filter(|guid| candidates.contains(guid)));
        }
        needed.extend(self.was_at(volume));
        needed.extend(self.partials.get(volume).and_then(|p| p.as_ref()?.to));
        if let State::Round(round) = &self.state {
            needed.extend(round.targets.get(volume).map(|t| t.guid));
            if round.volume == volume {
                needed.extend(round.step.offer.from);
            }
        }
        needed
    }

    /// Whether the next step may be long enough to be worth going on with when it breaks off.
    fn is_long(&self, now: Now, full: bool) -> bool {
        let expected = match (self.written_per_second, self.lag_ms(now)) {
            (Some(per_second), Some(lag_ms)) => per_second.saturating_mul(lag_ms) / 1000,
            _ => u64::MAX,
        };
        full || expected >= RESUMABLE_BYTES
    }

    /// It said what it has: whatever else was sent to it did not arrive, or is older.
    fn heard(&mut self, bases: Vec<Option<Guid>>) {
        let known = bases.iter().copied().flatten().collect();
        let before = self.candidates.replace(known).unwrap_or_default();
        if bases.iter().any(Option::is_none) {
            self.equal = None;
        }
        self.missing.resize_with(bases.len(), || None);
        for (missing, base) in self.missing.iter_mut().zip(&bases) {
            match base {
                Some(_) => *missing = None,
                None if missing.is_none() => *missing = Some(before.clone()),
                None => {}
            }
        }
        self.is_back();
        self.bases = Some(bases);
    }

    /// A step has brought a volume there: what it was at before is no matter any more.
    fn arrived(&mut self, volume: usize, guid: Guid) {
        if let Some(missing) = self.missing.get_mut(volume) {
            *missing = None;
        }
        let before =
            self.bases.as_mut().and_then(|b| b.get_mut(volume)).and_then(|b| b.replace(guid));
        if let Some(candidates) = &mut self.candidates {
            before.map(|before| candidates.remove(&before));
            candidates.insert(guid);
        }
        self.is_back();
    }

    pub(crate) fn check_invariants(&self, unit: &Unit) {
        let State::Round(round) = &self.state else {
            return;
        };
        assert_eq!(round.targets.len(), unit.record.volumes.len(), "a target for each volume");
        assert!(self.bases.is_some(), "a round starts from what the standby said it has");
    }
}

impl Unit {
    /// A standby for each peer in the record; called when the unit begins to be served.
    pub(crate) fn join_replicas(&mut self, ctx: &Ctx) {
        for peer in self.record.standbys.clone() {
            let replica = self.replicas.entry(peer).or_insert_with(|| Replica::new(peer));
            if ctx.connected(peer) && matches!(replica.state, State::Offline) {
                replica.up();
            }
        }
    }

    fn may_replicate(&self) -> bool {
        matches!(self.service, Service::Up { .. }) && !self.record.paused
    }

    // ---- asking -------------------------------------------------------------------------------

    pub(crate) fn on_unknown(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if let Role::HandedOver { attempt, target, .. } = self.record.role {
            if peer == target {
                if ctx.config.planted(PlantedBug::IgnoreIncarnation) {
                    return self.refused_by_target(ctx);
                }
                let text = format!(
                    "{}: {} has lost its memory of migration attempt {attempt}; this side stays \
                     fenced, since the other one may have taken over",
                    self.record.name,
                    ctx.peer_name(peer)
                );
                self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::Conflict, text));
            }
            return;
        }
        if let Some(replica) = self.replicas.get_mut(&peer)
            && !matches!(replica.state, State::Introducing { .. } | State::Offline)
        {
            replica.cancel_round(ctx, self.record.id);
            replica.up();
        }
    }

    pub(crate) fn on_survey_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        was_primary: bool,
        answer: Result<Vec<VolumeSurvey>, Failure>,
    ) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        let State::Surveying { theirs, question, was_primary: was, .. } = &mut replica.state else {
            return;
        };
        if *question != asked {
            return;
        }
        match answer {
            Ok(surveys) => {
                *was = was_primary;
                *theirs = Some(surveys);
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }

    /// Both inventories are there: what is common, and is there a way forward?
    fn compare(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(replica) = self.replicas.get(&peer) else {
            return;
        };
        let (State::Surveying { theirs: Some(theirs), was_primary, .. }, Some(ours)) =
            (&replica.state, &self.local.inventories)
        else {
            return;
        };
        if *was_primary {
            return self.ask_to_step_back(ctx, peer, &theirs.clone());
        }
        let (mut bases, mut partials) = (Vec::new(), Vec::new());
        for (volume, inventory) in self.record.volumes.iter().zip(ours) {
            let Some(survey) = theirs.iter().find(|s| s.volume == volume.id) else {
                let text = format!("{} said nothing of {}", ctx.peer_name(peer), volume.dataset);
                let failure = Failure::new(Remedy::Retry, FailureCode::Other, text);
                return self.round_failed(ctx, peer, failure);
            };
            match plan::common_base(inventory, survey.inventory.as_ref()) {
                Ok(base) => {
                    bases.push(base);
                    partials.push(survey.inventory.as_ref().and_then(|i| i.partial.clone()));
                }
                Err(conflict) => {
                    let text = format!(
                        "{} cannot be replicated to {}: {conflict}; {}",
                        volume.dataset,
                        ctx.peer_name(peer),
                        self.resolve_words(ctx, peer)
                    );
                    let failure = Failure::new(Remedy::Operator, FailureCode::Modified, text);
                    return self.round_failed(ctx, peer, failure);
                }
            }
        }
        // What it was at before our start is ours, or held for it; nothing that comes later.
        let prefix = self.prefix();
        if let Some(replica) = self.replicas.get_mut(&peer) {
            replica.candidates.get_or_insert_with(|| {
                ours.iter().flat_map(|i| plan::may_be_bases(i, &prefix)).collect()
            });
            replica.heard(bases);
            replica.partials = partials;
            replica.state = State::Idle;
            self.upkeep.tidy_due = true;
        }
    }

    // ---- what is due --------------------------------------------------------------------------

    pub(crate) fn advance_replication(&mut self, ctx: &mut Ctx) {
        if !self.record.role.is_primary() {
            return;
        }
        let peers: Vec<_> = self.replicas.keys().copied().collect();
        for peer in peers {
            self.advance_replica(ctx, peer);
        }
        let calm = ctx.now.mono_ms < self.replicates_from();
        if self.may_replicate() && !self.stopping_for_cutover() && !calm {
            if self.must_look_again() && ctx.now.mono_ms >= self.snapshotting.retry_at {
                self.look(ctx);
            }
            self.advance_snapshots(ctx);
        }
    }

    /// A standby waits for the next round, and nobody knows any more what is here.
    fn must_look_again(&self) -> bool {
        self.local.inventories.is_none()
            && self.local.looking.is_none()
            && self.replicas.values().any(Replica::is_idle)
    }

    /// Both sides look at each volume, and this one makes each reachable.
    fn protect_limit_ms(&self) -> u64 {
        PROTECT_LIMIT_MS + self.more_for_volumes_ms()
    }

    fn advance_replica(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        self.answer_protection(ctx, peer);
        let protect_limit = self.protect_limit_ms();
        let now = ctx.now.mono_ms;
        let calm = now < self.replicates_from();
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        if replica.protect_request.is_some() && now >= replica.protect_since + protect_limit {
            let text = format!("{} did not answer", ctx.peer_name(peer));
            let failure = Failure::refused(FailureCode::TimedOut, text);
            return self.refuse_protection(ctx, peer, failure);
        }
        match &mut replica.state {
            State::Introducing { ask_at } if now >= *ask_at => self.introduce(ctx, peer),
            State::SteppingBack { ask_at, question, bases } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let body = Body::StepBack { question: *question, bases: bases.clone() };
                self.say(ctx, peer, body);
            }
            State::Surveying { ask_at, question, theirs, .. } if !calm => {
                let question = *question;
                let ask = theirs.is_none() && now >= *ask_at;
                let compare = theirs.is_some() && self.local.inventories.is_some();
                if ask {
                    *ask_at = now + RESEND_MS;
                    self.say(ctx, peer, Body::Survey { question });
                }
                if self.local.inventories.is_none() {
                    self.look(ctx);
                }
                if compare {
                    self.compare(ctx, peer);
                }
            }
            State::Round(round) => {
                if let Some(by) = round.step.word_by {
                    if now >= by {
                        let silent = || {
                            let text = format!("{} did not say how it went", ctx.peer_name(peer));
                            Failure::new(Remedy::Retry, FailureCode::TimedOut, text)
                        };
                        let failure = round.step.local_failure.take().unwrap_or_else(silent);
                        self.round_failed(ctx, peer, failure);
                    }
                } else if !round.step.accepted && now >= round.step.ask_at {
                    self.offer(ctx, peer);
                }
            }
            State::Waiting { until } if now >= *until => {
                replica.state = State::Introducing { ask_at: now };
                self.advance_replica(ctx, peer);
            }
            _ => {}
        }
    }

    fn advance_snapshots(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let Some(due) = self.next_due() else {
            return;
        };
        if now < due {
            return;
        }
        match self.newest() {
            Some(newest) if !self.cutover_converging() && !self.nothing_of_ours() => {
                let since = newest.iter().map(|s| s.name.clone()).collect();
                let op = ctx.run(self.id(), Op::Changed, Action::Changed { since });
                self.snapshotting.running = Some(Running { op, since: ctx.now });
            }
            _ => self.take_snapshot(ctx, ctx.now),
        }
    }

    /// When the next look for changes is due; `None`: there is nobody who would get them.
    fn next_due(&self) -> Option<u64> {
        if self.snapshotting.running.is_some() || self.local.inventories.is_none() {
            return None;
        }
        let idle = self.replicas.values().filter(|r| r.is_idle());
        let due = idle.map(|r| {
            if self.cutover_converging() && self.cutover_target() == Some(r.peer) {
                r.last_begun
            } else {
                r.due_at(self.record.policy)
            }
        });
        Some(due.min()?.max(self.snapshotting.retry_at))
    }

    pub(crate) fn replication_timeout(&self, _ctx: &Ctx) -> Option<u64> {
        if !self.record.role.is_primary() {
            return None;
        }
        let from = self.replicates_from();
        let states = self.replicas.values().flat_map(|r| {
            let protect = r.protect_request.map(|_| r.protect_since + self.protect_limit_ms());
            let state = match &r.state {
                State::Introducing { .. } if self.looks_for_introduction(r) => None,
                State::Introducing { ask_at } if self.tells_snapshots(r) => {
                    let look_at = self.snapshotting.retry_at;
                    let known = self.local.inventories.is_some();
                    Some(if known { *ask_at } else { look_at.max(*ask_at) })
                }
                State::Introducing { ask_at } => Some(*ask_at),
                State::Surveying { ask_at, theirs: None, .. } => Some((*ask_at).max(from)),
                // Both are known, or nobody looks: it only waits for its time.
                State::Surveying { .. } if self.local.looking.is_none() => Some(from),
                State::SteppingBack { ask_at, .. } => Some(*ask_at),
                State::Round(round) => match round.step.word_by {
                    Some(by) => Some(by),
                    None => (!round.step.accepted).then_some(round.step.ask_at),
                },
                State::Waiting { until } => Some(*until),
                State::Offline | State::Idle | State::Surveying { .. } => None,
            };
            [protect, state]
        });
        let snapshots = (self.may_replicate() && !self.stopping_for_cutover())
            .then(|| match self.must_look_again() {
                true => Some(self.snapshotting.retry_at),
                false => self.next_due(),
            })
            .flatten()
            .map(|at| at.max(from));
        states.flatten().chain(snapshots).min()
    }

    /// Bytes and rounds for `status`.
    pub(crate) fn backlog(&self, replica: &Replica) -> u64 {
        let (Some(ours), Some(bases)) = (&self.local.inventories, &replica.bases) else {
            return 0;
        };
        let count = |inventory: &Inventory, base: &Option<Guid>| {
            let at = base.and_then(|g| inventory.snapshots.iter().position(|s| s.guid == g));
            (inventory.snapshots.len() - at.map_or(0, |i| i + 1)) as u64
        };
        ours.iter().zip(bases).map(|(i, b)| count(i, b)).max().unwrap_or(0)
    }
}
