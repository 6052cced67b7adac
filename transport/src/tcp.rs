//! TLS connections over TCP, one for each bulk transfer that goes this way: dialled, accepted, and tied to
//! the pair's own connection.
//!
//! ```text
//! sender ── TCP, TLS: both prove their keys ──▶ receiver
//!        ── LaneOpen, then BulkOpen or Probe ─▶   finds the pair's connection that it belongs to
//!        ◀── Accept ── or ◀── Reject
//! ```
//!
//! Owns: the listener and what strangers may cost here, the handshake, these frames. Leaves to others: the
//! lane that it becomes ([`crate::lane::tls`]), which connection is the pair's, and choosing this way at all
//! ([`crate::peers`]).
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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::endpoint::{Arrival, HANDSHAKE_TIMEOUT, LocalNode, refused};
use crate::frame::hello::{Reject, RejectCode};
use crate::frame::lane::LaneOpen;
use crate::frame::{self, FrameError, FrameType, HEADER_LEN, Header};
use crate::identity::{Identity, fingerprint_of};
use crate::lane::{Lane, tls as lane};
use crate::tls::{self, ALPN_BULK};
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

/// A TLS connection that a trusted peer opened, and what it wants.
#[derive(Debug)]
pub struct LaneArrival {
    pub(crate) peer: Fingerprint,
    pub(crate) open: LaneOpen,
    /// BulkOpen or Probe.
    pub(crate) first: FrameType,
    pub(crate) payload: Vec<u8>,
    stream: TlsStream<TcpStream>,
}

impl LaneArrival {
    /// Says yes, and makes it a lane.
    pub(crate) async fn accept(mut self) -> io::Result<(Lane, lane::Hangup)> {
        write(&mut self.stream, FrameType::Accept, &[]).await?;
        into_lane(self.stream)
    }

    /// Says no, without being waited for.
    pub(crate) fn refuse(self, local: &LocalNode, code: RejectCode, reason: &str) {
        refused("lane");
        let (protocol, name) = (local.protocol, local.name.clone());
        let reject = Reject { code, protocol, name, reason: reason.to_owned() };
        let mut stream = self.stream;
        tokio::spawn(async move {
            let said = async {
                write(&mut stream, FrameType::Reject, &reject.encode()).await?;
                stream.shutdown().await
            };
            // Whom it does not reach sees the connection closed.
            let _ = timeout(HANDSHAKE_TIMEOUT, said).await;
        });
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
    pub(crate) local: LocalNode,
    pub(crate) trust: Arc<dyn Trust>,
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) closed: watch::Receiver<bool>,
}

