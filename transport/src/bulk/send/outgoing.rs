//! The caller's thread: puts batches on the lane in order, at the pace that is allowed, with the blocks that are asked for;
//! finds out what limits the transfer; and explains its end.
//!
//! Owns: the sending half of the lane, the report. Leaves to others: reading ([`super::source`]), hearing the
//! receiver ([`crate::bulk::answer`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, select};

use super::{ANSWER_LAG, IN_ORDER, Piece, SendError, SendReport, SourceEnd};
use crate::bulk::answer::{Answer, AnswerError};
use crate::bulk::budget::Held;
use crate::bulk::codec::Encoded;
use crate::bulk::dedup::sending::Referring;
use crate::bulk::level::{Adaptive, Limit, Sent};
use crate::bulk::reseed::Place;
use crate::bulk::{Pace, Progress};
use crate::cancel::Cancel;
use crate::counters;
use crate::frame::bulk::{Abort, AbortCode, Done, End, Failed};
use crate::frame::dedup::BLOCKS_HEADER_LEN;
use crate::frame::reseed::Passed;
use crate::frame::{FrameError, FrameType, HEADER_LEN, Header};
use crate::lane::{self, LaneError, LaneFrameError, LaneSend, Until};

/// How long last words may take: the reason of an abort on its way out.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The same after a cancel, which is to be prompt.
const CANCELLED_WORDS: Duration = Duration::from_millis(250);

/// The caller's thread.
pub(super) struct Outgoing<'a> {
    pub(super) lane: Box<dyn LaneSend>,
    pub(super) cancel: Cancel,
    pub(super) answers: Receiver<Answer>,
    pub(super) progress: &'a Progress,
    pub(super) referring: Option<Arc<Referring>>,
    pub(super) bell: Receiver<()>,
    pub(super) adaptive: Adaptive,
    pub(super) pace: Pace,
    /// Since the last batch was fetched, something was held back by the pace.
    pub(super) held_back: bool,
    pub(super) report: SendReport,
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
    pub(super) fn run(&mut self, queue: &Receiver<Piece>) -> Result<SendReport, SendError> {
        let sent = self.pump(queue);
        let report = self.report;
        match sent.and_then(|()| self.wait()) {
            Ok(done) if done.raw_bytes == report.raw_bytes => {
                self.referring.iter().for_each(|referring| referring.committed());
                let announced = self.referring.as_ref().and_then(|r| r.announced.as_ref());
                let announced_wire_bytes = announced.map_or(0, |announced| announced.wire_bytes());
                let learned = self.adaptive.learned();
                Ok(SendReport { announced_wire_bytes, learned, ..report })
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
                Piece::Batch { encoded, held, rung, content, from } => {
                    let held_back = std::mem::take(&mut self.held_back);
                    let limit = match (waiting, encoded.is_empty()) {
                        (0, _) => self.progress.rung.starved(),
                        (_, true) => Some(Limit::Processor),
                        (_, false) if held_back => Some(Limit::Rate),
                        (waiting, false) if waiting >= IN_ORDER / 2 => Some(Limit::Lane),
                        _ => None,
                    };
                    let encoded = self.next(&encoded)?;
                    if let Some(place) = from {
                        self.passed(place)?;
                    }
                    let sent = Sent { bytes: encoded.header.raw_len, rung, content, limit };
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
                self.held_back = true;
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
