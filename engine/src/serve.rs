//! The node put together, and taken apart.
//!
//! Owns: the order in which a node comes up and goes down. Leaves to others: everything it does.
//!
//! Up: lock of the state, identity, journal, store, mirrors, metrics, connections, local API, loop.
//! The core does not make anything writable before it has asked the standbys (its start-up rule).
//!
//! Down (SIGTERM, SIGINT, `shutdown`): no more requests; transfers are cancelled; the loop stops;
//! actions under way end, so that no workload is left frozen; workloads that are to die with the
//! daemon are stopped, the others run on and are adopted by the next one; the connections close.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use flocker_core::ids::Incarnation;
use flocker_core::node::NodeConfig;
use flocker_core::record::MoveMode;
use flocker_core::{Boot, Input, Node};
use flocker_store::{Store, StoreError};
use flocker_transport::bulk::dedup::CacheOptions;
use flocker_transport::{
    BindError, Identity, IdentityError, LocalNode, PeerEvent, PeerManager, TrustSet,
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::{Config, make_private_dir};
use crate::driver::Programs;
use crate::fencing::Fencing;
use crate::history::History;
use crate::hub::Hub;
use crate::journal::{Contents, Journal, JournalError, LockError, StateLock};
use crate::network::forward::Forwards;
use crate::ops::{Ops, Report, Tools, drill};
use crate::rates::Rates;
use crate::server::{self, Api, SocketFile};
use crate::transfer::{Parts, PeerLanes, Transfers};
use crate::turn::{Loop, Peers, Turn, Turns};
use crate::workload::{Exit, OnExit, Places, Workloads};
use crate::{driver, links, metrics, store};

/// Threads of the runtime that moves packets and control; bulk has threads of its own.
const RUNTIME_THREADS: usize = 2;

/// How many tasks tokio runs before it looks at its sockets: less than its 61, since a round trip
/// under bulk load is then a third (MEASURED.md, "The gathering socket").
const EVENT_INTERVAL: u32 = 16;

/// How long actions under way may take to end when the node does.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How long workloads that die with the daemon may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How a node is run.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// The program whose `supervise` command starts workloads; `None`: the running program itself.
    pub supervisor: Option<PathBuf>,
}

/// Why a node does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon, or no lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] crate::config::InitError),
    /// The identity is gone, though there is a journal: peers trust the key, not the name.
    #[error(
        "{} is missing, but the node has a journal: restore it from a backup; peers know this node by that key",
        path.display()
    )]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store cannot be used.
    #[error("the store {store} cannot be used: {source}")]
    Store {
        /// As configured.
        store: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The listening address cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Something of the system's.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The history cannot be kept.
    #[error("the history cannot be kept: {0}")]
    History(Box<redb::Error>),
    /// Two recorders in one process.
    #[error("the metrics cannot be recorded: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// A bug in the decisions: the loop is gone, so the node ends.
    #[error(
        "the node's loop ended by a bug; its message is in the log. The next start reads what is durable"
    )]
    Loop,
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServeError {
    let what = what.into();
    |source| ServeError::Io { what, source }
}

