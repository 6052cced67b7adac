//! Where a unit's workload is, as far as this node knows.
//!
//! Owns: the rule by which roles, phases and what became of starts and stops say it. Pure. Leaves to
//! others: hearing of them (`forward`).

use flocker_core::record::{Role, UnitRecord};

/// Where connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// To this node's workload.
    Here,
    /// To the primary's.
    Elsewhere,
    /// It runs nowhere now, and soon will: they are held.
    Nowhere,
    /// It is primary here and was stopped by a person: nobody is to wait for it.
    Stopped,
}

impl Whereabouts {
    pub(super) fn word(self) -> &'static str {
        match self {
            Whereabouts::Here => "here",
            Whereabouts::Elsewhere => "elsewhere",
            Whereabouts::Nowhere => "nowhere",
            Whereabouts::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Primary,
    Between,
    Standby,
}

/// What is known of one unit.
#[derive(Debug)]
pub(super) struct Known {
    part: Part,
    wanted: bool,
    /// Its workload runs on this node; `None`: not known, so it is tried.
    runs: Option<bool>,
    /// A move away from here is between quiesce and the target's word that it runs there.
    moving: bool,
}

impl Known {
    /// As the journal has it when the node starts: a workload may run that is adopted.
    pub(super) fn at_start(record: &UnitRecord) -> Self {
        let part = part(&record.role);
        let runs = (part != Part::Primary).then_some(false);
        Self { part, wanted: wanted(record), runs, moving: false }
    }

    /// The journal has changed.
    pub(super) fn record(&mut self, record: &UnitRecord) {
        self.part = part(&record.role);
        self.wanted = wanted(record);
        if self.part != Part::Primary {
            self.runs = Some(false);
        }
        self.moving &= record.role != Role::Serving;
    }

    /// The workload is about to be stopped for a move.
    pub(super) fn quiesce(&mut self) {
        self.moving = true;
    }

    /// The move has ended, either way.
    pub(super) fn move_ended(&mut self) {
        self.moving = false;
    }

    pub(super) fn is_moving(&self) -> bool {
        self.moving
    }

    /// The workload runs here, or not; `None`: whichever.
    pub(super) fn runs(&mut self, runs: Option<bool>) {
        self.runs = runs;
    }

    pub(super) fn whereabouts(&self) -> Whereabouts {
        match self.part {
            Part::Primary if !self.wanted && self.runs != Some(true) => Whereabouts::Stopped,
            Part::Primary if self.moving || self.runs == Some(false) => Whereabouts::Nowhere,
            Part::Primary => Whereabouts::Here,
            Part::Between => Whereabouts::Nowhere,
            Part::Standby if self.moving => Whereabouts::Nowhere,
            Part::Standby => Whereabouts::Elsewhere,
        }
    }
}

fn part(role: &Role) -> Part {
    match role {
        Role::Serving | Role::Leaving { .. } => Part::Primary,
        // Its source has stopped it, or is about to hear that it does not leave.
        Role::HandedOver { .. } | Role::Ready { .. } => Part::Between,
        Role::Following { .. } => Part::Standby,
    }
}

fn wanted(record: &UnitRecord) -> bool {
    record.workload.as_ref().is_some_and(|workload| workload.wanted)
}

#[cfg(test)]
mod tests {
    use flocker_core::ids::{AttemptId, Epoch, Fingerprint, UnitId};
    use flocker_core::record::{Policy, WorkloadRecord};

    use super::*;

    const NODE: Fingerprint = Fingerprint([1; 32]);
    const ATTEMPT: AttemptId = AttemptId { issuer: NODE, number: 1 };

    fn with(role: Role) -> UnitRecord {
        let epoch = Epoch { number: 1, owner: NODE, attempt: ATTEMPT };
        let mut unit =
            UnitRecord::new(UnitId(1), "db".into(), Vec::new(), Policy::Rpo(1), epoch, role);
        unit.workload = Some(WorkloadRecord::process(Vec::new()));
        unit
    }

    #[test]
    fn a_move_away_is_nowhere_from_quiesce_until_its_end() {
        let mut known = Known::at_start(&with(Role::Serving));
        let mut seen = vec![known.whereabouts()];
        known.record(&with(Role::Leaving { attempt: ATTEMPT, target: NODE }));
        seen.push(known.whereabouts());
        known.quiesce();
        seen.push(known.whereabouts());
        known.runs(Some(false));
        known.record(&with(Role::Following { source: NODE }));
        seen.push(known.whereabouts());
        known.move_ended();
        seen.push(known.whereabouts());
        use Whereabouts::{Elsewhere, Here, Nowhere};
        assert_eq!(seen, [Here, Here, Nowhere, Nowhere, Elsewhere]);
    }

    #[test]
    fn what_did_not_stop_is_here_again_when_the_move_is_taken_back() {
        let mut known = Known::at_start(&with(Role::Serving));
        known.runs(Some(true));
        known.quiesce();
        known.runs(None);
        known.record(&with(Role::Serving));
        assert_eq!(known.whereabouts(), Whereabouts::Here);
    }

    #[test]
    fn a_restarted_daemon_of_a_standby_finds_it_at_the_primary() {
        let known = Known::at_start(&with(Role::Following { source: NODE }));
        assert_eq!(known.whereabouts(), Whereabouts::Elsewhere);
    }
}
