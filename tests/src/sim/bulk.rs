//! Bulk transfers: a stream on its way from one store to another, which can break at any byte.
//!
//! Each side ends exactly once, and the two need not agree: the sender may have given every byte
//! away while the receiver fails at its commit, and the receiver may have committed while the
//! sender's last acknowledgement was lost.

use flocker_core::failure::Remedy;
use flocker_core::ids::{Fingerprint, TransferId, UnitId};
use flocker_core::{Action, Failure, FailureCode, Input};
use flocker_store::{Guid, SendBase, SendSpec, Snapshot, SnapshotName};

use super::check::Rule;
use super::host::index_of;
use super::store::Stream;
use super::world::{Ev, World};

/// One stream on its way.
#[derive(Debug)]
pub struct Bulk {
    /// The sending node.
    pub from: usize,
    /// The receiving node.
    pub to: usize,
    /// For which unit.
    pub unit: UnitId,
    /// What is sent; its base and its target may not be destroyed meanwhile.
    pub spec: SendSpec,
    /// What arrives.
    pub stream: Stream,
    /// The sender's life that sends it, while it does.
    pub sender: Option<u64>,
    /// The receiver's life that receives it, while it does.
    pub receiver: Option<u64>,
    /// The commit has begun: the link no longer matters to the receiver.
    pub whole: bool,
    /// The receiver has the snapshot: nobody needs the base any more.
    pub committed: bool,
}

fn lost(words: &str) -> Failure {
    Failure::new(Remedy::Retry, FailureCode::ConnectionLost, words.to_owned())
}

impl World {
    pub(super) fn start_send(
        &mut self,
        node: usize,
        transfer: TransferId,
        peer: Fingerprint,
        unit: UnitId,
        spec: SendSpec,
    ) {
        let Some(boot) = self.hosts[node].life.as_ref().map(|l| l.boot) else {
            return;
        };
        let stream = self.hosts[node].store.send(&spec);
        if stream.is_ok() && matches!(spec.from, Some(SendBase::Bookmark(_))) {
            self.coverage.fault("sent from a bookmark");
        }
        let to = index_of(peer).filter(|to| *to < self.hosts.len());
        let (stream, to) = match (stream, to) {
            (Ok(stream), Some(to)) => (stream, to),
            (Err(error), _) => {
                return self.end_soon(node, boot, transfer, Err(Failure::from(&error)), 0);
            }
            (Ok(_), None) => {
                return self.end_soon(node, boot, transfer, Err(lost("no such peer")), 0);
            }
        };
        let bulk = Bulk {
            from: node,
            to,
            unit,
            spec,
            stream,
            sender: Some(boot),
            receiver: None,
            whole: false,
            committed: false,
        };
        self.bulks.insert(transfer, bulk);
        let after = self.scenario.net.latency_ms + self.rng.range(1, 5);
        self.after(after, Ev::BulkArrive { transfer });
    }

    /// The first bytes reach the other side.
    pub(super) fn on_bulk_arrive(&mut self, transfer: TransferId) {
        let Some(bulk) = self.bulks.get(&transfer) else {
            return;
        };
        let (from, to) = (bulk.from, bulk.to);
        if !self.net.is_connected(from, to) {
            return self.break_bulk(transfer, "the connection was lost");
        }
        let bytes = bulk.stream.bytes;
        let stream = bulk.stream.clone();
        let Some(life) = &mut self.hosts[to].life else {
            return self.break_bulk(transfer, "the peer is gone");
        };
        let boot = life.boot;
        let busy_with: Vec<_> = life
            .expected
            .values()
            .filter(|e| e.streaming)
            .map(|e| e.spec.dataset.clone())
            .collect();
        let from_print = self.hosts[from].fingerprint;
        let Some(life) = &mut self.hosts[to].life else {
            return;
        };
        let Some(expected) = life.expected.get_mut(&transfer).filter(|e| e.peer == from_print)
        else {
            return self.break_bulk(transfer, "the peer does not expect this transfer");
        };
        if busy_with.contains(&expected.spec.dataset) {
            let text = format!("n{to} receives into {} twice at once", expected.spec.dataset);
            return self.violate(Rule::Contract, text);
        }
        expected.streaming = true;
        let (spec, limit) = (expected.spec.clone(), expected.limit_bytes);
        if let Err(error) = self.hosts[to].store.check_receive(&spec, &stream) {
            return self.refuse_bulk(transfer, Failure::from(&error));
        }
        if limit.is_some_and(|limit| bytes > limit) {
            let words = format!("the quota leaves {limit:?} bytes, the stream has {bytes}");
            let failure = Failure::new(Remedy::Operator, FailureCode::NotGranted, words);
            return self.refuse_bulk(transfer, failure);
        }
        self.hosts[to].store.begin_receive(&spec, &stream);
        if let Some(bulk) = self.bulks.get_mut(&transfer) {
            bulk.receiver = Some(boot);
            if stream.resumes.is_some() {
                self.coverage.fault("receive resumed");
            }
        }
        let takes_ms = 2 + bytes / self.scenario.net.bytes_per_ms + self.rng.range(0, 10);
        let breaks = !self.healing && self.rng.chance_ppm(self.scenario.net.bulk_break_ppm);
        if breaks {
            let at = self.rng.range(1, takes_ms);
            self.after(at, Ev::BulkBreak { transfer });
        }
        self.after(takes_ms, Ev::BulkWhole { transfer });
    }

