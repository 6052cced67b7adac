//! Volumes that join a unit which is served here, and those of a tree that are gone.
//!
//! ```text
//!   asked (a person, or the engine that found them) ──▶ every standby agrees ──▶ made reachable ──▶ volumes
//!                                                           │ one refuses           │ cannot be
//!                                                           └───────────────────────┴──▶ refused, nothing is changed
//! ```
//!
//! Postconditions. Joined: durable here, and durable at every standby, which has them as `joining` until a moment
//! with them has arrived. Refused: a standby that had agreed hears of it with the next introduction.

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::{DatasetName, StreamFeatures};

use super::introduce::{known, needs};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId, QuestionId, RequestId, VolumeId};
use crate::io::{Action, Inspected, Outcome, Reply};
use crate::limits::{ANSWER_LIMIT_MS, MAX_VOLUMES, PER_VOLUME_MS, RESEND_MS};
use crate::message::{Body, Joiner, TakesBack, VolumeIntro};
use crate::record::{Role, VolumeRecord};
use crate::service::Service;
use crate::unit::{Op, Unit};

/// Volumes on their way to join.
#[derive(Debug, Clone)]
pub(crate) struct Extending {
    request: RequestId,
    volumes: Vec<VolumeRecord>,
    joiners: Vec<Joiner>,
    takes_back: Option<TakesBack>,
    notes: Vec<String>,
    question: QuestionId,
    waiting: BTreeSet<Fingerprint>,
    ask_at: u64,
    /// Given up after this, monotonic milliseconds.
    until: u64,
    /// Every standby agrees: they are being made reachable.
    op: Option<OpId>,
}

impl Unit {
    /// Whether volumes may join now.
    pub(crate) fn may_extend(&self, ctx: &Ctx, more: usize) -> Result<(), Failure> {
        let name = &self.record.name;
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        if self.record.role != Role::Serving {
            let text = format!("{name} is not primary here; protect it where it is");
            return refuse(FailureCode::BadRequest, text);
        }
        let protecting = self.replicas.values().any(|r| r.protect_request.is_some());
        let up = matches!(self.service, Service::Up { .. });
        if self.cutover.is_some() || self.extending.is_some() || protecting || !up {
            let text = format!("{name}: {}; nothing can join it now, try again", self.doing());
            return refuse(FailureCode::Busy, text);
        }
        if self.record.volumes.len() + more > MAX_VOLUMES {
            return refuse(
                FailureCode::BadRequest,
                format!("a unit has at most {MAX_VOLUMES} volumes"),
            );
        }
        match self.record.standbys.iter().find(|peer| !ctx.connected(**peer)) {
            None => Ok(()),
            Some(away) => {
                let text = format!(
                    "{name}: {} is not connected, and what joins a unit joins it everywhere; try again when it is \
                     there",
                    ctx.peer_name(*away)
                );
                refuse(FailureCode::ConnectionLost, text)
            }
        }
    }

    /// Asks the standbys; `found`: what is known of each.
    pub(crate) fn extend(
        &mut self,
        ctx: &mut Ctx,
        request: RequestId,
        volumes: Vec<VolumeRecord>,
        found: &[Inspected],
        notes: Vec<String>,
    ) -> Result<(), Failure> {
        self.may_extend(ctx, volumes.len())?;
        let joiners = self.joiners(ctx, &volumes, found)?;
        let streams: Option<&StreamFeatures> = found.iter().find_map(|f| f.streams.as_ref());
        let takes_back = streams.and_then(|streams| self.takes_back(ctx, streams));
        let now = ctx.now.mono_ms;
        self.extending = Some(Extending {
            request,
            until: now + ANSWER_LIMIT_MS + PER_VOLUME_MS * volumes.len() as u64,
            volumes,
            joiners,
            takes_back: takes_back.filter(|_| self.record.one_way.is_empty()),
            notes,
            question: ctx.new_question(),
            waiting: self.record.standbys.iter().copied().collect(),
            ask_at: now,
            op: None,
        });
        Ok(())
    }

