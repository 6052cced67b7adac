//! Persistent radix trees over named blocks: a map from `u64` whose every state is one hash.
//!
//! ```text
//! node = level:u8 present:u64  entries in ascending order, one for each bit that is set
//! ```
//! 64 ways to a node. At level 0 the entries are values; above they are hashes of nodes. A key's digit at
//! level `l` is its bits `6l..6l+6`.
//!
//! Owns: changing a tree with only what changed in memory, walking one, and walking the difference of two
//! while skipping what is equal. Leaves what the values mean to [`crate::object`].
//!
//! Invariant: the same map has the same root hash, whatever was done to make it. No node is empty, and a
//! root has more than its entry 0 unless it is at level 0.

use std::collections::BTreeMap;

use flocker_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::hash::{Hash, Kind};

mod diff;

pub(crate) use diff::{Below, Visit, below, diff, last_key, walk};

type Result<T> = std::result::Result<T, StoreError>;

/// Bits of a key that one level takes.
const BITS: u32 = 6;
/// The highest level that a 64-bit key needs.
const MAX_LEVEL: u8 = 10;

/// What a tree maps to.
pub(crate) trait Value: Copy + PartialEq {
    /// Bytes of an encoded value.
    const LEN: usize;
    /// The kind of block that nodes of such a tree are.
    const KIND: Kind;
    fn encode(&self, out: &mut Vec<u8>);
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// A stored tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct Root(pub(crate) Option<(u8, Hash)>);

fn digit(key: u64, level: u8) -> u8 {
    // Below 64, so it fits.
    ((key >> (BITS * u32::from(level))) & 63) as u8
}

/// The lowest level whose node can hold this key.
fn level_for(key: u64) -> u8 {
    let bits = 64 - key.leading_zeros();
    u8::try_from(bits.saturating_sub(1) / BITS).unwrap_or(MAX_LEVEL)
}

#[derive(Debug)]
enum Child<V> {
    Stored(Hash),
    Loaded(Box<Node<V>>),
}

#[derive(Debug)]
enum Entries<V> {
    Inner(BTreeMap<u8, Child<V>>),
    Leaf(BTreeMap<u8, V>),
}

#[derive(Debug)]
struct Node<V> {
    level: u8,
    entries: Entries<V>,
}

fn damaged(what: &str) -> StoreError {
    // The bytes have their hash, so this is a bug or a forgery in the vault's own writing, not a bad disk.
    StoreError::Corrupt { path: "packs".into(), detail: format!("a tree node {what}") }
}

impl<V: Value> Node<V> {
    fn empty(level: u8) -> Self {
        let entries = if level == 0 {
            Entries::Leaf(BTreeMap::new())
        } else {
            Entries::Inner(BTreeMap::new())
        };
        Node { level, entries }
    }

    fn is_empty(&self) -> bool {
        match &self.entries {
            Entries::Inner(children) => children.is_empty(),
            Entries::Leaf(values) => values.is_empty(),
        }
    }

    fn decode(bytes: &[u8], level: u8) -> Result<Self> {
        let [stored_level, bits @ ..] = bytes else {
            return Err(damaged("is empty"));
        };
        let Some((bits, mut rest)) = bits.split_first_chunk::<8>() else {
            return Err(damaged("is cut off"));
        };
        let present = u64::from_le_bytes(*bits);
        if *stored_level != level || level > MAX_LEVEL || present == 0 {
            return Err(damaged("is not of its level"));
        }
        let len = if level == 0 { V::LEN } else { 32 };
        let mut node = Node::empty(level);
        for at in (0..64u8).filter(|at| present >> at & 1 == 1) {
            let Some((entry, tail)) = rest.split_at_checked(len) else {
                return Err(damaged("is cut off"));
            };
            rest = tail;
            match &mut node.entries {
                Entries::Inner(children) => {
                    let hash = entry.try_into().map_err(|_| damaged("is cut off"))?;
                    children.insert(at, Child::Stored(Hash(hash)));
                }
                Entries::Leaf(values) => {
                    let value = V::decode(entry).ok_or_else(|| damaged("holds no value"))?;
                    values.insert(at, value);
                }
            }
        }
        if rest.is_empty() { Ok(node) } else { Err(damaged("is too long")) }
    }

    fn load(blocks: &impl ReadBlocks, hash: &Hash, level: u8) -> Result<Self> {
        Self::decode(&blocks.get(V::KIND, hash)?, level)
    }

