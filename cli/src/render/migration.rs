//! A migration's report: rounds, the downtime by part as a timeline, what was predicted; and its dry run.

use std::fmt;

use flocker_core::io::{ClientsView, MigrationPlan, MigrationReport, Prediction, RoundReport};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Names, rounds};
use crate::out::{Theme, clean};
use crate::quantity::{bytes, count, millis, rate};

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
    if !migration.theirs_ms.is_empty() {
        let parts = migration.theirs_ms.iter().map(|(part, ms)| format!("{part} {}", millis(*ms)));
        let parts: Vec<String> = parts.collect();
        text.push_str(&format!(
            "  of that, the workload's and its runtime's: {}\n",
            parts.join(", ")
        ));
    }
    text.push_str(&outcome(migration, theme));
    text.push_str(&notes(&migration.notes, theme));
    text
}

/// One line a note.
pub(crate) fn notes(notes: &[String], theme: Theme) -> String {
    let line = |note: &String| format!("  {} {}\n", theme.warn("note:"), clean(note));
    notes.iter().map(line).collect()
}

/// The prediction and the budget beside what it was.
fn outcome(migration: &Migration, theme: Theme) -> String {
    let was_ms = migration.downtime_ms.total_ms;
    let mut text = String::new();
    if let Some(predicted) = &migration.predicted {
        text.push_str(&format!(
            "  predicted  {:>9}  {}; {}\n",
            millis(predicted.downtime_ms),
            difference(predicted.downtime_ms, was_ms),
            basis(predicted)
        ));
    }
    if let Some(budget_ms) = migration.budget_ms {
        let kept = was_ms <= budget_ms;
        let word = if kept { "kept" } else { "not kept" };
        text.push_str(&format!(
            "  budget     {:>9}  {} {word}\n",
            millis(budget_ms),
            theme.mark(kept)
        ));
    }
    if let Some(clients) = &migration.clients {
        text.push_str(&clients_words(clients, theme));
    }
    text
}

/// The move as its clients felt it.
fn clients_words(clients: &ClientsView, theme: Theme) -> String {
    let gap = clients.longest_gap_ms.map_or_else(|| "no answer".into(), millis);
    let what = match clients.longest_gap_ms {
        Some(_) => "longest between two answers",
        None => "yet to who waited",
    };
    let mut facts = vec![what.to_owned()];
    if clients.held > 0 {
        let longest = millis(clients.longest_hold_ms);
        facts.push(format!("{} held, {longest} at most", count(clients.held, "connection")));
    }
    if clients.lost > 0 {
        facts.push(format!("{} cut", count(clients.lost, "open connection")));
    }
    if clients.errors > 0 {
        facts.push(theme.bad(&format!("{} failed", count(clients.errors, "connection"))));
    }
    format!("  {:<10} {gap:>9}  {}\n", "clients", facts.join("; "))
}

/// `it was 12 % more`
fn difference(predicted_ms: u64, was_ms: u64) -> String {
    let off_ms = u128::from(predicted_ms.abs_diff(was_ms));
    match (off_ms * 100).checked_div(u128::from(predicted_ms)) {
        Some(0) => "as it was".into(),
        Some(percent) if was_ms > predicted_ms => format!("it was {percent} % more"),
        Some(percent) => format!("it was {percent} % less"),
        None => format!("it was {}", millis(was_ms)),
    }
}

/// What a prediction is made of.
fn basis(prediction: &Prediction) -> String {
    let fixed = match prediction.from_moves {
        0 => format!("{} guessed, as it never moved there", millis(prediction.fixed_ms)),
        moves => {
            format!("{} as in {} before", millis(prediction.fixed_ms), count(moves, "move"))
        }
    };
    let delta = bytes(prediction.delta_bytes);
    let data = match prediction.bytes_per_second {
        Some(speed) => format!("{delta} at {}", rate(speed)),
        None => format!("{delta} at a speed not measured yet"),
    };
    format!("{fixed}, and {data}")
}

/// One line, before the workload is stopped.
pub(crate) fn prediction_words(prediction: &Prediction, budget_ms: Option<u64>) -> String {
    let budget = budget_ms.map_or_else(String::new, |ms| format!(" (budget {})", millis(ms)));
    format!("predicted downtime {}{budget}: {}", millis(prediction.downtime_ms), basis(prediction))
}

