//! What a volume holds: the workload's records, as runs of consecutive ids, and a stamp of its
//! last write.
//!
//! Runs rather than a list, so that a snapshot costs nothing and the one question that matters,
//! "is every record there once and in order?", is answered by looking at one pair.

/// The data of a volume at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    runs: Vec<(u64, u64)>,
    stamp: u64,
    bytes: u64,
}

impl Content {
    /// Data that was there before the workload: no records, this many bytes.
    pub fn preloaded(stamp: u64, bytes: u64) -> Self {
        Self { runs: Vec::new(), stamp, bytes }
    }

    /// A record at the end, whatever is there before it. `stamp` is unique in the run.
    pub fn append(&mut self, record: u64, stamp: u64, bytes: u64) {
        match self.runs.last_mut() {
            Some((_, last)) if *last + 1 == record => *last = record,
            Some(_) | None => self.runs.push((record, record)),
        }
        self.stamp = stamp;
        self.bytes += bytes;
    }

    /// Something else than a record was written.
    pub fn scribble(&mut self, stamp: u64, bytes: u64) {
        self.stamp = stamp;
        self.bytes += bytes;
    }

    /// The newest record, 0 if there is none: what a workload goes on from.
    pub fn last(&self) -> u64 {
        self.runs.last().map_or(0, |(_, last)| *last)
    }

    /// Whether the records are 1, 2, 3 … with none missing, repeated or out of order.
    pub fn is_whole(&self) -> bool {
        match self.runs.as_slice() {
            [] => true,
            [(first, _)] => *first == 1,
            [..] => false,
        }
    }

    /// Whether every record up to this one is there exactly once, in order.
    pub fn holds_all_up_to(&self, record: u64) -> bool {
        self.is_whole() && self.last() >= record
    }

    /// Whether this record is there.
    pub fn has(&self, record: u64) -> bool {
        self.runs.iter().any(|(first, last)| (*first..=*last).contains(&record))
    }

    /// Names the last write: equal stamps, equal data.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// For traces and messages: the runs.
    pub fn describe(&self) -> String {
        let runs: Vec<String> = self.runs.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        format!("[{}]", runs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(records: &[u64], whole: bool) {
        let mut content = Content::default();
        for (i, record) in records.iter().enumerate() {
            content.append(*record, i as u64 + 1, 10);
        }
        assert_eq!(content.is_whole(), whole, "{records:?}");
    }

    #[test]
    fn a_gap_a_repetition_and_a_wrong_order_are_seen() {
        check(&[], true);
        check(&[1, 2, 3], true);
        check(&[1, 3], false);
        check(&[1, 2, 2], false);
        check(&[2, 3], false);
        check(&[1, 2, 1], false);
    }
}
