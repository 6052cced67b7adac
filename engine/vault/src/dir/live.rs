//! The live data of a directory volume, or of a zvol: from state to state, durably. What is called a tree here
//! is a directory of the one and a disk image of the other.
//!
//! Owns: the renames between `live/` and `hidden/` and the rows that go with them, in such an order that what
//! a crash leaves can be told apart (see [`Directory::settle`]). Leaves reading and writing trees to
//! [`super::scan`] and [`super::checkout`], and images to [`super::image`].
//!
//! Order: to fence, the rename comes first and the row second; to open, the row comes first. So whenever the
//! row says Clean, the tree was not reachable since it was checked out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flocker_store::{DatasetKind, DatasetName, StoreError};

use super::checkout::{self, Place};
use super::holders::{self, Look};
use super::image;
use super::scan::{self, Scanned};
use super::seen;
use crate::blocks::{ReadBlocks, Session, sync_dir};
use crate::fault;
use crate::inner::Inner;
use crate::layout;
use crate::lock::TurnGuard;
use crate::meta::{Change, DatasetId, DatasetRecord, Live, View};
use crate::objset::SetRoot;

type Result<T> = std::result::Result<T, StoreError>;

/// One directory volume, with the turn at it.
pub(crate) struct Directory {
    inner: Arc<Inner>,
    pub(crate) id: DatasetId,
    pub(crate) name: DatasetName,
    pub(crate) state: Live,
    kind: DatasetKind,
    _turn: TurnGuard,
}

fn io(path: &Path, e: std::io::Error) -> StoreError {
    StoreError::io(format!("moving {}", path.display()), e)
}

/// What cannot be looked at is not gone.
fn exists(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io(format!("looking at {}", path.display()), e)),
    }
}

impl Directory {
    /// Takes the turn at a directory volume, and puts right what a crash left.
    pub(crate) fn enter(inner: &Arc<Inner>, id: DatasetId, name: &DatasetName) -> Result<Self> {
        let turn = inner.turns.wait(id);
        // It may have been renamed or destroyed while we waited.
        let (now, record): (DatasetId, DatasetRecord) = View::new(&inner.db)?.dataset(name)?;
        if now != id {
            return Err(StoreError::NoDataset { dataset: name.clone() });
        }
        let mut directory = Directory {
            inner: inner.clone(),
            id,
            name: name.clone(),
            state: record.live,
            kind: record.kind,
            _turn: turn,
        };
        directory.settle()?;
        Ok(directory)
    }

    /// The path a workload uses.
    pub(crate) fn live_path(&self) -> PathBuf {
        layout::live(&self.inner.path, &self.name)
    }

    fn place(&self) -> Place {
        let hidden = layout::hidden(&self.inner.path, self.id);
        Place { tree: hidden.join("tree"), stage: hidden.join("stage") }
    }

    /// Where the tree is now, if there is one.
    pub(crate) fn tree_path(&self) -> Option<PathBuf> {
        match self.state {
            Live::Open => Some(self.live_path()),
            Live::Fenced | Live::Clean(_) => Some(self.place().tree),
            Live::Absent | Live::Updating => None,
        }
    }

    /// Makes the row say what the disk says.
    fn settle(&mut self) -> Result<()> {
        let (open, hidden) = (exists(&self.live_path())?, exists(&self.place().tree)?);
        let state = match (self.state, open, hidden) {
            (Live::Open, true, false) => Live::Open,
            // Between a rename and its row, in either direction: it was reachable, so it is not clean.
            (Live::Open, false, true) => Live::Fenced,
            (Live::Open, true, true) => {
                return Err(StoreError::Corrupt {
                    path: self.live_path(),
                    detail: format!(
                        "the volume is there and at {} too; remove the one that is not wanted",
                        self.place().tree.display()
                    ),
                });
            }
            (Live::Fenced, false, true) => Live::Fenced,
            (Live::Fenced, true, false) => Live::Open,
            (Live::Clean(root), _, true) => Live::Clean(root),
            (Live::Updating, _, _) | (Live::Absent, _, true) => {
                self.discard()?;
                Live::Absent
            }
            (Live::Fenced, true, true) => Live::Fenced,
            (Live::Absent, _, false) => Live::Absent,
            // What was written there is nowhere else: nothing is snapshotted, fenced or moved on
            // the strength of an older snapshot.
            (Live::Open, false, false) => return Err(self.gone(self.live_path())),
            (Live::Fenced, false, false) => return Err(self.gone(self.place().tree)),
            // A checkout that nobody has used can be made again.
            (Live::Clean(_), false, false) => Live::Absent,
            (Live::Clean(_), true, false) => Live::Open,
        };
        if state != self.state {
            self.set_state(state)?;
        }
        Ok(())
    }