    /// The last byte is there: the sender is done, the receiver commits.
    pub(super) fn on_bulk_whole(&mut self, transfer: TransferId) {
        let Some(bulk) = self.bulks.get_mut(&transfer) else {
            return;
        };
        let from = bulk.from;
        bulk.whole = true;
        let (sender, receiver) = (bulk.sender, bulk.receiver);
        if let Some(boot) = sender {
            let words = lost("the connection was lost before the last acknowledgement");
            let outcome = if !self.healing && self.rng.one_in(40) { Err(words) } else { Ok(None) };
            let after = self.rng.range(1, 20);
            self.after(
                after,
                Ev::SideEnds { node: from, boot, transfer, outcome: Box::new(outcome) },
            );
        }
        if receiver.is_some() {
            let after = self.rng.range(1, 40);
            self.after(after, Ev::BulkCommit { transfer });
        } else {
            self.forget_bulk_if_over(transfer);
        }
    }

    pub(super) fn on_bulk_commit(&mut self, transfer: TransferId) {
        let Some(outcome) = self.commit_bulk(transfer) else {
            return;
        };
        let Some(bulk) = self.bulks.get(&transfer) else {
            return;
        };
        let (to, receiver) = (bulk.to, bulk.receiver);
        if let Some(boot) = receiver {
            let after = self.rng.range(1, 10);
            self.after(
                after,
                Ev::SideEnds { node: to, boot, transfer, outcome: Box::new(outcome) },
            );
        }
    }

    /// Makes a whole stream durable, unless nobody receives it any more.
    pub(super) fn commit_bulk(
        &mut self,
        transfer: TransferId,
    ) -> Option<Result<Option<Snapshot>, Failure>> {
        let bulk = self.bulks.get(&transfer)?;
        let (to, boot, stream) = (bulk.to, bulk.receiver?, bulk.stream.clone());
        let spec = self.life_mut(to, boot)?.expected.get(&transfer)?.spec.clone();
        let live = self.hosts[to].store.datasets.get(&spec.dataset);
        if live.is_some_and(|d| d.can_be_written()) {
            let text = format!("n{to} receives a step into {}, which is live", spec.dataset);
            self.violate(Rule::Fenced, text);
            return None;
        }
        let store = &mut self.hosts[to].store;
        Some(match store.commit_receive(&spec, &stream) {
            Ok(snapshot) => {
                if let Some(bulk) = self.bulks.get_mut(&transfer) {
                    bulk.committed = true;
                }
                Ok(Some(snapshot))
            }
            Err(error) => Err(Failure::from(&error)),
        })
    }

    /// The receiver says no; the sender learns of a broken stream.
    fn refuse_bulk(&mut self, transfer: TransferId, failure: Failure) {
        let Some(bulk) = self.bulks.get(&transfer) else {
            return;
        };
        let (from, to, sender) = (bulk.from, bulk.to, bulk.sender);
        if let Some(boot) = self.hosts[to].life.as_ref().map(|l| l.boot) {
            self.end_soon(to, boot, transfer, Err(failure), 0);
        }
        if let Some(boot) = sender {
            self.end_soon(from, boot, transfer, Err(lost("the peer refused the stream")), 20);
        }
    }

    pub(super) fn on_bulk_break(&mut self, transfer: TransferId) {
        self.break_bulk(transfer, "the stream broke off");
    }

