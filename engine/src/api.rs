//! The local API: JSON lines over a unix socket, one [`Request`] a connection.
//!
//! Owns: the words. Leaves to others: the socket's two ends (`server`, [`crate::client`]).
//!
//! A client writes one [`Request`] as one line and reads [`Response`] lines: any number of
//! [`Response::Event`], [`Response::Progress`] and [`Response::InviteOpen`], then exactly one
//! [`Response::Ok`] or [`Response::Error`], after which the node closes the connection.
//!
//! - `status` also has what the core does not know: see [`NodeView`].
//! - `invite` sends `invite_open` at once, and ends when a node has paired, the invitation ran out,
//!   or five wrong codes ended it. The invitation does not belong to the connection: a client that
//!   goes away leaves it open until it ends by itself; a new `invite` replaces it.
//! - `migrate`, `failover` and `drill` stream the events and the transfers' progress of their unit
//!   until they have ended. A client that goes away stops none of them.
//! - `watch` never ends by itself.
//!
//! Who may talk: the socket is `0600` in a `0700` directory, and the node asks the kernel who is
//! at the other end (`SO_PEERCRED`): the node's own user or root, nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use flocker_core::Failure;
use flocker_core::ids::{Fingerprint, UnitId};
use flocker_core::io::{
    DrillReport, Event, FailoverPlan, FailoverReport, MigrationPlan, MigrationReport, ResolvePlan,
    ResolveReport, RoundReport,
};
use flocker_core::message::Adopted;
use flocker_core::record::{
    AddressRecord, ForwardRecord, Health, Hooks, MoveMode, Policy, Program, StopSignal,
    WorkloadKind,
};
use flocker_core::status::NodeStatus;
use serde::{Deserialize, Serialize};

/// Longest request line a node reads, in bytes.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// How long an invitation stays open unless it is said otherwise, seconds.
pub const DEFAULT_INVITE_TTL_S: u64 = 600;

/// How long a workload may take to stop unless it is said otherwise, milliseconds.
pub const DEFAULT_STOP_LIMIT_MS: u64 = 10_000;

