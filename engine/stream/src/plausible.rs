//! Whether the values of a record make sense in the stream that carries it.
//!
//! Owns: the checks that need only the record and its BEGIN, so that nobody behind the reader has to guard
//! against an offset that overflows or a block that is larger than announced. Leaves out what depends on the
//! receiving dataset. Source of the rules: the `recv_check_drr_*` functions of OpenZFS's `dmu_recv.c`,
//! loosened where old senders (pool version 23) differ.

use crate::format::{
    Compression, DNODES_PER_BLOCK, Features, MAX_OBJECT, MAX_PAYLOAD, MAX_SMALL_BLOCK,
    TO_OBJECT_END,
};
use crate::record::{Begin, HeaderType, Object, Record, Spill, Write, WriteEmbedded};

/// A value that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// Object numbers go from 1 to 2^48.
    #[error("object number {0}")]
    ObjectNumber(u64),
    /// A range beyond 2^64.
    #[error("the range from {from} over {length} does not end before 2^64")]
    Range {
        /// Where it begins.
        from: u64,
        /// Its length.
        length: u64,
    },
    /// A block size outside 512 bytes to 16 MiB.
    #[error("a block of {0} bytes")]
    BlockSize(u64),
    /// A compressed block longer than the block.
    #[error("{compressed} compressed bytes for a block of {logical}")]
    Expanding {
        /// Bytes of the payload.
        compressed: u64,
        /// Bytes of the block.
        logical: u64,
    },
    /// A compressed size with no compression.
    #[error("{0} compressed bytes although the payload is not compressed")]
    CompressedSizeWithoutCompression(u64),
    /// No such compression.
    #[error("{0} does not exist")]
    UnknownCompression(Compression),
    /// Something that BEGIN did not announce.
    #[error("{what} needs the feature {feature}, which BEGIN does not announce")]
    Unannounced {
        /// What needs it.
        what: &'static str,
        /// The feature.
        feature: Features,
    },
    /// A record that a raw stream cannot carry.
    #[error("a raw stream does not carry it")]
    NotInRaw,
    /// An object of type 0.
    #[error("the object has no type")]
    NoObjectType,
    /// A bonus buffer that does not fit into its dnode.
    #[error("a bonus of {bonus_len} bytes in {slots} dnode slots")]
    BonusTooLong {
        /// Bytes of the bonus.
        bonus_len: u32,
        /// Slots, at least 1.
        slots: u8,
    },
    /// A raw bonus that is shorter than the bonus.
    #[error("a raw bonus area of {raw} bytes for a bonus of {bonus_len}")]
    RawBonusTooShort {
        /// Bytes of the raw area.
        raw: u32,
        /// Bytes of the bonus.
        bonus_len: u32,
    },
    /// OBJECT_RANGE that is not one block of dnodes.
    #[error("{slots} dnode slots from object {first} on are not one block of dnodes")]
    ObjectRange {
        /// First object.
        first: u64,
        /// Slots.
        slots: u64,
    },
}

/// Bytes of a dnode before its bonus: 64 of header and one block pointer of 128.
const DNODE_BEFORE_BONUS: u32 = 192;

pub(crate) fn check(record: &Record, begin: &Begin) -> Result<(), Nonsense> {
    let features = begin.features;
    match record {
        Record::Begin(_) | Record::End(_) => Ok(()),
        Record::Object(r) => check_object(r, features),
        Record::FreeObjects(r) => range(r.first, r.count),
        Record::Write(r) => check_write(r, features),
        Record::Free(r) => {
            object_number(r.object)?;
            if r.length == TO_OBJECT_END { Ok(()) } else { range(r.offset, r.length) }
        }
        Record::WriteByRef(r) => {
            object_number(r.object)?;
            need(features, Features::DEDUP, "a write by reference")?;
            block_size(r.length)?;
            range(r.offset, r.length)?;
            range(r.ref_offset, r.length)
        }
        Record::Spill(r) => check_spill(r, features),
        Record::WriteEmbedded(r) => check_embedded(r, features),
        Record::ObjectRange(r) => {
            need(features, Features::RAW, "a range of dnodes")?;
            let aligned = r.slots == DNODES_PER_BLOCK && r.first.is_multiple_of(DNODES_PER_BLOCK);
            if aligned && r.first < MAX_OBJECT {
                Ok(())
            } else {
                Err(Nonsense::ObjectRange { first: r.first, slots: r.slots })
            }
        }
        Record::Redact(r) => {
            need(features, Features::REDACTED, "a redacted range")?;
            object_number(r.object)?;
            range(r.offset, r.length)
        }
    }
}

