//! Two changes of primary that nobody asked this node for: a unit that came here and cannot be brought
//! up goes back, and a standby that fails over is yielded to.

use super::{Kind, Phase};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation};
use crate::message::Body;
use crate::node::PlantedBug;
use crate::record::Role;
use crate::service::Service;
use crate::unit::Unit;

impl Unit {
    /// An activation failed: hands the unit back where nobody can have been answered. `true`: it does.
    ///
    /// Nobody was answered if the command never ran; or if it ran and the addresses by which clients
    /// find it have not come here yet.
    pub(crate) fn hand_back(&mut self, ctx: &mut Ctx, ran: bool, failure: &Failure) -> bool {
        let Some((attempt, source)) = self.standby.announce else {
            return false;
        };
        let Some((_, finals)) = self.standby.arrived.clone().filter(|(a, _)| *a == attempt) else {
            return false;
        };
        let unreachable = self.record.workload.as_ref().is_some_and(|w| !w.addresses.is_empty());
        // A later start whose command never ran does not take back what an earlier one may have said.
        self.standby.answered |= ran && !unreachable;
        let may = !self.standby.answered;
        let may = may || ctx.config.planted(PlantedBug::HandBackAfterAnswer);
        if !may || self.cutover.is_some() || self.record.role != Role::Serving {
            return false;
        }
        if !ctx.connected(source) || !self.record.standbys.contains(&source) {
            return false;
        }
        let (announced, failure) = (attempt, failure.clone());
        self.say(
            ctx,
            source,
            Body::ActivationFailed { attempt: announced, failure, handing_back: true },
        );
        let attempt = self.next_attempt(ctx);
        let op = ctx.run(self.id(), crate::unit::Op::Cutover, self.stop_action());
        self.begin_cutover(ctx, Kind::HandBack { finals }, attempt, source, Phase::Quiesce { op });
        if let Some(c) = &mut self.cutover {
            c.stopped_at = Some(ctx.now.mono_ms);
        }
        self.service = Service::Stopped;
        self.report_phase(ctx);
        true
    }

    /// A standby fails over, and this primary is there to answer it.
    pub(crate) fn on_yield(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        next: Epoch,
        incarnation: Incarnation,
    ) {
        if let Some(c) = &self.cutover
            && c.attempt == attempt
        {
            return; // Asked again while it is being done.
        }
        let refuse = |code, text: String| Err(Failure::new(Remedy::Retry, code, text));
        let name = &self.record.name;
        let answer = if attempt.issuer != peer || self.is_refused(attempt) {
            refuse(FailureCode::Cancelled, format!("{name}: attempt {attempt} is over"))
        } else if !self.record.standbys.contains(&peer) {
            refuse(FailureCode::Conflict, format!("{name}: {} is no standby", ctx.peer_name(peer)))
        } else if self.record.epoch.number.checked_add(1) != Some(next.number)
            || next.owner != peer
            || next.attempt != attempt
        {
            refuse(FailureCode::Conflict, format!("{name}: epoch {next} does not follow"))
        } else if self.record.role != Role::Serving || self.cutover.is_some() {
            let text = format!("{name}: another change of primary is under way");
            refuse(FailureCode::Busy, text)
        } else if self.claims_unsettled() && self.record.standbys.iter().any(|s| *s != peer) {
            // Another standby may have taken over: this epoch may not be this node's to give any more.
            let text = format!("{name}: not up here; another standby is still to be asked");
            refuse(FailureCode::Busy, text)
        } else {
            Ok(())
        };
        if let Err(failure) = answer {
            return self.say(ctx, peer, Body::YieldRefused { attempt, failure });
        }
        let op = ctx.run(self.id(), crate::unit::Op::Cutover, self.stop_action());
        let was_up = self.service.may_write();
        if !was_up {
            // Whatever it still wanted to know before it serves, it asks anew if this is taken back.
            self.service = Service::Stopped;
        }
        let kind = Kind::Yield { incarnation, next, was_up };
        self.begin_cutover(ctx, kind, attempt, peer, Phase::Quiesce { op });
        if let Some(c) = &mut self.cutover {
            c.stopped_at = Some(ctx.now.mono_ms);
        }
        self.report_phase(ctx);
    }
}
