//! A drill: would this replica come up? On clones, isolated, while replication goes on.

use flocker_store::{Guid, SnapshotName};

use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode};
use crate::ids::{OpId, RequestId};
use crate::io::{Action, DrillReport, EventKind, Outcome, Reply};
use crate::unit::{Op, Unit};

/// A drill under way.
#[derive(Debug, Clone)]
pub(crate) struct Drill {
    op: OpId,
    request: RequestId,
    instance: String,
    /// Kept until it is over.
    pub(crate) needs: Vec<Guid>,
    age_ms: u64,
    /// Rounds received when it began.
    rounds: u64,
}

impl Unit {
    pub(crate) fn drill(&mut self, ctx: &mut Ctx, request: RequestId) {
        let (snapshots, drill) = match self.may_drill(ctx) {
            Ok(found) => found,
            Err(failure) => return ctx.reply(request, Err(failure)),
        };
        let (name, workload) = (self.record.name.clone(), self.record.workload.clone());
        let op = ctx.run(self.id(), Op::Drill, Action::Drill { name, snapshots, workload });
        self.drill = Some(Drill { op, request, ..drill });
    }

    fn may_drill(&self, ctx: &Ctx) -> Result<(Vec<SnapshotName>, Drill), Failure> {
        let name = &self.record.name;
        let refuse = |code, text: String| Err(Failure::refused(code, text));
        if self.drill.is_some() {
            return refuse(FailureCode::Busy, format!("{name}: a drill is under way here already"));
        }
        if !self.record.role.is_standby() || self.failover.is_some() {
            let text = format!("{name} is not a standby here: a drill tries a replica");
            return refuse(FailureCode::BadRequest, text);
        }
        if self.record.step_back.is_some() || self.record.was_primary {
            let text = format!("{name}: it is still to be set back to what the primary has");
            return refuse(FailureCode::Busy, text);
        }
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        let Some((instance, found)) =
            crate::failover::newest_whole(&self.record.volumes, inventories)
        else {
            let text = format!("{name}: nothing whole was received yet; try again in a moment");
            return refuse(FailureCode::NoBase, text);
        };
        let taken_ms = (inventories.iter().zip(&found))
            .filter_map(|(i, found)| i.snapshot(found.as_ref()?.2))
            .map(|s| s.creation_unix_s.saturating_mul(1000))
            .min()
            .unwrap_or(ctx.now.wall_ms);
        let found: Vec<_> = found.into_iter().flatten().collect();
        let drill = Drill {
            op: OpId(0),
            request: RequestId(0),
            instance,
            needs: found.iter().map(|(.., guid)| *guid).collect(),
            age_ms: u64::try_from(ctx.now.wall_ms - taken_ms).unwrap_or(0),
            rounds: self.standby.received,
        };
        Ok((found.into_iter().map(|(_, name, _)| name).collect(), drill))
    }

    pub(crate) fn drill_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(drill) = self.drill.take_if(|d| d.op == op) else {
            return;
        };
        self.upkeep.tidy_due = true;
        let (parts_ms, trouble) = match outcome {
            Ok(Outcome::Drilled { parts_ms, trouble }) => (parts_ms, trouble),
            Ok(_) => unreachable!("a drill is answered by its parts"),
            Err(failure) => (Vec::new(), Some(failure)),
        };
        let report = Box::new(DrillReport {
            name: self.record.name.clone(),
            instance: drill.instance,
            age_ms: drill.age_ms,
            parts_ms,
            trouble,
            rounds_meanwhile: self.standby.received - drill.rounds,
        });
        let kind = EventKind::Drilled(report.clone());
        ctx.report(self.record.id, &self.record.name, kind);
        ctx.reply(drill.request, Ok(Reply::Drilled(report)));
    }
}
