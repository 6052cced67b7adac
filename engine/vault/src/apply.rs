//! Records of a stream, applied to an object set.
//!
//! Owns: what each record does to objects and blocks, as `receive_*` in OpenZFS's `module/zfs/dmu_recv.c` do
//! it, and refusing by name what this store cannot apply. Leaves checksums and the order of records to
//! `zfs_stream::Reader`, and the snapshot to [`crate::receive`].

use zfs_stream::format::{
    DNODES_PER_BLOCK, Features, TO_OBJECT_END, begin_flag, object_flag, spill_flag,
};
use zfs_stream::nvlist::NvList;
use zfs_stream::record::{self, Begin, Record};
use zfs_stream::{Compression, Endian};

use flocker_store::StoreError;

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::codec;
use crate::hash::Kind;
use crate::keydata::Point;
use crate::object::{BlockRef, Data, Envelope, OT_PLAIN_FILE, Object, RawShape, SpillRef};
use crate::objset::{Objset, Open};

/// Why a record was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// The stream is not one that a sender makes.
    Bad(String),
    /// The stream uses a feature that this store does not have.
    Unsupported(String),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for ApplyError {
    fn from(e: StoreError) -> Self {
        ApplyError::Store(e)
    }
}

type Result<T> = std::result::Result<T, ApplyError>;

fn bad<T>(detail: impl Into<String>) -> Result<T> {
    Err(ApplyError::Bad(detail.into()))
}

/// The features that this store cannot apply, by the names ZFS has for them, with the reason.
const REFUSED: [(Features, &str); 3] = [
    (Features::REDACTED, REDACTED),
    (Features::DEDUP, "dedup (its blocks may refer to other datasets)"),
    (Features::DEDUPPROPS, "dedup (its blocks may refer to other datasets)"),
];

const REDACTED: &str = "redacted (what was left out is nowhere to be had, so a standby made of it could not take over)";

/// Features that are about one stream, not about what it says: the next may be without. Embedded blocks are
/// taken out of their block pointers when they arrive.
pub(crate) const OF_THE_STREAM: u64 =
    Features::RESUMING.0 | Features::EMBED_DATA.0 | Features::HOLDS.0;

/// Refuses a stream that this store cannot apply; `payload` is that of BEGIN.
pub(crate) fn check_begin(begin: &Begin, payload: &[u8], endian: Endian) -> Result<()> {
    for (feature, name) in REFUSED {
        if begin.features.contains(feature) {
            return Err(ApplyError::Unsupported(name.into()));
        }
    }
    if endian == Endian::Big {
        return Err(ApplyError::Unsupported(
            "a big-endian stream (its files' attributes are in the sender's byte order)".into(),
        ));
    }
    if payload.is_empty() {
        return Ok(());
    }
    let list = NvList::unpack(payload).map_err(|e| ApplyError::Bad(format!("BEGIN: {e}")))?;
    // An increment from a redaction bookmark announces no feature.
    if ["redact_snaps", "redact_from_snaps"].iter().any(|name| list.get(name).is_some()) {
        return Err(ApplyError::Unsupported(REDACTED.into()));
    }
    Ok(())
}

/// Applies the body of one stream.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) set: Objset,
    full: bool,
    /// Whether the sender says of each object whether it has a spill block.
    tells_spill: bool,
    /// Of a raw stream: the block of dnodes that is open.
    range: Option<u64>,
    raw: bool,
    /// The object whose OBJECT record said that it has a spill block, while it is open.
    with_spill: Option<u64>,
    /// The last record that a stream can go on from.
    point: Option<Point>,
}

impl Applier {
    /// An applier over the object set that the stream starts from.
    pub(crate) fn new(set: Objset, begin: &Begin) -> Self {
        Applier {
            set,
            full: begin.is_full(),
            tells_spill: begin.flags & begin_flag::SPILL_BLOCK != 0,
            range: None,
            raw: begin.features.contains(Features::RAW),
            with_spill: None,
            point: None,
        }
    }

    /// Where a stream that is broken off now can go on: at the last OBJECT or WRITE, again
    /// (`save_resume_state` of OpenZFS).
    pub(crate) fn point(&self) -> Option<Point> {
        self.point
    }

