//! Sending one stream.
//!
//! Owns: the sending pipeline. Three threads: one reads, cuts and verifies; one hears the receiver
//! (`answer`); the caller's own puts batches on the lane in order, and the blocks that are asked
//! for. Between the first and the last stands a queue
//! of `IN_ORDER` batches and, before that, the memory [`super::budget`]: when the lane is full the
//! reader stops, and so does `zfs send` at its pipe.
//!
//! The reading thread alone touches the caller's reader. When the transfer ends early it is left behind:
//! it drops the reader, which stops the send, as soon as the read that it may be blocked in returns.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, select};
use zfs_stream::StreamError;

use super::answer::{Answer, AnswerError, start_listening};
use super::budget::{Account, Held};
use super::codec::Encoded;
use super::cut::{Batch, Cutter};
use super::dedup::DedupError;
use super::dedup::sending::Referring;
use super::level::{Adaptive, Compression, Limit, Rung, Sent, level_of};
use super::reseed::Place;
use super::reseed::announced::{Announced, Waited};
use super::resources::{GIANT_BYTES, Resources};
use super::{BulkSender, Pace, Progress};
use crate::cancel::Cancel;
use crate::counters;
use crate::frame::bulk::{Abort, AbortCode, Done, End, Failed};
use crate::frame::dedup::BLOCKS_HEADER_LEN;
use crate::frame::reseed::Passed;
use crate::frame::{FrameError, FrameType, HEADER_LEN, Header};
use crate::lane::choice::LaneKind;
use crate::lane::{self, LaneError, LaneFrameError, LaneSend, Until};

/// Batches between reader and lane: one for each worker, one going out, one ready.
const IN_ORDER: usize = 6;

/// A record reader that holds more than this has a large record.
const READER_BYTES: usize = 2 << 20;

/// How long last words may take: the reason of an abort on its way out.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The same after a cancel, which is to be prompt.
const CANCELLED_WORDS: Duration = Duration::from_millis(250);

/// How long the answer may lag behind the end of the lane that came with it.
pub(super) const ANSWER_LAG: Duration = Duration::from_secs(1);

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
        adaptive: Adaptive::default(),
        pace,
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

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

/// The reading thread.
struct Source {
    resources: Arc<Resources>,
    cancel: Cancel,
    options: SendOptions,
    rung: Arc<Rung>,
    pieces: Sender<Piece>,
    next_seq: u64,
    referring: Option<Arc<Referring>>,
}

/// The transfer ended elsewhere: nobody waits for the reader's result.
struct Abandoned;

enum Stop {
    Abandoned,
    Failed(SendError),
}

impl From<StreamError> for Stop {
    fn from(source: StreamError) -> Self {
        Self::Failed(SendError::Damaged { source })
    }
}

impl From<Abandoned> for Stop {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

impl Source {
    fn run<R: Read>(mut self, read: R, finish: impl FnOnce(R) -> Result<(), BoxError>) {
        let end = match self.pump(read, finish) {
            Ok(end) => end,
            Err(Stop::Failed(error)) => SourceEnd::Failed(error),
            Err(Stop::Abandoned) => return,
        };
        let _ = self.put(Piece::End(end));
    }

    fn pump<R: Read>(
        &mut self,
        mut read: R,
        finish: impl FnOnce(R) -> Result<(), BoxError>,
    ) -> Result<SourceEnd, Stop> {
        let (account, giants) = (self.resources.sending(), self.resources.giants());
        let mut cutter =
            Cutter::new(Arc::clone(self.resources.buffers())).reseeding(self.announced().is_some());
        let (mut giant, mut raw_bytes, mut ended) = (None, 0, false);
        while !ended {
            let len = self.fill(&mut read, &mut cutter)?;
            raw_bytes += len as u64;
            ended = !cutter.room().is_empty();
            cutter.cut(ended, |batch| Ok::<_, Stop>(self.submit(batch, &account)?))?;
            if cutter.records().buffered_capacity() <= READER_BYTES {
                giant = None;
            } else if giant.is_none() {
                giant = Some(giants.acquire(GIANT_BYTES, &self.cancel).ok_or(Abandoned)?);
            }
        }
        let records = cutter.records();
        let complete = records.finish();
        // Asked first: what the sender says explains a stream that was cut short.
        finish(read).map_err(|source| Stop::Failed(SendError::Source { source }))?;
        complete?;
        Ok(SourceEnd::Complete { raw_bytes, records: records.records() })
    }

