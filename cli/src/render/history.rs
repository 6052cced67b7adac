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
        EventKind::Note(text) => json!({ "kind": "note", "text": text }),
        other @ (EventKind::Round(_) | EventKind::Phase { .. } | EventKind::Predicted { .. }) => {
            json!({ "kind": "other", "event": other })
        }
    };
    let name = stamped.event.name.as_deref();
    serde_json::to_value(Entry { at_unix_ms: stamped.at_unix_ms, name, what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;
    use flocker_core::io::Event;

    fn stamped(kind: EventKind) -> StampedEvent {
        let event = Event { unit: None, name: Some("db".into()), kind };
        StampedEvent { at_unix_ms: 1_700_000_000_000, event }
    }

    fn all() -> Vec<StampedEvent> {
        let failed = EventKind::MigrationFailed {
            attempt: samples::attempt(),
            phase: "fence".into(),
            failure: samples::failure(),
        };
        [
            EventKind::Migrated(Box::new(samples::migration())),
            failed,
            EventKind::FailedOver(Box::new(samples::failover())),
            EventKind::Drilled(Box::new(samples::drill())),
            EventKind::Role { role: "serving".into(), epoch: 3 },
            EventKind::Alarm { failure: samples::failure() },
            EventKind::Cleared,
            EventKind::Note("kept aside".into()),
        ]
        .map(stamped)
        .to_vec()
    }

    #[test]
    fn each_event_is_a_line_and_what_took_time_has_its_timeline_below() {
        let names = Names::of(&samples::view());
        let text = for_people(&all(), &names, Theme::PLAIN);
        for words in [
            "db: migrated in 2.40 s, down for 100 ms; epoch 2\n  quiesce        12 ms  █",
            "db: migration ended in fence: b: recv/a/db has no room",
            "db: failed over in 4.10 s: the lease ran out; epoch 3\n  drain",
            "db: drill on repl-1-3: healthy\n  clone",
            "db: role serving, epoch 3",
            "alarm: b: recv/a/db",
            "the alarm is over",
            "db: kept aside",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn in_json_each_event_has_its_kind_and_what_its_command_prints() {
        let names = Names::of(&samples::view());
        let objects: Vec<Value> = all().iter().map(|e| object(e, &names).unwrap()).collect();
        let kinds: Vec<&str> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "migrated",
                "migration_failed",
                "failed_over",
                "drilled",
                "role",
                "alarm",
                "cleared",
                "note"
            ]
        );
        assert_eq!(objects[0]["report"]["downtime_ms"]["total"], 100);
        assert_eq!(objects[0]["at_unix_ms"], 1_700_000_000_000_i64);
        assert_eq!(objects[0]["name"], "db");
        assert_eq!(objects[2]["report"]["proof"], "lease_ran_out");
        assert_eq!(objects[3]["report"]["healthy"], true);
    }
}
