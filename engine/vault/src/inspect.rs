//! Looking into snapshots from outside: whole objects, the list of them, and a proof of every block.

use flocker_store::{SnapshotName, StoreError};

use crate::blocks::ReadBlocks;
use crate::codec;
use crate::hash::{Hash, Kind};
use crate::inner::Inner;
use crate::meta::View;
use crate::object::{Data, Object, diff_data};
use crate::tree::{self, Tree};

type Result<T> = std::result::Result<T, StoreError>;

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
    let size = object.block_size as usize;
    let mut content = Vec::new();
    diff_data(&pin, Data::default(), object.data, &mut |at, _, block| {
        let Some(block) = block else {
            return Ok(());
        };
        let payload = pin.get(Kind::Data, &block.hash)?;
        let plain = codec::decompress(block.compression(), &payload, size)
            .map_err(|e| inner.db.damaged(e.to_string()))?;
        content.resize(usize::try_from(at).unwrap_or(usize::MAX) * size, 0);
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
    let name = snapshot.root.objects.0;
    let name = name.map_or_else(|| "empty".into(), |(level, hash)| format!("{level}:{hash}"));
    Ok((name, found))
}

/// Reads every block of every snapshot.
pub(crate) fn verify(inner: &Inner) -> Result<()> {
    let pin = inner.blocks.pin();
    let view = View::new(&inner.db)?;
    for (id, _) in view.datasets()? {
        let mut before = tree::Root(None);
        for snapshot in view.snapshots(id)? {
            // What is equal to the snapshot before was read there.
            let root = snapshot.root.objects;
            tree::diff::<Hash>(&pin, before, root, &mut |_, from, to| {
                let Some(to) = to else {
                    return Ok(());
                };
                let from = from.map(|hash| Object::load(&pin, &hash)).transpose()?;
                let object = Object::load(&pin, &to)?;
                if let Some(spill) = &object.spill {
                    pin.get(Kind::Data, &spill.block.hash)?;
                }
                let from = from.map_or(Data::default(), |from| from.data);
                diff_data(&pin, from, object.data, &mut |_, _, block| match block {
                    Some(block) => pin.get(Kind::Data, &block.hash).map(drop),
                    None => Ok(()),
                })
            })?;
            before = root;
        }
    }
    Ok(())
}
