//! What each action does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::io::{Inspected, MirrorState};
use flocker_core::record::{Program, StopSignal};
use flocker_core::{Action, Failure, FailureCode, Outcome, Remedy};
use flocker_store::{
    BookmarkName, Capabilities, Change, DatasetName, Guid, HoldTag, Holder, SnapshotName,
    SnapshotSpec, Store, StoreError,
};

use rustix::process::Signal;

use super::{Tools, drill};
use crate::driver::{Part, Starting, Still, Stopping};
use crate::{failpoint, mirror, network, old_copy};

fn failure(error: StoreError) -> Failure {
    Failure::from(&error)
}

pub(super) fn perform(tools: &Tools, unit: UnitId, action: Action) -> Result<Outcome, Failure> {
    match action {
        Action::Inspect { datasets, streams } => inspect(tools, &datasets, streams),
        Action::Rehearse { datasets, look } => {
            for dataset in &datasets {
                tools.store.rehearse(dataset).map_err(failure)?;
            }
            if look { inspect(tools, &datasets, false) } else { Ok(Outcome::Nothing) }
        }
        Action::Find { guid, within } => find(tools, guid, &within),
        Action::Room { root } => room(tools, &root),
        Action::Snapshot { names, freeze, quiesced } => {
            snapshot(tools, unit, names, freeze, quiesced)
        }
        Action::Tidy { tag, hold, release, destroy } => {
            tidy(tools, &tag, &hold, &release, &destroy)
        }
        Action::Mark { make, destroy } => mark(tools, &make, &destroy),
        Action::Changed { since } => changed(tools, &since),
        Action::ProbeWorkload { program } => {
            let running = tools.programs.probe(unit, program.as_ref())?;
            Ok(Outcome::Probed { running })
        }
        Action::DescribeWorkload { program, state, paths } => {
            tools.programs.describe(unit, &program, state.as_deref(), &paths)
        }
        Action::PreDump { program, state } => {
            tools.programs.pre_dump(unit, &program, &state)?;
            Ok(Outcome::Nothing)
        }
        Action::ReleaseWorkload { program } => {
            tools.programs.release(unit, Some(&program))?;
            Ok(Outcome::Nothing)
        }
        Action::StartWorkload { workload, datasets, paths, lease_until_ms } => {
            reachable(tools, &datasets, &paths)?;
            let lease = lease_until_ms.map(|until| tools.clock.deadline(until));
            let workload = &workload;
            start(tools, unit, Starting { workload, datasets: &datasets, paths: &paths, lease })
        }
        Action::StopWorkload { program, state, signal, before, limit_ms } => {
            let limit = Duration::from_millis(limit_ms);
            stop(tools, unit, before, &Stopping { program, state, signal, limit })
        }
        Action::Fence { datasets } => fence(tools, &datasets),
        Action::VerifyUnwritten { snapshots } => {
            for snapshot in &snapshots {
                tools.store.verify_unwritten(snapshot).map_err(failure)?;
            }
            Ok(Outcome::Nothing)
        }
        Action::Activate { datasets } => activate(tools, &datasets),
        Action::Preflight { datasets, program, description } => {
            preflight(tools, unit, &datasets, program.as_ref(), description.as_deref())
        }
        Action::Network { addresses, up } => {
            network::addresses::set(&addresses, up)?;
            Ok(Outcome::Nothing)
        }
        Action::SetAside { keep, away, tag, wall_ms } => {
            super::aside::set_aside(tools, &keep, &away, &tag, wall_ms)
        }
        Action::FencingHook { peer, peer_name } => tools.fencing.run(&peer, &peer_name),
        Action::Drill { name, snapshots, workload } => {
            drill::hold(tools, unit, &name, &snapshots, workload.as_ref())
        }
        Action::Mirror { mirrors } => write_mirrors(tools, &mirrors),
        Action::GiveBack { datasets, tag, prefix, keep_newest, at_rest, program } => {
            tools.programs.release(unit, program.as_ref())?;
            for dataset in &datasets {
                let there =
                    give_back(tools, dataset, &tag, &prefix, keep_newest).map_err(failure)?;
                if there && at_rest {
                    tools.store.fence(dataset).map_err(failure)?;
                }
            }
            Ok(Outcome::Nothing)
        }
    }
}

