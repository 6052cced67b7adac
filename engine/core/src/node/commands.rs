//! What a person can ask for, and what a peer's introduction leads to.

use super::{Node, Peer};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{AttemptId, Epoch, Fingerprint, Now, RequestId, UnitId};
use crate::io::{Action, Command, Effect, Outcome, Reply};
use crate::limits::{LEASE_LEAST_MS, MAX_VOLUMES, SILENT_MS};
use crate::record::{
    Adoption, Grant, JournalChange, PeerRecord, Policy, Role, UnitRecord, VolumeRecord,
};
use crate::replicate::Asked;
use crate::unit::{Ending, Op, Unit};
use flocker_store::DatasetInfo;
use std::collections::{BTreeMap, BTreeSet};

impl Node {
    pub(super) fn command(&mut self, now: Now, request: RequestId, command: Command) {
        let mut ctx = ctx!(self, now);
        let answer = match command {
            Command::AddPeer(record) => self.add_peer(now, record),
            Command::SetGrant { peer, grant } => self.set_grant(&peer, grant),
            Command::RemovePeer { peer } => self.remove_peer(now, &peer),
            Command::Protect { .. } => match self.begin_protect(now, request, command) {
                Ok(()) => return,
                Err(failure) => Err(failure),
            },
            Command::Extend { .. } => match self.begin_extend(now, request, command) {
                Ok(()) => return,
                Err(failure) => Err(failure),
            },
            Command::SetWorkload { name, workload } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.set_workload(&mut ctx, request, workload),
                Err(failure) => Err(failure),
            },
            Command::StopWorkload { name } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.stop_workload(&mut ctx, request),
                Err(failure) => Err(failure),
            },
            Command::Migrate { name, to, budget_ms, dry_run, accept } => {
                let target = find_peer(&self.peers, &to);
                match (find(&mut self.units, &name), target) {
                    (Ok(unit), Ok(target)) => {
                        return unit.migrate(&mut ctx, request, target, budget_ms, dry_run, accept);
                    }
                    (Err(failure), _) | (_, Err(failure)) => Err(failure),
                }
            }
            Command::CancelMigration { name } => {
                find(&mut self.units, &name).and_then(|u| u.cancel_migration(&mut ctx))
            }
            Command::Failover { name, primary_is_down, dry_run } => {
                match find(&mut self.units, &name) {
                    Ok(unit) => return unit.fail_over(&mut ctx, request, primary_is_down, dry_run),
                    Err(failure) => Err(failure),
                }
            }
            Command::Drill { name } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.drill(&mut ctx, request),
                Err(failure) => Err(failure),
            },
            Command::Resolve { name, dry_run } => match find(&mut self.units, &name) {
                Ok(unit) => return unit.resolve(&mut ctx, request, dry_run),
                Err(failure) => Err(failure),
            },
            Command::Pause { name } => self.set_paused(now, &name, true),
            Command::Resume { name } => self.set_paused(now, &name, false),
            Command::Unprotect { name, store_is_gone } => {
                match self.unprotect(now, request, &name, store_is_gone) {
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            Command::StartAlone { name } => {
                find(&mut self.units, &name).and_then(|u| u.start_alone(&mut ctx))
            }
        };
        self.out.effects.push_back(Effect::Reply { request, reply: answer.map(|()| Reply::Done) });
    }

    pub(super) fn add_peer(&mut self, now: Now, mut record: PeerRecord) -> Result<(), Failure> {
        if record.fingerprint == self.config.fingerprint {
            let text = "a node cannot be its own peer";
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        let same_name =
            |p: &Peer| p.record.name == record.name && p.record.fingerprint != record.fingerprint;
        if self.peers.values().any(same_name) {
            // Two peers of one name could not be told apart in commands.
            record.name = format!("{}-{}", record.name, record.fingerprint.short());
        }
        let known = self.peers.get(&record.fingerprint);
        if record.grant.is_none() {
            record.grant = known.and_then(|p| p.record.grant.clone());
        }
        let connected = known.is_some_and(|p| p.connected);
        let change = JournalChange::PutPeer(record.clone());
        self.out.effects.push_back(Effect::Persist(vec![change]));
        self.peers.insert(record.fingerprint, Peer { record, connected });
        self.peers_changed();
        let _ = now;
        Ok(())
    }

    pub(super) fn peers_changed(&mut self) {
        let peers = self.peers.values().map(|p| p.record.clone()).collect();
        self.out.effects.push_back(Effect::PeersChanged(peers));
    }

    pub(super) fn set_grant(&mut self, peer: &str, grant: Option<Grant>) -> Result<(), Failure> {
        if let Some(grant) = &grant {
            let root = &self.config.store.root;
            if !grant.receive.is_within(root) {
                let text = format!(
                    "{} is not within {root}, where this node's store works",
                    grant.receive
                );
                return Err(Failure::refused(FailureCode::BadRequest, text));
            }
        }
        let fingerprint = find_peer(&self.peers, peer)?;
        let Some(known) = self.peers.get_mut(&fingerprint) else {
            unreachable!("just found");
        };
        known.record.grant = grant;
        let change = JournalChange::PutPeer(known.record.clone());
        self.out.effects.push_back(Effect::Persist(vec![change]));
        Ok(())
    }

    pub(super) fn remove_peer(&mut self, now: Now, peer: &str) -> Result<(), Failure> {
        let fingerprint = find_peer(&self.peers, peer)?;
        let needs = |u: &&Unit| {
            u.record.standbys.contains(&fingerprint)
                || match u.record.role {
                    Role::Following { source } | Role::Ready { source, .. } => {
                        source == fingerprint
                    }
                    Role::Leaving { target, .. } | Role::HandedOver { target, .. } => {
                        target == fingerprint
                    }
                    Role::Serving => false,
                }
        };
        let names: Vec<_> =
            self.units.values().filter(needs).map(|u| u.record.name.clone()).collect();
        if !names.is_empty() {
            let text = format!(
                "{peer} is needed by {}: run `flocker-repl unprotect` for each first",
                names.join(", ")
            );
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        self.peer_down(now, fingerprint);
        self.peers.remove(&fingerprint);
        let change = JournalChange::DeletePeer(fingerprint);
        self.out.effects.push_back(Effect::Persist(vec![change]));
        self.peers_changed();
        Ok(())
    }

    pub(super) fn set_paused(&mut self, now: Now, name: &str, paused: bool) -> Result<(), Failure> {
        let unit = find(&mut self.units, name)?;
        if !unit.record.role.is_primary() {
            let text = format!("{name} is not primary here; pause and resume it where it is");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        if unit.cutover.is_some() {
            let text = format!("{name} is being migrated; wait until it has ended");
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        unit.record.paused = paused;
        unit.persist(&mut ctx!(self, now));
        Ok(())
    }

    pub(super) fn unprotect(
        &mut self,
        now: Now,
        request: RequestId,
        name: &str,
        store_is_gone: bool,
    ) -> Result<(), Failure> {
        let peers = &self.peers;
        let unit = find(&mut self.units, name)?;
        if unit.ending.is_some() {
            let text = format!("{name} is being let go already");
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        let keep_newest = match unit.record.role {
            Role::Serving if unit.cutover.is_none() => {
                if unit.fully_up() && unit.record.workload.as_ref().is_some_and(|w| w.wanted) {
                    let text = format!(
                        "{name} has a running workload; stop it first: flocker-repl stop {name}"
                    );
                    return Err(Failure::refused(FailureCode::Busy, text));
                }
                false
            }
            Role::Following { source } => {
                let silent_ms = 2 * unit.record.policy.rpo_ms() + SILENT_MS;
                let heard = unit.standby.heard_at.is_some_and(|at| now.mono_ms < at + silent_ms);
                if heard && peers.get(&source).is_some_and(|p| p.connected) {
                    let text = format!(
                        "{name} is a standby of {}; run `flocker-repl unprotect {name}` there",
                        peers.get(&source).map_or_else(String::new, |p| p.record.name.clone())
                    );
                    return Err(Failure::refused(FailureCode::BadRequest, text));
                }
                true
            }
            Role::Serving | Role::Leaving { .. } | Role::HandedOver { .. } | Role::Ready { .. } => {
                let text = format!("{name} is being migrated; wait until it has ended");
                return Err(Failure::refused(FailureCode::Busy, text));
            }
        };
        let ending =
            Ending { keep_newest, request: Some(request), store_is_gone, ..Ending::default() };
        unit.end(&mut ctx!(self, now), ending);
        Ok(())
    }

    pub(super) fn begin_protect(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
    ) -> Result<(), Failure> {
        let Command::Protect { unit, volumes, to, lease_ms, .. } = &command else {
            unreachable!("only called for it");
        };
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let peer = find_peer(&self.peers, to)?;
        if let Some(lease) = lease_ms.filter(|l| *l < LEASE_LEAST_MS) {
            let text = format!("a lease of {lease} ms is too short: at least {LEASE_LEAST_MS} ms");
            return refuse(FailureCode::BadRequest, text);
        }
        if !self.peers.get(&peer).is_some_and(|p| p.connected) {
            let text = format!("{to} is not connected; is its daemon running and reachable?");
            return refuse(FailureCode::ConnectionLost, text);
        }
        let datasets: Vec<_> = volumes.iter().map(|(_, dataset)| dataset.clone()).collect();
        let root = &self.config.store.root;
        if let Some(outside) = datasets.iter().find(|d| !d.is_within(root)) {
            let text = format!("{outside} is not within {root}, where this node's store works");
            return refuse(FailureCode::BadRequest, text);
        }
        check_group(&datasets)?;
        let unit = *unit;
        let op = Op::NodeProtect { request, command: Box::new(command) };
        ctx!(self, now).run(unit, op, Action::Inspect { datasets, streams: true });
        Ok(())
    }

    pub(super) fn protect_inspected(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) {
        if let Err(failure) = self.protect(now, request, command, outcome) {
            self.out.effects.push_back(Effect::Reply { request, reply: Err(failure) });
        }
    }

    pub(super) fn protect(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let Command::Protect { unit, volumes, tree, to, name, policy, lease_ms, adoption, one_way } =
            command
        else {
            unreachable!("only called for it");
        };
        let peer = find_peer(&self.peers, &to)?;
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        let mut infos = Vec::new();
        for (found, (_, dataset)) in found.iter().zip(&volumes) {
            match &found.info {
                Some(info) => infos.push(info.clone()),
                None => {
                    let text = format!("dataset {dataset} does not exist");
                    return refuse(FailureCode::NotFound, text);
                }
            }
        }
        let asked_for: BTreeSet<_> = volumes.iter().map(|(_, dataset)| dataset).collect();
        let of_it = |u: &&mut Unit| u.record.volumes.iter().any(|v| asked_for.contains(&v.dataset));
        if let Some(existing) = self.units.values_mut().find(of_it) {
            let mut theirs: Vec<_> = existing.datasets();
            let mut ours: Vec<_> = volumes.iter().map(|(_, d)| d.clone()).collect();
            theirs.sort();
            ours.sort();
            if ours != theirs {
                let text = format!(
                    "{} is protected already, with these volumes: {}; name just these",
                    existing.record.name,
                    crate::tree::some_of(&theirs)
                );
                return refuse(FailureCode::Exists, text);
            }
            let mut ctx = ctx!(self, now);
            let streams = found.into_iter().filter_map(|f| f.streams).collect();
            let asked = Asked { request, peer, notes: Vec::new(), streams, one_way };
            return existing.add_standby(&mut ctx, asked, policy, lease_ms, adoption);
        }
        // One that was renamed out of a unit's tree is none of its volumes any more.
        let claimed = found.iter().zip(&volumes).find_map(|(f, (_, d))| {
            let claim = f.mirror.as_ref().filter(|m| !self.units.contains_key(&m.unit));
            Some((claim?, d))
        });
        if let Some((mirror, dataset)) = claimed {
            let text = format!(
                "{dataset} says that it belongs to unit {}, which this node's journal does not know",
                mirror.unit
            );
            return refuse(FailureCode::Conflict, text);
        }
        let name = name.unwrap_or_else(|| volumes[0].1.leaf().to_owned());
        if let Err(e) = flocker_store::DatasetName::new(name.clone()) {
            return refuse(FailureCode::BadRequest, format!("a unit cannot be named so: {e}"));
        }
        if name.contains('/') {
            return refuse(FailureCode::BadRequest, "a unit's name has no `/`".into());
        }
        if self.units.values().any(|u| u.record.name == name) {
            return refuse(FailureCode::Exists, format!("there is a unit named {name} already"));
        }
        let notes = self.look_at_origins(now, peer, &infos);
        let attempt = AttemptId { issuer: self.config.fingerprint, number: 0 };
        let modern_streams = self.config.store.modern_streams.unwrap_or(true);
        let volumes = (volumes.into_iter().zip(infos))
            .map(|((id, dataset), info)| VolumeRecord {
                id,
                dataset,
                kind: info.kind,
                modern_streams,
                raw: info.encrypted,
                joining: false,
            })
            .collect();
        let epoch = Epoch { number: 1, owner: self.config.fingerprint, attempt };
        let mut record = UnitRecord::new(unit, name, volumes, policy, epoch, Role::Serving);
        record.standbys = vec![peer];
        record.adopting = adoption.map(|a| (peer, a)).into_iter().collect();
        record.one_way = one_way.then_some(peer).into_iter().collect();
        record.own = true;
        record.tree = tree;
        record.lease_ms = lease_ms;
        let streams = found.into_iter().filter_map(|f| f.streams).collect();
        self.serve_new(now, record, Asked { request, peer, notes, streams, one_way });
        Ok(())
    }

    /// Of volumes that are clones: who has their origins looks what there is, and it is said where nobody
    /// brings them to the standby.
    pub(super) fn look_at_origins(
        &mut self,
        now: Now,
        peer: Fingerprint,
        infos: &[DatasetInfo],
    ) -> Vec<String> {
        let mut notes = Vec::new();
        for info in infos {
            let Some(origin) = &info.origin else { continue };
            let dataset = origin.name.dataset();
            let mut brought = infos.iter().any(|i| i.name == *dataset);
            for unit in self.units.values_mut() {
                brought |= unit.record.standbys.contains(&peer)
                    && unit.record.volumes.iter().any(|v| v.dataset == *dataset);
                unit.is_cloned(&mut ctx!(self, now), dataset);
            }
            if !brought || !self.config.store.clones {
                notes.push(format!(
                    "{} is a clone of {}, which {} has not got: all of it is sent. Had {dataset} been \
                     protected first, only what differs would be",
                    info.name,
                    origin.name,
                    ctx!(self, now).peer_name(peer)
                ));
            }
        }
        notes
    }

    pub(super) fn serve_new(&mut self, now: Now, record: UnitRecord, asked: Asked) {
        let mut unit = Unit::new(record);
        let mut ctx = ctx!(self, now);
        unit.persist(&mut ctx);
        unit.upkeep.mirror_due = true;
        unit.work = crate::service::Work::Stopped;
        unit.activate(&mut ctx);
        unit.expect_protection(&ctx, asked);
        self.units.insert(unit.id(), unit);
    }
}

/// Volumes of one unit are snapshotted as one moment, and named on the standby by where they lie: a tree as it is,
/// those beside each other by their last components.
///
/// # Errors
/// These cannot be one unit, and why.
pub fn check_group(datasets: &[flocker_store::DatasetName]) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::refused(FailureCode::BadRequest, text));
    let Some(first) = datasets.first() else {
        return refuse("a unit has at least one volume: name a dataset".into());
    };
    if datasets.len() > MAX_VOLUMES {
        return refuse(format!("a unit has at most {MAX_VOLUMES} volumes"));
    }
    let mut places: BTreeMap<String, &flocker_store::DatasetName> = BTreeMap::new();
    for (dataset, place) in datasets.iter().zip(crate::tree::places(datasets)) {
        if dataset.pool() != first.pool() {
            return refuse(format!(
                "{first} and {dataset} are in two pools: a unit is snapshotted as one moment, which \
                 needs one pool; protect them as two units"
            ));
        }
        if let Some(twin) = places.insert(place, dataset) {
            return refuse(format!(
                "{twin} and {dataset} have the same last component, by which the standby names them; \
                 rename one"
            ));
        }
    }
    Ok(())
}

pub(super) fn find<'a>(
    units: &'a mut BTreeMap<UnitId, Unit>,
    name: &str,
) -> Result<&'a mut Unit, Failure> {
    let known: Vec<_> = units.values().map(|u| u.record.name.clone()).collect();
    let found = units.values_mut().find(|u| u.record.name == name && u.ending.is_none());
    found.ok_or_else(|| {
        let text = match known.as_slice() {
            [] => format!("there is no unit named {name}; none is protected here yet"),
            _ => format!("there is no unit named {name}; there are: {}", known.join(", ")),
        };
        Failure::refused(FailureCode::NotFound, text)
    })
}

