//! What comes too late, or was said too soon, and must not count.

use flocker_core::ids::{AttemptId, Epoch, Incarnation, QuestionId};
use flocker_core::record::{FailoverRecord, Proof, Role};
use flocker_core::{Action, Body, Command, Input, Message};

use crate::pair::{Item, Pair, UNIT, failed, print_of};

/// The host goes down and comes up again, with nobody's words under way to it.
fn reboot(pair: &mut Pair, side: usize) {
    let now = pair.now();
    pair.pending.clear();
    pair.sides[side].runs = false;
    pair.sides[side].restart(side, now);
    pair.drain(side);
    pair.connect(side);
}

/// Answers what this side does with its workload until nothing of that is under way.
fn probe(pair: &mut Pair, side: usize) {
    while let Some(at) = pair.pending.iter().position(
        |i| matches!(i, Item::Op { at, action: Action::ProbeWorkload { .. }, .. } if *at == side),
    ) {
        let Some(Item::Op { op, action, .. }) = pair.pending.remove(at) else { unreachable!() };
        let outcome = pair.perform(side, &action);
        pair.input(side, Input::Done { op, outcome });
    }
}

fn hear(pair: &mut Pair, side: usize, body: Body) -> Vec<String> {
    let message = Message { unit: UNIT, epoch: pair.sides[side].record.epoch, body };
    let now = pair.now();
    pair.sides[side].node.handle(now, Input::Message { peer: print_of(1 - side), message });
    pair.drain(side)
}

fn claimed(pair: &Pair) -> QuestionId {
    let claim = pair.pending.iter().rev().find_map(|item| match item {
        Item::Message { to: 1, message: Message { body: Body::Claim { question, .. }, .. } } => {
            Some(*question)
        }
        _ => None,
    });
    claim.expect("it asks its standby")
}

#[test]
fn an_answer_to_an_earlier_start_lets_nobody_serve() {
    let mut pair = Pair::in_step();
    reboot(&mut pair, 0);
    probe(&mut pair, 0);
    let earlier = claimed(&pair);
    reboot(&mut pair, 0);
    probe(&mut pair, 0);
    let now = claimed(&pair);
    assert_ne!(earlier, now);
    let after = hear(&mut pair, 0, Body::ClaimReply { question: earlier, known: true });
    assert_eq!(after, Vec::<String>::new(), "meanwhile the standby may have taken over");
    let after = hear(&mut pair, 0, Body::ClaimReply { question: now, known: true });
    assert!(after.contains(&"run Activate".to_owned()), "{after:?}");
}

#[test]
fn a_lease_counts_from_when_the_primary_is_bound_by_one() {
    let mut pair = Pair::in_step();
    for side in 0..2 {
        pair.sides[side].record.lease_ms = Some(5_000);
    }
    reboot(&mut pair, 1);
    pair.settle(|_, _| {});
    reboot(&mut pair, 1);
    let question = QuestionId { boot: 7, number: 7 };
    let left = |pair: &Pair| pair.sides[1].node.status(pair.now()).units[0].lease_left_ms;
    let before = left(&pair);
    let after = hear(&mut pair, 1, Body::Lease { question, bound: false });
    assert_eq!(after, ["say LeaseReply"], "it may have it");
    assert_eq!(left(&pair), before, "and goes on without one until it has heard so");
    let after = hear(&mut pair, 1, Body::Lease { question, bound: true });
    assert!(after.contains(&"say LeaseReply".to_owned()), "{after:?}");
    assert!(left(&pair) > before, "now it can be waited for");
}

#[test]
fn a_word_that_the_primary_itself_refutes_is_no_proof() {
    let mut pair = Pair::in_step();
    pair.command(1, Command::Failover { name: "db".into(), primary_is_down: true, dry_run: false });
    let mut asked: Option<AttemptId> = None;
    let mut steps = 0;
    while asked.is_none() {
        steps += 1;
        assert!(steps < 20, "the primary is connected: it is asked");
        asked = pair.pending.iter().find_map(|item| match item {
            Item::Message { to: 0, message: Message { body: Body::Yield { attempt, .. }, .. } } => {
                Some(*attempt)
            }
            _ => None,
        });
        if asked.is_none()
            && let Some(Item::Op { at: 1, op, action }) = pair.pending.pop_front()
        {
            let outcome = pair.perform(1, &action);
            pair.input(1, Input::Done { op, outcome });
        }
    }
    let attempt = asked.expect("seen above");
    let after = hear(&mut pair, 1, Body::YieldRefused { attempt, failure: failed() });
    assert!(after.contains(&"answer no: NoProof".to_owned()), "{after:?}");
    assert!(pair.sides[1].record.role.is_standby());
}

