//! The checkers: what must hold after every event, whatever went wrong.
//!
//! They look at what is durable, at what is said, and at the model of stores and workloads; never
//! into the core. What must hold once everything is well again is in `check_final`.

use std::collections::BTreeMap;
use std::fmt;

use flocker_core::ids::{AttemptId, EpochOrder, Fingerprint, Incarnation, TransferId, UnitId};
use flocker_core::record::{Answer, JournalChange, Role, UnitRecord};
use flocker_core::{Action, Body, Message};
use flocker_store::{DatasetName, ReceiveSpec};

use super::host::{fingerprint_of, index_of};
use super::trees::is_late;
use super::world::World;

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// At most one node writes in an epoch, and it is the epoch's owner.
    OneWriterPerEpoch,
    /// At most one node at which the volume can be written, and a workload runs, at any moment.
    OneWriter,
    /// Where a unit is handed over or followed, it cannot be written.
    Fenced,
    /// What the workload acknowledged is there exactly once, in order.
    Acknowledged,
    /// A standby's confirmed snapshot never goes back.
    ConfirmedSurvives,
    /// Base and target of a step in flight are not destroyed.
    BaseInFlight,
    /// What a standby is at is not destroyed on its primary, heard of or not.
    BaseKept,
    /// The answer to `settle(attempt)` never changes.
    SettleStands,
    /// What is said is durable before it is said.
    DurableFirst,
    /// Only a refusal by the incarnation that said ready lets the source resume.
    RefusalOnly,
    /// Epochs, tombstones and attempt numbers of an intact journal only grow.
    JournalGrows,
    /// An owner that starts asks its standbys first.
    AsksFirst,
    /// No workload is started where it is not known that none runs.
    OneWorkload,
    /// The final snapshot is taken after the fence, of a stopped workload.
    FinalSnapshot,
    /// A message of an older epoch changes nothing.
    StaleEpoch,
    /// The contract between core and engine.
    Contract,
    /// A standby takes over only where it is proven that nobody else writes.
    Proof,
    /// Never two nodes have a unit's address.
    Address,
    /// The volumes of a unit are at one moment.
    Group,
    /// A failover loses no more than it said.
    Foretold,
    /// What a failover left behind is kept on the node that has it.
    SetAside,
    /// Snapshots of other tools are never destroyed.
    Foreign,
    /// After healing: one primary, running, its standby within its RPO.
    Heals,
    /// After healing: no snapshot or hold is left over.
    NothingLeaks,
    /// After healing: every question of a person was answered.
    Answers,
    /// The core found its own state impossible.
    Panic,
}

/// A rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// When, virtual milliseconds.
    pub at_ms: u64,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} ms: {}", self.rule, self.at_ms, self.text)
    }
}

/// What the checkers remember.
#[derive(Debug, Default)]
pub struct Memory {
    /// Who wrote in an epoch.
    writers: BTreeMap<(UnitId, u64), usize>,
    /// How an attempt was settled, by an incarnation of the answering journal.
    settled: BTreeMap<(UnitId, AttemptId, Incarnation), Answer>,
    /// Newest record in a snapshot that a standby confirmed, by node.
    pub(super) confirmed: BTreeMap<(UnitId, usize), u64>,
    /// What was set aside: where, its name, the stamp of its last write.
    pub(super) kept: Vec<(usize, DatasetName, u64)>,
    /// The epoch in which a transfer was offered, by receiving node.
    offered: BTreeMap<(usize, TransferId), u64>,
}

impl World {
    /// Remembers the first violation; the run ends there.
    pub(super) fn violate(&mut self, rule: Rule, text: String) {
        self.trace(|| format!("VIOLATION {rule:?}: {text}"));
        if self.violation.is_none() {
            let at_ms = self.now_ms;
            self.violation = Some(Violation { rule, at_ms, text });
        }
    }

    // ---- the journal ------------------------------------------------------------------------

