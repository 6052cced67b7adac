//! `demo`: the main job on one machine, by the very commands that a person would type.
//!
//! Owns: the two nodes, the workload, its client, the move and the verdict. Leaves to others: everything
//! that is replicated and moved; the demo only asks the nodes' local API.
//!
//! Read next: [`story`] (what happens in which order), [`verdict`] (what has to hold at the end).

mod interrupt;
mod ledger;
mod load;
mod nodes;
mod preload;
mod sabotage;
mod story;
mod verdict;
pub(crate) mod workload;

use anyhow::Context as _;

use crate::args::DemoArgs;
use crate::exit::{Exit, Negative};
use crate::out::Out;

/// `demo`
pub(crate) fn demo(out: &Out, args: &DemoArgs) -> anyhow::Result<Exit> {
    interrupt::watch()?;
    let dir = tempfile::Builder::new()
        .prefix("flocker-repl-demo-")
        .tempdir()
        .context("cannot make a directory for the demo")?;
    let result = story::play(out, args, dir.path());
    if args.keep {
        let kept = dir.keep();
        if !out.json {
            out.line(format!("both nodes, their stores and logs are kept in {}", kept.display()))?;
        }
    }
    let facts = result?;
    let checks = facts.checks();
    let good = verdict::verdict(&checks);
    if out.json {
        out.object(&facts.object(&checks))?;
    } else {
        out.text(&verdict::checks_for_people(&checks, out.theme))?;
        out.line("")?;
        if good {
            out.line(out.theme.good(
                "verdict: moved under load, nothing lost, nothing doubled, nothing out of order",
            ))?;
        } else {
            out.line(out.theme.bad("verdict: NOT what was promised"))?;
        }
    }
    if good {
        return Ok(Exit::Ok);
    }
    let failed: Vec<&str> =
        checks.iter().filter(|check| !check.ok).map(|check| check.what).collect();
    Err(Negative(format!("not so: {}", failed.join("; "))).into())
}
