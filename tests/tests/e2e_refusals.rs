//! What a move or a failover is refused for, before anything stops: the exit code, what to do about it,
//! and that the workload never noticed. And what only asks, is taken back, or is asked twice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flocker_tests::e2e::host::{PATIENCE, free_tcp_port};
use flocker_tests::e2e::ledger::workload_binary;
use flocker_tests::e2e::watch::processes;
use flocker_tests::e2e::{Host, Ledger, World};

/// "Refused, nothing was changed", as README has it.
const REFUSED: i32 = 4;

/// Two nodes with vaults, a unit `db` that runs on the first, and a client.
struct Served {
    a: Host,
    b: Host,
    address: String,
    ledger: Ledger,
    world: World,
}

impl Served {
    fn new() -> Self {
        let world = World::new();
        let (a, b) = world.vault_pair();
        a.ok(&["protect", "data/db", "--to", "b", "--rpo", "300ms", "--create"]);
        b.wait_unit("db", "known", |u| u["role"] == "standby");
        let address = format!("127.0.0.1:{}", free_tcp_port());
        let ledger = Ledger::start(std::slice::from_ref(&address));
        let served = Self { a, b, address, ledger, world };
        served.run(&served.b, &[]);
        served.run(&served.a, &[]);
        served.a.wait_serving("db");
        served.ledger.wait_more(10);
        served.a.wait_in_step("db");
        served
    }

    fn run(&self, host: &Host, options: &[&str]) {
        let workload = workload_binary().display().to_string();
        host.ok(&[&["run", "db"], options, &["--", &workload, &self.address]].concat());
    }

    fn workloads(&self) -> Vec<u32> {
        processes(&[&workload_binary().display().to_string(), &self.address])
    }

    fn volume(&self, host: &Host) -> PathBuf {
        let unit = host.unit("db").expect("the unit");
        let dataset = unit["volumes"][0]["dataset"].as_str().expect("a dataset").to_owned();
        self.world.path().join(format!("{}-vault/live", host.name)).join(dataset)
    }

    /// `migrate db --to b` with these further words is refused with these, and the workload is the same
    /// process as before, which answered all the while.
    fn refused(&self, options: &[&str], words: &[&str]) {
        let before = self.workloads();
        let (code, said) = self.a.fails(&[&["migrate", "db", "--to", "b"], options].concat());
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        assert_eq!(code, REFUSED, "{said}");
        eprintln!("{said}");
        self.untouched(&before);
    }

    fn untouched(&self, before: &[u32]) {
        let unit = self.a.wait_serving("db");
        assert_eq!(unit["epoch"]["number"], 1, "{unit:#}");
        self.ledger.wait_more(5);
        assert_eq!(self.workloads(), before, "the workload is another process");
    }

    /// And once what was wrong is put right, the same move is done.
    fn moves(self) {
        self.a.wait_in_step("db");
        let report = self.a.json(&["migrate", "db", "--to", "b"]);
        assert_eq!(report["epoch"], 2, "{report:#}");
        self.b.wait_serving("db");
        self.ledger.wait_more(5);
        let volume = self.volume(&self.b);
        let verdict = self.ledger.verdict(&volume);
        assert!(verdict.holds(), "{verdict:?}");
    }
}

#[test]
fn a_target_without_a_grant_refuses_and_says_which() {
    let served = Served::new();
    served.b.ok(&["grant", "a", "--receive", "recv/a"]);
    served.refused(&[], &["b: ", "grant a", "--workload process"]);
    served.b.ok(&["grant", "a", "--nothing"]);
    served.refused(&[], &["b: ", "grant a --receive"]);
    served.b.ok(&["grant", "a", "--receive", "recv/a", "--workload", "process"]);
    served.moves();
}

#[test]
fn a_target_whose_quota_is_used_up_refuses_and_says_how_to_raise_it() {
    let served = Served::new();
    noise(&served.volume(&served.a).join("noise"), 256 << 10);
    served.a.wait_unit("db", "replicated", |u| {
        u["standbys"][0]["stream_bytes"].as_u64().is_some_and(|bytes| bytes > 256 << 10)
    });
    let grant = ["grant", "a", "--receive", "recv/a", "--workload", "process", "--quota"];
    served.b.ok(&[&grant[..], &["1K"]].concat());
    served.refused(&[], &["b: ", "quota", "leaves 0 bytes", "--quota"]);
    served.b.ok(&[&grant[..], &["1G"]].concat());
    served.moves();
}

#[test]
fn a_target_whose_path_is_taken_refuses_and_names_it() {
    let served = Served::new();
    let place = served.volume(&served.b);
    std::fs::create_dir_all(&place).expect("a directory in the way");
    std::fs::write(place.join("foreign"), b"mine").expect("a file in it");
    served.refused(&[], &["holds something else", "live/vault/recv/a/db"]);
    std::fs::remove_dir_all(&place).expect("cleared");
    served.moves();
}

