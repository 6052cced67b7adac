//! The vault's own thread, for what should not wait until it is needed and should not make anybody wait.
//!
//! Owns: bringing the directories of standbys up to the snapshots that arrive, and collecting what nothing
//! refers to any more. Leaves how to [`crate::dir::live`] and [`crate::gc`]. Nothing depends on it: what it
//! did not come to is done when it is needed.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;

use flocker_store::{DatasetKind, DatasetName, StoreError};

use crate::dir::live::Directory;
use crate::gc;
use crate::inner::Inner;
use crate::meta::{Live, View};

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum Task {
    /// A snapshot arrived in this dataset.
    Prepare(DatasetName),
    /// Something was destroyed.
    Collect,
    /// The vault closes.
    Stop,
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Worker {
    inner: Weak<Inner>,
    tasks: Sender<Task>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. It does not keep the vault open.
    pub(crate) fn start(
        inner: Weak<Inner>,
        tasks: Sender<Task>,
        todo: Receiver<Task>,
    ) -> Result<Self, StoreError> {
        let thread = std::thread::Builder::new()
            .name("vault-worker".into())
            .spawn({
                let inner = inner.clone();
                move || run(&inner, &todo)
            })
            .map_err(|e| StoreError::io("starting the vault's thread", e))?;
        Ok(Worker { inner, tasks, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.stopping.store(true, Ordering::Relaxed);
        }
        let _ = self.tasks.send(Task::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed; the vault closes all the same.
            let _ = thread.join();
        }
    }
}

fn run(inner: &Weak<Inner>, todo: &Receiver<Task>) {
    while let Ok(first) = todo.recv() {
        // Of ten snapshots that arrived meanwhile only the newest is checked out.
        let (mut prepare, mut collect) = (BTreeSet::new(), false);
        for task in std::iter::once(first).chain(todo.try_iter()) {
            match task {
                Task::Prepare(dataset) => {
                    prepare.insert(dataset);
                }
                Task::Collect => collect = true,
                Task::Stop => return,
            }
        }
        for dataset in prepare {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            if let Err(error) = prepare_dataset(&inner, &dataset, false)
                && !matches!(error, StoreError::Cancelled)
            {
                tracing::warn!(%dataset, %error, "could not be checked out ahead; activation tries again");
            }
        }
        if collect {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            if let Err(error) = gc::collect_if_worth_it(&inner) {
                tracing::warn!(%error, "could not collect what nothing refers to");
            }
        }
    }
}

/// Brings the hidden tree of a volume at rest to its newest snapshot.
///
/// An image takes as much room again as its volume and a whole volume's time to write: it is made when it is
/// `wanted`, and from then on kept up with what is received.
pub(crate) fn prepare_dataset(
    inner: &std::sync::Arc<Inner>,
    dataset: &DatasetName,
    wanted: bool,
) -> Result<(), StoreError> {
    let Some((id, record)) = View::new(&inner.db)?.find(dataset)? else {
        return Ok(()); // destroyed since
    };
    match (record.kind, record.live) {
        (DatasetKind::Filesystem, _) => Ok(()),
        (_, Live::Open | Live::Fenced) => Ok(()), // in use; nothing to wait for
        (DatasetKind::Zvol, Live::Absent | Live::Updating) if !wanted => Ok(()),
        (_, Live::Absent | Live::Clean(_) | Live::Updating) => {
            let mut directory = Directory::enter(inner, id, dataset)?;
            directory.can_live()?;
            directory.prepare()
        }
    }
}
