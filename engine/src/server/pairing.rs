//! Pairing, as a person starts it: an invitation that outlives its client, a try to join.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flocker_core::record::PeerRecord;
use flocker_core::{Command, Failure, FailureCode};
use flocker_transport::{
    CountTries, Invitation, InvitationEvent, NoTry, PairError, Paired, PairingCode, words,
};
use tokio::sync::oneshot;

use super::requests::Api;
use super::{End, Lines, ending, refused};
use crate::api::{Answer, InviteOpen, PairedPeer, Response};
use crate::clock;
use crate::journal::{InvitationRecord, Journal, Try};

/// Longest an invitation may stay open, seconds.
const MAX_TTL_S: u64 = 24 * 3600;

/// How long joining may take in all.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// Counts tries in the journal.
struct JournalCounter {
    journal: Arc<Journal>,
    id: u64,
}

impl CountTries for JournalCounter {
    fn count_try(&self) -> Result<u8, NoTry> {
        metrics::counter!("flocker_repl_pairing_tries_total").increment(1);
        match self.journal.count_try(self.id, clock::unix_s()) {
            Ok(Try::Go { left }) => Ok(u8::try_from(left).unwrap_or(u8::MAX)),
            Ok(Try::Expired) => Err(NoTry::Expired),
            Ok(Try::Exhausted) => Err(NoTry::Exhausted),
            Ok(Try::Closed) => Err(NoTry::Closed),
            Err(error) => Err(NoTry::NotCounted { reason: error.to_string() }),
        }
    }
}

/// Opens an invitation and waits for its end. It stays open when the client goes away.
pub(super) async fn invite(api: &Arc<Api>, ttl_s: u64, lines: &mut Lines) -> End {
    if !(1..=MAX_TTL_S).contains(&ttl_s) {
        return Err(refused(
            FailureCode::BadRequest,
            format!("an invitation is open for 1 to {MAX_TTL_S} seconds"),
        ));
    }
    let record = InvitationRecord {
        id: random_id()?,
        expires_unix_s: clock::unix_s().saturating_add(i64::try_from(ttl_s).unwrap_or(i64::MAX)),
        tries: 0,
    };
    let journal = Arc::clone(&api.journal);
    let kept = record.clone();
    tokio::task::spawn_blocking(move || journal.open_invitation(&kept))
        .await
        .map_err(|_| ending())?
        .map_err(|error| refused(FailureCode::Other, error.to_string()))?;
    let code = PairingCode::draw();
    let addresses = advertised(api);
    let open = InviteOpen {
        addresses: addresses.clone(),
        code: code.to_string(),
        expires_unix_s: record.expires_unix_s,
        name: api.config.node.name.to_string(),
        fingerprint: api.manager.fingerprint(),
        words: words(&api.manager.fingerprint()),
    };
    let events = api
        .manager
        .invite(Invitation {
            code,
            addresses,
            valid_for: Duration::from_secs(ttl_s),
            counter: Arc::new(JournalCounter { journal: Arc::clone(&api.journal), id: record.id }),
        })
        .await;
    let (end, ended) = oneshot::channel();
    let task_api = Arc::clone(api);
    tokio::spawn(async move {
        let outcome = until_over(&task_api, events).await;
        let journal = Arc::clone(&task_api.journal);
        let id = record.id;
        let closed = tokio::task::spawn_blocking(move || journal.close_invitation(id)).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(%error, "an invitation that is over stays in the journal");
        }
        // The client may have gone away.
        let _ = end.send(outcome);
    });
    lines.send(&Response::InviteOpen(open)).await;
    ended.await.unwrap_or_else(|_| Err(ending()))
}

async fn until_over(api: &Api, mut events: tokio::sync::mpsc::Receiver<InvitationEvent>) -> End {
    while let Some(event) = events.recv().await {
        match event {
            InvitationEvent::Paired(paired) => return keep(api, paired, None).await,
            InvitationEvent::Failed { from, tries_left } => {
                tracing::warn!(%from, tries_left, "a try to pair failed");
            }
            InvitationEvent::Unconfirmed { fingerprint, name } => {
                tracing::warn!(peer = %fingerprint.short(), name, "pairing broke off at its last message; the other node may join again with the same code");
            }
            InvitationEvent::Ended(why) => {
                let code = match why {
                    NoTry::Expired => FailureCode::TimedOut,
                    NoTry::Closed => FailureCode::Cancelled,
                    NoTry::Exhausted | NoTry::NotCounted { .. } => FailureCode::NotGranted,
                };
                return Err(refused(
                    code,
                    format!("{why}: nobody was paired; run `pair --invite` again"),
                ));
            }
        }
    }
    Err(refused(FailureCode::Cancelled, "the invitation was ended: nobody was paired"))
}

