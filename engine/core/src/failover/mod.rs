//! Taking over without the primary's commit, and a source's way out when its target is lost for good.
//!
//! ```text
//!  failover      nothing in flight   newest instance       proof         set back       runs
//!  ───────▶ Drain ──────────────▶ Look ─────────────▶ Prove ─────▶ SetBack ─────▶ Coming ─────▶ Done
//!             │                     │ (dry run: the      │              │
//!             └─────────────────────┴── plan, and done)  ┴──────────────┴─▶ refused: still a standby
//! ```
//!
//! While it is under way this node takes no offers, promises nothing, gives no lease, and does not answer
//! whether it knows a newer epoch: a primary that comes back in the middle waits. Nothing is changed
//! before there is a proof; the epoch is durable before anything is made writable.
//!
//! | proof | why there is one writer |
//! | --- | --- |
//! | the primary answered | it has stopped, fenced and durably handed over to this attempt; it resumes only if this node refuses it durably |
//! | fencing hook | the local hook made sure that the primary's host is off; when it starts it asks first |
//! | lease | the primary's supervisor has killed the workload before the lease ended by its clock |
//! | operator's word | none but the word; a false one is detected as soon as the two meet: the older epoch stops, and what only it had is set aside |

mod proof;

use std::collections::BTreeSet;

use flocker_store::{DatasetName, Guid, Inventory, Snapshot, SnapshotName};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, OpId, RequestId, VolumeId};
use crate::io::{Action, EventKind, FailoverPlan, FailoverReport, Outcome, Reply};
use crate::limits::{
    ACTIVATION_LIMIT_MS, DRAIN_LIMIT_MS, PER_VOLUME_MS, RESEND_MS, YIELD_LIMIT_MS,
};
use crate::message::Body;
use crate::node::PlantedBug;
use crate::plan;
use crate::record::{Answer, FailoverRecord, Proof, Role, TAKEN_KEPT, VolumeRecord};
use crate::service::Service;
use crate::unit::{Op, Unit};

/// One snapshot of each volume: one moment.
pub(crate) type Instance = Vec<(VolumeId, SnapshotName, Guid)>;

/// What a moment has of each volume; `None`: it has joined, and is in no moment here yet.
pub(crate) type Found = Vec<Option<(VolumeId, SnapshotName, Guid)>>;

/// A failover under way.
#[derive(Debug, Clone)]
pub(crate) struct Failover {
    request: Option<RequestId>,
    primary: Fingerprint,
    word: bool,
    /// The word was given, and the primary itself says otherwise.
    refuted: bool,
    dry_run: bool,
    phase: Phase,
    since: u64,
    begun: u64,
    parts: Vec<(String, u64)>,
    plan: Option<FailoverPlan>,
    instance: Instance,
    /// Proofs that were tried in vain, and what they said.
    tried: Vec<(Proof, String)>,
    proof: Option<Proof>,
    /// The primary has handed over to this attempt and waits for the answer.
    yielded: Option<AttemptId>,
    aside: Vec<DatasetName>,
}

#[derive(Debug, Clone)]
enum Phase {
    Drain,
    Look { op: OpId },
    AskPrimary { attempt: AttemptId, ask_at: u64 },
    AwaitLease { at: u64 },
    Hook { op: OpId },
    SetBack { op: OpId },
    Coming,
}

impl Phase {
    fn word(&self) -> &'static str {
        match self {
            Phase::Drain => "drain",
            Phase::Look { .. } => "look",
            Phase::AskPrimary { .. } | Phase::AwaitLease { .. } | Phase::Hook { .. } => "prove",
            Phase::SetBack { .. } => "set back",
            Phase::Coming => "start",
        }
    }
}

impl Unit {
    /// It decides who goes on: nothing else may be promised meanwhile.
    pub(crate) fn failing_over(&self) -> bool {
        self.failover.as_ref().is_some_and(|f| !f.dry_run && !matches!(f.phase, Phase::Coming))
    }

