//! A standby's side: what it lets in, what it promises, and how it settles.
//!
//! Postconditions. A receive that ends well: the snapshot is there as the store reports it, and the
//! primary is told its guid. One that fails: the replica is at its last good snapshot. `Ready` is
//! durable before it is said; so are `Taken` and `Refused`; neither is ever changed.

use std::collections::BTreeMap;

use flocker_store::{DatasetKind, DatasetName, Guid, ReceiveSpec, Snapshot};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, OpId, TransferId, VolumeId};
use crate::io::{Action, Effect, Outcome};
use crate::limits::ROOM_CHECK_BYTES;
use crate::message::{ActivationTimes, Body, StepOffer, VolumeIntro, VolumeSurvey};
use crate::node::PlantedBug;
use crate::record::{Answer, Grant, Policy, Role, TAKEN_KEPT, WorkloadKind};
use crate::unit::{Op, Unit};

/// What a standby knows beyond its record; lost at a restart, and asked for again.
#[derive(Debug, Default)]
pub(crate) struct StandbyView {
    receiving: Option<Receiving>,
    /// Wall clock of the primary at the latest moment at which this replica equalled it.
    pub(crate) equal_wall_ms: Option<i64>,
    /// The newest snapshot of a volume is fuzzy: not a moment that ever was.
    fuzzy: BTreeMap<VolumeId, bool>,
    surveying: BTreeMap<Fingerprint, OpId>,
    preparing: Option<Preparing>,
    /// This unit came here by this attempt, from this node, which wants to know when it runs.
    pub(crate) announce: Option<(AttemptId, Fingerprint)>,
    /// It runs, and this is how long that took.
    pub(crate) announced: Option<(AttemptId, ActivationTimes)>,
}

#[derive(Debug)]
struct Receiving {
    peer: Fingerprint,
    offer: StepOffer,
    /// Looking whether there is room; afterwards `None`.
    checking: Option<OpId>,
}

#[derive(Debug)]
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

    pub(crate) fn source_changed(&mut self) {
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
    volumes: usize,
    leaf: &str,
) -> Result<DatasetName, Failure> {
    let named = grant.receive.child(unit);
    let named = if volumes > 1 { named.and_then(|n| n.child(leaf)) } else { named };
    // Our snapshots' names have up to 40 bytes.
    let room = named.and_then(|n| n.snapshot(&"x".repeat(40)).map(|s| s.dataset().clone()));
    room.map_err(|e| Failure::refused(FailureCode::BadRequest, e.to_string()))
}

impl Unit {
    /// The primary this unit follows, if that is `peer`.
    fn follows(&self, peer: Fingerprint) -> bool {
        match &self.record.role {
            Role::Following { source } | Role::Ready { source, .. } => *source == peer,
            Role::Serving | Role::Leaving { .. } | Role::HandedOver { .. } => false,
        }
    }

    fn not_following(&self, ctx: &Ctx, peer: Fingerprint) -> Failure {
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
        policy: Policy,
    ) {
        let answer = if self.follows(peer) {
            check_intro(ctx, peer, self.record.own, volumes)
        } else {
            Err(self.not_following(ctx, peer))
        };
        if answer.is_ok() && (self.record.policy != policy || self.record.name != name) {
            // The name stays: it is this node's. The promise is the primary's.
            self.record.policy = policy;
            self.persist(ctx);
        }
        self.say(ctx, peer, Body::IntroReply(answer));
    }

    // ---- surveys ------------------------------------------------------------------------------

    pub(crate) fn on_survey(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if !self.follows(peer) {
            let failure = self.not_following(ctx, peer);
            return self.say(ctx, peer, Body::SurveyReply(Err(failure)));
        }
        // A receive in flight would change what is found; its sender is not there any more.
        self.cancel_receiving(ctx);
        let action = Action::Inspect { datasets: self.datasets() };
        let op = ctx.run(self.id(), Op::Survey { peer }, action);
        self.standby.surveying.insert(peer, op);
    }

