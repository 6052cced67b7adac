//! `migrate`: the request, how far it is, and the report; its dry run, and taking it back.
//!
//! Owns: which answer is printed how. Leaves to others: the report's form
//! ([`crate::render::migration`]), what is shown meanwhile ([`super::follow`]).

use flocker_engine::api::{Answer, Request};
use serde::Serialize;

use super::unit::whole_ms;
use super::{Context, follow, unexpected};
use crate::args::MigrateArgs;
use crate::exit::{Exit, Negative};
use crate::quantity::millis;
use crate::render::Names;
use crate::render::migration::{self, Migration, Plan};

/// What `migrate --json` prints where there was nothing to do.
#[derive(Serialize)]
struct AlreadyThere<'a> {
    name: &'a str,
    moved: bool,
    already_there: bool,
    target: &'a str,
    epoch: u64,
}

/// `migrate`
pub(super) fn migrate(context: &Context<'_>, args: MigrateArgs) -> anyhow::Result<Exit> {
    let MigrateArgs { name, to, budget, dry_run, accept_loss, cancel: _ } = args;
    let accept = accept_loss.into_iter().collect();
    let Some(to) = to else {
        return cancel(context, name);
    };
    let names = match context.ask(&Request::Status { name: None })? {
        Answer::Status(view) => Names::of(&view),
        other => return unexpected(&other),
    };
    let target = to.clone();
    let request = Request::Migrate { name, to, budget_ms: budget.map(whole_ms), dry_run, accept };
    let out = context.out;
    match follow::ask(context, &request, &names)? {
        Answer::Migrated(report) => {
            let migration = Migration::of(&report, &names);
            if out.json {
                out.object(&migration)?;
            } else {
                out.text(&migration::for_people(&migration, out.theme))?;
            }
        }
        Answer::AlreadyThere { name, epoch } => {
            let (name, target) = (name.as_str(), target.as_str());
            if out.json {
                let (moved, already_there) = (false, true);
                out.object(&AlreadyThere { name, moved, already_there, target, epoch })?;
            } else {
                out.line(format!(
                    "{name} is on {target} already, since epoch {epoch}; nothing was done"
                ))?;
            }
        }
        Answer::MigrationPlan(plan) => return planned(context, &Plan::of(&plan, &names)),
        other => return unexpected(&other),
    }
    Ok(Exit::Ok)
}

/// A dry run: what would be, and whether that is within the budget.
fn planned(context: &Context<'_>, plan: &Plan) -> anyhow::Result<Exit> {
    let out = context.out;
    if out.json {
        out.object(plan)?;
    } else {
        out.text(&migration::plan_for_people(plan, out.theme))?;
    }
    match (plan.within_budget, plan.budget_ms) {
        (Some(false), Some(budget_ms)) => Err(Negative(format!(
            "{} would be down for {}, longer than the budget of {}; nothing was changed",
            plan.name,
            millis(plan.prediction.downtime_ms),
            millis(budget_ms)
        ))
        .into()),
        _ => Ok(Exit::Ok),
    }
}

fn cancel(context: &Context<'_>, name: String) -> anyhow::Result<Exit> {
    let sentence = format!("the migration of {name} is taken back; it stays where it was");
    context.simple(&Request::CancelMigration { name }, sentence)
}
