//! Every workload of the node, whatever runs it: what the actions work with.
//!
//! Owns: which driver it is (a process of ours goes to [`Workloads`]), noticing the end of what another program runs,
//! its health, and the memory that a move takes along: written when it stops, used at most once. Leaves to others:
//! how each kind is done (the drivers), when (`flocker_core`).
//!
//! **The memory that is written** lies in the unit's state volume as `checkpoint/`, and counts once the file
//! `checkpoint.json` beside it is there. It is part of the same snapshots as the data it belongs to, so wherever that
//! file is found at a start, data and memory are of one moment. It is taken away, durably, before anything is
//! started, in whatever way: so nothing goes on twice from one memory, nor from an old one behind newer data.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::io::Loss;
use flocker_core::record::{MoveMode, Program, StopSignal, WorkloadRecord};
use flocker_core::{Failure, FailureCode, Outcome, Remedy};
use flocker_store::DatasetName;

use super::{Driver, Part, Places};
use crate::network;
use crate::ops::stop_signal;
use crate::workload::{self, Deadline, Exit, OnExit, Start, Workloads};

/// Where memory is written, below the state volume's path.
const MEMORY: &str = "checkpoint";
/// Says that it is whole.
const WHOLE: &str = "checkpoint.json";
/// It was written while the workload ran on.
const PRE_DUMPED: &str = "pre-dumped";

/// The workloads of one node.
pub(crate) struct Programs {
    /// Processes of ours.
    pub(crate) processes: Arc<Workloads>,
    places: Places,
    on_exit: OnExit,
    known: Arc<Mutex<Known>>,
}

/// What is known to run, and by which thread it is watched: one whose number is not here any more reports nothing.
#[derive(Debug, Default)]
struct Known {
    last: u64,
    by_unit: BTreeMap<UnitId, (u64, Program)>,
}

/// What is to be started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starting<'a> {
    /// What, and how.
    pub(crate) workload: &'a WorkloadRecord,
    /// The unit's volumes.
    pub(crate) datasets: &'a [DatasetName],
    /// Where each is reachable.
    pub(crate) paths: &'a [PathBuf],
    /// Until when it may run unless the lease is renewed.
    pub(crate) lease: Option<Deadline>,
}

/// How it is to be stopped.
#[derive(Debug)]
pub(crate) struct Stopping {
    /// What; `None`: it can only be a process that was left.
    pub(crate) program: Option<Program>,
    /// Its memory is written below this path.
    pub(crate) state: Option<PathBuf>,
    /// What asks a process to stop.
    pub(crate) signal: StopSignal,
    /// How long it may take.
    pub(crate) limit: Duration,
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn failed(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Remedy::Retry, FailureCode::Workload, format!("{what}: {error}"))
}

impl Programs {
    pub(crate) fn new(processes: Workloads, places: Places, on_exit: OnExit) -> Self {
        Self { processes: Arc::new(processes), places, on_exit, known: Arc::default() }
    }

    /// The driver of what is no process of ours.
    fn foreign(
        &self,
        unit: UnitId,
        program: Option<&Program>,
    ) -> Result<Option<Box<dyn Driver>>, Failure> {
        match program {
            None | Some(Program::Process(_)) => Ok(None),
            Some(program) => super::driver(&self.places, unit, program).map(Some),
        }
    }

    /// Whether it runs, without adopting it.
    pub(crate) fn runs(&self, unit: UnitId, program: Option<&Program>) -> Result<bool, Failure> {
        match self.foreign(unit, program)? {
            Some(driver) => driver.runs(),
            None => Ok(self.processes.runs(unit)),
        }
    }

    /// Whether it runs; adopts it and thaws it if it does.
    pub(crate) fn probe(&self, unit: UnitId, program: Option<&Program>) -> Result<bool, Failure> {
        let (Some(driver), Some(program)) = (self.foreign(unit, program)?, program) else {
            return self.processes.probe(unit);
        };
        if !driver.runs()? {
            return Ok(false);
        }
        driver.thaw()?;
        driver.take()?;
        tracing::info!(%unit, %program, "workload adopted");
        self.watch(unit, program);
        Ok(true)
    }

