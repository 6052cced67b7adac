//! The figures of issue "One writer, always": what moves of PostgreSQL cost its clients, and what
//! protection costs PostgreSQL. `flocker-bench-moves [MOVES [ROUNDS [SECONDS]]]`, by default 200 moves
//! at 200 commits a second, then 5 rounds of pgbench of 20 s, each once protected, once
//! with as many bare snapshots and nothing else, and once left alone.
//!
//! Two nodes in network namespaces on zfs-fuse pools, all on this machine, over QUIC with encryption
//! and hashing as always. Prints a table in Markdown, and one JSON object as its last line. A move of
//! which the parts are not known (its command was cut off) is counted, and left out of the table.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flocker_tests::e2e::database::{Kind, postgres_program};
use flocker_tests::e2e::rig::{Options, Rig};
use serde_json::{Value, json};

/// The load of the moves.
const COMMITS_PER_SECOND: u32 = 200;

/// Connections.
const CLIENTS: u32 = 4;

fn argument(at: usize, default: u64) -> u64 {
    std::env::args().nth(at).map_or(default, |word| word.parse().expect("a number"))
}

/// The value that this share of all are not larger than.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// One move, milliseconds.
struct Move {
    gap: f64,
    /// The longest gap in the two seconds behind the move, when replication goes on.
    after: f64,
    parts: BTreeMap<String, f64>,
    total: f64,
    predicted: Option<f64>,
    /// PostgreSQL's own stop and start: see [`database_says`].
    database: Option<(f64, f64)>,
}

impl Move {
    fn of(report: &Value, gap: f64, after: f64, database: Option<(f64, f64)>) -> Option<Self> {
        let mut parts = BTreeMap::new();
        for (part, ms) in report["downtime_ms"].as_object()? {
            parts.insert(part.clone(), ms.as_f64()?);
        }
        let total = parts.remove("total")?;
        Some(Self {
            gap,
            after,
            parts,
            total,
            predicted: report["predicted"]["downtime_ms"].as_f64(),
            database,
        })
    }

    fn part(&self, name: &str) -> f64 {
        self.parts.get(name).copied().unwrap_or(0.0)
    }

    /// What the client waited beyond the database's own stop and start.
    fn beyond(&self) -> Option<f64> {
        self.database.map(|(stop, start)| self.gap - stop - start)
    }

    /// What is neither the database's nor the store's: our messages, records, waits, and of the fence all
    /// but the unmount, which is taken for what a bare `zfs unmount` takes here.
    fn own(&self, unmount: f64) -> f64 {
        let others = ["quiesce", "start", "snapshot", "transfer", "mount"];
        let store = others.iter().map(|part| self.part(part)).sum::<f64>();
        self.total - store - unmount.min(self.part("fence"))
    }
}

const DAY_MS: f64 = 86_400_000.0;

/// When the last line with these words was written to a log of PostgreSQL, milliseconds of the day in UTC:
/// `2026-11-26 19:45:11.123 UTC [1] LOG:  starting PostgreSQL …`.
fn said_at(log: &str, words: &str) -> Option<f64> {
    let line = log.lines().rev().find(|line| line.contains(words))?;
    let mut time = line.split(' ').nth(1)?.split(':');
    let mut next = || time.next()?.parse::<f64>().ok();
    Some(((next()? * 60.0 + next()?) * 60.0 + next()?) * 1e3)
}

/// When the kernel made this process, milliseconds of the day in UTC, to a clock tick of 10 ms (proc(5)).
fn forked_at(pid: u64) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: f64 = stat.rsplit(')').next()?.split(' ').nth(20)?.parse().ok()?;
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = boot.tv_sec as f64 * 1e3 + boot.tv_nsec as f64 / 1e6;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((now.as_secs_f64() * 1e3 - since_boot + ticks * 10.0).rem_euclid(DAY_MS))
}