    /// Applies one record of the body.
    pub(crate) fn apply(
        &mut self,
        blocks: &impl WriteBlocks,
        record: &Record,
        payload: &[u8],
    ) -> Result<()> {
        match record {
            Record::Object(r) => {
                self.object(blocks, r, payload)?;
                self.point = Some(Point { object: r.object, offset: 0 });
                Ok(())
            }
            Record::FreeObjects(r) => self.free_objects(blocks, r),
            Record::Write(r) => {
                self.write(blocks, r, payload)?;
                self.point = Some(Point { object: r.object, offset: r.offset });
                Ok(())
            }
            Record::WriteEmbedded(r) if self.is_spill(r) => {
                let block = unpack_embedded(r, payload)?;
                let spill =
                    record::Spill { object: r.object, length: r.length, ..Default::default() };
                self.spill(blocks, &spill, &block)
            }
            Record::WriteEmbedded(r) => {
                self.write_embedded(blocks, r, payload)?;
                self.point = Some(Point { object: r.object, offset: r.offset });
                Ok(())
            }
            Record::Free(r) => {
                self.in_range(r.object)?;
                let open = existing(&mut self.set, blocks, r.object, "FREE")?;
                free(open, blocks, r)
            }
            Record::Spill(r) => self.spill(blocks, r, payload),
            Record::ObjectRange(r) => {
                let at = r.first / DNODES_PER_BLOCK;
                self.range = Some(at);
                self.set.set_range(blocks, at, Envelope::new(&r.crypt, r.flags))?;
                Ok(())
            }
            Record::WriteByRef(_) => Err(ApplyError::Unsupported("dedup".into())),
            Record::Redact(_) => Err(ApplyError::Unsupported(REDACTED.into())),
            Record::Begin(_) | Record::End(_) => bad("a record out of its place"),
        }
    }

    /// In a raw stream whatever happens to an object happens under the OBJECT_RANGE of its block of dnodes:
    /// without that a receiver could not seal the block as it was.
    fn in_range(&self, object: u64) -> Result<()> {
        if self.raw && self.range != Some(object / DNODES_PER_BLOCK) {
            return bad(format!("object {object} of a raw stream outside of its OBJECT_RANGE"));
        }
        Ok(())
    }

    fn free_objects(&mut self, blocks: &impl WriteBlocks, r: &record::FreeObjects) -> Result<()> {
        let (first, end) = (r.first.max(1), r.first.saturating_add(r.count));
        if first >= end {
            return Ok(());
        }
        if self.raw {
            self.free_ranges(blocks, r.first, end)?;
        }
        self.set.free_objects(blocks, first, end - 1)?;
        Ok(())
    }

    /// Blocks of dnodes of which nothing is left are holes, which nothing seals. The one that is open stays,
    /// and another of which something is left would need an OBJECT_RANGE.
    fn free_ranges(&mut self, blocks: &impl WriteBlocks, first: u64, end: u64) -> Result<()> {
        let (whole, whole_end) = (first.div_ceil(DNODES_PER_BLOCK), end / DNODES_PER_BLOCK);
        let ends = [(first, first / DNODES_PER_BLOCK), (end, whole_end)];
        for (at, range) in ends {
            let partly = !at.is_multiple_of(DNODES_PER_BLOCK) && self.range != Some(range);
            if partly && self.set.range(blocks, range)?.is_some() {
                return bad(format!("FREEOBJECTS to {at} of a raw stream without OBJECT_RANGE"));
            }
        }
        let mut spans = vec![(whole, whole_end)];
        if let Some(open) = self.range
            && (whole..whole_end).contains(&open)
        {
            spans = vec![(whole, open), (open + 1, whole_end)];
        }
        for (first, end) in spans.into_iter().filter(|(first, end)| first < end) {
            self.set.free_ranges(blocks, first, end - 1)?;
        }
        Ok(())
    }

