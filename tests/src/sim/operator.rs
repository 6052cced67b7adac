//! People: they pair, protect, configure, migrate, pause, stop, and ask again.

use std::collections::BTreeSet;

use flocker_core::ids::{RequestId, UnitId, VolumeId};
use flocker_core::record::{
    AddressRecord, ContainerRuntime, Grant, PeerRecord, Program, Role, UnitRecord, WorkloadKind,
    WorkloadRecord,
};
use flocker_core::tree::Tree;
use flocker_core::{Command, Failure, Input, Reply};
use flocker_store::DatasetName;

use super::check::Rule;
use super::content::Content;
use super::faults::BY_HAND;
use super::host::{Asked, dataset_name, fingerprint_of};
use super::scenario::Found;
use super::store::Snap;
use super::takeover::Loss;
use super::world::{Ev, World};

/// How often people look whether something is still to be set up, milliseconds.
const SETUP_EVERY_MS: u64 = 400;

/// A unit as people and clients know it.
#[derive(Debug, Clone)]
pub struct UnitModel {
    /// Its id, once it is protected.
    pub id: UnitId,
    /// Its volume's id.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Its dataset at the node where it began.
    pub dataset: DatasetName,
    /// Those of its other volumes.
    pub others: Vec<DatasetName>,
    /// Where it lives, by node, as journals last said.
    pub datasets: Vec<Option<DatasetName>>,
    /// Some journal has it.
    pub protected: bool,
    /// The protection was answered, or a standby has heard of it.
    pub established: bool,
    /// Newest record acknowledged to the client; the client sends the next one after it.
    pub acked: u64,
    /// When each record was first written, milliseconds; the first record is at 0.
    pub written_at: Vec<u64>,
    /// A journal that knew it was lost: from then on only safety is asked for.
    pub tainted: bool,
    /// A person took the risk of `start_alone`.
    pub told_alone: bool,
    /// The operator said that the primary was down, and it was.
    pub word_given: bool,
    /// The operator said that it was down, and it was not: both may write until they meet.
    pub two_lines: bool,
    /// For how many looks in a row two nodes have waited for somebody to choose.
    pub undecided: u32,
    /// A fencing hook turned its primary off.
    pub hook_worked: bool,
    /// When the first record was written that the last failover lost, milliseconds.
    pub lost_since: Option<u64>,
    /// Nodes that a failover left behind, and that were not fenced since.
    pub left_behind: BTreeSet<usize>,
    /// What failovers left behind.
    pub losses: Vec<Loss>,
    /// The migration asked for after healing: its target, and the answer.
    pub last_move: Option<(usize, Option<Result<(), Failure>>)>,
}

impl World {
    /// One unit's dataset at node 0, with data, before anybody knows of it.
    pub(super) fn make_unit(&mut self, index: usize) {
        let dataset = dataset_name(&format!("n0/db{index}"));
        self.stamps += 1;
        let live = Content::preloaded(self.stamps, self.scenario.preload_bytes);
        let kind = self.scenario.kind;
        self.hosts[0].store.create(dataset.clone(), kind, live);
        if index > 0 && self.scenario.clone && self.scenario.found == Found::Nothing {
            self.make_clone(&dataset);
        }
        let mut others: Vec<DatasetName> = Vec::new();
        for volume in 1..self.scenario.volumes {
            let name = match (self.scenario.tree, others.last()) {
                (false, _) => dataset_name(&format!("n0/db{index}-{volume}")),
                (true, None) => dataset_name(&format!("{dataset}/v{volume}")),
                (true, Some(above)) => dataset_name(&format!("{above}/v{volume}")),
            };
            self.stamps += 1;
            let live = Content::preloaded(self.stamps, 1_000);
            self.hosts[0].store.create(name.clone(), kind, live);
            others.push(name);
        }
        let mut datasets = vec![None; self.hosts.len()];
        datasets[0] = Some(dataset.clone());
        self.units.push(UnitModel {
            id: UnitId(0),
            volume: VolumeId(0),
            name: format!("db{index}"),
            dataset,
            others,
            datasets,
            protected: false,
            established: false,
            acked: 0,
            written_at: Vec::new(),
            tainted: false,
            told_alone: false,
            undecided: 0,
            word_given: false,
            two_lines: false,
            hook_worked: false,
            lost_since: None,
            left_behind: BTreeSet::new(),
            losses: Vec::new(),
            last_move: None,
        });
        self.make_found(index);
    }

