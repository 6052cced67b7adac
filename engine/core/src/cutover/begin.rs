//! How a move begins, what is refused before anything is changed, and what only asks.

use super::{Cutover, Kind, Phase};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Fingerprint, OpId, QuestionId, RequestId};
use crate::io::{MigrationPlan, Outcome, Reply};
use crate::limits::{RESEND_MS, ROOM_MARGIN_BYTES};
use crate::message::{Body, PreflightFacts};
use crate::node::PlantedBug;
use crate::record::Role;
use crate::service::Service;
use crate::unit::{Op, Unit};
use std::collections::BTreeSet;

/// `migrate --dry-run`, while the target is asked.
#[derive(Debug, Clone)]
pub(crate) struct DryRun {
    request: RequestId,
    target: Fingerprint,
    budget_ms: Option<u64>,
    question: QuestionId,
    describing: Option<OpId>,
    description: String,
    accepted: BTreeSet<String>,
    ask_at: u64,
    by: u64,
}

impl Cutover {
    /// One that begins now, with nothing known yet.
    fn new(kind: Kind, attempt: AttemptId, target: Fingerprint, phase: Phase, now_ms: u64) -> Self {
        Self {
            kind,
            requests: Vec::new(),
            attempt,
            target,
            phase,
            since: now_ms,
            begun: now_ms,
            stopped_at: None,
            lost_at: None,
            parts: Vec::new(),
            theirs: Vec::new(),
            rounds: Vec::new(),
            workload_wanted: false,
            budget_ms: None,
            predicted: None,
            facts: PreflightFacts::default(),
            coming_back: None,
            notes: Vec::new(),
            description: String::new(),
            accepted: BTreeSet::new(),
        }
    }
}

impl Unit {
    pub(crate) fn migrate(
        &mut self,
        ctx: &mut Ctx,
        request: RequestId,
        target: Fingerprint,
        budget_ms: Option<u64>,
        dry_run: bool,
        accepted: BTreeSet<String>,
    ) {
        if !dry_run && self.joins_migration(ctx, request, target) {
            return;
        }
        if let Err(failure) = self.may_migrate(ctx, target) {
            return ctx.reply(request, Err(failure));
        }
        let question = ctx.new_question();
        let now = ctx.now.mono_ms;
        if dry_run {
            let by = now + self.ready_limit_ms();
            let describing = self.describe(ctx, Op::Describe);
            return self.dry_runs.push(DryRun {
                request,
                target,
                budget_ms,
                question,
                describing,
                description: String::new(),
                accepted,
                ask_at: now,
                by,
            });
        }
        let describing = self.describe(ctx, Op::Describe);
        let phase = Phase::Preflight { describing, ask_at: now, question };
        self.begin_cutover(ctx, Kind::Move, self.next_attempt(ctx), target, phase);
        if let Some(c) = &mut self.cutover {
            c.requests.push(request);
            c.budget_ms = budget_ms;
            c.accepted = accepted;
        }
        self.report_phase(ctx);
    }

    /// The number is durable with the role that names it.
    pub(super) fn next_attempt(&self, ctx: &Ctx) -> AttemptId {
        AttemptId { issuer: ctx.config.fingerprint, number: self.record.last_attempt + 1 }
    }

    /// Makes the attempt durable: from here on its number is burnt.
    pub(super) fn begin_cutover(
        &mut self,
        ctx: &mut Ctx,
        kind: Kind,
        attempt: AttemptId,
        target: Fingerprint,
        phase: Phase,
    ) {
        if attempt.issuer == ctx.config.fingerprint {
            self.record.last_attempt = attempt.number;
        }
        let workload_wanted = self.record.workload.as_ref().is_some_and(|w| w.wanted);
        self.set_role(ctx, Role::Leaving { attempt, target });
        self.cutover = Some(Cutover {
            workload_wanted,
            ..Cutover::new(kind, attempt, target, phase, ctx.now.mono_ms)
        });
    }

