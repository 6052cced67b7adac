//! Two cores and the smallest world that lets them move a unit: one volume each, whose snapshots are all
//! that is known of it. Everything that is under way waits in one queue, so that a test can stop anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use flocker_core::failure::{FailureCode, Remedy};
use flocker_core::ids::{
    AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, QuestionId, RequestId, TransferId,
    UnitId, VolumeId,
};
use flocker_core::io::{Inspected, Loss};
use flocker_core::node::NodeConfig;
use flocker_core::record::{
    Grant, JournalChange, PeerRecord, Policy, Role, UnitRecord, VolumeRecord, WorkloadKind,
    WorkloadRecord,
};
use flocker_core::{
    Action, Body, Boot, Command, Effect, Event, EventKind, Failure, Input, Message, Node, Outcome,
    Reply, StoreFacts,
};
use flocker_store::{
    Change, DatasetInfo, DatasetKind, DatasetName, Guid, Inventory, Origin, ReceiveSpec, Snapshot,
    StreamFeature, StreamFeatures,
};

pub(crate) const UNIT: UnitId = UnitId(0xab << 120);
pub(crate) const VOLUME: VolumeId = VolumeId(0xcd << 120);

pub(crate) fn print_of(index: usize) -> Fingerprint {
    Fingerprint([index as u8 + 1; 32])
}

fn dataset(text: &str) -> DatasetName {
    DatasetName::new(text).expect("a dataset's name")
}

/// Something that is under way.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Message { to: usize, message: Message },
    Op { at: usize, op: OpId, action: Action },
    Arrive { at: usize, transfer: TransferId },
    SendEnded { at: usize, transfer: TransferId },
}

/// One node and what is durable on it.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) node: Node,
    pub(crate) record: UnitRecord,
    peer: PeerRecord,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) runs: bool,
    pub(crate) up: bool,
    boots: u64,
    pub(crate) expected: BTreeMap<TransferId, ReceiveSpec>,
    /// The last question that it asked in a preflight.
    pub(crate) asked: Option<QuestionId>,
    /// Its dataset cannot be seen: renamed away by a person, its pool not imported.
    pub(crate) vanished: bool,
    /// What a move would leave behind of its workload.
    pub(crate) losses: Vec<Loss>,
}

/// The pair.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) sides: [Side; 2],
    pub(crate) pending: VecDeque<Item>,
    pub(crate) clock_ms: u64,
    pub(crate) starts_fail_at: Option<usize>,
    /// The workload writes all the time.
    pub(crate) written: bool,
    /// What people were answered.
    pub(crate) replies: Vec<Result<Reply, Failure>>,
    /// Rounds of the first side that sent everything.
    pub(crate) rounds_in_full: usize,
    /// What the second side has set aside: the snapshots that went.
    pub(crate) set_aside: Vec<Vec<Guid>>,
    /// What a fenced dataset holds is not what its newest snapshot says.
    pub(crate) unproven: bool,
    /// The first side's pool is not there.
    pub(crate) away: bool,
    /// A clone cannot be received as one, whatever the reason.
    pub(crate) clones_fail: bool,
    /// What the first side's dataset is a clone of, and whether the second side has that.
    pub(crate) clone_of: Option<(Origin, bool)>,
    /// What streams of each side's dataset have need of, and what its pool receives.
    pub(crate) streams: [StreamFeatures; 2],
    /// Every action so far, and on which side.
    pub(crate) done: Vec<(usize, Action)>,
    next_guid: u64,
}

pub(crate) fn failed() -> Failure {
    Failure::new(Remedy::Retry, FailureCode::Other, "it failed")
}

fn config(index: usize, boots: u64) -> NodeConfig {
    let facts = StoreFacts {
        describe: format!("store:{index}"),
        root: dataset(&format!("n{index}")),
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
        clones: true,
        atomic_group_snapshot: true,
        fencing_hook: false,
    };
    let boot = index as u64 * 100 + boots;
    NodeConfig::new(print_of(index), Incarnation(index as u64 + 1), boot, facts)
}

