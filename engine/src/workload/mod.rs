//! Workloads of the kind `process`: a command, supervised in its volume's path.
//!
//! Owns: starting (never a second one), stopping until nothing is left, adopting after a restart of
//! the daemon, freezing for a snapshot, noticing the end. Leaves to others: when any of it happens
//! (`flocker_core`), and whether the volume is free of writers (the store's fence).
//!
//! - **Running** means: any process of it lives (see `members`). So a command that puts itself into
//!   the background runs as long as what it left behind does.
//! - **One**: a start looks for members first; the supervisor starts nothing before its pid, start
//!   time and boot id are durable (see `supervise`). After a restart the record is believed only if
//!   all three match; the mark in the environment finds the rest.
//! - **The daemon's end**: without `die_with_daemon` a workload runs on, also through `kill -9`, and
//!   is adopted; with it, its supervisor kills it when the daemon's end of a socket closes.
//!   An adopted process is not our child, so its exit status is not known.
//! - A daemon that dies while it has the workload frozen leaves it frozen; the next start thaws it.
//! - **A lease**: the supervisor of a workload that was started under one stays, and kills it when the
//!   lease runs out, whatever became of the daemon (see `lease`).
//! - stdout and stderr go to `<state>/logs/<unit>.log`, the one before to `.log.1`.
//! - The environment is the daemon's, with `FLOCKER_UNIT`, `FLOCKER_NODE` and `FLOCKER_VOLUME_PATH`
//!   (all paths, `:` between them).

mod freeze;
mod health;
mod lease;
mod members;
mod outsiders;
mod proc;
mod record;
mod start;
mod stop;
mod supervise;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use flocker_core::ids::{Fingerprint, UnitId};
use flocker_core::record::Health;
use flocker_core::{Failure, FailureCode, Remedy};
use flocker_store::Holder;
use rustix::process::Signal;

pub(crate) use freeze::Frozen;
pub(crate) use lease::Deadline;
use members::{DRILL_VARIABLE, Looked, Mark, Members, NODE_VARIABLE, UNIT_VARIABLE};
use record::{PidRecord, Records};
pub use supervise::supervise_main;

/// How long processes may take to vanish after SIGKILL before they are named: a process in the
/// kernel (state D) ends when its disk answers.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Longest wait between two looks for new members of one that runs without its first process.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// A workload ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) unit: UnitId,
    pub(crate) status: String,
    pub(crate) success: bool,
}

/// Who is told of exits.
pub(crate) type OnExit = Arc<dyn Fn(Exit) + Send + Sync>;

/// Where workloads keep their files, and how they are started.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The state directory; `run/` and `logs/` are made in it.
    pub(crate) state: PathBuf,
    /// Program and leading arguments that end in `supervise`.
    pub(crate) supervisor: Vec<String>,
    /// This node.
    pub(crate) node: Fingerprint,
    /// A log is set aside when it is larger than this at a start.
    pub(crate) log_bytes: u64,
    /// How long a freeze may take.
    pub(crate) freeze_limit: Duration,
    /// These run in a network namespace of their own, which the supervisor is in, and with another mark
    /// than a unit's own processes: drills.
    pub(crate) isolated: bool,
}

/// What is to be started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    /// Program and arguments.
    pub(crate) command: &'a [String],
    /// The volumes' paths; it runs in the first.
    pub(crate) paths: &'a [PathBuf],
    /// It dies with the daemon.
    pub(crate) stays: bool,
    /// When it counts as running; `None`: once the command runs.
    pub(crate) health: Option<&'a Health>,
    /// Until when it may run unless the lease is renewed.
    pub(crate) lease: Option<Deadline>,
}

/// The workloads of one node.
pub(crate) struct Workloads {
    places: Places,
    records: Records,
    on_exit: OnExit,
    watched: Arc<Mutex<Watched>>,
}

/// Which workloads are watched by which thread. A thread whose number is not here any more reports
/// nothing.
#[derive(Debug, Default)]
struct Watched {
    last: u64,
    by_unit: BTreeMap<UnitId, Watch>,
    /// Have a lease, but no supervisor that watches over it: said once.
    unguarded: BTreeSet<UnitId>,
}

