//! Quotas and reservations of a dataset while it is at rest.
//!
//! Owns: lifting them with the fence and putting them back with the activation. A quota counts the workload's
//! data and not what a standby receives: left in place it fails a receive (openzfs #4492) or a rollback
//! (#17450), and a reservation keeps the room that the next step needs. zfs-fuse is left alone: one property a
//! call, on the critical path.

use std::collections::BTreeMap;

use flocker_store::store::Result;
use flocker_store::{DatasetName, PropertySource};

use crate::ZfsStore;
use crate::properties::Native;

/// What was lifted: `refquota=1073741824,refreservation=5`, bytes.
pub const WAS_LIMITS: &str = "flocker-repl:was-limits";

/// The properties that are lifted.
pub(crate) const LIMITS: [&str; 4] = ["quota", "refquota", "refreservation", "reservation"];

impl ZfsStore {
    /// Lifts what is set on this very dataset. `now` has each of [`LIMITS`].
    pub(crate) fn lift_limits(
        &self,
        dataset: &DatasetName,
        now: &BTreeMap<String, Native>,
    ) -> Result<()> {
        let set: Vec<String> = LIMITS
            .iter()
            .filter_map(|name| Some((name, now.get(*name)?)))
            .filter(|(_, is)| is.source == PropertySource::Local && is.value != "0")
            .map(|(name, is)| format!("{name}={}", is.value))
            .collect();
        if set.is_empty() {
            return Ok(());
        }
        // Remembered in the same transaction, so that a crash cannot lose them.
        let mut words = vec![format!("{WAS_LIMITS}={}", set.join(","))];
        let names = set.iter().filter_map(|word| word.split('=').next());
        words.extend(names.map(|name| format!("{name}=none")));
        self.set_words(dataset, &words)
    }

    /// Puts back what was lifted. `was` is the property that remembers it.
    pub(crate) fn restore_limits(&self, dataset: &DatasetName, was: &Native) -> Result<()> {
        if was.source != PropertySource::Local {
            return Ok(());
        }
        let known = |word: &&str| word.split('=').next().is_some_and(|name| LIMITS.contains(&name));
        let words: Vec<String> = was.value.split(',').filter(known).map(str::to_owned).collect();
        self.set_words(dataset, &words)?;
        self.inherit(dataset.as_str(), WAS_LIMITS, dataset)
    }
}
