//! Payloads by which a batch refers to blocks that the receiver has: the recipe of a batch, and what
//! the receiver says of its cache.
//!
//! Owns: their bytes and bounds. Leaves to others: which blocks are referred to, and where a receiver
//! finds them ([`crate::bulk::dedup`]).

use super::cursor::{Put, Take};
use super::{FrameError, FrameType, MAX_BATCH_RAW};

/// Shortest block that may be referred to, in bytes.
pub const MIN_BLOCK: usize = 16 << 10;

/// Largest batch, reconstructed, that may hold references, in bytes: a record of 2 MiB with its header
/// fits. Both sides have to keep it.
pub const MAX_REFERRING: usize = (2 << 20) + (4 << 10);

/// Length of a cache's id, in bytes.
pub const CACHE_ID_LEN: usize = 16;

/// Length of a Cache payload, in bytes.
pub const CACHE_LEN: usize = CACHE_ID_LEN + 8 + 4;

/// Length of a Resolved payload, in bytes.
pub const RESOLVED_LEN: usize = 8;

/// Length of what stands before the blocks in a Blocks payload, in bytes.
pub const BLOCKS_HEADER_LEN: usize = 8;

/// Parts of one recipe: blocks, and runs between them.
pub const MAX_PARTS: usize = 2 * (MAX_BATCH_RAW / MIN_BLOCK) + 1;

/// Longest table of a recipe, in bytes.
pub const MAX_TABLE: usize = MAX_PARTS * (PART_LEN + HASH_LEN);

/// Longest Missing payload, in bytes.
pub const MAX_MISSING: usize = 8 + 2 + 2 * (MAX_REFERRING / MIN_BLOCK);

const PART_LEN: usize = 4;
const HASH_LEN: usize = 32;

/// What a receiver offers a transfer: what of its blocks may be referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOffer {
    /// Drawn at random when the cache was made; another one holds nothing of what went before.
    pub id: [u8; CACHE_ID_LEN],
    /// Bytes of blocks that the cache holds before it lets the oldest go.
    pub window_bytes: u64,
    /// What batches may cost from the oldest unresolved one with references on, in bytes: see
    /// [`batch_cost`].
    pub credit_bytes: u32,
}

impl CacheOffer {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().bytes(&self.id).u64(self.window_bytes).u32(self.credit_bytes).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Cache, payload);
        let (id, window_bytes, credit_bytes) = (take.array()?, take.u64()?, take.u32()?);
        take.end()?;
        Ok(Self { id, window_bytes, credit_bytes })
    }
}

/// What a batch counts against the credit: what its receiver may have to hold for it. Bodies, the
/// reconstructed batch, and the blocks that may have to be sent after it; and so much at least that
/// the number of batches stays small.
pub fn batch_cost(body_len: usize, raw_len: usize, referenced_len: usize) -> usize {
    (body_len + raw_len + referenced_len).max(MIN_COST)
}

/// See [`batch_cost`].
pub const MIN_COST: usize = 192 << 10;

/// Every batch up to this one is whole: nothing of them will be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Number of the batch, one with a recipe.
    pub seq: u64,
}

impl Resolved {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u64(self.seq).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Resolved, payload);
        let seq = take.u64()?;
        take.end()?;
        Ok(Self { seq })
    }
}

/// References of a batch that led to nothing: their blocks are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Number of the batch.
    pub seq: u64,
    /// Which of its parts, by their places in the recipe, in order.
    pub parts: Vec<u16>,
}