#[derive(Debug)]
struct Watch {
    number: u64,
    /// Our end of a staying supervisor's socket: closing it takes the workload down.
    _lifeline: Option<std::os::unix::net::UnixStream>,
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Workloads {
    /// Makes the directories; starts nothing.
    ///
    /// # Errors
    /// They cannot be made.
    pub(crate) fn new(places: Places, on_exit: OnExit) -> std::io::Result<Self> {
        let run = places.state.join("run");
        std::fs::create_dir_all(&run)?;
        std::fs::create_dir_all(places.state.join("logs"))?;
        Ok(Self { records: Records::new(run), places, on_exit, watched: Arc::default() })
    }

    fn mark(&self, unit: UnitId) -> Mark {
        Mark {
            environment: vec![
                format!("{}={unit}", self.unit_variable()),
                format!("{NODE_VARIABLE}={}", self.places.node),
            ],
        }
    }

    fn unit_variable(&self) -> &'static str {
        if self.places.isolated { DRILL_VARIABLE } else { UNIT_VARIABLE }
    }

    /// The record of this boot, if there is one.
    fn record(&self, unit: UnitId) -> Option<PidRecord> {
        let boot = proc::boot_id().ok()?;
        self.records.load(unit).filter(|record| record.boot_id == boot)
    }

    fn members(&self, unit: UnitId) -> Members {
        members::find(&self.mark(unit), self.record(unit).as_ref(), &mut Looked::default())
    }

    /// Whether any process of it lives, without adopting it.
    pub(crate) fn runs(&self, unit: UnitId) -> bool {
        !self.members(unit).is_empty()
    }

    /// Whether the workload runs; adopts it and thaws it if it does.
    ///
    /// One that was to die with an earlier daemon and has not quite done so is killed here and
    /// does not run.
    ///
    /// # Errors
    /// As [`Workloads::stop`], for that case.
    pub(crate) fn probe(&self, unit: UnitId) -> Result<bool, Failure> {
        let members = self.members(unit);
        if members.is_empty() {
            return Ok(false);
        }
        if lock(&self.watched).by_unit.contains_key(&unit) {
            return Ok(true);
        }
        if self.record(unit).is_some_and(|record| record.stays) {
            self.kill(unit)?;
            return Ok(false);
        }
        for process in members.all() {
            let _ = proc::signal(&process, Signal::CONT);
        }
        tracing::info!(%unit, processes = members.all().len(), "workload adopted");
        self.watch(unit, None, None);
        Ok(true)
    }

    /// Starts the workload, unless it runs. Returns once the command itself runs and is healthy.
    ///
    /// # Errors
    /// Why it does not; nothing of it is left then. [`FailureCode::NotStarted`]: the command never ran.
    pub(crate) fn start(&self, unit: UnitId, what: &Start<'_>) -> Result<(), Failure> {
        if !self.probe(unit)? {
            let order = start::Order { unit, mark: self.mark(unit), what };
            match start::start(&self.places, &self.records, &order) {
                Ok(started) => self.watch(unit, Some(started.child), started.lifeline),
                Err(failure) => {
                    // Its supervisor is dead; what the command may have left behind is not yet.
                    self.kill(unit)?;
                    return Err(failure);
                }
            }
        }
        let Some(health) = what.health else {
            return Ok(());
        };
        self.wait_until_healthy(unit, what, health).or_else(|failure| {
            tracing::warn!(%unit, %failure, "workload is stopped again");
            self.kill(unit)?;
            Err(failure)
        })
    }

    /// # Errors
    /// [`FailureCode::Unhealthy`]; it may still run.
    pub(crate) fn wait_until_healthy(
        &self,
        unit: UnitId,
        what: &Start<'_>,
        health: &Health,
    ) -> Result<(), Failure> {
        let environment = hook_environment(unit, what.paths);
        let output = self.places.state.join("logs").join(format!("{unit}.health"));
        let main = stop::main_process(&self.members(unit), self.record(unit).as_ref());
        // A look at one process costs little; only when that is gone are all looked for.
        let lives = || {
            main.as_ref().is_some_and(|main| {
                proc::stat(main.pid).is_some_and(|now| now.is_same(main) && !now.is_dead())
            }) || self.runs(unit)
        };
        let program = what.command.first().map_or("(nothing)", String::as_str);
        let network = self.places.isolated.then(|| self.record(unit).map_or(0, |r| r.pid));
        let healthy = || health::wait_until_healthy(health, &environment, &output, &lives);
        let outcome = match network {
            Some(pid) => health::inside_network_of(pid, healthy),
            None => healthy(),
        };
        let log = start::log_path(&self.places, unit);
        outcome.map_err(|sick| sick.failure(program, health, &format!(": see {}", log.display())))
    }

