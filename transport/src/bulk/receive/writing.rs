//! The caller's thread: writes batches in order, offers the cache, announces the old copy, and asks for what is missing.
//!
//! Owns: the sending half of the lane, the totals. Leaves to others: the lane's bytes ([`super::incoming`]).

use std::io::Write;
use std::sync::Arc;

use crossbeam_channel::{Receiver, select};

use super::{Piece, ReceiveError, ReceiveReport, cancelled};
use crate::bulk::Progress;
use crate::bulk::budget::{Account, Reserve};
use crate::bulk::buffers::Buffers;
use crate::bulk::codec::BatchError;
use crate::bulk::dedup::DedupError;
use crate::bulk::dedup::receiving::{Resolving, Unpacked};
use crate::bulk::reseed::OldCopy;
use crate::bulk::reseed::held::Held as OldBlocks;
use crate::bulk::resources::Resources;
use crate::cancel::Cancel;
use crate::counters;
use crate::frame::bulk::End;
use crate::frame::dedup::{BLOCKS_HEADER_LEN, Resolved};
use crate::frame::reseed::PASSED_LEN;
use crate::frame::{FrameType, HEADER_LEN};
use crate::lane::{self, LaneSend, Until};

/// What stands before blocks on the lane, in bytes.
const BLOCKS_HEAD_LEN: usize = HEADER_LEN + BLOCKS_HEADER_LEN;

/// The caller's thread.
pub(super) struct Writing<'a> {
    pub(super) lane: &'a mut dyn LaneSend,
    pub(super) cancel: &'a Cancel,
    pub(super) account: &'a Account,
    pub(super) buffers: &'a Buffers,
    /// The credit for references, once the cache is offered.
    pub(super) reserve: Option<Reserve>,
    pub(super) resources: &'a Resources,
    pub(super) resolving: Option<&'a Resolving>,
    /// Until it is begun to be read.
    pub(super) old_copy: Option<OldCopy>,
    /// Rings when there is something to say of the old copy.
    pub(super) bell: Receiver<()>,
    pub(super) supply: Receiver<Vec<u8>>,
    pub(super) progress: &'a Progress,
}

