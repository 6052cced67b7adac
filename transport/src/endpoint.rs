//! The QUIC endpoint: one socket, through which a node dials and is dialled.
//!
//! Owns: binding, also the TCP port of the same number ([`crate::tcp`]), dialling a pinned key, the limits on what unknown callers may cost, and the greeting
//! that makes a QUIC connection a [`Connection`] with a peer (`greeting`). Leaves to others:
//! redialling and keeping one connection per peer ([`crate::peers`]), pairing ([`crate::pairing`]).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use crate::counters;
use crate::error::{BindError, ConnectError, RefusedPeer};
use crate::frame::PROTOCOL_VERSION;
use crate::frame::hello::Hello;
use crate::greeting;
use crate::identity::{Identity, fingerprint_of};
use crate::lane::choice::LaneMode;
use crate::pairing::InviterSlot;
use crate::tcp::{self, LaneArrival};
use crate::tls::{self, ALPN_PAIR, ALPN_PEER};
use crate::trust::Trust;
use crate::tuning::{self, UdpMode};
use crate::udp::{self, GatherRuntime, GatherSocket};

/// Strangers whose handshake is under way at once; more are turned away.
const MAX_HANDSHAKES: usize = 64;

/// From this many on, a caller must first show that it receives at the address it claims.
const HANDSHAKES_UNVALIDATED: usize = 16;

/// Pairing connections at once: nobody needs more than one, and they may take seconds.
const MAX_PAIRINGS: usize = 8;

/// TLS and greeting together, of either side.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports that are tried for one that is free for UDP and TCP, when any will do.
const PORTS_TRIED: usize = 32;

/// Connections that wait for the node to take them.
const ARRIVALS: usize = 16;

/// The server name of every dial; certificates are not looked at for names.
const SERVER_NAME: &str = "flocker-repl";

/// Codes with which connections are closed, see `WIRE.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The node stops.
    Shutdown = 0,
    /// The key is not, or no longer, paired.
    NotPaired = 1,
    /// The protocol versions differ.
    Version = 2,
    /// Both dialled at once, or again; the other connection stays.
    Duplicate = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// Too much at once.
    Busy = 5,
    /// Pairing is over, well or not.
    PairingOver = 6,
}

impl CloseCode {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Shutdown,
        Self::NotPaired,
        Self::Version,
        Self::Duplicate,
        Self::Protocol,
        Self::Busy,
        Self::PairingOver,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The meaning of a number.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| u64::from(c.code()) == code)
    }
}

/// What this node says of itself.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// Its name, for people; at most 64 bytes.
    pub name: String,
    /// Its software version, for people.
    pub software: String,
    /// The protocol version it speaks: [`PROTOCOL_VERSION`], but for tests.
    pub protocol: u16,
    /// Drawn when the process starts, so that peers see a restart.
    pub incarnation: u64,
    /// Which lanes it uses for bulk.
    pub lane: LaneMode,
    /// How its UDP socket sends.
    pub udp: UdpMode,
    /// Whether it listens for bulk over TLS: the endpoint finds out when it binds.
    pub(crate) tls: bool,
    /// What its UDP socket was granted to hold unread, in KiB; found out in the same way.
    pub(crate) udp_room_kib: u32,
}

impl LocalNode {
    /// This build, under a name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            incarnation: random_u64(),
            lane: LaneMode::default(),
            udp: UdpMode::default(),
            tls: false,
            udp_room_kib: 0,
        }
    }

    /// The same, with other lanes.
    #[must_use]
    pub fn with_lane(self, lane: LaneMode) -> Self {
        Self { lane, ..self }
    }

    /// The same, with another way to send over UDP: for measuring one against the other.
    #[must_use]
    pub fn with_udp(self, udp: UdpMode) -> Self {
        Self { udp, ..self }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocol: self.protocol,
            incarnation: self.incarnation,
            name: self.name.clone(),
            software: self.software.clone(),
            tls: self.tls,
            udp_room_kib: self.udp_room_kib,
        }
    }
}

