//! The greeting: from a QUIC connection to a peer, or to a refusal that both sides can print.
//!
//! ```text
//! dialler ── Hello ──▶ acceptor
//!         ◀── Hello ──           then the acceptor, having compared versions and asked for trust:
//!         ◀── Accept ── or ◀── Reject
//! ```
//!
//! Owns: the order of these frames and the two checks. The stream they travel on stays open as the
//! control stream. The acceptor's Hello says no secret: a name and a version.

use std::time::Duration;

use flocker_core::ids::Fingerprint;
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use crate::endpoint::{Connection, LocalNode, PeerInfo};
use crate::error::ConnectError;
use crate::frame::FrameType;
use crate::frame::hello::{Hello, Reject, RejectCode};
use crate::framed::{self, FramedError};
use crate::trust::Trust;

/// How long a refused dialler has to read why, before its connection is closed.
const REJECT_LINGER: Duration = Duration::from_secs(1);

/// Greets as the side that dialled `peer`.
pub(crate) async fn as_dialler(
    quic: &quinn::Connection,
    local: &LocalNode,
    ours: Fingerprint,
    peer: Fingerprint,
) -> Result<Connection, ConnectError> {
    if peer == ours {
        return Err(ConnectError::Myself);
    }
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    let (mut send, mut recv) =
        quic.open_bi().await.map_err(|e| ConnectError::from_quic(quic.remote_address(), &e))?;
    let theirs = say_hello(&mut send, &mut recv, local, ours).await?;
    let allowed = [FrameType::Accept, FrameType::Reject];
    let (kind, payload) =
        framed::read(&mut recv, &allowed, "Accept or Reject").await.map_err(|e| broken(&e))?;
    if kind == FrameType::Reject {
        let reject = Reject::decode(&payload).map_err(|e| broken(&e.into()))?;
        return Err(ConnectError::from_reject(reject, local.protocol, ours));
    }
    let peer = peer_info(quic, peer, theirs);
    Ok(Connection { peer, dialled: true, quic: quic.clone(), send, recv })
}

/// Sends our Hello and reads theirs; the versions must agree.
pub(crate) async fn say_hello(
    send: &mut SendStream,
    recv: &mut RecvStream,
    local: &LocalNode,
    ours: Fingerprint,
) -> Result<Hello, ConnectError> {
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    framed::write(send, FrameType::Hello, &local.hello().encode()).await.map_err(|e| broken(&e))?;
    let allowed = [FrameType::Hello, FrameType::Reject];
    let (kind, payload) =
        framed::read(recv, &allowed, "Hello or Reject").await.map_err(|e| broken(&e))?;
    if kind == FrameType::Reject {
        let reject = Reject::decode(&payload).map_err(|e| broken(&e.into()))?;
        return Err(ConnectError::from_reject(reject, local.protocol, ours));
    }
    let theirs = Hello::decode(&payload).map_err(|e| broken(&e.into()))?;
    same_version(local, &theirs)?;
    Ok(theirs)
}

/// Greets as the side that `peer` dialled; refuses it in words when it must.
pub(crate) async fn as_acceptor(
    quic: &quinn::Connection,
    local: &LocalNode,
    ours: Fingerprint,
    peer: Fingerprint,
    trust: &dyn Trust,
) -> Result<Connection, ConnectError> {
    let (mut send, recv, theirs) = hear_hello(quic, local, ours).await?;
    let checked = if peer == ours {
        Err(ConnectError::Myself)
    } else if trust.is_trusted(&peer) {
        same_version(local, &theirs)
    } else {
        // Seen from here it is the caller whom this node does not know.
        same_version(local, &theirs)
            .and(Err(ConnectError::NotPaired { name: local.name.clone(), ours: peer }))
    };
    if let Err(error) = checked {
        reject(quic, &mut send, local, &error).await;
        return Err(error);
    }
    framed::write(&mut send, FrameType::Accept, &[])
        .await
        .map_err(|e| ConnectError::from_framed(&e, ours))?;
    let peer = peer_info(quic, peer, theirs);
    Ok(Connection { peer, dialled: false, quic: quic.clone(), send, recv })
}

/// Waits for the dialler's stream and Hello, and answers with ours.
pub(crate) async fn hear_hello(
    quic: &quinn::Connection,
    local: &LocalNode,
    ours: Fingerprint,
) -> Result<(SendStream, RecvStream, Hello), ConnectError> {
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    let (mut send, mut recv) =
        quic.accept_bi().await.map_err(|e| ConnectError::from_quic(quic.remote_address(), &e))?;
    let (_, payload) =
        framed::read(&mut recv, &[FrameType::Hello], "Hello").await.map_err(|e| broken(&e))?;
    let theirs = Hello::decode(&payload).map_err(|e| broken(&e.into()))?;
    let hello = local.hello().encode();
    framed::write(&mut send, FrameType::Hello, &hello).await.map_err(|e| broken(&e))?;
    Ok((send, recv, theirs))
}

pub(crate) fn same_version(local: &LocalNode, theirs: &Hello) -> Result<(), ConnectError> {
    if local.protocol == theirs.protocol {
        return Ok(());
    }
    let (ours, name) = (local.protocol, theirs.name.clone());
    Err(ConnectError::Version { ours, theirs: theirs.protocol, name })
}

/// Says no, and waits a moment so that it is read before the connection is closed.
pub(crate) async fn reject(
    quic: &quinn::Connection,
    send: &mut SendStream,
    local: &LocalNode,
    error: &ConnectError,
) {
    let code = match error {
        ConnectError::Version { .. } => RejectCode::Version,
        ConnectError::NotPaired { .. } => RejectCode::NotPaired,
        _ => RejectCode::Other,
    };
    let (protocol, name) = (local.protocol, local.name.clone());
    let reject = Reject { code, protocol, name, reason: error.to_string() };
    let told = framed::write(send, FrameType::Reject, &reject.encode()).await;
    if told.is_ok() && send.finish().is_ok() {
        // The dialler closes once it has read it.
        let _ = timeout(REJECT_LINGER, quic.closed()).await;
    }
}

fn peer_info(quic: &quinn::Connection, fingerprint: Fingerprint, hello: Hello) -> PeerInfo {
    let Hello { incarnation, name, software, tls, udp_room_kib, .. } = hello;
    let address = quic.remote_address();
    PeerInfo { fingerprint, name, software, incarnation, address, tls, udp_room_kib }
}
