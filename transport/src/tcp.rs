//! TLS connections over TCP: dialled, accepted, and told apart by what they are for.
//!
//! ```text
//! dialler ── TCP, TLS: both prove their keys ──▶ listener
//!   ALPN of peers, of pairing: a link, and what is said over it (`greeting`, `pairing`)
//!   ALPN of bulk:  ── LaneOpen ─────────────▶   finds the pair's session that it belongs to
//!                  ◀── Accept ── or ◀── Reject
//!      the sender  ── BulkOpen or Probe ────▶   now or later: until then it is kept ready
//! ```
//!
//! Owns: the listener and what strangers may cost here, the handshake, these frames. Leaves to others: the
//! lane that it becomes ([`crate::lane::tls`]) or the link (`crate::link`), which session is the pair's, and
//! choosing this way at all ([`crate::peers`]).
//!
//! Handshakes run on the node's runtime, because a stranger then costs a task and not a thread. The socket
//! buffers are left to the kernel: it grows them as the path needs, further than what an unprivileged
//! process may ask for, and stops doing so once it is asked.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use rustix::net::RecvFlags;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::endpoint::{Arrival, Endpoint, HANDSHAKE_TIMEOUT, LocalNode, refused};
use crate::frame::hello::{Reject, RejectCode};
use crate::frame::lane::LaneOpen;
use crate::frame::{FrameError, FrameType};
use crate::framed::{self, FramedError};
use crate::identity::{Identity, fingerprint_of};
use crate::lane::{Lane, tls as lane};
use crate::link::Link;
use crate::tls::{self, ALPN_BULK, ALPN_PAIR, ALPN_PEER};
use crate::trust::Trust;

/// Handshakes under way. One more ends the oldest: a paired node's takes milliseconds, so only who is silent
/// grows old.
const MAX_HANDSHAKES: usize = 64;

/// How long a TCP connection may take to come to be: it is given up in favour of the warm one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Rest after the system had no file descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that nothing came through for this long is asked for a sign of life, this often and this
/// many times: a path that died without a word is noticed within half a minute by the side that only reads.
const KEEP_IDLE: Duration = Duration::from_secs(10);
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_COUNT: u32 = 3;

/// Why there is no TLS connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TcpError {
    /// Nobody answers, or the handshake broke off.
    #[error("{address} cannot be reached over TCP: {reason}")]
    Unreachable {
        /// Where it was tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// Somebody else answers.
    #[error("the node at {address} (TCP) is not the one expected: its key is {found}")]
    WrongKey {
        /// Where it was tried.
        address: SocketAddr,
        /// The key that was shown.
        found: Fingerprint,
    },
    /// It is the peer, and it said no.
    #[error("the peer refused a connection over TCP: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// What it said makes no sense.
    #[error("the peer's answer over TCP makes no sense: {0}")]
    Protocol(#[from] FrameError),
}

/// A TLS connection that a trusted peer opened for bulk.
#[derive(Debug)]
pub struct LaneArrival {
    pub(crate) peer: Fingerprint,
    pub(crate) open: LaneOpen,
    stream: TlsStream<TcpStream>,
}

impl LaneArrival {
    /// Says yes.
    pub(crate) async fn accept(mut self) -> Result<Opened, FramedError> {
        framed::write(&mut self.stream, FrameType::Accept, &[]).await?;
        Ok(Opened(self.stream))
    }

    /// Says no, without being waited for.
    pub(crate) fn refuse(self, local: &LocalNode, code: RejectCode, reason: &str) {
        refused("lane");
        let (protocol, name) = (local.protocol, local.name.clone());
        let reject = Reject { code, protocol, name, reason: reason.to_owned() };
        let mut stream = self.stream;
        tokio::spawn(async move {
            let said = async {
                framed::write(&mut stream, FrameType::Reject, &reject.encode()).await?;
                Ok::<_, FramedError>(stream.shutdown().await?)
            };
            // Whom it does not reach sees the connection closed.
            let _ = timeout(HANDSHAKE_TIMEOUT, said).await;
        });
    }
}

/// A TLS connection for bulk to which both have said yes. It becomes a lane with the sender's first frame.
#[derive(Debug)]
pub(crate) struct Opened(TlsStream<TcpStream>);

impl Opened {
    /// Whether the other side still has it. Nothing is due on it, so anything to read is its end.
    pub(crate) fn is_alive(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(self.0.get_ref().0, &mut [0; 1], flags);
        matches!(peeked, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
    }

    /// Begins to send over it.
    pub(crate) async fn begin(
        mut self,
        first: FrameType,
        payload: &[u8],
    ) -> Result<(Lane, lane::Hangup), FramedError> {
        framed::write(&mut self.0, first, payload).await?;
        Ok(into_lane(self.0)?)
    }

    /// Waits for the sender's first frame, for as long as it takes: how many wait is bounded by the session.
    pub(crate) async fn first(&mut self) -> Result<(FrameType, Vec<u8>), FramedError> {
        framed::read(&mut self.0, &[FrameType::BulkOpen, FrameType::Probe], "BulkOpen or Probe")
            .await
    }

    /// The lane, after the first frame.
    pub(crate) fn into_lane(self) -> io::Result<(Lane, lane::Hangup)> {
        into_lane(self.0)
    }
}

/// Listens on the TCP port of the endpoint's number.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What the listener works with.
pub(crate) struct Listening {
    pub(crate) listener: TcpListener,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Arc<dyn Trust>,
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) closed: watch::Receiver<bool>,
}

/// TLS for those who are dialled.
///
/// # Errors
/// What rustls finds wrong with our own key.
pub(crate) fn acceptor(identity: &Identity) -> Result<TlsAcceptor, rustls::Error> {
    Ok(TlsAcceptor::from(Arc::new(tls::server_config(
        identity,
        &[ALPN_BULK, ALPN_PEER, ALPN_PAIR],
    )?)))
}

/// Accepts until the endpoint is closed.
pub(crate) async fn listen(mut listening: Listening) {
    let mut under_way: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listening.listener.accept() => accepted,
            _ = listening.closed.changed() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a TCP connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        under_way.retain(|task| !task.is_finished());
        if under_way.len() >= MAX_HANDSHAKES
            && let Some(oldest) = under_way.pop_front()
        {
            refused("busy");
            oldest.abort();
        }
        let (acceptor, arrivals) = (listening.acceptor.clone(), listening.arrivals.clone());
        let (endpoint, trust) = (listening.endpoint.clone(), Arc::clone(&listening.trust));
        let task = tokio::spawn(async move {
            let welcomed = welcome(&acceptor, trust.as_ref(), &endpoint, stream);
            match timeout(HANDSHAKE_TIMEOUT, welcomed).await {
                // The node is stopping when nobody takes it.
                Ok(Ok(Some(arrival))) => drop(arrivals.send(arrival).await),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    refused("handshake");
                    tracing::debug!(%address, %error, "a TCP connection did not say what it is for");
                }
                Err(_) => refused("timeout"),
            }
        });
        under_way.push_back(task.abort_handle());
    }
    under_way.iter().for_each(AbortHandle::abort);
}

