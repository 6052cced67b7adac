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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Free, FreeObjects, ObjectRange, Redact, WriteByRef};

    fn check(record: Record, features: Features) -> Result<(), Nonsense> {
        super::check(&record, &Begin { features, ..Begin::default() })
    }
    fn write(change: impl Fn(&mut Write)) -> Record {
        let mut write = Write { object: 1, logical_size: 4096, ..Write::default() };
        change(&mut write);
        Record::Write(write)
    }
    fn object(change: impl Fn(&mut Object)) -> Record {
        let mut object =
            Object { object: 1, object_type: 19, block_size: 512, ..Object::default() };
        change(&mut object);
        Record::Object(object)
    }
    fn embedded(change: impl Fn(&mut WriteEmbedded)) -> Record {
        let mut embedded = WriteEmbedded {
            object: 1,
            length: 512,
            logical_size: 512,
            physical_size: 60,
            compression: Compression::LZ4,
            ..WriteEmbedded::default()
        };
        change(&mut embedded);
        Record::WriteEmbedded(embedded)
    }
    const EMBEDDED: Features = Features::EMBED_DATA;

    #[test]
    fn object_numbers_are_from_1_to_2_to_the_48th() {
        for bad in [0, MAX_OBJECT + 1, u64::MAX] {
            let refused = Err(Nonsense::ObjectNumber(bad));
            assert_eq!(check(write(|w| w.object = bad), Features::NONE), refused);
            assert_eq!(check(object(|o| o.object = bad), Features::NONE), refused);
            assert_eq!(check(embedded(|e| e.object = bad), EMBEDDED), refused);
            let free = Free { object: bad, ..Free::default() };
            assert_eq!(check(Record::Free(free), Features::NONE), refused);
            let spill = Spill { object: bad, length: 512, ..Spill::default() };
            assert_eq!(check(Record::Spill(spill), Features::NONE), refused);
            let redact = Redact { object: bad, ..Redact::default() };
            assert_eq!(check(Record::Redact(redact), Features::REDACTED), refused);
        }
        assert_eq!(check(write(|w| w.object = MAX_OBJECT), Features::NONE), Ok(()));
    }

    #[test]
    fn a_range_that_wraps_is_refused_but_for_the_free_to_the_end() {
        let from = u64::MAX - 100;
        let wraps = |length| Err(Nonsense::Range { from, length });
        assert_eq!(check(write(|w| w.offset = from), Features::NONE), wraps(4096));
        assert_eq!(check(embedded(|e| e.offset = from), EMBEDDED), wraps(512));
        let free = |length| Record::Free(Free { object: 1, offset: from, length, to_guid: 0 });
        assert_eq!(check(free(200), Features::NONE), wraps(200));
        assert_eq!(check(free(TO_OBJECT_END), Features::NONE), Ok(()));
        let free_objects = FreeObjects { first: from, count: 200, to_guid: 0 };
        assert_eq!(check(Record::FreeObjects(free_objects), Features::NONE), wraps(200));
        let redact = Redact { object: 1, offset: from, length: 200, to_guid: 0 };
        assert_eq!(check(Record::Redact(redact), Features::REDACTED), wraps(200));
        let by_ref =
            WriteByRef { object: 1, length: 512, ref_offset: from, ..WriteByRef::default() };
        assert_eq!(check(Record::WriteByRef(by_ref), Features::DEDUP), wraps(512));
    }

    #[test]
    fn blocks_have_512_bytes_to_16_mib_and_large_ones_are_announced() {
        for bad in [0, 511, (16 << 20) + 1] {
            let refused = Err(Nonsense::BlockSize(bad));
            assert_eq!(check(write(|w| w.logical_size = bad), Features::LARGE_BLOCKS), refused);
            assert_eq!(
                check(object(|o| o.block_size = bad as u32), Features::LARGE_BLOCKS),
                refused
            );
        }
        let large = write(|w| w.logical_size = MAX_SMALL_BLOCK + 512);
        assert!(matches!(check(large.clone(), Features::NONE), Err(Nonsense::Unannounced { .. })));
        assert_eq!(check(large, Features::LARGE_BLOCKS), Ok(()));
    }

    #[test]
    fn compression_shrinks_exists_and_is_announced() {
        let compressed = |size, algorithm| {
            write(move |w| (w.compressed_size, w.compression) = (size, Compression(algorithm)))
        };
        let with = Features::COMPRESSED;
        assert_eq!(check(compressed(4096, 15), with), Ok(()));
        assert_eq!(
            check(compressed(4097, 15), with),
            Err(Nonsense::Expanding { compressed: 4097, logical: 4096 })
        );
        assert_eq!(
            check(compressed(0, 15), with),
            Err(Nonsense::Expanding { compressed: 0, logical: 4096 })
        );
        assert_eq!(
            check(compressed(512, 17), with),
            Err(Nonsense::UnknownCompression(Compression(17)))
        );
        assert_eq!(
            check(compressed(512, 0), with),
            Err(Nonsense::CompressedSizeWithoutCompression(512))
        );
        assert!(matches!(
            check(compressed(512, 15), Features::NONE),
            Err(Nonsense::Unannounced { .. })
        ));
        assert_eq!(check(compressed(512, 15), Features::RAW), Ok(()));
    }

    #[test]
    fn embedded_blocks_fit_and_are_not_raw() {
        assert_eq!(check(embedded(|_| ()), EMBEDDED), Ok(()));
        assert_eq!(
            check(embedded(|e| e.logical_size = 513), EMBEDDED),
            Err(Nonsense::BlockSize(513))
        );
        assert!(matches!(
            check(embedded(|e| e.logical_size = 59), EMBEDDED),
            Err(Nonsense::Expanding { .. })
        ));
        assert_eq!(check(embedded(|_| ()), EMBEDDED | Features::RAW), Err(Nonsense::NotInRaw));
        assert!(matches!(
            check(embedded(|_| ()), Features::NONE),
            Err(Nonsense::Unannounced { .. })
        ));
    }

    #[test]
    fn a_bonus_fits_into_its_dnode() {
        let too_long = |bonus_len, slots| Err(Nonsense::BonusTooLong { bonus_len, slots });
        assert_eq!(check(object(|o| o.bonus_len = 320), Features::NONE), Ok(()));
        assert_eq!(check(object(|o| o.bonus_len = 321), Features::NONE), too_long(321, 1));
        let slots = |n, len| object(move |o| (o.dn_slots, o.bonus_len) = (n, len));
        assert_eq!(check(slots(2, 832), Features::LARGE_DNODE), Ok(()));
        assert_eq!(check(slots(33, 0), Features::LARGE_DNODE), too_long(0, 33));
        assert!(matches!(check(slots(2, 0), Features::NONE), Err(Nonsense::Unannounced { .. })));
        let raw = |raw, len| object(move |o| (o.raw_bonus_len, o.bonus_len) = (raw, len));
        assert_eq!(check(raw(320, 176), Features::RAW), Ok(()));
        let short = Err(Nonsense::RawBonusTooShort { raw: 8, bonus_len: 176 });
        assert_eq!(check(raw(8, 176), Features::RAW), short);
        assert!(matches!(check(raw(320, 176), Features::NONE), Err(Nonsense::Unannounced { .. })));
        assert_eq!(
            check(object(|o| o.object_type = 0), Features::NONE),
            Err(Nonsense::NoObjectType)
        );
    }

    #[test]
    fn spill_blocks_have_a_size_of_their_own_only_in_raw_streams() {
        let spill = |compressed_size| {
            Record::Spill(Spill { object: 1, length: 512, compressed_size, ..Spill::default() })
        };
        assert_eq!(check(spill(0), Features::NONE), Ok(()));
        assert!(matches!(check(spill(512), Features::NONE), Err(Nonsense::Unannounced { .. })));
        assert_eq!(check(spill(512), Features::RAW), Ok(()));
        assert!(matches!(check(spill(513), Features::RAW), Err(Nonsense::Expanding { .. })));
    }

    #[test]
    fn a_range_of_dnodes_is_one_block_of_them() {
        let range = |first, slots| {
            Record::ObjectRange(ObjectRange { first, slots, ..ObjectRange::default() })
        };
        assert_eq!(check(range(64, 32), Features::RAW), Ok(()));
        for (first, slots) in [(1, 32), (64, 31), (MAX_OBJECT, 32)] {
            assert_eq!(
                check(range(first, slots), Features::RAW),
                Err(Nonsense::ObjectRange { first, slots })
            );
        }
        assert!(matches!(check(range(64, 32), Features::NONE), Err(Nonsense::Unannounced { .. })));
    }
}
