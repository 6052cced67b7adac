//! Setting volumes aside: what is beyond a snapshot is kept under another name.
//!
//! Owns: that name, our holds on what goes, and finishing what a crash has left of an earlier call. Leaves
//! to others: how a store does it ([`flocker_store::Store::set_aside`]), and to write the mirrors anew (the
//! core asks for that; the store takes ours off both datasets, since a rename keeps the guid that they are
//! bound to).

use std::collections::BTreeSet;

use flocker_core::tree::{ASIDE_MARK, tops, with_all_below};
use flocker_core::{Failure, FailureCode, Outcome, Remedy};
use flocker_store::{ASIDE, DatasetName, HoldTag, PropertySource, SnapshotName, Store, StoreError};

use super::Tools;

/// Between a dataset's name and the time.
const DIVERGED: &str = ASIDE_MARK;

/// Names tried when one is taken: two datasets set aside in one second.
const MAX_NAMES: u32 = 20;

pub(super) fn set_aside(
    tools: &Tools,
    keep: &[SnapshotName],
    away: &[DatasetName],
    tag: &HoldTag,
    wall_ms: i64,
) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    // Refused before anything is set aside.
    refuse_children(store, away)?;
    let mut aside = set_all_aside(store, keep, tag, wall_ms)?;
    aside.extend(put_all_away(store, away, tag, wall_ms)?);
    let mut paths = tools.paths.lock().unwrap_or_else(|p| p.into_inner());
    let concerned = keep.iter().map(SnapshotName::dataset).chain(away);
    for (dataset, _) in concerned.zip(&aside).filter(|(_, aside)| aside.is_some()) {
        paths.remove(dataset);
    }
    drop(paths);
    Ok(Outcome::SetAside { aside })
}

fn set_all_aside(
    store: &dyn Store,
    keep: &[SnapshotName],
    tag: &HoldTag,
    wall_ms: i64,
) -> Result<Vec<Option<DatasetName>>, Failure> {
    // Only those are asked about: the more datasets a node has, the longer all of them take.
    let ours: BTreeSet<&str> = keep.iter().map(|keep| keep.dataset().as_str()).collect();
    let concerned = |name: &DatasetName| {
        let was = name.as_str().rsplit_once(DIVERGED).map(|(name, _)| name);
        ours.contains(name.as_str()) || was.is_some_and(|was| ours.contains(was))
    };
    let begun = unfinished(store, concerned).map_err(|e| Failure::from(&e))?;
    // Those above first: one that a crash has left renamed has those below it with it, until it is finished.
    let mut order: Vec<usize> = (0..keep.len()).collect();
    order.sort_by_key(|at| keep[*at].dataset());
    let mut all = vec![None; keep.len()];
    for at in order {
        let keep = &keep[at];
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
        }
        all[at] = done.then_some(name);
    }
    Ok(all)
}

/// What lies below goes along with a rename, whosever it is: it has to go away itself, or be what was set aside of
/// one that does.
fn refuse_children(store: &dyn Store, away: &[DatasetName]) -> Result<(), Failure> {
    if away.is_empty() {
        return Ok(());
    }
    let going: BTreeSet<&DatasetName> = away.iter().collect();
    let all = store.datasets().map_err(|e| Failure::from(&e))?;
    let goes = |name: &DatasetName| {
        let was = name.as_str().split_once(DIVERGED).map(|(name, _)| DatasetName::reported(name));
        going.contains(name) || was.is_some_and(|was| was.is_ok_and(|was| going.contains(&was)))
    };
    let names: Vec<&DatasetName> = all.iter().map(|info| &info.name).collect();
    let below = with_all_below(names.iter().copied(), &going);
    match below.iter().find(|name| !goes(name)) {
        None => Ok(()),
        Some(child) => {
            let text = format!(
                "what has to be renamed away as a whole has {child} below it, which does not go: move that first"
            );
            Err(Failure::new(Remedy::Operator, FailureCode::Busy, text))
        }
    }
}

/// Renames whole datasets away, each with those that lie below it: these go along, and are not named by themselves.
/// The rename is the last step of each and one by itself, so what is called again after a crash finds it done, or
/// all of it to do.
fn put_all_away(
    store: &dyn Store,
    away: &[DatasetName],
    tag: &HoldTag,
    wall_ms: i64,
) -> Result<Vec<Option<DatasetName>>, Failure> {
    let tops = tops(away);
    let mut order: Vec<usize> = (0..away.len()).collect();
    order.sort_by(|a, b| away[*b].cmp(&away[*a]));
    let mut aside = vec![None; away.len()];
    for at in order {
        match tops[at] == away[at] {
            true => aside[at] = put_away(store, &away[at], tag, wall_ms)?,
            false => let_go(store, &away[at], tag).map(drop)?,
        }
    }
    Ok(aside)
}

