//! The lanes of a session: opening one for a transfer, and taking those that the peer opens.
//!
//! Owns: acting on the [`Choice`], measuring before it, what becomes of a lane's first frame, and that lanes
//! over TLS end with the session that they belong to. Where control rides on TLS every lane does, on connections
//! that are kept ready ([`super::spares`]). Leaves to others: the choice itself
//! ([`crate::lane::choice`]), the bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::PeerEvent;
use super::spares::{Begun, Spares};
use crate::bulk::{BulkReceiver, Resources};
use crate::cancel::Cancel;
use crate::endpoint::{Endpoint, PeerInfo};
use crate::frame::FrameType;
use crate::frame::lane::LaneOpen;
use crate::framed;
use crate::lane::choice::{Choice, LaneKind, SMALL_BYTES};
use crate::lane::probe::{self, Figures};
use crate::lane::tls::Hangup;
use crate::lane::{self, Lane};
use crate::link::Link;
use crate::tcp::{self, LaneArrival, Opened};

/// Small transfers go before large ones on the same connection: they are what somebody waits for, and of
/// the large ones' time they take little.
const SMALL_PRIORITY: i32 = 1;

/// A peer that opens a stream says at once what for.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The session's lanes over TLS; `None` when it is over.
#[derive(Debug, Clone)]
pub(super) struct Hangups(Arc<Mutex<Option<Vec<Hangup>>>>);

impl Default for Hangups {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }
}

impl Hangups {
    /// Has a lane end with the session.
    fn add(&self, hangup: Hangup) {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(lanes) => {
                lanes.retain(|lane| !lane.is_over());
                lanes.push(hangup);
            }
            None => hangup.hang_up("the connection with the peer is down"),
        }
    }

    /// Ends them all.
    pub(super) fn hang_up(&self, reason: &str) {
        let lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        for lane in lanes.into_iter().flatten() {
            lane.hang_up(reason);
        }
    }
}

/// What opening a lane needs of a session.
pub(super) struct Lanes<'a> {
    pub(super) session: u64,
    /// Whether this side dialled the session.
    pub(super) dialled: bool,
    pub(super) link: Link,
    pub(super) peer: &'a PeerInfo,
    pub(super) endpoint: &'a Endpoint,
    pub(super) choice: &'a Choice,
    pub(super) hangups: &'a Hangups,
    pub(super) spares: &'a Spares,
}

impl Lanes<'_> {
    /// Opens a lane for a transfer of so many bytes, where that is known.
    ///
    /// # Errors
    /// Why the session's connection is lost. Beside QUIC, TLS fails nothing; where control rides on TLS there is
    /// nothing else.
    pub(super) async fn open(
        &self,
        header: &[u8],
        bytes: Option<u64>,
        resources: &Resources,
    ) -> Result<(Lane, LaneKind), String> {
        let quic = match &self.link {
            Link::Quic(quic) => quic,
            Link::Tls(_) => return Ok((self.over_tls_alone(header).await?, LaneKind::Tls)),
        };
        if self.choice.is_due(bytes, Instant::now()) && resources.is_otherwise_idle() {
            self.measure(quic, bytes).await;
        }
        if self.choice.lane_for(bytes, Instant::now()) == LaneKind::Tls
            && let Some(lane) = self.tls(FrameType::BulkOpen, header).await
        {
            return Ok((lane, LaneKind::Tls));
        }
        let priority =
            if bytes.is_some_and(|bytes| bytes < SMALL_BYTES) { SMALL_PRIORITY } else { 0 };
        Ok((over_quic(quic, FrameType::BulkOpen, header, priority).await?, LaneKind::Quic))
    }

    async fn over_tls_alone(&self, header: &[u8]) -> Result<Lane, String> {
        let opened = match (self.spares.take(), self.dialled) {
            (Some(opened), _) => opened,
            (None, true) => {
                let dialled = self.dial_tls(false, None).await;
                dialled.ok_or("no further connection over TLS can be had")?
            }
            (None, false) => {
                let lent = self.spares.wait().await;
                lent.ok_or("the peer, who dialled, lends no connection over TLS to send on")?
            }
        };
        let begun = opened.begin(FrameType::BulkOpen, header).await;
        let (lane, hangup) = begun.map_err(|e| e.to_string())?;
        self.hangups.add(hangup);
        Ok(lane)
    }

    async fn measure(&self, connection: &quinn::Connection, bytes: Option<u64>) {
        let _once = self.choice.measuring.lock().await;
        if !self.choice.is_due(bytes, Instant::now()) {
            return;
        }
        // One after the other, or each would be in the other's way.
        let tls = match self.tls(FrameType::Probe, &[]).await {
            Some(lane) => probed(lane).await,
            None => return,
        };
        let quic = match over_quic(connection, FrameType::Probe, &[], 0).await {
            Ok(lane) => probed(lane).await,
            Err(_) => return,
        };
        self.choice.measured(quic, tls, Instant::now());
        if tls.is_none() {
            // After what was measured, which it takes back: it is measured again.
            self.choice.tls_failed("a measurement of it broke off", Instant::now());
        }
        let status = self.choice.status(Instant::now());
        tracing::info!(
            peer = %self.peer.fingerprint.short(),
            session = self.session,
            chosen = %status.chosen,
            why = status.why,
            ?quic,
            ?tls,
            "the lanes were measured"
        );
    }

    /// `None` when it cannot be had, which the choice then knows.
    async fn tls(&self, first: FrameType, payload: &[u8]) -> Option<Lane> {
        let opened = self.dial_tls(false, Some((first, payload))).await?;
        match opened.into_lane() {
            Ok((lane, hangup)) => {
                self.hangups.add(hangup);
                Some(lane)
            }
            Err(error) => {
                self.choice.tls_failed(&error.to_string(), Instant::now());
                None
            }
        }
    }

    /// A connection for a lane; `reverse`: on which the other side will send. `None` when it cannot be had, which
    /// the choice then knows.
    pub(super) async fn dial_tls(
        &self,
        reverse: bool,
        first: Option<(FrameType, &[u8])>,
    ) -> Option<Opened> {
        let local = self.endpoint.local();
        let (protocol, dialler, acceptor) =
            (local.protocol, local.incarnation, self.peer.incarnation);
        let open = LaneOpen { protocol, dialler, acceptor, reverse };
        let (key, address) = (self.peer.fingerprint, self.link.remote_address());
        match tcp::dial(self.endpoint.identity(), key, address, open, first).await {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(peer = %key.short(), %error, "no bulk over TLS for now");
                self.choice.tls_failed(&error.to_string(), Instant::now());
                None
            }
        }
    }
}

