//! What people see: pure functions from what a node says to text.
//!
//! Owns: layout and words. Leaves to others: where it is printed and whether it is coloured
//! ([`crate::out`]).

pub(crate) mod event;
pub(crate) mod failover;
pub(crate) mod history;
pub(crate) mod migration;
pub(crate) mod rounds;
pub(crate) mod status;

use std::collections::BTreeMap;

use flocker_core::ids::Fingerprint;
use flocker_engine::api::NodeView;

/// What the nodes that one node knows are called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    all: BTreeMap<Fingerprint, String>,
    here: String,
}

impl Names {
    /// The node itself and its peers.
    pub(crate) fn of(view: &NodeView) -> Self {
        let peers =
            view.node.peers.iter().map(|peer| (peer.record.fingerprint, peer.record.name.clone()));
        let here = view.name.clone();
        Self { all: peers.chain([(view.node.fingerprint, here.clone())]).collect(), here }
    }

    /// The node that was asked.
    pub(crate) fn here(&self) -> &str {
        &self.here
    }

    /// The name, or the beginning of the fingerprint of one that is not known (any more).
    pub(crate) fn name(&self, fingerprint: Fingerprint) -> String {
        self.all.get(&fingerprint).cloned().unwrap_or_else(|| fingerprint.short())
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! A node, a unit, rounds and a migration for the tests of the printers.

    use flocker_core::failure::{Failure, FailureCode};
    use flocker_core::ids::{AttemptId, Epoch, Fingerprint, Incarnation, UnitId, VolumeId};
    use flocker_core::io::{MigrationReport, RoundReport};
    use flocker_core::record::{
        Grant, PeerRecord, Policy, VolumeRecord, WorkloadKind, WorkloadRecord,
    };
    use flocker_core::status::{NodeStatus, PeerStatus, StandbyStatus, UnitStatus};
    use flocker_engine::api::NodeView;
    use flocker_store::{DatasetKind, DatasetName};

    pub(crate) const A: Fingerprint = Fingerprint([0xa1; 32]);
    pub(crate) const B: Fingerprint = Fingerprint([0xb2; 32]);

    fn dataset(name: &str) -> DatasetName {
        DatasetName::new(name).unwrap()
    }

    pub(crate) fn round(number: u64) -> RoundReport {
        RoundReport {
            peer: B,
            round: number,
            full: number == 1,
            stream_bytes: (32 << 20) / number,
            wire_bytes: (12 << 20) / number,
            duration_ms: 410 / number,
            lag_before_ms: (number > 1).then_some(620),
            frozen_ms: 3,
            skipped: number - 1,
        }
    }

    pub(crate) fn attempt() -> AttemptId {
        AttemptId { issuer: A, number: 1 }
    }

    pub(crate) fn migration() -> MigrationReport {
        let parts = [("quiesce", 12), ("fence", 3), ("snapshot", 5), ("transfer", 80)];
        MigrationReport {
            name: "db".into(),
            source: A,
            target: B,
            attempt: attempt(),
            epoch: 2,
            rounds: vec![round(1), round(2)],
            downtime_ms: parts.map(|(part, ms)| (part.to_owned(), ms)).to_vec(),
            downtime_total_ms: 100,
            total_ms: 2400,
            predicted: None,
            budget_ms: None,
            clients: None,
            notes: vec!["the standby c was left behind".into()],
        }
    }

    pub(crate) fn standby() -> StandbyStatus {
        StandbyStatus {
            peer: B,
            name: "b".into(),
            connected: true,
            doing: "waiting".into(),
            lag_ms: Some(420),
            within_rpo: true,
            rounds: 12,
            stream_bytes: 41 << 20,
            wire_bytes: 9 << 20,
            bytes_per_second: Some(85 << 20),
            last_round_ms: Some(35),
            backlog: 0,
            failure: None,
        }
    }

    pub(crate) fn unit() -> UnitStatus {
        UnitStatus {
            name: "db".into(),
            id: UnitId(7),
            role: "primary".into(),
            epoch: Epoch { number: 1, owner: A, attempt: attempt() },
            doing: "replicating".into(),
            volumes: vec![VolumeRecord {
                id: VolumeId(9),
                dataset: dataset("data/db"),
                kind: DatasetKind::Directory,
                modern_streams: true,
            }],
            policy: Policy::Rpo(1000),
            paused: false,
            workload: Some(WorkloadRecord::process(
                ["server", "--port", "5000"].map(str::to_owned).to_vec(),
            )),
            workload_state: "running".into(),
            lag_ms: None,
            lease_ms: None,
            lease_left_ms: None,
            failover: None,
            standbys: vec![standby()],
            alarm: None,
        }
    }

    pub(crate) fn failure() -> Failure {
        Failure::refused(
            FailureCode::NoSpace,
            "b: recv/a/db has no room for 3 GiB: make room or raise the quota",
        )
    }

    pub(crate) fn peer() -> PeerStatus {
        PeerStatus {
            record: PeerRecord {
                fingerprint: B,
                name: "b".into(),
                addresses: vec!["10.0.0.2:7001".into()],
                grant: Some(Grant {
                    receive: dataset("recv/b"),
                    quota_bytes: Some(10 << 30),
                    workloads: [WorkloadKind::Process].into(),
                }),
            },
            connected: true,
        }
    }

    pub(crate) fn view() -> NodeView {
        NodeView {
            name: "a".into(),
            version: "0.1.0".into(),
            pid: 1234,
            uptime_ms: 65_000,
            listen: "10.0.0.1:7001".into(),
            store: "vault:/srv/a".into(),
            root: String::new(),
            words: "otter amber".into(),
            node: NodeStatus {
                fingerprint: A,
                incarnation: Incarnation(1),
                peers: vec![peer()],
                units: vec![unit()],
                orphans: Vec::new(),
            },
            transfers: Vec::new(),
            forwards: Vec::new(),
            links: Vec::new(),
            paths: [("data/db".to_owned(), "/srv/a/live/data/db".into())].into(),
        }
    }
}
