//! Old copies: what a volume is reseeded from when everything has to come anew.
//!
//! ```text
//! flocker-repl:received-from   FINGERPRINT/GUID/DATASET   the primary; the dataset's own guid; its name when it followed
//! ```
//!
//! Owns: the mark on replicas that says whose they are, and finding an old copy by it. Leaves to others: what is done
//! with it (`flocker_transport::bulk::reseed`).
//!
//! The mark is written with the mirrors while a dataset follows a peer, and stays when it is renamed away, by `resolve`
//! or by a person, and when protection ends. It counts only where its source is `local` and its guid that of the very
//! dataset: children inherit properties, and clones copy them. It goes when the node becomes primary.
//!
//! # What the peer learns
//!
//! Which blocks of its own stream the old copy has, and the first eight bytes of the hashes of those that the old copy has
//! besides. So only what came from this very peer, into this very place of its grant, is an old copy: it was the
//! peer's own data. The newest snapshot of ours is read, which is as the peer has sent it. Where none of ours is left
//! there is no old copy: what others took may hold what was written here by hand.

use std::collections::BTreeMap;

use flocker_core::ids::Fingerprint;
use flocker_core::io::MirrorState;
use flocker_core::node::SNAPSHOT_PREFIX;
use flocker_store::{
    DatasetInfo, DatasetName, Guid, Property, PropertySource, SendSpec, Snapshot, SnapshotName,
    Store, StoreError,
};

pub(crate) const RECEIVED_FROM: &str = "flocker-repl:received-from";

/// Datasets whose properties are read at most: those with the likeliest names.
const MAX_LOOKED_AT: usize = 64;

/// Whose a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    peer: Fingerprint,
    guid: Guid,
    dataset: DatasetName,
}

/// The mark of a dataset that follows, to be written with its mirror; none of one that does not.
pub(crate) fn change(
    dataset: &DatasetName,
    guid: Guid,
    state: &MirrorState,
) -> (String, Option<String>) {
    let follows = matches!(state.state.as_str(), "following" | "ready");
    let value = follows.then(|| format!("{}/{guid}/{dataset}", state.epoch.owner));
    (RECEIVED_FROM.to_owned(), value)
}

/// The mark as it stands, for whoever takes every other property of ours away.
pub(crate) fn keep(
    store: &dyn Store,
    dataset: &DatasetName,
) -> Result<BTreeMap<String, Option<String>>, StoreError> {
    let mut properties = store.user_properties(dataset)?;
    let mark = properties.remove(RECEIVED_FROM).filter(|p| p.source == PropertySource::Local);
    Ok(mark.map(|mark| (RECEIVED_FROM.to_owned(), Some(mark.value))).into_iter().collect())
}

fn parse(properties: &BTreeMap<String, Property>) -> Option<Mark> {
    let mark = properties.get(RECEIVED_FROM).filter(|p| p.source == PropertySource::Local)?;
    let mut parts = mark.value.splitn(3, '/');
    let (peer, guid, dataset) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Mark {
        peer: peer.parse().ok()?,
        guid: Guid(guid.parse().ok()?),
        dataset: DatasetName::new(dataset).ok()?,
    })
}

/// How the stream that comes is made: an old copy is sent the same way, or no block of it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamFlags {
    pub(crate) compressed: bool,
    pub(crate) large_blocks: bool,
    pub(crate) raw: bool,
}

/// A send of the old copy of what `peer` is about to send in full to `dataset`, if there is one.
///
/// # Errors
/// The store could not be read.
pub(crate) fn find(
    store: &dyn Store,
    peer: Fingerprint,
    dataset: &DatasetName,
    flags: StreamFlags,
) -> Result<Option<SendSpec>, StoreError> {
    let mut newest: Option<Snapshot> = None;
    for info in candidates(store, dataset, flags)? {
        let found = match copy_in(store, peer, dataset, &info) {
            // It went away meanwhile.
            Err(StoreError::NoDataset { .. }) => None,
            other => other?,
        };
        let older = |found: &Snapshot| {
            newest.as_ref().is_some_and(|n| n.creation_unix_s >= found.creation_unix_s)
        };
        if let Some(found) = found.filter(|found| !older(found)) {
            newest = Some(found);
        }
    }
    Ok(newest.map(|snapshot| spec(snapshot.name, flags)))
}

fn spec(to: SnapshotName, flags: StreamFlags) -> SendSpec {
    let StreamFlags { compressed, large_blocks, raw } = flags;
    SendSpec { from: None, to, compressed, large_blocks, raw, resume: None }
}

/// Datasets that may be old copies, the likeliest first.
fn candidates(
    store: &dyn Store,
    dataset: &DatasetName,
    flags: StreamFlags,
) -> Result<Vec<DatasetInfo>, StoreError> {
    let mut all = store.datasets()?;
    // What is sealed here can only be the same as what comes sealed.
    all.retain(|info| info.name != *dataset && info.encrypted == flags.raw);
    let distance = |info: &DatasetInfo| {
        let beside =
            |name: &DatasetName| name.as_str().rsplit_once('/').map(|(up, _)| up.to_owned());
        let named_after = info.name.as_str().starts_with(dataset.as_str());
        (!named_after, beside(&info.name) != beside(dataset))
    };
    all.sort_by_key(distance);
    all.truncate(MAX_LOOKED_AT);
    Ok(all)
}

/// The snapshot to be read of this dataset, if it is an old copy.
fn copy_in(
    store: &dyn Store,
    peer: Fingerprint,
    dataset: &DatasetName,
    info: &DatasetInfo,
) -> Result<Option<Snapshot>, StoreError> {
    let wanted = Mark { peer, guid: info.guid, dataset: dataset.clone() };
    if parse(&store.user_properties(&info.name)?) != Some(wanted) {
        return Ok(None);
    }
    let snapshots = store.inventory(&info.name)?.snapshots;
    Ok(snapshots.into_iter().rev().find(|s| s.name.short().starts_with(SNAPSHOT_PREFIX)))
}