    /// Waits until what another program runs is healthy.
    ///
    /// # Errors
    /// [`FailureCode::Unhealthy`]; it may still run.
    pub(crate) fn foreign_healthy(
        &self,
        unit: UnitId,
        paths: &[PathBuf],
        health: &Health,
        program: &str,
        lives: &dyn Fn() -> bool,
    ) -> Result<(), Failure> {
        let environment = hook_environment(unit, paths);
        let output = self.places.state.join("logs").join(format!("{unit}.health"));
        health::wait_until_healthy(health, &environment, &output, lives)
            .map_err(|sick| sick.failure(program, health, ""))
    }

    /// How long it may go on from now; `None`: as long as it likes.
    ///
    /// # Errors
    /// It could not be written down: what was said before holds.
    pub(crate) fn lease(&self, unit: UnitId, until: Option<Deadline>) -> std::io::Result<()> {
        lease::write(&self.records.lease(unit), until)?;
        if until.is_some()
            && self.record(unit).is_some_and(|record| !record.leased)
            && lock(&self.watched).unguarded.insert(unit)
        {
            tracing::warn!(%unit, "the workload was started without a lease, so only this daemon ends it when the lease runs out; start it again to have it guarded");
        }
        Ok(())
    }

    /// Runs a hook of the unit's; its output goes to the unit's log.
    ///
    /// # Errors
    /// [`FailureCode::Workload`] with the command, its status and its last line.
    pub(crate) fn hook(
        &self,
        unit: UnitId,
        command: &[String],
        paths: &[PathBuf],
        limit: Duration,
    ) -> Result<(), Failure> {
        let failed = |text: String| Failure::new(Remedy::Operator, FailureCode::Workload, text);
        let log = start::open_log(&self.places, unit)
            .map_err(|error| failed(format!("the hook `{}`: {error}", command.join(" "))))?;
        crate::hook::run(command, &hook_environment(unit, paths), &log, limit)
            .map_err(|error| failed(format!("the hook {error}")))
    }

    /// Stops the workload: asks its main process with `signal` (see `stop`), and after `limit` kills,
    /// until nothing of it is left.
    ///
    /// # Errors
    /// [`FailureCode::Workload`] naming a process that does not go away.
    pub(crate) fn stop(
        &self,
        unit: UnitId,
        signal: Signal,
        limit: Duration,
    ) -> Result<(), Failure> {
        // From here on its end is our doing: nobody is told.
        let watch = lock(&self.watched).by_unit.remove(&unit);
        let (mark, record) = (self.mark(unit), self.record(unit));
        let mut looked = Looked::default();
        let mut stopping = stop::Stopping::new(signal, limit);
        loop {
            let mut members = members::find(&mark, record.as_ref(), &mut looked);
            if members.is_empty() {
                // What is remembered makes the looks quick; the last one rests on nothing.
                members = self.members(unit);
            }
            if members.is_empty() {
                self.records.remove(unit);
                return Ok(());
            }
            if stopping.left().is_zero() {
                tracing::warn!(%unit, limit_ms = limit.as_millis(), "workload is killed: it did not stop in time");
                drop(watch);
                return self.kill(unit);
            }
            stopping.ask(&members, record.as_ref());
        }
    }

    fn kill(&self, unit: UnitId) -> Result<(), Failure> {
        lock(&self.watched).by_unit.remove(&unit);
        let begun = Instant::now();
        loop {
            let members = self.members(unit);
            let Some(first) = members.all().into_iter().next() else {
                self.records.remove(unit);
                return Ok(());
            };
            for process in members.all() {
                let _ = proc::signal(&process, Signal::KILL);
            }
            if begun.elapsed() > KILL_LIMIT {
                return Err(Failure::new(
                    Remedy::Retry,
                    FailureCode::Workload,
                    format!(
                        "the workload's process {} ({}) is still there {} s after SIGKILL (state {}): see what it waits for",
                        first.pid,
                        first.command,
                        KILL_LIMIT.as_secs(),
                        first.state
                    ),
                ));
            }
            proc::wait_all(&members.all(), Duration::from_millis(20));
        }
    }

