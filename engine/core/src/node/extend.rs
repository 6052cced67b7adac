//! Datasets that join a unit which is protected here: what is checked before its standbys are asked.

use super::Node;
use super::commands::find;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{Now, RequestId};
use crate::io::{Action, Command, Effect, Outcome, Reply};
use crate::record::VolumeRecord;
use crate::unit::Op;

impl Node {
    pub(super) fn begin_extend(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
    ) -> Result<(), Failure> {
        let Command::Extend { name, volumes, leave, tree } = &command else {
            unreachable!("only called for it");
        };
        let datasets: Vec<_> = volumes.iter().map(|(_, dataset)| dataset.clone()).collect();
        let root = &self.config.store.root;
        if let Some(outside) = datasets.iter().find(|d| !d.is_within(root)) {
            let text = format!("{outside} is not within {root}, where this node's store works");
            return Err(Failure::refused(FailureCode::BadRequest, text));
        }
        for unit in self.units.values() {
            if let Some(v) = unit.record.volumes.iter().find(|v| datasets.contains(&v.dataset)) {
                let text = format!("{} is a volume of {} already", v.dataset, unit.record.name);
                return Err(Failure::refused(FailureCode::Exists, text));
            }
        }
        let unit = find(&mut self.units, name)?;
        let mut ctx = ctx!(self, now);
        unit.may_extend(&ctx, datasets.len())?;
        unit.let_go_of(&mut ctx, leave)?;
        if let Some(tree) = tree.clone().filter(|tree| unit.record.tree.as_ref() != Some(tree)) {
            unit.record.tree = Some(tree);
            // The standbys hear of it.
            unit.volumes_are_others(&mut ctx);
        }
        let id = unit.id();
        if datasets.is_empty() {
            let (name, adopted, notes) = (name.clone(), Vec::new(), Vec::new());
            ctx.reply(request, Ok(Reply::Protected { name, unit: id, adopted, notes }));
            return Ok(());
        }
        let op = Op::NodeExtend { request, command: Box::new(command) };
        ctx.run(id, op, Action::Inspect { datasets, streams: true });
        Ok(())
    }

    pub(super) fn extend_inspected(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) {
        if let Err(failure) = self.extend(now, request, command, outcome) {
            self.out.effects.push_back(Effect::Reply { request, reply: Err(failure) });
        }
    }

    fn extend(
        &mut self,
        now: Now,
        request: RequestId,
        command: Command,
        outcome: Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let Command::Extend { name, volumes, .. } = command else {
            unreachable!("only called for it");
        };
        let Outcome::Inspected(found) = outcome? else {
            unreachable!("asked for an inspection");
        };
        let id = find(&mut self.units, &name)?.id();
        let mut infos = Vec::new();
        for (found, (_, dataset)) in found.iter().zip(&volumes) {
            let Some(info) = &found.info else {
                let text = format!("dataset {dataset} does not exist");
                return Err(Failure::refused(FailureCode::NotFound, text));
            };
            // One that was renamed within the tree says so of its own unit.
            if let Some(mirror) = found.mirror.as_ref().filter(|m| m.unit != id) {
                let text = format!(
                    "{dataset} says that it belongs to unit {}, which this node's journal does not know",
                    mirror.unit
                );
                return Err(Failure::refused(FailureCode::Conflict, text));
            }
            infos.push(info.clone());
        }
        let standbys = find(&mut self.units, &name)?.record.standbys.clone();
        let notes = standbys.iter().flat_map(|peer| self.look_at_origins(now, *peer, &infos));
        let notes: Vec<String> = notes.collect();
        let modern_streams = self.config.store.modern_streams.unwrap_or(true);
        let records = volumes.into_iter().zip(infos).map(|((id, dataset), info)| VolumeRecord {
            id,
            dataset,
            kind: info.kind,
            modern_streams,
            raw: info.encrypted,
            joining: false,
        });
        let records = records.collect();
        let unit = find(&mut self.units, &name)?;
        unit.extend(&mut ctx!(self, now), request, records, &found, notes)
    }
}
