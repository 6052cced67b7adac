//! A lane over one bidirectional QUIC stream.
//!
//! Owns: the bridge from a blocking thread to quinn. The thread parks until quinn has room or bytes;
//! nothing is queued in between, so QUIC's flow control reaches the thread as it is.

use bytes::Bytes;
use quinn::{
    ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError,
};
use tokio::runtime::Handle;

use super::{CODE_CANCELLED, Lane, LaneError, LaneRecv, LaneSend, Until};

/// A lane over this stream. Its calls must come from threads outside of the runtime, or from its
/// blocking pool.
pub(crate) fn lane(runtime: &Handle, send: SendStream, recv: RecvStream) -> Lane {
    Lane {
        send: Box::new(QuicSend { runtime: runtime.clone(), stream: send, finished: false }),
        recv: Box::new(QuicRecv { runtime: runtime.clone(), stream: recv }),
    }
}

struct QuicSend {
    runtime: Handle,
    stream: SendStream,
    finished: bool,
}

struct QuicRecv {
    runtime: Handle,
    stream: RecvStream,
}

async fn over(until: Until<'_>) {
    match until {
        Until::Cancelled(cancel) => cancel.cancelled().await,
        Until::Elapsed(limit) => tokio::time::sleep(limit).await,
    }
}

impl LaneSend for QuicSend {
    fn send(&mut self, parts: &mut [Bytes], until: Until<'_>) -> Result<(), LaneError> {
        let Self { runtime, stream, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                sent = stream.write_all_chunks(parts) => sent.map_err(write_error),
                () = over(until) => Err(LaneError::Interrupted),
            }
        })
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.finished = true;
        self.stream.finish().map_err(|_| LaneError::Stopped { code: CODE_CANCELLED })
    }

    fn drained(&mut self, until: Until<'_>) -> Result<(), LaneError> {
        let Self { runtime, stream, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                end = stream.stopped() => match end {
                    Ok(None) => Ok(()),
                    Ok(Some(code)) => Err(LaneError::Stopped { code: short(code) }),
                    Err(quinn::StoppedError::ConnectionLost(e)) => Err(lost(&e)),
                    Err(quinn::StoppedError::ZeroRttRejected) => Err(LaneError::Ended),
                },
                () = over(until) => Err(LaneError::Interrupted),
            }
        })
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        // quinn would finish a dropped stream, which the other side could take for a clean end; a
        // finished one goes on being delivered.
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(CODE_CANCELLED));
        }
    }
}

impl LaneRecv for QuicRecv {
    fn fill(&mut self, buf: &mut [u8], until: Until<'_>) -> Result<bool, LaneError> {
        let Self { runtime, stream } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                read = stream.read_exact(buf) => match read {
                    Ok(()) => Ok(true),
                    Err(ReadExactError::FinishedEarly(0)) => Ok(false),
                    Err(ReadExactError::FinishedEarly(_)) => Err(LaneError::Ended),
                    Err(ReadExactError::ReadError(e)) => Err(read_error(e)),
                },
                () = over(until) => Err(LaneError::Interrupted),
            }
        })
    }
}

fn short(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

fn lost(error: &ConnectionError) -> LaneError {
    LaneError::Lost { reason: error.to_string() }
}

fn write_error(error: WriteError) -> LaneError {
    match error {
        WriteError::Stopped(code) => LaneError::Stopped { code: short(code) },
        WriteError::ConnectionLost(e) => lost(&e),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => LaneError::Ended,
    }
}

fn read_error(error: ReadError) -> LaneError {
    match error {
        ReadError::Reset(code) => LaneError::Reset { code: short(code) },
        ReadError::ConnectionLost(e) => lost(&e),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            LaneError::Ended
        }
    }
}
