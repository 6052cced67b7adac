//! A receive: bytes in, one snapshot out, or nothing.
//!
//! Owns: cutting the bytes with `zfs_stream::Reader`, checking that the stream is the one announced, and
//! publishing the snapshot with everything durable. Leaves records to [`crate::apply`], and whether the
//! receive may begin at all to [`crate::transfer`].

use std::io::Write;
use std::sync::Arc;

use flocker_store::{DatasetKind, Guid, ReceiveSpec, ReceiveStream, Snapshot, StoreError};
use zfs_stream::error::Problem;
use zfs_stream::format::objset;
use zfs_stream::record::{Begin, Record};
use zfs_stream::{Part, Reader, StreamError};

use crate::apply::{Applier, ApplyError, check_begin};
use crate::blocks::Session;
use crate::dir;
use crate::fault;
use crate::inner::Inner;
use crate::lock::Claim;
use crate::meta::{Change, DatasetId, Dialect, Live, SnapshotRecord};
use crate::objset::{Objset, SetRoot};

type Result<T> = std::result::Result<T, StoreError>;

/// What a receive starts from.
pub(crate) enum Base {
    /// A full stream makes the dataset.
    New,
    /// An incremental stream adds to the newest snapshot.
    Snapshot { id: DatasetId, kind: DatasetKind, snapshot: Box<SnapshotRecord> },
}

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
    Body { begin: Begin, applier: Box<Applier> },
    Done { begin: Begin, root: SetRoot, sealed: bool },
}

