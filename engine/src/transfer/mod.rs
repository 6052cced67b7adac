//! Bulk transfers: a store's send stream to a peer, a peer's into a store.
//!
//! Owns: the transfers that run or are expected, their threads, their progress, and that each ends
//! exactly once in [`Input::TransferEnded`]. Leaves to others: which transfers there are
//! (`flocker_core`), frames and hashes (`flocker_transport`), what the bytes mean (the stores).
//!
//! A transfer is named by its [`TransferId`], which is in the header of the bulk stream. The receiving
//! side expects it from one peer, for [`EXPECT_LIMIT`]; what nobody expects is refused by name.
//! Bytes go from the store's reader to the lane, and from the lane to the store's writer, on plain
//! threads; they never pass the loop.

mod ending;
mod meter;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_core::ids::{Fingerprint, TransferId, UnitId};
use flocker_core::{Failure, FailureCode, Input, Remedy};
use flocker_store::{DatasetName, ReceiveSpec, SendSpec, Snapshot, Store};
use flocker_transport::{
    BulkReceiver, BulkSender, Cancel, Compression, Learned, Pace, PeerManager, Progress, Refusal,
};
use serde::{Deserialize, Serialize};

use crate::api::{CompressionView, Direction, Progress as Shown};
use crate::clock::millis;
use crate::old_copy::StreamFlags;
use crate::ops::Report;
use meter::Rate;

/// A transfer that has moved no byte for so long is said to stand.
const STANDS: Duration = Duration::from_secs(60);

/// How long an accepted transfer is waited for.
const EXPECT_LIMIT: Duration = Duration::from_secs(30);

/// Opens the bulk streams on which transfers are sent; a test has its own.
pub(crate) trait Lanes: Send + Sync {
    /// Opens one for a transfer of about `bytes`. Blocks; gives up when `cancel` is.
    fn open(
        &self,
        peer: &Fingerprint,
        header: &[u8],
        bytes: Option<u64>,
        cancel: &Cancel,
    ) -> Result<BulkSender, Failure>;
}

/// Lanes over the node's own connections.
pub(crate) struct PeerLanes {
    pub(crate) manager: PeerManager,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Lanes for PeerLanes {
    fn open(
        &self,
        peer: &Fingerprint,
        header: &[u8],
        bytes: Option<u64>,
        cancel: &Cancel,
    ) -> Result<BulkSender, Failure> {
        self.runtime.block_on(async {
            tokio::select! {
                opened = self.manager.open_bulk(peer, header, bytes) => opened.map_err(|error| {
                    Failure::new(Remedy::Retry, FailureCode::ConnectionLost, error.to_string())
                }),
                () = cancel.cancelled() => Err(ending::cancelled()),
            }
        })
    }
}

/// What one transfer is about, and how far it is.
pub(crate) struct Live {
    transfer: TransferId,
    unit: UnitId,
    peer: Fingerprint,
    direction: Direction,
    snapshot: String,
    full: bool,
    started: Instant,
    progress: Progress,
    total_bytes: Mutex<Option<u64>>,
    rate: Mutex<Rate>,
    moved: Mutex<Moved>,
    /// Ours, from the first moment; the lane's own is linked to it when there is one.
    cancel: Cancel,
    lane: Mutex<Option<Cancel>>,
    /// On the receiving side: the snapshot of an old copy that it is reseeded from.
    old_copy: Mutex<Option<String>>,
}

/// What opens a bulk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Opening {
    transfer: TransferId,
    /// How the stream is made.
    compressed: bool,
    large_blocks: bool,
    raw: bool,
}

impl Opening {
    fn flags(self) -> StreamFlags {
        let Self { compressed, large_blocks, raw, .. } = self;
        StreamFlags { compressed, large_blocks, raw }
    }
}

/// When a transfer last moved.
struct Moved {
    bytes: u64,
    at: Instant,
    /// That it stands was said.
    said: bool,
}

