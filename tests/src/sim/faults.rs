//! Faults: at random moments, and aimed at the phases of cutovers.

use flocker_core::ids::{AttemptId, Fingerprint, Incarnation, UnitId};
use flocker_core::record::Role;
use flocker_core::{Body, Input, Message};

use super::host::index_of;
use super::world::{Ev, World};

/// What the names of snapshots begin with that somebody took of a standby.
pub const BY_HAND: &str = "by-hand-";

/// Something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A daemon, or its host, dies.
    Crash(usize),
    /// A daemon dies and its journal is lost.
    CrashAndLoseJournal(usize),
    /// Nothing gets from the first to the second.
    CutOneWay(usize, usize),
    /// Nothing gets through.
    Cut(usize, usize),
    /// The connection dies, nothing else.
    Disconnect(usize, usize),
    /// A disk is full for a while.
    DiskFull(usize),
    /// Somebody else holds a unit's dataset open, and may write it.
    Stranger(usize),
    /// Somebody writes standbys by hand, or takes snapshots of them.
    ByHand(usize),
    /// A workload ends by itself.
    KillWorkload(usize),
    /// A daemon gets no processor for a while (SIGSTOP); its workload goes on.
    Stop(usize),
    /// A whole host gets none (a stopped virtual machine); its clocks go on.
    StopHost(usize),
    /// A node is asked once more to settle attempts that it has refused, as if a message of a
    /// commit came after all.
    AskAgain(usize),
}

/// A cutover under way, as far as the simulator sees it.
#[derive(Debug, Clone)]
pub struct Move {
    /// From.
    pub source: usize,
    /// To.
    pub target: usize,
    /// The phase last entered.
    pub phase: String,
}

impl World {
    /// A fault at a random moment, and the next one's moment.
    pub(super) fn on_fault(&mut self) {
        let Some(every) = self.scenario.faults.every_ms else {
            return;
        };
        let after = self.rng.range(1, every * 2);
        self.after(after, Ev::Fault);
        if self.healing {
            return;
        }
        let node = self.rng.below(self.hosts.len());
        let other = (node + 1 + self.rng.below(self.hosts.len() - 1)) % self.hosts.len();
        if self.scenario.by_hand && self.rng.one_in(6) {
            return self.strike(Fault::ByHand(node));
        }
        let fault = match self.rng.range(0, 14) {
            0..=3 => Fault::Crash(node),
            4 | 5 => Fault::Cut(node, other),
            6 => Fault::CutOneWay(node, other),
            7 => Fault::Disconnect(node, other),
            8 => Fault::DiskFull(node),
            9 | 10 => Fault::Stranger(node),
            11 => Fault::KillWorkload(node),
            12 => Fault::Stop(node),
            13 => Fault::StopHost(node),
            _ => Fault::AskAgain(node),
        };
        self.strike(fault);
    }

    /// A phase or role was entered: now and then something goes wrong right in it.
    pub(super) fn maybe_strike(&mut self, node: usize, unit: UnitId) {
        let committed = self.moves.get(&unit).is_some_and(|m| m.phase == "commit");
        let ppm = self.scenario.faults.phase_ppm * if committed { 3 } else { 1 };
        if self.healing || !self.rng.chance_ppm(ppm.min(1_000_000)) {
            return;
        }
        let (source, target) = match self.moves.get(&unit) {
            Some(m) => (m.source, m.target),
            None => (node, (node + 1) % self.hosts.len()),
        };
        let fault = match self.rng.range(0, 10) {
            0 | 1 => Fault::Crash(source),
            2 | 3 => Fault::Crash(target),
            4 | 5 => Fault::Cut(source, target),
            6 => Fault::CutOneWay(source, target),
            7 => Fault::CutOneWay(target, source),
            8 => Fault::Disconnect(source, target),
            9 => Fault::Stop(if self.rng.one_in(2) { source } else { target }),
            _ if self.scenario.faults.journal_loss_ppm > 0 => Fault::CrashAndLoseJournal(target),
            _ => Fault::Stranger(source),
        };
        let after =
            if self.rng.one_in(2) { self.rng.range(0, 5) } else { self.rng.log_range(1, 2_000) };
        self.after(after, Ev::Strike(fault));
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        if self.healing {
            return;
        }
        self.trace(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Crash(node) => {
                let ppm = self.scenario.faults.journal_loss_ppm;
                if self.rng.chance_ppm(ppm / 8) {
                    self.lose_journal(node);
                } else {
                    self.crash(node);
                }
            }
            Fault::CrashAndLoseJournal(node) => self.lose_journal(node),
            Fault::CutOneWay(from, to) => {
                self.hit_pair("cut one way", from, to);
                self.block(from, to);
                self.reopen_later(from, to);
            }
            Fault::Cut(a, b) => {
                self.hit_pair("cut", a, b);
                self.block(a, b);
                self.block(b, a);
                self.reopen_later(a, b);
            }
            Fault::Disconnect(a, b) => {
                self.hit_pair("disconnect", a, b);
                self.break_connection(a, b, false);
            }
            Fault::DiskFull(node) => {
                self.coverage.fault("disk full");
                self.hosts[node].store.full = true;
                let after = self.rng.log_range(100, 20_000);
                self.after(after, Ev::DiskFreed(node));
            }
            Fault::Stranger(node) => self.stranger_comes(node),
            Fault::ByHand(node) => self.standbys_are_changed_by_hand(node),
            Fault::Stop(node) => self.stop_running(node, false),
            Fault::StopHost(node) => self.stop_running(node, true),
            Fault::AskAgain(node) if self.hosts[node].stopped_until > self.now_ms => {}
            Fault::AskAgain(node) => self.ask_refused_again(node),
            Fault::KillWorkload(node) => {
                let units: Vec<UnitId> = self.hosts[node].workloads.keys().copied().collect();
                if !units.is_empty() {
                    self.coverage.fault("workload ended");
                    let unit = units[self.rng.below(units.len())];
                    self.kill_workload(node, unit);
                }
            }
        }
    }