    pub(crate) fn failover_word(&self) -> Option<String> {
        let failover = self.failover.as_ref().filter(|f| !f.dry_run)?;
        Some(format!("failing over: {}", failover.phase.word()))
    }

    pub(crate) fn fail_over(
        &mut self,
        ctx: &mut Ctx,
        request: RequestId,
        word: bool,
        dry_run: bool,
    ) {
        let primary = match self.may_fail_over() {
            Ok(primary) => primary,
            Err(failure) => return ctx.reply(request, Err(failure)),
        };
        let now = ctx.now.mono_ms;
        self.failover = Some(Failover {
            request: Some(request),
            primary,
            word,
            dry_run,
            refuted: false,
            phase: Phase::Drain,
            since: now,
            begun: now,
            parts: Vec::new(),
            plan: None,
            instance: Vec::new(),
            tried: Vec::new(),
            proof: None,
            yielded: None,
            aside: Vec::new(),
        });
        if dry_run {
            self.look_for_instance(ctx);
        }
    }

    fn may_fail_over(&self) -> Result<Fingerprint, Failure> {
        let name = &self.record.name;
        if self.failover.is_some() {
            let text = format!("{name}: a failover is under way here already");
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        match self.record.role {
            Role::Following { source } | Role::Ready { source, .. } => Ok(source),
            Role::HandedOver { target, .. } => Ok(target),
            Role::Serving | Role::Leaving { .. } => {
                let text = match self.service {
                    Service::Claiming { .. } => format!(
                        "{name} is primary here and waits for its standbys' answer: \
                         flocker-repl start-alone {name}"
                    ),
                    _ => format!(
                        "{name} is primary here already (epoch {})",
                        self.record.epoch.number
                    ),
                };
                Err(Failure::refused(FailureCode::BadRequest, text))
            }
        }
    }

    fn enter_failover(&mut self, ctx: &mut Ctx, phase: Phase) {
        let now = ctx.now.mono_ms;
        let Some(f) = &mut self.failover else {
            return;
        };
        if f.phase.word() != phase.word() {
            f.parts.push((f.phase.word().into(), now - f.since));
            f.since = now;
        }
        f.phase = phase;
        if !f.dry_run {
            let text = format!("failover: {}", f.phase.word());
            self.note(ctx, text);
        }
    }

    /// Ends it, and says why; a note where nobody waits for it.
    pub(crate) fn end_failover(&mut self, ctx: &mut Ctx, answer: Result<Reply, Failure>) {
        let Some(failover) = self.failover.take() else {
            return;
        };
        let asked = match failover.phase {
            Phase::AskPrimary { attempt, .. } => Some(attempt),
            _ => failover.yielded,
        };
        // Only a durable refusal lets the primary go on.
        if let Some(attempt) = asked
            && !self.record.taken.contains(&attempt)
        {
            self.bury(ctx, attempt);
            let (primary, incarnation) = (failover.primary, ctx.config.incarnation);
            let answer = Answer::Refused;
            self.say(ctx, primary, Body::SettleReply { attempt, answer, incarnation });
        }
        if let Err(failure) = &answer
            && !failover.dry_run
        {
            self.note(ctx, format!("failover ended: {failure}"));
        }
        if let Some(request) = failover.request {
            ctx.reply(request, answer);
        }
    }

    // ---- what would be lost -------------------------------------------------------------------

    fn look_for_instance(&mut self, ctx: &mut Ctx) {
        let action = Action::Inspect { datasets: self.datasets(), streams: false };
        let op = ctx.run(self.id(), Op::Failover, action);
        self.enter_failover(ctx, Phase::Look { op });
    }

    pub(crate) fn failover_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(f) = &self.failover else {
            return;
        };
        match (&f.phase, outcome) {
            (Phase::Look { op: mine }, Ok(Outcome::Inspected(found))) if *mine == op => {
                let inventories: Vec<Inventory> = found.into_iter().map(|f| f.inventory).collect();
                self.looked(ctx, &inventories);
            }
            (Phase::Hook { op: mine }, Ok(_)) if *mine == op => {
                self.proven(ctx, Proof::FencingHook);
            }
            (Phase::Hook { op: mine }, Err(failure)) if *mine == op => {
                self.in_vain(ctx, Proof::FencingHook, failure.message);
            }
            (Phase::SetBack { op: mine }, Ok(Outcome::SetAside { aside })) if *mine == op => {
                if let Some(f) = &mut self.failover {
                    f.aside = aside.into_iter().flatten().collect();
                }
                // Whether or not this goes on: it may be further back than it was.
                self.standby.equal_wall_ms = None;
                self.take_over(ctx);
            }
            (Phase::Look { op: mine } | Phase::SetBack { op: mine }, Err(failure))
                if *mine == op =>
            {
                self.end_failover(ctx, Err(failure));
            }
            _ => {}
        }
    }