fn inspect(tools: &Tools, datasets: &[DatasetName], streams: bool) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    let look = |dataset: &DatasetName, inventory| -> Result<Inspected, StoreError> {
        let info = store.dataset(dataset)?;
        Ok(Inspected {
            inventory: inventory?,
            mirror: mirror::read(store, &info)?,
            info: Some(info),
            streams: None,
        })
    };
    let mut inspected = Vec::with_capacity(datasets.len());
    for (dataset, inventory) in datasets.iter().zip(store.inventories_with_clones(datasets)) {
        let mut found = match look(dataset, inventory) {
            Ok(found) => found,
            Err(StoreError::NoDataset { .. }) => Inspected::nothing(),
            Err(other) => return Err(failure(other)),
        };
        if streams {
            found.streams = Some(store.stream_features(dataset).map_err(failure)?);
        }
        inspected.push(found);
    }
    Ok(Outcome::Inspected(inspected))
}

/// Looks in each dataset that is one of these or below it.
fn find(tools: &Tools, guid: Guid, within: &[DatasetName]) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    let all = store.datasets().map_err(failure)?;
    let near = all.iter().map(|i| &i.name).filter(|n| within.iter().any(|w| n.is_within(w)));
    for dataset in near {
        match store.inventory(dataset) {
            Ok(inventory) => {
                if let Some(found) = inventory.snapshot(guid) {
                    return Ok(Outcome::Found(Some(found.name.clone())));
                }
            }
            // It went away meanwhile.
            Err(StoreError::NoDataset { .. }) => {}
            Err(error) => return Err(failure(error)),
        }
    }
    Ok(Outcome::Found(None))
}

fn preflight(
    tools: &Tools,
    unit: UnitId,
    datasets: &[DatasetName],
    program: Option<&Program>,
    description: Option<&str>,
) -> Result<Outcome, Failure> {
    let mut available_bytes = u64::MAX;
    for dataset in datasets {
        tools.store.rehearse(dataset).map_err(failure)?;
        let space = tools.store.space(dataset).map_err(failure)?;
        available_bytes = available_bytes.min(space.available_bytes);
    }
    let running = tools.programs.runs(unit, program)?;
    if let (Some(program), Some(description), false) = (program, description, running) {
        let paths = datasets.iter().map(|dataset| tools.store.live_path(dataset));
        let paths: Vec<Option<PathBuf>> = paths.collect::<Result<_, _>>().map_err(failure)?;
        // One without a path is a unit at rest, whose workload would not be started.
        if let Some(paths) = paths.into_iter().collect::<Option<Vec<PathBuf>>>() {
            tools.programs.prepare(unit, program, description, &paths)?;
        }
    }
    Ok(Outcome::Preflight { available_bytes, running })
}

fn room(tools: &Tools, root: &DatasetName) -> Result<Outcome, Failure> {
    let space = tools.store.space(root).map_err(failure)?;
    // Of a root that is not there, the space is its parent's, which others use too: what counts is what
    // is below it, as a vault allows.
    let used_bytes = match tools.store.dataset(root) {
        Ok(_) => space.used_bytes,
        Err(StoreError::NoDataset { .. }) => {
            used_below(tools.store.as_ref(), root).map_err(failure)?
        }
        Err(other) => return Err(failure(other)),
    };
    Ok(Outcome::Room { used_bytes, available_bytes: space.available_bytes })
}

/// What datasets below a name use that is none itself: of each the uppermost, whose space has the others'.
fn used_below(store: &dyn Store, root: &DatasetName) -> Result<u64, StoreError> {
    let all = store.datasets()?;
    let below: Vec<_> = all.iter().map(|info| &info.name).filter(|n| n.is_within(root)).collect();
    let uppermost = |name: &DatasetName| !below.iter().any(|o| *o != name && name.is_within(o));
    below.iter().filter(|n| uppermost(n)).map(|n| Ok(store.space(n)?.used_bytes)).sum()
}

/// Takes snapshots. In a store that cannot snapshot what is being written, a snapshot is only a
/// moment that was if nobody wrote meanwhile: the workload is frozen, and nobody else has a file
/// below the volume open for writing. Somebody else makes it fuzzy.
///
/// A group in a store that takes its snapshots one after another is one moment only while nobody writes:
/// there too the workload is frozen. Each by itself is whole in any case, so nobody else is looked for.
///
/// Others are looked for before the freeze, since it takes longer than the workload should stand;
/// who opens a file between the look and the snapshot is missed. Only the workload belongs there.
fn snapshot(
    tools: &Tools,
    unit: UnitId,
    names: Vec<SnapshotName>,
    freeze: bool,
    quiesced: bool,
) -> Result<Outcome, Failure> {
    let (look, freeze) = rest_needed(tools.store.capabilities(), names.len(), freeze, quiesced);
    let mut alone = true;
    if look {
        let paths = live_paths(tools, &names)?;
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let outsiders = tools.programs.processes.outsiders(unit, &paths);
        alone = outsiders.is_empty();
        tell_fuzzy(tools, unit, &outsiders);
    }
    let frozen = match freeze {
        true => Some(tools.programs.freeze(unit)?),
        false => None,
    };
    failpoint::pass(|| "frozen");
    let taken = tools.store.snapshot(&SnapshotSpec {
        names,
        quiesced: quiesced || (look && alone),
        properties: BTreeMap::new(),
    });
    // It goes on first, whatever came of it.
    let frozen_ms = frozen.map_or(0, Still::thaw);
    Ok(Outcome::Snapshots { snapshots: taken.map_err(failure)?, frozen_ms })
}

