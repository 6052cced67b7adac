//! What goes by: the reader and the writer in between, with a limit and the places where tests kill.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Duration;

use crate::failpoint;

/// Bytes per second over about this long.
const WINDOW: Duration = Duration::from_secs(2);

/// Samples nearer than this to the last one are not kept.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// A rate over the last moments, from samples at odd times.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// The rate at `at` (since the begin), when `bytes` have gone by.
    pub(super) fn now(&mut self, at: Duration, bytes: u64) -> u64 {
        while self.samples.len() > 1 && at.saturating_sub(self.samples[1].0) >= WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front().copied().unwrap_or_default();
        let last = self.samples.back().map_or(Duration::ZERO, |sample| sample.0);
        if at.saturating_sub(last) >= SAMPLE_EVERY {
            self.samples.push_back((at, bytes));
        }
        let over = at.saturating_sub(since).as_secs_f64();
        if over <= 0.0 {
            return 0;
        }
        (bytes.saturating_sub(before) as f64 / over) as u64
    }
}

/// Passes the failpoints `mid-WAY@N` and `mid-KIND-WAY@N` that lie between two counts.
fn pass(way: &str, kind: &str, before: u64, after: u64) {
    failpoint::pass_bytes(&format!("mid-{way}"), before, after);
    failpoint::pass_bytes(&format!("mid-{kind}-{way}"), before, after);
}

/// A stream being sent.
pub(super) struct Outgoing<R> {
    pub(super) inner: R,
    kind: &'static str,
    bytes: u64,
}

impl<R> Outgoing<R> {
    pub(super) fn new(inner: R, kind: &'static str) -> Self {
        Self { inner, kind, bytes: 0 }
    }
}

impl<R: Read> Read for Outgoing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let before = self.bytes;
        self.bytes += read as u64;
        if failpoint::is_set() {
            pass("send", self.kind, before, self.bytes);
        }
        Ok(read)
    }
}

/// A stream being received, up to a limit.
pub(super) struct Incoming<W> {
    pub(super) inner: W,
    /// It brought more than it may.
    pub(super) over_limit: bool,
    limit_bytes: Option<u64>,
    kind: &'static str,
    bytes: u64,
}

impl<W> Incoming<W> {
    pub(super) fn new(inner: W, kind: &'static str, limit_bytes: Option<u64>) -> Self {
        Self { inner, over_limit: false, limit_bytes, kind, bytes: 0 }
    }
}

impl<W: Write> Write for Incoming<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let after = self.bytes + buffer.len() as u64;
        if self.limit_bytes.is_some_and(|limit| after > limit) {
            self.over_limit = true;
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let written = self.inner.write(buffer)?;
        let before = self.bytes;
        self.bytes += written as u64;
        if failpoint::is_set() {
            pass("receive", self.kind, before, self.bytes);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_moments() {
        let mut rate = Rate::default();
        let at = Duration::from_millis;
        assert_eq!(rate.now(at(0), 0), 0);
        assert_eq!(rate.now(at(500), 500), 1000);
        for i in 1..=10 {
            rate.now(at(500 + i * 500), 500 + i * 5000);
        }
        let now = rate.now(at(6000), 55_500);
        assert!((9000..=11_000).contains(&now), "{now}");
    }

    #[test]
    fn a_stream_over_its_limit_is_stopped_before_the_store_sees_the_rest() {
        let mut incoming = Incoming::new(Vec::new(), "full", Some(10));
        incoming.write_all(b"0123456789").unwrap();
        assert!(incoming.write_all(b"x").is_err());
        assert!(incoming.over_limit);
        assert_eq!(incoming.inner, b"0123456789");
    }
}
