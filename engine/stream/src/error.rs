//! What can be wrong with a stream, and where.
//!
//! Owns: the typed problems of reading and writing. Leaves to the caller what to do about them: every one
//! of them means that nothing after `record` may be used, and that the stream has to be sent again or
//! resumed from before it.
//!
//! A message holds the whole story, so none of these names a `source()` that would tell it twice.

use crate::fletcher::Checksum;
use crate::format::{Endian, Features};
use crate::plausible::Nonsense;
use crate::record::Kind;

/// A problem with its place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream record {record} at byte {offset}: {problem}")]
pub struct StreamError {
    /// Number of the record at which the problem was found; the first is 0.
    pub record: u64,
    /// Where that record's header begins, bytes from the beginning of the stream.
    pub offset: u64,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is not one byte.
    #[error("there is no stream, not one byte of it")]
    Empty,
    /// It does not begin as a stream begins.
    #[error("this is not a ZFS send stream: the magic number is {found:#x}")]
    BadMagic {
        /// What stands in its place, read as little-endian.
        found: u64,
    },
    /// BEGIN opens something unknown.
    #[error("BEGIN has the header type {number}, neither 1 (substream) nor 2 (package)")]
    BadHeaderType {
        /// The two bits.
        number: u64,
    },
    /// BEGIN's name has no end.
    #[error("the snapshot name in BEGIN does not end within its 256 bytes")]
    NameNotTerminated,
    /// BEGIN asks for features that this version does not know, so it cannot know the records either.
    #[error("BEGIN asks for features this version does not know: {features}")]
    UnknownFeatures {
        /// The feature bits, known ones included.
        features: Features,
    },
    /// A record type that does not exist.
    #[error("unknown record type {number}")]
    UnknownRecordType {
        /// The type's number.
        number: u32,
    },
    /// A record where it may not stand.
    #[error("{found} stands where {expected} is expected")]
    Misplaced {
        /// The record found.
        found: Kind,
        /// What may stand here.
        expected: &'static str,
    },
    /// A record's seal does not match what came before it.
    #[error(
        "damaged: the checksum that seals this record does not match; \
         the damage lies between byte {suspect_from} and byte {suspect_to}"
    )]
    SealMismatch {
        /// First byte that no earlier seal covers, bytes from the beginning of the stream: the payload of
        /// the record before, if it has one.
        suspect_from: u64,
        /// End of this record's header, exclusive.
        suspect_to: u64,
        /// The seal in the record.
        stored: Checksum,
        /// What it should be.
        computed: Checksum,
    },
    /// A record without seal in a stream that seals its records.
    #[error("damaged: this record has no checksum although those before it have")]
    SealMissing,
    /// END's checksum does not match.
    #[error(
        "damaged: the checksum in END does not match; {}",
        if *.sealed { "END itself is damaged, since every record before it was sealed" }
        else { "records of this stream carry no checksums, so the damage can be anywhere in it" }
    )]
    EndChecksumMismatch {
        /// Whether the records before END were sealed one by one.
        sealed: bool,
        /// Where the BEGIN that this END closes stands, bytes from the beginning of the stream.
        begin_offset: u64,
        /// The checksum in END.
        stored: Checksum,
        /// What it should be.
        computed: Checksum,
    },
    /// An END that nothing seals holds more than END holds.
    #[error("damaged: this END record holds bytes that should be zero")]
    EndNotBare,
    /// A record that belongs to another snapshot than its BEGIN says.
    #[error("{kind} belongs to snapshot guid {found:#x}, but its BEGIN says {begin:#x}")]
    GuidMismatch {
        /// The record's type.
        kind: Kind,
        /// The guid in BEGIN.
        begin: u64,
        /// The guid in the record.
        found: u64,
    },
    /// A payload longer than any sender makes it.
    #[error("{kind} claims a payload of {bytes} bytes, the limit is {limit}")]
    PayloadTooLong {
        /// The record's type.
        kind: Kind,
        /// What it claims.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A payload that is not made of 32-bit words.
    #[error("{kind} claims a payload of {bytes} bytes, which is not a multiple of 4")]
    PayloadUnaligned {
        /// The record's type.
        kind: Kind,
        /// What it claims.
        bytes: u64,
    },
    /// Values that make no sense, or need a feature that BEGIN does not announce.
    #[error("{kind} makes no sense: {nonsense}")]
    Implausible {
        /// The record's type.
        kind: Kind,
        /// Which value.
        nonsense: Nonsense,
    },
    /// The stream ends before its END.
    #[error("the stream is cut off here: {have} of {need} bytes")]
    Truncated {
        /// Bytes that are there of this record.
        have: u64,
        /// Bytes it takes, as far as known: the header, or header and payload.
        need: u64,
    },
    /// More bytes after the last END.
    #[error("there are bytes after the end of the stream")]
    TrailingBytes,
    /// One stream inside a package is in another byte order than the package.
    #[error("a stream of {found:?}-endian records inside a package of {package:?}-endian ones")]
    MixedEndian {
        /// The package's byte order.
        package: Endian,
        /// The substream's.
        found: Endian,
    },
}
