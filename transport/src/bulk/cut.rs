//! Cutting a stream into batches, where its bytes lie.
//!
//! Owns: where a batch ends, always at the end of a record unless the record alone is beyond a
//! batch's limit. A batch is made of the very buffer that its bytes were read into; only the record that the buffer ends
//! in is copied, to the next one. Leaves to others: what a record is (`zfs-stream`), reading.

use std::ops::Range;
use std::sync::Arc;

use zfs_stream::{Features, HEADER_LEN, Item, Reader, Record, StreamError};

use super::buffers::Buffers;
use super::level::Content;
use super::reseed::{self, Place};
use crate::frame::MAX_BATCH_RAW;
use crate::frame::dedup::MIN_BLOCK;

/// A batch is no longer than this, in bytes, unless one record is: large enough that zstd does not
/// gain by more, small enough to keep several in flight. The 16 KiB beyond the megabyte make room for the headers of eight
/// records of 128 KiB, or of one of 1 MiB, so that little is left over for the next buffer.
pub const BATCH_TARGET: usize = (1 << 20) + (16 << 10);

/// Bytes that a buffer is made longer by, at most, before it is read into.
const STEP: usize = 128 << 10;

/// A run of records.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where in it payloads are that may be deduplicated, in order.
    pub blocks: Vec<Range<usize>>,
    /// How many of its bytes are of each [`Content`].
    pub contents: [usize; Content::ALL.len()],
    /// Where the first and the last of its blocks are that an old copy may have; with [`Cutter::reseeding`].
    pub places: Option<(Place, Place)>,
    /// Its blocks are encrypted: only an old copy may have the very same.
    pub sealed: bool,
}

impl Batch {
    /// What most of its bytes are.
    pub fn content(&self) -> Content {
        let most = Content::ALL.into_iter().zip(self.contents).max_by_key(|(_, bytes)| *bytes);
        most.map(|(content, _)| content).unwrap_or_default()
    }

    /// Notes the record that lies in `range` of its bytes.
    fn note(&mut self, range: Range<usize>, header_len: usize, payload: Payload) {
        let block = range.start + header_len..range.end;
        self.contents[Content::Plain as usize] += header_len;
        self.contents[payload.content as usize] += block.len();
        if let Some(place) = payload.place {
            let (from, _) = self.places.unwrap_or((place, place));
            self.places = Some((from, place));
        }
        self.sealed |= payload.sealed;
        let may_come_twice = !payload.sealed || payload.place.is_some();
        if may_come_twice && block.len() >= MIN_BLOCK {
            self.blocks.push(block);
        }
    }
}

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Payload {
    content: Content,
    /// Encrypted: it never comes twice, but an old copy may have the very same.
    sealed: bool,
    /// Where it is, if an old copy may have it.
    place: Option<Place>,
}

impl Payload {
    fn of(item: &Item<'_>, sealed: bool, reseeds: bool) -> Self {
        let place =
            reseed::place(&item.record).filter(|_| reseeds && reseed::takes(item.payload().len()));
        Self { content: Content::of(&item.record, sealed), sealed, place }
    }
}

/// Cuts one stream.
#[derive(Debug)]
pub struct Cutter {
    records: Reader,
    buffers: Arc<Buffers>,
    /// What was read and is not cut: the first `have` bytes.
    buffer: Vec<u8>,
    have: usize,
    encrypted: bool,
    reseeds: bool,
}

impl Cutter {
    /// One that takes its buffers from these.
    pub fn new(buffers: Arc<Buffers>) -> Self {
        let buffer = buffers.any();
        Self { records: Reader::new(), buffers, buffer, have: 0, encrypted: false, reseeds: false }
    }

    /// The same for a stream of which the receiver may have an old copy: it is noted where its blocks are.
    #[must_use]
    pub fn reseeding(self, reseeds: bool) -> Self {
        Self { reseeds, ..self }
    }

    /// The reader of its records.
    pub fn records(&mut self) -> &mut Reader {
        &mut self.records
    }

    /// Where the next bytes belong; empty when it is full, and has to be cut.
    pub fn room(&mut self) -> &mut [u8] {
        if self.have == self.buffer.len() {
            self.buffer.resize((self.have + STEP).min(BATCH_TARGET), 0);
        }
        &mut self.buffer[self.have..]
    }