/// Whether BEGIN itself announces only what is known.
pub(crate) fn features_known(begin: &Begin) -> bool {
    match begin.header_type {
        HeaderType::Substream | HeaderType::Compound => begin.features.unknown() == Features::NONE,
    }
}

fn check_object(r: &Object, features: Features) -> Result<(), Nonsense> {
    object_number(r.object)?;
    if r.object_type == 0 {
        return Err(Nonsense::NoObjectType);
    }
    block_size(u64::from(r.block_size))?;
    large_block(u64::from(r.block_size), features)?;
    let slots = r.dn_slots.max(1);
    if slots > 1 {
        need(features, Features::LARGE_DNODE, "a dnode of several slots")?;
    }
    let room = u32::from(slots) * 512 - DNODE_BEFORE_BONUS;
    if u64::from(slots) > DNODES_PER_BLOCK || r.bonus_len > room || r.raw_bonus_len > room {
        return Err(Nonsense::BonusTooLong { bonus_len: r.bonus_len.max(r.raw_bonus_len), slots });
    }
    if r.raw_bonus_len != 0 {
        need(features, Features::RAW, "a raw bonus")?;
        if r.raw_bonus_len < r.bonus_len {
            return Err(Nonsense::RawBonusTooShort {
                raw: r.raw_bonus_len,
                bonus_len: r.bonus_len,
            });
        }
    }
    Ok(())
}

fn check_write(r: &Write, features: Features) -> Result<(), Nonsense> {
    object_number(r.object)?;
    block_size(r.logical_size)?;
    large_block(r.logical_size, features)?;
    range(r.offset, r.logical_size)?;
    if r.compression == Compression::NONE {
        if r.compressed_size != 0 {
            return Err(Nonsense::CompressedSizeWithoutCompression(r.compressed_size));
        }
        return Ok(());
    }
    if !features.contains(Features::RAW) {
        need(features, Features::COMPRESSED, "a compressed block")?;
    }
    shrinking(r.compressed_size, r.logical_size)?;
    known(r.compression)
}

fn check_spill(r: &Spill, features: Features) -> Result<(), Nonsense> {
    object_number(r.object)?;
    block_size(r.length)?;
    if r.compressed_size == 0 {
        return Ok(());
    }
    need(features, Features::RAW, "a spill block with a size of its own")?;
    shrinking(r.compressed_size, r.length)?;
    known(r.compression)
}

fn check_embedded(r: &WriteEmbedded, features: Features) -> Result<(), Nonsense> {
    object_number(r.object)?;
    need(features, Features::EMBED_DATA, "an embedded block")?;
    if features.contains(Features::RAW) {
        return Err(Nonsense::NotInRaw);
    }
    block_size(r.length)?;
    large_block(r.length, features)?;
    range(r.offset, r.length)?;
    if u64::from(r.logical_size) > r.length {
        return Err(Nonsense::BlockSize(u64::from(r.logical_size)));
    }
    shrinking(u64::from(r.physical_size), u64::from(r.logical_size))?;
    known(r.compression)
}

fn object_number(object: u64) -> Result<(), Nonsense> {
    if (1..=MAX_OBJECT).contains(&object) { Ok(()) } else { Err(Nonsense::ObjectNumber(object)) }
}

fn range(from: u64, length: u64) -> Result<(), Nonsense> {
    from.checked_add(length).map(|_| ()).ok_or(Nonsense::Range { from, length })
}

fn block_size(bytes: u64) -> Result<(), Nonsense> {
    if (512..=MAX_PAYLOAD as u64).contains(&bytes) {
        Ok(())
    } else {
        Err(Nonsense::BlockSize(bytes))
    }
}

fn large_block(bytes: u64, features: Features) -> Result<(), Nonsense> {
    if bytes <= MAX_SMALL_BLOCK {
        Ok(())
    } else {
        need(features, Features::LARGE_BLOCKS, "a block above 128 KiB")
    }
}

fn shrinking(compressed: u64, logical: u64) -> Result<(), Nonsense> {
    if (1..=logical).contains(&compressed) {
        Ok(())
    } else {
        Err(Nonsense::Expanding { compressed, logical })
    }
}

fn known(compression: Compression) -> Result<(), Nonsense> {
    if compression.is_known() { Ok(()) } else { Err(Nonsense::UnknownCompression(compression)) }
}

fn need(features: Features, feature: Features, what: &'static str) -> Result<(), Nonsense> {
    if features.contains(feature) { Ok(()) } else { Err(Nonsense::Unannounced { what, feature }) }
}
