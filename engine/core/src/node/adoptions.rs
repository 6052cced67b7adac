//! A replica that another tool made is taken over: compared by guid, put to rest, followed. Nothing is resent.
//!
//! ```text
//!   Look (was it written?) ──▶ Fence ──▶ Verify (it is what its newest snapshot says) ──▶ followed
//!     │ yes                      │ somebody holds it  │ it is not
//!     ▼                          ▼                    ▼
//!   refused                    refused             GiveBack ──▶ refused
//! ```
//!
//! Decided here and not on the primary, since it is this node's data; the primary only says which snapshots it
//! has. Postconditions. Refused: the replica is as it was found, but for a mount that the fence took off.
//! Followed: it is at rest, and its newest snapshot is one that the primary can start from, unless a person
//! said that it may have gone its own way (`--diverged`): then `resolve` comes next.

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::{Change, DatasetName, Guid, SnapshotName};

use super::Node;
use super::introductions::Introduction;
use crate::ctx::Ctx;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{Fingerprint, Now, UnitId};
use crate::io::{Action, Inspected, Outcome};
use crate::message::{Adopted, Body, Message, VolumeIntro};
use crate::record::{Adoption, Grant};
use crate::tree;
use crate::unit::{Op, Unit};

/// Replicas on their way to be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adopting {
    peer: Fingerprint,
    message: Message,
    intro: Introduction,
    stage: Stage,
    /// The primary has let go of the unit meanwhile.
    dropped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Look,
    Fence,
    Verify,
    GiveBack(Failure),
}

impl Node {
    /// Looks at replicas that are not this unit's yet, before anything of them is changed.
    pub(super) fn begin_adoption(
        &mut self,
        now: Now,
        peer: Fingerprint,
        message: Message,
        intro: Introduction,
    ) {
        let diverged = match &message.body {
            Body::Intro { adoption, .. } => adoption.as_ref().is_some_and(|a| a.diverged),
            _ => false,
        };
        let since = intro.adopted.clone();
        let adopting = Adopting { peer, message, intro, stage: Stage::Look, dropped: false };
        match diverged {
            true => self.fence_adopted(now, adopting),
            false => self.adopt_by(now, adopting, Action::Changed { since }),
        }
    }

    fn adopt_by(&mut self, now: Now, adopting: Adopting, action: Action) {
        let unit = adopting.message.unit;
        ctx!(self, now).run(unit, Op::NodeAdopt(Box::new(adopting)), action);
    }

    fn fence_adopted(&mut self, now: Now, adopting: Adopting) {
        let datasets = datasets_of(&adopting.intro.adopted);
        let adopting = Adopting { stage: Stage::Fence, ..adopting };
        self.adopt_by(now, adopting, Action::Fence { datasets });
    }

    /// Whether replicas of this unit are being taken over.
    pub(super) fn is_adopting(&self, unit: UnitId) -> bool {
        self.out.ops.values().any(|(id, op)| *id == unit && matches!(op, Op::NodeAdopt(_)))
    }

    /// The primary has let go of a unit that is not followed yet.
    pub(super) fn drop_adoption(&mut self, peer: Fingerprint, unit: UnitId) {
        for (id, op) in self.out.ops.values_mut() {
            if let Op::NodeAdopt(adopting) = op
                && *id == unit
                && adopting.peer == peer
            {
                adopting.dropped = true;
            }
        }
    }

    pub(super) fn adoption_done(
        &mut self,
        now: Now,
        adopting: Adopting,
        outcome: Result<Outcome, Failure>,
    ) {
        let dropped = || Failure::refused(FailureCode::Cancelled, "its protection was taken back");
        let outcome = match adopting.dropped {
            true => Err(dropped()),
            false => outcome,
        };
        let verify = !matches!(&adopting.message.body,
            Body::Intro { adoption: Some(a), .. } if a.diverged);
        match (&adopting.stage, outcome) {
            (Stage::GiveBack(failure), outcome) => {
                let mut failure = failure.clone();
                if let Err(more) = outcome {
                    failure.message = format!("{}; giving it back failed: {more}", failure.message);
                }
                self.answer_intro(now, adopting.peer, &adopting.message, Err(failure));
            }
            (Stage::Look, Ok(Outcome::Changed(Change::Changed { bytes }))) => {
                let failure = written(&adopting.intro.adopted, bytes);
                self.answer_intro(now, adopting.peer, &adopting.message, Err(failure));
            }
            // What cannot be told by a look is proven behind the fence.
            (Stage::Look, Ok(_)) => self.fence_adopted(now, adopting),
            (Stage::Look | Stage::Fence, Err(failure)) if !adopting.dropped => {
                self.answer_intro(now, adopting.peer, &adopting.message, Err(failure));
            }
            (Stage::Fence, Ok(_)) if verify => {
                let snapshots = adopting.intro.adopted.clone();
                let adopting = Adopting { stage: Stage::Verify, ..adopting };
                self.adopt_by(now, adopting, Action::VerifyUnwritten { snapshots });
            }
            (Stage::Fence | Stage::Verify, Ok(_)) => self.adopted(now, adopting),
            (_, Err(failure)) => {
                let failure = match failure.code {
                    FailureCode::Modified => {
                        differs(format!("{} (it is unmounted for that look)", failure.message))
                    }
                    _ => failure,
                };
                self.give_adopted_back(now, adopting, failure);
            }
        }
    }

