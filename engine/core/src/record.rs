//! What the journal keeps. Everything here is durable before it is acted on; everything else in
//! this crate is lost at a crash, and made to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use flocker_store::{DatasetKind, DatasetName, Guid};
use serde::{Deserialize, Serialize};

use crate::ids::{AttemptId, Epoch, Fingerprint, Incarnation, UnitId, VolumeId};
use crate::tree::Tree;

/// Kinds of workload a grant can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// A supervised process in the volume's path.
    Process,
    /// Containers of podman.
    Podman,
    /// Containers of docker.
    Docker,
    /// Units of systemd.
    Systemd,
    /// An OCI bundle, run by runc or crun.
    Oci,
    /// A container of LXC.
    Lxc,
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [WorkloadKind; 6] = [
        WorkloadKind::Process,
        WorkloadKind::Podman,
        WorkloadKind::Docker,
        WorkloadKind::Systemd,
        WorkloadKind::Oci,
        WorkloadKind::Lxc,
    ];
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkloadKind::Process => "process",
            WorkloadKind::Podman => "podman",
            WorkloadKind::Docker => "docker",
            WorkloadKind::Systemd => "systemd",
            WorkloadKind::Oci => "oci",
            WorkloadKind::Lxc => "lxc",
        })
    }
}

/// Who runs containers of the docker kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRuntime {
    /// podman.
    Podman,
    /// docker.
    Docker,
}

/// Who runs an OCI bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OciRuntime {
    /// runc.
    Runc,
    /// crun.
    Crun,
}

/// What runs in a unit: a command that the daemon supervises, or something that another program on the node runs
/// and that is known there by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Program and arguments, not passed through a shell.
    Process(Vec<String>),
    /// Containers by name: started in this order, stopped in the opposite one.
    Containers {
        /// Whose.
        runtime: ContainerRuntime,
        /// Their names.
        names: Vec<String>,
    },
    /// Units of systemd, with their suffixes: started in this order, stopped in the opposite one.
    Systemd(Vec<String>),
    /// An OCI bundle.
    Oci {
        /// By whom.
        runtime: OciRuntime,
        /// The container's id there.
        id: String,
        /// The bundle's folder: absolute, or below the first volume's path.
        bundle: PathBuf,
    },
    /// A container of LXC, by name.
    Lxc(String),
}

impl Program {
    /// The kind that a grant has to name.
    pub fn kind(&self) -> WorkloadKind {
        match self {
            Program::Process(_) => WorkloadKind::Process,
            Program::Containers { runtime: ContainerRuntime::Podman, .. } => WorkloadKind::Podman,
            Program::Containers { runtime: ContainerRuntime::Docker, .. } => WorkloadKind::Docker,
            Program::Systemd(_) => WorkloadKind::Systemd,
            Program::Oci { .. } => WorkloadKind::Oci,
            Program::Lxc(_) => WorkloadKind::Lxc,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Program::Process(command) => f.write_str(&command.join(" ")),
            Program::Containers { names, .. } => {
                write!(f, "{} {}", self.kind(), names.join(", "))
            }
            Program::Systemd(units) => f.write_str(&units.join(", ")),
            Program::Oci { runtime, id, bundle } => {
                let runtime = match runtime {
                    OciRuntime::Runc => "runc",
                    OciRuntime::Crun => "crun",
                };
                write!(f, "{runtime} {id} in {}", bundle.display())
            }
            Program::Lxc(name) => write!(f, "lxc {name}"),
        }
    }
}

/// How a workload is brought to rest for a move.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveMode {
    /// It is asked to stop, and started anew.
    #[default]
    Stop,
    /// Its processes are written down with all they have in memory, and go on from there.
    Checkpoint {
        /// The last component of the name of the volume that they are written to: one of the unit's that the
        /// workload itself does not see.
        state: String,
    },
}

/// What a peer may do here. Nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The dataset below which its replicas are kept.
    pub receive: DatasetName,
    /// Most bytes they may use in all; `None`: no limit but the store's.
    pub quota_bytes: Option<u64>,
    /// Workloads that a migration from this peer may start; the commands are local configuration.
    pub workloads: BTreeSet<WorkloadKind>,
}

/// A node that this one trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// What it calls itself.
    pub name: String,
    /// Where it was last reachable, `host:port`.
    pub addresses: Vec<String>,
    /// What it may do here; `None`: nothing.
    pub grant: Option<Grant>,
}

/// When a unit is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Continuously: the standby is never further behind than this many milliseconds.
    Rpo(u64),
    /// On a schedule: a step every so many milliseconds.
    Every(u64),
}

