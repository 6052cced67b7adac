//! What lets a node take over: which proofs are possible, one after another, and what each comes to.

use super::Phase;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint};
use crate::io::Action;
use crate::message::Body;
use crate::node::PlantedBug;
use crate::record::{Proof, Role};
use crate::service::Service;
use crate::unit::{Op, Unit};

impl Unit {
    pub(super) fn prove(&mut self, ctx: &mut Ctx) {
        let Some(f) = &self.failover else {
            return;
        };
        if ctx.config.planted(PlantedBug::FailoverWithoutProof) {
            return self.proven(ctx, Proof::FencingHook);
        }
        let (primary, now) = (f.primary, ctx.now.mono_ms);
        let untried = |p: &Proof| !f.tried.iter().any(|(t, _)| t == p);
        // A primary that is said to be down, and is connected: it is asked first.
        let contradicted = ctx.connected(primary)
            && self.record.role.is_standby()
            && untried(&Proof::PrimaryFenced);
        let waits = matches!(self.record.role, Role::HandedOver { .. });
        if f.word && waits && ctx.connected(primary) {
            // It is there, and what it answers to the commit is all that counts.
            let words = format!("{} is connected, so it is not down", ctx.peer_name(primary));
            if let Some(f) = &mut self.failover {
                (f.word, f.refuted) = (false, true);
                f.tried.push((Proof::OperatorsWord, words));
            }
            return self.prove(ctx);
        }
        if f.word && !contradicted {
            return self.proven(ctx, Proof::OperatorsWord);
        }
        match self.possible_proofs(ctx, primary).into_iter().find(untried) {
            Some(Proof::PrimaryFenced) => {
                self.record.last_attempt += 1;
                let number = self.record.last_attempt;
                let attempt = AttemptId { issuer: ctx.config.fingerprint, number };
                self.persist(ctx);
                self.enter_failover(ctx, Phase::AskPrimary { attempt, ask_at: now });
            }
            Some(Proof::LeaseRanOut) => {
                let at = now + self.lease_left_ms(ctx).unwrap_or(0);
                self.enter_failover(ctx, Phase::AwaitLease { at });
            }
            Some(Proof::FencingHook) => {
                let peer_name = ctx.peer_name(primary);
                let action = Action::FencingHook { peer: primary, peer_name };
                let op = ctx.run(self.id(), Op::Failover, action);
                self.enter_failover(ctx, Phase::Hook { op });
            }
            Some(Proof::OperatorsWord) | None => self.no_proof(ctx),
        }
    }

