//! Arguments of the commands about one unit: protect, run, migrate, failover, and those that look at it.

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use flocker_core::record::{AddressRecord, ForwardRecord, HealthCheck, StopSignal};

use crate::quantity::parse_duration;
use crate::values::{
    Bundle, CommandWords, parse_address, parse_bundle, parse_command, parse_forward, parse_health,
};

/// `protect`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --rpo and --every the promise is --rpo 1s. A volume that is not written costs next to nothing.

Several datasets make one unit: they are snapshotted as one moment (so they are in one pool), and they \
move together. The workload runs in the first one's path. With --recursive it has all that lies below them, and \
what is made there later joins it by itself; said again, it looks at once.

With --lease the primary may run its workload only while its standby renews the lease. Once it has run \
out, `failover` on the standby needs no other proof that the primary is off. The price: the workload is \
stopped when the standby cannot be reached for that long.

With --adopt a replica that the peer has already (of syncoid, zrepl, bzfs, zfs receive) is gone on from: what \
both have is found by guid, and nothing is sent again. Other tools' snapshots are never destroyed.

Examples:
  flocker-repl protect data/db --to b
  flocker-repl protect data/db --to b --rpo 500ms --create
  flocker-repl protect data/db data/wal --to b --name db --lease 10s
  flocker-repl protect tank/app --recursive --to b --exclude cache --exclude 'build/tmp-*'
  flocker-repl protect tank/archive --to b --name archive --every 15m
  flocker-repl protect data/db --to b --adopt backup/a/db")]
pub(crate) struct ProtectArgs {
    /// The datasets on this node
    #[arg(required = true, value_name = "DATASET")]
    pub(crate) datasets: Vec<String>,
    /// The peer that keeps the replica
    #[arg(long, value_name = "PEER")]
    pub(crate) to: String,
    /// What the unit is called; by default the last part of the first dataset's name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// With all that lies below: filesystems, zvols, clones, whatever is made there later
    #[arg(long, short = 'r')]
    pub(crate) recursive: bool,
    /// With --recursive: leave this out, and all below it; a path from the dataset on, or one component of any path;
    /// `*` stands for any characters of a component; may be given more than once
    #[arg(long, value_name = "PATTERN", requires = "recursive", conflicts_with = "create")]
    pub(crate) exclude: Vec<String>,
    /// Continuously: the replica is never further behind than this [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "every")]
    pub(crate) rpo: Option<Duration>,
    /// On a schedule: a step every so often
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) every: Option<Duration>,
    /// The workload stops if the standby cannot be reached for this long, at least 3s
    #[arg(long, value_name = "DURATION", value_parser = parse_lease)]
    pub(crate) lease: Option<Duration>,
    /// Make datasets first that do not exist: in a vault an empty directory, in ZFS a filesystem
    #[arg(long)]
    pub(crate) create: bool,
    /// Go on from a replica that the peer has, where it lies there: one for each dataset, in their order; by
    /// default where replicas of that peer's grant are kept
    #[arg(long, value_name = "DATASET_ON_PEER", num_args = 0.., conflicts_with = "create")]
    pub(crate) adopt: Option<Vec<String>>,
    /// With --adopt: also one that was written or has newer snapshots of its own; `resolve` there keeps that aside
    #[arg(long, requires = "adopt")]
    pub(crate) diverged: bool,
    /// Also where it could not come back once the peer has written it: this node's ZFS is older, or its pool has not
    /// enabled what streams from there would need
    #[arg(long)]
    pub(crate) one_way: bool,
}

/// The promise where none is given.
pub(crate) const DEFAULT_RPO: Duration = Duration::from_secs(1);

/// Below it the node refuses every lease.
const LEAST_LEASE: Duration = Duration::from_secs(3);

/// Longer than this it protects nobody: a failover would have to wait for its end.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text).map_err(|error| error.to_string())?;
    if lease < LEAST_LEASE {
        return Err(format!(
            "`{text}` is too short: renewals of a busy pair come too late below 3s"
        ));
    }
    if lease > LONGEST_LEASE {
        return Err(format!(
            "`{text}` is too long: a failover has to wait for its end; most is 1d"
        ));
    }
    Ok(lease)
}

/// `run`
#[derive(Debug, Args)]
#[command(after_help = "\
A command is not passed through a shell. It starts where the unit is primary, in the path of its first \
volume, with FLOCKER_UNIT and FLOCKER_VOLUME_PATH set; its output goes to the state directory's logs. On a \
standby it is kept for when the unit arrives: run the same on both nodes, each with its own addresses and \
devices. What is said here replaces what was said before.

With a health check it counts as running only when that succeeds; a move that brings it up in vain goes \
back. --health-command, --before-stop and --after-start take one word for the shell, split into a program \
and its arguments as a shell would, and started without one.