async fn over_quic(
    quic: &quinn::Connection,
    first: FrameType,
    payload: &[u8],
    priority: i32,
) -> Result<Lane, String> {
    let (mut send, recv) = quic.open_bi().await.map_err(|e| e.to_string())?;
    // A failure means that the stream is gone, which writing says.
    let _ = send.set_priority(priority);
    framed::write(&mut send, first, payload).await.map_err(|e| e.to_string())?;
    Ok(lane::quic::lane(&Handle::current(), send, recv))
}

async fn probed(lane: Lane) -> Option<Figures> {
    match spawn_blocking(move || probe::measure(lane)).await {
        Ok(Ok(figures)) => Some(figures),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a lane could not be measured");
            None
        }
        Err(_) => None,
    }
}

/// What taking the peer's lanes needs of a session.
#[derive(Clone)]
pub(super) struct Taking {
    pub(super) peer: Fingerprint,
    pub(super) session: u64,
    pub(super) resources: Arc<Resources>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) hangups: Hangups,
}

impl Taking {
    /// A QUIC stream that the peer opened.
    pub(super) async fn stream(self, send: SendStream, mut recv: RecvStream) {
        let slot = self.resources.receive_slot().await;
        let allowed = [FrameType::BulkOpen, FrameType::Probe];
        let opened = framed::read(&mut recv, &allowed, "BulkOpen or Probe");
        match timeout(OPEN_TIMEOUT, opened).await {
            Ok(Ok((first, payload))) => {
                let lane = lane::quic::lane(&Handle::current(), send, recv);
                self.take(lane, first, payload, slot).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a peer opened a stream that is no transfer");
            }
            Err(_) => {}
        }
    }

    /// A TLS connection that the peer opened, to send on it: now, or `later`, as one that it keeps ready.
    pub(super) async fn arrival(self, arrival: LaneArrival, later: bool) {
        let Ok(Ok(mut opened)) = timeout(OPEN_TIMEOUT, arrival.accept()).await else { return };
        let first = match later {
            true => opened.first().await,
            false => match timeout(OPEN_TIMEOUT, opened.first()).await {
                Ok(first) => first,
                Err(_) => return,
            },
        };
        match first {
            Ok((first, payload)) => self.begun(Begun { opened, first, payload }).await,
            Err(error) => {
                tracing::debug!(%error, "a connection of the peer's came to nothing");
            }
        }
    }