    fn looked(&mut self, ctx: &mut Ctx, inventories: &[Inventory]) {
        let Some((short, found)) = newest_whole(&self.record.volumes, inventories) else {
            let text = format!(
                "{}: no snapshot here is whole in every volume (a fuzzy one is no moment that ever \
                 was): there is nothing to go on from",
                self.record.name
            );
            let failure = Failure::refused(FailureCode::NoBase, text);
            return self.end_failover(ctx, Err(failure));
        };
        let instance: Instance = found.into_iter().flatten().collect();
        let at: BTreeSet<Guid> = instance.iter().map(|(.., guid)| *guid).collect();
        let newest_here = inventories
            .iter()
            .filter_map(Inventory::latest)
            .all(|newest| at.contains(&newest.guid));
        let snapshots = inventories.iter().flat_map(|i| &i.snapshots);
        let taken_unix_s = snapshots
            .filter(|s| at.contains(&s.guid))
            .map(|s| s.creation_unix_s)
            .min()
            .unwrap_or(0);
        // Handed over, and not answered: the target may have taken it at once, and served since.
        let equal_wall_ms = match self.record.role {
            Role::HandedOver { .. } => self.handed_over_wall_ms,
            _ => {
                let any = ctx.config.planted(PlantedBug::ForetellTooLittle);
                self.standby.equal_wall_ms.filter(|_| newest_here || any)
            }
        };
        let since = equal_wall_ms.unwrap_or(taken_unix_s.saturating_mul(1000));
        let lease_left_ms = self.lease_left_ms(ctx);
        let Some(f) = &self.failover else {
            return;
        };
        let plan = FailoverPlan {
            name: self.record.name.clone(),
            primary: f.primary,
            primary_connected: ctx.connected(f.primary),
            instance: short,
            taken_unix_s,
            age_ms: u64::try_from(ctx.now.wall_ms - since).unwrap_or(0),
            receiving: self.standby.is_busy(),
            proofs: self.possible_proofs(ctx, f.primary),
            lease_left_ms: lease_left_ms.filter(|left| *left > 0),
        };
        let dry_run = f.dry_run;
        if dry_run {
            return self.end_failover(ctx, Ok(Reply::FailoverPlan(Box::new(plan))));
        }
        if let Some(f) = &mut self.failover {
            f.plan = Some(plan);
            f.instance = instance;
        }
        self.prove(ctx);
    }

    fn possible_proofs(&self, ctx: &Ctx, primary: Fingerprint) -> Vec<Proof> {
        let mut proofs = Vec::new();
        if ctx.connected(primary) && self.record.role.is_standby() {
            proofs.push(Proof::PrimaryFenced);
        }
        if self.record.role.is_standby() && self.lease_left_ms(ctx).is_some() {
            proofs.push(Proof::LeaseRanOut);
        }
        if ctx.config.store.fencing_hook {
            proofs.push(Proof::FencingHook);
        }
        proofs
    }

    // ---- taking over --------------------------------------------------------------------------

