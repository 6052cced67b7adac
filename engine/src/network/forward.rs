//! The TCP forwarder: ports behind which a unit's workload is found wherever it runs.
//!
//! Owns: which ports are open for which unit, what it knows of each unit's whereabouts, and the window
//! in which a move is measured as clients feel it. Leaves to others: one connection (`pass`), the
//! rule of whereabouts (`whereabouts`), the figures (`clients`).
//!
//! It decides nothing: it follows what the loop hands it. The journal's changes say which unit is
//! primary where; what becomes of starts and stops says whether the workload runs; phases say when a
//! move stops it. A port that is taken is said in the log and in the status, and tried again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use flocker_core::ids::{OpId, UnitId};
use flocker_core::io::{ClientsView, Event};
use flocker_core::record::{ForwardRecord, JournalChange, Role, UnitRecord};
use flocker_core::{Action, EventKind, Input, Outcome};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::clients::Clients;
use super::pass::{self, Gate, Passing};
use super::whereabouts::{Known, Whereabouts};
use crate::api::ForwardView;

/// New connections of a unit that are held at once; more wait in the kernel's queue of the port.
const HOLDS: usize = 1024;

/// How long a connection is held.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// The part of the files that this process may open which connections use: each needs two, and the
/// node must be able to work whatever its clients do.
const FILES_SHARE: u64 = 4;

/// Pause before a port that cannot be had is tried again, and before the next connection is taken
/// where the system has no room for one.
const PORT_RETRY: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long the report of a move waits for the first answer after it.
const REPORT_WAIT: Duration = Duration::from_millis(300);