    /// Makes changes durable, and looks at what they change.
    pub(super) fn persist(&mut self, node: usize, changes: Vec<JournalChange>) {
        for change in &changes {
            if let JournalChange::PutUnit(record) = change {
                let old = self.hosts[node].record(record.id).cloned();
                self.check_put(node, old.as_ref(), record);
                self.learn_unit(node, record);
            }
        }
        self.hosts[node].durable.apply(changes);
        self.forget_unprotected();
    }

    fn check_put(&mut self, node: usize, old: Option<&UnitRecord>, new: &UnitRecord) {
        let me = self.hosts[node].fingerprint;
        if new.role.is_primary() && new.epoch.owner != me {
            let text = format!("n{node} is {} in epoch {}", new.role.word(), new.epoch);
            self.violate(Rule::OneWriterPerEpoch, text);
        }
        let Some(old) = old else {
            if new.role.is_primary()
                && let Some(life) = &mut self.hosts[node].life
            {
                // A new protection: nobody else knows of it yet, and nothing of it can run.
                life.satisfied.insert(new.id);
                life.probed.insert(new.id);
            }
            return;
        };
        let shrank = new.epoch.number < old.epoch.number
            || old.epoch.judge(&new.epoch) == EpochOrder::Conflict
            || new.last_attempt < old.last_attempt
            || old
                .refused_up_to
                .iter()
                .any(|(issuer, n)| new.refused_up_to.get(issuer).is_none_or(|m| m < n));
        if shrank {
            let text = format!("n{node}: {old:?} became {new:?}");
            self.violate(Rule::JournalGrows, text);
        }
        if let Role::Ready { attempt, .. } = &new.role {
            let refused = old.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
            if refused >= attempt.number && !old.taken.contains(attempt) {
                let text = format!("n{node} promises {attempt}, which it has refused");
                self.violate(Rule::SettleStands, text);
            }
        }
        self.check_transition(node, old, new);
    }

    fn check_transition(&mut self, node: usize, old: &UnitRecord, new: &UnitRecord) {
        let me = self.hosts[node].fingerprint;
        if let Role::HandedOver { attempt, incarnation, .. } = &old.role {
            let refused = self.memory.settled.get(&(new.id, *attempt, *incarnation))
                == Some(&Answer::Refused);
            if new.role.is_primary() && Self::is_failover(old, new) {
                self.check_failed_over(node, new);
            } else if new.role.is_primary() && !refused {
                let text = format!("n{node} resumes attempt {attempt}, which nobody refused");
                self.violate(Rule::RefusalOnly, text);
            }
        }
        if old.role.is_standby() && new.role.is_primary() {
            match Self::is_failover(old, new) {
                true => self.check_failed_over(node, new),
                false => self.check_taken(node, old, new),
            }
        }
        let gave_way = old.role.is_primary() && new.role.is_standby() && new.was_primary;
        let alone = |m: usize| self.units[m].told_alone && !self.units[m].two_lines;
        if gave_way
            && self.unit_index(new.id).is_some_and(alone)
            && let Some(owner) = index_of(new.epoch.owner)
        {
            // Told to serve without asking whoever had taken over: clients go on from what that one has.
            self.count_losses(owner, &[node], new);
        }
        let ours_now = new.role.is_primary() && !old.role.is_primary();
        if ours_now && let Some(life) = &mut self.hosts[node].life {
            life.satisfied.insert(new.id);
        }
        if new.role == Role::Serving || (new.role.is_standby() && !old.role.is_standby()) {
            self.moves.remove(&new.id);
        }
        if new.role.is_standby() && new.epoch.owner == me {
            let text = format!("n{node} follows in an epoch of its own: {}", new.epoch);
            self.violate(Rule::OneWriterPerEpoch, text);
        }
    }