    /// Stops every thread of the workload until the guard is dropped.
    ///
    /// # Errors
    /// It did not stand still in time, and goes on.
    pub(crate) fn freeze(&self, unit: UnitId) -> Result<Frozen, Failure> {
        freeze::freeze(&self.mark(unit), self.record(unit).as_ref(), self.places.freeze_limit)
    }

    /// Processes that are not the workload's and could be writing below these paths.
    pub(crate) fn outsiders(&self, unit: UnitId, paths: &[&Path]) -> Vec<Holder> {
        let writers = outsiders::writers(paths);
        if writers.is_empty() {
            return Vec::new();
        }
        // Members are looked for afterwards: a child that the workload had just forked is one, and
        // what is gone by now writes no more.
        let members = self.members(unit).all();
        writers
            .into_iter()
            .filter(|(writer, _)| proc::stat(writer.pid).is_some_and(|now| now.is_same(writer)))
            .filter(|(writer, _)| !members.iter().any(|member| member.is_same(writer)))
            .map(|(_, holder)| holder)
            .collect()
    }

    /// When the daemon ends in good order: nothing is reported any more, and what is to die with
    /// the daemon is stopped as a person would stop it.
    pub(crate) fn shut_down(&self, limit: Duration) {
        let units: Vec<UnitId> = lock(&self.watched).by_unit.keys().copied().collect();
        for unit in units {
            if self.record(unit).is_some_and(|record| record.stays) {
                if let Err(error) = self.stop(unit, Signal::TERM, limit) {
                    tracing::error!(%unit, %error, "workload could not be stopped");
                }
            } else {
                lock(&self.watched).by_unit.remove(&unit);
            }
        }
    }

    /// Watches a workload on a thread of its own until its last process is gone.
    fn watch(
        &self,
        unit: UnitId,
        child: Option<Child>,
        lifeline: Option<std::os::unix::net::UnixStream>,
    ) {
        let mut watched = lock(&self.watched);
        watched.last += 1;
        let number = watched.last;
        watched.by_unit.insert(unit, Watch { number, _lifeline: lifeline });
        drop(watched);
        let mark = self.mark(unit);
        let record = self.record(unit);
        let shared = Arc::clone(&self.watched);
        let on_exit = Arc::clone(&self.on_exit);
        let records = self.records.clone();
        let spawned =
            std::thread::Builder::new().name(format!("watch-{}", unit.short())).spawn(move || {
                let (status, success) = wait_for_child(child);
                wait_until_gone(&mark, record.as_ref(), &|| {
                    lock(&shared).by_unit.get(&unit).is_some_and(|w| w.number == number)
                });
                let mut watched = lock(&shared);
                let still = watched.by_unit.get(&unit).is_some_and(|w| w.number == number);
                if still {
                    watched.by_unit.remove(&unit);
                    records.remove(unit);
                    drop(watched);
                    on_exit(Exit { unit, status, success });
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%unit, %error, "the workload is not watched");
        }
    }
}

/// What a hook is told. Not the workload's mark: a hook is none of its processes.
fn hook_environment(unit: UnitId, paths: &[PathBuf]) -> Vec<(String, String)> {
    let mut all = vec![(UNIT_VARIABLE.to_owned(), unit.to_string())];
    if !paths.is_empty() {
        all.push((start::PATH_VARIABLE.to_owned(), start::joined(paths)));
    }
    all
}

fn wait_for_child(child: Option<Child>) -> (String, bool) {
    match child.map(|mut child| child.wait()) {
        Some(Ok(status)) => (status.to_string(), status.success()),
        Some(Err(error)) => (format!("unknown: {error}"), false),
        None => ("unknown: it was adopted, and is not a child of this daemon".into(), false),
    }
}

fn wait_until_gone(mark: &Mark, record: Option<&PidRecord>, still: &dyn Fn() -> bool) {
    while still() {
        let found = members::find(mark, record, &mut Looked::default());
        let members = found.all();
        if members.is_empty() {
            return;
        }
        // A lease that nobody watches over has run out.
        if found.supervisor.is_none() && record.is_some_and(|record| record.leased) {
            tracing::error!(
                "the supervisor of a workload with a lease is gone: the workload is killed"
            );
            for process in &members {
                let _ = proc::signal(process, Signal::KILL);
            }
        }
        proc::wait_all(&members, WATCH_EVERY);
    }
}

#[cfg(test)]
pub(crate) mod tests;
