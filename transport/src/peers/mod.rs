//! Peers: one warm connection with each, redialled when it is lost.
//!
//! ```text
//!            set_peer, remove_peer          connected (dialled or accepted)
//!   handle ───────────────────────▶ keeper ◀──────────────────────────── endpoint, dialling tasks
//!     │                                │ starts, replaces, closes
//!     │ send_control, open_bulk        ▼
//!     └─────────────────────────▶ session ──▶ events: Up, Control…, Bulk…, Down
//! ```
//!
//! Owns: which connection of a peer is the one, dialling with backoff, control in order, handing bulk
//! transfers over. Leaves to others: what is said, whom to trust, the bulk bytes themselves
//! ([`crate::bulk`]).
//!
//! For each peer the events come as `Up`, then any number of `Control` and `Bulk`, then `Down`; a new
//! `Up` only after the `Down`. Control sent before `Down` may be lost: the engine asks again after
//! `Up`.
//!
//! When both dial at once, the connection dialled by the smaller fingerprint stays on both sides.
//!
//! The connection is QUIC; where UDP does not pass it is TLS over TCP, and the session goes over to QUIC when UDP
//! passes again, without ending.
//!
//! # Memory
//!
//! Outgoing control: 8 MiB per peer, then `send_control` waits. Incoming: the event channel holds 16
//! events of at most 1 MiB and each session one more; when the engine does not take them, QUIC's flow
//! control stops the peer.

mod dial;
mod handle;
mod keeper;
mod lanes;
mod moving;
mod session;
mod spares;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flocker_core::ids::Fingerprint;
use tokio::sync::{mpsc, watch};

use crate::bulk::{BulkReceiver, BulkSender, Resources};
use crate::endpoint::{Endpoint, LocalNode, PeerInfo};
use crate::error::{BindError, ConnectError, RefusedPeer};
use crate::identity::Identity;
use crate::lane::choice::LaneStatus;
use crate::link::LinkStatus;
use crate::pairing::{self, Invitation, InvitationEvent, PairError, Paired, PairingCode};
use crate::trust::Trust;

use handle::SessionHandle;
use keeper::Command;

pub use handle::{ControlError, OpenBulkError};

/// Events that may wait to be taken.
pub const EVENTS: usize = 16;

/// What happens with peers.
#[derive(Debug)]
pub enum PeerEvent {
    /// The connection with a peer is up.
    Up {
        /// Who; `fingerprint` is the key by which it is known.
        peer: PeerInfo,
        /// Number of the connection, never used twice by this process.
        session: u64,
    },
    /// It is down. Transfers on it end with errors of their own.
    Down {
        /// Who.
        peer: Fingerprint,
        /// Number of the connection that ended.
        session: u64,
        /// Why.
        reason: DownReason,
    },
    /// A control payload, in the order in which it was sent.
    Control {
        /// From whom.
        peer: Fingerprint,
        /// On which connection.
        session: u64,
        /// As it was given to `send_control`.
        payload: Bytes,
    },
    /// A peer opens a bulk transfer. Receive it on a thread with [`crate::receive_stream`].
    Bulk {
        /// From whom.
        peer: Fingerprint,
        /// On which connection.
        session: u64,
        /// As it was given to `open_bulk`.
        header: Bytes,
        /// The transfer.
        receiver: BulkReceiver,
    },
    /// Dialling a peer failed in a new way; dialling goes on.
    DialFailed {
        /// Who.
        peer: Fingerprint,
        /// Why, of the last address tried.
        error: ConnectError,
    },
    /// Somebody who proved a key was turned away: not paired, or another protocol version.
    Refused(RefusedPeer),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// Nothing came any more.
    #[error("the peer went silent")]
    Silent,
    /// The connection beneath ended without a word.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What the system said.
        reason: String,
    },
    /// The peer closed it.
    #[error("the peer closed the connection: {reason}")]
    ClosedByPeer {
        /// Its words.
        reason: String,
    },
    /// The key is not trusted any more, or the peer was removed.
    #[error("the peer is not paired with this node any more")]
    Unpaired,
    /// Another connection with the same peer takes its place.
    #[error("another connection with the peer takes its place")]
    Replaced,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {reason}")]
    Protocol {
        /// How.
        reason: String,
    },
    /// QUIC itself came to its limits on this path, such as too many gaps in what had arrived. Nobody is to
    /// blame; it is dialled again, and transfers resume.
    #[error("the connection failed: {reason}")]
    Failed {
        /// How.
        reason: String,
    },
    /// This node stops.
    #[error("this node stops")]
    Shutdown,
}

