//! One batch: hashed and compressed, or decompressed and verified.
//!
//! Owns: the contexts and buffers a worker keeps. Leaves to others: which batch comes when.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::buffers::Buffers;
use super::dedup::recipe::Hash;
use super::rung::{SAMPLE_BYTES, Sample};
use crate::frame::bulk::{BATCH_HEADER_LEN, BatchHeader, Encoding};
use crate::frame::dedup::{Recipe, batch_cost};
use crate::frame::{FrameType, Header, MAX_BATCH_RAW};

/// A compressed body that saves less than one part in this many is not worth decompressing.
const MIN_SAVING: usize = 33;

/// What a worker keeps of its output buffer between batches, in bytes.
const KEEP_SCRATCH: usize = 1 << 20;

/// Levels zstd takes that make sense here.
pub const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// Contexts of one worker, made once.
pub struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    level: i32,
    decompressor: zstd::bulk::Decompressor<'static>,
    scratch: Vec<u8>,
    /// Where batches come from and go back to.
    buffers: Arc<Buffers>,
}

/// A batch, ready for the lane.
#[derive(Debug)]
pub struct Encoded {
    /// Frame header, batch header, and the table of its recipe.
    pub head: Bytes,
    /// The rest of the body.
    pub body: Bytes,
    /// What the batch header says.
    pub header: BatchHeader,
    /// Bytes of the batch that are referred to.
    pub referenced: usize,
}

impl Encoded {
    /// What it counts against the receiver's credit, in bytes.
    pub fn cost(&self) -> usize {
        let body_len = self.header.table_len + self.body.len();
        batch_cost(body_len, self.header.raw_len, self.referenced)
    }
}

/// A batch that is not what its header says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// zstd cannot read its body, or it holds more or less than announced.
    #[error("batch {seq} cannot be decompressed to its {raw_len} bytes")]
    Undecodable {
        /// Number of the batch.
        seq: u64,
        /// Announced length of what comes with it, in bytes.
        raw_len: usize,
    },
    /// Its bytes have another BLAKE3.
    #[error("batch {seq} was damaged on its way: its BLAKE3 does not match")]
    Hash {
        /// Number of the batch.
        seq: u64,
    },
}

impl Codec {
    /// New contexts, for tests and whoever has no others.
    ///
    /// # Errors
    /// zstd has no memory.
    pub fn new() -> std::io::Result<Self> {
        Self::sharing(Arc::default())
    }

    /// New contexts that use these buffers.
    ///
    /// # Errors
    /// zstd has no memory.
    pub fn sharing(buffers: Arc<Buffers>) -> std::io::Result<Self> {
        let level = 1;
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(level)?,
            level,
            decompressor: zstd::bulk::Decompressor::new()?,
            scratch: Vec::new(),
            buffers,
        })
    }

    /// Hashes a batch and compresses it at `level`, or stores it when that does not pay.
    ///
    /// # Panics
    /// With an empty batch or one beyond [`MAX_BATCH_RAW`]: the cutter bounds them.
    pub fn encode(&mut self, seq: u64, raw: Vec<u8>, level: Option<i32>) -> Encoded {
        assert!(!raw.is_empty() && raw.len() <= MAX_BATCH_RAW, "a batch of {} bytes", raw.len());
        let hash = *blake3::hash(&raw).as_bytes();
        let raw_len = raw.len();
        let (encoding, body) = match level.and_then(|level| self.compress(&raw, level)) {
            Some(body) => {
                self.buffers.give(raw);
                (Encoding::Zstd, body)
            }
            None => (Encoding::Stored, self.buffers.lend(raw)),
        };
        let header = BatchHeader { seq, raw_len, encoding, table_len: 0, hash };
        Encoded { head: head(&header, &[], body.len()), body, header, referenced: 0 }
    }

    /// Compresses at `level` what comes with a batch that has a recipe, or stores it.
    ///
    /// # Panics
    /// When `literal` is not what the recipe says comes with it.
    pub fn encode_recipe(
        &mut self,
        seq: u64,
        recipe: &Recipe,
        seal: Hash,
        literal: Vec<u8>,
        level: Option<i32>,
    ) -> Encoded {
        assert!(literal.len() == recipe.literal_len(), "{} bytes of literals", literal.len());
        let (encoding, body) = match level.and_then(|level| self.compress(&literal, level)) {
            Some(body) => {
                self.buffers.give(literal);
                (Encoding::RecipeZstd, body)
            }
            None => (Encoding::RecipeStored, self.buffers.lend(literal)),
        };
        let table = recipe.encode();
        let (table_len, referenced) = (table.len(), recipe.referenced_len());
        let raw_len = recipe.literal_len() + referenced;
        let header = BatchHeader { seq, raw_len, encoding, table_len, hash: seal };
        Encoded { head: head(&header, &table, body.len()), body, header, referenced }
    }

    /// What compressing at level 1 would do to a batch, from a piece out of its middle; `None` where that says nothing.
    pub fn sample(&mut self, raw: &[u8]) -> Option<Sample> {
        let from = raw.len().checked_sub(SAMPLE_BYTES)? / 2;
        let started = Instant::now();
        let left = self.squeeze(&raw[from..from + SAMPLE_BYTES], 1)?;
        Some(Sample { bytes: SAMPLE_BYTES, left, took: started.elapsed() })
    }

    /// Compresses into `scratch`; the length of what is there then. `None`: zstd refuses.
    fn squeeze(&mut self, raw: &[u8], level: i32) -> Option<usize> {
        let level = level.clamp(*LEVELS.start(), *LEVELS.end());
        if level != self.level {
            self.compressor.set_compression_level(level).ok()?;
            self.level = level;
        }
        self.scratch.clear();
        self.scratch.reserve_exact(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, &mut self.scratch).ok()
    }

    /// `None` when it does not shrink enough, or zstd refuses.
    fn compress(&mut self, raw: &[u8], level: i32) -> Option<Bytes> {
        let written = self.squeeze(raw, level)?;
        let pays = written <= raw.len() - raw.len() / MIN_SAVING && written < raw.len();
        // Copied, so that what the lane holds until it is acknowledged is no larger than its length.
        let body = pays.then(|| Bytes::copy_from_slice(&self.scratch));
        if self.scratch.capacity() > 2 * KEEP_SCRATCH {
            self.scratch = Vec::new();
        }
        body
    }

    /// The batch behind a body, its hash verified.
    ///
    /// # Errors
    /// [`BatchError`]; nothing of the batch may be used then.
    pub fn decode(&mut self, header: &BatchHeader, body: Vec<u8>) -> Result<Vec<u8>, BatchError> {
        let BatchHeader { seq, raw_len, hash, .. } = *header;
        let raw = self.unpack(header, raw_len, body)?;
        if blake3::hash(&raw) != blake3::Hash::from_bytes(hash) {
            return Err(BatchError::Hash { seq });
        }
        Ok(raw)
    }

    /// What came with a batch, `len` bytes of it, unverified, with room for the whole batch.
    ///
    /// # Errors
    /// [`BatchError::Undecodable`].
    pub fn unpack(
        &mut self,
        header: &BatchHeader,
        len: usize,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, BatchError> {
        let wrong = Err(BatchError::Undecodable { seq: header.seq, raw_len: len });
        if !header.encoding.is_compressed() {
            return if body.len() == len { Ok(body) } else { wrong };
        }
        let mut raw = self.buffers.empty(header.raw_len);
        let written = self.decompressor.decompress_to_buffer(&body, &mut raw);
        self.buffers.give(body);
        if written.is_ok_and(|written| written == len) { Ok(raw) } else { wrong }
    }
}

