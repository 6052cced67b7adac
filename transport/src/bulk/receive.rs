//! Receiving one stream.
//!
//! Owns: the receiving pipeline. One thread takes batches from the lane; the workers decompress and
//! verify; the caller's own thread writes them in order, so that no byte reaches the writer before
//! its batch is proven. A slow writer stops the lane thread at the memory [`super::budget`], that
//! fills QUIC's window, and that stops the sender. While the caller's thread waits for blocks that a batch
//! refers to and nobody here has, the lane's thread reads on ([`super::dedup`]).

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::budget::{Account, Held, Reserve};
use super::buffers::Buffers;
use super::codec::BatchError;
use super::dedup::DedupError;
use super::dedup::receiving::{Blocks, Resolving, Unpacked, assemble};
use super::reseed::held::Held as OldBlocks;
use super::reseed::{OldCopy, Place};
use super::resources::Resources;
use super::{BulkReceiver, Progress};
use crate::cancel::Cancel;
use crate::counters;
use crate::frame::bulk::{
    Abort, AbortCode, BATCH_HEADER_LEN, BatchHeader, Done, Encoding, End, Failed,
};
use crate::frame::dedup::{BLOCKS_HEADER_LEN, Recipe, Resolved, batch_cost};
use crate::frame::reseed::{PASSED_LEN, Passed};
use crate::frame::{FrameError, FrameType, HEADER_LEN};
use crate::lane::{self, LaneError, LaneFrameError, LaneRecv, LaneSend, Until};

/// Batches between lane and writer. Their memory is bounded by the budget; this is as many as fit a
/// credit for references, so that the lane is read while the writer waits for blocks.
const IN_ORDER: usize = 64;

/// What stands before blocks on the lane, in bytes.
const BLOCKS_HEAD_LEN: usize = HEADER_LEN + BLOCKS_HEADER_LEN;

/// How long the answer may take to be taken by the sender.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What was received and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveReport {
    /// Bytes of the stream.
    pub raw_bytes: u64,
    /// Bytes on the lane, frames included.
    pub wire_bytes: u64,
    /// Batches.
    pub batches: u64,
}

/// Why a stream did not arrive. What was written until then is not a whole stream and must not be
/// committed. [`BulkReceiver::finish`] tells the sender.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The caller's writer failed.
    #[error("writing the received stream failed: {source}")]
    Write {
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A batch is not what its header says; none of it was written.
    #[error(transparent)]
    Batch {
        /// Which, and how.
        #[from]
        source: BatchError,
    },
    /// The sender gave up and said why.
    #[error("the sender gave up: {reason}")]
    Aborted {
        /// The kind of reason.
        code: AbortCode,
        /// Its words.
        reason: String,
    },
    /// The sender went away without a word, its connection still there.
    #[error("the sender gave the transfer up without saying why")]
    SenderGone,
    /// The connection was lost.
    #[error("the connection was lost while receiving: {reason}")]
    ConnectionLost {
        /// What the connection said.
        reason: String,
    },
    /// Cancelled on this side.
    #[error("receiving was cancelled: {reason}")]
    Cancelled {
        /// The reason given.
        reason: String,
    },
    /// The sender speaks something else.
    #[error("what the sender sent makes no sense: {source}")]
    Protocol {
        /// What came.
        #[source]
        source: FrameError,
    },
    /// A batch is missing or came twice.
    #[error("batch {expected} was due, batch {found} came")]
    OutOfOrder {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The totals do not match what came.
    #[error(
        "the sender counts {sent_bytes} bytes in {sent_batches} batches, {got_bytes} in \
         {got_batches} came{}",
        if *digest_matches { "" } else { ", and the hash of the whole differs" }
    )]
    Totals {
        /// Bytes, by the sender.
        sent_bytes: u64,
        /// Batches, by the sender.
        sent_batches: u64,
        /// Bytes that came.
        got_bytes: u64,
        /// Batches that came.
        got_batches: u64,
        /// Whether the hash over all batches agrees.
        digest_matches: bool,
    },
    /// The sender broke the rules of dedup.
    #[error(transparent)]
    Dedup {
        /// How.
        #[from]
        source: DedupError,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why an application does not take a transfer; the sender sees both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// A number of the application's own; the transport gives it no meaning.
    pub code: u32,
    /// In words, at most 2 KiB; the rest is cut.
    pub reason: String,
}

/// What the lane's thread hands over, in order.
enum Piece {
    Batch {
        unpacked: Receiver<Result<Unpacked, BatchError>>,
        header: BatchHeader,
        wire: usize,
        /// Bytes that it refers to.
        referenced: usize,
        held: Held,
    },
    /// Nothing before this place of the old copy is referred to any more.
    Passed(Place),
    End(End),
    Failed(ReceiveError),
}