    fn joiners(
        &self,
        ctx: &Ctx,
        volumes: &[VolumeRecord],
        found: &[Inspected],
    ) -> Result<Vec<Joiner>, Failure> {
        let mut places: BTreeMap<DatasetName, VolumeId> =
            self.record.volumes.iter().map(|v| (v.dataset.clone(), v.id)).collect();
        let mut joiners = Vec::new();
        for (volume, found) in volumes.iter().zip(found) {
            let mut above = volume.dataset.parent();
            let below = loop {
                let Some(at) = above else { break None };
                match places.get(&at) {
                    Some(id) => break Some((*id, at)),
                    None => above = at.parent(),
                }
            };
            let Some((below, above)) = below else {
                let text = format!(
                    "{} does not lie below {}: only what does can join it; protect it as a unit of its own",
                    volume.dataset, self.record.name
                );
                return Err(Failure::refused(FailureCode::BadRequest, text));
            };
            places.insert(volume.dataset.clone(), volume.id);
            let rest = volume.dataset.as_str().get(above.as_str().len() + 1..).unwrap_or_default();
            let volume = VolumeIntro {
                id: volume.id,
                leaf: volume.dataset.leaf().to_owned(),
                place: rest.to_owned(),
                kind: volume.kind,
                modern_streams: ctx.config.store.modern_streams.unwrap_or(volume.modern_streams),
                raw: volume.raw,
                needs: needs(found.streams.as_ref(), volume.raw),
                known: known(&found.inventory, 16),
            };
            joiners.push(Joiner { below, volume });
        }
        Ok(joiners)
    }

