//! Snapshots and bookmarks: listing, taking, destroying.
//!
//! Owns: inventories and what changes them. Leaves to others: holds ([`crate::holds`]), rolling back
//! and comparing ([`crate::check`]).
//!
//! zfs-fuse prints guids of `zfs list` as `13.6E` and knows no `list -p`, so its inventory comes from
//! `zfs get -r -d 1`; it takes one snapshot a call, so a group is not atomic there and what was taken is
//! taken back when one fails.

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::store::Result;
use flocker_store::{
    Bookmark, BookmarkName, DatasetName, Guid, Inventory, Partial, Snapshot, SnapshotName,
    SnapshotSpec, StoreError,
};
use zfs_stream::token::ResumeToken;

use crate::ZfsStore;
use crate::errors::About;
use crate::parse::{self, Row};

/// Snapshots destroyed, or asked about, in one command.
const BATCH: usize = 100;

/// Beginning of the short names of snapshots that exist only while [`crate::check`] looks.
pub(crate) const PROBE_PREFIX: &str = "flocker-repl-probe-";

impl ZfsStore {
    pub(crate) fn list_inventory(&self, dataset: &DatasetName) -> Result<Inventory> {
        Ok(self.listed(dataset)?.0)
    }

    /// With those of its snapshots that have clones.
    pub(crate) fn list_with_clones(&self, dataset: &DatasetName) -> Result<Inventory> {
        match self.listed(dataset)? {
            (inventory, true) => Ok(inventory),
            (inventory, false) => Ok(Inventory { cloned: self.cloned_of(dataset)?, ..inventory }),
        }
    }

    /// The inventory, and whether that tells which of the snapshots have clones.
    fn listed(&self, dataset: &DatasetName) -> Result<(Inventory, bool)> {
        let by_library = self.inventory_by_library(dataset);
        let tells_clones = by_library.is_some();
        let mut inventory = if let Some(found) = by_library {
            found?
        } else if self.dialect.fuse {
            self.inventory_by_get(dataset)?
        } else {
            self.inventory_by_list(dataset)?
        };
        inventory.snapshots.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        inventory.bookmarks.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        Ok((inventory, tells_clones))
    }

    fn inventory_by_list(&self, dataset: &DatasetName) -> Result<Inventory> {
        let args = [
            "list",
            "-Hp",
            "-d",
            "1",
            "-t",
            "all",
            "-o",
            "name,guid,createtxg,creation,userrefs,receive_resume_token",
            dataset.as_str(),
        ];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        let mut inventory = Inventory::default();
        for row in parse::rows(&finished, 6)? {
            let name = row.str(0);
            if name == dataset.as_str() {
                inventory.partial = row.value(5).map(partial);
            } else if name.contains('@') {
                inventory.snapshots.push(snapshot(&row)?);
            } else if name.contains('#') {
                inventory.bookmarks.push(Bookmark {
                    name: name.parse()?,
                    guid: Guid(row.number(1)?),
                    createtxg: row.number(2)?,
                });
            }
        }
        Ok(inventory)
    }

    fn inventory_by_get(&self, dataset: &DatasetName) -> Result<Inventory> {
        let args = [
            "get",
            "-Hp",
            "-r",
            "-d",
            "1",
            "-o",
            "name,property,value",
            SNAPSHOT_COLUMNS,
            dataset.as_str(),
        ];
        let finished = self.zfs(&args, About::dataset(dataset))?;
        Ok(Inventory {
            snapshots: gather(&parse::rows(&finished, 3)?)?.into_values().collect(),
            ..Inventory::default()
        })
    }

