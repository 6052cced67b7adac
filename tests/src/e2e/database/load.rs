//! The load: clients that write transactions at a steady rate, and the ledger of what they heard.
//!
//! Owns: who was answered, who was not, and when. Each transaction has a number of its own that is
//! never used again: one that was not answered stays in the ledger as such, and the client goes on
//! with the next. Leaves to [`super`]: what is in the database in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Connection, Kind};
use crate::e2e::host::PATIENCE;
use crate::e2e::netns;

/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(2);

/// How long one connection or answer is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// One transaction: the load it belongs to, the client, the client's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transaction {
    /// Which load.
    pub load: u64,
    /// Which of its clients.
    pub client: u32,
    /// Counted by the client, from 1.
    pub number: u64,
}

/// What the clients of one load know.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Acknowledged, and when: must be there exactly once.
    pub acked: BTreeMap<Transaction, Instant>,
    /// Sent and not answered, or answered with an error: may be there, at most once.
    pub unanswered: BTreeSet<Transaction>,
    /// Connections that broke or were refused after they had been good.
    pub lost_connections: u64,
}

impl Ledger {
    /// Longest time without any answer between two moments; a part cut off at either end counts.
    pub fn longest_gap(&self, from: Instant, until: Instant) -> Duration {
        let mut last = from;
        let mut longest = Duration::ZERO;
        let mut answers: Vec<Instant> =
            self.acked.values().copied().filter(|at| *at >= from && *at <= until).collect();
        answers.sort_unstable();
        for at in answers.into_iter().chain([until]) {
            longest = longest.max(at.duration_since(last));
            last = at;
        }
        longest
    }
}

/// Where and how much is written.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is spoken.
    pub kind: Kind,
    /// Where the clients are; `None`: with us.
    pub netns: Option<String>,
    /// Every address at which the database may be.
    pub addresses: Vec<SocketAddr>,
    /// Its number, never used before in this database.
    pub load: u64,
    /// Connections.
    pub clients: u32,
    /// Transactions a second, of all clients together; 0: as fast as they are answered.
    pub per_second: u32,
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Begins.
    pub fn start(plan: &Plan) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..plan.clients)
            .map(|client| {
                let (plan, ledger, stop) = (plan.clone(), Arc::clone(&ledger), Arc::clone(&stop));
                std::thread::spawn(move || {
                    if let Some(name) = &plan.netns {
                        netns::enter(name);
                    }
                    run_client(&plan, client, &ledger, &stop);
                })
            })
            .collect();
        Self { ledger, stop, threads }
    }

    /// What is known so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Waits until `more` further transactions were acknowledged.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_more(&self, more: usize, context: &str) {
        let goal = self.ledger().acked.len() + more;
        let until = Instant::now() + PATIENCE;
        while self.ledger().acked.len() < goal {
            assert!(Instant::now() < until, "{context}: the database stopped answering");
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Stops the clients and hands the ledger out.
    pub fn stop(mut self) -> Ledger {
        self.halt();
        std::mem::take(&mut *self.ledger())
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}

fn run_client(plan: &Plan, client: u32, ledger: &Mutex<Ledger>, stop: &AtomicBool) {
    let pause = match plan.per_second {
        0 => Duration::ZERO,
        rate => Duration::from_secs(1) * plan.clients / rate,
    };
    // The clients of one load take turns.
    let mut due = Instant::now() + pause * client / plan.clients.max(1);
    let mut number = 0;
    let mut addresses = plan.addresses.iter().cycle();
    while !stop.load(Ordering::SeqCst) {
        let Some(address) = addresses.next() else { return };
        let Ok(mut connection) = Connection::open(plan.kind, *address, ANSWER_LIMIT) else {
            std::thread::sleep(RETRY);
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            let now = Instant::now();
            std::thread::sleep(due.saturating_duration_since(now));
            // After a pause nothing is made up for: what counts is the rate, not the sum.
            due = due.max(now) + pause;
            number += 1;
            let transaction = Transaction { load: plan.load, client, number };
            let done = connection.write(transaction);
            let mut ledger = lock(ledger);
            if let Err(_error) = done {
                ledger.unanswered.insert(transaction);
                ledger.lost_connections += 1;
                break;
            }
            ledger.acked.insert(transaction, Instant::now());
        }
        // Try where it was first: most often it is only one connection that was lost.
        due = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_the_ends_too() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let answer = |number, ms| (Transaction { load: 1, client: 0, number }, at(ms));
        let acked = [answer(1, 10), answer(2, 30), answer(3, 20)].into();
        let ledger = Ledger { acked, ..Ledger::default() };
        assert_eq!(ledger.longest_gap(start, at(35)), Duration::from_millis(10));
        assert_eq!(ledger.longest_gap(start, at(90)), Duration::from_millis(60));
        assert_eq!(ledger.longest_gap(at(40), at(50)), Duration::from_millis(10));
    }
}
