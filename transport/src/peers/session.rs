//! A session: one connection from Up to Down.
//!
//! Owns: the control stream's writer and reader, accepting bulk transfers, and telling why it ended.
//! Leaves to others: whether it is the right connection ([`super::keeper`]), going over to QUIC in the middle
//! ([`super::moving`]), lanes ([`super::lanes`]).

use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use quinn::VarInt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::lanes::{Hangups, Lanes, Taking};
use super::moving::{self, Crossing};
use super::spares::{self, Begun, SPARES, Spares};
use super::{DownReason, PeerEvent};
use crate::bulk::{BulkSender, Pace, Resources};
use crate::cancel::Cancel;
use crate::counters;
use crate::endpoint::{CloseCode, Connection, Endpoint, LocalNode, PeerInfo};
use crate::frame::hello::{Call, RejectCode};
use crate::frame::{self, FrameType, MAX_BULK_HEADER, MAX_CONTROL};
use crate::framed::{self, FramedError};
use crate::lane::choice::{Choice, LaneKind, LaneMode, LaneStatus};
use crate::link::{Gone, Link, LinkStatus, Receiving, Sending};
use crate::tcp::LaneArrival;
use crate::tuning::MAX_BULK_STREAMS;

/// Control payloads that wait to be written to one peer, in bytes.
const QUEUED_CONTROL_BYTES: usize = 8 << 20;

/// How long the payload of a control frame may take once its header is there. The largest at 17 KB/s; who is slower
/// does it on purpose.
const SLOW_FRAME: Duration = Duration::from_secs(60);

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
    link: watch::Receiver<Link>,
    standing: Arc<Mutex<Standing>>,
    control: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    verdict: Verdict,
    endpoint: Endpoint,
    choice: Arc<Choice>,
    /// Lanes over TLS that the peer opened.
    arriving: mpsc::Sender<LaneArrival>,
    /// A connection over QUIC on which the peer goes on.
    continuing: mpsc::Sender<Connection>,
    hangups: Hangups,
    spares: Arc<Spares>,
}

/// Which way control takes, since when, and why.
#[derive(Debug)]
struct Standing {
    since: Instant,
    why: Option<String>,
    udp_blocked: bool,
}

impl Standing {
    fn of(local: &LocalNode, connection: &Connection) -> Self {
        let since = Instant::now();
        if connection.link.kind() == LaneKind::Quic {
            return Self { since, why: None, udp_blocked: false };
        }
        let port = connection.peer.address.port();
        let (why, udp_blocked) = match (local.lane, connection.peer.quic, connection.call) {
            (LaneMode::Tls, _, _) => ("this node is configured so".to_owned(), false),
            (_, false, _) => ("the peer takes TLS alone".to_owned(), false),
            (_, true, Call::NoUdp) if connection.dialled => {
                (format!("nothing answered over UDP at {}", connection.peer.address), true)
            }
            (_, true, Call::NoUdp) => {
                ("the peer, who dialled, got no answer from here over UDP".to_owned(), true)
            }
            (_, true, _) => (format!("the peer dialled so, from port {port}"), false),
        };
        Self { since, why: Some(why), udp_blocked }
    }
}

/// Why this side closed a session, where it did.
type Verdict = Arc<OnceLock<DownReason>>;

impl SessionHandle {
    pub(super) fn status(&self) -> (PeerInfo, Duration) {
        (self.peer.clone(), self.link.borrow().rtt())
    }

    pub(super) fn link_status(&self) -> LinkStatus {
        let kind = self.link.borrow().kind();
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let (why, udp_blocked) = (standing.why.clone(), standing.udp_blocked);
        LinkStatus { kind, why, udp_blocked, lasts: standing.since.elapsed() }
    }

