//! The command line: every command, its options and its help.
//!
//! Owns: the clap definitions, and the words of the help. Leaves to others: what the commands do
//! ([`crate::commands`]), how values are read ([`crate::quantity`], [`crate::values`]).

mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use flocker_engine::config::{NodeName, StoreUri};

use crate::quantity::{parse_duration, parse_size};

pub(crate) use units::{
    BrowseArgs, DEFAULT_HEALTH_LIMIT, DEFAULT_RPO, FailoverArgs, HistoryArgs, HoldsArgs,
    MigrateArgs, ProgramArgs, ProtectArgs, ResolveArgs, RoundsArgs, RunArgs, StartAloneArgs,
    StatusArgs, UnitArgs, UnprotectArgs,
};

const ABOUT: &str = "Keeps a second copy of your volumes seconds behind, and moves them running";

const LONG_ABOUT: &str = "\
flocker-repl replicates volumes between two hosts, continuously or on a schedule, and moves a running \
workload with its data from one to the other so quickly that its users do not notice.

A node is a host that runs `flocker-repl serve`. Two nodes are paired once with a one-time code; each \
then grants the other what it may do. `flocker-repl demo` shows all of it on this machine, with no ZFS, \
no root and nothing to configure.";

const AFTER_HELP: &str = "\
Two hosts, by hand:
  flocker-repl init --name a --store vault:/srv/a --listen 10.0.0.1:7001   # or zfs:tank/flocker
  flocker-repl serve                                 # leave it running; the same on host b
  flocker-repl pair --invite                         # on a: prints an address and a one-time code
  flocker-repl pair 10.0.0.1:7001 7K3F-M2QX-9        # on b: with that address and code
  flocker-repl protect data/db --create --to b       # on a: a new volume; b is never 1 s behind
  flocker-repl run db -- /usr/bin/my-server          # on a, and on b for when it arrives
  flocker-repl status
  flocker-repl migrate db --to b

Exit codes:
  0  done
  1  failed: the message says what, where and what to do
  2  the command line makes no sense
  3  the daemon is not running (start it with `flocker-repl serve`)
  4  refused, and nothing was changed: not granted, wrong code, no such dataset, conflict, no room, no proof
  5  it ran, and the answer is no: the verdict of `demo`, a drill that did not come up, a damaged stream

Configuration: --config FILE, else /etc/flocker-repl/config.toml, else config.toml in the folder \
flocker-repl of your configuration ($XDG_CONFIG_HOME, ~/.config).";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "flocker-repl",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// The node's configuration file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,

    /// Print JSON: one object (commands that follow something print one a line); also on errors
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this host a node: write its configuration, its key, its journal and its store
    Init(InitArgs),
    /// Run the node in the foreground
    Serve(ServeArgs),
    /// Pair two nodes with a one-time code
    Pair(PairArgs),
    /// Say what a peer may do on this node
    Grant(GrantArgs),
    /// Keep a replica of a dataset on a peer
    Protect(ProtectArgs),
    /// Run a command in a unit's volume, supervised; it moves with the unit
    Run(Box<RunArgs>),
    /// Stop a unit's workload and keep it stopped
    Stop(UnitArgs),
    /// Show the node, or one unit: role, epoch, lag, throughput, what it is doing
    Status(StatusArgs),
    /// Print events as they happen: rounds, phases, alarms
    Watch,
    /// Move a unit with its workload to a peer
    Migrate(MigrateArgs),
    /// Make this node primary when the primary is lost; or try it on a clone with --drill
    Failover(FailoverArgs),
    /// List every hold, snapshot and bookmark of ours on this node, and why it is kept
    Holds(HoldsArgs),
    /// Look at a unit's newest replica: a read-only copy beside replication, and taking it away
    Browse(BrowseArgs),
    /// Look over this machine: configuration, store, versions with known bugs, peers, units
    Doctor,
    /// Let a standby that was changed by hand follow again; what only it has is kept aside
    Resolve(ResolveArgs),
    /// Stop replicating a unit until `resume`
    Pause(UnitArgs),
    /// Go on replicating a unit
    Resume(UnitArgs),
    /// End protection: holds, our snapshots, properties and settings are taken back; the data stays
    Unprotect(UnprotectArgs),
    /// Forget a peer; refused while a unit depends on it
    Unpair(PeerArgs),
    /// Start a unit here although its standbys do not answer
    StartAlone(StartAloneArgs),
    /// List peers: who they are, whether they are connected, what they may do here
    Peers,
    /// List the last replication rounds of a unit
    Rounds(RoundsArgs),
    /// Show what happened: migrations, failovers, drills, changes of role, alarms
    History(HistoryArgs),
    /// Print the node's counters in the Prometheus text format
    Metrics,
    /// Look into files that `zfs send` made
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Show the main job on this machine: two nodes, one workload, one move. No ZFS, no root
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page (roff)
    Man,
    /// The workload of the demo. Not for people
    #[command(hide = true)]
    DemoWorkload(DemoWorkloadArgs),
}

