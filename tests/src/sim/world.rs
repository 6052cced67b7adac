//! The world: virtual time, one queue of events, and everything that happens in it.
//!
//! Deterministic: events are ordered by time and then by when they were scheduled, all draws come
//! from one generator, and no collection's order depends on addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use flocker_core::ids::{OpId, TransferId, UnitId};
use flocker_core::{Failure, Input, Message};
use flocker_store::{DatasetName, Guid, Snapshot};

use super::bulk::Bulk;
use super::check::{Memory, Rule, Violation};
use super::coverage::Coverage;
use super::faults::{Fault, Move};
use super::host::{Host, Life};
use super::net::Net;
use super::operator::UnitModel;
use super::rng::Rng;
use super::scenario::Scenario;
use super::store::Dataset;
use super::trace::Trace;

/// Events handled in one run at most: more means that something goes round in circles.
const EVENT_LIMIT: u64 = 3_000_000;

/// Something happens.
#[derive(Debug)]
pub(super) enum Ev {
    Timer {
        node: usize,
        boot: u64,
        at: u64,
    },
    Deliver {
        from: usize,
        to: usize,
        message: Box<Message>,
    },
    Connect {
        a: usize,
        b: usize,
    },
    ViewUp {
        node: usize,
        peer: usize,
        number: u64,
    },
    ViewDown {
        node: usize,
        peer: usize,
        number: u64,
    },
    OpApply {
        node: usize,
        boot: u64,
        op: OpId,
    },
    OpDone {
        node: usize,
        boot: u64,
        op: OpId,
    },
    BulkArrive {
        transfer: TransferId,
    },
    BulkBreak {
        transfer: TransferId,
    },
    BulkWhole {
        transfer: TransferId,
    },
    BulkCommit {
        transfer: TransferId,
    },
    SideEnds {
        node: usize,
        boot: u64,
        transfer: TransferId,
        /// Boxed: events are moved about a lot.
        outcome: Box<Result<Option<Snapshot>, Failure>>,
    },
    ReceiveTimeout {
        node: usize,
        boot: u64,
        transfer: TransferId,
    },
    Write {
        node: usize,
        unit: UnitId,
        life: u64,
    },
    LeaseEnds {
        node: usize,
        unit: UnitId,
    },
    Exited {
        node: usize,
        boot: u64,
        exited: Box<Input>,
    },
    /// Somebody wants a failover, or the migration under way taken back.
    Want {
        unit: usize,
        failover: bool,
    },
    Repaired(usize),
    Restart(usize),
    Reopen(usize, usize),
    DiskFreed(usize),
    StrangerLeaves(usize, DatasetName),
    Fault,
    Strike(Fault),
    Setup,
    Wish,
    Heal,
    LastMove,
    Healed,
    Rested,
}

#[derive(Debug)]
struct Scheduled {
    at_ms: u64,
    number: u64,
    event: Ev,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}

/// Everything in one run.
#[derive(Debug)]
pub struct World {
    pub(super) scenario: Scenario,
    /// Snapshots that another tool has taken and sent, and where.
    pub(super) foreign: Vec<(usize, Guid)>,
    pub(super) rng: Rng,
    pub(super) now_ms: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) net: Net,
    pub(super) units: Vec<UnitModel>,
    pub(super) bulks: BTreeMap<TransferId, Bulk>,
    /// Sides of transfers that have ended, by the life they ended in.
    pub(super) ended: BTreeSet<(u64, TransferId)>,
    pub(super) moves: BTreeMap<UnitId, Move>,
    pub(super) memory: Memory,
    /// What was broken first.
    pub violation: Option<Violation>,
    /// What the run hit.
    pub coverage: Coverage,
    /// What happened.
    pub lines: Trace,
    /// Faults are over.
    pub(super) healing: bool,
    /// Workloads have nothing to do.
    pub(super) clients_rest: bool,
    over: bool,
    pub(super) stamps: u64,
    pub(super) lives: u64,
    pub(super) requests: u64,
}

