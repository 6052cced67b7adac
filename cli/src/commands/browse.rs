//! `browse`: opening a copy, looking at it by a command, closing it.
//!
//! Owns: that what was opened for a command is closed behind it, whatever became of it. Leaves to others: making the
//! copies (the node).

use std::process::Command;

use anyhow::Context as _;
use flocker_core::FailureCode;
use flocker_engine::api::{Answer, BrowseView, CopyView, Request};

use super::{Context, unexpected};
use crate::args::BrowseArgs;
use crate::exit::{Exit, Negative, Refusal};
use crate::out::{Theme, clean};
use crate::quantity::millis;
use crate::render::holds::now_s;

/// `browse`
pub(super) fn browse(context: &Context<'_>, args: &BrowseArgs) -> anyhow::Result<Exit> {
    let out = context.out;
    let view = ask(context, args.name.clone(), args.close)?;
    if !args.command.is_empty() {
        let outcome = look(context, &view, &args.command);
        // Also when it failed, and first of all.
        ask(context, args.name.clone(), true)?;
        return outcome;
    }
    if out.json {
        out.object(&view)?;
    } else {
        out.text(&for_people(&view, args, now_s(), out.theme))?;
    }
    Ok(Exit::Ok)
}

fn ask(context: &Context<'_>, name: Option<String>, close: bool) -> anyhow::Result<BrowseView> {
    match context.ask(&Request::Browse { name, close })? {
        Answer::Browsed(view) => Ok(view),
        other => unexpected(&other),
    }
}

/// Runs the command in the first copy.
fn look(context: &Context<'_>, view: &BrowseView, command: &[String]) -> anyhow::Result<Exit> {
    let paths: Vec<_> = view.open.iter().filter_map(|copy| copy.path.clone()).collect();
    let [first, ..] = paths.as_slice() else {
        return Err(Refusal::error(
            FailureCode::Unsupported,
            "this node's store has no path for this kind of volume: there is nothing to look at",
        ));
    };
    let [program, arguments @ ..] = command else {
        return Ok(Exit::Ok);
    };
    let joined = std::env::join_paths(&paths).context("a path with a `:` in it")?;
    let mut child = Command::new(program);
    child.args(arguments).env("FLOCKER_VOLUME_PATH", joined);
    // A zvol is a device, or an image.
    if first.is_dir() {
        child.current_dir(first);
    }
    let status = child.status().with_context(|| format!("cannot start `{program}`"))?;
    if status.success() {
        if context.out.json {
            context.out.object(view)?;
        }
        return Ok(Exit::Ok);
    }
    Err(Negative(format!("`{}` ended with {status}", clean(&command.join(" ")))).into())
}

fn for_people(view: &BrowseView, args: &BrowseArgs, now_s: i64, theme: Theme) -> String {
    let mut text = String::new();
    for copy in &view.open {
        text.push_str(&line(copy, now_s, theme));
    }
    for dataset in &view.removed {
        text.push_str(&format!("{} {} is taken away\n", theme.mark(true), clean(dataset)));
    }
    match &args.name {
        Some(name) if !args.close => {
            let hint = theme.accent(&format!("flocker-repl browse {name} --close"));
            text.push_str(&format!("it stays until {hint}\n"));
        }
        _ if text.is_empty() => text.push_str("no copy is open here\n"),
        _ => {}
    }
    text
}

fn line(copy: &CopyView, now_s: i64, theme: Theme) -> String {
    let age = copy.taken_unix_s.map_or_else(String::new, |taken| {
        let seconds = u64::try_from(now_s.saturating_sub(taken)).unwrap_or(0);
        format!(", {} old", millis(seconds.saturating_mul(1000)))
    });
    let place = copy.path.as_ref().map_or_else(
        || theme.warn("this store has no path for it"),
        |path| clean(&path.display().to_string()),
    );
    format!("{}  {place}  ({}{age})\n", theme.strong(&clean(&copy.unit)), clean(&copy.snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_shown_with_its_place_its_age_and_how_it_ends() {
        let copy = CopyView {
            unit: "db".into(),
            dataset: "tank/flocker/browse-db".into(),
            snapshot: "tank/flocker/recv/db@flocker_1".into(),
            taken_unix_s: Some(1_000),
            path: Some("/srv/browse-db".into()),
        };
        let args = |name: Option<&str>, close| BrowseArgs {
            name: name.map(str::to_owned),
            close,
            command: Vec::new(),
        };
        let open = BrowseView { open: vec![copy], removed: Vec::new() };
        let text = for_people(&open, &args(Some("db"), false), 1_012, Theme::PLAIN);
        assert!(
            text.contains("db  /srv/browse-db  (tank/flocker/recv/db@flocker_1, 12.0 s old)"),
            "{text}"
        );
        assert!(text.contains("flocker-repl browse db --close"), "{text}");
        let closed =
            BrowseView { open: Vec::new(), removed: vec!["tank/flocker/browse-db".into()] };
        let text = for_people(&closed, &args(Some("db"), true), 0, Theme::PLAIN);
        assert_eq!(text, "✓ tank/flocker/browse-db is taken away\n");
        let text = for_people(&BrowseView::default(), &args(None, false), 0, Theme::PLAIN);
        assert_eq!(text, "no copy is open here\n");
    }
}
