//! Workloads that another program on the node runs: containers, units of systemd.
//!
//! Owns: what all of them have in common, and finding the one that a [`Program`] names. Each has a file: how it is
//! asked what it is, taken over, made ready on the other node, started, stopped, frozen, and written down with its
//! memory. Leaves to others: when any of it happens (`flocker_core`), processes of our own
//! ([`crate::workload`]), and whether the volumes are free of writers (the store's fence).
//!
//! - **Only we start it** from the moment it is given to us ([`Driver::take`]): its restart policy is off, its unit
//!   disabled. What that was before is kept in `<state>/taken/`, and given back by [`Driver::release`].
//! - Everything may be asked twice: a start of what runs, a stop of what does not.

mod cgroup;
mod command;
mod containers;
mod criu;
mod lxc;
mod oci;
mod programs;
#[cfg(test)]
mod real;
mod systemd;
mod taken;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_core::ids::UnitId;
use flocker_core::record::Program;
use flocker_core::{Failure, FailureCode};

pub(crate) use containers::Containers;
pub(crate) use programs::{Programs, Starting, Still, Stopping};

/// How long a program may take that only asks.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// How long what was killed may take to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How long a workload may take to stand still.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Starts members one after another. That nothing ran is only true of a first one that did not start: those before
/// the others do.
fn start_in_order(
    names: &[String],
    mut start: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for (index, name) in names.iter().enumerate() {
        start(name).map_err(|failure| {
            let nothing = index == 0 || failure.code != FailureCode::NotStarted;
            let code = if nothing { failure.code } else { FailureCode::Workload };
            Failure { code, ..failure }
        })?;
    }
    Ok(())
}

/// Where drivers keep their files, and whom they ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// The state directory; `taken/` is made in it. Images that a node lacks are looked for in
    /// `images/<unit>.tar`.
    pub(crate) state: PathBuf,
    /// Podman's API; `None`: where it is on any host.
    pub(crate) podman: Option<PathBuf>,
    /// Docker's API; `None`: where it is on any host.
    pub(crate) docker: Option<PathBuf>,
    /// Where LXC's containers are; `None`: where they are on any host.
    pub(crate) lxc: Option<PathBuf>,
}

impl Places {
    fn podman_socket(&self) -> PathBuf {
        self.podman.clone().unwrap_or_else(|| PathBuf::from("/run/podman/podman.sock"))
    }

    fn docker_socket(&self) -> PathBuf {
        self.docker.clone().unwrap_or_else(|| PathBuf::from("/var/run/docker.sock"))
    }

    fn lxc_path(&self) -> PathBuf {
        self.lxc.clone().unwrap_or_else(|| PathBuf::from("/var/lib/lxc"))
    }
}

/// Whoever drives a program on this node.
///
/// # Errors
/// It is a process, which [`crate::workload`] runs, or names nothing.
pub(crate) fn driver(
    places: &Places,
    unit: UnitId,
    program: &Program,
) -> Result<Box<dyn Driver>, Failure> {
    let nothing = |what: &str| {
        Failure::refused(FailureCode::BadRequest, format!("the unit's workload names no {what}"))
    };
    match program {
        Program::Process(_) => Err(Failure::refused(
            FailureCode::Unsupported,
            "a process is run by its supervisor, and by no other program",
        )),
        Program::Containers { names, .. } if names.is_empty() => Err(nothing("container")),
        Program::Containers { runtime, names } => {
            Ok(Box::new(Containers::new(places, unit, *runtime, names)))
        }
        Program::Systemd(units) if units.is_empty() => Err(nothing("unit")),
        Program::Systemd(units) => Ok(Box::new(systemd::Systemd::new(places, unit, units))),
        Program::Oci { runtime, id, bundle } => {
            Ok(Box::new(oci::Oci::new(places, unit, *runtime, id, bundle)))
        }
        Program::Lxc(name) => Ok(Box::new(lxc::Lxc::new(places, unit, name))),
    }
}

/// What has to be at the other node for a workload to go on as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// For [`Driver::prepare`] over there; JSON, at most [`DESCRIPTION_BYTES`]. Empty where the other node has to
    /// have it already.
    pub(crate) description: String,
    /// What would be left behind.
    pub(crate) losses: Vec<Loss>,
}

