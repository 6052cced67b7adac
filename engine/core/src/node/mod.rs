//! The node: peers, grants, and every unit's machine behind one entry.
//!
//! Owns: the set of units and peers, names, and the routing of inputs. Leaves to others: what a
//! unit does (`unit` and its machines). The contract with whoever performs the effects is in
//! [`crate::io`].

/// Borrows the node's parts for a unit's machine.
macro_rules! ctx {
    ($node:expr, $now:expr) => {
        Ctx { now: $now, config: &$node.config, peers: &$node.peers, out: &mut $node.out }
    };
}

mod accounts;
mod adoptions;
mod commands;
mod extend;
mod introductions;
mod picture;

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::Guid;

use crate::ctx::{Ctx, Out};
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Incarnation, Now, UnitId};
use crate::io::{Action, Boot, Effect, Event, EventKind, Input, StoreFacts};
use crate::message::{Body, Carried, Message};
use crate::record::{Mirror, PeerRecord};
use crate::unit::{Op, Unit};

use introductions::intro_datasets;

pub(crate) use adoptions::Adopting;

pub use accounts::{SNAPSHOT_PREFIX, TAG_PREFIX, UnitAccount, VolumeAccount};
pub use commands::check_group;

/// A bug put in on purpose: the simulator must catch each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedBug {
    /// The source resumes when its commit stays unanswered.
    ResumeWithoutRefusal,
    /// A refusal from a target that lost its journal is believed.
    IgnoreIncarnation,
    /// The target takes an attempt that it has refused.
    ForgetTombstone,
    /// A commit that was said before this node's restart is taken like one said after it.
    SettleFromBeforeRestart,
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
    /// A start does not look whether the workload runs already.
    SecondWorkload,
    /// Messages of older epochs are believed.
    AcceptStaleEpoch,
    /// Holds are not taken off.
    LeakHold,
    /// A unit is handed back though its workload may have answered.
    HandBackAfterAnswer,
    /// A standby takes over without any proof.
    FailoverWithoutProof,
    /// A standby answers a claim while it takes over.
    AnswerClaimInFailover,
    /// A primary that cannot renew its lease goes on.
    LeaseNotStopped,
    /// A standby takes its lease for run out as soon as nobody renews it.
    LeaseTakenEarly,
    /// A migration is taken back after its commit.
    CancelAfterCommit,
    /// The number of an attempt that was taken back is used again.
    ReuseAttempt,
    /// A standby takes over while a receive is under way.
    FailoverKeepsReceiving,
    /// A failover says of an older moment what holds of the newest snapshot.
    ForetellTooLittle,
    /// A step is confirmed when it begins.
    ConfirmTooEarly,
    /// A round that failed is not tried again.
    RoundNotRetried,
    /// Of several who asked for one migration only the first is answered.
    AnswerFirstOnly,
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
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) record: PeerRecord,
    pub(crate) connected: bool,
}

