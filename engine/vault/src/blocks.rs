//! The block store: named blocks in packs, with an index.
//!
//! ```text
//!   Session ── put ──▶ overlay (blocks of this session) ──▶ its own pack, appended
//!      │                                                            │
//!      └─ commit: sync the pack, then one transaction: index, packs, and the snapshot
//! ```
//!
//! Owns: which blocks exist and where, sessions that add some and become visible as one, pins that keep what
//! they may read from being collected. Leaves what blocks mean to the trees, and collecting to [`crate::gc`].
//!
//! Invariants: a block in the index lies within the committed length of its pack, and was durable before the
//! row was. A pack is appended to by one session at a time. While anything is pinned nothing is collected.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use flocker_store::StoreError;
use redb::{ReadOnlyTable, ReadableTable, WriteTransaction};

use crate::cache::NodeCache;
use crate::db::{self, Db};
use crate::fault;
use crate::hash::{Hash, Kind};
use crate::overlay::Overlay;
use crate::pack::{self, Loc, PACK_BYTES, PackWriter, Squeezer};

type Result<T> = std::result::Result<T, StoreError>;

/// Reads of the index after which a pin looks at the database anew: an old view keeps redb from using
/// freed pages again.
const INDEX_VIEW_READS: u32 = 20_000;
/// Pack files kept open.
const OPEN_FILES: usize = 128;

/// Reading of named blocks.
pub(crate) trait ReadBlocks {
    /// The content of a block, proven.
    fn get(&self, kind: Kind, hash: &Hash) -> Result<Arc<Vec<u8>>>;
}

/// Storing of named blocks.
pub(crate) trait WriteBlocks: ReadBlocks {
    /// Stores a block, unless it is there, and names it.
    fn put(&self, kind: Kind, content: &[u8]) -> Result<Hash>;
}

/// The block store of a vault.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) vault: PathBuf,
    pub(crate) dir: PathBuf,
    tmp: PathBuf,
    pub(crate) db: Arc<Db>,
    files: Mutex<HashMap<u32, Arc<File>>>,
    packs: Mutex<PackPool>,
    cache: NodeCache,
    gate: Gate,
}

/// Which packs may be appended to.
#[derive(Debug, Default)]
struct PackPool {
    /// Committed length of packs that nobody writes and that have room.
    open: BTreeMap<u32, u64>,
    next: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Blocks {
    /// Opens the store below `vault`; removes packs and temporary files that no commit knows of.
    pub(crate) fn open(vault: &Path, db: Arc<Db>) -> Result<Arc<Self>> {
        let dir = vault.join("packs");
        let tmp = vault.join("tmp");
        let mut known = BTreeMap::new();
        let txn = db.read()?;
        let table = txn.open_table(db::PACKS).map_err(|e| db.error(e))?;
        for row in table.iter().map_err(|e| db.error(e))? {
            let (id, lens) = row.map_err(|e| db.error(e))?;
            known.insert(id.value(), lens.value().0);
        }
        let context = |path: &Path| format!("tidying {}", path.display());
        let mut next = known.keys().last().map_or(1, |last| last + 1);
        for entry in std::fs::read_dir(&dir).map_err(|e| StoreError::io(context(&dir), e))? {
            let entry = entry.map_err(|e| StoreError::io(context(&dir), e))?;
            let Some(id) = entry.file_name().to_str().and_then(pack::number) else {
                continue;
            };
            next = next.max(id + 1);
            if !known.contains_key(&id) {
                std::fs::remove_file(entry.path())
                    .map_err(|e| StoreError::io(context(&entry.path()), e))?;
            }
        }
        for entry in std::fs::read_dir(&tmp).map_err(|e| StoreError::io(context(&tmp), e))? {
            let path = entry.map_err(|e| StoreError::io(context(&tmp), e))?.path();
            std::fs::remove_file(&path).map_err(|e| StoreError::io(context(&path), e))?;
        }
        let open = known.into_iter().filter(|(_, len)| *len < PACK_BYTES);
        Ok(Arc::new(Blocks {
            vault: vault.to_owned(),
            dir,
            tmp,
            db,
            files: Mutex::default(),
            packs: Mutex::new(PackPool { open: open.collect(), next }),
            cache: NodeCache::default(),
            gate: Gate::default(),
        }))
    }

    /// Keeps everything that is now committed from being collected.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.gate.enter();
        Pin { blocks: self.clone(), view: Mutex::new(None) }
    }

