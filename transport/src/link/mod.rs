//! Links: what carries the control of a pair, over QUIC or over TLS, behind one face.
//!
//! ```text
//!                  greeting, pairing, control: frames on one stream, each way
//!                 ┌──────────────────────────┴─────────────────────────┐
//!   Link::Quic    a stream of the pair's QUIC connection               Link::Tls    a TCP connection of its own
//! ```
//!
//! Owns: that both look the same to what is above: one control stream each way, a last word with a code, a round
//! trip time, keying material. Leaves to others: how a link comes to be ([`dial`], [`crate::endpoint`],
//! [`crate::tcp`]), what is said over it ([`crate::greeting`], [`crate::peers`], [`crate::pairing`]), and bulk
//! ([`crate::lane`]).
//!
//! # Why control over TLS has a connection of its own
//!
//! Where UDP does not pass, control and each transfer go over TCP connections of their own, and there is no
//! multiplexer. TCP gives its bytes in order: one connection for all would make a control message wait for what
//! the kernel holds of a transfer in its send buffer (megabytes, on a far path) and for each packet that a
//! transfer lost. With connections of their own the kernel serves them in turn, each has its own backpressure, and
//! transfers stay on the lane that is measured and tested, on blocking threads. What that costs is a handshake for
//! each transfer; for small steps connections are kept ready ([`crate::peers`]).

pub(crate) mod dial;
pub(crate) mod tls;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, TransportErrorCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::endpoint::CloseCode;
use crate::frame::cursor::presentable;
use crate::lane::choice::LaneKind;
use tls::{TlsLink, TlsReceiving, TlsSending};

/// Longest reason of a close, in bytes: with QUIC it must fit one packet.
pub(crate) const MAX_CLOSE_REASON: usize = 512;

/// Control goes before every transfer on the same QUIC connection, and small transfers before large ones.
const CONTROL_PRIORITY: i32 = 2;

/// Why a link is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// Nothing came any more.
    #[error("nothing came any more")]
    Silent,
    /// This side closed it.
    #[error("it was closed on this side")]
    Here,
    /// The other side closed it.
    #[error("the other side closed it: {reason}")]
    Closed {
        /// Its code, where this version knows it.
        code: Option<CloseCode>,
        /// Its words.
        reason: String,
    },
    /// The connection beneath ended without a word.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What the system said.
        reason: String,
    },
    /// QUIC itself came to its limits on this path, such as too many gaps in what had arrived. Nobody is to blame.
    #[error("the connection failed: {reason}")]
    Failed {
        /// How.
        reason: String,
    },
    /// What came is against the rules of the connection beneath.
    #[error("what came breaks its rules: {reason}")]
    Broken {
        /// How.
        reason: String,
    },
}

impl From<&quinn::ConnectionError> for Gone {
    fn from(error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::TimedOut | E::Reset => Self::Silent,
            E::LocallyClosed => Self::Here,
            E::ApplicationClosed(closed) => Self::Closed {
                code: CloseCode::from_code(closed.error_code.into_inner()),
                reason: presentable(&String::from_utf8_lossy(&closed.reason), MAX_CLOSE_REASON),
            },
            E::TransportError(e) if is_internal(e.code) => Self::Failed { reason: e.to_string() },
            E::ConnectionClosed(e) if is_internal(e.error_code) => {
                Self::Failed { reason: e.to_string() }
            }
            E::VersionMismatch
            | E::TransportError(_)
            | E::ConnectionClosed(_)
            | E::CidsExhausted => Self::Broken { reason: error.to_string() },
        }
    }
}

/// Whether this is how QUIC gives up on a connection without a fault of the other side.
fn is_internal(code: TransportErrorCode) -> bool {
    code == TransportErrorCode::INTERNAL_ERROR
}

impl Gone {
    /// What an error of a stream says of its link; `None` where the stream alone ended.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        if let Some(gone) = inner.downcast_ref::<Self>() {
            return Some(gone.clone());
        }
        let lost = match inner.downcast_ref::<quinn::ReadError>() {
            Some(quinn::ReadError::ConnectionLost(error)) => error,
            _ => match inner.downcast_ref::<quinn::WriteError>()? {
                quinn::WriteError::ConnectionLost(error) => error,
                _ => return None,
            },
        };
        Some(lost.into())
    }
}

/// Which way control takes to a peer, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// Which.
    pub kind: LaneKind,
    /// Why, where it is not the usual one.
    pub why: Option<String>,
    /// Whether that is because nothing answers over UDP.
    pub udp_blocked: bool,
    /// For how long.
    pub lasts: Duration,
}

/// The connection that carries control. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// The pair's QUIC connection.
    Quic(quinn::Connection),
    /// A TLS connection over TCP.
    Tls(TlsLink),
}

