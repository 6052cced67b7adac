//! The greeting: from a link to a peer, or to a refusal that both sides can print.
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
use tokio::time::timeout;

use crate::endpoint::{Connection, LocalNode, PeerInfo};
use crate::error::ConnectError;
use crate::frame::FrameType;
use crate::frame::hello::{Call, Hello, Reject, RejectCode};
use crate::framed::{self, FramedError};
use crate::link::dial::Dialled;
use crate::link::{Link, Receiving, Sending};
use crate::trust::Trust;

/// How long a refused dialler has to read why, before its connection is closed.
const REJECT_LINGER: Duration = Duration::from_secs(1);

/// Greets as the side that dialled.
pub(crate) async fn as_dialler(
    dialled: &Dialled,
    local: &LocalNode,
    ours: Fingerprint,
) -> Result<Connection, ConnectError> {
    let Dialled { link, found: peer, call } = dialled;
    if *peer == ours {
        return Err(ConnectError::Myself);
    }
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    let opened = link.open().await;
    let (mut send, mut recv) =
        opened.map_err(|gone| ConnectError::from_gone(link.remote_address(), &gone))?;
    let theirs = say_hello(&mut send, &mut recv, local, *call, ours).await?;
    let allowed = [FrameType::Accept, FrameType::Reject];
    let (kind, payload) =
        framed::read(&mut recv, &allowed, "Accept or Reject").await.map_err(|e| broken(&e))?;
    if kind == FrameType::Reject {
        let reject = Reject::decode(&payload).map_err(|e| broken(&e.into()))?;
        return Err(ConnectError::from_reject(reject, local.protocol, ours));
    }
    let peer = peer_info(link, *peer, theirs);
    Ok(Connection { peer, dialled: true, call: *call, link: link.clone(), send, recv })
}

/// Sends our Hello and reads theirs; the versions must agree.
pub(crate) async fn say_hello(
    send: &mut Sending,
    recv: &mut Receiving,
    local: &LocalNode,
    call: Call,
    ours: Fingerprint,
) -> Result<Hello, ConnectError> {
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    let hello = local.hello(call).encode();
    framed::write(send, FrameType::Hello, &hello).await.map_err(|e| broken(&e))?;
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
    link: &Link,
    local: &LocalNode,
    ours: Fingerprint,
    peer: Fingerprint,
    trust: &dyn Trust,
) -> Result<Connection, ConnectError> {
    let (mut send, recv, theirs) = hear_hello(link, local, ours).await?;
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
        reject(link, &mut send, local, &error).await;
        return Err(error);
    }
    framed::write(&mut send, FrameType::Accept, &[])
        .await
        .map_err(|e| ConnectError::from_framed(&e, ours))?;
    let call = theirs.call;
    let peer = peer_info(link, peer, theirs);
    Ok(Connection { peer, dialled: false, call, link: link.clone(), send, recv })
}

/// Waits for the dialler's stream and Hello, and answers with ours.
pub(crate) async fn hear_hello(
    link: &Link,
    local: &LocalNode,
    ours: Fingerprint,
) -> Result<(Sending, Receiving, Hello), ConnectError> {
    let broken = |e: &FramedError| ConnectError::from_framed(e, ours);
    let accepted = link.accept().await;
    let (mut send, mut recv) =
        accepted.map_err(|gone| ConnectError::from_gone(link.remote_address(), &gone))?;
    let (_, payload) =
        framed::read(&mut recv, &[FrameType::Hello], "Hello").await.map_err(|e| broken(&e))?;
    let theirs = Hello::decode(&payload).map_err(|e| broken(&e.into()))?;
    let hello = local.hello(Call::First).encode();
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
    link: &Link,
    send: &mut Sending,
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
    if told.is_ok() && send.finish() {
        // The dialler closes once it has read it.
        let _ = timeout(REJECT_LINGER, link.closed()).await;
    }
}

fn peer_info(link: &Link, fingerprint: Fingerprint, hello: Hello) -> PeerInfo {
    let Hello { incarnation, name, software, tls, quic, udp_room_kib, .. } = hello;
    let address = link.remote_address();
    PeerInfo { fingerprint, name, software, incarnation, address, tls, quic, udp_room_kib }
}