    /// A TLS connection on which the peer has said what for.
    pub(super) async fn begun(self, begun: Begun) {
        let Begun { opened, first, payload } = begun;
        // A lane before there is a place, as a stream is; what it sends waits in the sockets.
        let Ok((lane, hangup)) = opened.into_lane() else { return };
        self.hangups.add(hangup);
        let slot = self.resources.receive_slot().await;
        self.take(lane, first, payload, slot).await;
    }

    async fn take(self, lane: Lane, first: FrameType, payload: Vec<u8>, slot: crate::bulk::Slot) {
        let Self { peer, session, resources, events, .. } = self;
        if first == FrameType::Probe {
            let answered = spawn_blocking(move || probe::answer(lane)).await;
            if let Ok(Err(error)) = answered {
                tracing::debug!(%error, "a measurement of the peer's broke off");
            }
            return;
        }
        let (cancel, _slot, header) = (Cancel::default(), Some(slot), Bytes::from(payload));
        let (from, received) = (Some(peer), None);
        let receiver =
            BulkReceiver { lane, cancel, resources, peer: from, _slot, received, old_copy: None };
        // Without an engine to take it, the transfer is reset by being dropped.
        let _ = events.send(PeerEvent::Bulk { peer, session, header, receiver }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::task::JoinSet;

    use super::super::PeerManager;
    use super::super::spares::SPARES;
    use super::*;
    use crate::bulk::MAX_TRANSFERS;
    use crate::endpoint::LocalNode;
    use crate::identity::Identity;
    use crate::tcp::TcpError;
    use crate::trust::TrustSet;
    use crate::tuning::MAX_BULK_STREAMS;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// What a peer may have open at most: transfers that run, lanes that wait for a place, and lanes that nobody has
    /// looked at.
    const MOST: usize = MAX_TRANSFERS + 2 * (MAX_BULK_STREAMS as usize + SPARES);

    async fn up(events: &mut mpsc::Receiver<PeerEvent>) {
        let up = async { while !matches!(events.recv().await, Some(PeerEvent::Up { .. })) {} };
        timeout(PATIENCE, up).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_opens_lanes_without_end_is_refused_and_can_still_send_when_it_stops() {
        let keys = [(); 2].map(|()| Arc::new(Identity::ephemeral().unwrap()));
        let trust = Arc::new(TrustSet::new(keys.each_ref().map(|key| key.fingerprint())));
        let start = |at: usize, name| {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let (key, trust) = (Arc::clone(&keys[at]), Arc::clone(&trust));
            PeerManager::start(listen, key, LocalNode::new(name), trust).unwrap()
        };
        let ((a, mut of_a), (b, mut of_b)) = (start(0, "a"), start(1, "b"));
        let (to, address) = (keys[1].fingerprint(), b.local_addr().unwrap());
        a.set_peer(to, vec![address.to_string()]);
        up(&mut of_a).await;
        up(&mut of_b).await;

        let (here, there) = (a.0.endpoint.local(), b.0.endpoint.local());
        let (dialler, acceptor) = (here.incarnation, there.incarnation);
        let open = LaneOpen { protocol: here.protocol, dialler, acceptor, reverse: false };
        let (mut dialling, mut opened, mut refused) = (JoinSet::new(), Vec::new(), 0);
        let mut left = 2 * MOST;
        while left > 0 || !dialling.is_empty() {
            // No more at once than handshakes are allowed.
            if left > 0 && dialling.len() < 32 {
                left -= 1;
                let key = Arc::clone(&keys[0]);
                dialling.spawn(async move {
                    let first = Some((FrameType::BulkOpen, &b"flood"[..]));
                    tcp::dial(&key, to, address, open, first).await
                });
                continue;
            }
            match dialling.join_next().await.unwrap().unwrap() {
                Ok(lane) => opened.push(lane),
                Err(TcpError::Refused { reason }) => {
                    assert_eq!(reason, "too many transfers are being opened");
                    refused += 1;
                }
                // Nobody looked at it in time.
                Err(_) => {}
            }
        }
        assert!(refused > 0, "none was refused");
        assert!(opened.len() <= MOST, "{} are open at once", opened.len());

        drop(opened);
        let real = async {
            loop {
                match of_b.recv().await {
                    Some(PeerEvent::Bulk { header, .. }) if &header[..] == b"real" => return true,
                    // What the flood began is given up by being dropped.
                    Some(_) => {}
                    None => return false,
                }
            }
        };
        let sending = a.open_bulk(&to, b"real", Some(1 << 30));
        let (sender, arrived) = tokio::join!(sending, timeout(PATIENCE, real));
        sender.unwrap();
        assert!(arrived.unwrap(), "the transfer does not get through");
    }
}
