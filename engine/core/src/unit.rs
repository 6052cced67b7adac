//! One unit on one node: its durable record, and the machines that work on it.
//!
//! Owns: routing of inputs to the machines, epochs, roles, and the local inventory. The machines:
//! `service` (the start-up rule and the workload), `replicate` (a primary's side of replication),
//! `standby` (the other side), `cutover` (the source's side of a move), `upkeep` (holds, snapshots
//! to be destroyed, mirrors). Each input changes state; `advance` then begins whatever is due, so
//! it does not matter in which order things became so.

use std::collections::{BTreeMap, BTreeSet};

use flocker_store::{Inventory, Origin, Snapshot};

use crate::ctx::Ctx;
use crate::cutover::{Cutover, DryRun};
use crate::drill::Drill;
use crate::failover::Failover;
use crate::failure::{Failure, FailureCode, Remedy};
use crate::ids::{EpochOrder, Fingerprint, OpId, QuestionId, RequestId, TransferId, UnitId};
use crate::io::{Effect, EventKind, Inspected, Outcome};
use crate::lease::Lease;
use crate::limits::PER_VOLUME_MS;
use crate::message::{Body, Carried, Message};
use crate::network::Network;
use crate::node::Adopting;
use crate::record::{JournalChange, Mirror, Role, UnitRecord};
use crate::replicate::{Extending, Replica, Snapshotting};
use crate::service::{Offer, Service, Work};
use crate::standby::{Promise, StandbyView};
use crate::upkeep::Upkeep;

/// What an action was handed out for. The machine's state holds the `OpId` and ignores others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Service,
    Work,
    Changed,
    Snapshot,
    LocalInspect,
    Cutover,
    CutoverVerify,
    Tidy,
    Mark,
    Mirror,
    Survey {
        peer: Fingerprint,
    },
    Room,
    Origin,
    Compare {
        peer: Fingerprint,
    },
    Resolve,
    Prepare,
    /// Its outcome is not looked at.
    Ahead,
    Preflight,
    /// For a move, or what only asks for one.
    Describe,
    /// For standbys to be ready.
    Offer,
    Network,
    StepBack,
    /// Places of volumes that want to join.
    Join,
    /// Volumes that join are made reachable.
    Extend,
    /// Volumes that have left are given back.
    Left,
    Failover,
    Drill,
    GiveBack,
    NodeIntro {
        peer: Fingerprint,
        message: Box<Message>,
    },
    NodeAdopt(Box<Adopting>),
    NodeExtend {
        request: RequestId,
        command: Box<crate::io::Command>,
    },
    NodeProtect {
        request: RequestId,
        command: Box<crate::io::Command>,
    },
}

/// A unit that is being let go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// `None`: whatever is under way has to end first, or it would leave its traces after all.
    pub(crate) op: Option<OpId>,
    /// Keep the newest of our snapshots: it is a replica's data.
    pub(crate) keep_newest: bool,
    pub(crate) request: Option<RequestId>,
    /// What to answer: a protection that was refused, or nothing but `Done`.
    pub(crate) refusal: Option<Failure>,
    /// Where the store is not there, nothing has to be given back.
    pub(crate) store_is_gone: bool,
}

/// The snapshots of each volume here, as far as they are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Local {
    /// In the order of the record's volumes; `None`: to be looked at first.
    pub(crate) inventories: Option<Vec<Inventory>>,
    /// What each dataset is a clone of, as of the last look.
    pub(crate) origins: Vec<Option<Origin>>,
    /// Whether each dataset exists.
    pub(crate) exists: Vec<bool>,
    /// A look is under way.
    pub(crate) looking: Option<OpId>,
}

