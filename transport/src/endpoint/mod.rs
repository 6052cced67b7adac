//! The endpoint: one port, of UDP and of TCP, through which a node dials and is dialled.
//!
//! Owns: binding, dialling a pinned key, taking what strangers dial over QUIC (`accept`; over TCP that is
//! [`crate::tcp`]'s), and the greeting that makes a `Link` a [`Connection`] with a peer (`greeting`). Leaves to
//! others: the order of QUIC and TLS (`link::dial`), redialling and keeping one connection per peer
//! ([`crate::peers`]), pairing ([`crate::pairing`]).

mod accept;
mod sides;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::error::{BindError, ConnectError, RefusedPeer};
use crate::frame::hello::Call;
use crate::greeting;
use crate::identity::Identity;
use crate::lane::choice::LaneMode;
use crate::link::dial::{self, Dialled};
use crate::link::tls::TlsLink;
use crate::link::{Link, Receiving, Sending};
use crate::pairing::InviterSlot;
use crate::tcp::{self, LaneArrival, TcpError};
use crate::tls::{self, ALPN_PAIR, ALPN_PEER};
use crate::trust::Trust;
use crate::tuning;
use crate::udp::{self, GatherRuntime, GatherSocket};
use accept::listen_loop;
pub(crate) use accept::refused;
pub(crate) use sides::random_u64;
pub use sides::{CloseCode, LocalNode, PeerInfo};

/// Pairing connections at once: nobody needs more than one, and they may take seconds.
const MAX_PAIRINGS: usize = 8;

/// TLS and greeting together, of either side.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node that stops may take to tell its peers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ports that are tried for one that is free for UDP and TCP, when any will do.
const PORTS_TRIED: usize = 32;

/// Connections that wait for the node to take them.
const ARRIVALS: usize = 16;

/// The server name of every dial; certificates are not looked at for names.
const SERVER_NAME: &str = "flocker-repl";

/// A greeted connection with a trusted peer.
#[derive(Debug)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: PeerInfo,
    /// Whether this side dialled.
    pub dialled: bool,
    /// How the one who dialled came to it.
    pub(crate) call: Call,
    pub(crate) link: Link,
    pub(crate) send: Sending,
    pub(crate) recv: Receiving,
}