impl Side {
    fn new(index: usize, policy: Policy, now: Now) -> Self {
        let (me, other) = (print_of(index), print_of(1 - index));
        let primary = index == 0;
        let name = if primary { "n0/db" } else { "n1/in/db" };
        let kind = DatasetKind::Filesystem;
        let volume = VolumeRecord {
            id: VOLUME,
            dataset: dataset(name),
            kind,
            modern_streams: true,
            raw: false,
            joining: false,
        };
        let owner = print_of(0);
        let epoch = Epoch { number: 1, owner, attempt: AttemptId { issuer: owner, number: 0 } };
        let role = if primary { Role::Serving } else { Role::Following { source: other } };
        let mut record = UnitRecord::new(UNIT, "db".into(), vec![volume], policy, epoch, role);
        record.workload = Some(WorkloadRecord::process(vec!["db".into()]));
        record.own = primary;
        record.standbys = if primary { vec![other] } else { Vec::new() };
        let grant = (!primary).then(|| Grant {
            receive: dataset("n1/in"),
            quota_bytes: None,
            workloads: BTreeSet::from([WorkloadKind::Process]),
        });
        let peer = PeerRecord {
            fingerprint: other,
            name: ["b", "a"][index].into(),
            addresses: Vec::new(),
            grant,
        };
        let _ = me;
        let boot = Boot {
            units: vec![(record.clone(), vec![None])],
            peers: vec![peer.clone()],
            ..Boot::default()
        };
        let node = Node::new(config(index, 1), boot, now);
        Self {
            node,
            record,
            peer,
            snapshots: Vec::new(),
            runs: false,
            losses: Vec::new(),
            up: false,
            boots: 1,
            expected: BTreeMap::new(),
            asked: None,
            vanished: false,
        }
    }

    /// The daemon starts anew, with nothing but what is durable.
    pub(crate) fn restart(&mut self, index: usize, now: Now) {
        self.boots += 1;
        self.up = false;
        self.expected.clear();
        let units = vec![(self.record.clone(), vec![None])];
        let boot = Boot { units, peers: vec![self.peer.clone()], ..Boot::default() };
        self.node = Node::new(config(index, self.boots), boot, now);
    }

    /// Role, what it is doing, and what its workload is.
    pub(crate) fn label(&self, now: Now) -> String {
        let status = self.node.status(now);
        let unit = &status.units[0];
        format!("{}, {}, workload {}", self.record.role.word(), unit.doing, unit.workload_state)
    }
}

impl Pair {
    /// In step: 0 is primary, and its workload runs.
    pub(crate) fn in_step() -> Self {
        Self::in_step_with(Policy::Every(86_400_000))
    }

    /// The same, under this promise.
    pub(crate) fn in_step_with(policy: Policy) -> Self {
        let clock_ms = 10_000;
        let now = at(clock_ms);
        let mut pair = Self {
            sides: [0, 1].map(|index| Side::new(index, policy, now)),
            pending: VecDeque::new(),
            clock_ms,
            starts_fail_at: None,
            written: false,
            replies: Vec::new(),
            rounds_in_full: 0,
            set_aside: Vec::new(),
            unproven: false,
            away: false,
            clones_fail: false,
            clone_of: None,
            streams: [0, 1].map(|_| receives_all()),
            done: Vec::new(),
            next_guid: 100,
        };
        for side in 0..2 {
            pair.drain(side);
            pair.connect(side);
        }
        pair.settle(|_, _| {});
        assert_eq!(pair.sides[1].snapshots.len(), 1, "the standby has a replica");
        pair
    }

    /// Two nodes without a unit. Each has a dataset where it would be, with snapshots of these guids that
    /// another tool has taken or sent.
    pub(crate) fn of_another_tool(ours: &[u64], theirs: &[u64]) -> Self {
        let mut pair = Self::in_step();
        pair.pending.clear();
        pair.done.clear();
        pair.rounds_in_full = 0;
        let now = pair.now();
        for (index, guids) in [ours, theirs].into_iter().enumerate() {
            let side = &mut pair.sides[index];
            let dataset = side.record.volumes[0].dataset.clone();
            let foreign = |guid: &u64| Snapshot {
                name: dataset.snapshot(&format!("tool_{guid}")).expect("a name"),
                guid: Guid(*guid),
                createtxg: *guid,
                creation_unix_s: now.wall_ms / 1000,
                fuzzy: false,
                holds: 0,
            };
            side.snapshots = guids.iter().map(foreign).collect();
            side.boots += 1;
            let boot = Boot { peers: vec![side.peer.clone()], ..Boot::default() };
            side.node = Node::new(config(index, side.boots), boot, now);
        }
        for side in 0..2 {
            pair.drain(side);
            pair.connect(side);
        }
        pair
    }

