//! Commands that change one unit: protect, run, stop, pause, resume, unprotect, start-alone.
//!
//! Owns: their sentences. Leaves to others: moving it ([`super::migrate`]), taking it over
//! ([`super::failover`]), showing it ([`super::view`]).

use std::path::PathBuf;
use std::time::Duration;

use flocker_core::FailureCode;
use flocker_core::ids::UnitId;
use flocker_core::message::Adopted;
use flocker_core::record::{
    ContainerRuntime, Health, HealthCheck, Hooks, MoveMode, OciRuntime, Policy, Program,
};
use flocker_engine::api::{Answer, Request};
use serde::Serialize;

use super::{Context, unexpected};
use crate::args::{
    DEFAULT_HEALTH_LIMIT, DEFAULT_RPO, ProgramArgs, ProtectArgs, RunArgs, StartAloneArgs,
    UnprotectArgs,
};
use crate::exit::{Exit, failure_in};
use crate::quantity;
use crate::values::{Bundle, CommandWords};

/// What `protect --json` prints.
#[derive(Serialize)]
struct Protected {
    name: String,
    unit: UnitId,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    paths: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adopted: Vec<Adopted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

pub(super) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn policy(args: &ProtectArgs) -> Policy {
    match (args.every, args.rpo) {
        (Some(every), _) => Policy::Every(whole_ms(every)),
        (None, rpo) => Policy::Rpo(whole_ms(rpo.unwrap_or(DEFAULT_RPO))),
    }
}

/// `protect`
pub(super) fn protect(context: &Context<'_>, args: ProtectArgs) -> anyhow::Result<Exit> {
    let policy = policy(&args);
    let request = Request::Protect {
        datasets: args.datasets.clone(),
        to: args.to.clone(),
        name: args.name,
        recursive: args.recursive,
        exclude: args.exclude,
        policy,
        lease_ms: args.lease.map(whole_ms),
        create: args.create,
        adopt: args.adopt,
        diverged: args.diverged,
        one_way: args.one_way,
    };
    let answer = context.ask(&request).map_err(|error| {
        let missing = failure_in(&error).is_some_and(|failure| {
            failure.code == FailureCode::NotFound && failure.message.contains("dataset")
        });
        if missing && !args.create {
            // The node's own words follow as the cause.
            error.context("nothing is protected; with --create datasets that do not exist are made")
        } else {
            error
        }
    })?;
    let (name, unit, adopted, notes) = match answer {
        Answer::Protected { name, unit, adopted, notes } => (name, unit, adopted, notes),
        other => return unexpected(&other),
    };
    let status = Request::Status { name: Some(name.clone()) };
    let paths: Vec<PathBuf> = match context.ask(&status)? {
        Answer::Status(view) => {
            let volumes = view.node.units.iter().flat_map(|unit| &unit.volumes);
            volumes.filter_map(|volume| view.paths.get(volume.dataset.as_str()).cloned()).collect()
        }
        other => return unexpected(&other),
    };
    let out = context.out;
    if out.json {
        out.object(&Protected { name, unit, path: paths.first().cloned(), paths, adopted, notes })?;
        return Ok(Exit::Ok);
    }
    let promise = match policy {
        Policy::Rpo(ms) => format!("never more than {} behind", quantity::millis(ms)),
        Policy::Every(ms) => format!("a step every {}", quantity::millis(ms)),
    };
    out.line(format!(
        "{} ({}) is replicated to {}: {promise}",
        out.theme.strong(&name),
        args.datasets.join(", "),
        args.to
    ))?;
    if let Some(lease) = args.lease {
        out.line(format!(
            "  its workload stops when {} cannot be reached for {}",
            args.to,
            quantity::millis(whole_ms(lease))
        ))?;
    }
    for Adopted { dataset, base } in &adopted {
        out.line(format!(
            "  {dataset} on {} is gone on from @{base}: it is not sent again",
            args.to
        ))?;
    }
    for note in &notes {
        out.line(format!("  {note}"))?;
    }
    if args.diverged {
        out.line(format!(
            "  if it went its own way, `flocker-repl resolve {name}` on {} shows how, and keeps that aside",
            args.to
        ))?;
    }
    const SHOWN: usize = 8;
    let many = paths.len().saturating_sub(SHOWN);
    for path in paths.iter().take(if many > 0 { 1 } else { SHOWN }) {
        out.line(format!("  its files are in {}", path.display()))?;
    }
    if many > 0 {
        let more = quantity::count(paths.len() as u64 - 1, "other");
        out.line(format!("  and in {more}: flocker-repl status {name} --verbose"))?;
    }
    Ok(Exit::Ok)
}

/// `run`
pub(super) fn run(context: &Context<'_>, args: RunArgs) -> anyhow::Result<Exit> {
    let name = args.name.clone();
    let request = run_request(args);
    let Request::Run { program, .. } = &request else { unreachable!("just made") };
    let sentence = format!("{name} runs `{program}` on this node whenever it is primary here");
    context.simple(&request, sentence)
}

fn program(args: ProgramArgs) -> Program {
    let ProgramArgs { podman, docker, systemd, runc, crun, lxc, command } = args;
    let containers = |runtime, names| Program::Containers { runtime, names };
    let oci =
        |runtime, bundle: Bundle| Program::Oci { runtime, id: bundle.id, bundle: bundle.path };
    match (runc, crun, lxc) {
        (Some(bundle), ..) => oci(OciRuntime::Runc, bundle),
        (_, Some(bundle), _) => oci(OciRuntime::Crun, bundle),
        (.., Some(name)) => Program::Lxc(name),
        _ if !podman.is_empty() => containers(ContainerRuntime::Podman, podman),
        _ if !docker.is_empty() => containers(ContainerRuntime::Docker, docker),
        _ if !systemd.is_empty() => Program::Systemd(systemd),
        _ => Program::Process(command),
    }
}

fn run_request(args: RunArgs) -> Request {
    let words = |command: Option<CommandWords>| command.map(|words| words.0);
    let command = args.health_command.map(|words| HealthCheck::Command(words.0));
    let limit_ms = whole_ms(args.health_limit.unwrap_or(DEFAULT_HEALTH_LIMIT));
    Request::Run {
        name: args.name,
        program: program(args.program),
        mode: args.checkpoint.map_or(MoveMode::Stop, |state| MoveMode::Checkpoint { state }),
        stop_signal: args.stop_signal.into(),
        stop_limit_ms: whole_ms(args.stop_limit),
        die_with_daemon: args.die_with_daemon,
        health: args.health.or(command).map(|check| Health { check, limit_ms }),
        addresses: args.address,
        forwards: args.forward,
        hooks: Hooks { before_stop: words(args.before_stop), after_start: words(args.after_start) },
    }
}

/// `stop`
pub(super) fn stop(context: &Context<'_>, name: String) -> anyhow::Result<Exit> {
    let sentence = format!("the workload of {name} is stopped; `flocker-repl run` starts it again");
    context.simple(&Request::Stop { name }, sentence)
}

/// `pause`
pub(super) fn pause(context: &Context<'_>, name: String) -> anyhow::Result<Exit> {
    let sentence = format!("{name} is not replicated until `flocker-repl resume {name}`");
    context.simple(&Request::Pause { name }, sentence)
}

/// `resume`
pub(super) fn resume(context: &Context<'_>, name: String) -> anyhow::Result<Exit> {
    let sentence = format!("{name} is replicated again");
    context.simple(&Request::Resume { name }, sentence)
}

/// `unprotect`
pub(super) fn unprotect(context: &Context<'_>, args: UnprotectArgs) -> anyhow::Result<Exit> {
    let UnprotectArgs { name, store_is_gone } = args;
    let sentence = format!(
        "{name} is no longer protected; our holds, snapshots, properties and settings are taken back, \
         the data stays"
    );
    context.simple(&Request::Unprotect { name, store_is_gone }, sentence)
}

/// `start-alone`
pub(super) fn start_alone(context: &Context<'_>, args: StartAloneArgs) -> anyhow::Result<Exit> {
    let name = args.name;
    let sentence = format!(
        "{name} starts here without its standbys' word; if one of them had taken over, the side that does \
         not run then is set aside when they meet, and kept"
    );
    context.simple(&Request::StartAlone { name }, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rpo: Option<u64>, every: Option<u64>, expected: Policy) {
        let args = ProtectArgs {
            datasets: vec!["d".into()],
            to: "b".into(),
            name: None,
            recursive: false,
            exclude: Vec::new(),
            lease: None,
            rpo: rpo.map(Duration::from_millis),
            every: every.map(Duration::from_millis),
            create: false,
            adopt: None,
            diverged: false,
            one_way: false,
        };
        assert_eq!(policy(&args), expected);
    }

    #[test]
    fn the_promise_is_one_second_unless_it_is_said_otherwise() {
        check(None, None, Policy::Rpo(1000));
        check(Some(500), None, Policy::Rpo(500));
        check(None, Some(900_000), Policy::Every(900_000));
    }
}
