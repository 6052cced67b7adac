//! Packing records into batches.
//!
//! Owns: where a batch ends, always at the end of a record unless the record alone is beyond a
//! batch's limit. Leaves to others: what a record is (`zfs-stream`).

use std::ops::Range;

use zfs_stream::format::HEADER_LEN;

use crate::frame::MAX_BATCH_RAW;
use crate::frame::dedup::MIN_BLOCK;
use crate::frame::reseed::Place;

/// A batch is closed before it would grow beyond this, in bytes: large enough that zstd does not
/// gain by more, small enough to keep several in flight.
pub const BATCH_TARGET: usize = 1 << 20;

/// A run of records.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where in it payloads are that may be deduplicated, in order.
    pub blocks: Vec<Range<usize>>,
    /// Where the first of its blocks is that an old copy may have.
    pub from: Option<Place>,
}

impl Batch {
    fn add(&mut self, header_len: usize, piece: &[u8], dedup: bool) {
        let start = self.bytes.len() + header_len;
        self.bytes.extend_from_slice(piece);
        let block = start..self.bytes.len();
        if dedup && block.len() >= MIN_BLOCK {
            self.blocks.push(block);
        }
    }
}

/// Fills batches.
#[derive(Debug, Default)]
pub struct Packer {
    batch: Batch,
}

impl Packer {
    /// Adds a record; hands each batch that is complete to `emit`, whose error ends it. With `dedup` its
    /// payload is a block, if it is long enough; `place` is where that is, if an old copy may have it.
    ///
    /// # Errors
    /// What `emit` says.
    pub fn add<E>(
        &mut self,
        record: &[u8],
        dedup: bool,
        place: Option<Place>,
        mut emit: impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.batch.bytes.len() + record.len() > BATCH_TARGET {
            self.flush(&mut emit)?;
        }
        if record.len() < BATCH_TARGET {
            self.batch.add(HEADER_LEN.min(record.len()), record, dedup);
            self.batch.from = self.batch.from.or(place);
            return Ok(());
        }
        // What is split is split at the same places of its payload each time.
        for (number, piece) in record.chunks(MAX_BATCH_RAW).enumerate() {
            let mut batch = Batch { from: place, ..Batch::default() };
            batch.add(if number == 0 { HEADER_LEN } else { 0 }, piece, dedup);
            emit(batch)?;
        }
        Ok(())
    }

    /// Hands what was added and is not complete to `emit`.
    ///
    /// # Errors
    /// What `emit` says.
    pub fn flush<E>(&mut self, mut emit: impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        if self.batch.bytes.is_empty() { Ok(()) } else { emit(std::mem::take(&mut self.batch)) }
    }

    /// What is left at the end of the stream.
    pub fn rest(self) -> Option<Batch> {
        (!self.batch.bytes.is_empty()).then_some(self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(records: &[usize]) -> Vec<Batch> {
        let (mut packer, mut batches) = (Packer::default(), Vec::new());
        for len in records {
            let record = vec![1; *len];
            let emitted: Result<(), ()> = packer.add(&record, true, None, |batch| {
                batches.push(batch);
                Ok(())
            });
            emitted.unwrap();
        }
        batches.extend(packer.rest());
        batches
    }

    fn pack(records: &[usize]) -> Vec<usize> {
        batches(records).iter().map(|batch| batch.bytes.len()).collect()
    }

    #[test]
    fn batches_end_at_records_and_stay_within_their_target() {
        let record = 128 << 10;
        assert_eq!(pack(&[record + 312; 9]), [7 * (record + 312), 2 * (record + 312)]);
        assert_eq!(pack(&[100, 200]), [300]);
        assert_eq!(pack(&[]), [0; 0]);
    }

    #[test]
    fn a_large_record_goes_alone_and_a_huge_one_is_split() {
        let large = (4 << 20) + 312;
        assert_eq!(pack(&[500, large, 500]), [500, large, 500]);
        assert_eq!(pack(&[(16 << 20) + 312]), [MAX_BATCH_RAW, MAX_BATCH_RAW, 312]);
    }

    #[test]
    fn payloads_that_are_long_enough_are_blocks_wherever_they_stand() {
        let block = 16 << 10;
        let batch = &batches(&[312, 312 + block, 311 + block, 312 + 2 * block])[0];
        let second = 312 + 312 + block + 311 + block + 312;
        assert_eq!(batch.blocks, [624..624 + block, second..second + 2 * block]);
        let huge = batches(&[(16 << 20) + 312]);
        let blocks: Vec<_> = huge.iter().map(|batch| batch.blocks.clone()).collect();
        assert_eq!((blocks[0].len(), blocks[0][0].clone()), (1, 312..MAX_BATCH_RAW));
        assert_eq!((blocks[1][0].clone(), blocks[2].len()), (0..MAX_BATCH_RAW, 0));
    }

    #[test]
    fn without_dedup_there_are_no_blocks() {
        let mut packer = Packer::default();
        packer.add(&[0; 100_000], false, None, |_| Ok::<(), ()>(())).unwrap();
        assert_eq!(packer.rest().unwrap().blocks, []);
    }
}
