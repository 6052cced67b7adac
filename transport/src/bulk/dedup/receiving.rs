//! The receiver's side of dedup in one transfer.
//!
//! Owns: putting batches together from what came and what the cache has, asking for what it has not,
//! and that the sender keeps to its credit. Three threads meet here, and none waits while it holds a
//! lock: the lane's ([`Resolving::arriving`], [`Resolving::supplied`]), the workers ([`assemble`]), and the
//! writer's ([`Assembly::look_again`], [`Resolving::ask`], [`Assembly::supply`], [`Resolving::resolved`]).
//!
//! A worker puts into the cache what came with its batch, then looks up what the batch refers to. What
//! it does not find may have come with an earlier batch that another worker has in hand, so the writer, who
//! takes batches in order, looks again, and only then asks. While it waits, the lane's thread reads on
//! within the credit that was reserved for just this: what was asked for is always reached.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::DedupError;
use super::cache::Cache;
use super::recipe::{self, Hash};
use crate::bulk::codec::{BatchError, Codec};
use crate::bulk::reseed::held::Held;
use crate::frame::bulk::BatchHeader;
use crate::frame::dedup::{CACHE_ID_LEN, CacheOffer, Missing, Part, Recipe};

/// Where a receiver finds blocks.
#[derive(Debug, Clone, Default)]
pub struct Blocks {
    /// What came from this peer before.
    pub cache: Option<Arc<Cache>>,
    /// What an old copy has, about where the stream is.
    pub held: Option<Arc<Held>>,
}

impl Blocks {
    /// Those of a cache alone.
    pub fn cached(cache: Arc<Cache>) -> Self {
        Self { cache: Some(cache), held: None }
    }

    /// Fills `out` with the block of this hash and just this length; `false` when it is nowhere, and then
    /// `out` holds anything.
    fn read(&self, hash: &Hash, out: &mut [u8]) -> bool {
        self.held.as_ref().is_some_and(|held| held.read(hash, out))
            || self.cache.as_ref().is_some_and(|cache| cache.read(hash, out))
    }

    /// Keeps a block that came. `bytes` must have this hash.
    fn insert(&self, hash: &Hash, bytes: &[u8]) {
        if let Some(cache) = &self.cache {
            cache.insert(hash, bytes);
        }
    }
}

/// A batch, or what there is of it.
#[derive(Debug)]
pub enum Unpacked {
    /// Verified.
    Whole(Vec<u8>),
    /// References led to nothing.
    Lacking(Assembly),
}

/// A batch with a recipe, of which blocks may be missing.
#[derive(Debug)]
pub struct Assembly {
    header: BatchHeader,
    recipe: Recipe,
    raw: Vec<u8>,
    /// Of its blocks and references, in order.
    hashes: Vec<Hash>,
    /// Places in the recipe.
    missing: Vec<u16>,
}

/// Puts a batch together: `body` is what came with it, without the table.
///
/// # Errors
/// [`BatchError`]; nothing of the batch may be used then.
pub fn assemble(
    codec: &mut Codec,
    header: &BatchHeader,
    recipe: Recipe,
    body: Vec<u8>,
    found: &Blocks,
) -> Result<Unpacked, BatchError> {
    let mut raw = codec.unpack(header, recipe.literal_len(), body)?;
    recipe::spread(&recipe, &mut raw);
    let mut hashes = Vec::new();
    for (part, place) in recipe.places() {
        match part {
            Part::Run { .. } => {}
            Part::Block { .. } => {
                let hash = *blake3::hash(&raw[place.clone()]).as_bytes();
                found.insert(&hash, &raw[place]);
                hashes.push(hash);
            }
            Part::Reference { hash, .. } => hashes.push(hash),
        }
    }
    let missing =
        (0..).zip(recipe.parts()).filter(|(_, part)| matches!(part, Part::Reference { .. }));
    let missing = missing.map(|(place, _)| place).collect();
    let mut assembly = Assembly { header: *header, recipe, raw, hashes, missing };
    if assembly.look_again(found) {
        return assembly.finish().map(Unpacked::Whole);
    }
    Ok(Unpacked::Lacking(assembly))
}

impl Assembly {
    /// Number of the batch.
    pub fn seq(&self) -> u64 {
        self.header.seq
    }

    /// Fills in what is there; `true` when nothing is missing any more.
    pub fn look_again(&mut self, found: &Blocks) -> bool {
        let Self { recipe, raw, missing, .. } = self;
        let mut wanted = missing.iter().copied().peekable();
        let mut still = Vec::new();
        for (number, (part, place)) in (0..).zip(recipe.places()) {
            if wanted.next_if_eq(&number).is_none() {
                continue;
            }
            let Part::Reference { hash, .. } = part else { continue };
            if !found.read(&hash, &mut raw[place]) {
                still.push(number);
            }
        }
        *missing = still;
        missing.is_empty()
    }