/// A transfer that the peer was told to begin.
struct Expected {
    spec: ReceiveSpec,
    limit_bytes: Option<u64>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<TransferId, Arc<Live>>,
    expected: BTreeMap<TransferId, Expected>,
    /// The last words of transfers, until somebody took them.
    ended: Vec<Shown>,
    /// How much the last step of a dataset took on the wire, bytes: the next is likely to be as large.
    last_wire_bytes: BTreeMap<(Fingerprint, DatasetName), u64>,
    /// What the last transfer of a dataset found out of the level: the next begins there.
    learned: BTreeMap<(Fingerprint, DatasetName), Learned>,
}

/// What transfers work with.
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lanes: Arc<dyn Lanes>,
    pub(crate) report: Report,
    /// Names of units, for people.
    pub(crate) names: Arc<dyn Fn(UnitId) -> Option<String> + Send + Sync>,
    pub(crate) compression: Compression,
    /// The limits of what is sent to a peer, of a unit; whether it is the last step of a move.
    pub(crate) pace: Arc<dyn Fn(Fingerprint, UnitId, bool) -> Pace + Send + Sync>,
    /// Whether old copies are read along with what comes in full.
    pub(crate) reseed: bool,
    pub(crate) runtime: tokio::runtime::Handle,
}

struct Inner {
    parts: Parts,
    state: Mutex<State>,
}

/// The transfers of one node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Transfers(Arc<Inner>);

impl Transfers {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner { parts, state: Mutex::default() }))
    }

    /// Begins to send; the peer has accepted. `last`: a workload stands still for it.
    pub(crate) fn start_send(
        &self,
        transfer: TransferId,
        peer: Fingerprint,
        unit: UnitId,
        spec: SendSpec,
        last: bool,
    ) {
        let full = spec.from.is_none();
        let live = Live::new(transfer, unit, peer, Direction::Send, spec.to.to_string(), full);
        let live = self.0.enter(live);
        let inner = Arc::clone(&self.0);
        self.0.spawn(&live, "send", move |live| send::run(&inner, live, &spec, last));
    }

    /// Expects a transfer from this peer. Registered when this returns.
    pub(crate) fn expect(
        &self,
        transfer: TransferId,
        peer: Fingerprint,
        unit: UnitId,
        spec: ReceiveSpec,
        limit_bytes: Option<u64>,
    ) {
        let full = spec.from_guid.is_none();
        let snapshot = spec.snapshot.to_string();
        let live = Live::new(transfer, unit, peer, Direction::Receive, snapshot, full);
        self.0.enter(live);
        let expected = Expected { spec, limit_bytes };
        self.0.lock().expected.insert(transfer, expected);
        let this = self.clone();
        self.0.parts.runtime.spawn(async move {
            tokio::time::sleep(EXPECT_LIMIT).await;
            this.0.give_up(transfer, || {
                Failure::new(
                    Remedy::Retry,
                    FailureCode::TimedOut,
                    format!(
                        "the peer did not begin the transfer within {} s",
                        EXPECT_LIMIT.as_secs()
                    ),
                )
            });
        });
    }

    /// A peer has opened a bulk stream: receives it, or refuses it.
    pub(crate) fn arrived(&self, peer: Fingerprint, header: &Bytes, receiver: BulkReceiver) {
        let found = postcard::from_bytes::<Opening>(header).ok().and_then(|opening| {
            let mut state = self.0.lock();
            let live = state.live.get(&opening.transfer).filter(|live| live.peer == peer)?;
            let live = Arc::clone(live);
            let expected = state.expected.remove(&opening.transfer)?;
            Some((live, expected, opening.flags()))
        });
        let Some((live, expected, flags)) = found else {
            tracing::warn!(peer = %peer.short(), "a transfer that nobody expects is refused");
            refuse(receiver);
            return;
        };
        let inner = Arc::clone(&self.0);
        self.0.spawn(&live, "receive", move |live| {
            receive::run(&inner, live, &expected, flags, receiver)
        });
    }

    /// Ends a transfer if it still runs; it then answers as ended.
    pub(crate) fn cancel(&self, transfer: TransferId) {
        let live = self.0.lock().live.get(&transfer).cloned();
        if let Some(live) = live {
            live.stop();
            self.0.give_up(transfer, ending::cancelled);
        }
    }

    /// The connection to a peer is gone: what was expected from it will not come. What runs finds
    /// out by itself.
    pub(crate) fn peer_lost(&self, peer: &Fingerprint) {
        let waiting: Vec<TransferId> = {
            let state = self.0.lock();
            let of_peer = |t: &&TransferId| state.live.get(t).is_some_and(|l| l.peer == *peer);
            state.expected.keys().filter(of_peer).copied().collect()
        };
        for transfer in waiting {
            self.0.give_up(transfer, || {
                Failure::new(
                    Remedy::Retry,
                    FailureCode::ConnectionLost,
                    "the connection to the peer was lost before the transfer began",
                )
            });
        }
    }

    /// How far everything is: what runs, and once what has ended since the last call.
    pub(crate) fn look(&self) -> Vec<Shown> {
        let mut state = self.0.lock();
        let mut shown = std::mem::take(&mut state.ended);
        let live: Vec<_> = state.live.values().cloned().collect();
        drop(state);
        shown.extend(live.iter().map(|live| self.0.show(live, false)));
        shown
    }

    /// Says of each transfer that stands that it does, and of one that did that it moves again. To be called now and
    /// then.
    pub(crate) fn watch(&self) {
        let live: Vec<_> = self.0.lock().live.values().cloned().collect();
        for live in live {
            if let Some(for_ms) = live.stands(STANDS) {
                let transfer = live.transfer;
                (self.0.parts.report)(Input::TransferStands { transfer, for_ms });
            }
        }
    }

    /// What runs now.
    pub(crate) fn running(&self) -> Vec<Shown> {
        let live: Vec<_> = self.0.lock().live.values().cloned().collect();
        live.iter().map(|live| self.0.show(live, false)).collect()
    }

    /// Cancels everything: the node ends.
    pub(crate) fn cancel_all(&self) {
        let all: Vec<TransferId> = self.0.lock().live.keys().copied().collect();
        for transfer in all {
            self.cancel(transfer);
        }
    }
}

