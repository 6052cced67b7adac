//! A session: one connection from Up to Down.
//!
//! Owns: the control stream's writer and reader, accepting bulk transfers, and telling why it ended.
//! Leaves to others: whether it is the right connection ([`super::keeper`]).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{DownReason, PeerEvent};
use crate::bulk::{BulkReceiver, BulkSender, Resources};
use crate::cancel::Cancel;
use crate::counters;
use crate::endpoint::{CloseCode, Connection, PeerInfo, close};
use crate::frame::{self, FrameType, MAX_BULK_HEADER, MAX_CONTROL};
use crate::framed::{self, FramedError};
use crate::lane::{self, Lane};
use crate::tuning::MAX_BULK_STREAMS;

/// Control payloads that wait to be written to one peer, in bytes.
const QUEUED_CONTROL_BYTES: usize = 8 << 20;

/// A peer that opens a stream says at once what for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Control goes before bulk on the same connection.
const CONTROL_PRIORITY: i32 = 1;

/// Why a control payload was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No connection with the peer.
    #[error("the connection with {} is down", peer.short())]
    Down {
        /// Who.
        peer: Fingerprint,
    },
    /// It is too long.
    #[error("a control payload of {len} bytes is beyond the limit of {MAX_CONTROL}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Too much is queued already.
    #[error("too much control is queued for {}", peer.short())]
    Full {
        /// Who.
        peer: Fingerprint,
    },
}

/// Why a bulk transfer was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenBulkError {
    /// No connection with the peer.
    #[error("the connection with {} is down", peer.short())]
    Down {
        /// Who.
        peer: Fingerprint,
    },
    /// Its header is too long.
    #[error("a bulk header of {len} bytes is beyond the limit of {MAX_BULK_HEADER}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The connection was lost while opening.
    #[error("the connection was lost while opening a transfer: {reason}")]
    Lost {
        /// What the connection said.
        reason: String,
    },
}

/// A payload and the room it takes in the queue.
type Queued = (Bytes, OwnedSemaphorePermit);

/// What others hold of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionHandle {
    pub(super) id: u64,
    pub(super) dialled: bool,
    pub(super) peer: PeerInfo,
    quic: quinn::Connection,
    control: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    verdict: Verdict,
}

/// Why this side closed a session, where it did.
type Verdict = Arc<OnceLock<DownReason>>;

impl SessionHandle {
    pub(super) fn status(&self) -> (PeerInfo, Duration) {
        (self.peer.clone(), self.quic.rtt())
    }

    /// Closes it; its `Down` will give `reason`, and the peer is told `code`.
    pub(super) fn close(&self, code: CloseCode, reason: DownReason) {
        let text = reason.to_string();
        // The first reason is the one that closes it. It is there before the session sees that it is closed.
        let _ = self.verdict.set(reason);
        close(&self.quic, code, &text);
    }

    pub(super) async fn send_control(&self, payload: Bytes) -> Result<(), ControlError> {
        let down = || ControlError::Down { peer: self.peer.fingerprint };
        let room = Arc::clone(&self.room).acquire_many_owned(cost(&payload)?);
        let permit = room.await.map_err(|_| down())?;
        self.control.send((payload, permit)).map_err(|_| down())
    }

    pub(super) fn try_send_control(&self, payload: Bytes) -> Result<(), ControlError> {
        let peer = self.peer.fingerprint;
        let room = Arc::clone(&self.room).try_acquire_many_owned(cost(&payload)?);
        let permit = room.map_err(|e| match e {
            TryAcquireError::Closed => ControlError::Down { peer },
            TryAcquireError::NoPermits => ControlError::Full { peer },
        })?;
        self.control.send((payload, permit)).map_err(|_| ControlError::Down { peer })
    }

