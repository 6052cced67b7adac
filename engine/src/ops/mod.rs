//! Actions: what the core wants done in the store and with workloads, off the loop.
//!
//! Owns: the threads, the order of a unit's actions, the watchdog. Leaves to others: what an action
//! does (`act`, `aside`), when it is wanted (`flocker_core`).
//!
//! - At most so many run at once (`limits.operations`); others wait their turn. An action that hangs
//!   keeps its own place, and is named in the log as long as it does; nobody else waits for it,
//!   unless that many hang.
//! - Actions of one unit that touch its workload or its live volumes run one after another, in the
//!   order in which they were handed out: its lane. All others run beside them.
//! - Each action ends in exactly one [`Input::Done`], whatever happens in it.

mod act;
pub(crate) mod aside;
pub(crate) mod drill;
mod kinds;
#[cfg(test)]
mod tests;

pub(crate) use act::stop_signal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use flocker_core::ids::{OpId, UnitId};
use flocker_core::{Action, Failure, FailureCode, Input, Outcome, Remedy};
use flocker_store::{DatasetName, Store};

use crate::clock::Clock;
use crate::driver::Programs;
use crate::failpoint;
use crate::fencing::Fencing;
use crate::workload::Workloads;

/// After so long, and each time it has doubled, an action that runs is named in the log.
const SLOW: Duration = Duration::from_secs(30);

/// What actions work on.
pub(crate) struct Tools {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) programs: Programs,
    /// Workloads on clones, where nobody can reach them.
    pub(crate) drills: Workloads,
    /// By which the core's moments are read.
    pub(crate) clock: Clock,
    /// What makes sure that a peer is off.
    pub(crate) fencing: Fencing,
    /// Where live data is reachable now, and since when.
    pub(crate) paths: Mutex<BTreeMap<DatasetName, act::Reachable>>,
    /// Units whose last snapshot was fuzzy: said once, not at each snapshot.
    pub(crate) fuzzy: Mutex<BTreeSet<UnitId>>,
}

impl Tools {
    /// Where live data is reachable now, by dataset.
    pub(crate) fn paths(&self) -> BTreeMap<String, PathBuf> {
        let paths = self.paths.lock().unwrap_or_else(|p| p.into_inner());
        paths.iter().map(|(dataset, known)| (dataset.to_string(), known.path.clone())).collect()
    }
}

/// Where inputs go.
pub(crate) type Report = Arc<dyn Fn(Input) + Send + Sync>;

struct Job {
    op: OpId,
    unit: UnitId,
    action: Action,
}

struct Running {
    unit: UnitId,
    kind: &'static str,
    since: Instant,
    warned_at: Duration,
}

#[derive(Default)]
struct State {
    threads: usize,
    waiting: VecDeque<Job>,
    /// Units whose lane is taken, and who waits for it.
    lanes: BTreeMap<UnitId, VecDeque<Job>>,
    running: BTreeMap<OpId, Running>,
    /// The node ends: nothing is begun any more.
    closed: bool,
}

struct Inner {
    tools: Arc<Tools>,
    report: Report,
    limit: usize,
    state: Mutex<State>,
}

/// The pool of actions.
#[derive(Clone)]
pub(crate) struct Ops(Arc<Inner>);

impl Ops {
    pub(crate) fn new(tools: Arc<Tools>, limit: usize, report: Report) -> Self {
        Self(Arc::new(Inner { tools, report, limit, state: Mutex::default() }))
    }

    /// What actions work on.
    pub(crate) fn tools(&self) -> &Tools {
        &self.0.tools
    }

    /// Does it as soon as there is a place for it.
    pub(crate) fn run(&self, op: OpId, unit: UnitId, action: Action) {
        let job = Job { op, unit, action };
        let mut state = self.0.lock();
        if kinds::needs_lane(&job.action) {
            if let Some(lane) = state.lanes.get_mut(&unit) {
                lane.push_back(job);
                return;
            }
            state.lanes.insert(unit, VecDeque::new());
        }
        self.0.admit(&mut state, job);
    }