    /// How the dnode of an object of a raw stream is built; `None` in any other stream.
    fn raw_shape(&self, r: &record::Object, bonus: &[u8]) -> Result<Option<RawShape>> {
        if !self.raw {
            return Ok(None);
        }
        self.in_range(r.object)?;
        let shape = RawShape::of(r);
        let end = shape.maxblkid.checked_add(1).and_then(|n| n.checked_mul(r.block_size.into()));
        let sealed_bonus = r.bonus_len == 0 || r.raw_bonus_len != 0;
        if end.is_none() || !sealed_bonus || (r.bonus_len == 0 && !bonus.is_empty()) {
            return bad(format!("raw object {}: {shape:?}", r.object));
        }
        Ok(Some(shape))
    }

    fn object(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::Object,
        bonus: &[u8],
    ) -> Result<()> {
        let raw = self.raw_shape(r, bonus)?;
        let blocks_len = raw.map_or(1, |raw| raw.maxblkid + 1);
        let mut object = Object {
            object_type: r.object_type,
            bonus_type: r.bonus_type,
            block_size: r.block_size,
            bonus_len: r.bonus_len,
            bonus: bonus.to_vec(),
            checksum_type: r.checksum_type,
            compress: r.compress,
            dn_slots: r.dn_slots,
            flags: r.flags & !object_flag::SPILL,
            end: blocks_len * u64::from(r.block_size),
            raw,
            spill: None,
            payload_bytes: 0,
            data: Data::default(),
        };
        let has_spill = r.flags & object_flag::SPILL != 0;
        self.with_spill = has_spill.then_some(r.object);
        self.set.close(blocks)?;
        let before = self.set.object(blocks, r.object)?.map(|o| o.object.clone());
        if let Some(before) = &before {
            self.inherit(before, &mut object, has_spill)?;
        }
        if object.dn_slots > 1 {
            // A wider dnode takes the slots of objects that were there.
            let last = r.object + u64::from(object.dn_slots) - 1;
            self.set.free_objects(blocks, r.object + 1, last)?;
        }
        let open = self.set.put(blocks, r.object, object)?;
        if raw.is_some() {
            // Before anything else of it is true, nothing is behind its last block.
            open.punch(blocks, blocks_len, u64::MAX)?;
        }
        Ok(())
    }

    /// What an object that exists keeps when an OBJECT record comes for it.
    fn inherit(&self, before: &Object, object: &mut Object, has_spill: bool) -> Result<()> {
        let other_slots = object.slots() != before.slots();
        let mut freed = other_slots
            || object.block_pointers() < before.block_pointers()
            || object.rebuilds(before);
        if object.block_size != before.block_size {
            let files = object.object_type == OT_PLAIN_FILE && before.object_type == OT_PLAIN_FILE;
            let one_block = before.end <= u64::from(before.block_size);
            if self.full
                || self.raw
                || !files
                || one_block
                || object.generation() != before.generation()
            {
                freed = true;
            } else if object.block_size < before.block_size {
                return bad(
                    "the blocks of a file become smaller: large blocks were sent before (-L), \
                     and may not be left out now",
                );
            } else {
                // The same file, sent with -L after it was sent without: what it has stays as it is.
                object.block_size = before.block_size;
            }
        }
        if !freed {
            object.data = before.data;
            if object.raw.is_none() {
                object.end = before.end.max(u64::from(object.block_size));
            }
            object.payload_bytes = before.payload_bytes;
        }
        let changed = object.object_type != before.object_type
            || object.block_size != before.block_size
            || object.bonus_type != before.bonus_type
            || object.bonus_len != before.bonus_len;
        let keeps = match (other_slots, self.tells_spill, changed) {
            (true, _, _) => false,
            (false, true, _) => has_spill,
            (false, false, changed) => !changed,
        };
        let spill_bytes = |s: &SpillRef| u64::from(s.block.payload_len);
        match (keeps, freed) {
            (true, freed) => {
                object.spill = before.spill;
                if freed {
                    object.payload_bytes += before.spill.as_ref().map_or(0, spill_bytes);
                }
            }
            (false, false) => {
                object.payload_bytes -= before.spill.as_ref().map_or(0, spill_bytes);
            }
            (false, true) => {}
        }
        Ok(())
    }