/// From TCP to what has arrived; `None` when it was refused, or is for pairing.
async fn welcome(
    acceptor: &TlsAcceptor,
    trust: &dyn Trust,
    endpoint: &Endpoint,
    stream: TcpStream,
) -> io::Result<Option<Arrival>> {
    settle(&stream);
    let stream = acceptor.accept(stream).await?;
    let tls = stream.get_ref().1;
    let key = tls.peer_certificates().and_then(|chain| fingerprint_of(chain.first()?).ok());
    let peer = key.ok_or_else(|| io::Error::other("no key was shown"))?;
    let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
    let mut stream = TlsStream::from(stream);
    match alpn.as_deref() {
        Some(ALPN_PEER) => {
            let link = Link::Tls(endpoint.tls_link(stream)?);
            return Ok(endpoint.greet(trust, link, peer).await);
        }
        Some(ALPN_PAIR) => {
            // It takes seconds, and is bounded by itself.
            endpoint.pair(Link::Tls(endpoint.tls_link(stream)?), peer);
            return Ok(None);
        }
        _ => {}
    }
    let (_, payload) = framed::read(&mut stream, &[FrameType::LaneOpen], "LaneOpen")
        .await
        .map_err(io::Error::other)?;
    let open = LaneOpen::decode(&payload).map_err(io::Error::other)?;
    let arrival = LaneArrival { peer, open, stream };
    let local = endpoint.local();
    // Nothing more is read of a stranger.
    if !trust.is_trusted(&peer) {
        arrival.refuse(local, RejectCode::NotPaired, "the two are not paired");
        return Ok(None);
    }
    if open.protocol != local.protocol {
        arrival.refuse(local, RejectCode::Version, "it speaks another protocol version");
        return Ok(None);
    }
    Ok(Some(Arrival::Lane(Box::new(arrival))))
}

/// Dials `peer` at its listening address and asks for a lane; `first` may be said at once, without waiting for the
/// answer.
///
/// # Errors
/// [`TcpError`]; nothing of a transfer was sent yet.
pub(crate) async fn dial(
    identity: &Identity,
    peer: Fingerprint,
    address: SocketAddr,
    open: LaneOpen,
    first: Option<(FrameType, &[u8])>,
) -> Result<Opened, TcpError> {
    let late = || TcpError::Unreachable { address, reason: "no answer in time".into() };
    let broken = |e: FramedError| match e {
        FramedError::Frame(error) => TcpError::Protocol(error),
        other => TcpError::Unreachable { address, reason: other.to_string() },
    };
    let (mut stream, _) = connect(identity, ALPN_BULK, Some(peer), address).await?;
    let asked = timeout(HANDSHAKE_TIMEOUT, async {
        framed::write(&mut stream, FrameType::LaneOpen, &open.encode()).await?;
        if let Some((first, payload)) = first {
            framed::write(&mut stream, first, payload).await?;
        }
        framed::read(&mut stream, &[FrameType::Accept, FrameType::Reject], "Accept or Reject").await
    });
    let (answer, payload) = asked.await.map_err(|_| late())?.map_err(broken)?;
    if answer == FrameType::Reject {
        return Err(TcpError::Refused { reason: Reject::decode(&payload)?.reason });
    }
    Ok(Opened(stream))
}

