//! Packing records into batches.
//!
//! Owns: where a batch ends, always at the end of a record unless the record alone is beyond a
//! batch's limit. Leaves to others: what a record is (`zfs-stream`).

use crate::frame::MAX_BATCH_RAW;

/// A batch is closed before it would grow beyond this, in bytes: large enough that zstd does not
/// gain by more, small enough to keep several in flight.
pub const BATCH_TARGET: usize = 1 << 20;

/// Fills batches.
#[derive(Debug, Default)]
pub struct Packer {
    batch: Vec<u8>,
}

impl Packer {
    /// Adds a record; hands each batch that is complete to `emit`, whose error ends it.
    ///
    /// # Errors
    /// What `emit` says.
    pub fn add<E>(
        &mut self,
        record: &[u8],
        mut emit: impl FnMut(Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.batch.is_empty() && self.batch.len() + record.len() > BATCH_TARGET {
            emit(std::mem::take(&mut self.batch))?;
        }
        if record.len() >= BATCH_TARGET {
            return record.chunks(MAX_BATCH_RAW).try_for_each(|piece| emit(piece.to_vec()));
        }
        self.batch.extend_from_slice(record);
        Ok(())
    }

    /// What is left at the end of the stream.
    pub fn rest(self) -> Option<Vec<u8>> {
        (!self.batch.is_empty()).then_some(self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(records: &[usize]) -> Vec<usize> {
        let (mut packer, mut batches) = (Packer::default(), Vec::new());
        for len in records {
            let record = vec![1; *len];
            let emitted: Result<(), ()> = packer.add(&record, |batch| {
                batches.push(batch.len());
                Ok(())
            });
            emitted.unwrap();
        }
        batches.extend(packer.rest().map(|batch| batch.len()));
        batches
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
}
