//! Who may do what at the same time, inside one process.
//!
//! Owns: claims (one receive for a dataset at a time; the second is told so) and turns (operations on one
//! dataset's live data, one after another). Leaves the lock against other processes to [`crate::layout`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex};

use flocker_store::{DatasetName, StoreError};

use crate::dir::holders;
use crate::meta::DatasetId;

/// Datasets that are being received into.
#[derive(Debug, Default)]
pub(crate) struct Claims(Arc<Mutex<BTreeSet<DatasetName>>>);

/// The right to receive into a dataset, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Mutex<BTreeSet<DatasetName>>>,
    dataset: DatasetName,
}

impl Claims {
    /// Claims a dataset.
    pub(crate) fn take(&self, dataset: &DatasetName) -> Result<Claim, StoreError> {
        let mut taken = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if !taken.insert(dataset.clone()) {
            return Err(StoreError::Busy {
                dataset: dataset.clone(),
                holders: vec![holders::ourselves("another receive into it")],
            });
        }
        Ok(Claim { claims: self.0.clone(), dataset: dataset.clone() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.claims.lock().unwrap_or_else(|e| e.into_inner());
        taken.remove(&self.dataset);
    }
}

/// Turns at the live data of datasets.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<DatasetId, Arc<Turn>>>);

#[derive(Debug, Default)]
struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// The turn at one dataset, until it is dropped.
#[derive(Debug)]
pub(crate) struct TurnGuard(Arc<Turn>);

impl Turns {
    /// Waits for the turn at a dataset.
    pub(crate) fn wait(&self, id: DatasetId) -> TurnGuard {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(|e| e.into_inner());
            turns.entry(id).or_default().clone()
        };
        {
            let mut taken = turn.taken.lock().unwrap_or_else(|e| e.into_inner());
            while *taken {
                taken = turn.free.wait(taken).unwrap_or_else(|e| e.into_inner());
            }
            *taken = true;
        }
        TurnGuard(turn)
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(|e| e.into_inner()) = false;
        self.0.free.notify_one();
    }
}