    /// Goes on over this connection, or drops it when there is nothing to go on with.
    pub(super) fn go_on(&self, connection: Connection) {
        let fits = connection.peer.incarnation == self.peer.incarnation
            && self.link.borrow().kind() == LaneKind::Tls
            && !self.dialled;
        if !fits {
            return connection.close(CloseCode::Duplicate, "there is no session to go on with");
        }
        if let Err(TrySendError::Full(connection) | TrySendError::Closed(connection)) =
            self.continuing.try_send(connection)
        {
            connection.close(CloseCode::Duplicate, "the session goes on already");
        }
    }

    /// Closes it; its `Down` will give `reason`, and the peer is told `code`.
    pub(super) fn close(&self, code: CloseCode, reason: DownReason) {
        let text = reason.to_string();
        // The first reason is the one that closes it. It is there before the session sees that it is closed.
        let _ = self.verdict.set(reason);
        self.link.borrow().close(code, &text);
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
            gone = over(self.link.clone()) => return Err(lost(gone.to_string())),
        };
        let lanes = Lanes {
            session: self.id,
            dialled: self.dialled,
            link: self.link.borrow().clone(),
            spares: &self.spares,
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
            pace: Pace::default(),
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

/// Completes when the link of the session is over, whichever it is then.
async fn over(mut links: watch::Receiver<Link>) -> Gone {
    loop {
        let link = links.borrow_and_update().clone();
        tokio::select! {
            biased;
            changed = links.changed() => if changed.is_err() {
                return link.closed().await;
            },
            gone = link.closed() => return gone,
        }
    }
}

/// A session about to run.
pub(super) struct Session {
    id: u64,
    dialled: bool,
    peer: PeerInfo,
    link: watch::Sender<Link>,
    standing: Arc<Mutex<Standing>>,
    send: Sending,
    recv: Receiving,
    queue: mpsc::UnboundedReceiver<Queued>,
    room: Arc<Semaphore>,
    events: mpsc::Sender<PeerEvent>,
    resources: Arc<Resources>,
    verdict: Verdict,
    endpoint: Endpoint,
    choice: Arc<Choice>,
    arriving: mpsc::Receiver<LaneArrival>,
    continuing: mpsc::Receiver<Connection>,
    hangups: Hangups,
    spares: Arc<Spares>,
}

impl Session {
    pub(super) fn new(
        id: u64,
        connection: Connection,
        events: mpsc::Sender<PeerEvent>,
        resources: Arc<Resources>,
        endpoint: Endpoint,
    ) -> (Self, SessionHandle) {
        let standing = Arc::new(Mutex::new(Standing::of(endpoint.local(), &connection)));
        let Connection { peer, dialled, link, send, recv, .. } = connection;
        // Bounded by `room`, which every sender must take from first.
        let (control, queue) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUED_CONTROL_BYTES));
        let verdict = Verdict::default();
        let (arrive, arriving) = mpsc::channel(MAX_BULK_STREAMS as usize + SPARES);
        let (go_on, continuing) = mpsc::channel(1);
        let choice = Arc::new(Choice::new(endpoint.local().lane, peer.tls));
        choice.rides(link.kind());
        let (hangups, spares) = (Hangups::default(), Arc::<Spares>::default());
        let (link, links) = watch::channel(link);
        let handle = SessionHandle {
            id,
            dialled,
            peer: peer.clone(),
            link: links,
            standing: Arc::clone(&standing),
            control,
            room: Arc::clone(&room),
            verdict: Arc::clone(&verdict),
            endpoint: endpoint.clone(),
            choice: Arc::clone(&choice),
            arriving: arrive,
            continuing: go_on,
            hangups: hangups.clone(),
            spares: Arc::clone(&spares),
        };
        let session = Self {
            id,
            dialled,
            peer,
            link,
            standing,
            send,
            recv,
            queue,
            room,
            events,
            resources,
            verdict,
            endpoint,
            choice,
            arriving,
            continuing,
            hangups,
            spares,
        };
        (session, handle)
    }

