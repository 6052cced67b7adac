//! The lease: how a standby may know, without an answer, that its primary has stopped.
//!
//! The primary asks its standby for a lease again and again. It counts from the moment it *asked*, for a
//! little less than its length by its own clock; the standby counts from the moment it *answered*, which
//! is later, for a little more by its. So as long as the two clocks' rates differ by less than the two
//! margins, the primary's lease has ended before the standby's wait has.
//!
//! ```text
//!  primary   ask ├───────── held: length − 5 % ─────────┤
//!                         ├─ stop ─┤ kill ▲ by the supervisor, whatever the daemon does
//!  standby      answer ├──────────── not before: length + 5 % ─────────┤ may take over
//! ```
//!
//! A primary that cannot renew asks its workload to stop a third of the length before the end; whoever
//! supervises the workload kills what is left at the end (see `Effect::Lease`), also while the daemon is
//! dead or stopped. A standby that restarts waits a whole length from its start. The price: a unit with a
//! lease stops when its standby cannot be reached for as long as that. An operator may waive it
//! (`start-alone`), and a failover waives it until the old primary is a standby again.

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, QuestionId};
use crate::io::Effect;
use crate::limits::{LEASE_DRIFT_PERCENT, LEASE_RENEW_PART, LEASE_STOP_PART, LEASE_WAIVED_MS};
use crate::message::Body;
use crate::node::PlantedBug;
use crate::record::Role;
use crate::service::Work;
use crate::unit::Unit;

/// What a primary holds, and what a standby gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lease {
    /// Held until then; `None`: not held.
    until: Option<u64>,
    /// What was asked last, and when.
    asked: Option<(QuestionId, u64)>,
    ask_at: u64,
    /// Nobody is there to ask, and somebody took that on himself.
    waived: bool,
    /// As a standby: the primary may go on until then. `None`: it never asked.
    pub(crate) given_until: Option<u64>,
}

/// For how long a lease of this length is held, milliseconds.
fn held_ms(length_ms: u64) -> u64 {
    length_ms - length_ms * LEASE_DRIFT_PERCENT / 100
}

/// For how long a standby waits after it gave one, milliseconds.
fn waited_ms(length_ms: u64) -> u64 {
    length_ms + length_ms * LEASE_DRIFT_PERCENT / 100
}

impl Unit {
    /// After a start: what was given before is not known, and may have been given just now.
    pub(crate) fn boot_lease(&mut self, now_ms: u64) {
        let leased = self.record.leased_epoch == Some(self.record.epoch.number);
        if let (Some(length), true) =
            (self.record.lease_ms, leased && self.record.role.is_standby())
        {
            self.lease.given_until = Some(now_ms + waited_ms(length));
        }
    }

    /// Whether the volumes may be written here as far as a lease is concerned.
    pub(crate) fn lease_allows(&self, now_ms: u64) -> bool {
        self.record.lease_ms.is_none()
            || self.lease.waived
            || self.lease.until.is_some_and(|until| now_ms < until)
    }

    /// Until when the workload may run; `None`: there is no lease.
    pub(crate) fn lease_until(&self, now_ms: u64) -> Option<u64> {
        self.record.lease_ms?;
        match self.lease.waived {
            true => Some(now_ms + LEASE_WAIVED_MS),
            false => Some(self.lease.until.unwrap_or(now_ms)),
        }
    }

    /// It goes on without a lease until somebody is there to give one.
    pub(crate) fn waive_lease(&mut self, ctx: &mut Ctx) {
        if self.record.lease_ms.is_some() {
            self.lease.waived = true;
            self.say_lease(ctx);
        }
    }

    /// Forgets what was held and given: another epoch asks anew.
    pub(crate) fn lease_ends(&mut self) {
        self.lease = Lease::default();
    }

    /// Tells the supervisor.
    pub(crate) fn say_lease(&self, ctx: &mut Ctx) {
        let until_ms = self.lease_until(ctx.now.mono_ms);
        ctx.push(Effect::Lease { unit: self.id(), until_ms });
    }

    /// When the workload is asked to stop, unless the lease is renewed before.
    fn lease_stop_at(&self) -> Option<u64> {
        let (length, until) = (self.record.lease_ms?, self.lease.until?);
        let runs = self.service.may_write() || matches!(self.work, Work::Running { .. });
        let due = until.saturating_sub(length / LEASE_STOP_PART);
        (runs && !self.lease.waived && self.record.role.is_primary()).then_some(due)
    }

