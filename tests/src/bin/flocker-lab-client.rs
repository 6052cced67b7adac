//! What clients of a moving workload do, and what they felt: runs on a guest of its own.
//!
//!     flocker-lab-client ledger postgres|redis ADDRESS CLIENTS STOP    transactions that are never repeated
//!     flocker-lab-client open ADDRESS CONNECTIONS STOP                 connections to Redis that are never made again
//!
//! Goes on until the file STOP exists, then prints one JSON object. `ledger` looks into the database in the end: each
//! acknowledged transaction there exactly once, each unanswered one at most once. `open` counts up: each reply is the
//! one before and one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use flocker_tests::e2e::database::wire::Redis;
use flocker_tests::e2e::database::{Connection, Kind, Load, Plan, judge};
use serde_json::{Value, json};

/// Shorter pauses between two answers are not worth a line.
const GAP: Duration = Duration::from_millis(100);

/// How long one answer is waited for over a connection that is not to break.
const OPEN_LIMIT: Duration = Duration::from_secs(180);

/// How long the database may take to answer in the end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// A client on such a connection asks this often.
const PACE: Duration = Duration::from_millis(20);

fn wall_ms(at: Instant, now: (Instant, SystemTime)) -> u64 {
    let since = now.1.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ago = now.0.saturating_duration_since(at);
    u64::try_from(since.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX)
}

/// `[begin, ms]` of each time without any answer, begin by the wall clock; one that lasts still counts.
fn gaps(mut answers: Vec<Instant>) -> Vec<[u64; 2]> {
    let now = (Instant::now(), SystemTime::now());
    answers.push(now.0);
    answers.sort_unstable();
    let pairs = answers.windows(2).filter(|pair| pair[1] - pair[0] >= GAP);
    let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    pairs.map(|pair| [wall_ms(pair[0], now), ms(pair[1] - pair[0])]).collect()
}

fn wait_for(stop: &Path) {
    while !stop.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ledger(kind: Kind, address: SocketAddr, clients: u32, stop: &Path) -> Value {
    let until = Instant::now() + END_LIMIT;
    while let Err(error) =
        Connection::open(kind, address, Duration::from_secs(10)).and_then(|mut c| c.prepare())
    {
        assert!(Instant::now() < until, "the database at {address} does not answer: {error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A load of its own, whatever was written before.
    let load = wall_ms(Instant::now(), (Instant::now(), SystemTime::now()));
    let addresses = vec![address];
    let load = Load::start(&Plan { kind, netns: None, addresses, load, clients, per_second: 0 });
    wait_for(stop);
    let ledger = load.stop();
    let gaps = gaps(ledger.acked.values().copied().collect());
    let until = Instant::now() + END_LIMIT;
    let written = loop {
        let read =
            Connection::open(kind, address, Duration::from_secs(60)).and_then(|mut c| c.read());
        match read {
            Ok(written) => break written,
            Err(error) => assert!(Instant::now() < until, "what was written is not told: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let ours: Vec<_> = {
        let load = ledger.acked.keys().chain(&ledger.unanswered).next().map(|t| t.load);
        written.into_iter().filter(|w| Some(w.transaction.load) == load).collect()
    };
    let damage = judge(&ours, &ledger, u64::MAX);
    json!({
        "acknowledged": ledger.acked.len(),
        "unanswered": ledger.unanswered.len(),
        "lost_connections": ledger.lost_connections,
        "there": ours.len(),
        "missing": damage.missing.len(),
        "duplicates": damage.duplicates.len(),
        "invented": damage.invented.len(),
        "gaps": gaps,
    })
}

fn open(address: SocketAddr, connections: usize, stop: &Path) -> Value {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let threads = (0..connections).map(|number| {
        let (answers, stop) = (Arc::clone(&answers), stop.to_owned());
        std::thread::spawn(move || keep_open(address, number, &answers, &stop))
    });
    let threads: Vec<_> = threads.collect();
    let (mut replies, mut troubles) = (0, Vec::new());
    for thread in threads {
        match thread.join().unwrap_or_else(|_| Err("a client panicked".into())) {
            Ok(count) => replies += count,
            Err(trouble) => troubles.push(trouble),
        }
    }
    let answers = std::mem::take(&mut *answers.lock().expect("nobody panicked"));
    json!({ "replies": replies, "troubles": troubles, "gaps": gaps(answers) })
}

/// One connection for all its life: how many replies, or what was wrong.
fn keep_open(
    address: SocketAddr,
    number: usize,
    answers: &Mutex<Vec<Instant>>,
    stop: &Path,
) -> Result<u64, String> {
    let failed =
        |count: u64, what: String| format!("connection {number} after {count} replies: {what}");
    let mut redis = Redis::connect(address, OPEN_LIMIT).map_err(|e| failed(0, e.to_string()))?;
    let (mut last, mut count) = (None, 0);
    while !stop.exists() {
        let reply = redis
            .command(&["INCR", &format!("counter:{number}")])
            .map_err(|error| failed(count, error.to_string()))?;
        let value: u64 = reply
            .first()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| failed(count, format!("{reply:?}")))?;
        if last.is_some_and(|last: u64| value != last + 1) {
            return Err(failed(count, format!("{value} came after {last:?}")));
        }
        (last, count) = (Some(value), count + 1);
        answers.lock().expect("nobody panicked").push(Instant::now());
        std::thread::sleep(PACE);
    }
    Ok(count)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let address = |text: &str| text.parse().expect("IP:PORT");
    let result = match words[..] {
        ["ledger", kind, at, clients, stop] => {
            let kind = match kind {
                "postgres" => Kind::Postgres,
                "redis" => Kind::Redis,
                other => panic!("nobody speaks {other}"),
            };
            let clients = clients.parse().expect("a number of clients");
            ledger(kind, address(at), clients, &PathBuf::from(stop))
        }
        ["open", at, connections, stop] => {
            let connections = connections.parse().expect("a number of connections");
            open(address(at), connections, &PathBuf::from(stop))
        }
        _ => panic!("usage: ledger KIND ADDRESS CLIENTS STOP | open ADDRESS CONNECTIONS STOP"),
    };
    println!("{result}");
}
