//! A small bridge from [`std::io::Read`] to the reader, for callers that may block.
//!
//! Owns: one chunk buffer and the loop. Leaves everything about the stream to [`crate::reader`].

use std::io::{self, Read};

use crate::error::StreamError;
use crate::reader::{Item, Reader};

/// Bytes asked of the source at a time: the size of a large pipe.
pub const CHUNK: usize = 1 << 20;

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The source failed.
    #[error("reading the stream failed")]
    Io(#[from] io::Error),
    /// The stream is not valid.
    #[error(transparent)]
    Stream(StreamError),
    /// The caller stopped it.
    #[error(transparent)]
    Caller(E),
}

/// Reads a whole stream from `source` and hands each record to `each`.
///
/// # Errors
/// [`ReadError`]: of the source, of the stream (a stream that ends early included), or of `each`.
pub fn for_each_record<E>(
    mut source: impl Read,
    mut each: impl FnMut(&Item<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let mut reader = Reader::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = match source.read(&mut chunk) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ReadError::Io(error)),
        };
        if len == 0 {
            return reader.finish().map_err(ReadError::Stream);
        }
        let mut input = &chunk[..len];
        while let Some(item) = reader.next(&mut input).map_err(ReadError::Stream)? {
            each(&item).map_err(ReadError::Caller)?;
        }
    }
}