    /// Takes note that so many bytes were written to its [`Cutter::room`].
    ///
    /// # Panics
    /// When there is no such room.
    pub fn filled(&mut self, len: usize) {
        self.have += len;
        assert!(self.have <= self.buffer.len(), "more than there was room for");
    }

    /// Cuts off what is there in full, and hands each batch to `emit`, whose error ends it. To be called when it is full,
    /// and with `ended` at the end of the input.
    ///
    /// # Errors
    /// What `emit` says, or what is wrong with the stream.
    pub fn cut<E: From<StreamError>>(
        &mut self,
        ended: bool,
        mut emit: impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.truncate(std::mem::take(&mut self.have));
        let (mut batch, mut from, mut input) = (Batch::default(), 0, &bytes[..]);
        loop {
            let at = bytes.len() - input.len();
            // Of a record that the reader gathers, since no buffer holds it, the last bytes lie here.
            let gathered = self.records.buffered_len() > 0;
            let Some(item) = self.records.next_whole(&mut input)? else { break };
            if let Record::Begin(begin) = &item.record {
                self.encrypted = begin.features.contains(Features::RAW);
            }
            let payload = Payload::of(&item, self.encrypted, self.reseeds);
            let end = bytes.len() - input.len();
            if gathered {
                split(item.bytes(), payload, &mut emit)?;
                from = end;
            } else {
                batch.note(at - from..end - from, HEADER_LEN, payload);
            }
        }
        let used = bytes.len() - input.len();
        if self.records.buffered_len() > 0 {
            // All that is left is of the record that is being gathered.
            from = used;
        }
        let too_long = used == 0 && bytes.len() == BATCH_TARGET;
        if too_long || ended {
            // The reader gathers it, or says how much is missing. It is not whole.
            while self.records.next(&mut input)?.is_some() {}
        }
        let rest = bytes.len() - input.len()..bytes.len();
        self.buffer = self.buffers.any();
        self.have = rest.len();
        if self.buffer.len() < self.have {
            self.buffer.resize(self.have, 0);
        }
        self.buffer[..self.have].copy_from_slice(&bytes[rest]);
        if used == from {
            self.buffers.give(bytes);
            return Ok(());
        }
        bytes.truncate(used);
        bytes.drain(..from);
        emit(Batch { bytes, ..batch })
    }
}

