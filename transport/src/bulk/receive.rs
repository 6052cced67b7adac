//! Receiving one stream.
//!
//! Owns: the receiving pipeline. One thread takes batches from the lane; the workers decompress and
//! verify; the caller's own thread writes them in order, so that no byte reaches the writer before
//! its batch is proven. A slow writer stops the lane thread at the memory [`super::budget`], that
//! fills QUIC's window, and that stops the sender.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::budget::Held;
use super::codec::BatchError;
use super::resources::Resources;
use super::{BulkReceiver, Progress};
use crate::cancel::Cancel;
use crate::counters;
use crate::frame::bulk::{
    Abort, AbortCode, BATCH_HEADER_LEN, BatchHeader, Done, Encoding, End, Failed,
};
use crate::frame::{FrameError, FrameType, HEADER_LEN};
use crate::lane::{self, LaneError, LaneFrameError, LaneRecv, Until};

/// Batches between lane and writer: one for each worker, one being written, one ready.
const IN_ORDER: usize = 6;

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
        raw: Receiver<Result<Vec<u8>, BatchError>>,
        header: BatchHeader,
        wire: usize,
        held: Held,
    },
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
    let BulkReceiver { lane, cancel, resources, received, .. } = source;
    let (pieces, queue) = crossbeam_channel::bounded(IN_ORDER);
    let result = thread::scope(|scope| {
        let recv = lane.recv.as_mut();
        let incoming = Incoming { resources, cancel, pieces };
        let started = thread::Builder::new()
            .name("flocker-lane".into())
            .spawn_scoped(scope, move || incoming.run(recv));
        if let Err(source) = started {
            return Err(ReceiveError::Thread { source });
        }
        let result = take(&queue, cancel, write, progress);
        if let Err(error) = &result {
            // The lane's thread may wait for bytes that are of no use any more.
            cancel.cancel(&error.to_string());
        }
        drop(queue);
        result
    });
    if let Ok(report) = &result {
        *received = Some(report.raw_bytes);
    }
    result
}

fn take<W: Write + ?Sized>(
    queue: &Receiver<Piece>,
    cancel: &Cancel,
    write: &mut W,
    progress: &Progress,
) -> Result<ReceiveReport, ReceiveError> {
    let mut report = ReceiveReport { raw_bytes: 0, wire_bytes: 0, batches: 0 };
    let mut digest = blake3::Hasher::new();
    loop {
        match next(queue, cancel)? {
            Piece::Batch { raw, header, wire, held } => {
                let raw = next(&raw, cancel)?.inspect_err(|_| {
                    metrics::counter!(counters::BATCHES_DAMAGED).increment(1);
                })?;
                write.write_all(&raw).map_err(|source| ReceiveError::Write { source })?;
                drop(held);
                digest.update(&header.hash);
                report.raw_bytes += raw.len() as u64;
                report.wire_bytes += wire as u64;
                report.batches += 1;
                progress.add(raw.len(), wire);
                metrics::counter!(counters::BULK_RAW_RECEIVED).increment(raw.len() as u64);
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
}

impl Incoming<'_> {
    fn run(self, lane: &mut dyn LaneRecv) {
        let last = match self.pump(lane) {
            Ok(last) => last,
            Err(LaneFrameError::Frame(source)) => Piece::Failed(ReceiveError::Protocol { source }),
            Err(LaneFrameError::Lane(error)) => Piece::Failed(self.explain(error)),
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
    fn pump(&self, lane: &mut dyn LaneRecv) -> Result<Piece, LaneFrameError> {
        let account = self.resources.receiving();
        let until = Until::Cancelled(self.cancel);
        let allowed = [FrameType::Batch, FrameType::End, FrameType::Abort];
        let mut expected = 0;
        loop {
            let header = lane::read_header(lane, &allowed, "a batch or the end", until)?
                .ok_or(LaneError::Ended)?;
            if header.kind != FrameType::Batch {
                // At most 4 KiB, by the frames' own limits.
                let mut payload = vec![0; header.len];
                lane::fill(lane, &mut payload, until)?;
                return Ok(last_word(header.kind, &payload)?);
            }
            let batch = read_batch_header(lane, header.len, until)?;
            if batch.seq != expected {
                let found = batch.seq;
                return Ok(Piece::Failed(ReceiveError::OutOfOrder { expected, found }));
            }
            expected += 1;
            let body_len = header.len - BATCH_HEADER_LEN;
            let bytes = match batch.encoding {
                Encoding::Stored => body_len,
                Encoding::Zstd => body_len + batch.raw_len,
            };
            let held = account.acquire(bytes, self.cancel).ok_or(LaneError::Interrupted)?;
            let mut body = vec![0; body_len];
            lane::fill(lane, &mut body, until)?;
            let raw = self.resources.run(move |codec| codec.decode(&batch, body));
            let wire = HEADER_LEN + header.len;
            self.put(Piece::Batch { raw, header: batch, wire, held })?;
        }
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
