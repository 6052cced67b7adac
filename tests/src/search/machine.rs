//! One node of the search: the very core, its journal, its store, its workload, and one macro-step.
//!
//! A macro-step gives the core one input, performs every effect in order, answers every action at once
//! from the model of the store, and fires whatever is due at once by the frozen clock. It can be cut
//! short: by a crash behind any effect that leaves a trace outside the core, or by an action that does not
//! end (what comes after it on the node's lane waits for it; messages are handled meanwhile).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flocker_core::failure::Remedy;
use flocker_core::ids::{
    AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, RequestId, TransferId, UnitId, VolumeId,
};
use flocker_core::io::{Inspected, MirrorState};
use flocker_core::node::{NodeConfig, PlantedBug};
use flocker_core::record::{
    Answer, Grant, Mirror, PeerRecord, Policy, Role, UnitRecord, VolumeRecord, WorkloadKind,
    WorkloadRecord,
};
use flocker_core::{
    Action, Body, Boot, Command, Effect, Failure, FailureCode, Input, Message, Node, Outcome,
    StoreFacts,
};
use flocker_store::{
    Change, DatasetKind, DatasetName, Guid, ReceiveSpec, Snapshot, SnapshotName, StoreError,
};

use crate::sim::content::Content;
use crate::sim::host::{Durable, dataset_name, fingerprint_of, index_of};
use crate::sim::store::{Dataset, Store, Stream};

/// The one unit.
pub const UNIT: UnitId = UnitId(0x5ea2c4 << 104);
const VOLUME: VolumeId = VolumeId(0x701 << 100);
/// The command that moves it.
pub const MIGRATE: RequestId = RequestId(1);
/// Timers that are due within this time count as due at once: pauses between rounds, not resends.
const AT_ONCE_MS: u64 = 100;
/// Most ticks in one macro-step before that counts as spinning.
const TICK_LIMIT: u32 = 60;
const START_UNIX_MS: i64 = 1_767_225_600_000;

/// What happens to one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Nudge {
    /// A message arrives: its number among all that were ever said.
    Deliver(u32),
    /// The workload writes this record, and the client is told.
    Write(u64),
    /// A person asks.
    Migrate,
    /// A person takes it back.
    Cancel,
    /// A person wants the standby to take over, by their word or without.
    Failover {
        /// `--primary-is-down`
        word: bool,
    },
    /// The daemon dies; with `power` its host too, and the workload with it.
    Crash {
        /// The host as well.
        power: bool,
    },
    /// The daemon starts.
    Restart,
    /// The connection is seen to be gone.
    Down,
    /// The connection is seen to stand.
    Up,
    /// Time goes on by this much, milliseconds.
    Wait(u64),
    /// A stream has arrived whole: its number among all that were ever begun.
    Arrive(u32),
    /// The sending side of a transfer ends.
    SendEnds {
        /// Which.
        transfer: TransferId,
        /// Every byte was taken.
        well: bool,
    },
    /// The action that did not end goes on.
    Release,
}

/// How a macro-step is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// It is not.
    Not,
    /// A crash behind the effect with this number.
    Crash {
        /// Counted from 1, among effects that leave a trace outside the core.
        after: u32,
        /// The host as well.
        power: bool,
    },
    /// The action with this number, counted from 1, does not end before [`Nudge::Release`].
    Hold(u32),
}

/// One node.
#[derive(Debug, Clone)]
pub struct Machine {
    /// 0 or 1.
    pub index: usize,
    /// The core, while the daemon lives.
    pub node: Option<Node>,
    /// The journal.
    pub durable: Durable,
    /// The store.
    pub store: Store,
    /// The workload runs.
    pub works: bool,
    /// The host has no power.
    pub off: bool,
    /// The connection stands, as this node sees it.
    pub up: bool,
    lives: u64,
    /// Its clock.
    pub clock_ms: u64,
    /// Actions that have not begun, behind one that does not end.
    pub held: VecDeque<(OpId, Action)>,
    /// Streams it has agreed to receive.
    pub expected: BTreeMap<TransferId, ReceiveSpec>,
    /// Streams it sends.
    pub sending: BTreeSet<TransferId>,
    /// Questions of people that are not answered.
    pub asked: BTreeSet<RequestId>,
    planted: Option<PlantedBug>,
}

