//! Actions by kind: their words, and which of them keep a unit's order.

use flocker_core::Action;

/// Its word in logs, metrics and failpoints.
pub(super) fn word(action: &Action) -> &'static str {
    match action {
        Action::Inspect { .. } => "inspect",
        Action::Find { .. } => "find",
        Action::Room { .. } => "room",
        Action::Snapshot { .. } => "snapshot",
        Action::Tidy { .. } => "tidy",
        Action::Mark { .. } => "mark",
        Action::Changed { .. } => "changed",
        Action::ProbeWorkload { .. } => "probe-workload",
        Action::DescribeWorkload { .. } => "describe-workload",
        Action::PreDump { .. } => "pre-dump",
        Action::ReleaseWorkload { .. } => "release-workload",
        Action::StartWorkload { .. } => "start-workload",
        Action::StopWorkload { .. } => "stop-workload",
        Action::Fence { .. } => "fence",
        Action::VerifyUnwritten { .. } => "verify-unwritten",
        Action::Rehearse { .. } => "rehearse",
        Action::Activate { .. } => "activate",
        Action::Mirror { .. } => "mirror",
        Action::GiveBack { .. } => "give-back",
        Action::Network { .. } => "network",
        Action::Preflight { .. } => "preflight",
        Action::SetAside { .. } => "set-aside",
        Action::FencingHook { .. } => "fencing-hook",
        Action::Drill { .. } => "drill",
    }
}

/// Whether it touches the unit's workload or live volumes, and so keeps its place in the order.
/// Giving back ends both, so it waits for whatever is under way.
pub(super) fn needs_lane(action: &Action) -> bool {
    match action {
        Action::Snapshot { .. }
        | Action::ProbeWorkload { .. }
        | Action::PreDump { .. }
        | Action::ReleaseWorkload { .. }
        | Action::StartWorkload { .. }
        | Action::StopWorkload { .. }
        | Action::Fence { .. }
        | Action::VerifyUnwritten { .. }
        | Action::Rehearse { .. }
        | Action::Preflight { .. }
        | Action::Network { .. }
        | Action::SetAside { .. }
        | Action::Activate { .. }
        | Action::GiveBack { .. } => true,
        Action::Inspect { .. }
        | Action::DescribeWorkload { .. }
        | Action::Find { .. }
        | Action::Room { .. }
        | Action::Tidy { .. }
        | Action::Mark { .. }
        | Action::Changed { .. }
        | Action::FencingHook { .. }
        | Action::Drill { .. }
        | Action::Mirror { .. } => false,
    }
}
