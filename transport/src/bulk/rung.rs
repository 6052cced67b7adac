//! What the threads of a transfer tell each other of compression.
//!
//! Owns: the [`Rung`] that the reading thread compresses at, what was found to limit, and what samples of lightly
//! compressed blocks have shown ([`Sample`]). Leaves to others: what follows ([`super::level`]), taking a sample
//! ([`super::codec`]).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::level::{Compression, Content, LADDER, Limit, START};

/// What may be left of a sample of lightly compressed blocks, per mille, for compressing them to be worth a trial.
const LIGHT_LEFT_PER_MILLE: u64 = 900;

/// One in so many batches of lightly compressed blocks that are stored is sampled.
const SAMPLED: u64 = 64;

/// So many bytes of it: a thousandth of what compressing all would cost.
pub const SAMPLE_BYTES: usize = 64 << 10;

/// Whether a batch is to be sampled.
pub fn samples(compression: Compression, seq: u64, content: Content, level: Option<i32>) -> bool {
    let may = compression == Compression::Adaptive && content == Content::Light;
    may && level.is_none() && seq.is_multiple_of(SAMPLED)
}

/// What the two threads of a transfer tell each other, and what is shown of it: the rung that the reading one
/// compresses new batches at, set by the sending one, and whether the reading one waits for something else than its
/// source.
#[derive(Debug)]
pub struct Rung {
    rung: AtomicUsize,
    /// The number of the limit; beyond all of them while it is not known.
    limit: AtomicUsize,
    held_up: AtomicBool,
    /// Of the last sample of what is lightly compressed ([`Sample`]): per mille that are left of it, and how long a MiB
    /// takes, in microseconds. 0: there was none.
    left_per_mille: AtomicU64,
    micros_per_mib: AtomicU64,
}

/// What compressing a small part of a batch has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its bytes.
    pub bytes: usize,
    /// What is left of them.
    pub left: usize,
    /// How long that took.
    pub took: Duration,
}

impl Default for Rung {
    fn default() -> Self {
        Self {
            rung: AtomicUsize::new(START),
            limit: AtomicUsize::new(usize::MAX),
            held_up: AtomicBool::new(false),
            left_per_mille: AtomicU64::new(0),
            micros_per_mib: AtomicU64::new(0),
        }
    }
}

impl Rung {
    /// Its number.
    pub fn get(&self) -> usize {
        self.rung.load(Ordering::Relaxed)
    }

    /// The zstd level for plain data; `None`: stored.
    pub fn level(&self) -> Option<i32> {
        LADDER[self.get()]
    }

    /// What limits the transfer, once that is known.
    pub fn limit(&self) -> Option<Limit> {
        Limit::ALL.get(self.limit.load(Ordering::Relaxed)).copied()
    }

    /// Says that the reading thread waits for memory or for a worker, or does so no longer.
    pub fn hold_up(&self, held_up: bool) {
        self.held_up.store(held_up, Ordering::Relaxed);
    }

    /// What is the limit where no batch is there: the source, unless the reading thread does not wait for it.
    pub fn starved(&self) -> Option<Limit> {
        (!self.held_up.load(Ordering::Relaxed)).then_some(Limit::Source)
    }

    /// Takes note of a sample of what is lightly compressed.
    pub fn sampled(&self, Sample { bytes, left, took }: Sample) {
        let (bytes, left) = (bytes.max(1) as u64, left as u64);
        self.left_per_mille.store((left * 1000 / bytes).max(1), Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros_per_mib.store(micros.saturating_mul(1 << 20) / bytes, Ordering::Relaxed);
    }

    /// Whether to compress what is lightly compressed is worth a trial where the stream moves at so many bytes a second,
    /// and the link is the limit: it gets enough shorter, and one worker alone would keep up with what the link then
    /// takes. Where a worker cannot, the link is a fast one, and the processor has better things to do.
    pub fn light_pays(&self, rate: u64) -> bool {
        let left = self.left_per_mille.load(Ordering::Relaxed);
        let micros_per_mib = self.micros_per_mib.load(Ordering::Relaxed);
        if left == 0 || left > LIGHT_LEFT_PER_MILLE {
            return false;
        }
        let then = rate.saturating_mul(1000) / left;
        then.saturating_mul(micros_per_mib) >> 20 < 1_000_000
    }

    /// Sets both; a limit that no window said clearly stays as it was.
    pub fn set(&self, rung: usize, limit: Option<Limit>) {
        self.rung.store(rung, Ordering::Relaxed);
        if let Some(limit) = limit {
            self.limit.store(limit as usize, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of which so many per cent are left, at so many MB a second.
    fn after(left_percent: usize, mb_per_second: u64) -> Rung {
        let rung = Rung::default();
        let took = Duration::from_micros(SAMPLE_BYTES as u64 / mb_per_second);
        rung.sampled(Sample { bytes: SAMPLE_BYTES, left: SAMPLE_BYTES * left_percent / 100, took });
        rung
    }

    #[test]
    fn what_is_lightly_compressed_is_tried_where_it_shrinks_and_one_worker_keeps_up() {
        let gigabit = 118_000_000;
        assert!(!Rung::default().light_pays(gigabit), "nothing is known of it");
        assert!(after(80, 600).light_pays(gigabit));
        assert!(!after(95, 600).light_pays(gigabit), "hardly shorter");
        assert!(!after(80, 600).light_pays(700_000_000), "the link is faster than a worker");
    }

    #[test]
    fn only_stored_batches_of_light_blocks_are_sampled_and_few_of_them() {
        let sampled = |content, level| {
            (0..1000).filter(|seq| samples(Compression::Adaptive, *seq, content, level)).count()
        };
        assert_eq!(sampled(Content::Light, None), 16);
        assert_eq!(sampled(Content::Light, Some(1)), 0);
        assert_eq!(sampled(Content::Dense, None), 0);
        assert!(!samples(Compression::Off, 0, Content::Light, None));
    }
}