    fn no_proof(&mut self, ctx: &mut Ctx) {
        let Some(f) = &self.failover else {
            return;
        };
        let tried: Vec<_> = f.tried.iter().map(|(_, words)| words.as_str()).collect();
        let tried =
            if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) };
        let text = format!(
            "{0}: nothing proves that {1} does not write it any more{tried}. {2}; or configure `[fencing]`, or \
             protect it with --lease",
            self.record.name,
            ctx.peer_name(f.primary),
            match f.refuted {
                true => format!(
                    "Move it from there (flocker-repl migrate {0}), or switch that host off and \
                                 ask again",
                    self.record.name
                ),
                false => format!(
                    "If you know that {1} is down: flocker-repl failover {0} --primary-is-down",
                    self.record.name,
                    ctx.peer_name(f.primary)
                ),
            }
        );
        self.end_failover(ctx, Err(Failure::refused(FailureCode::NoProof, text)));
    }

    pub(super) fn in_vain(&mut self, ctx: &mut Ctx, proof: Proof, words: String) {
        if let Some(f) = &mut self.failover {
            f.tried.push((proof, words));
        }
        self.prove(ctx);
    }

    pub(super) fn proven(&mut self, ctx: &mut Ctx, proof: Proof) {
        let wall_ms = ctx.now.wall_ms;
        let tag = self.tag();
        let id = self.id();
        let Some(f) = &mut self.failover else {
            return;
        };
        f.proof = Some(proof);
        if matches!(self.record.role, Role::HandedOver { .. }) {
            // It is fenced with all that it has: there is nothing to set back.
            return self.take_over(ctx);
        }
        let keep = f.instance.iter().map(|(_, name, _)| name.clone()).collect();
        let op =
            ctx.run(id, Op::Failover, Action::SetAside { keep, away: Vec::new(), tag, wall_ms });
        let attempt = match f.phase {
            Phase::AskPrimary { attempt, .. } => Some(attempt),
            _ => None,
        };
        self.enter_failover(ctx, Phase::SetBack { op });
        if let Some(f) = &mut self.failover {
            f.yielded = attempt;
        }
    }

    /// The primary has stopped, fenced, and durably handed over to this attempt of ours: it asks whether
    /// we take it. `true`: the answer comes later.
    pub(crate) fn yielded_to(&mut self, ctx: &mut Ctx, attempt: AttemptId) -> bool {
        let Some(f) = &self.failover else {
            return false;
        };
        match f.phase {
            Phase::AskPrimary { attempt: mine, .. } if mine == attempt => {
                self.proven(ctx, Proof::PrimaryFenced);
                true
            }
            _ => f.yielded == Some(attempt),
        }
    }

    pub(crate) fn on_yield_refused(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        attempt: AttemptId,
        failure: Failure,
    ) {
        let Some(f) = &mut self.failover else {
            return;
        };
        let asked = matches!(f.phase, Phase::AskPrimary { attempt: mine, .. } if mine == attempt);
        if asked && f.primary == peer {
            // Whoever answers is not down: the word was given too soon, or of something else.
            f.refuted |= std::mem::take(&mut f.word);
            let words = match f.refuted {
                true => format!("it answers, so it is not down: {}", failure.message),
                false => failure.message,
            };
            self.bury(ctx, attempt);
            self.in_vain(ctx, Proof::PrimaryFenced, words);
        }
    }

    /// This node serves from now on by somebody's decision, a failover or the word to start alone. An owner of a
    /// newer epoch that comes back may not know of it: that one took it over, or back, before it was decided
    /// that it does not serve any more. The later decision counts.
    pub(crate) fn decide(&mut self) {
        self.record.decided_epoch = Some(self.record.epoch.number);
        self.followed_by.clear();
    }

    /// A standby has this epoch in its journal: once all have, whoever owns a newer one knew of it.
    pub(crate) fn is_followed(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if self.record.decided_epoch.is_none() || !self.record.role.is_primary() {
            return;
        }
        self.followed_by.insert(peer);
        if self.record.standbys.iter().all(|s| self.followed_by.contains(s)) {
            self.record.decided_epoch = None;
            self.persist(ctx);
        }
    }

    pub(crate) fn is_decided(&self) -> bool {
        self.record.role.is_primary() && self.record.decided_epoch == Some(self.record.epoch.number)
    }

    /// The owner of a newer epoch does not run it, and asks whether it may. Where clients are served here, by
    /// the later decision, it may not. Until this node knows whether it serves it says nothing, and neither
    /// does.
    pub(crate) fn on_unserved_claim(&mut self, ctx: &mut Ctx, peer: Fingerprint, theirs: Epoch) {
        let serves = self.record.role == Role::Serving
            && self.cutover.is_none()
            && !self.strict
            && self.lease_allows(ctx.now.mono_ms)
            && matches!(self.service, Service::Activating { .. } | Service::Up { .. });
        if serves {
            return self.outrank(ctx, peer, theirs);
        }
        if matches!(self.service, Service::Claiming { .. }) {
            let text = format!(
                "{0}: not started: this node was told to serve it (epoch {1}), and so was {2} (epoch {3}), \
                 neither knowing of the other, and it runs on neither: say flocker-repl start-alone {0} on \
                 the one whose data is to count; what only the other has is set aside there",
                self.record.name,
                self.record.epoch.number,
                ctx.peer_name(peer),
                theirs.number
            );
            self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::Conflict, text));
        }
    }

    /// Goes on under a number above `theirs`, which its owner does not serve under.
    fn outrank(&mut self, ctx: &mut Ctx, peer: Fingerprint, theirs: Epoch) {
        let (before, number) = (self.record.epoch.number, theirs.number + 1);
        self.record.epoch.number = number;
        self.decide();
        // The failover stays what it was.
        if let Some(failover) = self.record.failover.as_mut().filter(|f| f.epoch == before) {
            failover.epoch = number;
        }
        self.persist(ctx);
        self.upkeep.mirror_due = true;
        let text = format!(
            "{} asks whether it may serve epoch {}, of which this node did not know when it was told to serve; \
             it may not, this node goes on as epoch {number}",
            ctx.peer_name(peer),
            theirs.number
        );
        self.note(ctx, text);
        self.say(ctx, peer, Body::Stale);
    }
}
