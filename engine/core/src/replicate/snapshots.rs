//! Snapshots of the whole unit: whether one is needed, and what follows when it is there.

use crate::ctx::Ctx;
use crate::failure::Failure;
use crate::ids::{Fingerprint, Now, OpId};
use crate::io::{Action, Outcome};
use crate::limits::{BACKOFF_FIRST_MS, BACKOFF_LAST_MS};
use crate::unit::{Op, Unit};
use flocker_store::{Change, Inventory, Snapshot};

/// Snapshots of the whole unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshotting {
    /// The next sequence number; above all that were seen.
    next_seq: u64,
    /// One is being taken, or it is being found out whether one is needed.
    pub(super) running: Option<Running>,
    /// After a failure, not before this.
    pub(super) retry_at: u64,
    pub(super) failures: u32,
    /// Taken, and not the target of any round.
    pub(super) taken_since_round: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) op: OpId,
    pub(super) since: Now,
}

impl Snapshotting {
    /// Learns which sequence numbers are used.
    pub(crate) fn learn(&mut self, prefix: &str, inventories: &[Inventory]) {
        let snapshots = inventories.iter().flat_map(|i| i.snapshots.iter().map(|s| s.name.short()));
        let bookmarks = inventories.iter().flat_map(|i| i.bookmarks.iter().map(|b| b.name.short()));
        for short in snapshots.chain(bookmarks) {
            let seq = short.strip_prefix(prefix).and_then(|rest| rest.rsplit('_').next());
            if let Some(n) = seq.and_then(|digits| digits.parse::<u64>().ok()) {
                self.next_seq = self.next_seq.max(n + 1);
            }
        }
    }

    pub(crate) fn next_seq(&mut self) -> u64 {
        let seq = self.next_seq.max(1);
        self.next_seq = seq + 1;
        seq
    }
}

impl Unit {
    /// Names for one snapshot of every volume.
    pub(crate) fn snapshot_names(&mut self) -> Vec<flocker_store::SnapshotName> {
        let seq = self.snapshotting.next_seq();
        let short = format!("{}e{}_{seq:06}", self.prefix(), self.record.epoch.number);
        let names = self.record.volumes.iter().map(|v| v.dataset.snapshot(&short));
        // A dataset whose name leaves no room for this was refused when protection began.
        names.filter_map(Result::ok).collect()
    }

    pub(super) fn take_snapshot(&mut self, ctx: &mut Ctx, since: Now) {
        let names = self.snapshot_names();
        let freeze = ctx.config.store.freeze_for_snapshot;
        let action = Action::Snapshot { names, freeze, quiesced: false };
        let op = ctx.run(self.id(), Op::Snapshot, action);
        self.snapshotting.running = Some(Running { op, since });
    }

    pub(crate) fn changed_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(since) = self.snapshotting_op(op) else {
            return;
        };
        match outcome {
            Ok(Outcome::Changed(Change::Unchanged)) => self.unchanged(ctx, since),
            Ok(Outcome::Changed(Change::Changed { .. } | Change::Unknown)) => {
                self.take_snapshot(ctx, ctx.now);
            }
            Ok(_) => unreachable!("asked whether it changed"),
            Err(failure) => self.snapshot_failed(ctx, failure),
        }
    }

    /// Nothing was written since the newest snapshot: who has that one is equal as of `since`.
    pub(super) fn unchanged(&mut self, ctx: &mut Ctx, since: Now) {
        let Some(newest) = self.newest() else {
            return;
        };
        for peer in self.idle_peers() {
            self.begin_round(ctx, peer, newest.clone(), since, 0, false);
        }
    }

    pub(super) fn idle_peers(&self) -> Vec<Fingerprint> {
        self.replicas.values().filter(|r| r.is_idle()).map(|r| r.peer).collect()
    }

    pub(super) fn snapshotting_op(&mut self, op: OpId) -> Option<Now> {
        match &self.snapshotting.running {
            Some(running) if running.op == op => {
                let since = running.since;
                self.snapshotting.running = None;
                Some(since)
            }
            _ => None,
        }
    }

    pub(crate) fn snapshot_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        outcome: Result<Outcome, Failure>,
    ) {
        let Some(since) = self.snapshotting_op(op) else {
            return;
        };
        match outcome {
            Ok(Outcome::Snapshots { snapshots, frozen_ms }) => {
                self.snapshotting.failures = 0;
                self.snapshotting.taken_since_round += 1;
                if !self.add_snapshots(&snapshots) {
                    return;
                }
                for peer in self.idle_peers() {
                    self.begin_round(ctx, peer, snapshots.clone(), since, frozen_ms, false);
                }
            }
            Ok(_) => unreachable!("asked for snapshots"),
            Err(failure) => self.snapshot_failed(ctx, failure),
        }
    }

    /// Adds fresh snapshots to the inventory, if there is one.
    pub(crate) fn add_snapshots(&mut self, snapshots: &[Snapshot]) -> bool {
        let Some(inventories) = &mut self.local.inventories else {
            return false;
        };
        for (inventory, snapshot) in inventories.iter_mut().zip(snapshots) {
            inventory.snapshots.push(snapshot.clone());
        }
        true
    }

    /// The next snapshot, or the next look at what is here, comes after a pause.
    pub(crate) fn snapshots_wait(&mut self, ctx: &Ctx) {
        self.snapshotting.failures += 1;
        let tries = (self.snapshotting.failures - 1).min(10);
        let pause = BACKOFF_FIRST_MS.saturating_mul(1 << tries).min(BACKOFF_LAST_MS);
        self.snapshotting.retry_at = ctx.now.mono_ms + pause;
    }

    pub(super) fn snapshot_failed(&mut self, ctx: &mut Ctx, failure: Failure) {
        self.snapshots_wait(ctx);
        self.local.inventories = None;
        if self.cutover_converging() {
            self.cutover_round_failed(ctx, false, failure.clone());
        }
        self.raise(ctx, failure);
    }
}
