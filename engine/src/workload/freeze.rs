//! A frozen workload: every thread of every process stopped, until the guard is dropped.

use std::time::{Duration, Instant};

use flocker_core::{Failure, FailureCode, Remedy};
use rustix::process::Signal;

use super::members::{Looked, Mark, Members, find};
use super::proc::{self, Stat};
use super::record::PidRecord;

/// How often it is looked whether a stopped process has stopped.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A process that has not stopped after this long may wait in `vfork` for a child that we stopped
/// before its exec; see [`let_vforks_finish`].
const VFORK_SUSPECTED_AFTER: Duration = Duration::from_millis(5);

/// How long such a child may run before it is stopped again.
const VFORK_RUNS: Duration = Duration::from_micros(500);

/// A workload that stands still. Dropping it lets it go on, whatever happened.
#[derive(Debug)]
pub(crate) struct Frozen {
    stopped: Vec<Stat>,
    since: Instant,
}

impl Frozen {
    /// How many processes stand still.
    pub(crate) fn count(&self) -> usize {
        self.stopped.len()
    }

    /// Lets it go on and says how long it stood, in milliseconds, rounded up.
    pub(crate) fn thaw(self) -> u64 {
        let since = self.since;
        drop(self);
        let micros = since.elapsed().as_micros();
        u64::try_from(micros.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in &self.stopped {
            if let Err(error) = proc::signal(process, Signal::CONT) {
                tracing::error!(pid = process.pid, %error, "a frozen process cannot be thawed");
            }
        }
    }
}

/// Stops every process of a workload. Processes that fork while they are stopped are found by
/// looking again until nobody new is there.
///
/// # Errors
/// It took longer than `limit`; everything goes on as before.
pub(crate) fn freeze(
    mark: &Mark,
    record: Option<&PidRecord>,
    limit: Duration,
) -> Result<Frozen, Failure> {
    let mut looked = Looked::default();
    let mut members = find(mark, record, &mut looked);
    let mut frozen = Frozen { stopped: Vec::new(), since: Instant::now() };
    loop {
        stop_new(&members, &mut frozen)?;
        wait_until_stopped(&members, &frozen, limit)?;
        members = find(mark, record, &mut looked);
        let new = members
            .processes
            .iter()
            .any(|process| !frozen.stopped.iter().any(|p| p.is_same(process)));
        if !new {
            return Ok(frozen);
        }
    }
}

fn stop_new(members: &Members, frozen: &mut Frozen) -> Result<(), Failure> {
    for process in &members.processes {
        if frozen.stopped.iter().any(|p| p.is_same(process)) {
            continue;
        }
        // Noted before it is done: a guard that thaws one too many does no harm.
        frozen.stopped.push(process.clone());
        proc::signal(process, Signal::STOP).map_err(|error| {
            Failure::new(
                Remedy::Operator,
                FailureCode::Workload,
                format!(
                    "the workload's process {} ({}) cannot be frozen: {error}",
                    process.pid, process.command
                ),
            )
        })?;
    }
    Ok(())
}

fn wait_until_stopped(members: &Members, frozen: &Frozen, limit: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let Some(running) = members.processes.iter().find(|p| !p.is_stopped()) else {
            return Ok(());
        };
        if frozen.since.elapsed() > limit {
            return Err(Failure::new(
                Remedy::Retry,
                FailureCode::TimedOut,
                format!(
                    "the workload's process {} ({}) did not stand still within {} ms; it goes on",
                    running.pid,
                    running.command,
                    limit.as_millis()
                ),
            ));
        }
        if begun.elapsed() > VFORK_SUSPECTED_AFTER {
            let_vforks_finish(running, frozen);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A parent in `vfork` cannot be stopped until its child has called exec, and a child that we
/// stopped before that never will: each would wait for the other. The child goes on for a moment.
fn let_vforks_finish(parent: &Stat, frozen: &Frozen) {
    let children: Vec<Stat> = frozen
        .stopped
        .iter()
        .filter_map(|known| proc::stat(known.pid).filter(|now| now.is_same(known)))
        .filter(|now| now.parent == parent.pid)
        .collect();
    for child in &children {
        let _ = proc::signal(child, Signal::CONT);
    }
    std::thread::sleep(VFORK_RUNS);
    for child in &children {
        let _ = proc::signal(child, Signal::STOP);
    }
}
