//! Which lane a bulk transfer takes.
//!
//! Owns: the decision, what it rests on, and its reason in words. Leaves to others: measuring ([`super::probe`])
//! and opening lanes ([`crate::peers`]).
//!
//! * Small transfers, and those of unknown size, ride QUIC: it is warm, while a TCP connection costs three
//!   round trips and two signatures and then starts slowly.
//! * `auto` measures both lanes before the first transfer of [`MEASURE_BYTES`] and more on a connection, in the
//!   direction in which it goes: then it is needed, nothing else is in its way, and a third of a second is
//!   little beside what it decides for, where before the last step of a cutover it would be downtime. It
//!   measures again when [`STALE_AFTER`] has passed and another such comes, and after a failure of TLS.
//!   Until then TLS is taken for what is large: at 1500-byte packets it costs a third of the processor time.
//! * It never measures while other transfers run on the node: that would disturb them and be wrong.
//! * The faster one is taken; where both are as fast, so that the link or a disk is the limit, the cheaper.
//! * TLS that cannot be had never stops a transfer: QUIC takes it, and the reason is shown.
//! * Where control itself rides on TLS there is nothing to choose: everything does.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::probe::Figures;

/// Below this a transfer is small, bytes: on a near path TLS saves some 5 ms of processor time for so many,
/// on a far one its slow start costs more than that.
pub const SMALL_BYTES: u64 = 4 << 20;

/// From this on a transfer is worth a measurement, bytes: it takes longer than that on any link.
pub const MEASURE_BYTES: u64 = 256 << 20;

/// After this long a path may have become another.
pub const STALE_AFTER: Duration = Duration::from_secs(600);

/// After a failure TLS is not tried for this long: whatever blocks it does not go away in seconds.
const AVOID_FOR: Duration = Duration::from_secs(60);

/// Rates that differ by less than this many percent are the same.
const SAME_PERCENT: u64 = 15;

/// Which ways a node uses, and offers to its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LaneMode {
    /// Control over QUIC, or over TLS where UDP does not pass; bulk over whichever is measured to be better.
    #[default]
    Auto,
    /// QUIC alone; the node does not listen on TCP.
    Quic,
    /// TLS over TCP alone, for control too; the node does not listen on UDP.
    Tls,
}

/// A lane that bulk can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneKind {
    /// A stream of the pair's QUIC connection.
    Quic,
    /// A TLS connection of its own, over TCP.
    Tls,
}

impl fmt::Display for LaneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        })
    }
}

/// The lane that a large transfer to a peer takes, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// Which.
    pub chosen: LaneKind,
    /// Why.
    pub why: String,
    /// How TLS failed, while it is avoided for that.
    pub failed: Option<String>,
    /// What QUIC was measured to do, on this connection and in this direction.
    pub quic: Option<Figures>,
    /// What TLS was measured to do.
    pub tls: Option<Figures>,
}

/// The choice for one connection with a peer.
#[derive(Debug)]
pub(crate) struct Choice {
    mode: LaneMode,
    /// Whether the peer listens for TLS.
    offered: bool,
    state: Mutex<State>,
    /// Whether control rides on TLS, so that there is nothing to choose.
    no_quic: AtomicBool,
    /// Held while measuring, so that it is done once.
    pub(crate) measuring: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    measured: Option<Instant>,
    quic: Option<Figures>,
    tls: Option<Figures>,
    /// When TLS last failed, and how.
    failed: Option<(Instant, String)>,
}

impl State {
    fn avoid(&self, now: Instant) -> Option<&str> {
        let (at, why) = self.failed.as_ref()?;
        (now.saturating_duration_since(*at) < AVOID_FOR).then_some(why)
    }
}

impl Choice {
    pub(crate) fn new(mode: LaneMode, offered: bool) -> Self {
        let (state, measuring) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { mode, offered, state, no_quic: AtomicBool::new(false), measuring }
    }