    /// Reads until the cutter is full or the input ends, since a pipe yields 64 KiB at a time.
    fn fill(&self, read: &mut impl Read, cutter: &mut Cutter) -> Result<usize, Stop> {
        let mut filled = 0;
        loop {
            if self.cancel.is_cancelled() {
                return Err(Stop::Abandoned);
            }
            let room = cutter.room();
            if room.is_empty() {
                return Ok(filled);
            }
            match read.read(room) {
                Ok(0) => return Ok(filled),
                Ok(more) => {
                    cutter.filled(more);
                    filled += more;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Stop::Failed(SendError::Read { source })),
            }
        }
    }

    fn announced(&self) -> Option<Arc<Announced>> {
        self.referring.as_ref()?.announced.clone()
    }

    /// Waits until the receiver has announced its old copy up to the last of these places, or can announce no more of
    /// it before this batch has gone.
    fn await_seeds(
        &mut self,
        announced: &Announced,
        (from, upto): (Place, Place),
    ) -> Result<(), Abandoned> {
        let mut said = None;
        loop {
            match announced.wait(upto, said, &self.cancel) {
                Waited::GoOn => return Ok(()),
                Waited::Cancelled => return Err(Abandoned),
                Waited::SayPlace => {
                    self.put(Piece::Passed(from))?;
                    said = Some(from);
                }
            }
        }
    }

    fn submit(&mut self, mut batch: Batch, account: &Account) -> Result<(), Abandoned> {
        self.rung.hold_up(true);
        if let Some(announced) = self.announced() {
            if let Some(places) = batch.places {
                self.await_seeds(&announced, places)?;
            }
            if batch.sealed && !announced.any() {
                batch.blocks.clear();
            }
        }
        let from = batch.places.map(|(from, _)| from);
        let held = account.acquire(batch.bytes.len(), &self.cancel).ok_or(Abandoned)?;
        let (seq, rung, referring) = (self.next_seq, self.rung.get(), self.referring.clone());
        let level = level_of(self.options.compression, rung, batch.content());
        self.next_seq += 1;
        let encoded = self.resources.run(move |codec| match referring {
            Some(referring) => referring.encode(codec, seq, batch, level),
            None => codec.encode(seq, batch.bytes, level),
        });
        self.rung.hold_up(false);
        self.put(Piece::Batch { encoded, held, rung, from })
    }

    fn put(&self, piece: Piece) -> Result<(), Abandoned> {
        select! {
            send(self.pieces, piece) -> sent => sent.map_err(|_| Abandoned),
            recv(self.cancel.channel()) -> _ => Err(Abandoned),
        }
    }
}

/// The caller's thread.
struct Outgoing<'a> {
    lane: Box<dyn LaneSend>,
    cancel: Cancel,
    answers: Receiver<Answer>,
    progress: &'a Progress,
    referring: Option<Arc<Referring>>,
    bell: Receiver<()>,
    adaptive: Adaptive,
    pace: Pace,
    report: SendReport,
}

/// Why the sending loop stopped.
enum Halt {
    Source(SendError),
    Lane(LaneError),
    Answer(Answer),
    Cancelled,
}

impl From<LaneError> for Halt {
    fn from(error: LaneError) -> Self {
        Self::Lane(error)
    }
}

