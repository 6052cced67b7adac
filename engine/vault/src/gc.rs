//! Collecting blocks that nothing refers to.
//!
//! Mark and sweep over the trees of all snapshots and partial receives: a block is named by its content and may be anywhere in any
//! of them, so no count is kept that could be wrong. Memory is bounded: with many blocks the trees are walked
//! several times, each time for the blocks whose hash falls into one part.
//!
//! ```text
//! mark    walk every snapshot's tree; remember the hashes of this part
//! sweep   rows of the index in this part that were not met are removed, their bytes no longer count
//! pack    packs with less than half of their bytes counting are written anew without the rest
//! ```
//! Nothing else may be in the vault meanwhile ([`crate::blocks::Exclusive`]). A crash in between leaves rows
//! or packs that the next collection takes; it never takes what is referred to.
//!
//! Owns: all of that. When: [`crate::worker`], [`crate::Vault::gc`].

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use flocker_store::StoreError;
use redb::ReadableTable;

use crate::blocks::{self, Blocks, ReadBlocks};
use crate::db::{self, Db};
use crate::fault;
use crate::hash::{Hash, Kind};
use crate::inner::Inner;
use crate::meta::View;
use crate::object::{BlockRef, Data, Envelope, Object, SealedRef};
use crate::objset::SetRoot;
use crate::pack::{self, Loc};
use crate::tree::{self, Below, Root, Value};

type Result<T> = std::result::Result<T, StoreError>;

/// Counter: bytes written to packs since the last collection.
pub(crate) const WRITTEN_SINCE: &str = "written-since-collection";
/// Collections wait until this much was written, bytes: walking all trees for less is a waste.
const WORTH_BYTES: u64 = 64 << 20;
/// ... and for this share of what the packs hold.
const WORTH_SHARE: u64 = 4;
/// Hashes marked in one walk, 16 bytes of memory each.
const MARKS: u64 = 1 << 20;
/// Rows swept or moved in one transaction.
const BATCH: usize = 20_000;

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blocks removed from the index.
    pub blocks: u64,
    /// Bytes by which the packs became smaller.
    pub freed_bytes: u64,
}

/// Collects if enough was written since the last time, and nothing is in the way.
pub(crate) fn collect_if_worth_it(inner: &Inner) -> Result<()> {
    let written = {
        let txn = inner.db.read()?;
        let counters = txn.open_table(db::COUNTERS).map_err(|e| inner.db.error(e))?;
        let row = counters.get(WRITTEN_SINCE).map_err(|e| inner.db.error(e))?;
        row.map_or(0, |row| row.value())
    };
    let held: u64 = blocks::pack_rows(&inner.db)?.values().map(|(len, _)| len).sum();
    if written < WORTH_BYTES.max(held / WORTH_SHARE) {
        return Ok(());
    }
    let Some(exclusive) = inner.blocks.try_exclusive() else {
        return Ok(()); // the next destroy tries again
    };
    let collected = collect(inner)?;
    drop(exclusive);
    tracing::info!(blocks = collected.blocks, bytes = collected.freed_bytes, "collected");
    Ok(())
}

/// Collects everything now. The caller keeps everybody out.
pub(crate) fn collect(inner: &Inner) -> Result<Collected> {
    let db = &inner.db;
    let before = held_bytes(db, &inner.blocks)?;
    let rows = {
        let txn = db.read()?;
        let index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
        redb::ReadableTableMetadata::len(&index).map_err(|e| db.error(e))?
    };
    let parts = rows.div_ceil(MARKS).max(1);
    let roots = roots(db)?;
    let reader = Reader { inner };
    let mut collected = Collected::default();
    for part in 0..parts {
        let mut marker =
            Marker { reader: &reader, part, parts, marked: HashSet::new(), walked: HashSet::new() };
        for root in &roots {
            marker.tree::<Hash>(root.objects, &mut |marker, object| marker.object(&object))?;
            marker.tree::<Envelope>(root.ranges, &mut |_, _| Ok(()))?;
        }
        collected.blocks += sweep(db, &marker)?;
        fault::point("gc-swept", &inner.path)?;
    }
    repack(inner)?;
    let txn = db.write()?;
    {
        let mut counters = txn.open_table(db::COUNTERS).map_err(|e| db.error(e))?;
        counters.insert(WRITTEN_SINCE, 0).map_err(|e| db.error(e))?;
    }
    db.commit(txn)?;
    collected.freed_bytes = before.saturating_sub(held_bytes(db, &inner.blocks)?);
    Ok(collected)
}

fn held_bytes(db: &Db, _: &Blocks) -> Result<u64> {
    Ok(blocks::pack_rows(db)?.values().map(|(len, _)| len).sum())
}

