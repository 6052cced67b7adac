//! Looking into snapshots from outside: whole objects, the list of them, and a proof of every block.

use flocker_store::{SnapshotName, StoreError};

use crate::blocks::ReadBlocks;
use crate::codec;
use crate::hash::{Hash, Kind};
use crate::inner::Inner;
use crate::meta::View;
use crate::object::{Data, Envelope, Object, diff_data};
use crate::objset::SetRoot;
use crate::tree::{self, Tree};

type Result<T> = std::result::Result<T, StoreError>;

/// Longest content that is read at once, bytes.
const MAX_READ: u64 = 4 << 30;

/// The content of an object with holes as zeroes, and the size of the file that it is.
pub(crate) fn read_object(
    inner: &Inner,
    snapshot: &SnapshotName,
    number: u64,
) -> Result<Option<(Vec<u8>, Option<u64>)>> {
    let pin = inner.blocks.pin();
    let (_, _, snapshot) = View::new(&inner.db)?.snapshot(snapshot)?;
    let Some(hash) = Tree::<Hash>::open(snapshot.root.objects).get(&pin, number)? else {
        return Ok(None);
    };
    let object = Object::load(&pin, &hash)?;
    if object.raw.is_some() {
        return Err(StoreError::NotCapable {
            store: inner.describe(),
            what: format!("reading object {number} of a sealed dataset"),
        });
    }
    let size = object.block_size as usize;
    let mut content = Vec::new();
    diff_data(&pin, Data::default(), object.data, &mut |at, _, block| {
        let Some(block) = block else {
            return Ok(());
        };
        let payload = pin.get(Kind::Data, &block.hash)?;
        let plain = codec::decompress(block.compression(), &payload, size)
            .map_err(|e| inner.db.damaged(e.to_string()))?;
        let start = at.checked_mul(size as u64).filter(|start| *start < MAX_READ);
        let Some(start) = start.and_then(|start| usize::try_from(start).ok()) else {
            return Err(StoreError::NotCapable {
                store: inner.describe(),
                what: format!("reading object {number} at once, with its block {at}"),
            });
        };
        content.resize(start, 0);
        content.extend_from_slice(&plain);
        Ok(())
    })?;
    Ok(Some((content, object.file_size())))
}

/// The hash of a snapshot's object set, and its objects with their types.
pub(crate) fn objects(inner: &Inner, snapshot: &SnapshotName) -> Result<(String, Vec<(u64, u32)>)> {
    let pin = inner.blocks.pin();
    let (_, _, snapshot) = View::new(&inner.db)?.snapshot(snapshot)?;
    let mut found = Vec::new();
    tree::walk::<Hash>(&pin, snapshot.root.objects, &mut |number, hash| {
        found.push((number, Object::load(&pin, &hash)?.object_type));
        Ok(())
    })?;
    let name = |root: tree::Root| match root.0 {
        None => "empty".to_owned(),
        Some((level, hash)) => format!("{level}:{hash}"),
    };
    let (set, ranges) = (name(snapshot.root.objects), snapshot.root.ranges);
    Ok((if ranges.0.is_some() { format!("{set}/{}", name(ranges)) } else { set }, found))
}

/// Reads every block of every snapshot, and of what arrived of receives that were interrupted.
pub(crate) fn verify(inner: &Inner) -> Result<()> {
    let pin = inner.blocks.pin();
    let view = View::new(&inner.db)?;
    for (id, record) in view.datasets()? {
        let mut before = SetRoot::default();
        let snapshots = view.snapshots(id)?.into_iter().map(|snapshot| snapshot.root);
        for root in snapshots.chain(record.partial.map(|partial| partial.root)) {
            // What is equal to the snapshot before was read there.
            verify_set(&pin, before, root)?;
            before = root;
        }
    }
    Ok(())
}

fn verify_set(blocks: &impl ReadBlocks, before: SetRoot, root: SetRoot) -> Result<()> {
    tree::diff::<Envelope>(blocks, before.ranges, root.ranges, &mut |_, _, _| Ok(()))?;
    tree::diff::<Hash>(blocks, before.objects, root.objects, &mut |_, from, to| {
        let Some(to) = to else {
            return Ok(());
        };
        let from = from.map(|hash| Object::load(blocks, &hash)).transpose()?;
        let object = Object::load(blocks, &to)?;
        if let Some(spill) = &object.spill {
            blocks.get(Kind::Data, &spill.block.hash)?;
        }
        // A number may be sealed in the one and plain in the other only in two datasets.
        let from = from.filter(|from| from.raw.is_some() == object.raw.is_some());
        let from = from.map_or(Data::default(), |from| from.data);
        diff_data(blocks, from, object.data, &mut |_, _, block| match block {
            Some(block) => blocks.get(Kind::Data, &block.hash).map(drop),
            None => Ok(()),
        })
    })
}
