//! What is remembered of containers, so that one that runs is known without its API.
//!
//! Owns: the file. Leaves to others: believing it (an id counts only where a cgroup of that id has processes).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flocker_core::ids::UnitId;

/// The ids of containers by name, as they were last seen: `<state>/run/<unit>.containers.json`. Whatever it says is
/// looked at; it being gone or old costs a question.
#[derive(Debug)]
pub(super) struct Ids(PathBuf);

impl Ids {
    pub(super) fn new(state: &Path, unit: UnitId) -> Self {
        Self(state.join("run").join(format!("{unit}.containers.json")))
    }

    pub(super) fn load(&self) -> BTreeMap<String, String> {
        let bytes = std::fs::read(&self.0).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(super) fn store(&self, ids: &BTreeMap<String, String>) {
        let write = || -> std::io::Result<()> {
            if let Some(folder) = self.0.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let beside = self.0.with_extension("json.new");
            std::fs::write(&beside, serde_json::to_vec(ids)?)?;
            std::fs::rename(&beside, &self.0)
        };
        if let Err(error) = write() {
            tracing::debug!(path = %self.0.display(), %error, "ids of containers are not remembered");
        }
    }
}
