//! A failover: what it would mean, its report, and a drill's.

use flocker_core::Failure;
use flocker_core::io::{DrillReport, FailoverPlan, FailoverReport};
use flocker_core::record::Proof;
use serde::Serialize;

use super::Names;
use super::migration::{Downtime, notes, timeline};
use super::rounds::moment;
use crate::out::{Theme, clean};
use crate::quantity::{count, millis};

/// What `failover --dry-run --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    /// The unit.
    pub(crate) name: String,
    /// The node that would be primary.
    pub(crate) here: String,
    /// Whose place it would take.
    pub(crate) primary: String,
    /// That one is connected now.
    pub(crate) primary_connected: bool,
    /// The newest whole instance.
    pub(crate) instance: String,
    /// When it was taken, seconds since 1970.
    pub(crate) taken_unix_s: i64,
    /// What would be lost, milliseconds.
    pub(crate) age_ms: u64,
    /// A receive under way would be ended.
    pub(crate) receiving: bool,
    /// What could be tried besides the operator's word.
    pub(crate) proofs: Vec<Proof>,
    /// Until the lease has run out, milliseconds.
    pub(crate) lease_left_ms: Option<u64>,
}

impl Plan {
    /// The plan, with nodes by name.
    pub(crate) fn of(plan: &FailoverPlan, names: &Names) -> Self {
        Self {
            name: plan.name.clone(),
            here: names.here().to_owned(),
            primary: names.name(plan.primary),
            primary_connected: plan.primary_connected,
            instance: plan.instance.clone(),
            taken_unix_s: plan.taken_unix_s,
            age_ms: plan.age_ms,
            receiving: plan.receiving,
            proofs: plan.proofs.clone(),
            lease_left_ms: plan.lease_left_ms,
        }
    }
}

/// What would be lost, and by what right it could go on.
pub(crate) fn plan_for_people(plan: &Plan, primary_is_down: bool, theme: Theme) -> String {
    let Plan { name, here, primary, .. } = plan;
    let mut text = format!(
        "{} would go on here, on {}, from {}, taken {}\n",
        theme.strong(name),
        theme.strong(here),
        clean(&plan.instance),
        moment(plan.taken_unix_s.saturating_mul(1000))
    );
    text.push_str(&match plan.age_ms {
        0 => "  nothing would be lost\n".to_owned(),
        age_ms => format!(
            "  {} what {primary} acknowledged in the last {} would be missing here; it stays on {primary}\n",
            theme.warn("lost:"),
            theme.strong(&millis(age_ms))
        ),
    });
    if plan.receiving {
        text.push_str("  a receive is under way, and would be ended\n");
    }
    if plan.primary_connected {
        text.push_str(&format!(
            "  {} {primary} is connected: {} there loses nothing\n",
            theme.warn("note:"),
            theme.accent(&format!("flocker-repl migrate {name} --to {here}"))
        ));
    } else {
        text.push_str(&format!("  {primary} is not connected\n"));
    }
    for proof in &plan.proofs {
        text.push_str(&format!("  proof  {}\n", proof_words(*proof, plan)));
    }
    if primary_is_down {
        text.push_str(&format!("  proof  your word that {primary} is down, which is recorded\n"));
        if plan.primary_connected {
            text.push_str(&format!(
                "  {} {primary} is connected now: is it down?\n",
                theme.bad("but:")
            ));
        }
    } else if plan.proofs.is_empty() {
        text.push_str(&format!("  {} that {primary} does not write\n", theme.bad("no proof")));
    }
    text
}

/// What a proof would be.
fn proof_words(proof: Proof, plan: &Plan) -> String {
    let primary = &plan.primary;
    match (proof, plan.lease_left_ms) {
        (Proof::PrimaryFenced, _) => format!("{primary} is asked to stop and to be fenced"),
        (Proof::FencingHook, _) => {
            format!("this node's fencing hook makes sure that {primary} is off")
        }
        (Proof::LeaseRanOut, Some(left_ms)) => {
            format!("the lease of {primary} runs out in {}, which is waited for", millis(left_ms))
        }
        (Proof::LeaseRanOut, None) => format!("the lease of {primary} has run out"),
        (Proof::OperatorsWord, _) => proof.to_string(),
    }
}

