//! Closing a state: no more faults. Whatever was on its way is lost with the connection, the connection
//! comes back, time goes on, and everything must come good by itself.

use std::collections::VecDeque;

use super::machine::{Cut, Nudge};
use super::{Failed, Link, Search, State};

/// Most macro-steps until everything is good.
const STEP_LIMIT: usize = 3_000;

/// Longest time until everything is good, milliseconds.
const TIME_LIMIT_MS: u64 = 300_000;

struct Closing<'a> {
    search: &'a mut Search,
    machines: [u32; 2],
    queue: VecDeque<(usize, u32)>,
    streams: Vec<u32>,
    steps: usize,
    forked: bool,
    trace: Vec<String>,
}

impl Search {
    /// Closes one pair of nodes in so many; each pair once.
    pub(super) fn close(&mut self, state: &State) -> Result<(), String> {
        let one_in = self.plan.close_one_in;
        let [a, b] = state.machines;
        let mixed = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        if one_in == 0 || mixed % one_in != 0 {
            return Ok(());
        }
        if self.closed.insert((a, b, state.written, state.failed), ()).is_some() {
            return Ok(());
        }
        let machines = self.come_good(state)?;
        let all = u64::from(state.written);
        let [owner, other] = [0, 1].map(|i| self.known(machines[i]));
        let (owner, other) = if owner.owner { (owner, other) } else { (other, owner) };
        let live = owner.machine.dataset().map(|d| d.live.clone()).unwrap_or_default();
        if state.failed == Failed::Not && !live.holds_all_up_to(all) {
            return Err(format!("closing: the owner has {} of {all} records", live.describe()));
        }
        let kept = |record| owner.machine.keeps(record) || other.machine.keeps(record);
        if let Some(lost) = (1..=all).find(|r| !kept(*r)) {
            return Err(format!("closing: record {lost} is nowhere any more"));
        }
        if !machines.iter().all(|m| self.answered(*m)) {
            return Err("closing: the command is never answered".into());
        }
        Ok(())
    }

    /// What becomes of a pair without faults.
    pub(super) fn come_good(&mut self, state: &State) -> Result<[u32; 2], String> {
        let mut closing = Closing {
            machines: state.machines,
            search: self,
            queue: VecDeque::new(),
            streams: Vec::new(),
            steps: 0,
            forked: state.failed == Failed::Wrongly,
            trace: Vec::new(),
        };
        match closing.run(state) {
            Ok(()) => Ok(closing.machines),
            Err(words) => {
                let skip = closing.trace.len().saturating_sub(40);
                let tail = closing.trace.split_off(skip).join("\n      ");
                Err(format!("closing: {words}\n      {tail}"))
            }
        }
    }
}

