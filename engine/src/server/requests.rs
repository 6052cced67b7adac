//! What each request does: checks what a person gave, asks the core, adds what the core does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use flocker_core::ids::{UnitId, VolumeId};
use flocker_core::node::UnitAccount;
use flocker_core::record::{
    Adoption, Grant, Health, HealthCheck, Program, WorkloadKind, WorkloadRecord,
};
use flocker_core::status::NodeStatus;
use flocker_core::tree::Tree;
use flocker_core::{Command, Failure, FailureCode, Reply};
use flocker_store::{DatasetName, Store, StoreError};
use flocker_transport::{Figures, LaneStatus, PeerManager, words};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Notify, oneshot};

use super::{End, Lines, browse, ending, holds, pairing, refused, trees};
use crate::api::{
    Answer, ControlView, FiguresView, LaneView, LeftOutView, LinkView, NodeView, Request,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::hub::Hub;
use crate::journal::Journal;
use crate::metrics;
use crate::network::forward::Forwards;
use crate::ops::Tools;
use crate::rates::Rates;
use crate::transfer::Transfers;
use crate::turn::{Turn, Turns};

/// What the API works with.
pub(crate) struct Api {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) turns: Turns,
    pub(crate) hub: Hub,
    pub(crate) forwards: Forwards,
    pub(crate) rates: Rates,
    pub(crate) transfers: Transfers,
    pub(crate) tools: Arc<Tools>,
    pub(crate) manager: PeerManager,
    pub(crate) journal: Arc<Journal>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) shutdown: Arc<Notify>,
    /// What the last look found below units that does not belong to them.
    pub(crate) left_out: Mutex<BTreeMap<String, LeftOutView>>,
}

/// Answers one request; `rest` tells when the client goes away.
pub(super) async fn answer(
    api: &Arc<Api>,
    request: Request,
    rest: OwnedReadHalf,
    lines: &mut Lines,
) -> End {
    match request {
        Request::Status { name } => status(api, name).await,
        Request::Invite { ttl_s } => pairing::invite(api, ttl_s, lines).await,
        Request::Join { address, code } => pairing::join(api, &address, &code).await,
        Request::Grant { peer, receive, quota_bytes, workloads } => {
            grant(api, peer, receive, quota_bytes, workloads).await
        }
        request @ Request::Protect { .. } => protect(api, request).await,
        request @ Request::Run { .. } => run(api, request).await,
        Request::Stop { name } => api.done(Command::StopWorkload { name }).await,
        Request::Migrate { name, to, budget_ms, dry_run, accept } => {
            let command = Command::Migrate { name: name.clone(), to, budget_ms, dry_run, accept };
            followed(api, name, command, lines).await
        }
        Request::CancelMigration { name } => api.done(Command::CancelMigration { name }).await,
        Request::Failover { name, primary_is_down, dry_run } => {
            let command = Command::Failover { name: name.clone(), primary_is_down, dry_run };
            followed(api, name, command, lines).await
        }
        Request::Drill { name } => {
            followed(api, name.clone(), Command::Drill { name }, lines).await
        }
        Request::Resolve { name, dry_run } => {
            followed(api, name.clone(), Command::Resolve { name, dry_run }, lines).await
        }
        Request::Browse { name, close } => browse::browse(api, name, close).await,
        Request::Holds { name, collect } => holds::holds(api, name, collect).await,
        Request::Pause { name } => api.done(Command::Pause { name }).await,
        Request::Resume { name } => api.done(Command::Resume { name }).await,
        Request::Unprotect { name, store_is_gone } => {
            api.done(Command::Unprotect { name, store_is_gone }).await
        }
        Request::Unpair { peer } => api.done(Command::RemovePeer { peer }).await,
        Request::StartAlone { name } => api.done(Command::StartAlone { name }).await,
        Request::Watch { name } => watch(api, name, rest, lines).await,
        Request::Rounds { name, last } => {
            let history = api.hub.history().clone();
            blocking(move || Ok(Answer::Rounds(history.rounds(&name, last)))).await
        }
        Request::History { name, last, all } => {
            let history = api.hub.history().clone();
            let kept = move || match all {
                true => history.events(name.as_deref(), last),
                false => history.milestones(name.as_deref(), last),
            };
            blocking(move || Ok(Answer::History(kept()))).await
        }
        Request::Metrics => Ok(Answer::Metrics(metrics::render(&api.metrics))),
        Request::Shutdown => {
            api.shutdown.notify_one();
            Ok(Answer::Done)
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ending()))
}

impl Api {
    /// What is kept for each unit, and why.
    pub(super) async fn accounts(&self) -> Result<Vec<UnitAccount>, Failure> {
        let (answer, taken) = oneshot::channel();
        self.turns.send(Turn::Accounts(answer)).map_err(|_| ending())?;
        taken.await.map_err(|_| ending())
    }