/// What a macro-step did beyond the node.
#[derive(Debug, Clone, Default)]
pub struct Did {
    /// Messages to the other node.
    pub said: Vec<Message>,
    /// Streams begun.
    pub streams: Vec<(TransferId, Stream)>,
    /// At some moment of it the workload could write.
    pub could_write: bool,
    /// What was broken.
    pub broken: Option<String>,
    /// Effects that left a trace outside the core.
    pub traces: u32,
    /// Actions that were begun.
    pub actions: u32,
}

fn failed(code: FailureCode, words: &str) -> Failure {
    Failure::new(Remedy::Retry, code, words.to_owned())
}

fn stored<T>(result: Result<T, StoreError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::from(&error))
}

impl Machine {
    /// A node of the pair before anything was replicated: 0 is primary, 1 its standby.
    pub fn new(index: usize, planted: Option<PlantedBug>) -> Self {
        let (me, peer) = (fingerprint_of(index), fingerprint_of(1 - index));
        let primary = index == 0;
        let dataset = dataset_name(if primary { "n0/db" } else { "n1/in/db" });
        let mut store = Store::new((index as u64 + 1) << 40);
        if primary {
            store.create(dataset.clone(), DatasetKind::Filesystem, Content::preloaded(1000, 100));
        }
        let role = match primary {
            true => Role::Serving,
            false => Role::Following { source: peer },
        };
        let owner = fingerprint_of(0);
        let epoch = Epoch { number: 1, owner, attempt: AttemptId { issuer: owner, number: 0 } };
        let kind = DatasetKind::Filesystem;
        let volume = VolumeRecord {
            id: VOLUME,
            dataset,
            kind,
            modern_streams: true,
            raw: false,
            joining: false,
        };
        let policy = Policy::Every(24 * 3_600_000);
        let mut record = UnitRecord::new(UNIT, "db".into(), vec![volume], policy, epoch, role);
        record.workload = Some(WorkloadRecord::process(vec!["db".into()]));
        record.own = primary;
        record.standbys = if primary { vec![peer] } else { Vec::new() };
        let grant = (!primary).then(|| Grant {
            receive: dataset_name("n1/in"),
            quota_bytes: None,
            workloads: BTreeSet::from([WorkloadKind::Process]),
        });
        let name = ["a", "b"][1 - index].to_owned();
        let known = PeerRecord { fingerprint: peer, name, addresses: Vec::new(), grant };
        let durable = Durable {
            incarnation: Incarnation(me.0[0].into()),
            units: BTreeMap::from([(UNIT, record)]),
            peers: BTreeMap::from([(peer, known)]),
        };
        Self {
            index,
            node: None,
            durable,
            store,
            works: false,
            off: false,
            up: false,
            lives: 0,
            clock_ms: 1_000,
            held: VecDeque::new(),
            expected: BTreeMap::new(),
            sending: BTreeSet::new(),
            asked: BTreeSet::new(),
            planted,
        }
    }

    fn peer(&self) -> Fingerprint {
        fingerprint_of(1 - self.index)
    }

    /// The unit by the journal.
    pub fn record(&self) -> &UnitRecord {
        &self.durable.units[&UNIT]
    }

    /// Its volume.
    pub fn dataset(&self) -> Option<&Dataset> {
        self.store.datasets.get(&self.record().volumes[0].dataset)
    }

    /// The workload runs where it can write.
    pub fn can_write(&self) -> bool {
        self.works && self.dataset().is_some_and(Dataset::can_be_written)
    }

