//! Containers of podman and docker, by their APIs.
//!
//! Owns: what a unit's containers are asked for, one by one in their order. Leaves to others: the API itself
//! (`http`, `api`), what a container is in a form that travels (`describe`, `description`, `create`), making it
//! ready on another node (`prepare`), images (`images`), and its memory (`checkpoint`).
//!
//! - **Gone** means: the API says that it does not run, *and* its cgroup is empty. The name of a container's
//!   cgroup has its id in it, by whichever manager it was made, so it is found also after the API has lost it.
//! - **Frozen** by its cgroup: at once, while an API may take long.
//! - The restart policy is off while we have it; a container that a unit of systemd starts (a quadlet) or that
//!   is removed at its end (`--rm`) cannot be taken.

mod api;
mod checkpoint;
mod create;
mod describe;
mod description;
mod http;
mod ids;
mod images;
mod layer;
mod prepare;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use flocker_core::ids::UnitId;
use flocker_core::record::{ContainerRuntime, WorkloadKind};
use flocker_core::{Failure, FailureCode, Remedy};
use serde_json::Value;

use self::api::{Api, Inspected};
use self::describe::inside;
pub(super) use self::describe::strings;
use self::description::{Description, Restart};
use self::ids::Ids;
use super::cgroup::{self, Cgroup};
use super::taken::{Before, Taken};
use super::{
    Described, Driver, Ended, FREEZE_LIMIT, KILL_LIMIT, Loss, Part, Places, start_in_order,
};

/// Labels of ours.
const LABELS: &str = "flocker-repl.";

/// On a container that we made: its unit.
const UNIT_LABEL: &str = "flocker-repl.unit";

/// On a container that a unit of systemd starts.
const SYSTEMD_LABEL: &str = "PODMAN_SYSTEMD_UNIT";

/// Pause before a wait that broke is begun anew.
const WAIT_AGAIN: Duration = Duration::from_millis(500);

/// The containers of one unit.
#[derive(Debug)]
pub(crate) struct Containers {
    unit: UnitId,
    names: Vec<String>,
    api: Api,
    taken: Taken,
    ids: Ids,
    /// Where images are looked for that are not here.
    state: PathBuf,
}

impl Containers {
    pub(super) fn new(
        places: &Places,
        unit: UnitId,
        runtime: ContainerRuntime,
        names: &[String],
    ) -> Self {
        let socket = match runtime {
            ContainerRuntime::Podman => places.podman_socket(),
            ContainerRuntime::Docker => places.docker_socket(),
        };
        Self {
            unit,
            names: names.to_vec(),
            api: Api::new(runtime, socket),
            taken: Taken::new(&places.state, unit, kind_of(runtime)),
            ids: Ids::new(&places.state, unit),
            state: places.state.clone(),
        }
    }