    fn write(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::Write,
        payload: &[u8],
    ) -> Result<()> {
        self.in_range(r.object)?;
        let envelope = self.raw.then(|| Envelope::new(&r.crypt, r.flags));
        let open = existing(&mut self.set, blocks, r.object, "WRITE")?;
        let size = u64::from(open.object.block_size);
        if !size.is_power_of_two() && r.offset >= size {
            return bad(format!(
                "WRITE at byte {} of object {}, which has a single block of {size} bytes",
                r.offset, r.object
            ));
        }
        if r.logical_size == size && r.offset.is_multiple_of(size) {
            if self.raw && r.compression == Compression::NONE {
                return bad("a raw WRITE that does not say how it is compressed");
            }
            open.write(blocks, r.offset / size, payload, r.compression.0, envelope)?;
            return Ok(());
        }
        if self.raw {
            return bad(format!("a raw WRITE of object {} that is not one block", r.object));
        }
        let len = usize::try_from(r.logical_size).unwrap_or(usize::MAX);
        let plain = codec::decompress(r.compression, payload, len)
            .map_err(|e| ApplyError::Bad(e.to_string()))?;
        overwrite(open, blocks, r.offset, &plain)
    }

    /// Whether an embedded block is a spill block: OpenZFS 2.3 sends one that fits into its block pointer as a
    /// WRITE_EMBEDDED at `DMU_SPILL_BLKID` times its own length, which a receiver takes for data at the end of
    /// the world, and loses (<https://github.com/openzfs/zfs/pull/19091>). No file reaches there, and its
    /// OBJECT said that a spill block comes; so here it is put where it belongs.
    fn is_spill(&self, r: &record::WriteEmbedded) -> bool {
        const SPILL_BLKID: u64 = u64::MAX - 1; // DMU_SPILL_BLKID, -2
        self.tells_spill
            && self.with_spill == Some(r.object)
            && r.offset == SPILL_BLKID.wrapping_mul(r.length)
    }

    /// An embedded block becomes an ordinary one: it is stored as what it says, and sent as a WRITE. So the
    /// way back asks nothing of the receiver (`embedded_data` is a feature of a pool that may lack it, and an
    /// encrypted target refuses it always), and a receiver that embeds small blocks does it by itself. That is
    /// what `zfs send` without `-e` makes of them, too.
    fn write_embedded(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::WriteEmbedded,
        payload: &[u8],
    ) -> Result<()> {
        let block = unpack_embedded(r, payload)?;
        let write = record::Write {
            object: r.object,
            offset: r.offset,
            logical_size: r.length,
            ..Default::default()
        };
        self.write(blocks, &write, &block)
    }

    fn spill(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::Spill,
        payload: &[u8],
    ) -> Result<()> {
        self.in_range(r.object)?;
        let envelope = self.raw.then(|| Envelope::new(&r.crypt, r.flags));
        let open = existing(&mut self.set, blocks, r.object, "SPILL")?;
        if self.tells_spill && r.flags & spill_flag::UNMODIFIED != 0 {
            return if open.object.spill.is_some() {
                Ok(())
            } else {
                bad(format!(
                    "SPILL says that the spill block of object {} is unmodified, but there is none",
                    r.object
                ))
            };
        }
        let hash = blocks.put(Kind::Data, payload)?;
        let too_long = || ApplyError::Bad("a spill block beyond 4 GiB".into());
        let spill = SpillRef {
            length: u32::try_from(r.length).map_err(|_| too_long())?,
            block: BlockRef {
                hash,
                payload_len: u32::try_from(payload.len()).map_err(|_| too_long())?,
                compression: r.compression.0,
                envelope,
            },
        };
        let object = open.change();
        let before = object.spill.replace(spill);
        object.payload_bytes += u64::from(spill.block.payload_len);
        object.payload_bytes -= before.map_or(0, |s| u64::from(s.block.payload_len));
        Ok(())
    }
}