/// Accepts another node's invitation.
pub(super) async fn join(api: &Api, address: &str, code: &str) -> End {
    crate::config::check_address(address)
        .map_err(|error| refused(FailureCode::BadRequest, error.to_string()))?;
    let code: PairingCode = code.parse().map_err(|error: flocker_transport::CodeError| {
        refused(FailureCode::BadRequest, error.to_string())
    })?;
    let own = advertised(api);
    let joined = tokio::time::timeout(JOIN_LIMIT, api.manager.join(address, &code, &own))
        .await
        .map_err(|_| refused(FailureCode::TimedOut, format!("{address} did not answer")))?
        .map_err(|error| failure(&error))?;
    keep(api, joined, Some(address)).await
}

fn failure(error: &PairError) -> Failure {
    let code = match error {
        PairError::WrongCode { .. }
        | PairError::NotOpen
        | PairError::Exhausted
        | PairError::NotProven => FailureCode::NotGranted,
        PairError::Expired | PairError::Silent => FailureCode::TimedOut,
        PairError::Myself => FailureCode::BadRequest,
        PairError::Connect(_) | PairError::Broken(_) => FailureCode::ConnectionLost,
        PairError::Refused { .. } | PairError::NoExporter { .. } => FailureCode::Other,
    };
    refused(code, error.to_string())
}

/// Both sides have proven themselves: trust it.
async fn keep(api: &Api, paired: Paired, dialled: Option<&str>) -> End {
    let known = api.hub.peers();
    let before = known.iter().find(|p| p.fingerprint == paired.fingerprint);
    let mut addresses: Vec<String> = dialled.map(str::to_owned).into_iter().collect();
    addresses.extend(paired.addresses);
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(address.clone()));
    let record = PeerRecord {
        fingerprint: paired.fingerprint,
        name: match before {
            Some(before) => before.name.clone(),
            None => free_name(api, &known, &paired.name),
        },
        addresses,
        grant: before.and_then(|before| before.grant.clone()),
    };
    api.command(Command::AddPeer(record.clone())).await?;
    Ok(Answer::Paired(PairedPeer {
        name: record.name,
        words: words(&record.fingerprint),
        own_words: words(&api.manager.fingerprint()),
        fingerprint: record.fingerprint,
        addresses: record.addresses,
    }))
}

/// The name a peer gives itself, made good for dataset names, with a number where it is taken.
fn free_name(api: &Api, known: &[PeerRecord], wanted: &str) -> String {
    let mut base: String = wanted
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(48)
        .collect();
    if !base.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        base.insert_str(0, "peer");
    }
    let own = api.config.node.name.as_str();
    let taken = |name: &str| name == own || known.iter().any(|p| p.name == name);
    let mut name = base.clone();
    let mut number = 2u32;
    while taken(&name) {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

/// Where this node says that it can be reached.
fn advertised(api: &Api) -> Vec<String> {
    if !api.config.node.advertise.is_empty() {
        return api.config.node.advertise.clone();
    }
    let bound = api.manager.local_addr().unwrap_or(api.config.node.listen);
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    outward_address(bound).map_or_else(Vec::new, |address| vec![address.to_string()])
}

/// The address the system would send from. Connecting a datagram socket sends nothing.
fn outward_address(bound: SocketAddr) -> Option<SocketAddr> {
    let (local, far) = match bound {
        SocketAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        SocketAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let socket = std::net::UdpSocket::bind(local).ok()?;
    socket.connect(far).ok()?;
    let mut address = socket.local_addr().ok()?;
    address.set_port(bound.port());
    (!address.ip().is_unspecified()).then_some(address)
}

fn random_id() -> Result<u64, Failure> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| refused(FailureCode::Other, format!("no random number: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}
