//! How much a connection has in flight: CUBIC, that keeps short queues where the queue is its own.
//!
//! Owns: the window. Leaves to others: which stream's bytes fill it ([`crate::peers`]), and everything else
//! that QUIC does about loss.
//!
//! CUBIC fills the buffer at the narrowest link until that overflows, and a small difference waits behind
//! all of it, whatever its priority here. So where the smoothed round trip exceeds the shortest one by
//! [`QUEUE`], the window is cut to what the link carried in the shortest one and that much more; and grows
//! again when it does not.
//!
//! A queue that does not get shorter although the window has been cut many times is not ours: other
//! senders fill it, or the path has become longer. To give way for ever would be to get nothing, so for
//! [`REST`] CUBIC alone decides. One that got much shorter, and no shorter than it is, is ours on a slow
//! link, where the fewest packets take that long.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// How long a packet may wait in a queue that we fill, be it a link's or that of a receiver whose processor
/// is the limit: half of what a difference of 64 KiB takes on 250 Mbit/s, and as much as an acknowledgement
/// may be late.
const QUEUE: Duration = Duration::from_millis(2);

/// Cuts in a row without an effect after which the queue is not ours: each is a round trip, and they cut to
/// a tenth and less.
const CUTS: u32 = 16;

/// How long CUBIC then decides alone.
const REST: Duration = Duration::from_secs(5);

/// Never fewer packets than this, which is what 100 Mbit/s carry until the next acknowledgement: a slower
/// link stays full, and its queue takes a few milliseconds more.
const LEAST_PACKETS: u64 = 24;

/// Makes one for each path.
#[derive(Debug)]
pub(crate) struct ShortQueues {
    cubic: Arc<CubicConfig>,
}

impl ShortQueues {
    /// Over CUBIC so configured.
    pub(crate) fn over(cubic: CubicConfig) -> Self {
        Self { cubic: Arc::new(cubic) }
    }
}

impl ControllerFactory for ShortQueues {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(ShortQueue {
            cubic: Arc::clone(&self.cubic).build(now, current_mtu),
            mtu: current_mtu.into(),
            state: State::Free { since: now },
            next: now,
        })
    }
}

/// What holds beside CUBIC's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing; `since` then or later.
    Free { since: Instant },
    /// At most so many bytes, after so many cuts in a row, which found a queue of `longest` at most. It
    /// is cut when the queue exceeds `limit`.
    Capped { bytes: u64, cuts: u32, longest: Duration, limit: Duration },
}

struct ShortQueue {
    cubic: Box<dyn Controller>,
    mtu: u64,
    state: State,
    /// When the round trip is looked at next: once in each.
    next: Instant,
}

impl ShortQueue {
    fn least(&self) -> u64 {
        LEAST_PACKETS * self.mtu
    }

    /// Looks at the round trip, `now` as it is and at its shortest.
    fn look(&mut self, now: Instant, trip: Duration, shortest: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + trip;
        let queue = trip.saturating_sub(shortest);
        let window = self.window();
        self.state = match self.state {
            State::Free { since } if now < since || queue <= QUEUE => State::Free { since },
            State::Free { .. } => {
                let bytes = self.cut(window, trip, shortest + QUEUE);
                State::Capped { bytes, cuts: 1, longest: queue, limit: QUEUE }
            }
            State::Capped { bytes, cuts: CUTS.., longest, .. } if queue <= longest / 2 => {
                // Ours, and as short as it gets: this link takes so long for the fewest packets.
                State::Capped { bytes, cuts: 0, longest, limit: 2 * queue.max(QUEUE) }
            }
            State::Capped { cuts: CUTS.., .. } => State::Free { since: now + REST },
            State::Capped { cuts, longest, limit, .. } if queue > limit => {
                let bytes = self.cut(window, trip, shortest + limit);
                // While the window grows too fast for the first cuts to be felt, it still gets longer.
                let longest = if cuts == 0 { queue } else { longest.max(queue) };
                State::Capped { bytes, cuts: cuts + 1, longest, limit }
            }
            State::Capped { bytes, longest, limit, .. } => {
                // Quickly where there is hardly a queue, for there the link may be idle.
                let more = if queue < limit / 2 { bytes / 4 } else { 2 * self.mtu };
                let bytes = bytes + more;
                if bytes >= self.cubic.window() {
                    State::Free { since: now }
                } else {
                    State::Capped { bytes, cuts: 0, longest, limit }
                }
            }
        };
    }