    /// What its clocks say.
    pub fn now(&self) -> Now {
        Now { mono_ms: self.clock_ms, wall_ms: START_UNIX_MS + self.clock_ms as i64 }
    }

    /// Milliseconds until its core wants a tick.
    pub fn due_in_ms(&mut self) -> Option<u64> {
        let due = self.node.as_mut()?.poll_timeout()?;
        Some(due.saturating_sub(self.clock_ms))
    }

    fn start(&mut self) {
        self.lives += 1;
        self.off = false;
        let boot = 100 * (self.index as u64 + 1) + self.lives;
        let name = format!("n{}", self.index);
        let facts = StoreFacts {
            describe: format!("model:{name}"),
            root: dataset_name(&name),
            live_kinds: vec![DatasetKind::Filesystem],
            replica_kinds: vec![DatasetKind::Filesystem],
            modern_streams: Some(true),
            receives_modern: true,
            freeze_for_snapshot: false,
            compressed_send: false,
            large_block_send: false,
            raw: false,
            resumable: false,
            holds: true,
            bookmarks: false,
            pin_limit_ms: u64::MAX / 4,
            clones: false,
            atomic_group_snapshot: true,
            fencing_hook: false,
        };
        let config =
            NodeConfig::new(fingerprint_of(self.index), self.durable.incarnation, boot, facts)
                .with_planted(self.planted);
        let units = self.durable.units.values().map(|record| {
            let mirrors = record.volumes.iter().map(|v| self.store.claim(&v.dataset));
            (record.clone(), mirrors.collect())
        });
        let boot = Boot {
            units: units.collect(),
            peers: self.durable.peers.values().cloned().collect(),
            orphans: BTreeMap::new(),
        };
        self.node = Some(Node::new(config, boot, self.now()));
    }

    fn crash(&mut self, power: bool) {
        self.node = None;
        self.up = false;
        // What was begun ends, or not: it never began here, as the step that began it was cut there.
        self.held.clear();
        self.expected.clear();
        self.sending.clear();
        self.asked.clear();
        if power {
            self.off = true;
            self.works = false;
            self.store.host_crashed();
        }
    }
}

/// A macro-step under way.
pub struct Step<'a> {
    /// The node, changed in place.
    pub machine: Machine,
    /// What it did.
    pub did: Did,
    cut: Cut,
    dead: bool,
    holding: bool,
    messages: &'a [(usize, Message)],
    streams: &'a [(TransferId, Stream)],
    inputs: VecDeque<Input>,
    actions: VecDeque<(OpId, Action)>,
}

impl<'a> Step<'a> {
    /// One macro-step of this node.
    pub fn run(
        machine: Machine,
        nudge: &Nudge,
        cut: Cut,
        messages: &'a [(usize, Message)],
        streams: &'a [(TransferId, Stream)],
    ) -> (Machine, Did) {
        let holding = !machine.held.is_empty();
        let mut step = Step {
            machine,
            did: Did::default(),
            cut,
            dead: false,
            holding,
            messages,
            streams,
            inputs: VecDeque::new(),
            actions: VecDeque::new(),
        };
        step.did.could_write = step.machine.can_write();
        step.begin(nudge);
        step.settle();
        (step.machine, step.did)
    }

