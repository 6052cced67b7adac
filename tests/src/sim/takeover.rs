//! Failovers, leases and cancels in the model: when people ask for them, and what must hold of them.

use flocker_core::ids::UnitId;
use flocker_core::record::{Proof, Role, UnitRecord};
use flocker_core::{Action, Command};

use super::check::Rule;
use super::host::index_of;
use super::scenario::ModelBug;
use super::world::{Ev, World};

/// What an unplanned change of primary left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// On which node it must be kept.
    pub node: usize,
    /// The newest record that was acknowledged there.
    pub up_to: u64,
}

impl World {
    // ---- wishes -------------------------------------------------------------------------------

    pub(super) fn on_want(&mut self, unit: usize, failover: bool) {
        if self.healing || !self.units[unit].protected {
            return;
        }
        match (failover, self.owner_of(unit)) {
            (true, _) => self.wish_failover(unit),
            (false, Some(owner)) => self.wish_cancel(owner, unit),
            (false, None) => {}
        }
    }

    /// A migration is taken back by whoever asked for it.
    pub(super) fn wish_cancel(&mut self, node: usize, unit: usize) {
        let id = self.units[unit].id;
        self.coverage_hit("cancel", id);
        let name = self.units[unit].name.clone();
        self.ask(node, unit, "cancel", Command::CancelMigration { name });
    }

    /// A standby is asked to take over: with the operator's word only where it is true.
    pub(super) fn wish_failover(&mut self, unit: usize) {
        let id = self.units[unit].id;
        let Some(node) = (0..self.hosts.len()).find(|n| {
            let host = &self.hosts[*n];
            host.life.is_some() && host.record(id).is_some_and(|r| !r.role.is_primary())
        }) else {
            return;
        };
        let mut primary_is_down =
            self.others_are_down(node, id) && !self.another_may_serve(node, id);
        let dry_run = self.rng.one_in(10);
        if !primary_is_down && !dry_run && self.scenario.false_words && self.rng.one_in(3) {
            self.coverage.fault("false word");
            primary_is_down = true;
            self.units[unit].two_lines = true;
        }
        self.coverage.fault(if primary_is_down { "failover by word" } else { "failover asked" });
        self.coverage_hit("failover", id);
        let name = self.units[unit].name.clone();
        if primary_is_down {
            // People do not start a host that they have declared down before it is over.
            self.units[unit].word_given = true;
        }
        let command = Command::Failover { name, primary_is_down, dry_run };
        self.ask(node, unit, "failover", command);
    }

    pub(super) fn others_are_down(&self, node: usize, unit: UnitId) -> bool {
        (0..self.hosts.len()).filter(|n| *n != node).all(|n| {
            let host = &self.hosts[n];
            host.life.is_none() && !host.workloads.contains_key(&unit)
        })
    }

    /// A node that the asked one does not take for the primary is it, or may become it when it comes
    /// back: a move left the asked node behind, and a word about the old primary would be false.
    fn another_may_serve(&self, asked: usize, unit: UnitId) -> bool {
        let Some(record) = self.hosts[asked].record(unit) else { return true };
        let believed = index_of(record.epoch.owner);
        (0..self.hosts.len()).filter(|n| *n != asked).any(|n| {
            let role = self.hosts[n].record(unit).map(|r| &r.role);
            match role {
                None | Some(Role::Following { .. }) => false,
                Some(Role::HandedOver { target, .. }) => index_of(*target) != Some(asked),
                Some(Role::Serving | Role::Leaving { .. } | Role::Ready { .. }) => {
                    believed != Some(n)
                }
            }
        })
    }

    // ---- leases -------------------------------------------------------------------------------

    /// The supervisor learns until when the workload may run.
    pub(super) fn lease_is(&mut self, node: usize, unit: UnitId, until_ms: Option<u64>) {
        let host = &mut self.hosts[node];
        let until = until_ms.map(|until| host.world_at(until));
        host.leases.insert(unit, until);
        if let Some(at) = until {
            let at = at.max(self.now_ms);
            self.at(at, Ev::LeaseEnds { node, unit });
        }
    }

    /// The supervisor looks whether the lease was renewed, and kills where it was not.
    pub(super) fn on_lease_ends(&mut self, node: usize, unit: UnitId) {
        let due = self.hosts[node].leases.get(&unit).copied().flatten();
        if due.is_none_or(|at| at > self.now_ms) {
            return;
        }
        let sleeps = self.scenario.model_bug == Some(ModelBug::SupervisorSleeps);
        if self.hosts[node].workloads.contains_key(&unit) && !sleeps {
            self.coverage.fault("killed by its lease's end");
            self.kill_workload(node, unit);
        }
    }

    // ---- what must hold -----------------------------------------------------------------------