    /// Snapshots by name; those that do not exist are left out.
    pub(crate) fn find_snapshots(
        &self,
        names: &[SnapshotName],
    ) -> Result<BTreeMap<SnapshotName, Snapshot>> {
        let mut found = BTreeMap::new();
        for batch in names.chunks(BATCH) {
            if let Some(some) = self.find_by_library(batch) {
                found.extend(some?);
                continue;
            }
            let words: Vec<String> = batch.iter().map(ToString::to_string).collect();
            let mut args = vec!["get", "-Hp", "-o", "name,property,value", SNAPSHOT_COLUMNS];
            args.extend(words.iter().map(String::as_str));
            let finished = self.runner.run(crate::run::Program::Zfs, &args)?;
            if !finished.ending.is_success() {
                // The command goes on after a name that does not exist; any other trouble is one.
                match crate::errors::explain(&finished, About::dataset(batch[0].dataset())) {
                    StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. } => {}
                    error => return Err(error),
                }
            }
            found.extend(gather(&parse::rows(&finished, 3)?)?);
        }
        Ok(found)
    }

    pub(crate) fn find_snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        self.find_snapshots(std::slice::from_ref(name))?
            .remove(name)
            .ok_or_else(|| StoreError::NoSnapshot { name: name.to_string() })
    }

    pub(crate) fn take_snapshots(&self, spec: &SnapshotSpec) -> Result<Vec<Snapshot>> {
        let Some(first) = spec.names.first() else {
            return Ok(Vec::new());
        };
        let options: Vec<String> = spec
            .properties
            .iter()
            .flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")])
            .collect();
        let words: Vec<String> = spec.names.iter().map(ToString::to_string).collect();
        let run = |names: &[String]| {
            let mut args = vec!["snapshot"];
            args.extend(options.iter().chain(names).map(String::as_str));
            self.zfs(&args, About::dataset(first.dataset()))
        };
        let at_rest: Vec<bool> =
            spec.names.iter().map(|name| self.is_at_rest(name.dataset())).collect();
        if self.dialect.fuse {
            for (done, word) in words.iter().enumerate() {
                if let Err(error) = run(std::slice::from_ref(word)) {
                    self.take_back(&spec.names[..done]);
                    return Err(error);
                }
            }
        } else {
            let about = About::dataset(first.dataset());
            match self.by_library(about, |lzc| lzc.snapshot(&words, &spec.properties)) {
                Some(outcome) => outcome.map_err(|error| no_dataset(error, first))?,
                None => run(&words).map(drop)?,
            }
        }
        self.note_snapshots(&spec.names, &at_rest);
        let mut found = self.find_snapshots(&spec.names)?;
        spec.names
            .iter()
            .map(|name| {
                found.remove(name).ok_or_else(|| StoreError::NoSnapshot { name: name.to_string() })
            })
            .collect()
    }

    /// Undoes a group of which one member failed; what cannot be undone is reported, not hidden.
    fn take_back(&self, names: &[SnapshotName]) {
        for name in names {
            let word = name.to_string();
            if let Err(error) = self.zfs(&["destroy", &word], About::dataset(name.dataset())) {
                tracing::warn!(snapshot = %word, %error, "left behind by a group that failed");
            }
        }
    }

    pub(crate) fn destroy_some_snapshots(&self, snapshots: &[SnapshotName]) -> Result<()> {
        for name in snapshots {
            self.refuse_ranges(name)?;
        }
        self.forget_snapshots(snapshots);
        let mut by_dataset: BTreeMap<&DatasetName, BTreeSet<&SnapshotName>> = BTreeMap::new();
        for name in snapshots {
            by_dataset.entry(name.dataset()).or_default().insert(name);
        }
        let mut kept = None;
        for (dataset, wanted) in by_dataset {
            let inventory = match self.list_inventory(dataset) {
                Ok(inventory) => inventory,
                Err(StoreError::NoDataset { .. }) => continue,
                Err(error) => return Err(error),
            };
            let there = inventory.snapshots.iter().filter(|s| wanted.contains(&s.name));
            let (held, free): (Vec<_>, Vec<_>) = there.partition(|s| s.holds > 0);
            let names: Vec<&SnapshotName> = free.iter().map(|s| &s.name).collect();
            if let Err(error) = self.destroy_in(dataset, &names) {
                kept = Some(error);
            } else if let Some(snapshot) = held.first() {
                kept = Some(self.kept_by_holds(&snapshot.name));
            }
        }
        kept.map_or(Ok(()), Err)
    }

    /// Destroys snapshots of one dataset that are known to exist.
    fn destroy_in(&self, dataset: &DatasetName, names: &[&SnapshotName]) -> Result<()> {
        let each = if self.dialect.fuse { 1 } else { BATCH };
        let mut failed = None;
        for batch in names.chunks(each) {
            match self.destroy_batch(dataset, batch) {
                // One of them has a clone, or somebody has put a hold on since we looked, and all stay: then each by
                // itself.
                Err(
                    StoreError::Exists { .. } | StoreError::Busy { .. } | StoreError::Kept { .. },
                ) if batch.len() > 1 => {
                    for one in batch.chunks(1) {
                        if let Err(error) = self.destroy_batch(dataset, one) {
                            failed = Some(self.why_not_destroyed(one, error));
                        }
                    }
                }
                Err(error) => failed = Some(self.why_not_destroyed(batch, error)),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn destroy_batch(&self, dataset: &DatasetName, batch: &[&SnapshotName]) -> Result<()> {
        let about = About::dataset(dataset);
        let outcome = self.by_library(about, |lzc| {
            let words: Vec<String> = batch.iter().map(ToString::to_string).collect();
            lzc.destroy_snapshots(&words, false)
        });
        let outcome = outcome.unwrap_or_else(|| {
            let shorts: Vec<&str> = batch.iter().map(|name| name.short()).collect();
            let word = format!("{dataset}@{}", shorts.join(","));
            self.zfs(&["destroy", &word], about).map(drop)
        });
        match outcome {
            Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    fn why_not_destroyed(&self, names: &[&SnapshotName], error: StoreError) -> StoreError {
        match error {
            StoreError::Exists { .. } | StoreError::Busy { .. } => self.why_kept(names),
            error => error,
        }
    }

    fn why_kept(&self, names: &[&SnapshotName]) -> StoreError {
        let held = names.iter().find(|name| self.find_snapshot(name).is_ok_and(|s| s.holds > 0));
        match held {
            Some(name) => self.kept_by_holds(name),
            None => StoreError::Kept {
                name: names.first().map(ToString::to_string).unwrap_or_default(),
                by: "a clone of it, a mount of it, or a send".to_owned(),
            },
        }
    }

    /// `zfs destroy` takes `a%b` for everything from a to b, and `%` for everything.
    fn refuse_ranges(&self, name: &SnapshotName) -> Result<()> {
        if name.short().contains(['%', ',']) {
            return Err(self.not_capable(format!("destroying {name} by its name")));
        }
        Ok(())
    }

    pub(crate) fn make_bookmark(
        &self,
        snapshot: &SnapshotName,
        bookmark: &BookmarkName,
    ) -> Result<()> {
        if !self.dialect.bookmarks {
            return Err(self.not_capable("a bookmark"));
        }
        let (from, to) = (snapshot.to_string(), bookmark.to_string());
        let about = About::dataset(snapshot.dataset());
        let by_library =
            self.by_library(about, |lzc| lzc.bookmark(&[(to.clone(), from.clone())].into()));
        if let Some(outcome) = by_library {
            return outcome;
        }
        self.zfs(&["bookmark", &from, &to], About::dataset(snapshot.dataset())).map_err(
            |error| match error {
                StoreError::Exists { .. } => StoreError::Exists { name: to.clone() },
                other => other,
            },
        )?;
        Ok(())
    }

    pub(crate) fn destroy_some_bookmarks(&self, bookmarks: &[BookmarkName]) -> Result<()> {
        if !self.dialect.bookmarks {
            return Err(self.not_capable("a bookmark"));
        }
        let words: Vec<String> = bookmarks.iter().map(ToString::to_string).collect();
        if let Some(first) = bookmarks.first()
            && let Some(outcome) = self
                .by_library(About::dataset(first.dataset()), |lzc| lzc.destroy_bookmarks(&words))
        {
            return match outcome {
                Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) | Ok(()) => {
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        for bookmark in bookmarks {
            let word = bookmark.to_string();
            match self.zfs(&["destroy", &word], About::dataset(bookmark.dataset())) {
                Ok(_) | Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Where a snapshot was to be taken, what does not exist is its dataset.
fn no_dataset(error: StoreError, of: &SnapshotName) -> StoreError {
    match error {
        StoreError::NoSnapshot { .. } => StoreError::NoDataset { dataset: of.dataset().clone() },
        error => error,
    }
}

/// What a resume token says of the receive that left it.
pub(crate) fn partial(token: &str) -> Partial {
    let read = token.parse::<ResumeToken>();
    if let Err(error) = &read {
        tracing::warn!(%error, "what arrived of a receive can only be discarded");
    }
    let fields = read.as_ref().ok();
    Partial {
        token: token.to_owned(),
        to: fields.map(|t| Guid(t.to_guid)),
        from: fields.and_then(|t| t.from_guid).map(Guid),
        bytes: fields.map_or(0, |t| t.bytes),
        compressed: fields.is_some_and(|t| t.compress_ok),
        large_blocks: fields.is_some_and(|t| t.large_block_ok),
        raw: fields.is_some_and(|t| t.raw_ok),
    }
}

/// Columns of a [`Snapshot`] for `zfs get`.
const SNAPSHOT_COLUMNS: &str = "guid,createtxg,creation,userrefs";

fn snapshot(row: &Row<'_>) -> Result<Snapshot> {
    Ok(Snapshot {
        name: row.snapshot(0)?,
        guid: Guid(row.number(1)?),
        createtxg: row.number(2)?,
        creation_unix_s: row.number(3)?,
        fuzzy: false,
        holds: row.number_or(4, 0)?,
    })
}

/// Puts the lines of `zfs get` together to snapshots; lines about datasets are passed over.
fn gather(rows: &[Row<'_>]) -> Result<BTreeMap<SnapshotName, Snapshot>> {
    let mut found: BTreeMap<SnapshotName, (Snapshot, u8)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.str(0).contains('@')) {
        let name = row.snapshot(0)?;
        let (snapshot, seen) = found.entry(name.clone()).or_insert_with(|| {
            let blank = Snapshot {
                name,
                guid: Guid(0),
                createtxg: 0,
                creation_unix_s: 0,
                fuzzy: false,
                holds: 0,
            };
            (blank, 0)
        });
        match row.str(1) {
            "guid" => snapshot.guid = Guid(row.number(2)?),
            "createtxg" => snapshot.createtxg = row.number(2)?,
            "creation" => snapshot.creation_unix_s = row.number(2)?,
            "userrefs" => snapshot.holds = row.number_or(2, 0)?,
            other => return Err(row.unreadable(&format!("{other} was not asked for"))),
        }
        *seen += 1;
    }
    // One that was destroyed while it was listed may have lost some of its lines.
    let whole = found.into_iter().filter(|(_, (_, seen))| *seen == 4);
    Ok(whole.map(|(name, (snapshot, _))| (name, snapshot)).collect())
}