/// What an embedded block says, as long as its block.
fn unpack_embedded(r: &record::WriteEmbedded, payload: &[u8]) -> Result<Vec<u8>> {
    if r.embedded_type != 0 {
        return bad(format!("embedded data of the type {}", r.embedded_type));
    }
    let len = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let packed = payload.get(..len(r.physical_size.into())).unwrap_or(payload);
    let mut block = codec::decompress(r.compression, packed, len(r.logical_size.into()))
        .map_err(|e| ApplyError::Bad(e.to_string()))?;
    block.resize(len(r.length), 0);
    Ok(block)
}

fn existing<'s>(
    set: &'s mut Objset,
    blocks: &impl WriteBlocks,
    number: u64,
    kind: &str,
) -> Result<&'s mut Open> {
    match set.object(blocks, number)? {
        Some(open) => Ok(open),
        None => bad(format!("{kind} for object {number}, which does not exist")),
    }
}

/// A block as it is, decompressed; zeroes for a hole.
fn plain_block(open: &Open, blocks: &impl ReadBlocks, at: u64) -> Result<Option<Vec<u8>>> {
    let Some(block) = open.block(blocks, at)? else {
        return Ok(None);
    };
    if block.envelope.is_some() {
        return bad(format!("a part of block {at} of object {}, which is sealed", open.number));
    }
    let payload = blocks.get(Kind::Data, &block.hash)?;
    let size = open.object.block_size as usize;
    codec::decompress(block.compression(), &payload, size)
        .map(Some)
        .map_err(|e| ApplyError::Bad(e.to_string()))
}

/// Writes bytes that are not one whole block.
fn overwrite(
    open: &mut Open,
    blocks: &impl WriteBlocks,
    offset: u64,
    mut bytes: &[u8],
) -> Result<()> {
    let size = u64::from(open.object.block_size);
    let mut offset = offset;
    while !bytes.is_empty() {
        let (at, within) = (offset / size, offset % size);
        let room = usize::try_from(size - within).unwrap_or(usize::MAX);
        let (part, rest) = bytes.split_at(room.min(bytes.len()));
        if part.len() as u64 == size {
            open.write(blocks, at, part, Compression::NONE.0, None)?;
        } else {
            let mut block =
                plain_block(open, blocks, at)?.unwrap_or_else(|| vec![0; size as usize]);
            let within = usize::try_from(within).unwrap_or(usize::MAX);
            if let Some(room) = block.get_mut(within..within + part.len()) {
                room.copy_from_slice(part);
            }
            open.write(blocks, at, &block, Compression::NONE.0, None)?;
        }
        offset += part.len() as u64;
        bytes = rest;
    }
    Ok(())
}

/// Makes a hole: whole blocks go, what is left of the blocks at its ends becomes zero
/// (`dnode_free_range`).
fn free(open: &mut Open, blocks: &impl WriteBlocks, r: &record::Free) -> Result<()> {
    let size = u64::from(open.object.block_size);
    let to_end = r.length == TO_OBJECT_END;
    let end = r.offset.saturating_add(r.length);
    let first = r.offset.div_ceil(size);
    // The block that the range ends in, which stays unless the range takes the rest of the object.
    let last = if to_end { u64::MAX } else { end / size };
    if first < last {
        let through = if to_end { last } else { last - 1 };
        open.punch(blocks, first, through)?;
    }
    if !r.offset.is_multiple_of(size) {
        let upto = if last >= first { size } else { end % size };
        zero(open, blocks, r.offset / size, r.offset % size, upto)?;
    }
    if !to_end && !end.is_multiple_of(size) && last >= first {
        zero(open, blocks, last, 0, end % size)?;
    }
    if to_end {
        let end = first.saturating_mul(size).max(size);
        if open.object.end != end {
            open.change().end = end;
        }
    }
    Ok(())
}

fn zero(open: &mut Open, blocks: &impl WriteBlocks, at: u64, from: u64, to: u64) -> Result<()> {
    let Some(mut block) = plain_block(open, blocks, at)? else {
        return Ok(());
    };
    let range = usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(to).unwrap_or(0);
    if let Some(range) = block.get_mut(range) {
        range.fill(0);
    }
    open.write(blocks, at, &block, Compression::NONE.0, None)?;
    Ok(())
}
