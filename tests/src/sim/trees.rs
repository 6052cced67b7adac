//! What is made, and destroyed, below a unit that is a tree.
//!
//! Nobody writes into these: what they have is what they were made with, so that they need not be at one moment with
//! the records of the others. What is asked of them is that they come, go and never hold up the others.

use flocker_core::Command;
use flocker_core::ids::VolumeId;
use flocker_core::record::Role;
use flocker_store::DatasetName;

use super::content::Content;
use super::host::dataset_name;
use super::world::World;

/// What the last component of their names begins with.
const LATE: &str = "late-";

/// Whether it was made below a unit later.
pub(super) fn is_late(name: &DatasetName) -> bool {
    name.leaf().starts_with(LATE)
}

impl World {
    /// Somebody makes a dataset below a unit's, or destroys one that was made so.
    pub(super) fn wish_child(&mut self, node: usize, unit: usize) {
        let id = self.units[unit].id;
        let Some(record) = self.hosts[node].record(id).cloned() else { return };
        if record.role != Role::Serving || self.is_open(node, "extend") {
            return;
        }
        let late: Vec<DatasetName> = (record.volumes.iter().map(|v| v.dataset.clone()))
            .filter(|name| is_late(name) && self.hosts[node].store.datasets.contains_key(name))
            .collect();
        if !late.is_empty() && self.rng.one_in(3) {
            let gone = &late[self.rng.below(late.len())];
            if self.rng.one_in(2) {
                self.coverage.fault("child left out");
                let (name, leave) = (record.name.clone(), vec![gone.clone()]);
                let command = Command::Extend { name, volumes: Vec::new(), leave, tree: None };
                return self.ask(node, unit, "extend", command);
            }
            self.trace(|| format!("somebody destroys {gone} on n{node}"));
            self.hosts[node].store.datasets.remove(gone);
            self.coverage.fault("child destroyed");
            return;
        }
        let above = &record.volumes[self.rng.below(record.volumes.len())].dataset;
        self.stamps += 1;
        let name = dataset_name(&format!("{above}/{LATE}{}", self.stamps));
        let live = Content::preloaded(self.stamps, 1_000);
        self.hosts[node].store.create(name.clone(), self.scenario.kind, live);
        self.coverage.fault("child made");
        let volumes = vec![(VolumeId(u128::from(self.rng.bits())), name)];
        let command =
            Command::Extend { name: record.name.clone(), volumes, leave: Vec::new(), tree: None };
        self.ask(node, unit, "extend", command);
    }
}