    /// The model's unit with this id.
    pub(super) fn unit_index(&self, unit: UnitId) -> Option<usize> {
        self.units.iter().position(|u| u.protected && u.id == unit)
    }

    /// A journal has a unit: people learn its id, and where it lives on that node.
    pub(super) fn learn_unit(&mut self, node: usize, record: &UnitRecord) {
        let Some(model) = self.units.iter_mut().find(|u| u.name == record.name) else {
            return;
        };
        if node == 0 && !model.protected {
            model.protected = true;
            model.id = record.id;
            model.volume = record.volumes[0].id;
        }
        if model.id == record.id {
            model.datasets[node] = record.volumes.first().map(|v| v.dataset.clone());
        }
    }

    /// A protection that was taken back, since its standby did not answer, is asked for anew.
    pub(super) fn forget_unprotected(&mut self) {
        for unit in 0..self.units.len() {
            let id = self.units[unit].id;
            let gone = self.hosts.iter().all(|h| h.record(id).is_none_or(|r| r.role.is_standby()));
            let model = &mut self.units[unit];
            if gone && model.protected && !model.tainted && !model.established {
                model.protected = false;
            }
        }
    }

    /// Asks a node something, if its daemon lives.
    pub(super) fn ask(&mut self, node: usize, unit: usize, what: &'static str, command: Command) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let at_ms = self.now_ms;
        if self.hosts[node].stopped_until > at_ms {
            return; // Nobody answers; the person comes back later.
        }
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        life.asked.insert(request, Asked { at_ms, what, unit });
        self.input(node, Input::Command { request, command });
    }

    pub(super) fn replied(
        &mut self,
        node: usize,
        request: RequestId,
        reply: &Result<Reply, Failure>,
    ) {
        let asked = self.hosts[node].life.as_mut().and_then(|l| l.asked.remove(&request));
        let Some(asked) = asked else {
            let text = format!("n{node} answers {request:?}, which is not open");
            return self.violate(Rule::Contract, text);
        };
        if asked.what == "protect" && reply.is_ok() {
            self.units[asked.unit].established = true;
        }
        if asked.what != "migrate" {
            return;
        }
        let unit = self.units[asked.unit].id;
        if self.moves.get(&unit).is_some_and(|m| m.source == node) {
            self.moves.remove(&unit);
        }
        match reply {
            Ok(Reply::Migrated(report)) => {
                self.coverage.migrations.moved += 1;
                let taken = (0..self.hosts.len()).any(|n| {
                    self.hosts[n].record(unit).is_some_and(|r| r.taken.contains(&report.attempt))
                });
                if !taken && !self.units[asked.unit].tainted {
                    let text =
                        format!("n{node} reports {} as moved; nobody took it", report.attempt);
                    self.violate(Rule::Answers, text);
                }
            }
            Ok(_) | Err(_) => self.coverage.migrations.refused += 1,
        }
        if self.healing
            && let Some((_, answer)) = &mut self.units[asked.unit].last_move
        {
            *answer = Some(reply.as_ref().map(|_| ()).map_err(Clone::clone));
        }
    }

    // ---- setting up, and setting up again -----------------------------------------------------