/// Everything that is kept: snapshots, checkouts, and what arrived of receives that were interrupted.
fn roots(db: &Db) -> Result<Vec<SetRoot>> {
    let view = View::new(db)?;
    let mut roots = Vec::new();
    for (id, record) in view.datasets()? {
        for snapshot in view.snapshots(id)? {
            roots.push(snapshot.root);
        }
        // A directory may be checked out to a snapshot that was destroyed since.
        if let crate::meta::Live::Clean(root) = record.live {
            roots.push(root);
        }
        roots.extend(record.partial.map(|partial| partial.root));
    }
    Ok(roots)
}

/// Reads blocks without a pin: the caller keeps everybody else out.
struct Reader<'i> {
    inner: &'i Inner,
}

impl ReadBlocks for Reader<'_> {
    fn get(&self, kind: Kind, hash: &Hash) -> Result<std::sync::Arc<Vec<u8>>> {
        let db = &self.inner.db;
        let txn = db.read()?;
        let index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
        let row = index.get(hash.0).map_err(|e| db.error(e))?;
        let Some(row) = row else {
            return Err(db.damaged(format!("the index has no block {hash}")));
        };
        let loc = Loc::from_bytes(row.value());
        let file = self.inner.blocks.file(loc.pack)?;
        let path = pack::path(&self.inner.blocks.dir, loc.pack);
        pack::read(&file, &path, loc, hash, kind).map(std::sync::Arc::new)
    }
}

struct Marker<'r, 'i> {
    reader: &'r Reader<'i>,
    part: u64,
    parts: u64,
    /// Hashes of this part that are referred to, by their first eight bytes: a false match only keeps a
    /// block for once.
    marked: HashSet<u64>,
    /// Nodes whose children were walked.
    walked: HashSet<u64>,
}

impl Marker<'_, '_> {
    fn in_part(&self, prefix: u64) -> bool {
        // The high half of the product spreads prefixes evenly over the parts.
        let at = (u128::from(prefix) * u128::from(self.parts)) >> 64;
        u64::try_from(at) == Ok(self.part)
    }

    fn mark(&mut self, hash: &Hash) {
        let prefix = hash.prefix();
        if self.in_part(prefix) {
            self.marked.insert(prefix);
        }
    }

    /// Marks a node, and says whether what is below has still to be walked.
    fn enter(&mut self, hash: &Hash) -> bool {
        self.mark(hash);
        self.walked.insert(hash.prefix())
    }

    /// Marks the nodes of a tree, and hands each value to `each`.
    fn tree<V: Value>(
        &mut self,
        root: Root,
        each: &mut dyn FnMut(&mut Self, V) -> Result<()>,
    ) -> Result<()> {
        let Some((level, hash)) = root.0 else {
            return Ok(());
        };
        if !self.enter(&hash) {
            return Ok(());
        }
        let bytes = self.reader.get(V::KIND, &hash)?;
        match tree::below::<V>(&bytes, level)? {
            Below::Nodes(nodes) => nodes
                .into_iter()
                .try_for_each(|node| self.tree(Root(Some((level - 1, node))), each)),
            Below::Values(values) => values.into_iter().try_for_each(|value| each(self, value)),
        }
    }

    fn object(&mut self, hash: &Hash) -> Result<()> {
        if !self.enter(hash) {
            return Ok(());
        }
        let object = Object::decode(&self.reader.get(Kind::Object, hash)?)?;
        if let Some(spill) = &object.spill {
            self.mark(&spill.block.hash);
        }
        match object.data {
            Data::One(block) => {
                self.mark(&block.hash);
                Ok(())
            }
            Data::Tree(root) => self.tree::<BlockRef>(root, &mut |marker, block| {
                marker.mark(&block.hash);
                Ok(())
            }),
            Data::Sealed(root) => self.tree::<SealedRef>(root, &mut |marker, block| {
                marker.mark(&block.0.hash);
                Ok(())
            }),
        }
    }
}

/// Removes the rows of one part that were not marked.
fn sweep(db: &Db, marker: &Marker<'_, '_>) -> Result<u64> {
    let mut dead: Vec<([u8; 32], Loc)> = Vec::new();
    let mut removed = 0;
    let mut from = [0u8; 32];
    loop {
        let mut reached = None;
        {
            let txn = db.read()?;
            let index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
            for row in index.range(from..).map_err(|e| db.error(e))? {
                let (hash, loc) = row.map_err(|e| db.error(e))?;
                let (hash, loc) = (hash.value(), Loc::from_bytes(loc.value()));
                let prefix = Hash(hash).prefix();
                if marker.in_part(prefix) && !marker.marked.contains(&prefix) {
                    dead.push((hash, loc));
                    if dead.len() >= BATCH {
                        reached = Some(hash);
                        break;
                    }
                }
            }
        }
        removed += dead.len() as u64;
        remove_rows(db, &mut dead)?;
        match reached {
            Some(hash) => from = hash,
            None => return Ok(removed),
        }
    }
}