    /// Stores this node and what is below.
    fn store(&self, blocks: &impl WriteBlocks) -> Result<Hash> {
        let mut present = 0u64;
        let mut body = Vec::new();
        match &self.entries {
            Entries::Leaf(values) => {
                for (at, value) in values {
                    present |= 1 << at;
                    value.encode(&mut body);
                }
            }
            Entries::Inner(children) => {
                for (at, child) in children {
                    present |= 1 << at;
                    let hash = match child {
                        Child::Stored(hash) => *hash,
                        Child::Loaded(node) => node.store(blocks)?,
                    };
                    body.extend_from_slice(&hash.0);
                }
            }
        }
        let mut bytes = Vec::with_capacity(9 + body.len());
        bytes.push(self.level);
        bytes.extend_from_slice(&present.to_le_bytes());
        bytes.extend_from_slice(&body);
        blocks.put(V::KIND, &bytes)
    }
}

/// A tree being changed. Only nodes on the way to what changed are in memory, until [`Tree::flush`].
#[derive(Debug)]
pub(crate) struct Tree<V> {
    root: Option<Child<V>>,
    level: u8,
    /// Nodes in memory.
    loaded: usize,
}

impl<V: Value> Tree<V> {
    /// The tree of this root.
    pub(crate) fn open(root: Root) -> Self {
        match root.0 {
            None => Tree { root: None, level: 0, loaded: 0 },
            Some((level, hash)) => Tree { root: Some(Child::Stored(hash)), level, loaded: 0 },
        }
    }

    /// The tree that maps 0 to this value and nothing else.
    pub(crate) fn of_one(value: V) -> Self {
        Tree {
            root: Some(Child::Loaded(Box::new(Node {
                level: 0,
                entries: Entries::Leaf(BTreeMap::from([(0, value)])),
            }))),
            level: 0,
            loaded: 1,
        }
    }

    /// The value at 0, if that is the only key.
    pub(crate) fn only_zero(&self, blocks: &impl ReadBlocks) -> Result<Option<V>> {
        let stored;
        let node = match &self.root {
            // Somewhere below a node above level 0 there may be a single key, but not a key 0 alone
            // unless entries were removed since; `flush` takes care of that.
            _ if self.level > 0 => return Ok(None),
            None => return Ok(None),
            Some(Child::Loaded(node)) => node,
            Some(Child::Stored(hash)) => {
                stored = Node::<V>::load(blocks, hash, 0)?;
                &stored
            }
        };
        Ok(match &node.entries {
            Entries::Leaf(values) if values.len() == 1 => values.get(&0).copied(),
            Entries::Leaf(_) | Entries::Inner(_) => None,
        })
    }

    /// How many nodes are in memory.
    pub(crate) fn loaded(&self) -> usize {
        self.loaded
    }

    /// The value at a key.
    pub(crate) fn get(&self, blocks: &impl ReadBlocks, key: u64) -> Result<Option<V>> {
        let Some(mut child) = self.root.as_ref() else {
            return Ok(None);
        };
        if level_for(key) > self.level {
            return Ok(None);
        }
        let mut level = self.level;
        loop {
            let node = match child {
                Child::Loaded(node) => node,
                Child::Stored(hash) => return get_stored(blocks, *hash, level, key),
            };
            match &node.entries {
                Entries::Leaf(values) => return Ok(values.get(&digit(key, 0)).copied()),
                Entries::Inner(children) => match children.get(&digit(key, level)) {
                    None => return Ok(None),
                    Some(next) => child = next,
                },
            }
            level -= 1;
        }
    }

    /// Sets the value at a key, and returns what was there.
    pub(crate) fn insert(
        &mut self,
        blocks: &impl ReadBlocks,
        key: u64,
        value: V,
    ) -> Result<Option<V>> {
        self.grow(level_for(key));
        let level = self.level;
        let root = self.root.get_or_insert_with(|| Child::Loaded(Box::new(Node::empty(level))));
        let mut node = loaded_node(blocks, root, level, &mut self.loaded)?;
        loop {
            let level = node.level;
            match &mut node.entries {
                Entries::Leaf(values) => return Ok(values.insert(digit(key, 0), value)),
                Entries::Inner(children) => {
                    let child = children
                        .entry(digit(key, level))
                        .or_insert_with(|| Child::Loaded(Box::new(Node::empty(level - 1))));
                    node = loaded_node(blocks, child, level - 1, &mut self.loaded)?;
                }
            }
        }
    }

    fn grow(&mut self, level: u8) {
        while self.level < level {
            self.level += 1;
            if let Some(below) = self.root.take() {
                let mut node = Node::empty(self.level);
                if let Entries::Inner(children) = &mut node.entries {
                    children.insert(0, below);
                }
                self.root = Some(Child::Loaded(Box::new(node)));
                self.loaded += 1;
            }
        }
    }

    /// Removes the keys from `first` to `last`, and hands what was there to `gone`, in ascending order.
    pub(crate) fn remove_range(
        &mut self,
        blocks: &impl ReadBlocks,
        first: u64,
        last: u64,
        gone: &mut impl FnMut(u64, V) -> Result<()>,
    ) -> Result<()> {
        let level = self.level;
        let Some(root) = self.root.as_mut() else {
            return Ok(());
        };
        let span = Span { first, last, base: 0 };
        if !remove(blocks, root, level, span, &mut self.loaded, gone)? {
            self.root = None;
            self.level = 0;
            self.loaded = 0;
        }
        Ok(())
    }

