//! The start-up rule and the workload: when the unit's volumes are writable here, and what runs.
//!
//! ```text
//!                    running            no standbys, or start_alone
//!   New ─▶ Probing ──────────▶ Up ◀──┐  ┌──────────────┐
//!             │ not running          │  │              ▼
//!             └─────▶ Claiming ──────┼──┴─────▶ Activating ──▶ Up
//!                      all answered  │             │  ▲ later
//!                                    │             ▼  │
//!   Halting ──▶ Halted               │           Failed
//!     ▲  (standby, handed over,      │
//!     │   or its lease is lost:      └── Stopped (a cutover has stopped and fenced)
//!     │   stopped and fenced)            AwaitLease (before Activating, where a lease is needed)
//! ```
//!
//! Postconditions. `Up`: the volumes are reachable and writable by this node's workload, and by
//! nobody else's. `Halted`: no workload of this unit runs here and its volumes are fenced.

mod describe;
mod work;

pub(crate) use describe::Offer;
pub(crate) use work::Work;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Fingerprint, OpId, QuestionId};
use crate::io::{Action, Outcome};
use crate::limits::{BACKOFF_LAST_MS, CLAIM_ALARM_MS, RESEND_MS, RETRY_MS};
use crate::message::{ActivationTimes, Body};
use crate::node::PlantedBug;
use crate::record::Role;
use crate::unit::{Op, Unit};

/// Whether the volumes may be written here.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    /// Nothing begun.
    New,
    /// Is the workload still running from before?
    Probing { op: OpId },
    /// A lease is needed, and not held yet.
    AwaitLease,
    /// Asking the standbys whether they know better.
    Claiming { question: QuestionId, since: u64, ask_at: u64, answered: BTreeSet<Fingerprint> },
    /// Making the volumes reachable.
    Activating { op: OpId, since: u64 },
    /// Writable here.
    Up { paths: Option<Vec<PathBuf>>, mount_ms: u64 },
    /// Could not be made reachable.
    Failed { retry_at: u64 },
    /// A cutover stopped the workload; it goes on or takes it back.
    Stopped,
    /// Standby or handed over: making sure that nothing runs and nothing can be written.
    Halting { op: OpId, stage: Halt },
    /// Nothing runs, nothing can be written.
    Halted,
    /// Halting did not work; tried again.
    HaltFailed { retry_at: u64 },
}

/// What halting is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// Stopping the workload.
    Work,
    /// Taking its addresses off.
    Network,
    /// Making its volumes impossible to write.
    Fence,
}

impl Service {
    /// Whether anything may write the volumes in this state.
    pub(crate) fn may_write(&self) -> bool {
        match self {
            Service::Activating { .. } | Service::Up { .. } => true,
            Service::New
            | Service::Probing { .. }
            | Service::AwaitLease
            | Service::Claiming { .. }
            | Service::Failed { .. }
            | Service::Stopped
            | Service::Halting { .. }
            | Service::Halted
            | Service::HaltFailed { .. } => false,
        }
    }
}

fn backoff(first: u64, tries: u32) -> u64 {
    first.saturating_mul(1 << tries.min(10)).min(BACKOFF_LAST_MS)
}

impl Unit {
    /// An owner that does not know yet whether somebody took over: nothing leaves it but that question.
    pub(crate) fn claims_unsettled(&self) -> bool {
        self.record.role.is_primary()
            && match self.service {
                Service::New
                | Service::Probing { .. }
                | Service::Claiming { .. }
                | Service::Halting { .. }
                | Service::Halted
                | Service::HaltFailed { .. } => true,
                Service::Failed { .. } => matches!(self.work, Work::Unknown),
                Service::AwaitLease
                | Service::Activating { .. }
                | Service::Up { .. }
                | Service::Stopped => false,
            }
    }

    /// Begins what the role demands: to serve, or to make sure that nothing is served.
    pub(crate) fn enter_role(&mut self, ctx: &mut Ctx) {
        match self.record.role {
            Role::Serving | Role::Leaving { .. } => {
                let text = format!("{} starts anew on this node", self.record.name);
                let failure = Failure::new(Remedy::Retry, FailureCode::Cancelled, text);
                self.drop_replicas(ctx, &failure);
                if ctx.config.planted(PlantedBug::SecondWorkload) {
                    self.work = Work::Stopped;
                    return self.begin_claiming(ctx);
                }
                let op = ctx.run(self.id(), Op::Service, self.probe_action());
                self.service = Service::Probing { op };
            }
            Role::HandedOver { .. } | Role::Following { .. } | Role::Ready { .. } => {
                self.halt(ctx);
            }
        }
    }

