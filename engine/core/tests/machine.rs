//! The transition table of a change of primary: every state that a pair comes through × every event.
//!
//! States are taken from real runs of two cores (a move, one that is cancelled, one whose workload does not
//! start over there, failovers), one for each different role, phase and state of the workload. Whatever an
//! event changes or brings about is a line of its own; events that do nothing share one. A change of the
//! protocol shows up as a difference of the snapshot: `INSTA_UPDATE=always cargo test -p flocker-core
//! --test machine` accepts it.

#[path = "machine/adopt.rs"]
mod adopt;
#[path = "machine/ahead.rs"]
mod ahead;
#[path = "machine/carried.rs"]
mod carried;
#[path = "machine/clones.rs"]
mod clones;
#[path = "machine/foreign.rs"]
mod foreign;
#[path = "machine/late.rs"]
mod late;
mod pair;
#[path = "machine/resolve.rs"]
mod resolve;
#[path = "machine/slow.rs"]
mod slow;
#[path = "machine/stands.rs"]
mod stands;
#[path = "machine/streams.rs"]
mod streams;
#[path = "machine/upkeep.rs"]
mod upkeep;
#[path = "machine/vanished.rs"]
mod vanished;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flocker_core::ids::{AttemptId, Epoch, Incarnation, QuestionId, RequestId};
use flocker_core::message::{ActivationTimes, PreflightFacts, Wanted};
use flocker_core::record::{Answer, Role, WorkloadKind};
use flocker_core::{Body, Command, Input, Message};
use pair::{Item, Pair, UNIT, VOLUME, failed, first_word, kind_of, print_of};

/// Beyond every limit of a phase, milliseconds.
const PAST_ALL_LIMITS_MS: u64 = 700_000;

/// A pair, stopped where one side came into a state for the first time.
type States = BTreeMap<(usize, String), (usize, Pair)>;

fn migrate() -> Command {
    Command::Migrate {
        name: "db".into(),
        to: "b".into(),
        budget_ms: None,
        dry_run: false,
        accept: Default::default(),
    }
}

fn cancel() -> Command {
    Command::CancelMigration { name: "db".into() }
}

fn failover(primary_is_down: bool) -> Command {
    Command::Failover { name: "db".into(), primary_is_down, dry_run: false }
}

fn see(states: &mut States, pair: &Pair, side: usize) {
    let order = states.len();
    let key = (side, pair.sides[side].label(pair.now()));
    states.entry(key).or_insert_with(|| (order, pair.clone()));
}

/// Every state of either side on the way of these runs.
fn states() -> States {
    let mut states = States::new();
    let at_rest = Pair::in_step();
    for side in 0..2 {
        see(&mut states, &at_rest, side);
    }
    let mut run = |mut pair: Pair, side: usize, command: Command| {
        pair.command(side, command);
        see(&mut states, &pair, side);
        pair.settle(|pair, side| see(&mut states, pair, side));
        pair
    };
    run(at_rest.clone(), 0, migrate());
    let mut no_start = at_rest.clone();
    no_start.starts_fail_at = Some(1);
    run(no_start, 0, migrate());
    run(at_rest.clone(), 1, failover(false));
    let mut apart = at_rest.clone();
    for side in 0..2 {
        apart.sides[side].up = false;
        apart.input(side, Input::PeerDown { peer: print_of(1 - side) });
    }
    let mut two = run(apart, 1, failover(true));
    for side in 0..2 {
        two.connect(side);
        two.settle(|pair, side| see(&mut states, pair, side));
    }
    let stopped: Vec<Pair> = states
        .iter()
        .filter(|((side, label), _)| *side == 0 && label.contains("migrating: transfer"))
        .map(|(_, (_, pair))| pair.clone())
        .collect();
    for mut pair in stopped {
        pair.command(0, cancel());
        see(&mut states, &pair, 0);
        pair.settle(|pair, side| see(&mut states, pair, side));
    }
    states
}

/// What can happen to one side of a pair in this state, by name.
fn events(pair: &Pair, side: usize) -> Vec<(String, Input)> {
    let mut events = Vec::new();
    for item in &pair.pending {
        let Item::Op { at, op, action } = item else { continue };
        if *at != side {
            continue;
        }
        let outcome = pair.clone().perform(side, action);
        let name = first_word(action);
        events.push((format!("{name} ok"), Input::Done { op: *op, outcome }));
        events.push((format!("{name} failed"), Input::Done { op: *op, outcome: Err(failed()) }));
    }
    let peer = print_of(1 - side);
    let attempt = attempt_of(pair, side);
    let stale = AttemptId { number: 0, ..attempt };
    for (word, attempt) in [("", attempt), (" of a stale attempt", stale)] {
        for body in bodies(pair, side, attempt) {
            let message = Message { unit: UNIT, epoch: pair.sides[side].record.epoch, body };
            let name = format!("{}{word}", words_of(&message.body));
            events.push((name, Input::Message { peer, message }));
        }
    }
    let ask = |command| Input::Command { request: RequestId(9), command };
    let status = "exit status 1".to_owned();
    events.extend([
        ("the peer is gone".to_owned(), Input::PeerDown { peer }),
        ("the peer is there".to_owned(), Input::PeerUp { peer }),
        ("past all limits".to_owned(), Input::Tick),
        ("migrate to b".to_owned(), ask(migrate())),
        ("cancel".to_owned(), ask(cancel())),
        ("failover".to_owned(), ask(failover(false))),
        ("failover on the operator's word".to_owned(), ask(failover(true))),
        (
            "the workload exits".to_owned(),
            Input::WorkloadExited { unit: UNIT, status, success: false },
        ),
    ]);
    events
}

