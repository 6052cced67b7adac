//! What is beneath the gathering socket: the kernel's UDP socket, or a test's stand-in for it.
//!
//! Owns: the system calls, by way of `quinn-udp` and tokio, with every error as the kernel gave it. Leaves
//! to others: what an error means ([`super::batch`]).

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::UdpPoller;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A UDP socket that does not block. The seam at which tests put faults in.
pub(crate) trait Port: Send + Sync + fmt::Debug + 'static {
    /// Sends a datagram, or several of `segment_size` bytes each in one call.
    ///
    /// # Errors
    /// What the system says. After `WouldBlock` a poller is pending until there is room.
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// Something that one task can wait with until there is room.
    fn poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>>;

    /// Receives into `bufs`; the number filled.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>>;

    /// The address that is bound.
    ///
    /// # Errors
    /// What the system says.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Whether one call can send several datagrams.
    fn segments(&self) -> bool;

    /// Whether one buffer may receive several datagrams.
    fn coalesces(&self) -> bool;

    /// Whether the system may cut datagrams into fragments: then no MTU can be found.
    fn may_fragment(&self) -> bool;
}

/// The kernel's.
#[derive(Debug)]
pub(crate) struct KernelPort {
    io: UdpSocket,
    state: UdpSocketState,
}

impl KernelPort {
    /// Over a bound socket; within a tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { io: UdpSocket::from_std(socket)?, state })
    }
}

impl Port for KernelPort {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Not `UdpSocketState::send`, which hides every error.
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit))
    }

    fn poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(KernelPoller { port: self, waiting: None })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            // An error here tells of something that was sent, to whomever. It must not end the endpoint,
            // and reading it has taken it away.
            let receive = || self.state.recv((&self.io).into(), bufs, meta);
            if let Ok(received) = self.io.try_io(Interest::READABLE, receive) {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn segments(&self) -> bool {
        self.state.max_gso_segments() > 1
    }

    fn coalesces(&self) -> bool {
        self.state.gro_segments() > 1
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

struct KernelPoller {
    port: Arc<KernelPort>,
    waiting: Option<Writable>,
}

impl fmt::Debug for KernelPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelPoller").finish_non_exhaustive()
    }
}

impl UdpPoller for KernelPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Mostly there is room, and no future needs to be made to find that out.
        if self.waiting.is_none() && self.port.io.try_io(Interest::WRITABLE, || Ok(())).is_ok() {
            return Poll::Ready(Ok(()));
        }
        let port = Arc::clone(&self.port);
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(async move { port.io.writable().await }));
        let writable = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(writable)
    }
}