/// A record in batches of its own. What is split is split at the same places of its payload each time.
fn split<E>(
    record: &[u8],
    payload: Payload,
    mut emit: impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    for (number, piece) in record.chunks(MAX_BATCH_RAW).enumerate() {
        let header_len = if number == 0 { HEADER_LEN } else { 0 };
        let mut batch = Batch { bytes: piece.to_vec(), ..Batch::default() };
        batch.note(0..piece.len(), header_len, payload);
        emit(batch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zfs_stream::record::{Begin, End, Write};
    use zfs_stream::{Compression, Seal, Writer};

    /// A sound stream with payloads of these lengths.
    fn stream(payloads: &[usize], features: Features, compression: Compression) -> Vec<u8> {
        let (mut writer, mut out) = (Writer::new(Seal::PerRecord), Vec::new());
        let begin = Begin { objset_type: 3, features, to_guid: 7, ..Begin::default() };
        writer.record(&Record::Begin(begin), &[], &mut out).unwrap();
        for (at, len) in (0..).zip(payloads) {
            let len = *len as u64;
            let write = Write {
                object: 1,
                offset: at << 24,
                logical_size: len,
                compressed_size: if compression == Compression::NONE { 0 } else { len },
                compression,
                to_guid: 7,
                ..Write::default()
            };
            let payload: Vec<u8> = (0..len).map(|n| (n * 31 + at) as u8).collect();
            writer.record(&Record::Write(write), &payload, &mut out).unwrap();
        }
        writer.record(&Record::End(End { to_guid: 7, ..End::default() }), &[], &mut out).unwrap();
        out
    }

    fn cut(mut stream: &[u8], at_once: usize) -> Result<Vec<Batch>, StreamError> {
        let (mut cutter, mut batches) = (Cutter::new(Arc::default()), Vec::new());
        loop {
            let room = cutter.room();
            let len = room.len().min(stream.len()).min(at_once);
            room[..len].copy_from_slice(&stream[..len]);
            stream = &stream[len..];
            let full = room.is_empty();
            cutter.filled(len);
            if full || stream.is_empty() {
                cutter.cut(stream.is_empty(), |batch| {
                    batches.push(batch);
                    Ok::<_, StreamError>(())
                })?;
            }
            if stream.is_empty() {
                return cutter.records().finish().map(|()| batches);
            }
        }
    }

    fn plain(payloads: &[usize]) -> Vec<Batch> {
        let stream = stream(payloads, Features::LARGE_BLOCKS, Compression::NONE);
        let batches = cut(&stream, usize::MAX).unwrap();
        assert!(batches.iter().flat_map(|batch| &batch.bytes).eq(&stream), "the very bytes");
        assert_eq!(cut(&stream, 100_001).unwrap(), batches, "however they come");
        batches
    }

    fn lengths(payloads: &[usize]) -> Vec<usize> {
        plain(payloads).iter().map(|batch| batch.bytes.len()).collect()
    }

    #[test]
    fn batches_end_at_records_and_stay_within_their_target() {
        let record = (128 << 10) + HEADER_LEN;
        let two = [HEADER_LEN + 8 * record, 2 * record + HEADER_LEN];
        assert_eq!(lengths(&[128 << 10; 10]), two);
        assert_eq!(lengths(&[]), [2 * HEADER_LEN]);
        let megabyte = (1 << 20) + HEADER_LEN;
        assert_eq!(lengths(&[1 << 20; 2]), [HEADER_LEN + megabyte, megabyte + HEADER_LEN]);
    }

    #[test]
    fn a_large_record_goes_alone_and_a_huge_one_is_split() {
        let large = (4 << 20) + HEADER_LEN;
        assert_eq!(lengths(&[4 << 20]), [HEADER_LEN, large, HEADER_LEN]);
        let whole = [HEADER_LEN, MAX_BATCH_RAW, MAX_BATCH_RAW, HEADER_LEN, HEADER_LEN];
        assert_eq!(lengths(&[16 << 20]), whole);
        assert_eq!(
            lengths(&[512, 4 << 20, 4 << 20, 512]).iter().filter(|l| **l == large).count(),
            2
        );
    }

    #[test]
    fn payloads_that_are_long_enough_are_blocks_wherever_they_stand() {
        let block = MIN_BLOCK;
        let batch = &plain(&[block, block - 8, 2 * block])[0];
        let third = 4 * HEADER_LEN + 2 * block - 8;
        let first = 2 * HEADER_LEN;
        assert_eq!(batch.blocks, [first..first + block, third..third + 2 * block]);
        let huge = plain(&[16 << 20]);
        let blocks: Vec<_> = huge.iter().map(|batch| batch.blocks.clone()).collect();
        assert_eq!((blocks[1].len(), blocks[1][0].clone()), (1, HEADER_LEN..MAX_BATCH_RAW));
        assert_eq!((blocks[2][0].clone(), blocks[3].len()), (0..MAX_BATCH_RAW, 0));
    }

    #[test]
    fn what_is_compressed_is_a_block_and_what_is_encrypted_is_none_and_each_is_told() {
        let of = |features, compression| {
            let stream = stream(&[64 << 10; 4], features, compression);
            let batches = cut(&stream, usize::MAX).unwrap();
            (batches[0].blocks.len(), batches[0].content())
        };
        assert_eq!(of(Features::NONE, Compression::NONE), (4, Content::Plain));
        let lz4 = Features::COMPRESSED | Features::LZ4;
        assert_eq!(of(lz4, Compression::LZ4), (4, Content::Light));
        let zstd = Features::COMPRESSED | Features::ZSTD;
        assert_eq!(of(zstd, Compression::ZSTD), (4, Content::Dense));
        assert_eq!(of(Features::RAW, Compression::NONE), (0, Content::Dense));
    }

    #[test]
    fn a_stream_that_breaks_off_says_how_much_there_was() {
        let whole = stream(&[64 << 10; 4], Features::NONE, Compression::NONE);
        let error = cut(&whole[..whole.len() - 400], usize::MAX).unwrap_err();
        let have = (64 << 10) + 224;
        assert!(error.to_string().contains(&have.to_string()), "{error}");
    }
}
