//! The engine by libzfs_core: what happens with every step, without starting a process.
//!
//! Owns: when the library is used instead of the command, and what its numbers mean in the trait's terms. Leaves
//! to others: the library itself (`flocker-lzc`), the streams it reads and writes on threads ([`stream`]), and
//! whatever has to do with mounting, which is not in libzfs_core: the command does that.
//!
//! An operation that the library cannot do here (an older one, no permission for a channel program) is done by the
//! command; what ZFS itself refuses is an error.

pub(crate) mod stream;

use std::collections::BTreeMap;

use flocker_lzc::{Errno, Lzc, LzcError, ObjsetType, Stats, UserChange};
use flocker_store::store::Result;
use flocker_store::{
    Bookmark, DatasetKind, DatasetName, Guid, HoldTag, Inventory, NameError, Property,
    PropertySource, Snapshot, SnapshotName, Space, StoreError,
};

use crate::datasets::Facts;
use crate::errors::About;
use crate::snapshots::partial;
use crate::{Engine, ZfsStore};

/// Opens it where the options and the machine allow.
pub(crate) fn open(engine: Engine) -> Result<Option<Lzc>> {
    if engine == Engine::Command {
        return Ok(None);
    }
    match Lzc::open() {
        Ok(lzc) => Ok(Some(lzc)),
        Err(error) if engine == Engine::Auto => {
            tracing::debug!(%error, "everything is done by the command");
            Ok(None)
        }
        Err(error) => Err(StoreError::NotCapable {
            store: "this machine".to_owned(),
            what: format!("libzfs_core ({error}; configure `[zfs] engine = \"auto\"`)"),
        }),
    }
}

impl ZfsStore {
    /// What the library makes of it; `None` where the command has to.
    pub(crate) fn by_library<T>(
        &self,
        about: About<'_>,
        call: impl FnOnce(&Lzc) -> std::result::Result<T, LzcError>,
    ) -> Option<Result<T>> {
        let lzc = self.library.as_ref()?;
        match call(lzc) {
            Ok(value) => Some(Ok(value)),
            Err(error) if is_for_the_command(&error) => {
                tracing::debug!(%error, "done by the command instead");
                None
            }
            Err(error) => Some(Err(explain(&error, about))),
        }
    }

    pub(crate) fn inventory_by_library(&self, dataset: &DatasetName) -> Option<Result<Inventory>> {
        let found =
            self.by_library(About::dataset(dataset), |lzc| lzc.inventory(dataset.as_str()))?;
        Some(found.and_then(|found| {
            let snapshot = |s: flocker_lzc::Snapshot| {
                let name = SnapshotName::from_parts(dataset.clone(), &s.name)?;
                Ok(of_snapshot(name, &s))
            };
            let bookmark = |(short, b): (String, flocker_lzc::Bookmark)| {
                Ok(Bookmark {
                    name: flocker_store::BookmarkName::from_parts(dataset.clone(), &short)?,
                    guid: Guid(b.guid),
                    createtxg: b.createtxg,
                })
            };
            let cloned = found.snapshots.iter().filter(|s| s.clones > 0);
            Ok(Inventory {
                cloned: cloned.map(|s| Guid(s.guid)).collect(),
                snapshots: found.snapshots.into_iter().map(snapshot).collect::<Result<_>>()?,
                bookmarks: found.bookmarks.into_iter().map(bookmark).collect::<Result<_>>()?,
                partial: found.resume_token.as_deref().map(partial),
            })
        }))
    }

    /// Those of the snapshots that exist.
    pub(crate) fn find_by_library(
        &self,
        names: &[SnapshotName],
    ) -> Option<Result<BTreeMap<SnapshotName, Snapshot>>> {
        let mut found = BTreeMap::new();
        for name in names {
            let word = name.to_string();
            let about = About::dataset(name.dataset());
            match self.by_library(about, |lzc| lzc.find_snapshot(&word))? {
                Ok(Some(snapshot)) => {
                    found.insert(name.clone(), of_snapshot(name.clone(), &snapshot))
                }
                Ok(None) => None,
                Err(error) => return Some(Err(error)),
            };
        }
        Some(Ok(found))
    }

    /// The newest snapshot and an interrupted receive, however many snapshots there are.
    pub(crate) fn newest_by_library(&self, dataset: &DatasetName) -> Option<Result<Newest>> {
        let about = About::dataset(dataset);
        let found = self.by_library(about, |lzc| {
            let Some(stats) = lzc.stats(dataset.as_str())? else { return Ok(None) };
            let newest = match stats.newest_snapshot() {
                // It may be gone by now: then it was not the base of anything.
                Some(name) => lzc.find_snapshot(name)?,
                None => None,
            };
            Ok(Some((newest, stats.text("receive_resume_token").is_some())))
        })?;
        Some(found.and_then(|found| {
            let missing = || StoreError::NoDataset { dataset: dataset.clone() };
            let (newest, partial) = found.ok_or_else(missing)?;
            Ok(Newest { guid: newest.map(|s| Guid(s.guid)), partial })
        }))
    }