    /// The unit is this node's to serve, and nobody has to be asked. `at_rest`: nothing of it runs here; where
    /// that is not proven, as after a start of ours, it begins as a start does.
    pub(crate) fn come_to_serve(&mut self, ctx: &mut Ctx, at_rest: bool) {
        if at_rest {
            self.work_has_stopped(ctx);
            self.activate(ctx);
        } else {
            self.nobody_waits_for_work(ctx);
            self.enter_role(ctx);
        }
    }

    fn halt(&mut self, ctx: &mut Ctx) {
        self.halt_within(ctx, u64::MAX);
    }

    /// Stops and fences; the workload gets no longer than this to stop, milliseconds.
    pub(crate) fn halt_within(&mut self, ctx: &mut Ctx, most_ms: u64) {
        let mut action = self.stop_action();
        if let Action::StopWorkload { limit_ms, .. } = &mut action {
            *limit_ms = (*limit_ms).min(most_ms);
        }
        let op = ctx.run(self.id(), Op::Service, action);
        self.service = Service::Halting { op, stage: Halt::Work };
    }

    /// How this unit's workload is looked for.
    pub(crate) fn probe_action(&self) -> Action {
        Action::ProbeWorkload { program: self.record.workload.as_ref().map(|w| w.program.clone()) }
    }

    /// How this unit's workload is stopped.
    pub(crate) fn stop_action(&self) -> Action {
        let workload = self.record.workload.as_ref();
        Action::StopWorkload {
            program: workload.map(|w| w.program.clone()),
            state: None,
            signal: workload.map(|w| w.stop_signal).unwrap_or_default(),
            before: None,
            limit_ms: self.stop_limit_ms(),
        }
    }

    pub(crate) fn stop_limit_ms(&self) -> u64 {
        self.record.workload.as_ref().map_or(10_000, |w| w.stop_limit_ms)
    }

    /// Makes the volumes reachable: the start-up rule, or a proof as good, is satisfied.
    pub(crate) fn activate(&mut self, ctx: &mut Ctx) {
        if !self.lease_allows(ctx.now.mono_ms) {
            self.service = Service::AwaitLease;
            // Whoever is to give it may have to hear of the unit first.
            return self.join_replicas(ctx);
        }
        let action = Action::Activate { datasets: self.datasets() };
        let op = ctx.run(self.id(), Op::Service, action);
        self.service = Service::Activating { op, since: ctx.now.mono_ms };
    }

