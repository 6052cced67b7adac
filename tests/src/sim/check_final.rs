//! What must hold once every fault is over and some minutes have passed.

use flocker_core::node::SNAPSHOT_PREFIX;
use flocker_core::record::Role;

use super::check::Rule;
use super::host::fingerprint_of;
use super::store::Snap;
use super::world::World;

/// Snapshots of ours that a volume may keep on a node when all is quiet.
const SNAPSHOTS_KEPT: usize = 3;

/// Snapshots of ours that may be held on a node: the base, and that of the way back.
const HOLDS_KEPT: usize = 2;

/// A healthy workload writes at least this often, milliseconds.
const PROGRESS_MS: u64 = 5_000;

/// What a person waits for an answer at most, milliseconds.
const ANSWER_MS: u64 = 100_000;

/// What a standby may be behind beyond its RPO while the simulator's links and disks work as
/// slowly as they may, milliseconds.
const LAG_SLACK_MS: u64 = 3_000;

impl World {
    /// With the workloads still writing: one primary, and each standby within its promise.
    pub(super) fn check_healed(&mut self) {
        for unit in 0..self.units.len() {
            if self.judge(unit) {
                self.check_roles(unit);
                self.check_lag(unit);
            }
        }
        self.check_answers();
    }

    /// With the workloads at rest: equal on both sides, nothing left over.
    pub(super) fn check_rested(&mut self) {
        self.check_kept();
        self.check_foreign();
        self.count_clones();
        for unit in 0..self.units.len() {
            if self.judge(unit) {
                self.check_roles(unit);
                self.check_equal(unit);
                self.check_losses(unit);
                self.check_address(unit);
                self.check_leaks(unit);
            }
        }
    }

    /// Whether wellness is asked of this unit. With more than two nodes only safety is: a move leaves
    /// the other standbys behind, and says so.
    fn judge(&mut self, unit: usize) -> bool {
        if self.hosts.len() > 2 {
            return false;
        }
        if !self.units[unit].protected && !self.units[unit].tainted {
            self.violate(Rule::Heals, format!("unit {unit} was never protected"));
        }
        self.units[unit].protected && !self.units[unit].tainted
    }

    fn check_roles(&mut self, unit: usize) {
        let id = self.units[unit].id;
        let roles: Vec<String> = self
            .hosts
            .iter()
            .map(|h| h.record(id).map_or("unknown".into(), |r| format!("{:?}", r.role)))
            .collect();
        let Some(owner) = self.owner_of(unit) else {
            return self.violate(Rule::Heals, format!("unit {unit}: {}", roles.join(" | ")));
        };
        let serving = self.hosts[owner].record(id).is_some_and(|r| r.role == Role::Serving);
        let following = (0..self.hosts.len()).filter(|n| *n != owner).all(|n| {
            let source = fingerprint_of(owner);
            self.hosts[n].record(id).is_some_and(|r| r.role == Role::Following { source })
        });
        if !serving || !following {
            return self.violate(Rule::Heals, format!("unit {unit}: {}", roles.join(" | ")));
        }
        let dataset = self.dataset_of(owner, id);
        let writable = dataset.is_some_and(|d| d.can_be_written());
        let live = dataset.map(|d| d.live.clone()).unwrap_or_default();
        let runs = self.hosts[owner].workloads.contains_key(&id);
        if !writable || !runs {
            let text = format!("unit {unit} at n{owner}: writable {writable}, runs {runs}");
            return self.violate(Rule::Heals, text);
        }
        let acked = self.units[unit].acked;
        if !live.holds_all_up_to(acked) {
            let text = format!("n{owner} has {}, acknowledged up to {acked}", live.describe());
            self.violate(Rule::Acknowledged, text);
        }
    }

    fn check_lag(&mut self, unit: usize) {
        let Some(owner) = self.owner_of(unit) else {
            return;
        };
        let id = self.units[unit].id;
        let last_written = self.units[unit].written_at.last().copied().unwrap_or(0);
        if last_written + PROGRESS_MS < self.now_ms {
            let text = format!("unit {unit}: the workload last wrote at {last_written} ms");
            self.violate(Rule::Heals, text);
        }
        let rpo_ms = self.scenario.policy.rpo_ms();
        let step_ms = self.scenario.net.latency_ms * 4 + self.scenario.net.jitter_ms * 4;
        for node in 0..self.hosts.len() {
            if node == owner || !self.is_standby_of(node, owner, id) {
                continue;
            }
            let last = self.dataset_of(node, id).map_or(0, |d| d.live.last());
            let behind_since = self.units[unit].written_at.get(last as usize).copied();
            let lag_ms = behind_since.map_or(0, |since| self.now_ms - since);
            if lag_ms > rpo_ms + step_ms + LAG_SLACK_MS {
                let text = format!("n{node} is {lag_ms} ms behind in unit {unit}, RPO {rpo_ms} ms");
                return self.violate(Rule::Heals, text);
            }
        }
        let moved = self.units[unit].last_move.clone();
        match moved {
            Some((target, Some(Ok(())))) if target == owner => {}
            other => {
                let text = format!("unit {unit} at n{owner}; the last migration: {other:?}");
                self.violate(Rule::Heals, text);
            }
        }
    }

    fn check_answers(&mut self) {
        for node in 0..self.hosts.len() {
            let Some(life) = &self.hosts[node].life else { continue };
            let late = life
                .asked
                .values()
                // Where a journal was lost, a move stays open until a person decides.
                .find(|a| a.at_ms + ANSWER_MS < self.now_ms && !self.units[a.unit].tainted)
                .cloned();
            if let Some(asked) = late {
                let text =
                    format!("n{node} never answered `{}`, asked at {}", asked.what, asked.at_ms);
                self.violate(Rule::Answers, text);
            }
        }
    }

    fn check_equal(&mut self, unit: usize) {
        let Some(owner) = self.owner_of(unit) else { return };
        let id = self.units[unit].id;
        let live = self.dataset_of(owner, id).map(|d| d.live.stamp());
        for node in 0..self.hosts.len() {
            if !self.is_standby_of(node, owner, id) {
                continue;
            }
            if self.dataset_of(node, id).map(|d| d.live.stamp()) != live {
                let text =
                    format!("unit {unit}: n{node} differs from n{owner} though nothing is written");
                return self.violate(Rule::Heals, text);
            }
        }
    }

    fn check_leaks(&mut self, unit: usize) {
        let id = self.units[unit].id;
        for node in 0..self.hosts.len() {
            let Some(dataset) = self.dataset_of(node, id) else { continue };
            let ours = |s: &&Snap| s.short.starts_with(SNAPSHOT_PREFIX);
            let names: Vec<String> = dataset
                .snapshots
                .iter()
                .filter(ours)
                .map(|s| format!("{}{}", s.short, if s.holds.is_empty() { "" } else { " (held)" }))
                .collect();
            let held = dataset.snapshots.iter().filter(|s| !s.holds.is_empty()).count();
            if names.len() > SNAPSHOTS_KEPT || held > HOLDS_KEPT {
                let text = format!("unit {unit} at n{node} keeps {}", names.join(", "));
                return self.violate(Rule::NothingLeaks, text);
            }
            if !dataset.bookmarks.is_empty() {
                let names: Vec<_> = dataset.bookmarks.keys().cloned().collect();
                let text = format!("unit {unit} at n{node} keeps bookmarks {}", names.join(", "));
                return self.violate(Rule::NothingLeaks, text);
            }
        }
    }
}
