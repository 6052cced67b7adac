//! Dedup on the wire: blocks that the receiver has go as references.
//!
//! ```text
//! sender                                       receiver
//!                    ◀── Cache (id, window, credit)         once, when there is room for the credit
//!   Batch: runs, new blocks, references ──▶    new blocks into the cache, references out of it
//!                    ◀── Resolved{seq}                      the sender lets go of what it kept
//!                    ◀── Missing{seq, parts}                or is asked, once a batch
//!   Blocks{seq} ──▶
//! ```
//!
//! Owns: what is known of blocks on both sides, and where the receiver's bytes come from. Leaves to
//! others: threads and queues ([`super::send`], [`super::receive`]), the bytes of frames
//! ([`crate::frame::dedup`]).
//!
//! Read next: [`recipe`] for how a batch is taken apart, [`sending`] and [`receiving`] for the two sides,
//! [`cache`] and [`known`] for what they know, [`benefit`] for when it is off.
//!
//! # Where the bytes come from
//!
//! From a cache of the receiver's own: a ring on disk of the last blocks that came from this peer under
//! this grant. Not from the store: the blocks of a received dataset are no longer what the stream held
//! (compressed, encrypted or split otherwise at rest), change under us when it is promoted or rolled back,
//! and reading them would need an index that survives crashes and is never wrong. The cache needs neither: it
//! begins empty, is never trusted, and costs a bounded piece of disk.
//!
//! # Why it is never wrong
//!
//! * What a reference yields is hashed before use; the batch's seal binds every byte; a batch is written
//!   whole or not at all.
//! * What the sender knows is only ever a guess. It keeps what it referred to until the receiver has
//!   resolved it, and sends it when asked. After a crash of either side the guess is empty, or the cache's id
//!   is another, which comes to the same.
//! * Nothing is shared between pairs, nor between grants of one pair: each has a cache and an id of its
//!   own. A peer can find out about no block that it has not sent itself.
//!
//! # Why it does not get stuck
//!
//! The receiver reserves a credit of memory for the transfer before it offers its cache, and the sender never
//! has more than that under way behind an unresolved reference. So the receiver can read on until the blocks
//! it asked for come, whatever else is full, and the sender can always send them: they are in its hands.
//! While nothing can be reserved, no cache is offered, and the transfer goes without.
//!
//! # Memory
//!
//! | what | bytes |
//! | --- | --- |
//! | receiving: index of a cache, 128 Ki blocks; at most four caches | 7 MiB each |
//! | sending: account of a peer's cache; at most four | 7 MiB, and 1 MiB for its samples, each |
//! | receiving: credit of two transfers, out of what all transfers share | 6 MiB more are shared |
//! | sending: what is kept, out of the transfer's batches | none beyond the budget |
//! | sending: blocks claimed in at most 256 unresolved batches | 1 MiB a transfer |

pub mod benefit;
pub mod cache;
pub mod known;
pub mod receiving;
pub mod recipe;
pub mod ring;
pub mod sending;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use flocker_core::ids::Fingerprint;

use crate::frame::dedup::{CACHE_ID_LEN, MAX_REFERRING, MAX_TABLE};
use cache::{Cache, MIN_CACHE};
use known::Known;

/// Least credit that is of use: the largest batch with references fits.
pub const MIN_CREDIT: usize = 2 * MAX_REFERRING + MAX_TABLE;

/// What is reserved for a transfer: the larger where there is room. The one lets about 5 MiB of a
/// stream be under way, so 250 MB/s at 20 ms.
pub(crate) const CREDITS: [usize; 2] = [10 << 20, 6 << 20];

/// Caches that a node keeps at once, and caches of others that it knows: the ones used last.
const MAX_PAIRS: usize = 4;

/// A cache takes at most this part of what is free on its disk when it is made.
const OF_FREE: u64 = 8;

/// The other side broke the rules of dedup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DedupError {
    /// Of the sender: it refers to blocks of a receiver that offered none.
    #[error("batch {seq} has a recipe, but no cache was offered")]
    NotOffered {
        /// Number of the batch.
        seq: u64,
    },
    /// Of the sender: too much under way behind an unresolved reference.
    #[error("batch {seq} goes beyond the credit of {limit} bytes")]
    OverCredit {
        /// Number of the batch.
        seq: u64,
        /// The credit in bytes.
        limit: usize,
    },
    /// Of the sender: blocks that nobody asked for.
    #[error("{len} bytes of blocks for batch {seq} were not asked for")]
    NotAsked {
        /// Number of the batch.
        seq: u64,
        /// Their length in bytes.
        len: usize,
    },
    /// Of the sender: it ended without the blocks that it was asked for.
    #[error("batch {seq} refers to blocks that its sender did not supply when asked")]
    NotSupplied {
        /// Number of the batch.
        seq: u64,
    },
    /// Of the receiver: a second offer.
    #[error("the receiver offered its cache twice")]
    OfferedTwice,
    /// Of the receiver: it resolves what was not sent, or is resolved already.
    #[error("the receiver resolved batch {seq}, which it was not sent")]
    NotSent {
        /// Number of the batch.
        seq: u64,
    },
    /// Of the receiver: it misses what was not referred to.
    #[error("the receiver misses blocks of batch {seq} that were not referred to")]
    NotReferenced {
        /// Number of the batch.
        seq: u64,
    },
    /// Of the receiver: more of an old copy than it may announce before it is passed.
    #[error("the receiver announced more than {limit} bytes of an old copy ahead of the stream")]
    OverAnnounced {
        /// The window in bytes.
        limit: usize,
    },
    /// Of the receiver: it announces an old copy in another order than that of a stream, or goes on after its end.
    #[error("the receiver went back in the old copy that it announces")]
    AnnouncedBackwards,
    /// Of the receiver: it misses blocks of a batch for the second time.
    #[error("the receiver asked twice for blocks of batch {seq}")]
    AskedTwice {
        /// Number of the batch.
        seq: u64,
    },
}