/// Eight random bytes. Without entropy nothing here is safe, TLS least of all.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let drawn = getrandom::fill(&mut bytes);
    assert!(drawn.is_ok(), "the system has no entropy: {drawn:?}");
    u64::from_le_bytes(bytes)
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its key, proven.
    pub fingerprint: Fingerprint,
    /// Its name, claimed.
    pub name: String,
    /// Its software version, claimed.
    pub software: String,
    /// Changes when its process restarts.
    pub incarnation: u64,
    /// Where its packets come from.
    pub address: SocketAddr,
    /// Whether it listens for bulk over TLS, on the TCP port of the number that it listens on.
    pub tls: bool,
    /// What its UDP socket may hold unread, in KiB; 0: it does not say.
    pub udp_room_kib: u32,
}

/// A greeted connection with a trusted peer.
#[derive(Debug)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: PeerInfo,
    /// Whether this side dialled.
    pub dialled: bool,
    pub(crate) quic: quinn::Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Connection {
    /// Closes it at once, telling the peer.
    pub fn close(&self, code: CloseCode, reason: &str) {
        close(&self.quic, code, reason);
    }

    /// Completes when it is closed or lost, with the reason in words.
    pub async fn closed(&self) -> String {
        self.quic.closed().await.to_string()
    }
}

/// What comes to a node that listens.
#[derive(Debug)]
pub enum Arrival {
    /// A trusted peer.
    Connected(Connection),
    /// A key that was proven and then refused.
    Refused(RefusedPeer),
    /// A lane that a trusted peer opens over TLS.
    Lane(Box<LaneArrival>),
}

/// A node's socket. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quic: quinn::Endpoint,
    /// `None` where quinn's own socket is used.
    gathering: Option<Arc<GatherSocket>>,
    identity: Arc<Identity>,
    local: LocalNode,
    inviter: InviterSlot,
    /// Tells the TCP listener to end.
    closed: watch::Sender<bool>,
}