/// What a person, or a program for one, asks of the node. One line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How things are. → [`Answer::Status`]
    Status {
        /// Only this unit; unknown names are an error.
        #[serde(default)]
        name: Option<String>,
    },
    /// Open an invitation. → [`Response::InviteOpen`], then [`Answer::Paired`]
    Invite {
        /// How long it stays open, seconds.
        #[serde(default = "default_invite_ttl_s")]
        ttl_s: u64,
    },
    /// Accept another node's invitation. → [`Answer::Paired`]
    Join {
        /// `host:port` of the node that invited.
        address: String,
        /// The one-time code it showed.
        code: String,
    },
    /// Say what a peer may do here. → [`Answer::Done`]
    Grant {
        /// Name or fingerprint.
        peer: String,
        /// The dataset below which its replicas are kept; `None` takes the whole grant back.
        receive: Option<String>,
        /// Most bytes they may use in all.
        #[serde(default)]
        quota_bytes: Option<u64>,
        /// Workloads that a migration from this peer may start.
        #[serde(default)]
        workloads: Vec<WorkloadKind>,
    },
    /// Replicate datasets to a peer, as one unit. A dataset that does not exist is an error, except
    /// that it is made, empty, where `create` is set. → [`Answer::Protected`]
    Protect {
        /// The datasets, at least one; the workload's working directory is the first one's path.
        datasets: Vec<String>,
        /// Name or fingerprint of the standby.
        to: String,
        /// The unit's name; by default the first dataset's last component.
        #[serde(default)]
        name: Option<String>,
        /// All that lies below them as well, also what is made there later.
        #[serde(default)]
        recursive: bool,
        /// With `recursive`: what is left out, see [`flocker_core::tree::Tree`].
        #[serde(default)]
        exclude: Vec<String>,
        /// When to replicate.
        policy: Policy,
        /// The lease that the primary has to renew to keep its workload running, milliseconds.
        #[serde(default)]
        lease_ms: Option<u64>,
        /// Make datasets first that do not exist (of the store's first live kind).
        #[serde(default)]
        create: bool,
        /// Take over replicas that another tool has made: where each lies there, none for where replicas of ours
        /// would be.
        #[serde(default)]
        adopt: Option<Vec<String>>,
        /// With `adopt`: also those that were written or have newer snapshots of their own.
        #[serde(default)]
        diverged: bool,
        /// Accept that what is written over there may not be able to come back, for want of a feature here.
        #[serde(default)]
        one_way: bool,
    },
    /// Set the workload of a unit: started where the unit is primary, kept for later on a standby.
    /// → [`Answer::Done`]
    Run {
        /// The unit's name.
        name: String,
        /// What runs.
        program: Program,
        /// How it is brought to rest for a move.
        #[serde(default)]
        mode: MoveMode,
        /// What asks a process to stop.
        #[serde(default)]
        stop_signal: StopSignal,
        /// How long it may take to stop before it is killed, milliseconds.
        #[serde(default = "default_stop_limit_ms")]
        stop_limit_ms: u64,
        /// Whether it dies with the daemon (or runs on and is adopted again).
        #[serde(default)]
        die_with_daemon: bool,
        /// When it counts as running; without it as soon as the command runs.
        #[serde(default)]
        health: Option<Health>,
        /// Addresses that move with it.
        #[serde(default)]
        addresses: Vec<AddressRecord>,
        /// Ports behind which it is found wherever it runs.
        #[serde(default)]
        forwards: Vec<ForwardRecord>,
        /// Local commands around its stop and start.
        #[serde(default)]
        hooks: Hooks,
    },
    /// Stop a unit's workload and keep it stopped. → [`Answer::Done`]
    Stop {
        /// The unit's name.
        name: String,
    },
    /// Move a unit with its workload. → events, progress, then [`Answer::Migrated`],
    /// [`Answer::AlreadyThere`] or, with `dry_run`, [`Answer::MigrationPlan`]
    Migrate {
        /// The unit's name.
        name: String,
        /// Name or fingerprint of the target.
        to: String,
        /// Longest downtime wanted, milliseconds: refused, before anything stops, where the
        /// prediction does not come below it.
        #[serde(default)]
        budget_ms: Option<u64>,
        /// Preflight and prediction only.
        #[serde(default)]
        dry_run: bool,
        /// What of the workload may be left behind, by the names that a refusal says.
        #[serde(default)]
        accept: BTreeSet<String>,
    },
    /// Take a migration back; refused once it is committed. → [`Answer::Done`]
    CancelMigration {
        /// The unit's name.
        name: String,
    },
    /// Make this node primary without the primary's commit. → events, progress, then
    /// [`Answer::FailedOver`] or, with `dry_run`, [`Answer::FailoverPlan`]
    Failover {
        /// The unit's name.
        name: String,
        /// The operator's word that the primary is down.
        #[serde(default)]
        primary_is_down: bool,
        /// Only say what would be lost and which proofs could be had.
        #[serde(default)]
        dry_run: bool,
    },
    /// Start the workload on a clone of the newest replica, check it, and take it away again.
    /// → events, progress, then [`Answer::Drilled`]
    Drill {
        /// The unit's name.
        name: String,
    },
    /// A standby that went its own way: keep what only it has aside, and let it follow again. → events, then
    /// [`Answer::Resolved`] or, with `dry_run`, [`Answer::ResolvePlan`]
    Resolve {
        /// The unit's name.
        name: String,
        /// Only say what each side has.
        #[serde(default)]
        dry_run: bool,
    },
    /// Every hold, snapshot and bookmark of ours on this node, and why it is kept. → [`Answer::Holds`]
    Holds {
        /// Only this unit.
        #[serde(default)]
        name: Option<String>,
        /// Release those holds of ours first that no unit accounts for.
        #[serde(default)]
        collect: bool,
    },
    /// A read-only copy of a unit's newest whole moment, or taking it away again. → [`Answer::Browsed`]
    Browse {
        /// The unit's name; without one the copies that are open are listed, or all are closed.
        #[serde(default)]
        name: Option<String>,
        /// Take it away.
        #[serde(default)]
        close: bool,
    },
    /// Stop replicating. → [`Answer::Done`]
    Pause {
        /// The unit's name.
        name: String,
    },
    /// Go on replicating. → [`Answer::Done`]
    Resume {
        /// The unit's name.
        name: String,
    },
    /// End protection; the data stays. → [`Answer::Done`]
    Unprotect {
        /// The unit's name.
        name: String,
        /// The store that its volumes were in is gone for good, if it is not there: the unit is forgotten as it is.
        #[serde(default)]
        store_is_gone: bool,
    },
    /// Forget a peer. → [`Answer::Done`]
    Unpair {
        /// Name or fingerprint.
        peer: String,
    },
    /// Become writable without having heard from the standbys. → [`Answer::Done`]
    StartAlone {
        /// The unit's name.
        name: String,
    },
    /// Events and progress as they come, until the client goes away.
    Watch {
        /// Only this unit.
        #[serde(default)]
        name: Option<String>,
    },
    /// Replication rounds kept in the history, oldest first. → [`Answer::Rounds`]
    Rounds {
        /// The unit's name.
        name: String,
        /// The newest so many; all that are kept without it.
        #[serde(default)]
        last: Option<usize>,
    },
    /// What is kept in the history, oldest first: migrations, those taken back, failovers, drills,
    /// roles, alarms, notes. → [`Answer::History`]
    History {
        /// Only this unit.
        #[serde(default)]
        name: Option<String>,
        /// The newest so many; all that are kept without it.
        #[serde(default)]
        last: Option<usize>,
        /// Rounds, phases and predictions as well.
        #[serde(default)]
        all: bool,
    },
    /// The metrics in the Prometheus text format. → [`Answer::Metrics`]
    Metrics,
    /// End the daemon as SIGTERM does. → [`Answer::Done`] when it has begun to
    Shutdown,
}