/// Where a node keeps caches, and how large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// A directory of their own. What is in it is removed.
    pub directory: PathBuf,
    /// Bytes of one cache: one for each pair that sends to this node, four at most.
    pub bytes: u64,
}

/// What a node knows of blocks, here and elsewhere.
#[derive(Debug, Default)]
pub struct Dedup {
    options: OnceLock<CacheOptions>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The one used last is the last.
    caches: Vec<(Fingerprint, Arc<Cache>)>,
    known: Vec<(Fingerprint, Arc<Known>)>,
    grants: BTreeMap<Fingerprint, String>,
}

impl Dedup {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this node offers caches to those who send to it. Without this, it only uses those of
    /// others. Later calls change nothing.
    ///
    /// # Errors
    /// The directory cannot be made or emptied.
    pub fn keep_caches(&self, options: CacheOptions) -> io::Result<()> {
        let CacheOptions { directory, .. } = &options;
        std::fs::create_dir_all(directory)?;
        // Only a crash between making a file and taking its name away leaves one.
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "blocks") {
                std::fs::remove_file(path)?;
            }
        }
        // A second call finds it set.
        let _ = self.options.set(options);
        Ok(())
    }

    /// What `peer` was granted, in any words. When it changes, the peer's cache goes with all that is in
    /// it.
    pub fn set_grant(&self, peer: Fingerprint, grant: &str) {
        let mut state = self.state();
        if state.grants.get(&peer).map(String::as_str) != Some(grant) {
            state.grants.insert(peer, grant.to_owned());
            state.caches.retain(|(of, _)| *of != peer);
        }
    }

    /// Forgets a peer: it is not paired any more.
    pub fn forget(&self, peer: &Fingerprint) {
        let mut state = self.state();
        state.grants.remove(peer);
        state.caches.retain(|(of, _)| of != peer);
        state.known.retain(|(of, _)| of != peer);
    }

    /// The cache of a peer that sends to this node; `None` when it keeps none, or cannot.
    pub(crate) fn cache(&self, peer: Fingerprint) -> Option<Arc<Cache>> {
        let options = self.options.get()?;
        let mut state = self.state();
        if let Some(at) = state.caches.iter().position(|(of, _)| *of == peer) {
            let found = state.caches.remove(at);
            state.caches.push(found);
            return state.caches.last().map(|(_, cache)| Arc::clone(cache));
        }
        let made = room(&options.directory, options.bytes)
            .and_then(|bytes| Cache::create(&options.directory, bytes));
        match made {
            Ok(cache) => {
                let cache = Arc::new(cache);
                if state.caches.len() >= MAX_PAIRS {
                    state.caches.remove(0);
                }
                state.caches.push((peer, Arc::clone(&cache)));
                Some(cache)
            }
            Err(error) => {
                tracing::debug!(%error, "no cache of blocks is offered");
                None
            }
        }
    }

    /// What is known of the cache that a peer offers.
    pub(crate) fn known(
        &self,
        peer: Fingerprint,
        id: [u8; CACHE_ID_LEN],
        window_bytes: u64,
    ) -> Arc<Known> {
        let known = &mut self.state().known;
        let same = known.iter().position(|(of, known)| *of == peer && known.is(id, window_bytes));
        let entry = match same {
            Some(at) => known.remove(at),
            None => {
                known.retain(|(of, _)| *of != peer);
                (peer, Arc::new(Known::new(id, window_bytes)))
            }
        };
        if known.len() >= MAX_PAIRS {
            known.remove(0);
        }
        let found = Arc::clone(&entry.1);
        known.push(entry);
        found
    }
}

/// What of `bytes` a cache may take on this disk.
fn room(directory: &Path, bytes: u64) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    let bytes = bytes.min(disk.f_bavail.saturating_mul(disk.f_frsize) / OF_FREE);
    if bytes < MIN_CACHE {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    Ok(bytes)
}
