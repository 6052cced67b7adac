//! What happens in the demo, in order: two nodes, a pair, a volume with its workload, replication, the
//! move, and what is found afterwards.
//!
//! Owns: the order, and what is told on the way. Leaves to others: the conditions ([`super::verdict`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use flocker_core::status::UnitStatus;
use flocker_engine::api::{InviteOpen, NodeView, StampedRound};
use indicatif::ProgressBar;
use serde::Deserialize;

use super::load::Load;
use super::nodes::{Node, Sweep, free_addresses, workloads};
use super::verdict::{ClientView, Facts, client_for_people, whole_ms};
use super::{interrupt, ledger, preload, sabotage};
use crate::args::DemoArgs;
use crate::out::Out;
use crate::quantity::{bytes, count, millis};
use crate::render::migration::{self, Migration};
use crate::render::rounds;

/// The unit.
const UNIT: &str = "db";

/// Its volume, from the store's root on.
const DATASET: &str = "data/db";

/// How long anything may take that should take moments.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at the source while it replicates.
const WATCH: Duration = Duration::from_millis(250);

/// How long the client goes on after the move, at most.
const AFTER: Duration = Duration::from_secs(3);

/// Rounds shown at the beginning and at the end of a long list.
const SHOWN: usize = 4;

/// Tells the story on stdout, unless only an object is wanted.
struct Teller<'a> {
    out: &'a Out,
    chapter: u32,
}

impl Teller<'_> {
    fn chapter(&mut self, title: &str) -> anyhow::Result<()> {
        self.chapter += 1;
        let title = format!("{}  {title}", self.chapter);
        self.text(&format!("\n{}\n", self.out.theme.strong(&title)))
    }

    fn command(&self, node: &str, words: &[&str]) -> anyhow::Result<()> {
        let line = format!("{node}$ flocker-repl {}", words.join(" "));
        self.text(&format!("  {}\n", self.out.theme.accent(&line)))
    }

    fn say(&self, words: &str) -> anyhow::Result<()> {
        self.text(&format!("  {words}\n"))
    }

    fn text(&self, text: &str) -> anyhow::Result<()> {
        if self.out.json { Ok(()) } else { self.out.text(text) }
    }
}

/// The first line of `pair --invite --json`.
#[derive(Deserialize)]
struct Invitation {
    invitation: InviteOpen,
}

/// The last line of `pair --json`.
#[derive(Deserialize)]
struct Paired {
    paired: Words,
}

#[derive(Deserialize)]
struct Words {
    words: String,
    own_words: String,
}

/// What `rounds --json` prints.
#[derive(Deserialize)]
struct Rounds {
    rounds: Vec<StampedRound>,
}

/// Everything that runs. Fields are dropped in this order: client, nodes, whatever is left.
struct Stage {
    load: Option<Load>,
    a: Node,
    b: Node,
    _sweep: Sweep,
    workload: SocketAddr,
    seed: [u8; 32],
}

/// Plays the demo in `dir`.
///
/// # Errors
/// Anything that kept it from reaching a verdict.
pub(crate) fn play(out: &Out, args: &DemoArgs, dir: &Path) -> anyhow::Result<Facts> {
    let mut teller = Teller { out, chapter: 0 };
    teller.text(
        "Two nodes on this machine, one workload, one move. Each command is one a person would type.\n",
    )?;
    let mut stage = set_up(&mut teller, dir)?;
    pair(&mut teller, &mut stage)?;
    let preload = protect(&mut teller, &mut stage, args)?;
    let before = replicate(&mut teller, &mut stage, args)?;
    let (migration, client) = migrate(&mut teller, &mut stage, args, before.gap)?;
    finish(&mut teller, stage, args, dir, Told { preload, before, migration, client })
}

/// What is known before the end.
struct Told {
    preload: Preload,
    before: Before,
    migration: Migration,
    client: ClientView,
}

struct Preload {
    hash: blake3::Hash,
}