fn default_invite_ttl_s() -> u64 {
    DEFAULT_INVITE_TTL_S
}

fn default_stop_limit_ms() -> u64 {
    DEFAULT_STOP_LIMIT_MS
}

/// What the node says. One line of JSON: an object with one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Something happened.
    Event(StampedEvent),
    /// How far a bulk transfer is.
    Progress(Progress),
    /// An invitation stands.
    InviteOpen(InviteOpen),
    /// The end: it was done.
    Ok(Answer),
    /// The end: it was not.
    Error(Failure),
}

/// The answer of a request that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// [`Request::Status`].
    Status(Box<NodeView>),
    /// [`Request::Invite`], [`Request::Join`].
    Paired(PairedPeer),
    /// [`Request::Protect`].
    Protected {
        /// The unit's name.
        name: String,
        /// Its id.
        unit: UnitId,
        /// Replicas that were there before and are gone on from.
        #[serde(default)]
        adopted: Vec<Adopted>,
        /// What a person should know of how it is replicated.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// [`Request::Migrate`].
    Migrated(Box<MigrationReport>),
    /// [`Request::Migrate`]: the unit is there, and was before it was asked for.
    AlreadyThere {
        /// The unit's name.
        name: String,
        /// The number of its epoch.
        epoch: u64,
    },
    /// [`Request::Migrate`] with `dry_run`.
    MigrationPlan(Box<MigrationPlan>),
    /// [`Request::Failover`] with `dry_run`.
    FailoverPlan(Box<FailoverPlan>),
    /// [`Request::Failover`].
    FailedOver(Box<FailoverReport>),
    /// [`Request::Drill`]; unhealthy or not.
    Drilled(Box<DrillReport>),
    /// [`Request::Resolve`] with `dry_run`.
    ResolvePlan(Box<ResolvePlan>),
    /// [`Request::Resolve`].
    Resolved(Box<ResolveReport>),
    /// [`Request::Holds`].
    Holds(HoldsView),
    /// [`Request::Browse`].
    Browsed(BrowseView),
    /// [`Request::Rounds`].
    Rounds(Vec<StampedRound>),
    /// [`Request::History`].
    History(Vec<StampedEvent>),
    /// [`Request::Metrics`]: the text.
    Metrics(String),
}

