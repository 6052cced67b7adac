//! What actions do to the model: stores, mounts, workloads.

use flocker_core::failure::Remedy;
use flocker_core::ids::{OpId, UnitId};
use flocker_core::io::{Inspected, MirrorState};
use flocker_core::record::{Mirror, WorkloadRecord};
use flocker_core::{Action, Failure, FailureCode, Input, Outcome};
use flocker_store::{
    Change, DatasetName, HoldTag, SnapshotName, StoreError, StreamFeature, StreamFeatures,
};

use super::check::Rule;
use super::host::{Mishap, Workload};
use super::scenario::ModelBug;
use super::trees::is_late;
use super::world::{Ev, World};

pub(super) type Done = Result<Outcome, Failure>;

pub(super) fn stored<T>(result: Result<T, StoreError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::from(&error))
}

/// As the engine does with several datasets: one that is not there does not keep the others from it.
fn all_that_are_there(
    done: impl Iterator<Item = Result<(), StoreError>>,
) -> Result<Outcome, StoreError> {
    let (mut any, mut missing) = (false, None);
    for one in done {
        match one {
            Ok(()) => any = true,
            Err(error @ StoreError::NoDataset { .. }) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(missing) if !any => Err(missing),
        _ => Ok(Outcome::Nothing),
    }
}

pub(super) fn injected(when: &str) -> Failure {
    Failure::new(Remedy::Retry, FailureCode::Other, format!("a fault was injected {when}"))
}

impl World {
    /// How long an action takes without a mishap, milliseconds.
    pub(super) fn action_takes_ms(&mut self, node: usize, unit: UnitId, action: &Action) -> u64 {
        match action {
            Action::StopWorkload { limit_ms, .. } => {
                let runs = self.hosts[node].workloads.contains_key(&unit);
                let stop_ms = self.scenario.stop_ms;
                if runs { self.rng.range(1, stop_ms).min(*limit_ms) } else { 1 }
            }
            Action::StartWorkload { .. } => self.rng.range(1, 300),
            Action::Snapshot { .. }
            | Action::Tidy { .. }
            | Action::Mark { .. }
            | Action::Mirror { .. } => self.rng.range(1, 60),
            Action::Inspect { .. }
            | Action::Rehearse { .. }
            | Action::Room { .. }
            | Action::Find { .. }
            | Action::Changed { .. }
            | Action::ProbeWorkload { .. }
            | Action::DescribeWorkload { .. }
            | Action::ReleaseWorkload { .. }
            | Action::PreDump { .. }
            | Action::Fence { .. }
            | Action::VerifyUnwritten { .. }
            | Action::Activate { .. }
            | Action::Preflight { .. }
            | Action::Network { .. }
            | Action::SetAside { .. }
            | Action::FencingHook { .. }
            | Action::Drill { .. }
            | Action::GiveBack { .. } => self.rng.range(1, 25),
        }
    }

    /// A directory's writers are frozen from the action's begin to its end.
    pub(super) fn freeze_begins(&mut self, node: usize, unit: UnitId, action: &Action) {
        if let Action::Snapshot { freeze: true, .. } = action
            && let Some(workload) = self.hosts[node].workloads.get_mut(&unit)
        {
            workload.frozen = true;
        }
    }

    pub(super) fn freeze_ends(&mut self, node: usize, unit: UnitId, action: &Action) {
        if let Action::Snapshot { freeze: true, .. } = action
            && let Some(workload) = self.hosts[node].workloads.get_mut(&unit)
        {
            workload.frozen = false;
        }
    }

    pub(super) fn on_op_apply(&mut self, node: usize, boot: u64, op: OpId) {
        let Some(life) = self.life_mut(node, boot) else { return };
        let Some(state) = life.ops.get(&op) else { return };
        let (unit, action, mishap) = (state.unit, state.action.clone(), state.mishap);
        let outcome = match mishap {
            None => self.apply(node, unit, &action),
            Some(Mishap::Undone) => Err(injected("before it was done")),
            Some(Mishap::DoneYetReported) => {
                let done = self.apply(node, unit, &action);
                done.and(Err(injected("after it was done")))
            }
        };
        self.trace(|| format!("n{node} applied {op:?}: {outcome:?}"));
        if let Some(state) = self.life_mut(node, boot).and_then(|life| life.ops.get_mut(&op)) {
            state.outcome = Some(outcome);
        }
    }

    /// Does it. Also called for what a crash left half done.
    pub(super) fn apply(&mut self, node: usize, unit: UnitId, action: &Action) -> Done {
        match action {
            Action::Rehearse { look: false, .. } => Ok(Outcome::Nothing),
            Action::Inspect { datasets, streams } => Ok(self.inspect(node, datasets, *streams)),
            Action::Rehearse { datasets, .. } => Ok(self.inspect(node, datasets, false)),
            Action::Find { guid, within } => {
                let found = self.hosts[node].store.find(*guid, within);
                Ok(Outcome::Found(found))
            }
            Action::Room { root } => {
                let store = &self.hosts[node].store;
                let available_bytes = if store.full { 0 } else { 1 << 50 };
                Ok(Outcome::Room { used_bytes: store.used_bytes(root), available_bytes })
            }
            Action::Snapshot { names, freeze, quiesced } => {
                self.snapshot(node, unit, names, *freeze, *quiesced)
            }
            Action::Tidy { tag, hold, release, destroy } => {
                self.tidy(node, tag, hold, release, destroy)
            }
            Action::Mark { make, destroy } => {
                let kinds = [(make.is_empty(), "bookmarked"), (destroy.is_empty(), "unbookmarked")];
                for (_, what) in kinds.into_iter().filter(|(none, _)| !none) {
                    self.coverage.fault(what);
                }
                let store = &mut self.hosts[node].store;
                for (snapshot, bookmark) in make {
                    stored(store.bookmark(snapshot, bookmark))?;
                }
                for bookmark in destroy {
                    store.destroy_bookmark(bookmark);
                }
                Ok(Outcome::Nothing)
            }
            Action::Changed { since } => self.changed(node, since),
            Action::ProbeWorkload { .. } => Ok(self.probe(node, unit)),
            Action::DescribeWorkload { program, .. } => {
                Ok(Outcome::Described { description: program.to_string(), losses: Vec::new() })
            }
            Action::PreDump { .. } | Action::ReleaseWorkload { .. } => Ok(Outcome::Nothing),
            Action::StartWorkload { workload, datasets, lease_until_ms, .. } => {
                self.lease_is(node, unit, *lease_until_ms);
                self.start_workload(node, unit, workload, datasets)
            }
            Action::StopWorkload { .. } => {
                self.hosts[node].workloads.remove(&unit);
                Ok(Outcome::Nothing)
            }
            Action::Fence { datasets } => {
                let runs = self.hosts[node].workloads.contains_key(&unit);
                let store = &mut self.hosts[node].store;
                let fenced = datasets.iter().map(|dataset| store.fence(dataset, runs));
                stored(all_that_are_there(fenced))
            }
            Action::Preflight { .. } => {
                let running = self.hosts[node].workloads.contains_key(&unit);
                Ok(Outcome::Preflight { available_bytes: 1 << 50, running })
            }
            Action::SetAside { keep, away, tag: _, wall_ms } => {
                self.set_aside(node, keep, away, *wall_ms)
            }
            Action::Network { up, .. } => self.move_address(node, unit, *up),
            Action::FencingHook { peer, .. } => self.fencing_hook(node, unit, *peer),
            Action::Drill { snapshots, .. } => self.drill(node, snapshots),
            Action::VerifyUnwritten { snapshots } => self.verify_unwritten(node, snapshots),
            Action::Activate { datasets } => {
                let store = &mut self.hosts[node].store;
                let mut paths = Vec::new();
                for dataset in datasets {
                    paths.push(Some(stored(store.activate(dataset))?));
                }
                Ok(Outcome::Activated { paths })
            }
            Action::Mirror { mirrors } => self.write_mirrors(node, mirrors),
            Action::GiveBack { datasets, tag, prefix, keep_newest, .. } => {
                self.give_back(node, datasets, tag, prefix, *keep_newest);
                Ok(Outcome::Nothing)
            }
        }
    }

    fn inspect(&self, node: usize, datasets: &[DatasetName], streams: bool) -> Outcome {
        let store = &self.hosts[node].store;
        // Its pools have every feature, and no dataset has need of one.
        let all = StreamFeatures { receives: StreamFeature::ALL.into(), ..Default::default() };
        let streams = streams.then_some(all);
        let found = datasets.iter().map(|name| {
            let found = store.inspect(name).map(|(info, inventory, mirror)| Inspected {
                info: Some(info),
                inventory,
                mirror,
                streams: None,
            });
            Inspected { streams: streams.clone(), ..found.unwrap_or_else(Inspected::nothing) }
        });
        Outcome::Inspected(found.collect())
    }

    fn snapshot(
        &mut self,
        node: usize,
        unit: UnitId,
        names: &[SnapshotName],
        freeze: bool,
        quiesced: bool,
    ) -> Done {
        let unix_s = self.hosts[node].now(self.now_ms).wall_ms / 1000;
        let host = &mut self.hosts[node];
        let runs = host.workloads.contains_key(&unit);
        if quiesced && runs {
            let text = format!("n{node} calls the unit quiesced while its workload runs");
            self.violate(Rule::FinalSnapshot, text);
            return Err(injected("never"));
        }
        let directory = self.scenario.kind == flocker_store::DatasetKind::Directory;
        let fuzzy = directory && runs && !freeze;
        if self.scenario.model_bug == Some(ModelBug::TornGroup)
            && runs
            && names.len() > 1
            && !self.clients_rest
        {
            let store = &mut self.hosts[node].store;
            let mut snapshots = stored(store.take_snapshots(&names[..1], fuzzy, unix_s))?;
            self.write_record(node, unit);
            let store = &mut self.hosts[node].store;
            snapshots.extend(stored(store.take_snapshots(&names[1..], fuzzy, unix_s))?);
            return Ok(Outcome::Snapshots { snapshots, frozen_ms: 0 });
        }
        let host = &mut self.hosts[node];
        let snapshots = stored(host.store.take_snapshots(names, fuzzy, unix_s))?;
        Ok(Outcome::Snapshots { snapshots, frozen_ms: u64::from(freeze) })
    }

    fn tidy(
        &mut self,
        node: usize,
        tag: &HoldTag,
        hold: &[SnapshotName],
        release: &[SnapshotName],
        destroy: &[SnapshotName],
    ) -> Done {
        for name in destroy {
            self.check_destroy(node, name);
        }
        let store = &mut self.hosts[node].store;
        for name in hold {
            stored(store.hold(tag, name))?;
        }
        for name in release {
            store.release(tag, name);
        }
        for name in destroy {
            stored(store.destroy(name))?;
        }
        Ok(Outcome::Nothing)
    }

    fn changed(&self, node: usize, since: &[SnapshotName]) -> Done {
        let mut total = 0;
        let mut any = false;
        for name in since {
            match stored(self.hosts[node].store.changed_since(name))? {
                Change::Unchanged => {}
                Change::Changed { bytes } => {
                    any = true;
                    total += bytes;
                }
                Change::Unknown => return Ok(Outcome::Changed(Change::Unknown)),
            }
        }
        let change = if any { Change::Changed { bytes: total } } else { Change::Unchanged };
        Ok(Outcome::Changed(change))
    }

    fn probe(&mut self, node: usize, unit: UnitId) -> Outcome {
        let boot = self.hosts[node].life.as_ref().map_or(0, |life| life.boot);
        let running = match self.hosts[node].workloads.get_mut(&unit) {
            Some(workload) => {
                workload.known_to = boot;
                workload.frozen = false;
                true
            }
            None => false,
        };
        Outcome::Probed { running }
    }

    fn start_workload(
        &mut self,
        node: usize,
        unit: UnitId,
        record: &WorkloadRecord,
        datasets: &[DatasetName],
    ) -> Done {
        let refused = |words: &str| {
            Err(Failure::new(Remedy::Operator, FailureCode::NotStarted, words.to_owned()))
        };
        if self.hosts[node].workloads.contains_key(&unit) {
            return Ok(Outcome::Nothing); // Never a second one.
        }
        if !self.healing && self.rng.chance_ppm(self.scenario.start_fail_ppm) {
            return refused("the program cannot be executed");
        }
        for name in datasets {
            match self.hosts[node].store.datasets.get(name) {
                None => return refused("a volume of it does not exist"),
                Some(state) if !state.can_be_written() => {
                    return refused("a volume of it is read-only");
                }
                Some(_) => {}
            }
        }
        let lease = self.hosts[node].leases.get(&unit).copied().flatten();
        if lease.is_some_and(|end| end <= self.now_ms) {
            return refused("its lease has ended");
        }
        self.check_group(node, datasets);
        self.lives += 1;
        let life = self.lives;
        let known_to = self.hosts[node].life.as_ref().map_or(0, |life| life.boot);
        let datasets = datasets.iter().filter(|name| !is_late(name)).cloned().collect();
        let record = record.clone();
        let workload = Workload { life, record, datasets, known_to, frozen: false };
        self.hosts[node].workloads.insert(unit, workload);
        if !self.healing && self.rng.chance_ppm(self.scenario.start_fail_ppm / 2) {
            self.write_record(node, unit);
            self.hosts[node].workloads.remove(&unit);
            let words = "it did not become healthy, and was stopped again";
            return Err(Failure::new(Remedy::Operator, FailureCode::Unhealthy, words.to_owned()));
        }
        let after = self.rng.range(1, self.scenario.write_every_ms * 2);
        self.after(after, Ev::Write { node, unit, life });
        Ok(Outcome::Nothing)
    }

    fn verify_unwritten(&self, node: usize, snapshots: &[SnapshotName]) -> Done {
        for name in snapshots {
            if let Change::Changed { .. } | Change::Unknown =
                stored(self.hosts[node].store.changed_since(name))?
            {
                return stored(Err(StoreError::Modified {
                    dataset: name.dataset().clone(),
                    detail: format!("it was written after {name}"),
                }));
            }
        }
        Ok(Outcome::Nothing)
    }

    fn write_mirrors(&mut self, node: usize, mirrors: &[(DatasetName, MirrorState)]) -> Done {
        let mut missing = Ok(Outcome::Nothing);
        for (name, state) in mirrors {
            let Some(dataset) = self.hosts[node].store.datasets.get_mut(name) else {
                missing = stored(Err(StoreError::NoDataset { dataset: name.clone() }));
                continue;
            };
            dataset.mirror = Some(Mirror {
                unit: state.unit,
                volume: state.volume,
                dataset_guid: dataset.guid,
                epoch: state.epoch,
                state: state.state.clone(),
            });
        }
        missing
    }

    fn set_aside(
        &mut self,
        node: usize,
        keep: &[SnapshotName],
        away: &[DatasetName],
        wall_ms: i64,
    ) -> Done {
        let mut all = Vec::new();
        for name in keep {
            let aside = format!("{}-diverged-{wall_ms}", name.dataset());
            let Ok(aside) = DatasetName::new(aside) else {
                return Err(injected("for want of a name"));
            };
            let before = self.hosts[node].store.datasets.get(name.dataset()).cloned();
            let store = &mut self.hosts[node].store;
            let was_beyond = stored(store.set_aside(name, &aside))?;
            if was_beyond && self.scenario.model_bug == Some(ModelBug::SetAsideDestroys) {
                store.datasets.remove(&aside);
            }
            if let Some(before) = before.filter(|_| was_beyond) {
                self.coverage.fault("set aside");
                self.remember_aside(node, name.dataset(), &aside, &before);
            }
            all.push(was_beyond.then_some(aside));
        }
        for name in away {
            let Ok(aside) = DatasetName::new(format!("{name}-diverged-{wall_ms}")) else {
                return Err(injected("for want of a name"));
            };
            let before = self.hosts[node].store.datasets.get(name).cloned();
            let was_there = stored(self.hosts[node].store.put_away(name, &aside))?;
            if let Some(before) = before {
                self.coverage.fault("put away");
                self.remember_aside(node, name, &aside, &before);
            }
            all.push(was_there.then_some(aside));
        }
        Ok(Outcome::SetAside { aside: all })
    }

    fn give_back(
        &mut self,
        node: usize,
        datasets: &[DatasetName],
        tag: &HoldTag,
        prefix: &str,
        keep_newest: bool,
    ) {
        for name in datasets {
            let Some(dataset) = self.hosts[node].store.datasets.get_mut(name) else { continue };
            let newest = dataset.snapshots.last().map(|s| s.guid);
            for snap in dataset.snapshots.iter_mut() {
                snap.holds.remove(tag);
            }
            dataset.snapshots.retain(|s| {
                let kept = keep_newest && Some(s.guid) == newest;
                kept || !s.holds.is_empty() || !s.short.starts_with(prefix)
            });
            dataset.mirror = None;
        }
    }

    /// A workload's turn: it goes on from what it finds, and tells the client.
    pub(super) fn on_write(&mut self, node: usize, unit: UnitId, life: u64) {
        let Some(workload) = self.hosts[node].workloads.get(&unit) else { return };
        if workload.life != life {
            return;
        }
        let frozen = workload.frozen;
        let frozen_until = self.hosts[node].frozen_until;
        if frozen_until > self.now_ms {
            return self.at(frozen_until + 1, Ev::Write { node, unit, life });
        }
        let every = self.scenario.write_every_ms;
        let after = self.rng.range(1 + every / 2, 1 + every * 3 / 2);
        self.after(after, Ev::Write { node, unit, life });
        if !frozen && !self.clients_rest {
            self.write_record(node, unit);
        }
    }

    fn write_record(&mut self, node: usize, unit: UnitId) {
        let Some(model) = self.unit_index(unit) else { return };
        let Some(workload) = self.hosts[node].workloads.get(&unit) else { return };
        let datasets = workload.datasets.clone();
        let addressless = workload.record.addresses.is_empty();
        let store = &mut self.hosts[node].store;
        if !datasets.iter().all(|d| store.datasets.get(d).is_some_and(|d| d.can_be_written())) {
            return;
        }
        let live = datasets.first().and_then(|d| store.datasets.get(d)).map(|d| d.live.last());
        let last = live.unwrap_or(0);
        // Clients have left whoever was superseded; what it writes is answered to nobody.
        let superseded = self.is_superseded(node, model);
        let next = if superseded { last + 1 } else { self.units[model].acked + 1 };
        // The client sends again what was not acknowledged; the workload knows what it has.
        if last < next {
            for dataset in &datasets {
                self.stamps += 1;
                let stamp = self.stamps;
                if let Some(state) = self.hosts[node].store.datasets.get_mut(dataset) {
                    state.live.append(next, stamp, self.scenario.record_bytes);
                }
                self.check_write(node, unit, dataset);
            }
            let written_at = &mut self.units[model].written_at;
            match written_at.get_mut((next - 1) as usize) {
                // Sent again: what was written before is where nobody serves it any more.
                Some(at) if !superseded => *at = self.now_ms,
                None if !superseded => written_at.push(self.now_ms),
                _ => {}
            }
        }
        // Where an address moves with the workload, clients find it only there.
        let found = addressless || self.hosts[node].addresses.contains(&unit);
        if superseded || !found {
            return;
        }
        if self.healing || !self.rng.chance_ppm(self.scenario.ack_loss_ppm) {
            self.units[model].acked = next;
        }
    }

    /// A workload ends by itself.
    pub(super) fn kill_workload(&mut self, node: usize, unit: UnitId) {
        let Some(workload) = self.hosts[node].workloads.remove(&unit) else { return };
        let known = self.hosts[node].life.as_ref().map(|life| life.boot) == Some(workload.known_to);
        if known {
            let success = self.rng.one_in(3);
            let status = if success { "exit status 0" } else { "signal 9" };
            let status = status.to_owned();
            let exited = Input::WorkloadExited { unit, status, success };
            let boot = workload.known_to;
            self.at(self.now_ms, Ev::Exited { node, boot, exited: Box::new(exited) });
        }
    }
}
