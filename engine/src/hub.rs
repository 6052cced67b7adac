//! Events and progress on their way out: to the log, the history, the metrics and whoever watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use flocker_core::EventKind;
use flocker_core::ids::UnitId;
use flocker_core::io::Event;
use flocker_core::record::{JournalChange, PeerRecord, UnitRecord};
use tokio::sync::mpsc;

use crate::api::{Progress, Response, StampedEvent};
use crate::clock;
use crate::history::History;

/// Lines that may wait for a client that watches; a slower one misses some.
const QUEUE: usize = 1024;

struct Watcher {
    /// Only this unit's.
    name: Option<String>,
    lines: mpsc::Sender<Response>,
}

#[derive(Default)]
struct State {
    watchers: Vec<Watcher>,
    names: BTreeMap<UnitId, String>,
    peers: Vec<PeerRecord>,
}

/// Shared by the loop, the transfers and the API.
#[derive(Clone)]
pub(crate) struct Hub {
    state: Arc<Mutex<State>>,
    history: History,
}

impl Hub {
    pub(crate) fn new(history: History, units: &[UnitRecord], peers: &[PeerRecord]) -> Self {
        let state = State {
            watchers: Vec::new(),
            names: units.iter().map(|u| (u.id, u.name.clone())).collect(),
            peers: peers.to_vec(),
        };
        Self { state: Arc::new(Mutex::new(state)), history }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// Passes an event on.
    pub(crate) fn event(&self, event: Event) {
        log(&event);
        count(&event);
        let stamped = StampedEvent { at_unix_ms: clock::unix_ms(), event };
        self.history.add(stamped.clone());
        let name = stamped.event.name.clone();
        self.tell(name.as_deref(), &Response::Event(stamped));
    }

    /// Passes a transfer's progress on.
    pub(crate) fn progress(&self, progress: Progress) {
        let name = progress.name.clone();
        self.tell(name.as_deref(), &Response::Progress(progress));
    }

    fn tell(&self, name: Option<&str>, response: &Response) {
        self.lock().watchers.retain(|watcher| {
            if watcher.name.as_deref().is_some_and(|wanted| Some(wanted) != name) {
                return !watcher.lines.is_closed();
            }
            match watcher.lines.try_send(response.clone()) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
    }

    /// Everything from now on, of one unit or of all.
    pub(crate) fn watch(&self, name: Option<String>) -> mpsc::Receiver<Response> {
        let (lines, taken) = mpsc::channel(QUEUE);
        self.lock().watchers.push(Watcher { name, lines });
        taken
    }

    pub(crate) fn is_watched(&self) -> bool {
        !self.lock().watchers.is_empty()
    }

    /// Keeps names and peers as the journal has them.
    pub(crate) fn note_changes(&self, changes: &[JournalChange]) {
        let mut state = self.lock();
        for change in changes {
            match change {
                JournalChange::PutUnit(unit) => {
                    state.names.insert(unit.id, unit.name.clone());
                }
                JournalChange::DeleteUnit(id) => {
                    state.names.remove(id);
                }
                JournalChange::PutPeer(peer) => {
                    state.peers.retain(|p| p.fingerprint != peer.fingerprint);
                    state.peers.push(peer.clone());
                }
                JournalChange::DeletePeer(fingerprint) => {
                    state.peers.retain(|p| p.fingerprint != *fingerprint);
                }
            }
        }
    }

    /// A unit's name.
    pub(crate) fn name(&self, unit: UnitId) -> Option<String> {
        self.lock().names.get(&unit).cloned()
    }

    /// The peers, as the journal has them.
    pub(crate) fn peers(&self) -> Vec<PeerRecord> {
        self.lock().peers.clone()
    }
}

fn log(event: &Event) {
    let unit = event.name.as_deref().unwrap_or("-");
    match &event.kind {
        EventKind::Round(round) => tracing::debug!(
            unit,
            round = round.round,
            full = round.full,
            stream_bytes = round.stream_bytes,
            wire_bytes = round.wire_bytes,
            duration_ms = round.duration_ms,
            "round"
        ),
        EventKind::Phase { attempt, phase } => tracing::info!(unit, %attempt, phase, "cutover"),
        EventKind::Predicted { attempt, prediction, budget_ms } => tracing::info!(
            unit,
            %attempt,
            downtime_ms = prediction.downtime_ms,
            fixed_ms = prediction.fixed_ms,
            delta_bytes = prediction.delta_bytes,
            budget_ms,
            "predicted"
        ),
        EventKind::Migrated(report) => tracing::info!(
            unit,
            attempt = %report.attempt,
            downtime_ms = report.downtime_total_ms,
            total_ms = report.total_ms,
            "migrated"
        ),
        EventKind::MigrationFailed { attempt, phase, failure } => {
            tracing::warn!(unit, %attempt, phase, %failure, "migration taken back");
        }
        EventKind::FailedOver(report) => tracing::warn!(
            unit,
            proof = %report.proof,
            instance = report.plan.instance,
            age_ms = report.plan.age_ms,
            total_ms = report.total_ms,
            "failed over"
        ),
        EventKind::Drilled(report) => tracing::info!(
            unit,
            instance = report.instance,
            healthy = report.trouble.is_none(),
            "drill"
        ),
        EventKind::Role { role, epoch } => tracing::info!(unit, role, epoch, "role"),
        EventKind::Alarm { failure } => tracing::error!(unit, %failure, "alarm"),
        EventKind::Cleared => tracing::info!(unit, "alarm cleared"),
        EventKind::Note(text) => tracing::info!(unit, "{text}"),
    }
}

fn count(event: &Event) {
    let unit = event.name.clone().unwrap_or_default();
    match &event.kind {
        EventKind::Round(round) => {
            metrics::counter!("flocker_repl_rounds_total", "unit" => unit.clone()).increment(1);
            metrics::counter!("flocker_repl_rounds_skipped_total", "unit" => unit.clone())
                .increment(round.skipped);
            metrics::histogram!("flocker_repl_round_seconds", "unit" => unit.clone())
                .record(round.duration_ms as f64 / 1e3);
            metrics::histogram!("flocker_repl_frozen_seconds", "unit" => unit.clone())
                .record(round.frozen_ms as f64 / 1e3);
            if let Some(lag_ms) = round.lag_before_ms {
                metrics::gauge!("flocker_repl_lag_seconds", "unit" => unit)
                    .set(lag_ms as f64 / 1e3);
            }
        }
        EventKind::Phase { phase, .. } => {
            metrics::counter!("flocker_repl_phases_total", "unit" => unit, "phase" => phase.clone())
                .increment(1);
        }
        EventKind::Migrated(report) => {
            metrics::counter!("flocker_repl_migrations_total", "unit" => unit.clone()).increment(1);
            count_parts("flocker_repl_downtime_seconds", &unit, &report.downtime_ms);
            let total = vec![("total".to_owned(), report.downtime_total_ms)];
            count_parts("flocker_repl_downtime_seconds", &unit, &total);
            if let Some(predicted) = &report.predicted {
                metrics::gauge!("flocker_repl_predicted_downtime_seconds", "unit" => unit)
                    .set(predicted.downtime_ms as f64 / 1e3);
            }
        }
        EventKind::MigrationFailed { phase, .. } => {
            metrics::counter!("flocker_repl_migrations_failed_total", "unit" => unit, "phase" => phase.clone())
                .increment(1);
        }
        EventKind::FailedOver(report) => {
            metrics::counter!("flocker_repl_failovers_total", "unit" => unit.clone()).increment(1);
            count_parts("flocker_repl_failover_seconds", &unit, &report.parts_ms);
        }
        EventKind::Drilled(report) => {
            let healthy = report.trouble.is_none().to_string();
            metrics::counter!("flocker_repl_drills_total", "unit" => unit.clone(), "healthy" => healthy)
                .increment(1);
            count_parts("flocker_repl_drill_seconds", &unit, &report.parts_ms);
        }
        EventKind::Role { epoch, .. } => {
            metrics::gauge!("flocker_repl_epoch", "unit" => unit).set(*epoch as f64);
        }
        EventKind::Alarm { failure } => {
            let code = format!("{:?}", failure.code);
            metrics::counter!("flocker_repl_alarms_total", "unit" => unit, "code" => code)
                .increment(1);
        }
        EventKind::Predicted { .. } | EventKind::Cleared | EventKind::Note(_) => {}
    }
}

fn count_parts(name: &'static str, unit: &str, parts: &[(String, u64)]) {
    for (part, ms) in parts {
        metrics::histogram!(name, "unit" => unit.to_owned(), "part" => part.clone())
            .record(*ms as f64 / 1e3);
    }
}
