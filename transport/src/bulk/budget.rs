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

/// What became of [`Limits::shared`].
#[derive(Debug)]
struct Shares {
    /// What nobody has.
    left: usize,
    /// What was taken out of it for single accounts.
    reserved: usize,
}

/// The bytes of one direction.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    gauge: Option<&'static str>,
    shares: Mutex<Shares>,
    freed: Condvar,
}

impl Budget {
    /// A budget; `gauge` names its direction in [`crate::counters::BYTES_IN_FLIGHT`].
    pub fn new(limits: Limits, gauge: Option<&'static str>) -> Arc<Self> {
        let shares = Mutex::new(Shares { left: limits.shared, reserved: 0 });
        Arc::new(Self { limits, gauge, shares, freed: Condvar::new() })
    }

    /// A new account, holding nothing.
    pub fn account(self: &Arc<Self>) -> Account {
        let own = Arc::new(AtomicUsize::new(self.limits.own));
        Account { budget: Arc::clone(self), own, held: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// What it may always hold. Changed only under the budget's lock.
    own: Arc<AtomicUsize>,
    /// Changed only under the budget's lock.
    held: Arc<AtomicUsize>,
}

impl Account {
    /// From now on this account may hold `bytes` more whatever the others do; they are taken out of what all
    /// share until the reserve is dropped. `None` when they are not there now, or when reserves would leave
    /// less than `floor` of that.
    pub fn reserve(&self, bytes: usize, floor: usize) -> Option<Reserve> {
        let mut shares = self.budget.lock();
        let held = self.held.load(Ordering::Relaxed);
        let own = self.own.load(Ordering::Relaxed);
        // What it took from the shared part becomes its own.
        let back = held.saturating_sub(own) - held.saturating_sub(own + bytes);
        let left = (shares.left + back).checked_sub(bytes)?;
        if shares.reserved + bytes + floor > self.budget.limits.shared {
            return None;
        }
        *shares = Shares { left, reserved: shares.reserved + bytes };
        self.own.store(own + bytes, Ordering::Relaxed);
        Some(Reserve { account: self.clone(), bytes })
    }

    /// What `held` takes from the shared part.
    fn beyond(&self, held: usize) -> usize {
        held.saturating_sub(self.own.load(Ordering::Relaxed))
    }

    /// Waits until `bytes` may be held; `None` when cancelled.
    ///
    /// # Panics
    /// When `bytes` could never be granted: sizes are bounded before they come here.
    pub fn acquire(&self, bytes: usize, cancel: &Cancel) -> Option<Held> {
        let limits = self.budget.limits;
        assert!(bytes <= limits.own + limits.shared, "{bytes} bytes asked of {limits:?}");
        let mut shares = self.budget.lock();
        loop {
            if cancel.is_cancelled() {
                return None;
            }
            let before = self.held.load(Ordering::Relaxed);
            let after = before + bytes;
            let from_shared = self.beyond(after) - self.beyond(before);
            let cap = limits.cap.max(self.own.load(Ordering::Relaxed));
            if from_shared <= shares.left && (before == 0 || after <= cap) {
                shares.left -= from_shared;
                self.held.store(after, Ordering::Relaxed);
                self.budget.show(bytes, true);
                return Some(Held { account: self.clone(), bytes });
            }
            let waited = self.budget.freed.wait_timeout(shares, POLL);
            shares = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn release(&self, bytes: usize) {
        let mut shares = self.budget.lock();
        let before = self.held.load(Ordering::Relaxed);
        let after = before - bytes;
        shares.left += self.beyond(before) - self.beyond(after);
        self.held.store(after, Ordering::Relaxed);
        self.budget.show(bytes, false);
        drop(shares);
        self.budget.freed.notify_all();
    }
}

/// What was taken out of the shared part for one account, given back when dropped.
#[derive(Debug)]
pub struct Reserve {
    account: Account,
    bytes: usize,
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let Account { budget, own, held } = &self.account;
        let mut shares = budget.lock();
        let (before, held) = (own.load(Ordering::Relaxed), held.load(Ordering::Relaxed));
        let after = before - self.bytes;
        // What the account still holds of it comes out of the shared part now, which has it: it is what
        // comes back.
        let kept = held.saturating_sub(after) - held.saturating_sub(before);
        shares.left = shares.left + self.bytes - kept;
        shares.reserved -= self.bytes;
        own.store(after, Ordering::Relaxed);
        drop(shares);
        budget.freed.notify_all();
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
        assert_eq!(budget.lock().left, 0);
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
        assert_eq!(budget.lock().left, 4);
    }

    #[test]
    fn a_reserve_is_there_whatever_the_others_hold_and_comes_back() {
        let (budget, cancel) = (budget(), Cancel::default());
        let account = budget.account();
        let reserve = account.reserve(2, 2).unwrap();
        assert!(budget.account().reserve(1, 2).is_none(), "something is left for the others");
        let greedy = budget.account();
        let all = greedy.acquire(4, &cancel).unwrap();
        let held = account.acquire(4, &cancel).unwrap();
        drop((held, reserve));
        assert_eq!(budget.lock().left, 2);
        drop(all);
        assert_eq!(budget.lock().left, 4);
    }

    #[test]
    fn a_reserve_in_the_middle_takes_over_what_is_held_and_nothing_is_lost_in_any_order() {
        for first in [true, false] {
            let (budget, cancel) = (budget(), Cancel::default());
            let account = budget.account();
            let held = account.acquire(5, &cancel).unwrap();
            assert_eq!(budget.lock().left, 1);
            let reserve = account.reserve(2, 1).unwrap();
            assert_eq!(budget.lock().left, 1);
            if first {
                drop(reserve);
                drop(held);
            } else {
                drop(held);
                assert_eq!(budget.lock().left, 2);
                drop(reserve);
            }
            assert_eq!(budget.lock().left, 4);
        }
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
