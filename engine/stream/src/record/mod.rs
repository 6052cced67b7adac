//! The record types of the stream, as values.
//!
//! Owns: a closed enum with every record type of OpenZFS 2.3 (and WRITE_BYREF of older ones), what each one's
//! payload weighs, and which stream it belongs to. Leaves bytes to `layout`, order to [`crate::grammar`],
//! and whether the values make sense to [`crate::plausible`].

mod layout;

pub use layout::Header;
pub(crate) use layout::{begin_endian, is_bare, seal, set_seal};

use std::borrow::Cow;
use std::fmt;

use crate::error::Problem;
use crate::fletcher::Checksum;
use crate::format::{
    Compression, Features, MAX_BEGIN_PAYLOAD, MAX_BONUS, MAX_EMBEDDED, MAX_PAYLOAD,
};

/// One record's header, decoded. Padding is not in it; [`crate::Writer::record_over`] keeps padding that is
/// not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Opens a stream, a package, or a stream inside a package.
    Begin(Begin),
    /// Allocates or changes an object; its payload is the bonus buffer.
    Object(Object),
    /// These object numbers are free.
    FreeObjects(FreeObjects),
    /// One block of an object; its payload is the block.
    Write(Write),
    /// A range of an object is a hole.
    Free(Free),
    /// Closes what the last open BEGIN opened.
    End(End),
    /// One block that equals an earlier one (`zfs send -D` of the past).
    WriteByRef(WriteByRef),
    /// The spill block of an object; its payload is the block.
    Spill(Spill),
    /// One block so small that it lives in its block pointer.
    WriteEmbedded(WriteEmbedded),
    /// Encryption parameters of a block of dnodes (raw streams).
    ObjectRange(ObjectRange),
    /// A range of an object is left out of a redacted stream.
    Redact(Redact),
}

/// The type of a record, with ZFS's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[repr(u32)]
pub enum Kind {
    /// `DRR_BEGIN`
    Begin = 0,
    /// `DRR_OBJECT`
    Object = 1,
    /// `DRR_FREEOBJECTS`
    FreeObjects = 2,
    /// `DRR_WRITE`
    Write = 3,
    /// `DRR_FREE`
    Free = 4,
    /// `DRR_END`
    End = 5,
    /// `DRR_WRITE_BYREF`
    WriteByRef = 6,
    /// `DRR_SPILL`
    Spill = 7,
    /// `DRR_WRITE_EMBEDDED`
    WriteEmbedded = 8,
    /// `DRR_OBJECT_RANGE`
    ObjectRange = 9,
    /// `DRR_REDACT`
    Redact = 10,
}

impl Kind {
    /// Every type, in ZFS's order: `ALL[n]` has the number `n`.
    pub const ALL: [Self; 11] = [
        Self::Begin,
        Self::Object,
        Self::FreeObjects,
        Self::Write,
        Self::Free,
        Self::End,
        Self::WriteByRef,
        Self::Spill,
        Self::WriteEmbedded,
        Self::ObjectRange,
        Self::Redact,
    ];

    /// The name ZFS gives it, without `DRR_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begin => "BEGIN",
            Self::Object => "OBJECT",
            Self::FreeObjects => "FREEOBJECTS",
            Self::Write => "WRITE",
            Self::Free => "FREE",
            Self::End => "END",
            Self::WriteByRef => "WRITE_BYREF",
            Self::Spill => "SPILL",
            Self::WriteEmbedded => "WRITE_EMBEDDED",
            Self::ObjectRange => "OBJECT_RANGE",
            Self::Redact => "REDACT",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a BEGIN opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum HeaderType {
    /// One snapshot: records follow, then END.
    #[default]
    Substream,
    /// A package (`-R`, `-I`, `-p`): an END follows at once, then substreams, then one more END.
    Compound,
}

/// `DRR_BEGIN`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Begin {
    /// Bytes of the nvlist behind the header, 0 for none.
    pub payload_len: u32,
    /// What it opens.
    pub header_type: HeaderType,
    /// Feature flags.
    pub features: Features,
    /// When the snapshot was made, seconds since 1970; 0 in a package's outer BEGIN.
    pub creation_time_s: u64,
    /// Object set type, see [`crate::format::objset`].
    pub objset_type: u32,
    /// Flags, see [`crate::format::begin_flag`].
    pub flags: u32,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// Guid of the base of an increment, 0 for a full stream.
    pub from_guid: u64,
    /// Name of the snapshot sent, as the sender calls it; the bytes before the first NUL.
    pub to_name: Vec<u8>,
}

