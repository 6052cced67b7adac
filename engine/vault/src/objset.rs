//! An object set being changed.
//!
//! Owns: the trees from object number to object and (of a sealed set) from block of dnodes to what seals it,
//! the one object that is open, and letting all go from memory as they grow. Leaves the meaning of records to [`crate::apply`] and of files to [`crate::dir`].

use flocker_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::blockmap::BlockMap;
use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::hash::{Hash, Kind};
use crate::object::{BlockRef, Envelope, Object};
use crate::tree::{Root, Tree};

type Result<T> = std::result::Result<T, StoreError>;

/// Tree nodes held in memory before they are stored, each of about 4 KiB.
const LOADED_NODES: usize = 1500;

/// An object set as a snapshot has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct SetRoot {
    /// The tree from object number to object.
    pub(crate) objects: Root,
    /// The tree from the number of a block of dnodes to what seals it; empty unless the set is sealed.
    pub(crate) ranges: Root,
    /// Bytes of payload that the objects refer to.
    pub(crate) referenced_bytes: u64,
}

/// An object set being changed.
#[derive(Debug)]
pub(crate) struct Objset {
    tree: Tree<Hash>,
    ranges: Tree<Envelope>,
    referenced_bytes: u64,
    open: Option<Open>,
}

/// The object that is open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) number: u64,
    pub(crate) object: Object,
    blocks: BlockMap,
    dirty: bool,
    /// What the set counts for it.
    counted_bytes: u64,
}

impl Open {
    fn new(number: u64, object: Object, counted_bytes: u64, dirty: bool) -> Result<Self> {
        let blocks = BlockMap::open(object.data, object.raw.is_some())?;
        Ok(Open { number, object, blocks, dirty, counted_bytes })
    }

    /// The block of this number.
    pub(crate) fn block(&self, blocks: &impl ReadBlocks, at: u64) -> Result<Option<BlockRef>> {
        self.blocks.get(blocks, at)
    }

    /// Stores a payload as the block of this number.
    pub(crate) fn write(
        &mut self,
        blocks: &impl WriteBlocks,
        at: u64,
        payload: &[u8],
        compression: u8,
        envelope: Option<Envelope>,
    ) -> Result<()> {
        let hash = blocks.put(Kind::Data, payload)?;
        let payload_len = u32::try_from(payload.len()).map_err(|_| StoreError::Corrupt {
            path: "packs".into(),
            detail: "a block beyond 4 GiB".into(),
        })?;
        let block = BlockRef { hash, payload_len, compression, envelope };
        self.insert(blocks, at, block)
    }

    /// Sets the block of this number.
    pub(crate) fn insert(
        &mut self,
        blocks: &impl WriteBlocks,
        at: u64,
        block: BlockRef,
    ) -> Result<()> {
        let before = self.blocks.insert(blocks, at, block)?;
        let before = before.map_or(0, |b| u64::from(b.payload_len));
        self.object.payload_bytes += u64::from(block.payload_len);
        self.object.payload_bytes -= before;
        let end = at.saturating_add(1).saturating_mul(u64::from(self.object.block_size));
        self.object.end = self.object.end.max(end);
        self.dirty = true;
        if self.blocks.loaded() > LOADED_NODES {
            self.blocks.flush(blocks)?;
        }
        Ok(())
    }

    /// Makes holes of the blocks from `first` to `last`.
    pub(crate) fn punch(&mut self, blocks: &impl ReadBlocks, first: u64, last: u64) -> Result<()> {
        let mut freed = 0;
        self.blocks.remove_range(blocks, first, last, &mut |_, block| {
            freed += u64::from(block.payload_len);
            Ok(())
        })?;
        self.object.payload_bytes -= freed;
        self.dirty |= freed > 0;
        Ok(())
    }

    /// The object's own fields, to be changed.
    pub(crate) fn change(&mut self) -> &mut Object {
        self.dirty = true;
        &mut self.object
    }
}