/// The stop and the start that are the database's own of the move that has just been, milliseconds: from
/// the request to the last line of its log, and from the fork of its process, which our supervisor execs
/// within some 3 ms, to "ready to accept connections".
fn database_says(rig: &Rig, from: usize) -> Option<(f64, f64)> {
    let id = rig.hosts[from].unit("postgres")?["id"].as_str()?.to_owned();
    let log = |at: usize| {
        std::fs::read_to_string(rig.hosts[at].state().join("logs").join(format!("{id}.log"))).ok()
    };
    let (here, there) = (log(from)?, log(1 - from)?);
    let stop = said_at(&here, "database system is shut down")?
        - said_at(&here, "received fast shutdown request")?;
    let record = rig.hosts[1 - from].state().join("run").join(format!("{id}.json"));
    let record: Value = serde_json::from_str(&std::fs::read_to_string(record).ok()?).ok()?;
    let start =
        said_at(&there, "ready to accept connections")? - forked_at(record["pid"].as_u64()?)?;
    let plausible = |ms: f64| Some(ms.rem_euclid(DAY_MS)).filter(|ms| *ms < 60_000.0);
    Some((plausible(stop)?, plausible(start)?))
}

fn move_many(rig: &mut Rig, moves: u64) -> Vec<Move> {
    let load = rig.load(0, CLIENTS, COMMITS_PER_SECOND);
    load.wait_more(100, "before");
    let mut done = Vec::new();
    for number in 0..moves {
        let from = rig.settle(0, "bench");
        rig.hosts[from].wait_in_step("postgres");
        let begun = Instant::now();
        let report = rig.move_from(0, from, "bench");
        load.wait_more(60, "bench");
        let ended = Instant::now();
        let gap = load.ledger().longest_gap(begun, ended).as_secs_f64() * 1e3;
        // Moves do not follow upon each other in life: what is put off until clients are served is done.
        load.wait_more(2 * COMMITS_PER_SECOND as usize, "bench");
        let after = load.ledger().longest_gap(ended, Instant::now()).as_secs_f64() * 1e3;
        match Move::of(&report, gap, after, database_says(rig, from)) {
            Some(one) => {
                eprintln!("{number}: gap {gap:.0} ms, {}", report["downtime_ms"]);
                done.push(one);
            }
            None => eprintln!("{number}: gap {gap:.0} ms, no report"),
        }
    }
    rig.check(0, Some(load), "bench");
    done
}

/// What a bare `zfs unmount` takes, the median of 15, milliseconds.
fn bare_unmount(rig: &Rig) -> f64 {
    let dataset = format!("{}/floor", rig.pool(0));
    let zfs = |args: &[&str]| {
        let begun = Instant::now();
        let done = Command::new("zfs").args(args).status().expect("zfs runs");
        assert!(done.success(), "zfs {args:?}");
        begun.elapsed().as_secs_f64() * 1e3
    };
    zfs(&["create", &dataset]);
    let mut taken = Vec::new();
    for _ in 0..15 {
        taken.push(zfs(&["unmount", &dataset]));
        zfs(&["mount", &dataset]);
    }
    // It stays until the pool goes: zfs-fuse holds on to it for a moment.
    percentile(&taken, 50)
}

