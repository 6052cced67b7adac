//! Rounds: offers, steps, the standby's word, and what happens when one fails.

use super::{Replica, Round, State, Step};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Now, TransferId};
use crate::io::{Effect, EventKind, RoundReport};
use crate::limits::{CAUSE_MS, RESEND_MS, WORD_MS};
use crate::message::{Body, Carried, StepOffer};
use crate::node::PlantedBug;
use crate::plan;
use crate::unit::Unit;
use flocker_store::{Guid, SendBase, SendSpec, Snapshot};

impl Unit {
    /// Begins a round to these snapshots; `false` if there was nothing to send.
    pub(crate) fn begin_round(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        targets: Vec<Snapshot>,
        taken: Now,
        frozen_ms: u64,
        is_final: bool,
    ) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        replica.last_begun = ctx.now.mono_ms;
        let skipped = self.snapshotting.taken_since_round.saturating_sub(1);
        self.snapshotting.taken_since_round = 0;
        let first = self.plan_step(ctx, peer, &targets, taken, is_final);
        match first {
            Ok(None) => self.round_done(ctx, peer, taken, None),
            Ok(Some((volume, step))) => {
                let full = step.offer.from.is_none();
                let round = Round {
                    taken,
                    targets,
                    volume,
                    step,
                    full,
                    carried: Carried::default(),
                    frozen_ms,
                    skipped,
                    is_final,
                };
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.state = State::Round(Box::new(round));
                }
                self.offer(ctx, peer);
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }

    /// The next volume that needs a send; one that is a clone of what another one has yet to bring comes later.
    pub(super) fn plan_step(
        &self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        targets: &[Snapshot],
        taken: Now,
        last: bool,
    ) -> Result<Option<(usize, Step)>, Failure> {
        let lost = || Failure::new(Remedy::Replan, FailureCode::NoBase, "the inventory is stale");
        let replica = self.replicas.get(&peer).ok_or_else(lost)?;
        let bases = replica.bases.as_ref().ok_or_else(lost)?;
        let ours = self.local.inventories.as_ref().ok_or_else(lost)?;
        for volume in self.order_of(replica, targets) {
            let to = targets.get(volume).ok_or_else(lost)?;
            let base = bases.get(volume).copied().ok_or_else(lost)?;
            if base == Some(to.guid) {
                continue;
            }
            let inventory = ours.get(volume).ok_or_else(lost)?;
            let origin = self.clone_base(ctx, replica, volume).filter(|_| base.is_none());
            let from = match (base, &origin) {
                (None, None) => None,
                (None, Some(origin)) => Some(SendBase::Snapshot(origin.name.clone())),
                (Some(guid), _) => Some(plan::find_base(inventory, guid).ok_or_else(lost)?.0),
            };
            let stop = plan::next_stop(inventory, base, to.guid).filter(|s| s.guid != to.guid);
            let taken_wall_ms = match stop {
                Some(stop) => taken.wall_ms.min(stop.creation_unix_s * 1000),
                None => taken.wall_ms,
            };
            let to = stop.unwrap_or(to);
            let facts = &ctx.config.store;
            let raw = self.record.volumes[volume].raw;
            let mut spec = SendSpec {
                from,
                to: to.name.clone(),
                compressed: facts.compressed_send,
                large_blocks: facts.large_block_send,
                raw,
                resume: None,
            };
            let mut offer = StepOffer {
                transfer: ctx.new_transfer(),
                volume: self.record.volumes[volume].id,
                from: base.or(origin.as_ref().map(|o| o.guid)),
                to: to.guid,
                to_short: to.name.short().to_owned(),
                taken_wall_ms,
                estimate_bytes: None,
                fuzzy: to.fuzzy,
                last,
                // What a clone's first step leaves behind could not be told from anything else.
                resumable: !last && origin.is_none() && replica.is_long(ctx.now, base.is_none()),
                resumes: false,
                clone: origin.is_some(),
            };
            // What is left of a receive covers one snapshot, which need not be the newest any more.
            let left = replica.partials.get(volume).and_then(Option::as_ref);
            if let Some((partial, to)) = left
                .filter(|p| {
                    !last && p.to != replica.spoilt && p.raw == raw && (p.raw || facts.resumes(p))
                })
                .and_then(|p| Some((p, plan::resumable(inventory, p, base)?)))
            {
                spec.to = to.name.clone();
                (spec.compressed, spec.large_blocks) = (partial.compressed, partial.large_blocks);
                spec.resume = Some(partial.token.clone());
                if base.is_none() {
                    (spec.from, offer.from, offer.clone) = (None, None, false);
                }
                offer.to = to.guid;
                offer.to_short = to.name.short().to_owned();
                offer.taken_wall_ms = offer.taken_wall_ms.min(to.creation_unix_s * 1000);
                (offer.resumable, offer.resumes) = (true, true);
            }
            let step = Step {
                offer,
                spec,
                ask_at: 0,
                accepted: false,
                carried: None,
                word_by: None,
                local_failure: None,
            };
            return Ok(Some((volume, step)));
        }
        Ok(None)
    }

