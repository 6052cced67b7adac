//! Exhaustive search: everything that can happen to one migration, breadth first, with the very core.
//!
//! Owns: the states of a pair and what may happen next, the set of states seen, and what must hold in
//! each. [`machine`] is one node and its macro-steps, [`closing`] what must come of a state once the
//! faults are over. Leaves to others: deciding anything (`flocker-core` does that here as in production).
//!
//! Messages are a set that only grows: whatever was said once may arrive at any time, in any order, any
//! number of times, or never. That is more than one duplicate and unbounded delay, and makes fewer states,
//! since nothing tells a message that is late from one that comes again. So are streams, each of which its
//! receiver takes once. Time stands still but for pauses shorter than a resend; a budget lets one node's
//! clock go on to its next timer, which the other's does not follow.
//!
//! A step changes one node, so nodes are numbered by what they are, and a step is computed once for each
//! node and input however many states have that node in them.

pub mod closing;
pub mod key;
pub mod machine;

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use flocker_core::ids::{Epoch, TransferId};
use flocker_core::node::PlantedBug;
use flocker_core::record::Role;
use flocker_core::{Body, Message};

use crate::sim::host::index_of;
use crate::sim::store::Stream;
use machine::{Cut, Did, MIGRATE, Machine, Nudge, Step};

/// What may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of either daemon or host.
    pub crashes: u8,
    /// Losses of the connection by itself.
    pub losses: u8,
    /// `migrate --cancel`
    pub cancels: u8,
    /// `failover`, by a true word, a false word, or the primary's answer.
    pub failovers: u8,
    /// A node's clock goes on to its next timer.
    pub waits: u8,
    /// An action does not end before something else has happened.
    pub holds: u8,
    /// Writes of the workload.
    pub writes: u8,
}

/// Who was asked to fail over, and how true that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failed {
    /// Nobody.
    Not,
    /// By a true word, or without one.
    Rightly,
    /// By a false word: there may be two writers, in two epochs.
    Wrongly,
}

/// A side's view of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Link {
    /// None.
    Down,
    /// It stands.
    Up,
    /// It is gone, and this side has not seen that yet.
    Lost,
}

/// A state of the pair: nodes and sets by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    machines: [u32; 2],
    links: [Link; 2],
    said: u32,
    streams: u32,
    left: Budget,
    written: u8,
    failed: Failed,
}

/// One thing that happens: to which node, what, and where it is cut short.
#[derive(Debug, Clone)]
pub struct Move {
    at: usize,
    nudge: Nudge,
    cut: Cut,
}

/// What the search found.
#[derive(Debug)]
pub struct Found {
    /// States seen.
    pub states: usize,
    /// Transitions tried.
    pub transitions: u64,
    /// Different nodes in them.
    pub machines: usize,
    /// Macro-steps of the core that were computed.
    pub steps: usize,
    /// Longest shortest path.
    pub depth: u32,
    /// States that were closed: faults over, everything must come good.
    pub closed: usize,
    /// It ended because nothing new was to be found.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
    /// What was broken, with the shortest path to it.
    pub violation: Option<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} states, {} transitions, depth {}, {} nodes in {} macro-steps, {} closings, {:.1} s, {}",
            self.states,
            self.transitions,
            self.depth,
            self.machines,
            self.steps,
            self.closed,
            self.took.as_secs_f64(),
            if self.complete { "complete" } else { "cut short" }
        )
    }
}

/// How a search is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What may happen.
    pub budget: Budget,
    /// A bug put in on purpose.
    pub planted: Option<PlantedBug>,
    /// One of so many pairs of nodes is closed; 0: none.
    pub close_one_in: u64,
    /// Most states.
    pub most_states: usize,
}

/// A node that was seen, and what is asked of it often.
#[derive(Debug)]
struct Known {
    machine: Machine,
    can_write: bool,
    alive: bool,
    due_in_ms: Option<u64>,
    epoch: Epoch,
    owner: bool,
    mentions: HashSet<String>,
}