impl Begin {
    /// The name of the snapshot sent, fit for printing.
    pub fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.to_name)
    }

    /// Whether the stream is a full one: it needs no base.
    pub fn is_full(&self) -> bool {
        self.from_guid == 0
    }
}

/// `DRR_OBJECT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Object {
    /// Object number.
    pub object: u64,
    /// `dmu_object_type_t`.
    pub object_type: u32,
    /// `dmu_object_type_t` of the bonus buffer.
    pub bonus_type: u32,
    /// Data block size, bytes.
    pub block_size: u32,
    /// Length of the bonus buffer, bytes.
    pub bonus_len: u32,
    /// `enum zio_checksum` of the object.
    pub checksum_type: u8,
    /// `enum zio_compress` of the object (not of the payload).
    pub compress: u8,
    /// Dnode slots of 512 bytes; 0 from old senders means 1.
    pub dn_slots: u8,
    /// See [`crate::format::object_flag`].
    pub flags: u8,
    /// Raw streams: bytes of the encrypted bonus area, which is the payload then.
    pub raw_bonus_len: u32,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// Raw streams: log2 of the indirect block size.
    pub indblkshift: u8,
    /// Raw streams: levels of the block tree.
    pub nlevels: u8,
    /// Raw streams: block pointers in the dnode.
    pub nblkptr: u8,
    /// Raw streams: last block number.
    pub maxblkid: u64,
}

/// `DRR_FREEOBJECTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreeObjects {
    /// First object number.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
}

/// Encryption parameters of a raw block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crypt {
    /// `ZIO_DATA_SALT_LEN` bytes.
    pub salt: [u8; 8],
    /// `ZIO_DATA_IV_LEN` bytes.
    pub iv: [u8; 12],
    /// `ZIO_DATA_MAC_LEN` bytes.
    pub mac: [u8; 16],
}

/// The key under which ZFS would dedup a block (`ddt_key_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DedupKey {
    /// The checksum in the block pointer.
    pub checksum: Checksum,
    /// Sizes, compression and encryption, packed by ZFS.
    pub prop: u64,
}

/// `DRR_WRITE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Write {
    /// Object number.
    pub object: u64,
    /// `dmu_object_type_t`.
    pub object_type: u32,
    /// Where the block begins in the object, bytes.
    pub offset: u64,
    /// Bytes of the block when it is not compressed.
    pub logical_size: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// `enum zio_checksum` of the block.
    pub checksum_type: u8,
    /// See [`crate::format::data_flag`].
    pub flags: u8,
    /// Compression of the payload; [`Compression::NONE`] means the payload is the block itself.
    pub compression: Compression,
    /// Dedup key of the block.
    pub key: DedupKey,
    /// Bytes of the payload when [`Self::compression`] is not 0.
    pub compressed_size: u64,
    /// Raw streams: encryption parameters.
    pub crypt: Crypt,
}

/// `DRR_FREE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Free {
    /// Object number.
    pub object: u64,
    /// Where the hole begins, bytes.
    pub offset: u64,
    /// Its length, bytes; [`crate::format::TO_OBJECT_END`] for the rest of the object.
    pub length: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
}

/// `DRR_END`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// fletcher4 of everything since BEGIN; the writer computes it.
    pub checksum: Checksum,
    /// Guid of the snapshot sent; 0 for the ENDs of a package.
    pub to_guid: u64,
}

/// `DRR_WRITE_BYREF`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteByRef {
    /// Object number.
    pub object: u64,
    /// Where the block begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub length: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// Guid of the snapshot that has the block.
    pub ref_guid: u64,
    /// Object that has it.
    pub ref_object: u64,
    /// Where it begins there, bytes.
    pub ref_offset: u64,
    /// `enum zio_checksum` of the block.
    pub checksum_type: u8,
    /// See [`crate::format::data_flag`].
    pub flags: u8,
    /// Dedup key of the block.
    pub key: DedupKey,
}

/// `DRR_SPILL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spill {
    /// Object number.
    pub object: u64,
    /// Bytes of the spill block when it is not compressed.
    pub length: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// See [`crate::format::spill_flag`].
    pub flags: u8,
    /// Raw streams: compression of the payload.
    pub compression: Compression,
    /// Raw streams: bytes of the payload; 0 elsewhere.
    pub compressed_size: u64,
    /// Raw streams: encryption parameters.
    pub crypt: Crypt,
    /// `dmu_object_type_t`; senders leave it 0.
    pub object_type: u32,
}