    /// Stores what changed and lets it go from memory.
    pub(crate) fn flush(&mut self, blocks: &impl WriteBlocks) -> Result<Root> {
        loop {
            match self.root.take() {
                None => {
                    self.level = 0;
                    self.loaded = 0;
                    return Ok(Root(None));
                }
                Some(Child::Stored(hash)) => {
                    self.root = Some(Child::Stored(hash));
                    self.loaded = 0;
                    return Ok(Root(Some((self.level, hash))));
                }
                Some(Child::Loaded(mut node)) => {
                    if node.is_empty() {
                        continue;
                    }
                    if let Entries::Inner(children) = &mut node.entries
                        && children.len() == 1
                        && let Some(only) = children.remove(&0)
                    {
                        // The entry below may have been changed or not: look at it as the root.
                        self.level -= 1;
                        self.root = Some(match only {
                            Child::Stored(hash) => {
                                Child::Loaded(Box::new(Node::load(blocks, &hash, self.level)?))
                            }
                            loaded @ Child::Loaded(_) => loaded,
                        });
                        continue;
                    }
                    self.root = Some(Child::Stored(node.store(blocks)?));
                }
            }
        }
    }
}

fn get_stored<V: Value>(
    blocks: &impl ReadBlocks,
    mut hash: Hash,
    mut level: u8,
    key: u64,
) -> Result<Option<V>> {
    loop {
        // Without making a node of it: this is the way of every lookup.
        let bytes = blocks.get(V::KIND, &hash)?;
        let (present, body) = match &bytes[..] {
            [stored, rest @ ..] if *stored == level => match rest.split_first_chunk::<8>() {
                Some((bits, body)) => (u64::from_le_bytes(*bits), body),
                None => return Err(damaged("is cut off")),
            },
            _ => return Err(damaged("is not of its level")),
        };
        let at = digit(key, level);
        if present >> at & 1 == 0 {
            return Ok(None);
        }
        let before = (present & ((1u64 << at) - 1)).count_ones() as usize;
        let len = if level == 0 { V::LEN } else { 32 };
        let entry =
            body.get(before * len..(before + 1) * len).ok_or_else(|| damaged("is cut off"))?;
        if level == 0 {
            return V::decode(entry).map(Some).ok_or_else(|| damaged("holds no value"));
        }
        hash = Hash(entry.try_into().map_err(|_| damaged("is cut off"))?);
        level -= 1;
    }
}

fn loaded_node<'n, V: Value>(
    blocks: &impl ReadBlocks,
    child: &'n mut Child<V>,
    level: u8,
    loaded: &mut usize,
) -> Result<&'n mut Node<V>> {
    if let Child::Stored(hash) = child {
        *child = Child::Loaded(Box::new(Node::load(blocks, hash, level)?));
        *loaded += 1;
    }
    match child {
        Child::Loaded(node) => Ok(node),
        Child::Stored(_) => Err(damaged("is not loaded")),
    }
}

#[derive(Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
    /// Key of the node's entry 0.
    base: u64,
}

impl Span {
    /// The span of entry `at` of a node at `level`, and whether it meets the range.
    fn entry(self, at: u8, level: u8) -> Option<Span> {
        let shift = BITS * u32::from(level);
        let base = self.base | u64::from(at) << shift;
        let end = base | ((1u64 << shift) - 1);
        (base <= self.last && end >= self.first).then_some(Span { base, ..self })
    }
}

/// Removes a range below `child`; says whether anything is left.
fn remove<V: Value>(
    blocks: &impl ReadBlocks,
    child: &mut Child<V>,
    level: u8,
    span: Span,
    loaded: &mut usize,
    gone: &mut impl FnMut(u64, V) -> Result<()>,
) -> Result<bool> {
    // Nothing of it in the range: do not load a path only to find that out.
    if let Child::Stored(hash) = child {
        let node = Node::<V>::load(blocks, hash, level)?;
        let touched = match &node.entries {
            Entries::Leaf(values) => values.keys().any(|at| span.entry(*at, 0).is_some()),
            Entries::Inner(children) => children.keys().any(|at| span.entry(*at, level).is_some()),
        };
        if !touched {
            return Ok(true);
        }
        *child = Child::Loaded(Box::new(node));
        *loaded += 1;
    }
    let node = loaded_node(blocks, child, level, loaded)?;
    match &mut node.entries {
        Entries::Leaf(values) => {
            let hit: Vec<u8> =
                values.keys().copied().filter(|at| span.entry(*at, 0).is_some()).collect();
            for at in hit {
                if let Some(value) = values.remove(&at) {
                    gone(span.base | u64::from(at), value)?;
                }
            }
        }
        Entries::Inner(children) => {
            let hit: Vec<(u8, Span)> = children
                .keys()
                .filter_map(|at| span.entry(*at, level).map(|below| (*at, below)))
                .collect();
            for (at, below) in hit {
                if let Some(child) = children.get_mut(&at)
                    && !remove(blocks, child, level - 1, below, loaded, gone)?
                {
                    children.remove(&at);
                }
            }
        }
    }
    Ok(!node.is_empty())
}

#[cfg(test)]
pub(crate) mod tests;