/// What is kept in the store, and what was released.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldsView {
    /// By dataset, oldest first.
    pub kept: Vec<KeptView>,
    /// Holds that were released: the snapshot and the tag.
    pub released: Vec<(String, String)>,
}

/// Copies to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrowseView {
    /// Those that are open, or that were just opened.
    pub open: Vec<CopyView>,
    /// Datasets of those that were taken away.
    pub removed: Vec<String>,
}

/// A read-only copy of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// The unit it was made for.
    pub unit: String,
    /// What it is called in the store.
    pub dataset: String,
    /// The snapshot it is a copy of, by its full name.
    pub snapshot: String,
    /// When that was taken, seconds since 1970.
    pub taken_unix_s: Option<i64>,
    /// Where it can be looked at; none for a kind that this store cannot show.
    pub path: Option<PathBuf>,
}

/// One snapshot or bookmark that we made, or that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// The unit that accounts for it.
    pub unit: Option<String>,
    /// Its full name, with `@` or `#`.
    pub name: String,
    /// When the snapshot was taken, seconds since 1970; `None` for a bookmark.
    pub taken_unix_s: Option<i64>,
    /// Tags of ours that hold it.
    pub tags: Vec<String>,
    /// Tags of others: never touched.
    pub foreign_tags: Vec<String>,
    /// Why it is kept; empty: the next tidying takes it away, or nobody knows it.
    pub why: Vec<String>,
    /// Made by us for a unit that nobody here knows any more.
    pub stale: bool,
}

/// An event with its moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedEvent {
    /// Wall clock, milliseconds since 1970.
    pub at_unix_ms: i64,
    /// What happened.
    pub event: Event,
}

/// A round with its moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedRound {
    /// Wall clock when it ended, milliseconds since 1970.
    pub at_unix_ms: i64,
    /// The round.
    pub round: RoundReport,
}

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the peer.
    Send,
    /// From the peer.
    Receive,
}

/// A running bulk transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The unit it is for.
    pub unit: UnitId,
    /// Its name, where it is known.
    pub name: Option<String>,
    /// The other node.
    pub peer: Fingerprint,
    /// Which way.
    pub direction: Direction,
    /// The snapshot that is sent or received.
    pub snapshot: String,
    /// No base: everything is sent.
    pub full: bool,
    /// Bytes of the stream so far.
    pub stream_bytes: u64,
    /// Bytes on the wire so far.
    pub wire_bytes: u64,
    /// Bytes of the stream that went as references to blocks the receiver had.
    pub saved_bytes: u64,
    /// Of what is sent: how it is compressed, once that follows from what limits the transfer.
    pub compression: Option<CompressionView>,
    /// The receiver has an old copy of the volume, and what that has goes as references.
    pub reseeds: bool,
    /// The snapshot of the old copy; only the receiving side knows its name.
    pub old_copy: Option<String>,
    /// Estimated size of the stream in bytes, where the store can say.
    pub total_bytes: Option<u64>,
    /// Stream bytes per second over the last moments.
    pub bytes_per_second: u64,
    /// Since it began, milliseconds.
    pub elapsed_ms: u64,
    /// It has ended: the last word on this transfer.
    pub ended: bool,
}