    /// Starts it, unless it runs; returns once it is healthy, with what took how long.
    pub(crate) fn start(&self, unit: UnitId, what: Starting<'_>) -> Result<Vec<Part>, Failure> {
        let workload = what.workload;
        let Some(driver) = self.foreign(unit, Some(&workload.program))? else {
            let Program::Process(command) = &workload.program else {
                unreachable!("nothing else has no driver")
            };
            let start = Start {
                command,
                paths: what.paths,
                stays: workload.die_with_daemon,
                health: workload.health.as_ref(),
                lease: what.lease,
            };
            return self.processes.start(unit, &start).map(|()| Vec::new());
        };
        let mut parts = Vec::new();
        driver.take()?;
        let memory = self.state_path(what).map(Memory::at);
        if driver.runs()? {
            // It was never stopped: what was written of it is of no use any more.
            if let Some(memory) = &memory {
                memory.forget()?;
            }
        } else {
            let whole = match &memory {
                Some(memory) => memory.take()?,
                None => false,
            };
            match &memory {
                Some(memory) if whole => parts = self.go_on(driver.as_ref(), memory, what)?,
                _ => timed(&mut parts, "start", || driver.start(what.paths))?,
            }
            if let Some(memory) = &memory {
                memory.forget()?;
            }
        }
        self.watch(unit, &workload.program);
        timed(&mut parts, "until healthy", || {
            self.wait_until_healthy(unit, driver.as_ref(), what)
        })?;
        Ok(parts)
    }

    /// Where its memory is, if it moves with it.
    fn state_path(&self, what: Starting<'_>) -> Option<PathBuf> {
        let MoveMode::Checkpoint { state } = &what.workload.mode else { return None };
        let at = what.datasets.iter().position(|dataset| dataset.leaf() == state)?;
        what.paths.get(at).cloned()
    }

    /// Goes on from its memory. Its addresses are on before that, or its connections could not be made again; but
    /// whoever asks meanwhile gets no answer, or they would be told that nobody is there.
    fn go_on(
        &self,
        driver: &dyn Driver,
        memory: &Memory,
        what: Starting<'_>,
    ) -> Result<Vec<Part>, Failure> {
        let addresses = &what.workload.addresses;
        let quiet = network::quiet::Quiet::begin(addresses)?;
        let put_on = network::addresses::put_on_silently(addresses);
        let outcome = put_on.and_then(|()| driver.restore(&memory.folder(), what.paths));
        match outcome {
            Ok(parts) => {
                tell("restore", &parts);
                quiet.end();
                Ok(parts)
            }
            Err(failure) => {
                // Nothing of it runs, so nothing answers there either.
                if let Err(failure) = network::addresses::set(addresses, false) {
                    tracing::warn!(%failure, "addresses stay on");
                }
                quiet.end();
                Err(failure)
            }
        }
    }

    fn wait_until_healthy(
        &self,
        unit: UnitId,
        driver: &dyn Driver,
        what: Starting<'_>,
    ) -> Result<(), Failure> {
        let Some(health) = &what.workload.health else { return Ok(()) };
        let lives = || driver.runs().unwrap_or(true);
        let program = what.workload.program.to_string();
        self.processes.foreign_healthy(unit, what.paths, health, &program, &lives).or_else(
            |failure| {
                tracing::warn!(%unit, %failure, "workload is stopped again");
                self.forget(unit);
                driver.kill()?;
                Err(failure)
            },
        )
    }

    /// Stops it, and proves that nothing of it is left. Returns what took how long, where that is known.
    pub(crate) fn stop(&self, unit: UnitId, what: &Stopping) -> Result<Vec<Part>, Failure> {
        let Some(driver) = self.foreign(unit, what.program.as_ref())? else {
            self.processes.stop(unit, stop_signal(what.signal), what.limit)?;
            return Ok(Vec::new());
        };
        // From here on its end is our doing: nobody is told.
        self.forget(unit);
        let Some(state) = &what.state else {
            let mut parts = Vec::new();
            timed(&mut parts, "stop", || driver.stop(what.limit))?;
            return Ok(parts);
        };
        if !driver.runs()? {
            return Ok(Vec::new());
        }
        let memory = Memory::at(state.clone());
        memory.incomplete()?;
        let parts = driver.checkpoint(&memory.folder(), memory.was_pre_dumped())?;
        tell("checkpoint", &parts);
        memory.complete(&parts)?;
        Ok(parts)
    }