impl World {
    /// A world at its first moment.
    pub fn new(scenario: Scenario, lines: Trace) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let hosts = (0..scenario.nodes).map(|index| {
            let skew = scenario.skew_ms as i64;
            let skew_ms = rng.range(0, 2 * skew as u64) as i64 - skew;
            let drift = scenario.drift_ppm;
            let drift_ppm = rng.range(0, 2 * drift) as i64 - drift as i64;
            Host::new(index, rng.bits(), skew_ms, drift_ppm)
        });
        let hosts: Vec<Host> = hosts.collect();
        let mut world = Self {
            net: Net::new(scenario.nodes),
            rng,
            now_ms: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            hosts,
            units: Vec::new(),
            bulks: BTreeMap::new(),
            ended: BTreeSet::new(),
            moves: BTreeMap::new(),
            memory: Memory::default(),
            violation: None,
            coverage: Coverage::default(),
            lines,
            healing: false,
            clients_rest: false,
            over: false,
            stamps: 0,
            lives: 0,
            requests: 0,
            foreign: Vec::new(),
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for unit in 0..self.scenario.units {
            self.make_unit(unit);
        }
        for node in 0..self.hosts.len() {
            self.at(0, Ev::Restart(node));
        }
        self.at(10, Ev::Setup);
        let first_wish = self.scenario.operator_every_ms;
        self.at(first_wish, Ev::Wish);
        if let Some(every) = self.scenario.faults.every_ms {
            self.at(every, Ev::Fault);
        }
        let heal = self.scenario.chaos_ms;
        self.at(heal, Ev::Heal);
        self.at(heal + self.scenario.heal_ms, Ev::LastMove);
        self.at(heal + self.scenario.heal_ms + self.scenario.move_ms, Ev::Healed);
        let rest = self.scenario.policy.rpo_ms() + self.scenario.rest_ms;
        self.at(heal + self.scenario.heal_ms + self.scenario.move_ms + rest, Ev::Rested);
    }

    /// Runs to the end, or to the first violation. Panics of the core pass through.
    pub fn run(&mut self) {
        while self.violation.is_none() && !self.over {
            let Some(Reverse(next)) = self.queue.pop() else {
                return;
            };
            assert!(next.at_ms >= self.now_ms, "time goes on");
            self.now_ms = next.at_ms;
            self.handle(next.event);
            self.check_moment();
            self.coverage.events += 1;
            if self.coverage.events > EVENT_LIMIT {
                self.violate(Rule::Contract, "events without end".into());
            }
        }
    }

    pub(super) fn at(&mut self, at_ms: u64, event: Ev) {
        self.scheduled += 1;
        let number = self.scheduled;
        self.queue.push(Reverse(Scheduled { at_ms, number, event }));
    }