    pub(super) async fn open_bulk(
        &self,
        header: &[u8],
        resources: &Arc<Resources>,
    ) -> Result<BulkSender, OpenBulkError> {
        if header.len() > MAX_BULK_HEADER {
            return Err(OpenBulkError::TooLong { len: header.len() });
        }
        let lost = |reason: String| OpenBulkError::Lost { reason };
        let slot = tokio::select! {
            slot = resources.send_slot() => slot,
            reason = self.quic.closed() => return Err(lost(reason.to_string())),
        };
        let (mut send, recv) = self.quic.open_bi().await.map_err(|e| lost(e.to_string()))?;
        let opened = framed::write(&mut send, FrameType::BulkOpen, header).await;
        opened.map_err(|e| lost(e.to_string()))?;
        Ok(BulkSender {
            lane: lane::quic::lane(&Handle::current(), send, recv),
            cancel: Cancel::default(),
            resources: Arc::clone(resources),
            _slot: Some(slot),
        })
    }
}

/// What a payload takes of the queue's room; small ones take a little too, or their number would be
/// without bound.
fn cost(payload: &Bytes) -> Result<u32, ControlError> {
    let len = payload.len();
    if len > MAX_CONTROL {
        return Err(ControlError::TooLong { len });
    }
    Ok(u32::try_from(len.max(256)).unwrap_or(u32::MAX))
}

/// A session about to run.
pub(super) struct Session {
    id: u64,
    peer: PeerInfo,
    quic: quinn::Connection,
    send: SendStream,
    recv: RecvStream,
    queue: mpsc::UnboundedReceiver<Queued>,
    room: Arc<Semaphore>,
    events: mpsc::Sender<PeerEvent>,
    resources: Arc<Resources>,
    verdict: Verdict,
}

impl Session {
    pub(super) fn new(
        id: u64,
        connection: Connection,
        events: mpsc::Sender<PeerEvent>,
        resources: Arc<Resources>,
    ) -> (Self, SessionHandle) {
        let Connection { peer, dialled, quic, send, recv } = connection;
        // Bounded by `room`, which every sender must take from first.
        let (control, queue) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUED_CONTROL_BYTES));
        let verdict = Verdict::default();
        let handle = SessionHandle {
            id,
            dialled,
            peer: peer.clone(),
            quic: quic.clone(),
            control,
            room: Arc::clone(&room),
            verdict: Arc::clone(&verdict),
        };
        (Self { id, peer, quic, send, recv, queue, room, events, resources, verdict }, handle)
    }

    /// Runs until the connection ends; `Up` is its first event and `Down` its last.
    pub(super) async fn run(self) {
        let Self { id: session, peer, quic, send, recv, queue, room, events, resources, verdict } =
            self;
        // From now on the peer is trusted: beside the control stream it may open bulk transfers.
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(1 + MAX_BULK_STREAMS));
        let fingerprint = peer.fingerprint;
        metrics::counter!(counters::CONNECTIONS_OPENED).increment(1);
        metrics::gauge!(counters::CONNECTIONS).increment(1.0);
        // Events that cannot be sent: the engine is gone, and the session is about to end too.
        let _ = events.send(PeerEvent::Up { peer, session }).await;
        let mut opening = JoinSet::new();
        let incoming = Incoming { peer: fingerprint, session, events: &events };
        let ended = tokio::select! {
            ended = write_control(send, queue) => ended,
            ended = incoming.read_control(recv) => ended,
            ended = incoming.accept_bulk(&quic, &resources, &mut opening) => ended,
            reason = quic.closed() => from_quic(&reason),
        };
        // Nothing of the session comes after its Down.
        opening.shutdown().await;
        room.close();
        if let DownReason::Protocol { reason } = &ended {
            close(&quic, CloseCode::Protocol, reason);
        } else {
            close(&quic, CloseCode::Shutdown, "the session is over");
        }
        metrics::gauge!(counters::CONNECTIONS).decrement(1.0);
        let reason = verdict.get().cloned().unwrap_or(ended);
        let _ = events.send(PeerEvent::Down { peer: fingerprint, session, reason }).await;
    }
}