impl Incoming {
    pub(crate) fn new(inner: Arc<Inner>, spec: ReceiveSpec, base: Base, claim: Claim) -> Self {
        Incoming {
            session: Some(inner.blocks.session()),
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

    fn apply_error(&self, at: (u64, u64), error: ApplyError) -> StoreError {
        match error {
            ApplyError::Bad(detail) => {
                self.bad(format!("stream record {} at byte {}: {detail}", at.0, at.1))
            }
            ApplyError::Unsupported(feature) => self.unsupported(feature),
            ApplyError::Store(error) => no_space(&self.spec, error),
        }
    }

    /// Checks that the stream is the one announced and can be applied here.
    fn check(&self, begin: &Begin) -> Result<DatasetKind> {
        if begin.to_guid != self.spec.to_guid.0 {
            return Err(self.bad(format!(
                "it carries the snapshot with guid {}, announced was {}",
                begin.to_guid, self.spec.to_guid
            )));
        }
        let from = self.spec.from_guid.map_or(0, |guid| guid.0);
        if begin.from_guid != from {
            return Err(self.bad(format!(
                "it starts from the snapshot with guid {}, announced was {from}",
                begin.from_guid
            )));
        }
        let kind = match begin.objset_type {
            objset::ZFS => DatasetKind::Filesystem,
            objset::ZVOL => DatasetKind::Zvol,
            dir::OBJSET_DIRECTORY => DatasetKind::Directory,
            other => return Err(self.unsupported(format!("object set type {other}"))),
        };
        match &self.base {
            Base::Snapshot { kind: has, .. } if *has != kind => {
                Err(self.bad(format!("it is a {kind}, the dataset is a {has}")))
            }
            Base::Snapshot { .. } | Base::New => Ok(kind),
        }
    }

    fn take(&mut self, mut input: &[u8]) -> Result<()> {
        // Out of `self` while items borrow it.
        let mut reader = std::mem::take(&mut self.reader);
        let outcome = self.take_with(&mut reader, &mut input);
        self.reader = reader;
        outcome
    }

    fn take_with(&mut self, reader: &mut Reader, input: &mut &[u8]) -> Result<()> {
        loop {
            let item = match reader.next(input) {
                Ok(Some(item)) => item,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.stream_error(&error)),
            };
            let at = (item.index, item.offset);
            match (item.part, &item.record) {
                (Part::PackageBegin | Part::PackageHeaderEnd | Part::PackageEnd, _) => {
                    return Err(self.unsupported("package (send -R, -I or -p)"));
                }
                (Part::Begin, Record::Begin(begin)) => {
                    check_begin(begin, item.endian).map_err(|e| self.apply_error(at, e))?;
                    self.check(begin)?;
                    let root = match &self.base {
                        Base::New => SetRoot::default(),
                        Base::Snapshot { snapshot, .. } => snapshot.root,
                    };
                    let applier = Applier::new(Objset::open(root), begin);
                    self.stage = Stage::Body { begin: begin.clone(), applier: Box::new(applier) };
                }
                (Part::Begin | Part::Body, _) => {
                    let outcome = match (&mut self.stage, &self.session) {
                        (Stage::Body { applier, .. }, Some(session)) => {
                            applier.apply(session, &item)
                        }
                        _ => Err(ApplyError::Bad("a record before BEGIN".into())),
                    };
                    outcome.map_err(|e| self.apply_error(at, e))?;
                }
                (Part::End, _) => self.end(item.sealed)?,
            }
        }
    }

    fn end(&mut self, sealed: bool) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Waiting);
        let (Stage::Body { begin, applier }, Some(session)) = (stage, &self.session) else {
            return Err(self.bad("END before BEGIN"));
        };
        let root = applier.into_set().finish(session).map_err(|e| no_space(&self.spec, e))?;
        self.stage = Stage::Done { begin, root, sealed };
        Ok(())
    }

    fn publish(&mut self) -> Result<Snapshot> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        if let Err(error) = self.reader.finish() {
            return Err(self.stream_error(&error));
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Waiting);
        let (Stage::Done { begin, root, sealed }, Some(session)) = (stage, self.session.take())
        else {
            return Err(self.bad("it ended before its END"));
        };
        let kind = self.check(&begin)?;
        let record = self.record(&begin, root, sealed, session.new_bytes());
        let inner = self.inner.clone();
        fault::point("receive-commit", &inner.path)?;
        session
            .commit(|txn| {
                let change = Change::new(&inner.db, txn);
                let id = match &self.base {
                    Base::New => inner.add_dataset(&change, &self.spec.dataset, kind)?,
                    Base::Snapshot { id, snapshot, .. } => {
                        still_newest(&change, &self.spec, *id, snapshot)?;
                        *id
                    }
                };
                let mut record = record;
                record.createtxg = change.next_txg()?;
                change.set_snapshot(id, &record)?;
                record.report(&self.spec.dataset)
            })
            .map_err(|e| no_space(&self.spec, e))
    }

    fn record(&self, begin: &Begin, root: SetRoot, sealed: bool, new_bytes: u64) -> SnapshotRecord {
        let before = match &self.base {
            Base::New => 0,
            Base::Snapshot { snapshot, .. } => snapshot.dialect.features,
        };
        SnapshotRecord {
            short: self.spec.snapshot.short().to_owned(),
            guid: Guid(begin.to_guid),
            createtxg: 0,
            creation_unix_s: i64::try_from(begin.creation_time_s).unwrap_or(i64::MAX),
            fuzzy: begin.objset_type == dir::OBJSET_DIRECTORY && begin.flags & dir::FLAG_FUZZY != 0,
            root,
            dialect: Dialect {
                objset_type: begin.objset_type,
                features: before | begin.features.0,
                begin_flags: self.flags(begin),
                sealed,
            },
            holds: Default::default(),
            new_bytes,
            properties: Default::default(),
        }
    }

    /// An increment does not say that full streams say what is free, so that is kept from the base.
    fn flags(&self, begin: &Begin) -> u32 {
        let kept = match &self.base {
            Base::New => 0,
            Base::Snapshot { snapshot, .. } => {
                snapshot.dialect.begin_flags & zfs_stream::format::begin_flag::FREERECORDS
            }
        };
        begin.flags | kept
    }
}

fn still_newest(
    change: &Change<'_>,
    spec: &ReceiveSpec,
    id: DatasetId,
    base: &SnapshotRecord,
) -> Result<()> {
    let snapshots = change.snapshots(id)?;
    let Some(dataset) = change.dataset(id)? else {
        return Err(StoreError::NoDataset { dataset: spec.dataset.clone() });
    };
    if dataset.live == Live::Open {
        return Err(StoreError::Modified {
            dataset: spec.dataset.clone(),
            detail: "it was activated while the stream came in".into(),
        });
    }
    if snapshots.iter().any(|s| s.short == spec.snapshot.short()) {
        return Err(StoreError::Exists { name: spec.snapshot.to_string() });
    }
    match snapshots.last() {
        Some(newest) if newest.guid == base.guid => Ok(()),
        Some(newest) => Err(StoreError::Modified {
            dataset: spec.dataset.clone(),
            detail: format!("@{} was taken while the stream came in", newest.short),
        }),
        None => Err(StoreError::NoBase { dataset: spec.dataset.clone(), base: base.guid }),
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
            Err(error) => {
                let told = std::io::Error::other(error.to_string());
                self.failed = Some(error);
                self.session = None; // takes back what was added
                Err(told)
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
        self.session = None;
        Ok(())
    }

    fn suspend(self: Box<Self>) -> Result<()> {
        self.abort()
    }
}
