//! The sending half.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::PollFlags;

use super::chunk::Chunk;
use super::{CHUNK_BYTES, CODE_CANCELLED, Patience, Shared, Waiter, lock};
use crate::lane::{LaneError, LaneSend, Until};

/// How long the end of a half may wait for room where no cancel is known, and a reset in any case.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct TlsSend {
    shared: Arc<Shared>,
    waiter: Waiter,
    finished: bool,
}

impl TlsSend {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiter = Waiter::new(&shared.send_wake);
        Self { shared, waiter, finished: false }
    }

    fn check(&self) -> Result<(), LaneError> {
        self.shared.check()?;
        self.shared.stopped.get().map_or(Ok(()), |code| Err(LaneError::Stopped { code: *code }))
    }

    /// Waits until all that is encrypted has been written.
    fn flushed(&mut self, patience: &Patience<'_>) -> Result<(), LaneError> {
        loop {
            self.check()?;
            if self.shared.flush(&mut lock(&self.shared.tls))? {
                return Ok(());
            }
            self.waiter.wait(&self.shared, PollFlags::OUT, patience)?;
        }
    }

    /// Takes from `parts` what fits a chunk.
    fn cut(parts: &mut [Bytes]) -> (Vec<Bytes>, u32) {
        let (mut cut, mut len) = (Vec::with_capacity(parts.len()), 0);
        for part in parts {
            let piece = part.split_to(part.len().min(CHUNK_BYTES - len));
            if !piece.is_empty() {
                len += piece.len();
                cut.push(piece);
            }
        }
        // It is at most CHUNK_BYTES.
        (cut, u32::try_from(len).unwrap_or(u32::MAX))
    }
}

impl LaneSend for TlsSend {
    fn send(&mut self, parts: &mut [Bytes], until: Until<'_>) -> Result<(), LaneError> {
        let patience = Patience::new(until);
        loop {
            // Encrypted only when the last has gone: what waits is one chunk, and it can still be followed by
            // a reset.
            self.flushed(&patience)?;
            let (data, len) = Self::cut(parts);
            if len == 0 {
                return Ok(());
            }
            let mut tls = lock(&self.shared.tls);
            self.shared.put(&mut tls, Chunk::Data(len), &data)?;
            self.shared.flush(&mut tls)?;
        }
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.check()?;
        self.finished = true;
        self.shared.put(&mut lock(&self.shared.tls), Chunk::End, &[])?;
        match self.waiter.known.clone() {
            Some(cancel) => self.flushed(&Patience::new(Until::Cancelled(&cancel))),
            None => self.flushed(&Patience::new(Until::Elapsed(LAST_WORDS))),
        }
    }

    fn drained(&mut self, until: Until<'_>) -> Result<(), LaneError> {
        let patience = Patience::new(until);
        let mut unwanted = vec![0; 64 << 10];
        loop {
            // The other half may have seen it.
            if self.shared.taken.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.check()?;
            let wanted = match self.shared.flush(&mut lock(&self.shared.tls))? {
                true => PollFlags::IN,
                false => PollFlags::IN | PollFlags::OUT,
            };
            let mut incoming = lock(&self.shared.incoming);
            let came = self.shared.take(&mut incoming, &mut unwanted);
            if self.shared.taken.load(Ordering::SeqCst) {
                return Ok(());
            }
            // Whatever else came, the peer's word that it has all may stand behind it.
            let more = came? > 0 || self.shared.refill(&mut incoming)?;
            drop(incoming);
            if !more {
                self.waiter.wait(&self.shared, wanted, &patience)?;
            }
        }
    }
}

impl Drop for TlsSend {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.shared.say(Chunk::Reset(CODE_CANCELLED));
        let flushed = self.shared.flush(&mut lock(&self.shared.tls));
        if let Ok(false) = flushed {
            // The socket is full. Whoever drops a lane does not wait, so somebody else does; without it the
            // peer finds the connection lost, which is as well.
            let shared = Arc::clone(&self.shared);
            let _ = thread::Builder::new().name("flocker-reset".into()).spawn(move || {
                let mut rest = TlsSend::new(shared);
                rest.finished = true;
                let _ = rest.flushed(&Patience::new(Until::Elapsed(LAST_WORDS)));
            });
        }
    }
}