--address is put on its interface when the workload runs, and taken off once it has stopped. --forward listens \
on this node whether the unit is here or not, and holds new connections while it moves: LOCAL is where the \
workload listens while it is here, REMOTE where it listens on the other node.

Containers, units of systemd and bundles are named, and stay whoever's they are: from now on only this node starts \
them (their restart policy is off, a unit is disabled) until the unit is no longer protected. A container is made \
ready on every standby from what it is here, so run the same there before it exists. What a move would leave behind \
(changes in its writable layer, binds and volumes that are not the unit's) is refused with its name. See \
docs/containers.md.

Examples:
  flocker-repl run db -- /usr/bin/my-server --port 5000
  flocker-repl run db --podman pg --before-stop 'podman exec pg psql -U postgres -c CHECKPOINT'
  flocker-repl run shop --docker shop-db-1,shop-web-1
  flocker-repl run db --systemd mariadb.service --health tcp:127.0.0.1:3306
  flocker-repl run cache --podman redis --checkpoint memory --address 10.0.0.60/24@eth0
  flocker-repl run db --stop-limit 30s -- /bin/sh -c 'exec ./start.sh'
  flocker-repl run pg --stop-signal INT --health tcp:127.0.0.1:5432 --address 10.0.0.50/24@eth0 \
-- /usr/lib/postgresql/15/bin/postgres -D data
  flocker-repl run pg --forward 10.0.0.1:5432=127.0.0.1:5433,10.0.0.2:5433 -- ./postgres.sh")]
#[command(group(ArgGroup::new("check").args(["health", "health_command"])))]
pub(crate) struct RunArgs {
    /// The unit
    pub(crate) name: String,
    /// What asks it to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", ignore_case = true)]
    pub(crate) stop_signal: SignalArg,
    /// How long it may take to stop after that before it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(crate) stop_limit: Duration,
    /// It runs when something accepts connections there
    #[arg(long, value_name = "tcp:IP:PORT", value_parser = parse_health, help_heading = "Health")]
    pub(crate) health: Option<HealthCheck>,
    /// It runs when this command ends with status 0
    #[arg(long, value_name = "CMD", value_parser = parse_command, help_heading = "Health")]
    pub(crate) health_command: Option<CommandWords>,
    /// How long after its start it may take to become healthy [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "check", help_heading = "Health")]
    pub(crate) health_limit: Option<Duration>,
    /// An address that is where the workload is; may be given more than once
    #[arg(long, value_name = "IP/PREFIX@DEVICE", value_parser = parse_address, help_heading = "Network")]
    pub(crate) address: Vec<AddressRecord>,
    /// A TCP port of this node behind which it is found wherever it runs; may be given more than once
    #[arg(long, value_name = "LISTEN=LOCAL,REMOTE", value_parser = parse_forward, help_heading = "Network")]
    pub(crate) forward: Vec<ForwardRecord>,
    /// Run this before it is asked to stop; if it fails, a move is taken back
    #[arg(long, value_name = "CMD", value_parser = parse_command, help_heading = "Hooks")]
    pub(crate) before_stop: Option<CommandWords>,
    /// Run this once it runs and is healthy; a failure is only noted
    #[arg(long, value_name = "CMD", value_parser = parse_command, help_heading = "Hooks")]
    pub(crate) after_start: Option<CommandWords>,
    /// The workload ends when the daemon dies; without this it runs on and is adopted again
    #[arg(long, conflicts_with_all = ["podman", "docker", "systemd", "runc", "crun", "lxc"])]
    pub(crate) die_with_daemon: bool,
    /// It moves with all it has in memory (CRIU), written to this volume of the unit, which the workload itself does
    /// not see; the last part of its name
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["docker", "systemd", "lxc", "command"])]
    pub(crate) checkpoint: Option<String>,
    #[command(flatten)]
    pub(crate) program: ProgramArgs,
}

/// What runs: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ProgramArgs {
    /// Containers of podman, by name; several are started in this order and stopped in the opposite one
    #[arg(long, value_name = "CONTAINER", help_heading = "What runs", value_delimiter = ',')]
    pub(crate) podman: Vec<String>,
    /// Containers of docker, in the same way
    #[arg(long, value_name = "CONTAINER", help_heading = "What runs", value_delimiter = ',')]
    pub(crate) docker: Vec<String>,
    /// Units of systemd, in the same way
    #[arg(long, value_name = "UNIT", help_heading = "What runs", value_delimiter = ',')]
    pub(crate) systemd: Vec<String>,
    /// A bundle that runc runs
    #[arg(long, value_name = "ID=BUNDLE", value_parser = parse_bundle, help_heading = "What runs")]
    pub(crate) runc: Option<Bundle>,
    /// A bundle that crun runs
    #[arg(long, value_name = "ID=BUNDLE", value_parser = parse_bundle, help_heading = "What runs")]
    pub(crate) crun: Option<Bundle>,
    /// A container of LXC
    #[arg(long, value_name = "CONTAINER", help_heading = "What runs")]
    pub(crate) lxc: Option<String>,
    /// A command and its arguments, which the daemon supervises
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// How long a workload may take to become healthy where it is not said.
pub(crate) const DEFAULT_HEALTH_LIMIT: Duration = Duration::from_secs(60);

