//! Events as lines: for `watch`, and for `migrate` where there is no terminal.

use flocker_core::io::EventKind;
use flocker_engine::api::StampedEvent;

use super::Names;
use super::rounds::moment;
use crate::out::{Theme, clean};
use crate::quantity::{bytes, millis};

/// An event with its moment.
pub(crate) fn line(stamped: &StampedEvent, names: &Names, theme: Theme) -> String {
    let words = words(&stamped.event.kind, names, theme);
    let whose = match &stamped.event.name {
        // Some notes begin with the unit's name already.
        Some(name) if !words.starts_with(&format!("{name}: ")) => {
            format!("{}: ", theme.strong(name))
        }
        Some(_) | None => String::new(),
    };
    format!("{}  {whose}{words}", theme.dim(&moment(stamped.at_unix_ms)))
}

/// What happened.
pub(crate) fn words(kind: &EventKind, names: &Names, theme: Theme) -> String {
    match kind {
        EventKind::Round(round) => format!(
            "round {} to {}: {} {} ({} on the wire) in {}{}",
            round.round,
            names.name(round.peer),
            if round.full { "everything," } else { "difference," },
            bytes(round.stream_bytes),
            bytes(round.wire_bytes),
            millis(round.duration_ms),
            round
                .lag_before_ms
                .map_or_else(String::new, |lag| format!(", was {} behind", millis(lag)))
        ),
        EventKind::Predicted { prediction, budget_ms, .. } => {
            super::migration::prediction_words(prediction, *budget_ms)
        }
        EventKind::Migrated(report) => format!(
            "migrated in {}, down for {}; epoch {}",
            millis(report.total_ms),
            millis(report.downtime_total_ms),
            report.epoch
        ),
        EventKind::MigrationFailed { phase, failure, .. } => {
            format!("migration ended in {phase}: {}", clean(&failure.message))
        }
        EventKind::FailedOver(report) => format!(
            "failed over in {}: {}; epoch {}",
            millis(report.total_ms),
            report.proof,
            report.epoch
        ),
        EventKind::Drilled(report) => match &report.trouble {
            None => format!("drill on {}: healthy", clean(&report.instance)),
            Some(trouble) => {
                format!("drill on {}: {}", clean(&report.instance), clean(&trouble.message))
            }
        },
        EventKind::Phase { phase, .. } => format!("phase {}", theme.accent(phase)),
        EventKind::Role { role, epoch } => format!("role {}, epoch {epoch}", theme.strong(role)),
        EventKind::Alarm { failure } => {
            format!("{} {}", theme.bad("alarm:"), clean(&failure.message))
        }
        EventKind::Cleared => theme.good("the alarm is over"),
        EventKind::Note(note) => clean(note),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn the_unit_is_named_once() {
        let note = |words: &str| StampedEvent {
            at_unix_ms: 0,
            event: flocker_core::io::Event {
                unit: None,
                name: Some("db".into()),
                kind: EventKind::Note(words.into()),
            },
        };
        for words in ["db: it ended", "it ended"] {
            let line = line(&note(words), &Names::default(), Theme::PLAIN);
            assert!(line.ends_with("  db: it ended"), "{line}");
        }
    }

    #[test]
    fn a_round_is_one_line_with_its_figures() {
        let names = Names::of(&samples::view());
        assert_eq!(
            words(&EventKind::Round(samples::round(2)), &names, Theme::PLAIN),
            "round 2 to b: difference, 16.0 MiB (6.0 MiB on the wire) in 205 ms, was 620 ms behind"
        );
    }
}
