//! Setting volumes aside: what is beyond a snapshot is kept under another name.
//!
//! Owns: that name, our holds on what goes, and finishing what a crash has left of an earlier call. Leaves
//! to others: how a store does it ([`flocker_store::Store::set_aside`]), and to write the mirrors anew (the
//! core asks for that; the store takes ours off both datasets, since a rename keeps the guid that they are
//! bound to).

use flocker_core::{Failure, FailureCode, Outcome, Remedy};
use flocker_store::{ASIDE, DatasetName, HoldTag, PropertySource, SnapshotName, Store, StoreError};

use super::Tools;

/// Between a dataset's name and the time.
const DIVERGED: &str = "-diverged-";

/// Names tried when one is taken: two datasets set aside in one second.
const MAX_NAMES: u32 = 20;

pub(super) fn set_aside(
    tools: &Tools,
    keep: &[SnapshotName],
    tag: &HoldTag,
    wall_ms: i64,
) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    let begun = unfinished(store).map_err(|e| Failure::from(&e))?;
    let mut all = Vec::with_capacity(keep.len());
    for keep in keep {
        let name = match begun.iter().find(|(begun, _)| begun == keep) {
            Some((_, name)) => name.clone(),
            None => free_name(store, keep.dataset(), wall_ms)?,
        };
        let done = set_one_aside(store, keep, &name, tag).map_err(|e| Failure::from(&e))?;
        if done {
            tracing::warn!(
                dataset = %keep.dataset(), aside = %name, kept = %keep,
                "what was beyond the kept snapshot is set aside; look at it, then destroy it"
            );
            let mut paths = tools.paths.lock().unwrap_or_else(|p| p.into_inner());
            paths.remove(keep.dataset());
        }
        all.push(done.then_some(name));
    }
    Ok(Outcome::SetAside { aside: all })
}

/// `dataset-diverged-20261126T120501Z`, the time in UTC.
fn diverged_name(dataset: &DatasetName, wall_ms: i64, number: u32) -> Result<DatasetName, Failure> {
    let wrong = |what: String| Failure::refused(FailureCode::Other, what);
    let time = jiff::Timestamp::from_millisecond(wall_ms)
        .map_err(|e| wrong(format!("{wall_ms} is no time to name what is set aside: {e}")))?;
    let time = time.strftime("%Y%m%dT%H%M%SZ");
    let more = if number == 0 { String::new() } else { format!("-{}", number + 1) };
    DatasetName::new(format!("{dataset}{DIVERGED}{time}{more}"))
        .map_err(|e| wrong(format!("{dataset} cannot be set aside under a name of its own: {e}")))
}

fn free_name(
    store: &dyn Store,
    dataset: &DatasetName,
    wall_ms: i64,
) -> Result<DatasetName, Failure> {
    for number in 0..MAX_NAMES {
        let name = diverged_name(dataset, wall_ms, number)?;
        match store.dataset(&name) {
            Err(StoreError::NoDataset { .. }) => return Ok(name),
            Ok(_) => {}
            Err(error) => return Err(Failure::from(&error)),
        }
    }
    let text = format!("every name for setting {dataset} aside is taken; destroy some of them");
    Err(Failure::new(Remedy::Operator, FailureCode::Other, text))
}

/// What a crash has interrupted: the snapshot to keep, by the dataset's own name, and the name of what goes.
/// The mark is on the dataset, or on what it was renamed to.
fn unfinished(store: &dyn Store) -> Result<Vec<(SnapshotName, DatasetName)>, StoreError> {
    let mut found = Vec::new();
    for info in store.datasets()? {
        let properties = match store.user_properties(&info.name) {
            Ok(properties) => properties,
            Err(StoreError::NoDataset { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mark = properties.get(ASIDE).filter(|p| p.source == PropertySource::Local);
        let Some(mark) = mark.and_then(|mark| mark.value.parse::<SnapshotName>().ok()) else {
            continue;
        };
        let aside = mark.dataset().clone();
        let Some((dataset, _)) = aside.as_str().rsplit_once(DIVERGED) else { continue };
        let dataset = DatasetName::reported(dataset)?;
        // A mark that was copied, or renamed by somebody else, says nothing.
        if info.name == dataset || info.name == aside {
            found.push((dataset.snapshot(mark.short())?, aside));
        }
    }
    Ok(found)
}

/// Finishes what a crash has interrupted, so that no dataset is missing when the node looks at what it has.
pub(crate) fn finish(store: &dyn Store) -> Result<(), StoreError> {
    for (keep, aside) in unfinished(store)? {
        tracing::warn!(kept = %keep, %aside, "setting aside goes on where it was interrupted");
        store.set_aside(&keep, &aside)?;
    }
    Ok(())
}

/// Our holds come off what goes, before it goes: nobody would look for them there. Those on what stays keep
/// their place, since a hold stays with its snapshot.
fn set_one_aside(
    store: &dyn Store,
    keep: &SnapshotName,
    aside: &DatasetName,
    tag: &HoldTag,
) -> Result<bool, StoreError> {
    if store.capabilities().holds {
        for dataset in [keep.dataset(), aside] {
            let inventory = match store.inventory(dataset) {
                Ok(inventory) => inventory,
                Err(StoreError::NoDataset { .. }) => continue,
                Err(error) => return Err(error),
            };
            // In what was renamed and not yet promoted the kept one may be there still.
            let kept = inventory.snapshots.iter().find(|s| s.name.short() == keep.short());
            let after = kept.map_or(0, |kept| kept.createtxg + 1);
            if kept.is_none() && dataset == keep.dataset() {
                return Err(StoreError::NoSnapshot { name: keep.to_string() });
            }
            let beyond: Vec<SnapshotName> = inventory
                .snapshots
                .into_iter()
                .filter(|s| s.createtxg >= after && s.holds > 0)
                .map(|s| s.name)
                .collect();
            if !beyond.is_empty() {
                store.release(tag, &beyond)?;
            }
        }
    }
    store.set_aside(keep, aside)
}