fn refuse(receiver: BulkReceiver) {
    // Telling it takes up to some seconds.
    let spawned = std::thread::Builder::new().name("refuse".into()).spawn(move || {
        let reason = "this node does not expect that transfer (any more)".to_owned();
        let _ = receiver.finish(Err(Refusal { code: 0, reason }));
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "a transfer is dropped instead of refused");
    }
}

impl Live {
    fn new(
        transfer: TransferId,
        unit: UnitId,
        peer: Fingerprint,
        direction: Direction,
        snapshot: String,
        full: bool,
    ) -> Self {
        Self {
            transfer,
            unit,
            peer,
            direction,
            snapshot,
            full,
            started: Instant::now(),
            progress: Progress::default(),
            total_bytes: Mutex::new(None),
            rate: Mutex::new(Rate::default()),
            moved: Mutex::new(Moved { bytes: 0, at: Instant::now(), said: false }),
            cancel: Cancel::default(),
            lane: Mutex::new(None),
            old_copy: Mutex::new(None),
        }
    }

    /// `Some(Some(…))`: it stands, for so many milliseconds, and that is new; `Some(None)`: it does no more.
    fn stands(&self, limit: Duration) -> Option<Option<u64>> {
        // A step that waits for what an old copy holds moves as long as that is read.
        let bytes = self.progress.raw_bytes() + self.progress.old_copy_bytes();
        let mut moved = self.moved.lock().unwrap_or_else(|p| p.into_inner());
        if bytes != moved.bytes {
            let said = moved.said;
            *moved = Moved { bytes, at: Instant::now(), said: false };
            return said.then_some(None);
        }
        let still = moved.at.elapsed();
        if moved.said || still < limit {
            return None;
        }
        moved.said = true;
        Some(Some(millis(still)))
    }

    fn lane(&self) -> MutexGuard<'_, Option<Cancel>> {
        self.lane.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn stop(&self) {
        self.cancel.cancel("cancelled");
        if let Some(lane) = self.lane().as_ref() {
            lane.cancel("cancelled");
        }
    }

    /// From here on a cancel also stops the lane.
    fn link(&self, lane: Cancel) {
        let mut place = self.lane();
        // Under the lock: a cancel comes either before this, or finds the lane.
        if self.cancel.is_cancelled() {
            lane.cancel("cancelled");
        }
        *place = Some(lane);
    }