    /// Brings about what should be configured; people do this until it stays so.
    pub(super) fn on_setup(&mut self) {
        self.after(SETUP_EVERY_MS, Ev::Setup);
        for node in 0..self.hosts.len() {
            for peer in 0..self.hosts.len() {
                let known = self.hosts[node].durable.peers.contains_key(&fingerprint_of(peer));
                if node != peer && !known && !self.is_open(node, "pair") {
                    let command = Command::AddPeer(self.peer_record(node, peer));
                    self.ask(node, 0, "pair", command);
                }
            }
        }
        for unit in 0..self.units.len() {
            if self.units[unit].tainted {
                continue;
            }
            if self.units[unit].protected {
                self.add_standbys(unit);
                self.configure_workload(unit);
                self.resolve_what_went_apart(unit);
            } else if (1..self.hosts.len()).all(|peer| self.net.believes(0, peer)) {
                self.clear_leftovers(unit);
                self.protect(unit, 1);
            }
        }
    }

    pub(super) fn is_open(&self, node: usize, what: &str) -> bool {
        let life = self.hosts[node].life.as_ref();
        life.is_none_or(|l| l.asked.values().any(|a| a.what == what))
    }

    fn peer_record(&self, node: usize, peer: usize) -> PeerRecord {
        PeerRecord {
            fingerprint: fingerprint_of(peer),
            name: format!("n{peer}"),
            addresses: vec![format!("10.0.0.{peer}:7001")],
            grant: Some(Grant {
                receive: dataset_name(&format!("n{node}/recv")),
                quota_bytes: None,
                workloads: BTreeSet::from([WorkloadKind::Process, WorkloadKind::Podman]),
            }),
        }
    }

    /// A standby that heard of a protection which was taken back keeps its part of it until a
    /// person takes it away.
    fn clear_leftovers(&mut self, unit: usize) {
        let name = self.units[unit].name.clone();
        for node in 1..self.hosts.len() {
            let dataset = dataset_name(&format!("n{node}/recv/{name}"));
            let known = self.hosts[node].durable.units.values().any(|r| r.name == name);
            if known && !self.is_open(node, "unprotect") {
                self.ask(
                    node,
                    unit,
                    "unprotect",
                    Command::Unprotect { name: name.clone(), store_is_gone: false },
                );
            } else if !known && self.bulks.is_empty() && self.scenario.found == Found::Nothing {
                self.hosts[node].store.datasets.retain(|name, _| !name.is_within(&dataset));
            }
        }
    }

    fn protect(&mut self, unit: usize, peer: usize) {
        if self.is_open(0, "protect") {
            return;
        }
        let id = UnitId(u128::from(self.rng.bits()) << 64 | u128::from(self.rng.bits()));
        let volume = VolumeId(u128::from(self.rng.bits()) << 64 | u128::from(self.rng.bits()));
        let mut volumes = vec![(volume, self.units[unit].dataset.clone())];
        for dataset in self.units[unit].others.clone() {
            volumes.push((VolumeId(u128::from(self.rng.bits())), dataset));
        }
        let model = &self.units[unit];
        let command = Command::Protect {
            tree: self.scenario.tree.then(Tree::default),
            unit: id,
            volumes,
            to: format!("n{peer}"),
            name: Some(model.name.clone()),
            policy: self.scenario.policy,
            lease_ms: self.scenario.lease_ms,
            adoption: self.adoption(),
            one_way: false,
        };
        self.ask(0, unit, "protect", command);
    }

    /// The primary gets every other node as a standby, one by one.
    fn add_standbys(&mut self, unit: usize) {
        let Some(owner) = self.owner_of(unit) else { return };
        let Some(record) = self.hosts[owner].record(self.units[unit].id).cloned() else { return };
        let missing = (0..self.hosts.len())
            .find(|n| *n != owner && !record.standbys.contains(&fingerprint_of(*n)));
        let Some(peer) = missing else { return };
        if record.role != Role::Serving || self.is_open(owner, "protect") {
            return;
        }
        let command = Command::Protect {
            tree: None,
            unit: record.id,
            volumes: record.volumes.iter().map(|v| (v.id, v.dataset.clone())).collect(),
            to: format!("n{peer}"),
            name: Some(record.name.clone()),
            policy: self.scenario.policy,
            lease_ms: self.scenario.lease_ms,
            adoption: None,
            one_way: false,
        };
        self.ask(owner, unit, "protect", command);
    }

