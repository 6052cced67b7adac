//! A standby that went its own way, on a person's word: what only it has is kept aside, and it follows again.
//!
//! ```text
//!   Gather (both inventories, what was written) ──▶ answered: a dry run, or nothing differs
//!        │ differs
//!        ▼                 durable: step_back
//!      Fence ─────────────────────────────────▶ SetAside ──▶ answered
//! ```
//!
//! It is decided here and not on the primary, since it is this node's data that goes aside; the primary is only
//! asked what it has, and nothing of it is touched. Postconditions. Until `step_back` is durable nothing was
//! changed but the fence, which a standby has anyway. From then on it is finished, whatever comes between
//! (see [`super::stepback`]), before anything is received.

use std::collections::BTreeSet;

use flocker_store::{Change, DatasetName, Guid, Inventory};

use super::StandbyView;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId, QuestionId, RequestId, VolumeId};
use crate::io::{Action, Outcome, Reply, ResolvePlan, ResolveReport, VolumeDifference};
use crate::limits::{ANSWER_LIMIT_MS, RESEND_MS};
use crate::message::{Body, VolumeSurvey};
use crate::plan;
use crate::record::Role;
use crate::unit::{Op, Unit};

/// A person waits for this.
#[derive(Debug, Clone)]
pub(crate) struct Resolving {
    request: RequestId,
    source: Fingerprint,
    dry_run: bool,
    since: u64,
    stage: Stage,
}

#[derive(Debug, Clone)]
enum Stage {
    Gather(Box<Gathering>),
    Fence { op: OpId, plan: Box<ResolvePlan>, bases: Vec<(VolumeId, Guid)> },
    SetAside { plan: Option<Box<ResolvePlan>> },
}

#[derive(Debug, Clone)]
struct Gathering {
    question: QuestionId,
    ask_at: u64,
    theirs: Option<Vec<VolumeSurvey>>,
    op: Option<OpId>,
    /// Whether each dataset exists, and what it has.
    ours: Option<Vec<(bool, Inventory)>>,
    /// Asked since `ours` is known.
    written: Option<Change>,
}

impl StandbyView {
    /// Nothing may come in between.
    pub(super) fn is_resolving(&self) -> bool {
        self.resolving.as_ref().is_some_and(|r| !r.dry_run)
    }
}

impl Unit {
    pub(crate) fn resolve(&mut self, ctx: &mut Ctx, request: RequestId, dry_run: bool) {
        let source = match self.may_resolve(ctx) {
            Ok(source) => source,
            Err(failure) => return ctx.reply(request, Err(failure)),
        };
        let begun = self.record.step_back.is_some() && !dry_run;
        let stage = match begun {
            true => Stage::SetAside { plan: None },
            false => Stage::Gather(Box::new(Gathering {
                question: ctx.new_question(),
                ask_at: 0,
                theirs: None,
                op: None,
                ours: None,
                written: None,
            })),
        };
        let since = ctx.now.mono_ms;
        self.standby.resolving = Some(Resolving { request, source, dry_run, since, stage });
        if !dry_run {
            self.cancel_receiving(ctx);
        }
    }

    fn may_resolve(&self, ctx: &Ctx) -> Result<Fingerprint, Failure> {
        let name = &self.record.name;
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let source = match self.record.role {
            Role::Following { source } => source,
            Role::Serving => {
                let standbys: Vec<_> =
                    self.record.standbys.iter().map(|p| ctx.peer_name(*p)).collect();
                let text = format!(
                    "{name} is primary here: its data is what a standby is brought to, and none of it is set \
                     aside; run `flocker-repl resolve {name}` on {}",
                    standbys.join(" or ")
                );
                return refuse(FailureCode::BadRequest, text);
            }
            Role::Leaving { .. } | Role::HandedOver { .. } | Role::Ready { .. } => {
                let text = format!("{name} is being migrated; wait until it has ended");
                return refuse(FailureCode::Busy, text);
            }
        };
        if self.standby.resolving.is_some() {
            return refuse(FailureCode::Busy, format!("{name} is being resolved already"));
        }
        if self.failing_over() || self.drill.is_some() {
            let text = format!("{name}: a failover or a drill is under way here; wait for its end");
            return refuse(FailureCode::Busy, text);
        }
        if !ctx.connected(source) {
            let text = format!(
                "{name}: {0} is not connected, and what the two have in common is known only from both; try \
                 again when {0} is there",
                ctx.peer_name(source)
            );
            return refuse(FailureCode::ConnectionLost, text);
        }
        Ok(source)
    }

