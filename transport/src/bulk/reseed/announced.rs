//! What a receiver has announced of an old copy, as its sender keeps it.
//!
//! Owns: which blocks may be referred to, and whether the sender has to wait for more. Four threads meet here: the one
//! that hears the receiver ([`Announced::heard`]), the one that reads the stream ([`Announced::wait`]),
//! the workers ([`Announced::has`]), and the one that puts batches on the lane ([`Announced::passed`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Place, SEED_WINDOW};
use crate::bulk::dedup::DedupError;
use crate::bulk::dedup::ring::Prefix;
use crate::cancel::Cancel;
use crate::frame::reseed::{MAX_SEED, Seed, Seeds};

/// How often a waiting thread looks whether it was cancelled, or has waited long enough.
const POLL: Duration = Duration::from_millis(20);

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Everything up to the place was announced, or nothing more is to be waited for.
    GoOn,
    /// The receiver may have no room before it knows how far this side is: say so, and wait again.
    SayPlace,
    /// The transfer was cancelled.
    Cancelled,
}

/// What is announced and not passed.
#[derive(Debug)]
pub struct Announced {
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    reached: Place,
    passed: Option<Place>,
    /// In the order of their places.
    blocks: VecDeque<Seed>,
    /// The last place of a block, and its length.
    by_prefix: HashMap<Prefix, (Place, u32)>,
    bytes: usize,
    heard: Instant,
    words: u64,
    any: bool,
    wire_bytes: u64,
}

