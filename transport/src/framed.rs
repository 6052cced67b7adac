//! Frames over control streams: small, whole, asynchronous.
//!
//! Owns: reading one frame with its bounds checked before anything is allocated, and writing one.
//! Leaves to others: bulk, which never goes through here ([`crate::lane`]).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{self, FrameError, FrameType, HEADER_LEN, Header};
use crate::link::Gone;

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FramedError {
    /// What came is not a frame, or not one that may come here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection beneath is over.
    #[error("the connection is over: {0}")]
    Gone(#[from] Gone),
    /// The stream ended or was stopped, its connection still there.
    #[error("the stream ended: {0}")]
    Stream(#[source] io::Error),
}

impl From<io::Error> for FramedError {
    fn from(error: io::Error) -> Self {
        match Gone::of(&error) {
            Some(gone) => Self::Gone(gone),
            None => Self::Stream(error),
        }
    }
}

impl FramedError {
    /// How the connection beneath ended, where that is the cause.
    pub(crate) fn gone(&self) -> Option<&Gone> {
        match self {
            Self::Gone(gone) => Some(gone),
            Self::Frame(_) | Self::Stream(_) => None,
        }
    }
}

/// Reads the header of a frame whose type is among `allowed`; `expected` names them in the error.
///
/// # Errors
/// [`FramedError`].
pub(crate) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    allowed: &[FrameType],
    expected: &'static str,
) -> Result<Header, FramedError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(&header)?;
    if !allowed.contains(&header.kind) {
        return Err(FrameError::Unexpected { found: header.kind, expected }.into());
    }
    Ok(header)
}

/// Reads the payload that a header announces.
///
/// # Errors
/// [`FramedError`].
pub(crate) async fn read_payload(
    stream: &mut (impl AsyncRead + Unpin),
    header: Header,
) -> Result<Vec<u8>, FramedError> {
    let mut payload = vec![0; header.len];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Reads one frame whose type is among `allowed`; `expected` names them in the error.
///
/// # Errors
/// [`FramedError`]; the type is checked before the payload is waited for.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    allowed: &[FrameType],
    expected: &'static str,
) -> Result<(FrameType, Vec<u8>), FramedError> {
    let header = read_header(stream, allowed, expected).await?;
    Ok((header.kind, read_payload(stream, header).await?))
}

/// Writes one frame.
///
/// # Errors
/// [`FramedError`].
pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: FrameType,
    payload: &[u8],
) -> Result<(), FramedError> {
    stream.write_all(&frame::encode(kind, payload)).await?;
    Ok(stream.flush().await?)
}