    pub(crate) fn survey_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        peer: Fingerprint,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.standby.surveying.get(&peer) != Some(&op) {
            return;
        }
        self.standby.surveying.remove(&peer);
        if self.standby.is_busy() {
            // Still ending; the primary asks again.
            return;
        }
        let answer = match outcome {
            Ok(Outcome::Inspected(found)) => {
                self.local.exists = found.iter().map(|f| f.info.is_some()).collect();
                self.local.inventories = Some(found.iter().map(|f| f.inventory.clone()).collect());
                let surveys = self.record.volumes.iter().zip(found).map(|(v, f)| VolumeSurvey {
                    volume: v.id,
                    inventory: f.info.is_some().then_some(f.inventory),
                });
                self.upkeep.tidy_due = true;
                Ok(surveys.collect())
            }
            Ok(_) => unreachable!("asked for an inspection"),
            Err(failure) => Err(failure),
        };
        self.say(ctx, peer, Body::SurveyReply(answer));
    }

    // ---- steps --------------------------------------------------------------------------------

    pub(crate) fn on_offer(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: StepOffer) {
        let transfer = offer.transfer;
        match self.judge_offer(ctx, peer, &offer) {
            Judgement::Wait => {}
            Judgement::Repeat => {
                self.say(ctx, peer, Body::OfferReply { transfer, answer: Ok(()) });
            }
            Judgement::Have => {
                self.standby.equal_wall_ms = Some(offer.taken_wall_ms);
                self.say(ctx, peer, Body::StepReply { transfer, outcome: Ok(offer.to) });
            }
            Judgement::Refuse(failure) => {
                self.say(ctx, peer, Body::OfferReply { transfer, answer: Err(failure) });
            }
            Judgement::Take => self.take_offer(ctx, peer, offer),
        }
    }

    fn judge_offer(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: &StepOffer) -> Judgement {
        if !self.follows(peer) {
            return Judgement::Refuse(self.not_following(ctx, peer));
        }
        if let Some(receiving) = &self.standby.receiving {
            if receiving.offer.transfer == offer.transfer {
                let waiting = receiving.checking.is_some();
                return if waiting { Judgement::Wait } else { Judgement::Repeat };
            }
            self.cancel_receiving(ctx);
            let text = format!("{}: an earlier receive is still ending", self.record.name);
            return Judgement::Refuse(Failure::new(Remedy::Retry, FailureCode::Busy, text));
        }
        let Some(at) = self.record.volumes.iter().position(|v| v.id == offer.volume) else {
            let text = format!("{} has no volume {}", self.record.name, offer.volume);
            return Judgement::Refuse(Failure::refused(FailureCode::NotFound, text));
        };
        if let Err(failure) = self.check_granted(ctx, peer, at) {
            return Judgement::Refuse(failure);
        }
        let stale =
            |text: &str| Judgement::Refuse(Failure::new(Remedy::Replan, FailureCode::NoBase, text));
        let Some(inventory) = self.local.inventories.as_ref().and_then(|i| i.get(at)) else {
            return stale("the standby has to be asked first what it holds");
        };
        let newest = inventory.latest().map(|s| s.guid);
        if newest == Some(offer.to) {
            return Judgement::Have;
        }
        let exists = self.local.exists.get(at).copied().unwrap_or(false);
        if newest != offer.from || (offer.from.is_none() && exists) {
            return stale("the base of this step is not the standby's newest snapshot");
        }
        Judgement::Take
    }

    /// What a grant says now counts, not what it said when protection began.
    fn check_granted(&self, ctx: &Ctx, peer: Fingerprint, at: usize) -> Result<(), Failure> {
        if self.record.own {
            return Ok(());
        }
        let dataset = &self.record.volumes[at].dataset;
        let granted = grant_of(ctx, peer).is_some_and(|g| dataset.is_within(&g.receive));
        if granted {
            return Ok(());
        }
        let text = format!(
            "{} lies outside what {} may receive into on this node",
            dataset,
            ctx.peer_name(peer)
        );
        Err(Failure::new(Remedy::Operator, FailureCode::NotGranted, text))
    }

    fn take_offer(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: StepOffer) {
        if let Role::Ready { source, .. } = self.record.role {
            // A primary that sends steps again has given its attempt up. This makes it certain.
            self.tombstone_if_ready();
            self.set_role(ctx, Role::Following { source });
        }
        let grant = grant_of(ctx, peer).filter(|_| !self.record.own);
        let large = offer.estimate_bytes.is_some_and(|b| b > ROOM_CHECK_BYTES);
        match grant {
            Some(grant) if grant.quota_bytes.is_some() || large => {
                let op = ctx.run(self.id(), Op::Room, Action::Room { root: grant.receive });
                self.standby.receiving = Some(Receiving { peer, offer, checking: Some(op) });
            }
            _ => {
                self.standby.receiving = Some(Receiving { peer, offer, checking: None });
                self.start_receive(ctx, None);
            }
        }
    }

    pub(crate) fn room_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some(receiving) = &mut self.standby.receiving else {
            return;
        };
        if receiving.checking != Some(op) {
            return;
        }
        receiving.checking = None;
        let (peer, offer) = (receiving.peer, receiving.offer.clone());
        let limit = match outcome {
            Ok(Outcome::Room { used_bytes, available_bytes }) => {
                room_left(ctx, peer, &offer, used_bytes, available_bytes)
            }
            Ok(_) => unreachable!("asked for room"),
            Err(failure) => Err(failure),
        };
        match limit {
            Ok(limit_bytes) => self.start_receive(ctx, limit_bytes),
            Err(failure) => {
                self.standby.receiving = None;
                let body = Body::OfferReply { transfer: offer.transfer, answer: Err(failure) };
                self.say(ctx, peer, body);
            }
        }
    }

    fn start_receive(&mut self, ctx: &mut Ctx, limit_bytes: Option<u64>) {
        let Some(Receiving { peer, offer, .. }) = &self.standby.receiving else {
            return;
        };
        let (peer, transfer) = (*peer, offer.transfer);
        let volume = self.record.volumes.iter().find(|v| v.id == offer.volume);
        let name = volume.and_then(|v| Some((v, v.dataset.snapshot(&offer.to_short).ok()?)));
        let Some((volume, snapshot)) = name else {
            let text = format!("`{}` is not the name of a snapshot here", offer.to_short);
            let answer = Err(Failure::refused(FailureCode::BadRequest, text));
            self.standby.receiving = None;
            return self.say(ctx, peer, Body::OfferReply { transfer, answer });
        };
        let spec = ReceiveSpec {
            dataset: volume.dataset.clone(),
            snapshot,
            to_guid: offer.to,
            from_guid: offer.from,
            resumable: false,
        };
        let unit = self.record.id;
        ctx.out.transfers.insert(transfer, unit);
        ctx.push(Effect::StartReceive { transfer, peer, unit, spec, limit_bytes });
        self.say(ctx, peer, Body::OfferReply { transfer, answer: Ok(()) });
    }

    /// Ends a receive; its end is heard of later.
    fn cancel_receiving(&mut self, ctx: &mut Ctx) {
        match &self.standby.receiving {
            Some(Receiving { checking: Some(_), .. }) => self.standby.receiving = None,
            Some(Receiving { checking: None, offer, .. }) => {
                ctx.push(Effect::CancelTransfer { transfer: offer.transfer });
            }
            None => {}
        }
    }

    pub(crate) fn receive_ended(
        &mut self,
        ctx: &mut Ctx,
        transfer: TransferId,
        outcome: Result<Option<Snapshot>, Failure>,
    ) {
        let Some(Receiving { peer, offer, .. }) = self.standby.receiving.take() else {
            return;
        };
        let outcome = match outcome {
            Ok(Some(snapshot)) => {
                let guid = snapshot.guid;
                self.standby.fuzzy.insert(offer.volume, snapshot.fuzzy || offer.fuzzy);
                self.standby.equal_wall_ms = Some(offer.taken_wall_ms);
                self.received(&offer, snapshot);
                Ok(guid)
            }
            Ok(None) => {
                self.local.inventories = None;
                let text = "the stream ended without a snapshot";
                Err(Failure::new(Remedy::Replan, FailureCode::BadStream, text))
            }
            Err(failure) => {
                // What is there now has to be looked at before the next step.
                self.local.inventories = None;
                Err(failure)
            }
        };
        self.say(ctx, peer, Body::StepReply { transfer, outcome });
    }

    fn received(&mut self, offer: &StepOffer, snapshot: Snapshot) {
        let Some(at) = self.record.volumes.iter().position(|v| v.id == offer.volume) else {
            return;
        };
        let first = !self.local.exists.get(at).copied().unwrap_or(false);
        if let Some(exists) = self.local.exists.get_mut(at) {
            *exists = true;
        }
        if let Some(inventory) = self.local.inventories.as_mut().and_then(|i| i.get_mut(at)) {
            inventory.snapshots.push(snapshot);
        }
        self.upkeep.tidy_due = true;
        self.upkeep.mirror_due |= first;
    }

    pub(crate) fn on_equal(&mut self, peer: Fingerprint, wall_ms: i64) {
        if self.follows(peer) {
            self.standby.equal_wall_ms = Some(wall_ms);
        }
    }

    // ---- the cutover, as its target -----------------------------------------------------------

    pub(crate) fn on_preflight(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        workload: Option<WorkloadKind>,
    ) {
        let answer = self.preflight(ctx, peer, attempt, workload);
        self.say(ctx, peer, Body::PreflightReply { attempt, answer });
    }

    fn preflight(
        &self,
        ctx: &Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        workload: Option<WorkloadKind>,
    ) -> Result<(), Failure> {
        if !self.follows(peer) {
            return Err(self.not_following(ctx, peer));
        }
        if attempt.issuer != peer || self.is_refused(attempt) {
            let text = format!("{}: attempt {attempt} is over", self.record.name);
            return Err(Failure::refused(FailureCode::Cancelled, text));
        }
        for at in 0..self.record.volumes.len() {
            self.check_granted(ctx, peer, at)?;
        }
        let Some(kind) = workload else {
            return Ok(());
        };
        let granted = grant_of(ctx, peer).is_some_and(|g| g.workloads.contains(&kind));
        if !granted && !self.record.own {
            let text = format!(
                "{0} may not start a {kind} on this node: run `flocker-repl grant {0} … --workload {kind}` here",
                ctx.peer_name(peer)
            );
            return Err(Failure::refused(FailureCode::NotGranted, text));
        }
        if let Some(volume) =
            self.record.volumes.iter().find(|v| !ctx.config.store.live_kinds.contains(&v.kind))
        {
            let text = format!(
                "{} cannot make a {} usable for a workload ({}); it can only keep it",
                ctx.config.store.describe, volume.kind, volume.dataset
            );
            return Err(Failure::refused(FailureCode::Unsupported, text));
        }
        if self.record.workload.as_ref().is_none_or(|w| w.kind != kind) {
            let text = format!(
                "this node does not know what to start for {0}: run `flocker-repl run {0} -- COMMAND…` \
                 here first (commands are never taken from a peer)",
                self.record.name
            );
            return Err(Failure::refused(FailureCode::NotGranted, text));
        }
        Ok(())
    }

    pub(crate) fn on_prepare(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        next: Epoch,
        finals: Vec<(VolumeId, Guid)>,
        workload_wanted: bool,
    ) {
        if let Role::Ready { source, attempt: ready, .. } = &self.record.role
            && *source == peer
            && *ready == attempt
        {
            let answer = Ok(ctx.config.incarnation);
            return self.say(ctx, peer, Body::PrepareReply { attempt, answer });
        }
        let refuse = |text: String| Err(Failure::refused(FailureCode::Conflict, text));
        let answer = if !self.follows(peer) {
            Err(self.not_following(ctx, peer))
        } else if attempt.issuer != peer || self.is_refused(attempt) {
            refuse(format!("{}: attempt {attempt} is over", self.record.name))
        } else if self.record.epoch.number.checked_add(1) != Some(next.number)
            || next.owner != ctx.config.fingerprint
            || next.attempt != attempt
        {
            refuse(format!("{}: epoch {next} does not follow", self.record.name))
        } else if self.standby.is_busy() {
            refuse(format!("{}: a receive is under way", self.record.name))
        } else {
            Ok(())
        };
        if let Err(failure) = answer {
            return self.say(ctx, peer, Body::PrepareReply { attempt, answer: Err(failure) });
        }
        let op = ctx.run(self.id(), Op::Prepare, Action::Inspect { datasets: self.datasets() });
        self.standby.preparing =
            Some(Preparing { op, peer, attempt, next, finals, workload_wanted });
    }

    pub(crate) fn prepare_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(preparing) = self.standby.preparing.take_if(|p| p.op == op) else {
            return;
        };
        let Preparing { peer, attempt, next, finals, workload_wanted, .. } = preparing;
        // Anything may have come between the question and this look.
        let still = self.follows(peer)
            && !self.is_refused(attempt)
            && !self.standby.is_busy()
            && next.number == self.record.epoch.number + 1;
        let checked = match outcome {
            Ok(Outcome::Inspected(found)) => {
                let newest: Vec<_> = found.iter().map(|f| f.inventory.latest().cloned()).collect();
                self.check_finals(&finals, &newest)
            }
            Ok(_) => unreachable!("asked for an inspection"),
            Err(failure) => Err(failure),
        };
        if !still {
            return;
        }
        if let Err(failure) = checked {
            return self.say(ctx, peer, Body::PrepareReply { attempt, answer: Err(failure) });
        }
        let answer = Ok(ctx.config.incarnation);
        if ctx.config.planted(PlantedBug::PersistAfterSend) {
            self.say(ctx, peer, Body::PrepareReply { attempt, answer: answer.clone() });
        }
        self.tombstone_if_ready();
        let role = Role::Ready { source: peer, attempt, next, finals, workload_wanted };
        self.set_role(ctx, role);
        self.say(ctx, peer, Body::PrepareReply { attempt, answer });
    }

    /// Each volume's newest snapshot is the final one, and is a moment that was.
    fn check_finals(
        &self,
        finals: &[(VolumeId, Guid)],
        newest: &[Option<Snapshot>],
    ) -> Result<(), Failure> {
        for (volume, newest) in self.record.volumes.iter().zip(newest) {
            let wanted = finals.iter().find(|(id, _)| *id == volume.id).map(|(_, guid)| *guid);
            let found = newest.as_ref().map(|s| s.guid);
            if wanted.is_none() || wanted != found {
                let text = format!("{} is not at the final snapshot", volume.dataset);
                return Err(Failure::new(Remedy::Replan, FailureCode::NoBase, text));
            }
            if newest.as_ref().is_some_and(|s| s.fuzzy) {
                let text = format!("the final snapshot of {} is fuzzy", volume.dataset);
                return Err(Failure::refused(FailureCode::Modified, text));
            }
        }
        Ok(())
    }

    pub(crate) fn on_settle(&mut self, ctx: &mut Ctx, peer: Fingerprint, attempt: AttemptId) {
        let incarnation = ctx.config.incarnation;
        if self.record.taken.contains(&attempt) {
            let body = Body::SettleReply { attempt, answer: Answer::Taken, incarnation };
            self.say(ctx, peer, body);
            if self.standby.announced.is_none() && self.record.role == Role::Serving {
                // Asked after a restart of ours: to be told once it runs.
                self.standby.announce = Some((attempt, peer));
            }
            return self.say_activated(ctx, peer, attempt);
        }
        match self.record.role.clone() {
            Role::Ready { source, attempt: ready, next, workload_wanted, .. }
                if ready == attempt && source == peer =>
            {
                self.take(ctx, source, attempt, next, workload_wanted);
            }
            Role::Following { source }
                if ctx.config.planted(PlantedBug::ForgetTombstone) && source == peer =>
            {
                let number = self.record.epoch.number + 1;
                let next = Epoch { number, owner: ctx.config.fingerprint, attempt };
                self.take(ctx, source, attempt, next, true);
            }
            _ => {
                if attempt.issuer != peer {
                    return;
                }
                if !self.is_refused(attempt) {
                    self.refuse(attempt);
                    self.persist(ctx);
                }
                let body = Body::SettleReply { attempt, answer: Answer::Refused, incarnation };
                self.say(ctx, peer, body);
            }
        }
    }

    /// The commit, on this side: from here on this node owns the unit.
    fn take(
        &mut self,
        ctx: &mut Ctx,
        source: Fingerprint,
        attempt: AttemptId,
        next: Epoch,
        workload_wanted: bool,
    ) {
        let answer = Body::SettleReply {
            attempt,
            answer: Answer::Taken,
            incarnation: ctx.config.incarnation,
        };
        self.record.epoch = next;
        self.record.taken.push(attempt);
        let excess = self.record.taken.len().saturating_sub(TAKEN_KEPT);
        self.record.taken.drain(..excess);
        self.record.standbys = vec![source];
        if let Some(workload) = &mut self.record.workload {
            workload.wanted = workload_wanted;
        }
        self.standby.announce = Some((attempt, source));
        self.standby.announced = None;
        self.standby.preparing = None;
        self.set_role(ctx, Role::Serving);
        self.say(ctx, source, answer);
        self.work = crate::service::Work::Stopped;
        self.activate(ctx);
    }

    pub(crate) fn on_abandon(&mut self, ctx: &mut Ctx, peer: Fingerprint, attempt: AttemptId) {
        if !self.follows(peer) || attempt.issuer != peer || self.is_refused(attempt) {
            return;
        }
        self.standby.preparing = None;
        match self.record.role {
            Role::Ready { source, attempt: ready, .. } if ready == attempt => {
                self.tombstone_if_ready();
                self.set_role(ctx, Role::Following { source });
            }
            // One that was never ready cannot be taken without being prepared anew; refuse that too.
            _ => {
                self.refuse(attempt);
                self.persist(ctx);
            }
        }
    }

    pub(crate) fn on_drop(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if self.follows(peer) {
            self.cancel_receiving(ctx);
            self.end(ctx, None, None, true);
        }
    }

    // ---- tombstones ---------------------------------------------------------------------------

    /// Attempts grow at their issuer and are begun one after the other, so one number says it all.
    pub(crate) fn is_refused(&self, attempt: AttemptId) -> bool {
        let upto = self.record.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
        attempt.number <= upto && !self.record.taken.contains(&attempt)
    }

    /// Not durable before the record is persisted, which every caller does next.
    fn refuse(&mut self, attempt: AttemptId) {
        let upto = self.record.refused_up_to.entry(attempt.issuer).or_insert(0);
        *upto = (*upto).max(attempt.number);
    }

    /// Leaves `Ready` for good. The caller sets and persists the new role.
    pub(crate) fn tombstone_if_ready(&mut self) {
        if let Role::Ready { source, attempt, .. } = self.record.role {
            self.refuse(attempt);
            self.record.role = Role::Following { source };
        }
    }
}