    /// Starts adding blocks.
    pub(crate) fn session(self: &Arc<Self>) -> Session {
        Session {
            pin: self.pin(),
            inner: Mutex::new(SessionInner {
                overlay: Overlay::new(self.tmp.clone()),
                writer: None,
                full: Vec::new(),
                squeezer: Squeezer::new(),
                new_bytes: 0,
            }),
        }
    }

    /// Shuts out pins for as long as the guard lives; `None` while something is pinned.
    pub(crate) fn try_exclusive(&self) -> Option<Exclusive<'_>> {
        self.gate.try_close().then_some(Exclusive { blocks: self })
    }

    /// Waits until nothing is pinned.
    pub(crate) fn exclusive(&self) -> Exclusive<'_> {
        self.gate.close();
        Exclusive { blocks: self }
    }

    /// The open file of a pack.
    pub(crate) fn file(&self, pack: u32) -> Result<Arc<File>> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&pack) {
            return Ok(file.clone());
        }
        let path = pack::path(&self.dir, pack);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                StoreError::Corrupt { path: path.clone(), detail: "the pack is missing".into() }
            }
            _ => StoreError::io(format!("opening {}", path.display()), e),
        })?;
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        let file = Arc::new(file);
        files.insert(pack, file.clone());
        Ok(file)
    }

    /// Takes a pack to append to.
    pub(crate) fn take_pack(&self) -> Result<PackWriter> {
        let (id, committed) = {
            let mut packs = lock(&self.packs);
            match packs.open.pop_first() {
                Some(found) => found,
                None => {
                    let id = packs.next;
                    packs.next += 1;
                    (id, 0)
                }
            }
        };
        PackWriter::open(&self.dir, id, committed).inspect_err(|_| {
            if committed > 0 {
                lock(&self.packs).open.insert(id, committed);
            }
        })
    }

    /// Gives a pack back whose appended bytes were committed.
    pub(crate) fn give_pack(&self, id: u32, committed: u64) {
        if committed > 0 && committed < PACK_BYTES {
            lock(&self.packs).open.insert(id, committed);
        }
    }

    /// Forgets a pack that is being removed, unless somebody appends to it.
    pub(crate) fn retire_pack(&self, id: u32) {
        lock(&self.packs).open.remove(&id);
        lock(&self.files).remove(&id);
    }

    /// Makes the names in the pack directory durable.
    pub(crate) fn sync_dir(&self) -> Result<()> {
        sync_dir(&self.dir)
    }

    fn read_at(&self, loc: Loc, kind: Kind, hash: &Hash) -> Result<Vec<u8>> {
        let file = self.file(loc.pack)?;
        pack::read(&file, &pack::path(&self.dir, loc.pack), loc, hash, kind)
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| StoreError::io(format!("syncing {}", dir.display()), e))
}

