//! A drill: the workload on clones of a replica's snapshots, where nobody can reach it.
//!
//! Isolated means: a network namespace of its own with nothing but the loopback interface, another mark
//! than the unit's own processes, no addresses, no forwards, no lease, no hooks. It sees the clones by
//! `FLOCKER_VOLUME_PATH` and as its working directory; a command that names the volume's usual path
//! finds that as it is on a standby. Everything is taken away again, also after a failure, and what a
//! dead daemon left behind at the next start.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::record::{Program, WorkloadRecord};
use flocker_core::{Failure, FailureCode, Outcome, Remedy};
use flocker_store::{CloneAccess, DatasetName, SnapshotName, StoreError};

use super::Tools;
use super::act::stop_signal;
use crate::clock::millis;
use crate::workload::Start;

/// What a clone's name begins with, directly below the store's root.
pub(crate) const PREFIX: &str = "drill-";

/// Program and arguments that put what follows into a network namespace of its own (util-linux).
const ISOLATE: [&str; 3] = ["unshare", "--net", "--"];

/// The supervisor of drills, made of that of workloads.
pub(crate) fn supervisor(ordinary: &[String]) -> Vec<String> {
    let mut all: Vec<String> = ISOLATE.map(String::from).to_vec();
    all.extend_from_slice(ordinary);
    all.push("--loopback".to_owned());
    all
}

/// Parts and how long each took.
#[derive(Default)]
struct Parts(Vec<(String, u64)>);

impl Parts {
    fn timed<T>(&mut self, part: &str, what: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = what();
        self.0.push((part.to_owned(), millis(begun.elapsed())));
        done
    }
}

/// Holds a drill. What went wrong in it is its result, not a failure of the action.
pub(super) fn hold(
    tools: &Tools,
    unit: UnitId,
    name: &str,
    snapshots: &[SnapshotName],
    workload: Option<&WorkloadRecord>,
) -> Result<Outcome, Failure> {
    let clones = nested_names(tools.store.root(), name, snapshots)?;
    let mut parts = Parts::default();
    let cloned = parts.timed("clone", || clone_all(tools, snapshots, &clones));
    let mut trouble = match (cloned, workload) {
        (Ok(paths), Some(workload)) => {
            try_workload(tools, unit, workload, &paths, &mut parts).err()
        }
        (Ok(_), None) => None,
        (Err(failure), _) => Some(failure),
    };
    let removed = parts.timed("remove", || remove_all(tools, &clones));
    if let Err(failure) = removed {
        trouble.get_or_insert(failure);
    }
    Ok(Outcome::Drilled { parts_ms: parts.0, trouble })
}

/// Names of copies: flat, since nothing but a dataset could be above them.
pub(crate) fn clone_names(
    root: &DatasetName,
    prefix: &str,
    name: &str,
    count: usize,
) -> Result<Vec<DatasetName>, Failure> {
    (0..count)
        .map(|at| {
            let text = match count {
                1 => format!("{root}/{prefix}{name}"),
                _ => format!("{root}/{prefix}{name}:{at}"),
            };
            DatasetName::new(text).map_err(|error| Failure::from(&StoreError::from(error)))
        })
        .collect()
}

/// Names of clones: those of a tree lie below each other as its datasets do, so that they are mounted so.
fn nested_names(
    root: &DatasetName,
    name: &str,
    snapshots: &[SnapshotName],
) -> Result<Vec<DatasetName>, Failure> {
    let datasets: Vec<DatasetName> = snapshots.iter().map(|s| s.dataset().clone()).collect();
    let places = flocker_core::tree::places(&datasets);
    let tree = datasets.len() > 1 && places.first().is_some_and(String::is_empty);
    if !tree {
        return clone_names(root, PREFIX, name, snapshots.len());
    }
    let place = |place: &String| {
        let text = format!("{root}/{PREFIX}{name}/{place}");
        DatasetName::new(text.trim_end_matches('/'))
            .map_err(|error| Failure::from(&StoreError::from(error)))
    };
    places.iter().map(place).collect()
}

