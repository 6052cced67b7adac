//! The live data of a zvol: a disk image, one sparse file as long as the volume.
//!
//! ```text
//!   object 1  the volume's blocks          ─▶ hidden/<id>/tree ─▶ live/<dataset>, a plain file
//!   object 2  a microzap with its "size"       (the machine of [`super::live`], as for directories)
//! ```
//! An image is read again only where its stamp says that it may have been written, but then as a whole: a
//! plain file does not tell which of its blocks changed. A block is stored again only if its *content* differs
//! from what the snapshot has, so that what came compressed stays what it is.
//!
//! Owns: reading an image into the object set of a zvol, and writing one out. Leaves states and renames to
//! [`super::live`]. Source of the objects: `module/zfs/zvol.c` (`ZVOL_OBJ`, `ZVOL_ZAP_OBJ`) and
//! `include/sys/zap_impl.h` (`mzap_phys_t`) of OpenZFS.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use flocker_store::StoreError;
use rustix::fs::SeekFrom;

use super::content;
use super::scan::{Scanned, stamp_of};
use super::seen::{Seen, SeenBatch, SeenTable};
use crate::blocks::{ReadBlocks, Session};
use crate::codec;
use crate::db::Db;
use crate::hash::{Hash, Kind};
use crate::meta::DatasetId;
use crate::object::{Data, Object, diff_data};
use crate::objset::{Objset, Open, SetRoot};
use crate::tree::Tree;

type Result<T> = std::result::Result<T, StoreError>;

/// `ZVOL_OBJ`: the volume.
const DATA_OBJECT: u64 = 1;
/// `ZVOL_ZAP_OBJ`: its properties.
const ZAP_OBJECT: u64 = 2;

fn damaged(detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        path: "packs".into(),
        detail: format!("the object set of a zvol: {detail}"),
    }
}

fn io(doing: &str, path: &Path, e: std::io::Error) -> StoreError {
    StoreError::io(format!("{doing} {}", path.display()), e)
}

fn object(blocks: &impl ReadBlocks, set: SetRoot, number: u64) -> Result<Object> {
    match Tree::<Hash>::open(set.objects).get(blocks, number)? {
        Some(hash) => Object::load(blocks, &hash),
        None => Err(damaged(format!("it has no object {number}"))),
    }
}

/// The content of one block.
fn plain(
    blocks: &impl ReadBlocks,
    object: &Object,
    block: &crate::object::BlockRef,
) -> Result<Vec<u8>> {
    let payload = blocks.get(Kind::Data, &block.hash)?;
    codec::decompress(block.compression(), &payload, object.block_size as usize).map_err(damaged)
}

/// The size of the volume, bytes.
pub(crate) fn volume_size(blocks: &impl ReadBlocks, set: SetRoot) -> Result<u64> {
    let zap = object(blocks, set, ZAP_OBJECT)?;
    let mut size = None;
    diff_data(blocks, Data::default(), zap.data, &mut |at, _, block| {
        if let (0, Some(block)) = (at, block) {
            size = size_in_microzap(&plain(blocks, &zap, &block)?);
        }
        Ok(())
    })?;
    size.ok_or_else(|| damaged("its properties do not tell its size"))
}

/// The value of `size` in a microzap: a header of 64 bytes, then entries of 64 bytes, each with its value (8),
/// 6 bytes more, and its name.
fn size_in_microzap(block: &[u8]) -> Option<u64> {
    const ZBT_MICRO: u64 = (1 << 63) + 3;
    const ENTRY: usize = 64;
    const NAME_AT: usize = 14;
    let word = |bytes: &[u8]| bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
    if word(block)? != ZBT_MICRO {
        return None;
    }
    let entries = block.get(ENTRY..)?.chunks_exact(ENTRY);
    entries.filter(|entry| entry[NAME_AT..].starts_with(b"size\0")).find_map(word)
}