    /// From now on control rides on this, and without QUIC there is nothing to choose.
    pub(crate) fn rides(&self, kind: LaneKind) {
        self.no_quic.store(kind == LaneKind::Tls, Ordering::Relaxed);
    }

    fn is_tls_alone(&self) -> bool {
        self.no_quic.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which lane a large transfer takes now, and why.
    pub(crate) fn status(&self, now: Instant) -> LaneStatus {
        let state = self.state();
        let (chosen, why) = self.decide(&state, now);
        let failed = state.avoid(now).map(str::to_owned);
        LaneStatus { chosen, why, failed, quic: state.quic, tls: state.tls }
    }

    fn decide(&self, state: &State, now: Instant) -> (LaneKind, String) {
        use LaneKind::{Quic, Tls};
        if self.is_tls_alone() {
            return (Tls, "everything does".into());
        }
        if self.mode == LaneMode::Quic {
            return (Quic, "this node is configured so".into());
        }
        if !self.offered {
            return (Quic, "the peer does not listen for TLS".into());
        }
        if let Some(why) = state.avoid(now) {
            return (Quic, format!("TLS failed, and is tried again within a minute: {why}"));
        }
        if self.mode == LaneMode::Tls {
            return (Tls, "this node is configured so".into());
        }
        match (&state.quic, &state.tls) {
            (Some(quic), Some(tls)) => prefer(quic, tls),
            (None, Some(_)) => (Tls, "QUIC could not be measured".into()),
            (_, None) => (Tls, "not measured yet; it usually costs less".into()),
        }
    }

    /// The lane for a transfer of so many bytes.
    pub(crate) fn lane_for(&self, bytes: Option<u64>, now: Instant) -> LaneKind {
        match bytes {
            _ if self.is_tls_alone() => LaneKind::Tls,
            Some(bytes) if bytes >= SMALL_BYTES => self.status(now).chosen,
            Some(_) | None => LaneKind::Quic,
        }
    }

    /// Whether the lanes should be measured before a transfer of so many bytes.
    pub(crate) fn is_due(&self, bytes: Option<u64>, now: Instant) -> bool {
        let state = self.state();
        self.mode == LaneMode::Auto
            && !self.is_tls_alone()
            && self.offered
            && bytes.is_some_and(|bytes| bytes >= MEASURE_BYTES)
            && state.avoid(now).is_none()
            && state.measured.is_none_or(|at| now.saturating_duration_since(at) >= STALE_AFTER)
    }

    /// Takes what was measured; `None` where it could not be.
    pub(crate) fn measured(&self, quic: Option<Figures>, tls: Option<Figures>, now: Instant) {
        let mut state = self.state();
        (state.measured, state.quic, state.tls) = (Some(now), quic, tls);
    }

    /// TLS could not be opened, or its connection was lost in the middle.
    pub(crate) fn tls_failed(&self, why: &str, now: Instant) {
        let mut state = self.state();
        state.failed = Some((now, why.to_owned()));
        // What it was is not what it is.
        state.measured = None;
    }
}

/// The better of two lanes, and why.
fn prefer(quic: &Figures, tls: &Figures) -> (LaneKind, String) {
    use LaneKind::{Quic, Tls};
    let much_more =
        |a: u64, b: u64| u128::from(a) * 100 > u128::from(b) * u128::from(100 + SAME_PERCENT);
    if much_more(tls.bytes_per_second, quic.bytes_per_second) {
        (Tls, "it is faster".into())
    } else if much_more(quic.bytes_per_second, tls.bytes_per_second) {
        (Quic, "it is faster".into())
    } else if tls.cpu_ms_per_gb <= quic.cpu_ms_per_gb {
        (Tls, "it is as fast and costs less processor time".into())
    } else {
        (Quic, "it is as fast and costs less processor time".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Option<u64> = Some(MEASURE_BYTES);

    fn figures(rate: u64, cpu: u64) -> Option<Figures> {
        Some(Figures { bytes_per_second: rate, cpu_ms_per_gb: cpu })
    }

    #[test]
    fn small_and_unknown_transfers_ride_quic_whatever_is_configured() {
        let now = Instant::now();
        for mode in [LaneMode::Auto, LaneMode::Quic, LaneMode::Tls] {
            let choice = Choice::new(mode, true);
            for bytes in [None, Some(0), Some(SMALL_BYTES - 1)] {
                assert_eq!(choice.lane_for(bytes, now), LaneKind::Quic);
                assert!(!choice.is_due(bytes, now));
            }
        }
        // But where there is no QUIC.
        let choice = Choice::new(LaneMode::Auto, true);
        choice.rides(LaneKind::Tls);
        for bytes in [None, Some(0), LARGE] {
            assert_eq!(choice.lane_for(bytes, now), LaneKind::Tls);
            assert!(!choice.is_due(bytes, now));
        }
        choice.rides(LaneKind::Quic);
        assert_eq!(choice.lane_for(None, now), LaneKind::Quic);
        assert_eq!(Choice::new(LaneMode::Tls, true).lane_for(LARGE, now), LaneKind::Tls);
        assert_eq!(Choice::new(LaneMode::Quic, true).lane_for(LARGE, now), LaneKind::Quic);
    }

    #[test]
    fn the_faster_lane_is_taken_and_the_cheaper_of_equals() {
        let now = Instant::now();
        for (quic, tls, chosen) in [
            (figures(100, 10), figures(200, 50), LaneKind::Tls),
            (figures(200, 50), figures(100, 10), LaneKind::Quic),
            (figures(100, 50), figures(95, 10), LaneKind::Tls),
            (figures(95, 10), figures(100, 50), LaneKind::Quic),
            (figures(0, 0), figures(0, 0), LaneKind::Tls),
        ] {
            let choice = Choice::new(LaneMode::Auto, true);
            choice.measured(quic, tls, now);
            assert_eq!(choice.lane_for(LARGE, now), chosen, "{quic:?} {tls:?}");
        }
    }

    #[test]
    fn it_is_measured_before_the_first_large_transfer_and_when_that_is_long_ago() {
        let start = Instant::now();
        let choice = Choice::new(LaneMode::Auto, true);
        assert!(choice.is_due(LARGE, start));
        assert!(
            !choice.is_due(Some(MEASURE_BYTES - 1), start),
            "it would take longer than it saves"
        );
        assert_eq!(choice.lane_for(Some(SMALL_BYTES), start), LaneKind::Tls);
        choice.measured(figures(1, 1), figures(2, 1), start);
        assert!(!choice.is_due(LARGE, start + STALE_AFTER / 2));
        assert!(choice.is_due(LARGE, start + STALE_AFTER));
    }

    #[test]
    fn tls_that_failed_is_avoided_for_a_while_then_measured_again() {
        let start = Instant::now();
        let choice = Choice::new(LaneMode::Auto, true);
        choice.measured(figures(1, 1), figures(2, 1), start);
        choice.tls_failed("connection refused", start);
        let status = choice.status(start);
        assert_eq!(status.chosen, LaneKind::Quic);
        assert!(status.why.contains("connection refused"), "{}", status.why);
        assert_eq!(status.failed.as_deref(), Some("connection refused"));
        assert!(!choice.is_due(LARGE, start));
        assert!(choice.is_due(LARGE, start + AVOID_FOR));
        assert_eq!(choice.lane_for(LARGE, start + AVOID_FOR), LaneKind::Tls);
    }

    #[test]
    fn a_peer_that_does_not_listen_is_never_tried() {
        let now = Instant::now();
        for mode in [LaneMode::Auto, LaneMode::Tls] {
            let choice = Choice::new(mode, false);
            assert_eq!(choice.lane_for(LARGE, now), LaneKind::Quic);
            assert!(!choice.is_due(LARGE, now));
        }
    }
}