/// Runs the node until SIGTERM, SIGINT or a `shutdown` request. Blocks.
///
/// # Errors
/// [`ServeError`]; a journal that cannot be written ends the process instead, with
/// [`crate::EXIT_JOURNAL`].
pub fn serve(config: Config, options: ServeOptions) -> Result<(), ServeError> {
    make_private_dir(&config.node.state)?;
    let _lock = StateLock::take(&config.node.state)?;
    let base = Base::open(config, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .event_interval(EVENT_INTERVAL)
        .thread_name("runtime")
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    let outcome = runtime.block_on(run(base));
    // What still hangs in a blocking thread is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What is opened before anything runs.
struct Base {
    config: Config,
    clock: Clock,
    identity: Arc<Identity>,
    journal: Arc<Journal>,
    contents: Contents,
    store: Arc<dyn Store>,
    boot: Boot,
    hub: Hub,
    supervisor: Vec<String>,
}

impl Base {
    fn open(config: Config, options: ServeOptions) -> Result<Self, ServeError> {
        let journal = config.journal_path();
        let key = config.node.state.join(flocker_transport::identity::KEY_FILE);
        if journal.exists() && !key.exists() {
            return Err(ServeError::NoIdentity { path: key });
        }
        let identity = Identity::load_or_create(&config.node.state)?;
        let journal = open_journal(&config)?;
        let contents = journal.contents()?;
        let in_store = |source| ServeError::Store { store: config.node.store.to_string(), source };
        let store = store::open(&config.node.store, config.zfs.engine).map_err(in_store)?;
        let mut boot = store::scan(store.as_ref(), contents.units.clone()).map_err(in_store)?;
        boot.peers = contents.peers.clone();
        let history = History::open(&config.history_path(), config.limits.history_events)
            .map_err(|error| ServeError::History(Box::new(error)))?;
        Ok(Self {
            hub: Hub::new(history, &contents.units, &contents.peers),
            supervisor: supervisor(options.supervisor),
            clock: Clock::start(),
            identity: Arc::new(identity),
            journal: Arc::new(journal),
            config,
            contents,
            store,
            boot,
        })
    }
}

fn open_journal(config: &Config) -> Result<Journal, ServeError> {
    let path = config.journal_path();
    if path.exists() {
        return Ok(Journal::open(&path)?);
    }
    let incarnation = Incarnation(random_u64()?);
    tracing::warn!(path = %path.display(), "there is no journal: a new one is begun, with a new incarnation");
    Ok(Journal::create(&path, config.node.name.as_str(), incarnation)?)
}

fn random_u64() -> Result<u64, ServeError> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| ServeError::Io {
        what: "drawing a random number".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// Our own program, also after an update has replaced its file.
fn supervisor(program: Option<PathBuf>) -> Vec<String> {
    let program = program
        .or_else(|| std::env::current_exe().ok())
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into());
    vec![program.to_string_lossy().into_owned(), "supervise".to_owned()]
}

/// What runs.
struct Running {
    api: Arc<Api>,
    ops: Ops,
    tools: Arc<Tools>,
    transfers: Transfers,
    manager: PeerManager,
    turns: Turns,
    queue: Receiver<Turn>,
    events: mpsc::Receiver<PeerEvent>,
    the_loop: Loop,
}

async fn run(base: Base) -> Result<(), ServeError> {
    let socket_path = base.config.socket_path();
    let listen = base.config.node.listen;
    let running = assemble(base)?;
    let listener = server::bind(&socket_path)
        .map_err(io(format!("the local API's socket {}", socket_path.display())))?;
    let _socket = SocketFile(socket_path.clone());
    let Running { api, ops, tools, transfers, manager, turns, queue, events, the_loop } = running;
    let (ended, loop_ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("loop".to_owned())
        .spawn(move || {
            the_loop.run(&queue);
            // Not sent where the loop panics: its end of the channel is then dropped.
            let _ = ended.send(());
        })
        .map_err(io("starting the loop"))?;
    let shutdown = Arc::clone(&api.shutdown);
    let hub = api.hub.clone();
    let forwards = api.forwards.clone();
    let metrics = api.metrics.clone();
    let pacing = tokio::spawn(api.rates.clone().watch());
    let api_for_trees = Arc::clone(&api);
    let serving = tokio::spawn(server::serve(listener, api));
    let forwarding = tokio::spawn(links::forward(events, turns.clone(), transfers.clone()));
    let watching = tokio::spawn(server::watch_trees(Arc::clone(&api_for_trees)));
    let telling = tokio::spawn(server::tell_progress(hub, transfers.clone()));
    let upkeep = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metrics.run_upkeep();
        }
    });
    let bound = manager.local_addr().unwrap_or(listen);
    tracing::info!(%bound, socket = %socket_path.display(), "node up");
    let outcome = until_end(&shutdown, loop_ended).await;
    // From here on nobody is answered any more.
    for task in [serving, forwarding, telling, upkeep, pacing, watching] {
        task.abort();
    }
    forwards.close();
    transfers.cancel_all();
    let _ = turns.send(Turn::Stop);
    let taken_apart = tokio::task::spawn_blocking(move || {
        let _ = thread.join();
        ops.drain(DRAIN_LIMIT);
        tools.programs.processes.shut_down(STOP_LIMIT);
    });
    let _ = taken_apart.await;
    manager.close().await;
    tracing::info!("node down");
    outcome
}

async fn until_end(shutdown: &Notify, loop_ended: oneshot::Receiver<()>) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(io("waiting for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("waiting for SIGINT"))?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: the node ends"),
        _ = interrupt.recv() => tracing::info!("SIGINT: the node ends"),
        () = shutdown.notified() => tracing::info!("asked to: the node ends"),
        _ = loop_ended => return Err(ServeError::Loop),
    }
    Ok(())
}