/// TLS for those who are dialled.
///
/// # Errors
/// What rustls finds wrong with our own key.
pub(crate) fn acceptor(identity: &Identity) -> Result<TlsAcceptor, rustls::Error> {
    Ok(TlsAcceptor::from(Arc::new(tls::server_config(identity, &[ALPN_BULK])?)))
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
        let (local, trust) = (listening.local.clone(), Arc::clone(&listening.trust));
        let task = tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, welcome(&acceptor, trust.as_ref(), &local, stream))
                .await
            {
                Ok(Ok(Some(arrival))) => {
                    drop(arrivals.send(Arrival::Lane(Box::new(arrival))).await)
                }
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

/// From TCP to what a trusted peer wants; `None` when it was refused.
async fn welcome(
    acceptor: &TlsAcceptor,
    trust: &dyn Trust,
    local: &LocalNode,
    stream: TcpStream,
) -> io::Result<Option<LaneArrival>> {
    settle(&stream);
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let key = certificates.and_then(|chain| fingerprint_of(chain.first()?).ok());
    let peer = key.ok_or_else(|| io::Error::other("no key was shown"))?;
    let mut stream = TlsStream::from(stream);
    let (_, payload) = read(&mut stream, &[FrameType::LaneOpen], "LaneOpen").await?;
    let open = LaneOpen::decode(&payload).map_err(io::Error::other)?;
    let trusted = trust.is_trusted(&peer);
    // Nothing more is read of a stranger.
    let allowed = [FrameType::BulkOpen, FrameType::Probe];
    let (first, payload) = match trusted && open.protocol == local.protocol {
        true => read(&mut stream, &allowed, "BulkOpen or Probe").await?,
        false => (FrameType::Probe, Vec::new()),
    };
    let arrival = LaneArrival { peer, open, first, payload, stream };
    if !trusted {
        arrival.refuse(local, RejectCode::NotPaired, "the two are not paired");
        return Ok(None);
    }
    if open.protocol != local.protocol {
        arrival.refuse(local, RejectCode::Version, "it speaks another protocol version");
        return Ok(None);
    }
    Ok(Some(arrival))
}

/// Dials `peer` at its listening address and asks for a lane.
///
/// # Errors
/// [`TcpError`]; nothing of a transfer was sent yet.
pub(crate) async fn dial(
    identity: &Identity,
    peer: Fingerprint,
    address: SocketAddr,
    open: LaneOpen,
    first: FrameType,
    payload: &[u8],
) -> Result<(Lane, lane::Hangup), TcpError> {
    let late = || TcpError::Unreachable { address, reason: "no answer in time".into() };
    let broken = |e: io::Error| TcpError::Unreachable { address, reason: e.to_string() };
    let mut stream = connect(identity, peer, address).await?;
    let asked = timeout(HANDSHAKE_TIMEOUT, async {
        write(&mut stream, FrameType::LaneOpen, &open.encode()).await?;
        write(&mut stream, first, payload).await?;
        read(&mut stream, &[FrameType::Accept, FrameType::Reject], "Accept or Reject").await
    });
    let (answer, payload) = asked.await.map_err(|_| late())?.map_err(broken)?;
    if answer == FrameType::Reject {
        return Err(TcpError::Refused { reason: Reject::decode(&payload)?.reason });
    }
    into_lane(stream).map_err(broken)
}

/// A TLS connection with `peer`, whose key is proven.
///
/// # Errors
/// [`TcpError`].
pub(crate) async fn connect(
    identity: &Identity,
    peer: Fingerprint,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, TcpError> {
    let failed = |reason: String| TcpError::Unreachable { address, reason };
    let late = || failed("no answer in time".into());
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| late())?.map_err(|e| failed(e.to_string()))?;
    settle(&stream);
    let seen = Arc::new(OnceLock::new());
    let config = tls::client_config(identity, ALPN_BULK, Some(peer), Arc::clone(&seen))
        .map_err(|e| failed(e.to_string()))?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(tls::server_name(), stream);
    match (timeout(HANDSHAKE_TIMEOUT, shaken).await, seen.get()) {
        (Err(_), _) => Err(late()),
        (Ok(Err(_)), Some(found)) if *found != peer => {
            Err(TcpError::WrongKey { address, found: *found })
        }
        (Ok(Err(error)), _) => Err(failed(error.to_string())),
        (Ok(Ok(stream)), _) => Ok(stream.into()),
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

async fn write(
    stream: &mut TlsStream<TcpStream>,
    kind: FrameType,
    payload: &[u8],
) -> io::Result<()> {
    stream.write_all(&frame::encode(kind, payload)).await?;
    stream.flush().await
}

async fn read(
    stream: &mut TlsStream<TcpStream>,
    allowed: &[FrameType],
    expected: &'static str,
) -> io::Result<(FrameType, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let Header { kind, len } = Header::decode(&header).map_err(io::Error::other)?;
    if !allowed.contains(&kind) {
        return Err(io::Error::other(FrameError::Unexpected { found: kind, expected }));
    }
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;
    use crate::trust::TrustSet;

    const OPEN: LaneOpen = LaneOpen { protocol: frame::PROTOCOL_VERSION, dialler: 1, acceptor: 2 };

    fn node(trust: TrustSet) -> (Endpoint, mpsc::Receiver<Arrival>) {
        let identity = Arc::new(Identity::ephemeral().unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Endpoint::bind(listen, identity, LocalNode::new("b"), Arc::new(trust)).unwrap()
    }

    async fn dialled(b: &Endpoint, identity: &Identity, open: LaneOpen) -> TcpError {
        let address = b.local_addr().unwrap();
        let dialled = dial(identity, b.fingerprint(), address, open, FrameType::BulkOpen, b"h");
        dialled.await.expect_err("no lane")
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
        let error = connect(&a, a.fingerprint(), address).await.expect_err("the wrong key");
        assert_eq!(error, TcpError::WrongKey { address, found: b.fingerprint() });
    }

    #[tokio::test]
    async fn a_trusted_key_arrives_with_what_it_wants_and_can_be_refused() {
        let a = Identity::ephemeral().unwrap();
        let (b, mut arrivals) = node(TrustSet::new([a.fingerprint()]));
        let taking = tokio::spawn(async move {
            let Some(Arrival::Lane(lane)) = arrivals.recv().await else { panic!("a lane") };
            assert_eq!(
                (lane.open, lane.first, &lane.payload[..]),
                (OPEN, FrameType::BulkOpen, &b"h"[..])
            );
            lane.refuse(&LocalNode::new("b"), RejectCode::Other, "the two are not connected");
        });
        let error = dialled(&b, &a, OPEN).await;
        assert_eq!(error, TcpError::Refused { reason: "the two are not connected".into() });
        taking.await.unwrap();
    }
}
