//! Lanes: the bytes of one bulk transfer, there and back, for blocking threads.
//!
//! Owns: the trait behind which QUIC ([`quic`]), TLS over TCP ([`tls`]) and memory ([`memory`]) look the
//! same, and frames over it. Leaves to others: what the frames say ([`crate::bulk`]).
//!
//! A lane has two halves, so that one thread can send while another waits for the answer. Every call
//! that may block takes an [`Until`]: it returns at once when its transfer is cancelled.

pub mod choice;
pub mod memory;
pub mod probe;
pub mod quic;
pub mod tls;

use std::time::Duration;

use bytes::Bytes;

use crate::cancel::Cancel;
use crate::frame::{self, FrameError, FrameType, HEADER_LEN, Header};

/// How long a call may block.
#[derive(Debug, Clone, Copy)]
pub enum Until<'a> {
    /// Until the transfer is cancelled.
    Cancelled(&'a Cancel),
    /// For this long at most, for last words.
    Elapsed(Duration),
}

/// Why a lane carries nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The connection beneath is gone.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What the connection said.
        reason: String,
    },
    /// The other side dropped its sending half in the middle.
    #[error("the other side gave up sending (code {code})")]
    Reset {
        /// Its code, see `WIRE.md`.
        code: u32,
    },
    /// The other side takes no more.
    #[error("the other side takes no more (code {code})")]
    Stopped {
        /// Its code, see `WIRE.md`.
        code: u32,
    },
    /// The other side ended its half where more was due.
    #[error("the other side ended in the middle of a frame")]
    Ended,
    /// [`Until`] was over: cancelled, or out of time.
    #[error("it was interrupted")]
    Interrupted,
}

/// Code of a half that was dropped or cancelled, on every lane.
pub const CODE_CANCELLED: u32 = 1;

/// The sending half. Dropping it unfinished resets it.
pub trait LaneSend: Send {
    /// Sends all of `parts`, in order, and leaves them empty.
    ///
    /// # Errors
    /// [`LaneError`]; part of it may have been sent.
    fn send(&mut self, parts: &mut [Bytes], until: Until<'_>) -> Result<(), LaneError>;

    /// Says that no more comes.
    ///
    /// # Errors
    /// [`LaneError`].
    fn finish(&mut self) -> Result<(), LaneError>;

    /// Waits until the other side has taken everything, after [`LaneSend::finish`]: the last act on a lane,
    /// since what the other half still brings meanwhile may be dropped.
    ///
    /// # Errors
    /// [`LaneError`].
    fn drained(&mut self, until: Until<'_>) -> Result<(), LaneError>;
}

/// The receiving half. Dropping it before its end stops the other side.
pub trait LaneRecv: Send {
    /// Fills `buf`. `false` when the lane ended cleanly before its first byte.
    ///
    /// # Errors
    /// [`LaneError`]; [`LaneError::Ended`] when it ended after the first byte.
    fn fill(&mut self, buf: &mut [u8], until: Until<'_>) -> Result<bool, LaneError>;
}

/// Both halves.
pub struct Lane {
    /// Towards the other side.
    pub send: Box<dyn LaneSend>,
    /// From the other side.
    pub recv: Box<dyn LaneRecv>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

/// Why no frame came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneFrameError {
    /// The lane failed.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// What came is no frame that may come here.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Sends a whole frame.
///
/// # Errors
/// [`LaneError`].
pub(crate) fn send_frame(
    lane: &mut dyn LaneSend,
    kind: FrameType,
    payload: &[u8],
    until: Until<'_>,
) -> Result<(), LaneError> {
    lane.send(&mut [Bytes::from(frame::encode(kind, payload))], until)
}

/// Reads the header of the next frame, which must be among `allowed`; `None` at a clean end.
///
/// # Errors
/// [`LaneFrameError`].
pub(crate) fn read_header(
    lane: &mut dyn LaneRecv,
    allowed: &[FrameType],
    expected: &'static str,
    until: Until<'_>,
) -> Result<Option<Header>, LaneFrameError> {
    let mut bytes = [0; HEADER_LEN];
    if !lane.fill(&mut bytes, until)? {
        return Ok(None);
    }
    let header = Header::decode(&bytes)?;
    if !allowed.contains(&header.kind) {
        return Err(FrameError::Unexpected { found: header.kind, expected }.into());
    }
    Ok(Some(header))
}

/// Fills `buf` with what is due within a frame.
///
/// # Errors
/// [`LaneError`]; an end is [`LaneError::Ended`].
pub(crate) fn fill(
    lane: &mut dyn LaneRecv,
    buf: &mut [u8],
    until: Until<'_>,
) -> Result<(), LaneError> {
    if buf.is_empty() || lane.fill(buf, until)? { Ok(()) } else { Err(LaneError::Ended) }
}