/// How long the metrics do.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What is the same for all connections of a unit.
#[derive(Debug)]
pub(super) struct Shared {
    name: String,
    pub(super) whereabouts: watch::Sender<Whereabouts>,
    clients: Mutex<Clients>,
    holds: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Where a port's connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// One port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) listen: SocketAddr,
    pub(super) gate: Gate,
    pub(super) held: AtomicUsize,
    pub(super) open: AtomicUsize,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Listener {
    port: Arc<Port>,
    targets: watch::Sender<Targets>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Unit {
    known: Known,
    shared: Arc<Shared>,
    listeners: BTreeMap<SocketAddr, Listener>,
    /// The window's end, once somebody has asked for it.
    ending: Option<watch::Receiver<Option<ClientsView>>>,
    measuring: bool,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Start,
    Stop,
    Probe,
}

#[derive(Debug, Default)]
struct State {
    units: BTreeMap<UnitId, Unit>,
    asked: BTreeMap<OpId, (UnitId, Asked)>,
}

type Late = (watch::Receiver<Option<ClientsView>>, Box<dyn FnOnce(Option<ClientsView>) + Send>);

struct Inner {
    runtime: Handle,
    /// Connections that the whole node may have.
    places: Arc<Semaphore>,
    holds: usize,
    hold_limit: Duration,
    state: Mutex<State>,
    late: mpsc::UnboundedSender<Late>,
}

/// All forwards of a node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Forwards(Arc<Inner>);

impl Forwards {
    /// Opens the ports of these units.
    pub(crate) fn new(runtime: Handle, units: &[UnitRecord]) -> Self {
        Self::with_limits(runtime, units, HOLDS, HOLD_LIMIT)
    }

    pub(super) fn with_limits(
        runtime: Handle,
        units: &[UnitRecord],
        holds: usize,
        hold_limit: Duration,
    ) -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let places = files.map_or(65_536, |files| (files / FILES_SHARE).clamp(16, 65_536));
        let (late, told) = mpsc::unbounded_channel();
        runtime.spawn(tell_late(told));
        let inner = Inner {
            runtime,
            places: Arc::new(Semaphore::new(places as usize)),
            holds,
            hold_limit,
            state: Mutex::default(),
            late,
        };
        let forwards = Self(Arc::new(inner));
        for unit in units {
            forwards.put(&mut forwards.lock(), unit);
        }
        forwards
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Follows the journal.
    pub(crate) fn note_changes(&self, changes: &[JournalChange]) {
        let mut state = self.lock();
        for change in changes {
            match change {
                JournalChange::PutUnit(unit) => self.put(&mut state, unit),
                JournalChange::DeleteUnit(id) => drop(state.units.remove(id)),
                JournalChange::PutPeer(_) | JournalChange::DeletePeer(_) => {}
            }
        }
    }

    fn put(&self, state: &mut State, record: &UnitRecord) {
        let unit = state.units.entry(record.id).or_insert_with(|| {
            let known = Known::at_start(record);
            let shared = Shared {
                name: record.name.clone(),
                whereabouts: watch::Sender::new(known.whereabouts()),
                clients: Mutex::default(),
                holds: Arc::new(Semaphore::new(self.0.holds)),
            };
            let (listeners, ending) = (BTreeMap::new(), None);
            Unit { known, shared: Arc::new(shared), listeners, ending, measuring: false }
        });
        unit.known.record(record);
        // A standby feels a move from the moment at which it may become its target.
        match &record.role {
            Role::Ready { .. } => unit.begin(),
            Role::Following { .. } if !unit.known.is_moving() => {
                drop(unit.end(&self.0.runtime));
            }
            _ => {}
        }
        unit.follow();
        let forwards = record.workload.as_ref().map_or(&[][..], |w| w.forwards.as_slice());
        unit.listeners.retain(|at, _| forwards.iter().any(|f| f.listen == *at));
        for forward in forwards {
            let ForwardRecord { listen, local, remote } = *forward;
            let targets = Targets { local, remote };
            match unit.listeners.get(&listen) {
                Some(listener) => drop(listener.targets.send_replace(targets)),
                None => {
                    let listener = self.open(&unit.shared, listen, targets);
                    unit.listeners.insert(listen, listener);
                }
            }
        }
    }

    fn open(&self, shared: &Arc<Shared>, listen: SocketAddr, targets: Targets) -> Listener {
        let port = Arc::new(Port {
            listen,
            gate: Gate::default(),
            held: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            trouble: Mutex::default(),
        });
        let (targets, followed) = watch::channel(targets);
        let accepting = Accepting {
            shared: Arc::clone(shared),
            port: Arc::clone(&port),
            targets: followed,
            places: Arc::clone(&self.0.places),
            hold_limit: self.0.hold_limit,
        };
        let task = self.0.runtime.spawn(accepting.run()).abort_handle();
        Listener { port, targets, task }
    }

    /// An action is handed out.
    pub(crate) fn note_action(&self, op: OpId, unit: UnitId, action: &Action) {
        let asked = match action {
            Action::StartWorkload { .. } => Asked::Start,
            Action::StopWorkload { .. } => Asked::Stop,
            Action::ProbeWorkload { .. } => Asked::Probe,
            _ => return,
        };
        let mut state = self.lock();
        state.asked.insert(op, (unit, asked));
        if let (Asked::Stop, Some(unit)) = (asked, state.units.get_mut(&unit)) {
            unit.known.runs(Some(false));
            unit.follow();
        }
    }

    /// Something reaches the loop: an action has ended, a workload has.
    pub(crate) fn note_input(&self, input: &Input) {
        match input {
            Input::Done { op, outcome } => {
                let mut state = self.lock();
                let Some((id, asked)) = state.asked.remove(op) else { return };
                let Some(unit) = state.units.get_mut(&id) else { return };
                let runs = match (asked, outcome) {
                    (Asked::Start, Ok(_)) => Some(true),
                    (Asked::Start, Err(_)) | (Asked::Stop, Ok(_)) => Some(false),
                    (Asked::Probe, Ok(Outcome::Probed { running })) => Some(*running),
                    // A stop that failed may have stopped nothing.
                    (Asked::Stop, Err(_)) => None,
                    (Asked::Probe, _) => return,
                };
                unit.known.runs(runs);
                unit.follow();
                if runs == Some(true) && unit.known.whereabouts() == Whereabouts::Here {
                    drop(unit.end(&self.0.runtime));
                }
            }
            Input::WorkloadExited { unit, .. } => {
                if let Some(unit) = self.lock().units.get_mut(unit) {
                    unit.known.runs(Some(false));
                    unit.follow();
                }
            }
            _ => {}
        }
    }

    /// Something is reported.
    pub(crate) fn note_event(&self, event: &Event) {
        let mut state = self.lock();
        let Some(unit) = event.unit.and_then(|id| state.units.get_mut(&id)) else { return };
        match &event.kind {
            EventKind::Phase { phase, .. } if phase == "quiesce" => {
                unit.known.quiesce();
                unit.begin();
            }
            EventKind::Migrated(_) => unit.known.move_ended(),
            EventKind::MigrationFailed { .. } => {
                unit.known.move_ended();
                drop(unit.end(&self.0.runtime));
            }
            _ => return,
        }
        unit.follow();
    }

    /// Calls `then` with what the clients of a move felt that has just ended: at once where nothing was
    /// measured, otherwise when it is known, and in the order asked.
    pub(crate) fn when_felt(
        &self,
        name: &str,
        then: impl FnOnce(Option<ClientsView>) + Send + 'static,
    ) {
        let felt = {
            let mut state = self.lock();
            let unit = state.units.values_mut().find(|unit| unit.shared.name == name);
            unit.filter(|unit| !unit.listeners.is_empty())
                .and_then(|unit| unit.end(&self.0.runtime))
        };
        match felt {
            None => then(None),
            // The receiver lives as long as the runtime.
            Some(felt) => drop(self.0.late.send((felt, Box::new(then)))),
        }
    }

    /// Every port and how it does.
    pub(crate) fn views(&self) -> Vec<ForwardView> {
        let state = self.lock();
        let mut views = Vec::new();
        for unit in state.units.values() {
            for listener in unit.listeners.values() {
                let port = &listener.port;
                views.push(ForwardView {
                    unit: unit.shared.name.clone(),
                    listen: port.listen.to_string(),
                    workload: unit.shared.whereabouts.borrow().word().to_owned(),
                    open: port.open.load(Ordering::Relaxed) as u64,
                    held: port.held.load(Ordering::Relaxed) as u64,
                    trouble: port.trouble().clone(),
                });
            }
        }
        views
    }

    /// Closes the ports: the node ends.
    pub(crate) fn close(&self) {
        self.lock().units.clear();
    }
}

impl Port {
    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Unit {
    /// Tells the connections where the workload is.
    fn follow(&self) {
        let now = self.known.whereabouts();
        self.shared.whereabouts.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn begin(&mut self) {
        if !self.measuring && !self.listeners.is_empty() {
            self.measuring = true;
            self.ending = None;
            self.shared.clients().begin();
        }
    }

    /// Ends the window, and says when it is known what was felt in it.
    fn end(&mut self, runtime: &Handle) -> Option<watch::Receiver<Option<ClientsView>>> {
        if std::mem::take(&mut self.measuring) {
            self.shared.clients().end();
            let (tell, told) = watch::channel(None);
            runtime.spawn(settle(Arc::clone(&self.shared), tell));
            self.ending = Some(told);
        }
        self.ending.clone()
    }
}

/// Waits for the first answer after a move: a little for its report, longer for the metrics.
async fn settle(shared: Arc<Shared>, tell: watch::Sender<Option<ClientsView>>) {
    let begun = Instant::now();
    while !shared.clients().settled() && begun.elapsed() < REPORT_WAIT {
        sleep(Duration::from_millis(5)).await;
    }
    let serial = shared.clients().serial();
    tell.send_replace(shared.clients().view(Instant::now()));
    while !shared.clients().settled() && begun.elapsed() < ANSWER_WAIT {
        sleep(Duration::from_millis(50)).await;
    }
    let Some(felt) = shared.clients().close(serial, Instant::now()) else { return };
    count(&shared.name, &felt);
    tracing::info!(
        unit = shared.name,
        longest_gap_ms = felt.longest_gap_ms,
        held = felt.held,
        longest_hold_ms = felt.longest_hold_ms,
        lost = felt.lost,
        errors = felt.errors,
        "as clients felt it"
    );
}

fn count(unit: &str, felt: &ClientsView) {
    let unit = || unit.to_owned();
    if let Some(ms) = felt.longest_gap_ms {
        metrics::histogram!("flocker_repl_client_gap_seconds", "unit" => unit())
            .record(ms as f64 / 1e3);
    }
    metrics::histogram!("flocker_repl_client_hold_seconds", "unit" => unit())
        .record(felt.longest_hold_ms as f64 / 1e3);
    metrics::counter!("flocker_repl_clients_held_total", "unit" => unit()).increment(felt.held);
    metrics::counter!("flocker_repl_clients_lost_total", "unit" => unit()).increment(felt.lost);
    metrics::counter!("flocker_repl_client_errors_total", "unit" => unit()).increment(felt.errors);
}

async fn tell_late(mut told: mpsc::UnboundedReceiver<Late>) {
    while let Some((mut felt, then)) = told.recv().await {
        let view = match felt.wait_for(Option::is_some).await {
            Ok(view) => view.clone(),
            Err(_) => None,
        };
        then(view);
    }
}

/// A port that takes connections.
struct Accepting {
    shared: Arc<Shared>,
    port: Arc<Port>,
    targets: watch::Receiver<Targets>,
    places: Arc<Semaphore>,
    hold_limit: Duration,
}

impl Accepting {
    async fn run(self) {
        let listener = self.bind().await;
        loop {
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(listen = %self.port.listen, %error, "a connection could not be taken");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            // Whoever comes meanwhile waits in the kernel's queue, and is not refused.
            let place = Arc::clone(&self.places).acquire_owned().await;
            let hold = Arc::clone(&self.shared.holds).acquire_owned().await;
            let (Ok(place), Ok(hold)) = (place, hold) else { return };
            let passing = Passing {
                shared: Arc::clone(&self.shared),
                port: Arc::clone(&self.port),
                targets: self.targets.clone(),
                hold,
                limit: self.hold_limit,
            };
            tokio::spawn(async move {
                pass::pass(client, passing).await;
                drop(place);
            });
        }
    }

    async fn bind(&self) -> TcpListener {
        let (unit, listen) = (&self.shared.name, self.port.listen);
        loop {
            match TcpListener::bind(listen).await {
                Ok(listener) => {
                    tracing::info!(unit, %listen, "forwarding");
                    *self.port.trouble() = None;
                    return listener;
                }
                Err(error) => {
                    let text =
                        format!("{listen} cannot be listened on: {error}; it is tried again");
                    let mut trouble = self.port.trouble();
                    if trouble.as_ref() != Some(&text) {
                        tracing::error!(unit, "{text}");
                        metrics::counter!("flocker_repl_forward_troubles_total", "unit" => unit.clone())
                            .increment(1);
                        *trouble = Some(text);
                    }
                }
            }
            sleep(PORT_RETRY).await;
        }
    }
}
