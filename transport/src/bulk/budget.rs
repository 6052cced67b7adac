//! How many bytes of batches may be in memory at once.
//!
//! Owns: a [`Budget`] per direction, and an [`Account`] per transfer. Each account may always hold a
//! little ([`Limits::own`]), so no transfer waits for ever on another that stands still; what is
//! above comes from what all share, up to a cap, so that one alone is fast. Leaves to others: what
//! the bytes are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cancel::Cancel;

/// How often a waiting thread looks whether it was cancelled.
const POLL: Duration = Duration::from_millis(20);

/// Sizes of a budget, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What each account may hold whatever the others do.
    pub own: usize,
    /// What all accounts may hold together beyond that.
    pub shared: usize,
    /// What one account may hold in all, unless it holds nothing and asks for one larger thing.
    pub cap: usize,
}

/// The bytes of one direction.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    gauge: Option<&'static str>,
    /// What is left of [`Limits::shared`].
    left: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    /// A budget; `gauge` names its direction in [`crate::counters::BYTES_IN_FLIGHT`].
    pub fn new(limits: Limits, gauge: Option<&'static str>) -> Arc<Self> {
        let left = Mutex::new(limits.shared);
        Arc::new(Self { limits, gauge, left, freed: Condvar::new() })
    }

    /// A new account, holding nothing.
    pub fn account(self: &Arc<Self>) -> Account {
        Account { budget: Arc::clone(self), held: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `held` takes from the shared part.
    fn beyond(&self, held: usize) -> usize {
        held.saturating_sub(self.limits.own)
    }

    fn show(&self, bytes: usize, more: bool) {
        if let Some(direction) = self.gauge {
            let gauge = metrics::gauge!(crate::counters::BYTES_IN_FLIGHT, "direction" => direction);
            if more { gauge.increment(bytes as f64) } else { gauge.decrement(bytes as f64) }
        }
    }
}

/// What one transfer holds.
#[derive(Debug, Clone)]
pub struct Account {
    budget: Arc<Budget>,
    /// Changed only under the budget's lock.
    held: Arc<AtomicUsize>,
}

impl Account {
    /// Waits until `bytes` may be held; `None` when cancelled.
    ///
    /// # Panics
    /// When `bytes` could never be granted: sizes are bounded before they come here.
    pub fn acquire(&self, bytes: usize, cancel: &Cancel) -> Option<Held> {
        let limits = self.budget.limits;
        assert!(bytes <= limits.own + limits.shared, "{bytes} bytes asked of {limits:?}");
        let mut left = self.budget.lock();
        loop {
            if cancel.is_cancelled() {
                return None;
            }
            let before = self.held.load(Ordering::Relaxed);
            let after = before + bytes;
            let from_shared = self.budget.beyond(after) - self.budget.beyond(before);
            if from_shared <= *left && (before == 0 || after <= limits.cap) {
                *left -= from_shared;
                self.held.store(after, Ordering::Relaxed);
                self.budget.show(bytes, true);
                return Some(Held { account: self.clone(), bytes });
            }
            let waited = self.budget.freed.wait_timeout(left, POLL);
            left = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn release(&self, bytes: usize) {
        let mut left = self.budget.lock();
        let before = self.held.load(Ordering::Relaxed);
        let after = before - bytes;
        *left += self.budget.beyond(before) - self.budget.beyond(after);
        self.held.store(after, Ordering::Relaxed);
        self.budget.show(bytes, false);
        drop(left);
        self.budget.freed.notify_all();
    }
}

/// Bytes granted, given back when dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        Budget::new(Limits { own: 2, shared: 4, cap: 5 }, None)
    }

    #[test]
    fn an_account_always_gets_its_own_part() {
        let (budget, cancel) = (budget(), Cancel::default());
        let greedy = budget.account();
        let _a = greedy.acquire(5, &cancel).unwrap();
        let other = budget.account();
        let _b = other.acquire(3, &cancel).unwrap();
        assert_eq!(*budget.lock(), 0);
        let _c = budget.account().acquire(2, &cancel).unwrap();
    }

    #[test]
    fn a_waiter_goes_on_when_bytes_come_back_and_everything_is_given_back() {
        let (budget, cancel) = (budget(), Cancel::default());
        let account = budget.account();
        let first = account.acquire(5, &cancel).unwrap();
        let waiter = {
            let (account, cancel) = (account.clone(), cancel.clone());
            std::thread::spawn(move || account.acquire(3, &cancel).is_some())
        };
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished());
        drop(first);
        assert!(waiter.join().unwrap());
        assert_eq!(*budget.lock(), 4);
    }

    #[test]
    fn a_cancelled_waiter_returns() {
        let (budget, cancel) = (budget(), Cancel::default());
        let account = budget.account();
        let _all = account.acquire(5, &cancel).unwrap();
        let waiter = {
            let (account, cancel) = (account.clone(), cancel.clone());
            std::thread::spawn(move || account.acquire(3, &cancel).is_none())
        };
        cancel.cancel("enough");
        assert!(waiter.join().unwrap());
    }
}
