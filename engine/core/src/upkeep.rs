//! Bookkeeping off the critical path: holds, snapshots that nobody needs, mirrors, and the end.
//!
//! Every snapshot and hold that we make is decided here. New holds are put before old ones are
//! taken off, and both before anything is destroyed; a snapshot that any standby starts from, that
//! is on its way, or that is the newest, is never destroyed.

use std::collections::BTreeSet;

use flocker_store::{Guid, Snapshot, SnapshotName};

use crate::ctx::Ctx;
use crate::failure::Failure;
use crate::ids::OpId;
use crate::io::{Action, MirrorState, Outcome, Reply};
use crate::limits::{BACKOFF_LAST_MS, CALM_MS, CALM_ROUND_MS, TIDY_EVERY_MS, UPKEEP_WAITS_MS};
use crate::message::Body;
use crate::node::PlantedBug;
use crate::record::{Policy, Role};
use crate::unit::{Ending, Op, Unit};

/// What is due, and what is under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upkeep {
    pub(crate) tidy_due: bool,
    pub(crate) mirror_due: bool,
    tidying: Option<Tidying>,
    mirroring: Option<OpId>,
    /// Something may be released or destroyed, at the next time for it.
    sweep_due: bool,
    /// When that was last done.
    swept_at: Option<u64>,
    /// After a failure, not before this.
    retry_at: u64,
    /// Since when a change of primary has been under way with nobody served.
    critical_since: Option<u64>,
    /// When a change of primary ended here.
    came_up_at: Option<u64>,
    /// Guids we know to be held by us.
    held: BTreeSet<Guid>,
}

#[derive(Debug, Clone)]
struct Tidying {
    op: OpId,
    hold: Vec<Guid>,
    destroy: BTreeSet<SnapshotName>,
}

impl Upkeep {
    /// The dataset is another one now: nothing is known of what is held.
    pub(crate) fn forget_holds(&mut self) {
        self.held.clear();
    }
}

impl Unit {
    pub(crate) fn advance_upkeep(&mut self, ctx: &mut Ctx) {
        if self.nobody_is_served() {
            self.upkeep.critical_since.get_or_insert(ctx.now.mono_ms);
        } else {
            self.upkeep.critical_since = None;
        }
        if ctx.now.mono_ms < self.upkeep_at() {
            return;
        }
        self.watch_absence(ctx);
        let sweep = self.upkeep.sweep_due && ctx.now.mono_ms >= self.sweep_at();
        if (self.upkeep.tidy_due || sweep) && self.upkeep.tidying.is_none() {
            self.tidy(ctx);
        }
        if self.upkeep.mirror_due && self.upkeep.mirroring.is_none() {
            self.mirror_now(ctx);
        }
    }

    /// Writes the mirrors without waiting for anything.
    pub(crate) fn mirror_now(&mut self, ctx: &mut Ctx) {
        self.upkeep.mirror_due = false;
        let epoch = self.record.epoch;
        let state = self.record.role.word().to_owned();
        let mirrors = self.record.volumes.iter().map(|v| {
            let unit = self.record.id;
            let mirror = MirrorState { unit, volume: v.id, epoch, state: state.clone() };
            (v.dataset.clone(), mirror)
        });
        let action = Action::Mirror { mirrors: mirrors.collect() };
        self.upkeep.mirroring = Some(ctx.run(self.id(), Op::Mirror, action));
    }

    pub(crate) fn upkeep_timeout(&self) -> Option<u64> {
        let idle = self.upkeep.tidying.is_none();
        let now = (self.upkeep.tidy_due && idle)
            || (self.upkeep.mirror_due && self.upkeep.mirroring.is_none());
        let later = self.upkeep.sweep_due && idle;
        let tidy = if now { Some(self.upkeep_at()) } else { later.then(|| self.sweep_at()) };
        let absence = self.absence_timeout().map(|at| at.max(self.upkeep_at()));
        tidy.into_iter().chain(absence).min()
    }

    /// What is held too much and what nobody needs is put off, what must be held is not.
    fn sweep_at(&self) -> u64 {
        let apart = self.upkeep.swept_at.map_or(0, |at| at + TIDY_EVERY_MS);
        self.upkeep_at().max(apart)
    }

    /// Bookkeeping competes with what the clients wait for: it gives way for a while.
    fn upkeep_at(&self) -> u64 {
        let gives_way = self.upkeep.critical_since.map_or(0, |since| since + UPKEEP_WAITS_MS);
        let calm = self.upkeep.came_up_at.map_or(0, |at| at + CALM_MS);
        self.upkeep.retry_at.max(gives_way).max(calm)
    }