/// How what is sent is compressed, where that is left to what limits the transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionView {
    /// Level of zstd for data that is not compressed; `None`: stored.
    pub level: Option<i32>,
    /// What limits the transfer: `source`, `processor`, `link or target`, `our own rate`.
    pub limit: String,
}

/// An invitation that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteOpen {
    /// Where the other node may reach this one, `host:port`, the likeliest first.
    pub addresses: Vec<String>,
    /// The one-time code, as a person types it.
    pub code: String,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: i64,
    /// This node's name.
    pub name: String,
    /// This node's fingerprint.
    pub fingerprint: Fingerprint,
    /// The fingerprint in words: the other node shows the same.
    pub words: String,
}

/// A node that was paired with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairedPeer {
    /// What it calls itself (with a number behind it where that name was taken here).
    pub name: String,
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// Its fingerprint in words, to compare with what the other node shows.
    pub words: String,
    /// This node's own fingerprint in words, which the other node shows.
    pub own_words: String,
    /// Where it is reachable, `host:port`.
    pub addresses: Vec<String>,
}

/// The node as [`Request::Status`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// This node's name.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Where it listens for peers.
    pub listen: String,
    /// The store and its version, for people.
    pub store: String,
    /// The dataset below which the store works.
    pub root: String,
    /// This node's fingerprint in words.
    pub words: String,
    /// What the core says.
    pub node: NodeStatus,
    /// Transfers that run now.
    pub transfers: Vec<Progress>,
    /// The connections, by peer.
    pub links: Vec<LinkView>,
    /// Ports behind which workloads are found wherever they run.
    #[serde(default)]
    pub forwards: Vec<ForwardView>,
    /// How fast bytes may go.
    #[serde(default)]
    pub rates: RatesView,
    /// Where the live data of datasets is reachable now, by dataset.
    pub paths: BTreeMap<String, PathBuf>,
    /// What lies below the volumes of a unit that is primary here and is not protected with it, by the unit's name.
    #[serde(default)]
    pub left_out: BTreeMap<String, LeftOutView>,
}

/// Datasets below a unit's volumes that do not belong to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOutView {
    /// Which.
    pub datasets: Vec<flocker_store::DatasetName>,
    /// Of a unit that has all below it: why they have not joined.
    pub why: Option<String>,
}

/// The limits on what is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatesView {
    /// For each peer that has one.
    pub peers: Vec<RateView>,
    /// For each unit that has one.
    pub units: Vec<RateView>,
    /// Why a change of the configuration was not taken.
    pub trouble: Option<String>,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateView {
    /// Of the peer or the unit.
    pub name: String,
    /// On the wire, now; `None`: none at this time.
    pub bytes_per_second: Option<u64>,
    /// The rule that holds now, as it is configured.
    pub rule: Option<String>,
}

/// A port of this node behind which a workload is found wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardView {
    /// The unit's name.
    pub unit: String,
    /// Where clients connect.
    pub listen: String,
    /// Where connections go now: `here`, `elsewhere`; `nowhere`: they are held; `stopped`: they are
    /// closed.
    pub workload: String,
    /// Connections that are passed on.
    pub open: u64,
    /// Connections that are held.
    pub held: u64,
    /// Why the port is not open.
    pub trouble: Option<String>,
}

/// The connection with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// The peer.
    pub peer: Fingerprint,
    /// Its name here.
    pub name: String,
    /// Its fingerprint in words.
    pub words: String,
    /// Its software version, while it is connected.
    pub software: Option<String>,
    /// Round-trip time while it is connected, microseconds.
    pub round_trip_us: Option<u64>,
    /// Which way control takes, while it is connected.
    #[serde(default)]
    pub control: Option<ControlView>,
    /// Which lane large transfers to it take, while it is connected.
    #[serde(default)]
    pub lane: Option<LaneView>,
    /// Why it is not, if it was tried: another protocol version, not paired, unreachable.
    pub last_error: Option<String>,
}

