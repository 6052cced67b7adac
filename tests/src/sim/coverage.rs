//! What the faults hit: a simulator that never crashes a node in the phase where it matters
//! proves nothing.

use std::collections::BTreeMap;
use std::fmt;

/// The phases of a cutover, in their order.
pub const PHASES: [&str; 10] = [
    "preflight",
    "converge",
    "quiesce",
    "fence",
    "snapshot",
    "transfer",
    "prepare",
    "commit",
    "activate",
    "undo",
];

/// Counters of a run, or of many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// By fault and phase of the cutover it hit.
    pub hits: BTreeMap<(&'static str, String), u64>,
    /// Times a phase was entered.
    pub phases: BTreeMap<String, u64>,
    /// Times a role was entered.
    pub roles: BTreeMap<String, u64>,
    /// Faults, in or out of a cutover.
    pub faults: BTreeMap<&'static str, u64>,
    /// Rounds of replication that ended well.
    pub rounds: u64,
    /// Migrations asked for, answered well, answered badly, lost with their daemon.
    pub migrations: Migrations,
    /// Records acknowledged to clients.
    pub acknowledged: u64,
    /// Events handled.
    pub events: u64,
    /// Units whose wellness after healing was not asked for, since a journal was lost.
    pub tainted: u64,
}

/// How migrations ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Migrations {
    /// Asked for.
    pub asked: u64,
    /// It moved.
    pub moved: u64,
    /// It did not.
    pub refused: u64,
    /// The unit was taken over by its target, whoever learnt of it.
    pub taken: u64,
}

impl Coverage {
    /// A fault struck in this phase.
    pub fn hit(&mut self, fault: &'static str, phase: &str) {
        *self.hits.entry((fault, phase.to_owned())).or_default() += 1;
    }

    /// A fault struck, in a phase or not.
    pub fn fault(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// A phase was entered.
    pub fn phase(&mut self, phase: &str) {
        *self.phases.entry(phase.to_owned()).or_default() += 1;
    }

    /// A role was entered.
    pub fn role(&mut self, role: &str) {
        *self.roles.entry(role.to_owned()).or_default() += 1;
    }

    /// Adds another run's counters.
    pub fn add(&mut self, other: &Coverage) {
        fn sum<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(key.clone()).or_default() += count;
            }
        }
        sum(&mut self.hits, &other.hits);
        sum(&mut self.phases, &other.phases);
        sum(&mut self.roles, &other.roles);
        sum(&mut self.faults, &other.faults);
        self.rounds += other.rounds;
        self.migrations.asked += other.migrations.asked;
        self.migrations.moved += other.migrations.moved;
        self.migrations.refused += other.migrations.refused;
        self.migrations.taken += other.migrations.taken;
        self.acknowledged += other.acknowledged;
        self.events += other.events;
        self.tainted += other.tainted;
    }

    /// How often this fault hit this phase.
    pub fn of(&self, fault: &'static str, phase: &str) -> u64 {
        self.hits.get(&(fault, phase.to_owned())).copied().unwrap_or(0)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.migrations;
        writeln!(
            f,
            "{} events, {} records acknowledged, {} rounds; migrations: {} asked, {} taken over, \
             {} answered as moved, {} answered as failed; {} units tainted",
            self.events,
            self.acknowledged,
            self.rounds,
            m.asked,
            m.taken,
            m.moved,
            m.refused,
            self.tainted
        )?;
        let list = |map: &BTreeMap<String, u64>| {
            let all: Vec<String> = map.iter().map(|(k, n)| format!("{k} {n}")).collect();
            all.join(", ")
        };
        writeln!(f, "roles: {}", list(&self.roles))?;
        writeln!(f, "phases: {}", list(&self.phases))?;
        let faults: Vec<String> = self.faults.iter().map(|(k, n)| format!("{k} {n}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        let mut kinds: Vec<&'static str> = self.hits.keys().map(|(fault, _)| *fault).collect();
        kinds.dedup();
        write!(f, "{:<28}", "hit in phase")?;
        for phase in PHASES {
            write!(f, "{phase:>10}")?;
        }
        writeln!(f)?;
        for kind in kinds {
            write!(f, "{kind:<28}")?;
            for phase in PHASES {
                write!(f, "{:>10}", self.of(kind, phase))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