impl Link {
    pub(crate) fn kind(&self) -> LaneKind {
        match self {
            Self::Quic(_) => LaneKind::Quic,
            Self::Tls(_) => LaneKind::Tls,
        }
    }

    /// Closes it at once, telling the peer. What was written and has not gone yet may be lost.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        let reason = presentable(reason, MAX_CLOSE_REASON);
        match self {
            Self::Quic(quic) => quic.close(code.code().into(), reason.as_bytes()),
            Self::Tls(tls) => tls.close(code, reason),
        }
    }

    /// Completes when it is over.
    pub(crate) async fn closed(&self) -> Gone {
        match self {
            Self::Quic(quic) => Gone::from(&quic.closed().await),
            Self::Tls(tls) => tls.closed().await,
        }
    }

    /// The round trip time.
    pub(crate) fn rtt(&self) -> Duration {
        match self {
            Self::Quic(quic) => quic.rtt(),
            Self::Tls(tls) => tls.rtt(),
        }
    }

    /// Where the other side's packets come from.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(quic) => quic.remote_address(),
            Self::Tls(tls) => tls.remote_address(),
        }
    }

    /// Keying material for pairing, which belongs to this connection alone.
    ///
    /// # Errors
    /// What the library said.
    pub(crate) fn pairing_exporter(&self) -> Result<[u8; 32], String> {
        match self {
            Self::Quic(quic) => {
                let mut out = [0; 32];
                quic.export_keying_material(&mut out, crate::pairing::EXPORTER_LABEL, b"")
                    .map_err(|e| format!("{e:?}"))?;
                Ok(out)
            }
            Self::Tls(tls) => Ok(tls.pairing_exporter()),
        }
    }

    /// The control stream, on the side that dialled. To be called once.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn open(&self) -> Result<(Sending, Receiving), Gone> {
        match self {
            Self::Quic(quic) => {
                let (send, recv) = quic.open_bi().await.map_err(|e| Gone::from(&e))?;
                Ok((Sending::quic(send), Receiving::Quic(recv)))
            }
            Self::Tls(tls) => tls.stream(),
        }
    }

    /// The control stream, on the side that was dialled. To be called once.
    ///
    /// # Errors
    /// [`Gone`].
    pub(crate) async fn accept(&self) -> Result<(Sending, Receiving), Gone> {
        match self {
            Self::Quic(quic) => {
                let (send, recv) = quic.accept_bi().await.map_err(|e| Gone::from(&e))?;
                Ok((Sending::quic(send), Receiving::Quic(recv)))
            }
            Self::Tls(tls) => tls.stream(),
        }
    }
}

/// The sending half of a control stream. Dropped, it is finished.
#[derive(Debug)]
pub(crate) enum Sending {
    Quic(SendStream),
    Tls(TlsSending),
}

impl Sending {
    fn quic(send: SendStream) -> Self {
        // A failure means that the stream is gone; then so is the connection, and writing says why.
        let _ = send.set_priority(CONTROL_PRIORITY);
        Self::Quic(send)
    }

    /// Writes both, one after the other.
    ///
    /// # Errors
    /// Of the stream; [`Gone::of`] knows more.
    pub(crate) async fn write_parts(&mut self, parts: [Bytes; 2]) -> io::Result<()> {
        match self {
            Self::Quic(send) => {
                let mut parts = parts;
                Ok(send.write_all_chunks(&mut parts).await?)
            }
            Self::Tls(send) => {
                for part in &parts {
                    send.write_all(part).await?;
                }
                Ok(())
            }
        }
    }

    /// Says that no more comes; `false` when that is of no use any more.
    pub(crate) fn finish(&mut self) -> bool {
        match self {
            Self::Quic(send) => send.finish().is_ok(),
            Self::Tls(send) => send.finish(),
        }
    }

    /// Completes when the other side has taken everything, `true`, or will not any more.
    pub(crate) async fn taken(&mut self) -> bool {
        match self {
            Self::Quic(send) => matches!(send.stopped().await, Ok(None)),
            Self::Tls(send) => send.taken().await,
        }
    }
}

impl AsyncWrite for Sending {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Quic(send) => AsyncWrite::poll_write(Pin::new(send), cx, buf),
            Self::Tls(send) => Pin::new(send).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(send) => AsyncWrite::poll_flush(Pin::new(send), cx),
            Self::Tls(send) => Pin::new(send).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

/// The receiving half of a control stream.
#[derive(Debug)]
pub(crate) enum Receiving {
    Quic(RecvStream),
    Tls(TlsReceiving),
}

impl AsyncRead for Receiving {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(recv) => AsyncRead::poll_read(Pin::new(recv), cx, buf),
            Self::Tls(recv) => Pin::new(recv).poll_read(cx, buf),
        }
    }
}