impl Endpoint {
    /// Binds `listen` and starts to answer. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        listen: SocketAddr,
        identity: Arc<Identity>,
        mut local: LocalNode,
        trust: Arc<dyn Trust>,
    ) -> Result<(Self, mpsc::Receiver<Arrival>), BindError> {
        let failed = |source| BindError::Socket { address: listen, source };
        let tls = tls::server_config(&identity, &[ALPN_PEER, ALPN_PAIR])?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|_| BindError::NoInitialCipher)?;
        let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
        let (socket, listener) = sockets(listen, &local).map_err(failed)?;
        local.tls = listener.is_some();
        local.udp_room_kib = tuning::room_kib(&socket);
        let max_packet = local.udp.max_packet_bytes;
        let (config, server) =
            (tuning::endpoint(max_packet), Some(tuning::server(crypto, max_packet)));
        let (quic, gathering) = if local.udp.gather {
            let gathering = udp::socket(socket, max_packet).map_err(failed)?;
            let (socket, runtime) = (gathering.clone(), Arc::new(GatherRuntime));
            let quic = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime);
            (quic, Some(gathering))
        } else {
            (quinn::Endpoint::new(config, server, socket, runtime), None)
        };
        let quic = quic.map_err(failed)?;
        let inviter = InviterSlot::default();
        let (arrivals, taken) = mpsc::channel(ARRIVALS);
        let (closed, closing) = watch::channel(false);
        if let Some(listener) = listener {
            tokio::spawn(tcp::listen(tcp::Listening {
                listener,
                acceptor: tcp::acceptor(&identity)?,
                local: local.clone(),
                trust: Arc::clone(&trust),
                arrivals: arrivals.clone(),
                closed: closing,
            }));
        }
        let endpoint = Self(Arc::new(Inner { quic, gathering, identity, local, inviter, closed }));
        tokio::spawn(listen_loop(endpoint.clone(), trust, arrivals));
        Ok((endpoint, taken))
    }

    /// The address that is bound; with port 0 asked, the port that was given.
    ///
    /// # Errors
    /// [`BindError::Socket`].
    pub fn local_addr(&self) -> Result<SocketAddr, BindError> {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        self.0
            .quic
            .local_addr()
            .map_err(|source| BindError::Socket { address: unspecified, source })
    }

    /// This node's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.identity.fingerprint()
    }

    /// What this node says of itself.
    pub fn local(&self) -> &LocalNode {
        &self.0.local
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    pub(crate) fn inviter(&self) -> &InviterSlot {
        &self.0.inviter
    }

    /// Dials a peer, whose key must be `expected`.
    ///
    /// # Errors
    /// [`ConnectError`], naming both fingerprints, both versions, or whoever refused.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: Fingerprint,
    ) -> Result<Connection, ConnectError> {
        let greeted = timeout(HANDSHAKE_TIMEOUT, async {
            let (quic, found) = self.dial(address, ALPN_PEER, Some(expected)).await?;
            greeting::as_dialler(&quic, self.local(), self.fingerprint(), found)
                .await
                .inspect(|connection| self.learn_room(connection))
                .inspect_err(|e| close(&quic, e.close_code(), &e.to_string()))
        });
        greeted.await.unwrap_or_else(|_| {
            Err(ConnectError::Unreachable { address, reason: "no answer in time".into() })
        })
    }

    /// Sends to a peer whose socket holds a lot in larger bursts.
    fn learn_room(&self, connection: &Connection) {
        let PeerInfo { address, udp_room_kib, .. } = connection.peer;
        if let Some(gathering) = &self.0.gathering
            && udp_room_kib >= tuning::ROOMY_KIB
        {
            gathering.is_roomy(address);
        }
    }

    /// Datagrams that are sent there in one call.
    #[cfg(test)]
    pub(crate) fn most_at_once(&self, to: SocketAddr) -> usize {
        self.0.gathering.as_ref().map_or(1, |gathering| gathering.most_at_once(to))
    }

    /// Dials for pairing, where the key is not known yet; returns it proven.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) async fn dial_for_pairing(
        &self,
        address: SocketAddr,
    ) -> Result<(quinn::Connection, Fingerprint), ConnectError> {
        timeout(HANDSHAKE_TIMEOUT, self.dial(address, ALPN_PAIR, None)).await.unwrap_or_else(|_| {
            Err(ConnectError::Unreachable { address, reason: "no answer in time".into() })
        })
    }

    async fn dial(
        &self,
        address: SocketAddr,
        alpn: &[u8],
        expected: Option<Fingerprint>,
    ) -> Result<(quinn::Connection, Fingerprint), ConnectError> {
        let seen = Arc::new(OnceLock::new());
        let tls = tls::client_config(&self.0.identity, alpn, expected, Arc::clone(&seen))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|_| ConnectError::NoInitialCipher)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(tuning::transport(self.local().udp.max_packet_bytes));
        let connecting = self
            .0
            .quic
            .connect_with(config, address, SERVER_NAME)
            .map_err(|e| ConnectError::Unreachable { address, reason: e.to_string() })?;
        let connected = connecting.await;
        match (connected, seen.get(), expected) {
            (_, Some(found), Some(expected)) if *found != expected => {
                Err(ConnectError::WrongKey { address, expected, found: *found })
            }
            (Ok(quic), Some(found), _) => Ok((quic, *found)),
            (Ok(_), None, _) => unreachable!("a handshake ends only after the verifier ran"),
            (Err(e), _, _) => Err(ConnectError::from_quic(address, &e)),
        }
    }

    /// Closes every connection and takes no more.
    pub(crate) fn shut(&self, reason: &str) {
        self.0.closed.send_replace(true);
        self.0.quic.close(CloseCode::Shutdown.code().into(), reason.as_bytes());
    }

    /// Closes every connection and the socket; waits until peers were told.
    pub async fn close(&self, reason: &str) {
        self.shut(reason);
        // Told or not, a stopping node does not wait longer than it takes to be told.
        let _ = timeout(Duration::from_secs(1), self.0.quic.wait_idle()).await;
    }
}

pub(crate) fn close(quic: &quinn::Connection, code: CloseCode, reason: &str) {
    // A close frame must fit one packet.
    let reason = crate::frame::cursor::presentable(reason, 512);
    quic.close(code.code().into(), reason.as_bytes());
}

