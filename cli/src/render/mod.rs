//! What people see: pure functions from what a node says to text.
//!
//! Owns: layout and words. Leaves to others: where it is printed and whether it is coloured
//! ([`crate::out`]).

pub(crate) mod event;
pub(crate) mod failover;
pub(crate) mod history;
pub(crate) mod holds;
pub(crate) mod migration;
pub(crate) mod plain;
pub(crate) mod resolve;
pub(crate) mod rounds;
pub(crate) mod status;
pub(crate) mod volumes;

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
    use flocker_core::io::{
        DrillReport, FailoverPlan, FailoverReport, MigrationPlan, MigrationReport, Prediction,
        RoundReport,
    };
    use flocker_core::record::{
        AddressRecord, FailoverRecord, ForwardRecord, Grant, PeerRecord, Policy, Proof,
        VolumeRecord, WorkloadKind, WorkloadRecord,
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
            saved_bytes: 0,
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
            theirs_ms: Vec::new(),
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
            one_way: false,
            sent_whole: Vec::new(),
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
                raw: false,
                joining: false,
            }],
            tree: None,
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

    pub(crate) fn prediction() -> Prediction {
        Prediction {
            fixed_ms: 60,
            delta_bytes: 6 << 20,
            bytes_per_second: Some(100 << 20),
            written_per_second: Some(4 << 20),
            downtime_ms: 120,
            from_moves: 3,
        }
    }

    pub(crate) fn migration_plan() -> MigrationPlan {
        MigrationPlan {
            name: "db".into(),
            source: A,
            target: B,
            prediction: prediction(),
            budget_ms: Some(100),
            available_bytes: 3 << 30,
            notes: Vec::new(),
        }
    }

    pub(crate) fn failover_plan() -> FailoverPlan {
        FailoverPlan {
            name: "db".into(),
            primary: B,
            primary_connected: false,
            instance: "repl-1-3".into(),
            taken_unix_s: 1_700_000_000,
            age_ms: 1200,
            receiving: true,
            proofs: vec![Proof::LeaseRanOut],
            lease_left_ms: Some(4000),
        }
    }

    pub(crate) fn failover() -> FailoverReport {
        let parts = [("drain", 5), ("prove", 4000), ("set back", 20), ("mount", 9), ("start", 66)];
        FailoverReport {
            plan: failover_plan(),
            proof: Proof::LeaseRanOut,
            epoch: 3,
            parts_ms: parts.map(|(part, ms)| (part.to_owned(), ms)).to_vec(),
            total_ms: 4100,
            aside: vec![dataset("data/db-diverged-1")],
            notes: Vec::new(),
        }
    }

    pub(crate) fn failover_record() -> FailoverRecord {
        FailoverRecord {
            epoch: 3,
            proof: Proof::LeaseRanOut,
            wall_ms: 1_700_000_000_000,
            instance: "repl-1-3".into(),
        }
    }

    pub(crate) fn drill() -> DrillReport {
        let parts = [("clone", 8), ("start", 40), ("health", 32), ("stop", 12), ("remove", 8)];
        DrillReport {
            name: "db".into(),
            instance: "repl-1-3".into(),
            age_ms: 420,
            parts_ms: parts.map(|(part, ms)| (part.to_owned(), ms)).to_vec(),
            trouble: None,
            rounds_meanwhile: 2,
        }
    }

    /// A workload with all that can move along.
    pub(crate) fn networked() -> WorkloadRecord {
        WorkloadRecord {
            addresses: vec![AddressRecord {
                address: [10, 0, 0, 50].into(),
                prefix: 24,
                device: "eth0".into(),
            }],
            forwards: vec![ForwardRecord {
                listen: "10.0.0.1:5432".parse().unwrap(),
                local: "127.0.0.1:5433".parse().unwrap(),
                remote: "10.0.0.2:5433".parse().unwrap(),
            }],
            ..WorkloadRecord::process(vec!["server".into()])
        }
    }

    /// A unit of two volumes with a lease, that this node took over.
    pub(crate) fn group() -> UnitStatus {
        let mut unit = unit();
        let mut second = unit.volumes[0].clone();
        second.dataset = dataset("data/wal");
        unit.volumes.push(second);
        unit.lease_ms = Some(10_000);
        unit.lease_left_ms = Some(8200);
        unit.failover = Some(failover_record());
        unit.workload = Some(networked());
        unit
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
            left_out: Default::default(),
            forwards: Vec::new(),
            links: Vec::new(),
            rates: flocker_engine::api::RatesView::default(),
            paths: [("data/db".to_owned(), "/srv/a/live/data/db".into())].into(),
        }
    }
}
