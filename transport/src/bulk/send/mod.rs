//! Sending one stream.
//!
//! Owns: the sending pipeline. Three threads: one reads, cuts and verifies (`source`); one hears the receiver
//! (`answer`); the caller's own puts batches on the lane in order, and the blocks that are asked for (`outgoing`).
//! Between the first and the last stands a queue of `IN_ORDER` batches and, before that, the memory [`super::budget`]:
//! when the lane is full the reader stops, and so does `zfs send` at its pipe.
//!
//! The reading thread alone touches the caller's reader. When the transfer ends early it is left behind:
//! it drops the reader, which stops the send, as soon as the read that it may be blocked in returns.

mod outgoing;
mod source;

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use zfs_stream::StreamError;

use super::answer::start_listening;
use super::budget::Held;
use super::codec::Encoded;
use super::dedup::DedupError;
use super::dedup::sending::Referring;
use super::level::{Adaptive, Compression, Content, Learned};
use super::reseed::Place;
use super::{BulkSender, Progress};
use crate::frame::FrameError;
use crate::lane::choice::LaneKind;
use outgoing::Outgoing;
use source::Source;

/// Batches between reader and lane: one for each worker, one going out, one ready.
const IN_ORDER: usize = 6;

/// How long the answer may lag behind the end of the lane that came with it.
pub(in crate::bulk) const ANSWER_LAG: Duration = Duration::from_secs(1);

/// An error of any kind, from the caller's own reader.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendOptions {
    /// How hard to compress.
    pub compression: Compression,
    /// The receiver has agreed to announce an old copy of what is sent ([`super::reseed`]); its next word is waited
    /// for so long.
    pub reseed: Option<Duration>,
    /// What the last transfer of the same volume to the same peer found out of the level, where that is left to what
    /// limits the transfer.
    pub learned: Learned,
}

/// What was sent, and taken by the receiving application.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SendReport {
    /// Bytes of the stream.
    pub raw_bytes: u64,
    /// Bytes on the lane, frames included.
    pub wire_bytes: u64,
    /// Batches.
    pub batches: u64,
    /// Batches that went as they were.
    pub stored_batches: u64,
    /// Records of the stream.
    pub records: u64,
    /// Bytes of the stream that went as references and were not asked for after all.
    pub saved_bytes: u64,
    /// Bytes on the lane, frames included, by which the receiver announced an old copy: they go the other way.
    pub announced_wire_bytes: u64,
    /// What it found out of the level, for the next one.
    pub learned: Learned,
}

/// Why a stream was not delivered. The receiver was told wherever it could be.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The caller's reader failed.
    #[error("reading the stream to send failed: {source}")]
    Read {
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The bytes ended, and then their sender said that it had failed.
    #[error("the sender of the stream failed: {source}")]
    Source {
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// The stream is not a sound ZFS send stream; the error names record and offset.
    #[error("the stream to send is damaged: {source}")]
    Damaged {
        /// What is wrong, and where.
        #[source]
        source: StreamError,
    },
    /// The receiving application did not take it.
    #[error("the receiver refused: {reason}")]
    Refused {
        /// The application's own number.
        code: u32,
        /// Its words.
        reason: String,
    },
    /// The receiver went away without an answer, its connection still there.
    #[error("the receiver gave the transfer up without saying why")]
    ReceiverGone,
    /// The connection was lost. What the receiver has is unknown.
    #[error("the connection was lost while sending: {reason}")]
    ConnectionLost {
        /// What the connection said.
        reason: String,
    },
    /// Cancelled on this side.
    #[error("sending was cancelled: {reason}")]
    Cancelled {
        /// The reason given.
        reason: String,
    },
    /// The receiver speaks something else.
    #[error("the receiver's answer makes no sense: {source}")]
    Protocol {
        /// What came.
        #[source]
        source: FrameError,
    },
    /// The receiver counted something else.
    #[error("{sent} bytes were sent, the receiver says that it took {taken}")]
    Miscounted {
        /// Bytes sent.
        sent: u64,
        /// Bytes taken.
        taken: u64,
    },
    /// The receiver broke the rules of dedup.
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

/// What the reading thread found at the end.
enum SourceEnd {
    Complete { raw_bytes: u64, records: u64 },
    Failed(SendError),
}

/// What the reading thread hands over, in order.
enum Piece {
    Batch {
        encoded: Receiver<Encoded>,
        held: Held,
        rung: usize,
        content: Content,
        from: Option<Place>,
    },
    /// The receiver is to know where this side is before anything more comes.
    Passed(Place),
    End(SourceEnd),
}

/// Sends the stream that `read` yields, whole or not at all: the receiver learns the end only after
/// `finish`, called with the reader after its last byte, has said that the sender meant it.
/// Returns when the receiving application has confirmed.
///
/// Blocks; call it on a plain thread, or one of the runtime's blocking pool.
///
/// # Errors
/// [`SendError`]. After a cancel or a lost connection it returns at once, though `read` may still be
/// blocked; the reader is dropped when that read returns.
pub fn send_stream<R>(
    read: R,
    finish: impl FnOnce(R) -> Result<(), BoxError> + Send + 'static,
    sink: BulkSender,
    options: SendOptions,
    progress: &Progress,
) -> Result<SendReport, SendError>
where
    R: Read + Send + 'static,
{
    let BulkSender { lane, cancel, resources, peer, _slot, choice, kind, pace } = sink;
    let (pieces, queue) = crossbeam_channel::bounded(IN_ORDER);
    let referring = peer.map(|peer| Referring::new(Arc::clone(resources.dedup()), peer));
    let referring = referring.map(|referring| match options.reseed {
        Some(patience) => Arc::new(referring.reseeding(patience)),
        None => Arc::new(referring),
    });
    let adaptive = Adaptive::new(options.learned, &progress.rung);
    let (reading, hearing) = (referring.clone(), referring.clone());
    let source = Source {
        resources,
        cancel: cancel.clone(),
        options,
        rung: Arc::clone(&progress.rung),
        pieces,
        next_seq: 0,
        referring: reading,
    };
    let started = spawn("flocker-read", move || source.run(read, finish))
        .and_then(|()| start_listening(lane.recv, &cancel, hearing));
    let answers = match started {
        Ok(answers) => answers,
        Err(source) => {
            cancel.cancel("cannot start a thread");
            return Err(SendError::Thread { source });
        }
    };
    let bell = referring.as_ref().map_or_else(crossbeam_channel::never, |r| r.bell.clone());
    let mut outgoing = Outgoing {
        lane: lane.send,
        cancel: cancel.clone(),
        answers,
        progress,
        referring,
        bell,
        adaptive,
        pace,
        held_back: false,
        report: SendReport::default(),
    };
    let result = outgoing.run(&queue);
    if let (Err(_), Some(referring)) = (&result, &outgoing.referring) {
        referring.abandon();
    }
    if let (Err(SendError::ConnectionLost { reason }), Some(choice), LaneKind::Tls) =
        (&result, choice, kind)
    {
        choice.tls_failed(reason, Instant::now());
    }
    // Lets the other two threads go; harmless when they have gone already.
    cancel.cancel("the transfer is over");
    result
}

pub(in crate::bulk) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop)
}