    /// The volumes are at the instance, the proof stands: this node owns the next epoch.
    fn take_over(&mut self, ctx: &mut Ctx) {
        let me = ctx.config.fingerprint;
        let Some(f) = &self.failover else {
            return;
        };
        let (primary, proof, yielded) = (f.primary, f.proof, f.yielded);
        let (Some(proof), Some(plan)) = (proof, f.plan.clone()) else {
            return;
        };
        let instance: BTreeSet<VolumeId> = f.instance.iter().map(|(id, ..)| *id).collect();
        self.leave_out_joining(ctx, &instance);
        self.tombstone_if_ready();
        let attempt = yielded.unwrap_or_else(|| {
            self.record.last_attempt += 1;
            AttemptId { issuer: me, number: self.record.last_attempt }
        });
        let number = match self.record.role {
            // The target may own the epoch that was handed over.
            Role::HandedOver { next, .. } => next.number + 1,
            _ => self.record.epoch.number + 1,
        };
        self.record.epoch = Epoch { number, owner: me, attempt };
        self.record.volumes_as_of = (number, 0);
        self.decide();
        self.record.taken.push(attempt);
        let excess = self.record.taken.len().saturating_sub(TAKEN_KEPT);
        self.record.taken.drain(..excess);
        self.record.standbys = vec![primary];
        self.record.was_primary = false;
        self.record.step_back = None;
        let wall_ms = ctx.now.wall_ms;
        self.record.failover =
            Some(FailoverRecord { epoch: number, proof, wall_ms, instance: plan.instance });
        self.standby.announce = None;
        self.standby.preparing_ends();
        self.local.inventories = None;
        let text = format!("{}: this side took it back by a failover", self.record.name);
        self.end_cutover(ctx, Err(Failure::refused(FailureCode::Cancelled, text)));
        self.set_role(ctx, Role::Serving);
        self.note(ctx, format!("this node is primary by failover, epoch {number}: {proof}"));
        self.clear_alarm(ctx);
        if yielded.is_some() {
            let (answer, incarnation) = (Answer::Taken, ctx.config.incarnation);
            self.say(ctx, primary, Body::SettleReply { attempt, answer, incarnation });
        }
        self.lease_ends();
        if proof != Proof::PrimaryFenced {
            self.waive_lease(ctx);
        }
        self.enter_failover(ctx, Phase::Coming);
        self.work_has_stopped(ctx);
        // The other side may come back, and this journal may be lost, before there is time for it.
        self.mirror_now(ctx);
        self.activate(ctx);
    }

    /// It was handed over in good order while a failover was being prepared.
    pub(crate) fn failover_was_taken(&mut self, ctx: &mut Ctx) {
        if self.failover.is_some() {
            let text = format!(
                "{}: the primary has handed it over in good order meanwhile",
                self.record.name
            );
            self.end_failover(ctx, Err(Failure::refused(FailureCode::Cancelled, text)));
        }
    }

    // ---- what is due --------------------------------------------------------------------------