/// Signals that ask a workload to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignalArg {
    /// What most programs expect
    #[value(name = "TERM", alias = "SIGTERM")]
    Term,
    /// PostgreSQL's fast shutdown
    #[value(name = "INT", alias = "SIGINT")]
    Int,
    /// SIGQUIT
    #[value(name = "QUIT", alias = "SIGQUIT")]
    Quit,
}

impl From<SignalArg> for StopSignal {
    fn from(signal: SignalArg) -> Self {
        match signal {
            SignalArg::Term => Self::Term,
            SignalArg::Int => Self::Int,
            SignalArg::Quit => Self::Quit,
        }
    }
}

/// Commands about one unit.
#[derive(Debug, Args)]
pub(crate) struct UnitArgs {
    /// The unit
    pub(crate) name: String,
}

/// `unprotect`
#[derive(Debug, Args)]
pub(crate) struct UnprotectArgs {
    /// The unit
    pub(crate) name: String,
    /// The pool with its volumes is gone for good: forget the unit although nothing in it can be taken back. Its
    /// standbys keep all that they have and can be failed over to. Where the store is there after all, protection
    /// ends as always
    #[arg(long)]
    pub(crate) store_is_gone: bool,
}

/// `status`
#[derive(Debug, Args)]
#[command(after_help = "\
On a terminal it is made for people; elsewhere each unit, standby and peer is one line of KEY=VALUE.")]
pub(crate) struct StatusArgs {
    /// One unit only
    pub(crate) name: Option<String>,
    /// Name each volume of a unit that has many
    #[arg(long, short = 'v')]
    pub(crate) verbose: bool,
}

/// `migrate`
#[derive(Debug, Args)]
#[command(
    override_usage = "flocker-repl migrate NAME --to PEER [--budget DURATION] [--dry-run]\n       \
                      flocker-repl migrate NAME --cancel",
    after_help = "\
The workload runs on while the data is brought close; then it is stopped, the last difference is sent, \
and it starts on the other node. If anything fails before the hand-over it goes on where it was. The \
command may be interrupted: the migration goes on, see `flocker-repl status`. Asked again while it is under \
way it follows the same migration; asked again when it is there, it says so.

Before the workload is stopped the downtime is predicted from what earlier moves cost, what is left to \
send and what the pair carries; afterwards the report shows the prediction beside what it was.

Examples:
  flocker-repl migrate db --to b
  flocker-repl migrate db --to b --dry-run
  flocker-repl migrate db --to b --budget 500ms    # refused, before anything stops, if it would take longer
  flocker-repl migrate db --cancel"
)]
#[command(group(ArgGroup::new("what").required(true).args(["to", "cancel"])))]
pub(crate) struct MigrateArgs {
    /// The unit
    pub(crate) name: String,
    /// The peer it moves to
    #[arg(long, value_name = "PEER")]
    pub(crate) to: Option<String>,
    /// Longest downtime wanted: refused before anything stops if the prediction is longer
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "cancel")]
    pub(crate) budget: Option<Duration>,
    /// Only check whether it could be done, and predict the downtime
    #[arg(long, conflicts_with = "cancel")]
    pub(crate) dry_run: bool,
    /// Move although this of a container stays behind, by the name that the refusal says; may be given more than once
    #[arg(long, value_name = "NAME", conflicts_with = "cancel")]
    pub(crate) accept_loss: Vec<String>,
    /// Take a migration that is under way back; refused once it is committed
    #[arg(long)]
    pub(crate) cancel: bool,
}

/// `failover`
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the standby. It first shows what would be lost and by what right it could go on; on a terminal it \
then asks. One of four proofs is needed that the primary does not write any more, and they are tried in \
this order: the primary answers, stops and is fenced; the lease ran out (`protect --lease`); the fencing hook \
that this node's configuration names succeeds; or your word --primary-is-down, which is recorded.

A false word is detected when the two nodes meet again. The older primary then stops, what only it had is \
kept aside on it under another name, and it becomes the standby.

--drill changes nothing: the workload is started on a clone of the newest replica, where nobody can reach it, \
its health is checked, and all of it is taken away again. Exit code 5 if it did not come up.

Examples:
  flocker-repl failover db --dry-run
  flocker-repl failover db
  flocker-repl failover db --primary-is-down --yes
  flocker-repl failover db --drill")]
