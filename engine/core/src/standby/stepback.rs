//! A standby that was primary, and what only it has.
//!
//! It was superseded by a failover, or could not bring up what it took. The new primary says which
//! snapshots the two have in common; that is made durable, done once nothing runs here any more, and
//! only then is anything received. What was beyond them is kept under another name.

use flocker_store::{DatasetName, Guid, SnapshotName};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId, QuestionId, VolumeId};
use crate::io::{Action, Outcome};
use crate::limits::RETRY_MS;
use crate::message::Body;
use crate::record::VolumeRecord;
use crate::service::Service;
use crate::unit::{Op, Unit};

/// Setting volumes back, while it is under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct SteppingBack {
    op: Option<OpId>,
    /// After a failure, not before this.
    retry_at: u64,
    /// Who wants to know when it is done.
    asked: Option<(Fingerprint, QuestionId)>,
}

impl SteppingBack {
    pub(super) fn is_under_way(&self) -> bool {
        self.op.is_some()
    }
}

impl Unit {
    pub(crate) fn on_step_back(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: QuestionId,
        bases: Vec<(VolumeId, Guid)>,
    ) {
        let answer = |answer| Body::StepBackReply { question, answer };
        if self.failing_over() {
            // It goes on from what is here now, and has said from what.
            return;
        }
        if !self.follows(peer) {
            let failure = self.not_following(ctx, peer);
            return self.say(ctx, peer, answer(Err(failure)));
        }
        if self.record.step_back.is_none() && !self.record.was_primary {
            // Done already, and the answer was lost; or nothing here may be set back.
            return self.say(ctx, peer, answer(Ok(Vec::new())));
        }
        let named = |v: &VolumeRecord| bases.iter().any(|(id, _)| *id == v.id);
        let whole = self.record.volumes.iter().all(named);
        if self.record.step_back.is_none() && !whole && self.local.inventories.is_none() {
            // It is asked again when that is known.
            return self.look(ctx);
        }
        let exists = self.local.exists.iter().copied().chain(std::iter::repeat(true));
        let there = self.record.volumes.iter().zip(exists).filter(|(_, exists)| *exists);
        if self.record.step_back.is_none() && !there.map(|(v, _)| v).all(named) {
            // Only a person here may send all of a volume away.
            let text =
                format!("{}: not every volume has something to go back to", self.record.name);
            let failure = Failure::refused(FailureCode::NoBase, text);
            return self.say(ctx, peer, answer(Err(failure)));
        }
        self.standby.stepping_back.asked = Some((peer, question));
        if self.record.step_back.is_none() {
            self.record.step_back = Some(bases);
            self.persist(ctx);
        }
    }

    pub(crate) fn advance_step_back(&mut self, ctx: &mut Ctx) {
        let due = self.record.step_back.is_some()
            && self.record.role.is_standby()
            && matches!(self.service, Service::Halted)
            && self.standby.stepping_back.op.is_none()
            && !self.standby.is_busy()
            && ctx.now.mono_ms >= self.standby.stepping_back.retry_at;
        if !due {
            return;
        }
        if self.local.inventories.is_none() {
            return self.look(ctx);
        }
        match self.step_back_names() {
            Ok((keep, away)) => {
                let (tag, wall_ms) = (self.tag(), ctx.now.wall_ms);
                let action = Action::SetAside { keep, away, tag, wall_ms };
                self.standby.stepping_back.op = Some(ctx.run(self.id(), Op::StepBack, action));
            }
            Err(failure) => self.step_back_failed(ctx, failure),
        }
    }

    /// A volume has nothing to be set back to, and is to be received anew.
    pub(super) fn goes_away(&self) -> bool {
        let bases = self.record.step_back.as_ref();
        bases.is_some_and(|bases| bases.len() < self.record.volumes.len())
    }

    /// What is kept of each volume, and the volumes that go away as a whole.
    fn step_back_names(&self) -> Result<(Vec<SnapshotName>, Vec<DatasetName>), Failure> {
        let bases = self.record.step_back.as_deref().unwrap_or_default();
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        let (mut names, mut away) = (Vec::new(), Vec::new());
        let exists = self.local.exists.iter().copied().chain(std::iter::repeat(true));
        let volumes = self.record.volumes.iter().zip(inventories).zip(exists);
        for ((volume, inventory), exists) in volumes {
            if !exists {
                // Destroyed here since: it is received anew.
                continue;
            }
            let wanted = bases.iter().find(|(id, _)| *id == volume.id).map(|(_, guid)| *guid);
            match wanted.map(|guid| (guid, inventory.snapshot(guid))) {
                None => away.push(volume.dataset.clone()),
                Some((_, Some(snapshot))) => names.push(snapshot.name.clone()),
                Some((guid, None)) => {
                    let text = format!(
                        "{} has not got the snapshot that it is to be set back to (guid {guid})",
                        volume.dataset
                    );
                    return Err(Failure::new(Remedy::Operator, FailureCode::NoBase, text));
                }
            }
        }
        Ok((names, away))
    }

    fn step_back_failed(&mut self, ctx: &mut Ctx, failure: Failure) {
        self.standby.stepping_back.retry_at = ctx.now.mono_ms + RETRY_MS;
        self.local.inventories = None;
        if let Some((peer, question)) = self.standby.stepping_back.asked.take() {
            let answer = Err(failure.clone());
            self.say(ctx, peer, Body::StepBackReply { question, answer });
        }
        self.resolved(ctx, Err(failure.clone()));
        self.raise(ctx, failure);
    }

    pub(crate) fn step_back_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.standby.stepping_back.op.take_if(|mine| *mine == op).is_none() {
            return;
        }
        let aside = match outcome {
            Ok(Outcome::SetAside { aside }) => aside,
            Ok(_) => unreachable!("setting aside is answered by where it is kept"),
            Err(failure) => return self.step_back_failed(ctx, failure),
        };
        let names: Vec<String> = aside.into_iter().flatten().map(|d| d.to_string()).collect();
        if !names.is_empty() {
            let text = format!("what only this node had is kept: {}", names.join(", "));
            self.note(ctx, text);
        }
        self.record.step_back = None;
        self.record.was_primary = false;
        self.standby.equal_wall_ms = None;
        self.persist(ctx);
        self.upkeep.forget_holds();
        self.upkeep.mirror_due = true;
        self.upkeep.tidy_due = true;
        self.local.forget();
        self.clear_alarm(ctx);
        self.resolved(ctx, Ok(names.clone()));
        if let Some((peer, question)) = self.standby.stepping_back.asked.take() {
            self.say(ctx, peer, Body::StepBackReply { question, answer: Ok(names) });
        }
    }

    pub(crate) fn step_back_timeout(&self) -> Option<u64> {
        let due = self.record.step_back.is_some()
            && self.record.role.is_standby()
            && self.standby.stepping_back.op.is_none()
            && self.local.looking.is_none()
            && matches!(self.service, Service::Halted);
        due.then_some(self.standby.stepping_back.retry_at).filter(|at| *at > 0)
    }
}
