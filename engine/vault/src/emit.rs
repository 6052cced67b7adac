//! The difference of two object sets, as the records of a stream.
//!
//! Owns: which records say it, in the order real ZFS needs: objects ascending, within one its offsets
//! ascending, OBJECT first and the hole behind its end next. Leaves bytes and checksums to
//! `zfs_stream::Writer` and threads to [`crate::send`].
//!
//! What differs from what `zfs send` would say between the same snapshots: ZFS knows what was *written* since
//! (by birth time) and sends it, we know what *differs*. So where a receiver will throw an object's blocks
//! away (another file under the number, blocks of another size), all of them are sent; see
//! [`Object::replaces`]. FREEOBJECTS names only objects that the base has: zfs-fuse walks every number.
//!
//! A sealed set is sent as it is: a block of dnodes was sealed as a whole, so where it changed all of its
//! objects are sent behind its OBJECT_RANGE, as ZFS does.
//!
//! A send that goes on leaves out what is before its point: objects below, and blocks of that object below.

use flocker_store::StoreError;
use zfs_stream::format::{
    DNODES_PER_BLOCK, Features, MAX_SMALL_BLOCK, TO_OBJECT_END, begin_flag, object_flag, spill_flag,
};
use zfs_stream::record::{
    self, Begin, Free, FreeObjects, HeaderType, ObjectRange, Record, Spill, Write,
};
use zfs_stream::{Compression, record::End};

use crate::blocks::ReadBlocks;
use crate::codec;
use crate::dir;
use crate::hash::{Hash, Kind};
use crate::keydata::{self, Point};
use crate::meta::SnapshotRecord;
use crate::object::{self, BlockRef, Data, Envelope, Object};
use crate::objset::SetRoot;
use crate::tree::{self, Tree};

type Result<T> = std::result::Result<T, StoreError>;

/// `ZIO_CHECKSUM_OFF`: what a WRITE says that has no checksum of a block pointer with it.
const CHECKSUM_OFF: u8 = 2;

/// Where records go.
pub(crate) trait Sink {
    /// Whether payloads are wanted, or only their lengths.
    fn wants_payload(&self) -> bool;
    /// Takes a record; `payload` is empty where it is not wanted.
    fn record(&mut self, record: &Record, payload: &[u8]) -> Result<()>;
}

/// One send.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The base, with its guid; `None` for a full stream.
    pub(crate) from: Option<SnapshotRecord>,
    pub(crate) to: SnapshotRecord,
    /// Name in BEGIN.
    pub(crate) to_name: String,
    pub(crate) compressed: bool,
    pub(crate) large_blocks: bool,
    /// The base is the origin of the dataset.
    pub(crate) clone: bool,
    /// Where to go on; `None`: from the beginning.
    pub(crate) resume: Option<Point>,
}

impl Job {
    /// What BEGIN announces, but for going on.
    pub(crate) fn features(&self) -> Features {
        announced(Features(self.to.dialect.features), self.compressed, self.large_blocks)
    }

    fn begin(&self) -> (Begin, Vec<u8>) {
        let dialect = &self.to.dialect;
        let mut features = self.features();
        if self.resume.is_some() {
            features = features | Features::RESUMING;
        }
        let base = self.from.as_ref().and_then(|from| from.key.as_ref());
        let payload = keydata::begin_payload(self.resume, self.to.key.as_ref(), base);
        let kept = begin_flag::CI_DATA | begin_flag::SPILL_BLOCK | begin_flag::FREERECORDS;
        let mut flags = dialect.begin_flags & kept;
        if self.to.fuzzy && dialect.objset_type == dir::OBJSET_DIRECTORY {
            flags |= dir::FLAG_FUZZY;
        }
        if self.clone {
            flags |= begin_flag::CLONE;
        }
        let begin = Begin {
            payload_len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            header_type: HeaderType::Substream,
            features,
            creation_time_s: u64::try_from(self.to.creation_unix_s).unwrap_or(0),
            objset_type: dialect.objset_type,
            flags,
            to_guid: self.to.guid.0,
            from_guid: self.from.as_ref().map_or(0, |from| from.guid.0),
            to_name: self.to_name.clone().into_bytes(),
        };
        (begin, payload)
    }

    /// Whether a full stream also says what is free, as OpenZFS's does.
    fn says_gaps(&self) -> bool {
        self.from.is_none()
            && self.to.dialect.sealed
            && self.to.dialect.begin_flags & begin_flag::FREERECORDS != 0
    }
}

