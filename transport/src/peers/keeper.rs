//! The keeper: the one owner of which peers there are and which connection each has.
//!
//! Owns: one loop over commands, arrivals, finished dials, ended sessions and changes of trust. It never
//! waits for the engine to take events, so no call of the engine's can stop it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use flocker_core::ids::Fingerprint;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant, sleep};

use super::handle::SessionHandle;
use super::session::Session;
use super::{DownReason, Known, PeerEvent, dial};
use crate::bulk::Resources;
use crate::counters;
use crate::endpoint::{Arrival, CloseCode, Connection, Endpoint};
use crate::error::ConnectError;
use crate::frame::hello::{Call, RejectCode};
use crate::tcp::LaneArrival;
use crate::trust::Trust;

/// A session that lasted this long starts dialling afresh when it ends; a shorter one counts as a
/// failed round, so that two nodes that cannot agree do not spin.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Notes from dialling tasks and sessions that may wait; each peer has at most one of either.
const NOTES: usize = 64;

/// What the node asks of the keeper.
#[derive(Debug)]
pub(super) enum Command {
    Set { peer: Fingerprint, addresses: Vec<String> },
    Remove { peer: Fingerprint },
    Shutdown,
}

/// What the keeper's own tasks tell it.
#[derive(Debug)]
enum Note {
    Dialled { peer: Fingerprint, generation: u64, result: Box<Result<Connection, ConnectError>> },
    Ended { peer: Fingerprint, id: u64 },
}

/// What the keeper is made of.
pub(super) struct Parts {
    pub(super) endpoint: Endpoint,
    pub(super) resources: Arc<Resources>,
    pub(super) trust: Arc<dyn Trust>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) publish: watch::Sender<BTreeMap<Fingerprint, SessionHandle>>,
    pub(super) status: Arc<Mutex<BTreeMap<Fingerprint, Known>>>,
}

/// A configured peer.
#[derive(Debug)]
struct Target {
    addresses: Vec<String>,
    /// Failed rounds since it was last stable.
    round: u32,
    /// Counts changes of the addresses, so that a dial of before is known.
    generation: u64,
    dialling: Option<AbortHandle>,
}

/// A peer's connection, and the one that follows it.
#[derive(Debug)]
struct Running {
    handle: SessionHandle,
    since: Instant,
    /// Starts when the present one has said its `Down`.
    next: Option<Connection>,
}

