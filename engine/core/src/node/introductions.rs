//! A peer wants this node to keep replicas of a unit that it did not know.

use std::collections::BTreeSet;

use flocker_store::{DatasetName, Inventory, SnapshotName};

use super::Node;
use super::adoptions::{self, Place};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Fingerprint, Now, OpId};
use crate::io::{Effect, Inspected, Outcome};
use crate::limits::MAX_VOLUMES;
use crate::message::{Adopted, Body, Message, VolumeIntro};
use crate::record::{Adoption, JournalChange, Role, UnitRecord, VolumeRecord};
use crate::standby;
use crate::tree;
use crate::unit::{Ending, Op, Unit};

impl Node {
    pub(super) fn done(&mut self, now: Now, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some((id, what)) = self.out.ops.remove(&op) else {
            return;
        };
        match what {
            Op::NodeIntro { peer, message } => self.introduced(now, peer, *message, outcome),
            Op::NodeAdopt(adopting) => self.adoption_done(now, *adopting, outcome),
            Op::NodeProtect { request, command } => {
                self.protect_inspected(now, request, *command, outcome);
            }
            Op::NodeExtend { request, command } => {
                self.extend_inspected(now, request, *command, outcome);
            }
            Op::GiveBack => {
                let Some(unit) = self.units.get_mut(&id) else {
                    return;
                };
                if unit.end_done(&mut ctx!(self, now), op, outcome) {
                    self.units.remove(&id);
                    let change = JournalChange::DeleteUnit(id);
                    self.out.effects.push_back(Effect::Persist(vec![change]));
                }
            }
            what => {
                if let Some(unit) = self.units.get_mut(&id) {
                    unit.handle_done(&mut ctx!(self, now), op, &what, outcome);
                }
            }
        }
    }

    /// A peer wants this node to keep replicas of a unit it did not know, and we have looked.
    pub(super) fn introduced(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: Message,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.units.contains_key(&message.unit) || self.is_adopting(message.unit) {
            // Introduced twice while we were looking, and long answered; epochs may have moved on.
            return;
        }
        if self.let_go_of_namesake(now, peer, &message, &outcome) {
            return; // Introduced again soon, when the name is free.
        }
        match self.judge_intro(now, peer, &message, outcome) {
            Ok(intro) if intro.adopted.is_empty() => {
                self.follow(now, peer, &message, &intro.datasets, Vec::new());
                self.answer_intro(now, peer, &message, Ok(Vec::new()));
            }
            Ok(intro) => self.begin_adoption(now, peer, message, intro),
            Err(failure) => self.answer_intro(now, peer, &message, Err(failure)),
        }
    }

    pub(super) fn answer_intro(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        answer: Result<Vec<Adopted>, Failure>,
    ) {
        let body = Body::IntroReply(answer);
        let message = Message { unit: message.unit, epoch: message.epoch, body };
        ctx!(self, now).send(peer, message);
    }

    /// Names are unique on the peer, so a unit of the same name that follows this very peer is one
    /// that it has let go of, and whose end we did not hear of. Only where nothing was received yet:
    /// should this be an old introduction that comes late, the other unit is introduced again.
    fn let_go_of_namesake(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        outcome: &Result<Outcome, Failure>,
    ) -> bool {
        let (Body::Intro { name, .. }, Ok(Outcome::Inspected(found))) = (&message.body, outcome)
        else {
            return false;
        };
        if message.epoch.owner != peer {
            return false;
        }
        let namesake = self.units.values_mut().find(|u| {
            let follows = matches!(u.record.role, Role::Following { source } if source == peer);
            // What was looked at may be older than what was received meanwhile.
            let empty = !u.standby.is_busy() && u.has_nothing_of_ours(found);
            u.record.name == *name && u.record.id != message.unit && follows && empty
        });
        let Some(unit) = namesake else {
            return false;
        };
        if unit.ending.is_none() {
            unit.end(&mut ctx!(self, now), Ending { keep_newest: true, ..Ending::default() });
        }
        true
    }

    /// Whether this node can keep what is introduced, and where.
    fn judge_intro(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        outcome: Result<Outcome, Failure>,
    ) -> Result<Introduction, Failure> {
        let Body::Intro { name, volumes, adoption, takes_back, .. } = &message.body else {
            unreachable!("only introductions are looked into");
        };
        if message.epoch.owner != peer {
            let text = format!("{name} is not yours to introduce");
            return Err(Failure::refused(FailureCode::Conflict, text));
        }
        let datasets = intro_datasets(&ctx!(self, now), peer, name, volumes, adoption.as_ref())?;
        self.may_follow(message, &datasets)?;
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        let peer_name = ctx!(self, now).peer_name(peer);
        let mut adopted = Vec::new();
        let places: Vec<&str> = volumes.iter().map(|v| v.place.as_str()).collect();
        let tops = tree::tops_of_places(&places);
        for (at, ((found, dataset), volume)) in found.iter().zip(&datasets).zip(volumes).enumerate()
        {
            // Of a tree that is adopted, what the other tool has not sent is sent anew.
            let adoption = adoption.as_ref().filter(|_| found.info.is_some() || tops[at] == at);
            match check_place(found, dataset, message, volume, adoption)? {
                Place::Ours => {}
                Place::Adopt(base) => adopted.push(base),
            }
            if let Some(streams) = &found.streams {
                let (me, back) = (&self.config.store, takes_back.as_ref());
                standby::streams::check(me, &peer_name, volume, dataset, streams, back)?;
            }
        }
        Ok(Introduction { datasets, adopted })
    }