impl Local {
    /// Something was changed that a look under way may have missed.
    pub(crate) fn forget(&mut self) {
        self.inventories = None;
        self.looking = None;
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub(crate) record: UnitRecord,
    /// The mirrors know more than the journal: nothing starts before every standby has answered.
    pub(crate) strict: bool,
    pub(crate) service: Service,
    pub(crate) work: Work,
    pub(crate) offer: Offer,
    pub(crate) local: Local,
    pub(crate) replicas: BTreeMap<Fingerprint, Replica>,
    pub(crate) snapshotting: Snapshotting,
    /// Standbys that are known to follow the epoch that was decided on here.
    pub(crate) followed_by: BTreeSet<Fingerprint>,
    pub(crate) cutover: Option<Cutover>,
    pub(crate) dry_runs: Vec<DryRun>,
    pub(crate) failover: Option<Failover>,
    pub(crate) drill: Option<Drill>,
    /// Looks for standbys whose person asked what both sides have.
    pub(crate) comparing: BTreeMap<Fingerprint, (OpId, QuestionId)>,
    pub(crate) lease: Lease,
    pub(crate) network: Network,
    /// When `Settle` is due again, while the role is `HandedOver`.
    pub(crate) settle_at: u64,
    pub(crate) handed_over_at: u64,
    /// When that was by the wall clock, if it was since our start: until then the target has all there is.
    pub(crate) handed_over_wall_ms: Option<i64>,
    pub(crate) standby: StandbyView,
    pub(crate) upkeep: Upkeep,
    pub(crate) ending: Option<Ending>,
    pub(crate) alarm: Option<Failure>,
    /// Bookmarks are being made or destroyed.
    pub(crate) marking: Option<crate::replicate::absence::Marking>,
    /// Volumes on their way to join it.
    pub(crate) extending: Option<Extending>,
}

impl Unit {
    /// A unit with nothing known but its record.
    pub(crate) fn new(record: UnitRecord) -> Self {
        Self {
            record,
            strict: false,
            service: Service::New,
            work: Work::Unknown,
            offer: Offer::default(),
            local: Local::default(),
            replicas: BTreeMap::new(),
            snapshotting: Snapshotting::default(),
            followed_by: BTreeSet::new(),
            cutover: None,
            dry_runs: Vec::new(),
            failover: None,
            drill: None,
            comparing: BTreeMap::new(),
            lease: Lease::default(),
            network: Network::default(),
            settle_at: 0,
            handed_over_at: 0,
            handed_over_wall_ms: None,
            standby: StandbyView::default(),
            upkeep: Upkeep::default(),
            ending: None,
            alarm: None,
            marking: None,
            extending: None,
        }
    }

    /// After a start of the node: what the journal says, against what the mirrors say.
    pub(crate) fn boot(&mut self, ctx: &mut Ctx, mirrors: &[Option<Mirror>]) {
        let newer = mirrors
            .iter()
            .flatten()
            .any(|m| m.unit == self.record.id && m.epoch.number > self.record.epoch.number);
        if newer {
            self.strict = true;
            self.raise(
                ctx,
                Failure::new(
                    Remedy::Operator,
                    FailureCode::Conflict,
                    format!(
                        "{}: the journal is older than the dataset's own properties; \
                     nothing is made writable before every standby has answered",
                        self.record.name
                    ),
                ),
            );
        }
        self.upkeep.mirror_due = true;
        self.handed_over_at = ctx.now.mono_ms;
        self.boot_lease(ctx.now.mono_ms);
        self.enter_role(ctx);
    }

    /// What limits that are made for one volume have to be longer by, milliseconds.
    pub(crate) fn more_for_volumes_ms(&self) -> u64 {
        PER_VOLUME_MS * (self.record.volumes.len() as u64).saturating_sub(1)
    }

    pub(crate) fn id(&self) -> UnitId {
        self.record.id
    }

    /// The tag of our holds for this unit.
    pub(crate) fn tag(&self) -> flocker_store::HoldTag {
        Self::tag_of(self.record.id)
    }

    pub(crate) fn tag_of(unit: UnitId) -> flocker_store::HoldTag {
        flocker_store::HoldTag(format!("flocker-repl:{}", unit.short()))
    }

    /// What the short names of our snapshots of this unit begin with.
    pub(crate) fn prefix(&self) -> String {
        Self::prefix_of(self.record.id)
    }