    fn gone(&self, path: PathBuf) -> StoreError {
        let detail = format!(
            "the live directory of {} is gone; move it back (nothing is replicated or moved until \
             then, the snapshots remain)",
            self.name
        );
        StoreError::Corrupt { path, detail }
    }

    /// Writes the state durably.
    fn set_state(&mut self, state: Live) -> Result<()> {
        let txn = self.inner.db.write()?;
        Change::new(&self.inner.db, &txn).edit_dataset(self.id, |record| record.live = state)?;
        self.inner.db.commit(txn)?;
        self.state = state;
        Ok(())
    }

    /// Removes the hidden tree and what is known of its files.
    fn discard(&mut self) -> Result<()> {
        checkout::remove_tree(&layout::hidden(&self.inner.path, self.id))?;
        let txn = self.inner.db.write()?;
        Change::new(&self.inner.db, &txn).forget_seen(self.id)?;
        self.inner.db.commit(txn)
    }

    /// Reads the tree into an object set over that of the newest snapshot; `None` where there is no tree.
    pub(crate) fn scan(&self, session: &Session) -> Result<Option<Scanned>> {
        let Some(path) = self.tree_path() else {
            return Ok(None);
        };
        let previous = self.newest()?.unwrap_or_default();
        let scan = if self.kind == DatasetKind::Zvol { image::scan } else { scan::scan };
        scan(&self.inner.db, session, self.id, previous, &path).map(Some)
    }

    /// Bytes that may have been written to the live data since a snapshot; `None` where there is none.
    pub(crate) fn changed_bytes(&self, snapshot: SetRoot) -> Result<Option<u64>> {
        let Some(path) = self.tree_path() else {
            return Ok(None);
        };
        let (db, pin) = (&self.inner.db, self.inner.blocks.pin());
        let changed = match self.kind {
            DatasetKind::Zvol => image::changed_bytes(db, &pin, self.id, snapshot, &path),
            DatasetKind::Directory | DatasetKind::Filesystem => {
                scan::changed_bytes(db, &pin, self.id, snapshot, &path)
            }
        };
        changed.map(Some)
    }

    /// Refuses what cannot be used here: what is not whole yet, or sealed.
    pub(crate) fn can_live(&self) -> Result<()> {
        let not_capable = |what: &str| StoreError::NotCapable {
            store: self.inner.describe(),
            what: format!("using {} here: {what}", self.name),
        };
        let view = View::new(&self.inner.db)?;
        match (view.latest(self.id)?, self.kind) {
            (None, _) if view.dataset(&self.name)?.1.partial.is_some() => {
                Err(not_capable("only a part of it has arrived"))
            }
            (None, DatasetKind::Zvol) => Err(not_capable("it holds no data")),
            (Some(newest), DatasetKind::Zvol) if newest.dialect.is_sealed() => {
                Err(not_capable("its blocks are sealed, and the key is not here"))
            }
            (None | Some(_), _) => Ok(()),
        }
    }

    /// The object set of the newest snapshot.
    pub(crate) fn newest(&self) -> Result<Option<SetRoot>> {
        let latest = View::new(&self.inner.db)?.latest(self.id)?;
        Ok(latest.map(|snapshot| snapshot.root))
    }

    /// What a snapshot taken now holds, and whether a workload may be writing meanwhile.
    pub(crate) fn freeze(&self, session: &Session) -> Result<(Scanned, bool)> {
        let at_rest = |root| Scanned { root, seen: Default::default() };
        match self.state {
            Live::Open => {
                let scanned = self.scan(session)?;
                Ok((scanned.unwrap_or_else(|| at_rest(SetRoot::default())), true))
            }
            Live::Fenced => {
                let scanned = self.scan(session)?;
                Ok((scanned.unwrap_or_else(|| at_rest(SetRoot::default())), false))
            }
            Live::Clean(root) => Ok((at_rest(root), false)),
            Live::Absent | Live::Updating => {
                Ok((at_rest(self.newest()?.unwrap_or_default()), false))
            }
        }
    }

    /// Makes the live data reachable at its path.
    pub(crate) fn activate(&mut self) -> Result<PathBuf> {
        let path = self.live_path();
        if self.state == Live::Open {
            return Ok(path);
        }
        self.can_live()?;
        self.prepare()?;
        let place = self.place();
        if self.state == Live::Absent {
            // Never had a snapshot: an empty directory.
            self.make_hidden()?;
            std::fs::create_dir_all(&place.tree).map_err(|e| io(&place.tree, e))?;
        }
        self.path_is_free(&path)?;
        let parent = path.parent().unwrap_or(&self.inner.path).to_owned();
        std::fs::create_dir_all(&parent).map_err(|e| io(&parent, e))?;
        self.make_way(&path)?;
        self.wait_for_the_grain();
        self.set_state(Live::Open)?;
        fault::point("activate-rename", &self.inner.path)?;
        self.rename_tree(&place.tree, &path)?;
        self.sync_live_names(&parent)?;
        Ok(path)
    }