    /// A standby that somebody changed by hand is let follow again.
    fn resolve_what_went_apart(&mut self, unit: usize) {
        let one_side_only = self.scenario.pin_limit_ms.is_some();
        if !self.scenario.by_hand && self.scenario.found != Found::Apart && !one_side_only {
            return;
        }
        let id = self.units[unit].id;
        for node in 0..self.hosts.len() {
            let Some(record) = self.hosts[node].record(id) else { continue };
            let follows = matches!(record.role, Role::Following { .. });
            let apart = record.volumes.iter().any(|v| {
                let dataset = self.hosts[node].store.datasets.get(&v.dataset);
                dataset.is_some_and(|d| match d.snapshots.last() {
                    Some(newest) => newest.content.stamp() != d.live.stamp(),
                    None => false,
                } || d.snapshots.last().is_some_and(|s| s.short.starts_with(BY_HAND)))
            });
            let apart = apart || one_side_only && record.was_primary && !self.shares(node, unit);
            let soon = self.healing || self.rng.one_in(8);
            if follows && apart && soon && !self.is_open(node, "resolve") {
                let dry_run = !self.healing && self.rng.one_in(4);
                let name = self.units[unit].name.clone();
                self.coverage.fault("resolve asked");
                self.ask(node, unit, "resolve", Command::Resolve { name, dry_run });
            }
        }
    }

    /// An old primary still has a snapshot that a step could start from. Its bookmarks are of no use to it now.
    fn shares(&self, node: usize, unit: usize) -> bool {
        let id = self.units[unit].id;
        let Some(mine) = self.dataset_of(node, id) else { return true };
        (0..self.hosts.len()).filter(|n| *n != node).filter_map(|n| self.dataset_of(n, id)).any(
            |d| {
                let known = |s: &Snap| {
                    d.snapshot(s.guid).is_some() || d.bookmarks.values().any(|b| b.guid == s.guid)
                };
                mine.snapshots.iter().any(known)
            },
        )
    }

    /// Two that were told to serve, neither knowing of the other, wait for somebody to choose.
    fn choose(&mut self, unit: usize) {
        let id = self.units[unit].id;
        let decided: Vec<usize> = (0..self.hosts.len())
            .filter(|n| {
                self.hosts[*n]
                    .record(id)
                    .is_some_and(|r| r.role.is_primary() && r.decided_epoch == Some(r.epoch.number))
            })
            .collect();
        let runs = self.hosts.iter().any(|h| h.workloads.contains_key(&id));
        let known = &mut self.units[unit];
        known.undecided = if runs || decided.len() < 2 { 0 } else { known.undecided + 1 };
        // It has been so for a while: nothing is on its way any more.
        if let [first, _, ..] = decided[..]
            && known.undecided > 25
            && !self.is_open(first, "start alone")
        {
            self.units[unit].told_alone = true;
            // Clients go on from what that one has.
            let others: Vec<usize> = (0..self.hosts.len()).filter(|n| *n != first).collect();
            if let Some(record) = self.hosts[first].record(id).cloned() {
                self.count_losses(first, &others, &record);
            }
            let name = self.units[unit].name.clone();
            self.ask(first, unit, "start alone", Command::StartAlone { name });
        }
    }

    fn configure_workload(&mut self, unit: usize) {
        if self.healing {
            self.choose(unit);
        }
        for node in 0..self.hosts.len() {
            let Some(record) = self.hosts[node].record(self.units[unit].id) else {
                continue;
            };
            // During chaos a stopped workload is left so for a while: `wish` starts it again.
            let paused = self.healing && record.paused;
            let missing = match &record.workload {
                None => true,
                Some(workload) => self.healing && !workload.wanted,
            };
            if missing && !self.is_open(node, "run") {
                self.run_workload(node, unit);
            }
            if paused && !self.is_open(node, "resume") {
                let name = self.units[unit].name.clone();
                self.ask(node, unit, "resume", Command::Resume { name });
            }
        }
    }

