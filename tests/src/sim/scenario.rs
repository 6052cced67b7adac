//! What a seed stands for: the configuration and the kinds and rates of faults of one run.
//!
//! Rates are drawn once a run rather than fixed, so that quiet runs, in which whole migrations
//! pass undisturbed, and wild ones both occur (swarm testing, Groce et al., ISSTA 2012).

use flocker_core::node::PlantedBug;
use flocker_core::record::Policy;
use flocker_store::DatasetKind;

use super::rng::Rng;

/// How messages travel.
#[derive(Debug, Clone)]
pub struct NetScenario {
    /// In order while a connection lasts, as QUIC does; otherwise they overtake each other.
    pub orderly: bool,
    /// Shortest way, milliseconds.
    pub latency_ms: u64,
    /// Added at random, at most, milliseconds.
    pub jitter_ms: u64,
    /// Lost while the connection stands.
    pub loss_ppm: u32,
    /// Delivered twice.
    pub repeat_ppm: u32,
    /// Delayed by up to `late_ms` more.
    pub late_ppm: u32,
    /// See `late_ppm`, milliseconds.
    pub late_ms: u64,
    /// How long a side takes to notice a dead connection, at most, milliseconds.
    pub idle_ms: u64,
    /// Bytes per millisecond of a bulk stream.
    pub bytes_per_ms: u64,
    /// A bulk stream breaks on its way.
    pub bulk_break_ppm: u32,
}

/// What goes wrong, and how often.
#[derive(Debug, Clone)]
pub struct FaultScenario {
    /// Mean time between faults at random moments, milliseconds; `None`: none.
    pub every_ms: Option<u64>,
    /// A phase of a cutover, once entered, is hit by a fault.
    pub phase_ppm: u32,
    /// A daemon dies between two effects.
    pub effect_crash_ppm: u32,
    /// An action fails.
    pub op_fail_ppm: u32,
    /// An action takes very long.
    pub op_slow_ppm: u32,
    /// A crash takes the whole host, rather than the daemon alone.
    pub host_crash_percent: u64,
    /// A crash loses the journal as well.
    pub journal_loss_ppm: u32,
    /// Longest time a node stays down, milliseconds.
    pub down_ms: u64,
    /// Longest partition, milliseconds.
    pub partition_ms: u64,
}

/// Everything about a run that its seed decides beforehand.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many units.
    pub units: usize,
    /// What the stores keep live.
    pub kind: DatasetKind,
    /// Whether it can hold snapshots.
    pub holds: bool,
    /// Whether an interrupted receive keeps what arrived.
    pub resumable: bool,
    /// Whether there are bookmarks, and for how long snapshots are kept for a standby that is away, milliseconds. In
    /// seeds in which a person resolves what has nothing else in common any more.
    pub pin_limit_ms: Option<u64>,
    /// When units are replicated.
    pub policy: Policy,
    /// The primary needs a lease of this length, milliseconds.
    pub lease_ms: Option<u64>,
    /// Somebody changes standbys by hand, and lets them follow again. In one seed of eight.
    pub by_hand: bool,
    /// The second unit is a clone of the first. In most seeds with two units.
    pub clone: bool,
    /// What the standby has of the volumes before anything is protected. Something in one seed of eight.
    pub found: Found,
    /// Bytes in a volume before the workload starts.
    pub preload_bytes: u64,
    /// Bytes of one record.
    pub record_bytes: u64,
    /// Time between two writes of a workload, milliseconds.
    pub write_every_ms: u64,
    /// An acknowledgement does not reach the client.
    pub ack_loss_ppm: u32,
    /// The workload ends with its daemon.
    pub die_with_daemon: bool,
    /// Containers run, which another node has to be told of. In one seed of seven, where no lease is needed.
    pub containers: bool,
    /// How long a workload takes to stop, at most, milliseconds.
    pub stop_ms: u64,
    /// A workload cannot be started.
    pub start_fail_ppm: u32,
    /// Mean time between two wishes of the operator, milliseconds.
    pub operator_every_ms: u64,
    /// The wall clocks differ by up to this, milliseconds.
    pub skew_ms: u64,
    /// How messages travel.
    pub net: NetScenario,
    /// What goes wrong.
    pub faults: FaultScenario,
    /// Until when faults happen, milliseconds.
    pub chaos_ms: u64,
    /// After that, how long everything has to become well, milliseconds.
    pub heal_ms: u64,
    /// After that, how long one more migration may take, milliseconds.
    pub move_ms: u64,
    /// After that, with nothing written, how long until both sides are equal, beyond the RPO.
    pub rest_ms: u64,
    /// How many volumes a unit has.
    pub volumes: usize,
    /// They lie below each other, and others are made and destroyed below them meanwhile. In one seed of five.
    pub tree: bool,
    /// Monotonic clocks differ in rate by up to this, parts of a million.
    pub drift_ppm: u64,
    /// An address moves with the workload.
    pub address: bool,
    /// Nodes have a fencing hook.
    pub fencing_hook: bool,
    /// Operators say that a primary is down without having looked.
    pub false_words: bool,
    /// A bug in the model, to see that the checkers are not asleep.
    pub model_bug: Option<ModelBug>,
    /// A bug in the core, to see that the checkers are not asleep.
    pub planted: Option<PlantedBug>,
}

