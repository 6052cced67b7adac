//! The joiner's end: dials the inviter with the code.
//!
//! Owns: the joiner's side of the exchange. It returns the inviter only after its proof verified.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::code::PairingCode;
use super::exchange::{Claim, EXPORTER_LABEL, Exchange, Proof, Role, Scene};
use super::inviter::bounded;
use super::{PairError, Paired, STEP_TIMEOUT};
use crate::endpoint::{CloseCode, Endpoint, close};
use crate::frame::cursor::presentable;
use crate::frame::hello::{Hello, MAX_NAME};
use crate::frame::pair::{Opening, PairRefusal, PairRefused};
use crate::frame::{FrameError, FrameType};
use crate::framed;
use crate::greeting;

/// How long the joiner makes sure that its last message arrived.
const CONFIRM_TIME: Duration = Duration::from_secs(2);

/// How long the answer may take: others' tries come first, and counting is durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Joins the node that invites at `address`, telling it that this node can be dialled at `addresses`.
///
/// # Errors
/// [`PairError`]; nothing is to be stored then.
pub async fn join(
    endpoint: &Endpoint,
    address: SocketAddr,
    code: &PairingCode,
    addresses: &[String],
) -> Result<Paired, PairError> {
    let (quic, inviter) = endpoint.dial_for_pairing(address).await?;
    let joined = if inviter == endpoint.fingerprint() {
        Err(PairError::Myself)
    } else {
        exchange(endpoint, &quic, inviter, code, addresses).await
    };
    close(&quic, CloseCode::PairingOver, "pairing is over");
    joined
}

async fn exchange(
    endpoint: &Endpoint,
    quic: &quinn::Connection,
    inviter: Fingerprint,
    code: &PairingCode,
    addresses: &[String],
) -> Result<Paired, PairError> {
    let (local, ours) = (endpoint.local(), endpoint.fingerprint());
    let lost = |e| framed::FramedError::Write(quinn::WriteError::ConnectionLost(e));
    let (mut send, mut recv) = quic.open_bi().await.map_err(lost)?;
    let greeted = timeout(STEP_TIMEOUT, greeting::say_hello(&mut send, &mut recv, local, ours));
    let hello = greeted.await.map_err(|_| PairError::Silent)??;

    let (exchange, message) = Exchange::start(Role::Joiner, code, &ours, &inviter);
    let addresses = bounded(addresses);
    let start = Opening { spake: message, addresses: addresses.clone() };
    framed::write(&mut send, FrameType::PairStart, &start.encode()).await?;
    let answer = read(&mut recv, FrameType::PairAnswer, "PairAnswer", ANSWER_TIMEOUT).await?;
    let answer = Opening::decode(FrameType::PairAnswer, &answer).map_err(broken)?;

    let name = presentable(&local.name, MAX_NAME);
    let joiner = Claim { fingerprint: ours, name, addresses };
    let scene = scene(quic, local.protocol, joiner, inviter, &hello, &answer)?;
    let proofs = exchange.finish(&answer.spake, &scene).map_err(|_| PairError::NotProven)?;
    framed::write(&mut send, FrameType::PairProof, &proofs.show(Proof::Joiner)).await?;
    let found = read(&mut recv, FrameType::PairProof, "PairProof", STEP_TIMEOUT).await?;
    if !proofs.verify(Proof::Inviter, &found) {
        return Err(PairError::NotProven);
    }
    confirm(&mut send, &proofs.show(Proof::Confirm)).await;
    let Hello { name, software, .. } = hello;
    let observed = quic.remote_address();
    Ok(Paired { fingerprint: inviter, name, software, addresses: answer.addresses, observed })
}

fn scene(
    quic: &quinn::Connection,
    protocol: u16,
    joiner: Claim,
    inviter: Fingerprint,
    hello: &Hello,
    answer: &Opening,
) -> Result<Scene, PairError> {
    let mut exporter = [0; 32];
    quic.export_keying_material(&mut exporter, EXPORTER_LABEL, b"")
        .map_err(|e| PairError::NoExporter { reason: format!("{e:?}") })?;
    let (name, addresses) = (hello.name.clone(), answer.addresses.clone());
    let inviter = Claim { fingerprint: inviter, name, addresses };
    Ok(Scene { protocol, exporter, joiner, inviter })
}

/// Both have verified. Should this be lost, joining again repairs it; so it is worth a warning only.
async fn confirm(send: &mut SendStream, proof: &[u8]) {
    let told = framed::write(send, FrameType::PairConfirm, proof).await;
    let finished = told.is_ok() && send.finish().is_ok();
    let arrived = finished && matches!(timeout(CONFIRM_TIME, send.stopped()).await, Ok(Ok(None)));
    if !arrived {
        tracing::warn!(
            "the inviter may not have heard that pairing succeeded; if it did not, join again"
        );
    }
}

/// Reads the frame that is due, or the inviter's refusal.
async fn read(
    recv: &mut RecvStream,
    kind: FrameType,
    name: &'static str,
    limit: Duration,
) -> Result<Vec<u8>, PairError> {
    let allowed = [kind, FrameType::PairRefused];
    let read = timeout(limit, framed::read(recv, &allowed, name));
    let (kind, payload) = read.await.map_err(|_| PairError::Silent)??;
    if kind != FrameType::PairRefused {
        return Ok(payload);
    }
    let PairRefused { code, tries_left, reason } = PairRefused::decode(&payload).map_err(broken)?;
    Err(match code {
        PairRefusal::WrongCode => PairError::WrongCode { tries_left },
        PairRefusal::NoInvitation => PairError::NotOpen,
        PairRefusal::Expired => PairError::Expired,
        PairRefusal::Exhausted => PairError::Exhausted,
        PairRefusal::Myself => PairError::Myself,
        PairRefusal::Other => PairError::Refused { reason },
    })
}

fn broken(error: FrameError) -> PairError {
    PairError::Broken(error.into())
}
