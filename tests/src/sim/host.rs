//! A node as the simulator sees it: what survives a crash, what does not, and how it starts.
//!
//! Owns: the durable journal, the store, the workloads, and one life of the daemon with its core.
//! Leaves to others: performing effects (`perform`), connections (`net`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flocker_core::ids::{
    Fingerprint, Incarnation, Now, OpId, RequestId, TransferId, UnitId, VolumeId,
};
use flocker_core::node::NodeConfig;
use flocker_core::record::{JournalChange, PeerRecord, UnitRecord, WorkloadRecord};
use flocker_core::{Action, Boot, Failure, Node, Outcome, StoreFacts};
use flocker_store::{DatasetKind, DatasetName, ReceiveSpec};

use super::scenario::Scenario;
use super::store::Store;

/// The journal: what a crash leaves.
#[derive(Debug, Clone)]
pub struct Durable {
    /// This life of the journal.
    pub incarnation: Incarnation,
    /// Units.
    pub units: BTreeMap<UnitId, UnitRecord>,
    /// Peers.
    pub peers: BTreeMap<Fingerprint, PeerRecord>,
}

impl Durable {
    /// One transaction.
    pub fn apply(&mut self, changes: Vec<JournalChange>) {
        for change in changes {
            match change {
                JournalChange::PutUnit(record) => {
                    self.units.insert(record.id, *record);
                }
                JournalChange::DeleteUnit(unit) => {
                    self.units.remove(&unit);
                }
                JournalChange::PutPeer(peer) => {
                    self.peers.insert(peer.fingerprint, peer);
                }
                JournalChange::DeletePeer(fingerprint) => {
                    self.peers.remove(&fingerprint);
                }
            }
        }
    }
}

/// A workload: a process of its own, which may outlive its daemon.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Names this process among all that ever ran.
    pub life: u64,
    /// How it was started.
    pub record: WorkloadRecord,
    /// What it writes: one dataset for each volume.
    pub datasets: Vec<DatasetName>,
    /// The daemon's life that knows of it.
    pub known_to: u64,
    /// It does not get a processor.
    pub frozen: bool,
}

/// An action under way.
#[derive(Debug)]
pub struct OpState {
    /// For which unit.
    pub unit: UnitId,
    /// What.
    pub action: Action,
    /// What is to go wrong, if anything.
    pub mishap: Option<Mishap>,
    /// It has begun: it does not wait for another one.
    pub begun: bool,
    /// The unit's standbys when it was asked for.
    pub standbys: Vec<Fingerprint>,
    /// How it ended, once it did.
    pub outcome: Option<Result<Outcome, Failure>>,
}

/// How an action goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing was done.
    Undone,
    /// It was done, and is reported as failed all the same.
    DoneYetReported,
}

/// A transfer this node has agreed to receive.
#[derive(Debug, Clone)]
pub struct Expected {
    /// From whom.
    pub peer: Fingerprint,
    /// For which unit.
    pub unit: UnitId,
    /// What.
    pub spec: ReceiveSpec,
    /// Most bytes it may bring.
    pub limit_bytes: Option<u64>,
    /// Bytes are coming in.
    pub streaming: bool,
}

/// A person's question that is not answered yet.
#[derive(Debug, Clone)]
pub struct Asked {
    /// When, milliseconds.
    pub at_ms: u64,
    /// In a word.
    pub what: &'static str,
    /// About which unit of the model.
    pub unit: usize,
}

/// One life of the daemon. All of it is lost at a crash.
#[derive(Debug)]
pub struct Life {
    /// The very core that `serve` runs.
    pub node: Node,
    /// Names this life.
    pub boot: u64,
    /// Actions under way.
    pub ops: BTreeMap<OpId, OpState>,
    /// The newest action handed out, to see that no number is used twice.
    pub last_op: Option<OpId>,
    /// Actions of a unit that wait for each other, the one under way first.
    pub lanes: BTreeMap<UnitId, VecDeque<OpId>>,
    /// Transfers to be received.
    pub expected: BTreeMap<TransferId, Expected>,
    /// Transfers ever begun in this life.
    pub begun: BTreeSet<TransferId>,
    /// Questions of people.
    pub asked: BTreeMap<RequestId, Asked>,
    /// Peers that said anything about a unit in this life.
    pub heard: BTreeSet<(UnitId, Fingerprint)>,
    /// Units for which it is known in this life whether their workload runs.
    pub probed: BTreeSet<UnitId>,
    /// Units that the start-up rule lets be written in this life.
    pub satisfied: BTreeSet<UnitId>,
    /// When the next tick is due, world milliseconds.
    pub timer_at: Option<u64>,
    /// Ticks within one millisecond.
    pub spins: (u64, u32),
}

/// A node.
#[derive(Debug)]
pub struct Host {
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// What it is called.
    pub name: String,
    /// Its journal.
    pub durable: Durable,
    /// Its store.
    pub store: Store,
    /// Processes.
    pub workloads: BTreeMap<UnitId, Workload>,
    /// Until when its supervisors let workloads run, world milliseconds.
    pub leases: BTreeMap<UnitId, Option<u64>>,
    /// The daemon, while it lives.
    pub life: Option<Life>,
    /// How many lives there were.
    pub lives: u64,
    /// Its clock since its start, less the world's.
    pub mono_base_ms: u64,
    /// Its wall clock, less the world's.
    pub skew_ms: i64,
    /// How much faster its monotonic clock runs than the world's, parts of a million.
    pub drift_ppm: i64,
    /// The daemon gets no processor until then, world milliseconds.
    pub stopped_until: u64,
    /// Nor does anything else on this host.
    pub frozen_until: u64,
    /// A fencing hook turned it off; it stays so until somebody repairs it.
    pub fenced: bool,
    /// Units whose address is here.
    pub addresses: BTreeSet<UnitId>,
}

