//! Payloads by which a receiver announces the blocks of an old copy that it reads along, and its sender says
//! how far it has come.
//!
//! Owns: their bytes and bounds. Leaves to others: where the blocks come from and what is made of the word
//! ([`crate::bulk::reseed`]).

use super::cursor::{Put, Take};
use super::dedup::{MAX_REFERRING, MIN_BLOCK};
use super::{FrameError, FrameType};

/// Blocks that a receiver may have announced and not passed, in bytes: both sides count them.
pub const SEED_WINDOW: usize = 16 << 20;

/// Longest block that is announced, in bytes: its record fits a batch with references.
pub const MAX_SEED: usize = MAX_REFERRING - (4 << 10);

/// Blocks in one Seeds payload.
pub const MAX_SEEDS: usize = SEED_WINDOW / MIN_BLOCK;

/// Length of a Passed payload, in bytes.
pub const PASSED_LEN: usize = 16;

/// Longest Seeds payload, in bytes.
pub const MAX_SEEDS_LEN: usize = PLACE_LEN + MAX_SEEDS * SEED_LEN;

const PLACE_LEN: usize = 16;
const SEED_LEN: usize = PLACE_LEN + 4 + 8;

/// Where a block is in its object set. Send streams have their blocks in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The object's number.
    pub object: u64,
    /// Where the block begins in the object, bytes; the largest number for its spill block.
    pub offset: u64,
}

impl Place {
    /// Behind every block: the old copy has no more.
    pub const END: Self = Self { object: u64::MAX, offset: u64::MAX };
}

/// A block of an old copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    /// Where it is there.
    pub place: Place,
    /// Its length in bytes, [`MIN_BLOCK`] to [`MAX_SEED`].
    pub len: u32,
    /// The first eight bytes of its BLAKE3.
    pub prefix: u64,
}

/// What a receiver has read of an old copy since it last said so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seeds {
    /// Every block up to here was announced, if it can be referred to at all.
    pub reached: Place,
    /// Those since then, in the order of their places, each behind the one before.
    pub seeds: Vec<Seed>,
}

impl Seeds {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let put = Put::default().u64(self.reached.object).u64(self.reached.offset);
        let each = |put: Put, seed: &Seed| {
            let Seed { place, len, prefix } = *seed;
            put.u64(place.object).u64(place.offset).u32(len).u64(prefix)
        };
        self.seeds.iter().fold(put, each).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`] also for blocks that are too short or too long, that are not in order, or that
    /// lie behind what was reached.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = |what| Err(FrameError::Payload { kind: FrameType::Seeds, what });
        let mut take = Take::new(FrameType::Seeds, payload);
        let reached = Place { object: take.u64()?, offset: take.u64()? };
        // At most MAX_SEEDS_LEN bytes, by the frame's own limit.
        let count = (payload.len() - PLACE_LEN) / SEED_LEN;
        let mut seeds = Vec::with_capacity(count);
        for _ in 0..count {
            let place = Place { object: take.u64()?, offset: take.u64()? };
            let (len, prefix) = (take.u32()?, take.u64()?);
            if !(MIN_BLOCK..=MAX_SEED).contains(&(len as usize)) {
                return wrong("it announces a block of a length that is not announced");
            }
            if seeds.last().is_some_and(|before: &Seed| before.place >= place) || place > reached {
                return wrong("its blocks are not in order");
            }
            seeds.push(Seed { place, len, prefix });
        }
        take.end()?;
        Ok(Self { reached, seeds })
    }
}

/// No block of any later batch lies before this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// The first that may be referred to from here on.
    pub place: Place,
}

impl Passed {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u64(self.place.object).u64(self.place.offset).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Passed, payload);
        let place = Place { object: take.u64()?, offset: take.u64()? };
        take.end()?;
        Ok(Self { place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(object: u64, offset: u64, len: usize) -> Seed {
        Seed { place: Place { object, offset }, len: u32::try_from(len).unwrap(), prefix: 5 }
    }

    #[test]
    fn what_is_announced_comes_back_with_blocks_or_without() {
        let reached = Place { object: 9, offset: 4 };
        for seeds in
            [vec![], vec![seed(1, 0, MIN_BLOCK), seed(1, 1, MAX_SEED), seed(9, 4, MIN_BLOCK)]]
        {
            let seeds = Seeds { reached, seeds };
            assert_eq!(Seeds::decode(&seeds.encode()), Ok(seeds.clone()));
        }
        let passed = Passed { place: reached };
        assert_eq!(Passed::decode(&passed.encode()), Ok(passed));
    }

    #[test]
    fn announcements_that_lie_are_refused() {
        let reached = Place { object: 9, offset: 0 };
        let refused = |seeds: &[Seed]| {
            Seeds::decode(&Seeds { reached, seeds: seeds.to_vec() }.encode()).is_err()
        };
        assert!(refused(&[seed(1, 0, MIN_BLOCK - 1)]), "too short");
        assert!(refused(&[seed(1, 0, MAX_SEED + 1)]), "too long");
        assert!(refused(&[seed(1, 5, MIN_BLOCK), seed(1, 5, MIN_BLOCK)]), "twice the same place");
        assert!(refused(&[seed(2, 0, MIN_BLOCK), seed(1, 5, MIN_BLOCK)]), "backwards");
        assert!(refused(&[seed(9, 1, MIN_BLOCK)]), "behind what was reached");
        let whole = Seeds { reached, seeds: vec![seed(1, 0, MIN_BLOCK)] }.encode();
        for len in [0, PLACE_LEN - 1, PLACE_LEN + 1, whole.len() - 1] {
            assert!(Seeds::decode(&whole[..len]).is_err(), "cut to {len}");
        }
    }
}