enum Judgement {
    /// It is the one being received already.
    Repeat,
    /// Its acceptance is being worked on.
    Wait,
    /// Its snapshot is there.
    Have,
    Refuse(Failure),
    Take,
}

/// How many bytes a step may bring.
fn room_left(
    ctx: &Ctx,
    peer: Fingerprint,
    offer: &StepOffer,
    used_bytes: u64,
    available_bytes: u64,
) -> Result<Option<u64>, Failure> {
    let grant = grant_of(ctx, peer);
    let estimate = offer.estimate_bytes.unwrap_or(0);
    let quota = grant.as_ref().and_then(|g| g.quota_bytes);
    let left = quota.map(|q| q.saturating_sub(used_bytes));
    if let (Some(quota), Some(left)) = (quota, left)
        && (left == 0 || estimate > left)
    {
        let text = format!(
            "the quota of {} ({quota} bytes below {}) leaves {left} bytes; raise it with \
                 `flocker-repl grant … --quota`",
            ctx.peer_name(peer),
            grant.map(|g| g.receive.to_string()).unwrap_or_default()
        );
        return Err(Failure::new(Remedy::Operator, FailureCode::NoSpace, text));
    }
    if estimate > available_bytes {
        let text = format!(
            "the step needs about {estimate} bytes, {} has {available_bytes}",
            ctx.config.store.describe
        );
        return Err(Failure::new(Remedy::Retry, FailureCode::NoSpace, text));
    }
    Ok(left)
}
