//! The source's side of a planned move. DESIGN "Cutover" is the specification.
//!
//! ```text
//!  migrate        ok          converged     stopped    fenced      taken
//!  ──────▶ Preflight ─▶ Converge ─▶ Quiesce ─▶ Fence ─▶ Snapshot ─▶ Transfer ─▶ Prepare
//!              │            │          │         │         │      sent and    │      │ ready:
//!              │            │          │         │         │      unwritten   │      │ durable HandedOver
//!              ▼            ▼          ▼         ▼         ▼                  ▼      ▼
//!            Undo ◀─────────┴──────────┴─────────┴─────────┴──────────────────┘    Commit
//!   writable again, workload running                     ▲   refused, from that      │ taken
//!                                                        └── incarnation ────────────┤
//!                                                                                    ▼
//!                                                            Done ◀── runs ──── Activating
//! ```
//!
//! Before `Commit` any failure, and any restart, is undone here alone: the attempt's number is
//! burnt, the unit is writable, its workload runs. From `Commit` on only the target's answer counts;
//! the volumes stay fenced, and a restart asks again. What survives a failed attempt: its number in
//! `last_attempt` and the snapshots it took, which upkeep collects.

use flocker_store::{Guid, Snapshot};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, RequestId, VolumeId};
use crate::io::{Action, EventKind, MigrationReport, Outcome, Reply, RoundReport};
use crate::limits::{
    ACTIVATION_LIMIT_MS, ANSWER_LIMIT_MS, CONVERGE_GAIN_PERCENT, CONVERGE_ROUNDS, CONVERGED_MS,
    FINAL_TRANSFER_LIMIT_MS, RESEND_MS, SETTLE_ALARM_MS, STOPPED_PHASE_LIMIT_MS,
};
use crate::message::{ActivationTimes, Body};
use crate::node::PlantedBug;
use crate::record::{Answer, Role};
use crate::service::{Service, Work};
use crate::unit::{Op, Unit};

/// A move under way.
#[derive(Debug)]
pub(crate) struct Cutover {
    request: Option<RequestId>,
    pub(crate) attempt: AttemptId,
    pub(crate) target: Fingerprint,
    phase: Phase,
    /// When the phase began, monotonic milliseconds.
    since: u64,
    begun: u64,
    /// When the workload began to be stopped.
    stopped_at: Option<u64>,
    parts: Vec<(String, u64)>,
    rounds: Vec<RoundReport>,
    workload_wanted: bool,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Phase {
    Preflight { ask_at: u64 },
    Converge { rounds: u32, last_ms: Option<u64> },
    Quiesce { op: OpId },
    Fence { op: OpId },
    Snapshot { op: OpId, taken: Now },
    Transfer { finals: Vec<Snapshot>, taken: Now, verify: Option<OpId>, begun: bool, sent: bool },
    Prepare { finals: Vec<Snapshot>, ask_at: u64 },
    Commit,
    Activating { ask_at: u64 },
    Undo { reason: Failure },
}

impl Phase {
    fn word(&self) -> &'static str {
        match self {
            Phase::Preflight { .. } => "preflight",
            Phase::Converge { .. } => "converge",
            Phase::Quiesce { .. } => "quiesce",
            Phase::Fence { .. } => "fence",
            Phase::Snapshot { .. } => "snapshot",
            Phase::Transfer { .. } => "transfer",
            Phase::Prepare { .. } => "prepare",
            Phase::Commit => "commit",
            Phase::Activating { .. } => "activate",
            Phase::Undo { .. } => "undo",
        }
    }

    /// How long the phase may last before the cutover is taken back, milliseconds.
    fn limit_ms(&self, stop_limit_ms: u64) -> Option<u64> {
        match self {
            Phase::Preflight { .. } | Phase::Prepare { .. } => Some(ANSWER_LIMIT_MS),
            Phase::Quiesce { .. } => Some(stop_limit_ms + STOPPED_PHASE_LIMIT_MS),
            Phase::Fence { .. } | Phase::Snapshot { .. } => Some(STOPPED_PHASE_LIMIT_MS),
            Phase::Transfer { .. } => Some(FINAL_TRANSFER_LIMIT_MS),
            Phase::Activating { .. } => Some(ACTIVATION_LIMIT_MS),
            Phase::Converge { .. } | Phase::Commit | Phase::Undo { .. } => None,
        }
    }

