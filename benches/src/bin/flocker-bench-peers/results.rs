//! What was measured, as it is kept in JSON, and medians of it.

use serde::{Deserialize, Serialize};

use crate::measure::Cost;
use crate::site::Network;

/// One transfer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Bytes of the stream.
    pub(crate) bytes: u64,
    /// Start-up included.
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Bytes on the wire, frames included, where the tool says so.
    pub(crate) wire_bytes: Option<u64>,
}

impl Round {
    pub(crate) fn new(bytes: u64, cost: Cost, wire_bytes: Option<u64>) -> Self {
        Self { bytes, seconds: cost.seconds, cpu_seconds: cost.cpu_seconds, wire_bytes }
    }
}

/// All transfers of one stream by one tool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    /// The stream.
    pub(crate) input: String,
    pub(crate) network: Network,
    pub(crate) tool: String,
    pub(crate) ours: bool,
    /// Of a stream without content: median seconds and processor seconds.
    pub(crate) startup_seconds: f64,
    pub(crate) startup_cpu_seconds: f64,
    pub(crate) rounds: Vec<Round>,
}

impl Series {
    /// Without the start-up, round by round. NaN where the start-up is most of the round: on a busy machine it
    /// varies by as much as what would be left.
    pub(crate) fn rates(&self) -> Vec<f64> {
        let rate = |round: &Round| {
            let moving = round.seconds - self.startup_seconds;
            let told = moving > round.seconds / 2.0;
            if told { round.bytes as f64 / 1e9 / moving } else { f64::NAN }
        };
        self.rounds.iter().map(rate).collect()
    }

    /// The same of processor seconds a gigabyte.
    pub(crate) fn costs(&self) -> Vec<f64> {
        let cost = |round: &Round| {
            (round.cpu_seconds - self.startup_cpu_seconds).max(0.0) / (round.bytes as f64 / 1e9)
        };
        self.rounds.iter().map(cost).collect()
    }

    pub(crate) fn gb_per_second(&self) -> f64 {
        median(&self.rates())
    }

    pub(crate) fn cpu_per_gb(&self) -> f64 {
        median(&self.costs())
    }

    pub(crate) fn wire_ratio(&self) -> Option<f64> {
        let ratios: Option<Vec<f64>> =
            self.rounds.iter().map(|r| Some(r.wire_bytes? as f64 / r.bytes as f64)).collect();
        ratios.map(|ratios| median(&ratios))
    }
}

/// Latencies of one kind, microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) what: String,
    pub(crate) samples: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Latency {
    pub(crate) fn new(what: &str, mut us: Vec<f64>) -> Self {
        us.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = (us.len() as f64 * part) as usize;
            us.get(place.min(us.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        Self { what: what.to_owned(), samples: us.len(), p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// Where and with what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    /// Load average of the minute before: what others do on it.
    #[serde(default)]
    pub(crate) load: String,
    pub(crate) system: String,
    pub(crate) versions: Vec<String>,
}

/// Everything of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) command: String,
    pub(crate) when: String,
    pub(crate) took_seconds: u64,
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) inputs: Vec<String>,
    pub(crate) series: Vec<Series>,
    pub(crate) latencies: Vec<Latency>,
    /// What could not be measured and why, and what a stream was made of.
    pub(crate) notes: Vec<String>,
}

impl Results {
    pub(crate) fn find(&self, input: &str, network: Network, tool: &str) -> Option<&Series> {
        let is = |s: &&Series| s.input == input && s.network == network && s.tool == tool;
        self.series.iter().find(is)
    }

    pub(crate) fn latency(&self, what: &str) -> Option<&Latency> {
        self.latencies.iter().find(|latency| latency.what == what)
    }
}

/// The middle one, or between the two in the middle; NaN of nothing. What is NaN does not count.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The median of the ratios of each round: what drifts from round to round falls out.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[f64::NAN, 1.0]), 1.0);
        assert_eq!(ratio(&[2.0, 40.0, 6.0], &[1.0, 10.0, 2.0]), 3.0);
    }

    #[test]
    fn the_start_up_is_taken_off_time_and_processor_time() {
        let cost = Cost { seconds: 1.2, cpu_seconds: 2.1 };
        let series = Series {
            input: String::new(),
            network: Network::Loopback,
            tool: String::new(),
            ours: true,
            startup_seconds: 0.2,
            startup_cpu_seconds: 0.1,
            rounds: vec![Round::new(2_000_000_000, cost, Some(1_000_000_000))],
        };
        assert!((series.gb_per_second() - 2.0).abs() < 1e-9);
        assert!((series.cpu_per_gb() - 1.0).abs() < 1e-9);
        assert_eq!(series.wire_ratio(), Some(0.5));
    }

    #[test]
    fn percentiles_of_latencies() {
        let latency = Latency::new("x", (0..1000).map(f64::from).collect());
        assert_eq!((latency.p50_us, latency.p99_us), (500.0, 990.0));
    }
}