/// What BEGIN announces of what came in streams with these features.
pub(crate) fn announced(lineage: Features, compressed: bool, large_blocks: bool) -> Features {
    let keep = |bit: Features, condition: bool| {
        if condition { Features(lineage.0 & bit.0) } else { Features::NONE }
    };
    let packing = Features::COMPRESSED | Features::LZ4 | Features::ZSTD;
    let packed = compressed && lineage.contains(Features::COMPRESSED);
    let shape =
        Features::SA_SPILL | Features::LARGE_DNODE | Features::LONGNAME | Features::LARGE_MICROZAP;
    keep(shape | Features::RAW, true)
        | keep(Features::LARGE_BLOCKS, large_blocks)
        | keep(packing, packed)
}

/// Writes the whole stream of a job.
pub(crate) fn emit(blocks: &impl ReadBlocks, job: &Job, sink: &mut impl Sink) -> Result<()> {
    let (begin, payload) = job.begin();
    let sealed = job.to.dialect.is_sealed();
    let mut emitter = Emitter {
        blocks,
        gaps: job.says_gaps(),
        packed: begin.features.contains(Features::COMPRESSED),
        large: begin.features.contains(Features::LARGE_BLOCKS) || sealed,
        tells_spill: begin.flags & begin_flag::SPILL_BLOCK != 0,
        to_guid: job.to.guid.0,
        pending: Pending::Nothing,
        resume: job.resume,
        next_object: job.resume.map_or(1, |point| point.object),
        sink,
    };
    emitter.sink.record(&Record::Begin(begin), &payload)?;
    let from = job.from.as_ref().map_or(SetRoot::default(), |from| from.root);
    if sealed {
        emitter.sealed_set(from, job.to.root)?;
    } else {
        tree::diff(blocks, from.objects, job.to.root.objects, &mut |number, before, after| {
            emitter.object(number, before, after)
        })?;
    }
    if emitter.gaps {
        let next = emitter.next_object;
        let end = next.next_multiple_of(DNODES_PER_BLOCK);
        emitter.free_objects(next, end - next)?;
    }
    emitter.settle()?;
    let end = End { to_guid: job.to.guid.0, ..End::default() };
    emitter.sink.record(&Record::End(end), &[])
}

/// A record that may still grow.
enum Pending {
    Nothing,
    FreeObjects(FreeObjects),
    Free(Free),
}

struct Emitter<'e, B, S> {
    blocks: &'e B,
    sink: &'e mut S,
    /// Say of every gap that it is free.
    gaps: bool,
    /// Compressed blocks may go as they are.
    packed: bool,
    /// Blocks above 128 KiB may go in one piece.
    large: bool,
    /// SPILL records may say that nothing changed.
    tells_spill: bool,
    to_guid: u64,
    pending: Pending,
    resume: Option<Point>,
    /// The first number that no object sent so far occupies.
    next_object: u64,
}

