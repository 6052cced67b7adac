//! Two whole nodes in this process, asked only through their sockets, as a person would.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use flocker_core::EventKind;
use flocker_core::record::{Hooks, MoveMode, Policy, Program, StopSignal, WorkloadKind};
use tempfile::TempDir;

use super::*;
use crate::api::{InviteOpen, NodeView, PairedPeer};
use crate::client::{Client, ClientError};
use crate::config::{Config, InitError, InitOptions, NodeName, StoreUri};
use crate::{ServeError, ServeOptions, serve};

const LIMIT: Duration = Duration::from_secs(60);

struct TestNode {
    dir: TempDir,
    config: Config,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

fn options(dir: &Path, name: &str) -> InitOptions {
    InitOptions {
        path: Some(dir.join("config.toml")),
        name: NodeName::new(name).unwrap(),
        store: StoreUri::Vault(dir.join("vault")),
        listen: "127.0.0.1:0".parse().unwrap(),
        state: Some(dir.join("state")),
        advertise: Vec::new(),
    }
}

/// The test program again, as the supervisor of workloads: see `workload::tests`.
fn supervisor(dir: &Path) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let entry = "workload::tests::entry_of_the_processes_these_tests_start";
    let script = format!(
        "#!/bin/sh\nshift\nexec '{}' {entry} --exact --nocapture -- SUPERVISE \"$@\"\n",
        exe.display()
    );
    let path = dir.join("supervisor");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

impl TestNode {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Config::init(options(dir.path(), name)).unwrap();
        let config = Config::load(&dir.path().join("config.toml")).unwrap();
        let mut node = TestNode { dir, config, thread: None };
        node.start();
        node
    }

