//! `kill -9` of either node in the middle of a full send, of an increment, and of each phase of a
//! migration: after a restart it goes on, one writer, every acknowledged record there exactly once.
//!
//! A failpoint makes the process kill itself at the named place; nothing is flushed, nothing is
//! said. The workload is set to run on without its daemon, so a dead source still serves.

use std::path::PathBuf;
use std::process::Child;

use flocker_tests::e2e::host::free_tcp_port;
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::{Host, Ledger, World};

struct Pair {
    world: World,
    a: Host,
    b: Host,
    address: String,
}

impl Pair {
    /// Paired, protected, in step, the workload running on `a`.
    fn new() -> Self {
        let pair = Self::unprotected();
        pair.protect();
        pair.run();
        pair.a.wait_in_step("db");
        pair
    }

    fn unprotected() -> Self {
        let world = World::new();
        let (a, b) = world.vault_pair();
        let address = format!("127.0.0.1:{}", free_tcp_port());
        Self { world, a, b, address }
    }

    fn protect(&self) {
        let args =
            ["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "200ms", "--create"];
        self.a.ok(&args);
        self.b.wait_unit("db", "known", |u| u["role"] == "standby");
    }

    fn run(&self) {
        let workload = workload_binary().display().to_string();
        for host in [&self.b, &self.a] {
            host.ok(&["run", "db", "--", &workload, &self.address]);
        }
        self.a.wait_serving("db");
    }

    fn volume(&self, host: &Host) -> PathBuf {
        let unit = host.unit("db").expect("the unit");
        let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
        self.world.path().join(format!("{}-vault", host.name)).join("live").join(dataset)
    }

    /// How many processes of the workload serve this pair's address.
    fn writers(&self) -> usize {
        let mut count = 0;
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let path = entry.path().join("cmdline");
            let Ok(line) = std::fs::read(&path) else { continue };
            let words: Vec<_> = line.split(|b| *b == 0).collect();
            let is_workload = words.first().is_some_and(|w| w.ends_with(b"flocker-test-workload"));
            if is_workload && words.contains(&self.address.as_bytes()) {
                count += 1;
            }
        }
        count
    }

    /// After everything is up again: one primary, one writer, and the ledger complete.
    fn settle_and_judge(&self, ledger: Ledger, context: &str) {
        ledger.wait_more(20);
        let primaries: Vec<&Host> = [&self.a, &self.b]
            .into_iter()
            .filter(|h| h.unit("db").is_some_and(|u| u["role"] == "primary"))
            .collect();
        assert_eq!(primaries.len(), 1, "{context}: one primary");
        let primary = primaries[0];
        primary.wait_serving("db");
        assert_eq!(self.writers(), 1, "{context}: one writer");
        let verdict = ledger.verdict(&self.volume(primary));
        assert!(verdict.holds(), "{context}: {verdict:?}");
    }
}

fn restart(host: &mut Host, failpoint: Option<&str>) {
    host.kill();
    host.serve_with(failpoint);
    host.wait_up();
}

/// One migration in which `victim` dies at `failpoint`; the workload writes throughout.
fn crash_in_migration(victim: &str, failpoint: &str) {
    let mut pair = Pair::new();
    let ledger = Ledger::start(std::slice::from_ref(&pair.address));
    ledger.wait_more(10);
    let host = if victim == "a" { &mut pair.a } else { &mut pair.b };
    restart(host, Some(failpoint));
    pair.a.wait_connected("b");
    pair.b.wait_connected("a");
    pair.a.wait_serving("db");
    pair.a.wait_unit("db", "in step again", |u| u["standbys"][0]["lag_ms"].is_u64());
    let migrate: Child = pair.a.spawn(&["migrate", "db", "--to", "b", "--json"]);
    let host = if victim == "a" { &mut pair.a } else { &mut pair.b };
    host.wait_killed();
    host.serve();
    let _ = migrate.wait_with_output();
    pair.settle_and_judge(ledger, &format!("{victim} at {failpoint}"));
    // And what was interrupted can be done.
    let (from, to) = match pair.a.unit("db").expect("the unit")["role"].as_str() {
        Some("primary") => (&pair.a, &pair.b),
        _ => (&pair.b, &pair.a),
    };
    from.wait_in_step("db");
    move_unit(from, &to.name);
    to.wait_serving("db");
    assert_eq!(pair.writers(), 1, "{victim} at {failpoint}: one writer after another move");
}

macro_rules! crashes {
    ($($name:ident: $victim:literal at $failpoint:literal;)*) => {
        $(#[test]
        fn $name() {
            crash_in_migration($victim, $failpoint);
        })*
    };
}

crashes! {
    source_dies_in_preflight: "a" at "phase:preflight";
    source_dies_while_converging: "a" at "phase:converge";
    source_dies_while_quiescing: "a" at "phase:quiesce";
    source_dies_after_the_workload_stopped: "a" at "phase:fence";
    source_dies_before_the_final_snapshot: "a" at "phase:snapshot";
    source_dies_in_the_final_transfer: "a" at "phase:transfer";
    source_dies_while_preparing: "a" at "phase:prepare";
    source_dies_before_its_commit_is_durable: "a" at "before-persist:handed-over";
    source_dies_between_commit_and_question: "a" at "after-persist:handed-over";
    source_dies_after_the_answer: "a" at "phase:activate";
    target_dies_before_it_is_ready: "b" at "before-persist:ready";
    target_dies_between_ready_and_saying_so: "b" at "after-persist:ready";
    target_dies_before_it_has_taken: "b" at "before-persist:serving";
    target_dies_between_taken_and_saying_so: "b" at "after-persist:serving";
    target_dies_while_it_mounts: "b" at "before-activate";
    target_dies_before_the_workload_starts: "b" at "before-start-workload";
    target_dies_after_the_workload_started: "b" at "after-start-workload";
}

