//! Who belongs to a workload.
//!
//! A process does, if it carries the workload's mark in its environment (inherited by everything
//! that does not throw its environment away), or is in the session of the recorded process, or
//! descends from one that belongs. The mark names the unit *and* the node, since two nodes on one
//! host may both run workloads of one unit's name over time.
//!
//! What escapes: a process that at once left the session, lost its parent and threw its environment
//! away. The store's fence finds it as a holder of the volume.

use std::collections::{BTreeMap, BTreeSet};

use super::proc::{self, Stat};
use super::record::PidRecord;

/// Names the unit in a workload's environment.
pub(crate) const UNIT_VARIABLE: &str = "FLOCKER_UNIT";
/// Stands for [`UNIT_VARIABLE`] in a drill's environment.
pub(crate) const DRILL_VARIABLE: &str = "FLOCKER_DRILL";
/// Names the node in a workload's environment.
pub(crate) const NODE_VARIABLE: &str = "FLOCKER_NODE";

/// How to tell a workload's processes.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// `NAME=value`, all of them.
    pub(crate) environment: Vec<String>,
}

/// The processes of a workload that are not dead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    /// The supervisor that stayed, which writes nothing and is not frozen.
    pub(crate) supervisor: Option<Stat>,
    /// All others.
    pub(crate) processes: Vec<Stat>,
}

impl Members {
    /// Nothing of the workload is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.supervisor.is_none() && self.processes.is_empty()
    }

    /// Everybody.
    pub(crate) fn all(&self) -> Vec<Stat> {
        self.processes.iter().chain(&self.supervisor).cloned().collect()
    }
}

/// Remembers over the looks of one operation which processes carry the mark, by pid and start time.
/// Only within one operation: a process may exec itself another environment.
#[derive(Debug, Default)]
pub(crate) struct Looked(BTreeMap<(u32, u64), bool>);

/// Looks for the members of a workload.
pub(crate) fn find(mark: &Mark, record: Option<&PidRecord>, looked: &mut Looked) -> Members {
    let all = proc::all();
    let own = std::process::id();
    let session = record.filter(|record| {
        all.iter().any(|p| p.pid == record.pid && p.start_time == record.start_time)
    });
    let mut ours: BTreeSet<u32> = all
        .iter()
        .filter(|p| p.pid != own)
        .filter(|p| {
            session.is_some_and(|record| p.session == record.pid || p.pid == record.pid)
                || carries(mark, p, looked)
        })
        .map(|p| p.pid)
        .collect();
    close_over_children(&all, own, &mut ours);
    let mut members = Members::default();
    for process in all {
        if !ours.contains(&process.pid) || process.is_dead() {
            continue;
        }
        let stays = session.is_some_and(|record| record.supervised() && record.pid == process.pid);
        if stays {
            members.supervisor = Some(process);
        } else {
            members.processes.push(process);
        }
    }
    members
}

fn carries(mark: &Mark, process: &Stat, looked: &mut Looked) -> bool {
    if process.kernel {
        return false;
    }
    *looked
        .0
        .entry((process.pid, process.start_time))
        .or_insert_with(|| proc::has_environment(process.pid, &mark.environment).unwrap_or(false))
}

fn close_over_children(all: &[Stat], own: u32, ours: &mut BTreeSet<u32>) {
    // At most as many rounds as the deepest line of descent is long.
    for _ in 0..all.len() {
        let before = ours.len();
        for process in all {
            if process.pid != own && ours.contains(&process.parent) {
                ours.insert(process.pid);
            }
        }
        if ours.len() == before {
            return;
        }
    }
}

/// The descendants of this very process and everybody in its session, but for itself.
pub(crate) fn below_us() -> Vec<Stat> {
    let all = proc::all();
    let own = std::process::id();
    let mut below: BTreeSet<u32> = all
        .iter()
        .filter(|p| p.pid != own && (p.session == own || p.parent == own))
        .map(|p| p.pid)
        .collect();
    close_over_children(&all, own, &mut below);
    all.into_iter().filter(|p| below.contains(&p.pid) && !p.is_dead()).collect()
}