/// The attempt that this side is in, or would be in next.
fn attempt_of(pair: &Pair, side: usize) -> AttemptId {
    let of = |side: usize| match &pair.sides[side].record.role {
        Role::Leaving { attempt, .. }
        | Role::HandedOver { attempt, .. }
        | Role::Ready { attempt, .. } => Some(*attempt),
        Role::Serving | Role::Following { .. } => None,
    };
    let taken = pair.sides[side].record.taken.last().copied();
    of(side).or(of(1 - side)).or(taken).unwrap_or(AttemptId { issuer: print_of(0), number: 1 })
}

/// Every message of a change of primary.
fn bodies(pair: &Pair, side: usize, attempt: AttemptId) -> Vec<Body> {
    let me = &pair.sides[side];
    let question = match attempt.number {
        0 => QuestionId { boot: 0, number: 0 },
        _ => me.asked.unwrap_or(QuestionId { boot: 0, number: 1 }),
    };
    let next = |owner| Epoch { number: me.record.epoch.number + 1, owner, attempt };
    let promised = match me.record.role {
        Role::HandedOver { incarnation, .. } => incarnation,
        _ => Incarnation(2 - side as u64),
    };
    let finals = me.snapshots.last().map(|s| (VOLUME, s.guid)).into_iter().collect();
    let facts = PreflightFacts { available_bytes: 1 << 40, last: None };
    let times = ActivationTimes::default();
    let wanted = Wanted { kind: WorkloadKind::Process, description: String::new() };
    let failure = failed();
    let settled = |answer, incarnation| Body::SettleReply { attempt, answer, incarnation };
    vec![
        Body::Preflight { question, workload: Some(wanted) },
        Body::PreflightReply { question, answer: Ok(facts) },
        Body::PreflightReply { question, answer: Err(failure.clone()) },
        Body::Prepare { attempt, next: next(print_of(side)), finals, workload_wanted: true },
        Body::PrepareReply { attempt, answer: Ok(promised) },
        Body::PrepareReply { attempt, answer: Err(failure.clone()) },
        Body::Settle { attempt, question: None },
        Body::Confirm { attempt, question },
        settled(Answer::Taken, promised),
        settled(Answer::Refused, promised),
        settled(Answer::Refused, Incarnation(999)),
        Body::Abandon { attempt },
        Body::Activated { attempt, times },
        Body::ActivationFailed { attempt, failure: failure.clone(), handing_back: false },
        Body::ActivationFailed { attempt, failure: failure.clone(), handing_back: true },
        Body::Yield { attempt, next: next(print_of(1 - side)), incarnation: promised },
        Body::YieldRefused { attempt, failure },
        Body::Claim { question, serves: false },
        Body::Stale,
        Body::Unknown,
    ]
}

fn words_of(body: &Body) -> String {
    match body {
        Body::SettleReply { incarnation: Incarnation(999), .. } => {
            format!("{} from another journal", kind_of(body))
        }
        Body::ActivationFailed { handing_back: true, .. } => "ActivationFailed, comes back".into(),
        _ => kind_of(body),
    }
}

/// One line: what becomes of it, and what it does; `None`: nothing.
fn line(pair: &Pair, side: usize, name: &str, input: Option<Input>) -> Option<String> {
    let mut pair = pair.clone();
    let before = pair.sides[side].label(pair.now());
    if name == "past all limits" {
        pair.clock_ms += PAST_ALL_LIMITS_MS;
    }
    let now = pair.now();
    let ran = catch_unwind(AssertUnwindSafe(|| match input {
        Some(input) => pair.sides[side].node.handle(now, input),
        None => pair.sides[side].restart(side, now),
    }));
    if ran.is_err() {
        return Some(format!("{name}: PANICS"));
    }
    let effects = pair.drain(side);
    let after = pair.sides[side].label(now);
    if after == before && effects.is_empty() {
        return None;
    }
    let change = if after == before { "same".to_owned() } else { after };
    Some(format!("{name} → {change} | {}", effects.join(", ")))
}

fn table() -> String {
    let mut text = String::new();
    let states = states();
    let mut ordered: Vec<_> = states.iter().map(|((side, l), (n, p))| (*n, *side, l, p)).collect();
    ordered.sort_by_key(|(n, ..)| *n);
    for (_, side, label, pair) in ordered {
        let _ = writeln!(text, "# {}: {label}", ["a", "b"][side]);
        let mut nothing = Vec::new();
        for (name, input) in events(pair, side) {
            match line(pair, side, &name, Some(input)) {
                Some(line) => drop(writeln!(text, "{line}")),
                None => nothing.push(name),
            }
        }
        if let Some(line) = line(pair, side, "restart", None) {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "nothing: {}\n", nothing.join("; "));
    }
    text
}

#[test]
fn every_state_meets_every_event_as_written_down() {
    let table = table();
    assert!(!table.contains("PANICS"), "{table}");
    insta::assert_snapshot!("machine", table);
}