    /// Asks the core.
    pub(super) async fn command(&self, command: Command) -> Result<Reply, Failure> {
        let (answer, taken) = oneshot::channel();
        self.turns.send(Turn::Command(command, answer)).map_err(|_| ending())?;
        taken.await.unwrap_or_else(|_| Err(ending()))
    }

    /// Asks the core, and passes its answer on.
    pub(super) async fn done(&self, command: Command) -> End {
        self.command(command).await.map(|reply| match reply {
            Reply::Done => Answer::Done,
            Reply::Protected { name, unit, adopted, notes } => {
                Answer::Protected { name, unit, adopted, notes }
            }
            Reply::Migrated(report) => Answer::Migrated(report),
            Reply::AlreadyThere { name, epoch } => Answer::AlreadyThere { name, epoch },
            Reply::MigrationPlan(plan) => Answer::MigrationPlan(plan),
            Reply::FailoverPlan(plan) => Answer::FailoverPlan(plan),
            Reply::FailedOver(report) => Answer::FailedOver(report),
            Reply::Drilled(report) => Answer::Drilled(report),
            Reply::ResolvePlan(plan) => Answer::ResolvePlan(plan),
            Reply::Resolved(report) => Answer::Resolved(report),
        })
    }

    pub(super) async fn node_status(&self) -> Result<NodeStatus, Failure> {
        let (answer, taken) = oneshot::channel();
        self.turns.send(Turn::Status(answer)).map_err(|_| ending())?;
        taken.await.map_err(|_| ending())
    }

    pub(super) fn store(&self) -> &dyn Store {
        self.tools.store.as_ref()
    }

    /// A dataset as a person names it: in full, or from the store's root on.
    fn dataset(&self, given: &str) -> Result<DatasetName, Failure> {
        let bad =
            |error: flocker_store::NameError| refused(FailureCode::BadRequest, error.to_string());
        let root = self.store().root();
        let name = DatasetName::new(given).map_err(bad)?;
        if name.is_within(root) {
            return Ok(name);
        }
        if name.pool() == root.pool() {
            return Err(refused(
                FailureCode::NotGranted,
                format!("{name} is outside of {root}, below which this node works"),
            ));
        }
        DatasetName::new(format!("{root}/{given}")).map_err(bad)
    }
}

