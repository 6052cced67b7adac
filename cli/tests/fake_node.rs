//! Every command against a node that answers as it is told: which request goes out, what is printed, and how
//! the command ends.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Run, run};
use flocker_core::ids::{AttemptId, Epoch, Fingerprint, Incarnation, UnitId, VolumeId};
use flocker_core::io::{Event, EventKind, MigrationReport, RoundReport};
use flocker_core::record::{Hooks, PeerRecord, Policy, StopSignal, VolumeRecord, WorkloadKind};
use flocker_core::status::{NodeStatus, PeerStatus, StandbyStatus, UnitStatus};
use flocker_core::{Failure, FailureCode};
use flocker_engine::api::{
    Answer, InviteOpen, NodeView, PairedPeer, Request, Response, StampedEvent, StampedRound,
};
use flocker_store::{DatasetKind, DatasetName};

const A: Fingerprint = Fingerprint([0xa1; 32]);
const B: Fingerprint = Fingerprint([0xb2; 32]);

/// A node that answers what it is told, and notes what it was asked.
struct FakeNode {
    _dir: tempfile::TempDir,
    config: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl FakeNode {
    /// `answer` gives the last line to each request; `status` is answered without it.
    fn start(answer: impl Fn(&Request) -> Vec<Response> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let config = dir.path().join("config.toml");
        let text = format!(
            "[node]\nname = \"a\"\nlisten = \"127.0.0.1:7001\"\nstate = {:?}\nstore = \"vault:v\"\n",
            state.display().to_string()
        );
        std::fs::write(&config, text).unwrap();
        let listener = UnixListener::bind(state.join("api.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                let responses = match &request {
                    Request::Status { .. } => vec![Response::Ok(Answer::Status(Box::new(view())))],
                    other => answer(other),
                };
                note.lock().unwrap().push(request);
                for response in responses {
                    let mut line = serde_json::to_string(&response).unwrap();
                    line.push('\n');
                    (&stream).write_all(line.as_bytes()).unwrap();
                }
            }
        });
        Self { config: config.to_str().unwrap().to_owned(), _dir: dir, asked }
    }

    fn run(&self, words: &[&str]) -> Run {
        run(&[&["--config", &self.config], words].concat())
    }

    /// What it was asked, but for `status`.
    fn asked(&self) -> Vec<Request> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|request| !matches!(request, Request::Status { .. })).cloned().collect()
    }
}

fn done(_: &Request) -> Vec<Response> {
    vec![Response::Ok(Answer::Done)]
}

fn round(number: u64) -> RoundReport {
    RoundReport {
        peer: B,
        round: number,
        full: number == 1,
        stream_bytes: 1 << 20,
        wire_bytes: 1 << 19,
        duration_ms: 40,
        lag_before_ms: Some(500),
        frozen_ms: 2,
        skipped: 0,
    }
}

fn attempt() -> AttemptId {
    AttemptId { issuer: A, number: 1 }
}

fn view() -> NodeView {
    let standby = StandbyStatus {
        peer: B,
        name: "b".into(),
        connected: true,
        doing: "waiting".into(),
        lag_ms: Some(420),
        within_rpo: true,
        rounds: 12,
        stream_bytes: 41 << 20,
        wire_bytes: 9 << 20,
        bytes_per_second: None,
        last_round_ms: Some(35),
        backlog: 0,
        failure: None,
    };
    let unit = UnitStatus {
        name: "db".into(),
        id: UnitId(7),
        role: "primary".into(),
        epoch: Epoch { number: 1, owner: A, attempt: attempt() },
        doing: "replicating".into(),
        volumes: vec![VolumeRecord {
            id: VolumeId(9),
            dataset: DatasetName::new("vault/data/db").unwrap(),
            kind: DatasetKind::Directory,
            modern_streams: true,
        }],
        policy: Policy::Rpo(1000),
        paused: false,
        workload: None,
        workload_state: "none".into(),
        lease_ms: None,
        lease_left_ms: None,
        failover: None,
        lag_ms: None,
        standbys: vec![standby],
        alarm: None,
    };
    let peer = PeerStatus {
        record: PeerRecord {
            fingerprint: B,
            name: "b".into(),
            addresses: vec!["10.0.0.2:7001".into()],
            grant: None,
        },
        connected: true,
    };
    NodeView {
        name: "a".into(),
        version: "0.1.0".into(),
        pid: 1,
        uptime_ms: 5,
        listen: "127.0.0.1:7001".into(),
        store: "vault:v".into(),
        root: "vault".into(),
        words: "otter amber".into(),
        node: NodeStatus {
            fingerprint: A,
            incarnation: Incarnation(1),
            peers: vec![peer],
            units: vec![unit],
            orphans: Vec::new(),
        },
        transfers: Vec::new(),
        forwards: Vec::new(),
        links: Vec::new(),
        paths: [("vault/data/db".to_owned(), "/v/live/data/db".into())].into(),
    }
}

