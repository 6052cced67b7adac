//! What lies in a ring of blocks, by number of bytes and blocks bounded: the oldest go first.
//!
//! Owns: places and their end. The receiver's cache keeps bytes at these places; its sender keeps the
//! same account of it without the bytes, so that both let go of the same blocks at about the same time.
//!
//! A block is known by the first eight bytes of its BLAKE3 alone, which keeps a place at 24 bytes. Two
//! blocks that share them cost a miss, nothing else: whoever uses a block compares the whole hash.

use std::collections::{HashMap, VecDeque};

use super::recipe::Hash;

/// Blocks that a ring knows at most: with its room for growing 7 MiB, see the table in [`super`].
pub const MAX_BLOCKS: usize = 128 << 10;

/// The first eight bytes of a hash.
pub type Prefix = u64;

/// The prefix of a hash.
pub fn prefix(hash: &Hash) -> Prefix {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the ring's beginning, never wrapped.
    pub position: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// Blocks in the order of their coming.
#[derive(Debug)]
pub struct Ring {
    capacity: u64,
    max_blocks: usize,
    head: u64,
    places: HashMap<Prefix, Place>,
    /// By age; what is not in `places` at this position any more is skipped.
    order: VecDeque<(Prefix, u64)>,
}

impl Ring {
    /// An empty ring of `capacity` bytes.
    pub fn new(capacity: u64, max_blocks: usize) -> Self {
        let (places, order) = (HashMap::new(), VecDeque::new());
        Self { capacity, max_blocks, head: 0, places, order }
    }

    /// Whether a block of this length is taken in: a few large ones may not push out all others.
    pub fn takes(&self, len: usize) -> bool {
        takes(self.capacity, len)
    }

    /// Where a block is.
    pub fn find(&self, prefix: Prefix) -> Option<Place> {
        self.places.get(&prefix).copied()
    }

    /// Takes room for `len` bytes, letting go of what was there; they do not wrap around the end.
    pub fn reserve(&mut self, len: usize) -> Place {
        let bytes = len as u64;
        let left = self.capacity - self.head % self.capacity;
        let position = if left < bytes { self.head + left } else { self.head };
        self.head = position + bytes;
        let oldest = self.head.saturating_sub(self.capacity);
        while let Some((prefix, at)) = self.order.front().copied() {
            if at >= oldest && self.order.len() < self.max_blocks {
                break;
            }
            self.order.pop_front();
            if self.find(prefix).is_some_and(|place| place.position == at) {
                self.places.remove(&prefix);
            }
        }
        Place { position, len: u32::try_from(len).unwrap_or(u32::MAX) }
    }

    /// Makes a block known that was given this place, unless the place is taken by others since.
    pub fn publish(&mut self, prefix: Prefix, place: Place) {
        if place.position >= self.head.saturating_sub(self.capacity) {
            self.places.insert(prefix, place);
            self.order.push_back((prefix, place.position));
        }
    }

    /// Forgets a block, if it is still at this place.
    pub fn forget(&mut self, prefix: Prefix, place: Place) {
        if self.find(prefix) == Some(place) {
            self.places.remove(&prefix);
        }
    }

    /// Blocks that are known.
    pub fn blocks(&self) -> usize {
        self.places.len()
    }
}

/// Whether a ring of `capacity` bytes takes a block of `len` bytes.
pub fn takes(capacity: u64, len: usize) -> bool {
    len as u64 <= capacity / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(ring: &mut Ring, prefix: Prefix, len: usize) -> Place {
        let place = ring.reserve(len);
        ring.publish(prefix, place);
        place
    }

    #[test]
    fn the_oldest_go_when_the_ring_wraps_and_no_block_lies_across_its_end() {
        let mut ring = Ring::new(100, 1000);
        for n in 0..3 {
            put(&mut ring, n, 30);
        }
        assert_eq!(ring.blocks(), 3);
        // Ten bytes are left at the end: it begins anew.
        assert_eq!(put(&mut ring, 3, 30).position, 100);
        assert_eq!((ring.find(0), ring.blocks()), (None, 3));
        put(&mut ring, 4, 20);
        assert_eq!((ring.find(1), ring.find(2).is_some()), (None, true));
    }

    #[test]
    fn the_number_of_blocks_is_bounded_whatever_their_size_and_repetition() {
        let mut ring = Ring::new(1 << 40, 10);
        for n in 0..1000 {
            put(&mut ring, n % 7, 1);
        }
        assert!(ring.order.len() <= 10 && ring.blocks() <= 7);
        for n in 0..1000 {
            put(&mut ring, n, 1);
        }
        assert!(ring.order.len() <= 10 && ring.blocks() <= 10);
        assert!(ring.find(999).is_some());
    }

    #[test]
    fn a_block_that_came_again_outlives_its_first_place() {
        let mut ring = Ring::new(100, 1000);
        put(&mut ring, 1, 40);
        put(&mut ring, 1, 40);
        put(&mut ring, 2, 20);
        put(&mut ring, 3, 30);
        assert_eq!(ring.find(1).map(|place| place.position), Some(40));
    }

    #[test]
    fn what_was_written_too_late_is_not_made_known() {
        let mut ring = Ring::new(100, 1000);
        let late = ring.reserve(25);
        for n in 0..4 {
            put(&mut ring, n, 25);
        }
        ring.publish(9, late);
        assert_eq!(ring.find(9), None);
    }
}