    /// Bytes of the blocks that are missing.
    pub fn missing_len(&self) -> usize {
        let parts = self.recipe.parts();
        self.missing.iter().filter_map(|at| parts.get(usize::from(*at))).map(Part::len).sum()
    }

    /// What is to be asked for.
    pub fn question(&self) -> Missing {
        Missing { seq: self.seq(), parts: self.missing.clone() }
    }

    /// Takes the blocks that were asked for, and yields the batch, verified.
    ///
    /// # Errors
    /// [`BatchError::Hash`].
    ///
    /// # Panics
    /// When `blocks` is not as long as what is missing: [`Resolving::supplied`] compares.
    pub fn supply(mut self, blocks: &[u8], found: &Blocks) -> Result<Vec<u8>, BatchError> {
        assert!(blocks.len() == self.missing_len(), "blocks of another length than asked for");
        let (mut rest, seq) = (blocks, self.seq());
        let mut wanted = self.missing.iter().copied().peekable();
        for (number, (part, place)) in (0..).zip(self.recipe.places()) {
            if wanted.next_if_eq(&number).is_none() {
                continue;
            }
            let (block, behind) = rest.split_at(place.len());
            rest = behind;
            let Part::Reference { hash, .. } = part else { continue };
            if blake3::hash(block) != blake3::Hash::from_bytes(hash) {
                return Err(BatchError::Hash { seq });
            }
            found.insert(&hash, block);
            self.raw[place].copy_from_slice(block);
        }
        self.missing.clear();
        self.finish()
    }

    fn finish(self) -> Result<Vec<u8>, BatchError> {
        let Self { header, recipe, raw, hashes, .. } = self;
        if recipe::seal(&raw, recipe.places(), &hashes) != header.hash {
            return Err(BatchError::Hash { seq: header.seq });
        }
        Ok(raw)
    }
}

/// Dedup in one transfer, as its receiver sees it.
#[derive(Debug)]
pub struct Resolving {
    /// What is referred to.
    pub blocks: Blocks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// 0 until the cache is offered.
    credit: usize,
    /// Batches since the oldest unresolved one with references: number, cost, whether it has any.
    window: VecDeque<(u64, usize, bool)>,
    /// What was asked for: batch and bytes.
    asked: Option<(u64, usize)>,
}

impl Resolving {
    /// For a transfer that is about to start.
    pub fn new(blocks: Blocks) -> Self {
        Self { blocks, state: Mutex::default() }
    }

    /// From now on `credit` bytes are reserved for the transfer. Returns what the sender is told.
    pub fn offer(&self, credit: usize) -> CacheOffer {
        self.state().credit = credit;
        let cache = self.blocks.cache.as_ref();
        CacheOffer {
            id: cache.map_or([0; CACHE_ID_LEN], |cache| cache.id()),
            window_bytes: cache.map_or(0, |cache| cache.capacity()),
            credit_bytes: u32::try_from(credit).unwrap_or(u32::MAX),
        }
    }

    /// Whether the sender may send recipes.
    pub fn is_offered(&self) -> bool {
        self.state().credit > 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch comes, with references or without.
    ///
    /// # Errors
    /// [`DedupError::OverCredit`]: before anything of it is read.
    pub fn arriving(&self, seq: u64, cost: usize, referring: bool) -> Result<(), DedupError> {
        let State { credit: limit, window, .. } = &mut *self.state();
        if window.is_empty() && !referring {
            return Ok(());
        }
        let under_way: usize = window.iter().map(|(_, cost, _)| cost).sum();
        if under_way + cost > *limit {
            return Err(DedupError::OverCredit { seq, limit: *limit });
        }
        window.push_back((seq, cost, referring));
        Ok(())
    }

    /// The writer is about to ask for the blocks that a batch lacks.
    pub fn ask(&self, assembly: &Assembly) {
        self.state().asked = Some((assembly.seq(), assembly.missing_len()));
    }

    /// Blocks come: `len` bytes, for a batch.
    ///
    /// # Errors
    /// [`DedupError::NotAsked`]: before anything of them is read.
    pub fn supplied(&self, seq: u64, len: usize) -> Result<(), DedupError> {
        match self.state().asked.take() {
            Some((asked, bytes)) if asked == seq && bytes == len => Ok(()),
            _ => Err(DedupError::NotAsked { seq, len }),
        }
    }

    /// Batches up to this one are whole.
    pub fn resolved(&self, seq: u64) {
        let window = &mut self.state().window;
        while window.front().is_some_and(|(first, _, refers)| *first <= seq || !refers) {
            window.pop_front();
        }
    }
}
