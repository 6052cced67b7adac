//! The node's one loop: an input in, its effects out, one after the other. It alone owns the core.
//!
//! Owns: the order of effects, and the rule that nothing is begun before what it rests on is
//! durable. Leaves to others: doing what takes time (`ops`, `transfer`); bulk bytes never come here.
//!
//! A journal that cannot be written ends the process with [`EXIT_JOURNAL`]: what was decided is not
//! known to be durable, so nothing may follow from it. The next start reads what is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use flocker_core::ids::{Fingerprint, RequestId};
use flocker_core::io::Event;
use flocker_core::node::UnitAccount;
use flocker_core::record::{JournalChange, PeerRecord};
use flocker_core::status::NodeStatus;
use flocker_core::{Command, Effect, EventKind, Failure, Input, Node, Reply};
use flocker_transport::{ControlError, PeerManager, TrustSet};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::failpoint;
use crate::hub::Hub;
use crate::journal::Journal;
use crate::network::forward::Forwards;
use crate::ops::Ops;
use crate::transfer::Transfers;

/// Exit status of a daemon whose journal could not be written (`EX_IOERR` of sysexits.h).
pub const EXIT_JOURNAL: i32 = 74;

/// Inputs that may wait for the loop before what peers say waits outside. The queue itself has no
/// bound, since the loop puts ends of transfers into it; those are bounded by their own number.
pub(crate) const QUEUE: usize = 4096;

/// Longest wait of the loop; the watchdog of actions runs at least this often.
const IDLE: Duration = Duration::from_secs(5);

/// Shortest wait: a timer that is always due costs a tick a millisecond, not a whole core.
const SHORTEST: Duration = Duration::from_millis(1);

/// Where a person's answer goes.
type Answer = oneshot::Sender<Result<Reply, Failure>>;

/// What reaches the loop.
pub(crate) enum Turn {
    /// For the core.
    Input(Input),
    /// A person's wish, and where its answer goes.
    Command(Command, Answer),
    /// How are things?
    Status(oneshot::Sender<NodeStatus>),
    /// What do the units account for?
    Accounts(oneshot::Sender<Vec<UnitAccount>>),
    /// The end.
    Stop,
}

/// The connections, as far as the loop needs them.
pub(crate) struct Peers {
    pub(crate) manager: PeerManager,
    pub(crate) trust: Arc<TrustSet>,
    pub(crate) known: BTreeMap<Fingerprint, Vec<String>>,
}

impl Peers {
    /// Trusts and dials these peers, and no others.
    pub(crate) fn set(&mut self, peers: &[PeerRecord]) {
        let wanted: BTreeMap<Fingerprint, Vec<String>> =
            peers.iter().map(|peer| (peer.fingerprint, peer.addresses.clone())).collect();
        for gone in self.known.keys().filter(|peer| !wanted.contains_key(peer)) {
            self.trust.remove(gone);
            self.manager.remove_peer(gone);
            self.manager.resources().dedup().forget(gone);
        }
        for peer in peers {
            // What came under one grant may not serve another.
            let root = peer.grant.as_ref().map(|grant| grant.receive.to_string());
            let dedup = self.manager.resources().dedup();
            dedup.set_grant(peer.fingerprint, root.as_deref().unwrap_or_default());
        }
        for (peer, addresses) in &wanted {
            self.trust.insert(*peer);
            if self.known.get(peer) != Some(addresses) {
                self.manager.set_peer(*peer, addresses.clone());
            }
        }
        self.known = wanted;
    }
}

/// Everything the loop works with.
pub(crate) struct Loop {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) journal: Arc<Journal>,
    pub(crate) peers: Peers,
    pub(crate) ops: Ops,
    pub(crate) transfers: Transfers,
    pub(crate) hub: Hub,
    pub(crate) forwards: Forwards,
    pub(crate) pending: BTreeMap<RequestId, Answer>,
    pub(crate) last_request: u64,
}

/// The sender's end of the loop's queue.
pub(crate) type Turns = Sender<Turn>;

