//! Replicas that another tool made before anybody protects the unit: made, asked for, and never harmed.

use flocker_core::record::Adoption;
use flocker_store::DatasetName;

use super::check::Rule;
use super::faults::BY_HAND;
use super::host::dataset_name;
use super::scenario::Found;
use super::world::World;

/// What another tool's snapshots are called.
const TOOL: &str = "tool_";

impl World {
    /// Another tool has sent a unit's volumes to node 1, to where its replica would be kept.
    pub(super) fn make_found(&mut self, unit: usize) {
        if self.scenario.found == Found::Nothing {
            return;
        }
        let model = &self.units[unit];
        let mut sources = vec![model.dataset.clone()];
        sources.extend(model.others.iter().cloned());
        let place = format!("n1/recv/{}", model.name);
        let group = sources.len() > 1;
        for source in sources {
            let name = match group {
                true if self.scenario.tree => {
                    let rest = source.as_str().strip_prefix(self.units[unit].dataset.as_str());
                    format!("{place}{}", rest.unwrap_or_default())
                }
                true => format!("{place}/{}", source.leaf()),
                false => place.clone(),
            };
            let replica = dataset_name(&name);
            for number in 1..=2 {
                self.tool_sends(&source, &replica, number);
            }
            if self.scenario.found == Found::Apart
                && let Ok(hand) = replica.snapshot(&format!("{BY_HAND}0"))
            {
                let _ = self.hosts[1].store.take_snapshots(&[hand], false, 0);
            }
        }
    }

    /// One snapshot of the tool, here and there.
    fn tool_sends(&mut self, source: &DatasetName, replica: &DatasetName, number: u32) {
        let Ok(name) = source.snapshot(&format!("{TOOL}{number}")) else { return };
        let store = &mut self.hosts[0].store;
        let taken = store.take_snapshots(&[name], false, 0).unwrap_or_default();
        let Some(of) = store.datasets.get(source).cloned() else { return };
        self.hosts[1].store.replicate_by_hand(replica, &of);
        let guids = taken.iter().map(|s| s.guid);
        self.foreign.extend(guids.flat_map(|guid| [(0, guid), (1, guid)]));
    }

    /// The dataset is a clone of the first unit's, instead of one with data of its own.
    pub(super) fn make_clone(&mut self, dataset: &DatasetName) {
        let Ok(of) = self.units[0].dataset.snapshot("golden") else { return };
        let store = &mut self.hosts[0].store;
        if store.take_snapshots(std::slice::from_ref(&of), false, 0).is_ok() {
            store.clone_by_hand(&of, dataset.clone());
        }
    }

    /// Which clones are clones on the standby, too.
    pub(super) fn count_clones(&mut self) {
        for node in 1..self.hosts.len() {
            let clones = self.hosts[node].store.datasets.values().filter(|d| d.origin.is_some());
            for _ in 0..clones.count() {
                self.coverage.fault("clone kept");
            }
        }
    }

    /// What people say of it when they protect the unit.
    pub(super) fn adoption(&self) -> Option<Adoption> {
        let diverged = self.scenario.found == Found::Apart;
        (self.scenario.found != Found::Nothing).then(|| Adoption { places: Vec::new(), diverged })
    }

    /// Whatever happened, another tool's snapshots are where it left them, or aside.
    pub(super) fn check_foreign(&mut self) {
        for (node, guid) in self.foreign.clone() {
            let mut all = self.hosts[node].store.datasets.values();
            if !all.any(|d| d.snapshot(guid).is_some()) {
                let text = format!("n{node} has lost the snapshot {guid}, which another tool took");
                return self.violate(Rule::Foreign, text);
            }
        }
    }
}
