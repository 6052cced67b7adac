//! The picture of a node that `status` shows.

use std::collections::BTreeMap;

use super::{Node, Peer};
use crate::ids::{Fingerprint, Now};
use crate::record::Role;
use crate::replicate::Replica;
use crate::status::{NodeStatus, PeerStatus, StandbyStatus, UnitStatus};
use crate::unit::Unit;

impl Node {
    /// A picture of this node.
    pub fn status(&self, now: Now) -> NodeStatus {
        let mut units: Vec<_> = self.units.values().map(|u| u.status(now, &self.peers)).collect();
        units.sort_by(|a, b| a.name.cmp(&b.name));
        let peers = self.peers.values();
        NodeStatus {
            fingerprint: self.config.fingerprint,
            incarnation: self.config.incarnation,
            peers: peers
                .map(|p| PeerStatus { record: p.record.clone(), connected: p.connected })
                .collect(),
            units,
            orphans: self.orphans.keys().map(ToString::to_string).collect(),
        }
    }
}

impl Unit {
    fn status(&self, now: Now, peers: &BTreeMap<Fingerprint, Peer>) -> UnitStatus {
        let role = match self.record.role {
            Role::Serving | Role::Leaving { .. } => "primary",
            Role::HandedOver { .. } => "handed-over",
            Role::Following { .. } | Role::Ready { .. } => "standby",
        };
        let lag = |wall: i64| u64::try_from(now.wall_ms - wall).unwrap_or(0);
        UnitStatus {
            name: self.record.name.clone(),
            id: self.record.id,
            role: role.into(),
            epoch: self.record.epoch,
            doing: self.doing(),
            volumes: self.record.volumes.clone(),
            tree: self.record.tree.clone(),
            policy: self.record.policy,
            paused: self.record.paused,
            workload: self.record.workload.clone(),
            workload_state: self.workload_word(),
            lag_ms: (self.record.role.is_standby())
                .then(|| self.standby.equal_wall_ms.map(lag))
                .flatten(),
            lease_ms: self.record.lease_ms,
            lease_left_ms: self.lease_shown_ms(now.mono_ms),
            failover: self.record.failover.clone(),
            standbys: self.replicas.values().map(|r| self.standby_status(now, r, peers)).collect(),
            alarm: self.alarm.clone(),
        }
    }

    fn standby_status(
        &self,
        now: Now,
        replica: &Replica,
        peers: &BTreeMap<Fingerprint, Peer>,
    ) -> StandbyStatus {
        let peer = peers.get(&replica.peer);
        let lag_ms = replica.lag_ms(now);
        let last = replica.last.as_ref();
        let name = peer.map_or_else(|| replica.peer.short(), |p| p.record.name.clone());
        let rate = last.and_then(|r| (r.stream_bytes * 1000).checked_div(r.duration_ms));
        StandbyStatus {
            peer: replica.peer,
            one_way: self.record.one_way.contains(&replica.peer),
            sent_whole: self.sent_whole(replica, &name),
            name,
            connected: peer.is_some_and(|p| p.connected),
            doing: replica.doing(),
            lag_ms,
            within_rpo: lag_ms.is_some_and(|l| l <= self.record.policy.rpo_ms()),
            rounds: replica.rounds,
            stream_bytes: replica.stream_bytes,
            wire_bytes: replica.wire_bytes,
            bytes_per_second: rate,
            last_round_ms: last.map(|r| r.duration_ms),
            backlog: self.backlog(replica),
            failure: replica.failure.clone(),
        }
    }
}
