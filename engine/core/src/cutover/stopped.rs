//! The part of a cutover in which the workload is stopped: fence, final snapshot, final transfer, the
//! target's promise. Any failure here is undone here.

use super::{Cutover, Kind, Phase};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, VolumeId};
use crate::io::{Action, EventKind, Outcome};
use crate::node::PlantedBug;
use crate::record::Role;
use crate::service::Service;
use crate::unit::{Op, Unit};
use flocker_store::{Guid, Snapshot};

impl Unit {
    pub(super) fn quiesce(&mut self, ctx: &mut Ctx) {
        let mut action = self.stop_action();
        if let Action::StopWorkload { before, state, .. } = &mut action {
            *state = self.state_folder();
            *before = self.record.workload.as_ref().and_then(|w| w.hooks.before_stop.clone());
        }
        if let Some(c) = &self.cutover
            && let Some(prediction) = c.predicted.clone()
        {
            let (attempt, budget_ms) = (c.attempt, c.budget_ms);
            let kind = EventKind::Predicted { attempt, prediction, budget_ms };
            ctx.report(self.record.id, &self.record.name, kind);
        }
        let op = ctx.run(self.id(), Op::Cutover, action);
        if let Some(c) = &mut self.cutover {
            c.stopped_at = Some(ctx.now.mono_ms);
        }
        self.enter(ctx, Phase::Quiesce { op });
    }

    /// The workload has stopped: its addresses go, then nobody may write its volumes any more.
    pub(super) fn fence(&mut self, ctx: &mut Ctx) {
        self.work_has_stopped(ctx);
        self.service = Service::Stopped;
        if let Some(action) = self.network_action(false) {
            let op = ctx.run(self.id(), Op::Cutover, action);
            return self.enter(ctx, Phase::Fence { op, network: true });
        }
        self.fence_volumes(ctx);
    }

    pub(super) fn fence_volumes(&mut self, ctx: &mut Ctx) {
        if ctx.config.planted(PlantedBug::SkipFence) {
            return self.fenced(ctx);
        }
        let op = ctx.run(self.id(), Op::Cutover, Action::Fence { datasets: self.datasets() });
        match &mut self.cutover {
            // One phase: the addresses were its first part.
            Some(Cutover { phase: Phase::Fence { op: now, network }, .. }) => {
                (*now, *network) = (op, false);
            }
            _ => self.enter(ctx, Phase::Fence { op, network: false }),
        }
    }

    /// Nobody can write any more: what comes next depends on why the unit leaves.
    fn fenced(&mut self, ctx: &mut Ctx) {
        let Some(c) = &self.cutover else {
            return;
        };
        match &c.kind {
            Kind::Move => self.final_snapshot(ctx),
            Kind::HandBack { finals } => {
                let finals = finals.clone();
                self.enter(ctx, Phase::Prepare { finals, ask_at: ctx.now.mono_ms });
            }
            Kind::Yield { incarnation, next, .. } => {
                let (incarnation, next) = (*incarnation, *next);
                // What the standby goes on from is older than what is here.
                self.record.was_primary = true;
                self.commit(ctx, incarnation, next);
            }
        }
    }

    pub(super) fn final_snapshot(&mut self, ctx: &mut Ctx) {
        let taken = ctx.now;
        if ctx.config.planted(PlantedBug::NoFinalSnapshotAfterFence)
            && let Some(finals) = self.newest()
        {
            let phase = Phase::Transfer { finals, taken, verify: None, begun: false, sent: false };
            return self.enter(ctx, phase);
        }
        let names = self.snapshot_names();
        let action = Action::Snapshot { names, freeze: false, quiesced: true };
        let op = ctx.run(self.id(), Op::Cutover, action);
        self.enter(ctx, Phase::Snapshot { op, taken });
    }

