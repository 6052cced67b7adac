//! Datasets: what there is, making, renaming and destroying them.
//!
//! Owns: filesystems and zvols as wholes. Leaves to others: their snapshots ([`crate::snapshots`]) and
//! who may write them ([`crate::fence`], [`crate::activate`]).
//!
//! What we create stays unmounted (`canmount=noauto`; parents made on the way `canmount=off`): only
//! [`flocker_store::Store::activate`] mounts. Nothing here passes `-r`, `-R` or `-f`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flocker_store::store::Result;
use flocker_store::{
    DatasetInfo, DatasetKind, DatasetName, Guid, Origin, SnapshotName, Space, StoreError,
};

use crate::ZfsStore;
use crate::errors::About;
use crate::mounts::{self, Mount};
use crate::parse;

/// Columns of [`DatasetInfo`].
const COLUMNS: &str = "type,guid,used,referenced,readonly,origin,encryption";
/// The same where there is no encryption.
const COLUMNS_FUSE: &str = "type,guid,used,referenced,readonly,origin";

/// What ZFS itself knows of a dataset that [`DatasetInfo`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: DatasetKind,
    pub(crate) guid: Guid,
    pub(crate) used_bytes: u64,
    pub(crate) referenced_bytes: u64,
    pub(crate) readonly: bool,
    pub(crate) origin: Option<SnapshotName>,
    pub(crate) encrypted: bool,
}

/// Datasets asked about in one command, so that its words stay below the system's limit.
const BATCH: usize = 200;

/// Where a zvol is reachable; `zvol_id` of OpenZFS writes a space as `+`.
pub(crate) fn node_of(zvol: &DatasetName) -> PathBuf {
    Path::new("/dev/zvol").join(zvol.as_str().replace(' ', "+"))
}

