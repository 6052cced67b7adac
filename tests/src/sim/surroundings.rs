//! What surrounds a workload: the address by which it is found, fencing hooks, drills, and
//! processors that are taken away from a daemon or from a whole host.

use flocker_core::failure::Remedy;
use flocker_core::ids::{Fingerprint, UnitId};
use flocker_core::io::FailoverReport;
use flocker_core::{Action, Command, Failure, FailureCode, Outcome};
use flocker_store::{DatasetName, SnapshotName};

use super::actions::{Done, injected};
use super::check::Rule;
use super::host::index_of;
use super::scenario::ModelBug;
use super::store::Dataset;
use super::trees::is_late;
use super::world::{Ev, World};

impl World {
    // ---- addresses ----------------------------------------------------------------------------

    /// Puts a unit's address on a host, or takes it off.
    pub(super) fn move_address(&mut self, node: usize, unit: UnitId, up: bool) -> Done {
        if !up {
            if self.scenario.model_bug != Some(ModelBug::TwoAddresses) {
                self.hosts[node].addresses.remove(&unit);
            }
            return Ok(Outcome::Nothing);
        }
        let role = self.hosts[node].record(unit).map(|r| r.role.word());
        if let Some(model) = self.unit_index(unit) {
            let known = &self.units[model];
            let excused = known.told_alone || known.two_lines || known.tainted;
            let elsewhere = (0..self.hosts.len())
                .filter(|n| *n != node && !known.left_behind.contains(n))
                .find(|n| self.hosts[*n].addresses.contains(&unit));
            if let Some(other) = elsewhere.filter(|_| !excused) {
                let text = format!("n{node} and n{other} both have the address of unit {model}");
                self.violate(Rule::Address, text);
            }
        }
        // A cutover that begins meanwhile takes it off again: that waits for this one.
        // So does the halt of a node that has just learned of a newer primary.
        let gives_way = self.hosts[node].record(unit).is_some_and(|r| r.was_primary);
        if !gives_way && !matches!(role, Some("serving" | "leaving")) {
            let text = format!("n{node}, {role:?}, puts the address of {unit} on");
            self.violate(Rule::Address, text);
        }
        self.hosts[node].addresses.insert(unit);
        Ok(Outcome::Nothing)
    }

    /// At the end an address is where its workload is, and nowhere else.
    pub(super) fn check_address(&mut self, unit: usize) {
        let Some(owner) = self.owner_of(unit).filter(|_| self.scenario.address) else { return };
        let id = self.units[unit].id;
        for node in 0..self.hosts.len() {
            let has = self.hosts[node].addresses.contains(&id);
            if has != (node == owner) {
                let text = format!("unit {unit} is at n{owner}; address at n{node}: {has}");
                return self.violate(Rule::Address, text);
            }
        }
    }

    // ---- groups -------------------------------------------------------------------------------

    /// The volumes of a unit are at one moment.
    pub(super) fn check_group(&mut self, node: usize, datasets: &[DatasetName]) {
        let store = &self.hosts[node].store;
        let written = datasets.iter().filter(|name| !is_late(name));
        let live = written.filter_map(|d| store.datasets.get(d)).map(|d| d.live.last());
        let mut ends: Vec<u64> = live.collect();
        ends.dedup();
        if ends.len() > 1 {
            let text = format!("n{node} starts on volumes that end in records {ends:?}");
            self.violate(Rule::Group, text);
        }
    }

    // ---- fencing hooks ------------------------------------------------------------------------

