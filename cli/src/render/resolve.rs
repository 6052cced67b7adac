//! `resolve`: what two sides have, and what became of the difference.

use flocker_core::io::{ResolvePlan, ResolveReport, SnapshotLine, VolumeDifference};
use serde::Serialize;

use super::Names;
use super::rounds::moment;
use crate::out::{Theme, clean};
use crate::quantity::bytes;

/// Most snapshots of one side that are listed by name.
const LISTED: usize = 5;

/// What `resolve --dry-run --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    /// The unit.
    pub(crate) name: String,
    /// This node, the standby.
    pub(crate) here: String,
    /// Whom it follows.
    pub(crate) primary: String,
    /// Something would be set aside.
    pub(crate) differs: bool,
    /// Written since the newest snapshots, bytes; `None`: not known.
    pub(crate) written_bytes: Option<u64>,
    /// Each volume.
    pub(crate) volumes: Vec<VolumeDifference>,
}

impl Plan {
    /// The plan, with nodes by name.
    pub(crate) fn of(plan: &ResolvePlan, names: &Names) -> Self {
        Self {
            name: plan.name.clone(),
            here: names.here().to_owned(),
            primary: names.name(plan.primary),
            differs: plan.differs,
            written_bytes: plan.written_bytes,
            volumes: plan.volumes.clone(),
        }
    }
}

/// What each side has, and what would be kept of it.
pub(crate) fn plan_for_people(plan: &Plan, theme: Theme) -> String {
    let Plan { name, here, primary, .. } = plan;
    let mut text = format!(
        "{} is a standby on {}, of {}\n",
        theme.strong(name),
        theme.strong(here),
        theme.strong(primary)
    );
    for volume in &plan.volumes {
        text.push_str(&format!("  volume     {}\n", volume.dataset));
        match &volume.common {
            Some(common) => text.push_str(&format!(
                "  in common  {}  guid {}, taken {}\n",
                clean(&common.short),
                common.guid,
                moment(common.taken_unix_s.saturating_mul(1000))
            )),
            None => text.push_str(&format!("  in common  {}\n", theme.bad("nothing"))),
        }
        text.push_str(&format!("  only here  {}\n", list(&volume.only_here)));
        text.push_str(&format!("  only on {primary}  {}\n", list(&volume.only_there)));
    }
    text.push_str(&match plan.written_bytes {
        Some(0) => "  written    nothing since the newest snapshot here\n".to_owned(),
        Some(some) => {
            format!("  written    {} since the newest snapshot here\n", theme.warn(&bytes(some)))
        }
        None => {
            "  written    it is not known whether it was, and looked at before anything is done\n"
                .to_owned()
        }
    });
    text.push_str(&what_follows(plan, theme));
    text
}

fn what_follows(plan: &Plan, theme: Theme) -> String {
    let Plan { name, here, primary, .. } = plan;
    if !plan.differs {
        return format!("  nothing of {name} is only on {here}: there is nothing to resolve\n");
    }
    let mut text = String::new();
    for volume in plan.volumes.iter().filter(|v| v.exists) {
        let dataset = &volume.dataset;
        text.push_str(&match &volume.common {
            Some(common) => format!(
                "  kept as {dataset}-diverged-<time>: what only {here} has; {name} goes on from {}, without a \
                 resend\n",
                clean(&common.short)
            ),
            None => format!(
                "  kept as {dataset}-diverged-<time>: {}; then {primary} {}: what the kept one has of it goes as \
                 references, and there has to be room for both\n",
                theme.warn("the whole dataset, renamed"),
                theme.warn("sends everything anew")
            ),
        });
    }
    text.push_str(&format!("  {primary} keeps all it has. Nothing is destroyed on either side\n"));
    text
}

fn list(snapshots: &[SnapshotLine]) -> String {
    let Some(newest) = snapshots.last() else {
        return "no snapshot".to_owned();
    };
    let shown = snapshots.iter().take(LISTED).map(|s| clean(&s.short));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if snapshots.len() > LISTED {
        text.push_str(&format!(", … {} in all", snapshots.len()));
    }
    format!("{text} (newest of {})", moment(newest.taken_unix_s.saturating_mul(1000)))
}

/// What `resolve --json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Resolved {
    /// The unit.
    pub(crate) name: String,
    /// It follows again, or did already: what did not work is an error.
    pub(crate) resolved: bool,
    /// Where what only this node had is kept.
    pub(crate) aside: Vec<String>,
    /// What was known before; `None`: it had been begun earlier.
    pub(crate) plan: Option<Plan>,
}

impl Resolved {
    /// The report, with nodes by name.
    pub(crate) fn of(report: &ResolveReport, names: &Names) -> Self {
        Self {
            name: report.name.clone(),
            resolved: true,
            aside: report.aside.iter().map(ToString::to_string).collect(),
            plan: report.plan.as_ref().map(|plan| Plan::of(plan, names)),
        }
    }
}

/// For people.
pub(crate) fn report_for_people(report: &Resolved, theme: Theme) -> String {
    let name = theme.strong(&report.name);
    if report.aside.is_empty() {
        return format!("{} {name}: nothing had to be set aside\n", theme.mark(true));
    }
    let mut text = format!("{} {name} follows again, within seconds\n", theme.mark(true));
    for aside in &report.aside {
        text.push_str(&format!("  what only this node had is kept in {}\n", clean(aside)));
    }
    text.push_str("  look at it, then destroy it; until then it takes room\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;
    use flocker_store::{DatasetName, Guid};

    fn plan(common: bool) -> Plan {
        let line = |short: &str, guid| SnapshotLine {
            short: short.into(),
            guid: Guid(guid),
            taken_unix_s: 1_700_000_000,
        };
        let volume = VolumeDifference {
            dataset: DatasetName::new("tank/recv/db").unwrap(),
            exists: true,
            common: common.then(|| line("flocker_1", 11)),
            only_here: vec![line("mine", 12)],
            only_there: (0..8).map(|n| line(&format!("flocker_{n}"), n)).collect(),
        };
        let plan = ResolvePlan {
            name: "db".into(),
            primary: samples::B,
            volumes: vec![volume],
            written_bytes: Some(0),
            differs: true,
        };
        Plan::of(&plan, &Names::of(&samples::view()))
    }

    #[test]
    fn both_sides_are_shown_and_what_is_kept_of_each() {
        let text = plan_for_people(&plan(true), Theme::PLAIN);
        for words in [
            "db is a standby on a, of b",
            "in common  flocker_1  guid 11, taken 2023-",
            "only here  mine (newest of",
            "only on b  flocker_0, flocker_1, flocker_2, flocker_3, flocker_4, … 8 in all",
            "goes on from flocker_1, without a resend",
            "Nothing is destroyed",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn that_everything_is_sent_anew_is_said_before() {
        let text = plan_for_people(&plan(false), Theme::PLAIN);
        assert!(text.contains("in common  nothing"), "{text}");
        assert!(
            text.contains("the whole dataset, renamed; then b sends everything anew"),
            "{text}"
        );
    }
}
