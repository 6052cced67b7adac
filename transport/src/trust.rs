//! Whom this node trusts: a set of fingerprints and nothing else.
//!
//! Owns: the question ([`Trust`]) and a set that answers it ([`TrustSet`]). Leaves to others: keeping
//! it durably, and what a trusted peer may do (grants, which are the engine's).

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use flocker_core::ids::Fingerprint;
use tokio::sync::watch;

/// Answers whether a peer is paired, and tells when an answer may have changed.
pub trait Trust: Send + Sync + 'static {
    /// Whether this node is paired with `peer`. Called for each connection; must not block long.
    fn is_trusted(&self, peer: &Fingerprint) -> bool;

    /// A number that changes with each change of the answers. Connections of peers that are no
    /// longer trusted are then closed.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A set of trusted peers in memory.
#[derive(Debug)]
pub struct TrustSet {
    peers: RwLock<BTreeSet<Fingerprint>>,
    version: watch::Sender<u64>,
}

impl TrustSet {
    /// A set with these peers.
    pub fn new(peers: impl IntoIterator<Item = Fingerprint>) -> Self {
        Self { peers: RwLock::new(peers.into_iter().collect()), version: watch::channel(0).0 }
    }

    /// Trusts a peer; `false` when it was trusted already.
    pub fn insert(&self, peer: Fingerprint) -> bool {
        self.change(|peers| peers.insert(peer))
    }

    /// Trusts a peer no longer; `false` when it was not trusted.
    pub fn remove(&self, peer: &Fingerprint) -> bool {
        self.change(|peers| peers.remove(peer))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Fingerprint>) -> bool) -> bool {
        let changed = change(&mut self.peers.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.version.send_modify(|v| *v += 1);
        }
        changed
    }
}

impl Trust for TrustSet {
    fn is_trusted(&self, peer: &Fingerprint) -> bool {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
