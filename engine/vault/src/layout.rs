//! The vault's directory: what lies where, its version, and the lock against a second process.
//!
//! ```text
//! <vault>/flocker-vault   "flocker-vault 2\n": magic and version
//! <vault>/lock            held by the process that has it open, with its number
//! <vault>/index.redb      datasets, snapshots, where blocks lie
//! <vault>/packs/*.pack    the blocks
//! <vault>/live/<dataset>  live directories and disk images, at the path a workload uses
//! <vault>/hidden/<id>/    the same, fenced or being prepared
//! <vault>/tmp/            emptied at each start
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use flocker_store::{DatasetName, Holder, StoreError};
use rustix::fs::FlockOperation;

use crate::blocks::sync_dir;

type Result<T> = std::result::Result<T, StoreError>;

/// The version of the vault's format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 2;

const MAGIC_FILE: &str = "flocker-vault";
const DIRECTORIES: [&str; 4] = ["packs", "live", "hidden", "tmp"];

fn io(path: &Path, e: std::io::Error) -> StoreError {
    StoreError::io(format!("using {}", path.display()), e)
}

/// Lays out a new vault in an empty or missing directory.
pub(crate) fn create(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| io(path, e))?;
    let mut entries = std::fs::read_dir(path).map_err(|e| io(path, e))?;
    if entries.next().is_some() {
        return Err(StoreError::Exists { name: format!("{} (it is not empty)", path.display()) });
    }
    for name in DIRECTORIES {
        let dir = path.join(name);
        std::fs::create_dir(&dir).map_err(|e| io(&dir, e))?;
    }
    // The magic file comes last: with it the vault is one.
    let temporary = path.join("tmp/magic");
    let mut file = File::create(&temporary).map_err(|e| io(&temporary, e))?;
    writeln!(file, "{MAGIC_FILE} {FORMAT_VERSION}").map_err(|e| io(&temporary, e))?;
    file.sync_all().map_err(|e| io(&temporary, e))?;
    let magic = path.join(MAGIC_FILE);
    std::fs::rename(&temporary, &magic).map_err(|e| io(&magic, e))?;
    sync_dir(path)
}

/// Checks that there is a vault of our version.
pub(crate) fn check(path: &Path) -> Result<()> {
    let magic = path.join(MAGIC_FILE);
    let text = std::fs::read_to_string(&magic).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => StoreError::Corrupt {
            path: path.to_owned(),
            detail: format!("it is not a vault: there is no file {MAGIC_FILE}"),
        },
        _ => io(&magic, e),
    })?;
    let version = text.strip_prefix(MAGIC_FILE).and_then(|rest| rest.trim().parse::<u32>().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(other) => Err(StoreError::NotCapable {
            store: format!("vault {} of format {other}", path.display()),
            what: format!(
                "opening it with this version, which reads format {FORMAT_VERSION} (format {other} \
                 needs the version that made it)"
            ),
        }),
        None => Err(StoreError::Corrupt {
            path: magic,
            detail: "it does not hold the vault's version".into(),
        }),
    }
}

/// Locks the vault against other processes for as long as the file is open.
pub(crate) fn lock(path: &Path, root: &DatasetName) -> Result<File> {
    let lock = path.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock)
        .map_err(|e| io(&lock, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(&lock, root)),
        Err(e) => return Err(io(&lock, e.into())),
    }
    // Only for the message above; a stale number does no harm.
    let told = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = told {
        tracing::debug!(%error, "the lock does not say who holds it");
    }
    Ok(file)
}

fn locked(lock: &Path, root: &DatasetName) -> StoreError {
    let pid = std::fs::read_to_string(lock)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(0);
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    StoreError::Busy {
        dataset: root.clone(),
        holders: vec![Holder {
            pid,
            command: command.trim_end().to_owned(),
            what: format!("has the vault open ({})", lock.display()),
        }],
    }
}

/// Where a dataset's live directory is.
pub(crate) fn live(path: &Path, dataset: &DatasetName) -> PathBuf {
    path.join("live").join(dataset.as_str())
}

/// Where a dataset's directory is when nobody may write it.
pub(crate) fn hidden(path: &Path, id: crate::meta::DatasetId) -> PathBuf {
    path.join("hidden").join(id.0.to_string())
}