    /// Begins what is due, and gives up what cannot come to an end any more.
    pub(crate) fn advance_resolving(&mut self, ctx: &mut Ctx) {
        let Some(resolving) = &self.standby.resolving else {
            return;
        };
        let (source, since) = (resolving.source, resolving.since);
        if !matches!(self.record.role, Role::Following { source: now } if now == source) {
            let text = format!("{}: it changed its primary meanwhile", self.record.name);
            let failure = Failure::refused(FailureCode::Cancelled, text);
            return self.end_resolving(ctx, Err(failure));
        }
        let Stage::Gather(gathering) = &resolving.stage else {
            return;
        };
        let gathering = gathering.clone();
        if !ctx.connected(source) {
            let text = format!("{}: the connection was lost; try again", self.record.name);
            let failure = Failure::new(Remedy::Retry, FailureCode::ConnectionLost, text);
            return self.end_resolving(ctx, Err(failure));
        }
        if ctx.now.mono_ms >= since + ANSWER_LIMIT_MS {
            let text = format!("{}: it took too long to see what both have", self.record.name);
            let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
            return self.end_resolving(ctx, Err(failure));
        }
        self.gather(ctx, source, *gathering);
    }

    fn gather(&mut self, ctx: &mut Ctx, source: Fingerprint, mut gathering: Gathering) {
        let dry_run = self.standby.resolving.as_ref().is_some_and(|r| r.dry_run);
        if gathering.theirs.is_none() && ctx.now.mono_ms >= gathering.ask_at {
            gathering.ask_at = ctx.now.mono_ms + RESEND_MS;
            let question = gathering.question;
            self.say(ctx, source, Body::Compare { question });
        }
        // What comes to an end while one looks would be taken for something of ours alone.
        let rests = dry_run || !self.standby.is_busy();
        if gathering.ours.is_none() && gathering.op.is_none() && rests {
            let action = Action::Inspect { datasets: self.datasets(), streams: false };
            gathering.op = Some(ctx.run(self.id(), Op::Resolve, action));
        }
        let complete = match &gathering {
            Gathering {
                theirs: Some(theirs), ours: Some(ours), written: Some(written), ..
            } => Some(self.resolve_plan(source, theirs, ours, *written)),
            _ => None,
        };
        if let Some(resolving) = &mut self.standby.resolving {
            resolving.stage = Stage::Gather(Box::new(gathering));
        }
        match complete {
            None => {}
            Some(Err(failure)) => self.end_resolving(ctx, Err(failure)),
            Some(Ok((plan, bases))) => self.resolve_planned(ctx, plan, bases),
        }
    }

    /// Pure: what both have, and what each volume would be set back to.
    fn resolve_plan(
        &self,
        primary: Fingerprint,
        theirs: &[VolumeSurvey],
        ours: &[(bool, Inventory)],
        written: Change,
    ) -> Result<(ResolvePlan, Vec<(VolumeId, Guid)>), Failure> {
        let (mut volumes, mut bases) = (Vec::new(), Vec::new());
        for (volume, (exists, here)) in self.record.volumes.iter().zip(ours) {
            let survey = theirs.iter().find(|s| s.volume == volume.id);
            let Some(there) = survey.and_then(|s| s.inventory.as_ref()) else {
                let text = format!("the primary said nothing of {}", volume.dataset);
                return Err(Failure::new(Remedy::Retry, FailureCode::Other, text));
            };
            let found = plan::difference(there, here);
            bases.extend(found.common.map(|s| (volume.id, s.guid)));
            volumes.push(VolumeDifference {
                dataset: volume.dataset.clone(),
                exists: *exists,
                common: found.common.map(Into::into),
                only_here: found.only_target.iter().map(Into::into).collect(),
                only_there: found.only_source.into_iter().map(Into::into).collect(),
            });
        }
        // What has to be renamed away takes along what lies below it.
        let has: BTreeSet<VolumeId> = bases.iter().map(|(id, _)| *id).collect();
        let gone = self.record.volumes.iter().filter(|v| !has.contains(&v.id)).map(|v| &v.dataset);
        let gone: BTreeSet<&DatasetName> = gone.collect();
        let all = self.record.volumes.iter().map(|v| &v.dataset);
        let away = crate::tree::with_all_below(all, &gone);
        let stays = |id: VolumeId| {
            !self.record.volumes.iter().any(|v| v.id == id && away.contains(&v.dataset))
        };
        if !gone.is_empty() {
            bases.retain(|(id, _)| stays(*id));
        }
        let written_bytes = match written {
            Change::Unchanged => Some(0),
            Change::Changed { bytes } => Some(bytes),
            Change::Unknown => None,
        };
        // What arrived of a first receive is nothing yet, and nobody's.
        let begun = |at: usize| ours.get(at).is_some_and(|(_, i)| is_begun(i));
        let apart = volumes.iter().enumerate().any(|(at, v)| {
            !v.only_here.is_empty() || (v.exists && v.common.is_none() && !begun(at))
        });
        let differs = apart || written != Change::Unchanged;
        let name = self.record.name.clone();
        Ok((ResolvePlan { name, primary, volumes, written_bytes, differs }, bases))
    }