    pub(crate) fn cutover_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(c) = &self.cutover else {
            return;
        };
        match &c.phase {
            Phase::PreDump { op: mine } if *mine == op => {
                if let Err(failure) = outcome {
                    let text = format!("nothing of its memory went ahead: {failure}");
                    if let Some(c) = &mut self.cutover {
                        c.notes.push(text);
                    }
                }
                self.converge(ctx);
            }
            Phase::Quiesce { op: mine } if *mine == op => match outcome {
                Ok(outcome) => {
                    if let (Outcome::Timed { parts }, Some(c)) = (outcome, &mut self.cutover) {
                        c.theirs.extend(parts);
                    }
                    self.fence(ctx);
                }
                Err(failure) => self.undo(ctx, failure),
            },
            Phase::Fence { op: mine, network } if *mine == op => match (*network, outcome) {
                (true, Ok(_)) => {
                    self.network_is(false);
                    self.fence_volumes(ctx);
                }
                (false, Ok(_)) => self.fenced(ctx),
                (_, Err(failure)) => self.undo(ctx, failure),
            },
            Phase::Snapshot { op: mine, taken } if *mine == op => {
                let taken = *taken;
                match outcome {
                    Ok(Outcome::Snapshots { snapshots, .. }) => {
                        self.begin_transfer(ctx, snapshots, taken);
                    }
                    Ok(_) => unreachable!("asked for snapshots"),
                    Err(failure) => self.undo(ctx, failure),
                }
            }
            _ => {}
        }
    }

    pub(super) fn begin_transfer(&mut self, ctx: &mut Ctx, finals: Vec<Snapshot>, taken: Now) {
        if !self.add_snapshots(&finals) {
            self.look(ctx);
        }
        let snapshots = finals.iter().map(|s| s.name.clone()).collect();
        let verify = ctx.run(self.id(), Op::CutoverVerify, Action::VerifyUnwritten { snapshots });
        let verify = Some(verify);
        self.enter(ctx, Phase::Transfer { finals, taken, verify, begun: false, sent: false });
    }

    pub(crate) fn verify_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(Cutover { phase: Phase::Transfer { verify, .. }, .. }) = &mut self.cutover else {
            return;
        };
        if *verify != Some(op) {
            return;
        }
        match outcome {
            Ok(_) => {
                *verify = None;
                self.transfer_went_on(ctx);
            }
            Err(failure) => self.undo(ctx, failure),
        }
    }

    /// Both are needed: the final snapshot is over there, and nothing was written since here.
    pub(super) fn transfer_went_on(&mut self, ctx: &mut Ctx) {
        let Some(c) = &self.cutover else {
            return;
        };
        if let Phase::Transfer { finals, verify: None, sent: true, .. } = &c.phase {
            let finals: Vec<(VolumeId, Guid)> = (self.record.volumes.iter())
                .zip(finals.iter())
                .map(|(v, s)| (v.id, s.guid))
                .collect();
            self.enter(ctx, Phase::Prepare { finals, ask_at: ctx.now.mono_ms });
        }
    }

    pub(super) fn next_epoch(&self, attempt: AttemptId, target: Fingerprint) -> Epoch {
        Epoch { number: self.record.epoch.number + 1, owner: target, attempt }
    }

    pub(crate) fn on_prepare_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        answer: Result<Incarnation, Failure>,
    ) {
        let Some(c) = &self.cutover else {
            return;
        };
        if c.target != peer || c.attempt != attempt || !matches!(c.phase, Phase::Prepare { .. }) {
            return;
        }
        match answer {
            Ok(incarnation) => {
                let next = self.next_epoch(attempt, c.target);
                if let Kind::HandBack { finals } = &c.kind {
                    // Whatever this node has beyond what it took is its own alone.
                    self.record.step_back = Some(finals.clone());
                }
                self.commit(ctx, incarnation, next);
            }
            Err(failure) => self.undo(ctx, failure),
        }
    }

    /// Durably hands the unit over: from here on only the target's answer counts.
    fn commit(&mut self, ctx: &mut Ctx, incarnation: Incarnation, next: Epoch) {
        let Some(c) = &self.cutover else {
            return;
        };
        let (attempt, target) = (c.attempt, c.target);
        self.service = Service::Halted;
        self.drop_other_replicas(ctx);
        self.set_role(ctx, Role::HandedOver { attempt, target, incarnation, next });
        self.handed_over_at = ctx.now.mono_ms;
        self.handed_over_wall_ms = Some(ctx.now.wall_ms);
        self.settle_at = ctx.now.mono_ms;
        self.enter(ctx, Phase::Commit);
    }

    pub(super) fn drop_other_replicas(&mut self, ctx: &mut Ctx) {
        let failure = Failure::refused(FailureCode::Cancelled, "the unit was handed over");
        self.drop_replicas(ctx, &failure);
    }
}
