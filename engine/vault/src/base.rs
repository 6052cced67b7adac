//! What a receive starts from, and whether a BEGIN fits on it.
//!
//! Owns: every reason to refuse a stream that can be known from its BEGIN, before anything is changed.
//! Leaves finding the base to [`crate::transfer`], and what this store can apply at all to [`crate::apply`].

use flocker_store::{DatasetKind, ReceiveSpec, StoreError};
use zfs_stream::Features;
use zfs_stream::format::{begin_flag, objset};
use zfs_stream::record::Begin;

use crate::dir;
use crate::keydata::{KeyData, Point};
use crate::meta::{DatasetId, SnapshotRecord};
use crate::objset::SetRoot;
use crate::partial::PartialRecord;

type Result<T> = std::result::Result<T, StoreError>;

/// What a receive starts from.
#[derive(Debug, Default)]
pub(crate) struct Base {
    /// The dataset; `None` when the stream makes it.
    pub(crate) dataset: Option<(DatasetId, DatasetKind)>,
    /// The snapshot that an increment adds to: the dataset's newest, or the origin of a clone.
    pub(crate) snapshot: Option<Box<SnapshotRecord>>,
    /// The snapshot is of another dataset: the stream makes a clone of it.
    pub(crate) clone: bool,
    /// What is there of a receive that was interrupted.
    pub(crate) partial: Option<PartialRecord>,
}

/// What a BEGIN says, checked.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) kind: DatasetKind,
    /// Of a raw stream.
    pub(crate) key: Option<KeyData>,
    /// The object set to go on from.
    pub(crate) root: SetRoot,
    /// Whether the stream goes on with the partial.
    pub(crate) resumes: bool,
}

fn bad(spec: &ReceiveSpec, detail: impl Into<String>) -> StoreError {
    StoreError::BadStream { dataset: spec.dataset.clone(), detail: detail.into() }
}

impl Base {
    /// Checks that the stream is the one announced, and fits.
    pub(crate) fn check(
        &self,
        spec: &ReceiveSpec,
        begin: &Begin,
        payload: &[u8],
    ) -> Result<Opening> {
        if begin.to_guid != spec.to_guid.0 {
            return Err(bad(
                spec,
                format!(
                    "it carries the snapshot with guid {}, announced was {}",
                    begin.to_guid, spec.to_guid
                ),
            ));
        }
        let from = spec.from_guid.map_or(0, |guid| guid.0);
        if begin.from_guid != from {
            return Err(bad(
                spec,
                format!(
                    "it starts from the snapshot with guid {}, announced was {from}",
                    begin.from_guid
                ),
            ));
        }
        let kind = self.check_kind(spec, begin)?;
        self.check_clone(spec, begin)?;
        let key = self.check_key(spec, begin, payload)?;
        let resumes = self.check_resume(spec, begin, payload)?;
        let root = match (resumes, &self.partial, &self.snapshot) {
            (true, Some(partial), _) => partial.root,
            (_, _, Some(snapshot)) => snapshot.root,
            (_, _, None) => SetRoot::default(),
        };
        Ok(Opening { kind, key, root, resumes })
    }

    fn check_kind(&self, spec: &ReceiveSpec, begin: &Begin) -> Result<DatasetKind> {
        let kind = match begin.objset_type {
            objset::ZFS => DatasetKind::Filesystem,
            objset::ZVOL => DatasetKind::Zvol,
            dir::OBJSET_DIRECTORY => DatasetKind::Directory,
            other => {
                return Err(StoreError::Unsupported {
                    dataset: spec.dataset.clone(),
                    feature: format!("object set type {other}"),
                });
            }
        };
        match &self.snapshot {
            Some(base) if base.dialect.objset_type != begin.objset_type => Err(bad(
                spec,
                format!("it is a {kind}, its base @{} is something else", base.short),
            )),
            Some(_) | None => Ok(kind),
        }
    }

    fn check_clone(&self, spec: &ReceiveSpec, begin: &Begin) -> Result<()> {
        match (self.clone, begin.flags & begin_flag::CLONE != 0) {
            (true, true) | (false, false) => Ok(()),
            // An ordinary increment, whose base is there but in another dataset.
            (true, false) => Err(StoreError::NoDataset { dataset: spec.dataset.clone() }),
            (false, true) => Err(StoreError::Exists {
                name: format!("{} (the stream would make a clone of that name)", spec.dataset),
            }),
        }
    }

    fn check_key(
        &self,
        spec: &ReceiveSpec,
        begin: &Begin,
        payload: &[u8],
    ) -> Result<Option<KeyData>> {
        let raw = begin.features.contains(Features::RAW);
        if let Some(base) = &self.snapshot
            && base.dialect.is_sealed() != raw
        {
            let (is, has) = if raw { ("raw", "not") } else { ("not raw", "raw") };
            return Err(StoreError::Unsupported {
                dataset: spec.dataset.clone(),
                feature: format!(
                    "a step that is {is} on a base that is {has} (raw or not is pinned per replica \
                     for life)"
                ),
            });
        }
        if !raw {
            return Ok(None);
        }
        let key = KeyData::of(payload).map_err(|e| bad(spec, e))?;
        if let Some(base) = self.snapshot.as_ref().and_then(|base| base.key.as_ref()) {
            key.follows(base).map_err(|e| bad(spec, e))?;
        }
        Ok(Some(key))
    }

    fn check_resume(&self, spec: &ReceiveSpec, begin: &Begin, payload: &[u8]) -> Result<bool> {
        if !begin.features.contains(Features::RESUMING) {
            return Ok(false);
        }
        let point = Point::of(payload).map_err(|e| bad(spec, e))?;
        let Some(partial) = &self.partial else {
            return Err(bad(spec, "it is the rest of a stream of which nothing is here"));
        };
        partial.goes_on(begin, point).map_err(|e| bad(spec, e))?;
        Ok(true)
    }
}
