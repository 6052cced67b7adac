//! Reading a stream: slices in, proven records out.
//!
//! Owns: cutting the bytes into records, the checksums, and saying where damage was found. Leaves the order
//! of records to [`crate::grammar`], and what payloads mean to the caller.
//!
//! # Contract
//!
//! Call [`Reader::next`] with whatever bytes came, until it returns `None`; then with the bytes that come
//! next; at the end of the input [`Reader::finish`]. The slice is advanced past what was taken.
//!
//! * A record that lies whole within the slice is handed out from the slice: no byte is copied. One that
//!   straddles two slices is put together in a buffer of the reader, which never grows beyond one record
//!   and grows only as its bytes arrive, whatever length the record claims.
//! * Modern streams seal each header with a fletcher4 of everything before it, so when an item is returned,
//!   its header and all before it are proven, and its own payload is proven by the *next* item. Old streams
//!   (zfs-fuse; pool version 23) have one checksum, in END: there nothing is proven before
//!   [`Part::End`] is returned. [`Item::sealed`] tells which it is. Either way, nothing received should be
//!   published before its [`Part::End`].
//! * After an error the reader stays at it: every further call returns the same error.

use crate::error::{Problem, StreamError};
use crate::fletcher::{Checksum, Fletcher4};
use crate::format::{Endian, HEADER_LEN, MAX_BEGIN_PAYLOAD, MAX_PAYLOAD, SEAL_OFFSET};
use crate::grammar::{Grammar, Part};
use crate::record::{self, Begin, Header, Record};

/// Room that the buffer keeps for the next record that straddles, bytes: the longest there is but for a
/// package's nvlist, whose room is given back.
const BUFFER_KEEP: usize = HEADER_LEN + MAX_PAYLOAD;

/// One record with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<'a> {
    /// The header, decoded.
    pub record: Record,
    /// The part it plays.
    pub part: Part,
    /// Number of the record, from 0.
    pub index: u64,
    /// Where the header begins, bytes from the beginning of the stream.
    pub offset: u64,
    /// Whether this header carries a seal, so that everything up to the end of the header is proven.
    pub sealed: bool,
    /// Byte order of header and seal.
    pub endian: Endian,
    bytes: &'a [u8],
}

impl<'a> Item<'a> {
    /// The very bytes of the stream: header, then payload. Forwarding every item's bytes in turn forwards
    /// the stream unchanged.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The header's 312 bytes.
    pub fn header(&self) -> &'a Header {
        self.bytes.first_chunk().expect("an item begins with its header")
    }

    /// The payload, padding included.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }
}

/// A header that was taken, its payload still to come.
#[derive(Debug, Clone)]
struct Pending {
    record: Record,
    part: Part,
    sealed: bool,
    endian: Endian,
    total: usize,
}

/// A record that is there in full: in one slice of the input, or (`whole` is `None`) in the buffer.
struct Cut<'i> {
    pending: Pending,
    whole: Option<&'i [u8]>,
}

/// The sans-IO reader of a stream. See the [module](self) for its contract.
#[derive(Debug, Clone)]
pub struct Reader {
    begin_limit: usize,
    grammar: Grammar,
    sum: Fletcher4,
    endian: Endian,
    /// Whether the open substream seals its records; `None` until its first record behind BEGIN.
    sealing: Option<bool>,
    begin_offset: u64,
    /// Number and place of the record at hand.
    index: u64,
    offset: u64,
    /// First byte that no seal covers yet.
    unproven_from: u64,
    buf: Vec<u8>,
    buf_spent: bool,
    pending: Option<Pending>,
    failed: Option<StreamError>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader at the beginning of a stream.
    pub fn new() -> Self {
        Self::with_begin_limit(MAX_BEGIN_PAYLOAD)
    }

    /// A reader that refuses a BEGIN whose nvlist is longer than `bytes`, for those who have less memory to
    /// give than [`MAX_BEGIN_PAYLOAD`], which stays the limit if it is less. A stream of one snapshot needs
    /// a few KiB (its encryption keys, its redaction list); only packages carry more.
    pub fn with_begin_limit(bytes: usize) -> Self {
        Self {
            begin_limit: bytes.min(MAX_BEGIN_PAYLOAD),
            grammar: Grammar::default(),
            sum: Fletcher4::new(),
            endian: Endian::default(),
            sealing: None,
            begin_offset: 0,
            index: 0,
            offset: 0,
            unproven_from: 0,
            buf: Vec::new(),
            buf_spent: false,
            pending: None,
            failed: None,
        }
    }