    /// Begins nothing any more, and waits until what runs has ended, or for `limit`.
    pub(crate) fn drain(&self, limit: Duration) {
        let begun = Instant::now();
        self.0.lock().closed = true;
        loop {
            let left = {
                let mut state = self.0.lock();
                state.waiting.clear();
                state.threads
            };
            if left == 0 {
                return;
            }
            if begun.elapsed() > limit {
                tracing::warn!(actions = left, "actions still run; the node ends all the same");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Names in the log what has been running for very long.
    pub(crate) fn watch(&self) {
        let mut state = self.0.lock();
        for (op, running) in &mut state.running {
            let elapsed = running.since.elapsed();
            if elapsed >= SLOW.max(running.warned_at * 2) {
                running.warned_at = elapsed;
                tracing::warn!(
                    unit = %running.unit,
                    op = op.0,
                    action = running.kind,
                    seconds = elapsed.as_secs(),
                    "an action hangs; everything else goes on"
                );
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Gives the job a thread, or its place in the queue.
    fn admit(self: &Arc<Self>, state: &mut State, job: Job) {
        if state.closed {
            return;
        }
        if state.threads >= self.limit {
            state.waiting.push_back(job);
            return;
        }
        state.threads += 1;
        let inner = Arc::clone(self);
        let (op, unit) = (job.op, job.unit);
        let spawned =
            std::thread::Builder::new().name("op".to_owned()).spawn(move || inner.work(job));
        if let Err(error) = spawned {
            state.threads -= 1;
            // The job went down with the closure; its lane, if it had one, is freed.
            state.lanes.remove(&unit);
            (self.report)(Input::Done {
                op,
                outcome: Err(Failure::new(
                    Remedy::Retry,
                    FailureCode::Other,
                    format!("no thread for an action: {error}"),
                )),
            });
        }
    }

    fn work(self: Arc<Self>, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            self.perform(job);
            let mut state = self.lock();
            next = state.waiting.pop_front();
            if next.is_none() {
                state.threads -= 1;
            }
        }
    }

    fn perform(self: &Arc<Self>, job: Job) {
        let Job { op, unit, action } = job;
        let kind = kinds::word(&action);
        let in_lane = kinds::needs_lane(&action);
        let running = Running { unit, kind, since: Instant::now(), warned_at: Duration::ZERO };
        self.lock().running.insert(op, running);
        let outcome = self.guarded(op, unit, kind, action);
        let mut state = self.lock();
        if let Some(running) = state.running.remove(&op) {
            metrics::histogram!("flocker_repl_action_seconds", "action" => kind)
                .record(running.since.elapsed().as_secs_f64());
        }
        if in_lane {
            match state.lanes.get_mut(&unit).and_then(VecDeque::pop_front) {
                Some(job) => self.admit(&mut state, job),
                None => {
                    state.lanes.remove(&unit);
                }
            }
        }
        drop(state);
        (self.report)(Input::Done { op, outcome });
    }

    fn guarded(
        &self,
        op: OpId,
        unit: UnitId,
        kind: &'static str,
        action: Action,
    ) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("action", unit = %unit.short(), op = op.0, action = kind);
        let _entered = span.enter();
        failpoint::pass(|| format!("before-{kind}"));
        // A bug in a store may not take the node, and with it every other unit, down.
        let outcome =
            std::panic::catch_unwind(AssertUnwindSafe(|| act::perform(&self.tools, unit, action)))
                .unwrap_or_else(|_| {
                    Err(Failure::new(
                        Remedy::Retry,
                        FailureCode::Other,
                        format!("{kind} panicked: a bug; its message is in the daemon's log"),
                    ))
                });
        failpoint::pass(|| format!("after-{kind}"));
        match &outcome {
            Ok(_) => tracing::debug!("done"),
            Err(failure) => {
                metrics::counter!("flocker_repl_action_failures_total", "action" => kind)
                    .increment(1);
                tracing::debug!(%failure, "failed");
            }
        }
        outcome
    }
}