    /// Something of it failed: a pause.
    pub(crate) fn upkeep_waits(&mut self, ctx: &Ctx) {
        self.upkeep.retry_at = ctx.now.mono_ms + BACKOFF_LAST_MS;
    }

    /// A change of primary has ended: somebody serves again.
    pub(crate) fn served_again(&mut self, ctx: &Ctx) {
        self.upkeep.came_up_at = Some(ctx.now.mono_ms);
    }

    /// A new primary looks at its standbys and takes snapshots from then on, monotonic milliseconds:
    /// first its clients are served.
    pub(crate) fn replicates_from(&self) -> u64 {
        if self.cutover.is_some() {
            return 0;
        }
        if self.standby.announce.is_some() {
            return self.upkeep.critical_since.map_or(0, |since| since + UPKEEP_WAITS_MS);
        }
        let calm = match self.record.policy {
            Policy::Rpo(ms) => CALM_ROUND_MS.min(ms / 2),
            Policy::Every(_) => CALM_ROUND_MS,
        };
        self.upkeep.came_up_at.map_or(0, |at| at + calm)
    }

    fn nobody_is_served(&self) -> bool {
        self.stopping_for_cutover()
            || matches!(self.record.role, Role::HandedOver { .. } | Role::Ready { .. })
            || self.standby.source_waits
            || self.standby.announce.is_some()
    }

    fn tidy(&mut self, ctx: &mut Ctx) {
        self.upkeep.tidy_due = false;
        self.upkeep.sweep_due = false;
        let open =
            self.failing_over() || self.record.step_back.is_some() || self.record.was_primary;
        if open || matches!(self.record.role, Role::HandedOver { .. } | Role::Ready { .. }) {
            // Nothing is taken away while it is open who goes on; the next role makes it due again.
            return;
        }
        let unsure = self.unsure();
        let Some(inventories) = &self.local.inventories else {
            return;
        };
        // Before its time nobody looks what could be taken away: after each round that would cost
        // more than the round, and there may be hundreds of snapshots.
        let sweeps = ctx.now.mono_ms >= self.sweep_at();
        let prefix = self.prefix();
        let group = if sweeps { self.shorts_of_group() } else { BTreeSet::new() };
        let (mut hold, mut release, mut destroy, mut held_now) = (vec![], vec![], vec![], vec![]);
        for (at, inventory) in inventories.iter().enumerate() {
            let bases = self.held_here(at);
            let is_new = |guid: &Guid| bases.contains(guid) && !self.upkeep.held.contains(guid);
            if ctx.config.store.holds && bases.iter().any(is_new) {
                for snapshot in inventory.snapshots.iter().filter(|s| is_new(&s.guid)) {
                    hold.push(snapshot.name.clone());
                    held_now.push(snapshot.guid);
                }
            }
            if !sweeps {
                continue;
            }
            let needed = self.needed_here(ctx, at, &group);
            for snapshot in &inventory.snapshots {
                let (name, guid) = (&snapshot.name, snapshot.guid);
                let held = snapshot.holds > 0 || self.upkeep.held.contains(&guid);
                // Somebody else's hold keeps its own tag; releasing ours harms nobody.
                let too_much = held && !unsure && !bases.contains(&guid);
                if too_much && !ctx.config.planted(PlantedBug::LeakHold) {
                    release.push(name.clone());
                }
                if name.short().starts_with(&prefix) && !needed.contains(&guid) {
                    destroy.push(name.clone());
                }
            }
        }
        self.upkeep.sweep_due = !sweeps;
        if hold.is_empty() && release.is_empty() && destroy.is_empty() {
            return;
        }
        if !(release.is_empty() && destroy.is_empty()) {
            self.upkeep.swept_at = Some(ctx.now.mono_ms);
        }
        let gone = destroy.iter().cloned().collect();
        let action = Action::Tidy { tag: self.tag(), hold, release, destroy };
        let op = ctx.run(self.id(), Op::Tidy, action);
        self.upkeep.tidying = Some(Tidying { op, hold: held_now, destroy: gone });
        // Destroyed or not, these are no bases any more: they leave the inventory at once.
        self.forget_snapshots();
    }

    fn forget_snapshots(&mut self) {
        let Some(Tidying { destroy, .. }) = &self.upkeep.tidying else {
            return;
        };
        for inventory in self.local.inventories.iter_mut().flatten() {
            inventory.snapshots.retain(|s| !destroy.contains(&s.name));
        }
    }

    /// A standby of which nothing was heard since our start may have any snapshot as its newest.
    fn unsure(&self) -> bool {
        self.record.role.is_primary()
            && (self.replicas.len() < self.record.standbys.len()
                || self.replicas.values().any(|r| r.candidates.is_none()))
    }

