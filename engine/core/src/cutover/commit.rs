//! From the commit on: the one question, its answers, and the target's word that it runs.

use super::{Cutover, Kind, Phase};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, QuestionId};
use crate::io::{EventKind, MigrationReport, Reply};
use crate::limits::{RESEND_MS, SETTLE_ALARM_MS};
use crate::message::{ActivationTimes, Body};
use crate::node::PlantedBug;
use crate::record::{Answer, MoveCosts, Role};
use crate::service::Service;
use crate::unit::Unit;

impl Unit {
    /// The one question, asked until it is answered; by the role alone, so also after a restart.
    pub(crate) fn advance_settle(&mut self, ctx: &mut Ctx) {
        let Role::HandedOver { attempt, target, .. } = self.record.role else {
            return;
        };
        let now = ctx.now.mono_ms;
        if now < self.settle_at {
            return;
        }
        self.settle_at = now + RESEND_MS;
        self.say(ctx, target, Body::Settle { attempt, question: None });
        if now >= self.handed_over_at + SETTLE_ALARM_MS {
            if ctx.config.planted(PlantedBug::ResumeWithoutRefusal) {
                return self.refused_by_target(ctx);
            }
            let text = format!(
                "{}: {} was asked to take over (attempt {attempt}) and has not answered; this side \
                 stays fenced until it does",
                self.record.name,
                ctx.peer_name(target)
            );
            if self.alarm.is_none() {
                let code = FailureCode::ConnectionLost;
                self.raise(ctx, Failure::new(Remedy::Operator, code, text));
            }
        }
    }

    /// The target came back from a restart and wants the commit said to it as it is now.
    pub(crate) fn on_confirm(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: AttemptId,
        question: QuestionId,
    ) {
        if let Role::HandedOver { attempt, target, .. } = self.record.role
            && attempt == asked
            && target == peer
        {
            self.say(ctx, peer, Body::Settle { attempt, question: Some(question) });
        }
    }

