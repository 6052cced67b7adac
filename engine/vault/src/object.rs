//! One object of an object set, as the send stream describes it, and its blocks.
//!
//! Owns: the stored form of an object and of a block's reference. Leaves changing them to [`crate::apply`],
//! and the set they are in to [`crate::objset`].

use flocker_store::StoreError;
use serde::{Deserialize, Serialize};
use zfs_stream::Compression;

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::hash::{Hash, Kind};
use crate::tree::{self, Root, Tree, Value, Visit};

type Result<T> = std::result::Result<T, StoreError>;

/// `DMU_OT_PLAIN_FILE_CONTENTS`.
pub(crate) const OT_PLAIN_FILE: u32 = 19;
/// `DMU_OT_ZNODE`: the bonus of files before system attributes.
pub(crate) const OT_ZNODE: u32 = 17;
/// `DMU_OT_SA`: the bonus of files.
pub(crate) const OT_SA: u32 = 44;

/// Where a block's payload is, and how it is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockRef {
    /// Name of the payload, which is what the WRITE record carried.
    pub(crate) hash: Hash,
    /// Bytes of the payload.
    pub(crate) payload_len: u32,
    /// Compression of the payload in ZFS's numbers; 0: the payload is the block.
    pub(crate) compression: u8,
}

impl BlockRef {
    pub(crate) fn compression(&self) -> Compression {
        Compression(self.compression)
    }
}

impl Value for BlockRef {
    const LEN: usize = 37;
    const KIND: Kind = Kind::Blocks;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.0);
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.push(self.compression);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (hash, rest) = bytes.split_first_chunk::<32>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let [compression] = rest else {
            return None;
        };
        Some(BlockRef {
            hash: Hash(*hash),
            payload_len: u32::from_le_bytes(*len),
            compression: *compression,
        })
    }
}

/// The tree from object number to object holds the hashes of [`Object`]s.
impl Value for Hash {
    const LEN: usize = 32;
    const KIND: Kind = Kind::Objset;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Hash)
    }
}

/// The blocks of an object. A single block, which is what most files have, needs no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Data {
    /// A tree from block number to block; also how "no block at all" is said.
    Tree(Root),
    /// Block 0 and no other.
    One(BlockRef),
}

impl Default for Data {
    fn default() -> Self {
        Data::Tree(Root(None))
    }
}

/// The spill block of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpillRef {
    /// Bytes of the block.
    pub(crate) length: u32,
    /// Its payload.
    pub(crate) block: BlockRef,
}

/// An object as a snapshot has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Object {
    /// `dmu_object_type_t`.
    pub(crate) object_type: u32,
    /// `dmu_object_type_t` of the bonus.
    pub(crate) bonus_type: u32,
    /// Bytes of every block of this object.
    pub(crate) block_size: u32,
    /// Bytes of the bonus that count.
    pub(crate) bonus_len: u32,
    /// The bonus with its padding, as the record carried it.
    pub(crate) bonus: Vec<u8>,
    pub(crate) checksum_type: u8,
    pub(crate) compress: u8,
    /// Dnode slots as the record said it; see [`Object::slots`].
    pub(crate) dn_slots: u8,
    /// Flags of the OBJECT record but the one that says whether there is a spill block.
    pub(crate) flags: u8,
    /// Where the object ends: from here on everything is free (`(maxblkid + 1) * block_size`), bytes.
    pub(crate) end: u64,
    /// The spill block.
    pub(crate) spill: Option<SpillRef>,
    /// Bytes of payload in blocks and spill.
    pub(crate) payload_bytes: u64,
    /// The blocks.
    pub(crate) data: Data,
}

impl Object {
    /// Stores the object.
    pub(crate) fn store(&self, blocks: &impl WriteBlocks) -> Result<Hash> {
        let bytes = postcard::to_stdvec(self).map_err(|e| StoreError::Corrupt {
            path: "packs".into(),
            detail: format!("an object cannot be encoded: {e}"),
        })?;
        blocks.put(Kind::Object, &bytes)
    }

    /// Loads an object.
    pub(crate) fn load(blocks: &impl ReadBlocks, hash: &Hash) -> Result<Self> {
        Self::decode(&blocks.get(Kind::Object, hash)?)
    }

    /// Takes a stored object apart.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        postcard::from_bytes(bytes).map_err(|e| StoreError::Corrupt {
            path: "packs".into(),
            detail: format!("an object cannot be decoded: {e}"),
        })
    }

    /// Dnode slots: senders of pool version 23 leave the field 0, which means 1.
    pub(crate) fn slots(&self) -> u8 {
        self.dn_slots.max(1)
    }

    /// The number of block pointers the dnode has, as `deduce_nblkptr` of OpenZFS finds it.
    pub(crate) fn block_pointers(&self) -> u32 {
        if self.bonus_type == OT_SA {
            return 1;
        }
        let room = u32::from(self.slots()) * 512 - 64 - 128;
        1 + (room.saturating_sub(self.bonus_len) >> 7).min(2)
    }

    /// The generation of the file that this object is, where its bonus has one: another generation under
    /// the same number is another file.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.attribute(16, 64)
    }

    /// The size of the file that this object is, where its bonus says, bytes.
    pub(crate) fn file_size(&self) -> Option<u64> {
        self.attribute(8, 80)
    }

    /// An attribute by its place behind the header of system attributes (`SA_*_OFFSET` in `zfs_sa.h`),
    /// or in the old `znode_phys_t`.
    fn attribute(&self, in_sa: usize, in_znode: usize) -> Option<u64> {
        let at = match self.bonus_type {
            OT_SA => {
                // sa_hdr_phys_t: magic, then layout and header size in 8-byte words above bit 10.
                let (magic, rest) = self.bonus.split_first_chunk::<4>()?;
                let info = u16::from_le_bytes(*rest.first_chunk()?);
                if u32::from_le_bytes(*magic) != 0x002F_505A {
                    return None;
                }
                usize::from(info >> 10) * 8 + in_sa
            }
            OT_ZNODE => in_znode,
            _ => return None,
        };
        let bytes = self.bonus.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    /// Whether `self` under the number of `before` is built so differently that a receiver may not keep
    /// its blocks: another file, or the same one with blocks of another size.
    pub(crate) fn replaces(&self, before: &Object) -> bool {
        self.object_type != before.object_type
            || self.bonus_type != before.bonus_type
            || self.block_size != before.block_size
            || self.slots() != before.slots()
            || self.block_pointers() != before.block_pointers()
            || self.generation() != before.generation()
    }
}

/// Walks the blocks in which two objects differ, in ascending order.
pub(crate) fn diff_data(
    blocks: &impl ReadBlocks,
    from: Data,
    to: Data,
    visit: &mut Visit<'_, BlockRef>,
) -> Result<()> {
    let first = |data: Data| match data {
        Data::One(block) => Ok(Some(block)),
        Data::Tree(root) => Tree::open(root).get(blocks, 0),
    };
    let rest = |data: Data| match data {
        Data::One(_) => Root(None),
        Data::Tree(root) => root,
    };
    if let (Data::Tree(from), Data::Tree(to)) = (from, to) {
        return tree::diff(blocks, from, to, visit);
    }
    let (a, b): (Option<BlockRef>, Option<BlockRef>) = (first(from)?, first(to)?);
    if a != b {
        visit(0, a, b)?;
    }
    tree::diff(blocks, rest(from), rest(to), &mut |at, a, b| match at {
        0 => Ok(()),
        _ => visit(at, a, b),
    })
}