    /// Neither its name nor its places are another unit's.
    pub(super) fn may_follow(
        &self,
        message: &Message,
        datasets: &[DatasetName],
    ) -> Result<(), Failure> {
        let Body::Intro { name, .. } = &message.body else {
            unreachable!("only introductions are looked into");
        };
        if self.units.values().any(|u| u.record.name == *name) {
            let text = format!("this node has another unit named {name}; protect with --name");
            return Err(Failure::refused(FailureCode::Exists, text));
        }
        let datasets: BTreeSet<&DatasetName> = datasets.iter().collect();
        for unit in self.units.values() {
            if let Some(v) = unit.record.volumes.iter().find(|v| datasets.contains(&v.dataset)) {
                return Err(adoptions::taken(&v.dataset, &unit.record.name));
            }
        }
        Ok(())
    }

    /// From here on it is a standby of the peer.
    pub(super) fn follow(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        datasets: &[DatasetName],
        adopted: Vec<Adopted>,
    ) {
        let Body::Intro { name, volumes, tree, volumes_as_of, policy, lease_ms, .. } =
            &message.body
        else {
            unreachable!("only introductions are looked into");
        };
        let volumes = (volumes.iter().zip(datasets))
            .map(|(v, dataset)| VolumeRecord {
                id: v.id,
                dataset: dataset.clone(),
                kind: v.kind,
                modern_streams: v.modern_streams,
                raw: v.raw,
                joining: false,
            })
            .collect();
        let role = Role::Following { source: peer };
        let mut record =
            UnitRecord::new(message.unit, name.clone(), volumes, *policy, message.epoch, role);
        record.lease_ms = *lease_ms;
        record.tree.clone_from(tree);
        record.volumes_as_of = *volumes_as_of;
        let mut unit = Unit::new(record);
        unit.standby.adopted = adopted;
        let mut ctx = ctx!(self, now);
        unit.persist(&mut ctx);
        unit.enter_role(&mut ctx);
        self.orphans.retain(|_, m| m.unit != message.unit);
        self.units.insert(unit.id(), unit);
    }
}

impl Unit {
    /// Whether, as far as was found, no step of this unit has come here yet.
    fn has_nothing_of_ours(&self, found: &[Inspected]) -> bool {
        let prefix = self.prefix();
        let ours = |i: &Inventory| i.snapshots.iter().any(|s| s.name.short().starts_with(&prefix));
        if found.iter().any(|f| ours(&f.inventory)) {
            return false;
        }
        let known = self.local.inventories.as_deref();
        self.local.exists.iter().enumerate().all(|(at, exists)| match known {
            _ if !exists => true,
            Some(inventories) => inventories.get(at).is_none_or(|i| !ours(i)),
            // What was found just now is all that is known.
            None => found
                .iter()
                .flat_map(|f| &f.info)
                .any(|i| self.record.volumes.get(at).is_some_and(|v| v.dataset == i.name)),
        })
    }
}

/// An introduction that this node can follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// Where each volume is kept.
    pub(super) datasets: Vec<DatasetName>,
    /// Of replicas that are there already, and not this unit's: the newest snapshot that the primary has, too.
    pub(super) adopted: Vec<SnapshotName>,
}

/// Where the volumes of a unit that a peer introduces would be kept.
pub(super) fn intro_datasets(
    ctx: &Ctx,
    peer: Fingerprint,
    name: &str,
    volumes: &[VolumeIntro],
    adoption: Option<&Adoption>,
) -> Result<Vec<DatasetName>, Failure> {
    standby::check_intro(ctx, peer, false, volumes)?;
    let bad = |text: &str| Err(Failure::refused(FailureCode::BadRequest, text));
    if name.contains('/') || volumes.is_empty() {
        return bad("a unit has a name without `/` and at least one volume");
    }
    let Some(grant) = standby::grant_of(ctx, peer) else {
        return bad("nothing is granted");
    };
    if volumes.len() > MAX_VOLUMES {
        return bad(&format!("a unit has at most {MAX_VOLUMES} volumes"));
    }
    let datasets = match adoption.filter(|a| !a.places.is_empty()) {
        Some(adoption) => adoptions::places(ctx, peer, &grant, name, (volumes, adoption))?,
        None => volumes
            .iter()
            .map(|v| standby::replica_dataset(&grant, name, &v.place))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let mut places: BTreeSet<&DatasetName> = BTreeSet::new();
    match datasets.iter().find(|dataset| !places.insert(dataset)) {
        Some(twice) => bad(&format!("two volumes would be kept at {twice}")),
        None => Ok(datasets),
    }
}

/// Whether a replica may be kept at `dataset`: it is free, held by this very unit before, or to be adopted.
pub(super) fn check_place(
    found: &Inspected,
    dataset: &DatasetName,
    message: &Message,
    volume: &VolumeIntro,
    adoption: Option<&Adoption>,
) -> Result<Place, Failure> {
    if found.info.is_none() && adoption.is_none() {
        return Ok(Place::Ours);
    }
    match &found.mirror {
        Some(mirror) if mirror.unit == message.unit => {
            if mirror.epoch.number > message.epoch.number {
                let text = format!(
                    "{dataset} was last known in epoch {}, which is newer than {}",
                    mirror.epoch.number, message.epoch.number
                );
                return Err(Failure::refused(FailureCode::Conflict, text));
            }
            Ok(Place::Ours)
        }
        Some(mirror) if adoption.is_some() => {
            let text = format!(
                "{dataset} says that it belongs to unit {}; end its protection there first, or take \
                 `flocker-repl:id` off it (`zfs inherit`) if that unit is gone for good",
                mirror.unit
            );
            Err(Failure::refused(FailureCode::Conflict, text))
        }
        _ => adoptions::judge(found, dataset, volume, adoption),
    }
}