    /// All of [`Directory::activate`] but for the rename.
    pub(crate) fn rehearse(&mut self) -> Result<()> {
        if self.state == Live::Open {
            return Ok(());
        }
        self.can_live()?;
        self.prepare()?;
        self.path_is_free(&self.live_path())
    }

    fn make_hidden(&self) -> Result<()> {
        let hidden = layout::hidden(&self.inner.path, self.id);
        match std::fs::create_dir(&hidden) {
            Ok(()) => sync_dir(&self.inner.path.join("hidden")),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(io(&hidden, e)),
        }
    }

    fn path_is_free(&self, path: &Path) -> Result<()> {
        let taken = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) => e.kind() != std::io::ErrorKind::NotFound,
        };
        if taken {
            return Err(StoreError::Busy {
                dataset: self.name.clone(),
                holders: vec![flocker_store::Holder {
                    pid: 0,
                    command: "path".to_owned(),
                    what: format!("{} holds something else", path.display()),
                }],
            });
        }
        Ok(())
    }

    /// A directory takes the place of an empty one; an image does not.
    fn make_way(&self, path: &Path) -> Result<()> {
        if self.kind != DatasetKind::Zvol {
            return Ok(());
        }
        match std::fs::remove_dir(path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io(path, e)),
        }
    }

    /// A write in the very tick of the checkout could keep the file's times: let that tick pass.
    fn wait_for_the_grain(&self) {
        let written =
            std::fs::symlink_metadata(self.place().tree).map(|meta| scan::stamp_of(&meta)).ok();
        // The root directory is settled last, so its change time is the latest of the checkout.
        if written.is_some_and(|stamp| !stamp.is_settled(SystemTime::now())) {
            std::thread::sleep(seen::GRAIN);
        }
    }

    /// Renames the tree and keeps its times, which some file systems change when `..` changes.
    fn rename_tree(&self, from: &Path, to: &Path) -> Result<()> {
        if self.kind == DatasetKind::Zvol {
            return image::rename(&self.inner.db, self.id, from, to);
        }
        let before = std::fs::symlink_metadata(from).and_then(|meta| meta.modified());
        std::fs::rename(from, to).map_err(|e| io(from, e))?;
        if let (Ok(before), Ok(tree)) = (before, std::fs::File::open(to))
            && tree.metadata().and_then(|m| m.modified()).ok() != Some(before)
            && let Err(error) = tree.set_modified(before)
        {
            tracing::debug!(%error, path = %to.display(), "the directory's own time changed");
        }
        Ok(())
    }

    fn sync_live_names(&self, parent: &Path) -> Result<()> {
        let mut dir = parent.to_owned();
        // Every directory above may have been made just now.
        while dir.starts_with(&self.inner.path) {
            sync_dir(&dir)?;
            if !dir.pop() {
                break;
            }
        }
        sync_dir(&layout::hidden(&self.inner.path, self.id))
    }

    /// Moves the live data to where nobody's path leads, unless somebody holds it.
    pub(crate) fn fence(&mut self) -> Result<()> {
        if self.state != Live::Open {
            return Ok(());
        }
        let (live, place) = (self.live_path(), self.place());
        let busy = |holders| StoreError::Busy { dataset: self.name.clone(), holders };
        let before = holders::real(&live);
        let found = holders::find(&[&before], Look::Glance);
        if !found.is_empty() {
            return Err(busy(found));
        }
        self.make_hidden()?;
        self.rename_tree(&live, &place.tree)?;
        // Whoever came by path between the look and the rename holds it now.
        let after = holders::real(&place.tree);
        let found = holders::find(&[&after, &before], Look::Whole);
        if !found.is_empty() {
            self.rename_tree(&place.tree, &live)?;
            return Err(busy(found));
        }
        fault::point("fence-renamed", &self.inner.path)?;
        // Nothing above was made: the two directories that the name went from and to.
        sync_dir(live.parent().unwrap_or(&self.inner.path))?;
        sync_dir(&layout::hidden(&self.inner.path, self.id))?;
        self.set_state(Live::Fenced)
    }

    /// Brings a tree that nobody uses to the newest snapshot.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        let Some(to) = self.newest()? else {
            return Ok(());
        };
        let from = match self.state {
            Live::Open | Live::Fenced => return Ok(()),
            Live::Clean(root) if root == to => return Ok(()),
            Live::Clean(root) => Some(root),
            Live::Absent | Live::Updating => None,
        };
        let pin = self.inner.blocks.pin();
        self.become_set(&pin, from, to)
    }

    /// Makes the hidden tree hold `to`; it holds `from`, or does not exist.
    fn become_set(
        &mut self,
        blocks: &impl ReadBlocks,
        from: Option<SetRoot>,
        to: SetRoot,
    ) -> Result<()> {
        if from.is_none() {
            self.discard()?;
        }
        self.make_hidden()?;
        self.set_state(Live::Updating)?;
        fault::point("checkout", &self.inner.path)?;
        let (place, stop) = (self.place(), &self.inner.stopping);
        let outcome = match self.kind {
            DatasetKind::Zvol => image::checkout(blocks, &place.tree, from, to),
            DatasetKind::Directory | DatasetKind::Filesystem => {
                checkout::checkout(&self.inner.db, blocks, self.id, &place, from, to, stop)
            }
        };
        let outcome = outcome.and_then(|mut seen| {
            fault::point("checkout-synced", &self.inner.path)?;
            let txn = self.inner.db.write()?;
            seen.write(&self.inner.db, &txn, self.id)?;
            Change::new(&self.inner.db, &txn)
                .edit_dataset(self.id, |record| record.live = Live::Clean(to))?;
            self.inner.db.commit(txn)
        });
        match outcome {
            Ok(()) => {
                self.state = Live::Clean(to);
                Ok(())
            }
            Err(error) => {
                if self.discard().is_ok() {
                    self.set_state(Live::Absent)?;
                }
                Err(crate::inner::no_space(&self.name, error))
            }
        }
    }

    /// The proof that the tree holds exactly this set: read again as far as anything could have changed.
    pub(crate) fn differs_from(&self, snapshot: SetRoot) -> Result<Option<String>> {
        let session = self.inner.blocks.session();
        let root = match self.scan(&session)? {
            Some(scanned) => scanned.root,
            None => match self.state {
                Live::Clean(root) => root,
                _ => self.newest()?.unwrap_or_default(),
            },
        };
        if root == snapshot {
            return Ok(None);
        }
        match self.kind {
            DatasetKind::Zvol => image::describe(&session, snapshot, root).map(Some),
            DatasetKind::Directory | DatasetKind::Filesystem => {
                describe(&session, snapshot, root).map(Some)
            }
        }
    }

    /// Lets a tree that equals a set be the base of the next checkout.
    pub(crate) fn rest(&mut self, root: SetRoot) -> Result<()> {
        match self.state {
            Live::Fenced => self.set_state(Live::Clean(root)),
            _ => Ok(()),
        }
    }

    /// Sets the tree back to a set, whatever was written.
    pub(crate) fn roll_back(&mut self, to: SetRoot) -> Result<()> {
        let was_open = self.state == Live::Open;
        self.fence()?;
        if self.state == Live::Fenced {
            let session = self.inner.blocks.session();
            if let Some(scanned) = self.scan(&session)?
                && scanned.root != to
            {
                self.become_set(&session, Some(scanned.root), to)?;
            } else {
                self.rest(to)?;
            }
        }
        if was_open {
            self.activate()?;
        }
        Ok(())
    }

    /// Removes the live data for good.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.fence()?;
        self.discard()
    }
}

/// Names a few of the files in which two sets differ.
fn describe(blocks: &impl ReadBlocks, from: SetRoot, to: SetRoot) -> Result<String> {
    const NAMED: usize = 5;
    let (mut names, mut count) = (Vec::new(), 0u64);
    crate::tree::diff(blocks, from.objects, to.objects, &mut |number,
                                                              before,
                                                              after: Option<
        crate::hash::Hash,
    >| {
        count += 1;
        if names.len() < NAMED {
            let what = match (before, after) {
                (None, _) => "made",
                (_, None) => "removed",
                _ => "written",
            };
            let name = match after.or(before) {
                Some(hash) => super::inode::Inode::load(blocks, &hash)?.1.links,
                None => Vec::new(),
            };
            let name = name.first().map_or_else(
                || format!("object {number}"),
                |link| String::from_utf8_lossy(&link.name).into_owned(),
            );
            names.push(format!("{name} was {what}"));
        }
        Ok(())
    })?;
    let more = if count > names.len() as u64 {
        format!(" and {} more", count - names.len() as u64)
    } else {
        String::new()
    };
    Ok(format!("{}{more}", names.join(", ")))
}
