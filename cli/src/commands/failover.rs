//! `failover`: what it would mean, the question, the act, and its drill.
//!
//! Owns: that nothing is done before it was shown, and asked on a terminal. Leaves to others: whether
//! there is a proof (the node), the words of plan and report ([`crate::render::failover`]).

use std::io::{self, IsTerminal};

use flocker_core::FailureCode;
use flocker_engine::api::{Answer, Request};

use super::pair::question;
use super::{Context, follow, unexpected};
use crate::args::FailoverArgs;
use crate::exit::{Exit, Negative, Refusal};
use crate::render::Names;
use crate::render::failover::{self, Drill, FailedOver, Plan};

/// `failover`
pub(super) fn failover(context: &Context<'_>, args: &FailoverArgs) -> anyhow::Result<Exit> {
    let names = match context.ask(&Request::Status { name: None })? {
        Answer::Status(view) => Names::of(&view),
        other => return unexpected(&other),
    };
    if args.drill {
        return drill(context, &args.name, &names);
    }
    let plan = plan(context, args, &names)?;
    let out = context.out;
    if args.dry_run {
        if out.json {
            out.object(&plan)?;
        } else {
            out.text(&failover::plan_for_people(&plan, args.primary_is_down, out.theme))?;
        }
        return Ok(Exit::Ok);
    }
    if !out.json {
        out.text(&failover::plan_for_people(&plan, args.primary_is_down, out.theme))?;
    }
    if plan.proofs.is_empty() && !args.primary_is_down {
        return Err(Refusal::error(FailureCode::NoProof, failover::no_proof(&plan)));
    }
    if !args.yes && out.terminal && io::stdin().is_terminal() {
        confirm(&plan)?;
    }
    act(context, args, &names)
}

fn plan(context: &Context<'_>, args: &FailoverArgs, names: &Names) -> anyhow::Result<Plan> {
    let primary_is_down = args.primary_is_down;
    let request = Request::Failover { name: args.name.clone(), primary_is_down, dry_run: true };
    match context.ask(&request)? {
        Answer::FailoverPlan(plan) => Ok(Plan::of(&plan, names)),
        other => unexpected(&other),
    }
}

fn confirm(plan: &Plan) -> anyhow::Result<()> {
    let prompt = format!("Make {} the primary of {} now? [y/N] ", plan.here, plan.name);
    let answer = question(&mut io::stdin().lock(), &prompt)?.unwrap_or_default();
    if ["y", "yes"].contains(&answer.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Refusal::error(FailureCode::Cancelled, "not confirmed; nothing was changed"))
}

fn act(context: &Context<'_>, args: &FailoverArgs, names: &Names) -> anyhow::Result<Exit> {
    let primary_is_down = args.primary_is_down;
    let request = Request::Failover { name: args.name.clone(), primary_is_down, dry_run: false };
    let report = match follow::ask(context, &request, names)? {
        Answer::FailedOver(report) => FailedOver::of(&report, names),
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        out.object(&report)?;
    } else {
        out.text(&failover::report_for_people(&report, out.theme))?;
    }
    Ok(Exit::Ok)
}

fn drill(context: &Context<'_>, name: &str, names: &Names) -> anyhow::Result<Exit> {
    let request = Request::Drill { name: name.to_owned() };
    let drill = match follow::ask(context, &request, names)? {
        Answer::Drilled(report) => Drill::of(&report),
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        out.object(&drill)?;
    } else {
        out.text(&failover::drill_for_people(&drill, out.theme))?;
    }
    if drill.healthy {
        return Ok(Exit::Ok);
    }
    Err(Negative(format!("{name} would not have come up here; nothing was changed")).into())
}
