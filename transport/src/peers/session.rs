//! A session: one connection from Up to Down.
//!
//! Owns: the control stream's writer and reader, accepting bulk transfers, and telling why it ended.
//! Leaves to others: whether it is the right connection ([`super::keeper`]).

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use quinn::{RecvStream, SendStream, TransportErrorCode, VarInt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio::task::JoinSet;

use super::lanes::{Hangups, Lanes, Taking};
use super::{DownReason, PeerEvent};
use crate::bulk::{BulkSender, Resources};
use crate::cancel::Cancel;
use crate::counters;
use crate::endpoint::{CloseCode, Connection, Endpoint, LocalNode, PeerInfo, close};
use crate::frame::hello::RejectCode;
use crate::frame::{self, FrameType, MAX_BULK_HEADER, MAX_CONTROL};
use crate::framed::{self, FramedError};
use crate::lane::choice::{Choice, LaneStatus};
use crate::tcp::LaneArrival;
use crate::tuning::MAX_BULK_STREAMS;

/// Control payloads that wait to be written to one peer, in bytes.
const QUEUED_CONTROL_BYTES: usize = 8 << 20;

/// Control goes before every transfer on the same connection, and small transfers before large ones.
const CONTROL_PRIORITY: i32 = 2;

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
    endpoint: Endpoint,
    choice: Arc<Choice>,
    /// Lanes over TLS that the peer opened.
    arriving: mpsc::Sender<LaneArrival>,
    hangups: Hangups,
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
        bytes: Option<u64>,
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
        let lanes = Lanes {
            session: self.id,
            quic: &self.quic,
            peer: &self.peer,
            endpoint: &self.endpoint,
            choice: &self.choice,
            hangups: &self.hangups,
        };
        let (lane, kind) = lanes.open(header, bytes, resources).await.map_err(lost)?;
        Ok(BulkSender {
            lane,
            cancel: Cancel::default(),
            resources: Arc::clone(resources),
            peer: Some(self.peer.fingerprint),
            _slot: Some(slot),
            choice: Some(Arc::clone(&self.choice)),
            kind,
        })
    }

    pub(super) fn lane_status(&self) -> LaneStatus {
        self.choice.status(Instant::now())
    }

    /// Takes a lane that the peer opened over TLS, as one of the session's bulk streams.
    pub(super) fn attach(&self, lane: LaneArrival, local: &LocalNode) {
        if let Err(error) = self.arriving.try_send(lane) {
            let (TrySendError::Full(lane) | TrySendError::Closed(lane)) = error;
            lane.refuse(local, RejectCode::Other, "too many transfers are being opened");
        }
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
    arriving: mpsc::Receiver<LaneArrival>,
    hangups: Hangups,
}

impl Session {
    pub(super) fn new(
        id: u64,
        connection: Connection,
        events: mpsc::Sender<PeerEvent>,
        resources: Arc<Resources>,
        endpoint: Endpoint,
    ) -> (Self, SessionHandle) {
        let Connection { peer, dialled, quic, send, recv } = connection;
        // Bounded by `room`, which every sender must take from first.
        let (control, queue) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUED_CONTROL_BYTES));
        let verdict = Verdict::default();
        let (arrive, arriving) = mpsc::channel(MAX_BULK_STREAMS as usize);
        let (choice, hangups) = (Choice::new(endpoint.local().lane, peer.tls), Hangups::default());
        let handle = SessionHandle {
            id,
            dialled,
            peer: peer.clone(),
            quic: quic.clone(),
            control,
            room: Arc::clone(&room),
            verdict: Arc::clone(&verdict),
            endpoint,
            choice: Arc::new(choice),
            arriving: arrive,
            hangups: hangups.clone(),
        };
        let session = Self {
            id,
            peer,
            quic,
            send,
            recv,
            queue,
            room,
            events,
            resources,
            verdict,
            arriving,
            hangups,
        };
        (session, handle)
    }

    /// Runs until the connection ends; `Up` is its first event and `Down` its last.
    pub(super) async fn run(self) {
        let Self { id: session, peer, quic, send, recv, queue, room, events, .. } = self;
        let Self { resources, verdict, arriving, hangups, .. } = self;
        // From now on the peer is trusted: beside the control stream it may open bulk transfers.
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(1 + MAX_BULK_STREAMS));
        let fingerprint = peer.fingerprint;
        metrics::counter!(counters::CONNECTIONS_OPENED).increment(1);
        metrics::gauge!(counters::CONNECTIONS).increment(1.0);
        // Events that cannot be sent: the engine is gone, and the session is about to end too.
        let _ = events.send(PeerEvent::Up { peer, session }).await;
        let mut opening = JoinSet::new();
        let incoming = Incoming { peer: fingerprint, session, events: &events };
        let taking = Taking {
            peer: fingerprint,
            session,
            resources,
            events: events.clone(),
            hangups: hangups.clone(),
        };
        let ended = tokio::select! {
            ended = write_control(send, queue) => ended,
            ended = incoming.read_control(recv) => ended,
            ended = incoming.accept_bulk(&quic, arriving, &taking, &mut opening) => ended,
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
        hangups.hang_up(&reason.to_string());
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
        E::TransportError(e) if is_internal(e.code) => DownReason::Failed { reason: e.to_string() },
        E::ConnectionClosed(e) if is_internal(e.error_code) => {
            DownReason::Failed { reason: e.to_string() }
        }
        E::VersionMismatch | E::TransportError(_) | E::ConnectionClosed(_) | E::CidsExhausted => {
            DownReason::Protocol { reason: error.to_string() }
        }
    }
}

/// Whether this is how QUIC gives up on a connection without a fault of the other side.
fn is_internal(code: TransportErrorCode) -> bool {
    code == TransportErrorCode::INTERNAL_ERROR
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

    /// Each lane on a task of its own, so that one that is slow to say what it is for delays no other;
    /// they end with the session.
    async fn accept_bulk(
        &self,
        quic: &quinn::Connection,
        mut arriving: mpsc::Receiver<LaneArrival>,
        taking: &Taking,
        opening: &mut JoinSet<()>,
    ) -> DownReason {
        loop {
            tokio::select! {
                streams = quic.accept_bi() => match streams {
                    Ok((send, recv)) => drop(opening.spawn(taking.clone().stream(send, recv))),
                    Err(error) => return from_quic(&error),
                },
                // QUIC bounds its streams itself.
                Some(lane) = arriving.recv(), if opening.len() < MAX_BULK_STREAMS as usize => {
                    drop(opening.spawn(taking.clone().arrival(lane)));
                }
                Some(_) = opening.join_next() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_quic_gave_up_on_is_nobodys_fault() {
        let closed = |error_code| {
            let reason = Bytes::from_static(b"too many gaps in stream buffer");
            let close = quinn::ConnectionClose { error_code, frame_type: None, reason };
            from_quic(&quinn::ConnectionError::ConnectionClosed(close))
        };
        let failed = closed(TransportErrorCode::INTERNAL_ERROR);
        assert!(matches!(&failed, DownReason::Failed { .. }), "{failed:?}");
        assert!(failed.to_string().contains("too many gaps"), "{failed}");
        let broken = closed(TransportErrorCode::FLOW_CONTROL_ERROR);
        assert!(matches!(broken, DownReason::Protocol { .. }), "{broken:?}");
    }
}
