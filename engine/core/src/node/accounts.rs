//! Why each snapshot of ours is kept: what `holds` shows beside what the store has.

use std::collections::BTreeMap;

use flocker_store::{DatasetName, Guid, HoldTag};
use serde::{Deserialize, Serialize};

use super::{Node, Peer};
use crate::ids::{Fingerprint, UnitId};
use crate::unit::Unit;

/// What a unit accounts for in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitAccount {
    /// The unit.
    pub unit: UnitId,
    /// Its name.
    pub name: String,
    /// The tag of its holds.
    pub tag: HoldTag,
    /// What the short names of its snapshots begin with.
    pub prefix: String,
    /// Its volumes.
    pub volumes: Vec<VolumeAccount>,
}

/// Why snapshots of one volume are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAccount {
    /// Where it lives here.
    pub dataset: DatasetName,
    /// It is in no moment of the unit here yet.
    pub joining: bool,
    /// By guid, in words.
    pub reasons: Vec<(Guid, String)>,
}

/// What the tags of our holds begin with, whatever unit they are of.
pub const TAG_PREFIX: &str = "flocker-repl:";

/// What the short names of our snapshots begin with, whatever unit they are of.
pub const SNAPSHOT_PREFIX: &str = "flocker_";

impl Node {
    /// What every unit accounts for.
    pub fn accounts(&self) -> Vec<UnitAccount> {
        self.units.values().map(|u| u.account(&self.peers)).collect()
    }
}

impl Unit {
    fn account(&self, peers: &BTreeMap<Fingerprint, Peer>) -> UnitAccount {
        let volumes = self.record.volumes.iter().enumerate().map(|(at, volume)| VolumeAccount {
            dataset: volume.dataset.clone(),
            joining: volume.joining,
            reasons: self.reasons(at, peers),
        });
        UnitAccount {
            unit: self.record.id,
            name: self.record.name.clone(),
            tag: self.tag(),
            prefix: self.prefix(),
            volumes: volumes.collect(),
        }
    }

    fn reasons(&self, at: usize, peers: &BTreeMap<Fingerprint, Peer>) -> Vec<(Guid, String)> {
        let mut all = Vec::new();
        for replica in self.replicas.values() {
            let peer = peers.get(&replica.peer);
            let name = peer.map_or_else(|| replica.peer.short(), |p| p.record.name.clone());
            all.extend(
                replica.reasons(at).into_iter().map(|(g, why)| (g, format!("{why} {name}"))),
            );
        }
        let volume = self.record.volumes[at].id;
        let mut say = |guids: Vec<Guid>, why: &str| {
            all.extend(guids.into_iter().map(|guid| (guid, why.to_owned())));
        };
        let receiving = self.standby.base_in_use(volume).into_iter().collect();
        say(receiving, "base of what is being received");
        say(self.cutover_needs(at).into_iter().collect(), "final snapshot of the move");
        let drill = self.drill.iter().flat_map(|d| d.needs.iter().copied()).collect();
        say(drill, "a drill is held on it");
        let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at));
        say(inventory.and_then(|i| i.latest()).map(|s| s.guid).into_iter().collect(), "newest");
        let cloned = inventory.iter().flat_map(|i| i.cloned.iter().copied()).collect();
        say(cloned, "origin of a clone");
        if self.record.role.is_standby() {
            say(self.base_of_next(at).into_iter().collect(), "base of the next step");
        }
        all
    }
}
