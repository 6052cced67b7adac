//! A send: a thread that walks the trees, and a reader of what it writes.
//!
//! Owns: the thread, the chunks between it and the reader, and the sender's verdict at the end. Leaves which
//! records are sent to [`crate::emit`].

use std::io::Read;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flocker_store::{SendStream, StoreError};
use zfs_stream::format::HEADER_LEN;
use zfs_stream::{Record, Writer};

use crate::blocks::Pin;
use crate::emit::{self, Job, Sink};

type Result<T> = std::result::Result<T, StoreError>;

/// A chunk goes to the reader when it has grown to this, bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that may wait for the reader: one being read, one ready.
const CHUNKS: usize = 2;

/// The stream of a send.
pub(crate) struct Outgoing {
    chunks: Option<Receiver<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Outgoing {
    /// Starts to send; the pin keeps what is sent for as long as the thread runs.
    pub(crate) fn start(pin: Pin, job: Job) -> Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS);
        let thread = std::thread::Builder::new()
            .name("vault-send".into())
            .spawn(move || {
                let mut sink = Channel {
                    writer: Writer::new(job.to.dialect.seal()),
                    chunk: Vec::with_capacity(CHUNK_BYTES),
                    sender,
                };
                emit::emit(&pin, &job, &mut sink)?;
                sink.flush()
            })
            .map_err(|e| StoreError::io("starting a send", e))?;
        Ok(Outgoing { chunks: Some(chunks), chunk: Vec::new(), at: 0, thread: Some(thread) })
    }

    fn join(&mut self) -> Result<()> {
        self.chunks = None; // the thread stops at its next chunk
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(verdict)) => verdict,
            Some(Err(_)) => {
                Err(StoreError::io("sending", std::io::Error::other("the sending thread panicked")))
            }
        }
    }
}

impl Read for Outgoing {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.chunk.len() {
            let Some(chunks) = &self.chunks else {
                return Ok(0);
            };
            match chunks.recv() {
                Ok(chunk) => {
                    self.chunk = chunk;
                    self.at = 0;
                }
                // The thread is done: `finish` says how it went.
                Err(_) => return Ok(0),
            }
        }
        let left = &self.chunk[self.at..];
        let len = left.len().min(buf.len());
        buf[..len].copy_from_slice(&left[..len]);
        self.at += len;
        Ok(len)
    }
}

impl SendStream for Outgoing {
    fn finish(mut self: Box<Self>) -> Result<()> {
        // What was not read by now is not wanted: then the thread is stopped, which is an error.
        self.join()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Nobody wants the verdict of a send that was dropped.
        let _ = self.join();
    }
}

struct Channel {
    writer: Writer,
    chunk: Vec<u8>,
    sender: SyncSender<Vec<u8>>,
}

impl Channel {
    fn flush(&mut self) -> Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        // The receiver is gone when the stream was dropped.
        self.sender.send(chunk).map_err(|_| StoreError::Cancelled)
    }
}

impl Sink for Channel {
    fn wants_payload(&self) -> bool {
        true
    }

    fn record(&mut self, record: &Record, payload: &[u8]) -> Result<()> {
        self.writer.record(record, payload, &mut self.chunk).map_err(|e| StoreError::Corrupt {
            path: "packs".into(),
            detail: format!("what is stored makes no valid stream: {e}"),
        })?;
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(())
    }
}

/// Counts the bytes of a stream without making it.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    /// Bytes so far.
    pub(crate) bytes: u64,
}

impl Sink for Counter {
    fn wants_payload(&self) -> bool {
        false
    }

    fn record(&mut self, record: &Record, _: &[u8]) -> Result<()> {
        // The emitter makes records whose payload has a length.
        let payload = record.payload_len().unwrap_or(0);
        self.bytes += (HEADER_LEN + payload) as u64;
        Ok(())
    }
}
