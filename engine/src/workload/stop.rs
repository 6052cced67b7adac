//! Stopping a workload: who gets the signal, and waiting until nothing is left.
//!
//! A server takes its own processes down, and more than one signal may mean something else to it: to
//! PostgreSQL's backends SIGINT means "cancel your query". So the main process alone is asked. Two
//! kinds cannot do it by themselves: a shell heeds a signal only once the command it waits for has
//! ended, so that is asked too; and where the main process is gone, whoever has no parent among the
//! members stands in for it. After a quarter of the limit everybody is asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::members::Members;
use super::proc::{self, Stat};
use super::record::PidRecord;

/// The part of the limit after which everybody is asked.
const SHARE: u32 = 4;

/// Longest wait between two looks for new members.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Programs that wait for a command in the foreground before they heed a signal.
const SHELLS: [&str; 7] = ["sh", "dash", "bash", "ash", "zsh", "ksh", "busybox"];

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stopping {
    signal: Signal,
    begun: Instant,
    limit: Duration,
    main: Option<Stat>,
    told: BTreeSet<(u32, u64)>,
}

impl Stopping {
    pub(super) fn new(signal: Signal, limit: Duration) -> Self {
        Self { signal, begun: Instant::now(), limit, main: None, told: BTreeSet::new() }
    }

    /// How long it may still take.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// Asks whoever is to be asked now and was not yet, and waits until they have ended or somebody
    /// else is to be asked.
    pub(super) fn ask(&mut self, members: &Members, record: Option<&PidRecord>) {
        if self.main.is_none() {
            self.main = main_process(members, record);
        }
        let everybody = self.begun.elapsed() >= self.limit / SHARE;
        let asked = match everybody {
            true => members.processes.clone(),
            false => self.first_ones(members),
        };
        for process in &asked {
            if self.told.insert((process.pid, process.start_time)) {
                let _ = proc::signal(process, self.signal);
                let _ = proc::signal(process, Signal::CONT);
            }
        }
        let next = match everybody {
            true => self.left(),
            false => (self.limit / SHARE).saturating_sub(self.begun.elapsed()),
        };
        let waited_for = if asked.is_empty() { members.all() } else { asked };
        proc::wait_all(&waited_for, next.min(LOOK_EVERY).max(Duration::from_millis(1)));
    }

    fn first_ones(&self, members: &Members) -> Vec<Stat> {
        let all = &members.processes;
        let mut first: Vec<Stat> = match &self.main {
            Some(main) if all.iter().any(|p| p.is_same(main)) => vec![main.clone()],
            _ => all
                .iter()
                .filter(|p| !all.iter().any(|other| other.pid == p.parent))
                .cloned()
                .collect(),
        };
        // Through shells in shells, each process once.
        let mut at = 0;
        while let Some(process) = first.get(at) {
            at += 1;
            if !SHELLS.contains(&process.command.as_str()) {
                continue;
            }
            let pid = process.pid;
            for child in all.iter().filter(|p| p.parent == pid) {
                if !first.iter().any(|p| p.is_same(child)) {
                    first.push(child.clone());
                }
            }
        }
        first
    }
}

/// The command itself: what the supervisor became, or its first child where it stayed.
pub(super) fn main_process(members: &Members, record: Option<&PidRecord>) -> Option<Stat> {
    if let Some(supervisor) = &members.supervisor {
        let children = members.processes.iter().filter(|p| p.parent == supervisor.pid);
        return children.min_by_key(|p| (p.start_time, p.pid)).cloned();
    }
    let record = record?;
    let is_main = |p: &&Stat| (p.pid, p.start_time) == (record.pid, record.start_time);
    members.processes.iter().find(is_main).cloned()
}
