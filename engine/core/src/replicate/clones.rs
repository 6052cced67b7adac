//! Clones: sent as the difference to their origin where the standby has that, so that they are clones there, too.
//!
//! The standby looks for the origin when it is offered the step, by guid, in what it keeps for this node. Where
//! it is not, the clone waits if another unit is about to bring it, and is sent whole otherwise; that is said.

use std::collections::BTreeSet;

use flocker_store::{DatasetName, Origin, Snapshot};

use super::{Replica, State};
use crate::ctx::Ctx;
use crate::ids::Fingerprint;
use crate::limits::ORIGIN_WAIT_MS;
use crate::plan;
use crate::unit::Unit;

impl Unit {
    /// What a volume that the standby has not got yet can be sent from.
    pub(super) fn clone_base(&self, ctx: &Ctx, replica: &Replica, volume: usize) -> Option<Origin> {
        let whole = replica.whole.contains(&volume) || !ctx.config.store.clones;
        let origin = self.local.origins.get(volume).cloned().flatten().filter(|_| !whole)?;
        // Of one that lies below it: it would have to be there first, and cannot be.
        let above = &self.record.volumes.get(volume)?.dataset;
        let below = origin.name.dataset() != above && origin.name.dataset().is_within(above);
        (!below).then_some(origin)
    }

    /// The volumes, in the order in which they are sent.
    pub(super) fn order_of(&self, replica: &Replica, targets: &[Snapshot]) -> Vec<usize> {
        let count = self.record.volumes.len();
        if self.local.origins.iter().all(Option::is_none) {
            return (0..count).collect();
        }
        let mut waits: BTreeSet<&DatasetName> = BTreeSet::new();
        let (mut first, mut later) = (Vec::new(), Vec::new());
        for (at, volume) in self.record.volumes.iter().enumerate() {
            // What lies below one that is not there yet waits with it: a place for it would be made otherwise, and
            // be in the way.
            let is_there =
                replica.bases.as_ref().is_some_and(|b| matches!(b.get(at), Some(Some(_))));
            let mut above = volume.dataset.parent().filter(|_| !is_there);
            let mut below = false;
            while let Some(name) = above.filter(|_| !below) {
                below = waits.contains(&name);
                above = name.parent();
            }
            if below || self.comes_later(replica, targets, at) {
                if !is_there {
                    waits.insert(&volume.dataset);
                }
                later.push(at);
            } else {
                first.push(at);
            }
        }
        [first, later].concat()
    }

    /// Its origin is in another volume of this unit that is not at its target yet.
    fn comes_later(&self, replica: &Replica, targets: &[Snapshot], volume: usize) -> bool {
        let Some(Some(origin)) = self.local.origins.get(volume) else {
            return false;
        };
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        inventories.iter().enumerate().any(|(at, inventory)| {
            let base = replica.bases.as_ref().and_then(|b| b.get(at).copied().flatten());
            let arrived = base.is_some() && base == targets.get(at).map(|t| t.guid);
            at != volume && inventory.snapshot(origin.guid).is_some() && !arrived
        })
    }

    /// The standby has not got what a volume is a clone of.
    pub(super) fn origin_is_missing(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let Some(Replica { state: State::Round(round), .. }) = self.replicas.get(&peer) else {
            return;
        };
        let (volume, guid) = (round.volume, round.step.offer.from);
        let coming = guid.is_some_and(|guid| ctx.out.coming.contains(&(peer, guid)));
        if !coming {
            let text = self.whole_words(&ctx.peer_name(peer), volume);
            if let Some(replica) = self.replicas.get_mut(&peer) {
                replica.whole.insert(volume);
            }
            self.note(ctx, text);
            return self.next_step(ctx, peer);
        }
        if let Some(replica) = self.replicas.get_mut(&peer) {
            replica.bases = None;
            replica.awaits_origin = true;
            replica.state = State::Waiting { until: ctx.now.mono_ms + ORIGIN_WAIT_MS };
        }
        self.local.inventories = None;
    }

    /// That a clone is sent whole, and what would have avoided it.
    fn whole_words(&self, peer: &str, volume: usize) -> String {
        let dataset = &self.record.volumes[volume].dataset;
        let origin = self.local.origins.get(volume).and_then(Option::as_ref);
        let (name, of) = match origin {
            Some(origin) => (origin.name.to_string(), origin.name.dataset().to_string()),
            None => ("another snapshot".to_owned(), "its origin".to_owned()),
        };
        format!(
            "{dataset} is a clone of {name}, which {peer} has not got: all of it is sent, and takes its full \
             room there. Had {of} been replicated there first, only what differs would be sent"
        )
    }

    /// Clones that are sent whole, in words.
    pub(crate) fn sent_whole(&self, replica: &Replica, peer: &str) -> Vec<String> {
        replica.whole.iter().map(|v| self.whole_words(peer, *v)).collect()
    }

    /// Origins that some volume of this unit waits for, and on which standby.
    pub(crate) fn awaited_origins(&self) -> Vec<(Fingerprint, Origin)> {
        if !self.record.role.is_primary() || self.local.origins.iter().all(Option::is_none) {
            return Vec::new();
        }
        let mut all = Vec::new();
        for replica in self.replicas.values() {
            for (volume, origin) in self.local.origins.iter().enumerate() {
                let base = replica.bases.as_ref().and_then(|b| b.get(volume).copied().flatten());
                all.extend(origin.clone().filter(|_| base.is_none()).map(|o| (replica.peer, o)));
            }
        }
        all
    }

    /// Whether this unit is about to bring a snapshot of its own to a standby.
    pub(crate) fn brings(&self, peer: Fingerprint, origin: &Origin) -> bool {
        let Some(at) = self.volume_at(origin.name.dataset()) else {
            return false;
        };
        let goes = |r: &&Replica| r.failure.as_ref().is_none_or(|f| f.code.is_passing());
        let Some(replica) = self.replicas.get(&peer).filter(goes) else {
            return false;
        };
        if !self.record.role.is_primary() || self.record.paused {
            return false;
        }
        let (Some(bases), Some(inventories)) = (&replica.bases, &self.local.inventories) else {
            return true; // Not known yet.
        };
        let Some(inventory) = inventories.get(at) else {
            return false;
        };
        let Some(snapshot) = inventory.snapshot(origin.guid) else {
            return self.local.looking.is_some();
        };
        let known = inventory.cloned.contains(&origin.guid) || self.local.looking.is_some();
        let base = bases.get(at).copied().flatten();
        let base = base.and_then(|guid| plan::find_base(inventory, guid));
        known && base.is_none_or(|(_, createtxg)| createtxg < snapshot.createtxg)
    }

    fn volume_at(&self, dataset: &DatasetName) -> Option<usize> {
        self.record.volumes.iter().position(|v| v.dataset == *dataset)
    }

    /// Something is a clone of a snapshot of this dataset: whoever has it looks what there is.
    pub(crate) fn is_cloned(&mut self, ctx: &mut Ctx, dataset: &DatasetName) {
        let calm = self.cutover.is_none() && self.record.role.is_primary();
        if calm && self.volume_at(dataset).is_some() && self.local.inventories.is_some() {
            self.look(ctx);
        }
    }
}
