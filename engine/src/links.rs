//! What the connections have to say, on its way to the loop and the transfers.
//!
//! Owns: that the core sees each peer go up and down in turn, and no message of a connection that is
//! not the current one. Leaves to others: the connections themselves (`flocker_transport`).

use std::collections::BTreeMap;
use std::time::Duration;

use flocker_core::ids::Fingerprint;
use flocker_core::{Input, Message};
use flocker_transport::{DownReason, PeerEvent};
use tokio::sync::mpsc;

use crate::transfer::Transfers;
use crate::turn::{QUEUE, Turn, Turns};

/// How often a full queue is looked at again.
const PAUSE: Duration = Duration::from_millis(2);

/// Forwards events until there are no more.
pub(crate) async fn forward(
    mut events: mpsc::Receiver<PeerEvent>,
    turns: Turns,
    transfers: Transfers,
) {
    let mut up: BTreeMap<Fingerprint, u64> = BTreeMap::new();
    while let Some(event) = events.recv().await {
        // Peers wait before our memory grows; the transport then lets them wait in turn.
        while turns.len() > QUEUE {
            tokio::time::sleep(PAUSE).await;
        }
        for input in inputs(event, &mut up, &transfers) {
            if turns.send(Turn::Input(input)).is_err() {
                return;
            }
        }
    }
}

fn inputs(
    event: PeerEvent,
    up: &mut BTreeMap<Fingerprint, u64>,
    transfers: &Transfers,
) -> Vec<Input> {
    match event {
        PeerEvent::Up { peer, session } => {
            tracing::info!(peer = %peer.fingerprint.short(), name = peer.name, address = %peer.address, software = peer.software, "peer up");
            let peer = peer.fingerprint;
            match up.insert(peer, session) {
                Some(_) => vec![Input::PeerDown { peer }, Input::PeerUp { peer }],
                None => vec![Input::PeerUp { peer }],
            }
        }
        PeerEvent::Down { peer, session, reason } => {
            if up.get(&peer) != Some(&session) {
                return Vec::new();
            }
            // Both had dialled at once: the other connection comes up next, and the core sees one
            // change instead of a peer that is away for a moment.
            if reason == DownReason::Replaced {
                return Vec::new();
            }
            tracing::info!(peer = %peer.short(), %reason, "peer down");
            up.remove(&peer);
            vec![Input::PeerDown { peer }]
        }
        PeerEvent::Control { peer, session, payload } => {
            if up.get(&peer) != Some(&session) {
                return Vec::new();
            }
            match postcard::from_bytes::<Message>(&payload) {
                Ok(message) => vec![Input::Message { peer, message }],
                Err(error) => {
                    tracing::warn!(peer = %peer.short(), %error, bytes = payload.len(), "a message that cannot be read is dropped");
                    Vec::new()
                }
            }
        }
        PeerEvent::Bulk { peer, header, receiver, .. } => {
            transfers.arrived(peer, &header, receiver);
            Vec::new()
        }
        PeerEvent::DialFailed { peer, error } => {
            tracing::warn!(peer = %peer.short(), %error, "peer cannot be reached; trying on");
            Vec::new()
        }
        PeerEvent::Refused(refused) => {
            tracing::warn!(peer = %refused.fingerprint.short(), address = %refused.address, error = %refused.error, "a caller was turned away");
            Vec::new()
        }
    }
}