    /// What of the window, in flight for `trip`, was so for `allowed`.
    fn cut(&self, window: u64, trip: Duration, allowed: Duration) -> u64 {
        let share = allowed.as_secs_f64() / trip.as_secs_f64();
        ((window as f64 * share.min(1.0)) as u64).max(self.least())
    }
}

impl Controller for ShortQueue {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        // CUBIC's window does not grow while it is not what limits.
        let capped = matches!(self.state, State::Capped { .. });
        self.cubic.on_ack(now, sent, bytes, app_limited || capped, rtt);
        // Where too little was sent to fill a queue, a long trip is not ours.
        if !app_limited {
            self.look(now, rtt.get(), rtt.min());
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        match self.state {
            State::Free { .. } => self.cubic.window(),
            State::Capped { bytes, .. } => self.cubic.window().min(bytes),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let Self { mtu, state, next, .. } = *self;
        Box::new(Self { cubic: self.cubic.clone_box(), mtu, state, next })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn controller(window: u64, now: Instant) -> ShortQueue {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(window);
        let cubic = Arc::new(cubic).build(now, 1452);
        ShortQueue { cubic, mtu: 1452, state: State::Free { since: now }, next: now }
    }

    #[test]
    fn a_queue_of_ours_is_kept_short_and_the_link_full() {
        // Links of these bytes a second and 1 ms: what is in flight beyond that is their queue.
        for rate in [1e6, 5e6, 50e6, 1e9] {
            let start = Instant::now();
            let mut it = controller(8 * MIB, start);
            let shortest = ms(1);
            // What the fewest packets take is as short as it gets.
            let least = Duration::from_secs_f64(it.least() as f64 / rate).saturating_sub(shortest);
            let allowed = 3 * least.max(QUEUE);
            let mut now = start;
            for round in 0..5000 {
                let trip = Duration::from_secs_f64((it.window() as f64 / rate).max(1e-3));
                it.look(now, trip, shortest);
                now += trip;
                if round > 40 {
                    assert!(it.window() as f64 >= rate * 1e-3, "idle at {rate}: {}", it.window());
                    assert!(trip <= shortest + allowed, "{trip:?} at {rate} in round {round}");
                }
            }
        }
    }

    #[test]
    fn a_queue_of_others_is_given_way_to_for_a_while_only() {
        let start = Instant::now();
        let mut it = controller(MIB, start);
        let (mut now, mut least) = (start, MIB);
        for _ in 0..=CUTS {
            it.look(now, ms(100), ms(10));
            now += ms(100);
            least = least.min(it.window());
        }
        assert_eq!(least, it.least());
        assert_eq!(it.window(), MIB, "what is cut to nothing has no effect on such a queue");
        it.look(now, ms(100), ms(10));
        assert_eq!(it.window(), MIB, "and is not cut again at once");
        it.look(now + REST, ms(100), ms(10));
        assert!(it.window() < MIB);
    }

    #[test]
    fn where_the_queue_is_gone_the_window_grows_back_to_what_cubic_allows() {
        let start = Instant::now();
        let mut it = controller(MIB, start);
        it.look(start, ms(60), ms(1));
        assert_eq!(it.window(), MIB / 20);
        let mut now = start + ms(60);
        for _ in 0..20 {
            it.look(now, ms(1), ms(1));
            now += ms(1);
        }
        assert_eq!(it.window(), MIB);
        assert!(matches!(it.state, State::Free { .. }));
    }

    #[test]
    fn the_trip_is_looked_at_once_in_each() {
        let start = Instant::now();
        let mut it = controller(MIB, start);
        it.look(start, ms(60), ms(1));
        let cut = it.window();
        it.look(start + ms(30), ms(60), ms(1));
        assert_eq!(it.window(), cut);
    }
}