fn clone_all(
    tools: &Tools,
    snapshots: &[SnapshotName],
    clones: &[DatasetName],
) -> Result<Vec<PathBuf>, Failure> {
    remove_all(tools, clones)?;
    let mut order: Vec<usize> = (0..clones.len()).collect();
    order.sort_by_key(|at| &clones[*at]);
    let mut paths = vec![None; clones.len()];
    for at in order {
        paths[at] = tools
            .store
            .clone_snapshot(&snapshots[at], &clones[at], CloneAccess::Writable)
            .map_err(|error| Failure::from(&error))?;
    }
    Ok(paths.into_iter().flatten().collect())
}

fn try_workload(
    tools: &Tools,
    unit: UnitId,
    workload: &WorkloadRecord,
    paths: &[PathBuf],
    parts: &mut Parts,
) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        let text = "the workload was not started: a network namespace of its own needs root; the clones could be made";
        return Err(Failure::refused(FailureCode::Unsupported, text));
    }
    let Program::Process(command) = &workload.program else {
        let text = format!(
            "{} was not started: a drill can isolate only a process so far; the clones could be made",
            workload.program
        );
        return Err(Failure::refused(FailureCode::Unsupported, text));
    };
    let start = Start { command, paths, stays: true, health: None, lease: None };
    parts.timed("start", || tools.drills.start(unit, &start))?;
    let healthy = parts.timed("health", || match &workload.health {
        Some(health) => tools.drills.wait_until_healthy(unit, &start, health),
        None => lives(tools, unit, command),
    });
    let limit = Duration::from_millis(workload.stop_limit_ms);
    let stopped =
        parts.timed("stop", || tools.drills.stop(unit, stop_signal(workload.stop_signal), limit));
    healthy.and(stopped)
}

/// Without a health check it is asked for a moment whether it lives at all.
fn lives(tools: &Tools, unit: UnitId, command: &[String]) -> Result<(), Failure> {
    const MOMENT: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    while begun.elapsed() < MOMENT {
        if !tools.drills.runs(unit) {
            let text = format!("`{}` ended within {MOMENT:?}", command.join(" "));
            return Err(Failure::new(Remedy::Operator, FailureCode::Unhealthy, text));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// All are tried, whatever becomes of the others.
fn remove_all(tools: &Tools, clones: &[DatasetName]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    let mut lowest_first: Vec<&DatasetName> = clones.iter().collect();
    lowest_first.sort_by(|a, b| b.cmp(a));
    for clone in lowest_first {
        if let Err(error) = tools.store.remove_clone(clone) {
            outcome = Err(Failure::from(&error));
        }
    }
    outcome
}

/// At a start: takes away what a daemon that died during a drill has left behind.
pub(crate) fn clean_up(tools: &Tools, units: &[UnitId]) {
    for unit in units {
        if let Err(failure) = tools.drills.probe(*unit) {
            tracing::error!(unit = %unit.short(), %failure, "what a drill left behind does not end");
        }
    }
    let root = tools.store.root();
    let datasets = match tools.store.datasets() {
        Ok(datasets) => datasets,
        Err(error) => {
            tracing::error!(%error, "it is not known whether a drill left clones behind");
            return;
        }
    };
    let beginning = format!("{root}/{PREFIX}");
    // Parents come first, and go last.
    for name in datasets.into_iter().rev().map(|info| info.name) {
        if !name.as_str().starts_with(&beginning) {
            continue;
        }
        match tools.store.remove_clone(&name) {
            Ok(()) => {
                tracing::info!(dataset = %name, "the clone of a drill that never ended is gone")
            }
            // Somebody's own dataset that happens to be called so.
            Err(StoreError::NotCapable { .. }) => {}
            Err(error) => {
                tracing::error!(dataset = %name, %error, "the clone of a drill stays behind")
            }
        }
    }
}
