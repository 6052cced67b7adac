//! The thread that reads the stream: cuts it, waits for memory and for announcements, and hands batches to the workers.
//!
//! Owns: the caller's reader, the numbers of batches. Leaves to others: what becomes of a batch ([`super::outgoing`]).

use std::io::{self, Read};
use std::sync::Arc;

use crossbeam_channel::{Sender, select};
use zfs_stream::StreamError;

use super::{BoxError, Piece, SendError, SendOptions, SourceEnd};
use crate::bulk::budget::Account;
use crate::bulk::cut::{Batch, Cutter};
use crate::bulk::dedup::sending::Referring;
use crate::bulk::reseed::Place;
use crate::bulk::reseed::announced::{Announced, Waited};
use crate::bulk::resources::{GIANT_BYTES, Resources};
use crate::bulk::rung::{Rung, samples};
use crate::cancel::Cancel;

/// A record reader that holds more than this has a large record.
const READER_BYTES: usize = 2 << 20;

/// The reading thread.
pub(super) struct Source {
    pub(super) resources: Arc<Resources>,
    pub(super) cancel: Cancel,
    pub(super) options: SendOptions,
    pub(super) rung: Arc<Rung>,
    pub(super) pieces: Sender<Piece>,
    pub(super) next_seq: u64,
    pub(super) referring: Option<Arc<Referring>>,
}

/// The transfer ended elsewhere: nobody waits for the reader's result.
struct Abandoned;

enum Stop {
    Abandoned,
    Failed(SendError),
}

impl From<StreamError> for Stop {
    fn from(source: StreamError) -> Self {
        Self::Failed(SendError::Damaged { source })
    }
}

impl From<Abandoned> for Stop {
    fn from(_: Abandoned) -> Self {
        Self::Abandoned
    }
}

impl Source {
    pub(super) fn run<R: Read>(mut self, read: R, finish: impl FnOnce(R) -> Result<(), BoxError>) {
        let end = match self.pump(read, finish) {
            Ok(end) => end,
            Err(Stop::Failed(error)) => SourceEnd::Failed(error),
            Err(Stop::Abandoned) => return,
        };
        let _ = self.put(Piece::End(end));
    }

    fn pump<R: Read>(
        &mut self,
        mut read: R,
        finish: impl FnOnce(R) -> Result<(), BoxError>,
    ) -> Result<SourceEnd, Stop> {
        let (account, giants) = (self.resources.sending(), self.resources.giants());
        let mut cutter =
            Cutter::new(Arc::clone(self.resources.buffers())).reseeding(self.announced().is_some());
        let (mut giant, mut raw_bytes, mut ended) = (None, 0, false);
        while !ended {
            let len = self.fill(&mut read, &mut cutter)?;
            raw_bytes += len as u64;
            ended = !cutter.room().is_empty();
            cutter.cut(ended, |batch| Ok::<_, Stop>(self.submit(batch, &account)?))?;
            if cutter.records().buffered_capacity() <= READER_BYTES {
                giant = None;
            } else if giant.is_none() {
                giant = Some(giants.acquire(GIANT_BYTES, &self.cancel).ok_or(Abandoned)?);
            }
        }
        let records = cutter.records();
        let complete = records.finish();
        // Asked first: what the sender says explains a stream that was cut short.
        finish(read).map_err(|source| Stop::Failed(SendError::Source { source }))?;
        complete?;
        Ok(SourceEnd::Complete { raw_bytes, records: records.records() })
    }

    /// Reads until the cutter is full or the input ends, since a pipe yields 64 KiB at a time.
    fn fill(&self, read: &mut impl Read, cutter: &mut Cutter) -> Result<usize, Stop> {
        let mut filled = 0;
        loop {
            if self.cancel.is_cancelled() {
                return Err(Stop::Abandoned);
            }
            let room = cutter.room();
            if room.is_empty() {
                return Ok(filled);
            }
            match read.read(room) {
                Ok(0) => return Ok(filled),
                Ok(more) => {
                    cutter.filled(more);
                    filled += more;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Stop::Failed(SendError::Read { source })),
            }
        }
    }

    fn announced(&self) -> Option<Arc<Announced>> {
        self.referring.as_ref()?.announced.clone()
    }

    /// Waits until the receiver has announced its old copy up to the last of these places, or can announce no more of
    /// it before this batch has gone.
    fn await_seeds(
        &mut self,
        announced: &Announced,
        (from, upto): (Place, Place),
    ) -> Result<(), Abandoned> {
        let mut said = None;
        loop {
            match announced.wait(upto, said, &self.cancel) {
                Waited::GoOn => return Ok(()),
                Waited::Cancelled => return Err(Abandoned),
                Waited::SayPlace => {
                    self.put(Piece::Passed(from))?;
                    said = Some(from);
                }
            }
        }
    }

    fn submit(&mut self, mut batch: Batch, account: &Account) -> Result<(), Abandoned> {
        self.rung.hold_up(true);
        if let Some(announced) = self.announced() {
            if let Some(places) = batch.places {
                self.await_seeds(&announced, places)?;
            }
            if batch.sealed && !announced.any() {
                batch.blocks.clear();
            }
        }
        let from = batch.places.map(|(from, _)| from);
        let held = account.acquire(batch.bytes.len(), &self.cancel).ok_or(Abandoned)?;
        let (seq, rung, referring) = (self.next_seq, self.rung.get(), self.referring.clone());
        let (compression, content) = (self.options.compression, batch.content());
        let level = compression.level(rung, content);
        let shared = samples(compression, seq, content, level).then(|| Arc::clone(&self.rung));
        self.next_seq += 1;
        let encoded = self.resources.run(move |codec| {
            if let (Some(shared), Some(sample)) = (shared, codec.sample(&batch.bytes)) {
                shared.sampled(sample);
            }
            match referring {
                Some(referring) => referring.encode(codec, seq, batch, level),
                None => codec.encode(seq, batch.bytes, level),
            }
        });
        self.rung.hold_up(false);
        self.put(Piece::Batch { encoded, held, rung, content, from })
    }

    fn put(&self, piece: Piece) -> Result<(), Abandoned> {
        select! {
            send(self.pieces, piece) -> sent => sent.map_err(|_| Abandoned),
            recv(self.cancel.channel()) -> _ => Err(Abandoned),
        }
    }
}
