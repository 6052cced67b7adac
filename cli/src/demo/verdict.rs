//! The demo's result: what was checked, how each check went, and the object that `--json` prints.
//!
//! Owns: which conditions make the verdict, and how they are printed. Leaves to others: gathering the
//! facts ([`super::story`]).

use std::path::PathBuf;
use std::time::Duration;

use flocker_engine::api::StampedRound;
use serde::Serialize;

use super::ledger::Findings;
use crate::out::Theme;
use crate::quantity::{bytes, millis};
use crate::render::migration::Migration;

/// What the client went through.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClientView {
    /// Longest time between two acknowledgements around the move, milliseconds.
    pub(crate) longest_gap_ms: u64,
    /// The same while it was only replicated.
    pub(crate) longest_gap_before_ms: u64,
    /// The same after the move.
    pub(crate) longest_gap_after_ms: u64,
    /// Connections made again.
    pub(crate) reconnects: u64,
    /// Connections refused or broken while the workload was away.
    pub(crate) errors: u64,
    /// Acknowledged by the workload on the node it came from.
    pub(crate) acked_by_source: u64,
    /// Acknowledged by the workload on the node it went to.
    pub(crate) acked_by_target: u64,
}

/// One condition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    /// What should be.
    pub(crate) what: &'static str,
    /// Whether it is.
    pub(crate) ok: bool,
    /// What was found.
    pub(crate) found: String,
}

/// Everything the demo found out.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The records on the target.
    pub(crate) findings: Findings,
    /// Rounds of both nodes, oldest first.
    pub(crate) rounds: Vec<StampedRound>,
    /// The move.
    pub(crate) migration: Migration,
    /// What the client saw.
    pub(crate) client: ClientView,
    /// The epoch before the move.
    pub(crate) epoch_before: u64,
    /// The source's role after it.
    pub(crate) source_role: String,
    /// Processes of the workload left on the source.
    pub(crate) left_on_source: usize,
    /// The nodes' processes.
    pub(crate) node_pids: [u32; 2],
    /// Whether both nodes were running at the end.
    pub(crate) nodes_alive: bool,
    /// Size of the data that lay in the volume before it was protected, bytes.
    pub(crate) preload_bytes: u64,
    /// Whether it is the same on the target.
    pub(crate) preload_same: bool,
    /// Where everything is, if it is kept.
    pub(crate) directory: Option<PathBuf>,
}

/// What `demo --json` prints.
#[derive(Serialize)]
pub(crate) struct Object<'a> {
    verdict: bool,
    checks: &'a [Check],
    acked: u64,
    on_target: u64,
    missing: u64,
    duplicates: u64,
    out_of_order: u64,
    altered: u64,
    unanswered: u64,
    epoch: u64,
    epoch_before: u64,
    rounds: Vec<Round<'a>>,
    downtime_ms: &'a crate::render::migration::Downtime,
    migration_ms: u64,
    client: &'a ClientView,
    node_pids: [u32; 2],
    preload_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<&'a PathBuf>,
}

#[derive(Serialize)]
struct Round<'a> {
    at_unix_ms: i64,
    #[serde(flatten)]
    round: &'a flocker_core::io::RoundReport,
}

impl Facts {
    /// Every condition of the verdict, in the order in which they are printed.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let findings = &self.findings;
        let check = |what, ok, found: String| Check { what, ok, found };
        let writers: Vec<String> = findings
            .writers
            .iter()
            .map(|run| format!("{} by {}", run.records, run.writer))
            .collect();
        vec![
            check(
                "every acknowledged record is there",
                findings.acked > 0 && findings.missing == 0,
                format!("{} of {}", findings.on_target, findings.acked),
            ),
            check(
                "each of them once",
                findings.duplicates == 0,
                format!("{} twice", findings.duplicates),
            ),
            check(
                "in order",
                findings.out_of_order == 0,
                format!("{} out of place", findings.out_of_order),
            ),
            check("as it was sent", findings.altered == 0, format!("{} altered", findings.altered)),
            check(
                "written by one node, then by the other, never by both",
                findings.writers.len() == 2,
                writers.join(", then "),
            ),
            check(
                "the data that lay there before is the same",
                self.preload_same,
                bytes(self.preload_bytes),
            ),
            check(
                "the epoch grew",
                self.migration.epoch > self.epoch_before,
                format!("{} to {}", self.epoch_before, self.migration.epoch),
            ),
            check(
                "the old primary follows",
                self.source_role == "standby",
                self.source_role.clone(),
            ),
            check(
                "nothing of the workload is left on it",
                self.left_on_source == 0,
                format!("{} processes", self.left_on_source),
            ),
            check(
                "two nodes ran to the end",
                self.nodes_alive && self.node_pids[0] != self.node_pids[1],
                format!("pids {} and {}", self.node_pids[0], self.node_pids[1]),
            ),
        ]
    }

    /// For `--json`.
    pub(crate) fn object<'a>(&'a self, checks: &'a [Check]) -> Object<'a> {
        Object {
            verdict: verdict(checks),
            checks,
            acked: self.findings.acked,
            on_target: self.findings.on_target,
            missing: self.findings.missing,
            duplicates: self.findings.duplicates,
            out_of_order: self.findings.out_of_order,
            altered: self.findings.altered,
            unanswered: self.findings.unanswered,
            epoch: self.migration.epoch,
            epoch_before: self.epoch_before,
            rounds: self
                .rounds
                .iter()
                .map(|stamped| Round { at_unix_ms: stamped.at_unix_ms, round: &stamped.round })
                .collect(),
            downtime_ms: &self.migration.downtime_ms,
            migration_ms: self.migration.total_ms,
            client: &self.client,
            node_pids: self.node_pids,
            preload_bytes: self.preload_bytes,
            directory: self.directory.as_ref(),
        }
    }
}