    /// Turns a peer's host off until somebody repairs it.
    pub(super) fn fencing_hook(&mut self, node: usize, unit: UnitId, peer: Fingerprint) -> Done {
        let found = index_of(peer).filter(|p| *p < self.hosts.len() && *p != node);
        let Some(peer) = found else { return Err(injected("as the hook knows no such host")) };
        if self.rng.one_in(3) {
            let words = "the management board of the host did not answer";
            return Err(Failure::new(Remedy::Retry, FailureCode::TimedOut, words.to_owned()));
        }
        self.trace(|| format!("n{node} turns n{peer} off"));
        self.coverage.fault("fencing hook");
        self.crash_as(peer, true);
        self.power_fails(peer);
        self.hosts[peer].fenced = true;
        if let Some(model) = self.unit_index(unit) {
            self.units[model].hook_worked = true;
        }
        let after = self.rng.log_range(1_000, 40_000);
        self.after(after, Ev::Repaired(peer));
        Ok(Outcome::Nothing)
    }

    /// What a host loses besides its daemon.
    pub(super) fn power_fails(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        host.workloads.clear();
        host.leases.clear();
        host.addresses.clear();
        host.store.host_crashed();
        host.frozen_until = 0;
    }

    pub(super) fn on_repaired(&mut self, node: usize) {
        self.hosts[node].fenced = false;
        self.on_restart(node);
    }

    // ---- drills -------------------------------------------------------------------------------

    pub(super) fn wish_drill(&mut self, unit: usize) {
        let id = self.units[unit].id;
        let standby = (0..self.hosts.len()).find(|n| {
            let host = &self.hosts[*n];
            host.life.is_some() && host.record(id).is_some_and(|r| r.role.is_standby())
        });
        let Some(node) = standby else { return };
        let name = self.units[unit].name.clone();
        self.ask(node, unit, "drill", Command::Drill { name });
    }

    /// The workload runs on clones for a while: nobody but the drill sees them.
    pub(super) fn drill(&mut self, node: usize, snapshots: &[SnapshotName]) -> Done {
        let mut ends = Vec::new();
        for name in snapshots {
            let dataset = self.hosts[node].store.datasets.get(name.dataset());
            let snap = dataset.and_then(|d| d.snapshots.iter().find(|s| s.short == name.short()));
            match snap {
                Some(_) if is_late(name.dataset()) => {}
                Some(snap) => ends.push(snap.content.last()),
                None => {
                    let text = format!("n{node}: {name} went away under a drill");
                    self.violate(Rule::BaseInFlight, text);
                }
            }
        }
        ends.dedup();
        if ends.len() > 1 {
            let text = format!("n{node} tries volumes that end in records {ends:?}");
            self.violate(Rule::Group, text);
        }
        self.coverage.fault("drill");
        let sick = self.rng.chance_ppm(self.scenario.start_fail_ppm);
        let trouble = sick.then(|| injected("into a drill"));
        Ok(Outcome::Drilled { parts_ms: vec![("clone".into(), 1)], trouble })
    }

    /// Whether a drill under way is on this snapshot.
    pub(super) fn is_drilled(&self, node: usize, name: &SnapshotName) -> bool {
        let life = self.hosts[node].life.as_ref();
        life.is_some_and(|life| {
            life.ops.values().filter(|op| op.begun && op.outcome.is_none()).any(|op| {
                matches!(&op.action, Action::Drill { snapshots, .. } if snapshots.contains(name))
            })
        })
    }

    // ---- what a failover foretold, and what was set aside ---------------------------------------

    /// What was lost for the clients was written after the moment that the plan named.
    pub(super) fn check_foretold(&mut self, unit: UnitId, report: &FailoverReport) {
        let Some(model) = self.unit_index(unit) else { return };
        let Some(first_lost) = self.units[model].lost_since.take() else { return };
        let slack_ms = 2_100 + 4 * self.scenario.skew_ms;
        let named = self.now_ms.saturating_sub(report.total_ms + report.plan.age_ms);
        let drift_ms = report.total_ms / 20;
        if first_lost + slack_ms + drift_ms < named {
            let text = format!(
                "a record written at {first_lost} ms is lost; the plan spoke of those after {named} ms"
            );
            self.violate(Rule::Foretold, text);
        }
    }