/// A TLS connection with whoever proves the key `expected`, or any, and the key that was proven.
///
/// # Errors
/// [`TcpError`].
pub(crate) async fn connect(
    identity: &Identity,
    alpn: &[u8],
    expected: Option<Fingerprint>,
    address: SocketAddr,
) -> Result<(TlsStream<TcpStream>, Fingerprint), TcpError> {
    let failed = |reason: String| TcpError::Unreachable { address, reason };
    let late = || failed("no answer in time".into());
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| late())?.map_err(|e| failed(e.to_string()))?;
    settle(&stream);
    let seen = Arc::new(OnceLock::new());
    let config = tls::client_config(identity, alpn, expected, Arc::clone(&seen))
        .map_err(|e| failed(e.to_string()))?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(tls::server_name(), stream);
    match (timeout(HANDSHAKE_TIMEOUT, shaken).await, seen.get()) {
        (Err(_), _) => Err(late()),
        (Ok(Err(_)), Some(found)) if expected.is_some_and(|expected| *found != expected) => {
            Err(TcpError::WrongKey { address, found: *found })
        }
        (Ok(Err(error)), _) => Err(failed(error.to_string())),
        (Ok(Ok(stream)), Some(found)) => Ok((stream.into(), *found)),
        (Ok(Ok(_)), None) => unreachable!("a handshake ends only after the verifier ran"),
    }
}

/// What is asked of every socket; one that refuses works without.
fn settle(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEP_IDLE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEP_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEP_COUNT);
}

fn into_lane(stream: TlsStream<TcpStream>) -> io::Result<(Lane, lane::Hangup)> {
    let (stream, tls) = match stream {
        TlsStream::Client(stream) => {
            let (stream, tls) = stream.into_inner();
            (stream, tls.into())
        }
        TlsStream::Server(stream) => {
            let (stream, tls) = stream.into_inner();
            (stream, tls.into())
        }
    };
    lane::lane(stream.into_std()?, tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use crate::trust::TrustSet;

    const OPEN: LaneOpen =
        LaneOpen { protocol: frame::PROTOCOL_VERSION, dialler: 1, acceptor: 2, reverse: false };

    fn node(trust: TrustSet) -> (Endpoint, mpsc::Receiver<Arrival>) {
        let identity = Arc::new(Identity::ephemeral().unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Endpoint::bind(listen, identity, LocalNode::new("b"), Arc::new(trust)).unwrap()
    }

    async fn dialled(b: &Endpoint, identity: &Identity, open: LaneOpen) -> TcpError {
        let address = b.local_addr().unwrap();
        let first = Some((FrameType::BulkOpen, &b"h"[..]));
        dial(identity, b.fingerprint(), address, open, first).await.expect_err("no lane")
    }

    #[tokio::test]
    async fn a_key_that_is_not_trusted_is_refused_in_words_and_nobody_hears_of_its_transfer() {
        let (b, mut arrivals) = node(TrustSet::new([]));
        let error = dialled(&b, &Identity::ephemeral().unwrap(), OPEN).await;
        assert_eq!(error, TcpError::Refused { reason: "the two are not paired".into() });
        assert!(arrivals.try_recv().is_err());
    }

    #[tokio::test]
    async fn another_protocol_version_is_refused_in_words() {
        let a = Identity::ephemeral().unwrap();
        let (b, _arrivals) = node(TrustSet::new([a.fingerprint()]));
        let error = dialled(&b, &a, LaneOpen { protocol: 99, ..OPEN }).await;
        assert!(matches!(error, TcpError::Refused { .. }), "{error}");
    }

    #[tokio::test]
    async fn another_key_than_the_pinned_one_gets_nothing() {
        let a = Identity::ephemeral().unwrap();
        let (b, _arrivals) = node(TrustSet::new([a.fingerprint()]));
        let address = b.local_addr().unwrap();
        let dialled = connect(&a, ALPN_BULK, Some(a.fingerprint()), address).await;
        let error = dialled.expect_err("the wrong key");
        assert_eq!(error, TcpError::WrongKey { address, found: b.fingerprint() });
    }

    #[tokio::test]
    async fn a_trusted_key_arrives_with_what_it_belongs_to_and_can_be_refused() {
        let a = Identity::ephemeral().unwrap();
        let (b, mut arrivals) = node(TrustSet::new([a.fingerprint()]));
        let taking = tokio::spawn(async move {
            let Some(Arrival::Lane(lane)) = arrivals.recv().await else { panic!("a lane") };
            assert_eq!(lane.open, OPEN);
            lane.refuse(&LocalNode::new("b"), RejectCode::Other, "the two are not connected");
        });
        let error = dialled(&b, &a, OPEN).await;
        assert_eq!(error, TcpError::Refused { reason: "the two are not connected".into() });
        taking.await.unwrap();
    }
}