    pub(crate) fn prefix_of(unit: UnitId) -> String {
        format!("flocker_{}_", unit.short())
    }

    pub(crate) fn message(&self, body: Body) -> Message {
        Message { unit: self.record.id, epoch: self.record.epoch, body }
    }

    pub(crate) fn say(&self, ctx: &mut Ctx, peer: Fingerprint, body: Body) {
        let message = self.message(body);
        ctx.send(peer, message);
    }

    pub(crate) fn persist(&self, ctx: &mut Ctx) {
        ctx.push(Effect::Persist(vec![JournalChange::PutUnit(Box::new(self.record.clone()))]));
    }

    /// Makes a new role durable and begins what belongs to it.
    pub(crate) fn set_role(&mut self, ctx: &mut Ctx, role: Role) {
        let word = role.word();
        self.record.role = role;
        self.persist(ctx);
        self.upkeep.mirror_due = true;
        self.upkeep.tidy_due = true;
        let kind = EventKind::Role { role: word.into(), epoch: self.record.epoch.number };
        ctx.report(self.record.id, &self.record.name, kind);
    }

    /// Raises the unit's alarm, once for the same words.
    pub(crate) fn raise(&mut self, ctx: &mut Ctx, failure: Failure) {
        if self.alarm.as_ref() == Some(&failure) {
            return;
        }
        self.alarm = Some(failure.clone());
        ctx.report(self.record.id, &self.record.name, EventKind::Alarm { failure });
    }

    pub(crate) fn clear_alarm(&mut self, ctx: &mut Ctx) {
        if self.alarm.take().is_some() {
            ctx.report(self.record.id, &self.record.name, EventKind::Cleared);
        }
    }

    pub(crate) fn note(&self, ctx: &mut Ctx, text: impl Into<String>) {
        ctx.report(self.record.id, &self.record.name, EventKind::Note(text.into()));
    }

    /// The newest snapshot of each volume, where each has one.
    pub(crate) fn newest(&self) -> Option<Vec<Snapshot>> {
        self.local.inventories.as_ref()?.iter().map(|i| i.latest().cloned()).collect()
    }

    pub(crate) fn datasets(&self) -> Vec<flocker_store::DatasetName> {
        self.record.volumes.iter().map(|v| v.dataset.clone()).collect()
    }

    // ---- inputs -------------------------------------------------------------------------------

    pub(crate) fn handle_peer_up(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if let Some(replica) = self.replicas.get_mut(&peer) {
            replica.up();
        }
        self.settle_at = ctx.now.mono_ms;
        self.cutover_peer_up(peer, ctx.now.mono_ms);
        self.service_peer_up(ctx, peer);
    }

    pub(crate) fn handle_peer_down(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        if let Some(replica) = self.replicas.get_mut(&peer) {
            replica.down(ctx, self.record.id);
        }
        if self.follows(peer) {
            self.standby.heard_at = None;
        }
        self.cutover_peer_down(ctx, peer);
    }

