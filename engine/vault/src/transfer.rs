//! Sends and receives: whether they may begin, and from what.
//!
//! Leaves the streams themselves to [`crate::send`] and [`crate::receive`].

use std::sync::Arc;

use flocker_store::{
    DatasetKind, ReceiveSpec, ReceiveStream, SendBase, SendSpec, SendStream, StoreError,
};

use crate::base::Base;
use crate::dir::live::Directory;
use crate::emit::{self, Job};
use crate::inner::Inner;
use crate::meta::{DatasetId, DatasetRecord, Live, SnapshotRecord, View};
use crate::receive::Incoming;
use crate::resume;
use crate::send::{Counter, Outgoing};

type Result<T> = std::result::Result<T, StoreError>;

impl Inner {
    fn job(&self, spec: &SendSpec) -> Result<Job> {
        let not_capable = |what: String| StoreError::NotCapable { store: self.describe(), what };
        let view = View::new(&self.db)?;
        let (id, dataset, to) = view.snapshot(&spec.to)?;
        let from = match &spec.from {
            None => None,
            Some(SendBase::Bookmark(_)) => {
                return Err(not_capable("a send from a bookmark".into()));
            }
            Some(SendBase::Snapshot(name)) => {
                let (base_id, _, base) = view.snapshot(name)?;
                let fits = if base_id == id {
                    base.createtxg < to.createtxg
                } else {
                    is_origin(&view, &dataset, base_id, &base)?
                };
                if !fits {
                    return Err(not_capable(format!(
                        "a send from {name} to {}: the base has to be an earlier snapshot of the \
                         same dataset, or of its origin",
                        spec.to
                    )));
                }
                Some((base_id != id, base))
            }
        };
        if to.dialect.is_sealed() && !spec.raw {
            return Err(not_capable(format!(
                "a send of {} that is not raw: its blocks are sealed, and the key is not here",
                spec.to
            )));
        }
        let (clone, from) = from.map_or((false, None), |(clone, base)| (clone, Some(base)));
        // As `zfs send -w` does: what is not encrypted goes as it is stored.
        let job = Job {
            from,
            to,
            to_name: spec.to.to_string(),
            compressed: spec.compressed || spec.raw,
            large_blocks: spec.large_blocks || spec.raw,
            clone,
            resume: None,
        };
        match &spec.resume {
            None => Ok(job),
            Some(token) => resume::follow(&self.blocks.pin(), spec, job, token),
        }
    }

    pub(crate) fn send(self: &Arc<Self>, spec: &SendSpec) -> Result<Box<dyn SendStream>> {
        // The pin comes first, so that what the job refers to cannot be collected.
        let pin = self.blocks.pin();
        let job = self.job(spec)?;
        Ok(Box::new(Outgoing::start(pin, job)?))
    }

    pub(crate) fn estimate(&self, spec: &SendSpec) -> Result<Option<u64>> {
        let pin = self.blocks.pin();
        let job = self.job(spec)?;
        let mut counter = Counter::default();
        emit::emit(&pin, &job, &mut counter)?;
        Ok(Some(counter.bytes))
    }

