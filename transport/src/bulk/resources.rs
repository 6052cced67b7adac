//! What all transfers of a node share: workers, memory, places.
//!
//! Owns: the compression threads and the limits. Leaves to others: the transfers themselves.
//!
//! Workers run jobs that compute, and read and write the caches of blocks ([`super::dedup::cache`]); they
//! never wait for another transfer or a peer, so sharing them among transfers cannot stop any.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::{Account, Budget, Limits, Reserve};
use super::buffers::Buffers;
use super::codec::Codec;
use super::dedup::{CREDITS, Dedup};
use crate::frame::MAX_BATCH_RAW;
use crate::frame::dedup::MAX_TABLE;

/// Transfers a node runs at once in one direction; more wait for their turn.
pub const MAX_TRANSFERS: usize = 8;

/// Transfers that hold blocks of an old copy at once: as many as receive references.
const MAX_RESEEDS: usize = 2;

/// Compression threads: more than four outrun any link this is for.
const MAX_WORKERS: usize = 4;

/// See the table in [`crate::bulk`]. The cap lets one transfer keep every worker busy.
const BATCHES: Limits = Limits { own: 2 << 20, shared: 24 << 20, cap: 10 << 20 };

/// The same with room for the reserves of two transfers with references, see [`super::dedup`].
const RECEIVED: Limits = Limits { shared: BATCHES.shared + (6 << 20) + MAX_TABLE, ..BATCHES };

/// What reserves leave of [`RECEIVED`]: the largest batch still finds room beside them.
const RESERVE_FLOOR: usize = 2 * MAX_BATCH_RAW + MAX_TABLE - RECEIVED.own;

/// A record reader's buffer for records larger than it keeps room for: one at a time.
const GIANTS: Limits = Limits { own: 0, shared: GIANT_BYTES, cap: GIANT_BYTES };

/// What is taken from [`GIANTS`] for a large record, in bytes.
pub(crate) const GIANT_BYTES: usize = 16 << 20;

/// Something for a worker to do.
type Job = Box<dyn FnOnce(&mut Codec) + Send>;

/// A place among the [`MAX_TRANSFERS`] of a direction, given back when dropped.
pub type Slot = OwnedSemaphorePermit;

/// Workers, memory and places of one node.
#[derive(Debug)]
pub struct Resources {
    jobs: Sender<Job>,
    sending: Arc<Budget>,
    receiving: Arc<Budget>,
    giants: Arc<Budget>,
    buffers: Arc<Buffers>,
    dedup: Arc<Dedup>,
    send_slots: Arc<Semaphore>,
    receive_slots: Arc<Semaphore>,
    reseed_slots: Arc<Semaphore>,
}

impl Resources {
    /// Starts the workers: one per processor, at most four.
    ///
    /// # Errors
    /// A thread cannot be started, or zstd has no memory.
    pub fn start() -> io::Result<Arc<Self>> {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        // One job waiting for each worker: enough that none idles, and no more held than needed.
        let buffers = Arc::new(Buffers::default());
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(workers);
        for number in 0..workers {
            let (codec, queue) = (Codec::sharing(Arc::clone(&buffers))?, queue.clone());
            thread::Builder::new()
                .name(format!("flocker-zip-{number}"))
                .spawn(move || work(codec, &queue))?;
        }
        Ok(Arc::new(Self {
            jobs,
            sending: Budget::new(BATCHES, Some("send")),
            receiving: Budget::new(RECEIVED, Some("receive")),
            giants: Budget::new(GIANTS, None),
            buffers,
            dedup: Arc::default(),
            send_slots: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            receive_slots: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            reseed_slots: Arc::new(Semaphore::new(MAX_RESEEDS)),
        }))
    }

    /// What this node knows of blocks.
    pub fn dedup(&self) -> &Arc<Dedup> {
        &self.dedup
    }

    pub(crate) fn sending(&self) -> Account {
        self.sending.account()
    }

    pub(crate) fn receiving(&self) -> Account {
        self.receiving.account()
    }

    /// The largest credit for references that can be reserved now for a transfer that is received, in bytes.
    pub(crate) fn credit(account: &Account) -> Option<(Reserve, usize)> {
        CREDITS
            .into_iter()
            .find_map(|credit| Some((account.reserve(credit, RESERVE_FLOOR)?, credit)))
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    pub(crate) fn giants(&self) -> Account {
        self.giants.account()
    }

    /// Whether the one who holds a place to send is the only one who transfers anything.
    pub(crate) fn is_otherwise_idle(&self) -> bool {
        self.send_slots.available_permits() + 1 >= MAX_TRANSFERS
            && self.receive_slots.available_permits() == MAX_TRANSFERS
    }

    /// Waits for a place to send.
    pub(crate) async fn send_slot(&self) -> Slot {
        Self::slot(&self.send_slots).await
    }

    /// Waits for a place to receive.
    pub(crate) async fn receive_slot(&self) -> Slot {
        Self::slot(&self.receive_slots).await
    }

    /// A place to hold blocks of an old copy, if one is free.
    pub(crate) fn reseed_slot(&self) -> Option<Slot> {
        Arc::clone(&self.reseed_slots).try_acquire_owned().ok()
    }

    async fn slot(slots: &Arc<Semaphore>) -> Slot {
        let slot = Arc::clone(slots).acquire_owned().await;
        let Ok(slot) = slot else {
            unreachable!("the semaphore is never closed");
        };
        slot
    }

    /// Runs `job` on a worker; its result comes through the channel.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Codec) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (done, result) = crossbeam_channel::bounded(1);
        let sent = self.jobs.send(Box::new(move |codec| {
            // Nobody waits any more when the transfer has ended: then the result is of no use.
            let _ = done.send(job(codec));
        }));
        assert!(sent.is_ok(), "workers live as long as what they belong to");
        result
    }
}

fn work(mut codec: Codec, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job(&mut codec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_transfers_have_a_credit_for_references_and_a_third_has_none_until_one_ends() {
        let resources = Resources::start().unwrap();
        let accounts = [(); 3].map(|()| resources.receiving());
        let first = Resources::credit(&accounts[0]).unwrap();
        let second = Resources::credit(&accounts[1]).unwrap();
        assert_eq!((first.1, second.1), (CREDITS[0], CREDITS[1]));
        assert!(Resources::credit(&accounts[2]).is_none());
        drop(first);
        assert!(Resources::credit(&accounts[2]).is_some());
    }
}