/// Who a node is in the model.
pub fn fingerprint_of(index: usize) -> Fingerprint {
    Fingerprint([index as u8 + 1; 32])
}

/// Which node that is; `None` for a stranger.
pub fn index_of(fingerprint: Fingerprint) -> Option<usize> {
    (fingerprint.0[0] as usize).checked_sub(1)
}

/// The dataset with this path, which the model knows to be a name.
pub fn dataset_name(text: &str) -> DatasetName {
    match DatasetName::new(text) {
        Ok(name) => name,
        Err(error) => unreachable!("the simulator made the name {text}: {error}"),
    }
}

impl Host {
    /// A node with an empty store and journal.
    pub fn new(index: usize, incarnation: u64, skew_ms: i64, drift_ppm: i64) -> Self {
        Self {
            fingerprint: fingerprint_of(index),
            name: format!("n{index}"),
            durable: Durable {
                incarnation: Incarnation(incarnation),
                units: BTreeMap::new(),
                peers: BTreeMap::new(),
            },
            store: Store::new((index as u64 + 1) << 40),
            workloads: BTreeMap::new(),
            leases: BTreeMap::new(),
            life: None,
            lives: 0,
            mono_base_ms: 0,
            skew_ms,
            drift_ppm,
            stopped_until: 0,
            frozen_until: 0,
            fenced: false,
            addresses: BTreeSet::new(),
        }
    }

    /// What its clocks say.
    pub fn now(&self, world_ms: u64) -> Now {
        // 2026-01-01, so that wall clocks look like wall clocks.
        const START_UNIX_MS: i64 = 1_767_225_600_000;
        Now {
            mono_ms: self.mono_base_ms + self.ran_ms(world_ms),
            wall_ms: START_UNIX_MS + world_ms as i64 + self.skew_ms,
        }
    }

    fn ran_ms(&self, world_ms: u64) -> u64 {
        let drift = i128::from(world_ms) * i128::from(self.drift_ppm) / 1_000_000;
        (i128::from(world_ms) + drift) as u64
    }

    /// The first world moment at which its monotonic clock says at least this.
    pub fn world_at(&self, mono_ms: u64) -> u64 {
        let ran = mono_ms.saturating_sub(self.mono_base_ms);
        let mut at = (u128::from(ran) * 1_000_000 / (1_000_000 + self.drift_ppm) as u128) as u64;
        at = at.saturating_sub(1);
        while self.ran_ms(at) < ran {
            at += 1;
        }
        at
    }

    /// What `serve` finds at its start.
    fn boot_facts(&self) -> Boot {
        let units: Vec<_> = self
            .durable
            .units
            .values()
            .map(|record| {
                let mirrors = record.volumes.iter().map(|v| self.store.claim(&v.dataset)).collect();
                (record.clone(), mirrors)
            })
            .collect();
        let orphans = self
            .store
            .datasets
            .keys()
            .filter_map(|name| Some((name.clone(), self.store.claim(name)?)))
            .filter(|(_, claim)| !self.durable.units.contains_key(&claim.unit))
            .collect();
        Boot { units, peers: self.durable.peers.values().cloned().collect(), orphans }
    }

    /// Starts the daemon: a new life from what is durable.
    pub fn start(&mut self, world_ms: u64, boot: u64, scenario: &Scenario) {
        assert!(self.life.is_none(), "a daemon is started once");
        self.lives += 1;
        let store = facts(&self.name, scenario);
        let config = NodeConfig::new(self.fingerprint, self.durable.incarnation, boot, store)
            .with_planted(scenario.planted);
        let node = Node::new(config, self.boot_facts(), self.now(world_ms));
        self.life = Some(Life {
            node,
            boot,
            ops: BTreeMap::new(),
            last_op: None,
            lanes: BTreeMap::new(),
            expected: BTreeMap::new(),
            begun: BTreeSet::new(),
            asked: BTreeMap::new(),
            heard: BTreeSet::new(),
            probed: BTreeSet::new(),
            satisfied: BTreeSet::new(),
            timer_at: None,
            spins: (0, 0),
        });
    }

    /// The record of a unit by the journal.
    pub fn record(&self, unit: UnitId) -> Option<&UnitRecord> {
        self.durable.units.get(&unit)
    }

    /// The dataset of a volume by its claim, where the journal does not know it (any more).
    pub fn claimed(&self, volume: VolumeId) -> Option<&DatasetName> {
        self.store
            .datasets
            .iter()
            .find(|(_, d)| d.mirror.as_ref().is_some_and(|m| m.volume == volume))
            .map(|(name, _)| name)
    }
}

fn facts(name: &str, scenario: &Scenario) -> StoreFacts {
    StoreFacts {
        describe: format!("model:{name}"),
        root: dataset_name(name),
        live_kinds: vec![scenario.kind],
        replica_kinds: vec![scenario.kind],
        modern_streams: Some(true),
        receives_modern: true,
        freeze_for_snapshot: scenario.kind == DatasetKind::Directory,
        compressed_send: false,
        large_block_send: false,
        raw: false,
        resumable: scenario.resumable,
        holds: scenario.holds,
        bookmarks: scenario.pin_limit_ms.is_some(),
        pin_limit_ms: scenario.pin_limit_ms.unwrap_or(u64::MAX / 4),
        clones: true,
        atomic_group_snapshot: true,
        fencing_hook: scenario.fencing_hook,
    }
}
