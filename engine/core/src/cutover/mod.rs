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

mod commit;
mod stopped;

use flocker_store::{Guid, Snapshot};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Fingerprint, Now, OpId, QuestionId, RequestId, VolumeId};
use crate::io::{EventKind, Reply, RoundReport};
use crate::limits::{
    ACTIVATION_LIMIT_MS, ANSWER_LIMIT_MS, CONVERGE_GAIN_PERCENT, CONVERGE_ROUNDS, CONVERGED_MS,
    FINAL_TRANSFER_LIMIT_MS, RESEND_MS, STOPPED_PHASE_LIMIT_MS,
};
use crate::message::{Body, PreflightFacts};
use crate::record::Role;
use crate::service::Service;
use crate::unit::Unit;

/// A move under way.
#[derive(Debug, Clone)]
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

#[derive(Debug, Clone)]
enum Phase {
    Preflight { ask_at: u64, question: QuestionId },
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
        let question = ctx.new_question();
        self.cutover = Some(Cutover {
            request: Some(request),
            attempt,
            target,
            phase: Phase::Preflight { ask_at: ctx.now.mono_ms, question },
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
        asked: QuestionId,
        answer: Result<PreflightFacts, Failure>,
    ) {
        let Some(c) = &self.cutover else {
            return;
        };
        if c.target != peer
            || !matches!(c.phase, Phase::Preflight { question, .. } if question == asked)
        {
            return;
        }
        match answer {
            Ok(_) => self.enter(ctx, Phase::Converge { rounds: 0, last_ms: None }),
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
            self.work_has_stopped(ctx);
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
            Phase::Preflight { ask_at, question } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let question = *question;
                let wanted = c.workload_wanted;
                let kind = self.record.workload.as_ref().filter(|_| wanted).map(|w| w.kind);
                self.say(ctx, target, Body::Preflight { question, workload: kind });
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
            Phase::Preflight { ask_at, .. }
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
