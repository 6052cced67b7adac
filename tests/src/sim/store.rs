//! The model of a store: datasets with live data, snapshots, holds, local properties.
//!
//! It answers as the `Store` trait and ZFS do: a receive needs its base to be the newest snapshot
//! and the live data to be untouched; what was received in part is gone; a held snapshot cannot be
//! destroyed; a fence is refused while somebody holds the dataset. It survives every crash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use flocker_core::record::Mirror;
use flocker_store::{
    Bookmark, BookmarkName, Change, DatasetInfo, DatasetKind, DatasetName, Guid, HoldTag, Holder,
    Inventory, Origin, Partial, ReceiveSpec, SendBase, SendSpec, Snapshot, SnapshotName,
    StoreError,
};

use super::content::Content;

/// Bytes of a stream besides its data.
const STREAM_OVERHEAD_BYTES: u64 = 624;

type Result<T> = std::result::Result<T, StoreError>;

/// A snapshot in the model.
#[derive(Debug, Clone)]
pub struct Snap {
    /// The part behind the `@`.
    pub short: String,
    /// The same wherever it was received.
    pub guid: Guid,
    /// Orders snapshots of this store.
    pub createtxg: u64,
    /// By this store's clock.
    pub creation_unix_s: i64,
    /// See `flocker_store::Snapshot::fuzzy`.
    pub fuzzy: bool,
    /// Tags that keep it.
    pub holds: BTreeSet<HoldTag>,
    /// Its data.
    pub content: Content,
}

/// A bookmark in the model.
#[derive(Debug, Clone)]
pub struct Marked {
    /// Of the snapshot.
    pub guid: Guid,
    /// That snapshot's place.
    pub createtxg: u64,
    /// Bytes that it had.
    pub bytes: u64,
}

/// A dataset in the model.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its own guid in this store.
    pub guid: Guid,
    /// What it is.
    pub kind: DatasetKind,
    /// Its live data.
    pub live: Content,
    /// Not read-only; durable.
    pub writable: bool,
    /// Reachable; a filesystem's mount does not survive its host.
    pub mounted: bool,
    /// Oldest first.
    pub snapshots: Vec<Snap>,
    /// By their short names: what is left of snapshots, with how much data these had.
    pub bookmarks: BTreeMap<String, Marked>,
    /// Our local properties.
    pub mirror: Option<Mirror>,
    /// A process that is not the workload holds it open.
    pub foreign_holder: bool,
    /// Guid of the snapshot that it is a clone of.
    pub origin: Option<Guid>,
}

impl Dataset {
    /// Whether anybody could write it now.
    pub fn can_be_written(&self) -> bool {
        self.writable && self.mounted
    }

    /// The snapshot with this guid.
    pub fn snapshot(&self, guid: Guid) -> Option<&Snap> {
        self.snapshots.iter().find(|s| s.guid == guid)
    }

    fn bookmarks_as_reported(&self, name: &DatasetName) -> Vec<Bookmark> {
        let mut all: Vec<Bookmark> = (self.bookmarks.iter())
            .filter_map(|(short, marked)| {
                let name = BookmarkName::from_parts(name.clone(), short).ok()?;
                Some(Bookmark { name, guid: marked.guid, createtxg: marked.createtxg })
            })
            .collect();
        all.sort_by_key(|b| b.createtxg);
        all
    }

    fn named(&self, short: &str) -> Option<&Snap> {
        self.snapshots.iter().find(|s| s.short == short)
    }
}

/// A whole stream as it arrives.
#[derive(Debug, Clone)]
pub struct Stream {
    /// The base's guid; `None`: full.
    pub from: Option<Guid>,
    /// The snapshot it carries.
    pub to: Guid,
    /// What it is.
    pub kind: DatasetKind,
    /// Whether the snapshot is fuzzy; a received one stays so.
    pub fuzzy: bool,
    /// The data it ends in.
    pub content: Content,
    /// Its length.
    pub bytes: u64,
    /// The token of what it goes on with.
    pub resumes: Option<String>,
    /// When the snapshot was taken, by the sender's clock: it stays with it.
    pub creation_unix_s: i64,
}

/// What is left of an interrupted receive.
#[derive(Debug, Clone)]
pub struct Left {
    to: Guid,
    from: Option<Guid>,
    bytes: u64,
}

