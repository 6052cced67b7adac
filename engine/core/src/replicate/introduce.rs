//! The beginning of a standby: what it is told of a unit, what it says to that, and the answer to `protect`.

use std::collections::BTreeSet;

use flocker_store::{Guid, Inventory, StreamFeature, StreamFeatures};

use super::{Replica, State};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Fingerprint, RequestId};
use crate::io::Reply;
use crate::limits::{KNOWN_SNAPSHOTS, RESEND_MS};
use crate::message::{Adopted, Body, TakesBack, VolumeIntro};
use crate::record::Adoption;
use crate::service::Service;
use crate::unit::{Ending, Unit};

/// That a person wants a standby.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Waits for the answer.
    pub(crate) request: RequestId,
    /// Who is to be it.
    pub(crate) peer: Fingerprint,
    /// What the answer says besides.
    pub(crate) notes: Vec<String>,
    /// Of each volume, as it was found then.
    pub(crate) streams: Vec<StreamFeatures>,
    /// Nothing has to be able to come back.
    pub(crate) one_way: bool,
}

impl Unit {
    /// A person waits for this standby, or wants a replica taken over: it is told which snapshots are here.
    pub(super) fn tells_snapshots(&self, replica: &Replica) -> bool {
        replica.protect_request.is_some() || self.record.adopting.contains_key(&replica.peer)
    }

    /// It would be told, and it is being looked at what there is.
    pub(super) fn looks_for_introduction(&self, replica: &Replica) -> bool {
        self.tells_snapshots(replica)
            && self.local.inventories.is_none()
            && self.local.looking.is_some()
    }

    pub(super) fn introduce(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(replica) = self.replicas.get(&peer) else {
            return;
        };
        let tells = self.tells_snapshots(replica);
        if tells && self.local.inventories.is_none() {
            if ctx.now.mono_ms >= self.snapshotting.retry_at {
                self.look(ctx);
            }
            return;
        }
        let asked = replica.asked.as_ref();
        let body = self.intro(ctx, peer, tells, asked);
        if let Some(Replica { state: State::Introducing { ask_at }, .. }) =
            self.replicas.get_mut(&peer)
        {
            *ask_at = ctx.now.mono_ms + RESEND_MS;
        }
        self.say(ctx, peer, body);
    }

    fn intro(&self, ctx: &Ctx, peer: Fingerprint, tells: bool, asked: Option<&Asked>) -> Body {
        let inventories = self.local.inventories.as_deref().filter(|_| tells).unwrap_or_default();
        let most = KNOWN_SNAPSHOTS / self.record.volumes.len().max(1);
        let places = crate::tree::places(&self.datasets());
        let volumes = self.record.volumes.iter().zip(places).enumerate();
        let volumes = volumes.map(|(at, (v, place))| VolumeIntro {
            id: v.id,
            leaf: v.dataset.leaf().to_owned(),
            place,
            kind: v.kind,
            // A vault sends a replica on in the dialect in which it came.
            modern_streams: ctx.config.store.modern_streams.unwrap_or(v.modern_streams),
            raw: v.raw,
            needs: asked.map(|a| needs(a.streams.get(at), v.raw)).unwrap_or_default(),
            known: inventories.get(at).map(|i| known(i, most)).unwrap_or_default(),
        });
        Body::Intro {
            name: self.record.name.clone(),
            volumes: volumes.collect(),
            tree: self.record.tree.clone(),
            // Whoever owns a newer epoch knows better than who decided in an older one.
            volumes_as_of: self.record.volumes_as_of.max((self.record.epoch.number, 0)),
            policy: self.record.policy,
            lease_ms: self.record.lease_ms,
            adoption: self.record.adopting.get(&peer).cloned(),
            takes_back: asked
                .filter(|a| !a.one_way)
                .and_then(|asked| self.takes_back(ctx, asked.streams.first()?)),
        }
    }

    /// What would be received here, should the unit come back.
    pub(super) fn takes_back(&self, ctx: &Ctx, streams: &StreamFeatures) -> Option<TakesBack> {
        // All volumes of a unit are in one pool.
        let pool = self.record.volumes.first()?.dataset.pool().to_owned();
        let modern_streams = ctx.config.store.receives_modern;
        Some(TakesBack { pool, modern_streams, features: streams.receives.clone() })
    }

