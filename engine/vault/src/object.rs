//! One object of an object set, as the send stream describes it, and its blocks.
//!
//! Owns: the stored form of an object and of a block's reference. Leaves changing them to [`crate::apply`],
//! and the set they are in to [`crate::objset`].

use flocker_store::StoreError;
use serde::{Deserialize, Serialize};
use zfs_stream::format::data_flag;
use zfs_stream::record::Crypt;
use zfs_stream::{Compression, record};

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

/// What has to be known beside the bytes of a sealed (raw encrypted) block to open it, or to hand it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    salt: [u8; 8],
    iv: [u8; 12],
    mac: [u8; 16],
    /// Whether the block is in the other byte order than the stream was ([`data_flag::RAW_BYTESWAP`]).
    byteswap: bool,
}

impl Envelope {
    /// From the fields of a raw record.
    pub(crate) fn new(crypt: &Crypt, flags: u8) -> Self {
        let Crypt { salt, iv, mac } = *crypt;
        Envelope { salt, iv, mac, byteswap: flags & data_flag::RAW_BYTESWAP != 0 }
    }

    /// As a raw record has it.
    pub(crate) fn crypt(&self) -> Crypt {
        Crypt { salt: self.salt, iv: self.iv, mac: self.mac }
    }

    /// The flag of a raw record that belongs to it.
    pub(crate) fn flags(&self) -> u8 {
        if self.byteswap { data_flag::RAW_BYTESWAP } else { 0 }
    }
}

/// The tree from the number of a block of dnodes to what seals that block, of a sealed object set.
impl Value for Envelope {
    const LEN: usize = 37;
    const KIND: Kind = Kind::Ranges;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.iv);
        out.extend_from_slice(&self.mac);
        out.push(u8::from(self.byteswap));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (salt, rest) = bytes.split_first_chunk::<8>()?;
        let (iv, rest) = rest.split_first_chunk::<12>()?;
        let (mac, rest) = rest.split_first_chunk::<16>()?;
        let byteswap = match rest {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        Some(Envelope { salt: *salt, iv: *iv, mac: *mac, byteswap })
    }
}

/// Where a block's payload is, and how it is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockRef {
    /// Name of the payload, which is what the WRITE record carried.
    pub(crate) hash: Hash,
    /// Bytes of the payload.
    pub(crate) payload_len: u32,
    /// Compression of the payload in ZFS's numbers; 0: the payload is the block.
    pub(crate) compression: u8,
    /// Of a block of a sealed object; its compression is that of what is inside.
    pub(crate) envelope: Option<Envelope>,
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
            envelope: None,
        })
    }
}

/// A block of a sealed object, as its tree holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedRef(pub(crate) BlockRef, pub(crate) Envelope);

impl SealedRef {
    /// The block with its envelope.
    pub(crate) fn block(self) -> BlockRef {
        BlockRef { envelope: Some(self.1), ..self.0 }
    }
}

impl Value for SealedRef {
    const LEN: usize = BlockRef::LEN + Envelope::LEN;
    const KIND: Kind = Kind::Sealed;

    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (block, envelope) = bytes.split_at_checked(BlockRef::LEN)?;
        Some(SealedRef(BlockRef::decode(block)?, Envelope::decode(envelope)?))
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
    /// A tree of the blocks of a sealed object, however many they are.
    Sealed(Root),
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

/// How the dnode of a sealed object is built. A receiver has to build the same, since the MACs above cover
/// it, and cannot look inside to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RawShape {
    /// log2 of the indirect block size.
    pub(crate) indblkshift: u8,
    /// Levels of the block tree.
    pub(crate) nlevels: u8,
    /// Block pointers in the dnode.
    pub(crate) nblkptr: u8,
    /// The last block's number.
    pub(crate) maxblkid: u64,
}

impl RawShape {
    /// From the fields of a raw OBJECT record.
    pub(crate) fn of(r: &record::Object) -> Self {
        let record::Object { indblkshift, nlevels, nblkptr, maxblkid, .. } = *r;
        RawShape { indblkshift, nlevels, nblkptr, maxblkid }
    }
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
    /// The bonus with its padding, as the record carried it; of a sealed object the whole bonus area.
    pub(crate) bonus: Vec<u8>,
    pub(crate) checksum_type: u8,
    pub(crate) compress: u8,
    /// Dnode slots as the record said it; see [`Object::slots`].
    pub(crate) dn_slots: u8,
    /// Flags of the OBJECT record but the one that says whether there is a spill block.
    pub(crate) flags: u8,
    /// Where the object ends: from here on everything is free (`(maxblkid + 1) * block_size`), bytes.
    pub(crate) end: u64,
    /// Of a sealed object: how its dnode is built.
    pub(crate) raw: Option<RawShape>,
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
        if self.raw.is_some() {
            return None; // what is sealed may look like anything
        }
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
            || self.rebuilds(before)
    }

    /// Whether a receiver has to build a sealed object anew to give its dnode the new shape
    /// (`receive_handle_existing_object` of OpenZFS, raw).
    pub(crate) fn rebuilds(&self, before: &Object) -> bool {
        match (self.raw, before.raw) {
            (None, None) => false,
            (Some(raw), Some(before)) => {
                raw.indblkshift != before.indblkshift || raw.nlevels < before.nlevels
            }
            (Some(_), None) | (None, Some(_)) => true,
        }
    }
}

/// Walks the blocks in which two objects differ, in ascending order.
pub(crate) fn diff_data(
    blocks: &impl ReadBlocks,
    from: Data,
    to: Data,
    visit: &mut Visit<'_, BlockRef>,
) -> Result<()> {
    if let (Data::Tree(from), Data::Tree(to)) = (from, to) {
        return tree::diff(blocks, from, to, visit);
    }
    if let (Data::Sealed(_), _) | (_, Data::Sealed(_)) = (from, to) {
        let (from, to) = (sealed_root(from)?, sealed_root(to)?);
        return tree::diff::<SealedRef>(blocks, from, to, &mut |at, a, b| {
            visit(at, a.map(SealedRef::block), b.map(SealedRef::block))
        });
    }
    let first = |data: Data| match data {
        Data::One(block) => Ok(Some(block)),
        Data::Tree(root) | Data::Sealed(root) => Tree::open(root).get(blocks, 0),
    };
    let rest = |data: Data| match data {
        Data::One(_) => Root(None),
        Data::Tree(root) | Data::Sealed(root) => root,
    };
    let (a, b): (Option<BlockRef>, Option<BlockRef>) = (first(from)?, first(to)?);
    if a != b {
        visit(0, a, b)?;
    }
    tree::diff(blocks, rest(from), rest(to), &mut |at, a, b| match at {
        0 => Ok(()),
        _ => visit(at, a, b),
    })
}

/// The tree of a sealed object, or of one that has no block yet.
pub(crate) fn sealed_root(data: Data) -> Result<Root> {
    match data {
        Data::Sealed(root) => Ok(root),
        Data::Tree(Root(None)) => Ok(Root(None)),
        Data::Tree(_) | Data::One(_) => Err(StoreError::Corrupt {
            path: "packs".into(),
            detail: "an object that is sealed has blocks that are not".into(),
        }),
    }
}
