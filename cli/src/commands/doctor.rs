//! `doctor`: the machine looked over, with or without a daemon.
//!
//! Owns: what is asked, and the exit code. Leaves to others: the findings (`flocker_engine::doctor`).

use flocker_engine::api::{Answer, Request};
use flocker_engine::client::{Client, ClientError};
use flocker_engine::doctor::{self, Area, Finding, Level};
use serde::Serialize;

use super::{Context, unexpected};
use crate::exit::{Exit, Negative};
use crate::out::{Theme, clean};

/// `doctor`
pub(super) fn doctor(context: &Context<'_>) -> anyhow::Result<Exit> {
    let config = context.config()?;
    let node = match Client::connect(&config) {
        Ok(_) => of_node(context)?,
        Err(error @ (ClientError::NotRunning { .. } | ClientError::NotAllowed { .. })) => {
            let finding =
                Finding::warning(error.to_string(), "without it only the machine is looked at");
            vec![Area { name: "node".to_owned(), findings: vec![finding] }]
        }
        Err(error) => return Err(error.into()),
    };
    let is_running = node.len() > 1;
    let mut areas = doctor::of_machine(&config, is_running);
    areas.extend(node);
    let count = |level| areas.iter().flat_map(|a| &a.findings).filter(|f| f.level == level).count();
    let (bad, warnings) = (count(Level::Bad), count(Level::Warning));
    let out = context.out;
    if out.json {
        #[derive(Serialize)]
        struct Report<'a> {
            areas: &'a [Area],
            bad: usize,
            warnings: usize,
        }
        out.object(&Report { areas: &areas, bad, warnings })?;
    } else {
        out.text(&for_people(&areas, out.theme))?;
    }
    match bad {
        0 => Ok(Exit::Ok),
        1 => Err(Negative("one thing is not as it has to be".to_owned()).into()),
        n => Err(Negative(format!("{n} things are not as they have to be")).into()),
    }
}

fn of_node(context: &Context<'_>) -> anyhow::Result<Vec<Area>> {
    let view = match context.ask(&Request::Status { name: None })? {
        Answer::Status(view) => view,
        other => return unexpected(&other),
    };
    let holds = match context.ask(&Request::Holds { name: None, collect: false })? {
        Answer::Holds(holds) => holds,
        other => return unexpected(&other),
    };
    Ok(doctor::of_node(&view, &holds))
}

/// A line a finding, and one below it that says what to do.
fn for_people(areas: &[Area], theme: Theme) -> String {
    let mut text = String::new();
    for area in areas {
        text.push_str(&format!("{}\n", theme.strong(&area.name)));
        for finding in &area.findings {
            let mark = match finding.level {
                Level::Good => theme.mark(true),
                Level::Warning => theme.warn("!"),
                Level::Bad => theme.mark(false),
            };
            text.push_str(&format!("  {mark} {}\n", clean(&finding.what)));
            if let Some(todo) = &finding.todo {
                text.push_str(&format!("    {}\n", theme.accent(&clean(todo))));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_marked_and_what_to_do_is_below_it() {
        let findings = vec![
            Finding::good("pool tank is ONLINE"),
            Finding::warning("pool tank is 85 % full", "make room"),
            Finding::bad("the key is not loaded", "zfs load-key tank"),
        ];
        let areas = [Area { name: "store".into(), findings }];
        assert_eq!(
            for_people(&areas, Theme::PLAIN),
            "store\n  ✓ pool tank is ONLINE\n  ! pool tank is 85 % full\n    make room\n  ✗ the key is not loaded\n    \
             zfs load-key tank\n"
        );
    }
}
