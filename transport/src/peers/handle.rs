//! What others hold of a session: its state, its queue, and opening transfers.
//!
//! Owns: the room in the queue of control, and what is told of the way that control takes. Leaves to others: running
//! the session ([`super::session`]).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};

use super::DownReason;
use super::lanes::{Hangups, Lanes};
use super::spares::Spares;
use crate::bulk::{BulkSender, Pace, Resources};
use crate::cancel::Cancel;
use crate::endpoint::{CloseCode, Connection, Endpoint, LocalNode, PeerInfo};
use crate::frame::hello::{Call, RejectCode};
use crate::frame::{MAX_BULK_HEADER, MAX_CONTROL};
use crate::lane::choice::{Choice, LaneKind, LaneMode, LaneStatus};
use crate::link::{Gone, Link, LinkStatus};
use crate::tcp::LaneArrival;

/// Control payloads that wait to be written to one peer, in bytes.
pub(super) const QUEUED_CONTROL_BYTES: usize = 8 << 20;

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
pub(super) type Queued = (Bytes, OwnedSemaphorePermit);

/// What others hold of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionHandle {
    pub(super) id: u64,
    pub(super) dialled: bool,
    pub(super) peer: PeerInfo,
    pub(super) link: watch::Receiver<Link>,
    pub(super) standing: Arc<Mutex<Standing>>,
    pub(super) control: mpsc::UnboundedSender<Queued>,
    pub(super) room: Arc<Semaphore>,
    pub(super) verdict: Verdict,
    pub(super) endpoint: Endpoint,
    pub(super) choice: Arc<Choice>,
    /// Lanes over TLS that the peer opened.
    pub(super) arriving: mpsc::Sender<LaneArrival>,
    /// A connection over QUIC on which the peer goes on.
    pub(super) continuing: mpsc::Sender<Connection>,
    pub(super) hangups: Hangups,
    pub(super) spares: Arc<Spares>,
}

/// Which way control takes, since when, and why.
#[derive(Debug)]
pub(super) struct Standing {
    since: Instant,
    why: Option<String>,
    udp_blocked: bool,
}

impl Standing {
    pub(super) fn of(local: &LocalNode, connection: &Connection) -> Self {
        if connection.link.kind() == LaneKind::Quic {
            return Self::usual();
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
        Self { why: Some(why), udp_blocked, ..Self::usual() }
    }

    /// Over QUIC, from now on.
    pub(super) fn usual() -> Self {
        Self { since: Instant::now(), why: None, udp_blocked: false }
    }
}

/// Why this side closed a session, where it did.
pub(super) type Verdict = Arc<OnceLock<DownReason>>;

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
pub(super) async fn over(mut links: watch::Receiver<Link>) -> Gone {
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
