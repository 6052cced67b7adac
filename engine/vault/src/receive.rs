//! A receive: bytes in, one snapshot out, or nothing, or a part that can be gone on with.
//!
//! ```text
//!   Waiting ──BEGIN──▶ Body ──END──▶ Done ──commit──▶ the snapshot
//!                       │ suspend, drop, a stream that breaks off: the partial, where asked for
//! ```
//! Owns: cutting the bytes with `zfs_stream::Reader`, what is kept when it is interrupted, and publishing the
//! snapshot with everything durable. Leaves records to [`crate::apply`], whether a BEGIN fits to
//! [`crate::base`], and whether the receive may begin at all to [`crate::transfer`].
//!
//! A record's payload is proven by the seal of the next one. So while a part may be kept, a record is held
//! back until the next has come: what is applied, and so what is kept, is proven.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flocker_store::{Guid, ReceiveSpec, ReceiveStream, Snapshot, StoreError};
use zfs_stream::error::Problem;
use zfs_stream::format::{HEADER_LEN, begin_flag};
use zfs_stream::record::{Begin, Record};
use zfs_stream::{Item, Part, Reader, StreamError};

use crate::apply::{Applier, ApplyError, OF_THE_STREAM, check_begin};
use crate::base::{Base, Opening};
use crate::blocks::Session;
use crate::dir;
use crate::fault;
use crate::inner::Inner;
use crate::keydata::KeyData;
use crate::lock::Claim;
use crate::meta::{Change, DatasetId, Dialect, Live, SnapshotRecord};
use crate::objset::{Objset, SetRoot};
use crate::partial::{self, PartialRecord, Place};

type Result<T> = std::result::Result<T, StoreError>;

/// What arrived is made durable this often, so that a crash loses no more: ZFS's transaction group.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// A stream being received.
pub(crate) struct Incoming {
    inner: Arc<Inner>,
    spec: ReceiveSpec,
    base: Base,
    session: Option<Session>,
    reader: Reader,
    stage: Stage,
    failed: Option<StoreError>,
    _claim: Claim,
}

enum Stage {
    Waiting,
    Body(Box<Body>),
    Done(Box<Done>),
    Over,
}

/// A stream whose BEGIN has proved right.
struct Body {
    begin: Begin,
    opening: Opening,
    applier: Applier,
    /// Whether what is applied may be kept: the caller asked for it, and records are sealed.
    keeps: bool,
    held: Option<Held>,
    /// Bytes of stream that are applied, as the token counts them.
    bytes: u64,
    /// Bytes that arrived before this stream.
    bytes_before: u64,
    /// Features that earlier parts announced.
    features_before: u64,
    /// Bytes that packs grew by at the checkpoints so far.
    new_bytes: u64,
    kept_at: (Instant, u64),
}

/// A record that the next one has to prove.
struct Held {
    record: Record,
    payload: Vec<u8>,
    at: (u64, u64),
    /// Where it ends in the stream, bytes.
    end: u64,
}

struct Done {
    body: Body,
    root: SetRoot,
    sealed: bool,
}

/// Why a receive cannot go on, which says what becomes of what arrived.
enum Failure {
    /// The stream broke: what is proven is good.
    Stream(StoreError),
    /// The stream says what cannot be: more of it would not help.
    Nonsense(StoreError),
    /// The store failed: what was kept last is good.
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Store(error)
    }
}

impl Incoming {
    /// A receive of nothing yet; the session was there before the base was looked for, so that nothing of
    /// that can have been collected.
    pub(crate) fn new(
        inner: Arc<Inner>,
        spec: ReceiveSpec,
        base: Base,
        session: Session,
        claim: Claim,
    ) -> Self {
        Incoming {
            session: Some(session),
            inner,
            spec,
            base,
            reader: Reader::new(),
            stage: Stage::Waiting,
            failed: None,
            _claim: claim,
        }
    }

    fn bad(&self, detail: impl Into<String>) -> StoreError {
        StoreError::BadStream { dataset: self.spec.dataset.clone(), detail: detail.into() }
    }

    fn unsupported(&self, feature: impl Into<String>) -> StoreError {
        StoreError::Unsupported { dataset: self.spec.dataset.clone(), feature: feature.into() }
    }

    fn stream_error(&self, error: &StreamError) -> StoreError {
        match &error.problem {
            Problem::UnknownFeatures { features } => self.unsupported(features.to_string()),
            _ => self.bad(error.to_string()),
        }
    }

