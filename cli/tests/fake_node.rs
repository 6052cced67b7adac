//! Every command against a node that answers as it is told: which request goes out, what is printed, and how
//! the command ends. Moves, failovers and the history: see `moves`.

mod common;

use common::fake::{A, B, FakeNode, done, round};
use flocker_core::ids::UnitId;
use flocker_core::record::{
    AddressRecord, ForwardRecord, Health, HealthCheck, Hooks, MoveMode, Policy, Program,
    StopSignal, WorkloadKind,
};
use flocker_core::{Failure, FailureCode};
use flocker_engine::api::{Answer, InviteOpen, PairedPeer, Request, Response, StampedRound};

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
    let network =
        ["--address", "10.0.0.5/24@eth0", "--forward", "0.0.0.0:1=127.0.0.1:2,10.0.0.2:2"];
    let rest =
        ["--stop-signal", "INT", "--health-command", "test -e 'a b'", "--health-limit", "5s"];
    let hooks = ["--before-stop", "sync now", "--", "x"];
    node.run(&[&["run", "db"], &network[..], &rest, &hooks].concat()).ok();
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
                program: Program::Process(vec!["x".into(), "--json".into()]),
                mode: MoveMode::Stop,
                stop_signal: StopSignal::Term,
                stop_limit_ms: 30_000,
                die_with_daemon: true,
                health: None,
                addresses: Vec::new(),
                forwards: Vec::new(),
                hooks: Hooks::default(),
            },
            Request::Run {
                name: "db".into(),
                program: Program::Process(vec!["x".into()]),
                mode: MoveMode::Stop,
                stop_signal: StopSignal::Int,
                stop_limit_ms: 10_000,
                die_with_daemon: false,
                health: Some(Health {
                    check: HealthCheck::Command(["test", "-e", "a b"].map(Into::into).to_vec()),
                    limit_ms: 5_000,
                }),
                addresses: vec![AddressRecord {
                    address: [10, 0, 0, 5].into(),
                    prefix: 24,
                    device: "eth0".into(),
                }],
                forwards: vec![ForwardRecord {
                    listen: "0.0.0.0:1".parse().unwrap(),
                    local: "127.0.0.1:2".parse().unwrap(),
                    remote: "10.0.0.2:2".parse().unwrap(),
                }],
                hooks: Hooks {
                    before_stop: Some(vec!["sync".into(), "now".into()]),
                    after_start: None,
                },
            },
        ]
    );
}

#[test]
fn protect_asks_for_the_policy_and_shows_where_the_files_are() {
    let node = FakeNode::start(|_| {
        vec![Response::Ok(Answer::Protected {
            name: "db".into(),
            unit: UnitId(7),
            adopted: Vec::new(),
            notes: Vec::new(),
        })]
    });
    let words = ["protect", "data/db", "data/wal", "--to", "b", "--create", "--lease", "10s"];
    let text = node.run(&words).ok().stdout;
    assert!(text.contains("(data/db, data/wal)"), "{text}");
    assert!(text.contains("its workload stops when b cannot be reached for 10.0 s"), "{text}");
    assert!(text.contains("never more than 1.00 s behind"), "{text}");
    assert!(text.contains("/v/live/data/db"), "{text}");
    let words = ["protect", "data/db", "--to", "b", "--every", "15m", "--json"];
    let json = node.run(&words).ok().json();
    assert_eq!(json["name"], "db");
    assert_eq!(json["path"], "/v/live/data/db");
    let first = &node.asked()[0];
    let Request::Protect { datasets, lease_ms, .. } = first else { panic!("{first:?}") };
    assert_eq!((datasets.len(), *lease_ms), (2, Some(10_000)));
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
    let codes =
        [(FailureCode::NotGranted, 4), (FailureCode::NoSpace, 4), (FailureCode::BadStream, 1)];
    for (code, exit) in codes {
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