    fn reopen_later(&mut self, a: usize, b: usize) {
        let longest = self.scenario.faults.partition_ms;
        let after = self.rng.log_range(50, longest);
        self.after(after, Ev::Reopen(a, b));
    }

    /// Somebody opens a dataset, writes a little where it can be written, and keeps it open.
    fn stranger_comes(&mut self, node: usize) {
        let names: Vec<_> = self.hosts[node]
            .store
            .datasets
            .iter()
            .filter(|(_, d)| d.can_be_written())
            .map(|(name, _)| name.clone())
            .collect();
        if names.is_empty() {
            return;
        }
        self.coverage.fault("stranger");
        let name = names[self.rng.below(names.len())].clone();
        self.stamps += 1;
        let stamp = self.stamps;
        if let Some(dataset) = self.hosts[node].store.datasets.get_mut(&name) {
            dataset.foreign_holder = true;
            dataset.live.scribble(stamp, 100);
        }
        let after = self.rng.log_range(50, 10_000);
        self.after(after, Ev::StrangerLeaves(node, name));
    }

    /// Somebody takes snapshots of standbys, and may have made them writable for a moment before. Not in
    /// the middle of a change of primary: whoever writes what was just proven is beyond any promise.
    fn standbys_are_changed_by_hand(&mut self, node: usize) {
        let records = self.hosts[node].durable.units.values();
        let rests = |id: UnitId| {
            let at_rest = |r: &Role| matches!(r, Role::Serving | Role::Following { .. });
            self.hosts.iter().all(|h| h.record(id).is_none_or(|r| at_rest(&r.role)))
                && !self.moves.contains_key(&id)
                && !self.is_open(node, "failover")
        };
        let following = records.filter(|r| matches!(r.role, Role::Following { .. }) && rests(r.id));
        let names: Vec<_> = following.flat_map(|r| &r.volumes).map(|v| v.dataset.clone()).collect();
        let written = self.rng.one_in(2);
        for name in names {
            self.stamps += 1;
            let stamp = self.stamps;
            let unix_s = self.hosts[node].now(self.now_ms).wall_ms / 1000;
            let store = &mut self.hosts[node].store;
            let Some(dataset) = store.datasets.get_mut(&name) else { continue };
            if dataset.can_be_written() || dataset.snapshots.is_empty() {
                continue;
            }
            if written {
                dataset.live.scribble(stamp, 100);
            }
            if let Ok(hand) = name.snapshot(&format!("{BY_HAND}{stamp}")) {
                let _ = store.take_snapshots(&[hand], true, unix_s);
            }
            self.coverage.fault("standby changed by hand");
        }
    }

    /// The tombstone of an attempt defeats every later commit of it.
    fn ask_refused_again(&mut self, node: usize) {
        let records: Vec<_> = self.hosts[node].durable.units.values().cloned().collect();
        for record in records {
            for (issuer, number) in record.refused_up_to {
                let attempt = AttemptId { issuer, number };
                if record.taken.contains(&attempt) || self.hosts[node].life.is_none() {
                    continue;
                }
                self.coverage.fault("refused attempt asked again");
                let body = Body::Settle { attempt, question: None };
                let message = Message { unit: record.id, epoch: record.epoch, body };
                self.input(node, Input::Message { peer: issuer, message });
            }
        }
    }

    /// The daemon dies, with or without its host.
    pub(super) fn crash(&mut self, node: usize) {
        let host_too = self.rng.range(1, 100) <= self.scenario.faults.host_crash_percent;
        self.crash_as(node, host_too);
        let longest = self.scenario.faults.down_ms;
        let after = self.rng.log_range(20, longest);
        self.after(after, Ev::Restart(node));
    }

