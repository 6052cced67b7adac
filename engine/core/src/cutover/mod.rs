//! The source's side of a change of primary. DESIGN "Cutover" is the specification.
//!
//! ```text
//!  migrate        ok          converged     stopped    fenced      taken
//!  ──────▶ Preflight ─▶ Converge ─▶ Quiesce ─▶ Fence ─▶ Snapshot ─▶ Transfer ─▶ Prepare
//!              │            │        ▲ │         │ │       │      sent and    │      │ ready:
//!              │            │        │ │         │ │       │      unwritten   │      │ durable HandedOver
//!              ▼            ▼        │ ▼         ▼ │       ▼                  ▼      ▼
//!            Undo ◀─────────┴────────┼─┴─────────┴─┼───────┴──────────────────┘    Commit
//!   writable again, workload running │             │     ▲   refused, from that      │ taken
//!                                    │             │     └── incarnation ────────────┤
//!   hand-back: an activation here    │             │                                 ▼
//!   failed before anybody was ───────┤             └─▶ Prepare       Done ◀── runs ── Activating
//!   answered                         │             └─▶ Commit
//!   yield: a standby fails over ─────┘
//!   and this primary answers
//! ```
//!
//! Three kinds go this way. A *move* goes all of it. A *hand-back* has nothing to converge and no final
//! snapshot: what it hands back is what it took. A *yield* needs no promise: the standby that asked for
//! it has made durable that its attempt is begun, and answers `settle` with `taken` or `refused`.
//!
//! | phase | limit | left with success | left with failure |
//! | --- | --- | --- | --- |
//! | Preflight | 20 s | the target could take it: replica whole, path free, room, grant | nothing was changed |
//! | Converge | rounds, not time | the standby is close: predicted downtime fits the budget | workload untouched |
//! | Quiesce | stop limit + 60 s | no process of the workload is left | started again |
//! | Fence | 60 s | its addresses are off; nobody can write the volumes, read back | opened again |
//! | Snapshot | 60 s | the final snapshots exist | collected by upkeep |
//! | Transfer | 10 min | the target has them by guid; nothing was written since here | the replica is at its last good snapshot |
//! | Prepare | 20 s | the target has durably promised to answer `settle` | its promise is buried by the tombstone |
//! | Commit | none | the target has durably taken it: this node follows | refused durably: this node serves |
//! | Activating | 60 s | the workload runs there | it goes on trying there, or hands back |
//! | Undo | none | the unit is served here again | it goes on trying here, with an alarm |
//!
//! Before `Commit` any failure, and any restart, is undone here alone: the attempt's number is burnt, the
//! unit is writable, its workload runs. So no phase before it needs a record of its own: the journal says
//! `Leaving`, and a restart takes all of them back in the same way. From `Commit` on only the target's
//! answer counts; the volumes stay fenced, and a restart asks again. A connection that is lost before the
//! commit may come back within [`RIDE_OVER_MS`]. What survives a failed attempt: its number in
//! `last_attempt` and the snapshots it took, which upkeep collects.

mod begin;
mod commit;
mod converge;
mod handback;
mod stopped;

pub(crate) use begin::DryRun;

use flocker_store::{Guid, Snapshot};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{
    AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, QuestionId, RequestId, VolumeId,
};
use crate::io::{EventKind, Prediction, Reply, RoundReport};
use crate::limits::{
    ACTIVATION_LIMIT_MS, ANSWER_LIMIT_MS, FINAL_TRANSFER_LIMIT_MS, PRE_DUMP_LIMIT_MS, RESEND_MS,
    RIDE_OVER_MS, STOPPED_PHASE_LIMIT_MS,
};
use crate::message::{Body, PreflightFacts};
use crate::node::PlantedBug;
use crate::record::Role;
use crate::service::Service;
use crate::unit::Unit;
use std::collections::BTreeSet;

