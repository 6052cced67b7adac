//! Performing effects, in their order, as the engine does. A crash may come between any two.

use flocker_core::ids::{OpId, TransferId, UnitId};
use flocker_core::{Action, Effect, Event, EventKind, Input};

use super::check::Rule;
use super::host::{Expected, Mishap, OpState, index_of};
use super::world::{Ev, World};

/// Most ticks a core may ask for within one millisecond before that counts as spinning.
const SPIN_LIMIT: u32 = 200;

/// A registered transfer that never arrives ends after this long, as in the engine.
const ARRIVAL_LIMIT_MS: u64 = 30_000;

impl World {
    /// Gives an input to a node's core and performs what it hands out.
    pub(super) fn input(&mut self, node: usize, input: Input) {
        if self.violation.is_some() {
            return;
        }
        self.trace(|| format!("n{node} <- {input:?}"));
        let now = self.hosts[node].now(self.now_ms);
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        life.node.handle(now, input);
        life.node.check_invariants();
        self.drain(node);
    }

    /// Performs everything that is queued.
    pub(super) fn drain(&mut self, node: usize) {
        loop {
            let Some(life) = &mut self.hosts[node].life else {
                return;
            };
            let Some(effect) = life.node.poll_effect() else {
                break;
            };
            self.perform(node, effect);
            if self.violation.is_some() {
                return;
            }
            let ppm = self.scenario.faults.effect_crash_ppm;
            if !self.healing && self.rng.chance_ppm(ppm) {
                self.crash(node);
                return;
            }
        }
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: usize) {
        let now_ms = self.now_ms;
        let host = &mut self.hosts[node];
        let Some(life) = &mut host.life else { return };
        let Some(due) = life.node.poll_timeout() else {
            life.timer_at = None;
            return;
        };
        let at = host.world_at(due).max(now_ms);
        let Some(life) = &mut host.life else { return };
        if life.timer_at != Some(at) {
            life.timer_at = Some(at);
            let boot = life.boot;
            self.at(at, Ev::Timer { node, boot, at });
        }
    }

    pub(super) fn on_timer(&mut self, node: usize, boot: u64, at: u64) {
        let now_ms = self.now_ms;
        let Some(life) = self.life_mut(node, boot) else {
            return;
        };
        if life.timer_at != Some(at) {
            return;
        }
        life.timer_at = None;
        let spins = if life.spins.0 == now_ms { life.spins.1 + 1 } else { 0 };
        life.spins = (now_ms, spins);
        if spins > SPIN_LIMIT {
            let text = format!("n{node} asks for tick after tick at {now_ms} ms");
            self.violate(Rule::Contract, text);
            return;
        }
        self.input(node, Input::Tick);
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        self.trace(|| match &effect {
            Effect::Report(event) => format!("n{node} -> report {:?}", event.kind),
            Effect::Persist(changes) => format!("n{node} -> persist {changes:?}"),
            other => format!("n{node} -> {other:?}"),
        });
        match effect {
            Effect::Persist(changes) => self.persist(node, changes),
            Effect::Send { peer, message } => {
                self.check_said(node, peer, &message);
                if let Some(to) = index_of(peer).filter(|to| *to < self.hosts.len()) {
                    self.send_message(node, to, message);
                }
            }
            Effect::Run { op, unit, action } => self.begin_action(node, op, unit, action),
            Effect::StartSend { transfer, peer, unit, spec, last: _ } => {
                self.claim_transfer(node, transfer);
                self.start_send(node, transfer, peer, unit, spec);
            }
            Effect::StartReceive { transfer, peer, unit, spec, limit_bytes } => {
                self.claim_transfer(node, transfer);
                self.check_receive_allowed(node, transfer, unit, &spec);
                let expected = Expected { peer, unit, spec, limit_bytes, streaming: false };
                self.expect(node, transfer, expected);
            }
            Effect::CancelTransfer { transfer } => self.cancel_transfer(node, transfer),
            Effect::Lease { unit, until_ms } => self.lease_is(node, unit, until_ms),
            Effect::Reply { request, reply } => self.replied(node, request, &reply),
            Effect::PeersChanged(_) => self.peers_changed(node),
            Effect::Report(event) => self.reported(node, &event),
        }
    }

    /// Each transfer is begun at most once on a side.
    fn claim_transfer(&mut self, node: usize, transfer: TransferId) {
        let fresh = match &mut self.hosts[node].life {
            Some(life) => life.begun.insert(transfer),
            None => true,
        };
        if !fresh {
            self.violate(Rule::Contract, format!("n{node} begins {transfer:?} twice"));
        }
    }

    fn expect(&mut self, node: usize, transfer: TransferId, expected: Expected) {
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        life.expected.insert(transfer, expected);
        let boot = life.boot;
        let event = Ev::ReceiveTimeout { node, boot, transfer };
        self.after(ARRIVAL_LIMIT_MS, event);
    }