    pub(crate) fn on_intro_reply(
        &mut self,
        ctx: &mut Ctx,
        peer: Fingerprint,
        answer: Result<Vec<Adopted>, Failure>,
    ) {
        let Some(replica) = self.replicas.get_mut(&peer) else {
            return;
        };
        if !matches!(replica.state, State::Introducing { .. }) {
            return;
        }
        match answer {
            Ok(adopted) => {
                let question = ctx.new_question();
                let (theirs, was_primary) = (None, false);
                replica.state = State::Surveying { ask_at: 0, question, theirs, was_primary };
                replica.adopted = adopted;
                self.local.inventories = None;
                replica.introduced = true;
                if self.record.adopting.remove(&peer).is_some() {
                    self.persist(ctx);
                }
            }
            Err(failure) if replica.protect_request.is_some() => {
                self.refuse_protection(ctx, peer, failure);
            }
            Err(failure) => self.round_failed(ctx, peer, failure),
        }
    }

    /// `protect` is answered when the standby has agreed and the volume is reachable here.
    pub(super) fn answer_protection(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(replica) = self.replicas.get_mut(&peer).filter(|r| r.introduced) else {
            return;
        };
        match (&self.service, replica.protect_request) {
            (Service::Up { .. }, Some(request)) => {
                replica.protect_request = None;
                let adopted = std::mem::take(&mut replica.adopted);
                let (name, unit) = (self.record.name.clone(), self.record.id);
                let notes = replica.asked.take().map(|a| a.notes).unwrap_or_default();
                ctx.reply(request, Ok(Reply::Protected { name, unit, adopted, notes }));
            }
            (Service::Failed { .. }, Some(_)) => {
                let unnamed = || {
                    let text = format!("{} could not be made reachable", self.record.name);
                    Failure::refused(FailureCode::Other, text)
                };
                let failure = self.alarm.clone().unwrap_or_else(unnamed);
                self.refuse_protection(ctx, peer, failure);
            }
            _ => {}
        }
    }

    /// `protect` could not be carried out: as if it had never been asked.
    pub(super) fn refuse_protection(&mut self, ctx: &mut Ctx, peer: Fingerprint, failure: Failure) {
        let Some(mut replica) = self.replicas.remove(&peer) else {
            return;
        };
        replica.down(ctx, self.record.id);
        self.record.standbys.retain(|s| *s != peer);
        self.record.adopting.remove(&peer);
        self.record.one_way.remove(&peer);
        let request = replica.protect_request.take();
        if self.record.standbys.is_empty() {
            self.end(ctx, Ending { request, refusal: Some(failure), ..Ending::default() });
        } else {
            self.persist(ctx);
            if let Some(request) = request {
                ctx.reply(request, Err(failure));
            }
        }
    }

    /// `protect` is answered when the standby has.
    pub(crate) fn expect_protection(&mut self, ctx: &Ctx, asked: Asked) {
        let peer = asked.peer;
        let mut replica = Replica::new(peer);
        replica.protect_request = Some(asked.request);
        replica.asked = Some(asked);
        replica.protect_since = ctx.now.mono_ms;
        replica.up();
        self.replicas.insert(peer, replica);
    }

    /// A standby that has not agreed yet is to take over what another tool has sent it.
    pub(crate) fn adopt_after_all(
        &mut self,
        ctx: &mut Ctx,
        asked: Asked,
        adoption: Adoption,
    ) -> Result<(), Failure> {
        let peer = asked.peer;
        if self.replicas.get(&peer).is_some_and(|r| r.introduced || r.protect_request.is_some()) {
            let text = format!(
                "{} is replicated to {} already: there is nothing to adopt",
                self.record.name,
                ctx.peer_name(peer)
            );
            return Err(Failure::refused(FailureCode::Exists, text));
        }
        self.record.adopting.insert(peer, adoption);
        self.persist(ctx);
        self.expect_protection(ctx, asked);
        Ok(())
    }

    /// No snapshot of some volume is of this unit: the first one is taken whether anything was written or not,
    /// since what others have taken may go at any time.
    pub(super) fn nothing_of_ours(&self) -> bool {
        (0..self.record.volumes.len()).any(|at| self.newest_of_ours(at).is_none())
    }
}

/// What the streams of a volume have need of. A plain replica that is kept below an encrypted dataset is sent plain
/// however it lies here.
pub(super) fn needs(streams: Option<&StreamFeatures>, raw: bool) -> BTreeSet<StreamFeature> {
    let mut needs = streams.map(|s| s.sends.clone()).unwrap_or_default();
    match raw {
        true => needs.insert(StreamFeature::Encryption),
        false => needs.remove(&StreamFeature::Encryption),
    };
    needs
}

/// What a step can start from, newest first.
pub(super) fn known(inventory: &Inventory, most: usize) -> Vec<Guid> {
    let snapshots = inventory.snapshots.iter().rev().map(|s| s.guid);
    snapshots.chain(inventory.bookmarks.iter().rev().map(|b| b.guid)).take(most).collect()
}