/// The UDP socket, and the TCP listener of the same port unless QUIC alone is used. Where another program
/// has the TCP port this node goes on without: then its peers send to it over QUIC.
fn sockets(
    listen: SocketAddr,
    local: &LocalNode,
) -> std::io::Result<(std::net::UdpSocket, Option<TcpListener>)> {
    let mut tried = 0;
    loop {
        let socket = tuning::socket(listen, local.udp.socket_bytes)?;
        if local.lane == LaneMode::Quic {
            return Ok((socket, None));
        }
        tried += 1;
        match tcp::bind(socket.local_addr()?) {
            Ok(listener) => return Ok((socket, Some(listener))),
            Err(_) if listen.port() == 0 && tried < PORTS_TRIED => {}
            Err(error) => {
                tracing::warn!(%listen, %error, "no bulk over TLS: the TCP port cannot be listened on");
                return Ok((socket, None));
            }
        }
    }
}

async fn listen_loop(endpoint: Endpoint, trust: Arc<dyn Trust>, arrivals: mpsc::Sender<Arrival>) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let pairings = Arc::new(Semaphore::new(MAX_PAIRINGS));
    while let Some(incoming) = endpoint.0.quic.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refused("busy");
            incoming.refuse();
            continue;
        };
        let under_way = MAX_HANDSHAKES - places.available_permits();
        if under_way > HANDSHAKES_UNVALIDATED
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            // It may retry, as was just asked; the answer can only say the same.
            let _ = incoming.retry();
            continue;
        }
        let (endpoint, trust, arrivals) = (endpoint.clone(), Arc::clone(&trust), arrivals.clone());
        let pairings = Arc::clone(&pairings);
        tokio::spawn(async move {
            let welcomed = welcome(&endpoint, trust.as_ref(), &arrivals, incoming).await;
            drop(place);
            let Some((quic, joiner)) = welcomed else { return };
            match pairings.try_acquire() {
                Ok(_place) => endpoint.inviter().answer(&endpoint, quic, joiner).await,
                Err(_) => {
                    refused("busy");
                    close(&quic, CloseCode::Busy, "too many nodes try to pair at once");
                }
            }
        });
    }
}

pub(crate) fn refused(reason: &'static str) {
    metrics::counter!(counters::CONNECTIONS_REFUSED, "reason" => reason).increment(1);
}

/// One incoming connection, from its first packet to its arrival; one that is for pairing is handed
/// back, with the key it proved.
async fn welcome(
    endpoint: &Endpoint,
    trust: &dyn Trust,
    arrivals: &mpsc::Sender<Arrival>,
    incoming: quinn::Incoming,
) -> Option<(quinn::Connection, Fingerprint)> {
    let address = incoming.remote_address();
    let quic = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            refused("handshake");
            tracing::debug!(%address, %error, "an incoming connection did not finish its handshake");
            return None;
        }
        Err(_) => {
            refused("timeout");
            return None;
        }
    };
    let Some(peer) = proven_key(&quic) else {
        refused("no key");
        close(&quic, CloseCode::Protocol, "no key was shown");
        return None;
    };
    if alpn(&quic).as_deref() == Some(ALPN_PAIR) {
        return Some((quic, peer));
    }
    let greeted = timeout(
        HANDSHAKE_TIMEOUT,
        greeting::as_acceptor(&quic, endpoint.local(), endpoint.fingerprint(), peer, trust),
    );
    let arrival = match greeted.await {
        Ok(Ok(connection)) => {
            endpoint.learn_room(&connection);
            Arrival::Connected(connection)
        }
        Ok(Err(error)) => {
            refused(error.label());
            close(&quic, error.close_code(), &error.to_string());
            Arrival::Refused(RefusedPeer { fingerprint: peer, address, error })
        }
        Err(_) => {
            refused("timeout");
            close(&quic, CloseCode::Protocol, "no greeting in time");
            return None;
        }
    };
    // The node is stopping when nobody takes it; dropping the connection then closes it.
    let _ = arrivals.send(arrival).await;
    None
}

/// The key that the other side proved in its handshake.
fn proven_key(quic: &quinn::Connection) -> Option<Fingerprint> {
    let certificates = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    fingerprint_of(certificates.first()?).ok()
}

fn alpn(quic: &quinn::Connection) -> Option<Vec<u8>> {
    quic.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}