    /// Writes its memory while it runs on.
    pub(crate) fn pre_dump(
        &self,
        unit: UnitId,
        program: &Program,
        state: &Path,
    ) -> Result<(), Failure> {
        let Some(driver) = self.foreign(unit, Some(program))? else {
            return Err(cannot_take_memory(program));
        };
        let memory = Memory::at(state.to_owned());
        memory.forget()?;
        memory.begin()?;
        driver.pre_dump(&memory.folder())?;
        memory.pre_dumped()
    }

    /// What another node needs for it, and what a move would leave behind.
    pub(crate) fn describe(
        &self,
        unit: UnitId,
        program: &Program,
        state: Option<&Path>,
        paths: &[PathBuf],
    ) -> Result<Outcome, Failure> {
        let Some(driver) = self.foreign(unit, Some(program))? else {
            return Ok(Outcome::Described { description: String::new(), losses: Vec::new() });
        };
        if state.is_some() {
            driver.can_checkpoint()?;
        }
        driver.keep_ready(READY);
        let described = driver.describe(paths)?;
        let losses = described.losses.into_iter().map(|l| Loss { name: l.name, what: l.what });
        Ok(Outcome::Described { description: described.description, losses: losses.collect() })
    }

    /// Makes it ready for when the unit arrives.
    pub(crate) fn prepare(
        &self,
        unit: UnitId,
        program: &Program,
        description: &str,
        paths: &[PathBuf],
    ) -> Result<(), Failure> {
        match self.foreign(unit, Some(program))? {
            Some(driver) => {
                driver.keep_ready(READY);
                driver.prepare(description, paths)
            }
            None => Ok(()),
        }
    }

    /// It is not ours any more: what was taken from it is given back, and it runs on as it does.
    pub(crate) fn release(&self, unit: UnitId, program: Option<&Program>) -> Result<(), Failure> {
        match self.foreign(unit, program)? {
            Some(driver) => {
                self.forget(unit);
                driver.release()
            }
            None => Ok(()),
        }
    }

    /// Every process of a unit stands still until the guard is dropped.
    pub(crate) fn freeze(&self, unit: UnitId) -> Result<Still, Failure> {
        let program = lock(&self.known).by_unit.get(&unit).map(|(_, program)| program.clone());
        match self.foreign(unit, program.as_ref())? {
            Some(driver) => {
                driver.freeze()?;
                Ok(Still::Foreign(Thaw { driver, since: Instant::now() }))
            }
            None => self.processes.freeze(unit).map(Still::Process),
        }
    }

    fn forget(&self, unit: UnitId) {
        lock(&self.known).by_unit.remove(&unit);
    }

    /// Watches it on a thread of its own until it has ended.
    fn watch(&self, unit: UnitId, program: &Program) {
        let mut known = lock(&self.known);
        if known.by_unit.get(&unit).is_some_and(|(_, watched)| watched == program) {
            return;
        }
        known.last += 1;
        let number = known.last;
        known.by_unit.insert(unit, (number, program.clone()));
        drop(known);
        let (known, on_exit) = (Arc::clone(&self.known), Arc::clone(&self.on_exit));
        let (places, program) = (self.places.clone(), program.clone());
        let spawned =
            std::thread::Builder::new().name(format!("watch-{}", unit.short())).spawn(move || {
                let still =
                    || lock(&known).by_unit.get(&unit).is_some_and(|(now, _)| *now == number);
                let ended = loop {
                    if !still() {
                        return;
                    }
                    let waited = super::driver(&places, unit, &program).and_then(|d| d.wait());
                    match waited {
                        Ok(ended) => break ended,
                        Err(failure) => {
                            tracing::warn!(%unit, %failure, "the workload's end cannot be waited for");
                            std::thread::sleep(WATCH_AGAIN);
                        }
                    }
                };
                let mut known = lock(&known);
                if known.by_unit.get(&unit).is_some_and(|(now, _)| *now == number) {
                    known.by_unit.remove(&unit);
                    drop(known);
                    on_exit(Exit { unit, status: ended.status, success: ended.success });
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%unit, %error, "the workload is not watched");
        }
    }
}

/// From the moment a move begins, or may, whoever runs the workload is kept awake for so long.
const READY: Duration = Duration::from_secs(120);

/// After this long it is tried again to wait for a workload's end.
const WATCH_AGAIN: Duration = Duration::from_secs(2);

fn cannot_take_memory(program: &Program) -> Failure {
    let text = format!(
        "{program} cannot be written down with its memory: it is not run by a container runtime"
    );
    Failure::refused(FailureCode::Unsupported, text)
}

/// Does it, and notes how long it took.
fn timed(
    parts: &mut Vec<Part>,
    name: &'static str,
    what: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    what()?;
    parts.push(Part { name, ms: crate::clock::millis(begun.elapsed()) });
    Ok(())
}

fn tell(what: &str, parts: &[Part]) {
    for part in parts {
        tracing::info!(part = part.name, ms = part.ms, "{what}");
    }
}

/// A workload that stands still until it is thawed, or this is dropped.
pub(crate) enum Still {
    /// A process of ours.
    Process(workload::Frozen),
    /// Anything else.
    Foreign(Thaw),
}

/// Lets it go on when it is dropped.
pub(crate) struct Thaw {
    driver: Box<dyn Driver>,
    since: Instant,
}

impl Still {
    /// It goes on; returns for how long it stood, milliseconds; 0 where nothing did.
    pub(crate) fn thaw(self) -> u64 {
        match self {
            Still::Process(frozen) if frozen.count() == 0 => 0,
            Still::Process(frozen) => frozen.thaw(),
            Still::Foreign(thaw) => {
                let since = thaw.since;
                drop(thaw);
                crate::clock::millis(since.elapsed())
            }
        }
    }
}

impl Drop for Thaw {
    fn drop(&mut self) {
        if let Err(failure) = self.driver.thaw() {
            tracing::error!(%failure, "a workload stays frozen");
        }
    }
}

/// What was written of a workload's memory, in its state volume.
struct Memory {
    volume: PathBuf,
}

impl Memory {
    fn at(volume: PathBuf) -> Self {
        Self { volume }
    }

