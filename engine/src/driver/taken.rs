//! What was taken away from a workload's own program, so that it can be given back: `<state>/taken/<unit>-<kind>.json`.
//!
//! Owns: one small file for each unit, whole or not there, durable before it is acted on. Leaves to others: what
//! the entries mean (each driver's own).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flocker_core::ids::UnitId;
use flocker_core::record::WorkloadKind;
use flocker_core::{Failure, FailureCode, Remedy};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The file of one unit.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    path: PathBuf,
}

/// What it says: for each member of the workload, by name, how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Before<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Before<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl Taken {
    pub(super) fn new(state: &Path, unit: UnitId, kind: WorkloadKind) -> Self {
        Self { path: state.join("taken").join(format!("{unit}-{kind}.json")) }
    }

    /// What was written last; nothing if nothing was.
    ///
    /// # Errors
    /// It cannot be read: nobody knows what to give back.
    pub(super) fn load<T: DeserializeOwned>(&self) -> Result<Before<T>, Failure> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Before::default()),
            Err(error) => return Err(self.failure("cannot be read", &error)),
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| self.failure("cannot be read", &io::Error::from(error)))
    }

    /// Makes it durable; with nothing in it there is no file.
    ///
    /// # Errors
    /// It is not durable.
    pub(super) fn store<T: Serialize>(&self, before: &Before<T>) -> Result<(), Failure> {
        self.write(before).map_err(|error| self.failure("cannot be written", &error))
    }

    fn write<T: Serialize>(&self, before: &Before<T>) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if before.0.is_empty() {
            return match fs::remove_file(&self.path) {
                Ok(()) => File::open(dir)?.sync_all(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
        }
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            if let Some(above) = dir.parent() {
                File::open(above)?.sync_all()?;
            }
        }
        let beside = self.path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        serde_json::to_writer_pretty(&mut file, before)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(dir)?.sync_all()
    }

    fn failure(&self, what: &str, error: &io::Error) -> Failure {
        Failure::new(
            Remedy::Operator,
            FailureCode::Workload,
            format!(
                "{}, which says how the workload was before it was protected, {what}: {error}",
                self.path.display()
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_kept_until_nothing_of_it_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let taken = Taken::new(dir.path(), UnitId(7), WorkloadKind::Podman);
        assert_eq!(taken.load::<String>().unwrap(), Before::default());
        let mut before = Before::default();
        before.0.insert("pg".to_owned(), "always".to_owned());
        taken.store(&before).unwrap();
        assert_eq!(taken.load::<String>().unwrap(), before);
        taken.store(&Before::<String>::default()).unwrap();
        assert!(!taken.path.exists());
        taken.store(&Before::<String>::default()).unwrap();
        fs::write(&taken.path, "x").unwrap();
        let error = taken.load::<String>().unwrap_err();
        assert!(error.message.contains("before it was protected"), "{error}");
    }
}