    fn adopted(&mut self, now: Now, adopting: Adopting) {
        let Adopting { peer, message, intro, .. } = &adopting;
        if self.units.contains_key(&message.unit) {
            return; // Introduced otherwise meanwhile, and answered.
        }
        if let Err(failure) = self.may_follow(message, &intro.datasets) {
            return self.give_adopted_back(now, adopting, failure);
        }
        let adopted: Vec<Adopted> = intro
            .adopted
            .iter()
            .map(|s| Adopted { dataset: s.dataset().clone(), base: s.short().to_owned() })
            .collect();
        self.follow(now, *peer, message, &intro.datasets, adopted.clone());
        if let Some(unit) = self.units.get_mut(&message.unit) {
            unit.upkeep.mirror_due = true;
        }
        self.answer_intro(now, *peer, message, Ok(adopted));
    }

    fn give_adopted_back(&mut self, now: Now, adopting: Adopting, failure: Failure) {
        let unit = adopting.message.unit;
        let datasets = datasets_of(&adopting.intro.adopted);
        let action = Action::GiveBack {
            datasets,
            tag: Unit::tag_of(unit),
            prefix: Unit::prefix_of(unit),
            keep_newest: true,
            program: None,
            at_rest: false,
        };
        let adopting = Adopting { stage: Stage::GiveBack(failure), ..adopting };
        self.adopt_by(now, adopting, action);
    }
}

fn datasets_of(snapshots: &[SnapshotName]) -> Vec<DatasetName> {
    snapshots.iter().map(|s| s.dataset().clone()).collect()
}

fn written(bases: &[SnapshotName], bytes: u64) -> Failure {
    let named: Vec<String> = bases.iter().map(ToString::to_string).collect();
    differs(format!("about {bytes} bytes were written since {}", named.join(", ")))
}

/// The refusal of a replica that is not what the primary has sent it; `what` says in which way.
fn differs(what: String) -> Failure {
    let text = format!(
        "{what}; nothing was changed. To keep that aside and go on from what both have, protect with \
         `--adopt --diverged`, then run `flocker-repl resolve` here, which shows it first"
    );
    Failure::refused(FailureCode::Modified, text)
}

/// Where the replicas to be taken over lie: where a person said, in the peer's grant.
///
/// # Errors
/// Outside of the grant, and what to run so that it is not.
pub(super) fn places(
    ctx: &Ctx,
    peer: Fingerprint,
    grant: &Grant,
    unit: &str,
    (volumes, adoption): (&[VolumeIntro], &Adoption),
) -> Result<Vec<DatasetName>, Failure> {
    let refuse = |code, text: String| Err(Failure::refused(code, text));
    let count = volumes.len();
    let theirs: Vec<&str> = volumes.iter().map(|v| v.place.as_str()).collect();
    let tops = tree::tops_of_places(&theirs);
    let uppermost: Vec<usize> = (0..count).filter(|at| tops[*at] == *at).collect();
    if ![count, uppermost.len()].contains(&adoption.places.len()) {
        let text = format!(
            "{} replicas are named, and the unit has {count} volumes: name one for each, in their order, or the \
             uppermost alone ({} of them), below which the others lie as they do on the primary",
            adoption.places.len(),
            uppermost.len()
        );
        return refuse(FailureCode::BadRequest, text);
    }
    let mut places: Vec<DatasetName> = Vec::new();
    for given in &adoption.places {
        let root = &ctx.config.store.root;
        // Relative to the store's root, as in every command, or as `zfs list` has it.
        let place = match given.pool() == root.pool() {
            true => given.clone(),
            false => DatasetName::new(format!("{root}/{given}"))
                .map_err(|e| Failure::refused(FailureCode::BadRequest, e.to_string()))?,
        };
        let receive = &grant.receive;
        let below = place.is_within(receive) && place != *receive;
        if !below {
            let text = format!(
                "{place} lies outside of {receive}, below which {0} may keep replicas here (a name that does \
                 not begin with `{1}/` is taken below {root}): run `zfs rename -p {place} {receive}/{unit}` \
                 and protect with `--adopt {receive}/{unit}`, or grant a place above it: \
                 `flocker-repl grant {0} --receive DATASET`",
                ctx.peer_name(peer),
                root.pool()
            );
            return refuse(FailureCode::NotGranted, text);
        }
        if places.contains(&place) {
            return refuse(FailureCode::BadRequest, format!("{place} is named twice"));
        }
        places.push(place);
    }
    if places.len() == count {
        return Ok(places);
    }
    let known: BTreeMap<usize, DatasetName> = uppermost.into_iter().zip(places).collect();
    let below = |at: usize| {
        let (above, rest) = (&known[&tops[at]], theirs[at].strip_prefix(theirs[tops[at]]));
        match rest.unwrap_or_default().trim_start_matches('/') {
            "" => Ok(above.clone()),
            rest => crate::standby::with_room(format!("{above}/{rest}")),
        }
    };
    (0..count).map(below).collect()
}

