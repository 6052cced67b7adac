//! A session: one connection from Up to Down.
//!
//! Owns: the control stream's writer and reader, accepting bulk transfers, and telling why it ended.
//! Leaves to others: whether it is the right connection ([`super::keeper`]), what others hold of it
//! ([`super::handle`]), going over to QUIC in the middle ([`super::moving`]), lanes ([`super::lanes`]).

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use quinn::VarInt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::handle::{QUEUED_CONTROL_BYTES, Queued, SessionHandle, Standing, Verdict, over};
use super::lanes::{Hangups, Lanes, Taking};
use super::moving::{Crossing, Mover};
use super::spares::{self, Begun, SPARES, Spares};
use super::{DownReason, PeerEvent};
use crate::bulk::Resources;
use crate::counters;
use crate::endpoint::{CloseCode, Connection, Endpoint, PeerInfo};
use crate::frame::hello::RejectCode;
use crate::frame::{self, FrameType};
use crate::framed::{self, FramedError};
use crate::lane::choice::{Choice, LaneKind};
use crate::link::{Gone, Link, Receiving, Sending};
use crate::tcp::LaneArrival;
use crate::tuning::MAX_BULK_STREAMS;

/// How long the payload of a control frame may take once its header is there. The largest at 17 KB/s; who is slower
/// does it on purpose.
const SLOW_FRAME: Duration = Duration::from_secs(60);

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
pub(super) fn trusted(link: &Link) {
    if let Link::Quic(quic) = link {
        quic.set_max_concurrent_bi_streams(VarInt::from_u32(1 + MAX_BULK_STREAMS));
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