    pub(super) fn after(&mut self, after_ms: u64, event: Ev) {
        self.at(self.now_ms + after_ms, event);
    }

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.lines.is_on() {
            let line = format!("{:>7} {}", self.now_ms, line());
            self.lines.push(&line);
        }
    }

    /// A node's life, if it is still this one.
    pub(super) fn life_mut(&mut self, node: usize, boot: u64) -> Option<&mut Life> {
        self.hosts[node].life.as_mut().filter(|life| life.boot == boot)
    }

    /// A unit's dataset on a node: by its journal, else by what people last knew.
    pub(super) fn dataset_of(&self, node: usize, unit: UnitId) -> Option<&Dataset> {
        let host = &self.hosts[node];
        let name = match host.record(unit) {
            Some(record) => &record.volumes.first()?.dataset,
            None => self.units[self.unit_index(unit)?].datasets[node].as_ref()?,
        };
        host.store.datasets.get(name)
    }

    fn handle(&mut self, event: Ev) {
        if let Some(until) = self.waits_until(&event) {
            return self.at(until, event);
        }
        match event {
            Ev::Timer { node, boot, at } => self.on_timer(node, boot, at),
            Ev::Deliver { from, to, message } => self.on_deliver(from, to, *message),
            Ev::Connect { a, b } => self.on_connect(a, b),
            Ev::ViewUp { node, peer, number } => self.on_view_up(node, peer, number),
            Ev::ViewDown { node, peer, number } => self.on_view_down(node, peer, number),
            Ev::OpApply { node, boot, op } => self.on_op_apply(node, boot, op),
            Ev::OpDone { node, boot, op } => self.on_op_done(node, boot, op),
            Ev::BulkArrive { transfer } => self.on_bulk_arrive(transfer),
            Ev::BulkBreak { transfer } => self.on_bulk_break(transfer),
            Ev::BulkWhole { transfer } => self.on_bulk_whole(transfer),
            Ev::BulkCommit { transfer } => self.on_bulk_commit(transfer),
            Ev::SideEnds { node, boot, transfer, outcome } => {
                self.on_side_ends(node, boot, transfer, *outcome);
            }
            Ev::ReceiveTimeout { node, boot, transfer } => {
                self.on_receive_timeout(node, boot, transfer);
            }
            Ev::Write { node, unit, life } => self.on_write(node, unit, life),
            Ev::LeaseEnds { node, unit } => self.on_lease_ends(node, unit),
            Ev::Exited { node, boot, exited } => {
                if self.life_mut(node, boot).is_some() {
                    self.input(node, *exited);
                }
            }
            Ev::Want { unit, failover } => self.on_want(unit, failover),
            Ev::Repaired(node) => self.on_repaired(node),
            Ev::Restart(node) => self.on_restart(node),
            Ev::Reopen(a, b) => self.unblock(a, b),
            Ev::DiskFreed(node) => self.hosts[node].store.full = false,
            Ev::StrangerLeaves(node, name) => self.stranger_leaves(node, &name),
            Ev::Fault => self.on_fault(),
            Ev::Strike(fault) => self.strike(fault),
            Ev::Setup => self.on_setup(),
            Ev::Wish => self.on_wish(),
            Ev::Heal => self.on_heal(),
            Ev::LastMove => self.on_last_move(),
            Ev::Healed => {
                self.check_healed();
                self.clients_rest = true;
            }
            Ev::Rested => {
                self.check_rested();
                self.finish();
            }
        }
    }

    fn stranger_leaves(&mut self, node: usize, name: &DatasetName) {
        if let Some(dataset) = self.hosts[node].store.datasets.get_mut(name) {
            dataset.foreign_holder = false;
        }
    }

    /// Faults end: everything is up and connected from now on.
    fn on_heal(&mut self) {
        self.trace(|| "HEAL".into());
        self.healing = true;
        for node in 0..self.hosts.len() {
            let names: Vec<_> = self.hosts[node].store.datasets.keys().cloned().collect();
            self.hosts[node].store.full = false;
            self.hosts[node].fenced = false;
            for name in names {
                self.stranger_leaves(node, &name);
            }
            self.at(self.now_ms, Ev::Restart(node));
            for peer in node + 1..self.hosts.len() {
                self.unblock(node, peer);
            }
        }
    }

    /// One more move, which must succeed now.
    fn on_last_move(&mut self) {
        for unit in 0..self.units.len() {
            if let Some(owner) = self.owner_of(unit).filter(|_| !self.units[unit].tainted) {
                let target = (owner + 1) % self.hosts.len();
                self.units[unit].last_move = Some((target, None));
                self.migrate_to(owner, unit, target);
            }
        }
    }

    fn finish(&mut self) {
        self.over = true;
        for unit in &self.units {
            self.coverage.acknowledged += unit.acked;
            self.coverage.tainted += u64::from(unit.tainted);
        }
    }
}