/// Receives one stream into `write`. `Ok` means that every byte of a finished stream was verified and
/// written; the application then commits it and calls [`BulkReceiver::finish`].
///
/// Blocks; call it on a plain thread, or one of the runtime's blocking pool.
///
/// # Errors
/// [`ReceiveError`]. After a cancel or a lost connection it returns as soon as a `write` that it may be
/// blocked in does.
pub fn receive_stream<W: Write + ?Sized>(
    source: &mut BulkReceiver,
    write: &mut W,
    progress: &Progress,
) -> Result<ReceiveReport, ReceiveError> {
    let BulkReceiver { lane, cancel, resources, received, peer, old_copy, .. } = source;
    let (pieces, queue) = crossbeam_channel::bounded(IN_ORDER);
    let (supplied, supply) = crossbeam_channel::bounded(1);
    let account = resources.receiving();
    let cache = peer.and_then(|peer| resources.dedup().cache(peer));
    let old_copy = old_copy.take().filter(|_| peer.is_some());
    let held = old_copy.as_ref().map(|_| Arc::new(OldBlocks::default()));
    let blocks = Blocks { cache, held: held.clone() };
    let resolving = (blocks.cache.is_some() || held.is_some()).then(|| Resolving::new(blocks));
    let result = thread::scope(|scope| {
        let recv = lane.recv.as_mut();
        let resolving = resolving.as_ref();
        let incoming =
            Incoming { resources, cancel, pieces, account: &account, resolving, supplied };
        let started = thread::Builder::new()
            .name("flocker-lane".into())
            .spawn_scoped(scope, move || incoming.run(recv));
        if let Err(source) = started {
            return Err(ReceiveError::Thread { source });
        }
        let mut writing = Writing {
            lane: lane.send.as_mut(),
            cancel,
            account: &account,
            buffers: resources.buffers(),
            reserve: None,
            resources,
            resolving,
            old_copy,
            bell: held.as_ref().map_or_else(crossbeam_channel::never, |held| held.bell.clone()),
            supply,
            progress,
        };
        let result = writing.take(&queue, write);
        if let Err(error) = &result {
            // The lane's thread may wait for bytes that are of no use any more.
            cancel.cancel(&error.to_string());
        }
        drop(queue);
        result
    });
    held.iter().for_each(|held| held.close());
    if let Ok(report) = &result {
        *received = Some(report.raw_bytes);
    }
    result
}

/// The caller's thread.
struct Writing<'a> {
    lane: &'a mut dyn LaneSend,
    cancel: &'a Cancel,
    account: &'a Account,
    buffers: &'a Buffers,
    /// The credit for references, once the cache is offered.
    reserve: Option<Reserve>,
    resources: &'a Resources,
    resolving: Option<&'a Resolving>,
    /// Until it is begun to be read.
    old_copy: Option<OldCopy>,
    /// Rings when there is something to say of the old copy.
    bell: Receiver<()>,
    supply: Receiver<Vec<u8>>,
    progress: &'a Progress,
}

impl Writing<'_> {
    fn take<W: Write + ?Sized>(
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

fn cancelled(cancel: &Cancel) -> ReceiveError {
    ReceiveError::Cancelled { reason: cancel.reason().unwrap_or("interrupted").to_owned() }
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

/// The lane's thread.
struct Incoming<'a> {
    resources: &'a Resources,
    cancel: &'a Cancel,
    pieces: Sender<Piece>,
    account: &'a Account,
    resolving: Option<&'a Resolving>,
    supplied: Sender<Vec<u8>>,
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
    fn run(self, lane: &mut dyn LaneRecv) {
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

impl BulkReceiver {
    /// Tells the sender what became of the transfer, as the last act: `Ok` after the received stream was
    /// committed, `Err` with the reason otherwise, also before or instead of receiving. Blocks for
    /// five seconds at most.
    ///
    /// # Errors
    /// The sender could not be told; it then finds the connection lost or the transfer given up.
    ///
    /// # Panics
    /// With `Ok` when [`receive_stream`] did not return `Ok`: that would acknowledge what is not there.
    pub fn finish(mut self, outcome: Result<(), Refusal>) -> Result<(), LaneError> {
        let until = Until::Elapsed(ANSWER_TIME);
        let (kind, payload) = match outcome {
            Ok(()) => {
                let Some(raw_bytes) = self.received else {
                    panic!("a transfer that was not received cannot be acknowledged");
                };
                (FrameType::Done, Done { raw_bytes }.encode())
            }
            Err(Refusal { code, reason }) => (FrameType::Failed, Failed { code, reason }.encode()),
        };
        let lane = self.lane.send.as_mut();
        lane::send_frame(lane, kind, &payload, until)?;
        lane.finish()?;
        lane.drained(until)
    }
}