    /// Whether the workload is stopped, or about to be.
    fn is_stopped(&self) -> bool {
        match self {
            Phase::Quiesce { .. }
            | Phase::Fence { .. }
            | Phase::Snapshot { .. }
            | Phase::Transfer { .. }
            | Phase::Prepare { .. }
            | Phase::Commit
            | Phase::Activating { .. } => true,
            Phase::Preflight { .. } | Phase::Converge { .. } | Phase::Undo { .. } => false,
        }
    }
}

impl Unit {
    // ---- what other machines ask --------------------------------------------------------------

    pub(crate) fn cutover_target(&self) -> Option<Fingerprint> {
        self.cutover.as_ref().map(|c| c.target)
    }

    pub(crate) fn cutover_converging(&self) -> bool {
        self.cutover.as_ref().is_some_and(|c| matches!(c.phase, Phase::Converge { .. }))
    }

    /// Regular snapshots and the workload's restarts wait.
    pub(crate) fn stopping_for_cutover(&self) -> bool {
        self.cutover.as_ref().is_some_and(|c| c.phase.is_stopped())
    }

    /// Final snapshots are kept until the attempt is over.
    pub(crate) fn cutover_needs(&self, at: usize) -> Option<Guid> {
        match &self.cutover.as_ref()?.phase {
            Phase::Transfer { finals, .. } | Phase::Prepare { finals, .. } => {
                finals.get(at).map(|s| s.guid)
            }
            _ => None,
        }
    }

    pub(crate) fn cutover_word(&self) -> Option<String> {
        let cutover = self.cutover.as_ref()?;
        Some(format!("migrating: {}", cutover.phase.word()))
    }

    // ---- begin --------------------------------------------------------------------------------

    pub(crate) fn migrate(&mut self, ctx: &mut Ctx, request: RequestId, target: Fingerprint) {
        if let Err(failure) = self.may_migrate(ctx, target) {
            return ctx.reply(request, Err(failure));
        }
        self.record.last_attempt += 1;
        let attempt =
            AttemptId { issuer: ctx.config.fingerprint, number: self.record.last_attempt };
        let workload_wanted = self.record.workload.as_ref().is_some_and(|w| w.wanted);
        self.set_role(ctx, Role::Leaving { attempt, target });
        self.cutover = Some(Cutover {
            request: Some(request),
            attempt,
            target,
            phase: Phase::Preflight { ask_at: ctx.now.mono_ms },
            since: ctx.now.mono_ms,
            begun: ctx.now.mono_ms,
            stopped_at: None,
            parts: Vec::new(),
            rounds: Vec::new(),
            workload_wanted,
            notes: Vec::new(),
        });
        self.report_phase(ctx);
    }

    fn may_migrate(&self, ctx: &Ctx, target: Fingerprint) -> Result<(), Failure> {
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let (name, to) = (&self.record.name, ctx.peer_name(target));
        if self.cutover.is_some() {
            return refuse(FailureCode::Busy, format!("{name} is being migrated already"));
        }
        match self.record.role {
            Role::Serving => {}
            Role::Leaving { .. } => {
                let text = format!("{name}: an earlier migration is still being taken back");
                return refuse(FailureCode::Busy, text);
            }
            Role::HandedOver { attempt, target, .. } => {
                let text = format!(
                    "{name} was handed over to {} (attempt {attempt}), whose answer is awaited",
                    ctx.peer_name(target)
                );
                return refuse(FailureCode::Busy, text);
            }
            Role::Following { source } | Role::Ready { source, .. } => {
                let text = format!(
                    "{name} is primary on {}; run `flocker-repl migrate` there",
                    ctx.peer_name(source)
                );
                return refuse(FailureCode::BadRequest, text);
            }
        }
        if !self.record.standbys.contains(&target) {
            let text = format!(
                "{to} holds no replica of {name}; run `flocker-repl protect {} --to {to}` first",
                self.record.volumes[0].dataset
            );
            return refuse(FailureCode::BadRequest, text);
        }
        if !ctx.connected(target) {
            return refuse(FailureCode::ConnectionLost, format!("{to} is not connected"));
        }
        if self.record.paused {
            let text = format!("{name} is paused; run `flocker-repl resume {name}` first");
            return refuse(FailureCode::BadRequest, text);
        }
        if !matches!(self.service, Service::Up { .. }) {
            return refuse(FailureCode::Busy, format!("{name} is not up here yet"));
        }
        Ok(())
    }