    /// Takes bytes from `input` and returns the next record, or `None` when it needs more. `input` is
    /// advanced past the bytes taken; `None` means it is empty.
    ///
    /// # Errors
    /// Whatever is wrong with the stream, see [`Problem`].
    pub fn next<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Item<'r>>, StreamError> {
        self.take(input, Self::advance)
    }

    /// As [`Reader::next`], but takes nothing of a record that is not there in full: `None` leaves the slice at its
    /// beginning. Offer the same bytes again with more behind them, or to [`Reader::next`], which takes them. So whoever
    /// keeps what is left over himself has every record in his own buffer.
    ///
    /// # Errors
    /// Whatever is wrong with the stream, see [`Problem`].
    pub fn next_whole<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Item<'r>>, StreamError> {
        self.take(input, |this, input| {
            let gathering = this.grammar.is_done() || !this.buf.is_empty();
            if gathering { this.advance(input) } else { this.cut_whole(input) }
        })
    }

    /// The next record as `cut` finds it.
    fn take<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i [u8],
        cut: impl FnOnce(&mut Self, &mut &'i [u8]) -> Result<Option<Cut<'i>>, Problem>,
    ) -> Result<Option<Item<'r>>, StreamError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.reclaim();
        match cut(self, input) {
            Ok(None) => Ok(None),
            Ok(Some(cut)) => Ok(Some(self.hand_out(cut))),
            Err(problem) => Err(self.fail(problem)),
        }
    }

    /// Says that the input has ended.
    ///
    /// # Errors
    /// [`Problem::Truncated`] unless the stream was complete, [`Problem::Empty`] if nothing came at all, or
    /// the error of an earlier call.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.grammar.is_done() {
            return Ok(());
        }
        self.reclaim();
        let have = self.buf.len() as u64;
        if self.offset + have == 0 {
            return Err(self.fail(Problem::Empty));
        }
        let need = self.pending.as_ref().map_or(HEADER_LEN, |pending| pending.total) as u64;
        Err(self.fail(Problem::Truncated { have, need }))
    }

    /// Whether the last END was returned.
    pub fn is_done(&self) -> bool {
        self.grammar.is_done()
    }

    /// The BEGIN of the substream that is open.
    pub fn open(&self) -> Option<&Begin> {
        self.grammar.open()
    }

    /// Number of the next record, from 0: how many were returned.
    pub fn records(&self) -> u64 {
        self.index
    }

    /// Where the next record begins, bytes from the beginning of the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The end of what seals have proven, bytes from the beginning of the stream. That is the end of a header,
    /// of a record that need not have been returned yet: so it tells of the record returned last whether its
    /// payload is proven. In a stream whose records are not sealed it stays at its BEGIN.
    pub fn proven_offset(&self) -> u64 {
        self.unproven_from
    }

    /// Bytes of a record that was begun and is gathered in the reader's buffer.
    pub fn buffered_len(&self) -> usize {
        if self.buf_spent { 0 } else { self.buf.len() }
    }

    /// Bytes of memory in the reader's buffer.
    pub fn buffered_capacity(&self) -> usize {
        self.buf.capacity()
    }

    fn fail(&mut self, problem: Problem) -> StreamError {
        let error = StreamError { record: self.index, offset: self.offset, problem };
        self.failed = Some(error.clone());
        self.buf = Vec::new();
        error
    }

    /// Empties the buffer of an item that the caller has let go.
    fn reclaim(&mut self) {
        if self.buf_spent {
            self.buf_spent = false;
            self.buf.clear();
            self.buf.shrink_to(BUFFER_KEEP);
        }
    }

    /// Cuts the next record off, if it is there in full.
    fn cut_whole<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Cut<'i>>, Problem> {
        let bytes: &'i [u8] = input;
        let pending = match (self.pending.take(), bytes.first_chunk()) {
            (Some(pending), _) => pending,
            (None, Some(header)) => self.take_header(header)?,
            (None, None) => return Ok(None),
        };
        let Some((whole, rest)) = bytes.split_at_checked(pending.total) else {
            self.pending = Some(pending);
            return Ok(None);
        };
        *input = rest;
        Ok(Some(Cut { pending, whole: Some(whole) }))
    }

    /// Gathers the next record, or as much of it as there is.
    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Cut<'i>>, Problem> {
        if self.grammar.is_done() {
            return if input.is_empty() { Ok(None) } else { Err(Problem::TrailingBytes) };
        }
        if self.pending.is_none() && self.buf.is_empty() {
            let bytes: &'i [u8] = input;
            if let Some(header) = bytes.first_chunk() {
                let pending = self.take_header(header)?;
                if let Some((whole, rest)) = bytes.split_at_checked(pending.total) {
                    *input = rest;
                    return Ok(Some(Cut { pending, whole: Some(whole) }));
                }
                self.pending = Some(pending);
            }
        }
        if self.pending.is_none() {
            self.top_up(input, HEADER_LEN);
            let Some(header) = self.buf.first_chunk().copied() else {
                return Ok(None);
            };
            self.pending = Some(self.take_header(&header)?);
        }
        let Some(pending) = self.pending.take() else {
            return Ok(None);
        };
        self.top_up(input, pending.total);
        if self.buf.len() < pending.total {
            self.pending = Some(pending);
            return Ok(None);
        }
        self.buf_spent = true;
        Ok(Some(Cut { pending, whole: None }))
    }

    /// Moves bytes from `input` to the buffer until it has `want`. Never reserves for bytes that are not
    /// there, so that memory follows what was received and not what was claimed.
    fn top_up(&mut self, input: &mut &[u8], want: usize) {
        let take = want.saturating_sub(self.buf.len()).min(input.len());
        let (head, rest) = input.split_at(take);
        let have = self.buf.len();
        if have + take > self.buf.capacity() {
            // Doubling, as `Vec` does, but never beyond this record.
            let room = (2 * have).clamp(have + take, want.max(have + take));
            self.buf.reserve_exact(room - have);
        }
        self.buf.extend_from_slice(head);
        *input = rest;
    }

    /// Checks and decodes the header of the record at hand.
    fn take_header(&mut self, header: &Header) -> Result<Pending, Problem> {
        if self.grammar.awaits_begin() {
            self.choose_endian(header)?;
        }
        let endian = self.endian;
        let before = self.sum.value();
        // The seal comes first: in a damaged header no other field means anything.
        self.sum.update(&header[..SEAL_OFFSET], endian);
        let seal = record::seal(header, endian);
        let sealed = if self.grammar.in_body() { self.check_seal(seal)? } else { false };
        self.sum.update(&header[SEAL_OFFSET..], endian);

        let record = Record::decode(header, endian)?;
        let total = HEADER_LEN + self.payload_len(&record)?;
        let part = self.grammar.admit(&record)?;
        if let Record::End(end) = &record {
            let computed = if part == Part::PackageEnd { Checksum::default() } else { before };
            if end.checksum != computed {
                return Err(Problem::EndChecksumMismatch {
                    sealed,
                    begin_offset: self.begin_offset,
                    stored: end.checksum,
                    computed,
                });
            }
            if !sealed && !record::is_bare(&record, header, endian) {
                return Err(Problem::EndNotBare);
            }
        }
        Ok(Pending { record, part, sealed, endian, total })
    }

    fn payload_len(&self, record: &Record) -> Result<usize, Problem> {
        let len = record.payload_len()?;
        match record {
            Record::Begin(_) if len > self.begin_limit => Err(Problem::PayloadTooLong {
                kind: record.kind(),
                bytes: len as u64,
                limit: self.begin_limit as u64,
            }),
            _ => Ok(len),
        }
    }

    /// Where a BEGIN may stand, finds out the byte order and starts a new sum.
    fn choose_endian(&mut self, header: &Header) -> Result<(), Problem> {
        let found = record::begin_endian(header);
        match found {
            Some(endian) if self.grammar.at_start() => self.endian = endian,
            Some(endian) if endian != self.endian => {
                return Err(Problem::MixedEndian { package: self.endian, found: endian });
            }
            Some(_) => {}
            None if self.grammar.at_start() => {
                let magic = header[8..16].try_into().map_or(0, u64::from_le_bytes);
                return Err(Problem::BadMagic { found: magic });
            }
            None => {} // a package's END, or something that the grammar refuses
        }
        self.sum = Fletcher4::new();
        self.sealing = None;
        self.begin_offset = self.offset;
        self.unproven_from = self.offset;
        Ok(())
    }

    /// Compares the seal of a header with the sum of everything before it.
    fn check_seal(&mut self, stored: Checksum) -> Result<bool, Problem> {
        let computed = self.sum.value();
        let suspect_to = self.offset + HEADER_LEN as u64;
        if stored == Checksum::default() {
            // OpenZFS lets a zero seal pass anywhere. No sender mixes, so in a sealed stream it is damage.
            if self.sealing == Some(true) {
                return Err(Problem::SealMissing);
            }
            self.sealing = Some(false);
            return Ok(false);
        }
        if stored != computed {
            return Err(Problem::SealMismatch {
                suspect_from: self.unproven_from,
                suspect_to,
                stored,
                computed,
            });
        }
        self.sealing = Some(true);
        self.unproven_from = suspect_to;
        Ok(true)
    }

    /// Counts the record in and makes the item.
    fn hand_out<'r>(&'r mut self, cut: Cut<'r>) -> Item<'r> {
        let Pending { record, part, sealed, endian, total } = cut.pending;
        let (index, offset) = (self.index, self.offset);
        self.index += 1;
        self.offset += total as u64;
        let bytes = cut.whole.unwrap_or(&self.buf);
        assert!(bytes.len() == total, "an item is handed out whole");
        self.sum.update(&bytes[HEADER_LEN..], endian);
        Item { record, part, index, offset, sealed, endian, bytes }
    }
}