/// Counts who is inside, and lets one collector in when nobody is.
#[derive(Debug, Default)]
struct Gate {
    inside: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Gate {
    fn enter(&self) {
        let mut inside = lock(&self.inside);
        while inside.1 {
            inside = self.changed.wait(inside).unwrap_or_else(|e| e.into_inner());
        }
        inside.0 += 1;
    }

    fn leave(&self) {
        lock(&self.inside).0 -= 1;
        self.changed.notify_all();
    }

    fn try_close(&self) -> bool {
        let mut inside = lock(&self.inside);
        let free = *inside == (0, false);
        if free {
            inside.1 = true;
        }
        free
    }

    fn close(&self) {
        let mut inside = lock(&self.inside);
        while *inside != (0, false) {
            inside = self.changed.wait(inside).unwrap_or_else(|e| e.into_inner());
        }
        inside.1 = true;
    }

    fn open(&self) {
        lock(&self.inside).1 = false;
        self.changed.notify_all();
    }
}

/// While this lives nothing is pinned and nobody can pin.
#[derive(Debug)]
pub(crate) struct Exclusive<'b> {
    blocks: &'b Blocks,
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.blocks.gate.open();
    }
}

/// The index as it was, and how often it may still be asked before a newer one is due.
type IndexView = (ReadOnlyTable<[u8; 32], [u8; 16]>, u32);

/// Reads blocks and keeps them from being collected.
pub(crate) struct Pin {
    blocks: Arc<Blocks>,
    view: Mutex<Option<IndexView>>,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        *lock(&self.view) = None;
        self.blocks.gate.leave();
    }
}

impl Pin {
    /// Where a committed block lies.
    pub(crate) fn locate(&self, hash: &Hash) -> Result<Option<Loc>> {
        let db = &self.blocks.db;
        let mut view = lock(&self.view);
        if view.as_ref().is_none_or(|(_, left)| *left == 0) {
            *view = None; // lets go of the old view first
            let table = db.read()?.open_table(db::INDEX).map_err(|e| db.error(e))?;
            *view = Some((table, INDEX_VIEW_READS));
        }
        let Some((table, left)) = view.as_mut() else {
            return Ok(None);
        };
        *left -= 1;
        let found = table.get(hash.0).map_err(|e| db.error(e))?;
        Ok(found.map(|row| Loc::from_bytes(row.value())))
    }
}

impl ReadBlocks for Pin {
    fn get(&self, kind: Kind, hash: &Hash) -> Result<Arc<Vec<u8>>> {
        if kind != Kind::Data
            && let Some(found) = self.blocks.cache.get(hash)
        {
            return Ok(found);
        }
        let Some(loc) = self.locate(hash)? else {
            return Err(self.blocks.db.damaged(format!("the index has no block {hash}")));
        };
        let content = Arc::new(self.blocks.read_at(loc, kind, hash)?);
        if kind != Kind::Data {
            self.blocks.cache.put(*hash, content.clone());
        }
        Ok(content)
    }
}

/// Adds blocks, which exist for others once [`Session::commit`] returns. Dropped, it takes them back.
#[derive(Debug)]
pub(crate) struct Session {
    pin: Pin,
    inner: Mutex<SessionInner>,
}

#[derive(Debug)]
struct SessionInner {
    overlay: Overlay,
    writer: Option<PackWriter>,
    /// Packs that this session has filled.
    full: Vec<PackWriter>,
    squeezer: Squeezer,
    new_bytes: u64,
}

impl Session {
    /// Bytes that this session has added to packs.
    pub(crate) fn new_bytes(&self) -> u64 {
        lock(&self.inner).new_bytes
    }

