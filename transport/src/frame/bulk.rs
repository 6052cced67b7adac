//! Payloads of a bulk transfer: batches, their end, and the answer.
//!
//! Owns: their bytes and bounds. Leaves to others: cutting, compressing, verifying
//! ([`crate::bulk`]).

use super::cursor::{Put, Take};
use super::dedup::MAX_TABLE;
use super::{FrameError, FrameType, MAX_BATCH_RAW};

/// Length of a batch's own header within the payload, in bytes.
pub const BATCH_HEADER_LEN: usize = 48;

/// Length of an End payload, in bytes.
pub const END_LEN: usize = 48;

/// Length of a Done payload, in bytes.
pub const DONE_LEN: usize = 8;

/// Longest reason of an Abort or Failed, in bytes.
pub const MAX_REASON: usize = 2048;

/// How the body of a batch is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Stored = 0,
    /// One independent zstd frame.
    Zstd = 1,
    /// A recipe, and what comes with it as it is.
    RecipeStored = 2,
    /// A recipe, and what comes with it as one independent zstd frame.
    RecipeZstd = 3,
}

impl Encoding {
    /// Whether the body begins with a recipe.
    pub fn has_recipe(self) -> bool {
        matches!(self, Self::RecipeStored | Self::RecipeZstd)
    }

    /// Whether what comes is compressed.
    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Zstd | Self::RecipeZstd)
    }
}

/// What stands before the body of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Number of the batch in its transfer, from 0.
    pub seq: u64,
    /// Length of the batch when decompressed, in bytes, 1 to [`MAX_BATCH_RAW`].
    pub raw_len: usize,
    /// How the body is kept.
    pub encoding: Encoding,
    /// Bytes of the recipe's table at the beginning of the body; 0 without a recipe.
    pub table_len: usize,
    /// BLAKE3 of the batch when decompressed; with a recipe, its seal
    /// ([`crate::bulk::dedup::recipe::seal`]).
    pub hash: [u8; 32],
}

impl BatchHeader {
    /// As bytes.
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut out = [0; BATCH_HEADER_LEN];
        out[..8].copy_from_slice(&self.seq.to_le_bytes());
        let raw_len = u32::try_from(self.raw_len).unwrap_or(u32::MAX);
        out[8..12].copy_from_slice(&raw_len.to_le_bytes());
        out[12] = self.encoding as u8;
        let table_len = u32::try_from(self.table_len).unwrap_or(u32::MAX).to_le_bytes();
        out[13..16].copy_from_slice(&table_len[..3]);
        out[16..].copy_from_slice(&self.hash);
        out
    }

    /// From the first bytes of the payload of a Batch frame whose body is `body_len` bytes long.
    ///
    /// # Errors
    /// [`FrameError::Payload`] for a length out of bounds, an unknown encoding, or a body that is
    /// longer than what it decodes to.
    pub fn decode(bytes: &[u8; BATCH_HEADER_LEN], body_len: usize) -> Result<Self, FrameError> {
        let wrong = |what| FrameError::Payload { kind: FrameType::Batch, what };
        let mut take = Take::new(FrameType::Batch, bytes);
        let seq = take.u64()?;
        let raw_len = take.u32()? as usize;
        if raw_len == 0 || raw_len > MAX_BATCH_RAW {
            return Err(wrong("its length is out of bounds"));
        }
        let kind = take.u8()?;
        let [t0, t1, t2] = take.array()?;
        let table_len = u32::from_le_bytes([t0, t1, t2, 0]) as usize;
        let literal_len =
            body_len.checked_sub(table_len).ok_or(wrong("its recipe is longer than its body"))?;
        let encoding = match kind {
            0 | 1 if table_len != 0 => return Err(wrong("it has a recipe where none may be")),
            0 if body_len == raw_len => Encoding::Stored,
            0 => return Err(wrong("a stored body has another length than it says")),
            1 if body_len < raw_len => Encoding::Zstd,
            2 | 3 if table_len == 0 => return Err(wrong("its recipe is empty")),
            2 | 3 if table_len > MAX_TABLE => return Err(wrong("its recipe is too long")),
            2 if literal_len <= raw_len => Encoding::RecipeStored,
            3 if literal_len < raw_len => Encoding::RecipeZstd,
            1..=3 => return Err(wrong("its body is not shorter than what it holds")),
            _ => return Err(wrong("its encoding is unknown")),
        };
        Ok(Self { seq, raw_len, encoding, table_len, hash: take.array()? })
    }
}

/// The totals of a whole transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Bytes of the stream.
    pub raw_bytes: u64,
    /// Number of batches.
    pub batches: u64,
    /// BLAKE3 over the hashes of all batches, in order.
    pub digest: [u8; 32],
}

impl End {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u64(self.raw_bytes).u64(self.batches).bytes(&self.digest).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::End, payload);
        let end = Self { raw_bytes: take.u64()?, batches: take.u64()?, digest: take.array()? };
        take.end()?;
        Ok(end)
    }
}

/// Why the sender gave up. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum AbortCode {
    /// Something this version does not know.
    Other = 0,
    /// It was told to stop.
    Cancelled = 1,
    /// What it sends from failed: the read, or the sender's own verdict.
    Source = 2,
    /// The stream it was to send is damaged.
    Damaged = 3,
}

impl AbortCode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Other, Self::Cancelled, Self::Source, Self::Damaged];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The meaning of a number; one this version does not know is [`AbortCode::Other`].
    pub fn from_code(code: u16) -> Self {
        Self::ALL.into_iter().find(|c| c.code() == code).unwrap_or(Self::Other)
    }
}

/// The sender gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abort {
    /// Why.
    pub code: AbortCode,
    /// Why, in words.
    pub reason: String,
}

impl Abort {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u16(self.code.code()).text(&self.reason, MAX_REASON).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Abort, payload);
        let abort =
            Self { code: AbortCode::from_code(take.u16()?), reason: take.text(MAX_REASON)? };
        take.end()?;
        Ok(abort)
    }
}

/// The receiving application has committed it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Bytes of the stream that it took.
    pub raw_bytes: u64,
}

impl Done {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u64(self.raw_bytes).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Done, payload);
        let done = Self { raw_bytes: take.u64()? };
        take.end()?;
        Ok(done)
    }
}

/// The receiver, or its application, did not take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// A number of the application's own; the transport gives it no meaning.
    pub code: u32,
    /// Why, in words.
    pub reason: String,
}

impl Failed {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Put::default().u32(self.code).text(&self.reason, MAX_REASON).done()
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut take = Take::new(FrameType::Failed, payload);
        let failed = Self { code: take.u32()?, reason: take.text(MAX_REASON)? };
        take.end()?;
        Ok(failed)
    }
}