    fn folder(&self) -> PathBuf {
        self.volume.join(MEMORY)
    }

    fn durable(&self, what: &str) -> Result<(), Failure> {
        File::open(&self.volume).and_then(|dir| dir.sync_all()).map_err(|e| failed(what, &e))
    }

    fn remove(&self, name: &str) -> Result<bool, Failure> {
        let path = self.volume.join(name);
        let gone = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(&path.display().to_string(), &error)),
        };
        if gone {
            self.durable(name)?;
        }
        Ok(gone)
    }

    /// Whether it is whole; it is not any more afterwards, for anybody, whatever becomes of us.
    fn take(&self) -> Result<bool, Failure> {
        self.remove(WHOLE)
    }

    fn incomplete(&self) -> Result<(), Failure> {
        self.remove(WHOLE)?;
        self.begin()
    }

    fn begin(&self) -> Result<(), Failure> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(|e| failed(&folder.display().to_string(), &e))
    }

    fn pre_dumped(&self) -> Result<(), Failure> {
        let path = self.volume.join(PRE_DUMPED);
        fs::write(&path, b"").map_err(|e| failed(&path.display().to_string(), &e))
    }

    fn was_pre_dumped(&self) -> bool {
        self.volume.join(PRE_DUMPED).exists()
    }

    fn complete(&self, parts: &[Part]) -> Result<(), Failure> {
        let path = self.volume.join(WHOLE);
        let parts: BTreeMap<&str, u64> = parts.iter().map(|p| (p.name, p.ms)).collect();
        let text = serde_json::to_vec(&parts).unwrap_or_default();
        fs::write(&path, text).map_err(|e| failed(&path.display().to_string(), &e))
    }

    /// Nothing of it is left.
    fn forget(&self) -> Result<(), Failure> {
        self.remove(WHOLE)?;
        self.remove(PRE_DUMPED)?;
        let folder = self.folder();
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(&folder.display().to_string(), &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counts_once_it_is_whole_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let memory = || Memory::at(dir.path().to_owned());
        memory().incomplete().unwrap();
        fs::write(memory().folder().join("pages"), b"1").unwrap();
        assert!(!memory().take().unwrap(), "it was never complete");
        memory().complete(&[Part { name: "criu dump", ms: 7 }]).unwrap();
        assert!(memory().take().unwrap());
        assert!(!memory().take().unwrap(), "whoever comes after a crash starts anew");
        memory().pre_dumped().unwrap();
        assert!(memory().was_pre_dumped());
        memory().forget().unwrap();
        assert!(!memory().was_pre_dumped() && !memory().folder().exists());
        memory().forget().unwrap();
    }
}
