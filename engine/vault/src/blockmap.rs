//! The blocks of an open object: a tree of plain blocks, or of sealed ones.
//!
//! Owns: that the rest need not know which it is. An object is one or the other for life.

use flocker_store::StoreError;

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::object::{self, BlockRef, Data, SealedRef};
use crate::tree::Tree;

type Result<T> = std::result::Result<T, StoreError>;

/// The map from block number to block.
#[derive(Debug)]
pub(crate) enum BlockMap {
    Plain(Tree<BlockRef>),
    Sealed(Tree<SealedRef>),
}

impl BlockMap {
    /// The map that an object's data is.
    pub(crate) fn open(data: Data, sealed: bool) -> Result<Self> {
        if sealed {
            return object::sealed_root(data).map(|root| BlockMap::Sealed(Tree::open(root)));
        }
        match data {
            Data::Tree(root) => Ok(BlockMap::Plain(Tree::open(root))),
            Data::One(block) => Ok(BlockMap::Plain(Tree::of_one(block))),
            Data::Sealed(_) => Err(mixed()),
        }
    }

    /// How many nodes are in memory.
    pub(crate) fn loaded(&self) -> usize {
        match self {
            BlockMap::Plain(tree) => tree.loaded(),
            BlockMap::Sealed(tree) => tree.loaded(),
        }
    }

    /// The block of this number.
    pub(crate) fn get(&self, blocks: &impl ReadBlocks, at: u64) -> Result<Option<BlockRef>> {
        match self {
            BlockMap::Plain(tree) => tree.get(blocks, at),
            BlockMap::Sealed(tree) => Ok(tree.get(blocks, at)?.map(SealedRef::block)),
        }
    }

    /// Sets a block, and returns what was there.
    pub(crate) fn insert(
        &mut self,
        blocks: &impl ReadBlocks,
        at: u64,
        block: BlockRef,
    ) -> Result<Option<BlockRef>> {
        match (self, block.envelope) {
            (BlockMap::Plain(tree), None) => tree.insert(blocks, at, block),
            (BlockMap::Sealed(tree), Some(envelope)) => {
                let bare = BlockRef { envelope: None, ..block };
                let before = tree.insert(blocks, at, SealedRef(bare, envelope))?;
                Ok(before.map(SealedRef::block))
            }
            (BlockMap::Plain(_), Some(_)) | (BlockMap::Sealed(_), None) => Err(mixed()),
        }
    }

    /// Removes the blocks from `first` to `last` and hands them to `gone`.
    pub(crate) fn remove_range(
        &mut self,
        blocks: &impl ReadBlocks,
        first: u64,
        last: u64,
        gone: &mut impl FnMut(u64, BlockRef) -> Result<()>,
    ) -> Result<()> {
        match self {
            BlockMap::Plain(tree) => tree.remove_range(blocks, first, last, gone),
            BlockMap::Sealed(tree) => {
                tree.remove_range(blocks, first, last, &mut |at, block| gone(at, block.block()))
            }
        }
    }

    /// Stores what changed and lets it go from memory.
    pub(crate) fn flush(&mut self, blocks: &impl WriteBlocks) -> Result<()> {
        match self {
            BlockMap::Plain(tree) => tree.flush(blocks).map(drop),
            BlockMap::Sealed(tree) => tree.flush(blocks).map(drop),
        }
    }

    /// Stores everything and says what the data is now: the same map always as the same value.
    pub(crate) fn finish(&mut self, blocks: &impl WriteBlocks) -> Result<Data> {
        let tree = match self {
            BlockMap::Sealed(tree) => return tree.flush(blocks).map(Data::Sealed),
            BlockMap::Plain(tree) => tree,
        };
        if let Some(block) = tree.only_zero(blocks)? {
            return Ok(Data::One(block));
        }
        let root = tree.flush(blocks)?;
        // Removals may have left block 0 alone under a root that was higher.
        match Tree::open(root).only_zero(blocks)? {
            Some(block) => Ok(Data::One(block)),
            None => Ok(Data::Tree(root)),
        }
    }
}

fn mixed() -> StoreError {
    StoreError::Corrupt {
        path: "packs".into(),
        detail: "sealed and plain blocks in one object".into(),
    }
}