fn remove_rows(db: &Db, dead: &mut Vec<([u8; 32], Loc)>) -> Result<()> {
    if dead.is_empty() {
        return Ok(());
    }
    let txn = db.write()?;
    {
        let mut index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
        let mut packs = txn.open_table(db::PACKS).map_err(|e| db.error(e))?;
        let mut gone: BTreeMap<u32, u64> = BTreeMap::new();
        for (hash, loc) in dead.drain(..) {
            index.remove(hash).map_err(|e| db.error(e))?;
            *gone.entry(loc.pack).or_insert(0) += u64::from(loc.len);
        }
        for (id, bytes) in gone {
            let row = packs.get(id).map_err(|e| db.error(e))?.map(|r| r.value());
            if let Some((len, live)) = row {
                packs.insert(id, (len, live.saturating_sub(bytes))).map_err(|e| db.error(e))?;
            }
        }
    }
    db.commit(txn)
}

/// Writes packs anew that are mostly dead, and removes those that are wholly so.
fn repack(inner: &Inner) -> Result<()> {
    let (db, store) = (&inner.db, &inner.blocks);
    let packs: Vec<u32> = blocks::pack_rows(db)?.into_keys().collect();
    for id in packs {
        // As it is now: an earlier one may have been moved into this one.
        let Some((len, live)) = blocks::pack_rows(db)?.get(&id).copied() else {
            continue;
        };
        if live * 2 > len.saturating_sub(pack::FILE_HEADER) {
            continue;
        }
        store.retire_pack(id);
        let moved = if live > 0 { move_pack(inner, id, len)? } else { None };
        fault::point("gc-moved", &inner.path)?;
        let txn = db.write()?;
        {
            let mut packs = txn.open_table(db::PACKS).map_err(|e| db.error(e))?;
            let mut index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
            if let Some(moved) = &moved {
                for (hash, loc) in &moved.rows {
                    index.insert(hash.0, loc.to_bytes()).map_err(|e| db.error(e))?;
                }
                let held = packs.get(moved.pack).map_err(|e| db.error(e))?;
                let held = held.map_or(0, |row| row.value().1);
                packs
                    .insert(moved.pack, (moved.len, held + moved.bytes))
                    .map_err(|e| db.error(e))?;
            }
            packs.remove(id).map_err(|e| db.error(e))?;
        }
        db.commit(txn)?;
        if let Some(moved) = moved {
            store.give_pack(moved.pack, moved.len);
        }
        fault::point("gc-packed", &inner.path)?;
        let path = pack::path(&store.dir, id);
        std::fs::remove_file(&path)
            .map_err(|e| StoreError::io(format!("removing {}", path.display()), e))?;
    }
    Ok(())
}

struct Moved {
    pack: u32,
    len: u64,
    bytes: u64,
    rows: Vec<(Hash, Loc)>,
}

/// Copies what counts in a pack behind another one.
fn move_pack(inner: &Inner, id: u32, len: u64) -> Result<Option<Moved>> {
    let (db, store) = (&inner.db, &inner.blocks);
    let file = store.file(id)?;
    let path = pack::path(&store.dir, id);
    let txn = db.read()?;
    let index = txn.open_table(db::INDEX).map_err(|e| db.error(e))?;
    let mut writer = store.take_pack()?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for entry in pack::entries(&file, &path, len) {
        let (hash, loc) = entry?;
        let row = index.get(hash.0).map_err(|e| db.error(e))?;
        if row.map(|row| Loc::from_bytes(row.value())) != Some(loc) {
            continue;
        }
        let entry = proven_entry(&file, &path, loc, &hash)?;
        rows.push((hash, writer.append_entry(&entry)?));
        bytes += u64::from(loc.len);
    }
    writer.sync()?;
    if writer.is_fresh() {
        store.sync_dir()?;
    }
    Ok(Some(Moved { pack: writer.pack(), len: writer.len(), bytes, rows }))
}

/// An entry's bytes; damage is not carried into a fresh pack unnoticed.
fn proven_entry(file: &std::fs::File, path: &Path, loc: Loc, hash: &Hash) -> Result<Vec<u8>> {
    let entry = pack::read_entry(file, path, loc)?;
    pack::prove(&entry, path, loc.offset, hash)?;
    Ok(entry)
}