impl Policy {
    /// The lag promised, in milliseconds.
    pub fn rpo_ms(&self) -> u64 {
        match self {
            Policy::Rpo(ms) | Policy::Every(ms) => *ms,
        }
    }
}

/// One volume of a unit, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The same on every node.
    pub id: VolumeId,
    /// Where it lives here.
    pub dataset: DatasetName,
    /// What it is.
    pub kind: DatasetKind,
    /// It came here in OpenZFS's dialect, which zfs-fuse cannot receive as a filesystem.
    pub modern_streams: bool,
    /// Its streams are raw, for good and in both directions: decided by what the volume was when its
    /// protection began. One stream of the other sort would end the lineage of the raw ones.
    pub raw: bool,
    /// As a standby: it joined a unit that was there, and no moment of it is here yet. Until then the unit's moments
    /// are those of the others.
    pub joining: bool,
}

/// The signal that asks a workload to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopSignal {
    /// SIGTERM: what most programs expect.
    #[default]
    Term,
    /// SIGINT: PostgreSQL's fast shutdown, which does not wait for its clients to leave.
    Int,
    /// SIGQUIT.
    Quit,
}

/// How to tell that a workload answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// Something accepts TCP connections there.
    Tcp(SocketAddr),
    /// A local command ends with status 0; program and arguments, not passed through a shell.
    Command(Vec<String>),
}

/// When a started workload counts as running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What has to succeed.
    pub check: HealthCheck,
    /// Within how long after the start, milliseconds; otherwise it is stopped again.
    pub limit_ms: u64,
}

/// An address that is where the workload is: put on an interface of this node last of all, taken off
/// first of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// IPv4 or IPv6.
    pub address: IpAddr,
    /// Length of its network's prefix, bits.
    pub prefix: u8,
    /// The interface.
    pub device: String,
}

/// A TCP port of this node behind which the workload is found wherever it runs. Connections that come
/// while it runs nowhere are held, and passed on when it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRecord {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the workload listens while the unit is primary here.
    pub local: SocketAddr,
    /// Where it listens while the unit is primary on a peer.
    pub remote: SocketAddr,
}

/// Local commands around a stop and a start; program and arguments, not passed through a shell.
/// One that fails before the stop takes a cutover back; one after the start is only noted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Before the workload is asked to stop.
    pub before_stop: Option<Vec<String>>,
    /// Once it runs and is healthy.
    pub after_start: Option<Vec<String>>,
}

/// The local configuration of a unit's workload: only this says what is started here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// What.
    pub program: Program,
    /// How it is brought to rest for a move.
    pub mode: MoveMode,
    /// What asks a process to stop; containers and units say so themselves.
    pub stop_signal: StopSignal,
    /// How long it may take to stop after that before it is killed, milliseconds.
    pub stop_limit_ms: u64,
    /// When the daemon dies: `true`, the workload dies with it; `false`, it runs on and is adopted.
    pub die_with_daemon: bool,
    /// When it counts as running; `None`: as soon as the command runs.
    pub health: Option<Health>,
    /// Addresses that move with it.
    pub addresses: Vec<AddressRecord>,
    /// Ports that find it wherever it is.
    pub forwards: Vec<ForwardRecord>,
    /// Local commands around its stop and start.
    pub hooks: Hooks,
    /// Whether it should be running wherever the unit is primary.
    pub wanted: bool,
}

impl WorkloadRecord {
    /// A process with nothing but a command: SIGTERM, ten seconds to stop, outlives the daemon.
    pub fn process(command: Vec<String>) -> Self {
        Self {
            program: Program::Process(command),
            mode: MoveMode::Stop,
            stop_signal: StopSignal::Term,
            stop_limit_ms: 10_000,
            die_with_daemon: false,
            health: None,
            addresses: Vec::new(),
            forwards: Vec::new(),
            hooks: Hooks::default(),
            wanted: true,
        }
    }
}

/// A person wants replicas taken over that another tool made (syncoid, zrepl, bzfs, `zfs receive`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Where each lies on the standby, in the order of the volumes; empty: where a replica of ours would be.
    pub places: Vec<DatasetName>,
    /// Also those that were written or have newer snapshots of their own; `resolve` sets that aside.
    pub diverged: bool,
}

/// Why a standby may take a unit over without its primary's commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The primary answered: it has stopped, is fenced, and has durably handed the unit over.
    PrimaryFenced,
    /// The fencing hook that this node's configuration names has succeeded.
    FencingHook,
    /// The lease ran out; the primary stopped its workload before that by its own clock.
    LeaseRanOut,
    /// An operator said that the primary is down. A false word leads to a divergence that is
    /// detected, and loses neither side's data.
    OperatorsWord,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::PrimaryFenced => "the primary answered and is fenced",
            Proof::FencingHook => "the fencing hook succeeded",
            Proof::LeaseRanOut => "the lease ran out",
            Proof::OperatorsWord => "the operator's word that the primary is down",
        })
    }
}

