//! How fast a transfer may put bytes on the wire.
//!
//! Owns: a [`Bucket`] for each thing that has a limit (a peer, a unit), and a transfer's [`Pace`] through its buckets.
//! Leaves to others: which limits there are, and when (the engine).
//!
//! A bucket is kept as the moment from which on it is even again: each byte moves that moment on by what it takes at
//! the rate. It may lie behind by `BURST` at most, so that a pause is not made good by more than that, and a change
//! of the rate holds from the next piece on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may be made good of a pause, as time at the rate.
const BURST: Duration = Duration::from_millis(50);

/// Bytes are let through in pieces of about this long at the rate, so that they flow instead of coming in lumps.
const PIECE: Duration = Duration::from_millis(20);

/// Smallest and largest piece, in bytes.
const LEAST_PIECE: u64 = 4 << 10;
const MOST_PIECE: u64 = 256 << 10;

/// Longest wait before the rate is looked at again: it may have been changed.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes a second that everything of one kind shares.
#[derive(Debug, Default)]
pub struct Bucket {
    /// 0: no limit.
    rate: AtomicU64,
    even: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Sets the limit, bytes a second on the wire; `None`, and 0, are none. Transfers that run keep to it at once.
    pub fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// The limit, bytes a second.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    fn even(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.even.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until something may pass; zero: now.
    fn wait(&self, now: Instant) -> Duration {
        match (self.rate(), *self.even()) {
            (Some(_), Some(even)) => even.saturating_duration_since(now),
            (None, _) | (_, None) => Duration::ZERO,
        }
    }

    /// Lets bytes pass, if some may pass now.
    ///
    /// # Errors
    /// How long to wait.
    fn charge(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate() else { return Ok(()) };
        let mut even = self.even();
        let wait = even.map_or(Duration::ZERO, |even| even.saturating_duration_since(now));
        if wait > Duration::ZERO {
            return Err(wait);
        }
        *even = Some(after(*even, now, bytes, rate));
        Ok(())
    }

    /// Counts bytes that pass whatever the limit says; what follows makes up for them.
    fn owe(&self, bytes: u64, now: Instant) {
        if let Some(rate) = self.rate() {
            let mut even = self.even();
            *even = Some(after(*even, now, bytes, rate));
        }
    }
}

fn after(even: Option<Instant>, now: Instant, bytes: u64, rate: u64) -> Instant {
    let earliest = now.checked_sub(BURST).unwrap_or(now);
    let from = even.map_or(earliest, |even| even.max(earliest));
    from + Duration::from_secs_f64(bytes as f64 / rate as f64)
}

/// The limits that one transfer keeps to.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Of all transfers to the peer together.
    pub peer: Arc<Bucket>,
    /// Of all transfers of the unit together.
    pub unit: Arc<Bucket>,
    /// It is not held back, but counted: the last step of a move, for which the workload stands still.
    pub exempt: bool,
}

impl Pace {
    /// Bytes that should be asked for at once.
    pub(crate) fn piece(&self) -> usize {
        let rate = match (self.exempt, self.peer.rate(), self.unit.rate()) {
            (true, _, _) | (false, None, None) => return usize::MAX,
            (false, Some(rate), None) | (false, None, Some(rate)) => rate,
            (false, Some(a), Some(b)) => a.min(b),
        };
        let piece = (u128::from(rate) * PIECE.as_millis() / 1000) as u64;
        piece.clamp(LEAST_PIECE, MOST_PIECE) as usize
    }

