//! Dialling a peer at its addresses, and how long to wait before the next time.

use std::net::SocketAddr;
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use tokio::time::timeout;

use crate::endpoint::{Connection, Endpoint, random_u64};
use crate::error::ConnectError;
use crate::lane::choice::LaneMode;
use crate::tcp;
use crate::tls::ALPN_BULK;

/// Wait after the first failed round; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Longest wait: a peer that comes back is found within seconds even if it never dials us.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The side with the larger fingerprint waits this long before its first dial, so that the two do
/// not usually dial at once.
const POLITE_WAIT: Duration = Duration::from_millis(50);

/// Asking for a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried.
const MAX_RESOLVED: usize = 8;

/// How long to wait before round `round` (from 0) of dialling.
pub(super) fn wait_before(round: u32, ours: &Fingerprint, peer: &Fingerprint) -> Duration {
    if round == 0 {
        return if ours > peer { POLITE_WAIT } else { Duration::ZERO };
    }
    let doubled = FIRST_WAIT.saturating_mul(1 << (round - 1).min(16)).min(LONGEST_WAIT);
    // Up to a quarter more, so that nodes that lost each other together do not dial in step.
    doubled + doubled.mul_f64((random_u64() % 256) as f64 / 1024.0)
}

/// Dials each address in turn; the first that answers as `peer` wins.
///
/// # Errors
/// Of the last address, or an earlier one that a person has to see to.
pub(super) async fn dial(
    endpoint: &Endpoint,
    peer: Fingerprint,
    addresses: &[String],
) -> Result<Connection, ConnectError> {
    let mut worst: Option<ConnectError> = None;
    for host in addresses {
        let resolved = match resolve(host).await {
            Ok(resolved) => resolved,
            Err(error) => {
                worst = Some(worse(worst, error));
                continue;
            }
        };
        for address in resolved {
            match endpoint.connect(address, peer).await {
                Ok(connection) => return Ok(connection),
                Err(error) => worst = Some(worse(worst, look_closer(endpoint, peer, error).await)),
            }
        }
    }
    Err(worst.unwrap_or_else(|| ConnectError::Unresolved {
        host: peer.short(),
        reason: "no address is configured".into(),
    }))
}

/// Where QUIC alone is used and nobody answers, whether the peer does over TCP: then it is the way that is closed,
/// and waiting for the peer is of no use.
async fn look_closer(endpoint: &Endpoint, peer: Fingerprint, error: ConnectError) -> ConnectError {
    let ConnectError::Unreachable { address, .. } = error else { return error };
    if endpoint.local().lane != LaneMode::Quic {
        return error;
    }
    match tcp::connect(endpoint.identity(), ALPN_BULK, Some(peer), address).await {
        Ok(_) => ConnectError::UdpBlocked { address },
        Err(_) => error,
    }
}

fn worse(before: Option<ConnectError>, error: ConnectError) -> ConnectError {
    match before {
        Some(before) if before.needs_a_person() => before,
        _ => error,
    }
}

/// The addresses of `host:port`.
///
/// # Errors
/// [`ConnectError::Unresolved`].
pub(super) async fn resolve(host: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |reason| ConnectError::Unresolved { host: host.to_owned(), reason };
    let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host)).await;
    let found = found.map_err(|_| failed("the resolver did not answer".into()))?;
    let found = found.map_err(|e| failed(e.to_string()))?;
    Ok(found.take(MAX_RESOLVED).collect())
}
