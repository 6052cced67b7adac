//! The receiving half.

use std::sync::Arc;

use rustix::event::PollFlags;

use super::chunk::Chunk;
use super::{CODE_CANCELLED, Over, Patience, Shared, Waiter, lock};
use crate::lane::{LaneError, LaneRecv, Until};

#[derive(Debug)]
pub(super) struct TlsRecv {
    shared: Arc<Shared>,
    waiter: Waiter,
}

impl TlsRecv {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiter = Waiter::new(&shared.recv_wake);
        Self { shared, waiter }
    }
}

impl LaneRecv for TlsRecv {
    fn fill(&mut self, buf: &mut [u8], until: Until<'_>) -> Result<bool, LaneError> {
        let patience = Patience::new(until);
        let mut filled = 0;
        loop {
            let mut incoming = lock(&self.shared.incoming);
            filled += self.shared.take(&mut incoming, &mut buf[filled..])?;
            if filled == buf.len() {
                return Ok(true);
            }
            match incoming.over {
                Some(Over::Reset(code)) => return Err(LaneError::Reset { code }),
                Some(Over::Finished) if filled == 0 => return Ok(false),
                Some(Over::Finished) => return Err(LaneError::Ended),
                None => {}
            }
            if self.shared.refill(&mut incoming)? {
                continue;
            }
            drop(incoming);
            self.waiter.wait(&self.shared, PollFlags::IN, &patience)?;
        }
    }
}

impl Drop for TlsRecv {
    fn drop(&mut self) {
        if lock(&self.shared.incoming).over.is_none() {
            self.shared.say(Chunk::Stop(CODE_CANCELLED));
        }
    }
}