    pub(crate) fn advance_failover(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let (stop_limit, up) = (self.stop_limit_ms(), self.fully_up());
        let coming_limit = self.coming_limit_ms();
        let more = self.more_for_volumes_ms();
        let Some(f) = &mut self.failover else {
            return;
        };
        let (primary, since) = (f.primary, f.since);
        match &mut f.phase {
            Phase::Drain => {
                if now >= since + DRAIN_LIMIT_MS {
                    let text = format!("{}: what is under way here does not end", self.record.name);
                    let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
                    return self.end_failover(ctx, Err(failure));
                }
                let keeps = ctx.config.planted(PlantedBug::FailoverKeepsReceiving);
                if !keeps {
                    self.cancel_receiving(ctx);
                }
                let halted =
                    matches!(self.service, Service::Halted) && self.record.step_back.is_none();
                if halted && (keeps || !self.standby.is_busy()) {
                    self.look_for_instance(ctx);
                }
            }
            Phase::AskPrimary { attempt, ask_at } => {
                let attempt = *attempt;
                if now >= since + stop_limit + YIELD_LIMIT_MS + more || !ctx.connected(primary) {
                    self.bury(ctx, attempt);
                    let text = format!("{} did not answer", ctx.peer_name(primary));
                    return self.in_vain(ctx, Proof::PrimaryFenced, text);
                }
                if now >= *ask_at {
                    *ask_at = now + RESEND_MS;
                    let incarnation = ctx.config.incarnation;
                    let number = self.record.epoch.number + 1;
                    let next = Epoch { number, owner: ctx.config.fingerprint, attempt };
                    self.say(ctx, primary, Body::Yield { attempt, next, incarnation });
                }
            }
            Phase::AwaitLease { at } if now >= *at => self.proven(ctx, Proof::LeaseRanOut),
            Phase::Coming if up => self.failed_over(ctx),
            Phase::Coming if now >= since + coming_limit => {
                let text = format!(
                    "{} is this node's since epoch {}, and is not up yet: {}",
                    self.record.name,
                    self.record.epoch.number,
                    self.alarm.as_ref().map_or("see status", |a| a.message.as_str())
                );
                let failure = Failure::new(Remedy::Operator, FailureCode::TimedOut, text);
                self.end_failover(ctx, Err(failure));
            }
            _ => {}
        }
    }

    fn failed_over(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.mono_ms;
        let times = self.activation_times();
        let epoch = self.record.epoch.number;
        let Some(f) = &mut self.failover else {
            return;
        };
        let (Some(plan), Some(proof)) = (f.plan.take(), f.proof) else {
            return;
        };
        f.parts.push(("mount".into(), times.mount_ms));
        f.parts.push(("start".into(), times.start_ms));
        let mut notes = Vec::new();
        if proof == Proof::OperatorsWord {
            notes.push(
                "by the operator's word: if the primary was not down, what it wrote since is \
                        set aside there when it comes back"
                    .into(),
            );
        }
        let report = Box::new(FailoverReport {
            plan,
            proof,
            epoch,
            parts_ms: std::mem::take(&mut f.parts),
            total_ms: now - f.begun,
            aside: std::mem::take(&mut f.aside),
            notes,
        });
        let kind = EventKind::FailedOver(report.clone());
        ctx.report(self.record.id, &self.record.name, kind);
        self.end_failover(ctx, Ok(Reply::FailedOver(report)));
    }

    /// How long the volumes may take to come up, milliseconds.
    fn coming_limit_ms(&self) -> u64 {
        ACTIVATION_LIMIT_MS + PER_VOLUME_MS * self.record.volumes.len() as u64
    }

    pub(crate) fn failover_timeout(&self, ctx: &Ctx) -> Option<u64> {
        let f = self.failover.as_ref()?;
        match f.phase {
            Phase::Drain => Some(f.since + DRAIN_LIMIT_MS),
            Phase::AskPrimary { .. } if !ctx.connected(f.primary) => Some(f.since),
            Phase::AskPrimary { ask_at, .. } => Some(ask_at),
            Phase::AwaitLease { at } => Some(at),
            Phase::Coming => Some(f.since + self.coming_limit_ms()),
            Phase::Look { .. } | Phase::Hook { .. } | Phase::SetBack { .. } => None,
        }
    }
}

/// The newest moment that every volume has whole, and what it is called; nothing of those that have joined and are in
/// no moment yet.
pub(crate) fn newest_whole(
    volumes: &[VolumeRecord],
    inventories: &[Inventory],
) -> Option<(String, Found)> {
    if inventories.len() != volumes.len() {
        return None;
    }
    let snapshots = inventories.iter().zip(volumes);
    let snapshots: Vec<_> = snapshots.map(|(i, v)| (i.snapshots.as_slice(), v.joining)).collect();
    let found = plan::newest_whole(&snapshots)?;
    let short = found.first().copied().flatten()?.name.short().to_owned();
    let one = |(s, v): (Option<&Snapshot>, &VolumeRecord)| Some((v.id, s?.name.clone(), s?.guid));
    Some((short, found.into_iter().zip(volumes).map(one).collect()))
}