    pub(crate) fn advance_extending(&mut self, ctx: &mut Ctx) {
        let Some(extending) = &mut self.extending else {
            return;
        };
        let now = ctx.now.mono_ms;
        let gives_up = self.record.role != Role::Serving
            || self.cutover.is_some()
            || !matches!(self.service, Service::Up { .. });
        if gives_up && extending.op.is_none() {
            let text = format!("{}: something else came in between; try again", self.record.name);
            let failure = Failure::new(Remedy::Retry, FailureCode::Cancelled, text);
            return self.end_extending(ctx, Err(failure));
        }
        if now >= extending.until && extending.op.is_none() {
            let silent: Vec<_> = extending.waiting.iter().map(|p| ctx.peer_name(*p)).collect();
            let text = format!("{}: {} did not answer", self.record.name, silent.join(", "));
            let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, text);
            return self.end_extending(ctx, Err(failure));
        }
        if now >= extending.ask_at && extending.op.is_none() {
            extending.ask_at = now + RESEND_MS;
            let Extending { question, joiners, takes_back, waiting, .. } = extending.clone();
            for peer in waiting {
                let (volumes, takes_back) = (joiners.clone(), takes_back.clone());
                self.say(ctx, peer, Body::Join { question, volumes, takes_back });
            }
        }
    }

    pub(crate) fn extending_timeout(&self) -> Option<u64> {
        let extending = self.extending.as_ref().filter(|e| e.op.is_none())?;
        Some(extending.ask_at.min(extending.until))
    }

    pub(crate) fn on_join_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        asked: QuestionId,
        answer: Result<(), Failure>,
    ) {
        let Some(extending) = &mut self.extending else {
            return;
        };
        if extending.question != asked || extending.op.is_some() {
            return;
        }
        match answer {
            Err(failure) => self.end_extending(ctx, Err(failure)),
            Ok(()) => {
                extending.waiting.remove(&peer);
                if extending.waiting.is_empty() {
                    let datasets = extending.volumes.iter().map(|v| v.dataset.clone()).collect();
                    let op = ctx.run(self.record.id, Op::Extend, Action::Activate { datasets });
                    extending.op = Some(op);
                }
            }
        }
    }

    pub(crate) fn extend_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(extending) = self.extending.as_ref().filter(|e| e.op == Some(op)) else {
            return;
        };
        let new = match outcome {
            Ok(Outcome::Activated { paths }) => paths,
            Ok(_) => unreachable!("an activation is answered by paths"),
            Err(failure) => return self.end_extending(ctx, Err(failure)),
        };
        // A unit whose volumes have no path here is at rest, and so is what joins it.
        let live = match (&self.service, self.record.role == Role::Serving) {
            (Service::Up { paths, .. }, true) => paths.is_none() || new.iter().all(Option::is_some),
            _ => false,
        };
        if !live {
            let text = format!("{}: they could not be made reachable", self.record.name);
            let failure = Failure::new(Remedy::Retry, FailureCode::Other, text);
            return self.end_extending(ctx, Err(failure));
        }
        if let Service::Up { paths: Some(paths), .. } = &mut self.service {
            paths.extend(new.into_iter().flatten());
        }
        let volumes = extending.volumes.clone();
        let joined: Vec<DatasetName> = volumes.iter().map(|v| v.dataset.clone()).collect();
        self.record.volumes.extend(volumes);
        self.volumes_are_others(ctx);
        self.note(ctx, format!("{} joined the unit", crate::tree::some_of(&joined)));
        self.end_extending(ctx, Ok(()));
    }

    /// Makes other volumes durable; what is known by their number is void, and each standby is asked anew.
    pub(crate) fn volumes_are_others(&mut self, ctx: &mut Ctx) {
        let (epoch, count) = self.record.volumes_as_of;
        let number = self.record.epoch.number;
        self.record.volumes_as_of = (number, if epoch == number { count + 1 } else { 1 });
        self.persist(ctx);
        self.local.forget();
        self.comparing.clear();
        self.marking = None;
        self.upkeep.mirror_due = true;
        self.upkeep.tidy_due = true;
        self.introduce_anew(ctx);
    }

    fn introduce_anew(&mut self, ctx: &mut Ctx) {
        let text = format!("{} has other volumes by now", self.record.name);
        let failure = Failure::new(Remedy::Retry, FailureCode::Cancelled, text);
        self.drop_replicas(ctx, &failure);
        if matches!(self.service, Service::Up { .. }) {
            self.join_replicas(ctx);
        }
    }

    /// Ends it, and says why.
    pub(crate) fn end_extending(&mut self, ctx: &mut Ctx, answer: Result<(), Failure>) {
        let Some(extending) = self.extending.take() else {
            return;
        };
        if answer.is_err() {
            if extending.op.is_some() {
                let datasets = extending.volumes.iter().map(|v| v.dataset.clone()).collect();
                let (tag, prefix) = (self.tag(), self.prefix());
                let action = Action::GiveBack {
                    datasets,
                    tag,
                    prefix,
                    keep_newest: false,
                    at_rest: false,
                    program: None,
                };
                ctx.run(self.record.id, Op::Left, action);
            }
            // A standby that has agreed hears that it is not so.
            if self.record.role == Role::Serving && self.cutover.is_none() {
                self.introduce_anew(ctx);
            }
        }
        let (name, unit, notes) = (self.record.name.clone(), self.record.id, extending.notes);
        let reply = answer.map(|()| Reply::Protected { name, unit, adopted: Vec::new(), notes });
        ctx.reply(extending.request, reply);
    }

    /// Of a tree what was destroyed, or renamed away, is no volume any more; the others go on. `true`: it was so.
    pub(crate) fn let_go_of_gone(&mut self, ctx: &mut Ctx, found: &[Inspected]) -> bool {
        let protecting = self.replicas.values().any(|r| r.protect_request.is_some());
        if self.record.tree.is_none()
            || self.record.role != Role::Serving
            || self.cutover.is_some()
            || self.extending.is_some()
            || protecting
            || !matches!(self.service, Service::Up { .. } | Service::Failed { .. })
        {
            return false;
        }
        let here: BTreeSet<&DatasetName> =
            found.iter().filter_map(|f| f.info.as_ref()).map(|info| &info.name).collect();
        // Without the uppermost nothing is known of what lies below: it may be the uppermost that was renamed.
        let tops = crate::tree::tops(&self.datasets());
        let gone: Vec<bool> = (self.record.volumes.iter().zip(&tops))
            .map(|(v, top)| !here.contains(&v.dataset) && here.contains(top))
            .collect();
        if !gone.contains(&true) {
            return false;
        }
        let names: Vec<DatasetName> = self.take_out(&gone).into_iter().map(|v| v.dataset).collect();
        self.volumes_are_others(ctx);
        let text = format!(
            "{} is gone: destroyed, or renamed. It is no volume of {} any more; what the standbys have of it stays \
             there, and the others go on",
            crate::tree::some_of(&names),
            self.record.name
        );
        self.note(ctx, text);
        self.look(ctx);
        true
    }

    /// Takes volumes out of the record, and their paths with them.
    fn take_out(&mut self, which: &[bool]) -> Vec<VolumeRecord> {
        let mut at = which.iter();
        let (left, stay) = self.record.volumes.drain(..).partition(|_| at.next() == Some(&true));
        self.record.volumes = stay;
        if let Service::Up { paths: Some(paths), .. } = &mut self.service {
            let mut at = which.iter();
            paths.retain(|_| at.next() != Some(&true));
        }
        left
    }

    /// A person wants volumes out of it: they are given back, and the standbys keep what they have of them.
    pub(crate) fn let_go_of(
        &mut self,
        ctx: &mut Ctx,
        leave: &[DatasetName],
    ) -> Result<(), Failure> {
        let leave: BTreeSet<&DatasetName> = leave.iter().collect();
        let which: Vec<bool> =
            self.record.volumes.iter().map(|v| leave.contains(&v.dataset)).collect();
        if !which.contains(&true) {
            return Ok(());
        }
        let tops = crate::tree::tops(&self.datasets());
        if let Some(top) = tops.iter().find(|top| leave.contains(top)) {
            let text =
                format!("{top} is what {} is of: end its protection instead", self.record.name);
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        let left = self.take_out(&which);
        self.volumes_are_others(ctx);
        self.give_back_left(ctx, &left, "it was left out");
        Ok(())
    }
}