/// Moves the unit. Two nodes that have just met again may still replace one of their two connections;
/// a migration that this hits is taken back, says so, and is asked for once more, as a person would.
fn move_unit(from: &Host, to: &str) {
    let mut words = String::new();
    for _ in 0..5 {
        let output = from.run(&["migrate", "db", "--to", to, "--json"]);
        if output.status.success() {
            return;
        }
        words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("connect"), "{}: {words}", from.name);
        from.wait_connected(to);
        from.wait_serving("db");
    }
    panic!("{} could not move db to {to}: {words}", from.name);
}

/// `victim` dies in the middle of a large send: the first, full one, or an increment.
fn crash_in_send(victim: &str, failpoint: &str, full: bool) {
    let mut pair = Pair::unprotected();
    let protect = |a: &Host, name: &str| {
        a.ok(&["protect", "data/db", "--to", "b", "--name", name, "--rpo", "200ms", "--create"]);
    };
    protect(&pair.a, "db0");
    pair.a.wait_in_step("db0");
    let live = pair.world.path().join("a-vault/live/vault/data/db");
    let ballast: Vec<u8> =
        (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    // What was there before protection began goes in full, what comes later as an increment.
    pair.a.ok(&["unprotect", "db0"]);
    if full {
        std::fs::write(live.join("ballast"), &ballast).expect("room");
    } else {
        protect(&pair.a, "db");
        pair.a.wait_in_step("db");
    }
    let host = if victim == "a" { &mut pair.a } else { &mut pair.b };
    restart(host, Some(failpoint));
    pair.a.wait_connected("b");
    pair.b.wait_connected("a");
    // Whether the command hears of it in time does not matter here.
    let asked = full.then(|| {
        let words = ["protect", "data/db", "--to", "b", "--name", "db", "--rpo", "200ms"];
        pair.a.spawn(&words)
    });
    if !full {
        std::fs::write(live.join("ballast"), &ballast).expect("room");
    }
    let host = if victim == "a" { &mut pair.a } else { &mut pair.b };
    host.wait_killed();
    host.serve();
    if let Some(asked) = asked {
        let _ = asked.wait_with_output();
    }
    pair.b.wait_unit("db", "known", |u| u["role"] == "standby");
    pair.run();
    let ledger = Ledger::start(std::slice::from_ref(&pair.address));
    ledger.wait_more(10);
    pair.a.wait_in_step("db");
    move_unit(&pair.a, "b");
    pair.b.wait_serving("db");
    let moved = std::fs::read(pair.volume(&pair.b).join("ballast")).expect("the ballast");
    assert!(moved == ballast, "{victim} at {failpoint}: the content arrived");
    pair.settle_and_judge(ledger, &format!("{victim} at {failpoint}"));
}

#[test]
fn source_dies_in_a_full_send() {
    crash_in_send("a", "mid-full-send@5000000", true);
}

#[test]
fn target_dies_in_a_full_send() {
    crash_in_send("b", "mid-full-receive@5000000", true);
}

#[test]
fn source_dies_in_an_increment() {
    crash_in_send("a", "mid-increment-send@5000000", false);
}

#[test]
fn target_dies_in_an_increment() {
    crash_in_send("b", "mid-increment-receive@5000000", false);
}

#[test]
fn target_dies_between_commit_and_word() {
    let mut pair = Pair::new();
    let ledger = Ledger::start(std::slice::from_ref(&pair.address));
    ledger.wait_more(10);
    restart(&mut pair.b, Some("after-commit:3"));
    pair.b.wait_killed();
    pair.b.serve();
    pair.a.wait_connected("b");
    pair.a.wait_in_step("db");
    pair.settle_and_judge(ledger, "b between commit and word");
}

#[test]
fn source_dies_while_the_workload_is_frozen_and_it_is_thawed() {
    let mut pair = Pair::new();
    let ledger = Ledger::start(std::slice::from_ref(&pair.address));
    ledger.wait_more(10);
    restart(&mut pair.a, Some("frozen:3"));
    pair.a.wait_killed();
    pair.a.serve();
    pair.a.wait_serving("db");
    pair.settle_and_judge(ledger, "a while frozen");
}

#[test]
fn daemons_killed_at_random_moments_leave_one_writer() {
    let mut pair = Pair::new();
    let ledger = Ledger::start(std::slice::from_ref(&pair.address));
    let mut seed: u64 = std::env::var("FLOCKER_CRASH_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(u64::from(std::process::id()));
    eprintln!("FLOCKER_CRASH_SEED={seed}");
    for round in 0..4 {
        ledger.wait_more(5);
        let (from, to) = match pair.a.unit("db").expect("the unit")["role"].as_str() {
            Some("primary") => (&pair.a, "b"),
            _ => (&pair.b, "a"),
        };
        from.wait_in_step("db");
        let migrate = from.spawn(&["migrate", "db", "--to", to, "--json"]);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(std::time::Duration::from_millis((seed >> 40) % 600));
        if (seed >> 33) & 1 == 0 {
            pair.a.kill();
            pair.a.serve();
        } else {
            pair.b.kill();
            pair.b.serve();
        }
        let _ = migrate.wait_with_output();
        pair.a.wait_connected("b");
        ledger.wait_more(5);
        assert_eq!(pair.writers(), 1, "round {round}: one writer");
        for host in [&pair.a, &pair.b] {
            host.wait_unit("db", "settled", |u| {
                u["role"] == "standby" || u["workload_state"] == "running"
            });
        }
    }
    pair.settle_and_judge(ledger, "random kills");
}