    pub(super) fn offer(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(Replica { state: State::Round(round), .. }) = self.replicas.get_mut(&peer) else {
            return;
        };
        round.step.ask_at = ctx.now.mono_ms + RESEND_MS;
        let body = Body::Offer(round.step.offer.clone());
        self.say(ctx, peer, body);
    }

    pub(crate) fn on_offer_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        transfer: TransferId,
        answer: Result<(), Failure>,
    ) {
        let unit = self.record.id;
        let Some(step) = self.step_mut(peer, transfer) else {
            return;
        };
        if step.accepted {
            return;
        }
        match answer {
            Ok(()) => {
                step.accepted = true;
                let (spec, to, last) = (step.spec.clone(), step.offer.to, step.offer.last);
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.candidates.get_or_insert_default().insert(to);
                }
                ctx.out.transfers.insert(transfer, unit);
                ctx.push(Effect::StartSend { transfer, peer, unit, spec, last });
            }
            Err(failure) if failure.code == FailureCode::NoOrigin => {
                self.origin_is_missing(ctx, peer);
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }

    pub(super) fn step_mut(
        &mut self,
        peer: Fingerprint,
        transfer: TransferId,
    ) -> Option<&mut Step> {
        match self.replicas.get_mut(&peer) {
            Some(Replica { state: State::Round(round), .. })
                if round.step.offer.transfer == transfer =>
            {
                Some(&mut round.step)
            }
            _ => None,
        }
    }

    pub(crate) fn send_ended(
        &mut self,
        ctx: &mut Ctx,
        transfer: TransferId,
        outcome: Result<(), Failure>,
        carried: Carried,
    ) {
        let now = ctx.now.mono_ms;
        let round = self.replicas.values_mut().find_map(|r| match &mut r.state {
            State::Round(round) if round.step.offer.transfer == transfer => Some(round),
            _ => None,
        });
        let Some(round) = round else {
            return;
        };
        round.step.carried = Some(carried);
        match outcome {
            Ok(()) => round.step.word_by = Some(now + WORD_MS),
            Err(failure) => {
                round.step.word_by = Some(now + CAUSE_MS);
                round.step.local_failure = Some(failure);
            }
        }
    }

    /// A step does not move. That is no failure of it (a store may be long about something), and yet it is said.
    pub(crate) fn transfer_stands(
        &mut self,
        ctx: &mut Ctx,
        transfer: TransferId,
        for_ms: Option<u64>,
    ) {
        let name = self.record.name.clone();
        let replica = self.replicas.values_mut().find(
            |r| matches!(&r.state, State::Round(round) if round.step.offer.transfer == transfer),
        );
        let Some(replica) = replica else {
            return;
        };
        let Some(for_ms) = for_ms else {
            replica.failure = None;
            return self.clear_round_alarm(ctx);
        };
        let text = format!(
            "{name}: nothing of the step to {} has moved for {} s: a store, here or there, does not answer (`zpool \
             status -x` on both); it goes on by itself when that does",
            ctx.peer_name(replica.peer),
            for_ms / 1000
        );
        let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
        replica.failure = Some(failure.clone());
        self.raise(ctx, failure);
    }

    pub(crate) fn on_step_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        transfer: TransferId,
        outcome: Result<Guid, Failure>,
        theirs: Carried,
    ) {
        let Some(step) = self.step_mut(peer, transfer) else {
            return;
        };
        match outcome {
            Ok(guid) if guid == step.offer.to => self.step_done(ctx, peer, guid, theirs),
            Ok(guid) => {
                let text = format!(
                    "{} committed the snapshot with guid {guid} instead of {}",
                    ctx.peer_name(peer),
                    step.offer.to
                );
                let failure = Failure::new(Remedy::Replan, FailureCode::BadStream, text);
                self.round_failed(ctx, peer, failure);
            }
            // What broke here is the cause of what the standby saw, unless the standby knows more.
            Err(theirs) => {
                let ours = step.local_failure.take();
                let failure = match ours {
                    Some(ours) if theirs.code == FailureCode::ConnectionLost => ours,
                    _ => theirs,
                };
                self.round_failed(ctx, peer, failure);
            }
        }
    }

    /// `theirs`: what the standby counted. It stands for our own count where its word has overtaken the end of our
    /// side, which is of no interest any more once the step is over.
    fn step_done(&mut self, ctx: &mut Ctx, peer: Fingerprint, guid: Guid, theirs: Carried) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        let State::Round(round) = &mut replica.state else {
            return;
        };
        round.carried += round.step.carried.take().unwrap_or(theirs);
        let volume = round.volume;
        replica.arrived(volume, guid);
        if let Some(left) = replica.partials.get_mut(volume) {
            *left = None;
        }
        self.next_step(ctx, peer);
    }

    /// What is due in a round now: one that went on with an earlier receive, or stopped on its way, need not have
    /// brought its volume to the target.
    pub(super) fn next_step(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(Replica { state: State::Round(round), .. }) = self.replicas.get_mut(&peer) else {
            return;
        };
        let (taken, last) = (round.taken, round.is_final);
        // Lent, not copied: there may be thousands, and as many steps.
        let targets = std::mem::take(&mut round.targets);
        let planned = self.plan_step(ctx, peer, &targets, taken, last);
        if let Some(Replica { state: State::Round(round), .. }) = self.replicas.get_mut(&peer) {
            round.targets = targets;
        }
        match planned {
            Ok(Some((volume, step))) => {
                if let Some(Replica { state: State::Round(round), .. }) =
                    self.replicas.get_mut(&peer)
                {
                    round.full |= step.offer.from.is_none();
                    round.volume = volume;
                    round.step = step;
                }
                self.offer(ctx, peer);
            }
            Ok(None) => {
                let Some(replica) = self.replicas.get_mut(&peer) else {
                    return;
                };
                let State::Round(round) = std::mem::replace(&mut replica.state, State::Idle) else {
                    return;
                };
                self.round_done(ctx, peer, taken, Some(&round));
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }

    pub(super) fn round_done(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        taken: Now,
        round: Option<&Round>,
    ) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        replica.state = State::Idle;
        replica.awaits_origin = false;
        let lag_before_ms = replica.lag_ms(ctx.now);
        let before = replica.equal.replace(taken);
        replica.failures = 0;
        replica.failure = None;
        self.upkeep.tidy_due = true;
        let Some(round) = round else {
            self.say(ctx, peer, Body::Equal { wall_ms: taken.wall_ms });
            return self.cutover_round_done(ctx, peer, None);
        };
        let duration_ms = ctx.now.mono_ms.saturating_sub(taken.mono_ms);
        replica.predicted_ms = (replica.predicted_ms * 3 + duration_ms).div_ceil(4);
        replica.measure(round, before, taken, duration_ms);
        replica.rounds += 1;
        let Carried { stream_bytes, wire_bytes, saved_bytes } = round.carried;
        replica.stream_bytes += stream_bytes;
        replica.wire_bytes += wire_bytes;
        let report = RoundReport {
            peer,
            round: replica.rounds,
            full: round.full,
            stream_bytes,
            wire_bytes,
            saved_bytes,
            duration_ms,
            lag_before_ms,
            frozen_ms: round.frozen_ms,
            skipped: round.skipped,
        };
        replica.last = Some(report.clone());
        ctx.report(self.record.id, &self.record.name, EventKind::Round(report.clone()));
        self.clear_round_alarm(ctx);
        self.cutover_round_done(ctx, peer, Some(report));
    }

    pub(super) fn clear_round_alarm(&mut self, ctx: &mut Ctx) {
        if self.replicas.values().all(|r| r.failure.is_none()) && self.fully_up() {
            self.clear_alarm(ctx);
        }
    }

    /// What to do about a standby that went its own way, and where.
    pub(super) fn resolve_words(&self, ctx: &Ctx, peer: Fingerprint) -> String {
        format!(
            "run `flocker-repl resolve {}` on {}: it shows what each side has, and keeps what only {1} has aside",
            self.record.name,
            ctx.peer_name(peer)
        )
    }

    pub(crate) fn round_failed(&mut self, ctx: &mut Ctx, peer: Fingerprint, mut failure: Failure) {
        let unit = self.record.id;
        if failure.code == FailureCode::Modified && !failure.message.contains("resolve") {
            failure.message = format!("{}; {}", failure.message, self.resolve_words(ctx, peer));
        }
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        let was_final = replica.in_final_round();
        if let State::Round(round) = &replica.state
            && round.step.offer.resumes
            && !failure.code.is_passing()
        {
            replica.spoilt = Some(round.step.offer.to);
        }
        if let State::Round(round) = &replica.state
            && round.step.offer.clone
            && !failure.code.is_passing()
        {
            // Whatever it is that does not fit: all of it does.
            replica.whole.insert(round.volume);
        }
        replica.cancel_round(ctx, unit);
        replica.wait(ctx.now, failure.clone());
        if ctx.config.planted(PlantedBug::RoundNotRetried) {
            // Some thousand years: clocks are reckoned with.
            replica.state = State::Waiting { until: u64::MAX >> 16 };
        }
        self.local.inventories = None;
        if self.cutover_target() == Some(peer) {
            self.cutover_round_failed(ctx, was_final, failure);
        } else if failure.code != FailureCode::Cancelled {
            self.raise(ctx, failure);
        }
    }
}