/// A dry run, for people.
pub(crate) fn plan_for_people(plan: &Plan, theme: Theme) -> String {
    let fits = plan.within_budget.unwrap_or(true);
    let mut text = format!(
        "{} {} can move from {} to {}; nothing was changed\n  {}\n",
        theme.mark(fits),
        theme.strong(&plan.name),
        plan.source,
        theme.strong(&plan.target),
        prediction_words(&plan.prediction, plan.budget_ms)
    );
    if let Some(written) = plan.prediction.written_per_second {
        text.push_str(&format!("  it is written at {}", rate(written)));
        if let Some(speed) = plan.prediction.bytes_per_second {
            text.push_str(&format!("; the pair carries {}", rate(speed)));
        }
        text.push('\n');
    }
    text.push_str(&format!("  {} has {} left\n", plan.target, bytes(plan.available_bytes)));
    text.push_str(&notes(&plan.notes, theme));
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
    /// What of that is the container runtime's, CRIU's or the workload's own, by name, milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) theirs_ms: Vec<(String, u64)>,
    /// From the command to the end, milliseconds.
    pub(crate) total_ms: u64,
    /// Just before the workload was stopped.
    #[serde(default)]
    pub(crate) predicted: Option<Prediction>,
    /// The budget given, milliseconds.
    #[serde(default)]
    pub(crate) budget_ms: Option<u64>,
    /// As clients felt it, where they come through a forwarder of the source.
    #[serde(default)]
    pub(crate) clients: Option<ClientsView>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

/// What `migrate --dry-run --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    /// The unit.
    pub(crate) name: String,
    /// It did not, and was not to.
    pub(crate) moved: bool,
    /// From.
    pub(crate) source: String,
    /// To.
    pub(crate) target: String,
    /// The downtime.
    pub(crate) prediction: Prediction,
    /// The budget given, milliseconds.
    pub(crate) budget_ms: Option<u64>,
    /// Whether the prediction is within it.
    pub(crate) within_budget: Option<bool>,
    /// Left in the target's store.
    pub(crate) available_bytes: u64,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// The plan, with nodes by name.
    pub(crate) fn of(plan: &MigrationPlan, names: &Names) -> Self {
        let downtime_ms = plan.prediction.downtime_ms;
        Self {
            name: plan.name.clone(),
            moved: false,
            source: names.name(plan.source),
            target: names.name(plan.target),
            prediction: plan.prediction.clone(),
            budget_ms: plan.budget_ms,
            within_budget: plan.budget_ms.map(|budget_ms| downtime_ms <= budget_ms),
            available_bytes: plan.available_bytes,
            notes: plan.notes.clone(),
        }
    }
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
            theirs_ms: report.theirs_ms.clone(),
            total_ms: report.total_ms,
            predicted: report.predicted.clone(),
            budget_ms: report.budget_ms,
            clients: report.clients.clone(),
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
    fn what_a_runtime_took_is_said_apart() {
        let mut migration = sample();
        assert!(!for_people(&migration, Theme::PLAIN).contains("runtime"));
        migration.theirs_ms = vec![("stop".into(), 12), ("criu restore".into(), 1500)];
        let text = for_people(&migration, Theme::PLAIN);
        assert!(text.contains("stop 12 ms, criu restore 1.50 s"), "{text}");
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
    fn the_prediction_and_the_budget_stand_beside_what_it_was() {
        let mut migration = sample();
        assert!(!for_people(&migration, Theme::PLAIN).contains("predicted"));
        migration.predicted = Some(samples::prediction());
        migration.budget_ms = Some(100);
        let text = for_people(&migration, Theme::PLAIN);
        let expected = "  predicted     120 ms  it was 16 % less; 60 ms as in 3 moves before, and 6.0 MiB at 100 MiB/s\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("  budget        100 ms  ✓ kept\n"), "{text}");
        migration.budget_ms = Some(99);
        assert!(for_people(&migration, Theme::PLAIN).contains("✗ not kept"));
        assert_eq!(difference(100, 130), "it was 30 % more");
        assert_eq!(difference(100, 100), "as it was");
        assert_eq!(difference(0, 7), "it was 7 ms");
        let back: Migration =
            serde_json::from_str(&serde_json::to_string(&migration).unwrap()).unwrap();
        assert_eq!(back.predicted, Some(samples::prediction()));
    }

    #[test]
    fn what_clients_felt_is_one_line() {
        let mut migration = sample();
        let mut clients = ClientsView {
            longest_gap_ms: Some(140),
            held: 3,
            longest_hold_ms: 130,
            lost: 1,
            errors: 0,
        };
        migration.clients = Some(clients.clone());
        let text = for_people(&migration, Theme::PLAIN);
        let expected = "  clients       140 ms  longest between two answers; 3 connections held, 130 ms at most; 1 open connection cut\n";
        assert!(text.contains(expected), "{text}");
        clients.longest_gap_ms = None;
        clients.errors = 2;
        let text = clients_words(&clients, Theme::PLAIN);
        assert!(text.contains("no answer  yet to who waited"), "{text}");
        assert!(text.contains("2 connections failed"), "{text}");
    }

    #[test]
    fn a_guess_is_called_one() {
        let prediction =
            Prediction { from_moves: 0, bytes_per_second: None, ..samples::prediction() };
        let words = prediction_words(&prediction, Some(500));
        assert_eq!(
            words,
            "predicted downtime 120 ms (budget 500 ms): 60 ms guessed, as it never moved there, \
             and 6.0 MiB at a speed not measured yet"
        );
    }

    #[test]
    fn a_dry_run_says_whether_it_would_be_within_the_budget() {
        let names = Names::of(&samples::view());
        let plan = Plan::of(&samples::migration_plan(), &names);
        let text = plan_for_people(&plan, Theme::PLAIN);
        assert!(text.starts_with("✗ db can move from a to b; nothing was changed\n"), "{text}");
        for words in [
            "predicted downtime 120 ms (budget 100 ms)",
            "written at 4.0 MiB/s; the pair carries 100 MiB/s",
            "b has 3.0 GiB left",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!((&json["within_budget"], &json["moved"]), (&false.into(), &false.into()));
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
