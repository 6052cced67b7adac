//! The joiner's end: dials the inviter with the code.
//!
//! Owns: the joiner's side of the exchange. It returns the inviter only after its proof verified.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use tokio::time::timeout;

use super::code::PairingCode;
use super::exchange::{Claim, Exchange, Proof, Role, Scene};
use super::inviter::bounded;
use super::{PairError, Paired, STEP_TIMEOUT};
use crate::endpoint::{CloseCode, Endpoint};
use crate::frame::cursor::presentable;
use crate::frame::hello::{Call, Hello, MAX_NAME};
use crate::frame::pair::{Opening, PairRefusal, PairRefused};
use crate::frame::{FrameError, FrameType};
use crate::framed;
use crate::greeting;
use crate::link::dial::Dialled;
use crate::link::{Link, Receiving, Sending};

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
    let Dialled { link, found: inviter, call } = endpoint.dial_for_pairing(address).await?;
    let joined = if inviter == endpoint.fingerprint() {
        Err(PairError::Myself)
    } else {
        exchange(endpoint, &link, call, inviter, code, addresses).await
    };
    link.close(CloseCode::PairingOver, "pairing is over");
    joined
}

async fn exchange(
    endpoint: &Endpoint,
    link: &Link,
    call: Call,
    inviter: Fingerprint,
    code: &PairingCode,
    addresses: &[String],
) -> Result<Paired, PairError> {
    let (local, ours) = (endpoint.local(), endpoint.fingerprint());
    let (mut send, mut recv) = link.open().await.map_err(framed::FramedError::Gone)?;
    let hello = greeting::say_hello(&mut send, &mut recv, local, call, ours);
    let greeted = timeout(STEP_TIMEOUT, hello);
    let hello = greeted.await.map_err(|_| PairError::Silent)??;

    let (exchange, message) = Exchange::start(Role::Joiner, code, &ours, &inviter);
    let addresses = bounded(addresses);
    let start = Opening { spake: message, addresses: addresses.clone() };
    framed::write(&mut send, FrameType::PairStart, &start.encode()).await?;
    let answer = read(&mut recv, FrameType::PairAnswer, "PairAnswer", ANSWER_TIMEOUT).await?;
    let answer = Opening::decode(FrameType::PairAnswer, &answer).map_err(broken)?;

    let name = presentable(&local.name, MAX_NAME);
    let joiner = Claim { fingerprint: ours, name, addresses };
    let scene = scene(link, local.protocol, joiner, inviter, &hello, &answer)?;
    let proofs = exchange.finish(&answer.spake, &scene).map_err(|_| PairError::NotProven)?;
    framed::write(&mut send, FrameType::PairProof, &proofs.show(Proof::Joiner)).await?;
    let found = read(&mut recv, FrameType::PairProof, "PairProof", STEP_TIMEOUT).await?;
    if !proofs.verify(Proof::Inviter, &found) {
        return Err(PairError::NotProven);
    }
    confirm(&mut send, &proofs.show(Proof::Confirm)).await;
    let Hello { name, software, .. } = hello;
    let observed = link.remote_address();
    Ok(Paired { fingerprint: inviter, name, software, addresses: answer.addresses, observed })
}

fn scene(
    link: &Link,
    protocol: u16,
    joiner: Claim,
    inviter: Fingerprint,
    hello: &Hello,
    answer: &Opening,
) -> Result<Scene, PairError> {
    let exporter = link.pairing_exporter();
    let exporter = exporter.map_err(|reason| PairError::NoExporter { reason })?;
    let (name, addresses) = (hello.name.clone(), answer.addresses.clone());
    let inviter = Claim { fingerprint: inviter, name, addresses };
    Ok(Scene { protocol, exporter, joiner, inviter })
}

/// Both have verified. Should this be lost, joining again repairs it; so it is worth a warning only.
async fn confirm(send: &mut Sending, proof: &[u8]) {
    let told = framed::write(send, FrameType::PairConfirm, proof).await;
    let finished = told.is_ok() && send.finish();
    let arrived = finished && matches!(timeout(CONFIRM_TIME, send.taken()).await, Ok(true));
    if !arrived {
        tracing::warn!(
            "the inviter may not have heard that pairing succeeded; if it did not, join again"
        );
    }
}

/// Reads the frame that is due, or the inviter's refusal.
async fn read(
    recv: &mut Receiving,
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
