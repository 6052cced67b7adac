//! The durable record of a workload's process: `<state>/run/<unit>.json`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flocker_core::ids::UnitId;
use serde::{Deserialize, Serialize};

/// Which process a workload was started as. All three must match: a pid alone names nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PidRecord {
    /// The supervisor's, which becomes the command's (or stays its parent: see `stays`).
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot_id: String,
    /// The supervisor stays and takes the workload down with the daemon.
    pub(crate) stays: bool,
    /// The supervisor stays and watches over a lease.
    #[serde(default)]
    pub(crate) leased: bool,
}

impl PidRecord {
    /// The recorded process is not the command, but its supervisor.
    pub(crate) fn supervised(&self) -> bool {
        self.stays || self.leased
    }
}

/// Where the records are.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, unit: UnitId) -> PathBuf {
        self.dir.join(format!("{unit}.json"))
    }

    /// The record of a unit. One that cannot be read counts as none: the environment's mark finds
    /// the processes all the same.
    pub(crate) fn load(&self, unit: UnitId) -> Option<PidRecord> {
        let path = self.path(unit);
        let bytes = fs::read(&path).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "pid record cannot be read");
                None
            }
        }
    }

    /// Makes a record durable.
    ///
    /// # Errors
    /// It is not durable.
    pub(crate) fn store(&self, unit: UnitId, record: &PidRecord) -> io::Result<()> {
        let path = self.path(unit);
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        serde_json::to_writer(&mut file, record)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        sync_dir(&self.dir)
    }

    /// The file of a unit's lease.
    pub(crate) fn lease(&self, unit: UnitId) -> PathBuf {
        super::lease::path(&self.dir, unit)
    }

    /// Forgets a record; a stale one does no harm, so nothing is made of a failure.
    pub(crate) fn remove(&self, unit: UnitId) {
        let _ = fs::remove_file(self.path(unit));
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