/// `init`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flocker-repl init --name a --store vault:/srv/a --listen 10.0.0.1:7001
  flocker-repl init --name a --store zfs:tank/flocker
  flocker-repl --config ./a.toml init --name a --store vault:./a --state ./a-state --listen 127.0.0.1:7001

Nothing that exists is overwritten.")]
pub(crate) struct InitArgs {
    /// What this node calls itself; letters, digits, `-`, `_` and `.`
    #[arg(long)]
    pub(crate) name: NodeName,
    /// Where it keeps datasets: `vault:DIRECTORY` (plain files, no ZFS, no root) or `zfs:DATASET`
    #[arg(long)]
    pub(crate) store: StoreUri,
    /// Where it listens for peers (UDP)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7001")]
    pub(crate) listen: SocketAddr,
    /// Where it keeps its key, its journal and its socket; /var/lib/flocker-repl for root, else in
    /// your state folder
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Addresses to give to peers, where they differ from --listen
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<String>,
}

/// `serve`
#[derive(Debug, Args)]
#[command(after_help = "\
The local API is a unix socket in the state directory; only the same user and root may use it.
Logs go to stderr; FLOCKER_REPL_LOG (for example `debug` or `flocker_engine=trace`) says how much.
SIGTERM and SIGINT end it in order; workloads started with --die-with-daemon end with it.")]
pub(crate) struct ServeArgs {
    /// End when standard input is closed, so that no node outlives whoever started it
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

/// `pair`
#[derive(Debug, Args)]
#[command(
    override_usage = "flocker-repl pair --invite [--valid DURATION] [GRANT OPTIONS]\n       \
                      flocker-repl pair HOST:PORT CODE [GRANT OPTIONS]",
    after_help = "\
One node invites and the other joins. Both show the fingerprint words of both nodes: they must be the \
same on both screens. The code is good once, for minutes; five wrong tries end the invitation.

Paired nodes may do nothing yet. On a terminal `pair` asks what to grant; elsewhere, or with the grant \
options, it does not ask.

Examples:
  flocker-repl pair --invite
  flocker-repl pair 10.0.0.1:7001 7K3F-M2QX-9
  flocker-repl pair --invite --receive recv/b --quota 100G --workload process"
)]
#[command(group(ArgGroup::new("way").required(true).args(["invite", "address"])))]
pub(crate) struct PairArgs {
    /// Invite: print an address and a one-time code, and wait for the other node
    #[arg(long, conflicts_with_all = ["address", "code"])]
    pub(crate) invite: bool,
    /// How long the invitation is valid
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub(crate) valid: Duration,
    /// Join: the address that the other node printed
    #[arg(value_name = "HOST:PORT", requires = "code")]
    pub(crate) address: Option<String>,
    /// Join: the code that the other node printed
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
    /// Let the peer keep replicas below this dataset
    #[arg(long, value_name = "DATASET", help_heading = "Grant options")]
    pub(crate) receive: Option<String>,
    /// Most bytes its replicas may use, such as 100G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "receive", help_heading = "Grant options")]
    pub(crate) quota: Option<u64>,
    /// Let its migrations start workloads of this kind (what is started, this node says with `run`)
    #[arg(long, value_name = "KIND", requires = "receive", help_heading = "Grant options")]
    pub(crate) workload: Vec<KindArg>,
}

