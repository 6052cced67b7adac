//! What this store itself knows of datasets at rest, so that it need not be found out anew in the seconds in
//! which nobody is served.
//!
//! Owns: the records, and what ends them. Leaves to others: bringing a dataset to rest ([`crate::fence`]) and
//! what a record spares ([`crate::check`], [`crate::activate`]).
//!
//! A record says: after the connection of the dataset's filesystem was gone, its live data was mounted
//! nowhere, and a [`Watch`] tells of every mount since. zfs-fuse is what mounts its filesystems, in the mount
//! namespace that it lives in, which is ours where it has mounted one for us to see; so as long as the mount
//! table of our namespace has not changed at all, nobody can have written. A change of any mount ends the
//! proof, not the rest: then it is proven the long way.
//!
//! Only for zfs-fuse: on OpenZFS anybody may mount in any namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use flocker_store::{DatasetName, SnapshotName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ZfsStore;
use crate::snapshots::PROBE_PREFIX;
use crate::store::lock;

/// Tells whether any mount of our namespace has come or gone since it was made: the kernel counts those, and
/// `poll` on an open `mountinfo` says when the count is another (`proc_pid_mountinfo(5)`).
#[derive(Debug)]
pub(crate) struct Watch {
    table: Option<File>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { table: File::open("/proc/self/mountinfo").ok() }
    }

    /// Whether nothing was mounted or unmounted. What was seen once is never forgotten.
    fn is_quiet(&mut self) -> bool {
        let Some(table) = &self.table else { return false };
        let mut polled = [PollFd::new(table, PollFlags::PRI)];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let quiet = matches!(poll(&mut polled, Some(&zero)), Ok(0));
        if !quiet {
            self.table = None;
        }
        quiet
    }
}

/// A dataset that we have brought to rest.
#[derive(Debug)]
pub(crate) struct Rest {
    watch: Watch,
    /// The newest snapshot, taken by us since.
    newest: Option<SnapshotName>,
}

/// All records.
#[derive(Debug, Default)]
pub(crate) struct Rests {
    rests: BTreeMap<DatasetName, Rest>,
    /// Where a dataset is going to be mounted, found with `canmount=noauto` and not read-only; nobody had
    /// it when the watch was made.
    paths: BTreeMap<DatasetName, (PathBuf, Watch)>,
}

impl ZfsStore {
    /// It is at rest since `watch` was made.
    pub(crate) fn note_rest(&self, dataset: &DatasetName, watch: Watch) {
        lock(&self.rests).rests.insert(dataset.clone(), Rest { watch, newest: None });
    }

    /// Whether nobody can have had it mounted since we brought it to rest.
    pub(crate) fn is_at_rest(&self, dataset: &DatasetName) -> bool {
        let mut rests = lock(&self.rests);
        rests.rests.get_mut(dataset).is_some_and(|rest| rest.watch.is_quiet())
    }

    /// These have just become the newest of their datasets; `were` at rest before they were taken.
    pub(crate) fn note_snapshots(&self, names: &[SnapshotName], were: &[bool]) {
        let mut rests = lock(&self.rests);
        for (name, was_at_rest) in names.iter().zip(were) {
            // A probe is gone again before anybody asks.
            if !name.short().starts_with(PROBE_PREFIX)
                && let Some(rest) = rests.rests.get_mut(name.dataset())
            {
                rest.newest = was_at_rest.then(|| name.clone());
            }
        }
    }

    /// These are about to be destroyed.
    pub(crate) fn forget_snapshots(&self, names: &[SnapshotName]) {
        for rest in lock(&self.rests).rests.values_mut() {
            rest.newest = rest.newest.take().filter(|newest| !names.contains(newest));
        }
    }

    /// Whether it was at rest from before this snapshot was taken until now.
    pub(crate) fn rests_since(&self, snapshot: &SnapshotName) -> bool {
        let mut rests = lock(&self.rests);
        let rest = rests.rests.get_mut(snapshot.dataset());
        rest.is_some_and(|r| r.newest.as_ref() == Some(snapshot) && r.watch.is_quiet())
    }

    /// Something is about to be done to it after which no record holds.
    pub(crate) fn forget_rest(&self, dataset: &DatasetName) {
        let mut rests = lock(&self.rests);
        rests.rests.remove(dataset);
        rests.paths.remove(dataset);
    }

    pub(crate) fn note_path(&self, dataset: &DatasetName, path: PathBuf, watch: Watch) {
        lock(&self.rests).paths.insert(dataset.clone(), (path, watch));
    }

    /// Where it is going to be mounted, and whether nobody can have mounted it since that was found.
    pub(crate) fn known_path(&self, dataset: &DatasetName) -> Option<(PathBuf, bool)> {
        let mut rests = lock(&self.rests);
        let (path, watch) = rests.paths.get_mut(dataset)?;
        Some((path.clone(), watch.is_quiet()))
    }

    /// The same, and from then on it is not known any more.
    pub(crate) fn take_path(&self, dataset: &DatasetName) -> Option<(PathBuf, bool)> {
        let (path, mut watch) = lock(&self.rests).paths.remove(dataset)?;
        Some((path, watch.is_quiet()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_anywhere_in_our_namespace_ends_the_quiet_for_good() {
        let mut watch = Watch::new();
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "flocker-test"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: may not mount");
            return;
        }
        assert!(!watch.is_quiet());
        let unmounted = std::process::Command::new("umount").arg(dir.path()).status();
        assert!(unmounted.unwrap().success());
        assert!(!watch.is_quiet(), "not even when it is as it was");
    }
}