impl Objset {
    /// The set of a snapshot.
    pub(crate) fn open(root: SetRoot) -> Self {
        Objset {
            tree: Tree::open(root.objects),
            ranges: Tree::open(root.ranges),
            referenced_bytes: root.referenced_bytes,
            open: None,
        }
    }

    /// Opens an object, storing the one that was open.
    pub(crate) fn object(
        &mut self,
        blocks: &impl WriteBlocks,
        number: u64,
    ) -> Result<Option<&mut Open>> {
        if self.open.as_ref().is_none_or(|o| o.number != number) {
            self.close(blocks)?;
            if let Some(hash) = self.tree.get(blocks, number)? {
                let object = Object::load(blocks, &hash)?;
                let counted = object.payload_bytes;
                self.open = Some(Open::new(number, object, counted, false)?);
            }
        }
        Ok(self.open.as_mut())
    }

    /// Puts an object, and opens it.
    pub(crate) fn put(
        &mut self,
        blocks: &impl WriteBlocks,
        number: u64,
        object: Object,
    ) -> Result<&mut Open> {
        let before = self.object(blocks, number)?;
        let counted = before.map_or(0, |open| open.counted_bytes);
        // Whatever was open is stored or replaced, so its blocks are those that `object` says.
        Ok(self.open.insert(Open::new(number, object, counted, true)?))
    }

    /// The hash of a stored object; the open one is stored first.
    pub(crate) fn hash(&mut self, blocks: &impl WriteBlocks, number: u64) -> Result<Option<Hash>> {
        if self.open.as_ref().is_some_and(|o| o.number == number) {
            self.close(blocks)?;
        }
        self.tree.get(blocks, number)
    }

    /// Frees the objects from `first` to `last`.
    pub(crate) fn free_objects(
        &mut self,
        blocks: &impl WriteBlocks,
        first: u64,
        last: u64,
    ) -> Result<()> {
        self.close(blocks)?;
        let referenced = &mut self.referenced_bytes;
        self.tree.remove_range(blocks, first, last, &mut |_, hash| {
            *referenced -= Object::load(blocks, &hash)?.payload_bytes.min(*referenced);
            Ok(())
        })
    }

    /// Stores the open object.
    pub(crate) fn close(&mut self, blocks: &impl WriteBlocks) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if !open.dirty {
            return Ok(());
        }
        open.object.data = open.blocks.finish(blocks)?;
        let hash = open.object.store(blocks)?;
        self.tree.insert(blocks, open.number, hash)?;
        self.referenced_bytes =
            (self.referenced_bytes + open.object.payload_bytes).saturating_sub(open.counted_bytes);
        if self.tree.loaded() > LOADED_NODES {
            self.tree.flush(blocks)?;
        }
        Ok(())
    }

    /// Stores everything and says what the set is now.
    pub(crate) fn finish(&mut self, blocks: &impl WriteBlocks) -> Result<SetRoot> {
        self.close(blocks)?;
        Ok(SetRoot {
            objects: self.tree.flush(blocks)?,
            ranges: self.ranges.flush(blocks)?,
            referenced_bytes: self.referenced_bytes,
        })
    }

    /// What seals a block of dnodes.
    pub(crate) fn range(&self, blocks: &impl ReadBlocks, at: u64) -> Result<Option<Envelope>> {
        self.ranges.get(blocks, at)
    }

    /// Says what seals a block of dnodes.
    pub(crate) fn set_range(
        &mut self,
        blocks: &impl WriteBlocks,
        at: u64,
        envelope: Envelope,
    ) -> Result<()> {
        self.ranges.insert(blocks, at, envelope)?;
        if self.ranges.loaded() > LOADED_NODES {
            self.ranges.flush(blocks)?;
        }
        Ok(())
    }

    /// The blocks of dnodes from `first` to `last` are gone.
    pub(crate) fn free_ranges(
        &mut self,
        blocks: &impl WriteBlocks,
        first: u64,
        last: u64,
    ) -> Result<()> {
        self.ranges.remove_range(blocks, first, last, &mut |_, _| Ok(()))
    }
}
