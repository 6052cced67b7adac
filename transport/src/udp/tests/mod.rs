//! The hazards of gathering, one by one: what a batch does ([`batches`]), and QUIC over it ([`quic`]).

mod batches;
mod quic;

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quinn::UdpPoller;
use quinn::udp::{RecvMeta, Transmit};
use rustix::io::Errno;

use super::port::{KernelPort, Port};

/// What one call sent, as it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    to: SocketAddr,
    /// Lengths of its datagrams.
    lengths: Vec<usize>,
    bytes: Vec<u8>,
}

/// What a call is answered with instead of being sent.
type Rule = Box<dyn Fn(&Transmit<'_>) -> Option<Errno> + Send + Sync>;

/// A port that keeps what it was given, fails as it is told, and passes the rest on where there is a kernel.
struct TestPort {
    kernel: Option<Arc<KernelPort>>,
    rule: Mutex<Rule>,
    calls: Mutex<Vec<Call>>,
    keeps_bytes: bool,
    full: AtomicBool,
    /// Nothing that comes is heard.
    deaf: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl std::fmt::Debug for TestPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestPort").finish_non_exhaustive()
    }
}

impl TestPort {
    /// With no kernel beneath: what is sent is kept.
    fn keeping() -> Arc<Self> {
        Arc::new(Self::new(None))
    }

    /// On loopback.
    fn on_loopback() -> Arc<Self> {
        let socket = crate::tuning::socket("127.0.0.1:0".parse().unwrap(), 8 << 20).unwrap();
        Arc::new(Self::new(Some(Arc::new(KernelPort::new(socket).unwrap()))))
    }

    fn new(kernel: Option<Arc<KernelPort>>) -> Self {
        let keeps_bytes = kernel.is_none();
        Self {
            kernel,
            rule: Mutex::new(Box::new(|_| None)),
            calls: Mutex::default(),
            keeps_bytes,
            full: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    fn fails(&self, rule: impl Fn(&Transmit<'_>) -> Option<Errno> + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// Lets the socket have no room, or room again.
    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
        if !full {
            self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
        }
    }

    /// What was sent since this was last asked.
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// The lengths of it.
    fn take_lengths(&self) -> Vec<Vec<usize>> {
        self.take().into_iter().map(|call| call.lengths).collect()
    }
}

impl Port for TestPort {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(errno) = (self.rule.lock().unwrap())(transmit) {
            if errno == Errno::AGAIN {
                self.full.store(true, Ordering::SeqCst);
            }
            return Err(errno.into());
        }
        if let Some(kernel) = &self.kernel {
            kernel.send(transmit)?;
        }
        let len = transmit.contents.len();
        let pieces = transmit.contents.chunks(transmit.segment_size.unwrap_or(len).max(1));
        self.calls.lock().unwrap().push(Call {
            to: transmit.destination,
            lengths: pieces.map(<[u8]>::len).collect(),
            bytes: if self.keeps_bytes { transmit.contents.to_vec() } else { Vec::new() },
        });
        Ok(())
    }

    fn poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let kernel = self.kernel.as_ref().map(|kernel| Arc::clone(kernel).poller());
        Box::pin(TestPoller { port: self, kernel })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(kernel) = &self.kernel else { return Poll::Pending };
        loop {
            let received = kernel.poll_recv(cx, bufs, meta);
            if received.is_pending() || !self.deaf.load(Ordering::SeqCst) {
                return received;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.kernel.as_ref().unwrap().local_addr()
    }

    fn segments(&self) -> bool {
        true
    }

    fn coalesces(&self) -> bool {
        true
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct TestPoller {
    port: Arc<TestPort>,
    kernel: Option<Pin<Box<dyn UdpPoller>>>,
}

impl UdpPoller for TestPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.port.waiting.lock().unwrap();
        if self.port.full.load(Ordering::SeqCst) {
            waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        drop(waiting);
        self.kernel.as_mut().map_or(Poll::Ready(Ok(())), |kernel| kernel.as_mut().poll_writable(cx))
    }
}