/// Whether others have to be looked for, and whether the workload has to be frozen.
fn rest_needed(can: &Capabilities, volumes: usize, freeze: bool, quiesced: bool) -> (bool, bool) {
    let look = !quiesced && !can.live_snapshot;
    let group = !quiesced && volumes > 1 && !can.atomic_group_snapshot;
    (look, (look && freeze) || group)
}

/// Says who makes snapshots fuzzy when it begins, and that it is over.
fn tell_fuzzy(tools: &Tools, unit: UnitId, outsiders: &[Holder]) {
    let mut fuzzy = tools.fuzzy.lock().unwrap_or_else(|p| p.into_inner());
    if outsiders.is_empty() {
        if fuzzy.remove(&unit) {
            tracing::info!("snapshots are whole again");
        }
    } else if fuzzy.insert(unit) {
        for holder in outsiders {
            tracing::warn!(%holder, "snapshots are fuzzy: somebody else is writing the volume");
        }
    }
}

fn live_paths(tools: &Tools, names: &[SnapshotName]) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for name in names {
        let info = tools.store.dataset(name.dataset()).map_err(failure)?;
        paths.extend(info.mounted_at);
    }
    Ok(paths)
}

/// Holds must be there before anything is let go; what is let go is tried to the end, so that one
/// snapshot in the way does not keep all others for ever.
fn tidy(
    tools: &Tools,
    tag: &HoldTag,
    hold: &[SnapshotName],
    release: &[SnapshotName],
    destroy: &[SnapshotName],
) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    let holds = store.capabilities().holds;
    if holds && !hold.is_empty() {
        store.hold(tag, hold).map_err(failure)?;
    }
    let released = match holds && !release.is_empty() {
        true => store.release(tag, release),
        false => Ok(()),
    };
    let destroyed = match destroy.is_empty() {
        true => Ok(()),
        false => destroy_what_goes(store, destroy),
    };
    released.and(destroyed).map_err(failure)?;
    Ok(Outcome::Nothing)
}

fn mark(
    tools: &Tools,
    make: &[(SnapshotName, BookmarkName)],
    destroy: &[BookmarkName],
) -> Result<Outcome, Failure> {
    let store = tools.store.as_ref();
    for (snapshot, bookmark) in make {
        match store.bookmark(snapshot, bookmark) {
            Ok(()) => {}
            // Ours, from before a crash, if it is of this very snapshot.
            Err(StoreError::Exists { name }) => {
                let inventory = store.inventory(snapshot.dataset()).map_err(failure)?;
                let of = inventory.snapshots.iter().find(|s| s.name == *snapshot).map(|s| s.guid);
                let is = inventory.bookmarks.iter().find(|b| b.name == *bookmark).map(|b| b.guid);
                if of.is_none() || of != is {
                    return Err(failure(StoreError::Exists { name }));
                }
            }
            Err(error) => return Err(failure(error)),
        }
    }
    if !destroy.is_empty() {
        store.destroy_bookmarks(destroy).map_err(failure)?;
    }
    Ok(Outcome::Nothing)
}

/// Destroys snapshots of ours that nobody needs. One that somebody else needs, by a hold or a clone, stays for as long
/// as they do, and `holds` shows it: nothing is wrong.
fn destroy_what_goes(store: &dyn Store, snapshots: &[SnapshotName]) -> Result<(), StoreError> {
    match store.destroy_snapshots(snapshots) {
        Err(StoreError::Kept { name, by }) => {
            tracing::debug!(snapshot = %name, %by, "a snapshot that we do not need is kept by others");
            Ok(())
        }
        outcome => outcome,
    }
}