    /// Lets bytes pass now.
    ///
    /// # Errors
    /// How long to wait before it is asked again.
    pub(crate) fn pass(&self, bytes: usize, now: Instant) -> Result<(), Duration> {
        let bytes = bytes as u64;
        if self.exempt {
            self.peer.owe(bytes, now);
            self.unit.owe(bytes, now);
            return Ok(());
        }
        let wait = self.unit.wait(now);
        if wait > Duration::ZERO {
            return Err(wait.min(LOOK));
        }
        self.peer.charge(bytes, now).map_err(|wait| wait.min(LOOK))?;
        self.unit.owe(bytes, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn bucket(rate: Option<u64>) -> Arc<Bucket> {
        let bucket = Bucket::default();
        bucket.set(rate);
        Arc::new(bucket)
    }

    /// How long so many bytes take, by a clock that runs as it is told to wait.
    fn takes(pace: &Pace, bytes: u64, start: Instant) -> Duration {
        let (mut now, mut left) = (start, bytes);
        while left > 0 {
            let piece = left.min(pace.piece() as u64);
            match pace.pass(piece as usize, now) {
                Ok(()) => left -= piece,
                Err(wait) => now += wait,
            }
        }
        now - start
    }

    fn about(found: Duration, seconds: f64) {
        let found = found.as_secs_f64();
        assert!((found - seconds).abs() < 0.2, "{found} s, not {seconds} s");
    }

    #[test]
    fn bytes_take_as_long_as_the_rate_says_and_the_smaller_of_two_rates_counts() {
        let now = Instant::now();
        let pace = |peer, unit| Pace { peer: bucket(peer), unit: bucket(unit), exempt: false };
        assert_eq!(takes(&pace(None, None), 1 << 40, now), Duration::ZERO);
        about(takes(&pace(Some(20 * MIB), None), 100 * MIB, now), 5.0);
        about(takes(&pace(None, Some(10 * MIB)), 100 * MIB, now), 10.0);
        about(takes(&pace(Some(20 * MIB), Some(10 * MIB)), 100 * MIB, now), 10.0);
        about(takes(&pace(Some(10 * MIB), Some(20 * MIB)), 100 * MIB, now), 10.0);
        about(takes(&pace(Some(64 << 10), None), MIB, now), 16.0);
    }

    #[test]
    fn a_pause_is_made_good_by_a_short_burst_alone() {
        let (now, pace) = (Instant::now(), Pace { peer: bucket(Some(MIB)), ..Pace::default() });
        about(takes(&pace, MIB, now), 1.0);
        let later = now + Duration::from_secs(3600);
        about(takes(&pace, MIB, later), 1.0);
    }

    #[test]
    fn transfers_of_one_peer_share_its_rate() {
        let (start, peer) = (Instant::now(), bucket(Some(10 * MIB)));
        let pace = |unit| Pace { peer: Arc::clone(&peer), unit, exempt: false };
        let both = [pace(bucket(None)), pace(bucket(None))];
        let (mut now, mut sent) = (start, [0_u64; 2]);
        while now < start + Duration::from_secs(10) {
            let mut wait = Duration::MAX;
            for (pace, sent) in both.iter().zip(&mut sent) {
                match pace.pass(pace.piece(), now) {
                    Ok(()) => *sent += pace.piece() as u64,
                    Err(until) => wait = wait.min(until),
                }
            }
            if wait < Duration::MAX {
                now += wait;
            }
        }
        let total = sent[0] + sent[1];
        assert!(total.abs_diff(100 * MIB) < 2 * MIB, "{sent:?}");
    }

    #[test]
    fn a_change_holds_at_once_and_the_last_step_of_a_move_is_counted_and_not_held_back() {
        let (now, pace) =
            (Instant::now(), Pace { peer: bucket(Some(64 << 10)), ..Pace::default() });
        pace.pass(pace.piece(), now).unwrap();
        while pace.pass(pace.piece(), now).is_ok() {}
        pace.peer.set(None);
        assert_eq!(pace.pass(1 << 30, now), Ok(()));
        pace.peer.set(Some(10 * MIB));
        let last = Pace { exempt: true, ..pace.clone() };
        let later = now + Duration::from_secs(60);
        assert_eq!(last.piece(), usize::MAX);
        assert_eq!(last.pass(10 << 20, later), Ok(()));
        assert!(pace.pass(1, later + Duration::from_millis(500)).is_err(), "it is made up for");
        assert_eq!(pace.pass(1, later + Duration::from_secs(1)), Ok(()));
    }
}