    /// A standby became the owner: by the promise it made, with everything that was acknowledged.
    fn check_taken(&mut self, node: usize, old: &UnitRecord, new: &UnitRecord) {
        let Role::Ready { attempt, next, finals, .. } = &old.role else {
            let text = format!("n{node} becomes owner from {}", old.role.word());
            return self.violate(Rule::OneWriterPerEpoch, text);
        };
        self.coverage.migrations.taken += 1;
        if new.epoch != *next || !new.taken.contains(attempt) {
            let text = format!("n{node} takes {attempt} into epoch {}", new.epoch);
            self.violate(Rule::JournalGrows, text);
        }
        let Some(model) = self.unit_index(new.id) else { return };
        let acked = self.units[model].acked;
        for volume in &new.volumes {
            let wanted = finals.iter().find(|(id, _)| *id == volume.id).map(|(_, guid)| *guid);
            let dataset = self.hosts[node].store.datasets.get(&volume.dataset);
            let snap = dataset.and_then(|d| d.snapshot(wanted?));
            let live = dataset.map(|d| d.live.clone()).unwrap_or_default();
            let Some(snap) = snap else {
                let text = format!("n{node} takes {} without its final snapshot", volume.dataset);
                return self.violate(Rule::FinalSnapshot, text);
            };
            if snap.fuzzy || snap.content.stamp() != live.stamp() {
                let text = format!("n{node} takes {} at a moment that never was", volume.dataset);
                return self.violate(Rule::FinalSnapshot, text);
            }
            if !is_late(&volume.dataset) && !live.holds_all_up_to(acked) {
                let runs = live.describe();
                let text = format!("n{node} takes over with {runs}, acknowledged up to {acked}");
                return self.violate(Rule::Acknowledged, text);
            }
        }
    }

    // ---- what is said -------------------------------------------------------------------------

    /// What a node says must be durable, and consistent with what it said before.
    pub(super) fn check_said(&mut self, node: usize, peer: Fingerprint, message: &Message) {
        let record = self.hosts[node].record(message.unit).cloned();
        let mine = self.hosts[node].durable.incarnation;
        match &message.body {
            Body::SettleReply { attempt, answer, incarnation } => {
                let key = (message.unit, *attempt, *incarnation);
                let before = self.memory.settled.insert(key, *answer);
                if before.is_some_and(|b| b != *answer) {
                    let text =
                        format!("n{node} first said {before:?} of {attempt}, now {answer:?}");
                    self.violate(Rule::SettleStands, text);
                }
                let durable = match (answer, &record) {
                    (Answer::Taken, Some(r)) => r.taken.contains(attempt),
                    (Answer::Refused, Some(r)) => {
                        let up_to = r.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
                        up_to >= attempt.number && !r.taken.contains(attempt)
                    }
                    (Answer::Taken, None) => false,
                    // A journal that knows nothing of the unit has nothing to keep.
                    (Answer::Refused, None) => true,
                };
                if !durable || *incarnation != mine {
                    let text =
                        format!("n{node} answers {answer:?} to {attempt} before it is durable");
                    self.violate(Rule::DurableFirst, text);
                }
            }
            Body::PrepareReply { attempt, answer: Ok(incarnation) } => {
                let ready = record.as_ref().is_some_and(|r| match &r.role {
                    Role::Ready { attempt: a, .. } => a == attempt,
                    _ => false,
                });
                if !ready || *incarnation != mine {
                    let text = format!("n{node} says ready for {attempt} before it is durable");
                    self.violate(Rule::DurableFirst, text);
                }
            }
            Body::Settle { attempt, .. } => {
                let committed = record.as_ref().is_some_and(|r| match &r.role {
                    // Settled already, and asked once more to hear how the activation went.
                    Role::Following { .. } | Role::Ready { .. } => r.epoch.attempt == *attempt,
                    Role::HandedOver { attempt: a, target, .. } => a == attempt && *target == peer,
                    _ => false,
                });
                // Or it was settled long ago, and the epoch has gone on since.
                let unit = message.unit;
                let taken = self.memory.settled.iter().any(|((u, a, _), answer)| {
                    *u == unit && a == attempt && *answer == Answer::Taken
                });
                if !committed && !taken {
                    let text =
                        format!("n{node} asks to settle {attempt} before its commit is durable");
                    self.violate(Rule::DurableFirst, text);
                }
            }
            Body::IntroReply(Ok(adopted)) if !adopted.is_empty() => {
                self.coverage.fault("adopted");
            }
            Body::StepReply { outcome: Ok(guid), .. } => {
                self.remember_confirmed(node, message.unit, *guid);
            }
            _ => {}
        }
        // An epoch is spoken of only once it is durable.
        if record.is_some_and(|r| r.epoch != message.epoch) {
            let text = format!("n{node} speaks of epoch {} before it is durable", message.epoch);
            self.violate(Rule::DurableFirst, text);
        }
    }

