//! Cgroups (version 2) of workloads that another program runs: which are theirs, whether anything lives in
//! them, freezing and killing.
//!
//! Owns: reading and writing `/sys/fs/cgroup`. Leaves to others: which name a program gives to its cgroup, and
//! asking that program to stop what runs there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// Deepest folder that is looked into: a container of a rootless user inside of a slice has seven.
const DEEPEST: usize = 10;

/// Pause between two looks at a cgroup that changes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A cgroup's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// The one of a path as programs say it: `/system.slice/x.service`.
    pub(super) fn at(path: &str) -> Self {
        Self(Path::new(ROOT).join(path.trim_start_matches('/')))
    }

    /// Whether any process is in it or below it. One that is gone has none.
    ///
    /// # Errors
    /// Nobody can tell.
    pub(super) fn populated(&self) -> io::Result<bool> {
        self.event("populated")
    }

    fn event(&self, name: &str) -> io::Result<bool> {
        match fs::read_to_string(self.0.join("cgroup.events")) {
            Ok(text) => Ok(event(&text, name)),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it was asked to stand still.
    pub(super) fn is_frozen(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Every process in it stands still when this returns.
    ///
    /// # Errors
    /// It did not within `limit`; it goes on.
    pub(super) fn freeze(&self, limit: Duration) -> io::Result<()> {
        self.write("cgroup.freeze", "1")?;
        let until = Instant::now() + limit;
        while !self.event("frozen")? {
            if !self.0.exists() {
                return Ok(());
            }
            if Instant::now() > until {
                self.thaw()?;
                let said = format!("it did not stand still within {} ms", limit.as_millis());
                return Err(io::Error::new(io::ErrorKind::TimedOut, said));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It stands still yet.
    pub(super) fn thaw(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Kills every process in it; what is frozen dies as well.
    ///
    /// # Errors
    /// It cannot be done.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    fn write(&self, file: &str, what: &str) -> io::Result<()> {
        match fs::write(self.0.join(file), what) {
            Err(error) if is_gone(&error) => Ok(()),
            done => done,
        }
    }

    /// Every process in it and below it.
    pub(super) fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        visit(&self.0, 0, &mut |folder| {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            true
        });
        found
    }
}

/// A cgroup that vanishes while it is looked at: its folder is gone (ENOENT), or is being removed (ENODEV).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// `name 1` in a file of events.
fn event(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(name).is_some_and(|value| value.trim() == "1"))
}

/// Visits a folder and those below it, until `what` says that it need not go deeper.
fn visit(folder: &Path, depth: usize, what: &mut dyn FnMut(&Path) -> bool) {
    if !what(folder) || depth >= DEEPEST {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), depth + 1, what);
        }
    }
}

/// Every cgroup whose own name `is_it` knows; not those below one that was found.
pub(super) fn find(is_it: &dyn Fn(&str) -> bool) -> Vec<Cgroup> {
    let mut found = Vec::new();
    visit(Path::new(ROOT), 0, &mut |folder| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let here = is_it(name);
        if here {
            found.push(Cgroup(folder.to_owned()));
        }
        !here
    });
    found
}

/// Waits until nothing lives in any of them.
///
/// # Errors
/// Something does after `limit`; the message names its processes.
pub(super) fn wait_until_empty(cgroups: &[Cgroup], limit: Duration) -> io::Result<()> {
    let until = Instant::now() + limit;
    for cgroup in cgroups {
        while cgroup.populated()? {
            if Instant::now() > until {
                let left: Vec<String> =
                    cgroup.processes().iter().map(ToString::to_string).collect();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("processes {} live in {}", left.join(", "), cgroup.0.display()),
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

/// Whether this machine has cgroups of version 2 where they are looked for.
///
/// # Errors
/// It has not: nobody can tell whether a workload is gone.
pub(super) fn check() -> io::Result<()> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{ROOT} has no cgroups of version 2; boot with systemd.unified_cgroup_hierarchy=1"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let text = "populated 1\nfrozen 0\n";
        assert!(event(text, "populated") && !event(text, "frozen") && !event(text, "other"));
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty_and_can_be_asked_anything() {
        let gone = Cgroup::at("/no.slice/such.scope");
        assert!(!gone.populated().unwrap() && !gone.is_frozen());
        gone.freeze(Duration::ZERO).unwrap();
        gone.thaw().unwrap();
        gone.kill().unwrap();
        wait_until_empty(&[gone], Duration::ZERO).unwrap();
    }
}