    /// A node became primary without its peer's commit.
    pub(super) fn check_failed_over(&mut self, node: usize, new: &UnitRecord) {
        let Some(failover) = new.failover.clone() else { return };
        self.coverage.fault(match failover.proof {
            Proof::PrimaryFenced => "failed over: primary fenced",
            Proof::FencingHook => "failed over: hook",
            Proof::LeaseRanOut => "failed over: lease",
            Proof::OperatorsWord => "failed over: word",
        });
        let others = (0..self.hosts.len()).filter(|n| *n != node);
        let running: Vec<usize> =
            others.clone().filter(|n| self.hosts[*n].workloads.contains_key(&new.id)).collect();
        let alone = self.unit_index(new.id).is_some_and(|m| {
            let unit = &self.units[m];
            unit.told_alone || unit.two_lines
        });
        if !running.is_empty() && !alone {
            let text = format!("n{node} takes over ({}) while {running:?} run it", failover.proof);
            return self.violate(Rule::Proof, text);
        }
        let proven = match failover.proof {
            Proof::PrimaryFenced => others.clone().any(|n| {
                self.hosts[n].record(new.id).is_some_and(|r| match &r.role {
                    Role::HandedOver { attempt, .. } => *attempt == new.epoch.attempt,
                    _ => false,
                })
            }),
            Proof::OperatorsWord => {
                self.unit_index(new.id).is_some_and(|m| self.units[m].word_given)
            }
            Proof::LeaseRanOut => new.lease_ms.is_some(),
            Proof::FencingHook => {
                self.unit_index(new.id).is_some_and(|m| self.units[m].hook_worked)
            }
        };
        let tainted = self.unit_index(new.id).is_some_and(|m| self.units[m].tainted);
        if !proven && !tainted {
            let text = format!("n{node} takes over, and nothing proves: {}", failover.proof);
            return self.violate(Rule::Proof, text);
        }
        let others: Vec<usize> = others.collect();
        self.count_losses(node, &others, new);
    }

    /// Clients go on from what the new primary has; the rest must be kept where it was written.
    pub(super) fn count_losses(&mut self, node: usize, others: &[usize], new: &UnitRecord) {
        let Some(model) = self.unit_index(new.id) else { return };
        let Some(dataset) = self.dataset_of(node, new.id) else {
            let text = format!("n{node} takes over without a replica");
            return self.violate(Rule::FinalSnapshot, text);
        };
        let (has, whole) = (dataset.live.last(), dataset.live.is_whole());
        // Its snapshot may have become a bookmark since.
        let fuzzy = match dataset.snapshots.last() {
            Some(newest) => newest.fuzzy,
            None => dataset.bookmarks.is_empty(),
        };
        if !whole || fuzzy {
            let text = format!("n{node} takes over at a moment that never was");
            return self.violate(Rule::FinalSnapshot, text);
        }
        let unit = &mut self.units[model];
        let up_to = unit.acked;
        unit.left_behind.extend(others.iter().copied());
        unit.left_behind.remove(&node);
        unit.lost_since = None;
        if up_to > has {
            unit.acked = has;
            unit.lost_since = unit.written_at.get(has as usize).copied();
            unit.written_at.truncate(has as usize);
        }
        let written: Vec<(usize, u64)> = others
            .iter()
            .filter_map(|n| Some((*n, self.dataset_of(*n, new.id)?.live.last())))
            .filter(|(_, last)| *last > has)
            .collect();
        if up_to > has && !written.iter().any(|(_, last)| *last >= up_to) {
            let text =
                format!("acknowledged up to {up_to}, n{node} has {has}, nobody has the rest");
            return self.violate(Rule::Acknowledged, text);
        }
        for (node, up_to) in written {
            self.units[model].losses.push(Loss { node, up_to });
        }
    }

    /// What a failover left behind is kept, wherever it is kept by now.
    pub(super) fn check_losses(&mut self, unit: usize) {
        let losses = self.units[unit].losses.clone();
        for Loss { node, up_to } in losses {
            let store = &self.hosts[node].store;
            let kept = store.datasets.values().any(|d| d.live.last() >= up_to);
            if !kept {
                let text = format!("n{node} had records up to {up_to}, and keeps them nowhere");
                return self.violate(Rule::SetAside, text);
            }
        }
    }

    /// A node that a failover left behind, and that has not been fenced since: its volumes may still
    /// be mounted there, with nobody to write them.
    pub(super) fn is_left_behind(&mut self, model: usize, node: usize, writable: bool) -> bool {
        let unit = self.units[model].id;
        let superseded = self.is_superseded(node, model);
        if !writable && self.units[model].left_behind.contains(&node) {
            // What was to be made writable when the change came is made so, and taken back right behind it.
            let pending = self.hosts[node].life.as_ref().is_some_and(|life| {
                let mut ops = life.ops.values();
                ops.any(|op| op.unit == unit && matches!(op.action, Action::Activate { .. }))
            });
            if !pending {
                self.units[model].left_behind.remove(&node);
            }
        }
        if superseded {
            return true;
        }
        // Told to serve without its standby's answer, which had taken over: it stops once it hears of that.
        let stops = self.hosts[node].record(unit).is_some_and(|r| r.was_primary);
        if self.units[model].told_alone && (stops || self.is_alone(node, unit)) {
            return true;
        }
        if !self.units[model].left_behind.contains(&node) {
            return false;
        }
        !self.hosts[node].workloads.contains_key(&unit)
    }

    /// It serves on the word to start alone, and does not know of a newer primary.
    fn is_alone(&self, node: usize, unit: UnitId) -> bool {
        let Some(record) = self.hosts[node].record(unit) else { return false };
        let newer = |n: usize| {
            let other = self.hosts[n].record(unit);
            other.is_some_and(|o| o.role.is_primary() && o.epoch.number > record.epoch.number)
        };
        record.role.is_primary()
            && record.decided_epoch == Some(record.epoch.number)
            && (0..self.hosts.len()).any(newer)
    }

    /// Whether this change of role is a failover's.
    pub(super) fn is_failover(old: &UnitRecord, new: &UnitRecord) -> bool {
        let number = new.epoch.number;
        new.failover.as_ref().is_some_and(|f| f.epoch == number) && old.epoch.number < number
    }
}
