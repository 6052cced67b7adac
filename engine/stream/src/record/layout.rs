//! Where each field of a record stands in its 312 bytes.
//!
//! Owns: one table per record type, walked both to decode and to encode, so that the two cannot drift apart.
//! Offsets are those of `dmu_replay_record_t` (the union begins at byte 8); they are pinned by the golden
//! streams.

use super::{
    Begin, Crypt, DedupKey, End, Free, FreeObjects, HeaderType, Kind, Object, ObjectRange, Record,
    Redact, Spill, Write, WriteByRef, WriteEmbedded,
};
use crate::error::Problem;
use crate::fletcher::Checksum;
use crate::format::{Endian, Features, HEADER_LEN, MAGIC, NAME_LEN, SEAL_OFFSET};

const KIND_AT: usize = 0;
const PAYLOAD_LEN_AT: usize = 4;
const MAGIC_AT: usize = 8;
const VERSION_AT: usize = 16;
const NAME_AT: usize = 56;
const HEADER_TYPE_BITS: u64 = 0b11;

/// The raw header of a record.
pub type Header = [u8; HEADER_LEN];

/// Something that walks fields at known offsets: a decoder or an encoder.
trait Walk {
    fn u8(&mut self, at: usize, field: &mut u8);
    fn u32(&mut self, at: usize, field: &mut u32);
    fn u64(&mut self, at: usize, field: &mut u64);
    fn bytes<const N: usize>(&mut self, at: usize, field: &mut [u8; N]);

    fn checksum(&mut self, at: usize, field: &mut Checksum) {
        for (i, word) in field.iter_mut().enumerate() {
            self.u64(at + 8 * i, word);
        }
    }
    fn key(&mut self, at: usize, field: &mut DedupKey) {
        self.checksum(at, &mut field.checksum);
        self.u64(at + 32, &mut field.prop);
    }
    fn crypt(&mut self, at: usize, field: &mut Crypt) {
        self.bytes(at, &mut field.salt);
        self.bytes(at + 8, &mut field.iv);
        self.bytes(at + 20, &mut field.mac);
    }
}

struct Decode<'a> {
    header: &'a Header,
    endian: Endian,
}

impl Decode<'_> {
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.header[at..at + N]);
        out
    }
}

impl Walk for Decode<'_> {
    fn u8(&mut self, at: usize, field: &mut u8) {
        *field = self.header[at];
    }
    fn u32(&mut self, at: usize, field: &mut u32) {
        *field = match self.endian {
            Endian::Little => u32::from_le_bytes(self.take(at)),
            Endian::Big => u32::from_be_bytes(self.take(at)),
        };
    }
    fn u64(&mut self, at: usize, field: &mut u64) {
        *field = match self.endian {
            Endian::Little => u64::from_le_bytes(self.take(at)),
            Endian::Big => u64::from_be_bytes(self.take(at)),
        };
    }
    fn bytes<const N: usize>(&mut self, at: usize, field: &mut [u8; N]) {
        *field = self.take(at);
    }
}

struct Encode<'a> {
    header: &'a mut Header,
    endian: Endian,
}

impl Walk for Encode<'_> {
    fn u8(&mut self, at: usize, field: &mut u8) {
        self.header[at] = *field;
    }
    fn u32(&mut self, at: usize, field: &mut u32) {
        let bytes = match self.endian {
            Endian::Little => field.to_le_bytes(),
            Endian::Big => field.to_be_bytes(),
        };
        self.header[at..at + 4].copy_from_slice(&bytes);
    }
    fn u64(&mut self, at: usize, field: &mut u64) {
        let bytes = match self.endian {
            Endian::Little => field.to_le_bytes(),
            Endian::Big => field.to_be_bytes(),
        };
        self.header[at..at + 8].copy_from_slice(&bytes);
    }
    fn bytes<const N: usize>(&mut self, at: usize, field: &mut [u8; N]) {
        self.header[at..at + N].copy_from_slice(field);
    }
}

fn begin(r: &mut Begin, w: &mut impl Walk) {
    w.u32(PAYLOAD_LEN_AT, &mut r.payload_len);
    w.u64(24, &mut r.creation_time_s);
    w.u32(32, &mut r.objset_type);
    w.u32(36, &mut r.flags);
    w.u64(40, &mut r.to_guid);
    w.u64(48, &mut r.from_guid);
}

fn object(r: &mut Object, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u32(16, &mut r.object_type);
    w.u32(20, &mut r.bonus_type);
    w.u32(24, &mut r.block_size);
    w.u32(28, &mut r.bonus_len);
    w.u8(32, &mut r.checksum_type);
    w.u8(33, &mut r.compress);
    w.u8(34, &mut r.dn_slots);
    w.u8(35, &mut r.flags);
    w.u32(36, &mut r.raw_bonus_len);
    w.u64(40, &mut r.to_guid);
    w.u8(48, &mut r.indblkshift);
    w.u8(49, &mut r.nlevels);
    w.u8(50, &mut r.nblkptr);
    w.u64(56, &mut r.maxblkid);
}