    fn remember_confirmed(&mut self, node: usize, unit: UnitId, guid: flocker_store::Guid) {
        let first =
            self.dataset_of(node, unit).and_then(|d| d.snapshot(guid)).map(|s| s.content.last());
        let store = &self.hosts[node].store;
        let volumes = self.hosts[node].record(unit).map(|r| r.volumes.as_slice());
        let another =
            volumes.unwrap_or_default().iter().skip(1).any(|v| {
                store.datasets.get(&v.dataset).is_some_and(|d| d.snapshot(guid).is_some())
            });
        match first {
            None if another => {}
            Some(records) => {
                let entry = self.memory.confirmed.entry((unit, node)).or_default();
                *entry = (*entry).max(records);
            }
            None => {
                let text = format!("n{node} confirms the snapshot {guid}, which it does not have");
                self.violate(Rule::ConfirmedSurvives, text);
            }
        }
    }

    /// Notes what a message promises before the core sees it.
    pub(super) fn check_delivered(&mut self, _from: usize, to: usize, message: &Message) {
        if let Body::Offer(offer) = &message.body {
            self.memory.offered.insert((to, offer.transfer), message.epoch.number);
        }
    }

    /// A standby receives only what was offered in the epoch it knows.
    pub(super) fn check_receive_allowed(
        &mut self,
        node: usize,
        transfer: TransferId,
        unit: UnitId,
        spec: &ReceiveSpec,
    ) {
        let Some(record) = self.hosts[node].record(unit).cloned() else {
            let text = format!("n{node} receives for a unit that its journal does not know");
            return self.violate(Rule::DurableFirst, text);
        };
        let known = record.epoch.number;
        let granted = record.volumes.iter().any(|v| v.dataset == spec.dataset);
        let offered = self.memory.offered.get(&(node, transfer)).copied();
        if offered.is_none_or(|epoch| epoch < known) {
            let text = format!("n{node} in epoch {known} accepts a step of epoch {offered:?}");
            self.violate(Rule::StaleEpoch, text);
        }
        if !record.role.is_standby() || !granted {
            let text = format!("n{node}, {}, receives into {}", record.role.word(), spec.dataset);
            self.violate(Rule::Fenced, text);
        }
    }

    // ---- what is done -------------------------------------------------------------------------

    /// Before an action begins.
    pub(super) fn check_action(&mut self, node: usize, unit: UnitId, action: &Action) {
        match action {
            Action::Activate { .. } => self.check_activate(node, unit),
            Action::StartWorkload { .. } => {
                let host = &self.hosts[node];
                let probed = host.life.as_ref().is_some_and(|l| l.probed.contains(&unit));
                let owner = host.record(unit).is_some_and(|r| r.role.is_primary());
                if !probed {
                    let text = format!("n{node} starts a workload without having looked for one");
                    self.violate(Rule::OneWorkload, text);
                }
                if !owner {
                    let text = format!("n{node} starts a workload of a unit it does not own");
                    self.violate(Rule::OneWriter, text);
                }
            }
            _ => {}
        }
    }