fn assemble(base: Base) -> Result<Running, ServeError> {
    let recorder = metrics::install()?;
    let (turns, queue) = unbounded();
    let report: Report = {
        let turns = turns.clone();
        Arc::new(move |input| {
            // Nobody takes it any more when the node ends.
            let _ = turns.send(Turn::Input(input));
        })
    };
    let tools = Arc::new(tools(&base, &report)?);
    let units: Vec<_> = base.contents.units.iter().map(|unit| unit.id).collect();
    drill::clean_up(&tools, &units);
    for workload in base.contents.units.iter().filter_map(|unit| unit.workload.as_ref()) {
        if workload.mode != MoveMode::Stop {
            crate::network::quiet::clean_up(&workload.addresses);
        }
    }
    let trust = Arc::new(TrustSet::new(base.contents.peers.iter().map(|peer| peer.fingerprint)));
    let (manager, events) = PeerManager::start(
        base.config.node.listen,
        Arc::clone(&base.identity),
        LocalNode::new(base.config.node.name.as_str()).with_lane(base.config.transport.lane.into()),
        Arc::clone(&trust) as Arc<dyn flocker_transport::Trust>,
    )?;
    keep_caches(&manager, &base.config);
    let runtime = tokio::runtime::Handle::current();
    let names = base.hub.clone();
    let rates = Rates::new(&base.config);
    let (paces, pace_names) = (rates.clone(), base.hub.clone());
    let transfers = Transfers::new(Parts {
        store: Arc::clone(&base.store),
        lanes: Arc::new(PeerLanes { manager: manager.clone(), runtime: runtime.clone() }),
        report: Arc::clone(&report),
        names: Arc::new(move |unit| names.name(unit)),
        compression: base.config.transport.compression.into(),
        reseed: base.config.dedup.reseed,
        pace: Arc::new(move |peer, unit, last| {
            let known = pace_names.peers();
            let name = known.into_iter().find(|p| p.fingerprint == peer).map(|p| p.name);
            paces.pace(name, pace_names.name(unit), last)
        }),
        runtime,
    });
    let ops = Ops::new(Arc::clone(&tools), base.config.limits.operations, report);
    let mut peers =
        Peers { manager: manager.clone(), trust, known: std::collections::BTreeMap::new() };
    peers.set(&base.contents.peers);
    let config = NodeConfig::new(
        base.identity.fingerprint(),
        base.contents.incarnation,
        random_u64()?,
        store::facts(base.store.as_ref(), &base.config.limits, base.config.fencing.is_some()),
    );
    let forwards = Forwards::new(tokio::runtime::Handle::current(), &base.contents.units);
    let the_loop = Loop {
        node: Node::new(config, base.boot, base.clock.now()),
        clock: base.clock,
        journal: Arc::clone(&base.journal),
        peers,
        ops: ops.clone(),
        transfers: transfers.clone(),
        hub: base.hub.clone(),
        forwards: forwards.clone(),
        pending: std::collections::BTreeMap::new(),
        last_request: 0,
    };
    let api = Arc::new(Api {
        config: base.config,
        clock: base.clock,
        turns: turns.clone(),
        hub: base.hub,
        forwards,
        rates,
        transfers: transfers.clone(),
        tools: Arc::clone(&tools),
        manager: manager.clone(),
        journal: base.journal,
        metrics: recorder,
        shutdown: Arc::new(Notify::new()),
        left_out: Default::default(),
    });
    Ok(Running { api, ops, tools, transfers, manager, turns, queue, events, the_loop })
}

/// Offers the peers to keep their blocks. Without them everything works, with more on the wire.
fn keep_caches(manager: &PeerManager, config: &Config) {
    let (bytes, directory) = (config.dedup.cache_bytes, config.dedup_path());
    if bytes == 0 {
        return;
    }
    let kept = make_private_dir(&directory).map_err(|error| error.to_string()).and_then(|()| {
        let options = CacheOptions { directory: directory.clone(), bytes };
        manager.resources().dedup().keep_caches(options).map_err(|error| error.to_string())
    });
    if let Err(error) = kept {
        tracing::warn!(%error, directory = %directory.display(), "no blocks can be kept: peers send without dedup");
    }
}

fn tools(base: &Base, report: &Report) -> Result<Tools, ServeError> {
    let places = Places {
        state: base.config.node.state.clone(),
        supervisor: base.supervisor.clone(),
        node: base.identity.fingerprint(),
        log_bytes: base.config.limits.log_bytes,
        freeze_limit: Duration::from_millis(base.config.limits.freeze_ms),
        isolated: false,
    };
    let apart = Places {
        state: places.state.join("drill"),
        supervisor: drill::supervisor(&places.supervisor),
        isolated: true,
        ..places.clone()
    };
    let drills = Workloads::new(apart, Arc::new(|_| {})).map_err(io("preparing for drills"))?;
    let report = Arc::clone(report);
    let on_exit: OnExit = Arc::new(move |exit: Exit| {
        tracing::warn!(unit = %exit.unit.short(), status = exit.status, "workload ended");
        report(Input::WorkloadExited {
            unit: exit.unit,
            status: exit.status,
            success: exit.success,
        });
    });
    let drivers = driver::Places {
        state: places.state.clone(),
        podman: base.config.workloads.podman_socket.clone(),
        docker: base.config.workloads.docker_socket.clone(),
        lxc: base.config.workloads.lxc_path.clone(),
    };
    let workloads =
        Workloads::new(places, Arc::clone(&on_exit)).map_err(io("preparing for workloads"))?;
    Ok(Tools {
        store: Arc::clone(&base.store),
        programs: Programs::new(workloads, drivers, on_exit),
        drills,
        clock: base.clock,
        fencing: Fencing::new(base.config.fencing.clone(), &base.config.node.state),
        paths: std::sync::Mutex::default(),
        fuzzy: std::sync::Mutex::default(),
    })
}