fn changed(tools: &Tools, since: &[SnapshotName]) -> Result<Outcome, Failure> {
    let mut all = Change::Unchanged;
    for snapshot in since {
        let one = tools.store.changed_since(snapshot).map_err(failure)?;
        all = match (all, one) {
            (Change::Changed { bytes: a }, Change::Changed { bytes: b }) => {
                Change::Changed { bytes: a.saturating_add(b) }
            }
            (changed @ Change::Changed { .. }, _) | (_, changed @ Change::Changed { .. }) => {
                changed
            }
            (Change::Unknown, _) | (_, Change::Unknown) => Change::Unknown,
            (Change::Unchanged, Change::Unchanged) => Change::Unchanged,
        };
    }
    Ok(Outcome::Changed(all))
}

/// For how long what an activation has read back is not looked at once more.
const JUST_NOW: Duration = Duration::from_millis(100);

/// Where an activation has made a dataset reachable.
#[derive(Debug, Clone)]
pub(crate) struct Reachable {
    pub(crate) path: PathBuf,
    /// The filesystem that was there, which a bare mountpoint is not.
    device: Option<u64>,
    at: Instant,
}

impl Reachable {
    fn now(path: &Path) -> Self {
        Self { path: path.to_owned(), device: device_at(path), at: Instant::now() }
    }

    fn holds_just_now(&self, path: &Path) -> bool {
        let recent = self.path == path && self.at.elapsed() < JUST_NOW;
        recent && self.device.is_some() && self.device == device_at(path)
    }
}

fn device_at(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.dev())
}

/// A workload that was started beside its volume would write where nothing is replicated.
fn reachable(tools: &Tools, datasets: &[DatasetName], paths: &[PathBuf]) -> Result<(), Failure> {
    for (dataset, path) in datasets.iter().zip(paths) {
        // In a move the start comes right behind the activation, which has just read all that back.
        let known = tools.paths.lock().unwrap_or_else(|p| p.into_inner()).get(dataset).cloned();
        if known.is_some_and(|known| known.holds_just_now(path)) {
            continue;
        }
        let info = tools.store.dataset(dataset).map_err(failure)?;
        if info.mounted_at.as_ref() == Some(path) && info.writable && path.exists() {
            continue;
        }
        let text = format!(
            "{dataset} is not mounted writable at {}: the workload is not started there",
            path.display()
        );
        return Err(Failure::new(Remedy::Retry, FailureCode::NotFound, text));
    }
    Ok(())
}

/// How long the hook after a start may take.
const AFTER_START_LIMIT: Duration = Duration::from_secs(60);

fn start(tools: &Tools, unit: UnitId, what: Starting<'_>) -> Result<Outcome, Failure> {
    let parts = tools.programs.start(unit, what)?;
    if let Some(hook) = &what.workload.hooks.after_start
        && let Err(failure) =
            tools.programs.processes.hook(unit, hook, what.paths, AFTER_START_LIMIT)
    {
        tracing::warn!(%failure, "the workload runs; the hook after its start did not do its part");
    }
    Ok(timed(parts))
}

/// The hook comes first, and only where there is something to stop: it may want to talk to it.
fn stop(
    tools: &Tools,
    unit: UnitId,
    before: Option<Vec<String>>,
    what: &Stopping,
) -> Result<Outcome, Failure> {
    if let Some(hook) = before
        && tools.programs.runs(unit, what.program.as_ref())?
    {
        tools.programs.processes.hook(unit, &hook, &[], what.limit)?;
    }
    Ok(timed(tools.programs.stop(unit, what)?))
}

fn timed(parts: Vec<Part>) -> Outcome {
    match parts.is_empty() {
        true => Outcome::Nothing,
        false => {
            Outcome::Timed { parts: parts.into_iter().map(|p| (p.name.into(), p.ms)).collect() }
        }
    }
}

pub(crate) fn stop_signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
    }
}

/// Fences one volume after the other, those below before those above, since a mount below another one is in its way.
/// Where one is in use the others are fenced all the same: whoever takes the attempt back activates them all. One that
/// does not exist cannot be written.
fn fence(tools: &Tools, datasets: &[DatasetName]) -> Result<Outcome, Failure> {
    let mut left: Vec<&DatasetName> = datasets.iter().collect();
    left.sort_by(|a, b| b.cmp(a));
    let (mut fenced, mut missing) = (false, None);
    loop {
        let (mut busy, mut in_use) = (Vec::new(), None);
        for dataset in &left {
            match tools.store.fence(dataset) {
                Ok(()) => fenced = true,
                Err(error @ StoreError::NoDataset { .. }) => missing = Some(failure(error)),
                Err(error @ StoreError::Busy { .. }) => {
                    busy.push(*dataset);
                    in_use.get_or_insert(failure(error));
                    continue;
                }
                Err(error) => return Err(failure(error)),
            }
            tools.paths.lock().unwrap_or_else(|p| p.into_inner()).remove(*dataset);
        }
        match in_use {
            // It may be mounted below another one that was fenced after it.
            Some(_) if busy.len() < left.len() => left = busy,
            Some(in_use) => return Err(in_use),
            None => break,
        }
    }
    match missing {
        Some(missing) if !fenced => Err(missing),
        _ => Ok(Outcome::Nothing),
    }
}

