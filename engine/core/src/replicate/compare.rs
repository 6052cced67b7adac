//! A standby's person asks what both sides have: looked at, and said. Nothing of this side is touched.

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Fingerprint, OpId, QuestionId};
use crate::io::{Action, Outcome};
use crate::message::Body;
use crate::unit::{Op, Unit};

impl Unit {
    pub(crate) fn on_compare(&mut self, ctx: &mut Ctx, peer: Fingerprint, question: QuestionId) {
        if self.comparing.get(&peer).is_some_and(|(_, asked)| *asked == question) {
            return; // Asked again while it is being looked at.
        }
        if !self.record.role.is_primary() || !self.record.standbys.contains(&peer) {
            let text = format!(
                "{}: this node is {}, and {} is no standby of it",
                self.record.name,
                self.record.role.word(),
                ctx.peer_name(peer)
            );
            let answer = Err(Failure::refused(FailureCode::Conflict, text));
            return self.say(ctx, peer, Body::CompareReply { question, answer });
        }
        let action = Action::Inspect { datasets: self.datasets(), streams: false };
        let op = ctx.run(self.id(), Op::Compare { peer }, action);
        self.comparing.insert(peer, (op, question));
    }

    pub(crate) fn compare_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        peer: Fingerprint,
        outcome: Result<Outcome, Failure>,
    ) {
        let question = match self.comparing.get(&peer) {
            Some((mine, question)) if *mine == op => *question,
            _ => return,
        };
        self.comparing.remove(&peer);
        let answer = match outcome {
            Ok(Outcome::Inspected(found)) => {
                Ok(crate::standby::surveys(&self.record.volumes, found))
            }
            Ok(_) => unreachable!("asked for an inspection"),
            Err(failure) => Err(failure),
        };
        self.say(ctx, peer, Body::CompareReply { question, answer });
    }
}