fn free_objects(r: &mut FreeObjects, w: &mut impl Walk) {
    w.u64(8, &mut r.first);
    w.u64(16, &mut r.count);
    w.u64(24, &mut r.to_guid);
}

fn write(r: &mut Write, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u32(16, &mut r.object_type);
    w.u64(24, &mut r.offset);
    w.u64(32, &mut r.logical_size);
    w.u64(40, &mut r.to_guid);
    w.u8(48, &mut r.checksum_type);
    w.u8(49, &mut r.flags);
    w.u8(50, &mut r.compression.0);
    w.key(56, &mut r.key);
    w.u64(96, &mut r.compressed_size);
    w.crypt(104, &mut r.crypt);
}

fn free(r: &mut Free, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u64(16, &mut r.offset);
    w.u64(24, &mut r.length);
    w.u64(32, &mut r.to_guid);
}

fn end(r: &mut End, w: &mut impl Walk) {
    w.checksum(8, &mut r.checksum);
    w.u64(40, &mut r.to_guid);
}

fn write_by_ref(r: &mut WriteByRef, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u64(16, &mut r.offset);
    w.u64(24, &mut r.length);
    w.u64(32, &mut r.to_guid);
    w.u64(40, &mut r.ref_guid);
    w.u64(48, &mut r.ref_object);
    w.u64(56, &mut r.ref_offset);
    w.u8(64, &mut r.checksum_type);
    w.u8(65, &mut r.flags);
    w.key(72, &mut r.key);
}

fn spill(r: &mut Spill, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u64(16, &mut r.length);
    w.u64(24, &mut r.to_guid);
    w.u8(32, &mut r.flags);
    w.u8(33, &mut r.compression.0);
    w.u64(40, &mut r.compressed_size);
    w.crypt(48, &mut r.crypt);
    w.u32(84, &mut r.object_type);
}

fn write_embedded(r: &mut WriteEmbedded, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u64(16, &mut r.offset);
    w.u64(24, &mut r.length);
    w.u64(32, &mut r.to_guid);
    w.u8(40, &mut r.compression.0);
    w.u8(41, &mut r.embedded_type);
    w.u32(48, &mut r.logical_size);
    w.u32(52, &mut r.physical_size);
}

fn object_range(r: &mut ObjectRange, w: &mut impl Walk) {
    w.u64(8, &mut r.first);
    w.u64(16, &mut r.slots);
    w.u64(24, &mut r.to_guid);
    w.crypt(32, &mut r.crypt);
    w.u8(68, &mut r.flags);
}

fn redact(r: &mut Redact, w: &mut impl Walk) {
    w.u64(8, &mut r.object);
    w.u64(16, &mut r.offset);
    w.u64(24, &mut r.length);
    w.u64(32, &mut r.to_guid);
}

/// A default value, filled by walking its table.
fn filled<T: Default, W: Walk>(mut walk: W, table: impl Fn(&mut T, &mut W)) -> T {
    let mut value = T::default();
    table(&mut value, &mut walk);
    value
}

impl Record {
    /// Decodes a header. Looks at this header alone: seals, order and sense are the reader's.
    ///
    /// # Errors
    /// [`Problem::UnknownRecordType`]; for BEGIN [`Problem::BadMagic`], [`Problem::BadHeaderType`] and
    /// [`Problem::NameNotTerminated`].
    pub fn decode(header: &Header, endian: Endian) -> Result<Self, Problem> {
        let mut walk = Decode { header, endian };
        let mut number = 0;
        walk.u32(KIND_AT, &mut number);
        let kind = usize::try_from(number).ok().and_then(|n| Kind::ALL.get(n).copied());
        Ok(match kind.ok_or(Problem::UnknownRecordType { number })? {
            Kind::Begin => Self::Begin(decode_begin(walk)?),
            Kind::Object => Self::Object(filled(walk, object)),
            Kind::FreeObjects => Self::FreeObjects(filled(walk, free_objects)),
            Kind::Write => Self::Write(filled(walk, write)),
            Kind::Free => Self::Free(filled(walk, free)),
            Kind::End => Self::End(filled(walk, end)),
            Kind::WriteByRef => Self::WriteByRef(filled(walk, write_by_ref)),
            Kind::Spill => Self::Spill(filled(walk, spill)),
            Kind::WriteEmbedded => Self::WriteEmbedded(filled(walk, write_embedded)),
            Kind::ObjectRange => Self::ObjectRange(filled(walk, object_range)),
            Kind::Redact => Self::Redact(filled(walk, redact)),
        })
    }

