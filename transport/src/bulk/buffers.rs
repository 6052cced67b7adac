//! Buffers of batches, used again instead of given back to the system.
//!
//! Owns: a few of them while nobody needs them. A fresh megabyte costs the kernel's zeroing of its pages, a page fault for
//! each, and often a second zeroing of ours: together a fifth of what a transfer cost. Leaves to others: how many may be
//! in use ([`super::budget`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::cut::BATCH_TARGET;

/// Buffers kept while nobody needs them: what one transfer has under way, so that it finds them all again.
pub const KEEP: usize = 8;

/// Lengths that get such a buffer. A small batch does not hold a large buffer: budgets count what is in it.
const FITS: std::ops::RangeInclusive<usize> = BATCH_TARGET / 2..=BATCH_TARGET;

/// Those of one node.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Their content is whatever they were used for last.
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One to read into, of at most [`BATCH_TARGET`] bytes that hold anything, with room for so many.
    pub fn any(&self) -> Vec<u8> {
        let kept = self.free().pop();
        // The system's pages are zero already, and are touched when they are needed.
        kept.unwrap_or_else(|| vec![0; BATCH_TARGET])
    }

    /// An empty one with room for `len` bytes.
    pub fn empty(&self, len: usize) -> Vec<u8> {
        let mut buffer = if FITS.contains(&len) { self.any() } else { Vec::with_capacity(len) };
        buffer.clear();
        buffer
    }

    /// One of `len` bytes that hold anything, with room for `room`: for those who fill it, and throw it away when they
    /// cannot.
    pub fn filled(&self, len: usize, room: usize) -> Vec<u8> {
        let room = room.max(len);
        let mut buffer = if FITS.contains(&room) { self.any() } else { Vec::with_capacity(room) };
        buffer.resize(len, 0);
        buffer
    }

    /// Takes one back that is of no use any more.
    pub fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() != BATCH_TARGET {
            return;
        }
        let mut free = self.free();
        if free.len() < KEEP {
            free.push(buffer);
        }
    }

    /// The same as bytes, which come back by themselves.
    pub fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() != BATCH_TARGET {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Lent { buffer, owner: Arc::clone(self) })
    }
}

struct Lent {
    buffer: Vec<u8>,
    owner: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.owner.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_given_back_or_lent_is_used_again() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.empty(BATCH_TARGET);
        buffer.resize(BATCH_TARGET, 7);
        let at = buffer.as_ptr();
        buffers.give(buffer);
        let buffer = buffers.filled(BATCH_TARGET - 1, 0);
        assert_eq!((buffer.as_ptr(), buffer.len()), (at, BATCH_TARGET - 1));
        let lent = buffers.lend(buffer);
        let part = lent.slice(5..10);
        drop(lent);
        assert_eq!((&part[..], buffers.free().len()), (&[7; 5][..], 0));
        drop(part);
        let again = buffers.empty(BATCH_TARGET);
        assert_eq!(again.as_ptr(), at);
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_size() {
        let buffers = Arc::new(Buffers::default());
        for _ in 0..2 * KEEP {
            buffers.give(Vec::with_capacity(BATCH_TARGET));
        }
        assert_eq!(buffers.free().len(), KEEP);
        buffers.free().clear();
        for len in [0, BATCH_TARGET / 4, 4 * BATCH_TARGET] {
            buffers.give(vec![0; len]);
            drop(buffers.lend(vec![0; len]));
        }
        assert_eq!(buffers.free().len(), 0);
    }

    #[test]
    fn a_small_batch_gets_a_buffer_of_its_own_length() {
        let buffers = Buffers::default();
        buffers.give(Vec::with_capacity(BATCH_TARGET));
        assert!(buffers.filled(1000, 0).capacity() < 2000);
        assert_eq!(buffers.filled(3 * BATCH_TARGET, 0).len(), 3 * BATCH_TARGET);
    }
}