    pub(crate) fn now(&self) -> Now {
        at(self.clock_ms)
    }

    pub(crate) fn connect(&mut self, side: usize) {
        self.sides[side].up = true;
        self.input(side, Input::PeerUp { peer: print_of(1 - side) });
    }

    pub(crate) fn input(&mut self, side: usize, input: Input) {
        let now = self.now();
        self.sides[side].node.handle(now, input);
        self.drain(side);
    }

    pub(crate) fn command(&mut self, side: usize, command: Command) {
        self.input(side, Input::Command { request: RequestId(1), command });
    }

    /// Takes what a core hands out: what is durable is so at once, all else is under way from now on.
    pub(crate) fn drain(&mut self, side: usize) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(effect) = self.sides[side].node.poll_effect() {
            words.extend(self.take(side, effect));
        }
        words
    }

    fn take(&mut self, at: usize, effect: Effect) -> Option<String> {
        let side = &mut self.sides[at];
        match effect {
            Effect::Persist(changes) => {
                for change in changes {
                    if let JournalChange::PutUnit(record) = change {
                        side.record = *record;
                    }
                }
                Some(format!("persist {}", side.record.role.word()))
            }
            Effect::Send { message, .. } => {
                let word = format!("say {}", kind_of(&message.body));
                if let Body::Preflight { question, .. } = message.body {
                    side.asked = Some(question);
                }
                if side.up {
                    self.pending.push_back(Item::Message { to: 1 - at, message });
                }
                Some(word)
            }
            Effect::Run { op, action, .. } => {
                let word = format!("run {}", first_word(&action));
                self.pending.push_back(Item::Op { at, op, action });
                Some(word)
            }
            Effect::StartSend { transfer, .. } => {
                self.pending.push_back(Item::Arrive { at: 1 - at, transfer });
                self.pending.push_back(Item::SendEnded { at, transfer });
                Some("send".into())
            }
            Effect::StartReceive { transfer, spec, .. } => {
                side.expected.insert(transfer, spec);
                Some("receive".into())
            }
            Effect::CancelTransfer { transfer } => {
                side.expected.remove(&transfer);
                Some("end the transfer".into())
            }
            Effect::Reply { reply, .. } => {
                let words = match &reply {
                    Ok(reply) => format!("answer {}", first_word(reply)),
                    Err(failure) => format!("answer no: {:?}", failure.code),
                };
                self.replies.push(reply);
                Some(words)
            }
            Effect::Lease { until_ms, .. } => {
                Some(if until_ms.is_some() { "lease" } else { "no lease" }.into())
            }
            Effect::Report(Event { kind: EventKind::Round(round), .. }) => {
                self.rounds_in_full += usize::from(round.full);
                None
            }
            Effect::PeersChanged(_) | Effect::Report(_) => None,
        }
    }

    /// One thing happens, or the next moment comes in which something is due.
    pub(crate) fn step(&mut self) {
        if let Some(item) = self.pending.pop_front() {
            self.happen(item);
            return;
        }
        let due = (0..2).filter_map(|i| self.sides[i].node.poll_timeout().map(|d| (d, i))).min();
        if let Some((due, side)) = due {
            self.clock_ms = self.clock_ms.max(due);
            self.input(side, Input::Tick);
        }
    }

    /// So much time passes, with all that happens in it.
    pub(crate) fn pass(&mut self, ms: u64) {
        let until = self.clock_ms + ms;
        for _ in 0..100_000 {
            if self.clock_ms >= until {
                return;
            }
            self.step();
        }
        panic!("time stands still");
    }

    /// A side's daemon dies and starts anew; what it had under way is gone.
    pub(crate) fn reboot(&mut self, side: usize) {
        self.pending.retain(|item| match item {
            Item::Message { to, .. } => *to != side,
            Item::Op { at, .. } | Item::Arrive { at, .. } | Item::SendEnded { at, .. } => {
                *at != side
            }
        });
        let now = self.now();
        self.input(1 - side, Input::PeerDown { peer: print_of(side) });
        self.sides[side].restart(side, now);
        self.drain(side);
        for side in [side, 1 - side] {
            self.connect(side);
        }
    }

    /// Lets everything happen in order until nothing is under way, or only what is tried again and again,
    /// and shows each step.
    pub(crate) fn settle(&mut self, mut seen: impl FnMut(&Pair, usize)) {
        for _ in 0..600 {
            if let Some(item) = self.pending.pop_front() {
                if let Some(side) = self.happen(item) {
                    seen(self, side);
                }
                continue;
            }
            let due =
                (0..2).filter_map(|i| self.sides[i].node.poll_timeout().map(|d| (d, i))).min();
            match due {
                Some((due, side)) if due <= self.clock_ms + 1_500 => {
                    self.clock_ms = self.clock_ms.max(due);
                    self.input(side, Input::Tick);
                    seen(self, side);
                }
                _ => return,
            }
        }
    }

    fn happen(&mut self, item: Item) -> Option<usize> {
        match item {
            Item::Message { to, message } => {
                if !self.sides[to].up {
                    return None;
                }
                self.input(to, Input::Message { peer: print_of(1 - to), message });
                Some(to)
            }
            Item::Op { at, op, action } => {
                let outcome = self.perform(at, &action);
                self.input(at, Input::Done { op, outcome });
                Some(at)
            }
            Item::Arrive { at, transfer } => {
                let spec = self.sides[at].expected.remove(&transfer)?;
                let newest = self.sides[at].snapshots.last().map(|s| s.guid);
                let base = spec.from_guid.filter(|_| spec.origin.is_none());
                if self.clones_fail && spec.origin.is_some() {
                    let failure = Failure::new(Remedy::Abort, FailureCode::Unsupported, "no");
                    self.ended(at, transfer, Err(failure));
                    return Some(at);
                }
                if newest != base {
                    let words = format!("{} was modified since", spec.dataset);
                    let failure = Failure::new(Remedy::Operator, FailureCode::Modified, words);
                    self.ended(at, transfer, Err(failure));
                    return Some(at);
                }
                let snapshot = Snapshot {
                    name: spec.snapshot.clone(),
                    guid: spec.to_guid,
                    createtxg: spec.to_guid.0,
                    creation_unix_s: self.now().wall_ms / 1000,
                    fuzzy: false,
                    holds: 0,
                };
                self.sides[at].snapshots.push(snapshot.clone());
                self.ended(at, transfer, Ok(Some(snapshot)));
                Some(at)
            }
            Item::SendEnded { at, transfer } => {
                self.ended(at, transfer, Ok(None));
                Some(at)
            }
        }
    }

    fn ended(
        &mut self,
        at: usize,
        transfer: TransferId,
        outcome: Result<Option<Snapshot>, Failure>,
    ) {
        let input = Input::TransferEnded {
            transfer,
            outcome,
            stream_bytes: 700,
            wire_bytes: 700,
            saved_bytes: 0,
        };
        self.input(at, input);
    }

    /// What an action comes to here.
    pub(crate) fn perform(&mut self, at: usize, action: &Action) -> Result<Outcome, Failure> {
        let unix_s = self.now().wall_ms / 1000;
        let fails = self.starts_fail_at == Some(at);
        self.done.push((at, action.clone()));
        let side = &mut self.sides[at];
        Ok(match action {
            _ if self.away && at == 0 => {
                let words = "the pool is not imported";
                return Err(Failure::new(Remedy::Retry, FailureCode::StoreAway, words));
            }
            Action::VerifyUnwritten { snapshots } if self.unproven => {
                let words = format!("{} was written", snapshots[0].dataset());
                return Err(Failure::new(Remedy::Operator, FailureCode::Modified, words));
            }
            Action::Inspect { .. } | Action::Rehearse { look: true, .. } => {
                let mut found = side.inspected();
                if let Action::Inspect { streams: true, .. } = action {
                    found.streams = Some(self.streams[at].clone());
                }
                if let (Some(info), 0) = (&mut found.info, at) {
                    info.origin = self.clone_of.as_ref().map(|(origin, _)| origin.clone());
                }
                Outcome::Inspected(vec![found])
            }
            Action::Find { .. } => {
                let there = self.clone_of.as_ref().filter(|(_, there)| *there);
                Outcome::Found(there.map(|(origin, _)| origin.name.clone()))
            }
            Action::Room { .. } => Outcome::Room { used_bytes: 0, available_bytes: 1 << 40 },
            Action::Snapshot { names, .. } => {
                let name = names[0].clone();
                self.next_guid += 1;
                let guid = Guid(self.next_guid + 1_000 * (at as u64 + 1));
                let (createtxg, creation_unix_s) = (self.next_guid, unix_s);
                let new =
                    Snapshot { name, guid, createtxg, creation_unix_s, fuzzy: false, holds: 0 };
                side.snapshots.push(new.clone());
                Outcome::Snapshots { snapshots: vec![new], frozen_ms: 0 }
            }
            Action::Changed { .. } if self.written => {
                Outcome::Changed(Change::Changed { bytes: 1 })
            }
            Action::Changed { .. } => Outcome::Changed(Change::Unchanged),
            Action::ProbeWorkload { .. } => Outcome::Probed { running: side.runs },
            Action::DescribeWorkload { program, .. } => {
                Outcome::Described { description: program.to_string(), losses: side.losses.clone() }
            }
            Action::PreDump { .. } | Action::ReleaseWorkload { .. } => Outcome::Nothing,
            Action::StartWorkload { .. } if fails => {
                return Err(Failure::new(
                    Remedy::Retry,
                    FailureCode::NotStarted,
                    "no such program",
                ));
            }
            Action::StartWorkload { .. } => {
                side.runs = true;
                Outcome::Nothing
            }
            Action::StopWorkload { .. } => {
                side.runs = false;
                Outcome::Nothing
            }
            Action::Preflight { .. } => {
                Outcome::Preflight { available_bytes: 1 << 40, running: side.runs }
            }
            Action::SetAside { keep, away, .. } => {
                let from = match keep.first() {
                    Some(keep) => {
                        side.snapshots.iter().position(|s| s.name == *keep).map(|n| n + 1)
                    }
                    None => Some(0),
                };
                let gone: Vec<_> = side.snapshots.drain(from.unwrap_or(0)..).collect();
                let dataset = keep.first().map(|k| k.dataset()).or(away.first());
                let name = dataset.map(|d| DatasetName::new(format!("{d}-diverged-1")));
                let name = name.and_then(Result::ok).filter(|_| !gone.is_empty());
                if !gone.is_empty() {
                    self.set_aside.push(gone.into_iter().map(|s| s.guid).collect());
                }
                Outcome::SetAside { aside: vec![name] }
            }
            Action::Activate { .. } => {
                Outcome::Activated { paths: vec![Some(PathBuf::from("/db"))] }
            }
            Action::Mark { .. } => unreachable!("its store has no bookmarks"),
            Action::Tidy { destroy, .. } => {
                side.snapshots.retain(|s| !destroy.contains(&s.name));
                Outcome::Nothing
            }
            Action::Rehearse { look: false, .. }
            | Action::Network { .. }
            | Action::Fence { .. }
            | Action::VerifyUnwritten { .. }
            | Action::Mirror { .. }
            | Action::FencingHook { .. }
            | Action::GiveBack { .. } => Outcome::Nothing,
            Action::Drill { .. } => return Err(failed()),
        })
    }
}