pub(super) fn find_peer(
    peers: &BTreeMap<Fingerprint, Peer>,
    text: &str,
) -> Result<Fingerprint, Failure> {
    if let Ok(fingerprint) = text.parse::<Fingerprint>()
        && peers.contains_key(&fingerprint)
    {
        return Ok(fingerprint);
    }
    if let Some(peer) = peers.values().find(|p| p.record.name == text) {
        return Ok(peer.record.fingerprint);
    }
    let names: Vec<_> = peers.values().map(|p| p.record.name.as_str()).collect();
    let text = match names.as_slice() {
        [] => format!("{text} is not paired with this node; run `flocker-repl pair` first"),
        _ => format!("{text} is not paired with this node; peers: {}", names.join(", ")),
    };
    Err(Failure::refused(FailureCode::NotFound, text))
}

impl Unit {
    pub(super) fn add_standby(
        &mut self,
        ctx: &mut Ctx,
        asked: Asked,
        policy: Policy,
        lease_ms: Option<u64>,
        adoption: Option<Adoption>,
    ) -> Result<(), Failure> {
        let (request, peer) = (asked.request, asked.peer);
        let name = self.record.name.clone();
        if self.record.role != Role::Serving {
            let text = format!("{name} is not primary here; protect it where it is");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        let leased = lease_ms.is_some() || self.record.lease_ms.is_some();
        let others = self.record.standbys.iter().any(|s| *s != peer);
        if leased && others {
            let text =
                format!("{name}: a unit with a lease has one standby, the one that gives it");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        if lease_ms != self.record.lease_ms
            && self.record.workload.as_ref().is_some_and(|w| w.wanted)
        {
            let text = format!(
                "{name}: a lease is begun or ended while the workload is stopped: flocker-repl stop {name}"
            );
            return Err(Failure::refused(FailureCode::Busy, text));
        }
        if let Some(adoption) = adoption.clone().filter(|_| self.record.standbys.contains(&peer)) {
            return self.adopt_after_all(ctx, asked, adoption);
        }
        if self.record.standbys.contains(&peer) {
            // Already protected: the promise may have changed.
            self.record.policy = policy;
            self.record.lease_ms = lease_ms;
            // Without the word nothing was looked at anew: what was accepted stays so.
            self.record.one_way.extend(asked.one_way.then_some(peer));
            self.persist(ctx);
            let unit = self.record.id;
            ctx.reply(
                request,
                Ok(Reply::Protected { name, unit, adopted: Vec::new(), notes: Vec::new() }),
            );
            return Ok(());
        }
        self.record.standbys.push(peer);
        self.record.adopting.extend(adoption.map(|a| (peer, a)));
        self.record.one_way.extend(asked.one_way.then_some(peer));
        self.persist(ctx);
        self.expect_protection(ctx, asked);
        Ok(())
    }
}
