//! The node: peers, grants, and every unit's machine behind one entry.
//!
//! Owns: the set of units and peers, names, and the routing of inputs. Leaves to others: what a
//! unit does (`unit` and its machines). The contract with whoever performs the effects is in
//! [`crate::io`].

use std::collections::BTreeMap;

use crate::ctx::{Ctx, Out};
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, Now, OpId, RequestId, UnitId};
use crate::io::{
    Action, Boot, Command, Effect, Event, EventKind, Input, Inspected, Outcome, Reply, StoreFacts,
};
use crate::message::{Body, Message, VolumeIntro};
use crate::record::{
    Grant, JournalChange, Mirror, PeerRecord, Policy, Role, UnitRecord, VolumeRecord,
};
use crate::replicate::Replica;
use crate::standby;
use crate::status::{NodeStatus, PeerStatus, StandbyStatus, UnitStatus};
use crate::unit::{Op, Unit};

/// A bug put in on purpose: the simulator must catch each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedBug {
    /// The source resumes when its commit stays unanswered.
    ResumeWithoutRefusal,
    /// A refusal from a target that lost its journal is believed.
    IgnoreIncarnation,
    /// The target takes an attempt that it has refused.
    ForgetTombstone,
    /// `Ready` is said before it is durable.
    PersistAfterSend,
    /// The final snapshot is taken without a fence.
    SkipFence,
    /// The newest snapshot there was is taken for the final one.
    NoFinalSnapshotAfterFence,
    /// What a standby starts from is destroyed.
    DestroyBase,
    /// An owner starts without asking its standbys.
    StartWithoutAsking,
    /// Messages of older epochs are believed.
    AcceptStaleEpoch,
    /// Holds are not taken off.
    LeakHold,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// This life of its journal.
    pub incarnation: Incarnation,
    /// A random number for this start of the process.
    pub boot: u64,
    /// What the local store can do.
    pub store: StoreFacts,
    #[cfg(feature = "planted-bugs")]
    planted: Option<PlantedBug>,
}

impl NodeConfig {
    /// A node without planted bugs.
    pub fn new(
        fingerprint: Fingerprint,
        incarnation: Incarnation,
        boot: u64,
        store: StoreFacts,
    ) -> Self {
        Self {
            fingerprint,
            incarnation,
            boot,
            store,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// The same node with a bug in it.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_planted(mut self, bug: Option<PlantedBug>) -> Self {
        self.planted = bug;
        self
    }

    #[cfg(feature = "planted-bugs")]
    pub(crate) fn planted(&self, bug: PlantedBug) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(crate) fn planted(&self, _bug: PlantedBug) -> bool {
        false
    }
}

/// A peer, and whether it is there.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) record: PeerRecord,
    pub(crate) connected: bool,
}

/// The core of one node.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    peers: BTreeMap<Fingerprint, Peer>,
    units: BTreeMap<UnitId, Unit>,
    orphans: BTreeMap<flocker_store::DatasetName, Mirror>,
    out: Out,
}

/// Borrows the node's parts for a unit's machine.
macro_rules! ctx {
    ($node:expr, $now:expr) => {
        Ctx { now: $now, config: &$node.config, peers: &$node.peers, out: &mut $node.out }
    };
}

impl Node {
    /// Starts from what the journal and the stores say. Effects are waiting to be polled.
    pub fn new(config: NodeConfig, boot: Boot, now: Now) -> Self {
        let peers = boot
            .peers
            .into_iter()
            .map(|record| (record.fingerprint, Peer { record, connected: false }));
        let mut node = Self {
            config,
            peers: peers.collect(),
            units: BTreeMap::new(),
            orphans: boot.orphans,
            out: Out::default(),
        };
        for (record, mirrors) in boot.units {
            let mut unit = Unit::new(record);
            let mut ctx = ctx!(node, now);
            unit.boot(&mut ctx, &mirrors);
            node.units.insert(unit.id(), unit);
        }
        for (dataset, mirror) in &node.orphans {
            let text = format!(
                "{dataset} says that it belongs to unit {}, which this journal does not know; it \
                 stays as it is",
                mirror.unit
            );
            let failure = Failure::new(Remedy::Operator, FailureCode::Conflict, text);
            let event = Event { unit: None, name: None, kind: EventKind::Alarm { failure } };
            node.out.effects.push_back(Effect::Report(event));
        }
        node.after(now);
        node
    }