impl Left {
    fn token(&self) -> String {
        format!("{}-{}", self.to, self.bytes)
    }
}

/// One node's store.
#[derive(Debug, Clone)]
pub struct Store {
    /// By name.
    pub datasets: BTreeMap<DatasetName, Dataset>,
    /// What interrupted receives have left, by the dataset they went to, which need not exist otherwise.
    pub partials: BTreeMap<DatasetName, Left>,
    /// Nothing more fits.
    pub full: bool,
    next_guid: u64,
    txg: u64,
}

fn no_dataset(dataset: &DatasetName) -> StoreError {
    StoreError::NoDataset { dataset: dataset.clone() }
}

fn no_snapshot(name: &SnapshotName) -> StoreError {
    StoreError::NoSnapshot { name: name.to_string() }
}

impl Store {
    /// An empty store whose guids begin with `guid_base`, so that no two stores share one.
    pub fn new(guid_base: u64) -> Self {
        Self {
            datasets: BTreeMap::new(),
            partials: BTreeMap::new(),
            full: false,
            next_guid: guid_base,
            txg: 1,
        }
    }

    fn fresh_guid(&mut self) -> Guid {
        self.next_guid += 1;
        Guid(self.next_guid)
    }

    fn dataset(&self, name: &DatasetName) -> Result<&Dataset> {
        self.datasets.get(name).ok_or_else(|| no_dataset(name))
    }

    fn dataset_mut(&mut self, name: &DatasetName) -> Result<&mut Dataset> {
        self.datasets.get_mut(name).ok_or_else(|| no_dataset(name))
    }

    fn room(&self, dataset: &DatasetName) -> Result<()> {
        if self.full {
            return Err(StoreError::NoSpace {
                dataset: dataset.clone(),
                detail: "the disk is full".into(),
            });
        }
        Ok(())
    }

    /// A dataset as a person made it: mounted, writable, with data.
    pub fn create(&mut self, name: DatasetName, kind: DatasetKind, live: Content) {
        let dataset = Dataset {
            guid: self.fresh_guid(),
            kind,
            live,
            writable: true,
            mounted: true,
            snapshots: Vec::new(),
            bookmarks: BTreeMap::new(),
            mirror: None,
            foreign_holder: false,
            origin: None,
        };
        self.datasets.insert(name, dataset);
    }

    /// Another tool has brought a replica to the newest snapshot of `source`; it is mounted, read-only.
    pub fn replicate_by_hand(&mut self, replica: &DatasetName, source: &Dataset) {
        let guid = self.fresh_guid();
        self.txg += 1;
        let txg = self.txg;
        let kept = self.datasets.entry(replica.clone()).or_insert_with(|| Dataset {
            guid,
            writable: false,
            snapshots: Vec::new(),
            bookmarks: BTreeMap::new(),
            ..source.clone()
        });
        if let Some(newest) = source.snapshots.last() {
            kept.live = newest.content.clone();
            kept.snapshots.push(Snap { createtxg: txg, ..newest.clone() });
        }
    }

    /// The host lost its power: mounts are gone, data and properties are not.
    pub fn host_crashed(&mut self) {
        for dataset in self.datasets.values_mut() {
            dataset.foreign_holder = false;
            if dataset.kind != DatasetKind::Directory {
                dataset.mounted = false;
            }
        }
    }

    /// Sets a fenced dataset back to one of its snapshots; what was beyond it is kept under another name.
    pub fn set_aside(&mut self, keep: &SnapshotName, aside: &DatasetName) -> Result<bool> {
        let name = keep.dataset();
        let guid = self.fresh_guid();
        let old = self.dataset(name)?;
        if old.foreign_holder || old.can_be_written() {
            return Err(StoreError::Busy { dataset: name.clone(), holders: Vec::new() });
        }
        let at = old.snapshots.iter().position(|s| s.short == keep.short());
        let at = at.ok_or_else(|| no_snapshot(keep))?;
        self.partials.remove(name);
        let old = self.dataset(name)?;
        let kept = &old.snapshots[at];
        if at + 1 == old.snapshots.len() && old.live.stamp() == kept.content.stamp() {
            return Ok(false);
        }
        let fresh = Dataset {
            guid,
            live: kept.content.clone(),
            snapshots: old.snapshots[..=at].to_vec(),
            // A promotion leaves them where they are.
            bookmarks: BTreeMap::new(),
            mirror: old.mirror.clone().map(|m| Mirror { dataset_guid: guid, ..m }),
            ..old.clone()
        };
        let mut old = self.datasets.insert(name.clone(), fresh).ok_or_else(|| no_dataset(name))?;
        old.mirror = None;
        old.origin = None;
        old.snapshots.drain(..=at);
        self.datasets.insert(aside.clone(), old);
        Ok(true)
    }