/// Whether every condition holds.
pub(crate) fn verdict(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.ok)
}

/// The client's view in two lines.
pub(crate) fn client_for_people(client: &ClientView, theme: Theme) -> String {
    format!(
        "  the client waited {} at most for an acknowledgement (before the move {}, after it {})\n  \
         and connected {} again, after {} refused or broken connections\n",
        theme.strong(&millis(client.longest_gap_ms)),
        millis(client.longest_gap_before_ms),
        millis(client.longest_gap_after_ms),
        if client.reconnects == 1 {
            "once".to_owned()
        } else {
            format!("{} times", client.reconnects)
        },
        client.errors
    )
}

/// One line a check.
pub(crate) fn checks_for_people(checks: &[Check], theme: Theme) -> String {
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
    checks
        .iter()
        .map(|check| {
            format!(
                "  {} {:<width$}  {}\n",
                theme.mark(check.ok),
                check.what,
                theme.dim(&check.found)
            )
        })
        .collect()
}

/// Whole milliseconds.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Run;
    use super::*;
    use crate::render::{Names, samples};

    fn good() -> Facts {
        let runs = [("a", 7), ("b", 3)];
        Facts {
            findings: Findings {
                acked: 10,
                on_target: 10,
                writers: runs
                    .map(|(writer, records)| Run { writer: writer.into(), records })
                    .to_vec(),
                ..Findings::default()
            },
            rounds: vec![StampedRound { at_unix_ms: 5, round: samples::round(1) }],
            migration: Migration::of(&samples::migration(), &Names::default()),
            client: ClientView {
                longest_gap_ms: 210,
                longest_gap_before_ms: 35,
                longest_gap_after_ms: 30,
                reconnects: 1,
                errors: 14,
                acked_by_source: 7,
                acked_by_target: 3,
            },
            epoch_before: 1,
            source_role: "standby".into(),
            left_on_source: 0,
            node_pids: [100, 101],
            nodes_alive: true,
            preload_bytes: 32 << 20,
            preload_same: true,
            directory: None,
        }
    }

    #[test]
    fn the_verdict_is_true_only_if_every_condition_holds() {
        assert!(verdict(&good().checks()));
        assert!(!verdict(&[]));
        let spoil: [fn(&mut Facts); 13] = [
            |facts| facts.findings.acked = 0,
            |facts| facts.findings.missing = 1,
            |facts| facts.findings.duplicates = 1,
            |facts| facts.findings.out_of_order = 1,
            |facts| facts.findings.altered = 1,
            |facts| facts.findings.writers.truncate(1),
            |facts| {
                let again = facts.findings.writers[0].clone();
                facts.findings.writers.push(again);
            },
            |facts| facts.preload_same = false,
            |facts| facts.epoch_before = 2,
            |facts| facts.source_role = "primary".into(),
            |facts| facts.left_on_source = 1,
            |facts| facts.node_pids = [100, 100],
            |facts| facts.nodes_alive = false,
        ];
        for (at, spoil) in spoil.iter().enumerate() {
            let mut facts = good();
            spoil(&mut facts);
            assert!(!verdict(&facts.checks()), "condition {at}");
        }
    }

    #[test]
    fn the_object_has_what_programs_look_for() {
        let facts = good();
        let checks = facts.checks();
        let value = serde_json::to_value(facts.object(&checks)).unwrap();
        for key in ["acked", "on_target", "duplicates", "out_of_order", "epoch", "verdict"] {
            assert!(!value[key].is_null(), "{key}");
        }
        assert_eq!(value["verdict"], true);
        assert_eq!(value["rounds"][0]["stream_bytes"], 32 << 20);
        assert_eq!(value["downtime_ms"]["total"], 100);
        assert_eq!(value["client"]["longest_gap_ms"], 210);
        assert_eq!(value["node_pids"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn checks_are_printed_one_a_line() {
        let text = checks_for_people(&good().checks(), Theme::PLAIN);
        assert!(text.starts_with("  ✓ every acknowledged record is there"), "{text}");
        assert!(text.contains("7 by a, then 3 by b"), "{text}");
    }
}