/// A daemon finds a unit's processes by what is in their environment.
#[test]
fn a_target_on_which_the_workload_runs_already_refuses_and_says_how_to_find_it() {
    let served = Served::new();
    let unit = served.b.unit("db").expect("the unit")["id"].as_str().expect("an id").to_owned();
    let environment = environment(served.workloads()[0]);
    let node = served.b.json(&["status"])["fingerprint"].as_str().map(str::to_owned);
    let mut stray = Command::new("sleep")
        .arg("600")
        .env("FLOCKER_UNIT", &unit)
        .env("FLOCKER_NODE", node.unwrap_or_else(|| panic!("{:?}", environment)))
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts");
    served.refused(&[], &["b: ", "runs on this node", "FLOCKER_UNIT="]);
    let _ = stray.kill();
    let _ = stray.wait();
    served.moves();
}

fn environment(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).expect("its environment");
    let words = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word));
    words.filter(|word| word.starts_with("FLOCKER_")).map(Into::into).collect()
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_with_the_prediction() {
    let served = Served::new();
    served.refused(
        &["--budget", "1ms"],
        &["would be down for about", "budget is 1 ms", "larger --budget"],
    );
    // Asked only, the answer is no.
    let output = served.a.run(&["migrate", "db", "--to", "b", "--budget", "1ms", "--dry-run"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    served.moves();
}

#[test]
fn a_dry_run_predicts_and_changes_nothing() {
    let served = Served::new();
    let (before, unit) = (served.workloads(), served.a.unit("db").expect("the unit"));
    let plan = served.a.json(&["migrate", "db", "--to", "b", "--dry-run"]);
    assert_eq!((&plan["moved"], &plan["target"]), (&false.into(), &"b".into()), "{plan:#}");
    assert!(plan["prediction"]["downtime_ms"].as_u64().is_some_and(|ms| ms > 0), "{plan:#}");
    assert!(plan["available_bytes"].as_u64().is_some_and(|left| left > 0), "{plan:#}");
    served.untouched(&before);
    let after = served.a.unit("db").expect("the unit");
    assert_eq!((&unit["epoch"], &unit["role"]), (&after["epoch"], &after["role"]));
    assert!(served.a.json(&["history", "db"])["events"].as_array().expect("events").is_empty());
    // What stands in the way of the move stands in the way of its dry run.
    served.b.ok(&["grant", "a", "--nothing"]);
    let (code, words) = served.a.fails(&["migrate", "db", "--to", "b", "--dry-run"]);
    assert_eq!(code, REFUSED, "{words}");
    served.b.ok(&["grant", "a", "--receive", "recv/a", "--workload", "process"]);
    // It measured nothing, and the move goes as it was said.
    served.moves();
}

/// Waits until the daemon's log says that a move entered this phase.
fn wait_phase(host: &Host, from: u64, phase: &str) {
    let until = Instant::now() + PATIENCE;
    let phase = format!("phase=\"{phase}\"");
    while !host.log_since(from).contains(&phase) {
        assert!(Instant::now() < until, "never in {phase}:\n{}", host.log_tail());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_move_under_way_refuses_another_target_is_joined_by_the_same_and_is_taken_back() {
    let served = Served::new();
    let mut c = served.world.vault_host("c");
    c.serve();
    served.a.pair(&c, ["recv/c", "recv/a"]);
    served.a.ok(&["protect", "data/db", "--to", "c", "--rpo", "300ms"]);
    c.wait_unit("db", "known", |u| u["role"] == "standby");
    served.a.wait_in_step("db");
    // It has to wait for this hook, which ends when the file is there.
    let gate = served.world.path().join("gate");
    let hook = format!("sh -c 'until test -e {}; do sleep 0.05; done'", gate.display());
    served.run(&served.a, &["--before-stop", &hook]);
    served.a.wait_serving("db");
    let mark = served.a.log_length();
    let first = served.a.spawn(&["migrate", "db", "--to", "b", "--json"]);
    wait_phase(&served.a, mark, "quiesce");
    let (code, words) = served.a.fails(&["migrate", "db", "--to", "c"]);
    assert_eq!(code, REFUSED, "{words}");
    assert!(words.contains("under way to b") && words.contains("--cancel"), "{words}");
    served.a.ok(&["migrate", "db", "--cancel"]);
    std::fs::write(&gate, b"").expect("room");
    let output = first.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains("cancelled"), "{words}");
    let unit = served.a.wait_serving("db");
    assert_eq!(unit["epoch"]["number"], 1, "{unit:#}");
    served.ledger.wait_more(5);
    let (code, words) = served.a.fails(&["migrate", "db", "--cancel"]);
    assert_eq!(code, REFUSED, "{words}");
    // Asked for twice it is one move, and both are told of it.
    std::fs::remove_file(&gate).expect("it was there");
    served.a.wait_in_step("db");
    let mark = served.a.log_length();
    let both = [(), ()].map(|()| {
        let command = served.a.spawn(&["migrate", "db", "--to", "b", "--json"]);
        wait_phase(&served.a, mark, "quiesce");
        command
    });
    std::fs::write(&gate, b"").expect("room");
    for command in both {
        let output = command.wait_with_output().expect("it ends");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
        assert_eq!(answer["epoch"], 2, "{answer:#}");
    }
    served.b.wait_serving("db");
    let verdict = served.ledger.verdict(&served.world.path().join("b-vault/live/vault/recv/a/db"));
    assert!(verdict.holds(), "{verdict:?}");
}

#[test]
fn a_move_that_is_taken_back_while_it_converges_never_touched_the_workload() {
    let served = Served::new();
    let before = served.workloads();
    // Much to send, so that it converges for a while.
    noise(&served.volume(&served.a).join("noise"), 192 << 20);
    let mark = served.a.log_length();
    let moving = served.a.spawn(&["migrate", "db", "--to", "b", "--json"]);
    wait_phase(&served.a, mark, "converge");
    served.a.ok(&["migrate", "db", "--cancel"]);
    let output = moving.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("cancelled"), "{words}");
    assert!(!served.a.log_since(mark).contains("phase=\"quiesce\""), "it was stopped");
    served.untouched(&before);
    let history = served.a.json(&["history", "db"]);
    let events = history["events"].as_array().expect("events");
    let failed = events.iter().find(|event| event["kind"] == "migration_failed");
    assert_eq!(failed.expect("it is kept")["phase"], "converge", "{history:#}");
    served.moves();
}

/// Bytes that do not compress.
fn noise(path: &Path, bytes: usize) {
    let mut seed = 1_u64;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
    }
    std::fs::write(path, out).expect("room");
}

#[test]
fn a_failover_without_a_proof_is_refused_and_the_primary_serves_on() {
    let mut served = Served::new();
    let before = served.workloads();
    served.a.kill();
    served.b.wait_unit("db", "alone", |_| true);
    let until = Instant::now() + PATIENCE;
    while served.b.json(&["failover", "db", "--dry-run"])["primary_connected"] == true {
        assert!(Instant::now() < until, "a is said to be connected");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, words) = served.b.fails(&["failover", "db", "--yes"]);
    assert_eq!(code, REFUSED, "{words}");
    for word in ["nothing proves", "--primary-is-down", "[fencing]", "--lease"] {
        assert!(words.contains(word), "`{word}` is not in: {words}");
    }
    assert_eq!(served.b.unit("db").expect("the unit")["role"], "standby");
    served.ledger.wait_more(5);
    served.a.serve();
    served.untouched(&before);
    served.a.wait_connected("b");
    served.moves();
}

/// A command that was cut off by its daemon's death is given again: what was not committed begins anew,
/// under another number; what was is followed to its end. There is one move, and one epoch more.
fn asked_again(place: &str, committed: bool) {
    let mut served = Served::new();
    served.a.kill();
    served.a.serve_with(Some(place));
    served.a.wait_up();
    served.a.wait_connected("b");
    served.a.wait_serving("db");
    served.a.wait_in_step("db");
    let cut_off = served.a.spawn(&["migrate", "db", "--to", "b", "--json"]);
    served.a.wait_killed();
    let output = cut_off.wait_with_output().expect("it ends");
    assert!(!output.status.success(), "{place}: the daemon is dead");
    served.a.serve();
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let output = served.a.run(&["migrate", "db", "--to", "b", "--json"]);
        if output.status.success() {
            break serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("an object");
        }
        assert!(Instant::now() < until, "{place}: {}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(answer["epoch"], 2, "{place}: one change of primary: {answer:#}");
    served.b.wait_serving("db");
    let moved = |host: &Host| {
        let history = host.json(&["history", "db"]);
        let events = history["events"].as_array().expect("events").clone();
        events.iter().filter(|event| event["kind"] == "migrated").count()
    };
    // The word of it comes after the fact, and may come after the answer, too.
    let until = Instant::now() + PATIENCE;
    while moved(&served.a) + moved(&served.b) == 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(moved(&served.a) + moved(&served.b), 1, "{place}: {answer:#}");
    if let Some(attempt) = answer["attempt"].as_str() {
        let number = attempt.rsplit('.').next().and_then(|n| n.parse::<u64>().ok());
        assert_eq!(number, Some(if committed { 1 } else { 2 }), "{place}: {answer:#}");
    }
    let again = served.a.json(&["migrate", "db", "--to", "b"]);
    assert_eq!((&again["already_there"], &again["epoch"]), (&true.into(), &2.into()), "{again:#}");
    assert_eq!(served.workloads().len(), 1, "{place}: one writer");
    served.ledger.wait_more(5);
    let volume = served.volume(&served.b);
    let verdict = served.ledger.verdict(&volume);
    assert!(verdict.holds(), "{place}: {verdict:?}");
}

#[test]
fn a_move_asked_again_after_the_daemon_died_while_it_converged_is_another_attempt() {
    asked_again("phase:converge", false);
}

#[test]
fn a_move_asked_again_after_the_daemon_died_with_the_workload_stopped_is_another_attempt() {
    asked_again("phase:prepare", false);
}

#[test]
fn a_move_asked_again_after_the_daemon_died_committed_is_the_same_attempt() {
    asked_again("after-persist:handed-over", true);
}
