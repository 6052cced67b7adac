//! User holds.
//!
//! Owns: putting holds on, taking them off, and saying which there are. `zfs holds` of Debian's zfs-fuse
//! ends with "internal error: /usr/lib/zfs/pyzfs.py not found", so there the tags are written beside, in
//! the user property [`TAGS`] of the snapshot: before a hold is put on and after it is taken off, so that
//! after a crash the property may name a hold too many and never one too few. `userrefs` counts them
//! everywhere.

use flocker_store::store::Result;
use flocker_store::{HoldTag, PropertySource, SnapshotName, StoreError};

use crate::ZfsStore;
use crate::errors::{self, About};
use crate::parse;
use crate::run::Program;
use crate::store::lock;

/// Where the tags of holds are kept that zfs-fuse cannot list: separated by spaces.
pub const TAGS: &str = "flocker-repl:holds";

/// Stands for a hold that somebody else has put on a snapshot of zfs-fuse.
pub const UNNAMED: &str = "(a hold that zfs-fuse cannot name)";

/// Longest tag, bytes (`ZFS_MAX_DATASET_NAME_LEN` less what ZFS keeps for itself).
pub const MAX_TAG_BYTES: usize = 200;

/// Snapshots held in one command.
const BATCH: usize = 100;

impl ZfsStore {
    pub(crate) fn hold_snapshots(&self, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        self.check_tag(tag)?;
        if self.dialect.fuse {
            let _tags = lock(&self.tags);
            for snapshot in snapshots {
                let mut tags = self.recorded_tags(snapshot)?;
                if !tags.contains(tag) {
                    tags.push(tag.clone());
                    self.record_tags(snapshot, &tags)?;
                }
                self.hold_one(tag, snapshot)?;
            }
            return Ok(());
        }
        for batch in snapshots.chunks(BATCH) {
            if self.hold_by_library(tag, batch)? {
                continue;
            }
            match self.change_holds("hold", tag, batch) {
                Ok(()) => {}
                // One of them has it already, and then none may have got it.
                Err(StoreError::Exists { .. }) => {
                    for snapshot in batch {
                        self.hold_one(tag, snapshot)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn hold_one(&self, tag: &HoldTag, snapshot: &SnapshotName) -> Result<()> {
        match self.change_holds("hold", tag, std::slice::from_ref(snapshot)) {
            Err(StoreError::Exists { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    pub(crate) fn release_snapshots(
        &self,
        tag: &HoldTag,
        snapshots: &[SnapshotName],
    ) -> Result<()> {
        self.check_tag(tag)?;
        let _tags = lock(&self.tags);
        if self.library.is_some() {
            let by_library = |batch| self.release_by_library(tag, batch);
            if snapshots
                .chunks(BATCH)
                .map(by_library)
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|d| *d)
            {
                return Ok(());
            }
        }
        if !self.dialect.fuse && snapshots.len() > 1 {
            let mut all = true;
            for batch in snapshots.chunks(BATCH) {
                all &= self.change_holds("release", tag, batch).is_ok();
            }
            if all {
                return Ok(());
            }
        }
        for snapshot in snapshots {
            match self.change_holds("release", tag, std::slice::from_ref(snapshot)) {
                Ok(()) | Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) => {}
                Err(error) => return Err(error),
            }
            if self.dialect.fuse {
                self.forget_tag(tag, snapshot)?;
            }
        }
        Ok(())
    }

    fn change_holds(&self, verb: &str, tag: &HoldTag, snapshots: &[SnapshotName]) -> Result<()> {
        let Some(first) = snapshots.first() else {
            return Ok(());
        };
        let words: Vec<String> = snapshots.iter().map(ToString::to_string).collect();
        let mut args = vec![verb, &tag.0];
        args.extend(words.iter().map(String::as_str));
        let finished = self.runner.run(Program::Zfs, &args)?;
        if finished.ending.is_success() {
            return Ok(());
        }
        // A tag that is not there is what a release is after; of several, the others may still have it.
        let none = verb == "release" && finished.stderr.contains("no such tag");
        if none && snapshots.len() == 1 {
            return Ok(());
        }
        if finished.stderr.contains("tag already exists") {
            return Err(StoreError::Exists { name: format!("the hold {tag}") });
        }
        let about = About::dataset(first.dataset());
        Err(match errors::explain(&finished, about) {
            StoreError::NoDataset { .. } => StoreError::NoSnapshot { name: first.to_string() },
            error => error,
        })
    }

    pub(crate) fn list_holds(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>> {
        if self.dialect.fuse {
            let count = self.find_snapshot(snapshot)?.holds as usize;
            if count == 0 {
                return Ok(Vec::new());
            }
            let mut tags = self.recorded_tags(snapshot)?;
            if tags.len() < count {
                tags.push(HoldTag(UNNAMED.to_owned()));
            }
            return Ok(tags);
        }
        if let Some(found) = self.holds_by_library(snapshot) {
            return found;
        }
        let name = snapshot.to_string();
        let finished = self.zfs(&["holds", "-H", &name], About::dataset(snapshot.dataset()))?;
        let rows = parse::rows(&finished, 3)?;
        Ok(rows.iter().map(|row| HoldTag(row.str(1).to_owned())).collect())
    }

    /// The error for a snapshot that holds keep.
    pub(crate) fn kept_by_holds(&self, snapshot: &SnapshotName) -> StoreError {
        let by = match self.list_holds(snapshot) {
            Ok(tags) => {
                let tags: Vec<&str> = tags.iter().map(|tag| tag.0.as_str()).collect();
                format!("hold {}", tags.join(", "))
            }
            Err(error) => format!("holds that could not be listed ({error})"),
        };
        StoreError::Kept { name: snapshot.to_string(), by }
    }

    fn recorded_tags(&self, snapshot: &SnapshotName) -> Result<Vec<HoldTag>> {
        let name = snapshot.to_string();
        let args = ["get", "-Hp", "-o", "value,source", TAGS, &name];
        let finished =
            self.zfs(&args, About::dataset(snapshot.dataset())).map_err(|error| match error {
                StoreError::NoDataset { .. } => StoreError::NoSnapshot { name: name.clone() },
                other => other,
            })?;
        let rows = parse::rows(&finished, 2)?;
        // A dataset's property of this name would be inherited, and would not be ours.
        let local = rows.first().filter(|row| parse::source(row.str(1)) == PropertySource::Local);
        let tags = local.map(|row| row.str(0)).unwrap_or_default();
        Ok(tags
            .split(' ')
            .filter(|tag| !tag.is_empty())
            .map(|tag| HoldTag(tag.to_owned()))
            .collect())
    }

    fn record_tags(&self, snapshot: &SnapshotName, tags: &[HoldTag]) -> Result<()> {
        let (dataset, name) = (snapshot.dataset(), snapshot.to_string());
        if tags.is_empty() {
            return self.inherit(&name, TAGS, dataset);
        }
        let tags: Vec<&str> = tags.iter().map(|tag| tag.0.as_str()).collect();
        let word = format!("{TAGS}={}", tags.join(" "));
        self.zfs(&["set", &word, &name], About::dataset(dataset))?;
        Ok(())
    }

    fn forget_tag(&self, tag: &HoldTag, snapshot: &SnapshotName) -> Result<()> {
        let mut tags = match self.recorded_tags(snapshot) {
            Ok(tags) => tags,
            Err(StoreError::NoSnapshot { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if tags.contains(tag) {
            tags.retain(|recorded| recorded != tag);
            self.record_tags(snapshot, &tags)?;
        }
        Ok(())
    }

    /// Refuses tags that a command would take for an option or that could not be listed again.
    fn check_tag(&self, tag: &HoldTag) -> Result<()> {
        let text = &tag.0;
        if text.is_empty()
            || text.len() > MAX_TAG_BYTES
            || text.starts_with(['-', '.'])
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(self.not_capable(format!("the hold tag `{text}`")));
        }
        Ok(())
    }
}