/// `DRR_WRITE_EMBEDDED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteEmbedded {
    /// Object number.
    pub object: u64,
    /// Where the block begins, bytes.
    pub offset: u64,
    /// Bytes of the block in the object; what is behind [`Self::logical_size`] is zero.
    pub length: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// Compression of the payload.
    pub compression: Compression,
    /// `bp_embedded_type_t`, 0 for data.
    pub embedded_type: u8,
    /// Bytes of the payload when it is not compressed.
    pub logical_size: u32,
    /// Bytes of the payload that count; it is padded to a multiple of 8.
    pub physical_size: u32,
}

/// `DRR_OBJECT_RANGE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectRange {
    /// First object number.
    pub first: u64,
    /// Dnode slots; one block of dnodes.
    pub slots: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
    /// Encryption parameters of the block of dnodes.
    pub crypt: Crypt,
    /// See [`crate::format::data_flag`].
    pub flags: u8,
}

/// `DRR_REDACT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redact {
    /// Object number.
    pub object: u64,
    /// Where the range begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub length: u64,
    /// Guid of the snapshot sent.
    pub to_guid: u64,
}

impl Record {
    /// The type of the record.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Begin(_) => Kind::Begin,
            Self::Object(_) => Kind::Object,
            Self::FreeObjects(_) => Kind::FreeObjects,
            Self::Write(_) => Kind::Write,
            Self::Free(_) => Kind::Free,
            Self::End(_) => Kind::End,
            Self::WriteByRef(_) => Kind::WriteByRef,
            Self::Spill(_) => Kind::Spill,
            Self::WriteEmbedded(_) => Kind::WriteEmbedded,
            Self::ObjectRange(_) => Kind::ObjectRange,
            Self::Redact(_) => Kind::Redact,
        }
    }

    /// Guid of the snapshot the record belongs to.
    pub fn to_guid(&self) -> u64 {
        match self {
            Self::Begin(r) => r.to_guid,
            Self::Object(r) => r.to_guid,
            Self::FreeObjects(r) => r.to_guid,
            Self::Write(r) => r.to_guid,
            Self::Free(r) => r.to_guid,
            Self::End(r) => r.to_guid,
            Self::WriteByRef(r) => r.to_guid,
            Self::Spill(r) => r.to_guid,
            Self::WriteEmbedded(r) => r.to_guid,
            Self::ObjectRange(r) => r.to_guid,
            Self::Redact(r) => r.to_guid,
        }
    }

    /// Bytes of the payload behind the header, padding included.
    ///
    /// # Errors
    /// [`Problem::PayloadTooLong`] above the limit of the record's type (see [`crate::format`]), and
    /// [`Problem::PayloadUnaligned`] when it is not a whole number of 32-bit words, which no sender makes
    /// and fletcher4 cannot cover.
    pub fn payload_len(&self) -> Result<usize, Problem> {
        let (len, limit) = match self {
            Self::Begin(r) => (u64::from(r.payload_len), MAX_BEGIN_PAYLOAD),
            Self::Object(r) => (r.payload_bytes(), MAX_BONUS),
            Self::Write(r) => (r.payload_bytes(), MAX_PAYLOAD),
            Self::Spill(r) => (r.payload_bytes(), MAX_PAYLOAD),
            Self::WriteEmbedded(r) => {
                (u64::from(r.physical_size).next_multiple_of(8), MAX_EMBEDDED)
            }
            Self::FreeObjects(_)
            | Self::Free(_)
            | Self::End(_)
            | Self::WriteByRef(_)
            | Self::ObjectRange(_)
            | Self::Redact(_) => (0, 0),
        };
        match usize::try_from(len) {
            Ok(fits) if fits <= limit && fits.is_multiple_of(4) => Ok(fits),
            Ok(fits) if fits <= limit => {
                Err(Problem::PayloadUnaligned { kind: self.kind(), bytes: len })
            }
            _ => {
                Err(Problem::PayloadTooLong { kind: self.kind(), bytes: len, limit: limit as u64 })
            }
        }
    }
}

impl Object {
    fn payload_bytes(&self) -> u64 {
        match self.raw_bonus_len {
            0 => u64::from(self.bonus_len).next_multiple_of(8),
            raw => u64::from(raw),
        }
    }
}

impl Write {
    fn payload_bytes(&self) -> u64 {
        if self.compression == Compression::NONE { self.logical_size } else { self.compressed_size }
    }
}

impl Spill {
    fn payload_bytes(&self) -> u64 {
        if self.compressed_size == 0 { self.length } else { self.compressed_size }
    }
}
