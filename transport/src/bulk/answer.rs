//! What the receiver says while a stream is sent, and its answer at the end.
//!
//! Owns: the thread that hears it, so that a refusal in the middle stops the send. What concerns blocks goes
//! straight to [`Referring`] and never waits for the sending thread: the receiver must always be able
//! to speak. Leaves to others: what follows from the answer ([`super::send`]).

use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::dedup::DedupError;
use super::dedup::sending::Referring;
use super::send::{ANSWER_LAG, spawn};
use crate::cancel::Cancel;
use crate::frame::bulk::{Done, Failed};
use crate::frame::dedup::{CacheOffer, Missing, Resolved};
use crate::frame::reseed::Seeds;
use crate::frame::{FrameError, FrameType, HEADER_LEN};
use crate::lane::{self, LaneError, LaneFrameError, LaneRecv, Until};

/// The receiver's answer.
pub(super) type Answer = Result<Done, AnswerError>;

/// Why there is no good one.
pub(super) enum AnswerError {
    /// It did not take the stream.
    Failed(Failed),
    /// It broke the rules of dedup.
    Dedup(DedupError),
    /// The lane failed, or what came makes no sense.
    Lane(LaneFrameError),
}

impl From<LaneFrameError> for AnswerError {
    fn from(error: LaneFrameError) -> Self {
        Self::Lane(error)
    }
}

impl From<LaneError> for AnswerError {
    fn from(error: LaneError) -> Self {
        Self::Lane(error.into())
    }
}

impl From<FrameError> for AnswerError {
    fn from(error: FrameError) -> Self {
        Self::Lane(error.into())
    }
}

impl From<DedupError> for AnswerError {
    fn from(error: DedupError) -> Self {
        Self::Dedup(error)
    }
}

/// Waits for the one answer on a thread of its own.
pub(super) fn start_listening(
    mut lane: Box<dyn LaneRecv>,
    cancel: &Cancel,
    referring: Option<Arc<Referring>>,
) -> io::Result<Receiver<Answer>> {
    let (tell, answers) = crossbeam_channel::bounded(1);
    let cancel = cancel.clone();
    spawn("flocker-answer", move || {
        let answer = read_answer(lane.as_mut(), &cancel, referring.as_deref());
        let answered = !matches!(answer, Err(AnswerError::Lane(_)));
        let _ = tell.send(answer);
        if answered {
            // Until the receiver's end has come too, or it would take dropping the lane for a refusal.
            let _ = lane.fill(&mut [0], Until::Elapsed(ANSWER_LAG));
        }
    })?;
    Ok(answers)
}

fn read_answer(lane: &mut dyn LaneRecv, cancel: &Cancel, referring: Option<&Referring>) -> Answer {
    use FrameType as F;
    let until = Until::Cancelled(cancel);
    let reseeding = referring.is_some_and(|referring| referring.announced.is_some());
    let allowed: &[F] = match referring {
        Some(_) if reseeding => &[F::Done, F::Failed, F::Cache, F::Resolved, F::Missing, F::Seeds],
        Some(_) => &[F::Done, F::Failed, F::Cache, F::Resolved, F::Missing],
        None => &[F::Done, F::Failed],
    };
    loop {
        let header = lane::read_header(lane, allowed, "the answer to a transfer", until)?
            .ok_or(LaneError::Ended)?;
        // At most 32 KiB, by the frames' own limits.
        let mut payload = vec![0; header.len];
        lane::fill(lane, &mut payload, until)?;
        match (header.kind, referring) {
            (F::Done, _) => return Ok(Done::decode(&payload)?),
            (F::Cache, Some(referring)) => referring.offered(&CacheOffer::decode(&payload)?)?,
            (F::Resolved, Some(referring)) => referring.resolved(Resolved::decode(&payload)?)?,
            (F::Missing, Some(referring)) => referring.missing(&Missing::decode(&payload)?)?,
            (F::Seeds, Some(referring)) => {
                referring.announced(&Seeds::decode(&payload)?, HEADER_LEN + payload.len())?;
            }
            _ => return Err(AnswerError::Failed(Failed::decode(&payload)?)),
        }
    }
}