    pub(crate) fn service_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        match &self.service {
            Service::Probing { op: mine } if *mine == op => self.probed(ctx, outcome),
            Service::Activating { op: mine, since } if *mine == op => {
                let mount_ms = ctx.now.mono_ms - since;
                self.activated(ctx, mount_ms, outcome);
            }
            Service::Halting { op: mine, stage } if *mine == op => {
                let stage = *stage;
                self.halting_went_on(ctx, stage, outcome);
            }
            // An answer to a state that is left already.
            _ => {}
        }
    }

    fn probed(&mut self, ctx: &mut Ctx, outcome: Result<Outcome, Failure>) {
        match outcome {
            Ok(Outcome::Probed { running: true }) => {
                self.work = Work::adopted();
                if self.record.workload.as_ref().is_some_and(|w| !w.wanted) {
                    // A stop was made durable and not carried out.
                    self.work = Work::Stopped;
                    self.stop_work(ctx, None);
                }
                // It runs already, so the volumes are in use whatever the standbys would answer;
                // each is asked as it connects, and a newer epoch stops the workload then.
                self.settle_leaving(ctx);
                self.activate(ctx);
            }
            Ok(Outcome::Probed { running: false }) => {
                self.work = Work::Stopped;
                let alone = self.record.start_alone && !self.strict;
                if self.record.standbys.is_empty()
                    || alone
                    || ctx.config.planted(PlantedBug::StartWithoutAsking)
                {
                    self.claims_settled(ctx);
                } else {
                    self.begin_claiming(ctx);
                }
            }
            Ok(_) => unreachable!("a probe is answered by whether it runs"),
            Err(failure) => {
                self.raise(ctx, failure);
                self.service = Service::Failed { retry_at: ctx.now.mono_ms + RETRY_MS };
                self.work = Work::Unknown;
            }
        }
    }

    fn begin_claiming(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let question = ctx.new_question();
        let answered = BTreeSet::new();
        self.service = Service::Claiming { question, since: now, ask_at: now, answered };
    }

    /// Nobody knows a newer epoch: this node may serve.
    fn claims_settled(&mut self, ctx: &mut Ctx) {
        self.strict = false;
        self.clear_alarm(ctx);
        self.settle_leaving(ctx);
        self.activate(ctx);
    }

    /// A restart in the middle of a cutover before its commit takes it back.
    fn settle_leaving(&mut self, ctx: &mut Ctx) {
        if let Role::Leaving { attempt, target } = self.record.role
            && self.cutover.is_none()
        {
            self.set_role(ctx, Role::Serving);
            self.say(ctx, target, Body::Abandon { attempt });
            self.note(ctx, format!("migration attempt {attempt} was taken back at start"));
        }
    }

    pub(crate) fn on_claim_reply(&mut self, ctx: &mut Ctx, peer: Fingerprint, answers: QuestionId) {
        let Service::Claiming { question, answered, .. } = &mut self.service else {
            return;
        };
        if *question != answers {
            return;
        }
        answered.insert(peer);
        if self.record.standbys.iter().all(|s| answered.contains(s)) {
            self.claims_settled(ctx);
        }
    }

    pub(crate) fn service_peer_up(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if let Service::Claiming { ask_at, .. } = &mut self.service {
            *ask_at = ctx.now.mono_ms;
        } else if self.record.role.is_primary()
            && self.record.standbys.contains(&peer)
            && !self.claims_unsettled()
        {
            // A workload that was adopted while the standby was away: does it know better?
            let question = ctx.new_question();
            let serves = self.service.may_write() || matches!(self.work, Work::Running { .. });
            self.say(ctx, peer, Body::Claim { question, serves });
        }
    }

    /// The operator's word, in place of the standbys'.
    pub(crate) fn start_alone(&mut self, ctx: &mut Ctx) -> Result<(), Failure> {
        if matches!(self.service, Service::AwaitLease) {
            self.note(ctx, "goes on without a lease, on the operator's word");
            self.waive_lease(ctx);
            return Ok(());
        }
        if !matches!(self.service, Service::Claiming { .. }) {
            return Err(Failure::refused(
                FailureCode::BadRequest,
                format!("{} is not waiting for its standbys", self.record.name),
            ));
        }
        self.note(ctx, "made writable on the operator's word, without the standbys' answer");
        self.decide();
        self.persist(ctx);
        self.waive_lease(ctx);
        self.claims_settled(ctx);
        Ok(())
    }

    fn activated(&mut self, ctx: &mut Ctx, mount_ms: u64, outcome: Result<Outcome, Failure>) {
        match outcome {
            Ok(Outcome::Activated { paths }) => {
                // A unit is at rest where any of its volumes has no path here.
                let paths: Option<Vec<PathBuf>> = paths.into_iter().collect();
                self.service = Service::Up { paths, mount_ms };
                self.local.inventories = None;
                self.local.looking = None;
                if self.standby.announce.is_none() {
                    self.look(ctx);
                }
                self.join_replicas(ctx);
            }
            Ok(_) => unreachable!("an activation is answered by paths"),
            Err(failure) => {
                self.service = Service::Failed { retry_at: ctx.now.mono_ms + RETRY_MS };
                if failure.code == FailureCode::NotFound && self.record.tree.is_some() {
                    // One of its volumes may have been destroyed while nobody looked.
                    self.look(ctx);
                }
                self.activation_failed(ctx, false, failure);
            }
        }
    }

    /// `ran`: the workload may have run before it failed.
    fn activation_failed(&mut self, ctx: &mut Ctx, ran: bool, failure: Failure) {
        if self.hand_back(ctx, ran, &failure) {
            return self.raise(ctx, failure);
        }
        if let Some((attempt, source)) = self.standby.announce {
            self.say(
                ctx,
                source,
                Body::ActivationFailed { attempt, failure: failure.clone(), handing_back: false },
            );
        }
        self.undo_finished(ctx, Some(&failure));
        self.raise(ctx, failure);
    }

    fn halting_went_on(&mut self, ctx: &mut Ctx, stage: Halt, outcome: Result<Outcome, Failure>) {
        match (stage, outcome) {
            (Halt::Fence, Ok(_)) => self.service = Service::Halted,
            // A replica that was not received yet cannot be written either.
            (Halt::Fence, Err(f)) if f.code == FailureCode::NotFound => {
                self.service = Service::Halted;
            }
            (Halt::Work, Ok(_)) => {
                self.work_has_stopped(ctx);
                match self.network_action(false) {
                    Some(action) => self.halt_next(ctx, Halt::Network, action),
                    None => self.halt_fence(ctx),
                }
            }
            (Halt::Network, Ok(_)) => {
                self.network_is(false);
                self.halt_fence(ctx);
            }
            (_, Err(failure)) => {
                self.service = Service::HaltFailed { retry_at: ctx.now.mono_ms + RETRY_MS };
                self.raise(ctx, failure);
            }
        }
    }

    fn halt_fence(&mut self, ctx: &mut Ctx) {
        let action = Action::Fence { datasets: self.datasets() };
        self.halt_next(ctx, Halt::Fence, action);
    }

    fn halt_next(&mut self, ctx: &mut Ctx, stage: Halt, action: Action) {
        let op = ctx.run(self.id(), Op::Service, action);
        self.service = Service::Halting { op, stage };
    }

    // ---- what is due --------------------------------------------------------------------------

    pub(crate) fn advance_service(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let leased = self.lease_allows(now);
        match &mut self.service {
            Service::Claiming { question, since, ask_at, answered } => {
                let (question, since, due) = (*question, *since, now >= *ask_at);
                if due {
                    *ask_at = now + RESEND_MS;
                    let silent: Vec<_> = (self.record.standbys.iter().copied())
                        .filter(|s| !answered.contains(s))
                        .collect();
                    for peer in &silent {
                        self.say(ctx, *peer, Body::Claim { question, serves: false });
                    }
                    if now >= since + CLAIM_ALARM_MS {
                        self.alarm_unanswered(ctx, &silent);
                    }
                }
            }
            Service::Failed { retry_at, .. } if now >= *retry_at => {
                if matches!(self.work, Work::Unknown) {
                    self.enter_role(ctx);
                } else {
                    self.activate(ctx);
                }
            }
            Service::HaltFailed { retry_at, .. } if now >= *retry_at => self.halt(ctx),
            // A lease that was lost: everything begins anew, with the question who owns it.
            Service::Halted if self.record.role == Role::Serving => self.begin_claiming(ctx),
            Service::AwaitLease if leased => {
                self.clear_alarm(ctx);
                self.activate(ctx);
            }
            _ => {}
        }
        self.advance_work(ctx);
        self.announce(ctx);
    }

    fn alarm_unanswered(&mut self, ctx: &mut Ctx, silent: &[Fingerprint]) {
        let names: Vec<_> = silent.iter().map(|p| ctx.peer_name(*p)).collect();
        let text = format!(
            "{}: not started: {} did not say that no newer epoch is known there; \
             if it is lost for good: flocker-repl start-alone {0}",
            self.record.name,
            names.join(", ")
        );
        self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::ConnectionLost, text));
    }

    /// A unit that came here by a cutover: tell the old primary once it runs.
    fn announce(&mut self, ctx: &mut Ctx) {
        let Some((attempt, source)) = self.standby.announce else {
            return;
        };
        if self.fully_up() && self.network_up() {
            self.standby.announce = None;
            self.served_again(ctx);
            self.standby.last_times = Some(self.activation_times());
            self.standby.announced = Some((attempt, self.activation_times()));
            self.clear_alarm(ctx);
            self.say_activated(ctx, source, attempt);
        }
    }

    pub(crate) fn activation_times(&self) -> ActivationTimes {
        let mount_ms = match self.service {
            Service::Up { mount_ms, .. } => mount_ms,
            _ => 0,
        };
        let (start_ms, theirs) = match &self.work {
            Work::Running { start_ms, theirs, .. } => (*start_ms, theirs.clone()),
            _ => (0, Vec::new()),
        };
        ActivationTimes { mount_ms, start_ms, theirs }
    }

    pub(crate) fn say_activated(&self, ctx: &mut Ctx, source: Fingerprint, attempt: AttemptId) {
        if let Some((announced, times)) = &self.standby.announced
            && *announced == attempt
        {
            self.say(ctx, source, Body::Activated { attempt, times: times.clone() });
        }
    }

    pub(crate) fn service_timeout(&self) -> Option<u64> {
        let service = match &self.service {
            Service::Claiming { ask_at, .. } => Some(*ask_at),
            Service::Failed { retry_at, .. } | Service::HaltFailed { retry_at, .. } => {
                Some(*retry_at)
            }
            _ => None,
        };
        let work = match &self.work {
            Work::Ended { again_at, .. }
                if matches!(self.service, Service::Up { .. }) && !self.stopping_for_cutover() =>
            {
                *again_at
            }
            _ => None,
        };
        service.into_iter().chain(work).min()
    }
}
