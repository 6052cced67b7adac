//! Transfers of noise between nodes, of which only the way that they take matters.

use std::io;

use flocker_transport::{
    BulkReceiver, BulkSender, Compression, Progress, ReceiveError, SendError, SendOptions,
    receive_stream, send_stream,
};
use tokio::task::{JoinHandle, spawn_blocking};

use super::Synthetic;

/// Bytes of a record.
pub(crate) const BLOCK: usize = 128 << 10;

/// The size of a transfer that is a large one.
pub(crate) const LARGE: Option<u64> = Some(1 << 30);

/// Sends so many records of [`BLOCK`]; the bytes of the stream.
pub(crate) fn send(blocks: u64, sender: BulkSender) -> JoinHandle<Result<u64, SendError>> {
    let read = Synthetic::new(blocks, BLOCK, true);
    spawn_blocking(move || {
        let options = SendOptions { compression: Compression::Off, ..SendOptions::default() };
        let progress = Progress::default();
        send_stream(read, |_| Ok(()), sender, options, &progress).map(|report| report.raw_bytes)
    })
}

/// Takes all of it, and says so; the bytes of the stream.
pub(crate) fn receive(mut receiver: BulkReceiver) -> JoinHandle<Result<u64, ReceiveError>> {
    spawn_blocking(move || {
        let report = receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        let _ = receiver.finish(Ok(()));
        Ok(report.raw_bytes)
    })
}