    fn start(&mut self) {
        let config = self.config.clone();
        let options = ServeOptions { supervisor: Some(supervisor(self.dir.path())) };
        self.thread = Some(std::thread::spawn(move || serve(config, options)));
        let begun = Instant::now();
        while Client::connect(&self.config).is_err() {
            assert!(begun.elapsed() < LIMIT, "the node does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) -> Result<(), ServeError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.ask(&Request::Shutdown).unwrap();
        thread.join().unwrap()
    }

    fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        match Client::connect(&self.config).unwrap().ask(request, |_| {}) {
            Ok(answer) => Ok(answer),
            Err(ClientError::Refused(failure)) => Err(failure),
            Err(other) => panic!("{other}"),
        }
    }

    fn refused(&self, request: &Request) -> Failure {
        self.ask(request).unwrap_err()
    }

    fn status(&self) -> NodeView {
        match self.ask(&Request::Status { name: None }).unwrap() {
            Answer::Status(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    fn wait_for(&self, what: &str, good: impl Fn(&NodeView) -> bool) -> NodeView {
        let begun = Instant::now();
        loop {
            let view = self.status();
            if good(&view) {
                return view;
            }
            assert!(begun.elapsed() < LIMIT, "{what} did not come about: {view:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens an invitation; the rest of its answer comes through the thread.
    fn invite(&self) -> (InviteOpen, JoinHandle<Result<Answer, ClientError>>) {
        let mut lines =
            Client::connect(&self.config).unwrap().request(&Request::Invite { ttl_s: 60 }).unwrap();
        let open = match lines.next().unwrap().unwrap() {
            Response::InviteOpen(open) => open,
            other => panic!("{other:?}"),
        };
        let end = std::thread::spawn(move || match lines.next().unwrap()? {
            Response::Ok(answer) => Ok(answer),
            Response::Error(failure) => Err(ClientError::Refused(failure)),
            other => panic!("{other:?}"),
        });
        (open, end)
    }

    fn join(&self, open: &InviteOpen, code: &str) -> Result<PairedPeer, Failure> {
        let address = open.addresses[0].clone();
        match self.ask(&Request::Join { address, code: code.into() })? {
            Answer::Paired(paired) => Ok(paired),
            other => panic!("{other:?}"),
        }
    }

    fn grant(&self, peer: &str) {
        let receive = Some(format!("recv/{peer}"));
        let workloads = vec![WorkloadKind::Process];
        let grant = Request::Grant { peer: peer.into(), receive, quota_bytes: None, workloads };
        self.ask(&grant).unwrap();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Whatever the test found, its workloads do not outlive it.
            for unit in self.status().node.units {
                let _ = self.ask(&Request::Stop { name: unit.name });
            }
            let _ = self.ask(&Request::Shutdown);
            let _ = thread.join();
        }
    }
}

fn pair() -> (TestNode, TestNode) {
    let (a, b) = (TestNode::new("a"), TestNode::new("b"));
    let (open, end) = a.invite();
    b.join(&open, &open.code).unwrap();
    end.join().unwrap().unwrap();
    a.grant("b");
    b.grant("a");
    for node in [&a, &b] {
        node.wait_for("the connection", |v| v.node.peers.iter().all(|p| p.connected));
    }
    (a, b)
}

fn protect(rpo_ms: u64) -> Request {
    Request::Protect {
        datasets: vec!["db".into()],
        to: "b".into(),
        name: None,
        recursive: false,
        exclude: Vec::new(),
        policy: Policy::Rpo(rpo_ms),
        lease_ms: None,
        create: true,
        adopt: None,
        diverged: false,
        one_way: false,
    }
}

fn run(script: &str, die_with_daemon: bool) -> Request {
    run_command("db", &["/bin/sh", "-c", script], die_with_daemon)
}

fn run_command(name: &str, command: &[&str], die_with_daemon: bool) -> Request {
    Request::Run {
        name: name.into(),
        program: Program::Process(command.iter().map(|word| (*word).to_owned()).collect()),
        mode: MoveMode::Stop,
        stop_signal: StopSignal::Term,
        stop_limit_ms: 5000,
        die_with_daemon,
        health: None,
        addresses: Vec::new(),
        forwards: Vec::new(),
        hooks: Hooks::default(),
    }
}

fn migrate(name: &str, to: &str) -> Request {
    Request::Migrate {
        name: name.into(),
        to: to.into(),
        budget_ms: None,
        dry_run: false,
        accept: BTreeSet::new(),
    }
}

/// Appends numbers, going on from where the file ends.
const COUNT: &str = "i=$(wc -l < log 2>/dev/null || echo 0); while :; do i=$((i+1)); echo $i >> log; sleep 0.005; done";

fn path(view: &NodeView) -> PathBuf {
    view.paths.values().next().unwrap().clone()
}

fn numbers(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path.join("log")).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')?.parse().ok()).collect()
}

fn in_step(view: &NodeView) -> bool {
    let unit = view.node.units.first();
    unit.is_some_and(|u| {
        u.role == "primary" && u.standbys.iter().any(|s| s.rounds > 0 && s.within_rpo)
    })
}

fn running(view: &NodeView) -> bool {
    view.node.units.first().is_some_and(|u| u.workload_state == "running")
}

#[test]
fn a_node_is_made_once_privately_and_answers_on_a_private_socket() {
    let node = TestNode::new("a");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.config.node.state), 0o700);
    assert_eq!(mode(&node.config.socket_path()), 0o600);
    let error = Config::init(options(node.dir.path(), "other")).unwrap_err();
    assert!(matches!(error, InitError::Exists { .. }), "{error}");
    let view = node.status();
    assert_eq!((view.name.as_str(), view.node.units.len()), ("a", 0));
    let metrics = node.ask(&Request::Metrics).unwrap();
    assert!(matches!(metrics, Answer::Metrics(_)));
}

#[test]
fn a_directory_that_others_use_is_not_taken_for_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("theirs"), "x").unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut wanted = options(dir.path(), "a");
    wanted.state = Some(shared.clone());
    let error = Config::init(wanted).unwrap_err();
    assert!(matches!(error, InitError::NotPrivate { .. }), "{error}");
    assert_eq!(std::fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(!dir.path().join("config.toml").exists() && !dir.path().join("vault").exists());
}

#[test]
fn the_state_of_one_node_is_not_taken_for_that_of_another() {
    let dir = tempfile::tempdir().unwrap();
    Config::init(options(dir.path(), "a")).unwrap();
    let second = |name: &str| {
        let mut wanted = options(dir.path(), name);
        wanted.path = Some(dir.path().join(format!("{name} again.toml")));
        wanted.store = StoreUri::Vault(dir.path().join(format!("vault of {name}")));
        Config::init(wanted)
    };
    let error = second("b").unwrap_err();
    assert!(matches!(&error, InitError::AnotherNode { name, .. } if name == "a"), "{error}");
    assert!(error.to_string().contains("--state"), "{error}");
    assert!(!dir.path().join("b again.toml").exists() && !dir.path().join("vault of b").exists());
    second("a").expect("its configuration was lost, say");
}

#[test]
fn a_second_daemon_and_a_stopped_one_are_errors_that_say_what_to_do() {
    let mut node = TestNode::new("a");
    let error = serve(node.config.clone(), ServeOptions::default()).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains("pid"), "{error}");
    node.stop().unwrap();
    let error = Client::connect(&node.config).unwrap_err().to_string();
    assert!(error.contains("serve") && error.contains("config.toml"), "{error}");
    node.start();
    node.status();
}

#[test]
fn a_node_without_its_key_does_not_start_under_another() {
    let mut node = TestNode::new("a");
    node.stop().unwrap();
    std::fs::remove_file(node.config.node.state.join("identity.pem")).unwrap();
    let error = serve(node.config.clone(), ServeOptions::default()).unwrap_err();
    assert!(matches!(error, ServeError::NoIdentity { .. }), "{error}");
}

#[test]
fn a_lost_journal_is_begun_anew_as_another_incarnation_and_a_damaged_one_is_refused() {
    let mut node = TestNode::new("a");
    let before = node.status().node.incarnation;
    node.stop().unwrap();
    std::fs::remove_file(node.config.journal_path()).unwrap();
    node.start();
    assert_ne!(node.status().node.incarnation, before);
    node.stop().unwrap();
    std::fs::write(node.config.journal_path(), "rubbish").unwrap();
    let error = serve(node.config.clone(), ServeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("journal.redb"), "{error}");
}

#[test]
fn what_is_no_request_is_refused_by_name() {
    let node = TestNode::new("a");
    for (line, word) in [
        ("{\"request\":\"explode\"}\n", "explode"),
        ("{\"request\":\"stop\"}\n", "name"),
        ("hello\n", "not a request"),
        ("{\"request\":\"status\"}", "one line"),
    ] {
        let mut socket = Socket::connect(node.config.socket_path()).unwrap();
        socket.write_all(line.as_bytes()).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).unwrap();
        assert!(answer.contains("error") && answer.contains(word), "{answer}");
    }
    let mut socket = Socket::connect(node.config.socket_path()).unwrap();
    let _ = socket.write_all(&vec![b'x'; MAX_REQUEST_BYTES + 10]);
    let mut answer = String::new();
    let _ = BufReader::new(socket).read_line(&mut answer);
    assert!(answer.is_empty() || answer.contains("one line"), "{answer}");
}