/// What a macro-step came to.
#[derive(Debug)]
struct Stepped {
    machine: u32,
    said: Vec<u32>,
    streams: Vec<u32>,
    could_write: bool,
    traces: u32,
    actions: u32,
    broken: Option<String>,
}

/// A set of numbers that only grows, itself by number.
#[derive(Debug, Default)]
struct Sets {
    all: Vec<Rc<[u32]>>,
    numbers: HashMap<Rc<[u32]>, u32>,
}

impl Sets {
    fn number(&mut self, set: Rc<[u32]>) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        let number = self.all.len() as u32;
        self.all.push(set.clone());
        self.numbers.insert(set, number);
        number
    }

    fn with(&mut self, set: u32, more: &[u32]) -> u32 {
        let old = &self.all[set as usize];
        if more.iter().all(|m| old.binary_search(m).is_ok()) {
            return set;
        }
        let mut new: Vec<u32> = old.iter().chain(more).copied().collect();
        new.sort_unstable();
        new.dedup();
        self.number(new.into())
    }
}

/// `told`: the newest epoch that its sender knows of, or was told of by a message.
fn is_inert(message: &Message, to: &Known, told: u64) -> bool {
    let (theirs, mine) = (message.epoch.number, to.epoch.number);
    let done_with = |name: String| !to.mentions.contains(&name);
    let over = match &message.body {
        Body::SurveyReply { question, .. }
        | Body::PreflightReply { question, .. }
        | Body::StepBackReply { question, .. }
        | Body::LeaseReply { question } => done_with(format!("{question:?}")),
        Body::OfferReply { transfer, .. } | Body::StepReply { transfer, .. } => {
            done_with(format!("{transfer:?}"))
        }
        Body::PrepareReply { attempt, .. } => {
            let role = &to.machine.record().role;
            !matches!(role, Role::Leaving { attempt: mine, .. } if mine == attempt)
        }
        Body::Stale => true,
        // These are heard whatever their epoch is.
        Body::Settle { .. } | Body::SettleReply { .. } | Body::Unknown => return false,
        // A question of an older epoch is answered by `Stale`, and no more; anything else by nothing.
        _ => theirs < mine && told >= mine,
    };
    // What speaks of a newer epoch is heard for that alone.
    over && theirs <= mine
}

/// The search.
pub struct Search {
    plan: Plan,
    machines: Vec<Rc<Known>>,
    machine_numbers: HashMap<u128, u32>,
    messages: Vec<(usize, Message)>,
    message_numbers: HashMap<String, u32>,
    streams: Vec<(TransferId, Stream)>,
    stream_numbers: HashMap<String, u32>,
    stepped: HashMap<(u32, Nudge, Cut), Rc<Stepped>>,
    sets: Sets,
    pruned: HashMap<(u32, [u32; 2]), u32>,
    seen: HashMap<State, u32>,
    path: Vec<(u32, Move)>,
    closed: HashMap<(u32, u32, u8, Failed), ()>,
}