impl Side {
    fn inspected(&self) -> Inspected {
        let volume = &self.record.volumes[0];
        if self.vanished {
            return Inspected::nothing();
        }
        let exists = self.record.own || !self.snapshots.is_empty();
        let info = exists.then(|| DatasetInfo {
            name: volume.dataset.clone(),
            guid: Guid(7),
            kind: volume.kind,
            used_bytes: 0,
            referenced_bytes: 0,
            mounted_at: None,
            writable: false,
            encrypted: false,
            origin: None,
        });
        let inventory = Inventory { snapshots: self.snapshots.clone(), ..Inventory::default() };
        Inspected { info, inventory, mirror: None, streams: None }
    }
}

fn receives_all() -> StreamFeatures {
    StreamFeatures { receives: StreamFeature::ALL.into(), ..StreamFeatures::default() }
}

fn at(clock_ms: u64) -> Now {
    Now { mono_ms: clock_ms, wall_ms: 1_767_225_600_000 + clock_ms as i64 }
}

/// The name of an enum's variant.
pub(crate) fn first_word(thing: &impl std::fmt::Debug) -> String {
    let text = format!("{thing:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// What a message says, with its answer in a word.
pub(crate) fn kind_of(body: &Body) -> String {
    let word = first_word(body);
    match body {
        Body::SettleReply { answer, .. } => format!("{word}({answer:?})"),
        Body::PrepareReply { answer, .. } => format!("{word}({})", yes(answer)),
        Body::PreflightReply { answer, .. } => format!("{word}({})", yes(answer)),
        _ => word,
    }
}

fn yes<T>(answer: &Result<T, Failure>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(failure) => format!("no: {:?}", failure.code),
    }
}