/// A replica that another tool made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// As it was sent.
    Replica,
    /// With a snapshot of its own: it is followed, and resolved.
    Apart,
}

/// Something that the simulator's stores and hosts do wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelBug {
    /// What is set aside is destroyed.
    SetAsideDestroys,
    /// The snapshots of a group are taken one after another while the workload writes.
    TornGroup,
    /// An address that is taken off stays.
    TwoAddresses,
    /// The supervisor does not kill at the end of a lease.
    SupervisorSleeps,
}

fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.below(choices.len())]
}

impl Scenario {
    /// The run that `seed` stands for, with this many nodes.
    pub fn from_seed(seed: u64, nodes: usize) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ce7_a210);
        let rng = &mut rng;
        let calm = rng.one_in(6);
        let record_bytes = one_of(rng, &[512, 4096, 65_536]);
        let rpo = rng.log_range(500, 12_000);
        Self {
            seed,
            nodes,
            units: if rng.one_in(4) { 2 } else { 1 },
            kind: one_of(rng, &[DatasetKind::Filesystem, DatasetKind::Directory]),
            holds: !rng.one_in(8),
            policy: if rng.one_in(4) { Policy::Every(rpo) } else { Policy::Rpo(rpo) },
            lease_ms: (nodes == 2 && rng.one_in(4)).then(|| rng.log_range(3_000, 30_000)),
            by_hand: nodes == 2 && seed % 8 == 5,
            clone: !seed.is_multiple_of(3),
            found: match (nodes, seed % 32) {
                (2, 3 | 19) => Found::Replica,
                (2, 11 | 27) => Found::Apart,
                _ => Found::Nothing,
            },
            preload_bytes: rng.log_range(1_000, 400_000_000),
            record_bytes,
            write_every_ms: rng.log_range(20, 800),
            ack_loss_ppm: one_of(rng, &[0, 10_000, 200_000]),
            die_with_daemon: rng.one_in(2),
            containers: seed % 7 == 3,
            stop_ms: rng.log_range(1, 4_000),
            start_fail_ppm: one_of(rng, &[0, 0, 20_000, 200_000]),
            operator_every_ms: rng.log_range(3_000, 20_000),
            skew_ms: one_of(rng, &[0, 50, 3_000]),
            net: NetScenario::draw(rng, calm),
            faults: FaultScenario::draw(rng, calm),
            chaos_ms: 120_000,
            heal_ms: 100_000,
            move_ms: 60_000,
            rest_ms: 40_000,
            volumes: one_of(rng, &[1, 1, 2, 3]),
            tree: nodes == 2 && seed % 5 == 2,
            drift_ppm: one_of(rng, &[0, 20_000]),
            address: rng.one_in(2),
            // With more nodes a standby may fence a primary that has moved on meanwhile.
            fencing_hook: rng.one_in(3) && nodes == 2,
            false_words: !calm && rng.one_in(12) && nodes == 2,
            model_bug: None,
            planted: None,
            resumable: rng.one_in(2),
            pin_limit_ms: rng.one_in(3).then(|| rng.log_range(3_000, 300_000)),
        }
    }

    /// The same run in a model with this bug.
    pub fn with_model_bug(mut self, bug: ModelBug) -> Self {
        self.model_bug = Some(bug);
        self
    }

    /// The same run on a core with this bug.
    pub fn with_planted(mut self, bug: PlantedBug) -> Self {
        self.planted = Some(bug);
        self
    }
}

impl NetScenario {
    fn draw(rng: &mut Rng, calm: bool) -> Self {
        let orderly = calm || rng.one_in(2);
        let rate = |rng: &mut Rng, choices: &[u32]| if calm { 0 } else { one_of(rng, choices) };
        Self {
            orderly,
            latency_ms: rng.log_range(1, 60),
            jitter_ms: rng.log_range(1, 80),
            loss_ppm: rate(rng, &[0, 5_000, 50_000, 150_000]),
            repeat_ppm: rate(rng, &[0, 20_000, 150_000]),
            late_ppm: if orderly { 0 } else { rate(rng, &[0, 20_000, 80_000]) },
            late_ms: rng.log_range(200, 40_000),
            idle_ms: rng.log_range(100, 12_000),
            bytes_per_ms: rng.log_range(20_000, 800_000),
            bulk_break_ppm: rate(rng, &[0, 10_000, 80_000]),
        }
    }
}

impl FaultScenario {
    fn draw(rng: &mut Rng, calm: bool) -> Self {
        let rate = |rng: &mut Rng, choices: &[u32]| if calm { 0 } else { one_of(rng, choices) };
        Self {
            every_ms: (!calm).then(|| rng.log_range(1_500, 40_000)),
            phase_ppm: rate(rng, &[0, 50_000, 150_000, 300_000]),
            effect_crash_ppm: rate(rng, &[0, 300, 1_500]),
            op_fail_ppm: rate(rng, &[0, 5_000, 40_000]),
            op_slow_ppm: rate(rng, &[0, 2_000, 10_000]),
            host_crash_percent: one_of(rng, &[0, 30, 70, 100]),
            journal_loss_ppm: rate(rng, &[0, 0, 0, 0, 60_000]),
            down_ms: rng.log_range(200, 30_000),
            partition_ms: rng.log_range(300, 40_000),
        }
    }
}
