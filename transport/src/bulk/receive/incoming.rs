//! The lane's thread: reads frames, has batches decompressed and verified, and hands them over in order.
//!
//! Owns: the receiving half of the lane, what may come when. Leaves to others: writing ([`super::writing`]).

use crossbeam_channel::{Sender, select};

use super::{Piece, ReceiveError, cancelled};
use crate::bulk::budget::Account;
use crate::bulk::dedup::DedupError;
use crate::bulk::dedup::receiving::{Resolving, Unpacked, assemble};
use crate::bulk::resources::Resources;
use crate::cancel::Cancel;
use crate::frame::bulk::{Abort, BATCH_HEADER_LEN, BatchHeader, Encoding, End};
use crate::frame::dedup::{BLOCKS_HEADER_LEN, Recipe, batch_cost};
use crate::frame::reseed::Passed;
use crate::frame::{FrameError, FrameType, HEADER_LEN};
use crate::lane::{self, LaneError, LaneFrameError, LaneRecv, Until};

/// The lane's thread.
pub(super) struct Incoming<'a> {
    pub(super) resources: &'a Resources,
    pub(super) cancel: &'a Cancel,
    pub(super) pieces: Sender<Piece>,
    pub(super) account: &'a Account,
    pub(super) resolving: Option<&'a Resolving>,
    pub(super) supplied: Sender<Vec<u8>>,
}

/// Why the lane's thread stops in the middle.
enum Stop {
    Lane(LaneError),
    Frame(FrameError),
    Dedup(DedupError),
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Self::Lane(error)
    }
}

impl From<FrameError> for Stop {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<DedupError> for Stop {
    fn from(error: DedupError) -> Self {
        Self::Dedup(error)
    }
}

impl From<LaneFrameError> for Stop {
    fn from(error: LaneFrameError) -> Self {
        match error {
            LaneFrameError::Lane(error) => Self::Lane(error),
            LaneFrameError::Frame(error) => Self::Frame(error),
        }
    }
}

impl Incoming<'_> {
    pub(super) fn run(self, lane: &mut dyn LaneRecv) {
        let last = match self.pump(lane) {
            Ok(last) => last,
            Err(Stop::Frame(source)) => Piece::Failed(ReceiveError::Protocol { source }),
            Err(Stop::Dedup(source)) => Piece::Failed(ReceiveError::Dedup { source }),
            Err(Stop::Lane(error)) => Piece::Failed(self.explain(error)),
        };
        let _ = self.put(last);
    }

    fn explain(&self, error: LaneError) -> ReceiveError {
        match error {
            LaneError::Lost { reason } => ReceiveError::ConnectionLost { reason },
            LaneError::Interrupted => cancelled(self.cancel),
            LaneError::Reset { .. } | LaneError::Stopped { .. } | LaneError::Ended => {
                ReceiveError::SenderGone
            }
        }
    }

    /// Hands over batches until the last word, which it returns.
    fn pump(&self, lane: &mut dyn LaneRecv) -> Result<Piece, Stop> {
        use FrameType as F;
        let until = Until::Cancelled(self.cancel);
        let reseeding = |resolving: &Resolving| resolving.blocks.held.is_some();
        let allowed: &[F] = match self.resolving {
            Some(resolving) if reseeding(resolving) => {
                &[F::Batch, F::End, F::Abort, F::Blocks, F::Passed]
            }
            Some(_) => &[F::Batch, F::End, F::Abort, F::Blocks],
            None => &[F::Batch, F::End, F::Abort],
        };
        let mut expected = 0;
        loop {
            let header = lane::read_header(lane, allowed, "a batch or the end", until)?
                .ok_or(LaneError::Ended)?;
            match header.kind {
                F::Batch => {}
                F::Blocks => {
                    self.blocks(lane, header.len)?;
                    continue;
                }
                F::Passed => {
                    let mut payload = vec![0; header.len];
                    lane::fill(lane, &mut payload, until)?;
                    self.put(Piece::Passed(Passed::decode(&payload)?.place))?;
                    continue;
                }
                _ => {
                    // At most 4 KiB, by the frames' own limits.
                    let mut payload = vec![0; header.len];
                    lane::fill(lane, &mut payload, until)?;
                    return Ok(last_word(header.kind, &payload)?);
                }
            }
            let batch = read_batch_header(lane, header.len, until)?;
            if batch.seq != expected {
                let found = batch.seq;
                return Ok(Piece::Failed(ReceiveError::OutOfOrder { expected, found }));
            }
            expected += 1;
            self.batch(lane, batch, header.len - BATCH_HEADER_LEN)?;
        }
    }