/// Side 1 serves epoch 2 by a failover; side 0, as far as side 1 knows, was proven not to serve epoch 1.
fn failed_over() -> Pair {
    let mut pair = Pair::in_step();
    let record = &mut pair.sides[1].record;
    let (me, other) = (print_of(1), print_of(0));
    record.epoch = Epoch { number: 2, owner: me, attempt: AttemptId { issuer: me, number: 1 } };
    record.role = Role::Serving;
    record.decided_epoch = Some(2);
    record.standbys = vec![other];
    record.failover = Some(FailoverRecord {
        epoch: 2,
        proof: Proof::FencingHook,
        wall_ms: 0,
        instance: "flocker_1".into(),
    });
    reboot(&mut pair, 1);
    pair.sides[1].runs = true;
    probe(&mut pair, 1);
    pair
}

/// Side 0 took it back in the meantime, which side 1 does not know.
fn hear_newer_owner(pair: &mut Pair, serves: bool) -> Vec<String> {
    let owner = print_of(0);
    let epoch = Epoch { number: 3, owner, attempt: AttemptId { issuer: owner, number: 9 } };
    let question = QuestionId { boot: 7, number: 7 };
    let message = Message { unit: UNIT, epoch, body: Body::Claim { question, serves } };
    let now = pair.now();
    pair.sides[1].node.handle(now, Input::Message { peer: owner, message });
    pair.drain(1)
}

#[test]
fn whoever_serves_by_a_failover_outranks_an_owner_that_only_asks() {
    let mut pair = failed_over();
    let after = hear_newer_owner(&mut pair, false);
    assert!(after.contains(&"say Stale".to_owned()), "{after:?}");
    let record = &pair.sides[1].record;
    assert_eq!((record.epoch.number, record.epoch.owner), (4, print_of(1)));
    assert_eq!(record.role, Role::Serving);
    assert_eq!(record.failover.as_ref().map(|f| f.epoch), Some(4), "it is still that failover's");
}

#[test]
fn whoever_serves_by_a_failover_gives_way_to_a_newer_owner_that_serves() {
    let mut pair = failed_over();
    hear_newer_owner(&mut pair, true);
    let record = &pair.sides[1].record;
    assert_eq!((record.epoch.number, record.was_primary), (3, true));
    assert_eq!(record.role, Role::Following { source: print_of(0) });
}

/// A standby says that it follows.
fn hear_reply(pair: &mut Pair) -> Vec<String> {
    hear(pair, 1, Body::IntroReply(Ok(Vec::new())))
}

#[test]
fn a_decision_that_the_standby_follows_is_history() {
    let mut pair = failed_over();
    hear_reply(&mut pair);
    assert_eq!(pair.sides[1].record.decided_epoch, None);
    // Whoever owns a newer epoch now knew of it: the later decision is theirs.
    hear_newer_owner(&mut pair, false);
    assert_eq!(pair.sides[1].record.role, Role::Following { source: print_of(0) });
}

#[test]
fn an_owner_that_has_not_looked_yet_whether_its_workload_runs_stops_nobody() {
    let mut pair = failed_over();
    let now = pair.now();
    pair.sides[1].restart(1, now);
    let mut said = pair.drain(1);
    pair.sides[1].up = true;
    pair.sides[1].node.handle(now, Input::PeerUp { peer: print_of(0) });
    said.extend(pair.drain(1));
    let epoch = Epoch { number: 1, owner: print_of(0), ..pair.sides[1].record.epoch };
    let question = QuestionId { boot: 7, number: 7 };
    let message = Message { unit: UNIT, epoch, body: Body::Claim { question, serves: true } };
    pair.sides[1].node.handle(now, Input::Message { peer: print_of(0), message });
    said.extend(pair.drain(1));
    assert!(!said.iter().any(|word| word.starts_with("say")), "{said:?}");
}