/// What a dataset in a replica's place is to a unit that comes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing is there, or this very unit's replica.
    Ours,
    /// A replica that somebody else made; its newest snapshot that the primary has, too.
    Adopt(SnapshotName),
}

/// Pure: whether what was found in place of a replica may be taken over.
///
/// # Errors
/// Why not, and what to do.
pub(super) fn judge(
    found: &Inspected,
    dataset: &DatasetName,
    volume: &VolumeIntro,
    adoption: Option<&Adoption>,
) -> Result<Place, Failure> {
    let refuse = |code, text: String| Err(Failure::refused(code, text));
    let known: BTreeSet<Guid> = volume.known.iter().copied().collect();
    let snapshots = &found.inventory.snapshots;
    let common = snapshots.iter().rposition(|s| known.contains(&s.guid));
    let Some(adoption) = adoption else {
        let hint = match common {
            Some(at) => format!(
                "; it has {} in common with the primary: protect with `--adopt` to go on from there",
                snapshots[at].name
            ),
            None => String::new(),
        };
        let text = format!(
            "{dataset} exists on the standby and is no replica of this unit; protect with \
             another --name, or rename it there{hint}"
        );
        return refuse(FailureCode::Exists, text);
    };
    let Some(info) = &found.info else {
        let text = format!(
            "there is no dataset {dataset} to adopt; name the replica with `--adopt DATASET`, or protect \
             without --adopt to have everything sent"
        );
        return refuse(FailureCode::NotFound, text);
    };
    if info.kind != volume.kind {
        let text = format!("{dataset} is a {}, and {} a {}", info.kind, volume.leaf, volume.kind);
        return refuse(FailureCode::Unsupported, text);
    }
    if volume.raw && !info.encrypted {
        let text = format!(
            "{dataset} was received plain, and {} is encrypted: it is sent raw only, so that its key never \
             leaves, and a raw step cannot follow a plain one; protect it without --adopt, under another --name",
            volume.leaf
        );
        return refuse(FailureCode::Unsupported, text);
    }
    let Some(at) = common else {
        let newest = snapshots.last().map_or("none".to_owned(), |s| s.name.short().to_owned());
        let text = format!(
            "{dataset} has no snapshot in common with {} (its newest: {newest}), so it cannot be gone on from; \
             it stays as it is. Protect without --adopt, under another --name, to have everything sent",
            volume.leaf
        );
        return refuse(FailureCode::NoBase, text);
    };
    if at + 1 < snapshots.len() && !adoption.diverged {
        let newer: Vec<&str> = snapshots[at + 1..].iter().map(|s| s.name.short()).collect();
        return Err(differs(format!(
            "{dataset} has snapshots that the primary has not, newer than {}: {}",
            snapshots[at].name,
            newer.join(", ")
        )));
    }
    Ok(Place::Adopt(snapshots[at].name.clone()))
}

/// Another unit's replica is in that place, whatever its properties say.
pub(super) fn taken(dataset: &DatasetName, by: &str) -> Failure {
    let text = format!("{dataset} is a volume of the unit {by} on this node");
    Failure::new(Remedy::Abort, FailureCode::Exists, text)
}