async fn status(api: &Api, name: Option<String>) -> End {
    let mut node = api.node_status().await?;
    if let Some(name) = name {
        node.units.retain(|unit| unit.name == name);
        if node.units.is_empty() {
            return Err(refused(
                FailureCode::NotFound,
                format!("there is no unit `{name}` on this node: `flocker-repl status` lists them"),
            ));
        }
    }
    let fingerprint = api.manager.fingerprint();
    let store = api.store();
    let peers = api.hub.peers();
    let links = api.manager.peers().into_iter().map(|link| {
        let name = peers.iter().find(|p| p.fingerprint == link.fingerprint);
        LinkView {
            peer: link.fingerprint,
            name: name.map(|p| p.name.clone()).unwrap_or_default(),
            words: words(&link.fingerprint),
            software: link.up.as_ref().map(|(info, _)| info.software.clone()),
            round_trip_us: link
                .up
                .as_ref()
                .map(|(_, rtt)| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            control: link.link.map(|link| ControlView {
                over: link.kind.to_string(),
                why: link.why,
                udp_blocked: link.udp_blocked,
                for_ms: crate::clock::millis(link.lasts),
            }),
            lane: link.lane.map(lane_view),
            last_error: link.last_error.map(|error| error.to_string()),
        }
    });
    Ok(Answer::Status(Box::new(NodeView {
        name: api.config.node.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: api.clock.uptime_ms(),
        listen: api.manager.local_addr().unwrap_or(api.config.node.listen).to_string(),
        store: format!("{} ({})", store.describe(), store.capabilities().version),
        root: store.root().to_string(),
        words: words(&fingerprint),
        node,
        transfers: api.transfers.running(),
        links: links.collect(),
        forwards: api.forwards.views(),
        rates: api.rates.view(),
        paths: api.tools.paths(),
        left_out: api.left_out.lock().unwrap_or_else(|p| p.into_inner()).clone(),
    })))
}

fn lane_view(lane: LaneStatus) -> LaneView {
    let figures = |figures: Figures| FiguresView {
        bytes_per_second: figures.bytes_per_second,
        cpu_ms_per_gb: figures.cpu_ms_per_gb,
    };
    let LaneStatus { chosen, why, failed, quic, tls } = lane;
    let chosen = chosen.to_string();
    LaneView { chosen, why, failed, quic: quic.map(figures), tls: tls.map(figures) }
}

async fn grant(
    api: &Api,
    peer: String,
    receive: Option<String>,
    quota_bytes: Option<u64>,
    workloads: Vec<WorkloadKind>,
) -> End {
    let grant = match receive {
        Some(receive) => Some(Grant {
            receive: api.dataset(&receive)?,
            quota_bytes,
            workloads: workloads.into_iter().collect(),
        }),
        None => None,
    };
    api.done(Command::SetGrant { peer, grant }).await
}

async fn protect(api: &Arc<Api>, request: Request) -> End {
    let Request::Protect {
        datasets,
        to,
        name,
        recursive,
        exclude,
        policy,
        lease_ms,
        create,
        adopt,
        diverged,
        one_way,
    } = request
    else {
        unreachable!("only called for it");
    };
    let datasets = datasets.iter().map(|given| api.dataset(given));
    let datasets = datasets.collect::<Result<Vec<_>, _>>()?;
    let adoption = adopt.map(|places| adoption(&places, diverged)).transpose()?;
    // Before anything is made: the core would refuse these too, but only afterwards.
    flocker_core::node::check_group(&datasets)?;
    let known = api.hub.peers();
    if !known.iter().any(|p| p.name == to || p.fingerprint.to_string() == to) {
        return Err(refused(
            FailureCode::NotFound,
            format!("there is no peer `{to}`: `flocker-repl peers` lists them"),
        ));
    }
    if create {
        let (tools, datasets) = (Arc::clone(&api.tools), datasets.clone());
        blocking(move || {
            for dataset in &datasets {
                create_missing(tools.store.as_ref(), dataset)?;
            }
            Ok(())
        })
        .await?;
    }
    let tops = datasets.clone();
    let tree = recursive.then_some(Tree { exclude });
    let (datasets, joined) = match &tree {
        Some(tree) => trees::expand(api, datasets, tree).await?,
        None => (datasets, Vec::new()),
    };
    let count = datasets.len();
    let volumes = datasets.into_iter().map(|dataset| Ok((VolumeId(random()?), dataset)));
    let volumes = volumes.collect::<Result<Vec<_>, Failure>>()?;
    let unit = UnitId(random()?);
    let command = Command::Protect {
        unit,
        volumes,
        tree: tree.clone(),
        to,
        name,
        policy,
        lease_ms,
        adoption,
        one_way,
    };
    let mut answer = api.done(command).await?;
    if let Answer::Protected { notes, .. } = &mut answer {
        // It is protected, whatever comes of this.
        notes.extend(joined);
        let unseen = |failure| vec![format!("what lies below was not looked at: {failure}")];
        match tree {
            Some(_) => notes.push(format!("{count} datasets, and whatever is made below them")),
            None => notes.extend(left_out(api, tops).await.unwrap_or_else(unseen)),
        }
    }
    Ok(answer)
}

/// Datasets named in one note, at most.
const NAMED: usize = 5;

/// What lies below these and belongs to no unit: a person may take it for protected with what it lies below.
async fn left_out(api: &Arc<Api>, tops: Vec<DatasetName>) -> Result<Vec<String>, Failure> {
    let accounts = api.accounts().await?;
    let tools = Arc::clone(&api.tools);
    blocking(move || {
        let all = tools.store.datasets().map_err(|error| Failure::from(&error))?;
        let volumes = accounts.iter().flat_map(|a| &a.volumes).map(|v| &v.dataset);
        let known: BTreeSet<&DatasetName> = volumes.chain(&tops).collect();
        let notes = tops.iter().filter_map(|top| {
            let below = all.iter().map(|info| &info.name);
            let below: Vec<_> = below
                .filter(|name| name.is_within(top) && !known.contains(name))
                .map(ToString::to_string)
                .collect();
            let named = below.get(..NAMED).unwrap_or(&below).join(", ");
            let more = if below.len() > NAMED { ", …" } else { "" };
            (!below.is_empty()).then(|| {
                format!(
                    "below {top} are {} that are not protected with it: {named}{more}; protect with --recursive to have \
                     them in it, or protect them by themselves",
                    if below.len() == 1 { "1 dataset".into() } else { format!("{} datasets", below.len()) }
                )
            })
        });
        Ok(notes.collect())
    })
    .await
}

/// Names on the peer: whether they are any is checked here, where they lie is known only there.
fn adoption(places: &[String], diverged: bool) -> Result<Adoption, Failure> {
    let named = |given: &String| {
        DatasetName::new(given.as_str())
            .map_err(|error| refused(FailureCode::BadRequest, format!("--adopt: {error}")))
    };
    Ok(Adoption { places: places.iter().map(named).collect::<Result<_, _>>()?, diverged })
}

fn create_missing(store: &dyn Store, dataset: &DatasetName) -> Result<(), Failure> {
    let failure = |error: StoreError| Failure::from(&error);
    match store.dataset(dataset) {
        Ok(_) => return Ok(()),
        Err(StoreError::NoDataset { .. }) => {}
        Err(other) => return Err(failure(other)),
    }
    let Some(kind) = store.capabilities().live_kinds.first().copied() else {
        return Err(refused(
            FailureCode::Unsupported,
            format!("{} has no live volumes of its own", store.describe()),
        ));
    };
    store.create(dataset, kind).map_err(failure)?;
    store.activate(dataset).map_err(failure)?;
    tracing::info!(%dataset, %kind, "dataset created");
    Ok(())
}

pub(super) fn random() -> Result<u128, Failure> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| refused(FailureCode::Other, format!("no random number: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}

async fn run(api: &Api, request: Request) -> End {
    let Request::Run {
        name,
        program,
        mode,
        stop_signal,
        stop_limit_ms,
        die_with_daemon,
        health,
        addresses,
        forwards,
        hooks,
    } = request
    else {
        unreachable!("only called for it");
    };
    nameable(&program)?;
    for (what, hook) in [
        ("the hook before the stop", &hooks.before_stop),
        ("the hook after the start", &hooks.after_start),
    ] {
        if let Some(hook) = hook {
            runnable(what, hook)?;
        }
    }
    if let Some(Health { check: HealthCheck::Command(check), .. }) = &health {
        runnable("the health check", check)?;
    }
    let workload = WorkloadRecord {
        stop_signal,
        stop_limit_ms,
        die_with_daemon,
        health,
        addresses,
        forwards,
        hooks,
        program,
        mode,
        wanted: true,
    };
    api.done(Command::SetWorkload { name, workload }).await
}

/// Something that could run at all.
fn nameable(program: &Program) -> Result<(), Failure> {
    let names: &[String] = match program {
        Program::Process(command) => return runnable("the command", command),
        Program::Containers { names, .. } | Program::Systemd(names) => names,
        Program::Oci { id, .. } => std::slice::from_ref(id),
        Program::Lxc(name) => std::slice::from_ref(name),
    };
    let kind = program.kind();
    if names.is_empty() {
        return Err(refused(FailureCode::BadRequest, format!("no {kind} was named")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.@:\\-".contains(c);
    for (at, name) in names.iter().enumerate() {
        // None is taken for an option, or for a way out of where names belong.
        if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(plain) {
            return Err(refused(
                FailureCode::BadRequest,
                format!("`{name}` is no name of a {kind}"),
            ));
        }
        if names[..at].contains(name) {
            return Err(refused(FailureCode::BadRequest, format!("{kind} {name} is named twice")));
        }
    }
    Ok(())
}

/// A command that could be started at all.
fn runnable(what: &str, command: &[String]) -> Result<(), Failure> {
    if command.first().is_none_or(String::is_empty) {
        return Err(refused(FailureCode::BadRequest, format!("{what} is missing")));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(refused(FailureCode::BadRequest, format!("{what} has a zero byte in it")));
    }
    Ok(())
}

/// Asks the core, and sends what happens to the unit until it has answered.
async fn followed(api: &Api, name: String, command: Command, lines: &mut Lines) -> End {
    let mut seen = api.hub.watch(Some(name));
    let asked = api.done(command);
    tokio::pin!(asked);
    let end = loop {
        tokio::select! {
            biased;
            Some(line) = seen.recv() => lines.send(&line).await,
            end = &mut asked => break end,
        }
    };
    // What was said before the end is written before it.
    while let Ok(line) = seen.try_recv() {
        lines.send(&line).await;
    }
    end
}

async fn watch(api: &Api, name: Option<String>, mut rest: OwnedReadHalf, lines: &mut Lines) -> End {
    let mut seen = api.hub.watch(name);
    let mut byte = [0u8; 64];
    loop {
        tokio::select! {
            line = seen.recv() => match line {
                Some(line) => lines.send(&line).await,
                None => return Err(ending()),
            },
            read = rest.read(&mut byte) => {
                if !matches!(read, Ok(n) if n > 0) {
                    return Ok(Answer::Done);
                }
            }
        }
    }
}

/// Tells those who watch how far transfers are, for ever.
pub(crate) async fn tell_progress(hub: Hub, transfers: Transfers) {
    let mut every = tokio::time::interval(std::time::Duration::from_millis(250));
    loop {
        every.tick().await;
        let shown = transfers.look();
        if hub.is_watched() {
            for progress in shown {
                hub.progress(progress);
            }
        }
    }
}