fn table(moves: &[Move], unmount: f64) -> Value {
    let mut rows: Vec<(String, Vec<f64>)> = vec![
        ("client's longest gap".into(), moves.iter().map(|m| m.gap).collect()),
        (
            "gap beyond the database's own stop and start".into(),
            moves.iter().filter_map(Move::beyond).collect(),
        ),
        (
            "the database's own stop".into(),
            moves.iter().filter_map(|m| Some(m.database?.0)).collect(),
        ),
        (
            "the database's own start".into(),
            moves.iter().filter_map(|m| Some(m.database?.1)).collect(),
        ),
        ("downtime as reported".into(), moves.iter().map(|m| m.total).collect()),
        ("own share".into(), moves.iter().map(|m| m.own(unmount)).collect()),
        ("longest gap in the 2 s after".into(), moves.iter().map(|m| m.after).collect()),
        (
            "own share, % of gap".into(),
            moves.iter().map(|m| 100.0 * m.own(unmount) / m.gap.max(1.0)).collect(),
        ),
    ];
    let names = [
        "quiesce", "fence", "snapshot", "transfer", "prepare", "commit", "mount", "start", "notice",
    ];
    for name in names {
        rows.push((format!("part: {name}"), moves.iter().map(|m| m.part(name)).collect()));
    }
    println!("| {} moves, ms | p50 | p95 | max |\n| --- | ---: | ---: | ---: |", moves.len());
    let mut figures = serde_json::Map::new();
    for (name, values) in &rows {
        let [p50, p95, max] = [50, 95, 100].map(|percent| percentile(values, percent));
        println!("| {name} | {p50:.0} | {p95:.0} | {max:.0} |");
        figures.insert(name.clone(), json!({"p50": p50, "p95": p95, "max": max}));
    }
    let predicted: Vec<(f64, f64)> =
        moves.iter().filter_map(|m| Some((m.predicted?, m.total))).collect();
    let close = predicted.iter().filter(|(was, is)| (was - is).abs() <= 0.3 * is).count();
    println!("| predictions within 30 % | {close} of {} | | |", predicted.len());
    figures.insert("predictions".into(), json!({"close": close, "all": predicted.len()}));
    figures.into()
}

/// Transactions a second and the 99th percentile of latency in milliseconds of one run of pgbench.
fn pgbench(rig: &Rig, at: usize, seconds: u64, dir: &Path) -> (f64, f64) {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", rig.wire.names[0]))
        .arg(postgres_program("pgbench"))
        .args(["-h", &rig.wire.addresses[at], "-U", "postgres", "-n", "-c", "4", "-j", "1"])
        .args(["-T", &seconds.to_string(), "-l", "--log-prefix=pgbench", "postgres"])
        .current_dir(dir)
        .output()
        .expect("pgbench runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pgbench: {words}");
    let tps =
        text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(dir).expect("its logs").flatten() {
        let log = std::fs::read_to_string(entry.path()).expect("a log");
        // client, transaction, latency in microseconds, …
        latencies.extend(log.lines().filter_map(|l| l.split(' ').nth(2)?.parse::<f64>().ok()));
        std::fs::remove_file(entry.path()).expect("a log of ours");
    }
    (tps.unwrap_or_else(|| panic!("no tps in {text}")), percentile(&latencies, 99) / 1e3)
}

/// How PostgreSQL's volume is treated while pgbench runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// Replication paused.
    Alone,
    /// Replication paused, and as many bare `zfs snapshot` and `zfs destroy` as replication makes: what
    /// the store itself takes for it.
    Bare,
    /// Replicated.
    Protected,
}

/// `zfs snapshot` every so often, the one before destroyed, until told to stop.
fn snapshot_bare(dataset: &str, period: Duration, stop: &AtomicBool) {
    let zfs = |args: [&str; 2]| {
        let done = Command::new("zfs").args(args).status().expect("zfs runs");
        assert!(done.success(), "zfs {args:?}");
    };
    let mut last: Option<String> = None;
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        number += 1;
        let name = format!("{dataset}@bare-{number}");
        zfs(["snapshot", &name]);
        if let Some(old) = last.replace(name) {
            zfs(["destroy", &old]);
        }
        std::thread::sleep(period.saturating_sub(begun.elapsed()));
    }
    if let Some(old) = last {
        zfs(["destroy", &old]);
    }
}

fn rounds_done(rig: &Rig, at: usize) -> u64 {
    let unit = rig.hosts[at].unit("postgres").expect("its status");
    unit["standbys"][0]["rounds"].as_u64().unwrap_or_else(|| panic!("no rounds in {unit:#}"))
}