impl Closing<'_> {
    fn run(&mut self, state: &State) -> Result<(), String> {
        for at in 0..2 {
            let known = self.search.known(self.machines[at]);
            if !known.alive {
                self.nudge(at, Nudge::Restart)?;
                continue;
            }
            if !known.machine.held.is_empty() {
                self.nudge(at, Nudge::Release)?;
            }
            if state.links[at] != Link::Down && known.machine.up {
                self.nudge(at, Nudge::Down)?;
            }
        }
        self.queue.clear();
        self.streams.clear();
        for at in 0..2 {
            self.nudge(at, Nudge::Up)?;
        }
        let mut waited_ms = 0;
        while self.steps < STEP_LIMIT && waited_ms < TIME_LIMIT_MS {
            if let Some((to, message)) = self.queue.pop_front() {
                self.nudge(to, Nudge::Deliver(message))?;
            } else if self.streams_go_on()? {
            } else if self.is_good() {
                return Ok(());
            } else {
                let due = |i: usize| self.search.known(self.machines[i]).due_in_ms;
                let ms = (0..2).filter_map(due).min().unwrap_or(1_000).max(1);
                waited_ms += ms;
                self.trace.push(self.picture());
                for at in 0..2 {
                    self.nudge(at, Nudge::Wait(ms))?;
                }
            }
        }
        Err(format!("not good after {} steps and {waited_ms} ms: {}", self.steps, self.picture()))
    }

    fn nudge(&mut self, at: usize, nudge: Nudge) -> Result<(), String> {
        self.steps += 1;
        let one = super::Move { at, nudge, cut: Cut::Not };
        self.trace.push(self.search.describe(&one));
        let (before, owned) = (self.epoch(at), self.search.known(self.machines[at]).owner);
        let stepped = self.search.step(self.machines[at], &one.nudge, Cut::Not);
        if let Some(words) = &stepped.broken {
            return Err(words.clone());
        }
        self.machines[at] = stepped.machine;
        let other = self.search.known(self.machines[1 - at]);
        // A false word is found out when the two meet, and not before; a workload that outlived its
        // daemon then runs until the restarted one has stopped it.
        if stepped.could_write
            && other.can_write
            && other.epoch == before
            && ((owned && other.owner) || !self.forked)
        {
            return Err("two nodes can write".into());
        }
        self.queue.extend(stepped.said.iter().map(|m| (1 - at, *m)));
        self.streams.extend(stepped.streams.iter().copied());
        Ok(())
    }

    fn epoch(&self, at: usize) -> flocker_core::ids::Epoch {
        self.search.known(self.machines[at]).epoch
    }

    fn streams_go_on(&mut self) -> Result<bool, String> {
        for at in 0..self.streams.len() {
            let number = self.streams[at];
            let transfer = self.search.streams[number as usize].0;
            for to in 0..2 {
                let m = self.search.known(self.machines[to]);
                if m.machine.expected.contains_key(&transfer) {
                    self.nudge(to, Nudge::Arrive(number))?;
                    return Ok(true);
                }
            }
            let to_guid = self.search.streams[number as usize].1.to;
            for from in 0..2 {
                let m = self.search.known(self.machines[from]);
                if m.machine.sending.contains(&transfer) {
                    let there = self.search.known(self.machines[1 - from]);
                    let there = there.machine.dataset();
                    let well = there.is_some_and(|d| d.snapshot(to_guid).is_some());
                    self.nudge(from, Nudge::SendEnds { transfer, well })?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// One primary with its workload, one standby that is told so, nothing left to put right.
    fn is_good(&self) -> bool {
        let [a, b] = [0, 1].map(|i| self.search.known(self.machines[i]));
        let (owner, other) = if a.owner { (a, b) } else { (b, a) };
        let settled = other.machine.record();
        // A promise that nobody will ask about any more ends with the next step.
        let following = settled.role.is_standby();
        let in_step = other.machine.dataset().is_some_and(|d| !d.snapshots.is_empty());
        owner.owner
            && owner.can_write
            && following
            && in_step
            && !other.machine.works
            && !other.can_write
            && owner.epoch == other.epoch
            && settled.step_back.is_none()
            && !settled.was_primary
            && (0..2).all(|i| self.search.answered(self.machines[i]))
    }

    fn picture(&self) -> String {
        let pictures = [0, 1].map(|i| {
            let known = self.search.known(self.machines[i]);
            let m = &known.machine;
            let status = m.node.as_ref().map(|n| n.status(m.now()));
            let unit = status.and_then(|s| s.units.into_iter().next());
            let unit = unit.map(|u| format!("{}, {}, {:?}", u.doing, u.workload_state, u.alarm));
            format!(
                "{}: {:?} epoch {} works {} can write {}; step back {:?}, was primary {}, asked {:?}, {unit:?}",
                ["a", "b"][i],
                m.record().role,
                m.record().epoch,
                m.works,
                m.can_write(),
                m.record().step_back,
                m.record().was_primary,
                m.asked,
            )
        });
        pictures.join("\n  ")
    }
}
