//! Every limit of the machines, with its reason.

/// A question that was not answered is asked again after this long: a message may be lost with the
/// connection, and all answers are idempotent.
pub(crate) const RESEND_MS: u64 = 1_000;

/// First pause after a failed round; doubled with each failure in a row.
pub(crate) const BACKOFF_FIRST_MS: u64 = 250;

/// Longest pause between tries. Short enough that a standby whose disk was cleaned up goes on
/// before its operator wonders.
pub(crate) const BACKOFF_LAST_MS: u64 = 15_000;

/// After the local side of a transfer ended, how long the standby's word is waited for.
pub(crate) const WORD_MS: u64 = 30_000;

/// After the local side of a transfer failed: the standby's word names the cause, if it comes.
pub(crate) const CAUSE_MS: u64 = 1_000;

/// Least time between the begins of two rounds to one standby, so that an RPO shorter than a round does not spin; of a
/// longer RPO a tenth, up to [`BACKOFF_FIRST_MS`].
pub(crate) const ROUND_GAP_MS: u64 = 10;

/// An owner that starts and has not heard from all its standbys raises an alarm after this long.
pub(crate) const CLAIM_ALARM_MS: u64 = 10_000;

/// The target must answer `Preflight` and `Prepare` within this time.
pub(crate) const ANSWER_LIMIT_MS: u64 = 20_000;

/// The target's answer to `Preflight` where it has to make a workload ready that another program runs: an image may
/// have to be loaded.
pub(crate) const MAKE_READY_LIMIT_MS: u64 = 300_000;

/// Writing down what a workload has in memory while it runs on.
pub(crate) const PRE_DUMP_LIMIT_MS: u64 = 300_000;

/// A standby that does not answer an introduction made by `protect`: the command is refused.
pub(crate) const PROTECT_LIMIT_MS: u64 = 20_000;

/// Each of fence, snapshot and verify must end within this time, or the cutover is taken back.
pub(crate) const STOPPED_PHASE_LIMIT_MS: u64 = 60_000;

/// The final transfer must end within this time, or the cutover is taken back: the workload is
/// stopped meanwhile.
pub(crate) const FINAL_TRANSFER_LIMIT_MS: u64 = 600_000;

/// How long the source waits for the target's word that the workload runs before it answers the
/// person with what it knows.
pub(crate) const ACTIVATION_LIMIT_MS: u64 = 60_000;

/// A commit without an answer raises an alarm after this long.
pub(crate) const SETTLE_ALARM_MS: u64 = 10_000;

/// Convergence ends when a round took no longer than this, milliseconds: below it the fixed costs rule.
pub(crate) const CONVERGED_MS: u64 = 200;

/// Most rounds of convergence.
pub(crate) const CONVERGE_ROUNDS: u32 = 10;

/// Convergence ends when a round took more than this share of the one before, in percent.
pub(crate) const CONVERGE_GAIN_PERCENT: u64 = 80;

/// First pause before an ended workload is started again; doubled up to [`BACKOFF_LAST_MS`].
pub(crate) const RESTART_FIRST_MS: u64 = 1_000;

/// Below this estimate a step is not worth a look at the room left, bytes, unless there is a quota.
pub(crate) const ROOM_CHECK_BYTES: u64 = 64 << 20;

/// A standby that heard nothing of its unit for this long beyond two of its intervals is no longer
/// counted on by its primary, and may be let go on the standby's side.
pub(crate) const SILENT_MS: u64 = 30_000;

/// Between two tries to make volumes reachable, or to stop and fence them: whoever is in the way is
/// named in the alarm, and gone soon after it was read.
pub(crate) const RETRY_MS: u64 = 2_000;

/// Of how many earlier boots of its primary a standby remembers the last transfer, so that an offer
/// which comes very late begins nothing. A message does not outlive that many starts.
pub(crate) const BOOTS_KEPT: usize = 8;

/// Most volumes of one unit: they are listed in one message and one journal record.
pub(crate) const MAX_VOLUMES: usize = 4096;

/// Snapshots of a unit that a node tells another of in a survey, oldest left out: with their names they fit into
/// one control message (8 MiB).
pub(crate) const SURVEY_SNAPSHOTS: usize = 40_000;