    /// What is set aside is there from now on.
    pub(super) fn remember_aside(
        &mut self,
        node: usize,
        name: &DatasetName,
        aside: &DatasetName,
        before: &Dataset,
    ) {
        self.memory.kept.push((node, aside.clone(), before.live.stamp()));
        self.check_kept();
        let unit = before.mirror.as_ref().map(|m| m.unit);
        let record = self.hosts[node]
            .durable
            .units
            .values()
            .find(|r| Some(r.id) == unit || r.volumes.iter().any(|v| v.dataset == *name));
        let Some(unit) = record.map(|r| r.id) else { return };
        // What was confirmed beyond is in the other dataset now.
        let now = self.dataset_of(node, unit).map_or(0, |d| d.live.last());
        if let Some(confirmed) = self.memory.confirmed.get_mut(&(unit, node)) {
            *confirmed = (*confirmed).min(now);
        }
    }

    /// Nothing that was set aside ever goes away.
    pub(super) fn check_kept(&mut self) {
        let lost = self.memory.kept.iter().find(|(node, name, stamp)| {
            let dataset = self.hosts[*node].store.datasets.get(name);
            dataset.is_none_or(|d| d.live.stamp() != *stamp)
        });
        if let Some((node, name, _)) = lost {
            let text = format!("n{node} has lost {name}, which was set aside");
            self.violate(Rule::SetAside, text);
        }
    }

    // ---- processors that are taken away ---------------------------------------------------------

    /// A daemon, or a whole host, gets no processor for a while.
    pub(super) fn stop_running(&mut self, node: usize, host_too: bool) {
        let left_ms = self.scenario.chaos_ms.saturating_sub(self.now_ms + 1);
        if self.hosts[node].life.is_none() || left_ms == 0 {
            return;
        }
        let longest = self.rng.log_range(100, 25_000);
        let until = self.now_ms + longest.min(left_ms);
        self.coverage.fault(if host_too { "host stopped" } else { "daemon stopped" });
        let host = &mut self.hosts[node];
        host.stopped_until = host.stopped_until.max(until);
        if host_too {
            host.frozen_until = host.frozen_until.max(until);
        }
        for (unit, m) in self.moves.clone() {
            if m.source == node || m.target == node {
                self.coverage_hit("stopped", unit);
            }
        }
    }

    /// The daemon of this node is stopped: until when, world milliseconds.
    pub(super) fn waits_until(&self, event: &Ev) -> Option<u64> {
        let node = match event {
            Ev::Timer { node, .. }
            | Ev::ViewUp { node, .. }
            | Ev::ViewDown { node, .. }
            | Ev::OpApply { node, .. }
            | Ev::OpDone { node, .. }
            | Ev::SideEnds { node, .. }
            | Ev::ReceiveTimeout { node, .. }
            | Ev::Exited { node, .. }
            | Ev::Deliver { to: node, .. } => *node,
            _ => return None,
        };
        let host = &self.hosts[node];
        let until = host.stopped_until;
        (host.life.is_some() && until > self.now_ms).then_some(until)
    }

    /// Somebody newer is primary, and this node goes on all the same: only after a false word.
    pub(super) fn is_superseded(&self, node: usize, model: usize) -> bool {
        let unit = self.units[model].id;
        if !self.units[model].two_lines {
            return false;
        }
        let mine = self.hosts[node].record(unit);
        // A journal that was lost after the false word knows no epoch: any is newer.
        let known = mine.map_or(0, |r| r.epoch.number);
        let newer = (0..self.hosts.len()).filter(|n| *n != node).any(|n| {
            let other = self.hosts[n].record(unit);
            other.is_some_and(|r| r.role.is_primary() && r.epoch.number > known)
        });
        // It stops its workload once it is told whose it is.
        let forgot = self.units[model].tainted && self.units[model].left_behind.contains(&node);
        newer || mine.is_some_and(|r| r.role.is_standby() && (r.was_primary || forgot))
    }
}