impl<B: ReadBlocks, S: Sink> Emitter<'_, B, S> {
    /// Every block of dnodes whose seal changed, with all of its objects.
    fn sealed_set(&mut self, from: SetRoot, to: SetRoot) -> Result<()> {
        let blocks = self.blocks;
        let start = self.resume.map_or(0, |point| point.object / DNODES_PER_BLOCK);
        tree::diff::<Envelope>(blocks, from.ranges, to.ranges, &mut |at, _, envelope| {
            let first = at.saturating_mul(DNODES_PER_BLOCK);
            match envelope {
                _ if at < start => Ok(()),
                Some(envelope) => self.range(first, &envelope, from, to),
                // A hole now: nothing is in it.
                None => self.free_objects(first.max(1), DNODES_PER_BLOCK - u64::from(first == 0)),
            }
        })?;
        // What changed under a seal that did not would be left out, and nobody would notice.
        let (from_ranges, to_ranges) = (Tree::open(from.ranges), Tree::open(to.ranges));
        tree::diff::<Hash>(blocks, from.objects, to.objects, &mut |number, _, _| {
            let at = number / DNODES_PER_BLOCK;
            let (before, after): (Option<Envelope>, Option<Envelope>) =
                (from_ranges.get(blocks, at)?, to_ranges.get(blocks, at)?);
            if before == after {
                return Err(StoreError::Corrupt {
                    path: "packs".into(),
                    detail: format!("sealed object {number} changed and its seal did not"),
                });
            }
            Ok(())
        })
    }

    fn range(&mut self, first: u64, envelope: &Envelope, from: SetRoot, to: SetRoot) -> Result<()> {
        let blocks = self.blocks;
        if self.gaps && first > self.next_object {
            self.free_objects(self.next_object, first - self.next_object)?;
            self.next_object = first;
        }
        self.settle()?;
        let record = ObjectRange {
            first,
            slots: DNODES_PER_BLOCK,
            to_guid: self.to_guid,
            crypt: envelope.crypt(),
            flags: envelope.flags(),
        };
        self.sink.record(&Record::ObjectRange(record), &[])?;
        let (before, after) = (Tree::<Hash>::open(from.objects), Tree::<Hash>::open(to.objects));
        for number in first.max(1)..first.saturating_add(DNODES_PER_BLOCK) {
            let (before, after) = (before.get(blocks, number)?, after.get(blocks, number)?);
            if after.is_some() {
                self.object(number, before, after)?;
            } else if number >= self.next_object {
                // Said of every one, as ZFS says it.
                self.free_objects(number, 1)?;
                self.next_object = number + 1;
            }
        }
        Ok(())
    }

    fn object(&mut self, number: u64, from: Option<Hash>, to: Option<Hash>) -> Result<()> {
        if self.resume.is_some_and(|point| number < point.object) {
            return Ok(());
        }
        let Some(to) = to else {
            // A number inside a wider dnode that was sent is not free.
            if number >= self.next_object {
                self.free_objects(number, 1)?;
            }
            return Ok(());
        };
        if self.gaps && number > self.next_object {
            self.free_objects(self.next_object, number - self.next_object)?;
        }
        let to = Object::load(self.blocks, &to)?;
        let from = from.map(|hash| Object::load(self.blocks, &hash)).transpose()?;
        let kept = from.as_ref().filter(|from| !to.replaces(from));
        self.settle()?;
        self.object_record(number, &to)?;
        let same_spill = kept.is_some_and(|kept| kept.spill == to.spill);
        if self.tells_spill && same_spill {
            self.spill(number, &to, spill_flag::UNMODIFIED)?;
        }
        let gaps = self.gaps || (from.is_some() && kept.is_none());
        self.data(number, kept.map(|kept| kept.data), &to, gaps)?;
        if !(self.tells_spill && same_spill) {
            self.spill(number, &to, 0)?;
        }
        self.next_object = number + u64::from(to.slots());
        Ok(())
    }

    fn object_record(&mut self, number: u64, to: &Object) -> Result<()> {
        let small = u32::try_from(MAX_SMALL_BLOCK).unwrap_or(u32::MAX);
        let block_size = if self.large { to.block_size } else { to.block_size.min(small) };
        let spill = if to.spill.is_some() && self.tells_spill { object_flag::SPILL } else { 0 };
        let record = record::Object {
            object: number,
            object_type: to.object_type,
            bonus_type: to.bonus_type,
            block_size,
            bonus_len: to.bonus_len,
            checksum_type: to.checksum_type,
            compress: to.compress,
            dn_slots: to.dn_slots,
            flags: to.flags | spill,
            to_guid: self.to_guid,
            ..record::Object::default()
        };
        let record = match &to.raw {
            None => record,
            Some(raw) => record::Object {
                raw_bonus_len: u32::try_from(to.bonus.len()).unwrap_or(u32::MAX),
                indblkshift: raw.indblkshift,
                nlevels: raw.nlevels,
                nblkptr: raw.nblkptr,
                maxblkid: raw.maxblkid,
                ..record
            },
        };
        self.sink.record(&Record::Object(record), &to.bonus)?;
        let rest =
            Free { object: number, offset: to.end, length: TO_OBJECT_END, to_guid: self.to_guid };
        self.sink.record(&Record::Free(rest), &[])
    }

    fn data(&mut self, number: u64, from: Option<Data>, to: &Object, gaps: bool) -> Result<()> {
        let size = u64::from(to.block_size);
        let blocks = self.blocks;
        let mut next = match self.resume {
            Some(point) if point.object == number => point.offset / size,
            Some(_) | None => 0,
        };
        let start = next;
        object::diff_data(blocks, from.unwrap_or_default(), to.data, &mut |at, _, block| {
            let offset = at.saturating_mul(size);
            match block {
                _ if at < start => Ok(()),
                Some(block) => {
                    if gaps && at > next {
                        self.free(number, next * size, (at - next) * size)?;
                    }
                    next = at + 1;
                    self.write(number, to, offset, &block)
                }
                // Behind the end it was freed already.
                None if offset < to.end => self.free(number, offset, size),
                None => Ok(()),
            }
        })?;
        let reached = next.saturating_mul(size);
        if gaps && reached < to.end {
            self.free(number, reached, to.end - reached)?;
        }
        Ok(())
    }

    fn write(&mut self, number: u64, to: &Object, offset: u64, block: &BlockRef) -> Result<()> {
        self.settle()?;
        let split = !self.large && u64::from(to.block_size) > MAX_SMALL_BLOCK;
        let plain = block.compression() == Compression::NONE;
        let write = Write {
            object: number,
            object_type: to.object_type,
            offset,
            logical_size: u64::from(to.block_size),
            to_guid: self.to_guid,
            checksum_type: CHECKSUM_OFF,
            ..Write::default()
        };
        if let Some(envelope) = &block.envelope {
            let sealed = Write {
                compression: block.compression(),
                compressed_size: u64::from(block.payload_len),
                crypt: envelope.crypt(),
                flags: envelope.flags(),
                ..write
            };
            let payload = self.payload(block)?;
            return self.sink.record(&Record::Write(sealed), &payload);
        }
        if self.packed && !plain && !split {
            let packed = Write {
                compression: block.compression(),
                compressed_size: u64::from(block.payload_len),
                ..write
            };
            let payload = self.payload(block)?;
            return self.sink.record(&Record::Write(packed), &payload);
        }
        let payload = if self.sink.wants_payload() {
            let payload = self.payload(block)?;
            if plain { payload } else { unpack(to, block, &payload)?.into() }
        } else {
            Vec::new().into()
        };
        if !split {
            return self.sink.record(&Record::Write(write), &payload);
        }
        let mut done = 0;
        while done < write.logical_size {
            let len = (write.logical_size - done).min(MAX_SMALL_BLOCK);
            let piece = Write { offset: offset + done, logical_size: len, ..write };
            let range =
                usize::try_from(done).unwrap_or(0)..usize::try_from(done + len).unwrap_or(0);
            let bytes = payload.get(range).unwrap_or_default();
            self.sink.record(&Record::Write(piece), bytes)?;
            done += len;
        }
        Ok(())
    }

    fn spill(&mut self, number: u64, to: &Object, flags: u8) -> Result<()> {
        let Some(spill) = &to.spill else {
            return Ok(());
        };
        self.settle()?;
        let record = Spill {
            object: number,
            length: u64::from(spill.length),
            to_guid: self.to_guid,
            flags,
            ..Spill::default()
        };
        let record = match &spill.block.envelope {
            None => record,
            Some(envelope) => Spill {
                compression: spill.block.compression(),
                compressed_size: u64::from(spill.block.payload_len),
                crypt: envelope.crypt(),
                flags: record.flags | envelope.flags(),
                ..record
            },
        };
        let payload = self.payload(&spill.block)?;
        self.sink.record(&Record::Spill(record), &payload)
    }

    fn payload(&self, block: &BlockRef) -> Result<std::sync::Arc<Vec<u8>>> {
        if self.sink.wants_payload() {
            self.blocks.get(Kind::Data, &block.hash)
        } else {
            Ok(Vec::new().into())
        }
    }

    fn free_objects(&mut self, first: u64, count: u64) -> Result<()> {
        if let Pending::FreeObjects(pending) = &mut self.pending
            && pending.first + pending.count == first
        {
            pending.count += count;
            return Ok(());
        }
        self.settle()?;
        if count > 0 {
            self.pending =
                Pending::FreeObjects(FreeObjects { first, count, to_guid: self.to_guid });
        }
        Ok(())
    }

    fn free(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        if let Pending::Free(pending) = &mut self.pending
            && pending.object == object
            && pending.offset + pending.length == offset
        {
            pending.length += length;
            return Ok(());
        }
        self.settle()?;
        self.pending = Pending::Free(Free { object, offset, length, to_guid: self.to_guid });
        Ok(())
    }

    /// Writes the record that could still have grown.
    fn settle(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => Ok(()),
            Pending::FreeObjects(record) => self.sink.record(&Record::FreeObjects(record), &[]),
            Pending::Free(record) => self.sink.record(&Record::Free(record), &[]),
        }
    }
}

fn unpack(object: &Object, block: &BlockRef, payload: &[u8]) -> Result<Vec<u8>> {
    codec::decompress(block.compression(), payload, object.block_size as usize).map_err(|e| {
        StoreError::Corrupt { path: "packs".into(), detail: format!("block {}: {e}", block.hash) }
    })
}
