//! Commands that only look: status, watch, peers, rounds, history, metrics.
//!
//! Owns: which request is asked. Leaves to others: how the answer looks ([`crate::render`]).

use flocker_engine::api::{Answer, NodeView, Request, Response, StampedEvent};
use flocker_engine::client::{Client, ClientError};
use serde::Serialize;

use super::{Context, unexpected};
use crate::args::{HistoryArgs, HoldsArgs, RoundsArgs, StatusArgs};
use crate::exit::Exit;
use crate::render::{self, Names};

fn node(context: &Context<'_>, name: Option<String>) -> anyhow::Result<NodeView> {
    match context.ask(&Request::Status { name })? {
        Answer::Status(view) => Ok(*view),
        other => unexpected(&other),
    }
}

/// `status`
pub(super) fn status(context: &Context<'_>, args: StatusArgs) -> anyhow::Result<Exit> {
    let (one, verbose) = (args.name.is_some(), args.verbose);
    let view = node(context, args.name)?;
    let out = context.out;
    if out.json {
        out.object(&render::status::object(&view)?)?;
    } else if out.terminal {
        out.text(&render::status::for_people(&view, one, verbose, out.theme))?;
    } else {
        out.text(&render::plain::status(&view, one, verbose))?;
    }
    Ok(Exit::Ok)
}

/// `peers`
pub(super) fn peers(context: &Context<'_>) -> anyhow::Result<Exit> {
    let view = node(context, None)?;
    let out = context.out;
    if out.json {
        #[derive(Serialize)]
        struct Peers<'a> {
            peers: &'a [flocker_core::status::PeerStatus],
            links: &'a [flocker_engine::api::LinkView],
        }
        out.object(&Peers { peers: &view.node.peers, links: &view.links })?;
    } else if out.terminal {
        out.text(&render::status::peers_for_people(&view, out.theme))?;
    } else {
        out.text(&render::plain::peers(&view.node.peers))?;
    }
    Ok(Exit::Ok)
}

/// `rounds`
pub(super) fn rounds(context: &Context<'_>, args: RoundsArgs) -> anyhow::Result<Exit> {
    let request = Request::Rounds { name: args.name.clone(), last: Some(args.last) };
    let rounds = match context.ask(&request)? {
        Answer::Rounds(rounds) => rounds,
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        #[derive(Serialize)]
        struct Rounds<'a> {
            name: &'a str,
            rounds: &'a [flocker_engine::api::StampedRound],
        }
        out.object(&Rounds { name: &args.name, rounds: &rounds })?;
        return Ok(Exit::Ok);
    }
    if rounds.is_empty() {
        out.line(format!("{} has no rounds in the history of this node yet", args.name))?;
        return Ok(Exit::Ok);
    }
    let names = Names::of(&node(context, None)?);
    out.text(&render::rounds::stamped(&rounds, &names, out.theme))?;
    Ok(Exit::Ok)
}

/// `history`
pub(super) fn history(context: &Context<'_>, args: HistoryArgs) -> anyhow::Result<Exit> {
    let HistoryArgs { name, last } = args;
    let request = Request::History { name: name.clone(), last: Some(last), all: false };
    let events = match context.ask(&request)? {
        Answer::History(events) => events,
        other => return unexpected(&other),
    };
    let names = Names::of(&node(context, None)?);
    let out = context.out;
    if out.json {
        #[derive(Serialize)]
        struct History {
            name: Option<String>,
            events: Vec<serde_json::Value>,
        }
        let events = events.iter().map(|event| render::history::object(event, &names));
        out.object(&History { name, events: events.collect::<Result<_, _>>()? })?;
    } else if events.is_empty() {
        let whose = name.map_or_else(String::new, |name| format!(" of {name}"));
        out.line(format!("the history of this node has nothing{whose} yet"))?;
    } else {
        out.text(&render::history::for_people(&events, &names, out.theme))?;
    }
    Ok(Exit::Ok)
}

/// `holds`
pub(super) fn holds(context: &Context<'_>, args: HoldsArgs) -> anyhow::Result<Exit> {
    let HoldsArgs { name, collect } = args;
    let view = match context.ask(&Request::Holds { name, collect })? {
        Answer::Holds(view) => view,
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        out.object(&render::holds::object(&view))?;
    } else {
        out.text(&render::holds::for_people(&view, collect, render::holds::now_s(), out.theme))?;
    }
    Ok(Exit::Ok)
}

/// `metrics`
pub(super) fn metrics(context: &Context<'_>) -> anyhow::Result<Exit> {
    let text = match context.ask(&Request::Metrics)? {
        Answer::Metrics(text) => text,
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        #[derive(Serialize)]
        struct Metrics {
            prometheus: String,
        }
        out.object(&Metrics { prometheus: text })?;
    } else {
        out.text(&text)?;
        if !text.ends_with('\n') {
            out.text("\n")?;
        }
    }
    Ok(Exit::Ok)
}

/// `watch`: until it is interrupted, the node ends, or nobody reads any more.
pub(super) fn watch(context: &Context<'_>) -> anyhow::Result<Exit> {
    let names = Names::of(&node(context, None)?);
    let client = Client::connect(&context.config()?)?;
    for response in client.request(&Request::Watch { name: None })? {
        match response? {
            Response::Event(event) => show_event(context, &event, &names)?,
            Response::Progress(progress) => {
                if context.out.json {
                    context.out.object(&progress)?;
                }
            }
            Response::InviteOpen(_) => {}
            Response::Ok(_) => break,
            Response::Error(failure) => return Err(ClientError::Refused(failure).into()),
        }
    }
    Ok(Exit::Ok)
}

fn show_event(context: &Context<'_>, event: &StampedEvent, names: &Names) -> anyhow::Result<()> {
    let out = context.out;
    if out.json {
        return out.object(event);
    }
    out.line(render::event::line(event, names, out.theme))
}