    /// Runs until the connection ends; `Up` is its first event and `Down` its last.
    pub(super) async fn run(self) {
        let Self { id: session, dialled, peer, link, standing, send, recv, queue, .. } = self;
        let Self { room, events, resources, verdict, endpoint, choice, arriving, .. } = self;
        let Self { continuing, hangups, spares, .. } = self;
        trusted(&link.borrow());
        let fingerprint = peer.fingerprint;
        metrics::counter!(counters::CONNECTIONS_OPENED).increment(1);
        metrics::gauge!(counters::CONNECTIONS).increment(1.0);
        // Events that cannot be sent: the engine is gone, and the session is about to end too.
        let _ = events.send(PeerEvent::Up { peer: peer.clone(), session }).await;
        let mut opening = JoinSet::new();
        let (crossing, moves) = Crossing::new();
        let incoming =
            Incoming { peer: fingerprint, session, events: &events, crossing: &crossing };
        let taking = Taking {
            peer: fingerprint,
            session,
            resources,
            events: events.clone(),
            hangups: hangups.clone(),
        };
        let (begin, begun) = mpsc::channel(1);
        let lent = tokio::sync::Mutex::default();
        let provision = async {
            let first = link.borrow().clone();
            if !dialled || first.kind() == LaneKind::Quic {
                return pending::<()>().await;
            }
            let lanes = Lanes {
                session,
                dialled,
                link: first,
                peer: &peer,
                endpoint: &endpoint,
                choice: &choice,
                hangups: &hangups,
                spares: &spares,
            };
            let mut links = link.subscribe();
            let moved = async { drop(links.wait_for(|link| link.kind() == LaneKind::Quic).await) };
            tokio::select! {
                never = spares::furnish(&lanes) => match never {},
                never = spares::lend(&lanes, &lent, &begin) => match never {},
                () = moved => pending::<()>().await,
            }
        };
        let mover = Mover {
            dialled,
            peer: &peer,
            endpoint: &endpoint,
            link: &link,
            standing: &standing,
            choice: &choice,
            spares: &spares,
            crossing: &crossing,
        };
        let coming = Coming {
            links: link.subscribe(),
            arriving,
            begun,
            spares: &spares,
            endpoint: &endpoint,
        };
        let ended = tokio::select! {
            ended = write_control(send, queue, moves) => ended,
            ended = incoming.read_control(recv) => ended,
            ended = coming.accept_bulk(&taking, &mut opening) => ended,
            ended = mover.run(continuing) => ended,
            () = provision => DownReason::Shutdown,
            gone = over(link.subscribe()) => from_gone(&gone),
        };
        // Nothing of the session comes after its Down.
        opening.shutdown().await;
        lent.into_inner().shutdown().await;
        room.close();
        spares.clear();
        if let DownReason::Protocol { reason } = &ended {
            link.borrow().close(CloseCode::Protocol, reason);
        } else {
            link.borrow().close(CloseCode::Shutdown, "the session is over");
        }
        metrics::gauge!(counters::CONNECTIONS).decrement(1.0);
        let reason = verdict.get().cloned().unwrap_or(ended);
        hangups.hang_up(&reason.to_string());
        let _ = events.send(PeerEvent::Down { peer: fingerprint, session, reason }).await;
    }
}

/// From now on the peer is trusted: beside the control stream it may open bulk transfers.
fn trusted(link: &Link) {
    if let Link::Quic(quic) = link {
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(1 + MAX_BULK_STREAMS));
    }
}

/// Takes the session over to QUIC.
struct Mover<'a> {
    dialled: bool,
    peer: &'a PeerInfo,
    endpoint: &'a Endpoint,
    link: &'a watch::Sender<Link>,
    standing: &'a Mutex<Standing>,
    choice: &'a Choice,
    spares: &'a Spares,
    crossing: &'a Crossing,
}

