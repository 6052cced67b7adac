//! Frames: the unit of everything that is sent, as bytes and back.
//!
//! ```text
//!  0        4         5      6          8          12
//!  | magic  | version | type | reserved | length   | payload …
//! ```
//!
//! Owns: the header, the types with their numbers and limits, and the payload of every type
//! ([`hello`], [`bulk`], [`dedup`], [`reseed`], [`lane`], [`pair`]). Leaves to others: reading and writing them ([`crate::lane`],
//! [`crate::framed`]), and what they mean. Every byte is described in `WIRE.md`; a test there
//! compares. All integers are little-endian.

pub mod bulk;
pub mod cursor;
pub mod dedup;
pub mod hello;
pub mod lane;
pub mod pair;
pub mod reseed;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"FLKR";

/// Version of the frame header. It changes only if the header itself does; what the frames say has
/// its own version, [`PROTOCOL_VERSION`], told in [`hello::Hello`].
pub const FRAME_VERSION: u8 = 1;

/// Version of the protocol this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 12;

/// Largest batch before compression, in bytes: a ZFS record up to this goes whole.
pub const MAX_BATCH_RAW: usize = 8 << 20;

/// Largest control payload, in bytes: what a unit of thousands of volumes has, with the names of its snapshots.
pub const MAX_CONTROL: usize = 8 << 20;

/// Largest opaque header of a bulk transfer, in bytes.
pub const MAX_BULK_HEADER: usize = 64 << 10;

/// Every frame type. The numbers are the wire's and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Who is speaking, and which protocol version.
    Hello = 1,
    /// No, and why: version, trust, load.
    Reject = 2,
    /// The acceptor serves this connection.
    Accept = 3,
    /// An opaque control payload.
    Control = 4,
    /// The last frame of this direction here: it goes on over the connection that carries the session on.
    Moved = 5,
    /// Opens a bulk transfer with its opaque header.
    BulkOpen = 16,
    /// A hashed, perhaps compressed, run of records.
    Batch = 17,
    /// The totals of the whole transfer.
    End = 18,
    /// The sender gives up, and why.
    Abort = 19,
    /// The receiving application has it all.
    Done = 20,
    /// The receiving application has it not, and why.
    Failed = 21,
    /// Opens a TLS connection over TCP: to which pair it belongs.
    LaneOpen = 22,
    /// Opens a measurement, with an empty payload; then its filler.
    Probe = 23,
    /// What came of a measurement.
    Probed = 24,
    /// What of the receiver's blocks the sender may refer to.
    Cache = 25,
    /// Batches up to this one are whole.
    Resolved = 26,
    /// References that led to nothing.
    Missing = 27,
    /// The blocks that were missing.
    Blocks = 28,
    /// Blocks of an old copy that the sender may refer to.
    Seeds = 29,
    /// How far the sender's own stream has come.
    Passed = 30,
    /// Joiner to inviter: first PAKE message and addresses.
    PairStart = 32,
    /// Inviter to joiner: second PAKE message and addresses.
    PairAnswer = 33,
    /// Either: the MAC that proves the key.
    PairProof = 34,
    /// Joiner to inviter: both have verified.
    PairConfirm = 35,
    /// Inviter to joiner: no, and how many tries are left.
    PairRefused = 36,
}