pub(super) struct Keeper {
    parts: Parts,
    targets: BTreeMap<Fingerprint, Target>,
    running: BTreeMap<Fingerprint, Running>,
    next_id: u64,
    notes: mpsc::Sender<Note>,
    inbox: mpsc::Receiver<Note>,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        let (notes, inbox) = mpsc::channel(NOTES);
        let (targets, running) = (BTreeMap::new(), BTreeMap::new());
        Self { parts, targets, running, next_id: 0, notes, inbox }
    }

    pub(super) async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Command>,
        mut arrivals: mpsc::Receiver<Arrival>,
    ) {
        let mut trust = self.parts.trust.changes();
        let mut watching = true;
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Set { peer, addresses }) => self.set(peer, addresses),
                    Some(Command::Remove { peer }) => self.remove(&peer),
                    Some(Command::Shutdown) | None => break,
                },
                arrival = arrivals.recv() => match arrival {
                    Some(Arrival::Connected(connection)) => self.connected(connection),
                    Some(Arrival::Refused(refused)) => self.mention(PeerEvent::Refused(refused)),
                    Some(Arrival::Lane(lane)) => self.lane(*lane),
                    None => break,
                },
                Some(note) = self.inbox.recv() => match note {
                    Note::Dialled { peer, generation, result } => {
                        self.dialled(peer, generation, *result);
                    }
                    Note::Ended { peer, id } => self.ended(peer, id),
                },
                // A source of trust that was dropped changes no more.
                changed = trust.changed(), if watching => match changed {
                    Ok(()) => self.ask_trust_again(),
                    Err(_) => watching = false,
                },
            }
            self.check_invariants();
        }
        self.stop();
    }

    /// True after every input, whatever it was.
    fn check_invariants(&self) {
        for (peer, target) in &self.targets {
            let waits = target.dialling.is_some() || self.running.contains_key(peer);
            let idle = target.addresses.is_empty() || !self.parts.trust.is_trusted(peer);
            // Trust may have changed since it was asked, then the change is the next input.
            debug_assert!(waits || idle || self.parts.trust.changes().has_changed().is_ok());
        }
        debug_assert_eq!(self.parts.publish.borrow().len(), self.running.len());
    }

    fn set(&mut self, peer: Fingerprint, addresses: Vec<String>) {
        let known = Known { addresses: addresses.clone(), last_error: None };
        self.status(|status| drop(status.insert(peer, known)));
        match self.targets.get_mut(&peer) {
            Some(target) if target.addresses == addresses => {}
            Some(target) => {
                if let Some(task) = target.dialling.take() {
                    task.abort();
                }
                target.generation += 1;
                (target.addresses, target.round) = (addresses, 0);
            }
            None => {
                let target = Target { addresses, round: 0, generation: 0, dialling: None };
                self.targets.insert(peer, target);
            }
        }
        self.dial(&peer);
    }

    fn remove(&mut self, peer: &Fingerprint) {
        self.status(|status| drop(status.remove(peer)));
        if let Some(Target { dialling: Some(task), .. }) = self.targets.remove(peer) {
            task.abort();
        }
        self.close(peer, CloseCode::NotPaired, &DownReason::Unpaired);
    }

    fn close(&mut self, peer: &Fingerprint, code: CloseCode, reason: &DownReason) {
        if let Some(running) = self.running.get_mut(peer) {
            running.handle.close(code, reason.clone());
            if let Some(next) = running.next.take() {
                next.close(code, &reason.to_string());
            }
        }
    }

    fn status(&self, change: impl FnOnce(&mut BTreeMap<Fingerprint, Known>)) {
        change(&mut self.parts.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells the engine something that it can do without when it has no time.
    fn mention(&self, event: PeerEvent) {
        if self.parts.events.try_send(event).is_err() {
            tracing::debug!("an event about dialling was left out, the engine is busy");
        }
    }

    /// Starts dialling a peer that should be dialled and is not.
    fn dial(&mut self, peer: &Fingerprint) {
        let Some(target) = self.targets.get_mut(peer) else { return };
        let idle = target.dialling.is_none() && !self.running.contains_key(peer);
        if !idle || target.addresses.is_empty() || !self.parts.trust.is_trusted(peer) {
            return;
        }
        let (peer, generation, addresses) = (*peer, target.generation, target.addresses.clone());
        let (endpoint, notes) = (self.parts.endpoint.clone(), self.notes.clone());
        let wait = dial::wait_before(target.round, &endpoint.fingerprint(), &peer);
        let task = tokio::spawn(async move {
            sleep(wait).await;
            let result = Box::new(dial::dial(&endpoint, peer, &addresses).await);
            // Without a keeper there is nobody to connect for; dropping the connection closes it.
            let _ = notes.send(Note::Dialled { peer, generation, result }).await;
        });
        target.dialling = Some(task.abort_handle());
    }

    fn dialled(
        &mut self,
        peer: Fingerprint,
        generation: u64,
        result: Result<Connection, ConnectError>,
    ) {
        let current = self.targets.get_mut(&peer).filter(|t| t.generation == generation);
        let Some(target) = current else {
            if let Ok(connection) = result {
                connection
                    .close(CloseCode::NotPaired, "the peer was removed or its address changed");
            }
            return;
        };
        target.dialling = None;
        match result {
            Ok(connection) => self.connected(connection),
            Err(error) => self.dial_failed(peer, error),
        }
        self.dial(&peer);
    }

    fn dial_failed(&mut self, peer: Fingerprint, error: ConnectError) {
        metrics::counter!(counters::DIALS_FAILED).increment(1);
        if let Some(target) = self.targets.get_mut(&peer) {
            target.round = target.round.saturating_add(1);
        }
        let mut news = false;
        self.status(|status| {
            if let Some(known) = status.get_mut(&peer) {
                let before = known.last_error.replace(error.clone());
                news = before.is_none_or(|b| b.to_string() != error.to_string());
            }
        });
        if news && !self.running.contains_key(&peer) {
            self.mention(PeerEvent::DialFailed { peer, error });
        }
    }

    /// A greeted connection, by either side's dialling: it starts, follows the present one, or goes.
    fn connected(&mut self, connection: Connection) {
        let peer = connection.peer.fingerprint;
        if !self.parts.trust.is_trusted(&peer) {
            return connection.close(CloseCode::NotPaired, "not paired any more");
        }
        if connection.call == Call::Continues {
            return match self.running.get(&peer).filter(|running| running.next.is_none()) {
                Some(running) => running.handle.go_on(connection),
                None => connection.close(CloseCode::Duplicate, "there is no session to go on with"),
            };
        }
        let ours = self.parts.endpoint.fingerprint();
        let Some(running) = self.running.get_mut(&peer) else {
            return self.start(connection);
        };
        let latest = running
            .next
            .as_ref()
            .map_or((running.handle.dialled, running.handle.peer.incarnation), |next| {
                (next.dialled, next.peer.incarnation)
            });
        if !takes_over(latest, (connection.dialled, connection.peer.incarnation), ours < peer) {
            return connection.close(CloseCode::Duplicate, "another connection stays");
        }
        running.handle.close(CloseCode::Duplicate, DownReason::Replaced);
        if let Some(skipped) = running.next.replace(connection) {
            skipped.close(CloseCode::Duplicate, "another connection stays");
        }
    }

    /// A lane belongs to the present connection of the two, or to none.
    fn lane(&mut self, lane: LaneArrival) {
        let local = self.parts.endpoint.local();
        let running = self.running.get(&lane.peer).filter(|running| {
            let pair = (running.handle.peer.incarnation, local.incarnation);
            pair == (lane.open.dialler, lane.open.acceptor)
        });
        match running {
            Some(running) => running.handle.attach(lane, local),
            None => lane.refuse(local, RejectCode::Other, "the two are not connected"),
        }
    }

    fn start(&mut self, connection: Connection) {
        let peer = connection.peer.fingerprint;
        let id = self.next_id;
        self.next_id += 1;
        let Parts { events, resources, publish, endpoint, .. } = &self.parts;
        let (events, resources) = (events.clone(), Arc::clone(resources));
        let (session, handle) = Session::new(id, connection, events, resources, endpoint.clone());
        publish.send_modify(|map| drop(map.insert(peer, handle.clone())));
        self.status(|status| {
            if let Some(known) = status.get_mut(&peer) {
                known.last_error = None;
            }
        });
        self.running.insert(peer, Running { handle, since: Instant::now(), next: None });
        let notes = self.notes.clone();
        tokio::spawn(async move {
            session.run().await;
            let _ = notes.send(Note::Ended { peer, id }).await;
        });
    }

    fn ended(&mut self, peer: Fingerprint, id: u64) {
        let Some(running) = self.running.get(&peer).filter(|r| r.handle.id == id) else { return };
        let stable = running.since.elapsed() >= STABLE_AFTER;
        let next = self.running.remove(&peer).and_then(|r| r.next);
        self.parts.publish.send_modify(|map| drop(map.remove(&peer)));
        if let Some(target) = self.targets.get_mut(&peer) {
            target.round = if stable { 1 } else { target.round.saturating_add(1) };
        }
        match next {
            Some(next) => self.connected(next),
            None => self.dial(&peer),
        }
        self.dial(&peer);
    }

    fn ask_trust_again(&mut self) {
        let gone: Vec<_> =
            self.running.keys().filter(|p| !self.parts.trust.is_trusted(p)).copied().collect();
        for peer in gone {
            self.close(&peer, CloseCode::NotPaired, &DownReason::Unpaired);
        }
        for peer in self.targets.keys().copied().collect::<Vec<_>>() {
            self.dial(&peer);
        }
    }

    fn stop(&mut self) {
        for target in self.targets.values_mut() {
            if let Some(task) = target.dialling.take() {
                task.abort();
            }
        }
        for peer in self.running.keys().copied().collect::<Vec<_>>() {
            self.close(&peer, CloseCode::Shutdown, &DownReason::Shutdown);
        }
        self.parts.publish.send_replace(BTreeMap::new());
        // Also where the handle was just dropped: nobody takes what would still arrive.
        self.parts.endpoint.shut(&DownReason::Shutdown.to_string());
    }
}

/// Whether a new connection takes the place of the latest one. Each is (dialled by us, the peer's
/// incarnation); `we_are_smaller` compares fingerprints. Both sides come to the same answer:
/// * a peer that restarted has lost the old one;
/// * a side that dials again has lost the one it dialled before;
/// * of one by each side, the one that the smaller fingerprint dialled stays.
fn takes_over(latest: (bool, u64), new: (bool, u64), we_are_smaller: bool) -> bool {
    let ((latest_dialled, latest_life), (new_dialled, new_life)) = (latest, new);
    latest_life != new_life || latest_dialled == new_dialled || new_dialled == we_are_smaller
}

#[cfg(test)]
mod tests {
    use super::takes_over;

    #[test]
    fn when_both_dial_at_once_both_keep_the_one_of_the_smaller_fingerprint() {
        // On the smaller side its own dial is `dialled`; on the larger side it is not.
        assert!(takes_over((false, 1), (true, 1), true));
        assert!(!takes_over((true, 1), (false, 1), true));
        assert!(takes_over((true, 1), (false, 1), false));
        assert!(!takes_over((false, 1), (true, 1), false));
    }

    #[test]
    fn a_restarted_or_redialling_peer_takes_over_its_old_connection() {
        assert!(takes_over((true, 1), (false, 2), true), "restarted");
        assert!(takes_over((false, 1), (false, 1), true), "dialled again");
    }
}
