//! Volumes that join a unit which is followed here, and volumes that have left it.
//!
//! Postconditions. Who joins is durably a volume before it is said. Until a moment of the unit has arrived with it, it
//! is `joining`: the unit's moments are those of the others, and a failover goes on without it. Who has left is given
//! back, with all that was received of it: nothing is destroyed.

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::DatasetName;

use super::{check_intro, grant_of, streams, with_room};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId, QuestionId, VolumeId};
use crate::io::{Action, Outcome};
use crate::limits::MAX_VOLUMES;
use crate::message::{Body, Joiner, TakesBack, VolumeIntro};
use crate::record::{Role, VolumeRecord};
use crate::service::Service;
use crate::unit::{Op, Unit};

/// Volumes of which is looked what lies in their places.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    op: OpId,
    peer: Fingerprint,
    /// `None`: an introduction speaks of them, which comes again.
    question: Option<QuestionId>,
    volumes: Vec<(VolumeIntro, DatasetName)>,
    takes_back: Option<TakesBack>,
}

impl Unit {
    pub(crate) fn on_join(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: QuestionId,
        volumes: Vec<Joiner>,
        takes_back: Option<TakesBack>,
    ) {
        self.look_at_joiners(ctx, peer, Some(question), volumes, takes_back);
    }

    fn look_at_joiners(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: Option<QuestionId>,
        volumes: Vec<Joiner>,
        takes_back: Option<TakesBack>,
    ) {
        if self.standby.joining.as_ref().is_some_and(|j| j.question == question) {
            return; // Asked again while it is being looked at.
        }
        match self.may_join(ctx, peer, volumes) {
            Err(failure) => self.say_joined(ctx, peer, question, Err(failure)),
            Ok(volumes) if volumes.is_empty() => self.say_joined(ctx, peer, question, Ok(())),
            Ok(volumes) => {
                let datasets = volumes.iter().map(|(_, dataset)| dataset.clone()).collect();
                let action = Action::Inspect { datasets, streams: true };
                let op = ctx.run(self.id(), Op::Join, action);
                self.standby.joining = Some(Joining { op, peer, question, volumes, takes_back });
            }
        }
    }

    fn say_joined(
        &self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        question: Option<QuestionId>,
        answer: Result<(), Failure>,
    ) {
        match (question, answer) {
            (Some(question), answer) => self.say(ctx, peer, Body::JoinReply { question, answer }),
            (None, Err(failure)) => self.say(ctx, peer, Body::IntroReply(Err(failure))),
            // It is introduced again soon, and answered then.
            (None, Ok(())) => {}
        }
    }

    /// Whether its volumes are those that the primary says; otherwise they are about to be.
    pub(super) fn has_just_these(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        volumes: &[VolumeIntro],
    ) -> bool {
        if !self.let_go_of_left(ctx, volumes) {
            return false;
        }
        if self.record.volumes.len() == volumes.len() {
            return true;
        }
        let mut known: BTreeSet<VolumeId> = self.record.volumes.iter().map(|v| v.id).collect();
        let by_place: BTreeMap<&str, VolumeId> =
            volumes.iter().map(|v| (v.place.as_str(), v.id)).collect();
        let mut joiners = Vec::new();
        for volume in volumes {
            if !known.insert(volume.id) {
                continue;
            }
            let mut above = volume.place.as_str();
            let below = loop {
                above = above.rsplit_once('/').map_or("", |(above, _)| above);
                match by_place.get(above) {
                    Some(below) => break Some(*below),
                    None if above.is_empty() => break None,
                    None => {}
                }
            };
            // Below nothing is below nobody: refused as such.
            let below = below.filter(|below| *below != volume.id).unwrap_or(volume.id);
            let rest = volume.place.get(above.len()..).unwrap_or_default().trim_start_matches('/');
            let volume = VolumeIntro { place: rest.to_owned(), ..volume.clone() };
            joiners.push(Joiner { below, volume });
        }
        self.look_at_joiners(ctx, peer, None, joiners, None);
        false
    }

    /// Those that are not known yet, and where each would be kept.
    fn may_join(
        &self,
        ctx: &Ctx,
        peer: Fingerprint,
        joiners: Vec<Joiner>,
    ) -> Result<Vec<(VolumeIntro, DatasetName)>, Failure> {
        if !self.follows(peer) {
            return Err(self.not_following(ctx, peer));
        }
        let known: BTreeSet<VolumeId> = self.record.volumes.iter().map(|v| v.id).collect();
        let mut places: BTreeMap<VolumeId, DatasetName> =
            self.record.volumes.iter().map(|v| (v.id, v.dataset.clone())).collect();
        let mut taken: BTreeSet<DatasetName> = places.values().cloned().collect();
        let new: Vec<Joiner> =
            joiners.into_iter().filter(|j| !known.contains(&j.volume.id)).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let rests = matches!(self.record.role, Role::Following { .. })
            && !self.failing_over()
            && !self.standby.is_resolving()
            && self.record.step_back.is_none();
        if !rests {
            let text =
                format!("{}: its replica here is being changed; try again", self.record.name);
            return Err(Failure::new(Remedy::Retry, FailureCode::Busy, text));
        }
        let bad = |text: String| Failure::refused(FailureCode::BadRequest, text);
        if known.len() + new.len() > MAX_VOLUMES {
            return Err(bad(format!("a unit has at most {MAX_VOLUMES} volumes")));
        }
        let intros: Vec<VolumeIntro> = new.iter().map(|j| j.volume.clone()).collect();
        check_intro(ctx, peer, self.record.own, &intros)?;
        let mut all = Vec::with_capacity(new.len());
        for Joiner { below, volume } in new {
            let above = places.get(&below);
            let above = above.ok_or_else(|| bad(format!("{} lies below nothing", volume.leaf)))?;
            let dataset = with_room(format!("{above}/{}", volume.place))?;
            let granted = grant_of(ctx, peer).is_some_and(|g| dataset.is_within(&g.receive));
            if !(granted || self.record.own) || !taken.insert(dataset.clone()) {
                return Err(bad(format!("{dataset} is not a place for {}", volume.leaf)));
            }
            places.insert(volume.id, dataset.clone());
            all.push((volume, dataset));
        }
        Ok(all)
    }