impl FrameType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 25] = [
        Self::Hello,
        Self::Reject,
        Self::Accept,
        Self::Control,
        Self::Moved,
        Self::BulkOpen,
        Self::Batch,
        Self::End,
        Self::Abort,
        Self::Done,
        Self::Failed,
        Self::LaneOpen,
        Self::Probe,
        Self::Probed,
        Self::Cache,
        Self::Resolved,
        Self::Missing,
        Self::Blocks,
        Self::Seeds,
        Self::Passed,
        Self::PairStart,
        Self::PairAnswer,
        Self::PairProof,
        Self::PairConfirm,
        Self::PairRefused,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The type with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Largest payload a frame of this type may announce, in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Hello | Self::Reject => 4 << 10,
            Self::Accept | Self::PairConfirm => 64,
            Self::Moved => 0,
            Self::Control => MAX_CONTROL,
            Self::BulkOpen => MAX_BULK_HEADER,
            Self::Batch => bulk::BATCH_HEADER_LEN + dedup::MAX_TABLE + MAX_BATCH_RAW,
            Self::End => bulk::END_LEN,
            Self::Abort | Self::Failed => 4 << 10,
            Self::Done => bulk::DONE_LEN,
            Self::LaneOpen => lane::LANE_OPEN_LEN,
            Self::Probe => lane::MAX_FILLER,
            Self::Probed => lane::PROBED_LEN,
            Self::Cache => dedup::CACHE_LEN,
            Self::Resolved => dedup::RESOLVED_LEN,
            Self::Missing => dedup::MAX_MISSING,
            Self::Blocks => dedup::BLOCKS_HEADER_LEN + dedup::MAX_REFERRING,
            Self::Seeds => reseed::MAX_SEEDS_LEN,
            Self::Passed => reseed::PASSED_LEN,
            Self::PairStart | Self::PairAnswer => 8 << 10,
            Self::PairProof => 32,
            Self::PairRefused => 2 << 10,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("not a flocker-repl frame: it starts with {found:02x?}")]
    Magic {
        /// What stood there.
        found: [u8; 4],
    },
    /// A header of another layout.
    #[error("frame version {found}, this node knows {FRAME_VERSION}")]
    Version {
        /// What stood there.
        found: u8,
    },
    /// A number no type has.
    #[error("unknown frame type {code}")]
    UnknownType {
        /// What stood there.
        code: u8,
    },
    /// Reserved bytes are not zero.
    #[error("reserved bytes of a {kind:?} frame are not zero")]
    Reserved {
        /// Type of the frame.
        kind: FrameType,
    },
    /// A length beyond the type's limit.
    #[error("a {kind:?} frame announces {len} bytes, the limit is {max}")]
    TooLong {
        /// Type of the frame.
        kind: FrameType,
        /// Announced payload, in bytes.
        len: usize,
        /// Largest allowed, in bytes.
        max: usize,
    },
    /// A type that may not come here.
    #[error("a {found:?} frame where {expected} was due")]
    Unexpected {
        /// What came.
        found: FrameType,
        /// What could have come.
        expected: &'static str,
    },
    /// The payload ends before what it must hold, or goes on after it.
    #[error("the payload of a {kind:?} frame is not right: {what}")]
    Payload {
        /// Type of the frame.
        kind: FrameType,
        /// What is wrong.
        what: &'static str,
    },
}

/// What a frame's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type of the frame.
    pub kind: FrameType,
    /// Length of its payload in bytes, within the type's limit.
    pub len: usize,
}

impl Header {
    /// The header of a frame with a payload of `len` bytes.
    ///
    /// # Panics
    /// When `len` is beyond the type's limit: that is a bug of the caller, who bounds what it sends.
    pub fn new(kind: FrameType, len: usize) -> Self {
        assert!(len <= kind.max_payload(), "{kind:?} frame of {len} bytes");
        Self { kind, len }
    }

    /// As bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = FRAME_VERSION;
        out[5] = self.kind.code();
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        out[8..].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// From bytes, every bound checked; nothing is allocated.
    ///
    /// # Errors
    /// Any [`FrameError`] of the header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, version, code, r0, r1, l0, l1, l2, l3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic { found: [m0, m1, m2, m3] });
        }
        if version != FRAME_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let kind = FrameType::from_code(code).ok_or(FrameError::UnknownType { code })?;
        if [r0, r1] != [0, 0] {
            return Err(FrameError::Reserved { kind });
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > kind.max_payload() {
            return Err(FrameError::TooLong { kind, len, max: kind.max_payload() });
        }
        Ok(Self { kind, len })
    }
}

/// A whole frame: header and payload in one buffer.
///
/// # Panics
/// As [`Header::new`].
pub fn encode(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.extend_from_slice(&Header::new(kind, payload.len()).encode());
    out.extend_from_slice(payload);
    out
}