impl Search {
    /// A search that has not begun.
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            machines: Vec::new(),
            machine_numbers: HashMap::new(),
            messages: Vec::new(),
            message_numbers: HashMap::new(),
            streams: Vec::new(),
            stream_numbers: HashMap::new(),
            stepped: HashMap::new(),
            sets: Sets::default(),
            pruned: HashMap::new(),
            seen: HashMap::new(),
            path: Vec::new(),
            closed: HashMap::new(),
        }
    }

    /// Runs it.
    pub fn run(mut self) -> Found {
        let begun = Instant::now();
        let mut found = Found {
            states: 0,
            transitions: 0,
            machines: 0,
            steps: 0,
            depth: 0,
            closed: 0,
            complete: false,
            took: Duration::ZERO,
            violation: None,
        };
        match self.first() {
            Ok(first) => self.search(first, &mut found),
            Err(words) => found.violation = Some(format!("before it began: {words}")),
        }
        found.states = self.seen.len();
        found.machines = self.machines.len();
        found.steps = self.stepped.len();
        found.closed = self.closed.len();
        found.took = begun.elapsed();
        found
    }

    /// A pair in step: primary with its workload, standby equal to it.
    fn first(&mut self) -> Result<State, String> {
        let machines = [0, 1].map(|index| Machine::new(index, self.plan.planted));
        let machines = machines.map(|m| self.number_machine(m));
        let empty = self.sets.number(Rc::from([]));
        let mut state = State {
            machines,
            links: [Link::Up; 2],
            said: empty,
            streams: empty,
            left: self.plan.budget,
            written: 0,
            failed: Failed::Not,
        };
        state.machines = self.come_good(&state)?;
        Ok(state)
    }

    fn search(&mut self, first: State, found: &mut Found) {
        self.seen.insert(first.clone(), 0);
        self.path.push((0, Move { at: 0, nudge: Nudge::Migrate, cut: Cut::Not }));
        let mut queue = VecDeque::from([(first, 0u32, 0u32)]);
        while let Some((state, number, depth)) = queue.pop_front() {
            found.depth = depth;
            for at_move in self.moves(&state, number == 0) {
                found.transitions += 1;
                let next = match self.happens(&state, &at_move) {
                    Ok(next) => next,
                    Err(words) => {
                        found.violation = Some(self.explain(number, Some(&at_move), &words));
                        return;
                    }
                };
                if self.seen.contains_key(&next) {
                    continue;
                }
                let fresh = self.path.len() as u32;
                self.path.push((number, at_move));
                self.seen.insert(next.clone(), fresh);
                if let Err(words) = self.close(&next) {
                    found.violation = Some(self.explain(fresh, None, &words));
                    return;
                }
                queue.push_back((next, fresh, depth + 1));
            }
            if self.seen.len() >= self.plan.most_states {
                return;
            }
            if number % 200_000 == 199_999 {
                println!("search: {number} states searched, depth {depth}");
            }
        }
        found.complete = true;
    }

    // ---- what may happen ------------------------------------------------------------------------

    fn moves(&mut self, state: &State, first: bool) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut plain = |at: usize, nudge: Nudge| moves.push(Move { at, nudge, cut: Cut::Not });
        if first {
            plain(0, Nudge::Migrate);
        } else {
            for at in 0..2 {
                self.nudges(state, at, &mut plain);
            }
        }
        let mut all = Vec::new();
        for one in moves {
            self.cuts(state, &one, &mut all);
            all.push(one);
        }
        all
    }

    fn nudges(&self, state: &State, at: usize, plain: &mut impl FnMut(usize, Nudge)) {
        let [me, other] = [at, 1 - at].map(|i| self.known(state.machines[i]));
        let left = state.left;
        let m = &me.machine;
        if me.can_write && left.writes > 0 {
            plain(at, Nudge::Write(u64::from(state.written) + 1));
        }
        if !me.alive {
            return plain(at, Nudge::Restart);
        }
        if m.up {
            for number in self.sets.all[state.said as usize].iter() {
                if self.messages[*number as usize].0 == at {
                    plain(at, Nudge::Deliver(*number));
                }
            }
        }
        for number in self.sets.all[state.streams as usize].iter() {
            let (transfer, stream) = &self.streams[*number as usize];
            if m.expected.contains_key(transfer) {
                plain(at, Nudge::Arrive(*number));
            }
            if m.sending.contains(transfer) {
                let there = other.machine.dataset();
                let well = there.is_some_and(|d| d.snapshot(stream.to).is_some());
                if well || !other.machine.expected.contains_key(transfer) {
                    plain(at, Nudge::SendEnds { transfer: *transfer, well });
                }
            }
        }
        match (state.links[at], state.links[1 - at]) {
            (Link::Lost, _) => plain(at, Nudge::Down),
            (Link::Up, Link::Up) if left.losses > 0 => plain(at, Nudge::Down),
            (Link::Down, Link::Up | Link::Down) if other.alive => plain(at, Nudge::Up),
            _ => {}
        }
        if !m.held.is_empty() {
            plain(at, Nudge::Release);
        }
        if left.crashes > 0 {
            for power in [false, true] {
                plain(at, Nudge::Crash { power });
            }
        }
        if left.waits > 0
            && let Some(ms) = me.due_in_ms
        {
            plain(at, Nudge::Wait(ms));
        }
        if left.cancels > 0 && at == 0 {
            plain(at, Nudge::Cancel);
        }
        let may = !matches!(m.record().role, Role::Serving | Role::Leaving { .. });
        if left.failovers > 0 && may {
            plain(at, Nudge::Failover { word: true });
            plain(at, Nudge::Failover { word: false });
        }
    }

    /// The same, cut short at each place where that makes a difference.
    fn cuts(&mut self, state: &State, one: &Move, all: &mut Vec<Move>) {
        let left = state.left;
        let faulty = matches!(one.nudge, Nudge::Crash { .. } | Nudge::Write(_));
        if faulty || (left.crashes == 0 && left.holds == 0) {
            return;
        }
        let whole = self.step(state.machines[one.at], &one.nudge, Cut::Not);
        if left.crashes > 0 {
            for after in 1..whole.traces {
                for power in [false, true] {
                    all.push(Move { cut: Cut::Crash { after, power }, ..one.clone() });
                }
            }
        }
        let free = self.known(state.machines[one.at]).machine.held.is_empty();
        if left.holds > 0 && free && one.nudge != Nudge::Release {
            for action in 1..=whole.actions {
                all.push(Move { cut: Cut::Hold(action), ..one.clone() });
            }
        }
    }

    // ---- what happens ---------------------------------------------------------------------------

    fn happens(&mut self, state: &State, one: &Move) -> Result<State, String> {
        let mut next = state.clone();
        let left = &mut next.left;
        match one.nudge {
            Nudge::Crash { .. } => left.crashes -= 1,
            Nudge::Wait(_) => left.waits -= 1,
            Nudge::Cancel => left.cancels -= 1,
            Nudge::Write(_) => {
                left.writes -= 1;
                next.written += 1;
            }
            Nudge::Failover { word } => {
                left.failovers -= 1;
                let truth = self.known(state.machines[1 - one.at]).machine.off;
                let now = if word && !truth { Failed::Wrongly } else { Failed::Rightly };
                next.failed = next.failed.max(now);
            }
            Nudge::Down if next.links[one.at] == Link::Up => left.losses -= 1,
            _ => {}
        }
        match one.cut {
            Cut::Not => {}
            Cut::Crash { .. } => left.crashes -= 1,
            Cut::Hold(_) => left.holds -= 1,
        }
        let crashed =
            matches!((&one.nudge, one.cut), (Nudge::Crash { .. }, _) | (_, Cut::Crash { .. }));
        if one.nudge == Nudge::Up {
            next.links[one.at] = Link::Up;
        }
        if crashed || one.nudge == Nudge::Down {
            next.links[one.at] = Link::Down;
            let other = &mut next.links[1 - one.at];
            *other = if *other == Link::Down { Link::Down } else { Link::Lost };
        }
        let stepped = self.step(state.machines[one.at], &one.nudge, one.cut);
        if let Some(words) = &stepped.broken {
            return Err(words.clone());
        }
        next.machines[one.at] = stepped.machine;
        next.said = self.sets.with(next.said, &stepped.said);
        next.said = self.without_inert(&next);
        next.streams = self.sets.with(next.streams, &stepped.streams);
        self.check(state, &next, one.at, stepped.could_write)?;
        Ok(next)
    }

    /// Forgets answers that can do nothing any more: names of questions, transfers and attempts are not
    /// used twice, so one that its asker is done with is not waited for again.
    fn without_inert(&mut self, state: &State) -> u32 {
        let id = (state.said, state.machines);
        if let Some(set) = self.pruned.get(&id) {
            return *set;
        }
        let machines = state.machines.map(|m| self.known(m));
        let set = self.sets.all[state.said as usize].clone();
        let newest = |to: usize| {
            let mut told = machines[to].epoch.number;
            for number in set.iter() {
                let (side, message) = &self.messages[*number as usize];
                if *side == to && message.body == Body::Stale {
                    told = told.max(message.epoch.number);
                }
            }
            told
        };
        let newest = [newest(0), newest(1)];
        let inert = |number: &&u32| {
            let (to, message) = &self.messages[**number as usize];
            is_inert(message, &machines[*to], newest[1 - *to])
        };
        let kept: Vec<u32> = set.iter().filter(|n| !inert(n)).copied().collect();
        let number = self.sets.number(kept.into());
        self.pruned.insert(id, number);
        number
    }

    fn known(&self, number: u32) -> Rc<Known> {
        self.machines[number as usize].clone()
    }

    fn step(&mut self, number: u32, nudge: &Nudge, cut: Cut) -> Rc<Stepped> {
        let id = (number, nudge.clone(), cut);
        if let Some(stepped) = self.stepped.get(&id) {
            return stepped.clone();
        }
        let machine = self.known(number).machine.clone();
        let index = machine.index;
        let (messages, streams) = (&self.messages, &self.streams);
        let ran =
            catch_unwind(AssertUnwindSafe(|| Step::run(machine, nudge, cut, messages, streams)));
        let (machine, did) = ran.unwrap_or_else(|panic| {
            let broken = Some(crate::sim::panic_words(panic.as_ref()));
            (self.known(number).machine.clone(), Did { broken, ..Did::default() })
        });
        let said = did.said.into_iter().map(|m| self.number_message(1 - index, m)).collect();
        let streams = did.streams.into_iter().map(|(t, s)| self.number_stream(t, s)).collect();
        let stepped = Rc::new(Stepped {
            machine: self.number_machine(machine),
            said,
            streams,
            could_write: did.could_write,
            traces: did.traces,
            actions: did.actions,
            broken: did.broken,
        });
        self.stepped.insert(id, stepped.clone());
        stepped
    }

    fn number_machine(&mut self, mut machine: Machine) -> u32 {
        let text = key::text(&machine);
        let key = key::of(&text);
        if let Some(number) = self.machine_numbers.get(&key) {
            return *number;
        }
        let record = machine.record();
        let (epoch, owner) = (record.epoch, record.role == Role::Serving);
        let known = Known {
            can_write: machine.can_write(),
            alive: machine.node.is_some(),
            due_in_ms: machine.due_in_ms(),
            epoch,
            owner,
            mentions: key::mentions(&text),
            machine,
        };
        let number = self.machines.len() as u32;
        self.machines.push(Rc::new(known));
        self.machine_numbers.insert(key, number);
        number
    }

    fn number_message(&mut self, to: usize, message: Message) -> u32 {
        let key = format!("{to} {message:?}");
        let messages = &mut self.messages;
        *self.message_numbers.entry(key).or_insert_with(|| {
            messages.push((to, message));
            messages.len() as u32 - 1
        })
    }

    /// A transfer has one stream: its name is not used twice.
    fn number_stream(&mut self, transfer: TransferId, stream: Stream) -> u32 {
        let key = format!("{transfer:?} {stream:?}");
        let streams = &mut self.streams;
        *self.stream_numbers.entry(key).or_insert_with(|| {
            streams.push((transfer, stream));
            streams.len() as u32 - 1
        })
    }

    // ---- what must hold -------------------------------------------------------------------------

    fn check(&self, old: &State, new: &State, at: usize, could_write: bool) -> Result<(), String> {
        let [me, other] = [at, 1 - at].map(|i| self.known(new.machines[i]));
        let before = self.known(old.machines[at]);
        if could_write && other.can_write {
            if new.failed != Failed::Wrongly {
                return Err("two nodes can write".into());
            }
            let (mine, theirs) = (me.epoch.number, other.epoch.number);
            if me.owner && other.owner && mine == theirs {
                return Err(format!("two nodes can write in epoch {mine}"));
            }
        }
        if new.failed == Failed::Not && me.can_write {
            let live = me.machine.dataset().map(|d| d.live.clone()).unwrap_or_default();
            if !live.holds_all_up_to(u64::from(new.written)) {
                return Err(format!(
                    "{} records were acknowledged, and the owner has {}",
                    new.written,
                    live.describe()
                ));
            }
        }
        self.check_all_kept(new)?;
        self.check_resumed(&before.machine, &me.machine, &other.machine, new)
    }

    /// Nothing that was acknowledged is lost for good, whoever failed over.
    fn check_all_kept(&self, state: &State) -> Result<(), String> {
        let both = state.machines.map(|m| self.known(m));
        for record in 1..=u64::from(state.written) {
            if !both.iter().any(|k| k.machine.keeps(record)) {
                return Err(format!("record {record} was acknowledged and is nowhere any more"));
            }
        }
        Ok(())
    }

    /// A source serves again only by its target's durable refusal, or by a failover of its own.
    fn check_resumed(
        &self,
        before: &Machine,
        after: &Machine,
        other: &Machine,
        state: &State,
    ) -> Result<(), String> {
        let (old, new) = (before.record(), after.record());
        let Role::HandedOver { attempt, target, .. } = old.role else { return Ok(()) };
        if new.role != Role::Serving || new.epoch != old.epoch {
            return Ok(());
        }
        let there = other.record();
        let refused = there.refused_up_to.get(&attempt.issuer).copied().unwrap_or(0);
        let durable = refused >= attempt.number && !there.taken.contains(&attempt);
        if index_of(target) == Some(other.index) && durable {
            return Ok(());
        }
        let _ = state;
        Err(format!("the source of attempt {attempt} serves again, and nobody has refused it"))
    }

    // ---- a person wants to know -----------------------------------------------------------------

    fn explain(&self, number: u32, last: Option<&Move>, words: &str) -> String {
        let mut moves = Vec::new();
        let mut at = number;
        while at != 0 {
            let (from, one) = &self.path[at as usize];
            moves.push(self.describe(one));
            at = *from;
        }
        moves.reverse();
        moves.extend(last.map(|one| self.describe(one)));
        let lines: Vec<_> =
            moves.iter().enumerate().map(|(i, m)| format!("{:3} {m}", i + 1)).collect();
        format!("{words}\n{}", lines.join("\n"))
    }

    fn describe(&self, one: &Move) -> String {
        let who = ["a", "b"][one.at];
        let what = match &one.nudge {
            Nudge::Deliver(number) => {
                let message = &self.messages[*number as usize].1;
                format!("hears, epoch {}: {:?}", message.epoch.number, message.body)
            }
            Nudge::Arrive(number) => {
                format!("receives {:?} whole", self.streams[*number as usize].0)
            }
            other => format!("{other:?}"),
        };
        match one.cut {
            Cut::Not => format!("{who} {what}"),
            Cut::Crash { after, power } => {
                let what_dies = if power { "its host" } else { "its daemon" };
                format!("{who} {what}; {what_dies} dies behind effect {after}")
            }
            Cut::Hold(action) => format!("{who} {what}; action {action} does not end"),
        }
    }

    /// Whether the command was answered, where the daemon that was asked still lives.
    fn answered(&self, machine: u32) -> bool {
        !self.known(machine).machine.asked.contains(&MIGRATE)
    }
}
