//! What one driver has sent since it was last polled, as few system calls as it takes.
//!
//! Owns: which datagrams go together, sending them, and what is done when the system does not take them.
//! Leaves to others: when ([`super::driver`]), and what is known of a destination ([`super::paths`]).
//!
//! | the system says | then |
//! | --- | --- |
//! | `EAGAIN` | the batch is kept and the driver blocked, until it is gone; at most 64 KiB |
//! | `EMSGSIZE`, `EIO`, `EINVAL` for several at once | the same bytes again, one datagram a call |
//! | ... and alone they are refused too | so long ones go alone from now on: the MTU has dropped |
//! | ... and alone they are taken | all go alone from now on: the system or the device cannot cut them |
//! | anything else | they are lost, as datagrams may be |
//!
//! A transmit of one datagram begins no batch. It ends one, or joins one of its own length; so a lone packet
//! leaves at once, and a probe of the MTU, which is longer than everything before it, leaves alone: one that
//! is too long would else take with it what it was sent with.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::udp::{EcnCodepoint, Transmit};
use rustix::io::Errno;

use super::MAX_BATCH_BYTES;
use super::socket::Shared;

thread_local! {
    /// The buffer of the batch that left last on this thread: an idle driver keeps none.
    static SPARE: Cell<Option<Vec<u8>>> = const { Cell::new(None) };
}

fn buffer() -> Vec<u8> {
    let mut bytes = SPARE.take().unwrap_or_else(|| Vec::with_capacity(MAX_BATCH_BYTES));
    bytes.clear();
    bytes
}

/// The batch of one driver.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    queued: Option<Queued>,
    blocked: bool,
    /// quinn was told to wait, and has something that it will send when it is polled again.
    waited_for: bool,
    datagrams: usize,
}

impl Batch {
    /// Takes what quinn sends through `socket`.
    ///
    /// # Errors
    /// `WouldBlock` while something else is kept; nothing of it was taken.
    pub(crate) fn offer(
        &mut self,
        socket: &Arc<Shared>,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        if self.blocked {
            self.flush()?;
        }
        if let Some(queued) = &mut self.queued {
            if queued.takes(socket, transmit) {
                queued.append(transmit);
                self.datagrams += count(transmit);
                if queued.closed {
                    // Blocked or not, it is taken.
                    let _ = self.flush();
                }
                return Ok(());
            }
            self.flush()?;
        }
        let queued = match Queued::begin(socket, transmit) {
            Some(queued) => queued,
            None => match socket.send(transmit) {
                Ok(()) => {
                    self.datagrams += count(transmit);
                    return Ok(());
                }
                // It is kept rather than left to quinn, which forgets it when the connection ends before
                // there is room: then the peer would not hear that it was closed.
                Err(NotSent::WouldBlock) => Queued::complete(socket, transmit),
                Err(NotSent::Together) => {
                    let alone = Some(Alone::Refused { taken: false });
                    Queued { alone, ..Queued::complete(socket, transmit) }
                }
            },
        };
        self.datagrams += count(transmit);
        let closed = queued.closed;
        self.queued = Some(queued);
        if closed {
            // Blocked or not, it is taken.
            let _ = self.flush();
        }
        Ok(())
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// `WouldBlock`; it stays queued, and the batch is blocked.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let Some(queued) = &mut self.queued else { return Ok(()) };
        self.blocked = queued.send().is_err();
        if self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(Queued { bytes, .. }) = self.queued.take() {
            SPARE.set(Some(bytes));
        }
        Ok(())
    }

    /// Whether more can be taken; if not, quinn waits.
    pub(crate) fn has_room(&mut self) -> bool {
        self.waited_for = self.blocked && self.flush().is_err();
        !self.blocked
    }

    /// Whether quinn waits for what is not blocked any more.
    pub(crate) fn take_waited_for(&mut self) -> bool {
        std::mem::take(&mut self.waited_for)
    }

    /// Whether something waits for room in the socket.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket for which something is queued.
    pub(crate) fn socket(&self) -> Option<&Arc<Shared>> {
        self.queued.as_ref().map(|queued| &queued.socket)
    }

    /// Datagrams taken since this was last asked.
    pub(crate) fn take_count(&mut self) -> usize {
        std::mem::take(&mut self.datagrams)
    }
}

/// Datagrams in a transmit.
fn count(transmit: &Transmit<'_>) -> usize {
    transmit.segment_size.map_or(1, |segment| transmit.contents.len().div_ceil(segment.max(1)))
}

/// Why a transmit was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// There is no room in the socket.
    WouldBlock,
    /// Its datagrams do not go in one call.
    Together,
}