    /// Takes a batch from behind its header and hands it over.
    fn batch(
        &self,
        lane: &mut dyn LaneRecv,
        batch: BatchHeader,
        body_len: usize,
    ) -> Result<(), Stop> {
        let (until, BatchHeader { seq, raw_len, encoding, table_len, .. }) =
            (Until::Cancelled(self.cancel), batch);
        let not_offered = DedupError::NotOffered { seq };
        let (mut recipe, mut referenced) = (None, 0);
        if encoding.has_recipe() {
            let offered = self.resolving.filter(|resolving| resolving.is_offered());
            let resolving = offered.ok_or(not_offered)?;
            // Bounded by the header.
            let mut table = vec![0; table_len];
            lane::fill(lane, &mut table, until)?;
            let parts = Recipe::decode(&table, raw_len)?;
            referenced = parts.referenced_len();
            recipe = Some((parts, resolving.blocks.clone()));
        }
        if let Some(resolving) = self.resolving {
            resolving.arriving(seq, batch_cost(body_len, raw_len, referenced), referenced > 0)?;
        }
        let bytes = match encoding {
            Encoding::Stored => body_len,
            Encoding::Zstd => body_len + raw_len,
            Encoding::RecipeStored | Encoding::RecipeZstd => body_len + raw_len + referenced,
        };
        let held = self.account.acquire(bytes, self.cancel).ok_or(LaneError::Interrupted)?;
        // What is stored is put together where it is.
        let room = if encoding.is_compressed() { 0 } else { raw_len };
        let mut body = self.resources.buffers().filled(body_len - table_len, room);
        lane::fill(lane, &mut body, until)?;
        let unpacked = self.resources.run(move |codec| match recipe {
            Some((recipe, blocks)) => assemble(codec, &batch, recipe, body, &blocks),
            None => codec.decode(&batch, body).map(Unpacked::Whole),
        });
        let wire = HEADER_LEN + BATCH_HEADER_LEN + body_len;
        Ok(self.put(Piece::Batch { unpacked, header: batch, wire, referenced, held })?)
    }

    /// Takes blocks that were asked for; their room is counted with the batch that lacks them.
    fn blocks(&self, lane: &mut dyn LaneRecv, payload_len: usize) -> Result<(), Stop> {
        let until = Until::Cancelled(self.cancel);
        let what = "it is too short";
        let len = payload_len
            .checked_sub(BLOCKS_HEADER_LEN)
            .ok_or(FrameError::Payload { kind: FrameType::Blocks, what })?;
        let mut seq = [0; BLOCKS_HEADER_LEN];
        lane::fill(lane, &mut seq, until)?;
        let seq = u64::from_le_bytes(seq);
        let resolving = self.resolving.ok_or(DedupError::NotOffered { seq })?;
        resolving.supplied(seq, len)?;
        let mut blocks = vec![0; len];
        lane::fill(lane, &mut blocks, until)?;
        // The writer waits for just these, and there is room for one.
        self.supplied.send(blocks).map_err(|_| LaneError::Interrupted)?;
        Ok(())
    }

    fn put(&self, piece: Piece) -> Result<(), LaneError> {
        select! {
            send(self.pieces, piece) -> sent => sent.map_err(|_| LaneError::Interrupted),
            recv(self.cancel.channel()) -> _ => Err(LaneError::Interrupted),
        }
    }
}

fn read_batch_header(
    lane: &mut dyn LaneRecv,
    payload_len: usize,
    until: Until<'_>,
) -> Result<BatchHeader, LaneFrameError> {
    let what = "it is too short";
    let body_len = payload_len
        .checked_sub(BATCH_HEADER_LEN)
        .ok_or(FrameError::Payload { kind: FrameType::Batch, what })?;
    let mut bytes = [0; BATCH_HEADER_LEN];
    lane::fill(lane, &mut bytes, until)?;
    Ok(BatchHeader::decode(&bytes, body_len)?)
}

fn last_word(kind: FrameType, payload: &[u8]) -> Result<Piece, FrameError> {
    if kind == FrameType::End {
        return Ok(Piece::End(End::decode(payload)?));
    }
    let Abort { code, reason } = Abort::decode(payload)?;
    Ok(Piece::Failed(ReceiveError::Aborted { code, reason }))
}