    /// Renames a whole dataset away; `false`: there is none.
    ///
    /// # Errors
    /// Somebody may write it.
    pub fn put_away(&mut self, name: &DatasetName, aside: &DatasetName) -> Result<bool> {
        self.partials.remove(name);
        let Some(old) = self.datasets.get(name) else {
            return Ok(false);
        };
        if old.foreign_holder || old.can_be_written() {
            return Err(StoreError::Busy { dataset: name.clone(), holders: Vec::new() });
        }
        let Some(mut old) = self.datasets.remove(name) else {
            return Ok(false);
        };
        old.mirror = None;
        self.datasets.insert(aside.clone(), old);
        Ok(true)
    }

    fn snapshot_as_reported(name: &DatasetName, snap: &Snap) -> Option<Snapshot> {
        Some(Snapshot {
            name: name.snapshot(&snap.short).ok()?,
            guid: snap.guid,
            createtxg: snap.createtxg,
            creation_unix_s: snap.creation_unix_s,
            fuzzy: snap.fuzzy,
            holds: snap.holds.len() as u32,
        })
    }

    /// What `Action::Inspect` reports of a dataset that exists.
    pub fn inspect(&self, name: &DatasetName) -> Option<(DatasetInfo, Inventory, Option<Mirror>)> {
        let partial = self.partials.get(name).map(|left| Partial {
            token: left.token(),
            to: Some(left.to),
            from: left.from,
            bytes: left.bytes,
            compressed: false,
            large_blocks: false,
            raw: false,
        });
        let Some(dataset) = self.datasets.get(name) else {
            // Of a full stream: the dataset exists, and there is nothing in it yet.
            let info = DatasetInfo {
                name: name.clone(),
                guid: Guid(1),
                kind: DatasetKind::Filesystem,
                used_bytes: 0,
                referenced_bytes: 0,
                mounted_at: None,
                writable: false,
                encrypted: false,
                origin: None,
            };
            return Some((
                info,
                Inventory { partial: Some(partial?), ..Inventory::default() },
                None,
            ));
        };
        let info = DatasetInfo {
            name: name.clone(),
            guid: dataset.guid,
            kind: dataset.kind,
            used_bytes: dataset.live.bytes(),
            referenced_bytes: dataset.live.bytes(),
            mounted_at: dataset.mounted.then(|| path_of(name)),
            writable: dataset.can_be_written(),
            encrypted: false,
            origin: dataset.origin.and_then(|guid| {
                let name = self.find(guid, &[])?;
                Some(Origin { name, guid })
            }),
        };
        let inventory = Inventory {
            snapshots: dataset
                .snapshots
                .iter()
                .filter_map(|s| Self::snapshot_as_reported(name, s))
                .collect(),
            partial,
            bookmarks: dataset.bookmarks_as_reported(name),
            cloned: dataset
                .snapshots
                .iter()
                .map(|s| s.guid)
                .filter(|g| self.is_cloned(*g))
                .collect(),
        };
        Some((info, inventory, self.claim(name)))
    }

    /// The mirror on a dataset, where it is bound to that dataset.
    pub fn claim(&self, name: &DatasetName) -> Option<Mirror> {
        let dataset = self.datasets.get(name)?;
        dataset.mirror.clone().filter(|m| m.dataset_guid == dataset.guid)
    }

    /// Where a snapshot is; in any dataset, or in these and below.
    pub fn find(&self, guid: Guid, within: &[DatasetName]) -> Option<SnapshotName> {
        let near = |n: &&DatasetName| within.is_empty() || within.iter().any(|w| n.is_within(w));
        let mut all = self.datasets.iter().filter(|(name, _)| near(name));
        all.find_map(|(name, d)| name.snapshot(&d.snapshot(guid)?.short).ok())
    }

    fn is_cloned(&self, guid: Guid) -> bool {
        self.datasets.values().any(|d| d.origin == Some(guid))
    }