/// What a peer is doing, for people.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub fingerprint: Fingerprint,
    /// Where it is dialled.
    pub addresses: Vec<String>,
    /// The peer and the round-trip time, while the connection is up.
    pub up: Option<(PeerInfo, std::time::Duration)>,
    /// Which way control takes, while the connection is up.
    pub link: Option<LinkStatus>,
    /// Which lane a large transfer to it takes, while the connection is up.
    pub lane: Option<LaneStatus>,
    /// Why the last dial failed, while it is not up.
    pub last_error: Option<ConnectError>,
}

/// The connections of a node. Clones are the same one.
#[derive(Debug, Clone)]
pub struct PeerManager(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) resources: Arc<Resources>,
    commands: mpsc::UnboundedSender<Command>,
    sessions: watch::Receiver<BTreeMap<Fingerprint, SessionHandle>>,
    status: Arc<Mutex<BTreeMap<Fingerprint, Known>>>,
}

/// What is known of a configured peer beside its session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) addresses: Vec<String>,
    pub(crate) last_error: Option<ConnectError>,
}

impl PeerManager {
    /// Binds `listen` and starts. Must be called within a tokio runtime; the events must be taken.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn start(
        listen: SocketAddr,
        identity: Arc<Identity>,
        local: LocalNode,
        trust: Arc<dyn Trust>,
    ) -> Result<(Self, mpsc::Receiver<PeerEvent>), BindError> {
        let resources = Resources::start().map_err(BindError::Workers)?;
        let (endpoint, arrivals) = Endpoint::bind(listen, identity, local, Arc::clone(&trust))?;
        let (events, taken) = mpsc::channel(EVENTS);
        // Unbounded, but only this node's own few calls go through it, and they may not wait for events.
        let (commands, orders) = mpsc::unbounded_channel();
        let (publish, sessions) = watch::channel(BTreeMap::new());
        let status = Arc::new(Mutex::new(BTreeMap::new()));
        let keeper = keeper::Keeper::new(keeper::Parts {
            endpoint: endpoint.clone(),
            resources: Arc::clone(&resources),
            trust,
            events,
            publish,
            status: Arc::clone(&status),
        });
        tokio::spawn(keeper.run(orders, arrivals));
        let shared = Shared { endpoint, resources, commands, sessions, status };
        Ok((Self(Arc::new(shared)), taken))
    }

    /// The address that is bound.
    ///
    /// # Errors
    /// [`BindError::Socket`].
    pub fn local_addr(&self) -> Result<SocketAddr, BindError> {
        self.0.endpoint.local_addr()
    }

    /// This node's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.endpoint.fingerprint()
    }

    /// Workers and memory that all transfers of this node share.
    pub fn resources(&self) -> &Arc<Resources> {
        &self.0.resources
    }

    /// Keeps a connection with `peer`, dialling `addresses` (`host:port`) in turn while there is
    /// none; with no addresses it waits to be dialled. Called again, it changes the addresses.
    /// The peer must also be trusted.
    pub fn set_peer(&self, peer: Fingerprint, addresses: Vec<String>) {
        self.command(Command::Set { peer, addresses });
    }

    /// Dials `peer` no longer, and closes its connection.
    pub fn remove_peer(&self, peer: &Fingerprint) {
        self.command(Command::Remove { peer: *peer });
    }

    fn command(&self, command: Command) {
        // The keeper lives as long as this handle; it is gone only when the runtime is.
        let _ = self.0.commands.send(command);
    }

    /// Whether the connection with `peer` is up.
    pub fn is_up(&self, peer: &Fingerprint) -> bool {
        self.0.sessions.borrow().contains_key(peer)
    }

    /// Every configured or connected peer.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let sessions = self.0.sessions.borrow().clone();
        let mut known = self.0.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for peer in sessions.keys() {
            known.entry(*peer).or_default();
        }
        let status = |(fingerprint, Known { addresses, last_error })| {
            let session = sessions.get(&fingerprint);
            let up = session.map(SessionHandle::status);
            let lane = session.map(SessionHandle::lane_status);
            let link = session.map(SessionHandle::link_status);
            PeerStatus { fingerprint, addresses, up, link, lane, last_error }
        };
        known.into_iter().map(status).collect()
    }

    fn session(&self, peer: &Fingerprint) -> Option<SessionHandle> {
        self.0.sessions.borrow().get(peer).cloned()
    }

    /// Queues a control payload; payloads to one peer arrive in the order of these calls, once, or not
    /// at all when the connection ends. Waits while 8 MiB are queued.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn send_control(
        &self,
        peer: &Fingerprint,
        payload: Bytes,
    ) -> Result<(), ControlError> {
        let session = self.session(peer).ok_or(ControlError::Down { peer: *peer })?;
        session.send_control(payload).await
    }

    /// As [`PeerManager::send_control`], but [`ControlError::Full`] instead of waiting.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn try_send_control(&self, peer: &Fingerprint, payload: Bytes) -> Result<(), ControlError> {
        let session = self.session(peer).ok_or(ControlError::Down { peer: *peer })?;
        session.try_send_control(payload)
    }

    /// Opens a bulk transfer of about `bytes`, where that is known; the peer sees `header` (at most 64 KiB) in
    /// [`PeerEvent::Bulk`]. What is large may go over TLS ([`crate::lane::choice`]), and may first be
    /// preceded by a measurement of a third of a second. Waits while this node or the peer has as many
    /// transfers as it takes.
    ///
    /// # Errors
    /// [`OpenBulkError`].
    pub async fn open_bulk(
        &self,
        peer: &Fingerprint,
        header: &[u8],
        bytes: Option<u64>,
    ) -> Result<BulkSender, OpenBulkError> {
        let session = self.session(peer).ok_or(OpenBulkError::Down { peer: *peer })?;
        session.open_bulk(header, bytes, &self.0.resources).await
    }

    /// Opens an invitation, ending an earlier one; its events end with `Paired` or `Ended`. Dropping
    /// the receiver ends it too.
    pub async fn invite(&self, invitation: Invitation) -> mpsc::Receiver<InvitationEvent> {
        self.0.endpoint.inviter().open(invitation).await
    }

    /// Ends the open invitation, if there is one.
    pub async fn end_invitation(&self) {
        self.0.endpoint.inviter().close().await;
    }

    /// Joins the node that invites at `address` (`host:port`); `addresses` are this node's own.
    ///
    /// # Errors
    /// [`PairError`], of the last address the name resolved to.
    pub async fn join(
        &self,
        address: &str,
        code: &PairingCode,
        addresses: &[String],
    ) -> Result<Paired, PairError> {
        let mut failed = None;
        for address in dial::resolve(address).await? {
            match pairing::join(&self.0.endpoint, address, code, addresses).await {
                Err(PairError::Connect(error @ ConnectError::Unreachable { .. })) => {
                    failed = Some(PairError::Connect(error));
                }
                other => return other,
            }
        }
        Err(failed.unwrap_or_else(|| {
            let (host, reason) = (address.to_owned(), "the name has no address".to_owned());
            PairError::Connect(ConnectError::Unresolved { host, reason })
        }))
    }

    /// Stops: tells every peer, closes the socket.
    pub async fn close(&self) {
        self.command(Command::Shutdown);
        self.0.endpoint.close("this node stops").await;
    }
}
