//! The socket that quinn sees.
//!
//! Owns: passing what is sent to the batch of the driver that sends it, or on at once where none does, and
//! that a driver whose batch is kept sees a socket without room. Leaves to others: the batch
//! ([`super::batch`]), the system calls ([`super::port`]).

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::batch::{NotSent, refuses_together};
use super::paths::Paths;
use super::port::Port;
use super::{MAX_RECEIVED_BYTES, driver, segments_at_once};

/// What a batch keeps of its socket.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) port: Arc<dyn Port>,
    pub(super) paths: Paths,
    /// Whether an unusual error was told already.
    told: AtomicBool,
}

impl Shared {
    /// Sends at once.
    ///
    /// # Errors
    /// [`NotSent`]; another failure loses the datagrams, as the network may.
    pub(super) fn send(&self, transmit: &Transmit<'_>) -> Result<(), NotSent> {
        match self.port.send(transmit) {
            Ok(()) => {
                if transmit.segment_size.is_none() {
                    self.paths.passed(transmit.destination, transmit.contents.len());
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(NotSent::WouldBlock),
            Err(error) if transmit.segment_size.is_some() && refuses_together(&error) => {
                tracing::debug!(%error, to = %transmit.destination, "datagrams do not go together");
                Err(NotSent::Together)
            }
            Err(error) => {
                self.lost(&error);
                Ok(())
            }
        }
    }

    /// A datagram was not taken, and is lost. QUIC sends again; it is worth a word once.
    pub(super) fn lost(&self, error: &io::Error) {
        let too_long = error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error());
        // That is how a probe of the MTU finds its limit.
        if !too_long && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "a UDP datagram could not be sent; more of these are not told");
        }
    }
}

/// A UDP socket that gathers what a driver sends.
#[derive(Debug)]
pub(crate) struct GatherSocket {
    shared: Arc<Shared>,
    /// The longest datagram that quinn is let send or receive, in bytes.
    max_datagram: u16,
}

impl GatherSocket {
    /// Over what is beneath.
    pub(crate) fn over(port: Arc<dyn Port>, max_datagram: u16) -> Self {
        let shared = Shared { port, paths: Paths::default(), told: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), max_datagram }
    }

    /// The peer at `to` said that its socket holds a lot.
    pub(crate) fn is_roomy(&self, to: SocketAddr) {
        self.shared.paths.is_roomy(to);
    }

    /// Datagrams that go to `to` in one call.
    #[cfg(test)]
    pub(crate) fn most_at_once(&self, to: SocketAddr) -> usize {
        self.shared.paths.segments(to, 1200)
    }
}

impl AsyncUdpSocket for GatherSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(GatherPoller(Arc::clone(&self.shared.port).poller()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(taken) = driver::with_batch(|batch| batch.offer(&self.shared, transmit)) {
            return taken;
        }
        match self.shared.send(transmit) {
            Ok(()) => Ok(()),
            // Outside of a driver quinn sends single datagrams.
            Err(NotSent::WouldBlock | NotSent::Together) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.shared.port.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.port.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        if self.shared.port.segments() { segments_at_once(self.max_datagram) } else { 1 }
    }

    fn max_receive_segments(&self) -> usize {
        // quinn makes each of its buffers this many datagrams long.
        let many = MAX_RECEIVED_BYTES.div_ceil(usize::from(self.max_datagram));
        if self.shared.port.coalesces() { many } else { 1 }
    }

    fn may_fragment(&self) -> bool {
        self.shared.port.may_fragment()
    }
}

#[derive(Debug)]
struct GatherPoller(Pin<Box<dyn UdpPoller>>);

impl UdpPoller for GatherPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match driver::with_batch(|batch| batch.has_room()) {
            // The batch takes it, whatever the socket says: a close frame that quinn itself had to hold back
            // would be forgotten with the connection.
            Some(true) => Poll::Ready(Ok(())),
            // What is kept goes first. The driver waits for the socket that it is kept for.
            Some(false) => Poll::Pending,
            None => self.0.as_mut().poll_writable(cx),
        }
    }
}