#[test]
fn names_that_do_not_exist_and_datasets_outside_are_refused_and_nothing_changes() {
    let node = TestNode::new("a");
    let name = || "nobody".to_owned();
    for (request, code) in [
        (Request::Status { name: Some(name()) }, FailureCode::NotFound),
        (Request::Stop { name: name() }, FailureCode::NotFound),
        (Request::Unpair { peer: name() }, FailureCode::NotFound),
        (migrate("nobody", "nobody"), FailureCode::NotFound),
        (Request::Join { address: "nowhere".into(), code: "x".into() }, FailureCode::BadRequest),
        (
            Request::Join { address: "127.0.0.1:1".into(), code: "x".into() },
            FailureCode::BadRequest,
        ),
        (Request::Invite { ttl_s: 0 }, FailureCode::BadRequest),
    ] {
        let failure = node.refused(&request);
        assert_eq!(failure.code, code, "{request:?}: {failure}");
    }
    for bad in [vec![], vec![""], vec!["x", "a\0b"]] {
        let run = run_command("nobody", &bad, false);
        assert_eq!(node.refused(&run).code, FailureCode::BadRequest, "{bad:?}");
    }
    assert!(node.status().node.units.is_empty());
}

#[test]
fn datasets_that_cannot_be_one_unit_are_refused_before_one_of_them_is_made() {
    let node = TestNode::new("a");
    let same_leaf = ["x/db", "y/db"].map(str::to_owned).to_vec();
    for datasets in [vec![], same_leaf] {
        let mut request = protect(500);
        if let Request::Protect { datasets: given, .. } = &mut request {
            *given = datasets;
        }
        assert_eq!(node.refused(&request).code, FailureCode::BadRequest);
    }
    let made = node.dir.path().join("vault").join("live").join("x");
    assert!(!made.exists());
}

#[test]
fn pairing_shows_both_the_same_words_and_a_wrong_code_stores_nothing() {
    let (a, b) = (TestNode::new("a"), TestNode::new("a"));
    let (open, end) = a.invite();
    let wrong = if open.code.starts_with('0') { "1" } else { "0" }.to_owned() + &open.code[1..];
    let failure = b.join(&open, &wrong).unwrap_err();
    assert_eq!(failure.code, FailureCode::NotGranted, "{failure}");
    assert!(failure.message.contains("4 tries"), "{failure}");
    assert!(a.status().node.peers.is_empty() && b.status().node.peers.is_empty());
    let at_b = b.join(&open, &open.code).unwrap();
    let at_a = match end.join().unwrap().unwrap() {
        Answer::Paired(paired) => paired,
        other => panic!("{other:?}"),
    };
    assert_eq!((&at_a.words, &at_a.own_words), (&at_b.own_words, &at_b.words));
    // Both call themselves `a`: each sees the other under a name of its own.
    assert_eq!((at_a.name.as_str(), at_b.name.as_str()), ("a-2", "a-2"));
    let failure = b.join(&open, &open.code).unwrap_err();
    assert!(failure.message.contains("no invitation"), "{failure}");
}

