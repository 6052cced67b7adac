//! A standby that was primary before: it is told what the two have in common, and keeps the rest aside.

use super::{Replica, Round, State};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Now, QuestionId};
use crate::limits::RATE_BYTES;
use crate::message::VolumeSurvey;
use crate::plan;
use crate::unit::Unit;

impl Unit {
    pub(super) fn ask_to_step_back(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        theirs: &[VolumeSurvey],
    ) {
        let ours = self.local.inventories.as_deref().unwrap_or_default();
        let mut bases = Vec::new();
        for (volume, inventory) in self.record.volumes.iter().zip(ours) {
            let survey = theirs.iter().find(|s| s.volume == volume.id);
            if survey.is_some_and(|s| s.inventory.is_none()) {
                // It joined, and never came there: nothing to go back from.
                continue;
            }
            let common = survey.and_then(|s| s.inventory.as_ref()).and_then(|there| {
                let known = |guid| plan::find_base(inventory, guid).is_some();
                there.snapshots.iter().rev().map(|s| s.guid).find(|guid| known(*guid))
            });
            let Some(common) = common else {
                let text = format!(
                    "{} and its old primary {} have no snapshot in common any more; {}",
                    volume.dataset,
                    ctx.peer_name(peer),
                    self.resolve_words(ctx, peer)
                );
                let failure = Failure::new(Remedy::Operator, FailureCode::NoBase, text);
                return self.round_failed(ctx, peer, failure);
            };
            bases.push((volume.id, common));
        }
        let question = ctx.new_question();
        if let Some(replica) = self.replicas.get_mut(&peer) {
            replica.state = State::SteppingBack { ask_at: 0, question, bases };
        }
    }

    pub(crate) fn on_step_back_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: Result<Vec<String>, Failure>,
    ) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        if !matches!(replica.state, State::SteppingBack { question, .. } if question == asked) {
            return;
        }
        match answer {
            Ok(aside) => {
                let question = ctx.new_question();
                let (theirs, was_primary) = (None, false);
                replica.state = State::Surveying { ask_at: 0, question, theirs, was_primary };
                if !aside.is_empty() {
                    let text = format!(
                        "what only {} had is kept there: {}",
                        ctx.peer_name(peer),
                        aside.join(", ")
                    );
                    self.note(ctx, text);
                }
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }
}

impl Replica {
    /// What a round says about the link and about the workload.
    pub(super) fn measure(
        &mut self,
        round: &Round,
        before: Option<Now>,
        taken: Now,
        duration_ms: u64,
    ) {
        let smooth = |old: Option<u64>, new: u64| Some(old.map_or(new, |o| o.midpoint(new)));
        let rate = |bytes: u64, ms: u64| bytes.saturating_mul(1000) / ms.max(1);
        if round.carried.stream_bytes >= RATE_BYTES {
            let new = rate(round.carried.stream_bytes, duration_ms);
            self.bytes_per_second = smooth(self.bytes_per_second, new);
        }
        if let Some(before) = before.filter(|_| !round.full) {
            let passed_ms = taken.mono_ms.saturating_sub(before.mono_ms);
            let new = rate(round.carried.stream_bytes, passed_ms);
            self.written_per_second = smooth(self.written_per_second, new);
        }
    }
}