struct Before {
    gap: Duration,
    epoch: u64,
}

fn set_up(teller: &mut Teller<'_>, dir: &Path) -> anyhow::Result<Stage> {
    teller.chapter("Two nodes")?;
    let ([a_listen, b_listen], workload) = free_addresses()?;
    let start = |name: &'static str, listen: SocketAddr| -> anyhow::Result<Node> {
        let listen_text = listen.to_string();
        let store = format!("vault:{name}/vault");
        let words = ["init", "--name", name, "--store", &store, "--listen", &listen_text];
        teller.command(name, &words)?;
        teller.command(name, &["serve"])?;
        Node::start(name, &dir.join(name), listen)
    };
    let sweep = Sweep(workload);
    let a = start("a", a_listen)?;
    let b = start("b", b_listen)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no random numbers")?;
    teller.say(&format!("both run: pids {} and {}", a.pid(), b.pid()))?;
    Ok(Stage { load: None, a, b, _sweep: sweep, workload, seed })
}

fn pair(teller: &mut Teller<'_>, stage: &mut Stage) -> anyhow::Result<()> {
    teller.chapter("A pair, by a one-time code")?;
    let invite = ["pair", "--invite", "--receive", "recv/b", "--workload", "process"];
    teller.command("a", &invite)?;
    let mut inviting = stage.a.follow(&invite)?;
    let open = inviting.line::<Invitation>()?.invitation;
    teller.say(&format!("code {}", open.code))?;
    let address = stage.a.listen.to_string();
    let join = ["pair", &address, &open.code, "--receive", "recv/a", "--workload", "process"];
    teller.command("b", &join)?;
    let joined: Paired = stage.b.ask(&join)?;
    let invited: Paired = inviting.end()?;
    anyhow::ensure!(
        joined.paired.words == invited.paired.own_words
            && joined.paired.own_words == invited.paired.words,
        "the two nodes show different fingerprint words"
    );
    for (node, other) in [(&stage.a, "b"), (&stage.b, "a")] {
        interrupt::until("the connection of the pair", PATIENCE, || {
            let view = node.status()?;
            let mut peers = view.node.peers.iter();
            Ok(peers.any(|peer| peer.connected && peer.record.name == other))
        })?;
    }
    teller.say(&format!("both show for a: {}", invited.paired.own_words))?;
    teller.say(&format!("both show for b: {}", joined.paired.own_words))
}

/// Our unit as a node shows it.
fn unit(view: &NodeView) -> Option<&UnitStatus> {
    view.node.units.iter().find(|unit| unit.name == UNIT)
}

/// Where the unit's first volume is reachable on this node now.
fn live_path(view: &NodeView) -> Option<PathBuf> {
    let volume = unit(view)?.volumes.first()?;
    view.paths.get(volume.dataset.as_str()).cloned()
}

/// Waits for the live path.
fn wait_for_path(node: &Node) -> anyhow::Result<PathBuf> {
    let mut path = None;
    let what = format!("the volume to be reachable on node {}", node.name);
    interrupt::until(&what, PATIENCE, || {
        path = live_path(&node.status()?);
        Ok(path.is_some())
    })?;
    path.context("a path that was there a moment ago")
}

fn protect(teller: &mut Teller<'_>, stage: &mut Stage, args: &DemoArgs) -> anyhow::Result<Preload> {
    teller.chapter("A volume and its workload")?;
    let rpo = match args.rpo.subsec_millis() {
        0 => format!("{}s", args.rpo.as_secs()),
        _ => format!("{}ms", args.rpo.as_millis()),
    };
    let words = ["protect", DATASET, "--create", "--to", "b", "--rpo", &rpo];
    teller.command("a", &words)?;
    stage.a.tell(&words)?;
    let path = wait_for_path(&stage.a)?;
    let hash = preload::write(&path, args.preload, &stage.seed)
        .and_then(|()| preload::hash(&path))
        .with_context(|| format!("cannot write into {}", path.display()))?;
    teller.say(&format!("{} of data are put there", bytes(args.preload)))?;
    run_workloads(teller, stage)?;
    Ok(Preload { hash })
}