/// Takes ours off a dataset that goes away. `false`: there is none.
fn let_go(store: &dyn Store, dataset: &DatasetName, tag: &HoldTag) -> Result<bool, Failure> {
    let failure = |error: StoreError| Failure::from(&error);
    let inventory = match store.inventory(dataset) {
        Ok(inventory) => inventory,
        Err(StoreError::NoDataset { .. }) => return Ok(false),
        Err(error) => return Err(failure(error)),
    };
    let names: Vec<SnapshotName> = inventory.snapshots.into_iter().map(|s| s.name).collect();
    if store.capabilities().holds && !names.is_empty() {
        store.release(tag, &names).map_err(failure)?;
    }
    // A rename keeps the guid that a claim is bound to.
    crate::mirror::remove(store, dataset).map_err(failure)?;
    Ok(true)
}

fn put_away(
    store: &dyn Store,
    dataset: &DatasetName,
    tag: &HoldTag,
    wall_ms: i64,
) -> Result<Option<DatasetName>, Failure> {
    if !let_go(store, dataset, tag)? {
        return Ok(None);
    }
    let name = free_name(store, dataset, wall_ms)?;
    store.rename(dataset, &name).map_err(|error| Failure::from(&error))?;
    tracing::warn!(
        %dataset, aside = %name,
        "it has nothing in common with the primary and is set aside as a whole; look at it, then destroy it"
    );
    Ok(Some(name))
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
fn unfinished(
    store: &dyn Store,
    concerned: impl Fn(&DatasetName) -> bool,
) -> Result<Vec<(SnapshotName, DatasetName)>, StoreError> {
    let mut found = Vec::new();
    for info in store.datasets()?.into_iter().filter(|info| concerned(&info.name)) {
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
    for (keep, aside) in unfinished(store, |_| true)? {
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
            // What has the old name and not the kept one is a clone that is not promoted yet, or for the
            // store to refuse.
            if kept.is_none() && dataset == keep.dataset() {
                continue;
            }
            let after = kept.map_or(0, |kept| kept.createtxg + 1);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use flocker_store::{DatasetKind, SnapshotSpec};
    use flocker_zfs::fixture::pool_or_skip;
    use flocker_zfs::{ZfsOptions, ZfsStore};

    use super::*;

    fn zfs(args: &[&str]) {
        let output = Command::new("zfs").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn an_attempt_at_another_time_finishes_what_the_one_before_left_at_any_step() {
        let test = "an_attempt_at_another_time_finishes";
        let Some(pool) = pool_or_skip("opsaside", 128, test) else { return };
        let store = ZfsStore::open(&pool.root(), ZfsOptions::default()).unwrap();
        let tag = HoldTag("ours".into());
        for done in 0..=5 {
            let dataset = pool.dataset(&format!("v{done}"));
            store.create(&dataset, DatasetKind::Filesystem).unwrap();
            let path = store.activate(&dataset).unwrap().unwrap();
            let (keep, later) =
                (dataset.snapshot("s1").unwrap(), dataset.snapshot("diverged").unwrap());
            std::fs::write(path.join("f"), "one").unwrap();
            let names = vec![keep.clone()];
            let spec = SnapshotSpec { names, quiesced: true, properties: BTreeMap::new() };
            store.snapshot(&spec).unwrap();
            std::fs::write(path.join("f"), "two").unwrap();
            store.fence(&dataset).unwrap();
            let aside = diverged_name(&dataset, 1_000, 0).unwrap();
            let kept = aside.snapshot("s1").unwrap().to_string();
            let mark = format!("{ASIDE}={kept}");
            let steps: [&[&str]; 5] = [
                &["snapshot", &later.to_string()],
                &["set", &mark, dataset.as_str()],
                &["rename", dataset.as_str(), aside.as_str()],
                &["clone", "-o", "canmount=off", &kept, dataset.as_str()],
                &["promote", dataset.as_str()],
            ];
            for step in &steps[..done] {
                zfs(step);
            }
            let now = 1_795_694_701_000;
            let begun = done >= 2;
            let expected = if begun { aside } else { diverged_name(&dataset, now, 0).unwrap() };
            let outcome = set_all_aside(&store, std::slice::from_ref(&keep), &tag, now);
            assert_eq!(outcome.unwrap(), [Some(expected.clone())], "after {done} steps");
            store.verify_unwritten(&keep).unwrap();
            let path = store.activate(&expected).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(path.join("f")).unwrap(), "two");
            store.fence(&expected).unwrap();
            let again = set_all_aside(&store, std::slice::from_ref(&keep), &tag, now + 1);
            assert_eq!(again.unwrap(), [None], "after {done} steps");
        }
    }
}
