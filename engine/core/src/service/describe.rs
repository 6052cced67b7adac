//! A workload that another program on the node runs: what the other node has to have for it, and being ready there
//! before it is needed.
//!
//! Owns: asking what it is, telling every standby of it whenever it runs and they are connected (so that a failover
//! finds it ready), and what a move would leave behind. Leaves to others: what a description says, which only the
//! drivers know; the move itself (`cutover`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::{Service, Work};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Fingerprint, OpId, QuestionId};
use crate::io::{Action, Outcome};
use crate::limits::{ANSWER_LIMIT_MS, MAKE_READY_LIMIT_MS};
use crate::message::{Body, PreflightFacts, Wanted};
use crate::record::{MoveMode, Program, WorkloadKind, WorkloadRecord};
use crate::unit::{Op, Unit};

/// Standbys that are told of the workload while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    /// It is being asked what it is.
    op: Option<OpId>,
    /// Who has been told since it began to run, or since they were connected, and by which question.
    told: BTreeMap<Fingerprint, QuestionId>,
}

impl Unit {
    /// The workload's program if it is to run and is not a process of ours: that the other node has its own
    /// command for.
    fn foreign(&self) -> Option<&Program> {
        let workload = self.record.workload.as_ref().filter(|w| w.wanted)?;
        (workload.program.kind() != WorkloadKind::Process).then_some(&workload.program)
    }

    /// Begins to find out what the workload is; `None`: there is nothing to find out.
    pub(crate) fn describe(&self, ctx: &mut Ctx, why: Op) -> Option<OpId> {
        let program = self.foreign()?.clone();
        let Service::Up { paths: Some(paths), .. } = &self.service else {
            return None;
        };
        let (paths, state) = (paths.clone(), self.state_folder());
        Some(ctx.run(self.id(), why, Action::DescribeWorkload { program, state, paths }))
    }

    /// What the target of a move is asked to start; `None`: nothing.
    pub(crate) fn wanted_there(&self, description: String) -> Option<Wanted> {
        let workload = self.record.workload.as_ref().filter(|w| w.wanted)?;
        Some(Wanted { kind: workload.program.kind(), description })
    }

    /// Within how long a target has to answer, milliseconds.
    pub(crate) fn ready_limit_ms(&self) -> u64 {
        if self.foreign().is_some() { MAKE_READY_LIMIT_MS } else { ANSWER_LIMIT_MS }
    }

    /// A description whose losses are all accepted, and what those are.
    pub(crate) fn accept_losses(
        &self,
        outcome: Result<Outcome, Failure>,
        accepted: &BTreeSet<String>,
    ) -> Result<(String, Vec<String>), Failure> {
        let (description, losses) = match outcome? {
            Outcome::Described { description, losses } => (description, losses),
            _ => unreachable!("asked for a description"),
        };
        let (taken, open): (Vec<_>, Vec<_>) =
            losses.into_iter().partition(|loss| accepted.contains(&loss.name));
        if open.is_empty() {
            let notes =
                taken.iter().map(|loss| format!("left behind, as was accepted: {}", loss.what));
            return Ok((description, notes.collect()));
        }
        let named = open.iter().map(|loss| format!("{}: {}", loss.name, loss.what));
        let text = format!(
            "{} would leave something behind: {}. Move it into a volume of the unit, or accept each by \
             `--accept-loss NAME`",
            self.record.name,
            named.collect::<Vec<_>>().join("; ")
        );
        Err(Failure::refused(FailureCode::LeftBehind, text))
    }

    /// Where the memory of a workload is written that moves with it.
    pub(crate) fn state_folder(&self) -> Option<PathBuf> {
        let workload = self.record.workload.as_ref()?;
        let MoveMode::Checkpoint { state } = &workload.mode else { return None };
        let Service::Up { paths: Some(paths), .. } = &self.service else { return None };
        let at = self.record.volumes.iter().position(|v| v.dataset.leaf() == state)?;
        paths.get(at).cloned()
    }

    /// Whether a unit can have this workload at all.
    pub(super) fn can_be(&self, workload: &WorkloadRecord) -> Result<(), Failure> {
        let name = &self.record.name;
        let kind = workload.program.kind();
        if self.record.lease_ms.is_some() && kind != WorkloadKind::Process {
            let text = format!(
                "{name} has a lease, and what {kind} runs has no supervisor that ends it when the lease runs out: \
                 protect it without --lease, or run it as a process"
            );
            return Err(Failure::refused(FailureCode::Unsupported, text));
        }
        if let MoveMode::Checkpoint { state } = &workload.mode {
            let leaves: Vec<&str> = self.record.volumes.iter().map(|v| v.dataset.leaf()).collect();
            if !leaves.contains(&state.as_str()) {
                let text = format!(
                    "{name} has no volume `{state}` for the memory of its workload, only {}: protect one more dataset \
                     with it, which the workload does not see",
                    leaves.join(", ")
                );
                return Err(Failure::refused(FailureCode::BadRequest, text));
            }
        }
        Ok(())
    }

    // ---- standbys are made ready ----------------------------------------------------------------

    /// Standbys that know the unit and are there.
    fn listening(&self, ctx: &Ctx) -> BTreeSet<Fingerprint> {
        let introduced = |peer: &Fingerprint| self.replicas.get(peer).is_some_and(|r| r.introduced);
        let standbys = self.record.standbys.iter().copied();
        standbys.filter(|peer| ctx.connected(*peer) && introduced(peer)).collect()
    }

    pub(crate) fn advance_offer(&mut self, ctx: &mut Ctx) {
        let runs = matches!(self.work, Work::Running { .. })
            && matches!(self.service, Service::Up { .. })
            && self.cutover.is_none()
            && self.foreign().is_some();
        if !runs {
            self.offer = Offer::default();
            return;
        }
        let listening = self.listening(ctx);
        self.offer.told.retain(|peer, _| listening.contains(peer));
        let open = listening.iter().any(|peer| !self.offer.told.contains_key(peer));
        if open && self.offer.op.is_none() {
            self.offer.op = self.describe(ctx, Op::Offer);
        }
    }

    pub(crate) fn offer_described(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.offer.op != Some(op) {
            return;
        }
        self.offer.op = None;
        let description = match outcome {
            Ok(Outcome::Described { description, .. }) => description,
            Ok(_) => unreachable!("asked for a description"),
            Err(failure) => {
                // The next to connect has it asked again; a move says it to whoever asked for it.
                self.note(
                    ctx,
                    format!("{}: what runs cannot be told: {failure}", self.record.name),
                );
                String::new()
            }
        };
        let mut open = self.listening(ctx);
        open.retain(|peer| !self.offer.told.contains_key(peer));
        for peer in open {
            let question = ctx.new_question();
            self.offer.told.insert(peer, question);
            if !description.is_empty()
                && let workload @ Some(_) = self.wanted_there(description.clone())
            {
                self.say(ctx, peer, Body::Preflight { question, workload });
            }
        }
    }

    /// A standby's answer to what it was told; `false`: it was asked something else.
    pub(crate) fn offer_answered(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: &Result<PreflightFacts, Failure>,
    ) -> bool {
        if self.offer.told.get(&peer) != Some(&asked) {
            return false;
        }
        if let Err(failure) = answer {
            let text = format!("{} is not ready there: {failure}", self.record.name);
            self.note(ctx, text);
        }
        true
    }
}
