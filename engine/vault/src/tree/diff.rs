//! Walking trees, and the difference of two of them.
//!
//! Owns: reading in ascending order while skipping what two trees share. Leaves changing to [`super::Tree`].

use std::collections::BTreeMap;
use std::marker::PhantomData;

use flocker_store::StoreError;

use super::{BITS, Child, Entries, Node, Root, Value, damaged};
use crate::blocks::ReadBlocks;
use crate::hash::Hash;

type Result<T> = std::result::Result<T, StoreError>;

/// What a walk goes on with.
pub(crate) type Visit<'v, V> = dyn FnMut(u64, Option<V>, Option<V>) -> Result<()> + 'v;

/// Walks every key at which two trees differ, in ascending order; what is equal is not read.
pub(crate) fn diff<V: Value>(
    blocks: &impl ReadBlocks,
    from: Root,
    to: Root,
    visit: &mut Visit<'_, V>,
) -> Result<()> {
    let level = from.0.iter().chain(&to.0).map(|(l, _)| *l).max();
    let Some(level) = level else {
        return Ok(());
    };
    let side = |root: Root| root.0.map_or(Side::Nothing, |(l, h)| Side::Node(l, h));
    let walk = Walk { blocks, value: PhantomData };
    walk.node(level, 0, side(from), side(to), visit)
}

/// Walks every key of a tree in ascending order.
pub(crate) fn walk<V: Value>(
    blocks: &impl ReadBlocks,
    root: Root,
    visit: &mut impl FnMut(u64, V) -> Result<()>,
) -> Result<()> {
    diff(blocks, Root(None), root, &mut |key, _, to| match to {
        Some(value) => visit(key, value),
        None => Ok(()),
    })
}

/// One side of a difference. A tree that is lower than the other is seen as entry 0 of nodes above it.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Nothing,
    Node(u8, Hash),
}

struct Walk<'b, B, V> {
    blocks: &'b B,
    value: PhantomData<V>,
}

impl<B: ReadBlocks, V: Value> Walk<'_, B, V> {
    fn children(&self, level: u8, side: Side) -> Result<BTreeMap<u8, Side>> {
        match side {
            Side::Nothing => Ok(BTreeMap::new()),
            Side::Node(own, _) if own < level => Ok(BTreeMap::from([(0, side)])),
            Side::Node(own, hash) => match Node::<V>::load(self.blocks, &hash, own)?.entries {
                Entries::Leaf(_) => Err(damaged("is not of its level")),
                Entries::Inner(children) => Ok(children
                    .into_iter()
                    .filter_map(|(at, child)| match child {
                        Child::Stored(hash) => Some((at, Side::Node(own - 1, hash))),
                        Child::Loaded(_) => None,
                    })
                    .collect()),
            },
        }
    }

    fn values(&self, side: Side) -> Result<BTreeMap<u8, V>> {
        match side {
            Side::Nothing => Ok(BTreeMap::new()),
            Side::Node(own, hash) => match Node::<V>::load(self.blocks, &hash, own)?.entries {
                Entries::Leaf(values) => Ok(values),
                Entries::Inner(_) => Err(damaged("is not of its level")),
            },
        }
    }

    fn node(
        &self,
        level: u8,
        base: u64,
        from: Side,
        to: Side,
        visit: &mut Visit<'_, V>,
    ) -> Result<()> {
        if from == to {
            return Ok(());
        }
        if level == 0 {
            let (from, to) = (self.values(from)?, self.values(to)?);
            for at in 0..64 {
                let (a, b) = (from.get(&at), to.get(&at));
                if a != b {
                    visit(base | u64::from(at), a.copied(), b.copied())?;
                }
            }
            return Ok(());
        }
        let (from, to) = (self.children(level, from)?, self.children(level, to)?);
        for at in 0..64u8 {
            let side = |m: &BTreeMap<u8, Side>| m.get(&at).copied().unwrap_or(Side::Nothing);
            let (a, b) = (side(&from), side(&to));
            if a != b {
                let base = base | u64::from(at) << (BITS * u32::from(level));
                self.node(level - 1, base, a, b, visit)?;
            }
        }
        Ok(())
    }
}

/// The highest key of a tree.
pub(crate) fn last_key<V: Value>(blocks: &impl ReadBlocks, root: Root) -> Result<Option<u64>> {
    let Some((mut level, mut hash)) = root.0 else {
        return Ok(None);
    };
    let mut key = 0;
    loop {
        let node = Node::<V>::load(blocks, &hash, level)?;
        let shift = BITS * u32::from(level);
        match node.entries {
            Entries::Leaf(values) => {
                return Ok(values.keys().last().map(|at| key | u64::from(*at)));
            }
            Entries::Inner(children) => match children.last_key_value() {
                Some((at, Child::Stored(below))) => {
                    key |= u64::from(*at) << shift;
                    hash = *below;
                    level -= 1;
                }
                _ => return Err(damaged("is empty")),
            },
        }
    }
}

/// The nodes directly below a stored node, or nothing at level 0; for the collector.
pub(crate) fn below<V: Value>(bytes: &[u8], level: u8) -> Result<Below<V>> {
    match Node::<V>::decode(bytes, level)?.entries {
        Entries::Leaf(values) => Ok(Below::Values(values.into_values().collect())),
        Entries::Inner(children) => Ok(Below::Nodes(
            children
                .into_values()
                .filter_map(|child| match child {
                    Child::Stored(hash) => Some(hash),
                    Child::Loaded(_) => None,
                })
                .collect(),
        )),
    }
}

/// What a stored node points to.
pub(crate) enum Below<V> {
    Nodes(Vec<Hash>),
    Values(Vec<V>),
}