    /// A clone as a person made it: mounted, writable.
    pub fn clone_by_hand(&mut self, of: &SnapshotName, name: DatasetName) {
        let guid = self.fresh_guid();
        let Some(source) = self.datasets.get(of.dataset()) else { return };
        let Some(snap) = source.named(of.short()) else { return };
        let clone = Dataset {
            guid,
            live: snap.content.clone(),
            snapshots: Vec::new(),
            mirror: None,
            origin: Some(snap.guid),
            ..source.clone()
        };
        self.datasets.insert(name, clone);
    }

    /// Bytes used by everything within `root`.
    pub fn used_bytes(&self, root: &DatasetName) -> u64 {
        self.datasets
            .iter()
            .filter(|(name, _)| name.is_within(root))
            .map(|(_, d)| d.live.bytes())
            .sum()
    }

    /// Takes snapshots as one: all or none.
    ///
    /// # Errors
    /// No such dataset, the name is taken, no space.
    pub fn take_snapshots(
        &mut self,
        names: &[SnapshotName],
        fuzzy: bool,
        unix_s: i64,
    ) -> Result<Vec<Snapshot>> {
        for name in names {
            self.room(name.dataset())?;
            if self.dataset(name.dataset())?.named(name.short()).is_some() {
                return Err(StoreError::Exists { name: name.to_string() });
            }
        }
        self.txg += 1;
        let mut taken = Vec::new();
        for name in names {
            let snap = Snap {
                short: name.short().to_owned(),
                guid: self.fresh_guid(),
                createtxg: self.txg,
                creation_unix_s: unix_s,
                fuzzy,
                holds: BTreeSet::new(),
                content: self.dataset(name.dataset())?.live.clone(),
            };
            taken.extend(Self::snapshot_as_reported(name.dataset(), &snap));
            self.dataset_mut(name.dataset())?.snapshots.push(snap);
        }
        Ok(taken)
    }

    /// Puts a hold; one that is there already is fine.
    ///
    /// # Errors
    /// No such snapshot.
    pub fn hold(&mut self, tag: &HoldTag, name: &SnapshotName) -> Result<()> {
        let snap = self
            .dataset_mut(name.dataset())
            .ok()
            .and_then(|d| d.snapshots.iter_mut().find(|s| s.short == name.short()));
        match snap {
            Some(snap) => {
                snap.holds.insert(tag.clone());
                Ok(())
            }
            None => Err(no_snapshot(name)),
        }
    }

    /// Makes a bookmark; one that is there already is fine, since names are not used twice.
    ///
    /// # Errors
    /// No such snapshot.
    pub fn bookmark(&mut self, snapshot: &SnapshotName, name: &BookmarkName) -> Result<()> {
        let dataset = self.dataset_mut(snapshot.dataset())?;
        let snap = dataset.named(snapshot.short()).ok_or_else(|| no_snapshot(snapshot))?;
        let marked =
            Marked { guid: snap.guid, createtxg: snap.createtxg, bytes: snap.content.bytes() };
        dataset.bookmarks.entry(name.short().to_owned()).or_insert(marked);
        Ok(())
    }

    /// Destroys a bookmark; one that is not there is fine.
    pub fn destroy_bookmark(&mut self, name: &BookmarkName) {
        if let Some(dataset) = self.datasets.get_mut(name.dataset()) {
            dataset.bookmarks.remove(name.short());
        }
    }

    /// Takes a hold off; one that is not there is fine.
    pub fn release(&mut self, tag: &HoldTag, name: &SnapshotName) {
        if let Some(dataset) = self.datasets.get_mut(name.dataset()) {
            for snap in dataset.snapshots.iter_mut() {
                if snap.short == name.short() {
                    snap.holds.remove(tag);
                }
            }
        }
    }

    /// Destroys a snapshot; one that is not there is fine.
    ///
    /// # Errors
    /// It is held.
    pub fn destroy(&mut self, name: &SnapshotName) -> Result<()> {
        let Some(dataset) = self.datasets.get_mut(name.dataset()) else {
            return Ok(());
        };
        if let Some(snap) = dataset.named(name.short())
            && !snap.holds.is_empty()
        {
            let tags: Vec<String> = snap.holds.iter().map(ToString::to_string).collect();
            return Err(StoreError::Kept { name: name.to_string(), by: tags.join(", ") });
        }
        let guid = dataset.named(name.short()).map(|s| s.guid);
        if guid.is_some_and(|guid| self.is_cloned(guid)) {
            return Err(StoreError::Kept { name: name.to_string(), by: "a clone".into() });
        }
        if let Some(dataset) = self.datasets.get_mut(name.dataset()) {
            dataset.snapshots.retain(|s| s.short != name.short());
        }
        Ok(())
    }

