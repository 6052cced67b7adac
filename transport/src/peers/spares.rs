//! Connections over TLS that are kept ready to become lanes, where control rides on TLS.
//!
//! ```text
//!   dialler of the session                         the other side
//!   own spares    ── LaneOpen ──▶ Accept           waits for BulkOpen on each
//!   lent ones     ── LaneOpen, reverse ──▶ Accept  its spares: the first to send on them is it
//! ```
//!
//! Owns: how many are ready, and that new ones come. All of them are dialled by the side that dialled the session:
//! where a wall lets TCP through one way alone, or an address is translated, that is the way there is. A small step
//! then costs no handshake: its header and its bytes leave in one flight.
//! Leaves to others: handshakes ([`crate::tcp`]), what becomes of a lane ([`super::lanes`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::lanes::Lanes;
use crate::frame::FrameType;
use crate::tcp::Opened;
use crate::tuning::MAX_BULK_STREAMS;

/// Connections kept ready each way: a small step of one volume, and of another meanwhile.
pub(super) const SPARES: usize = 2;

/// How long a transfer waits for the other side to dial.
const LENT_WITHIN: Duration = Duration::from_secs(10);

/// Rest after a connection that came to nothing.
const REST: Duration = Duration::from_secs(1);

/// What this side may begin to send on.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: Mutex<VecDeque<Opened>>,
    /// One came, or one went.
    changed: Notify,
}

impl Spares {
    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Opened>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are too few.
    pub(super) fn wants(&self) -> bool {
        let mut ready = self.ready();
        ready.retain(Opened::is_alive);
        ready.len() < SPARES
    }

    /// Keeps one; gives it back when there are enough.
    pub(super) fn put(&self, opened: Opened) -> Option<Opened> {
        let mut ready = self.ready();
        ready.retain(Opened::is_alive);
        if ready.len() >= SPARES {
            return Some(opened);
        }
        ready.push_back(opened);
        drop(ready);
        self.changed.notify_waiters();
        None
    }

    /// One that is ready now.
    pub(super) fn take(&self) -> Option<Opened> {
        let mut ready = self.ready();
        let mut found = None;
        while let Some(opened) = ready.pop_front() {
            if opened.is_alive() {
                found = Some(opened);
                break;
            }
        }
        drop(ready);
        self.changed.notify_waiters();
        found
    }

    /// One that is ready, or will be soon.
    pub(super) async fn wait(&self) -> Option<Opened> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Registered before the look, so that one that comes in between is not missed.
                changed.as_mut().enable();
                match self.take() {
                    Some(opened) => return opened,
                    None => changed.await,
                }
            }
        };
        timeout(LENT_WITHIN, waiting).await.ok()
    }

    /// Lets them go.
    pub(super) fn clear(&self) {
        self.ready().clear();
    }

    async fn until_one_is_missing(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.ready().len() < SPARES {
                return;
            }
            changed.await;
        }
    }
}

/// A lane that the other side began on a connection that was lent to it.
pub(super) struct Begun {
    pub(super) opened: Opened,
    pub(super) first: FrameType,
    pub(super) payload: Vec<u8>,
}

/// Keeps this side's spares, as the one that dialled.
pub(super) async fn furnish(lanes: &Lanes<'_>) -> std::convert::Infallible {
    loop {
        lanes.spares.until_one_is_missing().await;
        match lanes.dial_tls(false, None).await {
            Some(opened) => drop(lanes.spares.put(opened)),
            None => sleep(REST).await,
        }
    }
}

/// Lends the other side connections to send on, as the one that dialled. Those that are lent stay so when this is
/// dropped with `lent` kept.
pub(super) async fn lend(
    lanes: &Lanes<'_>,
    lent: &tokio::sync::Mutex<JoinSet<()>>,
    begun: &mpsc::Sender<Begun>,
) -> std::convert::Infallible {
    let places = Arc::new(Semaphore::new(SPARES));
    let mut lent = lent.lock().await;
    loop {
        let place = loop {
            let full = lent.len() >= MAX_BULK_STREAMS as usize + SPARES;
            tokio::select! {
                place = Arc::clone(&places).acquire_owned(), if !full => break place,
                Some(_) = lent.join_next() => {}
            }
        };
        let Some(mut opened) = lanes.dial_tls(true, None).await else {
            sleep(REST).await;
            continue;
        };
        let begun = begun.clone();
        lent.spawn(async move {
            match opened.first().await {
                Ok((first, payload)) => {
                    // Before it is taken, so that the next is there when this one runs.
                    drop(place);
                    let _ = begun.send(Begun { opened, first, payload }).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection that was lent came to nothing");
                    // A peer that drops each at once is not dialled without end.
                    sleep(REST).await;
                }
            }
        });
    }
}
