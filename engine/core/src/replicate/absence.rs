//! A standby that stays away. What it is at is kept as snapshots only up to a limit: these keep every block that is
//! overwritten meanwhile, until the primary's pool is full. Then bookmarks stand in for them, and an alarm says so.
//!
//! A step can start from a bookmark as from its snapshot, so that nothing is sent anew when the standby is back. What a
//! bookmark cannot do is to be set back to: should the standby become primary meanwhile, what is here goes aside as a
//! whole (`resolve`).
//!
//! Postconditions. A snapshot that an absent standby may be at is let go only after its bookmark is there; a bookmark is
//! destroyed only when no standby may start from it.

use std::collections::BTreeSet;

use flocker_store::{Bookmark, BookmarkName, Guid, SnapshotName};

use super::{Replica, State};
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, OpId};
use crate::io::{Action, Outcome};
use crate::unit::{Op, Unit};

/// How long a standby has been away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Absence {
    /// When snapshots have been kept for it for long enough, monotonic milliseconds; `None`: it is here.
    until: Option<u64>,
    /// Bookmarks have taken the place of its snapshots.
    marked: bool,
}

/// Bookmarks that are being made or destroyed.
#[derive(Debug, Clone)]
pub(crate) struct Marking {
    op: OpId,
    /// For whom.
    peers: Vec<Fingerprint>,
    /// By volume.
    made: Vec<(usize, Bookmark)>,
    gone: BTreeSet<BookmarkName>,
}

impl Replica {
    fn is_offline(&self) -> bool {
        matches!(self.state, State::Offline)
    }

    /// It says what it is at: that is kept as a snapshot again, where it is one.
    pub(super) fn is_back(&mut self) {
        self.absence = Absence::default();
    }

    fn has_been_away_until(&self, now: u64) -> bool {
        self.is_offline() && !self.absence.marked && self.absence.until.is_some_and(|u| u <= now)
    }
}

impl Unit {
    /// What must be kept here as a snapshot because of this standby.
    pub(crate) fn needed_by(&self, replica: &Replica, at: usize) -> Vec<Guid> {
        let here = self.local.inventories.as_ref().and_then(|i| i.get(at));
        let nothing = flocker_store::Inventory::default();
        let mut needed = replica.needed(at, here.unwrap_or(&nothing));
        if replica.absence.marked {
            needed.retain(|guid| !self.is_bookmarked(at, *guid));
        }
        needed
    }

    /// Nobody is here for whom the newest snapshot would be kept.
    pub(crate) fn is_left_alone(&self) -> bool {
        !self.replicas.is_empty() && self.replicas.values().all(|r| r.absence.marked)
    }

    fn is_bookmarked(&self, at: usize, guid: Guid) -> bool {
        let inventory = self.local.inventories.as_ref().and_then(|i| i.get(at));
        inventory.is_some_and(|i| i.bookmarks.iter().any(|b| b.guid == guid))
    }

    /// Of a standby that is away: whether this, which it may be at, is to be held.
    pub(crate) fn holds_for(&self, replica: &Replica, at: usize, guid: Guid) -> bool {
        !(replica.absence.marked && self.is_bookmarked(at, guid))
    }

    pub(crate) fn watch_absence(&mut self, ctx: &mut Ctx) {
        if !self.record.role.is_primary() || !ctx.config.store.bookmarks {
            return;
        }
        let now = ctx.now.mono_ms;
        for replica in self.replicas.values_mut() {
            if replica.is_offline() {
                replica.absence.until.get_or_insert(now + ctx.config.store.pin_limit_ms);
            } else {
                replica.absence.until = None;
            }
        }
        if self.marking.is_some() {
            return;
        }
        let away = self.replicas.values().filter(|r| r.has_been_away_until(now));
        let away: Vec<Fingerprint> = away.map(|r| r.peer).collect();
        if away.is_empty() {
            return self.destroy_bookmarks(ctx);
        }
        if self.local.inventories.is_none() {
            if now >= self.snapshotting.retry_at {
                self.look(ctx);
            }
            return;
        }
        let missing = self.bookmarks_for(&away);
        if missing.is_empty() {
            return self.are_marked(ctx, &away, Vec::new());
        }
        let make = missing.iter().map(|(_, snapshot, b)| (snapshot.clone(), b.name.clone()));
        let make = make.collect();
        let made = missing.into_iter().map(|(at, _, bookmark)| (at, bookmark)).collect();
        let op = ctx.run(self.id(), Op::Mark, Action::Mark { make, destroy: Vec::new() });
        self.marking = Some(Marking { op, peers: away, made, gone: BTreeSet::new() });
    }

