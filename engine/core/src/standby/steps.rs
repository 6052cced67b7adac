//! Steps: whether an offer is taken, the room it may use, and its end.

use super::{Ended, Receiving, grant_of};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId, TransferId};
use crate::io::{Action, Effect, Outcome};
use crate::limits::{BOOTS_KEPT, ROOM_CHECK_BYTES};
use crate::message::{Body, Carried, StepOffer};
use crate::node::PlantedBug;
use crate::record::Role;
use crate::unit::{Op, Unit};
use flocker_store::{Guid, Inventory, ReceiveSpec, Snapshot, SnapshotName};

impl Unit {
    pub(crate) fn on_offer(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: StepOffer) {
        let transfer = offer.transfer;
        match self.judge_offer(ctx, peer, &offer) {
            Judgement::Wait => {}
            Judgement::Repeat => {
                self.say(ctx, peer, Body::OfferReply { transfer, answer: Ok(()) });
            }
            Judgement::Ended(outcome, carried) => {
                self.say(ctx, peer, Body::StepReply { transfer, outcome, carried });
            }
            Judgement::Have => {
                self.is_at(ctx, &offer);
                let (outcome, carried) = (Ok(offer.to), Carried::default());
                self.say(ctx, peer, Body::StepReply { transfer, outcome, carried });
            }
            Judgement::Refuse(failure) => {
                self.say(ctx, peer, Body::OfferReply { transfer, answer: Err(failure) });
            }
            Judgement::Take => self.take_offer(ctx, peer, offer),
        }
    }