/// `grant`
#[derive(Debug, Args)]
#[command(after_help = "\
A grant never lets a peer choose a command: what is started here is what `flocker-repl run` says here.
The new grant replaces the old one.

Examples:
  flocker-repl grant b --receive recv/b --quota 100G --workload process
  flocker-repl grant b --nothing")]
#[command(group(ArgGroup::new("what").required(true).args(["receive", "nothing"])))]
pub(crate) struct GrantArgs {
    /// The peer's name or fingerprint
    pub(crate) peer: String,
    /// It may keep replicas below this dataset
    #[arg(long, value_name = "DATASET")]
    pub(crate) receive: Option<String>,
    /// Most bytes its replicas may use, such as 100G; no limit but the store's without it
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "receive")]
    pub(crate) quota: Option<u64>,
    /// Its migrations may start workloads of this kind
    #[arg(long, value_name = "KIND", requires = "receive")]
    pub(crate) workload: Vec<KindArg>,
    /// Take the grant back
    #[arg(long)]
    pub(crate) nothing: bool,
}

/// Kinds of workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// A supervised process in the volume's path
    Process,
    /// Containers of podman
    Podman,
    /// Containers of docker
    Docker,
    /// Units of systemd
    Systemd,
    /// OCI bundles, run by runc or crun
    Oci,
    /// Containers of LXC
    Lxc,
}

/// Commands about one peer.
#[derive(Debug, Args)]
pub(crate) struct PeerArgs {
    /// The peer's name or fingerprint
    pub(crate) peer: String,
}

/// `stream`
#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// Show what a stream holds: snapshots, features, records by type
    #[command(
        after_help = "Example:\n  zfs send -c tank/db@monday | flocker-repl stream inspect -"
    )]
    Inspect(StreamArgs),
    /// Check every checksum of a stream; exit code 5 and the place where it is damaged
    #[command(after_help = "Example:\n  flocker-repl stream verify monday.zstream && echo whole")]
    Verify(StreamArgs),
}

/// `stream inspect`, `stream verify`
#[derive(Debug, Args)]
pub(crate) struct StreamArgs {
    /// A file with what `zfs send` printed; `-` is standard input
    pub(crate) file: PathBuf,
}

/// `demo`
#[derive(Debug, Args)]
#[command(after_help = "\
Two nodes run as two processes on this machine, each with its own key, journal and store. A workload \
appends numbered records to a file in its volume and acknowledges each to a client once it is on disk. \
It is replicated while it writes, then moved under load; at the end every acknowledged record has to be \
on the other node exactly once and in order. Exit code 5 if it is not.

Examples:
  flocker-repl demo
  flocker-repl demo --seconds 30 --preload 256M --rpo 500ms
  flocker-repl demo --json | jq .downtime_ms")]
pub(crate) struct DemoArgs {
    /// How long the workload writes before it is moved
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// How much data lies in the volume before it is protected
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_size)]
    pub(crate) preload: u64,
    /// How far behind the replica may be
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) rpo: Duration,
    /// Most records a second that the client sends
    #[arg(long, value_name = "RECORDS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) load: u64,
    /// Keep the directory with both nodes, their stores and logs
    #[arg(long)]
    pub(crate) keep: bool,
    /// Spoil the result before it is checked, to show that the check can fail
    #[arg(long, hide = true, value_name = "HOW")]
    pub(crate) sabotage: Option<Sabotage>,
}