    /// Whether the live data differs from a snapshot's.
    ///
    /// # Errors
    /// No such snapshot.
    pub fn changed_since(&self, name: &SnapshotName) -> Result<Change> {
        let dataset = self.dataset(name.dataset())?;
        let snap = dataset.named(name.short()).ok_or_else(|| no_snapshot(name))?;
        if snap.content.stamp() == dataset.live.stamp() {
            Ok(Change::Unchanged)
        } else {
            Ok(Change::Changed { bytes: dataset.live.bytes().saturating_sub(snap.content.bytes()) })
        }
    }

    /// Makes a dataset impossible to write.
    ///
    /// # Errors
    /// Somebody holds it (`workload_runs` counts as that); then nothing is changed.
    pub fn fence(&mut self, name: &DatasetName, workload_runs: bool) -> Result<()> {
        let dataset = self.dataset_mut(name)?;
        if dataset.foreign_holder || workload_runs {
            let (pid, command) = if workload_runs { (2, "workload") } else { (1, "vi") };
            return Err(StoreError::Busy {
                dataset: name.clone(),
                holders: vec![Holder { pid, command: command.into(), what: "open file".into() }],
            });
        }
        dataset.writable = false;
        dataset.mounted = dataset.kind == DatasetKind::Directory;
        Ok(())
    }

    /// Makes a dataset reachable and writable.
    ///
    /// # Errors
    /// No such dataset.
    pub fn activate(&mut self, name: &DatasetName) -> Result<PathBuf> {
        self.partials.remove(name);
        let dataset = self.dataset_mut(name)?;
        dataset.writable = true;
        dataset.mounted = true;
        Ok(path_of(name))
    }

    /// The stream that a send would produce now.
    ///
    /// # Errors
    /// The base or the target snapshot does not exist.
    pub fn send(&self, spec: &SendSpec) -> Result<Stream> {
        let dataset = self.dataset(spec.to.dataset())?;
        let to = dataset.named(spec.to.short()).ok_or_else(|| no_snapshot(&spec.to))?;
        let base = match &spec.from {
            None => None,
            Some(SendBase::Snapshot(name)) => {
                let of = self.dataset(name.dataset()).map_err(|_| no_snapshot(name))?;
                let base = of.named(name.short()).ok_or_else(|| no_snapshot(name))?;
                if of.guid != dataset.guid && dataset.origin != Some(base.guid) {
                    return Err(no_snapshot(name));
                }
                Some((base.guid, base.content.bytes()))
            }
            Some(SendBase::Bookmark(name)) => {
                let missing = || StoreError::NoSnapshot { name: name.to_string() };
                let marked = dataset.bookmarks.get(name.short()).ok_or_else(missing)?;
                Some((marked.guid, marked.bytes))
            }
        };
        let before = base.map_or(0, |(_, bytes)| bytes);
        if let Some(token) = &spec.resume
            && !token.starts_with(&format!("{}-", to.guid))
        {
            let detail = format!("{token} is of another snapshot");
            return Err(StoreError::BadToken { snapshot: spec.to.to_string(), detail });
        }
        let has = spec.resume.as_ref().and_then(|t| t.split_once('-')?.1.parse().ok()).unwrap_or(0);
        Ok(Stream {
            resumes: spec.resume.clone(),
            from: base.map(|(guid, _)| guid),
            to: to.guid,
            kind: dataset.kind,
            fuzzy: to.fuzzy,
            content: to.content.clone(),
            creation_unix_s: to.creation_unix_s,
            bytes: STREAM_OVERHEAD_BYTES + to.content.bytes().saturating_sub(before + has),
        })
    }

