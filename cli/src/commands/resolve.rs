//! `resolve`: what each side has, the question, and the act.
//!
//! Owns: that nothing is done before it was shown, and asked on a terminal. Leaves to others: what is kept
//! and how (the node), the words ([`crate::render::resolve`]).

use std::io::{self, IsTerminal};

use flocker_core::FailureCode;
use flocker_engine::api::{Answer, Request};

use super::pair::question;
use super::{Context, follow, unexpected};
use crate::args::ResolveArgs;
use crate::exit::{Exit, Refusal};
use crate::render::Names;
use crate::render::resolve::{self, Plan, Resolved};

/// `resolve`
pub(super) fn resolve(context: &Context<'_>, args: &ResolveArgs) -> anyhow::Result<Exit> {
    let names = match context.ask(&Request::Status { name: None })? {
        Answer::Status(view) => Names::of(&view),
        other => return unexpected(&other),
    };
    let request = |dry_run| Request::Resolve { name: args.name.clone(), dry_run };
    let plan = match context.ask(&request(true))? {
        Answer::ResolvePlan(plan) => Plan::of(&plan, &names),
        other => return unexpected(&other),
    };
    let out = context.out;
    if !out.json {
        out.text(&resolve::plan_for_people(&plan, out.theme))?;
    } else if args.dry_run {
        out.object(&plan)?;
    }
    if args.dry_run {
        return Ok(Exit::Ok);
    }
    if plan.differs && !args.yes && out.terminal && io::stdin().is_terminal() {
        confirm(&plan)?;
    }
    // Also where nothing differs: what a crash has interrupted is finished by it.
    let report = match follow::ask(context, &request(false), &names)? {
        Answer::Resolved(report) => Resolved::of(&report, &names),
        other => return unexpected(&other),
    };
    if out.json {
        out.object(&report)?;
    } else {
        out.text(&resolve::report_for_people(&report, out.theme))?;
    }
    Ok(Exit::Ok)
}

fn confirm(plan: &Plan) -> anyhow::Result<()> {
    let prompt = format!(
        "Set aside what only {} has of {}, and follow {} again? [y/N] ",
        plan.here, plan.name, plan.primary
    );
    let answer = question(&mut io::stdin().lock(), &prompt)?.unwrap_or_default();
    if ["y", "yes"].contains(&answer.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Refusal::error(FailureCode::Cancelled, "not confirmed; nothing was changed"))
}