/// Ways to spoil the demo's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// An acknowledged record is missing
    Lose,
    /// A record is there twice
    Repeat,
    /// Two records change places
    Swap,
    /// A record holds something else
    Alter,
    /// A byte of the data that was there before is changed
    Preload,
}

/// `completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// `demo-workload`
#[derive(Debug, Args)]
pub(crate) struct DemoWorkloadArgs {
    /// Where clients connect
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Written into each record: which node's configuration started this process
    #[arg(long)]
    pub(crate) writer: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use flocker_core::record::StopSignal;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("flocker-repl").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_and_json_go_with_every_command_on_either_side_of_it() {
        for line in [
            "--config x --json status",
            "status --config x --json",
            "stream inspect f --json --config x",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.json, "{line}");
            assert_eq!(cli.config.as_deref(), Some("x".as_ref()), "{line}");
        }
    }

    #[test]
    fn what_follows_the_dashes_of_run_is_the_commands_own() {
        let cli = parse("run db --stop-limit 30s -- server --json --config z").unwrap();
        assert!(!cli.json);
        let Command::Run(run) = cli.command else { panic!("run was parsed as {:?}", cli.command) };
        assert_eq!(run.program.command, ["server", "--json", "--config", "z"]);
        assert_eq!(run.stop_limit, Duration::from_secs(30));
    }

    #[test]
    fn signals_are_taken_with_and_without_their_prefix_in_either_case() {
        for word in ["INT", "int", "SIGINT"] {
            let cli = parse(&format!("run db --stop-signal {word} -- server")).unwrap();
            let Command::Run(run) = cli.command else { panic!("another command") };
            assert_eq!(StopSignal::from(run.stop_signal), StopSignal::Int);
        }
    }

    #[test]
    fn several_datasets_are_one_protection() {
        let cli = parse("protect a/x a/y --to b --lease 10s").unwrap();
        let Command::Protect(args) = cli.command else { panic!("another command") };
        assert_eq!(args.datasets, ["a/x", "a/y"]);
        assert_eq!(args.lease, Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_replica_to_be_adopted_may_be_named() {
        let adopt = |line: &str| {
            let cli = parse(line).unwrap();
            let Command::Protect(args) = cli.command else { panic!("another command") };
            (args.adopt, args.diverged)
        };
        assert_eq!(adopt("protect a/x --to b"), (None, false));
        assert_eq!(adopt("protect a/x --to b --adopt"), (Some(vec![]), false));
        let named = (Some(vec!["bak/x".to_owned(), "bak/y".to_owned()]), true);
        assert_eq!(adopt("protect a/x a/y --to b --diverged --adopt bak/x bak/y"), named);
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        for line in [
            "run db server",
            "run db --",
            "pair",
            "pair 127.0.0.1:1",
            "pair --invite 127.0.0.1:1 CODE",
            "pair --invite --quota 1G",
            "grant b",
            "grant b --nothing --receive x",
            "protect d --to b --rpo 1s --every 1m",
            "protect d --to b --rpo 1",
            "demo --seconds 0",
            "demo --sabotage how",
            "protect --to b",
            "protect d --to b --diverged",
            "protect d --to b --adopt --create",
            "protect --to b --adopt d",
            "protect d --to b --lease 2s",
            "protect d --to b --lease 2d",
            "migrate db",
            "migrate db --to b --cancel",
            "migrate db --cancel --dry-run",
            "migrate db --to b --budget 0s",
            "failover db --drill --primary-is-down",
            "failover db --dry-run --yes",
            "run db --stop-signal HUP -- x",
            "run db --health 5432 -- x",
            "run db --health tcp:127.0.0.1:1 --health-command x -- x",
            "run db --health-limit 5s -- x",
            "run db --address 10.0.0.1 -- x",
            "run db --forward 1=2 -- x",
            "run db --before-stop ' -- x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
