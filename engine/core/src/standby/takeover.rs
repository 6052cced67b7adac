//! The cutover, as its target: preflight, the promise, and the settling of an attempt.

use super::{Preparing, grant_of};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, EpochOrder, Fingerprint, OpId, QuestionId, VolumeId};
use crate::io::{Action, Outcome};
use crate::message::{Body, PreflightFacts, Wanted};
use crate::node::PlantedBug;
use crate::record::{Answer, Role, TAKEN_KEPT, WorkloadKind};
use crate::service::{Halt, Service};
use crate::unit::{Ending, Op, Unit};
use flocker_store::{Guid, Snapshot};

impl Unit {
    pub(crate) fn on_preflight(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: QuestionId,
        workload: Option<Wanted>,
    ) {
        if self.standby.preflighting.as_ref().is_some_and(|(_, p, q)| (*p, *q) == (peer, question))
        {
            return; // Asked again while it is being looked at.
        }
        if let Err(failure) = self.preflight(ctx, peer, workload.as_ref().map(|w| w.kind)) {
            let answer = Err(failure);
            return self.say(ctx, peer, Body::PreflightReply { question, answer });
        }
        let program = self.record.workload.as_ref().map(|w| w.program.clone());
        let description = workload.map(|w| w.description).filter(|text| !text.is_empty());
        let action = Action::Preflight { datasets: self.datasets(), program, description };
        let op = ctx.run(self.id(), Op::Preflight, action);
        self.standby.preflighting = Some((op, peer, question));
    }