    /// What must not be destroyed here.
    fn needed_here(&self, ctx: &Ctx, at: usize, group: &BTreeSet<String>) -> BTreeSet<Guid> {
        let volume = self.record.volumes[at].id;
        let mut needed: BTreeSet<Guid> = BTreeSet::new();
        if !ctx.config.planted(PlantedBug::DestroyBase) {
            needed.extend(self.replicas.values().flat_map(|r| self.needed_by(r, at)));
        }
        let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at));
        let of_group = inventory.iter().flat_map(|i| &i.snapshots);
        needed.extend(of_group.filter(|s| group.contains(s.name.short())).map(|s| s.guid));
        needed.extend(self.standby.base_in_use(volume));
        needed.extend(self.cutover_needs(at));
        needed.extend(self.drill.iter().flat_map(|d| d.needs.iter().copied()));
        let all = self.unsure() && !ctx.config.planted(PlantedBug::DestroyBase);
        let newest_first = inventory.iter().flat_map(|i| i.snapshots.iter().rev());
        // The store would refuse, for as long as the clone is there.
        needed.extend(inventory.iter().flat_map(|i| i.cloned.iter().copied()));
        let newest = newest_first.take(if all { usize::MAX } else { 1 }).map(|s| s.guid);
        // With every standby away for long none of them is at it, or a bookmark does.
        if !self.is_left_alone() {
            needed.extend(newest.chain(self.newest_of_ours(at)));
        }
        needed
    }

    /// The volumes of a group are received one after another: the newest moment that a standby has of
    /// all of them stays, here and there, also in those that are further already. A failover goes on
    /// from it, and what it leaves behind is set back to it. The short names of those snapshots.
    fn shorts_of_group(&self) -> BTreeSet<String> {
        let mut shorts: BTreeSet<String> = BTreeSet::new();
        let inventories = self.local.inventories.as_deref().unwrap_or_default();
        if inventories.len() < 2 {
            return shorts;
        }
        for (volume, inventory) in inventories.iter().enumerate() {
            let bases: BTreeSet<Guid> =
                self.replicas.values().flat_map(|r| self.needed_by(r, volume)).collect();
            let kept = inventory.snapshots.iter().filter(|s| bases.contains(&s.guid));
            for short in kept.map(|s| s.name.short()) {
                if !shorts.contains(short) {
                    shorts.insert(short.to_owned());
                }
            }
        }
        let whole = crate::failover::newest_whole(&self.record.volumes, inventories);
        shorts.extend(whole.filter(|_| !self.is_left_alone()).map(|(short, _)| short));
        shorts
    }

    /// Somebody may have taken snapshots of a standby by hand: then this is what both sides have, and without
    /// it everything would have to be sent anew.
    pub(crate) fn newest_of_ours(&self, at: usize) -> Option<Guid> {
        let prefix = self.prefix();
        let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at))?;
        let ours = |s: &&Snapshot| s.name.short().starts_with(&prefix);
        inventory.snapshots.iter().rev().find(ours).map(|s| s.guid)
    }

    /// What a standby's next step starts from: the newest snapshot of ours, or, of a replica that was adopted
    /// and has none yet, the newest there is.
    pub(crate) fn base_of_next(&self, at: usize) -> Option<Guid> {
        let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at));
        self.newest_of_ours(at).or_else(|| inventory?.latest().map(|s| s.guid))
    }

    /// What is held: what the other side is known to start from.
    fn held_here(&self, at: usize) -> BTreeSet<Guid> {
        match self.record.role {
            Role::Serving | Role::Leaving { .. } => {
                let mut held: BTreeSet<Guid> = BTreeSet::new();
                let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at));
                let here = || inventory.iter().flat_map(|i| i.snapshots.iter().map(|s| s.guid));
                for replica in self.replicas.values() {
                    held.extend(
                        replica.was_at(at).filter(|guid| self.holds_for(replica, at, *guid)),
                    );
                    let maybe = |guid: &Guid| {
                        replica.candidates.as_ref().is_some_and(|all| all.contains(guid))
                            && self.holds_for(replica, at, *guid)
                    };
                    match &replica.bases {
                        Some(bases) => held.extend(bases.get(at).copied().flatten()),
                        None => held.extend(here().filter(maybe)),
                    }
                }
                if self.unsure() {
                    held.extend(here().filter(|guid| self.upkeep.held.contains(guid)));
                }
                held
            }
            Role::HandedOver { .. } | Role::Following { .. } | Role::Ready { .. } => {
                self.base_of_next(at).into_iter().collect()
            }
        }
    }

    pub(crate) fn tidy_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some(tidying) = self.upkeep.tidying.take_if(|t| t.op == op) else {
            return;
        };
        match outcome {
            Ok(_) => {
                let present: BTreeSet<Guid> = (self.local.inventories.iter().flatten())
                    .flat_map(|i| i.snapshots.iter().map(|s| s.guid))
                    .collect();
                self.upkeep.held.extend(tidying.hold);
                self.upkeep.held.retain(|g| present.contains(g));
            }
            Err(failure) => {
                // What was not destroyed is found again by the next look.
                self.upkeep.retry_at = ctx.now.mono_ms + BACKOFF_LAST_MS;
                self.note(ctx, format!("bookkeeping is tried again later: {failure}"));
            }
        }
    }

    pub(crate) fn mirror_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.upkeep.mirroring.take_if(|m| *m == op).is_none() {
            return;
        }
        if let Err(failure) = outcome {
            if failure.code == crate::FailureCode::NotFound {
                // A replica that was not received yet; its first receive makes it due again.
                return;
            }
            self.upkeep.mirror_due = true;
            self.upkeep.retry_at = ctx.now.mono_ms + BACKOFF_LAST_MS;
            self.note(ctx, format!("the dataset's properties are written later: {failure}"));
        }
    }

    // ---- the end ------------------------------------------------------------------------------

    /// Lets the unit go: everything we made is taken back, the data stays. The node deletes the
    /// record when that is done, and only then the standbys are told.
    pub(crate) fn end(&mut self, ctx: &mut Ctx, ending: Ending) {
        let failure = Failure::refused(crate::FailureCode::Cancelled, "protection has ended");
        self.end_extending(ctx, Err(failure.clone()));
        self.drop_replicas(ctx, &failure);
        self.cancel_receiving(ctx);
        self.nobody_waits_for_work(ctx);
        let over = Failure::refused(crate::FailureCode::Cancelled, "protection has ended");
        self.refuse_dry_runs(ctx, &over);
        self.end_cutover(ctx, Err(over.clone()));
        self.end_failover(ctx, Err(over.clone()));
        self.end_resolving(ctx, Err(over));
        self.ending = Some(ending);
        self.advance_ending(ctx);
    }

    /// Begins to give back once nothing of this unit is under way: a mirror written afterwards
    /// would be a claim without a unit.
    pub(crate) fn advance_ending(&mut self, ctx: &mut Ctx) {
        let (id, tag, prefix) = (self.id(), self.tag(), self.prefix());
        let busy = ctx.out.ops.values().any(|(unit, _)| *unit == id)
            || ctx.out.transfers.values().any(|unit| *unit == id);
        let datasets = self.datasets();
        if let Some(ending) = &mut self.ending
            && ending.op.is_none()
            && !busy
        {
            let keep_newest = ending.keep_newest;
            let program = self.record.workload.as_ref().map(|w| w.program.clone());
            let action =
                Action::GiveBack { datasets, tag, prefix, keep_newest, at_rest: false, program };
            ending.op = Some(ctx.run(id, Op::GiveBack, action));
        }
    }

    /// The answer to `GiveBack`; `true` when the record may be deleted.
    pub(crate) fn end_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) -> bool {
        let Some(ending) = self.ending.take_if(|e| e.op == Some(op)) else {
            return false;
        };
        let lost = |f: &Failure| f.code == crate::FailureCode::StoreAway && ending.store_is_gone;
        let gone = match outcome {
            Ok(_) => true,
            // Nothing was received yet: nothing to give back.
            Err(ref f) if f.code == crate::FailureCode::NotFound => true,
            Err(ref f) if lost(f) => true,
            Err(ref failure) => {
                self.raise(ctx, failure.clone());
                false
            }
        };
        // What a standby has of a store that is lost may be all that there is: it keeps everything.
        if gone && !outcome.as_ref().is_err_and(lost) {
            for peer in self.record.standbys.clone() {
                self.say(ctx, peer, Body::Drop);
            }
        }
        if let Some(request) = ending.request {
            let answer = match (ending.refusal, outcome) {
                (Some(refusal), _) => Err(refusal),
                (None, Err(mut failure)) if !gone => {
                    if failure.code == crate::FailureCode::StoreAway {
                        failure.message.push_str(&format!(
                            "; if it is gone for good, fail over to a standby, then: flocker-repl unprotect {} \
                             --store-is-gone",
                            self.record.name
                        ));
                    }
                    Err(failure)
                }
                (None, _) => Ok(Reply::Done),
            };
            ctx.reply(request, answer);
        }
        if !gone {
            // It lives on, from its record alone, as after a start: answers to what was under way
            // before were not listened to.
            let alarm = self.alarm.take();
            *self = Unit::new(self.record.clone());
            self.alarm = alarm;
            self.upkeep.mirror_due = true;
            self.enter_role(ctx);
        }
        gone
    }
}