    /// Asked again, after a crash of ours or by somebody else: never a second attempt beside the first.
    fn joins_migration(&mut self, ctx: &mut Ctx, request: RequestId, target: Fingerprint) -> bool {
        if let Some(c) = &mut self.cutover {
            let joins = c.target == target
                && matches!(c.kind, Kind::Move)
                && !matches!(c.phase, Phase::Undo { .. });
            if joins {
                c.requests.push(request);
            }
            return joins;
        }
        match self.record.role {
            // A restart of ours forgot the move, and not its commit.
            Role::HandedOver { attempt, target: to, .. } if to == target => {
                let now = ctx.now.mono_ms;
                self.cutover = Some(Cutover {
                    requests: vec![request],
                    workload_wanted: true,
                    notes: vec!["the daemon was restarted on the way: parts are missing".into()],
                    ..Cutover::new(Kind::Move, attempt, target, Phase::Commit, now)
                });
                true
            }
            Role::Following { source } if source == target => {
                let (name, epoch) = (self.record.name.clone(), self.record.epoch.number);
                ctx.reply(request, Ok(Reply::AlreadyThere { name, epoch }));
                true
            }
            _ => false,
        }
    }

    fn may_migrate(&self, ctx: &Ctx, target: Fingerprint) -> Result<(), Failure> {
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let (name, to) = (&self.record.name, ctx.peer_name(target));
        if let Some(c) = &self.cutover {
            if matches!(c.phase, Phase::Undo { .. }) {
                let to = ctx.peer_name(c.target);
                let text =
                    format!("{name}: the migration to {to} is being taken back; wait for its end");
                return refuse(FailureCode::Busy, text);
            }
            let text = format!(
                "{name} is under way to {} already ({}); wait for its end, or take it back with \
                 `flocker-repl migrate {name} --cancel`",
                ctx.peer_name(c.target),
                c.phase.word()
            );
            return refuse(FailureCode::Busy, text);
        }
        if self.failover.is_some() {
            return refuse(FailureCode::Busy, format!("{name}: a failover is under way here"));
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
        // A replica that cannot go on from what it has would only be found out by the first round.
        if let Some(failure) = self.replicas.get(&target).and_then(|r| r.failure.as_ref())
            && matches!(failure.code, FailureCode::Modified | FailureCode::NoBase)
        {
            return Err(failure.clone());
        }
        Ok(())
    }

    // ---- dry runs -----------------------------------------------------------------------------

    /// The unit goes: whoever waits for a preflight hears so.
    pub(crate) fn refuse_dry_runs(&mut self, ctx: &mut Ctx, failure: &Failure) {
        for dry_run in std::mem::take(&mut self.dry_runs) {
            ctx.reply(dry_run.request, Err(failure.clone()));
        }
    }

    pub(crate) fn advance_dry_runs(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        for at in (0..self.dry_runs.len()).rev() {
            let dry_run = &mut self.dry_runs[at];
            let (request, target, question) = (dry_run.request, dry_run.target, dry_run.question);
            if now >= dry_run.by || !ctx.connected(target) {
                let text = format!("{} did not answer", ctx.peer_name(target));
                self.dry_runs.remove(at);
                let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
                ctx.reply(request, Err(failure));
            } else if now >= dry_run.ask_at && dry_run.describing.is_none() {
                dry_run.ask_at = now + RESEND_MS;
                let description = dry_run.description.clone();
                let workload = self.wanted_there(description);
                self.say(ctx, target, Body::Preflight { question, workload });
            }
        }
    }

    pub(crate) fn dry_run_timeout(&self) -> Option<u64> {
        let due = |d: &DryRun| if d.describing.is_some() { d.by } else { d.ask_at.min(d.by) };
        self.dry_runs.iter().map(due).min()
    }

    /// What the workload is was found out for a dry run; `false`: for none of them.
    pub(super) fn dry_run_described(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: &Result<Outcome, Failure>,
    ) -> bool {
        let Some(at) = self.dry_runs.iter().position(|d| d.describing == Some(op)) else {
            return false;
        };
        let accepted = &self.dry_runs[at].accepted;
        match self.accept_losses(outcome.clone(), accepted) {
            Ok((description, _)) => {
                let dry_run = &mut self.dry_runs[at];
                (dry_run.describing, dry_run.description) = (None, description);
            }
            Err(failure) => {
                let dry_run = self.dry_runs.remove(at);
                ctx.reply(dry_run.request, Err(failure));
            }
        }
        true
    }

    /// An answer to a dry run; `false`: it was none of theirs.
    pub(super) fn dry_run_answered(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: &Result<PreflightFacts, Failure>,
    ) -> bool {
        let Some(at) = self.dry_runs.iter().position(|d| d.target == peer && d.question == asked)
        else {
            return false;
        };
        let dry_run = self.dry_runs.remove(at);
        let answer = answer.clone().and_then(|facts| {
            let prediction = self.predict(ctx.now, peer, &facts);
            self.check_room(ctx, peer, &facts, prediction.delta_bytes)?;
            let mut notes = Vec::new();
            if prediction.from_moves == 0 {
                notes.push("nothing like this was measured yet: the fixed cost is a guess".into());
            }
            Ok(Reply::MigrationPlan(Box::new(MigrationPlan {
                name: self.record.name.clone(),
                source: ctx.config.fingerprint,
                target: peer,
                prediction,
                budget_ms: dry_run.budget_ms,
                available_bytes: facts.available_bytes,
                notes,
            })))
        });
        ctx.reply(dry_run.request, answer);
        true
    }

    pub(super) fn check_room(
        &self,
        ctx: &Ctx,
        peer: Fingerprint,
        facts: &PreflightFacts,
        delta_bytes: u64,
    ) -> Result<(), Failure> {
        let needed = delta_bytes.saturating_add(ROOM_MARGIN_BYTES);
        if facts.available_bytes >= needed {
            return Ok(());
        }
        let text = format!(
            "{} has {} bytes left for {}, and the move needs about {needed}; make room there",
            ctx.peer_name(peer),
            facts.available_bytes,
            self.record.name
        );
        Err(Failure::refused(FailureCode::NoSpace, text))
    }

    // ---- a person takes it back ---------------------------------------------------------------

    pub(crate) fn cancel_migration(&mut self, ctx: &mut Ctx) -> Result<(), Failure> {
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let name = self.record.name.clone();
        let Some(c) = &self.cutover else {
            let text = match self.record.role {
                Role::HandedOver { target, .. } => format!(
                    "{name} is committed to {}: only its answer counts now",
                    ctx.peer_name(target)
                ),
                _ => format!("{name} is not being migrated"),
            };
            return refuse(FailureCode::BadRequest, text);
        };
        let target = ctx.peer_name(c.target);
        if !matches!(c.kind, Kind::Move) {
            let text = format!(
                "{name} goes to {target} by a failover or a failed start, not by a migration"
            );
            return refuse(FailureCode::BadRequest, text);
        }
        match c.phase {
            Phase::Undo { .. } => Ok(()),
            _ if c.phase.before_commit() => {
                let text = format!("{name}: the migration to {target} was cancelled");
                self.undo(ctx, Failure::refused(FailureCode::Cancelled, text));
                Ok(())
            }
            Phase::Commit if ctx.config.planted(PlantedBug::CancelAfterCommit) => {
                self.set_role(ctx, Role::Serving);
                self.work_has_stopped(ctx);
                self.activate(ctx);
                Ok(())
            }
            _ => refuse(
                FailureCode::BadRequest,
                format!("{name} is committed to {target}: move it back once it runs there"),
            ),
        }
    }
}