    /// Both sides see the stream end early, each in its time.
    fn break_bulk(&mut self, transfer: TransferId, words: &str) {
        let Some(bulk) = self.bulks.get(&transfer) else {
            return;
        };
        let (from, to, sender, receiver, whole) =
            (bulk.from, bulk.to, bulk.sender, bulk.receiver, bulk.whole);
        if let Some(unit) = self.bulks.get(&transfer).map(|b| b.unit) {
            self.coverage_hit("stream broken", unit);
        }
        let idle = if self.healing { 100 } else { self.scenario.net.idle_ms };
        if let Some(boot) = sender {
            let after = self.rng.range(1, idle.max(2));
            self.end_soon(from, boot, transfer, Err(lost(words)), after);
        }
        if let Some(boot) = receiver
            && !whole
        {
            let after = self.rng.range(1, idle.max(2));
            self.end_soon(to, boot, transfer, Err(lost(words)), after);
        }
        self.forget_bulk_if_over(transfer);
    }

    /// Every stream between two nodes breaks with their connection.
    pub(super) fn break_bulk_between(&mut self, a: usize, b: usize) {
        let hit: Vec<_> = self
            .bulks
            .iter()
            .filter(|(_, bulk)| (bulk.from, bulk.to) == (a, b) || (bulk.from, bulk.to) == (b, a))
            .map(|(id, _)| *id)
            .collect();
        for transfer in hit {
            self.break_bulk(transfer, "the connection was lost");
        }
    }

    /// A node died: the streams it had part in end on the other side. What it had received whole
    /// may have become durable or not.
    pub(super) fn bulks_of_the_dead(&mut self, node: usize) {
        let hit: Vec<_> = self
            .bulks
            .iter()
            .filter(|(_, bulk)| bulk.from == node || bulk.to == node)
            .map(|(id, _)| *id)
            .collect();
        for transfer in hit {
            let Some(bulk) = self.bulks.get(&transfer) else {
                continue;
            };
            if bulk.to == node && bulk.whole && self.rng.one_in(2) {
                let _ = self.commit_bulk(transfer);
            } else if let (true, false, Some(boot)) = (bulk.to == node, bulk.whole, bulk.receiver) {
                let stream = bulk.stream.clone();
                self.leave_partial(node, boot, transfer, &stream);
            }
            self.break_bulk(transfer, "the peer died");
            if let Some(bulk) = self.bulks.get_mut(&transfer) {
                if bulk.from == node {
                    bulk.sender = None;
                } else {
                    bulk.receiver = None;
                }
            }
            self.forget_bulk_if_over(transfer);
        }
    }