    pub(crate) fn receive(self: &Arc<Self>, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>> {
        self.check_within(&spec.dataset)?;
        if spec.snapshot.dataset() != &spec.dataset {
            return Err(StoreError::NotCapable {
                store: self.describe(),
                what: format!("receiving {} into {}", spec.snapshot, spec.dataset),
            });
        }
        let claim = self.claims.take(&spec.dataset)?;
        // Nothing that is found from here on can be collected.
        let session = self.blocks.session();
        let view = View::new(&self.db)?;
        let base = match view.find(&spec.dataset)? {
            None => {
                self.refuse_below_directory(&spec.dataset)?;
                let missing = || StoreError::NoDataset { dataset: spec.dataset.clone() };
                new_base(&view, spec, missing)?
            }
            Some((id, record)) => {
                let empty = record.partial.is_some() && view.latest(id)?.is_none();
                let mut base = match spec.from_guid {
                    // Only what was interrupted is there.
                    Some(guid) if empty => new_base(&view, spec, || StoreError::NoBase {
                        dataset: spec.dataset.clone(),
                        base: guid,
                    })?,
                    None if empty => Base::default(),
                    None => return Err(StoreError::Exists { name: spec.dataset.to_string() }),
                    Some(_) => {
                        let snapshot = self.base(id, spec)?;
                        self.rest(id, &record, spec, &snapshot)?;
                        Base { snapshot: Some(Box::new(snapshot)), ..Base::default() }
                    }
                };
                base.dataset = Some((id, record.kind));
                base.partial = record.partial;
                base
            }
        };
        Ok(Box::new(Incoming::new(self.clone(), spec.clone(), base, session, claim)))
    }

    /// The newest snapshot, which has to be the one that the stream starts from.
    fn base(&self, id: DatasetId, spec: &ReceiveSpec) -> Result<SnapshotRecord> {
        let snapshots = View::new(&self.db)?.snapshots(id)?;
        if snapshots.iter().any(|s| s.short == spec.snapshot.short()) {
            return Err(StoreError::Exists { name: spec.snapshot.to_string() });
        }
        let guid = spec.from_guid.unwrap_or(flocker_store::Guid(0));
        let Some(at) = snapshots.iter().position(|s| s.guid == guid) else {
            return Err(StoreError::NoBase { dataset: spec.dataset.clone(), base: guid });
        };
        match snapshots.get(at + 1..) {
            Some([newer, ..]) => Err(StoreError::Modified {
                dataset: spec.dataset.clone(),
                detail: format!("@{} is newer than the base", newer.short),
            }),
            _ => Ok(snapshots[at].clone()),
        }
    }

    /// A directory, or the image of a zvol, has to be at its newest snapshot, and at rest.
    fn rest(
        self: &Arc<Self>,
        id: DatasetId,
        record: &DatasetRecord,
        spec: &ReceiveSpec,
        base: &SnapshotRecord,
    ) -> Result<()> {
        if record.kind == DatasetKind::Filesystem {
            return Ok(());
        }
        // At rest there is nothing to look at: in particular no need to wait for a checkout under way.
        // Should it be activated meanwhile, the commit notices.
        let (Live::Open | Live::Fenced) = record.live else {
            return Ok(());
        };
        let mut directory = Directory::enter(self, id, &spec.dataset)?;
        let (Live::Open | Live::Fenced) = directory.state else {
            return Ok(());
        };
        if let Some(what) = directory.differs_from(base.root)? {
            return Err(StoreError::Modified {
                dataset: spec.dataset.clone(),
                detail: format!("since @{}: {what}", base.short),
            });
        }
        if directory.state == Live::Open {
            // It may be written between the look and the fence: look again behind it.
            directory.fence()?;
            if let Some(what) = directory.differs_from(base.root)? {
                directory.activate()?;
                return Err(StoreError::Modified {
                    dataset: spec.dataset.clone(),
                    detail: format!("since @{}: {what}", base.short),
                });
            }
        }
        directory.rest(base.root)
    }
}

/// The base of a stream that makes its dataset: nothing, or for a clone a snapshot that is anywhere in this
/// vault.
fn new_base(
    view: &View<'_>,
    spec: &ReceiveSpec,
    missing: impl FnOnce() -> StoreError,
) -> Result<Base> {
    let Some(guid) = spec.from_guid else {
        return Ok(Base::default());
    };
    let (_, origin) = view.anywhere(guid)?.ok_or_else(missing)?;
    Ok(Base { snapshot: Some(Box::new(origin)), clone: true, ..Base::default() })
}

/// Whether a snapshot of another dataset is the origin of this one, or before it.
fn is_origin(
    view: &View<'_>,
    dataset: &DatasetRecord,
    base_id: DatasetId,
    base: &SnapshotRecord,
) -> Result<bool> {
    let Some(origin) = dataset.origin else {
        return Ok(false);
    };
    let origin = view.snapshots(base_id)?.into_iter().find(|s| s.guid == origin);
    Ok(origin.is_some_and(|origin| base.createtxg <= origin.createtxg))
}
