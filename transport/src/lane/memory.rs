//! A lane within one process, for tests and benches: what QUIC does, without packets.
//!
//! Owns: bounded channels that push back, end, reset, stop and get lost as QUIC streams do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, select};

use super::{CODE_CANCELLED, Lane, LaneError, LaneRecv, LaneSend, Until};

/// Parts that may wait: with batches of about 1 MiB, much like QUIC's stream window.
const PARTS: usize = 6;

enum Message {
    Data(Bytes),
    End,
}

/// Loses the connection of a pair of lanes when told to.
#[derive(Debug, Clone, Default)]
pub struct Cable(Arc<AtomicBool>);

impl Cable {
    /// Both sides now find their connection lost, blocked ones within about 10 ms.
    pub fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), LaneError> {
        if self.0.load(Ordering::SeqCst) {
            return Err(LaneError::Lost { reason: "the cable was cut".into() });
        }
        Ok(())
    }
}

/// How often a blocked half looks whether its cable was cut.
const POLL: Duration = Duration::from_millis(10);

/// Two lanes, each the other's far end, and the cable between them.
pub fn pair() -> (Lane, Lane, Cable) {
    let cable = Cable::default();
    let (a_send, b_recv) = half(&cable);
    let (b_send, a_recv) = half(&cable);
    let a = Lane { send: Box::new(a_send), recv: Box::new(a_recv) };
    let b = Lane { send: Box::new(b_send), recv: Box::new(b_recv) };
    (a, b, cable)
}

fn half(cable: &Cable) -> (MemorySend, MemoryRecv) {
    let (tx, rx) = crossbeam_channel::bounded(PARTS);
    let alive = Arc::new(());
    let send = MemorySend { tx, reader: Arc::downgrade(&alive), cable: cable.clone() };
    let recv =
        MemoryRecv { rx, _alive: alive, rest: Bytes::new(), ended: false, cable: cable.clone() };
    (send, recv)
}

struct MemorySend {
    tx: Sender<Message>,
    /// Gone when the receiving half is.
    reader: Weak<()>,
    cable: Cable,
}

impl MemorySend {
    fn put(&mut self, mut message: Message, until: Until<'_>) -> Result<(), LaneError> {
        let stopped = LaneError::Stopped { code: CODE_CANCELLED };
        let mut waited = Duration::ZERO;
        loop {
            self.cable.check()?;
            message = match self.tx.send_timeout(message, POLL) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => {
                    // A cut cable makes the other side let go too.
                    return self.cable.check().and(Err(stopped));
                }
                Err(SendTimeoutError::Timeout(back)) => back,
            };
            waited += POLL;
            if is_over(until, waited) {
                return Err(LaneError::Interrupted);
            }
        }
    }
}

fn is_over(until: Until<'_>, waited: Duration) -> bool {
    match until {
        Until::Cancelled(cancel) => cancel.is_cancelled(),
        Until::Elapsed(limit) => waited >= limit,
    }
}

impl LaneSend for MemorySend {
    fn send(&mut self, parts: &mut [Bytes], until: Until<'_>) -> Result<(), LaneError> {
        for part in parts {
            let part = std::mem::take(part);
            if !part.is_empty() {
                self.put(Message::Data(part), until)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.put(Message::End, Until::Elapsed(Duration::from_secs(3600)))
    }

    fn drained(&mut self, until: Until<'_>) -> Result<(), LaneError> {
        let mut waited = Duration::ZERO;
        // The end itself need not be taken: as with QUIC, having arrived is enough.
        while self.tx.len() > 1 {
            self.cable.check()?;
            if self.reader.strong_count() == 0 {
                return Err(LaneError::Stopped { code: CODE_CANCELLED });
            }
            if is_over(until, waited) {
                return Err(LaneError::Interrupted);
            }
            std::thread::sleep(POLL);
            waited += POLL;
        }
        Ok(())
    }
}

struct MemoryRecv {
    rx: Receiver<Message>,
    _alive: Arc<()>,
    rest: Bytes,
    ended: bool,
    cable: Cable,
}

impl MemoryRecv {
    /// Makes sure that `rest` holds something; `false` at the end.
    fn more(&mut self, until: Until<'_>) -> Result<bool, LaneError> {
        let mut waited = Duration::ZERO;
        while self.rest.is_empty() && !self.ended {
            self.cable.check()?;
            let got = match until {
                Until::Cancelled(cancel) => select! {
                    recv(self.rx) -> got => got.map_err(|_| RecvTimeoutError::Disconnected),
                    recv(cancel.channel()) -> _ => return Err(LaneError::Interrupted),
                    default(POLL) => Err(RecvTimeoutError::Timeout),
                },
                Until::Elapsed(_) => self.rx.recv_timeout(POLL),
            };
            match got {
                Ok(Message::Data(part)) => self.rest = part,
                Ok(Message::End) => self.ended = true,
                Err(RecvTimeoutError::Disconnected) => {
                    let reset = LaneError::Reset { code: CODE_CANCELLED };
                    return self.cable.check().and(Err(reset));
                }
                Err(RecvTimeoutError::Timeout) => waited += POLL,
            }
            if is_over(until, waited) {
                return Err(LaneError::Interrupted);
            }
        }
        Ok(!self.rest.is_empty())
    }
}

impl LaneRecv for MemoryRecv {
    fn fill(&mut self, buf: &mut [u8], until: Until<'_>) -> Result<bool, LaneError> {
        let mut filled = 0;
        while filled < buf.len() {
            if !self.more(until)? {
                return if filled == 0 { Ok(false) } else { Err(LaneError::Ended) };
            }
            let take = self.rest.len().min(buf.len() - filled);
            buf[filled..filled + take].copy_from_slice(&self.rest.split_to(take));
            filled += take;
        }
        Ok(true)
    }
}