    /// Encodes the record over `header`: fields are written, padding and seal stay as they are.
    ///
    /// # Errors
    /// [`Problem::NameNotTerminated`] when BEGIN's name does not fit with its NUL or holds one, and
    /// [`Problem::UnknownFeatures`] when its feature bits do not fit into 62 bits.
    pub fn encode_over(&self, header: &mut Header, endian: Endian) -> Result<(), Problem> {
        let mut walk = Encode { header, endian };
        walk.u32(KIND_AT, &mut (self.kind() as u32));
        // The tables take `&mut` so that one serves both ways; encoding walks a copy.
        match self.clone() {
            Self::Begin(r) => encode_begin(r, walk)?,
            Self::Object(mut r) => object(&mut r, &mut walk),
            Self::FreeObjects(mut r) => free_objects(&mut r, &mut walk),
            Self::Write(mut r) => write(&mut r, &mut walk),
            Self::Free(mut r) => free(&mut r, &mut walk),
            Self::End(mut r) => end(&mut r, &mut walk),
            Self::WriteByRef(mut r) => write_by_ref(&mut r, &mut walk),
            Self::Spill(mut r) => spill(&mut r, &mut walk),
            Self::WriteEmbedded(mut r) => write_embedded(&mut r, &mut walk),
            Self::ObjectRange(mut r) => object_range(&mut r, &mut walk),
            Self::Redact(mut r) => redact(&mut r, &mut walk),
        }
        Ok(())
    }
}

fn decode_begin(mut walk: Decode<'_>) -> Result<Begin, Problem> {
    let (mut magic, mut version) = (0, 0);
    walk.u64(MAGIC_AT, &mut magic);
    walk.u64(VERSION_AT, &mut version);
    if magic != MAGIC {
        return Err(Problem::BadMagic { found: magic });
    }
    let header_type = match version & HEADER_TYPE_BITS {
        1 => HeaderType::Substream,
        2 => HeaderType::Compound,
        number => return Err(Problem::BadHeaderType { number }),
    };
    let name = &walk.header[NAME_AT..NAME_AT + NAME_LEN];
    let len = name.iter().position(|b| *b == 0).ok_or(Problem::NameNotTerminated)?;
    let to_name = name[..len].to_vec();
    let features = Features(version >> 2);
    Ok(Begin { header_type, features, to_name, ..filled(walk, begin) })
}

fn encode_begin(mut r: Begin, mut walk: Encode<'_>) -> Result<(), Problem> {
    if r.to_name.len() >= NAME_LEN || r.to_name.contains(&0) {
        return Err(Problem::NameNotTerminated);
    }
    if r.features.0 >> 62 != 0 {
        return Err(Problem::UnknownFeatures { features: r.features });
    }
    let header_type = match r.header_type {
        HeaderType::Substream => 1,
        HeaderType::Compound => 2,
    };
    walk.u64(MAGIC_AT, &mut { MAGIC });
    walk.u64(VERSION_AT, &mut (r.features.0 << 2 | header_type));
    begin(&mut r, &mut walk);
    let end = NAME_AT + r.to_name.len();
    walk.header[NAME_AT..end].copy_from_slice(&r.to_name);
    walk.header[end] = 0;
    Ok(())
}

/// The seal of a header: the running fletcher4 over everything before it, all zero where there is none.
pub(crate) fn seal(header: &Header, endian: Endian) -> Checksum {
    let mut seal = Checksum::default();
    Decode { header, endian }.checksum(SEAL_OFFSET, &mut seal);
    seal
}

/// Writes the seal of a header.
pub(crate) fn set_seal(header: &mut Header, endian: Endian, mut seal: Checksum) {
    Encode { header, endian }.checksum(SEAL_OFFSET, &mut seal);
}

/// The byte order in which `header` is a BEGIN, if it is one in any.
pub(crate) fn begin_endian(header: &Header) -> Option<Endian> {
    [Endian::Little, Endian::Big].into_iter().find(|endian| {
        let mut walk = Decode { header, endian: *endian };
        let (mut number, mut magic) = (0, 0);
        walk.u32(KIND_AT, &mut number);
        walk.u64(MAGIC_AT, &mut magic);
        number == Kind::Begin as u32 && magic == MAGIC
    })
}

/// Whether everything in the header that is not a field of `record` is zero.
pub(crate) fn is_bare(record: &Record, header: &Header, endian: Endian) -> bool {
    let mut bare = [0; HEADER_LEN];
    record.encode_over(&mut bare, endian).is_ok() && bare == *header
}
