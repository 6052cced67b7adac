//! Blocks of an old copy that the receiver holds, and what is to be said of them.
//!
//! Owns: which blocks are held, within [`SEED_WINDOW`], and how far the old copy was read. Three threads meet here:
//! the one that reads the old copy ([`Held::add`], which waits for room), the workers ([`Held::read`]), and
//! the writer's ([`Held::to_announce`], [`Held::passed`]), which never waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::{Place, SEED_WINDOW};
use crate::bulk::dedup::recipe::Hash;
use crate::bulk::dedup::ring::prefix;
use crate::bulk::resources::Slot;
use crate::counters;
use crate::frame::reseed::{Seed, Seeds};

/// Something is said when so much of the old copy was read since, in bytes: a few records.
const SAY_EVERY: usize = 256 << 10;

/// Nobody wants blocks of the old copy any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// What is held of an old copy.
#[derive(Debug)]
pub struct Held {
    state: Mutex<State>,
    room: Condvar,
    ring: Sender<()>,
    /// Rings when there is something to announce.
    pub(crate) bell: Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    /// A place among the transfers that may hold blocks, for as long as this does.
    slot: Option<Slot>,
    passed: Place,
    reached: Place,
    announced: Place,
    /// In the order of their places.
    blocks: VecDeque<(Place, Hash, usize)>,
    /// Where a hash is held last.
    by_hash: HashMap<Hash, (Place, Bytes)>,
    bytes: usize,
    to_announce: Vec<Seed>,
    unsaid_bytes: usize,
    read_bytes: u64,
    closed: bool,
}

impl Default for Held {
    fn default() -> Self {
        let (ring, bell) = crossbeam_channel::bounded(1);
        Self { state: Mutex::default(), room: Condvar::new(), ring, bell }
    }
}

