//! Receiving one stream.
//!
//! Owns: the receiving pipeline. One thread takes batches from the lane; the workers decompress and
//! verify; the caller's own thread writes them in order, so that no byte reaches the writer before
//! its batch is proven. A slow writer stops the lane thread at the memory [`super::budget`], that
//! fills QUIC's window, and that stops the sender. While the caller's thread waits for blocks that a batch
//! refers to and nobody here has, the lane's thread reads on ([`super::dedup`]).

mod incoming;
mod writing;

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::budget::Held;
use super::codec::BatchError;
use super::dedup::DedupError;
use super::dedup::receiving::{Blocks, Resolving, Unpacked};
use super::reseed::Place;
use super::reseed::held::Held as OldBlocks;
use super::{BulkReceiver, Progress};
use crate::cancel::Cancel;
use crate::frame::bulk::{AbortCode, BatchHeader, Done, End, Failed};
use crate::frame::{FrameError, FrameType};
use crate::lane::{self, LaneError, Until};
use incoming::Incoming;
use writing::Writing;

/// Batches between lane and writer. Their memory is bounded by the budget; this is as many as fit a
/// credit for references, so that the lane is read while the writer waits for blocks.
const IN_ORDER: usize = 64;

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

fn cancelled(cancel: &Cancel) -> ReceiveError {
    ReceiveError::Cancelled { reason: cancel.reason().unwrap_or("interrupted").to_owned() }
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
