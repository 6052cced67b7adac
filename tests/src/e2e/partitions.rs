//! Runs in which the link is cut during a move, and heals.
//!
//! Owns: the list of cuts, one run of it. A cut begins when the daemon's log says that the phase was
//! entered. Leaves to [`super::proxy`] the cutting, to [`super::rig`] what must hold afterwards.

use std::time::{Duration, Instant};

use super::host::PATIENCE;
use super::proxy::Cut;
use super::rig::Rig;

/// The phases, as the source's log names them.
pub const PHASES: [&str; 9] = [
    "preflight",
    "converge",
    "quiesce",
    "fence",
    "snapshot",
    "transfer",
    "prepare",
    "commit",
    "activate",
];

/// One cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// It begins when the source enters this phase.
    pub phase: &'static str,
    /// Which way, with the source for the first node.
    pub cut: Cut,
    /// How long.
    pub lasts: Duration,
}

impl Partition {
    /// Every phase, every way.
    pub fn all(lasts: Duration) -> Vec<Self> {
        PHASES
            .into_iter()
            .flat_map(|phase| {
                [Cut::FromA, Cut::FromB, Cut::Both].map(|cut| Self { phase, cut, lasts })
            })
            .collect()
    }

    /// In words.
    pub fn words(&self, name: &str) -> String {
        let who = match self.cut {
            Cut::FromA => "the source is not heard",
            Cut::FromB => "the target is not heard",
            Cut::Both => "neither is heard",
        };
        format!("{name}: {who} for {} ms from {} on", self.lasts.as_millis(), self.phase)
    }

    /// Moves the unit under load, cuts, heals, and leaves everything settled and checked. Returns
    /// whether the move had come to its end all the same, and the longest time without an answer.
    ///
    /// # Panics
    /// With what does not hold.
    pub fn run(&self, rig: &mut Rig, which: usize) -> (bool, Duration) {
        let name = rig.name(which);
        let context = self.words(name);
        let from = rig.settle(which, &context);
        let load = rig.load(which, 4, 200);
        let watch = rig.watch(which);
        load.wait_more(20, &context);
        rig.hosts[from].wait_in_step(name);
        let begun = Instant::now();
        let command = self.cut(rig, which, from, &context);
        std::thread::sleep(self.lasts);
        rig.proxy().heal();
        let _ = command.wait_with_output();
        rig.see_through(which, from, begun, load, watch, &context)
    }

    /// Gives the command, until a move came to the phase, and cuts there.
    fn cut(&self, rig: &Rig, which: usize, from: usize, context: &str) -> std::process::Child {
        let cut = match (self.cut, from) {
            (Cut::FromA, 1) => Cut::FromB,
            (Cut::FromB, 1) => Cut::FromA,
            (cut, _) => cut,
        };
        let until = Instant::now() + PATIENCE;
        loop {
            let mark = rig.hosts[from].log_length();
            let to = rig.hosts[1 - from].name.clone();
            let args = ["migrate", rig.name(which), "--to", &to, "--json"];
            let mut command = rig.hosts[from].spawn(&args);
            let phase = format!("phase=\"{}\"", self.phase);
            loop {
                if rig.hosts[from].log_since(mark).contains(&phase) {
                    rig.proxy().cut(cut);
                    return command;
                }
                if let Ok(Some(status)) = command.try_wait() {
                    assert!(!status.success(), "{context}: the move ended before it was cut");
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(Instant::now() < until, "{context}: the move does not begin");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
