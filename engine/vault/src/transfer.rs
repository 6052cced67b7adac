//! Sends and receives: whether they may begin, and from what.
//!
//! Leaves the streams themselves to [`crate::send`] and [`crate::receive`].

use std::sync::Arc;

use flocker_store::{
    DatasetKind, ReceiveSpec, ReceiveStream, SendBase, SendSpec, SendStream, StoreError,
};

use crate::dir::live::Directory;
use crate::emit::{self, Job};
use crate::inner::Inner;
use crate::meta::{DatasetId, DatasetRecord, Live, SnapshotRecord, View};
use crate::receive::{Base, Incoming};
use crate::send::{Counter, Outgoing};

type Result<T> = std::result::Result<T, StoreError>;

impl Inner {
    fn job(&self, spec: &SendSpec) -> Result<Job> {
        let not_capable = |what: String| StoreError::NotCapable { store: self.describe(), what };
        if spec.raw {
            return Err(not_capable("a raw send".into()));
        }
        let view = View::new(&self.db)?;
        let (_, _, to) = view.snapshot(&spec.to)?;
        let from = match &spec.from {
            None => None,
            Some(SendBase::Bookmark(_)) => {
                return Err(not_capable("a send from a bookmark".into()));
            }
            Some(SendBase::Snapshot(name)) => Some(view.snapshot(name)?.2),
        };
        if let (Some(from), Some(SendBase::Snapshot(name))) = (&from, &spec.from)
            && (name.dataset() != spec.to.dataset() || from.createtxg >= to.createtxg)
        {
            return Err(not_capable(format!(
                "a send from {name} to {}: the base has to be an earlier snapshot of the same \
                 dataset",
                spec.to
            )));
        }
        Ok(Job {
            from,
            to,
            to_name: spec.to.to_string(),
            compressed: spec.compressed,
            large_blocks: spec.large_blocks,
        })
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
        let found = View::new(&self.db)?.find(&spec.dataset)?;
        let base = match (found, spec.from_guid) {
            (None, None) => {
                self.refuse_below_directory(&spec.dataset)?;
                Base::New
            }
            (None, Some(_)) => {
                return Err(StoreError::NoDataset { dataset: spec.dataset.clone() });
            }
            (Some(_), None) => {
                return Err(StoreError::Exists { name: spec.dataset.to_string() });
            }
            (Some((id, record)), Some(_)) => {
                let snapshot = self.base(id, spec)?;
                self.rest(id, &record, spec, &snapshot)?;
                Base::Snapshot { id, kind: record.kind, snapshot: Box::new(snapshot) }
            }
        };
        Ok(Box::new(Incoming::new(self.clone(), spec.clone(), base, claim)))
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

    /// A directory has to be at its newest snapshot, and at rest.
    fn rest(
        self: &Arc<Self>,
        id: DatasetId,
        record: &DatasetRecord,
        spec: &ReceiveSpec,
        base: &SnapshotRecord,
    ) -> Result<()> {
        if record.kind != DatasetKind::Directory {
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