/// Writes the image at `path`, which holds `from` (or does not exist), so that it holds `to`.
///
/// # Errors
/// A damaged object set, or no room.
pub(crate) fn checkout(
    blocks: &impl ReadBlocks,
    path: &Path,
    from: Option<SetRoot>,
    to: SetRoot,
) -> Result<SeenBatch> {
    let size = volume_size(blocks, to)?;
    let hash = Tree::<Hash>::open(to.objects).get(blocks, DATA_OBJECT)?;
    let hash = hash.ok_or_else(|| damaged("it has no data"))?;
    let data = Object::load(blocks, &hash)?;
    let before = from.map(|from| object(blocks, from, DATA_OBJECT)).transpose()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| io("opening", path, e))?;
    content::write(blocks, &file, path, before.as_ref(), &data, size)?;
    file.sync_all().map_err(|e| io("syncing", path, e))?;
    let meta = file.metadata().map_err(|e| io("looking at", path, e))?;
    let mut seen = SeenBatch::default();
    seen.set(meta.ino(), row(&meta, hash, true));
    Ok(seen)
}

fn row(meta: &std::fs::Metadata, hash: Hash, trusted: bool) -> Seen {
    Seen { object: DATA_OBJECT, stamp: stamp_of(meta), hash, links: 0, trusted }
}

/// Renames an image. That changes its `ctime`, which is no write: whoever knew the file by its stamp goes on
/// knowing it, unless it was written meanwhile.
///
/// # Errors
/// The rename failed; what is known of the file is only a hint.
pub(crate) fn rename(db: &Db, id: DatasetId, from: &Path, to: &Path) -> Result<()> {
    let known = std::fs::metadata(from).ok().and_then(|meta| {
        let seen = SeenTable::open(db, id).and_then(|table| table.get(meta.ino())).ok()??;
        (seen.trusted && seen.stamp == stamp_of(&meta)).then_some((meta.ino(), seen))
    });
    std::fs::rename(from, to).map_err(|e| io("moving", from, e))?;
    let (Some((inode, seen)), Ok(meta)) = (known, std::fs::metadata(to)) else {
        return Ok(());
    };
    let (before, after) = (seen.stamp, stamp_of(&meta));
    if meta.ino() == inode && (before.mtime, before.size) == (after.mtime, after.size) {
        let mut batch = SeenBatch::default();
        batch.set(inode, Seen { stamp: after, ..seen });
        let txn = db.write()?;
        batch.write(db, &txn, id)?;
        db.commit(txn)?;
    }
    Ok(())
}

/// Whether the image was not touched since it was known to hold the data object of this hash.
fn is_as_seen(db: &Db, id: DatasetId, meta: &std::fs::Metadata, hash: Hash) -> Result<bool> {
    let seen = SeenTable::open(db, id)?.get(meta.ino())?;
    Ok(seen.is_some_and(|seen| {
        seen.trusted
            && seen.object == DATA_OBJECT
            && seen.hash == hash
            && seen.stamp == stamp_of(meta)
    }))
}

/// Reads the image at `path` into an object set that starts from `previous`.
///
/// # Errors
/// The image has another size than the volume, cannot be read, or cannot be stored.
pub(crate) fn scan(
    db: &Db,
    session: &Session,
    id: DatasetId,
    previous: SetRoot,
    path: &Path,
) -> Result<Scanned> {
    let unchanged = || Scanned { root: previous, seen: SeenBatch::default() };
    let file = File::open(path).map_err(|e| io("reading", path, e))?;
    // Writes through a memory map tell by the times once they are on their way.
    file.sync_all().map_err(|e| io("syncing", path, e))?;
    let read_at = SystemTime::now();
    let meta = file.metadata().map_err(|e| io("looking at", path, e))?;
    let mut set = Objset::open(previous);
    let hash = set.hash(session, DATA_OBJECT)?.ok_or_else(|| damaged("it has no data"))?;
    if is_as_seen(db, id, &meta, hash)? {
        return Ok(unchanged());
    }
    let size = volume_size(session, previous)?;
    if meta.size() != size {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            detail: format!("the image has {} bytes, the volume {size}; set it back", meta.size()),
        });
    }
    let open = set.object(session, DATA_OBJECT)?.ok_or_else(|| damaged("it has no data"))?;
    read(session, open, &file, path, size)?;
    let hash = set.hash(session, DATA_OBJECT)?.ok_or_else(|| damaged("it has no data"))?;
    let mut seen = SeenBatch::default();
    seen.set(meta.ino(), row(&meta, hash, stamp_of(&meta).is_settled(read_at)));
    Ok(Scanned { root: set.finish(session)?, seen })
}

