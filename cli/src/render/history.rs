//! The history: what happened to units, with timelines.

use flocker_core::io::EventKind;
use flocker_engine::api::StampedEvent;
use serde::Serialize;
use serde_json::{Value, json};

use super::failover::{Drill, FailedOver};
use super::migration::{Downtime, Migration, timeline};
use super::{Names, event};
use crate::out::Theme;

/// A line an event, and below it the timeline where it has one.
pub(crate) fn for_people(events: &[StampedEvent], names: &Names, theme: Theme) -> String {
    let mut text = String::new();
    for stamped in events {
        text.push_str(&event::line(stamped, names, theme));
        text.push('\n');
        let parts = match &stamped.event.kind {
            EventKind::Migrated(report) => {
                Some((&report.downtime_ms, Some(report.downtime_total_ms)))
            }
            EventKind::FailedOver(report) => Some((&report.parts_ms, Some(report.total_ms))),
            EventKind::Drilled(report) => Some((&report.parts_ms, None)),
            EventKind::Round(_)
            | EventKind::Phase { .. }
            | EventKind::Predicted { .. }
            | EventKind::MigrationFailed { .. }
            | EventKind::Role { .. }
            | EventKind::Alarm { .. }
            | EventKind::Cleared
            | EventKind::Note(_) => None,
        };
        if let Some((parts, total_ms)) = parts {
            let total_ms = total_ms.unwrap_or_else(|| parts.iter().map(|(_, ms)| ms).sum());
            text.push_str(&timeline(&Downtime { parts: parts.clone(), total_ms }, theme));
        }
    }
    text
}

/// One event of `history --json`: its moment, its unit, its kind, and what the command that led to it
/// prints with `--json`.
///
/// # Errors
/// It cannot be written as JSON.
pub(crate) fn object(stamped: &StampedEvent, names: &Names) -> serde_json::Result<Value> {
    #[derive(Serialize)]
    struct Entry<'a> {
        at_unix_ms: i64,
        name: Option<&'a str>,
        #[serde(flatten)]
        what: Value,
    }
    let what = match &stamped.event.kind {
        EventKind::Migrated(report) => {
            json!({ "kind": "migrated", "report": Migration::of(report, names) })
        }
        EventKind::MigrationFailed { attempt, phase, failure } => json!({
            "kind": "migration_failed",
            "attempt": attempt.to_string(),
            "phase": phase,
            "failure": failure,
        }),
        EventKind::FailedOver(report) => {
            json!({ "kind": "failed_over", "report": FailedOver::of(report, names) })
        }
        EventKind::Drilled(report) => json!({ "kind": "drilled", "report": Drill::of(report) }),
        EventKind::Role { role, epoch } => json!({ "kind": "role", "role": role, "epoch": epoch }),
        EventKind::Alarm { failure } => json!({ "kind": "alarm", "failure": failure }),
        EventKind::Cleared => json!({ "kind": "cleared" }),
        other @ (EventKind::Round(_)
        | EventKind::Phase { .. }
        | EventKind::Predicted { .. }
        | EventKind::Note(_)) => json!({ "kind": "other", "event": other }),
    };
    let name = stamped.event.name.as_deref();
    serde_json::to_value(Entry { at_unix_ms: stamped.at_unix_ms, name, what })
}