impl Held {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Full: it rings already.
        let _ = self.ring.try_send(());
    }

    /// From now on blocks are held; `slot` is given back when that is over.
    pub fn begin(&self, slot: Slot) {
        self.state().slot = Some(slot);
    }

    /// Whether a block at this place is worth hashing: it is the next in order, and was not passed.
    pub fn wants(&self, place: Place) -> bool {
        let state = self.state();
        !state.closed && place >= state.passed && place > state.reached
    }

    /// Holds a block and announces it; waits while there is no room for it.
    ///
    /// # Errors
    /// [`Closed`].
    ///
    /// # Panics
    /// With a block that is larger than the window.
    pub fn add(&self, place: Place, hash: Hash, block: &[u8]) -> Result<(), Closed> {
        let len = block.len();
        assert!(super::takes(len), "a block of {len} bytes is announced");
        let mut state = self.state();
        while !state.closed && place >= state.passed && state.bytes + len > SEED_WINDOW {
            self.ring();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(Closed);
        }
        if place >= state.passed && place > state.reached {
            let short = u32::try_from(len).unwrap_or(u32::MAX);
            state.to_announce.push(Seed { place, len: short, prefix: prefix(&hash) });
            state.blocks.push_back((place, hash, len));
            state.by_hash.insert(hash, (place, Bytes::copy_from_slice(block)));
            state.bytes += len;
            // With the block: what is announced never goes beyond what was reached.
            state.reached = place;
            metrics::counter!(counters::RESEED_ANNOUNCED).increment(len as u64);
        }
        drop(state);
        self.reach(place, len)
    }

    /// The old copy was read up to this place, `len` bytes more of it.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn reach(&self, place: Place, len: usize) -> Result<(), Closed> {
        let mut state = self.state();
        if state.closed {
            return Err(Closed);
        }
        state.reached = state.reached.max(place);
        state.unsaid_bytes += len;
        state.read_bytes += len as u64;
        let due = state.unsaid_bytes >= SAY_EVERY || place == Place::END;
        drop(state);
        metrics::counter!(counters::RESEED_READ).increment(len as u64);
        if due {
            self.ring();
        }
        Ok(())
    }

    /// Nothing more of the old copy comes.
    pub fn end(&self) {
        // Closed: nobody wants to know.
        let _ = self.reach(Place::END, 0);
    }

    /// Lets go of everything, and of whoever waits for room.
    pub fn close(&self) {
        let mut state = self.state();
        *state = State { closed: true, read_bytes: state.read_bytes, ..State::default() };
        drop(state);
        self.room.notify_all();
    }

    /// What the sender has not been told yet.
    pub fn to_announce(&self) -> Option<Seeds> {
        let mut state = self.state();
        if state.closed || (state.to_announce.is_empty() && state.reached <= state.announced) {
            return None;
        }
        state.unsaid_bytes = 0;
        state.announced = state.reached;
        let seeds = std::mem::take(&mut state.to_announce);
        Some(Seeds { reached: state.reached, seeds })
    }

    /// The sender refers to nothing before this place any more.
    pub fn passed(&self, place: Place) {
        let mut state = self.state();
        let State { passed, blocks, by_hash, bytes, to_announce, .. } = &mut *state;
        *passed = place.max(*passed);
        while let Some((at, hash, len)) = blocks.front().filter(|(at, ..)| at < passed) {
            if by_hash.get(hash).is_some_and(|(last, _)| last == at) {
                by_hash.remove(hash);
            }
            *bytes -= len;
            blocks.pop_front();
        }
        // What it has not heard of by now is of no use to it.
        to_announce.retain(|seed| seed.place >= *passed);
        drop(state);
        self.room.notify_all();
    }

    /// Fills `out` with the block of this hash and just this length; `false` when it is not held.
    pub fn read(&self, hash: &Hash, out: &mut [u8]) -> bool {
        let Some((_, block)) = self.state().by_hash.get(hash).cloned() else { return false };
        if block.len() != out.len() {
            return false;
        }
        out.copy_from_slice(&block);
        metrics::counter!(counters::RESEED_REFERENCED).increment(out.len() as u64);
        true
    }

    /// Bytes of the old copy that were read so far.
    pub fn read_bytes(&self) -> u64 {
        self.state().read_bytes
    }

    /// Bytes that are held now.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::dedup::MIN_BLOCK;
    use crate::frame::reseed::MAX_SEED;

    fn at(object: u64, offset: u64) -> Place {
        Place { object, offset }
    }

    fn add(held: &Held, place: Place, byte: u8, len: usize) -> Hash {
        let block = vec![byte; len];
        let hash = *blake3::hash(&block).as_bytes();
        assert_eq!(held.add(place, hash, &block), Ok(()));
        hash
    }

    #[test]
    fn a_block_is_found_by_its_hash_until_it_is_passed() {
        let held = Held::default();
        let one = add(&held, at(1, 0), 1, MIN_BLOCK);
        let two = add(&held, at(1, 9), 2, MIN_BLOCK);
        let seeds = held.to_announce().unwrap();
        assert_eq!((seeds.reached, seeds.seeds.len()), (at(1, 9), 2));
        assert_eq!(held.to_announce(), None);
        held.passed(at(1, 1));
        let mut out = vec![0; MIN_BLOCK];
        assert!(!held.read(&one, &mut out) && held.read(&two, &mut out));
        assert_eq!(out, [2; MIN_BLOCK]);
        assert!(!held.read(&two, &mut out[1..]), "of another length");
        assert_eq!(held.bytes(), MIN_BLOCK);
    }

    #[test]
    fn a_block_that_comes_again_is_found_until_its_last_place_is_passed() {
        let held = Held::default();
        let hash = add(&held, at(1, 0), 1, MIN_BLOCK);
        add(&held, at(2, 0), 1, MIN_BLOCK);
        held.passed(at(2, 0));
        assert!(held.read(&hash, &mut vec![0; MIN_BLOCK]));
        held.passed(at(2, 1));
        assert!(!held.read(&hash, &mut vec![0; MIN_BLOCK]));
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn what_was_passed_or_is_out_of_order_is_neither_held_nor_announced() {
        let held = Held::default();
        held.passed(at(5, 0));
        assert!(!held.wants(at(4, 0)) && held.wants(at(5, 0)));
        add(&held, at(4, 0), 1, MIN_BLOCK);
        add(&held, at(6, 0), 2, MIN_BLOCK);
        add(&held, at(5, 0), 3, MIN_BLOCK);
        let places: Vec<_> = held.to_announce().unwrap().seeds.iter().map(|s| s.place).collect();
        assert_eq!(places, [at(6, 0)]);
        add(&held, at(7, 0), 4, MIN_BLOCK);
        held.passed(at(8, 0));
        assert_eq!(held.to_announce().unwrap().seeds, [], "passed before it was said");
    }

    #[test]
    fn the_window_is_never_exceeded_and_who_waits_goes_on_when_there_is_room_or_an_end() {
        for close in [false, true] {
            let held = Arc::new(Held::default());
            for n in 0..(SEED_WINDOW / MAX_SEED) as u64 {
                add(&held, at(n + 1, 0), n as u8, MAX_SEED);
            }
            let waiting = {
                let held = held.clone();
                std::thread::spawn(move || held.add(at(100, 0), [9; 32], &[0; MAX_SEED]))
            };
            held.bell.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
            assert!(held.bytes() <= SEED_WINDOW);
            if close {
                held.close()
            } else {
                held.passed(at(3, 0))
            }
            assert_eq!(waiting.join().unwrap(), if close { Err(Closed) } else { Ok(()) });
            assert!(held.bytes() <= SEED_WINDOW);
        }
    }

    #[test]
    fn the_end_is_announced_once() {
        let held = Held::default();
        held.end();
        assert_eq!(held.to_announce().unwrap().reached, Place::END);
        assert_eq!(held.to_announce(), None);
    }
}