    /// Takes an input in.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Tick => {}
            Input::PeerUp { peer } => self.peer_up(now, peer),
            Input::PeerDown { peer } => self.peer_down(now, peer),
            Input::Message { peer, message } => self.message(now, peer, message),
            Input::Command { request, command } => self.command(now, request, command),
            Input::Done { op, outcome } => self.done(now, op, outcome),
            Input::TransferEnded { transfer, outcome, stream_bytes, wire_bytes } => {
                let unit = self.out.transfers.remove(&transfer);
                if let Some(unit) = unit.and_then(|id| self.units.get_mut(&id)) {
                    let mut ctx = ctx!(self, now);
                    unit.handle_transfer_ended(
                        &mut ctx,
                        transfer,
                        outcome,
                        stream_bytes,
                        wire_bytes,
                    );
                }
            }
            Input::WorkloadExited { unit, status, success } => {
                if let Some(unit) = self.units.get_mut(&unit) {
                    unit.workload_exited(&mut ctx!(self, now), status, success);
                }
            }
        }
        self.after(now);
    }

    /// Hands the next effect out; effects are performed in this order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// When `handle(Input::Tick)` is due at the latest, on the monotonic clock, milliseconds.
    pub fn poll_timeout(&mut self) -> Option<u64> {
        let now = Now { mono_ms: 0, wall_ms: 0 };
        let ctx = ctx!(self, now);
        self.units.values().filter_map(|u| u.timeout(&ctx)).min()
    }

    /// What must hold after every input; called by `handle` itself as well.
    ///
    /// # Panics
    /// On a bug of ours.
    pub fn check_invariants(&self) {
        for unit in self.units.values() {
            unit.check_invariants(&self.config);
        }
        let mut names: Vec<_> = self.units.values().map(|u| &u.record.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), self.units.len(), "unit names are unique on a node");
    }

    fn after(&mut self, now: Now) {
        for unit in self.units.values_mut() {
            let mut ctx = ctx!(self, now);
            unit.advance(&mut ctx);
        }
        self.check_invariants();
    }

    // ---- peers --------------------------------------------------------------------------------

    fn peer_up(&mut self, now: Now, peer: Fingerprint) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        known.connected = true;
        for unit in self.units.values_mut() {
            unit.handle_peer_up(&mut ctx!(self, now), peer);
        }
    }

    fn peer_down(&mut self, now: Now, peer: Fingerprint) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        known.connected = false;
        for unit in self.units.values_mut() {
            unit.handle_peer_down(&mut ctx!(self, now), peer);
        }
    }

    fn message(&mut self, now: Now, peer: Fingerprint, message: Message) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        if let Some(unit) = self.units.get_mut(&message.unit) {
            if unit.ending.is_none() {
                unit.handle_message(&mut ctx!(self, now), peer, message);
            }
            return;
        }
        self.message_for_unknown(now, peer, message);
    }

    fn message_for_unknown(&mut self, now: Now, peer: Fingerprint, message: Message) {
        let mut ctx = ctx!(self, now);
        match &message.body {
            Body::Intro { name, volumes, .. } => {
                let datasets = intro_datasets(&ctx, peer, name, volumes);
                match datasets {
                    Ok(datasets) => {
                        let unit = message.unit;
                        let op = Op::NodeIntro { peer, message: Box::new(message) };
                        ctx.run(unit, op, Action::Inspect { datasets });
                    }
                    Err(failure) => {
                        let body = Body::IntroReply(Err(failure));
                        ctx.send(peer, Message { body, ..message });
                    }
                }
            }
            Body::Claim => {
                let body = Body::ClaimReply { known: false };
                ctx.send(peer, Message { body, ..message });
            }
            Body::Survey
            | Body::Offer(_)
            | Body::Equal { .. }
            | Body::Preflight { .. }
            | Body::Prepare { .. }
            | Body::Settle { .. } => {
                ctx.send(peer, Message { body: Body::Unknown, ..message });
            }
            Body::IntroReply(_)
            | Body::SurveyReply(_)
            | Body::OfferReply { .. }
            | Body::StepReply { .. }
            | Body::PreflightReply { .. }
            | Body::PrepareReply { .. }
            | Body::SettleReply { .. }
            | Body::Abandon { .. }
            | Body::Activated { .. }
            | Body::ActivationFailed { .. }
            | Body::ClaimReply { .. }
            | Body::Drop
            | Body::Stale
            | Body::Unknown => {}
        }
    }

    // ---- actions of the node itself -----------------------------------------------------------

    fn done(&mut self, now: Now, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some((id, what)) = self.out.ops.remove(&op) else {
            return;
        };
        match what {
            Op::NodeIntro { peer, message } => self.introduced(now, peer, *message, outcome),
            Op::NodeProtect { request, command } => {
                self.protect_inspected(now, request, *command, outcome);
            }
            Op::GiveBack => {
                let Some(unit) = self.units.get_mut(&id) else {
                    return;
                };
                if unit.end_done(&mut ctx!(self, now), op, outcome) {
                    self.units.remove(&id);
                    let change = JournalChange::DeleteUnit(id);
                    self.out.effects.push_back(Effect::Persist(vec![change]));
                }
            }
            what => {
                if let Some(unit) = self.units.get_mut(&id) {
                    unit.handle_done(&mut ctx!(self, now), op, &what, outcome);
                }
            }
        }
    }

    /// A peer wants this node to keep replicas of a unit it did not know, and we have looked.
    fn introduced(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: Message,
        outcome: Result<Outcome, Failure>,
    ) {
        let Body::Intro { name, volumes, policy } = &message.body else {
            unreachable!("only introductions are looked into");
        };
        let answer = self.introduce(now, peer, &message, name, volumes, *policy, outcome);
        let mut ctx = ctx!(self, now);
        let body = Body::IntroReply(answer);
        ctx.send(peer, Message { unit: message.unit, epoch: message.epoch, body });
    }

    #[expect(clippy::too_many_arguments, reason = "an introduction taken apart, in one place")]
    fn introduce(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        name: &str,
        volumes: &[VolumeIntro],
        policy: Policy,
        outcome: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        if self.units.contains_key(&message.unit) {
            // Introduced twice while we were looking.
            return Ok(());
        }
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        if message.epoch.owner != peer {
            return refuse(FailureCode::Conflict, format!("{name} is not yours to introduce"));
        }
        if self.units.values().any(|u| u.record.name == name) {
            let text = format!("this node has another unit named {name}; protect with --name");
            return refuse(FailureCode::Exists, text);
        }
        let datasets = intro_datasets(&ctx!(self, now), peer, name, volumes)?;
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        for (found, dataset) in found.iter().zip(&datasets) {
            check_place(found, dataset, message)?;
        }
        let record = UnitRecord {
            id: message.unit,
            name: name.to_owned(),
            volumes: (volumes.iter().zip(datasets))
                .map(|(v, dataset)| VolumeRecord { id: v.id, dataset, kind: v.kind })
                .collect(),
            policy,
            epoch: message.epoch,
            role: Role::Following { source: peer },
            standbys: Vec::new(),
            workload: None,
            own: false,
            paused: false,
            start_alone: false,
            last_attempt: 0,
            refused_up_to: BTreeMap::new(),
            taken: Vec::new(),
        };
        let mut unit = Unit::new(record);
        let mut ctx = ctx!(self, now);
        unit.persist(&mut ctx);
        unit.enter_role(&mut ctx);
        self.orphans.retain(|_, m| m.unit != message.unit);
        self.units.insert(unit.id(), unit);
        Ok(())
    }

    // ---- commands -----------------------------------------------------------------------------

    fn command(&mut self, now: Now, request: RequestId, command: Command) {
        let mut ctx = ctx!(self, now);
        let answer = match command {
            Command::AddPeer(record) => self.add_peer(now, record),
            Command::SetGrant { peer, grant } => self.set_grant(&peer, grant),
            Command::RemovePeer { peer } => self.remove_peer(now, &peer),
            Command::Protect { .. } => match self.begin_protect(now, request, command) {
                Ok(()) => return,
                Err(failure) => Err(failure),
            },
            Command::SetWorkload { name, workload } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.set_workload(&mut ctx, request, workload),
                Err(failure) => Err(failure),
            },
            Command::StopWorkload { name } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.stop_workload(&mut ctx, request),
                Err(failure) => Err(failure),
            },
            Command::Migrate { name, to } => {
                let target = find_peer(&self.peers, &to);
                match (find(&mut self.units, &name), target) {
                    (Ok(unit), Ok(target)) => return unit.migrate(&mut ctx, request, target),
                    (Err(failure), _) | (_, Err(failure)) => Err(failure),
                }
            }
            Command::Pause { name } => self.set_paused(now, &name, true),
            Command::Resume { name } => self.set_paused(now, &name, false),
            Command::Unprotect { name } => match self.unprotect(now, request, &name) {
                Ok(()) => return,
                Err(failure) => Err(failure),
            },
            Command::StartAlone { name } => {
                find(&mut self.units, &name).and_then(|u| u.start_alone(&mut ctx))
            }
        };
        self.out.effects.push_back(Effect::Reply { request, reply: answer.map(|()| Reply::Done) });
    }

    fn add_peer(&mut self, now: Now, mut record: PeerRecord) -> Result<(), Failure> {
        if record.fingerprint == self.config.fingerprint {
            let text = "a node cannot be its own peer";
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        let same_name =
            |p: &Peer| p.record.name == record.name && p.record.fingerprint != record.fingerprint;
        if self.peers.values().any(same_name) {
            // Two peers of one name could not be told apart in commands.
            record.name = format!("{}-{}", record.name, record.fingerprint.short());
        }
        let known = self.peers.get(&record.fingerprint);
        if record.grant.is_none() {
            record.grant = known.and_then(|p| p.record.grant.clone());
        }
        let connected = known.is_some_and(|p| p.connected);
        let change = JournalChange::PutPeer(record.clone());
        self.out.effects.push_back(Effect::Persist(vec![change]));
        self.peers.insert(record.fingerprint, Peer { record, connected });
        self.peers_changed();
        let _ = now;
        Ok(())
    }

    fn peers_changed(&mut self) {
        let peers = self.peers.values().map(|p| p.record.clone()).collect();
        self.out.effects.push_back(Effect::PeersChanged(peers));
    }

    fn set_grant(&mut self, peer: &str, grant: Option<Grant>) -> Result<(), Failure> {
        if let Some(grant) = &grant {
            let root = &self.config.store.root;
            if !grant.receive.is_within(root) {
                let text = format!(
                    "{} is not within {root}, where this node's store works",
                    grant.receive
                );
                return Err(Failure::refused(FailureCode::BadRequest, text));
            }
        }
        let fingerprint = find_peer(&self.peers, peer)?;
        let Some(known) = self.peers.get_mut(&fingerprint) else {
            unreachable!("just found");
        };
        known.record.grant = grant;
        let change = JournalChange::PutPeer(known.record.clone());
        self.out.effects.push_back(Effect::Persist(vec![change]));
        Ok(())
    }

    fn remove_peer(&mut self, now: Now, peer: &str) -> Result<(), Failure> {
        let fingerprint = find_peer(&self.peers, peer)?;
        let needs = |u: &&Unit| {
            u.record.standbys.contains(&fingerprint)
                || match u.record.role {
                    Role::Following { source } | Role::Ready { source, .. } => {
                        source == fingerprint
                    }
                    Role::Leaving { target, .. } | Role::HandedOver { target, .. } => {
                        target == fingerprint
                    }
                    Role::Serving => false,
                }
        };
        let names: Vec<_> =
            self.units.values().filter(needs).map(|u| u.record.name.clone()).collect();
        if !names.is_empty() {
            let text = format!(
                "{peer} is needed by {}: run `flocker-repl unprotect` for each first",
                names.join(", ")
            );
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        self.peer_down(now, fingerprint);
        self.peers.remove(&fingerprint);
        let change = JournalChange::DeletePeer(fingerprint);
        self.out.effects.push_back(Effect::Persist(vec![change]));
        self.peers_changed();
        Ok(())
    }

    fn set_paused(&mut self, now: Now, name: &str, paused: bool) -> Result<(), Failure> {
        let unit = find(&mut self.units, name)?;
        if !unit.record.role.is_primary() {
            let text = format!("{name} is not primary here; pause and resume it where it is");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        if unit.cutover.is_some() {
            let text = format!("{name} is being migrated; wait until it has ended");
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        unit.record.paused = paused;
        unit.persist(&mut ctx!(self, now));
        Ok(())
    }

    fn unprotect(&mut self, now: Now, request: RequestId, name: &str) -> Result<(), Failure> {
        let peers = &self.peers;
        let unit = find(&mut self.units, name)?;
        if unit.ending.is_some() {
            let text = format!("{name} is being let go already");
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        let keep_newest = match unit.record.role {
            Role::Serving if unit.cutover.is_none() => {
                if unit.fully_up() && unit.record.workload.as_ref().is_some_and(|w| w.wanted) {
                    let text = format!(
                        "{name} has a running workload; stop it first: flocker-repl stop {name}"
                    );
                    return Err(Failure::refused(FailureCode::Busy, text));
                }
                false
            }
            Role::Following { source } => {
                if peers.get(&source).is_some_and(|p| p.connected) {
                    let text = format!(
                        "{name} is a standby of {}; run `flocker-repl unprotect {name}` there",
                        peers.get(&source).map_or_else(String::new, |p| p.record.name.clone())
                    );
                    return Err(Failure::refused(FailureCode::BadRequest, text));
                }
                true
            }
            Role::Serving | Role::Leaving { .. } | Role::HandedOver { .. } | Role::Ready { .. } => {
                let text = format!("{name} is being migrated; wait until it has ended");
                return Err(Failure::refused(FailureCode::Busy, text));
            }
        };
        unit.end(&mut ctx!(self, now), Some(request), None, keep_newest);
        Ok(())
    }

    fn begin_protect(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
    ) -> Result<(), Failure> {
        let Command::Protect { unit, dataset, to, .. } = &command else {
            unreachable!("only called for it");
        };
        let peer = find_peer(&self.peers, to)?;
        if !self.peers.get(&peer).is_some_and(|p| p.connected) {
            let text = format!("{to} is not connected; is its daemon running and reachable?");
            return Err(Failure::refused(FailureCode::ConnectionLost, text));
        }
        if !dataset.is_within(&self.config.store.root) {
            let text = format!(
                "{dataset} is not within {}, where this node's store works",
                self.config.store.root
            );
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        let (unit, datasets) = (*unit, vec![dataset.clone()]);
        let op = Op::NodeProtect { request, command: Box::new(command) };
        ctx!(self, now).run(unit, op, Action::Inspect { datasets });
        Ok(())
    }

    fn protect_inspected(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) {
        if let Err(failure) = self.protect(now, request, command, outcome) {
            self.out.effects.push_back(Effect::Reply { request, reply: Err(failure) });
        }
    }

    fn protect(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let Command::Protect { unit, volume, dataset, to, name, policy } = command else {
            unreachable!("only called for it");
        };
        let peer = find_peer(&self.peers, &to)?;
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        let Some(Inspected { info: Some(info), mirror, .. }) = found.into_iter().next() else {
            return refuse(FailureCode::NotFound, format!("dataset {dataset} does not exist"));
        };
        if let Some(existing) =
            self.units.values_mut().find(|u| u.record.volumes.iter().any(|v| v.dataset == dataset))
        {
            let mut ctx = ctx!(self, now);
            return existing.add_standby(&mut ctx, request, peer, policy);
        }
        if let Some(mirror) = mirror {
            let text = format!(
                "{dataset} says that it belongs to unit {}, which this node's journal does not know",
                mirror.unit
            );
            return refuse(FailureCode::Conflict, text);
        }
        let name = name.unwrap_or_else(|| dataset.leaf().to_owned());
        if let Err(e) = flocker_store::DatasetName::new(name.clone()) {
            return refuse(FailureCode::BadRequest, format!("a unit cannot be named so: {e}"));
        }
        if name.contains('/') {
            return refuse(FailureCode::BadRequest, "a unit's name has no `/`".into());
        }
        if self.units.values().any(|u| u.record.name == name) {
            return refuse(FailureCode::Exists, format!("there is a unit named {name} already"));
        }
        let attempt = AttemptId { issuer: self.config.fingerprint, number: 0 };
        let record = UnitRecord {
            id: unit,
            name,
            volumes: vec![VolumeRecord { id: volume, dataset, kind: info.kind }],
            policy,
            epoch: Epoch { number: 1, owner: self.config.fingerprint, attempt },
            role: Role::Serving,
            standbys: vec![peer],
            workload: None,
            own: true,
            paused: false,
            start_alone: false,
            last_attempt: 0,
            refused_up_to: BTreeMap::new(),
            taken: Vec::new(),
        };
        self.serve_new(now, record, request, peer);
        Ok(())
    }

    fn serve_new(&mut self, now: Now, record: UnitRecord, request: RequestId, peer: Fingerprint) {
        let mut unit = Unit::new(record);
        let mut ctx = ctx!(self, now);
        unit.persist(&mut ctx);
        unit.upkeep.mirror_due = true;
        unit.work = crate::service::Work::Stopped;
        unit.activate(&mut ctx);
        unit.expect_protection(&ctx, request, peer);
        self.units.insert(unit.id(), unit);
    }

    // ---- status -------------------------------------------------------------------------------

    /// A picture of this node.
    pub fn status(&self, now: Now) -> NodeStatus {
        let mut units: Vec<_> = self.units.values().map(|u| u.status(now, &self.peers)).collect();
        units.sort_by(|a, b| a.name.cmp(&b.name));
        let peers = self.peers.values();
        NodeStatus {
            fingerprint: self.config.fingerprint,
            incarnation: self.config.incarnation,
            peers: peers
                .map(|p| PeerStatus { record: p.record.clone(), connected: p.connected })
                .collect(),
            units,
            orphans: self.orphans.keys().map(ToString::to_string).collect(),
        }
    }
}

fn find<'a>(units: &'a mut BTreeMap<UnitId, Unit>, name: &str) -> Result<&'a mut Unit, Failure> {
    let known: Vec<_> = units.values().map(|u| u.record.name.clone()).collect();
    let found = units.values_mut().find(|u| u.record.name == name && u.ending.is_none());
    found.ok_or_else(|| {
        let text = match known.as_slice() {
            [] => format!("there is no unit named {name}; none is protected here yet"),
            _ => format!("there is no unit named {name}; there are: {}", known.join(", ")),
        };
        Failure::refused(FailureCode::NotFound, text)
    })
}

fn find_peer(peers: &BTreeMap<Fingerprint, Peer>, text: &str) -> Result<Fingerprint, Failure> {
    if let Ok(fingerprint) = text.parse::<Fingerprint>()
        && peers.contains_key(&fingerprint)
    {
        return Ok(fingerprint);
    }
    if let Some(peer) = peers.values().find(|p| p.record.name == text) {
        return Ok(peer.record.fingerprint);
    }
    let names: Vec<_> = peers.values().map(|p| p.record.name.as_str()).collect();
    let text = match names.as_slice() {
        [] => format!("{text} is not paired with this node; run `flocker-repl pair` first"),
        _ => format!("{text} is not paired with this node; peers: {}", names.join(", ")),
    };
    Err(Failure::refused(FailureCode::NotFound, text))
}

/// Where the volumes of a unit that a peer introduces would be kept.
fn intro_datasets(
    ctx: &Ctx,
    peer: Fingerprint,
    name: &str,
    volumes: &[VolumeIntro],
) -> Result<Vec<flocker_store::DatasetName>, Failure> {
    standby::check_intro(ctx, peer, false, volumes)?;
    let bad = |text: &str| Err(Failure::refused(FailureCode::BadRequest, text));
    if name.contains('/') || volumes.is_empty() {
        return bad("a unit has a name without `/` and at least one volume");
    }
    let Some(grant) = standby::grant_of(ctx, peer) else {
        return bad("nothing is granted");
    };
    let count = volumes.len();
    volumes.iter().map(|v| standby::replica_dataset(&grant, name, count, &v.leaf)).collect()
}

/// Whether a replica may be kept at `dataset`: it is free, or held by this very unit before.
fn check_place(
    found: &Inspected,
    dataset: &flocker_store::DatasetName,
    message: &Message,
) -> Result<(), Failure> {
    if found.info.is_none() {
        return Ok(());
    }
    match &found.mirror {
        Some(mirror) if mirror.unit == message.unit => {
            if mirror.epoch.number > message.epoch.number {
                let text = format!(
                    "{dataset} was last known in epoch {}, which is newer than {}",
                    mirror.epoch.number, message.epoch.number
                );
                return Err(Failure::refused(FailureCode::Conflict, text));
            }
            Ok(())
        }
        _ => {
            let text = format!(
                "{dataset} exists on the standby and is no replica of this unit; protect with \
                 another --name, or rename it there"
            );
            Err(Failure::refused(FailureCode::Exists, text))
        }
    }
}

impl Unit {
    /// `protect` is answered when the standby has.
    fn expect_protection(&mut self, ctx: &Ctx, request: RequestId, peer: Fingerprint) {
        let mut replica = Replica::new(peer);
        replica.protect_request = Some(request);
        replica.protect_since = ctx.now.mono_ms;
        replica.up();
        self.replicas.insert(peer, replica);
    }

    fn add_standby(
        &mut self,
        ctx: &mut Ctx,
        request: RequestId,
        peer: Fingerprint,
        policy: Policy,
    ) -> Result<(), Failure> {
        let name = self.record.name.clone();
        if self.record.role != Role::Serving {
            let text = format!("{name} is not primary here; protect it where it is");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        if self.record.standbys.contains(&peer) {
            // Already protected: the promise may have changed.
            self.record.policy = policy;
            self.persist(ctx);
            let unit = self.record.id;
            ctx.reply(request, Ok(Reply::Protected { name, unit }));
            return Ok(());
        }
        self.record.standbys.push(peer);
        self.persist(ctx);
        self.expect_protection(ctx, request, peer);
        Ok(())
    }

    fn status(&self, now: Now, peers: &BTreeMap<Fingerprint, Peer>) -> UnitStatus {
        let role = match self.record.role {
            Role::Serving | Role::Leaving { .. } => "primary",
            Role::HandedOver { .. } => "handed-over",
            Role::Following { .. } | Role::Ready { .. } => "standby",
        };
        let lag = |wall: i64| u64::try_from(now.wall_ms - wall).unwrap_or(0);
        UnitStatus {
            name: self.record.name.clone(),
            id: self.record.id,
            role: role.into(),
            epoch: self.record.epoch,
            doing: self.doing(),
            volumes: self.record.volumes.clone(),
            policy: self.record.policy,
            paused: self.record.paused,
            workload: self.record.workload.clone(),
            workload_state: self.workload_word(),
            lag_ms: (self.record.role.is_standby())
                .then(|| self.standby.equal_wall_ms.map(lag))
                .flatten(),
            standbys: self.replicas.values().map(|r| self.standby_status(now, r, peers)).collect(),
            alarm: self.alarm.clone(),
        }
    }

    fn standby_status(
        &self,
        now: Now,
        replica: &Replica,
        peers: &BTreeMap<Fingerprint, Peer>,
    ) -> StandbyStatus {
        let peer = peers.get(&replica.peer);
        let lag_ms = replica.lag_ms(now);
        let last = replica.last.as_ref();
        let rate = last.and_then(|r| (r.stream_bytes * 1000).checked_div(r.duration_ms));
        StandbyStatus {
            peer: replica.peer,
            name: peer.map_or_else(|| replica.peer.short(), |p| p.record.name.clone()),
            connected: peer.is_some_and(|p| p.connected),
            doing: replica.doing(),
            lag_ms,
            within_rpo: lag_ms.is_some_and(|l| l <= self.record.policy.rpo_ms()),
            rounds: replica.rounds,
            stream_bytes: replica.stream_bytes,
            wire_bytes: replica.wire_bytes,
            bytes_per_second: rate,
            last_round_ms: last.map(|r| r.duration_ms),
            backlog: self.backlog(replica),
            failure: replica.failure.clone(),
        }
    }
}