/// Why it is refused, and what to do.
pub(crate) fn no_proof(plan: &Plan) -> String {
    let Plan { name, primary, .. } = plan;
    format!(
        "{name}: nothing proves that {primary} does not write it any more, so it stays a standby here. \
         Bring {primary} back; or, if you know that {primary} is down: \
         flocker-repl failover {name} --primary-is-down. For the next time configure `[fencing]`, or protect \
         it with --lease"
    )
}

/// What `failover --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailedOver {
    /// The unit.
    pub(crate) name: String,
    /// It is primary here: what did not work is an error.
    pub(crate) failed_over: bool,
    /// By what right.
    pub(crate) proof: Proof,
    /// The new epoch's number.
    pub(crate) epoch: u64,
    /// By part.
    pub(crate) parts_ms: Downtime,
    /// Where this node's own differences from the instance are kept.
    pub(crate) aside: Vec<String>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
    /// What was known before it acted.
    pub(crate) plan: Plan,
}

impl FailedOver {
    /// The report, with nodes by name.
    pub(crate) fn of(report: &FailoverReport, names: &Names) -> Self {
        Self {
            name: report.plan.name.clone(),
            failed_over: true,
            proof: report.proof,
            epoch: report.epoch,
            parts_ms: Downtime { parts: report.parts_ms.clone(), total_ms: report.total_ms },
            aside: report.aside.iter().map(ToString::to_string).collect(),
            notes: report.notes.clone(),
            plan: Plan::of(&report.plan, names),
        }
    }
}

/// For people.
pub(crate) fn report_for_people(report: &FailedOver, theme: Theme) -> String {
    let FailedOver { plan, .. } = report;
    let mut text = format!(
        "{} {} is primary on {} in {}, in the place of {}; epoch {}\n  proof: {}\n",
        theme.mark(true),
        theme.strong(&report.name),
        theme.strong(&plan.here),
        theme.strong(&millis(report.parts_ms.total_ms)),
        plan.primary,
        report.epoch,
        report.proof
    );
    text.push_str(&format!("  from {}", clean(&plan.instance)));
    text.push_str(&match plan.age_ms {
        0 => "; nothing is lost\n".to_owned(),
        age_ms => format!(
            "; what {} acknowledged in the {} before is not here, it stays on {}\n",
            plan.primary,
            millis(age_ms),
            plan.primary
        ),
    });
    text.push_str(&timeline(&report.parts_ms, theme));
    for aside in &report.aside {
        text.push_str(&format!("  what only this node had is kept in {}\n", clean(aside)));
    }
    text.push_str(&notes(&report.notes, theme));
    text
}

/// What `failover --drill --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drill {
    /// The unit.
    pub(crate) name: String,
    /// A failover would have come up.
    pub(crate) healthy: bool,
    /// What it was tried on.
    pub(crate) instance: String,
    /// How old that was, milliseconds.
    pub(crate) age_ms: u64,
    /// By part.
    pub(crate) parts_ms: Downtime,
    /// What did not work.
    pub(crate) trouble: Option<Failure>,
    /// Rounds that ended well while it ran.
    pub(crate) rounds_meanwhile: u64,
}

impl Drill {
    /// The report.
    pub(crate) fn of(report: &DrillReport) -> Self {
        let total_ms = report.parts_ms.iter().map(|(_, ms)| ms).sum();
        Self {
            name: report.name.clone(),
            healthy: report.trouble.is_none(),
            instance: report.instance.clone(),
            age_ms: report.age_ms,
            parts_ms: Downtime { parts: report.parts_ms.clone(), total_ms },
            trouble: report.trouble.clone(),
            rounds_meanwhile: report.rounds_meanwhile,
        }
    }
}