pub(crate) struct FailoverArgs {
    /// The unit
    pub(crate) name: String,
    /// Your word that the primary is down; make sure of it first
    #[arg(long)]
    pub(crate) primary_is_down: bool,
    /// Only show what would be lost, and which proofs there are
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Try on a clone whether the workload would come up here, while replication goes on
    #[arg(long, conflicts_with_all = ["primary_is_down", "dry_run", "yes"])]
    pub(crate) drill: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
}

/// `holds`
#[derive(Debug, Args)]
#[command(after_help = "\
Lists every snapshot and bookmark that we made on this node and every hold on it, with the unit it is of, why it is \
kept and how old it is. Holds of others are shown as such, and never touched. What we made for a unit that this node \
does not know any more is marked as stale: --collect releases such holds, and destroys no snapshot.

Examples:
  flocker-repl holds
  flocker-repl holds db
  flocker-repl holds --collect
  flocker-repl holds --json | jq -r '.kept[] | select(.stale) | .name'")]
pub(crate) struct HoldsArgs {
    /// One unit only
    pub(crate) name: Option<String>,
    /// Release those of our holds that no unit accounts for
    #[arg(long, conflicts_with = "name")]
    pub(crate) collect: bool,
}

/// `browse`
#[derive(Debug, Args)]
#[command(after_help = "\
Makes a read-only copy of the newest whole moment that this node has of the unit, on a standby as on the primary, and \
says where it is. Replication goes on meanwhile. Asked again, it shows a newer moment in the same place. The copy stays \
until --close; with a command after `--` it is there for as long as the command runs, whose working directory it is \
(FLOCKER_VOLUME_PATH has its path). Without a name the copies that are open are listed.

A snapshot that is being looked at cannot be destroyed, so do not leave it open for ever. An encrypted replica can be \
looked at once its key is loaded (`zfs load-key`).

Examples:
  flocker-repl browse db
  flocker-repl browse db -- ls -l
  flocker-repl browse db -- sh -c 'pg_verifybackup . || tar cf /tmp/db.tar .'
  flocker-repl browse
  flocker-repl browse db --close")]
pub(crate) struct BrowseArgs {
    /// The unit
    pub(crate) name: Option<String>,
    /// Take the copy away; without a name all copies
    #[arg(long, conflicts_with = "command")]
    pub(crate) close: bool,
    /// A command that looks at it
    #[arg(last = true, value_name = "COMMAND", requires = "name")]
    pub(crate) command: Vec<String>,
}

/// `resolve`
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the standby, when the primary says that it cannot be replicated to: somebody wrote it, or took \
snapshots of it. It first shows what both have, what only this node has and what only the primary has; on a \
terminal it then asks. It is run here and not on the primary since it is this node's data that goes aside: the \
primary's is never touched, and there it is refused.

What only this node has is kept under the dataset's name with `-diverged-<time>` behind it, and replication goes \
on from what both have, without a resend. With nothing in common the whole dataset is renamed so, and everything is \
sent anew; that is said before. Nothing is destroyed. After a crash it finishes by itself, or asked again.

Examples:
  flocker-repl resolve db --dry-run
  flocker-repl resolve db
  flocker-repl resolve db --yes --json | jq -r '.aside[]'")]
pub(crate) struct ResolveArgs {
    /// The unit
    pub(crate) name: String,
    /// Only show what each side has
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
}

/// `start-alone`
#[derive(Debug, Args)]
#[command(after_help = "\
After a start an owner first asks its standbys whether one of them has taken over, and stays down while \
they do not answer. This command goes on without their answer. A unit with a lease goes on without it until \
its standby is there again.

The risk is yours: if the unit runs on a standby, it will run twice until the two meet; then this side \
stops, and what only it had is set aside. If a standby had taken over and does not run, this side goes on, and \
what only the standby had is set aside there. Make sure first that it runs nowhere else.")]
pub(crate) struct StartAloneArgs {
    /// The unit
    pub(crate) name: String,
}

/// `rounds`
#[derive(Debug, Args)]
pub(crate) struct RoundsArgs {
    /// The unit
    pub(crate) name: String,
    /// How many, newest last
    #[arg(long, default_value_t = 20)]
    pub(crate) last: usize,
}

/// `history`
#[derive(Debug, Args)]
#[command(after_help = "\
Migrations with their timeline, those that were taken back, failovers, drills, changes of role, alarms, notes. \
Replication rounds are listed by `rounds`.

Examples:
  flocker-repl history
  flocker-repl history db --last 5
  flocker-repl history db --json | jq -r '.events[] | select(.kind == \"migrated\") | .report.downtime_ms.total'")]
pub(crate) struct HistoryArgs {
    /// One unit only
    pub(crate) name: Option<String>,
    /// How many, newest last
    #[arg(long, default_value_t = 20)]
    pub(crate) last: usize,
}