/// Everything before the bytes of a batch.
fn head(header: &BatchHeader, table: &[u8], body_len: usize) -> Bytes {
    let frame = Header::new(FrameType::Batch, BATCH_HEADER_LEN + table.len() + body_len);
    Bytes::from([&frame.encode()[..], &header.encode(), table].concat())
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").field("level", &self.level).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn what_shrinks_is_compressed_and_comes_back() {
        let mut codec = Codec::new().unwrap();
        let raw = b"database page ".repeat(1000);
        for level in [-5, 1, 3] {
            let encoded = codec.encode(7, raw.clone(), Some(level));
            assert_eq!(encoded.header.encoding, Encoding::Zstd);
            assert!(encoded.body.len() < raw.len() / 10);
            assert_eq!(codec.decode(&encoded.header, encoded.body.to_vec()), Ok(raw.clone()));
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored() {
        let mut codec = Codec::new().unwrap();
        let raw = noise(100_000);
        let encoded = codec.encode(0, raw.clone(), Some(1));
        assert_eq!((encoded.header.encoding, encoded.body.len()), (Encoding::Stored, raw.len()));
        assert_eq!(codec.decode(&encoded.header, encoded.body.to_vec()), Ok(raw));
        let off = codec.encode(0, vec![0; 4096], None);
        assert_eq!(off.header.encoding, Encoding::Stored);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_body_never_yields_other_bytes() {
        let mut codec = Codec::new().unwrap();
        for raw in [b"page ".repeat(500), noise(600)] {
            let good = codec.encode(3, raw.clone(), Some(1));
            let mut found = 0;
            for at in 0..good.body.len() * 8 {
                let mut body = good.body.to_vec();
                body[at / 8] ^= 1 << (at % 8);
                // A few bits of a zstd frame say nothing; all others must be noticed.
                match codec.decode(&good.header, body) {
                    Ok(decoded) => assert_eq!(decoded, raw, "flipped at bit {at}"),
                    Err(_) => found += 1,
                }
            }
            assert!(found * 10 > good.body.len() * 8 * 9, "{found} of {}", good.body.len() * 8);
        }
    }

    #[test]
    fn a_body_that_holds_more_than_announced_is_refused_within_its_bound() {
        let mut codec = Codec::new().unwrap();
        let good = codec.encode(3, vec![7; 1 << 20], Some(1));
        let lie = BatchHeader { raw_len: 1000, ..good.header };
        let error = codec.decode(&lie, good.body.to_vec()).unwrap_err();
        assert_eq!(error, BatchError::Undecodable { seq: 3, raw_len: 1000 });
    }
}