/// The same command on both nodes, each in its own words: who runs it is the only difference.
fn run_workloads(teller: &mut Teller<'_>, stage: &mut Stage) -> anyhow::Result<()> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let exe = exe.to_str().context("this program's path is not text")?;
    let address = stage.workload.to_string();
    for node in [&mut stage.a, &mut stage.b] {
        let what = format!("node {} to know the unit", node.name);
        interrupt::until(&what, PATIENCE, || {
            node.check_alive()?;
            Ok(unit(&node.status()?).is_some())
        })?;
        let options = ["run", UNIT, "--stop-limit", "5s", "--die-with-daemon", "--"];
        let command = ["demo-workload", "--listen", &address, "--writer", node.name];
        let shown = [&options[..], &["flocker-repl"], &command].concat();
        teller.command(node.name, &shown)?;
        let words = [&options[..], &[exe], &command].concat();
        node.tell(&words)?;
    }
    Ok(())
}

fn replicate(
    teller: &mut Teller<'_>,
    stage: &mut Stage,
    args: &DemoArgs,
) -> anyhow::Result<Before> {
    teller.chapter("It writes, and is replicated while it does")?;
    let load = stage.load.insert(Load::start(stage.workload, args.load, stage.seed));
    interrupt::until("the first acknowledgement", PATIENCE, || {
        stage.a.check_alive()?;
        Ok(load.counts("a").1 > 0)
    })?;
    load.next_part();
    let bar = (teller.out.terminal && !teller.out.json).then(ProgressBar::new_spinner);
    let end = Instant::now() + Duration::from_secs(args.seconds);
    while Instant::now() < end {
        interrupt::sleep(WATCH)?;
        stage.a.check_alive()?;
        stage.b.check_alive()?;
        if let Some(bar) = &bar {
            bar.set_message(glance(&stage.a.status()?, load.counts("a").0));
            bar.tick();
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    // The move would wait for the first full copy too, but it is no part of what a move takes.
    interrupt::until("the first full copy", PATIENCE * 4, || {
        stage.a.check_alive()?;
        Ok(unit(&stage.a.status()?)
            .is_some_and(|unit| unit.standbys.iter().any(|standby| standby.lag_ms.is_some())))
    })?;
    let view = stage.a.status()?;
    let gap = load.next_part();
    teller.say(&glance(&view, load.counts("a").0))?;
    let told: Rounds = stage.a.ask(&["rounds", UNIT, "--last", "1000"])?;
    teller.text(&shortened(&told.rounds, teller.out))?;
    let epoch = unit(&view).map_or(0, |unit| unit.epoch.number);
    Ok(Before { gap, epoch })
}

/// One line of what is going on.
fn glance(view: &NodeView, acked: u64) -> String {
    let standby = unit(view).and_then(|unit| unit.standbys.first().map(|first| (unit, first)));
    let behind = match standby {
        Some((unit, standby)) => match standby.lag_ms {
            Some(lag) => {
                format!("; b is {} behind, {} promised", millis(lag), millis(unit.policy.rpo_ms()))
            }
            None => "; how far b is behind is not known yet".into(),
        },
        None => String::new(),
    };
    let sent = standby.map_or_else(String::new, |(_, standby)| {
        format!(", {} in {}", bytes(standby.stream_bytes), count(standby.rounds, "round"))
    });
    format!("{} acknowledged{sent}{behind}", count(acked, "record"))
}

/// The rounds as a table; of a long list the beginning and the end.
fn shortened(stamped: &[StampedRound], out: &Out) -> String {
    let all: Vec<_> = stamped.iter().map(|stamped| stamped.round.clone()).collect();
    if all.len() <= 2 * SHOWN + 1 {
        return rounds::table_of(&all, 2, out.theme);
    }
    let ends = [&all[..SHOWN], &all[all.len() - SHOWN..]].concat();
    let mut lines: Vec<String> =
        rounds::table_of(&ends, 2, out.theme).lines().map(|line| format!("{line}\n")).collect();
    let left_out = all.len() - 2 * SHOWN;
    let gap = format!("      … {} like these\n", count(left_out as u64, "round"));
    lines.insert(1 + SHOWN, out.theme.dim(&gap));
    lines.concat()
}

fn migrate(
    teller: &mut Teller<'_>,
    stage: &mut Stage,
    args: &DemoArgs,
    gap_before: Duration,
) -> anyhow::Result<(Migration, ClientView)> {
    teller.chapter("It moves, under load")?;
    let words = ["migrate", UNIT, "--to", "b"];
    teller.command("a", &words)?;
    let migration: Migration = stage.a.ask(&words)?;
    let load = stage.load.as_mut().context("the client runs")?;
    interrupt::until("the first acknowledgement from b", PATIENCE, || {
        stage.b.check_alive()?;
        Ok(load.counts("b").1 > 0)
    })?;
    let gap = load.next_part();
    teller.text(&migration::for_people(&migration, teller.out.theme))?;
    interrupt::sleep(AFTER.min(Duration::from_secs(args.seconds)))?;
    let gap_after = load.next_part();
    load.stop();
    let heard = load.heard();
    let by = |writer: &str| heard.by_writer.get(writer).copied().unwrap_or(0);
    let client = ClientView {
        longest_gap_ms: whole_ms(gap),
        longest_gap_before_ms: whole_ms(gap_before),
        longest_gap_after_ms: whole_ms(gap_after),
        reconnects: heard.reconnects,
        errors: heard.errors,
        acked_by_source: by("a"),
        acked_by_target: by("b"),
    };
    teller.text(&client_for_people(&client, teller.out.theme))?;
    Ok((migration, client))
}

fn finish(
    teller: &mut Teller<'_>,
    mut stage: Stage,
    args: &DemoArgs,
    dir: &Path,
    told: Told,
) -> anyhow::Result<Facts> {
    teller.chapter("What is there")?;
    let left_on_source =
        workloads(stage.workload).iter().filter(|(writer, _)| writer != "b").count();
    let mut source_role = String::new();
    // Not reaching it is a finding, not an error: the verdict says what the role was.
    let turned = interrupt::until("the old primary to follow", PATIENCE, || {
        let view = stage.a.status()?;
        source_role = unit(&view).map_or_else(|| "unknown".into(), |unit| unit.role.clone());
        Ok(source_role == "standby")
    });
    if turned.is_err() {
        interrupt::check()?;
    }
    let path = wait_for_path(&stage.b)?;
    let words = ["stop", UNIT];
    teller.command("b", &words)?;
    stage.b.tell(&words)?;
    let ask = ["rounds", UNIT, "--last", "1000"];
    let mut rounds = stage.a.ask::<Rounds>(&ask)?.rounds;
    rounds.extend(stage.b.ask::<Rounds>(&ask)?.rounds);
    rounds.sort_by_key(|round| round.at_unix_ms);
    if let Some(how) = args.sabotage {
        sabotage::spoil(&path, how)?;
    }
    let load = stage.load.as_ref().context("the client ran")?;
    let acked = load.heard().acked;
    let findings = ledger::check(&path, &acked, |number| load.payload(number))?;
    let node_pids = [stage.a.pid(), stage.b.pid()];
    Ok(Facts {
        findings,
        rounds,
        migration: told.migration,
        client: told.client,
        epoch_before: told.before.epoch,
        source_role,
        left_on_source,
        node_pids,
        nodes_alive: stage.a.is_alive() && stage.b.is_alive(),
        preload_bytes: args.preload,
        preload_same: preload::hash(&path).is_ok_and(|hash| hash == told.preload.hash),
        directory: args.keep.then(|| dir.to_owned()),
    })
}