impl Loop {
    /// Runs until it is told to stop, or nobody can tell it anything any more.
    pub(crate) fn run(mut self, turns: &Receiver<Turn>) {
        let mut watched = Instant::now();
        self.perform();
        loop {
            let wait = self
                .node
                .poll_timeout()
                .map_or(IDLE, |at| self.clock.until(at).clamp(SHORTEST, IDLE));
            match turns.recv_timeout(wait) {
                Ok(Turn::Input(input)) => self.input(input),
                Ok(Turn::Command(command, answer)) => self.command(command, answer),
                Ok(Turn::Status(answer)) => {
                    // Whoever asked may have gone away.
                    let _ = answer.send(self.node.status(self.clock.now()));
                }
                Ok(Turn::Accounts(answer)) => drop(answer.send(self.node.accounts())),
                Ok(Turn::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.input(Input::Tick),
            }
            // A queue that is never empty may not keep time from going on.
            let late = self.node.poll_timeout().is_some_and(|at| at < self.clock.uptime_ms());
            if late {
                self.input(Input::Tick);
            }
            if watched.elapsed() >= IDLE {
                watched = Instant::now();
                self.ops.watch();
                self.transfers.watch();
            }
        }
    }

    fn input(&mut self, input: Input) {
        if let Input::PeerDown { peer } = &input {
            self.transfers.peer_lost(peer);
        }
        self.forwards.note_input(&input);
        self.node.handle(self.clock.now(), input);
        self.perform();
    }

    fn command(&mut self, command: Command, answer: Answer) {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.pending.insert(request, answer);
        self.input(Input::Command { request, command });
    }

    /// Performs every effect, in order. Changes of the journal that follow each other with nothing
    /// in between are one transaction.
    fn perform(&mut self) {
        let mut changes: Vec<JournalChange> = Vec::new();
        while let Some(effect) = self.node.poll_effect() {
            match effect {
                Effect::Persist(more) => changes.extend(more),
                other => {
                    self.persist(&mut changes);
                    self.effect(other);
                }
            }
        }
        self.persist(&mut changes);
    }

    fn persist(&mut self, changes: &mut Vec<JournalChange>) {
        if changes.is_empty() {
            return;
        }
        pass_failpoints("before-persist", changes);
        let begun = Instant::now();
        if let Err(error) = self.journal.apply(changes) {
            tracing::error!(%error, "the journal could not be written: this process ends");
            std::process::exit(EXIT_JOURNAL);
        }
        metrics::histogram!("flocker_repl_persist_seconds").record(begun.elapsed().as_secs_f64());
        pass_failpoints("after-persist", changes);
        self.hub.note_changes(changes);
        self.forwards.note_changes(changes);
        changes.clear();
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) => unreachable!("collected by the caller"),
            Effect::Send { peer, message } => self.send(peer, &message),
            Effect::Run { op, unit, action } => {
                self.forwards.note_action(op, unit, &action);
                self.ops.run(op, unit, action);
            }
            Effect::StartSend { transfer, peer, unit, spec, last } => {
                self.transfers.start_send(transfer, peer, unit, spec, last)
            }
            Effect::StartReceive { transfer, peer, unit, spec, limit_bytes } => {
                self.transfers.expect(transfer, peer, unit, spec, limit_bytes)
            }
            Effect::Lease { unit, until_ms } => {
                let until = until_ms.map(|until| self.clock.deadline(until));
                if let Err(error) = self.ops.tools().programs.processes.lease(unit, until) {
                    // The deadline before holds: the workload ends too early rather than too late.
                    tracing::error!(unit = %unit.short(), %error, "a lease cannot be written down");
                }
            }
            Effect::CancelTransfer { transfer } => self.transfers.cancel(transfer),
            Effect::Reply { request, reply } => {
                if let Some(answer) = self.pending.remove(&request) {
                    self.reply(answer, reply);
                }
            }
            Effect::PeersChanged(peers) => self.peers.set(&peers),
            Effect::Report(event) => {
                let phase = match &event.kind {
                    EventKind::Phase { phase, .. } => Some(phase.clone()),
                    _ => None,
                };
                self.report(event);
                if let Some(phase) = phase {
                    failpoint::pass(|| format!("phase:{phase}"));
                }
            }
        }
    }

    /// A person's answer; that of a migration also says what its clients felt, as soon as it is known.
    fn reply(&self, answer: Answer, reply: Result<Reply, Failure>) {
        // Whoever asked may have gone away.
        match reply {
            Ok(Reply::Migrated(mut report)) => {
                let name = report.name.clone();
                self.forwards.when_felt(&name, move |clients| {
                    report.clients = clients;
                    let _ = answer.send(Ok(Reply::Migrated(report)));
                });
            }
            other => drop(answer.send(other)),
        }
    }

    /// The same for an event. What is asked later is told later: the event comes before its answer.
    fn report(&self, event: Event) {
        self.forwards.note_event(&event);
        let Event { unit, name, kind } = event;
        match kind {
            EventKind::Migrated(mut report) => {
                let hub = self.hub.clone();
                let of = report.name.clone();
                self.forwards.when_felt(&of, move |clients| {
                    report.clients = clients;
                    hub.event(Event { unit, name, kind: EventKind::Migrated(report) });
                });
            }
            kind => self.hub.event(Event { unit, name, kind }),
        }
    }

    fn send(&self, peer: Fingerprint, message: &flocker_core::Message) {
        let payload = match postcard::to_stdvec(message) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => panic!("a message of our own cannot be encoded: {error}"),
        };
        match self.peers.manager.try_send_control(&peer, payload) {
            Ok(()) | Err(ControlError::Down { .. }) => {}
            // The machines ask again: a lost message is no harm, a loop that waits would be.
            Err(error) => tracing::warn!(peer = %peer.short(), %error, "a message is lost"),
        }
    }
}

fn pass_failpoints(when: &str, changes: &[JournalChange]) {
    for change in changes {
        match change {
            JournalChange::PutUnit(unit) => {
                failpoint::pass(|| format!("{when}:{}", unit.role.word()));
            }
            JournalChange::DeleteUnit(_) => failpoint::pass(|| format!("{when}:deleted")),
            JournalChange::PutPeer(_) | JournalChange::DeletePeer(_) => {}
        }
    }
}