/// Most bytes of a description.
pub(crate) const DESCRIPTION_BYTES: usize = 256 << 10;

/// Something that a move would leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    /// By which it is accepted: `pg:layer`, `pg:volume:3f2a…`, `pg:bind:/etc/ssl`, `pg:device:/dev/fuse`, …
    pub(crate) name: String,
    /// For a person: what it is, and what to do.
    pub(crate) what: String,
}

/// How one ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// For a person.
    pub(crate) status: String,
    /// It ended well, and is not started again.
    pub(crate) success: bool,
}

/// One workload of one unit. Made anew for each use, so it remembers nothing that is not on disk.
///
/// Failures: [`flocker_core::FailureCode::NotStarted`] only where nothing of it can have run;
/// [`flocker_core::FailureCode::NotFound`] where it does not exist here; each names the workload, the cause and
/// the next step.
pub(crate) trait Driver: Debug + Send {
    /// From now on only we start it. What that takes away is written down first, once; asked again it looks that
    /// nobody has turned it back on.
    fn take(&self) -> Result<(), Failure>;

    /// Gives back what [`Driver::take`] took away. What is gone is no error.
    fn release(&self) -> Result<(), Failure>;

    /// What it is, and what a move would leave behind. `volumes`: where the unit's volumes are reachable here, in
    /// the unit's order.
    fn describe(&self, volumes: &[PathBuf]) -> Result<Described, Failure>;

    /// Makes it ready here for when the unit arrives, stopped, and takes it; `volumes`: where they will be
    /// reachable. What is there already under its name and was not made by us stays as it is. Fails where
    /// something that it needs is missing here (its image, say).
    fn prepare(&self, description: &str, volumes: &[PathBuf]) -> Result<(), Failure>;

    /// Whether anything of it runs (also frozen, also half started).
    fn runs(&self) -> Result<bool, Failure>;

    /// Starts it, unless it runs.
    fn start(&self, volumes: &[PathBuf]) -> Result<(), Failure>;

    /// Asks it to stop in its own way, kills after `limit`; returns once nothing of it is left.
    fn stop(&self, limit: Duration) -> Result<(), Failure>;

    /// Kills it; returns once nothing of it is left.
    fn kill(&self) -> Result<(), Failure>;

    /// Every process of it stands still until [`Driver::thaw`].
    fn freeze(&self) -> Result<(), Failure>;

    /// Undoes [`Driver::freeze`]; what is not frozen is left alone.
    fn thaw(&self) -> Result<(), Failure>;

    /// Waits until it has ended by itself or by us. Called on a thread of its own.
    fn wait(&self) -> Result<Ended, Failure>;

    /// It will be started, stopped or written down soon: a service that has to be started for that is awake for
    /// so long, where it can be.
    fn keep_ready(&self, _limit: Duration) {}

    /// Whether it can be written down with its memory and go on over there; why not, if not: no CRIU, a runtime
    /// that cannot, connections behind NAT.
    fn can_checkpoint(&self) -> Result<(), Failure>;

    /// Writes its memory into `folder` while it runs on, so that [`Driver::checkpoint`] has less left to write.
    fn pre_dump(&self, folder: &Path) -> Result<(), Failure>;

    /// Writes all of it into `folder` and ends it; returns once nothing of it is left. `pre_dumped`: on top of
    /// what is there.
    fn checkpoint(&self, folder: &Path, pre_dumped: bool) -> Result<Vec<Part>, Failure>;

    /// Goes on from what [`Driver::checkpoint`] has written, here or on the other node.
    fn restore(&self, folder: &Path, volumes: &[PathBuf]) -> Result<Vec<Part>, Failure>;
}

/// A part of the time that a checkpoint or a restore took, as whoever did it says: CRIU's own statistics, the
/// runtime's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// `criu frozen`, `criu dump`, `criu restore`, `runtime`, …
    pub(crate) name: &'static str,
    /// Milliseconds.
    pub(crate) ms: u64,
}