    /// Makes everything durable, then visible in one transaction together with what `publish` writes.
    /// After an error nothing of it is.
    pub(crate) fn commit<T>(
        self,
        publish: impl FnOnce(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        let blocks = self.pin.blocks.clone();
        let db = blocks.db.clone();
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        fault::point("packs-written", &blocks.vault)?;
        let mut fresh = false;
        for writer in inner.full.iter_mut().chain(inner.writer.as_mut()) {
            writer.sync()?;
            fresh |= writer.is_fresh();
        }
        if fresh {
            blocks.sync_dir()?;
        }
        fault::point("packs-synced", &blocks.vault)?;
        let txn = db.write()?;
        let added = inner.overlay.publish(&db, &txn)?;
        {
            let mut packs = txn.open_table(db::PACKS).map_err(|e| db.error(e))?;
            for writer in inner.full.iter().chain(inner.writer.as_ref()) {
                let before = packs.get(writer.pack()).map_err(|e| db.error(e))?;
                let live = before.map_or(0, |row| row.value().1);
                let live = live + added.get(&writer.pack()).copied().unwrap_or(0);
                packs.insert(writer.pack(), (writer.len(), live)).map_err(|e| db.error(e))?;
            }
            let mut counters = txn.open_table(db::COUNTERS).map_err(|e| db.error(e))?;
            let name = crate::gc::WRITTEN_SINCE;
            let written = counters.get(name).map_err(|e| db.error(e))?;
            let written = written.map_or(0, |row| row.value()) + inner.new_bytes;
            counters.insert(name, written).map_err(|e| db.error(e))?;
        }
        let published = publish(&txn)?;
        fault::point("before-publish", &blocks.vault)?;
        // Out of the drop's reach: after a failed commit nobody knows what the disk holds, so nothing that
        // it may point to is taken back, and these packs rest until the vault is opened again.
        let writers: Vec<PackWriter> = inner.full.drain(..).chain(inner.writer.take()).collect();
        db.commit(txn)?;
        for writer in writers {
            blocks.give_pack(writer.pack(), writer.len());
        }
        fault::point("after-publish", &blocks.vault)?;
        Ok(published)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(|e| e.into_inner());
        let blocks = &self.pin.blocks;
        for mut writer in inner.full.drain(..).chain(inner.writer.take()) {
            let before = writer.committed();
            if let Err(error) = writer.take_back() {
                // Only room is lost, until the next open: what is not committed does not count.
                tracing::warn!(pack = writer.pack(), %error, "could not take back blocks");
            }
            blocks.give_pack(writer.pack(), before);
        }
    }
}

impl ReadBlocks for Session {
    fn get(&self, kind: Kind, hash: &Hash) -> Result<Arc<Vec<u8>>> {
        {
            let mut inner = lock(&self.inner);
            if let Some(loc) = inner.overlay.get(hash)? {
                if let Some(writer) = inner.writer.as_mut() {
                    writer.flush()?;
                }
                let mut writers = inner.full.iter().chain(inner.writer.as_ref());
                if let Some(writer) = writers.find(|w| w.pack() == loc.pack) {
                    return writer.read(loc, hash, kind).map(Arc::new);
                }
            }
        }
        self.pin.get(kind, hash)
    }
}

impl WriteBlocks for Session {
    fn put(&self, kind: Kind, content: &[u8]) -> Result<Hash> {
        let hash = kind.hash(content);
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        if inner.overlay.get(&hash)?.is_some() || self.pin.locate(&hash)?.is_some() {
            return Ok(hash);
        }
        if inner.writer.as_ref().is_some_and(|w| w.len() >= PACK_BYTES)
            && let Some(mut full) = inner.writer.take()
        {
            full.flush()?;
            inner.full.push(full);
        }
        if inner.writer.is_none() {
            inner.writer = Some(self.pin.blocks.take_pack()?);
        }
        let Some(writer) = inner.writer.as_mut() else {
            return Ok(hash);
        };
        let loc = writer.append(kind, &hash, content, Some(&mut inner.squeezer))?;
        inner.new_bytes += u64::from(loc.len);
        inner.overlay.insert(hash, loc)?;
        Ok(hash)
    }
}

/// Every pack with its committed length and the bytes the index points to.
pub(crate) fn pack_rows(db: &Db) -> Result<BTreeMap<u32, (u64, u64)>> {
    let txn = db.read()?;
    let table = txn.open_table(db::PACKS).map_err(|e| db.error(e))?;
    let mut rows = BTreeMap::new();
    for row in table.iter().map_err(|e| db.error(e))? {
        let (id, lens) = row.map_err(|e| db.error(e))?;
        rows.insert(id.value(), lens.value());
    }
    Ok(rows)
}