    fn inspect(&self, name: &str) -> Result<Inspected, Failure> {
        self.api.inspect(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Failure {
        let word = self.api.word();
        Failure::refused(
            FailureCode::NotFound,
            format!(
                "{word} has no container {name} here; make it first (`{word} create --name {name} …`)"
            ),
        )
    }

    /// Those that are here, in their order.
    fn here(&self) -> Result<Vec<(&str, Inspected)>, Failure> {
        let mut found = Vec::new();
        for name in &self.names {
            if let Some(inspected) = self.api.inspect(name)? {
                found.push((name.as_str(), inspected));
            }
        }
        Ok(found)
    }

    /// Those that run, and their cgroups, by what is remembered of their ids: an id is one container's for ever, so
    /// that one with processes is known without its API, which may have to be started first. `None`: it has to be
    /// asked.
    fn running_by_memory(&self) -> Option<Vec<(&str, Vec<Cgroup>)>> {
        let ids = self.ids.load();
        let of_one = |name| Some((name, cgroups(ids.get(name)?)));
        let found: Option<Vec<(&str, Vec<Cgroup>)>> =
            self.names.iter().map(|name| of_one(name.as_str())).collect();
        found
            .filter(|all| all.iter().all(|(_, cgroups)| matches!(any_populated(cgroups), Ok(true))))
    }

    fn remember(&self, name: &str, id: &str) {
        let mut ids = self.ids.load();
        if ids.get(name).is_none_or(|known| known != id) {
            ids.insert(name.to_owned(), id.to_owned());
            self.ids.store(&ids);
        }
    }

    fn broken(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::new(Remedy::Operator, FailureCode::Workload, format!("{what}: {error}"))
    }

    /// Whether anything of one runs: the API's word, or its cgroup's.
    fn one_runs(&self, name: &str, inspected: &Inspected) -> Result<bool, Failure> {
        if inspected.runs() {
            return Ok(true);
        }
        any_populated(&cgroups(&inspected.id)).map_err(|error| {
            self.broken(&format!("whether anything of container {name} runs"), &error)
        })
    }

    /// Returns once nothing of it is left.
    fn wait_until_gone(&self, name: &str, cgroups: &[Cgroup]) -> Result<(), Failure> {
        cgroup::wait_until_empty(cgroups, KILL_LIMIT).map_err(|error| {
            Failure::new(
                Remedy::Operator,
                FailureCode::TimedOut,
                format!("container {name} was stopped, but {error}"),
            )
        })
    }

    /// Stops one: asked to, or killed where there is no time for that.
    fn end(&self, name: &str, limit: Option<Duration>) -> Result<(), Failure> {
        let Some(inspected) = self.api.inspect(name)? else { return Ok(()) };
        let cgroups = cgroups(&inspected.id);
        // What is frozen hears nothing.
        self.thaw_one(name, &inspected, &cgroups)?;
        if inspected.runs() {
            match limit {
                Some(limit) => self.api.stop(name, limit)?,
                None => self.kill_one(name)?,
            }
        }
        if any_populated(&cgroups).unwrap_or(true) {
            self.end_of_rest(name, &cgroups)?;
        }
        self.wait_until_state(name)
    }

    /// The API's view of it follows its end; a start that comes before would be told that it runs.
    fn wait_until_state(&self, name: &str) -> Result<(), Failure> {
        let until = std::time::Instant::now() + KILL_LIMIT;
        while let Some(inspected) = self.api.inspect(name)?
            && inspected.runs()
        {
            if std::time::Instant::now() > until {
                let word = self.api.word();
                return Err(Failure::new(
                    Remedy::Operator,
                    FailureCode::TimedOut,
                    format!("container {name} was stopped, but {word} says that it runs"),
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What a stop left in its cgroup (a `podman exec`, say) is killed.
    fn end_of_rest(&self, name: &str, cgroups: &[Cgroup]) -> Result<(), Failure> {
        for cgroup in cgroups {
            if let Err(error) = cgroup.kill() {
                return Err(
                    self.broken(&format!("killing what is left of container {name}"), &error)
                );
            }
        }
        self.wait_until_gone(name, cgroups)
    }

    /// One that ended meanwhile is no error.
    fn kill_one(&self, name: &str) -> Result<(), Failure> {
        match self.api.kill(name) {
            Err(failure) if self.api.inspect(name)?.is_some_and(|found| found.runs()) => {
                Err(failure)
            }
            _ => Ok(()),
        }
    }

    fn thaw_one(
        &self,
        name: &str,
        inspected: &Inspected,
        cgroups: &[Cgroup],
    ) -> Result<(), Failure> {
        if inspected.docker["State"]["Paused"].as_bool() == Some(true) {
            // Frozen by the runtime: only it may thaw it, or it goes on believing that it stands still.
            if let Err(failure) = self.api.unpause(name)
                && self.inspect(name)?.docker["State"]["Paused"].as_bool() == Some(true)
            {
                return Err(failure);
            }
        }
        self.thaw_these(name, cgroups)
    }

    /// Policies as they were before we took them.
    fn before(&self) -> Result<Before<Restart>, Failure> {
        self.taken.load()
    }

    /// Turns the restart policy of one off, after writing down what it was.
    fn take_one(&self, name: &str, before: &mut Before<Restart>) -> Result<(), Failure> {
        let inspected = self.inspect(name)?;
        self.remember(name, &inspected.id);
        let docker = &inspected.docker;
        let word = self.api.word();
        if docker["HostConfig"]["AutoRemove"].as_bool() == Some(true) {
            return Err(Failure::refused(
                FailureCode::Unsupported,
                format!(
                    "container {name} was made with --rm: {word} removes it when it stops, so that it \
                     cannot be started again; make it without"
                ),
            ));
        }
        if let Some(unit) = docker["Config"]["Labels"][SYSTEMD_LABEL].as_str() {
            return Err(Failure::refused(
                FailureCode::Unsupported,
                format!(
                    "container {name} is started by the unit {unit} of systemd, which would start it \
                     again; protect it as `--systemd {unit}`"
                ),
            ));
        }
        let restart = &docker["HostConfig"]["RestartPolicy"];
        let policy = restart["Name"].as_str().filter(|name| !name.is_empty()).unwrap_or("no");
        if policy == "no" {
            // Also where somebody turned it off after us: what it was at first is given back.
            return Ok(());
        }
        let retries = restart["MaximumRetryCount"].as_u64().unwrap_or(0);
        let now = Restart { policy: policy.to_owned(), retries };
        if !before.0.contains_key(name) {
            before.0.insert(name.to_owned(), now);
            self.taken.store(before)?;
        }
        self.api.set_restart(name, "no", 0)
    }

    /// The mounts of a container that are in the unit's volumes lead nowhere else.
    fn check_mounts(&self, inspected: &Inspected, volumes: &[PathBuf]) -> Result<(), Failure> {
        for mount in inspected.docker["Mounts"].as_array().into_iter().flatten() {
            let source = Path::new(mount["Source"].as_str().unwrap_or_default());
            let volume = inside(source, volumes).and_then(|(index, _)| volumes.get(index));
            if let Some(volume) = volume {
                create::check_stays_inside(volume, source)?;
            }
        }
        Ok(())
    }

    fn start_one(&self, name: &str, volumes: &[PathBuf]) -> Result<(), Failure> {
        let inspected = self.inspect(name)?;
        self.remember(name, &inspected.id);
        if self.one_runs(name, &inspected)? {
            return self.thaw_one(name, &inspected, &cgroups(&inspected.id));
        }
        self.check_mounts(&inspected, volumes)?;
        let Err(failure) = self.api.start(name) else { return Ok(()) };
        // It said no; whether anything ran is another question.
        let after = self.inspect(name)?;
        let same = after.docker["State"]["StartedAt"] == inspected.docker["State"]["StartedAt"];
        let nothing = same && !self.one_runs(name, &after)?;
        let code = if nothing { FailureCode::NotStarted } else { failure.code };
        Err(Failure { code, ..failure })
    }

    fn freeze_one(&self, name: &str, inspected: &Inspected) -> Result<(), Failure> {
        if !inspected.runs() || inspected.docker["State"]["Paused"].as_bool() == Some(true) {
            return Ok(());
        }
        let cgroups = cgroups(&inspected.id);
        if cgroups.is_empty() {
            return self.api.pause(name);
        }
        self.freeze_these(name, &cgroups)
    }

    fn freeze_these(&self, name: &str, cgroups: &[Cgroup]) -> Result<(), Failure> {
        cgroups.iter().try_for_each(|cgroup| {
            cgroup
                .freeze(FREEZE_LIMIT)
                .map_err(|error| self.broken(&format!("freezing container {name}"), &error))
        })
    }

    /// Lets those go on whose cgroups are known; those that the runtime has frozen itself go on as well, and the
    /// runtime is told when it is asked next.
    fn thaw_these(&self, name: &str, cgroups: &[Cgroup]) -> Result<(), Failure> {
        for cgroup in cgroups.iter().filter(|cgroup| cgroup.is_frozen()) {
            cgroup
                .thaw()
                .map_err(|error| self.broken(&format!("thawing container {name}"), &error))?;
        }
        Ok(())
    }
}

/// A container's cgroups: those with its id in their name, but not its monitor's.
fn cgroups(id: &str) -> Vec<Cgroup> {
    if id.is_empty() {
        return Vec::new();
    }
    cgroup::find(&|name| name.contains(id) && !name.contains("conmon"))
}

fn any_populated(cgroups: &[Cgroup]) -> std::io::Result<bool> {
    for cgroup in cgroups {
        if cgroup.populated()? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Driver for Containers {
    fn take(&self) -> Result<(), Failure> {
        cgroup::check().map_err(|error| self.broken("looking for cgroups", &error))?;
        let mut before = self.before()?;
        self.names.iter().try_for_each(|name| self.take_one(name, &mut before))
    }

    fn release(&self) -> Result<(), Failure> {
        let before = self.before()?;
        for (name, restart) in &before.0 {
            match self.api.set_restart(name, &restart.policy, restart.retries) {
                Err(failure) if failure.code == FailureCode::NotFound => {}
                done => done?,
            }
        }
        self.taken.store(&Before::<Restart>::default())
    }

    fn describe(&self, volumes: &[PathBuf]) -> Result<Described, Failure> {
        let before = self.before()?;
        let mut losses: Vec<Loss> = Vec::new();
        let mut containers = Vec::new();
        let mut networks = BTreeSet::new();
        for name in &self.names {
            let inspected = self.api.inspect_fully(name)?.ok_or_else(|| self.missing(name))?;
            let id = inspected.docker["Image"].as_str().unwrap_or_default();
            let image = self.api.image(id)?;
            let (mut container, lost) =
                describe::container(&inspected, volumes, &self.names, image.as_ref());
            if let Some(restart) = before.0.get(name) {
                container.restart = restart.clone();
            }
            losses.extend(lost);
            let mounted = targets(&inspected.docker);
            losses.extend(layer::layer(name, &self.layer_of(name, &inspected)?, &mounted));
            networks.extend(container.endpoints.keys().cloned());
            containers.push(container);
        }
        let mut described = Vec::new();
        for name in networks {
            let found = self.api.network(&name)?.unwrap_or(Value::Null);
            let (network, loss) = describe::describe_network(&name, &found);
            losses.extend(loss);
            described.push(network);
        }
        let description = Description {
            version: description::VERSION,
            runtime: self.api.runtime,
            containers,
            networks: described,
        };
        let description = serde_json::to_string(&description).map_err(|error| {
            self.broken("writing down the unit's containers", &std::io::Error::from(error))
        })?;
        if description.len() > super::DESCRIPTION_BYTES {
            return Err(Failure::refused(
                FailureCode::Unsupported,
                format!(
                    "the description of {} has {} bytes, and may have {}: make its environment and \
                     labels smaller",
                    self.names.join(", "),
                    description.len(),
                    super::DESCRIPTION_BYTES
                ),
            ));
        }
        Ok(Described { description, losses })
    }

    fn prepare(&self, description: &str, volumes: &[PathBuf]) -> Result<(), Failure> {
        self.make_ready(&description::read(description)?, volumes)
    }

    fn runs(&self) -> Result<bool, Failure> {
        if self.running_by_memory().is_some() {
            return Ok(true);
        }
        for (name, inspected) in self.here()? {
            if self.one_runs(name, &inspected)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn start(&self, volumes: &[PathBuf]) -> Result<(), Failure> {
        start_in_order(&self.names, |name| self.start_one(name, volumes))
    }

    fn stop(&self, limit: Duration) -> Result<(), Failure> {
        self.names.iter().rev().try_for_each(|name| self.end(name, Some(limit)))
    }

    fn kill(&self) -> Result<(), Failure> {
        self.names.iter().rev().try_for_each(|name| self.end(name, None))
    }

    fn freeze(&self) -> Result<(), Failure> {
        let done = match self.running_by_memory() {
            Some(all) => {
                all.iter().try_for_each(|(name, cgroups)| self.freeze_these(name, cgroups))
            }
            None => self.here()?.iter().try_for_each(|(name, found)| self.freeze_one(name, found)),
        };
        // All of them or none.
        if done.is_err() {
            self.thaw()?;
        }
        done
    }

    fn thaw(&self) -> Result<(), Failure> {
        if let Some(all) = self.running_by_memory() {
            return all.iter().try_for_each(|(name, cgroups)| self.thaw_these(name, cgroups));
        }
        for (name, inspected) in self.here()? {
            self.thaw_one(name, &inspected, &cgroups(&inspected.id))?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ended, Failure> {
        let (tell, told) = mpsc::channel();
        let mut left = 0;
        for (name, inspected) in self.here()? {
            if !self.one_runs(name, &inspected)? {
                continue;
            }
            left += 1;
            let (api, name, tell) = (self.api.clone(), name.to_owned(), tell.clone());
            std::thread::Builder::new()
                .name("container-wait".into())
                .spawn(move || {
                    let _ = tell.send(wait_for_one(&api, &name, &inspected.id));
                })
                .map_err(|error| self.broken("waiting for the unit's containers", &error))?;
        }
        drop(tell);
        // One that ends well (what prepares a database, say) leaves the others to it; one that fails does not.
        let mut last = Ended { status: "nothing of it runs".to_owned(), success: false };
        while left > 0 {
            let Ok(ended) = told.recv() else { break };
            last = ended;
            left -= 1;
            if !last.success {
                break;
            }
        }
        Ok(last)
    }

    fn keep_ready(&self, limit: Duration) {
        if !self.api.is_podman() {
            return;
        }
        let api = self.api.clone();
        let asking = std::thread::Builder::new().name("podman-ready".into());
        // Where it cannot be done, podman answers late, and that is all.
        let _ = asking.spawn(move || api.keep_ready(limit));
    }

    fn can_checkpoint(&self) -> Result<(), Failure> {
        self.checkpoint_allowed()
    }

    fn pre_dump(&self, folder: &Path) -> Result<(), Failure> {
        self.write_pre_dump(folder)
    }

    fn checkpoint(&self, folder: &Path, pre_dumped: bool) -> Result<Vec<Part>, Failure> {
        self.write_checkpoint(folder, pre_dumped)
    }

    fn restore(&self, folder: &Path, volumes: &[PathBuf]) -> Result<Vec<Part>, Failure> {
        self.go_on_from(folder, volumes)
    }
}

/// Where something is mounted in it.
fn targets(docker: &Value) -> Vec<PathBuf> {
    let mounts = docker["Mounts"].as_array().into_iter().flatten();
    let mounts = mounts.filter_map(|mount| mount["Destination"].as_str().map(PathBuf::from));
    let tmpfs = docker["HostConfig"]["Tmpfs"].as_object().into_iter().flatten();
    mounts.chain(tmpfs.map(|(path, _)| PathBuf::from(path))).collect()
}

/// A restart of the API's service breaks the wait, not the container: it is begun again.
fn wait_for_one(api: &Api, name: &str, id: &str) -> Ended {
    loop {
        let failure = match api.wait(name) {
            Ok(code) => {
                let success = code == 0;
                return Ended { status: format!("container {name}: exit status {code}"), success };
            }
            Err(failure) => failure,
        };
        let gone = failure.code == FailureCode::NotFound;
        if gone || (!cgroups(id).is_empty() && matches!(any_populated(&cgroups(id)), Ok(false))) {
            return Ended { status: format!("container {name} ended: {failure}"), success: false };
        }
        tracing::debug!(container = name, %failure, "a wait is begun again");
        std::thread::sleep(WAIT_AGAIN);
        if cgroups(id).is_empty() && matches!(api.inspect(name), Ok(Some(found)) if !found.runs()) {
            return Ended { status: format!("container {name} ended"), success: false };
        }
    }
}
fn kind_of(runtime: ContainerRuntime) -> WorkloadKind {
    match runtime {
        ContainerRuntime::Podman => WorkloadKind::Podman,
        ContainerRuntime::Docker => WorkloadKind::Docker,
    }
}
