//! Whether dedup pays between this node and one cache, measured all the time.
//!
//! Owns: turning it off and on. Leaves to others: the references themselves.
//!
//! *On*, every block is hashed, and the receiver keeps what comes. That costs about 0.14 CPU seconds a
//! GB here, and there as much and the writing of the cache besides; so it goes off when, after it had time to
//! fill the cache, a whole window saved next to nothing. *Off*, blocks are chosen by a few of their own bytes,
//! one of sixteen: both copies of a block are chosen, or neither, so few hashes show the share of
//! duplicates as it is. It goes on when that share is large. Each time that it was on for nothing, it
//! waits twice as long.

use std::collections::{HashMap, VecDeque};

use super::recipe::Hash;
use super::ring::{Prefix, prefix};

/// Saving is judged over this and the same again, in bytes of the stream.
const WINDOW: u64 = 256 << 20;

/// It goes off below this share of saved bytes, in percent…
const OFF_BELOW: u64 = 2;

/// …but not before this many bytes went by, or half of what the cache holds if that is less. Copies that are
/// farther apart are found by what is chosen while it is off; longer would cost data without any too much.
const LEARN: u64 = 512 << 20;

/// It goes on at this share of duplicates among what is chosen, in percent.
const ON_FROM: u64 = 8;

/// One block of so many is chosen.
const SAMPLE: u64 = 16;

/// Chosen bytes that make a judgement.
const JUDGE: u64 = 8 << 20;

/// Chosen blocks that are remembered; about 1 MiB.
const SKETCH: usize = 16 << 10;

/// How often the wait can double.
const MAX_DOUBLINGS: u32 = 8;

/// What is known of the benefit.
#[derive(Debug)]
pub struct Benefit {
    on: bool,
    /// Bytes until it is judged for the first time, and what the other side holds.
    learn: u64,
    reach: u64,
    /// Bytes since it was switched.
    since: u64,
    /// The window being filled, and the one before: bytes of the stream and bytes saved.
    current: (u64, u64),
    before: Option<(u64, u64)>,
    /// Times that it was on for nothing, in a row.
    fruitless: u32,
    /// Whether it saved anything since it is on.
    paid: bool,
    /// All bytes of the stream, to know how long ago a block was seen.
    clock: u64,
    seen: HashMap<Prefix, u64>,
    order: VecDeque<Prefix>,
    /// Chosen bytes since the last judgement, and those seen before.
    chosen: (u64, u64),
}

/// It was switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// On.
    On,
    /// Off.
    Off,
}

impl Benefit {
    /// On, to begin with, against a cache that holds `window` bytes.
    pub fn new(window: u64) -> Self {
        Self {
            on: true,
            learn: (window / 2).clamp(WINDOW, LEARN),
            reach: window,
            since: 0,
            current: (0, 0),
            before: None,
            fruitless: 0,
            paid: false,
            clock: 0,
            seen: HashMap::new(),
            order: VecDeque::new(),
            chosen: (0, 0),
        }
    }

    /// Whether blocks are hashed and referred to.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Whether a block is among those that are looked at while off.
    pub fn chooses(block: &[u8]) -> bool {
        let mut sum = 0x9e37_79b9_7f4a_7c15_u64;
        let last = block.len().saturating_sub(32);
        for at in [0, last / 3, last / 2, last / 3 * 2, last] {
            for word in block[at..].chunks_exact(8).take(4) {
                let word = word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
                sum = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
            }
        }
        (sum >> 40).is_multiple_of(SAMPLE)
    }