/// The last unplanned change of primary that this node made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// The epoch that it began.
    pub epoch: u64,
    /// By what right.
    pub proof: Proof,
    /// When, milliseconds since 1970 by this node's clock.
    pub wall_ms: i64,
    /// Short name of the snapshots that the unit went on from.
    pub instance: String,
}

/// What a move of this unit to a peer cost apart from its data, milliseconds: smoothed over the moves
/// so far. The source's parts are measured here, the target's are as it reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveCosts {
    /// Moves that went into it.
    pub moves: u64,
    /// Stopping the workload.
    pub quiesce_ms: u64,
    /// Fence and final snapshot.
    pub fence_ms: u64,
    /// The final transfer beyond `bytes ÷ throughput`.
    pub transfer_ms: u64,
    /// The target's promise and the commit.
    pub commit_ms: u64,
    /// Making the volumes reachable over there.
    pub mount_ms: u64,
    /// Starting the workload over there until it answers.
    pub start_ms: u64,
}

impl MoveCosts {
    /// All of them, milliseconds.
    pub fn total_ms(&self) -> u64 {
        self.quiesce_ms
            + self.fence_ms
            + self.transfer_ms
            + self.commit_ms
            + self.mount_ms
            + self.start_ms
    }
}

/// How an attempt ended at the node that was asked to take over. Never forgotten, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The target owns the epoch.
    Taken,
    /// A tombstone: the target never will.
    Refused,
}

/// What this node may do with a unit.
///
/// ```text
///            protect                     migrate           ready(attempt)
///   (none) ──────────▶ Serving ─────────────────▶ Leaving ───────────────▶ HandedOver
///                        ▲  ▲       abort, restart   │                       │    │
///                        │  └────────────────────────┘                       │    │ taken
///                        │                refused, from that incarnation     │    │
///                        ├───────────────────────────────────────────────────┘    ▼
///                        │ settle(attempt)                                     Following
///                      Ready ◀───────────────────────────────────────────────────┘
///                        │        prepare(attempt)                                ▲
///                        └────────────────────────────────────────────────────────┘
///                               abort, a new step, another attempt: tombstone
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Primary, and writable once the start-up rule has been satisfied.
    Serving,
    /// Primary, in a cutover before its commit: the workload may be stopped and the volumes fenced.
    /// A restart takes it back to [`Role::Serving`].
    Leaving {
        /// This attempt, never used again.
        attempt: AttemptId,
        /// Where the unit is going.
        target: Fingerprint,
    },
    /// Committed. Fenced until `settle(attempt)` is answered; nobody may decide otherwise here.
    HandedOver {
        /// The attempt that was committed.
        attempt: AttemptId,
        /// Where the unit went.
        target: Fingerprint,
        /// Only a refusal from this incarnation of the target's journal lets us resume.
        incarnation: Incarnation,
        /// The epoch that the target owns once it has taken.
        next: Epoch,
    },
    /// Standby of this node.
    Following {
        /// The primary.
        source: Fingerprint,
    },
    /// Standby that holds the final snapshots and has promised to answer `settle(attempt)`.
    Ready {
        /// The primary.
        source: Fingerprint,
        /// The attempt.
        attempt: AttemptId,
        /// The epoch it would own.
        next: Epoch,
        /// The final snapshot of each volume.
        finals: Vec<(VolumeId, Guid)>,
        /// Whether the workload was running when the cutover began.
        workload_wanted: bool,
    },
}