impl Connection {
    /// Closes it at once, telling the peer.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.link.close(code, reason);
    }

    /// Completes when it is closed or lost, with the reason in words.
    pub async fn closed(&self) -> String {
        self.link.closed().await.to_string()
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
    /// `None` where TLS alone is used.
    quic: Option<quinn::Endpoint>,
    /// `None` where quinn's own socket is used, or none.
    gathering: Option<Arc<GatherSocket>>,
    address: SocketAddr,
    identity: Arc<Identity>,
    local: LocalNode,
    inviter: InviterSlot,
    /// Pairing connections that are served.
    pairings: Arc<Semaphore>,
    /// Tells the TCP listener to end.
    closed: watch::Sender<bool>,
    /// Held by every link over TLS; let go when the endpoint is closed.
    alive: Mutex<Option<mpsc::Sender<()>>>,
    /// Ends when the last of them has.
    all_over: tokio::sync::Mutex<mpsc::Receiver<()>>,
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
        let (socket, listener) = sockets(listen, &local)?;
        local.tls = listener.is_some();
        let bound = match (&socket, &listener) {
            (Some(socket), _) => socket.local_addr(),
            (None, Some(listener)) => listener.local_addr(),
            (None, None) => Ok(listen),
        };
        let address = bound.map_err(failed)?;
        local.udp_room_kib = socket.as_ref().map_or(0, tuning::room_kib);
        let max_packet = local.udp.max_packet_bytes;
        let (config, server) =
            (tuning::endpoint(max_packet), Some(tuning::server(crypto, max_packet)));
        let (quic, gathering) = match socket {
            None => (None, None),
            Some(socket) if local.udp.gather => {
                let gathering = udp::socket(socket, max_packet).map_err(failed)?;
                let (socket, runtime) = (gathering.clone(), Arc::new(GatherRuntime));
                let quic =
                    quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime);
                (Some(quic), Some(gathering))
            }
            Some(socket) => (Some(quinn::Endpoint::new(config, server, socket, runtime)), None),
        };
        let quic = quic.transpose().map_err(failed)?;
        let (arrivals, taken) = mpsc::channel(ARRIVALS);
        let (closed, closing) = watch::channel(false);
        let (alive, all_over) = mpsc::channel(1);
        let endpoint = Self(Arc::new(Inner {
            quic: quic.clone(),
            gathering,
            address,
            identity,
            local,
            inviter: InviterSlot::default(),
            pairings: Arc::new(Semaphore::new(MAX_PAIRINGS)),
            closed,
            alive: Mutex::new(Some(alive)),
            all_over: tokio::sync::Mutex::new(all_over),
        }));
        if let Some(listener) = listener {
            tokio::spawn(tcp::listen(tcp::Listening {
                listener,
                acceptor: tcp::acceptor(&endpoint.0.identity)?,
                endpoint: endpoint.clone(),
                trust: Arc::clone(&trust),
                arrivals: arrivals.clone(),
                closed: closing,
            }));
        }
        if let Some(quic) = quic {
            tokio::spawn(listen_loop(quic, endpoint.clone(), trust, arrivals));
        }
        Ok((endpoint, taken))
    }

    /// The address that is bound; with port 0 asked, the port that was given.
    ///
    /// # Errors
    /// None today.
    pub fn local_addr(&self) -> Result<SocketAddr, BindError> {
        Ok(self.0.address)
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
        self.greet_dialled(address, dial::dial(self, address, ALPN_PEER, Some(expected)).await?)
            .await
    }

    /// Dials a peer over QUIC, to carry on the session that the two have over TLS.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) async fn connect_to_continue(
        &self,
        address: SocketAddr,
        expected: Fingerprint,
    ) -> Result<Connection, ConnectError> {
        let (link, found) = dial::quic(self, address, ALPN_PEER, Some(expected)).await?;
        self.greet_dialled(address, Dialled { link, found, call: Call::Continues }).await
    }

    async fn greet_dialled(
        &self,
        address: SocketAddr,
        dialled: Dialled,
    ) -> Result<Connection, ConnectError> {
        let greeting = greeting::as_dialler(&dialled, self.local(), self.fingerprint());
        timeout(HANDSHAKE_TIMEOUT, greeting)
            .await
            .unwrap_or_else(|_| {
                let reason = "it does not greet in time".into();
                Err(ConnectError::Unreachable { address, reason })
            })
            .inspect(|connection| self.learn_room(connection))
            .inspect_err(|e| dialled.link.close(e.close_code(), &e.to_string()))
    }

    /// Sends to a peer whose socket holds a lot in larger bursts.
    fn learn_room(&self, connection: &Connection) {
        let PeerInfo { address, udp_room_kib, .. } = connection.peer;
        if let (Some(gathering), Link::Quic(_)) = (&self.0.gathering, &connection.link)
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

    /// Dials for pairing, where the key is not known yet; it is proven.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) async fn dial_for_pairing(
        &self,
        address: SocketAddr,
    ) -> Result<Dialled, ConnectError> {
        dial::dial(self, address, ALPN_PAIR, None).await
    }

    /// A handshake over QUIC, for as long as it takes.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) async fn dial_quic(
        &self,
        address: SocketAddr,
        alpn: &[u8],
        expected: Option<Fingerprint>,
    ) -> Result<(quinn::Connection, Fingerprint), ConnectError> {
        let Some(endpoint) = &self.0.quic else {
            let reason = "this node uses TLS alone".into();
            return Err(ConnectError::Unreachable { address, reason });
        };
        let seen = Arc::new(OnceLock::new());
        let tls = tls::client_config(&self.0.identity, alpn, expected, Arc::clone(&seen))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|_| ConnectError::NoInitialCipher)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(tuning::transport(self.local().udp.max_packet_bytes));
        let connecting = endpoint
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

    /// A link over TLS.
    ///
    /// # Errors
    /// [`TcpError`].
    pub(crate) async fn dial_tls(
        &self,
        address: SocketAddr,
        alpn: &[u8],
        expected: Option<Fingerprint>,
    ) -> Result<(TlsLink, Fingerprint), TcpError> {
        let (stream, found) = tcp::connect(&self.0.identity, alpn, expected, address).await?;
        let link = self.tls_link(stream);
        let link = link.map_err(|e| TcpError::Unreachable { address, reason: e.to_string() })?;
        Ok((link, found))
    }

    /// A link over this connection, which closing the endpoint waits for.
    ///
    /// # Errors
    /// Of the socket; or the endpoint is closed.
    pub(crate) fn tls_link(&self, stream: TlsStream<TcpStream>) -> std::io::Result<TlsLink> {
        let alive = self.0.alive.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let alive = alive.ok_or_else(|| std::io::Error::other("this node stops"))?;
        TlsLink::start(stream, alive)
    }

    /// Closes every connection over QUIC and takes no more; those over TLS are their owners' to close.
    pub(crate) fn shut(&self, reason: &str) {
        self.0.closed.send_replace(true);
        self.0.alive.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(quic) = &self.0.quic {
            quic.close(CloseCode::Shutdown.code().into(), reason.as_bytes());
        }
    }

    /// Closes every connection and the socket; waits until peers were told.
    pub async fn close(&self, reason: &str) {
        self.shut(reason);
        let over_quic = async {
            if let Some(quic) = &self.0.quic {
                quic.wait_idle().await;
            }
        };
        let over_tls = async { while self.0.all_over.lock().await.recv().await.is_some() {} };
        // Told or not, a stopping node does not wait longer than it takes to be told.
        let _ = timeout(LAST_WORDS, async { tokio::join!(over_quic, over_tls) }).await;
    }

    /// Greets whoever dialled, with the key `peer`; `None` when it does not greet in time.
    pub(crate) async fn greet(
        &self,
        trust: &dyn Trust,
        link: Link,
        peer: Fingerprint,
    ) -> Option<Arrival> {
        let (local, ours) = (self.local(), self.fingerprint());
        let greeted =
            timeout(HANDSHAKE_TIMEOUT, greeting::as_acceptor(&link, local, ours, peer, trust));
        match greeted.await {
            Ok(Ok(connection)) => {
                self.learn_room(&connection);
                Some(Arrival::Connected(connection))
            }
            Ok(Err(error)) => {
                refused(error.label());
                link.close(error.close_code(), &error.to_string());
                let address = link.remote_address();
                Some(Arrival::Refused(RefusedPeer { fingerprint: peer, address, error }))
            }
            Err(_) => {
                refused("timeout");
                link.close(CloseCode::Protocol, "no greeting in time");
                None
            }
        }
    }

    /// Serves a pairing connection, if there is a place.
    pub(crate) fn pair(&self, link: Link, joiner: Fingerprint) {
        let Ok(place) = Arc::clone(&self.0.pairings).try_acquire_owned() else {
            refused("busy");
            return link.close(CloseCode::Busy, "too many nodes try to pair at once");
        };
        let endpoint = self.clone();
        tokio::spawn(async move {
            endpoint.inviter().answer(&endpoint, link, joiner).await;
            drop(place);
        });
    }
}

/// The UDP socket, unless TLS alone is used; and the TCP listener of the same port, unless QUIC alone is. Where
/// another program has the TCP port this node goes on without, if it may.
fn sockets(
    listen: SocketAddr,
    local: &LocalNode,
) -> Result<(Option<std::net::UdpSocket>, Option<TcpListener>), BindError> {
    if local.lane == LaneMode::Tls {
        let listener = tcp::bind(listen);
        let listener =
            listener.map_err(|source| BindError::Listener { address: listen, source })?;
        return Ok((None, Some(listener)));
    }
    let failed = |source| BindError::Socket { address: listen, source };
    let mut tried = 0;
    loop {
        let socket = tuning::socket(listen, local.udp.socket_bytes).map_err(failed)?;
        if local.lane == LaneMode::Quic {
            return Ok((Some(socket), None));
        }
        tried += 1;
        match tcp::bind(socket.local_addr().map_err(failed)?) {
            Ok(listener) => return Ok((Some(socket), Some(listener))),
            Err(_) if listen.port() == 0 && tried < PORTS_TRIED => {}
            Err(error) => {
                tracing::warn!(%listen, %error, "nothing over TLS: the TCP port cannot be listened on");
                return Ok((Some(socket), None));
            }
        }
    }
}