    pub(crate) fn on_settle_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        answer: Answer,
        incarnation: Incarnation,
    ) {
        let Role::HandedOver { attempt: mine, target, incarnation: ready, next } = self.record.role
        else {
            return;
        };
        if peer != target || attempt != mine {
            return;
        }
        match answer {
            Answer::Taken => self.taken_by_target(ctx, next),
            Answer::Refused
                if incarnation == ready || ctx.config.planted(PlantedBug::IgnoreIncarnation) =>
            {
                self.refused_by_target(ctx);
            }
            Answer::Refused => {
                let text = format!(
                    "{}: {} has lost the journal in which it was ready (attempt {attempt}); its \
                     refusal proves nothing, so this side stays fenced",
                    self.record.name,
                    ctx.peer_name(peer)
                );
                self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::Conflict, text));
            }
        }
    }

    /// The target owns the unit: this node becomes its standby, from the held final snapshot.
    pub(crate) fn taken_by_target(&mut self, ctx: &mut Ctx, epoch: Epoch) {
        let Role::HandedOver { target, next, .. } = self.record.role else {
            return;
        };
        let left: Vec<_> = (self.record.standbys.iter())
            .filter(|s| **s != target)
            .map(|s| ctx.peer_name(*s))
            .collect();
        // Whoever moved it from here to a node without a grant for its place decided that it may
        // come back from there.
        let covered =
            (0..self.record.volumes.len()).all(|at| self.check_granted(ctx, target, at).is_ok());
        self.record.own |= !covered;
        // Another epoch than the one that was handed over: the target may go on from less.
        self.record.was_primary |= epoch != next;
        self.record.epoch = epoch;
        self.record.standbys.clear();
        self.set_role(ctx, Role::Following { source: target });
        self.clear_alarm(ctx);
        if self.cutover.is_none() && epoch == next && !self.record.was_primary {
            self.report_unwatched(ctx, target, epoch);
        }
        self.local.inventories = None;
        // The target may have gone on long before its answer came. What was yielded goes on from an older
        // instance: then nothing equals it yet.
        let handed_over = self.handed_over_wall_ms.take();
        self.standby.equal_wall_ms = handed_over.filter(|_| !self.record.was_primary);
        self.lease_ends();
        if let Some(c) = &mut self.cutover {
            if !left.is_empty() {
                c.notes.push(format!(
                    "{} no longer follow: run `flocker-repl protect` on the new primary",
                    left.join(", ")
                ));
            }
            if matches!(c.kind, Kind::Yield { .. }) && c.attempt == epoch.attempt {
                // Whoever failed over says how that went; nobody here waits for it.
                self.end_cutover(ctx, Ok(Reply::Done));
            } else if c.attempt == epoch.attempt {
                self.enter(ctx, Phase::Activating { ask_at: ctx.now.mono_ms + RESEND_MS });
            } else {
                let text = format!(
                    "{} took {} over by a failover, and not by this attempt",
                    ctx.peer_name(target),
                    self.record.name
                );
                let failure = Failure::new(Remedy::Operator, FailureCode::Conflict, text);
                self.end_cutover(ctx, Err(failure));
            }
        }
        self.end_failover(
            ctx,
            Err(Failure::refused(
                FailureCode::Cancelled,
                format!("{}: the target has answered: it has taken over", self.record.name),
            )),
        );
    }

    /// A move that was committed before this daemon began, and that nobody has asked after since: the history
    /// has it all the same, without what was measured before.
    fn report_unwatched(&mut self, ctx: &mut Ctx, target: Fingerprint, epoch: Epoch) {
        let note =
            "the daemon ended after the commit: what was measured before is not known".to_owned();
        let report = MigrationReport {
            name: self.record.name.clone(),
            source: ctx.config.fingerprint,
            target,
            attempt: epoch.attempt,
            epoch: epoch.number,
            rounds: Vec::new(),
            downtime_ms: Vec::new(),
            theirs_ms: Vec::new(),
            downtime_total_ms: 0,
            total_ms: 0,
            predicted: None,
            budget_ms: None,
            clients: None,
            notes: vec![note],
        };
        ctx.report(self.record.id, &self.record.name, EventKind::Migrated(Box::new(report)));
    }

    pub(crate) fn refused_by_target(&mut self, ctx: &mut Ctx) {
        self.record.was_primary = false;
        self.record.step_back = None;
        self.set_role(ctx, Role::Serving);
        self.clear_alarm(ctx);
        let refused = |text: String| Failure::new(Remedy::Retry, FailureCode::Cancelled, text);
        let name = &self.record.name;
        let reason =
            refused(format!("{name}: the target refused at the commit; nothing has moved"));
        let answered = refused(format!("{name}: the target has answered: it refused"));
        if self.cutover.is_some() {
            self.enter(ctx, Phase::Undo { reason, from: "commit" });
        }
        self.end_failover(ctx, Err(answered));
        // What is fenced here has been nobody else's: no need to ask anybody.
        let at_rest = matches!(self.service, Service::Stopped | Service::Halted);
        self.come_to_serve(ctx, at_rest);
    }

    pub(crate) fn on_activated(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        times: ActivationTimes,
    ) {
        let now = ctx.now.mono_ms;
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.target != peer || c.attempt != attempt {
            return;
        }
        let Phase::Activating { .. } = c.phase else {
            return;
        };
        let total = now - c.since;
        let notice = total.saturating_sub(times.mount_ms + times.start_ms);
        c.parts.push(("mount".into(), times.mount_ms));
        c.parts.push(("start".into(), times.start_ms));
        c.parts.push(("notice".into(), notice));
        c.theirs.extend(times.theirs);
        let costs = c.costs();
        let (target, kind) = (c.target, c.kind.clone());
        let report = MigrationReport {
            name: self.record.name.clone(),
            source: ctx.config.fingerprint,
            target: c.target,
            attempt,
            epoch: self.record.epoch.number,
            rounds: std::mem::take(&mut c.rounds),
            downtime_ms: std::mem::take(&mut c.parts),
            theirs_ms: std::mem::take(&mut c.theirs),
            downtime_total_ms: c.stopped_at.map_or(0, |at| now - at),
            total_ms: now - c.begun,
            predicted: c.predicted.take(),
            budget_ms: c.budget_ms,
            clients: None,
            notes: std::mem::take(&mut c.notes),
        };
        self.served_again(ctx);
        if matches!(kind, Kind::Move) && report.downtime_total_ms > 0 {
            self.learn_costs(ctx, target, costs);
        }
        let report = Box::new(report);
        let kind = EventKind::Migrated(report.clone());
        ctx.report(self.record.id, &self.record.name, kind);
        self.end_cutover(ctx, Ok(Reply::Migrated(report)));
    }

    pub(crate) fn on_activation_failed(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        failure: Failure,
        handing_back: bool,
    ) {
        let name = self.record.name.clone();
        let there = ctx.peer_name(peer);
        let Some(c) = &mut self.cutover else {
            return;
        };
        let taken = matches!(c.phase, Phase::Activating { .. });
        if !taken || c.target != peer || c.attempt != attempt {
            return;
        }
        if handing_back {
            let text =
                format!("{there} could not bring {name} up and hands it back: {}", failure.message);
            c.coming_back = Some(Failure { message: text, ..failure });
            return;
        }
        let text = format!(
            "{name} has moved to {there}, which could not bring it up yet and goes on trying: {}",
            failure.message
        );
        self.end_cutover(ctx, Err(Failure::new(Remedy::Operator, FailureCode::Workload, text)));
    }

    /// This node took the unit while an earlier move away from here was still waiting for the word that it
    /// ran over there: it was handed back, or moved back.
    pub(crate) fn cutover_came_back(&mut self, ctx: &mut Ctx) {
        let Some(c) = &mut self.cutover else {
            return;
        };
        match c.coming_back.take() {
            Some(reason) => self.enter(ctx, Phase::Undo { reason, from: "activate" }),
            None => {
                let name = &self.record.name;
                let text = format!("{name}: it was moved back before it had run there");
                self.end_cutover(ctx, Err(Failure::refused(FailureCode::Cancelled, text)));
            }
        }
    }

    /// The unit went on to another epoch before the word came that it ran in the one of this attempt.
    pub(crate) fn cutover_overtaken(&mut self, ctx: &mut Ctx, epoch: Epoch) {
        if self.cutover.as_ref().is_some_and(|c| c.attempt != epoch.attempt) {
            let text = format!(
                "{}: it went on to epoch {} before it was known to run where it was moved",
                self.record.name, epoch.number
            );
            let failure = Failure::new(Remedy::Operator, FailureCode::Conflict, text);
            self.end_cutover(ctx, Err(failure));
        }
    }

    /// What this move cost goes into the next prediction.
    fn learn_costs(&mut self, ctx: &mut Ctx, target: Fingerprint, now: MoveCosts) {
        let known = self.record.move_costs.entry(target).or_default();
        let smooth =
            |old: u64, new: u64| if known.moves == 0 { new } else { (old + new).div_ceil(2) };
        *known = MoveCosts {
            moves: known.moves + 1,
            quiesce_ms: smooth(known.quiesce_ms, now.quiesce_ms),
            fence_ms: smooth(known.fence_ms, now.fence_ms),
            transfer_ms: smooth(known.transfer_ms, now.transfer_ms),
            commit_ms: smooth(known.commit_ms, now.commit_ms),
            mount_ms: smooth(known.mount_ms, now.mount_ms),
            start_ms: smooth(known.start_ms, now.start_ms),
        };
        self.persist(ctx);
    }
}

impl Cutover {
    /// What it cost apart from its data.
    fn costs(&self) -> MoveCosts {
        let part = |words: &[&str]| -> u64 {
            self.parts.iter().filter(|(w, _)| words.contains(&w.as_str())).map(|(_, ms)| ms).sum()
        };
        let rate = self.predicted.as_ref().and_then(|p| p.bytes_per_second).filter(|r| *r > 0);
        let sent = self.rounds.last().map_or(0, |r| r.stream_bytes);
        let travel_ms = rate.map_or(0, |rate| sent.saturating_mul(1000) / rate);
        MoveCosts {
            moves: 1,
            quiesce_ms: part(&["quiesce"]),
            fence_ms: part(&["fence", "snapshot"]),
            transfer_ms: part(&["transfer"]).saturating_sub(travel_ms),
            commit_ms: part(&["prepare", "commit"]),
            mount_ms: part(&["mount"]),
            start_ms: part(&["start", "notice"]),
        }
    }
}