/// A unit as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The same on every node.
    pub id: UnitId,
    /// For people; unique on a node.
    pub name: String,
    /// Its volumes, at least one; what lies below another one comes behind it.
    pub volumes: Vec<VolumeRecord>,
    /// It has all that lies below its datasets, also what is made there later.
    pub tree: Option<Tree>,
    /// Since when it has just these volumes: an epoch's number, and how often they changed in it. What a primary says
    /// of its volumes is believed only if it is no older than that.
    pub volumes_as_of: (u64, u64),
    /// When it is replicated.
    pub policy: Policy,
    /// The newest epoch this node knows of.
    pub epoch: Epoch,
    /// What this node may do with it.
    pub role: Role,
    /// Nodes that hold replicas, while this node is primary.
    pub standbys: Vec<Fingerprint>,
    /// Standbys that are still to take over what another tool has sent them.
    pub adopting: BTreeMap<Fingerprint, Adoption>,
    /// Standbys from which nothing has to be able to come back (`protect --one-way`).
    pub one_way: BTreeSet<Fingerprint>,
    /// The workload, where local configuration names one.
    pub workload: Option<WorkloadRecord>,
    /// Its volumes are this node's own, and their return needs no grant: it was protected here
    /// first, or moved from here by this node's operator to a peer without a grant for its place.
    pub own: bool,
    /// Replication paused by a person.
    pub paused: bool,
    /// The risk of starting without having heard from the standbys was accepted.
    pub start_alone: bool,
    /// The epoch that this node serves by a decision that its standbys have not heard of yet: a failover, or
    /// an operator's word to start alone. Cleared once all of them have followed it.
    pub decided_epoch: Option<u64>,
    /// The primary holds a lease of this length from its standby, milliseconds: without it the
    /// workload is stopped, and once it has run out the standby may take over. `None`: no lease.
    pub lease_ms: Option<u64>,
    /// As a standby: the newest epoch in which it gave its primary a lease. In another one the primary
    /// may be going on without.
    pub leased_epoch: Option<u64>,
    /// This node was primary until somebody else became it without its commit, or its activation
    /// failed: what it has beyond what the new primary says is set aside.
    pub was_primary: bool,
    /// What each volume is to be set back to before anything is received, and what is beyond it kept
    /// aside: durable until it is done. Of a volume that is not named all is kept aside, as a person said
    /// (`resolve`): it is received anew.
    pub step_back: Option<Vec<(VolumeId, Guid)>>,
    /// The last failover made by this node.
    pub failover: Option<FailoverRecord>,
    /// What moves to each peer cost so far.
    pub move_costs: BTreeMap<Fingerprint, MoveCosts>,
    /// Last attempt number used here.
    pub last_attempt: u64,
    /// For each issuer: every attempt up to this one that is not in `taken` is refused.
    pub refused_up_to: BTreeMap<Fingerprint, u64>,
    /// Attempts this node has taken, newest last; see [`TAKEN_KEPT`].
    pub taken: Vec<AttemptId>,
}

impl UnitRecord {
    /// The ids of its volumes, in order.
    pub fn volume_ids(&self) -> Vec<VolumeId> {
        self.volumes.iter().map(|v| v.id).collect()
    }

    /// A record with nothing but what every unit has.
    pub fn new(
        id: UnitId,
        name: String,
        volumes: Vec<VolumeRecord>,
        policy: Policy,
        epoch: Epoch,
        role: Role,
    ) -> Self {
        Self {
            id,
            name,
            volumes,
            tree: None,
            volumes_as_of: (epoch.number, 0),
            policy,
            epoch,
            role,
            standbys: Vec::new(),
            adopting: BTreeMap::new(),
            one_way: BTreeSet::new(),
            workload: None,
            own: false,
            paused: false,
            start_alone: false,
            decided_epoch: None,
            lease_ms: None,
            leased_epoch: None,
            was_primary: false,
            step_back: None,
            failover: None,
            move_costs: BTreeMap::new(),
            last_attempt: 0,
            refused_up_to: BTreeMap::new(),
            taken: Vec::new(),
        }
    }
}

/// How many taken attempts a record remembers. An attempt older than these was settled at its source
/// long ago: the source cannot begin another before it knows.
pub const TAKEN_KEPT: usize = 16;

/// A change of the journal. All changes of one `Effect::Persist` are one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalChange {
    /// Insert or replace a unit.
    PutUnit(Box<UnitRecord>),
    /// Forget a unit.
    DeleteUnit(UnitId),
    /// Insert or replace a peer.
    PutPeer(PeerRecord),
    /// Forget a peer.
    DeletePeer(Fingerprint),
}

/// The copy of a unit's ownership in a dataset's local properties `flocker-repl:*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The unit.
    pub unit: UnitId,
    /// The volume.
    pub volume: VolumeId,
    /// The dataset's own guid when it was written: a clone or a child does not inherit a claim.
    pub dataset_guid: Guid,
    /// The epoch.
    pub epoch: Epoch,
    /// The role in a word: `serving`, `leaving`, `handed-over`, `following`, `ready`.
    pub state: String,
}

impl Role {
    /// In a word, for mirrors and status.
    pub fn word(&self) -> &'static str {
        match self {
            Role::Serving => "serving",
            Role::Leaving { .. } => "leaving",
            Role::HandedOver { .. } => "handed-over",
            Role::Following { .. } => "following",
            Role::Ready { .. } => "ready",
        }
    }

    /// Whether the unit may be written here, given that the start-up rule is satisfied.
    pub fn is_primary(&self) -> bool {
        matches!(self, Role::Serving | Role::Leaving { .. })
    }

    /// Whether this node holds a replica.
    pub fn is_standby(&self) -> bool {
        matches!(self, Role::Following { .. } | Role::Ready { .. })
    }
}