/// Why datagrams did not go together, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// It is known of the destination.
    Known,
    /// These were just refused; how the full-length ones fare alone says why.
    Refused { taken: bool },
}

/// Datagrams of one length (the last may be shorter) that wait to be sent.
#[derive(Debug)]
struct Queued {
    socket: Arc<Shared>,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment: usize,
    limit: usize,
    closed: bool,
    bytes: Vec<u8>,
    /// Set when each goes in a call of its own; then also how far they have gone.
    alone: Option<Alone>,
    sent: usize,
}

impl Queued {
    /// A batch that begins with this, if more may follow it.
    fn begin(socket: &Arc<Shared>, transmit: &Transmit<'_>) -> Option<Self> {
        let segment = transmit.segment_size?;
        let most = socket.paths.segments(transmit.destination, segment);
        if most == 1 {
            return Some(Self { alone: Some(Alone::Known), ..Self::complete(socket, transmit) });
        }
        let limit = (most * segment).min(MAX_BATCH_BYTES);
        let len = transmit.contents.len();
        if !len.is_multiple_of(segment) || len + segment > limit {
            return None;
        }
        Some(Self { limit, closed: false, ..Self::complete(socket, transmit) })
    }

    /// A batch to which nothing is added.
    fn complete(socket: &Arc<Shared>, transmit: &Transmit<'_>) -> Self {
        let mut bytes = buffer();
        bytes.extend_from_slice(transmit.contents);
        Self {
            socket: Arc::clone(socket),
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            segment: transmit.segment_size.unwrap_or(transmit.contents.len()),
            limit: bytes.len(),
            closed: true,
            bytes,
            alone: None,
            sent: 0,
        }
    }

    /// Whether this may be part of it.
    fn takes(&self, socket: &Arc<Shared>, transmit: &Transmit<'_>) -> bool {
        let len = transmit.contents.len();
        !self.closed
            && Arc::ptr_eq(&self.socket, socket)
            && self.destination == transmit.destination
            && self.ecn == transmit.ecn
            && self.src_ip == transmit.src_ip
            && transmit.segment_size.map_or(len <= self.segment, |segment| segment == self.segment)
            && self.bytes.len() + len <= self.limit
    }

    fn append(&mut self, transmit: &Transmit<'_>) {
        self.bytes.extend_from_slice(transmit.contents);
        // A shorter one is the last, and where no full one fits any more, none follows.
        self.closed = !self.bytes.len().is_multiple_of(self.segment)
            || self.bytes.len() + self.segment > self.limit;
    }

    /// Sends it, all or what is left of it.
    ///
    /// # Errors
    /// There is no room.
    fn send(&mut self) -> Result<(), NotSent> {
        if self.alone.is_none() {
            let transmit = Transmit {
                destination: self.destination,
                ecn: self.ecn,
                contents: &self.bytes,
                segment_size: (self.bytes.len() > self.segment).then_some(self.segment),
                src_ip: self.src_ip,
            };
            match self.socket.send(&transmit) {
                Err(NotSent::Together) => self.alone = Some(Alone::Refused { taken: false }),
                done => return done,
            }
        }
        while self.sent < self.bytes.len() {
            let end = self.bytes.len().min(self.sent + self.segment);
            let transmit = Transmit {
                destination: self.destination,
                ecn: self.ecn,
                contents: &self.bytes[self.sent..end],
                segment_size: None,
                src_ip: self.src_ip,
            };
            let full = end - self.sent == self.segment;
            match self.socket.port.send(&transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NotSent::WouldBlock);
                }
                Ok(()) if full => self.was_taken(),
                Ok(()) => {}
                Err(error) => self.socket.lost(&error),
            }
            self.sent = end;
        }
        if let Some(Alone::Refused { taken: false }) = self.alone {
            self.socket.paths.too_long(self.destination, self.segment);
        }
        Ok(())
    }

    /// A datagram of the full length was taken alone.
    fn was_taken(&mut self) {
        let paths = &self.socket.paths;
        match &mut self.alone {
            Some(Alone::Refused { taken }) if !*taken => {
                *taken = true;
                paths.refuses_together(self.destination);
            }
            Some(Alone::Known) => paths.passed(self.destination, self.segment),
            Some(Alone::Refused { .. }) | None => {}
        }
    }
}

/// Whether this is how several datagrams in one call are refused. For their length it is `EMSGSIZE`, before
/// Linux 6.9 `EINVAL`; `EIO` where the device cannot compute their checksums.
pub(crate) fn refuses_together(error: &io::Error) -> bool {
    let refusals = [Errno::MSGSIZE, Errno::IO, Errno::INVAL];
    error.raw_os_error().is_some_and(|number| refusals.iter().any(|e| e.raw_os_error() == number))
}