    /// The bookmarks that are missing.
    fn bookmarks_for(&self, away: &[Fingerprint]) -> Vec<(usize, SnapshotName, Bookmark)> {
        let prefix = self.prefix();
        let mut missing = Vec::new();
        for (at, inventory) in self.local.inventories.iter().flatten().enumerate() {
            let mut wanted: BTreeSet<Guid> = BTreeSet::new();
            for replica in away.iter().filter_map(|peer| self.replicas.get(peer)) {
                match replica.candidates {
                    Some(_) => wanted.extend(replica.needed(at, inventory)),
                    // Nothing was heard since our start: any of ours, and what is held for it of others'.
                    None => wanted.extend(crate::plan::may_be_bases(inventory, &prefix)),
                }
            }
            for snapshot in inventory.snapshots.iter().filter(|s| wanted.contains(&s.guid)) {
                if self.is_bookmarked(at, snapshot.guid) {
                    continue;
                }
                let short = bookmark_short(&prefix, snapshot.name.short());
                let name = BookmarkName::from_parts(snapshot.name.dataset().clone(), &short);
                if let Ok(name) = name {
                    let (guid, createtxg) = (snapshot.guid, snapshot.createtxg);
                    missing.push((at, snapshot.name.clone(), Bookmark { name, guid, createtxg }));
                }
            }
        }
        missing
    }

    /// Those of ours that no standby may start from.
    fn destroy_bookmarks(&mut self, ctx: &mut Ctx) {
        let prefix = self.prefix();
        if self.replicas.len() < self.record.standbys.len()
            || self.replicas.values().any(|r| r.candidates.is_none())
        {
            return;
        }
        let mut destroy = Vec::new();
        for (at, inventory) in self.local.inventories.iter().flatten().enumerate() {
            let needed: BTreeSet<Guid> =
                self.replicas.values().flat_map(|r| r.needed(at, inventory)).collect();
            let bookmarks = inventory.bookmarks.iter();
            let ours = bookmarks.filter(|b| b.name.short().starts_with(&prefix));
            destroy.extend(ours.filter(|b| !needed.contains(&b.guid)).map(|b| b.name.clone()));
        }
        if destroy.is_empty() {
            return;
        }
        let gone = destroy.iter().cloned().collect();
        let op = ctx.run(self.id(), Op::Mark, Action::Mark { make: Vec::new(), destroy });
        self.marking = Some(Marking { op, peers: Vec::new(), made: Vec::new(), gone });
    }

    pub(crate) fn mark_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        let Some(marking) = self.marking.take_if(|m| m.op == op) else {
            return;
        };
        if let Err(failure) = outcome {
            self.upkeep_waits(ctx);
            // Some may be there: it is looked at again.
            self.local.inventories = None;
            return self.note(ctx, format!("bookmarks are tried again later: {failure}"));
        }
        for inventory in self.local.inventories.iter_mut().flatten() {
            inventory.bookmarks.retain(|b| !marking.gone.contains(&b.name));
        }
        if !marking.peers.is_empty() {
            self.are_marked(ctx, &marking.peers, marking.made);
        }
    }

    fn are_marked(&mut self, ctx: &mut Ctx, away: &[Fingerprint], made: Vec<(usize, Bookmark)>) {
        for (at, bookmark) in made {
            if let Some(inventory) = self.local.inventories.as_mut().and_then(|i| i.get_mut(at)) {
                inventory.bookmarks.push(bookmark);
            }
        }
        let all: BTreeSet<Guid> = (self.local.inventories.iter().flatten())
            .flat_map(|i| {
                i.bookmarks.iter().map(|b| b.guid).chain(i.snapshots.iter().map(|s| s.guid))
            })
            .collect();
        for peer in away {
            let text = format!(
                "{}: {} has been away for longer than snapshots are kept for it ({} h): what it is at is kept as a \
                 bookmark now, and the next step goes on from there; if it is gone for good, run `flocker-repl unprotect \
                 {0}`",
                self.record.name,
                ctx.peer_name(*peer),
                ctx.config.store.pin_limit_ms / 3_600_000
            );
            let failure = Failure::new(Remedy::Operator, FailureCode::ConnectionLost, text);
            // It may have come back meanwhile.
            let Some(replica) = self.replicas.get_mut(peer).filter(|r| r.is_offline()) else {
                continue;
            };
            replica.absence.marked = true;
            // Nothing was sent to it since our start, so it is at something that was there then.
            replica.candidates.get_or_insert(all.clone());
            replica.failure = Some(failure.clone());
            self.raise(ctx, failure);
        }
        self.upkeep.tidy_due = true;
    }

    /// When something becomes due here.
    pub(crate) fn absence_timeout(&self) -> Option<u64> {
        if !self.record.role.is_primary() || self.marking.is_some() || self.local.looking.is_some()
        {
            return None;
        }
        let away = self.replicas.values().filter(|r| r.is_offline() && !r.absence.marked);
        let due = away.filter_map(|r| r.absence.until).min()?;
        Some(due.max(self.snapshotting.retry_at))
    }
}

/// A bookmark is called as its snapshot where that is ours; a stranger's gets a name of ours.
fn bookmark_short(prefix: &str, snapshot: &str) -> String {
    if snapshot.starts_with(prefix) {
        snapshot.to_owned()
    } else {
        format!("{prefix}of_{snapshot}")
    }
}
