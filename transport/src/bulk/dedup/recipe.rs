//! A batch taken apart into a recipe and what comes with it, and put together again.
//!
//! Owns: where blocks are, the seal, and moving bytes. Leaves to others: which blocks are referred to
//! ([`super::sending`]) and what they yield ([`super::receiving`]).
//!
//! # The seal
//!
//! A batch with a recipe carries, instead of the BLAKE3 of its bytes, the BLAKE3 of its parts: a block
//! counts by its own BLAKE3, a run by its bytes, each with its length. It binds the very same bytes, and
//! both sides hash each byte once where they would hash most of them twice. It is the same whether a
//! block comes with the batch or is referred to.

use std::ops::Range;

use crate::frame::dedup::{Part, Recipe};

/// BLAKE3.
pub type Hash = [u8; 32];

const CONTEXT: &str = "flocker-repl 2026 batch with a recipe v1";

/// The seal of a batch: `places` are its parts and where they are in `raw`, `hashes` are those of its
/// blocks and references, in order.
pub fn seal(
    raw: &[u8],
    places: impl Iterator<Item = (Part, Range<usize>)>,
    hashes: &[Hash],
) -> Hash {
    let (mut hasher, mut hashes) = (blake3::Hasher::new_derive_key(CONTEXT), hashes.iter());
    for (part, place) in places {
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        hasher.update(&len.to_le_bytes());
        match part {
            Part::Run { .. } => hasher.update(&[0]).update(&raw[place]),
            Part::Block { .. } | Part::Reference { .. } => {
                let Some(hash) = hashes.next() else { panic!("a block without its hash") };
                hasher.update(&[1]).update(hash)
            }
        };
    }
    *hasher.finalize().as_bytes()
}

/// Spreads what came with a batch, which fills the front of `raw`, to where it belongs; what is
/// referred to is left as zeros. `raw` grows to the whole batch, within its capacity if that was
/// reserved.
///
/// # Panics
/// When `raw` does not hold what the recipe says comes with the batch.
pub fn spread(recipe: &Recipe, raw: &mut Vec<u8>) {
    let mut from = recipe.literal_len();
    assert!(raw.len() == from, "{} bytes where {from} come with the batch", raw.len());
    if recipe.referenced_len() == 0 {
        return;
    }
    let mut to = from + recipe.referenced_len();
    raw.resize(to, 0);
    // From the end: nothing is overwritten that is still to be moved, and the front stays where it is.
    for part in recipe.parts().iter().rev() {
        let len = part.len();
        to -= len;
        match part {
            Part::Run { .. } | Part::Block { .. } => {
                from -= len;
                raw.copy_within(from..from + len, to);
            }
            Part::Reference { .. } => raw[to..to + len].fill(0),
        }
        if from == to {
            break;
        }
    }
}

/// What comes with a batch, taken out of it; and what is referred to.
pub fn gather(recipe: &Recipe, raw: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut literal = Vec::with_capacity(recipe.literal_len());
    let mut referenced = Vec::with_capacity(recipe.referenced_len());
    for (part, place) in recipe.places() {
        match part {
            Part::Run { .. } | Part::Block { .. } => literal.extend_from_slice(&raw[place]),
            Part::Reference { .. } => referenced.extend_from_slice(&raw[place]),
        }
    }
    (literal, referenced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::dedup::MIN_BLOCK;

    fn recipe(kinds: &[u8], raw: &[u8]) -> Recipe {
        let mut at = 0;
        let parts = kinds.iter().map(|kind| {
            let len = if *kind == 0 { 100 } else { MIN_BLOCK };
            at += len;
            match kind {
                0 => Part::Run { len },
                1 => Part::Block { len },
                _ => Part::Reference { len, hash: *blake3::hash(&raw[at - len..at]).as_bytes() },
            }
        });
        let parts = parts.collect();
        Recipe::new(parts, raw.len()).unwrap()
    }

    #[test]
    fn what_is_gathered_and_spread_is_the_batch_again_wherever_its_references_are() {
        for kinds in [&[0, 2][..], &[2, 0, 1, 2, 2, 0], &[1, 1], &[2], &[0, 1, 2, 0], &[2, 1]] {
            let len = kinds.iter().map(|k| if *k == 0 { 100 } else { MIN_BLOCK }).sum();
            let mut raw = vec![0; len];
            blake3::Hasher::new().finalize_xof().fill(&mut raw);
            let recipe = recipe(kinds, &raw);
            let (mut literal, referenced) = gather(&recipe, &raw);
            spread(&recipe, &mut literal);
            let mut referenced = &referenced[..];
            for (part, place) in recipe.places() {
                if let Part::Reference { len, .. } = part {
                    assert!(literal[place.clone()].iter().all(|b| *b == 0));
                    literal[place].copy_from_slice(&referenced[..len]);
                    referenced = &referenced[len..];
                }
            }
            assert!(literal == raw, "{kinds:?}");
        }
    }

    #[test]
    fn the_seal_is_the_same_whether_a_block_comes_or_is_referred_to_and_binds_every_byte() {
        let mut raw = vec![0; 200 + MIN_BLOCK];
        blake3::Hasher::new().finalize_xof().fill(&mut raw);
        let hash = *blake3::hash(&raw[100..100 + MIN_BLOCK]).as_bytes();
        let seal_of =
            |kinds: &[u8], raw: &[u8], hash| seal(raw, recipe(kinds, raw).places(), &[hash]);
        let good = seal_of(&[0, 1, 0], &raw, hash);
        assert_eq!(good, seal_of(&[0, 2, 0], &raw, hash));
        for at in [0, 99, 100 + MIN_BLOCK, 199 + MIN_BLOCK] {
            let mut other = raw.clone();
            other[at] ^= 1;
            assert_ne!(good, seal_of(&[0, 1, 0], &other, hash), "{at}");
        }
        assert_ne!(good, seal_of(&[0, 1, 0], &raw, [0; 32]));
    }
}