    fn begin(&mut self, nudge: &Nudge) {
        let m = &mut self.machine;
        let peer = m.peer();
        match nudge {
            Nudge::Deliver(number) => {
                let message = self.messages[*number as usize].1.clone();
                self.inputs.push_back(Input::Message { peer, message });
            }
            Nudge::Write(record) => {
                let dataset = m.record().volumes[0].dataset.clone();
                if let Some(dataset) = m.store.datasets.get_mut(&dataset) {
                    dataset.live.append(*record, *record, 10);
                }
            }
            Nudge::Migrate => {
                let command = Command::Migrate {
                    name: "db".into(),
                    to: "b".into(),
                    budget_ms: None,
                    dry_run: false,
                    accept: Default::default(),
                };
                self.ask(MIGRATE, command);
            }
            Nudge::Cancel => {
                self.ask(RequestId(2), Command::CancelMigration { name: "db".into() });
            }
            Nudge::Failover { word } => {
                let command =
                    Command::Failover { name: "db".into(), primary_is_down: *word, dry_run: false };
                self.ask(RequestId(3), command);
            }
            Nudge::Crash { power } => m.crash(*power),
            Nudge::Restart => {
                m.start();
            }
            Nudge::Down => {
                let lost = failed(FailureCode::ConnectionLost, "the connection was lost");
                let open: Vec<_> = m.expected.keys().chain(&m.sending).copied().collect();
                m.expected.clear();
                m.sending.clear();
                m.up = false;
                self.inputs.extend(open.into_iter().map(|t| ended(t, Err(lost.clone()))));
                self.inputs.push_back(Input::PeerDown { peer });
            }
            Nudge::Up => {
                m.up = true;
                self.inputs.push_back(Input::PeerUp { peer });
            }
            Nudge::Wait(ms) => {
                m.clock_ms += ms;
                self.inputs.push_back(Input::Tick);
            }
            Nudge::Arrive(number) => self.arrive(*number),
            Nudge::SendEnds { transfer, well } => {
                m.sending.remove(transfer);
                let outcome = match well {
                    true => Ok(None),
                    false => Err(failed(FailureCode::ConnectionLost, "the stream was refused")),
                };
                self.inputs.push_back(ended(*transfer, outcome));
            }
            Nudge::Release => {
                self.holding = false;
                self.actions = std::mem::take(&mut m.held);
            }
        }
    }

    fn ask(&mut self, request: RequestId, command: Command) {
        self.machine.asked.insert(request);
        self.inputs.push_back(Input::Command { request, command });
    }

    fn arrive(&mut self, number: u32) {
        let (transfer, stream) = &self.streams[number as usize];
        let m = &mut self.machine;
        let Some(spec) = m.expected.remove(transfer) else { return };
        if m.store.datasets.get(&spec.dataset).is_some_and(Dataset::can_be_written) {
            self.break_rule(format!("a step is received into {}, which is live", spec.dataset));
            return;
        }
        let outcome = stored(m.store.commit_receive(&spec, stream)).map(Some);
        self.inputs.push_back(ended(*transfer, outcome));
        self.traced();
    }

    fn break_rule(&mut self, words: String) {
        self.did.broken.get_or_insert(words);
    }

