//! A migration's report: rounds, and the downtime by part as a timeline.

use std::fmt;

use flocker_core::io::{MigrationReport, RoundReport};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Names, rounds};
use crate::out::{Theme, clean};
use crate::quantity::millis;

/// Width of the timeline in characters.
const TIMELINE: u128 = 40;

/// For people.
pub(crate) fn for_people(migration: &Migration, theme: Theme) -> String {
    let mut text = format!(
        "{} {} moved from {} to {} in {}, down for {}; epoch {}\n",
        theme.mark(true),
        theme.strong(&migration.name),
        migration.source,
        theme.strong(&migration.target),
        millis(migration.total_ms),
        theme.strong(&millis(migration.downtime_ms.total_ms)),
        migration.epoch
    );
    if !migration.rounds.is_empty() {
        text.push_str(&rounds::table_of(&migration.rounds, 2, theme));
    }
    text.push_str(&timeline(&migration.downtime_ms, theme));
    for note in &migration.notes {
        text.push_str(&format!("  {} {}\n", theme.warn("note:"), clean(note)));
    }
    text
}

/// One bar a part, each beginning where the one before ended.
pub(crate) fn timeline(downtime: &Downtime, theme: Theme) -> String {
    let Downtime { parts, total_ms } = downtime;
    let sum: u128 = parts.iter().map(|(_, ms)| u128::from(*ms)).sum();
    let scale_ms = sum.max(u128::from(*total_ms)).max(1);
    let at = |ms: u128| (ms * TIMELINE / scale_ms) as usize;
    let mut text = String::new();
    let mut passed = 0;
    for (part, ms) in parts {
        let (begin, end) = (at(passed), at(passed + u128::from(*ms)));
        let bar = match end - begin {
            0 => "▏".to_owned(), // shorter than one character
            cells => "█".repeat(cells),
        };
        text.push_str(&format!(
            "  {part:<10} {:>9}  {}{}\n",
            millis(*ms),
            " ".repeat(begin),
            theme.accent(&bar)
        ));
        passed += u128::from(*ms);
    }
    text.push_str(&format!("  {:<10} {:>9}\n", theme.strong("total     "), millis(*total_ms)));
    text
}

/// Downtime by part, as a JSON object in the order in which the parts passed, `total` at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Downtime {
    /// The parts by name, milliseconds.
    pub(crate) parts: Vec<(String, u64)>,
    /// From the first part's begin to the last one's end, milliseconds.
    pub(crate) total_ms: u64,
}

/// The key of [`Downtime::total_ms`]; no part is called so.
const TOTAL: &str = "total";

impl Serialize for Downtime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.parts.len() + 1))?;
        for (part, ms) in &self.parts {
            map.serialize_entry(part, ms)?;
        }
        map.serialize_entry(TOTAL, &self.total_ms)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Downtime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Downtime;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("milliseconds by part")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Downtime, A::Error> {
                let mut parts = Vec::new();
                let mut total_ms = None;
                while let Some((part, ms)) = map.next_entry::<String, u64>()? {
                    if part == TOTAL {
                        total_ms = Some(ms);
                    } else {
                        parts.push((part, ms));
                    }
                }
                let total_ms = total_ms.ok_or_else(|| A::Error::missing_field(TOTAL))?;
                Ok(Downtime { parts, total_ms })
            }
        }
        deserializer.deserialize_map(Parts)
    }
}

/// What `migrate --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Migration {
    /// The unit.
    pub(crate) name: String,
    /// It did: what did not is an error.
    pub(crate) moved: bool,
    /// From.
    pub(crate) source: String,
    /// To.
    pub(crate) target: String,
    /// The attempt.
    pub(crate) attempt: String,
    /// The new epoch's number.
    pub(crate) epoch: u64,
    /// While the workload was running, and the last one after it was stopped.
    pub(crate) rounds: Vec<RoundReport>,
    /// By part.
    pub(crate) downtime_ms: Downtime,
    /// From the command to the end, milliseconds.
    pub(crate) total_ms: u64,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

impl Migration {
    /// The report, with nodes by name.
    pub(crate) fn of(report: &MigrationReport, names: &Names) -> Self {
        Self {
            name: report.name.clone(),
            moved: true,
            source: names.name(report.source),
            target: names.name(report.target),
            attempt: report.attempt.to_string(),
            epoch: report.epoch,
            rounds: report.rounds.clone(),
            downtime_ms: Downtime {
                parts: report.downtime_ms.clone(),
                total_ms: report.downtime_total_ms,
            },
            total_ms: report.total_ms,
            notes: report.notes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    fn sample() -> Migration {
        Migration::of(&samples::migration(), &Names::of(&samples::view()))
    }

    #[test]
    fn the_timeline_shows_each_part_where_it_passed() {
        let text = timeline(&sample().downtime_ms, Theme::PLAIN);
        let expected = [
            format!("  quiesce        12 ms  {}", "█".repeat(4)),
            format!("  fence           3 ms  {}{}", " ".repeat(4), "█".repeat(2)),
            format!("  snapshot        5 ms  {}{}", " ".repeat(6), "█".repeat(2)),
            format!("  transfer       80 ms  {}{}", " ".repeat(8), "█".repeat(32)),
            "  total         100 ms".to_owned(),
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_move_that_took_no_time_or_for_ever_is_drawn_too() {
        let mut downtime = Downtime { parts: vec![("quiesce".into(), 0)], total_ms: 0 };
        assert!(timeline(&downtime, Theme::PLAIN).contains("▏"));
        downtime.parts = vec![("quiesce".into(), u64::MAX), ("fence".into(), u64::MAX)];
        assert!(timeline(&downtime, Theme::PLAIN).contains("█"));
    }

    #[test]
    fn the_report_names_both_nodes_the_downtime_and_what_to_know() {
        let text = for_people(&sample(), Theme::PLAIN);
        assert!(
            text.starts_with("✓ db moved from a to b in 2.40 s, down for 100 ms; epoch 2\n"),
            "{text}"
        );
        assert!(text.contains("note: the standby c was left behind"), "{text}");
    }

    #[test]
    fn json_has_the_downtime_by_part_in_order_with_the_total_and_reads_back() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(
            text.contains(
                r#""downtime_ms":{"quiesce":12,"fence":3,"snapshot":5,"transfer":80,"total":100}"#
            ),
            "{text}"
        );
        assert!(text.contains(r#""source":"a","target":"b""#), "{text}");
        let back: Migration = serde_json::from_str(&text).unwrap();
        assert_eq!(back.downtime_ms, sample().downtime_ms);
        assert!(serde_json::from_str::<Downtime>(r#"{"fence":1}"#).is_err());
    }
}
