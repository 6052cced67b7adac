//! A node that answers as it is told.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;

use flocker_core::ids::{AttemptId, Epoch, Fingerprint, Incarnation, UnitId, VolumeId};
use flocker_core::io::RoundReport;
use flocker_core::record::{PeerRecord, Policy, VolumeRecord};
use flocker_core::status::{NodeStatus, PeerStatus, StandbyStatus, UnitStatus};
use flocker_engine::api::{Answer, NodeView, Request, Response};
use flocker_store::{DatasetKind, DatasetName};

use super::{Run, run};

pub(crate) const A: Fingerprint = Fingerprint([0xa1; 32]);
pub(crate) const B: Fingerprint = Fingerprint([0xb2; 32]);

/// A node that answers what it is told, and notes what it was asked.
pub(crate) struct FakeNode {
    _dir: tempfile::TempDir,
    config: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl FakeNode {
    /// `answer` gives the last line to each request; `status` is answered without it.
    pub(crate) fn start(answer: impl Fn(&Request) -> Vec<Response> + Send + 'static) -> Self {
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

    pub(crate) fn run(&self, words: &[&str]) -> Run {
        run(&[&["--config", &self.config], words].concat())
    }

    /// What it was asked, but for `status`.
    pub(crate) fn asked(&self) -> Vec<Request> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|request| !matches!(request, Request::Status { .. })).cloned().collect()
    }
}

pub(crate) fn done(_: &Request) -> Vec<Response> {
    vec![Response::Ok(Answer::Done)]
}

pub(crate) fn round(number: u64) -> RoundReport {
    RoundReport {
        peer: B,
        round: number,
        full: number == 1,
        stream_bytes: 1 << 20,
        wire_bytes: 1 << 19,
        saved_bytes: 0,
        duration_ms: 40,
        lag_before_ms: Some(500),
        frozen_ms: 2,
        skipped: 0,
    }
}

pub(crate) fn attempt() -> AttemptId {
    AttemptId { issuer: A, number: 1 }
}

pub(crate) fn view() -> NodeView {
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
        one_way: false,
        sent_whole: Vec::new(),
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
            raw: false,
            joining: false,
        }],
        tree: None,
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
        left_out: Default::default(),
        transfers: Vec::new(),
        forwards: Vec::new(),
        links: Vec::new(),
        rates: flocker_engine::api::RatesView::default(),
        paths: [("vault/data/db".to_owned(), "/v/live/data/db".into())].into(),
    }
}
