//! A peer wants this node to keep replicas of a unit that it did not know.

use super::Node;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Fingerprint, Now, OpId};
use crate::io::{Effect, Inspected, Outcome};
use crate::message::{Body, Message, VolumeIntro};
use crate::record::{JournalChange, Policy, Role, UnitRecord, VolumeRecord};
use crate::standby;
use crate::unit::{Op, Unit};

impl Node {
    pub(super) fn done(&mut self, now: Now, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some((id, what)) = self.out.ops.remove(&op) else {
            return;
        };
        match what {
            Op::NodeIntro { peer, message } => self.introduced(now, peer, *message, outcome),
            Op::NodeProtect { request, command } => {
                self.protect_inspected(now, request, *command, outcome);
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
        let Body::Intro { name, volumes, policy, lease_ms } = &message.body else {
            unreachable!("only introductions are looked into");
        };
        if self.units.contains_key(&message.unit) {
            // Introduced twice while we were looking, and long answered; epochs may have moved on.
            return;
        }
        if nothing_there(&outcome) && self.let_go_of_namesake(now, peer, &message, name) {
            return; // Introduced again soon, when the name is free.
        }
        let answer =
            self.introduce(now, peer, &message, name, volumes, (*policy, *lease_ms), outcome);
        let mut ctx = ctx!(self, now);
        let body = Body::IntroReply(answer);
        ctx.send(peer, Message { unit: message.unit, epoch: message.epoch, body });
    }

    /// Names are unique on the peer, so a unit of the same name that follows this very peer is one
    /// that it has let go of, and whose end we did not hear of. Only where nothing was received yet:
    /// should this be an old introduction that comes late, the other unit is introduced again.
    fn let_go_of_namesake(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        name: &str,
    ) -> bool {
        if message.epoch.owner != peer {
            return false;
        }
        let namesake = self.units.values_mut().find(|u| {
            let follows = matches!(u.record.role, Role::Following { source } if source == peer);
            // What was looked at may be older than what was received meanwhile.
            let empty = !u.standby.is_busy() && !u.local.exists.contains(&true);
            u.record.name == name && u.record.id != message.unit && follows && empty
        });
        let Some(unit) = namesake else {
            return false;
        };
        if unit.ending.is_none() {
            unit.end(&mut ctx!(self, now), None, None, true);
        }
        true
    }

    #[expect(clippy::too_many_arguments, reason = "an introduction taken apart, in one place")]
    pub(super) fn introduce(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: &Message,
        name: &str,
        volumes: &[VolumeIntro],
        (policy, lease_ms): (Policy, Option<u64>),
        outcome: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        if message.epoch.owner != peer {
            return refuse(FailureCode::Conflict, format!("{name} is not yours to introduce"));
        }
        if self.units.values().any(|u| u.record.name == name) {
            let text = format!("this node has another unit named {name}; protect with --name");
            return refuse(FailureCode::Exists, text);
        }
        let datasets = intro_datasets(&ctx!(self, now), peer, name, volumes)?;
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        for (found, dataset) in found.iter().zip(&datasets) {
            check_place(found, dataset, message)?;
        }
        let volumes = (volumes.iter().zip(datasets))
            .map(|(v, dataset)| VolumeRecord {
                id: v.id,
                dataset,
                kind: v.kind,
                modern_streams: v.modern_streams,
                raw: v.raw,
            })
            .collect();
        let role = Role::Following { source: peer };
        let mut record =
            UnitRecord::new(message.unit, name.to_owned(), volumes, policy, message.epoch, role);
        record.lease_ms = lease_ms;
        let mut unit = Unit::new(record);
        let mut ctx = ctx!(self, now);
        unit.persist(&mut ctx);
        unit.enter_role(&mut ctx);
        self.orphans.retain(|_, m| m.unit != message.unit);
        self.units.insert(unit.id(), unit);
        Ok(())
    }
}

fn nothing_there(outcome: &Result<Outcome, Failure>) -> bool {
    match outcome {
        Ok(Outcome::Inspected(found)) => found.iter().all(|f| f.info.is_none()),
        _ => false,
    }
}

/// Where the volumes of a unit that a peer introduces would be kept.
pub(super) fn intro_datasets(
    ctx: &Ctx,
    peer: Fingerprint,
    name: &str,
    volumes: &[VolumeIntro],
) -> Result<Vec<flocker_store::DatasetName>, Failure> {
    standby::check_intro(ctx, peer, false, volumes)?;
    let bad = |text: &str| Err(Failure::refused(FailureCode::BadRequest, text));
    if name.contains('/') || volumes.is_empty() {
        return bad("a unit has a name without `/` and at least one volume");
    }
    let Some(grant) = standby::grant_of(ctx, peer) else {
        return bad("nothing is granted");
    };
    let count = volumes.len();
    volumes.iter().map(|v| standby::replica_dataset(&grant, name, count, &v.leaf)).collect()
}

/// Whether a replica may be kept at `dataset`: it is free, or held by this very unit before.
pub(super) fn check_place(
    found: &Inspected,
    dataset: &flocker_store::DatasetName,
    message: &Message,
) -> Result<(), Failure> {
    if found.info.is_none() {
        return Ok(());
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
            Ok(())
        }
        _ => {
            let text = format!(
                "{dataset} exists on the standby and is no replica of this unit; protect with \
                 another --name, or rename it there"
            );
            Err(Failure::refused(FailureCode::Exists, text))
        }
    }
}