    /// Takes note of a block that was chosen.
    pub fn note(&mut self, hash: &Hash, len: usize) {
        let (key, bytes) = (prefix(hash), len as u64);
        self.chosen.0 += bytes;
        if let Some(at) = self.seen.insert(key, self.clock) {
            if self.clock - at <= self.reach {
                self.chosen.1 += bytes;
            }
        } else {
            self.order.push_back(key);
        }
        while self.order.len() > SKETCH {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }

    /// Counts a batch: its bytes, and those that references saved.
    pub fn count(&mut self, raw: usize, saved: usize) -> Option<Switched> {
        self.clock += raw as u64;
        self.since += raw as u64;
        if !self.on {
            return self.judge_sample();
        }
        self.current.0 += raw as u64;
        self.current.1 += saved as u64;
        if self.current.0 < WINDOW {
            return None;
        }
        let (raw, saved) = self.current;
        let before = self.before.replace(std::mem::take(&mut self.current));
        self.paid |= saved * 100 >= raw * OFF_BELOW;
        let (all, all_saved) = before.map_or((raw, saved), |b| (b.0 + raw, b.1 + saved));
        if self.since < self.learn || all_saved * 100 >= all * OFF_BELOW {
            return None;
        }
        self.fruitless = if self.paid { 0 } else { (self.fruitless + 1).min(MAX_DOUBLINGS) };
        self.switch(false)
    }

    fn judge_sample(&mut self) -> Option<Switched> {
        if self.chosen.0 < JUDGE {
            return None;
        }
        let (chosen, again) = std::mem::take(&mut self.chosen);
        let waited = self.since >= WINDOW << self.fruitless;
        if waited && again * 100 >= chosen * ON_FROM { self.switch(true) } else { None }
    }

    /// Takes back what was counted as saved: it was missing.
    pub fn missed(&mut self, bytes: usize) {
        self.current.1 = self.current.1.saturating_sub(bytes as u64);
    }

    fn switch(&mut self, on: bool) -> Option<Switched> {
        (self.on, self.since, self.paid) = (on, 0, false);
        (self.current, self.before, self.chosen) = ((0, 0), None, (0, 0));
        Some(if on { Switched::On } else { Switched::Off })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn feed(benefit: &mut Benefit, mib: usize, saved: usize) -> Option<Switched> {
        (0..mib).find_map(|_| benefit.count(MIB, saved))
    }

    #[test]
    fn it_goes_off_when_it_saves_nothing_but_not_before_it_could_learn() {
        let mut benefit = Benefit::new(4 << 30);
        assert_eq!(feed(&mut benefit, 511, 0), None);
        assert_eq!(feed(&mut benefit, 2, 0), Some(Switched::Off));
        let mut small = Benefit::new(64 << 20);
        assert_eq!(feed(&mut small, 257, 0), Some(Switched::Off));
    }

    #[test]
    fn it_stays_on_while_it_saves_and_goes_off_when_that_ends() {
        let mut benefit = Benefit::new(4 << 30);
        assert_eq!(feed(&mut benefit, 10_000, MIB / 20), None);
        assert_eq!(feed(&mut benefit, 1000, 0), Some(Switched::Off));
    }

    #[test]
    fn copies_turn_it_on_again_and_without_any_it_stays_off() {
        for copies in [false, true] {
            let mut benefit = Benefit::new(1 << 30);
            benefit.switch(false);
            let mut switched = None;
            for n in 0_u64..1000 {
                let number = if copies && n % 2 == 1 { n - 1 } else { n };
                benefit.note(blake3::hash(&number.to_le_bytes()).as_bytes(), MIB / 16);
                switched = switched.or(benefit.count(MIB, 0));
            }
            assert_eq!(switched.is_some(), copies);
        }
    }

    #[test]
    fn copies_that_are_farther_apart_than_the_cache_reaches_do_not_count() {
        let mut benefit = Benefit::new(100 << 20);
        benefit.switch(false);
        for n in 0_u64..4000 {
            benefit.note(blake3::hash(&(n % 200).to_le_bytes()).as_bytes(), MIB / 16);
            assert_eq!(benefit.count(MIB, 0), None);
        }
    }

    #[test]
    fn on_for_nothing_makes_it_wait_longer() {
        let mut benefit = Benefit::new(64 << 20);
        let mut waits = Vec::new();
        for _ in 0..4 {
            assert!(feed(&mut benefit, 600, 0).is_some());
            let mut waited = 0;
            while !benefit.is_on() {
                benefit.note(&[1; 32], MIB);
                benefit.count(MIB, 0);
                waited += 1;
            }
            waits.push(waited);
        }
        assert!(waits.windows(2).all(|two| two[1] >= 2 * two[0] - 64), "{waits:?}");
    }

    #[test]
    fn one_block_of_sixteen_is_chosen_and_the_same_again() {
        let mut block = vec![0; 16 << 10];
        let mut chosen = 0;
        for n in 0_u64..4000 {
            blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut block);
            chosen += u32::from(Benefit::chooses(&block));
            assert_eq!(Benefit::chooses(&block), Benefit::chooses(&block.clone()));
        }
        assert!((150..400).contains(&chosen), "{chosen}");
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut benefit = Benefit::new(u64::MAX);
        for n in 0_u64..50_000 {
            benefit.note(blake3::hash(&n.to_le_bytes()).as_bytes(), MIB);
        }
        assert!(benefit.seen.len() <= SKETCH && benefit.order.len() <= SKETCH);
    }
}
