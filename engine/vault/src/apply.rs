//! Records of a stream, applied to an object set.
//!
//! Owns: what each record does to objects and blocks, as `receive_*` in OpenZFS's `module/zfs/dmu_recv.c` do
//! it, and refusing by name what this store cannot apply. Leaves checksums and the order of records to
//! `zfs_stream::Reader`, and the snapshot to [`crate::receive`].

use zfs_stream::format::{Features, TO_OBJECT_END, begin_flag, object_flag, spill_flag};
use zfs_stream::record::{self, Begin, Record};
use zfs_stream::{Compression, Endian, Item};

use flocker_store::StoreError;

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::codec;
use crate::hash::Kind;
use crate::object::{BlockRef, Data, OT_PLAIN_FILE, Object, SpillRef};
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

/// The features that this store cannot apply, by the names ZFS has for them.
const REFUSED: [(Features, &str); 6] = [
    (Features::RAW, "raw"),
    (Features::EMBED_DATA, "embedded_data"),
    (Features::REDACTED, "redacted"),
    (Features::RESUMING, "resuming"),
    (Features::DEDUP, "dedup"),
    (Features::DEDUPPROPS, "dedup"),
];

/// Refuses a stream that this store cannot apply.
pub(crate) fn check_begin(begin: &Begin, endian: Endian) -> Result<()> {
    for (feature, name) in REFUSED {
        if begin.features.contains(feature) {
            return Err(ApplyError::Unsupported(name.into()));
        }
    }
    if begin.flags & begin_flag::CLONE != 0 {
        return Err(ApplyError::Unsupported("clone".into()));
    }
    if endian == Endian::Big {
        return Err(ApplyError::Unsupported(
            "a big-endian stream (its files' attributes are in the sender's byte order)".into(),
        ));
    }
    Ok(())
}

/// Applies the body of one stream.
#[derive(Debug)]
pub(crate) struct Applier {
    set: Objset,
    full: bool,
    /// Whether the sender says of each object whether it has a spill block.
    tells_spill: bool,
}

impl Applier {
    /// An applier over the object set that the stream starts from.
    pub(crate) fn new(set: Objset, begin: &Begin) -> Self {
        Applier {
            set,
            full: begin.is_full(),
            tells_spill: begin.flags & begin_flag::SPILL_BLOCK != 0,
        }
    }

    /// The object set with everything applied.
    pub(crate) fn into_set(self) -> Objset {
        self.set
    }

    /// Applies one record of the body.
    pub(crate) fn apply(&mut self, blocks: &impl WriteBlocks, item: &Item<'_>) -> Result<()> {
        match &item.record {
            Record::Object(r) => self.object(blocks, r, item.payload()),
            Record::FreeObjects(r) => {
                let first = r.first.max(1);
                let last = r.first.saturating_add(r.count);
                if first < last {
                    self.set.free_objects(blocks, first, last - 1)?;
                }
                Ok(())
            }
            Record::Write(r) => self.write(blocks, r, item.payload()),
            Record::Free(r) => {
                let open = existing(&mut self.set, blocks, r.object, "FREE")?;
                free(open, blocks, r)
            }
            Record::Spill(r) => self.spill(blocks, r, item.payload()),
            Record::WriteByRef(_) => Err(ApplyError::Unsupported("dedup".into())),
            Record::WriteEmbedded(_) => Err(ApplyError::Unsupported("embedded_data".into())),
            Record::ObjectRange(_) => Err(ApplyError::Unsupported("raw".into())),
            Record::Redact(_) => Err(ApplyError::Unsupported("redacted".into())),
            Record::Begin(_) | Record::End(_) => bad("a record out of its place"),
        }
    }

    fn object(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::Object,
        bonus: &[u8],
    ) -> Result<()> {
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
            end: u64::from(r.block_size),
            spill: None,
            payload_bytes: 0,
            data: Data::default(),
        };
        let has_spill = r.flags & object_flag::SPILL != 0;
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
        self.set.put(blocks, r.object, object)?;
        Ok(())
    }

    /// What an object that exists keeps when an OBJECT record comes for it.
    fn inherit(&self, before: &Object, object: &mut Object, has_spill: bool) -> Result<()> {
        let other_slots = object.slots() != before.slots();
        let mut freed = other_slots || object.block_pointers() < before.block_pointers();
        if object.block_size != before.block_size {
            let files = object.object_type == OT_PLAIN_FILE && before.object_type == OT_PLAIN_FILE;
            let one_block = before.end <= u64::from(before.block_size);
            if self.full || !files || one_block || object.generation() != before.generation() {
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
            object.end = before.end.max(u64::from(object.block_size));
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
        let open = existing(&mut self.set, blocks, r.object, "WRITE")?;
        let size = u64::from(open.object.block_size);
        if !size.is_power_of_two() && r.offset >= size {
            return bad(format!(
                "WRITE at byte {} of object {}, which has a single block of {size} bytes",
                r.offset, r.object
            ));
        }
        if r.logical_size == size && r.offset.is_multiple_of(size) {
            open.write(blocks, r.offset / size, payload, r.compression.0)?;
            return Ok(());
        }
        let len = usize::try_from(r.logical_size).unwrap_or(usize::MAX);
        let plain = codec::decompress(r.compression, payload, len)
            .map_err(|e| ApplyError::Bad(e.to_string()))?;
        overwrite(open, blocks, r.offset, &plain)
    }

    fn spill(
        &mut self,
        blocks: &impl WriteBlocks,
        r: &record::Spill,
        payload: &[u8],
    ) -> Result<()> {
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
            },
        };
        let object = open.change();
        let before = object.spill.replace(spill);
        object.payload_bytes += u64::from(spill.block.payload_len);
        object.payload_bytes -= before.map_or(0, |s| u64::from(s.block.payload_len));
        Ok(())
    }
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
            open.write(blocks, at, part, Compression::NONE.0)?;
        } else {
            let mut block =
                plain_block(open, blocks, at)?.unwrap_or_else(|| vec![0; size as usize]);
            let within = usize::try_from(within).unwrap_or(usize::MAX);
            if let Some(room) = block.get_mut(within..within + part.len()) {
                room.copy_from_slice(part);
            }
            open.write(blocks, at, &block, Compression::NONE.0)?;
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
    open.write(blocks, at, &block, Compression::NONE.0)?;
    Ok(())
}