fn protection(rig: &Rig, rounds: u64, seconds: u64) -> Value {
    use Treatment::{Alone, Bare, Protected};
    let at = rig.settle(0, "pgbench");
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", rig.wire.names[0]))
        .arg(postgres_program("pgbench"))
        .args(["-h", &rig.wire.addresses[at], "-U", "postgres", "-i", "-q", "-s", "2", "postgres"])
        .output()
        .expect("pgbench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unit = rig.hosts[at].unit("postgres").expect("its status");
    let dataset = unit["volumes"][0]["dataset"].as_str().expect("its dataset").to_owned();
    let order = [Protected, Bare, Alone];
    let mut figures: [Vec<(f64, f64)>; 3] = Default::default();
    let mut period = Duration::from_secs(1);
    for round in 0..rounds {
        // Whoever is first gains or loses by it: they take turns, and then go backwards.
        for turn in 0..order.len() {
            let turn = if round % 2 == 0 { turn } else { order.len() - 1 - turn };
            let treatment = order[turn];
            rig.hosts[at]
                .ok(&[if treatment == Protected { "resume" } else { "pause" }, "postgres"]);
            if treatment == Protected {
                rig.hosts[at].wait_in_step("postgres");
            }
            let before = rounds_done(rig, at);
            let stop = AtomicBool::new(false);
            let (tps, p99) = std::thread::scope(|scope| {
                if treatment == Bare {
                    scope.spawn(|| snapshot_bare(&dataset, period, &stop));
                }
                let figures = pgbench(rig, at, seconds, dir.path());
                stop.store(true, Ordering::SeqCst);
                figures
            });
            if treatment == Protected {
                let done = (rounds_done(rig, at) - before).max(1);
                period = Duration::from_millis(seconds * 1_000 / done);
            }
            eprintln!(
                "pgbench {round}, {treatment:?}, each {period:?}: {tps:.0} tps, p99 {p99:.1} ms"
            );
            figures[turn].push((tps, p99));
        }
    }
    rig.hosts[at].ok(&["resume", "postgres"]);
    let median = |which: usize, what: fn(&(f64, f64)) -> f64| {
        percentile(&figures[which].iter().map(what).collect::<Vec<_>>(), 50)
    };
    let [with, bare, alone] =
        [0, 1, 2].map(|which| (median(which, |f| f.0), median(which, |f| f.1)));
    println!(
        "\n| pgbench, medians of {rounds} | unprotected | bare snapshots | RPO 1 s | to unprotected | to bare |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, pick) in [("tps", (|f| f.0) as fn((f64, f64)) -> f64), ("p99, ms", |f| f.1)] {
        let [a, b, w] = [alone, bare, with].map(pick);
        println!("| {name} | {a:.1} | {b:.1} | {w:.1} | {:.2} | {:.2} |", w / a, w / b);
    }
    json!({
        "tps": {"unprotected": alone.0, "bare": bare.0, "protected": with.0},
        "p99_ms": {"unprotected": alone.1, "bare": bare.1, "protected": with.1},
        "bare_period_ms": period.as_millis() as u64,
    })
}

fn main() {
    let (moves, rounds, seconds) = (argument(1, 200), argument(2, 5), argument(3, 20));
    let options = Options {
        test: "flocker-bench-moves",
        number: 60,
        kinds: &[Kind::Postgres],
        rpo: "1s",
        proxied: false,
    };
    let Some(mut rig) = Rig::build(&options) else { std::process::exit(2) };
    let mut figures = json!({});
    if moves > 0 {
        let unmount = bare_unmount(&rig);
        println!("a bare zfs unmount: {unmount:.1} ms\n");
        let done = move_many(&mut rig, moves);
        figures["moves"] = table(&done, unmount);
        figures["bare_unmount_ms"] = json!(unmount);
    }
    if rounds > 0 {
        figures["pgbench"] = protection(&rig, rounds, seconds);
    }
    println!("\n{figures}");
}