    fn run_workload(&mut self, node: usize, unit: usize) {
        let address = AddressRecord {
            address: std::net::Ipv4Addr::new(10, 9, 0, unit as u8 + 1).into(),
            prefix: 24,
            device: "eth0".into(),
        };
        let addresses = if self.scenario.address { vec![address] } else { Vec::new() };
        let program = match self.scenario.containers && self.scenario.lease_ms.is_none() {
            true => Program::Containers {
                runtime: ContainerRuntime::Podman,
                names: vec!["append-records".into()],
            },
            false => Program::Process(vec!["append-records".into()]),
        };
        let workload = WorkloadRecord {
            program,
            stop_limit_ms: 5_000,
            die_with_daemon: self.scenario.die_with_daemon,
            addresses,
            ..WorkloadRecord::process(Vec::new())
        };
        let name = self.units[unit].name.clone();
        self.ask(node, unit, "run", Command::SetWorkload { name, workload });
    }

    // ---- wishes -------------------------------------------------------------------------------

    /// The node that the journals call primary, if exactly one does.
    pub(super) fn owner_of(&self, unit: usize) -> Option<usize> {
        let id = self.units[unit].id;
        let mut owners = (0..self.hosts.len())
            .filter(|n| self.hosts[*n].record(id).is_some_and(|r| r.role.is_primary()));
        let owner = owners.next()?;
        owners.next().is_none().then_some(owner)
    }

    pub(super) fn on_wish(&mut self) {
        let every = self.scenario.operator_every_ms;
        let after = self.rng.range(1, every * 2);
        self.after(after, Ev::Wish);
        if self.healing {
            return;
        }
        let unit = self.rng.below(self.units.len());
        if !self.units[unit].protected {
            return;
        }
        let name = self.units[unit].name.clone();
        let anyone = self.rng.below(self.hosts.len());
        let node = self.owner_of(unit).unwrap_or(anyone);
        match self.rng.range(0, 19) {
            0 => self.ask(node, unit, "pause", Command::Pause { name }),
            1 | 2 => self.ask(node, unit, "resume", Command::Resume { name }),
            3 => self.ask(node, unit, "stop", Command::StopWorkload { name }),
            4 => self.run_workload(node, unit),
            5 => self.migrate(anyone, unit),
            13..=15 if self.scenario.tree => self.wish_child(node, unit),
            7 | 8 => self.wish_cancel(node, unit),
            9 | 10 => self.wish_failover(unit),
            11 => self.wish_drill(unit),
            12 if self.scenario.by_hand => {
                let dry_run = self.rng.one_in(2);
                self.ask(anyone, unit, "resolve", Command::Resolve { name, dry_run });
            }
            // Who takes that risk makes sure that it runs nowhere else.
            6 if self.others_are_down(anyone, self.units[unit].id) => {
                self.units[unit].told_alone = true;
                self.ask(anyone, unit, "start alone", Command::StartAlone { name });
            }
            _ => self.migrate(node, unit),
        }
    }

    /// Asks for a move to another node than the one that is asked.
    pub(super) fn migrate(&mut self, node: usize, unit: usize) {
        let others = self.hosts.len() - 1;
        let target = (node + 1 + self.rng.below(others)) % self.hosts.len();
        self.migrate_to(node, unit, target);
    }

    pub(super) fn migrate_to(&mut self, node: usize, unit: usize, target: usize) {
        if self.hosts[node].life.is_none() {
            return;
        }
        self.coverage.migrations.asked += 1;
        let name = self.units[unit].name.clone();
        let to = format!("n{target}");
        let dry_run = !self.healing && self.rng.one_in(12);
        let tight = !self.healing && self.rng.one_in(12);
        let budget_ms = tight.then(|| self.rng.log_range(1, 20_000));
        self.ask(
            node,
            unit,
            "migrate",
            Command::Migrate { name, to, budget_ms, dry_run, accept: Default::default() },
        );
    }
}