impl Missing {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.parts.len()).unwrap_or(u16::MAX);
        let put = Put::default().u64(self.seq).u16(count);
        self.parts.iter().fold(put, |put, part| put.u16(*part)).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`] also for none, and for places that are not in order.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = |what| FrameError::Payload { kind: FrameType::Missing, what };
        let mut take = Take::new(FrameType::Missing, payload);
        let (seq, count) = (take.u64()?, take.u16()?);
        if count == 0 {
            return Err(wrong("it asks for nothing"));
        }
        // At most MAX_MISSING bytes, by the frame's own limit.
        let parts = (0..count).map(|_| take.u16()).collect::<Result<Vec<_>, _>>()?;
        take.end()?;
        if parts.windows(2).any(|two| two[0] >= two[1]) {
            return Err(wrong("its places are not in order"));
        }
        Ok(Self { seq, parts })
    }
}

/// One part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Bytes that come with the batch and are not remembered.
    Run {
        /// How many.
        len: usize,
    },
    /// A block that comes with the batch; the receiver puts it into its cache.
    Block {
        /// Its length in bytes.
        len: usize,
    },
    /// A block that the receiver is thought to have.
    Reference {
        /// Its length in bytes.
        len: usize,
        /// Its BLAKE3.
        hash: [u8; HASH_LEN],
    },
}

impl Part {
    /// Bytes of the batch that it stands for.
    pub fn len(&self) -> usize {
        match *self {
            Self::Run { len } | Self::Block { len } | Self::Reference { len, .. } => len,
        }
    }

    /// Never: a part of no bytes is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a batch is put together, part after part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    parts: Vec<Part>,
    literal_len: usize,
    referenced_len: usize,
}

impl Recipe {
    /// A recipe of these parts.
    ///
    /// # Errors
    /// [`FrameError::Payload`] for parts that no batch of `raw_len` bytes can have.
    pub fn new(parts: Vec<Part>, raw_len: usize) -> Result<Self, FrameError> {
        let wrong = |what| Err(FrameError::Payload { kind: FrameType::Batch, what });
        if parts.len() > MAX_PARTS {
            return wrong("its recipe has too many parts");
        }
        let (mut literal_len, mut referenced_len, mut after_run) = (0, 0, false);
        for part in &parts {
            let run = matches!(part, Part::Run { .. });
            match *part {
                Part::Run { .. } if after_run => return wrong("its recipe has two runs in a row"),
                Part::Run { len: 0 } => return wrong("its recipe has an empty run"),
                Part::Block { len } | Part::Reference { len, .. } if len < MIN_BLOCK => {
                    return wrong("its recipe has a block below the shortest");
                }
                Part::Run { len } | Part::Block { len } => literal_len += len,
                Part::Reference { len, .. } => referenced_len += len,
            }
            after_run = run;
        }
        if literal_len + referenced_len != raw_len {
            return wrong("its recipe makes another length than it says");
        }
        if referenced_len > 0 && raw_len > MAX_REFERRING {
            return wrong("it is too long to hold references");
        }
        Ok(Self { parts, literal_len, referenced_len })
    }

    /// The table.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.parts.len() * (PART_LEN + HASH_LEN));
        for part in &self.parts {
            let kind = match part {
                Part::Run { .. } => 0,
                Part::Block { .. } => 1,
                Part::Reference { .. } => 2,
            };
            let [l0, l1, l2, _] = u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes();
            out.extend_from_slice(&[kind, l0, l1, l2]);
            if let Part::Reference { hash, .. } = part {
                out.extend_from_slice(hash);
            }
        }
        out
    }

    /// From a table, at most [`MAX_TABLE`] long, for a batch of `raw_len` bytes.
    ///
    /// # Errors
    /// As [`Recipe::new`], and when the table is cut or has an unknown kind of part.
    pub fn decode(table: &[u8], raw_len: usize) -> Result<Self, FrameError> {
        let wrong = |what| FrameError::Payload { kind: FrameType::Batch, what };
        let (mut rest, mut parts) = (table, Vec::with_capacity(table.len() / PART_LEN));
        while let Some((&[kind, l0, l1, l2], behind)) = rest.split_first_chunk::<PART_LEN>() {
            let len = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
            rest = behind;
            parts.push(match kind {
                0 => Part::Run { len },
                1 => Part::Block { len },
                2 => {
                    let (hash, behind) = rest
                        .split_first_chunk::<HASH_LEN>()
                        .ok_or(wrong("its recipe ends within a reference"))?;
                    rest = behind;
                    Part::Reference { len, hash: *hash }
                }
                _ => return Err(wrong("its recipe has an unknown kind of part")),
            });
        }
        if !rest.is_empty() {
            return Err(wrong("its recipe ends within a part"));
        }
        Self::new(parts, raw_len)
    }

    /// Its parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes that come with the batch.
    pub fn literal_len(&self) -> usize {
        self.literal_len
    }

    /// Bytes that are referred to.
    pub fn referenced_len(&self) -> usize {
        self.referenced_len
    }

    /// Each part with the place of its bytes in the batch.
    pub fn places(&self) -> impl Iterator<Item = (Part, std::ops::Range<usize>)> + '_ {
        let mut at = 0;
        self.parts.iter().map(move |part| {
            let place = at..at + part.len();
            at = place.end;
            (*part, place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_comes_back_and_counts_what_comes_and_what_is_referred_to() {
        let parts = vec![
            Part::Run { len: 312 },
            Part::Block { len: MIN_BLOCK },
            Part::Reference { len: 2 * MIN_BLOCK, hash: [7; 32] },
            Part::Run { len: 1 },
        ];
        let raw_len = 313 + 3 * MIN_BLOCK;
        let recipe = Recipe::new(parts, raw_len).unwrap();
        assert_eq!(Recipe::decode(&recipe.encode(), raw_len), Ok(recipe.clone()));
        assert_eq!(recipe.literal_len(), 313 + MIN_BLOCK);
        assert_eq!(recipe.referenced_len(), 2 * MIN_BLOCK);
        let places: Vec<_> = recipe.places().map(|(_, place)| place).collect();
        assert_eq!(places[3], raw_len - 1..raw_len);
    }

    #[test]
    fn recipes_that_lie_are_refused() {
        let refused = |parts: &[Part], raw_len| Recipe::new(parts.to_vec(), raw_len).is_err();
        let run = |len| Part::Run { len };
        let far = |len| Part::Reference { len, hash: [0; 32] };
        assert!(refused(&[run(5)], 6), "another length");
        assert!(refused(&[run(2), run(3)], 5), "two runs");
        assert!(refused(&[run(0)], 0), "an empty run");
        assert!(refused(&[far(100)], 100), "a short block");
        assert!(refused(&[far(MAX_REFERRING), run(1)], MAX_REFERRING + 1), "too long");
        let short = [Part::Block { len: MIN_BLOCK - 1 }];
        assert!(refused(&short, MIN_BLOCK - 1));
        for table in [&[0, 1, 0][..], &[3, 1, 0, 0], &[2, 0, 64, 0, 9]] {
            assert!(Recipe::decode(table, MIN_BLOCK).is_err(), "{table:?}");
        }
    }

    #[test]
    fn what_asks_for_nothing_or_twice_for_the_same_is_refused() {
        let missing = |parts: &[u16]| Missing { seq: 3, parts: parts.to_vec() }.encode();
        assert_eq!(Missing::decode(&missing(&[1, 4])).unwrap().parts, [1, 4]);
        for parts in [&[][..], &[1, 1], &[4, 1]] {
            assert!(Missing::decode(&missing(parts)).is_err(), "{parts:?}");
        }
    }
}