    pub(super) fn crash_as(&mut self, node: usize, host_too: bool) {
        if self.hosts[node].life.is_none() {
            return;
        }
        let kind = if host_too { "host crash" } else { "daemon crash" };
        self.coverage.fault(kind);
        self.trace(|| format!("n{node} {kind}"));
        for (unit, m) in self.moves.clone() {
            if m.source == node {
                self.coverage_hit("crash of the source", unit);
            } else if m.target == node {
                self.coverage_hit("crash of the target", unit);
            }
        }
        self.finish_some_actions(node);
        self.bulks_of_the_dead(node);
        let host = &mut self.hosts[node];
        host.life = None;
        host.stopped_until = 0;
        if host_too {
            self.power_fails(node);
        } else {
            host.workloads.retain(|_, w| !w.record.die_with_daemon);
        }
        if host_too && !self.healing {
            for unit in 0..self.units.len() {
                if self.rng.one_in(3) {
                    let after = self.rng.log_range(20, 2_000);
                    self.after(after, Ev::Want { unit, failover: true });
                }
            }
        }
        self.net.forget_views(node);
        for peer in 0..self.hosts.len() {
            if peer != node {
                self.break_connection(node, peer, host_too);
            }
        }
    }

    /// What an action was doing may have happened or not, and nobody is left to say.
    fn finish_some_actions(&mut self, node: usize) {
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        let open: Vec<_> = life
            .ops
            .values()
            .filter(|state| state.begun && state.outcome.is_none())
            .map(|state| (state.unit, state.action.clone()))
            .collect();
        for (unit, action) in open {
            if self.rng.one_in(2) {
                let outcome = self.apply(node, unit, &action);
                self.trace(|| format!("n{node} left behind {action:?}: {outcome:?}"));
            }
        }
    }

    /// The daemon dies, and its journal with it.
    fn lose_journal(&mut self, node: usize) {
        if self.hosts[node].life.is_none() {
            return;
        }
        for (unit, m) in self.moves.clone() {
            if m.target == node {
                self.coverage_hit("journal loss of the target", unit);
            }
        }
        self.coverage.fault("journal loss");
        self.crash_as(node, false);
        let incarnation = Incarnation(self.rng.bits());
        let units: Vec<UnitId> = self.hosts[node].durable.units.keys().copied().collect();
        for unit in units {
            if let Some(model) = self.unit_index(unit) {
                self.units[model].tainted = true;
                // What was mounted stays so until it is this node's to fence again.
                self.units[model].left_behind.insert(node);
            }
            // A new replica is begun beside what is there.
            self.memory.confirmed.remove(&(unit, node));
        }
        let durable = &mut self.hosts[node].durable;
        durable.incarnation = incarnation;
        durable.units.clear();
        durable.peers.clear();
        let longest = self.scenario.faults.down_ms;
        let after = self.rng.log_range(20, longest);
        self.after(after, Ev::Restart(node));
    }

    pub(super) fn on_restart(&mut self, node: usize) {
        if self.hosts[node].life.is_some() || self.hosts[node].fenced {
            return;
        }
        let boot = self.rng.bits();
        // A monotonic clock begins anew with its host; only differences mean something.
        self.hosts[node].mono_base_ms = self.rng.range(0, 1_000_000);
        let scenario = self.scenario.clone();
        self.trace(|| format!("n{node} starts, boot {boot:016x}"));
        self.hosts[node].start(self.now_ms, boot, &scenario);
        self.drain(node);
        for peer in 0..self.hosts.len() {
            if peer != node {
                self.seek_connection(node, peer);
            }
        }
    }

    pub(super) fn phase_entered(
        &mut self,
        node: usize,
        unit: UnitId,
        attempt: AttemptId,
        phase: &str,
    ) {
        self.coverage.phase(phase);
        let source = index_of(attempt.issuer).unwrap_or(node);
        let target = match self.hosts[source].record(unit).map(|r| &r.role) {
            Some(Role::Leaving { target, .. } | Role::HandedOver { target, .. }) => other(*target),
            _ => self.moves.get(&unit).map(|m| m.target),
        };
        let target = target.unwrap_or((source + 1) % self.hosts.len());
        let phase = phase.to_owned();
        self.moves.insert(unit, Move { source, target, phase });
        if !self.healing
            && self.rng.chance_ppm(self.scenario.faults.phase_ppm / 4)
            && let Some(model) = self.unit_index(unit)
        {
            let after = self.rng.range(0, 40);
            let failover = self.rng.one_in(2);
            self.after(after, Ev::Want { unit: model, failover });
        }
        self.maybe_strike(node, unit);
    }

    /// Counts a fault in the phase that a unit is in, if it is in one.
    pub(super) fn coverage_hit(&mut self, fault: &'static str, unit: UnitId) {
        if let Some(m) = self.moves.get(&unit) {
            self.coverage.hit(fault, &m.phase);
        }
    }

    pub(super) fn note_loss(&mut self, unit: UnitId) {
        self.coverage_hit("message lost", unit);
    }

    fn hit_pair(&mut self, fault: &'static str, a: usize, b: usize) {
        self.coverage.fault(fault);
        for (unit, m) in self.moves.clone() {
            if (m.source, m.target) == (a, b) || (m.source, m.target) == (b, a) {
                self.coverage_hit(fault, unit);
            }
        }
    }
}

fn other(fingerprint: Fingerprint) -> Option<usize> {
    index_of(fingerprint)
}