    fn check_activate(&mut self, node: usize, unit: UnitId) {
        let host = &self.hosts[node];
        let (Some(record), Some(life)) = (host.record(unit), &host.life) else {
            let text = format!("n{node} makes a unit writable that its journal does not know");
            return self.violate(Rule::AsksFirst, text);
        };
        if !record.role.is_primary() {
            let text = format!("n{node} activates what it is {} of", record.role.word());
            return self.violate(Rule::Fenced, text);
        }
        let heard = record.standbys.iter().all(|s| life.heard.contains(&(unit, *s)));
        let running = host.workloads.contains_key(&unit);
        let alone =
            record.start_alone || self.unit_index(unit).is_some_and(|m| self.units[m].told_alone);
        if heard || running || alone || life.satisfied.contains(&unit) {
            if let Some(life) = &mut self.hosts[node].life {
                life.satisfied.insert(unit);
            }
        } else {
            let text = format!("n{node} becomes writable without having heard from its standbys");
            self.violate(Rule::AsksFirst, text);
        }
    }

    /// What a node knows once an action has ended well.
    pub(super) fn learn_from(&mut self, node: usize, unit: UnitId, action: &Action) {
        if let Action::ProbeWorkload { .. } | Action::StopWorkload { .. } = action
            && let Some(life) = &mut self.hosts[node].life
        {
            life.probed.insert(unit);
        }
    }

    /// A workload wrote.
    pub(super) fn check_write(&mut self, node: usize, unit: UnitId, dataset: &DatasetName) {
        let live = self.hosts[node].store.datasets.get(dataset).map(|d| &d.live);
        if let Some(runs) = live.filter(|l| !l.is_whole()).map(|l| l.describe()) {
            let text = format!("n{node} writes on after losing records: {runs}");
            self.violate(Rule::Acknowledged, text);
        }
        let Some(record) = self.hosts[node].record(unit) else { return };
        let number = record.epoch.number;
        let owner = index_of(record.epoch.owner);
        if self.unit_index(unit).is_some_and(|m| self.is_superseded(node, m)) && owner != Some(node)
        {
            return; // It was told so, and is about to stop.
        }
        let writer = *self.memory.writers.entry((unit, number)).or_insert(node);
        if writer != node || owner != Some(node) {
            let text = format!("n{node} and n{writer} write in epoch {number} of n{owner:?}");
            self.violate(Rule::OneWriterPerEpoch, text);
        }
    }

    // ---- after every event --------------------------------------------------------------------

    /// What must hold at every moment.
    pub(super) fn check_moment(&mut self) {
        for model in 0..self.units.len() {
            let unit = self.units[model].id;
            let mut writable = Vec::new();
            let mut writers = 0;
            for node in 0..self.hosts.len() {
                let Some(dataset) = self.dataset_of(node, unit) else { continue };
                let confirmed = self.memory.confirmed.get(&(unit, node)).copied().unwrap_or(0);
                let newest = dataset.snapshots.iter().map(|s| s.content.last()).max();
                let kept = newest.unwrap_or(0).max(dataset.live.last());
                let can_be_written = dataset.can_be_written();
                if kept < confirmed {
                    let text = format!("n{node} confirmed record {confirmed} and has {kept}");
                    return self.violate(Rule::ConfirmedSurvives, text);
                }
                if self.is_left_behind(model, node, can_be_written) || !can_be_written {
                    continue;
                }
                writable.push(node);
                let host = &self.hosts[node];
                writers += usize::from(host.workloads.contains_key(&unit));
                if let Some(record) = host.record(unit)
                    && !record.role.is_primary()
                {
                    let text = format!("n{node} is {} and can be written", record.role.word());
                    return self.violate(Rule::Fenced, text);
                }
            }
            if writers > 1 || writable.len() > 1 {
                let text = format!("unit {model} can be written at {writable:?}, {writers} write");
                return self.violate(Rule::OneWriter, text);
            }
        }
    }

    /// The peer a unit's owner replicates to, for checks that need one.
    pub(super) fn is_standby_of(&self, node: usize, owner: usize, unit: UnitId) -> bool {
        let owner_knows = self.hosts[owner]
            .record(unit)
            .is_some_and(|r| r.standbys.contains(&fingerprint_of(node)));
        owner_knows && self.hosts[node].record(unit).is_some_and(|r| r.role.is_standby())
    }
}
