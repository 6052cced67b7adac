//! Taking what strangers dial over QUIC; over TCP that is [`crate::tcp`]'s.
//!
//! Owns: the limits on what they may cost. Leaves to others: the greeting ([`super::Endpoint`]).

use std::sync::Arc;

use flocker_core::ids::Fingerprint;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::{Arrival, CloseCode, Endpoint, HANDSHAKE_TIMEOUT};
use crate::counters;
use crate::identity::fingerprint_of;
use crate::link::Link;
use crate::tls::ALPN_PAIR;
use crate::trust::Trust;

/// Strangers whose handshake is under way at once; more are turned away.
const MAX_HANDSHAKES: usize = 64;

/// From this many on, a caller must first show that it receives at the address it claims.
const HANDSHAKES_UNVALIDATED: usize = 16;

pub(super) async fn listen_loop(
    quic: quinn::Endpoint,
    endpoint: Endpoint,
    trust: Arc<dyn Trust>,
    arrivals: mpsc::Sender<Arrival>,
) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = quic.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refused("busy");
            incoming.refuse();
            continue;
        };
        let under_way = MAX_HANDSHAKES - places.available_permits();
        if under_way > HANDSHAKES_UNVALIDATED
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            // It may retry, as was just asked; the answer can only say the same.
            let _ = incoming.retry();
            continue;
        }
        let (endpoint, trust, arrivals) = (endpoint.clone(), Arc::clone(&trust), arrivals.clone());
        tokio::spawn(async move {
            let welcomed = welcome(&endpoint, trust.as_ref(), incoming).await;
            drop(place);
            if let Some(arrival) = welcomed {
                // The node is stopping when nobody takes it; dropping the connection then closes it.
                let _ = arrivals.send(arrival).await;
            }
        });
    }
}

pub(crate) fn refused(reason: &'static str) {
    metrics::counter!(counters::CONNECTIONS_REFUSED, "reason" => reason).increment(1);
}

/// One incoming connection, from its first packet to its arrival; `None` when it comes to nothing, or is for
/// pairing.
async fn welcome(
    endpoint: &Endpoint,
    trust: &dyn Trust,
    incoming: quinn::Incoming,
) -> Option<Arrival> {
    let address = incoming.remote_address();
    let quic = match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            refused("handshake");
            tracing::debug!(%address, %error, "an incoming connection did not finish its handshake");
            return None;
        }
        Err(_) => {
            refused("timeout");
            return None;
        }
    };
    let (key, for_pairing) = (proven_key(&quic), alpn(&quic).as_deref() == Some(ALPN_PAIR));
    let link = Link::Quic(quic);
    let Some(peer) = key else {
        refused("no key");
        link.close(CloseCode::Protocol, "no key was shown");
        return None;
    };
    if for_pairing {
        endpoint.pair(link, peer);
        return None;
    }
    endpoint.greet(trust, link, peer).await
}

/// The key that the other side proved in its handshake.
fn proven_key(quic: &quinn::Connection) -> Option<Fingerprint> {
    let certificates = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    fingerprint_of(certificates.first()?).ok()
}

fn alpn(quic: &quinn::Connection) -> Option<Vec<u8>> {
    quic.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}
