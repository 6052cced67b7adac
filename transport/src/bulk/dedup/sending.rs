//! The sender's side of dedup in one transfer.
//!
//! Owns: which blocks of a batch are referred to, what is kept until the receiver has resolved it, how
//! much may be under way meanwhile, and answering what the receiver says. It neither blocks nor sends:
//! the workers call [`Referring::encode`], the thread that puts batches on the lane
//! [`Referring::admit`] and [`Referring::owed`], the thread that hears the receiver
//! [`Referring::offered`], [`Referring::resolved`] and [`Referring::missing`].
//!
//! ```text
//!          encode            admit                    Resolved{seq}
//!   batch ────────▶ planned ───────▶ sent ──────────────────────────────▶ gone; its blocks are known
//!                    (blocks claimed)  │ Missing{seq, parts}, once        ▲
//!                                      └────────▶ owed ── Blocks{seq} ────┘
//! ```
//!
//! Claims: a block that comes with batch *n* may be referred to from batch *n* on, though the receiver
//! has not resolved it yet, since it resolves in order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use flocker_core::ids::Fingerprint;

use super::benefit::Benefit;
use super::known::Known;
use super::recipe::{self, Hash};
use super::ring::{Prefix, prefix};
use super::{Dedup, DedupError};
use crate::bulk::budget::Held;
use crate::bulk::codec::{Codec, Encoded};
use crate::bulk::cut::Batch;
use crate::bulk::reseed::announced::Announced;
use crate::counters;
use crate::frame::dedup::{CacheOffer, MAX_REFERRING, Missing, Part, Recipe, Resolved};
use crate::frame::reseed::{Place, Seeds};

/// Batches with recipes that may be unresolved; beyond, batches go without. A receiver that does not
/// resolve cannot make this node remember more.
const MAX_PENDING: usize = 256;

/// A block of a batch: prefix and length.
type Block = (Prefix, usize);

/// Dedup in one transfer, as its sender sees it.
#[derive(Debug)]
pub struct Referring {
    dedup: Arc<Dedup>,
    peer: Fingerprint,
    /// What the receiver announces of an old copy, where that was agreed on.
    pub(crate) announced: Option<Arc<Announced>>,
    state: Mutex<State>,
    ring: Sender<()>,
    /// Rings when the cache was offered, a batch was resolved or is owed blocks, or an old copy was read on.
    pub(crate) bell: Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    offer: Option<(Arc<Known>, usize)>,
    /// In which batch a block comes that the receiver has not resolved.
    claims: HashMap<Prefix, u64>,
    pending: BTreeMap<u64, Pending>,
    /// Batches since the oldest unresolved one with references: number, cost, whether it has any.
    window: VecDeque<(u64, usize, bool)>,
    owed: VecDeque<Owed>,
}

/// A batch with a recipe that is not resolved.
#[derive(Debug, Default)]
struct Pending {
    /// Blocks that come with it.
    blocks: Vec<Block>,
    /// Its references: place in the recipe, block, and place in `kept`.
    references: Vec<(u16, Block, Range<usize>)>,
    kept: Bytes,
    /// What `kept` takes of the memory for batches.
    held: Option<Held>,
    sent: bool,
    asked: bool,
}

/// Blocks to be sent.
#[derive(Debug)]
pub struct Owed {
    /// Of which batch.
    pub seq: u64,
    /// In the order in which they were asked for.
    pub blocks: Vec<Bytes>,
}