    /// `full` or `increment`, for failpoints.
    fn kind(&self) -> &'static str {
        if self.full { "full" } else { "increment" }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn enter(&self, live: Live) -> Arc<Live> {
        let live = Arc::new(live);
        let before = self.lock().live.insert(live.transfer, Arc::clone(&live));
        assert!(before.is_none(), "the core named a transfer twice");
        live
    }

    /// Runs a transfer on a thread of its own. However that ends, the transfer ends once.
    fn spawn(
        self: &Arc<Self>,
        live: &Arc<Live>,
        what: &'static str,
        run: impl FnOnce(&Live) -> Result<Option<Snapshot>, Failure> + Send + 'static,
    ) {
        let (inner, thread_live) = (Arc::clone(self), Arc::clone(live));
        let spawned = std::thread::Builder::new().name(what.to_owned()).spawn(move || {
            let span = tracing::info_span!(
                "transfer",
                direction = what,
                unit = %thread_live.unit.short(),
                peer = %thread_live.peer.short(),
                snapshot = %thread_live.snapshot,
            );
            let _entered = span.enter();
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&thread_live)))
                    .unwrap_or_else(|_| Err(ending::panicked()));
            inner.end(thread_live.transfer, outcome);
        });
        if let Err(error) = spawned {
            let failure = Failure::new(
                Remedy::Retry,
                FailureCode::Other,
                format!("no thread for a transfer: {error}"),
            );
            self.end(live.transfer, Err(failure));
        }
    }

    /// Ends a transfer that is still only expected.
    fn give_up(&self, transfer: TransferId, why: impl FnOnce() -> Failure) {
        let waiting = self.lock().expected.remove(&transfer).is_some();
        if waiting {
            self.end(transfer, Err(why()));
        }
    }

    fn end(&self, transfer: TransferId, outcome: Result<Option<Snapshot>, Failure>) {
        let Some(live) = self.lock().live.remove(&transfer) else {
            return;
        };
        let shown = self.show(&live, true);
        let direction = match live.direction {
            Direction::Send => "send",
            Direction::Receive => "receive",
        };
        metrics::counter!("flocker_repl_stream_bytes_total", "direction" => direction)
            .increment(shown.stream_bytes);
        metrics::counter!("flocker_repl_wire_bytes_total", "direction" => direction)
            .increment(shown.wire_bytes);
        if outcome.is_err() {
            metrics::counter!("flocker_repl_transfer_failures_total", "direction" => direction)
                .increment(1);
        }
        let Shown { stream_bytes, wire_bytes, saved_bytes, .. } = shown;
        let mut state = self.lock();
        // Nobody watches: only the newest few are worth keeping.
        if state.ended.len() >= 64 {
            state.ended.remove(0);
        }
        state.ended.push(shown);
        drop(state);
        (self.parts.report)(Input::TransferEnded {
            transfer,
            outcome,
            stream_bytes,
            wire_bytes,
            saved_bytes,
        });
    }

    fn compression_of(&self, live: &Live) -> Option<CompressionView> {
        let adapts = self.parts.compression == Compression::Adaptive;
        let (level, limit) = live.progress.compressed().filter(|_| adapts)?;
        Some(CompressionView { level, limit: limit.word().to_owned() })
    }

    fn show(&self, live: &Live, ended: bool) -> Shown {
        let stream_bytes = live.progress.raw_bytes();
        let elapsed = live.started.elapsed();
        let mut rate = live.rate.lock().unwrap_or_else(|p| p.into_inner());
        Shown {
            unit: live.unit,
            name: (self.parts.names)(live.unit),
            peer: live.peer,
            direction: live.direction,
            snapshot: live.snapshot.clone(),
            full: live.full,
            stream_bytes,
            wire_bytes: live.progress.wire_bytes(),
            saved_bytes: live.progress.saved_bytes(),
            compression: self.compression_of(live),
            reseeds: live.progress.reseeds(),
            old_copy: live.old_copy.lock().unwrap_or_else(|p| p.into_inner()).clone(),
            total_bytes: *live.total_bytes.lock().unwrap_or_else(|p| p.into_inner()),
            bytes_per_second: rate.now(elapsed, stream_bytes),
            elapsed_ms: millis(elapsed),
            ended,
        }
    }
}