    fn resolve_planned(&mut self, ctx: &mut Ctx, plan: ResolvePlan, bases: Vec<(VolumeId, Guid)>) {
        let Some(resolving) = &mut self.standby.resolving else {
            return;
        };
        if resolving.dry_run {
            return self.end_resolving(ctx, Ok(Reply::ResolvePlan(Box::new(plan))));
        }
        if !plan.differs {
            let name = plan.name.clone();
            let report = ResolveReport { name, plan: Some(plan), aside: Vec::new() };
            return self.end_resolving(ctx, Ok(Reply::Resolved(Box::new(report))));
        }
        // Somebody may have made it writable by hand: whoever holds it is named, and nothing is changed.
        let there = plan.volumes.iter().filter(|v| v.exists).map(|v| v.dataset.clone());
        let datasets = there.collect();
        let op = ctx.run(self.record.id, Op::Resolve, Action::Fence { datasets });
        if let Some(resolving) = &mut self.standby.resolving {
            resolving.stage = Stage::Fence { op, plan: Box::new(plan), bases };
        }
    }

    pub(crate) fn on_compare_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: Result<Vec<VolumeSurvey>, Failure>,
    ) {
        let Some(Resolving { source, stage: Stage::Gather(gathering), .. }) =
            &mut self.standby.resolving
        else {
            return;
        };
        if *source != peer || gathering.question != asked {
            return;
        }
        match answer {
            Ok(surveys) => gathering.theirs = Some(surveys),
            Err(failure) => self.end_resolving(ctx, Err(failure)),
        }
    }

    pub(crate) fn resolve_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(resolving) = &mut self.standby.resolving else {
            return;
        };
        match &mut resolving.stage {
            Stage::Gather(gathering) if gathering.op == Some(op) => {
                gathering.op = None;
                match outcome {
                    Ok(Outcome::Inspected(found)) => {
                        let ours = found.into_iter().map(|f| (f.info.is_some(), f.inventory));
                        let ours: Vec<(bool, Inventory)> = ours.collect();
                        let newest = ours.iter().filter_map(|(_, i)| i.latest());
                        let since: Vec<_> = newest.map(|s| s.name.clone()).collect();
                        gathering.ours = Some(ours);
                        if since.is_empty() {
                            gathering.written = Some(Change::Unchanged);
                        } else {
                            let action = Action::Changed { since };
                            gathering.op = Some(ctx.run(self.record.id, Op::Resolve, action));
                        }
                    }
                    Ok(Outcome::Changed(change)) => gathering.written = Some(change),
                    Ok(_) => unreachable!("asked what is here, and whether it was written"),
                    Err(failure) => self.end_resolving(ctx, Err(failure)),
                }
            }
            Stage::Fence { op: mine, plan, bases } if *mine == op => match outcome {
                Ok(_) => {
                    let (plan, bases) = (plan.clone(), bases.clone());
                    resolving.stage = Stage::SetAside { plan: Some(plan) };
                    if self.record.step_back.is_none() {
                        self.record.step_back = Some(bases);
                        self.persist(ctx);
                    }
                    self.local.forget();
                }
                Err(failure) => self.end_resolving(ctx, Err(failure)),
            },
            _ => {}
        }
    }

    /// What only this node had is aside, or that did not work yet.
    pub(super) fn resolved(&mut self, ctx: &mut Ctx, outcome: Result<Vec<String>, Failure>) {
        let Some(Resolving { stage: Stage::SetAside { plan }, .. }) = &mut self.standby.resolving
        else {
            return;
        };
        let (plan, name) = (plan.take().map(|p| *p), self.record.name.clone());
        let reply = outcome.map(|names| {
            let aside = names.into_iter().filter_map(|n| flocker_store::DatasetName::new(n).ok());
            Reply::Resolved(Box::new(ResolveReport { name, plan, aside: aside.collect() }))
        });
        self.end_resolving(ctx, reply);
    }

    /// Ends it, and says why. What is durable by then is done all the same.
    pub(crate) fn end_resolving(&mut self, ctx: &mut Ctx, answer: Result<Reply, Failure>) {
        if let Some(resolving) = self.standby.resolving.take() {
            ctx.reply(resolving.request, answer);
        }
    }

    pub(crate) fn resolving_timeout(&self) -> Option<u64> {
        let resolving = self.standby.resolving.as_ref()?;
        match &resolving.stage {
            Stage::Gather(gathering) => {
                let limit = resolving.since + ANSWER_LIMIT_MS;
                Some(if gathering.theirs.is_none() { gathering.ask_at.min(limit) } else { limit })
            }
            Stage::Fence { .. } | Stage::SetAside { .. } => None,
        }
    }
}

/// Nothing but what arrived of an interrupted first receive.
fn is_begun(inventory: &Inventory) -> bool {
    inventory.snapshots.is_empty() && inventory.partial.is_some()
}