impl Owed {
    /// Their bytes.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(Bytes::len).sum()
    }

    /// Never: nobody asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Referring {
    /// For a transfer to `peer` that is about to start.
    pub fn new(dedup: Arc<Dedup>, peer: Fingerprint) -> Self {
        let (ring, bell) = crossbeam_channel::bounded(1);
        Self { dedup, peer, announced: None, state: Mutex::default(), ring, bell }
    }

    /// The same, to a receiver that announces an old copy; each of its words is waited for so long.
    #[must_use]
    pub fn reseeding(self, patience: Duration) -> Self {
        Self { announced: Some(Arc::new(Announced::new(patience))), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Full: it rings already.
        let _ = self.ring.try_send(());
    }

    /// Hashes a batch, takes out what the receiver has, and compresses the rest.
    pub fn encode(&self, codec: &mut Codec, seq: u64, batch: Batch, level: Option<i32>) -> Encoded {
        let Batch { bytes: raw, blocks, places, .. } = batch;
        let from = places.map(|(from, _)| from);
        let reseeding = self.announced.as_ref().is_some_and(|announced| announced.any());
        let known = self.state().offer.as_ref().map(|(known, _)| Arc::clone(known));
        // The first one goes as it is, so that a small transfer costs what it would without.
        let Some(known) = known.filter(|_| (seq > 0 || reseeding) && !blocks.is_empty()) else {
            return codec.encode(seq, raw, level);
        };
        if !known.is_on() && !reseeding {
            let sample = blocks.iter().filter(|block| Benefit::chooses(&raw[(*block).clone()]));
            let sample: Vec<_> = sample.map(|b| (hash(&raw[b.clone()]), b.len())).collect();
            known.count(raw.len(), 0, &sample);
            return codec.encode(seq, raw, level);
        }
        let hashes: Vec<Hash> = blocks.iter().map(|block| hash(&raw[block.clone()])).collect();
        let hashed: usize = blocks.iter().map(ExactSizeIterator::len).sum();
        metrics::counter!(counters::DEDUP_HASHED).increment(hashed as u64);
        let Some((recipe, pending)) = self.plan(&known, (seq, from), raw.len(), &blocks, &hashes)
        else {
            known.count(raw.len(), 0, &[]);
            return codec.encode(seq, raw, level);
        };
        let chosen =
            blocks.iter().zip(&hashes).filter(|(b, _)| Benefit::chooses(&raw[(*b).clone()]));
        let sample: Vec<_> = chosen.map(|(block, hash)| (*hash, block.len())).collect();
        known.count(raw.len(), recipe.referenced_len(), &sample);
        metrics::counter!(counters::DEDUP_HITS).increment(pending.references.len() as u64);
        metrics::counter!(counters::DEDUP_REFERENCED).increment(recipe.referenced_len() as u64);
        let seal = recipe::seal(&raw, recipe.places(), &hashes);
        let (literal, kept) = if recipe.referenced_len() == 0 {
            (raw, Bytes::new())
        } else {
            let (literal, referenced) = recipe::gather(&recipe, &raw);
            (literal, Bytes::from(referenced))
        };
        self.state().pending.insert(seq, Pending { kept, ..pending });
        codec.encode_recipe(seq, &recipe, seal, literal, level)
    }

    /// Which parts the batch has; claims what comes with it. `None` when too much is unresolved.
    fn plan(
        &self,
        known: &Known,
        (seq, from): (u64, Option<Place>),
        raw_len: usize,
        blocks: &[Range<usize>],
        hashes: &[Hash],
    ) -> Option<(Recipe, Pending)> {
        let keys: Vec<Block> =
            hashes.iter().zip(blocks).map(|(hash, block)| (prefix(hash), block.len())).collect();
        let mut has = known.has(&keys);
        if let (Some(announced), Some(from)) = (&self.announced, from) {
            let held = announced.has(&keys, from);
            has.iter_mut().zip(held).for_each(|(has, held)| *has |= held);
        }
        let (mut parts, mut pending, mut at) = (Vec::new(), Pending::default(), 0);
        let mut kept = 0;
        let mut state = self.state();
        if state.pending.len() >= MAX_PENDING {
            return None;
        }
        for (((block, hash), key), has) in blocks.iter().zip(hashes).zip(keys).zip(has) {
            if at < block.start {
                parts.push(Part::Run { len: block.start - at });
            }
            at = block.end;
            let len = block.len();
            let claim = state.claims.get(&key.0).copied();
            let there = has || claim.is_some_and(|by| by <= seq);
            if there && raw_len <= MAX_REFERRING {
                let place = u16::try_from(parts.len()).unwrap_or(u16::MAX);
                pending.references.push((place, key, kept..kept + len));
                kept += len;
                parts.push(Part::Reference { len, hash: *hash });
                continue;
            }
            parts.push(Part::Block { len });
            if known.takes(len) {
                pending.blocks.push(key);
                state.claims.entry(key.0).and_modify(|by| *by = seq.min(*by)).or_insert(seq);
            }
        }
        if at < raw_len {
            parts.push(Part::Run { len: raw_len - at });
        }
        let recipe = match Recipe::new(parts, raw_len) {
            Ok(recipe) => recipe,
            Err(error) => panic!("the cutter's blocks make no recipe: {error}"),
        };
        Some((recipe, pending))
    }

    /// Asks whether a batch may go now; if so it counts as sent. `held`, what it takes of the memory for
    /// batches, is kept here when the batch refers to blocks, and comes back when it need not be.
    ///
    /// # Errors
    /// `held`, when too much is unresolved: wait for the bell.
    pub fn admit(&self, encoded: &Encoded, held: Held) -> Result<Option<Held>, Held> {
        let mut state = self.state();
        let (seq, refers) = (encoded.header.seq, encoded.referenced > 0);
        let credit = state.offer.as_ref().map_or(0, |(_, credit)| *credit);
        let under_way: usize = state.window.iter().map(|(_, cost, _)| cost).sum();
        if !state.window.is_empty() && under_way + encoded.cost() > credit {
            return Err(held);
        }
        if refers || !state.window.is_empty() {
            state.window.push_back((seq, encoded.cost(), refers));
        }
        let Some(pending) = state.pending.get_mut(&seq) else { return Ok(Some(held)) };
        pending.sent = true;
        if !refers {
            return Ok(Some(held));
        }
        pending.held = Some(held);
        Ok(None)
    }

    /// What is to be sent before anything else.
    pub fn owed(&self) -> Option<Owed> {
        self.state().owed.pop_front()
    }

    /// Whether nothing more will be asked for.
    pub fn is_settled(&self) -> bool {
        let state = self.state();
        state.window.is_empty() && state.owed.is_empty()
    }

    /// The receiver has committed everything: all that went with it is in its cache.
    pub fn committed(&self) {
        let mut state = self.state();
        let last = state.pending.keys().next_back().copied();
        if let Some(last) = last {
            state.settle(last);
        }
    }

    /// The transfer is over without that: nothing is kept any more.
    pub fn abandon(&self) {
        self.state().pending.clear();
    }

    /// The receiver's cache may be referred to, from here on.
    ///
    /// # Errors
    /// [`DedupError::OfferedTwice`].
    pub fn offered(&self, offer: &CacheOffer) -> Result<(), DedupError> {
        let credit = offer.credit_bytes as usize;
        // Less does not take the largest batch with references.
        let has_none = offer.window_bytes == 0 && self.announced.is_none();
        if has_none || credit < super::MIN_CREDIT {
            return Ok(());
        }
        let known = self.dedup.known(self.peer, offer.id, offer.window_bytes);
        let mut state = self.state();
        if state.offer.is_some() {
            return Err(DedupError::OfferedTwice);
        }
        state.offer = Some((known, credit));
        drop(state);
        self.ring();
        Ok(())
    }

    /// The receiver has read on in its old copy; it said so in `wire` bytes.
    ///
    /// # Errors
    /// See [`Announced::heard`].
    pub fn announced(&self, seeds: &Seeds, wire: usize) -> Result<(), DedupError> {
        if let Some(announced) = &self.announced {
            announced.heard(seeds, wire)?;
            self.ring();
        }
        Ok(())
    }

    /// Whether it may.
    pub fn is_offered(&self) -> bool {
        self.state().offer.is_some()
    }

    /// Batches up to this one are resolved.
    ///
    /// # Errors
    /// [`DedupError::NotSent`].
    pub fn resolved(&self, Resolved { seq }: Resolved) -> Result<(), DedupError> {
        let mut state = self.state();
        if !state.pending.get(&seq).is_some_and(|pending| pending.sent) {
            return Err(DedupError::NotSent { seq });
        }
        state.settle(seq);
        drop(state);
        self.ring();
        Ok(())
    }

    /// Blocks are asked for.
    ///
    /// # Errors
    /// [`DedupError::NotReferenced`] and [`DedupError::AskedTwice`].
    pub fn missing(&self, missing: &Missing) -> Result<(), DedupError> {
        let seq = missing.seq;
        let not_referenced = DedupError::NotReferenced { seq };
        let mut state = self.state();
        let State { pending, owed, claims, offer, .. } = &mut *state;
        let Some(batch) = pending.get_mut(&seq).filter(|batch| batch.sent) else {
            return Err(not_referenced);
        };
        if std::mem::replace(&mut batch.asked, true) {
            return Err(DedupError::AskedTwice { seq });
        }
        let (mut blocks, mut lost) = (Vec::new(), Vec::new());
        for part in &missing.parts {
            let found = batch.references.iter().find(|(place, ..)| place == part);
            let Some((_, block, at)) = found else { return Err(not_referenced) };
            blocks.push(batch.kept.slice(at.clone()));
            lost.push(*block);
            // It comes with this batch after all.
            batch.blocks.push(*block);
            claims.entry(block.0).or_insert(seq);
        }
        metrics::counter!(counters::DEDUP_MISSING).increment(lost.len() as u64);
        if let Some((known, _)) = offer {
            known.lost(&lost);
        }
        owed.push_back(Owed { seq, blocks });
        drop(state);
        self.ring();
        Ok(())
    }
}

impl State {
    /// Lets go of everything up to this batch.
    fn settle(&mut self, seq: u64) {
        let later = self.pending.split_off(&(seq + 1));
        for (by, pending) in std::mem::replace(&mut self.pending, later) {
            for (key, _) in &pending.blocks {
                if self.claims.get(key) == Some(&by) {
                    self.claims.remove(key);
                }
            }
            if let Some((known, _)) = &self.offer {
                known.add(&pending.blocks);
            }
        }
        self.owed.retain(|owed| owed.seq > seq);
        while self.window.front().is_some_and(|(first, _, refers)| *first <= seq || !refers) {
            self.window.pop_front();
        }
    }
}

fn hash(block: &[u8]) -> Hash {
    *blake3::hash(block).as_bytes()
}