/// Where data begins at or behind a block, as a block's number: `end` where only a hole is left.
fn next_data(file: &File, at: u64, wide: u64, end: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(at.saturating_mul(wide))) {
        Ok(data) => (data / wide).clamp(at, end),
        Err(rustix::io::Errno::NXIO) => end,
        Err(_) => at, // the system cannot say: it is read
    }
}

/// Reads an image into the blocks of its object.
fn read(session: &Session, open: &mut Open, file: &File, path: &Path, size: u64) -> Result<()> {
    let wide = u64::from(open.object.block_size);
    let mut buffer = vec![0; open.object.block_size as usize];
    let count = size.div_ceil(wide);
    forget_holes(session, open, file, count)?;
    let mut at = 0;
    loop {
        at = next_data(file, at, wide, count);
        if at >= count {
            return Ok(());
        }
        let len = usize::try_from((size - at * wide).min(wide)).unwrap_or(buffer.len());
        let got = content::read_some(file, &mut buffer[..len], at * wide)
            .map_err(|e| io("reading", path, e))?;
        buffer[got..].fill(0);
        let zero = is_zero(&buffer);
        let same = match open.block(session, at)? {
            None => zero,
            Some(block) => plain(session, &open.object, &block)? == buffer,
        };
        match (same, zero) {
            (true, _) => {}
            (false, true) => open.punch(session, at, at)?,
            (false, false) => open.write(session, at, &buffer, 0, None)?,
        }
        at += 1;
    }
}

/// Makes holes of the stored blocks where the image has one; a block that is stored as zeroes says the same.
fn forget_holes(session: &Session, open: &mut Open, file: &File, count: u64) -> Result<()> {
    let wide = u64::from(open.object.block_size);
    let mut data = None;
    diff_data(session, Data::default(), open.object.data, &mut |at, _, block| {
        let Some(block) = block else {
            return Ok(());
        };
        let next = match data {
            Some(next) if next >= at => next,
            Some(_) | None => next_data(file, at, wide, count.max(at + 1)),
        };
        data = Some(next);
        if next > at && !is_zero(&plain(session, &open.object, &block)?) {
            open.punch(session, at, at)?;
        }
        Ok(())
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Bytes that may have been written to the image since a snapshot: 0 when its stamp says that nothing was.
pub(crate) fn changed_bytes(
    db: &Db,
    blocks: &impl ReadBlocks,
    id: DatasetId,
    snapshot: SetRoot,
    path: &Path,
) -> Result<u64> {
    let meta = std::fs::metadata(path).map_err(|e| io("looking at", path, e))?;
    let hash = Tree::<Hash>::open(snapshot.objects).get(blocks, DATA_OBJECT)?;
    let same = match hash {
        Some(hash) => is_as_seen(db, id, &meta, hash)?,
        None => false,
    };
    Ok(if same { 0 } else { (meta.blocks() * 512).max(512) })
}

/// How many blocks of a volume differ between two sets, in words.
pub(crate) fn describe(blocks: &impl ReadBlocks, from: SetRoot, to: SetRoot) -> Result<String> {
    let (before, after) = (object(blocks, from, DATA_OBJECT)?, object(blocks, to, DATA_OBJECT)?);
    let (mut count, mut first) = (0u64, None);
    diff_data(blocks, before.data, after.data, &mut |at, _, _| {
        count += 1;
        first.get_or_insert(at);
        Ok(())
    })?;
    let at = first.unwrap_or(0).saturating_mul(u64::from(after.block_size));
    Ok(format!("{count} blocks of the image were written, the first at byte {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_volume_is_found_in_its_microzap_and_nothing_else_panics() {
        let mut zap = vec![0; 512];
        zap[..8].copy_from_slice(&((1u64 << 63) + 3).to_le_bytes());
        zap[128..136].copy_from_slice(&(64u64 << 20).to_le_bytes());
        zap[142..147].copy_from_slice(b"size\0");
        assert_eq!(size_in_microzap(&zap), Some(64 << 20));
        zap[144] = b'x';
        assert_eq!(size_in_microzap(&zap), None);
        for len in 0..130 {
            assert_eq!(size_in_microzap(&zap[..len]), None);
        }
    }
}
