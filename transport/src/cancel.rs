//! Stopping a transfer from anywhere, at once.
//!
//! Owns: one flag that both blocked threads and waiting tasks notice. Leaves to others: what is told
//! to the other side.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::Notify;

use crate::wake::Wake;

/// Stops one transfer. Clones stop the same one; the first reason stays.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reason: OnceLock<String>,
    notify: Notify,
    /// Dropped to wake every thread that selects on `gone`.
    alive: Mutex<Option<Sender<()>>>,
    gone: Receiver<()>,
    /// Threads that wait in `poll`: one for each half of a lane.
    polling: Mutex<Vec<Weak<Wake>>>,
}

impl Default for Cancel {
    fn default() -> Self {
        let (alive, gone) = crossbeam_channel::bounded(0);
        let alive = Mutex::new(Some(alive));
        let (reason, notify, polling) = (OnceLock::new(), Notify::new(), Mutex::default());
        Self(Arc::new(Inner { reason, notify, alive, gone, polling }))
    }
}

impl Cancel {
    /// Stops the transfer. Whoever waits in it returns promptly; a `read` or `write` of the caller's
    /// own that is blocked returns when its owner unblocks it.
    pub fn cancel(&self, reason: &str) {
        if self.0.reason.set(reason.to_owned()).is_ok() {
            self.0.alive.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.0.notify.notify_waiters();
            for wake in self.polling().drain(..) {
                if let Some(wake) = wake.upgrade() {
                    wake.wake();
                }
            }
        }
    }

    fn polling(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Wake>>> {
        self.0.polling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason, once cancelled.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.reason.get().is_some()
    }

    /// Completes when cancelled.
    pub async fn cancelled(&self) {
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        // Registered before the look, so that a cancel in between is not missed.
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }

    /// A channel that is never sent to and disconnects when cancelled, for `select!`.
    pub(crate) fn channel(&self) -> &Receiver<()> {
        &self.0.gone
    }

    /// Whether both stop the same transfer.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Has `wake` woken when cancelled. Whoever calls it looks at [`Cancel::is_cancelled`] afterwards: a
    /// cancel of before is not told again.
    pub(crate) fn wakes(&self, wake: &Arc<Wake>) {
        let mut polling = self.polling();
        polling.retain(|other| other.strong_count() > 0);
        polling.push(Arc::downgrade(wake));
    }
}