    pub(crate) fn join_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some(joining) = self.standby.joining.take_if(|j| j.op == op) else {
            return;
        };
        let Joining { peer, question, volumes, takes_back, .. } = joining;
        let mut answer = match outcome {
            Ok(Outcome::Inspected(found)) => {
                let peer_name = ctx.peer_name(peer);
                let me = &ctx.config.store;
                found.iter().zip(&volumes).try_for_each(|(found, (volume, dataset))| {
                    let ours = found.mirror.as_ref().is_some_and(|m| m.unit == self.record.id);
                    if found.info.is_some() && !ours {
                        let text = format!(
                            "{dataset} exists on the standby and is no replica of this unit: rename it, or \
                             destroy it if it is what is left of a volume that was destroyed"
                        );
                        return Err(Failure::refused(FailureCode::Exists, text));
                    }
                    let back = takes_back.as_ref();
                    found.streams.as_ref().map_or(Ok(()), |streams| {
                        streams::check(me, &peer_name, volume, dataset, streams, back)
                    })
                })
            }
            Ok(_) => unreachable!("asked for an inspection"),
            Err(failure) => Err(failure),
        };
        if answer.is_ok()
            && !matches!(self.record.role, Role::Following { source } if source == peer)
        {
            answer = Err(self.not_following(ctx, peer));
        }
        if answer.is_ok() {
            let records = volumes.into_iter().map(|(volume, dataset)| VolumeRecord {
                id: volume.id,
                dataset,
                kind: volume.kind,
                modern_streams: volume.modern_streams,
                raw: volume.raw,
                joining: true,
            });
            self.record.volumes.extend(records);
            self.persist(ctx);
            self.volumes_changed();
        }
        self.say_joined(ctx, peer, question, answer);
    }

    /// What is known by the number of a volume is void.
    fn volumes_changed(&mut self) {
        self.standby.forget_looks();
        self.local.forget();
        self.upkeep.tidy_due = true;
    }

    /// Volumes that the primary does not have any more are let go. `false`: not now, it is asked again.
    pub(super) fn let_go_of_left(&mut self, ctx: &mut Ctx, volumes: &[VolumeIntro]) -> bool {
        let theirs: BTreeSet<VolumeId> = volumes.iter().map(|v| v.id).collect();
        if self.record.volumes.iter().all(|v| theirs.contains(&v.id)) {
            return true;
        }
        let busy = self.standby.is_busy()
            || self.failing_over()
            || self.standby.is_resolving()
            || self.standby.stepping_back.is_under_way()
            || self.drill.is_some()
            || !matches!(self.service, Service::Halted)
            || !matches!(self.record.role, Role::Following { .. });
        if busy {
            self.cancel_receiving(ctx);
            return false;
        }
        let (stay, left): (Vec<_>, Vec<_>) =
            self.record.volumes.drain(..).partition(|v| theirs.contains(&v.id));
        self.record.volumes = stay;
        self.persist(ctx);
        self.volumes_changed();
        self.give_back_left(ctx, &left, "the primary does not have it in this unit any more");
        true
    }

    /// Says who is no volume any more, and gives it back.
    pub(crate) fn give_back_left(&mut self, ctx: &mut Ctx, left: &[VolumeRecord], why: &str) {
        if left.is_empty() {
            return;
        }
        let datasets: Vec<DatasetName> = left.iter().map(|v| v.dataset.clone()).collect();
        self.note(
            ctx,
            format!(
                "{} left the unit: {why}; what is here of it stays, and is replicated no longer",
                crate::tree::some_of(&datasets)
            ),
        );
        // What a replica has is its data; here it is live.
        let keep_newest = self.record.role.is_standby();
        let (tag, prefix) = (self.tag(), self.prefix());
        let action = Action::GiveBack {
            datasets,
            tag,
            prefix,
            keep_newest,
            at_rest: keep_newest,
            program: None,
        };
        ctx.run(self.id(), Op::Left, action);
    }

    pub(crate) fn left_done(&self, ctx: &mut Ctx, outcome: Result<Outcome, Failure>) {
        if let Err(failure) = outcome {
            self.note(ctx, format!("what left the unit keeps properties of ours: {failure}"));
        }
    }

    /// A failover goes on without those of which no moment has come here. The caller persists.
    pub(crate) fn leave_out_joining(&mut self, ctx: &mut Ctx, instance: &BTreeSet<VolumeId>) {
        let (stay, left): (Vec<_>, Vec<_>) =
            (self.record.volumes.drain(..)).partition(|v| !v.joining || instance.contains(&v.id));
        self.record.volumes = stay;
        self.have_joined();
        if !left.is_empty() {
            self.volumes_changed();
            self.give_back_left(ctx, &left, "it had joined, and had not arrived here in full");
        }
    }

    /// From here on every volume belongs to the unit's moments. `true`: the record has changed by that.
    pub(crate) fn have_joined(&mut self) -> bool {
        let mut changed = false;
        for volume in &mut self.record.volumes {
            changed |= std::mem::take(&mut volume.joining);
        }
        changed
    }
}