fn from_quic(error: &quinn::ConnectionError) -> DownReason {
    use quinn::ConnectionError as E;
    match error {
        E::TimedOut | E::Reset => DownReason::Silent,
        E::LocallyClosed => DownReason::Shutdown,
        E::ApplicationClosed(closed) => {
            let reason = frame::cursor::presentable(&String::from_utf8_lossy(&closed.reason), 512);
            match CloseCode::from_code(closed.error_code.into_inner()) {
                Some(CloseCode::NotPaired) => DownReason::Unpaired,
                Some(CloseCode::Duplicate) => DownReason::Replaced,
                _ => DownReason::ClosedByPeer { reason },
            }
        }
        E::VersionMismatch | E::TransportError(_) | E::ConnectionClosed(_) | E::CidsExhausted => {
            DownReason::Protocol { reason: error.to_string() }
        }
    }
}

fn from_framed(error: &FramedError) -> DownReason {
    match error.connection() {
        Some(connection) => from_quic(connection),
        None => DownReason::Protocol { reason: error.to_string() },
    }
}

async fn write_control(
    mut send: SendStream,
    mut queue: mpsc::UnboundedReceiver<Queued>,
) -> DownReason {
    // A failure means that the stream is gone; then so is the connection, and writing says why.
    let _ = send.set_priority(CONTROL_PRIORITY);
    while let Some((payload, room)) = queue.recv().await {
        let header = frame::Header::new(FrameType::Control, payload.len()).encode();
        let mut parts = [Bytes::copy_from_slice(&header), payload];
        if let Err(error) = send.write_all_chunks(&mut parts).await {
            return from_framed(&error.into());
        }
        drop(room);
    }
    // Every handle is gone, so the keeper let this session go.
    DownReason::Replaced
}

struct Incoming<'a> {
    peer: Fingerprint,
    session: u64,
    events: &'a mpsc::Sender<PeerEvent>,
}

impl Incoming<'_> {
    async fn tell(&self, event: PeerEvent) -> Result<(), DownReason> {
        self.events.send(event).await.map_err(|_| DownReason::Shutdown)
    }

    async fn read_control(&self, mut recv: RecvStream) -> DownReason {
        let Self { peer, session, .. } = *self;
        loop {
            let read = framed::read(&mut recv, &[FrameType::Control], "Control").await;
            let payload = match read {
                Ok((_, payload)) => Bytes::from(payload),
                Err(error) => return from_framed(&error),
            };
            if let Err(down) = self.tell(PeerEvent::Control { peer, session, payload }).await {
                return down;
            }
        }
    }

    /// Each stream on a task of its own, so that one that is slow to say what it is for delays no other;
    /// they end with the session.
    async fn accept_bulk(
        &self,
        quic: &quinn::Connection,
        resources: &Arc<Resources>,
        opening: &mut JoinSet<()>,
    ) -> DownReason {
        loop {
            let streams = tokio::select! {
                streams = quic.accept_bi() => streams,
                Some(_) = opening.join_next() => continue,
            };
            let (send, recv) = match streams {
                Ok(streams) => streams,
                Err(error) => return from_quic(&error),
            };
            let Self { peer, session, .. } = *self;
            let (resources, events) = (Arc::clone(resources), self.events.clone());
            opening.spawn(async move {
                let slot = resources.receive_slot().await;
                if let Some((header, lane)) = open_lane(send, recv).await {
                    let (cancel, _slot) = (Cancel::default(), Some(slot));
                    let receiver = BulkReceiver { lane, cancel, resources, _slot, received: None };
                    let bulk = PeerEvent::Bulk { peer, session, header, receiver };
                    // Without an engine to take it, the transfer is reset by being dropped.
                    let _ = events.send(bulk).await;
                }
            });
        }
    }
}

/// The header of a transfer that a peer opens, and its lane; `None` when it changed its mind, said
/// something else, or nothing.
async fn open_lane(send: SendStream, mut recv: RecvStream) -> Option<(Bytes, Lane)> {
    let opened = framed::read(&mut recv, &[FrameType::BulkOpen], "BulkOpen");
    match timeout(OPEN_TIMEOUT, opened).await {
        Ok(Ok((_, header))) => {
            let lane = lane::quic::lane(&Handle::current(), send, recv);
            Some((Bytes::from(header), lane))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a peer opened a stream that is no transfer");
            None
        }
        Err(_) => None,
    }
}