    pub(super) fn cancel_transfer(&mut self, node: usize, transfer: TransferId) {
        let Some(life) = &self.hosts[node].life else {
            return;
        };
        let boot = life.boot;
        let cancelled = Failure::new(Remedy::Retry, FailureCode::Cancelled, "cancelled");
        match self.bulks.get(&transfer) {
            Some(bulk) if bulk.from == node && bulk.sender == Some(boot) => {
                let (to, receiver) = (bulk.to, bulk.receiver.filter(|_| !bulk.whole));
                self.end_soon(node, boot, transfer, Err(cancelled), 0);
                if let Some(receiver) = receiver {
                    let words = lost("the sender ended the stream");
                    self.end_soon(to, receiver, transfer, Err(words), 30);
                }
            }
            Some(_) | None if life.expected.contains_key(&transfer) => {
                self.end_soon(node, boot, transfer, Err(cancelled), 0);
                if let Some(bulk) = self.bulks.get(&transfer)
                    && let Some(sender) = bulk.sender
                {
                    let from = bulk.from;
                    let words = lost("the receiver ended the stream");
                    self.end_soon(from, sender, transfer, Err(words), 30);
                }
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn on_receive_timeout(&mut self, node: usize, boot: u64, transfer: TransferId) {
        let Some(life) = self.life_mut(node, boot) else {
            return;
        };
        if life.expected.get(&transfer).is_some_and(|e| !e.streaming) {
            let words = "the announced stream did not arrive";
            let failure = Failure::new(Remedy::Retry, FailureCode::TimedOut, words);
            self.end_soon(node, boot, transfer, Err(failure), 0);
        }
    }

    fn end_soon(
        &mut self,
        node: usize,
        boot: u64,
        transfer: TransferId,
        outcome: Result<Option<Snapshot>, Failure>,
        within_ms: u64,
    ) {
        let after = self.rng.range(1, 2 + within_ms);
        self.after(after, Ev::SideEnds { node, boot, transfer, outcome: Box::new(outcome) });
    }

    /// One side of a transfer ends. The first end counts, later ones are of no interest.
    pub(super) fn on_side_ends(
        &mut self,
        node: usize,
        boot: u64,
        transfer: TransferId,
        outcome: Result<Option<Snapshot>, Failure>,
    ) {
        let mut stream_bytes = 0;
        if let Some(bulk) = self.bulks.get_mut(&transfer) {
            stream_bytes = if outcome.is_ok() { bulk.stream.bytes } else { bulk.stream.bytes / 3 };
            if bulk.from == node && bulk.sender == Some(boot) {
                bulk.sender = None;
            }
            if bulk.to == node && bulk.receiver == Some(boot) {
                bulk.receiver = None;
                if outcome.is_err() && !bulk.whole {
                    let stream = bulk.stream.clone();
                    self.leave_partial(node, boot, transfer, &stream);
                }
            }
        }
        let open = self.life_mut(node, boot).is_some_and(|life| {
            life.expected.remove(&transfer);
            life.begun.contains(&transfer)
        });
        let first = self.ended.insert((boot, transfer));
        self.forget_bulk_if_over(transfer);
        if open && first {
            let wire_bytes = stream_bytes;
            let input = Input::TransferEnded {
                transfer,
                outcome,
                stream_bytes,
                wire_bytes,
                saved_bytes: 0,
            };
            self.input(node, input);
        }
    }

    /// A receive that broke off keeps what arrived, where its spec said so.
    fn leave_partial(&mut self, node: usize, boot: u64, transfer: TransferId, stream: &Stream) {
        let expected = self.life_mut(node, boot).and_then(|life| life.expected.get(&transfer));
        if let Some(spec) = expected.map(|e| e.spec.clone()) {
            self.hosts[node].store.break_off(&spec, stream);
        }
    }

    fn forget_bulk_if_over(&mut self, transfer: TransferId) {
        if let Some(bulk) = self.bulks.get(&transfer)
            && bulk.sender.is_none()
            && bulk.receiver.is_none()
        {
            self.bulks.remove(&transfer);
        }
    }

    /// A snapshot that a stream in flight starts from or carries may not be destroyed.
    pub(super) fn check_destroy(&mut self, node: usize, name: &SnapshotName) {
        let guid = self.hosts[node]
            .store
            .datasets
            .get(name.dataset())
            .and_then(|d| d.snapshots.iter().find(|s| s.short == name.short()))
            .map(|s| s.guid);
        let Some(guid) = guid else { return };
        if self.is_drilled(node, name) {
            let text = format!("n{node} destroys {name}, on which a drill runs");
            self.violate(Rule::BaseInFlight, text);
        }
        let needed = self.bulks.values().any(|bulk| {
            let here = (bulk.from == node && bulk.sender.is_some())
                || (bulk.to == node && bulk.receiver.is_some());
            here && !bulk.committed && (bulk.stream.from == Some(guid) || bulk.stream.to == guid)
        });
        if needed {
            let text = format!("n{node} destroys {name}, which a step in flight needs");
            self.violate(Rule::BaseInFlight, text);
        }
        self.check_base_kept(node, name, guid);
    }

    /// A primary keeps what its standbys are at, whether it has heard of that or not: without it
    /// everything would have to be sent again.
    fn check_base_kept(&mut self, node: usize, name: &SnapshotName, guid: Guid) {
        let Some(record) = self.hosts[node].durable.units.values().find(|r| {
            !r.role.is_standby() && r.volumes.iter().any(|v| v.dataset == *name.dataset())
        }) else {
            return;
        };
        let unit = record.id;
        let followed = record.standbys.clone();
        // One that became a standby after the destroy was asked for may have been left behind before.
        let asked_for = |standby: &Fingerprint| {
            self.hosts[node].life.as_ref().is_none_or(|life| {
                life.ops.values().any(|op| {
                    matches!(op.action, Action::Tidy { .. })
                        && op.unit == unit
                        && op.standbys.contains(standby)
                })
            })
        };
        let followed: Vec<_> = followed.into_iter().filter(asked_for).collect();
        for standby in followed.iter().filter_map(|s| index_of(*s)) {
            let follows = self.hosts[standby].record(unit).is_some_and(|r| r.role.is_standby());
            let newest = self.dataset_of(standby, unit).and_then(|d| d.snapshots.last());
            let here = self.hosts[node].store.datasets.get(name.dataset());
            if here.is_some_and(|d| d.bookmarks.values().any(|b| b.guid == guid)) {
                continue; // A step can start from there as well.
            }
            if follows && newest.is_some_and(|s| s.guid == guid) {
                let text = format!("n{node} destroys {name}, which n{standby} is at");
                self.violate(Rule::BaseKept, text);
            }
        }
    }
}
