//! Opening the store a configuration names, and what the core needs to know of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flocker_core::record::{Mirror, UnitRecord};
use flocker_core::{Boot, StoreFacts};
use flocker_store::{DatasetName, Store, StoreError};
use flocker_vault::Vault;
use flocker_zfs::{Engine, ZfsOptions, ZfsStore};

use crate::config::{LimitsSection, StoreUri, ZfsEngine};
use crate::mirror;

/// Opens the store; it has to exist.
pub(crate) fn open(uri: &StoreUri, engine: ZfsEngine) -> Result<Arc<dyn Store>, StoreError> {
    match uri {
        StoreUri::Vault(path) => Ok(Arc::new(Vault::open(path)?)),
        StoreUri::Zfs(root) => {
            let options = ZfsOptions { engine: self::engine(engine), ..ZfsOptions::default() };
            Ok(Arc::new(ZfsStore::open(root, options)?))
        }
    }
}

/// The configuration's word in the store's terms.
pub(crate) fn engine(engine: ZfsEngine) -> Engine {
    match engine {
        ZfsEngine::Auto => Engine::Auto,
        ZfsEngine::Command => Engine::Command,
        ZfsEngine::Library => Engine::Library,
    }
}

/// Makes what `init` has to make: a vault. One that is there already is used as it is, if it can be.
pub(crate) fn init(uri: &StoreUri) -> Result<(), StoreError> {
    match uri {
        StoreUri::Vault(path) => match Vault::create(path) {
            Ok(_) => Ok(()),
            Err(StoreError::Exists { .. }) => Vault::open(path).map(drop),
            Err(other) => Err(other),
        },
        StoreUri::Zfs(_) => open(uri, ZfsEngine::Auto).map(drop),
    }
}

/// What the core needs to know.
pub(crate) fn facts(store: &dyn Store, limits: &LimitsSection, fencing_hook: bool) -> StoreFacts {
    let capabilities = store.capabilities();
    StoreFacts {
        describe: format!("{} ({})", store.describe(), capabilities.version),
        root: store.root().clone(),
        live_kinds: capabilities.live_kinds.clone(),
        replica_kinds: capabilities.replica_kinds.clone(),
        modern_streams: capabilities.modern_streams,
        receives_modern: capabilities.receives_modern,
        freeze_for_snapshot: !capabilities.live_snapshot,
        compressed_send: capabilities.compressed_send,
        large_block_send: capabilities.large_block_send,
        raw: capabilities.raw_send,
        resumable: capabilities.resumable,
        holds: capabilities.holds,
        bookmarks: capabilities.bookmarks,
        pin_limit_ms: limits.pin_h.saturating_mul(3_600_000),
        clones: capabilities.clones,
        atomic_group_snapshot: capabilities.atomic_group_snapshot,
        fencing_hook,
    }
}

/// Looks at every dataset for a mirror, and sorts them to the journal's units.
pub(crate) fn scan(store: &dyn Store, units: Vec<UnitRecord>) -> Result<Boot, StoreError> {
    if let Err(error) = crate::ops::aside::finish(store) {
        tracing::error!(%error, "what was being set aside stays as it is; the next attempt goes on");
    }
    let mut mirrors: BTreeMap<DatasetName, Mirror> = BTreeMap::new();
    for info in store.datasets()? {
        if let Some(mirror) = mirror::read(store, &info)? {
            mirrors.insert(info.name, mirror);
        }
    }
    let known: Vec<_> = units.iter().map(|unit| unit.id).collect();
    let with_mirrors = units
        .into_iter()
        .map(|unit| {
            let found =
                unit.volumes.iter().map(|volume| mirrors.get(&volume.dataset).cloned()).collect();
            (unit, found)
        })
        .collect();
    mirrors.retain(|_, mirror| !known.contains(&mirror.unit));
    Ok(Boot { units: with_mirrors, peers: Vec::new(), orphans: mirrors })
}