/// The way that control takes to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlView {
    /// `quic` or `tls`.
    pub over: String,
    /// Why, where it is not the usual one.
    pub why: Option<String>,
    /// Whether that is because nothing answers over UDP.
    pub udp_blocked: bool,
    /// For how long, milliseconds.
    pub for_ms: u64,
}

/// The lane that large transfers to a peer take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// `quic` or `tls`.
    pub chosen: String,
    /// Why.
    pub why: String,
    /// How TLS failed, while it is avoided for that.
    pub failed: Option<String>,
    /// What QUIC was measured to do towards the peer.
    pub quic: Option<FiguresView>,
    /// What TLS over TCP was measured to do towards the peer.
    pub tls: Option<FiguresView>,
}

/// What a lane was measured to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiguresView {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Processor time of both nodes for a gigabyte, milliseconds.
    pub cpu_ms_per_gb: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use flocker_core::record::HealthCheck;

    fn parses(line: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(line)
    }

    #[test]
    fn requests_are_one_flat_object_with_the_request_named() {
        assert_eq!(parses(r#"{"request":"status"}"#).unwrap(), Request::Status { name: None });
        assert_eq!(
            parses(r#"{"request":"protect","datasets":["a/b"],"to":"b","policy":{"rpo":1000}}"#)
                .unwrap(),
            Request::Protect {
                datasets: vec!["a/b".into()],
                to: "b".into(),
                name: None,
                recursive: false,
                exclude: Vec::new(),
                policy: Policy::Rpo(1000),
                lease_ms: None,
                create: false,
                adopt: None,
                diverged: false,
                one_way: false,
            }
        );
        assert_eq!(parses(r#"{"request":"metrics"}"#).unwrap(), Request::Metrics);
    }

    #[test]
    fn unknown_requests_and_unknown_fields_are_refused_by_name() {
        let error = parses(r#"{"request":"explode"}"#).unwrap_err().to_string();
        assert!(error.contains("explode"), "{error}");
        let error = parses(r#"{"request":"stop","name":"x","now":true}"#).unwrap_err().to_string();
        assert!(error.contains("now"), "{error}");
    }

    #[test]
    fn what_a_workload_needs_beyond_its_command_survives_the_line_it_travels_in() {
        let request = Request::Run {
            name: "db".into(),
            program: Program::Process(vec!["x".into()]),
            mode: MoveMode::Stop,
            stop_signal: StopSignal::Int,
            stop_limit_ms: 1,
            die_with_daemon: false,
            health: Some(Health {
                check: HealthCheck::Tcp("[::1]:5432".parse().unwrap()),
                limit_ms: 60_000,
            }),
            addresses: vec![AddressRecord {
                address: "fd00::5".parse().unwrap(),
                prefix: 64,
                device: "eth0".into(),
            }],
            forwards: vec![ForwardRecord {
                listen: "10.0.0.1:5432".parse().unwrap(),
                local: "127.0.0.1:5433".parse().unwrap(),
                remote: "10.0.0.2:5433".parse().unwrap(),
            }],
            hooks: Hooks { before_stop: Some(vec!["true".into()]), after_start: None },
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(parses(&line).unwrap(), request);
        let short = r#"{"request":"run","name":"db","program":{"process":["x"]}}"#;
        let Request::Run { stop_signal, health, hooks, .. } = parses(short).unwrap() else {
            panic!("another request");
        };
        assert_eq!((stop_signal, health, hooks), (StopSignal::Term, None, Hooks::default()));
    }

    #[test]
    fn answers_survive_the_line_they_travel_in() {
        let event = Event {
            unit: Some(UnitId(u128::MAX - 5)),
            name: Some("db".into()),
            kind: flocker_core::EventKind::Note("hello\nworld".into()),
        };
        let response = Response::Event(StampedEvent { at_unix_ms: 7, event });
        let line = serde_json::to_string(&response).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response);
    }
}