    pub(crate) fn handle_message(&mut self, ctx: &mut Ctx, peer: Fingerprint, message: Message) {
        if self.follows(peer) {
            self.standby.heard_at = Some(ctx.now.mono_ms);
        }
        // The settling of an attempt crosses epochs by its nature, so it comes before the rule.
        match message.body {
            Body::Settle { attempt, question } => {
                return self.on_settle(ctx, peer, attempt, question, message.epoch);
            }
            Body::SettleReply { attempt, answer, incarnation } => {
                if answer == crate::record::Answer::Refused
                    && self.record.epoch.judge(&message.epoch) == EpochOrder::Newer
                {
                    // Whoever owns a newer epoch has not left this one to us.
                    return self.on_newer(ctx, peer, &message);
                }
                return self.on_settle_reply(ctx, peer, attempt, answer, incarnation);
            }
            Body::Stale => return self.on_newer(ctx, peer, &message),
            Body::Unknown => return self.on_unknown(ctx, peer),
            _ => {}
        }
        match self.record.epoch.judge(&message.epoch) {
            EpochOrder::Same => self.on_body(ctx, peer, message.body),
            EpochOrder::Stale if ctx.config.planted(crate::node::PlantedBug::AcceptStaleEpoch) => {
                self.on_body(ctx, peer, message.body);
            }
            EpochOrder::Stale => {
                if !message.body.is_question() {
                    return;
                }
                // Whoever does not know whether it may serve tells nobody to stop.
                let body = match self.service {
                    Service::Claiming { question, .. } => Body::Claim { question, serves: false },
                    _ if self.claims_unsettled() => return,
                    _ => Body::Stale,
                };
                self.say(ctx, peer, body);
            }
            EpochOrder::Newer
                if matches!(message.body, Body::Claim { serves: false, .. })
                    && message.epoch.owner == peer
                    && self.is_decided() =>
            {
                self.on_unserved_claim(ctx, peer, message.epoch);
            }
            EpochOrder::Newer => {
                self.on_newer(ctx, peer, &message);
                if self.record.epoch == message.epoch {
                    self.on_body(ctx, peer, message.body);
                }
            }
            EpochOrder::Conflict => {
                let theirs = message.epoch;
                let text = format!(
                    "{}: {} claims epoch {theirs}, this node knows epoch {}: two owners of one epoch; \
                     stop the workload on one side before going on",
                    self.record.name,
                    ctx.peer_name(peer),
                    self.record.epoch
                );
                self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::Conflict, text));
            }
        }
    }

    fn on_body(&mut self, ctx: &mut Ctx, peer: Fingerprint, mut body: Body) {
        body.say_where(&ctx.peer_name(peer));
        if let Body::IntroReply(Ok(_))
        | Body::SurveyReply { .. }
        | Body::ClaimReply { known: true, .. } = &body
        {
            self.is_followed(ctx, peer);
        }
        match body {
            Body::Intro { name, volumes, tree, volumes_as_of, policy, lease_ms, .. } => {
                let promise = Promise { policy, lease_ms, tree, volumes_as_of };
                self.on_intro(ctx, peer, &name, &volumes, promise);
            }
            Body::IntroReply(answer) => self.on_intro_reply(ctx, peer, answer),
            Body::Join { question, volumes, takes_back } => {
                self.on_join(ctx, peer, question, volumes, takes_back);
            }
            Body::JoinReply { question, answer } => {
                self.on_join_reply(ctx, peer, question, answer);
            }
            Body::Survey { question } => self.on_survey(ctx, peer, question),
            Body::SurveyReply { question, was_primary, answer } => {
                self.on_survey_reply(ctx, peer, question, was_primary, answer);
            }
            Body::Offer(offer) => self.on_offer(ctx, peer, offer),
            Body::OfferReply { transfer, answer } => {
                self.on_offer_reply(ctx, peer, transfer, answer);
            }
            Body::StepReply { transfer, outcome, carried } => {
                self.on_step_reply(ctx, peer, transfer, outcome, carried);
            }
            Body::Equal { wall_ms } => self.on_equal(ctx, peer, wall_ms),
            Body::Preflight { question, workload } => {
                self.on_preflight(ctx, peer, question, workload);
            }
            Body::PreflightReply { question, answer } => {
                self.on_preflight_reply(ctx, peer, question, answer);
            }
            Body::Prepare { attempt, next, finals, workload_wanted } => {
                self.on_prepare(ctx, peer, attempt, next, finals, workload_wanted);
            }
            Body::PrepareReply { attempt, answer } => {
                self.on_prepare_reply(ctx, peer, attempt, answer);
            }
            Body::Abandon { attempt } => self.on_abandon(ctx, peer, attempt),
            Body::Activated { attempt, times } => self.on_activated(ctx, peer, attempt, times),
            Body::ActivationFailed { attempt, failure, handing_back } => {
                self.on_activation_failed(ctx, peer, attempt, failure, handing_back);
            }
            Body::Yield { attempt, next, incarnation } => {
                self.on_yield(ctx, peer, attempt, next, incarnation);
            }
            Body::YieldRefused { attempt, failure } => {
                self.on_yield_refused(ctx, peer, attempt, failure);
            }
            Body::Confirm { attempt, question } => self.on_confirm(ctx, peer, attempt, question),
            Body::StepBack { question, bases } => self.on_step_back(ctx, peer, question, bases),
            Body::StepBackReply { question, answer } => {
                self.on_step_back_reply(ctx, peer, question, answer);
            }
            Body::Lease { question, bound } => self.on_lease(ctx, peer, question, bound),
            Body::LeaseReply { question } => self.on_lease_reply(ctx, peer, question),
            // Whoever is about to take over does not say that nobody has.
            Body::Claim { .. }
                if self.failing_over()
                    && !ctx.config.planted(crate::node::PlantedBug::AnswerClaimInFailover) => {}
            // Whoever has to stop first answers when nothing runs here any more.
            Body::Claim { .. }
                if self.record.role.is_standby() && !matches!(self.service, Service::Halted) => {}
            Body::Claim { question, .. } => {
                self.say(ctx, peer, Body::ClaimReply { question, known: true });
            }
            Body::ClaimReply { question, known: _ } => self.on_claim_reply(ctx, peer, question),
            Body::Compare { question } => self.on_compare(ctx, peer, question),
            Body::CompareReply { question, answer } => {
                self.on_compare_reply(ctx, peer, question, answer);
            }
            Body::Drop => self.on_drop(ctx, peer),
            // Routed before the epoch rule.
            Body::Settle { .. } | Body::SettleReply { .. } | Body::Stale | Body::Unknown => {}
        }
    }

    /// A peer knows a newer epoch than we do: we missed a change of primary.
    fn on_newer(&mut self, ctx: &mut Ctx, peer: Fingerprint, message: &Message) {
        let theirs = message.epoch;
        if self.record.epoch.judge(&theirs) != EpochOrder::Newer {
            return;
        }
        match self.record.role.clone() {
            Role::HandedOver { target, next, .. } => {
                // The target owns `next`, or has moved on from it: it has taken. Or it took over by
                // a failover, and goes on from what it had.
                let went_on = theirs == next || theirs.number > next.number || theirs.owner == peer;
                if peer == target && went_on {
                    self.taken_by_target(ctx, theirs);
                } else {
                    self.raise_unexpected(ctx, peer);
                }
            }
            Role::Following { .. } | Role::Ready { .. } => {
                if theirs.owner == peer {
                    self.tombstone_if_ready();
                    self.record.epoch = theirs;
                    self.cutover_overtaken(ctx, theirs);
                    self.standby.source_changed();
                    self.lease_ends();
                    self.set_role(ctx, Role::Following { source: peer });
                    // What was proven of the old epoch proves nothing of this one.
                    let text = format!(
                        "{}: {} owns it since epoch {}",
                        self.record.name,
                        ctx.peer_name(peer),
                        theirs.number
                    );
                    self.end_failover(ctx, Err(Failure::refused(FailureCode::Cancelled, text)));
                } else {
                    self.raise_unexpected(ctx, peer);
                }
            }
            Role::Serving | Role::Leaving { .. } => {
                if theirs.owner == peer || self.record.standbys.contains(&peer) {
                    self.superseded(ctx, theirs);
                } else {
                    self.raise_unexpected(ctx, peer);
                }
            }
        }
    }

    fn raise_unexpected(&mut self, ctx: &mut Ctx, peer: Fingerprint) {
        let text = format!(
            "{}: {} speaks of a newer epoch which it does not own; not believed",
            self.record.name,
            ctx.peer_name(peer)
        );
        self.raise(ctx, Failure::new(Remedy::Operator, FailureCode::Conflict, text));
    }

    /// Somebody else owns the unit by now: stop, fence, follow. What only we have is kept.
    fn superseded(&mut self, ctx: &mut Ctx, theirs: crate::ids::Epoch) {
        let text = format!(
            "{}: {} owns it since epoch {}; stopped here",
            self.record.name,
            ctx.peer_name(theirs.owner),
            theirs.number
        );
        let failure = Failure::new(Remedy::Operator, FailureCode::Conflict, text);
        self.drop_replicas(ctx, &failure);
        self.end_cutover(ctx, Err(failure.clone()));
        self.end_failover(ctx, Err(failure.clone()));
        self.lease_ends();
        self.record.was_primary = true;
        self.record.epoch = theirs;
        self.record.standbys.clear();
        self.set_role(ctx, Role::Following { source: theirs.owner });
        self.raise(ctx, failure);
        self.enter_role(ctx);
    }

    pub(crate) fn drop_replicas(&mut self, ctx: &mut Ctx, failure: &Failure) {
        for (_, mut replica) in std::mem::take(&mut self.replicas) {
            replica.down(ctx, self.record.id);
            if let Some(request) = replica.protect_request.take() {
                ctx.reply(request, Err(failure.clone()));
            }
        }
        self.snapshotting = Snapshotting::default();
    }

    pub(crate) fn handle_done(
        &mut self,
        ctx: &mut Ctx,
        op: OpId,
        what: &Op,
        outcome: Result<Outcome, Failure>,
    ) {
        if self.ending.is_some() {
            return;
        }
        match what {
            Op::Service => self.service_done(ctx, op, outcome),
            Op::Work => self.work_done(ctx, op, outcome),
            Op::Changed => self.changed_done(ctx, op, outcome),
            Op::Snapshot => self.snapshot_done(ctx, op, outcome),
            Op::LocalInspect => self.look_done(ctx, op, outcome),
            Op::Cutover => self.cutover_done(ctx, op, outcome),
            Op::CutoverVerify => self.verify_done(ctx, op, outcome),
            Op::Tidy => self.tidy_done(ctx, op, outcome),
            Op::Mark => self.mark_done(ctx, op, outcome),
            Op::Mirror => self.mirror_done(ctx, op, outcome),
            Op::Survey { peer } => self.survey_done(ctx, op, *peer, outcome),
            Op::Room => self.room_done(ctx, op, outcome),
            Op::Origin => self.origin_done(ctx, op, outcome),
            Op::Compare { peer } => self.compare_done(ctx, op, *peer, outcome),
            Op::Resolve => self.resolve_done(ctx, op, outcome),
            Op::Prepare => self.prepare_done(ctx, op, outcome),
            Op::Preflight => self.preflight_done(ctx, op, outcome),
            Op::Describe => self.described(ctx, op, outcome),
            Op::Offer => self.offer_described(ctx, op, outcome),
            Op::Network => self.network_done(ctx, op, outcome),
            Op::StepBack => self.step_back_done(ctx, op, outcome),
            Op::Join => self.join_done(ctx, op, outcome),
            Op::Extend => self.extend_done(ctx, op, outcome),
            Op::Left => self.left_done(ctx, outcome),
            Op::Failover => self.failover_done(ctx, op, outcome),
            Op::Drill => self.drill_done(ctx, op, outcome),
            // The others end in the node, which owns the set of units.
            Op::GiveBack
            | Op::NodeIntro { .. }
            | Op::NodeAdopt(_)
            | Op::NodeExtend { .. }
            | Op::NodeProtect { .. }
            | Op::Ahead => {}
        }
    }

    pub(crate) fn handle_transfer_ended(
        &mut self,
        ctx: &mut Ctx,
        transfer: TransferId,
        outcome: Result<Option<Snapshot>, Failure>,
        carried: Carried,
    ) {
        if self.ending.is_some() {
            return;
        }
        if self.standby.is_receiving(transfer) {
            self.receive_ended(ctx, transfer, outcome, carried);
        } else {
            self.send_ended(ctx, transfer, outcome.map(|_| ()), carried);
        }
    }

    /// Begins whatever is due now. Idempotent.
    pub(crate) fn advance(&mut self, ctx: &mut Ctx) {
        if self.ending.is_some() {
            return self.advance_ending(ctx);
        }
        self.advance_lease(ctx);
        self.advance_service(ctx);
        self.advance_failover(ctx);
        self.advance_cutover(ctx);
        self.advance_dry_runs(ctx);
        self.advance_network(ctx);
        self.advance_offer(ctx);
        self.advance_resolving(ctx);
        self.advance_step_back(ctx);
        self.advance_extending(ctx);
        self.advance_replication(ctx);
        self.advance_settle(ctx);
        self.advance_upkeep(ctx);
    }

    /// When `advance` has something to do, monotonic milliseconds.
    pub(crate) fn timeout(&self, ctx: &Ctx) -> Option<u64> {
        if self.ending.is_some() {
            return None;
        }
        [
            self.service_timeout(),
            self.cutover_timeout(),
            self.dry_run_timeout(),
            self.failover_timeout(ctx),
            self.lease_timeout(),
            self.network_timeout(),
            self.step_back_timeout(),
            self.extending_timeout(),
            self.resolving_timeout(),
            self.replication_timeout(ctx),
            matches!(self.record.role, Role::HandedOver { .. }).then_some(self.settle_at),
            self.upkeep_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // ---- the local inventory ------------------------------------------------------------------

    /// Looks at the volumes again, unless a look is under way.
    pub(crate) fn look(&mut self, ctx: &mut Ctx) {
        if self.local.looking.is_none() {
            let action = crate::io::Action::Inspect { datasets: self.datasets(), streams: false };
            self.local.looking = Some(ctx.run(self.id(), Op::LocalInspect, action));
        }
    }

    fn look_done(&mut self, ctx: &mut Ctx, op: OpId, outcome: Result<Outcome, Failure>) {
        if self.local.looking != Some(op) {
            return;
        }
        self.local.looking = None;
        match outcome {
            Ok(Outcome::Inspected(found)) if found.len() == self.record.volumes.len() => {
                if self.let_go_of_gone(ctx, &found) {
                    return;
                }
                self.local.exists = found.iter().map(|f| f.info.is_some()).collect();
                let origin = |f: &Inspected| f.info.as_ref()?.origin.clone();
                self.local.origins = found.iter().map(origin).collect();
                let inventories: Vec<_> = found.into_iter().map(|f| f.inventory).collect();
                self.snapshotting.learn(&self.prefix(), &inventories);
                self.local.inventories = Some(inventories);
            }
            Ok(_) => unreachable!("an inspection is answered by one finding a dataset"),
            Err(failure) => self.look_failed(ctx, failure),
        }
    }

    fn look_failed(&mut self, ctx: &mut Ctx, failure: Failure) {
        self.snapshots_wait(ctx);
        for replica in self.replicas.values_mut() {
            replica.survey_failed(ctx.now, failure.clone());
        }
        self.raise(ctx, failure);
    }

    /// What must hold after every input, in production and in the simulator.
    pub(crate) fn check_invariants(&self, config: &crate::node::NodeConfig) {
        let me = config.fingerprint;
        match &self.record.role {
            Role::Serving | Role::Leaving { .. } | Role::HandedOver { .. } => {
                assert_eq!(self.record.epoch.owner, me, "a primary owns its epoch");
            }
            Role::Following { source } | Role::Ready { source, .. } => {
                assert_ne!(*source, me, "a standby does not follow itself");
                assert_ne!(self.record.epoch.owner, me, "a standby does not own the epoch");
                assert!(!self.service.may_write(), "a standby's volumes are not writable");
                assert!(self.replicas.is_empty(), "a standby replicates to nobody");
            }
        }
        if matches!(self.record.role, Role::HandedOver { .. }) {
            assert!(!self.service.may_write(), "what was handed over stays fenced");
        }
        if let Role::Ready { attempt, .. } = &self.record.role {
            assert!(!self.is_refused(*attempt), "an attempt is ready or refused, not both");
        }
        for replica in self.replicas.values() {
            replica.check_invariants(self);
        }
    }
}
