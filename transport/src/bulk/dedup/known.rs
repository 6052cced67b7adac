//! What this node knows of one peer's cache.
//!
//! Owns: the account of what lies in it, and whether referring to it pays. Leaves to others: what of one
//! transfer is still on its way ([`super::sending`]).
//!
//! The account follows the same rule as the cache itself (see [`super::ring`]), a little smaller: what
//! it still lists, the cache nearly always still has. It can be wrong, as other transfers of the pair run
//! beside and the cache's disk may fail; then the receiver asks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::benefit::{Benefit, Switched};
use super::ring::{self, MAX_BLOCKS, Prefix, Ring};
use crate::counters;
use crate::frame::dedup::CACHE_ID_LEN;

/// What is known of one cache.
#[derive(Debug)]
pub struct Known {
    id: [u8; CACHE_ID_LEN],
    window_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    benefit: Benefit,
}

impl Known {
    /// Nothing yet, of a cache that was offered.
    pub fn new(id: [u8; CACHE_ID_LEN], window_bytes: u64) -> Self {
        let ring = Ring::new(window_bytes - window_bytes / 8, MAX_BLOCKS - MAX_BLOCKS / 8);
        let state = Mutex::new(State { ring, benefit: Benefit::new(window_bytes) });
        Self { id, window_bytes, state }
    }

    /// Whether it is this cache.
    pub fn is(&self, id: [u8; CACHE_ID_LEN], window_bytes: u64) -> bool {
        self.id == id && self.window_bytes == window_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cache takes a block of this length at all.
    pub fn takes(&self, len: usize) -> bool {
        ring::takes(self.window_bytes, len)
    }

    /// Which of these blocks (prefix and length) the cache should have.
    pub fn has(&self, blocks: &[(Prefix, usize)]) -> Vec<bool> {
        let state = self.state();
        let has = |(prefix, len): &(Prefix, usize)| {
            state.ring.find(*prefix).is_some_and(|place| place.len as usize == *len)
        };
        blocks.iter().map(has).collect()
    }

    /// The cache has these blocks now, in this order.
    pub fn add(&self, blocks: &[(Prefix, usize)]) {
        let mut state = self.state();
        for (prefix, len) in blocks {
            if self.takes(*len) && state.ring.find(*prefix).is_none() {
                let place = state.ring.reserve(*len);
                state.ring.publish(*prefix, place);
            }
        }
    }

    /// The cache has lost these blocks.
    pub fn lost(&self, blocks: &[(Prefix, usize)]) {
        let mut state = self.state();
        for (prefix, len) in blocks {
            if let Some(place) = state.ring.find(*prefix) {
                state.ring.forget(*prefix, place);
            }
            state.benefit.missed(*len);
        }
    }

    /// Whether blocks are to be hashed and referred to now.
    pub fn is_on(&self) -> bool {
        self.state().benefit.is_on()
    }

    /// Counts a batch of `raw` bytes of which references saved `saved`, and blocks chosen as a sample
    /// ([`Benefit::chooses`]).
    pub fn count(&self, raw: usize, saved: usize, sample: &[(super::recipe::Hash, usize)]) {
        let mut state = self.state();
        for (hash, len) in sample {
            state.benefit.note(hash, *len);
        }
        if let Some(switched) = state.benefit.count(raw, saved) {
            let to = match switched {
                Switched::On => "on",
                Switched::Off => "off",
            };
            metrics::counter!(counters::DEDUP_SWITCHED, "to" => to).increment(1);
            tracing::info!(to, "dedup was switched by what it saves");
        }
    }
}