/// For people.
pub(crate) fn drill_for_people(drill: &Drill, theme: Theme) -> String {
    let verdict = if drill.healthy { "would come up here" } else { "would not come up here" };
    let mut text = format!(
        "{} {} {verdict}: tried on a clone of {}, {} behind; nothing was changed\n",
        theme.mark(drill.healthy),
        theme.strong(&drill.name),
        clean(&drill.instance),
        millis(drill.age_ms)
    );
    text.push_str(&timeline(&drill.parts_ms, theme));
    if let Some(trouble) = &drill.trouble {
        text.push_str(&format!("  {} {}\n", theme.bad("✗"), clean(&trouble.message)));
    }
    text.push_str(&format!(
        "  {} of replication meanwhile\n",
        count(drill.rounds_meanwhile, "round")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    fn names() -> Names {
        Names::of(&samples::view())
    }

    fn plan() -> Plan {
        Plan::of(&samples::failover_plan(), &names())
    }

    fn contains_all(text: &str, all: &[&str]) {
        for words in all {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn a_plan_says_what_would_be_lost_and_by_what_right_it_could_be() {
        let text = plan_for_people(&plan(), false, Theme::PLAIN);
        let expected = [
            "db would go on here, on a, from repl-1-3, taken ",
            "lost: what b acknowledged in the last 1.20 s would be missing here; it stays on b\n",
            "a receive is under way, and would be ended\n",
            "b is not connected\n",
            "proof  the lease of b runs out in 4.00 s, which is waited for\n",
        ];
        contains_all(&text, &expected);
        let json = serde_json::to_value(plan()).unwrap();
        assert_eq!(json["proofs"], serde_json::json!(["lease_ran_out"]));
        assert_eq!(json["age_ms"], 1200);
        assert_eq!((&json["here"], &json["primary"]), (&"a".into(), &"b".into()));
    }

    #[test]
    fn a_primary_that_is_connected_is_better_migrated_from() {
        let mut plan = plan();
        plan.primary_connected = true;
        plan.proofs = vec![Proof::PrimaryFenced, Proof::FencingHook];
        plan.age_ms = 0;
        let text = plan_for_people(&plan, false, Theme::PLAIN);
        contains_all(
            &text,
            &[
                "nothing would be lost",
                "b is connected: flocker-repl migrate db --to a there loses nothing",
                "proof  b is asked to stop and to be fenced",
                "proof  this node's fencing hook makes sure that b is off",
            ],
        );
        assert!(
            plan_for_people(&plan, true, Theme::PLAIN).contains("b is connected now: is it down?")
        );
    }

    #[test]
    fn without_a_proof_it_is_said_what_to_do() {
        let mut plan = plan();
        plan.proofs.clear();
        let text = plan_for_people(&plan, false, Theme::PLAIN);
        assert!(text.contains("no proof that b does not write"), "{text}");
        contains_all(
            &no_proof(&plan),
            &["flocker-repl failover db --primary-is-down", "`[fencing]`", "--lease"],
        );
        let text = plan_for_people(&plan, true, Theme::PLAIN);
        assert!(text.contains("your word that b is down") && !text.contains("no proof"), "{text}");
    }

    #[test]
    fn a_report_says_by_what_right_what_is_lost_and_where_time_went() {
        let report = FailedOver::of(&samples::failover(), &names());
        let text = report_for_people(&report, Theme::PLAIN);
        let head = "✓ db is primary on a in 4.10 s, in the place of b; epoch 3\n";
        assert!(text.starts_with(&format!("{head}  proof: the lease ran out\n")), "{text}");
        contains_all(
            &text,
            &[
                "from repl-1-3; what b acknowledged in the 1.20 s before is not here, it stays on b",
                "  prove         4.00 s  ",
                "  set back       20 ms  ",
                "what only this node had is kept in data/db-diverged-1",
            ],
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["proof"], "lease_ran_out");
        assert_eq!(json["parts_ms"]["total"], 4100);
        assert_eq!(json["plan"]["instance"], "repl-1-3");
    }

    #[test]
    fn a_drill_says_whether_it_would_come_up_and_that_replication_went_on() {
        let mut report = samples::drill();
        let text = drill_for_people(&Drill::of(&report), Theme::PLAIN);
        contains_all(
            &text,
            &[
                "✓ db would come up here: tried on a clone of repl-1-3, 420 ms behind; nothing was changed\n",
                "  total         100 ms\n",
                "2 rounds of replication meanwhile",
            ],
        );
        report.trouble = Some(samples::failure());
        let drill = Drill::of(&report);
        let text = drill_for_people(&drill, Theme::PLAIN);
        contains_all(&text, &["✗ db would not come up here", "✗ b: recv/a/db has no room"]);
        let json = serde_json::to_value(&drill).unwrap();
        assert_eq!(
            (&json["healthy"], &json["trouble"]["code"]),
            (&false.into(), &"no_space".into())
        );
    }
}
