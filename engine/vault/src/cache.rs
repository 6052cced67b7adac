//! A small cache of tree nodes, bounded in bytes.
//!
//! Owns: forgetting. Two generations: what is used again in the second moves back to the first; when the
//! first is full the second is dropped. It knows nothing of order and needs no list.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::hash::Hash;

/// Bytes of nodes in each of the two generations. Nodes are 0.1 to 4 KiB: a few thousand of them.
const GENERATION_BYTES: usize = 3 << 20;
/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 96;

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Hash, Arc<Vec<u8>>>,
    old: HashMap<Hash, Arc<Vec<u8>>>,
    young_bytes: usize,
}

/// The cache. Content is named by its hash, so an entry can never be stale.
#[derive(Debug, Default)]
pub(crate) struct NodeCache(Mutex<Generations>);

impl NodeCache {
    pub(crate) fn get(&self, hash: &Hash) -> Option<Arc<Vec<u8>>> {
        let mut generations = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = generations.young.get(hash) {
            return Some(found.clone());
        }
        let found = generations.old.remove(hash)?;
        generations.insert(*hash, found.clone());
        Some(found)
    }

    pub(crate) fn put(&self, hash: Hash, node: Arc<Vec<u8>>) {
        let mut generations = self.0.lock().unwrap_or_else(|e| e.into_inner());
        generations.insert(hash, node);
    }
}

impl Generations {
    fn insert(&mut self, hash: Hash, node: Arc<Vec<u8>>) {
        self.young_bytes += node.len() + ENTRY_OVERHEAD;
        self.young.insert(hash, node);
        if self.young_bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}
