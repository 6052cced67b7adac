//! The clocks: the core has none of its own.
//!
//! The monotonic one is CLOCK_BOOTTIME, which goes on while the host sleeps: a lease that has run out
//! meanwhile has run out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flocker_core::ids::Now;
use rustix::time::{ClockId, clock_gettime};

use crate::workload::Deadline;

/// Counts from when the node started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Duration,
}

/// Since the host's start, sleep included.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: since_boot() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ms: self.uptime_ms(), wall_ms: unix_ms() }
    }

    pub(crate) fn uptime_ms(&self) -> u64 {
        millis(self.elapsed())
    }

    /// How long until this moment of the monotonic clock; nothing if it has passed. Rounded up by
    /// a millisecond, so that the moment has come when the wait is over.
    pub(crate) fn until(&self, mono_ms: u64) -> Duration {
        let at = Duration::from_millis(mono_ms);
        at.saturating_sub(self.elapsed())
    }

    /// That moment of the monotonic clock by the clocks that a workload's supervisor can look at.
    pub(crate) fn deadline(&self, mono_ms: u64) -> Deadline {
        Deadline::after(self.until(mono_ms))
    }

    fn elapsed(&self) -> Duration {
        since_boot().saturating_sub(self.started)
    }
}

/// Wall clock, milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// Wall clock, seconds since 1970.
pub(crate) fn unix_s() -> i64 {
    unix_ms().div_euclid(1000)
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