/// A change of primary under way.
#[derive(Debug, Clone)]
pub(crate) struct Cutover {
    kind: Kind,
    /// People who wait for its end.
    requests: Vec<RequestId>,
    pub(crate) attempt: AttemptId,
    pub(crate) target: Fingerprint,
    phase: Phase,
    /// When the phase began, monotonic milliseconds.
    since: u64,
    begun: u64,
    /// When the workload began to be stopped.
    stopped_at: Option<u64>,
    /// When the connection to the target was lost; `None`: it stands.
    lost_at: Option<u64>,
    parts: Vec<(String, u64)>,
    /// What of the parts is another program's.
    theirs: Vec<(String, u64)>,
    rounds: Vec<RoundReport>,
    workload_wanted: bool,
    budget_ms: Option<u64>,
    predicted: Option<Prediction>,
    /// What the target said in its preflight.
    facts: PreflightFacts,
    /// The target could not bring it up, and hands it back.
    coming_back: Option<Failure>,
    notes: Vec<String>,
    /// What the target needs to make the workload ready.
    description: String,
    /// What a person has accepted to leave behind.
    accepted: BTreeSet<String>,
}

/// Why the unit leaves.
#[derive(Debug, Clone)]
enum Kind {
    /// A person wants it elsewhere.
    Move,
    /// It came here and could not be brought up.
    HandBack { finals: Vec<(VolumeId, Guid)> },
    /// A standby fails over.
    /// `was_up`: it was known by then that nothing else runs it, and that nobody knows better.
    Yield { incarnation: Incarnation, next: Epoch, was_up: bool },
}

#[derive(Debug, Clone)]
enum Phase {
    /// First what the target needs is found out here (the workload's description), then it is asked.
    Preflight {
        describing: Option<OpId>,
        ask_at: u64,
        question: QuestionId,
    },
    /// What the workload has in memory is written for the first time.
    PreDump {
        op: OpId,
    },
    Converge {
        rounds: u32,
        last_ms: Option<u64>,
        outrun: u32,
    },
    Quiesce {
        op: OpId,
    },
    /// First the addresses, then the volumes.
    Fence {
        op: OpId,
        network: bool,
    },
    Snapshot {
        op: OpId,
        taken: Now,
    },
    Transfer {
        finals: Vec<Snapshot>,
        taken: Now,
        verify: Option<OpId>,
        begun: bool,
        sent: bool,
    },
    Prepare {
        finals: Vec<(VolumeId, Guid)>,
        ask_at: u64,
    },
    Commit,
    Activating {
        ask_at: u64,
    },
    Undo {
        reason: Failure,
        from: &'static str,
    },
}

/// What the limits of phases depend on.
#[derive(Debug, Clone, Copy)]
struct Given {
    /// How long the workload may take to stop, milliseconds.
    stop_ms: u64,
    /// How long the target may take to be ready, milliseconds.
    ready_ms: u64,
    /// What limits that are made for one volume are longer by, milliseconds.
    more_ms: u64,
}