#[test]
fn five_wrong_codes_end_an_invitation_and_its_client_is_told() {
    let (a, b) = (TestNode::new("a"), TestNode::new("b"));
    let (open, end) = a.invite();
    let wrong = if open.code.starts_with('0') { "1" } else { "0" }.to_owned() + &open.code[1..];
    for _ in 0..5 {
        b.join(&open, &wrong).unwrap_err();
    }
    let failure = b.join(&open, &open.code).unwrap_err();
    assert_eq!(failure.code, FailureCode::NotGranted, "{failure}");
    assert!(matches!(end.join().unwrap(), Err(ClientError::Refused(_))));
    assert!(a.status().node.peers.is_empty() && b.status().node.peers.is_empty());
}

#[test]
fn a_volume_follows_and_moves_there_and_back_with_its_workload() {
    let (a, b) = pair();
    a.ask(&protect(500)).unwrap();
    for node in [&a, &b] {
        let begun = Instant::now();
        while let Err(failure) = node.ask(&run(COUNT, false)) {
            assert!(begun.elapsed() < LIMIT, "{failure}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let mut before = 0;
    for (from, to, name) in [(&a, &b, "b"), (&b, &a, "a"), (&a, &b, "b")] {
        let view = from.wait_for("steps", |v| in_step(v) && running(v));
        let here = path(&view);
        let begun = Instant::now();
        while numbers(&here).len() < before + 50 {
            assert!(begun.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut phases = Vec::new();
        let answer = Client::connect(&from.config).unwrap().ask(&migrate("db", name), |response| {
            if let Response::Event(stamped) = response
                && let EventKind::Phase { phase, .. } = stamped.event.kind
            {
                phases.push(phase);
            }
        });
        let report = match answer.unwrap() {
            Answer::Migrated(report) => report,
            other => panic!("{other:?}"),
        };
        assert!(phases.len() >= 5, "{phases:?}");
        assert!(report.downtime_total_ms < 30_000, "{report:?}");
        let view = to.wait_for("the workload", running);
        assert!(!here.exists(), "the old primary's path is gone");
        let all = numbers(&path(&view));
        assert!(all.iter().copied().eq(1..=all.len() as u64), "every number once and in order");
        assert!(all.len() >= before + 50);
        before = all.len();
    }
    let rounds = a.ask(&Request::Rounds { name: "db".into(), last: Some(3) }).unwrap();
    assert!(matches!(rounds, Answer::Rounds(r) if !r.is_empty() && r.len() <= 3));
}

#[test]
fn a_stopped_daemon_leaves_the_workload_running_or_takes_it_down_by_setting() {
    for die in [false, true] {
        let (mut a, b) = pair();
        a.ask(&protect(500)).unwrap();
        a.ask(&run(COUNT, die)).unwrap();
        let view = a.wait_for("the workload", |v| running(v) && in_step(v));
        let here = path(&view);
        a.stop().unwrap();
        let before = numbers(&here).len();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(numbers(&here).len() > before, !die);
        a.start();
        a.wait_for("the workload after a restart", |v| running(v) && in_step(v));
        let all = numbers(&here);
        assert!(all.iter().copied().eq(1..=all.len() as u64), "one writer at any time");
        drop(b);
    }
}

#[test]
fn unprotecting_and_unpairing_take_back_everything_and_keep_the_data() {
    let (a, b) = pair();
    a.ask(&protect(500)).unwrap();
    let view = a.wait_for("steps", in_step);
    let here = path(&view);
    std::fs::write(here.join("kept"), "x").unwrap();
    assert_eq!(a.refused(&Request::Unpair { peer: "b".into() }).code, FailureCode::Busy);
    a.ask(&Request::Pause { name: "db".into() }).unwrap();
    a.wait_for("the pause", |v| v.node.units[0].paused);
    a.ask(&Request::Resume { name: "db".into() }).unwrap();
    a.ask(&Request::Unprotect { name: "db".into(), store_is_gone: false }).unwrap();
    a.wait_for("the end", |v| v.node.units.is_empty());
    b.wait_for("the end", |v| v.node.units.is_empty());
    assert_eq!(std::fs::read_to_string(here.join("kept")).unwrap(), "x");
    a.ask(&Request::Unpair { peer: "b".into() }).unwrap();
    a.wait_for("the end", |v| v.node.peers.is_empty());
}