/// How much longer each volume lets a phase of a cutover take that goes from one to the next: a fence of ZFS is a
/// handful of commands.
pub(crate) const PER_VOLUME_MS: u64 = 500;

/// A connection that is lost before the commit may come back within this time: two nodes that meet dial
/// each other, and one of the connections is given up; a link may also flap. The workload may be stopped
/// meanwhile, so it is short.
pub(crate) const RIDE_OVER_MS: u64 = 2_000;

/// Left over in the target's store beyond what a move brings, bytes: snapshots, metadata.
pub(crate) const ROOM_MARGIN_BYTES: u64 = 16 << 20;

/// What stopping a workload is taken to cost before it was measured.
pub(crate) const GUESSED_STOP_MS: u64 = 200;

/// What starting one is taken to cost before it was measured.
pub(crate) const GUESSED_START_MS: u64 = 300;

/// What fence, snapshot, commit and mount are taken to cost together before they were measured.
pub(crate) const GUESSED_STORE_MS: u64 = 120;

/// A round of convergence that takes longer than this and gains nothing on the one before: the workload
/// writes faster than the link carries it away.
pub(crate) const OUTRUN_MS: u64 = 1_000;

/// So many of them in a row.
pub(crate) const OUTRUN_ROUNDS: u32 = 2;

/// Rounds that bring at least this much say what the pair carries; smaller ones are mostly fixed cost.
pub(crate) const RATE_BYTES: u64 = 1 << 20;

/// Between two tries to bring addresses up or down.
pub(crate) const NETWORK_RETRY_MS: u64 = 2_000;

/// A standby that is asked to yield must have answered within its stop limit and this time.
pub(crate) const YIELD_LIMIT_MS: u64 = 30_000;

/// How long a failover waits for a receive in flight to end, and for the replica to be fenced.
pub(crate) const DRAIN_LIMIT_MS: u64 = 30_000;

/// Shortest lease, milliseconds: below it the renewals of a busy pair come too late.
pub(crate) const LEASE_LEAST_MS: u64 = 3_000;

/// A lease counts for this share of its length where it is held, and for as much more where it was given,
/// percent: clocks may differ in rate by that much, and by far less they do.
pub(crate) const LEASE_DRIFT_PERCENT: u64 = 5;

/// A lease is asked for again after this part of its length.
pub(crate) const LEASE_RENEW_PART: u64 = 5;

/// The workload of a lease that was not renewed gets this part of its length to stop before it ends.
pub(crate) const LEASE_STOP_PART: u64 = 3;

/// The end of a lease that need not be renewed, milliseconds from now: ten years.
pub(crate) const LEASE_WAIVED_MS: u64 = 10 * 365 * 24 * 3_600_000;

/// For how long bookkeeping gives way to a change of primary in which nobody is served.
pub(crate) const UPKEEP_WAITS_MS: u64 = 3_000;

/// For how long bookkeeping leaves a store alone after a change of primary: what is destroyed then is
/// paid for by the first answers of a database that has just come up.
pub(crate) const CALM_MS: u64 = 1_500;

/// Between two times of tidying: each hold, release and destroy makes the store write out all it has, and
/// the database waits for that as for any snapshot. Rounds that follow upon each other faster share one.
pub(crate) const TIDY_EVERY_MS: u64 = 10_000;

/// For how long the new primary takes no snapshot after it came up, at most half of an RPO: until its
/// first writes the old primary has all there is.
pub(crate) const CALM_ROUND_MS: u64 = 500;

/// Steps expected to bring at least this, bytes, are received resumably. A smaller one is sent again
/// sooner than what is left of it could be looked at.
pub(crate) const RESUMABLE_BYTES: u64 = 16 << 20;

/// How long a clone waits before it is looked again whether its origin has arrived on the standby, milliseconds:
/// each look costs an inventory.
pub(crate) const ORIGIN_WAIT_MS: u64 = 3_000;

/// Snapshots of a unit that a new standby is told of, to find what it has already: their guids fit into one
/// control message (1 MiB) with room to spare.
pub(crate) const KNOWN_SNAPSHOTS: usize = 60_000;