    pub(crate) fn advance_lease(&mut self, ctx: &mut Ctx) {
        let Some(length) = self.record.lease_ms.filter(|_| self.record.role.is_primary()) else {
            return;
        };
        let now = ctx.now.mono_ms;
        if now >= self.lease.ask_at
            && !self.claims_unsettled()
            && let Some(peer) = self.record.standbys.first().copied()
        {
            let question = ctx.new_question();
            self.lease.asked = Some((question, now));
            self.lease.ask_at = now + length / LEASE_RENEW_PART;
            // A workload that is being started was told what held when it was asked for.
            let bound = !self.lease.waived && !matches!(self.work, Work::Starting { .. });
            self.say(ctx, peer, Body::Lease { question, bound });
        }
        let lost = self.lease_stop_at().is_some_and(|at| now >= at);
        if lost && !ctx.config.planted(PlantedBug::LeaseNotStopped) {
            self.lose_lease(ctx);
        }
    }

    /// It could not be renewed: the workload stops while there is time to do it well.
    fn lose_lease(&mut self, ctx: &mut Ctx) {
        let left = self.lease.until.map_or(0, |until| until.saturating_sub(ctx.now.mono_ms));
        self.lease.until = None;
        let text = format!(
            "{}: its lease could not be renewed, so its workload is stopped; it starts again when {} \
             answers. If that is lost for good: flocker-repl start-alone {0}",
            self.record.name,
            self.record
                .standbys
                .first()
                .map_or_else(|| "its standby".into(), |p| ctx.peer_name(*p))
        );
        let failure = Failure::new(Remedy::Operator, FailureCode::ConnectionLost, text);
        self.undo(ctx, failure.clone());
        self.raise(ctx, failure);
        self.nobody_waits_for_work(ctx);
        let text = format!("{} has lost its lease", self.record.name);
        self.drop_replicas(ctx, &Failure::new(Remedy::Retry, FailureCode::ConnectionLost, text));
        self.work = Work::Unknown;
        self.halt_within(ctx, left);
    }

    pub(crate) fn on_lease(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: QuestionId,
        bound: bool,
    ) {
        let following = matches!(self.record.role, Role::Following { .. } | Role::Ready { .. });
        let (true, true, None) = (following, self.follows(peer), &self.failover) else {
            return;
        };
        let Some(length) = self.record.lease_ms else {
            return;
        };
        if !bound {
            // It goes on without one until this answer arrives, if it does: nothing can be counted on yet. Nor on
            // one from before: it may run beyond that now.
            self.lease.given_until = None;
            if self.record.leased_epoch.take().is_some() {
                self.persist(ctx);
            }
            return self.say(ctx, peer, Body::LeaseReply { question });
        }
        let until = ctx.now.mono_ms + waited_ms(length);
        if self.record.leased_epoch != Some(self.record.epoch.number) {
            // After a restart it must be known that one was given.
            self.record.leased_epoch = Some(self.record.epoch.number);
            self.persist(ctx);
        }
        self.lease.given_until = Some(self.lease.given_until.map_or(until, |g| g.max(until)));
        self.say(ctx, peer, Body::LeaseReply { question });
    }

    pub(crate) fn on_lease_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: QuestionId,
    ) {
        let (Some((asked, at)), Some(length)) = (self.lease.asked, self.record.lease_ms) else {
            return;
        };
        if asked != question || self.record.standbys.first() != Some(&peer) {
            return;
        }
        self.lease.asked = None;
        self.lease.waived = false;
        self.lease.until = Some(at + held_ms(length));
        if self.record.role.is_primary() {
            self.say_lease(ctx);
        }
    }

    /// As a standby: how long until the lease has run out, milliseconds; `None`: it never had one.
    pub(crate) fn lease_left_ms(&self, ctx: &Ctx) -> Option<u64> {
        self.record.lease_ms?;
        if ctx.config.planted(PlantedBug::LeaseTakenEarly) {
            return self.lease.given_until.map(|_| 0);
        }
        self.lease.given_until.map(|until| until.saturating_sub(ctx.now.mono_ms))
    }

    /// For `status`, milliseconds.
    pub(crate) fn lease_shown_ms(&self, now_ms: u64) -> Option<u64> {
        self.record.lease_ms?;
        let until = match self.record.role.is_primary() {
            true => self.lease.until,
            false => self.lease.given_until,
        };
        until.map(|until| until.saturating_sub(now_ms))
    }

    pub(crate) fn lease_timeout(&self) -> Option<u64> {
        self.record.lease_ms.filter(|_| self.record.role.is_primary())?;
        let asks = !self.claims_unsettled() && !self.record.standbys.is_empty();
        let ask = asks.then_some(self.lease.ask_at);
        ask.into_iter().chain(self.lease_stop_at()).min()
    }
}
