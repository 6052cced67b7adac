//! While the workload still runs: preflight, rounds, the prediction, and whether it is good enough.

use super::{Cutover, Phase, Unit};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Now, OpId, QuestionId};
use crate::io::{Action, Outcome, Prediction, RoundReport};
use crate::limits::{
    CONVERGE_GAIN_PERCENT, CONVERGE_ROUNDS, CONVERGED_MS, GUESSED_START_MS, GUESSED_STOP_MS,
    GUESSED_STORE_MS, OUTRUN_MS, OUTRUN_ROUNDS,
};
use crate::message::PreflightFacts;
use crate::service::Work;
use crate::unit::Op;

impl Unit {
    pub(crate) fn on_preflight_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: Result<PreflightFacts, Failure>,
    ) {
        if self.dry_run_answered(ctx, peer, asked, &answer)
            || self.offer_answered(ctx, peer, asked, &answer)
        {
            return;
        }
        let Some(c) = &mut self.cutover else {
            return;
        };
        let mine = matches!(c.phase, Phase::Preflight { question, .. } if question == asked);
        if c.target != peer || !mine {
            return;
        }
        match answer {
            Ok(facts) => {
                c.facts = facts.clone();
                let delta_bytes = self.predict(ctx.now, peer, &facts).delta_bytes;
                match self.check_room(ctx, peer, &facts, delta_bytes) {
                    Ok(()) => self.pre_dump(ctx),
                    Err(failure) => self.undo(ctx, failure),
                }
            }
            Err(failure) => self.undo(ctx, failure),
        }
    }

    /// Where the workload moves with its memory, most of that goes ahead, like its data.
    fn pre_dump(&mut self, ctx: &mut Ctx) {
        let runs = matches!(self.work, Work::Running { .. });
        let program = self.record.workload.as_ref().map(|w| w.program.clone());
        match (self.state_folder(), program) {
            (Some(state), Some(program)) if runs => {
                let op = ctx.run(self.id(), Op::Cutover, Action::PreDump { program, state });
                self.enter(ctx, Phase::PreDump { op });
            }
            _ => self.converge(ctx),
        }
    }

    pub(super) fn converge(&mut self, ctx: &mut Ctx) {
        self.enter(ctx, Phase::Converge { rounds: 0, last_ms: None, outrun: 0 });
    }

    /// What the workload is was found out; then the target is asked.
    pub(crate) fn described(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        if self.dry_run_described(ctx, op, &outcome) {
            return;
        }
        let Some(Cutover { phase: Phase::Preflight { describing, .. }, accepted, .. }) =
            &self.cutover
        else {
            return;
        };
        if *describing != Some(op) {
            return;
        }
        match self.accept_losses(outcome, accepted) {
            Ok((description, notes)) => {
                let Some(c) = &mut self.cutover else { return };
                c.description = description;
                c.notes.extend(notes);
                if let Phase::Preflight { describing, ask_at, .. } = &mut c.phase {
                    (*describing, *ask_at) = (None, ctx.now.mono_ms);
                }
            }
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
            Phase::Converge { .. } => self.converged_a_round(ctx, peer, report.as_ref()),
            Phase::Transfer { begun, sent, .. } if *begun => {
                *sent = true;
                self.transfer_went_on(ctx);
            }
            _ => {}
        }
    }

    fn converged_a_round(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        report: Option<&RoundReport>,
    ) {
        let Some(c) = &self.cutover else { return };
        let (facts, budget_ms) = (c.facts.clone(), c.budget_ms);
        let prediction = self.predict(ctx.now, peer, &facts);
        let name = self.record.name.clone();
        let Some(c) = &mut self.cutover else { return };
        c.predicted = Some(prediction.clone());
        let Phase::Converge { rounds, last_ms, outrun } = &mut c.phase else { return };
        *rounds += 1;
        let took = report.map_or(0, |r| r.duration_ms);
        let gained = match *last_ms {
            Some(before) => took * 100 <= before * CONVERGE_GAIN_PERCENT,
            None => true,
        };
        *outrun = if gained || took <= OUTRUN_MS { 0 } else { *outrun + 1 };
        let outrun = *outrun >= OUTRUN_ROUNDS;
        *last_ms = Some(took);
        let over = took <= CONVERGED_MS || !gained || *rounds >= CONVERGE_ROUNDS;
        let fits = budget_ms.map(|budget| prediction.downtime_ms <= budget);
        let words = outrun.then(|| outrun_words(&name, &prediction));
        match (fits, over, words) {
            (Some(true), ..) => self.quiesce(ctx),
            (None, _, Some(words)) => {
                c.notes.push(words);
                self.quiesce(ctx);
            }
            (Some(false), _, Some(words)) => {
                let failure = over_budget(&name, budget_ms, &prediction, &words);
                self.undo(ctx, failure);
            }
            (None, true, None) => self.quiesce(ctx),
            (Some(false), true, None) => {
                let failure =
                    over_budget(&name, budget_ms, &prediction, "it does not get any closer");
                self.undo(ctx, failure);
            }
            (_, false, None) => {}
        }
    }

    /// Fixed cost + delta ÷ throughput, from what was measured of this unit and this peer.
    pub(crate) fn predict(
        &self,
        now: Now,
        peer: Fingerprint,
        facts: &PreflightFacts,
    ) -> Prediction {
        let replica = self.replicas.get(&peer);
        let known = self.record.move_costs.get(&peer).copied().filter(|c| c.moves > 0);
        let last = replica.and_then(|r| r.last.as_ref());
        let stopped = self.record.workload.as_ref().is_none_or(|w| !w.wanted);
        let fixed_ms = known.map_or_else(
            || {
                let start = match (&facts.last, &self.work) {
                    (Some(times), _) => times.start_ms + times.mount_ms,
                    (None, Work::Running { start_ms, .. }) if *start_ms > 0 => *start_ms,
                    _ => GUESSED_START_MS,
                };
                let round = last
                    .filter(|r| !r.full)
                    .map_or(GUESSED_STORE_MS, |r| r.duration_ms.min(GUESSED_STORE_MS * 4));
                let workload = if stopped { 0 } else { GUESSED_STOP_MS + start };
                workload + GUESSED_STORE_MS + round
            },
            |costs| costs.total_ms(),
        );
        let bytes_per_second = replica.and_then(|r| r.bytes_per_second);
        let written_per_second = replica.and_then(|r| r.written_per_second);
        let since_ms = replica.and_then(|r| r.lag_ms(now)).unwrap_or(0);
        let quiesce_ms = known.map_or(GUESSED_STOP_MS, |c| c.quiesce_ms);
        let delta_bytes = match (written_per_second, last) {
            _ if stopped => 0,
            (Some(rate), _) => rate.saturating_mul(since_ms + quiesce_ms) / 1000,
            (None, Some(round)) => round.stream_bytes,
            (None, None) => 0,
        };
        let travel_ms = bytes_per_second
            .filter(|rate| *rate > 0)
            .map_or(0, |rate| delta_bytes.saturating_mul(1000) / rate);
        Prediction {
            fixed_ms,
            delta_bytes,
            bytes_per_second,
            written_per_second,
            downtime_ms: fixed_ms + travel_ms,
            from_moves: known.map_or(0, |c| c.moves),
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
        let away = c.lost_at.is_some() || failure.code == FailureCode::ConnectionLost;
        match &mut c.phase {
            // A stale inventory is looked at again; a connection may come back; anything else ends
            // the attempt.
            Phase::Converge { .. } if (failure.remedy == Remedy::Replan && !in_a_row) || away => {}
            Phase::Transfer { begun, .. }
                if (failure.remedy == Remedy::Replan && was_final) || away =>
            {
                *begun = false;
            }
            Phase::Transfer { begun: false, .. } => {}
            Phase::Converge { .. } | Phase::Transfer { .. } => self.undo(ctx, failure),
            _ => {}
        }
    }
}

fn outrun_words(name: &str, prediction: &Prediction) -> String {
    let rate = |r: Option<u64>| match r {
        None => "an unknown rate".to_owned(),
        Some(r) if r < 100_000 => format!("{:.1} kB/s", r as f64 / 1e3),
        Some(r) => format!("{:.1} MB/s", r as f64 / 1e6),
    };
    format!(
        "{name} is written faster than the link carries it away: {} written, {} carried",
        rate(prediction.written_per_second),
        rate(prediction.bytes_per_second)
    )
}

fn over_budget(name: &str, budget_ms: Option<u64>, prediction: &Prediction, why: &str) -> Failure {
    let budget = budget_ms.unwrap_or(0);
    let text = format!(
        "{name} would be down for about {} ms ({} ms fixed, {} kB to send), and the budget is \
         {budget} ms: {why}; give a larger --budget, or write less meanwhile",
        prediction.downtime_ms,
        prediction.fixed_ms,
        prediction.delta_bytes.div_ceil(1000)
    );
    Failure::refused(FailureCode::OverBudget, text)
}
