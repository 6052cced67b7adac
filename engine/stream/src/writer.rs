//! Writing a stream: records in, sealed bytes out.
//!
//! Owns: encoding, padding checks and checksums. Leaves the order of records to [`crate::grammar`], which
//! holds the writer to what the reader will take, and I/O to the caller.

use crate::error::Problem;
use crate::fletcher::{Checksum, Fletcher4};
use crate::format::{Endian, HEADER_LEN, SEAL_OFFSET};
use crate::grammar::{Grammar, Part};
use crate::record::{self, End, Header, Record};

/// Which records carry checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Seal {
    /// Every record but BEGIN is sealed, as OpenZFS does: damage is found at the next record.
    #[default]
    PerRecord,
    /// Only END carries a checksum, as zfs-fuse (pool version 23) does.
    EndOnly,
}

/// Why a record could not be written. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The payload is not what the record says.
    #[error("{kind} says its payload has {stated} bytes, but {given} were given")]
    PayloadLength {
        /// The record's type.
        kind: record::Kind,
        /// Bytes by the record's fields.
        stated: usize,
        /// Bytes given.
        given: usize,
    },
    /// A reader would refuse the record.
    #[error("not a record of a valid stream: {0}")]
    Invalid(Problem),
}

impl From<Problem> for WriteError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// The sans-IO writer of a stream.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    seal: Seal,
    endian: Endian,
    grammar: Grammar,
    sum: Fletcher4,
}

impl Writer {
    /// A writer of little-endian streams.
    pub fn new(seal: Seal) -> Self {
        Self { seal, ..Self::default() }
    }

    /// A writer of streams in the byte order `endian`. Payloads are the caller's in either case.
    pub fn with_endian(seal: Seal, endian: Endian) -> Self {
        Self { seal, endian, ..Self::default() }
    }

    /// Whether the stream is complete.
    pub fn is_done(&self) -> bool {
        self.grammar.is_done()
    }

    /// Appends the record and its payload to `out`. END's checksum is computed, whatever it holds.
    ///
    /// # Errors
    /// [`WriteError`]; the writer and `out` are then as before.
    pub fn record(
        &mut self,
        record: &Record,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        self.record_over(record, &[0; HEADER_LEN], payload, out)
    }

    /// As [`Self::record`], with the padding of `template` instead of zeroes: what was read is written back
    /// to the byte.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn record_over(
        &mut self,
        record: &Record,
        template: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let header = self.header_over(record, template, payload)?;
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        Ok(())
    }

    /// The header alone, for callers that send the payload from where it is. The payload must follow it in
    /// the stream.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn header(&mut self, record: &Record, payload: &[u8]) -> Result<Header, WriteError> {
        self.header_over(record, &[0; HEADER_LEN], payload)
    }

    fn header_over(
        &mut self,
        record: &Record,
        template: &Header,
        payload: &[u8],
    ) -> Result<Header, WriteError> {
        let stated = record.payload_len()?;
        if stated != payload.len() {
            return Err(WriteError::PayloadLength {
                kind: record.kind(),
                stated,
                given: payload.len(),
            });
        }
        let fresh = self.grammar.awaits_begin();
        let mut header = *template;
        // What can fail comes before anything changes.
        record.encode_over(&mut header, self.endian)?;
        let part = self.grammar.admit(record)?;
        let mut sum = if fresh { Fletcher4::new() } else { self.sum };
        if let Record::End(end) = record {
            let checksum = if part == Part::PackageEnd { Checksum::default() } else { sum.value() };
            Record::End(End { checksum, ..*end }).encode_over(&mut header, self.endian)?;
        }
        sum.update(&header[..SEAL_OFFSET], self.endian);
        match part {
            Part::Body | Part::End => {
                let seal = match self.seal {
                    Seal::PerRecord => sum.value(),
                    Seal::EndOnly => Checksum::default(),
                };
                record::set_seal(&mut header, self.endian, seal);
            }
            Part::PackageHeaderEnd | Part::PackageEnd => {
                record::set_seal(&mut header, self.endian, Checksum::default());
            }
            Part::PackageBegin | Part::Begin => {} // the name is where the seal would be
        }
        sum.update(&header[SEAL_OFFSET..], self.endian);
        sum.update(payload, self.endian);
        self.sum = sum;
        Ok(header)
    }
}