impl Announced {
    /// Nothing yet; waits at most `patience` for each next word of the receiver.
    pub fn new(patience: Duration) -> Self {
        let state = State {
            reached: Place::default(),
            passed: None,
            blocks: VecDeque::new(),
            by_prefix: HashMap::new(),
            bytes: 0,
            heard: Instant::now(),
            words: 0,
            any: false,
            wire_bytes: 0,
        };
        Self { patience, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The receiver has read on; it said so in `wire` bytes.
    ///
    /// # Errors
    /// [`DedupError::AnnouncedBackwards`] and [`DedupError::OverAnnounced`].
    pub fn heard(&self, seeds: &Seeds, wire: usize) -> Result<(), DedupError> {
        let mut state = self.state();
        let first = seeds.seeds.first().map_or(seeds.reached, |seed| seed.place);
        let again = !seeds.seeds.is_empty() && first == state.reached && state.words > 0;
        if first < state.reached || again || state.reached == Place::END {
            return Err(DedupError::AnnouncedBackwards);
        }
        state.reached = seeds.reached;
        for seed in &seeds.seeds {
            // The receiver had not heard yet that it was passed.
            if state.passed.is_some_and(|passed| seed.place < passed) {
                continue;
            }
            state.bytes += seed.len as usize;
            state.blocks.push_back(*seed);
            state.by_prefix.insert(seed.prefix, (seed.place, seed.len));
        }
        if state.bytes > SEED_WINDOW {
            return Err(DedupError::OverAnnounced { limit: SEED_WINDOW });
        }
        state.heard = Instant::now();
        state.words += 1;
        state.any |= !seeds.seeds.is_empty();
        state.wire_bytes += wire as u64;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until everything up to `place` was announced, or no more can be before something behind `said` has
    /// gone. `said`: the receiver is about to be told that this side has come there, at most to `place`.
    pub fn wait(&self, place: Place, said: Option<Place>, cancel: &Cancel) -> Waited {
        let mut state = self.state();
        loop {
            if cancel.is_cancelled() {
                return Waited::Cancelled;
            }
            if state.reached >= place || state.heard.elapsed() >= self.patience {
                return Waited::GoOn;
            }
            // A receiver with room for any block goes on by itself.
            let may_be_full = state.bytes + MAX_SEED > SEED_WINDOW;
            match said {
                None if may_be_full || state.passed.is_none() => return Waited::SayPlace,
                // It was told, and is full again of what lies between.
                Some(said) if may_be_full && state.passed >= Some(said) => return Waited::GoOn,
                _ => {}
            }
            let waited = self.changed.wait_timeout(state, POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Which of these blocks (prefix and length) the receiver holds at `from` or behind.
    pub fn has(&self, blocks: &[(Prefix, usize)], from: Place) -> Vec<bool> {
        let state = self.state();
        let has = |(prefix, len): &(Prefix, usize)| {
            let found = state.by_prefix.get(prefix);
            found.is_some_and(|(place, held)| *place >= from && *held as usize == *len)
        };
        blocks.iter().map(has).collect()
    }

    /// The receiver is about to be told that nothing before `place` is referred to any more.
    pub fn passed(&self, place: Place) {
        let mut state = self.state();
        let State { passed, blocks, by_prefix, bytes, .. } = &mut *state;
        let place = passed.map_or(place, |before| before.max(place));
        *passed = Some(place);
        while let Some(seed) = blocks.front().filter(|seed| seed.place < place) {
            if by_prefix.get(&seed.prefix).is_some_and(|(last, _)| *last == seed.place) {
                by_prefix.remove(&seed.prefix);
            }
            *bytes -= seed.len as usize;
            blocks.pop_front();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Bytes in which the receiver said it all.
    pub fn wire_bytes(&self) -> u64 {
        self.state().wire_bytes
    }

    /// Whether the old copy has come to its end, and all of it was passed.
    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.reached == Place::END && state.blocks.is_empty()
    }

    /// Whether any block was announced.
    pub fn any(&self) -> bool {
        self.state().any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::dedup::MIN_BLOCK;

    const LONG: Duration = Duration::from_secs(3600);

    fn at(object: u64, offset: u64) -> Place {
        Place { object, offset }
    }

    fn seeds(reached: Place, all: &[(Place, usize, u64)]) -> Seeds {
        let seed = |(place, len, prefix): &(Place, usize, u64)| Seed {
            place: *place,
            len: *len as u32,
            prefix: *prefix,
        };
        Seeds { reached, seeds: all.iter().map(seed).collect() }
    }

    #[test]
    fn a_receiver_that_is_full_of_what_lies_within_one_batch_is_not_waited_for() {
        let (announced, cancel) = (Announced::new(LONG), Cancel::default());
        let all: Vec<_> =
            (0..).map(|n| (at(2, n), MAX_SEED, n)).take(SEED_WINDOW / MAX_SEED).collect();
        announced.heard(&seeds(at(2, 99), &all), 9).unwrap();
        assert_eq!(announced.wait(at(9, 0), None, &cancel), Waited::SayPlace);
        announced.passed(at(1, 0));
        assert_eq!(announced.wait(at(9, 0), Some(at(1, 0)), &cancel), Waited::GoOn);
    }

    #[test]
    fn what_is_announced_may_be_referred_to_until_it_is_passed() {
        let announced = Announced::new(LONG);
        let all = [(at(1, 0), MIN_BLOCK, 1), (at(1, 9), MIN_BLOCK, 2), (at(2, 0), MIN_BLOCK, 1)];
        announced.heard(&seeds(at(2, 0), &all), 9).unwrap();
        let blocks = [(1, MIN_BLOCK), (2, MIN_BLOCK), (1, MIN_BLOCK + 1), (3, MIN_BLOCK)];
        assert_eq!(announced.has(&blocks, at(0, 0)), [true, true, false, false]);
        assert_eq!(
            announced.has(&blocks, at(2, 0)),
            [true, false, false, false],
            "of a later batch"
        );
        announced.passed(at(2, 0));
        assert_eq!(announced.has(&blocks, at(0, 0)), [true, false, false, false]);
        announced.passed(at(1, 0));
        assert_eq!(announced.has(&blocks, at(0, 0)), [true, false, false, false], "never back");
        announced.passed(Place::END);
        assert_eq!(announced.has(&blocks, at(0, 0)), [false; 4]);
    }

    #[test]
    fn a_receiver_that_goes_back_or_beyond_the_window_is_refused() {
        let announced = Announced::new(LONG);
        announced.heard(&seeds(at(5, 0), &[(at(5, 0), MIN_BLOCK, 1)]), 9).unwrap();
        let back = seeds(at(5, 0), &[(at(4, 0), MIN_BLOCK, 1)]);
        assert_eq!(announced.heard(&back, 9), Err(DedupError::AnnouncedBackwards));
        let again = seeds(at(5, 0), &[(at(5, 0), MIN_BLOCK, 1)]);
        assert_eq!(announced.heard(&again, 9), Err(DedupError::AnnouncedBackwards));
        assert_eq!(announced.heard(&seeds(at(4, 0), &[]), 9), Err(DedupError::AnnouncedBackwards));
        let many: Vec<_> =
            (0..=SEED_WINDOW / MAX_SEED).map(|n| (at(9, n as u64), MAX_SEED, n as u64)).collect();
        let over = seeds(at(10, 0), &many);
        assert_eq!(
            announced.heard(&over, 9),
            Err(DedupError::OverAnnounced { limit: SEED_WINDOW })
        );
        let announced = Announced::new(LONG);
        announced.heard(&seeds(Place::END, &[]), 9).unwrap();
        assert_eq!(
            announced.heard(&seeds(Place::END, &[]), 9),
            Err(DedupError::AnnouncedBackwards),
            "after the end"
        );
    }

    #[test]
    fn it_waits_for_what_is_due_says_where_it_is_and_loses_patience() {
        let cancel = Cancel::default();
        let announced = Announced::new(LONG);
        assert_eq!(announced.wait(at(3, 0), None, &cancel), Waited::SayPlace, "the first of all");
        announced.passed(at(3, 0));
        announced.heard(&seeds(at(3, 0), &[]), 9).unwrap();
        assert_eq!(announced.wait(at(3, 0), None, &cancel), Waited::GoOn);
        let many: Vec<_> =
            (0..SEED_WINDOW / MAX_SEED).map(|n| (at(4, n as u64), MAX_SEED, n as u64)).collect();
        announced.heard(&seeds(at(4, 1000), &many), 9).unwrap();
        assert_eq!(announced.wait(at(5, 0), None, &cancel), Waited::SayPlace, "it may be full");
        cancel.cancel("enough");
        assert_eq!(announced.wait(at(5, 0), Some(at(5, 0)), &cancel), Waited::Cancelled);
        let hasty = Announced::new(Duration::ZERO);
        assert_eq!(hasty.wait(at(5, 0), None, &Cancel::default()), Waited::GoOn);
    }
}