/// Whether there is a block device.
pub(crate) fn is_node(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

impl ZfsStore {
    pub(crate) fn get_dataset(&self, dataset: &DatasetName) -> Result<DatasetInfo> {
        let found = self.get_datasets(std::slice::from_ref(dataset), &mounts::own()?)?;
        found.into_iter().next().ok_or(StoreError::NoDataset { dataset: dataset.clone() })
    }

    pub(crate) fn list_datasets(&self) -> Result<Vec<DatasetInfo>> {
        let args =
            ["list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", self.root.as_str()];
        let finished = self.zfs(&args, About::dataset(&self.root))?;
        let mut names = Vec::new();
        for row in parse::rows(&finished, 1)? {
            // `%recv` and the like are ZFS's own, and gone at any moment.
            if !row.str(0).contains('%') {
                names.push(row.dataset(0)?);
            }
        }
        names.sort();
        let mounts = mounts::own()?;
        let mut found = Vec::with_capacity(names.len());
        for batch in names.chunks(BATCH) {
            match self.get_datasets(batch, &mounts) {
                Ok(some) => found.extend(some),
                // One of them went away meanwhile: one by one, so that the others are still told.
                Err(StoreError::NoDataset { .. }) => {
                    for name in batch {
                        match self.get_datasets(std::slice::from_ref(name), &mounts) {
                            Ok(one) => found.extend(one),
                            Err(StoreError::NoDataset { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn get_datasets(&self, names: &[DatasetName], mounts: &[Mount]) -> Result<Vec<DatasetInfo>> {
        let found = match self.facts_by_library(names) {
            Some(found) => found?,
            None => self.facts_by_command(names)?,
        };
        let origins: Vec<SnapshotName> = found.iter().filter_map(|f| f.origin.clone()).collect();
        let origins = match origins.is_empty() {
            true => BTreeMap::new(),
            false => self.find_snapshots(&origins)?,
        };
        let info = |(name, facts): (&DatasetName, Facts)| {
            let mount = mounts.iter().find(|mount| mount.is_live_of(name));
            let zvol = facts.kind == DatasetKind::Zvol;
            let origin = facts.origin.and_then(|origin| origins.get(&origin));
            DatasetInfo {
                name: name.clone(),
                guid: facts.guid,
                kind: facts.kind,
                used_bytes: facts.used_bytes,
                referenced_bytes: facts.referenced_bytes,
                mounted_at: match zvol {
                    true => Some(node_of(name)).filter(|n| !facts.readonly && is_node(n)),
                    false => mount.map(|mount| mount.mountpoint.clone()),
                },
                writable: match zvol {
                    true => !facts.readonly,
                    false => mount.is_some_and(|mount| !mount.readonly),
                },
                origin: origin.map(|s| Origin { name: s.name.clone(), guid: s.guid }),
                encrypted: facts.encrypted,
            }
        };
        Ok(names.iter().zip(found).map(info).collect())
    }

    /// Of each, in their order.
    fn facts_by_command(&self, names: &[DatasetName]) -> Result<Vec<Facts>> {
        let Some(first) = names.first() else {
            return Ok(Vec::new());
        };
        let columns = if self.dialect.fuse { COLUMNS_FUSE } else { COLUMNS };
        let mut args = vec!["get", "-Hp", "-o", "name,property,value", columns];
        args.extend(names.iter().map(DatasetName::as_str));
        let finished = self.zfs(&args, About::dataset(first))?;
        let mut values: BTreeMap<&str, BTreeMap<&str, parse::Row<'_>>> = BTreeMap::new();
        for row in parse::rows(&finished, 3)? {
            values.entry(row.str(0)).or_default().insert(row.str(1), row);
        }
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let of =
                values.get(name.as_str()).ok_or(StoreError::NoDataset { dataset: name.clone() })?;
            let row = |property: &str| {
                of.get(property).ok_or_else(|| StoreError::Output {
                    command: finished.command.clone(),
                    detail: format!("no {property} of {name}"),
                })
            };
            let origin = of.get("origin").filter(|row| row.str(2).contains('@'));
            found.push(Facts {
                kind: kind(row("type")?)?,
                guid: Guid(row("guid")?.number(2)?),
                used_bytes: row("used")?.number(2)?,
                referenced_bytes: row("referenced")?.number(2)?,
                readonly: row("readonly")?.str(2) == "on",
                origin: origin.map(|row| row.snapshot(2)).transpose()?,
                encrypted: of
                    .get("encryption")
                    .is_some_and(|row| !matches!(row.str(2), "off" | "-")),
            });
        }
        Ok(found)
    }

    /// By the command; clones are looked for in the whole pool: those outside the root keep a snapshot, too.
    pub(crate) fn cloned_of(&self, dataset: &DatasetName) -> Result<BTreeSet<Guid>> {
        let args = ["list", "-H", "-r", "-t", "filesystem,volume", "-o", "origin", dataset.pool()];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let ours = format!("{dataset}@");
        let rows = parse::rows(&finished, 1)?;
        let names = rows.iter().filter(|row| row.str(0).starts_with(&ours));
        let names = names.map(|row| row.snapshot(0)).collect::<Result<Vec<SnapshotName>>>()?;
        if names.is_empty() {
            return Ok(BTreeSet::new());
        }
        Ok(self.find_snapshots(&names)?.into_values().map(|s| s.guid).collect())
    }

    pub(crate) fn get_space(&self, dataset: &DatasetName) -> Result<Space> {
        let mut at = dataset.clone();
        loop {
            let found = match self.space_by_library(&at) {
                Some(found) => found,
                None => self.space_by_command(&at),
            };
            match found {
                Err(StoreError::NoDataset { .. }) if at != self.root => {
                    at = at.parent().unwrap_or_else(|| self.root.clone());
                }
                found => return found,
            }
        }
    }

    fn space_by_command(&self, dataset: &DatasetName) -> Result<Space> {
        let args = ["get", "-Hp", "-o", "value", "available,used", dataset.as_str()];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let rows = parse::rows(&finished, 1)?;
        let [available, used] = &rows[..] else {
            return Err(StoreError::Output {
                command: finished.command.clone(),
                detail: "expected two lines".to_owned(),
            });
        };
        Ok(Space { available_bytes: available.number(0)?, used_bytes: used.number(0)? })
    }

    pub(crate) fn exists(&self, dataset: &DatasetName) -> Result<bool> {
        if let Some(found) =
            self.by_library(About::dataset(dataset), |lzc| lzc.stats(dataset.as_str()))
        {
            return found.map(|stats| stats.is_some());
        }
        match self.native(dataset, &["type"]) {
            Ok(_) => Ok(true),
            Err(StoreError::NoDataset { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the missing datasets above `dataset`, never mounted.
    pub(crate) fn create_parents(&self, dataset: &DatasetName) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = dataset.parent();
        while let Some(above) = at {
            if !above.is_within(&self.root) || self.exists(&above)? {
                break;
            }
            at = above.parent();
            missing.push(above);
        }
        for above in missing.iter().rev() {
            let args = ["create", "-o", "canmount=off", above.as_str()];
            match self.zfs(&args, About::dataset(above)) {
                // Another thread was faster.
                Ok(_) | Err(StoreError::Exists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn create_dataset(
        &self,
        dataset: &DatasetName,
        kind: DatasetKind,
    ) -> Result<DatasetInfo> {
        if kind != DatasetKind::Filesystem {
            // A zvol needs a size, which the trait does not carry; it arrives by receive.
            return Err(self.not_capable(format!("creating an empty {kind}")));
        }
        self.create_parents(dataset)?;
        let args = ["create", "-o", "canmount=noauto", dataset.as_str()];
        self.zfs(&args, About::dataset(dataset))?;
        self.get_dataset(dataset)
    }

    pub(crate) fn destroy_one_dataset(&self, dataset: &DatasetName) -> Result<()> {
        if *dataset == self.root {
            return Err(self.not_capable(format!("destroying {dataset}, its own root,")));
        }
        let inventory = self.list_inventory(dataset)?;
        self.refuse_if_kept(dataset, &inventory)?;
        self.unmount_at_rest(dataset)?;
        for snapshot in inventory.snapshots.iter().rev() {
            let name = snapshot.name.to_string();
            match self.zfs(&["destroy", &name], About::dataset(dataset)) {
                Ok(_) | Err(StoreError::NoSnapshot { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.zfs_patiently(&["destroy", dataset.as_str()], About::dataset(dataset))?;
        Ok(())
    }

    /// Holds, clones and children are found before anything is destroyed.
    fn refuse_if_kept(
        &self,
        dataset: &DatasetName,
        inventory: &flocker_store::Inventory,
    ) -> Result<()> {
        if let Some(held) = inventory.snapshots.iter().find(|s| s.holds > 0) {
            return Err(self.kept_by_holds(&held.name));
        }
        let args =
            ["list", "-H", "-r", "-t", "filesystem,volume", "-o", "name,origin", dataset.pool()];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let below = format!("{dataset}/");
        let origins = format!("{dataset}@");
        let mut by = Vec::new();
        for row in parse::rows(&finished, 2)? {
            if row.str(0).starts_with(&below) || row.str(1).starts_with(&origins) {
                by.push(row.str(0));
            }
        }
        if by.is_empty() {
            return Ok(());
        }
        Err(StoreError::Kept { name: dataset.to_string(), by: by.join(", ") })
    }

    pub(crate) fn rename_dataset(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        if *from == self.root || from.pool() != to.pool() {
            return Err(self.not_capable(format!("renaming {from} to {to}")));
        }
        if self.exists(to)? {
            // zfs-fuse would say busy.
            return Err(StoreError::Exists { name: to.to_string() });
        }
        if !self.exists(from)? {
            return Err(StoreError::NoDataset { dataset: from.clone() });
        }
        self.create_parents(to)?;
        let was_mounted = self.dialect.fuse && self.mounted_here(from)?.is_some();
        if was_mounted {
            // zfs-fuse says busy of whatever is mounted; OpenZFS mounts it anew by itself.
            self.unmount_at_rest(from)?;
        }
        let renamed =
            self.zfs_patiently(&["rename", from.as_str(), to.as_str()], About::dataset(from));
        if was_mounted {
            let now = if renamed.is_ok() { to } else { from };
            self.zfs(&["mount", now.as_str()], About::dataset(now))?;
        }
        renamed.map(|_| ())
    }

    /// Where the live data of a dataset is mounted in our own namespace.
    pub(crate) fn mounted_here(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        let own = mounts::own()?;
        let found = own.into_iter().find(|mount| mount.is_live_of(dataset));
        Ok(found.map(|mount| mount.mountpoint))
    }

    /// Unmounts a dataset nobody uses; [`StoreError::Busy`] names who does.
    pub(crate) fn unmount_at_rest(&self, dataset: &DatasetName) -> Result<()> {
        self.refuse_if_held(dataset)?;
        if self.mounted_here(dataset)?.is_some() {
            self.unmount(dataset)?;
        }
        Ok(())
    }
}

fn kind(row: &parse::Row<'_>) -> Result<DatasetKind> {
    match row.str(2) {
        "filesystem" => Ok(DatasetKind::Filesystem),
        "volume" => Ok(DatasetKind::Zvol),
        other => Err(row.unreadable(&format!("`{other}` is no kind of dataset"))),
    }
}