    pub(super) fn judge_offer(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        offer: &StepOffer,
    ) -> Judgement {
        if !self.follows(peer) {
            return Judgement::Refuse(self.not_following(ctx, peer));
        }
        let busy =
            |text: String| Judgement::Refuse(Failure::new(Remedy::Retry, FailureCode::Busy, text));
        if self.failing_over() {
            return busy(format!("{}: this node is failing over", self.record.name));
        }
        if self.standby.is_resolving() {
            return busy(format!("{}: it is being resolved", self.record.name));
        }
        if self.record.step_back.is_some() || self.record.was_primary {
            return busy(format!("{}: it is still to be set back", self.record.name));
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
        // A sender's transfers grow within its boot: an older one is a message that came late.
        if let Some(Ended { transfer, outcome, carried }) = &self.standby.ended
            && transfer.boot == offer.transfer.boot
            && transfer.number >= offer.transfer.number
        {
            let same = *transfer == offer.transfer;
            return if same {
                Judgement::Ended(outcome.clone(), *carried)
            } else {
                Judgement::Wait
            };
        }
        let over =
            |t: &TransferId| t.boot == offer.transfer.boot && t.number >= offer.transfer.number;
        if self.standby.ended_before.iter().any(over) {
            return Judgement::Wait;
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
        // What an interrupted full receive left is no dataset of anybody's yet.
        let exists = exists && !(newest.is_none() && inventory.partial.is_some());
        let left = inventory.partial.as_ref().and_then(|p| p.to);
        if offer.resumes && left != Some(offer.to) {
            return stale("nothing is left here of a receive that this step could go on with");
        }
        let base = offer.from.filter(|_| !offer.clone);
        if newest != base || (base.is_none() && exists) {
            return stale("the base of this step is not the standby's newest snapshot");
        }
        Judgement::Take
    }

    /// What a grant says now counts, not what it said when protection began.
    pub(crate) fn check_granted(
        &self,
        ctx: &Ctx,
        peer: Fingerprint,
        at: usize,
    ) -> Result<(), Failure> {
        if self.record.own {
            return Ok(());
        }
        let dataset = &self.record.volumes[at].dataset;
        let granted = grant_of(ctx, peer).is_some_and(|g| dataset.is_within(&g.receive));
        if granted {
            return Ok(());
        }
        let text = format!(
            "{dataset} lies outside what {0} may receive into on this node: run `flocker-repl grant {0} \
             --receive …` here",
            ctx.peer_name(peer)
        );
        Err(Failure::new(Remedy::Operator, FailureCode::NotGranted, text))
    }

    pub(super) fn take_offer(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: StepOffer) {
        self.standby.surveying.clear();
        if let Role::Ready { source, .. } = self.record.role {
            // A primary that sends steps again has given its attempt up. This makes it certain.
            self.tombstone_if_ready();
            self.set_role(ctx, Role::Following { source });
        }
        if offer.clone {
            return self.look_for_origin(ctx, peer, offer);
        }
        self.look_for_room(ctx, peer, offer, None);
    }

    /// A clone is received as one where its origin is in a replica of the same peer: what lies elsewhere is
    /// nothing that it may build on.
    fn look_for_origin(&mut self, ctx: &mut Ctx, peer: Fingerprint, offer: StepOffer) {
        let (Some(guid), true) = (offer.from, ctx.config.store.clones) else {
            return self.refuse_origin(ctx, peer, &offer);
        };
        let mut within = ctx.out.followed.clone();
        within.extend(grant_of(ctx, peer).map(|g| g.receive));
        let op = ctx.run(self.id(), Op::Origin, Action::Find { guid, within });
        self.standby.receiving = Some(Receiving { peer, offer, origin: None, checking: Some(op) });
    }

    pub(crate) fn origin_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(receiving) = self.standby.receiving.take_if(|r| r.checking == Some(op)) else {
            return;
        };
        let (peer, offer) = (receiving.peer, receiving.offer);
        match outcome {
            Ok(Outcome::Found(Some(name))) => self.look_for_room(ctx, peer, offer, Some(name)),
            Ok(Outcome::Found(None)) => self.refuse_origin(ctx, peer, &offer),
            Ok(_) => unreachable!("asked where a snapshot is"),
            Err(failure) => {
                let body = Body::OfferReply { transfer: offer.transfer, answer: Err(failure) };
                self.say(ctx, peer, body);
            }
        }
    }

    fn refuse_origin(&self, ctx: &mut Ctx, peer: Fingerprint, offer: &StepOffer) {
        let text = "the snapshot that it is a clone of is in no replica of that peer here";
        let answer = Err(Failure::new(Remedy::Replan, FailureCode::NoOrigin, text));
        self.say(ctx, peer, Body::OfferReply { transfer: offer.transfer, answer });
    }

    fn look_for_room(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        offer: StepOffer,
        origin: Option<SnapshotName>,
    ) {
        let grant = grant_of(ctx, peer).filter(|_| !self.record.own);
        let large = offer.estimate_bytes.is_some_and(|b| b > ROOM_CHECK_BYTES);
        match grant {
            Some(grant) if grant.quota_bytes.is_some() || large => {
                let op = ctx.run(self.id(), Op::Room, Action::Room { root: grant.receive });
                self.standby.receiving =
                    Some(Receiving { peer, offer, origin, checking: Some(op) });
            }
            _ => {
                self.standby.receiving = Some(Receiving { peer, offer, origin, checking: None });
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

    pub(super) fn start_receive(&mut self, ctx: &mut Ctx, limit_bytes: Option<u64>) {
        let Some(Receiving { peer, offer, origin, .. }) = &self.standby.receiving else {
            return;
        };
        let (peer, transfer, last) = (*peer, offer.transfer, offer.last);
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
            resumable: offer.resumable && ctx.config.store.resumable,
            origin: origin.clone(),
        };
        let (unit, spec_guid) = (self.record.id, spec.to_guid);
        ctx.out.transfers.insert(transfer, unit);
        ctx.push(Effect::StartReceive { transfer, peer, unit, spec, limit_bytes });
        self.say(ctx, peer, Body::OfferReply { transfer, answer: Ok(()) });
        if ctx.config.planted(PlantedBug::ConfirmTooEarly) {
            let (outcome, carried) = (Ok(spec_guid), Carried::default());
            self.say(ctx, peer, Body::StepReply { transfer, outcome, carried });
        }
        self.standby.source_waits = last;
        if last && !ctx.config.store.freeze_for_snapshot {
            // What can be found out ahead costs the stopped workload no time of its own. (Where live data is
            // made of what arrives, nothing can.) What counts is the rehearsal before the promise: this
            // one's outcome is not looked at.
            let datasets = self.datasets();
            ctx.run(unit, Op::Ahead, Action::Rehearse { datasets, look: false });
        }
    }

    /// Ends a receive; its end is heard of later.
    pub(crate) fn cancel_receiving(&mut self, ctx: &mut Ctx) {
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
        carried: Carried,
    ) {
        let Some(Receiving { peer, offer, .. }) = self.standby.receiving.take() else {
            return;
        };
        let outcome = match outcome {
            Ok(Some(snapshot)) => {
                let guid = snapshot.guid;
                self.standby.received += 1;
                self.standby.fuzzy.insert(offer.volume, snapshot.fuzzy || offer.fuzzy);
                self.received(&offer, snapshot);
                self.is_at(ctx, &offer);
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
        let ended = Ended { transfer, outcome: outcome.clone(), carried };
        let before = self.standby.ended.replace(ended).map(|b| b.transfer);
        if let Some(before) = before.filter(|b| b.boot != transfer.boot) {
            self.standby.ended_before.push_back(before);
            if self.standby.ended_before.len() > BOOTS_KEPT {
                self.standby.ended_before.pop_front();
            }
        }
        self.say(ctx, peer, Body::StepReply { transfer, outcome, carried });
    }

    /// A volume is at the target of this step. The replica equals that moment once every volume is.
    fn is_at(&mut self, ctx: &mut Ctx, offer: &StepOffer) {
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        let at = |i: &Inventory| i.latest().is_some_and(|s| s.name.short() == offer.to_short);
        let whole = inventories.len() == self.record.volumes.len() && inventories.iter().all(at);
        if whole || ctx.config.planted(PlantedBug::ForetellTooLittle) {
            self.standby.equal_wall_ms = Some(offer.taken_wall_ms);
        }
        if whole && self.have_joined() {
            self.persist(ctx);
        }
    }

    pub(super) fn received(&mut self, offer: &StepOffer, snapshot: Snapshot) {
        let Some(at) = self.record.volumes.iter().position(|v| v.id == offer.volume) else {
            return;
        };
        let first = !self.local.exists.get(at).copied().unwrap_or(false);
        if let Some(exists) = self.local.exists.get_mut(at) {
            *exists = true;
        }
        if let Some(inventory) = self.local.inventories.as_mut().and_then(|i| i.get_mut(at)) {
            inventory.snapshots.push(snapshot);
            inventory.partial = None;
        }
        self.upkeep.tidy_due = true;
        self.upkeep.mirror_due |= first;
    }

    pub(crate) fn on_equal(&mut self, ctx: &mut Ctx, peer: Fingerprint, wall_ms: i64) {
        if !self.follows(peer) {
            return;
        }
        self.standby.equal_wall_ms = Some(wall_ms);
        // It may have been said before the last one joined.
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        let here = inventories.len() == self.record.volumes.len()
            && inventories.iter().all(|i| i.latest().is_some());
        if here && self.have_joined() {
            self.persist(ctx);
        }
    }
}

pub(super) enum Judgement {
    /// It is the one being received already.
    Repeat,
    /// Its acceptance is being worked on, or it is of no interest any more.
    Wait,
    /// It ended already, like this.
    Ended(Result<Guid, Failure>, Carried),
    /// Its snapshot is there.
    Have,
    Refuse(Failure),
    Take,
}

/// An old copy is never given up for the new one.
fn beside(offer: &StepOffer) -> &'static str {
    if offer.from.is_none() { ", beside what is kept there under other names" } else { "" }
}

/// How many bytes a step may bring.
pub(super) fn room_left(
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
            "the quota of {} ({quota} bytes below {}) leaves {left} bytes{}; raise it with `flocker-repl \
             grant … --quota`",
            ctx.peer_name(peer),
            grant.map(|g| g.receive.to_string()).unwrap_or_default(),
            beside(offer)
        );
        return Err(Failure::new(Remedy::Operator, FailureCode::NoSpace, text));
    }
    if estimate > available_bytes {
        let text = format!(
            "the step needs about {estimate} bytes{}, {} has {available_bytes}",
            beside(offer),
            ctx.config.store.describe
        );
        return Err(Failure::new(Remedy::Retry, FailureCode::NoSpace, text));
    }
    Ok(left)
}
