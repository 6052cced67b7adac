//! The simulator: whole nodes, with the very core that `serve` runs, in a world made of one seed.
//!
//! Owns: virtual time, a network that loses, repeats, delays and cuts, stores and workloads as
//! models, people who ask for things at bad moments, crashes between any two effects, and the
//! checkers. Leaves to others: deciding anything (`flocker-core` does that here as in production).
//!
//! A run draws its configuration from its seed, is wild for two virtual minutes, then healed, and
//! must end well. The same seed gives the same run. Read next: [`world`] (the loop), [`perform`]
//! (the contract with the core, as the engine keeps it), [`check`] and [`check_final`] (what must
//! hold), [`scenario`] (what a seed decides).

use std::panic::{AssertUnwindSafe, catch_unwind};

pub mod actions;
mod adopt;
pub mod bulk;
pub mod check;
pub mod check_final;
pub mod content;
pub mod coverage;
pub mod faults;
pub mod host;
pub mod net;
pub mod operator;
pub mod perform;
pub mod rng;
pub mod scenario;
pub mod store;
pub mod surroundings;
pub mod takeover;
pub mod trace;
mod trees;
pub mod world;

pub use check::{Rule, Violation};
pub use coverage::Coverage;
pub use scenario::Scenario;
pub use trace::Trace;
pub use world::World;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Which run.
    pub seed: u64,
    /// How many nodes it had.
    pub nodes: usize,
    /// What was broken first, if anything.
    pub violation: Option<Violation>,
    /// What it hit.
    pub coverage: Coverage,
    /// Over every line of the trace; meaningful where it was on.
    pub hash: u64,
    /// The newest lines of the trace, where it was on.
    pub tail: Vec<String>,
}

/// Lines of the trace shown for a failure.
const TAIL_LINES: usize = 60;

pub(crate) fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "a panic without words".to_owned()
    }
}

/// Runs one scenario to its end.
pub fn run(scenario: Scenario, trace: Trace) -> Outcome {
    let (seed, nodes) = (scenario.seed, scenario.nodes);
    let mut world = World::new(scenario, trace);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic_words(panic.as_ref());
        world.violate(Rule::Panic, text);
    }
    Outcome {
        seed,
        nodes,
        violation: world.violation,
        coverage: world.coverage,
        hash: world.lines.hash(),
        tail: world.lines.tail(TAIL_LINES),
    }
}

/// Runs one scenario, and once more with its trace on if it failed.
pub fn run_explained(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario.clone(), Trace::default());
    if outcome.violation.is_none() {
        return outcome;
    }
    run(scenario.clone(), Trace::new(true, false))
}

impl Outcome {
    /// For a person: what was broken, the end of the trace, and the command that replays it.
    pub fn explain(&self) -> String {
        let broken = match &self.violation {
            Some(violation) => violation.to_string(),
            None => "nothing was broken".to_owned(),
        };
        let (seed, nodes, tail) = (self.seed, self.nodes, self.tail.join("\n"));
        format!(
            "seed {seed}: {broken}\n--- the last lines of its trace:\n{tail}\n--- replay: \
             FLOCKER_SIM_SEED={seed} FLOCKER_SIM_NODES={nodes} cargo test -p flocker-tests \
             --no-default-features --test sim -- sim_seeds --nocapture\n"
        )
    }
}