#[test]
fn two_that_were_told_to_serve_and_do_not_wait_for_a_word() {
    let mut pair = failed_over();
    reboot(&mut pair, 1);
    probe(&mut pair, 1);
    let after = hear_newer_owner(&mut pair, false);
    assert!(!after.iter().any(|word| word.starts_with("say")), "{after:?}");
    let status = pair.sides[1].node.status(pair.now());
    let alarm = status.units[0].alarm.as_ref().expect("it says what to do");
    assert!(alarm.message.contains("start-alone"), "{alarm}");
    pair.command(1, Command::StartAlone { name: "db".into() });
    let after = hear_newer_owner(&mut pair, false);
    assert!(after.contains(&"say Stale".to_owned()), "{after:?}");
    assert_eq!(pair.sides[1].record.epoch.number, 4);
}

#[test]
fn whoever_has_to_stop_first_lets_nobody_serve_before_it_has() {
    let mut pair = failed_over();
    let after = hear_newer_owner(&mut pair, true);
    assert!(after.contains(&"run StopWorkload".to_owned()), "{after:?}");
    assert!(!after.iter().any(|word| word.starts_with("say ClaimReply")), "{after:?}");
    pair.settle(|_, _| {});
    let after = hear_newer_owner(&mut pair, true);
    assert!(after.contains(&"say ClaimReply".to_owned()), "{after:?}");
}

#[test]
fn a_word_to_start_alone_counts_until_its_owner_gives_way() {
    let mut pair = Pair::in_step();
    reboot(&mut pair, 0);
    probe(&mut pair, 0);
    pair.command(0, Command::StartAlone { name: "db".into() });
    let owner = print_of(1);
    let epoch = Epoch { number: 2, owner, attempt: AttemptId { issuer: owner, number: 9 } };
    let question = QuestionId { boot: 7, number: 7 };
    let message = Message { unit: UNIT, epoch, body: Body::Claim { question, serves: false } };
    pair.input(0, Input::Message { peer: owner, message });
    let record = &pair.sides[0].record;
    assert_eq!((record.epoch.number, record.decided_epoch), (3, Some(3)));
    assert_eq!(record.role, Role::Serving);
}

#[test]
fn whoever_is_taking_over_does_not_let_the_primary_go_on() {
    let mut pair = Pair::in_step();
    pair.command(
        1,
        Command::Failover { name: "db".into(), primary_is_down: false, dry_run: false },
    );
    let attempt = AttemptId { issuer: print_of(0), number: 1 };
    let after = hear(&mut pair, 1, Body::Settle { attempt, question: None });
    assert_eq!(after, Vec::<String>::new(), "asked again, it is answered when that is decided");
}

#[test]
fn a_yield_taken_back_before_the_unit_was_up_begins_with_the_questions_of_a_start() {
    let mut pair = Pair::in_step();
    reboot(&mut pair, 0);
    let issuer = print_of(1);
    let attempt = AttemptId { issuer, number: 1 };
    let next = Epoch { number: 2, owner: issuer, attempt };
    let incarnation = Incarnation(1);
    let after = hear(&mut pair, 0, Body::Yield { attempt, next, incarnation });
    assert!(after.contains(&"run StopWorkload".to_owned()), "{after:?}");
    let at = pair
        .pending
        .iter()
        .position(|i| matches!(i, Item::Op { at: 0, action: Action::StopWorkload { .. }, .. }));
    let Some(Item::Op { op, .. }) = at.and_then(|at| pair.pending.remove(at)) else {
        panic!("seen above")
    };
    pair.input(0, Input::Done { op, outcome: Err(failed()) });
    let asked = pair
        .pending
        .iter()
        .any(|i| matches!(i, Item::Op { at: 0, action: Action::ProbeWorkload { .. }, .. }));
    let started = pair
        .pending
        .iter()
        .any(|i| matches!(i, Item::Op { at: 0, action: Action::Activate { .. }, .. }));
    assert!(asked && !started, "{:?}", pair.pending);
}
