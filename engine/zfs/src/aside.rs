//! Setting aside what is beyond a snapshot, so that the dataset is that snapshot again and nothing is lost.
//!
//! Owns: the steps below and finding out, after a crash, which of them were done. Leaves to others: which
//! snapshot is kept and how the other dataset is called (the engine), holds (they travel with their
//! snapshots; the engine takes ours off what goes).
//!
//! ```text
//!   snapshot the difference   v@keep v@later v@diverged
//!   our claims off, mark      v  flocker-repl:aside=v-diverged-T@keep
//!   rename                    v-diverged-T@keep @later @diverged
//!   clone, at rest            v (origin v-diverged-T@keep)
//!   local properties          v as v-diverged-T has them
//!   datasets below            v/w, which the rename took along
//!   promote                   v@keep    v-diverged-T@later @diverged (origin v@keep)
//!   fenced                    v  canmount=noauto, readonly=on (OpenZFS)
//!   mountpoint, mark off      v-diverged-T
//! ```
//! Each step can be told from the names, the origins and the mark, so the same call goes on where a crash
//! came. A clone followed by a rollback would not do: a rollback over a clone is refused.
//!
//! Measured on zfs-fuse: holds and the properties of snapshots move with them by `promote`, which a hold
//! does not hinder; `clone` mounts at once unless `canmount=off`; the source must be unmounted to be renamed.

use std::collections::BTreeMap;

use flocker_store::store::Result;
use flocker_store::{
    ASIDE, DatasetName, Property, PropertySource, SnapshotName, SnapshotSpec, StoreError,
};

use crate::ZfsStore;
use crate::errors::About;
use crate::fence::{WAS_CANMOUNT, WAS_MOUNTPOINT, WAS_READONLY};
use crate::mounts;
use crate::parse;
use crate::properties::OURS;
use crate::room::WAS_LIMITS;
use crate::store::lock;

/// Short name of the snapshot that keeps what was live; a number follows where that name is taken.
const DIFFERENCE: &str = "diverged";

/// What the new dataset needs of ours: how to give it back one day.
const KEPT_OF_OURS: [&str; 4] = [WAS_CANMOUNT, WAS_MOUNTPOINT, WAS_READONLY, WAS_LIMITS];

/// Properties that the fence rules, or that say how full a dataset is: not copied.
const NOT_COPIED: [&str; 4] = ["canmount", "readonly", "volsize", "mountpoint"];

impl ZfsStore {
    pub(crate) fn set_dataset_aside(
        &self,
        keep: &SnapshotName,
        aside: &DatasetName,
    ) -> Result<bool> {
        let dataset = keep.dataset();
        if *dataset == self.root || dataset.pool() != aside.pool() || aside.is_within(dataset) {
            return Err(self.not_capable(format!("setting {dataset} aside as {aside}")));
        }
        match (self.origin(dataset)?, self.origin(aside)?) {
            (Some(_), None) => {
                if !self.begin_aside(keep, aside)? {
                    return Ok(false);
                }
                self.rename_aside(dataset, aside)?;
                self.clone_kept(keep, aside)?;
            }
            (None, Some(_)) => {
                self.refuse_foreign_aside(keep, aside)?;
                self.clone_kept(keep, aside)?;
            }
            (Some(origin), Some(_)) if origin == format!("{aside}@{}", keep.short()) => {}
            (Some(_), Some(origin)) if origin == keep.to_string() => {
                if !self.is_marked(keep, aside)? {
                    return Ok(true);
                }
                return self.end_aside(keep, aside);
            }
            (Some(_), Some(_)) => return Err(StoreError::Exists { name: aside.to_string() }),
            (None, None) => return Err(StoreError::NoDataset { dataset: dataset.clone() }),
        }
        self.copy_properties(aside, dataset)?;
        self.bring_children_back(aside, dataset)?;
        self.zfs_patiently(&["promote", dataset.as_str()], About::dataset(dataset))?;
        self.end_aside(keep, aside)
    }

