//! The recorder behind the `metrics` crate's counters: Prometheus's text, rendered on request.
//! Nothing listens for it: `flocker-repl metrics` prints it, and a collector's textfile takes it.

use std::fs;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of every histogram of seconds: from one round trip to a long transfer.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// What the process takes of memory now, and took at most, in bytes; by the names that other programs have for it.
const RESIDENT: &str = "process_resident_memory_bytes";
const RESIDENT_MAX: &str = "process_resident_memory_max_bytes";

/// Everything, with what this process takes of memory now.
pub(crate) fn render(handle: &PrometheusHandle) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (gauge, line) in [(RESIDENT, "VmRSS:"), (RESIDENT_MAX, "VmHWM:")] {
        if let Some(bytes) = kib(&status, line) {
            metrics::gauge!(gauge).set(bytes as f64 * 1024.0);
        }
    }
    handle.render()
}

/// A line of `/proc/self/status`, in KiB.
fn kib(status: &str, line: &str) -> Option<u64> {
    let rest = status.lines().find_map(|l| l.strip_prefix(line))?;
    rest.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Installs the recorder, once a process.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    Ok(HANDLE.get_or_init(|| handle).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tx\nVmHWM:\t   84212 kB\nVmRSS:\t   61440 kB\nThreads:\t9\n";
        assert_eq!((kib(status, "VmRSS:"), kib(status, "VmHWM:")), (Some(61_440), Some(84_212)));
        assert_eq!((kib(status, "VmSwap:"), kib("VmRSS:\t1 MB", "VmRSS:")), (None, None));
        let text = render(&install().unwrap());
        for gauge in [RESIDENT, RESIDENT_MAX] {
            assert!(text.lines().any(|line| line.starts_with(gauge)), "{gauge} is not in: {text}");
        }
    }
}