    fn report_phase(&self, ctx: &mut Ctx) {
        if let Some(c) = &self.cutover {
            let kind = EventKind::Phase { attempt: c.attempt, phase: c.phase.word().into() };
            ctx.report(self.record.id, &self.record.name, kind);
        }
    }

    fn enter(&mut self, ctx: &mut Ctx, phase: Phase) {
        let now = ctx.now.mono_ms;
        if let Some(c) = &mut self.cutover {
            if c.stopped_at.is_some() && c.phase.is_stopped() {
                c.parts.push((c.phase.word().into(), now - c.since));
            }
            c.phase = phase;
            c.since = now;
        }
        self.report_phase(ctx);
    }

    // ---- preflight and convergence ------------------------------------------------------------

    pub(crate) fn on_preflight_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        answer: Result<(), Failure>,
    ) {
        let Some(c) = &self.cutover else {
            return;
        };
        if c.target != peer || c.attempt != attempt || !matches!(c.phase, Phase::Preflight { .. }) {
            return;
        }
        match answer {
            Ok(()) => self.enter(ctx, Phase::Converge { rounds: 0, last_ms: None }),
            Err(failure) => self.undo(ctx, failure),
        }
    }

    /// A round to some standby has ended well; `None`: there was nothing to send.
    pub(crate) fn cutover_round_done(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        report: Option<RoundReport>,
    ) {
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.target != peer {
            return;
        }
        c.rounds.extend(report.clone());
        match &mut c.phase {
            Phase::Converge { rounds, last_ms } => {
                *rounds += 1;
                let took = report.map_or(0, |r| r.duration_ms);
                let gained = match *last_ms {
                    Some(before) => took * 100 <= before * CONVERGE_GAIN_PERCENT,
                    None => true,
                };
                *last_ms = Some(took);
                if took <= CONVERGED_MS || !gained || *rounds >= CONVERGE_ROUNDS {
                    self.quiesce(ctx);
                }
            }
            Phase::Transfer { begun, sent, .. } if *begun => {
                *sent = true;
                self.transfer_went_on(ctx);
            }
            _ => {}
        }
    }

    pub(crate) fn cutover_round_failed(
        &mut self,
        ctx: &mut Ctx,
        was_final: bool,
        failure: Failure,
    ) {
        let in_a_row = self
            .cutover_target()
            .and_then(|t| self.replicas.get(&t))
            .is_some_and(|r| r.keeps_failing());
        let Some(c) = &mut self.cutover else {
            return;
        };
        match &mut c.phase {
            // A stale inventory is looked at again; anything else ends the attempt.
            Phase::Converge { .. } if failure.remedy == Remedy::Replan && !in_a_row => {}
            Phase::Transfer { begun, .. } if failure.remedy == Remedy::Replan && was_final => {
                *begun = false;
            }
            Phase::Transfer { begun: false, .. } => {}
            Phase::Converge { .. } | Phase::Transfer { .. } => self.undo(ctx, failure),
            _ => {}
        }
    }

    // ---- the workload is stopped --------------------------------------------------------------

    fn quiesce(&mut self, ctx: &mut Ctx) {
        let limit_ms = self.stop_limit_ms();
        let op = ctx.run(self.id(), Op::Cutover, Action::StopWorkload { limit_ms });
        if let Some(c) = &mut self.cutover {
            c.stopped_at = Some(ctx.now.mono_ms);
        }
        self.enter(ctx, Phase::Quiesce { op });
    }

    fn fence(&mut self, ctx: &mut Ctx) {
        self.work = Work::Stopped;
        self.service = Service::Stopped;
        if ctx.config.planted(PlantedBug::SkipFence) {
            return self.final_snapshot(ctx);
        }
        let op = ctx.run(self.id(), Op::Cutover, Action::Fence { datasets: self.datasets() });
        self.enter(ctx, Phase::Fence { op });
    }

    fn final_snapshot(&mut self, ctx: &mut Ctx) {
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
            Phase::Quiesce { op: mine } if *mine == op => match outcome {
                Ok(_) => self.fence(ctx),
                Err(failure) => self.undo(ctx, failure),
            },
            Phase::Fence { op: mine } if *mine == op => match outcome {
                Ok(_) => self.final_snapshot(ctx),
                Err(failure) => self.undo(ctx, failure),
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

    fn begin_transfer(&mut self, ctx: &mut Ctx, finals: Vec<Snapshot>, taken: Now) {
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
    fn transfer_went_on(&mut self, ctx: &mut Ctx) {
        let Some(c) = &self.cutover else {
            return;
        };
        if let Phase::Transfer { finals, verify: None, sent: true, .. } = &c.phase {
            let finals = finals.clone();
            self.enter(ctx, Phase::Prepare { finals, ask_at: ctx.now.mono_ms });
        }
    }

    fn next_epoch(&self, attempt: AttemptId, target: Fingerprint) -> Epoch {
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
                let (target, next) = (c.target, self.next_epoch(attempt, c.target));
                self.service = Service::Halted;
                self.drop_other_replicas(ctx);
                self.set_role(ctx, Role::HandedOver { attempt, target, incarnation, next });
                self.handed_over_at = ctx.now.mono_ms;
                self.settle_at = ctx.now.mono_ms;
                self.enter(ctx, Phase::Commit);
            }
            Err(failure) => self.undo(ctx, failure),
        }
    }

    fn drop_other_replicas(&mut self, ctx: &mut Ctx) {
        let failure = Failure::refused(FailureCode::Cancelled, "the unit was handed over");
        self.drop_replicas(ctx, &failure);
    }

    // ---- committed ----------------------------------------------------------------------------

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
        self.say(ctx, target, Body::Settle { attempt });
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
            self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::ConnectionLost, text));
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
        let Role::HandedOver { target, .. } = self.record.role else {
            return;
        };
        let left: Vec<_> = (self.record.standbys.iter())
            .filter(|s| **s != target)
            .map(|s| ctx.peer_name(*s))
            .collect();
        self.record.epoch = epoch;
        self.record.standbys.clear();
        self.set_role(ctx, Role::Following { source: target });
        self.clear_alarm(ctx);
        self.local.inventories = None;
        self.standby.equal_wall_ms = Some(ctx.now.wall_ms);
        if let Some(c) = &mut self.cutover {
            if !left.is_empty() {
                c.notes.push(format!(
                    "{} no longer follow: run `flocker-repl protect` on the new primary",
                    left.join(", ")
                ));
            }
            self.enter(ctx, Phase::Activating { ask_at: ctx.now.mono_ms + RESEND_MS });
        }
    }

    fn refused_by_target(&mut self, ctx: &mut Ctx) {
        self.set_role(ctx, Role::Serving);
        self.clear_alarm(ctx);
        let reason = Failure::new(
            Remedy::Retry,
            FailureCode::Cancelled,
            format!("{}: the target refused at the commit; nothing has moved", self.record.name),
        );
        if self.cutover.is_some() {
            self.enter(ctx, Phase::Undo { reason });
        }
        // What is fenced here has been nobody else's: no need to ask anybody.
        self.activate(ctx);
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
        let report = MigrationReport {
            name: self.record.name.clone(),
            source: ctx.config.fingerprint,
            target: c.target,
            attempt,
            epoch: self.record.epoch.number,
            rounds: std::mem::take(&mut c.rounds),
            downtime_ms: std::mem::take(&mut c.parts),
            downtime_total_ms: c.stopped_at.map_or(0, |at| now - at),
            total_ms: now - c.begun,
            notes: std::mem::take(&mut c.notes),
        };
        self.end_cutover(ctx, Ok(Reply::Migrated(Box::new(report))));
    }

    pub(crate) fn on_activation_failed(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        failure: Failure,
    ) {
        let Some(c) = &self.cutover else {
            return;
        };
        if c.target == peer && c.attempt == attempt {
            let text = format!(
                "{} has moved to {}, which could not bring it up yet and goes on trying: {}",
                self.record.name,
                ctx.peer_name(peer),
                failure.message
            );
            self.end_cutover(ctx, Err(Failure::new(Remedy::Operator, FailureCode::Workload, text)));
        }
    }

    // ---- the ways out -------------------------------------------------------------------------

    /// Takes the cutover back; only before its commit.
    pub(crate) fn undo(&mut self, ctx: &mut Ctx, reason: Failure) {
        let Role::Leaving { attempt, target } = self.record.role else {
            return;
        };
        let stopped = self.stopping_for_cutover();
        if let Some(replica) = self.replicas.get_mut(&target)
            && replica.in_final_round()
        {
            replica.down(ctx, self.record.id);
            if ctx.connected(target) {
                replica.up();
            }
        }
        self.set_role(ctx, Role::Serving);
        self.say(ctx, target, Body::Abandon { attempt });
        self.enter(ctx, Phase::Undo { reason });
        if stopped {
            // Actions of a unit are performed in order, so whatever is still being stopped or
            // fenced ends before this begins. No standby can have taken anything.
            self.work = Work::Stopped;
            self.activate(ctx);
        } else {
            self.undo_finished(ctx, None);
        }
    }

    /// The answer to the person, once the unit is served again or cannot be.
    pub(crate) fn undo_finished(&mut self, ctx: &mut Ctx, trouble: Option<&Failure>) {
        let Some(Cutover { phase: Phase::Undo { reason }, .. }) = &self.cutover else {
            return;
        };
        let mut reason = reason.clone();
        reason.message = match trouble {
            None => format!("{}; taken back, {} runs here", reason.message, self.record.name),
            Some(trouble) => format!(
                "{}; taken back, but {} is not up again yet: {}",
                reason.message, self.record.name, trouble.message
            ),
        };
        self.end_cutover(ctx, Err(reason));
    }

    pub(crate) fn end_cutover(&mut self, ctx: &mut Ctx, answer: Result<Reply, Failure>) {
        if let Some(Cutover { request: Some(request), .. }) = self.cutover.take() {
            ctx.reply(request, answer);
        }
    }

    pub(crate) fn cutover_peer_down(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(c) = &self.cutover else {
            return;
        };
        if c.target != peer {
            return;
        }
        match c.phase {
            Phase::Preflight { .. }
            | Phase::Converge { .. }
            | Phase::Quiesce { .. }
            | Phase::Fence { .. }
            | Phase::Snapshot { .. }
            | Phase::Transfer { .. }
            | Phase::Prepare { .. } => {
                let text = format!("the connection to {} was lost", ctx.peer_name(peer));
                self.undo(ctx, Failure::new(Remedy::Retry, FailureCode::ConnectionLost, text));
            }
            Phase::Commit | Phase::Activating { .. } | Phase::Undo { .. } => {}
        }
    }

    // ---- what is due --------------------------------------------------------------------------

    pub(crate) fn advance_cutover(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let limit = self.stop_limit_ms();
        let fully_up = self.fully_up();
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.phase.limit_ms(limit).is_some_and(|ms| now >= c.since + ms) {
            return self.phase_timed_out(ctx);
        }
        let (attempt, target) = (c.attempt, c.target);
        match &mut c.phase {
            Phase::Preflight { ask_at } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let wanted = c.workload_wanted;
                let kind = self.record.workload.as_ref().filter(|_| wanted).map(|w| w.kind);
                self.say(ctx, target, Body::Preflight { attempt, workload: kind });
            }
            Phase::Transfer { .. } => self.advance_transfer(ctx, target),
            Phase::Prepare { finals, ask_at } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let finals: Vec<(VolumeId, Guid)> = (self.record.volumes.iter())
                    .zip(finals.iter())
                    .map(|(v, s)| (v.id, s.guid))
                    .collect();
                let workload_wanted = c.workload_wanted;
                let next = self.next_epoch(attempt, target);
                let body = Body::Prepare { attempt, next, finals, workload_wanted };
                self.say(ctx, target, body);
            }
            Phase::Activating { ask_at } if now >= *ask_at => {
                // Taken is known; asking again brings the word that it runs, should it be lost.
                *ask_at = now + RESEND_MS;
                self.say(ctx, target, Body::Settle { attempt });
            }
            Phase::Undo { .. } if fully_up => self.undo_finished(ctx, None),
            _ => {}
        }
    }

    /// Begins the last round once the standby can take it.
    fn advance_transfer(&mut self, ctx: &mut Ctx, target: Fingerprint) {
        let ready = self.replicas.get(&target).is_some_and(|r| r.is_idle())
            && self.local.inventories.is_some();
        let Some(Cutover { phase: Phase::Transfer { finals, taken, begun, .. }, .. }) =
            &mut self.cutover
        else {
            return;
        };
        if ready && !*begun {
            *begun = true;
            let (finals, taken) = (finals.clone(), *taken);
            self.begin_round(ctx, target, finals, taken, 0, true);
        }
    }

    fn phase_timed_out(&mut self, ctx: &mut Ctx) {
        let Some(c) = &self.cutover else {
            return;
        };
        let text = format!("{}: {} took too long", self.record.name, c.phase.word());
        let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
        match c.phase {
            Phase::Activating { .. } => {
                let text = format!(
                    "{} has moved to {}, which has not said yet that it runs there",
                    self.record.name,
                    ctx.peer_name(c.target)
                );
                let failure = Failure::new(Remedy::Operator, FailureCode::TimedOut, text);
                self.end_cutover(ctx, Err(failure));
            }
            _ => self.undo(ctx, failure),
        }
    }

    pub(crate) fn cutover_timeout(&self) -> Option<u64> {
        let c = self.cutover.as_ref()?;
        let limit = c.phase.limit_ms(self.stop_limit_ms()).map(|ms| c.since + ms);
        let ask = match &c.phase {
            Phase::Preflight { ask_at }
            | Phase::Prepare { ask_at, .. }
            | Phase::Activating { ask_at } => Some(*ask_at),
            _ => None,
        };
        limit.into_iter().chain(ask).min()
    }

    /// The event that a cutover has ended; kept here since it names the phases.
    pub(crate) fn doing(&self) -> String {
        if let Some(word) = self.cutover_word() {
            return word;
        }
        match (&self.record.role, &self.service) {
            (Role::HandedOver { .. }, _) => "waiting for the target's answer".into(),
            (Role::Ready { .. }, _) => "ready to take over".into(),
            (Role::Following { .. }, _) if self.standby.is_busy() => "receiving".into(),
            (Role::Following { .. }, _) => "following".into(),
            (_, Service::Claiming { .. }) => "asking the standbys before it starts".into(),
            (_, Service::Up { paths: None, .. }) => "at rest".into(),
            (_, Service::Up { .. }) if self.record.paused => "paused".into(),
            (_, Service::Up { .. }) => "serving".into(),
            (_, Service::Failed { .. }) => "failed to come up, trying again".into(),
            _ => "starting".into(),
        }
    }
}