/// Those above before those below, whose mountpoints lie in theirs.
fn activate(tools: &Tools, datasets: &[DatasetName]) -> Result<Outcome, Failure> {
    let mut order: Vec<usize> = (0..datasets.len()).collect();
    order.sort_by_key(|at| &datasets[*at]);
    let mut all = vec![None; datasets.len()];
    for at in order {
        let dataset = &datasets[at];
        let path = tools.store.activate(dataset).map_err(failure)?;
        if let Some(path) = &path {
            let mut paths = tools.paths.lock().unwrap_or_else(|p| p.into_inner());
            paths.insert(dataset.clone(), Reachable::now(path));
        }
        all[at] = path;
    }
    Ok(Outcome::Activated { paths: all })
}

fn write_mirrors(
    tools: &Tools,
    mirrors: &[(DatasetName, MirrorState)],
) -> Result<Outcome, Failure> {
    // One that was not received yet does not keep the others from it.
    let mut missing = Ok(Outcome::Nothing);
    for (dataset, state) in mirrors {
        match mirror::write(tools.store.as_ref(), dataset, state) {
            Err(error @ StoreError::NoDataset { .. }) => missing = Err(failure(error)),
            outcome => outcome.map_err(failure)?,
        }
    }
    missing
}

/// Takes back what is ours on one dataset. One that is gone has nothing to give back: `false`.
fn give_back(
    tools: &Tools,
    dataset: &DatasetName,
    tag: &HoldTag,
    prefix: &str,
    keep_newest: bool,
) -> Result<bool, StoreError> {
    let store = tools.store.as_ref();
    let inventory = match store.inventory(dataset) {
        Ok(inventory) => inventory,
        Err(StoreError::NoDataset { .. }) => return Ok(false),
        Err(other) => return Err(other),
    };
    if store.capabilities().holds {
        // Also on what others have taken: the base of a replica that was adopted.
        let held = inventory.snapshots.iter().filter(|s| s.holds > 0).map(|s| s.name.clone());
        let held: Vec<SnapshotName> = held.collect();
        if !held.is_empty() {
            store.release(tag, &held)?;
        }
    }
    let bookmarks = inventory.bookmarks.iter().map(|bookmark| &bookmark.name);
    let bookmarks: Vec<BookmarkName> =
        bookmarks.filter(|name| name.short().starts_with(prefix)).cloned().collect();
    let mut ours: Vec<SnapshotName> = inventory
        .snapshots
        .into_iter()
        .map(|snapshot| snapshot.name)
        .filter(|name| name.short().starts_with(prefix))
        .collect();
    if keep_newest {
        ours.pop();
    }
    if !ours.is_empty() {
        destroy_what_goes(store, &ours)?;
    }
    if !bookmarks.is_empty() {
        store.destroy_bookmarks(&bookmarks)?;
    }
    mirror::remove(store, dataset)?;
    // A replica that is left may be what another one is made of, some day.
    let kept = if keep_newest { old_copy::keep(store, dataset)? } else { Default::default() };
    store.give_back(dataset)?;
    if !kept.is_empty() {
        store.set_user_properties(dataset, &kept)?;
    }
    let mut paths = tools.paths.lock().unwrap_or_else(|p| p.into_inner());
    paths.remove(dataset);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_taken_from_a_frozen_workload_unless_the_store_takes_it_as_one_moment() {
        let dir = tempfile::tempdir().unwrap();
        let vault = flocker_vault::Vault::create(dir.path().join("v")).unwrap();
        let vault = flocker_store::Store::capabilities(&vault).clone();
        let openzfs =
            Capabilities { live_snapshot: true, atomic_group_snapshot: true, ..vault.clone() };
        let fuse = Capabilities { atomic_group_snapshot: false, ..openzfs.clone() };
        // (others looked for, frozen)
        assert_eq!(rest_needed(&openzfs, 3, false, false), (false, false));
        assert_eq!(rest_needed(&fuse, 1, false, false), (false, false));
        assert_eq!(rest_needed(&fuse, 2, false, false), (false, true));
        assert_eq!(rest_needed(&fuse, 2, false, true), (false, false), "it is stopped");
        assert_eq!(rest_needed(&vault, 2, true, false), (true, true));
        assert_eq!(rest_needed(&vault, 1, false, false), (true, false));
    }
}