    /// What the library says of a dataset that has to be there.
    fn stats_by_library(&self, dataset: &DatasetName) -> Option<Result<Stats>> {
        let found = self.by_library(About::dataset(dataset), |lzc| lzc.stats(dataset.as_str()))?;
        let missing = || StoreError::NoDataset { dataset: dataset.clone() };
        Some(found.and_then(|found| found.ok_or_else(missing)))
    }

    /// Of each dataset, in their order; `None` where the command has to say it of all.
    pub(crate) fn facts_by_library(&self, names: &[DatasetName]) -> Option<Result<Vec<Facts>>> {
        let mut facts = Vec::with_capacity(names.len());
        for name in names {
            let found = match self.stats_by_library(name)? {
                Ok(found) => found,
                Err(error) => return Some(Err(error)),
            };
            facts.push(match facts_of(&found)? {
                Ok(one) => one,
                Err(error) => return Some(Err(error.into())),
            });
        }
        Some(Ok(facts))
    }

    pub(crate) fn space_by_library(&self, dataset: &DatasetName) -> Option<Result<Space>> {
        match self.stats_by_library(dataset)? {
            // Without a number the command is asked.
            Ok(found) => Some(Ok(Space {
                available_bytes: found.number("available")?,
                used_bytes: found.number("used")?,
            })),
            Err(error) => Some(Err(error)),
        }
    }

    /// Properties whose names hold a `:`.
    pub(crate) fn user_properties_by_library(
        &self,
        dataset: &DatasetName,
    ) -> Option<Result<BTreeMap<String, Property>>> {
        let found = self.stats_by_library(dataset)?;
        Some(found.map(|found| {
            (found.properties.into_iter())
                .filter(|(name, _)| name.contains(':'))
                .filter_map(|(name, property)| {
                    let source = match property.source {
                        flocker_lzc::PropertySource::Local => PropertySource::Local,
                        flocker_lzc::PropertySource::Received => PropertySource::Received,
                        flocker_lzc::PropertySource::Inherited(_) => PropertySource::Inherited,
                        flocker_lzc::PropertySource::None => PropertySource::Other,
                    };
                    let value = property.value.text()?.to_owned();
                    Some((name, Property { value, source }))
                })
                .collect()
        }))
    }