#[test]
fn commands_that_are_just_done_say_so_in_a_sentence_or_an_object() {
    let node = FakeNode::start(done);
    for words in [
        &["stop", "db"][..],
        &["pause", "db"],
        &["resume", "db"],
        &["unprotect", "db"],
        &["start-alone", "db"],
        &["unpair", "b"],
        &["grant", "b", "--nothing"],
        &["grant", "b", "--receive", "recv/b"],
        &["run", "db", "--", "true"],
    ] {
        let text = node.run(words).ok().stdout;
        assert!(text.lines().count() == 1 && text.len() > 10, "{words:?}: {text}");
        // `--json` goes before what belongs to the workload's command.
        let json = node.run(&[&["--json"], words].concat()).ok();
        assert_eq!(json.json()["done"], true, "{words:?}");
        assert_eq!(json.stdout.lines().count(), 1, "{words:?}: {}", json.stdout);
    }
}

#[test]
fn what_is_asked_is_what_was_typed() {
    let node = FakeNode::start(done);
    node.run(&["grant", "b", "--receive", "recv/b", "--quota", "10G", "--workload", "process"])
        .ok();
    node.run(&["run", "db", "--stop-limit", "30s", "--die-with-daemon", "--", "x", "--json"]).ok();
    assert_eq!(
        node.asked(),
        [
            Request::Grant {
                peer: "b".into(),
                receive: Some("recv/b".into()),
                quota_bytes: Some(10 << 30),
                workloads: vec![WorkloadKind::Process],
            },
            Request::Run {
                name: "db".into(),
                command: vec!["x".into(), "--json".into()],
                stop_signal: StopSignal::Term,
                stop_limit_ms: 30_000,
                die_with_daemon: true,
                health: None,
                addresses: Vec::new(),
                forwards: Vec::new(),
                hooks: Hooks::default(),
            },
        ]
    );
}