impl Outgoing<'_> {
    fn run(&mut self, queue: &Receiver<Piece>) -> Result<SendReport, SendError> {
        let sent = self.pump(queue);
        let report = self.report;
        match sent.and_then(|()| self.wait()) {
            Ok(done) if done.raw_bytes == report.raw_bytes => {
                self.referring.iter().for_each(|referring| referring.committed());
                let announced = self.referring.as_ref().and_then(|r| r.announced.as_ref());
                let announced_wire_bytes = announced.map_or(0, |announced| announced.wire_bytes());
                Ok(SendReport { announced_wire_bytes, ..report })
            }
            Ok(done) => {
                Err(SendError::Miscounted { sent: report.raw_bytes, taken: done.raw_bytes })
            }
            Err(Halt::Source(error)) => {
                self.abort(abort_code(&error), &error, LAST_WORDS);
                Err(error)
            }
            Err(Halt::Cancelled) => {
                let error = self.cancelled();
                self.abort(AbortCode::Cancelled, &error, CANCELLED_WORDS);
                Err(error)
            }
            Err(halt) => Err(self.explain(halt)),
        }
    }

    fn pump(&mut self, queue: &Receiver<Piece>) -> Result<(), Halt> {
        let mut digest = blake3::Hasher::new();
        loop {
            let waiting = queue.len();
            match self.next(queue)? {
                Piece::Passed(place) => self.passed(place)?,
                Piece::Batch { encoded, held, rung, from } => {
                    let limit = match (waiting, encoded.is_empty()) {
                        (0, _) => self.progress.rung.starved(),
                        (_, true) => Some(Limit::Processor),
                        (waiting, false) if waiting >= IN_ORDER / 2 => Some(Limit::Lane),
                        _ => None,
                    };
                    let encoded = self.next(&encoded)?;
                    if let Some(place) = from {
                        self.passed(place)?;
                    }
                    let sent = Sent { bytes: encoded.header.raw_len, rung, limit };
                    digest.update(&encoded.header.hash);
                    self.send_batch(encoded, held)?;
                    self.adaptive.sent(sent, Instant::now(), &self.progress.rung);
                }
                Piece::End(SourceEnd::Failed(error)) => return Err(Halt::Source(error)),
                Piece::End(SourceEnd::Complete { raw_bytes, records }) => {
                    assert!(raw_bytes == self.report.raw_bytes, "what was read is what was sent");
                    self.report.records = records;
                    // After the end nothing can be supplied any more.
                    while self.referring.as_ref().is_some_and(|referring| !referring.is_settled()) {
                        self.hear()?;
                    }
                    let digest = *digest.finalize().as_bytes();
                    let end = End { raw_bytes, batches: self.report.batches, digest };
                    let until = Until::Cancelled(&self.cancel);
                    lane::send_frame(self.lane.as_mut(), FrameType::End, &end.encode(), until)?;
                    // The receiver may have taken the end, answered and gone before this: then there
                    // is nothing to finish, and the answer counts.
                    let _ = self.lane.finish();
                    return Ok(());
                }
            }
        }
    }

    /// Sends a batch, as soon as the receiver has room for what may follow from it; `held` is let go when
    /// the batch needs not be kept.
    fn send_batch(&mut self, encoded: Encoded, mut held: Held) -> Result<(), Halt> {
        let Some(referring) = self.referring.clone() else { return self.put(encoded) };
        let _held = loop {
            match referring.admit(&encoded, held) {
                Ok(rest) => break rest,
                Err(back) => held = back,
            }
            self.hear()?;
        };
        self.put(encoded)
    }

    fn put(&mut self, encoded: Encoded) -> Result<(), Halt> {
        let Encoded { head, body, header, referenced } = encoded;
        let wire = head.len() + body.len();
        self.emit(&mut [head, body])?;
        let (raw, stored) = (header.raw_len, !header.encoding.is_compressed());
        let report = &mut self.report;
        report.raw_bytes += raw as u64;
        report.wire_bytes += wire as u64;
        report.batches += 1;
        report.stored_batches += u64::from(stored);
        report.saved_bytes += referenced as u64;
        self.progress.add(raw, wire);
        self.progress.save(referenced);
        if stored {
            self.progress.went_stored();
        }
        metrics::counter!(counters::BULK_RAW_SENT).increment(raw as u64);
        metrics::counter!(counters::BULK_WIRE_SENT).increment(wire as u64);
        metrics::counter!(counters::BATCHES_SENT).increment(1);
        metrics::counter!(counters::BATCHES_STORED).increment(u64::from(stored));
        Ok(())
    }

    /// Puts bytes on the lane, no faster than they may go.
    fn emit(&mut self, parts: &mut [Bytes]) -> Result<(), Halt> {
        loop {
            let left: usize = parts.iter().map(Bytes::len).sum();
            let piece = self.pace.piece().min(left);
            if let Err(wait) = self.pace.pass(piece, Instant::now()) {
                select! {
                    recv(self.answers) -> answer => return Err(answered(answer)),
                    recv(self.cancel.channel()) -> _ => return Err(Halt::Cancelled),
                    default(wait) => continue,
                }
            }
            let until = Until::Cancelled(&self.cancel);
            if piece == left {
                return Ok(self.lane.send(parts, until)?);
            }
            let mut wanted = piece;
            let mut cut: Vec<Bytes> = Vec::with_capacity(parts.len());
            for part in parts.iter_mut() {
                let most = part.len().min(wanted);
                cut.push(part.split_to(most));
                wanted -= most;
            }
            self.lane.send(&mut cut, until)?;
        }
    }

    /// Tells the receiver that nothing before `place` is referred to any more.
    fn passed(&mut self, place: Place) -> Result<(), Halt> {
        let announced = self.referring.as_ref().and_then(|referring| referring.announced.as_ref());
        let Some(announced) = announced else { return Ok(()) };
        if announced.is_over() {
            return Ok(());
        }
        announced.passed(place);
        let until = Until::Cancelled(&self.cancel);
        let payload = Passed { place }.encode();
        lane::send_frame(self.lane.as_mut(), FrameType::Passed, &payload, until)?;
        let wire = HEADER_LEN + payload.len();
        self.report.wire_bytes += wire as u64;
        self.progress.add_wire(wire);
        metrics::counter!(counters::BULK_WIRE_SENT).increment(wire as u64);
        Ok(())
    }

    /// Sends the blocks that the receiver asked for.
    fn supply(&mut self) -> Result<(), Halt> {
        let Some(referring) = self.referring.clone() else { return Ok(()) };
        self.progress.offered(referring.is_offered());
        if let Some(announced) = &referring.announced {
            self.progress.announced(announced.wire_bytes(), announced.any());
        }
        while let Some(owed) = referring.owed() {
            let len = owed.len();
            let header = Header::new(FrameType::Blocks, BLOCKS_HEADER_LEN + len).encode();
            let mut parts = vec![Bytes::from([&header[..], &owed.seq.to_le_bytes()].concat())];
            parts.extend(owed.blocks);
            let wire = HEADER_LEN + BLOCKS_HEADER_LEN + len;
            self.emit(&mut parts)?;
            self.report.wire_bytes += wire as u64;
            self.report.saved_bytes -= len as u64;
            self.progress.supply(len, wire);
            metrics::counter!(counters::BULK_WIRE_SENT).increment(wire as u64);
        }
        Ok(())
    }

    /// The next thing from `queue`, unless an answer or a cancel comes first.
    fn next<T>(&mut self, queue: &Receiver<T>) -> Result<T, Halt> {
        loop {
            select! {
                recv(queue) -> got => return got.map_err(|_| Halt::Cancelled),
                recv(self.bell) -> _ => {}
                recv(self.answers) -> answer => return Err(answered(answer)),
                recv(self.cancel.channel()) -> _ => return Err(Halt::Cancelled),
            }
            self.supply()?;
        }
    }

    /// Waits until the receiver says something of blocks.
    fn hear(&mut self) -> Result<(), Halt> {
        select! {
            recv(self.bell) -> _ => self.supply(),
            recv(self.answers) -> answer => Err(answered(answer)),
            recv(self.cancel.channel()) -> _ => Err(Halt::Cancelled),
        }
    }

    /// Waits for the answer to a complete stream.
    fn wait(&self) -> Result<Done, Halt> {
        select! {
            recv(self.answers) -> answer => match answer {
                Ok(Ok(done)) => Ok(done),
                Ok(failed) => Err(Halt::Answer(failed)),
                Err(_) => Err(Halt::Cancelled),
            },
            recv(self.cancel.channel()) -> _ => Err(Halt::Cancelled),
        }
    }

    /// Tells the receiver why. Best effort: without it the receiver still sees that the stream was not
    /// finished.
    fn abort(&mut self, code: AbortCode, error: &SendError, limit: Duration) {
        let abort = Abort { code, reason: error.to_string() }.encode();
        let until = Until::Elapsed(limit);
        let told = lane::send_frame(self.lane.as_mut(), FrameType::Abort, &abort, until)
            .and_then(|()| self.lane.finish())
            .and_then(|()| self.lane.drained(until));
        if let Err(e) = told {
            tracing::debug!(error = %e, "the receiver could not be told why the send was aborted");
        }
    }

    fn explain(&self, halt: Halt) -> SendError {
        match halt {
            Halt::Source(error) => error,
            Halt::Answer(answer) => self.explain_answer(answer),
            Halt::Cancelled => self.cancelled(),
            Halt::Lane(LaneError::Stopped { .. }) => {
                // The receiver's reason travels the other way and may be a moment behind.
                match self.answers.recv_timeout(ANSWER_LAG) {
                    Ok(answer) => self.explain_answer(answer),
                    Err(_) => SendError::ReceiverGone,
                }
            }
            Halt::Lane(error) => self.explain_lane(error),
        }
    }

    fn cancelled(&self) -> SendError {
        let reason = self.cancel.reason().unwrap_or("a thread of it ended").to_owned();
        SendError::Cancelled { reason }
    }

    fn explain_answer(&self, answer: Answer) -> SendError {
        match answer {
            // Before the end was sent, nothing can be done: that is no answer to this transfer.
            Ok(_) => SendError::Protocol {
                source: FrameError::Unexpected {
                    found: FrameType::Done,
                    expected: "a refusal, before the end was sent,",
                },
            },
            Err(AnswerError::Failed(Failed { code, reason })) => {
                SendError::Refused { code, reason }
            }
            Err(AnswerError::Dedup(source)) => SendError::Dedup { source },
            Err(AnswerError::Lane(LaneFrameError::Frame(source))) => SendError::Protocol { source },
            Err(AnswerError::Lane(LaneFrameError::Lane(error))) => self.explain_lane(error),
        }
    }

    fn explain_lane(&self, error: LaneError) -> SendError {
        match error {
            LaneError::Lost { reason } => SendError::ConnectionLost { reason },
            LaneError::Reset { .. } | LaneError::Stopped { .. } | LaneError::Ended => {
                SendError::ReceiverGone
            }
            LaneError::Interrupted => self.cancelled(),
        }
    }
}

fn answered(answer: Result<Answer, crossbeam_channel::RecvError>) -> Halt {
    answer.map_or(Halt::Cancelled, Halt::Answer)
}

fn abort_code(error: &SendError) -> AbortCode {
    match error {
        SendError::Damaged { .. } => AbortCode::Damaged,
        SendError::Read { .. } | SendError::Source { .. } => AbortCode::Source,
        _ => AbortCode::Other,
    }
}
