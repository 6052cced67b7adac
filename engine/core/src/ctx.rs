//! What the machines may reach besides their own state: the moment, the node, and the way out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flocker_store::{DatasetName, Guid};

use crate::Failure;
use crate::ids::{Fingerprint, Now, OpId, QuestionId, RequestId, TransferId, UnitId};
use crate::io::{Action, Effect, Event, EventKind, Reply};
use crate::message::Message;
use crate::node::{NodeConfig, Peer};
use crate::unit::Op;

/// Where effects are queued, and what was handed out and not answered yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Out {
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) ops: BTreeMap<OpId, (UnitId, Op)>,
    pub(crate) transfers: BTreeMap<TransferId, UnitId>,
    /// Origins of clones that are on their way to a standby, by the unit whose snapshots they are.
    pub(crate) coming: BTreeSet<(Fingerprint, Guid)>,
    /// Volumes of all units that follow the peer whose offer is being handled.
    pub(crate) followed: Vec<DatasetName>,
    next_op: u64,
    next_transfer: u64,
    next_question: u64,
}

/// One input being handled.
pub(crate) struct Ctx<'a> {
    pub(crate) now: Now,
    pub(crate) config: &'a NodeConfig,
    pub(crate) peers: &'a BTreeMap<Fingerprint, Peer>,
    pub(crate) out: &'a mut Out,
}

impl Ctx<'_> {
    /// Hands out an action.
    pub(crate) fn run(&mut self, unit: UnitId, op: Op, action: Action) -> OpId {
        self.out.next_op += 1;
        let id = OpId(self.out.next_op);
        self.out.ops.insert(id, (unit, op));
        self.out.effects.push_back(Effect::Run { op: id, unit, action });
        id
    }

    /// Names a transfer that this node sends.
    pub(crate) fn new_transfer(&mut self) -> TransferId {
        self.out.next_transfer += 1;
        TransferId { boot: self.config.boot, number: self.out.next_transfer }
    }

    /// Names a question that this node asks.
    pub(crate) fn new_question(&mut self) -> QuestionId {
        self.out.next_question += 1;
        QuestionId { boot: self.config.boot, number: self.out.next_question }
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.out.effects.push_back(effect);
    }

    pub(crate) fn send(&mut self, peer: Fingerprint, message: Message) {
        self.push(Effect::Send { peer, message });
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: Result<Reply, Failure>) {
        self.push(Effect::Reply { request, reply });
    }

    pub(crate) fn report(&mut self, unit: UnitId, name: &str, kind: EventKind) {
        self.push(Effect::Report(Event { unit: Some(unit), name: Some(name.to_owned()), kind }));
    }

    pub(crate) fn connected(&self, peer: Fingerprint) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.connected)
    }

    /// What a peer calls itself, for messages.
    pub(crate) fn peer_name(&self, peer: Fingerprint) -> String {
        match self.peers.get(&peer) {
            Some(p) => p.record.name.clone(),
            None => peer.short(),
        }
    }
}