#[test]
fn protect_asks_for_the_policy_and_shows_where_the_files_are() {
    let node = FakeNode::start(|_| {
        vec![Response::Ok(Answer::Protected { name: "db".into(), unit: UnitId(7) })]
    });
    let text = node.run(&["protect", "data/db", "--to", "b", "--create"]).ok().stdout;
    assert!(text.contains("never more than 1.00 s behind"), "{text}");
    assert!(text.contains("/v/live/data/db"), "{text}");
    let words = ["protect", "data/db", "--to", "b", "--every", "15m", "--json"];
    let json = node.run(&words).ok().json();
    assert_eq!(json["name"], "db");
    assert_eq!(json["path"], "/v/live/data/db");
    let policies: Vec<(Policy, bool)> = node
        .asked()
        .into_iter()
        .map(|request| match request {
            Request::Protect { policy, create, .. } => (policy, create),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(policies, [(Policy::Rpo(1000), true), (Policy::Every(900_000), false)]);
}

fn refusing(code: FailureCode) -> FakeNode {
    FakeNode::start(move |_| {
        vec![Response::Error(Failure::refused(code, "b: no room in recv/b: make room"))]
    })
}

#[test]
fn a_refusal_ends_with_4_and_a_failure_with_1_both_in_the_nodes_own_words() {
    for (code, exit) in [(FailureCode::NotGranted, 4), (FailureCode::NoSpace, 1)] {
        let node = refusing(code);
        let words = ["migrate", "db", "--to", "b"];
        let run = node.run(&words).fails_with(exit);
        assert!(run.stderr.contains("b: no room in recv/b: make room"), "{}", run.stderr);
        let json = node.run(&[&words[..], &["--json"]].concat()).fails_with(exit).json();
        assert_eq!(json["error"]["exit_code"], exit);
        assert_eq!(json["error"]["message"], "b: no room in recv/b: make room");
        assert!(json["error"]["code"].is_string() && json["error"]["remedy"].is_string());
    }
}

#[test]
fn status_is_a_line_a_thing_without_a_terminal_and_one_object_with_json() {
    let node = FakeNode::start(done);
    let text = node.run(&["status"]).ok().stdout;
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("unit name=db role=primary epoch=1"), "{text}");
    let one = node.run(&["status", "db"]).ok().stdout;
    assert_eq!(one.lines().count(), 2, "{one}");
    let json = node.run(&["status", "--json"]).ok().json();
    assert_eq!(json["units"][0]["standbys"][0]["lag_ms"], 420);
    assert_eq!(json["peers"][0]["record"]["name"], "b");
    let peers = node.run(&["peers", "--json"]).ok().json();
    assert_eq!(peers["peers"][0]["connected"], true);
}

fn migrating(_: &Request) -> Vec<Response> {
    let event = |kind| {
        Response::Event(StampedEvent {
            at_unix_ms: 1_700_000_000_000,
            event: Event { unit: Some(UnitId(7)), name: Some("db".into()), kind },
        })
    };
    let parts = [("quiesce", 12), ("fence", 3), ("transfer", 80)];
    vec![
        event(EventKind::Phase { attempt: attempt(), phase: "quiesce".into() }),
        event(EventKind::Round(round(2))),
        Response::Ok(Answer::Migrated(Box::new(MigrationReport {
            name: "db".into(),
            source: A,
            target: B,
            attempt: attempt(),
            epoch: 2,
            rounds: vec![round(1), round(2)],
            downtime_ms: parts.map(|(part, ms)| (part.to_owned(), ms)).to_vec(),
            downtime_total_ms: 95,
            total_ms: 700,
            predicted: None,
            budget_ms: None,
            clients: None,
            notes: Vec::new(),
        }))),
    ]
}

#[test]
fn migrate_prints_lines_while_it_runs_and_a_report_at_its_end() {
    let node = FakeNode::start(migrating);
    let text = node.run(&["migrate", "db", "--to", "b"]).ok().stdout;
    for words in [
        "db: phase quiesce",
        "db: round 2 to b",
        "db moved from a to b in 700 ms, down for 95 ms; epoch 2",
        "transfer       80 ms",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    let run = node.run(&["migrate", "db", "--to", "b", "--json"]).ok();
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
    let json = run.json();
    assert_eq!(json["epoch"], 2);
    assert_eq!(json["downtime_ms"]["total"], 95);
    assert_eq!(json["rounds"][1]["stream_bytes"], 1 << 20);
}

fn paired() -> Response {
    Response::Ok(Answer::Paired(PairedPeer {
        name: "b".into(),
        fingerprint: B,
        words: "birch comet".into(),
        own_words: "otter amber".into(),
        addresses: vec!["10.0.0.2:7001".into()],
    }))
}

fn pairing(request: &Request) -> Vec<Response> {
    match request {
        Request::Invite { .. } => vec![
            Response::InviteOpen(InviteOpen {
                addresses: vec!["10.0.0.1:7001".into()],
                code: "7K3F-M2QX-9".into(),
                expires_unix_s: 4_000_000_000,
                name: "a".into(),
                fingerprint: A,
                words: "otter amber".into(),
            }),
            paired(),
        ],
        Request::Join { .. } => vec![paired()],
        _ => vec![Response::Ok(Answer::Done)],
    }
}

#[test]
fn an_invitation_shows_the_other_nodes_command_and_both_nodes_words() {
    let node = FakeNode::start(pairing);
    let text = node.run(&["pair", "--invite"]).ok().stdout;
    for words in [
        "flocker-repl pair 10.0.0.1:7001 7K3F-M2QX-9",
        "otter amber",
        "birch comet",
        "grant b --receive recv/b",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    let run = node.run(&["pair", "--invite", "--json"]).ok();
    let first = run.stdout.lines().next().unwrap();
    let first: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!(first["invitation"]["code"], "7K3F-M2QX-9");
    assert_eq!(run.json()["paired"]["own_words"], "otter amber");
}

#[test]
fn joining_with_grant_options_grants_without_asking() {
    let node = FakeNode::start(pairing);
    let words = ["pair", "10.0.0.1:7001", "7k3f m2qx 9", "--receive", "recv/b"];
    let json = node.run(&[&words[..], &["--json"]].concat()).ok();
    assert_eq!(json.json()["paired"]["granted"], "recv/b");
    assert_eq!(json.stdout.lines().count(), 1);
    assert_eq!(
        node.asked(),
        [
            Request::Join { address: "10.0.0.1:7001".into(), code: "7k3f m2qx 9".into() },
            Request::Grant {
                peer: "b".into(),
                receive: Some("recv/b".into()),
                quota_bytes: None,
                workloads: Vec::new(),
            },
        ]
    );
}

#[test]
fn rounds_and_metrics_are_printed() {
    let node = FakeNode::start(|request| match request {
        Request::Rounds { .. } => vec![Response::Ok(Answer::Rounds(vec![StampedRound {
            at_unix_ms: 1_700_000_000_000,
            round: round(1),
        }]))],
        _ => vec![Response::Ok(Answer::Metrics("flocker_rounds_total 12\n".into()))],
    });
    let text = node.run(&["rounds", "db"]).ok().stdout;
    assert!(text.contains("everything") && text.contains("1.0 MiB"), "{text}");
    let json = node.run(&["rounds", "db", "--json"]).ok().json();
    assert_eq!(json["rounds"][0]["round"]["stream_bytes"], 1 << 20);
    assert_eq!(node.run(&["metrics"]).ok().stdout, "flocker_rounds_total 12\n");
}

#[test]
fn a_daemon_that_ends_in_the_middle_of_its_answer_is_an_error() {
    let node = FakeNode::start(|_| Vec::new());
    let run = node.run(&["migrate", "db", "--to", "b"]).fails_with(1);
    assert!(run.stderr.contains("ended before it had answered"), "{}", run.stderr);
}