impl Mover<'_> {
    /// Runs until it fails in the middle.
    async fn run(&self, mut continuing: mpsc::Receiver<Connection>) -> DownReason {
        let kind = self.link.borrow().kind();
        let moved = match (kind, self.dialled) {
            (LaneKind::Quic, _) => Ok(()),
            (LaneKind::Tls, true) => self.as_dialler().await,
            (LaneKind::Tls, false) => self.as_dialled(&mut continuing).await,
        };
        match moved {
            Ok(()) => pending().await,
            Err(reason) => reason,
        }
    }

    async fn as_dialler(&self) -> Result<(), DownReason> {
        loop {
            let connection = moving::seek(self.endpoint, self.peer).await;
            let link = connection.link.clone();
            if self.crossing.second(connection).await? {
                self.arrived(link);
                return Ok(());
            }
        }
    }

    async fn as_dialled(
        &self,
        continuing: &mut mpsc::Receiver<Connection>,
    ) -> Result<(), DownReason> {
        let Some(connection) = continuing.recv().await else { return Ok(()) };
        let Connection { link, send, recv, .. } = connection;
        self.crossing.first(send, recv).await;
        self.arrived(link);
        self.crossing.peer_moved().await
    }

    fn arrived(&self, link: Link) {
        trusted(&link);
        let standing = Standing { since: Instant::now(), why: None, udp_blocked: false };
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
        self.choice.rides(link.kind());
        tracing::info!(peer = %self.peer.fingerprint.short(), "UDP passes again: control rides on QUIC");
        self.link.send_replace(link);
        // Whatever waits there is of no use to QUIC.
        self.spares.clear();
    }
}

fn from_gone(gone: &Gone) -> DownReason {
    match gone {
        Gone::Silent => DownReason::Silent,
        Gone::Here => DownReason::Shutdown,
        Gone::Closed { code, reason } => match code {
            Some(CloseCode::NotPaired) => DownReason::Unpaired,
            Some(CloseCode::Duplicate) => DownReason::Replaced,
            _ => DownReason::ClosedByPeer { reason: reason.clone() },
        },
        Gone::Lost { reason } => DownReason::Lost { reason: reason.clone() },
        Gone::Failed { reason } => DownReason::Failed { reason: reason.clone() },
        Gone::Broken { reason } => DownReason::Protocol { reason: reason.clone() },
    }
}

fn from_framed(error: &FramedError) -> DownReason {
    match error.gone() {
        Some(gone) => from_gone(gone),
        None => DownReason::Protocol { reason: error.to_string() },
    }
}

async fn write_control(
    mut send: Sending,
    mut queue: mpsc::UnboundedReceiver<Queued>,
    mut moves: mpsc::Receiver<Sending>,
) -> DownReason {
    loop {
        let written = tokio::select! {
            biased;
            Some(next) = moves.recv() => {
                let moved = framed::write(&mut send, FrameType::Moved, &[]).await;
                send.finish();
                send = next;
                moved
            }
            queued = queue.recv() => {
                // Every handle is gone, so the keeper let this session go.
                let Some((payload, room)) = queued else { return DownReason::Replaced };
                let header = frame::Header::new(FrameType::Control, payload.len()).encode();
                let written = send.write_parts([Bytes::copy_from_slice(&header), payload]).await;
                drop(room);
                written.map_err(FramedError::from)
            }
        };
        if let Err(error) = written {
            return from_framed(&error);
        }
    }
}

struct Incoming<'a> {
    peer: Fingerprint,
    session: u64,
    events: &'a mpsc::Sender<PeerEvent>,
    crossing: &'a Crossing,
}