    pub(crate) fn preflight_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some((_, peer, question)) = self.standby.preflighting.take_if(|(o, ..)| *o == op)
        else {
            return;
        };
        let answer = match outcome {
            Ok(Outcome::Preflight { running: true, .. }) => Err(Failure::refused(
                FailureCode::Busy,
                format!(
                    "a workload of {} runs on this node, though it is not primary here: see which \
                     process has FLOCKER_UNIT={} in its environment, and stop it",
                    self.record.name, self.record.id
                ),
            )),
            Ok(Outcome::Preflight { available_bytes, running: false }) => {
                Ok(PreflightFacts { available_bytes, last: self.standby.last_times.clone() })
            }
            Ok(_) => unreachable!("a preflight is answered by what a move would meet"),
            Err(failure) => Err(failure),
        };
        self.say(ctx, peer, Body::PreflightReply { question, answer });
    }

    pub(super) fn preflight(
        &self,
        ctx: &Ctx,
        peer: Fingerprint,
        workload: Option<WorkloadKind>,
    ) -> Result<(), Failure> {
        if !self.follows(peer) {
            return Err(self.not_following(ctx, peer));
        }
        if self.failing_over() {
            let text = format!("{}: a failover is under way on this node", self.record.name);
            return Err(Failure::refused(FailureCode::Busy, text));
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
        if self.record.workload.as_ref().is_none_or(|w| w.program.kind() != kind) {
            let what = match kind {
                WorkloadKind::Process => "-- COMMAND…".to_owned(),
                kind => format!("--{kind} NAME"),
            };
            let text = format!(
                "this node does not know what to start for {0}: run `flocker-repl run {0} {what}` \
                 here first (what runs here is never taken from a peer)",
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
        } else if attempt.issuer != peer || self.is_over(attempt) {
            refuse(format!("{}: attempt {attempt} is over", self.record.name))
        } else if self.record.epoch.number.checked_add(1) != Some(next.number)
            || next.owner != ctx.config.fingerprint
            || next.attempt != attempt
        {
            refuse(format!("{}: epoch {next} does not follow", self.record.name))
        } else if self.standby.is_busy() {
            refuse(format!("{}: a receive is under way", self.record.name))
        } else if self.failing_over() {
            refuse(format!("{}: a failover is under way", self.record.name))
        } else if self.record.was_primary || self.record.step_back.is_some() {
            refuse(format!("{}: it is still to be set back", self.record.name))
        } else {
            Ok(())
        };
        if let Err(failure) = answer {
            return self.say(ctx, peer, Body::PrepareReply { attempt, answer: Err(failure) });
        }
        // A target that could not bring the unit up says so while the source can still go on.
        // What was received a moment ago is known by the store's own word: no second look costs the
        // stopped workload its time.
        let look = self.local.inventories.is_none();
        let action = Action::Rehearse { datasets: self.datasets(), look };
        let op = ctx.run(self.id(), Op::Prepare, action);
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
            && !self.failing_over()
            && next.number == self.record.epoch.number + 1;
        let checked = match outcome {
            Ok(Outcome::Inspected(found)) => {
                let newest: Vec<_> = found.iter().map(|f| f.inventory.latest().cloned()).collect();
                self.check_finals(&finals, &newest)
            }
            Ok(_) => {
                let known = self.local.inventories.iter().flatten();
                let newest: Vec<_> = known.map(|i| i.latest().cloned()).collect();
                match newest.len() == self.record.volumes.len() {
                    true => self.check_finals(&finals, &newest),
                    false => {
                        let text = format!("{}: what is here was lost sight of", self.record.name);
                        Err(Failure::new(Remedy::Retry, FailureCode::Other, text))
                    }
                }
            }
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
        self.standby.promised = Some(attempt);
        self.set_role(ctx, role);
        self.say(ctx, peer, Body::PrepareReply { attempt, answer });
    }

    /// Each volume's newest snapshot is the final one, and is a moment that was.
    pub(super) fn check_finals(
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

    pub(crate) fn on_settle(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        question: Option<QuestionId>,
        theirs: Epoch,
    ) {
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
            Role::Ready { source, attempt: ready, next, workload_wanted, finals }
                if ready == attempt && source == peer =>
            {
                let to_us = self.standby.promised == Some(attempt)
                    || question.is_some() && question == self.standby.confirming;
                if !to_us && !ctx.config.planted(PlantedBug::SettleFromBeforeRestart) {
                    let question =
                        *self.standby.confirming.get_or_insert_with(|| ctx.new_question());
                    return self.say(ctx, peer, Body::Confirm { attempt, question });
                }
                self.standby.arrived = Some((attempt, finals));
                self.standby.answered = false;
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
                if attempt.issuer == ctx.config.fingerprint {
                    if attempt.number > self.record.last_attempt {
                        return; // Never begun here.
                    }
                    // A primary that yielded to a failover of ours.
                    if self.yielded_to(ctx, attempt) {
                        return;
                    }
                } else if attempt.issuer != peer {
                    return;
                }
                if self.failing_over() && !ctx.config.planted(PlantedBug::AnswerClaimInFailover) {
                    // Whoever is about to take over does not say that the other may go on.
                    return;
                }
                let newer = self.record.epoch.judge(&theirs) == EpochOrder::Stale;
                if newer && self.record.role.is_primary() {
                    // This node owns a newer epoch: it has not left the old one to anybody.
                    return self.say(ctx, peer, Body::Stale);
                }
                if !self.is_refused(attempt) {
                    self.bury(ctx, attempt);
                }
                let body = Body::SettleReply { attempt, answer: Answer::Refused, incarnation };
                self.say(ctx, peer, body);
            }
        }
    }

    /// The commit, on this side: from here on this node owns the unit.
    pub(super) fn take(
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
        // The final snapshots are of all of them.
        self.have_joined();
        self.record.volumes_as_of = (next.number, 0);
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
        self.standby.source_waits = false;
        self.record.was_primary = false;
        self.record.step_back = None;
        self.set_role(ctx, Role::Serving);
        // An earlier move away from here may still wait for the word that it ran over there.
        self.cutover_came_back(ctx);
        self.failover_was_taken(ctx);
        self.lease_ends();
        self.say(ctx, source, answer);
        let at_rest =
            matches!(self.service, Service::Halted | Service::Halting { stage: Halt::Fence, .. });
        self.come_to_serve(ctx, at_rest);
    }

    pub(crate) fn on_abandon(&mut self, ctx: &mut Ctx, peer: Fingerprint, attempt: AttemptId) {
        if !self.follows(peer) || attempt.issuer != peer || self.is_refused(attempt) {
            return;
        }
        self.standby.preparing = None;
        self.standby.source_waits = false;
        match self.record.role {
            Role::Ready { source, attempt: ready, .. } if ready == attempt => {
                self.tombstone_if_ready();
                self.set_role(ctx, Role::Following { source });
            }
            // One that was never ready cannot be taken without being prepared anew; refuse that too.
            _ => self.bury(ctx, attempt),
        }
    }

    pub(crate) fn on_drop(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if self.follows(peer) {
            self.cancel_receiving(ctx);
            self.end(ctx, Ending { keep_newest: true, ..Ending::default() });
        }
    }
}
