//! Dialling a link: QUIC first, TLS soon after, and whichever answers first.
//!
//! Owns: the order of the two, and what is said when neither answers. Leaves to others: one of them
//! ([`crate::endpoint`], [`crate::tcp`]), the greeting that follows.
//!
//! The two race up to the end of their handshakes and no further: only the winner greets, so that the peer never
//! takes up two.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use tokio::time::{sleep, timeout};

use super::Link;
use crate::endpoint::{Endpoint, HANDSHAKE_TIMEOUT};
use crate::error::ConnectError;
use crate::frame::hello::Call;
use crate::lane::choice::LaneMode;
use crate::tcp::TcpError;

/// How long QUIC is tried alone: what RFC 8305 recommends between two attempts. On any path whose round trip is
/// shorter QUIC is never too late, and a blocked UDP port costs no more than this at each dial.
pub(crate) const HEAD_START: Duration = Duration::from_millis(250);

/// A link whose handshake is done.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) link: Link,
    /// The key that was proven.
    pub(crate) found: Fingerprint,
    /// How it was come to.
    pub(crate) call: Call,
}

/// Dials by the ways that this node uses. `expected` is pinned, or whoever answers is taken, for pairing.
///
/// # Errors
/// [`ConnectError`]; where neither way leads anywhere, it names both.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    alpn: &'static [u8],
    expected: Option<Fingerprint>,
) -> Result<Dialled, ConnectError> {
    let call = Call::First;
    match endpoint.local().lane {
        LaneMode::Quic => {
            let (link, found) = quic(endpoint, address, alpn, expected).await?;
            Ok(Dialled { link, found, call })
        }
        LaneMode::Tls => {
            let (link, found) = tls(endpoint, address, alpn, expected).await?;
            Ok(Dialled { link, found, call })
        }
        LaneMode::Auto => race(endpoint, address, alpn, expected).await,
    }
}

async fn race(
    endpoint: &Endpoint,
    address: SocketAddr,
    alpn: &'static [u8],
    expected: Option<Fingerprint>,
) -> Result<Dialled, ConnectError> {
    let quic = quic(endpoint, address, alpn, expected);
    tokio::pin!(quic);
    let first = tokio::select! {
        biased;
        dialled = &mut quic => Some(dialled),
        () = sleep(HEAD_START) => None,
    };
    let (mut over_quic, mut over_tls) = (None, None);
    match first {
        Some(Ok((link, found))) => return Ok(Dialled { link, found, call: Call::First }),
        Some(Err(error)) => over_quic = Some(unanswered(error)?),
        None => {}
    }
    let tls = tls(endpoint, address, alpn, expected);
    tokio::pin!(tls);
    loop {
        tokio::select! {
            biased;
            dialled = &mut quic, if over_quic.is_none() => match dialled {
                Ok((link, found)) => return Ok(Dialled { link, found, call: Call::First }),
                Err(error) => over_quic = Some(unanswered(error)?),
            },
            dialled = &mut tls, if over_tls.is_none() => match dialled {
                Ok((link, found)) => return Ok(Dialled { link, found, call: Call::NoUdp }),
                Err(error) => over_tls = Some(unanswered(error)?),
            },
        }
        if let (Some(quic), Some(tls)) = (&over_quic, &over_tls) {
            let reason = format!("over UDP: {quic}; over TCP: {tls}");
            return Err(ConnectError::Unreachable { address, reason });
        }
    }
}

/// Why nobody answered; any other error ends the race, since somebody did.
fn unanswered(error: ConnectError) -> Result<String, ConnectError> {
    match error {
        ConnectError::Unreachable { reason, .. } => Ok(reason),
        other => Err(other),
    }
}

/// Over QUIC alone.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn quic(
    endpoint: &Endpoint,
    address: SocketAddr,
    alpn: &'static [u8],
    expected: Option<Fingerprint>,
) -> Result<(Link, Fingerprint), ConnectError> {
    let dialled = timeout(HANDSHAKE_TIMEOUT, endpoint.dial_quic(address, alpn, expected)).await;
    let (quic, found) = dialled.unwrap_or_else(|_| {
        Err(ConnectError::Unreachable { address, reason: "no answer in time".into() })
    })?;
    Ok((Link::Quic(quic), found))
}

async fn tls(
    endpoint: &Endpoint,
    address: SocketAddr,
    alpn: &'static [u8],
    expected: Option<Fingerprint>,
) -> Result<(Link, Fingerprint), ConnectError> {
    let (link, found) = endpoint.dial_tls(address, alpn, expected).await.map_err(|e| match e {
        TcpError::WrongKey { address, found } => match expected {
            Some(expected) => ConnectError::WrongKey { address, expected, found },
            None => ConnectError::Protocol { reason: "its key changed in the middle".into() },
        },
        TcpError::Unreachable { address, reason } => ConnectError::Unreachable { address, reason },
        TcpError::Refused { reason } => ConnectError::Closed { reason },
        TcpError::Protocol(error) => ConnectError::Protocol { reason: error.to_string() },
    })?;
    Ok((Link::Tls(link), found))
}