    /// Something outside the core has changed: a crash may come here, and no sooner.
    fn traced(&mut self) {
        self.did.traces += 1;
        self.did.could_write |= self.machine.can_write();
        if matches!(self.machine.record().role, Role::HandedOver { .. }) && self.machine.can_write()
        {
            self.break_rule("a source writes what it has handed over".into());
        }
        if let Cut::Crash { after, power } = self.cut
            && self.did.traces == after
        {
            self.machine.crash(power);
            self.dead = true;
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) {
        let mut ticks = 0;
        while !self.dead && self.did.broken.is_none() {
            self.drain();
            if self.dead {
                return;
            }
            if let Some((op, action)) = self.actions.pop_front() {
                self.act(op, action);
                continue;
            }
            let now = self.machine.now();
            let Some(node) = &mut self.machine.node else { return };
            if let Some(input) = self.inputs.pop_front() {
                node.handle(now, input);
                continue;
            }
            let Some(due) = node.poll_timeout() else { return };
            if due > now.mono_ms + AT_ONCE_MS {
                return;
            }
            ticks += 1;
            if ticks > TICK_LIMIT {
                return self.break_rule("the core asks for tick after tick".into());
            }
            self.machine.clock_ms = self.machine.clock_ms.max(due);
            self.inputs.push_back(Input::Tick);
        }
    }

    fn drain(&mut self) {
        while !self.dead {
            let Some(effect) = self.machine.node.as_mut().and_then(Node::poll_effect) else {
                return;
            };
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let m = &mut self.machine;
        match effect {
            Effect::Persist(changes) => {
                m.durable.apply(changes);
                self.traced();
            }
            Effect::Send { peer, message } => {
                if !is_durable(m.record(), &message.body) {
                    self.break_rule(format!("{:?} is said before it is durable", message.body));
                } else if m.up && index_of(peer) == Some(1 - m.index) {
                    self.did.said.push(message);
                    self.traced();
                }
            }
            Effect::Run { op, action, .. } => {
                if self.holding && takes_turns(&action) {
                    m.held.push_back((op, action));
                } else {
                    self.actions.push_back((op, action));
                }
            }
            Effect::StartSend { transfer, spec, .. } => match m.store.send(&spec) {
                Ok(stream) => {
                    m.sending.insert(transfer);
                    self.did.streams.push((transfer, stream));
                    self.traced();
                }
                Err(error) => {
                    self.inputs.push_back(ended(transfer, Err(Failure::from(&error))));
                }
            },
            Effect::StartReceive { transfer, spec, .. } => {
                m.expected.insert(transfer, spec);
            }
            Effect::CancelTransfer { transfer } => {
                if m.expected.remove(&transfer).is_some() || m.sending.remove(&transfer) {
                    let cancelled = failed(FailureCode::Cancelled, "cancelled");
                    self.inputs.push_back(ended(transfer, Err(cancelled)));
                }
            }
            Effect::Reply { request, .. } => {
                if !m.asked.remove(&request) {
                    self.break_rule(format!("{request:?} is answered, and is not open"));
                }
            }
            Effect::Lease { .. } | Effect::PeersChanged(_) | Effect::Report(_) => {}
        }
    }

    fn act(&mut self, op: OpId, action: Action) {
        if takes_turns(&action) {
            self.did.actions += 1;
            if self.cut == Cut::Hold(self.did.actions) {
                self.holding = true;
                self.machine.held.push_back((op, action));
                let waiting = std::mem::take(&mut self.actions);
                for (op, action) in waiting {
                    match takes_turns(&action) {
                        true => self.machine.held.push_back((op, action)),
                        false => self.actions.push_back((op, action)),
                    }
                }
                return;
            }
        }
        let outcome = self.machine.apply(&action);
        if leaves_a_trace(&action) {
            self.traced();
        }
        if action_is_final_snapshot(&action) && self.machine.works {
            self.break_rule("a snapshot is called quiesced while the workload runs".into());
        }
        if !self.dead {
            self.inputs.push_back(Input::Done { op, outcome });
        }
    }
}

/// A promise and an answer are durable before they are said.
fn is_durable(record: &UnitRecord, body: &Body) -> bool {
    match body {
        Body::PrepareReply { attempt, answer: Ok(_) } => {
            matches!(record.role, Role::Ready { attempt: ready, .. } if ready == *attempt)
        }
        Body::SettleReply { attempt, answer: Answer::Taken, .. } => record.taken.contains(attempt),
        Body::SettleReply { attempt, answer: Answer::Refused, .. } => {
            let refused = record.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
            refused >= attempt.number && !record.taken.contains(attempt)
        }
        _ => true,
    }
}

fn action_is_final_snapshot(action: &Action) -> bool {
    matches!(action, Action::Snapshot { quiesced: true, .. })
}

fn ended(transfer: TransferId, outcome: Result<Option<Snapshot>, Failure>) -> Input {
    Input::TransferEnded { transfer, outcome, stream_bytes: 700, wire_bytes: 700, saved_bytes: 0 }
}

/// Whether the actions of one unit of this kind are performed one after another.
fn takes_turns(action: &Action) -> bool {
    match action {
        Action::ProbeWorkload { .. }
        | Action::PreDump { .. }
        | Action::ReleaseWorkload { .. }
        | Action::StartWorkload { .. }
        | Action::StopWorkload { .. }
        | Action::Fence { .. }
        | Action::Rehearse { .. }
        | Action::Preflight { .. }
        | Action::Network { .. }
        | Action::SetAside { .. }
        | Action::Activate { .. }
        | Action::Snapshot { .. }
        | Action::VerifyUnwritten { .. } => true,
        Action::Inspect { .. }
        | Action::Room { .. }
        | Action::Find { .. }
        | Action::Tidy { .. }
        | Action::Mark { .. }
        | Action::Changed { .. }
        | Action::Mirror { .. }
        | Action::DescribeWorkload { .. }
        | Action::FencingHook { .. }
        | Action::Drill { .. }
        | Action::GiveBack { .. } => false,
    }
}

fn leaves_a_trace(action: &Action) -> bool {
    match action {
        Action::StartWorkload { .. }
        | Action::StopWorkload { .. }
        | Action::Fence { .. }
        | Action::SetAside { .. }
        | Action::Activate { .. }
        | Action::Snapshot { .. }
        | Action::Mirror { .. }
        | Action::Tidy { .. }
        | Action::Mark { .. } => true,
        Action::ProbeWorkload { .. }
        | Action::PreDump { .. }
        | Action::ReleaseWorkload { .. }
        | Action::Rehearse { .. }
        | Action::Preflight { .. }
        | Action::Network { .. }
        | Action::VerifyUnwritten { .. }
        | Action::Inspect { .. }
        | Action::Room { .. }
        | Action::Find { .. }
        | Action::Changed { .. }
        | Action::DescribeWorkload { .. }
        | Action::FencingHook { .. }
        | Action::Drill { .. }
        | Action::GiveBack { .. } => false,
    }
}

// ---- the store and the workload -----------------------------------------------------------------

impl Machine {
    fn apply(&mut self, action: &Action) -> Result<Outcome, Failure> {
        let unix_s = self.now().wall_ms / 1000;
        match action {
            Action::Rehearse { look: false, .. } => Ok(Outcome::Nothing),
            Action::Inspect { datasets, .. } | Action::Rehearse { datasets, look: true } => {
                let found = datasets.iter().map(|name| match self.store.inspect(name) {
                    Some((info, inventory, mirror)) => {
                        Inspected { info: Some(info), inventory, mirror, streams: None }
                    }
                    None => Inspected::nothing(),
                });
                Ok(Outcome::Inspected(found.collect()))
            }
            Action::Find { .. } => Ok(Outcome::Found(None)),
            Action::Room { .. } => Ok(Outcome::Room { used_bytes: 0, available_bytes: 1 << 50 }),
            Action::Snapshot { names, .. } => {
                let snapshots = stored(self.store.take_snapshots(names, false, unix_s))?;
                Ok(Outcome::Snapshots { snapshots, frozen_ms: 0 })
            }
            Action::Tidy { tag, hold, release, destroy } => {
                for name in hold {
                    stored(self.store.hold(tag, name))?;
                }
                for name in release {
                    self.store.release(tag, name);
                }
                for name in destroy {
                    stored(self.store.destroy(name))?;
                }
                Ok(Outcome::Nothing)
            }
            Action::Mark { .. } => unreachable!("its store has no bookmarks"),
            Action::Changed { since } => {
                let mut change = Change::Unchanged;
                for name in since {
                    if let other @ Change::Changed { .. } = stored(self.store.changed_since(name))?
                    {
                        change = other;
                    }
                }
                Ok(Outcome::Changed(change))
            }
            Action::ProbeWorkload { .. } => Ok(Outcome::Probed { running: self.works }),
            Action::DescribeWorkload { .. }
            | Action::PreDump { .. }
            | Action::ReleaseWorkload { .. } => {
                unreachable!("the workload is a process")
            }
            Action::StartWorkload { .. } => {
                if !self.dataset().is_some_and(Dataset::can_be_written) {
                    return Err(failed(FailureCode::NotStarted, "read-only"));
                }
                self.works = true;
                Ok(Outcome::Nothing)
            }
            Action::StopWorkload { .. } => {
                self.works = false;
                Ok(Outcome::Nothing)
            }
            Action::Network { .. } => Ok(Outcome::Nothing),
            Action::Fence { datasets } => {
                for dataset in datasets {
                    stored(self.store.fence(dataset, self.works))?;
                }
                Ok(Outcome::Nothing)
            }
            Action::VerifyUnwritten { snapshots } => {
                for name in snapshots {
                    if stored(self.store.changed_since(name))? != Change::Unchanged {
                        return Err(failed(FailureCode::Modified, "it was written"));
                    }
                }
                Ok(Outcome::Nothing)
            }
            Action::Preflight { .. } => {
                Ok(Outcome::Preflight { available_bytes: 1 << 50, running: self.works })
            }
            Action::SetAside { keep, away, wall_ms, .. } => {
                assert!(away.is_empty(), "nobody resolves anything here");
                let aside = keep.iter().map(|name| self.set_aside(name, *wall_ms));
                Ok(Outcome::SetAside { aside: aside.collect::<Result<_, _>>()? })
            }
            Action::Activate { datasets } => {
                let paths = datasets.iter().map(|d| stored(self.store.activate(d)).map(Some));
                Ok(Outcome::Activated { paths: paths.collect::<Result<_, _>>()? })
            }
            Action::Mirror { mirrors } => self.write_mirrors(mirrors),
            Action::FencingHook { .. } | Action::Drill { .. } | Action::GiveBack { .. } => {
                Err(failed(FailureCode::Unsupported, "the search has no such thing"))
            }
        }
    }

    fn set_aside(
        &mut self,
        keep: &SnapshotName,
        wall_ms: i64,
    ) -> Result<Option<DatasetName>, Failure> {
        let name = keep.dataset().clone();
        let Some(dataset) = self.store.datasets.get(&name) else {
            return Err(failed(FailureCode::NotFound, "no such dataset"));
        };
        let Some(at) = dataset.snapshots.iter().position(|s| s.short == keep.short()) else {
            return Err(failed(FailureCode::NoBase, "no such snapshot"));
        };
        let kept = dataset.snapshots[at].content.clone();
        if at + 1 == dataset.snapshots.len() && kept.stamp() == dataset.live.stamp() {
            return Ok(None);
        }
        if self.can_write() {
            return Err(failed(FailureCode::Busy, "it is live"));
        }
        let mut aside = dataset.clone();
        let mut stays = dataset.clone();
        aside.snapshots.drain(..=at);
        aside.mirror = None;
        (aside.writable, aside.mounted) = (false, false);
        stays.snapshots.truncate(at + 1);
        stays.live = kept;
        stays.guid = Guid(stays.guid.0 + (1 << 30));
        (stays.writable, stays.mounted) = (false, false);
        if let Some(mirror) = &mut stays.mirror {
            mirror.dataset_guid = stays.guid;
        }
        let apart = dataset_name(&format!("{name}-diverged-{wall_ms}-{}", stays.guid.0));
        self.store.datasets.insert(apart.clone(), aside);
        self.store.datasets.insert(name, stays);
        Ok(Some(apart))
    }

    fn write_mirrors(
        &mut self,
        mirrors: &[(DatasetName, MirrorState)],
    ) -> Result<Outcome, Failure> {
        for (name, state) in mirrors {
            let Some(dataset) = self.store.datasets.get_mut(name) else {
                return Err(failed(FailureCode::NotFound, "no such dataset"));
            };
            dataset.mirror = Some(Mirror {
                unit: state.unit,
                volume: state.volume,
                dataset_guid: dataset.guid,
                epoch: state.epoch,
                state: state.state.clone(),
            });
        }
        Ok(Outcome::Nothing)
    }

    /// Whether this record is anywhere in its store.
    pub fn keeps(&self, record: u64) -> bool {
        self.store
            .datasets
            .values()
            .any(|d| d.live.has(record) || d.snapshots.iter().any(|s| s.content.has(record)))
    }
}