impl Phase {
    fn word(&self) -> &'static str {
        match self {
            Phase::Preflight { .. } => "preflight",
            Phase::PreDump { .. } => "pre-dump",
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
    fn limit_ms(&self, given: Given) -> Option<u64> {
        let more = given.more_ms;
        match self {
            Phase::Preflight { .. } => Some(given.ready_ms + more),
            Phase::Prepare { .. } => Some(ANSWER_LIMIT_MS + more),
            Phase::Quiesce { .. } => Some(given.stop_ms + STOPPED_PHASE_LIMIT_MS),
            Phase::PreDump { .. } => Some(PRE_DUMP_LIMIT_MS),
            Phase::Fence { .. } | Phase::Snapshot { .. } => Some(STOPPED_PHASE_LIMIT_MS + more),
            Phase::Transfer { .. } => Some(FINAL_TRANSFER_LIMIT_MS + more),
            Phase::Activating { .. } => Some(ACTIVATION_LIMIT_MS + more),
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
            Phase::Preflight { .. }
            | Phase::PreDump { .. }
            | Phase::Converge { .. }
            | Phase::Undo { .. } => false,
        }
    }

    /// Whether it can still be taken back here alone.
    fn before_commit(&self) -> bool {
        match self {
            Phase::Preflight { .. }
            | Phase::PreDump { .. }
            | Phase::Converge { .. }
            | Phase::Quiesce { .. }
            | Phase::Fence { .. }
            | Phase::Snapshot { .. }
            | Phase::Transfer { .. }
            | Phase::Prepare { .. } => true,
            Phase::Commit | Phase::Activating { .. } | Phase::Undo { .. } => false,
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
            Phase::Transfer { finals, .. } => finals.get(at).map(|s| s.guid),
            Phase::Prepare { finals, .. } => finals.get(at).map(|(_, guid)| *guid),
            _ => None,
        }
    }

    pub(crate) fn cutover_word(&self) -> Option<String> {
        let cutover = self.cutover.as_ref()?;
        let what = match cutover.kind {
            Kind::Move => "migrating",
            Kind::HandBack { .. } => "handing back",
            Kind::Yield { .. } => "yielding",
        };
        Some(format!("{what}: {}", cutover.phase.word()))
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

    // ---- the ways out -------------------------------------------------------------------------

    /// Takes the cutover back; only before its commit.
    pub(crate) fn undo(&mut self, ctx: &mut Ctx, reason: Failure) {
        let Role::Leaving { attempt, target } = self.record.role else {
            return;
        };
        let stopped = self.stopping_for_cutover();
        let from = self.cutover.as_ref().map_or("start", |c| c.phase.word());
        if let Some(replica) = self.replicas.get_mut(&target)
            && replica.in_final_round()
        {
            replica.down(ctx, self.record.id);
            if ctx.connected(target) {
                replica.up();
            }
        }
        let yielding = attempt.issuer != ctx.config.fingerprint;
        if yielding {
            // Its issuer goes on to another number; this one is never begun here again.
            self.refuse(attempt);
        }
        if ctx.config.planted(PlantedBug::ReuseAttempt) && !yielding {
            self.record.last_attempt -= 1;
        }
        self.set_role(ctx, Role::Serving);
        let body = match yielding {
            true => Body::YieldRefused { attempt, failure: reason.clone() },
            false => Body::Abandon { attempt },
        };
        self.say(ctx, target, body);
        let never_up = self
            .cutover
            .as_ref()
            .is_some_and(|c| matches!(c.kind, Kind::Yield { was_up: false, .. }));
        self.enter(ctx, Phase::Undo { reason, from });
        if never_up {
            self.enter_role(ctx);
            let text = "it was not before either";
            let trouble = Failure::new(Remedy::Retry, FailureCode::Busy, text);
            self.undo_finished(ctx, Some(&trouble));
        } else if stopped {
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
        let Some(Cutover { phase: Phase::Undo { reason, .. }, .. }) = &self.cutover else {
            return;
        };
        let mut reason = reason.clone();
        reason.message = match trouble {
            None => format!("{}; taken back, {} runs here", reason.message, self.record.name),
            Some(trouble) => format!(
                "{}; taken back, but {} is not up yet: {}",
                reason.message, self.record.name, trouble.message
            ),
        };
        self.end_cutover(ctx, Err(reason));
    }

    pub(crate) fn end_cutover(&mut self, ctx: &mut Ctx, answer: Result<Reply, Failure>) {
        let Some(cutover) = self.cutover.take() else {
            return;
        };
        if let Err(failure) = &answer {
            let phase = match &cutover.phase {
                Phase::Undo { from, .. } => from,
                phase => phase.word(),
            };
            let (attempt, failure) = (cutover.attempt, failure.clone());
            let kind = EventKind::MigrationFailed { attempt, phase: phase.into(), failure };
            ctx.report(self.record.id, &self.record.name, kind);
        }
        let first_only = ctx.config.planted(PlantedBug::AnswerFirstOnly);
        let answered = if first_only { 1 } else { usize::MAX };
        for request in cutover.requests.into_iter().take(answered) {
            ctx.reply(request, answer.clone());
        }
    }

    pub(crate) fn cutover_peer_down(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.target != peer || !c.phase.before_commit() {
            return;
        }
        c.lost_at.get_or_insert(ctx.now.mono_ms);
        if let Phase::Transfer { begun, .. } = &mut c.phase {
            // What was on its way is lost; a new round asks first what arrived.
            *begun = false;
        }
    }

    pub(crate) fn cutover_peer_up(&mut self, peer: Fingerprint, now_ms: u64) {
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.target != peer {
            return;
        }
        c.lost_at = None;
        match &mut c.phase {
            Phase::Preflight { ask_at, .. }
            | Phase::Prepare { ask_at, .. }
            | Phase::Activating { ask_at } => *ask_at = now_ms,
            _ => {}
        }
    }

    // ---- what is due --------------------------------------------------------------------------

    fn given(&self) -> Given {
        Given {
            stop_ms: self.stop_limit_ms(),
            ready_ms: self.ready_limit_ms(),
            more_ms: self.more_for_volumes_ms(),
        }
    }

    pub(crate) fn advance_cutover(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let given = self.given();
        let fully_up = self.fully_up();
        let Some(c) = &mut self.cutover else {
            return;
        };
        if c.phase.limit_ms(given).is_some_and(|ms| now >= c.since + ms) {
            return self.phase_timed_out(ctx);
        }
        let (attempt, target) = (c.attempt, c.target);
        if c.lost_at.is_some_and(|at| now >= at + RIDE_OVER_MS) && c.phase.before_commit() {
            let text = format!("the connection to {} was lost", ctx.peer_name(target));
            let failure = Failure::new(Remedy::Retry, FailureCode::ConnectionLost, text);
            return self.undo(ctx, failure);
        }
        match &mut c.phase {
            Phase::Preflight { describing: None, ask_at, question } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let (question, description) = (*question, c.description.clone());
                let workload = self.wanted_there(description);
                self.say(ctx, target, Body::Preflight { question, workload });
            }
            Phase::Transfer { .. } => self.advance_transfer(ctx, target),
            Phase::Prepare { finals, ask_at } if now >= *ask_at => {
                *ask_at = now + RESEND_MS;
                let finals = finals.clone();
                let workload_wanted = c.workload_wanted;
                let next = self.next_epoch(attempt, target);
                let body = Body::Prepare { attempt, next, finals, workload_wanted };
                self.say(ctx, target, body);
            }
            Phase::Activating { ask_at } if now >= *ask_at => {
                // Taken is known; asking again brings the word that it runs, should it be lost.
                *ask_at = now + RESEND_MS;
                self.say(ctx, target, Body::Settle { attempt, question: None });
            }
            Phase::Undo { .. } if fully_up => self.undo_finished(ctx, None),
            _ => {}
        }
    }

    fn can_begin_transfer(&self, target: Fingerprint) -> bool {
        self.replicas.get(&target).is_some_and(|r| r.is_idle()) && self.local.inventories.is_some()
    }

    /// Begins the last round once the standby can take it.
    fn advance_transfer(&mut self, ctx: &mut Ctx, target: Fingerprint) {
        let ready = self.can_begin_transfer(target);
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
        let limit = c.phase.limit_ms(self.given()).map(|ms| c.since + ms);
        let ask = match &c.phase {
            // The standby has become ready for it after this cutover had its turn.
            Phase::Transfer { begun: false, .. } if self.can_begin_transfer(c.target) => {
                Some(c.since)
            }
            Phase::Preflight { describing: Some(_), .. } => None,
            Phase::Preflight { ask_at, .. }
            | Phase::Prepare { ask_at, .. }
            | Phase::Activating { ask_at } => Some(*ask_at),
            _ => None,
        };
        let ride = c.lost_at.filter(|_| c.phase.before_commit()).map(|at| at + RIDE_OVER_MS);
        limit.into_iter().chain(ask).chain(ride).min()
    }

    /// The event that a cutover has ended; kept here since it names the phases.
    pub(crate) fn doing(&self) -> String {
        if let Some(word) = self.cutover_word().or_else(|| self.failover_word()) {
            return word;
        }
        match (&self.record.role, &self.service) {
            (Role::HandedOver { .. }, _) => "waiting for the target's answer".into(),
            (Role::Ready { .. }, _) => "ready to take over".into(),
            (Role::Following { .. }, _) if self.record.step_back.is_some() => {
                "setting aside what only this node has".into()
            }
            (Role::Following { .. }, _) if self.standby.is_busy() => "receiving".into(),
            (Role::Following { .. }, _) => "following".into(),
            (_, Service::AwaitLease) => "waiting for a lease".into(),
            (_, Service::Claiming { .. }) => "asking the standbys before it starts".into(),
            (_, Service::Up { paths: None, .. }) => "at rest".into(),
            (_, Service::Up { .. }) if self.record.paused => "paused".into(),
            (_, Service::Up { .. }) => "serving".into(),
            (_, Service::Failed { .. }) => "failed to come up, trying again".into(),
            _ => "starting".into(),
        }
    }
}
