//! quinn's drivers, each with a batch of its own while it is polled.
//!
//! Owns: the futures that quinn spawns, when a batch is flushed, and that what is kept is sent even after
//! its driver has ended. Leaves to others: the batch ([`super::batch`]).
//!
//! quinn sends about twenty datagrams and then yields. A driver that did so is polled once more, so that
//! both go together; more polls would keep others waiting for little. Nothing waits for a timer: whatever
//! was sent leaves before the poll returns.

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::UdpPoller;

use super::batch::Batch;
use super::socket::Shared;

/// Datagrams after which a driver has more to send, likely: quinn's own limit for a poll.
const WORTH_ANOTHER_POLL: usize = 20;

/// Polls of a driver in one of ours.
const MAX_POLLS: usize = 2;

thread_local! {
    /// The batch of the driver that is being polled on this thread.
    static CURRENT: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// Acts on the batch of the driver that is being polled, where one is.
pub(super) fn with_batch<T>(act: impl FnOnce(&mut Batch) -> T) -> Option<T> {
    CURRENT.with_borrow_mut(|current| current.as_mut().map(act))
}

/// Lends a batch to this thread, until dropped: also when the driver panics.
struct Lent<'a> {
    batch: &'a mut Batch,
    before: Option<Batch>,
}

impl<'a> Lent<'a> {
    fn new(batch: &'a mut Batch) -> Self {
        let before = CURRENT.replace(Some(mem::take(batch)));
        Self { batch, before }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(batch) = CURRENT.replace(self.before.take()) {
            *self.batch = batch;
        }
    }
}

type Inner = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A socket, and what waits for room in it.
type Waiting = (Arc<Shared>, Pin<Box<dyn UdpPoller>>);

/// A driver of quinn's. Done when the driver is, and all that it sent has left.
pub(super) struct Driver {
    /// `None` when it has ended.
    inner: Option<Inner>,
    batch: Batch,
    /// Waits for room in the socket that the batch is for.
    waiting: Option<Waiting>,
}

impl Driver {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Some(inner), batch: Batch::default(), waiting: None }
    }

    /// Sends what is queued; pending while there is no room.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.batch.flush().is_err() {
            let Some(socket) = self.batch.socket() else { break };
            let same = self.waiting.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, socket));
            if !same {
                self.waiting = Some((Arc::clone(socket), Arc::clone(&socket.port).poller()));
            }
            let Some((_, poller)) = &mut self.waiting else { break };
            if ready!(poller.as_mut().poll_writable(cx)).is_err() {
                // The runtime shuts down.
                self.batch = Batch::default();
            }
        }
        Poll::Ready(())
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        for _ in 0..MAX_POLLS {
            let Some(inner) = &mut this.inner else { break };
            let lent = Lent::new(&mut this.batch);
            let ended = inner.as_mut().poll(cx).is_ready();
            drop(lent);
            if ended {
                this.inner = None;
            }
            let sent = this.batch.take_count();
            if sent < WORTH_ANOTHER_POLL || this.batch.is_blocked() {
                break;
            }
        }
        ready!(this.drain(cx));
        if this.batch.take_waited_for() {
            cx.waker().wake_by_ref();
        }
        if this.inner.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }
}
