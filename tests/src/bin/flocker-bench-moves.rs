//! The figures of issue "One writer, always": what moves of PostgreSQL cost its clients, and what
//! protection costs PostgreSQL. `flocker-bench-moves [MOVES [ROUNDS [SECONDS]]]`, by default 200 moves
//! at 200 commits a second, then 5 rounds of pgbench of 20 s, each once protected and once not.
//!
//! Two nodes in network namespaces on zfs-fuse pools, all on this machine, over QUIC with encryption
//! and hashing as always. Prints a table in Markdown, and one JSON object as its last line. A move of
//! which the parts are not known (its command was cut off) is counted, and left out of the table.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

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
    parts: BTreeMap<String, f64>,
    total: f64,
    predicted: Option<f64>,
}

impl Move {
    fn of(report: &Value, gap: f64) -> Option<Self> {
        let mut parts = BTreeMap::new();
        for (part, ms) in report["downtime_ms"].as_object()? {
            parts.insert(part.clone(), ms.as_f64()?);
        }
        let total = parts.remove("total")?;
        Some(Self { gap, parts, total, predicted: report["predicted"]["downtime_ms"].as_f64() })
    }

    fn part(&self, name: &str) -> f64 {
        self.parts.get(name).copied().unwrap_or(0.0)
    }

    /// What the client waited beyond the database's own stop and start.
    fn beyond(&self) -> f64 {
        self.gap - self.part("quiesce") - self.part("start")
    }

    /// What is neither the database's nor the store's: our messages, records, waits. The unmount is a
    /// part of `fence`, which is not counted to us here; see `fence` beside it.
    fn own(&self) -> f64 {
        let others = ["quiesce", "start", "snapshot", "transfer", "mount", "fence"];
        self.total - others.iter().map(|part| self.part(part)).sum::<f64>()
    }
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
        let gap = load.ledger().longest_gap(begun, Instant::now()).as_secs_f64() * 1e3;
        match Move::of(&report, gap) {
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

fn table(moves: &[Move]) -> Value {
    let mut rows: Vec<(String, Vec<f64>)> = vec![
        ("client's longest gap".into(), moves.iter().map(|m| m.gap).collect()),
        ("gap beyond stop and start".into(), moves.iter().map(Move::beyond).collect()),
        ("downtime as reported".into(), moves.iter().map(|m| m.total).collect()),
        ("own share".into(), moves.iter().map(Move::own).collect()),
        (
            "own share, % of gap".into(),
            moves.iter().map(|m| 100.0 * m.own() / m.gap.max(1.0)).collect(),
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

fn protection(rig: &Rig, rounds: u64, seconds: u64) -> Value {
    let at = rig.settle(0, "pgbench");
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", rig.wire.names[0]))
        .arg(postgres_program("pgbench"))
        .args(["-h", &rig.wire.addresses[at], "-U", "postgres", "-i", "-q", "-s", "2", "postgres"])
        .output()
        .expect("pgbench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        // Whoever is first gains or loses by it: they take turns.
        for turn in 0..2 {
            let protected = (round + turn) % 2 == 0;
            rig.hosts[at].ok(&[if protected { "resume" } else { "pause" }, "postgres"]);
            if protected {
                rig.hosts[at].wait_in_step("postgres");
            }
            let (tps, p99) = pgbench(rig, at, seconds, dir.path());
            eprintln!("pgbench {round}, protected {protected}: {tps:.0} tps, p99 {p99:.1} ms");
            figures[usize::from(protected)].push((tps, p99));
        }
    }
    rig.hosts[at].ok(&["resume", "postgres"]);
    let median = |which: usize, what: fn(&(f64, f64)) -> f64| {
        percentile(&figures[which].iter().map(what).collect::<Vec<_>>(), 50)
    };
    let [alone, with] = [0, 1].map(|which| (median(which, |f| f.0), median(which, |f| f.1)));
    let (tps, p99) = (with.0 / alone.0, with.1 / alone.1);
    println!("\n| pgbench, medians of {rounds} | unprotected | RPO 1 s | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    println!("| tps | {:.0} | {:.0} | {tps:.2} |", alone.0, with.0);
    println!("| p99, ms | {:.1} | {:.1} | {p99:.2} |", alone.1, with.1);
    json!({"tps": [alone.0, with.0, tps], "p99_ms": [alone.1, with.1, p99]})
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
        let done = move_many(&mut rig, moves);
        figures["moves"] = table(&done);
    }
    if rounds > 0 {
        figures["pgbench"] = protection(&rig, rounds, seconds);
    }
    println!("\n{figures}");
}
