//! Frames over QUIC streams, for control: small, whole, asynchronous.
//!
//! Owns: reading one frame with its bounds checked before anything is allocated, and writing one.
//! Leaves to others: bulk, which never goes through here ([`crate::lane`]).

use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

use crate::frame::{self, FrameError, FrameType, HEADER_LEN, Header};

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FramedError {
    /// What came is not a frame, or not one that may come here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended or the connection was lost.
    #[error("the stream ended: {0}")]
    Read(#[from] ReadExactError),
    /// The stream was stopped or the connection was lost.
    #[error("the stream was stopped: {0}")]
    Write(#[from] WriteError),
}

impl FramedError {
    /// The error of the connection beneath, where that is the cause.
    pub(crate) fn connection(&self) -> Option<&quinn::ConnectionError> {
        match self {
            Self::Read(ReadExactError::ReadError(quinn::ReadError::ConnectionLost(e)))
            | Self::Write(WriteError::ConnectionLost(e)) => Some(e),
            Self::Frame(_) | Self::Read(_) | Self::Write(_) => None,
        }
    }
}

/// Reads one frame whose type is among `allowed`; `expected` names them in the error.
///
/// # Errors
/// [`FramedError`]; the type is checked before the payload is waited for.
pub(crate) async fn read(
    stream: &mut RecvStream,
    allowed: &[FrameType],
    expected: &'static str,
) -> Result<(FrameType, Vec<u8>), FramedError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(&header)?;
    if !allowed.contains(&header.kind) {
        return Err(FrameError::Unexpected { found: header.kind, expected }.into());
    }
    let mut payload = vec![0; header.len];
    stream.read_exact(&mut payload).await?;
    Ok((header.kind, payload))
}

/// Writes one frame.
///
/// # Errors
/// [`FramedError::Write`].
pub(crate) async fn write(
    stream: &mut SendStream,
    kind: FrameType,
    payload: &[u8],
) -> Result<(), FramedError> {
    Ok(stream.write_all(&frame::encode(kind, payload)).await?)
}