impl Writing<'_> {
    pub(super) fn take<W: Write + ?Sized>(
        &mut self,
        queue: &Receiver<Piece>,
        write: &mut W,
    ) -> Result<ReceiveReport, ReceiveError> {
        let mut report = ReceiveReport { raw_bytes: 0, wire_bytes: 0, batches: 0 };
        let mut digest = blake3::Hasher::new();
        loop {
            self.offer();
            match self.next(queue)? {
                Piece::Passed(place) => {
                    self.held().iter().for_each(|held| held.passed(place));
                    let wire = HEADER_LEN + PASSED_LEN;
                    report.wire_bytes += wire as u64;
                    self.progress.add_wire(wire);
                    metrics::counter!(counters::BULK_WIRE_RECEIVED).increment(wire as u64);
                }
                Piece::Batch { unpacked, header, wire, referenced, held } => {
                    let unpacked = next(&unpacked, self.cancel)?.inspect_err(damaged)?;
                    let (raw, supplied) = self.complete(unpacked, queue)?;
                    if header.encoding.has_recipe() {
                        self.resolved(header.seq);
                    }
                    write.write_all(&raw).map_err(|source| ReceiveError::Write { source })?;
                    let raw_len = raw.len();
                    self.buffers.give(raw);
                    drop(held);
                    digest.update(&header.hash);
                    let wire = wire + if supplied == 0 { 0 } else { BLOCKS_HEAD_LEN + supplied };
                    report.raw_bytes += raw_len as u64;
                    report.wire_bytes += wire as u64;
                    report.batches += 1;
                    self.progress.add(raw_len, wire);
                    self.progress.save(referenced - supplied);
                    metrics::counter!(counters::BULK_RAW_RECEIVED).increment(raw_len as u64);
                    metrics::counter!(counters::BULK_WIRE_RECEIVED).increment(wire as u64);
                    metrics::counter!(counters::BATCHES_RECEIVED).increment(1);
                }
                Piece::End(end) => {
                    compare(&end, &report, digest.finalize().as_bytes())?;
                    write.flush().map_err(|source| ReceiveError::Write { source })?;
                    return Ok(report);
                }
                Piece::Failed(error) => return Err(error),
            }
        }
    }

    fn held(&self) -> Option<&Arc<OldBlocks>> {
        self.resolving?.blocks.held.as_ref()
    }

    /// The next piece; says meanwhile what there is to say of the old copy.
    fn next(&mut self, queue: &Receiver<Piece>) -> Result<Piece, ReceiveError> {
        loop {
            if let Some(held) = self.held() {
                let (seeds, read) = (held.to_announce(), held.read_bytes());
                let some = seeds.as_ref().is_some_and(|seeds| !seeds.seeds.is_empty());
                self.progress.announced(read, some);
                if let Some(seeds) = seeds {
                    self.tell(FrameType::Seeds, &seeds.encode());
                }
            }
            select! {
                recv(queue) -> got => return got.map_err(|_| cancelled(self.cancel)),
                recv(self.bell) -> _ => {}
                recv(self.cancel.channel()) -> _ => return Err(cancelled(self.cancel)),
            }
        }
    }

    /// Tells the sender something of blocks. When that fails, it is gone or about to be, and the lane says
    /// why.
    fn tell(&mut self, kind: FrameType, payload: &[u8]) {
        let told = lane::send_frame(self.lane, kind, payload, Until::Cancelled(self.cancel));
        if let Err(error) = told {
            tracing::debug!(%error, ?kind, "the sender could not be told");
        }
    }

    /// Offers the cache as soon as there is room for what may follow from that.
    fn offer(&mut self) {
        let Some(resolving) = self.resolving.filter(|_| self.reserve.is_none()) else { return };
        let reserve = Resources::credit(self.account);
        if let (None, Some(held), Some(_)) = (&reserve, self.held(), &self.old_copy) {
            // Who waits for it would wait for another transfer.
            held.end();
            self.old_copy = None;
        }
        if let Some((reserve, credit)) = reserve {
            self.reserve = Some(reserve);
            self.progress.offered(true);
            self.tell(FrameType::Cache, &resolving.offer(credit).encode());
            if let (Some(old_copy), Some(held)) = (self.old_copy.take(), self.held()) {
                old_copy.start(self.resources, held);
            }
        }
    }

    fn resolved(&mut self, seq: u64) {
        if let Some(resolving) = self.resolving {
            resolving.resolved(seq);
            self.tell(FrameType::Resolved, &Resolved { seq }.encode());
        }
    }

    /// The whole batch, and how many bytes of it had to be asked for.
    fn complete(
        &mut self,
        unpacked: Unpacked,
        queue: &Receiver<Piece>,
    ) -> Result<(Vec<u8>, usize), ReceiveError> {
        let (mut assembly, resolving) = match (unpacked, self.resolving) {
            (Unpacked::Whole(raw), _) => return Ok((raw, 0)),
            (Unpacked::Lacking(assembly), Some(resolving)) => (assembly, resolving),
            (Unpacked::Lacking(assembly), None) => {
                return Err(DedupError::NotOffered { seq: assembly.seq() }.into());
            }
        };
        if assembly.look_again(&resolving.blocks) {
            let raw = assembly.supply(&[], &resolving.blocks).inspect_err(damaged)?;
            return Ok((raw, 0));
        }
        let question = assembly.question();
        metrics::counter!(counters::DEDUP_MISSING).increment(question.parts.len() as u64);
        resolving.ask(&assembly);
        self.tell(FrameType::Missing, &question.encode());
        let blocks = select! {
            recv(self.supply) -> blocks => blocks.ok(),
            recv(self.cancel.channel()) -> _ => return Err(cancelled(self.cancel)),
        };
        let Some(blocks) = blocks else {
            return Err(self.last_word(queue, assembly.seq()));
        };
        let raw = assembly.supply(&blocks, &resolving.blocks).inspect_err(damaged)?;
        Ok((raw, blocks.len()))
    }

    /// Why the lane's thread ended without the blocks that were asked for.
    fn last_word(&self, queue: &Receiver<Piece>, seq: u64) -> ReceiveError {
        loop {
            match next(queue, self.cancel) {
                Ok(Piece::Failed(error)) | Err(error) => return error,
                Ok(Piece::End(_)) => return DedupError::NotSupplied { seq }.into(),
                Ok(Piece::Batch { .. } | Piece::Passed(_)) => {}
            }
        }
    }
}

fn damaged(_: &BatchError) {
    metrics::counter!(counters::BATCHES_DAMAGED).increment(1);
}

fn next<T>(queue: &Receiver<T>, cancel: &Cancel) -> Result<T, ReceiveError> {
    select! {
        recv(queue) -> got => got.map_err(|_| cancelled(cancel)),
        recv(cancel.channel()) -> _ => Err(cancelled(cancel)),
    }
}

fn compare(end: &End, report: &ReceiveReport, digest: &[u8; 32]) -> Result<(), ReceiveError> {
    let digest_matches = end.digest == *digest;
    if digest_matches && end.raw_bytes == report.raw_bytes && end.batches == report.batches {
        return Ok(());
    }
    Err(ReceiveError::Totals {
        sent_bytes: end.raw_bytes,
        sent_batches: end.batches,
        got_bytes: report.raw_bytes,
        got_batches: report.batches,
        digest_matches,
    })
}