impl Incoming<'_> {
    async fn tell(&self, event: PeerEvent) -> Result<(), DownReason> {
        self.events.send(event).await.map_err(|_| DownReason::Shutdown)
    }

    async fn read_control(&self, mut recv: Receiving) -> DownReason {
        let Self { peer, session, .. } = *self;
        let allowed = [FrameType::Control, FrameType::Moved];
        loop {
            let header = match framed::read_header(&mut recv, &allowed, "Control").await {
                Ok(header) => header,
                Err(error) => return from_framed(&error),
            };
            if header.kind == FrameType::Moved {
                match self.crossing.follow().await {
                    Ok(next) => recv = next,
                    Err(reason) => return reason,
                }
                continue;
            }
            let payload = timeout(SLOW_FRAME, framed::read_payload(&mut recv, header)).await;
            let payload = match payload {
                Ok(Ok(payload)) => Bytes::from(payload),
                Ok(Err(error)) => return from_framed(&error),
                Err(_) => {
                    let reason = "a control frame took it longer than a minute".into();
                    return DownReason::Protocol { reason };
                }
            };
            if let Err(down) = self.tell(PeerEvent::Control { peer, session, payload }).await {
                return down;
            }
        }
    }
}

/// What the peer opens for bulk.
struct Coming<'a> {
    links: watch::Receiver<Link>,
    arriving: mpsc::Receiver<LaneArrival>,
    begun: mpsc::Receiver<Begun>,
    spares: &'a Arc<Spares>,
    endpoint: &'a Endpoint,
}

impl Coming<'_> {
    /// Each lane on a task of its own, so that one that is slow to say what it is for delays no other;
    /// they end with the session.
    async fn accept_bulk(mut self, taking: &Taking, opening: &mut JoinSet<()>) -> DownReason {
        let most = MAX_BULK_STREAMS as usize + SPARES;
        loop {
            let link = self.links.borrow_and_update().clone();
            tokio::select! {
                streams = streams(&link) => match streams {
                    Ok((send, recv)) => drop(opening.spawn(taking.clone().stream(send, recv))),
                    Err(gone) => return from_gone(&gone),
                },
                // QUIC bounds its streams itself.
                Some(lane) = self.arriving.recv(), if opening.len() < most => {
                    self.arrived(lane, &link, taking, opening);
                }
                Some(begun) = self.begun.recv(), if opening.len() < most => {
                    drop(opening.spawn(taking.clone().begun(begun)));
                }
                Some(_) = opening.join_next() => {}
                // Without the other end the session is about to end as well.
                Ok(()) = self.links.changed() => {}
            }
        }
    }

    fn arrived(&self, lane: LaneArrival, link: &Link, taking: &Taking, opening: &mut JoinSet<()>) {
        let over_tls = link.kind() == LaneKind::Tls;
        if !lane.open.reverse {
            drop(opening.spawn(taking.clone().arrival(lane, over_tls)));
            return;
        }
        if !over_tls || !self.spares.wants() {
            let reason = "no further connection to send on is needed";
            return lane.refuse(self.endpoint.local(), RejectCode::Other, reason);
        }
        let spares = Arc::clone(self.spares);
        opening.spawn(async move {
            if let Ok(Ok(opened)) = timeout(super::lanes::OPEN_TIMEOUT, lane.accept()).await {
                // One too many is let go.
                drop(spares.put(opened));
            }
        });
    }
}

/// The next streams of a QUIC connection.
async fn streams(link: &Link) -> Result<(quinn::SendStream, quinn::RecvStream), Gone> {
    match link {
        Link::Quic(quic) => quic.accept_bi().await.map_err(|e| Gone::from(&e)),
        Link::Tls(_) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use quinn::TransportErrorCode;

    use super::*;

    #[test]
    fn a_connection_that_quic_gave_up_on_is_nobodys_fault() {
        let closed = |error_code| {
            let reason = Bytes::from_static(b"too many gaps in stream buffer");
            let close = quinn::ConnectionClose { error_code, frame_type: None, reason };
            from_gone(&Gone::from(&quinn::ConnectionError::ConnectionClosed(close)))
        };
        let failed = closed(TransportErrorCode::INTERNAL_ERROR);
        assert!(matches!(&failed, DownReason::Failed { .. }), "{failed:?}");
        assert!(failed.to_string().contains("too many gaps"), "{failed}");
        let broken = closed(TransportErrorCode::FLOW_CONTROL_ERROR);
        assert!(matches!(broken, DownReason::Protocol { .. }), "{broken:?}");
    }
}