#[cfg(test)]
mod tests {
    use flocker_core::ids::{AttemptId, Epoch, UnitId, VolumeId};
    use flocker_store::{DatasetKind, SnapshotSpec};
    use flocker_vault::Vault;

    use super::*;

    const PEER: Fingerprint = Fingerprint([7; 32]);
    const OTHER: Fingerprint = Fingerprint([8; 32]);
    const FLAGS: StreamFlags = StreamFlags { compressed: true, large_blocks: true, raw: false };

    fn name(text: &str) -> DatasetName {
        DatasetName::new(text).unwrap()
    }

    fn state(owner: Fingerprint, word: &str) -> MirrorState {
        let epoch = Epoch { number: 1, owner, attempt: AttemptId { issuer: owner, number: 1 } };
        MirrorState { unit: UnitId(1), volume: VolumeId(2), epoch, state: word.into() }
    }

    fn copy(store: &Vault, dataset: &str, shorts: &[&str]) {
        let dataset = name(dataset);
        store.create(&dataset, DatasetKind::Directory).unwrap();
        for short in shorts {
            let names = vec![dataset.snapshot(short).unwrap()];
            let spec = SnapshotSpec { names, quiesced: true, properties: BTreeMap::new() };
            store.snapshot(&spec).unwrap();
        }
        crate::mirror::write(store, &dataset, &state(PEER, "following")).unwrap();
    }

    fn found(store: &Vault, peer: Fingerprint, dataset: &str) -> Option<String> {
        let found = find(store, peer, &name(dataset), FLAGS).unwrap();
        found.map(|spec| spec.to.to_string())
    }

    fn vault() -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(dir.path().join("v")).unwrap();
        (dir, vault)
    }

    #[test]
    fn a_replica_that_was_renamed_away_is_found_by_its_peer_and_its_name_alone() {
        let (_dir, store) = vault();
        copy(&store, "vault/in/db", &["flocker_1_1", "flocker_1_2", "by-hand"]);
        assert_eq!(found(&store, PEER, "vault/in/db"), None, "it is what is received into");
        store.rename(&name("vault/in/db"), &name("vault/in/db-diverged-1")).unwrap();
        let aside = Some("vault/in/db-diverged-1@flocker_1_2".to_owned());
        assert_eq!(found(&store, PEER, "vault/in/db"), aside);
        assert_eq!(found(&store, OTHER, "vault/in/db"), None, "of another peer");
        assert_eq!(found(&store, PEER, "vault/in/db2"), None, "of another volume");
        store.rename(&name("vault/in/db-diverged-1"), &name("vault/kept")).unwrap();
        assert_eq!(found(&store, PEER, "vault/in/db").unwrap(), "vault/kept@flocker_1_2");
    }

    #[test]
    fn where_none_of_ours_is_left_there_is_no_old_copy_since_others_may_hold_what_was_written_here()
    {
        let (_dir, store) = vault();
        copy(&store, "vault/in/db", &["one", "flocker_1_1", "two"]);
        store.rename(&name("vault/in/db"), &name("vault/in/old")).unwrap();
        assert_eq!(found(&store, PEER, "vault/in/db").unwrap(), "vault/in/old@flocker_1_1");
        let ours = name("vault/in/old").snapshot("flocker_1_1").unwrap();
        store.destroy_snapshots(&[ours]).unwrap();
        assert_eq!(found(&store, PEER, "vault/in/db"), None);
    }

    #[test]
    fn a_mark_that_was_inherited_or_copied_or_is_of_a_primary_does_not_count() {
        let (_dir, store) = vault();
        copy(&store, "vault/in/db", &["flocker_1_1"]);
        let mark = keep(&store, &name("vault/in/db")).unwrap();
        assert_eq!(mark.len(), 1);
        store.rename(&name("vault/in/db"), &name("vault/in/old")).unwrap();
        copy(&store, "vault/in/other", &["flocker_1_1"]);
        crate::mirror::write(&store, &name("vault/in/other"), &state(PEER, "serving")).unwrap();
        assert_eq!(keep(&store, &name("vault/in/other")).unwrap(), BTreeMap::new());
        store.set_user_properties(&name("vault/in/other"), &mark).unwrap();
        assert_eq!(found(&store, PEER, "vault/in/db").unwrap(), "vault/in/old@flocker_1_1");
        store.destroy_dataset(&name("vault/in/old")).unwrap();
        assert_eq!(found(&store, PEER, "vault/in/db"), None, "the mark is of another dataset");
    }

    #[test]
    fn what_is_not_sealed_is_no_old_copy_of_what_comes_sealed() {
        let (_dir, store) = vault();
        copy(&store, "vault/in/db", &["flocker_1_1"]);
        store.rename(&name("vault/in/db"), &name("vault/in/old")).unwrap();
        let raw = StreamFlags { raw: true, ..FLAGS };
        assert_eq!(find(&store, PEER, &name("vault/in/db"), raw).unwrap(), None);
    }

    #[test]
    fn what_people_wrote_there_is_no_mark_and_no_error() {
        let peer = PEER.to_string();
        for value in ["", "x", "//", &format!("{peer}/x/db"), &format!("{peer}/1"), "a/b/c/d"] {
            let property = Property { value: value.to_owned(), source: PropertySource::Local };
            assert_eq!(parse(&[(RECEIVED_FROM.to_owned(), property)].into()), None, "{value}");
        }
    }
}
