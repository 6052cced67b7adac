//! Copies of snapshots under names of their own, for drills and for people who look.
//!
//! Owns: making one, and taking it away. A copy says in [`CLONE`] what it is a copy of, from the moment it
//! exists, so that nothing else is ever destroyed by mistake. Leaves to others: how long it lives. As long as
//! it does, its snapshot cannot be destroyed; receiving into the dataset goes on.

use std::path::PathBuf;

use flocker_store::store::Result;
use flocker_store::{CLONE, CloneAccess, DatasetName, PropertySource, SnapshotName, StoreError};

use crate::ZfsStore;

impl ZfsStore {
    pub(crate) fn make_clone(
        &self,
        snapshot: &SnapshotName,
        clone: &DatasetName,
        access: CloneAccess,
    ) -> Result<Option<PathBuf>> {
        if clone.pool() != snapshot.dataset().pool() {
            return Err(self.not_capable(format!("cloning {snapshot} to {clone}")));
        }
        self.find_snapshot(snapshot)?;
        if self.exists(clone)? {
            return Err(StoreError::Exists { name: clone.to_string() });
        }
        self.create_parents(clone)?;
        let mut properties = vec![format!("{CLONE}={snapshot}")];
        let opened = match access {
            CloneAccess::Writable => {
                self.clone_at_rest(snapshot, clone, &properties)?;
                self.activate_dataset(clone)
            }
            CloneAccess::ReadOnly => {
                properties.push("readonly=on".to_owned());
                self.clone_at_rest(snapshot, clone, &properties)?;
                self.show_dataset(clone)
            }
        };
        if opened.is_err()
            && let Err(error) = self.destroy_one_dataset(clone)
        {
            tracing::warn!(%clone, %error, "a copy that could not be mounted stays behind");
        }
        opened
    }

    pub(crate) fn take_clone_away(&self, clone: &DatasetName) -> Result<()> {
        let found = match self.native(clone, &["origin", CLONE]) {
            Ok(found) => found,
            Err(StoreError::NoDataset { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if found[CLONE].source != PropertySource::Local || found["origin"].value == "-" {
            return Err(self.not_capable(format!("removing {clone}, which is no copy of ours,")));
        }
        self.destroy_one_dataset(clone)
    }
}