    fn failure(&self, at: (u64, u64), error: ApplyError) -> Failure {
        match error {
            ApplyError::Bad(detail) => Failure::Nonsense(
                self.bad(format!("stream record {} at byte {}: {detail}", at.0, at.1)),
            ),
            ApplyError::Unsupported(feature) => Failure::Nonsense(self.unsupported(feature)),
            ApplyError::Store(error) => Failure::Store(no_space(&self.spec, error)),
        }
    }

    fn take(&mut self, mut input: &[u8]) -> std::result::Result<(), Failure> {
        // Out of `self` while items borrow it.
        let mut reader = std::mem::take(&mut self.reader);
        let outcome = self.take_with(&mut reader, &mut input);
        self.reader = reader;
        outcome
    }

    fn take_with(
        &mut self,
        reader: &mut Reader,
        input: &mut &[u8],
    ) -> std::result::Result<(), Failure> {
        loop {
            let item = match reader.next(input) {
                Ok(Some(item)) => item,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Failure::Stream(self.stream_error(&error))),
            };
            match (item.part, &item.record) {
                (Part::PackageBegin | Part::PackageHeaderEnd | Part::PackageEnd, _) => {
                    let named = self.unsupported("package (send -R, -I or -p)");
                    return Err(Failure::Nonsense(named));
                }
                (Part::Begin, Record::Begin(begin)) => self.begin(begin, &item)?,
                (Part::Begin | Part::Body, _) => {
                    self.record(&item)?;
                    self.checkpoint_if_due()?;
                }
                (Part::End, _) => self.end(item.sealed)?,
            }
        }
    }

    fn begin(&mut self, begin: &Begin, item: &Item<'_>) -> std::result::Result<(), Failure> {
        let at = (item.index, item.offset);
        check_begin(begin, item.payload(), item.endian).map_err(|e| self.failure(at, e))?;
        let opening =
            self.base.check(&self.spec, begin, item.payload()).map_err(Failure::Nonsense)?;
        let before = self.base.partial.take_if(|_| opening.resumes);
        if let (Some(_), Some((id, _))) = (self.base.partial.take(), self.base.dataset) {
            if !self.inner.discard_partial(id)? {
                self.base.dataset = None;
            }
            fault::point("partial-discarded", &self.inner.path)?;
        }
        let kept = before.as_ref().map_or((0, 0, 0), |p| (p.bytes, p.features, p.new_bytes));
        self.stage = Stage::Body(Box::new(Body {
            applier: Applier::new(Objset::open(opening.root), begin),
            begin: begin.clone(),
            opening,
            keeps: self.spec.resumable,
            held: None,
            bytes: kept.0,
            bytes_before: kept.0,
            features_before: kept.1,
            new_bytes: kept.2,
            kept_at: (Instant::now(), kept.0),
        }));
        Ok(())
    }

    fn record(&mut self, item: &Item<'_>) -> std::result::Result<(), Failure> {
        let at = (item.index, item.offset);
        let (Stage::Body(body), Some(session)) = (&mut self.stage, &self.session) else {
            return Err(Failure::Nonsense(self.bad("a record before BEGIN")));
        };
        // Where records are not sealed nothing is proven before END.
        body.keeps &= item.sealed;
        if !body.keeps {
            body.held = None;
            let outcome = body.applier.apply(session, &item.record, item.payload());
            return outcome.map_err(|e| self.failure(at, e));
        }
        if let Err((at, error)) = body.settle(session) {
            return Err(self.failure(at, error));
        }
        body.held = Some(Held {
            record: item.record.clone(),
            payload: item.payload().to_vec(),
            at,
            end: item.offset + item.bytes().len() as u64,
        });
        Ok(())
    }

    fn end(&mut self, sealed: bool) -> std::result::Result<(), Failure> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let (Stage::Body(mut body), Some(session)) = (stage, &self.session) else {
            return Err(Failure::Nonsense(self.bad("END before BEGIN")));
        };
        if let Err((at, error)) = body.settle(session) {
            let failure = self.failure(at, error);
            self.stage = Stage::Body(body);
            return Err(failure);
        }
        let root = body.applier.set.finish(session).map_err(|e| no_space(&self.spec, e))?;
        self.stage = Stage::Done(Box::new(Done { body: *body, root, sealed }));
        Ok(())
    }

    fn checkpoint_if_due(&mut self) -> Result<()> {
        let Stage::Body(body) = &self.stage else {
            return Ok(());
        };
        let (when, bytes) = body.kept_at;
        let grown = body.bytes - bytes;
        let due = grown > 0
            && (grown >= self.inner.checkpoint_bytes() || when.elapsed() >= CHECKPOINT_EVERY);
        if body.keeps && due { self.checkpoint() } else { Ok(()) }
    }

    /// Makes durable what is applied, as the dataset's partial. Nothing to keep is no error.
    fn checkpoint(&mut self) -> Result<()> {
        let Stage::Body(body) = &mut self.stage else {
            return Ok(());
        };
        let (true, Some(point)) = (body.keeps, body.applier.point()) else {
            return Ok(());
        };
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let root = body.applier.set.finish(&session).map_err(|e| no_space(&self.spec, e))?;
        let new_bytes = body.new_bytes + session.new_bytes();
        let mut record = PartialRecord::new(&body.begin, point, body.bytes);
        record.features |= body.features_before;
        (record.root, record.new_bytes) = (root, new_bytes);
        let place = Place {
            id: self.base.dataset.map(|(id, _)| id),
            name: &self.spec.dataset,
            kind: body.opening.kind,
            origin: if self.base.clone { self.spec.from_guid } else { None },
        };
        let inner = &self.inner;
        fault::point("partial-keep", &inner.path)?;
        let id = session
            .commit(|txn| partial::keep(inner, &Change::new(&inner.db, txn), place, record))
            .map_err(|e| no_space(&self.spec, e))?;
        self.base.dataset = Some((id, body.opening.kind));
        body.new_bytes = new_bytes;
        body.kept_at = (Instant::now(), body.bytes);
        self.session = Some(inner.blocks.session());
        Ok(())
    }

    /// Stops; what is proven is kept where it may be.
    fn stop(&mut self) -> Result<()> {
        let outcome = if self.failed.is_none() { self.keep_proven() } else { Ok(()) };
        self.session = None;
        self.stage = Stage::Over;
        outcome
    }

    fn keep_proven(&mut self) -> Result<()> {
        let (Stage::Body(body), Some(session)) = (&mut self.stage, &self.session) else {
            return Ok(());
        };
        if !body.keeps {
            return Ok(());
        }
        // The header of the record that broke off may have proven the one that is held back.
        if body.held.as_ref().is_some_and(|held| held.end <= self.reader.proven_offset())
            && let Err((at, error)) = body.settle(session)
        {
            return match self.failure(at, error) {
                Failure::Nonsense(error) => self.discard().and(Err(error)),
                Failure::Stream(error) | Failure::Store(error) => Err(error),
            };
        }
        self.checkpoint()
    }

    /// Takes back what arrived, the parts before included.
    fn discard(&mut self) -> Result<()> {
        let begun = matches!(self.stage, Stage::Body(_) | Stage::Done(_));
        self.session = None;
        self.stage = Stage::Over;
        match self.base.dataset {
            Some((id, _)) if begun => self.inner.discard_partial(id).map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the receive for a reason, which [`ReceiveStream::commit`] gives again.
    fn fail(&mut self, failure: Failure) {
        let (error, outcome) = match failure {
            Failure::Stream(error) => (error, self.stop()),
            Failure::Nonsense(error) => (error, self.discard()),
            Failure::Store(error) => {
                self.session = None;
                self.stage = Stage::Over;
                (error, Ok(()))
            }
        };
        if let Err(kept) = outcome {
            tracing::warn!(dataset = %self.spec.dataset, error = %kept, "what arrived was not kept");
        }
        self.failed = Some(error);
    }

    fn publish(&mut self) -> Result<Snapshot> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        if let Err(error) = self.reader.finish() {
            let error = self.stream_error(&error);
            self.stop()?;
            return Err(error);
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let (Stage::Done(done), Some(session)) = (stage, self.session.take()) else {
            return Err(self.bad("it ended before its END"));
        };
        let Done { body, root, sealed } = *done;
        let new_bytes = body.new_bytes + session.new_bytes();
        let record = self.snapshot_record(&body, root, sealed, new_bytes);
        let inner = self.inner.clone();
        fault::point("receive-commit", &inner.path)?;
        session
            .commit(|txn| {
                let change = Change::new(&inner.db, txn);
                let id = match self.base.dataset {
                    None => inner.add_dataset(&change, &self.spec.dataset, body.opening.kind)?,
                    Some((id, _)) => {
                        self.still_fits(&change, id)?;
                        id
                    }
                };
                change.edit_dataset(id, |dataset| {
                    dataset.partial = None;
                    if self.base.clone {
                        dataset.origin = self.spec.from_guid;
                    }
                })?;
                let mut record = record;
                record.createtxg = change.next_txg()?;
                change.set_snapshot(id, &record)?;
                record.report(&self.spec.dataset)
            })
            .map_err(|e| no_space(&self.spec, e))
    }

    fn snapshot_record(
        &self,
        body: &Body,
        root: SetRoot,
        sealed: bool,
        new_bytes: u64,
    ) -> SnapshotRecord {
        let begin = &body.begin;
        let lineage = self.base.snapshot.as_ref().map_or(0, |s| s.dialect.features);
        let features = lineage | body.features_before | begin.features.0;
        let key: Option<KeyData> = body.opening.key.clone();
        SnapshotRecord {
            short: self.spec.snapshot.short().to_owned(),
            guid: Guid(begin.to_guid),
            createtxg: 0,
            creation_unix_s: i64::try_from(begin.creation_time_s).unwrap_or(i64::MAX),
            fuzzy: begin.objset_type == dir::OBJSET_DIRECTORY && begin.flags & dir::FLAG_FUZZY != 0,
            root,
            dialect: Dialect {
                objset_type: begin.objset_type,
                features: features & !OF_THE_STREAM,
                begin_flags: self.flags(begin),
                sealed,
            },
            key,
            holds: Default::default(),
            new_bytes,
            properties: Default::default(),
        }
    }

    /// An increment does not say that full streams say what is free, so that is kept from the base.
    fn flags(&self, begin: &Begin) -> u32 {
        let base = self.base.snapshot.as_ref().map_or(0, |s| s.dialect.begin_flags);
        begin.flags | base & begin_flag::FREERECORDS
    }

    /// Whether the dataset is still as it was when the receive began.
    fn still_fits(&self, change: &Change<'_>, id: DatasetId) -> Result<()> {
        let spec = &self.spec;
        let modified =
            |detail: String| StoreError::Modified { dataset: spec.dataset.clone(), detail };
        let snapshots = change.snapshots(id)?;
        let Some(dataset) = change.dataset(id)? else {
            return Err(StoreError::NoDataset { dataset: spec.dataset.clone() });
        };
        if dataset.live == Live::Open {
            return Err(modified("it was activated while the stream came in".into()));
        }
        if snapshots.iter().any(|s| s.short == spec.snapshot.short()) {
            return Err(StoreError::Exists { name: spec.snapshot.to_string() });
        }
        let base = self.base.snapshot.as_ref().filter(|_| !self.base.clone);
        match (snapshots.last(), base) {
            (None, None) => Ok(()),
            (Some(newest), Some(base)) if newest.guid == base.guid => Ok(()),
            (Some(newest), _) => {
                Err(modified(format!("@{} was taken while the stream came in", newest.short)))
            }
            (None, Some(base)) => {
                Err(StoreError::NoBase { dataset: spec.dataset.clone(), base: base.guid })
            }
        }
    }
}

impl Body {
    /// Applies the record that was held back: it is proven.
    fn settle(&mut self, session: &Session) -> std::result::Result<(), ((u64, u64), ApplyError)> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        self.applier.apply(session, &held.record, &held.payload).map_err(|e| (held.at, e))?;
        self.bytes = self.bytes_before + held.end - HEADER_LEN as u64;
        Ok(())
    }
}

/// Says of an I/O error for want of room whose it was.
fn no_space(spec: &ReceiveSpec, error: StoreError) -> StoreError {
    crate::inner::no_space(&spec.dataset, error)
}

impl Write for Incoming {
    /// Takes bytes of the stream. After an error the receive is over; [`ReceiveStream::commit`] gives the
    /// typed reason.
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if let Some(failed) = &self.failed {
            return Err(std::io::Error::other(failed.to_string()));
        }
        match self.take(buf) {
            Ok(()) => Ok(buf.len()),
            Err(failure) => {
                self.fail(failure);
                let told = self.failed.as_ref().map(ToString::to_string);
                Err(std::io::Error::other(told.unwrap_or_default()))
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ReceiveStream for Incoming {
    fn commit(mut self: Box<Self>) -> Result<Snapshot> {
        let received = self.publish()?;
        self.inner.received(&self.spec.dataset);
        Ok(received)
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.discard()
    }

    fn suspend(mut self: Box<Self>) -> Result<()> {
        self.stop()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(dataset = %self.spec.dataset, %error, "what arrived was not kept");
        }
    }
}