    /// `-` or the snapshot that a dataset was cloned from; `None` when there is no such dataset.
    pub(crate) fn origin(&self, dataset: &DatasetName) -> Result<Option<String>> {
        match self.native(dataset, &["origin"]) {
            Ok(found) => Ok(Some(found["origin"].value.clone())),
            Err(StoreError::NoDataset { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that there is something to set aside, that it can be, and that all of it is in a
    /// snapshot; marks the dataset. Until there is something, nothing is changed.
    fn begin_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        let dataset = keep.dataset();
        if lock(&self.receiving).contains(dataset) {
            return Err(self.busy_with(dataset, "a receive into it is under way"));
        }
        self.refuse_if_held(dataset)?;
        self.refuse_if_writable(dataset)?;
        let inventory = self.clear_probes(dataset)?;
        if !inventory.snapshots.iter().any(|s| s.name == *keep) {
            return Err(StoreError::NoSnapshot { name: keep.to_string() });
        }
        let Some(newest) = inventory.latest().map(|s| s.name.clone()) else {
            return Err(StoreError::NoSnapshot { name: keep.to_string() });
        };
        let differs = match self.prove_unwritten(&newest) {
            Ok(()) => false,
            Err(StoreError::Modified { .. }) => true,
            Err(error) => return Err(error),
        };
        if newest == *keep && !differs {
            return Ok(false);
        }
        self.refuse_mounted_children(dataset)?;
        if differs {
            let taken = |short: &str| inventory.snapshots.iter().any(|s| s.name.short() == short);
            let mut short = DIFFERENCE.to_owned();
            let mut number = 1;
            while taken(&short) {
                number += 1;
                short = format!("{DIFFERENCE}-{number}");
            }
            self.take_snapshots(&SnapshotSpec {
                names: vec![dataset.snapshot(&short)?],
                quiesced: true,
                properties: BTreeMap::new(),
            })?;
        }
        // The mark first: without it nobody would know of what follows. Claims go before the name does,
        // since a renamed dataset keeps the guid that they are bound to.
        self.set_words(dataset, &[format!("{ASIDE}={}", mark_of(keep, aside))])?;
        let claims = |name: &str| name != ASIDE && !KEPT_OF_OURS.contains(&name);
        self.drop_ours(dataset, claims)?;
        Ok(true)
    }

    fn busy_with(&self, dataset: &DatasetName, what: &str) -> StoreError {
        let holder = flocker_store::Holder {
            pid: std::process::id(),
            command: "flocker-repl".to_owned(),
            what: what.to_owned(),
        };
        StoreError::Busy { dataset: dataset.clone(), holders: vec![holder] }
    }

    /// Datasets below go along with a rename and come back, which no mount of theirs survives.
    fn refuse_mounted_children(&self, dataset: &DatasetName) -> Result<()> {
        let below = format!("{dataset}/");
        match mounts::own()?.iter().find(|mount| mount.source.starts_with(&below)) {
            None => Ok(()),
            Some(mount) => {
                let at = mount.mountpoint.display();
                Err(self.busy_with(dataset, &format!("{} is mounted at {at}", mount.source)))
            }
        }
    }

    /// Datasets below the old name are not what is set aside.
    fn bring_children_back(&self, aside: &DatasetName, dataset: &DatasetName) -> Result<()> {
        let args = ["list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", aside.as_str()];
        let finished = self.zfs(&args, About::dataset(aside))?;
        for row in parse::rows(&finished, 1)? {
            // `%recv` and the like are ZFS's own.
            if row.str(0).contains('%') {
                continue;
            }
            let child = row.dataset(0)?;
            if child.parent().as_ref() == Some(aside) {
                self.rename_dataset(&child, &dataset.child(child.leaf())?)?;
            }
        }
        Ok(())
    }

    /// As [`ZfsStore::rename_dataset`], but for nothing being mounted.
    fn rename_aside(&self, dataset: &DatasetName, aside: &DatasetName) -> Result<()> {
        self.create_parents(aside)?;
        let words = ["rename", dataset.as_str(), aside.as_str()];
        self.zfs_patiently(&words, About::dataset(dataset))?;
        Ok(())
    }

    /// With the old name gone, `aside` is ours only if it says so itself.
    fn refuse_foreign_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<()> {
        if !self.is_marked(keep, aside)? {
            return Err(StoreError::NoDataset { dataset: keep.dataset().clone() });
        }
        Ok(())
    }

    fn is_marked(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        let found = self.native(aside, &[ASIDE])?;
        let mark = &found[ASIDE];
        Ok(mark.source == PropertySource::Local && mark.value == mark_of(keep, aside))
    }

    /// `canmount=off` until it is whole: zfs-fuse would mount it at once.
    fn clone_kept(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<()> {
        let origin = aside.snapshot(keep.short())?;
        self.clone_at_rest(&origin, keep.dataset(), &[])
    }

    /// Clones without mounting; `canmount` of a filesystem is `off` then.
    pub(crate) fn clone_at_rest(
        &self,
        origin: &SnapshotName,
        clone: &DatasetName,
        properties: &[String],
    ) -> Result<()> {
        let from = origin.to_string();
        let filesystem = self.native(origin.dataset(), &["type"])?["type"].value == "filesystem";
        let mut args = vec!["clone"];
        if filesystem {
            args.extend(["-o", "canmount=off"]);
        }
        for word in properties {
            args.extend(["-o", word]);
        }
        args.extend([from.as_str(), clone.as_str()]);
        self.zfs(&args, About::dataset(origin.dataset())).map_err(|error| match error {
            StoreError::Exists { .. } => StoreError::Exists { name: clone.to_string() },
            other => other,
        })?;
        Ok(())
    }

    /// The local properties of one dataset on another; ours but for what gives it back.
    fn copy_properties(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        for (name, property) in self.local_properties(from)? {
            let ours = name.starts_with(OURS) && !KEPT_OF_OURS.contains(&name.as_str());
            if ours || NOT_COPIED.contains(&name.as_str()) {
                continue;
            }
            let word = format!("{name}={}", property.value);
            match self.zfs(&["set", &word, to.as_str()], About::dataset(to)) {
                Ok(_) => {}
                Err(error @ (StoreError::Io { .. } | StoreError::Permission { .. })) => {
                    return Err(error);
                }
                // Such as a reservation that there is no room for twice, or what only a creation sets.
                Err(error) => tracing::warn!(dataset = %to, property = %word, %error, "not kept"),
            }
        }
        let mountpoint = &self.local_properties(from)?;
        if let Some((_, property)) = mountpoint.iter().find(|(name, _)| name == "mountpoint") {
            self.set_words(to, &[format!("mountpoint={}", property.value)])?;
        }
        Ok(())
    }

    fn local_properties(&self, dataset: &DatasetName) -> Result<Vec<(String, Property)>> {
        let args = ["get", "-Hp", "-s", "local,received", "-o", "property,source,value", "all"];
        let args = [&args[..], &[dataset.as_str()]].concat();
        let finished = self.zfs(&args, About::dataset(dataset))?;
        Ok(parse::properties(parse::text(&finished)?))
    }

    /// What comes after the promotion.
    fn end_aside(&self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        let dataset = keep.dataset();
        let now = self.native(dataset, &["type"])?;
        if now["type"].value == "filesystem" {
            self.set_words(dataset, &["canmount=noauto".to_owned()])?;
        }
        self.fence_dataset(dataset)?;
        // Two datasets with one mountpoint would be in each other's way.
        if self.local_properties(aside)?.iter().any(|(name, _)| name == "mountpoint") {
            self.inherit(aside.as_str(), "mountpoint", aside)?;
        }
        self.drop_ours(aside, |name| name != ASIDE)?;
        self.inherit(aside.as_str(), ASIDE, aside)?;
        Ok(true)
    }

    /// Takes off those local properties of ours that are wanted off.
    fn drop_ours(&self, dataset: &DatasetName, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        for (name, _) in self.local_properties(dataset)? {
            if name.starts_with(OURS) && unwanted(&name) {
                self.inherit(dataset.as_str(), &name, dataset)?;
            }
        }
        Ok(())
    }
}

/// The value of [`ASIDE`]: what the kept snapshot is called after the rename.
fn mark_of(keep: &SnapshotName, aside: &DatasetName) -> String {
    format!("{aside}@{}", keep.short())
}