/// The core of one node.
#[derive(Debug, Clone)]
pub struct Node {
    config: NodeConfig,
    peers: BTreeMap<Fingerprint, Peer>,
    units: BTreeMap<UnitId, Unit>,
    orphans: BTreeMap<flocker_store::DatasetName, Mirror>,
    out: Out,
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
            Input::TransferEnded { transfer, outcome, stream_bytes, wire_bytes, saved_bytes } => {
                let unit = self.out.transfers.remove(&transfer);
                if let Some(unit) = unit.and_then(|id| self.units.get_mut(&id)) {
                    let mut ctx = ctx!(self, now);
                    unit.handle_transfer_ended(
                        &mut ctx,
                        transfer,
                        outcome,
                        Carried { stream_bytes, wire_bytes, saved_bytes },
                    );
                }
            }
            Input::TransferStands { transfer, for_ms } => {
                let unit = self.out.transfers.get(&transfer);
                if let Some(unit) = unit.and_then(|id| self.units.get_mut(id)) {
                    unit.transfer_stands(&mut ctx!(self, now), transfer, for_ms);
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
        self.out.coming = self.coming_origins();
        for unit in self.units.values_mut() {
            let mut ctx = ctx!(self, now);
            unit.advance(&mut ctx);
        }
        self.check_invariants();
    }

    /// Which of the snapshots that clones wait for another unit is about to bring.
    fn coming_origins(&self) -> BTreeSet<(Fingerprint, Guid)> {
        let awaited = self.units.values().flat_map(|u| u.awaited_origins());
        let coming = awaited.filter(|(peer, o)| self.units.values().any(|u| u.brings(*peer, o)));
        coming.map(|(peer, origin)| (peer, origin.guid)).collect()
    }

    // ---- peers --------------------------------------------------------------------------------

    fn peer_up(&mut self, now: Now, peer: Fingerprint) {
        if self.peers.get(&peer).is_some_and(|known| known.connected) {
            // A new connection took the place of one that nobody said was gone, and with it
            // whatever was on its way.
            self.peer_down(now, peer);
        }
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
        if matches!(&message.body, Body::Offer(offer) if offer.clone) {
            let units = self.units.values().filter(|u| u.follows(peer));
            self.out.followed =
                units.flat_map(|u| u.record.volumes.iter().map(|v| v.dataset.clone())).collect();
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
        let adopting = self.is_adopting(message.unit);
        let looked_at = self.out.ops.values().any(|(_, op)| {
            matches!(op, Op::NodeIntro { peer: by, message: same } if *by == peer && **same == message)
        });
        let mut ctx = ctx!(self, now);
        match &message.body {
            // Asked again while it is being looked at: looks that pile up slow each other down beyond every limit.
            Body::Intro { .. } if looked_at => {}
            // While replicas are being taken over it has its answer coming.
            Body::Intro { .. } if adopting => {}
            Body::Intro { name, volumes, adoption, .. } => {
                let datasets = intro_datasets(&ctx, peer, name, volumes, adoption.as_ref());
                match datasets {
                    Ok(datasets) => {
                        let unit = message.unit;
                        let op = Op::NodeIntro { peer, message: Box::new(message) };
                        ctx.run(unit, op, Action::Inspect { datasets, streams: true });
                    }
                    Err(failure) => {
                        let body = Body::IntroReply(Err(failure));
                        ctx.send(peer, Message { body, ..message });
                    }
                }
            }
            Body::Claim { question, .. } => {
                // This journal was lost: what its datasets say may be newer, and may have been served.
                let forgotten = self.orphans.values().any(|m| {
                    m.unit == message.unit
                        && (m.epoch.number > message.epoch.number || m.state != "following")
                });
                if forgotten {
                    return;
                }
                let body = Body::ClaimReply { question: *question, known: false };
                ctx.send(peer, Message { body, ..message });
            }
            Body::Survey { .. }
            | Body::Offer(_)
            | Body::Equal { .. }
            | Body::Preflight { .. }
            | Body::Prepare { .. }
            | Body::Yield { .. }
            | Body::StepBack { .. }
            | Body::Lease { .. }
            | Body::Join { .. }
            | Body::Compare { .. }
            | Body::Settle { .. } => {
                ctx.send(peer, Message { body: Body::Unknown, ..message });
            }
            Body::IntroReply(_)
            | Body::JoinReply { .. }
            | Body::SurveyReply { .. }
            | Body::OfferReply { .. }
            | Body::StepReply { .. }
            | Body::PreflightReply { .. }
            | Body::PrepareReply { .. }
            | Body::SettleReply { .. }
            | Body::Confirm { .. }
            | Body::Abandon { .. }
            | Body::Activated { .. }
            | Body::ActivationFailed { .. }
            | Body::YieldRefused { .. }
            | Body::StepBackReply { .. }
            | Body::LeaseReply { .. }
            | Body::ClaimReply { .. }
            | Body::CompareReply { .. }
            | Body::Stale
            | Body::Unknown => {}
            Body::Drop => self.drop_adoption(peer, message.unit),
        }
    }
}