    /// `true`: done. `false`: the command has to.
    pub(crate) fn change_by_library(
        &self,
        dataset: &DatasetName,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<bool> {
        if changes.is_empty() {
            return Ok(false);
        }
        let changes: Vec<UserChange<'_>> = (changes.iter())
            .map(|(property, value)| UserChange {
                dataset: dataset.as_str(),
                property,
                value: value.as_deref(),
            })
            .collect();
        let about = About::dataset(dataset);
        self.by_library(about, |lzc| lzc.change_user_properties(&changes))
            .map_or(Ok(false), |outcome| outcome.map(|()| true))
    }

    /// `true`: done. `false`: the command has to.
    pub(crate) fn hold_by_library(&self, tag: &HoldTag, names: &[SnapshotName]) -> Result<bool> {
        let Some(first) = names.first() else { return Ok(true) };
        let all = names.iter().map(|n| (n.to_string(), tag.0.clone())).collect();
        let Some(outcome) = self.by_library(About::dataset(first.dataset()), |lzc| {
            match lzc.hold(&all) {
                // Some have it already: those that have not are to get it all the same, one by one.
                Err(error) if error.errno() == Some(Errno::EEXIST) => {
                    for (name, tag) in &all {
                        match lzc.hold(&[(name.clone(), tag.clone())].into()) {
                            Ok(missing) if missing.is_empty() => {}
                            Ok(missing) => return Ok(missing),
                            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(flocker_lzc::NameErrors::default())
                }
                outcome => outcome,
            }
        }) else {
            return Ok(false);
        };
        match outcome?.by_name.keys().next() {
            None => Ok(true),
            Some(missing) => Err(StoreError::NoSnapshot { name: missing.clone() }),
        }
    }

    /// As [`ZfsStore::hold_by_library`].
    pub(crate) fn release_by_library(&self, tag: &HoldTag, names: &[SnapshotName]) -> Result<bool> {
        let Some(first) = names.first() else { return Ok(true) };
        let all = names.iter().map(|n| (n.to_string(), [tag.0.clone()].into())).collect();
        match self.by_library(About::dataset(first.dataset()), |lzc| lzc.release(&all)) {
            // What was not there is not missed.
            Some(outcome) => outcome.map(|_| true),
            None => Ok(false),
        }
    }

    pub(crate) fn holds_by_library(&self, name: &SnapshotName) -> Option<Result<Vec<HoldTag>>> {
        let word = name.to_string();
        let found = self.by_library(About::dataset(name.dataset()), |lzc| lzc.holds(&word))?;
        Some(
            found
                .map(|tags| tags.into_keys().map(HoldTag).collect())
                .map_err(|e| missing(e, &word)),
        )
    }
}

/// What a receive has to know of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Newest {
    /// Of the newest snapshot.
    pub(crate) guid: Option<Guid>,
    /// A receive was interrupted.
    pub(crate) partial: bool,
}

/// `None` where a number is missing, or of what is neither a filesystem nor a volume.
fn facts_of(found: &Stats) -> Option<std::result::Result<Facts, NameError>> {
    let kind = match found.objset_type {
        ObjsetType::Filesystem => DatasetKind::Filesystem,
        ObjsetType::Zvol => DatasetKind::Zvol,
        ObjsetType::Other(_) => return None,
    };
    let (used_bytes, referenced_bytes) = (found.number("used")?, found.number("referenced")?);
    let origin = found.text("origin").filter(|origin| !origin.is_empty());
    Some(origin.map(str::parse::<SnapshotName>).transpose().map(|origin| Facts {
        kind,
        guid: Guid(found.guid),
        used_bytes,
        referenced_bytes,
        readonly: found.number("readonly") == Some(1),
        origin,
        // Only an encrypted dataset has it; 2 is `off` (`zio_encrypt`).
        encrypted: !matches!(found.number("encryption"), None | Some(0 | 2)),
    }))
}

fn of_snapshot(name: SnapshotName, found: &flocker_lzc::Snapshot) -> Snapshot {
    Snapshot {
        name,
        guid: Guid(found.guid),
        createtxg: found.createtxg,
        creation_unix_s: found.creation_unix_s.cast_signed(),
        fuzzy: false,
        holds: u32::try_from(found.userrefs).unwrap_or(u32::MAX),
    }
}

/// A dataset that is not there, where a snapshot was asked for.
pub(crate) fn missing(error: StoreError, name: &str) -> StoreError {
    match error {
        StoreError::NoDataset { .. } => StoreError::NoSnapshot { name: name.to_owned() },
        error => error,
    }
}

/// Whether it is the way, and not ZFS, that does not do it.
fn is_for_the_command(error: &LzcError) -> bool {
    match error {
        LzcError::NotAvailable { .. }
        | LzcError::Pools { .. }
        | LzcError::Program { .. }
        | LzcError::Name { .. } => true,
        LzcError::TooBig { .. } => true,
        LzcError::Failed { errno, .. } => matches!(
            *errno,
            Errno::ZFS_ERR_IOC_CMD_UNAVAIL | Errno::ZFS_ERR_IOC_ARG_UNAVAIL | Errno::EPERM
        ),
        _ => false,
    }
}

/// The typed error for a number of the kernel.
pub(crate) fn explain(error: &LzcError, about: About<'_>) -> StoreError {
    let dataset = || about.dataset.clone();
    let detail = || error.to_string();
    let unknown = || StoreError::Command {
        command: "libzfs_core".to_owned(),
        status: error.errno().map_or_else(|| "no answer".to_owned(), |e| format!("error {}", e.0)),
        stderr: detail(),
    };
    let LzcError::Failed { subject, errno, .. } = error else { return unknown() };
    match *errno {
        Errno::ENOENT if subject.contains(['@', '#']) => {
            StoreError::NoSnapshot { name: subject.clone() }
        }
        // A bookmark that was to be the base of a send.
        Errno::ESRCH => StoreError::NoSnapshot { name: format!("the base of {subject}") },
        Errno::ENOENT | Errno::ENXIO => StoreError::NoDataset { dataset: dataset() },
        Errno::EEXIST => StoreError::Exists { name: subject.clone() },
        Errno::ENODEV => match about.base {
            Some(base) => StoreError::NoBase { dataset: dataset(), base },
            None => unknown(),
        },
        Errno::ETXTBSY => StoreError::Modified { dataset: dataset(), detail: detail() },
        Errno::EBUSY => StoreError::Busy { dataset: dataset(), holders: Vec::new() },
        Errno::ENOSPC | Errno::EDQUOT => {
            StoreError::NoSpace { dataset: dataset(), detail: detail() }
        }
        Errno::EPERM => {
            StoreError::Permission { command: "libzfs_core".to_owned(), detail: detail() }
        }
        Errno::EINVAL | Errno::ECKSUM | Errno::ZFS_ERR_STREAM_TRUNCATED | Errno::EPIPE => {
            StoreError::BadStream { dataset: dataset(), detail: detail() }
        }
        // Its stream could not be written: nobody reads any more.
        Errno::EINTR => StoreError::io(detail(), std::io::ErrorKind::BrokenPipe.into()),
        Errno::EACCES
        | Errno::ENOTSUP
        | Errno::ZFS_ERR_WRONG_PARENT
        | Errno::ZFS_ERR_FROM_IVSET_GUID_MISSING
        | Errno::ZFS_ERR_FROM_IVSET_GUID_MISMATCH
        | Errno::ZFS_ERR_SPILL_BLOCK_FLAG_MISSING
        | Errno::ZFS_ERR_UNKNOWN_SEND_STREAM_FEATURE
        | Errno::ZFS_ERR_STREAM_LARGE_BLOCK_MISMATCH
        | Errno::ZFS_ERR_CRYPTO_NOTSUP
        | Errno::ZFS_ERR_STREAM_LARGE_MICROZAP => StoreError::Unsupported {
            dataset: dataset(),
            feature: format!("this stream ({})", detail()),
        },
        _ => unknown(),
    }
}
