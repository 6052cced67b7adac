//! Runs in which a daemon is killed during a move: what is drawn from a seed, and one run of it.
//!
//! Owns: the list of places, the draw, the run. The same seed kills the same daemon at the same named
//! place; of a random moment it repeats the delay, not what the machine does with it. Leaves to
//! [`super::rig`] what must hold afterwards.

use std::process::Child;
use std::time::{Duration, Instant};

use super::host::PATIENCE;
use super::rig::Rig;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The daemon that the unit leaves.
    Source,
    /// The daemon that it goes to.
    Target,
    /// The source where it is said, the target right behind it.
    Both,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// At a failpoint, see `flocker_engine`'s `failpoint`.
    Place(&'static str),
    /// This long after the command was given.
    After(Duration),
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// What it was drawn from.
    pub seed: u64,
    /// Who.
    pub victim: Victim,
    /// When.
    pub moment: Moment,
    /// How long whoever was killed stays away.
    pub away: Duration,
}

use Victim::{Both, Source, Target};

/// Every phase of the source, every step of the target; `None` is a random moment. As many as one
/// short set has runs, so that each set of consecutive seeds has them all.
pub const KILLS: [(Victim, Option<&str>); 30] = [
    (Source, Some("phase:preflight")),
    (Target, Some("before-persist:ready")),
    (Source, Some("phase:converge")),
    (Target, Some("after-persist:ready")),
    (Source, None),
    (Source, Some("phase:quiesce")),
    (Target, Some("before-persist:serving")),
    (Both, Some("phase:commit")),
    (Source, Some("phase:fence")),
    (Target, Some("after-persist:serving")),
    (Target, None),
    (Source, Some("phase:snapshot")),
    (Target, Some("before-activate")),
    (Both, Some("phase:transfer")),
    (Source, Some("phase:transfer")),
    (Target, Some("after-activate")),
    (Both, None),
    (Source, Some("phase:prepare")),
    (Target, Some("before-start-workload")),
    (Both, Some("after-persist:handed-over")),
    (Source, Some("before-persist:handed-over")),
    (Target, Some("after-start-workload")),
    (Source, None),
    (Source, Some("after-persist:handed-over")),
    (Target, Some("after-record")),
    (Both, Some("phase:activate")),
    (Source, Some("phase:commit")),
    (Target, None),
    (Source, Some("phase:activate")),
    (Both, Some("phase:quiesce")),
];

/// A little longer than a move takes, so that a random moment may come after it too.
const MOVE: Duration = Duration::from_millis(1_000);

/// A number that looks random, of a seed and of what it is for (splitmix64).
pub fn draw(seed: u64, what: u64, below: u64) -> u64 {
    let mut z = seed.wrapping_add(what.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(1);
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        z = (z ^ (z >> 30)).wrapping_mul(factor);
    }
    (z ^ (z >> 31)) % below
}

impl Kill {
    /// What this seed does.
    pub fn of(seed: u64) -> Self {
        let (victim, place) = KILLS[(seed % KILLS.len() as u64) as usize];
        let moment = match place {
            Some(place) => Moment::Place(place),
            None => Moment::After(Duration::from_millis(draw(seed, 1, MOVE.as_millis() as u64))),
        };
        let away = Duration::from_millis(draw(seed, 2, 600));
        Self { seed, victim, moment, away }
    }

    /// In words, with how to see it again.
    pub fn words(&self, name: &str) -> String {
        let when = match self.moment {
            Moment::Place(place) => format!("at {place}"),
            Moment::After(delay) => format!("after {} ms", delay.as_millis()),
        };
        format!(
            "{name}: {:?} killed {when} (again: FLOCKER_E2E_SEED={} FLOCKER_E2E_RUNS=1)",
            self.victim, self.seed
        )
    }

    /// Moves the unit under load, kills, starts again, and leaves everything settled and checked.
    /// Returns whether the move had come to its end all the same, and the longest time without an answer.
    ///
    /// # Panics
    /// With what does not hold.
    pub fn run(&self, rig: &mut Rig, which: usize) -> (bool, Duration) {
        let name = rig.name(which);
        let context = self.words(name);
        let from = rig.settle(which, &context);
        let victim = if self.victim == Target { 1 - from } else { from };
        if let Moment::Place(place) = self.moment {
            rig.hosts[victim].kill();
            rig.hosts[victim].serve_with(Some(place));
            rig.hosts[victim].wait_up_or_killed();
        }
        let load = rig.load(which, 4, 200);
        let watch = rig.watch(which);
        load.wait_more(20, &context);
        let begun = Instant::now();
        let command = self.kill(rig, which, from, victim, &context);
        std::thread::sleep(self.away);
        for host in &mut rig.hosts {
            if host.pid().is_none() {
                host.serve_with(None);
            }
        }
        for host in &mut rig.hosts {
            host.wait_up();
        }
        let _ = command.wait_with_output();
        rig.see_through(which, from, begun, load, watch, &context)
    }

    /// Gives the command and kills; returns the command, which may have ended or not.
    fn kill(
        &self,
        rig: &mut Rig,
        which: usize,
        from: usize,
        victim: usize,
        context: &str,
    ) -> Child {
        let name = rig.name(which);
        let to = rig.hosts[1 - from].name.clone();
        let migrate = |rig: &Rig| rig.hosts[from].spawn(&["migrate", name, "--to", &to, "--json"]);
        let mut command = migrate(rig);
        match self.moment {
            Moment::After(delay) => {
                std::thread::sleep(delay);
                rig.hosts[victim].kill();
            }
            Moment::Place(_) => {
                let until = Instant::now() + PATIENCE;
                while !rig.hosts[victim].was_killed() {
                    if let Ok(Some(status)) = command.try_wait()
                        && !rig.hosts[victim].was_killed()
                    {
                        // The nodes had not found each other yet.
                        assert!(!status.success(), "{context}: it never came to that place");
                        assert!(Instant::now() < until, "{context}: the move does not begin");
                        std::thread::sleep(Duration::from_millis(100));
                        command = migrate(rig);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                rig.hosts[victim].wait_killed();
            }
        }
        if self.victim == Both {
            rig.hosts[1 - victim].kill();
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_kill_and_a_short_set_has_them_all() {
        assert_eq!(Kill::of(77), Kill::of(77));
        let words = |seed| {
            let kill = Kill::of(seed);
            (format!("{:?}", kill.victim), matches!(kill.moment, Moment::Place(_)))
        };
        assert_eq!(words(4), words(4 + KILLS.len() as u64));
        let delays: std::collections::BTreeSet<u64> = (0..50).map(|s| draw(s, 1, 1000)).collect();
        assert!(delays.len() > 40, "{delays:?}");
    }
}