    /// What a receive checks before it begins and once more at its end.
    ///
    /// # Errors
    /// As `Store::receive`.
    pub fn check_receive(&self, spec: &ReceiveSpec, stream: &Stream) -> Result<()> {
        let damaged = |detail: &str| StoreError::BadStream {
            dataset: spec.dataset.clone(),
            detail: detail.into(),
        };
        if stream.to != spec.to_guid {
            return Err(damaged("it carries another snapshot than announced"));
        }
        if stream.from != spec.from_guid {
            return Err(damaged("it starts from another base than announced"));
        }
        self.room(&spec.dataset)?;
        if let Some(token) = &stream.resumes {
            let left = self.partials.get(&spec.dataset);
            if left.is_none_or(|left| left.token() != *token) {
                return Err(damaged("it goes on with what is not there"));
            }
        }
        match (self.datasets.get(&spec.dataset), stream.from) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(StoreError::Exists { name: spec.dataset.to_string() }),
            (None, Some(base)) => match &spec.origin {
                Some(origin) if self.find(base, &[]).as_ref() == Some(origin) => Ok(()),
                Some(_) => Err(StoreError::NoBase { dataset: spec.dataset.clone(), base }),
                None => Err(no_dataset(&spec.dataset)),
            },
            (Some(_), Some(_)) if spec.origin.is_some() => {
                Err(StoreError::Exists { name: spec.dataset.to_string() })
            }
            (Some(dataset), Some(base)) => check_increment(spec, dataset, base),
        }
    }

    /// A receive begins: what an earlier one has left is gone on with or is gone.
    pub fn begin_receive(&mut self, spec: &ReceiveSpec, stream: &Stream) {
        if stream.resumes.is_none() {
            self.partials.remove(&spec.dataset);
        }
    }

    /// A receive broke off somewhere on its way.
    pub fn break_off(&mut self, spec: &ReceiveSpec, stream: &Stream) {
        if spec.resumable {
            let before = self.partials.get(&spec.dataset).map_or(0, |left| left.bytes);
            let bytes = before + stream.bytes / 2;
            let left = Left { to: stream.to, from: stream.from, bytes };
            self.partials.insert(spec.dataset.clone(), left);
        }
    }

    /// Commits a whole stream.
    ///
    /// # Errors
    /// As [`Store::check_receive`]; the dataset is then at its last good snapshot.
    pub fn commit_receive(&mut self, spec: &ReceiveSpec, stream: &Stream) -> Result<Snapshot> {
        self.check_receive(spec, stream)?;
        self.partials.remove(&spec.dataset);
        self.txg += 1;
        let snap = Snap {
            short: spec.snapshot.short().to_owned(),
            guid: stream.to,
            createtxg: self.txg,
            creation_unix_s: stream.creation_unix_s,
            fuzzy: stream.fuzzy,
            holds: BTreeSet::new(),
            content: stream.content.clone(),
        };
        let reported = Self::snapshot_as_reported(&spec.dataset, &snap);
        if !self.datasets.contains_key(&spec.dataset) {
            let mut dataset = Dataset {
                guid: self.fresh_guid(),
                kind: stream.kind,
                live: Content::default(),
                writable: false,
                mounted: false,
                snapshots: Vec::new(),
                mirror: None,
                bookmarks: BTreeMap::new(),
                foreign_holder: false,
                origin: stream.from,
            };
            dataset.mounted = dataset.kind == DatasetKind::Directory;
            self.datasets.insert(spec.dataset.clone(), dataset);
        }
        let dataset = self.dataset_mut(&spec.dataset)?;
        dataset.live = stream.content.clone();
        dataset.snapshots.push(snap);
        reported.ok_or_else(|| no_snapshot(&spec.snapshot))
    }
}

fn check_increment(spec: &ReceiveSpec, dataset: &Dataset, base: Guid) -> Result<()> {
    let modified = |detail: String| StoreError::Modified { dataset: spec.dataset.clone(), detail };
    if dataset.snapshot(base).is_none() {
        return Err(StoreError::NoBase { dataset: spec.dataset.clone(), base });
    }
    if dataset.named(spec.snapshot.short()).is_some() {
        return Err(StoreError::Exists { name: spec.snapshot.to_string() });
    }
    match dataset.snapshots.last() {
        Some(newest) if newest.guid != base => {
            Err(modified(format!("{} is newer than the base", newest.short)))
        }
        Some(newest) if newest.content.stamp() != dataset.live.stamp() => {
            Err(modified("its live data was written".into()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Where a dataset is reachable in the model.
pub fn path_of(name: &DatasetName) -> PathBuf {
    PathBuf::from(format!("/{name}"))
}