    fn begin_action(&mut self, node: usize, op: OpId, unit: UnitId, action: Action) {
        self.check_action(node, unit, &action);
        let ppm = self.scenario.faults.op_fail_ppm;
        let mishap = if self.healing || !self.rng.chance_ppm(ppm) {
            None
        } else if self.rng.one_in(2) {
            Some(Mishap::Undone)
        } else {
            Some(Mishap::DoneYetReported)
        };
        let standbys = self.hosts[node].record(unit).map(|r| r.standbys.clone());
        let standbys = standbys.unwrap_or_default();
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        if life.last_op.is_some_and(|last| last >= op) {
            self.violate(Rule::Contract, format!("n{node} uses {op:?} again"));
            return;
        }
        life.last_op = Some(op);
        let waits = takes_turns(&action);
        let state = OpState { unit, action, mishap, begun: false, standbys, outcome: None };
        life.ops.insert(op, state);
        if waits {
            let lane = life.lanes.entry(unit).or_default();
            lane.push_back(op);
            if lane.len() > 1 {
                return; // Its turn comes when those before it are over.
            }
        }
        self.start_action(node, op);
    }

    fn start_action(&mut self, node: usize, op: OpId) {
        let Some(life) = &mut self.hosts[node].life else {
            return;
        };
        let boot = life.boot;
        let Some(state) = life.ops.get_mut(&op) else {
            return;
        };
        state.begun = true;
        let (unit, action) = (state.unit, state.action.clone());
        let mut takes_ms = 1 + self.action_takes_ms(node, unit, &action);
        if !self.healing && self.rng.chance_ppm(self.scenario.faults.op_slow_ppm) {
            takes_ms += self.rng.log_range(500, 40_000);
        }
        let apply_ms = self.rng.range(1, takes_ms);
        self.freeze_begins(node, unit, &action);
        self.after(apply_ms, Ev::OpApply { node, boot, op });
        self.after(takes_ms, Ev::OpDone { node, boot, op });
    }

    pub(super) fn on_op_done(&mut self, node: usize, boot: u64, op: OpId) {
        let Some(life) = self.life_mut(node, boot) else {
            return;
        };
        let Some(state) = life.ops.remove(&op) else {
            return;
        };
        let Some(outcome) = state.outcome else {
            // A stopped host does both when it goes on: an action is applied before it is answered.
            life.ops.insert(op, state);
            return self.after(1, Ev::OpDone { node, boot, op });
        };
        let mut next = None;
        if let Some(lane) = life.lanes.get_mut(&state.unit)
            && lane.front() == Some(&op)
        {
            lane.pop_front();
            next = lane.front().copied();
        }
        self.freeze_ends(node, state.unit, &state.action);
        if outcome.is_ok() {
            self.learn_from(node, state.unit, &state.action);
        }
        if let Some(next) = next {
            self.start_action(node, next);
        }
        self.input(node, Input::Done { op, outcome });
    }

    fn reported(&mut self, node: usize, event: &Event) {
        let Some(unit) = event.unit else { return };
        match &event.kind {
            EventKind::Phase { attempt, phase } => {
                self.phase_entered(node, unit, *attempt, phase);
            }
            EventKind::Role { role, .. } => {
                let stage = format!("role:{role}");
                self.coverage.role(&stage);
                self.maybe_strike(node, unit);
            }
            EventKind::Round(_) => self.coverage.rounds += 1,
            EventKind::FailedOver(report) => self.check_foretold(unit, report),
            EventKind::Predicted { .. }
            | EventKind::Migrated(_)
            | EventKind::MigrationFailed { .. }
            | EventKind::Drilled(_)
            | EventKind::Alarm { .. }
            | EventKind::Cleared
            | EventKind::Note(_) => {}
        }
    }
}

/// Whether the actions of one unit of this kind are performed one after another.
fn takes_turns(action: &Action) -> bool {
    match action {
        Action::ProbeWorkload { .. }
        | Action::PreDump { .. }
        | Action::ReleaseWorkload { .. }
        | Action::StartWorkload { .. }
        | Action::StopWorkload { .. }
        | Action::Fence { .. }
        | Action::Rehearse { .. }
        | Action::Preflight { .. }
        | Action::Network { .. }
        | Action::SetAside { .. }
        | Action::Activate { .. }
        | Action::Snapshot { .. }
        | Action::VerifyUnwritten { .. } => true,
        Action::Inspect { .. }
        | Action::Room { .. }
        | Action::Find { .. }
        | Action::Tidy { .. }
        | Action::Mark { .. }
        | Action::Changed { .. }
        | Action::Mirror { .. }
        | Action::DescribeWorkload { .. }
        | Action::FencingHook { .. }
        | Action::Drill { .. }
        | Action::GiveBack { .. } => false,
    }
}
